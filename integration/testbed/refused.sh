#!/bin/sh
# refused.sh: runsc, but that the shim is refused at the control socket. Before the first `start` the socket is moved and
# runsc's state file told so; the shim knows the old place alone. $REAL is put in by versions.sh.
real='@REAL@'
root=
command=
for word; do
  case $word in
    --root=*) root=${word#--root=} ;;
    -*) ;;
    *) command=$word; break ;;
  esac
done
if [ "$command" = start ] && ! [ -S "$root/moved.sock" ]; then
  for state in "$root"/*.state; do
    socket=$(sed -n 's/.*"controlSocketPath":"\([^"]*\)".*/\1/p' "$state")
    [ -S "$socket" ] || continue
    mv "$socket" "$root/moved.sock"
    sed -i "s|\"controlSocketPath\":\"[^\"]*\"|\"controlSocketPath\":\"$root/moved.sock\"|" "$state"
  done
fi
exec "$real" "$@"
