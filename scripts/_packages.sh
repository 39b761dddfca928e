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

# unpack NAME DIR PACKAGE...: the files of packages below DIR, for programs whose installation would start a service.
unpack() {
    local name=$1 dir=$2 new stamp package
    shift 2
    stamp=$dir/.packages
    [[ -r $stamp && $(<"$stamp") == "$*" ]] && return 0
    echo "$name: unpacking $* in $dir" >&2
    mkdir -p -- "${dir%/*}"
    new=$(mktemp -d -- "$dir.XXXXXX") || fail "make \`$dir.XXXXXX\`: mktemp cannot (its own message stands above)"
    (cd -- "$new" && fetch "$@") </dev/null >&2 || {
        rm -rf -- "$new"
        fail "download \`$*\`: apt-get cannot (is there a network? its own message stands above)"
    }
    for package in "$new"/*.deb; do
        dpkg-deb --extract "$package" "$new" || {
            rm -rf -- "$new"
            fail "unpack \`${package##*/}\`: dpkg-deb cannot (its own message stands above)"
        }
    done
    rm -- "$new"/*.deb
    printf '%s\n' "$*" >"$new/.packages"
    chmod 755 "$new"
    rm -rf -- "$dir"
    mv -T -- "$new" "$dir" 2>/dev/null || rm -rf -- "$new" # somebody else was quicker
    [[ -r $stamp ]] || fail "unpack \`$*\` in \`$dir\`: ENOENT"
}

# fetch PACKAGE...: into this directory; new lists are asked for only where the old ones do not serve.
fetch() {
    # As root, since the directory is root's alone.
    local get=(apt-get -qq -o APT::Sandbox::User=root)
    "${get[@]}" download "$@" 2>/dev/null || { "${get[@]}" update && "${get[@]}" download "$@"; }
}

# need_docker NAME ROOT: dockerd and its client, installed or below ROOT/.venv/docker; tests/lib/docker.py finds them.
need_docker() {
    if installed docker.io; then return; fi
    need "$1" libdevmapper1.02.1 libsystemd0
    unpack "$1" "$2/.venv/docker" docker.io containerd
}
