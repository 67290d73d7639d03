# shellcheck shell=bash
#
# What the benchmarks share: a private server with the extension and the baselines on it.  Nothing outside a temporary
# folder is written, and that is gone at the end.  To be sourced by bash.

. "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"

# usage: what the program's first lines say of its options
usage() {
    sed -n '/^#	bench/,/^$/s/^#	\{0,1\}//p' "$0" >&2
    exit 2
}

number() {
    case $1 in
        '' | *[!0-9]* | 0*) usage ;;
    esac
}

# wants PART: whether it is one of PARTS
wants() {
    case ",$PARTS," in *",$1,"*) return 0 ;; esac
    return 1
}

finish() {
    trap - EXIT INT TERM HUP
    if [ -f "$DATA/postmaster.pid" ]; then
        as_server_user "$BINDIR/pg_ctl" --pgdata="$DATA" --mode=immediate --silent stop
    fi
    # shellcheck disable=SC2046
    end_processes $(processes_of "$PRIVATE")
    rm -rf "$PRIVATE"
}

# failed WORDS LOG
failed() {
    last_lines "$LOGS/$2"
    if [ "$2" != build.log ]; then last_lines "$LOGS/server.log" 20; fi
    die "$1"
}

# build_server: builds everything and installs it into a private copy of the server's files.  Sets PRIVATE, LOGS, DATA.
build_server() {
    local folder
    need_pg_config
    id "$(server_user)" >/dev/null 2>&1 || die "there is no user $(server_user) to run a server as"
    PRIVATE=$(mktemp -d /tmp/absmartly-bench.XXXXXX) || die "cannot write to /tmp"
    PRIVATE_TMP=$PRIVATE/tmp
    LOGS=$PRIVATE/log
    DATA=$PRIVATE/data
    trap finish EXIT
    trap 'exit 130' INT TERM HUP

    own_folder "$PRIVATE" "$PRIVATE_TMP" "$LOGS" "$PRIVATE/socket" "$PRIVATE/work"
    copy_sources "$PRIVATE/source" mine || die "cannot copy the sources"
    SOURCE_PG_CONFIG=$PG_CONFIG
    copy_server "$PRIVATE/server" || die "cannot copy the server's files"

    title "Building"
    for folder in . bench; do
        make -s -C "$PRIVATE/source/$folder" -j"$(nproc)" PG_CONFIG="$SOURCE_PG_CONFIG" >>"$LOGS/build.log" 2>&1 &&
            make -s -C "$PRIVATE/source/$folder" PG_CONFIG="$SOURCE_PG_CONFIG" DESTDIR="$INSTALL_ROOT" install \
                >>"$LOGS/build.log" 2>&1 || failed "it does not build" build.log
    done
}

# start_server: with the settings on standard input, and a database "bench"
start_server() {
    cd / || exit 1    # the server's user may not see where we are
    as_server_user "$BINDIR/initdb" --pgdata="$DATA" --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 \
        --no-sync >"$LOGS/initdb.log" 2>&1 </dev/null || failed "initdb fails" initdb.log
    {
        say "listen_addresses = ''"
        say "unix_socket_directories = '$PRIVATE/socket'"
        say "shared_preload_libraries = 'absmartly,absmartly_bench'"
        cat
    } >>"$DATA/postgresql.conf"
    as_server_user "$BINDIR/pg_ctl" --pgdata="$DATA" --log="$LOGS/server.log" --timeout=60 --silent --wait start \
        >"$LOGS/pg_ctl.log" 2>&1 </dev/null || failed "the server does not start" pg_ctl.log
    psql_bench -d postgres -c 'CREATE DATABASE bench' || failed "there is no database" server.log
}

psql_bench() {
    as_server_user "$BINDIR/psql" -X -q -A -t -F "$(printf '\t')" -h "$PRIVATE/socket" -U postgres \
        -v ON_ERROR_STOP=1 "$@"
}

# keep_samples SAMPLES FILE: a copy for people, whose folder we have left; no FILE: none
keep_samples() {
    case $2 in
        '') return ;;
        /*) cp "$1" "$2" ;;
        *) cp "$1" "${OLDPWD:-.}/$2" ;;
    esac || complain "cannot write to $2"
}

# about_machine LOAD: lines that say where and how it was measured; LOAD is that of the start
about_machine() {
    printf 'about\tserver\t%s\n' "$("$SOURCE_PG_CONFIG" --version)"
    printf 'about\tprocessor\t%s, %s cores\n' \
        "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)"
    printf 'about\tload\t%s before, %s after\n' "$1" "$(cut -d' ' -f1 /proc/loadavg)"
}
