/* Every public function with nothing where something is needed: NULL objects, NULL pointers, counts
   of zero and below. Each gives an error, in words where a context can be reached, or returns
   quietly; none crashes. The last check reads flowood.h: a function that is not here fails. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "tests/test.h"

static fo_context   *fo;
static fo_data      *data;
static fo_flow      *flow, *unfit; /* unfit: of another shape, without a detector */
static fo_workspace *ws;
static char          called[400][40];
static int           n_called;

static void note(const char *name) {
    if (n_called == 0 || strcmp(called[n_called - 1], name) != 0)
        snprintf(called[n_called++ % COUNT(called)], sizeof called[0], "%s", name);
}

static void judge(int good, const char *file, int line, const char *name, const char *arguments) {
    test_passed += good;
    test_failed += !good;
    if (!good)
        printf("%s:%d: failed: %s(%s): '%s'\n", file, line, name, arguments, fo_error(fo));
    fo_clear_error(fo);
}

#define JUDGE(good, name, ...) (note(#name), judge(good, __FILE__, __LINE__, #name, #__VA_ARGS__))
/* An error with a message; without one, as there is no context; and a value, whatever is said. */
#define FAILS(name, ...) JUDGE(name(__VA_ARGS__) != FO_OK && *fo_error(fo), name, __VA_ARGS__)
#define MUTE(name, ...) JUDGE(name(__VA_ARGS__) != FO_OK && !*fo_error(fo), name, __VA_ARGS__)
#define SAYS(value, name, ...)                                                                     \
    JUDGE(name(__VA_ARGS__) == (value) && *fo_error(fo), name, __VA_ARGS__)
#define GIVES(value, name, ...) JUDGE(name(__VA_ARGS__) == (value), name, __VA_ARGS__)
#define CALL(name, ...) JUDGE((name(__VA_ARGS__), 1), name, __VA_ARGS__)

static void contexts(void) {
    uint32_t four[4];
    fo_real  r;
    char     text[16];
    snprintf(text, sizeof text, "%d.%d.%d", FLOWOOD_VERSION / 10000, FLOWOOD_VERSION / 100 % 100,
             FLOWOOD_VERSION % 100);
    CHECK(strcmp(text, FLOWOOD_VERSION_TEXT) == 0);
    CHECK(fo_version() == FLOWOOD_VERSION);
    note("fo_version");
    note("fo_open"), note("fo_close"), note("fo_clock"); /* fo_open(NULL) is the common way */
    fo_close(NULL);
    CHECK(fo_get_desc(NULL).threads == 0 && fo_memory(NULL).now == 0);
    note("fo_get_desc"), note("fo_memory");
    MUTE(fo_failed, NULL);
    CHECK(*fo_error(NULL));
    note("fo_error");
    CALL(fo_clear_error, NULL);
    CHECK(*fo_result_name((fo_result)-1) && *fo_result_name((fo_result)99));
    note("fo_result_name");
    MUTE(fo_fail, NULL, FO_ERR_SHAPE, "%d", 1);
    FAILS(fo_fail, fo, FO_ERR_SHAPE, NULL);
    CALL(fo_parallel_for, NULL, 10, 1, NULL, NULL);
    CALL(fo_parallel_for, fo, 10, 0, NULL, NULL);
    CALL(fo_random_bits, 1, 2, 3, NULL);
    CALL(fo_random_uniform, 1, 2, 3, 5, NULL);
    CALL(fo_random_uniform, 1, 2, 3, -1, &r);
    CALL(fo_random_normal, 1, 2, 3, 5, NULL);
    CALL(fo_random_normal, 1, 2, 3, -1, &r);
    fo_random_bits(1, 2, 3, four);
}

static void samples_and_files(void) {
    const unsigned char bytes[16] = {0};
    const int64_t       dim[2] = {2, 2};
    const double        one[1] = {1};
    const int           class_[1] = {0};
    fo_shape            shape = shape_of(1, 4, 4), wrong = shape_of(-1, 4, 4);
    fo_data            *labels = fo_data_view(fo, bytes, FO_U8, 4, shape_of(1, 1, 1));
    fo_real             x[16];
    fo_array            array;
    fo_metrics          m;
    fo_note             untitled;
    fo_archive         *a = fo_archive_open(fo, FILE_NAME("arguments"));
    memset(&array, 0, sizeof array);
    memset(&untitled, 0, sizeof untitled);
    GIVES(0, fo_shape_count, wrong);
    GIVES(0, fo_dtype_size, (fo_dtype)-1);
    CHECK(*fo_dtype_name((fo_dtype)99));
    note("fo_dtype_name");
    GIVES(NULL, fo_load, NULL, "x.npy");
    SAYS(NULL, fo_load, fo, NULL);
    SAYS(NULL, fo_load, fo, "");
    GIVES(NULL, fo_data_view, NULL, bytes, FO_U8, 1, shape);
    SAYS(NULL, fo_data_view, fo, NULL, FO_U8, 1, shape);
    SAYS(NULL, fo_data_view, fo, bytes, (fo_dtype)99, 1, shape);
    SAYS(NULL, fo_data_view, fo, bytes, FO_U8, 0, shape);
    SAYS(NULL, fo_data_view, fo, bytes, FO_U8, -1, shape);
    SAYS(NULL, fo_data_view, fo, bytes, FO_U8, 1, wrong);
    GIVES(NULL, fo_data_part, NULL, 0, 1);
    SAYS(NULL, fo_data_part, data, 0, 0);
    SAYS(NULL, fo_data_part, data, -1, 1);
    SAYS(NULL, fo_data_part, data, 0, INT64_MIN);
    GIVES(NULL, fo_data_select, NULL, NULL, NULL, 0, 1);
    GIVES(NULL, fo_data_select, NULL, labels, class_, 1, 1);
    SAYS(NULL, fo_data_select, labels, NULL, class_, 1, 1);
    SAYS(NULL, fo_data_select, labels, labels, NULL, 1, 1);
    SAYS(NULL, fo_data_select, labels, labels, class_, 0, 1);
    SAYS(NULL, fo_data_select, labels, labels, class_, -1, 1);
    CALL(fo_data_free, NULL);
    CHECK(fo_data_shape(NULL).c == 0);
    note("fo_data_shape");
    GIVES(0, fo_data_count, NULL);
    CALL(fo_data_dtype, NULL);
    CALL(fo_data_limit, NULL, 1);
    CALL(fo_data_limit, data, 0);
    CALL(fo_data_limit, data, -1);
    CALL(fo_data_shuffle, NULL, 0);
    CALL(fo_data_shuffle, data, 0);
    CHECK(fo_data_count(data) == 4);
    GIVES(NULL, fo_data_row, NULL, 0);
    GIVES(NULL, fo_data_row, data, -1);
    GIVES(NULL, fo_data_row, data, 4);
    MUTE(fo_data_get, NULL, 0, x);
    FAILS(fo_data_get, data, 0, NULL);
    FAILS(fo_data_get, data, -1, x);
    MUTE(fo_save_npy, NULL, "build/none.npy", FO_U8, 2, dim, bytes);
    FAILS(fo_save_npy, fo, NULL, FO_U8, 2, dim, bytes);
    FAILS(fo_save_npy, fo, "build/none.npy", (fo_dtype)-1, 2, dim, bytes);
    FAILS(fo_save_npy, fo, "build/none.npy", FO_U8, -1, dim, bytes);
    FAILS(fo_save_npy, fo, "build/none.npy", FO_U8, 2, NULL, bytes);
    FAILS(fo_save_npy, fo, "build/none.npy", FO_U8, 2, dim, NULL);
    MUTE(fo_save_idx, NULL, "build/none.idx", 2, dim, bytes);
    FAILS(fo_save_idx, fo, NULL, 2, dim, bytes);
    FAILS(fo_save_idx, fo, "build/none.idx", -1, dim, bytes);
    FAILS(fo_save_idx, fo, "build/none.idx", 2, NULL, bytes);
    FAILS(fo_save_idx, fo, "build/none.idx", 2, dim, NULL);
    MUTE(fo_save_png, NULL, "build/none.png", 4, 4, 1, bytes);
    FAILS(fo_save_png, fo, NULL, 4, 4, 1, bytes);
    FAILS(fo_save_png, fo, "build/none.png", 0, 4, 1, bytes);
    FAILS(fo_save_png, fo, "build/none.png", 4, -4, 1, bytes);
    FAILS(fo_save_png, fo, "build/none.png", 4, 4, 0, bytes);
    FAILS(fo_save_png, fo, "build/none.png", 4, 4, 1, NULL);
    GIVES(NULL, fo_archive_open, NULL, "x");
    SAYS(NULL, fo_archive_open, fo, NULL);
    GIVES(NULL, fo_archive_open_memory, NULL, bytes, 16);
    SAYS(NULL, fo_archive_open_memory, fo, NULL, 16);
    SAYS(NULL, fo_archive_open_memory, fo, bytes, 0);
    CALL(fo_archive_free, NULL);
    GIVES(0, fo_archive_count, NULL);
    GIVES(NULL, fo_archive_at, NULL, 0);
    GIVES(NULL, fo_archive_at, a, -1);
    GIVES(NULL, fo_archive_at, a, 1 << 20);
    GIVES(NULL, fo_archive_find, NULL, "x");
    GIVES(NULL, fo_archive_find, a, NULL);
    GIVES(NULL, fo_archive_note, NULL, "x");
    GIVES(NULL, fo_archive_note, a, NULL);
    MUTE(fo_archive_save, NULL, "build/none", &array, 0, NULL, 0);
    FAILS(fo_archive_save, fo, NULL, &array, 0, NULL, 0);
    FAILS(fo_archive_save, fo, "build/none", NULL, 1, NULL, 0);
    FAILS(fo_archive_save, fo, "build/none", NULL, -1, NULL, 0);
    FAILS(fo_archive_save, fo, "build/none", NULL, 0, NULL, 1);
    FAILS(fo_archive_save, fo, "build/none", NULL, 0, NULL, -1);
    FAILS(fo_archive_save, fo, "build/none", NULL, 0, &untitled, 1);
    FAILS(fo_archive_save, fo, "build/none", &array, 1, NULL, 0);
    MUTE(fo_measure, NULL, one, 1, one, 1, &m);
    FAILS(fo_measure, fo, NULL, 1, one, 1, &m);
    FAILS(fo_measure, fo, one, 1, NULL, 1, &m);
    FAILS(fo_measure, fo, one, 1, one, 1, NULL);
    FAILS(fo_measure, fo, one, 0, one, 1, &m);
    FAILS(fo_measure, fo, one, 1, one, -1, &m);
}

/* A refused op leaves its tape incomplete, so each call has a tensor of a tape of its own. */
static fo_tensor *leaf(void) {
    const int64_t dim[4] = {2, 2, 3, 3};
    return fo_input(fo_tape_create(fo), 4, dim, 1);
}

static void tapes(void) {
    const int64_t dim[2] = {2, 2}, none[2] = {2, 0};
    const fo_op   shapeless = {"shapeless", 0, NULL, NULL, NULL};
    fo_init       init = fo_init_of(FO_INIT_CONSTANT, 0);
    fo_tape      *tape = fo_tape_create(fo);
    fo_tensor    *a = fo_input(tape, 2, dim, 1), *nothing = NULL;
    fo_real       grad[4] = {0};
    note("fo_init_of");
    GIVES(NULL, fo_tape_create, NULL);
    CALL(fo_tape_free, NULL);
    GIVES(NULL, fo_tape_context, NULL);
    GIVES(NULL, fo_tape_norm, NULL);
    GIVES(NULL, fo_input, NULL, 2, dim, 0);
    SAYS(NULL, fo_input, fo_tape_create(fo), 2, NULL, 0);
    SAYS(NULL, fo_input, fo_tape_create(fo), 2, none, 0);
    SAYS(NULL, fo_input, fo_tape_create(fo), 0, dim, 0);
    SAYS(NULL, fo_input, fo_tape_create(fo), -1, dim, 0);
    GIVES(NULL, fo_param, NULL, "p", 2, dim, init);
    SAYS(NULL, fo_param, fo_tape_create(fo), NULL, 2, dim, init);
    SAYS(NULL, fo_param, fo_tape_create(fo), "p", 2, NULL, init);
    SAYS(NULL, fo_param, fo_tape_create(fo), "p", -1, dim, init);
    GIVES(NULL, fo_buffer, NULL, "p", 2, dim, init);
    SAYS(NULL, fo_buffer, fo_tape_create(fo), NULL, 2, dim, init);
    SAYS(NULL, fo_buffer, fo_tape_create(fo), "p", 2, NULL, init);
    SAYS(NULL, fo_buffer, fo_tape_create(fo), "p", 0, dim, init);
    GIVES(NULL, fo_apply, NULL, &fo->ops[0], &a, 1, NULL, 0);
    SAYS(NULL, fo_apply, leaf()->tape, &fo->ops[0], NULL, 1, NULL, 0);
    GIVES(NULL, fo_apply, leaf()->tape, &fo->ops[0], &nothing, 1, NULL, 0);
    SAYS(NULL, fo_apply, leaf()->tape, &fo->ops[0], &a, -1, NULL, 0);
    SAYS(NULL, fo_apply, leaf()->tape, NULL, &a, 1, NULL, 0);
    SAYS(NULL, fo_apply, tape, &shapeless, &a, 1, NULL, 0);
    SAYS(NULL, fo_apply, leaf()->tape, &fo->ops[FO__OP_sum], &a, 1, NULL, 4);
    CALL(fo_output, NULL);
    MUTE(fo_tape_plan, NULL, 1);
    MUTE(fo_forward, NULL);
    FAILS(fo_forward, fo_tape_create(fo));
    MUTE(fo_backward, NULL, a, grad);
    FAILS(fo_backward, fo_tape_create(fo), NULL, grad);
    tape = fo_tape_create(fo);
    fo_input(tape, 2, dim, 1);
    CHECK(fo_tape_plan(tape, 1) == FO_OK);
    FAILS(fo_backward, tape, NULL, grad);
    FAILS(fo_backward, tape, tape->nodes[0], NULL);
    MUTE(fo_tape_optimize, NULL, NULL);
    FAILS(fo_tape_optimize, tape, NULL);
}

static void ops(void) {
    const int     index[2] = {0, 1};
    const int64_t dim[2] = {2, 2};
    fo_tensor    *a = leaf(), *v = NULL;
    fo_norm       how;
    memset(&how, 0, sizeof how);
#define OP1(name) GIVES(NULL, name, NULL)
#define OP2(name) (GIVES(NULL, name, NULL, a), GIVES(NULL, name, a, NULL))
    OP2(fo_add), OP2(fo_sub), OP2(fo_mul), OP2(fo_matmul), OP2(fo_concat), OP2(fo_weight_norm);
    OP1(fo_exp), OP1(fo_log), OP1(fo_tanh), OP1(fo_sigmoid), OP1(fo_softplus), OP1(fo_relu);
    OP1(fo_crelu);
    GIVES(NULL, fo_scale, NULL, 2);
    GIVES(NULL, fo_leaky_relu, NULL, 0.1);
    GIVES(NULL, fo_sum, NULL, 0);
    SAYS(NULL, fo_sum, leaf(), -1);
    GIVES(NULL, fo_mean, NULL, 0);
    SAYS(NULL, fo_mean, leaf(), -1);
    GIVES(NULL, fo_linear, NULL, a, NULL);
    GIVES(NULL, fo_linear, a, NULL, NULL);
    GIVES(NULL, fo_gather, NULL, index, 2);
    SAYS(NULL, fo_gather, leaf(), NULL, 2);
    SAYS(NULL, fo_gather, leaf(), index, 0);
    SAYS(NULL, fo_gather, leaf(), index, -1);
    GIVES(NULL, fo_scatter, NULL, index, 2);
    SAYS(NULL, fo_scatter, leaf(), NULL, 18);
    SAYS(NULL, fo_scatter, leaf(), index, -1);
    GIVES(NULL, fo_slice, NULL, 0, 1);
    SAYS(NULL, fo_slice, leaf(), 0, 0);
    SAYS(NULL, fo_slice, leaf(), -1, 1);
    GIVES(NULL, fo_reshape, NULL, 2, dim);
    SAYS(NULL, fo_reshape, leaf(), 2, NULL);
    SAYS(NULL, fo_reshape, leaf(), -1, dim);
    GIVES(NULL, fo_conv2d, NULL, a, NULL, 1, 0);
    GIVES(NULL, fo_conv2d, a, NULL, NULL, 1, 0);
    v = leaf();
    SAYS(NULL, fo_conv2d, v, v, NULL, 0, 0);
    v = leaf();
    SAYS(NULL, fo_conv2d, v, v, NULL, 1, -1);
    GIVES(NULL, fo_conv2d_transpose, NULL, a, NULL, 1, 0);
    GIVES(NULL, fo_conv2d_transpose, a, NULL, NULL, 1, 0);
    v = leaf();
    SAYS(NULL, fo_conv2d_transpose, v, v, NULL, 0, 0);
    GIVES(NULL, fo_batch_norm, NULL, a, a, a, a, &how, 1, 0);
    GIVES(NULL, fo_batch_norm, a, NULL, a, a, a, &how, 1, 0);
    GIVES(NULL, fo_batch_norm, a, a, NULL, a, a, &how, 1, 0);
    GIVES(NULL, fo_batch_norm, a, a, a, NULL, a, &how, 1, 0);
    GIVES(NULL, fo_batch_norm, a, a, a, a, NULL, &how, 1, 0);
    SAYS(NULL, fo_batch_norm, a, a, a, a, a, NULL, 1, 0);
    a = leaf();
    GIVES(NULL, fo_gate, NULL, a, a);
    GIVES(NULL, fo_gate, a, NULL, a);
    GIVES(NULL, fo_gate, a, a, NULL);
}

static void nets_and_masks(void) {
    fo_net_kind   kind;
    unsigned char map[16] = {0};
    fo_shape      shape = shape_of(1, 4, 4), wrong = shape_of(0, 4, 4);
    char          text[8];
    fo_settings   settings;
    memset(&kind, 0, sizeof kind);
    memset(&settings, 0, sizeof settings);
    GIVES(0, fo_setting_value, NULL, "x");
    GIVES(0, fo_setting_value, &settings, NULL);
    GIVES(0, fo_setting_value, &settings, "x");
    note("fo_net_mlp"), note("fo_net_named"), note("fo_mask_named"), note("fo_mask_map");
    note("fo_mask_checkerboard"), note("fo_mask_cycle"), note("fo_mask_halves");
    MUTE(fo_register_net, NULL, &kind);
    FAILS(fo_register_net, fo, NULL);
    FAILS(fo_register_net, fo, &kind);
    GIVES(NULL, fo_net_linear, NULL, "l", 2, 0);
    SAYS(NULL, fo_net_linear, leaf(), NULL, 2, 0);
    SAYS(NULL, fo_net_linear, leaf(), "l", 0, 0);
    SAYS(NULL, fo_net_linear, leaf(), "l", -1, 0);
    GIVES(NULL, fo_net_conv, NULL, "c", 2, 3, 0);
    SAYS(NULL, fo_net_conv, leaf(), NULL, 2, 3, 0);
    SAYS(NULL, fo_net_conv, leaf(), "c", -1, 3, 0);
    SAYS(NULL, fo_net_conv, leaf(), "c", 2, 0, 0);
    SAYS(NULL, fo_net_conv, leaf(), "c", 2, -3, 0);
    GIVES(NULL, fo_activation, NULL, "relu");
    SAYS(NULL, fo_activation, leaf(), "?");
    CALL(fo_activation, leaf(), NULL);
    MUTE(fo_register_mask, NULL, "m", NULL, NULL);
    FAILS(fo_register_mask, fo, "m", NULL, NULL);
    FAILS(fo_register_mask, fo, NULL, NULL, NULL);
    MUTE(fo_mask_fill, NULL, fo_mask_cycle(0), shape, map);
    FAILS(fo_mask_fill, fo, fo_mask_cycle(0), shape, NULL);
    FAILS(fo_mask_fill, fo, fo_mask_cycle(0), wrong, map);
    FAILS(fo_mask_fill, fo, fo_mask_cycle(-1), shape, map);
    FAILS(fo_mask_fill, fo, fo_mask_named(NULL, 0), shape, map);
    FAILS(fo_mask_fill, fo, fo_mask_map(NULL), shape, map);
    CALL(fo_mask_print, NULL, shape, text, 8);
    CALL(fo_mask_print, map, shape, NULL, 8);
    CALL(fo_mask_print, map, shape, text, 0);
    CALL(fo_mask_print, map, wrong, text, 8);
}

static void flows(void) {
    fo_shape       shape = shape_of(1, 4, 4), wrong = shape_of(1, 0, 4);
    int64_t        n = 5;
    fo_real        values[4] = {0};
    unsigned char  constant[16];
    fo_flow       *f = fo_flow_create(fo, shape);
    GIVES(NULL, fo_flow_create, NULL, shape);
    SAYS(NULL, fo_flow_create, fo, wrong);
    MUTE(fo_add_dequantize, NULL);
    MUTE(fo_add_logit, NULL, 0.05);
    FAILS(fo_add_logit, fo_flow_create(fo, shape), -1);
    MUTE(fo_add_standardize, NULL);
    MUTE(fo_add_coupling, NULL, fo_mask_cycle(0), fo_net_mlp(4, 1, 0));
    FAILS(fo_add_coupling, fo_flow_create(fo, shape), fo_mask_named(NULL, 0), fo_net_named(NULL));
    FAILS(fo_add_coupling, fo_flow_create(fo, shape), fo_mask_map(NULL), fo_net_named(NULL));
    MUTE(fo_add_additive, NULL, fo_mask_cycle(0), fo_net_mlp(4, 1, 0));
    FAILS(fo_add_additive, fo_flow_create(fo, shape), fo_mask_cycle(-1), fo_net_mlp(4, 1, 0));
    MUTE(fo_add_layer, NULL, "actnorm");
    FAILS(fo_add_layer, f, NULL);
    FAILS(fo_add_layer, f, "");
    GIVES(NULL, fo_flow_parse, NULL, "input 2");
    SAYS(NULL, fo_flow_parse, fo, NULL);
    SAYS(NULL, fo_flow_parse, fo, "");
    GIVES(NULL, fo_flow_text, NULL);
    GIVES(NULL, fo_flow_preset, NULL, "tabular", shape);
    SAYS(NULL, fo_flow_preset, fo, NULL, shape);
    SAYS(NULL, fo_flow_preset, fo, "tabular", wrong);
    CHECK(fo_preset_at(-1).name == NULL && fo_preset_at(1000).name == NULL);
    note("fo_preset_at");
    CALL(fo_flow_free, NULL);
    CHECK(fo_flow_shape(NULL).c == 0 && fo_param_at(NULL, 0).name == NULL);
    CHECK(fo_param_at(flow, -1).name == NULL && fo_param_at(flow, 1 << 20).name == NULL);
    note("fo_flow_shape"), note("fo_param_at");
    GIVES(0, fo_flow_layers, NULL);
    GIVES(NULL, fo_flow_layer_text, NULL, 0);
    GIVES(NULL, fo_flow_layer_text, flow, -1);
    GIVES(NULL, fo_flow_layer_text, flow, 99);
    GIVES(NULL, fo_flow_mask, NULL, 0);
    GIVES(NULL, fo_flow_mask, flow, -1);
    GIVES(NULL, fo_flow_mask, flow, 99);
    GIVES(0, fo_flow_constants, NULL, constant);
    GIVES(0, fo_flow_constants, flow, NULL);
    GIVES(0, fo_param_count, NULL);
    GIVES(NULL, fo_params, NULL, &n);
    CHECK(n == 0 && fo_params(flow, NULL) != NULL);
    MUTE(fo_set_params, NULL, values, 4);
    FAILS(fo_set_params, flow, NULL, 4);
    FAILS(fo_set_params, flow, values, 0);
    FAILS(fo_set_params, flow, values, -1);
}

static int look(void *user, const fo_view *view) {
    (void)user;
    return view == NULL;
}

static void workspaces(void) {
    const unsigned char row[16] = {0};
    double              out[8];
    fo_real             z[64] = {0};
    GIVES(NULL, fo_workspace_create, NULL, flow, 0);
    SAYS(NULL, fo_workspace_create, fo, NULL, 0);
    SAYS(NULL, fo_workspace_create, fo, flow, -1);
    CALL(fo_workspace_free, NULL);
    MUTE(fo_workspace_norm, NULL, FO_NORM_RUNNING);
    FAILS(fo_workspace_norm, ws, (fo_norm_mode)99);
    MUTE(fo_recalibrate, NULL, data, 4);
    FAILS(fo_recalibrate, flow, NULL, 4);
    FAILS(fo_recalibrate, flow, data, 0);
    FAILS(fo_recalibrate, flow, data, -1);
#define RANGES(name, to, ...)                                                                      \
    (MUTE(name, NULL, data, 0, 1, __VA_ARGS__, to), FAILS(name, ws, NULL, 0, 1, __VA_ARGS__, to),  \
     FAILS(name, ws, data, -1, 1, __VA_ARGS__, to), FAILS(name, ws, data, 0, -1, __VA_ARGS__, to), \
     FAILS(name, ws, data, 0, INT64_MAX, __VA_ARGS__, to),                                         \
     FAILS(name, ws, data, 0, 1, __VA_ARGS__, NULL))
    RANGES(fo_log_prob, out, 0);
    RANGES(fo_log_prob_terms, out, 0);
    RANGES(fo_encode, z, 0);
    RANGES(fo_log_prob_mean, out, 2);
    FAILS(fo_log_prob_mean, ws, data, 0, 1, 0, out);
    FAILS(fo_log_prob_mean, ws, data, 0, 1, -1, out);
    FAILS(fo_log_prob, ws, data, 0, 1, -2, out);
#define ROWS(name, to, ...)                                                                        \
    (MUTE(name, NULL, row, FO_U8, 1, __VA_ARGS__, to),                                             \
     FAILS(name, ws, NULL, FO_U8, 1, __VA_ARGS__, to),                                             \
     FAILS(name, ws, row, (fo_dtype)99, 1, __VA_ARGS__, to),                                       \
     FAILS(name, ws, row, FO_U8, -1, __VA_ARGS__, to),                                             \
     FAILS(name, ws, row, FO_U8, 1, __VA_ARGS__, NULL))
    ROWS(fo_log_prob_rows, out, 0);
    ROWS(fo_encode_rows, z, 0);
    ROWS(fo_score_rows, out, "likelihood");
    RANGES(fo_score, out, "likelihood");
    FAILS(fo_score, ws, data, 0, 1, NULL, out);
    FAILS(fo_score_rows, ws, row, FO_U8, 1, NULL, out);
    MUTE(fo_trace, NULL, data, 0, 1, 0, look, NULL);
    FAILS(fo_trace, ws, NULL, 0, 1, 0, look, NULL);
    FAILS(fo_trace, ws, data, -1, 1, 0, look, NULL);
    FAILS(fo_trace, ws, data, 0, -1, 0, look, NULL);
    FAILS(fo_trace, ws, data, 0, 1, 0, NULL, NULL);
    FAILS(fo_trace, ws, data, 0, 1, -2, look, NULL);
    MUTE(fo_decode, NULL, z, 1, z, NULL);
    FAILS(fo_decode, ws, NULL, 1, z, NULL);
    FAILS(fo_decode, ws, z, 1, NULL, NULL);
    FAILS(fo_decode, ws, z, -1, z, NULL);
    MUTE(fo_sample, NULL, 1, 1, 1, z);
    FAILS(fo_sample, ws, 1, 1, 1, NULL);
    FAILS(fo_sample, ws, 1, -1, 1, z);
    FAILS(fo_sample, ws, 1, 1, -1, z);
    CALL(fo_bpd, 1, shape_of(0, 0, 0));
}

static void layers(void) {
    const int64_t dim[1] = {2};
    fo_init       init = fo_init_of(FO_INIT_CONSTANT, 0);
    fo_layer_kind kind;
    memset(&kind, 0, sizeof kind);
    GIVES(0, fo_pass_input, NULL, 0, 0);
    MUTE(fo_register_layer, NULL, &kind);
    FAILS(fo_register_layer, fo, NULL);
    FAILS(fo_register_layer, fo, &kind);
    GIVES(-1, fo_layer_param, NULL, "p", 1, dim, init);
    GIVES(-1, fo_layer_buffer, NULL, "p", 1, dim, init);
    GIVES(-1, fo_layer_optional, NULL, "p", 2, 0);
    GIVES(NULL, fo_layer_alloc, NULL, 4);
}

/* Inside of a layer's `shape` a context can be reached. */
static fo_result refusing_shape(fo_layer *layer) {
    const int64_t dim[1] = {2}, huge[4] = {1 << 20, 1 << 20, 1 << 20, 1 << 20};
    fo_init       init = fo_init_of(FO_INIT_CONSTANT, 0);
    GIVES(-1, fo_layer_param, layer, NULL, 1, dim, init);
    GIVES(-1, fo_layer_param, layer, "p", 1, NULL, init);
    GIVES(-1, fo_layer_param, layer, "p", -1, dim, init);
    GIVES(-1, fo_layer_param, layer, "p", 4, huge, init);
    GIVES(-1, fo_layer_buffer, layer, NULL, 1, dim, init);
    GIVES(-1, fo_layer_optional, layer, NULL, 2, 0);
    GIVES(-1, fo_layer_optional, layer, "p", -1, 0);
    return FO_OK;
}

static void training(void) {
    fo_progress    progress;
    fo_train_desc  desc;
    fo_trainer    *tr;
    fo_save_desc   as;
    void          *bytes;
    size_t         size;
    memset(&desc, 0, sizeof desc);
    memset(&as, 0, sizeof as);
    memset(&progress, 0, sizeof progress);
    MUTE(fo_train, NULL, data, NULL);
    FAILS(fo_train, flow, NULL, NULL);
    desc.steps = -1;
    FAILS(fo_train, flow, data, &desc);
    desc.steps = 0, desc.seconds = -1;
    FAILS(fo_train, flow, data, &desc);
    desc.seconds = 0, desc.epochs = (double)NAN;
    FAILS(fo_train, flow, data, &desc);
    desc.epochs = 0;
    desc.steps = 1, desc.batch = -1;
    FAILS(fo_train, flow, data, &desc);
    CHECK(fo_flow_train_desc(NULL).batch == 0);
    note("fo_flow_train_desc");
    GIVES(0, fo_flow_steps, NULL);
    GIVES(0, fo_flow_train_count, NULL);
    GIVES(0, fo_flow_held_out_count, NULL);
    CHECK(fo_flow_held_out_bpd(NULL) != fo_flow_held_out_bpd(NULL));
    note("fo_flow_held_out_bpd");
    CALL(fo_progress_bar, NULL, NULL);
    GIVES(NULL, fo_trainer_open, NULL, data, NULL);
    SAYS(NULL, fo_trainer_open, flow, NULL, NULL);
    GIVES(NULL, fo_trainer_forward, NULL);
    MUTE(fo_trainer_backward, NULL, NULL, NULL);
    MUTE(fo_trainer_update, NULL);
    GIVES(0, fo_trainer_step, NULL);
    MUTE(fo_trainer_close, NULL);
    tr = fo_trainer_open(flow, data, NULL);
    FAILS(fo_trainer_backward, tr, NULL, NULL);
    FAILS(fo_trainer_update, tr);
    fo_trainer_close(tr);
    MUTE(fo_save, NULL, "build/none");
    FAILS(fo_save, flow, NULL);
    MUTE(fo_save_as, NULL, "build/none", &as);
    FAILS(fo_save_as, flow, NULL, &as);
    MUTE(fo_save_memory, NULL, &as, &bytes, &size);
    FAILS(fo_save_memory, flow, &as, NULL, &size);
    FAILS(fo_save_memory, flow, &as, &bytes, NULL);
    CALL(fo_save_free, NULL, NULL);
    CALL(fo_save_free, fo, NULL);
    GIVES(NULL, fo_load_flow, NULL, "x");
    SAYS(NULL, fo_load_flow, fo, NULL);
    GIVES(NULL, fo_load_flow_memory, NULL, "x", 1);
    SAYS(NULL, fo_load_flow_memory, fo, NULL, 1);
    SAYS(NULL, fo_load_flow_memory, fo, "x", 0);
    MUTE(fo_load_weights, NULL, "x");
    FAILS(fo_load_weights, flow, NULL);
}

static void detection(void) {
    const char *const    names[2] = {"likelihood", NULL};
    const unsigned char  row[16] = {0};
    const double         p[2] = {0.1, 0.2};
    unsigned char        alarm[2];
    double               out[8];
    fo_score_kind        kind;
    fo_martingale        m;
    fo_check_report      report;
    fo_detector_desc     desc;
    memset(&kind, 0, sizeof kind);
    memset(&m, 0, sizeof m);
    memset(&desc, 0, sizeof desc);
    MUTE(fo_register_score, NULL, &kind);
    FAILS(fo_register_score, fo, NULL);
    FAILS(fo_register_score, fo, &kind);
    CHECK(fo_score_at(NULL, -1).name == NULL && fo_score_at(fo, -1).name == NULL);
    CHECK(fo_score_at(NULL, 1000).name == NULL && fo_score_at(fo, 1000).name == NULL);
    note("fo_score_at");
    MUTE(fo_scores, NULL, data, 0, 1, names, 1, 0, out);
    FAILS(fo_scores, ws, NULL, 0, 1, names, 1, 0, out);
    FAILS(fo_scores, ws, data, 0, 1, NULL, 1, 0, out);
    FAILS(fo_scores, ws, data, 0, 1, names, 0, 0, out);
    FAILS(fo_scores, ws, data, 0, 1, names, -1, 0, out);
    FAILS(fo_scores, ws, data, 0, 1, names, 2, 0, out);
    FAILS(fo_scores, ws, data, 0, 1, names, 1, 0, NULL);
    MUTE(fo_scores_rows, NULL, row, FO_U8, 1, names, 1, 0, out);
    FAILS(fo_scores_rows, ws, NULL, FO_U8, 1, names, 1, 0, out);
    FAILS(fo_scores_rows, ws, row, FO_U8, -1, names, 1, 0, out);
    FAILS(fo_scores_rows, ws, row, FO_U8, 1, NULL, 1, 0, out);
    FAILS(fo_scores_rows, ws, row, FO_U8, 1, names, 2, 0, out);
    FAILS(fo_scores_rows, ws, row, FO_U8, 1, names, 1, 0, NULL);
    MUTE(fo_workspace_background, NULL, flow);
    FAILS(fo_workspace_background, ws, NULL);
    FAILS(fo_workspace_background, ws, unfit);
    GIVES(0, fo_code_length, NULL, shape_of(1, 4, 4));
    GIVES(0, fo_code_length, row, shape_of(1, -4, 4));
    MUTE(fo_alarm_limit, NULL, 100, 0.1, 0, out);
    FAILS(fo_alarm_limit, fo, 0, 0.1, 0, out);
    FAILS(fo_alarm_limit, fo, -1, 0.1, 0, out);
    FAILS(fo_alarm_limit, fo, 100, 0.1, 0, NULL);
    FAILS(fo_alarm_limit, fo, 100, 0, 0, out);
    MUTE(fo_benjamini_hochberg, NULL, p, 2, 0.1, alarm, NULL);
    FAILS(fo_benjamini_hochberg, fo, NULL, 2, 0.1, alarm, NULL);
    FAILS(fo_benjamini_hochberg, fo, p, 2, 0.1, NULL, NULL);
    FAILS(fo_benjamini_hochberg, fo, p, 0, 0.1, alarm, NULL);
    FAILS(fo_benjamini_hochberg, fo, p, -1, 0.1, alarm, NULL);
    MUTE(fo_martingale_start, NULL, &m, p, 2, p, 2, 1);
    FAILS(fo_martingale_start, fo, NULL, p, 2, p, 2, 1);
    FAILS(fo_martingale_start, fo, &m, NULL, 2, p, 2, 1);
    FAILS(fo_martingale_start, fo, &m, p, 2, NULL, 2, 1);
    FAILS(fo_martingale_start, fo, &m, p, 0, p, 2, 1);
    FAILS(fo_martingale_start, fo, &m, p, 2, p, -1, 1);
    GIVES(0, fo_martingale_add, NULL, 1);
    MUTE(fo_calibrate, NULL, data, NULL);
    FAILS(fo_calibrate, flow, NULL, NULL);
    desc.n_scores = 1;
    FAILS(fo_calibrate, flow, data, &desc);
    desc.scores = names + 1;
    FAILS(fo_calibrate, flow, data, &desc);
    desc.n_scores = -1;
    FAILS(fo_calibrate, flow, data, &desc);
    desc.n_scores = 0, desc.n_also = 1;
    FAILS(fo_calibrate, flow, data, &desc);
    CHECK(fo_flow_detector(NULL).ranked == 0 && fo_flow_detector(unfit).ranked == 0);
    note("fo_flow_detector");
    GIVES(NULL, fo_detector_score, NULL, 0);
    GIVES(NULL, fo_detector_score, flow, -1);
    GIVES(NULL, fo_detector_score, flow, 1);
    CALL(fo_drop_detector, NULL);
    MUTE(fo_detect, NULL, data, 0, 1, out, NULL, NULL);
    FAILS(fo_detect, ws, NULL, 0, 1, out, NULL, NULL);
    GIVES(FO_OK, fo_detect, ws, data, 0, 1, NULL, NULL, NULL);
    FAILS(fo_detect, ws, data, -1, 1, out, NULL, NULL);
    FAILS(fo_detect, ws, data, 0, -1, out, NULL, NULL);
    MUTE(fo_detect_rows, NULL, row, FO_U8, 1, out, NULL, NULL);
    FAILS(fo_detect_rows, ws, NULL, FO_U8, 1, out, NULL, NULL);
    GIVES(FO_OK, fo_detect_rows, ws, row, FO_U8, 1, NULL, NULL, NULL);
    FAILS(fo_detect_rows, ws, row, FO_U8, -1, out, NULL, NULL);
    MUTE(fo_detector_rank, NULL, out, 1, out, NULL);
    FAILS(fo_detector_rank, flow, NULL, 1, out, NULL);
    FAILS(fo_detector_rank, flow, out, -1, out, NULL);
    FAILS(fo_detector_rank, unfit, out, 1, out, NULL);
    MUTE(fo_detector_limit, NULL, 0.5, 0, out);
    FAILS(fo_detector_limit, flow, 0.5, 0, NULL);
    FAILS(fo_detector_limit, unfit, 0.5, 0, out);
    MUTE(fo_detector_martingale, NULL, 1, &m);
    FAILS(fo_detector_martingale, flow, 1, NULL);
    FAILS(fo_detector_martingale, unfit, 1, &m);
    MUTE(fo_check, NULL, data, NULL, &report);
    FAILS(fo_check, flow, NULL, NULL, &report);
    FAILS(fo_check, flow, data, NULL, NULL);
}

/* Names behind FO_API in the header, each of which must have been noted. */
static void all_of_them(void) {
    FILE *file = fopen("flowood.h", "r");
    char  line[256], *at, *end;
    int   n = 0, k, found;
    CHECK(file != NULL && n_called <= COUNT(called));
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "FO_API ", 7) != 0 || (end = strchr(line, '(')) == NULL)
            continue;
        *end = 0;
        for (at = end; at > line && at[-1] != ' ' && at[-1] != '*';)
            at--;
        for (k = found = 0; k < n_called; k++)
            found |= strcmp(called[k], at) == 0;
        if (!found)
            printf("%s is in no row of tests/test_arguments.c\n", at);
        CHECK(found);
        n++;
    }
    CHECK(n > 170);
    if (file)
        fclose(file);
}

int main(void) {
    static unsigned char pixels[4 * 16];
    fo_layer_kind        kind;
    int                  i;
    for (i = 0; i < COUNT(pixels); i++)
        pixels[i] = (unsigned char)(37 * i);
    fo    = fo_open(NULL);
    data  = fo_data_view(fo, pixels, FO_U8, 4, shape_of(1, 4, 4));
    flow  = fo_flow_parse(fo, "input 1x4x4; dequantize; coupling mask=checkerboard:0 hidden=4");
    unfit = fo_flow_parse(fo, "input 3; coupling mask=halves:0 hidden=4");
    CHECK(fo_calibrate(flow, data, NULL) == FO_OK);
    CHECK(fo_save(flow, FILE_NAME("arguments")) == FO_OK);
    ws = fo_workspace_create(fo, flow, 2);
    CHECK(ws && unfit && *fo_error(fo) == 0);
    contexts();
    samples_and_files();
    tapes();
    ops();
    nets_and_masks();
    flows();
    workspaces();
    layers();
    memset(&kind, 0, sizeof kind);
    kind.name = "refusing", kind.shape = refusing_shape;
    if (fo_register_layer(fo, &kind) == FO_OK)
        fo_add_layer(fo_flow_create(fo, shape_of(1, 4, 4)), "refusing");
    training();
    detection();
    CHECK(fo_failed(fo) == FO_OK);
    all_of_them();
    remove(FILE_NAME("arguments"));
    fo_close(fo);
    return test_end();
}
