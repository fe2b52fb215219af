/* The whole test framework: CHECK counts, test_end prints. */
#ifndef TEST_H
#define TEST_H
#include <stdio.h>

static int test_passed, test_failed, test_skipped;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (condition)                                                                             \
            test_passed++;                                                                         \
        else {                                                                                     \
            test_failed++;                                                                         \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                         \
        }                                                                                          \
    } while (0)

/* |a - b| <= tolerance * (1 + |b|), and neither is NaN. */
#define CHECK_NEAR(a, b, tolerance)                                                                \
    do {                                                                                           \
        double a_ = (double)(a), b_ = (double)(b), e_ = a_ > b_ ? a_ - b_ : b_ - a_;               \
        if (e_ <= (tolerance) * (1 + (b_ < 0 ? -b_ : b_)))                                         \
            test_passed++;                                                                         \
        else {                                                                                     \
            test_failed++;                                                                         \
            printf("%s:%d: failed: %s = %.9g, %s = %.9g\n", __FILE__, __LINE__, #a, a_, #b, b_);   \
        }                                                                                          \
    } while (0)

static int test_end(void) {
    printf("%d passed, %d failed, %d skipped\n", test_passed, test_failed, test_skipped);
    return test_failed ? 1 : 0;
}

#ifdef FLOWOOD_H /* included before: tests of the kernels go through every path of this CPU */
/* The table for this path, as fo_open would choose it. */
static const fo__kernels *picked(fo_simd simd) {
    static fo__kernels table[FO_SIMD_AVX512 + 1];
    fo__pick_kernels(simd, &table[simd]);
    return &table[simd];
}
#endif
#endif
