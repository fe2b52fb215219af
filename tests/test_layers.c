/* Layers of users: the one in examples/custom.c, and what else the interface promises. */
#define main custom_main
#include "../examples/custom.c"
#undef main
#include "test.h"

#define SAYS(call, say)                                                                            \
    do {                                                                                           \
        CHECK(call);                                                                               \
        if (strstr(fo_error(fo), say) == NULL)                                                     \
            printf("'%s' does not say '%s'\n", fo_error(fo), say);                                 \
        CHECK(strstr(fo_error(fo), say) != NULL);                                                  \
        fo_clear_error(fo);                                                                        \
    } while (0)

/* ---- an elementwise layer with a setting: y = x > 0 ? x : slope x ---------------------------- */

static void leak_rows(fo_pass *p, int64_t begin, int64_t end) {
    double  slope = fo_setting_value(&p->layer->settings, "slope");
    int64_t r, i;
    for (r = begin; r < end; r++)
        for (i = 0; i < p->layer->width; i++) {
            fo_real *x = &p->x[r * p->size + i];
            if (*x >= 0)
                continue;
            *x = (fo_real)(p->direction == FO_ENCODE ? (double)*x * slope : (double)*x / slope);
            if (p->direction == FO_BACKWARD)
                p->dx[r * p->size + i] *= (fo_real)slope;
            else
                p->logdet[r] += p->direction == FO_ENCODE ? log(slope) : -log(slope);
        }
}

static fo_layer_kind leak_kind(void) {
    const fo_setting slope = {"slope", 0.5, 0, 1, FO_SETTING_REAL, NULL};
    fo_layer_kind    kind;
    memset(&kind, 0, sizeof kind);
    kind.name        = "leak";
    kind.settings[0] = slope;
    kind.rows        = leak_rows;
    return kind;
}

/* ---- a coupling with three outputs: y = (x + t) exp(tanh s) + u ------------------------------ */

static fo_result triple_shape(fo_layer *layer) {
    layer->save = 2 * layer->n_change; /* x and exp(tanh s) */
    return FO_OK;
}

static void triple_rows(fo_pass *p, int64_t begin, int64_t end) {
    const fo_layer *l = p->layer;
    const int      *s_at = l->out_at, *t_at = s_at + l->n_change, *u_at = t_at + l->n_change;
    int64_t         r;
    int             j;
    for (r = begin; r < end; r++)
        for (j = 0; j < l->n_change; j++) {
            const fo_real *net = p->net + r * l->n_out;
            fo_real       *x = &p->x[r * p->size + l->change_at[j]], *dx, *dnet, *save;
            double         th = tanh((double)net[s_at[j]]), e = exp(th), before = (double)*x;
            if (p->direction == FO_DECODE) {
                *x = (fo_real)((before - (double)net[u_at[j]]) / e - (double)net[t_at[j]]);
                p->logdet[r] -= th;
            } else if (p->direction == FO_ENCODE) {
                if (p->save)
                    p->save[r * l->save + j] = *x;
                *x = (fo_real)((before + (double)net[t_at[j]]) * e + (double)net[u_at[j]]);
                p->logdet[r] += th;
            } else {
                dx   = &p->dx[r * p->size + l->change_at[j]];
                dnet = p->dnet + r * l->n_out, save = p->save + r * l->save;
                dnet[u_at[j]] = *dx;
                dnet[s_at[j]] = (fo_real)(((double)*dx * (before - (double)net[u_at[j]]) +
                                           p->dlogdet[r]) * (1 - th * th));
                *dx           = (fo_real)((double)*dx * e);
                dnet[t_at[j]] = *dx;
                *x            = save[j];
            }
        }
}

static fo_layer_kind triple_kind(void) {
    fo_layer_kind kind;
    memset(&kind, 0, sizeof kind);
    kind.name       = "triple";
    kind.conditions = 3;
    kind.shape      = triple_shape;
    kind.rows       = triple_rows;
    return kind;
}

/* ---- layers that move, measure and start: "rotate", "centre" --------------------------------- */

static fo_result rotate_shape(fo_layer *layer) {
    int *from = (int *)fo_layer_alloc(layer, (size_t)layer->width * sizeof *from);
    int  i, n = (int)layer->width;
    for (i = 0; i < n && from; i++)
        from[i] = (i + (int)fo_setting_value(&layer->settings, "by")) % n;
    layer->from = from;
    return from ? FO_OK : FO_ERR_MEMORY;
}

static fo_result bad_shape(fo_layer *layer) { /* every element from place 0 */
    layer->from = (const int *)fo_layer_alloc(layer, (size_t)layer->width * sizeof(int));
    return FO_OK;
}

static fo_result wide_shape(fo_layer *layer) {
    layer->out.c = 2 * layer->shape.c;
    return FO_OK;
}

static fo_result centre_shape(fo_layer *layer) {
    int64_t *at = (int64_t *)fo_layer_alloc(layer, sizeof *at);
    if (at)
        *at = fo_layer_buffer(layer, "mean", 1, &layer->width, fo_init_of(FO_INIT_CONSTANT, 0));
    layer->own  = at;
    layer->work = layer->width;
    return at && *at >= 0 ? FO_OK : FO_ERR_MEMORY;
}

static void centre_measure(fo_pass *p, int64_t seen, int64_t count) {
    int64_t r, i;
    for (i = 0; i < p->layer->width; i++) {
        if (seen == 0)
            p->work[i] = 0;
        for (r = 0; r < p->rows; r++)
            p->work[i] += (double)p->x[r * p->size + i] / (double)count;
        if (seen + p->rows == count)
            p->buffers[*(int64_t *)p->layer->own + i] = (fo_real)p->work[i];
    }
}

static void centre_rows(fo_pass *p, int64_t begin, int64_t end) {
    const fo_real *mean = p->buffers + *(int64_t *)p->layer->own;
    int64_t        r, i;
    for (r = begin; r < end; r++)
        for (i = 0; i < p->layer->width; i++)
            p->x[r * p->size + i] += p->direction == FO_ENCODE ? -mean[i] : mean[i];
}

static fo_layer_kind plain_kind(const char *name, fo_result (*shape)(fo_layer *)) {
    fo_layer_kind kind;
    memset(&kind, 0, sizeof kind);
    kind.name  = name;
    kind.shape = shape;
    return kind;
}

static fo_layer_kind rotate_kind(void) {
    const fo_setting by = {"by", 1, 0, 100, FO_SETTING_SHOWN, NULL};
    fo_layer_kind    kind = plain_kind("rotate", rotate_shape);
    kind.settings[0] = by;
    return kind;
}

static fo_layer_kind centre_kind(int front) {
    fo_layer_kind kind = plain_kind(front ? "centre" : "centre-batch", centre_shape);
    kind.front   = front;
    kind.measure = centre_measure;
    kind.rows    = centre_rows;
    return kind;
}

static void register_all(fo_context *fo) {
    fo_layer_kind kinds[6];
    int           i;
    kinds[0] = reflect_kind(), kinds[1] = leak_kind(), kinds[2] = triple_kind();
    kinds[3] = rotate_kind(), kinds[4] = centre_kind(1), kinds[5] = centre_kind(0);
    for (i = 0; i < 6; i++)
        CHECK(fo_register_layer(fo, &kinds[i]) == FO_OK);
    CHECK(fo_register_net(fo, &residual) == FO_OK);
}

static fo_real rows[480];
static fo_data *numbers(fo_context *fo, fo_shape shape) {
    fo_random_normal(3, 3, 0, 480, rows);
    return fo_data_view(fo, rows, REAL_TYPE, 480 / fo_shape_count(shape), shape);
}

/* Every layer is what fo_check says a layer must be, alone and with others, on vectors and images,
   behind a split too; and through a file. */
static void test_check(void) {
    static const struct { const char *text; fo_shape shape; int untouched; } flows[] = {
        {"input 6\nreflect\ncoupling mask=halves:0 hidden=5 act=tanh\n", {6, 1, 1}, 0},
        {"input 6\nleak slope=0.3\nadditive mask=halves:0 hidden=5 act=tanh\n", {6, 1, 1}, 3},
        {"input 6\ntriple mask=halves:0 net=residual hidden=5 steps=3\nrotate by=2\nleak\n"
         "triple mask=halves:1 net=mlp hidden=5 act=tanh\n", {6, 1, 1}, 2},
        {"input 2x2x3\ntriple mask=channel:1 net=glow channels=3\nreflect\nrotate by=5\n",
         {2, 2, 3}, 0},
        {"input 4x1x3\ncentre\ntriple mask=alternating:0 net=glow channels=3\nsplit\nreflect\n"
         "centre-batch\nrotate by=1\nleak\ncoupling mask=channel:0 hidden=4 act=softplus\n",
         {4, 1, 3}, 3}};
    const char *path = FILE_NAME("layers");
    int         i;
    for (i = 0; i < COUNT(flows); i++) {
        fo_context     *fo = open_with(2, FO_SIMD_AUTO, 2), *other = open_with(2, FO_SIMD_AUTO, 1);
        fo_flow        *flow, *back;
        fo_data        *data;
        fo_check_report r;
        int64_t         n = 0, j;
        fo_real        *w;
        double          lp[2][80];
        register_all(fo);
        flow = fo_flow_parse(fo, flows[i].text);
        if (flow == NULL)
            printf("%s: %s\n", flows[i].text, fo_error(fo));
        back = flow ? fo_flow_parse(fo, fo_flow_text(flow)) : NULL;
        CHECK(back && strcmp(fo_flow_text(back), fo_flow_text(flow)) == 0);
        data = numbers(fo, flows[i].shape);
        fo_params(flow, &n);
        w = flow->values; /* behind the back of fo_set_params */
        for (j = 0; j < n; j++) {
            fo_real noise;
            fo_random_normal(9, 9, (uint64_t)j, 1, &noise);
            w[j] += (fo_real)0.3 * noise;
        }
        CHECK(fo_check(flow, data, NULL, &r) == FO_OK);
        if (!(r.jacobian < 2e-2 && r.gradient < 0.05) || r.untouched != flows[i].untouched)
            printf("%s: round trip %g, logdet %g, jacobian %g, gradient %g, untouched %d\n",
                   flows[i].text, r.round_trip, r.logdet_pair, r.jacobian, r.gradient, r.untouched);
        CHECK(r.round_trip < (IS_DOUBLE ? 1e-9 : 1e-3));
        CHECK(r.logdet_pair < (IS_DOUBLE ? 1e-9 : 1e-4));
        CHECK(r.jacobian >= 0 && r.jacobian < (IS_DOUBLE ? 1e-6 : 2e-2));
        if (IS_DOUBLE || strstr(flows[i].text, "leak") == NULL) /* in float: steps over a kink */
            CHECK(r.gradient > 0 && r.gradient < (IS_DOUBLE ? 1e-5 : 0.05));
        CHECK(r.untouched == flows[i].untouched);
        CHECK(fo_save(flow, path) == FO_OK);
        back = fo_load_flow(fo, path);
        CHECK(back != NULL);
        n = fo_data_count(data);
        CHECK(fo_log_prob(fo_workspace_create(fo, flow, 7), data, 0, n, 0, lp[0]) == FO_OK);
        CHECK(fo_log_prob(fo_workspace_create(fo, back, 3), data, 0, n, 0, lp[1]) == FO_OK);
        CHECK(memcmp(lp[0], lp[1], (size_t)n * sizeof(double)) == 0);
        CHECK(fo_load_flow(other, path) == NULL); /* where nobody made them known */
        CHECK(strstr(fo_error(other), "unknown layer") &&
              strstr(fo_error(other), "fo_register_layer"));
        fo_close(other);
        fo_close(fo);
    }
    remove(path);
}

/* ---- normalize and whiten -------------------------------------------------------------------- */

static fo_real vectors[40 * 6]; /* the samples of tests/golden/make_whiten.py */

static fo_data *vector_data(fo_context *fo) {
    int i, j;
    for (i = 0; i < 40; i++)
        for (j = 0; j < 6; j++)
            vectors[i * 6 + j] = (fo_real)(2 + pow(2, -(j + 1)) *
                                 fmod(1e4 * sin(12.9898 * (i + 1) + 78.233 * (j + 1)), 1));
    return fo_data_view(fo, vectors, REAL_TYPE, 40, shape_of(6, 1, 1));
}

/* Measured, and not trained: the couplings are the identity. */
static fo_result measure(fo_flow *flow, const fo_data *data) {
    fo_train_desc d;
    fo_trainer   *tr;
    memset(&d, 0, sizeof d);
    d.batch = 7, d.steps = 1; /* 40 is no multiple of it */
    tr      = fo_trainer_open(flow, data, &d);
    fo_trainer_close(tr);
    return fo_failed(flow->fo);
}

/* Against NumPy: tests/golden/make_whiten.py. */
static void test_vectors(void) {
    static const struct { const char *text; double shrink, z[6], logdet, log_prob; } golden[] = {
        {"input 6\nwhiten\nsplit keep=4\ncoupling mask=halves:0 hidden=3 act=tanh\n", 0.001,
         {0.837918673485, 0.450865286734, 0.472545625187, 0.939504467908, 0.0406647185228,
          0.932347851648}, 18.8154016831834, 11.8606298044238},
        {"input 6\nnormalize\nwhiten\nsplit keep=9\ncoupling mask=halves:0 hidden=3\n", 0.01,
         {0.878514057026, 0.387359216879, 0.633072530376, 0.813535639968, 0.238442481916,
          0.209323570901}, 22.3724780782142, 15.8162837029738}};
    const fo_real query[6] = {(fo_real)2.2, (fo_real)1.9, (fo_real)2.05, (fo_real)1.95,
                              (fo_real)2.02, 2};
    const double  close = IS_DOUBLE ? 1e-9 : 2e-3;
    const char   *path = FILE_NAME("vectors");
    int           k, i;
    for (k = 0; k < COUNT(golden); k++) {
        fo_context     *fo   = open_with(0, FO_SIMD_AUTO, 1);
        fo_data        *data = vector_data(fo);
        fo_flow        *flow = fo_flow_parse(fo, golden[k].text);
        fo_workspace   *ws;
        fo_check_report r;
        fo_real         z[6], x[6], longer[6];
        double          lp, other, back, all[2][40];
        CHECK(flow && measure(flow, data) == FO_OK);
        CHECK_NEAR(flow->buffer_values[flow->buffers.size - 2], golden[k].shrink, 1e-6);
        ws = fo_workspace_create(fo, flow, 4);
        CHECK(fo_encode_rows(ws, query, REAL_TYPE, 1, 0, z) == FO_OK);
        CHECK(fo_log_prob_rows(ws, query, REAL_TYPE, 1, 0, &lp) == FO_OK);
        for (i = 0; i < 6; i++)
            CHECK_NEAR(fabs((double)z[i]), golden[k].z[i], close);
        CHECK_NEAR(lp, golden[k].log_prob, close);
        CHECK(fo_decode(ws, z, 1, x, &back) == FO_OK);
        CHECK_NEAR(back, -golden[k].logdet, close);
        for (i = 0; i < 6; i++) { /* normalize gives back the direction, sqrt(6) long */
            const double square = 2.2 * 2.2 + 1.9 * 1.9 + 2.05 * 2.05 + 1.95 * 1.95 + 4.0804 + 4;
            CHECK_NEAR(x[i], (double)query[i] * (k ? sqrt(6 / square) : 1),
                       IS_DOUBLE ? 1e-12 : 1e-5);
            longer[i] = 3 * query[i];
        }
        CHECK(fo_log_prob_rows(ws, longer, REAL_TYPE, 1, 0, &other) == FO_OK);
        CHECK((fabs(other - lp) < close) == k);
        CHECK(fo_check(flow, data, NULL, &r) == FO_OK);
        CHECK(r.round_trip < (IS_DOUBLE ? 1e-12 : 1e-5));
        CHECK(r.jacobian >= 0 && r.jacobian < (IS_DOUBLE ? 1e-6 : 2e-2));
        CHECK(r.layers == r.layers_of && r.columns == (k ? 0 : 6) && r.untouched == 0);
        CHECK(fo_log_prob(ws, data, 0, 40, 0, all[0]) == FO_OK && fo_save(flow, path) == FO_OK);
        flow = fo_load_flow(fo, path);
        CHECK(fo_log_prob(fo_workspace_create(fo, flow, 3), data, 0, 40, 0, all[1]) == FO_OK);
        CHECK(memcmp(all[0], all[1], sizeof all[0]) == 0);
        fo_close(fo);
    }
    remove(path);
}

/* Vectors that a whitening could choke on: one clear line, or no harm. */
static void test_odd_vectors(void) {
    fo_context   *fo   = open_with(0, FO_SIMD_AUTO, 1);
    fo_data      *data = vector_data(fo);
    fo_data      *one  = fo_data_view(fo, vectors, REAL_TYPE, 1, shape_of(6, 1, 1));
    const char   *text = "input 6\nnormalize\nwhiten\ncoupling mask=halves:0 hidden=3\n";
    const fo_real zero[6] = {0, 0, 0, 0, 0, 0};
    fo_flow      *flow;
    double        lp;
    int           i;
    SAYS(measure(fo_flow_parse(fo, text), one) == FO_ERR_NUMERIC, "two samples that differ");
    SAYS(fo_flow_parse(fo, "input 5000\nwhiten\n") == NULL, "up to 4096");
    SAYS(fo_flow_parse(fo, "input 6\ncoupling mask=halves:0\nwhiten\n") == NULL, "before every");
    vectors[17] = (fo_real)NAN;
    SAYS(measure(fo_flow_parse(fo, text), data) == FO_ERR_NUMERIC, "sample 2: nan in the data");
    CHECK(fo_memory(fo).now > 0);
    for (i = 0; i < 40; i++) /* one column that never changes, one sample that is all zero */
        vectors[i * 6 + 5] = 0;
    memset(vectors + 12, 0, 6 * sizeof *vectors);
    flow = fo_flow_parse(fo, text);
    CHECK(measure(flow, data) == FO_OK);
    CHECK(fo_log_prob_rows(fo_workspace_create(fo, flow, 1), zero, REAL_TYPE, 1, 0, &lp) == FO_OK);
    CHECK(lp - lp == 0);
    for (i = 0; i < 240; i++)
        vectors[i] *= (fo_real)1e25;
    SAYS(measure(fo_flow_parse(fo, "input 6\nwhiten\ncoupling mask=halves:0\n"), data) ==
             FO_ERR_NUMERIC, "numbers near 1");
    flow = fo_flow_preset(fo, "features", shape_of(6, 1, 1));
    CHECK(flow && measure(flow, data) == FO_OK);
    fo_close(fo);
}

/* A front layer measures all the data before the first step, another one the first batch. */
static void test_measure(void) {
    fo_context   *fo = open_with(2, FO_SIMD_AUTO, 1);
    fo_data      *data;
    fo_flow      *flow;
    fo_train_desc d;
    double        mean = 0;
    int           i, k;
    register_all(fo);
    data = numbers(fo, shape_of(6, 1, 1));
    memset(&d, 0, sizeof d);
    d.steps = 3, d.batch = 16, d.lr = 1e-4;
    for (k = 0; k < 2; k++) {
        flow = fo_flow_parse(fo, k ? "input 6\ncentre-batch\nreflect\n"
                                   : "input 6\ncentre\nreflect\n");
        CHECK(flow && fo_train(flow, data, &d) == FO_OK);
        CHECK(flow->buffers.count == 2 && flow->buffer_values[flow->buffers.size - 1] == 1);
        CHECK(strcmp(flow->buffers.list[1].info.name, "0.measured") == 0);
        for (i = 0, mean = 0; i < 80; i++)
            mean += (double)rows[6 * i + 2] / 80;
        if (k == 0)
            CHECK_NEAR(flow->buffer_values[2], mean, 1e-6);
        else
            CHECK(fabs((double)flow->buffer_values[2] - mean) > 1e-3 &&
                  flow->buffer_values[2] != 0);
    }
    fo_close(fo);
}

static void test_refused(void) {
    fo_context   *fo = open_with(2, FO_SIMD_AUTO, 1);
    fo_layer_kind kind = plain_kind("actnorm", NULL);
    fo_net_kind   net  = residual;
    fo_setting    twice = {"steps", 1, 0, 16, 0, NULL}, off = {"far", 5, 0, 3, 0, NULL};
    int           i;
    SAYS(fo_register_layer(fo, &kind) != FO_OK, "'actnorm' is the name of a built-in");
    SAYS(fo_register_layer(fo, NULL) != FO_OK, "fo_register_layer");
    kind.name = "two words";
    SAYS(fo_register_layer(fo, &kind) != FO_OK, "'two words'");
    for (i = 0; i < 5; i++) { /* every built-in net */
        const char *const names[] = {"mlp", "resnet", "highway", "glow", "autoencoder"};
        net.name = names[i];
        SAYS(fo_register_net(fo, &net) != FO_OK, "is the name of a built-in");
    }
    net.name = "mine", net.settings[2] = twice;
    SAYS(fo_register_net(fo, &net) != FO_OK, "'steps'");
    net.settings[2] = off;
    SAYS(fo_register_net(fo, &net) != FO_OK, "default of 'far'");
    net.settings[2].name = "net";
    SAYS(fo_register_net(fo, &net) != FO_OK, "'net'");
    register_all(fo);
    kind = plain_kind("stuck", bad_shape);
    CHECK(fo_register_layer(fo, &kind) == FO_OK);
    SAYS(fo_flow_parse(fo, "input 4\nstuck\n") == NULL, "from[1] = 0");
    kind = plain_kind("stuck", wide_shape); /* registered again: the newer one counts */
    CHECK(fo_register_layer(fo, &kind) == FO_OK);
    SAYS(fo_flow_parse(fo, "input 4\nstuck\n") == NULL, "makes 8x1x1 of 4x1x1");
    kind = reflect_kind(), kind.name = "front", kind.front = 1;
    CHECK(fo_register_layer(fo, &kind) == FO_OK);
    SAYS(fo_flow_parse(fo, "input 4\nfront\n") == NULL, "cannot learn");
    SAYS(fo_flow_parse(fo, "input 4\nleak slope=1.5\n") == NULL, "between 0 and 1");
    SAYS(fo_flow_parse(fo, "input 4\nleak rate=1\n") == NULL, "it reads slope");
    SAYS(fo_flow_parse(fo, "input 4\nreflect x=1\n") == NULL, "it has no settings");
    SAYS(fo_flow_parse(fo, "input 4\nreflect\ncentre\n") == NULL, "before every layer that learns");
    SAYS(fo_flow_parse(fo, "input 4\ncoupling mask=halves:0 net=residual steps=17\n") == NULL,
         "between 0 and 16");
    SAYS(fo_flow_parse(fo, "input 4\ncoupling mask=halves:0 net=residual depth=2\n") == NULL,
         "it reads hidden, steps");
    fo_close(fo);
}

/* A net's own settings: defaults, text, C, and build reads them. */
static void test_net_settings(void) {
    fo_context *fo = open_with(2, FO_SIMD_AUTO, 1);
    fo_net      net = fo_net_named("residual");
    fo_flow    *flow;
    register_all(fo);
    flow = fo_flow_parse(fo, "input 4\ncoupling mask=halves:0 net=residual\n");
    CHECK(flow && strcmp(fo_flow_layer_text(flow, 0),
                         "coupling mask=halves:0 net=residual hidden=64 steps=1") == 0);
    flow     = fo_flow_create(fo, shape_of(4, 1, 1));
    net.more = "steps=3", net.hidden = 7;
    CHECK(fo_add_coupling(flow, fo_mask_halves(0), net) == FO_OK);
    net.more = "steps=0 hidden=2", net.hidden = 0;
    CHECK(fo_add_coupling(flow, fo_mask_halves(1), net) == FO_OK);
    CHECK(strcmp(fo_flow_text(flow),
                 "input 4\ncoupling mask=halves:0 net=residual hidden=7 steps=3\n"
                 "coupling mask=halves:1 net=residual hidden=2 steps=0\n") == 0);
    CHECK(fo_param_count(flow) == (1 + 2 * 5) + (1 + 2 * 2));
    net.more = "steps=x";
    SAYS(fo_add_coupling(flow, fo_mask_halves(1), net) != FO_OK, "'steps=x'");
    CHECK(custom_main() == 0);
    fo_close(fo);
}

/* ---- a first layer that needs the data's own digits, and a buffer that files may lack -------- */

static fo_result near_shape(fo_layer *layer) {
    int64_t *at = (int64_t *)fo_layer_alloc(layer, sizeof *at);
    if (at == NULL)
        return FO_ERR_MEMORY;
    *at        = fo_layer_optional(layer, "origin", layer->width, 1);
    layer->own = at;
    return *at < 0 ? FO_ERR_MEMORY : FO_OK;
}

/* y = x - 1e9 - origin, in double */
static void near_rows(fo_pass *p, int64_t begin, int64_t end) {
    const fo_real *origin = p->buffers + *(const int64_t *)p->layer->own;
    int64_t        r, i;
    for (r = begin; r < end; r++)
        for (i = 0; i < p->size; i++)
            p->x[r * p->size + i] = (fo_real)(fo_pass_input(p, r, i) - 1e9 - (double)origin[i]);
}

static void test_first_layer(void) {
    static const double large[2][2] = {{1e9 + 0.5, 1e9 - 3}, {1e9 + 7, 1e9 + 0.25}};
    const char   *path = FILE_NAME("layers_near"), *text = "input 2\nnear\n";
    fo_context   *fo   = open_with(1, FO_SIMD_AUTO, 1);
    fo_data      *data = fo_data_view(fo, large, FO_F64, 2, shape_of(2, 1, 1));
    fo_layer_kind kind;
    fo_flow      *flow;
    fo_real       z[4] = {0, 0, 0, 0};
    fo_array      other;
    fo_note       note;
    int           i;
    memset(&kind, 0, sizeof kind);
    kind.name = "near", kind.front = 1, kind.shape = near_shape, kind.rows = near_rows;
    CHECK(fo_register_layer(fo, &kind) == FO_OK);
    flow = fo_flow_parse(fo, text);
    CHECK(flow && fo_encode(fo_workspace_create(fo, flow, 2), data, 0, 2, 0, z) == FO_OK);
    for (i = 0; i < 4; i++) /* float has none of these digits at 1e9 */
        CHECK_NEAR(z[i], large[i / 2][i % 2] - 1e9, 1e-7);
    memset(&other, 0, sizeof other);
    other.name = "unused", other.type = FO_F64, other.rank = 1, other.dim[0] = 4;
    other.values = large;
    note.key = "flowood.text", note.text = text;
    CHECK(fo_archive_save(fo, path, &other, 1, &note, 1) == FO_OK);
    flow = fo_load_flow(fo, path); /* without origin: 1 */
    CHECK(flow && fo_encode(fo_workspace_create(fo, flow, 2), data, 0, 2, 0, z) == FO_OK);
    CHECK_NEAR(z[0], -0.5, 1e-7);
    CHECK(fo_failed(fo) == FO_OK);
    remove(path);
    fo_close(fo);
}

int main(void) {
    test_first_layer();
    test_check();
    test_vectors();
    test_odd_vectors();
    test_measure();
    test_refused();
    test_net_settings();
    return test_end();
}
