DROP TABLE sync_subtree;
DROP TABLE sync_origin_time;
ALTER TABLE sync_origin DROP COLUMN stable_time;
ALTER TABLE sync_origin DROP COLUMN stable_number;
ALTER TABLE sync_held DROP COLUMN decided;
ALTER TABLE sync_conflict DROP COLUMN loser_data;
ALTER TABLE sync_conflict DROP COLUMN winner_data;
DROP TABLE sync_revived;
ALTER TABLE sync_self DROP COLUMN merge;
