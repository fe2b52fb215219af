#!/bin/sh
# tests/ports.c on other systems, where compilers and emulators for them are: others are skipped.
# On Debian: gcc-multilib or gcc-i686-linux-gnu; gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf
# qemu-user; gcc-mingw-w64-x86-64 wine64; clang lld wasi-libc libclang-rt-*-dev-wasm32 nodejs.
passed=0 failed=0 skipped=0
mkdir -p build
dir=$(mktemp -d build/ports.XXXXXX) || exit 1
trap 'rm -rf "$dir"' EXIT
has() { command -v "$1" >/dev/null 2>&1; }
printf '#include <stdio.h>\n#include <math.h>\nint main(void) { puts("well"); return 0; }\n' \
    > "$dir/probe.c"

# wasm32-wasi in node
cat > "$dir/wasi.mjs" <<'JS'
import { WASI } from 'node:wasi';
import { readFile } from 'node:fs/promises';
import { argv, cwd } from 'node:process';
const wasi = new WASI({ version: 'preview1', args: argv.slice(2), returnOnExit: true,
                        preopens: { '.': cwd(), 'build': cwd() + '/build' } });
const program = await WebAssembly.compile(await readFile(argv[2]));
process.exitCode = wasi.start(await WebAssembly.instantiate(program, wasi.getImportObject()));
JS

# port NAME RUNNER COMPILER...: skipped unless a program of three lines compiles and runs. All ports
# run side by side; each says "NUMBER passed|failed|skipped" in a file of its own.
port() {
    name=$1 run=$2 result="$dir/$1.result"
    shift 2
    if has "$1" && "$@" "$dir/probe.c" -o "$dir/$name" -lm >/dev/null 2>&1 &&
        $run "$dir/$name" 2>/dev/null | grep -q well; then :
    else echo "1 skipped $name" > "$result"; return; fi
    level=-O0 # compiles in half the time; but what x87 keeps in registers, optimized code shows
    [ "$name" = x87 ] && level=-O1
    if ! "$@" -std=c99 $level -Wall -Wextra -Werror -I. tests/ports.c -o "$dir/$name" -lm \
        2> "$dir/$name.log"; then
        echo "1 failed $name: $(grep -m 1 -E 'error|warning' "$dir/$name.log")" > "$result"; return
    fi
    log=$($run "$dir/$name" "$dir/$name.safetensors" 2>/dev/null | tr -d '\r')
    case $log in
    *" passed, 0 failed"*) printf '%s\n' "$log" | tail -n 1 > "$result" ;;
    *) echo "1 failed $name: $(printf '%s\n' "$log" | tail -n 4)" > "$result" ;;
    esac
}

# A 32-bit program runs as it is where the kernel allows it. Without gcc-multilib the headers of
# the machine are those of the 64-bit one.
i386=""; has qemu-i386 && i386=qemu-i386
c32="gcc -m32 -static -idirafter /usr/include/$(gcc -print-multiarch 2>/dev/null)"
has i686-linux-gnu-gcc && c32="i686-linux-gnu-gcc -static"
export WINEDEBUG=-all WINEPREFIX="${WINEPREFIX:-$PWD/build/wine}"
wine=wine; has wine || wine=wine64; has $wine || wine=none

port x87 "$i386" $c32 -mno-sse -mfpmath=387 &
port i686 "$i386" $c32 -msse2 -mfpmath=sse &
port aarch64 qemu-aarch64 aarch64-linux-gnu-gcc -static &
port armhf qemu-arm arm-linux-gnueabihf-gcc -static &
port wasi "node $dir/wasi.mjs" clang --target=wasm32-wasi &
port windows.exe $wine x86_64-w64-mingw32-gcc &
wait
if [ $wine = none ] && has x86_64-w64-mingw32-gcc; then # no Windows: that it links is something
    if x86_64-w64-mingw32-gcc -std=c99 -O0 -Wall -Wextra -Werror -I. tests/ports.c \
        -o "$dir/linked.exe" 2> "$dir/log"; then echo "1 passed" > "$dir/windows.exe.result"
    else echo "1 failed mingw: $(head -n 1 "$dir/log")" > "$dir/windows.exe.result"; fi
fi
for result in "$dir"/*.result; do
    read -r number word rest < "$result"
    case $word in
    passed*) passed=$((passed + number)) ;;
    skipped) skipped=$((skipped + number)); echo "test_ports: $rest skipped" ;;
    *) failed=$((failed + 1)); echo "test_ports: $(cat "$result")" ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
