#!/bin/bash
# Runs as the user postgres. Commits numbers one by one, from the first that is not there on, and tells each one that is
# committed to the host's port $1: what the host has heard of must be in every cut that is made later.
exec 3<>"/dev/tcp/10.0.2.2/$1"
psql --quiet --command 'create table if not exists ledger (number bigint primary key, filler text)'
first=$(psql --quiet --no-align --tuples-only --command 'select coalesce(max(number), 0) + 1 from ledger')
seq "$first" 10000000 |
    sed "s/.*/insert into ledger values (&, repeat(md5('&'), 8)) returning number;/" |
    psql --quiet --no-align --tuples-only >&3
