-- How classes merge in the tree, as the parent told it; NULL on the root, and until one has.
ALTER TABLE sync_self ADD COLUMN merge bytea;

-- Rows that are dead by their state and stand in their table all the same, because a row refers to
-- them. They go with the last one that does.
CREATE TABLE sync_revived (
    class_id int NOT NULL,
    key      text COLLATE "C" NOT NULL,
    PRIMARY KEY (class_id, key)
);

-- Both values in full (MessagePack): the texts are for people, and lossy.
ALTER TABLE sync_conflict ADD COLUMN winner_data bytea;
ALTER TABLE sync_conflict ADD COLUMN loser_data bytea;

-- An operator let its concurrent edits in (policy `hold`).
ALTER TABLE sync_held ADD COLUMN decided boolean NOT NULL DEFAULT false;

-- Up to which number of an origin the whole tree has everything, and the time of that record.
ALTER TABLE sync_origin ADD COLUMN stable_number bigint NOT NULL DEFAULT 0;
ALTER TABLE sync_origin ADD COLUMN stable_time bigint NOT NULL DEFAULT 0;

-- Which time a record's number has: a line now and then, so that what is stable by number is by time.
CREATE TABLE sync_origin_time (
    origin_id int NOT NULL,
    number    bigint NOT NULL,
    time      bigint NOT NULL,
    PRIMARY KEY (origin_id, number)
);

-- Up to which number of an origin a child and all below it have everything, as it said last.
CREATE TABLE sync_subtree (
    server_id int NOT NULL REFERENCES sync_server ON DELETE CASCADE,
    origin_id int NOT NULL,
    number    bigint NOT NULL,
    PRIMARY KEY (server_id, origin_id)
);
