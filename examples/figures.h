/* Pictures of a flow at work, as in the paper, from the public part of flowood.h: what each
   coupling sees and guesses, masks, latents. More are in gallery.h. Free to take, with plot.h. */
#ifndef FIGURES_H
#define FIGURES_H
#include "flowood.h"
#include "plot.h"

enum {
    FIGURE_SETS   = 9,  /* in-distribution, and as many others                            */
    FIGURE_SCORES = 16, /* of each sample                                                 */
    FIGURE_LAYERS = 16, /* couplings that are drawn: of more, every second, third ...     */
    FIGURE_TRACED = 16, /* samples of a set that are looked into; the first few are drawn */
    FIGURE_DRAWS  = 40, /* of dequantization, for the mean latent                         */
    FIGURE_LATENT = 3   /* beside fo_state: what a split has taken out                    */
};

/* What one coupling did, of n samples in the layout of the picture: every number at the place that
   its element came from. */
typedef struct figure_layer {
    int            index;
    char           mask[24];
    unsigned char *state, *unseen, *kept; /* [D] fo_state or FIGURE_LATENT; 1 where it is not
                                             conditioned on; 1 where it does not change */
    float         *before, *s, *guess, *after; /* [n][D]; guess is -t */
} figure_layer;

typedef struct figure_trace {
    int          n, layers, every, couplings;
    int         *place; /* [D] of every latent */
    float       *x;     /* [n][D] the samples */
    figure_layer layer[FIGURE_LAYERS];
} figure_trace;

typedef struct figure_set {
    const char   *name;
    fo_data      *data;
    int64_t       n;
    double       *score[FIGURE_SCORES], *log_prob, *p; /* [n]; p of the detector, or NULL */
    figure_trace  trace;
} figure_set;

/* Everything that the figures look at. Set 0 is in-distribution. */
typedef struct figures {
    fo_context   *fo;
    fo_flow      *flow;
    fo_workspace *ws;
    fo_shape      shape, page; /* of a sample; of how it is drawn: a vector in rows of 32 */
    int64_t       size;
    int           sets, scores;
    const char   *score_name[FIGURE_SCORES];
    figure_set    set[FIGURE_SETS];
    plot_look     paint;   /* of the samples themselves */
} figures;

/* ---- what every layer did -------------------------------------------------------------------- */

static void *figure_room(fo_context *fo, int64_t n, size_t size) {
    void *room = calloc((size_t)(n > 0 ? n : 1), size);
    if (room == NULL)
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for figures");
    return room;
}

/* The word behind "mask=" in a layer's text. */
static void figure_mask_name(const char *text, char *name, size_t size) {
    const char *at = strstr(text, "mask=");
    int         n  = at ? (int)strcspn(at + 5, " ") : 0;
    snprintf(name, size, "%.*s", n, at ? at + 5 : "");
}

static int figure_layer_open(fo_context *fo, figure_layer *l, const fo_view *v, int n) {
    const int64_t size = v->size;
    const int64_t width = fo_shape_count(v->layer->shape);
    float        *room  = (float *)figure_room(fo, 4 * n * size, sizeof *room);
    int64_t       i;
    l->state = (unsigned char *)figure_room(fo, 3 * size, 1);
    if (room == NULL || l->state == NULL) {
        free(room);
        return 0;
    }
    l->unseen = l->state + size, l->kept = l->unseen + size;
    l->before = room, l->s = room + n * size;
    l->guess  = l->s + n * size, l->after = l->guess + n * size;
    l->index  = v->layer->index;
    figure_mask_name(fo_flow_layer_text(v->layer->flow, l->index), l->mask, sizeof l->mask);
    for (i = 0; i < size; i++) {
        int place       = v->place_before[i];
        l->state[place] = (unsigned char)(i < width ? v->layer->map[i] : FIGURE_LATENT);
        l->unseen[place] = l->state[place] != FO_CONDITION;
        l->kept[place]   = l->state[place] != FO_CHANGE;
    }
    return 1;
}

typedef struct figure_tracing { fo_context *fo; figure_trace *trace; int seen; } figure_tracing;

/* One view: of a coupling that is drawn, its numbers go where their elements came from. */
static int figure_take(void *user, const fo_view *v) {
    figure_tracing *t = (figure_tracing *)user;
    figure_layer   *l;
    int64_t         r, i, to;
    if (v->layer->index + 1 == fo_flow_layers(v->layer->flow))
        memcpy(t->trace->place, v->place_after, (size_t)v->size * sizeof *t->trace->place);
    if (v->t == NULL)
        return 0;
    if (t->seen++ % t->trace->every)
        return 0;
    l = &t->trace->layer[t->trace->layers];
    if (!figure_layer_open(t->fo, l, v, t->trace->n))
        return 1;
    t->trace->layers++;
    for (r = 0; r < v->rows; r++)
        for (i = 0; i < v->size; i++) {
            to = r * v->size + v->place_before[i];
            l->before[to] = (float)v->before[r * v->size + i];
            l->s[to]      = (float)v->s[r * v->size + i];
            l->guess[to]  = (float)-v->t[r * v->size + i];
            l->after[to]  = (float)v->after[r * v->size + i];
        }
    return 0;
}

/* Samples first .. first+n-1 as numbers. */
static float *figure_samples(const figures *f, const fo_data *data, int64_t n) {
    float   *x   = (float *)figure_room(f->fo, n * f->size, sizeof *x);
    fo_real *row = (fo_real *)figure_room(f->fo, f->size, sizeof *row);
    int64_t  r, i;
    for (r = 0; r < n && x && row && fo_data_get(data, r, row) == FO_OK; r++)
        for (i = 0; i < f->size; i++)
            x[r * f->size + i] = (float)row[i];
    free(row);
    return x;
}

/* Looks into the first samples of a set. */
static inline void figure_trace_set(figures *f, figure_set *set) {
    figure_trace  *t = &set->trace;
    figure_tracing tracing;
    int            i;
    t->n     = set->n < FIGURE_TRACED ? (int)set->n : FIGURE_TRACED;
    t->place = (int *)figure_room(f->fo, f->size, sizeof *t->place);
    t->x     = figure_samples(f, set->data, t->n);
    for (i = 0; i < fo_flow_layers(f->flow); i++)
        t->couplings += fo_flow_mask(f->flow, i) != NULL;
    t->every      = (t->couplings + FIGURE_LAYERS - 1) / FIGURE_LAYERS;
    t->every      = t->every > 0 ? t->every : 1;
    tracing.fo    = f->fo;
    tracing.trace = t;
    tracing.seen  = 0;
    if (t->place && t->x)
        fo_trace(f->ws, set->data, 0, t->n, 0, figure_take, &tracing);
}

static inline void figure_trace_free(figure_trace *t) {
    int i;
    for (i = 0; i < t->layers; i++) {
        free(t->layer[i].state);
        free(t->layer[i].before);
    }
    free(t->place);
    free(t->x);
    memset(t, 0, sizeof *t);
}

/* ---- what figures have in common ------------------------------------------------------------- */

enum { FIGURE_GAP = 4, FIGURE_TOP = 54 };

/* The whole zoom that brings a picture's longer side nearest to so many pixels. */
static int figure_zoom(const figures *f, int side) {
    int most = f->page.h > f->page.w ? f->page.h : f->page.w;
    return side / most > 0 ? (side + most / 2) / most : 1;
}

/* How many samples of set k are drawn where `most` fit in all. */
static int figure_shown(const figures *f, int k, int most) {
    int share = most / f->sets > 0 ? most / f->sets : k < most, n = f->set[k].trace.n;
    return share < n ? share : n;
}

static void figure_title(plot *p, const char *title, const char *note) {
    plot_text(p, 12, 10, 2, PLOT_INK, title);
    plot_text(p, 12, 32, 1, PLOT_SOFT, note);
}

/* One range for the numbers of all couplings, from the samples in distribution: what lies beyond is
   drawn like its ends. */
static double figure_range(const figures *f, int which, double share) {
    const figure_trace *t    = &f->set[0].trace;
    double              most = 0;
    int                 i, r;
    for (i = 0; i < t->layers; i++) {
        const figure_layer *l = &t->layer[i];
        const float        *v = which == 0 ? l->s : which == 1 ? l->guess : l->after;
        for (r = 0; r < t->n; r++)
            most = fmax(most, plot_range(v + r * f->size, which == 2 ? NULL : l->kept, f->size,
                                         share));
    }
    return most > 0 ? most : 1;
}

static void figure_tile(const figures *f, plot *p, int x, int y, int zoom, const float *v,
                        const unsigned char *hide, const plot_look *look) {
    plot_tile(p, x, y, zoom, f->page, v, hide, look);
}

/* Only what is not hidden: the rest of the tile stays. */
static void figure_overlay(const figures *f, plot *p, int x, int y, int zoom, const float *v,
                           const unsigned char *hide, const plot_look *look) {
    int i, k, pixels = f->page.h * f->page.w;
    for (i = 0; i < pixels; i++) {
        int hidden = 0;
        for (k = 0; k < f->page.c; k++)
            hidden += hide[k * pixels + i] != 0;
        if (hidden < f->page.c)
            plot_box(p, x + i % f->page.w * zoom, y + i / f->page.w * zoom, zoom, zoom,
                     plot_pixel(look, v, hide, f->page, i));
    }
}

/* ---- couplings.png --------------------------------------------------------------------------- */

/* seen: the state in shades of grey. */
typedef struct figure_looks { plot_look s, guess, state, seen; } figure_looks;

static figure_looks figure_all_looks(const figures *f) {
    figure_looks looks;
    looks.s     = plot_signed(figure_range(f, 0, 0.99));
    looks.guess = plot_signed(figure_range(f, 1, 0.98));
    looks.state = plot_signed(figure_range(f, 2, 0.98));
    looks.seen  = plot_shades(looks.state.low, looks.state.high);
    return looks;
}

/* Five columns of one sample: the picture, what is conditioned on, s, -t, the state after. */
static void figure_couplings_panel(const figures *f, plot *p, int x, const figure_set *set, int r,
                                   int zoom, const figure_looks *looks) {
    static const char *const heads[5] = {"input", "sees", "s", "-t", "after"};
    const figure_trace *t = &set->trace;
    const int step = f->page.w * zoom + FIGURE_GAP, down = f->page.h * zoom + FIGURE_GAP;
    const int foot = FIGURE_TOP + 36 + t->layers * down + 4;
    char      title[80];
    int       i, c;
    snprintf(title, sizeof title, "%.40s %d", set->name, r);
    plot_text(p, x, FIGURE_TOP, 2, PLOT_INK, title);
    for (c = 0; c < 5; c++)
        plot_centre(p, x + c * step + f->page.w * zoom / 2, FIGURE_TOP + 24, step, 1, PLOT_SOFT,
                    heads[c]);
    for (i = 0; i < t->layers; i++) {
        const figure_layer *l  = &t->layer[i];
        const int64_t       at = r * f->size;
        int                 y  = FIGURE_TOP + 38 + i * down;
        figure_tile(f, p, x, y, zoom, t->x + at, NULL, &f->paint);
        figure_tile(f, p, x + step, y, zoom, l->before + at, l->unseen, &looks->state);
        figure_tile(f, p, x + 2 * step, y, zoom, l->s + at, l->kept, &looks->s);
        figure_tile(f, p, x + 3 * step, y, zoom, l->guess + at, l->kept, &looks->guess);
        figure_tile(f, p, x + 4 * step, y, zoom, l->after + at, NULL, &looks->state);
    }
    for (c = 1; c < 5; c++) {
        const plot_look *look = c == 2 ? &looks->s : c == 3 ? &looks->guess : &looks->state;
        plot_bar(p, x + c * step, foot, f->page.w * zoom, look);
    }
}

static inline void figure_couplings(const figures *f, const char *path) {
    const int zoom = figure_zoom(f, 56), layers = f->set[0].trace.layers;
    const int step = f->page.w * zoom + FIGURE_GAP, down = f->page.h * zoom + FIGURE_GAP;
    const figure_looks looks = figure_all_looks(f);
    plot p;
    int  k, r, i, n = 0, x = 104;
    char text[24];
    for (k = 0; k < f->sets; k++)
        n += figure_shown(f, k, 4);
    if (plot_open(&p, x + n * (5 * step + 16), FIGURE_TOP + 38 + layers * down + 40)) {
        figure_title(&p, "What each coupling sees, and what it makes of it",
                     f->shape.c == 3
                         ? "sees: what it conditions on. -t: its guess of the part it changes. "
                           "after: (state + t) e^s. all: means over the channels"
                         : "sees: the part of the state it conditions on. -t: its guess of the "
                           "part it changes. after: (state + t) e^s. grey: not its part");
        for (i = 0; i < layers; i++) {
            const figure_layer *l = &f->set[0].trace.layer[i];
            int                 y = FIGURE_TOP + 38 + i * down + f->page.h * zoom / 2;
            snprintf(text, sizeof text, "layer %d", l->index);
            plot_text(&p, 12, y - 12, 1, PLOT_INK, text);
            plot_text(&p, 12, y, 1, PLOT_SOFT, l->mask);
        }
        for (k = 0; k < f->sets; k++)
            for (r = 0; r < figure_shown(f, k, 4); r++, x += 5 * step + 16)
                figure_couplings_panel(f, &p, x, &f->set[k], r, zoom, &looks);
    }
    plot_save(f->fo, &p, path);
}

/* ---- coadaptation.png, cycle.png ------------------------------------------------------------- */

/* How far the guesses repeat what is special about each picture: the correlation of -t with the
   input at the elements that a coupling changes, both less their mean over the set; or NaN. */
static double figure_copied(const figures *f, const figure_trace *t, const figure_layer *l) {
    double  xx = 0, gg = 0, xg = 0;
    int64_t i;
    int     r;
    for (i = 0; i < f->size; i++) {
        double mx = 0, mg = 0;
        if (l->kept[i])
            continue;
        for (r = 0; r < t->n; r++)
            mx += (double)t->x[r * f->size + i] / t->n,
                mg += (double)l->guess[r * f->size + i] / t->n;
        for (r = 0; r < t->n; r++) {
            double x = (double)t->x[r * f->size + i] - mx;
            double g = (double)l->guess[r * f->size + i] - mg;
            xx += x * x, gg += g * g, xg += x * g;
        }
    }
    return t->n > 2 && xx > 0 && gg > 0 ? xg / sqrt(xx * gg) : (double)NAN;
}

/* Are neighbours often of different state, as under a checkerboard? */
static int figure_interleaved(const figures *f, const figure_layer *l) {
    int x, y, changes = 0, w = f->page.w, h = f->page.h;
    for (y = 0; y < h; y++)
        for (x = 1; x < w; x++)
            changes += l->state[y * w + x] != l->state[y * w + x - 1];
    for (y = 1; y < h; y++)
        for (x = 0; x < w; x++)
            changes += l->state[y * w + x] != l->state[(y - 1) * w + x];
    return changes * 4 > w * h;
}

/* The middle of the elements with this state; 0: there are none. */
static int figure_middle(const figures *f, const figure_layer *l, int state, double *x, double *y) {
    int64_t i, n = 0, pixels = (int64_t)f->page.h * f->page.w;
    *x = *y = 0;
    for (i = 0; i < pixels && i < f->size; i++)
        if (l->state[i] == state)
            *x += (double)(i % f->page.w) + 0.5, *y += (double)(i / f->page.w) + 0.5, n++;
    if (n > 0)
        *x /= (double)n, *y /= (double)n;
    return n > 0;
}

/* From what a coupling sees to what it changes. */
static void figure_arrow(const figures *f, plot *p, int x, int y, int zoom, const figure_layer *l) {
    double x0, y0, x1, y1;
    if (figure_middle(f, l, FO_CONDITION, &x0, &y0) && figure_middle(f, l, FO_CHANGE, &x1, &y1))
        plot_arrow(p, x + zoom * (x0 + 0.25 * (x1 - x0)), y + zoom * (y0 + 0.25 * (y1 - y0)),
                   x + zoom * (x1 - 0.25 * (x1 - x0)), y + zoom * (y1 - 0.25 * (y1 - y0)),
                   plot_rgb(22, 140, 70));
}

typedef struct figure_guess_plan { int zoom, step, down, tall, arrows; } figure_guess_plan;

/* What one sample's couplings see in grey shades and guess in colours; apart where they mingle. */
static void figure_guess_row(const figures *f, plot *p, int y, const figure_set *set, int r,
                             const figure_guess_plan *plan, const figure_looks *looks) {
    const figure_trace *t  = &set->trace;
    const int64_t       at = r * f->size;
    int                 i, x = 12 + 104;
    char                text[24];
    snprintf(text, sizeof text, "%.13s %d", set->name, r);
    plot_text(p, 12, y + f->page.h * plan->zoom / 2 - 4, 1, PLOT_INK, text);
    figure_tile(f, p, x, y, plan->zoom, t->x + at, NULL, &f->paint);
    for (i = 0; i < t->layers; i++) {
        const figure_layer *l = &t->layer[i];
        x += plan->step;
        figure_tile(f, p, x, y, plan->zoom, l->before + at, l->unseen, &looks->seen);
        if (plan->tall) {
            figure_tile(f, p, x, y + plan->down, plan->zoom, l->guess + at, l->kept, &looks->guess);
            continue;
        }
        figure_overlay(f, p, x, y, plan->zoom, l->guess + at, l->kept, &looks->guess);
        if (plan->arrows)
            figure_arrow(f, p, x, y, plan->zoom, l);
    }
}

/* Under the tiles of a set: how far the guesses repeat its pictures. */
static void figure_copied_row(const figures *f, plot *p, int y, const figure_set *set,
                              const figure_guess_plan *plan) {
    int  i, x = 12 + 104;
    char text[24];
    plot_text(p, 12, y, 1, PLOT_SOFT, "repeats, r =");
    for (i = 0; i < set->trace.layers; i++) {
        double r = figure_copied(f, &set->trace, &set->trace.layer[i]);
        x += plan->step;
        snprintf(text, sizeof text, r == r ? "%.2f" : "?", r);
        plot_centre(p, x + f->page.w * plan->zoom / 2, y, plan->step, 1,
                    r > 0.5 && set != &f->set[0] ? plot_rgb(180, 25, 25) : PLOT_INK, text);
    }
}

/* A row for each sample, a column for each coupling. */
static inline void figure_guesses(const figures *f, const char *path, int arrows) {
    const figure_trace *first = &f->set[0].trace;
    const figure_looks  looks = figure_all_looks(f);
    figure_guess_plan   plan;
    plot                p;
    char                text[24];
    int                 k, r, i, y = FIGURE_TOP + 28, lines = 0;
    plan.zoom   = figure_zoom(f, 84);
    plan.step   = f->page.w * plan.zoom + FIGURE_GAP + 2;
    plan.down   = f->page.h * plan.zoom + FIGURE_GAP;
    plan.arrows = arrows;
    plan.tall   = 0;
    for (i = 0; i < first->layers; i++)
        plan.tall |= figure_interleaved(f, &first->layer[i]);
    for (k = 0; k < f->sets; k++)
        lines += figure_shown(f, k, 4);
    if (plot_open(&p, 12 + 104 + (first->layers + 1) * plan.step + 12,
                  y + lines * (1 + plan.tall) * plan.down + f->sets * 24 + 48)) {
        figure_title(&p, arrows ? "A cycle mask: who sees whom"
                                : "Do the guesses repeat the input?", plan.tall
                     ? "above, grey: what a coupling sees. below: -t, its guess of the rest"
                     : "grey: what a coupling sees. in colour: -t, its guess of the rest");
        plot_centre(&p, 12 + 104 + f->page.w * plan.zoom / 2, FIGURE_TOP, plan.step, 1, PLOT_SOFT,
                    "input");
        for (i = 0; i < first->layers; i++) {
            int x = 12 + 104 + (i + 1) * plan.step + f->page.w * plan.zoom / 2;
            snprintf(text, sizeof text, "layer %d", first->layer[i].index);
            plot_centre(&p, x, FIGURE_TOP, plan.step, 1, PLOT_INK, text);
            plot_centre(&p, x, FIGURE_TOP + 12, plan.step, 1, PLOT_SOFT, first->layer[i].mask);
        }
        for (k = 0; k < f->sets; k++, y += 24) {
            for (r = 0; r < figure_shown(f, k, 4); r++, y += (1 + plan.tall) * plan.down)
                figure_guess_row(f, &p, y, &f->set[k], r, &plan, &looks);
            figure_copied_row(f, &p, y + 2, &f->set[k], &plan);
        }
        plot_text(&p, 12, y + 6, 1, PLOT_SOFT, "grey, -t");
        plot_bar(&p, 116, y + 4, 120, &looks.seen);
        plot_bar(&p, 260, y + 4, 120, &looks.guess);
    }
    plot_save(f->fo, &p, path);
}

/* Does a mask let something pass, as the cycle does? */
static int figure_passes(const figures *f) {
    const figure_trace *t = &f->set[0].trace;
    int64_t             j;
    int                 i;
    for (i = 0; i < t->layers; i++)
        for (j = 0; j < f->size; j++)
            if (t->layer[i].state[j] == FO_PASS)
                return 1;
    return 0;
}

/* ---- masks.png ------------------------------------------------------------------------------- */

static plot_colour figure_state_colour(int state) {
    if (state == FO_CONDITION)
        return plot_rgb(62, 118, 184);
    if (state == FO_CHANGE)
        return plot_rgb(236, 152, 62);
    return state == FO_PASS ? PLOT_HIDDEN : plot_rgb(84, 88, 98);
}

/* Channels that agree are drawn once, others side by side in stripes of the pixel. */
static void figure_mask(const figures *f, plot *p, int x, int y, int zoom, const figure_layer *l) {
    int i, k, j, pixels = f->page.h * f->page.w, c = f->page.c;
    for (i = 0; i < pixels; i++)
        for (k = 0; k < zoom; k++) {
            j = (c > 1 ? k * c / zoom : 0) * pixels + i;
            if (j < f->size)
                plot_box(p, x + i % f->page.w * zoom + k, y + i / f->page.w * zoom, 1, zoom,
                         figure_state_colour(l->state[j]));
        }
}

static inline void figure_masks(const figures *f, const char *path) {
    static const char *const words[4] = {"conditioned on", "changed", "passes", "latent already"};
    const figure_trace *t = &f->set[0].trace;
    const int zoom = figure_zoom(f, 112), columns = t->layers < 4 ? t->layers : 4;
    const int lines = (t->layers + columns - 1) / columns, step = f->page.w * zoom + 20;
    const int down = f->page.h * zoom + 34, all = 24 + columns * step;
    const int passes = figure_passes(f);
    plot      p;
    char      text[48];
    int       i, x;
    if (plot_open(&p, all > 540 ? all : 540, FIGURE_TOP + lines * down + 28)) {
        figure_title(&p, "Masks, where the pixels come from",
                     "squeezed, split and permuted elements are drawn at their place in the input");
        for (i = 0; i < t->layers; i++) {
            int y = FIGURE_TOP + i / columns * down;
            x     = 12 + i % columns * step;
            snprintf(text, sizeof text, "%d %s", t->layer[i].index, t->layer[i].mask);
            plot_text(&p, x, y + 2, 1, PLOT_INK, text);
            figure_mask(f, &p, x, y + 14, zoom, &t->layer[i]);
            if (passes)
                figure_arrow(f, &p, x, y + 14, zoom, &t->layer[i]);
        }
        for (i = 0, x = 12; i < 4; i++) {
            plot_box(&p, x, p.h - 22, 10, 10, figure_state_colour(i));
            plot_text(&p, x + 14, p.h - 20, 1, PLOT_INK, words[i]);
            x += 24 + plot_width(words[i], 1);
        }
    }
    plot_save(f->fo, &p, path);
}

/* ---- latents.png ----------------------------------------------------------------------------- */

/* Latents of the first n samples, at the places of the picture; the mean of so many draws. */
static float *figure_latents(const figures *f, fo_workspace *ws, const figure_set *set, int n,
                             int64_t batch, int draws) {
    float   *out = (float *)figure_room(f->fo, n * f->size, sizeof *out);
    fo_real *z   = (fo_real *)figure_room(f->fo, batch * f->size, sizeof *z);
    int64_t  r, i;
    int      k;
    for (k = 0; k < draws && out && z; k++) {
        if (fo_encode(ws, set->data, 0, batch, k, z) != FO_OK)
            break;
        for (r = 0; r < n; r++)
            for (i = 0; i < f->size; i++)
                out[r * f->size + set->trace.place[i]] += (float)z[r * f->size + i] / (float)draws;
    }
    free(z);
    return out;
}

typedef struct figure_latent_sets { float *of[FIGURE_SETS][3]; int differs, noisy, columns; }
    figure_latent_sets;

/* One draw, the mean of 40, and with batch norm's statistics of the batch itself. */
static void figure_latents_of(const figures *f, fo_workspace *batch, int k, int n,
                              figure_latent_sets *l) {
    const figure_set *set  = &f->set[k];
    const int64_t     many = set->n < 64 ? set->n : 64;
    l->of[k][0] = figure_latents(f, f->ws, set, n, n, 1);
    l->of[k][1] = l->noisy ? figure_latents(f, f->ws, set, n, n, FIGURE_DRAWS) : NULL;
    l->of[k][2] = batch ? figure_latents(f, batch, set, n, many, 1) : NULL;
    if (l->of[k][0] && l->of[k][2])
        l->differs |= memcmp(l->of[k][0], l->of[k][2], (size_t)(n * f->size) * sizeof(float)) != 0;
}

static void figure_latents_panel(const figures *f, plot *p, int x, int k, int n, int zoom,
                                 const plot_look *look, const figure_latent_sets *l) {
    static const char *const heads[4] = {"input", "latent", "mean 40", "batch bn"};
    const int step = f->page.w * zoom + FIGURE_GAP, down = f->page.h * zoom + FIGURE_GAP;
    int       r, c, at = x;
    plot_text(p, x, FIGURE_TOP, 2, PLOT_INK, f->set[k].name);
    for (c = 0; c < 4; c++) {
        const float *v = c ? l->of[k][c - 1] : f->set[k].trace.x;
        if (v == NULL || (c == 3 && !l->differs))
            continue;
        plot_centre(p, at + f->page.w * zoom / 2, FIGURE_TOP + 21, step, 1, PLOT_SOFT, heads[c]);
        for (r = 0; r < n; r++)
            figure_tile(f, p, at, FIGURE_TOP + 34 + r * down, zoom, v + r * f->size, NULL,
                        c ? look : &f->paint);
        at += step;
    }
}

static int figure_latent_rows(const figures *f, int k) {
    return f->set[k].trace.n < 3 ? f->set[k].trace.n : 3;
}

static inline void figure_latents_png(const figures *f, const char *path) {
    const int zoom = figure_zoom(f, 84), step = f->page.w * zoom + FIGURE_GAP;
    const int down = f->page.h * zoom + FIGURE_GAP;
    const plot_look look = plot_signed(3);
    fo_workspace   *batch = fo_workspace_create(f->fo, f->flow, 64);
    figure_latent_sets l;
    plot               p;
    int                k, c, n = 0, columns;
    memset(&l, 0, sizeof l);
    l.noisy = strncmp(fo_flow_layer_text(f->flow, 0), "dequantize", 10) == 0;
    fo_workspace_norm(batch, FO_NORM_BATCH);
    for (k = 0; k < f->sets; k++) {
        int lines = figure_latent_rows(f, k);
        n        = lines > n ? lines : n;
        figure_latents_of(f, batch, k, lines, &l);
    }
    columns = 2 + l.noisy + l.differs;
    if (plot_open(&p, 12 + f->sets * (columns * step + 20), FIGURE_TOP + 34 + n * down + 38)) {
        figure_title(&p, "Latents, each at its pixel's place",
                     l.differs ? "mean 40: of 40 draws of noise. batch bn: statistics of the batch"
                               : "mean 40: of 40 draws of dequantization noise");
        for (k = 0; k < f->sets; k++)
            figure_latents_panel(f, &p, 12 + k * (columns * step + 20), k,
                                 figure_latent_rows(f, k), zoom, &look, &l);
        plot_bar(&p, 12, p.h - 30, 160, &look);
    }
    for (k = 0; k < f->sets; k++)
        for (c = 0; c < 3; c++)
            free(l.of[k][c]);
    fo_workspace_free(batch);
    plot_save(f->fo, &p, path);
}

#endif /* FIGURES_H */
