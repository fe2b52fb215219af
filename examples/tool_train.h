/* flowood train: a run of training from its options to the saved model and its detector. */
#ifndef TOOL_TRAIN_H
#define TOOL_TRAIN_H
#include <signal.h>
#include "tool_detect.h"

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
    /* parts of data: trained on; to choose the step by; to fit the detector to; NULL: none */
    fo_data       *train, *held_out, *calibration;
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
    score_set(r->fo, ws, r->flow, r->in, &likelihood, 0, &in);
    score_set(r->fo, ws, r->flow, r->ood, &likelihood, 0, &ood);
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
        fo_fail(fo, FO_ERR_FILE, "%s: cannot be opened: --spec names a file with the text", path);
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

/* The preset for those who name none: so many numbers are deep features rather than the columns of
   a table, and more can not be whitened. */
static const char *usual_preset(fo_shape s) {
    if (s.h * s.w > 1)
        return "mlp-cycle";
    return s.c >= 256 && s.c <= 4096 ? "features" : "tabular";
}

static fo_flow *make_flow(fo_context *fo, const options *o, const fo_data *data) {
    fo_shape    s      = fo_data_shape(data);
    int         vector = s.h * s.w == 1;
    const char *preset = o->preset.given ? o->preset.text : usual_preset(s);
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
    if (flow == NULL && vector && strcmp(preset, "tabular") && strcmp(preset, "features")) {
        fo_clear_error(fo);
        fo_fail(fo, FO_ERR_SHAPE, "%s: its samples are vectors of %d, and preset %s is for images: "
                "take --preset %s", o->data.text, s.c, preset, usual_preset(s));
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

/* Whitening many numbers takes a while before the first step, on one thread about 6 ns for the cube
   of their number. */
static void tell_whitening(const run *r) {
    const double n = (double)fo_shape_count(fo_flow_shape(r->flow)), seconds = 6e-9 * n * n * n;
    int          i;
    for (i = 0; i < fo_flow_layers(r->flow) && seconds > 2 && r->before == 0; i++)
        if (strncmp(fo_flow_layer_text(r->flow, i), "whiten", 6) == 0)
            fprintf(stderr, "whitening %.0f numbers before the first step: up to %.0f s\n", n,
                    seconds);
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
    if (check_classes(o) != CLI_OK ||
        cli_check_ending(&o->log, "--log", "the log of a run", ".csv") != CLI_OK)
        return CLI_USAGE;
    return cli_check_ending(&o->out, "--out", "a model", ".safetensors");
}

/* Samples chosen by chance, for a file may be sorted by class, are kept out of training: always the
   same ones of a file. The first of them choose the step that is kept, so only the rest is as new
   to the model as samples to come. */
static void hold_out(run *r) {
    enum { CHOOSE = 1000 };
    const cli_option *asked = &r->o->holdout;
    int64_t           n = fo_data_count(r->data), k = n / 10 < 5000 ? n / 10 : 5000, choose_by;
    if (asked->given)
        k = asked->number < (double)n ? (int64_t)asked->number : n;
    choose_by = k < 2 * CHOOSE ? k - k / 2 : CHOOSE;
    r->usage |= k == n && n > 0;
    if (k == n && n > 0)
        fo_fail(r->fo, FO_ERR_ARGUMENT, "--holdout %s: nothing of the %lld samples of %s is left "
                "to train on", asked->text, (long long)n, r->o->data.text);
    if (r->o->resume.given && fo_flow_train_count(r->flow) > 0 &&
        fo_flow_train_count(r->flow) != n - k)
        fo_fail(r->fo, FO_ERR_ARGUMENT, "%s was trained on %lld samples, these are %lld: give "
                "--holdout and --limit as then, or it trains on samples that were held out",
                r->o->resume.text, (long long)fo_flow_train_count(r->flow), (long long)(n - k));
    r->train = r->data;
    if (k > 0 && k < n && fo_data_shuffle(r->data, 0) == FO_OK) {
        r->train    = fo_data_part(r->data, 0, n - k);
        r->held_out = fo_data_part(r->data, n - k, choose_by);
        if (k - choose_by > 1)
            r->calibration = fo_data_part(r->data, n - k + choose_by, k - choose_by);
    }
}

/* Every file is opened and every shape compared before the first step. */
static void open_run(run *r, const options *o) {
    const double test  = o->limit.number > 0 ? o->limit.number : 2000;
    const char  *model = o->resume.given ? o->resume.text : o->data.text;
    memset(r, 0, sizeof *r);
    r->o    = o;
    r->fo   = open_context(o);
    r->data = load(r->fo, o, o->data.text, CHOSEN, o->limit.number);
    r->flow = r->data ? make_flow(r->fo, o, r->data) : NULL;
    r->usage = o->preset.given && fo_failed(r->fo) == FO_ERR_ARGUMENT; /* as in mlp-cycle:x */
    if (r->flow && (o->resume.given || o->spec.given)) {
        fo_data_free(r->data);
        r->data = load_for(r->fo, r->flow, o, o->resume.given ? model : o->spec.text, o->data.text,
                           CHOSEN, o->limit.number);
    }
    if (o->negative.given)
        r->negative = load_for(r->fo, r->flow, o, model, o->negative.text, ALL, o->limit.number);
    if (o->eval_in.given) {
        r->in  = load_for(r->fo, r->flow, o, model, o->eval_in.text, ALL, test);
        r->ood = load_for(r->fo, r->flow, o, model, o->eval_ood.text, ALL, test);
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

/* A model without a detector is still a model: what is wrong is told, and no more. */
static void decide(run *r) {
    const int64_t n = fo_data_count(r->train);
    fo_data      *rivals;
    if (r->calibration == NULL || fo_flow_steps(r->flow) == 0 || fo_failed(r->fo))
        return;
    fprintf(stderr, "fitting the detector to %lld held-out samples\n",
            (long long)fo_data_count(r->calibration));
    rivals = fo_data_part(r->train, 0, n < RIVALS ? n : RIVALS);
    if (fit_detector(r->flow, r->calibration, rivals, &r->o->score) == FO_OK) {
        fo_save(r->flow, r->o->out.text);
    } else {
        fprintf(stderr, "flowood: no detector: %s\n", fo_error(r->fo));
        fo_clear_error(r->fo);
    }
    fo_data_free(rivals);
}

static void end_train(run *r) {
    const char *out     = r->o->out.text;
    int64_t     steps   = fo_flow_steps(r->flow);
    int         nothing = r->reached == r->before, good = 1;
    if (r->log) {
        good = !ferror(r->log);
        good = fclose(r->log) == 0 && good;
    }
    if (fo_flow_steps(r->flow) > 0 && !fo_failed(r->fo))
        fo_save(r->flow, out);
    decide(r);
    if (!good) /* said last: the model is saved all the same */
        fo_fail(r->fo, FO_ERR_FILE, "--log %s: could not be written: check the free space",
                r->o->log.text);
    if (fo_failed(r->fo))
        return;
    printf("%s %lld steps to %s", interrupted ? "stopped after" : "trained",
           (long long)(r->reached - r->before), out);
    if (nothing)
        printf(": nothing was left to do; raise --steps or --epochs, which are totals");
    else if (steps != r->reached)
        printf(": kept is the best on held-out samples, after step %lld", (long long)steps);
    putchar('\n');
    if (fo_flow_detector(r->flow).ranked)
        print_detector(r->flow);
    else if (steps > 0)
        puts("it has no detector: calibrate fits one, to samples that it was never trained on");
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
        tell_whitening(&r);
        fo_train(r.flow, r.train, &desc);
        signal(SIGINT, SIG_DFL); /* once more ends the detector's fit: the model is saved first */
        signal(SIGTERM, SIG_DFL);
    }
    end_train(&r);
    return close_context(r.fo, r.usage ? CLI_USAGE : CLI_OK);
}

#endif /* TOOL_TRAIN_H */
