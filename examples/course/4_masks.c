/* 4 of 5. What a coupling may see, and how flows fail.

   A mask says what a coupling conditions on (o), what it changes (#) and what passes (.). Under a
   checkerboard every changed pixel has its neighbours in sight: s and t copy them, and whatever is
   smooth becomes likely, clothes or not. Under a cycle mask a quadrant must be guessed from
   another one: there is nothing to copy.
   Train both on textured silhouettes, score thin strokes: AUROC, the chance that a stroke scores
   higher (-log p, more OOD) than a silhouette, is far below a half under the checkerboard.
   Build: cc -O2 -I. examples/course/4_masks.c -lm */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <stdio.h>
#include "../synthetic.h"

enum { TRAIN = 2000, TEST = 300 };
static unsigned char train[TRAIN][SYNTHETIC_SIZE], in[TEST][SYNTHETIC_SIZE],
    ood[TEST][SYNTHETIC_SIZE];

static void show_masks(fo_context *fo) {
    const char    *kinds[] = {"checkerboard", "horizontal", "cycle"};
    fo_shape       small   = {1, 4, 4};
    unsigned char  map[16];
    char           text[64];
    for (int k = 0; k < 3; k++)
        for (int phase = 0; phase < 2; phase++) {
            fo_mask_fill(fo, fo_mask_named(kinds[k], phase), small, map);
            fo_mask_print(map, small, text, sizeof text);
            printf("%s, phase %d\n%s\n", kinds[k], phase, text);
        }
}

/* Trains the couplings on silhouettes and prints how well -log p tells strokes from them. */
static void try_couplings(fo_context *fo, const char *couplings, int64_t steps) {
    fo_shape image = {1, SYNTHETIC_SIDE, SYNTHETIC_SIDE};
    char     text[256];
    snprintf(text, sizeof text, "input 1x28x28; dequantize; logit\n%s", couplings);
    fo_flow      *flow = fo_flow_parse(fo, text);
    fo_train_desc desc = {0};
    desc.steps    = steps;
    desc.batch    = 32;
    desc.progress = fo_progress_bar;
    fo_train(flow, fo_data_view(fo, train, FO_U8, TRAIN, image), &desc);

    fo_workspace *ws = fo_workspace_create(fo, flow, 0);
    fo_metrics    metrics;
    double        score_in[TEST], score_ood[TEST], bpd_in = 0, bpd_ood = 0;
    fo_score(ws, fo_data_view(fo, in, FO_U8, TEST, image), 0, TEST, "likelihood", score_in);
    fo_score(ws, fo_data_view(fo, ood, FO_U8, TEST, image), 0, TEST, "likelihood", score_ood);
    if (fo_failed(fo) || fo_measure(fo, score_in, TEST, score_ood, TEST, &metrics) != FO_OK)
        return;
    for (int i = 0; i < TEST; i++) {
        bpd_in += fo_bpd(-score_in[i], image) / TEST;
        bpd_ood += fo_bpd(-score_ood[i], image) / TEST;
    }
    printf("%s\n  bits a pixel: silhouettes %.2f, strokes %.2f; AUROC %.3f\n", couplings, bpd_in,
           bpd_ood, metrics.auroc);
}

int main(void) {
    fo_context *fo = fo_open(NULL);
    for (int i = 0; i < TRAIN; i++)
        synthetic_silhouette((uint64_t)i, train[i]);
    for (int i = 0; i < TEST; i++) {
        synthetic_silhouette((uint64_t)(TRAIN + i), in[i]);
        synthetic_strokes((uint64_t)i, ood[i]);
    }
    show_masks(fo);
    try_couplings(fo, "4* coupling mask=checkerboard:% net=resnet channels=8 blocks=1 norm=0", 60);
    try_couplings(fo, "4* coupling mask=cycle:% net=mlp hidden=128 bottleneck=10", 500);
    int failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "%s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
/* Exercise: how many couplings does it take until every pixel of z depends on every pixel of x,
   under each mask? Count by hand with a small program: reach[i][j] starts as i == j, and a coupling
   lets every changed i reach what its conditioned elements reach. The answer is in
   tests/course.c. */
