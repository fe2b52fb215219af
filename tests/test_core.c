/* Contexts, memory, errors, random numbers, threads, and every kernel table of this machine. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

static const double eps = IS_DOUBLE ? 2.3e-16 : 1.2e-7; /* one unit in the last place of 1 */

static int         errors_seen;
static fo_result   error_code;
static const char *error_text;
static void on_error(void *user, fo_result code, const char *message) {
    errors_seen += user != NULL;
    error_code = code;
    error_text = message;
}

static void test_context(void) {
    static const unsigned char row[4] = {1, 2, 3, 4};
    heap            h;
    fo_desc         desc, got;
    fo_context     *fo;
    fo_memory_stats stats;
    fo_flow        *flow;
    fo_workspace   *ws;
    fo_shape        shape = {4, 1, 1};

    fo  = fo_open(NULL);
    got = fo_get_desc(fo);
    CHECK(fo != NULL && got.realloc_fn != NULL && got.threads >= 1 && got.simd != FO_SIMD_AUTO);
    CHECK(got.seed == 0 && got.error_fn == NULL);
    CHECK(fo_failed(fo) == FO_OK && strcmp(fo_error(fo), "") == 0);
    fo_close(fo);
    fo_close(NULL);

    memset(&desc, 0, sizeof desc);
    desc.seed = 77, desc.threads = 3, desc.simd = FO_SIMD_REF;
    fo  = fo_open(&desc);
    got = fo_get_desc(fo);
    CHECK(got.seed == 77 && got.simd == FO_SIMD_REF);
#ifdef _OPENMP
    CHECK(got.threads == 3);
#else
    CHECK(got.threads == 1);
#endif
    fo_close(fo);
    desc.simd = (fo_simd)99; /* not there: the best one */
    fo = fo_open(&desc);
    CHECK(fo_get_desc(fo).simd == picked(FO_SIMD_AUTO)->simd);
    fo_close(fo);

    memset(&h, 0, sizeof h);
    memset(&desc, 0, sizeof desc);
    desc.realloc_fn = heap_realloc, desc.user = &h;
    fo    = fo_open(&desc);
    flow  = fo_flow_parse(fo, "input 4\ncoupling mask=halves:0 net=mlp hidden=5");
    ws    = fo_workspace_create(fo, flow, 3);
    stats = fo_memory(fo);
    CHECK(ws != NULL && h.wrong == 0 && h.calls > 5);
    CHECK((int64_t)stats.now == h.bytes && stats.peak >= stats.now);
    CHECK((int64_t)stats.allocations == h.calls);
    fo_workspace_free(ws);
    CHECK(fo_memory(fo).now < stats.now && fo_memory(fo).peak >= stats.now);
    CHECK((int64_t)fo_memory(fo).now == h.bytes);
    fo_data_view(fo, row, FO_U8, 1, shape); /* left open, like the flow: fo_close frees them */
    fo_tape_create(fo);
    fo_close(fo);
    CHECK(h.live == 0 && h.bytes == 0 && h.wrong == 0);

    h.fail_at = h.calls + 1; /* not even a context */
    desc.error_fn = on_error;
    errors_seen   = 0;
    CHECK(fo_open(&desc) == NULL && errors_seen == 1 && error_code == FO_ERR_MEMORY);
    CHECK(h.live == 0 && fo_failed(NULL) == FO_ERR_MEMORY && strlen(fo_error(NULL)) > 0);
    fo_clear_error(NULL);
    CHECK(fo_get_desc(NULL).realloc_fn == NULL && fo_memory(NULL).now == 0);
    CHECK(fo_flow_create(NULL, shape) == NULL && fo_tape_create(NULL) == NULL);
    CHECK(fo_workspace_create(NULL, NULL, 1) == NULL && fo_flow_parse(NULL, "") == NULL);
}

static void test_errors(void) {
    char        big[2000];
    fo_desc     desc;
    fo_context *fo;
    int         i, j;
    memset(&desc, 0, sizeof desc);
    desc.error_fn = on_error, desc.user = &desc;
    fo          = fo_open(&desc);
    errors_seen = 0;
    CHECK(fo_fail(fo, FO_ERR_SHAPE, "%d and %s", 7, "x") == FO_ERR_SHAPE);
    CHECK(errors_seen == 1 && error_code == FO_ERR_SHAPE && strcmp(error_text, "7 and x") == 0);
    CHECK(fo_fail(fo, FO_ERR_FILE, "later") == FO_ERR_FILE);
    CHECK(fo_failed(fo) == FO_ERR_SHAPE && strcmp(fo_error(fo), "7 and x") == 0);
    CHECK(errors_seen == 2 && strcmp(error_text, "later") == 0); /* a call of its own */
    CHECK(fo_fail(NULL, FO_ERR_FILE, "nowhere") == FO_ERR_FILE);
    fo_clear_error(fo);
    CHECK(fo_failed(fo) == FO_OK && strcmp(fo_error(fo), "") == 0);
    memset(big, 'y', sizeof big);
    big[sizeof big - 1] = 0;
    fo_fail(fo, FO_ERR_FILE, "%s", big);
    CHECK(errors_seen == 3 && strlen(fo_error(fo)) > 100 && strlen(fo_error(fo)) < 600);
    fo_close(fo);
    for (i = 0; i < FO_RESULT_COUNT; i++)
        for (j = 0; j < i; j++)
            CHECK(strcmp(fo_result_name((fo_result)i), fo_result_name((fo_result)j)) != 0);
    CHECK(strcmp(fo_result_name(FO_OK), "ok") == 0);
    CHECK(strcmp(fo_result_name((fo_result)99), "unknown result") == 0);
    CHECK(strcmp(fo_result_name((fo_result)-1), "unknown result") == 0);
}

static void test_arena(void) {
    static const size_t size[] = {1, 63, 64, 65, 8191, 8192, 16384, 100000, 0, 7};
    fo_context    *fo = fo_open(NULL);
    fo__arena      arena;
    unsigned char *block[200];
    int            i, zeros = 1, whole = 1;
    size_t         j, before = fo_memory(fo).now;
    arena.fo = fo, arena.chunks = NULL;
    for (i = 0; i < 200; i++) {
        size_t n = size[i % COUNT(size)];
        block[i] = (unsigned char *)fo__arena_alloc(&arena, n);
        for (j = 0; j < n; j++)
            zeros &= block[i][j] == 0;
        if (n)
            memset(block[i], i + 1, n);
        whole &= (uintptr_t)block[i] % 64 == 0;
    }
    for (i = 0; i < 200; i++)
        for (j = 0; j < size[i % COUNT(size)]; j++)
            whole &= block[i][j] == (unsigned char)(i + 1);
    CHECK(zeros);
    CHECK(whole);
    fo__arena_free(&arena);
    CHECK(fo_memory(fo).now == before);
    CHECK(fo__times(-1, 8) == SIZE_MAX && fo__times(INT64_MAX, 8) == SIZE_MAX);
    CHECK(fo__times(3, 8) == 24);
    arena.chunks = NULL;
    CHECK(fo__arena_alloc(&arena, SIZE_MAX) == NULL && fo_failed(fo) == FO_ERR_MEMORY);
    fo_close(fo);
}

/* ---- random numbers -------------------------------------------------------------------------- */

static void test_random(void) {
    static const struct { uint64_t seed, stream, index; uint32_t want[4]; } known[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {UINT64_C(0x299f31d0a4093822), UINT64_C(0x0370734413198a2e), UINT64_C(0x85a308d3243f6a88),
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
    enum { N = 200000 };
    fo_context *fo = fo_open(NULL);
    fo_archive *a  = fo_archive_open(fo, "tests/golden/ops.safetensors");
    fo_real    *x  = (fo_real *)malloc(2 * N * sizeof *x), *y = x + N, part[64];
    uint32_t    out[4];
    int         i, j, kind, first, same, got = 0;
    for (i = 0; i < COUNT(known); i++) {
        fo_random_bits(known[i].seed, known[i].stream, known[i].index, out);
        CHECK(memcmp(out, known[i].want, sizeof out) == 0);
    }
    for (i = 0; a; i++) { /* a second implementation agrees */
        char            name[40];
        const fo_array *key, *bits, *u, *n;
        const int64_t  *k;
        snprintf(name, sizeof name, "random.%d.key", i);
        if ((key = fo_archive_find(a, name)) == NULL)
            break;
        snprintf(name, sizeof name, "random.%d.bits", i), bits = fo_archive_find(a, name);
        snprintf(name, sizeof name, "random.%d.uniform", i), u = fo_archive_find(a, name);
        snprintf(name, sizeof name, "random.%d.normal", i), n = fo_archive_find(a, name);
        k = (const int64_t *)key->values;
        fo_random_bits((uint64_t)k[0], (uint64_t)k[1], (uint64_t)k[2], out);
        for (j = 0; j < 4; j++)
            CHECK(out[j] == (uint32_t)((const int64_t *)bits->values)[j]);
        fo_random_uniform((uint64_t)k[0], (uint64_t)k[1], 0, 11, x);
        fo_random_normal((uint64_t)k[0], (uint64_t)k[1], 0, 11, y);
        for (j = 0; j < 11; j++) {
            CHECK((double)x[j] == ((const double *)u->values)[j]);
            CHECK_NEAR(y[j], ((const double *)n->values)[j], eps);
        }
        got++;
    }
    CHECK(got == 3);

    for (kind = 0; kind < 2; kind++) {
        void (*fn)(uint64_t, uint64_t, uint64_t, int64_t, fo_real *) =
            kind ? fo_random_normal : fo_random_uniform;
        double m1 = 0, m2 = 0, m4 = 0, lag = 0, other = 0, low = 9, high = -9;
        fn(5, 9, 0, N, x);
        fn(5, 10, 0, N, y);
        for (first = 0, same = 1; first < 9; first++) /* a number does not know its call */
            for (j = 0; j < 20; j++) {
                fn(5, 9, (uint64_t)first, j, part);
                same &= memcmp(part, x + first, (size_t)j * sizeof *x) == 0;
            }
        CHECK(same);
        for (i = 0; i < N; i++) {
            double v = kind ? (double)x[i] : (double)x[i] - 0.5;
            double w = kind ? (double)y[i] : (double)y[i] - 0.5;
            m1 += v / N, m2 += v * v / N, m4 += v * v * v * v / N, other += v * w / N;
            lag += i ? v * (kind ? (double)x[i - 1] : (double)x[i - 1] - 0.5) / N : 0;
            low = FO__MIN(low, (double)x[i]), high = FO__MAX(high, (double)x[i]);
        }
        CHECK(fabs(m1) < 0.01 && fabs(lag) < 0.01 && fabs(other) < 0.01);
        CHECK(fabs(m2 - (kind ? 1 : 1 / 12.0)) < (kind ? 0.015 : 0.001));
        CHECK(fabs(m4 - (kind ? 3 : 1 / 80.0)) < (kind ? 0.1 : 0.0005));
        CHECK(kind ? low < -3.5 && low > -6 && high > 3.5 && high < 6
                   : low > 0 && low < 1e-4 && high < 1 && high > 0.9999);
    }
    free(x);
    fo_close(fo);
}

/* ---- threads --------------------------------------------------------------------------------- */

typedef struct visits { int *seen; int64_t n, grain, shortest; } visits;

static void visit(void *arg, int64_t begin, int64_t end) {
    visits *v = (visits *)arg;
    int64_t i;
    for (i = begin; i < end; i++)
        v->seen[i]++; /* an index belongs to one range, or the test fails */
    if (end - begin < v->grain && end - begin < v->n)
        v->shortest = -1;
}

static void test_parallel(void) {
    static const int64_t n[] = {0, 1, 2, 3, 7, 64, 1000, 1001}, grain[] = {0, 1, 3, 10, 999, 5000};
    int     seen[1001], threads, i, j, k;
    fo_desc desc;
    memset(&desc, 0, sizeof desc);
    for (threads = 1; threads <= 5; threads++) {
        fo_context *fo;
        desc.threads = threads;
        fo           = fo_open(&desc);
        for (i = 0; i < COUNT(n); i++)
            for (j = 0; j < COUNT(grain); j++) {
                visits v;
                int    once = 1;
                memset(seen, 0, sizeof seen);
                v.seen = seen, v.n = n[i], v.grain = grain[j], v.shortest = 0;
                fo_parallel_for(fo, n[i], grain[j], visit, &v);
                for (k = 0; k < 1001; k++)
                    once &= seen[k] == (k < n[i]);
                CHECK(once && v.shortest == 0);
            }
        fo_close(fo);
    }
}

/* ---- matrix products ------------------------------------------------------------------------- */

static fo_simd paths[8];
static int     n_paths;

static fo_context *open_path(fo_simd simd, int threads) {
    fo_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.simd = simd, desc.threads = threads;
    return fo_open(&desc);
}

static void find_paths(void) {
    int simd;
    for (simd = FO_SIMD_REF; simd <= FO_SIMD_AVX512; simd++)
        if (picked((fo_simd)simd)->simd == (fo_simd)simd)
            paths[n_paths++] = (fo_simd)simd;
    if (n_paths < 2)
        test_skipped++; /* nothing but plain C here: double precision, or another CPU */
}

static fo_real *random_block(int64_t n, uint64_t stream) {
    fo_real *x = (fo_real *)malloc((size_t)n * sizeof *x); /* exact: sanitizers see its ends */
    int64_t  i;
    fo_random_uniform(1, stream, 0, n, x);
    for (i = 0; i < n; i++)
        x[i] = 2 * x[i] - 1;
    return x;
}

/* A product of this size and layout: worst error in units of its rounding bound; -1 if a number
   between the rows of C was touched, -2 if a row's bits depend on the rows around it. */
static double product_error(fo_context *fo, int m, int n, int k, int layout, uint64_t stream) {
    int a_pad = (int)(stream % 3), b_pad = (int)(stream % 4), c_pad = (int)(stream % 5);
    int a_row = layout & 1 ? 1 : k + a_pad, a_col = layout & 1 ? m + a_pad : 1;
    int b_row = layout & 2 ? 1 : n + b_pad, b_col = layout & 2 ? k + b_pad : 1;
    int c_row = n + c_pad, add = layout >> 2 & 1, i, j, p;
    int64_t  c_size = (int64_t)(m - 1) * c_row + n;
    fo_real *a = random_block((int64_t)(m - 1) * a_row + (int64_t)(k - 1) * a_col + 1, stream);
    fo_real *b = random_block((int64_t)(k - 1) * b_row + (int64_t)(n - 1) * b_col + 1, stream + 1);
    fo_real *c = random_block(c_size, stream + 2), *start = random_block(c_size, stream + 2);
    fo_real *bias = layout & 8 ? random_block(n, stream + 3) : NULL;
    fo_real *one  = random_block(n, stream + 4);
    double   worst = 0;
    fo__gemm(fo, m, n, k, a, a_row, a_col, b, b_row, b_col, c, c_row, bias, add);
    for (i = 0; i < m; i++) {
        for (j = 0; j < c_row && i * c_row + j < c_size; j++) {
            double want = 0, size = 0, x;
            if (j >= n) {
                worst = c[i * c_row + j] == start[i * c_row + j] ? worst : -1;
                continue;
            }
            want = (add ? (double)start[i * c_row + j] : 0) + (bias ? (double)bias[j] : 0);
            size = fabs(want);
            for (p = 0; p < k; p++) {
                x = (double)a[i * a_row + p * a_col] * (double)b[p * b_row + j * b_col];
                want += x, size += fabs(x);
            }
            x     = fabs((double)c[i * c_row + j] - want) / ((k + 3) * eps / 2 * (size + 1e-30));
            worst = worst < 0 || x <= worst ? worst : x;
        }
        memcpy(one, start + i * c_row, (size_t)n * sizeof *one);
        fo__gemm(fo, 1, n, k, a + i * a_row, a_row, a_col, b, b_row, b_col, one, n, bias, add);
        if (memcmp(one, c + i * c_row, (size_t)n * sizeof *one) != 0)
            worst = -2;
    }
    free(a), free(b), free(c), free(start), free(bias), free(one);
    return worst;
}

static void test_products(void) {
    static const int odd[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 31, 33, 47, 48, 49, 65, 97};
    static const int deep[] = {1, 2, 3, 5, 8, 19, 64, 255, 256, 257, 513};
    int path, i;
    for (path = 0; path < n_paths; path++) {
        fo_context *fo  = open_path(paths[path], 1);
        double      bad = 0;
        for (i = 0; i < 160; i++) {
            uint32_t r[4];
            double   e;
            fo_random_bits(3, 0, (uint64_t)i, r);
            e   = product_error(fo, odd[r[0] % COUNT(odd)], odd[r[1] % COUNT(odd)],
                                deep[r[2] % COUNT(deep)], i % 16, (uint64_t)i * 8);
            bad = bad < 0 || (e >= 0 && e <= bad) ? bad : e;
        }
        CHECK(bad >= 0);
        CHECK(bad <= 1);
        CHECK(bad > 0 || IS_DOUBLE); /* rounding was seen, so something was computed */
        fo_close(fo);
    }
}

/* The same product by every path: those with fma agree to the bit; so do 1, 2 and 3 threads. */
static void test_product_bits(void) {
    enum { M = 150, N = 70, K = 300 };
    fo_real *a = random_block(M * K, 1), *b = random_block(M * K, 2), *c[2];
    int      path, threads, turned, i, fma = -1;
    c[0] = random_block(M * N, 3), c[1] = random_block(M * N, 4);
    for (path = 0; path < n_paths; path++)
        for (turned = 0; turned < 2; turned++)
            for (threads = 1; threads <= 3; threads++) {
                fo_context *fo = open_path(paths[path], threads);
                fo_real    *to = c[threads > 1];
                /* m and n change roles, so that threads share rows once and columns once */
                fo__gemm(fo, turned ? N : M, turned ? M : N, K, a, turned ? 1 : K, turned ? N : 1,
                         b, turned ? M : N, 1, to, turned ? M : N, NULL, 0);
                if (threads > 1)
                    CHECK(memcmp(c[0], c[1], M * N * sizeof *a) == 0);
                fo_close(fo);
            }
    for (i = 0; i < n_paths; i++)
        if (paths[i] >= FO_SIMD_NEON) {
            fo_context *fo = open_path(paths[i], 1);
            fo__gemm(fo, M, N, K, a, K, 1, b, N, 1, c[fma >= 0], N, NULL, 0);
            if (fma >= 0)
                CHECK(memcmp(c[0], c[1], M * N * sizeof *a) == 0);
            fma = i;
            fo_close(fo);
        }
    free(a), free(b), free(c[0]), free(c[1]);
}

/* ---- array functions ------------------------------------------------------------------------- */

static double f_exp(double x) { return exp(x); }
static double f_log(double x) { return log(x); }
static double f_tanh(double x) { return tanh(x); }
static double f_sigmoid(double x) { return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)); }
static double f_softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }

#define MAP_AT(k, row) (*(fo__map *const *)((const char *)(k) + map_rows[row].at))
static const struct map_row {
    const char *name;
    size_t      at;
    double (*want)(double);
    double      low, high; /* of the random inputs */
    double      zero, plus, minus; /* the values at 0, +infinity and -infinity */
} map_rows[] = {
    {"exp", offsetof(fo__kernels, exp), f_exp, -110, 95, 1, HUGE_VAL, 0},
    {"exp near 0", offsetof(fo__kernels, exp), f_exp, -1, 1, 1, HUGE_VAL, 0},
    {"log", offsetof(fo__kernels, log), f_log, 0, 100, -HUGE_VAL, HUGE_VAL, NAN},
    {"log near 1", offsetof(fo__kernels, log), f_log, 0.5, 1.5, -HUGE_VAL, HUGE_VAL, NAN},
    {"log of tiny", offsetof(fo__kernels, log), f_log, 0, 1e-37, -HUGE_VAL, HUGE_VAL, NAN},
    {"tanh", offsetof(fo__kernels, tanh), f_tanh, -12, 12, 0, 1, -1},
    {"tanh near 0", offsetof(fo__kernels, tanh), f_tanh, -0.01, 0.01, 0, 1, -1},
    {"sigmoid", offsetof(fo__kernels, sigmoid), f_sigmoid, -100, 100, 0.5, 1, 0},
    {"sigmoid near 0", offsetof(fo__kernels, sigmoid), f_sigmoid, -3, 3, 0.5, 1, 0},
    {"softplus", offsetof(fo__kernels, softplus), f_softplus, -100, 100, 0.69314718055994531,
     HUGE_VAL, 0},
    {"softplus near 0", offsetof(fo__kernels, softplus), f_softplus, -3, 3, 0.69314718055994531,
     HUGE_VAL, 0}};

static int same_number(double a, double b) { return a == b || (a != a && b != b); }

static void test_maps(void) {
    enum { N = 4001 };
    fo_real *x = random_block(N, 5), *y = random_block(N, 6), *z = random_block(N, 7);
    int      path, row, i, n;
    for (path = 0; path < n_paths; path++)
        for (row = 0; row < COUNT(map_rows); row++) {
            const struct map_row *r = &map_rows[row];
            fo__map              *f = MAP_AT(picked(paths[path]), row);
            double  worst = 0, edge[5];
            fo_real in[5], out[5], guard[80];
            int     same = 1;
            fo_random_uniform(2, (uint64_t)row, 0, N, x);
            for (i = 0; i < N; i++)
                x[i] = (fo_real)(r->low + (r->high - r->low) * (double)x[i]);
            f(N, x, y);
            for (i = 0; i < N; i++) {
                double want = r->want((double)x[i]), e = fabs((double)y[i] - want);
                if (!IS_DOUBLE && want > 3.4e38) /* the limit of float */
                    e = (double)y[i] > 3.4e38 ? 0 : HUGE_VAL;
                e = FO__MAX(e - 3e-45, 0); /* the spacing of subnormal floats, twice */
                e = e > 0 ? e / (eps * fabs(want)) : 0;
                worst = e <= worst ? worst : e;
            }
            if (!(worst <= 3))
                printf("%s %s: error %g units\n", picked(paths[path])->name, r->name,
                       worst);
            CHECK(worst <= 3);
            memcpy(z, x, N * sizeof *x); /* in place, and one by one: the same bits */
            f(N, z, z);
            CHECK(memcmp(y, z, N * sizeof *x) == 0);
            for (i = 0; i < 100; i++) {
                f(1, x + i, out);
                same &= memcmp(out, y + i, sizeof *y) == 0;
            }
            for (n = 0; n < 70; n++) { /* any length and start; nothing after the end is written */
                for (i = 0; i < 80; i++)
                    guard[i] = -7;
                f(n, x + n % 5, guard);
                same &= memcmp(guard, y + n % 5, (size_t)n * sizeof *y) == 0 && guard[n] == -7;
            }
            CHECK(same);
            in[0] = 0, in[1] = (fo_real)HUGE_VAL, in[2] = (fo_real)-HUGE_VAL, in[3] = (fo_real)NAN;
            in[4]   = r->zero == -HUGE_VAL ? (fo_real)-1 : 0; /* log of a negative number */
            edge[0] = r->zero, edge[1] = r->plus, edge[2] = r->minus, edge[3] = NAN;
            edge[4] = r->zero == -HUGE_VAL ? (double)NAN : r->zero;
            f(5, in, out);
            for (i = 0; i < 5; i++)
                CHECK(same_number((double)out[i], (double)(fo_real)edge[i]));
        }
    free(x), free(y), free(z);
}

/* What is linear in its inputs: result and rounding bound of each in one table. */
enum { ADD, SUB, MUL, MULADD, TANH_GRAD, SIGMOID_GRAD, LEAKY_GRAD, LEAKY, SCALE, AXPY, ZIPS };

static void run_zip(const fo__kernels *k, int which, int64_t n, const fo_real *x, const fo_real *y,
                    fo_real *z) {
    switch (which) {
    case ADD: k->add(n, x, y, z); break;
    case SUB: k->sub(n, x, y, z); break;
    case MUL: k->mul(n, x, y, z); break;
    case MULADD: k->muladd(n, x, y, z); break;
    case TANH_GRAD: k->tanh_grad(n, x, y, z); break;
    case SIGMOID_GRAD: k->sigmoid_grad(n, x, y, z); break;
    case LEAKY_GRAD: k->leaky_grad(n, (fo_real)0.25, x, y, z); break;
    case LEAKY: k->leaky(n, (fo_real)0.25, x, z); break;
    case SCALE: k->scale(n, (fo_real)0.3, x, z); break;
    default: k->axpy(n, (fo_real)0.3, x, z); break;
    }
}

static double want_zip(int which, double x, double y, double z, double *size) {
    const double k = (double)(fo_real)0.3;
    double       part[ZIPS];
    int          adds = which == MULADD || (which >= TANH_GRAD && which <= LEAKY_GRAD);
    part[ADD] = x + y, part[SUB] = x - y, part[MUL] = part[MULADD] = x * y;
    part[TANH_GRAD] = y * (1 - x * x), part[SIGMOID_GRAD] = y * x * (1 - x);
    part[LEAKY_GRAD] = y * (x > 0 ? 1 : 0.25), part[LEAKY] = x * (x > 0 ? 1 : 0.25);
    part[SCALE] = part[AXPY] = k * x;
    *size = 1 + fabs(x) + fabs(y) + fabs(z);
    return part[which] + (adds || which == AXPY ? z : 0);
}

/* Infinities give the limits, at any place of a vector: relu(-inf) is 0, not -inf * 0. */
static void test_relu_edges(const fo__kernels *k) {
    const double   in[4] = {HUGE_VAL, -HUGE_VAL, NAN, 0};
    const double   relu[4] = {HUGE_VAL, 0, NAN, 0}, leaky[4] = {HUGE_VAL, -HUGE_VAL, NAN, 0};
    fo__norm_line  line = {0, 1, 0, 0};
    fo_real        x[40], y[40];
    int            i;
    for (i = 0; i < 40; i++)
        x[i] = (fo_real)in[i % 4];
    k->leaky(39, 0, x, y);
    for (i = 0; i < 39; i++)
        CHECK(same_number((double)y[i], relu[i % 4]));
    k->leaky(39, (fo_real)0.01, x, y);
    for (i = 0; i < 39; i++)
        CHECK(same_number((double)y[i], leaky[i % 4]));
    k->norm(39, &line, x, y);
    for (i = 0; i < 39; i++)
        CHECK(same_number((double)y[i], relu[i % 4]));
}

static void test_zips(void) {
    enum { N = 133 };
    fo_real *x = random_block(N, 8), *y = random_block(N, 9), *z = random_block(N, 10);
    fo_real  out[N + 1], other[N + 1];
    int      path, which, i, n;
    for (path = 0; path < n_paths; path++) {
        const fo__kernels *k = picked(paths[path]);
        double total, want[3], got[3];
        for (which = 0; which < ZIPS; which++) {
            double size, worst = 0;
            int    same = 1;
            for (n = 0; n <= N; n++) {
                memcpy(out, z, sizeof *z * N);
                out[n] = -7;
                run_zip(k, which, n, x, y, out);
                same &= out[n] == -7;
                for (i = 0; i < n; i++) {
                    double e = fabs((double)out[i] - want_zip(which, (double)x[i], (double)y[i],
                                                              (double)z[i], &size));
                    worst = e / size <= worst ? worst : e / size;
                }
            }
            CHECK(same);
            CHECK(worst <= 2 * eps);
            memcpy(other, x, sizeof *x * N); /* the output may be an input */
            run_zip(k, which, N, other, y, other);
            memcpy(out, x, sizeof *x * N);
            run_zip(k, which, N, x, y, out);
            CHECK(memcmp(out, other, sizeof *x * N) == 0);
            x[5] = (fo_real)NAN;
            run_zip(k, which, N, x, y, out);
            CHECK(which == LEAKY_GRAD || out[5] != out[5]);
            x[5] = y[6];
        }
        test_relu_edges(k);
        for (n = 0; n <= N; n++) {
            got[0] = k->sum(n, x), got[1] = k->sumsq(n, x), got[2] = k->dot(n, x, y);
            want[0] = want[1] = want[2] = total = 0;
            for (i = 0; i < n; i++) {
                want[0] += (double)x[i], want[1] += (double)x[i] * (double)x[i];
                want[2] += (double)x[i] * (double)y[i];
            }
            for (i = 0; i < 3; i++)
                total += fabs(got[i] - want[i]);
            CHECK(total <= 1e-13 * (n + 1));
        }
    }
    free(x), free(y), free(z);
}

static void test_adam(void) {
    enum { N = 37 };
    fo_real *p0 = random_block(N, 11), *g = random_block(N, 12), p[N + 1], m[N], v[N], ema[N];
    int      path, i, step, with_ema;
    for (path = 0; path < n_paths; path++)
        for (with_ema = 0; with_ema < 2; with_ema++) {
            double   wp[N], wm[N], wv[N], we[N], worst = 0;
            fo__adam o;
            o.grad_scale = 0.7, o.beta1 = 0.9, o.beta2 = 0.99, o.eps = 1e-3;
            o.decay = 0.95, o.ema = 0.8;
            memcpy(p, p0, N * sizeof *p);
            p[N] = -7;
            for (i = 0; i < N; i++) {
                m[i] = v[i] = ema[i] = 0;
                wp[i] = (double)p0[i], wm[i] = wv[i] = we[i] = 0;
            }
            for (step = 1; step <= 3; step++) {
                o.step = 0.1 / (1 - pow(o.beta1, step)), o.root = 1 / sqrt(1 - pow(o.beta2, step));
                picked(paths[path])->adam(N, &o, p, g, m, v, with_ema ? ema : NULL);
                for (i = 0; i < N; i++) {
                    double gi = 0.7 * (double)g[i];
                    wm[i] = 0.9 * wm[i] + 0.1 * gi;
                    wv[i] = 0.99 * wv[i] + 0.01 * gi * gi;
                    wp[i] = 0.95 * wp[i] - o.step * wm[i] / (sqrt(wv[i]) * o.root + 1e-3);
                    we[i] = 0.8 * we[i] + 0.2 * wp[i];
                }
            }
            for (i = 0; i < N; i++) {
                worst = FO__MAX(worst, fabs((double)p[i] - wp[i]));
                worst = FO__MAX(worst, fabs((double)m[i] - wm[i]));
                worst = FO__MAX(worst, fabs((double)v[i] - wv[i]));
                worst = FO__MAX(worst, fabs((double)ema[i] - (with_ema ? we[i] : 0)));
            }
            CHECK(worst <= 20 * eps);
            CHECK(p[N] == -7);
        }
    free(p0), free(g);
}

/* A coupling's elements and their gradients by every path, from the formulas in double. */
static void test_couple(void) {
    enum { N = 37 };
    fo_real *raw = random_block(N, 21), *t = random_block(N, 22), *x = random_block(N, 23);
    fo_real *a = random_block(N, 24), *dy = random_block(N, 25);
    fo_real  y[N + 1], dx[N + 1], draw[N + 1], da[N + 1];
    int      path, n, i, decode;
    for (path = 0; path < n_paths; path++) {
        const fo__kernels *k = picked(paths[path]);
        double worst = 0, gap;
        int    same = 1;
        for (n = 0; n <= N; n++) {
            for (decode = 0; decode < 2; decode++) {
                double sum = 0, got;
                y[n] = -7;
                got  = k->couple(n, decode, a, raw, t, x, y);
                for (i = 0; i < n; i++) {
                    double s = (double)a[i] * tanh((double)raw[i]);
                    double want = decode ? (double)x[i] * exp(-s) - (double)t[i]
                                         : ((double)x[i] + (double)t[i]) * exp(s);
                    sum += s;
                    worst = FO__MAX(worst, fabs((double)y[i] - want));
                }
                worst = FO__MAX(worst, fabs(got - sum) / (n + 1));
                same &= y[n] == -7;
            }
            dx[n] = draw[n] = da[n] = -7;
            k->uncouple(n, (fo_real)0.7, a, raw, x, dy, dx, draw, da);
            for (i = 0; i < n; i++) {
                double th = tanh((double)raw[i]), s = (double)a[i] * th;
                double ds = (double)dy[i] * (double)x[i] + (double)(fo_real)0.7;
                gap  = fabs((double)dx[i] - (double)dy[i] * exp(s));
                gap += fabs((double)da[i] - ds * th);
                gap += fabs((double)draw[i] - ds * (double)a[i] * (1 - th * th));
                worst = FO__MAX(worst, gap);
            }
            same &= dx[n] == -7 && draw[n] == -7 && da[n] == -7;
        }
        CHECK(worst <= 20 * eps);
        CHECK(same);
    }
    free(raw), free(t), free(x), free(a), free(dy);
}

/* The pace of repeated work, on a made-up clock: what a unit costs on each number of threads, and
   what the whole run loses against the best of them. */
static double pace_run(int threads, int units, const double *cost, double *now, fo__pace *pace) {
    fo_context fo;
    double     begin = *now;
    memset(&fo, 0, sizeof fo);
    fo.desc.threads = fo.team = threads;
    for (; units > 0; units--) {
        fo__pace_begin(&fo, pace, *now);
        *now += cost[fo.team] * (units % 2 ? 1.02 : 0.98);
        fo__pace_end(&fo, pace, *now, 1);
    }
    return *now - begin;
}

static void test_pace(void) {
    const double quiet[5] = {0, 1e-3, 0.55e-3, 1, 0.3e-3}, busy[5] = {0, 1e-3, 0.1, 1, 0.3};
    fo__pace     pace;
    double       now = 100;
    memset(&pace, 0, sizeof pace);
    CHECK(pace_run(4, 2000, quiet, &now, &pace) < 1.03 * 2000 * quiet[4] + 0.01);
    CHECK(pace.level == 0 || pace.on_trial);
    /* another process takes the other cores: two bad units, trials, then one thread */
    CHECK(pace_run(4, 20000, busy, &now, &pace) < 1.06 * 20000 * busy[1] + 1.5);
    CHECK(pace.level == 2 || pace.on_trial);
    /* and leaves again; the next trial up may come late, but it comes */
    pace_run(4, 200000, quiet, &now, &pace);
    CHECK(pace.level == 0 || pace.on_trial);
    CHECK(pace_run(4, 2000, quiet, &now, &pace) < 1.03 * 2000 * quiet[4] + 0.01);
    memset(&pace, 0, sizeof pace);
    CHECK_NEAR(pace_run(1, 1000, quiet, &now, &pace), 1000 * quiet[1], 1e-3);
}

/* DeLong's interval against its definition, a sum over all pairs. */
static void test_delong(void) {
    enum { IN = 37, OOD = 23 };
    fo_context *fo = open_with(0, FO_SIMD_AUTO, 1);
    fo_metrics  m;
    fo_real     z[IN + OOD];
    double      in[IN], ood[OOD], v_in[IN] = {0}, v_ood[OOD] = {0}, area = 0, a = 0, b = 0;
    int         i, j;
    fo_random_normal(3, 3, 0, IN + OOD, z);
    for (i = 0; i < IN; i++)
        in[i] = floor(3 * (double)z[i]); /* with equal ones */
    for (j = 0; j < OOD; j++)
        ood[j] = floor(3 * (double)z[IN + j] + 2);
    for (i = 0; i < IN; i++)
        for (j = 0; j < OOD; j++) {
            double wins = ood[j] > in[i] ? 1 : ood[j] == in[i] ? 0.5 : 0;
            v_in[i] += wins / OOD;
            v_ood[j] += wins / IN;
            area += wins / (IN * OOD);
        }
    for (i = 0; i < IN; i++)
        a += (v_in[i] - area) * (v_in[i] - area) / (IN - 1) / IN;
    for (j = 0; j < OOD; j++)
        b += (v_ood[j] - area) * (v_ood[j] - area) / (OOD - 1) / OOD;
    CHECK(fo_measure(fo, in, IN, ood, OOD, &m) == FO_OK);
    CHECK_NEAR(m.auroc, area, 1e-12);
    CHECK_NEAR(m.auroc_low, area - 1.959963984540054 * sqrt(a + b), 1e-12);
    CHECK_NEAR(m.auroc_high, area + 1.959963984540054 * sqrt(a + b), 1e-12);
    CHECK(fo_measure(fo, in, 1, ood, 1, &m) == FO_OK && m.auroc_low >= 0 && m.auroc_high <= 1);
    fo_close(fo);
}

/* Limits against the sum that defines them, by brute force. */
static double tail_by_sum(int n, int k, double a) {
    double sum = 0;
    int    i, j;
    for (i = k; i <= n; i++) {
        double term = 0; /* log of (n over i) a^i (1-a)^(n-i) */
        for (j = 1; j <= i; j++)
            term += log((double)(n - i + j) / j);
        sum += exp(term + i * log(a) + (n - i) * log(1 - a));
    }
    return sum;
}

static void test_limits(void) {
    fo_context  *fo = open_with(0, FO_SIMD_AUTO, 1);
    const double alphas[3] = {0.01, 0.05, 0.3}, levels[3] = {0.5, 0.9, 0.99};
    double       limit;
    int          a, c, n, k;
    for (n = 20; n <= 620; n += 200)
        for (a = 0; a < 3; a++)
            for (c = 0; c < 3; c++) {
                for (k = 0; tail_by_sum(n, k + 1, alphas[a]) >= levels[c];)
                    k++;
                CHECK((fo_alarm_limit(fo, n, alphas[a], levels[c], &limit) == FO_OK) == (k > 0));
                if (k > 0)
                    CHECK_NEAR(limit, (double)k / (n + 1), 1e-12);
                fo_clear_error(fo);
            }
    CHECK(fo_alarm_limit(fo, 99, 0.01, 0, &limit) == FO_OK && limit == 0.01);
    CHECK(fo_alarm_limit(fo, 98, 0.01, 0, &limit) == FO_ERR_ARGUMENT);
    CHECK(strstr(fo_error(fo), "needs 99") != NULL);
    fo_clear_error(fo);
    CHECK(fo_alarm_limit(fo, 229, 0.01, 0.9, &limit) == FO_ERR_ARGUMENT);
    CHECK(strstr(fo_error(fo), "needs 230") != NULL);
    fo_clear_error(fo);
    CHECK(fo_alarm_limit(fo, 1000000, 0.05, 0.9, &limit) == FO_OK && limit > 0.049 && limit < 0.05);
    CHECK(fo_alarm_limit(fo, 100, 0, 0, &limit) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    CHECK(fo_alarm_limit(fo, 100, 0.5, 1, &limit) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    CHECK(fo_alarm_limit(NULL, 100, 0.5, 1, &limit) == FO_ERR_ARGUMENT);
    fo_close(fo);
}

/* Benjamini and Hochberg: the example of their paper, and the definition on random numbers. */
static void test_many(void) {
    fo_context   *fo = open_with(0, FO_SIMD_AUTO, 1);
    const double  paper[15] = {0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
                               0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0};
    double        p[40];
    unsigned char alarm[40];
    int64_t       n;
    int           run, i, j, k, rank, best;
    CHECK(fo_benjamini_hochberg(fo, paper, 15, 0.05, alarm, &n) == FO_OK && n == 4);
    CHECK(alarm[3] == 1 && alarm[4] == 0);
    for (run = 0; run < 20; run++) {
        fo_real u;
        for (i = 0; i < 40; i++) {
            fo_random_uniform(5, (uint64_t)run, (uint64_t)i, 1, &u);
            p[i] = i < 20 ? (double)u : (double)u * (double)u * (double)u;
        }
        CHECK(fo_benjamini_hochberg(fo, p, 40, 0.1, alarm, &n) == FO_OK);
        for (best = -1, i = 0; i < 40; i++) { /* the largest p(k) <= alpha k / n */
            for (rank = 0, j = 0; j < 40; j++)
                rank += p[j] <= p[i];
            if (p[i] <= 0.1 * rank / 40 && (best < 0 || p[i] > p[best]))
                best = i;
        }
        for (k = 0, i = 0; i < 40; i++) {
            CHECK(alarm[i] == (best >= 0 && p[i] <= p[best]));
            k += alarm[i];
        }
        CHECK(k == n);
    }
    p[3] = -1;
    CHECK(fo_benjamini_hochberg(fo, p, 40, 0.1, alarm, &n) == FO_ERR_NUMERIC);
    fo_close(fo);
}

/* The coder: a constant picture costs next to nothing, noise 8 bits a pixel. */
static void test_coder(void) {
    unsigned char x[3 * 24 * 20];
    fo_shape      s = shape_of(1, 24, 20);
    uint32_t      four[4];
    double        noise, flat, once;
    int           i;
    for (i = 0; i < 480; i++) {
        fo_random_bits(1, 2, (uint64_t)i, four);
        x[i] = (unsigned char)four[0];
    }
    noise = fo_code_length(x, s);
    CHECK(noise > 480 * 8 * log(2.0) && noise < 1.15 * 480 * 8 * log(2.0));
    memset(x, 200, 480);
    flat = fo_code_length(x, s);
    CHECK(flat > 0 && flat < 25);
    for (i = 0; i < 480; i++)
        x[i] = x[480 + i] = x[960 + i] = (unsigned char)(i / 20 * 5 + i % 20 * i % 7);
    once = fo_code_length(x, s);
    CHECK(once > 2 * flat && once < noise);
    s.c = 2; /* channels are coded one by one, */
    CHECK_NEAR(fo_code_length(x, s), 2 * once, 1e-12);
    s.c = 3; /* three of them as G, R - G, B - G, which here is all the same */
    CHECK(fo_code_length(x, s) < once + 2 * flat + 1);
    for (i = 0; i < 189; i++) { /* against tests/golden/make_detect.py */
        const int c = i / 63, row = i % 63 / 9, column = i % 9;
        x[i] = (unsigned char)(90 + 31 * row + 7 * column + row * column % 5 + c * (row % 3) * 40);
    }
    CHECK_NEAR(fo_code_length(x, shape_of(1, 7, 9)), 217.503502839566, 1e-13);
    CHECK_NEAR(fo_code_length(x, shape_of(3, 7, 9)), 369.525031121218, 1e-13);
    s = shape_of(1, 1, 1);
    CHECK(fo_code_length(x, s) > 0);
    CHECK(fo_code_length(NULL, s) == 0);
    s.h = 0;
    CHECK(fo_code_length(x, s) == 0);
}

/* The martingale on normal numbers: how often it is wrong, how soon it sees a change, whether a
   copy goes on to the same bits. */
static void test_martingale(void) {
    fo_context   *fo = open_with(0, FO_SIMD_AUTO, 1);
    enum { N = 500, STREAM = 2000, RUNS = 60 };
    double       *x = (double *)malloc((2 * N + STREAM) * sizeof *x);
    fo_real      *z = (fo_real *)malloc((2 * N + STREAM) * sizeof *z);
    int           run, i, wrong = 0, late = 0;
    for (run = 0; run < RUNS; run++) {
        fo_martingale m, copy;
        fo_random_normal((uint64_t)run, 1, 0, 2 * N + STREAM, z);
        for (i = 0; i < 2 * N + STREAM; i++)
            x[i] = floor(20 * (double)z[i]); /* with many equal ones */
        CHECK(fo_martingale_start(fo, &m, x, N, x + N, N, (uint64_t)run) == FO_OK);
        for (i = 0; i < STREAM; i++)
            fo_martingale_add(&m, x[2 * N + i]);
        wrong += m.highest >= 20;
        copy = m;
        for (i = 0; i < 50; i++)
            fo_martingale_add(&m, x[i] + 50);
        late += m.highest < 20;
        for (i = 0; i < 50; i++)
            fo_martingale_add(&copy, x[i] + 50);
        CHECK(memcmp(&copy, &m, sizeof m) == 0);
        CHECK(m.seen == STREAM + 50);
    }
    CHECK(wrong <= 6); /* 3 expected at most */
    CHECK(late <= 3);
    x[0] = NAN;
    {
        fo_martingale m;
        CHECK(fo_martingale_start(fo, &m, x, N, x + N, N, 0) == FO_ERR_NUMERIC);
        fo_clear_error(fo);
        CHECK(fo_martingale_start(fo, &m, x + 1, 0, x + N, N, 0) == FO_ERR_ARGUMENT);
    }
    free(x);
    free(z);
    fo_close(fo);
}

int main(void) {
    test_pace();
    test_coder();
    test_delong();
    test_limits();
    test_many();
    test_martingale();
    find_paths();
    test_context();
    test_errors();
    test_arena();
    test_random();
    test_parallel();
    test_products();
    test_product_bits();
    test_maps();
    test_zips();
    test_adam();
    test_couple();
    return test_end();
}
