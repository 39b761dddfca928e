# shellcheck shell=bash
# Sourced by scripts/demo and scripts/test, which define fail(): Debian packages that are missing are installed, or it
# says why not.

installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# need NAME PACKAGE...: NAME is the program that says so.
need() {
    local name=$1 missing=() package
    shift
    command -v dpkg-query >/dev/null || fail "install \`$*\`: no dpkg here (this is made for Debian 12)"
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    echo "$name: installing ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -qq update && apt-get -qq -y --no-install-recommends install "${missing[@]}"; } </dev/null >&2 ||
        fail "install \`${missing[*]}\`: apt-get cannot (is there a network? its own message stands above)"
}
