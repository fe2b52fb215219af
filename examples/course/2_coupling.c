/* 2 of 5. A coupling layer by hand.

   In many dimensions f'(x) becomes the determinant of a Jacobian, which costs D^3. A coupling layer
   makes it free: it leaves one part of x alone and changes the other by numbers computed from it,
       y_c = (x_c + t) exp(s),  (s,t) = network(x_id),  log|det| = sum of s,
   because the Jacobian is triangular. It inverts without inverting the network. And -t is the
   layer's guess of x_c: to be likely, y_c has to be near 0.
   Build: cc -O2 -I. examples/course/2_coupling.c -lm */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <math.h>
#include <stdio.h>

enum { ROWS = 256, HIDDEN = 32 };

/* -log p of a batch x[ROWS,2], of which element 1 is changed: one number, on the tape. */
static fo_tensor *coupling_loss(fo_tensor *x, fo_tensor **net) {
    const int  keep = 0, change = 1;
    fo_tensor *x_id = fo_gather(x, &keep, 1), *x_c = fo_gather(x, &change, 1);
    fo_tensor *h    = fo_tanh(fo_net_linear(x_id, "hidden", HIDDEN, 0));
    *net            = fo_net_linear(h, "out", 2, 1); /* starts at zero: y = x */
    fo_tensor *s = fo_tanh(fo_slice(*net, 0, 1)), *t = fo_slice(*net, 1, 1);
    fo_tensor *y = fo_mul(fo_add(x_c, t), fo_exp(s));
    fo_tensor *z2 = fo_add(fo_mul(x_id, x_id), fo_mul(y, y)); /* |z|^2 of each row */
    return fo_mean(fo_sub(fo_scale(z2, 0.5), s), 0);          /* but for D/2 log(2 pi) */
}

/* A banana: x_1 = x_0^2 - 1 with a little noise. */
static void draw(fo_real *x, uint64_t first) {
    for (int i = 0; i < ROWS; i++) {
        fo_random_normal(1, 0, 2 * (first + (uint64_t)i), 2, x + 2 * i);
        x[2 * i + 1] = x[2 * i] * x[2 * i] - 1 + (fo_real)0.2 * x[2 * i + 1];
    }
}

int main(void) {
    const int64_t dim[2] = {ROWS, 2};
    const fo_real one    = 1;
    fo_context   *fo     = fo_open(NULL);
    fo_tape      *tape   = fo_tape_create(fo);
    fo_tensor    *x      = fo_input(tape, 2, dim, 1), *net; /* 1: with a gradient */
    fo_tensor    *loss   = coupling_loss(x, &net);
    fo_train_desc desc   = {0};
    fo_real       direction[2 * ROWS];
    fo_output(loss);
    fo_output(net);
    if (fo_tape_plan(tape, 1) != FO_OK) {
        fprintf(stderr, "%s\n", fo_error(fo));
        fo_close(fo);
        return 1;
    }
    desc.lr = 1e-2;
    for (uint64_t step = 0; step < 600; step++) {
        draw(x->data, step * ROWS);
        fo_forward(tape);
        fo_backward(tape, loss, &one);
        fo_tape_optimize(tape, &desc);
        if (step % 100 == 0)
            printf("step %3d: -log p %.3f nats\n", (int)step, (double)loss->data[0] + 1.8379);
    }

    /* Is the gradient right? A step of h along it raises the loss by h times its length, a step
       back lowers it by as much: the slope is the length. */
    double length = 0, slope = 0, h = 0.05;
    draw(x->data, 0);
    fo_forward(tape);
    fo_backward(tape, loss, &one);
    for (int i = 0; i < 2 * ROWS; i++)
        length += (double)(x->grad[i] * x->grad[i]);
    length = sqrt(length);
    for (int i = 0; i < 2 * ROWS; i++)
        direction[i] = x->grad[i] / (fo_real)length;
    for (int side = -1; side <= 1; side += 2) {
        draw(x->data, 0); /* inputs are filled before each run: ops may write over them */
        for (int i = 0; i < 2 * ROWS; i++)
            x->data[i] += (fo_real)(side * h) * direction[i];
        fo_forward(tape);
        slope += side * (double)loss->data[0] / (2 * h);
    }
    printf("length of dLoss/dx: %.5f on the tape, %.5f by differences\n", length, slope);

    for (int i = 0; i < 9; i++) { /* what does the layer guess? */
        x->data[2 * i]     = (fo_real)(-2 + 0.5 * i);
        x->data[2 * i + 1] = 0;
    }
    fo_forward(tape);
    printf("%8s %8s %8s\n", "x_0", "x_0^2-1", "-t");
    for (int i = 0; i < 9; i++)
        printf("%8.2f %8.2f %8.2f\n", -2 + 0.5 * i, pow(-2 + 0.5 * i, 2) - 1,
               -(double)net->data[2 * i + 1]);
    int failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "%s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
/* Exercise: write the inverse, x_c = y exp(-s) - t, and draw samples: z ~ N(0, I), x_0 = z_0, x_1
   from z_1 and x_0. Is their x_1 - x_0^2 + 1 as narrow as 0.2? If not, which line of coupling_loss
   stands in the way? The answer is in tests/course.c. */
