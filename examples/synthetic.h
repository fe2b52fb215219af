/* The built-in synthetic pair of image sets, 1x28x28, seeds fixed: textured filled silhouettes as
   in-distribution, thin bright strokes on black as out-of-distribution. Like FashionMNIST against
   MNIST in one respect that matters: the strokes are simpler, so that a flow which learns local
   pixel correlations finds them more likely than what it was trained on. */
#ifndef SYNTHETIC_H
#define SYNTHETIC_H
#include <math.h>
#include "flowood.h"

enum { SYNTHETIC_SIDE = 28, SYNTHETIC_SIZE = SYNTHETIC_SIDE * SYNTHETIC_SIDE };

static double synthetic_u(uint64_t set, uint64_t image, uint64_t k) {
    fo_real u;
    fo_random_uniform(2026 + set, image, k, 1, &u);
    return (double)u;
}

/* A garment-like shape: mirrored left and right, its half width a random curve of the row, filled
   with a weave of random period and per-pixel grain. */
static void synthetic_silhouette(uint64_t image, unsigned char *pixels) {
    double r[12];
    for (uint64_t k = 0; k < 12; k++)
        r[k] = synthetic_u(0, image, k);
    double top = 1 + 9 * r[0], height = 12 + (17 - top) * r[1], middle = 13.5 + 6 * (r[2] - 0.5);
    double shoulder = 4 + 9 * r[3], hem = 4 + 9 * r[4], waist = 5 * r[5], base = 60 + 150 * r[6];
    double period = 2 + 6 * r[7], slant = 2 * r[8] - 1, depth = 10 + 50 * r[9];
    int    trousers = r[10] > 0.65;
    for (int y = 0; y < SYNTHETIC_SIDE; y++)
        for (int x = 0; x < SYNTHETIC_SIDE; x++) {
            double v = (y - top) / height, u = fabs(x - middle);
            double width  = shoulder + (hem - shoulder) * v - waist * sin(3.14159 * v);
            int    inside = v >= 0 && v <= 1 && u < width && !(trousers && v > 0.4 && u < 1.6);
            double weave  = sin(6.28318 * (y + slant * x) / period);
            double grain  = 60 * (synthetic_u(0, image, 16 + (uint64_t)(y * 28 + x)) - 0.5);
            double grey   = inside ? base + depth * weave + grain : 0;
            pixels[y * SYNTHETIC_SIDE + x] = (unsigned char)fmin(255, fmax(0, grey));
        }
}

/* One or two thin arcs, bright on black, with soft edges. */
static void synthetic_strokes(uint64_t image, unsigned char *pixels) {
    double ink[SYNTHETIC_SIZE] = {0};
    int    strokes = 1 + (synthetic_u(1, image, 0) > 0.5);
    for (int s = 0; s < strokes; s++) {
        uint64_t k = 8 * (uint64_t)s;
        double   x = 8 + 12 * synthetic_u(1, image, k + 1);
        double   y = 8 + 12 * synthetic_u(1, image, k + 2);
        double   angle = 6.28318 * synthetic_u(1, image, k + 3);
        double   turn  = 0.5 * (synthetic_u(1, image, k + 4) - 0.5);
        for (int step = 0; step < 40; step++, angle += turn * 0.3) {
            x += 0.3 * cos(angle), y += 0.3 * sin(angle);
            for (int i = (int)y - 1; i <= (int)y + 2; i++)
                for (int j = (int)x - 1; j <= (int)x + 2; j++)
                    if (i >= 3 && i < 25 && j >= 3 && j < 25) {
                        double d2 = (i - y) * (i - y) + (j - x) * (j - x);
                        ink[i * SYNTHETIC_SIDE + j] = fmax(ink[i * SYNTHETIC_SIDE + j],
                                                           exp(-d2 / 0.9));
                    }
        }
    }
    for (int i = 0; i < SYNTHETIC_SIZE; i++)
        pixels[i] = (unsigned char)(255 * (ink[i] > 0.15 ? ink[i] : 0));
}
#endif
