-- The sync tables, beside the host's. Times are RFC 3339 text in UTC with milliseconds.

-- This server: one row. Sealing, applying and every running number are serialised by its row lock.
CREATE TABLE sync_self (
    id                INTEGER PRIMARY KEY CHECK (id = 1),
    uuid              TEXT NOT NULL,
    nickname          TEXT NOT NULL,
    incarnation       INTEGER NOT NULL,
    signing_key       BLOB NOT NULL,
    tree_id           TEXT NOT NULL,
    clock             INTEGER NOT NULL DEFAULT 0,
    next_number       INTEGER NOT NULL DEFAULT 1,
    database_identity TEXT,
    last_cleanup      TEXT,
    created_at        TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

-- Classes by a small local number; `definition` (JSON) is NULL for a class that is known by name only.
CREATE TABLE sync_tracked (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    class       TEXT NOT NULL UNIQUE,
    definition  TEXT,
    shape       INTEGER,
    tracked_at  TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

-- Lists of column names (JSON arrays) that captured images have.
CREATE TABLE sync_shape (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    class_id INTEGER NOT NULL REFERENCES sync_tracked (id) ON DELETE CASCADE,
    columns  TEXT NOT NULL,
    UNIQUE (class_id, columns)
);

-- What the triggers caught and nobody has sealed yet. `local_id` stands where the row may be referred
-- to, and was deleted, got another key or an id that was used before. op 5 is a note: the row would go
-- if the insert replaces; `clash` says by which values. A note that came to nothing is without effect.
CREATE TABLE sync_change (
    seq        INTEGER PRIMARY KEY,
    class_id   INTEGER NOT NULL,
    op         INTEGER NOT NULL,
    shape      INTEGER,
    local_id   TEXT,
    clash      TEXT,
    changed_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
CREATE INDEX sync_change_local ON sync_change (class_id, local_id) WHERE local_id IS NOT NULL;
CREATE INDEX sync_change_noted ON sync_change (class_id, clash) WHERE op = 5;

-- The images: values as they are stored, 32 a row. `part` is twice the number of such a piece, and 1
-- more in the image after the change.
CREATE TABLE sync_image (
    seq  INTEGER NOT NULL,
    part INTEGER NOT NULL,
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16, c17, c18, c19,
    c20, c21, c22, c23, c24, c25, c26, c27, c28, c29, c30, c31,
    PRIMARY KEY (seq, part)
) WITHOUT ROWID;
CREATE TRIGGER sync_change_images AFTER DELETE ON sync_change BEGIN
    DELETE FROM sync_image WHERE seq = OLD.seq;
END;

-- Where the interceptor marks the end of a transaction: by a trigger, so that the host's
-- last_insert_rowid() stays as it is.
CREATE VIEW sync_mark AS SELECT op FROM sync_change WHERE op = 4;
CREATE TRIGGER sync_mark_insert INSTEAD OF INSERT ON sync_mark BEGIN
    INSERT INTO sync_change (class_id, op) VALUES (0, 4);
END;

-- The neighbours, and this side's bookkeeping of the link to each.
CREATE TABLE sync_server (
    id                 INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid               TEXT NOT NULL UNIQUE,
    nickname           TEXT NOT NULL,
    role               TEXT NOT NULL CHECK (role IN ('PARENT', 'CHILD')),
    state              TEXT NOT NULL,
    address            TEXT NOT NULL DEFAULT '',
    disabled           INTEGER NOT NULL DEFAULT 0,
    public_key         BLOB,
    last_contact       TEXT,
    last_contact_state TEXT,
    error_message      TEXT,
    incarnation        INTEGER,
    session            TEXT,
    format             INTEGER,
    clock_skew_ms      INTEGER,
    out_epoch          INTEGER NOT NULL DEFAULT 0,
    out_number         INTEGER NOT NULL DEFAULT 0,
    in_epoch           INTEGER NOT NULL DEFAULT 0,
    in_number          INTEGER NOT NULL DEFAULT 0,
    joined_at          TEXT,
    created_at         TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

-- One-use invitations; the row of the child to be stands in `sync_server` from the invitation on.
CREATE TABLE sync_invite (
    uuid       TEXT PRIMARY KEY,
    server_id  INTEGER NOT NULL REFERENCES sync_server (id) ON DELETE CASCADE,
    verify_key BLOB NOT NULL,
    load       INTEGER NOT NULL,
    expires_at TEXT NOT NULL,
    used_by    TEXT,
    used_at    TEXT,
    loaded_at  TEXT
);

-- For an open invitation without a load: row states as they were when it was made, kept on their
-- first change after it. A NULL state: the row had none.
CREATE TABLE sync_invite_state (
    server_id INTEGER NOT NULL REFERENCES sync_server (id) ON DELETE CASCADE,
    class_id  INTEGER NOT NULL,
    key       TEXT NOT NULL,
    state     BLOB,
    PRIMARY KEY (server_id, class_id, key)
) WITHOUT ROWID;

-- Every server of the tree in each of its incarnations, by a small local number.
CREATE TABLE sync_origin (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid        TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    nickname    TEXT,
    public_key  BLOB,
    number      INTEGER NOT NULL DEFAULT 0,
    UNIQUE (uuid, incarnation)
);

-- One signature over what an origin sealed together; `tree` holds the digests that are known here.
CREATE TABLE sync_batch (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    origin_id INTEGER NOT NULL,
    count     INTEGER NOT NULL,
    signature BLOB NOT NULL,
    tree      BLOB NOT NULL
);

-- What is to be sent: one row a committed transaction, ours or passed on.
CREATE TABLE sync_record (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid              TEXT NOT NULL UNIQUE,
    original_uuid     TEXT NOT NULL UNIQUE,
    timestamp         TEXT NOT NULL,
    state             TEXT NOT NULL,
    retry_count       INTEGER NOT NULL DEFAULT 0,
    contained_classes TEXT NOT NULL,
    payload           BLOB NOT NULL,
    origin_id         INTEGER NOT NULL,
    number            INTEGER NOT NULL,
    batch_id          INTEGER NOT NULL,
    batch_index       INTEGER NOT NULL,
    parts             INTEGER NOT NULL DEFAULT 1,
    source_server_id  INTEGER,
    error_message     TEXT,
    sent_at           TEXT,
    link_number       INTEGER
);
CREATE INDEX sync_record_open ON sync_record (id)
    WHERE state IN ('NEW', 'PENDING', 'SENT', 'SENT_AGAIN', 'SEND_FAILED', 'FAILED');
CREATE INDEX sync_record_batch ON sync_record (batch_id);
CREATE INDEX sync_record_timestamp ON sync_record (timestamp);

CREATE TABLE sync_server_record (
    record_id     INTEGER NOT NULL REFERENCES sync_record (id) ON DELETE CASCADE,
    server_id     INTEGER NOT NULL REFERENCES sync_server (id) ON DELETE CASCADE,
    state         TEXT NOT NULL,
    retry_count   INTEGER NOT NULL DEFAULT 0,
    error_message TEXT,
    sent_at       TEXT,
    link_number   INTEGER,
    PRIMARY KEY (record_id, server_id)
) WITHOUT ROWID;
CREATE INDEX sync_server_record_open ON sync_server_record (server_id, record_id)
    WHERE state IN ('NEW', 'PENDING', 'SENT', 'SENT_AGAIN', 'SEND_FAILED', 'FAILED');

-- Parts of a transaction that is too big for one message: from 1 on here (part 0 is the payload of
-- the record), all of them while they are still coming in.
CREATE TABLE sync_part (
    original_uuid TEXT NOT NULL,
    part          INTEGER NOT NULL,
    payload       BLOB NOT NULL,
    batch_id      INTEGER NOT NULL,
    batch_index   INTEGER NOT NULL,
    PRIMARY KEY (original_uuid, part)
) WITHOUT ROWID;

-- What came in. `original_uuid` is unique: a record is known whichever way it comes.
CREATE TABLE sync_import (
    original_uuid TEXT PRIMARY KEY,
    uuid          TEXT NOT NULL,
    state         TEXT NOT NULL,
    retry_count   INTEGER NOT NULL DEFAULT 0,
    error_message TEXT,
    server_id     INTEGER NOT NULL,
    timestamp     TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
CREATE INDEX sync_import_uuid ON sync_import (uuid);
CREATE INDEX sync_import_unconfirmed ON sync_import (server_id) WHERE state = 'COMMITTED';
CREATE INDEX sync_import_timestamp ON sync_import (timestamp);

-- The merge state of each row that was ever changed under tracking.
CREATE TABLE sync_row (
    class_id INTEGER NOT NULL,
    key      TEXT NOT NULL,
    state    BLOB NOT NULL,
    PRIMARY KEY (class_id, key)
) WITHOUT ROWID;

-- Concurrent edits, both sides of each, for review.
CREATE TABLE sync_conflict (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    class           TEXT NOT NULL,
    key             TEXT NOT NULL,
    column_name     TEXT,
    kind            TEXT NOT NULL,
    winner_value    TEXT,
    winner_server   TEXT,
    winner_time     TEXT,
    loser_value     TEXT,
    loser_server    TEXT,
    loser_time      TEXT,
    note            TEXT,
    original_uuid   TEXT,
    detected_at     TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    resolved_at     TEXT,
    resolution      TEXT
);
CREATE INDEX sync_conflict_row ON sync_conflict (class, key);

-- Records that cannot go into the tables yet, and messages that cannot be decoded, as they came.
CREATE TABLE sync_held (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    original_uuid TEXT UNIQUE,
    uuid          TEXT,
    server_id     INTEGER NOT NULL,
    kind          TEXT NOT NULL,
    reason        TEXT NOT NULL,
    classes       TEXT NOT NULL,
    payload       BLOB NOT NULL,
    retry_count   INTEGER NOT NULL DEFAULT 0,
    next_attempt  TEXT,
    held_at       TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
CREATE TABLE sync_held_need (
    held_id  INTEGER NOT NULL REFERENCES sync_held (id) ON DELETE CASCADE,
    class_id INTEGER NOT NULL,
    key      TEXT NOT NULL,
    PRIMARY KEY (held_id, class_id, key)
) WITHOUT ROWID;
CREATE INDEX sync_held_need_row ON sync_held_need (class_id, key);

-- Exchanges that failed, and what operators did.
CREATE TABLE sync_transmission (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    server_id     INTEGER,
    direction     TEXT NOT NULL,
    timestamp     TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    error_message TEXT NOT NULL
);
CREATE TABLE sync_audit (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    actor     TEXT NOT NULL,
    action    TEXT NOT NULL,
    detail    TEXT NOT NULL
);

-- Which class goes to and comes from whom: the defaults, and each server's own.
CREATE TABLE sync_class (
    name         TEXT PRIMARY KEY,
    send_to      INTEGER NOT NULL,
    receive_from INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE sync_server_class (
    server_id    INTEGER NOT NULL REFERENCES sync_server (id) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    send_to      INTEGER NOT NULL,
    receive_from INTEGER NOT NULL,
    PRIMARY KEY (server_id, name)
) WITHOUT ROWID;
INSERT INTO sync_class (name, send_to, receive_from) VALUES
    ('sync_*', 0, 0), ('branchline.*', 0, 0), ('global_property', 0, 0),
    ('scheduler_*', 0, 0), ('hl7_*', 0, 0), ('notification_alert*', 0, 0),
    ('__diesel_schema_migrations', 0, 0), ('liquibase*', 0, 0), ('flyway_*', 0, 0);

-- A row in here, in the applier's own transaction only, keeps its writes from being captured.
CREATE TABLE sync_applying (id INTEGER PRIMARY KEY);

-- Notes are about rows as the host left them: what the applier writes makes them void.
CREATE TRIGGER sync_applying_forgets AFTER INSERT ON sync_applying BEGIN
    DELETE FROM sync_change WHERE op = 5;
END;
