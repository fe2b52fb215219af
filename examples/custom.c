/* Your own op, st-network, mask and layer: the same interfaces that the built-in ones use.
   Build: cc -O2 -I. examples/custom.c -lm */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- an op: y = x / (1 + |x|), "softsign" ---------------------------------------------------- */

static fo_result softsign_shape(fo_tensor *y) {
    y->rank = y->in[0]->rank;
    for (int i = 0; i < y->rank; i++)
        y->dim[i] = y->in[0]->dim[i];
    return FO_OK;
}

static void softsign_forward(const fo_tensor *y, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
        y->data[i] = y->in[0]->data[i] / (1 + (fo_real)fabs((double)y->in[0]->data[i]));
}

static void softsign_backward(const fo_tensor *y, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) { /* dy/dx = 1/(1+|x|)^2 = (1-|y|)^2 */
        fo_real slope = 1 - (fo_real)fabs((double)y->data[i]);
        y->in[0]->grad[i] += y->grad[i] * slope * slope;
    }
}

static const fo_op softsign_op = {"softsign", FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT,
                                  softsign_shape, softsign_forward, softsign_backward};

static fo_tensor *softsign(fo_tensor *x) {
    return x ? fo_apply(x->tape, &softsign_op, &x, 1, NULL, 0) : NULL;
}

/* ---- an st-network with residual connections; how many is a setting of its own: steps=2 ------ */

static fo_tensor *residual_build(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    fo_tensor *h = softsign(fo_net_linear(x, "in", net->hidden, 0));
    char       name[24];
    (void)tape;
    for (int i = 0; i < (int)fo_setting_value(&net->settings, "steps"); i++) {
        snprintf(name, sizeof name, "steps.%d", i);
        h = fo_add(h, softsign(fo_net_linear(h, name, net->hidden, 0)));
    }
    return fo_net_linear(h, "out", outputs, 1);
}

static const fo_net_kind residual = {"residual", residual_build, 0,
                                     {{"hidden", 64, 1, 4096, FO_SETTING_SHOWN, NULL},
                                      {"steps", 1, 0, 16, FO_SETTING_SHOWN, NULL}}};

/* ---- a mask: condition on the border of an image, change its middle, or the other way -------- */

static fo_state frame_mask(void *user, fo_shape shape, int phase, int c, int y, int x) {
    int width  = *(int *)user;
    int border = y < width || x < width || y >= shape.h - width || x >= shape.w - width;
    (void)c;
    return border == (phase % 2 == 0) ? FO_CONDITION : FO_CHANGE;
}

/* ---- a layer: y = x - 2 v (v.x)/|v|^2, a Householder reflection with a learned v --------------

   It is its own inverse, and logdet = 0. With a = v.x, b = v.dy and n = |v|^2 of each row
     dLoss/dx = dy - 2 v b/n,   dLoss/dv = sum over rows of (4 a b v/n - 2 b x - 2 a dy)/n */

static fo_result reflect_shape(fo_layer *layer) {
    int64_t *v = (int64_t *)fo_layer_alloc(layer, sizeof *v); /* where the parameter begins */
    if (v == NULL)
        return FO_ERR_MEMORY;
    *v         = fo_layer_param(layer, "v", 1, &layer->width, fo_init_of(FO_INIT_NORMAL, 1));
    layer->own = v;
    return *v < 0 ? FO_ERR_ARGUMENT : FO_OK;
}

static double dot(const fo_real *a, const fo_real *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static void reflect(const fo_real *v, double n, fo_real *x, int64_t width) {
    double factor = 2 * dot(v, x, width) / n;
    for (int64_t i = 0; i < width; i++)
        x[i] -= (fo_real)(factor * (double)v[i]);
}

/* Every direction reflects; backward reflects the gradient too. Rows are independent. */
static void reflect_rows(fo_pass *p, int64_t begin, int64_t end) {
    const fo_real *v = p->values + *(int64_t *)p->layer->own;
    int64_t        width = p->layer->width;
    double         n = dot(v, v, width);
    for (int64_t r = begin; r < end; r++) {
        reflect(v, n, p->x + r * p->size, width);
        if (p->direction == FO_BACKWARD)
            reflect(v, n, p->dx + r * p->size, width);
    }
}

/* The gradient of v is a sum over rows, so it is made when all rows are done. They hold x and
   dLoss/dx by now; reflected once more, dLoss/dx is dy, and v.dy = -v.dx. */
static void reflect_after(fo_pass *p) {
    int64_t        at = *(int64_t *)p->layer->own, width = p->layer->width;
    const fo_real *v  = p->values + at;
    double         n  = dot(v, v, width);
    if (p->direction != FO_BACKWARD)
        return;
    for (int64_t i = 0; i < width; i++)
        p->grads[at + i] = 0;
    for (int64_t r = 0; r < p->rows; r++) {
        const fo_real *x = p->x + r * p->size, *dx = p->dx + r * p->size;
        double         a = dot(v, x, width), b = -dot(v, dx, width);
        for (int64_t i = 0; i < width; i++) {
            double vi = (double)v[i], dy = (double)dx[i] + 2 * vi * b / n;
            p->grads[at + i] += (fo_real)((4 * a * b * vi / n - 2 * b * (double)x[i] -
                                           2 * a * dy) / n);
        }
    }
}

static fo_layer_kind reflect_kind(void) {
    fo_layer_kind kind = {0};
    kind.name  = "reflect";
    kind.mixes = 1; /* every element that comes out depends on all that came in */
    kind.shape = reflect_shape;
    kind.rows  = reflect_rows;
    kind.after = reflect_after;
    return kind;
}

int main(void) {
    fo_context   *fo      = fo_open(NULL);
    fo_shape      shape   = {1, 8, 8};
    int           width   = 2;
    fo_layer_kind mirror  = reflect_kind();
    unsigned char image[256][64], map[64];
    char          drawing[128];

    for (int i = 0; i < 256; i++) /* images: a bright square that wanders */
        for (int p = 0; p < 64; p++) {
            int y = p / 8 - i % 6 - 1, x = p % 8 - i / 6 % 6 - 1;
            image[i][p] = (unsigned char)(abs(y) < 2 && abs(x) < 2 ? 200 : 20);
        }
    fo_register_net(fo, &residual);
    fo_register_mask(fo, "frame", frame_mask, &width);
    fo_register_layer(fo, &mirror);
    fo_mask_fill(fo, fo_mask_named("frame", 0), shape, map);
    fo_mask_print(map, shape, drawing, sizeof drawing);
    printf("%s\n", drawing);

    fo_flow *flow = fo_flow_parse(fo, "input 1x8x8\n"
                                      "dequantize\n"
                                      "logit alpha=0.05\n"
                                      "reflect\n"
                                      "6* coupling mask=frame:% net=residual steps=2\n");
    fo_data        *data = fo_data_view(fo, image, FO_U8, 256, shape);
    fo_train_desc   desc = {0};
    fo_check_report report;
    desc.steps    = 300;
    desc.batch    = 64;
    desc.progress = fo_progress_bar;
    fo_train(flow, data, &desc);
    if (fo_check(flow, data, NULL, &report) == FO_OK) /* are op and layer right? */
        printf("%sround trip %.2g, logdet against a numeric Jacobian %.2g, gradient %.2g\n",
               fo_flow_text(flow), report.round_trip, report.jacobian, report.gradient);
    int failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "%s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
