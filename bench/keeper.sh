# Runs one command as its own child, and ends it when the pipe on its standard
# input is closed: by the benchmark, or by the benchmark's death.
#
# usage: sh -c SCRIPT keeper FOLDER COMMAND...
# FOLDER is removed once the command has ended; until then FOLDER/pid holds its
# process id.
set -u
folder=$1
shift
exec 3<&0 </dev/null

"$@" 3<&- &
child=$!
echo $child >"$folder/pid"
{
  read -r _
  kill -TERM $child
} <&3 >/dev/null 2>&1 &
reader=$!
exec 3<&-

wait $child
code=$?
kill $reader 2>/dev/null
wait $reader 2>/dev/null
rm -rf "$folder"
exit $code
