/* 3 of 5. A flow with a picture.

   One coupling can only move x_1 by what x_0 says. Stack several that swap roles and the two halves
   talk to each other: eight of them bend a Gaussian into two moons. log p is the sum of the base
   density and of every layer's logdet; samples are noise sent backwards through the layers.
   Writes moons.png: the density (bright: likely), training samples (blue), drawn samples (red).
   Build: cc -O2 -I. examples/course/3_two_moons.c -lm */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <math.h>
#include <stdio.h>

enum { N = 2000, SIDE = 320 };
static const double HALF = 2; /* the picture shows [-2,2] x [-2,2] */
static float         moons[N][2], grid[SIDE * SIDE][2];
static double        log_p[SIDE * SIDE];
static unsigned char picture[SIDE * SIDE][3];

/* Coordinate of column or row i, and back. */
static double place(int i) { return -HALF + 2 * HALF * (i + 0.5) / SIDE; }

static void dot(double x, double y, int red, int green, int blue) {
    int column = (int)((x + HALF) / (2 * HALF) * SIDE), row = (int)((HALF - y) / (2 * HALF) * SIDE);
    if (column >= 0 && column < SIDE && row >= 0 && row < SIDE) {
        unsigned char *p = picture[row * SIDE + column];
        p[0] = (unsigned char)red, p[1] = (unsigned char)green, p[2] = (unsigned char)blue;
    }
}

int main(void) {
    fo_context *fo    = fo_open(NULL);
    fo_shape    plane = {2, 1, 1};
    for (int i = 0; i < N; i++) { /* two half circles with noise of 0.1 */
        fo_real u, noise[2];
        fo_random_uniform(1, 0, (uint64_t)i, 1, &u);
        fo_random_normal(1, 1, 2 * (uint64_t)i, 2, noise);
        double angle = 3.14159265 * (double)u, side = i % 2 ? 1 : -1;
        moons[i][0] = (float)(side * (cos(angle) - 0.5) + 0.1 * (double)noise[0]);
        moons[i][1] = (float)(side * (sin(angle) - 0.25) + 0.1 * (double)noise[1]);
    }
    fo_flow *flow = fo_flow_parse(fo, "input 2; 8* coupling mask=halves:% net=mlp hidden=64 "
                                      "depth=2");
    fo_data      *data = fo_data_view(fo, moons, FO_F32, N, plane);
    fo_train_desc desc = {0};
    desc.steps    = 1200;
    desc.batch    = 200;
    desc.lr       = 3e-3;
    desc.schedule = FO_COSINE;
    desc.progress = fo_progress_bar;
    fo_train(flow, data, &desc);

    for (int i = 0; i < SIDE * SIDE; i++) {
        grid[i][0] = (float)place(i % SIDE);
        grid[i][1] = (float)-place(i / SIDE);
    }
    fo_workspace *ws     = fo_workspace_create(fo, flow, 0);
    double        cell   = 2 * HALF / SIDE * 2 * HALF / SIDE, sum = 0;
    fo_real       drawn[400][2];
    fo_log_prob(ws, fo_data_view(fo, grid, FO_F32, SIDE * SIDE, plane), 0, SIDE * SIDE, 0, log_p);
    fo_sample(ws, 7, 400, 1.0, drawn[0]);
    if (fo_failed(fo) == FO_OK) {
        for (int i = 0; i < SIDE * SIDE; i++) {
            double bright = 255 * fmin(1, exp(log_p[i]) / 0.7);
            sum += exp(log_p[i]) * cell;
            for (int c = 0; c < 3; c++)
                picture[i][c] = (unsigned char)bright;
        }
        for (int i = 0; i < 400; i++) {
            dot((double)moons[i][0], (double)moons[i][1], 90, 140, 255);
            dot((double)drawn[i][0], (double)drawn[i][1], 255, 90, 60);
        }
        fo_save_png(fo, "moons.png", SIDE, SIDE, 3, picture[0]);
        printf("the density adds up to %.3f over the picture; see moons.png\n", sum);
    }
    int failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "%s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
/* Exercise: why is a point between the moons, (0,0), unlikely? fo_log_prob_terms splits log p into
   the base density and one logdet a layer: which of the two is lower there than on a moon? The
   answer is in tests/course.c. */
