#!/bin/sh
# make install into a folder of its own: a program finds the header by pkg-config, and make uninstall
# leaves nothing behind.
CC=${CC:-cc}
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "test_install: failed: $*"; }
command -v make > /dev/null || { echo "0 passed, 0 failed, 1 skipped"; exit 0; }
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
install() { MAKEFLAGS='' make -s "$@" PREFIX=/opt/flow DESTDIR="$dir/root" > "$dir/log" 2>&1; }

install install && ok || bad "$(tail -n 1 "$dir/log")"
root=$dir/root/opt/flow
cmp -s flowood.h "$root/include/flowood.h" && ok || bad "not the header"
version=$("$root/bin/flowood" --version)
grep -qx "Version: ${version#flowood }" "$root/share/pkgconfig/flowood.pc" && ok ||
    bad "$version, $(grep Version "$root/share/pkgconfig/flowood.pc")"
if command -v pkg-config > /dev/null; then
    export PKG_CONFIG_PATH="$root/share/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$dir/root"
    printf '#include <flowood.h>\nint main(void) { return fo_version() != FLOWOOD_VERSION; }\n' > "$dir/a.c"
    # shellcheck disable=SC2046
    $CC -std=c99 $(pkg-config --cflags flowood) -fsyntax-only "$dir/a.c" && ok || bad "the header is not found"
    pkg-config --libs flowood | grep -qx -- '-lm *' && ok || bad "libs: $(pkg-config --libs flowood)"
else
    skipped=$((skipped + 2))
fi
install uninstall && [ -z "$(find "$dir/root" -type f)" ] && ok || bad "left: $(find "$dir/root" -type f)"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
