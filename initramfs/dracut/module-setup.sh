#!/bin/bash
# dracut's module `dormouse`, for versions from 059 on; installed as
# /usr/lib/dracut/modules.d/55dormouse/module-setup.sh.
#
# In the boot's initramfs: what it needs to resume a session. In an image of this module alone (`dracut -m dormouse`):
# the small initramfs of the kernels that save and restore, with the agent as its init.

# Also in images that are not only for this host: whoever boots one is about to mount the session's filesystems.
check() {
    require_binaries dormouse || return 1
}

depends() {
    return 0
}

# Without one of these there is no init but ours.
dormouse_is_alone() {
    ! dracut_module_included base && ! dracut_module_included systemd
}

# Whether this is the initramfs that boots the kernel: kdump's and Fedora's rescue image are of the same kernel.
dormouse_is_for_boot() {
    ! dormouse_is_alone && [[ ${outfile-} != *kdump* && ${outfile-} != *rescue* ]]
}

# What is to be installed, a line each: see dormouse-initramfs-files(8).
dormouse_list() {
    local scratch=${DRACUT_TMPDIR:?}/dormouse small=()
    mkdir -p "$scratch"
    if dormouse_is_alone; then small=(--small); fi
    dormouse initramfs-files "${small[@]}" "$@" \
        --modules-dir "${srcmods:-/lib/modules/${kernel:?}}" --scratch "$scratch"
}

# A character device: where it goes, its mode, "MAJOR MINOR". The kernel's own initramfs has the console, and devtmpfs
# the rest as soon as it is mounted, so an image that is built where no devices may be made will still do.
dormouse_node() {
    local major=${3% *} minor=${3#* }
    [[ -e ${initdir:?}$1 ]] || mknod -m "$2" "$initdir$1" c "$major" "$minor" || dwarn "dormouse: no device $1"
}

installkernel() {
    local kind source
    while read -r kind source _; do
        # Not only what this host's other disks need.
        if [[ $kind == module ]]; then hostonly='' instmods "$source"; fi
    done < <(dormouse_list 2>/dev/null)
}

install() {
    local kind source target rest list failed='' release=()
    if dormouse_is_for_boot; then release=(--release "${kernel:?}"); fi
    list=$(dormouse_list "${release[@]}") || failed=1
    if dormouse_is_alone && [[ $failed || -z $list ]]; then
        dfatal "dormouse: there is nothing to make this initramfs of; \`dormouse doctor\` tells more"
        # Not in place of a good one.
        exit 1
    elif [[ $failed ]]; then
        # The boot must get its initramfs; it only does not resume then.
        dwarn "dormouse: this initramfs will not resume a session"
        return 0
    elif [[ -z $list ]]; then
        return 0
    fi
    while read -r kind source target rest; do
        case $kind in
        dir) inst_dir "$source" ;;
        file) inst_simple "$source" "$target" ;;
        node) dormouse_node "$source" "$target" "$rest" ;;
        esac
    done <<<"$list"
    if dormouse_is_alone; then
        return 0
    elif dracut_module_included systemd; then
        local units=${systemdsystemunitdir:?}
        # For dormouse-resume; without dracut's `base` there may be none.
        inst_binary /bin/sh
        inst_dir "$units/initrd.target.wants"
        local unit
        for unit in dormouse-resume{,-unlocked}.service; do
            inst_simple "${moddir:?}/$unit" "$units/$unit"
            ln -sf "../$unit" "${initdir:?}$units/initrd.target.wants/$unit"
        done
    else
        # The only look, when dracut's queue has opened the volumes. Before the kernel's own, which is at 10.
        inst_hook pre-mount 05 "${moddir:?}/dormouse-resume.sh"
    fi
    # By which `dormouse hibernate` knows that this kernel, if it boots next, looks for the image.
    if dormouse_is_for_boot; then dormouse initramfs-done "$kernel" || true; fi
}
