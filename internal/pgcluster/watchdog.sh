# Runs one Postgres server as its own child, and ends it when told to or when
# the process that started this one is gone.
#
# usage: sh -c SCRIPT watchdog BIN PWFILE CREATE-ARGS -- POSTGRES-ARGS
# CREATE-ARGS are initdb, or pg_basebackup, and its arguments.
# The working directory is the cluster folder, holding data/.
# fd 0  orders, a line each: "stop" (fast), "immediate"; end of file means that the
#       parent is gone, and an immediate stop
# fd 3  the folder's lock, held for as long as this process or the server lives
# fd 4  with a temporary folder: keeps its sweeper waiting, likewise
set -u
exec 5<&0 </dev/null

bin=$1 pwfile=$2
shift 2

if [ -f data/PG_VERSION ]; then
  while [ "$1" != -- ]; do shift; done
  shift
else
  # Only what is finished gets the name that counts.
  rm -rf data.tmp
  create="$1 -D data.tmp"
  shift
  while [ "$1" != -- ]; do
    create="$create $1"
    shift
  done
  shift
  if [ -n "$pwfile" ]; then create="$create --pwfile=$pwfile"; fi
  # shellcheck disable=SC2086 # the arguments are constants without spaces
  "$bin"/$create 5<&- || exit 1
  if [ -n "$pwfile" ]; then rm -f "$pwfile"; fi
  mv data.tmp data || exit 1
fi

"$bin/postgres" -D data "$@" 5<&- &
server=$!

(
  exec 3>&- 4>&-
  while read -r order <&5 && [ "$order" != immediate ]; do
    kill -INT $server
  done
  # A server that has not set up its signals yet is deaf to SIGQUIT, as shells
  # start background processes, but not to SIGTERM; later SIGQUIT comes first.
  kill -QUIT $server
  kill -TERM $server
) >/dev/null 2>&1 &
reader=$!
exec 5<&-
# Not before the reader is forked: it would inherit the trap for a moment, and
# could miss the signal that ends it.
trap 'kill -INT $server' TERM INT HUP

# A trapped signal ends "wait" early; the server has ended only when its
# process is gone.
while :; do
  wait $server
  code=$?
  kill -0 $server 2>/dev/null || break
done
kill $reader 2>/dev/null
wait $reader 2>/dev/null
exit $code
