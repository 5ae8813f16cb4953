-- What the room `link` keeps of a link, as JSON: what came in by number, what the neighbour said of
-- our numbers, and who speaks there. `in_epoch` and `in_number` say the same of what came in, for
-- people and SQL: up to which number there is no gap.
ALTER TABLE sync_server ADD COLUMN inbound text;
ALTER TABLE sync_server ADD COLUMN outbound text;
ALTER TABLE sync_server ADD COLUMN peer text;
-- After a restore: what this server asks the neighbour for, and the origins whose rows the neighbour
-- is to get as whole states.
ALTER TABLE sync_server ADD COLUMN wanted text;
ALTER TABLE sync_server ADD COLUMN rows_of text;

-- This server found out that its database is older than what it has said; a new incarnation follows.
ALTER TABLE sync_self ADD COLUMN fallen_at timestamptz;

-- `number`: up to which number of the origin nothing is missing here; `highest`: the highest that came.
ALTER TABLE sync_origin ADD COLUMN highest bigint NOT NULL DEFAULT 0;

-- The numbers of the messages that a load went in; it is done with when the child has them all.
ALTER TABLE sync_invite ADD COLUMN load_from bigint;
ALTER TABLE sync_invite ADD COLUMN load_to bigint;

-- Rows whose whole state is to be sent to a neighbour, with the number of the message that they went
-- in; a row is done with when the neighbour has that number.
CREATE TABLE sync_row_due (
    server_id   int NOT NULL REFERENCES sync_server ON DELETE CASCADE,
    class_id    int NOT NULL,
    key         text COLLATE "C" NOT NULL,
    link_number bigint,
    PRIMARY KEY (server_id, class_id, key)
);

-- Rows whose whole state a neighbour was asked for, and when.
CREATE TABLE sync_row_asked (
    server_id int NOT NULL REFERENCES sync_server ON DELETE CASCADE,
    class_id  int NOT NULL,
    key       text COLLATE "C" NOT NULL,
    asked_at  timestamptz NOT NULL,
    times     int NOT NULL DEFAULT 1,
    PRIMARY KEY (server_id, class_id, key)
);
