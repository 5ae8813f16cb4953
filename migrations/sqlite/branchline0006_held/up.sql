-- What a held line was last tried against: `known` names the schema and the keys known then. A line
-- that was tried against others is due. `lane` is where a message that cannot be read lay.
ALTER TABLE sync_held ADD COLUMN known TEXT;
ALTER TABLE sync_held ADD COLUMN lane TEXT;
ALTER TABLE sync_held ADD COLUMN alarmed_at TEXT;
CREATE INDEX sync_held_quiet ON sync_held (id) WHERE alarmed_at IS NULL;
CREATE INDEX sync_held_due ON sync_held (next_attempt) WHERE next_attempt IS NOT NULL;

-- What a sender is still to be told of a record that was decided outside of its delivery: a held one
-- that went in, was given up or dropped. A line goes once the broker has the answer.
CREATE TABLE sync_answer (
    server_id     INTEGER NOT NULL REFERENCES sync_server (id) ON DELETE CASCADE,
    uuid          TEXT NOT NULL,
    state         TEXT NOT NULL,
    error_message TEXT,
    PRIMARY KEY (server_id, uuid)
) WITHOUT ROWID;

-- Conditions that a person was told of, once each. `told_at` is empty until the log, the command and
-- the webhook have had their turn, `cleared_at` while it lasts.
CREATE TABLE sync_alarm (
    key        TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    text       TEXT NOT NULL,
    raised_at  TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    told_at    TEXT,
    cleared_at TEXT
) WITHOUT ROWID;
