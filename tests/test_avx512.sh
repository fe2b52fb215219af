#!/bin/sh
# test_core with the AVX-512 kernels, where the CPU has AVX2 alone: their intrinsics are emulated by
# SIMDe (Debian's libsimde-dev). Skipped without it, and where the CPU runs them as they are.
cd "$(dirname "$0")/.." || exit 1
CC=${CC:-cc}
dir=build/avx512
skip() { echo "test_avx512: skipped, $1"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
grep -qs avx512f /proc/cpuinfo && skip "this CPU has AVX-512: test_core runs it"
grep -qs avx2 /proc/cpuinfo || skip "AVX2 is needed"
echo '#include <simde/x86/avx512.h>' | $CC -E -x c - >/dev/null 2>&1 || skip "there is no SIMDe"
mkdir -p $dir
sed -e 's|#include <immintrin.h>|#include "../../tests/avx512.h"|' \
    -e 's/__builtin_cpu_supports("avx512[a-z]*")/1/g' -e 's/avx512f,avx512dq,avx512bw,avx512vl,//' \
    -e 's/_mm512_\(maskz_loadu\|mask_storeu\|maskz_sqrt\|maskz_scalef\)_ps/emulated_\1_ps/g' \
    -e 's/_mm512_maskz_\(cvtps_pd\|extractf32x8_ps\)/emulated_\1/g' \
    -e 's/\([^a-z_]\)\(_mm512_\)/\1simde\2/g' -e 's/__mmask16/simde__mmask16/g' \
    -e 's/\([^a-z_]\)__m512\([^a-z_]\)/\1simde__m512\2/g' flowood.h > $dir/flowood.h
if $CC -std=c99 -O1 -mavx2 -mfma -w -Wno-psabi -I$dir tests/test_core.c -o $dir/core -lm; then
    exec $dir/core
fi
echo "0 passed, 1 failed"
exit 1
