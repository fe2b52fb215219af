/* flowood: train, score and inspect normalizing flows from the command line.

   The main job of this repository, written with the public part of flowood.h only; the command
   line itself is read by cli.h. Build: make (or cc -O2 -fopenmp -I. examples/flowood.c -lm).
   Help: flowood --help */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <signal.h>
#include "cli.h"

#define VERSION "1.0"
enum { MB_MAX = 1 << 20, BATCH_MAX = 1 << 20 };
#define MANY 1e12 /* more than any count here */

/* ---- the command line ------------------------------------------------------------------------ */

/* field, name, kind, commands (! needs it), value, times, low, high, about */
#define OPTIONS(X)                                                                                 \
    X(data, "--data", INPUT, "train! score! encode! calibrate! detect! check", "FILE", 1, 0, 0,    \
      "samples; of calibrate, some that the model was never trained on")                           \
    X(preset, "--preset", TEXT, "train", "PRESET", 1, 0, 0,                                        \
      "a ready flow; default mlp-cycle, for vectors tabular")                                      \
    X(spec, "--spec", INPUT, "train", "SPEC", 1, 0, 0, "a flow of your own, as text")              \
    X(resume, "--resume", INPUT, "train", "MODEL", 1, 0, 0,                                        \
      "train this model further; may be --out as well")                                            \
    X(out, "--out", OUTPUT, "train! score encode! detect sample! export!", "FILE", 1, 0, 0,        \
      "where the result goes: a model; scores as .csv or .npy (default: printed); verdicts as"     \
      " .csv, .jsonl or .npy (p-values alone); latents as .npy; samples as .png or .npy, all held" \
      " in memory")                                                                                \
    X(alpha, "--alpha", NUMBER, "detect!", "A", 1, 1e-9, 0.999999,                                 \
      "the rate of false alarms to keep below")                                                    \
    X(confidence, "--confidence", NUMBER, "detect", "C", 1, 0, 0.999999,                           \
      "how sure that must be for this very calibration; default: on average over calibrations")    \
    X(bh, "--bh", FLAG, "detect", "", 1, 0, 0,                                                     \
      "alarms of which a share of at most A is false (Benjamini and Hochberg)")                    \
    X(seconds, "--seconds", NUMBER, "train", "S", 1, 0, 1e9, "stop after S seconds of this run")   \
    X(epochs, "--epochs", NUMBER, "train", "N", 1, 0, 1e9,                                         \
      "passes over the data since training began, resumed or not; default 1 if neither seconds"    \
      " nor steps are given")                                                                      \
    X(steps, "--steps", WHOLE, "train", "N", 1, 0, MANY, "steps since training began")             \
    X(batch, "--batch", WHOLE, "train", "N", 1, 1, BATCH_MAX, "samples a step")                    \
    X(lr, "--lr", NUMBER, "train", "X", 1, 1e-12, 10, "learning rate")                             \
    X(schedule, "--schedule", CHOICE, "train", "constant|cosine", 1, 0, 0,                         \
      "of the learning rate; cosine needs --steps or --epochs")                                    \
    X(ema, "--ema", NUMBER, "train", "DECAY", 1, 0, 0.999999999,                                   \
      "moving average of the weights, which scoring then uses; 0: none")                           \
    X(clip, "--clip", NUMBER, "train", "NORM", 1, 0, 1e15,                                         \
      "largest norm of a step's gradient; 0: any")                                                 \
    X(decay, "--weight-decay", NUMBER, "train", "X", 1, 0, 1e6, "0: none")                         \
    X(on_nan, "--on-nan", CHOICE, "train", "stop|skip", 1, 0, 0, "what a bad step does")           \
    X(negative, "--negative", INPUT, "train", "FILE", 1, 0, 0,                                     \
      "samples whose likelihood is lowered while training")                                        \
    X(holdout, "--holdout", WHOLE, "train", "N", 1, 0, MANY,                                       \
      "keep the last N samples of --data out of training, to measure by them: the model that is"   \
      " saved is the best on them; default a tenth of the data, at most 5000; 0: none; --resume"   \
      " needs the same")                                                                           \
    X(patience, "--patience", WHOLE, "train", "N", 1, 0, 1e9,                                      \
      "stop after N measurements without a better one; default 0: do not")                         \
    X(save_every, "--save-every", NUMBER, "train", "MINUTES", 1, 0, 1e6,                           \
      "save the best so far while training; default 5, fractions are fine; 0: at the end only")    \
    X(log, "--log", OUTPUT, "train", "FILE.csv", 1, 0, 0,                                          \
      "a table of the run: step,epoch,seconds,bpd,grad_norm,lr,held_out_bpd,auroc; --resume"       \
      " appends to it")                                                                            \
    X(eval_in, "--eval-in", INPUT, "train", "FILE", 1, 0, 0,                                       \
      "test samples, scored with --eval-ood after every epoch")                                    \
    X(eval_ood, "--eval-ood", INPUT, "train", "FILE", 1, 0, 0, "samples that do not belong")       \
    X(memory, "--memory", WHOLE, "train", "MB", 1, 0, MB_MAX,                                      \
      "train in less memory, slower, to the same bits")                                            \
    X(model, "--model", INPUT,                                                                     \
      "eval! score! encode! calibrate! detect! sample! export! check! info!", "MODEL", 1, 0, 0,    \
      "a trained flow; the option's name may be left out")                                         \
    X(in, "--in", INPUT, "eval!", "FILE", 1, 0, 0, "samples like those of training")               \
    X(ood, "--ood", INPUT, "eval!", "FILE", CLI_MANY, 0, 0, "samples that are not")                \
    X(score, "--score", TEXT, "eval score calibrate", "SCORE", CLI_MANY, 0, 0,                     \
      "default likelihood; of calibrate, what the verdict is made of: complexity for pixels")      \
    X(json, "--json", FLAG, "eval", "", 1, 0, 0, "one JSON object a line")                         \
    X(norm, "--norm", CHOICE, "eval score encode", "running|batch", 1, 0, 0,                       \
      "statistics of batch norm: those of training, or of each batch")                             \
    X(recalibrate, "--recalibrate", INPUT, "eval score encode", "FILE", 1, 0, 0,                   \
      "measure them on this, at most 10000 samples, under the final weights")                      \
    X(f16, "--f16", FLAG, "export", "", 1, 0, 0,                                                   \
      "weights of 16 bits: half the size again, log p moves by about 0.001 bits per dimension")    \
    X(n, "--n", WHOLE, "sample!", "N", 1, 1, MANY, "how many samples")                             \
    X(temperature, "--temperature", NUMBER, "sample", "T", 1, 0, 1000,                             \
      "standard deviation of the latents; default 1")                                              \
    X(limit, "--limit", WHOLE, "train eval score encode calibrate detect", "N", 1, 0, MANY,        \
      "only the first N samples of each file; of --eval-in and --eval-ood, default 2000")          \
    X(seed, "--seed", WHOLE, "train sample", "N", 1, 0, MANY, "of all random numbers; default 0")  \
    X(threads, "--threads", WHOLE, "train eval score encode calibrate detect sample check", "N",   \
      1, 0, 1024,                                                                                  \
      "default: every core")

typedef struct options {
#define FIELD(field, name, kind, commands, value, times, low, high, about) cli_option field;
    OPTIONS(FIELD)
#undef FIELD
} options;

static const cli_row rows[] = {
#define ROW(field, name, kind, commands, value, times, low, high, about)                           \
    {name, CLI_##kind, offsetof(options, field), commands, value, times, low, high, about},
    OPTIONS(ROW)
#undef ROW
};

static const char notes[] =
    "FILE   IDX (as MNIST is published) or .npy (uint8, float16, float32, float64),\n"
    "       plain or gzip\n"
    "MODEL  a safetensors file that holds the whole flow: train writes it\n"
    "SPEC   a flow as text, one layer a line: flowood info prints one\n"
    "PRESET a name of flowood presets; NAME:L takes L for its bottleneck of 10, as\n"
    "       in mlp-cycle:2\n"
    "SCORE  likelihood (-log p) or latent (of the base density alone)\n"
    "\n"
    "Higher scores mean more out of distribution. In every metric OOD is the\n"
    "positive class: fpr95 is the share of in-distribution samples that are taken\n"
    "for OOD when 95 % of the OOD samples are found; fpr95_in the share of OOD\n"
    "samples that pass when 95 % of the in-distribution samples pass.\n"
    "Ctrl-C and SIGTERM stop training and save. An existing --out is replaced only\n"
    "by a trained model, in one go; a run that is killed leaves the last save.\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage.\n";

/* ---- what every command does ----------------------------------------------------------------- */

static fo_context *open_context(const options *o) {
    fo_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.seed    = (uint64_t)o->seed.number;
    desc.threads = (int)o->threads.number;
    return fo_open(&desc);
}

/* The one way out: the library's error, if any, in one line; CLI_USAGE: an option is to blame. */
static int close_context(fo_context *fo, int status) {
    if (fo == NULL)
        return cli_fail("out of memory");
    if (fo_failed(fo))
        status = status == CLI_USAGE ? cli_usage("%s", fo_error(fo)) : cli_fail("%s", fo_error(fo));
    fo_close(fo);
    return status;
}

static fo_data *load(fo_context *fo, const char *path, double limit) {
    fo_data *data = fo_load(fo, path);
    if (data && limit > 0 && limit < (double)fo_data_count(data))
        fo_data_limit(data, (int64_t)limit);
    return data;
}

/* Samples for this flow, which `model` describes: a shape that does not fit names the file. */
static fo_data *load_for(fo_context *fo, const fo_flow *flow, const char *model, const char *path,
                         double limit) {
    fo_data *data = flow ? load(fo, path, limit) : NULL;
    fo_shape seen = fo_data_shape(data), want = fo_flow_shape(flow);
    if (data && (seen.c != want.c || seen.h != want.h || seen.w != want.w)) {
        fo_fail(fo, FO_ERR_SHAPE, "%s: its samples are %dx%dx%d, those of %s are %dx%dx%d", path,
                seen.c, seen.h, seen.w, model, want.c, want.h, want.w);
        fo_data_free(data);
        return NULL;
    }
    return data;
}

/* The score that is meant where none is named. */
static void default_score(options *o) {
    if (o->score.given == 0)
        o->score.list[o->score.given++] = o->score.text = "likelihood";
}

/* Names of scores that the library does not know are wrong usage. */
static int check_scores(options *o) {
    fo_score_kind kind;
    int           i, k;
    for (i = 0; i < o->score.given; i++) {
        cli_guess guess = {o->score.list[i], NULL, 0};
        for (k = 0; (kind = fo_score_at(NULL, k)).name && strcmp(kind.name, guess.word) != 0; k++)
            cli_consider(&guess, kind.name);
        if (kind.name == NULL)
            return cli_unknown("score", &guess);
        for (k = 0; k < i; k++)
            if (strcmp(o->score.list[k], guess.word) == 0)
                return cli_usage("--score %s is given twice", guess.word);
    }
    return CLI_OK;
}

static int check_norm(const options *o) {
    if (o->norm.given && strcmp(o->norm.text, "batch") == 0 && o->recalibrate.given)
        return cli_usage("--norm batch uses no stored statistics: --recalibrate contradicts it");
    return CLI_OK;
}

/* Opens a workspace with the batch-norm statistics asked for; says which in `norm`. */
static fo_workspace *open_workspace(fo_context *fo, fo_flow *flow, const options *o,
                                    const char **norm) {
    fo_workspace *ws;
    *norm = "running";
    if (o->recalibrate.given) {
        fo_data *data = load_for(fo, flow, o->model.text, o->recalibrate.text, 10000);
        if (data)
            fo_recalibrate(flow, data, fo_data_count(data));
        fo_data_free(data);
        *norm = "recalibrated";
    }
    ws = flow && !fo_failed(fo) ? fo_workspace_create(fo, flow, 0) : NULL;
    if (ws && o->norm.given && strcmp(o->norm.text, "batch") == 0) {
        fo_workspace_norm(ws, FO_NORM_BATCH);
        *norm = "batch";
    }
    return ws;
}

/* The scores of a set, one block a name, and the mean bpd. */
typedef struct scored {
    int64_t n;
    double *block, *score[CLI_MANY]; /* of one block */
    double  bpd;
} scored;

/* Scores of all samples from one encode of each: a block of n numbers for each name. */
static double *score_all(fo_context *fo, fo_workspace *ws, const fo_data *data,
                         const char *const *names, int n_names) {
    int64_t n = fo_data_count(data);
    double *score = (double *)calloc((size_t)n * (size_t)n_names + 1, sizeof *score);
    if (score == NULL)
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld scores", (long long)n * n_names);
    else
        fo_scores(ws, data, 0, n, names, n_names, 0, score);
    return score;
}

/* The scores asked for and, for bpd, the likelihood, which is one of them or comes last. */
static void score_set(fo_context *fo, fo_workspace *ws, const fo_flow *flow, const fo_data *data,
                      const cli_option *names, scored *out) {
    const char *all[CLI_MANY + 1];
    int64_t     i;
    int         s, likelihood = names->given, n = names->given;
    memset(out, 0, sizeof *out);
    out->n = fo_data_count(data);
    for (s = 0; s < names->given; s++) {
        all[s] = names->list[s];
        if (strcmp(all[s], "likelihood") == 0)
            likelihood = s;
    }
    if (likelihood == n)
        all[n++] = "likelihood";
    out->block = score_all(fo, ws, data, all, n);
    for (s = 0; s < names->given && out->block; s++)
        out->score[s] = out->block + s * out->n;
    for (i = 0; i < out->n && !fo_failed(fo); i++)
        out->bpd += fo_bpd(-out->block[likelihood * out->n + i], fo_flow_shape(flow)) /
                    (double)out->n;
}

static void scored_free(scored *set) { free(set->block); }

/* ---- train ----------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

/* Ctrl-C and SIGTERM end training after the step at hand. Both may come more than once. */
static void catch_signals(void) {
#ifdef _WIN32
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
#else
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags   = SA_RESTART;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
#endif
}

/* One run of training, as its progress function sees it. */
typedef struct run {
    const options *o;
    fo_context    *fo;
    fo_flow       *flow;
    fo_data       *data, *negative, *in, *ood;
    fo_data       *train, *held_out; /* the two parts of data; NULL: nothing is held out */
    FILE          *log;
    int64_t        before, reached;  /* steps when this run began, and at most           */
    int            shown, improved;  /* a line was shown; better than the last save      */
    int            usage;            /* what failed is the value of an option            */
    double         held_out_bpd;     /* the last measurement                             */
    int64_t        evaluated;        /* the step of the last line of metrics             */
    double         epoch;            /* and its whole epochs                             */
    double         saved, logged;    /* seconds of this run at the last save and log row */
    int64_t        logged_step;
} run;

/* A line of metrics; the AUROC of the likelihood, or NaN when scoring fails. */
static double show_evaluation(run *r) {
    const cli_option likelihood = {1, "likelihood", {"likelihood"}, 0};
    fo_workspace    *ws = fo_workspace_create(r->fo, r->flow, 0);
    scored           in, ood;
    fo_metrics       m;
    score_set(r->fo, ws, r->flow, r->in, &likelihood, &in);
    score_set(r->fo, ws, r->flow, r->ood, &likelihood, &ood);
    m.auroc = NAN;
    if (!fo_failed(r->fo) && fo_measure(r->fo, in.score[0], in.n, ood.score[0], ood.n, &m) == FO_OK)
        printf("step %lld  bpd in %.4f  bpd ood %.4f  likelihood auroc %.4f\n",
               (long long)fo_flow_steps(r->flow), in.bpd, ood.bpd, m.auroc);
    fflush(stdout);
    scored_free(&in);
    scored_free(&ood);
    fo_workspace_free(ws);
    return m.auroc;
}

/* A row every five seconds, with every measurement, and at the end. NaN leaves a cell empty. */
static void log_row(run *r, const fo_progress *p, double held_out_bpd, double auroc) {
    double cell[7];
    int    i;
    if (r->log == NULL || p->step <= r->logged_step ||
        (!p->last && isnan(held_out_bpd) && isnan(auroc) && p->elapsed < r->logged + 5))
        return;
    r->logged      = p->elapsed;
    r->logged_step = p->step;
    cell[0] = p->epoch, cell[1] = p->elapsed, cell[2] = p->bpd, cell[3] = p->grad_norm;
    cell[4] = p->lr, cell[5] = held_out_bpd, cell[6] = auroc;
    fprintf(r->log, "%lld", (long long)p->step);
    for (i = 0; i < 7; i++)
        if (isnan(cell[i]))
            fputs(",", r->log);
        else
            fprintf(r->log, ",%.9g", cell[i]);
    fputs("\n", r->log);
    fflush(r->log);
}

/* Saves the best state so far (fo_save does that while training runs), where there is a new one.
   A full disk must not end a long run: it is only told. */
static void save_meanwhile(run *r, const fo_progress *p) {
    const options *o     = r->o;
    double         every = 60 * (o->save_every.given ? o->save_every.number : 5);
    r->improved |= p->improved || isnan(p->held_out_bpd);
    if (every <= 0 || p->last || p->elapsed - r->saved < every || !r->improved)
        return;
    if (fo_save(r->flow, o->out.text) != FO_OK) {
        fprintf(stderr, "\nflowood: %s (training goes on)\n", fo_error(r->fo));
        fo_clear_error(r->fo);
    }
    r->saved    = p->elapsed;
    r->improved = 0;
}

static int on_progress(void *user, const fo_progress *progress) {
    run        *r        = (run *)user;
    fo_progress shown    = *progress;
    double      auroc    = NAN, held_out = NAN;
    int         evaluate = r->in && progress->step > r->evaluated &&
                   (floor(progress->epoch + 1e-9) > r->epoch || progress->last);
    if (progress->step == r->before && !r->shown) /* nothing was done yet */
        return interrupted;
    if (progress->held_out_bpd != r->held_out_bpd)
        held_out = r->held_out_bpd = progress->held_out_bpd;
    r->reached = progress->step > r->reached ? progress->step : r->reached;
    r->shown   = 1;
    shown.last |= evaluate; /* a line of its own before the metrics */
    fo_progress_bar(NULL, &shown);
    if (evaluate) {
        r->epoch     = floor(progress->epoch + 1e-9);
        r->evaluated = progress->step;
        auroc        = show_evaluation(r);
    }
    log_row(r, progress, held_out, auroc);
    save_meanwhile(r, progress);
    return interrupted;
}

static char *read_text(fo_context *fo, const char *path) {
    enum { SIZE = 1 << 20 };
    FILE  *file = fopen(path, "rb");
    char  *text = (char *)calloc(1, SIZE);
    size_t n    = file && text ? fread(text, 1, SIZE, file) : 0;
    if (file == NULL)
        fo_fail(fo, FO_ERR_FILE, "%s: cannot be opened", path);
    else if (n == 0)
        fo_fail(fo, FO_ERR_FILE, "%s: is empty or cannot be read", path);
    else if (n == SIZE || strlen(text) != n)
        fo_fail(fo, FO_ERR_FORMAT, "%s: is no text, or longer than 1 MB", path);
    if (file)
        fclose(file);
    if (fo_failed(fo)) {
        free(text);
        return NULL;
    }
    return text;
}

static fo_flow *make_flow(fo_context *fo, const options *o, const fo_data *data) {
    fo_shape    s      = fo_data_shape(data);
    int         vector = s.h * s.w == 1;
    const char *preset = o->preset.given ? o->preset.text : vector ? "tabular" : "mlp-cycle";
    fo_flow    *flow;
    char       *text;
    if (o->resume.given)
        return fo_load_flow(fo, o->resume.text);
    if (o->spec.given) {
        text = read_text(fo, o->spec.text);
        flow = text ? fo_flow_parse(fo, text) : NULL;
        free(text);
        return flow;
    }
    flow = fo_flow_preset(fo, preset, s);
    if (flow == NULL && vector && strncmp(preset, "tabular", 7) != 0) {
        fo_clear_error(fo);
        fo_fail(fo, FO_ERR_SHAPE, "%s: its samples are vectors of %d, and preset %s is for images: "
                "take --preset tabular", o->data.text, s.c, preset);
    }
    return flow;
}

/* logit wants numbers of 0..1; grey levels pass through dequantize first. */
static int check_range(fo_context *fo, const fo_flow *flow, const fo_data *data, const char *path) {
    fo_shape s    = fo_data_shape(data);
    int64_t  size = fo_shape_count(s), n = fo_data_count(data), i, k;
    fo_real *x;
    int      good = 1;
    if (flow == NULL || fo_flow_layers(flow) == 0 ||
        strncmp(fo_flow_layer_text(flow, 0), "logit", 5) != 0)
        return 1;
    x = (fo_real *)calloc((size_t)size, sizeof *x);
    for (i = 0; i < n && i < 100 && x && good; i++) {
        fo_data_get(data, i, x);
        for (k = 0; k < size && good; k++)
            good = x[k] >= 0 && x[k] <= 1;
        if (!good)
            fo_fail(fo, FO_ERR_ARGUMENT, "%s: sample %lld has the value %g, logit takes 0 to 1: "
                    "add dequantize before logit for grey levels, or scale the data", path,
                    (long long)i, (double)x[k - 1]);
    }
    free(x);
    return good;
}

/* A written 0 means none, no option means the default or, on a resumed model, as before. */
static double none_or(const cli_option *option) {
    return option->given && option->number == 0 ? -1 : option->number;
}

static fo_train_desc train_desc(const options *o) {
    fo_train_desc desc;
    memset(&desc, 0, sizeof desc);
    if (o->schedule.given)
        desc.schedule = strcmp(o->schedule.text, "cosine") == 0 ? FO_COSINE : FO_CONSTANT;
    if (o->on_nan.given)
        desc.on_nan = strcmp(o->on_nan.text, "skip") == 0 ? FO_NAN_SKIP : FO_NAN_STOP;
    desc.seconds      = o->seconds.number;
    desc.epochs       = o->epochs.number;
    desc.steps        = (int64_t)o->steps.number;
    desc.batch        = (int)o->batch.number;
    desc.lr           = o->lr.number;
    desc.ema          = none_or(&o->ema);
    desc.clip         = none_or(&o->clip);
    desc.weight_decay = none_or(&o->decay);
    desc.memory_mb    = none_or(&o->memory);
    desc.patience     = o->patience.given && o->patience.number == 0 ? -1 : (int)o->patience.number;
    desc.progress     = on_progress;
    return desc;
}

static int check_train(const options *o) {
    cli_guess guess = {o->preset.text, NULL, 0};
    size_t    n     = o->preset.given ? strcspn(o->preset.text, ":") : 0;
    int       i;
    if (o->preset.given + o->spec.given + o->resume.given > 1)
        return cli_usage("--preset, --spec and --resume each say what to train: give one of them");
    if (o->resume.given && o->seed.given)
        return cli_usage("--resume goes on with the seed of the model: --seed contradicts it");
    if (o->eval_in.given != o->eval_ood.given)
        return cli_usage("--eval-in and --eval-ood belong together: give both or none");
    if (o->patience.number > 0 && o->holdout.given && o->holdout.number == 0)
        return cli_usage("--patience needs held-out samples: --holdout 0 contradicts it");
    if (o->schedule.given && strcmp(o->schedule.text, "cosine") == 0 && !o->steps.given &&
        !o->epochs.given)
        return cli_usage("--schedule cosine needs --steps or --epochs, to know where it ends");
    for (i = 0; o->preset.given && fo_preset_at(i).name; i++) {
        const char *name = fo_preset_at(i).name;
        if (strlen(name) == n && strncmp(name, o->preset.text, n) == 0)
            break;
        cli_consider(&guess, name);
    }
    if (o->preset.given && fo_preset_at(i).name == NULL)
        return guess.best ? cli_unknown("preset", &guess)
                          : cli_usage("unknown preset %s: flowood presets lists them", guess.word);
    if (cli_check_ending(&o->log, "--log", "the log of a run", ".csv") != CLI_OK)
        return CLI_USAGE;
    return cli_check_ending(&o->out, "--out", "a model", ".safetensors");
}

/* The end of the data is kept out of training: always the same samples of a file. */
static void hold_out(run *r) {
    const cli_option *asked = &r->o->holdout;
    int64_t           n = fo_data_count(r->data), k = n / 10 < 5000 ? n / 10 : 5000;
    if (asked->given)
        k = asked->number < (double)n ? (int64_t)asked->number : n;
    r->usage |= k == n && n > 0;
    if (k == n && n > 0)
        fo_fail(r->fo, FO_ERR_ARGUMENT, "--holdout %s: nothing of the %lld samples of %s is left "
                "to train on", asked->text, (long long)n, r->o->data.text);
    r->train    = r->data;
    r->held_out = NULL;
    if (k > 0 && k < n) {
        r->train    = fo_data_part(r->data, 0, n - k);
        r->held_out = fo_data_part(r->data, n - k, k);
    }
}

/* Every file is opened and every shape compared before the first step. */
static void open_run(run *r, const options *o) {
    const double test  = o->limit.number > 0 ? o->limit.number : 2000;
    const char  *model = o->resume.given ? o->resume.text : o->data.text;
    memset(r, 0, sizeof *r);
    r->o    = o;
    r->fo   = open_context(o);
    r->data = load(r->fo, o->data.text, o->limit.number);
    r->flow = r->data ? make_flow(r->fo, o, r->data) : NULL;
    r->usage = o->preset.given && fo_failed(r->fo) == FO_ERR_ARGUMENT; /* as in mlp-cycle:x */
    if (r->flow && (o->resume.given || o->spec.given)) {
        fo_data_free(r->data);
        r->data = load_for(r->fo, r->flow, o->resume.given ? model : o->spec.text, o->data.text,
                           o->limit.number);
    }
    if (o->negative.given)
        r->negative = load_for(r->fo, r->flow, model, o->negative.text, o->limit.number);
    if (o->eval_in.given) {
        r->in  = load_for(r->fo, r->flow, model, o->eval_in.text, test);
        r->ood = load_for(r->fo, r->flow, model, o->eval_ood.text, test);
    }
    if (!fo_failed(r->fo))
        check_range(r->fo, r->flow, r->data, o->data.text);
    hold_out(r);
    r->before       = r->reached = fo_flow_steps(r->flow);
    r->held_out_bpd = NAN;
}

static void open_log(run *r) {
    const char *path = r->o->log.text;
    if (!r->o->log.given || fo_failed(r->fo))
        return;
    r->log = fopen(path, r->o->resume.given ? "ab" : "wb");
    if (r->log == NULL) {
        fo_fail(r->fo, FO_ERR_FILE, "%s: cannot be written: check the folder", path);
        return;
    }
    fseek(r->log, 0, SEEK_END);
    if (ftell(r->log) == 0)
        fputs("step,epoch,seconds,bpd,grad_norm,lr,held_out_bpd,auroc\n", r->log);
}

static void end_train(run *r) {
    const char *out     = r->o->out.text;
    int64_t     steps   = fo_flow_steps(r->flow);
    int         nothing = r->reached == r->before;
    if (r->log) {
        int good = !ferror(r->log);
        good     = fclose(r->log) == 0 && good;
        if (!good)
            fo_fail(r->fo, FO_ERR_FILE, "%s: could not be written", r->o->log.text);
    }
    if (fo_flow_steps(r->flow) > 0 && !fo_failed(r->fo))
        fo_save(r->flow, out);
    if (fo_failed(r->fo))
        return;
    printf("%s %lld steps to %s", interrupted ? "stopped after" : "trained",
           (long long)(r->reached - r->before), out);
    if (nothing)
        printf(": nothing was left to do; raise --steps or --epochs, which are totals");
    else if (steps != r->reached)
        printf(": kept is the best on held-out samples, after step %lld", (long long)steps);
    putchar('\n');
}

static int train(void *options_read) {
    const options *o = (const options *)options_read;
    fo_train_desc  desc;
    run            r;
    int            status = check_train(o);
    if (status != CLI_OK)
        return status;
    open_run(&r, o);
    open_log(&r);
    desc          = train_desc(o);
    desc.negative = r.negative;
    desc.held_out = r.held_out;
    desc.user     = &r;
    if (!fo_failed(r.fo)) {
        catch_signals();
        fo_train(r.flow, r.train, &desc);
    }
    end_train(&r);
    return close_context(r.fo, r.usage ? CLI_USAGE : CLI_OK);
}

/* ---- eval, score, encode --------------------------------------------------------------------- */

static void print_json_text(const char *text) {
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < 32)
            printf("\\u%04x", (unsigned)*text);
        else
            putchar(*text);
}

static void print_metrics(const options *o, int s, const char *norm, const char *path,
                          const scored *in, const scored *ood, const fo_metrics *m) {
    const char *score = o->score.list[s];
    if (o->json.given) {
        printf("{\"score\": \"%s\", \"ood\": \"", score);
        print_json_text(path);
        printf("\", \"n_in\": %lld, \"n_ood\": %lld, \"auroc\": %.6f, \"aupr_in\": %.6f, "
               "\"aupr_out\": %.6f, \"fpr95\": %.6f, \"fpr95_in\": %.6f, \"bpd_in\": %.6f, "
               "\"bpd_ood\": %.6f, \"norm\": \"%s\"}\n",
               (long long)in->n, (long long)ood->n, m->auroc, m->aupr_in, m->aupr_out, m->fpr95,
               m->fpr95_in, in->bpd, ood->bpd, norm);
    } else {
        printf("%-11s %6.4f  %6.4f   %6.4f  %6.4f   %6.4f  %7.4f  %7.4f  %s\n", score, m->auroc,
               m->aupr_in, m->aupr_out, m->fpr95, m->fpr95_in, in->bpd, ood->bpd, path);
    }
    fflush(stdout);
}

static int eval(void *options_read) {
    options      *o = (options *)options_read;
    const char   *norm;
    fo_context   *fo;
    fo_flow      *flow;
    fo_workspace *ws;
    fo_data      *in, *ood[CLI_MANY];
    scored        a, b;
    int           s, d;
    default_score(o);
    if (check_scores(o) != CLI_OK || check_norm(o) != CLI_OK)
        return CLI_USAGE;
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    in   = load_for(fo, flow, o->model.text, o->in.text, o->limit.number);
    for (d = 0; d < o->ood.given; d++)
        ood[d] = fo_failed(fo) ? NULL : load_for(fo, flow, o->model.text, o->ood.list[d],
                                                 o->limit.number);
    ws = fo_failed(fo) ? NULL : open_workspace(fo, flow, o, &norm);
    score_set(fo, ws, flow, in, &o->score, &a);
    if (!o->json.given && !fo_failed(fo))
        printf("%lld samples of %s; OOD is positive; batch norm, if any: %s statistics\n"
               "score        auroc aupr_in aupr_out   fpr95 fpr95_in   bpd_in  bpd_ood\n",
               (long long)a.n, o->in.text, norm);
    for (d = 0; d < o->ood.given && !fo_failed(fo); d++) {
        fo_metrics m;
        score_set(fo, ws, flow, ood[d], &o->score, &b);
        for (s = 0; s < o->score.given && !fo_failed(fo); s++)
            if (fo_measure(fo, a.score[s], a.n, b.score[s], b.n, &m) == FO_OK)
                print_metrics(o, s, norm, o->ood.list[d], &a, &b, &m);
        scored_free(&b);
    }
    scored_free(&a);
    return close_context(fo, CLI_OK);
}

/* Rows of scores as text: with commas and a header in a file, with spaces on standard output. */
static void print_scores(FILE *file, const options *o, const double *table, int64_t n,
                         const char *between) {
    const int columns = o->score.given;
    int64_t   i;
    int       s;
    for (i = 0; i < n; i++)
        for (s = 0; s < columns; s++)
            fprintf(file, "%.17g%s", table[i * columns + s], s + 1 < columns ? between : "\n");
}

static int write_scores(fo_context *fo, const options *o, const double *table, int64_t n) {
    cli_text_file text;
    int64_t       dim[2];
    int           s;
    dim[0] = n, dim[1] = o->score.given;
    if (o->out.given && !cli_ends_with(o->out.text, ".csv"))
        fo_save_npy(fo, o->out.text, FO_F64, o->score.given > 1 ? 2 : 1, dim, table);
    if (!o->out.given)
        print_scores(stdout, o, table, n, " ");
    if (!o->out.given || !cli_ends_with(o->out.text, ".csv"))
        return CLI_OK;
    if (cli_text_open(&text, o->out.text)) {
        for (s = 0; s < o->score.given; s++)
            fprintf(text.file, "%s%s", o->score.list[s], s + 1 < o->score.given ? "," : "\n");
        print_scores(text.file, o, table, n, ",");
    }
    return cli_text_close(&text);
}

static int score(void *options_read) {
    options      *o = (options *)options_read;
    const char   *norm;
    fo_context   *fo;
    fo_flow      *flow;
    fo_workspace *ws;
    fo_data      *data;
    double       *table = NULL, *columns = NULL;
    int64_t       i, n;
    int           s, status = CLI_OK;
    default_score(o);
    if (check_scores(o) != CLI_OK || check_norm(o) != CLI_OK ||
        cli_check_ending(&o->out, "--out", "scores", ".npy .csv") != CLI_OK)
        return CLI_USAGE;
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    data = load_for(fo, flow, o->model.text, o->data.text, o->limit.number);
    ws   = data ? open_workspace(fo, flow, o, &norm) : NULL;
    n    = fo_data_count(data);
    if (ws)
        table = (double *)calloc((size_t)n * (size_t)o->score.given, sizeof *table);
    if (ws && table == NULL)
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld scores", (long long)n);
    if (!fo_failed(fo))
        columns = score_all(fo, ws, data, o->score.list, o->score.given);
    for (s = 0; s < o->score.given && !fo_failed(fo); s++)
        for (i = 0; i < n; i++)
            table[i * o->score.given + s] = columns[s * n + i];
    if (!fo_failed(fo))
        status = write_scores(fo, o, table, n);
    free(columns);
    free(table);
    return close_context(fo, status);
}

/* ---- calibrate, detect ----------------------------------------------------------------------- */

/* Every score that costs no more than one encode is fitted beside those of the verdict. */
static int calibrate(void *options_read) {
    static const char *const others[] = {"typicality", "complexity", "density-of-states", "layers",
                                         "normality", "neighbour", "pca"};
    options         *o = (options *)options_read;
    fo_context      *fo;
    fo_flow         *flow;
    fo_data         *data;
    fo_detector_desc desc;
    const char      *also[7];
    int              i, k;
    if (check_scores(o) != CLI_OK)
        return CLI_USAGE;
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    data = load_for(fo, flow, o->model.text, o->data.text, o->limit.number);
    memset(&desc, 0, sizeof desc);
    desc.scores = o->score.list, desc.n_scores = o->score.given, desc.also = also;
    for (i = 0; i < 7; i++) {
        int pixels = strcmp(others[i], "complexity") == 0, taken = pixels && !o->score.given;
        for (k = 0; k < o->score.given; k++)
            taken |= strcmp(o->score.list[k], others[i]) == 0;
        if (!taken && (!pixels || fo_data_dtype(data) == FO_U8))
            also[desc.n_also++] = others[i];
    }
    if (data && fo_calibrate(flow, data, &desc) == FO_OK && fo_save(flow, o->model.text) == FO_OK) {
        fo_detector_info info = fo_flow_detector(flow);
        printf("%s decides by", o->model.text);
        for (i = 0; i < info.n_scores; i++)
            printf(" %s", fo_detector_score(flow, i));
        printf(": fitted to %lld samples, ranked among %lld others\n", (long long)info.fitted,
               (long long)info.ranked);
    }
    return close_context(fo, CLI_OK);
}

/* What detect found out: of sample i p[i], whether it is an alarm, and score[s * n + i]. */
typedef struct verdicts {
    int64_t        n, alarms;
    int            n_scores;
    double        *p, *score;
    unsigned char *alarm;
} verdicts;

static int write_verdicts(fo_context *fo, const options *o, const fo_flow *flow,
                          const verdicts *v) {
    const int     json = cli_ends_with(o->out.text, ".jsonl");
    cli_text_file text;
    int64_t       i;
    int           s;
    if (cli_ends_with(o->out.text, ".npy")) {
        fo_save_npy(fo, o->out.text, FO_F64, 1, &v->n, v->p);
        return CLI_OK;
    }
    if (cli_text_open(&text, o->out.text)) {
        if (!json)
            fprintf(text.file, "index,p_value,ood");
        for (s = 0; s < v->n_scores && !json; s++)
            fprintf(text.file, ",%s", fo_detector_score(flow, s));
        if (!json)
            fputc('\n', text.file);
        for (i = 0; i < v->n; i++) {
            fprintf(text.file, json ? "{\"index\": %lld, \"p_value\": %.17g, \"ood\": %d"
                                    : "%lld,%.17g,%d", (long long)i, v->p[i], v->alarm[i]);
            for (s = 0; s < v->n_scores && json; s++)
                fprintf(text.file, ", \"%s\": %.17g", fo_detector_score(flow, s),
                        v->score[s * v->n + i]);
            for (s = 0; s < v->n_scores && !json; s++)
                fprintf(text.file, ",%.17g", v->score[s * v->n + i]);
            fputs(json ? "}\n" : "\n", text.file);
        }
    }
    return cli_text_close(&text);
}

/* p-values and alarms of all samples; the model's detector says how. */
static void find_verdicts(fo_context *fo, const options *o, fo_flow *flow, const fo_data *data,
                          verdicts *v) {
    fo_workspace *ws    = fo_workspace_create(fo, flow, 0);
    double        limit = 0;
    int64_t       i;
    v->n        = fo_data_count(data);
    v->n_scores = fo_flow_detector(flow).n_scores;
    v->p        = (double *)calloc((size_t)v->n * (size_t)(v->n_scores + 1) + 1, sizeof *v->p);
    v->alarm    = (unsigned char *)calloc((size_t)v->n + 1, 1);
    if (v->p == NULL || v->alarm == NULL) {
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld verdicts", (long long)v->n);
        return;
    }
    v->score = v->p + v->n;
    if (fo_detector_limit(flow, o->alpha.number, o->confidence.number, &limit) != FO_OK ||
        fo_detect(ws, data, 0, v->n, v->p, NULL, v->score) != FO_OK)
        return;
    if (o->bh.given)
        fo_benjamini_hochberg(fo, v->p, v->n, o->alpha.number, v->alarm, &v->alarms);
    for (i = 0; i < v->n && !o->bh.given; i++)
        v->alarms += v->alarm[i] = v->p[i] <= limit;
}

static int detect(void *options_read) {
    const options *o = (const options *)options_read;
    fo_context    *fo;
    fo_flow       *flow;
    fo_data       *data;
    verdicts       v;
    int            status = CLI_OK;
    if (cli_check_ending(&o->out, "--out", "verdicts", ".csv .jsonl .npy") != CLI_OK)
        return CLI_USAGE;
    if (o->bh.given && o->confidence.given)
        return cli_usage("--bh and --confidence are two promises: give one of them");
    memset(&v, 0, sizeof v);
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    data = load_for(fo, flow, o->model.text, o->data.text, o->limit.number);
    if (data)
        find_verdicts(fo, o, flow, data, &v);
    if (!fo_failed(fo) && o->out.given)
        status = write_verdicts(fo, o, flow, &v);
    if (!fo_failed(fo))
        printf("%lld of %lld samples of %s are out of distribution (%.2f %%)\n",
               (long long)v.alarms, (long long)v.n, o->data.text,
               100 * (double)v.alarms / (double)v.n);
    free(v.p);
    free(v.alarm);
    return close_context(fo, status);
}

static int encode(void *options_read) {
    const options *o = (const options *)options_read;
    const char    *norm;
    fo_context    *fo;
    fo_flow       *flow;
    fo_workspace  *ws;
    fo_data       *data;
    fo_real       *z = NULL;
    int64_t        dim[2];
    if (check_norm(o) != CLI_OK ||
        cli_check_ending(&o->out, "--out", "latents", ".npy") != CLI_OK)
        return CLI_USAGE;
    fo     = open_context(o);
    flow   = fo_load_flow(fo, o->model.text);
    data   = load_for(fo, flow, o->model.text, o->data.text, o->limit.number);
    ws     = data ? open_workspace(fo, flow, o, &norm) : NULL;
    dim[0] = fo_data_count(data);
    dim[1] = fo_shape_count(fo_flow_shape(flow));
    if (ws)
        z = (fo_real *)calloc((size_t)dim[0] * (size_t)dim[1], sizeof *z);
    if (ws && z == NULL)
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld latents of %lld numbers: take --limit",
                (long long)dim[0], (long long)dim[1]);
    if (z && fo_encode(ws, data, 0, dim[0], FO_DRAW_MIDDLE, z) == FO_OK)
        fo_save_npy(fo, o->out.text, sizeof(fo_real) == 8 ? FO_F64 : FO_F32, 2, dim, z);
    free(z);
    return close_context(fo, CLI_OK);
}

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

static int check(void *options_read) {
    const options  *o = (const options *)options_read;
    fo_context     *fo = open_context(o);
    fo_flow        *flow = fo_load_flow(fo, o->model.text);
    fo_data        *data = NULL;
    fo_check_report r;
    void           *values = NULL;
    int             bad    = 0;
    if (flow)
        data = o->data.given ? load_for(fo, flow, o->model.text, o->data.text, 64)
                             : any_data(fo, fo_flow_shape(flow), &values);
    if (data && fo_check(flow, data, NULL, &r) == FO_OK) {
        bad = !(r.round_trip < 1e-2) || !(r.logdet_pair < 1e-5) || !(r.jacobian < 1e-2) ||
              !(r.gradient < 5e-2) || r.untouched > 0;
        printf("round trip   %.3g  max |x - decode(encode(x))|, grey levels for images; < 0.01\n"
               "logdet pair  %.3g  |logdet(encode) + logdet(decode)|, relative; < 1e-5\n",
               r.round_trip, r.logdet_pair);
        printf("jacobian     %.3g  |logdet - numeric log|det J||, relative; < 0.01; ", r.jacobian);
        if (r.columns)
            printf("the whole flow\n");
        else
            printf("%d of %d layers, one by one\n", r.layers, r.layers_of);
        printf("gradient     %.3g  numeric against analytic, relative; < 0.05; %d of %d "
               "parameters\n"
               "untouched    %d  elements that no coupling changes; 0\n%s\n",
               r.gradient, r.parameters, r.parameters_of, r.untouched, bad ? "FAILED" : "ok");
    }
    free(values);
    return close_context(fo, bad);
}

static int export(void *options_read) {
    const options *o = (const options *)options_read;
    fo_context    *fo;
    fo_flow       *flow;
    fo_save_desc   desc;
    if (cli_check_ending(&o->out, "--out", "a model", ".safetensors") != CLI_OK)
        return CLI_USAGE;
    memset(&desc, 0, sizeof desc);
    desc.weights_only = 1;
    if (o->f16.given)
        desc.type = FO_F16;
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    if (flow)
        fo_save_as(flow, o->out.text, &desc);
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
        printf("%s# %lld parameters in %d arrays, %.1f MB\n# trained for %lld steps of %d samples, "
               "lr %g, ema %g, seed %llu\n", fo_flow_text(flow), (long long)count,
               fo_param_count(flow), (double)count * sizeof(fo_real) / 1e6,
               (long long)fo_flow_steps(flow), d.batch, d.lr, d.ema, (unsigned long long)d.seed);
        if (fo_flow_held_out_bpd(flow) == fo_flow_held_out_bpd(flow))
            printf("# held-out bpd %.4f\n", fo_flow_held_out_bpd(flow));
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
            return cli_help(&program, NULL);
    if (strcmp(word, "--version") == 0)
        return puts("flowood " VERSION) < 0;
    if (argc < 2)
        return cli_usage("a command is needed");
    for (k = 0; k < program.n_commands && strcmp(word, commands[k].name) != 0; k++)
        cli_consider(&guess, commands[k].name);
    if (k == program.n_commands)
        return cli_unknown("command", &guess);
    for (h = 0; h < 2; h++)
        if (argc > 2 && strcmp(argv[2], help[h]) == 0)
            return cli_help(&program, &commands[k]);
    memset(&o, 0, sizeof o);
    status = cli_parse(&program, word, argc - 2, argv + 2, &o);
    if (status == CLI_OK)
        status = cli_check_files(&program, &o, "--resume");
    if (status == CLI_OK)
        status = commands[k].run(&o);
    if (fflush(stdout) != 0 || ferror(stdout))
        return cli_fail("standard output cannot be written");
    return status;
}
