#!/bin/sh
# PostgreSQL from nothing: a cluster on scratch, a server on a socket, a query.
set -e
export PATH="$PATH:/usr/lib/postgresql/15/bin" PGHOST=/tmp LC_ALL=C
initdb -D /tmp/base -A trust -U agent >/tmp/initdb.log 2>&1 || { cat /tmp/initdb.log; exit 1; }
pg_ctl -D /tmp/base -o "-c listen_addresses= -c unix_socket_directories=/tmp" -l /tmp/log -w start >/dev/null ||
  { cat /tmp/log; exit 1; }
psql -qAtX -U agent postgres -c 'create table t as select generate_series(1, 1000) x' -c 'select sum(x) from t' | sed 's/^/database /'
pg_ctl -D /tmp/base -m immediate stop >/dev/null
