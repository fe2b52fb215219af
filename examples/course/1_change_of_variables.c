/* 1 of 5. The change of variables, in one dimension.

   A flow turns samples x into z that look like noise, z = f(x) ~ N(0,1). The density of x is then
       p(x) = N(f(x)) |f'(x)|
   The second factor is the one idea here: where f stretches the line, samples lie closer together
   in x than in z. Forget it and p is no density: it does not add up to 1.
   Build: cc -O2 -I. examples/course/1_change_of_variables.c -lm */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <math.h>
#include <stdio.h>

enum { N = 5000, CELLS = 24 };
static double x[N], log_x[N];

/* f(x) = (log x - mean)/std, so f'(x) = 1/(std x). */
typedef struct line { double mean, std; } line;

static double log_normal(double z) { /* log N(z; 0, 1) */
    return -0.5 * z * z - 0.5 * log(2 * 3.14159265358979);
}

static double log_p(line f, double at, int with_stretch) {
    double z = (log(at) - f.mean) / f.std;
    return log_normal(z) + (with_stretch ? -log(f.std * at) : 0);
}

static double integral(line f, int with_stretch) { /* of p from 0 to 40, by the midpoint rule */
    double sum = 0, step = 1e-3;
    for (int i = 0; i < 40000; i++)
        sum += exp(log_p(f, (i + 0.5) * step, with_stretch)) * step;
    return sum;
}

int main(void) {
    fo_context *fo = fo_open(NULL);
    line        f  = {0, 0};
    for (int i = 0; i < N; i++) { /* waiting times, incomes: skewed, never negative */
        fo_real n;
        fo_random_normal(1, 0, (uint64_t)i, 1, &n);
        log_x[i] = 0.3 + 0.6 * (double)n;
        x[i]     = exp(log_x[i]);
        f.mean += log_x[i] / N;
    }
    for (int i = 0; i < N; i++)
        f.std += (log_x[i] - f.mean) * (log_x[i] - f.mean) / N;
    f.std = sqrt(f.std);

    printf("density of the samples (#) and p(x) (o)\n");
    for (int cell = 0; cell < CELLS; cell++) {
        double width = 0.25, from = cell * width, density = 0;
        char   bar[65];
        for (int i = 0; i < N; i++)
            density += (x[i] >= from && x[i] < from + width) / (N * width);
        for (int c = 0; c < 64; c++)
            bar[c] = c < (int)(100 * density) ? '#' : ' ';
        bar[(int)fmin(63, 100 * exp(log_p(f, from + width / 2, 1)))] = 'o';
        bar[64] = 0;
        printf("%5.2f %s\n", from, bar);
    }
    printf("p adds up to %.4f; without |f'(x)| to %.4f\n", integral(f, 1), integral(f, 0));

    /* Each layer of the library is such an f and brings its log|f'(x)|, its logdet; those of layers
       add up. logit is one: v = 1/2 + 0.9 (u - 1/2), f(u) = log(v/(1-v)), f'(u) = 0.9/(v(1-v)). */
    fo_flow      *flow = fo_flow_parse(fo, "input 1; logit alpha=0.05");
    fo_workspace *ws   = fo_workspace_create(fo, flow, 0);
    double        u = 0.2, v = 0.5 + 0.9 * (u - 0.5), log_prob = 0;
    fo_log_prob_rows(ws, &u, FO_F64, 1, 0, &log_prob);
    printf("log p(%.1f) behind a logit: %.5f by hand, %.5f by the library\n", u,
           log_normal(log(v / (1 - v))) + log(0.9 / (v * (1 - v))), log_prob);

    int failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "%s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
/* Exercise: take the square root instead of the logarithm. What is f'(x) now? p adds up to a little
   less than 1: how much is missing, and why? (A flow has to reach every z.) The answer is checked
   in tests/course.c. */
