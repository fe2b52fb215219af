/* flowood figures: the paper's pictures of any model, and a report that holds all of them. */
#ifndef TOOL_FIGURES_H
#define TOOL_FIGURES_H
#include "figures.h"
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

enum { FIGURES_LIMIT = 1000 };

typedef struct figures_run {
    options    *o;
    figures     f;
    evaluation  e;
    char        name[FIGURE_SETS][24];
    plot_string left_out;
} figures_run;

/* DIR/name; NULL for why: it applies. Otherwise it is left out, and said. */
static int figures_draws(figures_run *run, char path[1100], const char *name, const char *why) {
    snprintf(path, 1100, "%s/%s", run->o->folder.text, name);
    if (why)
        plot_add(&run->left_out, "%s%s (%s)", run->left_out.n ? ", " : "", name, why);
    return why == NULL && !fo_failed(run->f.fo);
}

static void figures_inside(figures_run *run) {
    figures    *f        = &run->f;
    const int   image    = f->shape.h * f->shape.w > 1, coupled = f->set[0].trace.layers > 0;
    const int   drawable = image && (f->shape.c == 1 || f->shape.c == 3);
    const char *why      = !image ? "the model has no images" : !drawable
                         ? "pictures have 1 or 3 channels" : NULL;
    const char *no_couplings = "the model has no couplings";
    char        path[1100];
    if (figures_draws(run, path, "couplings.png", why ? why : coupled ? NULL : no_couplings))
        figure_couplings(f, path);
    if (figures_draws(run, path, "latents.png", why))
        figure_latents_png(f, path);
    if (figures_draws(run, path, "coadaptation.png", why ? why : coupled ? NULL : no_couplings))
        figure_guesses(f, path, 0);
    if (figures_draws(run, path, "cycle.png", why ? why : figure_passes(f) ? NULL
                      : "no mask lets a part pass"))
        figure_guesses(f, path, 1);
    if (figures_draws(run, path, "masks.png", coupled ? NULL : no_couplings))
        figure_masks(f, path);
}

static void figures_look(figures *f) {
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
    f->paint = plot_shades((double)low, (double)high);
}

/* Samples of every set, what the scores say of them, and a look inside the flow at a few. */
static void figures_open(figures_run *run) {
    options    *o = run->o;
    figures    *f = &run->f;
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
    }
    f->ws = fo_failed(f->fo) ? NULL : fo_workspace_create(f->fo, f->flow, 0);
    for (k = 0; k < f->sets && !fo_failed(f->fo); k++)
        figure_trace_set(f, &f->set[k]);
    figures_look(f);
}

static int draw_figures(void *options_read) {
    figures_run *run = (figures_run *)calloc(1, sizeof *run);
    int          k, status = CLI_OK;
    if (run == NULL)
        return cli_fail("out of memory");
    run->o = (options *)options_read;
    if (run->o->ood.given >= FIGURE_SETS)
        status = cli_usage("figures takes at most %d --ood", FIGURE_SETS - 1);
    if (status == CLI_OK) {
        figures_open(run);
        if (!fo_failed(run->f.fo))
            status = figures_folder(run->o->folder.text);
        if (!fo_failed(run->f.fo) && status == CLI_OK)
            figures_inside(run);
        if (!fo_failed(run->f.fo) && run->left_out.n)
            printf("left out: %s\n", run->left_out.s);
        for (k = 0; k < run->f.sets; k++)
            figure_trace_free(&run->f.set[k].trace);
        free(run->left_out.s);
        status = close_context(run->f.fo, status);
    }
    free(run);
    return status;
}

#endif /* TOOL_FIGURES_H */
