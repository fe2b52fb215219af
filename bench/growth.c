/* How time and memory grow: "bench growth-WHAT-N METRIC VALUE UNIT", a line each.

   growth [--threads N]
     images     time of scoring N images with mlp-cycle
     couplings  time of a training step, batch 32, of N couplings with ResNets, and the memory
                beyond weights, gradients and moments; then the same under a budget of 60 MB
   Times are medians of 7 after a warm-up. Memory is counted by the allocator, not by the system.
   growth.awk draws the lines. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <stdlib.h>
#include <string.h>

enum { IMAGES = 4096, SIDE = 28, SIZE = SIDE * SIDE, BATCH = 32, STEPS = 9 };
static unsigned char pixels[IMAGES][SIZE];
static double        log_prob[IMAGES];

static void line(const char *what, int n, const char *metric, double value, const char *unit) {
    printf("bench growth-%s-%d %s %.4g %s\n", what, n, metric, value, unit);
    fflush(stdout);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *value, int n) {
    qsort(value, (size_t)n, sizeof *value, by_value);
    return value[n / 2];
}

static void grow_images(fo_context *fo) {
    fo_shape      shape = {1, SIDE, SIDE};
    fo_flow      *flow  = fo_flow_preset(fo, "mlp-cycle", shape);
    fo_workspace *ws    = fo_workspace_create(fo, flow, 256);
    double        took[8];
    int           n, repeat;
    for (n = 1; n <= IMAGES && !fo_failed(fo); n *= 4) {
        for (repeat = 0; repeat < 8; repeat++) {
            double start = fo_clock();
            fo_log_prob_rows(ws, pixels, FO_U8, n, 0, log_prob);
            took[repeat] = 1e3 * (fo_clock() - start);
        }
        line("images", n, "score", median(took + 1, 7), "ms");
    }
    fo_flow_free(flow);
}

typedef struct steps { int n; double at[STEPS]; } steps;

/* The gradients hook runs once a step. */
static int on_step(void *user, fo_real *grad, int64_t count) {
    steps *s = (steps *)user;
    (void)grad, (void)count;
    if (s->n < STEPS)
        s->at[s->n++] = fo_clock();
    return 0;
}

static void grow_couplings(fo_desc open, const char *what, double memory_mb) {
    fo_shape shape = {1, SIDE, SIDE};
    int      n, i;
    for (n = 1; n <= 32; n *= 2) {
        fo_context   *fo = fo_open(&open);
        char          text[128];
        fo_flow      *flow;
        fo_train_desc desc;
        steps         s;
        int64_t       weights = 0;
        size_t        before;
        snprintf(text, sizeof text, "input 1x28x28\ndequantize\nlogit\n%d* coupling "
                 "mask=checkerboard:%% net=resnet channels=16 blocks=2", n);
        flow = fo_flow_parse(fo, text);
        memset(&desc, 0, sizeof desc);
        memset(&s, 0, sizeof s);
        desc.batch = BATCH, desc.steps = STEPS, desc.memory_mb = memory_mb;
        desc.gradients = on_step, desc.user = &s;
        fo_params(flow, &weights);
        before = fo_memory(fo).now;
        fo_train(flow, fo_data_view(fo, pixels, FO_U8, IMAGES, shape), &desc);
        if (fo_failed(fo) || s.n < STEPS) {
            fprintf(stderr, "growth: %d couplings: %s\n", n, fo_error(fo));
        } else {
            double took[STEPS - 1], state = 3 * (double)weights * (double)sizeof(fo_real);
            for (i = 0; i < STEPS - 1; i++)
                took[i] = 1e3 * (s.at[i + 1] - s.at[i]);
            line(what, n, "step", median(took + 1, STEPS - 2), "ms");
            line(what, n, "memory", ((double)(fo_memory(fo).peak - before) - state) / 1048576,
                 "MB");
        }
        fo_close(fo);
    }
}

int main(int argc, char **argv) {
    fo_desc     desc;
    fo_context *fo;
    int64_t     i;
    int         failed;
    memset(&desc, 0, sizeof desc);
    if (argc == 3 && strcmp(argv[1], "--threads") == 0)
        desc.threads = atoi(argv[2]);
    else if (argc != 1)
        return fprintf(stderr, "usage: growth [--threads N]\n"), 2;
    for (i = 0; i < (int64_t)IMAGES * SIZE; i++) /* speed does not depend on what they show */
        pixels[i / SIZE][i % SIZE] = (unsigned char)(i * 2654435761u >> 24);
    fo = fo_open(&desc);
    grow_images(fo);
    grow_couplings(desc, "couplings", -1);
    grow_couplings(desc, "budget", 60);
    failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "growth: %s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
