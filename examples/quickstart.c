/* Two moons: a flow learns a density in the plane, tells what does not belong, and draws it.
   Build: cc -O2 -I. examples/quickstart.c -lm */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "gallery.h"
#include <math.h>
#include <stdio.h>

enum { N = 2000 };
static float moons[N][2];

int main(void) {
    fo_context *fo = fo_open(NULL);
    fo_shape    plane = {2, 1, 1};
    for (int i = 0; i < N; i++) { /* two half circles with noise of 0.1 */
        fo_real u, noise[2];
        fo_random_uniform(1, 0, (uint64_t)i, 1, &u);
        fo_random_normal(1, 1, 2 * (uint64_t)i, 2, noise);
        double angle = 3.14159265 * (double)u, side = i % 2 ? 1 : -1;
        moons[i][0] = (float)(side * (cos(angle) - 0.5) + 0.1 * (double)noise[0]);
        moons[i][1] = (float)(side * (sin(angle) - 0.25) + 0.1 * (double)noise[1]);
    }
    fo_data *data = fo_data_view(fo, moons, FO_F32, N, plane);

    fo_flow *flow = fo_flow_create(fo, plane);
    for (int i = 0; i < 8; i++)
        fo_add_coupling(flow, fo_mask_halves(i), fo_net_mlp(64, 2, 0));
    fo_train_desc desc = {0};
    desc.steps    = 2000;
    desc.batch    = 200;
    desc.lr       = 2e-3;
    desc.schedule = FO_COSINE;
    desc.progress = fo_progress_bar;
    fo_train(flow, data, &desc);

    /* density, samples, and the grid of z as decode bends it */
    fo_workspace *ws = fo_workspace_create(fo, flow, 0);
    if (gallery_plane_png(fo, ws, data, "moons.png") == FO_OK)
        puts("moons.png has the picture");

    float  point[3][2] = {{-1.5f, 0}, {0, 0}, {0.5f, 1.5f}}; /* on a moon, between, far away */
    double log_prob[3];
    fo_log_prob_rows(ws, point, FO_F32, 3, 0, log_prob);
    for (int i = 0; i < 3 && !fo_failed(fo); i++)
        printf("log p(%4.1f, %4.1f) = %7.2f\n", (double)point[i][0], (double)point[i][1],
               log_prob[i]);
    int failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "%s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
