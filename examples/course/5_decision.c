/* 5 of 5. The cure and the decision.

   A flow that must see the whole picture through a bottleneck still finds simple pictures likely,
   because they are: an empty square costs few bits in any code. Take the length of the picture's
   own lossless code off, -log p(x) - L(x), and what is left is how surprised the flow is beyond
   that (Serra et al. 2020). Then decide: samples that were never trained on say how high that
   score gets for good pictures, and the rank of a new one among them is its p-value:
       p = (1 + #{calibration scores at least as high}) / (n + 1),  P(p <= alpha) <= alpha.
   Build: cc -O2 -I. examples/course/5_decision.c -lm */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <stdio.h>
#include "../synthetic.h"

enum { TRAIN = 2000, HELD_OUT = 1000, TEST = 500 };
static const double  ALPHA = 0.05;
static unsigned char train[TRAIN][SYNTHETIC_SIZE], held_out[HELD_OUT][SYNTHETIC_SIZE],
    in[TEST][SYNTHETIC_SIZE], ood[TEST][SYNTHETIC_SIZE];

static double share_of_alarms(const double *p, double limit) {
    int alarms = 0;
    for (int i = 0; i < TEST; i++)
        alarms += p[i] <= limit;
    return (double)alarms / TEST;
}

int main(void) {
    fo_context *fo    = fo_open(NULL);
    fo_shape    image = {1, SYNTHETIC_SIDE, SYNTHETIC_SIDE};
    for (int i = 0; i < TRAIN; i++)
        synthetic_silhouette((uint64_t)i, train[i]);
    for (int i = 0; i < HELD_OUT; i++)
        synthetic_silhouette((uint64_t)(TRAIN + i), held_out[i]);
    for (int i = 0; i < TEST; i++) {
        synthetic_silhouette((uint64_t)(TRAIN + HELD_OUT + i), in[i]);
        synthetic_strokes((uint64_t)i, ood[i]);
    }
    fo_flow *flow = fo_flow_parse(fo, "input 1x28x28; dequantize; logit\n"
                                      "4* coupling mask=cycle:% net=mlp hidden=128 bottleneck=10");
    fo_train_desc desc = {0};
    desc.steps    = 300;
    desc.batch    = 32;
    desc.progress = fo_progress_bar;
    fo_train(flow, fo_data_view(fo, train, FO_U8, TRAIN, image), &desc);
    fo_calibrate(flow, fo_data_view(fo, held_out, FO_U8, HELD_OUT, image), NULL);

    fo_workspace *ws       = fo_workspace_create(fo, flow, 0);
    fo_data      *data_in  = fo_data_view(fo, in, FO_U8, TEST, image);
    fo_data      *data_ood = fo_data_view(fo, ood, FO_U8, TEST, image);
    const char   *names[]  = {"likelihood", "complexity"};
    double        score_in[TEST], score_ood[TEST], p_in[TEST], p_ood[TEST], limit = 0;
    fo_metrics    metrics;
    for (int s = 0; s < 2; s++) {
        fo_score(ws, data_in, 0, TEST, names[s], score_in);
        fo_score(ws, data_ood, 0, TEST, names[s], score_ood);
        if (fo_measure(fo, score_in, TEST, score_ood, TEST, &metrics) == FO_OK)
            printf("%-10s AUROC %.3f\n", names[s], metrics.auroc);
    }
    fo_detect(ws, data_in, 0, TEST, p_in, NULL, NULL);
    fo_detect(ws, data_ood, 0, TEST, p_ood, NULL, NULL);
    fo_detector_limit(flow, ALPHA, 0, &limit); /* with a confidence it would be lower */
    int failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "%s\n", fo_error(fo));
    else
        printf("at alpha %.2f: alarms on %.1f %% of new silhouettes, %.1f %% of strokes\n", ALPHA,
               100 * share_of_alarms(p_in, limit), 100 * share_of_alarms(p_ood, limit));
    fo_close(fo);
    return failed;
}
/* Exercise: the promise holds for any score, a bad one too. Calibrate with the likelihood alone
   (fo_detector_desc.scores): what happens to the false alarms, and what to the alarms on strokes?
   The answer is in tests/course.c. */
