/* Your own op, st-network and mask: the same interface that the built-in ones use. And a loss of
   your own: a flow is trained together with a small network on its latents.
   Build: cc -O2 -I. examples/custom.c -lm */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

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

/* ---- an st-network with a residual connection ------------------------------------------------ */

static fo_tensor *residual_build(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    (void)tape;
    fo_tensor *h = softsign(fo_net_linear(x, "in", net->hidden, 0));
    h = fo_add(h, softsign(fo_net_linear(h, "mid", net->hidden, 0)));
    return fo_net_linear(h, "out", outputs, 1);
}

/* ---- a mask: condition on the border of an image, change its middle, or the other way -------- */

static fo_state frame_mask(void *user, fo_shape shape, int phase, int c, int y, int x) {
    int width  = *(int *)user;
    int border = y < width || x < width || y >= shape.h - width || x >= shape.w - width;
    (void)c;
    return border == (phase % 2 == 0) ? FO_CONDITION : FO_CHANGE;
}

/* ---- a loss of one's own: the latents shall also tell where the square is -------------------- */

/* Squared error of a linear guess of `want` from z, on a tape. */
typedef struct head { fo_tape *tape; fo_tensor *z, *want, *loss; } head;

static head make_head(fo_context *fo, int64_t rows, int64_t size) {
    head    h;
    int64_t dim[2] = {rows, size}, one[2] = {rows, 1};
    h.tape = fo_tape_create(fo);
    h.z    = fo_input(h.tape, 2, dim, 1); /* its gradient is wanted */
    h.want = fo_input(h.tape, 2, one, 0);
    fo_tensor *off = fo_sub(fo_net_linear(h.z, "guess", 1, 0), h.want);
    h.loss = fo_mean(fo_mul(off, off), 0);
    fo_output(h.loss);
    fo_tape_plan(h.tape, 1);
    return h;
}

static void train_with_head(fo_context *fo, fo_flow *flow, fo_data *data, fo_train_desc *desc) {
    head            h  = make_head(fo, desc->batch, 64);
    fo_trainer     *tr = fo_trainer_open(flow, data, desc);
    fo_real         weight = 10; /* of this loss beside the mean of -log_prob */
    const fo_batch *b;
    while ((b = fo_trainer_forward(tr)) != NULL && !fo_failed(fo)) {
        memcpy(h.z->data, b->z, (size_t)h.z->count * sizeof(fo_real));
        for (int64_t r = 0; r < b->rows; r++)
            h.want->data[r] = (fo_real)(b->sample[r] % 6) / 6;
        fo_forward(h.tape);
        fo_backward(h.tape, h.loss, &weight);
        fo_trainer_backward(tr, NULL, h.z->grad);
        fo_trainer_update(tr);
        fo_tape_optimize(h.tape, NULL);
    }
    fo_trainer_close(tr);
    if (!fo_failed(fo))
        printf("squared error of the head: %.4f\n", (double)h.loss->data[0]);
    fo_tape_free(h.tape);
}

int main(void) {
    fo_context   *fo       = fo_open(NULL);
    fo_shape      shape    = {1, 8, 8};
    int           width    = 2;
    fo_net_kind   residual = {"residual", residual_build, 0, {{"hidden", 64, 1, 4096, 0, NULL}}};
    unsigned char image[256][64], map[64];
    char          drawing[128];

    for (int i = 0; i < 256; i++) /* images: a bright square that wanders */
        for (int p = 0; p < 64; p++) {
            int y = p / 8 - i % 6 - 1, x = p % 8 - i / 6 % 6 - 1;
            image[i][p] = (unsigned char)(abs(y) < 2 && abs(x) < 2 ? 200 : 20);
        }
    fo_register_net(fo, &residual);
    fo_register_mask(fo, "frame", frame_mask, &width);
    fo_mask_fill(fo, fo_mask_named("frame", 0), shape, map);
    fo_mask_print(map, shape, drawing, sizeof drawing);
    printf("%s\n", drawing);

    fo_flow *flow = fo_flow_parse(fo, "input 1x8x8\n"
                                      "dequantize\n"
                                      "logit alpha=0.05\n"
                                      "6* coupling mask=frame:% net=residual hidden=64\n");
    fo_data        *data = fo_data_view(fo, image, FO_U8, 256, shape);
    fo_train_desc   desc = {0};
    fo_check_report report;
    desc.steps    = 300;
    desc.batch    = 64;
    desc.progress = fo_progress_bar;
    fo_train(flow, data, &desc);
    desc.steps = 400; /* and 100 more with the second loss */
    train_with_head(fo, flow, data, &desc);
    if (fo_check(flow, data, &report) == FO_OK) /* is the new op's gradient right? */
        printf("%sround trip %.2g, gradient %.2g\n", fo_flow_text(flow), report.round_trip,
               report.gradient);
    int failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "%s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
