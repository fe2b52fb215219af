#!/bin/sh
# Builds and runs every test; the last line adds them up. Needs a C compiler and nothing else.
cd "$(dirname "$0")/.." || exit 1
CC=${CC:-cc}
mkdir -p build
passed=0 failed=0 skipped=0
for source in tests/test_*.c tests/test_*.sh; do
    [ -e "$source" ] || continue
    name=$(basename "$source")
    # every C test runs in single and in double precision
    for real in float double; do
        case $source in
        *.sh) [ $real = double ] && continue
              log=$(sh "$source" 2>&1) ;;
        *.c)  flags=""; [ $real = double ] && flags=-DFLOWOOD_DOUBLE
              program=build/${name%.c}_$real
              log=$($CC -std=c99 -O2 $flags $TEST_FLAGS -I. "$source" -o "$program" -lm 2>&1 &&
                    "$program" 2>&1) ;;
        esac
        status=$?
        line=$(printf '%s\n' "$log" | tail -n 1)
        case $line in
        *" passed, "*" failed"*)
            set -- $(printf '%s' "$line" | tr -c '0-9' ' ')
            passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + ${3:-0}))
            [ "$2" = 0 ] && [ $status != 0 ] && failed=$((failed + 1)) ;;
        *)  failed=$((failed + 1)); line="ended without a result (status $status)" ;;
        esac
        [ $status = 0 ] || printf '%s\n' "$log" | tail -n 30
        printf '%-24s %-7s %s\n' "$name" "$real" "$line"
    done
done
if [ $skipped -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ $failed = 0 ]
