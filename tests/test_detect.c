/* Scores and detectors. The expected values of the small statistical models are SciPy's and
   scikit-learn's: tests/golden/make_detect.py prints them. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

static const double twelve[36] = {
    0.126, 0.736, 2.32,  0.105, -0.071, 2.181, 1.304, 2.894, 1.648, -1.265, -0.247, 2.021,
    -2.325, 0.562, 1.377, -0.732, -0.089, 1.842, 0.412, 3.085, 1.936, 1.366, -0.33, 2.176,
    0.903, 1.188, 1.628, -0.922, 0.085, 2.11, -1.01, 0.582, 1.92, 0.541, 1.429, 2.178};
static const double query[3] = {-1.961, -0.389, 2.352};
static const double noise[20] = {1.4934, -1.2591, 1.5139, 1.3459, 0.7813, 0.2645, -0.3139,
                                 1.458, 1.9603, 1.8016, 1.3151, 0.3574, -1.2083, -0.0045,
                                 0.6565, -1.2884, 0.3951, 0.4299, 0.696, -1.1841};

static void test_estimates(void) {
    fo_context *fo = open_with(0, FO_SIMD_AUTO, 1);
    double      gauss[12], work[80], x[12], mean[3] = {0, 0, 0}, centered[3];
    const double close = IS_DOUBLE ? 1e-12 : 1e-5; /* states are kept as fo_real */
    fo_real     real[36], v[6], y[24], picture[20], kept[12];
    fo__score   z[20];
    int         i, far;
    CHECK(fo__gauss_fit(twelve, 12, 3, gauss));
    for (i = 0; i < 12; i++)
        kept[i] = (fo_real)gauss[i];
    CHECK_NEAR(fo__mahalanobis(kept, 3, query, work), 7.16700823771684, close);
    for (i = 0; i < 12; i++)
        kept[i] = (fo_real)(x[i] = twelve[3 * i]);
    CHECK_NEAR(fo__kde_log(kept, 12, fo__kde_width(x, 12), 0.3), -1.24607742467171, close);
    CHECK_NEAR(fo__kde_log(kept, 12, fo__kde_width(x, 12), -2), -2.19149677416645, close);
    CHECK_NEAR(fo__kde_log(kept, 12, fo__kde_width(x, 12), 25), -591.839888731185, close);
    for (far = 1; far <= 20; far += 19) {
        for (i = 0; i < 20; i++)
            z[i].score = far * noise[i];
        CHECK_NEAR(fo__anderson_darling(z, 20), far == 1 ? 3.10540208037822 : 1666.73076739673,
                   far == 1 ? 1e-12 : 1e-6);
    }
    for (i = 0; i < 20; i++)
        picture[i] = (fo_real)noise[i];
    CHECK_NEAR(fo__log_flatness(picture, 4, 5, work), -0.755376295828348, IS_DOUBLE ? 1e-12 : 1e-6);
    for (i = 0; i < 36; i++)
        mean[i % 3] += twelve[i] / 12;
    for (i = 0; i < 36; i++)
        real[i] = (fo_real)(twelve[i] - mean[i % 3]);
    for (i = 0; i < 3; i++)
        centered[i] = query[i] - mean[i];
    fo__principal(fo, real, 12, 3, 2, v, y);
    CHECK_NEAR(fo__residual(v, 2, 3, centered), 0.2352135250897, IS_DOUBLE ? 1e-9 : 1e-5);
    for (i = 0; i < 12; i++) /* a constant column is harmless */
        x[i] = i % 3 == 1 ? 7 : twelve[i];
    CHECK(fo__gauss_fit(x, 4, 3, gauss));
    for (i = 0; i < 12; i++)
        kept[i] = (fo_real)gauss[i];
    CHECK(fo__mahalanobis(kept, 3, query, work) > 0);
    fo_close(fo);
}

/* ---- every score ------------------------------------------------------------------------------

   What a score sees is made up by a formula; fitted to 50 samples, it is asked about three others.
   The answers are those of NumPy, SciPy and scikit-learn: tests/golden/make_detect.py. */
enum { FITTED = 50, LAYERS = 3, HEIGHT = 4, WIDTH = 6, SIZE = HEIGHT * WIDTH };

static double chance(int sample, int number) {
    return fmod(1e4 * sin(12.9898 * (sample + 1) + 78.233 * (number + 1)), 1);
}

/* Features of a made-up sample. */
static void made_up(const fo_score_kind *kind, int sample, double *features) {
    const double   far = sample < FITTED ? 1 : sample - FITTED + 1;
    double         terms[1 + LAYERS], gradient[LAYERS], view[8], work[5 * SIZE + 64];
    fo_real        x[SIZE], z[SIZE];
    unsigned char  pixels[SIZE];
    fo_score_input in;
    int            i;
    memset(&in, 0, sizeof in);
    in.shape = shape_of(1, HEIGHT, WIDTH), in.layers = LAYERS, in.terms = terms, in.x = x;
    in.z = z, in.pixels = pixels, in.gradient = gradient, in.work = work;
    for (i = 0; i <= LAYERS; i++)
        in.log_prob += terms[i] = far * 10 * chance(sample, i);
    for (i = 0; i < LAYERS; i++)
        gradient[i] = far * chance(sample, 20 + i);
    for (i = 0; i < SIZE; i++) {
        z[i] = (fo_real)(far * (chance(sample, 100 + i) + chance(sample, 200 + i) +
                                chance(sample, 300 + i)));
        pixels[i] = (unsigned char)floor(128 + 120 * chance(sample, 500 + i));
        if (i == SIZE - 1) /* what 23 components leave is this one's direction */
            pixels[i] = (unsigned char)(100 + pixels[i] % 4);
        x[i] = (fo_real)pixels[i];
    }
    for (i = 0; i < 4; i++) {
        view[2 * i]     = in.log_prob + 5 * i * chance(sample, 30 + i);
        view[2 * i + 1] = fo_code_length(pixels, in.shape) - 4 * i * chance(sample, 40 + i);
    }
    in.views = 4, in.view = view;
    in.background = 10 * chance(sample, 10);
    kind->features(&in, features);
}

static void test_every_score(void) {
    static const struct { const char *name; double value[3]; } golden[] = {
        {"likelihood", {7.03586033918, -9.68786885518, -46.4909106889}},
        {"latent", {5.98503475929, 1.32683367945, -29.2560367406}},
        {"volume", {1.0508255799, -11.0147025346, -17.2348739483}},
        {"typicality", {6.81074675019, 9.91298244417, 46.7160242779}},
        {"complexity", {-161.43438853, -181.315665042, -221.776099857}},
        {"orientation", {-148.871844667, -173.428145264, -213.632090542}},
        {"density-of-states", {9.54558047559, 10.7249307828, 84.9921302538}},
        {"layers", {3.08713452525, 5.98719531011, 30.231913617}},
        {"gradient", {1.52472741276, 7.07670079029, 22.9261058091}},
        {"normality", {2.43183602935, 723.2927013, 12658.5306283}},
        {"ratio", {12.1756516955, -4.75481626766, -48.2435887827}},
        {"neighbour", {213.663286505, 229.412292609, 261.086192664}},
        {"pca", {1.0615125844, 0.0205362694359, 0.709916616544}},
    };
    fo_context *fo    = open_with(0, FO_SIMD_AUTO, 1);
    double     *known = (double *)malloc(FITTED * SIZE * sizeof *known);
    double      f[SIZE], work[5 * SIZE + 64];
    fo_real    *state = (fo_real *)malloc(BYTES(FITTED * SIZE));
    int         k, i;
    for (k = 0; k < COUNT(golden); k++) {
        fo_score_kind kind  = fo_score_at(fo, k);
        const int     width = kind.width ? kind.width(shape_of(1, HEIGHT, WIDTH), LAYERS) : 1;
        const int64_t size  = kind.size ? kind.size(width, FITTED) : 0;
        CHECK(strcmp(kind.name, golden[k].name) == 0 && width <= SIZE && size <= FITTED * SIZE);
        for (i = 0; i < FITTED; i++)
            made_up(&kind, i, known + i * width);
        CHECK(kind.fit == NULL || kind.fit(fo, known, FITTED, width, state) == FO_OK);
        for (i = 0; i < 3; i++) {
            made_up(&kind, FITTED + i, f);
            CHECK_NEAR(kind.value ? kind.value(f, width, state, size, work) : f[0],
                       golden[k].value[i],
                       IS_DOUBLE ? 1e-10 : strcmp(kind.name, "pca") == 0 ? 2e-3 : 1e-4);
        }
    }
    CHECK(fo_score_at(fo, k).name == NULL); /* no score without an answer from elsewhere */
    free(known), free(state);
    fo_close(fo);
}

/* Views are what NumPy makes by turning, and all that orientation adds up comes from log_prob and
   the code length of pictures that were turned beforehand. */
static void test_views(void) {
    const char *const name = "orientation";
    fo_context       *fo = open_with(1, FO_SIMD_AUTO, 1);
    fo_flow          *flow = random_flow(fo, "input 1x3x3\ndequantize\nlogit\n"
                                             "2* coupling mask=halves:% hidden=5\n", 0.5);
    fo_workspace     *ws = fo_workspace_create(fo, flow, 4);
    unsigned char     x[20 * 9], turned[9], last[9] = {8, 5, 2, 7, 4, 1, 6, 3, 0};
    fo_data          *data = fo_data_view(fo, x, FO_U8, 20, shape_of(1, 3, 3));
    fo_detector_desc  desc;
    double            score[20], lp, c[8], least;
    const fo_real    *limit;
    int               i, k;
    for (i = 0; i < 9; i++)
        x[i] = (unsigned char)i;
    fo__turn(x, shape_of(1, 3, 3), 7, turned); /* x[::-1, ::-1].T */
    CHECK(memcmp(turned, last, 9) == 0);
    fo__turn(x, shape_of(1, 3, 3), 1, turned);
    CHECK(memcmp(turned, "\6\7\10\3\4\5\0\1\2", 9) == 0);
    for (i = 0; i < 180; i++)
        x[i] = (unsigned char)(128 + 120 * chance(i, 3));
    memset(&desc, 0, sizeof desc);
    desc.scores = &name, desc.n_scores = 1;
    CHECK(fo_calibrate(flow, data, &desc) == FO_OK);
    CHECK(fo_score(ws, data, 0, 20, name, score) == FO_OK);
    limit = flow->detector->fitted[0].state;
    for (i = 0; i < 20; i++) {
        for (k = 0, least = HUGE_VAL; k < 8; k++) {
            fo__turn(x + 9 * i, shape_of(1, 3, 3), k, turned);
            CHECK(fo_log_prob_rows(ws, turned, FO_U8, 1, 0, &lp) == FO_OK);
            c[k] = fo_code_length(turned, shape_of(1, 3, 3));
            c[k] = -lp - (c[k] < (double)*limit ? c[k] : (double)*limit);
            least = c[k] < least ? c[k] : least;
        }
        CHECK_NEAR(score[i], 2 * c[0] - least, 1e-12);
    }
    fo_close(fo);
}

/* Every built-in score, and a detector that decides by it: called again, they allocate nothing; a
   sample's score depends on neither batch nor threads. */
static void test_warm_scores(void) {
    static const struct { int batch, threads; } ways[] = {{3, 1}, {16, 2}, {1, 1}};
    unsigned char x[40 * 16];
    double        first[16], score[16], p[16];
    int           i, w, k;
    for (i = 0; i < (int)sizeof x; i++)
        x[i] = (unsigned char)(128 + 120 * chance(i / 3, 3));
    for (k = 0; fo_score_at(NULL, k).name; k++)
        for (w = 0; w < COUNT(ways); w++) {
            const char      *name = fo_score_at(NULL, k).name;
            fo_context      *fo = open_with(1, FO_SIMD_AUTO, ways[w].threads);
            fo_flow         *flow = random_flow(fo, "input 1x4x4\ndequantize\nlogit\n2* coupling "
                                                    "mask=halves:% hidden=5\n", 0.5);
            fo_flow         *other = fo_flow_parse(fo, "input 1x4x4\nstandardize\n");
            fo_data         *data = fo_data_view(fo, x, FO_U8, 40, shape_of(1, 4, 4));
            fo_workspace    *ws = fo_workspace_create(fo, flow, ways[w].batch);
            fo_detector_desc desc;
            uint64_t         warm;
            memset(&desc, 0, sizeof desc);
            desc.scores = &name, desc.n_scores = 1, desc.background = other;
            CHECK(fo_calibrate(flow, data, &desc) == FO_OK);
            CHECK(fo_workspace_background(ws, other) == FO_OK);
            CHECK(fo_score(ws, data, 3, 16, name, w ? score : first) == FO_OK);
            warm = fo_memory(fo).allocations;
            CHECK(fo_score(ws, data, 3, 16, name, w ? score : first) == FO_OK);
            CHECK(fo_detect_rows(ws, x, FO_U8, 16, p, NULL, NULL) == FO_OK);
            CHECK(fo_memory(fo).allocations == warm);
            CHECK(w == 0 || memcmp(first, score, sizeof first) == 0);
            fo_close(fo);
        }
}

/* ---- a flow whose density is known ----------------------------------------------------------- */

/* Four couplings that were never trained are the identity: for x ~ N(0, I) all that a flow says is
   known without it, -log p = |x|^2/2 + const. */
enum { DIM = 4 };

static fo_flow *identity(fo_context *fo) {
    return fo_flow_parse(fo, "input 4\n4* coupling mask=halves:% net=mlp hidden=8\n");
}

static fo_data *normal_data(fo_context *fo, uint64_t seed, int64_t n, double shift,
                            fo_real **rows) {
    int64_t i;
    *rows = (fo_real *)malloc(BYTES(n * DIM));
    fo_random_normal(seed, 99, 0, n * DIM, *rows);
    for (i = 0; i < n * DIM; i++)
        (*rows)[i] += (fo_real)shift;
    return fo_data_view(fo, *rows, REAL_TYPE, n, shape_of(DIM, 1, 1));
}

static double share(const double *p, int64_t n, double limit) {
    int64_t i, k = 0;
    for (i = 0; i < n; i++)
        k += p[i] <= limit;
    return (double)k / (double)n;
}

/* Kolmogorov and Smirnov's distance of p-values, whole multiples of 1/(ranks + 1), from uniform. */
static double kolmogorov(const double *p, int64_t n, int ranks) {
    double most = 0;
    int    k;
    for (k = 1; k <= ranks; k++) {
        const double at = (double)k / (ranks + 1), off = fabs(share(p, n, at + 1e-9) - at);
        most = off > most ? off : most;
    }
    return most;
}

static void test_p_values(void) {
    enum { CALIBRATION = 800, N = 4000 };
    const double  alphas[3] = {0.01, 0.05, 0.1};
    fo_context   *fo = open_with(1, FO_SIMD_AUTO, 1);
    fo_flow      *flow = identity(fo);
    fo_real      *a, *b, *c;
    fo_data      *calibration = normal_data(fo, 1, CALIBRATION, 0, &a);
    fo_data      *in = normal_data(fo, 2, N, 0, &b), *out = normal_data(fo, 3, N, 2, &c);
    fo_workspace *ws;
    double       *p = (double *)malloc(3 * N * sizeof *p), *t = p + N, *score = p + 2 * N;
    const struct fo__detector *d;
    int64_t       i, j;
    int           k;
    CHECK(fo_calibrate(flow, calibration, NULL) == FO_OK);
    ws = fo_workspace_create(fo, flow, 64);
    d  = flow->detector;
    CHECK(d && d->n_map == 400 && d->n_rank == 400 && d->n_scores == 1);
    CHECK(strcmp(fo_detector_score(flow, 0), "likelihood") == 0 && !fo_detector_score(flow, 1));
    CHECK(fo_detect(ws, in, 0, N, p, t, score) == FO_OK);
    for (i = 0; i < N; i++) { /* the definition, and the density that is known */
        double square = 0;
        int    above  = 0;
        for (j = 0; j < DIM; j++)
            square += (double)b[i * DIM + j] * (double)b[i * DIM + j];
        if (i < 200)
            CHECK_NEAR(t[i], square / 2 + (double)DIM * 0.9189385332046727,
                       IS_DOUBLE ? 1e-12 : 1e-5);
        CHECK(score[i] == t[i]);
        for (j = 0; j < d->n_rank; j++)
            above += d->rank[j] >= t[i];
        CHECK(p[i] == (1.0 + above) / (double)(d->n_rank + 1));
    }
    for (k = 0; k < 3; k++) { /* false alarms, and the power that goes with them */
        double spread = sqrt(alphas[k] * (1 - alphas[k]) * (1.0 / (double)N + 1.0 / 400));
        CHECK(fabs(share(p, N, alphas[k]) - alphas[k]) < 3 * spread + 1.0 / 401);
    }
    /* two samples, 1 in 100 */
    CHECK(kolmogorov(p, N, 400) < 1.628 * sqrt(1.0 / (double)N + 1.0 / 400));
    CHECK(fo_detector_rank(flow, score, N, t, NULL) == FO_OK && memcmp(p, t, N * sizeof *p) == 0);
    score[5] = NAN;
    REFUSED(fo_detector_rank(flow, score, N, t, NULL),
            "score likelihood of sample 5 is not a number");
    CHECK(fo_detect(ws, out, 0, N, p, NULL, NULL) == FO_OK && share(p, N, 0.05) > 0.8);
    CHECK(kolmogorov(p, N, 400) > 0.7);
    /* anywhere, alone, from memory: the same */
    CHECK(fo_detect(ws, out, 77, 1, t, NULL, NULL) == FO_OK && t[0] == p[77]);
    CHECK(fo_detect_rows(ws, c + 78 * DIM, REAL_TYPE, 1, t, NULL, NULL) == FO_OK && t[0] == p[78]);
    free(a), free(b), free(c), free(p);
    fo_close(fo);
}

/* With confidence 0.9 the true rate of false alarms stays below alpha in 9 of 10 calibrations. */
static void test_confidence(void) {
    enum { N = 4000, RUNS = 100, CALIBRATION = 300 };
    fo_context   *fo = open_with(1, FO_SIMD_AUTO, 1);
    fo_flow      *flow = identity(fo);
    fo_real      *b;
    fo_data      *in = normal_data(fo, 2, N, 0, &b);
    fo_workspace *ws = fo_workspace_create(fo, flow, 0);
    double       *p = (double *)malloc(N * sizeof *p), limit;
    int           run, kept = 0;
    for (run = 0; run < RUNS; run++) {
        fo_real *a;
        fo_data *calibration = normal_data(fo, 100 + (uint64_t)run, CALIBRATION, 0, &a);
        CHECK(fo_calibrate(flow, calibration, NULL) == FO_OK);
        CHECK(fo_detector_limit(flow, 0.1, 0.9, &limit) == FO_OK);
        CHECK(fo_detect(ws, in, 0, N, p, NULL, NULL) == FO_OK);
        kept += share(p, N, limit) <= 0.1;
        fo_data_free(calibration);
        free(a);
    }
    CHECK(kept >= 85);
    CHECK(fo_detector_limit(flow, 0.001, 0, &limit) == FO_ERR_ARGUMENT);
    CHECK(strstr(fo_error(fo), "needs 999 calibration samples, there are 150") != NULL);
    free(b), free(p);
    fo_close(fo);
}

/* ---- files, and what is refused -------------------------------------------------------------- */

static void sum_features(const fo_score_input *in, double *f) {
    int64_t i;
    f[0] = 0;
    for (i = 0; i < fo_shape_count(in->shape); i++)
        f[0] += (double)in->x[i];
}

static void nan_features(const fo_score_input *in, double *f) {
    (void)in;
    f[0] = NAN;
}

static void test_detector_life(void) {
    const char *const  verdict[] = {"likelihood", "sum", "neighbour", "density-of-states"};
    const char *const  also[] = {"typicality", "layers", "normality", "gradient", "pca"};
    const char        *path = FILE_NAME("detector");
    fo_context        *fo = open_with(1, FO_SIMD_AUTO, 1);
    fo_flow           *flow = identity(fo), *loaded;
    fo_real           *a, *b;
    fo_data           *calibration = normal_data(fo, 1, 300, 0, &a);
    fo_data           *in = normal_data(fo, 2, 50, 0.5, &b);
    fo_score_kind      sum;
    fo_detector_desc   desc;
    fo_train_desc      train;
    double             p[2][50], t[2][50], made[4 * 50], all[2][5 * 50];
    int                i, k;
    memset(&sum, 0, sizeof sum);
    sum.name = "sum", sum.features = sum_features, sum.flags = FO_SCORE_TWO_SIDED | FO_SCORE_X;
    CHECK(fo_register_score(fo, &sum) == FO_OK);
    memset(&desc, 0, sizeof desc);
    desc.scores = verdict, desc.n_scores = 4, desc.also = also, desc.n_also = 5;
    for (k = 0; k < 2; k++) {
        fo_workspace *ws = fo_workspace_create(fo, flow, 16);
        fo_workspace *other;
        desc.combine = k ? FO_COMBINE_FISHER : FO_COMBINE_MIN;
        CHECK(fo_calibrate(flow, calibration, &desc) == FO_OK);
        CHECK(fo_detect(ws, in, 0, 50, p[0], t[0], made) == FO_OK);
        CHECK(fo_detector_rank(flow, made, 50, p[1], t[1]) == FO_OK);
        CHECK(memcmp(p[0], p[1], sizeof p[0]) == 0 && memcmp(t[0], t[1], sizeof t[0]) == 0);
        CHECK(fo_scores(ws, in, 0, 50, also, 5, 0, all[0]) == FO_OK);
        CHECK(fo_save(flow, path) == FO_OK);
        loaded = fo_load_flow(fo, path);
        CHECK(loaded && fo_flow_detector(loaded).n_scores == 4 &&
              fo_flow_detector(loaded).combine == desc.combine && !fo_flow_detector(loaded).stale);
        other = fo_workspace_create(fo, loaded, 50);
        CHECK(fo_detect(other, in, 0, 50, p[1], t[1], NULL) == FO_OK);
        CHECK(fo_scores(other, in, 0, 50, also, 5, 0, all[1]) == FO_OK);
        CHECK(memcmp(p[0], p[1], sizeof p[0]) == 0 && memcmp(t[0], t[1], sizeof t[0]) == 0);
        CHECK(memcmp(all[0], all[1], sizeof all[0]) == 0);
        for (i = 0; i < 50; i++) /* the statistic is made of the p-values of the map */
            CHECK(t[0][i] > 0);
    }
    if (fo_failed(fo))
        printf("%s\n", fo_error(fo));
    { /* trained on: refused, in memory and from a file; refitted: well again; dropped: gone */
        fo_workspace *ws = fo_workspace_create(fo, loaded, 0);
        memset(&train, 0, sizeof train);
        train.steps = 1;
        CHECK(fo_train(loaded, calibration, &train) == FO_OK);
        CHECK(fo_flow_detector(loaded).stale == 1);
        CHECK(fo_detect(ws, in, 0, 50, p[0], NULL, NULL) == FO_ERR_ARGUMENT);
        CHECK(strstr(fo_error(fo), "calibrate again") != NULL);
        fo_clear_error(fo);
        CHECK(fo_score(ws, in, 0, 50, "typicality", p[0]) == FO_ERR_ARGUMENT);
        fo_clear_error(fo);
        CHECK(fo_score(ws, in, 0, 50, "likelihood", p[0]) == FO_OK);
        CHECK(fo_calibrate(loaded, calibration, NULL) == FO_OK);
        if (fo_failed(fo))
            printf("%s\n", fo_error(fo));
        CHECK(!fo_flow_detector(loaded).stale);
        CHECK(fo_detect(ws, in, 0, 50, p[0], NULL, NULL) == FO_OK);
        fo_drop_detector(loaded);
        CHECK(fo_flow_detector(loaded).ranked == 0 && !fo_detector_score(loaded, 0));
        CHECK(fo_detect(ws, in, 0, 50, p[0], NULL, NULL) == FO_ERR_ARGUMENT);
        CHECK(strstr(fo_error(fo), "no detector") != NULL);
        fo_clear_error(fo);
    }
    { /* bad input: one clear line, and the old detector stays */
        const char *const bad[] = {"complexity"}, *const unknown[] = {"likelyhood"};
        const char *const nan[] = {"nan"}, *const twice[] = {"latent", "latent"};
        fo_score_kind     kind = sum;
        fo_data          *one = fo_data_view(fo, a, REAL_TYPE, 1, shape_of(DIM, 1, 1));
        fo_data          *other = fo_data_view(fo, a, REAL_TYPE, 10, shape_of(2, 1, 1));
        const struct fo__detector *before = flow->detector;
        double            limit;
        kind.name = "nan", kind.features = nan_features;
        CHECK(fo_register_score(fo, &kind) == FO_OK);
        kind.name = "latent";
        CHECK(fo_register_score(fo, &kind) == FO_ERR_ARGUMENT);
        memset(&desc, 0, sizeof desc);
        desc.n_scores = 1;
        desc.scores   = bad;
        CHECK(fo_calibrate(flow, calibration, &desc) == FO_ERR_ARGUMENT);
        desc.scores = unknown;
        CHECK(fo_calibrate(flow, calibration, &desc) == FO_ERR_ARGUMENT);
        desc.scores = nan;
        fo_clear_error(fo);
        CHECK(fo_calibrate(flow, calibration, &desc) == FO_ERR_NUMERIC);
        CHECK(strstr(fo_error(fo), "score nan of calibration sample") != NULL);
        desc.scores = twice, desc.n_scores = 2;
        CHECK(fo_calibrate(flow, calibration, &desc) == FO_ERR_ARGUMENT);
        CHECK(fo_calibrate(flow, one, NULL) == FO_ERR_ARGUMENT);
        CHECK(fo_calibrate(flow, other, NULL) == FO_ERR_SHAPE);
        CHECK(fo_calibrate(NULL, other, NULL) == FO_ERR_ARGUMENT);
        CHECK(fo_detector_limit(flow, 1.5, 0, &limit) == FO_ERR_ARGUMENT);
        CHECK(flow->detector == before);
        fo_clear_error(fo);
    }
    remove(path);
    free(a), free(b);
    fo_close(fo);
}

/* ratio is the difference of two flows' log_prob; gradient that of finite differences. */
static void test_background_and_gradient(void) {
    const char *const   names[] = {"ratio"}, *const gradient[] = {"gradient"};
    fo_context         *fo = open_with(1, FO_SIMD_AUTO, 1);
    fo_flow            *flow = identity(fo), *other = fo_flow_parse(fo, "input 4\nactnorm\n");
    fo_flow            *wrong = fo_flow_parse(fo, "input 3\nactnorm\n");
    fo_workspace       *ws = fo_workspace_create(fo, flow, 8), *back;
    fo_real            *a, *values;
    const fo_real      *params;
    fo_data            *data = normal_data(fo, 1, 20, 0, &a);
    fo__fitted          use;
    struct fo__score_room *room;
    double              ratio[20], p[20], q[20], out[4], up, down;
    int64_t             count, j;
    int                 i, layer;
    CHECK(fo_score(ws, data, 0, 20, "ratio", ratio) == FO_ERR_ARGUMENT);
    CHECK(strstr(fo_error(fo), "fo_workspace_background") != NULL);
    fo_clear_error(fo);
    CHECK(fo_workspace_background(ws, wrong) == FO_ERR_SHAPE);
    fo_clear_error(fo);
    params = fo_params(other, &count);
    values = (fo_real *)malloc(BYTES(count));
    for (j = 0; j < count; j++)
        values[j] = params[j] + (fo_real)0.1 * (fo_real)(j + 1);
    CHECK(fo_set_params(other, values, count) == FO_OK);
    free(values);
    CHECK(fo_workspace_background(ws, other) == FO_OK);
    back = fo_workspace_create(fo, other, 0);
    CHECK(fo_scores(ws, data, 0, 20, names, 1, 0, ratio) == FO_OK);
    CHECK(fo_log_prob(ws, data, 0, 20, 0, p) == FO_OK);
    CHECK(fo_log_prob(back, data, 0, 20, 0, q) == FO_OK);
    for (i = 0; i < 20; i++)
        CHECK_NEAR(ratio[i], q[i] - p[i], 1e-12);
    /* gradients, of weights at random */
    params = fo_params(flow, &count);
    values = (fo_real *)malloc(BYTES(count));
    fo_random_normal(3, 3, 0, count, values);
    for (j = 0; j < count; j++)
        values[j] *= (fo_real)0.3;
    CHECK(fo_set_params(flow, values, count) == FO_OK);
    CHECK(fo__score_find(fo, flow, gradient[0], &use) == FO_OK);
    CHECK(fo__score_room_of(ws, &use, 1, FO_SCORE_GRADIENT) == FO_OK);
    room = ws->scores;
    CHECK(fo__score_gradient(room->backward, data, 7, 0, out) == FO_OK);
    for (layer = 0; layer < 4 && IS_DOUBLE; layer++) {
        double square = 0;
        for (i = 0; i < fo_param_count(flow); i++) {
            fo_param_info info = fo_param_at(flow, i);
            for (j = info.offset; j < info.offset + info.count && atoi(info.name) == layer; j++) {
                const fo_real keep = values[j];
                values[j] = keep + (fo_real)1e-6, fo_set_params(flow, values, count);
                fo_log_prob(ws, data, 7, 1, 0, &up);
                values[j] = keep - (fo_real)1e-6, fo_set_params(flow, values, count);
                fo_log_prob(ws, data, 7, 1, 0, &down);
                values[j] = keep;
                square += (up - down) / 2e-6 * (up - down) / 2e-6;
            }
        }
        CHECK_NEAR(out[layer], log(square), 1e-5);
    }
    free(values), free(a);
    fo_close(fo);
}

static void test_select_and_stream(void) {
    fo_context   *fo = open_with(1, FO_SIMD_AUTO, 1);
    unsigned char x[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, y[6] = {3, 1, 2, 1, 3, 3};
    fo_data      *data = fo_data_view(fo, x, FO_U8, 6, shape_of(2, 1, 1));
    fo_data      *labels = fo_data_view(fo, y, FO_U8, 6, shape_of(1, 1, 1));
    fo_data      *few = fo_data_view(fo, y, FO_U8, 5, shape_of(1, 1, 1)), *chosen;
    const int     classes[2] = {1, 2}, absent[1] = {7};
    fo_flow      *flow = identity(fo);
    fo_martingale m;
    fo_real      *a;
    fo_data      *calibration = normal_data(fo, 1, 600, 0, &a);
    double        t[300];
    fo_workspace *ws;
    int           i;
    chosen = fo_data_select(data, labels, classes, 2, 1);
    CHECK(fo_data_count(chosen) == 3 && memcmp(fo_data_row(chosen, 0), "\2\3\4\5\6\7", 6) == 0);
    chosen = fo_data_select(data, labels, classes, 2, 0);
    CHECK(fo_data_count(chosen) == 3 && memcmp(fo_data_row(chosen, 1), "\10\11\12\13", 4) == 0);
    CHECK(fo_data_select(data, labels, absent, 1, 1) == NULL);
    CHECK(strstr(fo_error(fo), "class 7 does not occur") != NULL);
    fo_clear_error(fo);
    CHECK(fo_data_select(data, few, classes, 2, 1) == NULL);
    CHECK(strstr(fo_error(fo), "6 samples, 5 labels") != NULL);
    fo_clear_error(fo);
    CHECK(fo_data_row(data, 6) == NULL && fo_data_row(NULL, 0) == NULL);
    /* the stream of a detector */
    CHECK(fo_detector_martingale(flow, 0, &m) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    CHECK(fo_calibrate(flow, calibration, NULL) == FO_OK);
    CHECK(fo_detector_martingale(flow, 0, &m) == FO_OK && m.capital == 1);
    ws = fo_workspace_create(fo, flow, 0);
    CHECK(fo_detect(ws, calibration, 0, 300, NULL, t, NULL) == FO_OK);
    for (i = 0; i < 300; i++)
        fo_martingale_add(&m, t[i]);
    CHECK(m.highest < 20);
    for (i = 0; i < 50; i++)
        fo_martingale_add(&m, t[i] + 10);
    CHECK(m.highest >= 20);
    free(a);
    fo_close(fo);
}

/* A message names the sample by its number in the data; what a workspace had for scores goes with
   it; a failed recalibration leaves the detector valid. */
static void test_left_behind(void) {
    const char *const names[] = {"ratio", "gradient"}, *const nan[] = {"nan"};
    fo_context       *fo = open_with(1, FO_SIMD_AUTO, 1);
    fo_flow          *flow = identity(fo);
    fo_real          *a;
    fo_data          *data = normal_data(fo, 1, 40, 0, &a);
    fo_data          *wrong = fo_data_view(fo, a, REAL_TYPE, 10, shape_of(2, 1, 1));
    fo_score_kind     kind;
    fo_detector_desc  desc;
    fo_workspace     *ws = fo_workspace_create(fo, flow, 8);
    double            x[40];
    size_t            now = 0;
    int               k;
    memset(&kind, 0, sizeof kind);
    kind.name = "nan", kind.features = nan_features;
    CHECK(fo_register_score(fo, &kind) == FO_OK);
    REFUSED(fo_scores(ws, data, 7, 3, nan, 1, 0, x), "score nan of sample 7 is not a number");
    memset(&desc, 0, sizeof desc);
    desc.scores = names, desc.n_scores = 2, desc.background = identity(fo);
    for (k = 0; k < 3; k++) {
        CHECK(fo_calibrate(flow, data, &desc) == FO_OK);
        CHECK(k == 0 || fo_memory(fo).now == now);
        now = fo_memory(fo).now;
    }
    CHECK(fo_recalibrate(flow, wrong, 10) == FO_ERR_SHAPE && !fo_flow_detector(flow).stale);
    free(a);
    fo_close(fo);
}

static fo_result life(heap *h, const char *path, int forgiving) {
    static const char *const verdict[] = {"likelihood", "layers"};
    static const char *const also[]    = {"pca", "latent"};
    static fo_real   rows[30 * DIM];
    fo_desc          desc;
    fo_context      *fo;
    fo_flow         *flow, *back;
    fo_data         *data;
    fo_detector_desc d;
    double           p[30];
    fo_result        worst = FO_OK;
    memset(&desc, 0, sizeof desc), memset(&d, 0, sizeof d);
    desc.realloc_fn = heap_realloc, desc.user = h;
    fo = fo_open(&desc);
    if (fo == NULL)
        return FO_ERR_MEMORY;
    fo_random_normal(1, 1, 0, 30 * DIM, rows);
    d.scores = verdict, d.n_scores = 2, d.also = also, d.n_also = 2;
    STAGE(flow = identity(fo));
    STAGE(data = fo_data_view(fo, rows, REAL_TYPE, 30, shape_of(DIM, 1, 1)));
    STAGE(fo_calibrate(flow, data, &d));
    STAGE(fo_save(flow, path));
    STAGE(back = fo_load_flow(fo, path));
    STAGE(fo_detect(fo_workspace_create(fo, back, 4), data, 0, 30, p, NULL, NULL));
    fo_close(fo);
    return worst;
}

int main(void) {
    test_estimates();
    test_every_score();
    test_views();
    test_warm_scores();
    test_p_values();
    test_confidence();
    test_detector_life();
    test_background_and_gradient();
    test_select_and_stream();
    test_left_behind();
    test_every_allocation(life, FILE_NAME("detector_memory"));
    return test_end();
}
