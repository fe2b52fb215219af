/* What the commands of the tool share: the table of all options, and opening, loading, scoring. */
#ifndef TOOL_H
#define TOOL_H
#include "cli.h"
#include "flowood.h"

enum { MB_MAX = 1 << 20, BATCH_MAX = 1 << 20, CLASSES = 256 };
#define MANY 1e12 /* more than any count here */

/* ---- the command line ------------------------------------------------------------------------ */

/* field, name, kind, commands (! needs it), value, times, low, high, about */
#define OPTIONS(X)                                                                                 \
    X(data, "--data", INPUT, "train! score! encode! calibrate! detect! check", "FILE", 1, 0, 0,    \
      "samples; of calibrate, some that the model was never trained on")                           \
    X(labels, "--labels", INPUT, "train eval score encode calibrate detect", "FILE", 1, 0, 0,      \
      "one label a sample of --data (of eval: of --in), to choose samples by class")               \
    X(classes, "--class", TEXT, "train eval score encode calibrate detect", "K[,K...]", 1, 0, 0,   \
      "only samples of these classes; eval takes the other classes of --in for OOD: the one-class" \
      " protocol")                                                                                 \
    X(not_classes, "--not-class", TEXT, "train eval score encode calibrate detect", "K[,K...]", 1, \
      0, 0, "only samples of none of these classes; eval takes these for OOD")                     \
    X(preset, "--preset", TEXT, "train", "PRESET", 1, 0, 0,                                        \
      "a ready flow; default mlp-cycle, for vectors tabular, of 256 to 4096 numbers features")     \
    X(spec, "--spec", INPUT, "train", "SPEC", 1, 0, 0, "a flow of your own")                       \
    X(resume, "--resume", INPUT, "train", "MODEL", 1, 0, 0,                                        \
      "train this model further; may be --out as well")                                            \
    X(out, "--out", OUTPUT, "train! score encode! detect sample! export!", "FILE", 1, 0, 0,        \
      "where the result goes: a model; scores as .csv or .npy (default: printed); verdicts as"     \
      " .csv, .jsonl or .npy (p-values alone); latents as .npy; samples as .png or .npy, all held" \
      " in memory")                                                                                \
    X(folder, "--out", TEXT, "figures!", "DIR", 1, 0, 0, "the folder that the figures go to")      \
    X(curve, "--log", INPUT, "figures", "FILE.csv", 1, 0, 0, "of train: the curve of the run")     \
    X(alpha, "--alpha", NUMBER, "detect!", "A", 1, 1e-9, 0.999999,                                 \
      "the rate of false alarms to keep below")                                                    \
    X(confidence, "--confidence", NUMBER, "detect", "C", 1, 0, 0.999999,                           \
      "how sure that must be for this very calibration; default: on average over calibrations")    \
    X(bh, "--bh", FLAG, "detect", "", 1, 0, 0,                                                     \
      "alarms of which a share of at most A is false (Benjamini and Hochberg)")                    \
    X(seconds, "--seconds", NUMBER, "train check", "S", 1, 1e-9, 1e9,                              \
      "stop after S seconds of this run; of check, where what does not fit is sampled, default 30")\
    X(epochs, "--epochs", NUMBER, "train", "N", 1, 1e-9, 1e9,                                      \
      "passes over the data since training began, resumed or not; default 1 if neither seconds"    \
      " nor steps are given")                                                                      \
    X(steps, "--steps", WHOLE, "train", "N", 1, 1, MANY, "steps since training began")             \
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
      "keep N samples of --data, by chance, out of training; default a tenth, at most 5000; 0:"    \
      " none. 1000 of them (of fewer than 2000, half) choose the step that is saved, the best on"  \
      " them; the others only fit the detector at the end, so that its rate of false alarms holds" \
      " for samples that come as those of the file do. --resume needs the same")                   \
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
      "eval! score! encode! calibrate! detect! sample! figures! export! check! info!", "MODEL", 1, \
      0, 0,                                                                                        \
      "a trained flow; the option's name may be left out")                                         \
    X(in, "--in", INPUT, "eval! figures!", "FILE", 1, 0, 0, "samples like those of training")      \
    X(ood, "--ood", INPUT, "eval figures!", "FILE", CLI_MANY, 0, 0, "samples that are not")        \
    X(score, "--score", TEXT, "eval score calibrate", "SCORE", CLI_MANY, 0, 0,                     \
      "default likelihood; eval takes the word all for every one that can be made; of calibrate,"  \
      " what the verdict is made of, default complexity for pixels, else likelihood")              \
    X(background, "--background", INPUT, "eval score", "MODEL", 1, 0, 0,                           \
      "the model that the score ratio compares with")                                              \
    X(json, "--json", FLAG, "eval", "", 1, 0, 0, "one JSON object a line")                         \
    X(norm, "--norm", CHOICE, "eval score encode", "running|batch", 1, 0, 0,                       \
      "statistics of batch norm: those of training, or of each batch")                             \
    X(recalibrate, "--recalibrate", INPUT, "eval score encode", "FILE", 1, 0, 0,                   \
      "measure them on this, at most 10000 samples, under the final weights")                      \
    X(f16, "--f16", FLAG, "export", "", 1, 0, 0,                                                   \
      "weights of 16 bits: half the size again, log p moves by about 0.001 bits per dimension. A"  \
      " detector belongs to the weights that it was fitted to: --calibrate fits it to these")      \
    X(refit, "--calibrate", INPUT, "export", "FILE", 1, 0, 0,                                      \
      "fit the detector to the weights as they are written, with the scores of its verdict, to"    \
      " samples that the model was never trained on")                                              \
    X(n, "--n", WHOLE, "sample!", "N", 1, 1, MANY, "how many samples")                             \
    X(temperature, "--temperature", NUMBER, "sample", "T", 1, 0, 1000,                             \
      "standard deviation of the latents; default 1")                                              \
    X(limit, "--limit", WHOLE, "train eval score encode calibrate detect figures", "N", 1, 1, MANY,\
      "only the first N samples of each file, of the classes that are asked for; of --eval-in and" \
      " --eval-ood, default 2000; of figures, 1000")                                               \
    X(seed, "--seed", WHOLE, "train sample", "N", 1, 0, MANY, "of all random numbers; default 0")  \
    X(threads, "--threads", WHOLE, "train eval score encode calibrate detect sample figures check",\
      "N", 1, 0, 1024,                                                                             \
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
    "SPEC   a text file with a flow, one layer a line: flowood info prints one\n"
    "PRESET a name of flowood presets; NAME:L takes L for its bottleneck of 10, as\n"
    "       in mlp-cycle:2\n"
    "SCORE  likelihood (-log p), latent (of the base density alone), complexity\n"
    "       (-log p less the length of the picture's code), and what flowood.h lists\n"
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

/* Which samples of a file: without --labels, all of them. */
typedef enum part { ALL, CHOSEN, OTHERS } part;

/* "3,5" as numbers, how many; 0: it is no such list. */
static int read_classes(const char *text, int *classes) {
    int  n = 0;
    char end = ',';
    for (; end == ',' && n < CLASSES; n++) {
        char *behind;
        long  value = strtol(text, &behind, 10);
        if (behind == text || value < -1000000 || value > 1000000)
            return 0;
        classes[n] = (int)value;
        end        = *behind;
        text       = behind + 1;
    }
    return end == 0 ? n : 0;
}

static int check_classes(const options *o) {
    const cli_option *list = o->classes.given ? &o->classes : &o->not_classes;
    int               classes[CLASSES];
    if (o->classes.given && o->not_classes.given)
        return cli_usage("--class and --not-class both say what to choose: give one of them");
    if (o->labels.given != list->given)
        return cli_usage("--labels needs --class or --not-class, and they need --labels");
    if (list->given && read_classes(list->text, classes) == 0)
        return cli_usage("%s %s: whole numbers with commas between are needed, as in 3,5",
                         o->classes.given ? "--class" : "--not-class", list->text);
    return CLI_OK;
}

/* "class 3,5" as the output names what was chosen of a file, "" without --labels. */
static const char *part_name(const options *o, part which, char *text, size_t size) {
    const int keep = o->classes.given == (which == CHOSEN);
    *text = 0;
    if (o->labels.given && which != ALL)
        snprintf(text, size, ", %sclass %s", keep ? "" : "not ",
                 o->classes.given ? o->classes.text : o->not_classes.text);
    return text;
}

/* The samples of `all`, which is freed, that the labels choose. */
static fo_data *choose(fo_context *fo, const options *o, fo_data *all, const char *path,
                       part which) {
    const char *list   = o->classes.given ? o->classes.text : o->not_classes.text;
    fo_data    *labels = fo_load(fo, o->labels.text), *chosen = NULL;
    int         classes[CLASSES], n = read_classes(list, classes);
    if (labels && (fo_data_count(labels) != fo_data_count(all) ||
                   fo_shape_count(fo_data_shape(labels)) != 1))
        fo_fail(fo, FO_ERR_SHAPE, "%s: %lld labels of %lld numbers; %s has %lld samples, each "
                "needs one", o->labels.text, (long long)fo_data_count(labels),
                (long long)fo_shape_count(fo_data_shape(labels)), path,
                (long long)fo_data_count(all));
    else if (labels)
        chosen = fo_data_select(all, labels, classes, n, o->classes.given == (which == CHOSEN));
    fo_data_free(labels);
    fo_data_free(all);
    return chosen;
}

static fo_data *load(fo_context *fo, const options *o, const char *path, part which,
                     double limit) {
    fo_data *data = fo_load(fo, path);
    if (data && which != ALL && o->labels.given)
        data = choose(fo, o, data, path, which);
    if (data && limit > 0 && limit < (double)fo_data_count(data))
        fo_data_limit(data, (int64_t)limit);
    return data;
}

/* Samples for this flow, which `model` describes: a shape that does not fit names the file. */
static fo_data *load_for(fo_context *fo, const fo_flow *flow, const options *o, const char *model,
                         const char *path, part which, double limit) {
    fo_data *data = flow ? load(fo, o, path, which, limit) : NULL;
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

/* Where no name comes near, all of them are said. */
static int unknown_score(const cli_guess *guess) {
    fo_score_kind kind;
    char          known[512] = "";
    int           k;
    if (guess->best)
        return cli_unknown("score", guess);
    for (k = 0; (kind = fo_score_at(NULL, k)).name; k++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", k ? ", " : "",
                 kind.name);
    return cli_usage("unknown score %s: known are %s", guess->word, known);
}

/* Names of scores that the library does not know are wrong usage; "all", where a command takes it,
   stands alone. */
static int check_scores(options *o, int all) {
    fo_score_kind kind;
    int           i, k;
    for (i = 0; i < o->score.given; i++) {
        cli_guess guess = {o->score.list[i], NULL, 0};
        if (all && strcmp(guess.word, "all") == 0) {
            if (o->score.given > 1)
                return cli_usage("--score all has every other score in it: leave them out");
            continue;
        }
        for (k = 0; (kind = fo_score_at(NULL, k)).name && strcmp(kind.name, guess.word) != 0; k++)
            cli_consider(&guess, kind.name);
        if (kind.name == NULL)
            return unknown_score(&guess);
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
        fo_data *data = load_for(fo, flow, o, o->model.text, o->recalibrate.text, ALL, 10000);
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
    if (ws && o->background.given) {
        fo_flow *background = fo_load_flow(fo, o->background.text);
        if (background)
            fo_workspace_background(ws, background);
    }
    return ws;
}

/* The scores of a set, one block a name, and the mean bpd. */
typedef struct scored {
    int64_t n;
    double *block, *score[CLI_MANY]; /* of one block                                       */
    double *p, *statistic;           /* of the detector, in a block of p; NULL: not wanted */
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

/* Where a name stands in the list, at its end if it was not there. */
static int name_at(const char **list, int *n, const char *name) {
    int k = 0;
    while (k < *n && strcmp(list[k], name) != 0)
        k++;
    if (k == *n)
        list[(*n)++] = name;
    return k;
}

/* The scores asked for, the likelihood for bpd and, if the detector is to judge, its scores and
   what it makes of them: all from one encode. */
static void score_set(fo_context *fo, fo_workspace *ws, fo_flow *flow, const fo_data *data,
                      const cli_option *names, int decides, scored *out) {
    const char *all[2 * FO_MAX_SCORES], *name;
    int64_t     i;
    int         s, likelihood, n = 0, at[CLI_MANY];
    memset(out, 0, sizeof *out);
    out->n = fo_data_count(data);
    for (s = 0; decides && s < fo_flow_detector(flow).n_scores; s++) {
        name = fo_detector_score(flow, s);
        name_at(all, &n, name); /* these come first: the detector ranks them as they lie */
    }
    for (s = 0; s < names->given; s++)
        at[s] = name_at(all, &n, names->list[s]);
    likelihood = name_at(all, &n, "likelihood");
    out->block = score_all(fo, ws, data, all, n);
    for (s = 0; s < names->given && out->block; s++)
        out->score[s] = out->block + at[s] * out->n;
    for (i = 0; i < out->n && !fo_failed(fo); i++)
        out->bpd += fo_bpd(-out->block[likelihood * out->n + i], fo_flow_shape(flow)) /
                    (double)out->n;
    if (!decides || fo_failed(fo))
        return;
    out->p = (double *)calloc((size_t)out->n * 2 + 1, sizeof *out->p);
    if (out->p == NULL) {
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld verdicts", (long long)out->n);
        return;
    }
    out->statistic = out->p + out->n;
    fo_detector_rank(flow, out->block, out->n, out->p, out->statistic);
}

static void scored_free(scored *set) {
    free(set->block);
    free(set->p);
}

#endif /* TOOL_H */
