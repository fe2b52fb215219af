/* The answers to the exercises of examples/course; run by tests/test_course.sh. */
#include "test.h"
#include "flowood.h"
#include <math.h>
#include <string.h>
#include "../examples/synthetic.h"

/* The second program, as it stands, but for its main. */
#define main course_2_main
#include "2_coupling.c"
#undef main

/* 1: f(x) = (sqrt x - mean)/std, f'(x) = 1/(2 std sqrt x). x = 0 is z = -mean/std, and no x leads
   below: what N(0,1) has there is missing. */
static void test_change_of_variables(void) {
    double mean = 1.2, std = 0.4, sum = 0, step = 1e-4;
    for (int i = 0; i < 200000; i++) {
        double x = (i + 0.5) * step, z = (sqrt(x) - mean) / std;
        sum += exp(-0.5 * z * z) / sqrt(2 * 3.14159265358979) / (2 * std * sqrt(x)) * step;
    }
    CHECK_NEAR(1 - sum, 0.5 * erfc(mean / std / sqrt(2)), 1e-4);
    CHECK(1 - sum > 1e-3);
}

/* 2: draw from the trained coupling by its inverse. */
static void test_coupling(fo_context *fo) {
    const int64_t dim[2] = {ROWS, 2};
    const fo_real one    = 1;
    fo_tape      *tape   = fo_tape_create(fo);
    fo_tensor    *x      = fo_input(tape, 2, dim, 1), *net, *loss = coupling_loss(x, &net);
    fo_train_desc desc   = {0};
    fo_real       z[2 * ROWS];
    double        spread = 0;
    fo_output(loss);
    fo_output(net);
    if (fo_tape_plan(tape, 1) != FO_OK)
        return;
    desc.lr = 1e-2;
    for (uint64_t i = 0; i < 1000; i++) {
        draw(x->data, i * ROWS);
        fo_forward(tape);
        fo_backward(tape, loss, &one);
        fo_tape_optimize(tape, &desc);
    }
    fo_random_normal(2, 0, 0, 2 * ROWS, z);
    memcpy(x->data, z, sizeof z);
    fo_forward(tape); /* s and t depend on x_0 = z_0 alone */
    for (int i = 0; i < ROWS; i++) {
        double s  = tanh((double)net->data[2 * i]), t = (double)net->data[2 * i + 1];
        double x0 = (double)z[2 * i], x1 = (double)z[2 * i + 1] * exp(-s) - t;
        spread += pow(x1 - x0 * x0 + 1, 2) / ROWS;
    }
    /* No: s = tanh(...) < 1, and exp(-1) is as narrow as it gets. fo_add_coupling learns a scale
       in front of the tanh. */
    CHECK(sqrt(spread) > 0.9 * exp(-1) && sqrt(spread) < 1.2 * exp(-1));
}

/* 3: it is the logdets that fall between the moons: the flow squeezes the empty place together, and
   where it lands in z is not unlikely at all. */
static void test_two_moons(fo_context *fo) {
    enum { N = 1000, LAYERS = 8 };
    static float  moons[N][2];
    fo_shape      plane = {2, 1, 1};
    fo_train_desc desc  = {0};
    float         at[2][2] = {{0, 0}, {-0.5f, 0.75f}}; /* between, and on top of one */
    double        terms[2][1 + LAYERS], logdet[2] = {0, 0};
    for (int i = 0; i < N; i++) {
        fo_real u, noise[2];
        fo_random_uniform(1, 0, (uint64_t)i, 1, &u);
        fo_random_normal(1, 1, 2 * (uint64_t)i, 2, noise);
        double angle = 3.14159265 * (double)u, side = i % 2 ? 1 : -1;
        moons[i][0] = (float)(side * (cos(angle) - 0.5) + 0.1 * (double)noise[0]);
        moons[i][1] = (float)(side * (sin(angle) - 0.25) + 0.1 * (double)noise[1]);
    }
    fo_flow *flow = fo_flow_parse(fo, "input 2; 8* coupling mask=halves:% net=mlp hidden=64 "
                                      "depth=2");
    desc.steps = 400, desc.batch = 100, desc.lr = 3e-3;
    fo_train(flow, fo_data_view(fo, moons, FO_F32, N, plane), &desc);
    fo_log_prob_terms(fo_workspace_create(fo, flow, 0), fo_data_view(fo, at, FO_F32, 2, plane), 0,
                      2, 0, terms[0]);
    for (int p = 0; p < 2; p++)
        for (int k = 0; k < LAYERS; k++)
            logdet[p] += terms[p][1 + k];
    CHECK(terms[0][0] > terms[1][0] - 1);
    CHECK(logdet[0] < logdet[1] - 1);
}

/* 4: couplings until every element of z depends on every element of x. */
static int couplings_to_mix(fo_context *fo, const char *kind) {
    enum { D = 16 };
    fo_shape      shape = {1, 4, 4};
    unsigned char map[D];
    int           reach[D][D], seen[D];
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++)
            reach[i][j] = i == j;
    for (int n = 1; n <= 20; n++) {
        int all = 1;
        fo_mask_fill(fo, fo_mask_named(kind, n - 1), shape, map);
        memset(seen, 0, sizeof seen);
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++)
                seen[j] |= map[i] == FO_CONDITION && reach[i][j];
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) {
                reach[i][j] |= map[i] == FO_CHANGE && seen[j];
                all &= reach[i][j];
            }
        if (all)
            return n;
    }
    return 0;
}

/* 5: false alarms keep their promise, but nothing is found. */
static void test_decision(fo_context *fo) {
    enum { TRAIN = 1000, HELD_OUT = 600, TEST = 300 };
    static unsigned char pixels[TRAIN + HELD_OUT + TEST][SYNTHETIC_SIZE],
        strokes[TEST][SYNTHETIC_SIZE];
    fo_shape         image     = {1, SYNTHETIC_SIDE, SYNTHETIC_SIDE};
    const char      *score     = "likelihood";
    fo_train_desc    desc      = {0};
    fo_detector_desc detector  = {0};
    double           p_in[TEST], p_ood[TEST], limit = 0;
    int              alarms_in = 0, alarms_ood = 0;
    for (int i = 0; i < TRAIN + HELD_OUT + TEST; i++)
        synthetic_silhouette((uint64_t)i, pixels[i]);
    for (int i = 0; i < TEST; i++)
        synthetic_strokes((uint64_t)i, strokes[i]);
    fo_flow *flow = fo_flow_parse(fo, "input 1x28x28; dequantize; logit\n"
                                      "4* coupling mask=cycle:% net=mlp hidden=64 bottleneck=10");
    desc.steps = 100, desc.batch = 32;
    fo_train(flow, fo_data_view(fo, pixels, FO_U8, TRAIN, image), &desc);
    detector.scores = &score, detector.n_scores = 1;
    fo_calibrate(flow, fo_data_view(fo, pixels[TRAIN], FO_U8, HELD_OUT, image), &detector);
    fo_workspace *ws = fo_workspace_create(fo, flow, 0);
    fo_detect_rows(ws, pixels[TRAIN + HELD_OUT], FO_U8, TEST, p_in, NULL, NULL);
    fo_detect_rows(ws, strokes, FO_U8, TEST, p_ood, NULL, NULL);
    fo_detector_limit(flow, 0.05, 0, &limit);
    for (int i = 0; fo_failed(fo) == FO_OK && i < TEST; i++) {
        alarms_in += p_in[i] <= limit;
        alarms_ood += p_ood[i] <= limit;
    }
    CHECK(fo_failed(fo) == FO_OK && limit > 0);
    CHECK(alarms_in < 30);  /* 15 are expected, with a standard deviation of about 5 */
    CHECK(alarms_ood < 30);
}

int main(void) {
    fo_context *fo = fo_open(NULL);
    test_change_of_variables();
    test_coupling(fo);
    test_two_moons(fo);
    CHECK(couplings_to_mix(fo, "checkerboard") == 3);
    CHECK(couplings_to_mix(fo, "horizontal") == 3);
    CHECK(couplings_to_mix(fo, "cycle") == 7);
    test_decision(fo);
    CHECK(fo_failed(fo) == FO_OK);
    fo_close(fo);
    return test_end();
}
