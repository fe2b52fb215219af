/* A canvas of pixels with letters, colour maps and numbers as images, and texts that grow: what the
   figures are drawn with. Free to take; it needs libc and, for plot_save, flowood.h. */
#ifndef PLOT_H
#define PLOT_H
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "flowood.h"

#ifdef __GNUC__
#define PLOT_PRINTF(at) __attribute__((format(printf, at, at + 1)))
#else
#define PLOT_PRINTF(at)
#endif

typedef struct plot_colour { unsigned char r, g, b; } plot_colour;

static plot_colour plot_rgb(int r, int g, int b) {
    plot_colour c;
    c.r = (unsigned char)r, c.g = (unsigned char)g, c.b = (unsigned char)b;
    return c;
}

#define PLOT_PAPER plot_rgb(252, 252, 250)
#define PLOT_INK plot_rgb(30, 34, 42)
#define PLOT_SOFT plot_rgb(105, 110, 120)   /* small print */
#define PLOT_HIDDEN plot_rgb(203, 207, 212) /* what is not shown: no colour of a map */

/* ---- canvas ---------------------------------------------------------------------------------- */

typedef struct plot { int w, h; unsigned char *rgb; } plot;

/* 0: no memory, or too large. Free rgb. */
static int plot_open(plot *p, int w, int h) {
    size_t i, n = (size_t)(w > 0 ? w : 0) * (size_t)(h > 0 ? h : 0);
    p->w = w, p->h = h;
    p->rgb = n > 0 && w < 20000 && h < 20000 ? (unsigned char *)malloc(3 * n) : NULL;
    for (i = 0; p->rgb && i < n; i++)
        p->rgb[3 * i] = 252, p->rgb[3 * i + 1] = 252, p->rgb[3 * i + 2] = 250;
    return p->rgb != NULL;
}

static void plot_dot(plot *p, int x, int y, plot_colour c) {
    unsigned char *at;
    if (x < 0 || y < 0 || x >= p->w || y >= p->h)
        return;
    at = p->rgb + 3 * ((size_t)y * (size_t)p->w + (size_t)x);
    at[0] = c.r, at[1] = c.g, at[2] = c.b;
}

static void plot_box(plot *p, int x, int y, int w, int h, plot_colour c) {
    int i, j;
    for (j = 0; j < h; j++)
        for (i = 0; i < w; i++)
            plot_dot(p, x + i, y + j, c);
}

static void plot_line(plot *p, double x0, double y0, double x1, double y1, int width,
                      plot_colour c) {
    int i, n = (int)ceil(fmax(fabs(x1 - x0), fabs(y1 - y0))) + 1;
    for (i = 0; i <= n && n < 100000; i++)
        plot_box(p, (int)floor(x0 + (x1 - x0) * i / n + 0.5) - width / 2,
                 (int)floor(y0 + (y1 - y0) * i / n + 0.5) - width / 2, width, width, c);
}

static void plot_arrow(plot *p, double x0, double y0, double x1, double y1, plot_colour c) {
    double length = hypot(x1 - x0, y1 - y0), ux, uy;
    if (length < 4)
        return;
    ux = (x1 - x0) / length, uy = (y1 - y0) / length;
    plot_line(p, x0, y0, x1, y1, 3, c);
    plot_line(p, x1, y1, x1 - 7 * ux - 5 * uy, y1 - 7 * uy + 5 * ux, 3, c);
    plot_line(p, x1, y1, x1 - 7 * ux + 5 * uy, y1 - 7 * uy - 5 * ux, 3, c);
}

/* ---- letters: 5 x 7 pixels, each row a digit of base 32, leftmost pixel highest -------------- */

enum { PLOT_ADVANCE = 6, PLOT_LETTER = 7 }; /* pixels to the next letter; height */

static const char *plot_glyph(char c) {
    static const char font[] =
        "0EHJLPHE" "14C4444E" "2EH1248V" "3V2421HE" "426AIV22" "5VGU11HE" "668GUHHE" "7V124888"
        "8EHHEHHE" "9EHHF12C" "a00E1FHF" "bGGUHHHU" "c00EGGHE" "d11FHHHF" "e00EHVGE" "f698S888"
        "g00FHF1E" "hGGUHHHH" "i40C444E" "j20622IC" "kGGIKOKI" "lC44444E" "m00QLLLL" "n00UHHHH"
        "o00EHHHE" "p00UHUGG" "q00FHF11" "r00MPGGG" "s00FGE1U" "t88S8896" "u00HHHJD" "v00HHHA4"
        "w00HHLLA" "x00HA4AH" "y00HHF1E" "z00V248V" "A4AHHVHH" "BUHHUHHU" "CEHGGGHE" "DSIHHHIS"
        "EVGGUGGV" "FVGGUGGG" "GEHGNHHF" "HHHHVHHH" "IE44444E" "J72222IC" "KHIKOKIH" "LGGGGGGV"
        "MHRLLHHH" "NHHPLJHH" "OEHHHHHE" "PUHHUGGG" "QEHHHLID" "RUHHUKIH" "SFGGE11U" "TV444444"
        "UHHHHHHE" "VHHHHHA4" "WHHHLLLA" "XHHA4AHH" "YHHHA444" "ZV1248GV" ".00000CC" ",0000C48"
        "-000E000" "+044V440" "=00V0V00" ":0CC0CC0" "/01248G0" "(2488842" ")8422248" "%OP248J3"
        "<248G842" ">8421248" "|4444444" "*04LEL40" "_000000V" "#AAVAVAA" "^4AH0000"
        "'4480000" ";0CC0C48" "?EH12404";
    const char *at = font;
    for (; *at; at += 8)
        if (*at == c)
            return at + 1;
    return c == ' ' ? "0000000" : "EH12404";
}

/* Where the text would end. */
static int plot_width(const char *text, int scale) {
    return scale * (PLOT_ADVANCE * (int)strlen(text) - (*text ? 1 : 0));
}

static void plot_text(plot *p, int x, int y, int scale, plot_colour c, const char *text) {
    for (; *text; text++, x += scale * PLOT_ADVANCE) {
        const char *glyph = plot_glyph(*text);
        int         i, j;
        for (j = 0; j < PLOT_LETTER; j++) {
            int row = glyph[j] <= '9' ? glyph[j] - '0' : glyph[j] - 'A' + 10;
            for (i = 0; i < 5; i++)
                if (row >> (4 - i) & 1)
                    plot_box(p, x + i * scale, y + j * scale, scale, scale, c);
        }
    }
}

/* Around x; a text wider than `room` loses its end. */
static void plot_centre(plot *p, int x, int y, int room, int scale, plot_colour c,
                        const char *text) {
    char cut[64];
    int  most = (room + scale) / (scale * PLOT_ADVANCE);
    snprintf(cut, sizeof cut, "%.*s", most < 63 ? most : 63, text);
    plot_text(p, x - plot_width(cut, scale) / 2, y, scale, c, cut);
}

static void plot_right(plot *p, int x, int y, int scale, plot_colour c, const char *text) {
    plot_text(p, x - plot_width(text, scale), y, scale, c, text);
}

/* ---- colour maps: few enough colours for a palette of 256 ------------------------------------ */

static plot_colour plot_mix(const unsigned char map[][3], int n, double u) {
    double v = (u < 0 ? 0 : u > 1 ? 1 : u) * (n - 1);
    int    i = v >= n - 1 ? n - 2 : (int)v, k, c[3];
    for (k = 0; k < 3; k++)
        c[k] = (int)(map[i][k] + (v - i) * (map[i + 1][k] - map[i][k]) + 0.5);
    return plot_rgb(c[0], c[1], c[2]);
}

/* -1 blue, 0 nearly white, 1 red: even steps of lightness on both sides. */
static plot_colour plot_diverging(double v) {
    static const unsigned char map[5][3] = {{20, 54, 116}, {98, 152, 207}, {246, 246, 243},
                                            {226, 134, 92}, {130, 22, 34}};
    return v == v ? plot_mix(map, 5, floor((v + 1) * 40 + 0.5) / 80) : plot_rgb(255, 0, 255);
}

/* 0 dark, 1 light. */
static inline plot_colour plot_sequential(double v) {
    static const unsigned char map[5][3] = {{13, 17, 45}, {64, 48, 134}, {170, 58, 116},
                                            {240, 132, 86}, {252, 238, 176}};
    return v == v ? plot_mix(map, 5, floor(v * 80 + 0.5) / 80) : plot_rgb(255, 0, 255);
}

static plot_colour plot_grey(double v) {
    int level = (int)(255 * floor((v > 0 ? v < 1 ? v : 1 : 0) * 100 + 0.5) / 100 + 0.5);
    return v == v ? plot_rgb(level, level, level) : plot_rgb(255, 0, 255);
}

typedef plot_colour plot_map(double v);

/* How numbers become colours: v in low..high is from..1 of the map. The channels of a picture are
   averaged, unless `mix` says that three of them are red, green and blue. */
typedef struct plot_look { plot_map *map; double from, low, high; int mix; } plot_look;

static plot_look plot_look_of(plot_map *map, double from, double low, double high) {
    plot_look look;
    look.map = map, look.from = from, look.low = low, look.high = high, look.mix = 0;
    return look;
}

static plot_look plot_signed(double range) {
    return plot_look_of(plot_diverging, -1, -range, range);
}

static plot_look plot_shades(double low, double high) {
    return plot_look_of(plot_grey, 0, low, high);
}

/* The scale of a look, its numbers below. */
static void plot_bar(plot *p, int x, int y, int w, const plot_look *look) {
    const double step = (1 - look->from) / (w > 1 ? w - 1 : 1);
    char         text[40], least[32];
    int          i, size = w >= 150 ? 2 : 1;
    for (i = 0; i < w; i++)
        plot_box(p, x + i, y, 1, 10, look->map(look->from + step * i));
    snprintf(text, sizeof text, "%.2g", look->high);
    snprintf(least, sizeof least, "%.2g", look->low);
    if (plot_width(text, size) + plot_width(least, size) + 6 > w)
        snprintf(text, sizeof text, "to %.2g", look->high); /* on both sides: no room for two */
    else
        plot_text(p, x, y + 14, size, PLOT_SOFT, least);
    plot_right(p, x + w, y + 14, size, PLOT_SOFT, text);
    if (look->from < 0 && w >= 80)
        plot_centre(p, x + w / 2, y + 14, w, size, PLOT_SOFT, "0");
}

/* ---- numbers as images ----------------------------------------------------------------------- */

static double plot_share(const plot_look *look, double v) {
    return (v - look->low) / (look->high > look->low ? look->high - look->low : 1);
}

/* One pixel of a picture in c x h x w numbers; elements whose `hide` is not 0 are hidden. */
static plot_colour plot_pixel(const plot_look *look, const float *v, const unsigned char *hide,
                              fo_shape s, int at) {
    int    k, shown = 0, level[3] = {PLOT_HIDDEN.r, PLOT_HIDDEN.g, PLOT_HIDDEN.b};
    double sum = 0;
    for (k = 0; k < s.c; k++) {
        const int i = k * s.h * s.w + at;
        if (hide && hide[i])
            continue;
        sum += (double)v[i];
        shown++;
        if (k < 3)
            level[k] = plot_grey(plot_share(look, (double)v[i])).r;
    }
    if (shown == 0)
        return PLOT_HIDDEN;
    if (s.c == 3 && look->mix)
        return plot_rgb(level[0], level[1], level[2]);
    return look->map(look->from + (1 - look->from) * plot_share(look, sum / shown));
}

static void plot_tile(plot *p, int x, int y, int zoom, fo_shape s, const float *v,
                      const unsigned char *hide, const plot_look *look) {
    int i, j;
    for (j = 0; j < s.h; j++)
        for (i = 0; i < s.w; i++)
            plot_box(p, x + i * zoom, y + j * zoom, zoom, zoom,
                     plot_pixel(look, v, hide, s, j * s.w + i));
}

/* The value that a share of the |values| do not exceed; never 0. */
static int plot_order(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static double plot_range(const float *v, const unsigned char *hide, int64_t n, double share) {
    float  *sorted = (float *)malloc((size_t)(n > 0 ? n : 1) * sizeof *sorted);
    double  range  = 0;
    int64_t i, m = 0;
    for (i = 0; sorted && i < n; i++)
        if ((hide == NULL || !hide[i]) && v[i] - v[i] == 0)
            sorted[m++] = (float)fabs((double)v[i]);
    if (m > 0) {
        qsort(sorted, (size_t)m, sizeof *sorted, plot_order);
        range = (double)sorted[(int64_t)(share * (double)(m - 1))];
    }
    free(sorted);
    return range > 1e-9 ? range : 1;
}

/* Under DIR/name; frees the canvas. */
static fo_result plot_save(fo_context *fo, plot *p, const char *path) {
    fo_result result = FO_ERR_MEMORY;
    if (fo_failed(fo) != FO_OK)
        result = fo_failed(fo); /* what failed before may have left holes in the picture */
    else if (p->rgb)
        result = fo_save_png(fo, path, p->w, p->h, 3, p->rgb);
    else
        fo_fail(fo, result, "%s: out of memory for %d x %d pixels", path, p->w, p->h);
    free(p->rgb);
    p->rgb = NULL;
    return result;
}

/* ---- texts that grow, and go to files whole -------------------------------------------------- */

typedef struct plot_string { char *s; size_t n, room; int failed; } plot_string;

static int plot_reserve(plot_string *t, size_t more) {
    size_t room = t->room ? t->room : 4096;
    char  *s;
    while (room - t->n <= more)
        room *= 2;
    if (room > t->room) {
        s = (char *)realloc(t->s, room);
        if (s == NULL)
            t->failed = 1;
        else
            t->s = s, t->room = room;
    }
    return !t->failed;
}

PLOT_PRINTF(2)
static void plot_add(plot_string *t, const char *format, ...) {
    va_list args;
    int     n;
    va_start(args, format);
    n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0 || !plot_reserve(t, (size_t)n))
        return;
    va_start(args, format);
    vsnprintf(t->s + t->n, (size_t)n + 1, format, args);
    va_end(args);
    t->n += (size_t)n;
}

/* For HTML and SVG. */
static inline void plot_escape(plot_string *t, const char *text) {
    for (; *text; text++)
        if (*text == '<')
            plot_add(t, "&lt;");
        else if (*text == '>')
            plot_add(t, "&gt;");
        else if (*text == '&')
            plot_add(t, "&amp;");
        else if (*text == '"')
            plot_add(t, "&quot;");
        else
            plot_add(t, "%c", *text);
}

/* Under a temporary name, then renamed: whoever looks finds the old file or the new one. */
static inline fo_result plot_write(fo_context *fo, const char *path, const plot_string *t) {
    char  name[1100];
    FILE *file = NULL;
    int   good = !t->failed && snprintf(name, sizeof name, "%s.part", path) < (int)sizeof name;
    if (good)
        file = fopen(name, "wb");
    good = file != NULL;
    if (file) {
        good = fwrite(t->s, 1, t->n, file) == t->n;
        good = fclose(file) == 0 && good;
#ifdef _WIN32 /* where rename does not replace */
        if (good)
            remove(path);
#endif
        good = good && rename(name, path) == 0;
        if (!good)
            remove(name);
    }
    return good ? FO_OK : fo_fail(fo, FO_ERR_FILE, "%s: could not be written: check the folder and "
                                  "the free space", path);
}

#endif /* PLOT_H */
