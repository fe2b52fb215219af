/* flowood: train, score and inspect normalizing flows from the command line.

   The main job of this repository, written with the public part of flowood.h only.
   Build: make (or cc -O2 -fopenmp -I. examples/flowood.c -lm). Help: flowood --help */
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"

static const char usage[] =
    "flowood - normalizing flows and out-of-distribution detection\n"
    "\n"
    "  flowood train   --data FILE [--preset PRESET | --spec FILE | --resume MODEL] --out MODEL\n"
    "                  [--seconds S] [--epochs N] [--steps N] [--batch N] [--lr X]\n"
    "                  [--schedule constant|cosine] [--ema DECAY] [--clip NORM]\n"
    "                  [--weight-decay X] [--on-nan stop|skip] [--negative FILE]\n"
    "                  [--seed N] [--threads N] [--memory MB] [--limit N]\n"
    "                  [--eval-in FILE --eval-ood FILE]\n"
    "  flowood eval    --model MODEL --in FILE --ood FILE [--ood FILE ...]\n"
    "                  [--score SCORE ...] [--limit N] [--threads N] [--json]\n"
    "                  [--norm running|batch] [--recalibrate FILE]\n"
    "  flowood score   --model MODEL --data FILE [--score SCORE] [--limit N] [--threads N]\n"
    "                  [--out scores.npy] [--norm running|batch] [--recalibrate FILE]\n"
    "  flowood sample  --model MODEL --n N [--temperature T] [--seed N] --out samples.png|.npy\n"
    "  flowood check   --model MODEL [--data FILE]\n"
    "  flowood info    --model MODEL\n"
    "  flowood presets\n"
    "\n"
    "FILE   IDX (as MNIST is published) or .npy (uint8, float16, float32, float64), plain or gzip\n"
    "MODEL  a safetensors file that holds the whole flow; train writes it, --resume goes on\n"
    "SPEC   a flow as text, one layer a line; flowood info prints one\n"
    "PRESET a name of flowood presets; NAME:L takes L for its bottleneck of 10: mlp-cycle:2\n"
    "SCORE  likelihood (-log p, the default) or latent (of the base density alone)\n"
    "\n"
    "--steps and --epochs count since training began, resumed or not; --seconds is for this run.\n"
    "Batch norm scores with running statistics, with those of each batch (--norm batch), or with\n"
    "those of FILE under the final weights (--recalibrate, at most 10000 samples). --negative\n"
    "lowers the likelihood of FILE while training. --ema, --clip, --weight-decay 0: none.\n"
    "Ctrl-C stops training and saves.\n"
    "Scores: higher means more out of distribution. In every metric OOD is the positive class.\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage.\n";

enum { MANY = 16 };

typedef struct options {
    const char *data, *preset, *spec, *resume, *out, *model, *in, *eval_in, *eval_ood, *schedule;
    const char *on_nan, *norm, *recalibrate, *negative;
    const char *ood[MANY], *score[MANY];
    int         n_ood, n_score, json;
    double      seconds, epochs, lr, ema, clip, weight_decay, temperature;
    int         has_ema, has_clip, has_decay;
    long long   steps, batch, seed, threads, memory, limit, n;
    int         has_seed;
} options;

/* ---- command line ---------------------------------------------------------------------------- */

static int fail_usage(const char *format, ...) {
    va_list args;
    fputs("flowood: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs(" (flowood --help shows the usage)\n", stderr);
    return 2;
}

static int fail(const char *format, ...) {
    va_list args;
    fputs("flowood: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs("\n", stderr);
    return 1;
}

/* One row an option: which commands take it (first letters), what it fills. */
typedef struct option_row {
    const char *name, *commands;
    char        kind; /* s text, m text repeated, d positive number, i whole number, f flag */
    void       *at;
    int        *count;
} option_row;

static int take(const option_row *row, const char *value) {
    char *end;
    if (row->kind == 'f') {
        *(int *)row->at = 1;
    } else if (row->kind == 's') {
        if (*(const char **)row->at)
            return fail_usage("%s is given twice", row->name);
        *(const char **)row->at = value;
    } else if (row->kind == 'm') {
        if (*row->count == MANY)
            return fail_usage("%s is given more than %d times", row->name, (int)MANY);
        ((const char **)row->at)[(*row->count)++] = value;
    } else if (row->kind == 'd') {
        double x = strtod(value, &end);
        if (end == value || *end || !(x >= 0) || x > 1e15)
            return fail_usage("%s %s: a number of at least 0 is needed", row->name, value);
        *(double *)row->at = x;
        if (row->count)
            *row->count = 1;
    } else {
        long long x = strtoll(value, &end, 10);
        if (end == value || *end || x < 0 || x > 1000000000000LL)
            return fail_usage("%s %s: a whole number of at least 0 is needed", row->name, value);
        *(long long *)row->at = x;
        if (row->count)
            *row->count = 1;
    }
    return 0;
}

static int parse(int argc, char **argv, options *o) {
    const option_row table[] = {
        {"--data", "train score check", 's', &o->data, NULL},
        {"--preset", "train", 's', &o->preset, NULL},
        {"--spec", "train", 's', &o->spec, NULL},
        {"--resume", "train", 's', &o->resume, NULL},
        {"--out", "train score sample", 's', &o->out, NULL},
        {"--model", "eval score sample check info", 's', &o->model, NULL},
        {"--in", "eval", 's', &o->in, NULL},
        {"--ood", "eval", 'm', o->ood, &o->n_ood},
        {"--score", "eval score", 'm', o->score, &o->n_score},
        {"--eval-in", "train", 's', &o->eval_in, NULL},
        {"--eval-ood", "train", 's', &o->eval_ood, NULL},
        {"--seconds", "train", 'd', &o->seconds, NULL},
        {"--epochs", "train", 'd', &o->epochs, NULL},
        {"--steps", "train", 'i', &o->steps, NULL},
        {"--batch", "train", 'i', &o->batch, NULL},
        {"--lr", "train", 'd', &o->lr, NULL},
        {"--schedule", "train", 's', &o->schedule, NULL},
        {"--ema", "train", 'd', &o->ema, &o->has_ema},
        {"--clip", "train", 'd', &o->clip, &o->has_clip},
        {"--weight-decay", "train", 'd', &o->weight_decay, &o->has_decay},
        {"--negative", "train", 's', &o->negative, NULL},
        {"--norm", "eval score", 's', &o->norm, NULL},
        {"--recalibrate", "eval score", 's', &o->recalibrate, NULL},
        {"--on-nan", "train", 's', &o->on_nan, NULL},
        {"--seed", "train sample", 'i', &o->seed, &o->has_seed},
        {"--threads", "train eval score sample check", 'i', &o->threads, NULL},
        {"--memory", "train", 'i', &o->memory, NULL},
        {"--limit", "train eval score", 'i', &o->limit, NULL},
        {"--n", "sample", 'i', &o->n, NULL},
        {"--temperature", "sample", 'd', &o->temperature, NULL},
        {"--json", "eval", 'f', &o->json, NULL},
    };
    int    i, status;
    size_t k;
    for (i = 2; i < argc; i++) {
        for (k = 0; k < sizeof table / sizeof table[0]; k++)
            if (strcmp(argv[i], table[k].name) == 0)
                break;
        if (k == sizeof table / sizeof table[0])
            return fail_usage("unknown option %s", argv[i]);
        if (strstr(table[k].commands, argv[1]) == NULL)
            return fail_usage("%s is not an option of %s", argv[i], argv[1]);
        if (table[k].kind != 'f' && i + 1 == argc)
            return fail_usage("%s needs a value", argv[i]);
        status = take(&table[k], table[k].kind == 'f' ? NULL : argv[++i]);
        if (status)
            return status;
    }
    return 0;
}

static fo_context *open_context(const options *o) {
    fo_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.seed    = (uint64_t)o->seed;
    desc.threads = (int)o->threads;
    return fo_open(&desc);
}

/* The one way out: the library's error, if any, in one line. */
static int close_context(fo_context *fo, int status) {
    if (fo_failed(fo))
        status = fail("%s", fo_error(fo));
    fo_close(fo);
    return status;
}

static fo_data *load(fo_context *fo, const char *path, long long limit) {
    fo_data *data = fo_load(fo, path);
    if (data && limit > 0 && limit < fo_data_count(data))
        fo_data_limit(data, limit);
    return data;
}

/* ---- train ----------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static int show_progress(void *user, const fo_progress *progress) {
    fo_progress_bar(user, progress);
    return interrupted;
}

static char *read_text(const char *path) {
    FILE  *file = fopen(path, "rb");
    char  *text = (char *)calloc(1, 1 << 20);
    size_t n    = file && text ? fread(text, 1, (1 << 20) - 1, file) : 0;
    if (file)
        fclose(file);
    if (n == 0) {
        free(text);
        return NULL;
    }
    return text;
}

static fo_flow *make_flow(fo_context *fo, const options *o, const fo_data *data) {
    fo_flow *flow;
    char    *text;
    if (o->resume)
        return fo_load_flow(fo, o->resume);
    if (o->spec == NULL)
        return fo_flow_preset(fo, o->preset ? o->preset : "mlp-cycle", fo_data_shape(data));
    text = read_text(o->spec);
    if (text == NULL) {
        fo_fail(fo, FO_ERR_FILE, "%s: cannot be read, or is empty", o->spec);
        return NULL;
    }
    flow = fo_flow_parse(fo, text);
    free(text);
    return flow;
}

/* -log_prob of every sample, and the mean bpd. */
static double *score_all(fo_workspace *ws, fo_context *fo, const fo_flow *flow,
                         const fo_data *data, const char *name, double *bpd) {
    int64_t i, n = fo_data_count(data);
    double *score = (double *)calloc((size_t)n + 1, sizeof *score), sum = 0;
    if (score == NULL)
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld scores", (long long)n);
    else if (bpd && fo_score(ws, data, 0, n, "likelihood", score) == FO_OK) {
        for (i = 0; i < n; i++)
            sum += fo_bpd(-score[i], fo_flow_shape(flow));
        *bpd = sum / (double)n;
    }
    if (score && (bpd == NULL || strcmp(name, "likelihood") != 0))
        fo_score(ws, data, 0, n, name, score);
    return score;
}

/* A line of metrics after each epoch. */
static void show_epoch(fo_context *fo, fo_flow *flow, const fo_data *in, const fo_data *ood) {
    fo_workspace *ws = fo_workspace_create(fo, flow, 0);
    double        bpd[2] = {0, 0};
    double       *a = score_all(ws, fo, flow, in, "likelihood", &bpd[0]);
    double       *b = score_all(ws, fo, flow, ood, "likelihood", &bpd[1]);
    fo_metrics    m;
    if (!fo_failed(fo) &&
        fo_measure(fo, a, fo_data_count(in), b, fo_data_count(ood), &m) == FO_OK)
        printf("step %lld  bpd in %.4f  bpd ood %.4f  likelihood auroc %.4f\n",
               (long long)fo_flow_steps(flow), bpd[0], bpd[1], m.auroc);
    fflush(stdout);
    free(a);
    free(b);
    fo_workspace_free(ws);
}

static void train_with_evaluation(fo_context *fo, fo_flow *flow, const fo_data *data,
                                  const options *o, fo_train_desc desc) {
    fo_data *in = load(fo, o->eval_in, o->limit ? o->limit : 2000);
    fo_data *ood = load(fo, o->eval_ood, o->limit ? o->limit : 2000);
    int64_t  batch = desc.batch ? desc.batch : fo_flow_train_desc(flow).batch;
    double   epochs = desc.epochs, elapsed = 0, size = (double)fo_data_count(data);
    while (!fo_failed(fo) && !interrupted) {
        double  done = (double)fo_flow_steps(flow) * (double)batch / size;
        int64_t before = fo_flow_steps(flow);
        desc.epochs = floor(done + 1e-9) + 1;
        if (epochs > 0 && desc.epochs > epochs)
            desc.epochs = epochs;
        desc.seconds = o->seconds > 0 ? o->seconds - elapsed : 0;
        if (o->seconds > 0 && desc.seconds <= 0)
            break;
        elapsed -= fo_clock();
        fo_train(flow, data, &desc);
        elapsed += fo_clock();
        if (fo_flow_steps(flow) == before)
            break;
        show_epoch(fo, flow, in, ood);
    }
}

/* What an option asks for: a written 0 means none, no option means the default. */
static double given(double value, int is_given) { return is_given && value == 0 ? -1 : value; }

static int train(options *o) {
    fo_context   *fo;
    fo_data      *data;
    fo_flow      *flow;
    fo_train_desc desc;
    int64_t       before;
    if (o->data == NULL || o->out == NULL)
        return fail_usage("train needs --data and --out");
    if ((o->preset != NULL) + (o->spec != NULL) + (o->resume != NULL) > 1)
        return fail("--preset, --spec and --resume each say what to train: give one of them");
    if (o->resume && o->has_seed)
        return fail("--resume goes on with the seed of the model: --seed contradicts it");
    if ((o->eval_in == NULL) != (o->eval_ood == NULL))
        return fail("--eval-in and --eval-ood belong together: give both or none");
    if (o->eval_in && o->schedule && strcmp(o->schedule, "cosine") == 0)
        return fail("--schedule cosine needs one run from start to end: drop --eval-in");
    memset(&desc, 0, sizeof desc);
    if (o->schedule && strcmp(o->schedule, "cosine") == 0)
        desc.schedule = FO_COSINE;
    else if (o->schedule && strcmp(o->schedule, "constant") != 0)
        return fail("--schedule %s: constant and cosine are known", o->schedule);
    if (o->on_nan && strcmp(o->on_nan, "skip") == 0)
        desc.on_nan = FO_NAN_SKIP;
    else if (o->on_nan && strcmp(o->on_nan, "stop") != 0)
        return fail("--on-nan %s: stop and skip are known", o->on_nan);
    if (o->batch > 1 << 20)
        return fail("--batch %lld: at most %d", o->batch, 1 << 20);
    desc.seconds      = o->seconds;
    desc.epochs       = o->epochs;
    desc.steps        = o->steps;
    desc.batch        = (int)o->batch;
    desc.lr           = o->lr;
    desc.ema          = given(o->ema, o->has_ema);
    desc.clip         = given(o->clip, o->has_clip);
    desc.weight_decay = given(o->weight_decay, o->has_decay);
    desc.memory_mb    = (double)o->memory;
    desc.progress     = show_progress;
    fo   = open_context(o);
    data = load(fo, o->data, o->limit);
    flow = data ? make_flow(fo, o, data) : NULL;
    if (o->negative)
        desc.negative = load(fo, o->negative, o->limit);
    fo_save(flow, o->out); /* a path that cannot be written fails now, not after an hour */
    before = fo_flow_steps(flow);
    signal(SIGINT, on_interrupt);
    if (o->eval_in && flow && !fo_failed(fo))
        train_with_evaluation(fo, flow, data, o, desc);
    else
        fo_train(flow, data, &desc);
    fo_save(flow, o->out);
    if (!fo_failed(fo))
        printf("%s %lld steps to %s%s\n", interrupted ? "stopped after" : "trained",
               (long long)(fo_flow_steps(flow) - before), o->out,
               fo_flow_steps(flow) == before
                   ? ": nothing was left to do; raise --steps or --epochs, which are totals" : "");
    return close_context(fo, 0);
}

/* ---- eval, score ----------------------------------------------------------------------------- */

static void print_json_text(const char *text) {
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < 32)
            printf("\\u%04x", (unsigned)*text);
        else
            putchar(*text);
}

static void print_metrics(const options *o, const char *score, const char *norm, const char *ood,
                          long long n_in, long long n_ood, const fo_metrics *m, double bpd_in,
                          double bpd_ood) {
    if (o->json) {
        printf("{\"score\": \"%s\", \"ood\": \"", score);
        print_json_text(ood);
        printf("\", \"n_in\": %lld, \"n_ood\": %lld, \"auroc\": %.6f, \"aupr_in\": %.6f, "
               "\"aupr_out\": %.6f, \"fpr95\": %.6f, \"bpd_in\": %.6f, \"bpd_ood\": %.6f, "
               "\"norm\": \"%s\"}\n",
               n_in, n_ood, m->auroc, m->aupr_in, m->aupr_out, m->fpr95, bpd_in, bpd_ood, norm);
    } else {
        printf("%-11s %6.4f  %6.4f  %6.4f  %6.4f  %7.4f  %7.4f  %s\n", score, m->auroc, m->aupr_in,
               m->aupr_out, m->fpr95, bpd_in, bpd_ood, ood);
    }
}

/* Opens a workspace with the batch-norm statistics asked for; says which in `norm`. */
static fo_workspace *open_workspace(fo_context *fo, fo_flow *flow, const options *o,
                                    const char **norm) {
    fo_workspace *ws;
    *norm = "running";
    if (o->norm && strcmp(o->norm, "batch") != 0 && strcmp(o->norm, "running") != 0) {
        fo_fail(fo, FO_ERR_ARGUMENT, "--norm %s: running and batch are known", o->norm);
        return NULL;
    }
    if (o->norm && strcmp(o->norm, "batch") == 0 && o->recalibrate) {
        fo_fail(fo, FO_ERR_ARGUMENT, "--norm batch uses no stored statistics: --recalibrate "
                                     "contradicts it");
        return NULL;
    }
    if (o->recalibrate && flow) {
        fo_data *data = load(fo, o->recalibrate, 10000);
        fo_recalibrate(flow, data, fo_data_count(data));
        fo_data_free(data);
        *norm = "recalibrated";
    }
    ws = fo_workspace_create(fo, flow, 0);
    if (ws && o->norm && strcmp(o->norm, "batch") == 0) {
        fo_workspace_norm(ws, FO_NORM_BATCH);
        *norm = "batch";
    }
    return ws;
}

static int eval(options *o) {
    const char   *norm;
    fo_context   *fo;
    fo_flow      *flow;
    fo_workspace *ws;
    fo_data      *in;
    int           s, d;
    if (o->model == NULL || o->in == NULL || o->n_ood == 0)
        return fail_usage("eval needs --model, --in and --ood");
    if (o->n_score == 0)
        o->score[o->n_score++] = "likelihood";
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model);
    ws   = open_workspace(fo, flow, o, &norm);
    in   = ws ? load(fo, o->in, o->limit) : NULL;
    if (!o->json && in)
        printf("score        auroc aupr_in aupr_out   fpr95   bpd_in  bpd_ood  (%lld samples of "
               "%s; OOD is positive; batch norm, if any: %s statistics)\n",
               (long long)fo_data_count(in), o->in, norm);
    for (d = 0; d < o->n_ood && !fo_failed(fo); d++) {
        fo_data *ood = load(fo, o->ood[d], o->limit);
        for (s = 0; s < o->n_score && !fo_failed(fo); s++) {
            double     bpd[2] = {0, 0};
            fo_metrics m;
            double    *a = score_all(ws, fo, flow, in, o->score[s], &bpd[0]);
            double    *b = score_all(ws, fo, flow, ood, o->score[s], &bpd[1]);
            if (!fo_failed(fo) &&
                fo_measure(fo, a, fo_data_count(in), b, fo_data_count(ood), &m) == FO_OK)
                print_metrics(o, o->score[s], norm, o->ood[d], fo_data_count(in),
                              fo_data_count(ood), &m, bpd[0], bpd[1]);
            free(a);
            free(b);
        }
        fo_data_free(ood);
    }
    return close_context(fo, 0);
}

static int score(options *o) {
    const char   *norm;
    fo_context   *fo;
    fo_flow      *flow;
    fo_workspace *ws;
    fo_data      *data;
    double       *values = NULL;
    int64_t       i, n;
    if (o->model == NULL || o->data == NULL)
        return fail_usage("score needs --model and --data");
    if (o->n_score > 1)
        return fail("--score is given %d times: score writes one; eval takes several", o->n_score);
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model);
    ws   = open_workspace(fo, flow, o, &norm);
    data = ws ? load(fo, o->data, o->limit) : NULL;
    n    = fo_data_count(data);
    if (data)
        values = score_all(ws, fo, flow, data, o->n_score ? o->score[0] : "likelihood", NULL);
    if (!fo_failed(fo) && o->out)
        fo_save_npy(fo, o->out, FO_F64, 1, &n, values);
    for (i = 0; i < n && !fo_failed(fo) && o->out == NULL; i++)
        printf("%.9g\n", values[i]);
    free(values);
    return close_context(fo, 0);
}

/* ---- sample ---------------------------------------------------------------------------------- */

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* A grid of images with thin lines between them; grey levels rounded. */
static void save_grid(fo_context *fo, const char *path, const fo_real *x, int n, fo_shape s) {
    int columns = (int)ceil(sqrt((double)n)), rows = (n + columns - 1) / columns;
    int w = columns * (s.w + 2) + 2, h = rows * (s.h + 2) + 2, i, c, y, k;
    unsigned char *pixels = (unsigned char *)calloc((size_t)w * (size_t)h, (size_t)s.c);
    if (pixels == NULL) {
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for a picture of %d x %d", w, h);
        return;
    }
    memset(pixels, 64, (size_t)w * (size_t)h * (size_t)s.c);
    for (i = 0; i < n; i++)
        for (c = 0; c < s.c; c++)
            for (y = 0; y < s.h; y++)
                for (k = 0; k < s.w; k++) {
                    int py = 2 + i / columns * (s.h + 2) + y, px = 2 + i % columns * (s.w + 2) + k;
                    fo_real grey = x[((i * s.c + c) * s.h + y) * s.w + k];
                    pixels[((size_t)py * (size_t)w + (size_t)px) * (size_t)s.c + (size_t)c] =
                        (unsigned char)(grey + (fo_real)0.5);
                }
    fo_save_png(fo, path, w, h, s.c, pixels);
    free(pixels);
}

static int sample(options *o) {
    fo_context   *fo;
    fo_flow      *flow;
    fo_workspace *ws;
    fo_shape      s;
    fo_real      *x;
    if (o->model == NULL || o->out == NULL || o->n < 1)
        return fail_usage("sample needs --model, --n and --out");
    if (o->n > 10000)
        return fail("--n %lld: at most 10000", o->n);
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model);
    ws   = fo_workspace_create(fo, flow, 0);
    s    = fo_flow_shape(flow);
    x    = ws ? (fo_real *)calloc((size_t)o->n * (size_t)fo_shape_count(s), sizeof *x) : NULL;
    if (ws && x == NULL)
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld samples", o->n);
    if (x && fo_sample(ws, (uint64_t)o->seed, o->n, o->temperature, x) == FO_OK) {
        int64_t dim[4];
        dim[0] = o->n, dim[1] = s.c, dim[2] = s.h, dim[3] = s.w;
        if (ends_with(o->out, ".npy"))
            fo_save_npy(fo, o->out, sizeof(fo_real) == 8 ? FO_F64 : FO_F32,
                        s.h * s.w > 1 ? 4 : 2, dim, x);
        else if ((s.c == 1 || s.c == 3) && s.h * s.w > 1)
            save_grid(fo, o->out, x, (int)o->n, s);
        else
            fo_fail(fo, FO_ERR_SHAPE, "samples of %dx%dx%d are no picture: give --out a name that "
                    "ends in .npy", s.c, s.h, s.w);
    }
    free(x);
    return close_context(fo, 0);
}

/* ---- check, info, presets -------------------------------------------------------------------- */

/* Without data: noise images, or normal vectors. */
static fo_data *any_data(fo_context *fo, fo_shape s, void **rows) {
    int64_t i, n = 64 * fo_shape_count(s);
    float  *x    = (float *)calloc((size_t)n, sizeof *x);
    fo_real u;
    for (i = 0; x && i < n; i++) {
        fo_random_uniform(0, 0, (uint64_t)i, 1, &u);
        x[i] = s.h * s.w > 1 ? (float)floor(u * 256) : (float)u;
    }
    *rows = x;
    return fo_data_view(fo, x, FO_F32, 64, s);
}

static int check(options *o) {
    fo_context     *fo;
    fo_flow        *flow;
    fo_data        *data = NULL;
    fo_check_report r;
    void           *rows = NULL;
    int             bad  = 0;
    if (o->model == NULL)
        return fail_usage("check needs --model");
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model);
    if (flow)
        data = o->data ? load(fo, o->data, 64) : any_data(fo, fo_flow_shape(flow), &rows);
    if (data && fo_check(flow, data, &r) == FO_OK) {
        bad = !(r.round_trip < 1e-2) || !(r.logdet_pair < 1e-5) || !(r.jacobian < 1e-2) ||
              !(r.gradient < 5e-2) || r.untouched > 0;
        printf("round trip   %.3g  max |x - decode(encode(x))|, grey levels for images; < 0.01\n"
               "logdet pair  %.3g  |logdet(encode) + logdet(decode)|, relative; < 1e-5\n",
               r.round_trip, r.logdet_pair);
        if (r.jacobian < 0)
            printf("jacobian     not measured: more than 1024 dimensions\n");
        else
            printf("jacobian     %.3g  |logdet - numeric log|det J||, relative; < 0.01\n",
                   r.jacobian);
        printf("gradient     %.3g  numeric against analytic, relative; < 0.05\n"
               "untouched    %d  elements that no coupling changes; 0\n%s\n",
               r.gradient, r.untouched, bad ? "FAILED" : "ok");
    }
    free(rows);
    return close_context(fo, bad);
}

static int info(options *o) {
    fo_context   *fo;
    fo_flow      *flow;
    fo_train_desc d;
    int64_t       count = 0;
    if (o->model == NULL)
        return fail_usage("info needs --model");
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model);
    if (flow) {
        fo_params(flow, &count);
        d = fo_flow_train_desc(flow);
        printf("%s# %lld parameters in %d arrays, %.1f MB\n# trained for %lld steps of %d samples, "
               "lr %g, ema %g, seed %llu\n", fo_flow_text(flow), (long long)count,
               fo_param_count(flow), (double)count * sizeof(fo_real) / 1e6,
               (long long)fo_flow_steps(flow), d.batch, d.lr, d.ema, (unsigned long long)d.seed);
    }
    return close_context(fo, 0);
}

static int presets(options *o) {
    fo_preset p;
    int       i;
    (void)o;
    for (i = 0; (p = fo_preset_at(i)).name; i++) {
        printf("%-18s %s (batch %d, lr %g", p.name, p.about, p.batch, p.lr);
        if (p.colour_lr > 0)
            printf(", of colour %g", p.colour_lr);
        puts(")");
    }
    return 0;
}

static const struct {
    const char *name;
    int (*run)(options *o);
} commands[] = {{"train", train}, {"eval", eval},   {"score", score},   {"sample", sample},
                {"check", check}, {"info", info}, {"presets", presets}};

int main(int argc, char **argv) {
    options o;
    int     status;
    size_t  k;
    memset(&o, 0, sizeof o);
    o.temperature = 1;
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0)) {
        fputs(usage, stdout);
        return 0;
    }
    if (argc < 2)
        return fail_usage("a command is needed");
    for (k = 0; strcmp(argv[1], commands[k].name) != 0;)
        if (++k == sizeof commands / sizeof commands[0])
            return fail_usage("unknown command %s", argv[1]);
    if (argc > 2 && strcmp(argv[2], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    status = parse(argc, argv, &o);
    if (status == 0)
        status = commands[k].run(&o);
    if (fflush(stdout) != 0 || ferror(stdout))
        return fail("standard output cannot be written");
    return status;
}
