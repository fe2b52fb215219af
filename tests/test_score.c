/* Scoring: errors that stay local, noise, rows from memory, scores. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

/* ---- errors are local ------------------------------------------------------------------------ */

static int calls_failed; /* told by error_fn */
static void count_errors(void *user, fo_result code, const char *message) {
    calls_failed += code != FO_OK && *message;
    (void)user;
}

static fo_context *open_counting(void) {
    fo_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.error_fn = count_errors;
    calls_failed  = 0;
    return fo_open(&desc);
}

/* A file that is missing, a flow that could not be built, a tape that misses an op: everything that
   does not stand on them goes on. */
static void test_local_errors(void) {
    const int64_t dim[2] = {2, 3};
    fo_context   *fo     = open_counting();
    fo_flow      *flow   = random_flow(fo, "input 1x4x4\ndequantize\nlogit alpha=0.05\n"
                                           "4* coupling mask=cycle:% hidden=8\n", 0.3);
    fo_flow      *broken = fo_flow_create(fo, shape_of(1, 4, 4));
    fo_workspace *ws     = fo_workspace_create(fo, flow, 4);
    samples       s;
    fo_data      *data   = flow_data(fo, flow, &s, 6);
    fo_tape      *tape   = fo_tape_create(fo);
    fo_tensor    *x;
    double        before[6], after[6];
    CHECK(fo_log_prob(ws, data, 0, 6, 0, before) == FO_OK && calls_failed == 0);
    CHECK(fo_load(fo, "build/not-there") == NULL && calls_failed == 1);
    CHECK(fo_log_prob(ws, data, 0, 6, 0, after) == FO_OK && calls_failed == 1);
    CHECK(memcmp(before, after, sizeof before) == 0 && fo_failed(fo) == FO_ERR_FILE);
    CHECK(fo_train(flow, NULL, NULL) == FO_ERR_ARGUMENT && calls_failed == 2);
    CHECK(fo_failed(fo) == FO_ERR_FILE && strstr(fo_error(fo), "not-there")); /* the first one */
    fo_clear_error(fo);
    REFUSED(fo_add_layer(broken, "no such layer"), "unknown layer"); /* one that is wanted */
    REFUSED(fo_add_dequantize(broken), "could not be built");
    REFUSED(fo_train(broken, data, NULL), "could not be built");
    REFUSED(fo_workspace_create(fo, broken, 1) == NULL, "could not be built");
    CHECK(calls_failed == 6);
    x = fo_input(tape, 2, dim, 1);
    CHECK(fo_activation(x, "no such") == NULL && calls_failed == 7);
    CHECK(fo_net_linear(x, "a", 2, 0) == NULL && calls_failed == 8); /* told once */
    CHECK(fo_relu(fo_activation(x, "tanh")) == NULL && calls_failed == 9);
    CHECK(fo_tape_plan(tape, 0) == FO_ERR_ARGUMENT && strstr(fo_error(fo), "no such"));
    CHECK(fo_log_prob(NULL, data, 0, 1, 0, after) == FO_ERR_ARGUMENT && calls_failed == 10);
    CHECK(fo_score(ws, data, 0, 6, "likelihood", after) == FO_OK && after[0] == -before[0]);
    fo_close(fo);
}

/* A service: every tenth frame is bad, and costs nothing but its own answer. */
static void test_service(void) {
    enum { FRAMES = 10000, D = 16 };
    fo_context   *fo   = open_counting();
    fo_flow      *flow = random_flow(fo, "input 16\nlogit alpha=0.05\n"
                                         "2* coupling mask=halves:% hidden=4\n", 0.3);
    fo_workspace *ws   = fo_workspace_create(fo, flow, 1);
    fo_real       x[D];
    fo_data      *frame = fo_data_view(fo, x, REAL_TYPE, 1, shape_of(D, 1, 1));
    fo_data      *small = fo_data_view(fo, x, REAL_TYPE, 1, shape_of(D / 2, 1, 1));
    uint64_t      held  = fo_memory(fo).allocations;
    int           i, right = 0, clear = 0, same = 0;
    for (i = 0; i < FRAMES; i++) {
        double   answer = -1, alone = -2;
        int      bad    = i % 10 == 9 ? 1 + i / 10 % 2 : 0;
        fo_result result;
        fo_random_uniform(3, 4, (uint64_t)i * D, D, x);
        if (bad == 1)
            x[i % D] = (fo_real)NAN;
        result = fo_score(ws, bad == 2 ? small : frame, 0, 1, "likelihood", &answer);
        right += !bad && result == FO_OK;
        clear += bad && result == (bad == 1 ? FO_ERR_NUMERIC : FO_ERR_SHAPE) && answer == -1 &&
                 strstr(fo_error(fo), bad == 1 ? "nan in the data" : "8x1x1") != NULL;
        fo_clear_error(fo);
        if (!bad && i % 97 == 0) { /* the same frame where nothing ever failed */
            fo_context   *other = open_with(0, FO_SIMD_AUTO, 1);
            fo_workspace *quiet = fo_workspace_create(other, flow, 1);
            same += fo_score(quiet, frame, 0, 1, "likelihood", &alone) != FO_OK || alone != answer;
            fo_close(other);
        }
    }
    CHECK(right == 9000 && clear == 1000 && same == 0 && calls_failed == 1000);
    CHECK(fo_memory(fo).allocations == held);
    fo_close(fo);
}

typedef struct visits { fo_context *fo; const fo_data *data; int seen, wrong; } visits;

/* Whatever a progress function calls is not part of the training. */
static int visit(void *user, const fo_progress *progress) {
    visits *v = (visits *)user;
    double  lp;
    (void)progress;
    v->seen++;
    v->wrong += fo_load(v->fo, "build/not-there") != NULL;
    v->wrong += fo_log_prob(NULL, v->data, 0, 1, 0, &lp) == FO_OK;
    v->wrong += fo_fail(v->fo, FO_ERR_SHAPE, "said so") != FO_ERR_SHAPE;
    return 0;
}
static int visit_gradients(void *user, fo_real *grad, int64_t count) {
    (void)grad, (void)count;
    return visit(user, NULL);
}

static fo_result fail_shape(fo_tensor *out) {
    out->rank = out->in[0]->rank;
    memcpy(out->dim, out->in[0]->dim, sizeof out->dim);
    return FO_OK;
}
static void fail_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    memcpy(out->data, out->in[0]->data, BYTES(out->count));
    (void)begin, (void)end;
    if (out->data[0] > 5)
        fo_fail(fo_tape_context(out->tape), FO_ERR_NUMERIC, "%g is more than 5",
                (double)out->data[0]);
}
static fo_tensor *fail_build(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    fo_load(fo_tape_context(tape), "build/not-there"); /* a part of the call that builds */
    return fo_net_linear(x, "a", outputs + 0 * net->hidden, 0);
}
static fo_state fail_mask(void *user, fo_shape shape, int phase, int c, int y, int x) {
    if (shape.w + c + y + phase >= 0 && x == 3)
        fo_fail((fo_context *)user, FO_ERR_ARGUMENT, "column 3");
    return x % 2 ? FO_CHANGE : FO_CONDITION;
}

static void test_callbacks_that_fail(void) {
    static const fo_op       op  = {"picky", 0, fail_shape, fail_forward, NULL};
    static const fo_net_kind net = {"picky", fail_build, 0, {{0}}};
    const int64_t dim  = 2;
    fo_context   *fo   = open_counting();
    fo_flow      *flow = random_flow(fo, "input 1x4x4\ndequantize\n"
                                         "2* coupling mask=cycle:% hidden=8\n", 0.1);
    samples       s;
    fo_data      *data = flow_data(fo, flow, &s, 8);
    fo_tape      *tape = fo_tape_create(fo);
    fo_tensor    *x, *out;
    fo_train_desc desc;
    visits        v;
    memset(&desc, 0, sizeof desc);
    memset(&v, 0, sizeof v);
    v.fo = fo, v.data = data;
    desc.steps = 5, desc.batch = 4, desc.progress = visit, desc.gradients = visit_gradients;
    desc.user = &v;
    CHECK(fo_train(flow, data, &desc) == FO_OK && fo_flow_steps(flow) == 5);
    CHECK(v.seen >= 6 && v.wrong == 0 && calls_failed == 2 * v.seen);
    CHECK(fo_failed(fo) == FO_ERR_FILE); /* nothing is lost either */
    fo_clear_error(fo);

    x = fo_input(tape, 1, &dim, 0);
    fo_output(out = fo_apply(tape, &op, &x, 1, NULL, 0));
    CHECK(fo_tape_plan(tape, 0) == FO_OK);
    x->data[0] = 6;
    REFUSED(fo_forward(tape), "6 is more than 5");
    x->data[0] = 4;
    CHECK(fo_forward(tape) == FO_OK && out->data[0] == 4);
    CHECK(fo_register_net(fo, &net) == FO_OK);
    CHECK(fo_register_mask(fo, "picky", fail_mask, fo) == FO_OK);
    flow = fo_flow_create(fo, shape_of(1, 4, 4));
    REFUSED(fo_add_coupling(flow, fo_mask_cycle(0), fo_net_named("picky")), "not-there");
    flow = fo_flow_create(fo, shape_of(1, 4, 4));
    REFUSED(fo_add_coupling(flow, fo_mask_named("picky", 0), fo_net_mlp(3, 1, 0)), "column 3");
    fo_close(fo);
}

/* ---- noise: the model's, and the same for every sample --------------------------------------- */

#define IMAGE_FLOW "input 1x4x4\ndequantize\nlogit alpha=0.05\n4* coupling mask=cycle:% hidden=8\n"

/* Whether this picture gets this score, from a workspace of a context of another seed. */
static int scores_alike(fo_flow *flow, const unsigned char *pixels, double want) {
    fo_context   *other = open_with(1234, FO_SIMD_AUTO, 1);
    fo_workspace *ws    = fo_workspace_create(other, flow, 3);
    fo_data      *alone = fo_data_view(other, pixels, FO_U8, 1, shape_of(1, 4, 4));
    double        got   = 0, rows = 0;
    int           ok;
    ok = fo_log_prob(ws, alone, 0, 1, 0, &got) == FO_OK && got == want;
    ok &= fo_log_prob_rows(ws, pixels, FO_U8, 1, 0, &rows) == FO_OK && rows == want;
    fo_close(other);
    return ok;
}

static void test_noise(void) {
    static const int draws[] = {0, 1, 2, 1 << 20, 1 << 24, (1 << 24) + 1, 1 << 30, INT_MAX, -1};
    const char   *path = FILE_NAME("seed");
    fo_context   *fo   = open_with(77, FO_SIMD_AUTO, 1), *far = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow = random_flow(fo, IMAGE_FLOW, 0.3), *back, *bare;
    fo_workspace *ws   = fo_workspace_create(fo, flow, 7);
    fo_save_desc  small;
    fo_real       z[COUNT(draws)][16], u[16];
    samples       s, turned;
    fo_data      *data = flow_data(fo, flow, &s, 40), *same;
    double        lp[40], other[40];
    int           i, j;
    CHECK(fo_log_prob(ws, data, 0, 40, 0, lp) == FO_OK);
    for (i = 0; i < 40; i++) { /* in another place of another file */
        memcpy(turned.pixel + 16 * i, s.pixel + 16 * ((i + 9) % 40), 16);
        CHECK(i % 8 || scores_alike(flow, s.pixel + 16 * i, lp[i]));
    }
    same = fo_data_view(fo, turned.pixel, FO_U8, 40, shape_of(1, 4, 4));
    CHECK(fo_log_prob(ws, same, 0, 40, 0, other) == FO_OK);
    for (i = 0; i < 40; i++)
        CHECK(other[i] == lp[(i + 9) % 40]);

    memset(&small, 0, sizeof small); /* a file keeps the seed, with or without a training state */
    small.weights_only = 1;
    for (i = 0; i < 2; i++) {
        CHECK(fo_save_as(flow, path, i ? &small : NULL) == FO_OK);
        back = fo_load_flow(far, path);
        CHECK(back && scores_alike(back, s.pixel + 16 * 3, lp[3]));
        fo_flow_free(back);
    }
    remove(path);

    bare = fo_flow_parse(fo, "input 1x4x4\ndequantize\n"); /* whose latents are x and noise */
    ws   = fo_workspace_create(fo, bare, 2);
    for (i = 0; i < COUNT(draws); i++) {
        CHECK(fo_encode(ws, data, 2, 1, draws[i], z[i]) == FO_OK);
        fo_random_uniform(77, ((uint64_t)9 << 60) + (uint64_t)draws[i], 0, 16, u);
        for (j = 0; j < 16; j++)
            CHECK(z[i][j] == (s.pixel[32 + j] + (draws[i] < 0 ? (fo_real)0.5 : u[j])) / 256);
        for (j = 0; j < i; j++)
            CHECK(memcmp(z[i], z[j], sizeof z[i]) != 0);
    }
    fo_close(far), fo_close(fo);
}

/* The mean over draws is that of the densities. */
static void test_mean_of_draws(void) {
    fo_context   *fo   = open_with(3, FO_SIMD_AUTO, 1);
    fo_flow      *flow = random_flow(fo, IMAGE_FLOW, 0.3);
    fo_workspace *ws   = fo_workspace_create(fo, flow, 3);
    fo_workspace *whole = fo_workspace_create(fo, flow, 8);
    samples       s;
    fo_data      *data = flow_data(fo, flow, &s, 8);
    double        each[5][8], mean[8], again[8];
    int           i, k;
    for (k = 0; k < 5; k++)
        CHECK(fo_log_prob(ws, data, 0, 8, k, each[k]) == FO_OK);
    CHECK(fo_log_prob_mean(ws, data, 0, 8, 5, mean) == FO_OK);
    for (i = 0; i < 8; i++) {
        double sum = 0;
        for (k = 0; k < 5; k++)
            sum += exp(each[k][i] - each[0][i]) / 5;
        CHECK_NEAR(mean[i], each[0][i] + log(sum), 1e-13);
    }
    CHECK(fo_log_prob_mean(whole, data, 0, 8, 5, again) == FO_OK);
    CHECK(memcmp(mean, again, sizeof mean) == 0);
    CHECK(fo_log_prob_mean(ws, data, 0, 8, 1, mean) == FO_OK);
    CHECK(memcmp(mean, each[0], sizeof mean) == 0);
    REFUSED(fo_log_prob_mean(ws, data, 0, 8, 0, mean), "the mean over 0 draws");
    fo_close(fo);
}

/* ---- rows from memory ------------------------------------------------------------------------ */

static void test_rows(void) {
    static const char *const both[] = {"likelihood", "volume"};
    fo_context   *fo   = open_with(3, FO_SIMD_AUTO, 1);
    fo_flow      *flow = random_flow(fo, IMAGE_FLOW, 0.3);
    fo_workspace *ws   = fo_workspace_create(fo, flow, 3);
    samples       s;
    fo_data      *data = flow_data(fo, flow, &s, 8);
    unsigned char odd[8 * 16 * 8 + 1];
    float         narrow[8 * 16];
    double        wide[8 * 16], want[8], got[8], two[2][8], lp[8];
    fo_real       z[8 * 16], want_z[8 * 16], x[16];
    uint64_t      held;
    int           i;
    for (i = 0; i < 8 * 16; i++)
        wide[i] = narrow[i] = s.pixel[i];
    memcpy(odd + 1, wide, sizeof wide);
    CHECK(fo_log_prob(ws, data, 0, 8, 2, want) == FO_OK);
    CHECK(fo_encode(ws, data, 0, 8, 2, want_z) == FO_OK);
    CHECK(fo_log_prob(ws, data, 0, 8, 0, lp) == FO_OK);
    held = fo_memory(fo).allocations;
    CHECK(fo_log_prob_rows(ws, s.pixel, FO_U8, 8, 2, got) == FO_OK && !memcmp(got, want, 64));
    CHECK(fo_log_prob_rows(ws, narrow, FO_F32, 8, 2, got) == FO_OK && !memcmp(got, want, 64));
    CHECK(fo_log_prob_rows(ws, odd + 1, FO_F64, 8, 2, got) == FO_OK && !memcmp(got, want, 64));
    CHECK(fo_encode_rows(ws, s.pixel, FO_U8, 8, 2, z) == FO_OK && !memcmp(z, want_z, sizeof z));
    for (i = 0; i < 8; i++) { /* one at a time */
        CHECK(fo_log_prob_rows(ws, s.pixel + 16 * i, FO_U8, 1, 2, got) == FO_OK);
        CHECK(got[0] == want[i]);
    }
    CHECK(fo_score_rows(ws, s.pixel, FO_U8, 8, "likelihood", got) == FO_OK);
    CHECK(fo_scores_rows(ws, s.pixel, FO_U8, 8, both, 2, 0, two[0]) == FO_OK);
    for (i = 0; i < 8; i++)
        CHECK(got[i] == -lp[i] && two[0][i] == -lp[i] && two[1][i] != two[0][i]);
    CHECK(fo_decode(ws, z, 1, x, NULL) == FO_OK); /* nothing of the rows is looked at any more */
    CHECK(fo_log_prob_rows(ws, NULL, FO_U8, 0, 0, NULL) == FO_OK);
    CHECK(fo_memory(fo).allocations == held && fo_failed(fo) == FO_OK);
    REFUSED(fo_log_prob_rows(ws, NULL, FO_U8, 1, 0, got), "at NULL");
    REFUSED(fo_log_prob_rows(ws, s.pixel, FO_I64, 1, 0, got), "I64");
    REFUSED(fo_log_prob_rows(ws, s.pixel, (fo_dtype)-3, 1, 0, got), "unknown type");
    REFUSED(fo_log_prob_rows(ws, s.pixel, FO_U8, -1, 0, got), "-1 samples");
    REFUSED(fo_log_prob_rows(ws, s.pixel, FO_U8, 1, 0, NULL), "no place");
    narrow[16 + 5] = (float)NAN;
    CHECK(fo_log_prob_rows(ws, narrow, FO_F32, 8, 0, got) != FO_OK);
    CHECK(strstr(fo_error(fo), "sample 1: nan") != NULL);
    CHECK(strstr(fo_error(fo), "leave the sample out") != NULL);
    fo_clear_error(fo); /* what cannot be made of these data, before what is only not fitted yet */
    REFUSED(fo_score_rows(ws, narrow, FO_F32, 1, "complexity", got), "complexity needs uint8");
    REFUSED(fo_score_rows(ws, s.pixel, FO_U8, 1, "complexity", got), "fo_calibrate");
    fo_close(fo);
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* The brightest element: a score that looks at x, and what a user carries. */
static void brightest(const fo_score_input *in, double *f) {
    int64_t i;
    f[0] = 0;
    for (i = 0; i < fo_shape_count(in->shape); i++)
        f[0] = (double)in->x[i] > f[0] ? (double)in->x[i] : f[0];
    ++*(int *)in->user;
}
static void last_logdet(const fo_score_input *in, double *f) {
    f[0] = -in->terms[in->layers] + 0 * (double)in->z[fo_shape_count(in->shape) - 1];
}
static void no_number(const fo_score_input *in, double *f) { f[0] = in->log_prob * (double)NAN; }
static void refuses(const fo_score_input *in, double *f) {
    fo_fail((fo_context *)in->user, FO_ERR_NUMERIC, "not this one: %g", in->log_prob);
    f[0] = 0;
}

static void test_several_scores(void) {
    static const char *const names[] = {"likelihood", "latent", "volume", "brightest", "last"};
    static const char *const bad[]   = {"likelihood", "no-number", "refuses", "shape", NULL};
    fo_context   *fo   = open_with(3, FO_SIMD_AUTO, 1);
    fo_flow      *flow = random_flow(fo, IMAGE_FLOW, 0.3);
    fo_workspace *ws   = fo_workspace_create(fo, flow, 3);
    samples       s;
    fo_data      *data = flow_data(fo, flow, &s, 8);
    double        all[5][6], one[6], terms[6][1 + 6];
    uint64_t      held;
    int           i, k, built_in, calls = 0, ok;
    fo_score_kind kind, none;
    memset(&kind, 0, sizeof kind);
    kind.name = "brightest", kind.formula = "max x", kind.features = brightest;
    kind.flags = FO_SCORE_X;
    kind.user = &calls;
    CHECK(fo_register_score(fo, &kind) == FO_OK);
    kind.name = "last", kind.features = last_logdet, kind.formula = NULL;
    CHECK(fo_register_score(fo, &kind) == FO_OK);
    kind.name = "no-number", kind.features = no_number;
    CHECK(fo_register_score(fo, &kind) == FO_OK);
    kind.name = "refuses", kind.features = refuses, kind.user = fo;
    CHECK(fo_register_score(fo, &kind) == FO_OK);
    kind.name = "latent";
    REFUSED(fo_register_score(fo, &kind), "built-in");
    kind.name = "a b";
    REFUSED(fo_register_score(fo, &kind), "'a b'");
    memset(&none, 0, sizeof none);
    REFUSED(fo_register_score(fo, &none), "features, and size and fit");
    held = fo_memory(fo).allocations;
    CHECK(fo_scores(ws, data, 1, 6, names, 5, 3, all[0]) == FO_OK && calls == 6);
    CHECK(fo_log_prob_terms(ws, data, 1, 6, 3, terms[0]) == FO_OK);
    for (i = 0; i < 6; i++) {
        double logdet = 0, most = 0;
        for (k = 1; k <= fo_flow_layers(flow); k++)
            logdet += terms[i][k];
        for (k = 0; k < 16; k++)
            most = s.pixel[16 * (i + 1) + k] > most ? s.pixel[16 * (i + 1) + k] : most;
        CHECK(all[1][i] == -terms[i][0] && all[2][i] == -logdet && all[3][i] == most);
        CHECK(all[4][i] == -terms[i][6]);
        CHECK_NEAR(all[0][i], all[1][i] + all[2][i], 1e-13);
    }
    for (k = 0; k < 3; k++) /* one name at a time, under draw 0 */
        for (ok = fo_scores(ws, data, 1, 6, names, 3, 0, all[0]) == FO_OK, i = 0; i < 6; i++)
            CHECK(ok && fo_score(ws, data, 1 + i, 1, names[k], one) == FO_OK &&
                  one[0] == all[k][i]);
    CHECK(fo_memory(fo).allocations == held);
    for (built_in = 0; fo_score_at(NULL, built_in).name; built_in++) {}
    for (i = 0; fo_score_at(fo, i).name; i++)
        CHECK(strlen(fo_score_at(fo, i).formula) < 70 && fo_score_at(fo, i).features);
    CHECK(i == built_in + 4 && strcmp(fo_score_at(fo, built_in).name, "brightest") == 0);
    CHECK(fo_score_at(fo, -1).name == NULL && strcmp(fo_score_at(NULL, 2).name, "volume") == 0);
    REFUSED(fo_scores(ws, data, 0, 6, bad, 2, 0, all[0]), "score no-number of sample 0");
    REFUSED(fo_scores(ws, data, 2, 3, bad + 2, 1, 0, all[0]), "not this one");
    REFUSED(fo_scores(ws, data, 0, 6, bad + 3, 1, 0, all[0]), "likelihood, latent, volume, typ");
    REFUSED(fo_scores(ws, data, 0, 6, bad + 4, 1, 0, all[0]), "unknown score ''");
    REFUSED(fo_scores(ws, data, 0, 6, names, 0, 0, all[0]), "0 scores");
    REFUSED(fo_scores(ws, data, 0, 6, names, FO_MAX_SCORES + 1, 0, all[0]), "33 scores");
    REFUSED(fo_score(ws, data, 0, 6, "likelihood", NULL), "no place");
    fo_close(fo);
}

int main(void) {
    test_local_errors();
    test_service();
    test_callbacks_that_fail();
    test_noise();
    test_mean_of_draws();
    test_rows();
    test_several_scores();
    return test_end();
}
