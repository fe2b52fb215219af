/* flowood calibrate, detect: a promised rate of false alarms. */
#ifndef TOOL_DETECT_H
#define TOOL_DETECT_H
#include "tool.h"

/* ---- calibrate, detect ----------------------------------------------------------------------- */

/* Every score that costs no more than one encode is fitted beside those of the verdict. */
#define BESIDE 7
/* So many training samples are enough for the trivial rivals. */
#define RIVALS 5000

/* Fits the detector; `score` is what its verdict is made of, none: the library's choice. The
   trivial rivals look at `samples`, those of training, or (NULL) at half of the data. */
static fo_result fit_detector(fo_flow *flow, const fo_data *data, const fo_data *samples,
                              const cli_option *score) {
    static const char *const others[BESIDE] = {"typicality", "complexity", "density-of-states",
                                               "layers", "normality", "neighbour", "pca"};
    fo_detector_desc desc;
    const char      *also[BESIDE];
    int              i, k;
    memset(&desc, 0, sizeof desc);
    desc.scores = score->list, desc.n_scores = score->given, desc.also = also;
    desc.samples = samples;
    for (i = 0; i < BESIDE; i++) {
        int pixels = strcmp(others[i], "complexity") == 0, taken = pixels && !score->given;
        for (k = 0; k < score->given; k++)
            taken |= strcmp(score->list[k], others[i]) == 0;
        if (!taken && (!pixels || fo_data_dtype(data) == FO_U8))
            also[desc.n_also++] = others[i];
    }
    return fo_calibrate(flow, data, &desc);
}

/* "decides by complexity: fitted to 60 samples, ranked among 60 others" */
static void print_detector(const fo_flow *flow) {
    const fo_detector_info info = fo_flow_detector(flow);
    int                    i;
    printf("decides by");
    for (i = 0; i < info.n_scores; i++)
        printf(" %s", fo_detector_score(flow, i));
    printf(": fitted to %lld samples, ranked among %lld others%s\n", (long long)info.fitted,
           (long long)info.ranked, info.stale ? "; the weights have changed since" : "");
}

static int calibrate(void *options_read) {
    options    *o = (options *)options_read;
    fo_context *fo;
    fo_flow    *flow;
    fo_data    *data;
    if (check_scores(o, 0) != CLI_OK || check_classes(o) != CLI_OK)
        return CLI_USAGE;
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    data = load_for(fo, flow, o, o->model.text, o->data.text, CHOSEN, o->limit.number);
    if (data && fit_detector(flow, data, NULL, &o->score) == FO_OK &&
        fo_save(flow, o->model.text) == FO_OK) {
        printf("%s ", o->model.text);
        print_detector(flow);
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
    char           name[64];
    int            status = CLI_OK;
    if (cli_check_ending(&o->out, "--out", "verdicts", ".csv .jsonl .npy") != CLI_OK)
        return CLI_USAGE;
    if (o->bh.given && o->confidence.given)
        return cli_usage("--bh and --confidence are two promises: give one of them");
    if (check_classes(o) != CLI_OK)
        return CLI_USAGE;
    memset(&v, 0, sizeof v);
    fo   = open_context(o);
    flow = fo_load_flow(fo, o->model.text);
    data = load_for(fo, flow, o, o->model.text, o->data.text, CHOSEN, o->limit.number);
    if (data)
        find_verdicts(fo, o, flow, data, &v);
    if (!fo_failed(fo) && o->out.given)
        status = write_verdicts(fo, o, flow, &v);
    if (!fo_failed(fo))
        printf("%lld of %lld samples of %s%s are out of distribution (%.2f %%)\n",
               (long long)v.alarms, (long long)v.n, o->data.text,
               part_name(o, CHOSEN, name, sizeof name),
               100 * (double)v.alarms / (double)v.n);
    free(v.p);
    free(v.alarm);
    return close_context(fo, status);
}

#endif /* TOOL_DETECT_H */
