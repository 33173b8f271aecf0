#!/bin/sh
# A kernel was installed or removed. In its place among the scripts, this runs before the boot's initramfs is made,
# which takes the save kernel along. Installed as /etc/kernel/postinst.d/dormouse and /etc/kernel/postrm.d/dormouse.

# The package is removed and its configuration is not; or the machine is not set up.
[ -x /usr/bin/dormouse ] || exit 0
# A kernel is not to fail to install because of this. `dormouse doctor` reports what is stale.
dormouse update --quiet || echo "W: dormouse: the save kernel stays as it is" >&2
