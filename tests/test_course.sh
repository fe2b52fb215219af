#!/bin/sh
# The five programs of examples/course run and say what they teach, and their exercises have the
# answers of tests/course.c. The library is compiled once for all of them.
cd "$(dirname "$0")/.." || exit 1
CC=${CC:-cc}
dir=build/course
flags="-std=c99 -O1 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -I. -I$dir -Iexamples/course"
passed=0 failed=0
ok() { passed=$((passed + 1)); }
wrong() { failed=$((failed + 1)); echo "$1"; }
# says PROGRAM WORDS: its output has these words
says() { if grep -q -- "$2" "$dir/$1.out"; then ok; else wrong "$1 does not say: $2"; fi; }
mkdir -p $dir
echo '#include "flowood.h"' > $dir/library.c
# shellcheck disable=SC2086
$CC $flags -DFLOWOOD_IMPLEMENTATION -c $dir/library.c -o $dir/library.o || wrong "does not compile"
for source in examples/course/[1-5]_*.c; do
    name=$(basename "$source" .c)
    [ "$(wc -l < "$source")" -le 100 ] && ok || wrong "$source is longer than 100 lines"
    sed '/^#define FLOWOOD_IMPLEMENTATION/d' "$source" > "$dir/$name.c"
    # shellcheck disable=SC2086
    if $CC $flags "$dir/$name.c" $dir/library.o -o "$dir/$name" -lm 2> "$dir/$name.out" &&
        [ ! -s "$dir/$name.out" ] && (cd $dir && "./$name" > "$name.out" 2>&1); then ok
    else wrong "$source: $(cat "$dir/$name.out")"; fi
done
says 1_change_of_variables "p adds up to 1.0000; without"
says 2_coupling " 2.00     3.00     [23]\\.[0-9]"
says 3_two_moons "adds up to [01]\\.[09][0-9]"
says 4_masks "AUROC 0\\.[0-4]"
says 5_decision "complexity AUROC 0\\.9"
# shellcheck disable=SC2086
if $CC $flags tests/course.c $dir/library.o -o $dir/answers -lm; then
    result=$($dir/answers)
    printf '%s\n' "$result" | grep -v ' passed, '
    set -- $(printf '%s\n' "$result" | tail -n 1 | tr -c '0-9' ' ')
    passed=$((passed + ${1:-0})) failed=$((failed + ${2:-1}))
else wrong "the answers do not compile"; fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
