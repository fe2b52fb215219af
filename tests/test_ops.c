/* Ops against a second implementation and against their own slopes; the tape's planner. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

#define ROOM 1024

/* ---- an expression on a tape ----------------------------------------------------------------- */

typedef fo_tensor *(*build_fn)(fo_tensor **in, const int *index);

typedef struct expression {
    const char *name;
    int         n;      /* leaves */
    const char *shapes; /* "3x4 5x4 5"; NULL: from the golden file */
    build_fn    build;
} expression;

enum { FEED, INPUT, PARAM, KINDS }; /* leaves: without and with a gradient, learned */

typedef struct machine {
    fo_context *fo;
    fo_tape    *tape;
    fo_tensor  *in[4], *out;
    int         n, rank[4];
    int64_t     dim[4][4], count[4];
    fo_real     value[4][ROOM], weight[ROOM];
} machine;

static fo_context *open_path(fo_simd simd, int threads) {
    fo_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.simd = simd, desc.threads = threads;
    return fo_open(&desc);
}

static void read_shapes(machine *m, const char *shapes) {
    for (m->n = 0; *shapes; m->n++) {
        int rank = 0;
        m->count[m->n] = 1;
        do {
            char *end;
            m->dim[m->n][rank] = strtol(shapes, &end, 10);
            m->count[m->n] *= m->dim[m->n][rank++];
            shapes = end;
        } while (*shapes++ == 'x');
        m->rank[m->n] = rank;
        shapes -= shapes[-1] == 0;
    }
}

/* Records the expression with these kinds of leaves and places it. */
static int record(machine *m, const expression *e, const int *kind, const int *index) {
    char name[16];
    int  i;
    m->tape = fo_tape_create(m->fo);
    for (i = 0; i < m->n; i++) {
        snprintf(name, sizeof name, "p%d", i);
        m->in[i] = kind[i] == PARAM ? fo_param(m->tape, name, m->rank[i], m->dim[i],
                                               fo_init_of(FO_INIT_CONSTANT, 0))
                                    : fo_input(m->tape, m->rank[i], m->dim[i], kind[i] == INPUT);
    }
    m->out = e->build(m->in, index);
    fo_output(m->out);
    return m->out && m->out->count <= ROOM && fo_tape_plan(m->tape, 1) == FO_OK;
}

static void forward(machine *m) {
    int i;
    for (i = 0; i < m->n; i++)
        memcpy(m->in[i]->data, m->value[i], (size_t)m->count[i] * sizeof(fo_real));
    fo_forward(m->tape);
}

/* The worst |numeric - analytic| / (1 + |analytic|) over the elements of every leaf. */
static double slope_error(machine *m) {
    fo_real above[ROOM], grad[4][ROOM];
    double  worst = 0;
    int     i;
    int64_t j, k;
    forward(m);
    if (m->out->grad == NULL || fo_backward(m->tape, m->out, m->weight) != FO_OK)
        return HUGE_VAL;
    for (i = 0; i < m->n; i++)
        if (m->in[i]->grad)
            memcpy(grad[i], m->in[i]->grad, (size_t)m->count[i] * sizeof(fo_real));
    for (i = 0; i < m->n; i++)
        for (j = 0; j < m->count[i] && m->in[i]->grad; j++) {
            fo_real x = m->value[i][j], h = (fo_real)(1e-5 * (1 + fabs((double)x)));
            double  slope = 0, e;
            m->value[i][j] = x + h;
            forward(m);
            memcpy(above, m->out->data, (size_t)m->out->count * sizeof(fo_real));
            m->value[i][j] = x - h;
            forward(m);
            m->value[i][j] = x;
            for (k = 0; k < m->out->count; k++)
                slope += (double)m->weight[k] * (double)(above[k] - m->out->data[k]);
            slope /= (double)((x + h) - (x - h));
            e     = fabs(slope - (double)grad[i][j]) / (1 + fabs((double)grad[i][j]));
            worst = e <= worst ? worst : e;
        }
    return worst;
}

/* Every way to need gradients or not, as inputs or as parameters. */
static void check_slopes(machine *m, const expression *e, const int *index) {
    int ways = 1, way, i, kind[4];
    for (i = 0; i < m->n; i++)
        ways *= KINDS;
    fo_random_normal(8, 1, 0, ROOM, m->weight);
    for (way = 1; way < ways; way++) {
        double error;
        int    rest = way;
        for (i = 0; i < m->n; i++, rest /= KINDS)
            kind[i] = rest % KINDS;
        error = record(m, e, kind, index) ? slope_error(m) : HUGE_VAL;
        if (!(error < 1e-7))
            printf("%s, leaves %d: slopes differ by %g (%s)\n", e->name, way, error,
                   fo_error(m->fo));
        CHECK(error < 1e-7);
        for (i = 0; i < m->n; i++)
            CHECK((m->in[i]->grad != NULL) == (kind[i] != FEED));
        fo_tape_free(m->tape);
    }
}

/* ---- golden values --------------------------------------------------------------------------- */

#define BUILD(name, value)                                                                         \
    static fo_tensor *build_##name(fo_tensor **in, const int *index) {                             \
        (void)index;                                                                               \
        return value;                                                                              \
    }
static fo_tensor *reshape2(fo_tensor *a, int64_t rows, int64_t columns) {
    int64_t dim[2];
    dim[0] = rows, dim[1] = columns;
    return fo_reshape(a, 2, dim);
}
static fo_tensor *reshape1(fo_tensor *a) { return fo_reshape(a, 1, &a->count); }

BUILD(add, fo_add(in[0], in[1]))
BUILD(sub, fo_sub(in[0], in[1]))
BUILD(mul, fo_mul(in[0], in[1]))
BUILD(square, fo_mul(in[0], in[0]))
BUILD(scale, fo_scale(in[0], -1.7))
BUILD(exp, fo_exp(in[0]))
BUILD(log, fo_log(in[0]))
BUILD(tanh, fo_tanh(in[0]))
BUILD(sigmoid, fo_sigmoid(in[0]))
BUILD(softplus, fo_softplus(in[0]))
BUILD(relu, fo_relu(in[0]))
BUILD(leaky_relu, fo_leaky_relu(in[0], 0.01))
BUILD(sum_all, fo_sum(in[0], 0))
BUILD(sum_keep, fo_sum(in[0], 1))
BUILD(mean_all, fo_mean(in[0], 0))
BUILD(mean_keep, fo_mean(in[0], 1))
BUILD(linear, fo_linear(in[0], in[1], in[2]))
BUILD(matmul, fo_matmul(in[0], in[1]))
BUILD(gather, fo_gather(in[0], index, 5))
BUILD(scatter, fo_scatter(in[0], index, 6))
BUILD(concat, fo_concat(in[0], in[1]))
BUILD(slice, fo_slice(in[0], 2, 3))
BUILD(slice_image, fo_slice(in[0], 1, 2))
BUILD(reshape, reshape2(in[0], 3, 20))

static const expression golden[] = {
    {"add", 2, NULL, build_add}, {"add_rows", 2, NULL, build_add},
    {"add_vector", 2, NULL, build_add}, {"add_scalar", 2, NULL, build_add},
    {"sub", 2, NULL, build_sub}, {"sub_rows", 2, NULL, build_sub},
    {"sub_vector", 2, NULL, build_sub}, {"sub_scalar", 2, NULL, build_sub},
    {"mul", 2, NULL, build_mul}, {"mul_rows", 2, NULL, build_mul},
    {"mul_vector", 2, NULL, build_mul}, {"mul_scalar", 2, NULL, build_mul},
    {"square", 1, NULL, build_square}, {"scale", 1, NULL, build_scale},
    {"exp", 1, NULL, build_exp}, {"log", 1, NULL, build_log}, {"tanh", 1, NULL, build_tanh},
    {"sigmoid", 1, NULL, build_sigmoid}, {"softplus", 1, NULL, build_softplus},
    {"relu", 1, NULL, build_relu}, {"leaky_relu", 1, NULL, build_leaky_relu},
    {"sum_all", 1, NULL, build_sum_all}, {"sum_keep", 1, NULL, build_sum_keep},
    {"mean_all", 1, NULL, build_mean_all}, {"mean_keep", 1, NULL, build_mean_keep},
    {"linear", 3, NULL, build_linear}, {"linear_wide", 3, NULL, build_linear},
    {"matmul", 2, NULL, build_matmul}, {"gather", 1, NULL, build_gather},
    {"scatter", 1, NULL, build_scatter}, {"concat", 2, NULL, build_concat},
    {"concat_image", 2, NULL, build_concat}, {"slice", 1, NULL, build_slice},
    {"slice_image", 1, NULL, build_slice_image}, {"reshape", 1, NULL, build_reshape}};

static const fo_array *find(const fo_archive *a, const char *name, const char *part, int i) {
    char full[80];
    snprintf(full, sizeof full, i < 0 ? "%s.%s" : "%s.%s%d", name, part, i);
    return fo_archive_find(a, full);
}

static int64_t array_count(const fo_array *a) {
    int64_t count = 1;
    int     i;
    for (i = 0; i < a->rank; i++)
        count *= a->dim[i];
    return count;
}

static double array_error(const fo_array *want, const fo_tensor *shape, const fo_real *got) {
    double  worst = 0;
    int64_t i;
    if (want == NULL || got == NULL || want->rank != shape->rank ||
        memcmp(want->dim, shape->dim, (size_t)want->rank * sizeof *want->dim) != 0)
        return HUGE_VAL;
    for (i = 0; i < shape->count; i++) {
        double b = ((const double *)want->values)[i], e = fabs((double)got[i] - b) / (1 + fabs(b));
        worst = e <= worst ? worst : e;
    }
    return worst;
}

static void load_values(machine *m, const fo_archive *a, const expression *e, int *index) {
    const fo_array *list = find(a, e->name, "index", -1);
    int64_t         j;
    int             i;
    m->n = e->n;
    for (i = 0; i < e->n; i++) {
        const fo_array *in = find(a, e->name, "in", i);
        m->rank[i]  = in->rank;
        m->count[i] = array_count(in);
        memcpy(m->dim[i], in->dim, sizeof in->dim);
        for (j = 0; j < m->count[i]; j++)
            m->value[i][j] = (fo_real)((const double *)in->values)[j];
    }
    for (j = 0; list && j < list->dim[0]; j++)
        index[j] = (int)((const int64_t *)list->values)[j];
}

static void test_golden(void) {
    static machine m;
    const int      kind[4] = {INPUT, INPUT, INPUT, INPUT};
    const double   tolerance = IS_DOUBLE ? 1e-10 : 1e-5;
    fo_context    *own = fo_open(NULL);
    fo_archive    *a   = fo_archive_open(own, "tests/golden/ops.safetensors");
    int            simd, i, j, k, cases = 0, index[8];
    int64_t        n;
    CHECK(a != NULL);
    for (i = 0; i < fo_archive_count(a); i++) {
        const char *name = fo_archive_at(a, i)->name;
        cases += strlen(name) > 4 && strcmp(name + strlen(name) - 4, ".out") == 0;
    }
    CHECK(cases == COUNT(golden)); /* nothing in the file goes untested */
    for (simd = FO_SIMD_REF; a && simd <= FO_SIMD_AVX512; simd++) {
        if (picked((fo_simd)simd)->simd != (fo_simd)simd)
            continue;
        m.fo = open_path((fo_simd)simd, 1);
        for (i = 0; i < COUNT(golden); i++) {
            const expression *e    = &golden[i];
            const fo_array   *dout = find(a, e->name, "dout", -1);
            double            worst;
            load_values(&m, a, e, index);
            if (!record(&m, e, kind, index)) {
                CHECK(!"recorded");
                continue;
            }
            for (n = 0; n < m.out->count; n++)
                m.weight[n] = (fo_real)((const double *)dout->values)[n];
            for (k = 0; k < 2; k++) { /* gradients are set, not added to */
                forward(&m);
                worst = array_error(find(a, e->name, "out", -1), m.out, m.out->data);
                CHECK(fo_backward(m.tape, m.out, m.weight) == FO_OK);
                for (j = 0; j < m.n; j++)
                    worst = fmax(worst, array_error(find(a, e->name, "grad", j), m.in[j],
                                                    m.in[j]->grad));
                if (!(worst <= tolerance))
                    printf("%s: %g off the golden values\n", e->name, worst);
                CHECK(worst <= tolerance);
            }
            fo_tape_free(m.tape);
            if (IS_DOUBLE && simd == FO_SIMD_REF)
                check_slopes(&m, e, index);
        }
        CHECK(fo_failed(m.fo) == FO_OK);
        fo_close(m.fo);
    }
    fo_close(own);
}

/* ---- slopes of compositions ------------------------------------------------------------------ */

static const int some[] = {1, -1, 3, 1, 0}, turn[] = {2, 0, 3, 1};

static fo_tensor *cube(fo_tensor *a, int sets_fresh);

BUILD(reuse, fo_sub(fo_add(fo_mul(in[0], in[0]), fo_tanh(in[0])), in[0]))
BUILD(twice_sub, fo_sub(in[0], in[0]))
BUILD(twice_linear, fo_linear(in[0], in[0], NULL))
BUILD(twice_matmul, fo_matmul(in[0], in[0]))
BUILD(twice_concat, fo_concat(in[0], in[0]))
BUILD(twice_conv, fo_conv2d(in[0], in[0], NULL, 1, 1))
BUILD(no_bias, fo_linear(in[0], in[1], NULL))
BUILD(tied, fo_linear(fo_tanh(fo_linear(in[0], in[1], in[2])), in[1], in[2]))
BUILD(mlp, fo_sum(fo_linear(fo_leaky_relu(fo_linear(in[0], in[1], in[2]), 0.1), in[3], NULL), 1))
BUILD(in_place, fo_leaky_relu(fo_tanh(fo_scale(fo_add(fo_scale(in[0], 0.7), in[1]), 2)), 0.5))
BUILD(in_place_exp, fo_exp(fo_scale(fo_sub(fo_exp(fo_scale(in[0], 0.3)), in[1]), 0.5)))
BUILD(in_place_view, fo_tanh(reshape1(fo_scale(fo_exp(fo_scale(in[0], 0.5)), 2))))
BUILD(view_param, fo_linear(in[0], reshape2(in[1], 2, 4), NULL))
BUILD(view_twice, fo_mul(reshape1(in[0]), fo_exp(reshape1(reshape2(in[0], 6, 2)))))
BUILD(view_and_self, fo_add(fo_sigmoid(in[0]), reshape2(fo_mul(reshape1(in[0]), reshape1(in[0])),
                                                        in[0]->dim[0], in[0]->dim[1])))
BUILD(view_out, reshape1(fo_tanh(in[0])))
BUILD(leaf_view_out, reshape1(in[0]))
BUILD(leaf_out, in[0])
BUILD(overlap, fo_concat(fo_slice(in[0], 0, 3), fo_slice(in[0], 1, 3)))
BUILD(split_join, fo_concat(fo_tanh(fo_slice(in[0], 2, 2)), fo_slice(in[0], 0, 2)))
BUILD(mixed_concat, fo_concat(fo_concat(in[0], fo_tanh(in[1])), in[2]))
BUILD(gather_scatter, fo_scatter(fo_gather(fo_exp(in[0]), turn, 4), turn, 4))
BUILD(gather_twice, fo_mul(fo_gather(in[0], some, 5), fo_gather(in[0], some, 5)))
BUILD(scatter_sum, fo_add(fo_scatter(in[0], turn, 4), fo_scatter(in[1], turn, 4)))
BUILD(self_scalar, fo_mul(in[0], fo_sum(in[0], 0)))
BUILD(self_mean, fo_sub(in[0], fo_mean(in[0], 0)))
BUILD(rows_of_leaf, fo_mul(fo_sigmoid(in[0]), in[1]))
BUILD(one_by_one, fo_mul(fo_add(in[0], in[1]), in[1]))
BUILD(log_sum_exp, fo_log(fo_sum(fo_exp(in[0]), 1)))
BUILD(likelihood, fo_mean(fo_add(fo_scale(fo_sum(fo_mul(in[0], in[0]), 1), -0.5),
                                 fo_sum(fo_scale(fo_tanh(in[1]), 0.8), 1)), 0))
BUILD(dead_branch, (fo_exp(fo_tanh(in[0])), fo_linear(in[0], in[0], NULL), fo_softplus(in[0])))
BUILD(cube, fo_mul(cube(fo_tanh(in[0]), 0), in[0]))
BUILD(cube_fresh, fo_mul(cube(fo_tanh(in[0]), 1), in[0]))
BUILD(cube_twice, fo_add(cube(in[0], 0), cube(in[0], 1)))
BUILD(cube_twice_fresh, fo_add(cube(in[0], 1), cube(in[0], 1)))

static fo_tensor *build_lone_scatter(fo_tensor **in, const int *index) {
    static const int to[] = {5, 0, 2};
    (void)index;
    return fo_tanh(fo_scatter(fo_slice(in[0], 1, 3), to, 7));
}

static const expression compositions[] = {
    {"reuse", 1, "3x4", build_reuse}, {"twice_sub", 1, "3x4", build_twice_sub},
    {"twice_linear", 1, "4x4", build_twice_linear},
    {"twice_matmul", 1, "4x4", build_twice_matmul}, {"twice_concat", 1, "3x2", build_twice_concat},
    {"twice_conv", 1, "2x2x3x3", build_twice_conv},
    {"no_bias", 2, "3x4 5x4", build_no_bias}, {"tied", 3, "3x4 4x4 4", build_tied},
    {"mlp", 4, "3x4 5x4 5 2x5", build_mlp}, {"in_place", 2, "3x4 4", build_in_place},
    {"in_place_exp", 2, "2x3 2x3", build_in_place_exp},
    {"in_place_view", 1, "2x3", build_in_place_view},
    {"view_param", 2, "3x4 8", build_view_param}, {"view_twice", 1, "3x4", build_view_twice},
    {"view_and_self", 1, "3x4", build_view_and_self}, {"view_out", 1, "2x3", build_view_out},
    {"leaf_view_out", 1, "2x3", build_leaf_view_out}, {"leaf_out", 1, "5", build_leaf_out},
    {"overlap", 1, "2x4", build_overlap}, {"split_join", 1, "3x4x2", build_split_join},
    {"mixed_concat", 3, "2x3 2x1 2x4", build_mixed_concat},
    {"gather_scatter", 1, "2x4", build_gather_scatter},
    {"gather_twice", 1, "2x4", build_gather_twice},
    {"scatter_sum", 2, "2x4 2x4", build_scatter_sum},
    {"lone_scatter", 1, "2x4", build_lone_scatter}, {"self_scalar", 1, "3x2", build_self_scalar},
    {"self_mean", 1, "7", build_self_mean}, {"rows_of_leaf", 2, "2x3x2 3x2", build_rows_of_leaf},
    {"one_by_one", 2, "1 1", build_one_by_one}, {"log_sum_exp", 1, "3x4", build_log_sum_exp},
    {"likelihood", 2, "3x4 3x2", build_likelihood}, {"dead_branch", 1, "4x4", build_dead_branch},
    {"cube", 1, "3x4", build_cube}, {"cube_fresh", 1, "3x4", build_cube_fresh},
    {"cube_twice", 1, "3x4", build_cube_twice},
    {"cube_twice_fresh", 1, "3x4", build_cube_twice_fresh}};

/* A user's op: k a^3, which overwrites a fresh gradient, or adds to it as by default. */
static fo_result cube_shape(fo_tensor *out) {
    out->rank = out->in[0]->rank;
    memcpy(out->dim, out->in[0]->dim, sizeof out->dim);
    return FO_OK;
}
static void cube_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    fo_real k = *(const fo_real *)out->args;
    for (; begin < end; begin++) {
        fo_real a = out->in[0]->data[begin];
        out->data[begin] = k * a * a * a;
    }
}
static void cube_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    fo_real k = *(const fo_real *)out->args;
    int     set = (out->op->flags & FO_OVERWRITES) && (out->overwrite & 1);
    for (; begin < end; begin++) {
        fo_real a = out->in[0]->data[begin], *grad = out->in[0]->grad + begin;
        *grad = (set ? 0 : *grad) + 3 * k * a * a * out->grad[begin];
    }
}
static fo_tensor *cube(fo_tensor *a, int sets_fresh) {
    static const fo_op op[2] = {
        {"cube", FO_ELEMENTWISE | FO_READS_INPUT, cube_shape, cube_forward, cube_backward},
        {"cube", FO_READS_INPUT | FO_OVERWRITES, cube_shape, cube_forward, cube_backward}};
    fo_real k = (fo_real)0.5;
    return a ? fo_apply(a->tape, &op[sets_fresh], &a, 1, &k, sizeof k) : NULL;
}

static void test_slopes(void) {
    static machine m;
    int            i, j;
    if (!IS_DOUBLE) { /* finite differences need the digits */
        test_skipped++;
        return;
    }
    m.fo = fo_open(NULL);
    for (i = 0; i < COUNT(compositions); i++) {
        read_shapes(&m, compositions[i].shapes);
        CHECK(m.n == compositions[i].n);
        for (j = 0; j < m.n; j++)
            fo_random_normal(4, (uint64_t)(i * 4 + j), 0, m.count[j], m.value[j]);
        check_slopes(&m, &compositions[i], NULL);
    }
    CHECK(fo_failed(m.fo) == FO_OK);
    fo_close(m.fo);
}

/* ---- the planner ----------------------------------------------------------------------------- */

/* A random program on [4,6] values: op by op from a stream of random bits. keep_all makes every
   value an output, so that nothing shares memory: the oracle of the planner. */
static fo_tensor *random_op(fo_tape *tape, fo_tensor **t, int n, const uint32_t *r, int id) {
    static const int shuffled[] = {3, 1, 5, 0, 2, 4};
    fo_tensor *a = t[r[1] % (uint32_t)n], *b = t[r[2] % (uint32_t)n], *w, *v;
    int64_t    dim[2] = {6, 6};
    char       name[24];
    snprintf(name, sizeof name, "w%d", r[3] % 3 ? id : 0); /* some parameters are shared */
    switch (r[0] % 16) {
    case 0: return fo_tanh(fo_add(a, b));
    case 1: return fo_sub(a, b);
    case 2: return fo_mul(fo_tanh(a), b);
    case 3: return fo_scale(a, -0.5);
    case 4: return fo_exp(fo_scale(fo_tanh(a), 0.5));
    case 5: return fo_sigmoid(a);
    case 6: return fo_softplus(a);
    case 7: return fo_leaky_relu(a, 0.2);
    case 8: return fo_log(fo_add(fo_mul(a, a), fo_exp(fo_scale(fo_tanh(b), 0.1))));
    case 9: return reshape2(fo_tanh(reshape1(a)), 4, 6);
    case 10: return fo_concat(fo_slice(a, 2, 3), fo_slice(b, 0, 3));
    case 11: return fo_gather(a, shuffled, 6);
    case 12: return fo_scatter(a, shuffled, 6);
    case 13: return fo_add(a, fo_mean(b, 0));
    case 14:
        w = fo_param(tape, name, 2, dim, fo_init_of(FO_INIT_NORMAL, 0.4));
        return fo_matmul(a, w);
    default:
        w = fo_param(tape, name, 2, dim, fo_init_of(FO_INIT_NORMAL, 0.4));
        snprintf(name, sizeof name, "b%d", id);
        v = fo_param(tape, name, 1, dim, fo_init_of(FO_INIT_UNIFORM, 0.4));
        return fo_linear(a, w, v);
    }
}

typedef struct run { fo_real out[24], grad[3][24], *params; int64_t n_params, memory; } run;

static int random_program(fo_context *fo, uint64_t seed, int keep_all, int train, run *result) {
    fo_tape   *tape = fo_tape_create(fo);
    fo_tensor *t[40];
    int64_t    dim[2] = {4, 6};
    uint32_t   r[4];
    fo_real    x[24], weight[24];
    int        n = 0, ops, i, again, ok;
    for (; n < 3; n++)
        t[n] = fo_input(tape, 2, dim, n < 2);
    fo_random_bits(seed, 1, 1000, r);
    for (ops = 4 + (int)(r[0] % 20); n < ops + 3; n++) {
        fo_random_bits(seed, 1, (uint64_t)n, r);
        r[1] = r[3] % 2 ? (uint32_t)n - 1 : r[1]; /* long chains */
        t[n] = random_op(tape, t, n, r, n);
    }
    fo_output(t[n - 1]);
    fo_output(t[n / 2]); /* one in the middle, which is read while the program goes on */
    for (i = 0; keep_all && i < tape->count; i++)
        fo_output(tape->nodes[i]);
    ok = fo_tape_plan(tape, train) == FO_OK;
    for (again = 0; again < 2 && ok; again++) { /* the second run must not see the first */
        for (i = 0; i < 3; i++) {
            fo_random_normal(seed, 5 + (uint64_t)i, 0, 24, x);
            memcpy(t[i]->data, x, sizeof x);
        }
        fo_random_normal(seed, 9, 0, 24, weight);
        ok = fo_forward(tape) == FO_OK;
        memcpy(result->out, t[n - 1]->data, sizeof x);
        memcpy(result->grad[2], t[n / 2]->data, sizeof x);
        if (t[n - 1]->grad)
            ok &= fo_backward(tape, t[n - 1], weight) == FO_OK;
        for (i = 0; i < 2 && t[n - 1]->grad && t[i]->grad; i++)
            memcpy(result->grad[i], t[i]->grad, sizeof x);
    }
    result->memory   = tape->kept_size + tape->scratch_size;
    result->n_params = train && t[n - 1]->grad ? tape->own.size : 0;
    result->params   = NULL;
    for (i = 0; i < tape->count && result->n_params && ok; i++)
        if (fo__plan_of(tape->nodes[i])->param_at == 0) {
            size_t size    = (size_t)result->n_params * sizeof(fo_real);
            result->params = (fo_real *)malloc(size);
            memcpy(result->params, tape->nodes[i]->grad, size);
        }
    fo_tape_free(tape);
    return ok;
}

static void test_planner(void) {
    fo_context *fo = fo_open(NULL);
    uint64_t    seed;
    int64_t     shared = 0, apart = 0;
    for (seed = 0; seed < 400; seed++) {
        int train = seed % 4 != 3, ok, same;
        run a, b;
        memset(&a, 0, sizeof a), memset(&b, 0, sizeof b);
        ok   = random_program(fo, seed, 0, train, &a) & random_program(fo, seed, 1, train, &b);
        same = memcmp(a.out, b.out, sizeof a.out) == 0 &&
               memcmp(a.grad, b.grad, sizeof a.grad) == 0 && a.n_params == b.n_params &&
               (a.n_params == 0 || memcmp(a.params, b.params, (size_t)a.n_params *
                                                              sizeof(fo_real)) == 0);
        if (!ok || !same)
            printf("random program %d: ok %d, same %d (%s)\n", (int)seed, ok, same, fo_error(fo));
        CHECK(ok && same);
        CHECK(a.memory <= b.memory);
        if (!train)
            CHECK(a.memory < b.memory);
        shared += a.memory, apart += b.memory;
        free(a.params), free(b.params);
    }
    CHECK(2 * shared < apart + apart / 2); /* sharing saves a good part */
    fo_close(fo);
}

/* Backward from two outputs in turn: each time the gradients of that one alone. */
static void test_two_outputs(void) {
    fo_context *fo   = fo_open(NULL);
    fo_tape    *tape = fo_tape_create(fo);
    int64_t     three = 3;
    fo_tensor  *x = fo_input(tape, 1, &three, 1);
    fo_tensor  *p = fo_param(tape, "p", 1, &three, fo_init_of(FO_INIT_CONSTANT, 2));
    fo_tensor  *mid = fo_scale(x, 3), *end = fo_mul(mid, p);
    const fo_real ones[3] = {1, 1, 1};
    int         i, turn_;
    fo_output(mid), fo_output(end);
    CHECK(fo_tape_plan(tape, 1) == FO_OK);
    for (turn_ = 0; turn_ < 4; turn_++) {
        for (i = 0; i < 3; i++)
            x->data[i] = (fo_real)(i + 1);
        CHECK(fo_forward(tape) == FO_OK);
        CHECK(fo_backward(tape, turn_ % 2 ? mid : end, ones) == FO_OK);
        for (i = 0; i < 3; i++) {
            CHECK(mid->data[i] == (fo_real)(3 * (i + 1)) && end->data[i] == (fo_real)(6 * (i + 1)));
            CHECK(x->grad[i] == (turn_ % 2 ? 3 : 6));
            CHECK(p->grad[i] == (fo_real)(turn_ % 2 ? 0 : 3 * (i + 1)));
        }
    }
    for (i = 0; i < 3; i++) /* grad NULL: out->grad holds it */
        x->data[i] = 1, end->grad[i] = (fo_real)i;
    fo_forward(tape);
    CHECK(fo_backward(tape, end, NULL) == FO_OK && x->grad[2] == 12 && x->grad[0] == 0);
    fo_close(fo);
}

static void test_no_allocation(void) {
    static const expression mlp = {"mlp", 4, NULL, build_mlp};
    static machine m;
    const int      kind[4] = {INPUT, PARAM, PARAM, PARAM};
    uint64_t       before;
    int            i;
    m.fo = fo_open(NULL);
    read_shapes(&m, "3x4 5x4 5 2x5");
    CHECK(record(&m, &mlp, kind, NULL));
    before = fo_memory(m.fo).allocations;
    for (i = 0; i < 3; i++) {
        forward(&m);
        CHECK(fo_backward(m.tape, m.out, m.weight) == FO_OK);
    }
    CHECK(fo_memory(m.fo).allocations == before);
    fo_close(m.fo);
}

/* More elements than one thread takes at a time: the same bits for any number of threads. */
static void test_threads(void) {
    enum { B = 300, N = 120 };
    static fo_real out[2][B * N], grad[2][B * N], bias[2][N], one[2][1];
    int            threads;
    for (threads = 1; threads <= 3; threads++) {
        fo_context *fo   = open_path(FO_SIMD_AUTO, threads);
        fo_tape    *tape = fo_tape_create(fo);
        int64_t     dim[2] = {B, N}, columns = N, single = 1;
        fo_tensor  *x = fo_input(tape, 2, dim, 1), *y, *s;
        fo_tensor  *b = fo_param(tape, "b", 1, &columns, fo_init_of(FO_INIT_NORMAL, 1));
        fo_tensor  *k = fo_param(tape, "k", 1, &single, fo_init_of(FO_INIT_NORMAL, 1));
        int         to = threads > 1;
        s = fo_sum(fo_mul(fo_softplus(fo_add(fo_tanh(x), b)), k), 1);
        y = fo_mul(fo_sub(x, b), fo_add(x, fo_mean(s, 0)));
        y = fo_add(fo_mul(fo_sigmoid(y), k), b);
        fo_output(y);
        CHECK(fo_tape_plan(tape, 1) == FO_OK);
        fo_random_normal(1, 1, 0, B * N, x->data);
        CHECK(fo_forward(tape) == FO_OK);
        memcpy(out[to], y->data, sizeof out[0]);
        fo_random_normal(1, 2, 0, B * N, y->grad);
        CHECK(fo_backward(tape, y, NULL) == FO_OK);
        memcpy(grad[to], x->grad, sizeof grad[0]);
        memcpy(bias[to], b->grad, sizeof bias[0]);
        memcpy(one[to], k->grad, sizeof one[0]);
        if (to)
            CHECK(memcmp(out[0], out[1], sizeof out[0]) == 0 &&
                  memcmp(grad[0], grad[1], sizeof grad[0]) == 0 &&
                  memcmp(bias[0], bias[1], sizeof bias[0]) == 0 &&
                  memcmp(one[0], one[1], sizeof one[0]) == 0);
        fo_close(fo);
    }
}

/* ---- what goes wrong ------------------------------------------------------------------------- */

#define BAD(name, value)                                                                           \
    static fo_tensor *bad_##name(fo_tape *t, fo_tensor *a, fo_tensor *b) {                         \
        static const int     i4[] = {0, 4}, repeated[] = {0, 1, 2, 1}, below[] = {0, 1, -1, 2};    \
        static const int64_t ones[7] = {3, 4, 1, 1, 1, 1, 1}, zero[2] = {3, 0}, d34[2] = {3, 4};   \
        static const int64_t huge[3] = {INT64_MAX, INT64_MAX, 4}, d43[2] = {4, 3}, two = 2;        \
        fo_init init = fo_init_of(FO_INIT_CONSTANT, 0);                                            \
        (void)t, (void)a, (void)b, (void)i4, (void)repeated, (void)below, (void)ones, (void)zero;  \
        (void)d34, (void)huge, (void)d43, (void)two, (void)init;                                   \
        return value;                                                                              \
    }
BAD(add, fo_add(a, b))
BAD(mul, fo_mul(b, a))
BAD(matmul, fo_matmul(a, b))
BAD(linear, fo_linear(a, b, NULL))
BAD(bias, fo_linear(a, a, fo_input(t, 1, &two, 0)))
BAD(concat, fo_concat(a, b))
BAD(conv, fo_conv2d(a, b, NULL, 1, 1))
BAD(conv_transpose, fo_conv2d_transpose(a, b, NULL, 1, 1))
BAD(slice, fo_slice(a, 2, 3))
BAD(slice_begin, fo_slice(a, INT64_MAX, INT64_MAX))
BAD(reshape, reshape2(a, 5, 2))
BAD(reshape_rank, fo_reshape(a, 7, ones))
BAD(reshape_huge, reshape2(a, INT64_MAX / 2 + 1, 4))
BAD(gather, fo_gather(a, i4, 2))
BAD(scatter, fo_scatter(a, repeated, 5))
BAD(scatter_below, fo_scatter(a, below, 5))
BAD(slope, fo_leaky_relu(a, -1))
BAD(activation, fo_activation(a, "swish"))
BAD(rank, fo_input(t, 5, ones, 0))
BAD(zero, fo_input(t, 2, zero, 0))
BAD(huge, fo_param(t, "p", 3, huge, init))
BAD(param, (fo_param(t, "w", 2, d34, init), fo_param(t, "w", 2, d43, init)))
BAD(tapes, fo_add(a, fo_input(fo_tape_create(fo_tape_context(t)), 2, d34, 0)))

static void test_errors(void) {
    static const struct {
        fo_tensor *(*make)(fo_tape *, fo_tensor *, fo_tensor *);
        fo_result   code;
        const char *say[3]; /* all of them are in the message */
    } bad[] = {
        {bad_add, FO_ERR_SHAPE, {"fo_add", "[3,4]", "[5,2]"}},
        {bad_mul, FO_ERR_SHAPE, {"fo_mul", "[5,2]", "[3,4]"}},
        {bad_matmul, FO_ERR_SHAPE, {"fo_matmul", "[3,4]", "[5,2]"}},
        {bad_linear, FO_ERR_SHAPE, {"fo_linear", "[3,4]", "[5,2]"}},
        {bad_bias, FO_ERR_SHAPE, {"fo_linear", "[3,4]", "b[O]"}},
        {bad_concat, FO_ERR_SHAPE, {"fo_concat", "[3,4]", "[5,2]"}},
        {bad_conv, FO_ERR_SHAPE, {"fo_conv2d of", "[3,4]", "[5,2]"}},
        {bad_conv_transpose, FO_ERR_SHAPE, {"fo_conv2d_transpose of", "[3,4]", "[5,2]"}},
        {bad_slice, FO_ERR_SHAPE, {"fo_slice", "[3,4]", "dimension 1"}},
        {bad_slice_begin, FO_ERR_SHAPE, {"fo_slice", "[3,4]", "outside"}},
        {bad_reshape, FO_ERR_SHAPE, {"fo_reshape", "[3,4]", "number of elements"}},
        {bad_reshape_rank, FO_ERR_SHAPE, {"", "", ""}},
        {bad_reshape_huge, FO_ERR_SHAPE, {"", "", ""}},
        {bad_gather, FO_ERR_ARGUMENT, {"fo_gather", "index[1] is 4", "4"}},
        {bad_scatter, FO_ERR_ARGUMENT, {"fo_scatter", "index 1", "twice"}},
        {bad_scatter_below, FO_ERR_ARGUMENT, {"fo_scatter", "index[2] is -1", ""}},
        {bad_slope, FO_ERR_ARGUMENT, {"fo_leaky_relu", "-1", "negative"}},
        {bad_activation, FO_ERR_ARGUMENT, {"swish", "leaky_relu", "tanh"}},
        {bad_rank, FO_ERR_SHAPE, {"rank 5", "1 to 4", ""}},
        {bad_zero, FO_ERR_SHAPE, {"[3,0]", "at least 1", ""}},
        {bad_huge, FO_ERR_SHAPE, {"at most 2^40", "", ""}},
        {bad_param, FO_ERR_SHAPE, {"parameter w", "two different shapes", ""}},
        {bad_tapes, FO_ERR_ARGUMENT, {"add", "two tapes", ""}}};
    int i, j;
    for (i = 0; i < COUNT(bad); i++) {
        fo_context *fo   = fo_open(NULL);
        fo_tape    *tape = fo_tape_create(fo);
        int64_t     d1[2] = {3, 4}, d2[2] = {5, 2};
        fo_tensor  *a = fo_input(tape, 2, d1, 1), *b = fo_input(tape, 2, d2, 1);
        fo_tensor  *out = bad[i].make(tape, a, b);
        CHECK(out == NULL && fo_failed(fo) == bad[i].code);
        for (j = 0; j < 3; j++)
            if (strstr(fo_error(fo), bad[i].say[j]) == NULL) {
                printf("'%s' does not say '%s'\n", fo_error(fo), bad[i].say[j]);
                CHECK(!"the message names what was seen");
            }
        CHECK(fo_tanh(fo_add(out, a)) == NULL); /* goes on quietly */
        CHECK(fo_failed(fo) == bad[i].code);
        CHECK(fo_forward(tape) != FO_OK && fo_backward(tape, a, NULL) != FO_OK);
        fo_close(fo);
    }
}

static void test_nothing(void) {
    static const int index[] = {0};
    fo_context *fo   = fo_open(NULL);
    fo_tape    *tape = fo_tape_create(fo);
    int64_t     one  = 1;
    fo_tensor  *a = fo_input(tape, 1, &one, 0), *none = NULL;
    CHECK(!fo_add(a, NULL) && !fo_add(NULL, a) && !fo_sub(NULL, NULL) && !fo_mul(a, NULL));
    CHECK(!fo_scale(NULL, 1) && !fo_exp(NULL) && !fo_log(NULL) && !fo_tanh(NULL));
    CHECK(!fo_sigmoid(NULL) && !fo_softplus(NULL) && !fo_relu(NULL) && !fo_leaky_relu(NULL, 0));
    CHECK(!fo_sum(NULL, 0) && !fo_mean(NULL, 1) && !fo_linear(NULL, a, NULL));
    CHECK(!fo_linear(a, NULL, NULL) && !fo_matmul(a, NULL) && !fo_gather(NULL, index, 1));
    CHECK(!fo_scatter(NULL, index, 1) && !fo_concat(a, NULL) && !fo_slice(NULL, 0, 1));
    CHECK(!fo_reshape(NULL, 1, &one) && !fo_activation(NULL, "tanh"));
    CHECK(!fo_net_linear(NULL, "x", 1, 0) && !fo_input(NULL, 1, &one, 0));
    CHECK(!fo_param(NULL, "p", 1, &one, fo_init_of(FO_INIT_CONSTANT, 0)));
    CHECK(!fo_apply(tape, &fo->ops[0], &none, 1, NULL, 0) && !fo_tape_context(NULL));
    fo_output(NULL), fo_tape_free(NULL);
    CHECK(fo_tape_plan(NULL, 1) != FO_OK && fo_forward(NULL) != FO_OK);
    CHECK(fo_backward(NULL, NULL, NULL) != FO_OK);
    CHECK(fo_failed(fo) == FO_OK);
    fo_close(fo);
}

static void test_order(void) {
    fo_context *fo = fo_open(NULL);
    fo_tape    *tape;
    int64_t     two = 2;
    fo_tensor  *a, *b, *out;
    tape = fo_tape_create(fo);
    a    = fo_param(tape, "a", 1, &two, fo_init_of(FO_INIT_CONSTANT, 1));
    CHECK(fo_param(tape, "a", 1, &two, fo_init_of(FO_INIT_CONSTANT, 1)) == a);
    CHECK(fo_forward(tape) == FO_ERR_ARGUMENT && strstr(fo_error(fo), "before fo_tape_plan"));
    fo_clear_error(fo);
    out = fo_mul(a, a);
    CHECK(fo_backward(tape, out, NULL) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    b = fo_tanh(out);
    fo_output(b);
    CHECK(fo_tape_plan(tape, 1) == FO_OK);
    CHECK(fo_tape_plan(tape, 1) == FO_ERR_ARGUMENT && strstr(fo_error(fo), "twice"));
    fo_clear_error(fo);
    CHECK(fo_exp(a) == NULL && strstr(fo_error(fo), "after fo_tape_plan"));
    fo_clear_error(fo);
    CHECK(fo_backward(tape, out, NULL) == FO_ERR_ARGUMENT); /* not an output */
    fo_clear_error(fo);
    CHECK(fo_forward(tape) == FO_OK); /* still usable */
    CHECK_NEAR(b->data[0], 0.76159415595576489, 1e-6);
    tape = fo_tape_create(fo); /* planned without gradients */
    a    = fo_input(tape, 1, &two, 1);
    b    = fo_tanh(a);
    fo_output(b);
    CHECK(fo_tape_plan(tape, 0) == FO_OK && b->grad == NULL && a->grad == NULL);
    CHECK(fo_backward(tape, b, NULL) == FO_ERR_ARGUMENT && strstr(fo_error(fo), "train = 1"));
    fo_close(fo);
}

static void test_inits(void) {
    fo_context *fo   = fo_open(NULL);
    fo_tape    *tape = fo_tape_create(fo);
    int64_t     n = 20000, i;
    fo_tensor  *p[4];
    double      m1[4] = {0, 0, 0, 0}, m2[4] = {0, 0, 0, 0}, lag = 0;
    int         k;
    p[0] = fo_param(tape, "c", 1, &n, fo_init_of(FO_INIT_CONSTANT, 1.5));
    p[1] = fo_param(tape, "u", 1, &n, fo_init_of(FO_INIT_UNIFORM, 2));
    p[2] = fo_param(tape, "n", 1, &n, fo_init_of(FO_INIT_NORMAL, 2));
    p[3] = fo_param(tape, "n2", 1, &n, fo_init_of(FO_INIT_NORMAL, 2));
    fo_tape_plan(tape, 0);
    for (k = 0; k < 4; k++)
        for (i = 0; i < n; i++) {
            m1[k] += (double)p[k]->data[i] / (double)n;
            m2[k] += (double)p[k]->data[i] * (double)p[k]->data[i] / (double)n;
            lag += k == 3 ? (double)p[2]->data[i] * (double)p[3]->data[i] / (double)n : 0;
        }
    CHECK(fabs(m1[0] - 1.5) < 1e-9 && fabs(m2[0] - 2.25) < 1e-9);
    CHECK(fabs(m1[1]) < 0.05 && fabs(m2[1] - 4 / 3.0) < 0.05);
    CHECK(fabs(m1[2]) < 0.08 && fabs(m2[2] - 4) < 0.2 && fabs(lag) < 0.15);
    fo_close(fo);
}

/* The sum of any number of inputs, which sets or adds to their gradients. */
static fo_result total_shape(fo_tensor *out) {
    out->rank   = 1;
    out->dim[0] = out->in[0]->dim[0];
    return FO_OK;
}

static void total_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t i;
    int     k;
    for (i = begin; i < end; i++)
        for (out->data[i] = 0, k = 0; k < out->n_in; k++)
            out->data[i] += out->in[k]->data[i];
}

static void total_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t i;
    int     k;
    for (k = 0; k < out->n_in; k++)
        for (i = begin; i < end; i++)
            out->in[k]->grad[i] = out->grad[i] + (k < 32 && (out->overwrite >> k & 1)
                                                  ? 0 : out->in[k]->grad[i]);
}

/* More inputs than the masks of gradients have bits. */
static void test_many_inputs(void) {
    enum { INPUTS = 70, N = 5 };
    static const int flags[3] = {0, FO_ELEMENTWISE, FO_OVERWRITES};
    const int64_t    dim[1] = {N};
    int              which, k, step, i, wrong = 0;
    for (which = 0; which < 3; which++) {
        const fo_op op   = {"total", flags[which], total_shape, total_forward, total_backward};
        fo_context *fo   = open_with(0, FO_SIMD_AUTO, 1);
        fo_tape    *tape = fo_tape_create(fo);
        fo_tensor  *in[INPUTS], *out;
        fo_real     ones[N] = {1, 1, 1, 1, 1};
        for (k = 0; k < INPUTS; k++)
            in[k] = fo_input(tape, 1, dim, 1);
        out = fo_apply(tape, &op, in, INPUTS, NULL, 0);
        fo_output(out);
        CHECK(fo_tape_plan(tape, 1) == FO_OK);
        for (step = 0; step < 2; step++) {
            for (k = 0; k < INPUTS; k++)
                for (i = 0; i < N; i++)
                    in[k]->data[i] = 1;
            CHECK(fo_forward(tape) == FO_OK && (double)out->data[N - 1] == INPUTS);
            for (k = 0; k < INPUTS; k++) /* what a gradient held before must not be added to */
                for (i = 0; i < N; i++)
                    in[k]->grad[i] = in[k]->grad == out->grad ? 1 : 7;
            CHECK(fo_backward(tape, out, ones) == FO_OK);
            for (k = 0; k < INPUTS; k++)
                for (i = 0; i < N; i++)
                    wrong += (double)in[k]->grad[i] != 1;
        }
        fo_close(fo);
    }
    CHECK(wrong == 0);
}

int main(void) {
    test_many_inputs();
    test_golden();
    test_slopes();
    test_planner();
    test_two_outputs();
    test_no_allocation();
    test_threads();
    test_errors();
    test_nothing();
    test_order();
    test_inits();
    return test_end();
}
