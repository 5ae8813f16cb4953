-- How classes merge in the tree, as the parent told it; NULL on the root, and until one has.
ALTER TABLE sync_self ADD COLUMN merge BLOB;

-- Rows that are dead by their state and stand in their table all the same, because a row refers to
-- them. They go with the last one that does.
CREATE TABLE sync_revived (
    class_id INTEGER NOT NULL,
    key      TEXT NOT NULL,
    PRIMARY KEY (class_id, key)
) WITHOUT ROWID;

-- Both values in full (MessagePack): the texts are for people, and lossy.
ALTER TABLE sync_conflict ADD COLUMN winner_data BLOB;
ALTER TABLE sync_conflict ADD COLUMN loser_data BLOB;

-- An operator let its concurrent edits in (policy `hold`).
ALTER TABLE sync_held ADD COLUMN decided INTEGER NOT NULL DEFAULT 0;

-- Up to which number of an origin the whole tree has everything, and the time of that record.
ALTER TABLE sync_origin ADD COLUMN stable_number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sync_origin ADD COLUMN stable_time INTEGER NOT NULL DEFAULT 0;

-- Which time a record's number has: a line now and then, so that what is stable by number is by time.
CREATE TABLE sync_origin_time (
    origin_id INTEGER NOT NULL,
    number    INTEGER NOT NULL,
    time      INTEGER NOT NULL,
    PRIMARY KEY (origin_id, number)
) WITHOUT ROWID;

-- Up to which number of an origin a child and all below it have everything, as it said last.
CREATE TABLE sync_subtree (
    server_id INTEGER NOT NULL REFERENCES sync_server (id) ON DELETE CASCADE,
    origin_id INTEGER NOT NULL,
    number    INTEGER NOT NULL,
    PRIMARY KEY (server_id, origin_id)
) WITHOUT ROWID;
