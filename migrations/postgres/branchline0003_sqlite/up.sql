-- Nothing: both databases have a migration of each number.
SELECT 1;
