# shellcheck shell=bash
#
# What the programs of this folder share.  To be sourced by bash, from any folder.

set -u
umask 022
PATH=$PATH:/usr/sbin:/sbin

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
OLDEST_SERVER=15

# ---------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------

if [ -t 1 ]; then
    BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' PLAIN=''
fi

say() {
    printf '%s\n' "$*"
}

title() {
    printf '\n%s== %s%s\n' "$BOLD" "$*" "$PLAIN"
}

complain() {
    printf '%s%s%s\n' "$RED" "$*" "$PLAIN" >&2
}

die() {
    complain "${0##*/}: $*"
    exit 1
}

# last_lines FILE [COUNT]: the end of a log, for people
last_lines() {
    [ -s "$1" ] || return 0
    say "--- the end of $1"
    tail -n "${2:-40}" "$1"
    say "---"
}

# ---------------------------------------------------------------------------
# Users
# ---------------------------------------------------------------------------

is_root() {
    [ "$(id -u)" -eq 0 ]
}

# as_root COMMAND...: directly, or through sudo
as_root() {
    if is_root; then
        "$@"
    elif command -v sudo >/dev/null; then
        if [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
    else
        complain "this needs root: $*"
        return 1
    fi
}

# Who runs servers: PostgreSQL refuses to run as root, so then it is the user that its packages bring.
server_user() {
    if is_root; then echo "${ABSMARTLY_SERVER_USER:-postgres}"; else id -un; fi
}

# as_server_user COMMAND...: the unprivileged user, in a clean environment, so that nothing set for another server
# (PGHOST, PGDATA, ...) is felt.  Environment settings may come first: as_server_user A=B COMMAND...
as_server_user() {
    local clean=(env -i "HOME=${PRIVATE:-/nonexistent}" "PATH=${SERVER_PATH:-}${SERVER_PATH:+:}$PATH" "LANG=C.UTF-8"
        "LC_ALL=C.UTF-8" "TZ=UTC" "TMPDIR=${PRIVATE_TMP:-/tmp}")
    if is_root; then
        runuser -u "$(server_user)" -- "${clean[@]}" "$@"
    else
        "${clean[@]}" "$@"
    fi
}

# ---------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------

major_version() {
    "$1" --version 2>/dev/null | sed -n 's/^PostgreSQL \([0-9]*\).*/\1/p'
}

# usable_pg_config PATH: of a supported version, with server, headers and makefiles
usable_pg_config() {
    local major
    [ -x "$1" ] || return 1
    major=$(major_version "$1")
    [ -n "$major" ] && [ "$major" -ge "$OLDEST_SERVER" ] && [ -f "$("$1" --pgxs)" ] &&
        [ -f "$("$1" --includedir-server)/postgres.h" ] && [ -x "$("$1" --bindir)/postgres" ]
}

# find_pg_config: that of the environment, else of the newest Debian package, else of the path; nothing if none will do
find_pg_config() {
    local candidate
    if [ -n "${PG_CONFIG:-}" ] && [ "$PG_CONFIG" != pg_config ]; then
        candidate=$(command -v "$PG_CONFIG") || return 1
        usable_pg_config "$candidate" && say "$candidate"
        return
    fi
    for candidate in $(ls -d /usr/lib/postgresql/*/bin/pg_config 2>/dev/null | sort -t/ -k5,5nr) \
        "$(command -v pg_config)"; do
        if usable_pg_config "$candidate"; then
            say "$candidate"
            return
        fi
    done
    return 1
}

# need_pg_config: sets PG_CONFIG, BINDIR and MAJOR, or gives up
need_pg_config() {
    PG_CONFIG=$(find_pg_config) ||
        die "no PostgreSQL $OLDEST_SERVER or later with server headers${PG_CONFIG:+ at $PG_CONFIG}; run tools/setup"
    BINDIR=$("$PG_CONFIG" --bindir)
    MAJOR=$(major_version "$PG_CONFIG")
    export PG_CONFIG
}

# ---------------------------------------------------------------------------
# Private folders
# ---------------------------------------------------------------------------

# own_folder FOLDER...: makes folders that belong to the server's user
own_folder() {
    mkdir -p "$@" && chmod 700 "$@" || die "cannot make $*"
    if is_root; then chown "$(server_user):" "$@"; fi
}

# copy_sources FOLDER [mine]: the project without what git or a build put there; it belongs to the server's user unless
# said otherwise, who can read it anyway
copy_sources() {
    mkdir -p "$1" || return 1
    tar -C "$PROJECT" --exclude-vcs --exclude='*.o' --exclude='*.d' --exclude='*.so' --exclude='*.bc' --exclude=./build \
        --exclude=./tmp_check --exclude=./output_iso --exclude=./results -cf - . | tar -C "$1" --no-same-owner -xf - ||
        return 1
    chmod -R u+rwX,go+rX,go-w "$1"
    if is_root && [ "${2:-}" != mine ]; then chown -R "$(server_user):" "$1"; fi
}

# copy_server FOLDER: a copy of the server's programs and files, so that an extension can be installed without touching
# the server that others use.  Servers find their files from where their program lies, so a copy serves like the
# original.  Sets PG_CONFIG, BINDIR and SERVER_PATH to it, and INSTALL_ROOT for make's DESTDIR.
copy_server() {
    local folder
    INSTALL_ROOT=$1
    for folder in "$BINDIR" "$("$PG_CONFIG" --pkglibdir)" "$("$PG_CONFIG" --sharedir)"; do
        mkdir -p "$INSTALL_ROOT$folder" || return 1
        tar -C "$folder" --exclude=./bitcode --exclude=./man -cf - . | tar -C "$INSTALL_ROOT$folder" --no-same-owner -xf - ||
            return 1
        # nothing of an earlier version of ours
        find "$INSTALL_ROOT$folder" \( -name 'absmartly.so' -o -name 'absmartly.control' -o -name 'absmartly--*.sql' \) \
            -exec rm -f {} +
    done
    if is_root; then chown -R "$(server_user):" "$INSTALL_ROOT"; fi
    BINDIR=$INSTALL_ROOT$BINDIR
    PG_REGRESS_FOLDER=$(dirname "$("$PG_CONFIG" --pgxs)")/../test
    SERVER_PATH=$BINDIR
}

# processes_of FOLDER: ids of processes that work in a folder of ours or below
processes_of() {
    local link where
    for link in /proc/[0-9]*/cwd; do
        where=$(readlink "$link" 2>/dev/null) || continue
        where=${where% (deleted)}
        case $where/ in
            "$1"/*) link=${link#/proc/} && say "${link%/cwd}" ;;
        esac
    done
}

# still_alive PID...
still_alive() {
    local pid
    for pid in "$@"; do
        if kill -0 "$pid" 2>/dev/null && ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status" 2>/dev/null; then return 0; fi
    done
    return 1
}

# end_processes PID...: politely, then firmly
end_processes() {
    local round
    [ $# -gt 0 ] || return 0
    kill -TERM "$@" 2>/dev/null
    for round in $(seq 50); do
        still_alive "$@" || return 0
        sleep 0.1
    done
    kill -KILL "$@" 2>/dev/null
    for round in $(seq 50); do
        still_alive "$@" || return 0
        sleep 0.1
    done
    return 1
}

# ---------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------

# c_sources: the C files that are ours, each ended by a NUL; from the project's folder
c_sources() {
    find src test/engine test/fuzz test/faults bench -type f -name '*.[ch]' -print0 2>/dev/null | sort -z
}

# clang_format: the program; layouts differ between versions, so the one that Debian 12 has wins
clang_format() {
    command -v clang-format-14 || command -v clang-format
}
