/* flowood eval, score, encode: what a model says about samples. */
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

#endif /* TOOL_EVAL_H */
