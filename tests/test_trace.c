/* Looking inside: fo_trace against the twins' layers, the flow's own terms, and moved pixels. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

/* ---- golden states, s and t ------------------------------------------------------------------ */

typedef struct watch {
    const fo_archive *golden;
    const char       *name;
    double            worst, logdet[8][32];
    int               layers, couplings, wrong;
    int64_t           seen;
} watch;

static double far_off(const watch *w, const fo_view *v, const char *what, const fo_real *got) {
    char            name[100];
    const fo_array *want;
    double          worst = 0;
    int64_t         i;
    snprintf(name, sizeof name, "%s.%d.%s", w->name, v->layer->index, what);
    want = fo_archive_find(w->golden, name);
    if (want == NULL || got == NULL)
        return want || got ? HUGE_VAL : 0;
    for (i = 0; i < v->rows * v->size; i++) {
        double b = ((const float *)want->values)[v->first * v->size + i];
        worst = fmax(worst, fabs((double)got[i] - b) / (1 + fabs(b)));
    }
    return worst;
}

/* after = (before + t) exp(s) where the mask says so, and nothing else moves */
static int is_coupling(const fo_view *v) {
    int64_t i, r, n = fo_shape_count(v->layer->shape);
    for (r = 0; r < v->rows; r++)
        for (i = 0; i < v->size; i++) {
            int64_t k = r * v->size + i;
            int     changes = i < n && v->layer->map[i] == FO_CHANGE;
            double  want = ((double)v->before[k] + (double)v->t[k]) * exp((double)v->s[k]);
            if ((!changes && (v->s[k] != 0 || v->t[k] != 0 || v->before[k] != v->after[k])) ||
                !(fabs(want - (double)v->after[k]) <= 1e-5 * (1 + fabs(want))) ||
                (v->s[k] != 0) != (v->raw_s[k] != 0))
                return 0;
        }
    return 1;
}

static int take_golden(void *user, const fo_view *v) {
    watch  *w = (watch *)user;
    int64_t r;
    w->worst = fmax(w->worst, far_off(w, v, "state", v->after));
    w->worst = fmax(w->worst, far_off(w, v, "s", v->s));
    w->worst = fmax(w->worst, far_off(w, v, "t", v->t));
    for (r = 0; r < v->rows; r++)
        w->logdet[v->first + r][v->layer->index] = v->logdet[r];
    w->layers++;
    if (v->layer->map) {
        w->couplings++;
        w->wrong += v->net == NULL || !is_coupling(v);
    } else {
        w->wrong += v->net != NULL || v->s != NULL;
    }
    return 0;
}

static void test_golden(fo_simd simd) {
    static const char *const names[] = {"flow_channels", "flow_odd", "flow_vector",
                                        "image_realnvp", "image_alt", "image_spatial",
                                        "image_glow"};
    fo_context *fo     = open_with(1, simd, 2);
    fo_archive *golden = fo_archive_open(fo, "tests/golden/trace.safetensors");
    int         f, k;
    for (f = 0; f < COUNT(names); f++) {
        char          path[100];
        fo_archive   *a;
        fo_flow      *flow;
        fo_data      *data;
        fo_workspace *ws;
        watch         w;
        double        terms[8 * 32];
        int64_t       i, batch;
        snprintf(path, sizeof path, "tests/golden/%s.safetensors", names[f]);
        a    = fo_archive_open(fo, path);
        flow = fo_load_flow(fo, path);
        CHECK(a && flow && golden);
        if (flow == NULL)
            break;
        batch = fo_archive_find(a, "golden.x")->dim[0];
        data  = fo_data_view(fo, fo_archive_find(a, "golden.x")->values,
                             fo_archive_find(a, "golden.x")->type, batch, fo_flow_shape(flow));
        ws    = fo_workspace_create(fo, flow, 2); /* not a divisor of the samples */
        memset(&w, 0, sizeof w);
        w.golden = golden, w.name = names[f];
        CHECK(fo_trace(ws, data, 0, batch, FO_DRAW_MIDDLE, take_golden, &w) == FO_OK);
        CHECK(w.layers == fo_flow_layers(flow) * ((batch + 1) / 2) && w.couplings > 0);
        if (!(w.worst <= 1e-5) || w.wrong)
            printf("%s: %g off, %d wrong\n", names[f], w.worst, w.wrong);
        CHECK(w.worst <= 1e-5 && w.wrong == 0);
        CHECK(fo_log_prob_terms(ws, data, 0, batch, FO_DRAW_MIDDLE, terms) == FO_OK);
        for (i = 0; i < batch; i++)
            for (k = 0; k < fo_flow_layers(flow); k++)
                CHECK(terms[i * (1 + fo_flow_layers(flow)) + 1 + k] == w.logdet[i][k]);
        fo_flow_free(flow);
    }
    CHECK(fo_failed(fo) == FO_OK);
    fo_close(fo);
}

/* ---- places ---------------------------------------------------------------------------------- */

/* Among layers that only move, every element still has the value of the place it came from, and
   what was latent stays where it is. */
static int take_places(void *user, const fo_view *v) {
    const fo_real *x = (const fo_real *)user;
    char           seen[200];
    int64_t        i, r;
    memset(seen, 0, sizeof seen);
    for (i = 0; i < v->size; i++) {
        CHECK(v->place_after[i] >= 0 && v->place_after[i] < v->size);
        CHECK(seen[v->place_after[i]]++ == 0);
    }
    for (r = 0; r < v->rows; r++)
        for (i = 0; i < v->size; i++) {
            CHECK(v->before[r * v->size + i] == x[(v->first + r) * v->size + v->place_before[i]]);
            CHECK(v->after[r * v->size + i] == x[(v->first + r) * v->size + v->place_after[i]]);
        }
    return 0;
}

static void test_places(void) {
    static const char *const texts[] = {
        "input 1x8x8\nsqueeze\nsplit\nsqueeze order=alt\nsplit\npermute reverse=1\n",
        "input 3x8x8\nsqueeze order=alt\npermute seed=3\nsplit\nsqueeze\nsplit\nunsqueeze\n"};
    fo_context *fo = fo_open(NULL);
    fo_real     x[3 * 192];
    int         f;
    for (f = 0; f < 2; f++) {
        fo_flow *flow = fo_flow_parse(fo, texts[f]);
        fo_data *data;
        fo_random_normal(5, 0, 0, 3 * 192, x);
        data = fo_data_view(fo, x, REAL_TYPE, 3, fo_flow_shape(flow));
        CHECK(fo_trace(fo_workspace_create(fo, flow, 2), data, 0, 3, 0, take_places, x) == FO_OK);
    }
    fo_close(fo);
}

/* The pixel that PyTorch's tensors moved each latent from. */
static int take_last(void *user, const fo_view *v) {
    const int64_t *pixel = (const int64_t *)user;
    int64_t        i;
    for (i = 0; i < v->size && v->layer->index + 1 == fo_flow_layers(v->layer->flow); i++)
        CHECK(v->place_after[i] == pixel[i]);
    return 0;
}

static void test_golden_places(void) {
    static const char *const paths[] = {"tests/golden/image_realnvp.safetensors",
                                        "tests/golden/image_spatial.safetensors"};
    fo_context *fo = fo_open(NULL);
    int         f;
    for (f = 0; f < 2; f++) {
        fo_archive     *a    = fo_archive_open(fo, paths[f]);
        fo_flow        *flow = fo_load_flow(fo, paths[f]);
        const fo_array *x    = fo_archive_find(a, "golden.x");
        const fo_array *pixel = fo_archive_find(a, "golden.pixel");
        fo_data        *data = fo_data_view(fo, x->values, x->type, 1, fo_flow_shape(flow));
        fo_workspace   *ws   = fo_workspace_create(fo, flow, 0);
        CHECK(pixel->type == FO_I64);
        CHECK(fo_trace(ws, data, 0, 1, 0, take_last, (void *)(size_t)pixel->values) == FO_OK);
    }
    fo_close(fo);
}

/* ---- layers of a user, errors, memory -------------------------------------------------------- */

static void twice_rows(fo_pass *p, int64_t begin, int64_t end) {
    int64_t r, i;
    for (r = begin; r < end; r++)
        for (i = 0; i < p->layer->width; i++)
            p->x[r * p->size + i] *= p->direction == FO_DECODE ? (fo_real)0.5 : 2;
    for (r = begin; r < end; r++)
        p->logdet[r] = log(2.0) * (double)p->layer->width;
}

/* y = x + one number a changed element; no `explain` */
static void shift_rows(fo_pass *p, int64_t begin, int64_t end) {
    int64_t r;
    int     j;
    for (r = begin; r < end; r++)
        for (j = 0; j < p->layer->n_change; j++)
            p->x[r * p->size + p->layer->change_at[j]] +=
                p->net[r * p->layer->n_out + p->layer->out_at[j]];
}

/* The same, and it says what its t is. */
static void told_explain(const fo_pass *p, int64_t r, fo_real *raw_s, fo_real *s, fo_real *t) {
    int j;
    (void)raw_s, (void)s;
    for (j = 0; j < p->layer->n_change; j++)
        t[p->layer->change_at[j]] = p->net[r * p->layer->n_out + p->layer->out_at[j]];
}

typedef struct log_of { int layers, stop_at, logdets, nets, told; fo_context *fo; } log_of;

static int take_user(void *user, const fo_view *v) {
    log_of *log_ = (log_of *)user;
    log_->layers++;
    if (strcmp(v->layer->kind->name, "twice") == 0)
        log_->logdets += v->after[1] == 2 * v->before[1] && v->s == NULL && v->net == NULL &&
                         v->logdet[0] == log(2.0) * 4;
    if (strcmp(v->layer->kind->name, "shift") == 0)
        log_->nets += v->net != NULL && v->s == NULL && v->t == NULL &&
                      v->after[v->layer->change_at[0]] == v->before[v->layer->change_at[0]] +
                                                             v->net[v->layer->out_at[0]];
    if (strcmp(v->layer->kind->name, "told") == 0)
        log_->told += v->t != NULL && v->s[0] == 0 && v->t[2] != 0 &&
                      v->after[2] == v->before[2] + v->t[2] && v->t[0] == 0;
    if (log_->fo)
        fo_fail(log_->fo, FO_ERR_ARGUMENT, "a complaint of the user's own");
    return log_->layers == log_->stop_at;
}

static void test_user(void) {
    fo_context   *fo = fo_open(NULL);
    fo_layer_kind twice, shift, told;
    fo_flow      *flow;
    fo_data      *data;
    fo_workspace *ws;
    float         x[2][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}}, huge[1][4] = {{3e38f, 0, 0, 0}};
    log_of        seen;
    memset(&twice, 0, sizeof twice);
    memset(&shift, 0, sizeof shift);
    twice.name = "twice", twice.rows = twice_rows;
    shift.name = "shift", shift.rows = shift_rows, shift.conditions = 1;
    told = shift, told.name = "told", told.explain = told_explain;
    CHECK(fo_register_layer(fo, &twice) == FO_OK && fo_register_layer(fo, &shift) == FO_OK &&
          fo_register_layer(fo, &told) == FO_OK);
    flow = random_flow(fo, "input 4\ntwice\nshift mask=halves:0 hidden=3\ncoupling mask=halves:1 "
                           "hidden=3\ntold mask=halves:0 hidden=3\n", 0.5);
    data = fo_data_view(fo, x, FO_F32, 2, fo_flow_shape(flow));
    ws   = fo_workspace_create(fo, flow, 0);
    memset(&seen, 0, sizeof seen);
    CHECK(fo_trace(ws, data, 0, 2, 0, take_user, &seen) == FO_OK);
    CHECK(seen.layers == 4 && seen.logdets == 1 && seen.nets == 1 && seen.told == 1);
    memset(&seen, 0, sizeof seen);
    seen.stop_at = 2, seen.fo = fo; /* the user's own errors are not the trace's */
    CHECK(fo_trace(ws, data, 0, 2, 0, take_user, &seen) == FO_OK && seen.layers == 2);
    fo_clear_error(fo);
    seen.fo = NULL;
    REFUSED(fo_trace(ws, data, 0, 2, 0, NULL, NULL), "no function");
    REFUSED(fo_trace(ws, data, 1, 2, 0, take_user, &seen), "2 samples from number 1");
    REFUSED(fo_trace(ws, NULL, 0, 0, 0, take_user, &seen), "no data");
    CHECK(fo_trace(NULL, data, 0, 1, 0, take_user, &seen) != FO_OK);
    memset(&seen, 0, sizeof seen);
    data = fo_data_view(fo, huge, FO_F32, 1, fo_flow_shape(flow));
    if (!IS_DOUBLE) { /* infinity is shown to the end, and told */
        REFUSED(fo_trace(ws, data, 0, 1, 0, take_user, &seen), "sample 0");
        CHECK(seen.layers == 4);
    }
    CHECK(fo_trace(ws, data, 0, 0, 0, take_user, &seen) == FO_OK);
    fo_close(fo);
}

static void test_memory(void) {
    fo_context   *fo   = fo_open(NULL);
    fo_flow      *flow = random_flow(fo, "input 1x4x4\ndequantize\ncoupling mask=checkerboard:0 "
                                         "net=glow channels=2\nsqueeze\nsplit\n", 0.1);
    fo_workspace *ws   = fo_workspace_create(fo, flow, 3);
    samples       s;
    fo_data      *data = flow_data(fo, flow, &s, 8);
    log_of        seen;
    uint64_t      before;
    double        a[8], b[8];
    memset(&seen, 0, sizeof seen);
    fo_log_prob(ws, data, 0, 8, 0, a);
    CHECK(fo_trace(ws, data, 0, 8, 0, take_user, &seen) == FO_OK && seen.layers == 3 * 4);
    before = fo_memory(fo).allocations;
    CHECK(fo_trace(ws, data, 0, 8, 0, take_user, &seen) == FO_OK);
    CHECK(fo_memory(fo).allocations == before);
    fo_log_prob(ws, data, 0, 8, 0, b);
    CHECK(memcmp(a, b, sizeof a) == 0);
    fo_close(fo);
}

int main(void) {
    test_golden(FO_SIMD_REF);
    test_golden(FO_SIMD_AUTO);
    test_places();
    test_golden_places();
    test_user();
    test_memory();
    return test_end();
}
