#!/bin/bash
# mkinitcpio's part: `mkinitcpio.sh HOOK NAME...` runs the hook's build function as if HOOKS were those names.
# shellcheck disable=SC2034 # what the hook reads

for function in add_{binary,dir,file,module,runscript,symlink} error mknod warning; do
    eval "$function() { printf '%s\n' \"$function\${*:+ \$*}\" >>\"\$CALLS\"; }"
done

_hooks=("${@:2}") _optmoduleroot='' KERNELVERSION=6.12.1 BUILDROOT=$SCRATCH.buildroot
# shellcheck source=/dev/null
. "$1"
if [ -z "$(help)" ]; then echo "no help" >>"$CALLS"; fi
build
