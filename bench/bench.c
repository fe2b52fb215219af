/* Speed and memory, one measurement a line: "bench NAME METRIC VALUE UNIT".

   bench [--threads N] [--seconds S] [--simd NAME] [--mlp] [--ladder] [--data FOLDER]
     --seconds  time for each of the larger measurements (default 8)
     --simd     ref, portable, neon, avx2 or avx512 instead of the best that this CPU runs
     --mlp      the rows of mlp-cycle alone
     --ladder   every kernel set that this CPU runs, from plain C up, instead of the best alone

   A value is the median of seven repeats after a warm-up. Each fast kernel is first compared with
   its plain twin; a difference beyond rounding ends the bench. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <stdlib.h>
#include <string.h>
#if defined(__unix__)
#include <sys/resource.h>
#endif

static double seconds = 8;

static void line(const char *name, const char *metric, double value, const char *unit) {
    printf("bench %s %s %.4g %s\n", name, metric, value, unit);
    fflush(stdout);
}

static double peak_mb(void) {
#if defined(__unix__)
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024;
#else
    return 0;
#endif
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Calls a second: median of seven repeats after one to warm up. */
static double rate_of(void (*work)(void *arg), void *arg, double total) {
    double rates[8];
    int    repeat;
    for (repeat = 0; repeat < 8; repeat++) {
        double start = fo_clock(), now = start;
        int    calls = 0;
        for (; calls < 5 || now - start < total / 8; calls++, now = fo_clock())
            work(arg);
        rates[repeat] = calls / (now - start);
    }
    qsort(rates + 1, 7, sizeof rates[0], by_value);
    return rates[4];
}

/* ---- kernels --------------------------------------------------------------------------------- */

typedef struct matmul {
    fo_context *fo;
    int64_t     m, n, k;
    fo_real    *x, *w, *y;
} matmul;

static void run_matmul(void *arg) { /* y = x w^T, as a linear layer does it */
    matmul *p = (matmul *)arg;
    fo__gemm(p->fo, p->m, p->n, p->k, p->x, p->k, 1, p->w, 1, p->k, p->y, p->n, NULL, 0);
}

static double largest_difference(const fo_real *a, const fo_real *b, int64_t n) {
    double  worst = 0;
    int64_t i;
    for (i = 0; i < n; i++)
        worst = FO__MAX(worst, fabs((double)a[i] - (double)b[i]) / (1 + fabs((double)b[i])));
    return worst;
}

static void bench_matmul(fo_context *fo, fo_context *ref, const char *suffix) {
    static const int shape[][3] = {{128, 196, 512}, {128, 512, 10}, {128, 10, 512},
                                   {128, 512, 392}, {512, 512, 512}};
    size_t i;
    for (i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        int64_t  m = shape[i][0], k = shape[i][1], n = shape[i][2];
        matmul   p, q;
        fo_real *all = (fo_real *)malloc((size_t)(m * k + n * k + 2 * m * n) * sizeof *all);
        char     name[64];
        if (all == NULL)
            exit(1);
        p.fo = fo, p.m = m, p.n = n, p.k = k, p.x = all, p.w = all + m * k, p.y = p.w + n * k;
        q    = p, q.fo = ref, q.y = p.y + m * n;
        fo_random_normal(1, 0, 0, m * k + n * k, all);
        run_matmul(&p);
        run_matmul(&q);
        if (largest_difference(p.y, q.y, m * n) > 1e-4) {
            printf("matmul %dx%dx%d differs from its plain twin\n", (int)m, (int)k, (int)n);
            exit(1);
        }
        snprintf(name, sizeof name, "matmul-%dx%dx%d%s", (int)m, (int)k, (int)n, suffix);
        line(name, "speed", 2e-9 * (double)(m * k * n) * rate_of(run_matmul, &p, seconds / 5),
             "GFLOP/s");
        free(all);
    }
}

enum { ARRAY = 100000 };
typedef struct array_work {
    fo_context *fo;
    fo__map    *fn;
    fo_real    *x, *y;
} array_work;

static void array_range(void *arg, int64_t begin, int64_t end) {
    array_work *a = (array_work *)arg;
    a->fn(end - begin, a->x + begin, a->y + begin);
}

static void run_array(void *arg) {
    fo_parallel_for(((array_work *)arg)->fo, ARRAY, 8192, array_range, arg);
}

static void bench_arrays(fo_context *fo, fo_context *ref, const char *suffix) {
    static const char *const name[] = {"exp", "log", "tanh", "sigmoid", "softplus"};
    static fo_real           x[ARRAY], y[ARRAY], z[ARRAY];
    int                      i, k;
    for (k = 0; k < 5; k++) {
        const fo__kernels *kern = fo->kernels, *plain = ref->kernels;
        fo__map *fast[5], *slow[5];
        char     full[64];
        array_work a;
        fast[0] = kern->exp, fast[1] = kern->log, fast[2] = kern->tanh, fast[3] = kern->sigmoid;
        slow[0] = plain->exp, slow[1] = plain->log, slow[2] = plain->tanh, slow[3] = plain->sigmoid;
        fast[4] = kern->softplus, slow[4] = plain->softplus;
        fo_random_uniform(1, 0, 0, ARRAY, x);
        for (i = 0; i < ARRAY; i++)
            x[i] += (fo_real)0.1;
        a.fo = fo, a.fn = fast[k], a.x = x, a.y = y;
        run_array(&a);
        slow[k](ARRAY, x, z);
        if (largest_difference(y, z, ARRAY) > 1e-6) {
            printf("%s differs from its plain twin\n", name[k]);
            exit(1);
        }
        snprintf(full, sizeof full, "array-%s%s", name[k], suffix);
        line(full, "speed", 1e-6 * ARRAY * rate_of(run_array, &a, seconds / 5), "Melem/s");
    }
}

/* ---- models ---------------------------------------------------------------------------------- */

enum { TIMES = 100000 };
static double train_times[TIMES]; /* at the end of every step */

static fo_data *images(fo_context *fo, const char *folder) {
    static unsigned char noise[4096][784];
    char                 path[1024];
    fo_data             *data;
    fo_shape             shape = {1, 28, 28};
    int64_t              i;
    snprintf(path, sizeof path, "%.900s/fashion/train-images-idx3-ubyte.gz", folder);
    data = fo_load(fo, path);
    if (data)
        return data;
    fo_clear_error(fo); /* speed does not depend on what the pictures show */
    fprintf(stderr, "bench: no FashionMNIST in %s: measured on noise images\n", folder);
    for (i = 0; i < 4096 * 784; i++)
        noise[i / 784][i % 784] = (unsigned char)(i * 2654435761u >> 24);
    return fo_data_view(fo, noise, FO_U8, 4096, shape);
}

typedef struct score_work {
    fo_workspace  *ws, *one;
    const fo_data *data;
    double         log_prob[1024];
} score_work;

static void run_score(void *arg) {
    score_work *s = (score_work *)arg;
    fo_log_prob(s->ws, s->data, 0, 1024, 0, s->log_prob);
}

static void run_one(void *arg) { /* one image from memory to its score */
    score_work *s = (score_work *)arg;
    fo_log_prob(s->one, s->data, 0, 1, 0, s->log_prob);
}

/* Images a second of training a preset; the flow comes back. Large models take 17 steps however
   long that is: two that warm up, seven times two. */
static fo_flow *bench_train(fo_context *fo, const fo_data *data, const char *preset, int batch) {
    fo_flow      *flow = fo_flow_preset(fo, preset, fo_data_shape(data));
    fo_train_desc desc = fo_flow_train_desc(flow);
    fo_trainer   *trainer;
    double        part[7], begin = fo_clock();
    char          name[64];
    int           i, n, share;
    desc.batch  = batch;
    desc.epochs = 0;
    desc.steps  = TIMES;
    trainer     = fo_trainer_open(flow, data, &desc);
    for (n = 0; n < TIMES && (n < 17 || fo_clock() - begin < seconds); n++) {
        if (!fo_trainer_step(trainer))
            break;
        train_times[n] = fo_clock();
    }
    fo_trainer_close(trainer);
    snprintf(name, sizeof name, "%s-train", preset);
    share = (n - 1) / 8; /* the first eighth warms up */
    if (share > 0) {
        for (i = 0; i < 7; i++)
            part[i] = share / (train_times[(i + 2) * share] - train_times[(i + 1) * share]);
        qsort(part, 7, sizeof part[0], by_value);
        line(name, "images_per_s", batch * part[3], "1/s");
    }
    line(name, "peak_memory", peak_mb(), "MB");
    return flow;
}

/* Peaks of memory are of the whole program so far. */
static void bench_models(fo_context *fo, const char *folder, int mlp_alone) {
    static const char *const image_presets[] = {"realnvp-tiny", "realnvp-small", "glow-small",
                                                "cycle-resnet-neck"};
    static score_work score;
    fo_data          *data = images(fo, folder);
    fo_flow          *flow;
    int               i;
    line("load-data", "peak_memory", peak_mb(), "MB");
    flow       = bench_train(fo, data, "mlp-cycle", 128);
    score.ws   = fo_workspace_create(fo, flow, 128);
    score.one  = fo_workspace_create(fo, flow, 1);
    score.data = data;
    if (fo_failed(fo))
        return;
    line("mlp-cycle-score", "images_per_s", 1024 * rate_of(run_score, &score, seconds), "1/s");
    line("mlp-cycle-score", "peak_memory", peak_mb(), "MB");
    line("mlp-cycle-one", "images_per_s", rate_of(run_one, &score, seconds / 2), "1/s");
    for (i = 0; i < 4 && !mlp_alone; i++)
        fo_flow_free(bench_train(fo, data, image_presets[i], 32));
}

int main(int argc, char **argv) {
    static const char *const suffix[] = {"", "-ref", "-portable", "-neon", "-avx2", "-avx512"};
    const char *folder = "data";
    fo_desc     desc;
    fo_context *fo, *ref;
    int         i, k, ladder = 0, mlp = 0, failed;
    fo_simd     simd = FO_SIMD_AUTO;
    memset(&desc, 0, sizeof desc);
    for (i = 1; i < argc; i++)
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            desc.threads = atoi(argv[++i]);
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds = atof(argv[++i]);
        else if (strcmp(argv[i], "--data") == 0 && i + 1 < argc)
            folder = argv[++i];
        else if (strcmp(argv[i], "--simd") == 0 && i + 1 < argc) {
            for (i++, k = FO_SIMD_REF; k <= FO_SIMD_AVX512; k++)
                if (strcmp(argv[i], suffix[k] + 1) == 0)
                    simd = (fo_simd)k;
        } else if (strcmp(argv[i], "--mlp") == 0)
            mlp = 1;
        else if (strcmp(argv[i], "--ladder") == 0)
            ladder = 1;
        else
            return fprintf(stderr, "usage: bench [--threads N] [--seconds S] [--simd NAME] [--mlp] "
                                   "[--ladder] [--data FOLDER]\n"), 2;
    desc.simd = simd;
    fo        = fo_open(&desc);
    desc.simd = FO_SIMD_REF;
    ref       = fo_open(&desc);
    if (fo == NULL || ref == NULL)
        return fprintf(stderr, "bench: out of memory\n"), 1;
    line("library", "peak_memory", peak_mb(), "MB");
    if (!ladder)
        bench_models(fo, folder, mlp);
    for (i = ladder ? FO_SIMD_REF : FO_SIMD_AUTO; i <= (ladder ? FO_SIMD_AVX512 : 0) && !mlp; i++) {
        fo_context *step;
        desc.simd = ladder ? (fo_simd)i : simd;
        step      = fo_open(&desc);
        if (step && (i == 0 || fo_get_desc(step).simd == desc.simd)) {
            bench_matmul(step, ref, suffix[i]);
            bench_arrays(step, ref, suffix[i]);
        }
        fo_close(step);
    }
    failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "bench: %s\n", fo_error(fo));
    fo_close(ref);
    fo_close(fo);
    return failed;
}
