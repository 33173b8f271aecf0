# What the scripts share. Sourced from the top of the checkout by bash with `set -euo pipefail`.
# shellcheck shell=bash

# Progress goes to stderr, so that a script's stdout can carry its result.
say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Where built kernels and the like are kept between runs, outside the checkout.
cache_dir() {
    local dir=${DORMOUSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dormouse}
    mkdir -p "$dir/kernel"
    echo "$dir"
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

# need_packages NAME...: installs those of the Debian packages that are missing.
need_packages() {
    local missing=() name
    for name; do installed "$name" || missing+=("$name"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "install these packages (apt-get, which would do it, is missing): ${missing[*]}"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "install these packages as root first: ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    "${as_root[@]}" apt-get update >"$log" 2>&1 || say "apt-get update failed; trying with earlier package lists"
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends)
    if ! "${install[@]}" "${missing[@]}" >>"$log" 2>&1; then
        # qemu-utils from backports breaks the release's qemu-system-x86: take both from the release.
        local pin
        pin=$(apt-cache madison qemu-utils 2>/dev/null | awk 'NR == 1 { print $3 }')
        if ! { installed qemu-utils && [ -n "$pin" ] &&
            "${install[@]}" --allow-downgrades "${missing[@]}" "qemu-utils=$pin" >>"$log" 2>&1; }; then
            tail -n 25 "$log" >&2
            die "could not install ${missing[*]}: see apt-get's output above"
        fi
    fi
    rm -f "$log"
}

# need_rust COMPONENT...: Rust and the named components of it (fmt, clippy) must be there; this does not install them.
need_rust() {
    local version
    version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null || die "cargo is missing: install Rust $version or later (https://rustup.rs)"
    local component
    for component; do
        cargo "$component" --version >/dev/null 2>&1 ||
            die "cargo $component is missing: rustup component add ${component/#fmt/rustfmt}"
    done
}

# build_binaries [--bin NAME...]: builds these binaries, or all, and exports the directory that holds them, static, as
# DORMOUSE_BIN.
build_binaries() {
    # The static binaries link with Debian's libc.a, and zstd is built from C.
    need_packages gcc libc6-dev
    need_rust
    say "building the agent and the harness"
    [ $# -gt 0 ] || set -- --bins
    cargo build --release --locked "$@" || die "the build failed: see cargo's output above"
    DORMOUSE_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu/release")
    export DORMOUSE_BIN
}

# Debian packages that are looked into and never installed, from suites that need not be the host's own. The lists of
# each suite are a state of their own in the cache; nothing of the host's is changed.

debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg

configured_mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' |
        sed -n 's/^Debian Debian //p' | sort -u | sed -n 1p
}

# The mirror of Debian that this host installs from, or DORMOUSE_DEBIAN_MIRROR.
debian_mirror() {
    local mirror=${DORMOUSE_DEBIAN_MIRROR-}
    [ -n "$mirror" ] || mirror=$(configured_mirror)
    if [ -z "$mirror" ]; then
        # Origins are known from package lists, which a fresh host has not fetched yet.
        if [ "$(id -u)" -eq 0 ]; then apt-get update; else sudo apt-get update; fi >/dev/null 2>&1 || true
        mirror=$(configured_mirror)
    fi
    [ -n "$mirror" ] || die "no package lists of Debian's: run apt-get update, or set DORMOUSE_DEBIAN_MIRROR"
    echo "$mirror"
}

# debian_apt SUITE PROGRAM ARGUMENT...: apt-get or apt-cache with the packages of this suite alone.
debian_apt() {
    local state program=$2
    state=$(cache_dir)/apt/$1
    shift 2
    "$program" -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o "Dir::State=$state" -o Dir::State::status=/dev/null -o "Dir::Cache=$state/cache" \
        -o APT::Architecture=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Update::Error-Mode=any "$@"
}

# debian_lists SUITE: package lists of the suite that are not older than a day, or the latest that could be had.
debian_lists() {
    local state mirror
    state=$(cache_dir)/apt/$1
    [ -z "$(find "$state/updated" -mtime -1 2>/dev/null)" ] || return 0
    need_packages apt debian-archive-keyring
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    mirror=$(debian_mirror)
    (
        flock 8
        echo "deb [signed-by=$debian_keys] $mirror $1 main" >"$state/sources.list"
        if debian_apt "$1" apt-get update >"$state/log" 2>&1; then
            touch "$state/updated"
        else
            say "the package lists of $1 could not be fetched (see $state/log); going on with earlier ones, if any"
        fi
    ) 8>"$state/lock"
}

# debian_version SUITE NAME: the version of a package, or nothing where the suite does not have it.
debian_version() {
    debian_lists "$1"
    { debian_apt "$1" apt-cache show --no-all-versions "$2" 2>/dev/null || true; } | sed -n 's/^Version: //p'
}

# debian_suite_with NAME SUITE...: the first of the suites that has a package.
debian_suite_with() {
    local name=$1 suite
    shift
    for suite; do
        [ -z "$(debian_version "$suite" "$name")" ] || { echo "$suite" && return; }
    done
    die "$name is in none of these suites of Debian: $*"
}

# debian_package SUITE NAME: fetches a package, checked by Debian's keys, and prints the file.
debian_package() {
    local dir version file new
    dir=$(cache_dir)/packages
    mkdir -p "$dir"
    version=$(debian_version "$1" "$2")
    for file in "$dir/$2_${version//:/%3a}"_*.deb; do
        [ ! -f "$file" ] || { echo "$file" && return; }
    done
    new=$(mktemp -d "$dir/new.XXXXXX")
    say "fetching $2 ${version:-of an unknown version} from $1"
    if ! (cd "$new" && debian_apt "$1" apt-get download "$2" >"$dir/log" 2>&1); then
        # The lists may be of yesterday, and the mirror of today.
        rm -f "$(cache_dir)/apt/$1/updated"
        debian_lists "$1"
        (cd "$new" && debian_apt "$1" apt-get download "$2" >"$dir/log" 2>&1) ||
            die "$2 could not be fetched from $1: see $dir/log"
    fi
    mv "$new"/*.deb "$dir/"
    rmdir "$new"
    debian_package "$1" "$2"
}

# prepare_guests [KERNEL]: what guests run on, and the kernel that they run, whose directory is exported as
# DORMOUSE_KERNEL. KERNEL is a series of Linux, which is built, or a directory of a kernel.
prepare_guests() {
    need_packages qemu-system-x86 ovmf busybox-static
    case ${1:-6.12} in
    [1-9]*.[0-9]*) DORMOUSE_KERNEL=$(scripts/build-kernel "${1:-6.12}") ;;
    *) DORMOUSE_KERNEL=$(realpath -e "$1") || die "$1: there is no such directory of a kernel" ;;
    esac
    export DORMOUSE_KERNEL
}

# kernel_of DIRECTORY ARGUMENT...: what the option --kernel of a command line names that was given in a directory.
kernel_of() {
    local here=$1 kernel=''
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        --kernel=*) kernel=${1#--kernel=} ;;
        --kernel) [ $# -lt 2 ] || kernel=$2 ;;
        esac
        shift
    done
    case $kernel in
    '' | /* | [1-9]*.[0-9]*) echo "$kernel" ;;
    *) echo "$here/$kernel" ;;
    esac
}

# prepare_kernels FILE: the other kernels that the end-to-end cases whose names are in FILE need, each exported as
# Artifacts of the harness look for it.
prepare_kernels() {
    if grep -q linux_7_2 "$1"; then
        DORMOUSE_KERNEL_7_2=$(scripts/build-kernel 7.2)
        export DORMOUSE_KERNEL_7_2
    fi
    if grep -q the_big_kernel "$1"; then
        DORMOUSE_KERNEL_BIG=$(scripts/build-kernel --big)
        export DORMOUSE_KERNEL_BIG
    fi
    if grep -q kernel_of_debian_12 "$1"; then
        DORMOUSE_KERNEL_BOOKWORM=$(scripts/stock-kernel bookworm)
        export DORMOUSE_KERNEL_BOOKWORM
    fi
    if grep -q kernel_of_debian_13 "$1"; then
        DORMOUSE_KERNEL_TRIXIE=$(scripts/stock-kernel trixie)
        export DORMOUSE_KERNEL_TRIXIE
    fi
    if grep -q kernel_of_backports "$1"; then
        DORMOUSE_KERNEL_TRIXIE_BACKPORTS=$(scripts/stock-kernel trixie-backports)
        export DORMOUSE_KERNEL_TRIXIE_BACKPORTS
    fi
}

# prepare_modules FILE: the same kernels with Dormouse's own module, where cases in FILE jump by it.
prepare_modules() {
    if grep -q -e '^stock::debian_12' -e '^warm::debian_12' "$1"; then
        DORMOUSE_KERNEL_BOOKWORM=$(scripts/build-module bookworm)
        export DORMOUSE_KERNEL_BOOKWORM
    fi
    if grep -q -e '^stock::debian_13' -e '^stock::.*_13_finds' "$1"; then
        DORMOUSE_KERNEL_TRIXIE=$(scripts/build-module trixie)
        export DORMOUSE_KERNEL_TRIXIE
    fi
    if grep -q '^stock::backports' "$1"; then
        DORMOUSE_KERNEL_TRIXIE_BACKPORTS=$(scripts/build-module trixie-backports)
        export DORMOUSE_KERNEL_TRIXIE_BACKPORTS
    fi
    if grep -q '^stock_debug::' "$1"; then
        DORMOUSE_KERNEL_MODULE=$(scripts/build-module --kernel "$DORMOUSE_KERNEL")
        DORMOUSE_KERNEL_DEBUG=$(scripts/build-module --kernel "$(scripts/build-kernel --debug)")
        export DORMOUSE_KERNEL_MODULE DORMOUSE_KERNEL_DEBUG
    fi
}

# prepare_debian FILE: the Debian guests' root filesystem and the package that is installed in them, exported as
# DORMOUSE_BOOKWORM and DORMOUSE_DEB, and Debian 13's as DORMOUSE_TRIXIE where a case in FILE needs it.
prepare_debian() {
    DORMOUSE_BOOKWORM=$(scripts/build-debian bookworm)
    DORMOUSE_DEB=$(scripts/package deb)
    export DORMOUSE_BOOKWORM DORMOUSE_DEB
    if grep -q '^debian::dracut_ng' "$1"; then
        DORMOUSE_TRIXIE=$(scripts/build-debian trixie)
        export DORMOUSE_TRIXIE
    fi
}

# prepare_encrypted_debian FILE: the encrypted Debian guests' disks, exported as DORMOUSE_TRIXIE_ENCRYPTED and, where a
# case in FILE needs it, DORMOUSE_BOOKWORM_ENCRYPTED and DORMOUSE_TRIXIE_ENCRYPTED_BTRFS.
prepare_encrypted_debian() {
    DORMOUSE_TRIXIE_ENCRYPTED=$(scripts/build-debian --encrypted trixie)
    export DORMOUSE_TRIXIE_ENCRYPTED
    if grep -q '^sealed_debian::.*debian_12' "$1"; then
        DORMOUSE_BOOKWORM_ENCRYPTED=$(scripts/build-debian --encrypted bookworm)
        export DORMOUSE_BOOKWORM_ENCRYPTED
    fi
    if grep -q '^sealed_debian::btrfs' "$1"; then
        DORMOUSE_TRIXIE_ENCRYPTED_BTRFS=$(scripts/build-debian --encrypted-btrfs trixie)
        export DORMOUSE_TRIXIE_ENCRYPTED_BTRFS
    fi
    if [ -z "${DORMOUSE_DEB-}" ]; then
        DORMOUSE_DEB=$(scripts/package deb)
        export DORMOUSE_DEB
    fi
}

# prepare_stock_debian FILE: the Debian guests with Debian's own kernels that cases in FILE need, exported as
# DORMOUSE_BOOKWORM_STOCK and DORMOUSE_TRIXIE_STOCK, and both packages, as DORMOUSE_DEB and DORMOUSE_DKMS_DEB.
prepare_stock_debian() {
    if grep -q '^stock_debian::debian_12' "$1"; then
        DORMOUSE_BOOKWORM_STOCK=$(scripts/build-debian --stock bookworm)
        export DORMOUSE_BOOKWORM_STOCK
    fi
    if grep -q '^stock_debian::debian_13' "$1"; then
        DORMOUSE_TRIXIE_STOCK=$(scripts/build-debian --stock trixie)
        export DORMOUSE_TRIXIE_STOCK
    fi
    if [ -z "${DORMOUSE_DEB-}" ]; then
        DORMOUSE_DEB=$(scripts/package deb)
        export DORMOUSE_DEB
    fi
    DORMOUSE_DKMS_DEB=$(scripts/package dkms)
    export DORMOUSE_DKMS_DEB
}

# use_scratch_directory: temporary files, guests' disks among them, go to a directory that this script's end removes,
# however it ends.
use_scratch_directory() {
    TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/dormouse.XXXXXX")
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
}
