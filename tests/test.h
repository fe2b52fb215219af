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

#ifdef FLOWOOD_H /* included before: what tests of the library share */
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof(array)[0]))
#define IS_DOUBLE (sizeof(fo_real) == 8)
#define REAL_TYPE (IS_DOUBLE ? FO_F64 : FO_F32)
#define BYTES(n) ((size_t)(n) * sizeof(fo_real))
/* A file of one test program: programs of both precisions may run side by side. */
#define FILE_NAME(name) (IS_DOUBLE ? "build/test_" name "_d.safetensors"                           \
                                   : "build/test_" name "_f.safetensors")

/* The table of kernels for this path, as fo_open would choose it. */
static inline const fo__kernels *picked(fo_simd simd) {
    static fo__kernels table[FO_SIMD_AVX512 + 1];
    fo__pick_kernels(simd, &table[simd]);
    return &table[simd];
}

static inline fo_context *open_with(uint64_t seed, fo_simd simd, int threads) {
    fo_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.seed = seed, desc.simd = simd, desc.threads = threads;
    return fo_open(&desc);
}

static inline fo_shape shape_of(int c, int h, int w) {
    fo_shape s;
    s.c = c, s.h = h, s.w = w;
    return s;
}

/* The weights that training changes, to read and to write. */
static inline fo_real *weights_of(fo_flow *flow, int64_t *n) {
    return fo_params(flow, n) ? flow->values : NULL;
}

/* The first samples encoded with the noise that they have in the first epoch of training, each its
   own: golden values were made with it. */
static inline fo_result as_in_training(fo_workspace *ws, const fo_data *data, int64_t count,
                                       double *log_prob, double *terms, fo_real *z) {
    fo__request q    = fo__request_of(data, 0, count, 0);
    q.training_noise = 1;
    q.log_prob = log_prob, q.terms = terms, q.z = z;
    return FO__BEGIN(ws) ? fo__run(ws, &q) : FO_ERR_ARGUMENT;
}

/* An allocator that remembers sizes, fills what it gives with rubbish, and fails once. */
typedef struct heap { int64_t calls, live, bytes, wrong, fail_at; } heap;

static inline void *heap_realloc(void *user, void *ptr, size_t old_size, size_t new_size) {
    heap   *h  = (heap *)user;
    size_t *at = ptr ? (size_t *)ptr - 2 : NULL;
    h->wrong += (at ? at[0] : 0) != old_size;
    if (new_size && ++h->calls == h->fail_at)
        return NULL;
    h->live += (new_size != 0) - (at != NULL);
    h->bytes += (int64_t)new_size - (int64_t)old_size;
    if (new_size == 0) {
        free(at);
        return NULL;
    }
    at = (size_t *)realloc(at, new_size + 16);
    if (ptr == NULL)
        memset(at, 0xA5, new_size + 16);
    at[0] = new_size;
    return at + 2;
}

/* The call fails, and its message has these words. */
#define REFUSED(call, say)                                                                         \
    do {                                                                                           \
        CHECK((call) != FO_OK);                                                                    \
        CHECK(strstr(fo_error(fo), say) != NULL);                                                  \
        fo_clear_error(fo);                                                                        \
    } while (0)

/* Weights that are neither zero nor equal, so that a layer does something. */
static inline fo_flow *random_flow(fo_context *fo, const char *text, double size) {
    fo_flow *flow = fo_flow_parse(fo, text);
    int64_t  n, i;
    fo_real *w = weights_of(flow, &n);
    for (i = 0; w && i < n; i++) {
        fo_real r;
        fo_random_normal(99, 1, (uint64_t)i, 1, &r);
        w[i] = (fo_real)(0.7 * (double)w[i] + size * (double)r);
    }
    return flow;
}

/* Samples of what a flow takes: bytes in front of dequantize, numbers in (0,1) elsewhere. */
typedef struct samples { unsigned char pixel[40 * 24]; fo_real number[40 * 24]; } samples;

static inline fo_data *flow_data(fo_context *fo, const fo_flow *flow, samples *s, int count) {
    int64_t i, n = count * fo_shape_count(fo_flow_shape(flow));
    fo_random_uniform(17, 3, 0, n, s->number); /* in (0,1), as a bare logit needs */
    for (i = 0; i < n; i++)
        s->pixel[i] = (unsigned char)(256 * s->number[i]);
    return strcmp(fo_flow_layer_text(flow, 0), "dequantize") == 0
               ? fo_data_view(fo, s->pixel, FO_U8, count, fo_flow_shape(flow))
               : fo_data_view(fo, s->number, REAL_TYPE, count, fo_flow_shape(flow));
}

/* One stage of a life on such an allocator: the first error stays in `worst`. `forgiving`: errors
   are cleared after every call, so that later calls get to work on what the failed ones left. */
#define STAGE(call)                                                                                \
    do {                                                                                           \
        call;                                                                                      \
        worst = worst ? worst : fo_failed(fo);                                                     \
        if (forgiving)                                                                             \
            fo_clear_error(fo);                                                                    \
    } while (0)

/* Lives as often as it allocates, failing another allocation each time: out of memory must be all
   that happens, nothing may be lost, and the file it may leave at `path` must be a whole flow. */
static inline void test_every_allocation(fo_result (*life)(heap *h, const char *path,
                                                           int forgiving), const char *path) {
    int forgiving;
    for (forgiving = 0; forgiving < 2; forgiving++) {
        int64_t n = 0;
        int     done = 0;
        while (!done && n++ < 3000) {
            heap      h;
            fo_result result;
            FILE     *file;
            memset(&h, 0, sizeof h);
            h.fail_at = n;
            remove(path);
            result = life(&h, path, forgiving);
            done   = h.calls < n;
            if (h.live || h.wrong || result != (done ? FO_OK : FO_ERR_MEMORY))
                printf("allocation %d failed: result %s, %d blocks left, %d wrong sizes\n", (int)n,
                       fo_result_name(result), (int)h.live, (int)h.wrong);
            CHECK(h.live == 0 && h.wrong == 0);
            CHECK(result == (done ? FO_OK : FO_ERR_MEMORY));
            if ((file = fopen(path, "rb")) != NULL) {
                fo_context *fo = open_with(0, FO_SIMD_AUTO, 1);
                fclose(file);
                CHECK(fo_load_flow(fo, path) != NULL);
                if (fo_failed(fo))
                    printf("allocation %d, forgiving %d: %s\n", (int)n, forgiving, fo_error(fo));
                fo_close(fo);
            }
        }
        CHECK(n > 30 && done);
    }
    remove(path);
}
#endif
#endif
