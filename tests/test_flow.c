/* Flows: masks, text, golden values, and what a density must be. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

/* ---- golden flows ---------------------------------------------------------------------------- */

static const char *const golden_flows[] = {"masks", "odd", "channels", "vector", "additive"};

static double reals_error(const fo_array *want, const fo_real *got, int64_t n) {
    double  worst = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        double b = ((const double *)want->values)[i], e = fabs((double)got[i] - b) / (1 + fabs(b));
        worst = e <= worst ? worst : e;
    }
    return worst;
}

static double doubles_error(const fo_array *want, const double *got, int64_t n) {
    double  worst = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        double b = ((const double *)want->values)[i], e = fabs(got[i] - b) / (1 + fabs(b));
        worst = e <= worst ? worst : e;
    }
    return worst;
}

/* Gradients of mean(-log_prob), straight from a training workspace. */
static void check_golden_gradients(fo_flow *flow, const fo_archive *a, const fo_data *data,
                                   int64_t batch, double tolerance) {
    fo_workspace *ws = fo__workspace_make(flow->fo, flow, (int)batch + 3, 1, 0); /* idle rows */
    int64_t       r;
    int           i;
    ws->data = data, ws->rows = batch, ws->seed = fo_get_desc(flow->fo).seed;
    for (r = 0; r < batch; r++)
        ws->noise[r] = FO__STREAM_NOISE + (uint64_t)(ws->sample[r] = r);
    for (r = 0; r < batch; r++)
        ws->dlogdet[r] = -1.0 / (double)batch;
    CHECK(fo__encode(ws) == FO_OK && fo__train_backward(ws) == FO_OK);
    for (i = 0; i < fo_param_count(flow); i++) {
        fo_param_info   p = fo_param_at(flow, i);
        char            name[120];
        const fo_array *want;
        double          e;
        snprintf(name, sizeof name, "golden.grad.%s", p.name);
        want = fo_archive_find(a, name);
        e    = want ? reals_error(want, ws->grads + p.offset, p.count) : HUGE_VAL;
        if (!(e <= tolerance))
            printf("%s: gradient is %g off\n", p.name, e);
        CHECK(e <= tolerance);
    }
    fo_workspace_free(ws);
}

static void test_golden(void) {
    const double tz = IS_DOUBLE ? 1e-10 : 3e-5, tl = IS_DOUBLE ? 1e-11 : 1e-5;
    const double tg = IS_DOUBLE ? 1e-8 : 1e-4;
    int          f, simd, i;
    for (f = 0; f < COUNT(golden_flows); f++)
        for (simd = FO_SIMD_REF; simd <= FO_SIMD_AVX512; simd++) {
            fo_context     *fo;
            fo_archive     *a;
            fo_flow        *flow;
            fo_workspace   *ws;
            fo_data        *data;
            const fo_array *x, *z, *terms, *log_prob, *noise;
            char            path[100];
            double          lp[8], t[8 * 16];
            fo_real         out[8 * 64], u[64];
            int64_t         batch, d;
            int             columns;
            if (picked((fo_simd)simd)->simd != (fo_simd)simd)
                continue;
            fo = open_with(1, (fo_simd)simd, 1);
            snprintf(path, sizeof path, "tests/golden/flow_%s.safetensors", golden_flows[f]);
            a    = fo_archive_open(fo, path);
            flow = fo_load_flow(fo, path);
            CHECK(a && flow);
            if (flow == NULL) {
                printf("%s\n", fo_error(fo));
                fo_close(fo);
                continue;
            }
            x = fo_archive_find(a, "golden.x"), z = fo_archive_find(a, "golden.z");
            terms    = fo_archive_find(a, "golden.terms");
            log_prob = fo_archive_find(a, "golden.log_prob");
            noise    = fo_archive_find(a, "golden.noise");
            batch = x->dim[0], d = z->dim[1], columns = 1 + fo_flow_layers(flow);
            CHECK(terms->dim[1] == columns && strcmp(fo_archive_note(a, "golden.seed"), "1") == 0);
            for (i = 0; noise && i < batch; i++) { /* made with the noise that we draw */
                int64_t j, same = 1;
                fo_random_uniform(1, FO__STREAM_NOISE + (uint64_t)i, 0, d, u);
                for (j = 0; j < d; j++)
                    same &= (double)u[j] == ((const double *)noise->values)[i * d + j];
                CHECK(same);
            }
            data = fo_data_view(fo, x->values, x->type, batch, fo_flow_shape(flow));
            ws   = fo_workspace_create(fo, flow, 3); /* not a divisor of the batch */
            CHECK(as_in_training(ws, data, batch, lp, t, out) == FO_OK);
            CHECK(reals_error(z, out, batch * d) <= tz);
            CHECK(doubles_error(log_prob, lp, batch) <= tl);
            CHECK(doubles_error(terms, t, batch * columns) <= tl * 10);
            for (i = 0; i < batch; i++) { /* left to right, to the last bit */
                double sum = 0;
                int    k;
                for (k = 0; k < columns; k++)
                    sum += t[i * columns + k];
                CHECK(sum == lp[i]);
            }
            check_golden_gradients(flow, a, data, batch, tg);
            if (noise) { /* noise matters, and its draw */
                CHECK(fo_log_prob(ws, data, 0, batch, 0, lp) == FO_OK);
                CHECK(fo_log_prob(ws, data, 0, batch, 1, t) == FO_OK && t[0] != lp[0]);
                CHECK(fo_log_prob(ws, data, 0, batch, FO_DRAW_MIDDLE, t) == FO_OK &&
                      t[0] != lp[0]);
            }
            CHECK(fo_failed(fo) == FO_OK);
            fo_close(fo);
        }
}

/* ---- masks ----------------------------------------------------------------------------------- */

static void test_masks(void) {
    static const struct { const char *kind; int phase, c, h, w; const char *drawing; } masks[] = {
        {"checkerboard", 0, 1, 3, 4, "o#o#\n#o#o\no#o#\n"},
        {"checkerboard", 3, 2, 2, 2, "#o #o\no# o#\n"},
        {"channel", 0, 3, 2, 2, "oo ## ##\noo ## ##\n"},
        {"channel", 1, 2, 1, 2, "## oo\n"},
        {"horizontal", 0, 1, 5, 2, "oo\noo\n##\n##\n##\n"},
        {"horizontal", 1, 1, 2, 3, "###\nooo\n"},
        {"vertical", 0, 1, 2, 5, "oo###\noo###\n"},
        {"vertical", 1, 2, 1, 4, "##oo ##oo\n"},
        {"cycle", 0, 1, 4, 4, "oo##\noo##\n....\n....\n"},
        {"cycle", 1, 1, 4, 4, "..oo\n..oo\n..##\n..##\n"},
        {"cycle", 2, 1, 4, 4, "....\n....\n##oo\n##oo\n"},
        {"cycle", 3, 1, 4, 4, "##..\n##..\noo..\noo..\n"},
        {"cycle", 7, 1, 3, 3, "#..\no..\no..\n"},
        {"halves", 0, 5, 1, 1, "o\n"}, /* one line: see below */
        {"halves", 1, 1, 2, 3, "###\nooo\n"},
        {"alternating", 0, 1, 2, 3, "o#o\n#o#\n"},
        {"alternating", 1, 1, 1, 4, "#o#o\n"}};
    static const char *const kinds[] = {"checkerboard", "channel", "horizontal", "vertical",
                                        "halves", "alternating", "random"};
    fo_context   *fo = fo_open(NULL);
    unsigned char map[2 * 7 * 6], other[2 * 7 * 6];
    char          text[200], cut[6];
    int           i, k, n = 2 * 7 * 6, changed;
    for (i = 0; i < COUNT(masks); i++) {
        fo_shape    s = shape_of(masks[i].c, masks[i].h, masks[i].w);
        const char *want = masks[i].drawing;
        size_t      length;
        CHECK(fo_mask_fill(fo, fo_mask_named(masks[i].kind, masks[i].phase), s, map) == FO_OK);
        length = fo_mask_print(map, s, text, sizeof text);
        if (s.h * s.w == 1)
            want = "o\no\n#\n#\n#\n";
        if (strcmp(text, want) != 0)
            printf("%s:%d is\n%s", masks[i].kind, masks[i].phase, text);
        CHECK(strcmp(text, want) == 0 && length == strlen(want));
        CHECK(fo_mask_print(map, s, NULL, 0) == length);
        memset(cut, 'x', sizeof cut);
        CHECK(fo_mask_print(map, s, cut, 5) == length && strncmp(cut, want, 4) == 0);
        CHECK(cut[4] == 0 && cut[5] == 'x');
    }
    for (k = 0; k < COUNT(kinds); k++)
        for (i = 0; i < 6; i += 2) { /* odd phases are the complements of even ones */
            int j, good = 1;
            CHECK(fo_mask_fill(fo, fo_mask_named(kinds[k], i), shape_of(2, 7, 6), map) == FO_OK);
            fo_mask_fill(fo, fo_mask_named(kinds[k], i + 1), shape_of(2, 7, 6), other);
            for (j = changed = 0; j < n; j++) {
                good &= map[j] + other[j] == 1;
                changed += map[j] == FO_CHANGE;
            }
            CHECK(good);
            CHECK(k < 4 || changed == n / 2);
        }
    fo_mask_fill(fo, fo_mask_named("random", 0), shape_of(2, 7, 6), map);
    fo_mask_fill(fo, fo_mask_named("random", 2), shape_of(2, 7, 6), other);
    for (i = changed = 0; i < n; i++)
        changed += map[i] != other[i];
    CHECK(changed > n / 4); /* another partition */
    for (k = changed = 0; k < 4; k++) { /* the cycle changes every pixel once in four phases */
        fo_mask_fill(fo, fo_mask_named("cycle", k), shape_of(1, 7, 6), map);
        for (i = 0; i < 42; i++)
            changed += map[i] == FO_CHANGE;
    }
    CHECK(changed == 42);
    CHECK(fo_mask_checkerboard(1).phase == 1 && strcmp(fo_mask_cycle(2).kind, "cycle") == 0);
    CHECK(strcmp(fo_mask_halves(1).kind, "halves") == 0);
    CHECK(fo_failed(fo) == FO_OK);
    fo_close(fo);
}

static fo_state diagonal(void *user, fo_shape shape, int phase, int c, int y, int x) {
    (void)shape, (void)c;
    return (x + phase) % 3 == y % 3 ? FO_CHANGE : *(int *)user ? FO_PASS : FO_CONDITION;
}

static void test_bad_masks(void) {
    static const unsigned char wrong[4] = {0, 1, 7, 0}, all[4] = {1, 1, 1, 2};
    static const unsigned char none[4] = {0, 0, 2, 0};
    fo_mask null_kind = fo_mask_named(NULL, 0);
    int     all_pass = 1, some_condition = 0, i;
    const struct { fo_mask mask; fo_shape shape; const char *say; } bad[] = {
        {fo_mask_named("spiral", 0), {1, 2, 2}, "unknown mask 'spiral'"},
        {fo_mask_named("cycle", -1), {1, 2, 2}, "phase"},
        {null_kind, {1, 2, 2}, "kind"},
        {fo_mask_map(NULL), {1, 2, 2}, "map"},
        {fo_mask_map(wrong), {1, 2, 2}, "element 2 has state 7"},
        {fo_mask_map(all), {1, 2, 2}, "conditions on 0 and changes 3 of 4"},
        {fo_mask_map(none), {1, 2, 2}, "conditions on 3 and changes 0 of 4"},
        {fo_mask_named("channel", 0), {1, 2, 2}, "conditions on 0 and changes 4 of 4"},
        {fo_mask_named("horizontal", 1), {1, 1, 4}, "conditions on 4 and changes 0 of 4"},
        {fo_mask_named("nowhere", 0), {1, 3, 3}, "conditions on 0 and changes 3 of 9"}};
    unsigned char map[16];
    char          text[64];
    for (i = 0; i < COUNT(bad); i++) {
        fo_context *fo = fo_open(NULL);
        fo_register_mask(fo, "nowhere", diagonal, &all_pass);
        CHECK(fo_mask_fill(fo, bad[i].mask, bad[i].shape, map) != FO_OK);
        if (strstr(fo_error(fo), bad[i].say) == NULL)
            printf("'%s' does not say '%s'\n", fo_error(fo), bad[i].say);
        CHECK(strstr(fo_error(fo), bad[i].say) != NULL);
        fo_close(fo);
    }
    {
        fo_context *fo = fo_open(NULL);
        fo_flow    *flow, *again;
        CHECK(fo_register_mask(fo, "diagonal", diagonal, &some_condition) == FO_OK);
        CHECK(fo_mask_fill(fo, fo_mask_named("diagonal", 1), shape_of(1, 3, 4), map) == FO_OK);
        fo_mask_print(map, shape_of(1, 3, 4), text, sizeof text);
        CHECK(strcmp(text, "oo#o\n#oo#\no#oo\n") == 0);
        flow = fo_flow_create(fo, shape_of(1, 3, 4)); /* in a flow, and through its text */
        CHECK(fo_add_coupling(flow, fo_mask_named("diagonal", 1), fo_net_mlp(4, 1, 0)) == FO_OK);
        again = fo_flow_parse(fo, fo_flow_text(flow));
        CHECK(again && memcmp(fo_flow_mask(again, 0), map, 12) == 0);
        CHECK(fo_register_mask(fo, "two words", diagonal, NULL) == FO_ERR_ARGUMENT);
        fo_clear_error(fo);
        CHECK(fo_register_mask(fo, "none", NULL, NULL) == FO_ERR_ARGUMENT);
        fo_close(fo);
    }
}

/* ---- text ------------------------------------------------------------------------------------ */

/* A user's st-network: two parallel branches, one of them linear. */
static fo_tensor *build_branches(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    (void)tape;
    return fo_add(fo_net_linear(fo_activation(fo_net_linear(x, "in", net->hidden, 0), net->act),
                                "out", outputs, 0),
                  fo_net_linear(x, "skip", outputs, 1));
}
static fo_tensor *build_too_wide(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    (void)tape, (void)net;
    return fo_net_linear(x, "in", outputs + 1, 0);
}
static fo_tensor *build_nothing(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    (void)tape, (void)x, (void)outputs, (void)net;
    return NULL;
}

static void test_text(void) {
    static const struct { const char *in, *out; } texts[] = {
        {"input 1x4x6\ndequantize\nlogit alpha=0.05\n2* coupling mask=cycle:% net=mlp hidden=7\n",
         "input 1x4x6\ndequantize\nlogit alpha=0.05\n"
         "coupling mask=cycle:0 net=mlp hidden=7\ncoupling mask=cycle:1 net=mlp hidden=7\n"},
        {"\n# a comment\n  input 4 # four\r\n\tstandardize\r\nadditive mask=halves # phase 0\n",
         "input 4\nstandardize\nadditive mask=halves:0 net=mlp hidden=512\n"},
        {"input 2x1x1\nlogit\ncoupling mask=halves:1 depth=3 bottleneck=2 act=tanh hidden=0",
         "input 2\nlogit alpha=0.05\n"
         "coupling mask=halves:1 net=mlp hidden=512 depth=3 bottleneck=2 act=tanh\n"},
        {"input 1x2x2\ncoupling mask=map:1c2x1p act=leaky_relu hidden=3",
         "input 1x2x2\ncoupling mask=map:1c2x1p net=mlp hidden=3\n"},
        {"input 1x2x2\n12* coupling mask=random:% hidden=1%\n", NULL},
        {"input 3\nlogit alpha=1e-06\ncoupling mask=alternating:1 net=branches hidden=5 act=relu",
         "input 3\nlogit alpha=1e-06\n"
         "coupling mask=alternating:1 net=branches hidden=5 act=relu\n"}};
    static const fo_net_kind branches = {"branches", build_branches, 0, {{0}}};
    int i;
    for (i = 0; i < COUNT(texts); i++) {
        fo_context *fo = fo_open(NULL);
        fo_flow    *flow, *again;
        const char *text;
        fo_register_net(fo, &branches);
        flow = fo_flow_parse(fo, texts[i].in);
        text = fo_flow_text(flow);
        CHECK(flow && text && (texts[i].out == NULL || strcmp(text, texts[i].out) == 0));
        if (text && texts[i].out && strcmp(text, texts[i].out) != 0)
            printf("%s", text);
        again = text ? fo_flow_parse(fo, text) : NULL;
        CHECK(again && strcmp(fo_flow_text(again), text) == 0); /* a fixed point */
        CHECK(fo_flow_text(flow) == text);
        CHECK(fo_param_count(again) == fo_param_count(flow));
        if (texts[i].out == NULL) {
            CHECK(fo_flow_layers(flow) == 12);
            CHECK(strcmp(fo_flow_layer_text(flow, 11), "coupling mask=random:11 net=mlp hidden=111")
                  == 0);
        }
        CHECK(fo_flow_layer_text(flow, -1) == NULL && fo_flow_layer_text(flow, 99) == NULL);
        CHECK(fo_flow_mask(flow, 99) == NULL && fo_param_at(flow, -1).name == NULL);
        fo_close(fo);
    }
}

static void test_bad_text(void) {
    static const struct { const char *text, *say[2]; } bad[] = {
        {"", {"empty", "input"}},
        {"# nothing\n", {"empty", "input"}},
        {"dequantize\n", {"line 1", "dequantize"}},
        {"input 1x28\n", {"line 1", "input"}},
        {"input 0\n", {"0x1x1", "2^24"}},
        {"input -3\n", {"-3x1x1", "2^24"}},
        {"input 4\n\n# x\nblend\n", {"line 4", "unknown layer 'blend'"}},
        {"input 4\ncoupling mask=halves:0 colour=3\n", {"line 2", "unknown setting 'colour'"}},
        {"input 4\ncoupling mask=halves:0 hidden\n", {"line 2", "'hidden'"}},
        {"input 4\ncoupling mask=halves:0 hidden=many\n", {"line 2", "'hidden=many'"}},
        {"input 4\ncoupling mask=halves:0 hidden=-4\n", {"line 2", "'hidden=-4'"}},
        {"input 4\ncoupling mask=halves:0 hidden=99999999999\n",
         {"line 2", "'hidden=99999999999'"}},
        {"input 4\ncoupling mask=halves:x hidden=4\n", {"line 2", "'"}},
        {"input 4\ncoupling mask=map:2c1x hidden=4\n", {"line 2", "too short"}},
        {"input 4\ncoupling mask=map:2c3x hidden=4\n", {"line 2", "does not fit"}},
        {"input 4\ncoupling mask=map:2c2 hidden=4\n", {"line 2", "does not fit"}},
        {"input 4\ncoupling mask=map:-2c4x hidden=4\n", {"line 2", "does not fit"}},
        {"input 4\n0* coupling mask=halves:%\n", {"line 2", "repeat count"}},
        {"input 4\n1001* coupling mask=halves:%\n", {"line 2", "repeat count"}},
        {"input 4\nlogit alpha=0.5\n", {"alpha=0.5", "between 0 and 0.5"}},
        {"input 4\nlogit alpha=nan\n", {"alpha", "between 0 and 0.5"}},
        {"input 4\nlogit alpha=x\n", {"line 2", "'alpha=x'"}},
        {"input 4\nlogit\ndequantize\n", {"dequantize", "first"}},
        {"input 4\ncoupling mask=halves:0\nlogit\n", {"logit", "before every layer that learns"}},
        {"input 4\ncoupling mask=spiral:0\n", {"'spiral'", "unknown mask"}},
        {"input 4\ncoupling mask=cycle:0\n", {"cycle", "changes 0"}},
        {"input 4\ncoupling\n", {"mask", ""}},
        {"input 4\ncoupling mask=halves:0 net=cnn\n", {"'cnn'", "mlp"}},
        {"input 4\ncoupling mask=halves:0 act=swish\n", {"'act=swish'", "softplus"}},
        {"input 4\ncoupling mask=halves:0 depth=65\n", {"depth=65", "64"}},
        {"input 4\ncoupling mask=halves:0 hidden=70000\n", {"hidden=70000", "65536"}},
        {"input 4\ncoupling mask=halves:0 net=wide hidden=2\n", {"[1,5]", "[1,4] is needed"}},
        {"input 4\ncoupling mask=halves:0 net=nothing hidden=2\n", {"nothing", "built"}},
        {"input 300x300x300\n", {"300x300x300", "2^24"}}};
    static const fo_net_kind wide = {"wide", build_too_wide, 0, {{0}}},
                             nothing = {"nothing", build_nothing, 0, {{0}}};
    int i, j;
    for (i = 0; i < COUNT(bad); i++) {
        fo_context *fo = fo_open(NULL);
        fo_register_net(fo, &wide), fo_register_net(fo, &nothing);
        CHECK(fo_flow_parse(fo, bad[i].text) == NULL && fo_failed(fo) != FO_OK);
        for (j = 0; j < 2; j++) {
            if (strstr(fo_error(fo), bad[i].say[j]) == NULL)
                printf("'%s' does not say '%s'\n", fo_error(fo), bad[i].say[j]);
            CHECK(strstr(fo_error(fo), bad[i].say[j]) != NULL);
        }
        fo_close(fo);
    }
}

/* What the API refuses, and that it stays usable or quietly useless afterwards. */
static void test_misuse(void) {
    static const unsigned char pixels[2 * 4] = {0, 1, 2, 3, 4, 5, 6, 7};
    static const fo_net_kind   no_name  = {"a b", build_nothing, 0, {{0}}},
                               no_build = {"x", NULL, 0, {{0}}};
    fo_context   *fo   = fo_open(NULL);
    fo_flow      *flow = fo_flow_create(fo, shape_of(1, 2, 2));
    fo_data      *data = fo_data_view(fo, pixels, FO_U8, 2, shape_of(1, 2, 2)), *other;
    fo_workspace *ws;
    double        lp[2];
    fo_real       z[8];
    int64_t       n = -1;
    CHECK(fo_workspace_create(fo, flow, 1) == NULL && strstr(fo_error(fo), "no layers"));
    fo_clear_error(fo);
    REFUSED(fo_train(flow, data, NULL), "no layers");
    REFUSED(fo_add_logit(flow, 0.7), "alpha=0.7");
    REFUSED(fo_add_logit(flow, 0.05), "could not be built"); /* broken stays broken */
    REFUSED(fo_params(flow, NULL) == NULL, "could not be built");
    REFUSED(fo_save(flow, "build/never.safetensors"), "could not be built");
    fo_flow_free(flow);
    flow = fo_flow_parse(fo, "input 1x2x2\ncoupling mask=cycle:0 hidden=3\n");
    CHECK(fo_params(flow, &n) != NULL && n == 1 + 3 * 2 + 2 * 4);
    REFUSED(fo_add_logit(flow, 0.05), "in use");
    CHECK(fo_workspace_create(fo, flow, -1) == NULL && fo_failed(fo) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    ws = fo_workspace_create(fo, flow, 0);
    CHECK(ws != NULL);
    REFUSED(fo_log_prob(ws, data, 1, 2, 0, lp), "has 2 samples");
    REFUSED(fo_log_prob(ws, data, -1, 1, 0, lp), "");
    REFUSED(fo_log_prob(ws, data, INT64_MAX, 1, 0, lp), "");
    REFUSED(fo_log_prob(ws, data, 0, -1, 0, lp), "");
    REFUSED(fo_log_prob(ws, data, 0, 1, -2, lp), "");
    REFUSED(fo_log_prob(ws, NULL, 0, 1, 0, lp), "");
    CHECK(fo_log_prob(NULL, data, 0, 1, 0, lp) != FO_OK);
    other = fo_data_view(fo, pixels, FO_U8, 2, shape_of(4, 1, 1));
    CHECK(fo_log_prob(ws, other, 0, 1, 0, lp) == FO_ERR_SHAPE && strstr(fo_error(fo), "4x1x1") &&
          strstr(fo_error(fo), "1x2x2"));
    CHECK(fo_log_prob(ws, data, 0, 1, 0, lp) == FO_OK && fo_failed(fo) == FO_ERR_SHAPE);
    fo_clear_error(fo);
    REFUSED(fo_sample(ws, 1, 1, -1, z), "");
    REFUSED(fo_score(ws, data, 0, 1, "surprise", lp), "surprise");
    CHECK(fo_log_prob(ws, data, 0, 2, 0, lp) == FO_OK);
    CHECK(fo_log_prob(ws, data, 2, 0, 0, lp) == FO_OK);
    CHECK(fo_flow_preset(fo, "mlp-square", shape_of(1, 2, 2)) == NULL &&
          strstr(fo_error(fo), "mlp-square"));
    fo_clear_error(fo);
    REFUSED(fo_register_net(fo, &no_name), "");
    REFUSED(fo_register_net(fo, &no_build), "");
    CHECK(fo_register_net(fo, NULL) != FO_OK);
    fo_workspace_free(NULL), fo_flow_free(NULL);
    CHECK(fo_flow_layers(NULL) == 0 && fo_param_count(NULL) == 0 && fo_flow_text(NULL) == NULL);
    CHECK(fo_add_dequantize(NULL) != FO_OK && fo_params(NULL, NULL) == NULL);
    fo_close(fo);
}

/* ---- what a density must be ------------------------------------------------------------------ */

#define EVERY_MASK                                                                                 \
    "coupling mask=checkerboard:0 hidden=6\nadditive mask=cycle:1 hidden=6\n"                      \
    "coupling mask=horizontal:1 hidden=6 act=tanh\ncoupling mask=vertical:0 hidden=6 bottleneck=2" \
    "\ncoupling mask=cycle:2 hidden=6 depth=2\ncoupling mask=halves:1 hidden=6 act=softplus\n"     \
    "coupling mask=alternating:0 hidden=6 act=relu\ncoupling mask=random:3 hidden=6\n"             \
    "coupling mask=map:4c4x4p5x7c hidden=6\n"

static const char *const flows[] = {
    "input 1x4x6\ndequantize\nlogit alpha=0.05\n" EVERY_MASK,
    "input 1x4x6\nstandardize\n" EVERY_MASK,
    ("input 2x3x4\ndequantize\nlogit alpha=0.01\n2* coupling mask=channel:% hidden=5 act=tanh\n"
     "2* additive mask=checkerboard:% hidden=5\n"),
    ("input 7\nlogit\n3* coupling mask=random:% hidden=9 act=tanh\n"
     "additive mask=halves:0 hidden=4\n"),
    "input 5\nstandardize\n4* coupling mask=halves:% net=branches hidden=5 act=softplus\n"};

static void test_check(void) {
    static const fo_net_kind branches = {"branches", build_branches, 0, {{0}}};
    static samples           s;
    int                      i;
    for (i = 0; i < COUNT(flows); i++) {
        fo_context     *fo = fo_open(NULL);
        fo_flow        *flow;
        fo_data        *data;
        fo_check_report r;
        fo_check_desc   desc;
        fo_register_net(fo, &branches);
        flow = random_flow(fo, flows[i], 0.2);
        data = flow_data(fo, flow, &s, 20);
        memset(&desc, 0, sizeof desc);
        desc.seconds = 1e9; /* all of it, however slow this machine is */
        CHECK(flow && data && fo_check(flow, data, &desc, &r) == FO_OK);
        if (!(r.round_trip < 1e-3 && r.logdet_pair < 1e-3 && r.gradient < 1e-2))
            printf("%s: round trip %g, logdet %g, jacobian %g, gradient %g\n", flows[i],
                   r.round_trip, r.logdet_pair, r.jacobian, r.gradient);
        CHECK(r.round_trip < (IS_DOUBLE ? 1e-6 : 1e-3));
        CHECK(r.logdet_pair < (IS_DOUBLE ? 1e-6 : 1e-4));
        CHECK(r.jacobian >= 0 && r.jacobian < (IS_DOUBLE ? 1e-6 : 2e-2));
        CHECK(r.gradient > 0 && r.gradient < (IS_DOUBLE ? 1e-6 : 2e-2));
        CHECK(r.untouched == 0 && r.samples == 20);
        CHECK(r.columns == fo_shape_count(fo_flow_shape(flow)) && r.layers == r.layers_of);
        CHECK(r.parameters == r.parameters_of && r.parameters == fo_param_count(flow));
        fo_close(fo);
    }
}

/* More than 1024 dimensions are measured layer by layer; and a logdet that lies is found there. */
static void lying_rows(fo_pass *p, int64_t begin, int64_t end) {
    int64_t r, i;
    for (r = begin; r < end; r++) {
        for (i = 0; i < p->layer->width; i++)
            p->x[r * p->size + i] *= p->direction == FO_ENCODE ? 2 : (fo_real)0.5;
        p->logdet[r] = (p->direction == FO_ENCODE ? 1 : -1) * 0.7 * (double)p->layer->width;
    }
}

static int stop_later(void *user, const char *part, int64_t done, int64_t of) {
    CHECK(part[0] && done >= 0 && done < of);
    return --*(int *)user == 0;
}

static void test_check_layers(void) {
    enum { N = 4, SIZE = 4 * 18 * 18 };
    static unsigned char pixels[N * SIZE];
    fo_context     *fo = fo_open(NULL);
    fo_layer_kind   lying;
    fo_flow        *flow;
    fo_data        *data = fo_data_view(fo, pixels, FO_U8, N, shape_of(4, 18, 18));
    fo_check_report r;
    fo_check_desc   desc;
    int64_t         i;
    int             left;
    for (i = 0; i < N * SIZE; i++)
        pixels[i] = (unsigned char)(i * i % 251);
    flow = random_flow(fo, "input 4x18x18\ndequantize\nlogit alpha=0.05\nactnorm\nconv1x1\n"
                           "coupling mask=checkerboard:0 net=mlp hidden=8\nsqueeze\nconv1x1 lu=1\n"
                           "coupling mask=channel:1 net=mlp hidden=8\nsplit\n"
                           "coupling mask=channel:0 net=mlp hidden=8\npermute seed=3\n"
                           "additive mask=channel:1 net=mlp hidden=8\n", 0.2);
    memset(&desc, 0, sizeof desc);
    desc.seconds = 1e9;
    CHECK(fo_check(flow, data, &desc, &r) == FO_OK);
    CHECK(r.columns == 0 && r.layers == r.layers_of && r.layers == fo_flow_layers(flow));
    CHECK(r.jacobian >= 0 && r.jacobian < (IS_DOUBLE ? 1e-6 : 3e-3));
    CHECK(r.samples == N && r.parameters == r.parameters_of && r.parameters > 0);

    desc.progress = stop_later, desc.user = &left;
    for (left = 1; left > 0;) { /* stopped at any place: what was seen so far, and no error */
        int asked = left;
        CHECK(fo_check(flow, data, &desc, &r) == FO_OK);
        CHECK(r.layers < r.layers_of || r.parameters < r.parameters_of || left > 0);
        left = left > 0 ? 0 : asked + 4;
    }
    desc.progress = NULL, desc.seconds = 1e-9; /* no time at all */
    CHECK(fo_check(flow, data, &desc, &r) == FO_OK && r.samples + r.layers + r.parameters == 0);
    CHECK(r.jacobian == -1);

    memset(&lying, 0, sizeof lying);
    lying.name = "lying", lying.rows = lying_rows, lying.front = 1;
    CHECK(fo_register_layer(fo, &lying) == FO_OK);
    flow = fo_flow_parse(fo, "input 4x18x18\ndequantize\nlying\n");
    CHECK(fo_check(flow, data, NULL, &r) == FO_OK);
    CHECK(r.columns == 0 && r.layers == 2 && r.jacobian > 5e-3);
    fo_close(fo);
}

static fo_result lie_shape(fo_tensor *out) {
    return out->rank = out->in[0]->rank, memcpy(out->dim, out->in[0]->dim, sizeof out->dim), FO_OK;
}
static void lie_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    for (; begin < end; begin++)
        out->data[begin] = out->in[0]->data[begin] * out->in[0]->data[begin];
}
static void lie_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    for (; begin < end; begin++) /* the factor 2 is missing */
        out->in[0]->grad[begin] += out->in[0]->data[begin] * out->grad[begin];
}
static fo_tensor *build_lie(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    static const fo_op lie = {"lie", FO_ELEMENTWISE | FO_READS_INPUT, lie_shape, lie_forward,
                              lie_backward};
    fo_tensor *h = fo_net_linear(x, "in", net->hidden, 0);
    h            = fo_apply(tape, &lie, &h, 1, NULL, 0);
    return fo_net_linear(h, "out", outputs, 0);
}

/* fo_check finds what is wrong with a flow. */
static void test_check_finds(void) {
    static const fo_net_kind lie = {"lie", build_lie, 0, {{0}}};
    static samples           s;
    fo_context     *fo = fo_open(NULL);
    fo_check_report r;
    fo_flow        *flow;
    fo_register_net(fo, &lie);
    flow = fo_flow_create(fo, shape_of(6, 1, 1));
    CHECK(fo_add_standardize(flow) == FO_OK);
    CHECK(fo_add_coupling(flow, fo_mask_halves(0), fo_net_named("lie")) == FO_OK);
    CHECK(strstr(fo_flow_text(flow), "net=lie hidden=512") != NULL);
    CHECK(fo_check(flow, flow_data(fo, flow, &s, 20), NULL, &r) == FO_OK);
    CHECK(r.gradient > 0.1 && r.round_trip < 1e-3 && r.jacobian < 2e-2);
    flow = random_flow(fo, "input 6\n2* coupling mask=map:2c3x1p hidden=4", 0.3);
    CHECK(fo_check(flow, flow_data(fo, flow, &s, 20), NULL, &r) == FO_OK && r.untouched == 3);
    flow = fo_flow_parse(fo, "input 6\nstandardize\n");
    CHECK(fo_check(flow, flow_data(fo, flow, &s, 20), NULL, &r) == FO_OK && r.untouched == 6);
    fo_close(fo);
}

/* decode(encode(x)) gives back the grey levels, and logdets of the two ways cancel. */
static void test_round_trip(void) {
    static samples s;
    fo_context   *fo   = fo_open(NULL);
    fo_flow      *flow = random_flow(fo, flows[0], 0.15);
    fo_data      *data = flow_data(fo, flow, &s, 40);
    fo_workspace *ws   = fo_workspace_create(fo, flow, 7);
    static fo_real z[40 * 24], x[40 * 24];
    double        terms[40 * 12], logdet[40], worst = 0;
    int           i, k, columns = 1 + fo_flow_layers(flow);
    CHECK(fo_encode(ws, data, 0, 40, FO_DRAW_MIDDLE, z) == FO_OK);
    CHECK(fo_log_prob_terms(ws, data, 0, 40, FO_DRAW_MIDDLE, terms) == FO_OK);
    CHECK(fo_decode(ws, z, 40, x, logdet) == FO_OK);
    for (i = 0; i < 40 * 24; i++)
        worst = fmax(worst, fabs((double)x[i] - s.pixel[i]));
    CHECK(worst < 1e-3);
    for (i = 0, worst = 0; i < 40; i++) {
        double sum = logdet[i];
        for (k = 1; k < columns; k++)
            sum += terms[i * columns + k];
        worst = fmax(worst, fabs(sum) / (1 + fabs(logdet[i])));
    }
    CHECK(worst < (IS_DOUBLE ? 1e-12 : 1e-5));
    for (i = 0; i < 24; i++)
        z[i] = (fo_real)(i % 2 ? 40 : -40); /* far outside: clamped to what a pixel can be */
    CHECK(fo_decode(ws, z, 1, x, NULL) == FO_OK || fo_failed(fo) == FO_ERR_NUMERIC);
    for (i = 0; i < 24 && fo_failed(fo) == FO_OK; i++)
        CHECK(x[i] >= 0 && x[i] <= 255);
    fo_close(fo);
}

/* A 2-D density integrates to one. */
static void test_integral(void) {
    static const char *const text[] = {
        "input 2\n4* coupling mask=halves:% hidden=8 act=tanh",
        "input 2\n4* coupling mask=alternating:% hidden=6 bottleneck=2",
        ("input 2\nstandardize\n2* additive mask=halves:% hidden=8\n"
         "2* coupling mask=random:% hidden=6 act=softplus")};
    enum { SIDE = 400 };
    fo_real *grid = (fo_real *)malloc(SIDE * SIDE * 2 * sizeof *grid);
    double  *lp   = (double *)malloc(SIDE * SIDE * sizeof *lp), sum, step = 0.08, away;
    int      t, i;
    for (i = 0; i < SIDE * SIDE; i++) {
        grid[2 * i]     = (fo_real)(step * (i / SIDE - SIDE / 2 + 0.5));
        grid[2 * i + 1] = (fo_real)(step * (i % SIDE - SIDE / 2 + 0.5));
    }
    for (t = 0; t < COUNT(text); t++) {
        fo_context   *fo   = fo_open(NULL);
        fo_flow      *flow = random_flow(fo, text[t], 0.4);
        fo_workspace *ws;
        fo_data *data = fo_data_view(fo, grid, REAL_TYPE, SIDE * SIDE, shape_of(2, 1, 1));
        if (flow->buffers.size) { /* a standardize that does something */
            flow->buffer_values[0] = (fo_real)0.3, flow->buffer_values[1] = (fo_real)-0.2;
            flow->buffer_values[2] = (fo_real)0.7, flow->buffer_values[3] = (fo_real)1.3;
        }
        ws = fo_workspace_create(fo, flow, 512);
        CHECK(fo_log_prob(ws, data, 0, SIDE * SIDE, 0, lp) == FO_OK);
        for (i = 0, sum = 0, away = 0; i < SIDE * SIDE; i++) {
            sum += exp(lp[i]) * step * step;
            away = fmax(away, fabs(lp[i] + 0.5 * ((double)grid[2 * i] * (double)grid[2 * i] +
                                                  (double)grid[2 * i + 1] *
                                                      (double)grid[2 * i + 1]) +
                                   log(6.283185307179586)));
        }
        CHECK_NEAR(sum, 1, 2e-3);
        CHECK(away > 0.5); /* and it is not the standard normal density */
        fo_close(fo);
    }
    free(grid), free(lp);
}

/* The probabilities of all 8-bit images of two pixels, averaged over noise, sum to one. */
static void test_discrete_sum(void) {
    enum { N = 65536 };
    unsigned char *pixels = (unsigned char *)malloc(2 * N);
    double        *lp     = (double *)malloc(N * sizeof *lp), sum = 0;
    fo_context    *fo   = fo_open(NULL);
    fo_flow       *flow = random_flow(fo, "input 1x1x2\ndequantize\nlogit alpha=0.0001\n"
                                          "2* coupling mask=vertical:% hidden=8 act=tanh", 0.2);
    fo_workspace  *ws   = fo_workspace_create(fo, flow, 512);
    fo_data       *data = fo_data_view(fo, pixels, FO_U8, N, shape_of(1, 1, 2));
    int            i, draw;
    for (i = 0; i < N; i++)
        pixels[2 * i] = (unsigned char)(i >> 8), pixels[2 * i + 1] = (unsigned char)i;
    for (draw = 0; draw < 4; draw++) {
        CHECK(fo_log_prob(ws, data, 0, N, draw, lp) == FO_OK);
        for (i = 0; i < N; i++)
            sum += exp(lp[i]) / 4;
    }
    CHECK_NEAR(sum, 1, 0.02);
    fo_close(fo);
    free(pixels), free(lp);
}

/* ---- scoring --------------------------------------------------------------------------------- */

static void test_batches(void) {
    static const struct { int batch, first, threads; } ways[] = {
        {1, 0, 1}, {7, 0, 1}, {256, 0, 1}, {7, 3, 1}, {5, 39, 1}, {64, 0, 2}, {7, 1, 3}};
    static samples s;
    static fo_real z0[40 * 24], z[40 * 24], x0[40 * 24], x[40 * 24];
    double         lp0[40], lp[40];
    int            f, w;
    for (f = 0; f < 4; f++)
        for (w = -1; w < COUNT(ways); w++) {
            int           threads = w < 0 ? 1 : ways[w].threads, first = w < 0 ? 0 : ways[w].first;
            fo_context   *fo   = open_with(4, FO_SIMD_AUTO, threads);
            fo_flow      *flow = random_flow(fo, flows[f], 0.2);
            fo_data      *data = flow_data(fo, flow, &s, 40);
            fo_workspace *ws   = fo_workspace_create(fo, flow, w < 0 ? 13 : ways[w].batch);
            int64_t       d = fo_shape_count(fo_flow_shape(flow)), count = 40 - first;
            uint64_t      before = fo_memory(fo).allocations;
            int           ok;
            ok = fo_log_prob(ws, data, first, count, 2, w < 0 ? lp0 : lp) == FO_OK;
            ok &= fo_encode(ws, data, first, count, 2, w < 0 ? z0 : z) == FO_OK;
            ok &= fo_decode(ws, z0 + first * d, count, w < 0 ? x0 : x, NULL) == FO_OK;
            CHECK(ok);
            CHECK(fo_memory(fo).allocations == before); /* scoring allocates nothing */
            if (w >= 0) {
                CHECK(memcmp(lp, lp0 + first, (size_t)count * sizeof *lp) == 0);
                CHECK(memcmp(z, z0 + first * d, (size_t)(count * d) * sizeof *z) == 0);
                CHECK(memcmp(x, x0 + first * d, (size_t)(count * d) * sizeof *x) == 0);
            }
            fo_close(fo);
        }
}

static void test_scores(void) {
    static samples s;
    fo_context   *fo   = open_with(4, FO_SIMD_AUTO, 1);
    fo_flow      *flow = random_flow(fo, flows[2], 0.2);
    fo_data      *data = flow_data(fo, flow, &s, 10);
    fo_workspace *ws   = fo_workspace_create(fo, flow, 4);
    double        lp[10], score[10], latent[10], terms[10 * 16];
    fo_real       sample[4 * 24];
    int           i, columns = 1 + fo_flow_layers(flow);
    uint64_t      before = fo_memory(fo).allocations;
    CHECK(fo_log_prob(ws, data, 0, 10, 0, lp) == FO_OK);
    CHECK(fo_log_prob_terms(ws, data, 0, 10, 0, terms) == FO_OK);
    CHECK(fo_score(ws, data, 0, 10, "likelihood", score) == FO_OK);
    CHECK(fo_score(ws, data, 0, 10, "latent", latent) == FO_OK);
    CHECK(fo_sample(ws, 1, 4, 1, sample) == FO_OK);
    CHECK(fo_memory(fo).allocations == before);
    for (i = 0; i < 10; i++) {
        CHECK(score[i] == -lp[i] && latent[i] == -terms[i * columns]);
        CHECK_NEAR(fo_bpd(lp[i], shape_of(2, 3, 4)), -lp[i] / 24 / 0.69314718055994531, 1e-12);
    }
    CHECK(fo_score_at(NULL, 13).name == NULL && fo_score_at(NULL, -1).name == NULL);
    CHECK(strcmp(fo_score_at(fo, 0).name, "likelihood") == 0);
    fo_close(fo);
}

/* One flow, scored by two threads at once, each with its own context and workspace. */
static void test_two_contexts(void) {
    static samples s;
    fo_context    *fo   = open_with(4, FO_SIMD_AUTO, 1), *own[4];
    fo_flow       *flow = random_flow(fo, flows[0], 0.2);
    fo_data       *data = flow_data(fo, flow, &s, 40);
    fo_workspace  *ws   = fo_workspace_create(fo, flow, 8), *each[4];
    double         lp[40], other[4][40];
    uint64_t       before;
    int            i, round, ok[4] = {1, 1, 1, 1};
    CHECK(fo_log_prob(ws, data, 0, 40, 0, lp) == FO_OK);
    before = fo_memory(fo).allocations;
    for (i = 0; i < 4; i++) {
        own[i]  = open_with(4, FO_SIMD_AUTO, 1);
        each[i] = fo_workspace_create(own[i], flow, 3 + i);
        CHECK(each[i] != NULL);
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(4) private(round)
#endif
    for (i = 0; i < 4; i++)
        for (round = 0; round < 20; round++) {
            ok[i] &= fo_log_prob(each[i], data, 0, 40, 0, other[i]) == FO_OK;
            ok[i] &= memcmp(lp, other[i], sizeof lp) == 0;
        }
    for (i = 0; i < 4; i++) {
        CHECK(ok[i]);
        fo_close(own[i]);
    }
    CHECK(fo_memory(fo).allocations == before); /* the flow's own context was left alone */
    CHECK(fo_log_prob(ws, data, 0, 40, 0, other[0]) == FO_OK);
    fo_close(fo);
}

static void test_samples(void) {
    enum { N = 20000, D = 4 };
    fo_real      *x = (fo_real *)malloc(2 * N * D * sizeof *x), *y = x + N * D;
    fo_context   *fo = fo_open(NULL);
    fo_flow      *flow = fo_flow_parse(fo, "input 4\n2* coupling mask=halves:% hidden=8");
    fo_workspace *ws    = fo_workspace_create(fo, flow, 100);
    fo_workspace *small = fo_workspace_create(fo, flow, 7);
    static const double temperature[] = {1, 0.5, 0};
    int           t, i, j;
    for (t = 0; t < 3; t++) { /* a fresh flow is the identity: samples are N(0, T^2) */
        CHECK(fo_sample(ws, 11, N, temperature[t], x) == FO_OK);
        for (j = 0; j < D; j++) {
            double m1 = 0, m2 = 0, cross = 0, T = temperature[t];
            for (i = 0; i < N; i++) {
                m1 += (double)x[i * D + j] / N;
                m2 += (double)x[i * D + j] * (double)x[i * D + j] / N;
                cross += (double)x[i * D + j] * (double)x[i * D + (j + 1) % D] / N;
            }
            CHECK(fabs(m1) <= 0.03 * T && fabs(m2 - T * T) <= 0.05 * T * T);
            CHECK(fabs(cross) <= 0.03 * T * T);
        }
    }
    fo_sample(ws, 11, 500, 1, x), fo_sample(small, 11, 500, 1, y);
    CHECK(memcmp(x, y, 500 * D * sizeof *x) == 0); /* same seed, same samples, any batch */
    fo_sample(ws, 12, 500, 1, y);
    CHECK(memcmp(x, y, 500 * D * sizeof *x) != 0);
    fo_random_normal(11, FO__STREAM_BASE + 77, 0, D, y);
    CHECK(memcmp(x + 77 * D, y, D * sizeof *x) == 0);
    fo_close(fo);
    free(x);
}

static void test_nan(void) {
    static samples s;
    fo_context   *fo   = fo_open(NULL);
    fo_flow      *flow = random_flow(fo, flows[2], 0.2);
    fo_data      *data = flow_data(fo, flow, &s, 10), *far_off;
    fo_workspace *ws   = fo_workspace_create(fo, flow, 4);
    double        lp[10];
    fo_real       number[2 * 7], keep, *w = weights_of(flow, NULL), z[24];
    int           i;
    fo_param_info p = fo_param_at(flow, 0);
    for (i = 0; i < fo_param_count(flow); i++)
        if (strcmp(fo_param_at(flow, i).name, "3.net.1.bias") == 0)
            p = fo_param_at(flow, i);
    keep = w[p.offset], w[p.offset] = (fo_real)NAN;
    CHECK(fo_log_prob(ws, data, 3, 5, 0, lp) == FO_ERR_NUMERIC);
    CHECK(strstr(fo_error(fo), "sample 3") && strstr(fo_error(fo), "layer 3") &&
          strstr(fo_error(fo), "coupling mask=channel:1") && strstr(fo_error(fo), "nan"));
    fo_clear_error(fo);
    memset(z, 0, sizeof z);
    CHECK(fo_decode(ws, z, 1, z, NULL) == FO_ERR_NUMERIC);
    fo_clear_error(fo);
    w[p.offset] = keep;
    CHECK(fo_log_prob(ws, data, 3, 5, 0, lp) == FO_OK);
    flow = random_flow(fo, flows[3], 0.2); /* logit of a number outside (0,1) */
    for (i = 0; i < 14; i++)
        number[i] = (fo_real)0.5;
    number[7 + 4] = 30;
    far_off = fo_data_view(fo, number, REAL_TYPE, 2, shape_of(7, 1, 1));
    ws      = fo_workspace_create(fo, flow, 4);
    CHECK(fo_log_prob(ws, far_off, 0, 2, 0, lp) == FO_ERR_NUMERIC);
    CHECK(strstr(fo_error(fo), "sample 1") && strstr(fo_error(fo), "layer 0 (logit") &&
          strstr(fo_error(fo), "column 4"));
    fo_close(fo);
}

/* A map mask is the mask it was copied from; its caller may forget it. */
static void test_map_mask(void) {
    static samples s;
    fo_context   *fo = fo_open(NULL);
    unsigned char map[24];
    fo_flow      *flow = fo_flow_create(fo, shape_of(1, 4, 6)), *named, *parsed;
    fo_data      *data;
    double        lp[3][5];
    fo_flow      *each[3];
    int           i;
    fo_mask_fill(fo, fo_mask_cycle(1), shape_of(1, 4, 6), map);
    CHECK(fo_add_dequantize(flow) == FO_OK);
    CHECK(fo_add_coupling(flow, fo_mask_map(map), fo_net_mlp(6, 1, 0)) == FO_OK);
    memset(map, 9, sizeof map);
    named  = fo_flow_parse(fo, "input 1x4x6\ndequantize\ncoupling mask=cycle:1 hidden=6");
    parsed = fo_flow_parse(fo, fo_flow_text(flow));
    CHECK(named && parsed && strcmp(fo_flow_text(parsed), fo_flow_text(flow)) == 0);
    each[0] = flow, each[1] = named, each[2] = parsed;
    data = flow_data(fo, named, &s, 5);
    for (i = 0; i < 3; i++) {
        int64_t n = 0, j;
        fo_real *w = weights_of(each[i], &n);
        for (j = 0; j < n; j++)
            fo_random_normal(1, 1, (uint64_t)j, 1, w + j);
        CHECK(fo_log_prob(fo_workspace_create(fo, each[i], 2), data, 0, 5, 0, lp[i]) == FO_OK);
        CHECK(memcmp(lp[0], lp[i], sizeof lp[0]) == 0);
    }
    fo_close(fo);
}

/* What a net or layer does not read is refused with what it reads; one name for a bottleneck. */
static void test_settings(void) {
    static const struct { const char *line, *say; } bad[] = {
        {"coupling mask=halves:0 net=mlp neck=10", "it reads hidden, depth, bottleneck, act"},
        {"coupling mask=halves:0 net=mlp channels=3", "unknown setting 'channels' of net=mlp"},
        {"coupling mask=cycle:0 net=glow blocks=2", "of net=glow: it reads channels"},
        {"coupling mask=cycle:0 net=highway bottleneck=2", "it reads channels, depth, act"},
        {"coupling mask=cycle:0 net=resnet hidden=2", "it reads channels, blocks, bottleneck"},
        {"coupling mask=cycle:0 net=resnet bottleneck=4 skip=1", "around the bottleneck"},
        {"coupling mask=cycle:0 net=resnet skip=2", "whole number between 0 and 1"},
        {"actnorm lu=1", "it has no settings"},
        {"logit beta=1", "it reads alpha"},
        {"permute seed=2 reverse=1", "leave one of them out"},
        {"squeeze order=odd", "one of 'plain alt'"}};
    fo_context *fo = fo_open(NULL);
    fo_flow    *flow, *other;
    fo_net      net = fo_net_named("resnet");
    int         i;
    for (i = 0; i < COUNT(bad); i++) {
        flow = fo_flow_create(fo, shape_of(1, 4, 4));
        REFUSED(fo_add_layer(flow, bad[i].line), bad[i].say);
    }
    net.hidden = 5; /* the same from C */
    flow       = fo_flow_create(fo, shape_of(1, 4, 4));
    REFUSED(fo_add_coupling(flow, fo_mask_cycle(0), net), "unknown setting 'hidden' of net=resnet");
    net.hidden = 0, net.channels = 2, net.blocks = 1;
    flow       = fo_flow_create(fo, shape_of(1, 4, 4));
    for (i = -1; i <= 1; i++) { /* skip can be set both ways */
        net.skip = i;
        CHECK(fo_add_coupling(flow, fo_mask_cycle(0), net) == FO_OK);
        CHECK(strcmp(fo_flow_layer_text(flow, i + 1), i < 0
                     ? "coupling mask=cycle:0 net=resnet channels=2 blocks=1 skip=0"
                     : "coupling mask=cycle:0 net=resnet channels=2 blocks=1") == 0);
    }
    flow  = fo_flow_parse(fo, "input 1x4x4\ncoupling mask=cycle:0 net=resnet channels=2 neck=3");
    other = fo_flow_parse(fo, "input 1x4x4\n"
                              "coupling mask=cycle:0 net=resnet channels=2 bottleneck=3");
    CHECK(flow && other && strcmp(fo_flow_text(flow), fo_flow_text(other)) == 0 &&
          strstr(fo_flow_text(flow), "bottleneck=3")); /* the name of old files */
    flow  = fo_flow_parse(fo, "input 2x4x4\ncoupling mask=channel:0 net=highway depth=1");
    other = fo_flow_parse(fo, "input 2x4x4\ncoupling mask=channel:0 net=highway");
    CHECK(flow && fo_param_count(flow) == 2 + 2 * (2 + 2 * 1));
    CHECK(other && fo_param_count(other) == 2 + 2 * (2 + 2 * 3));
    CHECK(strstr(fo_flow_text(flow), "depth=1") && !strstr(fo_flow_text(other), "depth"));
    CHECK(fo_failed(fo) == FO_OK);
    fo_close(fo);
}

/* The text is that of all layers, whenever it was asked for; input takes layers behind it. */
static void test_whole_text(void) {
    static const struct { const char *text, *say; } bad[] = {
        {"input 4 hello\n", "'input 4 hello'"}, {"input 1x4x4x9\n", "'input 1x4x4x9'"},
        {"input 4294967300\n", "input"},        {"inputs 4\n", "input"},
        {"input 4; 2* 3* actnorm", "one repeat"},
        {"input 4; 2* actnorm; 3* actnorm", "one repeat"},
        {"input 4x4x4; squeeze; split; logit", "before any split"},
        {"input 4x4x4; squeeze; split; standardize", "before any split"}};
    const char *path = FILE_NAME("text");
    fo_context *fo   = fo_open(NULL);
    fo_flow    *flow = fo_flow_create(fo, shape_of(4, 1, 1));
    int         i;
    CHECK(strcmp(fo_flow_text(flow), "input 4\n") == 0);
    CHECK(fo_add_coupling(flow, fo_mask_halves(0), fo_net_mlp(5, 1, 0)) == FO_OK);
    CHECK(strstr(fo_flow_text(flow), "coupling"));
    CHECK(fo_add_layer(flow, "actnorm") == FO_OK); /* shorter than what a cache would allow for */
    CHECK(strcmp(fo_flow_text(flow), "input 4\ncoupling mask=halves:0 net=mlp hidden=5\n"
                                     "actnorm\n") == 0);
    CHECK(fo_save(flow, path) == FO_OK);
    flow = fo_load_flow(fo, path);
    CHECK(flow && fo_flow_layers(flow) == 2);
    remove(path);
    flow = fo_flow_parse(fo, "input 1x4x4; dequantize; logit; 3* coupling mask=cycle:% hidden=3");
    CHECK(flow && fo_flow_layers(flow) == 5 &&
          strcmp(fo_flow_layer_text(flow, 4), "coupling mask=cycle:2 net=mlp hidden=3") == 0);
    for (i = 0; i < COUNT(bad); i++) {
        CHECK(fo_flow_parse(fo, bad[i].text) == NULL);
        if (strstr(fo_error(fo), bad[i].say) == NULL)
            printf("'%s' does not say '%s'\n", fo_error(fo), bad[i].say);
        CHECK(strstr(fo_error(fo), bad[i].say) != NULL);
        fo_clear_error(fo);
    }
    CHECK(fo_flow_parse(fo, NULL) == NULL && strstr(fo_error(fo), "no text"));
    fo_clear_error(fo);
    REFUSED(fo_register_mask(fo, "cycle", diagonal, NULL), "'cycle' is the name of a built-in");
    REFUSED(fo_register_mask(fo, "map", diagonal, NULL), "'map' is the name of a built-in");
    flow = fo_flow_preset(fo, "mlp-cycle", shape_of(8, 1, 1));
    CHECK(flow == NULL && strstr(fo_error(fo), "changes 0 of 8") &&
          strstr(fo_error(fo), "tabular"));
    fo_close(fo);
}

/* Data that a flow's first layers were not made for. */
static void test_wrong_data(void) {
    static fo_real x[6][16];
    static const struct { double value; int ok; } values[] = {
        {0, 1}, {255, 1}, {17, 1}, {0.5, 0}, {-1, 0}, {256, 0}, {1e30, 0}, {254.5, 0}};
    fo_context   *fo = fo_open(NULL);
    fo_flow      *flow = fo_flow_parse(fo, "input 1x4x4; dequantize; logit; coupling mask=cycle:0 "
                                           "hidden=3");
    fo_workspace *ws   = fo_workspace_create(fo, flow, 4);
    fo_data      *data = fo_data_view(fo, x, REAL_TYPE, 6, shape_of(1, 4, 4));
    fo_train_desc d;
    double        lp[6];
    int           i;
    memset(&d, 0, sizeof d);
    d.steps = 5, d.batch = 4;
    for (i = 0; i < COUNT(values); i++) {
        x[4][9] = (fo_real)values[i].value;
        if (values[i].ok) {
            CHECK(fo_log_prob(ws, data, 0, 6, 0, lp) == FO_OK);
            continue;
        }
        REFUSED(fo_log_prob(ws, data, 0, 6, 0, lp), "sample 4 has the value");
        CHECK(fo_log_prob(ws, data, 0, 6, 0, lp) != FO_OK &&
              strstr(fo_error(fo), "at element 9") && strstr(fo_error(fo), "multiply") &&
              strstr(fo_error(fo), "standardize"));
        fo_clear_error(fo);
        REFUSED(fo_train(flow, data, &d), "sample 4 has the value");
    }
    flow = fo_flow_parse(fo, "input 1x4x4; logit; coupling mask=cycle:0 hidden=3");
    ws   = fo_workspace_create(fo, flow, 4);
    x[4][9] = 37;
    REFUSED(fo_log_prob(ws, data, 0, 6, 0, lp), "add dequantize");
    REFUSED(fo_flow_preset(fo, "mlp-cycle", shape_of(28, 28, 1)) ? FO_OK : fo_failed(fo),
            "transpose it to N x C x H x W");
    REFUSED(fo_flow_preset(fo, "glow-small", shape_of(32, 32, 3)) ? FO_OK : fo_failed(fo),
            "transpose it to N x C x H x W");
    CHECK(fo_flow_preset(fo, "tabular", shape_of(28, 28, 1)) != NULL);
    fo_close(fo);
}

int main(void) {
    test_settings();
    test_whole_text();
    test_wrong_data();
    test_golden();
    test_masks();
    test_bad_masks();
    test_text();
    test_bad_text();
    test_misuse();
    test_check();
    test_check_layers();
    test_check_finds();
    test_round_trip();
    test_integral();
    test_discrete_sum();
    test_batches();
    test_scores();
    test_two_contexts();
    test_samples();
    test_nan();
    test_map_mask();
    return test_end();
}
