#!/bin/bash
# dracut's part: `dracut.sh MODULE_SETUP NAME...` runs the module's functions in dracut's order, in an image with those
# modules.
# shellcheck disable=SC2034 # what the module reads

note() { printf '%s\n' "$*" >>"$CALLS"; }
for function in dfatal dwarn inst_{binary,dir,hook,simple} ln mknod require_binaries; do
    eval "$function() { note $function \"\$@\"; }"
done
instmods() { note "instmods $* (hostonly='$hostonly')"; }
dracut_module_included() { [[ " $included " == *" $1 "* ]]; }

included=${*:2} hostonly=yes kernel=6.12.1 srcmods=/lib/modules/6.12.1
DRACUT_TMPDIR=$SCRATCH.dracut initdir=$SCRATCH.dracut/initramfs SCRATCH=$SCRATCH.dracut/dormouse
moddir=/usr/lib/dracut/modules.d/55dormouse systemdsystemunitdir=/usr/lib/systemd/system
# shellcheck source=/dev/null
. "$1"
for function in check depends install installkernel; do
    note "# $function"
    "$function" || note "status $?"
done
