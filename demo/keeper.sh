# Runs one program as its own child, and ends it when the process that started
# this one closes the pipe or is gone, however it went.
#
# usage: sh -c SCRIPT keeper FOLDER COMMAND...
# fd 0    the pipe; nothing is ever written to it
# FOLDER  is removed once the command has ended; may be empty
set -u
exec 3<&0 </dev/null

folder=$1
shift

"$@" 3<&- &
child=$!

# No trap is set yet: one that this shell inherited could swallow the signal that
# is to end it.
(
  read -r _ <&3
  kill -TERM $child
) >/dev/null 2>&1 &
reader=$!
exec 3<&-
trap 'kill -TERM $child' TERM INT HUP

# A trapped signal ends "wait" early; the child has ended only when its process
# is gone.
while :; do
  wait $child
  code=$?
  kill -0 $child 2>/dev/null || break
done
kill $reader 2>/dev/null
wait $reader 2>/dev/null
if [ -n "$folder" ]; then rm -rf "$folder"; fi
exit $code
