#!/bin/sh
# Resumes the saved session, if there is one. Sourced by an initramfs of dracut's without systemd, as a hook.
/usr/lib/dormouse/dormouse-resume
