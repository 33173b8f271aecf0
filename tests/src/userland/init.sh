#!/bin/sh
# PID 1 of guest A, and of C: the same kernel and initramfs boot after every power-on. What is resumed never comes back
# here; a boot that goes on has nothing to mount but memory.
export PATH=/usr/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o size=90%,mode=755 tmpfs /run
ip link set lo up

while read -r module; do
    insmod "/lib/modules/$module"
done </etc/modules

# A boot can be told to set up no network.
number=15
grep -qw guest.network=none /proc/cmdline || for link in /sys/class/net/*/device; do
    [ -e "$link" ] || continue
    link=${link%/device}
    ip address add "10.0.2.$number/24" dev "${link##*/}"
    ip link set "${link##*/}" up
    number=$((number + 1))
done

# The host can have a boot resume by a policy other than its own.
read -r arguments </proc/cmdline
for argument in $arguments; do
    case $argument in
        guest.policy=*) cp "${argument#*=}" /etc/dormouse.toml ;;
        guest.boot=*) boot=${argument#*=} ;;
        guest.boot_kind=*) kind=${argument#*=} ;;
        resume=*) swap=${argument#*=} ;;
    esac
done

# As in any distribution's initramfs, before anything is mounted; but `rescue` is a system from elsewhere, which has
# never heard of Dormouse.
if grep -qw rescue /proc/cmdline; then
    :
elif [ -e /etc/unlock ]; then
    /usr/lib/dormouse/dormouse-resume --before-unlock
    sh /etc/unlock
    /usr/lib/dormouse/dormouse-resume --after-unlock
else
    /usr/lib/dormouse/dormouse-resume
fi

# The kernel's own hibernation, which the benchmark compares with: the kernel has looked for it when there was no driver
# yet.
[ -z "${swap-}" ] || cat "/sys/class/block/${swap#/dev/}/dev" >/sys/power/resume

# Where the boot loader of this machine has its files, if it has one.
[ -z "${boot-}" ] || mount -t "${kind:-ext4}" "$boot" /boot

echo "A: ready boot_id=$(cat /proc/sys/kernel/random/boot_id)"

# The host's commands arrive on the second serial port.
while :; do
    (
        stty raw -echo
        exec command-server
    ) </dev/ttyS1 >/dev/ttyS1
    echo "A: the command server has ended with $?"
    sleep 1
done
