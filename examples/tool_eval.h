/* flowood eval, score, encode: what a model says of samples, and how well it tells them apart. */
#ifndef TOOL_EVAL_H
#define TOOL_EVAL_H
#include "tool.h"

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

/* One command of eval: two sets, and which of them are compared how. */
typedef struct evaluation {
    const options *o;
    fo_context    *fo;
    fo_flow       *flow;
    fo_workspace  *ws;
    const char    *norm;
    int            decides; /* the model has a detector that fits                        */
    scored         in, ood;
    const char    *path;    /* of the OOD set                                            */
    part           which;   /* OTHERS: the classes of --in that were not chosen, else ALL */
} evaluation;

/* The rates of alarms that the detector is asked for. */
#define ALPHAS 3
static const double      alpha[ALPHAS]      = {0.01, 0.05, 0.1};
static const char *const alpha_text[ALPHAS] = {"0.01", "0.05", "0.1"};

/* The share of samples that are alarms at each rate. */
static void alarm_rates(const scored *set, double rate[ALPHAS]) {
    int64_t i;
    int     a;
    for (a = 0; a < ALPHAS; a++) {
        int64_t alarms = 0;
        for (i = 0; i < set->n; i++)
            alarms += set->p[i] <= alpha[a];
        rate[a] = (double)alarms / (double)set->n;
    }
}

static void print_json_rates(const char *name, const double rate[ALPHAS]) {
    int a;
    printf(", \"%s\": {", name);
    for (a = 0; a < ALPHAS; a++)
        printf("%s\"%s\": %.6f", a ? ", " : "", alpha_text[a], rate[a]);
    putchar('}');
}

/* One row; that of the detector has its alarms on both sets as well. */
static void print_metrics(const evaluation *e, const char *score, const fo_metrics *m) {
    const scored *in = &e->in, *ood = &e->ood;
    double        power[ALPHAS], false_alarms[ALPHAS];
    char          name[64];
    const char   *chosen   = part_name(e->o, CHOSEN, name, sizeof name); /* ", class 3" */
    const int     detector = strcmp(score, "detector") == 0;
    const int64_t ranked   = fo_flow_detector(e->flow).ranked;
    if (detector) {
        alarm_rates(ood, power);
        alarm_rates(in, false_alarms);
    }
    if (e->o->json.given) {
        printf("{\"score\": \"%s\", \"ood\": \"", score);
        print_json_text(e->path);
        printf("\", \"protocol\": \"%s\", \"classes\": \"%s\", \"n_in\": %lld, \"n_ood\": %lld, "
               "\"auroc\": %.6f, \"auroc_low\": %.6f, \"auroc_high\": %.6f, \"aupr_in\": %.6f, "
               "\"aupr_out\": %.6f, \"fpr95\": %.6f, \"fpr95_in\": %.6f, \"bpd_in\": %.6f, "
               "\"bpd_ood\": %.6f, \"norm\": \"%s\"", e->which == OTHERS ? "one-class" : "A-to-B",
               chosen[0] ? chosen + 2 : "", (long long)in->n, (long long)ood->n, m->auroc,
               m->auroc_low, m->auroc_high, m->aupr_in, m->aupr_out, m->fpr95, m->fpr95_in,
               in->bpd, ood->bpd, e->norm);
        if (detector) {
            print_json_rates("power", power);
            print_json_rates("false_alarms", false_alarms);
        }
        puts("}");
    } else {
        printf("%-17s %6.4f  %6.4f %6.4f  %6.4f   %6.4f  %6.4f   %6.4f %8.4f %8.4f  %s%s\n", score,
               m->auroc, m->auroc_low, m->auroc_high, m->aupr_in, m->aupr_out, m->fpr95,
               m->fpr95_in, in->bpd, ood->bpd, e->path,
               part_name(e->o, e->which, name, sizeof name));
        if (detector)
            printf("  alarms at alpha 0.01, 0.05, 0.1: %.2f %.2f %.2f %% of OOD, false ones %.2f "
                   "%.2f %.2f %%\n", 100 * power[0], 100 * power[1], 100 * power[2],
                   100 * false_alarms[0], 100 * false_alarms[1], 100 * false_alarms[2]);
        if (detector && alpha[0] * (double)(ranked + 1) < 1)
            printf("  no alarm is possible at an alpha below %.2g: it ranks among %lld samples "
                   "only; calibrate with more\n", 1 / (double)(ranked + 1), (long long)ranked);
    }
    fflush(stdout);
}

/* A slip that no other message would name. */
static void doubt_in(const evaluation *e) {
    double rate[ALPHAS];
    if (fo_failed(e->fo) || !e->decides)
        return;
    alarm_rates(&e->in, rate);
    if (rate[ALPHAS - 1] > 0.5)
        fprintf(stderr, "flowood: at alpha %s, %.0f %% of %s are alarms, though --in names samples "
                "like those of training: are --in and --ood swapped?\n", alpha_text[ALPHAS - 1],
                100 * rate[ALPHAS - 1], e->o->in.text);
}

/* A row for every score, and the detector's. */
static void compare(evaluation *e, const fo_data *data) {
    const options *o = e->o;
    fo_metrics     m;
    int            s;
    score_set(e->fo, e->ws, e->flow, data, &o->score, e->decides, &e->ood);
    for (s = 0; s < o->score.given && !fo_failed(e->fo); s++)
        if (fo_measure(e->fo, e->in.score[s], e->in.n, e->ood.score[s], e->ood.n, &m) == FO_OK)
            print_metrics(e, o->score.list[s], &m);
    if (e->decides && !fo_failed(e->fo) &&
        fo_measure(e->fo, e->in.statistic, e->in.n, e->ood.statistic, e->ood.n, &m) == FO_OK)
        print_metrics(e, "detector", &m);
    scored_free(&e->ood);
}

/* Can this score be made? NULL, or why not. */
static const char *lacks(const options *o, const fo_flow *flow, const fo_data *data,
                         const fo_score_kind *kind) {
    const char *name;
    int         k, fitted = kind->fit == NULL;
    if ((kind->flags & FO_SCORE_PIXELS) && fo_data_dtype(data) != FO_U8)
        return "uint8 data";
    if ((kind->flags & FO_SCORE_BACKGROUND) && !o->background.given)
        return "eval --background";
    for (k = 0; !fitted && (name = fo_detector_score(flow, k)) != NULL; k++)
        fitted = strcmp(name, kind->name) == 0;
    return fitted ? NULL : "calibrate --score";
}

/* --score all becomes the scores that can be made; the others are named in one line. */
static void expand_scores(options *o, const fo_context *fo, const fo_flow *flow,
                          const fo_data *in) {
    fo_score_kind kind;
    const char   *why;
    int           k, left_out = 0;
    if (o->score.given != 1 || strcmp(o->score.text, "all") != 0 || in == NULL)
        return;
    o->score.given = 0;
    for (k = 0; (kind = fo_score_at(fo, k)).name && o->score.given < CLI_MANY; k++) {
        why = lacks(o, flow, in, &kind);
        if (why)
            fprintf(stderr, "%s%s (needs %s)", left_out++ ? ", " : "flowood: left out: ", kind.name,
                    why);
        else
            o->score.list[o->score.given++] = kind.name;
    }
    if (left_out)
        fputc('\n', stderr);
}

/* Is there a detector, and may it judge? Its promise is for the model as it was calibrated. */
static int decides(const options *o, const fo_flow *flow) {
    const fo_detector_info info  = fo_flow_detector(flow);
    const int              batch = o->norm.given && strcmp(o->norm.text, "batch") == 0;
    const int              other = batch || o->recalibrate.given;
    if (info.ranked && (info.stale || other))
        fprintf(stderr, "flowood: left out: detector (fitted to other %s)\n",
                info.stale ? "weights: calibrate again" : "statistics of batch norm");
    return info.ranked && !info.stale && !other;
}

static int check_eval(options *o) {
    default_score(o);
    if (!o->ood.given && !o->labels.given)
        return cli_usage("eval needs --ood FILE, or --labels and --class for the other classes");
    if (check_scores(o, 1) != CLI_OK || check_classes(o) != CLI_OK)
        return CLI_USAGE;
    return check_norm(o);
}

static int eval(void *options_read) {
    options    *o     = (options *)options_read;
    const char *model = o->model.text;
    evaluation  e;
    fo_data    *in, *others = NULL, *ood[CLI_MANY];
    char        name[64];
    int         d;
    if (check_eval(o) != CLI_OK)
        return CLI_USAGE;
    memset(&e, 0, sizeof e);
    e.o    = o;
    e.fo   = open_context(o);
    e.flow = fo_load_flow(e.fo, model);
    in     = load_for(e.fo, e.flow, o, model, o->in.text, CHOSEN, o->limit.number);
    if (o->labels.given && !fo_failed(e.fo))
        others = load_for(e.fo, e.flow, o, model, o->in.text, OTHERS, o->limit.number);
    for (d = 0; d < o->ood.given; d++)
        ood[d] = fo_failed(e.fo) ? NULL : load_for(e.fo, e.flow, o, model, o->ood.list[d], ALL,
                                                   o->limit.number);
    if (!fo_failed(e.fo)) {
        expand_scores(o, e.fo, e.flow, in);
        e.decides = decides(o, e.flow);
        e.ws      = open_workspace(e.fo, e.flow, o, &e.norm);
    }
    score_set(e.fo, e.ws, e.flow, in, &o->score, e.decides, &e.in);
    doubt_in(&e);
    if (!o->json.given && !fo_failed(e.fo))
        printf("%lld samples of %s%s; OOD is positive; batch norm, if any: %s statistics\n"
               "score              auroc 95 %% interval  aupr_in aupr_out   fpr95 fpr95_in   "
               "bpd_in  bpd_ood\n", (long long)e.in.n, o->in.text,
               part_name(o, CHOSEN, name, sizeof name), e.norm);
    if (others) {
        if (!o->json.given && !fo_failed(e.fo))
            puts("one-class protocol: OOD is the rest of the same file");
        e.path = o->in.text, e.which = OTHERS;
        compare(&e, others);
    }
    for (d = 0; d < o->ood.given && !fo_failed(e.fo); d++) {
        e.path = o->ood.list[d], e.which = ALL;
        compare(&e, ood[d]);
    }
    scored_free(&e.in);
    return close_context(e.fo, CLI_OK);
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
    if (check_scores(o, 0) != CLI_OK || check_norm(o) != CLI_OK || check_classes(o) != CLI_OK ||
        cli_check_ending(&o->out, "--out", "scores", ".npy .csv") != CLI_OK)
        return CLI_USAGE;
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    data = load_for(fo, flow, o, o->model.text, o->data.text, CHOSEN, o->limit.number);
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

static int encode(void *options_read) {
    const options *o = (const options *)options_read;
    const char    *norm;
    fo_context    *fo;
    fo_flow       *flow;
    fo_workspace  *ws;
    fo_data       *data;
    fo_real       *z = NULL;
    int64_t        dim[2];
    if (check_norm(o) != CLI_OK || check_classes(o) != CLI_OK ||
        cli_check_ending(&o->out, "--out", "latents", ".npy") != CLI_OK)
        return CLI_USAGE;
    fo     = open_context(o);
    flow   = fo_load_flow(fo, o->model.text);
    data   = load_for(fo, flow, o, o->model.text, o->data.text, CHOSEN, o->limit.number);
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

#endif /* TOOL_EVAL_H */
