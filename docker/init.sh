#!/bin/sh
# init.sh PARENT CHILD…: makes a tree of the databases of these names.
set -eu

at() {
    server=$1
    shift
    BRANCHLINE_DATABASE_URL="$DATABASES/$server" branchline "$@"
}

parent=$1
for server in "$@"; do
    at "$server" init --nickname "$server"
    at "$server" track --all
done
shift
for child in "$@"; do
    # A child that has a parent, or has asked it, needs no second token.
    if at "$child" --json status | grep -q '"parent":null'; then
        token=$(at "$parent" invite "$child" --no-load)
        at "$child" join "$token"
    fi
done
