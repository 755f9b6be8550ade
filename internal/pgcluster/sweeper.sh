# Removes a temporary folder once nobody needs it any more.
#
# usage: sh -c SCRIPT sweeper FOLDER
# fd 0  a pipe held open by everyone who uses the folder: the process that
#       started the cluster, its watchdogs and its servers. The end of the file
#       means that all of them are gone, however they went.
trap '' TERM INT HUP
while read -r _; do :; done
rm -rf -- "$1"
