#!/bin/sh
# Builds and runs every test, as many side by side as there are cores (JOBS=1: one by one); the last
# line adds them up. Needs a C compiler and nothing else. Each program is compiled once, with every
# warning: one is a failure.
cd "$(dirname "$0")/.." || exit 1
CC=${CC:-cc}
dir=build/test
strict="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-missing-field-initializers"

# one NAME REAL: runs a test; "passed failed skipped" goes into a file of its own.
if [ "$1" = one ]; then
    name=$2 real=$3 status=0 flags="" result=$dir/$2.$3
    rm -f "$result"
    case $name in
    *.sh)
        log=$(sh "tests/$name" 2>&1) || status=$? ;;
    *)
        [ "$real" = double ] && flags=-DFLOWOOD_DOUBLE
        program=$dir/${name%.c}_$real
        # shellcheck disable=SC2086
        if log=$($CC -std=c99 -O1 $strict $flags $TEST_FLAGS -I. "tests/$name" -o "$program" -lm 2>&1) &&
            [ -z "$log" ]; then
            log=$("$program" 2>&1) || status=$?
        else
            log="$log
0 passed, 1 failed" status=1
        fi ;;
    esac
    line=$(printf '%s\n' "$log" | tail -n 1)
    case $line in
    *" passed, "*" failed"*)
        set -- $(printf '%s' "$line" | tr -c '0-9' ' ')
        [ "$2" = 0 ] && [ $status != 0 ] && set -- "$1" 1 "$3"
        echo "$1 $2 ${3:-0}" > "$result" ;;
    *)
        line="ended without a result (status $status)" ;;
    esac
    [ $status = 0 ] || printf '%s\n' "$log" | tail -n 30
    printf '%-24s %-7s %s\n' "$name" "$real" "$line"
    exit 0
fi

# Every C test runs in single and in double precision. The long ones begin.
mkdir -p $dir
rm -f $dir/test_*.float $dir/test_*.double
list() {
    { ls tests/test_*.sh; ls -S tests/test_*.c; } | sed 's,^tests/,,' |
        awk '/c$/ { print $0, "double" } { print $0, "float" }'
}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}
list | xargs -n 2 -P "$jobs" sh tests/run.sh one
list | {
    passed=0 failed=0 skipped=0
    while read -r name real; do
        p=0 f=1 s=0 # where a test left no result
        [ -r "$dir/$name.$real" ] && read -r p f s < "$dir/$name.$real"
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    done
    if [ $skipped -gt 0 ]; then
        echo "$passed passed, $failed failed, $skipped skipped"
    else
        echo "$passed passed, $failed failed"
    fi
    [ $failed = 0 ]
}
