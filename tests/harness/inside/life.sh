#!/bin/bash
# Starts the database, prints to the serial console what a client finds in the ledger, and has it go on.
pg_ctlcluster $(pg_lsclusters --no-header | cut -d' ' -f1) main start
found=$(runuser -u postgres -- psql -qAt -F ' ' -c 'select count(*), min(number), max(number) from ledger' 2>&1)
printf '\r\nledger holds %s.\r\n' "$found" > /dev/ttyS0
exec runuser -u postgres -- bash /usr/local/lib/holdfast-guest/ledger "$(cat /etc/holdfast-guest/ledger-port)"
