/* AVX-512 for a CPU that lacks it: what >>simd says in those intrinsics, said by SIMDe (Debian's
   libsimde-dev) in AVX2. Six of them it lacks, or computes by a product that overflows. */
#include <immintrin.h>
#include <math.h>
#include <simde/x86/avx512.h>

static inline simde__m512 emulated_maskz_loadu_ps(simde__mmask16 mask, const float *p) {
    simde__m512_private v;
    for (int i = 0; i < 16; i++)
        v.f32[i] = mask >> i & 1 ? p[i] : 0;
    return simde__m512_from_private(v);
}

static inline void emulated_mask_storeu_ps(float *p, simde__mmask16 mask, simde__m512 a) {
    simde__m512_private v = simde__m512_to_private(a);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            p[i] = v.f32[i];
}

static inline simde__m512 emulated_maskz_sqrt_ps(simde__mmask16 mask, simde__m512 a) {
    (void)mask;
    return simde_mm512_sqrt_ps(a);
}

static inline simde__m512 emulated_maskz_scalef_ps(simde__mmask16 mask, simde__m512 a,
                                                   simde__m512 b) {
    simde__m512_private v = simde__m512_to_private(a), n = simde__m512_to_private(b);
    (void)mask;
    for (int i = 0; i < 16; i++)
        v.f32[i] = (float)ldexp((double)v.f32[i], (int)floor((double)n.f32[i]));
    return simde__m512_from_private(v);
}

static inline simde__m512d emulated_cvtps_pd(simde__mmask8 mask, simde__m256 a) {
    simde__m256_private  v = simde__m256_to_private(a);
    simde__m512d_private w;
    (void)mask;
    for (int i = 0; i < 8; i++)
        w.f64[i] = (double)v.f32[i];
    return simde__m512d_from_private(w);
}

static inline simde__m256 emulated_extractf32x8_ps(simde__mmask8 mask, simde__m512 a, int part) {
    simde__m512_private v = simde__m512_to_private(a);
    (void)mask;
    return simde__m256_from_private(v.m256_private[part]);
}
