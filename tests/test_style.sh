#!/bin/sh
# The header as a text and as an object file: warnings, symbols, contents, documents.
CC=${CC:-cc}
passed=0 failed=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "test_style: failed: $*"; }
is() { if [ "$2" "$3" "$4" ]; then ok; else bad "$1: $2"; fi; }
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
printf '#define FLOWOOD_IMPLEMENTATION\n#include "flowood.h"\n#include "flowood.h"\n' > "$dir/a.c"
cp "$dir/a.c" "$dir/a.cc"
printf '#include "flowood.h"\nint use(void);\nint use(void) { return (int)FO_OK; }\n' > "$dir/b.c"
cp "$dir/b.c" "$dir/b.cc"

# warnings: both languages, both compilers (where they are), every configuration. run.sh compiles
# all tests as strictly, with code: what gcc finds only then, it finds there
strict="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
for how in "gcc -std=c99 a.c" "clang -std=c99 a.c" "g++ -std=c++11 a.cc" "clang++ -std=c++11 a.cc"; do
    set -- $how
    command -v "$1" >/dev/null || continue
    for macro in -DFO_TEST -DFLOWOOD_DOUBLE -DFLOWOOD_NO_SIMD -DFLOWOOD_STATIC; do
        if $1 "$2" $strict $macro -I. -fsyntax-only "$dir/$3" 2> "$dir/log"; then ok
        else bad "$how $macro: $(grep -m 1 -E 'error|warning' "$dir/log")"; fi
    done
    for macro in -DFO_TEST -DFLOWOOD_STATIC; do
        $1 "$2" $strict $macro -I. -fsyntax-only "$dir/b.${3#a.}" 2> "$dir/log" && ok ||
            bad "declarations alone, $how $macro: $(head -n 1 "$dir/log")"
    done
    # what would give wrong numbers is refused, in words; -fno-fast-math behind it exempts a file
    for flags in -Ofast -ffast-math -ffinite-math-only; do
        if $1 "$2" $flags -I. -E "$dir/$3" > "$dir/out" 2> "$dir/log"; then bad "$how $flags compiles"
        elif grep -q 'with -fno-fast-math behind' "$dir/log"; then ok
        else bad "$how $flags: $(head -n 1 "$dir/log")"; fi
        $1 "$2" $flags -fno-fast-math -I. -E "$dir/$3" > "$dir/out" 2> "$dir/log" && ok ||
            bad "$how $flags -fno-fast-math: $(head -n 1 "$dir/log")"
    done
done

# a strict -std=c99 hides POSIX from whoever includes system headers first: an error that says so
printf '#include <stdio.h>\n#define FLOWOOD_IMPLEMENTATION\n#include "flowood.h"\n' > "$dir/late.c"
$CC -std=c99 -Werror -I. -fsyntax-only "$dir/a.c" 2> "$dir/log" && ok || bad "first, with -std=c99"
$CC -std=c99 -I. -fsyntax-only "$dir/late.c" 2> "$dir/log"
grep -q 'include flowood.h before every system header' "$dir/log" && ok ||
    bad "behind <stdio.h>, with -std=c99: $(head -n 1 "$dir/log")"
for flags in -std=gnu99 "-std=c99 -D_POSIX_C_SOURCE=200809L"; do
    $CC $flags -Werror -I. -fsyntax-only "$dir/late.c" 2> "$dir/log" && ok ||
        bad "behind <stdio.h>, with $flags: $(head -n 1 "$dir/log")"
done

# symbols: nothing mutable, nothing without the prefix, no allocation or output behind the user's
# back
if [ build/library.o -nt flowood.h ]; then cp build/library.o "$dir/a.o"
else $CC -std=c99 -O1 -I. -c "$dir/a.c" -o "$dir/a.o" || bad "does not compile"; fi
# the stack: 8 KB a function, the matrix product's panels apart
if (cd "$dir" && $CC -std=c99 -O2 -DFLOWOOD_NO_SIMD -fstack-usage -I"$OLDPWD" -c a.c -o s.o) 2>/dev/null
then large=$(awk '$2 > 8192 {print $1, $2}' "$dir"/*.su)
     [ -s "$dir/a.su" -o -s "$dir/s.su" ] && [ -z "$large" ] && ok || bad "stack: $large"
fi
if command -v nm >/dev/null; then
    mutable=$(nm "$dir/a.o" | awk '$2 ~ /^[BbDdCc]$/ {print $3}')
    [ -z "$mutable" ] && ok || bad "mutable globals: $mutable"
    foreign=$(nm -g --defined-only "$dir/a.o" | awk '$3 !~ /^fo_/ {print $3}')
    [ -z "$foreign" ] && ok || bad "names without the prefix: $foreign"
    private=$(nm -g --defined-only "$dir/a.o" | awk '$3 ~ /^fo__/ {print $3}')
    [ -z "$private" ] && ok || bad "private names are visible: $private"
    calls=$(nm -u "$dir/a.o" | awk '$2 ~ /^(malloc|calloc|abort|exit|__assert_fail|printf|puts|qsort|rand)$/ {print $2}')
    [ -z "$calls" ] && ok || bad "calls $calls"
fi

# the text
long=$(awk 'length($0) > 100' flowood.h examples/*.[ch] examples/*.cpp bench/*.c | wc -l)
is "lines longer than 100 columns" "$long" -eq 0
open=$(grep -rnIE 'TODO|FIXME|XXX|HACK' flowood.h examples bench Makefile | wc -l)
is "left open" "$open" -eq 0
allocs=$(grep -nE '\b(malloc|calloc|realloc|free)\(' flowood.h | grep -vc '^[0-9]*: *\(free(ptr)\|return realloc\)')
is "allocations past the funnel" "$allocs" -eq 0

# contents list and banners agree
sed -n '/>>contents/,/>>build/p' flowood.h | grep -E '^     (MANUAL|API|IMPL|LICENSE|        )' |
    sed 's/MANUAL\|API\|IMPL\|LICENSE//' | tr -s ' ' '\n' | grep -E '^[a-z]' | sort > "$dir/listed"
grep -E '^ +>>[a-z]' flowood.h | sed 's/^ *>>\([a-z-]*\).*/\1/' | sort > "$dir/rooms"
if cmp -s "$dir/listed" "$dir/rooms"; then ok
else bad "contents and banners differ: $(diff "$dir/listed" "$dir/rooms" | grep '^[<>]' | tr '\n' ' ')"; fi

# the program in the manual compiles and links
{ sed -n '/>>program/,/>>contents/p' flowood.h | sed -n '/#define/,/^       }/p' |
    sed 's/ in exactly one file of a program//'; } > "$dir/manual.c"
if $CC -std=c99 -I. "$dir/manual.c" -o "$dir/manual" -lm 2> "$dir/log"; then ok
else bad "the manual's program: $(head -n 1 "$dir/log")"; fi
# and so does the README's, which is the same
sed -n '/^```c$/,/^```$/p' README.md | grep -v '^```' > "$dir/readme.c"
if $CC -std=c99 -I. "$dir/readme.c" -o "$dir/readme" -lm 2> "$dir/log"; then ok
else bad "the README's program: $(head -n 1 "$dir/log")"; fi

# every public function is called by some test or example
for name in $(grep -oE '\bfo_[a-z0-9_]+\(' "$dir/../dev/null" 2>/dev/null; grep -E '^FO_API' flowood.h | grep -oE '\bfo_[a-z0-9_]+\(' | tr -d '('); do
    if cat tests/*.c examples/*.[ch] examples/*.cpp bench/*.c | grep -q "\b$name("; then ok
    else bad "no test or example calls $name"; fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
