/* flowood figures: the paper's pictures of any model, and a report that holds all of them. */
#ifndef TOOL_FIGURES_H
#define TOOL_FIGURES_H
#include "figures.h"
#include "gallery.h"
#include "report.h"
#include "tool.h"
#include "tool_eval.h"
#ifdef _WIN32
#include <direct.h>
#endif

/* "fashion" of data/fashion/t10k-images-idx3-ubyte.gz, "mnist-test" of features/mnist-test.npy:
   the file's name, or its folder's where the name says nothing. */
static void figures_name(const char *path, char *name, size_t size) {
    static const char *const plain[] = {"t10k", "train", "test"};
    const char *base = path, *folder = NULL, *at;
    int         i, n;
    for (at = path; *at; at++)
        if ((*at == '/' || *at == '\\') && at[1])
            folder = base, base = at + 1;
    for (i = 0; i < 3 && folder; i++)
        if (strncmp(base, plain[i], strlen(plain[i])) == 0)
            base = folder, folder = NULL;
    n = (int)strcspn(base, "./\\");
    snprintf(name, size, "%.*s", n, base);
}

/* The folder is there, or made, and takes files. */
static int figures_folder(const char *folder) {
    char  path[1024];
    FILE *file;
#ifdef _WIN32
    _mkdir(folder);
#else
    mkdir(folder, 0777);
#endif
    if (snprintf(path, sizeof path, "%s/figures.part", folder) >= (int)sizeof path - 40)
        return cli_fail("--out: the name of the folder is too long");
    file = fopen(path, "wb");
    if (file == NULL)
        return cli_fail("--out %s: no file can be written there: name a folder that takes files",
                        folder);
    fclose(file);
    remove(path);
    return CLI_OK;
}

/* ---- the command ----------------------------------------------------------------------------- */

enum { FIGURES_LIMIT = 1000, FIGURES_MOST = 16 };

typedef struct figures_run {
    options      *o;
    figures       f;
    evaluation    e;
    scored        scored[FIGURE_SETS];
    report        r;
    char          name[FIGURE_SETS][24];
    unsigned char drawn[FIGURES_MOST]; /* of report_figure_at */
} figures_run;

/* May this figure be drawn, to `path`? `why` not: it is left out, and that is said. */
static int figures_draws(figures_run *run, char path[1100], const char *name, const char *why) {
    report_figure g;
    int           i;
    snprintf(path, 1100, "%s/%s", run->o->folder.text, name);
    if (why)
        plot_add(&run->r.left_out, "%s%s (%s)", run->r.left_out.n ? ", " : "", name, why);
    if (why || fo_failed(run->f.fo))
        return 0;
    for (i = 0; (g = report_figure_at(i)).file && i < FIGURES_MOST; i++)
        if (strcmp(g.file, name) == 0)
            run->drawn[i] = 1;
    return 1;
}

/* Why images cannot be drawn; NULL: they can. */
static const char *figures_no_image(fo_shape s) {
    if (s.h * s.w == 1)
        return "the model has no images";
    return s.c == 1 || s.c == 3 ? NULL : "pictures have 1 or 3 channels";
}

static void figures_inside(figures_run *run) {
    figures    *f    = &run->f;
    const char *why  = figures_no_image(f->shape);
    const char *none = f->set[0].trace.layers ? NULL : "the model has no couplings";
    char        path[1100];
    if (figures_draws(run, path, "couplings.png", why ? why : none))
        figure_couplings(f, path);
    if (figures_draws(run, path, "coadaptation.png", why ? why : none))
        figure_guesses(f, path, 0);
    if (figures_draws(run, path, "cycle.png", why ? why : none ? none : figure_passes(f)
                      ? NULL : "no mask lets a part pass"))
        figure_guesses(f, path, 1);
    if (figures_draws(run, path, "masks.png", none))
        figure_masks(f, path);
    if (figures_draws(run, path, "latents.png", why))
        figure_latents_png(f, path);
}

static void figures_gallery(figures_run *run) {
    figures    *f    = &run->f;
    const char *why  = figures_no_image(f->shape);
    int         k, s = 0;
    size_t      n;
    char        path[1100], note[400];
    while (s + 1 < f->scores && strcmp(f->score_name[s], "likelihood") != 0)
        s++;
    n = (size_t)snprintf(note, sizeof note, "this model: %.2f bits per dimension; likelihood AUROC",
                         run->r.bpd[0]);
    for (k = 1; k < f->sets && n < 300; k++)
        n += (size_t)snprintf(note + n, sizeof note - n, "%s %.20s %.3f", k > 1 ? "," : "",
                              f->set[k].name, run->r.metrics[s][k].auroc);
    if (figures_draws(run, path, "samples.png", why))
        gallery_samples(f, path, note);
    if (figures_draws(run, path, "interpolation.png", why))
        gallery_interpolation(f, path);
    if (figures_draws(run, path, "most.png", why))
        gallery_most(f, path);
    if (figures_draws(run, path, "plane.png", f->size == 2 ? NULL : "not 2-D"))
        gallery_plane_png(f->fo, f->ws, f->set[0].data, path);
}

/* Bytes are painted as they are, numbers from their least to their greatest. */
static void figures_paint(figures *f) {
    const figure_trace *t = &f->set[0].trace;
    float               low = 0, high = 255;
    int64_t             i;
    if (f->set[0].data && fo_data_dtype(f->set[0].data) != FO_U8 && t->x) {
        low = high = t->x[0];
        for (i = 0; i < t->n * f->size; i++) {
            low  = t->x[i] < low ? t->x[i] : low;
            high = t->x[i] > high ? t->x[i] : high;
        }
    }
    f->paint     = plot_shades((double)low, (double)high);
    f->paint.mix = 1;
}

/* Model and samples: whatever does not fit is found before anything is written. */
static void figures_open(figures_run *run) {
    options     *o = run->o;
    figures     *f = &run->f;
    const double limit = o->limit.given ? o->limit.number : FIGURES_LIMIT;
    int          k;
    f->fo    = open_context(o);
    f->flow  = fo_load_flow(f->fo, o->model.text);
    f->shape = f->page = fo_flow_shape(f->flow);
    f->size  = fo_shape_count(f->shape);
    if (f->flow && f->shape.h * f->shape.w == 1) { /* a vector, in rows of 32 */
        f->page.c = 1;
        f->page.w = f->shape.c < 32 ? f->shape.c : 32;
        f->page.h = (f->shape.c + f->page.w - 1) / f->page.w;
    }
    f->sets = 1 + o->ood.given;
    for (k = 0; k < f->sets && !fo_failed(f->fo); k++) {
        figure_set *set  = &f->set[k];
        const char *path = k ? o->ood.list[k - 1] : o->in.text;
        figures_name(path, run->name[k], sizeof run->name[k]);
        set->name = run->name[k];
        set->data = load_for(f->fo, f->flow, o, o->model.text, path, ALL, limit);
        set->n    = fo_data_count(set->data);
        if (set->data && set->n == 0)
            fo_fail(f->fo, FO_ERR_ARGUMENT, "%s: it has no samples", path);
    }
    f->ws = fo_failed(f->fo) ? NULL : fo_workspace_create(f->fo, f->flow, 0);
}

/* Every score of every sample, and a look inside the flow at a few. */
static void figures_measure(figures_run *run) {
    figures    *f = &run->f;
    evaluation *e = &run->e;
    int         k, s, a;
    run->o->score.given = 1, run->o->score.list[0] = run->o->score.text = "all";
    expand_scores(run->o, f->fo, f->flow, f->set[0].data);
    e->o = run->o, e->fo = f->fo, e->flow = f->flow, e->ws = f->ws;
    e->decides = run->r.decides = decides(run->o, f->flow);
    f->scores  = run->o->score.given < FIGURE_SCORES ? run->o->score.given : FIGURE_SCORES;
    for (k = 0; k < f->sets && !fo_failed(f->fo); k++) {
        figure_set *set = &f->set[k];
        scored     *got = &run->scored[k];
        score_set(f->fo, f->ws, f->flow, set->data, &run->o->score, e->decides, got);
        figure_trace_set(f, set);
        set->log_prob = (double *)figure_room(f->fo, set->n, sizeof *set->log_prob);
        for (s = 0; s < f->scores && !fo_failed(f->fo); s++) {
            f->score_name[s] = run->o->score.list[s];
            set->score[s]    = got->score[s];
            if (strcmp(f->score_name[s], "likelihood") == 0)
                for (a = 0; a < set->n; a++)
                    set->log_prob[a] = -got->score[s][a];
            if (k)
                fo_measure(f->fo, f->set[0].score[s], f->set[0].n, set->score[s], set->n,
                           &run->r.metrics[s][k]);
        }
        run->r.bpd[k] = got->bpd;
        if (got->p && !fo_failed(f->fo))
            alarm_rates(got, run->r.alarms[k]);
    }
    figures_paint(f);
}

static void figures_close(figures_run *run) {
    int k;
    for (k = 0; k < run->f.sets; k++) {
        figure_trace_free(&run->f.set[k].trace);
        free(run->f.set[k].log_prob);
        scored_free(&run->scored[k]);
    }
    free(run->r.left_out.s);
    free(run->r.html.s);
    free(run->r.log);
}

static int figures_run_all(figures_run *run) {
    options *o      = run->o;
    int      status = CLI_OK;
    size_t   at     = strlen(o->model.text);
    while (at > 0 && o->model.text[at - 1] != '/' && o->model.text[at - 1] != '\\')
        at--;
    run->r.f = &run->f, run->r.folder = o->folder.text, run->r.model = o->model.text + at;
    figures_open(run);
    if (o->curve.given && !fo_failed(run->f.fo)) {
        run->r.log = (report_log *)figure_room(run->f.fo, 1, sizeof *run->r.log);
        if (run->r.log)
            report_log_read(run->f.fo, o->curve.text, run->r.log);
    }
    if (!fo_failed(run->f.fo)) /* before the long work: nothing of that is done in vain */
        status = figures_folder(o->folder.text);
    if (!fo_failed(run->f.fo) && status == CLI_OK)
        figures_measure(run);
    if (fo_failed(run->f.fo) || status != CLI_OK)
        return status;
    figures_inside(run);
    figures_gallery(run);
    if (!fo_failed(run->f.fo))
        report_write(&run->r, run->drawn, alpha);
    if (!fo_failed(run->f.fo)) {
        if (run->r.left_out.n)
            printf("left out: %s\n", run->r.left_out.s);
        printf("%s/report.html holds everything\n", o->folder.text);
    }
    return status;
}

static int draw_figures(void *options_read) {
    figures_run *run = (figures_run *)calloc(1, sizeof *run);
    int          status;
    if (run == NULL)
        return cli_fail("out of memory");
    run->o = (options *)options_read;
    if (run->o->ood.given >= FIGURE_SETS) {
        free(run);
        return cli_usage("figures takes at most %d --ood", FIGURE_SETS - 1);
    }
    status = figures_run_all(run);
    figures_close(run);
    status = close_context(run->f.fo, status);
    free(run);
    return status;
}

#endif /* TOOL_FIGURES_H */
