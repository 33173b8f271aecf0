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
        die "these programs are needed and apt-get is not there to install them: ${missing[*]}"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "install these packages as root first: ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    "${as_root[@]}" apt-get update >"$log" 2>&1 || say "apt-get update failed; trying with the lists that are here"
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends)
    if ! "${install[@]}" "${missing[@]}" >>"$log" 2>&1; then
        # qemu-utils from backports breaks the release's qemu-system-x86: take both from the release.
        local pin
        pin=$(apt-cache madison qemu-utils 2>/dev/null | awk 'NR == 1 { print $3 }')
        if ! { installed qemu-utils && [ -n "$pin" ] &&
            "${install[@]}" --allow-downgrades "${missing[@]}" "qemu-utils=$pin" >>"$log" 2>&1; }; then
            tail -n 25 "$log" >&2
            die "could not install ${missing[*]}: see apt-get's words above"
        fi
    fi
    rm -f "$log"
}
