/* flowood: train, score and inspect normalizing flows from the command line.

   The main job of this repository, written with the public part of flowood.h only. The command
   line is read by cli.h; options and commands are in the tool*.h files, the small commands here.
   Build: make (or cc -O2 -fopenmp -I. examples/flowood.c -lm). Help: flowood --help */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "cli.h"
#include "tool.h"
#include "tool_detect.h"
#include "tool_eval.h"
#include "tool_figures.h"
#include "tool_train.h"


/* ---- sample ---------------------------------------------------------------------------------- */

/* A grid of images with thin lines between them; grey levels rounded. */
static void save_grid(fo_context *fo, const char *path, const fo_real *x, int64_t n, fo_shape s) {
    int64_t columns = (int64_t)ceil(sqrt((double)n)), rows_needed = (n + columns - 1) / columns;
    int64_t w = columns * (s.w + 2) + 2, h = rows_needed * (s.h + 2) + 2, i, c, y, k;
    unsigned char *pixels = NULL;
    if (w > 65535 || h > 65535) {
        fo_fail(fo, FO_ERR_ARGUMENT, "%s: a picture of %lld x %lld pixels: give --out a name that "
                "ends in .npy", path, (long long)w, (long long)h);
        return;
    }
    pixels = (unsigned char *)calloc((size_t)(w * h), (size_t)s.c);
    if (pixels == NULL) {
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for a picture of %lld x %lld", (long long)w,
                (long long)h);
        return;
    }
    memset(pixels, 64, (size_t)(w * h * s.c));
    for (i = 0; i < n; i++)
        for (c = 0; c < s.c; c++)
            for (y = 0; y < s.h; y++)
                for (k = 0; k < s.w; k++) {
                    int64_t row = 2 + i / columns * (s.h + 2) + y;
                    int64_t column = 2 + i % columns * (s.w + 2) + k;
                    fo_real grey = x[((i * s.c + c) * s.h + y) * s.w + k];
                    /* a flow without dequantize clamps nothing */
                    grey = grey > 0 ? grey < 255 ? grey : 255 : 0;
                    pixels[(row * w + column) * s.c + c] = (unsigned char)(grey + (fo_real)0.5);
                }
    fo_save_png(fo, path, (int)w, (int)h, s.c, pixels);
    free(pixels);
}

static int sample(void *options_read) {
    const options *o = (const options *)options_read;
    const double   temperature = o->temperature.given ? o->temperature.number : 1;
    const int64_t  n = (int64_t)o->n.number;
    fo_context    *fo;
    fo_flow       *flow;
    fo_workspace  *ws;
    fo_shape       s;
    fo_real       *x = NULL;
    int64_t        dim[4], size;
    if (cli_check_ending(&o->out, "--out", "samples", ".png .npy") != CLI_OK)
        return CLI_USAGE;
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    s    = fo_flow_shape(flow);
    size = fo_shape_count(s);
    if (flow && !cli_ends_with(o->out.text, ".npy") && ((s.c != 1 && s.c != 3) || s.h * s.w == 1))
        fo_fail(fo, FO_ERR_SHAPE, "%s: its samples of %dx%dx%d are no picture: give --out a name "
                "that ends in .npy", o->model.text, s.c, s.h, s.w);
    ws = flow && !fo_failed(fo) ? fo_workspace_create(fo, flow, 0) : NULL;
    if (ws && n <= INT64_MAX / 8 / size)
        x = (fo_real *)calloc((size_t)n, (size_t)size * sizeof *x);
    if (ws && x == NULL)
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld samples of %lld numbers: ask for fewer, "
                "with another --seed each time", (long long)n, (long long)size);
    if (x && fo_sample(ws, (uint64_t)o->seed.number, n, temperature, x) == FO_OK) {
        dim[0] = n, dim[1] = s.c, dim[2] = s.h, dim[3] = s.w;
        if (cli_ends_with(o->out.text, ".npy"))
            fo_save_npy(fo, o->out.text, sizeof(fo_real) == 8 ? FO_F64 : FO_F32,
                        s.h * s.w > 1 ? 4 : 2, dim, x);
        else
            save_grid(fo, o->out.text, x, n, s);
    }
    free(x);
    return close_context(fo, CLI_OK);
}

/* ---- check, export, info, presets ------------------------------------------------------------ */

/* Without data: noise images, or normal vectors. */
static fo_data *any_data(fo_context *fo, fo_shape s, void **values) {
    int64_t i, n = 64 * fo_shape_count(s);
    float  *x    = (float *)calloc((size_t)n, sizeof *x);
    fo_real u;
    for (i = 0; x && i < n; i++) {
        fo_random_uniform(0, 0, (uint64_t)i, 1, &u);
        x[i] = s.h * s.w > 1 ? (float)floor(u * 256) : (float)u;
    }
    *values = x;
    return fo_data_view(fo, x, FO_F32, 64, s);
}

/* Shows what is being measured: twice a second on a terminal, every five seconds elsewhere. */
typedef struct watch {
    double begin, shown;
} watch;

static int on_check(void *user, const char *what, int64_t done, int64_t of) {
    watch       *seen     = (watch *)user;
    const int    terminal = cli_is_terminal(stderr);
    const double now      = fo_clock();
    if (now < seen->shown + (terminal ? 0.5 : 5))
        return 0;
    seen->shown = now;
    fprintf(stderr, terminal ? "\r%s: %lld of %lld, %.0f s  " : "%s: %lld of %lld, %.0f s\n", what,
            (long long)done, (long long)of, now - seen->begin);
    return 0;
}

/* One line: the name, the number or that there is none, what it means, what was seen. */
static void print_check(const char *name, double value, int measured, const char *about) {
    char number[32];
    snprintf(number, sizeof number, measured ? "%.3g" : "-", value);
    printf("%-12s %-9s %s; ", name, number, about);
    if (!measured)
        printf("no time, take more --seconds\n");
}

/* Prints the report; 1: something is wrong. What was not measured is not. */
static int print_report(const fo_check_report *r, double seconds) {
    const int jacobian = r->columns > 0 || r->layers > 0, gradient = r->parameters > 0;
    const int there = r->samples > 0;
    const int bad =
        (there && (!(r->round_trip < 1e-2) || !(r->logdet_pair < 1e-5))) ||
        (jacobian && !(r->jacobian < 1e-2)) || (gradient && !(r->gradient < 5e-2)) ||
        r->untouched > 0;
    print_check("round trip", r->round_trip, there,
                "max |x - decode(encode(x))|, grey levels for images; < 0.01");
    if (there)
        printf("%lld samples\n", (long long)r->samples);
    print_check("logdet pair", r->logdet_pair, there,
                "|logdet(encode) + logdet(decode)|, relative; < 1e-5");
    if (there)
        printf("the same samples\n");
    print_check("jacobian", r->jacobian, jacobian,
                "|logdet - numeric log|det J||, relative; < 0.01");
    if (jacobian && r->columns)
        printf("the whole flow\n");
    else if (jacobian)
        printf("%d of %d layers, one by one\n", r->layers, r->layers_of);
    print_check("gradient", r->gradient, gradient, "numeric against analytic, relative; < 0.05");
    if (gradient)
        printf("%d of %d parameters\n", r->parameters, r->parameters_of);
    printf("%-12s %-9d elements that no coupling changes; 0\n%s after %.1f s\n", "untouched",
           r->untouched, bad ? "FAILED" : "ok", seconds);
    return bad;
}

static int check(void *options_read) {
    const options  *o = (const options *)options_read;
    fo_context     *fo = open_context(o);
    fo_flow        *flow = fo_load_flow(fo, o->model.text);
    fo_data        *data = NULL;
    fo_check_desc   desc;
    fo_check_report r;
    watch           seen;
    void           *values = NULL;
    int             bad    = 0;
    seen.begin = seen.shown = fo_clock();
    memset(&desc, 0, sizeof desc);
    desc.seconds  = o->seconds.number;
    desc.progress = on_check;
    desc.user     = &seen;
    if (flow)
        data = o->data.given ? load_for(fo, flow, o, o->model.text, o->data.text, ALL, 64)
                             : any_data(fo, fo_flow_shape(flow), &values);
    if (data && fo_check(flow, data, &desc, &r) == FO_OK) {
        if (cli_is_terminal(stderr))
            fprintf(stderr, "\r%40s\r", "");
        bad = print_report(&r, fo_clock() - seen.begin);
    }
    free(values);
    return close_context(fo, bad);
}

/* The detector of the written model, whose weights may be rounded, to these samples. */
static void refit(fo_context *fo, const options *o, const fo_flow *flow, const fo_data *data,
                  const fo_save_desc *how) {
    const fo_detector_info info  = fo_flow_detector(flow);
    fo_flow               *small = fo_load_flow(fo, o->out.text);
    const char            *name[FO_MAX_SCORES];
    fo_detector_desc       desc;
    int                    i;
    for (i = 0; i < info.n_scores; i++)
        name[i] = fo_detector_score(flow, i);
    memset(&desc, 0, sizeof desc);
    desc.scores = name, desc.n_scores = info.n_scores, desc.combine = info.combine;
    if (small && fo_calibrate(small, data, &desc) == FO_OK &&
        fo_save_as(small, o->out.text, how) == FO_OK) {
        printf("%s ", o->out.text);
        print_detector(small);
    }
}

static int export(void *options_read) {
    const options *o = (const options *)options_read;
    fo_context    *fo;
    fo_flow       *flow;
    fo_data       *data = NULL;
    fo_save_desc   desc;
    if (cli_check_ending(&o->out, "--out", "a model", ".safetensors") != CLI_OK)
        return CLI_USAGE;
    memset(&desc, 0, sizeof desc);
    desc.weights_only = 1;
    if (o->f16.given)
        desc.type = FO_F16;
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    if (o->refit.given)
        data = load_for(fo, flow, o, o->model.text, o->refit.text, ALL, 0);
    if (!fo_failed(fo) && fo_save_as(flow, o->out.text, &desc) == FO_OK && data)
        refit(fo, o, flow, data, &desc);
    if (!fo_failed(fo) && !data && o->f16.given && fo_flow_detector(flow).ranked)
        fprintf(stderr, "flowood: %s decides nothing: its rounded weights are not those that the "
                "detector was fitted to; export with --calibrate FILE fits it to them\n",
                o->out.text);
    return close_context(fo, CLI_OK);
}

static int info(void *options_read) {
    const options *o = (const options *)options_read;
    fo_context    *fo = open_context(o);
    fo_flow       *flow = fo_load_flow(fo, o->model.text);
    fo_train_desc  d;
    int64_t        count = 0;
    if (flow) {
        fo_params(flow, &count);
        d = fo_flow_train_desc(flow);
        printf("%s# %lld parameters in %d arrays, %.1f MB\n", fo_flow_text(flow), (long long)count,
               fo_param_count(flow), (double)count * sizeof(fo_real) / 1e6);
        if (fo_flow_steps(flow) > 0)
            printf("# trained for %lld steps of %d samples, lr %g, ema %g, seed %llu\n",
                   (long long)fo_flow_steps(flow), d.batch, d.lr, d.ema,
                   (unsigned long long)d.seed);
        else
            puts("# weights alone: how they were trained is not in this file");
        if (fo_flow_train_count(flow) > 0)
            printf("# %lld samples to train on, %lld to choose the step by\n",
                   (long long)fo_flow_train_count(flow), (long long)fo_flow_held_out_count(flow));
        if (fo_flow_held_out_bpd(flow) == fo_flow_held_out_bpd(flow))
            printf("# held-out bpd %.4f\n", fo_flow_held_out_bpd(flow));
        if (fo_flow_detector(flow).ranked) {
            printf("# ");
            print_detector(flow);
        }
        if (fo_flow_constants(flow, NULL) > 0)
            printf("# %lld of %lld elements never changed in the training data\n",
                   (long long)fo_flow_constants(flow, NULL),
                   (long long)fo_shape_count(fo_flow_shape(flow)));
    }
    return close_context(fo, CLI_OK);
}

static int presets(void *options_read) {
    fo_preset p;
    int       i;
    (void)options_read;
    for (i = 0; (p = fo_preset_at(i)).name; i++) {
        printf("%-18s %s (batch %d, lr %g", p.name, p.about, p.batch, p.lr);
        if (p.colour_lr > 0)
            printf(", of colour %g", p.colour_lr);
        puts(")");
    }
    return CLI_OK;
}

static const cli_command commands[] = {
    {"train", "trains a flow, or one that was trained before further, and saves it", train},
    {"eval", "how well scores tell OOD samples from others: AUROC and more for each --ood", eval},
    {"score", "the scores of every sample, a line each, a column for each --score", score},
    {"encode", "latents of every sample, N x D numbers in --out, without dequantization noise",
     encode},
    {"calibrate", "fits the detector in MODEL to samples that it was never trained on", calibrate},
    {"detect", "which samples are out of distribution, at a promised rate of false alarms", detect},
    {"sample", "new samples: a picture of all, or their numbers", sample},
    {"figures", "the pictures of the paper for any model and data, and a report with all of them",
     draw_figures},
    {"export", "the model without what only training needs: a quarter of the size", export},
    {"check", "measures whether decode inverts encode, the log-determinant is right, and the "
              "gradients are; --data: on these samples", check},
    {"info", "a model's architecture as text, and how it was trained", info},
    {"presets", "lists the ready flows", presets}};

int main(int argc, char **argv) {
    static const char *const help[] = {"--help", "-h", "help"};
    const cli_program program = {"flowood", "normalizing flows and out-of-distribution detection",
                                 notes, commands, sizeof commands / sizeof commands[0], rows,
                                 sizeof rows / sizeof rows[0], "--model"};
    const char *word   = argc > 1 ? argv[1] : "";
    cli_guess   guess  = {word, NULL, 0};
    options     o;
    int         status, k, h;
    for (h = 0; h < 3; h++)
        if (strcmp(word, help[h]) == 0)
            return cli_end(cli_help(&program, NULL));
    if (strcmp(word, "--version") == 0)
        return cli_end(puts("flowood " FLOWOOD_VERSION_TEXT) < 0);
    if (argc < 2)
        return cli_usage("a command is needed");
    for (k = 0; k < program.n_commands && strcmp(word, commands[k].name) != 0; k++)
        cli_consider(&guess, commands[k].name);
    if (k == program.n_commands)
        return cli_unknown("command", &guess);
    for (h = 0; h < 2; h++)
        if (argc > 2 && strcmp(argv[2], help[h]) == 0)
            return cli_end(cli_help(&program, &commands[k]));
    memset(&o, 0, sizeof o);
    status = cli_parse(&program, word, argc - 2, argv + 2, &o);
    if (status == CLI_OK)
        status = cli_check_files(&program, &o, "--resume");
    if (status == CLI_OK)
        status = commands[k].run(&o);
    return cli_end(status);
}
