#!/bin/sh
# Resumes the saved session, if there is one: the only look, with all volumes unlocked. Sourced by an initramfs of
# dracut's without systemd, as a hook.
/usr/lib/dormouse/dormouse-resume
