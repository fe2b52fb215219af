/* Pictures of what a flow makes and ranks: samples, pictures between pictures, the likeliest and
   unlikeliest images; of 2-D data the density, samples and the bent grid. Free to take. */
#ifndef GALLERY_H
#define GALLERY_H
#include "figures.h"

/* fo_real numbers as what figures draw; NULL: no memory. Frees x. */
static float *gallery_floats(const figures *f, fo_real *x, int64_t n) {
    float  *out = (float *)figure_room(f->fo, n, sizeof *out);
    int64_t i;
    for (i = 0; i < n && out && x; i++)
        out[i] = (float)x[i];
    free(x);
    return out;
}

/* ---- samples.png ----------------------------------------------------------------------------- */

enum { GALLERY_SIDE = 4, GALLERY_MANY = GALLERY_SIDE * GALLERY_SIDE, GALLERY_MOST = 8 };

/* A square of pictures under its name. */
static void gallery_block(const figures *f, plot *p, int x, int zoom, const char *name,
                          const float *v, int n) {
    int i, step = f->page.w * zoom + FIGURE_GAP, down = f->page.h * zoom + FIGURE_GAP;
    plot_text(p, x, FIGURE_TOP, 2, PLOT_INK, name);
    for (i = 0; i < n && v; i++)
        figure_tile(f, p, x + i % GALLERY_SIDE * step,
                    FIGURE_TOP + 22 + i / GALLERY_SIDE * down, zoom, v + i * f->size, NULL,
                    &f->paint);
}

/* Three temperatures beside test images; `note` says how well the same model detects. */
static inline void gallery_samples(const figures *f, const char *path, const char *note) {
    static const double      heat[3] = {0.6, 0.8, 1.0};
    static const char *const name[3] = {"T = 0.6", "T = 0.8", "T = 1.0"};
    const int zoom  = figure_zoom(f, 56);
    const int block = GALLERY_SIDE * (f->page.w * zoom + FIGURE_GAP) + 20;
    const int many = f->set[0].trace.n < GALLERY_MANY ? f->set[0].trace.n : GALLERY_MANY;
    plot      p;
    int       k;
    if (plot_open(&p, 12 + 4 * block, FIGURE_TOP + 22 +
                  GALLERY_SIDE * (f->page.h * zoom + FIGURE_GAP) + 12)) {
        figure_title(&p, "Samples beside test images", note);
        gallery_block(f, &p, 12, zoom, f->set[0].name, f->set[0].trace.x, many);
        for (k = 0; k < 3; k++) {
            fo_real *x = (fo_real *)figure_room(f->fo, GALLERY_MANY * f->size, sizeof *x);
            float   *v;
            if (x)
                fo_sample(f->ws, 1, GALLERY_MANY, heat[k], x);
            v = gallery_floats(f, x, GALLERY_MANY * f->size);
            gallery_block(f, &p, 12 + (k + 1) * block, zoom, name[k], v, GALLERY_MANY);
            free(v);
        }
    }
    plot_save(f->fo, &p, path);
}

/* ---- interpolation.png ----------------------------------------------------------------------- */

/* A square whose corners are four test images; between them, mixtures of their latents. */
static inline void gallery_interpolation(const figures *f, const char *path) {
    enum { SIDE = 7 };
    const int     zoom = figure_zoom(f, 84), step = f->page.w * zoom + FIGURE_GAP;
    const int     down = f->page.h * zoom + FIGURE_GAP;
    const int64_t size = f->size, n = f->set[0].n < 4 ? f->set[0].n : 4;
    fo_real      *z = (fo_real *)figure_room(f->fo, (4 + SIDE * SIDE) * size, sizeof *z);
    fo_real      *x = (fo_real *)figure_room(f->fo, SIDE * SIDE * size, sizeof *x);
    float        *v;
    plot          p;
    int64_t       i;
    int           a, b, k;
    if (z && x && fo_encode(f->ws, f->set[0].data, 0, n, FO_DRAW_MIDDLE, z) == FO_OK) {
        for (k = (int)n; k < 4; k++)
            memcpy(z + k * size, z, (size_t)size * sizeof *z);
        for (a = 0; a < SIDE; a++)
            for (b = 0; b < SIDE; b++) {
                const fo_real u = (fo_real)a / (SIDE - 1), w = (fo_real)b / (SIDE - 1);
                fo_real      *to = z + (4 + a * SIDE + b) * size;
                for (i = 0; i < size; i++)
                    to[i] = (1 - u) * ((1 - w) * z[i] + w * z[size + i]) +
                            u * ((1 - w) * z[2 * size + i] + w * z[3 * size + i]);
            }
        fo_decode(f->ws, z + 4 * size, SIDE * SIDE, x, NULL);
    }
    free(z);
    v = gallery_floats(f, x, SIDE * SIDE * size);
    if (plot_open(&p, 24 + SIDE * step, FIGURE_TOP + SIDE * down + 12)) {
        figure_title(&p, "Between four images",
                     "the corners are test images; between them, mixtures of their latents");
        for (k = 0; k < SIDE * SIDE && v; k++) {
            int corner = k == 0 || k == SIDE - 1 || k == SIDE * (SIDE - 1) || k == SIDE * SIDE - 1;
            int left = 12 + k % SIDE * step, top = FIGURE_TOP + k / SIDE * down;
            if (corner)
                plot_box(&p, left - 3, top - 3, step + 2, down + 2, plot_rgb(236, 152, 62));
            figure_tile(f, &p, left, top, zoom, v + k * size, NULL, &f->paint);
        }
    }
    free(v);
    plot_save(f->fo, &p, path);
}

/* ---- most.png -------------------------------------------------------------------------------- */

typedef struct gallery_rank { double log_prob; int64_t at; } gallery_rank;

static int gallery_order(const void *a, const void *b) {
    const gallery_rank *x = (const gallery_rank *)a, *y = (const gallery_rank *)b;
    if (x->log_prob != y->log_prob)
        return x->log_prob > y->log_prob ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

/* The likeliest (or, from the other end, the unlikeliest) images of a set with their bpd. */
static void gallery_ranked(const figures *f, plot *p, int y, int zoom, const figure_set *set,
                           const gallery_rank *rank, int many, int last) {
    float   *v   = (float *)figure_room(f->fo, f->size, sizeof *v);
    fo_real *x   = (fo_real *)figure_room(f->fo, f->size, sizeof *x);
    int      i;
    int64_t  k;
    char     text[24];
    snprintf(text, sizeof text, "%.15s", set->name);
    plot_text(p, 12, y + f->page.h * zoom / 2 - 12, 1, PLOT_INK, text);
    plot_text(p, 12, y + f->page.h * zoom / 2, 1, PLOT_SOFT, last ? "least likely" : "most likely");
    for (i = 0; i < many && x && v; i++) {
        const gallery_rank *r    = &rank[last ? set->n - 1 - i : i];
        int                 left = 12 + 104 + i * (f->page.w * zoom + FIGURE_GAP);
        if (fo_data_get(set->data, r->at, x) != FO_OK)
            break;
        for (k = 0; k < f->size; k++)
            v[k] = (float)x[k];
        figure_tile(f, p, left, y, zoom, v, NULL, &f->paint);
        snprintf(text, sizeof text, "%.2f", fo_bpd(r->log_prob, f->shape));
        plot_centre(p, left + f->page.w * zoom / 2, y + f->page.h * zoom + 3, 80, 1, PLOT_SOFT,
                    text);
    }
    free(v);
    free(x);
}

static inline void gallery_most(const figures *f, const char *path) {
    const int zoom = figure_zoom(f, 84), down = f->page.h * zoom + 18;
    plot      p;
    int       k, y = FIGURE_TOP;
    int64_t   i;
    if (plot_open(&p, 12 + 104 + GALLERY_MOST * (f->page.w * zoom + FIGURE_GAP) + 12,
                  FIGURE_TOP + 2 * f->sets * down + f->sets * 10)) {
        figure_title(&p, "What the model finds most and least likely",
                     "below each image its bits per dimension: fewer is likelier");
        for (k = 0; k < f->sets; k++, y += 2 * down + 10) {
            const figure_set *set  = &f->set[k];
            const int         many = set->n < GALLERY_MOST ? (int)set->n : GALLERY_MOST;
            gallery_rank     *rank = (gallery_rank *)figure_room(f->fo, set->n, sizeof *rank);
            for (i = 0; i < set->n && rank; i++)
                rank[i].log_prob = set->log_prob[i], rank[i].at = i;
            if (rank) {
                qsort(rank, (size_t)set->n, sizeof *rank, gallery_order);
                gallery_ranked(f, &p, y, zoom, set, rank, many, 0);
                gallery_ranked(f, &p, y + down, zoom, set, rank, many, 1);
            }
            free(rank);
        }
    }
    plot_save(f->fo, &p, path);
}

/* ---- plane.png ------------------------------------------------------------------------------- */

enum { PLANE_SIDE = 320, PLANE_POINTS = 1500, PLANE_LINES = 13, PLANE_STEPS = 160 };

typedef struct gallery_plane { double x, y, scale; int left, top; } gallery_plane;

static void gallery_point(plot *p, const gallery_plane *g, double x, double y, int size,
                          plot_colour c) {
    double px = (x - g->x) * g->scale, py = PLANE_SIDE - (y - g->y) * g->scale;
    if (px >= 0 && py >= 0 && px < PLANE_SIDE - 1 && py < PLANE_SIDE - 1)
        plot_box(p, g->left + (int)px, g->top + (int)py, size, size, c);
}

/* A square window around the data. */
static gallery_plane gallery_window(const fo_data *data) {
    double        low[2] = {HUGE_VAL, HUGE_VAL}, high[2] = {-HUGE_VAL, -HUGE_VAL}, side;
    gallery_plane g;
    int64_t       r;
    int           k;
    fo_real       x[2];
    for (r = 0; r < fo_data_count(data) && fo_data_get(data, r, x) == FO_OK; r++)
        for (k = 0; k < 2; k++) {
            low[k]  = fmin(low[k], (double)x[k]);
            high[k] = fmax(high[k], (double)x[k]);
        }
    side    = 1.3 * fmax(high[0] - low[0], high[1] - low[1]);
    side    = side > 0 ? side : 1;
    g.x     = (low[0] + high[0] - side) / 2;
    g.y     = (low[1] + high[1] - side) / 2;
    g.scale = PLANE_SIDE / side;
    g.left  = g.top = 0;
    return g;
}

/* log p at every second pixel, from the highest down to 8 nats below it. */
static void gallery_density(fo_context *fo, fo_workspace *ws, plot *p, const gallery_plane *g) {
    enum { SIDE = PLANE_SIDE / 2 };
    fo_real *x        = (fo_real *)figure_room(fo, SIDE * SIDE * 2, sizeof *x);
    double  *log_prob = (double *)figure_room(fo, SIDE * SIDE, sizeof *log_prob), most = -HUGE_VAL;
    plot_look look;
    int      i;
    for (i = 0; i < SIDE * SIDE && x; i++) {
        x[2 * i]     = (fo_real)(g->x + (2 * (i % SIDE) + 1) / g->scale);
        x[2 * i + 1] = (fo_real)(g->y + (PLANE_SIDE - 2 * (i / SIDE) - 1) / g->scale);
    }
    if (x && log_prob && fo_log_prob_rows(ws, x, sizeof *x == 8 ? FO_F64 : FO_F32, SIDE * SIDE, 0,
                                          log_prob) == FO_OK) {
        for (i = 0; i < SIDE * SIDE; i++)
            most = fmax(most, log_prob[i]);
        look = plot_look_of(plot_sequential, 0, most - 8, most);
        for (i = 0; i < SIDE * SIDE; i++)
            plot_box(p, g->left + i % SIDE * 2, g->top + i / SIDE * 2, 2, 2,
                     look.map(plot_share(&look, log_prob[i])));
        plot_bar(p, g->left, g->top + PLANE_SIDE + 8, 160, &look);
    }
    free(x);
    free(log_prob);
}

/* The data in grey, samples over them. */
static void gallery_scatter(fo_context *fo, fo_workspace *ws, const fo_data *data, plot *p,
                            const gallery_plane *g) {
    fo_real *x = (fo_real *)figure_room(fo, PLANE_POINTS * 2, sizeof *x), at[2];
    int64_t  r;
    for (r = 0; r < fo_data_count(data) && r < PLANE_POINTS; r++)
        if (fo_data_get(data, r, at) == FO_OK)
            gallery_point(p, g, (double)at[0], (double)at[1], 2, plot_rgb(150, 156, 166));
    if (x && fo_sample(ws, 1, PLANE_POINTS, 1, x) == FO_OK)
        for (r = 0; r < PLANE_POINTS; r++)
            gallery_point(p, g, (double)x[2 * r], (double)x[2 * r + 1], 2, plot_rgb(190, 70, 40));
    free(x);
}

/* Straight lines of z, half a standard deviation apart, as decode bends them. */
static void gallery_grid(fo_context *fo, fo_workspace *ws, plot *p, const gallery_plane *g) {
    const int n = 2 * PLANE_LINES * PLANE_STEPS;
    fo_real  *z = (fo_real *)figure_room(fo, 4 * n, sizeof *z), *x = z ? z + 2 * n : NULL;
    int       i;
    for (i = 0; i < n && z; i++) {
        double along = -3 + 6.0 * (i % PLANE_STEPS) / (PLANE_STEPS - 1);
        double across = -3 + 6.0 * (i / PLANE_STEPS % PLANE_LINES) / (PLANE_LINES - 1);
        int    turned = i >= n / 2;
        z[2 * i + turned]     = (fo_real)along;
        z[2 * i + 1 - turned] = (fo_real)across;
    }
    if (z && fo_decode(ws, z, n, x, NULL) == FO_OK)
        for (i = 0; i + 1 < n; i++) {
            double from[2], to[2], radius = hypot((double)z[2 * i], (double)z[2 * i + 1]);
            int    k;
            for (k = 0; k < 2; k++)
                from[k] = (double)x[2 * i + k], to[k] = (double)x[2 * i + 2 + k];
            for (k = 0; k < 24 && (i + 1) % PLANE_STEPS; k++)
                gallery_point(p, g, from[0] + (to[0] - from[0]) * k / 24,
                              from[1] + (to[1] - from[1]) * k / 24, 1,
                              plot_sequential(0.85 - radius / 6));
        }
    free(z);
}

/* Density, samples and grid of a flow on two numbers a sample. */
static inline fo_result gallery_plane_png(fo_context *fo, fo_workspace *ws, const fo_data *data,
                                   const char *path) {
    static const char *const names[3] = {"log p", "data (grey), samples", "the grid of z, decoded"};
    gallery_plane g = gallery_window(data);
    plot          p;
    int           k;
    if (plot_open(&p, 12 + 3 * (PLANE_SIDE + 16), 40 + PLANE_SIDE + 44)) {
        g.top = 36;
        for (k = 0; k < 3; k++) {
            g.left = 12 + k * (PLANE_SIDE + 16);
            plot_text(&p, g.left, 12, 2, PLOT_INK, names[k]);
            plot_box(&p, g.left, g.top, PLANE_SIDE, PLANE_SIDE, plot_rgb(240, 240, 238));
            if (k == 0)
                gallery_density(fo, ws, &p, &g);
            else if (k == 1)
                gallery_scatter(fo, ws, data, &p, &g);
            else
                gallery_grid(fo, ws, &p, &g);
        }
        g.left = 12;
    }
    return plot_save(fo, &p, path);
}

#endif /* GALLERY_H */
