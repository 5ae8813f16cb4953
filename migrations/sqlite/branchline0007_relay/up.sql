-- Several processes may publish for one server (an application that embeds the publisher, workers):
-- the one whose messages are under way on a link, and until when that holds if it dies.
ALTER TABLE sync_server ADD COLUMN relay_session TEXT;
ALTER TABLE sync_server ADD COLUMN relay_until TEXT;
