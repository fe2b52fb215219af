/* flowood.h - normalizing flows and out-of-distribution detection in one C header

   >>about

   A normalizing flow is an invertible network that turns samples x into noise z ~ N(0, I), so that
   the density of x is known exactly:  log p(x) = log N(z; 0, I) + log|det dz/dx|.  This header
   builds flows on images, feature vectors and tables, trains them on a CPU, and gives exact
   log-likelihoods, latents and samples. It exists to make one result visible and useful:

     P. Kirichenko, P. Izmailov, A. G. Wilson, "Why Normalizing Flows Fail to Detect
     Out-of-Distribution Data", NeurIPS 2020, arXiv 2006.08545

   A flow trained on pictures of clothes finds handwritten digits as likely as clothes, or likelier:
   it learns local pixel correlations, not what the picture shows. Two changes to its coupling
   layers help: a cycle mask, and a bottleneck in the st-network. Both are here, with the failing
   baseline beside them.

   It is      one file, C99 and C++11, that needs libc and libm; OpenMP is used where it is
              compiled in. Vector code is chosen at run time: plain `cc -O2 app.c -lm` is fast.
   It is not  a general deep-learning framework, and not for GPUs.
   Beware     a context is for one thread at a time. Samples of a NULL or failed object fail
              quietly: check fo_failed(fo) before you believe a result.

   >>program

       #define FLOWOOD_IMPLEMENTATION              in exactly one file of a program
       #include "flowood.h"

       int main(void) {
           fo_context *fo    = fo_open(NULL);                         // NULL: every default
           fo_data    *train = fo_load(fo, "data/fashion/train-images-idx3-ubyte.gz");
           fo_flow    *flow  = fo_flow_create(fo, fo_data_shape(train));
           fo_add_dequantize(flow);                                   // bytes to numbers in (0,1)
           fo_add_logit(flow, 0.05);                                  // and to the whole real line
           for (int i = 0; i < 8; i++)
               fo_add_coupling(flow, fo_mask_cycle(i), fo_net_mlp(512, 1, 10));
           fo_train_desc desc = {0};                                  // zero means default
           desc.seconds  = 60;
           desc.progress = fo_progress_bar;
           fo_train(flow, train, &desc);
           fo_save(flow, "flow.safetensors");
           if (fo_failed(fo))
               fprintf(stderr, "%s\n", fo_error(fo));
           fo_close(fo);                                              // frees everything
       }

   >>contents      search for >>name

     MANUAL   about  program  contents  build  glossary  contracts  math
     API      api-core  api-data  api-tape  api-ops  api-nets  api-masks  api-flow  api-train
              api-detect  api-check
     IMPL     platform  memory  random  parallel  simd  kernels  data  metrics  tape  ops  nets
              masks  layers  flow  train  checkpoint  detect  check  context
     LICENSE  license

   A room uses only the rooms above it.

   >>build         macros; those marked * must be the same in every file that includes this one

     FLOWOOD_IMPLEMENTATION  compile the implementation here
     FLOWOOD_STATIC *        make every function static: the implementation is private to a file
     FLOWOOD_DOUBLE *        fo_real is double; plain kernels. For verification: gradients to 1e-7
     FLOWOOD_NO_SIMD         plain C kernels only
     FLOWOOD_NO_OPENMP       one thread, even if the compiler has OpenMP
     FLOWOOD_SELF            how the file includes itself; default "flowood.h". Set it if you
                             renamed the file (the vector kernels are compiled in several passes)

   >>glossary      the field's words, as this file uses them

     encode, decode   x -> z ("normalizing"), z -> x ("generative")
     log_prob         log p(x) in nats; bpd = -log_prob / (D ln 2), D the number of dimensions
     logdet           log|det| of a layer's Jacobian, one number a sample
     coupling layer   changes a part of x by a scale and a shift computed from another part
     st-network       the network in a coupling: from what it conditions on to s and t
     mask             which elements a coupling conditions on, changes, or lets pass
     dequantize       noise in [0,1) added to whole numbers, so that a density makes sense
     temperature      the standard deviation of z when sampling
     OOD              out of distribution: not from where the training data came from
     score            higher means more OOD, always
     context          owns memory, random seed, threads and the last error
     tape             a recorded computation that can be run forward and backward
     workspace        everything one thread needs to run a flow

   >>contracts

     State        no mutable globals. Every object belongs to a context; fo_close frees them all.
     Memory       one funnel, yours if you like (fo_desc.realloc_fn). After its first step training
                  allocates nothing; scoring allocates nothing at all.
     Errors       the library never prints (fo_progress_bar is a callback that you choose), aborts,
                  exits or asserts on input. Functions return fo_result or NULL, and the context
                  keeps the first message until fo_clear_error.
     Determinism  the same seed gives the same bits for any number of threads; a sample's score does
                  not depend on the batch it sits in; resuming equals going on. Another CPU may
                  choose other kernels, which agree to rounding.
     Numbers      logdets and log-likelihoods accumulate in double. NaN is reported with the layer,
                  place and sample where it arose.
     Threads      a trained flow may be scored by many threads, each with a context and a workspace
                  of its own, as long as nobody trains it.
     Files        hostile until proven otherwise; written under another name and then renamed.

   >>math

     dequantize   y = (x+u)/256, u ~ U(0,1)                     logdet = -D log 256
     logit        v = 1/2 + (1-2a)(y-1/2), h = log v - log(1-v) logdet = sum log((1-2a)/(v(1-v)))
     coupling     y_c = (x_c + t) exp(s), (s,t) = st(x_id)      logdet = sum s
                  s = scale tanh(raw s): bounded, so that no sample explodes. -t is the layer's
                  guess of x_c: that is what the paper's pictures show.
     base         log N(z; 0, I) = -|z|^2/2 - D/2 log(2 pi)
     log_prob     the sum of all of the above: the density of the 8-bit image, constants once.
                  By Jensen's inequality its mean over u is a lower bound of log P(x).
     gradients    dx = dy exp(s), dt = dx, ds = dy y + dL/dlogdet

     Kirichenko et al. 2020 (this paper)     Dinh et al. 2014, 2017 (NICE, RealNVP)
     Kingma & Ba 2015 (Adam)                 Papamakarios et al. 2021 (a review of flows)
*/
#ifndef FLOWOOD_H
#define FLOWOOD_H

#if defined(FLOWOOD_IMPLEMENTATION) && defined(__STRICT_ANSI__) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* -std=c99 hides the clock; asking for POSIX only adds names */
#endif
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef FLOWOOD_STATIC
#define FO_API static
#elif defined(__cplusplus)
#define FO_API extern "C"
#else
#define FO_API extern
#endif

/* ================================================================================================
   >>api-core      contexts, errors, memory, random numbers
   ============================================================================================= */

/* The number type of every tensor. FLOWOOD_DOUBLE must be set the same way in every file. */
#ifdef FLOWOOD_DOUBLE
typedef double fo_real;
#else
typedef float fo_real;
#endif

/* Every way to fail: one row makes the code and the text of fo_result_name. */
#define FO_RESULTS(X)                                                                              \
    X(OK, "ok")                                                                                    \
    X(ERR_MEMORY, "out of memory")                                                                 \
    X(ERR_ARGUMENT, "bad argument")                                                                \
    X(ERR_SHAPE, "shapes do not fit")                                                              \
    X(ERR_FILE, "file cannot be read or written")                                                  \
    X(ERR_FORMAT, "file is damaged or of another kind")                                            \
    X(ERR_NUMERIC, "not a finite number")

typedef enum fo_result {
#define FO__ENUM(name, text) FO_##name,
    FO_RESULTS(FO__ENUM)
#undef FO__ENUM
    FO_RESULT_COUNT
} fo_result;

typedef struct fo_context   fo_context;   /* owns memory, threads, seed, last error; one thread */
typedef struct fo_data      fo_data;      /* rows of uint8, float32 or float64 samples          */
typedef struct fo_tape      fo_tape;      /* a recorded computation: forward and backward       */
typedef struct fo_tensor    fo_tensor;    /* one value on a tape                                */
typedef struct fo_flow      fo_flow;      /* layers and their parameters                        */
typedef struct fo_workspace fo_workspace; /* everything one thread needs to run a flow          */
typedef struct fo_archive   fo_archive;   /* a safetensors file in memory                       */

/* Which kernels to use. AUTO asks the CPU; REF is the plain C twin of every kernel. Asking for
   more than the CPU has falls back to AUTO; fo_get_desc tells what was chosen. */
typedef enum fo_simd {
    FO_SIMD_AUTO, FO_SIMD_REF, FO_SIMD_PORTABLE, FO_SIMD_NEON, FO_SIMD_AVX2, FO_SIMD_AVX512
} fo_simd;

/* What fo_open wants to know. Zero means default, here and in every desc struct of this file. */
typedef struct fo_desc {
    uint64_t seed;    /* of weights, shuffling, noise and samples; 0 is a seed like any other */
    int      threads; /* 0: every core if compiled with OpenMP, else 1                         */
    fo_simd  simd;
    /* The one allocation funnel. size 0 frees; NULL means failure. Default: realloc and free. */
    void *(*realloc_fn)(void *user, void *ptr, size_t old_size, size_t new_size);
    /* Called once for each new error, before the failing call returns. Default: nothing. */
    void (*error_fn)(void *user, fo_result code, const char *message);
    void *user;       /* handed to both functions */
} fo_desc;

typedef struct fo_memory_stats {
    size_t   now, peak;   /* bytes held through the funnel */
    uint64_t allocations; /* calls that asked for memory since fo_open */
} fo_memory_stats;

/* NULL only when there is no memory at all. A context is used by one thread at a time. */
FO_API fo_context *fo_open(const fo_desc *desc);
FO_API void        fo_close(fo_context *fo); /* frees every object of this context */
FO_API fo_desc     fo_get_desc(const fo_context *fo); /* defaults resolved */
FO_API fo_memory_stats fo_memory(const fo_context *fo);

/* Errors are sticky: the first one since fo_clear_error stays, later calls that stand on the
   failed object fail quietly, so a program may check once at its end. */
FO_API fo_result   fo_failed(const fo_context *fo); /* FO_OK or the first error's code */
FO_API const char *fo_error(const fo_context *fo);  /* "" when nothing failed          */
FO_API void        fo_clear_error(fo_context *fo);
FO_API const char *fo_result_name(fo_result code);
/* For callbacks and user-defined ops: record an error with a printf-like message; returns code. */
FO_API fo_result   fo_fail(fo_context *fo, fo_result code, const char *format, ...);

/* Seconds of a clock that does not jump, from an arbitrary start. */
FO_API double fo_clock(void);

/* Runs fn over [0,n) in ranges of at least `grain`. Which thread gets which range is unspecified;
   fn must give the same bits for any split. */
FO_API void fo_parallel_for(fo_context *fo, int64_t n, int64_t grain,
                            void (*fn)(void *arg, int64_t begin, int64_t end), void *arg);

/* Counter-based random numbers (Philox 4x32-10, Salmon et al. 2011): number `index` of `stream`
   under `seed` is a pure function of the three, so order and threads do not matter. */
FO_API void fo_random_bits(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);
/* out[i] in (0,1): number first+i of the stream. */
FO_API void fo_random_uniform(uint64_t seed, uint64_t stream, uint64_t first, int64_t n,
                              fo_real *out);
/* out[i] ~ N(0,1) (Box-Muller): number first+i of the stream. */
FO_API void fo_random_normal(uint64_t seed, uint64_t stream, uint64_t first, int64_t n,
                             fo_real *out);

/* ================================================================================================
   >>api-data      samples, data files, safetensors archives, metrics
   ============================================================================================= */

/* One sample: channels x height x width. A feature vector of D numbers is {D,1,1}. */
typedef struct fo_shape { int c, h, w; } fo_shape;
FO_API int64_t fo_shape_count(fo_shape shape); /* c*h*w */

typedef enum fo_dtype { FO_U8, FO_F16, FO_F32, FO_F64, FO_I32, FO_I64 } fo_dtype;
FO_API size_t      fo_dtype_size(fo_dtype type);
FO_API const char *fo_dtype_name(fo_dtype type); /* as in safetensors: "U8", "F16", "F32" ... */

/* Reads IDX (uint8) or .npy (uint8, float16, float32, float64; C order), plain or gzip-compressed;
   the kind is told by the first bytes, not by the name. The first dimension counts samples:
   N x H x W and N x C x H x W are images, N x D feature vectors, N scalars. float16 becomes
   float32. Values must be finite. */
FO_API fo_data *fo_load(fo_context *fo, const char *path);
/* Samples from memory, not copied: rows must stay in place as long as the fo_data. */
FO_API fo_data *fo_data_view(fo_context *fo, const void *rows, fo_dtype type, int64_t count,
                             fo_shape shape);
FO_API void     fo_data_free(fo_data *data);
FO_API fo_shape fo_data_shape(const fo_data *data); /* {0,0,0} for NULL */
FO_API int64_t  fo_data_count(const fo_data *data); /* 0 for NULL       */
FO_API fo_dtype fo_data_dtype(const fo_data *data);
FO_API void     fo_data_limit(fo_data *data, int64_t count); /* keep the first `count` samples */
/* Sample i as numbers, out[c*h*w]. */
FO_API fo_result fo_data_get(const fo_data *data, int64_t i, fo_real *out);

/* Array files out. Written under a temporary name, then renamed: never half a file. */
FO_API fo_result fo_save_npy(fo_context *fo, const char *path, fo_dtype type, int rank,
                             const int64_t *dim, const void *values);
FO_API fo_result fo_save_idx(fo_context *fo, const char *path, int rank, const int64_t *dim,
                             const unsigned char *values);
/* PNG, 8 bits, 1 (grey) or 3 (RGB) interleaved channels: pixels[h*w*channels]. */
FO_API fo_result fo_save_png(fo_context *fo, const char *path, int w, int h, int channels,
                             const unsigned char *pixels);

/* Named arrays with text notes: the safetensors format, as Python's package reads and writes it. */
typedef struct fo_array {
    const char *name;
    fo_dtype    type;
    int         rank;
    int64_t     dim[4];
    const void *values;
} fo_array;
typedef struct fo_note { const char *key, *text; } fo_note; /* one entry of __metadata__ */

FO_API fo_archive     *fo_archive_open(fo_context *fo, const char *path);
FO_API void            fo_archive_free(fo_archive *archive);
FO_API int             fo_archive_count(const fo_archive *archive);
FO_API const fo_array *fo_archive_at(const fo_archive *archive, int i); /* in file order */
FO_API const fo_array *fo_archive_find(const fo_archive *archive, const char *name); /* or NULL */
FO_API const char     *fo_archive_note(const fo_archive *archive, const char *key);  /* or NULL */
FO_API fo_result fo_archive_save(fo_context *fo, const char *path, const fo_array *arrays, int n,
                                 const fo_note *notes, int n_notes);

/* Detection metrics. OOD is the positive class and higher scores mean more OOD, always.
     auroc     P(score of OOD > score of in) + P(equal)/2; 0.5 is chance
     aupr_out  average precision with OOD positive; aupr_in: with in-distribution positive
               (on negated scores). Equal scores are one step of the curve.
     fpr95     share of in-distribution samples that score at or above the highest threshold
               which still finds 95 % of the OOD samples
   Scores must be numbers (infinities order as usual, NaN is an error); n_in, n_ood > 0. */
typedef struct fo_metrics { double auroc, aupr_in, aupr_out, fpr95; } fo_metrics;
FO_API fo_result fo_measure(fo_context *fo, const double *in, int64_t n_in, const double *ood,
                            int64_t n_ood, fo_metrics *out);

/* ================================================================================================
   >>api-tape      tensors, the tape, user-defined ops

   Calling an op records it; nothing is computed until fo_forward. Because the whole computation
   is known first, memory is planned once and no step allocates. Ops accept NULL inputs (after an
   error) and return NULL.
   ============================================================================================= */
#define FO_MAX_RANK 4

typedef struct fo_op fo_op;

struct fo_tensor {
    int      rank;             /* 1..FO_MAX_RANK                                          */
    int64_t  dim[FO_MAX_RANK]; /* row-major, the last index runs fastest                  */
    int64_t  count;            /* product of dim                                          */
    fo_real *data;             /* count numbers; placed by fo_tape_plan                   */
    fo_real *grad;             /* dLoss/d(data), or NULL where no gradient is needed      */
    fo_tape     *tape;
    const fo_op *op;           /* NULL: an input or a parameter                           */
    fo_tensor  **in;
    int          n_in;
    const void  *args;         /* the op's own constants, copied by fo_apply              */
    unsigned     fresh;        /* in backward, bit i: in[i]->grad is unwritten: set it    */
    struct {                   /* private: filled by the planner                          */
        fo_tensor *data_of, *grad_of; /* whose storage this one shares (itself, mostly)   */
        int        needs_grad, is_output, written;
        int        last, until;       /* last use in forward; in backward (-1: none)      */
        int64_t    data_at, grad_at, param_at; /* offsets in their pools; -1: none        */
        int        kept;              /* data must survive from forward to backward       */
    } plan;
};

enum { /* what an op promises or needs */
    FO_READS_INPUT  = 1,  /* backward reads in[]->data                                    */
    FO_READS_OUTPUT = 2,  /* backward reads out->data                                     */
    FO_ELEMENTWISE  = 4,  /* may be called for ranges of out's elements, on many threads  */
    FO_IN_PLACE     = 8,  /* forward may write over in[0]->data                           */
    FO_SETS_FRESH   = 16, /* backward honours `fresh`; else fresh gradients come zeroed   */
    FO_VIEW         = 32  /* shares data and gradient with in[0]: no forward, no backward */
};

/* One op: shape, forward, backward. Built-in ops and yours use this one interface.
   shape     checks in[] and sets out->rank and out->dim; errors through fo_fail
   forward   fills out->data; elements [begin,end) if FO_ELEMENTWISE, else all of them
   backward  given out->grad, ADDS to in[i]->grad wherever that is not NULL                 */
struct fo_op {
    const char *name;
    int         flags;
    fo_result (*shape)(fo_tensor *out);
    void (*forward)(const fo_tensor *out, int64_t begin, int64_t end);
    void (*backward)(const fo_tensor *out, int64_t begin, int64_t end);
};

/* How a parameter starts: a constant, U(-scale, scale) or N(0, scale^2). */
typedef enum fo_init_kind { FO_INIT_CONSTANT, FO_INIT_UNIFORM, FO_INIT_NORMAL } fo_init_kind;
typedef struct fo_init { fo_init_kind kind; double scale; } fo_init;
FO_API fo_init fo_init_of(fo_init_kind kind, double scale);

FO_API fo_tape    *fo_tape_create(fo_context *fo);
FO_API void        fo_tape_free(fo_tape *tape);
FO_API fo_context *fo_tape_context(const fo_tape *tape);
/* A leaf that you fill before each fo_forward; needs_grad: also make its gradient. */
FO_API fo_tensor *fo_input(fo_tape *tape, int rank, const int64_t *dim, int needs_grad);
/* A learned leaf. Names are unique; asking again for a name gives the same parameter. */
FO_API fo_tensor *fo_param(fo_tape *tape, const char *name, int rank, const int64_t *dim,
                           fo_init init);
FO_API fo_tensor *fo_apply(fo_tape *tape, const fo_op *op, fo_tensor *const *in, int n_in,
                           const void *args, size_t args_size);
FO_API void       fo_output(fo_tensor *tensor); /* keep its data for the caller */
/* Places everything in memory; train: with gradients. No op may be added afterwards. */
FO_API fo_result  fo_tape_plan(fo_tape *tape, int train);
FO_API fo_result  fo_forward(fo_tape *tape);
/* Gradients of sum(grad * out->data) for every parameter and every input that needs one, set, not
   added to earlier ones. grad NULL: out->grad holds it already. out must be an fo_output. */
FO_API fo_result  fo_backward(fo_tape *tape, fo_tensor *out, const fo_real *grad);

/* ================================================================================================
   >>api-ops       letters: a, b any shape; B rows of a batch
   ============================================================================================= */
/* a+b, a-b, a*b: b has a's shape or a's last dimensions (or is one number), repeated over the
   first ones. */
FO_API fo_tensor *fo_add(fo_tensor *a, fo_tensor *b);
FO_API fo_tensor *fo_sub(fo_tensor *a, fo_tensor *b);
FO_API fo_tensor *fo_mul(fo_tensor *a, fo_tensor *b);
FO_API fo_tensor *fo_scale(fo_tensor *a, double k);            /* k*a */
FO_API fo_tensor *fo_exp(fo_tensor *a);
FO_API fo_tensor *fo_log(fo_tensor *a);
FO_API fo_tensor *fo_tanh(fo_tensor *a);
FO_API fo_tensor *fo_sigmoid(fo_tensor *a);                    /* 1/(1+exp(-a)) */
FO_API fo_tensor *fo_softplus(fo_tensor *a);                   /* log(1+exp(a)) */
FO_API fo_tensor *fo_relu(fo_tensor *a);                       /* max(a,0)      */
FO_API fo_tensor *fo_leaky_relu(fo_tensor *a, double slope);   /* a>0 ? a : slope*a, slope >= 0 */
/* Over all dimensions after the first `keep` (0 or 1): [1] or [B]. Summed in double. */
FO_API fo_tensor *fo_sum(fo_tensor *a, int keep);
FO_API fo_tensor *fo_mean(fo_tensor *a, int keep);
FO_API fo_tensor *fo_linear(fo_tensor *x, fo_tensor *w, fo_tensor *b); /* x[B,I] w[O,I] b[O] or
                                                                           NULL -> x w^T + b [B,O] */
FO_API fo_tensor *fo_matmul(fo_tensor *a, fo_tensor *b);       /* a[M,K] b[K,N] -> [M,N] */
/* Per row, flattened: out[r,j] = a[r,index[j]], 0 where index[j] is -1. -> [B,n] */
FO_API fo_tensor *fo_gather(fo_tensor *a, const int *index, int n);
/* Per row: out[r,index[j]] = a[r,j], zero elsewhere; no index twice. -> [B,width] */
FO_API fo_tensor *fo_scatter(fo_tensor *a, const int *index, int width);
FO_API fo_tensor *fo_concat(fo_tensor *a, fo_tensor *b);       /* along dimension 1 */
FO_API fo_tensor *fo_slice(fo_tensor *a, int64_t begin, int64_t length); /* along dimension 1 */
FO_API fo_tensor *fo_reshape(fo_tensor *a, int rank, const int64_t *dim);

/* ================================================================================================
   >>api-nets      st-networks: from what a coupling conditions on to s and t
   ============================================================================================= */
/* Which network a coupling uses. The mlp: `depth` hidden layers of `hidden` units, then, if
   bottleneck > 0, a layer of `bottleneck` units without activation and `depth` more hidden
   layers; the output layer starts at zero, so that a fresh coupling is the identity. */
typedef struct fo_net {
    const char *kind;   /* NULL: "mlp"; or the name of a registered net          */
    int hidden;         /* 0: 512                                                */
    int depth;          /* 0: 1                                                  */
    int bottleneck;     /* 0: none                                               */
    const char *act;    /* NULL: "leaky_relu" (0.01); "relu", "tanh", "softplus" */
} fo_net;
FO_API fo_net fo_net_mlp(int hidden, int depth, int bottleneck);
FO_API fo_net fo_net_named(const char *kind);

/* A kind of st-network. build gets x[B,I], the conditioned elements in index order, and returns
   [B,outputs]: raw s of every changed element, then t of every changed element (only t when the
   coupling is additive). It names its parameters with fo_param; it may be called many times. */
typedef struct fo_net_kind {
    const char *name;
    fo_tensor *(*build)(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net);
} fo_net_kind;
FO_API fo_result fo_register_net(fo_context *fo, const fo_net_kind *kind);
/* Helpers for build: a linear layer with PyTorch's default initialisation, or all zeros; and an
   activation by name. Parameters are `name`.weight and `name`.bias. */
FO_API fo_tensor *fo_net_linear(fo_tensor *x, const char *name, int outputs, int zero);
FO_API fo_tensor *fo_activation(fo_tensor *x, const char *act);

/* ================================================================================================
   >>api-masks     three states for every element of a sample
   ============================================================================================= */
typedef enum fo_state { FO_CONDITION, FO_CHANGE, FO_PASS } fo_state;

/* phase selects which part plays which role; even and odd phases complement each other.
     checkerboard  condition where (y+x)%2 == phase%2
     channel       condition on the first (phase even) or second half of the channels
     horizontal    condition on the top or bottom half; vertical: left or right
     cycle         condition on quadrant phase%4 (clockwise from top left), change the next one
     halves, alternating, random   for vectors: by flat index; random:2k and random:2k+1 are the
                   two sides of the k-th random partition
   or the name of a registered mask; or "map" with one fo_state for every element. */
typedef struct fo_mask {
    const char          *kind;
    int                  phase;
    const unsigned char *map; /* c*h*w states, for kind "map"; copied */
} fo_mask;
FO_API fo_mask fo_mask_named(const char *kind, int phase);
FO_API fo_mask fo_mask_checkerboard(int phase);
FO_API fo_mask fo_mask_cycle(int phase);
FO_API fo_mask fo_mask_halves(int phase);
FO_API fo_mask fo_mask_map(const unsigned char *map);

typedef fo_state (*fo_mask_fn)(void *user, fo_shape shape, int phase, int c, int y, int x);
FO_API fo_result fo_register_mask(fo_context *fo, const char *name, fo_mask_fn fn, void *user);
/* States of every element, map[c*h*w]. Error if nothing is conditioned on or nothing changes. */
FO_API fo_result fo_mask_fill(fo_context *fo, fo_mask mask, fo_shape shape, unsigned char *map);
/* ASCII: one line a row, channels side by side; 'o' condition, '#' change, '.' pass. Returns the
   length needed, like snprintf. */
FO_API size_t fo_mask_print(const unsigned char *map, fo_shape shape, char *text, size_t size);

/* ================================================================================================
   >>api-flow      layers from x to z; log_prob, encode, decode, sample

   encode is x -> z (normalizing), decode is z -> x (generative).
   log_prob(x) = log N(z; 0, I) + sum over layers of logdet, in nats; for uint8 images the
   dequantize layer makes it the density of the 8-bit image.
   ============================================================================================= */
FO_API fo_flow *fo_flow_create(fo_context *fo, fo_shape shape);
/* y = (x+u)/256 with u ~ U(0,1), a function of (seed, sample index, draw). First layer, or none. */
FO_API fo_result fo_add_dequantize(fo_flow *flow);
/* h = logit(v), v = 1/2 + (1-2 alpha)(y - 1/2) */
FO_API fo_result fo_add_logit(fo_flow *flow, double alpha);
/* (x - mean)/std of each element, measured once on the first training data. */
FO_API fo_result fo_add_standardize(fo_flow *flow);
/* Affine (RealNVP, Dinh et al. 2017; sign and order as in the paper's code):
   y = (x + t) exp(s), s = scale tanh(raw s), scale learned: one per channel of an image, one per
   changed element of a vector. */
FO_API fo_result fo_add_coupling(fo_flow *flow, fo_mask mask, fo_net net);
/* Additive (NICE, Dinh et al. 2014): y = x + t. */
FO_API fo_result fo_add_additive(fo_flow *flow, fo_mask mask, fo_net net);

/* The same flow as text, one layer a line, and back:
     input 1x28x28
     dequantize
     logit alpha=0.05
     8* coupling mask=cycle:% net=mlp hidden=512 bottleneck=10
   `N*` repeats a line, % is the number of the repetition; # starts a comment. */
FO_API fo_flow    *fo_flow_parse(fo_context *fo, const char *text);
FO_API const char *fo_flow_text(fo_flow *flow); /* lives as long as the flow */
/* A named recipe for samples of this shape, with its training defaults (see fo_presets). */
FO_API fo_flow    *fo_flow_preset(fo_context *fo, const char *name, fo_shape shape);
typedef struct fo_preset { const char *name, *about, *body; double lr; int batch; double ema; }
    fo_preset;
FO_API const fo_preset *fo_presets(int *count);

FO_API void     fo_flow_free(fo_flow *flow);
FO_API fo_shape fo_flow_shape(const fo_flow *flow);
FO_API int      fo_flow_layers(const fo_flow *flow);
FO_API const char *fo_flow_layer_text(const fo_flow *flow, int layer); /* its line of the text */
/* States of layer's mask, or NULL where the layer has none. */
FO_API const unsigned char *fo_flow_mask(const fo_flow *flow, int layer);

/* All learned numbers are one block: parameter i is [offset, offset+count) of it. */
typedef struct fo_param_info {
    const char *name; /* "LAYER.scale", "LAYER.net.0.weight", ... */
    int         rank;
    int64_t     dim[FO_MAX_RANK];
    int64_t     offset, count;
} fo_param_info;
FO_API int           fo_param_count(const fo_flow *flow);
FO_API fo_param_info fo_param_at(const fo_flow *flow, int i);
FO_API fo_real      *fo_params(fo_flow *flow, int64_t *count);

/* What one thread needs to run a flow on up to `batch` (0: 256) samples at a time. It belongs to
   `fo`, which may differ from the flow's context: a thread of its own opens a context of its own.
   The flow must not be trained meanwhile. After creation no scoring call allocates. */
FO_API fo_workspace *fo_workspace_create(fo_context *fo, fo_flow *flow, int batch);
FO_API void          fo_workspace_free(fo_workspace *ws);

/* Samples first .. first+count-1 of data. draw >= 0 numbers the dequantization noise;
   FO_DRAW_MIDDLE takes u = 1/2, so that decode(encode(x)) gives back x. */
#define FO_DRAW_MIDDLE (-1)
FO_API fo_result fo_log_prob(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                             int draw, double *log_prob);
/* Where log_prob came from: terms[count][1+layers]: base density, then the logdet of each layer.
   A row, added up from left to right, is log_prob to the last bit. */
FO_API fo_result fo_log_prob_terms(fo_workspace *ws, const fo_data *data, int64_t first,
                                   int64_t count, int draw, double *terms);
FO_API fo_result fo_encode(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                           int draw, fo_real *z);
/* x[count][c*h*w]; after dequantize in grey levels clamped to 0..255: rounding restores the pixel.
   logdet (or NULL): of the decode of each sample, minus that of encode. */
FO_API fo_result fo_decode(fo_workspace *ws, const fo_real *z, int64_t count, fo_real *x,
                           double *logdet);
/* z ~ N(0, temperature^2) from (seed, sample number), decoded. */
FO_API fo_result fo_sample(fo_workspace *ws, uint64_t seed, int64_t count, double temperature,
                           fo_real *x);
FO_API double fo_bpd(double log_prob, fo_shape shape); /* bits per dimension: -log_prob/(D ln 2) */

/* ================================================================================================
   >>api-train     one call that trains; everything it needs to go on is part of the flow
   ============================================================================================= */
typedef enum fo_optimizer { FO_ADAM, FO_ADAMW } fo_optimizer;
typedef enum fo_schedule { FO_CONSTANT, FO_COSINE, FO_STEP } fo_schedule;
typedef enum fo_on_nan { FO_NAN_STOP, FO_NAN_SKIP } fo_on_nan;

typedef struct fo_progress {
    int64_t step, steps;      /* done since training began; planned (0: by time) */
    double  epoch;            /* passes over the data so far                    */
    double  loss, bpd;        /* -log_prob, mean of recent steps; nats and bpd  */
    double  grad_norm, lr;
    double  rate;             /* samples a second                               */
    double  elapsed, left;    /* seconds; left < 0: unknown                     */
    double  since;            /* seconds since the call before                  */
    int64_t skipped;          /* steps dropped for NaN                          */
    int     last;             /* the final call                                 */
} fo_progress;

/* Zero: default. On a flow that was trained before, zero: as before. */
typedef struct fo_train_desc {
    double   seconds, epochs; /* stop after; epochs and steps count since training began */
    int64_t  steps;           /* none of the three: one epoch                            */
    int      batch;           /* 128                                                     */
    fo_optimizer optimizer;
    double   lr;              /* 1e-3                                                    */
    double   beta1, beta2, eps; /* 0.9, 0.999, 1e-8                                      */
    double   weight_decay;    /* ADAMW: decoupled; ADAM: added to the gradient           */
    double   clip;            /* global gradient norm; default 100; < 0: never           */
    fo_schedule schedule;     /* COSINE needs steps or epochs                            */
    int64_t  warmup;          /* steps of linear warm-up                                 */
    int64_t  step_every;      /* STEP: multiply lr by step_factor every so many steps    */
    double   step_factor;     /* 0.1                                                     */
    double   ema;             /* decay of a moving average of the weights that scoring then uses;
                                 default 0: none                                         */
    uint64_t seed;            /* 0: the context's                                        */
    double   memory_mb;       /* for activations, MB: couplings that do not fit are computed again
                                 in backward, to the same bits; default 0: keep all        */
    fo_on_nan on_nan;
    /* Progress: called about ten times a second and at the end; nonzero stops, state intact. */
    int  (*progress)(void *user, const fo_progress *progress);
    /* The step's complete gradient, one block: sum it over machines here. Nonzero stops. */
    int  (*gradients)(void *user, fo_real *grad, int64_t count);
    void *user;
} fo_train_desc;

FO_API fo_result fo_train(fo_flow *flow, const fo_data *data, const fo_train_desc *desc);
FO_API fo_train_desc fo_flow_train_desc(const fo_flow *flow); /* defaults resolved */
FO_API int64_t   fo_flow_steps(const fo_flow *flow);          /* since training began */
/* A ready progress function: a moving line on a terminal, plain lines elsewhere (stderr). */
FO_API int fo_progress_bar(void *user, const fo_progress *progress);

/* Checkpoints: weights, optimizer, moving average, positions, seeds and the flow's text. */
FO_API fo_result fo_save(fo_flow *flow, const char *path);
FO_API fo_flow  *fo_load_flow(fo_context *fo, const char *path);
/* Weights by name into a flow that is already built (files of other programs). */
FO_API fo_result fo_load_weights(fo_flow *flow, const char *path);

/* ================================================================================================
   >>api-detect    scores: higher means more OOD, always

     likelihood  -log_prob(x): what the paper shows to fail, or to work
     latent      -log N(z; 0, I): the base density alone, without the volume change
   ============================================================================================= */
FO_API const char *const *fo_score_names(int *count);
FO_API fo_result fo_score(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                          const char *name, double *score);

/* ================================================================================================
   >>api-check     is this flow what it claims to be?
   ============================================================================================= */
typedef struct fo_check_report {
    double round_trip;  /* max |x - decode(encode(x))|, grey levels for images             */
    double logdet_pair; /* max |logdet(encode) + logdet(decode)| / (1 + |logdet|)          */
    double jacobian;    /* |logdet - numeric log|det J|| / (1 + |logdet|); -1: D too large */
    double gradient;    /* worst |numeric - analytic| / |analytic| slope of the loss along the
                           gradient of each parameter                                     */
    int    untouched;   /* elements that no coupling changes                               */
} fo_check_report;
FO_API fo_result fo_check(fo_flow *flow, const fo_data *data, fo_check_report *report);

/* Stop here if you only use the library. */
#endif /* FLOWOOD_H */

#if defined(FLOWOOD_IMPLEMENTATION) && !defined(FO__KERNEL_PASS)
/* ================================================================================================
   >>platform      the only #if chains about compilers and systems
   ============================================================================================= */
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(_OPENMP) && !defined(FLOWOOD_NO_OPENMP)
#include <omp.h>
#define FO__OPENMP 1
#else
#define FO__OPENMP 0
#endif
#if defined(_WIN32)
#include <io.h>
#define fo__isatty(file) _isatty(_fileno(file))
#elif defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#define fo__isatty(file) isatty(fileno(file))
#else
#define fo__isatty(file) 0
#endif

/* Vector kernels: x86-64 compiles AVX2 and AVX-512 by attribute and asks the CPU at run time;
   AArch64 always has NEON. Double precision and FLOWOOD_NO_SIMD keep to plain C. */
#if defined(FLOWOOD_NO_SIMD) || defined(FLOWOOD_DOUBLE)
#define FO__X86 0
#define FO__NEON 0
#elif (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(_MSC_VER))
#define FO__X86 1
#define FO__NEON 0
#elif defined(__aarch64__) && defined(__GNUC__)
#define FO__X86 0
#define FO__NEON 1
#else
#define FO__X86 0
#define FO__NEON 0
#endif

#if defined(__GNUC__)
#define FO__PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define FO__PRINTF(text, first)
#endif

#define FO__MIN(a, b) ((a) < (b) ? (a) : (b))
#define FO__MAX(a, b) ((a) > (b) ? (a) : (b))

double fo_clock(void) {
#if FO__OPENMP
    return omp_get_wtime();
#elif defined(CLOCK_MONOTONIC)
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#elif defined(TIME_UTC)
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#else
    return (double)time(NULL);
#endif
}

/* ================================================================================================
   >>memory        one funnel, arenas, errors

   Purpose    every byte of the library passes through fo__alloc and is known to its context
   Invariants blocks are 64-byte aligned, zeroed, and linked into the context's list, so that
              fo_close frees everything, in any state, with one loop
   Callers    objects allocate from their own arena; freeing an object frees its arena
   ============================================================================================= */
typedef struct fo__block {
    struct fo__block *next, *prev;
    void             *raw;  /* what the funnel returned */
    size_t            size; /* what the funnel was asked for */
} fo__block;

#define FO__ALIGN ((size_t)64)
#define FO__PREFIX FO__ALIGN /* a block header sits in the cache line before its bytes */

typedef struct fo__arena_chunk {
    struct fo__arena_chunk *next;
    size_t                  used, size;
} fo__arena_chunk;

typedef struct fo__arena {
    fo_context      *fo;
    fo__arena_chunk *chunks; /* the newest first */
} fo__arena;

typedef struct fo__kernels fo__kernels;

struct fo_context {
    fo_desc            desc;
    const fo__kernels *kernels;
    fo__block         *blocks;
    fo_memory_stats    memory;
    fo_result          failed;
    char               message[512];
    fo__arena          arena; /* registered names, caches: whatever lives as long as the context */
    struct fo__registry *registry; /* user-defined nets and masks */
};

static void *fo__default_realloc(void *user, void *ptr, size_t old_size, size_t new_size) {
    (void)user, (void)old_size;
    if (new_size == 0) {
        free(ptr);
        return NULL;
    }
    return realloc(ptr, new_size);
}

static fo_result fo__vfail(fo_context *fo, fo_result code, const char *format, va_list args) {
    if (fo == NULL || fo->failed != FO_OK)
        return code; /* the first error explains the later ones */
    fo->failed = code;
    vsnprintf(fo->message, sizeof fo->message, format, args);
    if (fo->desc.error_fn)
        fo->desc.error_fn(fo->desc.user, code, fo->message);
    return code;
}

FO__PRINTF(3, 4)
static fo_result fo__fail(fo_context *fo, fo_result code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    code = fo__vfail(fo, code, format, args);
    va_end(args);
    return code;
}

fo_result fo_fail(fo_context *fo, fo_result code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    code = fo__vfail(fo, code, format, args);
    va_end(args);
    return code;
}

/* Zeroed bytes, or NULL with the error recorded. */
static void *fo__alloc(fo_context *fo, size_t size) {
    size_t     total = size + FO__PREFIX + FO__ALIGN;
    void      *raw   = NULL;
    uintptr_t  at;
    fo__block *block;
    if (size < SIZE_MAX / 4)
        raw = fo->desc.realloc_fn(fo->desc.user, NULL, 0, total);
    if (raw == NULL) {
        fo__fail(fo, FO_ERR_MEMORY, "out of memory: %.1f MB asked for, %.1f MB in use",
                 (double)size / 1e6, (double)fo->memory.now / 1e6);
        return NULL;
    }
    at    = ((uintptr_t)raw + FO__PREFIX + FO__ALIGN - 1) / FO__ALIGN * FO__ALIGN;
    block = (fo__block *)(at - FO__PREFIX);
    block->raw  = raw;
    block->size = total;
    block->prev = NULL;
    block->next = fo->blocks;
    if (fo->blocks)
        fo->blocks->prev = block;
    fo->blocks = block;
    fo->memory.now += total;
    fo->memory.peak = FO__MAX(fo->memory.peak, fo->memory.now);
    fo->memory.allocations++;
    memset((void *)at, 0, size);
    return (void *)at;
}

static void fo__free(fo_context *fo, void *ptr) {
    fo__block *block;
    if (ptr == NULL)
        return;
    block = (fo__block *)((uintptr_t)ptr - FO__PREFIX);
    if (block->prev)
        block->prev->next = block->next;
    else
        fo->blocks = block->next;
    if (block->next)
        block->next->prev = block->prev;
    fo->memory.now -= block->size;
    fo->desc.realloc_fn(fo->desc.user, block->raw, block->size, 0);
}

/* count * size without overflow: SIZE_MAX, which no allocator grants, when it would. */
static size_t fo__times(int64_t count, size_t size) {
    if (count < 0 || (size && (uint64_t)count > SIZE_MAX / size))
        return SIZE_MAX;
    return (size_t)count * size;
}

/* Small things share a chunk; anything of half a chunk or more gets its own. */
static void *fo__arena_alloc(fo__arena *arena, size_t size) {
    const size_t     head  = (sizeof(fo__arena_chunk) + FO__ALIGN - 1) / FO__ALIGN * FO__ALIGN;
    const size_t     small = 16384;
    fo__arena_chunk *chunk = arena->chunks;
    void            *at;
    if (size < SIZE_MAX / 4)
        size = (size + FO__ALIGN - 1) / FO__ALIGN * FO__ALIGN;
    if (chunk == NULL || chunk->size - chunk->used < size) {
        size_t room = size < small / 2 ? small : size;
        chunk = (fo__arena_chunk *)fo__alloc(arena->fo, room < SIZE_MAX / 4 ? head + room : room);
        if (chunk == NULL)
            return NULL;
        chunk->size   = room;
        chunk->next   = arena->chunks;
        arena->chunks = chunk;
    }
    at = (char *)chunk + head + chunk->used;
    chunk->used += size;
    return at;
}

static void fo__arena_free(fo__arena *arena) {
    fo__arena_chunk *chunk = arena->chunks, *next;
    fo_context      *fo    = arena->fo; /* the arena itself may live in its own first chunk */
    for (; chunk; chunk = next) {
        next = chunk->next;
        fo__free(fo, chunk);
    }
}

/* An object of `size` bytes that lives in its own arena, which it holds as its first member. */
static void *fo__object(fo_context *fo, size_t size) {
    fo__arena arena;
    void     *object;
    arena.fo     = fo;
    arena.chunks = NULL;
    object       = fo ? fo__arena_alloc(&arena, size) : NULL;
    if (object)
        memcpy(object, &arena, sizeof arena);
    return object;
}

static void fo__object_free(void *object) {
    if (object) {
        fo__arena arena = *(fo__arena *)object;
        fo__arena_free(&arena);
    }
}

static char *fo__strdup(fo__arena *arena, const char *text) {
    char *copy = (char *)fo__arena_alloc(arena, strlen(text) + 1);
    return copy ? strcpy(copy, text) : NULL;
}

fo_result fo_failed(const fo_context *fo) { return fo ? fo->failed : FO_ERR_MEMORY; }

const char *fo_error(const fo_context *fo) {
    return fo ? fo->message : "out of memory: no context could be opened";
}

void fo_clear_error(fo_context *fo) {
    if (fo) {
        fo->failed     = FO_OK;
        fo->message[0] = 0;
    }
}

const char *fo_result_name(fo_result code) {
    static const char *const text[] = {
#define FO__TEXT(name, text) text,
        FO_RESULTS(FO__TEXT)
#undef FO__TEXT
    };
    return (unsigned)code < (unsigned)FO_RESULT_COUNT ? text[code] : "unknown result";
}

fo_desc fo_get_desc(const fo_context *fo) {
    fo_desc none;
    memset(&none, 0, sizeof none);
    return fo ? fo->desc : none;
}

fo_memory_stats fo_memory(const fo_context *fo) {
    fo_memory_stats none = {0, 0, 0};
    return fo ? fo->memory : none;
}

/* ================================================================================================
   >>random        Philox 4x32-10: a number is a function of (seed, stream, index)

   Why        a counter instead of a state: any thread can make any number, resuming needs no
              saved state, and a sample's noise does not depend on the batch it sits in
   Paper      Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011
   ============================================================================================= */
/* Streams: one number line for each use of randomness; the low bits name the one who draws. */
#define FO__STREAM_NOISE ((uint64_t)1 << 60)   /* + draw * 2^40 + sample */
#define FO__STREAM_INIT ((uint64_t)2 << 60)    /* + parameter            */
#define FO__STREAM_SHUFFLE ((uint64_t)3 << 60) /* + epoch                */
#define FO__STREAM_BASE ((uint64_t)4 << 60)    /* + sample: z            */
#define FO__STREAM_MASK ((uint64_t)5 << 60)    /* + partition            */
#define FO__STREAM_CHECK ((uint64_t)6 << 60)

void fo_random_bits(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    int      round;
    for (round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* The middle of one of 2^23 equal cells: exact in float, never 0, never 1. */
static double fo__unit(uint32_t bits) { return ((double)(bits >> 9) + 0.5) / 8388608.0; }

void fo_random_uniform(uint64_t seed, uint64_t stream, uint64_t first, int64_t n, fo_real *out) {
    uint32_t four[4];
    int64_t  i;
    for (i = 0; i < n; i++) {
        uint64_t at = first + (uint64_t)i;
        if (i == 0 || at % 4 == 0)
            fo_random_bits(seed, stream, at / 4, four);
        out[i] = (fo_real)fo__unit(four[at % 4]);
    }
}

/* Box and Muller 1958: two uniform numbers make two normal ones. */
void fo_random_normal(uint64_t seed, uint64_t stream, uint64_t first, int64_t n, fo_real *out) {
    const double two_pi = 6.283185307179586;
    uint32_t     four[4];
    int64_t      i;
    for (i = 0; i < n; i++) {
        uint64_t at = first + (uint64_t)i;
        double   radius, angle;
        if (i == 0 || at % 4 == 0)
            fo_random_bits(seed, stream, at / 4, four);
        radius = sqrt(-2 * log(fo__unit(four[at % 4 / 2 * 2])));
        angle  = two_pi * fo__unit(four[at % 4 / 2 * 2 + 1]);
        out[i] = (fo_real)(radius * (at % 2 ? sin(angle) : cos(angle)));
    }
}
/* ================================================================================================
   >>parallel      ranges over threads

   Invariants a range is split once, statically; nothing is stolen or queued. Nothing forks for
              one thread, for short ranges, or inside a parallel region
   Callers    the matrix product, and any op that works sample by sample
   Cost       1 to 2 microseconds for a fork and a join
   ============================================================================================= */
void fo_parallel_for(fo_context *fo, int64_t n, int64_t grain,
                     void (*fn)(void *arg, int64_t begin, int64_t end), void *arg) {
#if FO__OPENMP
    int64_t most = n / FO__MAX(grain, 1);
    int     team = (int)FO__MIN(most, (int64_t)fo->desc.threads);
    if (team > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(team)
        {
            int64_t id = omp_get_thread_num(), count = omp_get_num_threads();
            int64_t share = n / count, more = n % count; /* the first `more` take one extra */
            int64_t begin = id * share + FO__MIN(id, more);
            fn(arg, begin, begin + share + (id < more));
        }
        return;
    }
#endif
    (void)fo, (void)grain;
    if (n > 0)
        fn(arg, 0, n);
}

/* ================================================================================================
   >>simd          one kernel source, compiled once per instruction set

   Why        a plain `cc -O2` build must be fast on a CPU that the compiler was not told about
   How        the header includes itself: in a pass, FO__KERNEL_PASS is a number of fo_simd, all
              else is skipped, and the kernels below come out under names like fo__exp_avx2. Each
              pass ends in one constant table; fo__pick_kernels chooses a table at run time
   Words      compilers that know GNU vectors give + - * / < & << to any vector type, so that only
              load, store, fma, pick (select) and sqrt need words of their own
   Fallback   FO_SIMD_REF is the same source with one lane and libm's functions: the twin that the
              others are tested against, and all there is in double precision
   ============================================================================================= */
#ifndef FLOWOOD_SELF
#define FLOWOOD_SELF "flowood.h" /* the name by which this file can include itself */
#endif

#if defined(__GNUC__) && !defined(FLOWOOD_NO_SIMD) && !defined(FLOWOOD_DOUBLE)
#define FO__VECTORS 1
#if FO__X86
#include <immintrin.h>
#elif FO__NEON
#include <arm_neon.h>
#endif

typedef float   fo__four __attribute__((vector_size(16)));
typedef int32_t fo__four_index __attribute__((vector_size(16)));
#if defined(__clang__)
#define FO__LOW(x, y) __builtin_shufflevector(x, y, 0, 4, 1, 5)
#define FO__HIGH(x, y) __builtin_shufflevector(x, y, 2, 6, 3, 7)
#else
#define FO__LOW(x, y) __builtin_shuffle(x, y, low)
#define FO__HIGH(x, y) __builtin_shuffle(x, y, high)
#endif

/* Turns a square of 4 x 4: to[i][j] = from[j][i]. Of its rows `rows` exist, the last repeats. */
static inline void fo__turn4(const float *from, int64_t from_row, int64_t rows, float *to,
                             int64_t to_row) {
    const fo__four_index low = {0, 4, 1, 5}, high = {2, 6, 3, 7};
    fo__four v[4], w[4];
    int      i;
    (void)low, (void)high;
    for (i = 0; i < 4; i++)
        memcpy(&v[i], from + FO__MIN(i, rows - 1) * from_row, sizeof v[i]);
    w[0] = FO__LOW(v[0], v[2]);
    w[1] = FO__HIGH(v[0], v[2]);
    w[2] = FO__LOW(v[1], v[3]);
    w[3] = FO__HIGH(v[1], v[3]);
    v[0] = FO__LOW(w[0], w[2]);
    v[1] = FO__HIGH(w[0], w[2]);
    v[2] = FO__LOW(w[1], w[3]);
    v[3] = FO__HIGH(w[1], w[3]);
    for (i = 0; i < 4; i++)
        memcpy(to + i * to_row, &v[i], sizeof v[i]);
}
#else
#define FO__VECTORS 0
#endif

typedef struct fo__adam {
    double grad_scale, beta1, beta2;
    double step;  /* lr / (1 - beta1^t)     */
    double root;  /* 1 / sqrt(1 - beta2^t)  */
    double eps;
    double decay; /* 1 - lr * weight_decay  */
    double ema;   /* of the moving average  */
} fo__adam;

/* C[i,j] = (add ? C[i,j] : 0) + bias[j] + sum over p of A[i,p] * B[p,j], strides in numbers. */
typedef struct fo__product {
    int64_t            m, n, k;
    const fo_real     *a;
    int64_t            a_row, a_col;
    const fo_real     *b;
    int64_t            b_row, b_col;
    fo_real           *c;
    int64_t            c_row;
    const fo_real     *bias; /* or NULL */
    int                add, by_rows;
    const fo__kernels *kernels;
} fo__product;

typedef void fo__map(int64_t n, const fo_real *x, fo_real *y);
typedef void fo__map_scalar(int64_t n, fo_real a, const fo_real *x, fo_real *y);
typedef void fo__zip(int64_t n, const fo_real *x, const fo_real *y, fo_real *z);

/* Outputs may be inputs. NaN goes in, NaN comes out; infinities give the limits. */
struct fo__kernels {
    const char *name;
    fo_simd     simd;
    int         mr, nr, lanes; /* a tile of C is mr x nr, nr a multiple of the vector's lanes */
    /* Rows [i0,i1) and columns [j0,j1) of a product. */
    void (*product)(const fo__product *g, int64_t i0, int64_t i1, int64_t j0, int64_t j1);
    /* One tile of m <= mr rows and n <= nr columns: see the kernels. NULL in the plain table. */
    void (*tile)(int64_t k, const fo_real *a, int64_t a_row, int64_t a_col, const fo_real *panel,
                 fo_real *c, int64_t c_row, int64_t m, int64_t n, int add);
    fo__map        *exp, *log, *tanh, *sigmoid, *softplus;
    fo__map_scalar *leaky; /* y  = x > 0 ? x : a * x */
    fo__map_scalar *scale; /* y  = a * x             */
    fo__map_scalar *axpy;  /* y += a * x             */
    fo__zip        *add, *sub, *mul;
    fo__zip        *muladd;       /* z += x * y            */
    fo__zip        *tanh_grad;    /* z += y * (1 - x * x)  */
    fo__zip        *sigmoid_grad; /* z += y * x * (1 - x)  */
    /* dx += dy * (y > 0 ? 1 : slope) */
    void (*leaky_grad)(int64_t n, fo_real slope, const fo_real *y, const fo_real *dy, fo_real *dx);
    double (*sum)(int64_t n, const fo_real *x);
    double (*sumsq)(int64_t n, const fo_real *x);
    double (*dot)(int64_t n, const fo_real *x, const fo_real *y);
    /* One step of Adam; decay < 1 makes it AdamW; ema, if any, is a moving average of p. */
    void (*adam)(int64_t n, const fo__adam *o, fo_real *p, const fo_real *g, fo_real *m,
                 fo_real *v, fo_real *ema);
};

#elif defined(FO__KERNEL_PASS)
/* ------------------------------------------------------------------------------------------------
   The vocabulary. FO__V is a vector of FO__W numbers, FO__I of as many int32_t. `left` counts the
   numbers from here to the end of the array: fewer than FO__W are loaded with zeros behind them,
   so that the last piece of an array goes through the same instructions as the others.
   ---------------------------------------------------------------------------------------------- */
#define FO__PASTE2(name, isa) fo__##name##_##isa
#define FO__PASTE(name, isa) FO__PASTE2(name, isa)
#define FO__(name) FO__PASTE(name, FO__ISA)
#define FO__V FO__(v)
#define FO__I FO__(i)

#if FO__KERNEL_PASS == 1
#define FO__ISA ref
#define FO__W 1
#define FO__TARGET
#define FO__INLINE static inline
typedef fo_real FO__V;
#define FO__LOAD(p, left) (*(p))
#define FO__STORE(p, value, left) (*(p) = (value))
#define FO__FMA(a, b, c) ((a) * (b) + (c))
#define FO__PICK(mask, a, b) ((mask) ? (a) : (b))
#define FO__SQRT(a) ((fo_real)sqrt((double)(a)))
#define FO__WIDEN(v, part) ((part) ? 0 : (double)(v))
typedef double FO__(wide);
static double FO__(total)(double v) { return v; }
#else
#if FO__KERNEL_PASS == 5
#define FO__ISA avx512
#define FO__W 16
#define FO__MR 8
#define FO__TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#define FO__FMA(a, b, c) ((FO__V)_mm512_fmadd_ps(a, b, c))
#define FO__SQRT(a) ((FO__V)_mm512_maskz_sqrt_ps(0xFFFF, a))
#elif FO__KERNEL_PASS == 4
#define FO__ISA avx2
#define FO__W 8
#define FO__MR 4
#define FO__TARGET __attribute__((target("avx2,fma")))
#define FO__FMA(a, b, c) ((FO__V)_mm256_fmadd_ps(a, b, c))
#define FO__SQRT(a) ((FO__V)_mm256_sqrt_ps(a))
#elif FO__KERNEL_PASS == 3
#define FO__ISA neon
#define FO__W 4
#define FO__MR 8
#define FO__TARGET
#define FO__FMA(a, b, c) ((FO__V)vfmaq_f32(c, a, b))
#define FO__SQRT(a) ((FO__V)vsqrtq_f32(a))
#else
#define FO__ISA portable
#define FO__W 4
#define FO__MR 4
#define FO__TARGET
#define FO__FMA(a, b, c) ((a) * (b) + (c))
#define FO__SQRT(a) FO__(sqrt)(a)
#endif
#define FO__INLINE FO__TARGET __attribute__((always_inline)) static inline

typedef float   FO__V __attribute__((vector_size(4 * FO__W)));
typedef int32_t FO__I __attribute__((vector_size(4 * FO__W)));

FO__INLINE FO__V FO__(load)(const float *p, int64_t left) {
    FO__V v = {0};
    if (left >= FO__W)
        memcpy(&v, p, sizeof v);
    else if (left > 0)
        memcpy(&v, p, (size_t)left * sizeof *p);
    return v;
}

FO__INLINE void FO__(store)(float *p, FO__V v, int64_t left) {
    if (left >= FO__W)
        memcpy(p, &v, sizeof v);
    else if (left > 0)
        memcpy(p, &v, (size_t)left * sizeof *p);
}

FO__INLINE FO__V FO__(pick)(FO__I mask, FO__V a, FO__V b) {
    return (FO__V)((mask & (FO__I)a) | (~mask & (FO__I)b));
}
#if FO__KERNEL_PASS == 2
FO__INLINE FO__V FO__(sqrt)(FO__V a) {
    int i;
    for (i = 0; i < FO__W; i++)
        a[i] = sqrtf(a[i]);
    return a;
}
#endif

/* Half of a vector as doubles, and the sum of such a half. */
typedef float  FO__(half) __attribute__((vector_size(2 * FO__W)));
typedef double FO__(wide) __attribute__((vector_size(4 * FO__W)));
FO__INLINE FO__(wide) FO__(widen)(FO__V v, int part) {
    FO__(half) half;
    memcpy(&half, (const char *)&v + part * (int)sizeof half, sizeof half);
    return __builtin_convertvector(half, FO__(wide));
}

FO__INLINE double FO__(total)(FO__(wide) v) {
    double total = 0;
    int    i;
    for (i = 0; i < FO__W / 2; i++)
        total += v[i];
    return total;
}
#define FO__WIDEN(v, part) FO__(widen)(v, part)
#define FO__LOAD(p, left) FO__(load)(p, left)
#define FO__STORE(p, value, left) FO__(store)(p, value, left)
#define FO__PICK(mask, a, b) FO__(pick)((FO__I)(mask), a, b)
#endif

/* ================================================================================================
   >>kernels       what the time goes into: functions of arrays, Adam, the matrix product

   Invariants a number's result depends on its inputs only, not on its place in the array; sums run
              in double lanes, in an order that depends on the length only
   ============================================================================================= */

/* Functions of one vector. The polynomials were fitted by minimax over the reduced range. */
#if FO__KERNEL_PASS == 1
FO__INLINE FO__V FO__(exp1)(FO__V x) { return (FO__V)exp((double)x); }
FO__INLINE FO__V FO__(log1)(FO__V x) { return (FO__V)log((double)x); }
FO__INLINE FO__V FO__(tanh1)(FO__V x) { return (FO__V)tanh((double)x); }
FO__INLINE FO__V FO__(sigmoid1)(FO__V x) {
    double u = exp(-fabs((double)x));
    return (FO__V)((x < 0 ? u : 1) / (1 + u));
}
FO__INLINE FO__V FO__(softplus1)(FO__V x) {
    return (FO__V)((x > 0 ? (double)x : 0) + log1p(exp(-fabs((double)x))));
}
#else
/* x = n ln 2 + r with |r| <= ln 2 / 2; returns exp(r) - 1, exact where r is tiny. Adding 1.5 * 2^23
   rounds to an integer and leaves it in the low bits; ln 2 comes in two parts, n times the first
   of which is exact. */
FO__INLINE FO__V FO__(expm1_part)(FO__V x, FO__I *n) {
    const float magic   = 12582912.0f;
    FO__V       shifted = x * 1.44269504f + magic;
    FO__V       whole   = shifted - magic;
    FO__V       r       = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    FO__V       q       = r * 0.00138824945f + 0.00836664718f;
    *n = (FO__I)shifted - 0x4B400000;
    q  = q * r + 0.0416672044f;
    q  = q * r + 0.16666542f;
    q  = q * r + 0.49999997f;
    return (q * r) * r + r;
}

FO__INLINE FO__V FO__(power2)(FO__I n) { return (FO__V)((n + 127) << 23); }

/* The scale goes on in two halves: neither overflows where the result does not, and results below
   FLT_MIN are rounded once. Comparisons with NaN are false: it passes the clamps. */
FO__INLINE FO__V FO__(exp1)(FO__V x) {
    FO__V zero = {0}, q;
    FO__I n;
    x = FO__PICK(x < -105.0f, zero - 105.0f, x);
    x = FO__PICK(x > 90.0f, zero + 90.0f, x);
    q = FO__(expm1_part)(x, &n) + 1.0f;
    return q * FO__(power2)(n >> 1) * FO__(power2)(n - (n >> 1));
}

/* log(1 + f) + e ln 2 for 1 + f in [sqrt(1/2), sqrt(2)]. */
FO__INLINE FO__V FO__(log1p_part)(FO__V f, FO__V e) {
    FO__V q = f * -0.0763432086f + 0.127654016f;
    q = q * f - 0.131620169f;
    q = q * f + 0.142013729f;
    q = q * f - 0.166231439f;
    q = q * f + 0.200012356f;
    q = q * f - 0.250008255f;
    q = q * f + 0.333333313f;
    q = (q * f - 0.5f) * (f * f) - e * 2.12194440e-4f;
    return (q + f) + e * 0.693359375f;
}

FO__INLINE FO__V FO__(log1)(FO__V x) {
    FO__V zero = {0}, tiny = (FO__V)(x < 1.17549435e-38f), scaled, e, y;
    FO__I bits;
    scaled = FO__PICK(tiny, x * 8388608.0f, x); /* subnormal numbers become normal */
    bits   = ((FO__I)scaled & 0x7FFFFFFF) - 0x3F3504F3; /* the exponent counts from sqrt(1/2) */
    e      = __builtin_convertvector(bits >> 23, FO__V) + FO__PICK(tiny, zero - 23.0f, zero);
    y      = FO__(log1p_part)((FO__V)((bits & 0x7FFFFF) + 0x3F3504F3) - 1.0f, e);
    y      = FO__PICK(x < HUGE_VALF, y, x);            /* infinity, and NaN */
    y      = FO__PICK(x == 0.0f, zero - HUGE_VALF, y);
    return FO__PICK(x < 0.0f, zero + (HUGE_VALF - HUGE_VALF), y);
}

FO__INLINE FO__V FO__(abs1)(FO__V x) { return (FO__V)((FO__I)x & 0x7FFFFFFF); }

/* With t = exp(2|x|) - 1, tanh |x| = t / (t + 2), good to the last bits near 0 too. */
FO__INLINE FO__V FO__(tanh1)(FO__V x) {
    FO__V zero = {0}, a = FO__(abs1)(x), scale, t;
    FO__I n;
    a     = FO__PICK(a > 10.0f, zero + 10.0f, a);
    t     = FO__(expm1_part)(a + a, &n);
    scale = FO__(power2)(n);
    t     = t * scale + (scale - 1.0f);
    t     = t / (t + 2.0f);
    return (FO__V)((FO__I)t | ((FO__I)x & INT32_MIN));
}

/* exp(-|x|) never overflows, and the small side keeps its relative precision. */
FO__INLINE FO__V FO__(sigmoid1)(FO__V x) {
    FO__V zero = {0}, u = FO__(exp1)(-FO__(abs1)(x));
    return FO__PICK(x < 0.0f, u, zero + 1.0f) / (u + 1.0f);
}

/* max(x,0) + log(1 + u) with u = exp(-|x|); above sqrt(2), 1 + u = 2 (1 + (u - 1) / 2). */
FO__INLINE FO__V FO__(softplus1)(FO__V x) {
    FO__V zero = {0}, u = FO__(exp1)(-FO__(abs1)(x)), big = (FO__V)(u > 0.41421356f);
    FO__V y = FO__(log1p_part)(FO__PICK(big, u * 0.5f - 0.5f, u), FO__PICK(big, zero + 1.0f, zero));
    return FO__PICK(x > 0.0f, x, zero) + y;
}
#endif

/* Array functions: one line of arithmetic in one loop. */
#define FO__IN(p) FO__LOAD((p) + i, n - i)
#define FO__LOOP(out, value)                                                                       \
    {                                                                                              \
        int64_t i;                                                                                 \
        for (i = 0; i < n; i += FO__W)                                                             \
            FO__STORE((out) + i, value, n - i);                                                    \
    }
#define FO__MAP(name, value)                                                                       \
    FO__TARGET static void FO__(name)(int64_t n, const fo_real *x, fo_real *y) FO__LOOP(y, value)
#define FO__MAP_SCALAR(name, value)                                                                \
    FO__TARGET static void FO__(name)(int64_t n, fo_real a, const fo_real *x, fo_real *y)          \
        FO__LOOP(y, value)
#define FO__ZIP(name, value)                                                                       \
    FO__TARGET static void FO__(name)(int64_t n, const fo_real *x, const fo_real *y, fo_real *z)   \
        FO__LOOP(z, value)

FO__MAP(exp, FO__(exp1)(FO__IN(x)))
FO__MAP(log, FO__(log1)(FO__IN(x)))
FO__MAP(tanh, FO__(tanh1)(FO__IN(x)))
FO__MAP(sigmoid, FO__(sigmoid1)(FO__IN(x)))
FO__MAP(softplus, FO__(softplus1)(FO__IN(x)))
FO__MAP_SCALAR(leaky, FO__PICK(FO__IN(x) > 0, FO__IN(x), FO__IN(x) * a))
FO__MAP_SCALAR(scale, FO__IN(x) * a)
FO__MAP_SCALAR(axpy, FO__IN(x) * a + FO__IN(y))
FO__ZIP(add, FO__IN(x) + FO__IN(y))
FO__ZIP(sub, FO__IN(x) - FO__IN(y))
FO__ZIP(mul, FO__IN(x) * FO__IN(y))
FO__ZIP(muladd, FO__IN(x) * FO__IN(y) + FO__IN(z))
FO__ZIP(tanh_grad, FO__IN(y) * (1 - FO__IN(x) * FO__IN(x)) + FO__IN(z))
FO__ZIP(sigmoid_grad, FO__IN(y) * (FO__IN(x) * (1 - FO__IN(x))) + FO__IN(z))

FO__TARGET static void FO__(leaky_grad)(int64_t n, fo_real slope, const fo_real *y,
                                        const fo_real *dy, fo_real *dx) {
    FO__LOOP(dx, FO__IN(dx) + FO__PICK(FO__IN(y) > 0, FO__IN(dy), FO__IN(dy) * slope))
}

/* Sums: the two halves of a vector go to two accumulators. */
FO__TARGET static double FO__(sum)(int64_t n, const fo_real *x) {
    FO__(wide) first = {0}, second = {0};
    int64_t i;
    for (i = 0; i < n; i += FO__W) {
        FO__V v = FO__IN(x);
        first += FO__WIDEN(v, 0);
        second += FO__WIDEN(v, 1);
    }
    return FO__(total)(first + second);
}

FO__TARGET static double FO__(dot)(int64_t n, const fo_real *x, const fo_real *y) {
    FO__(wide) first = {0}, second = {0};
    int64_t i;
    for (i = 0; i < n; i += FO__W) {
        FO__V v = FO__IN(x), w = FO__IN(y);
        first += FO__WIDEN(v, 0) * FO__WIDEN(w, 0);
        second += FO__WIDEN(v, 1) * FO__WIDEN(w, 1);
    }
    return FO__(total)(first + second);
}

FO__TARGET static double FO__(sumsq)(int64_t n, const fo_real *x) { return FO__(dot)(n, x, x); }

/* Kingma and Ba 2015; Loshchilov and Hutter 2019 for the decay that is not part of the gradient. */
FO__TARGET static void FO__(adam)(int64_t n, const fo__adam *o, fo_real *p, const fo_real *g,
                                  fo_real *m, fo_real *v, fo_real *ema) {
    const fo_real b1 = (fo_real)o->beta1, c1 = (fo_real)(1 - o->beta1);
    const fo_real b2 = (fo_real)o->beta2, c2 = (fo_real)(1 - o->beta2);
    const fo_real b3 = (fo_real)o->ema, c3 = (fo_real)(1 - o->ema);
    const fo_real gain = (fo_real)o->grad_scale, decay = (fo_real)o->decay;
    const fo_real step = (fo_real)o->step, root = (fo_real)o->root, eps = (fo_real)o->eps;
    int64_t i;
    for (i = 0; i < n; i += FO__W) {
        FO__V gi = FO__IN(g) * gain;
        FO__V mi = FO__IN(m) * b1 + gi * c1;
        FO__V vi = FO__IN(v) * b2 + gi * gi * c2;
        FO__V pi = FO__IN(p) * decay - mi * step / (FO__SQRT(vi) * root + eps);
        FO__STORE(m + i, mi, n - i);
        FO__STORE(v + i, vi, n - i);
        FO__STORE(p + i, pi, n - i);
        if (ema)
            FO__STORE(ema + i, FO__IN(ema) * b3 + pi * c3, n - i);
    }
}

/* The matrix product. Every element of C is one chain of multiply-adds in the order of k, begun
   from its start value: how tiles, blocks and threads cut the work cannot change a bit of it, so
   a sample's numbers do not depend on its batch, and all instruction sets with fma agree. */
#if FO__KERNEL_PASS == 1
FO__TARGET static void FO__(product)(const fo__product *g, int64_t i0, int64_t i1, int64_t j0,
                                     int64_t j1) {
    int64_t i, j, p;
    for (i = i0; i < i1; i++) {
        for (j = j0; j < j1; j++) {
            fo_real *c     = g->c + i * g->c_row + j;
            fo_real  total = (g->add ? *c : 0) + (g->bias ? g->bias[j] : 0);
            for (p = 0; p < g->k; p++)
                total += g->a[i * g->a_row + p * g->a_col] * g->b[p * g->b_row + j * g->b_col];
            *c = total;
        }
    }
}
#else
#define FO__NV 3 /* vectors in a row of a tile */
#define FO__NR (FO__NV * FO__W)
#define FO__KC 256 /* rows of a panel: as much as caches hold */

/* An unrolled loop, so that arrays of vectors become registers. */
#if defined(__clang__)
#define FO__EACH(i, count) _Pragma("clang loop unroll(full)") for (i = 0; i < (count); i++)
#else
#define FO__EACH(i, count) _Pragma("GCC unroll 8") for (i = 0; i < (count); i++)
#endif

/* `rows` rows by `vectors` vectors of C stay in registers while k runs. */
FO__INLINE void FO__(tile_body)(int64_t k, const float *a, int64_t a_row, int64_t a_col,
                                const float *panel, float *c, int64_t c_row, int64_t m, int add,
                                int rows, int vectors) {
    FO__V        sum[FO__MR][FO__NV], b[FO__NV], zero = {0};
    const float *row[FO__MR];
    int64_t      p;
    int          i, j;
    FO__EACH(i, rows) {
        row[i] = a + FO__MIN(i, m - 1) * a_row;
        FO__EACH(j, vectors) {
            sum[i][j] = FO__LOAD(panel + j * FO__W, FO__W);
            if (add)
                sum[i][j] += FO__LOAD(c + i * c_row + j * FO__W, FO__W);
        }
    }
    for (p = 0; p < k; p++) {
        panel += FO__NR;
        FO__EACH(j, vectors)
            b[j] = FO__LOAD(panel + j * FO__W, FO__W);
        FO__EACH(i, rows) {
            FO__V ai = row[i][p * a_col] - zero; /* the same number in every lane */
            FO__EACH(j, vectors)
                sum[i][j] = FO__FMA(ai, b[j], sum[i][j]);
        }
    }
    FO__EACH(i, rows)
        FO__EACH(j, vectors)
            FO__STORE(c + i * c_row + j * FO__W, sum[i][j], FO__W);
}

/* A tile of m x n of C. The panel holds the start values in its first row and k rows of B after
   it, each FO__NR numbers long; A is read where it lies, number by number. A tile that is not
   whole vectors and rows is made in `edge`: rows of A past the m-th repeat the last one. */
FO__TARGET static void FO__(tile)(int64_t k, const float *a, int64_t a_row, int64_t a_col,
                                  const float *panel, float *c, int64_t c_row, int64_t m, int64_t n,
                                  int add) {
    float     edge[FO__MR * FO__NR];
    const int rows = m > FO__MR / 2 ? FO__MR : FO__MR / 2, whole = m == rows && n % FO__W == 0;
    float    *to = whole ? c : edge;
    int64_t   to_row = whole ? c_row : FO__NR, i, j;
    if (!whole && add) {
        memset(edge, 0, sizeof edge);
        for (i = 0; i < m; i++)
            for (j = 0; j < n; j++)
                edge[i * FO__NR + j] = c[i * c_row + j];
    }
#define FO__CASE(rows, vectors)                                                                    \
    FO__(tile_body)(k, a, a_row, a_col, panel, to, to_row, m, add, rows, vectors)
    if (n > 2 * FO__W)
        rows == FO__MR ? FO__CASE(FO__MR, 3) : FO__CASE(FO__MR / 2, 3);
    else if (n > FO__W)
        rows == FO__MR ? FO__CASE(FO__MR, 2) : FO__CASE(FO__MR / 2, 2);
    else
        rows == FO__MR ? FO__CASE(FO__MR, 1) : FO__CASE(FO__MR / 2, 1);
    for (i = 0; i < m && !whole; i++)
        for (j = 0; j < n; j++)
            c[i * c_row + j] = edge[i * FO__NR + j];
}

/* k rows of n numbers of B into a panel, made up to whole vectors with numbers nobody stores.
   Where B lies the other way (the weights of y = x W^T), squares of 4 x 4 are turned. */
FO__TARGET static void FO__(pack)(int64_t k, int64_t n, const float *b, int64_t b_row,
                                  int64_t b_col, float *panel) {
    int64_t p, j, columns = (n + FO__W - 1) / FO__W * FO__W, turned = b_row == 1 ? k / 4 * 4 : 0;
    if (b_col == 1) {
        for (p = 0; p < k; p++)
            for (j = 0; j < n; j += FO__W)
                FO__STORE(panel + p * FO__NR + j, FO__LOAD(b + p * b_row + j, n - j), FO__W);
        return;
    }
    for (j = 0; j < columns; j += 4)
        for (p = 0; p < turned; p += 4)
            fo__turn4(b + p + FO__MIN(j, n - 1) * b_col, b_col, FO__MAX(n - j, 1),
                      panel + p * FO__NR + j, FO__NR);
    for (p = turned; p < k; p++)
        for (j = 0; j < columns; j++)
            panel[p * FO__NR + j] = b[p * b_row + FO__MIN(j, n - 1) * b_col];
}

FO__TARGET static void FO__(product)(const fo__product *g, int64_t i0, int64_t i1, int64_t j0,
                                     int64_t j1) {
    float   panel[(1 + FO__KC) * FO__NR] __attribute__((aligned(64)));
    int64_t i, j, p;
    for (j = j0; j < j1; j += FO__NR) {
        int64_t n = FO__MIN(FO__NR, j1 - j);
        p = 0;
        do {
            int64_t k = FO__MIN(FO__KC, g->k - p);
            memset(panel, 0, FO__NR * sizeof *panel);
            if (g->bias && p == 0)
                memcpy(panel, g->bias + j, (size_t)n * sizeof *panel);
            FO__(pack)(k, n, g->b + p * g->b_row + j * g->b_col, g->b_row, g->b_col,
                       panel + FO__NR);
            for (i = i0; i < i1; i += FO__MR)
                FO__(tile)(k, g->a + i * g->a_row + p * g->a_col, g->a_row, g->a_col, panel,
                           g->c + i * g->c_row + j, g->c_row, FO__MIN(FO__MR, i1 - i), n,
                           g->add || p > 0);
            p += FO__KC;
        } while (p < g->k);
    }
}
#endif

#define FO__QUOTE2(isa) #isa
#define FO__QUOTE(isa) FO__QUOTE2(isa)
static const fo__kernels FO__(kernels) = {
    FO__QUOTE(FO__ISA), (fo_simd)FO__KERNEL_PASS,
#if FO__KERNEL_PASS == 1
    1, 1, 1, FO__(product), NULL,
#else
    FO__MR, FO__NR, FO__W, FO__(product), FO__(tile),
#endif
    FO__(exp), FO__(log), FO__(tanh), FO__(sigmoid), FO__(softplus), FO__(leaky), FO__(scale),
    FO__(axpy), FO__(add), FO__(sub), FO__(mul), FO__(muladd), FO__(tanh_grad), FO__(sigmoid_grad),
    FO__(leaky_grad), FO__(sum), FO__(sumsq), FO__(dot), FO__(adam)
};

/* Only what differs between passes; the rest is redefined to the same text. */
#undef FO__ISA
#undef FO__W
#undef FO__MR
#undef FO__TARGET
#undef FO__INLINE
#undef FO__LOAD
#undef FO__STORE
#undef FO__FMA
#undef FO__PICK
#undef FO__SQRT
#undef FO__WIDEN
#endif

#if defined(FLOWOOD_IMPLEMENTATION) && !defined(FO__KERNEL_PASS)
#define FO__KERNEL_PASS 1
#include FLOWOOD_SELF
#undef FO__KERNEL_PASS
#if FO__VECTORS
#define FO__KERNEL_PASS 2
#include FLOWOOD_SELF
#undef FO__KERNEL_PASS
#endif
#if FO__VECTORS && FO__NEON
#define FO__KERNEL_PASS 3
#include FLOWOOD_SELF
#undef FO__KERNEL_PASS
#endif
#if FO__VECTORS && FO__X86
#define FO__KERNEL_PASS 4
#include FLOWOOD_SELF
#undef FO__KERNEL_PASS
#define FO__KERNEL_PASS 5
#include FLOWOOD_SELF
#undef FO__KERNEL_PASS
#endif

/* The table asked for if this machine has it, else the best it has. */
static const fo__kernels *fo__pick_kernels(fo_simd simd) {
    const fo__kernels *has[8];
    int                n = 0, i;
    has[n++] = &fo__kernels_ref;
#if FO__VECTORS
    has[n++] = &fo__kernels_portable;
#endif
#if FO__VECTORS && FO__NEON
    has[n++] = &fo__kernels_neon;
#endif
#if FO__VECTORS && FO__X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        has[n++] = &fo__kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        has[n++] = &fo__kernels_avx512;
#endif
    for (i = 0; i < n; i++)
        if (has[i]->simd == simd)
            return has[i];
    return has[n - 1];
}

static void fo__product_part(void *arg, int64_t begin, int64_t end) {
    const fo__product *g     = (const fo__product *)arg;
    const int64_t      mr    = g->kernels->mr, lanes = g->kernels->lanes;
    if (g->by_rows)
        g->kernels->product(g, begin * mr, FO__MIN(end * mr, g->m), 0, g->n);
    else
        g->kernels->product(g, 0, g->m, begin * lanes, FO__MIN(end * lanes, g->n));
}

/* C = A B, all kinds of transposes by strides: see fo__product. Threads share out the rows or the
   columns of C, whichever keeps the busiest thread less busy; to share rows, every thread must
   pack all of B, which costs about as much as half a row of tiles. The panels are on the stack,
   so that many threads may multiply in one context, and nothing can fail. */
static void fo__gemm(fo_context *fo, int64_t m, int64_t n, int64_t k, const fo_real *a,
                     int64_t a_row, int64_t a_col, const fo_real *b, int64_t b_row, int64_t b_col,
                     fo_real *c, int64_t c_row, const fo_real *bias, int add) {
    const int64_t mr = fo->kernels->mr, lanes = fo->kernels->lanes;
    const int64_t rows = (m + mr - 1) / mr, columns = (n + lanes - 1) / lanes;
    const int64_t threads = FO__MAX(fo->desc.threads, 1);
    const int64_t by_rows = (2 * ((rows + threads - 1) / threads) + 1) * columns;
    const int64_t by_columns = (2 * rows + 1) * ((columns + threads - 1) / threads);
    const int64_t worth_a_fork = 200000; /* multiply-adds */
    fo__product g;
    int64_t     unit;
    g.m = m, g.n = n, g.k = k;
    g.a = a, g.a_row = a_row, g.a_col = a_col;
    g.b = b, g.b_row = b_row, g.b_col = b_col;
    g.c = c, g.c_row = c_row;
    g.bias = bias, g.add = add;
    g.kernels = fo->kernels;
    g.by_rows = by_rows < by_columns;
    unit      = k * (g.by_rows ? mr * n : lanes * m);
    fo_parallel_for(fo, g.by_rows ? rows : columns, worth_a_fork / FO__MAX(unit, 1) + 1,
                    fo__product_part, &g);
}
/* ---- begin: platform part of >>data ---------------------------------------------------------- */
#include <float.h>
#include <sys/types.h>
#include <sys/stat.h>
#if defined(_WIN32)
#define fo__stat _stat64
#define fo__replace(from, to) (remove(to), rename(from, to)) /* rename does not replace there */
#else
#define fo__stat stat
#define fo__replace(from, to) rename(from, to)
#endif
#if defined(__ORDER_BIG_ENDIAN__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "flowood.h reads and writes arrays as they lie in memory: it needs a little-endian host"
#endif

#define FO__MISSING ((int64_t)-1)
#define FO__NO_FILE ((int64_t)-2)

/* The size of a regular file, or one of the above. A pipe is not opened: it would wait for its
   other end. The two numbers are the same on all systems. */
static int64_t fo__file_size(const char *path) {
    struct fo__stat info;
    if (fo__stat(path, &info) != 0)
        return FO__MISSING;
    return (info.st_mode & 0170000) == 0100000 ? (int64_t)info.st_size : FO__NO_FILE;
}
/* ---- end: platform part of >>data ------------------------------------------------------------ */

/* ================================================================================================
   >>data          array files in and out, gzip, PNG, safetensors archives

   Purpose    IDX, .npy and safetensors files become rows and named arrays, and back
   Invariants a file is hostile: every length is compared with what is really there before memory
              is asked for or bytes are touched; only regular files are opened, so reading ends;
              a writer leaves the old file or the whole new one, never half of either
   Callers    everything above: training and scoring through fo__data_rows, checkpoints through
              the archive, pictures through fo_save_png
   Cost       loading peaks at the file plus its content; unpacking runs at about 200 MB/s
   ============================================================================================= */
static const struct fo__dtype_row { const char *name, *npy; size_t size; } fo__dtypes[] = {
    {"U8", "|u1", 1},  {"F16", "<f2", 2}, {"F32", "<f4", 4},
    {"F64", "<f8", 8}, {"I32", "<i4", 4}, {"I64", "<i8", 8}};
enum { FO__DTYPES = sizeof fo__dtypes / sizeof fo__dtypes[0] };

size_t fo_dtype_size(fo_dtype type) {
    return (unsigned)type < FO__DTYPES ? fo__dtypes[type].size : 0;
}

const char *fo_dtype_name(fo_dtype type) {
    return (unsigned)type < FO__DTYPES ? fo__dtypes[type].name : "unknown type";
}

/* 0 for a shape with no samples in it; a product beyond int64_t stays at its end. */
int64_t fo_shape_count(fo_shape shape) {
    int64_t plane = (int64_t)shape.h * shape.w;
    if (shape.c < 1 || shape.h < 1 || shape.w < 1)
        return 0;
    return plane > INT64_MAX / shape.c ? INT64_MAX : plane * shape.c;
}

/* Bytes of an array; SIZE_MAX for an unknown type or impossible dimensions. */
static size_t fo__array_bytes(fo_dtype type, int rank, const int64_t *dim) {
    size_t bytes = fo_dtype_size(type);
    int    k;
    for (k = 0; k < rank; k++)
        bytes = fo__times(dim[k], bytes);
    return fo_dtype_size(type) ? bytes : SIZE_MAX;
}

static void fo__set_be32(unsigned char *at, uint32_t value) {
    int i;
    for (i = 0; i < 4; i++)
        at[i] = (unsigned char)(value >> (24 - 8 * i));
}

/* ---- gzip: DEFLATE (RFC 1951) in a gzip wrapper (RFC 1952) ----------------------------------- */

/* Continues `value` (0 at the start) over n bytes. */
static uint32_t fo__crc32(uint32_t value, const void *bytes, size_t n) {
    const unsigned char *at = (const unsigned char *)bytes;
    uint32_t             table[256], i, k;
    for (i = 0; i < 256; i++)
        for (table[i] = i, k = 0; k < 8; k++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320 : 0);
    for (value = ~value; n > 0; n--)
        value = value >> 8 ^ table[(value ^ *at++) & 255];
    return ~value;
}

enum { FO__FAST_BITS = 10, FO__CODE_BITS = 15 };

/* A canonical Huffman code is known by its lengths alone. Codes of up to FO__FAST_BITS bits are
   one look-up (symbol << 4 | length); the few longer ones are found length by length: those of
   length n are consecutive numbers, and the first of them follows from the shorter ones. */
typedef struct fo__huffman {
    uint16_t fast[1 << FO__FAST_BITS];
    uint16_t count[FO__CODE_BITS + 1];
    uint16_t symbol[288]; /* in the order of their codes */
} fo__huffman;

/* `bad` is sticky: it ends every loop, so functions need not report it. */
typedef struct fo__inflate {
    const unsigned char *in, *in_end;
    uint64_t             bits;
    int                  n_bits, bad, full; /* full: there is more than fits in room */
    unsigned char       *out;
    size_t               n_out, start, room; /* start: where this member begins */
    fo__huffman          literal, distance;
} fo__inflate;

static void fo__refill(fo__inflate *z) {
    for (; z->n_bits <= 56 && z->in < z->in_end; z->n_bits += 8)
        z->bits |= (uint64_t)*z->in++ << z->n_bits;
}

/* The next n <= 32 bits, the first one lowest. */
static uint32_t fo__bits(fo__inflate *z, int n) {
    uint32_t value;
    if (z->n_bits < n)
        fo__refill(z);
    z->bad |= z->n_bits < n;
    if (z->bad)
        return 0;
    value = (uint32_t)(z->bits & (((uint64_t)1 << n) - 1));
    z->bits >>= n;
    z->n_bits -= n;
    return value;
}

static void fo__put(fo__inflate *z, unsigned byte) {
    if (z->n_out == z->room)
        z->full = 1;
    else
        z->out[z->n_out++] = (unsigned char)byte;
}

/* Returns 1 if the lengths overfill the tree or leave holes (a tree of one code may). */
static int fo__huffman_init(fo__huffman *h, const unsigned char *length, int n) {
    unsigned code = 0, reversed;
    int      bits, i, k, used = 0;
    memset(h, 0, sizeof *h);
    for (bits = 1; bits <= FO__CODE_BITS; bits++)
        for (code <<= 1, i = 0; i < n; i++) {
            if (length[i] != bits)
                continue;
            if (code >> bits)
                return 1;
            h->count[bits]++;
            h->symbol[used++] = (uint16_t)i;
            for (reversed = 0, k = 0; k < bits; k++) /* codes come highest bit first */
                reversed |= (code >> k & 1) << (bits - 1 - k);
            for (; bits <= FO__FAST_BITS && reversed < 1u << FO__FAST_BITS; reversed += 1u << bits)
                h->fast[reversed] = (uint16_t)(i << 4 | bits);
            code++;
        }
    return used > 1 && code != 1u << FO__CODE_BITS;
}

static unsigned fo__symbol(fo__inflate *z, const fo__huffman *h) {
    unsigned entry, code = 0, first = 0, before = 0;
    int      n;
    if (z->n_bits < FO__CODE_BITS)
        fo__refill(z);
    entry = h->fast[z->bits & ((1u << FO__FAST_BITS) - 1)];
    if (entry) {
        fo__bits(z, (int)(entry & 15));
        return entry >> 4;
    }
    for (n = 1; n <= FO__CODE_BITS; n++) {
        code = code << 1 | (unsigned)(z->bits >> (n - 1) & 1);
        if (code - first < h->count[n]) {
            fo__bits(z, n);
            return h->symbol[before + code - first];
        }
        before += h->count[n];
        first = (first + h->count[n]) << 1;
    }
    z->bad = 1;
    return 0;
}

/* Lengths and distances are coded like tiny floating-point numbers: below 2^(k+1) the symbol is
   the value; above, k bits of the symbol are the fraction and the rest is the exponent, the
   count of lower bits that follow. k is 2 for lengths (from 3) and 1 for distances (from 1). */
static size_t fo__step(fo__inflate *z, unsigned symbol, int k) {
    unsigned one   = 1u << k;
    int      extra = (int)(symbol >> k) - 1;
    return symbol < 2 * one ? symbol : ((one + symbol % one) << extra) + fo__bits(z, extra);
}

static void fo__inflate_codes(fo__inflate *z) {
    while (!z->full) {
        unsigned symbol = fo__symbol(z, &z->literal);
        size_t   length, distance;
        if (z->bad || symbol == 256)
            return;
        if (symbol < 256) {
            fo__put(z, symbol);
            continue;
        }
        z->bad |= symbol > 285;
        length   = symbol == 285 ? 258 : fo__step(z, (symbol - 257) % 32, 2) + 3;
        symbol   = fo__symbol(z, &z->distance);
        distance = fo__step(z, symbol % 32, 1) + 1;
        z->bad |= symbol > 29 || distance > z->n_out - z->start;
        for (; length > 0 && !z->bad && !z->full; length--) /* it may overlap what it makes */
            fo__put(z, z->out[z->n_out - distance]);
    }
}

/* The two codes of a block, themselves written as code lengths in a third code. */
static void fo__inflate_dynamic(fo__inflate *z) {
    static const unsigned char order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                            11, 4,  12, 3, 13, 2, 14, 1, 15};
    unsigned char length[320] = {0}, small[19] = {0};
    int n_literal = (int)fo__bits(z, 5) + 257, n_distance = (int)fo__bits(z, 5) + 1;
    int n_small = (int)fo__bits(z, 4) + 4, i, repeat, n = n_literal + n_distance;
    for (i = 0; i < n_small; i++)
        small[order[i]] = (unsigned char)fo__bits(z, 3);
    z->bad |= fo__huffman_init(&z->literal, small, 19);
    for (i = 0; i < n && !z->bad; i += repeat) {
        int symbol = (int)fo__symbol(z, &z->literal), k = symbol - 16;
        repeat = 1;
        if (k >= 0) /* 16 repeats the last length, 17 and 18 are runs of zeros */
            repeat = (k < 2 ? 3 : 11) + (int)fo__bits(z, k < 2 ? k + 2 : 7);
        z->bad |= (k == 0 && i == 0) || repeat > n - i;
        if (!z->bad)
            memset(length + i, k < 0 ? symbol : k ? 0 : length[i - 1], (size_t)repeat);
    }
    z->bad |= n_literal > 286 || n_distance > 30 || length[256] == 0 ||
              fo__huffman_init(&z->literal, length, n_literal) ||
              fo__huffman_init(&z->distance, length + n_literal, n_distance);
}

static void fo__inflate_blocks(fo__inflate *z) {
    unsigned char fixed[288 + 32];
    uint32_t      last = 0, kind, n;
    while (!last && !z->bad && !z->full) {
        last = fo__bits(z, 1);
        kind = fo__bits(z, 2);
        z->bad |= kind == 3;
        if (kind == 0) { /* stored, from the next whole byte on */
            fo__bits(z, z->n_bits & 7);
            n = fo__bits(z, 16);
            z->bad |= (n ^ fo__bits(z, 16)) != 0xFFFF;
            for (; n > 0 && !z->bad && !z->full; n--)
                fo__put(z, fo__bits(z, 8));
        } else if (kind == 1) {
            memset(fixed, 8, 288);
            memset(fixed + 144, 9, 112);
            memset(fixed + 256, 7, 24);
            memset(fixed + 288, 5, 32);
            fo__huffman_init(&z->literal, fixed, 288);
            fo__huffman_init(&z->distance, fixed + 288, 32);
        } else {
            fo__inflate_dynamic(z);
        }
        if (kind > 0 && !z->bad)
            fo__inflate_codes(z);
    }
}

/* Unpacks gzip members in z->in into z->out, at most z->room bytes. */
static void fo__gunzip(fo__inflate *z) {
    do {
        uint32_t name;
        z->bad |= fo__bits(z, 16) != 0x8b1f || fo__bits(z, 8) != 8;
        name = fo__bits(z, 8);
        z->bad |= (name & ~8u) != 0; /* gzip writes nothing else */
        fo__bits(z, 32);
        fo__bits(z, 16);
        while (name && fo__bits(z, 8) != 0) {}
        z->start = z->n_out;
        fo__inflate_blocks(z);
        if (z->bad || z->full)
            return;
        fo__bits(z, z->n_bits & 7);
        z->bad |= fo__bits(z, 32) != fo__crc32(0, z->out + z->start, z->n_out - z->start);
        z->bad |= fo__bits(z, 32) != (uint32_t)(z->n_out - z->start);
    } while (!z->bad && (z->n_bits > 0 || z->in < z->in_end));
}

/* ---- reading --------------------------------------------------------------------------------- */

/* A file, all of it in memory. */
typedef struct fo__source {
    fo_context    *fo;
    const char    *path;
    unsigned char *bytes;
    size_t         size;
} fo__source;

/* "path: what is wrong with the file and what to do". */
FO__PRINTF(2, 3)
static fo_result fo__reject(const fo__source *s, const char *format, ...) {
    char    what[384];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return fo__fail(s->fo, FO_ERR_FORMAT, "%s: %s", s->path, what);
}

/* Its bytes go to the arena. */
static fo_result fo__source_read(fo__source *s, fo__arena *arena, const char *path) {
    int64_t size = path ? fo__file_size(path) : FO__MISSING;
    FILE   *file;
    int     ok;
    s->fo   = arena->fo;
    s->path = path;
    s->size = fo__times(size, 1);
    if (path == NULL)
        return fo__fail(s->fo, FO_ERR_ARGUMENT, "the path of a file to read is NULL");
    if (size == FO__NO_FILE)
        return fo__fail(s->fo, FO_ERR_FILE, "%s: is a folder, pipe or device: name a file", path);
    if (size == FO__MISSING || (file = fopen(path, "rb")) == NULL)
        return fo__fail(s->fo, FO_ERR_FILE, "%s: cannot be opened (%s)", path, strerror(errno));
    errno    = 0;
    s->bytes = (unsigned char *)fo__arena_alloc(arena, FO__MAX(s->size, 16)); /* zeros behind it */
    ok       = s->bytes && fread(s->bytes, 1, s->size, file) == s->size;
    if (s->bytes && !ok)
        fo__fail(s->fo, FO_ERR_FILE, "%s: could not be read (%s)", path,
                 strerror(errno ? errno : EIO));
    fclose(file);
    return ok && size == 0 ? fo__reject(s, "is empty, copy it again") : ok ? FO_OK : FO_ERR_FILE;
}

/* The first `room` bytes of the content; *n is how many there are, room + 1 if there are more. */
static fo_result fo__content(fo__source *s, unsigned char *out, size_t room, size_t *n) {
    fo__inflate z;
    if (s->bytes[0] != 0x1f || s->bytes[1] != 0x8b) {
        *n = FO__MIN(room + 1, s->size);
        memcpy(out, s->bytes, FO__MIN(room, s->size));
        return FO_OK;
    }
    memset(&z, 0, sizeof z);
    z.in     = s->bytes;
    z.in_end = s->bytes + s->size;
    z.out    = out;
    z.room   = room;
    fo__gunzip(&z);
    *n = z.n_out + (size_t)z.full;
    return !z.bad ? FO_OK : fo__reject(s, "its gzip data are damaged or were cut short (after %lld "
                                       "unpacked bytes), copy it again", (long long)z.n_out);
}

/* A cursor over the text of a header: a Python literal in .npy, JSON in safetensors. Python also
   knows single quotes, writes lists in () and may end them with a comma. `bad` is sticky. */
typedef struct fo__scan {
    char *at, *end;
    int   python, bad;
} fo__scan;

static int fo__next(fo__scan *s) { return s->at < s->end ? (unsigned char)*s->at++ : 0; }

static int fo__accept(fo__scan *s, const char *word) {
    size_t n = strlen(word);
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\r' || *s->at == '\t'))
        s->at++;
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, word, n) != 0)
        return 0;
    s->at += n;
    return 1;
}

/* Is there an item number n in the list? Steps over its brackets and commas. */
static int fo__item_at(fo__scan *s, const char *open, const char *close, int n) {
    int comma = n > 0 && fo__accept(s, ",");
    s->bad |= n == 0 && !fo__accept(s, open);
    if (s->bad || ((!comma || s->python) && fo__accept(s, close)))
        return 0;
    s->bad |= n > 0 && !comma;
    return !s->bad;
}

/* What follows a backslash. \u is for control characters; others are written as they are, and 0
   would end the text. */
static int fo__escaped(fo__scan *s) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    static const char hex[]  = "0123456789abcdef";
    int               c = fo__next(s), code = 0, k;
    const char       *found = c ? strchr(from, c) : NULL;
    if (found)
        return into[found - from];
    s->bad |= c != 'u';
    for (k = 0; k < 4 && !s->bad; k++) {
        c     = fo__next(s);
        found = c ? strchr(hex, c < 'A' ? c : c | 32) : NULL;
        s->bad |= found == NULL;
        code = code << 4 | (found ? (int)(found - hex) : 0);
    }
    s->bad |= code == 0 || code > 127;
    return code;
}

/* A quoted text and what must follow it, decoded in place and ended by a zero byte; "" if bad. */
static const char *fo__quoted(fo__scan *s, const char *after) {
    int   quote = s->python && fo__accept(s, "'") ? '\'' : '"', c;
    char *text, *to;
    s->bad |= quote == '"' && !fo__accept(s, "\"");
    for (text = to = s->at; !s->bad && (c = fo__next(s)) != quote;) {
        s->bad |= c < 32;
        *to++ = (char)(c == '\\' ? fo__escaped(s) : c);
    }
    s->bad |= !fo__accept(s, after);
    if (s->bad)
        return "";
    *to = 0;
    return text;
}

/* A list of integers: the first `room` are kept, all are counted. */
static int fo__integers(fo__scan *s, int64_t *out, int room) {
    int n;
    for (n = 0; fo__item_at(s, s->python ? "(" : "[", s->python ? ")" : "]", n); n++) {
        int64_t value = 0;
        int     c, digits;
        fo__accept(s, "");
        for (digits = 0; (c = fo__next(s)) >= '0' && c <= '9' && !s->bad; digits++) {
            s->bad |= value > (INT64_MAX - (c - '0')) / 10 || (value == 0 && digits > 0);
            value = s->bad ? 0 : 10 * value + (c - '0'); /* bad: too large or a leading zero */
        }
        s->bad |= digits == 0;
        s->at -= c != 0;
        if (n < room)
            out[n] = value;
    }
    return n;
}

/* What a header tells about one array. Python: {'descr': '<f4', 'fortran_order': False, 'shape':
   (2, 3), }, JSON: {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}, both in any order. */
typedef struct fo__record {
    const char *type_text;
    int         type; /* a fo_dtype, or FO__DTYPES: unknown */
    int         rank, fortran;
    int64_t     dim[4], span[2];
    size_t      begin, end; /* of the values in the content */
} fo__record;

static void fo__read_record(fo__scan *s, fo__record *r) {
    static const char *const keys[2][3] = {{"dtype", "shape", "data_offsets"},
                                           {"descr", "shape", "fortran_order"}};
    int seen = 0, n, k;
    for (n = 0; fo__item_at(s, "{", "}", n); n++) {
        const char *key = fo__quoted(s, ":");
        for (k = 0; k < 3 && strcmp(key, keys[s->python][k]) != 0;)
            k++;
        s->bad |= k == 3 || (seen >> k & 1);
        seen |= 1 << k;
        if (k == 0)
            r->type_text = fo__quoted(s, "");
        else if (k == 1)
            r->rank = fo__integers(s, r->dim, 4);
        else if (!s->python)
            s->bad |= fo__integers(s, r->span, 2) != 2;
        else if (!fo__accept(s, "False"))
            s->bad |= !(r->fortran = fo__accept(s, "True"));
    }
    s->bad |= seen != 7;
    for (k = 0; k < FO__DTYPES && !s->bad; k++)
        if (strcmp(r->type_text, s->python ? fo__dtypes[k].npy : fo__dtypes[k].name) == 0)
            break;
    r->type = k;
}

/* ---- samples --------------------------------------------------------------------------------- */

struct fo_data {
    fo__arena   arena;
    fo_context *fo;
    fo_dtype    type; /* FO_U8, FO_F32 or FO_F64 */
    fo_shape    shape;
    int64_t     count;
    const void *rows;
};

#define FO__PEEK ((size_t)65536) /* bytes of content looked at to find its header */

/* The first n bytes of content begin with an .npy header. */
static fo_result fo__parse_npy(fo__source *s, unsigned char *head, size_t n, fo__record *r) {
    uint32_t length = 0;
    fo__scan scan   = {NULL, NULL, 1, 0};
    r->begin        = head[6] > 1 ? 12 : 10;
    memcpy(&length, head + 8, r->begin - 8);
    if (n < r->begin || length > n - r->begin)
        return fo__reject(s, "its .npy header was cut short or is too long: copy it again");
    scan.at  = (char *)head + r->begin;
    scan.end = scan.at + length;
    r->begin += length;
    fo__read_record(&scan, r);
    fo__accept(&scan, "");
    if (scan.bad || scan.at != scan.end || head[6] < 1 || head[6] > 3 || head[7] != 0)
        return fo__reject(s, "its .npy header is damaged or not that of a plain array, versions 1 "
                          "to 3 (byte %d): use numpy.save", (int)(scan.at - (char *)head));
    if (r->type > FO_F64)
        return fo__reject(s, "numbers of type '%.40s' are not read: save array.astype("
                          "numpy.float32) or, for labels, numpy.uint8", r->type_text);
    return !r->fortran ? FO_OK : fo__reject(s, "is in Fortran order: save "
                                            "numpy.ascontiguousarray(array)");
}

/* Are the dimensions possible, and can this file hold what they announce? */
static fo_result fo__read_header(fo__source *s, fo__arena *arena, fo__record *r) {
    unsigned char *head   = (unsigned char *)fo__arena_alloc(arena, FO__PEEK);
    fo_result      result = head ? FO_OK : FO_ERR_MEMORY;
    size_t         n      = 0;
    int            k;
    if (head)
        result = fo__content(s, head, FO__PEEK, &n);
    if (result != FO_OK)
        return result;
    n = FO__MIN(n, FO__PEEK);
    if (n > 10 && memcmp(head, "\x93NUMPY", 6) == 0)
        result = fo__parse_npy(s, head, n, r);
    else if (n > 4 && memcmp(head, "\0\0\x08", 3) == 0 && n >= 4 + 4 * (size_t)head[3]) { /* IDX */
        r->rank  = head[3];
        r->begin = 4 + 4 * (size_t)r->rank;
        for (k = 4; k < FO__MIN((int)r->begin, 20); k++)
            r->dim[k / 4 - 1] = r->dim[k / 4 - 1] << 8 | head[k];
    } else
        result = fo__reject(s, "starts with %02x %02x %02x: neither IDX of bytes (00 00 08) nor "
                            ".npy, or cut short: use numpy.save", head[0], head[1], head[2]);
    for (k = 0; k < FO__MIN(r->rank, 4) && result == FO_OK; k++)
        if (r->dim[k] < 1 || (k && r->dim[k] > INT_MAX))
            result = fo__reject(s, "dimension %d is %lld", k + 1, (long long)r->dim[k]);
    if (result != FO_OK)
        return result;
    if (r->rank < 1 || r->rank > 4)
        return fo__reject(s, "has %d dimensions, needed are 1 (labels), 2 (N x D), 3 (N x H x W) "
                          "or 4 (N x C x H x W)", r->rank);
    n      = fo__array_bytes((fo_dtype)r->type, r->rank, r->dim);
    r->end = r->begin + FO__MIN(n, SIZE_MAX / 8);
    if (r->end / 1032 > s->size) /* DEFLATE cannot shrink anything more than that */
        return fo__reject(s, "has %lld bytes, its header announces %.3g: it was cut short, copy it "
                          "again", (long long)s->size, (double)r->end);
    return FO_OK;
}

/* Number i of an array of U8, F16, F32 or F64, wherever it lies. */
static double fo__value(fo_dtype type, const void *values, size_t i) {
    const unsigned char *at = (const unsigned char *)values + i * fo__dtypes[type].size;
    double               wide;
    float                narrow;
    int                  exponent;
    switch (type) {
    case FO_U8:  return *at;
    case FO_F32: memcpy(&narrow, at, 4); return narrow;
    case FO_F64: memcpy(&wide, at, 8); return wide;
    default: /* half: 1 sign, 5 exponent and 10 fraction bits; NaN becomes infinite */
        exponent = at[1] >> 2 & 31;
        wide     = (at[1] & 3) << 8 | at[0];
        wide     = exponent ? ldexp(1024 + wide, exponent - 25) : ldexp(wide, -24);
        wide     = exponent == 31 ? HUGE_VAL : wide;
        return at[1] & 0x80 ? -wide : wide;
    }
}

static fo_result fo__read_values(fo__source *s, const fo__record *r, fo_data *data) {
    const double   largest = sizeof(fo_real) == sizeof(float) ? (double)FLT_MAX : DBL_MAX;
    int            is_image = r->rank > 2;
    size_t         size = r->end - r->begin, wider = r->type == FO_F16 ? size : 0, columns, got, i;
    unsigned char *bytes = (unsigned char *)fo__arena_alloc(&data->arena, r->end + wider);
    if (bytes == NULL)
        return FO_ERR_MEMORY;
    data->fo      = s->fo;
    data->type    = r->type == FO_F16 ? FO_F32 : (fo_dtype)r->type;
    data->count   = r->dim[0];
    data->rows    = bytes;
    data->shape.c = r->rank == 2 || r->rank == 4 ? (int)r->dim[1] : 1;
    data->shape.h = is_image ? (int)r->dim[r->rank - 2] : 1;
    data->shape.w = is_image ? (int)r->dim[r->rank - 1] : 1;
    columns       = (size_t)fo_shape_count(data->shape);
    if (fo__content(s, bytes, r->end, &got) != FO_OK)
        return FO_ERR_FORMAT;
    if (got != r->end)
        return fo__reject(s, "its header announces %lld bytes, there are %s: copy it again",
                          (long long)r->end, got > r->end ? "more" : "fewer, it was cut short");
    memmove(bytes, bytes + r->begin, size);
    for (i = size / 2; r->type == FO_F16 && i-- > 0;) { /* backwards: a float replaces two */
        float wide = (float)fo__value(FO_F16, bytes, i);
        memcpy(bytes + 4 * i, &wide, 4);
    }
    for (i = 0; r->type != FO_U8 && i < columns * (size_t)data->count; i++)
        if (!(fabs(fo__value(data->type, bytes, i)) <= largest))
            return fo__fail(s->fo, FO_ERR_NUMERIC, "%s: row %lld column %lld is %g: repair it, "
                            "e.g. with numpy.nan_to_num", s->path, (long long)(i / columns),
                            (long long)(i % columns), fo__value(data->type, bytes, i));
    return FO_OK;
}

fo_data *fo_load(fo_context *fo, const char *path) {
    fo__arena  arena = {fo, NULL};
    fo__source source;
    fo__record record;
    fo_data   *data = NULL;
    memset(&record, 0, sizeof record);
    if (fo && fo__source_read(&source, &arena, path) == FO_OK &&
        fo__read_header(&source, &arena, &record) == FO_OK)
        data = (fo_data *)fo__object(fo, sizeof *data);
    if (data && fo__read_values(&source, &record, data) != FO_OK) {
        fo__object_free(data);
        data = NULL;
    }
    fo__arena_free(&arena);
    return data;
}

fo_data *fo_data_view(fo_context *fo, const void *rows, fo_dtype type, int64_t count,
                      fo_shape shape) {
    int64_t  columns = fo_shape_count(shape);
    fo_data *data;
    if (rows == NULL || (type != FO_U8 && type != FO_F32 && type != FO_F64) || count < 1 ||
        columns < 1 || count > INT64_MAX / 8 / columns) {
        fo__fail(fo, FO_ERR_ARGUMENT, "fo_data_view: %lld samples of %dx%dx%d %s: needed are rows "
                 "of U8, F32 or F64", (long long)count, shape.c, shape.h, shape.w,
                 fo_dtype_name(type));
        return NULL;
    }
    data = (fo_data *)fo__object(fo, sizeof *data);
    if (data) {
        data->fo    = fo;
        data->type  = type;
        data->shape = shape;
        data->count = count;
        data->rows  = rows;
    }
    return data;
}

void fo_data_free(fo_data *data) { fo__object_free(data); }

fo_shape fo_data_shape(const fo_data *data) {
    fo_shape none = {0, 0, 0};
    return data ? data->shape : none;
}

int64_t fo_data_count(const fo_data *data) { return data ? data->count : 0; }

fo_dtype fo_data_dtype(const fo_data *data) { return data ? data->type : FO_U8; }

void fo_data_limit(fo_data *data, int64_t count) {
    if (data && count < 1)
        fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_limit: keep at least 1 sample");
    else if (data)
        data->count = FO__MIN(data->count, count);
}

/* Row i as numbers; the caller has checked i. */
static void fo__data_rows(const fo_data *data, int64_t i, fo_real *out) {
    size_t n = (size_t)fo_shape_count(data->shape), k;
    for (k = 0; k < n; k++)
        out[k] = (fo_real)fo__value(data->type, data->rows, n * (size_t)i + k);
}

fo_result fo_data_get(const fo_data *data, int64_t i, fo_real *out) {
    if (data == NULL || out == NULL)
        return FO_ERR_ARGUMENT;
    if (i < 0 || i >= data->count)
        return fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_get: sample %lld of %lld",
                        (long long)i, (long long)data->count);
    fo__data_rows(data, i, out);
    return FO_OK;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* A file being written: into path.part, which becomes path when all of it is on disk. After the
   first failure nothing more is done, and fo__write_end reports it. */
typedef struct fo__writer {
    fo_context *fo;
    const char *path;
    char       *part;
    FILE       *file;
    size_t      n; /* bytes so far */
    fo_result   result;
} fo__writer;

static void fo__write_check(fo__writer *w, int ok) {
    if (!ok && w->result == FO_OK)
        w->result = fo__fail(w->fo, FO_ERR_FILE, "%s: could not be written (%s): check the folder "
                             "and the free space", w->path, strerror(errno ? errno : EIO));
    errno = 0;
}

static void fo__write_begin(fo__writer *w, fo_context *fo, const char *path) {
    memset(w, 0, sizeof *w);
    w->fo   = fo;
    w->path = path;
    if (fo == NULL || path == NULL || *path == 0)
        w->result = fo__fail(fo, FO_ERR_ARGUMENT, "the path of a file to write is missing");
    else if ((w->part = (char *)fo__alloc(fo, strlen(path) + 6)) == NULL)
        w->result = FO_ERR_MEMORY;
    if (w->result != FO_OK)
        return;
    strcat(strcpy(w->part, path), ".part");
    if (fo__file_size(path) == FO__NO_FILE || fo__file_size(w->part) == FO__NO_FILE)
        w->result = fo__fail(fo, FO_ERR_FILE, "%s: it, or the same with .part, is a folder, pipe "
                             "or device: name a file", path);
    else
        fo__write_check(w, (w->file = fopen(w->part, "wb")) != NULL);
}

static void fo__write(fo__writer *w, const void *bytes, size_t n) {
    if (n && w->result == FO_OK)
        fo__write_check(w, fwrite(bytes, 1, n, w->file) == n);
    w->n += n;
}

FO__PRINTF(2, 3)
static void fo__print(fo__writer *w, const char *format, ...) {
    char    text[96];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fo__write(w, text, strlen(text));
}

static fo_result fo__write_end(fo__writer *w) {
    if (w->file) {
        fo__write_check(w, fflush(w->file) == 0);
        fo__write_check(w, fclose(w->file) == 0);
        fo__write_check(w, w->result != FO_OK || fo__replace(w->part, w->path) == 0);
        if (w->result != FO_OK)
            remove(w->part);
    }
    fo__free(w->fo, w->part);
    return w->result;
}

/* May this array be written? `what` is its name or the function's. */
static fo_result fo__check_array(fo_context *fo, const char *what, fo_dtype type, int rank,
                                 int max_rank, const int64_t *dim, const void *values) {
    size_t bytes = SIZE_MAX;
    if (rank >= 0 && rank <= max_rank && (rank == 0 || dim))
        bytes = fo__array_bytes(type, rank, dim);
    if (bytes < SIZE_MAX / 8 && (bytes == 0 || values))
        return FO_OK;
    return fo__fail(fo, FO_ERR_ARGUMENT, "%.80s: needed are a number type, 0 to %d dimensions of "
                    "possible sizes, and values", what, max_rank);
}

fo_result fo_save_npy(fo_context *fo, const char *path, fo_dtype type, int rank,
                      const int64_t *dim, const void *values) {
    fo_result  result = fo__check_array(fo, "fo_save_npy", type, rank, 8, dim, values);
    fo__writer w;
    int        k;
    if (result != FO_OK)
        return result;
    fo__write_begin(&w, fo, path);
    fo__write(&w, "\x93NUMPY\x01\0\xf6", 10); /* with its end, the header has 256 bytes */
    fo__print(&w, "{'descr': '%s', 'fortran_order': False, 'shape': (", fo__dtypes[type].npy);
    for (k = 0; k < rank; k++)
        fo__print(&w, k + 1 < rank ? "%lld, " : rank == 1 ? "%lld," : "%lld", (long long)dim[k]);
    fo__print(&w, "), }");
    while (w.result == FO_OK && w.n < 255)
        fo__print(&w, " ");
    fo__print(&w, "\n");
    fo__write(&w, values, fo__array_bytes(type, rank, dim));
    return fo__write_end(&w);
}

fo_result fo_save_idx(fo_context *fo, const char *path, int rank, const int64_t *dim,
                      const unsigned char *values) {
    fo_result     result = fo__check_array(fo, "fo_save_idx", FO_U8, rank, 4, dim, values);
    unsigned char head[20] = {0, 0, 8, 0};
    fo__writer    w;
    int           k;
    for (k = 0; k < rank && result == FO_OK; k++) {
        if (dim[k] > UINT32_MAX)
            result = fo__fail(fo, FO_ERR_ARGUMENT, "fo_save_idx: use .npy for large arrays");
        fo__set_be32(head + 4 + 4 * k, (uint32_t)dim[k]);
    }
    if (result != FO_OK)
        return result;
    head[3] = (unsigned char)rank;
    fo__write_begin(&w, fo, path);
    fo__write(&w, head, 4 + 4 * (size_t)rank);
    fo__write(&w, values, fo__array_bytes(FO_U8, rank, dim));
    return fo__write_end(&w);
}

/* Closes a PNG chunk whose n bytes lie at at + 8; returns where the next one begins. */
static unsigned char *fo__chunk(unsigned char *at, const char *type, size_t n) {
    fo__set_be32(at, (uint32_t)n);
    memcpy(at + 4, type, 4);
    fo__set_be32(at + 8 + n, fo__crc32(0, at + 4, n + 4));
    return at + 12 + n;
}

/* PNG: rows of pixels in a zlib stream (RFC 1950), in checked chunks. Every row is a stored block
   of its own: 5 bytes that say so, its filter (0, none), its pixels. */
fo_result fo_save_png(fo_context *fo, const char *path, int w, int h, int channels,
                      const unsigned char *pixels) {
    unsigned char *png, *head, *data, *at;
    uint64_t       a = 1, b = 0; /* the checksum: the sum of all bytes and the sum of all sums */
    size_t         row, i;
    fo__writer     writer;
    int            y;
    if (fo == NULL || pixels == NULL || w < 1 || h < 1 || (channels != 1 && channels != 3) ||
        w > 65534 / channels || (double)w * h * channels > 1e9)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_save_png: %dx%d pixels, %d channels: needed are 1 "
                        "or 3 channels, at most 64 KB a row and 1 GB", w, h, channels);
    row = (size_t)w * (size_t)channels;
    png = (unsigned char *)fo__alloc(fo, (row + 6) * (size_t)h + 63);
    if (png == NULL)
        return FO_ERR_MEMORY;
    memcpy(png, "\x89PNG\r\n\x1a\n", 8);
    head = png + 8;
    fo__set_be32(head + 8, (uint32_t)w);
    fo__set_be32(head + 12, (uint32_t)h);
    head[16] = 8, head[17] = channels == 3 ? 2 : 0;
    data = fo__chunk(head, "IHDR", 13);
    memcpy(data + 8, "\x78\x01", 2);
    for (at = data + 10, y = 0; y < h; y++) {
        *at++ = y + 1 == h; /* the last block */
        at[0] = (unsigned char)(row + 1), at[1] = (unsigned char)((row + 1) >> 8);
        at[2] = (unsigned char)~at[0], at[3] = (unsigned char)~at[1];
        memcpy(at + 5, pixels + (size_t)y * row, row);
        for (at += 4, i = 0; i <= row; i++) {
            a += *at++;
            b += a;
        }
        a %= 65521, b %= 65521;
    }
    fo__set_be32(at, (uint32_t)(b << 16 | a));
    at = fo__chunk(fo__chunk(data, "IDAT", (size_t)(at + 4 - data - 8)), "IEND", 0);
    fo__write_begin(&writer, fo, path);
    fo__write(&writer, png, (size_t)(at - png));
    fo__free(fo, png);
    return fo__write_end(&writer);
}

/* ---- safetensors: the length of a JSON header, the header, the bytes of all arrays ----------- */

enum { FO__ARRAYS_MAX = 10000 }; /* everything is compared with everything: no more than that */

struct fo_archive {
    fo__arena arena;
    fo_array *arrays;
    fo_note  *notes;
    int       count, n_notes;
};

static size_t fo__bytes(const fo_array *array) {
    return fo__array_bytes(array->type, array->rank, array->dim);
}

/* One array of the header; n bytes of data follow it. Arrays that do not overlap and have n bytes
   together cover the data without a hole. */
static fo_result fo__read_array(fo__source *s, fo__scan *scan, fo_archive *a, size_t n) {
    fo_array  *array = &a->arrays[a->count++];
    fo__record r;
    int        i;
    memset(&r, 0, sizeof r);
    fo__read_record(scan, &r);
    if (scan->bad)
        return FO_OK; /* the caller tells */
    if (r.type == FO__DTYPES || r.rank > 4)
        return fo__reject(s, "array '%.80s' of type %.20s with %d dimensions is not read: save "
                          "F32 with at most 4", array->name, r.type_text, r.rank);
    array->type = (fo_dtype)r.type;
    array->rank = r.rank;
    memcpy(array->dim, r.dim, sizeof r.dim);
    if (r.span[0] > r.span[1] || (uint64_t)r.span[1] > n ||
        (size_t)(r.span[1] - r.span[0]) != fo__bytes(array))
        return fo__reject(s, "array '%.80s' at %lld to %lld of %lld bytes does not fit its shape "
                          "or was cut short: copy it again", array->name, (long long)r.span[0],
                          (long long)r.span[1], (long long)n);
    array->values = scan->end + r.span[0];
    for (i = 0; i < a->count - 1; i++) {
        const fo_array *other = &a->arrays[i];
        const char     *begin = (const char *)other->values;
        if (strcmp(array->name, other->name) == 0 ||
            (begin < scan->end + r.span[1] && scan->end + r.span[0] < begin + fo__bytes(other)))
            return fo__reject(s, "array '%.80s' has the same name or bytes as array '%.80s': "
                              "damaged, copy it again", array->name, other->name);
    }
    return FO_OK;
}

static fo_result fo__read_archive(fo__source *s, fo_archive *a) {
    fo_result result = FO_OK;
    fo__scan  scan   = {NULL, NULL, 0, 0};
    uint64_t  length;
    size_t    n, used = 0;
    int       i, k;
    memcpy(&length, s->bytes, 8);
    if (s->size < 10 || length < 2 || length > s->size - 8)
        return fo__reject(s, "has no safetensors header: it is of another kind or was cut short");
    a->arrays = (fo_array *)fo__arena_alloc(&a->arena, FO__ARRAYS_MAX * sizeof *a->arrays);
    a->notes  = (fo_note *)fo__arena_alloc(&a->arena, FO__ARRAYS_MAX * sizeof *a->notes);
    if (!a->arrays || !a->notes)
        return FO_ERR_MEMORY;
    scan.at  = (char *)s->bytes + 8;
    scan.end = scan.at + length;
    n        = s->size - 8 - (size_t)length;
    scan.bad = *scan.at != '{';
    for (i = 0; result == FO_OK && fo__item_at(&scan, "{", "}", i); i++) {
        const char *name = fo__quoted(&scan, ":");
        scan.bad |= a->count == FO__ARRAYS_MAX;
        if (strcmp(name, "__metadata__") != 0 && !scan.bad) {
            a->arrays[a->count].name = name;
            result                   = fo__read_array(s, &scan, a, n);
            continue;
        }
        scan.bad |= a->n_notes > 0;
        for (k = 0; fo__item_at(&scan, "{", "}", k); k++, a->n_notes++) {
            const char *key = fo__quoted(&scan, ":"), *text = fo__quoted(&scan, "");
            scan.bad |= k == FO__ARRAYS_MAX - 1 || fo_archive_note(a, key);
            a->notes[k].key  = key;
            a->notes[k].text = text;
        }
    }
    if (result != FO_OK)
        return result;
    fo__accept(&scan, "");
    if (scan.bad || scan.at != scan.end)
        return fo__reject(s, "its JSON header is damaged, has two notes of the same key or more "
                          "than 10000, at or before byte %d", (int)(scan.at - (char *)s->bytes));
    for (i = 0; i < a->count; i++) {
        fo_array *array = &a->arrays[i];
        size_t    bytes = fo__bytes(array);
        used += bytes;
        if ((uintptr_t)array->values % fo__dtypes[array->type].size) { /* C wants even places */
            void *even = fo__arena_alloc(&a->arena, bytes);
            if (even == NULL)
                return FO_ERR_MEMORY;
            array->values = memcpy(even, array->values, bytes);
        }
    }
    return used == n ? FO_OK : fo__reject(s, "its arrays have %lld bytes of %lld: damaged, copy it "
                                          "again", (long long)used, (long long)n);
}

fo_archive *fo_archive_open(fo_context *fo, const char *path) {
    fo_archive *archive = (fo_archive *)fo__object(fo, sizeof *archive);
    fo__source  source;
    if (archive && (fo__source_read(&source, &archive->arena, path) != FO_OK ||
                    fo__read_archive(&source, archive) != FO_OK)) {
        fo__object_free(archive);
        archive = NULL;
    }
    return archive;
}

void fo_archive_free(fo_archive *archive) { fo__object_free(archive); }

int fo_archive_count(const fo_archive *archive) { return archive ? archive->count : 0; }

const fo_array *fo_archive_at(const fo_archive *archive, int i) {
    return archive && i >= 0 && i < archive->count ? &archive->arrays[i] : NULL;
}

const fo_array *fo_archive_find(const fo_archive *archive, const char *name) {
    int i;
    for (i = 0; archive && name && i < archive->count; i++)
        if (strcmp(archive->arrays[i].name, name) == 0)
            return &archive->arrays[i];
    return NULL;
}

const char *fo_archive_note(const fo_archive *archive, const char *key) {
    int i;
    for (i = 0; archive && key && i < archive->n_notes; i++)
        if (strcmp(archive->notes[i].key, key) == 0)
            return archive->notes[i].text;
    return NULL;
}

static void fo__print_quoted(fo__writer *w, const char *text, const char *after) {
    fo__print(w, "\"");
    for (; *text; text++)
        if ((unsigned char)*text < 32)
            fo__print(w, "\\u%04x", (unsigned)*text);
        else
            fo__print(w, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    fo__print(w, "\"%s", after);
}

/* Wide numbers lie first, so that every array is aligned. */
static void fo__write_arrays(fo__writer *w, const fo_array *arrays, int n, const fo_note *notes,
                             int n_notes) {
    const char *comma = "";
    uint64_t    length = 0;
    int64_t     end    = 0;
    size_t      size;
    int         i, k;
    fo__write(w, &length, 8);
    fo__print(w, n_notes ? "{\"__metadata__\":{" : "{");
    for (i = 0; i < n_notes; i++) {
        fo__print_quoted(w, notes[i].key, ":");
        fo__print_quoted(w, notes[i].text, i + 1 < n_notes ? "," : n ? "}," : "}");
    }
    for (size = 8; size > 0; size /= 2)
        for (i = 0; i < n; i++) {
            if (fo__dtypes[arrays[i].type].size != size)
                continue;
            fo__print(w, "%s", comma);
            fo__print_quoted(w, arrays[i].name, ":{\"dtype\":");
            fo__print(w, "\"%s\",\"shape\":[", fo__dtypes[arrays[i].type].name);
            for (k = 0; k < arrays[i].rank; k++)
                fo__print(w, k ? ",%lld" : "%lld", (long long)arrays[i].dim[k]);
            fo__print(w, "],\"data_offsets\":[%lld,", (long long)end);
            end += (int64_t)fo__bytes(&arrays[i]);
            fo__print(w, "%lld]}", (long long)end);
            comma = ",";
        }
    fo__print(w, "}%.*s", 7 - (int)(w->n % 8), "       ");
    length = w->n - 8;
    for (size = 8; size > 0; size /= 2)
        for (i = 0; i < n; i++)
            if (fo__dtypes[arrays[i].type].size == size)
                fo__write(w, arrays[i].values, fo__bytes(&arrays[i]));
    if (w->result == FO_OK)
        fo__write_check(w, fseek(w->file, 0, SEEK_SET) == 0);
    fo__write(w, &length, 8);
}

fo_result fo_archive_save(fo_context *fo, const char *path, const fo_array *arrays, int n,
                          const fo_note *notes, int n_notes) {
    fo_result  result = FO_OK;
    fo_archive seen;
    fo__writer w;
    int        bad = fo == NULL || n < 0 || n_notes < 0 || (n && !arrays) || (n_notes && !notes) ||
              n > FO__ARRAYS_MAX || n_notes >= FO__ARRAYS_MAX;
    memset(&seen, 0, sizeof seen);
    seen.arrays = (fo_array *)(uintptr_t)arrays; /* only read */
    seen.notes  = (fo_note *)(uintptr_t)notes;
    for (; !bad && seen.n_notes < n_notes; seen.n_notes++)
        bad = !notes[seen.n_notes].key || !notes[seen.n_notes].text ||
              fo_archive_note(&seen, notes[seen.n_notes].key);
    for (; !bad && result == FO_OK && seen.count < n; seen.count++) {
        const fo_array *a = &arrays[seen.count];
        bad = !a->name || !strcmp(a->name, "__metadata__") || fo_archive_find(&seen, a->name);
        if (!bad)
            result = fo__check_array(fo, a->name, a->type, a->rank, 4, a->dim, a->values);
    }
    if (bad)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_archive_save: of %d arrays and %d notes one "
                        "has no name, that of another or __metadata__", n, n_notes);
    if (result != FO_OK)
        return result;
    fo__write_begin(&w, fo, path);
    fo__write_arrays(&w, arrays, n, notes, n_notes);
    return fo__write_end(&w);
}

/* ================================================================================================
   >>metrics       how well do scores tell OOD samples from the others?

   Invariants equal scores are one step of every curve: the order of samples changes nothing
   Cost       one sort of all scores
   ============================================================================================= */

typedef struct fo__score {
    double  score;
    int64_t ood;
} fo__score;

/* Heap sort: n log n for any input and no memory; qsort promises neither. Every root sinks to its
   place, from the middle up; then the largest score moves behind the heap, again and again. */
static void fo__sort(fo__score *at, int64_t n) {
    int64_t root = n / 2, heap = n, i, child;
    while (heap > 1) {
        fo__score sinking = root > 0 ? at[--root] : at[--heap];
        if (heap < n)
            at[heap] = at[0];
        for (i = root; (child = 2 * i + 1) < heap; i = child) {
            child += child + 1 < heap && at[child].score < at[child + 1].score;
            if (sinking.score >= at[child].score)
                break;
            at[i] = at[child];
        }
        at[i] = sinking;
    }
}

/* Walks n sorted scores from `at` by `step`, most positive first. */
static void fo__curve(const fo__score *at, int step, int64_t n, int64_t positive, int64_t n_pos,
                      double *precision, double *area, double *fpr95) {
    const double p = (double)n_pos, q = (double)(n - n_pos);
    int64_t      i, tp = 0, fp = 0;
    *precision = *area = 0;
    *fpr95             = -1;
    for (i = 0; i < n;) {
        const double score = at[i * step].score;
        double       new_tp = (double)tp, new_fp = (double)fp;
        for (; i < n && at[i * step].score == score; i++)
            *(at[i * step].ood == positive ? &tp : &fp) += 1;
        new_tp = (double)tp - new_tp;
        new_fp = (double)fp - new_fp;
        *precision += new_tp / p * (double)tp / (double)i;
        *area += new_tp * (q - (double)fp + new_fp / 2);
        if (*fpr95 < 0 && 20 * tp >= 19 * n_pos)
            *fpr95 = (double)fp / q;
    }
    *area /= p * q;
}

fo_result fo_measure(fo_context *fo, const double *in, int64_t n_in, const double *ood,
                     int64_t n_ood, fo_metrics *out) {
    int64_t   n = n_in + n_ood, i;
    double    unused;
    fo__score *all;
    if (fo == NULL || !in || !ood || !out || n_in < 1 || n_ood < 1)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_measure: %lld scores in and %lld out of "
                        "distribution, each needs at least one", (long long)n_in, (long long)n_ood);
    all = (fo__score *)fo__alloc(fo, fo__times(n, sizeof *all));
    if (all == NULL)
        return FO_ERR_MEMORY;
    for (i = 0; i < n; i++) {
        all[i].ood = i >= n_in;
        all[i].score = i < n_in ? in[i] : ood[i - n_in];
        if (all[i].score != all[i].score)
            break;
    }
    if (i == n) {
        fo__sort(all, n);
        fo__curve(all, 1, n, 0, n_in, &out->aupr_in, &unused, &unused);
        fo__curve(all + n - 1, -1, n, 1, n_ood, &out->aupr_out, &out->auroc, &out->fpr95);
    }
    fo__free(fo, all);
    return i == n ? FO_OK : fo__fail(fo, FO_ERR_NUMERIC, "fo_measure: score %lld of the %s samples "
                                     "is not a number", (long long)(i < n_in ? i : i - n_in),
                                     i < n_in ? "in-distribution" : "OOD");
}

/* ================================================================================================
   >>tape          record, plan, run

   Purpose    reverse-mode differentiation of a recorded list of ops
   Invariants ops are kept in the order of recording, which is a topological order; forward walks
              it up, backward walks it down; every tensor has one producer
   Memory     time runs 0..n-1 in forward, n..2n-1 in backward (op i is undone at 2n-1-i). Every
              buffer lives for an interval of that time. Two pools: `kept` buffers are alive across
              the turn, `scratch` ones are not, so that several tapes which never run at once may
              share one scratch block. Offsets: first fit among the intervals that overlap.
   Cost       planning is quadratic in the number of ops (hundreds), and done once
   ============================================================================================= */
typedef struct fo__param {
    fo_param_info info;
    fo_init       init;
} fo__param;

/* Names, shapes and places of parameters: of one tape, or of a whole flow. */
typedef struct fo__params {
    fo__param *list;
    int        count, room;
    int64_t    size;   /* numbers in the block */
    int        frozen; /* the block is placed: no new names */
} fo__params;

struct fo_tape {
    fo__arena   arena;
    fo_context *fo;
    fo_tensor **nodes; /* leaves and ops, in order of creation */
    int         count, room;
    fo__params  own, *params; /* params: own, or those of the flow whose layer this tape is */
    fo__arena  *params_arena;
    const char *prefix;       /* put before the names of parameters: "3.net." */
    int         failed, planned, train;
    int64_t     kept_size, scratch_size;
};

fo_init fo_init_of(fo_init_kind kind, double scale) {
    fo_init init;
    init.kind  = kind;
    init.scale = scale;
    return init;
}

fo_tape *fo_tape_create(fo_context *fo) {
    fo_tape *tape = (fo_tape *)fo__object(fo, sizeof(fo_tape));
    if (tape) {
        tape->fo     = fo;
        tape->params = &tape->own;
        tape->params_arena = &tape->arena;
        tape->prefix = "";
    }
    return tape;
}

void        fo_tape_free(fo_tape *tape) { fo__object_free(tape); }
fo_context *fo_tape_context(const fo_tape *tape) { return tape ? tape->fo : NULL; }

/* A growing list in an arena: doubling leaves the old copies to the arena. */
static void *fo__grow(fo__arena *arena, void *list, int count, int *room, size_t size) {
    void *more;
    if (count < *room)
        return list;
    more = fo__arena_alloc(arena, fo__times(*room ? 2 * (int64_t)*room : 16, size));
    if (more == NULL)
        return NULL;
    if (count)
        memcpy(more, list, (size_t)count * size);
    *room = *room ? 2 * *room : 16;
    return more;
}

/* "[128,784]" for error messages. */
static const char *fo__dims(char text[96], int rank, const int64_t *dim) {
    int i, at = snprintf(text, 96, "[");
    for (i = 0; i < rank && at < 80; i++)
        at += snprintf(text + at, (size_t)(96 - at), i ? ",%lld" : "%lld", (long long)dim[i]);
    snprintf(text + at, (size_t)(96 - at), "]");
    return text;
}

static fo_result fo__set_dims(fo_tensor *t, int rank, const int64_t *dim) {
    int64_t count = 1;
    int     i;
    if (rank < 1 || rank > FO_MAX_RANK)
        return fo__fail(t->tape->fo, FO_ERR_SHAPE, "a tensor of rank %d: 1 to %d are possible",
                        rank, FO_MAX_RANK);
    for (i = 0; i < rank; i++) {
        if (dim[i] < 1 || dim[i] > ((int64_t)1 << 40) / count) {
            char text[96];
            return fo__fail(t->tape->fo, FO_ERR_SHAPE,
                            "a tensor of shape %s: every dimension must be at least 1 and the "
                            "whole at most 2^40", fo__dims(text, rank, dim));
        }
        t->dim[i] = dim[i];
        count *= dim[i];
    }
    t->rank  = rank;
    t->count = count;
    return FO_OK;
}

static fo_tensor *fo__node(fo_tape *tape, const fo_op *op, int n_in) {
    fo_tensor **nodes, *t;
    if (tape == NULL)
        return NULL;
    if (tape->planned || tape->failed) {
        if (tape->planned)
            fo__fail(tape->fo, FO_ERR_ARGUMENT,
                     "an op was added after fo_tape_plan: record everything first, then plan");
        return NULL;
    }
    tape->failed = 1; /* until fo__node_done */
    nodes = (fo_tensor **)fo__grow(&tape->arena, tape->nodes, tape->count, &tape->room,
                                   sizeof *nodes);
    if (nodes == NULL)
        return NULL;
    tape->nodes = nodes;
    t = (fo_tensor *)fo__arena_alloc(&tape->arena, sizeof *t);
    if (t == NULL)
        return NULL;
    t->tape = tape;
    t->op   = op;
    t->n_in = n_in;
    t->plan.data_of = t->plan.grad_of = t;
    t->plan.data_at = t->plan.grad_at = t->plan.param_at = -1;
    t->plan.last = t->plan.until = -1;
    return t;
}

static fo_tensor *fo__node_done(fo_tensor *t) {
    fo_tape *tape = t->tape;
    tape->nodes[tape->count++] = t;
    tape->failed = 0;
    return t;
}

fo_tensor *fo_input(fo_tape *tape, int rank, const int64_t *dim, int needs_grad) {
    fo_tensor *t = fo__node(tape, NULL, 0);
    if (t == NULL || fo__set_dims(t, rank, dim) != FO_OK)
        return NULL;
    t->plan.needs_grad = needs_grad;
    return fo__node_done(t);
}

static fo__param *fo__param_find(const fo__params *params, const char *name) {
    int i;
    for (i = 0; i < params->count; i++)
        if (strcmp(params->list[i].info.name, name) == 0)
            return &params->list[i];
    return NULL;
}

/* The parameter of this name, made at the end of the block when it is new. */
static fo__param *fo__param_get(fo_context *fo, fo__params *params, fo__arena *arena,
                                const char *name, int rank, const int64_t *dim, fo_init init) {
    fo__param *p = fo__param_find(params, name), *list;
    int        i, same = 1;
    if (p) {
        for (i = 0; i < rank && i < p->info.rank; i++)
            same &= p->info.dim[i] == dim[i];
        if (same && rank == p->info.rank)
            return p;
        fo__fail(fo, FO_ERR_SHAPE, "parameter %s is asked for with two different shapes", name);
        return NULL;
    }
    if (params->frozen) {
        fo__fail(fo, FO_ERR_ARGUMENT, "parameter %s is new: a network must ask for the same "
                 "parameters whenever it is built", name);
        return NULL;
    }
    list = (fo__param *)fo__grow(arena, params->list, params->count, &params->room, sizeof *list);
    if (list == NULL)
        return NULL;
    params->list = list;
    p            = &list[params->count];
    memset(p, 0, sizeof *p);
    p->info.name = fo__strdup(arena, name);
    if (p->info.name == NULL)
        return NULL;
    p->info.rank  = rank;
    p->info.count = 1;
    for (i = 0; i < rank; i++)
        p->info.count *= p->info.dim[i] = dim[i];
    p->info.offset = params->size;
    p->init        = init;
    params->size += p->info.count;
    params->count++;
    return p;
}

fo_tensor *fo_param(fo_tape *tape, const char *name, int rank, const int64_t *dim, fo_init init) {
    fo_tensor *t;
    fo__param *p;
    char       full[256];
    int        i;
    if (tape == NULL)
        return NULL;
    if (snprintf(full, sizeof full, "%s%s", tape->prefix, name) >= (int)sizeof full) {
        fo__fail(tape->fo, FO_ERR_ARGUMENT, "parameter name %.40s... is too long", name);
        return NULL;
    }
    t = fo__node(tape, NULL, 0);
    if (t == NULL || fo__set_dims(t, rank, dim) != FO_OK)
        return NULL;
    p = fo__param_get(tape->fo, tape->params, tape->params_arena, full, rank, dim, init);
    if (p == NULL)
        return NULL;
    tape->failed = 0;
    for (i = 0; i < tape->count; i++)
        if (tape->nodes[i]->plan.param_at == p->info.offset)
            return tape->nodes[i];
    t->plan.needs_grad = 1;
    t->plan.param_at   = p->info.offset;
    return fo__node_done(t);
}

fo_tensor *fo_apply(fo_tape *tape, const fo_op *op, fo_tensor *const *in, int n_in,
                    const void *args, size_t args_size) {
    fo_tensor *t;
    void      *copy;
    int        i;
    for (i = 0; i < n_in; i++)
        if (in[i] == NULL)
            return NULL;
    t = fo__node(tape, op, n_in);
    if (t == NULL)
        return NULL;
    t->in = (fo_tensor **)fo__arena_alloc(&tape->arena, (size_t)n_in * sizeof *in);
    copy  = fo__arena_alloc(&tape->arena, args_size + 1);
    if (t->in == NULL || copy == NULL)
        return NULL;
    if (args_size)
        memcpy(copy, args, args_size);
    t->args = copy;
    for (i = 0; i < n_in; i++) {
        t->in[i] = in[i];
        t->plan.needs_grad |= in[i]->plan.needs_grad;
        if (in[i]->tape != tape) {
            fo__fail(tape->fo, FO_ERR_ARGUMENT, "%s mixes tensors of two tapes", op->name);
            return NULL;
        }
    }
    if (op->shape(t) != FO_OK || fo__set_dims(t, t->rank, t->dim) != FO_OK)
        return NULL;
    return fo__node_done(t);
}

void fo_output(fo_tensor *tensor) {
    if (tensor)
        tensor->plan.is_output = 1;
}

/* ---- planning ------------------------------------------------------------------------------ */

typedef struct fo__interval { int64_t size, at; int birth, death; } fo__interval;

/* First fit: the lowest place that no span alive at the same time covers. Spans come in any
   order; earlier ones keep their places. */
static void fo__place(fo__interval *span, int i, int64_t *pool_size) {
    int64_t at = 0;
    int     j, moved = 1;
    while (moved) {
        moved = 0;
        for (j = 0; j < i; j++)
            if (span[j].birth <= span[i].death && span[i].birth <= span[j].death &&
                at < span[j].at + span[j].size && span[j].at < at + span[i].size) {
                at    = span[j].at + span[j].size;
                moved = 1;
            }
    }
    span[i].at = at;
    *pool_size = FO__MAX(*pool_size, at + span[i].size);
}

/* Who shares storage with whom, and until when each value is read. */
static void fo__plan_lifetimes(fo_tape *tape, int train) {
    int n = tape->count, i, k;
    for (i = 0; i < n; i++) {
        fo_tensor *t = tape->nodes[i], *root;
        if (t->op && (t->op->flags & FO_VIEW)) {
            t->plan.data_of = t->in[0]->plan.data_of;
            t->plan.grad_of = t->in[0]->plan.grad_of;
        }
        root = t->plan.data_of;
        if (t->plan.is_output)
            root->plan.last = n, root->plan.until = train ? 2 * n : -1, root->plan.is_output = 1;
        if (!train)
            t->plan.needs_grad = 0;
        root->plan.last = FO__MAX(root->plan.last, i);
        for (k = 0; k < t->n_in; k++) {
            fo_tensor *in = t->in[k]->plan.data_of;
            in->plan.last = FO__MAX(in->plan.last, i);
            if (t->plan.needs_grad && (t->op->flags & FO_READS_INPUT))
                in->plan.until = FO__MAX(in->plan.until, 2 * n - 1 - i);
        }
        if (t->plan.needs_grad && t->op && (t->op->flags & FO_READS_OUTPUT))
            root->plan.until = FO__MAX(root->plan.until, 2 * n - 1 - i);
    }
    for (i = 0; i < n; i++) { /* an op may write over an input that nobody reads afterwards */
        fo_tensor *t = tape->nodes[i], *in;
        if (t->op == NULL || !(t->op->flags & FO_IN_PLACE) || t->plan.data_of != t)
            continue;
        in = t->in[0]->plan.data_of;
        if (in->plan.param_at < 0 && in->plan.last == i && in->plan.until < 0 && in->op &&
            in->count == t->count) {
            int j;
            in->plan.last  = t->plan.last;
            in->plan.until = t->plan.until;
            for (j = i; j < n; j++)
                if (tape->nodes[j]->plan.data_of == t)
                    tape->nodes[j]->plan.data_of = in;
        }
    }
}

/* Spans of data (pass 0: kept, pass 1: scratch) and, in the scratch pass, of gradients. */
static void fo__plan_pool(fo_tape *tape, fo__interval *span, int kept, int64_t *size) {
    int n = tape->count, used = 0, i, k;
    *size = 0;
    for (i = 0; i < n; i++) {
        fo_tensor *t = tape->nodes[i];
        if (t->plan.param_at >= 0 || t->plan.data_of != t)
            continue;
        t->plan.kept = t->plan.until >= 0;
        if (t->plan.kept != kept)
            continue;
        span[used].size  = (t->count + 15) / 16 * 16;
        span[used].birth = t->op ? i : -1; /* inputs are filled before the first op */
        span[used].death = kept ? t->plan.until : t->plan.last;
        fo__place(span, used, size);
        t->plan.data_at = span[used++].at;
    }
    for (i = n - 1; i >= 0 && !kept; i--) {
        fo_tensor *t = tape->nodes[i];
        if (t->plan.param_at >= 0 || t->plan.grad_of != t || !t->plan.needs_grad)
            continue;
        span[used].size  = (t->count + 15) / 16 * 16;
        span[used].birth = t->plan.is_output ? n : 2 * n - 1;
        span[used].death = t->op ? 2 * n - 1 - i : 2 * n; /* the caller reads those of inputs */
        for (k = i + 1; k < n; k++) { /* born where the last reader of the value is undone */
            int j;
            for (j = 0; j < tape->nodes[k]->n_in; j++)
                if (tape->nodes[k]->in[j]->plan.grad_of == t)
                    span[used].birth = FO__MIN(span[used].birth, 2 * n - 1 - k);
        }
        fo__place(span, used, size);
        t->plan.grad_at = span[used++].at;
    }
}

/* Offsets only; fo__tape_bind turns them into pointers. */
static fo_result fo__tape_layout(fo_tape *tape, int train) {
    fo__interval *span;
    if (tape == NULL || tape->failed)
        return tape ? fo__fail(tape->fo, FO_ERR_ARGUMENT, "a tape cannot be planned after an op "
                               "failed to record") : FO_ERR_ARGUMENT;
    span = (fo__interval *)fo__alloc(tape->fo, fo__times(2 * tape->count + 1, sizeof *span));
    if (span == NULL)
        return FO_ERR_MEMORY;
    tape->planned = 1;
    tape->train   = train;
    fo__plan_lifetimes(tape, train);
    fo__plan_pool(tape, span, 1, &tape->kept_size);
    fo__plan_pool(tape, span, 0, &tape->scratch_size);
    fo__free(tape->fo, span);
    return FO_OK;
}

static void fo__tape_bind(fo_tape *tape, fo_real *values, fo_real *grads, fo_real *kept,
                          fo_real *scratch) {
    int i;
    for (i = 0; i < tape->count; i++) {
        fo_tensor *t = tape->nodes[i], *d = t->plan.data_of, *g = t->plan.grad_of;
        if (d->plan.param_at >= 0) { /* a parameter, or a view of one */
            t->data = values + d->plan.param_at;
            t->grad = tape->train ? grads + d->plan.param_at : NULL;
        } else {
            t->data = (d->plan.kept ? kept : scratch) + d->plan.data_at;
            t->grad = g->plan.grad_at >= 0 ? scratch + g->plan.grad_at : NULL;
        }
    }
}

/* First values, each a function of (seed, its name's place in the block). */
static void fo__params_init(const fo__params *params, uint64_t seed, fo_real *values) {
    int     i;
    int64_t j;
    for (i = 0; i < params->count; i++) {
        const fo__param *p = &params->list[i];
        fo_real         *v = values + p->info.offset;
        if (p->init.kind == FO_INIT_NORMAL)
            fo_random_normal(seed, FO__STREAM_INIT + (uint64_t)i, 0, p->info.count, v);
        else if (p->init.kind == FO_INIT_UNIFORM)
            fo_random_uniform(seed, FO__STREAM_INIT + (uint64_t)i, 0, p->info.count, v);
        for (j = 0; j < p->info.count; j++)
            v[j] = (fo_real)(p->init.kind == FO_INIT_CONSTANT ? p->init.scale
                             : p->init.kind == FO_INIT_NORMAL ? p->init.scale * (double)v[j]
                                                 : p->init.scale * (2 * (double)v[j] - 1));
    }
}

fo_result fo_tape_plan(fo_tape *tape, int train) {
    fo_real *block;
    int64_t  params;
    if (tape == NULL)
        return FO_ERR_ARGUMENT;
    if (tape->planned)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT, "fo_tape_plan was called twice on one tape");
    if (fo__tape_layout(tape, train) != FO_OK)
        return tape->fo->failed;
    params = (tape->own.size + 15) / 16 * 16;
    block  = (fo_real *)fo__arena_alloc(
        &tape->arena, fo__times(2 * params + tape->kept_size + tape->scratch_size + 16,
                                sizeof *block));
    if (block == NULL) {
        tape->planned = 0;
        return FO_ERR_MEMORY;
    }
    fo__params_init(&tape->own, tape->fo->desc.seed, block);
    fo__tape_bind(tape, block, block + params, block + 2 * params,
                  block + 2 * params + tape->kept_size);
    return FO_OK;
}

/* ---- running ------------------------------------------------------------------------------- */

typedef struct fo__op_call {
    const fo_tensor *out;
    void (*run)(const fo_tensor *out, int64_t begin, int64_t end);
} fo__op_call;

static void fo__op_range(void *arg, int64_t begin, int64_t end) {
    const fo__op_call *call = (const fo__op_call *)arg;
    call->run(call->out, begin, end);
}

static void fo__op_run(const fo_tensor *out,
                       void (*run)(const fo_tensor *out, int64_t begin, int64_t end)) {
    fo__op_call call;
    call.out = out;
    call.run = run;
    if (out->op->flags & FO_ELEMENTWISE)
        fo_parallel_for(out->tape->fo, out->count, 8192, fo__op_range, &call);
    else
        run(out, 0, out->count);
}

fo_result fo_forward(fo_tape *tape) {
    int i;
    if (tape == NULL || tape->fo->failed != FO_OK)
        return tape ? tape->fo->failed : FO_ERR_ARGUMENT;
    if (!tape->planned)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT, "fo_forward before fo_tape_plan");
    for (i = 0; i < tape->count && tape->fo->failed == FO_OK; i++) {
        const fo_tensor *t = tape->nodes[i];
        if (t->op && !(t->op->flags & FO_VIEW))
            fo__op_run(t, t->op->forward);
    }
    return tape->fo->failed;
}

/* Before op t is undone: which of its inputs' gradients are written for the first time? */
static void fo__open_gradients(fo_tensor *t) {
    int k;
    t->fresh = 0;
    for (k = 0; k < t->n_in; k++) {
        fo_tensor *in = t->in[k], *root = in->plan.grad_of;
        if (in->grad == NULL || root->plan.written)
            continue;
        root->plan.written = 1;
        if (t->op->flags & FO_SETS_FRESH)
            t->fresh |= 1u << k;
        else
            memset(in->grad, 0, (size_t)in->count * sizeof *in->grad);
    }
}

fo_result fo_backward(fo_tape *tape, fo_tensor *out, const fo_real *grad) {
    int i;
    if (tape == NULL || out == NULL || tape->fo->failed != FO_OK)
        return tape && tape->fo->failed ? tape->fo->failed : FO_ERR_ARGUMENT;
    if (!tape->planned || !tape->train || out->grad == NULL || !out->plan.is_output)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT,
                        "fo_backward needs a tape planned with train = 1 and an fo_output that "
                        "depends on a parameter or on an input with needs_grad");
    for (i = 0; i < tape->count; i++)
        tape->nodes[i]->plan.written = 0;
    if (grad)
        memcpy(out->grad, grad, (size_t)out->count * sizeof *grad);
    out->plan.grad_of->plan.written = 1;
    for (i = tape->count - 1; i >= 0 && tape->fo->failed == FO_OK; i--) {
        fo_tensor *t = tape->nodes[i];
        if (t->op && t->grad && t->plan.grad_of->plan.written && !(t->op->flags & FO_VIEW)) {
            fo__open_gradients(t);
            fo__op_run(t, t->op->backward);
        }
    }
    for (i = 0; i < tape->count; i++) { /* leaves that the loss does not depend on */
        fo_tensor *t = tape->nodes[i];
        if (t->op == NULL && t->grad && !t->plan.written)
            memset(t->grad, 0, (size_t)t->count * sizeof *t->grad);
    }
    return tape->fo->failed;
}

/* ================================================================================================
   >>ops           one block an op: shape, forward, backward; one row in the table at the end

   Letters    x, y, z inputs and output; dx, dy, dz their gradients; p the period of a broadcast
   Callers    the tape; users reach ops by the functions of >>api-ops
   Convention backward adds, except where an op says FO_SETS_FRESH and its bit is set
   ============================================================================================= */
#define FO__K(out) ((out)->tape->fo->kernels)

static fo_result fo__like_first(fo_tensor *out) {
    out->rank = out->in[0]->rank;
    memcpy(out->dim, out->in[0]->dim, sizeof out->dim);
    return FO_OK;
}

static fo_result fo__two_dims(fo_tensor *out, int64_t rows, int64_t columns) {
    out->rank   = columns ? 2 : 1;
    out->dim[0] = rows;
    out->dim[1] = columns;
    return FO_OK;
}

static fo_result fo__bad_shapes(const fo_tensor *out, const char *why) {
    char a[96], b[96] = "";
    if (out->n_in > 1)
        fo__dims(b, out->in[1]->rank, out->in[1]->dim);
    return fo__fail(out->tape->fo, FO_ERR_SHAPE, "%s%s of %s%s%s: %s", "fo_", out->op->name,
                    fo__dims(a, out->in[0]->rank, out->in[0]->dim), *b ? " and " : "", b, why);
}

/* ---- add, sub, mul: z = x (+,-,*) y, where y may repeat ------------------------------------- */

static fo_result fo__binary_shape(fo_tensor *out) {
    const fo_tensor *x = out->in[0], *y = out->in[1];
    int              i, shift = x->rank - y->rank;
    for (i = 0; i < y->rank && y->count != 1; i++)
        if (shift < 0 || x->dim[i + shift] != y->dim[i])
            return fo__bad_shapes(out, "the second must have the shape of the first, or of its "
                                       "last dimensions, or be one number");
    return fo__like_first(out);
}

typedef void (*fo__binary_fn)(int64_t n, const fo_real *x, const fo_real *y, fo_real *z);

/* Walks [begin,end) in runs over which y does not wrap around. */
static void fo__binary(const fo_tensor *out, int64_t begin, int64_t end, fo__binary_fn fn) {
    const fo_tensor *x = out->in[0], *y = out->in[1];
    int64_t          i, run, p = y->count;
    if (p == 1 && out->count > 1) {
        fo_real same[64];
        for (i = 0; i < 64; i++)
            same[i] = y->data[0];
        for (i = begin; i < end; i += run) {
            run = FO__MIN(64, end - i);
            fn(run, x->data + i, same, out->data + i);
        }
        return;
    }
    for (i = begin; i < end; i += run) {
        run = FO__MIN(p - i % p, end - i);
        fn(run, x->data + i, y->data + i % p, out->data + i);
    }
}

/* dy of z = x + sign y, or of z = x*y when x is given. A repeated y sums over its copies: one
   caller does the whole sum, so that its order is fixed. */
static void fo__binary_dy(const fo_tensor *out, int64_t begin, int64_t end, fo_real sign,
                          const fo_real *x) {
    const fo__kernels *kern = FO__K(out);
    const fo_real     *dz = out->grad;
    fo_real           *dy = out->in[1]->grad;
    int64_t            i, p = out->in[1]->count;
    if (p == out->count) {
        if (x)
            kern->muladd(end - begin, x + begin, dz + begin, dy + begin);
        else
            kern->axpy(end - begin, sign, dz + begin, dy + begin);
    } else if (begin == 0) {
        if (p == 1)
            dy[0] += (fo_real)(x ? kern->dot(out->count, x, dz) : sign * kern->sum(out->count, dz));
        for (i = 0; i < out->count && p > 1; i += p) {
            if (x)
                kern->muladd(p, x + i, dz + i, dy);
            else
                kern->axpy(p, sign, dz + i, dy);
        }
    }
}

static void fo__add_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    fo__binary(out, begin, end, FO__K(out)->add);
}

static void fo__add_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    if (out->in[0]->grad)
        FO__K(out)->axpy(end - begin, 1, out->grad + begin, out->in[0]->grad + begin);
    if (out->in[1]->grad)
        fo__binary_dy(out, begin, end, 1, NULL);
}

static void fo__sub_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    fo__binary(out, begin, end, FO__K(out)->sub);
}

static void fo__sub_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    if (out->in[0]->grad)
        FO__K(out)->axpy(end - begin, 1, out->grad + begin, out->in[0]->grad + begin);
    if (out->in[1]->grad)
        fo__binary_dy(out, begin, end, -1, NULL);
}

static void fo__mul_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    fo__binary(out, begin, end, FO__K(out)->mul);
}

static void fo__mul_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *x = out->in[0], *y = out->in[1];
    int64_t          i, p = y->count;
    if (x->grad) /* dx = dz * y */
        for (i = begin; i < end; i++)
            x->grad[i] += out->grad[i] * y->data[p == out->count ? i : i % p];
    if (y->grad)
        fo__binary_dy(out, begin, end, 1, x->data);
}

/* ---- unary elementwise ---------------------------------------------------------------------- */

static fo_real fo__number(const fo_tensor *out) { return *(const fo_real *)out->args; }

static void fo__scale_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->scale(end - begin, fo__number(out), out->in[0]->data + begin, out->data + begin);
}

static void fo__scale_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->axpy(end - begin, fo__number(out), out->grad + begin, out->in[0]->grad + begin);
}

static void fo__exp_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->exp(end - begin, out->in[0]->data + begin, out->data + begin);
}

static void fo__exp_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->muladd(end - begin, out->data + begin, out->grad + begin,
                       out->in[0]->grad + begin); /* dx = dy exp(x) */
}

static void fo__log_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->log(end - begin, out->in[0]->data + begin, out->data + begin);
}

static void fo__log_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t i;
    for (i = begin; i < end; i++)
        out->in[0]->grad[i] += out->grad[i] / out->in[0]->data[i];
}

static void fo__tanh_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->tanh(end - begin, out->in[0]->data + begin, out->data + begin);
}

static void fo__tanh_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->tanh_grad(end - begin, out->data + begin, out->grad + begin,
                          out->in[0]->grad + begin); /* dx = dy (1 - y^2) */
}

static void fo__sigmoid_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->sigmoid(end - begin, out->in[0]->data + begin, out->data + begin);
}

static void fo__sigmoid_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->sigmoid_grad(end - begin, out->data + begin, out->grad + begin,
                             out->in[0]->grad + begin); /* dx = dy y (1 - y) */
}

static void fo__softplus_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->softplus(end - begin, out->in[0]->data + begin, out->data + begin);
}

static void fo__softplus_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    fo_real y[64]; /* dx = dy sigmoid(x) */
    int64_t i, run;
    for (i = begin; i < end; i += run) {
        run = FO__MIN(64, end - i);
        FO__K(out)->sigmoid(run, out->in[0]->data + i, y);
        FO__K(out)->muladd(run, y, out->grad + i, out->in[0]->grad + i);
    }
}

/* relu is leaky_relu with slope 0. The sign of y tells the sign of x, so x may be overwritten. */
static void fo__leaky_relu_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->leaky(end - begin, fo__number(out), out->in[0]->data + begin, out->data + begin);
}

static void fo__leaky_relu_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->leaky_grad(end - begin, fo__number(out), out->data + begin, out->grad + begin,
                           out->in[0]->grad + begin);
}

/* ---- sum over everything but the first `keep` dimensions; mean is sum times a constant -------- */

static int64_t fo__row(const fo_tensor *t) { return t->count / t->dim[0]; }

static fo_result fo__sum_shape(fo_tensor *out) {
    int keep = *(const int *)out->args;
    return fo__two_dims(out, keep ? out->in[0]->dim[0] : 1, 0);
}

static void fo__sum_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t i, n = out->in[0]->count / out->count;
    for (i = begin; i < end; i++)
        out->data[i] = (fo_real)FO__K(out)->sum(n, out->in[0]->data + i * n);
}

static void fo__sum_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t i, j, n = out->in[0]->count / out->count;
    for (i = begin; i < end; i++)
        for (j = 0; j < n; j++)
            out->in[0]->grad[i * n + j] += out->grad[i];
}

/* ---- matmul: C[M,N] = A[M,K] B[K,N]; linear: y[B,O] = x[B,I] w[O,I]^T + b[O] ------------------ */

static fo_result fo__matmul_shape(fo_tensor *out) {
    const fo_tensor *a = out->in[0], *b = out->in[1];
    if (a->rank != 2 || b->rank != 2 || a->dim[1] != b->dim[0])
        return fo__bad_shapes(out, "[M,K] and [K,N] are needed");
    return fo__two_dims(out, a->dim[0], b->dim[1]);
}

static void fo__matmul_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *a = out->in[0], *b = out->in[1];
    (void)begin, (void)end;
    fo__gemm(out->tape->fo, out->dim[0], out->dim[1], a->dim[1], a->data, a->dim[1], 1, b->data,
             b->dim[1], 1, out->data, out->dim[1], NULL, 0);
}

static void fo__matmul_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *a = out->in[0], *b = out->in[1];
    int64_t          m = out->dim[0], n = out->dim[1], k = a->dim[1];
    (void)begin, (void)end;
    if (a->grad) /* dA = dC B^T */
        fo__gemm(out->tape->fo, m, k, n, out->grad, n, 1, b->data, 1, n, a->grad, k, NULL,
                 !(out->fresh & 1));
    if (b->grad) /* dB = A^T dC */
        fo__gemm(out->tape->fo, k, n, m, a->data, 1, k, out->grad, n, 1, b->grad, n, NULL,
                 !(out->fresh & 2));
}

static fo_result fo__linear_shape(fo_tensor *out) {
    const fo_tensor *x = out->in[0], *w = out->in[1];
    if (x->rank != 2 || w->rank != 2 || x->dim[1] != w->dim[1] ||
        (out->n_in == 3 && out->in[2]->count != w->dim[0]))
        return fo__bad_shapes(out, "x[B,I], w[O,I] and b[O] are needed");
    return fo__two_dims(out, x->dim[0], w->dim[0]);
}

static void fo__linear_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *x = out->in[0], *w = out->in[1];
    int64_t          i = w->dim[1], o = w->dim[0];
    (void)begin, (void)end;
    fo__gemm(out->tape->fo, x->dim[0], o, i, x->data, i, 1, w->data, 1, i, out->data, o,
             out->n_in == 3 ? out->in[2]->data : NULL, 0);
}

static void fo__linear_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *x = out->in[0], *w = out->in[1];
    int64_t          r, rows = x->dim[0], i = w->dim[1], o = w->dim[0];
    (void)begin, (void)end;
    if (x->grad) /* dx = dy w */
        fo__gemm(out->tape->fo, rows, i, o, out->grad, o, 1, w->data, i, 1, x->grad, i, NULL,
                 !(out->fresh & 1));
    if (w->grad) /* dw = dy^T x */
        fo__gemm(out->tape->fo, o, i, rows, out->grad, 1, o, x->data, i, 1, w->grad, i, NULL,
                 !(out->fresh & 2));
    if (out->n_in == 3 && out->in[2]->grad) { /* db = column sums of dy */
        fo_real *db = out->in[2]->grad;
        if (out->fresh & 4)
            memset(db, 0, (size_t)o * sizeof *db);
        for (r = 0; r < rows; r++)
            FO__K(out)->axpy(o, 1, out->grad + r * o, db);
    }
}

/* ---- gather, scatter: one index list for every row -------------------------------------------- */

typedef struct fo__index_args { int n, width; } fo__index_args; /* n indices follow */

static const int *fo__indices(const fo_tensor *out) {
    return (const int *)((const fo__index_args *)out->args + 1);
}

static fo_tensor *fo__apply_index(fo_tensor *a, const fo_op *op, const int *index, int n,
                                  int width) {
    fo__index_args *args;
    fo_tensor      *out;
    size_t          size;
    int             i, j;
    if (a == NULL || index == NULL || n < 1)
        return NULL;
    size = sizeof *args + (size_t)n * sizeof(int);
    for (i = 0; i < n; i++)
        if (index[i] < (op->name[0] == 'g' ? -1 : 0) || index[i] >= width) {
            fo__fail(a->tape->fo, FO_ERR_ARGUMENT, "fo_%s: index[%d] is %d, but a row has %d "
                     "elements", op->name, i, index[i], width);
            return NULL;
        }
    args = (fo__index_args *)fo__arena_alloc(&a->tape->arena, size + (size_t)width);
    if (args == NULL) {
        a->tape->failed = 1;
        return NULL;
    }
    args->n     = n;
    args->width = width;
    memcpy(args + 1, index, (size_t)n * sizeof(int));
    for (i = 0, j = -1; i < n && op->name[0] == 's'; i++) {
        char *seen = (char *)args + size + index[i];
        j          = *seen ? index[i] : j;
        *seen      = 1;
    }
    if (j >= 0) {
        fo__fail(a->tape->fo, FO_ERR_ARGUMENT, "fo_scatter: index %d is used twice", j);
        return NULL;
    }
    out = fo_apply(a->tape, op, &a, 1, args, size);
    return out;
}

static fo_result fo__gather_shape(fo_tensor *out) {
    return fo__two_dims(out, out->in[0]->dim[0], ((const fo__index_args *)out->args)->n);
}

static void fo__gather_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    const int *index = fo__indices(out);
    int64_t    r, j, n = out->dim[1], w = fo__row(out->in[0]);
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++)
        for (j = 0; j < n; j++)
            out->data[r * n + j] = index[j] < 0 ? 0 : out->in[0]->data[r * w + index[j]];
}

static void fo__gather_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const int *index = fo__indices(out);
    int64_t    r, j, n = out->dim[1], w = fo__row(out->in[0]);
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++)
        for (j = 0; j < n; j++)
            if (index[j] >= 0)
                out->in[0]->grad[r * w + index[j]] += out->grad[r * n + j];
}

static fo_result fo__scatter_shape(fo_tensor *out) {
    const fo__index_args *args = (const fo__index_args *)out->args;
    if (fo__row(out->in[0]) != args->n)
        return fo__bad_shapes(out, "as many indices as elements in a row are needed");
    return fo__two_dims(out, out->in[0]->dim[0], args->width);
}

static void fo__scatter_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    const int *index = fo__indices(out);
    int64_t    r, j, w = out->dim[1], n = fo__row(out->in[0]);
    (void)begin, (void)end;
    memset(out->data, 0, (size_t)out->count * sizeof *out->data);
    for (r = 0; r < out->dim[0]; r++)
        for (j = 0; j < n; j++)
            out->data[r * w + index[j]] = out->in[0]->data[r * n + j];
}

static void fo__scatter_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const int *index = fo__indices(out);
    int64_t    r, j, w = out->dim[1], n = fo__row(out->in[0]);
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++)
        for (j = 0; j < n; j++)
            out->in[0]->grad[r * n + j] += out->grad[r * w + index[j]];
}

/* ---- concat and slice along dimension 1: a row of z is a row of x, then a row of y ------------ */

static fo_result fo__concat_shape(fo_tensor *out) {
    const fo_tensor *x = out->in[0], *y = out->in[1];
    int              i;
    for (i = 0; i < x->rank; i++)
        if (x->rank < 2 || y->rank != x->rank || (i != 1 && x->dim[i] != y->dim[i]))
            return fo__bad_shapes(out, "all dimensions but the second must agree");
    fo__like_first(out);
    out->dim[1] += y->dim[1];
    return FO_OK;
}

static void fo__concat_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *x = out->in[0], *y = out->in[1];
    int64_t          r, nx = fo__row(x), ny = fo__row(y);
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++) {
        memcpy(out->data + r * (nx + ny), x->data + r * nx, (size_t)nx * sizeof(fo_real));
        memcpy(out->data + r * (nx + ny) + nx, y->data + r * ny, (size_t)ny * sizeof(fo_real));
    }
}

static void fo__concat_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *x = out->in[0], *y = out->in[1];
    int64_t          r, nx = fo__row(x), ny = fo__row(y);
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++) { /* either half may need no gradient: keep the place */
        if (x->grad)
            FO__K(out)->axpy(nx, 1, out->grad + r * (nx + ny), x->grad + r * nx);
        if (y->grad)
            FO__K(out)->axpy(ny, 1, out->grad + r * (nx + ny) + nx, y->grad + r * ny);
    }
}

typedef struct fo__slice_args { int64_t begin, length; } fo__slice_args;

static fo_result fo__slice_shape(fo_tensor *out) {
    const fo__slice_args *args = (const fo__slice_args *)out->args;
    const fo_tensor      *x    = out->in[0];
    if (x->rank < 2 || args->begin < 0 || args->length < 1 || args->begin > x->dim[1] ||
        args->length > x->dim[1] - args->begin)
        return fo__bad_shapes(out, "the slice reaches outside dimension 1");
    fo__like_first(out);
    out->dim[1] = args->length;
    return FO_OK;
}

static void fo__slice_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *x = out->in[0];
    int64_t          r, n = fo__row(out), w = fo__row(x), inner = w / x->dim[1];
    int64_t          at = ((const fo__slice_args *)out->args)->begin * inner;
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++)
        memcpy(out->data + r * n, x->data + r * w + at, (size_t)n * sizeof(fo_real));
}

static void fo__slice_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *x = out->in[0];
    int64_t          r, n = fo__row(out), w = fo__row(x), inner = w / x->dim[1];
    int64_t          at = ((const fo__slice_args *)out->args)->begin * inner;
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++)
        FO__K(out)->axpy(n, 1, out->grad + r * n, x->grad + r * w + at);
}

/* ---- reshape: another name for the same numbers ----------------------------------------------- */

typedef struct fo__reshape_args { int rank; int64_t dim[FO_MAX_RANK]; } fo__reshape_args;

static fo_result fo__reshape_shape(fo_tensor *out) {
    const fo__reshape_args *args  = (const fo__reshape_args *)out->args;
    int64_t                 count = 1;
    int                     i;
    for (i = 0; i < args->rank; i++) {
        out->dim[i] = args->dim[i];
        count *= args->dim[i];
    }
    out->rank = args->rank;
    if (count != out->in[0]->count)
        return fo__bad_shapes(out, "the new shape has another number of elements");
    return FO_OK;
}

#define fo__reshape_forward NULL
#define fo__reshape_backward NULL

/* ---- the table: name, shape function, what it promises ---------------------------------------- */

#define FO__OPS(X)                                                                                 \
    X(add, binary, FO_ELEMENTWISE | FO_IN_PLACE)                                                   \
    X(sub, binary, FO_ELEMENTWISE | FO_IN_PLACE)                                                   \
    X(mul, binary, FO_ELEMENTWISE | FO_READS_INPUT)                                                \
    X(scale, first, FO_ELEMENTWISE | FO_IN_PLACE)                                                  \
    X(exp, first, FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT)                                  \
    X(log, first, FO_ELEMENTWISE | FO_READS_INPUT)                                                 \
    X(tanh, first, FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT)                                 \
    X(sigmoid, first, FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT)                              \
    X(softplus, first, FO_ELEMENTWISE | FO_READS_INPUT)                                            \
    X(leaky_relu, first, FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT)                           \
    X(sum, sum, FO_ELEMENTWISE)                                                                    \
    X(matmul, matmul, FO_READS_INPUT | FO_SETS_FRESH)                                              \
    X(linear, linear, FO_READS_INPUT | FO_SETS_FRESH)                                              \
    X(gather, gather, 0)                                                                           \
    X(scatter, scatter, 0)                                                                         \
    X(concat, concat, 0)                                                                           \
    X(slice, slice, 0)                                                                             \
    X(reshape, reshape, FO_VIEW)

#define fo__first_shape fo__like_first
enum {
#define FO__ENUM(name, shape, flags) FO__OP_##name,
    FO__OPS(FO__ENUM)
#undef FO__ENUM
    FO__OP_COUNT
};
static const fo_op fo__op[FO__OP_COUNT] = {
#define FO__ROW(name, shape, flags)                                                                \
    {#name, flags, fo__##shape##_shape, fo__##name##_forward, fo__##name##_backward},
    FO__OPS(FO__ROW)
#undef FO__ROW
};

static fo_tensor *fo__apply1(int op, fo_tensor *a, const void *args, size_t size) {
    return a ? fo_apply(a->tape, &fo__op[op], &a, 1, args, size) : NULL;
}

static fo_tensor *fo__apply2(int op, fo_tensor *a, fo_tensor *b) {
    fo_tensor *in[2];
    in[0] = a, in[1] = b;
    return a && b ? fo_apply(a->tape, &fo__op[op], in, 2, NULL, 0) : NULL;
}

fo_tensor *fo_add(fo_tensor *a, fo_tensor *b) { return fo__apply2(FO__OP_add, a, b); }
fo_tensor *fo_sub(fo_tensor *a, fo_tensor *b) { return fo__apply2(FO__OP_sub, a, b); }
fo_tensor *fo_mul(fo_tensor *a, fo_tensor *b) { return fo__apply2(FO__OP_mul, a, b); }
fo_tensor *fo_matmul(fo_tensor *a, fo_tensor *b) { return fo__apply2(FO__OP_matmul, a, b); }
fo_tensor *fo_concat(fo_tensor *a, fo_tensor *b) { return fo__apply2(FO__OP_concat, a, b); }
fo_tensor *fo_exp(fo_tensor *a) { return fo__apply1(FO__OP_exp, a, NULL, 0); }
fo_tensor *fo_log(fo_tensor *a) { return fo__apply1(FO__OP_log, a, NULL, 0); }
fo_tensor *fo_tanh(fo_tensor *a) { return fo__apply1(FO__OP_tanh, a, NULL, 0); }
fo_tensor *fo_sigmoid(fo_tensor *a) { return fo__apply1(FO__OP_sigmoid, a, NULL, 0); }
fo_tensor *fo_softplus(fo_tensor *a) { return fo__apply1(FO__OP_softplus, a, NULL, 0); }
fo_tensor *fo_relu(fo_tensor *a) { return fo_leaky_relu(a, 0); }

fo_tensor *fo_scale(fo_tensor *a, double k) {
    fo_real number = (fo_real)k;
    return fo__apply1(FO__OP_scale, a, &number, sizeof number);
}

fo_tensor *fo_leaky_relu(fo_tensor *a, double slope) {
    fo_real number = (fo_real)slope;
    if (a && !(slope >= 0)) {
        fo__fail(a->tape->fo, FO_ERR_ARGUMENT, "fo_leaky_relu: the slope is %g: it must not be "
                 "negative", slope);
        return NULL;
    }
    return fo__apply1(FO__OP_leaky_relu, a, &number, sizeof number);
}

fo_tensor *fo_sum(fo_tensor *a, int keep) { return fo__apply1(FO__OP_sum, a, &keep, sizeof keep); }

fo_tensor *fo_mean(fo_tensor *a, int keep) {
    fo_tensor *sum = fo_sum(a, keep);
    return sum ? fo_scale(sum, (double)sum->count / (double)a->count) : NULL;
}

fo_tensor *fo_linear(fo_tensor *x, fo_tensor *w, fo_tensor *b) {
    fo_tensor *in[3];
    in[0] = x, in[1] = w, in[2] = b;
    return x && w ? fo_apply(x->tape, &fo__op[FO__OP_linear], in, b ? 3 : 2, NULL, 0) : NULL;
}

fo_tensor *fo_gather(fo_tensor *a, const int *index, int n) {
    return fo__apply_index(a, &fo__op[FO__OP_gather], index, n, a ? (int)fo__row(a) : 0);
}

fo_tensor *fo_scatter(fo_tensor *a, const int *index, int width) {
    return fo__apply_index(a, &fo__op[FO__OP_scatter], index, a ? (int)fo__row(a) : 0, width);
}

fo_tensor *fo_slice(fo_tensor *a, int64_t begin, int64_t length) {
    fo__slice_args args;
    args.begin  = begin;
    args.length = length;
    return fo__apply1(FO__OP_slice, a, &args, sizeof args);
}

fo_tensor *fo_reshape(fo_tensor *a, int rank, const int64_t *dim) {
    fo__reshape_args args;
    if (rank < 1 || rank > FO_MAX_RANK)
        rank = 0; /* refused by the shape function */
    memset(&args, 0, sizeof args);
    args.rank = rank;
    memcpy(args.dim, dim, (size_t)rank * sizeof *dim);
    return fo__apply1(FO__OP_reshape, a, &args, sizeof args);
}

/* ================================================================================================
   >>nets          st-networks by name
   ============================================================================================= */
typedef struct fo__net_entry { struct fo__net_entry *next; fo_net_kind kind; } fo__net_entry;
typedef struct fo__mask_entry {
    struct fo__mask_entry *next;
    const char            *name;
    fo_mask_fn             fn;
    void                  *user;
} fo__mask_entry;
struct fo__registry { fo__net_entry *nets; fo__mask_entry *masks; };

static struct fo__registry *fo__registry_of(fo_context *fo) {
    if (fo && fo->registry == NULL)
        fo->registry = (struct fo__registry *)fo__arena_alloc(&fo->arena, sizeof *fo->registry);
    return fo ? fo->registry : NULL;
}

fo_tensor *fo_activation(fo_tensor *x, const char *act) {
    if (x == NULL)
        return NULL;
    if (act == NULL || strcmp(act, "leaky_relu") == 0)
        return fo_leaky_relu(x, 0.01);
    if (strcmp(act, "relu") == 0)
        return fo_relu(x);
    if (strcmp(act, "tanh") == 0)
        return fo_tanh(x);
    if (strcmp(act, "softplus") == 0)
        return fo_softplus(x);
    fo__fail(x->tape->fo, FO_ERR_ARGUMENT, "activation '%.40s' is not known: leaky_relu, relu, "
             "tanh and softplus are", act);
    return NULL;
}

/* PyTorch's default: weight and bias uniform in +-1/sqrt(fan in). */
fo_tensor *fo_net_linear(fo_tensor *x, const char *name, int outputs, int zero) {
    fo_tensor *w, *b;
    fo_init    init;
    int64_t    dim[2];
    char       full[128];
    if (x == NULL)
        return NULL;
    dim[0] = outputs;
    dim[1] = fo__row(x);
    init   = zero ? fo_init_of(FO_INIT_CONSTANT, 0)
                  : fo_init_of(FO_INIT_UNIFORM, 1 / sqrt((double)dim[1]));
    snprintf(full, sizeof full, "%.100s.weight", name);
    w = fo_param(x->tape, full, 2, dim, init);
    snprintf(full, sizeof full, "%.100s.bias", name);
    b = fo_param(x->tape, full, 1, dim, init);
    return b ? fo_linear(x, w, b) : NULL;
}

static fo_tensor *fo__mlp_build(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    int  half, i, layer = 0;
    char name[16];
    (void)tape;
    for (half = 0; half < (net->bottleneck ? 2 : 1); half++) {
        for (i = 0; i < net->depth; i++) {
            snprintf(name, sizeof name, "%d", layer++);
            x = fo_activation(fo_net_linear(x, name, net->hidden, 0), net->act);
        }
        if (half == 0 && net->bottleneck) {
            snprintf(name, sizeof name, "%d", layer++);
            x = fo_net_linear(x, name, net->bottleneck, 0);
        }
    }
    snprintf(name, sizeof name, "%d", layer);
    return fo_net_linear(x, name, outputs, 1);
}

static const fo_net_kind fo__nets[] = {{"mlp", fo__mlp_build}};

fo_net fo_net_named(const char *kind) {
    fo_net net;
    memset(&net, 0, sizeof net);
    net.kind = kind;
    return net;
}

fo_net fo_net_mlp(int hidden, int depth, int bottleneck) {
    fo_net net     = fo_net_named("mlp");
    net.hidden     = hidden;
    net.depth      = depth;
    net.bottleneck = bottleneck;
    return net;
}

static const fo_net_kind *fo__net_find(fo_context *fo, const char *name) {
    fo__net_entry *entry = fo->registry ? fo->registry->nets : NULL;
    size_t         i;
    for (i = 0; i < sizeof fo__nets / sizeof fo__nets[0]; i++)
        if (strcmp(fo__nets[i].name, name) == 0)
            return &fo__nets[i];
    for (; entry; entry = entry->next)
        if (strcmp(entry->kind.name, name) == 0)
            return &entry->kind;
    fo__fail(fo, FO_ERR_ARGUMENT, "st-network '%.40s' is not known: use mlp, or make yours known "
             "with fo_register_net first", name);
    return NULL;
}

/* Names become words of the flow's text. */
static int fo__is_word(const char *name) {
    size_t n = name ? strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "0123456789_-") : 0;
    return n > 0 && n < 40 && name[n] == 0;
}

fo_result fo_register_net(fo_context *fo, const fo_net_kind *kind) {
    struct fo__registry *registry = fo__registry_of(fo);
    fo__net_entry       *entry;
    if (registry == NULL)
        return FO_ERR_MEMORY;
    if (kind == NULL || !fo__is_word(kind->name) || kind->build == NULL)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_register_net: a build function and a name of "
                        "letters, digits, _ and - are needed");
    entry = (fo__net_entry *)fo__arena_alloc(&fo->arena, sizeof *entry);
    if (entry == NULL || (entry->kind.name = fo__strdup(&fo->arena, kind->name)) == NULL)
        return FO_ERR_MEMORY;
    entry->kind.build = kind->build;
    entry->next       = registry->nets;
    registry->nets    = entry;
    return FO_OK;
}

/* ================================================================================================
   >>masks         condition on, change, or pass through

   A mask is a function of (shape, phase, place); the built-in ones and those of users have the
   same form. A coupling keeps the map of states, and from it index lists.
   ============================================================================================= */
static fo_state fo__two_sides(int first, int phase) {
    return first == (phase % 2 == 0) ? FO_CONDITION : FO_CHANGE;
}

#define FO__MASK(name, expression)                                                                 \
    static fo_state fo__mask_##name(void *user, fo_shape shape, int phase, int c, int y, int x) {  \
        (void)user, (void)shape, (void)c, (void)y, (void)x;                                        \
        return fo__two_sides(expression, phase);                                                   \
    }
FO__MASK(checkerboard, (y + x) % 2 == 0)
FO__MASK(channel, c < shape.c / 2)
FO__MASK(horizontal, y < shape.h / 2)
FO__MASK(vertical, x < shape.w / 2)
FO__MASK(halves, (c * shape.h + y) * shape.w + x < fo_shape_count(shape) / 2)
FO__MASK(alternating, ((c * shape.h + y) * shape.w + x) % 2 == 0)
#undef FO__MASK

static fo_state fo__mask_cycle(void *user, fo_shape shape, int phase, int c, int y, int x) {
    int top = y < shape.h / 2, left = x < shape.w / 2;
    int quadrant = top ? (left ? 0 : 1) : (left ? 3 : 2);
    (void)user, (void)c;
    return quadrant == phase % 4 ? FO_CONDITION
           : quadrant == (phase + 1) % 4 ? FO_CHANGE : FO_PASS;
}

static const struct fo__mask_row { const char *name; fo_mask_fn fn; } fo__masks[] = {
    {"checkerboard", fo__mask_checkerboard}, {"channel", fo__mask_channel},
    {"horizontal", fo__mask_horizontal},     {"vertical", fo__mask_vertical},
    {"cycle", fo__mask_cycle},               {"halves", fo__mask_halves},
    {"alternating", fo__mask_alternating},   {"random", fo__mask_halves}};

fo_mask fo_mask_named(const char *kind, int phase) {
    fo_mask mask;
    mask.kind  = kind;
    mask.phase = phase;
    mask.map   = NULL;
    return mask;
}

fo_mask fo_mask_checkerboard(int phase) { return fo_mask_named("checkerboard", phase); }
fo_mask fo_mask_cycle(int phase) { return fo_mask_named("cycle", phase); }
fo_mask fo_mask_halves(int phase) { return fo_mask_named("halves", phase); }

fo_mask fo_mask_map(const unsigned char *map) {
    fo_mask mask = fo_mask_named("map", 0);
    mask.map     = map;
    return mask;
}

fo_result fo_register_mask(fo_context *fo, const char *name, fo_mask_fn fn, void *user) {
    struct fo__registry *registry = fo__registry_of(fo);
    fo__mask_entry      *entry;
    if (registry == NULL)
        return FO_ERR_MEMORY;
    if (!fo__is_word(name) || fn == NULL)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_register_mask: a function and a name of letters, "
                        "digits, _ and - are needed");
    entry = (fo__mask_entry *)fo__arena_alloc(&fo->arena, sizeof *entry);
    if (entry == NULL || (entry->name = fo__strdup(&fo->arena, name)) == NULL)
        return FO_ERR_MEMORY;
    entry->fn       = fn;
    entry->user     = user;
    entry->next     = registry->masks;
    registry->masks = entry;
    return FO_OK;
}

/* The number below n for step i of a shuffle: 64 random bits, taken modulo n. */
static int64_t fo__below(uint64_t seed, uint64_t stream, int64_t i, int64_t n) {
    uint32_t four[4];
    fo_random_bits(seed, stream, (uint64_t)i, four);
    return (int64_t)((((uint64_t)four[1] << 32) | four[0]) % (uint64_t)n);
}

static fo_mask_fn fo__mask_find(fo_context *fo, const char *name, void **user) {
    fo__mask_entry *entry = fo->registry ? fo->registry->masks : NULL;
    size_t          i;
    *user = NULL;
    for (i = 0; i < sizeof fo__masks / sizeof fo__masks[0]; i++)
        if (strcmp(fo__masks[i].name, name) == 0)
            return fo__masks[i].fn;
    for (; entry; entry = entry->next)
        if (strcmp(entry->name, name) == 0) {
            *user = entry->user;
            return entry->fn;
        }
    fo__fail(fo, FO_ERR_ARGUMENT, "mask '%.40s' is not known: use checkerboard, channel, "
             "horizontal, vertical, cycle, halves, alternating, random or map, or make yours known "
             "with fo_register_mask first", name);
    return NULL;
}

/* How many elements are conditioned on and changed; a map that cannot work is an error. */
static fo_result fo__mask_counts(fo_context *fo, const char *kind, const unsigned char *map,
                                 int64_t n, int *condition, int *change) {
    int64_t i;
    *condition = *change = 0;
    for (i = 0; i < n; i++) {
        if (map[i] > FO_PASS)
            return fo__fail(fo, FO_ERR_ARGUMENT, "mask %s: element %lld has state %d: 0 condition, "
                            "1 change and 2 pass are possible", kind, (long long)i, map[i]);
        *condition += map[i] == FO_CONDITION;
        *change += map[i] == FO_CHANGE;
    }
    if (*condition == 0 || *change == 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "mask %s conditions on %d and changes %d of %lld "
                        "elements: both must be at least 1", kind, *condition, *change,
                        (long long)n);
    return FO_OK;
}

fo_result fo_mask_fill(fo_context *fo, fo_mask mask, fo_shape shape, unsigned char *map) {
    int64_t    n = fo_shape_count(shape), i = 0;
    int        c, y, x, condition, change;
    fo_mask_fn fn;
    void      *user;
    if (fo == NULL || map == NULL || mask.kind == NULL || mask.phase < 0 || n < 1)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_mask_fill: a kind, a phase from 0 up, a shape and "
                        "room for the states are needed");
    if (strcmp(mask.kind, "map") == 0) {
        if (mask.map == NULL)
            return fo__fail(fo, FO_ERR_ARGUMENT, "a mask of kind map needs a map");
        memcpy(map, mask.map, (size_t)n);
        return fo__mask_counts(fo, mask.kind, map, n, &condition, &change);
    }
    fn = fo__mask_find(fo, mask.kind, &user);
    if (fn == NULL)
        return fo->failed;
    for (c = 0; c < shape.c; c++)
        for (y = 0; y < shape.h; y++)
            for (x = 0; x < shape.w; x++)
                map[i++] = (unsigned char)fn(user, shape, mask.phase, c, y, x);
    for (i = n - 1; i > 0 && strcmp(mask.kind, "random") == 0; i--) { /* shuffled halves */
        uint64_t      stream = FO__STREAM_MASK + (uint64_t)(mask.phase / 2);
        int64_t       j      = fo__below(0, stream, i, i + 1);
        unsigned char swap   = map[i];
        map[i] = map[j];
        map[j] = swap;
    }
    return fo__mask_counts(fo, mask.kind, map, n, &condition, &change);
}

size_t fo_mask_print(const unsigned char *map, fo_shape shape, char *text, size_t size) {
    static const char symbol[] = "o#.";
    size_t            at = 0;
    int               c, y, x;
    for (y = 0; y < shape.h; y++)
        for (c = 0; c < shape.c; c++)
            for (x = 0; x <= shape.w; x++, at++) {
                char s = x < shape.w ? symbol[map[(c * shape.h + y) * shape.w + x] % 3]
                                     : (c + 1 < shape.c && shape.h * shape.w > 1 ? ' ' : '\n');
                if (at + 1 < size)
                    text[at] = s;
            }
    if (size)
        text[FO__MIN(at, size - 1)] = 0;
    return at;
}

/* ================================================================================================
   >>layers        encode, decode and backward of each kind of layer

   Purpose    the chain x -> z runs through one state buffer [rows,D], changed in place; a layer
              saves what it overwrites, so that backward walks the chain back bit by bit
   Invariants rows are independent; logdet of each (layer, row) accumulates in double; results do
              not depend on how rows are split over threads
   Callers    >>flow (workspaces) and >>train
   Papers     Dinh et al. 2017 (affine coupling), Dinh et al. 2014 (additive coupling)
   ============================================================================================= */
#define FO__CHUNK 256 /* elements worked on at a time, in buffers on the stack */

typedef struct fo__layer fo__layer;

/* One row of the table at the end of this room. */
typedef struct fo__layer_kind {
    const char *name;
    int         has_mask, has_alpha, affine;
    fo_result (*setup)(fo_flow *flow, fo__layer *layer);
    void (*encode)(fo_workspace *ws, int layer);
    void (*decode)(fo_workspace *ws, int layer);
    void (*backward)(fo_workspace *ws, int layer); /* NULL: nothing to learn */
} fo__layer_kind;

struct fo__layer {
    const fo__layer_kind *kind;
    const char           *text; /* its line */
    double                alpha;
    fo_mask               mask;
    fo_net                net;
    unsigned char        *map;
    int                   n_condition, n_change, outputs;
    int                  *condition_at, *change_at; /* flat indices into a row of the state */
    int                  *scale_at;                 /* which scale belongs to a changed element */
    int                   n_scale;
    int64_t               scale;                    /* offset of the learned scales */
    int64_t               mean, std, measured;      /* offsets of the standardize buffers */
};

typedef struct fo__train_state { /* what a checkpoint needs to go on */
    fo_real      *m, *v, *ema;         /* Adam's moments, moving average of the weights */
    int64_t       step, seen, skipped; /* steps, samples, steps dropped for NaN */
    fo_train_desc desc;                /* resolved; of the preset before the first step */
} fo__train_state;

struct fo_flow {
    fo__arena  arena;
    fo_context *fo;
    fo_shape   shape;
    int64_t    size; /* D */
    fo__layer *layers;
    int        n_layers, room, broken, ready;
    fo__params params, buffers;
    fo_real   *values, *buffer_values;
    char      *text;
    fo__train_state train;
};

typedef struct fo__slot { /* what a workspace holds for a layer */
    fo_tape   *tape;
    fo_tensor *x, *out;
    fo_real   *kept, *save;
    int        again; /* its activations share a block and are computed again in backward */
} fo__slot;

struct fo_workspace {
    fo__arena   arena;
    fo_context *fo;
    fo_flow    *flow;
    int         batch, train;
    int64_t     rows;    /* of the current call */
    fo__slot   *slots;
    fo_real    *scratch;
    fo_real    *values, *grads;
    fo_real    *state, *dstate; /* [batch,D] */
    fo_real    *partial;        /* [batch,n_scale]: gradients of scales, a row a sample */
    double     *terms;          /* [1+layers,batch]; while decoding: logdets of the decode */
    double      dlogdet;        /* dLoss/d(logdet of a row) */
    const fo_data *data;        /* of the current call */
    int64_t    *sample;         /* which sample sits in each row, */
    uint64_t   *noise;          /* which random stream its noise comes from, */
    uint64_t    seed;           /* of this seed */
    int         middle;         /* u = 1/2 instead of noise */
};

typedef struct fo__rows_call {
    fo_workspace *ws;
    int           layer;
    void (*fn)(fo_workspace *ws, int layer, int64_t begin, int64_t end);
} fo__rows_call;

static void fo__rows_range(void *arg, int64_t begin, int64_t end) {
    fo__rows_call *call = (fo__rows_call *)arg;
    call->fn(call->ws, call->layer, begin, end);
}

static void fo__rows(fo_workspace *ws, int layer,
                     void (*fn)(fo_workspace *ws, int layer, int64_t begin, int64_t end)) {
    fo__rows_call call;
    call.ws    = ws;
    call.layer = layer;
    call.fn    = fn;
    fo_parallel_for(ws->fo, ws->rows, 1 + 4096 / ws->flow->size, fo__rows_range, &call);
}

static double *fo__logdet(fo_workspace *ws, int layer) {
    return ws->terms + (layer + 1) * (int64_t)ws->batch;
}

static fo_real *fo__state(fo_workspace *ws, int64_t row) {
    return ws->state + row * ws->flow->size;
}

/* ---- dequantize: y = (x+u)/256, logdet = -D log 256 ------------------------------------------- */

static fo_result fo__dequantize_setup(fo_flow *flow, fo__layer *layer) {
    if (layer != flow->layers)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "dequantize must be the first layer");
    return FO_OK;
}

static void fo__dequantize_encode_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    int64_t r, i, j, n, size = ws->flow->size;
    fo_real u[FO__CHUNK];
    for (r = begin; r < end; r++) {
        fo_real *x = fo__state(ws, r);
        for (i = 0; i < size; i += n) {
            n = FO__MIN(FO__CHUNK, size - i);
            if (!ws->middle)
                fo_random_uniform(ws->seed, ws->noise[r], (uint64_t)i, n, u);
            for (j = 0; j < n; j++)
                x[i + j] = (x[i + j] + (ws->middle ? (fo_real)0.5 : u[j])) / 256;
        }
        fo__logdet(ws, layer)[r] = -(double)size * log(256.0);
    }
}

/* The middle of the pixel's cell, so that rounding gives the pixel. */
static void fo__dequantize_decode_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    int64_t r, i, size = ws->flow->size;
    for (r = begin; r < end; r++) {
        fo_real *x = fo__state(ws, r);
        for (i = 0; i < size; i++) {
            fo_real grey = x[i] * 256 - (fo_real)0.5;
            x[i] = grey < 0 ? 0 : grey > 255 ? 255 : grey;
        }
        fo__logdet(ws, layer)[r] = (double)size * log(256.0);
    }
}

static void fo__dequantize_encode(fo_workspace *ws, int layer) {
    fo__rows(ws, layer, fo__dequantize_encode_rows);
}

static void fo__dequantize_decode(fo_workspace *ws, int layer) {
    fo__rows(ws, layer, fo__dequantize_decode_rows);
}

/* ---- logit: v = 1/2 + (1-2a)(y-1/2), h = log v - log(1-v), dh/dy = (1-2a)/(v(1-v)) ------------- */

static fo_result fo__logit_setup(fo_flow *flow, fo__layer *layer) {
    if (!(layer->alpha > 0 && layer->alpha < 0.5))
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "logit alpha=%g: it must lie between 0 and 0.5; "
                        "the paper uses 0.05", layer->alpha);
    return FO_OK;
}

static void fo__logit_encode_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    const fo__kernels *kern = ws->fo->kernels;
    fo_real            squash = (fo_real)(1 - 2 * ws->flow->layers[layer].alpha);
    int64_t            r, i, j, n, size = ws->flow->size;
    fo_real            v[FO__CHUNK], w[FO__CHUNK];
    for (r = begin; r < end; r++) {
        fo_real *x   = fo__state(ws, r);
        double   sum = 0;
        for (i = 0; i < size; i += n) {
            n = FO__MIN(FO__CHUNK, size - i);
            for (j = 0; j < n; j++) {
                v[j] = (fo_real)0.5 + squash * (x[i + j] - (fo_real)0.5);
                w[j] = 1 - v[j];
            }
            kern->log(n, v, v);
            kern->log(n, w, w);
            kern->sub(n, v, w, x + i);
            sum += kern->sum(n, v) + kern->sum(n, w);
        }
        fo__logdet(ws, layer)[r] = (double)size * log((double)squash) - sum;
    }
}

static void fo__logit_decode_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    const fo__kernels *kern = ws->fo->kernels;
    fo_real            squash = (fo_real)(1 - 2 * ws->flow->layers[layer].alpha);
    int64_t            r, i, j, n, size = ws->flow->size;
    fo_real            v[FO__CHUNK], w[FO__CHUNK];
    for (r = begin; r < end; r++) {
        fo_real *x   = fo__state(ws, r);
        double   sum = 0;
        for (i = 0; i < size; i += n) {
            n = FO__MIN(FO__CHUNK, size - i);
            kern->scale(n, -1, x + i, w);
            kern->softplus(n, w, v); /* -log v */
            kern->softplus(n, x + i, w); /* -log(1-v) */
            sum += kern->sum(n, v) + kern->sum(n, w);
            kern->sigmoid(n, x + i, v);
            for (j = 0; j < n; j++)
                x[i + j] = (fo_real)0.5 + (v[j] - (fo_real)0.5) / squash;
        }
        fo__logdet(ws, layer)[r] = -(double)size * log((double)squash) - sum;
    }
}

static void fo__logit_encode(fo_workspace *ws, int layer) {
    fo__rows(ws, layer, fo__logit_encode_rows);
}

static void fo__logit_decode(fo_workspace *ws, int layer) {
    fo__rows(ws, layer, fo__logit_decode_rows);
}

/* ---- standardize: y = (x - mean)/std, logdet = -sum log std ----------------------------------- */

static fo_result fo__standardize_setup(fo_flow *flow, fo__layer *layer) {
    static const char *const name[] = {"mean", "std", "measured"};
    int64_t                  size = flow->size, one = 1;
    int64_t                 *at[3];
    int                      i;
    at[0] = &layer->mean, at[1] = &layer->std, at[2] = &layer->measured;
    for (i = 0; i < 3; i++) {
        char       full[64];
        fo__param *p;
        snprintf(full, sizeof full, "%d.%s", (int)(layer - flow->layers), name[i]);
        p = fo__param_get(flow->fo, &flow->buffers, &flow->arena, full, 1, i < 2 ? &size : &one,
                          fo_init_of(FO_INIT_CONSTANT, i == 1));
        if (p == NULL)
            return flow->fo->failed;
        *at[i] = p->info.offset;
    }
    return FO_OK;
}

static void fo__standardize_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end,
                                 int decode) {
    const fo__layer *l    = &ws->flow->layers[layer];
    const fo_real   *mean = ws->flow->buffer_values + l->mean;
    const fo_real   *std  = ws->flow->buffer_values + l->std;
    int64_t          r, i, size = ws->flow->size;
    double           sum = 0;
    for (i = 0; i < size; i++)
        sum += log((double)std[i]);
    for (r = begin; r < end; r++) {
        fo_real *x = fo__state(ws, r);
        for (i = 0; i < size; i++)
            x[i] = decode ? x[i] * std[i] + mean[i] : (x[i] - mean[i]) / std[i];
        fo__logdet(ws, layer)[r] = decode ? sum : -sum;
    }
}

static void fo__standardize_encode_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    fo__standardize_rows(ws, layer, begin, end, 0);
}

static void fo__standardize_decode_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    fo__standardize_rows(ws, layer, begin, end, 1);
}

static void fo__standardize_encode(fo_workspace *ws, int layer) {
    fo__rows(ws, layer, fo__standardize_encode_rows);
}

static void fo__standardize_decode(fo_workspace *ws, int layer) {
    fo__rows(ws, layer, fo__standardize_decode_rows);
}

/* ---- coupling: y = (x+t) exp(s), s = scale tanh(raw); additive: y = x+t ------------------------

   The st-network sees x[condition_at] and returns raw s and t of x[change_at]. It runs on all
   `batch` rows of its tape; rows past ws->rows hold numbers of earlier calls and are ignored. */

static fo_result fo__coupling_setup(fo_flow *flow, fo__layer *layer) {
    int64_t size = flow->size, dim[2], i;
    int     a = 0, b = 0, image = flow->shape.h * flow->shape.w > 1;
    char    name[64];
    layer->map = (unsigned char *)fo__arena_alloc(&flow->arena, (size_t)size);
    if (layer->map == NULL || fo_mask_fill(flow->fo, layer->mask, flow->shape, layer->map) ||
        fo__mask_counts(flow->fo, layer->mask.kind, layer->map, size, &layer->n_condition,
                        &layer->n_change))
        return flow->fo->failed;
    layer->outputs = (layer->kind->affine ? 2 : 1) * layer->n_change;
    layer->condition_at = (int *)fo__arena_alloc(
        &flow->arena, (size_t)(layer->n_condition + 2 * layer->n_change) * sizeof(int));
    if (layer->condition_at == NULL)
        return FO_ERR_MEMORY;
    layer->change_at = layer->condition_at + layer->n_condition;
    layer->scale_at  = layer->change_at + layer->n_change;
    layer->n_scale   = image ? flow->shape.c : layer->n_change;
    for (i = 0; i < size; i++) {
        if (layer->map[i] == FO_CONDITION)
            layer->condition_at[a++] = (int)i;
        if (layer->map[i] == FO_CHANGE) {
            layer->scale_at[b]    = image ? (int)i / (flow->shape.h * flow->shape.w) : b;
            layer->change_at[b++] = (int)i;
        }
    }
    if (layer->kind->affine) {
        fo__param *p;
        dim[0] = layer->n_scale;
        snprintf(name, sizeof name, "%d.scale", (int)(layer - flow->layers));
        p = fo__param_get(flow->fo, &flow->params, &flow->arena, name, 1, dim,
                          fo_init_of(FO_INIT_CONSTANT, 1));
        if (p == NULL)
            return flow->fo->failed;
        layer->scale = p->info.offset;
    }
    return FO_OK;
}

static void fo__coupling_gather(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    const fo__layer *l = &ws->flow->layers[layer];
    int64_t          r;
    int              j;
    for (r = begin; r < end; r++) {
        const fo_real *state = fo__state(ws, r);
        fo_real       *x     = ws->slots[layer].x->data + r * l->n_condition;
        for (j = 0; j < l->n_condition; j++)
            x[j] = state[l->condition_at[j]];
    }
}

/* s = scale tanh(raw) of m changed elements; the tanh stays in `th` for the gradient. */
static double fo__coupling_s(const fo_workspace *ws, const fo__layer *l, const fo_real *raw, int j,
                             int m, fo_real *th, fo_real *s) {
    const fo_real *scale = ws->values + l->scale;
    int            i;
    ws->fo->kernels->tanh(m, raw + j, th);
    for (i = 0; i < m; i++)
        s[i] = scale[l->scale_at[j + i]] * th[i];
    return ws->fo->kernels->sum(m, s);
}

static void fo__coupling_encode_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    const fo__layer *l    = &ws->flow->layers[layer];
    fo_real         *save = ws->slots[layer].save;
    fo_real          th[FO__CHUNK], s[FO__CHUNK];
    int              i, j, m, n = l->n_change;
    int64_t          r;
    for (r = begin; r < end; r++) {
        const fo_real *raw = ws->slots[layer].out->data + r * l->outputs;
        const fo_real *t   = raw + (l->kind->affine ? n : 0);
        fo_real       *x   = fo__state(ws, r);
        double         sum = 0;
        for (j = 0; j < n; j += m) {
            m = FO__MIN(FO__CHUNK, n - j);
            if (l->kind->affine) {
                sum += fo__coupling_s(ws, l, raw, j, m, th, s);
                ws->fo->kernels->exp(m, s, s);
            }
            for (i = 0; i < m; i++) {
                fo_real *at = &x[l->change_at[j + i]];
                if (save)
                    save[r * n + j + i] = *at;
                *at = l->kind->affine ? (*at + t[j + i]) * s[i] : *at + t[j + i];
            }
        }
        fo__logdet(ws, layer)[r] = sum;
    }
}

static void fo__coupling_decode_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    const fo__layer *l = &ws->flow->layers[layer];
    fo_real          th[FO__CHUNK], s[FO__CHUNK];
    int              i, j, m, n = l->n_change;
    int64_t          r;
    for (r = begin; r < end; r++) {
        const fo_real *raw = ws->slots[layer].out->data + r * l->outputs;
        const fo_real *t   = raw + (l->kind->affine ? n : 0);
        fo_real       *x   = fo__state(ws, r);
        double         sum = 0;
        for (j = 0; j < n; j += m) {
            m = FO__MIN(FO__CHUNK, n - j);
            if (l->kind->affine) {
                sum += fo__coupling_s(ws, l, raw, j, m, th, s);
                ws->fo->kernels->scale(m, -1, s, s);
                ws->fo->kernels->exp(m, s, s);
            }
            for (i = 0; i < m; i++) {
                fo_real *at = &x[l->change_at[j + i]];
                *at = (l->kind->affine ? *at * s[i] : *at) - t[j + i];
            }
        }
        fo__logdet(ws, layer)[r] = -sum;
    }
}

static void fo__coupling_encode(fo_workspace *ws, int layer) {
    fo__rows(ws, layer, fo__coupling_gather);
    fo_forward(ws->slots[layer].tape);
    fo__rows(ws, layer, fo__coupling_encode_rows);
}

static void fo__coupling_decode(fo_workspace *ws, int layer) {
    fo__rows(ws, layer, fo__coupling_gather);
    fo_forward(ws->slots[layer].tape);
    fo__rows(ws, layer, fo__coupling_decode_rows);
}

/* With dy = dLoss/dy and c = dLoss/d(logdet):
     dx = dy exp(s), dt = dx, ds = dy y + c  (y = (x+t) exp(s), logdet = sum of s)
     d raw = ds scale (1 - tanh^2), d scale = sum of ds tanh
   The state goes back from y to the saved x. */
static void fo__coupling_backward_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    const fo__layer *l     = &ws->flow->layers[layer];
    const fo__slot  *slot  = &ws->slots[layer];
    const fo_real   *scale = ws->values + l->scale;
    fo_real          th[FO__CHUNK], s[FO__CHUNK], c = (fo_real)ws->dlogdet;
    int              i, j, m, n = l->n_change, affine = l->kind->affine;
    int64_t          r;
    for (r = begin; r < end; r++) {
        const fo_real *raw  = slot->out->data + r * l->outputs;
        fo_real       *draw = slot->out->grad + r * l->outputs, *dt = draw + (affine ? n : 0);
        fo_real       *y = fo__state(ws, r), *dy = ws->dstate + r * ws->flow->size;
        fo_real       *dscale = ws->partial + r * l->n_scale;
        memset(dscale, 0, (size_t)(affine ? l->n_scale : 0) * sizeof *dscale);
        for (j = 0; j < n; j += m) {
            m = FO__MIN(FO__CHUNK, n - j);
            if (affine) {
                fo__coupling_s(ws, l, raw, j, m, th, s);
                ws->fo->kernels->exp(m, s, s);
            }
            for (i = 0; i < m; i++) {
                int at = l->change_at[j + i];
                if (affine) {
                    fo_real ds = dy[at] * y[at] + c;
                    int     k  = l->scale_at[j + i];
                    draw[j + i] = ds * scale[k] * (1 - th[i] * th[i]);
                    dscale[k] += ds * th[i];
                    dy[at] *= s[i];
                }
                dt[j + i] = dy[at];
                y[at]     = slot->save[r * n + j + i];
            }
        }
    }
}

static void fo__coupling_scatter(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    const fo__layer *l = &ws->flow->layers[layer];
    int64_t          r;
    int              j;
    for (r = begin; r < end; r++) {
        fo_real       *dstate = ws->dstate + r * ws->flow->size;
        const fo_real *dx     = ws->slots[layer].x->grad + r * l->n_condition;
        for (j = 0; j < l->n_condition; j++)
            dstate[l->condition_at[j]] += dx[j];
    }
}

static void fo__coupling_backward(fo_workspace *ws, int layer) {
    const fo__layer *l    = &ws->flow->layers[layer];
    const fo__slot  *slot = &ws->slots[layer];
    int64_t          r, rest = (ws->batch - ws->rows) * (int64_t)l->outputs;
    int              k;
    if (slot->again) { /* what it conditions on is still in the state */
        fo__rows(ws, layer, fo__coupling_gather);
        fo_forward(slot->tape);
    }
    fo__rows(ws, layer, fo__coupling_backward_rows);
    memset(slot->out->grad + ws->rows * l->outputs, 0, (size_t)rest * sizeof(fo_real));
    for (k = 0; k < l->n_scale && l->kind->affine; k++) {
        double sum = 0;
        for (r = 0; r < ws->rows; r++)
            sum += (double)ws->partial[r * l->n_scale + k];
        ws->grads[l->scale + k] = (fo_real)sum;
    }
    fo_backward(slot->tape, slot->out, NULL);
    if (slot->x->grad)
        fo__rows(ws, layer, fo__coupling_scatter);
}

static const fo__layer_kind fo__layer_kinds[] = {
    {"dequantize", 0, 0, 0, fo__dequantize_setup, fo__dequantize_encode, fo__dequantize_decode,
     NULL},
    {"logit", 0, 1, 0, fo__logit_setup, fo__logit_encode, fo__logit_decode, NULL},
    {"standardize", 0, 0, 0, fo__standardize_setup, fo__standardize_encode,
     fo__standardize_decode, NULL},
    {"coupling", 1, 0, 1, fo__coupling_setup, fo__coupling_encode, fo__coupling_decode,
     fo__coupling_backward},
    {"additive", 1, 0, 0, fo__coupling_setup, fo__coupling_encode, fo__coupling_decode,
     fo__coupling_backward}};

/* ================================================================================================
   >>flow          build, text, workspaces, scoring

   Invariants a flow's blocks are placed once, on first use, and then no layer may be added;
              layers with a mask own one tape in every workspace
   Callers    users, >>train, >>check
   Cost       scoring allocates nothing; one pass of the data per call
   ============================================================================================= */
fo_flow *fo_flow_create(fo_context *fo, fo_shape shape) {
    fo_flow *flow;
    int64_t  count = fo_shape_count(shape);
    if (fo == NULL)
        return NULL;
    if (shape.c < 1 || shape.h < 1 || shape.w < 1 || count > 1 << 24) {
        fo__fail(fo, FO_ERR_SHAPE, "a flow on samples of %dx%dx%d: 1 to 2^24 elements are possible",
                 shape.c, shape.h, shape.w);
        return NULL;
    }
    flow = (fo_flow *)fo__object(fo, sizeof *flow);
    if (flow) {
        flow->fo    = fo;
        flow->shape = shape;
        flow->size  = count;
    }
    return flow;
}

void     fo_flow_free(fo_flow *flow) { fo__object_free(flow); }
fo_shape fo_flow_shape(const fo_flow *flow) {
    fo_shape none = {0, 0, 0};
    return flow ? flow->shape : none;
}
int         fo_flow_layers(const fo_flow *flow) { return flow ? flow->n_layers : 0; }
const char *fo_flow_layer_text(const fo_flow *flow, int layer) {
    return flow && layer >= 0 && layer < flow->n_layers ? flow->layers[layer].text : NULL;
}
const unsigned char *fo_flow_mask(const fo_flow *flow, int layer) {
    return flow && layer >= 0 && layer < flow->n_layers ? flow->layers[layer].map : NULL;
}
int           fo_param_count(const fo_flow *flow) { return flow ? flow->params.count : 0; }
fo_param_info fo_param_at(const fo_flow *flow, int i) {
    fo_param_info none;
    memset(&none, 0, sizeof none);
    return flow && i >= 0 && i < flow->params.count ? flow->params.list[i].info : none;
}

/* Records layer i's st-network for a batch of rows. */
static fo_tape *fo__layer_tape(fo_context *fo, fo_flow *flow, int i, int batch, int needs_grad,
                               fo_tensor **x, fo_tensor **out) {
    fo__layer         *layer = &flow->layers[i];
    const fo_net_kind *net   = fo__net_find(flow->fo, layer->net.kind);
    fo_tape           *tape  = net ? fo_tape_create(fo) : NULL;
    int64_t            dim[2];
    char              *prefix;
    if (tape == NULL)
        return NULL;
    tape->params       = &flow->params;
    tape->params_arena = &flow->arena;
    prefix             = (char *)fo__arena_alloc(&tape->arena, 32);
    if (prefix)
        snprintf(prefix, 32, "%d.net.", i);
    tape->prefix = prefix;
    dim[0]       = batch;
    dim[1]       = layer->n_condition;
    *x           = prefix ? fo_input(tape, 2, dim, needs_grad) : NULL;
    *out         = *x ? net->build(tape, *x, layer->outputs, &layer->net) : NULL;
    if (*out && ((*out)->dim[0] != batch || fo__row(*out) != layer->outputs)) {
        char text[96];
        fo__fail(fo, FO_ERR_SHAPE, "st-network %s returned %s; [%d,%d] is needed", layer->net.kind,
                 fo__dims(text, (*out)->rank, (*out)->dim), batch, layer->outputs);
        *out = NULL;
    }
    if (*out == NULL) {
        fo__fail(fo, FO_ERR_ARGUMENT, "st-network %s could not be built", layer->net.kind);
        fo_tape_free(tape);
        return NULL;
    }
    fo_output(*out);
    return tape;
}

/* ---- layers in ------------------------------------------------------------------------------- */

/* "map:14c14x": runs of equal states, so that any map fits into the text. */
static size_t fo__map_text(const unsigned char *map, int64_t n, char *text) {
    size_t  at = 0;
    int64_t i, run;
    for (i = 0; i < n; i += run) {
        for (run = 1; i + run < n && map[i + run] == map[i];)
            run++;
        at += (size_t)snprintf(text ? text + at : NULL, text ? 24 : 0, "%lld%c", (long long)run,
                               "cxp"[map[i]]);
    }
    return at;
}

/* %g without the user's locale. */
static void fo__print_double(char *text, size_t size, double x, int digits) {
    char *comma;
    snprintf(text, size, "%.*g", digits, x);
    for (comma = text; *comma; comma++)
        if (*comma == localeconv()->decimal_point[0])
            *comma = '.';
}

static fo_result fo__layer_write(fo_flow *flow, fo__layer *layer) {
    size_t map  = layer->map && strcmp(layer->mask.kind, "map") == 0
                      ? fo__map_text(layer->map, flow->size, NULL) : 0;
    size_t size = 256 + map, at;
    char  *text = (char *)fo__arena_alloc(&flow->arena, size), number[40];
    if (text == NULL)
        return FO_ERR_MEMORY;
    at = (size_t)snprintf(text, size, "%s", layer->kind->name);
    fo__print_double(number, sizeof number, layer->alpha, 9);
    if (layer->kind->has_alpha)
        at += (size_t)snprintf(text + at, size - at, " alpha=%s", number);
    if (layer->kind->has_mask) {
        at += (size_t)snprintf(text + at, size - at, " mask=%s:", layer->mask.kind);
        if (map)
            at += fo__map_text(layer->map, flow->size, text + at);
        else
            at += (size_t)snprintf(text + at, size - at, "%d", layer->mask.phase);
        at += (size_t)snprintf(text + at, size - at, " net=%s hidden=%d", layer->net.kind,
                               layer->net.hidden);
        if (layer->net.depth != 1)
            at += (size_t)snprintf(text + at, size - at, " depth=%d", layer->net.depth);
        if (layer->net.bottleneck)
            at += (size_t)snprintf(text + at, size - at, " bottleneck=%d", layer->net.bottleneck);
        if (layer->net.act)
            snprintf(text + at, size - at, " act=%s", layer->net.act);
    }
    layer->text = text;
    return FO_OK;
}

static fo_result fo__net_resolve(fo_flow *flow, fo_net *net) {
    net->kind   = fo__strdup(&flow->arena, net->kind ? net->kind : "mlp");
    net->act    = net->act && strcmp(net->act, "leaky_relu") ? fo__strdup(&flow->arena, net->act)
                                                             : NULL;
    net->hidden = net->hidden ? net->hidden : 512;
    net->depth  = net->depth ? net->depth : 1;
    if (net->hidden < 1 || net->hidden > 1 << 16 || net->depth < 1 || net->depth > 64 ||
        net->bottleneck < 0 || net->bottleneck > 1 << 16)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "st-network hidden=%d depth=%d bottleneck=%d: "
                        "hidden and bottleneck up to 65536, depth up to 64 are possible",
                        net->hidden, net->depth, net->bottleneck);
    return net->kind ? FO_OK : FO_ERR_MEMORY;
}

static fo_result fo__add_layer(fo_flow *flow, const char *kind, double alpha, fo_mask mask,
                               fo_net net) {
    fo__layer *layers, *layer;
    size_t     k = 0;
    fo_tensor *x, *out;
    if (flow == NULL)
        return FO_ERR_ARGUMENT;
    if (flow->ready)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "%s: layers cannot be added to a flow that is in "
                        "use: build it completely first", kind);
    if (flow->broken)
        return FO_ERR_ARGUMENT;
    flow->broken = 1; /* until everything below has worked */
    layers = (fo__layer *)fo__grow(&flow->arena, flow->layers, flow->n_layers, &flow->room,
                                   sizeof *layers);
    if (layers == NULL)
        return FO_ERR_MEMORY;
    flow->layers = layers;
    layer        = &layers[flow->n_layers];
    memset(layer, 0, sizeof *layer);
    while (strcmp(fo__layer_kinds[k].name, kind) != 0)
        k++;
    layer->kind  = &fo__layer_kinds[k];
    layer->alpha = alpha;
    layer->mask  = mask;
    layer->net   = net;
    if (layer->kind->has_mask) {
        layer->mask.kind = fo__strdup(&flow->arena, mask.kind ? mask.kind : "");
        if (layer->mask.kind == NULL || fo__net_resolve(flow, &layer->net) != FO_OK)
            return flow->fo->failed;
    }
    if (layer->kind->setup(flow, layer) != FO_OK)
        return flow->fo->failed;
    if (layer->kind->has_mask) {
        fo_tape *tape = fo__layer_tape(flow->fo, flow, flow->n_layers, 1, 1, &x, &out);
        if (tape == NULL)
            return flow->fo->failed;
        fo_tape_free(tape); /* it made the parameters known */
        layer->mask.map = layer->map;
    }
    if (fo__layer_write(flow, layer) != FO_OK)
        return FO_ERR_MEMORY;
    flow->n_layers++;
    flow->broken = 0;
    return FO_OK;
}

fo_result fo_add_dequantize(fo_flow *flow) {
    return fo__add_layer(flow, "dequantize", 0, fo_mask_named(NULL, 0), fo_net_named(NULL));
}
fo_result fo_add_logit(fo_flow *flow, double alpha) {
    return fo__add_layer(flow, "logit", alpha, fo_mask_named(NULL, 0), fo_net_named(NULL));
}
fo_result fo_add_standardize(fo_flow *flow) {
    return fo__add_layer(flow, "standardize", 0, fo_mask_named(NULL, 0), fo_net_named(NULL));
}
fo_result fo_add_coupling(fo_flow *flow, fo_mask mask, fo_net net) {
    return fo__add_layer(flow, "coupling", 0, mask, net);
}
fo_result fo_add_additive(fo_flow *flow, fo_mask mask, fo_net net) {
    return fo__add_layer(flow, "additive", 0, mask, net);
}

/* ---- text in --------------------------------------------------------------------------------- */

typedef struct fo__line { /* one line of a flow's text, taken apart */
    fo_context *fo;
    int         number; /* for messages */
    char        text[512];
    double      alpha;
    fo_mask     mask;
    fo_net      net;
    unsigned char *map;
} fo__line;

static fo_result fo__line_fail(fo__line *line, const char *what, const char *word) {
    return fo__fail(line->fo, FO_ERR_FORMAT, "flow text, line %d: %s '%.60s'", line->number, what,
                    word);
}

static int fo__parse_int(const char *text, int *out) {
    char *end;
    long  value = strtol(text, &end, 10);
    *out        = (int)value;
    return end != text && *end == 0 && value >= 0 && value <= 1 << 24;
}

/* Numbers are written with a point, whatever the user's locale is. */
static int fo__parse_double(const char *text, double *out) {
    char  copy[64], *end, *point;
    snprintf(copy, sizeof copy, "%s", text);
    point = strchr(copy, '.');
    if (point)
        *point = localeconv()->decimal_point[0];
    *out = strtod(copy, &end);
    return end != copy && *end == 0;
}

/* The runs of "map:14c14x" into states. */
static fo_result fo__parse_map(fo__line *line, fo__arena *arena, const char *runs, int64_t size) {
    int64_t at = 0;
    line->map  = (unsigned char *)fo__arena_alloc(arena, (size_t)size);
    if (line->map == NULL)
        return FO_ERR_MEMORY;
    while (*runs) {
        char       *end;
        long        run   = strtol(runs, &end, 10);
        const char *state = *end ? strchr("cxp", *end) : NULL;
        if (end == runs || state == NULL || run < 1 || run > size - at)
            return fo__line_fail(line, "the map does not fit the input at", runs);
        memset(line->map + at, (int)(state - "cxp"), (size_t)run);
        at += run;
        runs = end + 1;
    }
    line->mask = fo_mask_map(line->map);
    return at == size ? FO_OK : fo__line_fail(line, "the map is too short:", "mask=map");
}

static fo_result fo__parse_word(fo__line *line, fo_flow *flow, char *word) {
    char *value = strchr(word, '='), *colon;
    int   ok    = 1;
    if (value == NULL)
        return fo__line_fail(line, "name=value is needed, not", word);
    *value++ = 0;
    if (strcmp(word, "alpha") == 0) {
        ok = fo__parse_double(value, &line->alpha);
    } else if (strcmp(word, "mask") == 0) {
        colon = strchr(value, ':');
        if (colon)
            *colon++ = 0;
        if (strcmp(value, "map") == 0 && colon)
            return fo__parse_map(line, &flow->arena, colon, flow->size);
        line->mask.kind = value;
        ok              = colon == NULL || fo__parse_int(colon, &line->mask.phase);
    } else if (strcmp(word, "net") == 0) {
        line->net.kind = value;
    } else if (strcmp(word, "act") == 0) {
        line->net.act = value;
    } else if (strcmp(word, "hidden") == 0) {
        ok = fo__parse_int(value, &line->net.hidden);
    } else if (strcmp(word, "depth") == 0) {
        ok = fo__parse_int(value, &line->net.depth);
    } else if (strcmp(word, "bottleneck") == 0) {
        ok = fo__parse_int(value, &line->net.bottleneck);
    } else {
        return fo__line_fail(line, "unknown setting", word);
    }
    return ok ? FO_OK : fo__line_fail(line, "not a number that can be used:", value);
}

/* "input 1x28x28" or "input 5". */
static fo_flow *fo__parse_input(fo__line *line, char *text) {
    fo_shape shape;
    int      n = sscanf(text, "input %dx%dx%d", &shape.c, &shape.h, &shape.w);
    if (n == 1)
        shape.h = shape.w = 1;
    if (n != 1 && n != 3) {
        fo__line_fail(line, "the first line must be 'input CxHxW' or 'input D', not", text);
        return NULL;
    }
    return fo_flow_create(line->fo, shape);
}

/* One layer, `text` without its repeat count; % stands for the repetition. */
static fo_result fo__parse_layer(fo__line *line, fo_flow *flow, char *text) {
    char  *word, *next = text;
    size_t k, n = sizeof fo__layer_kinds / sizeof fo__layer_kinds[0];
    char  *kind = NULL;
    line->alpha = 0.05;
    line->mask  = fo_mask_named("", 0);
    line->net   = fo_net_named(NULL);
    while ((word = next + strspn(next, " \t\r"))[0]) {
        next = word + strcspn(word, " \t\r");
        if (*next)
            *next++ = 0;
        if (kind == NULL)
            kind = word;
        else if (fo__parse_word(line, flow, word) != FO_OK)
            return line->fo->failed;
    }
    for (k = 0; k < n && kind; k++)
        if (strcmp(kind, fo__layer_kinds[k].name) == 0)
            return fo__add_layer(flow, kind, line->alpha, line->mask, line->net);
    return fo__line_fail(line, "unknown layer", kind ? kind : "");
}

static fo_result fo__parse_line(fo__line *line, fo_flow *flow, const char *text, size_t length) {
    int   i, times = 1;
    char *copy, *star;
    size_t j, at;
    copy = (char *)fo__arena_alloc(&flow->arena, 2 * length + 1024);
    if (copy == NULL)
        return FO_ERR_MEMORY;
    memcpy(copy, text, length);
    star = copy + strspn(copy, "0123456789");
    if (star > copy && *star == '*') {
        *star = 0;
        if (!fo__parse_int(copy, &times) || times < 1 || times > 1000)
            return fo__line_fail(line, "a repeat count must be 1 to 1000, not", copy);
        text += star + 1 - copy;
        length -= (size_t)(star + 1 - copy);
    }
    for (i = 0; i < times; i++) {
        for (j = at = 0; j < length && at < length + 1000; j++)
            if (text[j] == '%')
                at += (size_t)snprintf(copy + at, 12, "%d", i);
            else
                copy[at++] = text[j];
        copy[at] = 0;
        if (fo__parse_layer(line, flow, copy) != FO_OK)
            return line->fo->failed;
    }
    return FO_OK;
}

fo_flow *fo_flow_parse(fo_context *fo, const char *text) {
    fo_flow *flow = NULL;
    fo__line line;
    if (fo == NULL || text == NULL)
        return NULL;
    memset(&line, 0, sizeof line);
    line.fo = fo;
    while (*text) {
        size_t length = strcspn(text, "\n"), used, skip = strspn(text, " \t\r");
        line.number++;
        for (used = 0; used < length && text[used] != '#';)
            used++;
        while (used > 0 && strchr(" \t\r", text[used - 1]))
            used--;
        if (used > skip) {
            if (flow == NULL) {
                char head[64];
                snprintf(head, sizeof head, "%.*s", (int)FO__MIN(used - skip, 60), text + skip);
                flow = fo__parse_input(&line, head);
                if (flow == NULL)
                    return NULL;
            } else if (fo__parse_line(&line, flow, text + skip, used - skip) != FO_OK) {
                fo_flow_free(flow);
                return NULL;
            }
        }
        text += length + (text[length] == '\n');
    }
    if (flow == NULL)
        fo__fail(fo, FO_ERR_FORMAT, "the flow's text is empty: its first line is 'input CxHxW'");
    return flow;
}

const char *fo_flow_text(fo_flow *flow) {
    size_t size = 64, at;
    int    i;
    if (flow == NULL)
        return NULL;
    for (i = 0; i < flow->n_layers; i++)
        size += strlen(flow->layers[i].text) + 1;
    if (flow->text && strlen(flow->text) + 64 >= size)
        return flow->text; /* nothing was added since */
    flow->text = (char *)fo__arena_alloc(&flow->arena, size);
    if (flow->text == NULL)
        return NULL;
    if (flow->shape.h * flow->shape.w > 1)
        at = (size_t)snprintf(flow->text, size, "input %dx%dx%d\n", flow->shape.c, flow->shape.h,
                              flow->shape.w);
    else
        at = (size_t)snprintf(flow->text, size, "input %d\n", flow->shape.c);
    for (i = 0; i < flow->n_layers; i++)
        at += (size_t)snprintf(flow->text + at, size - at, "%s\n", flow->layers[i].text);
    return flow->text;
}

/* ---- presets --------------------------------------------------------------------------------- */

#define FO__IMAGE "dequantize\nlogit alpha=0.05\n"
static const fo_preset fo__presets[] = {
    {"mlp-cycle", "the cure: 8 cycle-mask couplings, st-network 512-10-512",
     FO__IMAGE "8* coupling mask=cycle:% net=mlp hidden=512 bottleneck=10\n", 2e-3, 128, 0.999},
    {"mlp-cycle-2", "the same with a bottleneck of 2",
     FO__IMAGE "8* coupling mask=cycle:% net=mlp hidden=512 bottleneck=2\n", 2e-3, 128, 0.999},
    {"mlp-checker", "the control: 8 checkerboard couplings, st-network 512-10-512",
     FO__IMAGE "8* coupling mask=checkerboard:% net=mlp hidden=512 bottleneck=10\n", 5e-4, 128, 0.999},
    {"mlp-horizontal", "8 couplings between top and bottom half, st-network 512-10-512",
     FO__IMAGE "8* coupling mask=horizontal:% net=mlp hidden=512 bottleneck=10\n", 5e-4, 128, 0.999},
    {"tabular", "feature vectors: standardize, 8 couplings on halves, one hidden layer of 256",
     "standardize\n8* coupling mask=halves:% net=mlp hidden=256 act=relu\n", 1e-3, 1024, 0}};
#undef FO__IMAGE

const fo_preset *fo_presets(int *count) {
    if (count)
        *count = (int)(sizeof fo__presets / sizeof fo__presets[0]);
    return fo__presets;
}

fo_flow *fo_flow_preset(fo_context *fo, const char *name, fo_shape shape) {
    int  i, n = (int)(sizeof fo__presets / sizeof fo__presets[0]);
    char text[1024];
    for (i = 0; i < n && name && fo; i++)
        if (strcmp(name, fo__presets[i].name) == 0) {
            const fo_preset *preset = &fo__presets[i];
            fo_flow         *flow;
            snprintf(text, sizeof text, "input %dx%dx%d\n%s", shape.c, shape.h, shape.w,
                     preset->body);
            flow = fo_flow_parse(fo, text);
            if (flow) {
                flow->train.desc.lr    = preset->lr;
                flow->train.desc.batch = preset->batch;
                flow->train.desc.ema   = preset->ema;
            }
            return flow;
        }
    fo__fail(fo, FO_ERR_ARGUMENT, "preset '%.40s' is not known: see fo_presets, or flowood presets",
             name ? name : "");
    return NULL;
}

/* ---- use ------------------------------------------------------------------------------------- */

/* Places and initialises the blocks; the structure is fixed from here on. */
static fo_result fo__flow_ready(fo_flow *flow) {
    if (flow->ready)
        return FO_OK;
    if (flow->broken || flow->n_layers == 0)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "the flow has no layers, or one of them could "
                        "not be added");
    flow->values = (fo_real *)fo__arena_alloc(&flow->arena, fo__times(flow->params.size + 1,
                                                                      sizeof(fo_real)));
    flow->buffer_values = (fo_real *)fo__arena_alloc(
        &flow->arena, fo__times(flow->buffers.size + 1, sizeof(fo_real)));
    if (flow->values == NULL || flow->buffer_values == NULL)
        return FO_ERR_MEMORY;
    fo__params_init(&flow->params, flow->fo->desc.seed, flow->values);
    fo__params_init(&flow->buffers, flow->fo->desc.seed, flow->buffer_values);
    flow->params.frozen = flow->buffers.frozen = flow->ready = 1;
    return FO_OK;
}

fo_real *fo_params(fo_flow *flow, int64_t *count) {
    if (flow == NULL || fo__flow_ready(flow) != FO_OK)
        return NULL;
    if (count)
        *count = flow->params.size;
    return flow->values;
}

/* Scoring uses the moving average where there is one; training the weights themselves. */
static fo_real *fo__values_for(const fo_flow *flow, int train) {
    return flow->train.ema && !train ? flow->train.ema : flow->values;
}

static void fo__workspace_bind(fo_workspace *ws) {
    fo_real *values = fo__values_for(ws->flow, ws->train);
    int      i;
    if (ws->values == values)
        return;
    ws->values = values;
    for (i = 0; i < ws->flow->n_layers; i++)
        if (ws->slots[i].tape)
            fo__tape_bind(ws->slots[i].tape, values, ws->grads, ws->slots[i].kept, ws->scratch);
}

/* Which couplings keep their activations until backward? Those nearest to z, as many as the
   budget allows; the others share the block of the largest of them. */
static fo_result fo__workspace_kept(fo_workspace *ws, double budget_mb) {
    double   budget = budget_mb * 1e6 / sizeof(fo_real), kept = 0, shared = 0;
    fo_real *block  = NULL;
    int      i, n = ws->flow->n_layers;
    for (i = 0; i < n; i++)
        if (ws->slots[i].tape) {
            kept += (double)ws->slots[i].tape->kept_size;
            shared = FO__MAX(shared, (double)ws->slots[i].tape->kept_size);
        }
    if (budget > 0 && kept > budget) {
        block = (fo_real *)fo__arena_alloc(&ws->arena, fo__times((int64_t)shared + 1,
                                                                 sizeof *block));
        if (block == NULL)
            return FO_ERR_MEMORY;
    }
    for (i = 0; i < n; i++) {
        fo__slot *slot = &ws->slots[i];
        if (slot->tape == NULL)
            continue;
        slot->again = block && kept + shared > budget;
        if (slot->again)
            kept -= (double)slot->tape->kept_size;
        slot->kept = slot->again ? block : (fo_real *)fo__arena_alloc(
            &ws->arena, fo__times(slot->tape->kept_size + 1, sizeof *block));
        if (slot->kept == NULL)
            return FO_ERR_MEMORY;
    }
    return FO_OK;
}

static fo_result fo__workspace_tapes(fo_workspace *ws, double budget_mb) {
    fo_flow *flow    = ws->flow;
    int64_t  scratch = 0;
    int      i, first = 1;
    for (i = 0; i < flow->n_layers; i++) {
        fo__slot *slot = &ws->slots[i];
        if (!flow->layers[i].kind->has_mask)
            continue;
        /* nothing before the first coupling learns, so its input needs no gradient */
        slot->tape = fo__layer_tape(ws->fo, flow, i, ws->batch, ws->train && !first, &slot->x,
                                    &slot->out);
        if (slot->tape == NULL || fo__tape_layout(slot->tape, ws->train) != FO_OK)
            return FO_ERR_MEMORY;
        if (ws->train)
            slot->save = (fo_real *)fo__arena_alloc(
                &ws->arena, fo__times((int64_t)ws->batch * flow->layers[i].n_change,
                                      sizeof(fo_real)));
        if (ws->train && slot->save == NULL)
            return FO_ERR_MEMORY;
        scratch = FO__MAX(scratch, slot->tape->scratch_size);
        first   = 0;
    }
    ws->scratch = (fo_real *)fo__arena_alloc(&ws->arena, fo__times(scratch + 1, sizeof(fo_real)));
    return ws->scratch ? fo__workspace_kept(ws, budget_mb) : FO_ERR_MEMORY;
}

static fo_workspace *fo__workspace_make(fo_context *fo, fo_flow *flow, int batch, int train,
                                        double budget_mb) {
    fo_workspace *ws;
    int64_t       n = flow ? flow->size : 0, scales = 1;
    int           i;
    if (fo == NULL || flow == NULL || fo__flow_ready(flow) != FO_OK)
        return NULL;
    ws = (fo_workspace *)fo__object(fo, sizeof *ws);
    if (ws == NULL)
        return NULL;
    for (i = 0; i < flow->n_layers; i++)
        scales = FO__MAX(scales, flow->layers[i].n_scale);
    ws->fo     = fo;
    ws->flow   = flow;
    ws->batch  = batch;
    ws->train  = train;
    ws->slots  = (fo__slot *)fo__arena_alloc(&ws->arena,
                                             fo__times(flow->n_layers, sizeof *ws->slots));
    ws->state  = (fo_real *)fo__arena_alloc(&ws->arena, fo__times(batch * n, sizeof(fo_real)));
    ws->terms  = (double *)fo__arena_alloc(
        &ws->arena, fo__times((int64_t)batch * (1 + flow->n_layers), sizeof(double)));
    ws->sample = (int64_t *)fo__arena_alloc(&ws->arena, fo__times(batch, sizeof(int64_t)));
    ws->noise  = (uint64_t *)fo__arena_alloc(&ws->arena, fo__times(batch, sizeof(uint64_t)));
    if (train) {
        ws->dstate  = (fo_real *)fo__arena_alloc(&ws->arena, fo__times(batch * n,
                                                                       sizeof(fo_real)));
        ws->partial = (fo_real *)fo__arena_alloc(&ws->arena, fo__times(batch * scales,
                                                                       sizeof(fo_real)));
        ws->grads   = (fo_real *)fo__arena_alloc(&ws->arena, fo__times(flow->params.size + 1,
                                                                       sizeof(fo_real)));
    }
    if (fo->failed || fo__workspace_tapes(ws, budget_mb) != FO_OK) {
        fo_workspace_free(ws);
        return NULL;
    }
    fo__workspace_bind(ws);
    return ws;
}

fo_workspace *fo_workspace_create(fo_context *fo, fo_flow *flow, int batch) {
    if (fo && (batch < 0 || batch > 1 << 20)) {
        fo__fail(fo, FO_ERR_ARGUMENT, "a workspace for %d samples: 1 to 2^20 are possible", batch);
        return NULL;
    }
    return fo__workspace_make(fo, flow, batch ? batch : 256, 0, 0);
}

void fo_workspace_free(fo_workspace *ws) {
    int i;
    for (i = 0; ws && ws->slots && i < ws->flow->n_layers; i++)
        fo_tape_free(ws->slots[i].tape);
    fo__object_free(ws);
}

static fo_result fo__check_data(fo_context *fo, const fo_flow *flow, const fo_data *data) {
    fo_shape a = flow->shape, b = fo_data_shape(data);
    if (data == NULL)
        return fo__fail(fo, FO_ERR_ARGUMENT, "there is no data");
    if (a.c != b.c || a.h != b.h || a.w != b.w)
        return fo__fail(fo, FO_ERR_SHAPE, "the data's samples are %dx%dx%d, the flow's %dx%dx%d",
                        b.c, b.h, b.w, a.c, a.h, a.w);
    return FO_OK;
}

static void fo__load_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    int64_t r;
    (void)layer;
    for (r = begin; r < end; r++)
        fo__data_rows(ws->data, ws->sample[r], fo__state(ws, r));
}

/* log N(z; 0, I) = -|z|^2/2 - D/2 log 2 pi */
static void fo__base_rows(fo_workspace *ws, int layer, int64_t begin, int64_t end) {
    int64_t r, size = ws->flow->size;
    (void)layer;
    for (r = begin; r < end; r++)
        ws->terms[r] = -0.5 * ws->fo->kernels->sumsq(size, fo__state(ws, r)) -
                       0.5 * (double)size * log(6.283185307179586);
}

static double fo__row_log_prob(const fo_workspace *ws, int64_t row) {
    double sum = ws->terms[row];
    int    i;
    for (i = 1; i <= ws->flow->n_layers; i++)
        sum += ws->terms[i * (int64_t)ws->batch + row];
    return sum;
}

/* The slow second look after log_prob was not finite: which layer, element and sample? */
static fo_result fo__find_nan(fo_workspace *ws) {
    const fo_flow *flow = ws->flow;
    fo_shape       s    = flow->shape;
    int64_t        r, i;
    int            layer;
    fo__rows(ws, -1, fo__load_rows);
    for (layer = -1; layer < flow->n_layers; layer++) {
        const char *text = layer < 0 ? "input" : flow->layers[layer].text;
        if (layer >= 0)
            flow->layers[layer].kind->encode(ws, layer);
        for (r = 0; r < ws->rows; r++) {
            double logdet = layer < 0 ? 0 : fo__logdet(ws, layer)[r];
            for (i = 0; i < flow->size; i++) {
                double value = (double)fo__state(ws, r)[i];
                if (value - value != 0)
                    return fo__fail(ws->fo, FO_ERR_NUMERIC, "sample %lld: %s at layer %d (%s), "
                                    "channel %d, row %d, column %d; if the data is sound, try a "
                                    "lower learning rate or a smaller clip",
                                    (long long)ws->sample[r], value != value ? "nan" : "infinity",
                                    layer, text, (int)(i / (s.h * s.w)), (int)(i / s.w % s.h),
                                    (int)(i % s.w));
            }
            if (logdet - logdet != 0)
                return fo__fail(ws->fo, FO_ERR_NUMERIC, "sample %lld: the logdet of layer %d (%s) "
                                "is not finite", (long long)ws->sample[r], layer, text);
        }
    }
    return fo__fail(ws->fo, FO_ERR_NUMERIC, "sample %lld: log_prob overflowed",
                    (long long)ws->sample[0]);
}

/* x -> z for ws->rows samples: terms and state are the result. */
static fo_result fo__encode(fo_workspace *ws) {
    int i;
    fo__rows(ws, -1, fo__load_rows);
    for (i = 0; i < ws->flow->n_layers && ws->fo->failed == FO_OK; i++)
        ws->flow->layers[i].kind->encode(ws, i);
    fo__rows(ws, -1, fo__base_rows);
    return ws->fo->failed;
}

static fo_result fo__run(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                           int draw, double *log_prob, double *terms, fo_real *z,
                         double *base) {
    int64_t done, r, columns;
    int     i;
    if (ws == NULL)
        return FO_ERR_ARGUMENT;
    if (ws->fo->failed != FO_OK || fo__check_data(ws->fo, ws->flow, data) != FO_OK)
        return ws->fo->failed;
    if (first < 0 || count < 0 || first > fo_data_count(data) - count || draw < FO_DRAW_MIDDLE)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "samples %lld to %lld, draw %d: the data has %lld "
                        "samples, and draws start at 0", (long long)first,
                        (long long)(first + count - 1), draw, (long long)fo_data_count(data));
    fo__workspace_bind(ws);
    ws->data   = data;
    ws->seed   = ws->fo->desc.seed;
    ws->middle = draw < 0;
    columns    = 1 + ws->flow->n_layers;
    for (done = 0; done < count; done += ws->rows) {
        ws->rows = FO__MIN(ws->batch, count - done);
        for (r = 0; r < ws->rows; r++) {
            ws->sample[r] = first + done + r;
            ws->noise[r]  = FO__STREAM_NOISE + ((uint64_t)(draw < 0 ? 0 : draw) << 40) +
                            (uint64_t)ws->sample[r];
        }
        if (fo__encode(ws) != FO_OK)
            return ws->fo->failed;
        if (z)
            memcpy(z + done * ws->flow->size, ws->state,
                   (size_t)(ws->rows * ws->flow->size) * sizeof *z);
        for (r = 0; r < ws->rows; r++) {
            double sum = fo__row_log_prob(ws, r);
            if (sum - sum != 0)
                return fo__find_nan(ws);
            if (log_prob)
                log_prob[done + r] = sum;
            if (base)
                base[done + r] = ws->terms[r];
            for (i = 0; i < columns && terms; i++)
                terms[(done + r) * columns + i] = ws->terms[i * (int64_t)ws->batch + r];
        }
    }
    return FO_OK;
}

fo_result fo_log_prob(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                      int draw, double *log_prob) {
    return fo__run(ws, data, first, count, draw, log_prob, NULL, NULL, NULL);
}

fo_result fo_log_prob_terms(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                            int draw, double *terms) {
    return fo__run(ws, data, first, count, draw, NULL, terms, NULL, NULL);
}

fo_result fo_encode(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count, int draw,
                    fo_real *z) {
    return fo__run(ws, data, first, count, draw, NULL, NULL, z, NULL);
}

/* z -> x of the rows in the state. */
static fo_result fo__decode(fo_workspace *ws, fo_real *x, double *logdet) {
    int64_t r, i, size = ws->flow->size;
    int     k;
    for (k = ws->flow->n_layers - 1; k >= 0 && ws->fo->failed == FO_OK; k--)
        ws->flow->layers[k].kind->decode(ws, k);
    memcpy(x, ws->state, (size_t)(ws->rows * size) * sizeof *x);
    for (r = 0; r < ws->rows && logdet; r++)
        for (k = 0, logdet[r] = 0; k < ws->flow->n_layers; k++)
            logdet[r] += fo__logdet(ws, k)[r];
    for (i = 0; i < ws->rows * size; i++)
        if (x[i] - x[i] != 0)
            return fo__fail(ws->fo, FO_ERR_NUMERIC, "decoding row %lld gave a number that is not "
                            "finite: its latent lies far outside what the flow has learned; try a "
                            "lower temperature", (long long)(i / size));
    return ws->fo->failed;
}

static fo_result fo__decode_ready(fo_workspace *ws) {
    if (ws == NULL || ws->fo->failed != FO_OK)
        return ws ? ws->fo->failed : FO_ERR_ARGUMENT;
    fo__workspace_bind(ws);
    return FO_OK;
}

fo_result fo_decode(fo_workspace *ws, const fo_real *z, int64_t count, fo_real *x,
                    double *logdet) {
    int64_t done;
    if (fo__decode_ready(ws) != FO_OK)
        return FO_ERR_ARGUMENT;
    for (done = 0; done < count; done += ws->rows) {
        int64_t at = done * ws->flow->size;
        ws->rows   = FO__MIN(ws->batch, count - done);
        memcpy(ws->state, z + at, (size_t)(ws->rows * ws->flow->size) * sizeof *z);
        if (fo__decode(ws, x + at, logdet ? logdet + done : NULL) != FO_OK)
            return ws->fo->failed;
    }
    return FO_OK;
}

fo_result fo_sample(fo_workspace *ws, uint64_t seed, int64_t count, double temperature,
                    fo_real *x) {
    int64_t done, r, i;
    if (fo__decode_ready(ws) != FO_OK)
        return FO_ERR_ARGUMENT;
    if (!(temperature >= 0 && temperature < 1e6))
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "a temperature of %g: 0 and above are possible, 1 "
                        "samples the model's distribution", temperature);
    for (done = 0; done < count; done += ws->rows) {
        ws->rows = FO__MIN(ws->batch, count - done);
        for (r = 0; r < ws->rows; r++) {
            fo_real *z = fo__state(ws, r);
            fo_random_normal(seed, FO__STREAM_BASE + (uint64_t)(done + r), 0, ws->flow->size, z);
            for (i = 0; i < ws->flow->size; i++)
                z[i] *= (fo_real)temperature;
        }
        if (fo__decode(ws, x + done * ws->flow->size, NULL) != FO_OK)
            return ws->fo->failed;
    }
    return FO_OK;
}

double fo_bpd(double log_prob, fo_shape shape) {
    return -log_prob / ((double)fo_shape_count(shape) * log(2.0));
}

/* ================================================================================================
   >>train         batches, Adam, schedules, checkpoints

   Purpose    minimise the mean of -log_prob
   Invariants a step is a function of (weights, optimizer state, seed, samples seen): resuming
              equals going on, bit for bit; reductions have a fixed order; no allocation after the
              first step
   Papers     Kingma & Ba 2015 (Adam), Loshchilov & Hutter 2019 (AdamW)
   ============================================================================================= */
#define FO__BLOCK 16384 /* numbers of a parameter block that one work unit handles */

typedef struct fo__trainer {
    fo_flow       *flow;
    fo_workspace  *ws;
    const fo_data *data;
    fo_train_desc  desc;
    int64_t        count, steps;     /* samples; where to stop (0: by time only) */
    int           *order;            /* of the samples in epoch order_epoch */
    int64_t        order_epoch;
    double        *partial;          /* per block of the gradient: sum of squares */
    fo__adam       adam;
    double         loss, grad_norm, lr; /* of the last step */
    double         recent;           /* mean loss of recent steps */
    int64_t        counted, first_step, first_seen;
    double         start, reported;
    int            stopped;
} fo__trainer;

#define FO__OR(value, fallback) ((value) != 0 ? (value) : (fallback))

/* What was asked for, else what the flow was trained with (or its preset says), else the default. */
static fo_train_desc fo__train_resolve(const fo_flow *flow, const fo_train_desc *desc) {
    fo_train_desc d, old = flow->train.desc;
    memset(&d, 0, sizeof d);
    if (desc)
        d = *desc;
    d.batch        = FO__OR(d.batch, FO__OR(old.batch, 128));
    d.optimizer    = FO__OR(d.optimizer, old.optimizer);
    d.lr           = FO__OR(d.lr, FO__OR(old.lr, 1e-3));
    d.beta1        = FO__OR(d.beta1, FO__OR(old.beta1, 0.9));
    d.beta2        = FO__OR(d.beta2, FO__OR(old.beta2, 0.999));
    d.eps          = FO__OR(d.eps, FO__OR(old.eps, 1e-8));
    d.weight_decay = FO__OR(d.weight_decay, old.weight_decay);
    d.clip         = FO__OR(d.clip, FO__OR(old.clip, 100));
    d.schedule     = FO__OR(d.schedule, old.schedule);
    d.warmup       = FO__OR(d.warmup, old.warmup);
    d.step_every   = FO__OR(d.step_every, old.step_every);
    d.step_factor  = FO__OR(d.step_factor, FO__OR(old.step_factor, 0.1));
    d.ema          = FO__OR(d.ema, old.ema);
    d.on_nan       = FO__OR(d.on_nan, old.on_nan);
    d.memory_mb    = FO__OR(d.memory_mb, old.memory_mb);
    d.seed         = FO__OR(d.seed, flow->train.step ? old.seed : flow->fo->desc.seed);
    if (d.seconds <= 0 && d.epochs <= 0 && d.steps <= 0)
        d.epochs = 1;
    return d;
}

static fo_result fo__train_validate(fo_context *fo, const fo_train_desc *d) {
    if (d->batch < 1 || d->batch > 1 << 20)
        return fo__fail(fo, FO_ERR_ARGUMENT, "batch=%d: 1 to 2^20 are possible", d->batch);
    if (!(d->lr > 0 && d->lr < 1e6) || !(d->beta1 > 0 && d->beta1 < 1) ||
        !(d->beta2 > 0 && d->beta2 < 1) || !(d->eps > 0))
        return fo__fail(fo, FO_ERR_ARGUMENT, "lr=%g beta1=%g beta2=%g eps=%g: a positive rate and "
                        "eps, and betas between 0 and 1 are needed", d->lr, d->beta1, d->beta2,
                        d->eps);
    if ((unsigned)d->optimizer > FO_ADAMW || (unsigned)d->schedule > FO_STEP ||
        (unsigned)d->on_nan > FO_NAN_SKIP)
        return fo__fail(fo, FO_ERR_ARGUMENT, "optimizer, schedule or on_nan is out of range");
    if (!(d->ema >= 0 && d->ema < 1) || !(d->weight_decay >= 0) || d->warmup < 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "ema=%g weight_decay=%g warmup=%lld: ema lies in [0,1) "
                        "and the others are not negative", d->ema, d->weight_decay,
                        (long long)d->warmup);
    if (d->schedule == FO_STEP && d->step_every <= 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "a step schedule needs step_every");
    return FO_OK;
}

static double fo__learning_rate(const fo__trainer *tr, int64_t step) {
    const fo_train_desc *d  = &tr->desc;
    double               lr = d->lr;
    if (d->schedule == FO_COSINE)
        lr *= 0.5 * (1 + cos(3.141592653589793 * (double)step / (double)tr->steps));
    if (d->schedule == FO_STEP)
        lr *= pow(d->step_factor, (double)(step / d->step_every));
    if (step < d->warmup)
        lr *= (double)(step + 1) / (double)d->warmup;
    return lr;
}

/* Sample number `seen` of the endless stream of shuffled epochs (Fisher-Yates). */
static int64_t fo__next_sample(fo__trainer *tr, int64_t seen) {
    int64_t epoch = seen / tr->count, i;
    if (epoch != tr->order_epoch) {
        tr->order_epoch = epoch;
        for (i = 0; i < tr->count; i++)
            tr->order[i] = (int)i;
        for (i = tr->count - 1; i > 0; i--) {
            int64_t j    = fo__below(tr->desc.seed, FO__STREAM_SHUFFLE + (uint64_t)epoch, i, i + 1);
            int     swap = tr->order[i];
            tr->order[i] = tr->order[j];
            tr->order[j] = swap;
        }
    }
    return tr->order[seen % tr->count];
}

static fo_result fo__train_forward(fo__trainer *tr) {
    fo_workspace *ws = tr->ws;
    int64_t       r;
    double        sum = 0;
    for (r = 0; r < ws->batch; r++) {
        int64_t seen  = tr->flow->train.seen + r;
        ws->sample[r] = fo__next_sample(tr, seen);
        ws->noise[r]  = FO__STREAM_NOISE + ((uint64_t)(seen / tr->count) << 40) +
                       (uint64_t)ws->sample[r];
    }
    if (fo__encode(ws) != FO_OK)
        return ws->fo->failed;
    for (r = 0; r < ws->rows; r++)
        sum -= fo__row_log_prob(ws, r);
    tr->loss = sum / (double)ws->rows;
    return FO_OK;
}

/* dLoss/dz = z/rows, then the layers from last to first. */
static fo_result fo__train_backward(fo_workspace *ws) {
    int64_t n = ws->rows * ws->flow->size;
    int     i;
    ws->dlogdet = -1.0 / (double)ws->rows;
    ws->fo->kernels->scale(n, (fo_real)(1.0 / (double)ws->rows), ws->state, ws->dstate);
    for (i = ws->flow->n_layers - 1; i >= 0 && ws->fo->failed == FO_OK; i--)
        if (ws->flow->layers[i].kind->backward)
            ws->flow->layers[i].kind->backward(ws, i);
    return ws->fo->failed;
}

static void fo__sumsq_range(void *arg, int64_t begin, int64_t end) {
    fo__trainer *tr = (fo__trainer *)arg;
    int64_t      b, n = tr->flow->params.size;
    for (b = begin; b < end; b++)
        tr->partial[b] = tr->ws->fo->kernels->sumsq(FO__MIN(FO__BLOCK, n - b * FO__BLOCK),
                                                    tr->ws->grads + b * FO__BLOCK);
}

static int64_t fo__blocks(const fo_flow *flow) {
    return (flow->params.size + FO__BLOCK - 1) / FO__BLOCK;
}

static double fo__grad_norm(fo__trainer *tr) {
    int64_t b, blocks = fo__blocks(tr->flow);
    double  sum = 0;
    fo_parallel_for(tr->ws->fo, blocks, 2, fo__sumsq_range, tr);
    for (b = 0; b < blocks; b++)
        sum += tr->partial[b];
    return sqrt(sum);
}

static void fo__adam_range(void *arg, int64_t begin, int64_t end) {
    fo__trainer *tr   = (fo__trainer *)arg;
    fo_flow     *flow = tr->flow;
    int64_t      at = begin * FO__BLOCK, n = FO__MIN(end * FO__BLOCK, flow->params.size) - at;
    fo_real     *g     = tr->ws->grads + at;
    fo__adam     adam  = tr->adam;
    double       decay = tr->desc.weight_decay;
    if (tr->desc.optimizer == FO_ADAM && decay > 0) { /* L2: part of the gradient */
        tr->ws->fo->kernels->scale(n, (fo_real)adam.grad_scale, g, g);
        tr->ws->fo->kernels->axpy(n, (fo_real)decay, flow->values + at, g);
        adam.grad_scale = 1;
    }
    tr->ws->fo->kernels->adam(n, &adam, flow->values + at, g, flow->train.m + at,
                              flow->train.v + at, flow->train.ema ? flow->train.ema + at : NULL);
}

static void fo__adam_step(fo__trainer *tr) {
    const fo_train_desc *d = &tr->desc;
    double               t = (double)(tr->flow->train.step - tr->flow->train.skipped + 1);
    double               ema = FO__MIN(d->ema, t / (t + 9)); /* forget the start faster */
    tr->lr              = fo__learning_rate(tr, tr->flow->train.step);
    tr->adam.grad_scale = d->clip > 0 && tr->grad_norm > d->clip ? d->clip / tr->grad_norm : 1;
    tr->adam.beta1      = d->beta1;
    tr->adam.beta2      = d->beta2;
    tr->adam.step       = tr->lr / (1 - pow(d->beta1, t));
    tr->adam.root       = 1 / sqrt(1 - pow(d->beta2, t));
    tr->adam.eps        = d->eps;
    tr->adam.decay      = d->optimizer == FO_ADAMW ? 1 - tr->lr * d->weight_decay : 1;
    tr->adam.ema        = ema;
    fo_parallel_for(tr->ws->fo, fo__blocks(tr->flow), 2, fo__adam_range, tr);
}

/* The loss is finite but a gradient is not: which parameter? */
static fo_result fo__find_nan_gradient(fo__trainer *tr) {
    const fo_flow *flow = tr->flow;
    int            i;
    int64_t        j;
    for (i = 0; i < flow->params.count; i++) {
        const fo_param_info *p = &flow->params.list[i].info;
        for (j = 0; j < p->count; j++)
            if (tr->ws->grads[p->offset + j] - tr->ws->grads[p->offset + j] != 0)
                return fo__fail(flow->fo, FO_ERR_NUMERIC, "step %lld: the gradient of parameter %s "
                                "is not finite; try a lower learning rate",
                                (long long)flow->train.step, p->name);
    }
    return fo__fail(flow->fo, FO_ERR_NUMERIC, "step %lld: the gradient's norm overflowed; try a "
                    "lower learning rate", (long long)flow->train.step);
}

static fo_result fo__train_step(fo__trainer *tr) {
    fo_flow *flow = tr->flow;
    int      bad;
    if (fo__train_forward(tr) != FO_OK)
        return flow->fo->failed;
    bad = tr->loss - tr->loss != 0;
    if (bad && tr->desc.on_nan == FO_NAN_STOP)
        return fo__find_nan(tr->ws);
    if (!bad) {
        if (fo__train_backward(tr->ws) != FO_OK)
            return flow->fo->failed;
        if (tr->desc.gradients &&
            tr->desc.gradients(tr->desc.user, tr->ws->grads, flow->params.size)) {
            tr->stopped = 1;
            return FO_OK;
        }
        tr->grad_norm = fo__grad_norm(tr);
        bad           = tr->grad_norm - tr->grad_norm != 0;
        if (bad && tr->desc.on_nan == FO_NAN_STOP)
            return fo__find_nan_gradient(tr);
    }
    if (bad) {
        flow->train.skipped++;
    } else {
        fo__adam_step(tr);
        tr->counted = FO__MIN(tr->counted + 1, 50);
        tr->recent += (tr->loss - tr->recent) / (double)tr->counted;
    }
    flow->train.step++;
    flow->train.seen += tr->ws->batch;
    return FO_OK;
}

static void fo__report(fo__trainer *tr, int last) {
    const fo_flow *flow = tr->flow;
    fo_progress    p;
    double         now  = fo_clock() - tr->start;
    int64_t        done = flow->train.step - tr->first_step;
    if (tr->desc.progress == NULL || (!last && now - tr->reported < 0.1))
        return;
    memset(&p, 0, sizeof p);
    p.step      = flow->train.step;
    p.steps     = tr->steps;
    p.epoch     = (double)flow->train.seen / (double)tr->count;
    p.loss      = tr->recent;
    p.bpd       = fo_bpd(-tr->recent, flow->shape);
    p.grad_norm = tr->grad_norm;
    p.lr        = tr->lr;
    p.elapsed   = now;
    p.since     = now - tr->reported;
    p.rate      = now > 0 ? (double)(flow->train.seen - tr->first_seen) / now : 0;
    p.left      = -1;
    if (tr->steps && done)
        p.left = now / (double)done * (double)(tr->steps - flow->train.step);
    if (tr->desc.seconds > 0 && (p.left < 0 || p.left > tr->desc.seconds - now))
        p.left = FO__MAX(tr->desc.seconds - now, 0);
    p.skipped    = flow->train.skipped;
    p.last       = last;
    tr->reported = now;
    if (tr->desc.progress(tr->desc.user, &p))
        tr->stopped = 1;
}

/* ---- data-dependent initialisation ------------------------------------------------------------ */

/* Mean and standard deviation of what reaches layer i, over all the data; a constant element
   keeps std 1, so that it stays harmless. */
static fo_result fo__measure_standardize(fo__trainer *tr, int layer) {
    fo_flow      *flow = tr->flow;
    fo_workspace *ws   = tr->ws;
    fo__layer    *l    = &flow->layers[layer];
    int64_t       done, r, i, n = flow->size;
    double       *sum = (double *)fo__alloc(flow->fo, fo__times(2 * n, sizeof(double)));
    int           k;
    if (sum == NULL)
        return FO_ERR_MEMORY;
    for (done = 0; done < tr->count; done += ws->rows) {
        ws->rows = FO__MIN(ws->batch, tr->count - done);
        for (r = 0; r < ws->rows; r++)
            ws->noise[r] = FO__STREAM_NOISE + (uint64_t)(ws->sample[r] = done + r);
        fo__rows(ws, -1, fo__load_rows);
        for (k = 0; k < layer; k++)
            flow->layers[k].kind->encode(ws, k);
        for (r = 0; r < ws->rows; r++)
            for (i = 0; i < n; i++) {
                double x = (double)fo__state(ws, r)[i];
                sum[i] += x;
                sum[n + i] += x * x;
            }
    }
    for (i = 0; i < n; i++) {
        double mean = sum[i] / (double)tr->count;
        double var  = sum[n + i] / (double)tr->count - mean * mean;
        flow->buffer_values[l->mean + i] = (fo_real)mean;
        flow->buffer_values[l->std + i]  = (fo_real)(var > 1e-12 * (mean * mean + 1e-12)
                                                         ? sqrt(var) : 1);
    }
    flow->buffer_values[l->measured] = 1;
    fo__free(flow->fo, sum);
    ws->rows = ws->batch;
    return FO_OK;
}

static fo_result fo__train_open(fo__trainer *tr, fo_flow *flow, const fo_data *data) {
    fo_context *fo = flow->fo;
    int64_t     n  = flow->params.size;
    int         i;
    if (tr->count < 1 || tr->count > INT_MAX)
        return fo__fail(fo, FO_ERR_ARGUMENT, "%lld samples: 1 to 2^31 - 1 are possible",
                        (long long)tr->count);
    tr->ws = fo__workspace_make(fo, flow, tr->desc.batch, 1, tr->desc.memory_mb);
    if (tr->ws == NULL)
        return fo->failed;
    tr->ws->data  = data;
    tr->ws->rows  = tr->ws->batch;
    tr->ws->seed  = tr->desc.seed;
    tr->order     = (int *)fo__arena_alloc(&tr->ws->arena, fo__times(tr->count, sizeof(int)));
    tr->partial   = (double *)fo__arena_alloc(&tr->ws->arena, fo__times(fo__blocks(flow) + 1,
                                                                        sizeof(double)));
    if (flow->train.m == NULL) {
        fo_real *both = (fo_real *)fo__arena_alloc(&flow->arena, fo__times(2 * n + 2,
                                                                           sizeof(fo_real)));
        flow->train.v = both ? both + n : NULL;
        flow->train.m = both;
    }
    if (tr->desc.ema > 0 && flow->train.ema == NULL) {
        fo_real *ema = (fo_real *)fo__arena_alloc(&flow->arena, fo__times(n + 1, sizeof(fo_real)));
        if (ema)
            memcpy(ema, flow->values, (size_t)n * sizeof *ema);
        flow->train.ema = ema;
    }
    if (fo->failed != FO_OK)
        return fo->failed;
    for (i = 0; i < flow->n_layers; i++)
        if (flow->layers[i].kind->setup == fo__standardize_setup &&
            flow->buffer_values[flow->layers[i].measured] == 0 &&
            fo__measure_standardize(tr, i) != FO_OK)
            return fo->failed;
    return FO_OK;
}

static int64_t fo__train_end(const fo__trainer *tr) {
    double steps = ceil(tr->desc.epochs * (double)tr->count / tr->desc.batch);
    if (tr->desc.epochs <= 0)
        return FO__MAX(tr->desc.steps, 0);
    if (!(steps < 9e15))
        steps = 9e15;
    return tr->desc.steps > 0 ? FO__MIN(tr->desc.steps, (int64_t)steps) : (int64_t)steps;
}

fo_result fo_train(fo_flow *flow, const fo_data *data, const fo_train_desc *desc) {
    fo__trainer tr;
    fo_context *fo;
    if (flow == NULL)
        return FO_ERR_ARGUMENT;
    fo = flow->fo;
    memset(&tr, 0, sizeof tr);
    if (fo->failed != FO_OK || fo__flow_ready(flow) != FO_OK ||
        fo__check_data(fo, flow, data) != FO_OK)
        return fo->failed;
    tr.desc = fo__train_resolve(flow, desc);
    if (tr.desc.schedule == FO_COSINE && tr.desc.steps <= 0 && tr.desc.epochs <= 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "a cosine schedule needs steps or epochs: seconds do "
                        "not say where it ends");
    if (flow->params.size == 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "the flow has no coupling: there is nothing to learn");
    tr.flow        = flow;
    tr.data        = data;
    tr.count       = fo_data_count(data);
    tr.order_epoch = -1;
    tr.start       = fo_clock();
    tr.first_step  = flow->train.step;
    tr.first_seen  = flow->train.seen;
    if (fo__train_validate(fo, &tr.desc) == FO_OK && fo__train_open(&tr, flow, data) == FO_OK) {
        tr.steps         = fo__train_end(&tr);
        flow->train.desc = tr.desc;
        while (!tr.stopped && (tr.steps == 0 || flow->train.step < tr.steps) &&
               (tr.desc.seconds <= 0 || fo_clock() - tr.start < tr.desc.seconds) &&
               fo__train_step(&tr) == FO_OK)
            fo__report(&tr, 0);
        if (fo->failed == FO_OK)
            fo__report(&tr, 1);
    }
    fo_workspace_free(tr.ws);
    return fo->failed;
}

fo_train_desc fo_flow_train_desc(const fo_flow *flow) {
    fo_train_desc none;
    memset(&none, 0, sizeof none);
    return flow ? fo__train_resolve(flow, NULL) : none;
}

int64_t fo_flow_steps(const fo_flow *flow) { return flow ? flow->train.step : 0; }

int fo_progress_bar(void *user, const fo_progress *p) {
    int    live = fo__isatty(stderr), left = (int)(p->left + 0.5);
    double tick = 10; /* seconds between plain lines */
    char   rest[32] = "", skipped[48] = "";
    (void)user;
    if (!live && !p->last && floor(p->elapsed / tick) <= floor((p->elapsed - p->since) / tick))
        return 0;
    if (p->left >= 0 && !p->last)
        snprintf(rest, sizeof rest, ", %d:%02d left", left / 60, left % 60);
    if (p->skipped)
        snprintf(skipped, sizeof skipped, ", %lld steps skipped (nan)", (long long)p->skipped);
    fprintf(stderr, "%sstep %lld, epoch %.2f, bpd %.3f, %.0f samples/s%s%s%s%s", live ? "\r" : "",
            (long long)p->step, p->epoch, p->bpd, p->rate, rest, skipped, live ? "\033[K" : "",
            live && !p->last ? "" : "\n");
    fflush(stderr);
    return 0;
}

/* ================================================================================================
   >>checkpoint    a flow as one safetensors file

   Invariants every block of the flow becomes arrays of its parameters' names: weights and buffers
              as they are, Adam's moments and the moving average with a prefix; the architecture
              and the training state are text in the metadata. Names and shapes are all compared
              before memory is asked for
   Callers    users
   ============================================================================================= */

typedef struct fo__saved_block { const char *prefix; const fo__params *params; fo_real **at; }
    fo__saved_block;

enum { FO__SAVED_BLOCKS = 5 };

static void fo__saved_blocks(fo_flow *flow, fo__saved_block block[FO__SAVED_BLOCKS]) {
    static const char *const prefix[FO__SAVED_BLOCKS] = {"", "", "adam.m.", "adam.v.", "ema."};
    fo_real **at[FO__SAVED_BLOCKS];
    int       i;
    at[0] = &flow->values, at[1] = &flow->buffer_values, at[2] = &flow->train.m;
    at[3] = &flow->train.v, at[4] = &flow->train.ema;
    for (i = 0; i < FO__SAVED_BLOCKS; i++) {
        block[i].prefix = prefix[i];
        block[i].params = i == 1 ? &flow->buffers : &flow->params;
        block[i].at     = at[i];
    }
}

/* One row a number of the training state that a checkpoint carries: name, type, field. */
#define FO__TRAIN_STATE(X)                                                                         \
    X(step, int64_t, step)                                                                         \
    X(seen, int64_t, seen)                                                                         \
    X(skipped, int64_t, skipped)                                                                   \
    X(batch, int, desc.batch)                                                                      \
    X(optimizer, fo_optimizer, desc.optimizer)                                                     \
    X(lr, double, desc.lr)                                                                         \
    X(beta1, double, desc.beta1)                                                                   \
    X(beta2, double, desc.beta2)                                                                   \
    X(eps, double, desc.eps)                                                                       \
    X(weight_decay, double, desc.weight_decay)                                                     \
    X(clip, double, desc.clip)                                                                     \
    X(schedule, fo_schedule, desc.schedule)                                                        \
    X(warmup, int64_t, desc.warmup)                                                                \
    X(step_every, int64_t, desc.step_every)                                                        \
    X(step_factor, double, desc.step_factor)                                                       \
    X(ema, double, desc.ema)                                                                       \
    X(on_nan, fo_on_nan, desc.on_nan)                                                              \
    X(memory_mb, double, desc.memory_mb)

static void fo__train_note(const fo_flow *flow, char *text, size_t size) {
    fo__train_state state = flow->train, *t = &state;
    char            number[40];
    size_t          at;
    t->desc = fo__train_resolve(flow, NULL);
    at      = (size_t)snprintf(text, size, "seed=%llu", (unsigned long long)t->desc.seed);
#define FO__WRITE(name, type, field)                                                               \
    fo__print_double(number, sizeof number, (double)t->field, 17);                                 \
    at += (size_t)snprintf(text + at, size - at, " " #name "=%s", number);
    FO__TRAIN_STATE(FO__WRITE)
#undef FO__WRITE
}

static fo_result fo__train_note_read(fo_context *fo, fo__train_state *t, const char *text) {
    char   key[32], word[64];
    int    used;
    double value;
    while (sscanf(text, " %31[a-z0-9_]=%63s%n", key, word, &used) == 2) {
        text += used;
        if (!fo__parse_double(word, &value) || !(value > -1e15 && value < 1e15 * 1e5))
            return fo__fail(fo, FO_ERR_FORMAT, "the checkpoint's training state has %s=%s", key,
                            word);
        if (strcmp(key, "seed") == 0)
            t->desc.seed = strtoull(word, NULL, 10);
#define FO__READ(name, type, field)                                                                \
    if (strcmp(key, #name) == 0 && (fabs(value) < 2e9 || sizeof t->field == 8))                    \
        t->field = (type)value;
        if (fabs(value) < 1e15) {
            FO__TRAIN_STATE(FO__READ)
        }
#undef FO__READ
    }
    if (*text || t->step < 0 || t->seen < 0 || t->skipped < 0 || t->skipped > t->step)
        return fo__fail(fo, FO_ERR_FORMAT, "the checkpoint's training state is damaged near '%.40s'",
                        text);
    return fo__train_validate(fo, &t->desc);
}

static int fo__add_arrays(fo__saved_block *block, fo__arena *arena, fo_array *array) {
    int i, k;
    for (i = 0; i < block->params->count && *block->at; i++) {
        const fo_param_info *p    = &block->params->list[i].info;
        size_t               size = strlen(block->prefix) + strlen(p->name) + 1;
        char                *name = (char *)fo__arena_alloc(arena, size);
        if (name == NULL)
            return 0;
        snprintf(name, size, "%s%s", block->prefix, p->name);
        array[i].name = name;
        array[i].type = sizeof(fo_real) == 8 ? FO_F64 : FO_F32;
        array[i].rank = p->rank;
        for (k = 0; k < p->rank; k++)
            array[i].dim[k] = p->dim[k];
        array[i].values = *block->at + p->offset;
    }
    return i;
}

fo_result fo_save(fo_flow *flow, const char *path) {
    fo__saved_block block[FO__SAVED_BLOCKS];
    fo__arena       arena;
    fo_array       *arrays;
    fo_note         notes[3];
    char            train[1024];
    int             i, n = 0, room = 0;
    if (flow == NULL || path == NULL)
        return flow ? fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_save: no path") : FO_ERR_ARGUMENT;
    if (flow->fo->failed != FO_OK || fo__flow_ready(flow) != FO_OK)
        return flow->fo->failed;
    arena.fo     = flow->fo;
    arena.chunks = NULL;
    fo__saved_blocks(flow, block);
    for (i = 0; i < FO__SAVED_BLOCKS; i++)
        room += block[i].params->count;
    arrays = (fo_array *)fo__arena_alloc(&arena, fo__times(room + 1, sizeof *arrays));
    for (i = 0; i < FO__SAVED_BLOCKS && arrays; i++)
        n += fo__add_arrays(&block[i], &arena, arrays + n);
    notes[0].key = "flowood.version", notes[0].text = "1";
    notes[1].key = "flowood.text", notes[1].text = fo_flow_text(flow);
    notes[2].key = "flowood.train", notes[2].text = train;
    fo__train_note(flow, train, sizeof train);
    if (flow->fo->failed == FO_OK)
        fo_archive_save(flow->fo, path, arrays, n, notes, flow->train.desc.batch ? 3 : 2);
    fo__arena_free(&arena);
    return flow->fo->failed;
}

/* The array for parameter p under this prefix. NULL: missing, or (an error) of another shape. */
static const fo_array *fo__array_for(fo_context *fo, const fo_archive *archive, const char *path,
                                     const char *prefix, const fo_param_info *p) {
    char            name[300], want[96], seen[96];
    const fo_array *array;
    int             k, same;
    snprintf(name, sizeof name, "%s%s", prefix, p->name);
    array = fo_archive_find(archive, name);
    if (array == NULL)
        return NULL;
    same = array->rank == p->rank && array->type >= FO_F16 && array->type <= FO_F64;
    for (k = 0; k < p->rank && same; k++)
        same = array->dim[k] == p->dim[k];
    if (!same) {
        fo__fail(fo, FO_ERR_FORMAT, "%s: %s is %s %s where the flow needs F32 %s: the weights belong "
                 "to another architecture", path, name, fo_dtype_name(array->type),
                 fo__dims(seen, array->rank, array->dim), fo__dims(want, p->rank, p->dim));
        return NULL;
    }
    return array;
}

static int fo__block_complete(fo_context *fo, const fo_archive *archive, const char *path,
                              const fo__saved_block *block, int required) {
    int i;
    for (i = 0; i < block->params->count; i++) {
        const fo_param_info *p = &block->params->list[i].info;
        if (fo__array_for(fo, archive, path, block->prefix, p) == NULL) {
            if (required)
                fo__fail(fo, FO_ERR_FORMAT, "%s: %s%s is missing: the weights belong to another "
                         "architecture", path, block->prefix, p->name);
            return 0;
        }
    }
    return 1;
}

static void fo__block_read(fo_context *fo, const fo_archive *archive, const char *path,
                           const fo__saved_block *block) {
    int     i;
    int64_t j;
    for (i = 0; i < block->params->count; i++) {
        const fo_param_info *p = &block->params->list[i].info;
        const fo_array      *a = fo__array_for(fo, archive, path, block->prefix, p);
        for (j = 0; j < p->count; j++)
            (*block->at)[p->offset + j] = (fo_real)fo__value(a->type, (const unsigned char *)a->values, (size_t)j);
    }
}

static fo_result fo__read_weights(fo_flow *flow, const fo_archive *archive, const char *path) {
    fo__saved_block block[FO__SAVED_BLOCKS];
    int             i;
    fo__saved_blocks(flow, block);
    for (i = 0; i < 2; i++)
        if (!fo__block_complete(flow->fo, archive, path, &block[i], 1))
            return flow->fo->failed;
    if (fo__flow_ready(flow) != FO_OK)
        return flow->fo->failed;
    for (i = 0; i < 2; i++)
        fo__block_read(flow->fo, archive, path, &block[i]);
    return FO_OK;
}

fo_result fo_load_weights(fo_flow *flow, const char *path) {
    fo_archive *archive;
    if (flow == NULL)
        return FO_ERR_ARGUMENT;
    archive = fo_archive_open(flow->fo, path);
    if (archive)
        fo__read_weights(flow, archive, path);
    fo_archive_free(archive);
    return flow->fo->failed;
}

/* Training state, moments and moving average, as far as the file has them complete. */
static fo_result fo__read_train(fo_flow *flow, const fo_archive *archive, const char *path) {
    fo__saved_block block[FO__SAVED_BLOCKS];
    const char     *note  = fo_archive_note(archive, "flowood.train");
    int64_t         n     = flow->params.size;
    int             state = 1, ema, i;
    fo__saved_blocks(flow, block);
    for (i = 2; i < 4; i++)
        state = state && fo__block_complete(flow->fo, archive, path, &block[i], 0);
    ema = fo__block_complete(flow->fo, archive, path, &block[4], 0);
    if (flow->fo->failed != FO_OK || (note && fo__train_note_read(flow->fo, &flow->train, note)))
        return flow->fo->failed;
    if (!state || !note) /* weights without moments: the optimizer starts afresh */
        flow->train.step = flow->train.seen = flow->train.skipped = state = 0;
    for (i = 2; i < FO__SAVED_BLOCKS; i++)
        if (i < 4 ? state : ema) {
            *block[i].at = (fo_real *)fo__arena_alloc(&flow->arena,
                                                      fo__times(n + 1, sizeof(fo_real)));
            if (*block[i].at == NULL)
                return FO_ERR_MEMORY;
            fo__block_read(flow->fo, archive, path, &block[i]);
        }
    return FO_OK;
}

fo_flow *fo_load_flow(fo_context *fo, const char *path) {
    fo_archive *archive = fo_archive_open(fo, path);
    const char *text    = archive ? fo_archive_note(archive, "flowood.text") : NULL;
    fo_flow    *flow    = NULL;
    if (archive && text == NULL)
        fo__fail(fo, FO_ERR_FORMAT, "%s: no architecture in it (flowood.text): build the flow in "
                 "code and use fo_load_weights", path);
    if (text)
        flow = fo_flow_parse(fo, text);
    if (flow && (fo__read_weights(flow, archive, path) != FO_OK ||
                 fo__read_train(flow, archive, path) != FO_OK)) {
        fo_flow_free(flow);
        flow = NULL;
    }
    fo_archive_free(archive);
    return flow;
}

/* ================================================================================================
   >>detect        scores of how unlikely a sample is to come from the training distribution

   Invariants higher means more OOD; a score of a sample depends on the model, the sample, its
              index and the draw, never on its batch
   ============================================================================================= */
static const char *const fo__score_names[] = {"likelihood", "latent"};

const char *const *fo_score_names(int *count) {
    if (count)
        *count = (int)(sizeof fo__score_names / sizeof fo__score_names[0]);
    return fo__score_names;
}

fo_result fo_score(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                   const char *name, double *score) {
    fo_result result;
    int64_t   i;
    int       latent;
    if (ws == NULL)
        return FO_ERR_ARGUMENT;
    latent = name && strcmp(name, "latent") == 0;
    if (!latent && (name == NULL || strcmp(name, "likelihood") != 0))
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "score '%.40s' is not known: likelihood and latent "
                        "are", name ? name : "");
    result = fo__run(ws, data, first, count, 0, latent ? NULL : score, NULL, NULL,
                     latent ? score : NULL);
    for (i = 0; i < count && result == FO_OK; i++)
        score[i] = -score[i];
    return result;
}

/* ================================================================================================
   >>check         a flow's own claims, measured on the user's flow

   Purpose    invertible? logdet true? gradient true? every element transformed?
   Cost       the numeric Jacobian encodes 2 D samples and factors a D x D matrix: D <= 1024
   Numbers    in single precision finite differences are good to about 1e-3; build with
              FLOWOOD_DOUBLE to see 1e-7
   ============================================================================================= */

/* log|det| of a[n,n] by elimination with partial pivoting; a is destroyed. */
static double fo__log_abs_det(double *a, int64_t n) {
    int64_t i, j, k, pivot;
    double  sum = 0;
    for (k = 0; k < n; k++) {
        for (pivot = k, i = k + 1; i < n; i++)
            if (fabs(a[i * n + k]) > fabs(a[pivot * n + k]))
                pivot = i;
        for (j = 0; j < n && pivot != k; j++) {
            double swap      = a[k * n + j];
            a[k * n + j]     = a[pivot * n + j];
            a[pivot * n + j] = swap;
        }
        sum += log(fabs(a[k * n + k]));
        for (i = k + 1; i < n; i++) {
            double factor = a[i * n + k] / a[k * n + k];
            for (j = k + 1; j < n && factor != 0; j++)
                a[i * n + j] -= factor * a[k * n + j];
        }
    }
    return sum;
}

/* Central differences of encode around sample 0, with the dequantization noise held. */
static fo_result fo__check_jacobian(fo_workspace *ws, const fo_data *data, double logdet,
                                    fo_check_report *report) {
    int64_t    n = ws->flow->size, i, j;
    double     h = sizeof(fo_real) == 8 ? 1e-5 : 2e-2;
    fo_shape   shape = ws->flow->shape;
    double    *jacobian;
    fo_real   *rows;
    fo_data   *view;
    fo_context *fo = ws->fo;
    report->jacobian = -1;
    if (n > 1024)
        return FO_OK;
    jacobian = (double *)fo__alloc(fo, fo__times(n * n, sizeof *jacobian));
    rows     = (fo_real *)fo__alloc(fo, fo__times(4 * n, sizeof *rows));
    view     = rows ? fo_data_view(fo, rows, sizeof(fo_real) == 8 ? FO_F64 : FO_F32, 2, shape)
                    : NULL;
    for (i = 0; i < n && jacobian && view && fo->failed == FO_OK; i++) {
        fo_real *up = rows, *down = rows + n, *z = rows + 2 * n;
        double   step;
        fo__data_rows(data, 0, up);
        fo__data_rows(data, 0, down);
        up[i] += (fo_real)(h * (1 + fabs((double)up[i])));
        down[i] -= (fo_real)(h * (1 + fabs((double)down[i])));
        step = (double)up[i] - (double)down[i];
        fo_encode(ws, view, 0, 2, FO_DRAW_MIDDLE, z);
        for (j = 0; j < n; j++)
            jacobian[j * n + i] = ((double)z[j] - (double)z[n + j]) / step;
    }
    if (fo->failed == FO_OK)
        report->jacobian = fabs(fo__log_abs_det(jacobian, n) - logdet) / (1 + fabs(logdet));
    fo_data_free(view);
    fo__free(fo, rows);
    fo__free(fo, jacobian);
    return fo->failed;
}

/* Round trip and both logdets over the first samples. */
static fo_result fo__check_inverse(fo_workspace *ws, const fo_data *data, fo_check_report *report,
                                   double *first_logdet) {
    int64_t  count = FO__MIN(fo_data_count(data), ws->batch), n = ws->flow->size, i, r;
    int      columns = 1 + ws->flow->n_layers, k;
    fo_real *z = (fo_real *)fo__alloc(ws->fo, fo__times(3 * count * n, sizeof *z));
    double  *terms = (double *)fo__alloc(ws->fo, fo__times(count * (columns + 1), sizeof *terms));
    if (z && terms && fo_encode(ws, data, 0, count, FO_DRAW_MIDDLE, z) == FO_OK &&
        fo_log_prob_terms(ws, data, 0, count, FO_DRAW_MIDDLE, terms) == FO_OK &&
        fo_decode(ws, z, count, z + count * n, terms + count * columns) == FO_OK)
        for (r = 0; r < count; r++) {
            fo_real *x = z + 2 * count * n, *back = z + (count + r) * n;
            double   logdet = 0, other = terms[count * columns + r];
            for (k = 1; k < columns; k++)
                logdet += terms[r * columns + k];
            if (r == 0)
                *first_logdet = logdet;
            report->logdet_pair = FO__MAX(report->logdet_pair,
                                          fabs(logdet + other) / (1 + fabs(logdet)));
            fo__data_rows(data, r, x);
            for (i = 0; i < n; i++)
                report->round_trip = FO__MAX(report->round_trip, fabs((double)(x[i] - back[i])));
        }
    fo__free(ws->fo, terms);
    fo__free(ws->fo, z);
    return ws->fo->failed;
}

/* Mean of -log_prob of the rows in ws, with the flow's weights as they are now. */
static double fo__check_loss(fo_workspace *ws) {
    int64_t r;
    double  sum = 0;
    fo__encode(ws);
    for (r = 0; r < ws->rows; r++)
        sum -= fo__row_log_prob(ws, r);
    return sum / (double)ws->rows;
}

/* Along the gradient g of one parameter, the loss must rise by |g| a unit of length. */
static double fo__check_slope(fo_workspace *ws, const fo_param_info *p, const fo_real *g,
                              const fo_real *keep, double loss) {
    fo_real *w = ws->flow->values + p->offset;
    double   slope = 0, weight = 0, h, up, down;
    int64_t  j;
    for (j = 0; j < p->count; j++) {
        slope += (double)g[j] * (double)g[j];
        weight += (double)w[j] * (double)w[j] + 1e-4;
    }
    slope = sqrt(slope);
    if (slope < 1e-6)
        return 0;
    /* large enough to be seen in the loss, small against the weights */
    h = (sizeof(fo_real) == 8 ? 1e-8 : 2e-5) * (1 + fabs(loss)) / slope;
    h = FO__MIN(h, 0.02 * sqrt(weight)) / slope;
    for (j = 0; j < p->count; j++)
        w[j] = keep[j] + (fo_real)h * g[j];
    up = fo__check_loss(ws);
    for (j = 0; j < p->count; j++)
        w[j] = keep[j] - (fo_real)h * g[j];
    down = fo__check_loss(ws);
    memcpy(w, keep, (size_t)p->count * sizeof *w);
    return fabs((up - down) / (2 * h * slope) - slope) / slope;
}

static fo_result fo__check_gradient(fo_flow *flow, const fo_data *data, fo_check_report *report) {
    int64_t       rows = FO__MIN(fo_data_count(data), 32), r, n = flow->params.size;
    fo_workspace *ws   = fo__workspace_make(flow->fo, flow, (int)rows, 1, 0);
    fo_real      *grad = (fo_real *)fo__alloc(flow->fo, fo__times(2 * n, sizeof *grad));
    double        loss = 0;
    int           i;
    if (ws && grad) {
        ws->data = data;
        ws->rows = rows;
        for (r = 0; r < rows; r++)
            ws->noise[r] = FO__STREAM_NOISE + (uint64_t)(ws->sample[r] = r);
        loss = fo__check_loss(ws);
        fo__train_backward(ws);
        memcpy(grad, ws->grads, (size_t)n * sizeof *grad);
        memcpy(grad + n, flow->values, (size_t)n * sizeof *grad);
    }
    for (i = 0; i < flow->params.count && flow->fo->failed == FO_OK; i++) {
        const fo_param_info *p = &flow->params.list[i].info;
        double error = fo__check_slope(ws, p, grad + p->offset, grad + n + p->offset, loss);
        report->gradient = FO__MAX(report->gradient, error);
    }
    fo__free(flow->fo, grad);
    fo_workspace_free(ws);
    return flow->fo->failed;
}

fo_result fo_check(fo_flow *flow, const fo_data *data, fo_check_report *report) {
    fo_workspace *ws;
    int64_t       i;
    int           k;
    double        logdet = 0;
    if (flow == NULL || report == NULL)
        return FO_ERR_ARGUMENT;
    memset(report, 0, sizeof *report);
    if (flow->fo->failed != FO_OK || fo__check_data(flow->fo, flow, data) != FO_OK)
        return flow->fo->failed;
    ws = fo__workspace_make(flow->fo, flow, 64, 0, 0);
    if (ws && fo__check_inverse(ws, data, report, &logdet) == FO_OK &&
        fo__check_jacobian(ws, data, logdet, report) == FO_OK && flow->params.size)
        fo__check_gradient(flow, data, report);
    for (i = 0; i < flow->size; i++) {
        int touched = 0;
        for (k = 0; k < flow->n_layers; k++)
            touched |= flow->layers[k].map && flow->layers[k].map[i] == FO_CHANGE;
        report->untouched += !touched;
    }
    fo_workspace_free(ws);
    return flow->fo->failed;
}

/* ================================================================================================
   >>context       open and close: the last room, because it ties the others together
   ============================================================================================= */
fo_context *fo_open(const fo_desc *desc) {
    fo_context  first; /* so that even the context itself passes through the funnel */
    fo_context *fo;
    memset(&first, 0, sizeof first);
    if (desc)
        first.desc = *desc;
    if (first.desc.realloc_fn == NULL)
        first.desc.realloc_fn = fo__default_realloc;
#if FO__OPENMP
    if (first.desc.threads <= 0)
        first.desc.threads = omp_get_num_procs();
#else
    first.desc.threads = 1;
#endif
    first.kernels   = fo__pick_kernels(first.desc.simd);
    first.desc.simd = first.kernels->simd;
    fo              = (fo_context *)fo__alloc(&first, sizeof *fo);
    if (fo) {
        *fo          = first;
        fo->arena.fo = fo;
    }
    return fo;
}

void fo_close(fo_context *fo) {
    fo_desc    desc;
    fo__block *block, *next, *own;
    if (fo == NULL)
        return;
    desc = fo->desc;
    own  = (fo__block *)((uintptr_t)fo - FO__PREFIX);
    for (block = fo->blocks; block; block = next) {
        next = block->next;
        if (block != own)
            desc.realloc_fn(desc.user, block->raw, block->size, 0);
    }
    desc.realloc_fn(desc.user, own->raw, own->size, 0);
}

#undef FLOWOOD_IMPLEMENTATION /* a second include declares only */
#endif /* FLOWOOD_IMPLEMENTATION */

/* ================================================================================================
   >>license       MIT or public domain (Unlicense), as you like; see the file LICENSE
   ============================================================================================= */
