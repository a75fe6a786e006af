#!/bin/sh
# refused.sh: runsc, but that the shim is refused at the control socket. After the `create` of a sandbox its socket is moved. The
# state file names the old place until the shim has read it; every later command is told of the new one before it runs.
# $REAL is put in by versions.sh.
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
moved=$root/moved.sock
named() { sed -n 's/.*"controlSocketPath":"\([^"]*\)".*/\1/p' "$1"; }
if [ -S "$moved" ]; then
  for state in "$root"/*.state; do
    [ "$(named "$state")" = "$moved" ] ||
      sed -i "s|\"controlSocketPath\":\"[^\"]*\"|\"controlSocketPath\":\"$moved\"|" "$state"
  done
fi
[ "$command" = create ] || exec "$real" "$@"
"$real" "$@"
status=$?
for state in "$root"/*.state; do
  socket=$(named "$state")
  [ -S "$moved" ] || ! [ -S "$socket" ] || mv "$socket" "$moved"
done
exit $status
