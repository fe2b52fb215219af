/* Curves as SVG, and one HTML page that holds every figure, the scores and the model: no network,
   no script, readable on a phone, in the dark and without pictures. Free to take. */
#ifndef REPORT_H
#define REPORT_H
#include "figures.h"

enum { REPORT_WIDTH = 420, REPORT_ALPHAS = 3, REPORT_CURVE = 4000 };

/* Columns of a log of training: step, and three that are drawn. NaN: an empty cell. */
typedef struct report_log { int n; double cell[REPORT_CURVE][4]; } report_log;

/* What the page says beside the pictures. */
typedef struct report {
    const figures *f;
    const char    *folder, *model;
    report_log    *log;                             /* of training, or NULL                 */
    double         bpd[FIGURE_SETS];
    fo_metrics     metrics[FIGURE_SCORES][FIGURE_SETS]; /* against each OOD set             */
    int            decides;                         /* a detector that fits the weights     */
    double         alarms[FIGURE_SETS][REPORT_ALPHAS];
    plot_string    left_out, html;
} report;

/* Middling lightness: they stand out on white and on black. */
static const char *report_colour(int k) {
    static const char *const colours[6] = {"#4a86c5", "#e07b39", "#9a6fc4", "#3f9d6d", "#c9537a",
                                           "#8d8a3c"};
    return colours[k % 6];
}

/* ---- drawings -------------------------------------------------------------------------------- */

/* Paper and ink of its own where it is a file; on the page it takes the page's. */
static void report_svg_open(plot_string *t, int height, const char *label, int alone) {
    plot_add(t, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" "
             "font-family=\"system-ui, sans-serif\" font-size=\"12\"", REPORT_WIDTH, height);
    if (alone)
        plot_add(t, " width=\"%d\" height=\"%d\" style=\"color:#1e222a;background:#fcfcfa\"",
                 2 * REPORT_WIDTH, 2 * height);
    plot_add(t, " aria-label=\"");
    plot_escape(t, label);
    plot_add(t, "\">\n");
}

static void report_svg_text(plot_string *t, double x, double y, const char *anchor,
                            const char *style, const char *text) {
    plot_add(t, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"currentColor\"%s>", x, y,
             anchor, style);
    plot_escape(t, text);
    plot_add(t, "</text>\n");
}

typedef struct report_axes { double x, y, w, h, low[2], high[2]; } report_axes;

static double report_at(const report_axes *a, int k, double v) {
    double u = (v - a->low[k]) / (a->high[k] - a->low[k]);
    u = u < 0 ? 0 : u > 1 ? 1 : u;
    return k ? a->y + a->h * (1 - u) : a->x + a->w * u;
}

/* A frame with three numbers at each axis. */
static void report_frame(plot_string *t, report_axes *a, const char *left) {
    char text[32];
    int  i, k;
    for (k = 0; k < 2; k++)
        if (!(a->high[k] > a->low[k]))
            a->low[k] -= 1, a->high[k] += 1;
    plot_add(t, "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"currentColor\" "
             "opacity=\".6\"/>\n", a->x, a->y, a->y + a->h, a->x + a->w);
    for (i = 0; i < 3; i++) {
        double x = a->low[0] + (a->high[0] - a->low[0]) * i / 2;
        double y = a->low[1] + (a->high[1] - a->low[1]) * i / 2;
        snprintf(text, sizeof text, fabs(x) < 1000 ? "%.4g" : "%.0f", x);
        report_svg_text(t, a->x + a->w * i / 2, a->y + a->h + 15,
                        i == 0 ? "start" : i == 1 ? "middle" : "end", " opacity=\".8\"", text);
        snprintf(text, sizeof text, "%.3g", y);
        if (left)
            report_svg_text(t, a->x - 5, a->y + a->h * (1 - i / 2.0) + 4, "end",
                            " opacity=\".8\"", text);
    }
    if (left)
        report_svg_text(t, a->x + 4, a->y - 6, "start", " opacity=\".8\"", left);
}

static void report_key(plot_string *t, double x, double y, int k, const char *text) {
    plot_add(t, "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" rx=\"2\" fill=\"%s\"/>\n",
             x, y - 10, report_colour(k));
    report_svg_text(t, x + 17, y, "start", "", text);
}

/* ---- histogram.svg --------------------------------------------------------------------------- */

enum { REPORT_BINS = 40 };

static int report_compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double *report_sorted(fo_context *fo, const double *v, int64_t n) {
    double *sorted = (double *)figure_room(fo, n, sizeof *sorted);
    if (sorted) {
        memcpy(sorted, v, (size_t)n * sizeof *sorted);
        qsort(sorted, (size_t)n, sizeof *sorted, report_compare);
    }
    return sorted;
}

/* Where 98 % of the in-distribution samples and 60 % of the others lie; the outer bins hold what
   lies beyond. */
static void report_bounds(const figures *f, int s, double *low, double *high) {
    int k;
    *low = HUGE_VAL, *high = -HUGE_VAL;
    for (k = 0; k < f->sets; k++) {
        const double cut    = k ? 0.2 : 0.01;
        double      *sorted = report_sorted(f->fo, f->set[k].score[s], f->set[k].n);
        if (sorted == NULL)
            continue;
        *low  = fmin(*low, sorted[(int64_t)(cut * (double)(f->set[k].n - 1))]);
        *high = fmax(*high, sorted[(int64_t)ceil((1 - cut) * (double)(f->set[k].n - 1))]);
        free(sorted);
    }
}

/* The share of a set's samples in every bin. */
static double report_bins(const figure_set *set, int s, double low, double high,
                          double share[REPORT_BINS]) {
    double  most = 0;
    int64_t i;
    int     b;
    for (b = 0; b < REPORT_BINS; b++)
        share[b] = 0;
    for (i = 0; i < set->n; i++) {
        double u = high > low ? (set->score[s][i] - low) / (high - low) : 0.5;
        b = (int)(u * REPORT_BINS);
        share[u <= 0 ? 0 : b >= REPORT_BINS ? REPORT_BINS - 1 : b] += 1 / (double)set->n;
    }
    for (b = 0; b < REPORT_BINS; b++)
        most = fmax(most, share[b]);
    return most;
}

/* One score: a curve of steps for each set; returns the height it took. */
static double report_histogram(plot_string *t, const report *r, int s, double top) {
    const figures *f = r->f;
    double         share[FIGURE_SETS][REPORT_BINS];
    report_axes    a;
    double         most = 0;
    char           text[80];
    int            k, b;
    memset(&a, 0, sizeof a);
    a.x = 10, a.y = top + 26, a.w = REPORT_WIDTH - 20, a.h = 120;
    report_bounds(f, s, &a.low[0], &a.high[0]);
    for (k = 0; k < f->sets; k++)
        most = fmax(most, report_bins(&f->set[k], s, a.low[0], a.high[0], share[k]));
    a.high[1] = most;
    report_svg_text(t, a.x, top + 16, "start", " font-weight=\"600\"", f->score_name[s]);
    report_frame(t, &a, NULL);
    for (k = 0; k < f->sets; k++) {
        double y = report_at(&a, 1, 0);
        plot_add(t, "<path d=\"M%.1f %.1f", a.x, y);
        for (b = 0; b < REPORT_BINS; b++)
            plot_add(t, "V%.1fH%.1f", report_at(&a, 1, share[k][b]),
                     a.x + a.w * (b + 1) / REPORT_BINS);
        plot_add(t, "V%.1f\" fill=\"%s\" fill-opacity=\".28\" stroke=\"%s\" stroke-width=\"1.6\""
                 "/>\n", y, report_colour(k), report_colour(k));
        if (k)
            snprintf(text, sizeof text, "%.40s, AUROC %.3f", f->set[k].name,
                     r->metrics[s][k].auroc);
        else
            snprintf(text, sizeof text, "%.40s (in-distribution)", f->set[k].name);
        report_key(t, a.x, a.y + a.h + 36 + 18 * k, k, text);
    }
    return 26 + 120 + 36 + 18 * f->sets + 8;
}

/* ---- roc.svg --------------------------------------------------------------------------------- */

/* True against false alarms over all thresholds, in at most 200 points. */
static void report_roc_line(plot_string *t, const report_axes *a, const double *in, int64_t n_in,
                            const double *ood, int64_t n_ood, int colour) {
    int64_t i = n_in, k = n_ood, last = -1;
    plot_add(t, "<path d=\"M%.1f %.1f", report_at(a, 0, 0), report_at(a, 1, 0));
    while (i > 0 || k > 0) { /* sorted, from the highest score down; equal ones in one step */
        double limit = i > 0 && (k == 0 || in[i - 1] > ood[k - 1]) ? in[i - 1] : ood[k - 1];
        while (i > 0 && in[i - 1] >= limit)
            i--;
        while (k > 0 && ood[k - 1] >= limit)
            k--;
        if (((n_in - i) * 100 / n_in) + 128 * ((n_ood - k) * 100 / n_ood) == last)
            continue;
        last = ((n_in - i) * 100 / n_in) + 128 * ((n_ood - k) * 100 / n_ood);
        plot_add(t, "L%.1f %.1f", report_at(a, 0, (double)(n_in - i) / (double)n_in),
                 report_at(a, 1, (double)(n_ood - k) / (double)n_ood));
    }
    plot_add(t, "L%.1f %.1f\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n",
             report_at(a, 0, 1), report_at(a, 1, 1), report_colour(colour));
}

/* The scores against one OOD set, with their areas. */
static double report_roc(plot_string *t, const report *r, int set, double top) {
    const figures *f = r->f;
    report_axes    a;
    char           text[80];
    int            s;
    memset(&a, 0, sizeof a);
    a.x = 34, a.y = top + 40, a.w = a.h = 200, a.high[0] = a.high[1] = 1;
    snprintf(text, sizeof text, "%.30s against %.30s", f->set[0].name, f->set[set].name);
    report_svg_text(t, 10, top + 16, "start", " font-weight=\"600\"", text);
    report_frame(t, &a, "found");
    report_svg_text(t, a.x + a.w / 2, a.y + a.h + 30, "middle", " opacity=\".8\"", "false alarms");
    plot_add(t, "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"currentColor\" opacity=\".4\" "
             "stroke-dasharray=\"4 4\"/>\n", a.x, a.y + a.h, a.x + a.w, a.y);
    for (s = 0; s < f->scores && s < 10; s++) {
        double *in  = report_sorted(f->fo, f->set[0].score[s], f->set[0].n);
        double *ood = report_sorted(f->fo, f->set[set].score[s], f->set[set].n);
        if (in && ood && s < 6)
            report_roc_line(t, &a, in, f->set[0].n, ood, f->set[set].n, s);
        free(in);
        free(ood);
        snprintf(text, sizeof text, "%.18s %.3f", f->score_name[s], r->metrics[s][set].auroc);
        if (s < 6)
            report_key(t, a.x + a.w + 20, a.y + 12 + 20 * s, s, text);
    }
    return 40 + 200 + 42;
}

/* ---- curve.svg ------------------------------------------------------------------------------- */

static const char *const report_columns[4] = {"step", "bpd", "held_out_bpd", "auroc"};

/* One row of text into the columns that `which` names: which[i] of the i-th cell, -1 for none. */
static void report_log_row(char *line, const int which[16], double cell[4]) {
    char *at = line, *end;
    int   i, last = 0;
    for (i = 0; i < 4; i++)
        cell[i] = (double)NAN;
    for (i = 0; i < 16 && !last; i++, at = end + 1) {
        end  = at + strcspn(at, ",\r\n");
        last = *end != ',';
        if (which[i] >= 0 && end > at)
            cell[which[i]] = strtod(at, NULL);
    }
}

/* 0 and an error: it is no log. Of a long one every second row is kept, every fourth ... */
static int report_log_read(fo_context *fo, const char *path, report_log *log) {
    FILE *file = fopen(path, "r");
    char  line[512], *at = line;
    int   which[16], i, k, rows_read = 0, every = 1;
    log->n = 0;
    for (i = 0; i < 16; i++)
        which[i] = -1;
    if (file && fgets(line, sizeof line, file))
        for (i = 0; i < 16 && *at; i++, at += strcspn(at, ",\r\n"), at += *at == ',')
            for (k = 0; k < 4; k++)
                if (strcspn(at, ",\r\n") == strlen(report_columns[k]) &&
                    strncmp(at, report_columns[k], strlen(report_columns[k])) == 0)
                    which[i] = k;
    while (file && which[0] == 0 && fgets(line, sizeof line, file)) {
        if (log->n == REPORT_CURVE) {
            for (i = 0; i < REPORT_CURVE / 2; i++)
                memcpy(log->cell[i], log->cell[2 * i], sizeof log->cell[i]);
            log->n = REPORT_CURVE / 2, every *= 2;
        }
        if (rows_read++ % every == 0)
            report_log_row(line, which, log->cell[log->n++]);
    }
    if (file)
        fclose(file);
    if (log->n == 0)
        fo_fail(fo, FO_ERR_FORMAT, "%s: no log of train: its first line begins with step", path);
    return log->n > 0;
}

/* One or two columns over the steps. */
static double report_curve_panel(plot_string *t, const report_log *log, int first, int last,
                                 const char *title, double top) {
    static const char *const names[4] = {"", "training, mean of 50 steps", "held-out", "AUROC"};
    report_axes a;
    int         i, c, seen = 0;
    memset(&a, 0, sizeof a);
    a.x = 48, a.y = top + 30, a.w = REPORT_WIDTH - 62, a.h = 140;
    a.low[1] = HUGE_VAL, a.high[1] = -HUGE_VAL, a.high[0] = log->cell[log->n - 1][0];
    for (i = 0; i < log->n; i++)
        for (c = first; c <= last; c++)
            if (log->cell[i][c] - log->cell[i][c] == 0) {
                a.low[1]  = fmin(a.low[1], log->cell[i][c]);
                a.high[1] = fmax(a.high[1], log->cell[i][c]), seen = 1;
            }
    if (!seen)
        return 0;
    report_frame(t, &a, title);
    for (c = first; c <= last; c++) {
        const char *move = "M";
        plot_add(t, "<path d=\"");
        for (i = 0; i < log->n; i++)
            if (log->cell[i][c] - log->cell[i][c] == 0) {
                plot_add(t, "%s%.1f %.1f", move, report_at(&a, 0, log->cell[i][0]),
                         report_at(&a, 1, log->cell[i][c]));
                move = "L";
            }
        plot_add(t, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", report_colour(c - 1));
        report_key(t, a.x + 200 * (c - first), a.y + a.h + 36, c - 1, names[c]);
    }
    return 30 + 140 + 50;
}

/* ---- files ----------------------------------------------------------------------------------- */

/* Builds a drawing twice, for a file (under DIR/name) and for the page (into `page`). */
typedef double report_body(plot_string *t, const report *r);

static void report_drawing(report *r, const char *name, const char *label, report_body *body,
                           plot_string *page) {
    plot_string inside, file;
    char        path[1100];
    int         height;
    memset(&inside, 0, sizeof inside);
    memset(&file, 0, sizeof file);
    height = (int)ceil(body(&inside, r));
    report_svg_open(page, height, label, 0);
    plot_add(page, "%s</svg>\n", inside.s ? inside.s : "");
    report_svg_open(&file, height, label, 1);
    plot_add(&file, "%s</svg>\n", inside.s ? inside.s : "");
    snprintf(path, sizeof path, "%s/%s", r->folder, name);
    if (fo_failed(r->f->fo) == FO_OK)
        plot_write(r->f->fo, path, &file);
    free(inside.s);
    free(file.s);
}

static double report_all_histograms(plot_string *t, const report *r) {
    double y = 0;
    int    s;
    for (s = 0; s < r->f->scores; s++)
        y += report_histogram(t, r, s, y);
    return y;
}

static double report_all_rocs(plot_string *t, const report *r) {
    double y = 0;
    int    k;
    for (k = 1; k < r->f->sets; k++)
        y += report_roc(t, r, k, y);
    return y;
}

static double report_curves(plot_string *t, const report *r) {
    double y = report_curve_panel(t, r->log, 1, 2, "bits per dimension", 0);
    return y + report_curve_panel(t, r->log, 3, 3, "AUROC", y);
}

/* ---- the page -------------------------------------------------------------------------------- */

typedef struct report_figure { const char *file, *title, *alt, *words; } report_figure;

/* In the order of the page. */
static report_figure report_figure_at(int i) {
    static const report_figure list[] = {
        {"couplings.png", "What each coupling sees and makes of it",
         "A grid of small pictures. Rows are coupling layers. For each sample the columns are the "
         "input, the part that the layer conditions on, s, its guess -t and the state after.",
         "A coupling looks at one part of the state and guesses the rest: -t is that guess, and s "
         "says how surely it is made. Where s and -t repeat the pictures of both sets, the "
         "layer has learned how pixels hang together, not what is in the picture."},
        {"coadaptation.png", "Do the guesses repeat the input?",
         "For each sample one row: the input, then for each coupling what it sees in grey and its "
         "guess -t in colour. Below each set the correlation r of the guesses with the input.",
         "r is the correlation of a guess with the hidden part of the input, both without their "
         "mean over the set. An r near 1 on samples the model never trained on means that the "
         "layers pass pixels on to each other instead of understanding them."},
        {"cycle.png", "Why a cycle mask cannot copy",
         "The same rows, with arrows from the quadrant that a coupling sees to the one it changes.",
         "Each coupling sees one quadrant and changes the next, so what it guesses has to be "
         "inferred. It takes four couplings until a quadrant's own pixels come round again."},
        {"masks.png", "Masks",
         "One square for each coupling: blue where it conditions, orange where it changes, light "
         "grey where it lets pass, dark grey where a split made the element latent already.",
         "Blue elements are looked at, orange ones changed. Elements that were squeezed or moved "
         "are drawn where they came from in the input."},
        {"latents.png", "Latents",
         "Input, latent and mean latent of four samples of each set, blue below zero, red above.",
         "A good flow makes white noise of what it was trained on. Outlines that can still be "
         "recognised are structure that the flow passed on instead of explaining it, in "
         "distribution and out of it."},
        {"samples.png", "Samples",
         "Sixteen test images, then sixteen samples at each of the temperatures 0.6, 0.8 and 1.",
         "The better the samples, the worse the detection, is the paper's observation: compare the "
         "numbers above the pictures. Lower temperatures stay nearer to the mode."},
        {"interpolation.png", "Between four images",
         "A seven by seven square of pictures with four test images at its corners.",
         "Latents are mixed along straight lines and decoded. Smooth changes of shape would mean "
         "that the latents describe what is shown; fading pixels mean that they describe pixels."},
        {"most.png", "Most and least likely",
         "Eight most likely and eight least likely images of each set with their bits per "
         "dimension.",
         "Smooth, dark and simple images come out as likely, busy ones as unlikely, whatever they "
         "show. Fewer bits per dimension is likelier."},
        {"plane.png", "The plane",
         "Three squares: the density, data with samples over them, and the grid of the latents as "
         "decode bends it.",
         "The flow bends the plane until a round bell becomes the data. Where grid lines of one "
         "colour, equally far from the middle of the bell, crowd together the density is high."}};
    const report_figure none = {NULL, NULL, NULL, NULL};
    return i < (int)(sizeof list / sizeof list[0]) ? list[i] : none;
}

static void report_base64(plot_string *t, const unsigned char *in, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t            i;
    char             *out;
    if (!plot_reserve(t, n / 3 * 4 + 8))
        return;
    out = t->s + t->n;
    for (i = 0; i < n; i += 3) {
        unsigned v = (unsigned)in[i] << 16 | (i + 1 < n ? (unsigned)in[i + 1] << 8 : 0) |
                     (i + 2 < n ? in[i + 2] : 0u);
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = i + 1 < n ? digits[v >> 6 & 63] : '=';
        *out++ = i + 2 < n ? digits[v & 63] : '=';
    }
    *out = 0;
    t->n = (size_t)(out - t->s);
}

/* A picture that was written into the folder just now, its bytes on the page itself. */
static void report_picture(report *r, const report_figure *g) {
    plot_string    *t = &r->html;
    char            path[1100];
    FILE           *file;
    unsigned char  *bytes = NULL;
    long            n     = 0;
    snprintf(path, sizeof path, "%s/%s", r->folder, g->file);
    file = fopen(path, "rb");
    if (file && fseek(file, 0, SEEK_END) == 0 && (n = ftell(file)) > 24 &&
        fseek(file, 0, SEEK_SET) == 0)
        bytes = (unsigned char *)figure_room(r->f->fo, n, 1);
    if (bytes && fread(bytes, 1, (size_t)n, file) == (size_t)n) {
        plot_add(t, "<section><h2>%s</h2>\n<p>%s</p>\n<div class=\"wide\"><img width=\"%d\" "
                 "height=\"%d\" alt=\"%s\" src=\"data:image/png;base64,", g->title, g->words,
                 bytes[18] * 256 + bytes[19], bytes[22] * 256 + bytes[23], g->alt);
        report_base64(t, bytes, (size_t)n);
        plot_add(t, "\"></div></section>\n");
    } else {
        fo_fail(r->f->fo, FO_ERR_FILE, "%s: it was written and cannot be read", path);
    }
    free(bytes);
    if (file)
        fclose(file);
}

static void report_head(report *r) {
    const figures *f = r->f;
    plot_string   *t = &r->html;
    int            k;
    plot_add(t, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>");
    plot_escape(t, r->model);
    plot_add(t, "</title>\n<style>\n"
             ":root{color-scheme:light dark;--paper:#fcfcfa;--ink:#1e222a;--soft:#5d6470;"
             "--line:#d5d8dc;--card:#f2f3f1}\n"
             "@media(prefers-color-scheme:dark){:root{--paper:#15181d;--ink:#e4e6e9;--soft:#a3abb6;"
             "--line:#363c46;--card:#1e232a}.wide img{filter:brightness(.9)}}\n"
             "body{margin:0 auto;padding:1.2rem 1rem 4rem;max-width:62rem;background:var(--paper);"
             "color:var(--ink);font:1rem/1.55 system-ui,sans-serif}\n"
             "h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}h2{font-size:1.15rem;"
             "margin:2.2rem 0 .3rem}p{max-width:44rem;margin:.3rem 0 .8rem}\n");
    plot_add(t, ".soft{color:var(--soft)}.wide{overflow-x:auto;border:1px solid var(--line);"
             "border-radius:6px;max-width:max-content}.wide img{display:block;height:auto;"
             "max-width:100%%;min-width:min(46rem,var(--own,46rem))}\n"
             "@media(min-width:48rem){.wide img{min-width:0}}\n"
             "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
             "th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line);"
             "white-space:nowrap}th:first-child,td:first-child{text-align:left}\n"
             "pre{padding:.8rem;background:var(--card);overflow-x:auto;font-size:.85rem;"
             "line-height:1.4}svg{display:block;width:100%%;max-width:38rem;height:auto}\n"
             "</style></head>\n<body>\n<h1>");
    plot_escape(t, r->model);
    plot_add(t, "</h1>\n<p class=\"soft\">In-distribution: ");
    for (k = 0; k < f->sets; k++) {
        plot_add(t, k == 1 ? ". Out of distribution: " : k ? ", " : "");
        plot_escape(t, f->set[k].name);
        plot_add(t, " (%lld samples, %.2f bits per dimension)", (long long)f->set[k].n, r->bpd[k]);
    }
    plot_add(t, ".</p>\n");
}

/* Metrics of every score against every set. */
static void report_table(report *r) {
    const figures *f = r->f;
    plot_string   *t = &r->html;
    int            s, k;
    plot_add(t, "<section><h2>Scores</h2>\n<p>AUROC is the chance that a sample of the other set "
             "scores higher than one of the training distribution: 0.5 is a coin, 1 is perfect, "
             "below 0.5 the other set looks more usual. fpr95 is the share of in-distribution "
             "samples that are taken for OOD when 95 %% of the OOD samples are found.</p>\n"
             "<div class=\"wide\"><table><thead><tr><th>score</th><th>against</th><th>AUROC</th>"
             "<th>95 %% interval</th><th>AUPR in</th><th>AUPR out</th><th>fpr95</th></tr></thead>"
             "<tbody>\n");
    for (s = 0; s < f->scores; s++)
        for (k = 1; k < f->sets; k++) {
            const fo_metrics *m = &r->metrics[s][k];
            plot_add(t, "<tr><td>%s</td><td>", f->score_name[s]);
            plot_escape(t, f->set[k].name);
            plot_add(t, "</td><td>%.4f</td><td>%.4f to %.4f</td><td>%.4f</td><td>%.4f</td>"
                     "<td>%.4f</td></tr>\n", m->auroc, m->auroc_low, m->auroc_high, m->aupr_in,
                     m->aupr_out, m->fpr95);
        }
    plot_add(t, "</tbody></table></div></section>\n");
}

static void report_detector(report *r, const double alpha_of[REPORT_ALPHAS]) {
    const figures         *f    = r->f;
    const fo_detector_info info = fo_flow_detector(f->flow);
    plot_string           *t    = &r->html;
    int                    k, a;
    if (!r->decides) {
        plot_add(t, "<section><h2>Detector</h2>\n<p>%s. flowood calibrate fits one to samples that "
                 "the model was never trained on.</p></section>\n", info.ranked
                 ? "The model's detector was fitted to other weights"
                 : "The model has no detector");
        return;
    }
    plot_add(t, "<section><h2>Detector</h2>\n<p>It decides by");
    for (k = 0; k < info.n_scores; k++)
        plot_add(t, " %s", fo_detector_score(f->flow, k));
    plot_add(t, ", fitted to %lld samples and ranked among %lld others. At each rate of false "
             "alarms alpha the table has the share of samples that are alarms: on the first row "
             "these are false ones. Below alpha %.2g it has too few samples for any.</p>\n"
             "<div class=\"wide\"><table><thead><tr><th>set</th>",
             (long long)info.fitted, (long long)info.ranked, 1 / (double)(info.ranked + 1));
    for (a = 0; a < REPORT_ALPHAS; a++)
        plot_add(t, "<th>alpha %g</th>", alpha_of[a]);
    plot_add(t, "</tr></thead><tbody>\n");
    for (k = 0; k < f->sets; k++) {
        plot_add(t, "<tr><td>");
        plot_escape(t, f->set[k].name);
        plot_add(t, "</td>");
        for (a = 0; a < REPORT_ALPHAS; a++)
            plot_add(t, "<td>%.2f %%</td>", 100 * r->alarms[k][a]);
        plot_add(t, "</tr>\n");
    }
    plot_add(t, "</tbody></table></div></section>\n");
}

/* The flow's text, its size, how it was trained. */
static void report_model(report *r) {
    fo_flow      *flow = r->f->flow;
    fo_train_desc d    = fo_flow_train_desc(flow);
    plot_string  *t    = &r->html;
    int64_t       n    = 0;
    fo_params(flow, &n);
    plot_add(t, "<section><h2>The model</h2>\n<p>%lld parameters in %d arrays.", (long long)n,
             fo_param_count(flow));
    if (fo_flow_steps(flow) > 0)
        plot_add(t, " Trained for %lld steps of %d samples at learning rate %g.",
                 (long long)fo_flow_steps(flow), d.batch, d.lr);
    plot_add(t, "</p>\n<pre>");
    plot_escape(t, fo_flow_text(flow));
    plot_add(t, "</pre></section>\n");
}

/* Histograms, ROC and the curve of training: their files, and what the page shows. */
static void report_drawings(report *r) {
    plot_string *t = &r->html;
    plot_add(t, "<section><h2>Histograms of the scores</h2>\n<p>Higher scores mean more out of "
             "distribution. Where the shapes lie over each other no threshold tells the sets "
             "apart; the outermost bars hold what lies beyond.</p>\n");
    report_drawing(r, "histogram.svg", "Histograms of every score for every set",
                   report_all_histograms, t);
    plot_add(t, "</section>\n<section><h2>ROC</h2>\n<p>Each curve goes through all thresholds of a "
             "score: the share of OOD samples found against the share of false alarms. The number "
             "is the area below it.</p>\n");
    report_drawing(r, "roc.svg", "ROC curves of the scores against every OOD set", report_all_rocs,
                   t);
    plot_add(t, "</section>\n");
    if (r->log == NULL)
        return;
    plot_add(t, "<section><h2>Training</h2>\n<p>Bits per dimension fall as the flow fits. The "
             "AUROC need not rise with them.</p>\n");
    report_drawing(r, "curve.svg", "Bits per dimension and AUROC over the steps of training",
                   report_curves, t);
    plot_add(t, "</section>\n");
}

/* Everything that was drawn, on one page; `drawn` says which of report_figure_at. */
static void report_write(report *r, const unsigned char *drawn, const double *alpha_of) {
    char          path[1100];
    report_figure g;
    int           i;
    report_head(r);
    report_table(r);
    report_detector(r, alpha_of);
    for (i = 0; (g = report_figure_at(i)).file && fo_failed(r->f->fo) == FO_OK; i++)
        if (drawn[i])
            report_picture(r, &g);
    report_drawings(r);
    report_model(r);
    if (r->left_out.n) {
        plot_add(&r->html, "<p class=\"soft\">Left out: ");
        plot_escape(&r->html, r->left_out.s);
        plot_add(&r->html, ".</p>\n");
    }
    plot_add(&r->html, "</body></html>\n");
    snprintf(path, sizeof path, "%s/report.html", r->folder);
    if (fo_failed(r->f->fo) == FO_OK)
        plot_write(r->f->fo, path, &r->html);
}

#endif /* REPORT_H */
