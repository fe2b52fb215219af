/* Image models: convolutions, batch norm, multi-scale flows, Glow's layers; all against the golden
   values of tests/golden/twin_image.py, and against what must hold without it. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

/* Smooth pictures with some noise on them: something to learn. */
static unsigned char pixels[1 << 16];
static fo_data *make_data(fo_context *fo, int count, fo_shape shape) {
    int64_t i, n = count * fo_shape_count(shape), size = fo_shape_count(shape);
    for (i = 0; i < n && i < COUNT(pixels); i++) {
        uint32_t r[4], s[4];
        fo_random_bits(8, 8, (uint64_t)i, r);
        fo_random_bits(8, 9, (uint64_t)(i / size), s);
        pixels[i] = (unsigned char)(s[0] % 100 + (uint32_t)(i % shape.w) * (s[1] % 8) + r[0] % 60);
    }
    return fo_data_view(fo, pixels, FO_U8, count, shape);
}

static fo_train_desc steps_of(int64_t steps, int batch) {
    fo_train_desc d;
    memset(&d, 0, sizeof d);
    d.steps = steps, d.batch = batch;
    return d;
}

/* ---- golden arrays --------------------------------------------------------------------------- */

static double value_at(const fo_array *a, int64_t i) {
    return a->type == FO_F64 ? ((const double *)a->values)[i]
           : a->type == FO_I64 ? (double)((const int64_t *)a->values)[i]
                               : (double)((const unsigned char *)a->values)[i];
}

static int64_t array_count(const fo_array *a) {
    int64_t count = 1;
    int     i;
    for (i = 0; a && i < a->rank; i++)
        count *= a->dim[i];
    return a ? count : 0;
}

static const fo_array *find(const fo_archive *a, const char *one, const char *two) {
    char full[200];
    snprintf(full, sizeof full, "%s%s", one, two);
    return fo_archive_find(a, full);
}

static double largest(const fo_array *a) {
    double  most = 0;
    int64_t i;
    for (i = 0; i < array_count(a); i++)
        most = fmax(most, fabs(value_at(a, i)));
    return most;
}

/* The worst |got - want| by the array's largest value, or by `least` if that is larger. */
static double far_off(const fo_array *want, const fo_real *got, double least) {
    double  worst = 0, size = fmax(largest(want), least);
    int64_t i;
    if (want == NULL || got == NULL)
        return HUGE_VAL;
    for (i = 0; i < array_count(want); i++) {
        double e = fabs((double)got[i] - value_at(want, i)) / size;
        worst = e <= worst ? worst : e;
    }
    return worst;
}

#define CLOSE(what, part, error, tolerance)                                                        \
    do {                                                                                           \
        double error_ = (error);                                                                   \
        if (!(error_ <= (tolerance)))                                                              \
            printf("%s %s: %g off\n", what, part, error_);                                         \
        CHECK(error_ <= (tolerance));                                                              \
    } while (0)

/* "stride=2" in a note; -1 where it is not. */
static int option(const char *note, const char *name) {
    size_t n = strlen(name);
    for (; note; note = strchr(note, ' '), note = note ? note + 1 : NULL)
        if (strncmp(note, name, n) == 0 && note[n] == '=')
            return atoi(note + n + 1);
    return -1;
}

/* ---- golden ops ------------------------------------------------------------------------------ */

static fo_tensor *norm_op(fo_tensor **in, const char *note, fo_norm *how, fo_tensor **running) {
    how->mode  = strstr(note, "mode=train") ? FO_NORM_TRAIN : FO_NORM_RUNNING;
    running[0] = fo_buffer(in[0]->tape, "mean", 1, in[1]->dim, fo_init_of(FO_INIT_CONSTANT, 0));
    running[1] = fo_buffer(in[0]->tape, "var", 1, in[1]->dim, fo_init_of(FO_INIT_CONSTANT, 1));
    return fo_batch_norm(in[0], in[1], in[2], running[0], running[1], how, 1, 0);
}

static fo_tensor *build_op(fo_tensor **in, int n, const char *note, fo_norm *how,
                           fo_tensor **running) {
    fo_tensor *b = n > 2 ? in[2] : NULL;
    int        stride = option(note, "stride"), pad = option(note, "pad");
    if (strncmp(note, "conv2d", 6) == 0)
        return fo_conv2d(in[0], in[1], b, stride, pad);
    if (strncmp(note, "conv_t", 6) == 0)
        return fo_conv2d_transpose(in[0], in[1], b, stride, pad);
    if (strncmp(note, "batch_norm", 10) == 0)
        return norm_op(in, note, how, running);
    if (strncmp(note, "weight_norm", 11) == 0)
        return fo_weight_norm(in[0], in[1]);
    if (strncmp(note, "in0 gate", 8) == 0)
        return fo_gate(in[2], in[1], fo_sigmoid(in[0]));
    return strncmp(note, "relu(concat", 11) == 0 ? fo_crelu(in[0]) : NULL;
}

static void fill(fo_tensor *t, const fo_array *from) {
    int64_t i;
    for (i = 0; i < t->count; i++)
        t->data[i] = (fo_real)value_at(from, i);
}

/* One case of the file, forward and backward, twice: gradients are set, not added to. */
static int check_op(fo_context *fo, const fo_archive *a, const char *name, const char *note) {
    const double    tolerance = IS_DOUBLE ? 1e-10 : 2e-5;
    fo_tape        *tape = fo_tape_create(fo);
    fo_tensor      *in[4], *out, *running[2] = {NULL, NULL};
    const fo_array *from[4], *dout;
    fo_norm         how;
    char            part[100];
    int             n, i, turn;
    memset(&how, 0, sizeof how);
    for (n = 0; n < 4; n++) {
        snprintf(part, sizeof part, "%s.in%d", name, n);
        if ((from[n] = fo_archive_find(a, part)) == NULL)
            break;
        in[n] = fo_input(tape, from[n]->rank, from[n]->dim, 1);
    }
    out = build_op(in, n, note, &how, running);
    if (out == NULL) {
        fo_tape_free(tape);
        return 0;
    }
    fo_output(out);
    dout = find(a, name, ".dout");
    CHECK(fo_tape_plan(tape, 1) == FO_OK && out->count == array_count(dout));
    for (turn = 0; turn < 2; turn++) {
        for (i = 0; i < n; i++)
            fill(in[i], from[i]);
        if (running[0])
            fill(running[0], find(a, name, ".running_mean")),
                fill(running[1], find(a, name, ".running_var"));
        CHECK(fo_forward(tape) == FO_OK);
        CLOSE(name, "out", far_off(find(a, name, ".out"), out->data, 1), tolerance);
        for (i = 0; i < out->count; i++)
            out->grad[i] = (fo_real)value_at(dout, i);
        CHECK(fo_backward(tape, out, NULL) == FO_OK);
        for (i = 0; i < n; i++) {
            snprintf(part, sizeof part, ".grad%d", i);
            CLOSE(name, part, far_off(find(a, name, part), in[i]->grad, 1), /* a constant: */
                  strstr(name, "constant") && !IS_DOUBLE ? 1e-3 : tolerance);
        }
        if (how.mode == FO_NORM_TRAIN)
            CLOSE(name, "running",
                  fmax(far_off(find(a, name, ".running_mean_after"), running[0]->data, 1),
                       far_off(find(a, name, ".running_var_after"), running[1]->data, 1)),
                  tolerance);
    }
    fo_tape_free(tape);
    return 1;
}

/* Layers that only move numbers, and the linear algebra of conv1x1. */
static int check_layer_op(fo_context *fo, const fo_archive *a, const char *name,
                          const char *note) {
    const fo_array *in = find(a, name, ".in0"), *out = find(a, name, ".out");
    if (strstr(name, "squeeze")) {
        char          text[100];
        fo_real       got[2 * 72];
        fo_flow      *flow;
        fo_data      *data;
        snprintf(text, sizeof text, "input %dx%dx%d\n%s%s\n", (int)in->dim[1], (int)in->dim[2],
                 (int)in->dim[3], name[0] == 'u' ? "unsqueeze" : "squeeze",
                 strstr(name, "alt") ? " order=alt" : "");
        flow = fo_flow_parse(fo, text);
        data = fo_data_view(fo, in->values, FO_F64, 2, fo_flow_shape(flow));
        CHECK(flow && fo_encode(fo_workspace_create(fo, flow, 2), data, 0, 2, 0, got) == FO_OK);
        CLOSE(name, "out", far_off(out, got, 1), IS_DOUBLE ? 0 : 1e-6);
        return 1;
    }
    if (strstr(note, "slogdet") || strstr(note, "inverse")) {
        double  m[81], b[81], logdet;
        fo_real inverse[81], one;
        int     n = (int)in->dim[0], i, only = strstr(note, "slogdet") != NULL;
        for (i = 0; i < n * n; i++)
            m[i] = value_at(in, i), b[i] = i % (n + 1) == 0;
        logdet = fo__eliminate(m, n, b, only ? 0 : n);
        for (i = 0; i < n * n; i++)
            inverse[i] = (fo_real)b[i];
        one = (fo_real)logdet;
        CLOSE(name, "out", far_off(out, only ? &one : inverse, 1), IS_DOUBLE ? 1e-10 : 1e-6);
        return 1;
    }
    return 0;
}

static void test_ops(void) {
    int simd, i;
    for (simd = FO_SIMD_REF; simd <= FO_SIMD_AVX512; simd++) {
        fo_context *fo;
        fo_archive *a;
        if (picked((fo_simd)simd)->simd != (fo_simd)simd)
            continue;
        fo = open_with(1, (fo_simd)simd, 2);
        a  = fo_archive_open(fo, "tests/golden/image_ops.safetensors");
        CHECK(fo_archive_count(a) > 100);
        for (i = 0; i < fo_archive_count(a); i++) { /* nothing in the file goes untested */
            char        name[64], *end;
            const char *note;
            snprintf(name, sizeof name, "%s", fo_archive_at(a, i)->name);
            end = strstr(name, ".out");
            if (end == NULL || end[4])
                continue;
            *end = 0;
            note = fo_archive_note(a, name);
            if (!check_op(fo, a, name, note) && !check_layer_op(fo, a, name, note)) {
                printf("%s: nobody tests '%s'\n", name, note);
                CHECK(!"tested");
            }
        }
        if (fo_failed(fo))
            printf("%s\n", fo_error(fo));
        CHECK(fo_failed(fo) == FO_OK);
        fo_close(fo);
    }
}

/* ---- 3 x 3 by tiles -------------------------------------------------------------------------- */

typedef struct conv_case { int64_t batch, c, h, w, o, padding; } conv_case;

/* y, dx and dw of one convolution, one after the other, in a malloc. */
static fo_real *run_conv(const conv_case *t, fo_simd simd, int threads, int64_t *n) {
    fo_context *fo   = open_with(1, simd, threads);
    fo_tape    *tape = fo_tape_create(fo);
    int64_t     x_dim[4] = {t->batch, t->c, t->h, t->w}, w_dim[4] = {t->o, t->c, 3, 3};
    fo_tensor  *x = fo_input(tape, 4, x_dim, 1), *w = fo_input(tape, 4, w_dim, 1);
    fo_tensor  *b = fo_input(tape, 1, w_dim, 1);
    fo_tensor  *y = fo_conv2d(x, w, b, 1, (int)t->padding);
    fo_real    *all, *dy;
    fo_output(y);
    CHECK(fo_tape_plan(tape, 1) == FO_OK);
    fo_random_normal(1, 1, 0, x->count, x->data);
    fo_random_normal(1, 2, 0, w->count, w->data);
    fo_random_normal(1, 3, 0, b->count, b->data);
    all = (fo_real *)malloc(BYTES(y->count + x->count + w->count));
    dy  = (fo_real *)malloc(BYTES(y->count));
    fo_random_normal(1, 4, 0, y->count, dy);
    CHECK(fo_forward(tape) == FO_OK);
    memcpy(all, y->data, BYTES(y->count));
    CHECK(fo_backward(tape, y, dy) == FO_OK);
    memcpy(all + y->count, x->grad, BYTES(x->count));
    memcpy(all + y->count + x->count, w->grad, BYTES(w->count));
    *n = y->count + x->count + w->count;
    free(dy);
    fo_close(fo);
    return all;
}

/* y, dx and dw: roots of the mean squares of errors and of numbers. */
static void close_to(const conv_case *t, const char *name, const fo_real *a, const fo_real *b) {
    static const char *const part[] = {"tiles, y", "tiles, dx", "tiles, dw"};
    int64_t n[3], k;
    int     i;
    n[0] = t->batch * t->o * (t->h + 2 * t->padding - 2) * (t->w + 2 * t->padding - 2);
    n[1] = t->batch * t->c * t->h * t->w;
    n[2] = t->o * t->c * 9;
    for (i = 0; i < 3; a += n[i], b += n[i], i++) {
        double error = 0, sum = 0;
        for (k = 0; k < n[i]; k++) {
            error += (double)(a[k] - b[k]) * (double)(a[k] - b[k]);
            sum += (double)b[k] * (double)b[k];
        }
        CLOSE(part[i], name, sqrt(error / sum), 2e-6);
    }
}

/* Sizes that fill blocks in all ways: several samples, one, parts of one; and sizes that are odd,
   or too small for tiles. Against the plain kernels, which do not know tiles; and the same bits for
   any number of threads and for a sample alone. */
static void test_tiles(void) {
    static const conv_case cases[] = {
        {9, 8, 7, 7, 8, 1}, {3, 16, 28, 28, 16, 1}, {2, 256, 9, 10, 250, 1}, {5, 40, 14, 13, 33, 0},
        {4, 9, 5, 4, 12, 2}, {2, 7, 8, 8, 16, 1},   {3, 8, 1, 1, 8, 1},      {2, 8, 3, 40, 17, 1}};
    int i, simd;
    for (i = 0; i < COUNT(cases); i++) {
        int64_t  n, k;
        fo_real *plain = run_conv(&cases[i], FO_SIMD_REF, 1, &n);
        for (simd = FO_SIMD_PORTABLE; simd <= FO_SIMD_AVX512; simd++) {
            fo_real  *one, *two, *alone;
            conv_case first = cases[i];
            if (picked((fo_simd)simd)->simd != (fo_simd)simd)
                continue;
            first.batch = 1;
            alone       = run_conv(&first, (fo_simd)simd, 1, &k);
            one         = run_conv(&cases[i], (fo_simd)simd, 1, &n);
            two         = run_conv(&cases[i], (fo_simd)simd, 2, &n);
            CHECK(memcmp(one, two, BYTES(n)) == 0);
            CHECK(memcmp(one, alone, BYTES(first.o * (first.h + 2 * first.padding - 2) *
                                           (first.w + 2 * first.padding - 2))) == 0);
            close_to(&cases[i], picked((fo_simd)simd)->name, one, plain);
            free(one), free(two), free(alone);
        }
        free(plain);
    }
}

/* ---- golden st-networks ---------------------------------------------------------------------- */

/* Every parameter and buffer of the tape; on the way in or, compared, on the way out. */
static void net_values(fo_tape *tape, const fo_archive *a, const char *prefix) {
    int k, i;
    for (k = 0; k < 2; k++)
        for (i = 0; i < (k ? tape->buffers : tape->params)->count; i++) {
            fo_param_info   p    = (k ? tape->buffers : tape->params)->list[i].info;
            const fo_array *from = find(a, prefix, p.name);
            int             j;
            CHECK(from && array_count(from) == p.count);
            for (j = 0; from && j < tape->count; j++)
                if (fo__plan_of(tape->nodes[j])->param_at == p.offset &&
                    tape->nodes[j]->op == NULL &&
                    fo__plan_of(tape->nodes[j])->is_buffer == k)
                    fill(tape->nodes[j], from);
        }
}

static fo_tensor *leaf_of(fo_tape *tape, int64_t offset, int buffer) {
    int j;
    for (j = 0; j < tape->count; j++)
        if (fo__plan_of(tape->nodes[j])->param_at == offset && tape->nodes[j]->op == NULL &&
            fo__plan_of(tape->nodes[j])->is_buffer == buffer)
            return tape->nodes[j];
    return NULL;
}

static void check_net_mode(fo_tape *tape, fo_tensor *x, fo_tensor *out, const fo_archive *a,
                           const char *name, int train) {
    char        prefix[100], part[200];
    double      most = 0;
    int         i, pad = (int)(x->dim[0] - find(a, name, ".x")->dim[0]);
    int64_t     j, used = array_count(find(a, name, ".dout"));
    snprintf(prefix, sizeof prefix, "%s.", name);
    net_values(tape, a, prefix);
    for (j = 0; j < x->count; j++) /* rows that do not count hold anything */
        x->data[j] = (fo_real)(j < array_count(find(a, name, ".x"))
                                   ? value_at(find(a, name, ".x"), j) : 1e3);
    fo_tape_norm(tape)->mode = train ? FO_NORM_TRAIN : FO_NORM_RUNNING;
    fo_tape_norm(tape)->rows = x->dim[0] - pad;
    CHECK(fo_forward(tape) == FO_OK);
    CLOSE(name, train ? "train.out" : "out",
          far_off(find(a, name, train ? ".train.out" : ".out"), out->data, 1e-3),
          IS_DOUBLE ? 1e-10 : 5e-5);
    for (j = 0; j < out->count; j++)
        out->grad[j] = (fo_real)(j < used ? value_at(find(a, name, ".dout"), j) : 0);
    CHECK(fo_backward(tape, out, NULL) == FO_OK);
    snprintf(prefix, sizeof prefix, train ? "%s.train.grad." : "%s.grad.", name);
    for (i = -1; i < tape->params->count; i++)
        most = fmax(most, largest(find(a, prefix, i < 0 ? "x" : tape->params->list[i].info.name)));
    for (i = -1; i < tape->params->count; i++) {
        const char *which = i < 0 ? "x" : tape->params->list[i].info.name;
        fo_tensor  *leaf = i < 0 ? x : leaf_of(tape, tape->params->list[i].info.offset, 0);
        snprintf(part, sizeof part, "%s%s", train ? "train.grad." : "grad.", which);
        CLOSE(name, part, far_off(find(a, prefix, which), leaf->grad, 0.01 * most),
              IS_DOUBLE ? 1e-6 : 1e-4);
    }
    snprintf(prefix, sizeof prefix, "%s.train.after.", name);
    for (i = 0; i < tape->buffers->count && train; i++) {
        const char *which = tape->buffers->list[i].info.name;
        fo_tensor  *leaf  = leaf_of(tape, tape->buffers->list[i].info.offset, 1);
        CLOSE(name, which, far_off(find(a, prefix, which), leaf->data, 1e-3),
              IS_DOUBLE ? 1e-10 : 2e-5);
    }
}

static void test_nets(void) {
    static const char *const names[] = {"resnet", "resnet_double", "resnet_neck", "highway",
                                        "highway_two", "glow", "autoencoder"};
    int simd, i, pad;
    for (simd = FO_SIMD_REF; simd <= FO_SIMD_AVX512; simd++) {
        fo_context *fo;
        fo_archive *a;
        if (picked((fo_simd)simd)->simd != (fo_simd)simd)
            continue;
        fo = open_with(1, (fo_simd)simd, 2);
        a  = fo_archive_open(fo, "tests/golden/image_nets.safetensors");
        for (i = 0; a && i < 2 * COUNT(names); i++) {
            const char     *name = names[i / 2], *note = fo_archive_note(a, name);
            const fo_array *from = find(a, name, ".x");
            char            kind[32];
            fo_net          net;
            const fo_net_kind *found;
            fo__arena       arena;
            fo_tape        *tape = fo_tape_create(fo);
            fo_tensor      *x, *out;
            int64_t         dim[4];
            pad = i % 2 * 2;
            memcpy(dim, from->dim, sizeof dim);
            dim[0] += pad;
            sscanf(note, "net=%31s", kind);
            net              = fo_net_named(kind);
            net.channels     = option(note, "channels");
            net.blocks       = option(note, "blocks") > 0 ? option(note, "blocks") : 0;
            net.depth        = option(note, "depth") > 0 ? option(note, "depth") : 0;
            net.bottleneck   = option(note, "neck") > 0 ? option(note, "neck") : 0;
            net.skip         = option(note, "skip") == 0 ? -1 : 0;
            net.input_factor = option(note, "double") + 1;
            arena.fo = fo, arena.chunks = NULL;
            x     = fo_input(tape, 4, dim, 1);
            found = fo__net_resolve(fo, "test", &arena, &net);
            CHECK(found != NULL);
            out = found ? found->build(tape, x, option(note, "out"), &net) : NULL;
            fo_output(out);
            CHECK(out && fo_tape_plan(tape, 1) == FO_OK);
            if (out && fo_failed(fo) == FO_OK) {
                check_net_mode(tape, x, out, a, name, 0);
                if (find(a, name, ".train.out"))
                    check_net_mode(tape, x, out, a, name, 1);
            }
            fo_tape_free(tape);
        }
        if (fo_failed(fo))
            printf("%s\n", fo_error(fo));
        CHECK(a && fo_failed(fo) == FO_OK);
        fo_close(fo);
    }
}

/* ---- golden flows ---------------------------------------------------------------------------- */

static const char *const golden_flows[] = {"realnvp", "alt", "spatial", "glow", "odd"};

/* z, terms, gradients and what the running statistics become, from a training workspace. */
static void check_flow_mode(fo_flow *flow, const fo_archive *a, const fo_data *data, int batch,
                            const char *name, int train, int extra) {
    fo_workspace   *ws = fo__workspace_make(flow->fo, flow, batch + extra, 1, 0);
    const char     *prefix = train ? "golden.train." : "golden.";
    const fo_array *terms = find(a, prefix, "terms"), *lp = find(a, prefix, "log_prob");
    double          most = 0, worst = 0;
    char            part[200];
    int64_t         r;
    int             i, columns = 1 + fo_flow_layers(flow);
    if (ws == NULL || terms == NULL) {
        CHECK(!"a workspace");
        return;
    }
    ws->data = data, ws->rows = batch, ws->seed = 1;
    for (r = 0; r < batch; r++) {
        ws->noise[r]   = FO__STREAM_NOISE + (uint64_t)(ws->sample[r] = r);
        ws->dlogdet[r] = -1.0 / batch;
    }
    ws->norm.mode = train ? FO_NORM_TRAIN : FO_NORM_RUNNING;
    CHECK(fo__encode(ws) == FO_OK);
    CLOSE(name, train ? "train.z" : "z", far_off(find(a, prefix, "z"), ws->state, 1),
          IS_DOUBLE ? 1e-10 : 5e-5);
    for (r = 0; r < batch; r++) {
        double want = value_at(lp, r);
        CLOSE(name, "log_prob", fabs(fo__row_log_prob(ws, r) - want) / fabs(want),
              IS_DOUBLE ? 1e-11 : 1e-5);
        for (i = 0; i < columns; i++)
            worst = fmax(worst, fabs(ws->terms[i * ws->batch + r] -
                                     value_at(terms, r * columns + i)));
    }
    CLOSE(name, train ? "train.terms" : "terms", worst / largest(terms), IS_DOUBLE ? 1e-10 : 1e-5);
    CHECK(fo__train_backward(ws) == FO_OK);
    snprintf(part, sizeof part, "%sgrad.", prefix);
    for (i = 0; i < fo_param_count(flow); i++)
        most = fmax(most, largest(find(a, part, fo_param_at(flow, i).name)));
    for (i = 0; i < fo_param_count(flow); i++) {
        fo_param_info   p    = fo_param_at(flow, i);
        const fo_array *want = find(a, part, p.name);
        CLOSE(name, p.name, far_off(want, ws->grads + p.offset, 0.01 * most),
              IS_DOUBLE ? 1e-6 : 1e-4);
        if (strstr(p.name, "rescale.weight_v"))
            CHECK(ws->grads[p.offset] == 0);
    }
    for (i = 0; i < flow->buffers.count && train; i++) {
        fo_param_info   p    = flow->buffers.list[i].info;
        const fo_array *want = find(a, "golden.train.after.", p.name);
        if (strstr(p.name, "running"))
            CLOSE(name, p.name, far_off(want, flow->buffer_values + p.offset, 1e-3),
                  IS_DOUBLE ? 1e-10 : 2e-5);
    }
    fo_workspace_free(ws);
}

/* The same through the public functions, in batches that do not divide the samples. */
static void check_flow_scores(fo_flow *flow, const fo_archive *a, const fo_data *data, int batch,
                              const char *name) {
    fo_workspace   *ws = fo_workspace_create(flow->fo, flow, 2);
    const fo_array *lp = find(a, "golden.", "log_prob");
    double          got[8], worst = 0;
    fo_real        *z = (fo_real *)malloc(2 * BYTES(8 * flow->size)), *x = z + 8 * flow->size;
    int64_t         i;
    CHECK(as_in_training(ws, data, batch, got, NULL, NULL) == FO_OK);
    CHECK(as_in_training(ws, data, batch, NULL, NULL, z) == FO_OK);
    for (i = 0; i < batch; i++)
        CLOSE(name, "log_prob", fabs(got[i] / value_at(lp, i) - 1), IS_DOUBLE ? 1e-11 : 1e-5);
    CLOSE(name, "z", far_off(find(a, "golden.", "z"), z, 1), IS_DOUBLE ? 1e-10 : 5e-5);
    CHECK(fo_encode(ws, data, 0, batch, FO_DRAW_MIDDLE, z) == FO_OK);
    CHECK(fo_decode(ws, z, batch, x, NULL) == FO_OK);
    for (i = 0; i < batch * flow->size; i++)
        worst = fmax(worst, fabs((double)x[i] - value_at(find(a, "golden.", "x"), i)));
    CLOSE(name, "decode", worst, 3e-2);
    ws = fo_workspace_create(flow->fo, flow, 8);
    lp = find(a, "golden.train.", "log_prob");
    CHECK(fo_workspace_norm(ws, FO_NORM_BATCH) == FO_OK);
    CHECK(as_in_training(ws, data, batch, got, NULL, NULL) == FO_OK);
    for (i = 0; i < batch && lp; i++)
        CLOSE(name, "batch log_prob", fabs(got[i] / value_at(lp, i) - 1), IS_DOUBLE ? 1e-11 : 1e-5);
    free(z);
}

static void test_golden(void) {
    int f, simd;
    for (f = 0; f < COUNT(golden_flows); f++)
        for (simd = FO_SIMD_REF; simd <= FO_SIMD_AVX512; simd++) {
            const char     *name = golden_flows[f];
            fo_context     *fo;
            fo_archive     *a;
            fo_flow        *flow, *named;
            fo_data        *data;
            const fo_array *x;
            char            path[100];
            int             train;
            if (picked((fo_simd)simd)->simd != (fo_simd)simd)
                continue;
            fo = open_with(1, (fo_simd)simd, 2);
            snprintf(path, sizeof path, "tests/golden/image_%s.safetensors", name);
            a    = fo_archive_open(fo, path); /* a state_dict's names load as they are */
            flow = fo_load_flow(fo, path);
            if (flow == NULL) {
                printf("%s: %s\n", name, fo_error(fo));
                CHECK(!"loaded");
                fo_close(fo);
                continue;
            }
            CHECK(strcmp(fo_flow_text(flow), fo_archive_note(a, "flowood.text")) == 0 ||
                  strstr(fo_flow_text(flow), "neck=")); /* older names, in another order */
            named = fo_flow_parse(fo, fo_flow_text(flow)); /* and into a flow that is there */
            CHECK(named && fo_load_weights(named, path) == FO_OK);
            CHECK(memcmp(named->values, flow->values, BYTES(flow->params.size)) == 0);
            CHECK(memcmp(named->buffer_values, flow->buffer_values,
                         BYTES(flow->buffers.size)) == 0);
            x    = fo_archive_find(a, "golden.x");
            data = fo_data_view(fo, x->values, x->type, x->dim[0], fo_flow_shape(flow));
            check_flow_scores(flow, a, data, (int)x->dim[0], name);
            CHECK(memcmp(named->buffer_values, flow->buffer_values,
                         BYTES(flow->buffers.size)) == 0);
            for (train = 0; train < 2; train++) {
                if (train && find(a, "golden.train.", "z") == NULL)
                    break;
                check_flow_mode(flow, a, data, (int)x->dim[0], name, train, 0);
                fo_load_weights(flow, path);
                check_flow_mode(flow, a, data, (int)x->dim[0], name, train, 3);
            }
            if (fo_failed(fo))
                printf("%s: %s\n", name, fo_error(fo));
            CHECK(fo_failed(fo) == FO_OK);
            fo_close(fo);
        }
}

/* A state_dict of torch.nn's own modules: other names for weight norms, a prefix, counters. */
static void test_torch_names(void) {
    const char     *path = "tests/golden/image_names.safetensors";
    fo_context     *fo   = open_with(5, FO_SIMD_AUTO, 2);
    fo_archive     *a    = fo_archive_open(fo, path);
    fo_flow        *flow = fo_load_flow(fo, path), *other;
    const char     *twice = FILE_NAME("image_twice");
    static fo_array arrays[240];
    static char     names[120][100];
    const fo_array *x = fo_archive_find(a, "golden.x"), *lp = fo_archive_find(a, "golden.log_prob");
    fo_data        *data;
    double          got[3] = {0, 0, 0};
    int             i;
    CHECK(flow && x && lp && fo_archive_find(a, "flow.2.net.in_conv.weight_g") == NULL);
    data = fo_data_view(fo, x->values, x->type, x->dim[0], fo_flow_shape(flow));
    CHECK(as_in_training(fo_workspace_create(fo, flow, 3), data, 3, got, NULL, NULL) == FO_OK);
    for (i = 0; i < 3; i++)
        CLOSE("torch names", "log_prob", fabs(got[i] / value_at(lp, i) - 1),
              IS_DOUBLE ? 1e-7 : 1e-5);
    other = fo_flow_parse(fo, "input 1x8x8\ndequantize\nlogit alpha=0.05\n"
                              "coupling mask=checkerboard:0 net=resnet channels=4 blocks=1\n");
    CHECK(fo_load_weights(other, path) == FO_ERR_FORMAT &&
          strstr(fo_error(fo), "flow.2.net.in_conv.parametrizations.weight.original0 is F32"));
    fo_clear_error(fo);
    for (i = 0; i < fo_archive_count(a) && i < 120; i++) { /* which of two copies is meant? */
        arrays[2 * i] = arrays[2 * i + 1] = *fo_archive_at(a, i);
        snprintf(names[i], sizeof names[i], "copy.%s", arrays[2 * i].name);
        arrays[2 * i + 1].name = names[i];
    }
    CHECK(fo_archive_save(fo, twice, arrays, 2 * i, NULL, 0) == FO_OK);
    CHECK(fo_load_weights(flow, twice) == FO_ERR_FORMAT && strstr(fo_error(fo), "copy.flow."));
    remove(twice);
    fo_close(fo);
}

/* Checkpoints of the paper's own code, as examples/from_flows_ood.py converts them: each has the
   log p that a twin of that code reports, but for the D log(256/255) that it takes off too much. */
static void test_flows_ood(void) {
    fo_context *fo = open_with(5, FO_SIMD_AUTO, 2);
    fo_archive *a  = fo_archive_open(fo, "tests/golden/flows_ood.safetensors");
    int         i, k, models = 0;
    for (i = 0; i < fo_archive_count(a); i++) {
        const fo_array *x = fo_archive_at(a, i), *lp;
        char            name[60], path[100], *dot;
        fo_flow        *flow;
        fo_data        *data;
        double          got[4] = {0, 0, 0, 0}, less;
        snprintf(name, sizeof name, "%s", x->name);
        dot = strchr(name, '.');
        if (strcmp(dot, ".x") != 0)
            continue;
        *dot = 0;
        lp   = find(a, name, ".log_prob");
        snprintf(path, sizeof path, "tests/golden/flows_ood_%s.safetensors", name);
        flow = fo_load_flow(fo, path);
        data = fo_data_view(fo, x->values, x->type, x->dim[0], fo_flow_shape(flow));
        CHECK(flow && lp && fo_log_prob(fo_workspace_create(fo, flow, 4), data, 0, 4,
                                        FO_DRAW_MIDDLE, got) == FO_OK);
        less = x->type == FO_U8 ? (double)(array_count(x) / 4) * log(256.0 / 255) : 0;
        for (k = 0; k < 4 && flow && lp; k++)
            CLOSE(name, "log_prob", fabs(got[k] / (value_at(lp, k) + less) - 1),
                  IS_DOUBLE ? 1e-9 : 1e-6);
        models++;
    }
    if (fo_failed(fo))
        printf("%s\n", fo_error(fo));
    CHECK(fo_failed(fo) == FO_OK && models == 9);
    fo_close(fo);
}

/* ---- golden training ------------------------------------------------------------------------- */

/* A flow with the weights and buffers that the runs begin with. */
static fo_flow *first_flow(fo_context *fo, const fo_archive *a) {
    fo_flow *flow = fo_flow_parse(fo, fo_archive_note(a, "flowood.text"));
    int      k, i;
    int64_t  j;
    fo_params(flow, NULL);
    for (k = 0; k < 2; k++)
        for (i = 0; i < (k ? flow->buffers : flow->params).count; i++) {
            fo_param_info   p    = (k ? flow->buffers : flow->params).list[i].info;
            const fo_array *from = find(a, "first.", p.name);
            fo_real        *to   = k ? flow->buffer_values : flow->values;
            CHECK(from != NULL);
            for (j = 0; from && j < p.count; j++)
                to[p.offset + j] = (fo_real)value_at(from, j);
        }
    return flow;
}

static double scores_off(fo_flow *flow, const fo_data *data, int mode, const fo_array *want) {
    fo_workspace *ws = fo_workspace_create(flow->fo, flow, 4);
    double        lp[4], worst = 0;
    int           i;
    CHECK(fo_workspace_norm(ws, (fo_norm_mode)mode) == FO_OK);
    CHECK(as_in_training(ws, data, 4, lp, NULL, NULL) == FO_OK);
    for (i = 0; i < 4; i++)
        worst = fmax(worst, fabs(lp[i] / value_at(want, i) - 1));
    fo_workspace_free(ws);
    return worst;
}

static int keep_progress(void *user, const fo_progress *progress) {
    *(fo_progress *)user = *progress;
    return 0;
}

static void test_golden_training(void) {
    static const char *const recipes[] = {"adam", "decay", "rmsprop"};
    const double tolerance = IS_DOUBLE ? 1e-8 : 2e-5;
    int r, step;
    for (r = 0; r < COUNT(recipes); r++) {
        fo_context     *fo = open_with(3, FO_SIMD_AUTO, 1);
        fo_archive     *a  = fo_archive_open(fo, "tests/golden/image_train.safetensors");
        const fo_array *x  = a ? fo_archive_find(a, "x") : NULL;
        fo_flow        *flow = x ? first_flow(fo, a) : NULL;
        fo_data        *data = x ? fo_data_view(fo, x->values, FO_U8, x->dim[0],
                                                fo_flow_shape(flow)) : NULL;
        fo_train_desc   d    = steps_of(1, 4);
        fo_progress     p;
        double          loss = 0, norm = 0;
        CHECK(flow != NULL);
        if (flow == NULL)
            return;
        d.seed = 3, d.lr = r == 2 ? 5e-4 : 2e-3, d.clip = r == 1 ? 100 : -1;
        d.optimizer = r == 2 ? FO_RMSPROP : FO_ADAM, d.weight_decay = r == 1 ? 0.1 : 0;
        d.progress = keep_progress, d.user = &p;
        for (step = 0; step < 20; step++) {
            d.steps = step + 1;
            CHECK(fo_train(flow, data, &d) == FO_OK);
            loss = fmax(loss, fabs(p.loss / value_at(find(a, recipes[r], ".loss"), step) - 1));
            norm = fmax(norm, fabs(p.grad_norm / value_at(find(a, recipes[r], ".norm"), step) - 1));
        }
        CLOSE(recipes[r], "loss", loss, tolerance);
        CLOSE(recipes[r], "norm", norm, IS_DOUBLE ? 1e-6 : 1e-2);
        CLOSE(recipes[r], "running", scores_off(flow, data, FO_NORM_RUNNING,
                                                find(a, recipes[r], ".running")), 2e-2);
        if (r == 0) {
            CLOSE("adam", "batch", scores_off(flow, data, FO_NORM_BATCH, find(a, "adam", ".batch")),
                  tolerance * 10);
            CHECK(fo_recalibrate(flow, data, 20) == FO_OK); /* ours are exact, not mean of means */
            CLOSE("adam", "recalibrated", scores_off(flow, data, FO_NORM_RUNNING,
                                                     find(a, "adam", ".recalibrated")), 5e-2);
        }
        CHECK(fo_failed(fo) == FO_OK);
        fo_close(fo);
    }
}

/* Four of x, four of ood, as given, through the trainer's own passes; Adam by hand. */
static void test_golden_negative(void) {
    fo_context     *fo   = open_with(3, FO_SIMD_AUTO, 1);
    fo_archive     *a    = fo_archive_open(fo, "tests/golden/image_train.safetensors");
    fo_flow        *flow = a ? first_flow(fo, a) : NULL;
    fo_workspace   *ws   = flow ? fo__workspace_make(fo, flow, 8, 1, 0) : NULL;
    static fo_real  rows[8 * 64];
    double         *m, floor_nats, loss_off = 0, norm_off = 0;
    int64_t         n, j;
    int             step, r, i, alive_off = 0;
    CHECK(ws != NULL);
    if (ws == NULL)
        return;
    n          = flow->params.size;
    m          = (double *)calloc((size_t)n * 2, sizeof *m);
    floor_nats = atof(fo_archive_note(a, "negative.floor"));
    ws->data   = fo_data_view(fo, rows, REAL_TYPE, 8, shape_of(1, 8, 8));
    ws->rows = 8, ws->middle = ws->any_values = 1, ws->norm.mode = FO_NORM_TRAIN;
    for (step = 0; step < 20; step++) {
        double loss = 0, norm = 0;
        int    alive = 0;
        for (r = 0; r < 8; r++) {
            const fo_array *noise = fo_archive_find(a, r < 4 ? "noise" : "noise_ood");
            int64_t at = (int64_t)value_at(fo_archive_find(a, "batches"), step * 4 + r % 4) * 64;
            for (i = 0; i < 64; i++) /* the noise is in the numbers already */
                rows[r * 64 + i] = (fo_real)(
                    value_at(fo_archive_find(a, r < 4 ? "x" : "ood"), at + i) +
                    value_at(noise, (step * 4 + r % 4) * 64 + i) - 0.5);
            ws->sample[r] = r;
        }
        CHECK(fo__encode(ws) == FO_OK);
        for (r = 0; r < 8; r++) {
            double lp = fo__row_log_prob(ws, r), sign = r < 4 ? -1 : lp > floor_nats;
            alive += r >= 4 && sign > 0;
            ws->dlogdet[r] = sign / 8;
            loss += sign * lp / 8;
        }
        CHECK(fo__train_backward(ws) == FO_OK);
        for (j = 0; j < n; j++) {
            double g = (double)ws->grads[j];
            norm += g * g;
            m[j]     = 0.9 * m[j] + 0.1 * g;
            m[n + j] = 0.999 * m[n + j] + 0.001 * g * g;
            flow->values[j] -= (fo_real)(2e-3 * m[j] / (1 - pow(0.9, step + 1)) /
                                         (sqrt(m[n + j] / (1 - pow(0.999, step + 1))) + 1e-8));
        }
        alive_off += alive != (int)value_at(fo_archive_find(a, "negative.alive"), step);
        loss_off = fmax(loss_off, fabs(loss / value_at(find(a, "negative", ".loss"), step) - 1));
        norm     = sqrt(norm);
        norm_off = fmax(norm_off, fabs(norm / value_at(find(a, "negative", ".norm"), step) - 1));
    }
    CHECK(alive_off == 0);
    CLOSE("negative", "loss", loss_off, IS_DOUBLE ? 1e-8 : 1e-4);
    CLOSE("negative", "norm", norm_off, IS_DOUBLE ? 1e-6 : 1e-2);
    free(m);
    fo_close(fo);
}

/* What fo_train itself does with negatives: the second half of a batch, while they are likely. */
static void test_negative(void) {
    static const char *const text = "input 1x4x4\ndequantize\nlogit\n"
                                    "2* coupling mask=checkerboard:% net=glow channels=4\n";
    static unsigned char white[16 * 16];
    double   lp[2][16], gap[2], norm[2];
    int      way, i;
    memset(white, 250, sizeof white);
    for (way = 0; way < 2; way++) { /* negatives below the floor leave half the gradient */
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, text);
        fo_data      *data = make_data(fo, 16, fo_flow_shape(flow));
        fo_train_desc d    = steps_of(1, way ? 8 : 4);
        fo_progress   p;
        d.progress = keep_progress, d.user = &p, d.clip = -1;
        d.negative       = way ? fo_data_view(fo, white, FO_U8, 16, fo_flow_shape(flow)) : NULL;
        d.negative_floor = 1e-6;
        CHECK(fo_train(flow, data, &d) == FO_OK);
        norm[way] = p.grad_norm;
        fo_close(fo);
    }
    CHECK_NEAR(norm[1] / norm[0], 0.5, 1e-5);
    {
        fo_context   *fo    = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow  = fo_flow_parse(fo, text);
        fo_data      *data  = make_data(fo, 16, fo_flow_shape(flow));
        fo_data      *other = fo_data_view(fo, white, FO_U8, 16, fo_flow_shape(flow));
        fo_workspace *ws    = fo_workspace_create(fo, flow, 16);
        fo_train_desc d     = steps_of(60, 8);
        d.negative = other, d.lr = 5e-3;
        CHECK_NEAR(fo_flow_train_desc(flow).negative_floor, 30000.0 / 784 * 16, 1e-9);
        for (way = 0; way < 2; way++) { /* how much likelier are samples than negatives? */
            CHECK(fo_log_prob(ws, data, 0, 16, 0, lp[0]) == FO_OK);
            CHECK(fo_log_prob(ws, other, 0, 16, 0, lp[1]) == FO_OK);
            for (i = 0, gap[way] = 0; i < 16; i++)
                gap[way] += (lp[0][i] - lp[1][i]) / 16;
            CHECK(way || fo_train(flow, data, &d) == FO_OK);
        }
        CHECK(gap[1] > gap[0] + 20);
        other = fo_data_view(fo, white, FO_U8, 4, shape_of(4, 4, 4));
        d = steps_of(70, 8), d.negative = other; /* of another shape */
        CHECK(fo_train(flow, data, &d) == FO_ERR_SHAPE);
        fo_close(fo);
    }
}

/* ---- actnorm: measured on the first batch, once ---------------------------------------------- */

static void test_actnorm(void) {
    const char     *path  = "tests/golden/image_actnorm.safetensors";
    const char     *saved = FILE_NAME("image_actnorm");
    const double    tolerance = IS_DOUBLE ? 1e-10 : 3e-5;
    fo_context     *fo   = open_with(1, FO_SIMD_AUTO, 1);
    fo_archive     *a    = fo_archive_open(fo, path);
    fo_flow        *flow = a ? fo_flow_parse(fo, fo_archive_note(a, "flowood.text")) : NULL, *back;
    const fo_array *x    = a ? fo_archive_find(a, "x") : NULL;
    fo_workspace   *ws;
    fo_data        *data, *others;
    fo_train_desc   d = steps_of(1, 6);
    static fo_real  moved[6 * 48];
    fo_real         keep[3];
    int             i, turn;
    CHECK(flow && fo_load_weights(flow, path) == FO_OK);
    if (flow == NULL)
        return;
    data = fo_data_view(fo, x->values, x->type, 6, fo_flow_shape(flow));
    for (i = 0; i < 6 * 48; i++)
        moved[i] = (fo_real)(3 * value_at(x, i) + 7);
    others   = fo_data_view(fo, moved, REAL_TYPE, 6, fo_flow_shape(flow));
    ws       = fo__workspace_make(fo, flow, 6, 1, 0);
    ws->data = data, ws->rows = 6;
    for (i = 0; i < 6; i++)
        ws->sample[i] = i;
    for (turn = 0; turn < 2; turn++) { /* a second look repeats the first */
        CHECK(fo__encode(ws) == FO_OK);
        CLOSE("actnorm", "z", far_off(find(a, "z", ""), ws->state, 1), tolerance);
        for (i = 0; i < 6; i++)
            CLOSE("actnorm", "log_prob", fabs(fo__row_log_prob(ws, i) /
                                              value_at(find(a, "log_prob", ""), i) - 1), tolerance);
        for (i = 0; i < fo_param_count(flow); i++) {
            fo_param_info p = fo_param_at(flow, i);
            CLOSE("actnorm", p.name, far_off(find(a, "after.", p.name), flow->values + p.offset, 1),
                  tolerance);
        }
        for (i = 0; i < flow->buffers.count; i++) {
            fo_param_info p = flow->buffers.list[i].info;
            CLOSE("actnorm", p.name, far_off(find(a, "after.", p.name),
                                             flow->buffer_values + p.offset, 1), 0);
        }
    }
    memcpy(keep, flow->values, sizeof keep);
    CHECK(fo_save(flow, saved) == FO_OK && (back = fo_load_flow(fo, saved)) != NULL);
    d.lr = 1e-12; /* nothing learned: what changes was measured */
    CHECK(fo_train(back, others, &d) == FO_OK);
    CHECK_NEAR(back->values[0], keep[0], 1e-6);
    CHECK_NEAR(back->values[2], keep[2], 1e-6);
    CHECK(fo_load_weights(flow, path) == FO_OK); /* afresh, by fo_train */
    CHECK(fo_train(flow, others, &d) == FO_OK);
    CHECK(fabs((double)(flow->values[0] - keep[0])) > 1);
    ws = fo_workspace_create(fo, back, 3);
    { /* scoring measures nothing */
        double lp[6];
        fo_flow *fresh = fo_flow_parse(fo, fo_flow_text(flow));
        CHECK(fo_log_prob(fo_workspace_create(fo, fresh, 3), data, 0, 6, 0, lp) == FO_OK);
        CHECK(fresh->values[0] == 0 && fresh->buffer_values[0] == 0);
    }
    if (fo_failed(fo))
        printf("%s\n", fo_error(fo));
    CHECK(fo_failed(fo) == FO_OK);
    remove(saved);
    fo_close(fo);
}

/* ---- presets --------------------------------------------------------------------------------- */

static void test_counts(void) {
    static const struct { const char *name; int64_t params; int couplings[2]; } presets[] = {
        {"realnvp-paper", 14707336, {10, 16}}, {"realnvp-small", 1271048, {10, 16}},
        {"realnvp-tiny", 326088, {10, 16}},    {"glow-paper", 69378048, {32, 32}},
        {"checker8", 0, {8, 8}},               {"horizontal8", 0, {8, 8}},
        {"horizontal3", 0, {3, 3}},            {"cycle-resnet", 0, {8, 8}},
        {"cycle-resnet-neck", 0, {8, 8}},      {"glow-small", 0, {12, 12}}};
    int i, colour, k, couplings;
    for (i = 0; i < COUNT(presets); i++)
        for (colour = 0; colour < 2; colour++) {
            fo_context *fo   = open_with(1, FO_SIMD_AUTO, 2);
            fo_flow    *flow = fo_flow_preset(fo, presets[i].name, colour ? shape_of(3, 32, 32)
                                                                          : shape_of(1, 28, 28));
            if (flow == NULL)
                printf("%s: %s\n", presets[i].name, fo_error(fo));
            CHECK(flow != NULL);
            for (k = couplings = 0; k < fo_flow_layers(flow); k++)
                couplings += fo_flow_mask(flow, k) != NULL;
            CHECK(flow && couplings == presets[i].couplings[colour]);
            if (flow && presets[i].params && !colour)
                CHECK(flow->params.size == presets[i].params);
            fo_close(fo);
        }
}

/* A preset's text with few channels and blocks, so that it is quick. */
static void small_preset(const fo_preset *preset, fo_shape s, char *text, size_t size) {
    const char *body = strstr(preset->body, "---\n");
    size_t      at   = (size_t)snprintf(text, size, "input %dx%dx%d\n", s.c, s.h, s.w);
    body = body && s.c > 1 ? body + 4 : preset->body;
    while (*body && strncmp(body, "---", 3) != 0 && at + 16 < size) {
        int channels = strncmp(body, "channels=", 9) == 0;
        if (channels || strncmp(body, "blocks=", 7) == 0 || strncmp(body, "16*", 3) == 0) {
            at += (size_t)snprintf(text + at, size - at, channels ? "channels=3" : body[0] == '1'
                                                                    ? "2*" : "blocks=1");
            body += strcspn(body, " \n*") + (body[0] == '1');
        } else
            text[at++] = *body++;
    }
    text[at] = 0;
}

static double round_trip(fo_flow *flow, const fo_data *data, int n) {
    fo_workspace *ws = fo_workspace_create(flow->fo, flow, 3);
    int64_t       i, size = fo_shape_count(fo_flow_shape(flow));
    fo_real      *z = (fo_real *)malloc(3 * BYTES(n * size)), *x = z + n * size, *y = x + n * size;
    double        worst = 0;
    CHECK(fo_encode(ws, data, 0, n, FO_DRAW_MIDDLE, z) == FO_OK);
    CHECK(fo_decode(ws, z, n, x, NULL) == FO_OK);
    for (i = 0; i < n; i++)
        fo_data_get(data, i, y + i * size);
    for (i = 0; i < n * size; i++) {
        double e = fabs((double)x[i] - (double)y[i]);
        worst    = e <= worst ? worst : e;
    }
    CHECK(fo_sample(ws, 1, n, 0.7, x) == FO_OK || fo_failed(flow->fo) == FO_ERR_NUMERIC);
    free(z);
    fo_workspace_free(ws);
    return worst;
}

/* Every image preset, in small, in both colours: fresh, and after a few steps. */
static void test_presets(void) {
    fo_preset preset;
    int       i, colour, k;
    for (i = 0; (preset = fo_preset_at(i)).name; i++)
        for (colour = 0; colour < 2 && strstr(preset.body, "channels="); colour++) {
            fo_context   *fo = open_with(2, FO_SIMD_AUTO, 2);
            char          text[4096];
            fo_flow      *flow, *again;
            fo_data      *data;
            fo_train_desc d = steps_of(3, 4);
            small_preset(&preset, shape_of(colour ? 3 : 1, 8, 8), text, sizeof text);
            flow = fo_flow_parse(fo, text);
            if (flow == NULL) {
                printf("%s: %s\n%s", preset.name, fo_error(fo), text);
                CHECK(!"parsed");
                fo_close(fo);
                continue;
            }
            again = fo_flow_parse(fo, fo_flow_text(flow));
            CHECK(again && strcmp(fo_flow_text(again), fo_flow_text(flow)) == 0);
            data = make_data(fo, 24, fo_flow_shape(flow));
            CLOSE(preset.name, "fresh", round_trip(flow, data, 8), 1e-2);
            d.optimizer = preset.rmsprop ? FO_RMSPROP : FO_ADAM, d.lr = 2e-3;
            for (k = 0; k < 2; k++) {
                CHECK(fo_train(flow, data, &d) == FO_OK);
                CLOSE(preset.name, "trained", round_trip(flow, data, 8), 1e-2);
                d.steps = 6;
            }
            if (fo_failed(fo))
                printf("%s: %s\n", preset.name, fo_error(fo));
            CHECK(fo_failed(fo) == FO_OK && fo_flow_steps(flow) == 6);
            fo_close(fo);
        }
}

/* NAME:L takes another bottleneck; names without one, and what is no width, are refused. */
static void test_preset_neck(void) {
    static const char *const bad[] = {"realnvp-tiny:4", "mlp-cycle:0", "mlp-cycle:x", "mlp-cycle:",
                                      "mlp:4", ""};
    fo_context *fo = fo_open(NULL);
    fo_flow    *flow = fo_flow_preset(fo, "cycle-resnet-neck:4", shape_of(1, 4, 4));
    int         i;
    CHECK(flow && strstr(fo_flow_text(flow), " bottleneck=4\n") && fo_flow_layers(flow) == 10);
    flow = fo_flow_preset(fo, "mlp-cycle:3", shape_of(1, 4, 4));
    CHECK(flow && strstr(fo_flow_text(flow), " bottleneck=3\n") &&
          strstr(fo_flow_text(flow), "neck=10") == NULL && fo_flow_train_desc(flow).batch == 128);
    for (i = 0; i < COUNT(bad); i++) {
        CHECK(fo_flow_preset(fo, bad[i], shape_of(1, 4, 4)) == NULL);
        CHECK(fo_failed(fo) == FO_ERR_ARGUMENT && strstr(fo_error(fo), bad[i]));
        fo_clear_error(fo);
    }
    fo_close(fo);
}

/* ---- what a density must be ------------------------------------------------------------------ */

static const char *const checked[] = {
    "squeeze", "squeeze order=alt", "squeeze; unsqueeze", "squeeze; split", "permute seed=3",
    "permute reverse=1", "actnorm", "conv1x1", "conv1x1 lu=1",
    "squeeze; unsqueeze order=alt; squeeze order=alt; split; squeeze; split",
    "squeeze; actnorm; conv1x1; permute seed=5; conv1x1 lu=1; split; actnorm",
    "coupling mask=checkerboard:0 net=resnet channels=3 blocks=2",
    "coupling mask=channel:1 net=resnet channels=3 blocks=1 skip=0",
    "coupling mask=cycle:1 net=resnet channels=2 blocks=3 neck=3",
    "coupling mask=horizontal:1 net=autoencoder channels=2 neck=3",
    "coupling mask=vertical:0 net=highway channels=3",
    "coupling mask=channel:0 net=glow channels=4",
    "additive mask=checkerboard:1 net=glow channels=4",
    "additive mask=channel:0 net=resnet channels=3 blocks=1",
    "coupling mask=random:1 net=glow channels=3",
    "coupling mask=alternating:1 net=highway channels=3",
    "coupling mask=map:20c12x net=resnet channels=3 blocks=1",
    "coupling mask=map:16x16c net=resnet channels=3 blocks=1", /* by whole channels */
    "squeeze; split; coupling mask=channel:0 net=glow channels=3; split; actnorm; conv1x1"};

/* Weights of which none is zero and no two equal, and running statistics that do something. */
static void shake(fo_flow *flow, double size) {
    int64_t i;
    int     k;
    fo_real r;
    fo_params(flow, NULL);
    for (i = 0; i < flow->params.size; i++) {
        fo_random_normal(99, 1, (uint64_t)i, 1, &r);
        flow->values[i] += (fo_real)size * r;
    }
    for (k = 0; k < flow->buffers.count; k++)
        for (i = 0; i < flow->buffers.list[k].info.count; i++)
            if (strstr(flow->buffers.list[k].info.name, "running")) {
                fo_random_uniform(99, 2, (uint64_t)(100 * k + i), 1, &r);
                flow->buffer_values[flow->buffers.list[k].info.offset + i] += r;
            }
}

static void test_check(void) {
    int i;
    for (i = 0; i < COUNT(checked); i++) {
        fo_context     *fo = open_with(4, FO_SIMD_AUTO, 1);
        char            text[300];
        fo_flow        *flow;
        fo_check_report r;
        snprintf(text, sizeof text, "input 2x4x4\ndequantize\nlogit alpha=0.05\n%s\n", checked[i]);
        flow = fo_flow_parse(fo, text);
        if (flow == NULL)
            printf("%s: %s\n", checked[i], fo_error(fo));
        CHECK(flow != NULL);
        if (flow) {
            int64_t  n;
            fo_real *kept;
            shake(flow, 0.15);
            n    = flow->params.size;
            kept = (fo_real *)malloc(BYTES(n + flow->buffers.size + 1));
            memcpy(kept, flow->values, BYTES(n));
            memcpy(kept + n, flow->buffer_values, BYTES(flow->buffers.size));
            CHECK(fo_check(flow, make_data(fo, 20, fo_flow_shape(flow)), NULL, &r) == FO_OK);
            if (!(r.round_trip < 1e-2 && r.logdet_pair < 1e-4 && r.jacobian < 2e-2 &&
                  r.gradient < (IS_DOUBLE ? 1e-3 : 0.3)))
                printf("%s: round trip %g, logdet %g, jacobian %g, gradient %g %s\n", checked[i],
                       r.round_trip, r.logdet_pair, r.jacobian, r.gradient, fo_error(fo));
            CHECK(r.round_trip < (IS_DOUBLE ? 1e-6 : 1e-2));
            CHECK(r.logdet_pair < (IS_DOUBLE ? 1e-6 : 1e-4));
            CHECK(r.jacobian >= 0 && r.jacobian < (IS_DOUBLE ? 1e-6 : 2e-2));
            CHECK(r.gradient < (IS_DOUBLE ? 1e-3 : 0.3)); /* in float: steps over kinks */
            CHECK(memcmp(kept, flow->values, BYTES(n)) == 0); /* nothing was learned or measured */
            CHECK(memcmp(kept + n, flow->buffer_values, BYTES(flow->buffers.size)) == 0);
            free(kept);
        }
        fo_close(fo);
    }
}

/* ---- text ------------------------------------------------------------------------------------ */

static void test_text(void) {
    static const struct { const char *in, *out; } texts[] = {
        {"squeeze order=alt\nunsqueeze order=alt\nsqueeze\nunsqueeze\nsplit\nactnorm\nconv1x1\n",
         NULL},
        {"conv1x1 lu=1\npermute seed=7\npermute reverse=1\npermute\n",
         "conv1x1 lu=1\npermute seed=7\npermute reverse=1\npermute\n"},
        {"conv1x1 lu=0\n", "conv1x1\n"},
        {"2* actnorm; conv1x1; permute seed=%\n",
         "actnorm\nconv1x1\npermute\nactnorm\nconv1x1\npermute seed=1\n"},
        {"coupling mask=checkerboard:0 net=resnet channels=3 blocks=4 skip=0\n", NULL},
        {"coupling mask=cycle:2 net=resnet channels=3 blocks=1 bottleneck=5\n", NULL},
        {"coupling mask=cycle:2 net=autoencoder channels=3 bottleneck=5\n", NULL},
        {"additive mask=channel:1 net=highway channels=3\n", NULL},
        {"coupling mask=channel:1 net=highway channels=3 depth=2\n", NULL},
        {"coupling mask=channel:1 net=highway channels=3 act=none\n", NULL},
        {"coupling mask=channel:1 net=highway channels=3 act=leaky_relu\n", NULL},
        {"coupling mask=channel:1 net=highway channels=3 act=relu\n",
         "coupling mask=channel:1 net=highway channels=3\n"},
        {"coupling mask=channel:1 net=resnet channels=3 blocks=1 norm=1\n",
         "coupling mask=channel:1 net=resnet channels=3 blocks=1\n"},
        {"coupling mask=cycle:1 net=resnet channels=3 blocks=1 skip=0 norm=0\n", NULL},
        {"coupling mask=channel:1 net=glow channels=9\n", NULL},
        {"coupling mask=map:16x16c net=glow channels=3\n", NULL},
        {"coupling mask=channel:0 net=resnet\n",
         "coupling mask=channel:0 net=resnet channels=32 blocks=2\n"}};
    int i;
    for (i = 0; i < COUNT(texts); i++) {
        fo_context *fo = fo_open(NULL);
        char        full[400], want[400];
        fo_flow    *flow, *again;
        snprintf(full, sizeof full, "input 2x4x4\n%s", texts[i].in);
        snprintf(want, sizeof want, "input 2x4x4\n%s", texts[i].out ? texts[i].out : texts[i].in);
        flow = fo_flow_parse(fo, full);
        if (flow == NULL || strcmp(fo_flow_text(flow), want) != 0)
            printf("%s -> %s%s\n", full, flow ? fo_flow_text(flow) : "", fo_error(fo));
        CHECK(flow && strcmp(fo_flow_text(flow), want) == 0);
        again = flow ? fo_flow_parse(fo, fo_flow_text(flow)) : NULL;
        CHECK(again && strcmp(fo_flow_text(again), fo_flow_text(flow)) == 0);
        CHECK(fo_param_count(again) == fo_param_count(flow));
        fo_close(fo);
    }
}

static void test_bad_text(void) {
    static const struct { const char *text, *say[2]; } bad[] = {
        {"input 1x7x8\nsqueeze", {"squeeze of 1x7x8", "even"}},
        {"input 1x8x7\nsqueeze order=alt", {"squeeze of 1x8x7", "even"}},
        {"input 6x4x4\nunsqueeze", {"unsqueeze of 6x4x4", "multiple of 4"}},
        {"input 3x4x4\nsplit", {"split of 3x4x4", "even"}},
        {"input 1x4x4\nsqueeze\nsplit\nsplit\nsplit", {"split of 1x2x2", "even"}},
        {"input 65x2x2\nconv1x1", {"65", "64"}},
        {"input 65x2x2\nconv1x1 lu=1", {"65", "64"}},
        {"input 4x4x4\nsqueeze order=odd", {"line 2", "'order=odd'"}},
        {"input 4x4x4\nsqueeze lu=1", {"line 2", "'lu'"}},
        {"input 4x4x4\nsplit seed=1", {"line 2", "'seed'"}},
        {"input 4x4x4\nactnorm mask=cycle:1", {"line 2", "'mask'"}},
        {"input 4x4x4\nconv1x1 lu=x", {"line 2", "'lu=x'"}},
        {"input 4x4x4\nconv1x1 lu=2", {"lu", ""}},
        {"input 4x4x4\npermute reverse=2", {"reverse", ""}},
        {"input 4x4x4\npermute seed=-1", {"line 2", "'seed=-1'"}},
        {"input 4x4x4\npermute seed=1 reverse=1", {"", ""}},
        {"input 1x6x6\ncoupling mask=horizontal:0 net=autoencoder channels=2 neck=3",
         {"autoencoder", "multiples of 4"}},
        {"input 1x8x8\ncoupling mask=horizontal:0 net=autoencoder channels=2", {"neck", ""}},
        {"input 1x8x8\ncoupling mask=cycle:0 net=resnet channels=2 neck=3 skip=1",
         {"skip", "neck"}},
        {"input 1x8x8\ncoupling mask=cycle:0 net=resnet channels=2 skip=2", {"skip", ""}},
        {"input 1x8x8\ncoupling mask=cycle:0 net=resnet channels=5000", {"channels=5000", "4096"}},
        {"input 1x8x8\ncoupling mask=cycle:0 net=resnet blocks=65", {"blocks=65", "64"}},
        {"input 1x8x8\ncoupling mask=cycle:0 net=resnet neck=70000", {"bottleneck=70000", "65536"}},
        {"input 1x8x8\ncoupling mask=channel:0 net=resnet", {"channel", "changes 64"}},
        {"input 1x8x8\ndequantize\nsqueeze\nlogit alpha=2", {"alpha=2", ""}},
        {"input 1x8x8\nactnorm; conv1x1; blend", {"line 2", "'blend'"}},
        {"input 1x8x8\nactnorm;; conv1x1", {"line 2", ""}}};
    int i, j;
    for (i = 0; i < COUNT(bad); i++) {
        fo_context *fo = fo_open(NULL);
        size_t      before = fo_memory(fo).now;
        fo_flow    *flow = fo_flow_parse(fo, bad[i].text);
        if (flow)
            printf("taken without complaint: %s\n", bad[i].text);
        CHECK(flow == NULL && fo_failed(fo) != FO_OK && fo_memory(fo).now == before);
        for (j = 0; j < 2 && flow == NULL; j++) {
            if (strstr(fo_error(fo), bad[i].say[j]) == NULL)
                printf("'%s' does not say '%s'\n", fo_error(fo), bad[i].say[j]);
            CHECK(strstr(fo_error(fo), bad[i].say[j]) != NULL);
        }
        fo_close(fo);
    }
    {
        fo_context *fo   = fo_open(NULL);
        fo_flow    *flow = fo_flow_create(fo, shape_of(2, 4, 4));
        fo_net      net  = fo_net_named("resnet");
        net.channels = 3, net.blocks = 1;
        CHECK(fo_add_layer(flow, "squeeze") == FO_OK && fo_add_layer(flow, "split") == FO_OK);
        CHECK(fo_add_layer(NULL, "split") != FO_OK && fo_add_layer(flow, NULL) != FO_OK);
        CHECK(fo_add_coupling(flow, fo_mask_named("channel", 1), net) == FO_OK);
        CHECK(strcmp(fo_flow_text(flow), "input 2x4x4\nsqueeze\nsplit\ncoupling mask=channel:1 "
                                         "net=resnet channels=3 blocks=1\n") == 0);
        CHECK(fo_flow_mask(flow, 2)[0] == FO_CHANGE && fo_flow_mask(flow, 2)[15] == FO_CONDITION);
        fo_close(fo);
    }
}

/* ---- the same bits, less memory -------------------------------------------------------------- */

static const char *const mixed =
    "input 2x8x8\ndequantize\nlogit alpha=0.05\n"
    "4* coupling mask=checkerboard:% net=resnet channels=8 blocks=2\n"
    "squeeze\nactnorm\nconv1x1\ncoupling mask=channel:0 net=highway channels=6\nsplit\n"
    "conv1x1 lu=1\nactnorm\n3* coupling mask=cycle:% net=resnet channels=8 blocks=2 neck=5\n"
    "coupling mask=horizontal:0 net=autoencoder channels=3 neck=4\n";

/* Three steps; weights, then buffers, come back in a malloc. */
static fo_real *train_once(int threads, double memory_mb, size_t *peak, int64_t *n) {
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, threads);
    fo_flow      *flow = fo_flow_parse(fo, mixed);
    fo_train_desc d    = steps_of(3, 12);
    fo_real      *copy;
    d.memory_mb = memory_mb;
    CHECK(flow && fo_train(flow, make_data(fo, 40, fo_flow_shape(flow)), &d) == FO_OK);
    *n   = flow->params.size + flow->buffers.size;
    copy = (fo_real *)malloc(BYTES(*n));
    memcpy(copy, flow->values, BYTES(flow->params.size));
    memcpy(copy + flow->params.size, flow->buffer_values, BYTES(flow->buffers.size));
    *peak = fo_memory(fo).peak;
    fo_close(fo);
    return copy;
}

static void test_same_bits(void) {
    static const struct { int threads; double mb; } ways[] = {
        {1, 1}, {1, 0.3}, {1, 1e-9}, {1, 1e9}, {2, 0}, {2, 1e-9}};
    size_t   peak0, peak[COUNT(ways)];
    int64_t  n0 = 0, n = 0, j;
    fo_real *base = train_once(1, 0, &peak0, &n0);
    int      i, finite = 1;
    for (j = 0; j < n0; j++)
        finite &= base[j] - base[j] == 0;
    CHECK(finite);
    for (i = 0; i < COUNT(ways); i++) {
        fo_real *other = train_once(ways[i].threads, ways[i].mb, &peak[i], &n);
        for (j = 0; j < n && j < n0 && memcmp(base + j, other + j, sizeof *base) == 0;)
            j++;
        if (j < n0)
            printf("%d threads, %g MB: number %d of %d differs\n", ways[i].threads, ways[i].mb,
                   (int)j, (int)n0);
        CHECK(n == n0 && j == n0);
        free(other);
    }
    if (!(peak[1] < peak0))
        printf("peaks %d: %d %d %d\n", (int)peak0, (int)peak[0], (int)peak[1], (int)peak[2]);
    CHECK(peak[1] < peak0 && peak[1] <= peak[0] && peak[2] <= peak[1] && peak[3] == peak0);
    free(base);
}

/* With recomputation the peak hardly grows with the number of couplings. */
static void test_peak(void) {
    size_t peak[2][2];
    int    way, deep;
    for (way = 0; way < 2; way++)
        for (deep = 0; deep < 2; deep++) {
            fo_context   *fo = open_with(5, FO_SIMD_AUTO, 1);
            char          text[200];
            fo_flow      *flow;
            fo_train_desc d = steps_of(1, 64);
            snprintf(text, sizeof text, "input 1x12x12\ndequantize\nlogit\n%d* coupling "
                     "mask=checkerboard:%% net=resnet channels=8 blocks=2\n", deep ? 12 : 4);
            flow        = fo_flow_parse(fo, text);
            d.memory_mb = way ? 1e-9 : 0;
            CHECK(fo_train(flow, make_data(fo, 128, fo_flow_shape(flow)), &d) == FO_OK);
            peak[way][deep] = fo_memory(fo).peak;
            fo_close(fo);
        }
    if (!((double)peak[1][1] < 1.35 * (double)peak[1][0]))
        printf("peaks: kept %d %d, again %d %d\n", (int)peak[0][0], (int)peak[0][1],
               (int)peak[1][0], (int)peak[1][1]);
    CHECK((double)peak[0][1] > 2 * (double)peak[0][0]);
    CHECK((double)peak[1][1] < 1.35 * (double)peak[1][0]);
    CHECK(peak[1][1] < peak[0][1] / 3);
}

/* A sample's score does not depend on its batch or on the number of threads. */
static void test_batches(void) {
    static const struct { int batch, first, threads; } ways[] = {
        {24, 0, 1}, {1, 0, 1}, {7, 0, 1}, {7, 5, 2}, {32, 0, 2}};
    static fo_real z0[24 * 128], z[24 * 128], x0[24 * 128], x[24 * 128];
    double         lp0[24], lp[24];
    int            w;
    for (w = 0; w < COUNT(ways); w++) {
        fo_context   *fo   = open_with(4, FO_SIMD_AUTO, ways[w].threads);
        fo_flow      *flow = fo_flow_parse(fo, mixed);
        fo_data      *data = make_data(fo, 24, fo_flow_shape(flow));
        fo_workspace *ws;
        uint64_t      before;
        int           first = ways[w].first, count = 24 - first, ok;
        shake(flow, 0.05);
        ws     = fo_workspace_create(fo, flow, ways[w].batch);
        before = fo_memory(fo).allocations;
        ok     = fo_log_prob(ws, data, first, count, 2, w ? lp : lp0) == FO_OK;
        ok &= fo_encode(ws, data, first, count, 2, w ? z : z0) == FO_OK;
        ok &= fo_decode(ws, z0 + first * 128, count, w ? x : x0, NULL) == FO_OK;
        CHECK(ok && fo_memory(fo).allocations == before);
        if (w) {
            CHECK(memcmp(lp, lp0 + first, (size_t)count * sizeof *lp) == 0);
            CHECK(memcmp(z, z0 + first * 128, BYTES(count * 128)) == 0);
            CHECK(memcmp(x, x0 + first * 128, BYTES(count * 128)) == 0);
        }
        fo_close(fo);
    }
}

typedef struct watch { fo_context *fo; uint64_t allocations; int calls, grew; } watch;

static int on_gradients(void *user, fo_real *grad, int64_t count) {
    watch *w = (watch *)user;
    (void)grad, (void)count;
    if (w->calls++ == 0)
        w->allocations = fo_memory(w->fo).allocations;
    w->grew |= fo_memory(w->fo).allocations != w->allocations;
    return 0;
}

/* No step allocates; four steps, a checkpoint and four more leave the bits of eight steps. */
static void test_resume(void) {
    const char   *path = FILE_NAME("image_resume");
    fo_real      *base = NULL;
    int           turn;
    for (turn = 0; turn < 2; turn++) {
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, mixed);
        fo_data      *data = make_data(fo, 40, fo_flow_shape(flow));
        fo_train_desc d    = steps_of(turn ? 4 : 8, 12);
        watch         w;
        memset(&w, 0, sizeof w);
        w.fo = fo, d.gradients = on_gradients, d.user = &w, d.optimizer = FO_RMSPROP;
        d.memory_mb = 0.3;
        CHECK(fo_train(flow, data, &d) == FO_OK && !w.grew && w.calls == (turn ? 4 : 8));
        if (turn) {
            CHECK(fo_save(flow, path) == FO_OK);
            flow = fo_load_flow(fo, path);
            CHECK(flow && fo_flow_train_desc(flow).optimizer == FO_RMSPROP);
            d = steps_of(8, 0);
            CHECK(flow && fo_train(flow, data, &d) == FO_OK);
            CHECK(flow && memcmp(base, flow->values, BYTES(flow->params.size)) == 0);
            CHECK(flow && memcmp(base + flow->params.size, flow->buffer_values,
                                 BYTES(flow->buffers.size)) == 0);
        } else {
            base = (fo_real *)malloc(BYTES(flow->params.size + flow->buffers.size));
            memcpy(base, flow->values, BYTES(flow->params.size));
            memcpy(base + flow->params.size, flow->buffer_values, BYTES(flow->buffers.size));
        }
        CHECK(fo_failed(fo) == FO_OK);
        fo_close(fo);
    }
    free(base);
    remove(path);
}

/* ---- batch norm: constants, modes, exact statistics ------------------------------------------ */

static int all_finite(const fo_real *x, int64_t n) {
    while (n > 0 && x[n - 1] - x[n - 1] == 0)
        n--;
    return n == 0;
}

static void test_constant(void) {
    static const char *const texts[] = {
        "input 2x4x4\nactnorm\ncoupling mask=channel:0 net=resnet channels=3 blocks=1\n"
        "coupling mask=channel:1 net=resnet channels=3 blocks=1\n",
        "input 2x4x4\n2* coupling mask=checkerboard:% net=resnet channels=3 blocks=1\n",
        "input 2x4x4\nsqueeze\nactnorm; conv1x1; coupling mask=channel:0 net=highway channels=3\n"};
    static fo_real rows[16 * 32];
    int            i, way;
    for (way = 0; way < 2 * COUNT(texts); way++) { /* one constant channel; everything constant */
        fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
        fo_flow      *flow = fo_flow_parse(fo, texts[way / 2]);
        fo_data      *data = fo_data_view(fo, rows, REAL_TYPE, 16, shape_of(2, 4, 4));
        fo_train_desc d    = steps_of(10, 8);
        double        lp[16];
        fo_random_normal(1, 1, 0, 16 * 32, rows);
        for (i = 0; i < 16 * 32; i++)
            if (i % 32 < 16 || way % 2)
                rows[i] = (fo_real)-2.9;
        CHECK(flow && fo_train(flow, data, &d) == FO_OK);
        CHECK(all_finite(flow->values, flow->params.size));
        CHECK(all_finite(flow->buffer_values, flow->buffers.size));
        CHECK(fo_log_prob(fo_workspace_create(fo, flow, 5), data, 0, 16, 0, lp) == FO_OK);
        if (fo_failed(fo))
            printf("way %d: %s\n", way, fo_error(fo));
        fo_close(fo);
    }
}

static void test_norm_modes(void) {
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow = fo_flow_parse(fo, mixed);
    fo_data      *data = make_data(fo, 24, fo_flow_shape(flow));
    fo_workspace *ws, *small;
    double        lp[5][24];
    fo_real      *kept;
    shake(flow, 0.1);
    kept = (fo_real *)malloc(BYTES(flow->buffers.size));
    memcpy(kept, flow->buffer_values, BYTES(flow->buffers.size));
    ws = fo_workspace_create(fo, flow, 24), small = fo_workspace_create(fo, flow, 6);
    CHECK(fo_log_prob(ws, data, 0, 24, 0, lp[0]) == FO_OK);
    CHECK(fo_workspace_norm(ws, FO_NORM_BATCH) == FO_OK);
    CHECK(fo_workspace_norm(small, FO_NORM_BATCH) == FO_OK);
    CHECK(fo_log_prob(ws, data, 0, 24, 0, lp[1]) == FO_OK && lp[1][0] != lp[0][0]);
    CHECK(fo_log_prob(small, data, 0, 24, 0, lp[2]) == FO_OK && lp[2][0] != lp[1][0]);
    CHECK(fo_log_prob(ws, data, 0, 6, 0, lp[3]) == FO_OK); /* rows that are idle do not count */
    CHECK(memcmp(lp[3], lp[2], 6 * sizeof lp[0][0]) == 0);
    CHECK(fo_workspace_norm(ws, FO_NORM_RUNNING) == FO_OK);
    CHECK(fo_log_prob(ws, data, 0, 24, 0, lp[4]) == FO_OK);
    CHECK(memcmp(lp[4], lp[0], sizeof lp[0]) == 0);
    CHECK(memcmp(kept, flow->buffer_values, BYTES(flow->buffers.size)) == 0);
    CHECK(fo_workspace_norm(ws, FO_NORM_TRAIN) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    CHECK(fo_workspace_norm(ws, FO_NORM_MEASURE) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    CHECK(fo_workspace_norm(NULL, FO_NORM_BATCH) != FO_OK);
    free(kept);
    fo_close(fo);
}

static fo_real *buffer_named(const fo_flow *flow, const char *name) {
    int i;
    for (i = 0; i < flow->buffers.count; i++)
        if (strcmp(flow->buffers.list[i].info.name, name) == 0)
            return flow->buffer_values + flow->buffers.list[i].info.offset;
    return NULL;
}

/* Statistics of 600 samples, in batches of 256, are those of all of them at once. */
static void test_recalibrate(void) {
    enum { N = 600, D = 32 };
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 2);
    fo_flow      *flow = fo_flow_parse(fo, "input 2x4x4\ndequantize\nlogit\n"
                                           "2* coupling mask=checkerboard:% net=resnet channels=3 "
                                           "blocks=1\n");
    fo_flow      *front = fo_flow_parse(fo, "input 2x4x4\ndequantize\nlogit\n");
    fo_data      *data = make_data(fo, N, shape_of(2, 4, 4));
    fo_real      *z = (fo_real *)malloc(BYTES(N * D)), *kept;
    fo_workspace *ws;
    double        sum[2] = {0, 0}, square[2] = {0, 0}, worst = 0;
    int64_t       i, k;
    shake(flow, 0.2);
    kept = (fo_real *)malloc(BYTES(flow->buffers.size));
    ws = fo_workspace_create(fo, front, 100);
    CHECK(as_in_training(ws, data, N, NULL, NULL, z) == FO_OK);
    CHECK(fo_recalibrate(flow, data, N) == FO_OK);
    for (k = 0; k < 2; k++) { /* what the first in_norm sees, zeros where it must not look */
        for (i = 0; i < N * D; i++) {
            int64_t in = i % D;
            double  v  = (double)z[i] * ((in / 4 % 4 + in % 4) % 2 == 0);
            if (in / 16 == k)
                sum[k] += v / (N * 16.0);
        }
        for (i = 0; i < N * D; i++) {
            int64_t in = i % D;
            double  v  = (double)z[i] * ((in / 4 % 4 + in % 4) % 2 == 0);
            if (in / 16 == k)
                square[k] += (v - sum[k]) * (v - sum[k]) / (N * 16.0 - 1);
        }
        CHECK_NEAR(buffer_named(flow, "2.net.in_norm.running_mean")[k], sum[k], 1e-5);
        CHECK_NEAR(buffer_named(flow, "2.net.in_norm.running_var")[k], square[k], 1e-5);
    }
    memcpy(kept, flow->buffer_values, BYTES(flow->buffers.size));
    CHECK(fo_recalibrate(flow, data, N) == FO_OK); /* from anywhere to the same */
    for (i = 0; i < flow->buffers.size; i++)
        worst = fmax(worst, fabs((double)(kept[i] - flow->buffer_values[i])));
    CHECK(worst == 0);
    CHECK(fo_recalibrate(flow, data, 200) == FO_OK); /* one batch: all that a batch of TRAIN sees */
    ws = fo__workspace_make(fo, flow, 200, 1, 0);
    memcpy(kept, flow->buffer_values, BYTES(flow->buffers.size));
    ws->data = data, ws->rows = 200, ws->seed = 5;
    for (i = 0; i < 200; i++)
        ws->noise[i] = FO__STREAM_NOISE + (uint64_t)(ws->sample[i] = i);
    ws->norm.mode = FO_NORM_TRAIN;
    memset(flow->buffer_values, 0, BYTES(flow->buffers.size));
    CHECK(fo__encode(ws) == FO_OK);
    for (i = 0, worst = 0; i < flow->buffers.size; i++)
        worst = fmax(worst, fabs(10 * (double)flow->buffer_values[i] - (double)kept[i]) /
                                (1 + fabs((double)kept[i])));
    CLOSE("recalibrate", "one batch", worst, IS_DOUBLE ? 1e-12 : 1e-5);
    CHECK(fo_recalibrate(flow, data, N + 1) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    CHECK(fo_recalibrate(NULL, data, 1) != FO_OK && fo_recalibrate(flow, NULL, 1) != FO_OK);
    free(kept), free(z);
    fo_close(fo);
}

/* A number that is not finite is named with its layer and sample, in networks of pictures too. */
static void test_nan(void) {
    fo_context   *fo   = open_with(5, FO_SIMD_AUTO, 1);
    fo_flow      *flow = fo_flow_parse(fo, mixed);
    fo_data      *data = make_data(fo, 24, fo_flow_shape(flow));
    fo_workspace *ws;
    double        lp[24];
    int           i;
    fo_params(flow, NULL);
    for (i = 0; i < fo_param_count(flow); i++)
        if (strcmp(fo_param_at(flow, i).name, "10.net.out_conv.bias") == 0 ||
            strcmp(fo_param_at(flow, i).name, "7.log_scale") == 0)
            break;
    flow->values[fo_param_at(flow, i).offset] = (fo_real)NAN;
    ws = fo_workspace_create(fo, flow, 8);
    CHECK(fo_log_prob(ws, data, 3, 5, 0, lp) == FO_ERR_NUMERIC);
    CHECK(strstr(fo_error(fo), "sample 3") && strstr(fo_error(fo), "layer "));
    fo_close(fo);
}

/* ---- every allocation fails once ------------------------------------------------------------- */

static fo_result life(heap *h, const char *path, int forgiving) {
    static const char *const text =
        "input 2x4x4\ndequantize\nlogit\nsqueeze\nactnorm; conv1x1; conv1x1 lu=1; permute seed=1\n"
        "2* coupling mask=channel:% net=resnet channels=2 blocks=1\nsplit\n"
        "coupling mask=cycle:0 net=highway channels=2\n"
        "coupling mask=cycle:1 net=resnet channels=2 blocks=1 neck=2\nunsqueeze\n"
        "coupling mask=horizontal:0 net=autoencoder channels=1 neck=2\n";
    fo_desc       desc;
    fo_context   *fo;
    fo_flow      *flow, *back;
    fo_data      *data;
    fo_workspace *ws;
    fo_train_desc d = steps_of(2, 4);
    fo_result     worst = FO_OK;
    fo_real       out[8 * 32];
    double        score[8];
    memset(&desc, 0, sizeof desc);
    desc.realloc_fn = heap_realloc, desc.user = h, desc.threads = 1;
    fo = fo_open(&desc);
    if (fo == NULL)
        return FO_ERR_MEMORY;
    STAGE(flow = fo_flow_parse(fo, text));
    STAGE(data = make_data(fo, 8, shape_of(2, 4, 4)));
    d.memory_mb = 1e-4, d.negative = data;
    STAGE(fo_train(flow, data, &d));
    STAGE(fo_recalibrate(flow, data, 8));
    STAGE(fo_save(flow, path));
    STAGE(back = fo_load_flow(fo, path));
    STAGE(ws = fo_workspace_create(fo, back, 4));
    STAGE(fo_workspace_norm(ws, FO_NORM_BATCH));
    STAGE(fo_score(ws, data, 0, 8, "likelihood", score));
    STAGE(fo_sample(ws, 1, 8, 1, out));
    STAGE(fo_add_layer(back = fo_flow_create(fo, shape_of(4, 4, 4)), "actnorm; conv1x1; split"));
    fo_flow_free(back), fo_flow_free(flow), fo_data_free(data);
    worst = worst ? worst : fo_failed(fo);
    fo_close(fo);
    return worst;
}

/* A user's image network, of two convolutions. */
static fo_tensor *build_pair(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    (void)tape;
    return fo_net_conv(fo_relu(fo_net_conv(x, "a", net->channels, 3, 0)), "b", outputs, 1, 0);
}

static void test_user_image_net(void) {
    fo_context     *fo   = open_with(3, FO_SIMD_AUTO, 1);
    fo_net_kind     pair = {"pair", build_pair, 1};
    fo_flow        *flow;
    fo_check_report report;
    CHECK(fo_register_net(fo, &pair) == FO_OK);
    flow = fo_flow_parse(fo, "input 2x4x4\ndequantize\nlogit\n"
                             "2* coupling mask=vertical:% net=pair channels=5\n");
    CHECK(flow && fo_check(flow, make_data(fo, 8, shape_of(2, 4, 4)), NULL, &report) == FO_OK);
    CHECK(report.jacobian < (IS_DOUBLE ? 1e-6 : 1e-2) && report.untouched == 0);
    CHECK(report.gradient < (IS_DOUBLE ? 1e-3 : 0.3));
    fo_close(fo);
}

int main(void) {
    test_ops();
    test_tiles();
    test_nets();
    test_golden();
    test_torch_names();
    test_flows_ood();
    test_golden_training();
    test_golden_negative();
    test_negative();
    test_actnorm();
    test_counts();
    test_presets();
    test_preset_neck();
    test_check();
    test_text();
    test_bad_text();
    test_same_bits();
    test_peak();
    test_batches();
    test_resume();
    test_constant();
    test_norm_modes();
    test_recalibrate();
    test_nan();
    test_every_allocation(life, FILE_NAME("image_life"));
    test_user_image_net();
    return test_end();
}
