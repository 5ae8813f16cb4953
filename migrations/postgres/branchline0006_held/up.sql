-- What a held line was last tried against: `known` names the schema and the keys known then. A line
-- that was tried against others is due. `lane` is where a message that cannot be read lay.
ALTER TABLE sync_held ADD COLUMN known text;
ALTER TABLE sync_held ADD COLUMN lane text;
ALTER TABLE sync_held ADD COLUMN alarmed_at timestamptz;
CREATE INDEX sync_held_quiet ON sync_held (id) WHERE alarmed_at IS NULL;
CREATE INDEX sync_held_due ON sync_held (next_attempt) WHERE next_attempt IS NOT NULL;

-- What a sender is still to be told of a record that was decided outside of its delivery: a held one
-- that went in, was given up or dropped. A line goes once the broker has the answer.
CREATE TABLE sync_answer (
    server_id     int NOT NULL REFERENCES sync_server ON DELETE CASCADE,
    uuid          uuid NOT NULL,
    state         text NOT NULL,
    error_message text,
    PRIMARY KEY (server_id, uuid)
);

-- Conditions that a person was told of, once each. `told_at` is empty until the log, the command and
-- the webhook have had their turn, `cleared_at` while it lasts.
CREATE TABLE sync_alarm (
    key        text PRIMARY KEY,
    kind       text NOT NULL,
    text       text NOT NULL,
    raised_at  timestamptz NOT NULL DEFAULT now(),
    told_at    timestamptz,
    cleared_at timestamptz
);
