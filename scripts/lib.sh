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

# What guests run on, and the kernel that they run, whose directory is exported as DORMOUSE_KERNEL.
prepare_guests() {
    need_packages qemu-system-x86 ovmf busybox-static
    DORMOUSE_KERNEL=$(scripts/build-kernel)
    export DORMOUSE_KERNEL
}

# The Debian guests' root filesystems, 12 and 13, and the package that is installed in them, exported as
# DORMOUSE_BOOKWORM, DORMOUSE_TRIXIE and DORMOUSE_DEB.
prepare_debian() {
    DORMOUSE_BOOKWORM=$(scripts/build-debian bookworm)
    DORMOUSE_TRIXIE=$(scripts/build-debian trixie)
    DORMOUSE_DEB=$(scripts/package deb)
    export DORMOUSE_BOOKWORM DORMOUSE_TRIXIE DORMOUSE_DEB
}

# use_scratch_directory: temporary files, guests' disks among them, go to a directory that this script's end removes,
# however it ends.
use_scratch_directory() {
    TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/dormouse.XXXXXX")
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
}
