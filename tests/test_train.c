/* Training: golden runs, resuming, schedules, what goes wrong, and every allocation failing. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

static const char *const text = "input 1x4x4\ndequantize\nlogit alpha=0.05\n"
                                "3* coupling mask=checkerboard:% hidden=12 depth=2\n"
                                "additive mask=horizontal:1 hidden=5 bottleneck=2 act=tanh\n";

static unsigned char pixels[64 * 64];
static fo_data *make_data(fo_context *fo, int count, fo_shape shape) {
    int i;
    for (i = 0; i < COUNT(pixels); i++) {
        uint32_t r[4];
        fo_random_bits(8, 8, (uint64_t)i, r);
        pixels[i] = (unsigned char)(r[0] % 200 + (uint32_t)(i % 16) * 3);
    }
    return fo_data_view(fo, pixels, FO_U8, count, shape);
}

/* What a run may see and do; one of these is the user pointer of each fo_train. */
typedef struct watch {
    int         steps;            /* let so many through, then stop; 0: all of them */
    int         calls, reports, stop_report;
    double      spin;             /* seconds to waste in each step */
    fo_context *fo;
    int64_t     count;
    uint64_t    allocations;      /* as seen in the first step */
    int         grew;
    double      factor;           /* of the gradient; 0: leave it */
    int         zero, poison;     /* step whose gradient becomes nan */
    fo_progress last;
} watch;

static int on_gradients(void *user, fo_real *grad, int64_t count) {
    watch  *w = (watch *)user;
    double  start = fo_clock();
    int64_t i;
    w->count = count;
    if (++w->calls == 1)
        w->allocations = fo_memory(w->fo).allocations;
    w->grew |= fo_memory(w->fo).allocations != w->allocations;
    for (i = 0; i < count && (w->factor != 0 || w->zero); i++)
        grad[i] = w->zero ? 0 : (fo_real)w->factor * grad[i];
    if (w->poison == w->calls)
        grad[count / 2] = (fo_real)NAN;
    while (fo_clock() - start < w->spin) {}
    return w->steps && w->calls > w->steps;
}

static int on_progress(void *user, const fo_progress *progress) {
    watch *w = (watch *)user;
    w->last  = *progress;
    return ++w->reports == w->stop_report;
}

static fo_train_desc plain(watch *w, int64_t steps, int batch) {
    fo_train_desc d;
    memset(&d, 0, sizeof d);
    memset(w, 0, sizeof *w);
    d.steps = steps, d.batch = batch;
    d.progress = on_progress, d.gradients = on_gradients, d.user = w;
    return d;
}

/* ---- golden runs ----------------------------------------------------------------------------- */

static const double *golden(const fo_archive *a, const char *recipe, const char *name) {
    char            full[100];
    const fo_array *array;
    snprintf(full, sizeof full, "%s.%s", recipe, name);
    array = fo_archive_find(a, full);
    return array ? (const double *)array->values : NULL;
}

static void test_golden(void) {
    static const char *const recipes[] = {"adam", "adamw", "l2", "clip"};
    int r, i, step;
    for (r = 0; r < COUNT(recipes); r++) {
        fo_context    *fo   = open_with(123, FO_SIMD_AUTO, 1);
        fo_archive    *a    = fo_archive_open(fo, "tests/golden/train.safetensors");
        const fo_array *x   = a ? fo_archive_find(a, "x") : NULL;
        fo_flow       *flow = x ? fo_flow_parse(fo, fo_archive_note(a, "flowood.text")) : NULL;
        fo_data       *data;
        fo_train_desc  d;
        watch          w;
        double         worst = 0, loss = 0, norm = 0;
        fo_real       *values;
        int64_t        j;
        CHECK(flow != NULL);
        if (flow == NULL)
            return;
        data   = fo_data_view(fo, x->values, FO_U8, x->dim[0], fo_flow_shape(flow));
        values = weights_of(flow, NULL);
        for (i = 0; i < fo_param_count(flow); i++) {
            fo_param_info p    = fo_param_at(flow, i);
            const double *from = golden(a, "first", p.name);
            for (j = 0; j < p.count; j++)
                values[p.offset + j] = (fo_real)from[j];
        }
        d      = plain(&w, 1, 8);
        d.seed = 3, d.lr = 1e-2, d.clip = r == 3 ? 5 : -1;
        d.optimizer    = r == 1 ? FO_ADAMW : FO_ADAM;
        d.weight_decay = r == 1 || r == 2 ? 0.1 : 0;
        for (step = 0; step < 20; step++) { /* each call goes on where the last one stopped */
            d.steps = step + 1;
            CHECK(fo_train(flow, data, &d) == FO_OK);
            loss = fmax(loss, fabs(w.last.loss / golden(a, recipes[r], "loss")[step] - 1));
            norm = fmax(norm, fabs(w.last.grad_norm / golden(a, recipes[r], "norm")[step] - 1));
        }
        for (i = 0; i < fo_param_count(flow); i++) {
            fo_param_info p  = fo_param_at(flow, i);
            const double *to = golden(a, recipes[r], p.name);
            for (j = 0; j < p.count; j++)
                worst = fmax(worst, fabs((double)values[p.offset + j] - to[j]));
        }
        if (!(loss <= (IS_DOUBLE ? 1e-10 : 1e-5) && worst <= (IS_DOUBLE ? 1e-9 : 1e-4)))
            printf("%s: loss %g, norm %g, weights %g off\n", recipes[r], loss, norm, worst);
        CHECK(loss <= (IS_DOUBLE ? 1e-10 : 1e-5));
        CHECK(norm <= (IS_DOUBLE ? 1e-9 : 1e-4));
        CHECK(worst <= (IS_DOUBLE ? 1e-9 : 1e-4));
        fo_close(fo);
    }
}

/* ---- resuming -------------------------------------------------------------------------------- */

static long read_all(const char *path, char *bytes, size_t room) {
    FILE *file = fopen(path, "rb");
    long  n    = file ? (long)fread(bytes, 1, room, file) : -1;
    if (file)
        fclose(file);
    return n;
}

/* Four steps, a checkpoint and six more leave the same file as ten steps. */
static void test_resume(void) {
    static const char *const flows[] = {
        NULL, "input 16\nstandardize\n2* coupling mask=random:% hidden=7 act=softplus\n",
        "input 16\nnormalize\nwhiten\nsplit keep=6\n2* coupling mask=halves:% hidden=7\n"};
    static char bytes[2][400000];
    const char *path = FILE_NAME("resume");
    int         way, f;
    for (f = 0; f < COUNT(flows); f++)
        for (way = 0; way < 4; way++) {
            fo_context    *fo   = open_with(5, FO_SIMD_AUTO, 1);
            fo_flow       *flow = fo_flow_parse(fo, f ? flows[f] : text);
            fo_data       *data = make_data(fo, 50, fo_flow_shape(flow));
            fo_train_desc  d, again;
            fo_workspace  *ws;
            watch          w;
            double         lp[2][50];
            long           n[2];
            int            turn;
            for (turn = 0; turn < 2; turn++) {
                uint64_t before;
                fo_flow_free(flow);
                flow = fo_flow_parse(fo, f ? flows[f] : text);
                d    = plain(&w, 10, 16); /* 50 samples: batches reach over the ends of epochs */
                d.seed = 77, d.lr = 3e-3, d.clip = 20;
                d.ema      = way & 1 ? 0.9 : 0;
                d.schedule = way & 2 ? FO_COSINE : FO_CONSTANT;
                d.warmup   = way & 2 ? 6 : 0;
                d.weight_decay = way == 3 ? 0.01 : 0, d.optimizer = way == 3 ? FO_ADAMW : FO_ADAM;
                if (turn) {
                    w.steps = 4;
                    CHECK(fo_train(flow, data, &d) == FO_OK && fo_flow_steps(flow) == 4);
                    CHECK(fo_save(flow, path) == FO_OK);
                    fo_flow_free(flow);
                    flow = fo_load_flow(fo, path);
                    if (flow == NULL) {
                        printf("way %d: %s\n", way, fo_error(fo));
                        break;
                    }
                    CHECK(fo_flow_steps(flow) == 4);
                    CHECK(fo_flow_train_desc(flow).lr == 3e-3 && fo_flow_train_desc(flow).batch ==
                          16 && fo_flow_train_desc(flow).seed == 77);
                    memset(&again, 0, sizeof again); /* all the rest is as before */
                    again.steps = 10;
                    d           = again;
                }
                before = fo_memory(fo).now;
                CHECK(fo_train(flow, data, &d) == FO_OK && fo_flow_steps(flow) == 10);
                CHECK(turn == 0 || fo_memory(fo).now == before); /* workspaces are gone */
                ws = fo_workspace_create(fo, flow, 8);
                CHECK(fo_log_prob(ws, data, 0, 50, 0, lp[turn]) == FO_OK);
                fo_workspace_free(ws);
                CHECK(fo_save(flow, path) == FO_OK);
                n[turn] = read_all(path, bytes[turn], sizeof bytes[turn]);
            }
            CHECK(flow != NULL);
            if (flow == NULL) {
                fo_close(fo);
                continue;
            }
            CHECK(n[0] == n[1] && n[0] > 1000 && n[0] < (long)sizeof bytes[0]);
            CHECK(memcmp(bytes[0], bytes[1], (size_t)n[0]) == 0);
            CHECK(memcmp(lp[0], lp[1], sizeof lp[0]) == 0);
            flow = fo_load_flow(fo, path); /* and the model scores the same when read back */
            ws   = fo_workspace_create(fo, flow, 3);
            CHECK(fo_log_prob(ws, data, 0, 50, 0, lp[1]) == FO_OK);
            CHECK(memcmp(lp[0], lp[1], sizeof lp[0]) == 0);
            if (way & 1) { /* scoring used the moving average, which lags behind the weights */
                CHECK(flow->train.ema != NULL);
                memcpy(flow->train.ema, flow->values, (size_t)flow->params.size * sizeof(fo_real));
                CHECK(fo_log_prob(ws, data, 0, 50, 0, lp[1]) == FO_OK && lp[0][0] != lp[1][0]);
            } else
                CHECK(flow->train.ema == NULL);
            CHECK(fo_failed(fo) == FO_OK);
            fo_close(fo);
        }
    remove(path);
}

/* ---- steps: how long, how fast --------------------------------------------------------------- */

static void test_schedules(void) {
    enum { N = 12 };
    int way, k;
    for (way = 0; way < 5; way++) {
        fo_context *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow    *flow = fo_flow_parse(fo, text);
        fo_data    *data = make_data(fo, 24, fo_flow_shape(flow));
        for (k = 0; k < N; k++) {
            watch         w;
            fo_train_desc d = plain(&w, N, 8);
            double        want = 0.02;
            w.steps = 1, d.lr = 0.02;
            if (way == 1 || way == 4)
                d.schedule = FO_COSINE, want *= 0.5 + 0.5 * cos(3.14159265358979 * k / N);
            if (way == 2)
                d.schedule = FO_STEP, d.step_every = 5, want *= k < 5 ? 1 : k < 10 ? 0.1 : 0.01;
            if (way == 3)
                d.schedule = FO_STEP, d.step_every = 4, d.step_factor = 0.5,
                want *= k < 4 ? 1 : k < 8 ? 0.5 : 0.25;
            if (way == 4)
                d.steps = 0, d.epochs = 4; /* 12 steps */
            if (way == 0 || way == 4)
                d.warmup = 5, want *= k < 5 ? (k + 1) / 5.0 : 1;
            CHECK(fo_train(flow, data, &d) == FO_OK && fo_flow_steps(flow) == k + 1);
            CHECK_NEAR(w.last.lr / want, 1, 1e-9);
            CHECK(w.last.steps == N && w.last.step == k + 1 && w.last.last == 1);
        }
        fo_close(fo);
    }
}

static void test_stops(void) {
    static const struct { int64_t steps; double epochs, seconds; int hook, report; int64_t want; }
        ways[] = {{7, 0, 0, 0, 0, 7},   {0, 0, 0, 0, 0, 3},  {0, 2.5, 0, 0, 0, 7},
                  {2, 2.5, 0, 0, 0, 2}, {9, 1, 0, 0, 0, 3},  {9, 0, 0, 4, 0, 4},
                  {9, 0, 0, 0, 2, 2},   {0, 0, 0.15, 0, 0, 2}, {0, 0, 1e-12, 0, 0, 0},
                  {3, 0, 1e6, 0, 0, 3}};
    int i;
    for (i = 0; i < COUNT(ways); i++) {
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, text);
        fo_data      *data = make_data(fo, 20, fo_flow_shape(flow));
        watch         w;
        fo_train_desc d = plain(&w, ways[i].steps, 8);
        d.epochs = ways[i].epochs, d.seconds = ways[i].seconds;
        w.steps = ways[i].hook, w.stop_report = ways[i].report;
        w.fo    = fo;
        if (ways[i].report || ways[i].seconds == 0.15)
            w.spin = 0.11; /* slow enough that every step reports */
        CHECK(fo_train(flow, data, &d) == FO_OK);
        if (ways[i].seconds == 0.15)
            CHECK(fo_flow_steps(flow) >= 1 && fo_flow_steps(flow) <= 2);
        else
            CHECK(fo_flow_steps(flow) == ways[i].want);
        CHECK(w.last.last && w.last.step == fo_flow_steps(flow) && !w.grew);
        CHECK(w.last.step == 0 || (w.last.loss > 0 && w.last.rate > 0 && w.last.elapsed > 0));
        CHECK_NEAR(w.last.epoch, (double)w.last.step * 8 / 20, 1e-12);
        if (ways[i].want)
            CHECK_NEAR(w.last.bpd, w.last.loss / 16 / 0.69314718055994531, 1e-9);
        else
            CHECK(w.last.loss != w.last.loss && w.last.bpd != w.last.bpd);
        fo_close(fo);
    }
}

/* Training learns: the loss falls, and the samples of the data become likelier. */
static void test_learns(void) {
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow = fo_flow_parse(fo, text);
    fo_data      *data = make_data(fo, 64, fo_flow_shape(flow));
    fo_workspace *ws   = fo_workspace_create(fo, flow, 64);
    double        lp[2][64], gain = 0;
    watch         w;
    fo_train_desc d = plain(&w, 150, 32);
    int           i;
    CHECK(fo_log_prob(ws, data, 0, 64, 0, lp[0]) == FO_OK);
    w.fo = fo, d.lr = 3e-3;
    CHECK(fo_train(flow, data, &d) == FO_OK);
    CHECK(!w.grew && w.calls == 150 && w.count == flow->params.size); /* no step allocates */
    CHECK(fo_log_prob(ws, data, 0, 64, 0, lp[1]) == FO_OK);
    for (i = 0; i < 64; i++)
        gain += (lp[1][i] - lp[0][i]) / 64;
    CHECK(gain > 1);
    fo_close(fo);
}

/* The moving average forgets its start faster; scoring uses it, in old workspaces too. */
static void test_moving_average(void) {
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow = fo_flow_parse(fo, text);
    fo_data      *data = make_data(fo, 20, fo_flow_shape(flow));
    fo_workspace *ws   = fo_workspace_create(fo, flow, 8);
    double        average[4000], worst = 0, lp[3][20];
    int64_t       i, t, n = 0;
    fo_real      *values = weights_of(flow, &n);
    for (i = 0; i < n; i++)
        average[i] = (double)values[i];
    CHECK(n < 4000 && fo_log_prob(ws, data, 0, 20, 0, lp[0]) == FO_OK);
    for (t = 1; t <= 12; t++) {
        watch         w;
        fo_train_desc d     = plain(&w, t, 8);
        double        decay = fmin(0.5, (double)t / (double)(t + 9));
        d.ema = 0.5, d.lr = 0.01;
        CHECK(fo_train(flow, data, &d) == FO_OK);
        for (i = 0; i < n; i++)
            average[i] = decay * average[i] + (1 - decay) * (double)values[i];
    }
    for (i = 0; i < n && flow->train.ema; i++)
        worst = fmax(worst, fabs(average[i] - (double)flow->train.ema[i]));
    CHECK(flow->train.ema != NULL && worst < (IS_DOUBLE ? 1e-14 : 1e-6));
    CHECK(fo_log_prob(ws, data, 0, 20, 0, lp[1]) == FO_OK && lp[0][0] != lp[1][0]);
    ws = fo_workspace_create(fo, flow, 8);
    CHECK(fo_log_prob(ws, data, 0, 20, 0, lp[2]) == FO_OK);
    CHECK(memcmp(lp[1], lp[2], sizeof lp[1]) == 0);
    {
        watch         w;
        fo_train_desc d = plain(&w, 13, 8);
        d.ema = d.weight_decay = -1; /* none from here on, whatever it was */
        flow->train.desc.weight_decay = 0.5;
        CHECK(fo_train(flow, data, &d) == FO_OK && flow->train.ema == NULL);
        d = fo_flow_train_desc(flow);
        CHECK(d.ema == 0 && d.weight_decay == 0);
        CHECK(fo_log_prob(ws, data, 0, 20, 0, lp[0]) == FO_OK && lp[0][0] != lp[1][0]);
    }
    fo_close(fo);
}

/* ---- the gradient's hook --------------------------------------------------------------------- */

static void test_hook(void) {
    static const double factor[] = {1, 2, -1};
    double  norm[3];
    fo_real after[3][4000], first[4000];
    int     i;
    int64_t j, n = 0;
    for (i = 0; i < 4; i++) {
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, text);
        fo_data      *data = make_data(fo, 20, fo_flow_shape(flow));
        watch         w;
        fo_train_desc d = plain(&w, 1, 8);
        fo_real      *values = weights_of(flow, &n);
        memcpy(first, values, (size_t)n * sizeof *first);
        d.clip = -1;
        w.factor = i < 3 ? factor[i] : 0, w.zero = i == 3;
        CHECK(n < 4000 && fo_train(flow, data, &d) == FO_OK);
        if (i == 3) {
            CHECK(memcmp(first, values, (size_t)n * sizeof *first) == 0);
            CHECK(w.last.grad_norm == 0);
        } else {
            memcpy(after[i], values, (size_t)n * sizeof *first);
            norm[i] = w.last.grad_norm;
            CHECK(memcmp(first, values, (size_t)n * sizeof *first) != 0);
        }
        fo_close(fo);
    }
    CHECK_NEAR(norm[1] / norm[0], 2, 1e-6);
    for (j = 0; j < n; j++) /* Adam's first step has the gradient's sign and the size lr */
        if (after[0][j] != first[j]) {
            CHECK(fabs((double)(after[0][j] - first[j])) < 1.001e-3);
            CHECK((after[0][j] > first[j]) != (after[2][j] > first[j]));
        }
}

static void test_clip(void) { /* the first moment is a tenth of the clipped gradient */
    static const double clip[] = {-1, 0, 1e6, 0.5};
    int i;
    for (i = 0; i < COUNT(clip); i++) {
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, text);
        watch         w;
        fo_train_desc d   = plain(&w, 1, 8);
        double        sum = 0, want;
        int64_t       j;
        d.clip = clip[i], w.factor = 1000;
        CHECK(fo_train(flow, make_data(fo, 20, fo_flow_shape(flow)), &d) == FO_OK);
        for (j = 0; j < flow->params.size; j++)
            sum += (double)flow->train.m[j] * (double)flow->train.m[j];
        CHECK(w.last.grad_norm > 100);
        want = i == 1 ? 100 : i == 3 ? 0.5 : w.last.grad_norm; /* 0: the default */
        CHECK_NEAR(sqrt(sum) / (0.1 * want), 1, 1e-5);
        fo_close(fo);
    }
}

/* ---- numbers that are not finite ------------------------------------------------------------- */

static void test_nan(void) {
    static fo_real rows[20][6];
    const char    *path = FILE_NAME("nan");
    fo_flow       *back;
    int            way, i;
    int64_t        j;
    for (i = 0; i < 120; i++) {
        fo_random_uniform(3, 3, (uint64_t)i, 1, &rows[i / 6][i % 6]);
        rows[i / 6][i % 6] = (fo_real)(0.1 + 0.8 * (double)rows[i / 6][i % 6]);
    }
    for (way = 0; way < 4; way++) { /* a bad sample, then a bad gradient; stop, then skip */
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, "input 6\nlogit\n"
                                               "2* coupling mask=halves:% hidden=5");
        fo_data      *data = fo_data_view(fo, rows, REAL_TYPE, 20, shape_of(6, 1, 1));
        watch         w;
        fo_train_desc d    = plain(&w, 5, 4);
        fo_real      *values;
        int           finite = 1;
        rows[13][2] = way < 2 ? 30 : (fo_real)0.5; /* outside of what logit takes */
        w.poison    = way < 2 ? 0 : 3;
        d.on_nan    = way % 2 ? FO_NAN_SKIP : FO_NAN_STOP;
        if (way % 2) {
            CHECK(fo_train(flow, data, &d) == FO_OK && fo_flow_steps(flow) == 5);
            CHECK(w.last.skipped == 1 && flow->train.skipped == 1);
            CHECK(fo_save(flow, path) == FO_OK);
            CHECK((back = fo_load_flow(fo, path)) != NULL && back->train.skipped == 1);
            remove(path);
        } else {
            CHECK(fo_train(flow, data, &d) == FO_ERR_NUMERIC && fo_flow_steps(flow) < 5);
            CHECK(way == 2 || (strstr(fo_error(fo), "sample 13") &&
                               strstr(fo_error(fo), "layer 0 (logit")));
            CHECK(way == 0 || (strstr(fo_error(fo), "step 2") &&
                               strstr(fo_error(fo), "of parameter 2.")));
            fo_clear_error(fo);
        }
        values = weights_of(flow, NULL);
        for (j = 0; j < flow->params.size; j++)
            finite &= values[j] - values[j] == 0 && flow->train.m[j] - flow->train.m[j] == 0;
        CHECK(finite);
        fo_close(fo);
    }
}

/* ---- measured once --------------------------------------------------------------------------- */

static void test_standardize(void) {
    static fo_real rows[100][4];
    fo_context    *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow       *flow = fo_flow_parse(fo, "input 4\nstandardize\n"
                                            "coupling mask=halves:0 hidden=3");
    fo_data       *data = fo_data_view(fo, rows, REAL_TYPE, 100, shape_of(4, 1, 1));
    double         m[4] = {0, 0, 0, 0}, v[4] = {0, 0, 0, 0}, lp[100];
    fo_real        measured[13];
    watch          w;
    fo_train_desc  d = plain(&w, 1, 16);
    int            i, j;
    for (i = 0; i < 100; i++) {
        fo_random_normal(3, 3, (uint64_t)(4 * i), 4, rows[i]);
        rows[i][0] = rows[i][0] * 5 + 100, rows[i][1] = rows[i][1] * (fo_real)0.01 - 2;
        rows[i][2] = 7; /* constant: no scale is known */
        for (j = 0; j < 4; j++)
            m[j] += (double)rows[i][j] / 100;
    }
    for (i = 0; i < 400; i++)
        v[i % 4] += pow((double)rows[i / 4][i % 4] - m[i % 4], 2) / 100;
    CHECK(fo_train(flow, data, &d) == FO_OK);
    for (j = 0; j < 4; j++) {
        CHECK_NEAR(flow->buffer_values[j], m[j], 1e-6);
        CHECK_NEAR(flow->buffer_values[4 + j], j == 2 ? 0 : sqrt(v[j]), 1e-5);
    }
    CHECK(flow->buffer_values[12] == 1); /* behind mean, std and what float took off mean */
    memcpy(measured, flow->buffer_values, sizeof measured);
    rows[0][0] = 1e4, d.steps = 2; /* not again on other data */
    CHECK(fo_train(flow, data, &d) == FO_OK);
    CHECK(memcmp(measured, flow->buffer_values, sizeof measured) == 0);
    CHECK(fo_log_prob(fo_workspace_create(fo, flow, 9), data, 0, 100, 0, lp) == FO_OK);
    fo_close(fo);
}

/* A flow on these rows whose couplings stay the identity, and log p of each row. */
static fo_flow *standardized(fo_context *fo, const double *rows, double *lp, int n) {
    fo_flow      *flow = fo_flow_parse(fo, "input 4\nstandardize\ncoupling mask=halves:0 hidden=3");
    fo_data      *data = fo_data_view(fo, rows, FO_F64, n, shape_of(4, 1, 1));
    watch         w;
    fo_train_desc d = plain(&w, 1, 16);
    d.lr = 1e-30;
    CHECK(fo_train(flow, data, &d) == FO_OK);
    CHECK(fo_log_prob(fo_workspace_create(fo, flow, 9), data, 0, n, 0, lp) == FO_OK);
    return flow;
}

/* An offset of float64 data changes nothing; neighbours far from zero keep their scale. */
static void test_standardize_offset(void) {
    static double rows[100][4], far[100][4], lp[100], far_lp[100];
    fo_context   *fo = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow;
    fo_real       r[4];
    int           i, j;
    for (i = 0; i < 100; i++) {
        fo_random_normal(3, 3, (uint64_t)(4 * i), 4, r);
        for (j = 0; j < 4; j++) /* eighths, so that both data sets are exact */
            rows[i][j] = floor((double)r[j] * 800) / 8, far[i][j] = rows[i][j] + (j ? 1e6 : -1e9);
        rows[i][3] = far[i][3] = i % 2 ? 1e9 + 1000 : 1e9;
    }
    standardized(fo, rows[0], lp, 100);
    flow = standardized(fo, far[0], far_lp, 100);
    for (i = 0; i < 100; i++)
        CHECK_NEAR(far_lp[i], lp[i], IS_DOUBLE ? 1e-9 : 1e-6);
    CHECK_NEAR(flow->buffer_values[4 + 3], 500, 1e-6); /* the deviation of {1e9, 1e9 + 1000} */
    CHECK(fo_flow_constants(flow, NULL) == 0);
    fo_close(fo);
}

/* A column that never changes in training: samples as before stay as likely as any, one that
   differs there is less likely, by a number that makes sense, and comes back from decode. */
static void test_standardize_constant(void) {
    static double   rows[200][4], odd[4][4], lp[200], odd_lp[4];
    static const double other[4] = {8, 0, -1e4, 1e30};
    fo_context     *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow        *flow = fo_flow_parse(fo, "input 4\nstandardize\n"
                                             "4* coupling mask=halves:% hidden=16");
    fo_data        *data = fo_data_view(fo, rows, FO_F64, 200, shape_of(4, 1, 1));
    fo_data        *view = fo_data_view(fo, odd, FO_F64, 4, shape_of(4, 1, 1));
    fo_workspace   *ws;
    unsigned char   constant[4];
    fo_real         r[4], z[16], back[16];
    watch           w;
    fo_train_desc   d = plain(&w, 400, 32);
    double          mean = 0;
    int             i, j;
    for (i = 0; i < 200; i++) {
        fo_random_normal(3, 3, (uint64_t)(4 * i), 4, r);
        for (j = 0; j < 4; j++)
            rows[i][j] = j == 2 ? 7 : (double)r[j];
    }
    for (i = 0; i < 4; i++)
        memcpy(odd[i], rows[i], sizeof odd[i]), odd[i][2] = other[i];
    d.lr = 1e-2; /* long and fast enough to blow up what is not held */
    CHECK(fo_train(flow, data, &d) == FO_OK);
    CHECK(fo_flow_constants(flow, constant) == 1);
    CHECK(constant[2] == 1 && constant[0] + constant[1] + constant[3] == 0);
    ws = fo_workspace_create(fo, flow, 9);
    CHECK(fo_log_prob(ws, data, 0, 200, 0, lp) == FO_OK);
    CHECK(fo_log_prob(ws, view, 0, 4, 0, odd_lp) == FO_OK);
    for (i = 0; i < 200; i++)
        mean += lp[i] / 200;
    for (i = 0; i < 4; i++) {
        CHECK(odd_lp[i] < mean - 4 && odd_lp[i] > mean - (other[i] > 1e5 ? 50000 : 1000));
    }
    CHECK(fo_encode(ws, view, 0, 3, 0, z) == FO_OK && fo_decode(ws, z, 3, back, NULL) == FO_OK);
    for (i = 0; i < 3; i++)
        CHECK_NEAR(back[4 * i + 2], other[i], IS_DOUBLE ? 1e-9 : 1e-3);
    fo_close(fo);
}

/* Negative samples, fewer and elsewhere, are not measured. */
static void test_standardize_negative(void) {
    static double rows[40][2], ood[3][2] = {{1e5, 1e5}, {1e5, 1e5}, {1e5, 1e5}};
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow = fo_flow_parse(fo, "input 2\nstandardize\ncoupling mask=halves:0 hidden=3");
    watch         w;
    fo_train_desc d = plain(&w, 1, 8);
    int           i;
    for (i = 0; i < 80; i++)
        rows[i / 2][i % 2] = i / 2 % 2 ? 3 : 5;
    d.negative = fo_data_view(fo, ood, FO_F64, 3, shape_of(2, 1, 1));
    CHECK(fo_train(flow, fo_data_view(fo, rows, FO_F64, 40, shape_of(2, 1, 1)), &d) == FO_OK);
    for (i = 0; i < 2; i++) {
        CHECK_NEAR(flow->buffer_values[i], 4, 1e-6);
        CHECK_NEAR(flow->buffer_values[2 + i], 1, 1e-6);
    }
    fo_close(fo);
}

/* Numbers that no flow can use are the data's fault, and the message says so. */
static void test_huge(void) {
    static const char *const texts[] = {"input 2\ncoupling mask=halves:0 hidden=3\n",
                                        "input 2\nstandardize\ncoupling mask=halves:0 hidden=3\n"};
    static double rows[40][2];
    int           i, k;
    for (k = 0; k < 4; k++) {
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, texts[k % 2]);
        fo_data      *data = fo_data_view(fo, rows, FO_F64, 40, shape_of(2, 1, 1));
        watch         w;
        fo_train_desc d = plain(&w, 1, 40);
        for (i = 0; i < 80; i++)
            rows[i / 2][i % 2] = i % 7 * (k < 2 ? 1e200 : 1e30);
        if (k == 3 || (k == 2 && IS_DOUBLE)) { /* standardize makes them ordinary numbers */
            CHECK(fo_train(flow, data, &d) == FO_OK);
        } else {
            CHECK(fo_train(flow, data, &d) == FO_ERR_NUMERIC);
            CHECK(strstr(fo_error(fo), "scale") || strstr(fo_error(fo), "the data have 1e+200"));
            CHECK(strstr(fo_error(fo), "learning rate") == NULL);
        }
        fo_close(fo);
    }
}

/* ---- the same bits --------------------------------------------------------------------------- */

/* Trains four steps; the weights come back in a malloc, the memory it took in *peak. */
static fo_real *train_once(int threads, double memory_mb, int held_out, size_t *peak, int64_t *n) {
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, threads);
    fo_flow      *flow = fo_flow_parse(fo, "input 1x8x8\ndequantize\nlogit alpha=0.05\n"
                                           "6* coupling mask=cycle:% hidden=100 depth=2\n"
                                           "additive mask=vertical:0 hidden=80 act=softplus\n");
    watch         w;
    fo_train_desc d = plain(&w, 4, 48);
    fo_real      *copy, *values;
    fo_data      *data = make_data(fo, 60, shape_of(1, 8, 8));
    d.memory_mb = memory_mb, d.clip = 1;
    d.held_out  = held_out ? fo_data_part(data, 0, 8) : NULL;
    CHECK(fo_train(flow, data, &d) == FO_OK);
    CHECK(fo_flow_held_out_count(flow) == 8 * held_out);
    values = weights_of(flow, n);
    copy   = (fo_real *)malloc((size_t)*n * sizeof *copy);
    memcpy(copy, values, (size_t)*n * sizeof *copy);
    *peak = fo_memory(fo).peak;
    fo_close(fo);
    return copy;
}

static void test_same_bits(void) {
    static const struct { int threads; double mb; } ways[] = {
        {1, 0.3}, {1, 0.1}, {1, 1e-9}, {1, 1e9}, {2, 0}, {3, 0.1}};
    size_t   peak0, peak[COUNT(ways)];
    int64_t  n0 = 0, n = 0;
    fo_real *base = train_once(1, 0, 0, &peak0, &n0);
    int      i;
    for (i = 0; i < COUNT(ways); i++) {
        fo_real *other = train_once(ways[i].threads, ways[i].mb, 0, &peak[i], &n);
        CHECK(n == n0 && memcmp(base, other, (size_t)n * sizeof *base) == 0);
        free(other);
    }
    CHECK(peak[0] < peak0 && peak[1] <= peak[0] && peak[2] <= peak[1] && peak[3] == peak0);
    CHECK(peak0 - peak[2] > 60000 * sizeof(fo_real)); /* activations of six of seven */
    free(base);
    free(train_once(1, 0, 1, &peak[0], &n)); /* the state that held-out data keep counts, too: */
    free(train_once(1, 5.0 * (double)n * sizeof(fo_real) / 1e6, 1, &peak[1], &n));
    free(train_once(1, 5.0 * (double)n * sizeof(fo_real) / 1e6, 0, &peak[2], &n));
    CHECK(peak[0] - peak0 > 3 * (size_t)n * sizeof(fo_real) && peak[2] == peak0);
    CHECK(peak[0] - peak[1] > 30000 * sizeof(fo_real)); /* it takes from the activations */
}

static void test_presets(void) {
    fo_preset p;
    int       i;
    CHECK(fo_preset_at(-1).name == NULL && fo_preset_at(0).name != NULL);
    for (i = 0; (p = fo_preset_at(i)).name; i++) {
        fo_context   *fo    = open_with(5, FO_SIMD_AUTO, 1);
        int           image = strstr(p.body, "dequantize") != NULL;
        fo_flow      *flow;
        watch         w;
        fo_train_desc d = plain(&w, 1, 4), got;
        if (strstr(p.name, "paper")) { /* too large for a test; built in test_image */
            fo_close(fo);
            continue;
        }
        flow = fo_flow_preset(fo, p.name, image ? shape_of(1, 8, 8) : shape_of(10, 1, 1));
        got  = fo_flow_train_desc(flow);
        CHECK(got.lr == p.lr && got.batch == p.batch);
        CHECK(got.ema == p.ema);
        CHECK(fo_train(flow, make_data(fo, 20, fo_flow_shape(flow)), &d) == FO_OK);
        CHECK(w.last.step == 1 && w.last.loss - w.last.loss == 0);
        CHECK_NEAR(w.last.lr, p.lr, 1e-12);
        fo_close(fo);
    }
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void test_bad_descs(void) {
    static const char *const say[] = {
        "batch=-1", "lr=-1", "lr=nan", "beta", "beta", "eps", "ema=1", "weight_decay=nan",
        "patience", "optimizer", "schedule", "on_nan", "cosine", "step_every", "batch=2000000"};
    int i;
    for (i = 0; i < COUNT(say); i++) {
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, text);
        fo_data      *data = make_data(fo, 20, fo_flow_shape(flow));
        watch         w;
        fo_train_desc d = plain(&w, 1, 4);
        switch (i) {
        case 0: d.batch = -1; break;
        case 1: d.lr = -1; break;
        case 2: d.lr = NAN; break;
        case 3: d.beta1 = 1; break;
        case 4: d.beta2 = -0.5; break;
        case 5: d.eps = -1; break;
        case 6: d.ema = 1; break;
        case 7: d.weight_decay = NAN; break;
        case 8: d.patience = 2000000001; break;
        case 9: d.optimizer = (fo_optimizer)9; break;
        case 10: d.schedule = (fo_schedule)9; break;
        case 11: d.on_nan = (fo_on_nan)9; break;
        case 12: d.schedule = FO_COSINE, d.steps = 0, d.seconds = 1; break;
        case 13: d.schedule = FO_STEP; break;
        default: d.batch = 2000000; break;
        }
        CHECK(fo_train(flow, data, &d) == FO_ERR_ARGUMENT && w.calls == 0);
        if (strstr(fo_error(fo), say[i]) == NULL)
            printf("'%s' does not say '%s'\n", fo_error(fo), say[i]);
        CHECK(strstr(fo_error(fo), say[i]) != NULL);
        fo_clear_error(fo);
        d = plain(&w, 1, 4); /* a refusal leaves no trace */
        CHECK(fo_train(flow, data, &d) == FO_OK && fo_flow_steps(flow) == 1);
        fo_close(fo);
    }
    {
        fo_context *fo = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow    *flow = fo_flow_parse(fo, "input 1x4x4\nlogit\n");
        fo_data    *data = make_data(fo, 20, shape_of(1, 4, 4));
        CHECK(fo_train(flow, data, NULL) == FO_ERR_ARGUMENT && strstr(fo_error(fo), "no coupling"));
        fo_clear_error(fo);
        flow = fo_flow_parse(fo, text);
        CHECK(fo_train(flow, NULL, NULL) != FO_OK && fo_train(NULL, data, NULL) != FO_OK);
        fo_clear_error(fo);
        CHECK(fo_train(flow, make_data(fo, 20, shape_of(1, 2, 8)), NULL) == FO_ERR_SHAPE);
        CHECK(strstr(fo_error(fo), "1x2x8") && strstr(fo_error(fo), "1x4x4"));
        fo_clear_error(fo);
        CHECK(fo_train(flow, data, NULL) == FO_OK); /* all defaults: an epoch in 4 steps */
        CHECK(fo_flow_steps(flow) == 4 && fo_flow_train_desc(flow).batch == 5);
        fo_close(fo);
    }
}

/* A copy of the checkpoint `from` with one thing changed. */
enum { SAME, NO_TEXT, OTHER_TEXT, BAD_TEXT, NO_WEIGHT, WRONG_SHAPE, WRONG_RANK, WRONG_TYPE,
       NO_MOMENT, WRONG_MOMENT, BAD_STATE, MINUS_STATE, NO_EMA, NO_BUFFER, NO_FIRST,
       LATER };

static void tamper(fo_context *fo, const char *from, const char *to, int what) {
    fo_archive *a = fo_archive_open(fo, from);
    fo_array    arrays[64];
    fo_note     notes[3] = {{"flowood.version", "1"}, {"flowood.text", NULL},
                            {"flowood.train", NULL}};
    int         i, n = 0;
    notes[1].text = what == NO_TEXT ? "" : what == BAD_TEXT ? "input 4\nblend\n" :
                    what == OTHER_TEXT ? "input 4\nstandardize\n3* coupling mask=halves:% hidden=6"
                                       : fo_archive_note(a, "flowood.text");
    notes[2].text = what == BAD_STATE ? "seed=1 step=x" : what == MINUS_STATE
                    ? "seed=1 step=-3 seen=2" : fo_archive_note(a, "flowood.train");
    if (what == LATER)
        notes[0].text = "2";
    if (what == NO_TEXT)
        notes[1] = notes[0], notes[1].key = "other";
    for (i = 0; i < fo_archive_count(a); i++) {
        fo_array array = *fo_archive_at(a, i);
        if (strcmp(array.name, "1.net.0.weight") == 0) {
            if (what == NO_WEIGHT)
                continue;
            if (what == WRONG_SHAPE) {
                int64_t swap = array.dim[0];
                array.dim[0] = array.dim[1], array.dim[1] = swap;
            }
            if (what == WRONG_RANK)
                array.rank = 1, array.dim[0] *= array.dim[1];
            if (what == WRONG_TYPE)
                array.type = IS_DOUBLE ? FO_I64 : FO_I32;
        }
        if ((what == NO_FIRST && strcmp(array.name, "1.scale") == 0) ||
            (what == NO_MOMENT && strcmp(array.name, "adam.v.1.scale") == 0) ||
            (what == NO_EMA && strcmp(array.name, "ema.1.scale") == 0) ||
            (what == NO_BUFFER && strcmp(array.name, "0.std") == 0))
            continue;
        if (what == WRONG_MOMENT && strcmp(array.name, "adam.v.1.net.0.weight") == 0)
            array.rank = 1, array.dim[0] *= array.dim[1];
        arrays[n++] = array;
    }
    CHECK(fo_archive_save(fo, to, arrays, n, notes, 3) == FO_OK);
    fo_archive_free(a);
}

static void test_checkpoints(void) {
    static const struct { int what; const char *say[2]; int64_t steps; } ways[] = {
        {SAME, {NULL, NULL}, 3}, {NO_TEXT, {"flowood.text", "fo_load_weights"}, 0},
        {OTHER_TEXT, {"missing", "another architecture"}, 0}, {BAD_TEXT, {"line 2", "blend"}, 0},
        {NO_WEIGHT, {"1.net.0.weight", "missing"}, 0},
        {WRONG_SHAPE, {"1.net.0.weight", "[6,2]"}, 0}, {WRONG_RANK, {"1.net.0.weight", "[12]"}, 0},
        {WRONG_TYPE, {"1.net.0.weight", IS_DOUBLE ? "I64" : "I32"}, 0},
        {NO_MOMENT, {NULL, NULL}, 0}, {WRONG_MOMENT, {"adam.v.1.net.0.weight", "[12]"}, 0},
        {BAD_STATE, {"training state", "step"}, 0}, {MINUS_STATE, {"training state", ""}, 0},
        {NO_EMA, {NULL, NULL}, 3}, {NO_BUFFER, {"0.std", "missing"}, 0},
        {LATER, {"format 2", "take a newer one"}, 0},
        {NO_FIRST, {" 1.scale", "missing"}, 0}}; /* and not adam.m.1.scale in its place */
    static fo_real rows[20][4];
    const char    *path = FILE_NAME("good"), *bad = FILE_NAME("bad");
    fo_context    *fo = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow       *flow = fo_flow_parse(fo, "input 4\nstandardize\n"
                                            "2* coupling mask=halves:% hidden=6\n"), *other;
    fo_data       *data = fo_data_view(fo, rows, REAL_TYPE, 20, shape_of(4, 1, 1));
    watch          w;
    fo_train_desc  d = plain(&w, 3, 4);
    int            i, j;
    size_t         before;
    fo_random_normal(1, 1, 0, 80, rows[0]);
    d.ema = 0.9;
    CHECK(fo_train(flow, data, &d) == FO_OK && fo_save(flow, path) == FO_OK);
    for (i = 0; i < COUNT(ways); i++) {
        tamper(fo, path, bad, ways[i].what);
        before = fo_memory(fo).now;
        other  = fo_load_flow(fo, bad);
        CHECK((other != NULL) == (ways[i].say[0] == NULL));
        CHECK(fo_flow_steps(other) == ways[i].steps);
        CHECK(fo_flow_train_count(other) == (ways[i].say[0] ? 0 : 20));
        CHECK(fo_flow_held_out_count(other) == 0);
        for (j = 0; j < 2 && ways[i].say[0]; j++) {
            if (strstr(fo_error(fo), ways[i].say[j]) == NULL)
                printf("'%s' does not say '%s'\n", fo_error(fo), ways[i].say[j]);
            CHECK(strstr(fo_error(fo), ways[i].say[j]) != NULL);
        }
        if (other) {
            CHECK(memcmp(flow->values, other->values, (size_t)flow->params.size *
                                                          sizeof(fo_real)) == 0);
            CHECK((other->train.ema != NULL) == (ways[i].what != NO_EMA));
            CHECK((other->train.m != NULL) == (ways[i].what != NO_MOMENT));
        }
        fo_flow_free(other);
        fo_clear_error(fo);
        CHECK(fo_memory(fo).now == before);
    }
    other = fo_flow_parse(fo, "input 4\nstandardize\n2* coupling mask=alternating:% hidden=6\n");
    CHECK(fo_load_weights(other, path) == FO_OK); /* into a flow that fits */
    CHECK(memcmp(flow->train.ema, other->values, (size_t)flow->params.size * sizeof(fo_real)) == 0);
    CHECK(memcmp(flow->buffer_values, other->buffer_values, 9 * sizeof(fo_real)) == 0);
    tamper(fo, path, bad, NO_BUFFER);
    memset(other->values, 0, (size_t)flow->params.size * sizeof(fo_real));
    CHECK(fo_load_weights(other, bad) == FO_ERR_FORMAT); /* all or nothing */
    for (i = 0; i < flow->params.size; i++)
        if (other->values[i] != 0)
            break;
    CHECK(i == flow->params.size);
    fo_clear_error(fo);
    CHECK(fo_load_flow(fo, "build/not-there.safetensors") == NULL);
    CHECK(fo_failed(fo) == FO_ERR_FILE && strstr(fo_error(fo), "not-there"));
    fo_clear_error(fo);
    CHECK(fo_load_weights(NULL, path) != FO_OK && fo_save(NULL, path) != FO_OK);
    CHECK(fo_save(flow, NULL) != FO_OK);
    fo_clear_error(fo);
    CHECK(fo_save(flow, "build/no/such/folder.safetensors") == FO_ERR_FILE);
    fo_close(fo);
    remove(path), remove(bad);
}

/* ---- less than everything, and not to a file ------------------------------------------------- */

static const char *const small = "input 4\nstandardize\nactnorm\n"
                                 "3* coupling mask=halves:% hidden=40\n";

/* A flow that has learned something, with a moving average. */
static fo_flow *learned(fo_context *fo, const fo_data *data, int64_t steps) {
    fo_flow      *flow = fo_flow_parse(fo, small);
    watch         w;
    fo_train_desc d = plain(&w, steps, 8);
    d.ema = 0.9, d.lr = 0.01;
    CHECK(fo_train(flow, data, &d) == FO_OK);
    return flow;
}

static void scores_of(fo_context *fo, fo_flow *flow, const fo_data *data, double *lp) {
    fo_workspace *ws = fo_workspace_create(fo, flow, 8);
    CHECK(fo_log_prob(ws, data, 0, 20, 0, lp) == FO_OK);
    fo_workspace_free(ws);
}

static fo_data *make_rows(fo_context *fo) {
    static fo_real rows[20][4];
    fo_random_normal(1, 1, 0, 80, rows[0]);
    return fo_data_view(fo, rows, REAL_TYPE, 20, shape_of(4, 1, 1));
}

static void test_save_as(void) {
    static char  bytes[2][60000];
    const char  *path = FILE_NAME("as");
    fo_context  *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_data     *data = make_rows(fo);
    fo_flow     *flow = learned(fo, data, 20), *other;
    fo_save_desc desc;
    double       lp[2][20], worst = 0;
    size_t       size, before, full;
    void        *block;
    int          i;
    memset(&desc, 0, sizeof desc);
    scores_of(fo, flow, data, lp[0]);
    CHECK(fo_save(flow, path) == FO_OK);
    full = (size_t)read_all(path, bytes[0], sizeof bytes[0]);
    CHECK(fo_save_as(flow, path, &desc) == FO_OK); /* zero: the same */
    CHECK((size_t)read_all(path, bytes[1], sizeof bytes[1]) == full);
    CHECK(memcmp(bytes[0], bytes[1], full) == 0);
    before = fo_memory(fo).now;
    CHECK(fo_save_memory(flow, NULL, &block, &size) == FO_OK); /* and in memory */
    CHECK(size == full && memcmp(block, bytes[0], full) == 0);
    other = fo_load_flow_memory(fo, block, size);
    CHECK(fo_flow_steps(other) == 20);
    memset(block, 0, size); /* not needed any longer */
    fo_save_free(fo, block);
    scores_of(fo, other, data, lp[1]);
    CHECK(memcmp(lp[0], lp[1], sizeof lp[0]) == 0);
    fo_flow_free(other);
    CHECK(fo_memory(fo).now == before);
    desc.weights_only = 1;
    CHECK(fo_save_as(flow, path, &desc) == FO_OK);
    size = (size_t)read_all(path, bytes[1], sizeof bytes[1]);
    CHECK(size < full / 3 && size > BYTES(flow->params.size));
    other = fo_load_flow(fo, path);
    scores_of(fo, other, data, lp[1]); /* to the last bit, though there is no average in it */
    CHECK(memcmp(lp[0], lp[1], sizeof lp[0]) == 0 && other->train.ema == NULL);
    CHECK(fo_flow_steps(other) == 0 && other->train.m == NULL);
    desc.type = FO_F16;
    CHECK(fo_save_as(flow, path, &desc) == FO_OK);
    CHECK(fo_save_memory(flow, &desc, &block, &size) == FO_OK);
    CHECK(size < full / (IS_DOUBLE ? 6 : 4));
    other = fo_load_flow(fo, path);
    scores_of(fo, other, data, lp[1]);
    for (i = 0; i < 20; i++)
        worst = fmax(worst, fabs(lp[0][i] - lp[1][i]));
    CHECK(worst > 0 && worst < 0.02);
    flow->train.ema[7] = 65521;
    CHECK(fo_save_as(flow, path, &desc) == FO_ERR_NUMERIC && strstr(fo_error(fo), "65504"));
    fo_clear_error(fo);
    desc.weights_only = 0;
    CHECK(fo_save_as(flow, path, &desc) == FO_ERR_ARGUMENT && strstr(fo_error(fo), "F16"));
    fo_clear_error(fo);
    CHECK(fo_save_as(NULL, path, NULL) != FO_OK && fo_save_as(flow, NULL, NULL) != FO_OK);
    fo_clear_error(fo);
    CHECK(fo_save_memory(NULL, NULL, &block, &size) != FO_OK);
    CHECK(fo_save_memory(flow, NULL, NULL, &size) != FO_OK);
    fo_clear_error(fo);
    CHECK(fo_load_flow_memory(fo, NULL, 9) == NULL && fo_load_flow_memory(NULL, "", 1) == NULL);
    fo_save_free(NULL, NULL);
    fo_close(fo);
    remove(path);
}

/* Every half, back and forth; what lies between goes to the nearest, ties to even. */
static void test_half(void) {
    int bits, wrong = 0;
    for (bits = 0; bits < 0x7C00; bits++) {
        uint16_t h = (uint16_t)bits, n = (uint16_t)(bits + 1);
        double   x = fo__value(FO_F16, &h, 0), y = fo__value(FO_F16, &n, 0), middle = (x + y) / 2;
        wrong += fo__half(x) != bits || (bits && fo__half(-x) != (bits | 0x8000));
        if (bits < 0x7BFF) {
            wrong += fo__half(middle) != (bits & 1 ? bits + 1 : bits);
            wrong += fo__half(middle - 1e-6 * (y - x)) != bits;
            wrong += fo__half(middle + 1e-6 * (y - x)) != bits + 1;
        }
    }
    CHECK(wrong == 0 && fo__half(65519.9) == 0x7BFF && fo__half(65520) == 0x7C00);
}

/* Whoever gives a flow other weights has them scored, whatever training kept of the old ones. */
static void test_given_weights(void) {
    const char    *path = FILE_NAME("given");
    fo_context    *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_data       *data = make_rows(fo);
    fo_flow       *flow = learned(fo, data, 20), *other = learned(fo, data, 3);
    fo_workspace  *ws   = fo_workspace_create(fo, other, 8);
    double         lp[3][20];
    int64_t        n;
    const fo_real *average = fo_params(flow, &n);
    scores_of(fo, flow, data, lp[0]);
    CHECK(average == flow->train.ema && average != flow->values);
    CHECK(fo_save(flow, path) == FO_OK);
    CHECK(fo_load_weights(other, path) == FO_OK && fo_flow_steps(other) == 0);
    CHECK(fo_log_prob(ws, data, 0, 20, 0, lp[1]) == FO_OK);
    CHECK(memcmp(lp[0], lp[1], sizeof lp[0]) == 0); /* the average of the file, not its weights */
    CHECK(other->train.m[7] == 0 && other->train.v[7] == 0);
    CHECK(fo_flow_train_desc(other).lr == 0.01 && fo_flow_train_desc(other).ema == 0.9);
    other = learned(fo, data, 3);
    scores_of(fo, other, data, lp[2]);
    CHECK(memcmp(lp[0], lp[2], sizeof lp[0]) != 0);
    CHECK(fo_set_params(other, average, n) == FO_OK);
    memcpy(other->buffer_values, flow->buffer_values, BYTES(flow->buffers.size));
    scores_of(fo, other, data, lp[1]);
    CHECK(memcmp(lp[0], lp[1], sizeof lp[0]) == 0);
    CHECK(fo_set_params(other, average, n - 1) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    CHECK(fo_set_params(other, NULL, n) != FO_OK && fo_set_params(NULL, average, n) != FO_OK);
    fo_clear_error(fo);
    {
        watch         w;
        fo_train_desc d = plain(&w, 2, 8);
        CHECK(fo_train(other, data, &d) == FO_OK && fo_flow_steps(other) == 2);
    }
    fo_close(fo);
    remove(path);
}

/* Weights as other people's code keeps them. */
static void test_foreign_weights(void) {
    static const float bias[3] = {1, 2, 3}, gain[3] = {0.25f, 0.5f, -0.5f};
    static const float mean[3] = {4, 5, 6}, deviation[3] = {1, 2, 4};
    const char  *path = FILE_NAME("foreign");
    fo_array     arrays[4] = {{"flow.1.bias", FO_F32, 4, {1, 3, 1, 1}, bias},
                              {"flow.1.log_scale", FO_F32, 3, {3, 1, 1, 0}, gain},
                              {"flow.0.mean", FO_F32, 1, {3, 0, 0, 0}, mean},
                              {"flow.0.std", FO_F32, 2, {1, 3, 0, 0}, deviation}};
    fo_context  *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow     *flow = fo_flow_parse(fo, "input 3\nstandardize\nactnorm\n");
    int          i;
    CHECK(fo_archive_save(fo, path, arrays, 4, NULL, 0) == FO_OK);
    CHECK(fo_load_weights(flow, path) == FO_OK);
    for (i = 0; i < 3; i++) {
        CHECK(flow->values[i] == (fo_real)bias[i] && flow->values[3 + i] == (fo_real)gain[i]);
        CHECK(flow->buffer_values[i] == (fo_real)mean[i]);
    }
    CHECK(flow->buffer_values[flow->layers[0].measured] == 1);
    CHECK(flow->buffer_values[flow->layers[1].measured] == 1);
    arrays[0].dim[0] = 3, arrays[0].dim[1] = 1;
    CHECK(fo_archive_save(fo, path, arrays, 3, NULL, 0) == FO_OK);
    CHECK(fo_load_weights(flow, path) == FO_ERR_FORMAT && strstr(fo_error(fo), "std is missing"));
    fo_close(fo);
    remove(path);
}

/* A few bytes of text may ask for gigabytes and minutes; what they get is one line. */
static void test_hostile(void) {
    static const char *const texts[] = {
        "input 16777216\n1000* permute seed=1\n", "input 2000000\n1000*permute reverse=1\n",
        "input 2097152\ncoupling mask=random:1 hidden=1\n",
        "input 2000000\ncoupling mask=random:1 hidden=1\n",
        "input 1x1400x1400\n40* coupling mask=checkerboard:% net=resnet channels=1\n",
        "input 64x160x160\n1000*conv1x1\n", "input 4\n1000*coupling mask=halves:% hidden=1\n",
        "input 4\ncoupling mask=halves:0 hidden=65536 depth=64\n",
        "input 4\n1000*logit\n1000*logit\n1000*logit\n1000*logit\n1000*logit\n"};
    static char  big[900000];
    const char  *path = FILE_NAME("hostile");
    fo_context  *fo;
    fo_note      note = {"flowood.text", NULL};
    size_t       at;
    int          i;
    for (i = 0; i <= COUNT(texts); i++) {
        for (at = 0; at + 30 < sizeof big && i == COUNT(texts);) /* settings by the thousand */
            at += (size_t)sprintf(big + at, "%s", at ? " seed=1" : "input 4\n1000* permute");
        note.text = i < COUNT(texts) ? texts[i] : big;
        fo = open_with(5, FO_SIMD_AUTO, 1);
        CHECK(fo_archive_save(fo, path, NULL, 0, &note, 1) == FO_OK);
        fo_close(fo);
        fo = open_with(5, FO_SIMD_AUTO, 1);
        CHECK(fo_load_flow(fo, path) == NULL && fo_failed(fo) == FO_ERR_FORMAT);
        CHECK(strstr(fo_error(fo), path) && (strstr(fo_error(fo), "layers x elements") ||
                                             strstr(fo_error(fo), "more weights")));
        CHECK(fo_memory(fo).peak < 64000000);
        fo_close(fo);
    }
    remove(path);
}

/* ---- held-out data --------------------------------------------------------------------------- */

static const char *const deep = "input 1x4x4\ndequantize\nlogit\nsqueeze\nactnorm\n"
                                "2* coupling mask=channel:% net=resnet channels=4 blocks=1\n";

/* What progress saw; one of these is the user pointer. */
typedef struct diary {
    fo_flow    *flow;
    int         measured, since_best, improved; /* since_best: measurements since the best      */
    int         calls, spin_at, stop_at, save_at; /* steps; 0: never. stop_at: at a best one    */
    double      best;
    int64_t     best_step;
    fo_real     weights[4000];
    const char *path;
} diary;

static int diary_gradients(void *user, fo_real *grad, int64_t count) {
    diary *d     = (diary *)user;
    double start = fo_clock();
    (void)grad, (void)count;
    while (++d->calls == d->spin_at && fo_clock() - start < 0.11)
        d->calls--; /* long enough for a report after this step */
    return 0;
}

static int diary_progress(void *user, const fo_progress *p) {
    diary *d = (diary *)user;
    if (d->path && d->save_at == p->step && !p->last)
        CHECK(fo_save(d->flow, d->path) == FO_OK);
    if (p->last || p->step % 5) {
        CHECK(!p->improved || p->last);
        return d->stop_at < 0 && p->step == -d->stop_at;
    }
    d->measured++, d->since_best++;
    CHECK(p->held_out_bpd == p->held_out_bpd);
    CHECK(p->improved == (d->best_step == 0 || p->held_out_bpd < d->best));
    if (p->improved) {
        d->improved++, d->since_best = 0;
        d->best = p->held_out_bpd, d->best_step = p->step;
        memcpy(d->weights, d->flow->values, BYTES(d->flow->params.size));
        CHECK(fo_flow_held_out_bpd(d->flow) == p->held_out_bpd);
    }
    return d->stop_at > 0 && p->improved && p->step >= d->stop_at;
}

static fo_train_desc held_out_desc(diary *d, fo_flow *flow, const fo_data *held_out) {
    fo_train_desc desc;
    memset(&desc, 0, sizeof desc), memset(d, 0, sizeof *d);
    d->flow = flow;
    desc.steps = 400, desc.batch = 8, desc.lr = 0.02, desc.seed = 5;
    desc.held_out = held_out, desc.held_out_every = 5, desc.patience = 4;
    desc.progress = diary_progress, desc.gradients = diary_gradients, desc.user = d;
    return desc;
}

/* Training ends with the best state of all that were measured, and says what it was worth. */
static void test_held_out(void) {
    int way;
    for (way = 0; way < 3; way++) { /* by patience; by steps, measured at the end; without */
        static diary  d;
        fo_context   *fo    = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow  = fo_flow_parse(fo, way ? text : deep);
        fo_data      *data  = make_data(fo, 24, shape_of(1, 4, 4));
        fo_data      *other = fo_data_view(fo, pixels + 32 * 16, FO_U8, 17, shape_of(1, 4, 4));
        fo_train_desc desc  = held_out_desc(&d, flow, other);
        double        lp[17], bpd = 0;
        int           i;
        CHECK(fo_flow_held_out_bpd(flow) != fo_flow_held_out_bpd(flow));
        if (way == 1)
            desc.steps = 3, desc.patience = -1;
        if (way == 2)
            desc.held_out = NULL, desc.steps = 7;
        CHECK(fo_train(flow, data, &desc) == FO_OK);
        if (way == 2) {
            CHECK(fo_flow_steps(flow) == 7);
            CHECK(fo_flow_held_out_bpd(flow) != fo_flow_held_out_bpd(flow));
            fo_close(fo);
            continue;
        }
        CHECK(fo_log_prob(fo_workspace_create(fo, flow, 5), other, 0, 17, 0, lp) == FO_OK);
        for (i = 0; i < 17; i++)
            bpd += lp[i];
        CHECK(fo_flow_held_out_bpd(flow) == fo_bpd(bpd / 17, shape_of(1, 4, 4)));
        if (way == 0) {
            CHECK(d.since_best == 4 && d.improved >= 1 && d.measured > 4);
            CHECK(fo_flow_steps(flow) == d.best_step && fo_flow_held_out_bpd(flow) == d.best);
            CHECK(memcmp(d.weights, flow->values, BYTES(flow->params.size)) == 0);
            desc.held_out = NULL, desc.steps = fo_flow_steps(flow) + 1; /* other weights */
            CHECK(fo_train(flow, data, &desc) == FO_OK);
            CHECK(fo_flow_held_out_bpd(flow) != fo_flow_held_out_bpd(flow));
        } else
            CHECK(fo_flow_steps(flow) == 3);
        desc.held_out = make_data(fo, 4, shape_of(1, 2, 8));
        CHECK(fo_train(flow, data, &desc) == FO_ERR_SHAPE);
        fo_close(fo);
    }
}

/* Stopped at a best measurement, stopped elsewhere, or killed with only a file of the past left:
   going on leaves the same file as the run that nobody disturbed. */
static void test_held_out_resume(void) {
    static char   bytes[2][100000];
    static diary  d;
    const char   *path = FILE_NAME("held"), *end = FILE_NAME("held_end");
    int           ema, way;
    for (ema = 0; ema < 2; ema++)
        for (way = 0; way < 4; way++) {
            fo_context   *fo    = open_with(5, FO_SIMD_AUTO, 1);
            fo_flow      *flow  = fo_flow_parse(fo, deep);
            fo_data      *data  = make_data(fo, 24, shape_of(1, 4, 4));
            fo_data      *other = fo_data_view(fo, pixels + 32 * 16, FO_U8, 17, shape_of(1, 4, 4));
            fo_train_desc desc  = held_out_desc(&d, flow, other), go_on;
            long          n[2];
            desc.ema  = ema ? 0.5 : 0;
            d.stop_at = way == 1 ? 10 : way == 2 ? -13 : 0;
            d.save_at = d.spin_at = way >= 2 ? 13 : 0;
            d.path    = way == 3 ? path : NULL;
            CHECK(fo_train(flow, data, &desc) == FO_OK);
            if (way == 1 || way == 2)
                CHECK(fo_save(flow, path) == FO_OK && fo_flow_steps(flow) == d.best_step);
            if (way) {
                fo_flow_free(flow);
                flow = fo_load_flow(fo, path);
                CHECK(flow != NULL && fo_flow_steps(flow) > 0 && fo_flow_steps(flow) % 5 == 0);
                CHECK(fo_flow_held_out_bpd(flow) == fo_flow_held_out_bpd(flow));
                go_on = held_out_desc(&d, flow, other);
                memset(&desc, 0, sizeof desc); /* all the rest is as before */
                desc.steps = go_on.steps, desc.held_out = other;
                CHECK(fo_train(flow, data, &desc) == FO_OK);
            }
            CHECK(fo_save(flow, end) == FO_OK);
            n[way > 0] = read_all(end, bytes[way > 0], sizeof bytes[0]);
            if (way) {
                n[0] = n[1];
                CHECK(n[1] > 1000 && memcmp(bytes[0], bytes[1], (size_t)n[1]) == 0);
            }
            CHECK(fo_failed(fo) == FO_OK);
            fo_close(fo);
        }
    remove(path), remove(end);
}

/* An epoch of a small table is more than one step; with negatives it is one of the data. */
static void test_epochs(void) {
    static fo_real rows[249 * 3];
    fo_context    *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow       *flow = fo_flow_preset(fo, "tabular", shape_of(3, 1, 1));
    fo_data       *data = fo_data_view(fo, rows, REAL_TYPE, 249, shape_of(3, 1, 1));
    fo_train_desc  d;
    watch          w;
    fo_random_normal(1, 1, 0, 249 * 3, rows);
    memset(&d, 0, sizeof d);
    d.epochs = 1;
    CHECK(fo_train(flow, data, &d) == FO_OK && fo_flow_steps(flow) == 5); /* 62, not 1024 */
    CHECK(fo_flow_train_desc(flow).batch == 62);
    flow    = fo_flow_preset(fo, "tabular", shape_of(3, 1, 1));
    d.batch = 200;
    CHECK(fo_train(flow, data, &d) == FO_OK && fo_flow_steps(flow) == 2);
    flow = fo_flow_parse(fo, text);
    data = make_data(fo, 16, shape_of(1, 4, 4));
    d    = plain(&w, 0, 8);
    d.epochs = 1, d.negative = data;
    CHECK(fo_train(flow, data, &d) == FO_OK && fo_flow_steps(flow) == 4);
    CHECK_NEAR(w.last.epoch, 1, 1e-12);
    fo_close(fo);
}

/* ---- settings -------------------------------------------------------------------------------- */

/* Whatever a flow was trained with, every setting can be set back; files keep them all. */
static void test_set_back(void) {
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow = fo_flow_parse(fo, text), *old;
    fo_data      *data = make_data(fo, 20, fo_flow_shape(flow));
    const char   *path = FILE_NAME("back"), *other = FILE_NAME("back_old");
    fo_train_desc d, got;
    fo_archive   *a;
    fo_array      arrays[200];
    fo_note       notes[2];
    int           i, n;
    memset(&d, 0, sizeof d);
    d.steps = 1, d.batch = 4, d.optimizer = FO_RMSPROP, d.lr = 0.01, d.beta1 = 0.5, d.beta2 = 0.6;
    d.eps = 1e-3, d.weight_decay = 0.1, d.clip = -1, d.schedule = FO_STEP, d.warmup = 3;
    d.step_every = 9, d.step_factor = 0.3, d.ema = 0.8, d.on_nan = FO_NAN_SKIP, d.memory_mb = 1e-3;
    d.negative_floor = -1, d.held_out = data, d.held_out_every = 7, d.patience = 2, d.seed = 99;
    CHECK(fo_train(flow, data, &d) == FO_OK && fo_save(flow, path) == FO_OK);
    old = fo_load_flow(fo, path);
    got = fo_flow_train_desc(old);
    CHECK(got.batch == 4 && got.optimizer == FO_RMSPROP && got.lr == 0.01 && got.beta1 == 0.5);
    CHECK(got.beta2 == 0.6 && got.eps == 1e-3 && got.weight_decay == 0.1 && got.clip == -1);
    CHECK(got.schedule == FO_STEP && got.warmup == 3 && got.step_every == 9 && got.ema == 0.8);
    CHECK(got.step_factor == 0.3 && got.on_nan == FO_NAN_SKIP && got.memory_mb == 1e-3);
    CHECK(got.negative_floor == -1 && got.held_out_every == 7 && got.patience == 2);
    CHECK(got.seed == 99 && got.held_out == NULL && got.steps == 0 && got.epochs == 1);
    memset(&d, 0, sizeof d);
    d.steps = 2, d.batch = 128, d.optimizer = FO_ADAM, d.lr = 1e-3, d.beta1 = 0.9, d.eps = 1e-8;
    d.weight_decay = -1, d.clip = 100, d.schedule = FO_CONSTANT, d.warmup = -1, d.step_every = -1;
    d.step_factor = 0.1, d.ema = -1, d.on_nan = FO_NAN_STOP, d.memory_mb = -1, d.patience = -1;
    d.negative_floor = 5, d.held_out_every = -1;
    CHECK(fo_train(old, data, &d) == FO_OK);
    got = fo_flow_train_desc(old);
    CHECK(got.batch == 128 && got.optimizer == FO_ADAM && got.lr == 1e-3 && got.beta1 == 0.9);
    CHECK(got.beta2 == 0.999 && got.eps == 1e-8 && got.weight_decay == 0 && got.clip == 100);
    CHECK(got.schedule == FO_CONSTANT && got.warmup == 0 && got.step_every == 0 && got.ema == 0);
    CHECK(got.step_factor == 0.1 && got.on_nan == FO_NAN_STOP && got.memory_mb == 0);
    CHECK(got.negative_floor == 5 && got.held_out_every == 0 && got.patience == 0);
    a = fo_archive_open(fo, path); /* kinds are written from 0 on, as they always were */
    CHECK(strstr(fo_archive_note(a, "flowood.train"), " optimizer=2 ") != NULL);
    for (i = n = 0; i < fo_archive_count(a); i++)
        arrays[n++] = *fo_archive_at(a, i);
    notes[0].key = "flowood.text", notes[0].text = fo_archive_note(a, "flowood.text");
    notes[1].key = "flowood.train", notes[1].text = "seed=9 step=1 seen=4 skipped=0 batch=4 "
        "optimizer=1 lr=0.01 beta1=0.9 beta2=0.99 eps=1e-8 weight_decay=0 clip=-1 schedule=0 "
        "warmup=0 step_every=0 step_factor=0.1 ema=0.8 on_nan=1 memory_mb=0 negative_floor=600";
    CHECK(fo_archive_save(fo, other, arrays, n, notes, 2) == FO_OK);
    old = fo_load_flow(fo, other);
    CHECK(old != NULL && fo_flow_steps(old) == 1);
    got = fo_flow_train_desc(old);
    CHECK(got.optimizer == FO_ADAMW && got.schedule == FO_CONSTANT && got.on_nan == FO_NAN_SKIP);
    CHECK(got.clip == -1 && got.patience == 0 && got.seed == 9 && got.negative_floor == 600);
    CHECK(fo_failed(fo) == FO_OK);
    fo_close(fo);
    remove(path), remove(other);
}

/* ---- a bad batch changes nothing ------------------------------------------------------------- */

typedef struct picture { fo_real values[4000], buffers[100]; } picture;

static void take(picture *p, const fo_flow *flow) {
    memset(p, 0, sizeof *p);
    memcpy(p->values, flow->values, BYTES(flow->params.size));
    memcpy(p->buffers, flow->buffer_values, BYTES(flow->buffers.size));
}

static int finite_picture(const picture *p) {
    int i, ok = 1;
    for (i = 0; i < 4000; i++)
        ok &= p->values[i] - p->values[i] == 0;
    for (i = 0; i < 100; i++)
        ok &= p->buffers[i] - p->buffers[i] == 0;
    return ok;
}

static void test_bad_batch(void) {
    static picture before, after;
    static fo_real rows[8 * 16];
    int            seed, poison, step, firsts = 0, i;
    for (poison = 0; poison < 2; poison++) /* a bad sample; a bad gradient */
        for (seed = 1; seed < 6; seed++) {
            fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
            fo_flow      *flow = fo_flow_parse(fo, "input 1x4x4\nlogit\nsqueeze\nactnorm\n2* "
                                 "coupling mask=channel:% net=resnet channels=4 blocks=1\n");
            fo_data      *data = fo_data_view(fo, rows, REAL_TYPE, 8, shape_of(1, 4, 4));
            watch         w;
            fo_train_desc d    = plain(&w, 2, 4);
            fo_random_uniform(4, 4, 0, 128, rows);
            for (i = 0; i < 128; i++)
                rows[i] = (fo_real)(0.2 + 0.6 * (double)rows[i]);
            if (poison)
                w.poison = 1;
            else
                rows[5 * 16 + 3] = 30;
            d.on_nan = FO_NAN_SKIP, d.seed = (uint64_t)seed;
            d.memory_mb = seed % 2 ? 1e-9 : 0; /* recomputed batch norms too */
            CHECK(fo_params(flow, NULL) != NULL);
            take(&before, flow);
            d.steps = 1;
            w.steps = 0;
            if (fo_train(flow, data, &d) != FO_OK) { /* the first batch is the bad one */
                firsts++;
                CHECK(fo_failed(fo) == FO_ERR_NUMERIC && fo_flow_steps(flow) == 0);
                fo_clear_error(fo);
                take(&after, flow);
                CHECK(memcmp(&before, &after, sizeof before) == 0);
                w.calls = 0, d.steps = 2;
                CHECK(fo_train(flow, data, &d) == FO_OK && w.last.skipped == 1);
                take(&after, flow);
                CHECK(finite_picture(&after));
                CHECK(memcmp(before.buffers, after.buffers, sizeof before.buffers) != 0);
            }
            for (step = 3; step < 7; step++) {
                int64_t skipped = flow->train.skipped;
                take(&before, flow);
                d.steps = step, w.calls = 0, w.poison = poison ? step % 2 : 0;
                CHECK(fo_train(flow, data, &d) == FO_OK);
                take(&after, flow);
                CHECK(finite_picture(&after));
                if (flow->train.skipped > skipped && step > 3) /* step 3 may be two */
                    CHECK(memcmp(&before, &after, sizeof before) == 0);
                if (flow->train.skipped == skipped)
                    CHECK(memcmp(before.buffers, after.buffers, sizeof before.buffers) != 0);
            }
            CHECK(flow->train.skipped >= 2);
            fo_close(fo);
        }
    CHECK(firsts > 5);
}

/* Data that cannot be learned from: the message says where they are, blames no learning rate, and
   the flow is as it was. */
static void test_bad_data(void) {
    static const struct { const char *text; double value; const char *say[3]; } ways[] = {
        {"input 3\n2* coupling mask=halves:% hidden=4", NAN, {"sample 3", "in the data", "nan"}},
        {"input 3\nstandardize\n2* coupling mask=halves:% hidden=4", NAN,
         {"sample 3", "column 1", "nan"}},
        {"input 3\nactnorm\n2* coupling mask=halves:% hidden=4", HUGE_VAL,
         {"sample 3", "column 1", "inf"}},
        {"input 3\n2* coupling mask=halves:% hidden=4", 1e30,
         {"sample 3", IS_DOUBLE ? "1e+160" : "1e+30", "standardize"}},
        {"input 3\n2* coupling mask=halves:% hidden=4", 1e200, {"sample 3", "1e+200", ""}},
        {"input 3\nlogit\n2* coupling mask=halves:% hidden=4", 30,
         {"sample 3", "column 1", "have 30"}}};
    static picture before, after;
    double         rows[8][3];
    int            way, i;
    for (way = 0; way < COUNT(ways); way++) {
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, ways[way].text);
        fo_data      *data = fo_data_view(fo, rows, FO_F64, 8, shape_of(3, 1, 1));
        watch         w;
        fo_train_desc d    = plain(&w, 3, 8);
        fo_result     result;
        for (i = 0; i < 24; i++)
            rows[i / 3][i % 3] = 0.1 + i * 0.03;
        rows[3][1] = IS_DOUBLE && way == 3 ? 1e160 : ways[way].value;
        CHECK(fo_params(flow, NULL) != NULL);
        take(&before, flow);
        result = fo_train(flow, data, &d);
        CHECK(result == FO_ERR_NUMERIC);
        for (i = 0; i < 3; i++) {
            if (!strstr(fo_error(fo), ways[way].say[i]))
                printf("'%s' does not say '%s'\n", fo_error(fo), ways[way].say[i]);
            CHECK(strstr(fo_error(fo), ways[way].say[i]) != NULL);
        }
        CHECK(strstr(fo_error(fo), "learning rate") == NULL);
        take(&after, flow);
        CHECK(memcmp(&before, &after, sizeof before) == 0 && fo_flow_steps(flow) == 0);
        fo_close(fo);
    }
}

/* Statistics stay where recalibration meets a bad sample. */
static void test_bad_recalibration(void) {
    static picture before, after;
    static fo_real rows[8 * 16];
    fo_context    *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow       *flow = fo_flow_parse(fo, "input 1x4x4\n2* coupling mask=checkerboard:% "
                                            "net=resnet channels=4 blocks=1\n");
    fo_data       *data = fo_data_view(fo, rows, REAL_TYPE, 8, shape_of(1, 4, 4));
    fo_random_normal(4, 4, 0, 128, rows);
    CHECK(fo_recalibrate(flow, data, 8) == FO_OK);
    take(&before, flow);
    rows[77] = (fo_real)NAN;
    CHECK(fo_recalibrate(flow, data, 8) == FO_ERR_NUMERIC);
    take(&after, flow);
    CHECK(memcmp(&before, &after, sizeof before) == 0);
    fo_close(fo);
}

/* ---- steps of one's own ---------------------------------------------------------------------- */

static void test_trainer_bits(void) {
    static picture seen[3];
    int            way, r;
    for (way = 0; way < 3; way++) { /* fo_train; step by step; in parts, the loss spelled out */
        fo_context     *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow        *flow = fo_flow_parse(fo, deep);
        fo_data        *data = make_data(fo, 24, fo_flow_shape(flow));
        watch           w;
        fo_train_desc   d    = plain(&w, 12, 8);
        fo_trainer     *tr   = way ? fo_trainer_open(flow, data, &d) : NULL;
        const fo_batch *b;
        double          dlog_prob[8];
        w.fo = fo;
        if (way == 0)
            CHECK(fo_train(flow, data, &d) == FO_OK);
        if (way == 1)
            while (fo_trainer_step(tr)) {}
        if (way == 2)
            while ((b = fo_trainer_forward(tr)) != NULL) {
                CHECK(b->rows == 8 && b->positive == 8 && b->sample[7] >= 0 && b->sample[7] < 24);
                for (r = 0; r < 8; r++)
                    dlog_prob[r] = -1.0 / 8;
                CHECK(fo_trainer_update(tr) == FO_ERR_ARGUMENT);
                fo_clear_error(fo);
                CHECK(fo_trainer_backward(tr, dlog_prob, NULL) == FO_OK);
                CHECK(fo_train(flow, data, &d) == FO_ERR_ARGUMENT); /* one trainer at a time */
                fo_clear_error(fo);
                REFUSED(fo_set_params(flow, flow->values, flow->params.size), "being trained");
                REFUSED(fo_load_weights(flow, "none"), "the flow is being trained");
                REFUSED(fo_recalibrate(flow, data, 8), "the flow is being trained");
                CHECK(fo_trainer_update(tr) == FO_OK);
            }
        CHECK(way == 0 || fo_trainer_close(tr) == FO_OK);
        CHECK(fo_flow_steps(flow) == 12 && w.last.last && (way == 2 || !w.grew));
        take(&seen[way], flow);
        fo_close(fo);
    }
    CHECK(memcmp(&seen[0], &seen[1], sizeof seen[0]) == 0);
    CHECK(memcmp(&seen[0], &seen[2], sizeof seen[0]) == 0);
    CHECK(fo_trainer_open(NULL, NULL, NULL) == NULL && fo_trainer_forward(NULL) == NULL);
    CHECK(fo_trainer_close(NULL) != FO_OK && fo_trainer_step(NULL) == 0);
}

/* A loss of log_prob and latents: sum of 0.3 log_prob sin(r) + 0.1 z^3. */
static double odd_loss(fo_workspace *ws, const fo_data *data) {
    double  lp[5], sum = 0;
    fo_real z[5 * 6];
    int     i;
    CHECK(fo_log_prob(ws, data, 0, 5, 0, lp) == FO_OK && fo_encode(ws, data, 0, 5, 0, z) == FO_OK);
    for (i = 0; i < 5; i++)
        sum += 0.3 * lp[i] * sin(1.0 + i);
    for (i = 0; i < 30; i++)
        sum += 0.1 * (double)z[i] * (double)z[i] * (double)z[i];
    return sum;
}

static int keep_gradient(void *user, fo_real *grad, int64_t count) {
    memcpy(user, grad, BYTES(count));
    return 1; /* the step is not taken */
}

static void test_own_loss(void) {
    static fo_real  grad[4000], rows[5 * 6];
    fo_context     *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow        *flow = fo_flow_parse(fo, "input 6\n2* coupling mask=halves:% hidden=5 "
                                             "act=tanh\nadditive mask=alternating:0 hidden=4 "
                                             "act=tanh");
    fo_data        *data = fo_data_view(fo, rows, REAL_TYPE, 5, shape_of(6, 1, 1));
    fo_workspace   *ws   = fo_workspace_create(fo, flow, 5);
    fo_train_desc   d;
    fo_trainer     *tr;
    const fo_batch *b;
    double          dlog_prob[5], eps = IS_DOUBLE ? 1e-6 : 1e-2, worst = 0;
    fo_real         dz[5 * 6], *values;
    int64_t         n, i;
    fo_random_normal(1, 1, 0, 30, rows);
    CHECK(fo_params(flow, &n) != NULL);
    values = flow->values;
    for (i = 0; i < n; i++) /* not the identity it starts as */
        values[i] += (fo_real)(0.3 * sin((double)i));
    memset(&d, 0, sizeof d);
    d.batch = 5, d.gradients = keep_gradient, d.user = grad;
    tr = fo_trainer_open(flow, data, &d);
    b  = fo_trainer_forward(tr);
    CHECK(b != NULL && b->rows == 5);
    if (b == NULL)
        return;
    for (i = 0; i < 30; i++)
        dz[i] = (fo_real)(0.3 * (double)b->z[i] * (double)b->z[i]);
    for (i = 0; i < 5; i++)
        dlog_prob[i] = 0.3 * sin(1.0 + (double)b->sample[i]);
    CHECK(fo_trainer_backward(tr, dlog_prob, dz) == FO_OK && fo_trainer_update(tr) == FO_OK);
    CHECK(fo_trainer_forward(tr) == NULL && fo_trainer_close(tr) == FO_OK);
    CHECK(fo_flow_steps(flow) == 0);
    for (i = 0; i < n; i++) {
        fo_real old = values[i];
        double  up, down;
        values[i] = old + (fo_real)eps;
        up        = odd_loss(ws, data);
        values[i] = old - (fo_real)eps;
        down      = odd_loss(ws, data);
        values[i] = old;
        worst     = fmax(worst, fabs((up - down) / (2 * eps) - (double)grad[i]) /
                                    (1 + fabs((double)grad[i])));
    }
    if (!(worst < (IS_DOUBLE ? 1e-7 : 2e-2)))
        printf("own loss: gradient off by %g\n", worst);
    CHECK(worst < (IS_DOUBLE ? 1e-7 : 2e-2));
    fo_close(fo);
}

/* A line through points, on a tape; the step of an optimizer on any tape is the one of a flow. */
static void test_tape_optimize(void) {
    static const fo_optimizer kinds[] = {FO_ADAM, FO_ADAMW, FO_RMSPROP};
    int64_t dim[2] = {16, 1}, cdim[2] = {1, 1}, bdim = 1;
    int     k, i, step;
    for (k = 0; k < COUNT(kinds); k++) {
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_tape      *tape = fo_tape_create(fo);
        fo_tensor    *x    = fo_input(tape, 2, dim, 0), *y = fo_input(tape, 2, dim, 0);
        fo_tensor    *w    = fo_param(tape, "w", 2, cdim, fo_init_of(FO_INIT_CONSTANT, 0));
        fo_tensor    *b    = fo_param(tape, "b", 1, &bdim, fo_init_of(FO_INIT_CONSTANT, 0));
        fo_tensor    *off  = fo_sub(fo_linear(x, w, b), y), *loss = fo_mean(fo_mul(off, off), 0);
        fo_train_desc d;
        fo_real       one = 1;
        uint64_t      before = 0;
        memset(&d, 0, sizeof d);
        d.optimizer = kinds[k], d.lr = 0.05;
        CHECK(fo_tape_optimize(tape, &d) == FO_ERR_ARGUMENT);
        fo_clear_error(fo);
        fo_output(loss);
        CHECK(fo_tape_plan(tape, 1) == FO_OK);
        for (step = 0; step < 600; step++) {
            for (i = 0; i < 16; i++) {
                x->data[i] = (fo_real)(i / 8.0 - 1);
                y->data[i] = 3 * x->data[i] - 2;
            }
            CHECK(fo_forward(tape) == FO_OK && fo_backward(tape, loss, &one) == FO_OK);
            if (step == 5) { /* a gradient that is not finite changes nothing */
                fo_real keep = w->data[0];
                w->grad[0] = (fo_real)NAN;
                CHECK(fo_tape_optimize(tape, &d) == FO_ERR_NUMERIC && strstr(fo_error(fo), "of w"));
                fo_clear_error(fo);
                d.on_nan = FO_NAN_SKIP;
                CHECK(fo_tape_optimize(tape, &d) == FO_OK && w->data[0] == keep);
                CHECK(fo_backward(tape, loss, &one) == FO_OK);
            }
            d.lr = step < 300 ? 0.05 : 0.002;
            CHECK(fo_tape_optimize(tape, &d) == FO_OK);
            if (step == 0) { /* Adam's first step is lr */
                CHECK(k == 2 || (fabs((double)w->data[0] - 0.05) < 1e-5 &&
                                 fabs((double)b->data[0] + 0.05) < 1e-5));
                before = fo_memory(fo).allocations;
            }
        }
        CHECK(fabs((double)w->data[0] - 3) < 0.05 && fabs((double)b->data[0] + 2) < 0.05);
        CHECK(before == fo_memory(fo).allocations);
        d.schedule = FO_COSINE;
        CHECK(fo_tape_optimize(tape, &d) == FO_ERR_ARGUMENT);
        fo_close(fo);
    }
}

/* Statistics that are deferred wait for the optimizer. */
static void test_deferred(void) {
    fo_context *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_tape    *tape = fo_tape_create(fo);
    int64_t     dim[2] = {8, 2}, c = 2;
    fo_init     one  = fo_init_of(FO_INIT_CONSTANT, 1), zero = fo_init_of(FO_INIT_CONSTANT, 0);
    fo_tensor  *x    = fo_input(tape, 2, dim, 0), *mean = fo_buffer(tape, "mean", 1, &c, zero);
    fo_tensor  *y    = fo_batch_norm(x, fo_param(tape, "w", 1, &c, one),
                                     fo_param(tape, "b", 1, &c, zero), mean,
                                     fo_buffer(tape, "var", 1, &c, one), fo_tape_norm(tape), 1, 0);
    fo_real     grad[16];
    int         i;
    fo_output(y);
    CHECK(fo_tape_plan(tape, 1) == FO_OK);
    for (i = 0; i < 16; i++)
        x->data[i] = (fo_real)i, grad[i] = (fo_real)(i % 3);
    fo_tape_norm(tape)->mode = FO_NORM_TRAIN, fo_tape_norm(tape)->defer = 1;
    CHECK(fo_forward(tape) == FO_OK && fo_backward(tape, y, grad) == FO_OK && mean->data[0] == 0);
    CHECK(fo_tape_optimize(tape, NULL) == FO_OK);
    CHECK_NEAR(mean->data[0], 0.7, 1e-6);
    fo_close(fo);
}

/* What the progress bar says, and what it does not; and whose error it is that a workspace cannot
   be made. Standard error goes to a file from here on. */
static void test_words(void) {
    const char   *path = IS_DOUBLE ? "build/test_bar_d.txt" : "build/test_bar_f.txt";
    static char   said[1000];
    fo_context   *fo = open_with(5, FO_SIMD_AUTO, 1), *mine = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow = fo_flow_parse(fo, text), *none = fo_flow_create(fo, shape_of(4, 1, 1));
    watch         w;
    fo_train_desc d = plain(&w, 2, 8);
    long          n;
    d.held_out = make_data(fo, 20, fo_flow_shape(flow)), d.held_out_every = 2;
    d.progress = fo_progress_bar;
    CHECK(freopen(path, "w", stderr) != NULL);
    CHECK(fo_train(flow, d.held_out, &d) == FO_OK);
    d.held_out = NULL;
    CHECK(fo_train(flow, make_data(fo, 20, fo_flow_shape(flow)), &d) == FO_OK); /* nothing to do */
    fflush(stderr);
    n = read_all(path, said, sizeof said - 1);
    CHECK(n > 0 && strstr(said, "epoch 0.80, bpd") && strstr(said, "held-out bpd "));
    CHECK(strstr(said, "bpd 0.000") == NULL && strstr(said, " 0 samples/s") == NULL);
    CHECK(strstr(said, "nan") == NULL && strstr(said, "step 2, epoch 0.80\n") != NULL);
    CHECK(fo_workspace_create(mine, none, 4) == NULL && fo_failed(mine) == FO_ERR_ARGUMENT);
    CHECK(strstr(fo_error(mine), "no layers") != NULL);
    fo_close(mine), fo_close(fo);
}

/* ---- every allocation fails once ------------------------------------------------------------- */

/* A whole small life. */
static fo_result life(heap *h, const char *path, int forgiving) {
    static fo_real  rows[12][6], out[12 * 6];
    fo_desc         desc;
    fo_context     *fo;
    fo_flow        *flow, *back;
    fo_data        *data;
    fo_workspace   *ws;
    fo_check_report report;
    fo_train_desc   d;
    fo_tape        *tape;
    fo_result       worst = FO_OK;
    int64_t         dim[2] = {64, 100}; /* too large for a chunk that is already there */
    double          score[12];
    fo_save_desc    small_one = {1, FO_F16};
    void           *bytes = NULL;
    size_t          size  = 0;
    memset(&desc, 0, sizeof desc), memset(&d, 0, sizeof d);
    desc.realloc_fn = heap_realloc, desc.user = h;
    fo = fo_open(&desc);
    if (fo == NULL)
        return FO_ERR_MEMORY;
    fo_random_normal(1, 1, 0, 72, rows[0]);
    d.steps = 3, d.batch = 5, d.ema = 0.9, d.memory_mb = 1e-4, d.held_out_every = 2;
    STAGE(flow = fo_flow_create(fo, shape_of(6, 1, 1)));
    STAGE(fo_add_standardize(flow));
    STAGE(fo_add_layer(flow, "whiten"));
    STAGE(fo_add_coupling(flow, fo_mask_named("random", 1), fo_net_mlp(5, 2, 3)));
    STAGE(fo_add_additive(flow, fo_mask_halves(0), fo_net_mlp(4, 1, 0)));
    STAGE(data = fo_data_view(fo, rows, REAL_TYPE, 12, shape_of(6, 1, 1)));
    d.held_out = data;
    STAGE(fo_train(flow, data, &d));
    STAGE(fo_save(flow, path));
    STAGE(back = fo_load_flow(fo, path));
    STAGE(ws = fo_workspace_create(fo, back, 4));
    STAGE(fo_score(ws, data, 0, 12, "likelihood", score));
    STAGE(fo_sample(ws, 1, 9, 1, out));
    STAGE(fo_check(back, data, NULL, &report));
    fo_workspace_free(ws), fo_flow_free(back);
    STAGE(back = fo_flow_parse(fo, "input 6\nstandardize\nwhiten\ncoupling mask=random:1 hidden=5 "
                                   "depth=2 bottleneck=3\nadditive mask=map:3c3x hidden=4"));
    STAGE(fo_load_weights(back, path));
    fo_flow_free(back);
    STAGE(fo_save_memory(flow, &small_one, &bytes, &size));
    STAGE(back = fo_load_flow_memory(fo, bytes, size));
    fo_save_free(fo, bytes);
    STAGE(tape = fo_tape_create(fo));
    STAGE(fo_output(fo_net_linear(fo_input(tape, 2, dim, 1), "a", 4, 0)));
    STAGE(fo_tape_plan(tape, 1));
    STAGE(fo_forward(tape));
    fo_flow_free(flow), fo_data_free(data), fo_tape_free(tape);
    worst = worst ? worst : fo_failed(fo);
    fo_close(fo);
    return worst;
}

int main(void) {
    test_golden();
    test_resume();
    test_schedules();
    test_stops();
    test_learns();
    test_moving_average();
    test_hook();
    test_clip();
    test_nan();
    test_standardize();
    test_standardize_offset();
    test_standardize_constant();
    test_standardize_negative();
    test_huge();
    test_same_bits();
    test_presets();
    test_bad_descs();
    test_checkpoints();
    test_save_as();
    test_half();
    test_given_weights();
    test_foreign_weights();
    test_hostile();
    test_held_out();
    test_held_out_resume();
    test_epochs();
    test_set_back();
    test_bad_batch();
    test_bad_data();
    test_bad_recalibration();
    test_trainer_bits();
    test_own_loss();
    test_tape_optimize();
    test_deferred();
    test_words();
    test_every_allocation(life, FILE_NAME("life"));
    return test_end();
}
