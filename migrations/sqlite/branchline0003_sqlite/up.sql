-- Changes hold their images themselves: one row a change, where the table has no more than 16 columns.
--
-- `n…` is the row as it is after the change (a delete, a note: as it was), `o…` what an update found.
-- Further columns follow in rows of op 6. `life` is 1 where a row comes, goes, or is known by another key
-- from then on; a row that the triggers of the version before wrote has none, and its images in
-- `sync_image`. op 5 is a note: this row agrees with one that is being written in a unique index, and goes
-- if that one replaces it; `note` holds its local id and key, `life` the last change before. Times are
-- Julian days.
CREATE TABLE sync_change_before AS SELECT * FROM sync_change;
DROP TABLE sync_change;
CREATE TABLE sync_change (
    seq        INTEGER PRIMARY KEY,
    class_id   INTEGER NOT NULL,
    op         INTEGER NOT NULL,
    shape      INTEGER,
    life       INTEGER,
    note       TEXT,
    local_id   TEXT,
    clash      TEXT,
    changed_at REAL DEFAULT (julianday('now')),
    n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11, n12, n13, n14, n15,
    o0, o1, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14, o15
);
CREATE INDEX sync_change_note ON sync_change (class_id, note) WHERE note IS NOT NULL;
INSERT INTO sync_change (seq, class_id, op, shape, local_id, clash, changed_at)
    SELECT seq, class_id, op, shape, local_id, clash, julianday(changed_at) FROM sync_change_before;
DROP TABLE sync_change_before;
CREATE VIEW sync_last AS
    SELECT ifnull((SELECT CASE WHEN note IS NULL THEN seq ELSE life END
        FROM sync_change ORDER BY seq DESC LIMIT 1), -1) AS seq;

-- What the applier writes finds no notes: it seals first.
DROP TRIGGER sync_applying_forgets;
