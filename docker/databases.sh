#!/bin/sh
# Run by the PostgreSQL container when its volume is new: one database for each server.
set -eu
first=0
for server in $BRANCHLINE_SERVERS; do
    createdb --username postgres "$server"
    # Integer ids begin elsewhere on each server, so that none matches by luck.
    psql --username postgres --dbname "$server" --quiet --set ON_ERROR_STOP=1 \
        --set first="$first" --file /clinic.sql
    first=$((first + 1000))
done
