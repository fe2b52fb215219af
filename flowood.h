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
   Beware     a context is for one thread at a time. Calls with NULL for an object change nothing
              and return an error: check fo_failed(fo) before you believe a result.

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
           int status = fo_failed(fo) ? 1 : 0;
           if (status)
               fprintf(stderr, "%s\n", fo_error(fo));
           fo_close(fo);                                              // frees everything
           return status;
       }

   >>contents      search for >>name

     MANUAL   about  program  contents  build  glossary  contracts  lifetimes  checkpoints
              history  math
     API      api-core  api-data  api-tape  api-ops  api-nets  api-masks  api-flow  api-layers
              api-trace  api-train  api-detect  api-check
     IMPL     platform  memory  random  parallel  simd  kernels  winograd  products  gzip  data
              write  archive  metrics  decisions  coder  estimates  tape  planner  runner  ops
              convolution  normalization  op-table  settings  nets  masks  layers  couplings
              mixing  flow  text  presets  workspace  scoring  trace  optimizer  train  scores
              detect  verdicts  checkpoint  check  context
     LICENSE  license

   A room uses only the rooms above it.

   >>build         macros; those marked * must be the same in every file that includes this one

     FLOWOOD_IMPLEMENTATION  compile the implementation here
     FLOWOOD_STATIC *        make every function static: the implementation is private to a file,
                             and every file that calls it defines FLOWOOD_IMPLEMENTATION
     FLOWOOD_DOUBLE *        fo_real is double; plain kernels. For verification: gradients to 1e-7
     FLOWOOD_NO_SIMD         plain C kernels only
     FLOWOOD_NO_OPENMP       one thread, even if the compiler has OpenMP
     FLOWOOD_SELF            how the file includes itself; default "flowood.h". Set it if you
                             renamed the file (the vector kernels are compiled in several passes)

     With a strict -std=c99 include this file before any system header in the file that implements
     it, or define _POSIX_C_SOURCE there: clock and files are POSIX, and have to be asked for first.
     -ffast-math and -Ofast are refused: add -fno-fast-math behind them for that one file. Without
     vectors in the compiler (not GNU C), or where floats are computed wider than they are stored
     (x87: FLT_EVAL_METHOD is not 0), the plain kernels are used.

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
                  allocates nothing; scoring allocates nothing at all. fo_train_desc.memory_mb
                  trades time for memory, to the same bits.
                  The stack: 24 KB in all, with AVX-512 64 KB.
     Errors       the library never prints (fo_progress_bar is a callback that you choose), aborts,
                  exits or asserts on input. Functions return fo_result or NULL; the context
                  keeps the first message until fo_clear_error. Errors are local: a failed call
                  changes nothing for later ones, except on an object that it left incomplete.
     Determinism  the same seed gives the same bits for any number of threads; a sample's score does
                  not depend on the batch it sits in; resuming equals going on. Another CPU may
                  choose other kernels, which agree to rounding.
     Numbers      logdets and log-likelihoods accumulate in double. NaN is reported with the layer,
                  place and sample where it arose.
     Threads      a trained flow may be scored by many threads at once: see >>lifetimes.
     Files        hostile until proven otherwise: a flow in a file may have no more weights than
                  the file, and layers x elements (a layer counts 512 more) of 2M or 2 a byte, so
                  that a file of 1 MB costs at most 2 s and 256 MB. Written to NAME.xxxxxxxx.part
                  (which a killed program leaves behind), synced, then renamed: at any moment, and
                  whoever writes, NAME is one whole file. What we write carries a checksum.

   >>lifetimes     how long things must live, and what threads may do

     context      owns all that was made with it. fo_close frees it; fo_..._free frees one object
                  earlier, and the strings, arrays and pointers that it gave out with it.
     samples      the rows of a fo_data_view and the bytes of a fo_archive_open_memory are yours,
                  and stay in place as long as the object. A fo_data_part has the rows of its data:
                  free it first. fo_load_flow_memory copies.
     training     data, held_out and negative, until training ends. Of a fo_batch z is good until
                  fo_trainer_backward, the rest until the next fo_trainer_forward.
     tape         your fo_op and fo_norm, as long as the tape; args are copied.
     registered   nets, masks, layers and scores are copied with their texts; where `user` points
                  must live as long as the context. What a fo_net, a fo_mask and desc structs point
                  to is needed during the call only, but for the data, functions and user in them.
     workspace    once its flow, or its background flow, is freed, it may only be freed.
     texts        fo_error until fo_clear_error; fo_detector_score until the detector is fitted anew
                  or dropped; other texts as long as their object.

     A context and all that was made with it is for one thread at a time. To score one flow from
     many threads, open a context for each, with fo_desc.threads = 1 (each would use every core
     otherwise), and make a workspace in each. The flow is ready for that once it was trained,
     loaded or saved: see fo_workspace_create. Meanwhile nobody may train, calibrate, recalibrate
     or free it, or set its weights. All of them may score the same fo_data.

   >>checkpoints   what a file of fo_save holds, for those who read it with NumPy or PyTorch

     NAME                       weights and buffers: fo_load_weights lists the names
     ema.NAME                   the moving average of weight NAME, which scoring uses where it is
     adam.m.NAME, adam.v.NAME   the optimizer's moments, for going on with training
     detector.*                 what fo_calibrate fitted
     metadata     flowood.text, the flow, and flowood.version (1), .seed, .train, .detector and
                  .checksum, each a line of text

     So the weights to load are ema.NAME where the file has it, else NAME. A file of fo_save_as
     with weights_only (`flowood export`) has them all under NAME, and the detector.

   >>history       versions, and what they promise

     Within one major version a program that compiles goes on compiling, functions and text mean
     what they meant, and files of earlier versions load; a file of a later format is refused. New
     fields of desc structs come with a zero that means "as it was": clear them whole, by {0} or
     memset. Last digits of numbers may change with kernels and compilers. What begins with fo__
     promises nothing.

     1.0.0  2026-11-25   the detector and its scores, held-out data, steps and layers of your own,
                         models from memory, hostile files; errors are local
     0.2.0  2026-11-24   the image models: RealNVP, Glow, convolutions, batch norm
     0.1.0  2026-11-23   MLP flows, training, checkpoints, metrics

   >>math

     dequantize   y = (x+u)/256, u ~ U(0,1)                     logdet = -D log 256
     logit        v = 1/2 + (1-2a)(y-1/2), h = log v - log(1-v) logdet = sum log((1-2a)/(v(1-v)))
     coupling     y_c = (x_c + t) exp(s), (s,t) = st(x_id)      logdet = sum s
                  s = scale tanh(raw s): bounded, so that no sample explodes. -t is the layer's
                  guess of x_c: that is what the paper's pictures show.
     squeeze      C x H x W -> 4C x H/2 x W/2; split: half of the channels is latent early
     actnorm      y = (x + bias) exp(log_scale) per channel     logdet = H W sum log_scale
     conv1x1      y = W x at every pixel                        logdet = H W log|det W|
     standardize  y = (x - mean)/std                            logdet = -sum log std
     normalize    y = x sqrt(D)/|x|                             a projection: logdet = 0
     whiten       y_i = v_i (x - mean)/sqrt(w_i)                logdet = -1/2 sum log w_i
     base         log N(z; 0, I) = -|z|^2/2 - D/2 log(2 pi)
     log_prob     the sum of all of the above: the density of the 8-bit image, constants once.
                  By Jensen's inequality its mean over u is a lower bound of log P(x).
     gradients    dx = dy exp(s), dt = dx, ds = dy y + dL/dlogdet

     Kirichenko et al. 2020 (this paper)     Dinh et al. 2014, 2017 (NICE, RealNVP)
     Kingma & Ba 2015 (Adam)                 Kingma & Dhariwal 2018 (Glow)
     Ioffe & Szegedy 2015 (batch norm)       Papamakarios et al. 2021 (a review of flows)
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
#ifdef __GNUC__ /* nobody calls all of them; this lasts until the end of the implementation */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#elif defined(__cplusplus)
#define FO_API extern "C"
#else
#define FO_API extern
#endif

/* ================================================================================================
   >>api-core      contexts, errors, memory, random numbers
   ============================================================================================= */

/* The version of this header, as 10000 major + 100 minor + patch and as text; fo_version is that
   of the implementation that the program was linked with. */
#define FLOWOOD_VERSION      10000
#define FLOWOOD_VERSION_TEXT "1.0.0"
FO_API int fo_version(void);

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
    int      threads; /* at most; 0: OMP_NUM_THREADS or every core if compiled with OpenMP, else
                         1. While work repeats, fewer are used where that is faster          */
    fo_simd  simd;
    /* The one allocation funnel. size 0 frees; NULL means failure. Default: realloc and free. */
    void *(*realloc_fn)(void *user, void *ptr, size_t old_size, size_t new_size);
    /* Called once for each call that fails, before it returns. Default: nothing. */
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

/* Every call reports its own result and no other: what failed earlier stops nothing but calls on
   an object that was left incomplete, such as a flow that a layer could not be added to. The first
   error since fo_clear_error is kept beside that, so that a program may check once at its end. */
FO_API fo_result   fo_failed(const fo_context *fo); /* FO_OK or the first error's code */
FO_API const char *fo_error(const fo_context *fo);  /* its message, "" when nothing failed */
FO_API void        fo_clear_error(fo_context *fo);
FO_API const char *fo_result_name(fo_result code);
/* Records an error with a printf-like message; returns code. From a user's op, net or mask it makes
   the call fail that runs it. Progress functions and their like say by what they return whether
   that call ends; what they call is not part of it. */
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
/* Samples from memory, FO_U8, FO_F32 or FO_F64, not copied: rows must stay in place as long as the
   fo_data. Nothing looks at their values here: where they are used they must be finite. */
FO_API fo_data *fo_data_view(fo_context *fo, const void *rows, fo_dtype type, int64_t count,
                             fo_shape shape);
/* `count` samples of data from `first` on, not copied: the rows are those of data. */
FO_API fo_data *fo_data_part(const fo_data *data, int64_t first, int64_t count);
/* Copies of the samples whose label is one of `classes` (keep 1) or none of them (keep 0), in their
   order: the one-class protocol. labels: whole numbers, one a sample. A class that does not occur
   is an error. */
FO_API fo_data *fo_data_select(const fo_data *data, const fo_data *labels, const int *classes,
                               int n, int keep);
FO_API void     fo_data_free(fo_data *data);
FO_API fo_shape fo_data_shape(const fo_data *data); /* {0,0,0} for NULL */
FO_API int64_t  fo_data_count(const fo_data *data); /* 0 for NULL       */
FO_API fo_dtype fo_data_dtype(const fo_data *data);
FO_API void     fo_data_limit(fo_data *data, int64_t count); /* keep the first `count` samples */
/* The samples in an order of chance, in place: before a file sorted by class is cut into parts. For
   what fo_load and fo_data_select made; parts that were taken before see other samples. Messages
   go on calling samples by the numbers that they had. */
FO_API fo_result fo_data_shuffle(fo_data *data, uint64_t seed);
/* Sample i as it lies in memory, NULL where there is none; and as numbers, out[c*h*w]. */
FO_API const void *fo_data_row(const fo_data *data, int64_t i);
FO_API fo_result fo_data_get(const fo_data *data, int64_t i, fo_real *out);

/* Array files out. Written under a temporary name, then renamed: never half a file. */
FO_API fo_result fo_save_npy(fo_context *fo, const char *path, fo_dtype type, int rank,
                             const int64_t *dim, const void *values);
FO_API fo_result fo_save_idx(fo_context *fo, const char *path, int rank, const int64_t *dim,
                             const unsigned char *values);
/* PNG, compressed, 8 bits, 1 (grey) or 3 (RGB) interleaved channels: pixels[h*w*channels]. */
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
/* The bytes must stay in place as long as the archive: values are not copied. */
FO_API fo_archive     *fo_archive_open_memory(fo_context *fo, const void *bytes, size_t size);
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
     fpr95_in  the other way round, as many papers have it: share of OOD samples that score at or
               below the lowest threshold which still keeps 95 % of the in-distribution samples
   auroc_low, auroc_high   the 95 % confidence interval of auroc by its variance over both sets of
               samples (DeLong et al. 1988), normal, cut at 0 and 1; of sets that do not overlap
               it is one point, which says nothing of how well auroc is known
   Scores must be numbers (infinities order as usual, NaN is an error); n_in, n_ood > 0. */
typedef struct fo_metrics {
    double auroc, aupr_in, aupr_out, fpr95, fpr95_in, auroc_low, auroc_high;
} fo_metrics;
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
    fo_real *data;             /* count elements; placed by fo_tape_plan                  */
    fo_real *grad;             /* dLoss/d(data), or NULL where no gradient is needed      */
    fo_tape     *tape;
    const fo_op *op;           /* NULL: an input or a parameter                           */
    fo_tensor  **in;
    int          n_in;
    const void  *args;         /* the op's own constants, copied by fo_apply              */
    unsigned     overwrite;    /* in backward, bit i < 32: in[i]->grad holds nothing: set it */
    int64_t      scratch_size; /* shape() may ask for this many elements of scratch       */
    fo_real     *scratch;      /* they are here while the op runs, with any content       */
};

enum { /* what an op promises or needs */
    FO_READS_INPUT  = 1,  /* backward reads in[]->data                                    */
    FO_READS_OUTPUT = 2,  /* backward reads out->data                                     */
    FO_ELEMENTWISE  = 4,  /* may be called for ranges of out's elements, on many threads;
                             touches only the same range of inputs of out's size          */
    FO_IN_PLACE     = 8,  /* forward may write over in[0]->data                           */
    FO_OVERWRITES   = 16, /* backward looks at `overwrite`; else new gradients are zeros  */
    FO_VIEW         = 32, /* shares data and gradient with in[0]: no forward, no backward */
    FO_CHEAP        = 64  /* recomputed in backward instead of kept; in[0] is kept anyway */
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

/* How a parameter starts: a constant, U(-scale, scale), N(0, scale^2), or the lengths of the rows
   of the parameter made after it (the gain of a weight norm; weight decay is for gains). */
typedef enum fo_init_kind {
    FO_INIT_CONSTANT, FO_INIT_UNIFORM, FO_INIT_NORMAL, FO_INIT_ROW_NORMS
} fo_init_kind;
typedef struct fo_init { fo_init_kind kind; double scale; } fo_init;
FO_API fo_init fo_init_of(fo_init_kind kind, double scale);

FO_API fo_tape    *fo_tape_create(fo_context *fo);
FO_API void        fo_tape_free(fo_tape *tape);
FO_API fo_context *fo_tape_context(const fo_tape *tape);
/* A leaf that you fill before each fo_forward; needs_grad: also make its gradient. */
FO_API fo_tensor *fo_input(fo_tape *tape, int rank, const int64_t *dim, int needs_grad);
/* A learned leaf. Names are unique; asking twice for a name gives the same parameter. */
FO_API fo_tensor *fo_param(fo_tape *tape, const char *name, int rank, const int64_t *dim,
                           fo_init init);
/* A leaf that is kept and saved like a parameter but not learned: an op may write to its data. */
FO_API fo_tensor *fo_buffer(fo_tape *tape, const char *name, int rank, const int64_t *dim,
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
/* x[B,I] w[O,I] b[O] or NULL -> x w^T + b [B,O] */
FO_API fo_tensor *fo_linear(fo_tensor *x, fo_tensor *w, fo_tensor *b);
FO_API fo_tensor *fo_matmul(fo_tensor *a, fo_tensor *b);       /* a[M,K] b[K,N] -> [M,N] */
/* Per row, flattened: out[r,j] = a[r,index[j]], 0 where index[j] is -1. -> [B,n] */
FO_API fo_tensor *fo_gather(fo_tensor *a, const int *index, int n);
/* Per row: out[r,index[j]] = a[r,j], zero elsewhere; no index twice. -> [B,width] */
FO_API fo_tensor *fo_scatter(fo_tensor *a, const int *index, int width);
FO_API fo_tensor *fo_concat(fo_tensor *a, fo_tensor *b);       /* along dimension 1 */
FO_API fo_tensor *fo_slice(fo_tensor *a, int64_t begin, int64_t length); /* along dimension 1 */
FO_API fo_tensor *fo_reshape(fo_tensor *a, int rank, const int64_t *dim);

/* Pictures. x[B,C,H,W] w[O,C,h,w] b[O] or NULL -> [B,O,H',W'], H' = (H + 2 padding - h)/stride + 1;
   transposed: w[C,O,h,w], H' = (H - 1) stride - 2 padding + h. */
FO_API fo_tensor *fo_conv2d(fo_tensor *x, fo_tensor *w, fo_tensor *b, int stride, int padding);
FO_API fo_tensor *fo_conv2d_transpose(fo_tensor *x, fo_tensor *w, fo_tensor *b, int stride,
                                      int padding);

/* What batch norm does, shared by all of a network; the caller may change it between runs. */
typedef enum fo_norm_mode {
    FO_NORM_RUNNING, /* running statistics                                                    */
    FO_NORM_BATCH,   /* those of the batch                                                    */
    FO_NORM_TRAIN,   /* those of the batch, and running += 0.1 (batch - running)              */
    FO_NORM_MEASURE  /* those of the batch, and running = exactly those of all batches so far */
} fo_norm_mode;
typedef struct fo_norm {
    fo_norm_mode mode;
    int          defer;     /* TRAIN: running statistics wait for the step to succeed, that is for
                               fo_tape_optimize                                              */
    int          recompute; /* this forward repeats the last one: update nothing                 */
    int64_t      rows;     /* samples of the batch that count, the first ones; 0: all            */
    int64_t      measured; /* MEASURE: samples of earlier batches, to be added up by the caller  */
} fo_norm;
/* Per channel of x[B,C,...]: factor ((x - mean) / sqrt(var + 1e-5) w + b), then ReLU if relu.
   The running statistics are buffers [C], with the variance unbiased, as in PyTorch. `how` must
   live as long as the tape. */
FO_API fo_tensor *fo_batch_norm(fo_tensor *x, fo_tensor *w, fo_tensor *b, fo_tensor *running_mean,
                                fo_tensor *running_var, const fo_norm *how, double factor,
                                int relu);
FO_API fo_tensor *fo_weight_norm(fo_tensor *v, fo_tensor *g); /* g[o] v[o,...] / |v[o,...]| */
FO_API fo_tensor *fo_gate(fo_tensor *h, fo_tensor *r, fo_tensor *g);   /* h + g (r - h)          */
FO_API fo_tensor *fo_crelu(fo_tensor *x);         /* relu(x) and relu(-x) along dimension 1 */

/* ================================================================================================
   >>api-nets      st-networks: from what a coupling conditions on to s and t
   ============================================================================================= */

/* A setting: name=value behind a layer or an st-network in a flow's text. One list of them says
   what is read, from text and from C, in which range, and what the flow's text shows. */
enum {
    FO_SETTING_REAL  = 1, /* a number between `least` and `most`; else a whole one of them */
    FO_SETTING_SHOWN = 2  /* stands in the flow's text even where it has its default */
};
#define FO_MAX_SETTINGS 8
typedef struct fo_setting {
    const char *name;
    double      usual, least, most; /* the default and the range; 0 below the range: the default */
    int         flags;
    const char *words; /* its values by name, apart by spaces, of which the first is 0; or NULL */
} fo_setting;

/* The values that a layer or a network was given, in the order of its list. */
typedef struct fo_settings {
    const fo_setting *list; /* ends with a NULL name           */
    double            value[FO_MAX_SETTINGS];
    unsigned          given; /* bit i: value i was written out */
} fo_settings;
FO_API double fo_setting_value(const fo_settings *settings, const char *name); /* 0: not in it */

/* Which network a coupling uses. Zero means default, a negative number means zero (skip = -1: no
   skips); what a network does not read is an error. Defaults:
     mlp          hidden=512 depth=1 bottleneck=0 act=leaky_relu      (of vectors)
     resnet       channels=32 blocks=2 bottleneck=0 skip=1 norm=1     (this and the rest: of images)
     highway      channels=32 depth=3 act=relu
     glow         channels=32
     autoencoder  channels=32 bottleneck (must be given)
   The mlp: `depth` hidden layers of `hidden` units, then, if bottleneck > 0, a layer of
   `bottleneck` units without activation and `depth` more hidden layers; the output layer starts at
   zero, so that an untrained coupling is the identity. */
typedef struct fo_net {
    const char *kind;    /* NULL: "mlp"; or the name of a registered net */
    int hidden;          /* units of a hidden layer */
    int depth;           /* hidden layers, highway layers */
    int bottleneck;      /* all that the network knows passes through so many elements */
    int channels;        /* of the hidden layers of image nets */
    int blocks;          /* residual blocks */
    int skip;            /* 1x1 skips from every block to the end; none around a bottleneck */
    int norm;            /* batch norm */
    const char *act;     /* "leaky_relu" (0.01), "relu", "tanh", "softplus", "none" */
    const char *more;    /* settings as text, "width=3 steps=2": those that are not above */
    fo_settings settings;/* set by the library before build: all of them, defaults resolved */
    double input_factor; /* likewise: 2 behind a checkerboard's batch norm, else 1 */
} fo_net;
FO_API fo_net fo_net_mlp(int hidden, int depth, int bottleneck);
FO_API fo_net fo_net_named(const char *kind); /* "resnet", "highway", "glow", "autoencoder", ... */

/* A kind of st-network. For vectors, build gets x[B,I], the conditioned elements in index order,
   and returns [B,outputs]: raw s of every changed element, then t of every changed element (only t
   when the coupling is additive). For images it gets x[B,C,H,W] and returns [B,outputs,H,W]: under
   a mask of whole channels the conditioned ones in, raw s and t of the changed ones out; under any
   other mask all channels, zero where not conditioned on, and raw s and t of all. It names its
   parameters with fo_param; it may be called many times. It finds its settings in the fields of
   `net`, and those of its own by fo_setting_value(&net->settings, name). */
typedef struct fo_net_kind {
    const char *name;
    fo_tensor *(*build)(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net);
    int         image;                     /* sees pictures, not vectors */
    fo_setting  settings[FO_MAX_SETTINGS]; /* empty: hidden depth bottleneck act, or channels
                                              blocks depth bottleneck skip act for images */
} fo_net_kind;
/* The name of a built-in net is refused; your own may be registered again. */
FO_API fo_result fo_register_net(fo_context *fo, const fo_net_kind *kind);
/* Helpers for build: a linear layer or a convolution (kernel x kernel, same size) with PyTorch's
   default initialisation, or all zeros; and an activation by name. Parameters are `name`.weight
   and `name`.bias. */
FO_API fo_tensor *fo_net_linear(fo_tensor *x, const char *name, int outputs, int zero);
FO_API fo_tensor *fo_net_conv(fo_tensor *x, const char *name, int outputs, int kernel, int zero);
FO_API fo_norm   *fo_tape_norm(fo_tape *tape); /* for fo_batch_norm: set by whoever runs the tape */
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
     halves, alternating, random   for vectors, by flat index: condition on the first half or
                   every second element from 0 on (phase even), or on the others; random:2k and
                   random:2k+1 are the two sides of the k-th random partition
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
/* The name of a built-in mask is refused; your own may be registered again. */
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
/* y = (x+u)/256 with u ~ U(0,1): in scoring a function of (the model's seed, draw, element), in
   training of (seed, sample, epoch, element). First layer, or none. */
FO_API fo_result fo_add_dequantize(fo_flow *flow);
/* h = logit(v), v = 1/2 + (1-2 alpha)(y - 1/2) */
FO_API fo_result fo_add_logit(fo_flow *flow, double alpha);
/* (x - mean)/std of each element, measured once on the first training data. As the first layer it
   reads float64 data as they are, before anything is rounded to fo_real. An element that never
   changes there has no scale: it becomes asinh((x - mean)/width), width = max(|mean|, 1)/100, and
   is trained as if it had noise, so that a sample that differs in it is less likely by some 10 to
   100 nats. fo_flow_constants says which these are. */
FO_API fo_result fo_add_standardize(fo_flow *flow);
/* Affine (RealNVP, Dinh et al. 2017; sign and order as in the paper's code):
   y = (x + t) exp(s), s = scale tanh(raw s), scale learned: one per channel of an image, one per
   changed element of a vector. */
FO_API fo_result fo_add_coupling(fo_flow *flow, fo_mask mask, fo_net net);
/* Additive (NICE, Dinh et al. 2014): y = x + t. */
FO_API fo_result fo_add_additive(fo_flow *flow, fo_mask mask, fo_net net);

/* Any layer by its line of text. Besides the above, with the defaults of their settings:
     logit alpha=0.05
     squeeze order=plain     C x H x W -> 4C x H/2 x W/2; unsqueeze goes back; order=alt: RealNVP's
     split                   the second half of the channels is latent from here on; keep=N: all but
                             the first N
     normalize               y = x sqrt(D)/|x|: how long x is no longer counts, and decode gives its
                             direction back. log p is then a density of directions: compare samples
                             by it, and flows behind the same layer, but no others
     whiten                  uncorrelated, mean 0, variance 1: eigenvectors of the covariance of the
                             training data, the leading ones first, with a shrinkage of their
                             eigenvalues that a fifth of the samples chooses. Needs 2 samples, up to
                             4,096 elements; takes some 20 D^3 multiply-adds, about 20 s for 1,280
     actnorm                 y = (x + bias) exp(log_scale) per channel, measured on the first batch
     conv1x1 lu=0            an invertible C x C matrix at every pixel; lu=1: by its LU parts
     permute seed=0          channels in another, fixed order; reverse=1: in that of the last first
   or a registered one: see >>api-layers. */
FO_API fo_result fo_add_layer(fo_flow *flow, const char *line);

/* The same flow as text, one layer a line, and back:
     input 1x28x28
     dequantize
     logit alpha=0.05
     8* coupling mask=cycle:% net=mlp hidden=512 bottleneck=10
   ; parts layers, that of the input too; `N*` repeats what follows it on its line, and % is the
   number of the repetition; # starts a comment. */
FO_API fo_flow    *fo_flow_parse(fo_context *fo, const char *text);
FO_API const char *fo_flow_text(fo_flow *flow); /* lives as long as the flow */
/* A named recipe for samples of this shape, with its training defaults (see fo_preset_at). Where
   it has a bottleneck of 10, NAME:L takes another: "mlp-cycle:2", "cycle-resnet-neck:40". */
FO_API fo_flow    *fo_flow_preset(fo_context *fo, const char *name, fo_shape shape);
typedef struct fo_preset {
    const char *name, *about, *body; /* body: text without its input line; several, for images of
                                        more than one channel the one behind "---" */
    double      lr, colour_lr; /* colour_lr: on more than one channel, where not 0 */
    double      ema, weight_decay;
    int         batch, rmsprop;
} fo_preset;
FO_API fo_preset fo_preset_at(int i); /* its name is NULL from the last one on */

FO_API void     fo_flow_free(fo_flow *flow);
FO_API fo_shape fo_flow_shape(const fo_flow *flow);
FO_API int      fo_flow_layers(const fo_flow *flow);
FO_API const char *fo_flow_layer_text(const fo_flow *flow, int layer); /* its line of the text */
/* States of layer's mask, or NULL where the layer has none. */
FO_API const unsigned char *fo_flow_mask(const fo_flow *flow, int layer);
/* How many elements a standardize found constant in its training data; constant[D] (or NULL) gets
   1 for each of these, else 0. */
FO_API int64_t fo_flow_constants(const fo_flow *flow, unsigned char *constant);

/* All that is learned is one block: parameter i is [offset, offset+count) of it. */
typedef struct fo_param_info {
    const char *name; /* "LAYER.scale", "LAYER.net.0.weight", ... */
    int         rank;
    int64_t     dim[FO_MAX_RANK];
    int64_t     offset, count;
} fo_param_info;
FO_API int           fo_param_count(const fo_flow *flow);
FO_API fo_param_info fo_param_at(const fo_flow *flow, int i);
/* The weights that scoring uses: their moving average where training keeps one. After training
   ask for them anew. */
FO_API const fo_real *fo_params(fo_flow *flow, int64_t *count);
/* Replaces all of them. What training knew about the old ones is forgotten: the moving average and
   the moments of the optimizer begin anew, steps count from 0; its settings stay. While a trainer
   is open on the flow this, fo_load_weights and fo_recalibrate are errors: close it first. */
FO_API fo_result      fo_set_params(fo_flow *flow, const fo_real *values, int64_t count);

/* What one thread needs to run a flow on up to `batch` (0: 256) samples at a time. It belongs to
   `fo`, which may differ from the flow's context: a thread of its own opens a context of its own.
   The flow must not be trained meanwhile. After creation no scoring call allocates. The first call
   of fo_workspace_create, fo_params, fo_train or fo_save in the flow's own context makes it ready:
   layers are fixed and weights get their first values. On a flow that is ready, as one from
   fo_load_flow is, other contexts may make workspaces, from as many threads. */
FO_API fo_workspace *fo_workspace_create(fo_context *fo, fo_flow *flow, int batch);
FO_API void          fo_workspace_free(fo_workspace *ws);

/* Which batch-norm statistics scoring uses: running (the default) or those of each batch, which
   makes a sample's score depend on its batch. */
FO_API fo_result fo_workspace_norm(fo_workspace *ws, fo_norm_mode mode);
/* Replaces running statistics by those of the first `count` samples under the present weights. */
FO_API fo_result fo_recalibrate(fo_flow *flow, const fo_data *data, int64_t count);

/* Samples first .. first+count-1 of data. draw >= 0 numbers the noise of dequantize: a function of
   (the model's seed, draw, element), so that a sample has one score, wherever and beside whatever
   it lies. The model's seed is that of the context that the flow was made in; its files keep it.
   FO_DRAW_MIDDLE takes u = 1/2, so that decode(encode(x)) gives back x.
   Here and in all that scores or detects: one sample that is not finite fails the whole call, and
   of its results only those of batches before it are there. Where bad samples are part of the day,
   give them one by one: each fails for itself, and costs no allocation. */
#define FO_DRAW_MIDDLE (-1)
FO_API fo_result fo_log_prob(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                             int draw, double *log_prob);
/* Where log_prob came from: terms[count][1+layers]: base density, then the logdet of each layer.
   A row, added up from left to right, is log_prob to the last bit. */
FO_API fo_result fo_log_prob_terms(fo_workspace *ws, const fo_data *data, int64_t first,
                                   int64_t count, int draw, double *terms);
/* z[count][D]: what came through the last layer, then what the splits took out, the last first. */
FO_API fo_result fo_encode(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                           int draw, fo_real *z);
/* log of the mean of p over draws 0 .. draws-1: closer to the log P(x) of the picture itself, and
   calmer, than that of one draw, at `draws` times its cost. */
FO_API fo_result fo_log_prob_mean(fo_workspace *ws, const fo_data *data, int64_t first,
                                  int64_t count, int draws, double *log_prob);
/* The same of samples in memory, row by row, of the flow's shape and of type FO_U8, FO_F32 or
   FO_F64; rows need no alignment. Nothing is allocated, for one row or for many. */
FO_API fo_result fo_log_prob_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                                  int draw, double *log_prob);
FO_API fo_result fo_encode_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
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
   >>api-layers    a layer of your own: the interface that the built-in layers use

   A layer changes the rows of a batch in place: encode x -> y, decode back, and backward undoes
   encode while it turns dLoss/dy into dLoss/dx. See examples/custom.c.
   ============================================================================================= */
typedef struct fo_layer      fo_layer;
typedef struct fo_layer_kind fo_layer_kind;
typedef enum fo_direction { FO_ENCODE, FO_DECODE, FO_BACKWARD } fo_direction;

/* A layer in a flow. */
struct fo_layer {
    const fo_layer_kind *kind;
    fo_context  *fo;
    fo_flow     *flow;
    int          index;    /* its place in the flow, from 0 */
    fo_settings  settings; /* see fo_setting_value */
    fo_shape     shape;    /* of what comes in: the first `width` elements of a row; the rest of
                              a row is latent already, and none of its business */
    int64_t      width;
    /* The hook `shape` may set these: */
    fo_shape     out;      /* of what the next layer sees: c*h*w elements, at most `width` */
    const int   *from;     /* a layer that only moves elements, y[i] = x[from[i]]: no hook more */
    int64_t      save;     /* elements of each row that encode keeps for backward */
    int64_t      work;     /* doubles of memory of its own in every workspace, */
    int64_t      measuring; /* or, of a front layer, only while it measures */
    void        *own;      /* whatever its hooks want to know; see fo_layer_alloc */
    /* Of a layer that conditions, before `shape` is called: */
    const unsigned char *map; /* fo_state of each element */
    int          n_change; /* elements that change, */
    const int   *change_at; /* their places in a row, */
    const int   *out_at;   /* and of what the network returns for a row the places of theirs:
                              output k of changed element j is net[out_at[k*n_change + j]] */
    int64_t      n_out;    /* elements that the network returns for a row */
    int          image;    /* the network sees images */
};

/* A batch on its way through a layer. Arrays of rows: element i of row r of x is x[r*size + i]. */
typedef struct fo_pass {
    const fo_layer *layer;
    fo_context   *fo;        /* of the thread: for fo_fail, in before and after */
    fo_direction  direction;
    int64_t       rows;      /* of this batch */
    int64_t       size;      /* from one row to the next, in x, dx and spare */
    fo_real      *x;         /* the state, changed in place */
    fo_real      *dx;        /* backward: dLoss/dy comes in, dLoss/dx goes out; else NULL */
    double       *logdet;    /* [rows] encode, decode: log|det| of this direction; starts as 0 */
    const double *dlogdet;   /* [rows] backward: dLoss/d(logdet of encode) */
    fo_real      *values;    /* the flow's parameters: yours at the offsets of fo_layer_param, */
    fo_real      *grads;     /* and dLoss/d(them), to be set, not added to; NULL: no training */
    fo_real      *buffers;   /* the flow's buffers, at the offsets of fo_layer_buffer */
    fo_real      *save;      /* [rows][layer->save]; NULL: no backward will follow */
    double       *work;      /* [layer->work]; in measure of a front layer [layer->measuring] */
    fo_real      *spare;     /* room for this pass, with any content */
    const fo_real *net;      /* [rows][n_out] what the network of a layer that conditions says, */
    fo_real      *dnet;      /* and dLoss/d(it), which backward sets where it changes elements */
    uint64_t      seed;      /* noise of row r: numbers 0, 1, ... of stream[r] under this seed, */
    const uint64_t *stream;
    const fo_real *noise;    /* [size] these uniform numbers if every row has the same; or NULL, */
    int           middle;    /* or none at all: take the middle */
    int           any_values; /* refuse none: x holds bytes, or is only near a sample (fo_check) */
    const int64_t *sample;   /* which sample sits in each row, for messages */
    const fo_data *data, *negative; /* for fo_pass_input: whose samples these are; negative: in the
                                rows from `positive` on; NULL where x is all there is */
    int64_t       positive;
} fo_pass;
/* Encode and measure: element i of row r of x before this layer changes it. The first layer of a
   flow gets it as it is in the data: a float64 sample at 1e9 has digits that x may have lost. */
FO_API double fo_pass_input(const fo_pass *pass, int64_t r, int64_t i);

/* A kind of layer. A pass through it is `before`, then `rows`, then `after`; NULL hooks are left
   out. `rows` is called for ranges of rows, on several threads: it writes only what belongs to its
   rows. Sums over rows, such as gradients of parameters, belong into before or after. In decode and
   backward x holds y when `before` is called. Errors: fo_fail. */
struct fo_layer_kind {
    const char *name;
    int front;      /* has no backward: before all that learns, and before any split */
    int projects;   /* keeps a part of x only, which encode and decode then leave as it is; logdet
                       is 0: log p is a density of that part (fo_check asks) */
    int mixes;      /* every element that comes out depends on others (fo_check asks) */
    int conditions; /* it has a mask and an st-network with so many outputs a changed element */
    const char *advice; /* what to do where it makes something that is not finite; or NULL */
    fo_setting settings[FO_MAX_SETTINGS]; /* of its line, where it does not condition */
    /* Checks layer->shape, asks for parameters and sets fields of `layer`. */
    fo_result (*shape)(fo_layer *layer);
    /* First values of parameters and buffers that fo_init cannot say. */
    fo_result (*init)(const fo_layer *layer, uint64_t seed, fo_real *values, fo_real *buffers);
    /* Values that depend on data, measured once: x holds samples seen .. seen + rows - 1 of
       `count`; with the last of them values or buffers are set. A front layer sees all training
       data before the first step, another one the first batch. A buffer "measured" is kept. */
    void (*measure)(fo_pass *pass, int64_t seen, int64_t count);
    void (*before)(fo_pass *pass);
    void (*rows)(fo_pass *pass, int64_t begin, int64_t end);
    void (*after)(fo_pass *pass);
    /* For fo_trace, of a layer that conditions, right after encode: raw s, s and t of row r, each
       at the places of the elements that change; they come as zeros. NULL: it has none. */
    void (*explain)(const fo_pass *pass, int64_t r, fo_real *raw_s, fo_real *s, fo_real *t);
    /* For fo_flow_constants, of a layer that measures: did element i never change? Or NULL. */
    int (*constant)(const fo_layer *layer, const fo_real *buffers, int64_t i);
};
/* The name of a built-in layer is refused; your own may be registered again. */
FO_API fo_result fo_register_layer(fo_context *fo, const fo_layer_kind *kind);
/* For `shape`: where parameter or buffer "LAYER.name" begins in values and grads, or in buffers;
   -1 after an error. Memory that lives as long as the flow, zeroed; NULL after an error. */
FO_API int64_t fo_layer_param(fo_layer *layer, const char *name, int rank, const int64_t *dim,
                              fo_init init);
FO_API int64_t fo_layer_buffer(fo_layer *layer, const char *name, int rank, const int64_t *dim,
                               fo_init init);
/* A buffer of rank 1 that starts at 0 and that files may lack: it is then `absent` everywhere. */
FO_API int64_t fo_layer_optional(fo_layer *layer, const char *name, int64_t count, double absent);
FO_API void   *fo_layer_alloc(fo_layer *layer, size_t size);

/* ================================================================================================
   >>api-trace     looking inside: what every layer made of a sample

   For pictures of a flow at work; see examples/figures.h.
   ============================================================================================= */
/* A batch at one layer. Everything is in the workspace and lasts until the function returns. Arrays
   of rows: element i of row r of `before` is before[r*size + i]. */
typedef struct fo_view {
    const fo_layer *layer;   /* layer->index, ->kind->name, ->shape (in), ->out, ->map (its mask) */
    int64_t         first, rows; /* samples first .. first+rows-1 of the data                  */
    int64_t         size;        /* of a whole row, with what is latent already                */
    const fo_real  *before, *after; /* the state. A coupling conditions on the elements of
                                       `before` where layer->map is FO_CONDITION               */
    const double   *logdet;      /* [rows] */
    /* [size] where the elements come from: element i of before is what became of element
       place_before[i] of the sample, through squeezes and permutations. Where a layer mixes
       elements, or moves them without saying so by `from`, they count as staying in place. */
    const int      *place_before, *place_after;
    /* Of a coupling, in rows like the state, 0 where nothing changes: s = scale tanh(raw_s), and
       -t, its guess of what it changes: after = (before + t) exp(s). Else NULL. */
    const fo_real  *raw_s, *s, *t;
    const fo_real  *net;         /* [rows][layer->n_out] of a layer that conditions: what its
                                    st-network said; else NULL */
} fo_view;
/* Calls `take` for every layer, in order, with samples first .. first+count-1, as many of them at a
   time as the workspace has room for. Nonzero ends it. `take` may do anything but use or free this
   workspace or change its flow. Numbers that are not finite are shown, and are an error at the end.
   The first call makes room for 4 states of a batch, later ones allocate nothing. */
FO_API fo_result fo_trace(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                          int draw, int (*take)(void *user, const fo_view *view), void *user);

/* ================================================================================================
   >>api-train     one call that trains; everything it needs to go on is part of the flow
   ============================================================================================= */
/* In all three 0 is "as before". */
typedef enum fo_optimizer { FO_ADAM = 1, FO_ADAMW, FO_RMSPROP } fo_optimizer;
typedef enum fo_schedule { FO_CONSTANT = 1, FO_COSINE, FO_STEP } fo_schedule;
/* A batch whose log_prob or gradient is not finite never changes weights, moments or statistics. */
typedef enum fo_on_nan {
    FO_NAN_STOP = 1, /* it is an error that says where the number arose                        */
    FO_NAN_SKIP      /* it counts as a step (fo_progress.skipped); an error if all steps that a
                        flow has ever made were skipped                                        */
} fo_on_nan;

typedef struct fo_progress {
    int64_t step, steps;      /* done since training began; planned (0: by time) */
    double  epoch;            /* passes over the data so far                    */
    double  loss, bpd;        /* -log_prob, mean of the last 50 steps of this call; nats and bpd;
                                 NaN before the first                            */
    double  grad_norm, lr;
    double  rate;             /* samples a second                               */
    double  elapsed, left;    /* seconds; left < 0: unknown                     */
    double  since;            /* seconds since the call before                  */
    int64_t skipped;          /* steps dropped for NaN                          */
    double  held_out_bpd;     /* of the last measurement; NaN before the first  */
    int     improved;         /* this call follows a measurement, the best so far */
    int     last;             /* the final call, with the state that training ends with */
} fo_progress;

/* Zero is the default; on a flow that was trained before, as before; on one of a preset, as the
   preset says. Whatever is given wins, and where "none" is possible a negative number says it: so
   every setting can be set back. What is of this call only: seconds, epochs, steps, the data
   (which must live until training ends), functions and user. */
typedef struct fo_train_desc {
    double   seconds, epochs; /* stop after; epochs and steps count since training began */
    int64_t  steps;           /* none of the three: one epoch                            */
    int      batch;           /* 128, on a new flow at most a quarter of the data        */
    fo_optimizer optimizer;   /* FO_ADAM                                                 */
    double   lr;              /* 1e-3                                                    */
    double   beta1, beta2, eps; /* 0.9 (< 0: none), 0.999 (RMSPROP: 0.99), 1e-8          */
    double   weight_decay;    /* none; ADAMW: decoupled, of all; else added to the gradient, of the
                                 gains of weight norms only where the flow has any       */
    double   clip;            /* global gradient norm, 100; < 0: never                   */
    fo_schedule schedule;     /* FO_CONSTANT; COSINE needs steps or epochs               */
    int64_t  warmup;          /* steps of linear warm-up; none                           */
    int64_t  step_every;      /* STEP: multiply lr by step_factor every so many steps    */
    double   step_factor;     /* 0.1                                                     */
    double   ema;             /* decay of a moving average of the weights that scoring then uses;
                                 none. The running statistics of batch norm are not its own:
                                 fo_recalibrate                                          */
    uint64_t seed;            /* of shuffling and noise; the context's                   */
    /* Held-out data (NULL: none) are scored now and then, as fo_log_prob does it with draw 0, and
       whatever ends training, the flow is left in the whole state of the best measurement: weights,
       statistics, optimizer, moving average, steps. fo_save writes that state while training runs.
       Going on from it repeats the steps behind it to the same bits. */
    const fo_data *held_out;
    int64_t  held_out_every;  /* steps; an epoch, but 50 to 1000 steps. Measured too where steps,
                                 epochs or seconds end, not where a function stops training */
    int      patience;        /* measurements without a new best before training stops; none */
    /* Negative training (appendix B of the paper): the second half of every batch comes from
       here, and its likelihood is lowered until it falls below -negative_floor nats per sample
       (30000/784 nats per dimension; < 0: 0). An epoch is one of the data. */
    const fo_data *negative;
    double   negative_floor;
    double   memory_mb;       /* MB for all that training needs beyond the weights: activations of
                                 couplings that do not fit are recomputed in backward, to
                                 the same bits; none: keep all                             */
    fo_on_nan on_nan;         /* FO_NAN_STOP                                             */
    /* Called about ten times a second, after each measurement and at the end; nonzero stops.
       Between steps the flow is whole: it may be saved, or scored by other workspaces. */
    int  (*progress)(void *user, const fo_progress *progress);
    /* The step's complete gradient, one block, before it is clipped: sum it over machines here.
       Nonzero stops, and the step is not taken. */
    int  (*gradients)(void *user, fo_real *grad, int64_t count);
    void *user;
} fo_train_desc;

/* An error leaves the flow as the last good step made it. */
FO_API fo_result fo_train(fo_flow *flow, const fo_data *data, const fo_train_desc *desc);
FO_API fo_train_desc fo_flow_train_desc(const fo_flow *flow); /* defaults resolved */
FO_API int64_t   fo_flow_steps(const fo_flow *flow);          /* since training began */
/* Of the held-out data, if the weights are those of its best measurement; else NaN. */
FO_API double    fo_flow_held_out_bpd(const fo_flow *flow);
/* How many samples its last training had, and how many held-out ones, which must not be trained on
   later; -1: not known, as in files from before this was noted. */
FO_API int64_t   fo_flow_train_count(const fo_flow *flow);
FO_API int64_t   fo_flow_held_out_count(const fo_flow *flow);
/* A ready progress function: a moving line on a terminal, plain lines elsewhere (stderr). */
FO_API int fo_progress_bar(void *user, const fo_progress *progress);

/* The same a step at a time. fo_train is
       fo_trainer *tr = fo_trainer_open(flow, data, &desc);
       while (fo_trainer_step(tr)) {}
       result = fo_trainer_close(tr);
   and a step is, with room for a loss of your own, which needs only its gradient,
       const fo_batch *b = fo_trainer_forward(tr);
       fo_trainer_backward(tr, dlog_prob, dz);
       fo_trainer_update(tr);
   Flow and data must live until fo_trainer_close, and a flow has one trainer at a time. */
typedef struct fo_trainer fo_trainer;
typedef struct fo_batch {
    int64_t        rows, positive; /* rows from `positive` on are of the negative data  */
    const int64_t *sample;   /* [rows] which samples they are                           */
    const double  *log_prob; /* [rows] finite: other batches are skipped, or an error   */
    const fo_real *z;        /* [rows][D] latents, as fo_encode gives them              */
} fo_batch;
FO_API fo_trainer *fo_trainer_open(fo_flow *flow, const fo_data *data, const fo_train_desc *desc);
/* NULL: training is over, by the desc or by an error that fo_trainer_close returns. */
FO_API const fo_batch *fo_trainer_forward(fo_trainer *tr);
/* dlog_prob[rows]: dLoss/d(log_prob); NULL: that of the usual loss, the mean of -log_prob.
   dz[rows][D]: what the loss asks of z besides that; NULL: nothing. */
FO_API fo_result fo_trainer_backward(fo_trainer *tr, const double *dlog_prob, const fo_real *dz);
FO_API fo_result fo_trainer_update(fo_trainer *tr);
FO_API int       fo_trainer_step(fo_trainer *tr); /* 0: training is over */
/* Back to the best measurement, if there was one, and a last progress call. */
FO_API fo_result fo_trainer_close(fo_trainer *tr);
/* After fo_backward: one step on a tape's own parameters, with the optimizer, rate, schedule, clip
   and decay of desc (NULL: defaults; no averages). Deferred statistics of batch norms follow.
   A gradient that is not finite changes nothing, and is an error unless on_nan is FO_NAN_SKIP. */
FO_API fo_result fo_tape_optimize(fo_tape *tape, const fo_train_desc *desc);

/* Checkpoints: weights, optimizer, moving average, positions, seeds and the flow's text. */
FO_API fo_result fo_save(fo_flow *flow, const char *path);
FO_API fo_flow  *fo_load_flow(fo_context *fo, const char *path);
/* Zero: everything, as fo_save does. */
typedef struct fo_save_desc {
    int      weights_only; /* 1: what scoring uses, to the same bits, and nothing else: the moving
                              average as the weights where there is one; no samples for scores
                              beside the verdict (neighbour, pca). A third or a quarter of the
                              size; training starts from it as from given weights */
    fo_dtype type;         /* of the weights if weights_only: FO_F16, FO_F32 or FO_F64; 0: as they
                              are. FO_F16 is half of FO_F32; scores of our presets move
                              by 1e-4 bpd on average, by less than 1e-3 at worst, so the
                              detector has to be calibrated again */
} fo_save_desc;
FO_API fo_result fo_save_as(fo_flow *flow, const char *path, const fo_save_desc *desc);
/* The bytes of such a file, in a block of the flow's context; NULL for desc: everything. */
FO_API fo_result fo_save_memory(fo_flow *flow, const fo_save_desc *desc, void **bytes,
                                size_t *size);
FO_API void      fo_save_free(fo_context *fo, void *bytes);
/* From the bytes of such a file, which are not needed any longer then: flash, a resource. */
FO_API fo_flow  *fo_load_flow_memory(fo_context *fo, const void *bytes, size_t size);
/* Weights by name into a flow that is already built: those that scoring uses, which in our own
   files are ema.* where they are complete. As with fo_set_params, what training knew about the old
   weights is forgotten. A PyTorch state_dict, saved with Python's safetensors, loads as it is when
   its modules bear these names; K is the layer's place in fo_flow_text (0: the first line after
   input), J counts from 0, a prefix such as "flow." may stand before all, X.weight_g, X.weight_v
   may be X.parametrizations.weight.original0, ...1, and [1,C,1,1] may stand for [C].
     coupling           K.scale; with a net that sees images K.rescale.weight_{g,v} [C,1,1]
       net=mlp          K.net.J.{weight,bias}, J over its linear layers
       net=resnet       K.net.{in_norm,out_norm}.{weight,bias,running_mean,running_var}
                        K.net.{in_conv,out_conv}.{weight_g,weight_v,bias}, K.net.skips.J.(same)
                        K.net.blocks.J.{norm1,norm2,conv1,conv2}.(same; conv1 without bias)
                        K.net.neck.{0,1}.{weight,bias}
       net=highway      K.net.{in_conv,out_conv,highway.J.conv,highway.J.gate}.{weight,bias}
       net=glow         K.net.{conv1,conv2,conv3}.{weight,bias}
       net=autoencoder  K.net.{down.J,neck.0,neck.1,up.J}.{weight,bias}
     actnorm            K.{bias,log_scale,measured}
     conv1x1            K.weight; lu=1: K.{lower,upper,log_diag,sign,order}
     standardize        K.{mean,std,measured,mean_rest}, where mean_rest is what float took off mean
     whiten             K.{mean,variance,vectors,shrink,measured}
   measured (1) and mean_rest (0) may be missing; dimensions of 1 do not count.
   fo_load_flow reads such a file too, if its metadata has the text under "flowood.text". */
FO_API fo_result fo_load_weights(fo_flow *flow, const char *path);

/* ================================================================================================
   >>api-detect    scores, where higher means more OOD, always; the detector; decisions

     likelihood         -log p(x): what the paper shows to fail, or to work
     latent             -log N(z; 0, I): the base density alone, without the volume change
     volume             -log|det dz/dx|
     typicality *       |-log p - mean of it|                               Nalisnick et al. 2019
     complexity *       -log p - min(L, L95): L is fo_code_length, L95 covers 95 % of the
                        calibration samples; uint8 data only                Serra et al. 2020
     orientation *      complexity, and on top of that by how much it falls for the likeliest of
                        the picture's mirrored and rotated copies: a picture that is right when it
                        is rotated lies wrong now. Eight encodes
     density-of-states * minus the log kernel densities of log p, base density and logdet
                                                                            Morningstar et al. 2021
     layers *           Mahalanobis distance of the layers' logdets
     normality *        of the latents' log A^2 (Anderson and Darling), spectral flatness and |z|^2
     gradient *         log |d log p / d parameters|^2 of each layer, standardised, squared; every
                        sample needs a backward pass of its own: as much time as six encodes of one
                        sample, or 90 in a batch of 256 (mlp-cycle)         Dauncey et al. 2024
     ratio              against a background model: fo_workspace_background  Ren et al. 2019
     neighbour *        distance to the nearest of 2,000 stored samples; a trivial rival
     pca *              what 32 principal components leave; a trivial rival
   Those with * compare with calibration samples: fo_calibrate fits them. All but orientation,
   gradient and ratio come from one encode. The first call in a workspace makes the room that a
   score needs, later ones allocate nothing; a score of your own does what its functions do.
   ============================================================================================= */
/* What a score may look at: one sample on its way through the flow. */
typedef struct fo_score_input {
    fo_shape             shape;
    int                  layers;     /* of the flow                                            */
    double               log_prob;   /* nats                                                   */
    const double        *terms;      /* [1 + layers]: base density, logdet of each layer       */
    const fo_real       *x, *z;      /* [c*h*w]: the sample (FO_SCORE_X), its latents          */
    const unsigned char *pixels;     /* x as bytes; FO_SCORE_PIXELS                            */
    const double        *gradient;   /* [layers]: log of squared norms; FO_SCORE_GRADIENT      */
    double               background; /* log_prob of the background model; FO_SCORE_BACKGROUND  */
    int                  views;      /* FO_SCORE_VIEWS: 8 (not square: 4) views of a picture, it */
    const double        *view;       /* itself first: [views][2] log_prob and fo_code_length     */
    double              *work;       /* room for 5*c*h*w + 64 doubles                          */
    void                *user;       /* that of the fo_score_kind                              */
} fo_score_input;

enum { /* what a score needs */
    FO_SCORE_PIXELS     = 1, /* uint8 data                                                     */
    FO_SCORE_GRADIENT   = 2,
    FO_SCORE_BACKGROUND = 4,
    FO_SCORE_SAMPLES    = 8, /* looks at x alone; is fitted to training samples if there are   */
    FO_SCORE_TWO_SIDED  = 16, /* both very high and very low values are unusual                */
    FO_SCORE_X          = 32, /* x; FO_SCORE_SAMPLES says so, too                              */
    FO_SCORE_VIEWS      = 64  /* the picture's mirrored and rotated copies; with FO_SCORE_PIXELS */
};

/* A score of your own, or one of the built-in ones: features of a sample, what is kept of the
   features of n calibration samples (state), and the value of features beside that. */
typedef struct fo_score_kind {
    const char *name, *formula, *source;
    int         flags;
    int (*width)(fo_shape shape, int layers);  /* features a sample; NULL: one               */
    void (*features)(const fo_score_input *in, double *features);
    int64_t (*size)(int width, int64_t n);     /* elements of state; NULL: nothing is fitted */
    fo_result (*fit)(fo_context *fo, const double *rows, int64_t n, int width, fo_real *state);
    /* Higher is more OOD; NULL: the first feature. work as in fo_score_input. */
    double (*value)(const double *features, int width, const fo_real *state, int64_t size,
                    double *work);
    void *user;
} fo_score_kind;
FO_API fo_result     fo_register_score(fo_context *fo, const fo_score_kind *kind);
/* Those that workspaces of fo know; NULL: the built-in ones. The name is NULL behind the last. */
FO_API fo_score_kind fo_score_at(const fo_context *fo, int i);

/* Scores of samples first .. first+count-1, under draw 0. */
FO_API fo_result fo_score(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                          const char *name, double *score);
/* Several from one encode: score[n_names][count]. */
#define FO_MAX_SCORES 32
FO_API fo_result fo_scores(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                           const char *const *names, int n_names, int draw, double *score);
/* The same of rows in memory; see fo_log_prob_rows. */
FO_API fo_result fo_score_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                               const char *name, double *score);
FO_API fo_result fo_scores_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                                const char *const *names, int n_names, int draw, double *score);
/* The model that `ratio` compares with; it must outlive the workspace. */
FO_API fo_result fo_workspace_background(fo_workspace *ws, fo_flow *background);

/* The length in nats of a picture's lossless code, by a small predictive coder: how complex is it?
   pixels[c][h][w]; three channels are taken for R, G, B and coded as G, R - G and B - G modulo 256,
   others one by one. */
FO_API double fo_code_length(const unsigned char *pixels, fo_shape shape);

/* Decisions from p-values. A p-value here is conformal (Vovk et al. 2005): the rank of a sample's
   statistic among n calibration samples, p = (1 + #{statistics at least as high})/(n + 1). If the
   sample comes from where they come from, P(p <= a) <= a for every a: exact for any n and any
   statistic. */

/* The highest p-value that is an alarm. confidence 0: a sample of the training distribution is an
   alarm with probability at most alpha, on average over calibrations; the limit is alpha. A
   confidence c in (0,1): with probability c over the n calibration samples, the rate of false
   alarms of this very calibration is at most alpha; that rate is Beta(k, n+1-k) for the limit
   k/(n+1) (Vovk 2012). Where n is too small for alpha, the error says how many are needed. */
FO_API fo_result fo_alarm_limit(fo_context *fo, int64_t n, double alpha, double confidence,
                                double *limit);
/* Many samples at once (Benjamini and Hochberg 1995): alarm[i] is 1 for the chosen ones, of which
   the expected share of false ones is at most alpha. *alarms (or NULL): how many. */
FO_API fo_result fo_benjamini_hochberg(fo_context *fo, const double *p, int64_t n, double alpha,
                                       unsigned char *alarm, int64_t *alarms);

/* A stream: has it left the training distribution? A conformal test martingale (Volkhonskiy et al.
   2017) is the capital of a player who bets that statistics are high. While the stream comes from
   where the calibration samples come from, the capital ever reaches 1/alpha with probability at
   most alpha (Ville), however long one looks. Samples of one fixed calibration set make p-values
   that depend on each other, so here every sample of the stream joins the calibration: ranks are
   counted in bins. The struct holds no pointers: copy it, write it to a file, go on from it. */
#define FO_MARTINGALE_BINS 256
#define FO_MARTINGALE_BETS 8
typedef struct fo_martingale {
    uint64_t seed, seen;                  /* of the random ranks in a bin; samples of the stream */
    double   edge[FO_MARTINGALE_BINS];    /* bin i holds statistics above edge[i]; they fall     */
    double   count[FO_MARTINGALE_BINS];   /* calibration samples and those of the stream         */
    double   stake[FO_MARTINGALE_BETS];   /* capital in play, by the strength of the bet         */
    double   capital, highest;            /* now, and at its best                                */
} fo_martingale;
/* Edges from n samples, counts from m others, none of them trained on. */
FO_API fo_result fo_martingale_start(fo_context *fo, fo_martingale *martingale,
                                     const double *edge_statistics, int64_t n,
                                     const double *calibration_statistics, int64_t m,
                                     uint64_t seed);
/* The next statistic of the stream, a number; returns the highest capital so far: the alarm is at
   1/alpha. */
FO_API double fo_martingale_add(fo_martingale *martingale, double statistic);

/* The detector turns scores into one p-value, and lives in the flow and its file. Calibration
   samples, which the flow was never trained on, are shuffled and cut in two. On the first half
   scores are fitted, and each score is mapped to a p-value of its own; the combination of those is
   the detector's statistic (of a single score, the score itself). The second half ranks it:
   p = (1 + #{statistics at least as high})/(n + 1), which is exact if the sample comes from where
   the calibration samples come from, whatever the scores are and however they hang together. */
typedef enum fo_combine { FO_COMBINE_MIN, FO_COMBINE_FISHER } fo_combine; /* of p-values */
typedef struct fo_detector_desc {
    const char *const *scores; /* of the verdict; NULL: complexity for uint8, else likelihood */
    int                n_scores;
    const char *const *also;   /* fitted and stored beside: for fo_score                       */
    int                n_also;
    fo_combine         combine;
    const fo_data     *samples; /* training data for neighbour and pca; NULL: the first half   */
    fo_flow           *background; /* for ratio                                                */
    uint64_t           seed;    /* of the cut into halves                                      */
} fo_detector_desc;
/* Fits the detector, in place of an older one, to 2 samples at least; on failure the older one
   stays. */
FO_API fo_result fo_calibrate(fo_flow *flow, const fo_data *data, const fo_detector_desc *desc);

typedef struct fo_detector_info {
    int64_t    fitted, ranked; /* samples of the two halves; 0: there is no detector */
    int        n_scores, n_also;
    fo_combine combine;
    int        stale;          /* the weights have changed since: calibrate again              */
    int64_t    steps;          /* of training, when it was fitted                              */
} fo_detector_info;
FO_API fo_detector_info fo_flow_detector(const fo_flow *flow);
/* Name of its score i: those of the verdict, then the others. NULL past the last. */
FO_API const char *fo_detector_score(const fo_flow *flow, int i);
FO_API void        fo_drop_detector(fo_flow *flow);

/* p-values of samples, p[count], statistic[count] and score[n_scores][count]: each may be NULL. */
FO_API fo_result fo_detect(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                           double *p, double *statistic, double *score);
/* Samples from memory, of the flow's shape. The first call makes room, later ones allocate
   nothing. */
FO_API fo_result fo_detect_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                                double *p, double *statistic, double *score);
/* The same from scores that were made before: score[n_scores][count], numbers, the scores of the
   verdict in their order, under draw 0. p and statistic as in fo_detect. */
FO_API fo_result fo_detector_rank(fo_flow *flow, const double *score, int64_t count, double *p,
                                  double *statistic);
/* The highest p-value that is an alarm: see fo_alarm_limit. */
FO_API fo_result fo_detector_limit(fo_flow *flow, double alpha, double confidence, double *limit);
/* A martingale for a stream of this detector's statistics. */
FO_API fo_result fo_detector_martingale(fo_flow *flow, uint64_t seed, fo_martingale *martingale);

/* ================================================================================================
   >>api-check     is this flow what it claims to be?
   ============================================================================================= */
/* What does not fit into the time is sampled: the report says how much was seen. */
typedef struct fo_check_desc {
    double seconds; /* 0: 30 */
    /* Called between measurements with what is being measured; not 0: stop there. */
    int  (*progress)(void *user, const char *part, int64_t done, int64_t of);
    void *user;
} fo_check_desc;

typedef struct fo_check_report {
    double round_trip;  /* max |x - decode(encode(x))|, grey levels for images             */
    double logdet_pair; /* max |logdet(encode) + logdet(decode)| / (1 + |logdet|)          */
    double jacobian;    /* |logdet - numeric log|det J|| / (1 + |logdet|), of the whole flow or,
                           layer by layer, of the worst layer; -1: not measured            */
    double gradient;    /* worst |numeric - analytic| slope of the loss along the gradient of each
                           parameter, relative to it or to 1 % of the largest             */
    int    untouched;   /* elements that no coupling changes                               */
    /* What was seen of it: */
    int64_t samples;    /* that went there and back, of at most 64                         */
    int64_t columns;    /* of the flow's Jacobian: D, or 0 where it was measured by layers, because
                           D > 1024 or time was short                                      */
    int     layers, layers_of;         /* whose Jacobian was measured, of how many         */
    int     parameters, parameters_of; /* whose gradient was, in an order of chance        */
} fo_check_report;
/* desc NULL: every default. Stopping early is no error. */
FO_API fo_result fo_check(fo_flow *flow, const fo_data *data, const fo_check_desc *desc,
                          fo_check_report *report);

/* Stop here if you only use the library. */
#endif /* FLOWOOD_H */

#if defined(FLOWOOD_IMPLEMENTATION) && !defined(FO__KERNEL_PASS)
/* ================================================================================================
   >>platform      the only #if chains about compilers and systems
   ============================================================================================= */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(_M_FP_FAST) ||              \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "flowood.h needs exact arithmetic and NaN, which -ffast-math and -Ofast take away: compile \
the file that implements it with -fno-fast-math behind them (others may keep -ffast-math)"
#endif
#include <errno.h>
#include <float.h>
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
#include <sys/types.h>
#include <sys/stat.h>
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <process.h>
/* As <windows.h> declares them, which would bring thousands of names along. */
#if defined(__cplusplus)
extern "C" {
#endif
union _LARGE_INTEGER;
__declspec(dllimport) int __stdcall QueryPerformanceCounter(union _LARGE_INTEGER *count);
__declspec(dllimport) int __stdcall QueryPerformanceFrequency(union _LARGE_INTEGER *rate);
__declspec(dllimport) int __stdcall MoveFileExA(const char *from, const char *to,
                                                unsigned long flags);
#if defined(__cplusplus)
}
#endif
#define FO__POSIX 0
#define fo__isatty(file) _isatty(_fileno(file))
#define fo__stat _stat64
#elif defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <unistd.h>
#define FO__POSIX 1
#define fo__isatty(file) isatty(fileno(file))
#define fo__stat stat
#ifndef CLOCK_MONOTONIC
#error "with a strict -std=c99, include flowood.h before every system header in the file that \
implements it, or define _POSIX_C_SOURCE as 200809L there: its clock and files are POSIX"
#endif
#else
#define FO__POSIX 0
#define fo__isatty(file) 0
#define fo__stat stat
#endif

/* Vector kernels: x86-64 compiles AVX2 and AVX-512 by attribute and asks the CPU at run time;
   AArch64 always has NEON. Double precision and FLOWOOD_NO_SIMD keep to plain C, and so does
   arithmetic that is wider than float (x87), which breaks the tricks of the vector kernels. */
#if defined(FLOWOOD_NO_SIMD) || defined(FLOWOOD_DOUBLE) || !defined(__GNUC__) ||                   \
    (FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16)
#define FO__VECTORS 0
#else
#define FO__VECTORS 1
#endif
#if !FO__VECTORS
#define FO__X86 0
#define FO__NEON 0
#elif defined(__x86_64__)
#define FO__X86 1
#define FO__NEON 0
#elif defined(__aarch64__)
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
#if defined(_WIN32)
    int64_t now = 0, rate = 1;
    QueryPerformanceCounter((union _LARGE_INTEGER *)(void *)&now);
    QueryPerformanceFrequency((union _LARGE_INTEGER *)(void *)&rate);
    return (double)now / (double)rate;
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

/* ---- files: sizes, new ones, and what it takes to have them on the disk ---------------------- */

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

#if defined(_WIN32)
/* A file that was not there before; NULL with errno EEXIST where it was. */
static FILE *fo__open_new(const char *path) {
    int file = _open(path, _O_CREAT | _O_EXCL | _O_WRONLY | _O_BINARY, _S_IREAD | _S_IWRITE);
    return file < 0 ? NULL : _fdopen(file, "wb");
}
/* To the disk; 0: done. */
static int fo__sync(FILE *file) { return fflush(file) != 0 || _commit(_fileno(file)) != 0; }
/* At any moment there is either the old file `to` or the new one. */
static int fo__replace(const char *from, const char *to) {
    errno = EACCES;
    return !MoveFileExA(from, to, 1 | 8); /* replace what is there, and write it through */
}
static void          fo__sync_folder(char *path) { (void)path; }
static unsigned long fo__process_id(void) { return (unsigned long)_getpid(); }
#elif FO__POSIX
static FILE *fo__open_new(const char *path) {
    int file = open(path, O_CREAT | O_EXCL | O_WRONLY, 0666);
    return file < 0 ? NULL : fdopen(file, "wb");
}
static int fo__sync(FILE *file) { /* EINVAL: a file system that has no such thing */
    return fflush(file) != 0 || (fsync(fileno(file)) != 0 && errno != EINVAL);
}
static int fo__replace(const char *from, const char *to) { return rename(from, to); }
/* The new name is in the folder, which has to reach the disk as well. Cuts the path. */
static void fo__sync_folder(char *path) {
    char *slash = strrchr(path, '/');
    int   folder;
    if (slash)
        slash[slash == path] = 0;
    folder = open(slash ? path : ".", O_RDONLY);
    if (folder >= 0) {
        fsync(folder); /* not every file system can: the file itself is safe by now */
        close(folder);
    }
}
static unsigned long fo__process_id(void) { return (unsigned long)getpid(); }
#else
static FILE *fo__open_new(const char *path) {
    errno = EEXIST;
    return fo__file_size(path) == FO__MISSING ? fopen(path, "wb") : NULL;
}
static int           fo__sync(FILE *file) { return fflush(file) != 0; }
static int           fo__replace(const char *from, const char *to) { return rename(from, to); }
static void          fo__sync_folder(char *path) { (void)path; }
static unsigned long fo__process_id(void) { return 0; }
#endif

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
    int                team; /* threads of a parallel region; desc.threads are the most */
    fo__kernels       *kernels;
    fo_op             *ops; /* the table of built-in ops */
    fo__block         *blocks;
    fo_memory_stats    memory;
    fo_result          failed;  /* of the current public call */
    int                inside;  /* calls that are parts of a call and do not start a new one */
    char               latest[512]; /* message of the last call that failed */
    fo_result          first;   /* since fo_clear_error, and its message */
    char               message[512];
    int                telling; /* error_fn is running: it is not told of its own errors */
    fo__arena          arena; /* registered names, caches: whatever lives as long as the context */
    struct fo__registry *registry; /* nets, masks and layers by name */
};

static void *fo__default_realloc(void *user, void *ptr, size_t old_size, size_t new_size) {
    (void)user, (void)old_size;
    if (new_size == 0) {
        free(ptr);
        return NULL;
    }
    return realloc(ptr, new_size);
}

/* Every public function that can fail begins with this: errors are local to a call. 0: there is
   no object, hence no context that could keep a message. */
static int fo__begin(fo_context *fo) {
    if (fo && fo->inside == 0)
        fo->failed = FO_OK;
    return fo != NULL;
}
#define FO__BEGIN(object) fo__begin((object) ? (object)->fo : NULL)

/* A function that is made of public ones stands between these two: what they report is its error,
   and so is what a user's op, net or mask reports. */
static void fo__enter(fo_context *fo) { fo->inside++; }

static fo_result fo__leave(fo_context *fo) {
    fo->inside--;
    return fo->failed;
}

/* A progress function and its like stand between these two: whatever they call is a call of its
   own, of which the interrupted one knows nothing. */
typedef struct fo__interrupted { fo_result failed; int inside; } fo__interrupted;

static fo__interrupted fo__interrupt(fo_context *fo) {
    fo__interrupted call;
    call.failed = fo->failed;
    call.inside = fo->inside;
    fo->failed  = FO_OK;
    fo->inside  = 0;
    return call;
}

static void fo__resume(fo_context *fo, fo__interrupted call) {
    fo->failed = call.failed;
    fo->inside = call.inside;
}

static fo_result fo__vfail(fo_context *fo, fo_result code, const char *format, va_list args) {
    if (fo == NULL || fo->failed != FO_OK)
        return code; /* the first error of a call explains its later ones */
    fo->failed = code;
    vsnprintf(fo->latest, sizeof fo->latest, format, args);
    if (fo->first == FO_OK) {
        fo->first = code;
        memcpy(fo->message, fo->latest, sizeof fo->message);
    }
    if (fo->desc.error_fn && !fo->telling) {
        fo__interrupted call = fo__interrupt(fo);
        fo->telling          = 1;
        fo->desc.error_fn(fo->desc.user, code, fo->latest);
        fo->telling          = 0;
        fo__resume(fo, call);
    }
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
    fo__begin(fo);
    va_start(args, format);
    if (format == NULL)
        format = "an error without a message";
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

static fo_real *fo__reals(fo__arena *arena, int64_t count) {
    return (fo_real *)fo__arena_alloc(arena, fo__times(count + 1, sizeof(fo_real)));
}

static double *fo__doubles(fo__arena *arena, int64_t count) {
    return (double *)fo__arena_alloc(arena, fo__times(count + 1, sizeof(double)));
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

int fo_version(void) { return FLOWOOD_VERSION; }

fo_result fo_failed(const fo_context *fo) { return fo ? fo->first : FO_ERR_MEMORY; }

const char *fo_error(const fo_context *fo) {
    return fo ? fo->message : "out of memory: no context could be opened";
}

void fo_clear_error(fo_context *fo) {
    if (fo) {
        fo->first      = FO_OK;
        fo->message[0] = 0;
    }
}

/* Tables with pointers in them are built where they are used: as static data they would have to be
   relocated at start-up, which puts them among the writable ones. */
const char *fo_result_name(fo_result code) {
    switch (code) {
#define FO__TEXT(name, text)                                                                       \
    case FO_##name: return text;
        FO_RESULTS(FO__TEXT)
#undef FO__TEXT
    default: return "unknown result";
    }
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
#define FO__STREAM_NOISE ((uint64_t)1 << 60)   /* of training: + epoch * 2^40 + sample */
#define FO__STREAM_INIT ((uint64_t)2 << 60)    /* + parameter            */
#define FO__STREAM_SHUFFLE ((uint64_t)3 << 60) /* + epoch                */
#define FO__STREAM_BASE ((uint64_t)4 << 60)    /* + sample: z            */
#define FO__STREAM_MASK ((uint64_t)5 << 60)    /* + partition            */
#define FO__STREAM_CHECK ((uint64_t)6 << 60)
#define FO__STREAM_PERMUTE ((uint64_t)7 << 60)
#define FO__STREAM_MARTINGALE ((uint64_t)8 << 60)
#define FO__STREAM_CALIBRATE ((uint64_t)15 << 60)
#define FO__STREAM_ORDER ((uint64_t)11 << 60)  /* of samples, for fo_data_shuffle */
#define FO__STREAM_SCORE ((uint64_t)9 << 60)   /* noise of scoring: + draw   */
#define FO__STREAM_CONSTANT ((uint64_t)10 << 60) /* + the stream of the sample's noise */

void fo_random_bits(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    int      round;
    if (out == NULL)
        return;
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
    for (i = 0; i < (out ? n : 0); i++) {
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
    for (i = 0; i < (out ? n : 0); i++) {
        uint64_t at = first + (uint64_t)i;
        double   radius, angle;
        if (i == 0 || at % 4 == 0)
            fo_random_bits(seed, stream, at / 4, four);
        radius = sqrt(-2 * log(fo__unit(four[at % 4 / 2 * 2])));
        angle  = two_pi * fo__unit(four[at % 4 / 2 * 2 + 1]);
        out[i] = (fo_real)(radius * (at % 2 ? sin(angle) : cos(angle)));
    }
}

/* The number below n for step i of a shuffle: 64 random bits, taken modulo n. */
static int64_t fo__below(uint64_t seed, uint64_t stream, int64_t i, int64_t n) {
    uint32_t four[4];
    fo_random_bits(seed, stream, (uint64_t)i, four);
    return (int64_t)((((uint64_t)four[1] << 32) | four[0]) % (uint64_t)n);
}

/* n items of `size` bytes in an order of chance (Fisher and Yates): the same order for any size. */
static void fo__shuffle(void *items, int64_t n, size_t size, uint64_t seed, uint64_t stream) {
    unsigned char *at = (unsigned char *)items;
    int64_t        i;
    size_t         k;
    for (i = n - 1; i > 0; i--) {
        const int64_t  j = fo__below(seed, stream, i, i + 1);
        unsigned char *a = at + (size_t)i * size, *b = at + (size_t)j * size;
        for (k = 0; k < size; k++) {
            const unsigned char byte = a[k];
            a[k] = b[k];
            b[k] = byte;
        }
    }
}

/* ================================================================================================
   >>parallel      ranges over threads, and how many of them are worth having

   Invariants a range is split once, statically; nothing is stolen or queued. Nothing forks for
              one thread, for short ranges, or inside a parallel region
   Why        OpenMP's threads wait for each other by spinning. Where another process wants the same
              core, a join takes a time slice (milliseconds) instead of a microsecond: two threads
              can be a hundred times slower than one. Bits do not depend on the number of threads,
              so it may change while the work runs: see fo__pace
   Callers    the matrix product, and any op that works sample by sample
   Cost       1 to 2 microseconds for a fork and a join on a quiet machine
   ============================================================================================= */
void fo_parallel_for(fo_context *fo, int64_t n, int64_t grain,
                     void (*fn)(void *arg, int64_t begin, int64_t end), void *arg) {
#if FO__OPENMP
    int64_t most = n / FO__MAX(grain, 1);
    int     team = (int)FO__MIN(most, (int64_t)(fo && fn ? fo->team : 1));
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
    if (n > 0 && fn)
        fn(arg, 0, n);
}

/* How many threads a new context may use: what OMP_NUM_THREADS and OMP_THREAD_LIMIT leave, and one
   where the caller is a member of a team already. */
static int fo__usable_threads(int asked) {
#if FO__OPENMP
    int most = FO__MIN(omp_get_max_threads(), omp_get_thread_limit());
    if (asked > 0)
        return FO__MIN(asked, omp_get_thread_limit());
    return omp_in_parallel() ? 1 : FO__MAX(most, 1);
#else
    (void)asked;
    return 1;
#endif
}

/* A thread's part of a region should take 10 microseconds at least: how many items is that?
   Estimates: a multiply-add of a product 0.02 ns, an element that passes through the cache 0.4.
   25 microseconds cost 7 % of training mlp-cycle on two threads. */
#define FO__NS_PRODUCT 0.02
#define FO__NS_ELEMENT 0.4
static int64_t fo__grain(double nanoseconds_per_item) {
    return (int64_t)(10e3 / FO__MAX(nanoseconds_per_item, 1e-3)) + 1;
}

/* The pace of work that repeats (steps of training, batches of scoring): which number of threads is
   the fastest now? Work starts on one thread; the pace tries twice as many or half as many for two
   units and moves where that is faster. Until the next trial it waits a hundred times as long as
   this one lost, so that trials cost about 1 %, and ten times as long as it took: a trial that a
   moment of other work spoilt does not count for long. Two units in a row that take more than twice
   as long as those before call for a trial at once: the machine has become busy. */
typedef struct fo__pace {
    int    level, trial;     /* threads >> level; the level on trial */
    int    units, up;        /* of the trial, or of the start; the direction of the last trial */
    int    on_trial, slow;   /* slow: units in a row that took more than twice the usual */
    double cost;             /* seconds for a piece of work at this level: recent mean */
    double trial_cost, trial_begin, unit_begin, next;
} fo__pace;

static int fo__pace_top(const fo_context *fo) { /* the level of one thread */
    int level = 0;
    while (fo->desc.threads >> level > 1)
        level++;
    return level;
}

static void fo__pace_begin(fo_context *fo, fo__pace *p, double now) {
    const int top = fo__pace_top(fo);
    if (p->units == 0 && p->cost == 0)
        p->level = top;
    if (!p->on_trial && p->cost > 0 && now >= p->next && top > 0) {
        p->up          = p->level == top ? 1 : p->level == 0 ? 0 : !p->up;
        p->trial       = p->level + (p->up ? -1 : 1);
        p->on_trial    = 1;
        p->units       = 0;
        p->trial_cost  = 0;
        p->trial_begin = now;
    }
    p->unit_begin = now;
    fo->team      = FO__MAX(fo->desc.threads >> (p->on_trial ? p->trial : p->level), 1);
}

/* `work` pieces of work are done. */
static void fo__pace_end(fo_context *fo, fo__pace *p, double now, double work) {
    const double cost = (now - p->unit_begin) / FO__MAX(work, 1), took = now - p->trial_begin;
    fo->team = fo->desc.threads;
    p->units++;
    if (p->on_trial) {
        p->trial_cost += cost / 2;
        if (p->units < 2)
            return;
        p->on_trial = 0;
        p->next     = now + took * FO__MAX(10, 100 * (1 - p->cost / p->trial_cost));
        if (p->trial_cost < 0.9 * p->cost) {
            p->level = p->trial;
            p->cost  = p->trial_cost;
            p->up    = !p->up; /* the next trial goes on in this direction, */
            p->next  = now;    /* and at once */
        }
        return;
    }
    if (p->units == 1)
        return; /* the first unit touches its memory for the first time */
    p->slow = p->cost > 0 && cost > 2 * p->cost ? p->slow + 1 : 0;
    if (p->slow == 2) {
        p->slow = 0;
        p->cost = cost;
        p->next = now;
    } else if (p->slow == 0) {
        p->cost = p->cost > 0 ? p->cost + 0.2 * (cost - p->cost) : cost;
    }
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
#define FLOWOOD_SELF "flowood.h" /* this file, for itself: renamed it? Then define FLOWOOD_SELF */
#endif

#if FO__VECTORS
#if FO__X86
#include <immintrin.h>
#elif FO__NEON
#include <arm_neon.h>
#endif
#endif

typedef struct fo__adam {
    double grad_scale, beta1, beta2;
    double step;  /* lr / (1 - beta1^t)     */
    double root;  /* 1 / sqrt(1 - beta2^t)  */
    double eps;
    double decay; /* 1 - lr * weight_decay  */
    double ema;   /* of the moving average  */
} fo__adam;

/* C[i,j] = (add ? C[i,j] : 0) + bias[j] + row_bias[i] + sum over p of A[i,p] * B[p,j], strides in
   elements. For convolutions, columns of A or B may come in runs: column j lies at j / run * step +
   j % run * col; and tables may say where each row begins. Of such a B, FO__SLACK elements after
   the last one must be readable. */
typedef struct fo__product {
    int64_t            m, n, k;
    const fo_real     *a;
    int64_t            a_row, a_col, a_run, a_step;
    const int64_t     *a_at; /* where row i of A begins, or NULL: at i * a_row */
    const fo_real     *b;
    int64_t            b_row, b_col, b_run, b_step;
    const int64_t     *b_at; /* the same of B, whose runs then have b_col 1; NULL: no runs  */
    fo_real           *c;
    int64_t            c_row;
    const fo_real     *bias, *row_bias; /* of columns, of rows; or NULL */
    const fo_real     *panels; /* or NULL: instead of B, its panels of `panel` columns as tiles read
                                  them, a row of zeros and k rows each, `panel_step` apart */
    int64_t            panel, panel_step;
    int                add, by_rows;
    const fo__kernels *kernels;
} fo__product;

#define FO__ONE_RUN INT64_MAX
#define FO__SLACK 16

static inline int64_t fo__column(int64_t j, int64_t run, int64_t step, int64_t col) {
    return j < run ? j * col : j / run * step + j % run * col;
}

/* Pictures cut into tiles of 4 x 4, for winograd: see >>winograd. */
typedef struct fo__tiles {
    int64_t h, w, padding; /* of a picture, and the zeros around it */
    int64_t wide;          /* tiles in a row of tiles */
    int64_t step, next;    /* elements from one of the 36 places to the next, and between tiles */
    int     overlap;       /* a tile reads 6 x 6 elements, not 4 x 4 */
} fo__tiles;

/* Normalization of one channel: y = max((x - mean) * gain + shift, floor). */
typedef struct fo__norm_line { fo_real mean, gain, shift, floor; } fo__norm_line;

typedef void fo__map(int64_t n, const fo_real *x, fo_real *y);
typedef void fo__map_scalar(int64_t n, fo_real a, const fo_real *x, fo_real *y);
typedef void fo__zip(int64_t n, const fo_real *x, const fo_real *y, fo_real *z);

/* Array functions: a row makes the field, the loop, its plain twin and the entry of the table.
   Functions of one array: name, and the plain twin in double; the vector form is FO__(NAME_v). */
#define FO__MAPS(X)                                                                                \
    X(exp, exp(x))                                                                                 \
    X(log, log(x))                                                                                 \
    X(tanh, tanh(x))                                                                               \
    X(sigmoid, (x < 0 ? exp(x) : 1) / (1 + exp(-fabs(x))))                                         \
    X(softplus, (x > 0 ? x : 0) + log1p(exp(-fabs(x))))
/* Arithmetic of vectors, on every path the same: name, kind, which argument is written, value. */
#define FO__ARITHMETIC(X)                                                                          \
    X(leaky, map_scalar, y, FO__(leaky_v)(FO__IN(x), a))                                           \
    X(scale, map_scalar, y, FO__IN(x) * a)                                                         \
    X(axpy, map_scalar, y, FO__IN(x) * a + FO__IN(y))                                              \
    X(add, zip, z, FO__IN(x) + FO__IN(y))                                                          \
    X(sub, zip, z, FO__IN(x) - FO__IN(y))                                                          \
    X(mul, zip, z, FO__IN(x) * FO__IN(y))                                                          \
    X(muladd, zip, z, FO__IN(x) * FO__IN(y) + FO__IN(z))                                           \
    X(tanh_grad, zip, z, FO__IN(y) * (1 - FO__IN(x) * FO__IN(x)) + FO__IN(z))                      \
    X(sigmoid_grad, zip, z, FO__IN(y) * (FO__IN(x) * (1 - FO__IN(x))) + FO__IN(z))
/* All others, which differ in their arguments: see the fields below. */
#define FO__OTHER_KERNELS(X)                                                                       \
    X(product) X(leaky_grad) X(sum) X(sumsq) X(dot) X(moments) X(norm) X(norm_sums) X(norm_grad)   \
    X(winograd_input) X(winograd_output) X(winograd_weights) X(winograd_gradient) X(adam)          \
    X(couple) X(uncouple)

/* Outputs may be inputs. NaN goes in, NaN comes out; infinities give the limits. */
struct fo__kernels {
    const char *name;
    fo_simd     simd;
    int         mr, nr, lanes; /* a tile of C is mr x nr, nr a multiple of the vector's lanes */
    /* Rows [i0,i1) and columns [j0,j1) of a product. */
    void (*product)(const fo__product *g, int64_t i0, int64_t i1, int64_t j0, int64_t j1);
#define FO__FIELD(name, plain) fo__map *name;
    FO__MAPS(FO__FIELD)
#undef FO__FIELD
#define FO__FIELD(name, kind, out, value) fo__##kind *name;
    FO__ARITHMETIC(FO__FIELD)
#undef FO__FIELD
    /* dx += dy * (y > 0 ? 1 : slope) */
    void (*leaky_grad)(int64_t n, fo_real slope, const fo_real *y, const fo_real *dy, fo_real *dx);
    double (*sum)(int64_t n, const fo_real *x);
    double (*sumsq)(int64_t n, const fo_real *x);
    double (*dot)(int64_t n, const fo_real *x, const fo_real *y);
    /* sum[0] += sum of d, sum[1] += sum of d * d, with d = x - origin */
    void (*moments)(int64_t n, fo_real origin, const fo_real *x, double sum[2]);
    void (*norm)(int64_t n, const fo__norm_line *line, const fo_real *x, fo_real *y);
    /* With dz = dy where y > floor, else 0: sum[0] += sum of dz, sum[1] += sum of dz (x - mean) */
    void (*norm_sums)(int64_t n, const fo__norm_line *line, const fo_real *x, const fo_real *dy,
                      double sum[2]);
    /* dx = (add ? dx : 0) + k[0] dz + k[1] (x - mean) + k[2] */
    void (*norm_grad)(int64_t n, const fo__norm_line *line, const fo_real k[3], int add,
                      const fo_real *x, const fo_real *dy, fo_real *dx);
    /* Winograd's transforms of `lanes` channels, or of the first n of so many; rows of tiles
       [begin,end) of a picture. NULL: this path has none. See >>winograd. */
    void (*winograd_input)(const fo__tiles *t, int64_t n, const fo_real *x, int64_t begin,
                           int64_t end, fo_real *frame, fo_real *to);
    void (*winograd_output)(const fo__tiles *t, int64_t n, const fo_real *from, int64_t begin,
                            int64_t end, const fo_real *bias, int add, fo_real *y);
    /* The 3 x 3 weights of n pairs of channels, `apart` elements from one to the next. */
    void (*winograd_weights)(int64_t n, const fo_real *w, int64_t apart, int rotate, fo_real *to,
                             int64_t step);
    void (*winograd_gradient)(int64_t n, const fo_real *from, int64_t step, int add, fo_real *dw,
                              int64_t apart);
    /* One step of Adam; decay < 1 makes it AdamW; ema, if any, is a moving average of p. */
    void (*adam)(int64_t n, const fo__adam *o, fo_real *p, const fo_real *g, fo_real *m,
                 fo_real *v, fo_real *ema);
    /* A coupling's elements, s = scale tanh(raw): y = (x + t) exp(s), or back, y = x exp(-s) - t.
       Returns the sum of s. */
    double (*couple)(int64_t n, int decode, const fo_real *scale, const fo_real *raw,
                     const fo_real *t, const fo_real *x, fo_real *y);
    /* Their gradients from y, dy and c = dLoss/d(sum of s): dx (and dt) = dy exp(s),
       draw = ds scale (1 - tanh^2) and dscale = ds tanh with ds = dy y + c. */
    void (*uncouple)(int64_t n, fo_real c, const fo_real *scale, const fo_real *raw,
                     const fo_real *y, const fo_real *dy, fo_real *dx, fo_real *draw,
                     fo_real *dscale);
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

/* An unrolled loop, so that arrays of vectors become registers. */
#if defined(__clang__)
#define FO__EACH(i, count) _Pragma("clang loop unroll(full)") for (i = 0; i < (count); i++)
#else
#define FO__EACH(i, count) _Pragma("GCC unroll 8") for (i = 0; i < (count); i++)
#endif

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
#define FO__AT_LEAST(a, low) ((FO__V)_mm512_maskz_max_ps(0xFFFF, FO__(all)(low), a))
#define FO__AT_MOST(a, high) ((FO__V)_mm512_maskz_min_ps(0xFFFF, FO__(all)(high), a))
#define FO__TIMES_POWER2(q, n)                                                                     \
    ((FO__V)_mm512_maskz_scalef_ps(0xFFFF, q, __builtin_convertvector(n, FO__V)))
#define FO__FIRST(left) ((__mmask16)((1u << (left)) - 1))
#define FO__LOAD_PART(v, p, left) v = (FO__V)_mm512_maskz_loadu_ps(FO__FIRST(left), p)
#define FO__STORE_PART(v, p, left) _mm512_mask_storeu_ps(p, FO__FIRST(left), (__m512)(v))
#define FO__FOUR(p) _mm_loadu_ps(p)
#define FO__PAIR(p, step)                                                                          \
    _mm256_insertf128_ps(_mm256_castps128_ps256(FO__FOUR(p)), FO__FOUR((p) + (step)), 1)
#define FO__FOURTH(v, i) _mm512_maskz_extractf32x4_ps(0xF, (__m512)(v), i)
#define FO__PUT_FOURS(p, step, v)                                                                  \
    (_mm_storeu_ps(p, FO__FOURTH(v, 0)), _mm_storeu_ps((p) + (step), FO__FOURTH(v, 1)),            \
     _mm_storeu_ps((p) + 2 * (step), FO__FOURTH(v, 2)),                                            \
     _mm_storeu_ps((p) + 3 * (step), FO__FOURTH(v, 3)))
#define FO__FOURS(p, step)                                                                         \
    ((FO__V)_mm512_insertf32x8(_mm512_castps256_ps512(FO__PAIR(p, step)),                          \
                               FO__PAIR((p) + 2 * (step), step), 1))
#define FO__WIDEN(v, part)                                                                         \
    ((FO__(wide))_mm512_maskz_cvtps_pd(                                                            \
        0xFF, _mm512_maskz_extractf32x8_ps(0xFF, (__m512)(v), part)))
#elif FO__KERNEL_PASS == 4
#define FO__ISA avx2
#define FO__W 8
#define FO__MR 4
#define FO__TARGET __attribute__((target("avx2,fma")))
#define FO__FMA(a, b, c) ((FO__V)_mm256_fmadd_ps(a, b, c))
#define FO__SQRT(a) ((FO__V)_mm256_sqrt_ps(a))
#define FO__AT_LEAST(a, low) ((FO__V)_mm256_max_ps(FO__(all)(low), a))
#define FO__AT_MOST(a, high) ((FO__V)_mm256_min_ps(FO__(all)(high), a))
#define FO__PICK(mask, a, b)                                                                       \
    ((FO__V)_mm256_blendv_ps((__m256)(b), (__m256)(a), (__m256)(mask)))
#define FO__FOURS(p, step)                                                                         \
    ((FO__V)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),                          \
                                 _mm_loadu_ps((p) + (step)), 1))
#define FO__WIDEN(v, part)                                                                         \
    ((FO__(wide))_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)(v), part)))
#define FO__PUT_FOURS(p, step, v)                                                                  \
    (_mm_storeu_ps(p, _mm256_castps256_ps128((__m256)(v))),                                        \
     _mm_storeu_ps((p) + (step), _mm256_extractf128_ps((__m256)(v), 1)))
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
#ifndef FO__FOURS
#define FO__FOURS(p, step) FO__(load)(p, FO__W)
#define FO__PUT_FOURS(p, step, v) FO__(store)(p, v, FO__W)
#endif
#ifndef FO__LOAD_PART
#define FO__LOAD_PART(v, p, left) memcpy(&(v), p, (size_t)(left) * sizeof *(p))
#define FO__STORE_PART(v, p, left) memcpy(p, &(v), (size_t)(left) * sizeof *(p))
#endif

typedef float   FO__V __attribute__((vector_size(4 * FO__W)));
typedef int32_t FO__I __attribute__((vector_size(4 * FO__W)));

FO__INLINE FO__V FO__(load)(const float *p, int64_t left) {
    FO__V v = {0};
    if (left >= FO__W)
        memcpy(&v, p, sizeof v);
    else if (left > 0)
        FO__LOAD_PART(v, p, left);
    return v;
}

FO__INLINE void FO__(store)(float *p, FO__V v, int64_t left) {
    if (left >= FO__W)
        memcpy(p, &v, sizeof v);
    else if (left > 0)
        FO__STORE_PART(v, p, left);
}

FO__INLINE FO__V FO__(all)(float x) { /* the same in every lane */
    FO__V zero = {0};
    return zero + x;
}
FO__INLINE FO__V FO__(pick)(FO__I mask, FO__V a, FO__V b) {
    return (FO__V)((mask & (FO__I)a) | (~mask & (FO__I)b));
}
/* Of every four elements of two vectors, the first two interleaved, and the last two. */
#if FO__W == 16
#define FO__LOW4 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define FO__HIGH4 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#elif FO__W == 8
#define FO__LOW4 0, 8, 1, 9, 4, 12, 5, 13
#define FO__HIGH4 2, 10, 3, 11, 6, 14, 7, 15
#else
#define FO__LOW4 0, 4, 1, 5
#define FO__HIGH4 2, 6, 3, 7
#endif
#if defined(__clang__)
#define FO__SHUFFLE(name, ...)                                                                     \
    FO__INLINE FO__V FO__(name)(FO__V a, FO__V b) {                                                \
        return __builtin_shufflevector(a, b, __VA_ARGS__);                                         \
    }
#else
#define FO__SHUFFLE(name, ...)                                                                     \
    FO__INLINE FO__V FO__(name)(FO__V a, FO__V b) {                                                \
        const FO__I at = {__VA_ARGS__};                                                            \
        return __builtin_shuffle(a, b, at);                                                        \
    }
#endif
FO__SHUFFLE(low4, FO__LOW4)
FO__SHUFFLE(high4, FO__HIGH4)

/* Four columns of FO__W rows, `step` apart: a row's four numbers come as one load, and squares of
   4 x 4 are transposed in registers. v[q][i] = from[i * step + q]. */
FO__INLINE void FO__(columns4)(const float *from, int64_t step, FO__V v[4]) {
    FO__V a = FO__FOURS(from, 4 * step), b = FO__FOURS(from + step, 4 * step);
    FO__V c = FO__FOURS(from + 2 * step, 4 * step), d = FO__FOURS(from + 3 * step, 4 * step);
    FO__V ac = FO__(low4)(a, c), bd = FO__(low4)(b, d);
    v[0] = FO__(low4)(ac, bd), v[1] = FO__(high4)(ac, bd);
    ac = FO__(high4)(a, c), bd = FO__(high4)(b, d);
    v[2] = FO__(low4)(ac, bd), v[3] = FO__(high4)(ac, bd);
}

/* And back: to[i * step + q] = v[q][i]. */
FO__INLINE void FO__(put_columns4)(const FO__V v[4], float *to, int64_t step) {
    FO__V ac = FO__(low4)(v[0], v[2]), bd = FO__(low4)(v[1], v[3]);
    FO__PUT_FOURS(to, 4 * step, FO__(low4)(ac, bd));
    FO__PUT_FOURS(to + step, 4 * step, FO__(high4)(ac, bd));
    ac = FO__(high4)(v[0], v[2]), bd = FO__(high4)(v[1], v[3]);
    FO__PUT_FOURS(to + 2 * step, 4 * step, FO__(low4)(ac, bd));
    FO__PUT_FOURS(to + 3 * step, 4 * step, FO__(high4)(ac, bd));
}

/* The same where only the first `rows` rows and n columns exist; others are read as zeros. */
FO__TARGET static void FO__(columns)(const float *from, int64_t step, int64_t rows, int64_t n,
                                     FO__V v[4]) {
    float   room[4 * FO__W] = {0};
    int64_t i, q;
    for (i = 0; i < rows; i++)
        for (q = 0; q < n; q++)
            room[4 * i + q] = from[i * step + q];
    FO__(columns4)(room, 4, v);
}

FO__TARGET static void FO__(put_columns)(const FO__V v[4], float *to, int64_t step, int64_t rows,
                                         int64_t n) {
    float   room[4 * FO__W];
    int64_t i, q;
    FO__(put_columns4)(v, room, 4);
    for (i = 0; i < rows; i++)
        for (q = 0; q < n; q++)
            to[i * step + q] = room[4 * i + q];
}

#if FO__KERNEL_PASS == 2
FO__INLINE FO__V FO__(sqrt)(FO__V a) {
    int i;
    for (i = 0; i < FO__W; i++)
        a[i] = sqrtf(a[i]);
    return a;
}
#endif

/* Half of a vector as doubles, and the sum of such a half. gcc makes several instructions of this
   where AVX2 and AVX-512 have one: named above, it lets sums run 1.5 to 2 times as fast (AVX2). */
typedef float  FO__(half) __attribute__((vector_size(2 * FO__W)));
typedef double FO__(wide) __attribute__((vector_size(4 * FO__W)));
#ifndef FO__WIDEN
FO__INLINE FO__(wide) FO__(widen)(FO__V v, int part) {
    FO__(half) half;
    memcpy(&half, (const char *)&v + part * (int)sizeof half, sizeof half);
    return __builtin_convertvector(half, FO__(wide));
}
#define FO__WIDEN(v, part) FO__(widen)(v, part)
#endif

FO__INLINE double FO__(total)(FO__(wide) v) {
    double total = 0;
    int    i;
    for (i = 0; i < FO__W / 2; i++)
        total += v[i];
    return total;
}
#define FO__LOAD(p, left) FO__(load)(p, left)
#define FO__STORE(p, value, left) FO__(store)(p, value, left)
#ifndef FO__PICK
#define FO__PICK(mask, a, b) FO__(pick)((FO__I)(mask), a, b)
#endif
#ifndef FO__AT_LEAST /* NaN stays NaN */
#define FO__AT_LEAST(a, low) FO__PICK((a) < (low), FO__(all)(low), a)
#define FO__AT_MOST(a, high) FO__PICK((a) > (high), FO__(all)(high), a)
#endif
#endif

/* ================================================================================================
   >>kernels       what the time goes into: functions of arrays, Adam

   Invariants a number's result depends on its inputs only, not on its place in the array; sums run
              in double lanes, in an order that depends on the length only
   ============================================================================================= */

/* Functions of one vector; in the plain pass, of one number, in libm's double precision. The
   polynomials were fitted by minimax over the reduced range. Multiply-adds are written out, since
   -std=c99 fuses none by itself: exp 1.8, log 1.4, tanh 1.7 G elements/s a thread with AVX2
   instead of 1.1, 0.9, 1.05. */
#if FO__KERNEL_PASS == 1
#define FO__PLAIN(name, plain)                                                                     \
    FO__INLINE FO__V FO__(name##_v)(FO__V number) {                                                \
        const double x = (double)number;                                                           \
        return (FO__V)(plain);                                                                     \
    }
FO__MAPS(FO__PLAIN)
#undef FO__PLAIN
#else
/* x = n ln 2 + r with |r| <= ln 2 / 2; returns exp(r) - 1, exact where r is tiny. Adding 1.5 * 2^23
   rounds to an integer and leaves it in the low bits; ln 2 comes in two parts, n times the first
   of which is exact (Cody and Waite 1980). */
FO__INLINE FO__V FO__(expm1_part)(FO__V x, FO__I *n) {
    const FO__V zero = {0}, magic = zero + 12582912.0f;
    FO__V shifted = FO__FMA(x, zero + 1.44269504f, magic);
    FO__V whole   = shifted - magic;
    FO__V r       = FO__FMA(whole, zero + 2.12194440e-4f, FO__FMA(whole, zero - 0.693359375f, x));
    FO__V q       = FO__FMA(r, zero + 0.00138824945f, zero + 0.00836664718f);
    *n = (FO__I)shifted - 0x4B400000;
    q  = FO__FMA(q, r, zero + 0.0416672044f);
    q  = FO__FMA(q, r, zero + 0.16666542f);
    q  = FO__FMA(q, r, zero + 0.49999997f);
    return FO__FMA(q * r, r, r);
}

FO__INLINE FO__V FO__(power2)(FO__I n) { return (FO__V)((n + 127) << 23); }

/* The scale goes on in two halves, or in an instruction: neither overflows where the result does
   not, and results below FLT_MIN are rounded once. Down (n <= 0), the halves are 2^(n + 64) and
   2^-64: sigmoid 16 %, softplus 6 % faster, AVX2. */
#ifndef FO__TIMES_POWER2
#define FO__TIMES_POWER2(q, n) ((q) * FO__(power2)((n) >> 1) * FO__(power2)((n) - ((n) >> 1)))
#define FO__TIMES_POWER2_DOWN(q, n) ((q) * FO__(power2)((n) + 64) * 5.42101086242752217e-20f)
#else
#define FO__TIMES_POWER2_DOWN FO__TIMES_POWER2
#endif
FO__INLINE FO__V FO__(exp_v)(FO__V x) {
    FO__V q;
    FO__I n;
    q = FO__(expm1_part)(FO__AT_MOST(FO__AT_LEAST(x, -105.0f), 90.0f), &n) + 1.0f;
    return FO__TIMES_POWER2(q, n);
}

/* log(1 + f) + e ln 2 for 1 + f in [sqrt(1/2), sqrt(2)]. */
FO__INLINE FO__V FO__(log1p_part)(FO__V f, FO__V e) {
    const FO__V zero = {0};
    FO__V q = FO__FMA(f, zero - 0.0763432086f, zero + 0.127654016f);
    q = FO__FMA(q, f, zero - 0.131620169f);
    q = FO__FMA(q, f, zero + 0.142013729f);
    q = FO__FMA(q, f, zero - 0.166231439f);
    q = FO__FMA(q, f, zero + 0.200012356f);
    q = FO__FMA(q, f, zero - 0.250008255f);
    q = FO__FMA(q, f, zero + 0.333333313f);
    q = FO__FMA(e, zero - 2.12194440e-4f, FO__FMA(q, f, zero - 0.5f) * (f * f));
    return FO__FMA(e, zero + 0.693359375f, q + f);
}

FO__INLINE FO__V FO__(log_v)(FO__V x) {
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

FO__INLINE FO__V FO__(abs_v)(FO__V x) { return (FO__V)((FO__I)x & 0x7FFFFFFF); }

/* With t = exp(2|x|) - 1, tanh |x| = t / (t + 2), good to the last bits near 0 too. */
FO__INLINE FO__V FO__(tanh_v)(FO__V x) {
    FO__V a = FO__(abs_v)(x), scale, t;
    FO__I n;
    a     = FO__AT_MOST(a, 10.0f);
    t     = FO__(expm1_part)(a + a, &n);
    scale = FO__(power2)(n);
    t     = FO__FMA(t, scale, scale - 1.0f);
    t     = t / (t + 2.0f);
    return (FO__V)((FO__I)t | ((FO__I)x & INT32_MIN));
}

/* exp(-|x|), which never overflows. */
FO__INLINE FO__V FO__(exp_below)(FO__V x) {
    FO__V q;
    FO__I n;
    q = FO__(expm1_part)(FO__AT_LEAST(-FO__(abs_v)(x), -105.0f), &n) + 1.0f;
    return FO__TIMES_POWER2_DOWN(q, n);
}

/* The small side keeps its relative precision. */
FO__INLINE FO__V FO__(sigmoid_v)(FO__V x) {
    FO__V zero = {0}, u = FO__(exp_below)(x);
    return FO__PICK(x < 0.0f, u, zero + 1.0f) / (u + 1.0f);
}

/* max(x,0) + log(1 + u) with u = exp(-|x|); above sqrt(2), 1 + u = 2 (1 + (u - 1) / 2). */
FO__INLINE FO__V FO__(softplus_v)(FO__V x) {
    FO__V zero = {0}, u = FO__(exp_below)(x), big = (FO__V)(u > 0.41421356f);
    FO__V y = FO__(log1p_part)(FO__PICK(big, u * 0.5f - 0.5f, u), FO__PICK(big, zero + 1.0f, zero));
    return FO__PICK(x > 0.0f, x, zero) + y;
}
#endif

/* ReLU (a = 0) of -infinity is 0, not -infinity * 0: what is below the floor is raised to it. */
FO__INLINE FO__V FO__(leaky_v)(FO__V x, fo_real a) {
    FO__V zero = {0}, floor = zero - (a == 0 ? (fo_real)FLT_MAX : (fo_real)HUGE_VALF);
    return FO__PICK(x > 0, x, FO__PICK(x < floor, floor, x) * a);
}

/* Array functions: one line of arithmetic in one loop. */
#define FO__IN(p) FO__LOAD((p) + i, n - i)
#define FO__LOOP(out, value)                                                                       \
    {                                                                                              \
        int64_t i;                                                                                 \
        for (i = 0; i < n; i += FO__W)                                                             \
            FO__STORE((out) + i, value, n - i);                                                    \
    }
#define FO__LOOP_OF(name, plain)                                                                   \
    FO__TARGET static void FO__(name)(int64_t n, const fo_real *x, fo_real *y)                     \
        FO__LOOP(y, FO__(name##_v)(FO__IN(x)))
FO__MAPS(FO__LOOP_OF)
#undef FO__LOOP_OF
#define FO__map_scalar (int64_t n, fo_real a, const fo_real *x, fo_real *y)
#define FO__zip (int64_t n, const fo_real *x, const fo_real *y, fo_real *z)
#define FO__LOOP_OF(name, kind, out, value)                                                        \
    FO__TARGET static void FO__(name) FO__##kind FO__LOOP(out, value)
FO__ARITHMETIC(FO__LOOP_OF)
#undef FO__LOOP_OF

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

FO__TARGET static double FO__(sumsq)(int64_t n, const fo_real *x) {
    FO__(wide) first = {0}, second = {0};
    int64_t i;
    for (i = 0; i < n; i += FO__W) {
        FO__V      v = FO__IN(x);
        FO__(wide) a = FO__WIDEN(v, 0), b = FO__WIDEN(v, 1);
        first += a * a;
        second += b * b;
    }
    return FO__(total)(first + second);
}

/* Batch normalization, with or without ReLU: a floor of 0 or of -infinity. NaN passes the floor. */
FO__INLINE void FO__(sum2)(FO__V a, FO__V b, FO__(wide) sum[4]) {
    sum[0] += FO__WIDEN(a, 0), sum[1] += FO__WIDEN(a, 1);
    sum[2] += FO__WIDEN(b, 0), sum[3] += FO__WIDEN(b, 1);
}

/* Four vectors are added before they become doubles, here and in norm_sums: wins 2 to 20 % of batch
   norm's time with AVX2, the more the less memory is in the way. */
FO__TARGET static void FO__(moments)(int64_t n, fo_real origin, const fo_real *x, double sum[2]) {
    FO__(wide) sums[4];
    int64_t i, k, step;
    memset(sums, 0, sizeof sums);
    for (i = 0; i + FO__W <= n; i += FO__W * step) {
        FO__V a = {0}, b = {0};
        step = i + 4 * FO__W <= n ? 4 : 1;
        for (k = 0; k < step; k++) {
            FO__V d = FO__LOAD(x + i + k * FO__W, FO__W) - origin;
            a += d;
            b = FO__FMA(d, d, b);
        }
        FO__(sum2)(a, b, sums);
    }
    sum[0] += FO__(total)(sums[0] + sums[1]);
    sum[1] += FO__(total)(sums[2] + sums[3]);
    for (; i < n; i++) {
        fo_real d = x[i] - origin;
        sum[0] += (double)d;
        sum[1] += (double)d * (double)d;
    }
}

#define FO__NORM(line, x) ((FO__IN(x) - (line)->mean) * (line)->gain + (line)->shift)

FO__TARGET static void FO__(norm)(int64_t n, const fo__norm_line *line, const fo_real *x,
                                  fo_real *y) {
    FO__V zero = {0}, floor = zero + line->floor;
    FO__LOOP(y, FO__PICK(FO__NORM(line, x) < floor, floor, FO__NORM(line, x)))
}

FO__TARGET static void FO__(norm_sums)(int64_t n, const fo__norm_line *line, const fo_real *x,
                                       const fo_real *dy, double sum[2]) {
    FO__(wide) sums[4];
    FO__V   zero = {0};
    int64_t i, k, step;
    memset(sums, 0, sizeof sums);
    for (i = 0; i < n; i += FO__W * step) {
        FO__V a = {0}, b = {0};
        step = i + 4 * FO__W <= n ? 4 : 1;
        for (k = 0; k < step; k++) {
            FO__V d  = FO__LOAD(x + i + k * FO__W, n - i - k * FO__W) - line->mean;
            FO__V dz = FO__LOAD(dy + i + k * FO__W, n - i - k * FO__W);
            dz = FO__PICK(d * line->gain + line->shift <= line->floor, zero, dz);
            a += dz;
            b = FO__FMA(dz, d, b);
        }
        FO__(sum2)(a, b, sums);
    }
    sum[0] += FO__(total)(sums[0] + sums[1]);
    sum[1] += FO__(total)(sums[2] + sums[3]);
}

FO__TARGET static void FO__(norm_grad)(int64_t n, const fo__norm_line *line, const fo_real k[3],
                                       int add, const fo_real *x, const fo_real *dy,
                                       fo_real *dx) {
    FO__V   zero = {0};
    int64_t i;
    for (i = 0; i < n; i += FO__W) {
        FO__V dz = FO__PICK(FO__NORM(line, x) <= line->floor, zero, FO__IN(dy));
        FO__V v  = dz * k[0] + ((FO__IN(x) - line->mean) * k[1] + k[2]);
        if (add)
            v += FO__IN(dx);
        FO__STORE(dx + i, v, n - i);
    }
}

/* A coupling's rows: everything that an element needs while it is in a register. */
FO__TARGET static double FO__(couple)(int64_t n, int decode, const fo_real *scale,
                                      const fo_real *raw, const fo_real *t, const fo_real *x,
                                      fo_real *y) {
    FO__(wide) first = {0}, second = {0};
    int64_t i;
    for (i = 0; i < n; i += FO__W) {
        FO__V s = FO__IN(scale) * FO__(tanh_v)(FO__IN(raw));
        first += FO__WIDEN(s, 0);
        second += FO__WIDEN(s, 1);
        if (decode)
            FO__STORE(y + i, FO__IN(x) * FO__(exp_v)(-s) - FO__IN(t), n - i);
        else
            FO__STORE(y + i, (FO__IN(x) + FO__IN(t)) * FO__(exp_v)(s), n - i);
    }
    return FO__(total)(first + second);
}

FO__TARGET static void FO__(uncouple)(int64_t n, fo_real c, const fo_real *scale,
                                      const fo_real *raw, const fo_real *y, const fo_real *dy,
                                      fo_real *dx, fo_real *draw, fo_real *dscale) {
    int64_t i;
    for (i = 0; i < n; i += FO__W) {
        FO__V th = FO__(tanh_v)(FO__IN(raw)), a = FO__IN(scale), ds = FO__IN(dy) * FO__IN(y) + c;
        FO__STORE(dx + i, FO__IN(dy) * FO__(exp_v)(a * th), n - i);
        FO__STORE(draw + i, ds * a * (1 - th * th), n - i);
        FO__STORE(dscale + i, ds * th, n - i);
    }
}

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

/* ================================================================================================
   >>winograd      3 x 3 convolutions by F(4x4, 3x3): the transforms

   How        4 x 4 neighbouring outputs of a 3 x 3 convolution with weights w take 144 products.
              With a tile's 6 x 6 inputs d they take 36, place by place, and additions that channels
              share:
                y = A^T (U o V) A     U = G w G^T     V = B^T d B     U, V: 6 x 6 places
              Over all channels, a matrix product for each place: M[k] = V[k] U[k], of [tiles,in]
              and [in,out]. dx is the same with dy for d and the kernel rotated by 180 degrees; and
              dU[k] = V[k]^T (A dy A^T)[k], dw = G^T dU G
   Layout     lanes are channels. What a tile reads overlaps its neighbours by two:

                columns of a padded picture   0 1 2 3 4 5 6 7 8 9     channels first in memory: a
                tile 0 reads                 [0 1 2 3 4 5]            frame is [line][column][lane]
                tile 1 reads                         [4 5 6 7 8 9]

              V is [place][tile][channel]: a row of a matrix for each tile, whatever sample it is of
   Error      8e-7 of the results' root mean square with 64 channels, 6e-6 the worst of 25,000; with
              the usual points 0, +-1, +-2 they are 1.6e-6 and 2.7e-5; by the sum 3e-7
   Wins       realnvp-small trains 1.4 times as fast, glow-small 1.6 times (AVX2), with taller tiles
              of the product, as with F(2x2, 3x3) for y and dx and the plain sum for dw
   Paper      Lavin and Gray 2016
   ============================================================================================= */
#if FO__KERNEL_PASS > 1
/* The matrices at work on vectors: B^T, A^T, A, G and G^T. Polynomials are known by their values at
   points; 0, +-3/4, +-3/2 and infinity cost what the usual 0, +-1, +-2 cost, and halve the error:
   see there, and Alam et al. 2022 for such points. Squares and products are exact in float. */
#define FO__POINTS(a, b, a2, b2)                                                                   \
    const FO__V a = FO__(all)(0.75f), b = FO__(all)(1.5f), a2 = a * a, b2 = b * b

FO__INLINE void FO__(winograd_bt)(const FO__V d[6], FO__V t[6]) {
    FO__POINTS(a, b, a2, b2); /* e, f: even powers; o, p: odd ones */
    const FO__V e = FO__FMA(-b2, d[2], d[4]), o = FO__FMA(-b2, d[1], d[3]);
    const FO__V f = FO__FMA(-a2, d[2], d[4]), p = FO__FMA(-a2, d[1], d[3]);
    t[0] = FO__FMA(a2 * b2, d[0], FO__FMA(-a2 - b2, d[2], d[4]));
    t[1] = FO__FMA(a, o, e);
    t[2] = FO__FMA(-a, o, e);
    t[3] = FO__FMA(b, p, f);
    t[4] = FO__FMA(-b, p, f);
    t[5] = FO__FMA(a2 * b2, d[1], FO__FMA(-a2 - b2, d[3], d[5]));
}

FO__INLINE void FO__(winograd_at)(const FO__V m[6], FO__V y[4]) {
    FO__POINTS(a, b, a2, b2);
    const FO__V e = m[1] + m[2], o = a * (m[1] - m[2]), f = m[3] + m[4], p = b * (m[3] - m[4]);
    y[0] = m[0] + e + f;
    y[1] = o + p;
    y[2] = FO__FMA(a2, e, b2 * f);
    y[3] = FO__FMA(a2, o, FO__FMA(b2, p, m[5]));
}

FO__INLINE void FO__(winograd_a)(const FO__V y[4], FO__V m[6]) {
    FO__POINTS(a, b, a2, b2);
    const FO__V e = FO__FMA(a2, y[2], y[0]), o = FO__FMA(a2, y[3], y[1]);
    const FO__V f = FO__FMA(b2, y[2], y[0]), p = FO__FMA(b2, y[3], y[1]);
    m[0] = y[0];
    m[1] = FO__FMA(a, o, e);
    m[2] = FO__FMA(-a, o, e);
    m[3] = FO__FMA(b, p, f);
    m[4] = FO__FMA(-b, p, f);
    m[5] = y[3];
}

FO__INLINE void FO__(winograd_g)(const FO__V w[3], FO__V u[6]) {
    FO__POINTS(a, b, a2, b2);
    const FO__V e = FO__FMA(a2, w[2], w[0]), f = FO__FMA(b2, w[2], w[0]);
    u[0] = w[0] * (64 / 81.0f);
    u[1] = FO__FMA(a, w[1], e) * (-128 / 243.0f);
    u[2] = FO__FMA(-a, w[1], e) * (-128 / 243.0f);
    u[3] = FO__FMA(b, w[1], f) * (32 / 243.0f);
    u[4] = FO__FMA(-b, w[1], f) * (32 / 243.0f);
    u[5] = w[2];
}

FO__INLINE void FO__(winograd_gt)(const FO__V u[6], FO__V w[3]) {
    FO__POINTS(a, b, a2, b2);
    const FO__V e = (u[1] + u[2]) * (-128 / 243.0f), o = (u[1] - u[2]) * (-128 / 243.0f);
    const FO__V f = (u[3] + u[4]) * (32 / 243.0f), p = (u[3] - u[4]) * (32 / 243.0f);
    w[0] = u[0] * (64 / 81.0f) + e + f;
    w[1] = FO__FMA(a, o, b * p);
    w[2] = FO__FMA(a2, e, FO__FMA(b2, f, u[5]));
}

/* Elements of a frame's line; four columns are written at a time. */
#define FO__FRAME_LINE(t) (4 * (t)->wide + 4)

/* n channels of lines [begin,end) of a padded picture, channels side by side. */
FO__TARGET static void FO__(winograd_frame)(const fo__tiles *t, int64_t n, const float *x,
                                            int64_t begin, int64_t end, float *frame) {
    const int64_t w = t->w, p = t->padding, line = FO__FRAME_LINE(t), count = FO__MIN(w, 4);
    const int     whole = n >= FO__W && w >= 4;
    FO__V         v[4];
    int64_t       i, k, q;
    for (i = begin - p; i < end - p; i++, frame += line * FO__W) {
        if (i < 0 || i >= t->h) {
            memset(frame, 0, (size_t)(line * FO__W) * sizeof *frame);
            continue;
        }
        memset(frame, 0, (size_t)(p * FO__W) * sizeof *frame);
        for (k = 0; k < w; k += 4) {
            const int64_t at = FO__MIN(k, w - count); /* the last four again, if they overlap */
            if (whole)
                FO__(columns4)(x + i * w + at, t->h * w, v);
            else
                FO__(columns)(x + i * w + at, t->h * w, FO__MIN(n, FO__W), count, v);
            for (q = 0; q < count; q++)
                FO__STORE(frame + (p + at + q) * FO__W, v[q], FO__W);
        }
        memset(frame + (p + w) * FO__W, 0, (size_t)((line - p - w) * FO__W) * sizeof *frame);
    }
}

/* One line of the transform V = B^T d B of 6 inputs `step` apart, or of A dy A^T, of 4. */
FO__INLINE void FO__(winograd_line)(int overlap, const float *from, int64_t step, float *to,
                                    int64_t to_step) {
    FO__V d[6], v[6];
    int   i;
    FO__EACH(i, 6)
        if (i < 4 || overlap)
            d[i] = FO__LOAD(from + i * step, FO__W);
    if (overlap)
        FO__(winograd_bt)(d, v);
    else
        FO__(winograd_a)(d, v);
    FO__EACH(i, 6)
        FO__STORE(to + i * to_step, v[i], FO__W);
}

/* Columns first, for a row of tiles at once: columns that tiles share are then done once. */
FO__INLINE void FO__(winograd_rows)(const fo__tiles *t, int overlap, int64_t rows,
                                    const float *frame, float *half, float *to) {
    const int64_t line = FO__FRAME_LINE(t) * FO__W, columns = 4 * t->wide + 2 * overlap;
    const int64_t wide = t->wide, step = t->step, next = t->next;
    int64_t       r, q, k;
    for (r = 0; r < rows; r++, frame += 4 * line) {
        for (q = 0; q < columns; q++)
            FO__(winograd_line)(overlap, frame + q * FO__W, line, half + q * FO__W, line);
        for (q = 0; q < wide; q++, to += next)
            for (k = 0; k < 6; k++)
                FO__(winograd_line)(overlap, half + k * line + 4 * q * FO__W, FO__W,
                                    to + 6 * k * step, step);
    }
}

FO__TARGET static void FO__(winograd_input)(const fo__tiles *t, int64_t n, const float *x,
                                            int64_t begin, int64_t end, float *frame, float *to) {
    const int64_t lines = 4 * (end - begin) + 2 * t->overlap;
    float        *half = frame + lines * FO__FRAME_LINE(t) * FO__W;
    FO__(winograd_frame)(t, n, x, 4 * begin, 4 * begin + lines, frame);
    if (t->overlap)
        FO__(winograd_rows)(t, 1, end - begin, frame, half, to);
    else
        FO__(winograd_rows)(t, 0, end - begin, frame, half, to);
}

/* y = A^T m A, and bias. */
FO__TARGET static void FO__(winograd_output)(const fo__tiles *t, int64_t n, const float *from,
                                             int64_t begin, int64_t end, const float *bias,
                                             int add, float *y) {
    const int64_t w = t->w, size = t->h * w;
    FO__V         m[6], a[6][4], row[6], out[4], old[4], b = {0};
    int64_t       r, q, k;
    int           i, j;
    if (bias)
        b = FO__LOAD(bias, n);
    for (r = begin; r < end; r++)
        for (q = 0; q < t->wide; q++, from += t->next) {
            const int64_t count = FO__MIN(w - 4 * q, 4);
            const int     whole = n >= FO__W && count == 4;
            FO__EACH(j, 6) {
                FO__EACH(i, 6)
                    m[i] = FO__LOAD(from + (6 * i + j) * t->step, FO__W);
                FO__(winograd_at)(m, a[j]);
            }
            for (k = 0; k < FO__MIN(t->h - 4 * r, 4); k++) {
                float *to = y + (4 * r + k) * w + 4 * q;
                FO__EACH(j, 6)
                    row[j] = a[j][k];
                FO__(winograd_at)(row, out);
                if (add && whole)
                    FO__(columns4)(to, size, old);
                else if (add)
                    FO__(columns)(to, size, FO__MIN(n, FO__W), count, old);
                FO__EACH(j, 4)
                    out[j] = add ? out[j] + b + old[j] : out[j] + b;
                if (whole)
                    FO__(put_columns4)(out, to, size);
                else
                    FO__(put_columns)(out, to, size, FO__MIN(n, FO__W), count);
            }
        }
}

/* The nine weights of n pairs of channels as w[0..8], and back; the middle of the two last fours
   is read and written twice. */
FO__INLINE void FO__(taps)(const float *w, int64_t apart, int64_t n, FO__V tap[9]) {
    FO__V last[4];
    if (n >= FO__W) {
        FO__(columns4)(w, apart, tap);
        FO__(columns4)(w + 4, apart, tap + 4);
        FO__(columns4)(w + 5, apart, last);
    } else {
        FO__(columns)(w, apart, n, 4, tap);
        FO__(columns)(w + 4, apart, n, 4, tap + 4);
        FO__(columns)(w + 5, apart, n, 4, last);
    }
    tap[8] = last[3];
}

/* U = G w G^T */
FO__TARGET static void FO__(winograd_weights)(int64_t n, const float *w, int64_t apart, int rotate,
                                              float *to, int64_t step) {
    FO__V tap[9], g[3], half[3][6], u[6];
    int   i, j;
    FO__(taps)(w, apart, n, tap);
    FO__EACH(j, 3) {
        FO__EACH(i, 3)
            g[i] = rotate ? tap[8 - 3 * i - j] : tap[3 * i + j];
        FO__(winograd_g)(g, half[j]);
    }
    FO__EACH(i, 6) {
        FO__EACH(j, 3)
            g[j] = half[j][i];
        FO__(winograd_g)(g, u);
        FO__EACH(j, 6)
            FO__STORE(to + (6 * i + j) * step, u[j], FO__W);
    }
}

/* dw = (add ? dw : 0) + G^T dU G */
FO__TARGET static void FO__(winograd_gradient)(int64_t n, const float *from, int64_t step, int add,
                                               float *dw, int64_t apart) {
    FO__V u[6], half[6][3], row[6], g[3], tap[9], old[9];
    int   i, j;
    FO__EACH(j, 6) {
        FO__EACH(i, 6)
            u[i] = FO__LOAD(from + (6 * i + j) * step, FO__W);
        FO__(winograd_gt)(u, half[j]);
    }
    if (add)
        FO__(taps)(dw, apart, n, old);
    FO__EACH(i, 3) {
        FO__EACH(j, 6)
            row[j] = half[j][i];
        FO__(winograd_gt)(row, g);
        FO__EACH(j, 3)
            tap[3 * i + j] = add ? g[j] + old[3 * i + j] : g[j];
    }
    if (n >= FO__W) {
        FO__(put_columns4)(tap, dw, apart);
        FO__(put_columns4)(tap + 4, dw + 4, apart);
        FO__(put_columns4)(tap + 5, dw + 5, apart);
    } else {
        FO__(put_columns)(tap, dw, apart, n, 4);
        FO__(put_columns)(tap + 4, dw + 4, apart, n, 4);
        FO__(put_columns)(tap + 5, dw + 5, apart, n, 4);
    }
}
#endif

/* ================================================================================================
   >>products      the matrix product, and the choice of an instruction set

   Invariants every element of C is one chain of multiply-adds in the order of k, begun from its
              start value: how tiles, blocks and threads cut the work cannot change a bit of it, so
              a sample's numbers do not depend on its batch, and all instruction sets with fma agree
   Cost       about 95 % of the peak of multiply-adds in a tile, 10 % of the time in packing
   Paper      Goto and van de Geijn 2008 (panels and tiles)
   ============================================================================================= */
#if FO__KERNEL_PASS == 1
FO__TARGET static void FO__(product)(const fo__product *g, int64_t i0, int64_t i1, int64_t j0,
                                     int64_t j1) {
    int64_t i, j, p, q;
    for (i = i0; i < i1; i++) {
        for (j = j0; j < j1; j++) {
            const fo_real *a = g->a + (g->a_at ? g->a_at[i] : i * g->a_row);
            const fo_real *b = g->b + fo__column(j, g->b_run, g->b_step, g->b_col);
            fo_real       *c = g->c + i * g->c_row + j;
            fo_real total    = (g->add ? *c : 0) + (g->bias ? g->bias[j] : 0) +
                            (g->row_bias ? g->row_bias[i] : 0);
            for (p = 0; p < g->k; a += g->a_step)
                for (q = 0; q < g->a_run && p < g->k; q++, p++)
                    total += a[q * g->a_col] * b[g->b_at ? g->b_at[p] : p * g->b_row];
            *c = total;
        }
    }
}
#else
#define FO__NV 3 /* vectors in a row of a tile */
#define FO__NR (FO__NV * FO__W)
#define FO__TALL (FO__MR < 6 ? 6 : FO__MR) /* rows of a tile of two vectors */
#define FO__KC 256 /* rows of a panel: as much as caches hold */
#define FO__FAR 65536 /* a B of more numbers may not be in the second cache */

/* `rows` rows by `vectors` vectors of C stay in registers while k runs. Meanwhile the lines of C
   are asked for: the gradients of weights lie in memory, and stores wait for each other's lines.
   Wins 12 % of such products, 6 % of training mlp-cycle, AVX2. */
FO__INLINE void FO__(tile_body)(const fo__product *g, const float *const *a, int64_t k,
                                const float *panel, int64_t width, const float *start, float *c,
                                int64_t c_row, int add, int rows, int vectors) {
    FO__V         sum[FO__TALL][FO__NV], b[FO__NV], zero = {0};
    const float  *row[FO__TALL];
    const int64_t a_col = g->a_col;
    int64_t       p;
    int           i, j;
    FO__EACH(i, rows) {
        row[i] = a[i];
        FO__EACH(j, vectors) {
            sum[i][j] = FO__LOAD(panel + j * FO__W, FO__W);
            if (start)
                sum[i][j] += start[i];
            if (add)
                sum[i][j] += FO__LOAD(c + i * c_row + j * FO__W, FO__W);
        }
        __builtin_prefetch(c + i * c_row, 1, 3);
        __builtin_prefetch(c + i * c_row + vectors * FO__W - 1, 1, 3);
    }
    for (; k > 0; k -= g->a_run) {
        const int64_t run = FO__MIN(k, g->a_run);
        for (p = 0; p < run; p++) {
            panel += width;
            FO__EACH(j, vectors)
                b[j] = FO__LOAD(panel + j * FO__W, FO__W);
            FO__EACH(i, rows) {
                FO__V ai = row[i][p * a_col] - zero; /* the same number in every lane */
                FO__EACH(j, vectors)
                    sum[i][j] = FO__FMA(ai, b[j], sum[i][j]);
            }
        }
        FO__EACH(i, rows)
            row[i] += g->a_step;
    }
    FO__EACH(i, rows)
        FO__EACH(j, vectors)
            FO__STORE(c + i * c_row + j * FO__W, sum[i][j], FO__W);
}

/* The tile of C at (i,j), m x n, and k terms of it from the p-th on. The panel holds the start
   values in its first row and k rows of B after it, each `width` numbers long; A is read where it
   lies, number by number. A tile that is not whole vectors and rows is made in `edge`: rows of A
   past the m-th repeat the last one. */
FO__TARGET static void FO__(tile)(const fo__product *g, int64_t i0, int64_t m, int64_t j0,
                                  int64_t n, int64_t p, int64_t k, const float *panel,
                                  int64_t width) {
    const float *row[FO__MR];
    float       *c     = g->c + i0 * g->c_row + j0;
    const int    add   = g->add || p > 0;
    const int64_t at   = fo__column(p, g->a_run, g->a_step, g->a_col), c_row = g->c_row;
    float     edge[FO__MR * FO__NR], start[FO__MR];
    const float *from = g->row_bias && p == 0 ? start : NULL;
    const int rows = m > FO__MR / 2 ? FO__MR : FO__MR / 2, whole = m == rows && n % FO__W == 0;
    float    *to = whole ? c : edge;
    int64_t   to_row = whole ? c_row : FO__NR, i, j;
    for (i = 0; i < FO__MR; i++) {
        const int64_t r = i0 + FO__MIN(i, m - 1);
        row[i] = g->a + (g->a_at ? g->a_at[r] : r * g->a_row) + at;
        if (from)
            start[i] = g->row_bias[r];
    }
    if (!whole && add) {
        memset(edge, 0, sizeof edge);
        for (i = 0; i < m; i++)
            for (j = 0; j < n; j++)
                edge[i * FO__NR + j] = c[i * c_row + j];
    }
#define FO__CASE(rows, vectors)                                                                    \
    FO__(tile_body)(g, row, k, panel, width, from, to, to_row, add, rows, vectors)
    if (n > 2 * FO__W)
        rows == FO__MR ? FO__CASE(FO__MR, 3) : FO__CASE(FO__MR / 2, 3);
    else if (n > FO__W)
        rows == FO__MR ? FO__CASE(FO__MR, 2) : FO__CASE(FO__MR / 2, 2);
    else
        rows == FO__MR ? FO__CASE(FO__MR, 1) : FO__CASE(FO__MR / 2, 1);
    if (whole)
        return;
    for (i = 0; i < m; i++)
        for (j = 0; j < n; j++)
            c[i * c_row + j] = edge[i * FO__NR + j];
}

/* k rows of n numbers of B into a panel, made up to whole vectors with numbers nobody stores.
   Where B is transposed (the weights of y = x W^T), four columns of a vector of rows at a time. */
FO__TARGET static void FO__(pack)(const fo__product *g, int64_t first, int64_t k, int64_t j0,
                                  int64_t n, float *panel) {
    const int64_t b_row = g->b_row, b_col = g->b_col, columns = (n + FO__W - 1) / FO__W * FO__W;
    const float  *b = g->b + first * b_row + j0 * b_col;
    int64_t       p, q, j, whole = b_row == 1 ? n / FO__W * FO__W : 0, fours = k / 4 * 4;
    if (b_col == 1) {
        for (p = 0; p < k && n == FO__NR; p++, b += b_row, panel += FO__NR)
            FO__EACH(q, FO__NV)
                FO__STORE(panel + q * FO__W, FO__LOAD(b + q * FO__W, FO__W), FO__W);
        for (; p < k; p++, b += b_row, panel += FO__NR)
            for (j = 0; j < n; j += FO__W)
                FO__STORE(panel + j, FO__LOAD(b + j, n - j), FO__W);
        return;
    }
    for (p = 0; p < fours; p += 4)
        for (j = 0; j < whole; j += FO__W) {
            FO__V v[4];
            FO__(columns4)(b + p + j * b_col, b_col, v);
            FO__EACH(q, 4)
                FO__STORE(panel + (p + q) * FO__NR + j, v[q], FO__W);
        }
    for (p = 0; p < k; p++)
        for (j = p < fours ? whole : 0; j < columns; j++)
            panel[p * FO__NR + j] = b[p * b_row + FO__MIN(j, n - 1) * b_col];
}

/* The same for a B in runs. Whatever the length of a piece, a whole vector is copied: the next
   piece, or the next row, writes over what was too much. */
FO__TARGET static void FO__(pack_runs)(const fo__product *g, int64_t first, int64_t k, int64_t j0,
                                       int64_t n, float *panel) {
    int64_t from[FO__NR], to[FO__NR], pieces = 0, p, i, j, length;
    for (j = 0; j < n; j += length) {
        length     = FO__MIN(FO__W, g->b_run - (j0 + j) % g->b_run);
        to[pieces] = j;
        from[pieces++] = fo__column(j0 + j, g->b_run, g->b_step, 1);
    }
    for (p = 0; p < k; p++, panel += FO__NR)
        for (i = 0; i < pieces; i++)
            FO__STORE(panel + to[i], FO__LOAD(g->b + g->b_at[first + p] + from[i], FO__W), FO__W);
}

/* Asks for what the next panel will hold of B, k x n from (p,j) on, while the tiles of this one are
   made: part t of `parts` (software prefetch). Packing would wait for weights that only the third
   cache holds. Wins 12 % of 128x196x512 and 6 % of 128x512x392 with such weights, AVX2. */
FO__INLINE void FO__(fetch)(const fo__product *g, int64_t p, int64_t k, int64_t j, int64_t n,
                            int64_t t, int64_t parts) {
    const int      transposed = g->b_row == 1;
    const int64_t  lines = transposed ? n : k, length = transposed ? k : n;
    const int64_t  step = transposed ? g->b_col : g->b_row, share = (lines + parts - 1) / parts;
    const int64_t  end = FO__MIN(lines, (t + 1) * share);
    const float   *b = g->b + p * g->b_row + j * g->b_col;
    int64_t        line, at;
    for (line = t * share; line < end; line++)
        for (at = 0; at < length + 15; at += 16)
            __builtin_prefetch(b + line * step + FO__MIN(at, length - 1), 0, 2);
}

/* Row i of y = x W^T (matrix times vector): W is read once, where it lies, and transposed in
   registers. Returns the first column that is left for panels. One image from memory to score takes
   0.75 instead of 1.8 ms with mlp-cycle, AVX2; the 10 MB of its weights are then the limit. */
FO__TARGET static int64_t FO__(one_row)(const fo__product *g, int64_t i, int64_t j, int64_t j1) {
    const float  *a = g->a + (g->a_at ? g->a_at[i] : i * g->a_row);
    const int64_t k = g->k, fours = k / 4 * 4, step = g->b_col;
    float        *c = g->c + i * g->c_row;
    FO__V         sum[FO__NV], v[4], zero = {0};
    int64_t       p;
    int           s, q;
    for (; j + FO__NR <= j1; j += FO__NR) {
        const float *b = g->b + j * step, *next = j + 2 * FO__NR <= j1 ? b + FO__NR * step : b;
        FO__EACH(s, FO__NV) {
            sum[s] = zero;
            if (g->bias)
                sum[s] += FO__LOAD(g->bias + j + s * FO__W, FO__W);
            if (g->add)
                sum[s] += FO__LOAD(c + j + s * FO__W, FO__W);
        }
        for (p = 0; p < fours; p += 4) {
            FO__EACH(q, FO__NR / 4)
                if (q % 4 == 0)
                    __builtin_prefetch(next + p * FO__NR + q * 4, 0, 2);
            FO__EACH(s, FO__NV) {
                FO__(columns4)(b + p + s * FO__W * step, step, v);
                FO__EACH(q, 4)
                    sum[s] = FO__FMA(a[(p + q) * g->a_col] - zero, v[q], sum[s]);
            }
        }
        for (; p < k; p++)
            FO__EACH(s, FO__NV) {
                for (q = 0; q < FO__W; q++)
                    v[0][q] = b[p + (s * FO__W + q) * step];
                sum[s] = FO__FMA(a[p * g->a_col] - zero, v[0], sum[s]);
            }
        FO__EACH(s, FO__NV)
            FO__STORE(c + j + s * FO__W, sum[s], FO__W);
    }
    return j;
}

/* A product with panels that are ready. Where they are two vectors wide, taller tiles keep as many
   sums at work; the last rows are cut so that no tile of a row or two is left.
   Wins 6 to 9 % of training realnvp-tiny, realnvp-small and cycle-resnet-neck, AVX2. */
FO__TARGET static void FO__(product_panels)(const fo__product *g, int64_t i0, int64_t i1,
                                            int64_t j0, int64_t j1) {
    const float *row[FO__TALL];
    int64_t      i, j;
    int          q;
    for (j = j0; j < j1; j += g->panel) {
        const float  *panel = g->panels + j / g->panel * g->panel_step;
        const int64_t n = FO__MIN(g->panel, j1 - j);
        for (i = i0; n == 2 * FO__W && i + FO__TALL <= i1; i += FO__TALL) {
            if (i1 - i > FO__TALL && i1 - i <= 2 * FO__MR)
                break;
            FO__EACH(q, FO__TALL)
                row[q] = g->a + (i + q) * g->a_row;
            FO__(tile_body)(g, row, g->k, panel, g->panel, NULL, g->c + i * g->c_row + j, g->c_row,
                            g->add, FO__TALL, 2);
        }
        for (; i < i1; i += FO__MR)
            FO__(tile)(g, i, FO__MIN(FO__MR, i1 - i), j, n, 0, g->k, panel, g->panel);
    }
}

FO__TARGET static void FO__(product)(const fo__product *g, int64_t i0, int64_t i1, int64_t j0,
                                     int64_t j1) {
    float   panel[(1 + FO__KC) * FO__NR + FO__W] __attribute__((aligned(64)));
    int64_t whole_runs = g->a_run < FO__KC ? FO__KC / g->a_run * g->a_run : FO__KC;
    int64_t i, j = j0, p, k, tiles = (i1 - i0 + FO__MR - 1) / FO__MR;
    const int far = g->b_at == NULL && g->k * g->n > FO__FAR;
    if (g->panels) {
        FO__(product_panels)(g, i0, i1, j0, j1);
        return;
    }
    if (i1 - i0 == 1 && g->b_row == 1 && g->a_run == FO__ONE_RUN && g->b_at == NULL)
        j = FO__(one_row)(g, i0, j0, j1);
    for (; j < j1; j += FO__NR) {
        int64_t n = FO__MIN(FO__NR, j1 - j);
        p = 0;
        do {
            int64_t next, next_j;
            k = FO__MIN(whole_runs, g->k - p);
            if (g->a_run > FO__KC)
                k = FO__MIN(k, g->a_run - p % g->a_run);
            next   = p + k < g->k ? p + k : 0;
            next_j = p + k < g->k ? j : j + FO__NR;
            memset(panel, 0, FO__NR * sizeof *panel);
            if (g->bias && p == 0)
                memcpy(panel, g->bias + j, (size_t)n * sizeof *panel);
            (g->b_at ? FO__(pack_runs) : FO__(pack))(g, p, k, j, n, panel + FO__NR);
            for (i = 0; i < tiles; i++) {
                if (far && next_j < j1)
                    FO__(fetch)(g, next, FO__MIN(FO__KC, g->k - next), next_j,
                                FO__MIN(FO__NR, j1 - next_j), i, tiles);
                FO__(tile)(g, i0 + i * FO__MR, FO__MIN(FO__MR, i1 - i0 - i * FO__MR), j, n, p, k,
                           panel, FO__NR);
            }
            p += k;
        } while (p < g->k);
    }
}
#endif

#define FO__QUOTE2(isa) #isa
#define FO__QUOTE(isa) FO__QUOTE2(isa)
#if FO__KERNEL_PASS == 1
#define FO__MR 1
#define FO__NR 1
#define fo__winograd_input_ref NULL
#define fo__winograd_output_ref NULL
#define fo__winograd_weights_ref NULL
#define fo__winograd_gradient_ref NULL
#endif
static void FO__(kernels)(fo__kernels *out) {
    memset(out, 0, sizeof *out);
    out->name  = FO__QUOTE(FO__ISA);
    out->simd  = (fo_simd)FO__KERNEL_PASS;
    out->mr    = FO__MR;
    out->nr    = FO__NR;
    out->lanes = FO__W;
#define FO__ENTRY(name, plain) out->name = FO__(name);
    FO__MAPS(FO__ENTRY)
#undef FO__ENTRY
#define FO__ENTRY(name, kind, to, value) out->name = FO__(name);
    FO__ARITHMETIC(FO__ENTRY)
#undef FO__ENTRY
#define FO__ENTRY(name) out->name = FO__(name);
    FO__OTHER_KERNELS(FO__ENTRY)
#undef FO__ENTRY
}

/* Only what differs between passes; the rest is redefined to the same text. */
#undef FO__ISA
#undef FO__W
#undef FO__MR
#undef FO__NR
#undef FO__TARGET
#undef FO__INLINE
#undef FO__LOAD
#undef FO__STORE
#undef FO__LOAD_PART
#undef FO__STORE_PART
#undef FO__LOW4
#undef FO__HIGH4
#undef FO__FOUR
#undef FO__PAIR
#undef FO__FOURS
#undef FO__PUT_FOURS
#undef FO__FMA
#undef FO__PICK
#undef FO__AT_LEAST
#undef FO__AT_MOST
#undef FO__TIMES_POWER2
#undef FO__TIMES_POWER2_DOWN
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
static void fo__pick_kernels(fo_simd simd, fo__kernels *out) {
    void (*has[5])(fo__kernels *);
    int n = 0, i;
    has[n++] = fo__kernels_ref;
#if FO__VECTORS
    has[n++] = fo__kernels_portable;
#endif
#if FO__VECTORS && FO__NEON
    has[n++] = fo__kernels_neon;
#endif
#if FO__VECTORS && FO__X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        has[n++] = fo__kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        has[n++] = fo__kernels_avx512;
#endif
    for (i = 0; i < n; i++) {
        has[i](out);
        if (out->simd == simd)
            return;
    }
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
    const int64_t mr = fo->kernels->mr, nr = fo->kernels->nr, lanes = fo->kernels->lanes;
    const int64_t rows = (m + mr - 1) / mr, columns = (n + lanes - 1) / lanes;
    const int64_t threads = FO__MAX(fo->team, 1);
    const int64_t share = FO__MAX((columns + threads - 1) / threads, 2); /* one is no faster */
    const int64_t by_rows = (2 * ((rows + threads - 1) / threads) + 1) * columns;
    const int64_t by_columns = (2 * rows + 1) * share;
    fo__product g;
    int64_t     unit;
    memset(&g, 0, sizeof g);
    g.a_run = g.b_run = FO__ONE_RUN;
    g.m = m, g.n = n, g.k = k;
    g.a = a, g.a_row = a_row, g.a_col = a_col;
    g.b = b, g.b_row = b_row, g.b_col = b_col;
    g.c = c, g.c_row = c_row;
    g.bias = bias, g.add = add;
    g.kernels = fo->kernels;
    g.by_rows = by_rows < by_columns;
    /* to load and store C costs as much as 16 multiply-adds of each of its elements */
    unit      = (k + 16) * (g.by_rows ? mr * ((n + nr - 1) / nr * nr) : lanes * m);
    fo_parallel_for(fo, g.by_rows ? rows : columns, fo__grain(FO__NS_PRODUCT * (double)unit),
                    fo__product_part, &g);
}

/* ================================================================================================
   >>gzip          DEFLATE (RFC 1951) in a gzip wrapper (RFC 1952), unpacking only

   Invariants a file is hostile: nothing is read beyond its end, nothing is written beyond `room`
   Callers    >>data; PNG files share the checksum
   Cost       about 200 MB/s
   ============================================================================================= */

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
    int                  n_bits, bad;
    int                  full;  /* there is more than fits in room */
    int                  fixed; /* the codes are those of a fixed block */
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
        } else if (kind == 1 && !z->fixed) { /* once: many tiny blocks are no reason for more */
            memset(fixed, 8, 288);
            memset(fixed + 144, 9, 112);
            memset(fixed + 256, 7, 24);
            memset(fixed + 288, 5, 32);
            fo__huffman_init(&z->literal, fixed, 288);
            fo__huffman_init(&z->distance, fixed + 288, 32);
            z->fixed = 1;
        } else if (kind == 2) {
            fo__inflate_dynamic(z);
            z->fixed = 0;
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

/* ================================================================================================
   >>data          samples from array files

   Purpose    IDX and .npy files become rows; sources and headers are read for >>archive, too
   Invariants a file is hostile: every length is compared with what is really there before memory
              is asked for or bytes are touched; only regular files are opened, so reading ends
   Callers    users; training and scoring through fo__data_rows
   Cost       loading peaks at the content, of packed files at both; unpacking at 200 MB/s
   ============================================================================================= */
static const struct fo__dtype_row { char name[4], npy[4]; size_t size; } fo__dtypes[] = {
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

/* ---- sources --------------------------------------------------------------------------------- */

/* Bytes that are taken one after the other, from a file or from memory. */
typedef struct fo__source {
    fo_context          *fo;
    const char          *path;   /* for messages, if it is memory */
    FILE                *file;   /* NULL: memory */
    const unsigned char *memory;
    size_t               size, at;
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

static fo_result fo__source_open(fo__source *s, fo_context *fo, const char *path) {
    int64_t size = path ? fo__file_size(path) : FO__MISSING;
    memset(s, 0, sizeof *s);
    s->fo   = fo;
    s->path = path;
    s->size = fo__times(size, 1);
    if (path == NULL)
        return fo__fail(fo, FO_ERR_ARGUMENT, "the path of a file to read is NULL");
    if (size == FO__NO_FILE)
        return fo__fail(fo, FO_ERR_FILE, "%s: is a folder, pipe or device: name a file", path);
    if (size == 0)
        return fo__reject(s, "is empty, copy it again");
    if (size == FO__MISSING || (s->file = fopen(path, "rb")) == NULL)
        return fo__fail(fo, FO_ERR_FILE, "%s: cannot be opened (%s)", path, strerror(errno));
    return FO_OK;
}

static fo_result fo__source_memory(fo__source *s, fo_context *fo, const void *bytes, size_t size) {
    memset(s, 0, sizeof *s);
    s->fo     = fo;
    s->path   = "bytes in memory";
    s->memory = (const unsigned char *)bytes;
    s->size   = size;
    return bytes && size ? FO_OK : fo__fail(fo, FO_ERR_ARGUMENT, "the bytes to read are missing");
}

static void fo__source_close(fo__source *s) {
    if (s->file)
        fclose(s->file);
    s->file = NULL;
}

/* The next n bytes; there are so many. */
static fo_result fo__take(fo__source *s, void *out, size_t n) {
    s->at += n;
    errno = 0;
    if (s->file == NULL)
        memcpy(out, s->memory + s->at - n, n);
    else if (fread(out, 1, n, s->file) != n)
        return fo__fail(s->fo, FO_ERR_FILE, "%s: could not be read (%s)", s->path,
                        strerror(errno ? errno : EIO));
    return FO_OK;
}

/* ---- headers --------------------------------------------------------------------------------- */

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
    const char *const keys[2][3] = {{"dtype", "shape", "data_offsets"},
                                    {"descr", "shape", "fortran_order"}};
    int               seen = 0, n, k;
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
    unsigned char *own;    /* the same rows, if they belong to this object: they may move      */
    const int64_t *origin; /* [count] which sample of its file each was; NULL: as they lie     */
};

/* The number by which messages call sample i. */
static int64_t fo__origin(const fo_data *data, int64_t i) {
    return data && data->origin ? data->origin[i] : i;
}

#define FO__PEEK ((size_t)65536) /* bytes looked at to find a header */

/* An array file: the first bytes of it and of its content, the same where it is not packed. */
typedef struct fo__array_file {
    fo__source     source;
    fo__arena      arena;
    unsigned char *head, *content;
    size_t         n_head, n_content;
    int            packed;
    fo__record     record;
} fo__array_file;

/* Unpacks at most `room` bytes of n packed ones. */
static void fo__unpack(fo__inflate *z, const unsigned char *packed, size_t n, unsigned char *out,
                       size_t room) {
    memset(z, 0, sizeof *z);
    z->in     = packed;
    z->in_end = packed + n;
    z->out    = out;
    z->room   = room;
    fo__gunzip(z);
}

static fo_result fo__bad_gzip(const fo__source *s, const fo__inflate *z) {
    return fo__reject(s, "its gzip data are damaged or were cut short (after %lld unpacked bytes), "
                      "copy it again", (long long)z->n_out);
}

/* Looks at the first bytes, before anything is done that takes as long as the file is. */
static fo_result fo__peek(fo__array_file *f) {
    fo__source *s = &f->source;
    fo__inflate z;
    f->n_head = f->n_content = FO__MIN(s->size, FO__PEEK);
    f->head = f->content = (unsigned char *)fo__arena_alloc(&f->arena, FO__PEEK);
    if (f->head == NULL || fo__take(s, f->head, f->n_head) != FO_OK)
        return f->head ? FO_ERR_FILE : FO_ERR_MEMORY;
    f->packed = f->head[0] == 0x1f && f->head[1] == 0x8b;
    if (!f->packed)
        return FO_OK;
    f->content = (unsigned char *)fo__arena_alloc(&f->arena, FO__PEEK);
    if (f->content == NULL)
        return FO_ERR_MEMORY;
    fo__unpack(&z, f->head, f->n_head, f->content, FO__PEEK);
    f->n_content = z.n_out;
    return z.bad && (z.n_out == 0 || f->n_head == s->size) ? fo__bad_gzip(s, &z) : FO_OK;
}

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

/* Is it an array, and are its dimensions possible? */
static fo_result fo__read_header(fo__array_file *f) {
    fo__source    *s      = &f->source;
    fo__record    *r      = &f->record;
    unsigned char *head   = f->content;
    fo_result      result = FO_OK;
    size_t         n      = f->n_content;
    int            k;
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
            result = fo__reject(s, "dimension %d is %lld: an array of nothing, or too large", k + 1,
                                (long long)r->dim[k]);
    if (result != FO_OK)
        return result;
    if (r->rank < 1 || r->rank > 4)
        return fo__reject(s, "has %d dimensions, needed are 1 (labels), 2 (N x D), 3 (N x H x W) "
                          "or 4 (N x C x H x W)", r->rank);
    n      = fo__array_bytes((fo_dtype)r->type, r->rank, r->dim);
    r->end = r->begin + FO__MIN(n, SIZE_MAX / 8);
    return FO_OK;
}

/* Can the file hold what its header announces? A packed one may, before it is unpacked, claim no
   more than 64 MB or 64 times its size: DEFLATE can shrink zeros by 1032, but samples never. */
static fo_result fo__check_size(const fo__array_file *f) {
    const fo__source *s    = &f->source;
    const size_t      most = (size_t)64 << 20, end = f->record.end;
    const size_t      wide = f->record.type == FO_F16 ? 2 * end : end;
    if (!f->packed && end != s->size)
        return fo__reject(s, "its header announces %lld bytes, there are %s: copy it again",
                          (long long)end, s->size > end ? "more" : "fewer, it was cut short");
    if (f->packed && wide > most && wide / 64 > s->size)
        return fo__reject(s, "has %lld bytes, its header announces %.3g: it was cut short, copy it "
                          "again; or, if that is true, unpack it first", (long long)s->size,
                          (double)end);
    return FO_OK;
}

/* Element i of an array of any type, which need not be aligned. */
static double fo__value(fo_dtype type, const void *values, size_t i) {
    const unsigned char *at = (const unsigned char *)values + i * fo__dtypes[type].size;
    double               wide;
    float                narrow;
    int32_t              whole;
    int64_t              long_whole;
    int                  exponent;
    switch (type) {
    case FO_U8:  return *at;
    case FO_F32: memcpy(&narrow, at, 4); return narrow;
    case FO_F64: memcpy(&wide, at, 8); return wide;
    case FO_I32: memcpy(&whole, at, 4); return whole;
    case FO_I64: memcpy(&long_whole, at, 8); return (double)long_whole;
    default: /* half: 1 sign, 5 exponent and 10 fraction bits; NaN becomes infinite */
        exponent = at[1] >> 2 & 31;
        wide     = (at[1] & 3) << 8 | at[0];
        wide     = exponent ? ldexp(1024 + wide, exponent - 25) : ldexp(wide, -24);
        wide     = exponent == 31 ? HUGE_VAL : wide;
        return at[1] & 0x80 ? -wide : wide;
    }
}

/* The values to `bytes`. */
static fo_result fo__take_values(fo__array_file *f, unsigned char *bytes) {
    const fo__record *r    = &f->record;
    size_t            here = FO__MIN(f->n_content, r->end) - r->begin;
    unsigned char    *packed;
    fo__inflate       z;
    if (!f->packed) {
        memcpy(bytes, f->content + r->begin, here);
        return fo__take(&f->source, bytes + here, r->end - r->begin - here);
    }
    packed = (unsigned char *)fo__arena_alloc(&f->arena, f->source.size);
    if (packed == NULL)
        return FO_ERR_MEMORY;
    memcpy(packed, f->head, f->n_head);
    if (fo__take(&f->source, packed + f->n_head, f->source.size - f->n_head) != FO_OK)
        return FO_ERR_FILE;
    fo__unpack(&z, packed, f->source.size, bytes, r->end);
    if (z.bad)
        return fo__bad_gzip(&f->source, &z);
    if (z.n_out != r->end || z.full)
        return fo__reject(&f->source, "its header announces %lld bytes, there are %s: copy it "
                          "again", (long long)r->end, z.full ? "more" : "fewer, it was cut short");
    memmove(bytes, bytes + r->begin, r->end - r->begin);
    return FO_OK;
}

static fo_result fo__read_values(fo__array_file *f, fo_data *data) {
    const double      largest = sizeof(fo_real) == sizeof(float) ? (double)FLT_MAX : DBL_MAX;
    const fo__record *r = &f->record;
    int               is_image = r->rank > 2;
    size_t            size = r->end - r->begin, wider = r->type == FO_F16 ? size : 0, columns, i;
    unsigned char    *bytes;
    fo_result         result;
    bytes = (unsigned char *)fo__arena_alloc(&data->arena, r->end + wider);
    if (bytes == NULL)
        return FO_ERR_MEMORY;
    data->fo      = f->source.fo;
    data->type    = r->type == FO_F16 ? FO_F32 : (fo_dtype)r->type;
    data->count   = r->dim[0];
    data->rows    = bytes;
    data->own     = bytes;
    data->shape.c = r->rank == 2 || r->rank == 4 ? (int)r->dim[1] : 1;
    data->shape.h = is_image ? (int)r->dim[r->rank - 2] : 1;
    data->shape.w = is_image ? (int)r->dim[r->rank - 1] : 1;
    columns       = (size_t)fo_shape_count(data->shape);
    result        = fo__take_values(f, bytes);
    if (result != FO_OK)
        return result;
    if (r->type == FO_F16)
        for (i = size / 2; i-- > 0;) { /* backwards: a float replaces two */
            float wide = (float)fo__value(FO_F16, bytes, i);
            memcpy(bytes + 4 * i, &wide, 4);
        }
    if (r->type == FO_U8)
        return FO_OK;
    for (i = 0; i < columns * (size_t)data->count; i++)
        if (!(fabs(fo__value(data->type, bytes, i)) <= largest))
            return fo__fail(data->fo, FO_ERR_NUMERIC, "%s: row %lld column %lld is %g: repair it, "
                            "e.g. with numpy.nan_to_num", f->source.path, (long long)(i / columns),
                            (long long)(i % columns), fo__value(data->type, bytes, i));
    return FO_OK;
}

fo_data *fo_load(fo_context *fo, const char *path) {
    fo__array_file f;
    fo_data       *data = NULL;
    memset(&f, 0, sizeof f);
    f.arena.fo = fo;
    if (fo__begin(fo) && fo__source_open(&f.source, fo, path) == FO_OK && fo__peek(&f) == FO_OK &&
        fo__read_header(&f) == FO_OK && fo__check_size(&f) == FO_OK)
        data = (fo_data *)fo__object(fo, sizeof *data);
    if (data && fo__read_values(&f, data) != FO_OK) {
        fo__object_free(data);
        data = NULL;
    }
    fo__source_close(&f.source);
    fo__arena_free(&f.arena);
    return data;
}

/* Samples that lie in memory, into `out`. */
static fo_result fo__view(fo_context *fo, const char *call, const void *rows, fo_dtype type,
                          int64_t count, fo_shape shape, fo_data *out) {
    int64_t columns = fo_shape_count(shape);
    if (rows == NULL || (type != FO_U8 && type != FO_F32 && type != FO_F64) || count < 1 ||
        columns < 1 || count > INT64_MAX / 8 / columns)
        return fo__fail(fo, FO_ERR_ARGUMENT, "%s: %lld samples of %dx%dx%d %s%s: needed are rows, "
                        "1 at least, of U8, F32 or F64", call, (long long)count, shape.c, shape.h,
                        shape.w, fo_dtype_name(type), rows ? "" : " at NULL");
    out->fo    = fo;
    out->type  = type;
    out->shape = shape;
    out->count = count;
    out->rows  = rows;
    return FO_OK;
}

fo_data *fo_data_view(fo_context *fo, const void *rows, fo_dtype type, int64_t count,
                      fo_shape shape) {
    fo_data given, *data;
    memset(&given, 0, sizeof given);
    if (!fo__begin(fo) ||
        fo__view(fo, "fo_data_view", rows, type, count, shape, &given) != FO_OK)
        return NULL;
    data = (fo_data *)fo__object(fo, sizeof *data);
    if (data) {
        given.arena = data->arena;
        *data       = given;
    }
    return data;
}

fo_data *fo_data_part(const fo_data *data, int64_t first, int64_t count) {
    size_t   bytes;
    fo_data *part;
    if (!FO__BEGIN(data))
        return NULL;
    if (first < 0 || count < 1 || first > data->count - count) {
        fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_part: %lld samples from %lld on, of %lld",
                 (long long)count, (long long)first, (long long)data->count);
        return NULL;
    }
    bytes = (size_t)fo_shape_count(data->shape) * fo_dtype_size(data->type);
    part  = fo_data_view(data->fo, (const unsigned char *)data->rows + (size_t)first * bytes,
                         data->type, count, data->shape);
    if (part && data->origin)
        part->origin = data->origin + first;
    return part;
}

fo_result fo_data_shuffle(fo_data *data, uint64_t seed) {
    const size_t columns = data ? (size_t)fo_shape_count(data->shape) : 0;
    const size_t bytes   = data ? columns * fo_dtype_size(data->type) : 0;
    int64_t     *origin, i;
    if (!FO__BEGIN(data))
        return FO_ERR_ARGUMENT;
    if (data->own == NULL)
        return fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_shuffle: these rows belong to somebody "
                        "else; only what fo_load or fo_data_select made can be shuffled");
    origin = (int64_t *)fo__arena_alloc(&data->arena, fo__times(data->count, sizeof *origin));
    if (origin == NULL)
        return FO_ERR_MEMORY;
    for (i = 0; i < data->count; i++)
        origin[i] = fo__origin(data, i);
    fo__shuffle(origin, data->count, sizeof *origin, seed, FO__STREAM_ORDER);
    fo__shuffle(data->own, data->count, bytes, seed, FO__STREAM_ORDER);
    data->origin = origin;
    return FO_OK;
}

/* Is row i among the chosen? Counts how often each class occurs. */
static int fo__is_of_class(const fo_data *labels, int64_t i, const int *classes, int n,
                           int64_t *seen) {
    const double label = fo__value(labels->type, labels->rows, (size_t)i);
    int          k, is = 0;
    for (k = 0; k < n; k++)
        if (label == classes[k]) {
            seen[k]++;
            is = 1;
        }
    return is;
}

fo_data *fo_data_select(const fo_data *data, const fo_data *labels, const int *classes, int n,
                        int keep) {
    enum { MOST = 256 };
    fo_data       *chosen;
    unsigned char *to;
    int64_t        seen[MOST] = {0}, i, count = 0, *origin = NULL;
    size_t         bytes;
    int            k;
    if (!FO__BEGIN(data))
        return NULL;
    if (labels == NULL) {
        fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_select: there are no labels");
        return NULL;
    }
    if (labels->count != data->count || fo_shape_count(labels->shape) != 1 || classes == NULL ||
        n < 1 || n > MOST) {
        fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_select: %lld samples, %lld labels of %lld "
                 "numbers, %d classes: one label a sample and 1 to %d classes are needed",
                 (long long)data->count, (long long)labels->count,
                 (long long)fo_shape_count(labels->shape), n, (int)MOST);
        return NULL;
    }
    for (i = 0; i < data->count; i++)
        count += fo__is_of_class(labels, i, classes, n, seen) == (keep != 0);
    for (k = 0; k < n; k++)
        if (seen[k] == 0) {
            fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_select: class %d does not occur among "
                     "%lld labels: ask for one that does", classes[k],
                     (long long)labels->count);
            return NULL;
        }
    if (count == 0) {
        fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_select: no sample is left");
        return NULL;
    }
    bytes  = (size_t)fo_shape_count(data->shape) * fo_dtype_size(data->type);
    chosen = (fo_data *)fo__object(data->fo, sizeof *chosen);
    to     = NULL;
    if (chosen)
        to = (unsigned char *)fo__arena_alloc(&chosen->arena, fo__times(count, bytes));
    if (to)
        origin = (int64_t *)fo__arena_alloc(&chosen->arena, fo__times(count, sizeof *origin));
    if (origin == NULL) {
        fo__object_free(chosen);
        return NULL;
    }
    chosen->fo = data->fo, chosen->type = data->type, chosen->shape = data->shape;
    chosen->count = count, chosen->rows = chosen->own = to;
    chosen->origin = origin;
    for (i = 0; i < data->count; i++)
        if (fo__is_of_class(labels, i, classes, n, seen) == (keep != 0)) {
            memcpy(to, fo_data_row(data, i), bytes);
            to += bytes;
            *origin++ = fo__origin(data, i);
        }
    return chosen;
}

void fo_data_free(fo_data *data) { fo__object_free(data); }

fo_shape fo_data_shape(const fo_data *data) {
    fo_shape none = {0, 0, 0};
    return data ? data->shape : none;
}

int64_t fo_data_count(const fo_data *data) { return data ? data->count : 0; }

fo_dtype fo_data_dtype(const fo_data *data) { return data ? data->type : FO_U8; }

void fo_data_limit(fo_data *data, int64_t count) {
    if (!FO__BEGIN(data))
        return;
    if (count < 1)
        fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_limit: keep at least 1 sample");
    else
        data->count = FO__MIN(data->count, count);
}

const void *fo_data_row(const fo_data *data, int64_t i) {
    if (data == NULL || i < 0 || i >= data->count)
        return NULL;
    return (const unsigned char *)data->rows +
           (size_t)i * (size_t)fo_shape_count(data->shape) * fo_dtype_size(data->type);
}

/* Row i as numbers; the caller has checked i. */
static void fo__data_rows(const fo_data *data, int64_t i, fo_real *out) {
    const size_t         n     = (size_t)fo_shape_count(data->shape);
    const unsigned char *bytes = (const unsigned char *)data->rows + n * (size_t)i;
    size_t               k;
    if (data->type == FO_U8) { /* images: without a choice for every element */
        for (k = 0; k < n; k++)
            out[k] = bytes[k];
        return;
    }
    for (k = 0; k < n; k++)
        out[k] = (fo_real)fo__value(data->type, data->rows, n * (size_t)i + k);
}

fo_result fo_data_get(const fo_data *data, int64_t i, fo_real *out) {
    if (!FO__BEGIN(data))
        return FO_ERR_ARGUMENT;
    if (i < 0 || i >= data->count || out == NULL)
        return fo__fail(data->fo, FO_ERR_ARGUMENT, "fo_data_get: sample %lld of %lld%s",
                        (long long)i, (long long)data->count, out ? "" : ", to nowhere");
    fo__data_rows(data, i, out);
    return FO_OK;
}

/* ================================================================================================
   >>write         files out: .npy, IDX, PNG

   Invariants there is the old file or the whole new one, never half of either, also when two write
              at once, and when the power fails
   Callers    users; >>archive
   Cost       a wait for the disk at the end of each file
   ============================================================================================= */

/* What is written goes to a new file with a name of its own beside `path`, which becomes `path`
   when all of it is on disk; or to memory; or nowhere, to count it. After the first failure
   nothing more is done, and fo__write_end reports it. */
typedef struct fo__writer {
    fo_context    *fo;
    const char    *path;
    char          *part;
    FILE          *file;
    unsigned char *memory; /* without a file: room for all, or NULL to count only */
    size_t         n;      /* bytes so far */
    fo_result      result;
} fo__writer;

static void fo__write_check(fo__writer *w, int ok) {
    if (!ok && w->result == FO_OK)
        w->result = fo__fail(w->fo, FO_ERR_FILE, "%s: could not be written (%s): check the folder "
                             "and the free space", w->path, strerror(errno ? errno : EIO));
    errno = 0;
}

static void fo__write_begin(fo__writer *w, fo_context *fo, const char *path) {
    const size_t n    = path ? strlen(path) : 0;
    uint64_t     name = (uint64_t)(fo_clock() * 1e9) ^ (uint64_t)fo__process_id() << 32 ^
                    (uint64_t)(uintptr_t)w;
    int          i;
    memset(w, 0, sizeof *w);
    w->fo   = fo;
    w->path = path;
    if (fo == NULL || n == 0)
        w->result = fo__fail(fo, FO_ERR_ARGUMENT, "the path of a file to write is missing");
    else if (fo__file_size(path) == FO__NO_FILE)
        w->result = fo__fail(fo, FO_ERR_FILE, "%s: is a folder, pipe or device: name a file", path);
    else if ((w->part = (char *)fo__alloc(fo, n + 16)) == NULL)
        w->result = FO_ERR_MEMORY;
    for (i = 0; i < 100 && w->result == FO_OK && w->file == NULL; i++) {
        name = (name ^ name >> 32) * 0x9E3779B97F4A7C15u + 1;
        snprintf(w->part, n + 16, "%s.%08lx.part", path, (unsigned long)(name >> 32));
        errno   = 0;
        w->file = fo__open_new(w->part);
        if (w->file == NULL && errno != EEXIST)
            break;
    }
    fo__write_check(w, w->result != FO_OK || w->file != NULL);
}

static void fo__write(fo__writer *w, const void *bytes, size_t n) {
    if (n && w->result == FO_OK && w->file)
        fo__write_check(w, fwrite(bytes, 1, n, w->file) == n);
    else if (n && w->memory)
        memcpy(w->memory + w->n, bytes, n);
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
        fo__write_check(w, w->result != FO_OK || fo__sync(w->file) == 0);
        fo__write_check(w, fclose(w->file) == 0);
        fo__write_check(w, w->result != FO_OK || fo__replace(w->part, w->path) == 0);
        if (w->result == FO_OK)
            fo__sync_folder(w->part);
        else
            remove(w->part);
    }
    fo__free(w->fo, w->part);
    return w->result;
}

static void fo__set_be32(unsigned char *at, uint32_t value) {
    int i;
    for (i = 0; i < 4; i++)
        at[i] = (unsigned char)(value >> (24 - 8 * i));
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
    fo__writer w;
    int        k;
    if (!fo__begin(fo) ||
        fo__check_array(fo, "fo_save_npy", type, rank, 8, dim, values) != FO_OK)
        return FO_ERR_ARGUMENT;
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
    fo_result     result = FO_ERR_ARGUMENT;
    unsigned char head[20] = {0, 0, 8, 0};
    fo__writer    w;
    int           k;
    if (fo__begin(fo))
        result = fo__check_array(fo, "fo_save_idx", FO_U8, rank, 4, dim, values);
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

/* DEFLATE (RFC 1951) with its fixed codes: what was seen before, and where the last time, or a
   literal byte. Bits are filled from the lowest on. */
typedef struct fo__deflate { unsigned char *out; uint32_t bits; int count; } fo__deflate;

static void fo__put_bits(fo__deflate *d, unsigned value, int n) {
    d->bits |= (uint32_t)value << d->count;
    for (d->count += n; d->count >= 8; d->count -= 8, d->bits >>= 8)
        *d->out++ = (unsigned char)d->bits;
}

static void fo__put_code(fo__deflate *d, unsigned code, int n) { /* its highest bit first */
    for (; n > 0; n--)
        fo__put_bits(d, code >> (n - 1) & 1, 1);
}

static void fo__put_symbol(fo__deflate *d, unsigned s) {
    if (s < 144)
        fo__put_code(d, 0x30 + s, 8);
    else if (s < 256)
        fo__put_code(d, 0x190 + s - 144, 9);
    else if (s < 280)
        fo__put_code(d, s - 256, 7);
    else
        fo__put_code(d, 0xC0 + s - 280, 8);
}

/* Lengths 3..258 and distances 1..32768: a code for the leading bits, then the rest. */
static void fo__put_match(fo__deflate *d, unsigned length, unsigned distance) {
    unsigned l = length - 3, at = distance - 1;
    int      extra;
    for (extra = 0; l >> (extra + 3); extra++) {}
    extra = length == 258 ? 0 : extra;
    fo__put_symbol(d, length == 258 ? 285 : 257 + 4 * (unsigned)extra + (l >> extra));
    fo__put_bits(d, l & ((1u << extra) - 1), extra);
    for (extra = 0; at >> (extra + 2); extra++) {}
    fo__put_code(d, 2 * (unsigned)extra + (at >> extra), 5);
    fo__put_bits(d, at & ((1u << extra) - 1), extra);
}

/* n bytes as one block, at most 9/8 n + 8 bytes; `seen`: 2^15 zeros, which become 1 + the place
   where three bytes with this hash began last. Returns its end. */
static unsigned char *fo__deflate_all(const unsigned char *in, size_t n, uint32_t *seen,
                                      unsigned char *out) {
    fo__deflate d;
    size_t      i, k, length, from;
    d.out = out, d.bits = 0, d.count = 0;
    fo__put_bits(&d, 3, 3); /* the last block, of fixed codes */
    for (i = 0; i < n; i += length) {
        for (length = 1, from = k = 0; i + 3 <= n && k < length && i + k + 3 <= n; k++) {
            uint32_t *last = &seen[((uint32_t)in[i + k] << 16 | (uint32_t)in[i + k + 1] << 8 |
                                    in[i + k + 2]) * 2654435761u >> 17];
            if (k == 0 && *last && i + 1 - *last <= 32768) {
                from = *last - 1;
                for (length = 0; length < 258 && i + length < n &&
                     in[from + length] == in[i + length]; length++) {}
                length = length < 3 ? 1 : length;
            }
            *last = (uint32_t)(i + k + 1);
        }
        if (length == 1)
            fo__put_symbol(&d, in[i]);
        else
            fo__put_match(&d, (unsigned)length, (unsigned)(i - from));
    }
    fo__put_symbol(&d, 256);
    fo__put_bits(&d, 0, 7); /* fills the last byte */
    return d.out;
}

/* n pixels as places in a list of at most 256 colours; 0: there are more. */
static int fo__png_palette(const unsigned char *rgb, size_t n, unsigned char *index,
                           unsigned char *palette) {
    unsigned short place[1024]; /* 1 + a place in the list, found by the colour's hash */
    int            colours = 0;
    size_t         i;
    memset(place, 0, sizeof place);
    for (i = 0; i < n; i++, rgb += 3) {
        uint32_t at = (uint32_t)rgb[0] << 16 | (uint32_t)rgb[1] << 8 | rgb[2];
        at = at * 2654435761u >> 22;
        while (place[at] && memcmp(palette + 3 * (place[at] - 1), rgb, 3) != 0)
            at = (at + 1) % 1024;
        if (place[at] == 0) {
            if (colours == 256)
                return 0;
            memcpy(palette + 3 * colours, rgb, 3);
            place[at] = (unsigned short)++colours;
        }
        index[i] = (unsigned char)(place[at] - 1);
    }
    return colours;
}

/* The chunks behind the signature; `raw` holds rows, each behind its filter (0, none). */
static unsigned char *fo__png_chunks(unsigned char *at, int w, int h, int type,
                                     const unsigned char *palette, int colours,
                                     const unsigned char *raw, size_t n, uint32_t *seen) {
    unsigned char *end;
    uint64_t       a = 1, b = 0; /* the checksum: the sum of all bytes and the sum of all sums */
    size_t         i;
    fo__set_be32(at + 8, (uint32_t)w);
    fo__set_be32(at + 12, (uint32_t)h);
    at[16] = 8, at[17] = (unsigned char)type;
    at = fo__chunk(at, "IHDR", 13);
    if (type == 3) {
        memcpy(at + 8, palette, 3 * (size_t)colours);
        at = fo__chunk(at, "PLTE", 3 * (size_t)colours);
    }
    memcpy(at + 8, "\x78\x01", 2);
    end = fo__deflate_all(raw, n, seen, at + 10);
    for (i = 0; i < n; i++) {
        a = (a + raw[i]) % 65521;
        b = (b + a) % 65521;
    }
    fo__set_be32(end, (uint32_t)(b << 16 | a));
    return fo__chunk(fo__chunk(at, "IDAT", (size_t)(end + 4 - at - 8)), "IEND", 0);
}

/* PNG: rows of pixels, or of places in a palette where 256 colours are enough. */
fo_result fo_save_png(fo_context *fo, const char *path, int w, int h, int channels,
                      const unsigned char *pixels) {
    unsigned char  palette[768], *index, *raw, *png;
    const unsigned char *from = pixels;
    const size_t         n = (size_t)(w > 0 ? w : 0) * (size_t)(h > 0 ? h : 0);
    size_t         row, bytes;
    int            y, colours = 0;
    fo__writer     writer;
    if (!fo__begin(fo) || pixels == NULL || w < 1 || h < 1 || (channels != 1 && channels != 3) ||
        w > 65534 / channels || (double)w * h * channels > 1e9)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_save_png: %dx%d pixels, %d channels: needed are 1 "
                        "or 3 channels, at most 64 KB a row and 1 GB", w, h, channels);
    row   = (size_t)w * (size_t)channels + 1;
    bytes = row * (size_t)h;
    index = (unsigned char *)fo__alloc(fo, n + bytes + bytes / 8 * 9 + 1024 + 4 * 32768 + 64);
    if (index == NULL)
        return FO_ERR_MEMORY;
    png = index + 4 * 32768; /* the table of the compressor comes first, for its alignment */
    raw = png + bytes / 8 * 9 + 1024;
    if (channels == 3)
        colours = fo__png_palette(pixels, n, raw + bytes, palette);
    if (colours)
        from = raw + bytes, row = (size_t)w + 1, bytes = row * (size_t)h;
    for (y = 0; y < h; y++)
        memcpy(raw + (size_t)y * row + 1, from + (size_t)y * (row - 1), row - 1);
    memcpy(png, "\x89PNG\r\n\x1a\n", 8);
    bytes = (size_t)(fo__png_chunks(png + 8, w, h, colours ? 3 : channels == 3 ? 2 : 0, palette,
                                    colours, raw, bytes, (uint32_t *)(void *)index) - png);
    fo__write_begin(&writer, fo, path);
    fo__write(&writer, png, bytes);
    fo__free(fo, index);
    return fo__write_end(&writer);
}

/* ================================================================================================
   >>archive       safetensors: the length of a JSON header, the header, the bytes of all arrays

   Invariants a file is hostile: its header is read and compared with the file's size before the
              values are; nothing is looked up by scanning; what we wrote carries a checksum
   Callers    users; >>checkpoint
   Cost       the checksum reads several GB/s, a fraction of what writing takes
   ============================================================================================= */

/* What look-ups and comparisons go by: a text, or a number where there is none. */
typedef struct fo__key {
    const char *text;
    int64_t     number;
    int         at; /* in the list that this is a key of */
} fo__key;

static int fo__before(const fo__key *a, const fo__key *b) {
    return a->text ? strcmp(a->text, b->text) < 0 : a->number < b->number;
}

/* Heap sort of a type, by a function that says which of two comes first: n log n for any input,
   which may be hostile, and no memory; qsort promises neither. Every root sinks to its place, from
   the middle up; then the last in order moves behind the heap, time after time. */
#define FO__HEAP_SORT(name, type, before)                                                          \
    static void name(type *at, int64_t n) {                                                        \
        int64_t root = n / 2, heap = n, i, child;                                                  \
        while (heap > 1) {                                                                         \
            type sinking = root > 0 ? at[--root] : at[--heap];                                     \
            if (heap < n)                                                                          \
                at[heap] = at[0];                                                                  \
            for (i = root; (child = 2 * i + 1) < heap; i = child) {                                \
                child += child + 1 < heap && before(&at[child], &at[child + 1]);                   \
                if (!before(&sinking, &at[child]))                                                 \
                    break;                                                                         \
                at[i] = at[child];                                                                 \
            }                                                                                      \
            at[i] = sinking;                                                                       \
        }                                                                                          \
    }
FO__HEAP_SORT(fo__sort_keys, fo__key, fo__before)

/* The place of `text` in the list that these sorted keys belong to, or -1. */
static int fo__find_key(const fo__key *keys, int n, const char *text) {
    int low = 0, high = n;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(keys[middle].text, text);
        if (order == 0)
            return keys[middle].at;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

/* The first of two neighbours of the same text among n sorted keys, or NULL. */
static const fo__key *fo__twice(const fo__key *keys, int n) {
    int i;
    for (i = 0; i + 1 < n; i++)
        if (strcmp(keys[i].text, keys[i + 1].text) == 0)
            return &keys[i];
    return NULL;
}

struct fo_archive {
    fo__arena arena;
    fo_array *arrays;
    fo_note  *notes;
    fo__key  *names, *keys, *places; /* sorted: of arrays, of notes, and where arrays begin */
    int       count, n_notes, room, note_room;
};

static size_t fo__bytes(const fo_array *array) {
    return fo__array_bytes(array->type, array->rank, array->dim);
}

/* Sorts what is in the lists. */
static fo_result fo__archive_index(fo_archive *a, fo__arena *arena) {
    int i;
    a->names = (fo__key *)fo__arena_alloc(arena, fo__times(a->count + 1, sizeof *a->names));
    a->keys  = (fo__key *)fo__arena_alloc(arena, fo__times(a->n_notes + 1, sizeof *a->keys));
    if (a->names == NULL || a->keys == NULL)
        return FO_ERR_MEMORY;
    for (i = 0; i < a->count; i++)
        a->names[i].text = a->arrays[i].name, a->names[i].at = i;
    for (i = 0; i < a->n_notes; i++)
        a->keys[i].text = a->notes[i].key, a->keys[i].at = i;
    fo__sort_keys(a->names, a->count);
    fo__sort_keys(a->keys, a->n_notes);
    return FO_OK;
}

/* ---- the checksum ---------------------------------------------------------------------------- */

static uint64_t fo__checksum_word(uint64_t sum, uint64_t word) {
    sum = (sum ^ word) * 0x9E3779B97F4A7C15u;
    return sum ^ sum >> 32;
}

/* Continues `sum` over n bytes, in four lanes that do not wait for each other. Every step is
   one-to-one: a single changed word is always seen. */
static uint64_t fo__checksum(uint64_t sum, const void *bytes, size_t n) {
    const unsigned char *at = (const unsigned char *)bytes;
    uint64_t             a = sum, b = sum, c = sum, d = sum, word[4];
    for (; n >= 32; n -= 32, at += 32) {
        memcpy(word, at, 32);
        a = fo__checksum_word(a, word[0]);
        b = fo__checksum_word(b, word[1]);
        c = fo__checksum_word(c, word[2]);
        d = fo__checksum_word(d, word[3]);
    }
    sum = fo__checksum_word(fo__checksum_word(fo__checksum_word(a, b), c), d);
    for (; n > 0; n--)
        sum = fo__checksum_word(sum, *at++);
    return sum;
}

/* Of names, shapes and values, in whatever order the arrays lie in the file. */
static void fo__checksum_text(const fo_array *arrays, int n, char text[17]) {
    uint64_t total = 0, sum;
    int      i;
    for (i = 0; i < n; i++) {
        const fo_array *a = &arrays[i];
        sum = fo__checksum((uint64_t)a->type + 1, a->name, strlen(a->name));
        sum = fo__checksum(sum, a->dim, (size_t)a->rank * sizeof *a->dim);
        total += fo__checksum(sum, a->values, fo__bytes(a));
    }
    for (i = 0; i < 16; i++)
        text[i] = "0123456789abcdef"[total >> (60 - 4 * i) & 15];
    text[16] = 0;
}

#define FO__CHECKSUM "flowood.checksum"

/* ---- in -------------------------------------------------------------------------------------- */

/* One array of the header, whose data are n bytes. */
static fo_result fo__read_array(fo__source *s, fo__scan *scan, fo_archive *a, const char *name,
                                size_t n) {
    int        room = a->room;
    fo_array  *array;
    fo__key   *place;
    fo__record r;
    memset(&r, 0, sizeof r);
    fo__read_record(scan, &r);
    if (scan->bad)
        return FO_OK; /* the caller tells */
    if (r.type == FO__DTYPES || r.rank > 4)
        return fo__reject(s, "array '%.80s' of type %.20s with %d dimensions is not read: save "
                          "F32 with at most 4", name, r.type_text, r.rank);
    array = (fo_array *)fo__grow(&a->arena, a->arrays, a->count, &a->room, sizeof *array);
    place = (fo__key *)fo__grow(&a->arena, a->places, a->count, &room, sizeof *place);
    if (array == NULL || place == NULL)
        return FO_ERR_MEMORY;
    a->arrays = array;
    a->places = place;
    array += a->count;
    place += a->count;
    memset(array, 0, sizeof *array);
    memset(place, 0, sizeof *place);
    place->number = r.span[0];
    place->at     = a->count++;
    array->name   = name;
    array->type   = (fo_dtype)r.type;
    array->rank   = r.rank;
    memcpy(array->dim, r.dim, sizeof r.dim);
    if (r.span[0] > r.span[1] || (uint64_t)r.span[1] > n ||
        (size_t)(r.span[1] - r.span[0]) != fo__bytes(array))
        return fo__reject(s, "array '%.80s' at %lld to %lld of %lld bytes does not fit its shape "
                          "or was cut short: copy it again", name, (long long)r.span[0],
                          (long long)r.span[1], (long long)n);
    return FO_OK;
}

static fo_result fo__read_notes(fo__scan *scan, fo_archive *a) {
    scan->bad |= a->n_notes > 0;
    while (fo__item_at(scan, "{", "}", a->n_notes)) {
        const char *key = fo__quoted(scan, ":"), *text = fo__quoted(scan, "");
        fo_note    *notes = (fo_note *)fo__grow(&a->arena, a->notes, a->n_notes, &a->note_room,
                                                sizeof *notes);
        if (notes == NULL)
            return FO_ERR_MEMORY;
        a->notes = notes;
        notes[a->n_notes].key    = key;
        notes[a->n_notes++].text = text;
    }
    return FO_OK;
}

/* The n bytes of the header; `data` bytes follow them. */
static fo_result fo__read_entries(fo__source *s, fo_archive *a, char *header, size_t n,
                                  size_t data) {
    fo_result result = FO_OK;
    fo__scan  scan   = {NULL, NULL, 0, 0};
    int       i;
    scan.at  = header;
    scan.end = header + n;
    for (i = 0; result == FO_OK && fo__item_at(&scan, "{", "}", i); i++) {
        const char *name = fo__quoted(&scan, ":");
        if (strcmp(name, "__metadata__") == 0)
            result = fo__read_notes(&scan, a);
        else if (!scan.bad)
            result = fo__read_array(s, &scan, a, name, data);
    }
    if (result != FO_OK)
        return result;
    fo__accept(&scan, "");
    if (scan.bad || scan.at != scan.end)
        return fo__reject(s, "its JSON header is damaged at or before byte %lld",
                          (long long)(scan.at - header + 8));
    return FO_OK;
}

/* No name and no byte twice. Arrays that do not overlap and have `data` bytes together leave no
   hole. */
static fo_result fo__check_entries(fo__source *s, fo_archive *a, size_t data) {
    const fo__key *twice;
    int            i, last = -1;
    size_t         used = 0;
    int64_t        end = 0;
    if (fo__archive_index(a, &a->arena) != FO_OK)
        return FO_ERR_MEMORY;
    if ((twice = fo__twice(a->keys, a->n_notes)) != NULL)
        return fo__reject(s, "has two notes of the same key '%.80s'", twice->text);
    if ((twice = fo__twice(a->names, a->count)) != NULL)
        return fo__reject(s, "two arrays have the same name '%.80s': damaged, copy it again",
                          twice->text);
    fo__sort_keys(a->places, a->count);
    for (i = 0; i < a->count; i++) {
        const fo_array *array = &a->arrays[a->places[i].at];
        size_t          bytes = fo__bytes(array);
        if (bytes && a->places[i].number < end)
            return fo__reject(s, "array '%.80s' has the same bytes as array '%.80s': damaged, "
                              "copy it again", array->name, a->arrays[a->places[last].at].name);
        if (bytes) {
            last = i;
            end  = a->places[i].number + (int64_t)bytes;
        }
        used += bytes;
    }
    return used == data ? FO_OK : fo__reject(s, "its arrays have %lld bytes of %lld: damaged, copy "
                                             "it again", (long long)used, (long long)data);
}

/* Where the values lie: in the source's memory, or read into ours. */
static fo_result fo__place_values(fo__source *s, fo_archive *a, size_t data) {
    const unsigned char *values = s->memory ? s->memory + s->at : NULL;
    const char          *noted  = fo_archive_note(a, FO__CHECKSUM);
    char                 sum[17];
    int                  i;
    if (s->file) {
        unsigned char *room = (unsigned char *)fo__arena_alloc(&a->arena, data + 1);
        if (room == NULL)
            return FO_ERR_MEMORY;
        values = room;
        if (fo__take(s, room, data) != FO_OK)
            return FO_ERR_FILE;
    }
    for (i = 0; i < a->count; i++) {
        fo_array            *array = &a->arrays[a->places[i].at];
        const unsigned char *at    = values + a->places[i].number;
        size_t               bytes = fo__bytes(array);
        array->values = at;
        if (bytes && (uintptr_t)at % fo__dtypes[array->type].size) { /* C wants even places */
            void *even = fo__arena_alloc(&a->arena, bytes);
            if (even == NULL)
                return FO_ERR_MEMORY;
            array->values = memcpy(even, at, bytes);
        }
    }
    fo__checksum_text(a->arrays, a->count, sum);
    if (noted && strcmp(noted, sum) != 0)
        return fo__reject(s, "its values are not those that were written: copy it again; if you "
                          "changed them, remove the note " FO__CHECKSUM);
    return FO_OK;
}

static fo_result fo__read_archive(fo__source *s, fo_archive *a) {
    unsigned char first[9];
    uint64_t      length;
    char         *header;
    size_t        data;
    fo_result     result = FO_OK;
    memset(first, 0, sizeof first);
    if (s->size >= 10)
        result = fo__take(s, first, sizeof first);
    memcpy(&length, first, 8);
    if (result == FO_OK && (s->size < 10 || length < 2 || length > s->size - 8 ||
                            length > 100000000 || first[8] != '{'))
        return fo__reject(s, "has no safetensors header: it is of another kind or was cut short");
    header = result == FO_OK ? (char *)fo__arena_alloc(&a->arena, (size_t)length) : NULL;
    if (header == NULL)
        return result != FO_OK ? result : FO_ERR_MEMORY;
    header[0] = '{';
    data      = s->size - 8 - (size_t)length;
    result    = fo__take(s, header + 1, (size_t)length - 1);
    if (result == FO_OK)
        result = fo__read_entries(s, a, header, (size_t)length, data);
    if (result == FO_OK)
        result = fo__check_entries(s, a, data);
    return result == FO_OK ? fo__place_values(s, a, data) : result;
}

static fo_archive *fo__archive_from(fo__source *s) {
    fo_archive *archive = (fo_archive *)fo__object(s->fo, sizeof *archive);
    if (archive && fo__read_archive(s, archive) != FO_OK) {
        fo__object_free(archive);
        archive = NULL;
    }
    fo__source_close(s);
    return archive;
}

fo_archive *fo_archive_open(fo_context *fo, const char *path) {
    fo__source source;
    return fo__begin(fo) && fo__source_open(&source, fo, path) == FO_OK
               ? fo__archive_from(&source) : NULL;
}

fo_archive *fo_archive_open_memory(fo_context *fo, const void *bytes, size_t size) {
    fo__source source;
    return fo__begin(fo) && fo__source_memory(&source, fo, bytes, size) == FO_OK
               ? fo__archive_from(&source) : NULL;
}

void fo_archive_free(fo_archive *archive) { fo__object_free(archive); }

int fo_archive_count(const fo_archive *archive) { return archive ? archive->count : 0; }

const fo_array *fo_archive_at(const fo_archive *archive, int i) {
    return archive && i >= 0 && i < archive->count ? &archive->arrays[i] : NULL;
}

const fo_array *fo_archive_find(const fo_archive *archive, const char *name) {
    int i = archive && name ? fo__find_key(archive->names, archive->count, name) : -1;
    return i < 0 ? NULL : &archive->arrays[i];
}

const char *fo_archive_note(const fo_archive *archive, const char *key) {
    int i = archive && key ? fo__find_key(archive->keys, archive->n_notes, key) : -1;
    return i < 0 ? NULL : archive->notes[i].text;
}

/* ---- out ------------------------------------------------------------------------------------- */

/* What an archive is to hold. */
typedef struct fo__contents {
    const fo_array *arrays;
    const fo_note  *notes;
    int             n, n_notes;
} fo__contents;

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
static void fo__write_header(fo__writer *w, const fo__contents *c, const char *checksum) {
    int64_t end = 0;
    size_t  size;
    int     i, k;
    fo__print(w, "{\"__metadata__\":{");
    for (i = 0; i < c->n_notes; i++) {
        fo__print_quoted(w, c->notes[i].key, ":");
        fo__print_quoted(w, c->notes[i].text, ",");
    }
    fo__print(w, "\"" FO__CHECKSUM "\":\"%s\"}", checksum);
    for (size = 8; size > 0; size /= 2)
        for (i = 0; i < c->n; i++) {
            const fo_array *a = &c->arrays[i];
            if (fo__dtypes[a->type].size != size)
                continue;
            fo__print(w, ",");
            fo__print_quoted(w, a->name, ":{\"dtype\":");
            fo__print(w, "\"%s\",\"shape\":[", fo__dtypes[a->type].name);
            for (k = 0; k < a->rank; k++)
                fo__print(w, k ? ",%lld" : "%lld", (long long)a->dim[k]);
            fo__print(w, "],\"data_offsets\":[%lld,", (long long)end);
            end += (int64_t)fo__bytes(a);
            fo__print(w, "%lld]}", (long long)end);
        }
    fo__print(w, "}");
    fo__print(w, "%.*s", (int)((8 - w->n % 8) % 8), "       ");
}

static void fo__write_archive(fo__writer *w, const fo__contents *c, const char *checksum) {
    fo__writer count;
    uint64_t   length;
    size_t     size;
    int        i;
    memset(&count, 0, sizeof count);
    fo__write_header(&count, c, checksum);
    length = count.n;
    fo__write(w, &length, 8);
    fo__write_header(w, c, checksum);
    for (size = 8; size > 0; size /= 2)
        for (i = 0; i < c->n; i++)
            if (fo__dtypes[c->arrays[i].type].size == size)
                fo__write(w, c->arrays[i].values, fo__bytes(&c->arrays[i]));
}

/* May this be written? */
static fo_result fo__check_contents(fo_context *fo, const fo__contents *c) {
    fo_result  result = FO_OK;
    fo_archive seen;
    fo__arena  arena;
    int        i, bad = c->n < 0 || c->n_notes < 0 || (c->n && !c->arrays) ||
                 (c->n_notes && !c->notes);
    memset(&seen, 0, sizeof seen);
    arena.fo     = fo;
    arena.chunks = NULL;
    for (i = 0; !bad && i < c->n_notes; i++)
        bad = !c->notes[i].key || !c->notes[i].text || !strcmp(c->notes[i].key, FO__CHECKSUM);
    for (i = 0; !bad && i < c->n && result == FO_OK; i++) {
        const fo_array *a = &c->arrays[i];
        bad = !a->name || !strcmp(a->name, "__metadata__");
        if (!bad)
            result = fo__check_array(fo, a->name, a->type, a->rank, 4, a->dim, a->values);
    }
    if (!bad && result == FO_OK) {
        seen.arrays  = (fo_array *)(uintptr_t)c->arrays; /* only read */
        seen.notes   = (fo_note *)(uintptr_t)c->notes;
        seen.count   = c->n;
        seen.n_notes = c->n_notes;
        result       = fo__archive_index(&seen, &arena);
        bad          = result == FO_OK && (fo__twice(seen.names, c->n) ||
                                           fo__twice(seen.keys, c->n_notes));
    }
    fo__arena_free(&arena);
    return !bad ? result : fo__fail(fo, FO_ERR_ARGUMENT, "fo_archive_save: of %d arrays and %d "
                                    "notes one has no name, that of another, __metadata__ or "
                                    FO__CHECKSUM, c->n, c->n_notes);
}

/* To a file, or (path NULL) to a block of the context. */
static fo_result fo__put_archive(fo_context *fo, const char *path, void **bytes, size_t *size,
                                 const fo__contents *contents) {
    fo__writer w;
    char       checksum[17];
    fo_result  result = fo ? fo__check_contents(fo, contents) : FO_ERR_ARGUMENT;
    if (result != FO_OK)
        return result;
    fo__checksum_text(contents->arrays, contents->n, checksum);
    if (path) {
        fo__write_begin(&w, fo, path);
        fo__write_archive(&w, contents, checksum);
        return fo__write_end(&w);
    }
    memset(&w, 0, sizeof w);
    fo__write_archive(&w, contents, checksum); /* how much is it? */
    *size    = w.n;
    *bytes   = fo__alloc(fo, w.n);
    w.memory = (unsigned char *)*bytes;
    w.n      = 0;
    if (*bytes)
        fo__write_archive(&w, contents, checksum);
    return *bytes ? FO_OK : FO_ERR_MEMORY;
}

fo_result fo_archive_save(fo_context *fo, const char *path, const fo_array *arrays, int n,
                          const fo_note *notes, int n_notes) {
    fo__contents contents;
    contents.arrays = arrays, contents.n = n;
    contents.notes = notes, contents.n_notes = n_notes;
    fo__begin(fo);
    return fo__put_archive(fo, path ? path : "", NULL, NULL, &contents);
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

static int fo__lower(const fo__score *a, const fo__score *b) { return a->score < b->score; }
FO__HEAP_SORT(fo__sort, fo__score, fo__lower)

/* The same of plain numbers. */
static fo_result fo__sort_values(fo_context *fo, double *x, int64_t n) {
    fo__score *sorted = (fo__score *)fo__alloc(fo, fo__times(n, sizeof *sorted));
    int64_t    i;
    if (sorted == NULL)
        return FO_ERR_MEMORY;
    for (i = 0; i < n; i++)
        sorted[i].score = x[i];
    fo__sort(sorted, n);
    for (i = 0; i < n; i++)
        x[i] = sorted[i].score;
    fo__free(fo, sorted);
    return FO_OK;
}

/* Every step-th of n * step numbers, sorted, in a block to be freed; NULL: out of memory. */
static double *fo__sorted_copy(fo_context *fo, const double *x, int64_t n, int64_t step) {
    double *copy = (double *)fo__alloc(fo, fo__times(n, sizeof *copy));
    int64_t i;
    if (copy == NULL)
        return NULL;
    for (i = 0; i < n; i++)
        copy[i] = x[i * step];
    if (fo__sort_values(fo, copy, n) == FO_OK)
        return copy;
    fo__free(fo, copy);
    return NULL;
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

/* The standard error of auroc over n sorted scores, DeLong et al. 1988: auroc is the mean over OOD
   samples of the share of others below each, and the mean over the others of the share of OOD
   samples above each; the variances of the two means add up. */
static double fo__auroc_error(const fo__score *at, int64_t n, int64_t n_ood, double auroc) {
    const double p = (double)n_ood, q = (double)(n - n_ood);
    double       var_ood = 0, var_in = 0, ood = 0, in = 0; /* samples below the present ones */
    int64_t      i, end;
    for (i = 0; i < n; i = end) {
        double same_ood = 0, same_in, below, above;
        for (end = i; end < n && at[end].score == at[i].score; end++)
            same_ood += (double)at[end].ood;
        same_in = (double)(end - i) - same_ood;
        below   = (in + same_in / 2) / q - auroc;
        above   = (p - ood - same_ood / 2) / p - auroc;
        var_ood += same_ood * below * below;
        var_in += same_in * above * above;
        ood += same_ood;
        in += same_in;
    }
    return sqrt(var_ood / FO__MAX(p - 1, 1) / p + var_in / FO__MAX(q - 1, 1) / q);
}

fo_result fo_measure(fo_context *fo, const double *in, int64_t n_in, const double *ood,
                     int64_t n_ood, fo_metrics *out) {
    int64_t   n = n_in + n_ood, i;
    double    unused, error;
    fo__score *all;
    if (!fo__begin(fo) || !in || !ood || !out || n_in < 1 || n_ood < 1)
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
        fo__curve(all, 1, n, 0, n_in, &out->aupr_in, &unused, &out->fpr95_in);
        fo__curve(all + n - 1, -1, n, 1, n_ood, &out->aupr_out, &out->auroc, &out->fpr95);
        error           = 1.959963984540054 * fo__auroc_error(all, n, n_ood, out->auroc);
        out->auroc_low  = FO__MAX(out->auroc - error, 0);
        out->auroc_high = FO__MIN(out->auroc + error, 1);
    }
    fo__free(fo, all);
    return i == n ? FO_OK : fo__fail(fo, FO_ERR_NUMERIC, "fo_measure: score %lld of the %s samples "
                                     "is not a number", (long long)(i < n_in ? i : i - n_in),
                                     i < n_in ? "in-distribution" : "OOD");
}

/* ================================================================================================
   >>decisions     from p-values to alarms: one sample, many, a stream

   Invariants nothing here knows of flows: numbers in, numbers out
   Callers    users, and >>detect
   Papers     Vovk, Gammerman, Shafer 2005 (conformal prediction), Vovk 2012 (conditional validity),
              Benjamini and Hochberg 1995, Volkhonskiy et al. 2017 (conformal martingales)
   ============================================================================================= */

/* log n!, by Stirling's series from 16 on: good to 1e-13. */
static double fo__log_factorial(int64_t n) {
    double  x = (double)n, sum = 0;
    int64_t i;
    if (n >= 16)
        return (x + 0.5) * log(x) - x + 0.9189385332046727 + 1 / (12 * x) - 1 / (360 * x * x * x) +
               1 / (1260 * x * x * x * x * x);
    for (i = 2; i <= n; i++)
        sum += log((double)i);
    return sum;
}

/* P(X >= k) of X ~ Binomial(n, a): terms from k on, until they no longer count. */
static double fo__binomial_tail(int64_t n, int64_t k, double a) {
    double  term, sum = 0;
    int64_t i;
    if (k <= 0)
        return 1;
    if ((double)k < (double)n * a) /* the short side of the sum */
        return 1 - fo__binomial_tail(n, n - k + 1, 1 - a);
    term = exp(fo__log_factorial(n) - fo__log_factorial(k) - fo__log_factorial(n - k) +
               (double)k * log(a) + (double)(n - k) * log1p(-a));
    for (i = k; i <= n && term > 1e-18 * sum; i++) {
        sum += term;
        term *= (double)(n - i) / (double)(i + 1) * a / (1 - a);
    }
    return FO__MIN(sum, 1);
}

/* The false-alarm rate of the limit k/(n+1) is Beta(k, n+1-k), which lies below alpha exactly if at
   least k of n uniform numbers do. */
fo_result fo_alarm_limit(fo_context *fo, int64_t n, double alpha, double confidence,
                         double *limit) {
    const double c = confidence;
    int64_t      low = 0, high = n + 1, k;
    double       needed;
    if (!fo__begin(fo) || !(alpha > 0 && alpha < 1) || !(c >= 0 && c < 1) || limit == NULL || n < 1)
        return fo__fail(fo, FO_ERR_ARGUMENT, "alpha=%g confidence=%g with %lld calibration "
                        "samples: alpha lies between 0 and 1, confidence in [0,1), and at least 1 "
                        "sample is needed", alpha, c, (long long)n);
    needed = c > 0 ? ceil(log1p(-c) / log1p(-alpha)) : ceil(1 / alpha - 1 - 1e-9);
    if ((double)n < needed)
        return fo__fail(fo, FO_ERR_ARGUMENT, "alpha=%g%s needs %.0f calibration samples, there are "
                        "%lld: calibrate with more, or raise alpha", alpha,
                        c > 0 ? " with this confidence" : "", needed, (long long)n);
    *limit = alpha;
    if (c == 0)
        return FO_OK;
    while (high - low > 1) { /* the largest k with P(Beta(k, n+1-k) <= alpha) >= c */
        k = low + (high - low) / 2;
        if (fo__binomial_tail(n, k, alpha) >= c)
            low = k;
        else
            high = k;
    }
    *limit = (double)low / (double)(n + 1);
    return FO_OK;
}

fo_result fo_benjamini_hochberg(fo_context *fo, const double *p, int64_t n, double alpha,
                                unsigned char *alarm, int64_t *alarms) {
    double *sorted, limit = -1;
    int64_t i, found = 0;
    if (!fo__begin(fo) || p == NULL || alarm == NULL || n < 1 || !(alpha > 0 && alpha < 1))
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_benjamini_hochberg: %lld p-values, alpha=%g: at "
                        "least one, and an alpha between 0 and 1 are needed", (long long)n, alpha);
    for (i = 0; i < n; i++)
        if (!(p[i] >= 0 && p[i] <= 1))
            return fo__fail(fo, FO_ERR_NUMERIC, "p-value %lld is %g: it must lie in [0,1]",
                            (long long)i, p[i]);
    sorted = fo__sorted_copy(fo, p, n, 1);
    if (sorted == NULL)
        return FO_ERR_MEMORY;
    for (i = 0; i < n; i++)
        if (sorted[i] <= alpha * (double)(i + 1) / (double)n)
            limit = sorted[i];
    fo__free(fo, sorted);
    for (i = 0; i < n; i++)
        found += alarm[i] = p[i] <= limit;
    if (alarms)
        *alarms = found;
    return FO_OK;
}

static int fo__martingale_bin(const fo_martingale *m, double statistic) {
    int low = 0, high = FO_MARTINGALE_BINS - 1; /* the first edge below it; the last is -infinity */
    while (low < high) {
        int middle = (low + high) / 2;
        if (statistic > m->edge[middle])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

fo_result fo_martingale_start(fo_context *fo, fo_martingale *m, const double *edge_statistics,
                              int64_t n, const double *calibration_statistics, int64_t calibration,
                              uint64_t seed) {
    double *sorted;
    int64_t i;
    if (!fo__begin(fo) || m == NULL || !edge_statistics || !calibration_statistics || n < 1 ||
        calibration < 1)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_martingale_start: statistics of at least one "
                        "sample for the edges and of one other are needed");
    for (i = 0; i < n + calibration; i++) {
        double x = i < n ? edge_statistics[i] : calibration_statistics[i - n];
        if (x != x)
            return fo__fail(fo, FO_ERR_NUMERIC, "fo_martingale_start: statistic %lld is not a "
                            "number", (long long)i);
    }
    sorted = fo__sorted_copy(fo, edge_statistics, n, 1);
    if (sorted == NULL)
        return FO_ERR_MEMORY;
    memset(m, 0, sizeof *m);
    m->seed    = seed;
    m->capital = m->highest = 1;
    for (i = 0; i < FO_MARTINGALE_BINS; i++)
        m->edge[i] = sorted[n - 1 - (i + 1) * n / (FO_MARTINGALE_BINS + 1)];
    m->edge[FO_MARTINGALE_BINS - 1] = -HUGE_VAL;
    for (i = 0; i < calibration; i++)
        m->count[fo__martingale_bin(m, calibration_statistics[i])] += 1;
    fo__free(fo, sorted);
    return FO_OK;
}

/* p, the rank of the new sample among all so far, at random among its equals, is uniform and
   independent of the ranks before it. Bet e in (0,1) multiplies its stake by e p^(e-1), whose mean
   is 1. Nobody knows when a change comes: the capital starts as a reserve, of which sample t puts
   1/(t (t+1)) into play, shared by all bets; so a change after t samples is found 2 log t nats
   later than one at the start, and no more. */
double fo_martingale_add(fo_martingale *m, double statistic) {
    double  above = 0, all = 0, p, t;
    fo_real u;
    int     bin, i;
    if (m == NULL || statistic != statistic)
        return m ? m->highest : 0;
    bin = fo__martingale_bin(m, statistic);
    m->count[bin] += 1;
    for (i = 0; i < FO_MARTINGALE_BINS; i++) {
        above += i < bin ? m->count[i] : 0;
        all += m->count[i];
    }
    fo_random_uniform(m->seed, FO__STREAM_MARTINGALE, m->seen, 1, &u);
    p          = (above + (double)u * m->count[bin]) / all;
    t          = (double)++m->seen;
    m->capital = 1 / (t + 1); /* what is still in reserve */
    for (i = 0; i < FO_MARTINGALE_BETS; i++) {
        const double e = (i + 1.0) / (FO_MARTINGALE_BETS + 1.0);
        m->stake[i] += 1 / (t * (t + 1)) / FO_MARTINGALE_BETS;
        m->stake[i] = FO__MIN(m->stake[i] * e * pow(p, e - 1), 1e300);
        m->capital += m->stake[i];
    }
    m->highest = FO__MAX(m->highest, m->capital);
    return m->highest;
}

/* ================================================================================================
   >>coder         how many nats would a lossless coder need for a picture?

   Why        a flow finds simple pictures likely, whatever they show; the length of a picture's
              code says how much of that is simplicity alone (Serra et al., ICLR 2020)
   How        every pixel is predicted from its neighbours by the median rule of LOCO-I (Weinberger,
              Seroussi and Sapiro 2000); the residual is written bit by bit, each bit with a
              probability that has learned from the bits before it in the same picture. Colours
              rise and fall together, so of R, G, B what is coded is G, R - G, B - G. Only the
              ideal length is made: minus the log of the product of all probabilities
   Cost       about 20 microseconds for 28 x 28 pixels; 5 KB of the stack
   ============================================================================================= */
enum {
    FO__BIT_ZERO = 0, FO__BIT_SIGN = 1,        /* of a residual e: e == 0? e < 0?              */
    FO__BIT_SIZE = 2,                          /* + j: has |e| more than j + 1 bits? j = 0..7  */
    FO__BIT_NEXT = 10,                         /* + bits: the bit below the leading one        */
    FO__MODELS = 18
};
#define FO__CONTEXTS 9 /* by the activity around a pixel: the bits of its differences, 0 to 8 */

typedef struct fo__bit_model { double one; int seen; } fo__bit_model; /* P(bit = 1) */

typedef struct fo__coder {
    fo__bit_model model[FO__CONTEXTS][FO__MODELS];
    double        nats, product; /* product: of the probabilities that are not in nats yet */
} fo__coder;

/* The estimate is the mean of what was seen, with a virtual 0 and 1, and later forgets slowly. */
static void fo__code_bit(fo__coder *c, fo__bit_model *m, int bit) {
    const double rate = m->seen < 48 ? 1.0 / (m->seen + 2) : 0.02;
    m->seen++;
    c->product *= bit ? m->one : 1 - m->one;
    m->one += rate * (bit - m->one);
    m->one = FO__MIN(FO__MAX(m->one, 1e-3), 1 - 1e-3);
    if (c->product < 1e-280) {
        c->nats -= log(c->product);
        c->product = 1;
    }
}

static int fo__bit_count(int x) {
    int n = 0;
    for (; x > 0; x >>= 1)
        n++;
    return n;
}

/* A residual, -255 to 255: zero?, sign, how many bits, the second highest bit; bits below that are
   as good as random. */
static void fo__code_residual(fo__coder *c, int context, int e) {
    fo__bit_model *m    = c->model[context];
    const int      size = e < 0 ? -e : e, bits = fo__bit_count(size);
    int            j;
    fo__code_bit(c, &m[FO__BIT_ZERO], e == 0);
    if (e == 0)
        return;
    fo__code_bit(c, &m[FO__BIT_SIGN], e < 0);
    for (j = 0; j < bits - 1; j++)
        fo__code_bit(c, &m[FO__BIT_SIZE + j], 1);
    if (bits < 8)
        fo__code_bit(c, &m[FO__BIT_SIZE + j], 0);
    if (bits > 1) {
        fo__code_bit(c, &m[FO__BIT_NEXT + bits - 1], size >> (bits - 2) & 1);
        c->nats += (bits - 2) * 0.6931471805599453;
    }
}

/* A plane of a picture: a channel x, or what x has over the channel `base`, modulo 256 and around
   128, from which x can be had back. */
static int fo__plane_at(const unsigned char *x, const unsigned char *base, int i) {
    return base ? (x[i] - base[i] + 128) & 255 : x[i];
}

static double fo__code_plane(const unsigned char *x, const unsigned char *base, int h, int w) {
    fo__coder c;
    int       i, j, y, k;
    memset(&c, 0, sizeof c);
    c.product = 1;
    for (i = 0; i < FO__CONTEXTS; i++)
        for (j = 0; j < FO__MODELS; j++)
            c.model[i][j].one = 0.5;
    for (y = 0, i = 0; y < h; y++)
        for (k = 0; k < w; k++, i++) {
            const int above = y ? fo__plane_at(x, base, i - w) : 0;
            const int west  = k ? fo__plane_at(x, base, i - 1) : above, north = y ? above : west;
            const int nw    = y && k ? fo__plane_at(x, base, i - w - 1) : north;
            const int ne    = y && k + 1 < w ? fo__plane_at(x, base, i - w + 1) : north;
            const int least = FO__MIN(west, north), most = FO__MAX(west, north);
            const int guess = nw >= most ? least : nw <= least ? most : west + north - nw;
            const int activity = abs(west - nw) + abs(nw - north) + abs(north - ne);
            fo__code_residual(&c, FO__MIN(fo__bit_count(activity), FO__CONTEXTS - 1),
                              fo__plane_at(x, base, i) - guess);
        }
    return c.nats - log(c.product);
}

double fo_code_length(const unsigned char *pixels, fo_shape shape) {
    const size_t plane = (size_t)shape.h * (size_t)shape.w;
    double       nats  = 0;
    int          c;
    if (pixels == NULL || fo_shape_count(shape) == 0)
        return 0;
    for (c = 0; c < shape.c; c++)
        nats += fo__code_plane(pixels + (size_t)c * plane,
                               shape.c == 3 && c != 1 ? pixels + plane : NULL, shape.h, shape.w);
    return nats;
}

/* ================================================================================================
   >>estimates     small statistical models of numbers: distances, densities, normality, spectra,
                   principal components

   Invariants sums in double and in a fixed order; nothing here knows of flows
   Callers    the scores of >>scores
   ============================================================================================= */

/* a[n,n] positive definite becomes its lower Cholesky factor; 0 if it is not. */
static int fo__cholesky(double *a, int64_t n) {
    int64_t i, j, k;
    for (j = 0; j < n; j++)
        for (i = j; i < n; i++) {
            double sum = a[i * n + j];
            for (k = 0; k < j; k++)
                sum -= a[i * n + k] * a[j * n + k];
            if (i == j && !(sum > 0))
                return 0;
            a[i * n + j] = i == j ? sqrt(sum) : sum / a[j * n + j];
        }
    return 1;
}

/* Mean of n numbers that lie `step` apart, and (or NULL) their standard deviation, by n - 1. */
static double fo__mean_of(const double *x, int64_t n, int64_t step, double *std) {
    double  mean = 0, square = 0;
    int64_t i;
    for (i = 0; i < n; i++)
        mean += x[i * step] / (double)n;
    if (std)
        for (i = 0; i < n; i++)
            square += (x[i * step] - mean) * (x[i * step] - mean);
    if (std)
        *std = sqrt(square / (double)FO__MAX(n - 1, 1));
    return mean;
}

/* Mean and Cholesky factor of the covariance of rows[n][d] (divided by n - 1), with a millionth of
   the mean variance added to the diagonal: constant columns stay harmless. gauss[d + d*d]. */
static int fo__gauss_fit(const double *rows, int64_t n, int64_t d, double *gauss) {
    double *cov = gauss + d, trace = 0;
    int64_t r, i, j;
    memset(gauss, 0, (size_t)(d + d * d) * sizeof *gauss);
    for (i = 0; i < d; i++)
        gauss[i] = fo__mean_of(rows + i, n, d, NULL);
    for (r = 0; r < n; r++)
        for (i = 0; i < d; i++)
            for (j = 0; j <= i; j++)
                cov[i * d + j] += (rows[r * d + i] - gauss[i]) * (rows[r * d + j] - gauss[j]);
    for (i = 0; i < d; i++) {
        for (j = 0; j <= i; j++)
            cov[i * d + j] /= (double)FO__MAX(n - 1, 1);
        trace += cov[i * d + i];
    }
    for (i = 0; i < d; i++)
        cov[i * d + i] += 1e-6 * trace / (double)d + 1e-20;
    return fo__cholesky(cov, d);
}

/* Squared Mahalanobis distance of x[d]; work[d]. */
static double fo__mahalanobis(const fo_real *gauss, int64_t d, const double *x, double *work) {
    const fo_real *factor = gauss + d;
    double         sum = 0;
    int64_t        i, k;
    for (i = 0; i < d; i++) { /* factor work = x - mean */
        double y = x[i] - (double)gauss[i];
        for (k = 0; k < i; k++)
            y -= (double)factor[i * d + k] * work[k];
        work[i] = y / (double)factor[i * d + i];
        sum += work[i] * work[i];
    }
    return sum;
}

/* The width of a kernel density by Scott's rule (1992): the standard deviation times n^-1/5. */
static double fo__kde_width(const double *points, int64_t n) {
    double std, mean = fo__mean_of(points, n, 1, &std);
    return FO__MAX(std, 1e-12 * (1 + fabs(mean))) * pow((double)n, -0.2);
}

/* Log of the density at x of a normal kernel on each of n points; the nearest point comes out of
   the sum, so that it does not underflow far away. */
static double fo__kde_log(const fo_real *points, int64_t n, double width, double x) {
    double  nearest = HUGE_VAL, sum = 0;
    int64_t i;
    for (i = 0; i < n; i++)
        nearest = FO__MIN(nearest, fabs(x - (double)points[i]));
    nearest = nearest / width * (nearest / width) / 2;
    for (i = 0; i < n; i++) {
        const double u = (x - (double)points[i]) / width;
        sum += exp(nearest - u * u / 2);
    }
    return log(sum / (double)n / width) - nearest - 0.9189385332046727;
}

/* log of the normal distribution function; far below 0 by its asymptotic series. */
static double fo__log_normal_cdf(double x) {
    if (x > -20)
        return log(0.5 * erfc(-x * 0.7071067811865476));
    return -x * x / 2 - log(-x) - 0.9189385332046727 + log1p(-1 / (x * x) + 3 / (x * x * x * x));
}

/* Anderson and Darling's statistic (1952): are n numbers, sorted here, from N(0,1)?
   A^2 = -n - 1/n sum (2i - 1) (log F(z_i) + log(1 - F(z_{n+1-i}))) */
static double fo__anderson_darling(fo__score *z, int64_t n) {
    double  sum = 0;
    int64_t i;
    fo__sort(z, n);
    for (i = 0; i < n; i++)
        sum += (double)(2 * i + 1) *
               (fo__log_normal_cdf(z[i].score) + fo__log_normal_cdf(-z[n - 1 - i].score));
    return -(double)n - sum / (double)n;
}

/* Log of the spectral flatness of a picture [h][w]: the mean of the logs of its power spectrum
   minus the log of the mean, without the constant part. White noise has minus Euler's constant on
   average; any regular structure has less. A plain transform, of rows and then of columns;
   work[3 h w + 2 max(h, w)]. */
static double fo__log_flatness(const fo_real *x, int h, int w, double *work) {
    const int count = h * w, most = FO__MAX(h, w);
    double   *re = work, *im = work + count, *row = work + 2 * count;
    double   *cosine = work + 3 * count, *sine = cosine + most, logs = 0, sum = 0;
    int       y, k, i;
    for (i = 0; i < w; i++)
        cosine[i] = cos(6.283185307179586 * i / w), sine[i] = sin(6.283185307179586 * i / w);
    for (y = 0; y < h; y++)
        for (k = 0; k < w; k++) {
            double a = 0, b = 0;
            for (i = 0; i < w; i++) {
                a += (double)x[y * w + i] * cosine[i * k % w];
                b -= (double)x[y * w + i] * sine[i * k % w];
            }
            re[y * w + k] = a, im[y * w + k] = b;
        }
    for (i = 0; i < h; i++)
        cosine[i] = cos(6.283185307179586 * i / h), sine[i] = sin(6.283185307179586 * i / h);
    for (k = 0; k < w; k++)
        for (y = 0; y < h; y++) {
            double a = 0, b = 0;
            for (i = 0; i < h; i++) {
                const double c = cosine[i * y % h], d = sine[i * y % h];
                a += re[i * w + k] * c + im[i * w + k] * d;
                b += im[i * w + k] * c - re[i * w + k] * d;
            }
            row[y * w + k] = a * a + b * b;
        }
    for (i = 1; i < count; i++) {
        logs += log(row[i] + 1e-300);
        sum += row[i];
    }
    return count < 2 ? 0 : logs / (count - 1) - log(sum / (count - 1) + 1e-300);
}

/* ---- all directions of a symmetric matrix ------------------------------------------------------

   Householder (1958) makes the matrix tridiagonal, A = Q T Q^T; implicit QL steps with Wilkinson's
   shift make T diagonal by rotations, which turn Q into the eigenvectors. About 6 n^3
   multiply-adds. A thousand dimensions do not fit into the cache, so what takes the time are
   passes over the matrix: a reflection is applied in the pass that prepares the next one, and
   rotations are collected and applied to a few columns at a time. Threads share the columns, each
   of which sees the same operations in the same order. */
typedef struct fo__eigenwork {
    fo_context   *fo;
    double       *a; /* [n][n] */
    int64_t       n, from;
    const double *v, *old_v, *old_w; /* this reflection, and the one before (or NULL) */
    double       *w;
    double        beta;
    double       *turn; /* [rotations][3]: row, cosine, sine */
    int64_t       rotations;
} fo__eigenwork;
#define FO__EIGEN_COLUMNS ((int64_t)32)
#define FO__EIGEN_WORK 16 /* rows of n numbers that fo__eigen needs beside the matrix */
#define FO__EIGEN_TURNS 4 /* n rotations are collected */

/* For the square behind `from`: A -= old_v old_w^T + old_w old_v^T, then w := A v. */
static void fo__reflect(void *arg, int64_t begin, int64_t end) {
    const fo__eigenwork *e = (const fo__eigenwork *)arg;
    const int64_t        first = e->from + begin, last = e->from + end;
    const double        *old_v = e->old_v, *old_w = e->old_w;
    double              *w = e->w;
    int64_t              i, j;
    memset(w + first, 0, (size_t)(last - first) * sizeof *w);
    for (i = e->from; i < e->n; i++) {
        double      *row = e->a + i * e->n;
        const double v = e->v[i], by_w = old_v ? old_v[i] : 0, by_v = old_v ? old_w[i] : 0;
        for (j = first; j < last && old_v; j++)
            row[j] -= by_w * old_w[j] + by_v * old_v[j];
        for (j = first; j < last; j++)
            w[j] += v * row[j];
    }
}

/* Q := (I - beta v v^T) Q, behind `from`. */
static void fo__reflect_back(void *arg, int64_t begin, int64_t end) {
    const fo__eigenwork *e = (const fo__eigenwork *)arg;
    const int64_t        last = e->from + end;
    int64_t              i, j, k, n;
    for (j = e->from + begin; j < last; j += n) {
        double sum[FO__EIGEN_COLUMNS] = {0}, *row = e->a + e->from * e->n + j;
        n = FO__MIN(FO__EIGEN_COLUMNS, last - j);
        for (i = e->from; i < e->n; i++, row += e->n) {
            const double v = e->v[i];
            for (k = 0; k < n; k++)
                sum[k] += v * row[k];
        }
        for (i = e->n - 1; i >= e->from; i--) {
            const double v = e->beta * e->v[i];
            for (k = 0, row -= e->n; k < n; k++)
                row[k] -= v * sum[k];
        }
    }
}

/* Shares the columns behind `from` over threads, which wait for each other thousands of times: on a
   busy machine that costs more than it brings where a share is short. */
static void fo__columns(fo__eigenwork *e, double per_column,
                        void (*fn)(void *arg, int64_t begin, int64_t end)) {
    fo_parallel_for(e->fo, e->n - e->from, 10 * fo__grain(FO__NS_ELEMENT * per_column), fn, e);
}

/* Row k of A, right of the diagonal, becomes (off[k], 0, 0 ...) by the reflection that is left in
   its place; beta[k] goes with it. */
static void fo__reflection(double *v, int64_t k, int64_t n, double *off, double *beta) {
    double  rest = 0, length;
    int64_t i;
    for (i = k + 2; i < n; i++)
        rest += v[i] * v[i];
    length = sqrt(v[k + 1] * v[k + 1] + rest);
    off[k] = rest > 0 ? (v[k + 1] > 0 ? -length : length) : v[k + 1];
    v[k + 1] -= off[k];
    beta[k] = rest > 0 ? 2 / (v[k + 1] * v[k + 1] + rest) : 0;
}

/* diagonal[n] and off[n] (entry k stands between k and k+1) of T; a becomes Q^T. work[3 n] */
static void fo__tridiagonal(fo__eigenwork *e, double *diagonal, double *off, double *work) {
    const int64_t n = e->n;
    double       *a = e->a, *beta = work;
    int64_t       i, j, k;
    for (k = 0; k < n; k++) {
        double *row = a + k * n, *w = work + (1 + k % 2) * n, dot = 0;
        for (j = k; j < n && e->old_v; j++) /* this row's share of the last reflection */
            row[j] -= e->old_v[k] * e->old_w[j] + e->old_w[k] * e->old_v[j];
        diagonal[k] = row[k];
        off[k]      = k + 1 < n ? row[k + 1] : 0;
        beta[k]     = 0;
        if (k + 2 >= n)
            continue;
        fo__reflection(row, k, n, off, beta);
        e->v = row, e->w = w, e->from = k + 1;
        fo__columns(e, 2 * (double)(n - k), fo__reflect);
        for (i = k + 1; i < n; i++)
            dot += row[i] * w[i];
        for (i = k + 1; i < n; i++)
            w[i] = beta[k] * (w[i] - beta[k] / 2 * dot * row[i]);
        e->old_v = row, e->old_w = w;
    }
    for (k = n - 1; k >= 0; k--) { /* Q = H_0 (H_1 (...)), from the last on */
        e->v = a + k * n, e->from = k + 1, e->beta = beta[k];
        if (beta[k] > 0)
            fo__columns(e, 2 * (double)(n - k), fo__reflect_back);
        for (i = k + 1; i < n; i++)
            a[k * n + i] = a[i * n + k] = 0;
        a[k * n + k] = 1;
    }
    for (i = 0; i < n; i++)
        for (j = 0; j < i; j++) {
            const double keep = a[i * n + j];
            a[i * n + j] = a[j * n + i];
            a[j * n + i] = keep;
        }
}

/* Rotates rows row and row + 1 by what was collected. */
static void fo__rotate(void *arg, int64_t begin, int64_t end) {
    const fo__eigenwork *e = (const fo__eigenwork *)arg;
    int64_t              j, k, r, n;
    for (j = begin; j < end; j += n) {
        n = FO__MIN(FO__EIGEN_COLUMNS, end - j);
        for (r = 0; r < e->rotations; r++) {
            const double c = e->turn[3 * r + 1], s = e->turn[3 * r + 2];
            double      *upper = e->a + (int64_t)e->turn[3 * r] * e->n + j, *lower = upper + e->n;
            for (k = 0; k < n; k++) {
                const double x = upper[k], y = lower[k];
                upper[k] = c * x - s * y;
                lower[k] = s * x + c * y;
            }
        }
    }
}

static void fo__rotate_all(fo__eigenwork *e) {
    e->from = 0;
    fo__columns(e, (double)e->rotations, fo__rotate);
    e->rotations = 0;
}

/* One implicit QL step on rows first .. last of T: the bulge that the shift makes at the bottom is
   chased up by rotations. */
static void fo__ql_step(fo__eigenwork *e, double *d, double *off, int64_t first, int64_t last) {
    const double half = (d[first + 1] - d[first]) / (2 * off[first]), root = hypot(half, 1);
    double       g = d[last] - d[first] + off[first] / (half + (half < 0 ? -root : root));
    double       c = 1, s = 1, carried = 0;
    int64_t      i;
    for (i = last - 1; i >= first; i--) {
        const double f = s * off[i], b = c * off[i], r = hypot(f, g);
        double      *turn = e->turn + 3 * e->rotations, t;
        off[i + 1] = r;
        if (!(r > 0)) { /* T falls apart here */
            d[i + 1] -= carried;
            off[last] = 0;
            return;
        }
        s = f / r, c = g / r;
        g       = d[i + 1] - carried;
        t       = (d[i] - g) * s + 2 * c * b;
        carried = s * t;
        d[i + 1] = g + carried;
        g        = c * t - b;
        turn[0] = (double)i, turn[1] = c, turn[2] = s;
        if (++e->rotations == FO__EIGEN_TURNS * e->n)
            fo__rotate_all(e);
    }
    d[first] -= carried;
    off[first] = g;
    off[last]  = 0;
}

/* Symmetric a[n,n] becomes its orthonormal eigenvectors, one a row, of falling eigenvalues
   value[n]; work[FO__EIGEN_WORK * n]. 0: a has numbers that are not finite. */
static int fo__eigen(fo_context *fo, double *a, int64_t n, double *value, double *work) {
    double       *off = work, small = 0;
    int64_t       first, last, i, j, steps;
    fo__eigenwork e;
    memset(&e, 0, sizeof e);
    e.fo = fo, e.a = a, e.n = n, e.turn = work + 4 * n;
    fo__tridiagonal(&e, value, off, work + n);
    for (i = 0; i < n; i++)
        small = FO__MAX(small, 1e-16 * (fabs(value[i]) + fabs(off[i])));
    for (first = 0; first < n; first++)
        for (steps = 0;; steps++) {
            for (last = first; last + 1 < n; last++)
                if (fabs(off[last]) <= small)
                    break;
            if (last == first)
                break;
            if (steps == 100)
                return 0;
            fo__ql_step(&e, value, off, first, last);
        }
    fo__rotate_all(&e);
    for (i = 0; i < n; i++) {
        int64_t most = i;
        double  swap;
        for (j = i + 1; j < n; j++)
            most = value[j] > value[most] ? j : most;
        swap = value[i], value[i] = value[most], value[most] = swap;
        if (most != i)
            for (j = 0; j < n; j++)
                swap = a[i * n + j], a[i * n + j] = a[most * n + j], a[most * n + j] = swap;
    }
    return 1;
}

/* ---- principal components -------------------------------------------------------------------- */

/* Rows of v[k][d] orthonormal, one after the other; twice removes what rounding left. */
static void fo__orthonormalize(fo_real *v, int64_t k, int64_t d) {
    int64_t i, j, t;
    for (i = 0; i < k; i++) {
        fo_real *row    = v + i * d;
        double   length = 0;
        for (j = 0; j < 2 * i; j++) {
            const fo_real *other = v + j % i * d;
            double         dot   = 0;
            for (t = 0; t < d; t++)
                dot += (double)row[t] * (double)other[t];
            for (t = 0; t < d; t++)
                row[t] = (fo_real)((double)row[t] - dot * (double)other[t]);
        }
        for (t = 0; t < d; t++)
            length += (double)row[t] * (double)row[t];
        length = length > 0 ? 1 / sqrt(length) : 0;
        for (t = 0; t < d; t++)
            row[t] = (fo_real)((double)row[t] * length);
    }
}

/* The k directions v[k][d] of the largest variance of n centered rows, by subspace iteration: v :=
   the orthonormal rows of (v X^T) X, thirty times; y[n][k] is for the products. */
static void fo__principal(fo_context *fo, const fo_real *rows, int64_t n, int64_t d, int64_t k,
                          fo_real *v, fo_real *y) {
    int i;
    fo_random_normal(0, FO__STREAM_INIT, 0, k * d, v);
    fo__orthonormalize(v, k, d);
    for (i = 0; i < 30; i++) {
        fo__gemm(fo, n, k, d, rows, d, 1, v, 1, d, y, k, NULL, 0);
        fo__gemm(fo, k, d, n, y, 1, k, rows, d, 1, v, d, NULL, 0);
        fo__orthonormalize(v, k, d);
    }
}

/* Squared length of what k orthonormal directions leave of x[d]. */
static double fo__residual(const fo_real *v, int64_t k, int64_t d, const double *x) {
    double  sum = 0;
    int64_t i, t;
    for (t = 0; t < d; t++)
        sum += x[t] * x[t];
    for (i = 0; i < k; i++) {
        double dot = 0;
        for (t = 0; t < d; t++)
            dot += x[t] * (double)v[i * d + t];
        sum -= dot * dot;
    }
    return FO__MAX(sum, 0);
}

/* ================================================================================================
   >>tape          record, plan, run

   Purpose    reverse-mode differentiation of a recorded list of ops
   Invariants ops are kept in the order of recording, which is a topological order; forward walks
              it up, backward walks it down; every tensor has one producer
   Memory     time runs 0..n-1 in forward, n..2n-1 in backward (op i is undone at 2n-1-i). Every
              array lives for an interval of that time, an op's own scratch for two moments. Two
              pools: `kept` arrays live on from forward to backward, `scratch` ones do not, so that
              several tapes which never run at once may share one scratch block. Offsets: first
              fit among the intervals that overlap.
   Cost       planning is quadratic in the number of ops (hundreds), and done once
   ============================================================================================= */
typedef struct fo__param {
    fo_param_info info;
    fo_init       init;
    int           optional; /* files may lack it, */
    fo_real       absent;   /* and this is then its value */
} fo__param;

/* What a flow that is built from a file's text may ask for, so that a file costs what its size can
   answer for: see fo__limits_of. */
typedef struct fo__limits {
    const char *path;
    int         count; /* of parameters, and of buffers: the file's arrays */
    int64_t     size;  /* of their elements: those of the arrays */
    int64_t     work;  /* what layers and text may still cost, in elements */
} fo__limits;

/* Names, shapes and places of parameters, or of buffers: of one tape, or of a whole flow. */
typedef struct fo__params {
    fo__param  *list;
    int         count, room;
    int        *table; /* by name: a place in the list + 1, or 0; open addressing */
    int         slots; /* of the table: a power of two, at most half of them used */
    fo__limits *limits; /* NULL: none */
    int64_t    size;   /* elements in the block */
    int        frozen; /* the block is placed: no new names */
} fo__params;

/* What the planner knows of a tensor; it lies behind it. */
typedef struct fo__plan {
    fo_tensor *data_of, *grad_of;   /* whose storage this one shares (itself, mostly)     */
    int        needs_grad, is_output, written;
    int        last, until;         /* last use in forward; in backward (-1: none)        */
    int64_t    data_at, grad_at, param_at; /* offsets in their pools; -1: none            */
    int        kept, is_buffer;     /* data must survive from forward to backward         */
    int64_t    work_at[2];          /* scratch in forward and in backward; -1: none       */
    fo_real   *work[2];
    int        recompute_from, recompute_to; /* times of backward in which it is needed   */
    int        is_recomputed;       /* since the last forward                             */
    int64_t    recompute_at;        /* where it is then; -1: kept, or not needed          */
    fo_real   *first, *recomputed;  /* its data in forward and in backward                */
    unsigned   zero;                /* in backward, bit i: set in[i]->grad to zero        */
} fo__plan;

typedef struct fo__node { fo_tensor tensor; fo__plan plan; } fo__node;

static fo__plan *fo__plan_of(const fo_tensor *t) { return &((fo__node *)(uintptr_t)t)->plan; }

struct fo_tape {
    fo__arena   arena;
    fo_context *fo;
    fo_tensor **nodes; /* leaves and ops, in order of creation */
    int         count, room;
    fo__params  own, *params; /* params: own, or those of the flow whose layer this tape is */
    fo__params  own_buffers, *buffers;
    fo__arena  *params_arena;
    const char *prefix;       /* put before the names of parameters: "3.net." */
    fo_norm     norm;  /* of all batch norms on it */
    int         recomputing; /* in backward: forwards only repeat what was done */
    int         failed, planned, train, ran; /* ran: the last forward succeeded */
    int64_t     kept_size, scratch_size;
    fo_real    *values, *grads, *moments; /* of its own parameters; moments: fo_tape_optimize */
    double     *partial;
    int64_t     updates;
};

fo_init fo_init_of(fo_init_kind kind, double scale) {
    fo_init init;
    init.kind  = kind;
    init.scale = scale;
    return init;
}

fo_tape *fo_tape_create(fo_context *fo) {
    fo_tape *tape = fo__begin(fo) ? (fo_tape *)fo__object(fo, sizeof(fo_tape)) : NULL;
    if (tape) {
        tape->fo     = fo;
        tape->params = &tape->own;
        tape->buffers = &tape->own_buffers;
        tape->params_arena = &tape->arena;
        tape->prefix = "";
    }
    return tape;
}

void        fo_tape_free(fo_tape *tape) { fo__object_free(tape); }
fo_norm    *fo_tape_norm(fo_tape *tape) { return tape ? &tape->norm : NULL; }
fo_context *fo_tape_context(const fo_tape *tape) { return tape ? tape->fo : NULL; }

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
    if (rank < 1 || rank > FO_MAX_RANK || dim == NULL)
        return fo__fail(t->tape->fo, FO_ERR_SHAPE, "a tensor of rank %d: 1 to %d are possible, and "
                        "that many dimensions", rank, FO_MAX_RANK);
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

/* Can anything be recorded on it? */
static int fo__tape_open(fo_tape *tape) {
    if (!FO__BEGIN(tape))
        return 0;
    if (tape->planned || tape->failed)
        fo__fail(tape->fo, FO_ERR_ARGUMENT, tape->failed
                 ? "the tape is incomplete: an op could not be recorded, see the first error"
                 : "an op was added after fo_tape_plan: record everything first, then plan");
    return !tape->planned && !tape->failed;
}

static fo_tensor *fo__node_open(fo_tape *tape, const fo_op *op, int n_in) {
    fo_tensor **nodes, *t;
    fo__plan   *p;
    if (!fo__tape_open(tape))
        return NULL;
    tape->failed = 1; /* until fo__node_close */
    nodes = (fo_tensor **)fo__grow(&tape->arena, tape->nodes, tape->count, &tape->room,
                                   sizeof *nodes);
    if (nodes == NULL)
        return NULL;
    tape->nodes = nodes;
    t = (fo_tensor *)fo__arena_alloc(&tape->arena, sizeof(fo__node));
    if (t == NULL)
        return NULL;
    t->tape = tape;
    t->op   = op;
    t->n_in = n_in;
    p       = fo__plan_of(t);
    p->data_of = p->grad_of = t;
    p->data_at = p->grad_at = p->param_at = p->recompute_at = -1;
    p->last = p->until = p->recompute_from = -1;
    p->work_at[0] = p->work_at[1] = -1;
    return t;
}

static fo_tensor *fo__node_close(fo_tensor *t) {
    fo_tape *tape = t->tape;
    tape->nodes[tape->count++] = t;
    tape->failed = 0;
    return t;
}

fo_tensor *fo_input(fo_tape *tape, int rank, const int64_t *dim, int needs_grad) {
    fo_tensor *t = fo__node_open(tape, NULL, 0);
    if (t == NULL || fo__set_dims(t, rank, dim) != FO_OK)
        return NULL;
    fo__plan_of(t)->needs_grad = needs_grad;
    return fo__node_close(t);
}

/* Where the name is in the table, or the empty slot where it belongs. */
static int fo__param_slot(const fo__params *params, const char *name) {
    uint32_t    hash = 2166136261u; /* FNV-1a */
    const char *at;
    int         slot;
    for (at = name; *at; at++)
        hash = (hash ^ (unsigned char)*at) * 16777619u;
    slot = (int)(hash & (uint32_t)(params->slots - 1));
    while (params->table[slot] && strcmp(params->list[params->table[slot] - 1].info.name, name))
        slot = (slot + 1) & (params->slots - 1);
    return slot;
}

static fo__param *fo__param_find(const fo__params *params, const char *name) {
    int at = params->slots ? params->table[fo__param_slot(params, name)] : 0;
    return at ? &params->list[at - 1] : NULL;
}

/* Makes the last one of the list known by its name. */
static fo_result fo__param_enter(fo__params *params, fo__arena *arena) {
    int i, first = params->count - 1;
    if (2 * params->count > params->slots) {
        int  slots = params->slots ? 2 * params->slots : 64;
        int *table = (int *)fo__arena_alloc(arena, fo__times(slots, sizeof *table));
        if (table == NULL)
            return FO_ERR_MEMORY;
        params->table = table;
        params->slots = slots;
        first         = 0;
    }
    for (i = first; i < params->count; i++)
        params->table[fo__param_slot(params, params->list[i].info.name)] = i + 1;
    return FO_OK;
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
    if (params->limits && (params->count >= params->limits->count ||
                           p->info.count > params->limits->size - params->size)) {
        fo__fail(fo, FO_ERR_FORMAT, "%s: the flow of its text needs more weights than its arrays "
                 "hold: they belong to another architecture", params->limits->path);
        return NULL;
    }
    params->count++;
    if (fo__param_enter(params, arena) != FO_OK) {
        params->count--;
        return NULL;
    }
    params->size += p->info.count;
    return p;
}

/* The leaf of this name: a parameter, or a buffer. */
static fo_tensor *fo__named(fo_tape *tape, int is_buffer, const char *name, int rank,
                            const int64_t *dim, fo_init init) {
    fo__params *list;
    fo_tensor  *t;
    fo__param  *p;
    char        full[256];
    int         i;
    if (!FO__BEGIN(tape))
        return NULL;
    list = is_buffer ? tape->buffers : tape->params;
    if (name == NULL || *name == 0 ||
        snprintf(full, sizeof full, "%s%s", tape->prefix, name) >= (int)sizeof full) {
        fo__fail(tape->fo, FO_ERR_ARGUMENT, "a parameter needs a name of 1 to 200 letters, not "
                 "'%.40s'", name ? name : "");
        tape->failed = 1;
        return NULL;
    }
    t = fo__node_open(tape, NULL, 0);
    if (t == NULL || fo__set_dims(t, rank, dim) != FO_OK)
        return NULL;
    p = fo__param_get(tape->fo, list, tape->params_arena, full, rank, dim, init);
    if (p == NULL)
        return NULL;
    tape->failed = 0;
    for (i = 0; i < tape->count; i++)
        if (fo__plan_of(tape->nodes[i])->param_at == p->info.offset &&
            fo__plan_of(tape->nodes[i])->is_buffer == is_buffer)
            return tape->nodes[i];
    fo__plan_of(t)->needs_grad = !is_buffer;
    fo__plan_of(t)->is_buffer  = is_buffer;
    fo__plan_of(t)->param_at   = p->info.offset;
    return fo__node_close(t);
}

fo_tensor *fo_param(fo_tape *tape, const char *name, int rank, const int64_t *dim, fo_init init) {
    return fo__named(tape, 0, name, rank, dim, init);
}

fo_tensor *fo_buffer(fo_tape *tape, const char *name, int rank, const int64_t *dim, fo_init init) {
    return fo__named(tape, 1, name, rank, dim, init);
}

fo_tensor *fo_apply(fo_tape *tape, const fo_op *op, fo_tensor *const *in, int n_in,
                    const void *args, size_t args_size) {
    fo_tensor *t;
    void      *copy;
    int        i;
    if (!FO__BEGIN(tape))
        return NULL;
    for (i = 0; in && i < n_in; i++)
        if (in[i] == NULL)
            return NULL;
    if (op == NULL || op->shape == NULL || n_in < 0 || (n_in && !in) || (args_size && !args)) {
        tape->failed = 1;
        fo__fail(tape->fo, FO_ERR_ARGUMENT, "fo_apply: an op with a shape function, inputs (%d "
                 "here) and args of the size announced are needed", n_in);
        return NULL;
    }
    t = fo__node_open(tape, op, n_in);
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
        fo__plan_of(t)->needs_grad |= fo__plan_of(in[i])->needs_grad;
        if (in[i]->tape != tape) {
            fo__fail(tape->fo, FO_ERR_ARGUMENT, "%s mixes tensors of two tapes", op->name);
            return NULL;
        }
    }
    fo__enter(tape->fo);
    if (op->shape(t) == FO_OK)
        fo__set_dims(t, t->rank, t->dim);
    else
        fo__fail(tape->fo, FO_ERR_SHAPE, "%s does not accept these inputs", op->name);
    return fo__leave(tape->fo) == FO_OK ? fo__node_close(t) : NULL;
}

void fo_output(fo_tensor *tensor) {
    if (tensor)
        fo__plan_of(tensor)->is_output = 1;
}

/* ================================================================================================
   >>planner       where every value of a tape lies, and until when
   ============================================================================================= */

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
        fo_tensor *t = tape->nodes[i];
        fo__plan  *p = fo__plan_of(t), *root;
        if (t->op && (t->op->flags & FO_VIEW)) {
            p->data_of = fo__plan_of(t->in[0])->data_of;
            p->grad_of = fo__plan_of(t->in[0])->grad_of;
        }
        root = fo__plan_of(p->data_of);
        if (p->is_output) {
            root->last      = n;
            root->until     = train ? 2 * n : -1;
            root->is_output = 1;
        }
        if (!train)
            p->needs_grad = 0;
        root->last = FO__MAX(root->last, i);
        for (k = 0; k < t->n_in; k++) {
            fo__plan *in = fo__plan_of(fo__plan_of(t->in[k])->data_of);
            in->last     = FO__MAX(in->last, i);
            if (p->needs_grad && (t->op->flags & FO_READS_INPUT))
                in->until = FO__MAX(in->until, 2 * n - 1 - i);
        }
        if (p->needs_grad && t->op && (t->op->flags & FO_READS_OUTPUT))
            root->until = FO__MAX(root->until, 2 * n - 1 - i);
    }
}

/* An op may write over an input that nobody reads afterwards. */
static void fo__plan_in_place(fo_tape *tape) {
    int n = tape->count, i, j;
    for (i = 0; i < n; i++) {
        fo_tensor *t = tape->nodes[i], *in;
        fo__plan  *p = fo__plan_of(t), *q;
        if (t->op == NULL || !(t->op->flags & FO_IN_PLACE) || p->data_of != t)
            continue;
        in = fo__plan_of(t->in[0])->data_of;
        q  = fo__plan_of(in);
        if (q->param_at >= 0 || q->last != i || q->until >= 0 || in->op == NULL ||
            in->count != t->count)
            continue;
        q->last  = p->last;
        q->until = p->until;
        for (j = i; j < n; j++)
            if (fo__plan_of(tape->nodes[j])->data_of == t)
                fo__plan_of(tape->nodes[j])->data_of = in;
    }
}

/* Does another tensor share the storage of node i? */
static int fo__plan_is_shared(const fo_tape *tape, int i) {
    int j;
    for (j = 0; j < tape->count; j++)
        if (j != i && fo__plan_of(tape->nodes[j])->data_of == tape->nodes[i])
            return 1;
    return 0;
}

/* A cheap value that backward reads is not kept but recomputed, from the first reader on; unless
   another tensor shares its storage, or its input may be gone. */
static void fo__plan_recompute(fo_tape *tape) {
    int n = tape->count, i, j, k;
    for (i = 0; i < n; i++) {
        fo_tensor *t = tape->nodes[i];
        fo__plan  *p = fo__plan_of(t);
        if (t->op == NULL || !(t->op->flags & FO_CHEAP) || p->until < 0 || p->is_output)
            continue;
        if (p->data_of != t || fo__plan_is_shared(tape, i) ||
            fo__plan_of(fo__plan_of(t->in[0])->data_of)->until < p->until)
            continue;
        for (j = i + 1; j < n; j++) /* the last reader in forward is the first in backward */
            for (k = 0; k < tape->nodes[j]->n_in; k++)
                if (fo__plan_of(tape->nodes[j]->in[k])->data_of == t)
                    p->recompute_from = 2 * n - 1 - j;
        p->recompute_to = p->until;
        p->until        = -1;
    }
}

/* The pool that is being planned: every span placed so far. */
typedef struct fo__pool { fo__interval *span; int used; int64_t size; } fo__pool;

static int64_t fo__pool_add(fo__pool *pool, int64_t size, int birth, int death) {
    fo__interval *span = &pool->span[pool->used];
    span->size  = (size + 15) / 16 * 16;
    span->birth = birth;
    span->death = death;
    fo__place(pool->span, pool->used++, &pool->size);
    return span->at;
}

/* Data, of what is kept from forward to backward or of all the rest; inputs are filled before the
   first op. */
static void fo__plan_data(fo_tape *tape, fo__pool *pool, int kept) {
    int i;
    for (i = 0; i < tape->count; i++) {
        fo_tensor *t = tape->nodes[i];
        fo__plan  *p = fo__plan_of(t);
        if (p->param_at >= 0 || p->data_of != t)
            continue;
        p->kept = p->until >= 0;
        if (p->kept == kept)
            p->data_at = fo__pool_add(pool, t->count, t->op ? i : -1, kept ? p->until : p->last);
    }
}

/* Gradients: each is born where the last reader of its value is undone; the caller reads those of
   inputs. */
static void fo__plan_gradients(fo_tape *tape, fo__pool *pool) {
    int n = tape->count, i, j, k, birth;
    for (i = n - 1; i >= 0; i--) {
        fo_tensor *t = tape->nodes[i];
        fo__plan  *p = fo__plan_of(t);
        if (p->param_at >= 0 || p->grad_of != t || !p->needs_grad)
            continue;
        birth = p->is_output ? n : 2 * n - 1;
        for (k = i + 1; k < n; k++)
            for (j = 0; j < tape->nodes[k]->n_in; j++)
                if (fo__plan_of(tape->nodes[k]->in[j])->grad_of == t)
                    birth = FO__MIN(birth, 2 * n - 1 - k);
        p->grad_at = fo__pool_add(pool, t->count, birth, t->op ? 2 * n - 1 - i : 2 * n);
    }
}

/* Cheap values, recomputed in backward; and what ops asked for, forward and backward. */
static void fo__plan_extras(fo_tape *tape, fo__pool *pool) {
    int n = tape->count, i;
    for (i = 0; i < n; i++) {
        fo_tensor *t = tape->nodes[i];
        fo__plan  *p = fo__plan_of(t);
        if (p->recompute_from >= 0)
            p->recompute_at = fo__pool_add(pool, t->count, p->recompute_from, p->recompute_to);
    }
    for (i = 0; i < 2 * n; i++) {
        fo_tensor *t = tape->nodes[i < n ? i : 2 * n - 1 - i];
        fo__plan  *p = fo__plan_of(t);
        if (t->scratch_size && (i < n || p->needs_grad))
            p->work_at[i >= n] = fo__pool_add(pool, t->scratch_size, i, i);
    }
}

/* Offsets only; fo__tape_bind turns them into pointers. */
static fo_result fo__tape_layout(fo_tape *tape, int train) {
    fo__pool kept, scratch;
    if (tape->failed)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT, "a tape cannot be planned after an op failed to "
                        "record: see the first error");
    memset(&kept, 0, sizeof kept);
    kept.span = (fo__interval *)fo__alloc(
        tape->fo, fo__times(5 * (int64_t)tape->count + 1, sizeof *kept.span));
    if (kept.span == NULL)
        return FO_ERR_MEMORY;
    tape->planned = 1;
    tape->train   = train;
    scratch       = kept; /* one after the other they use the same room */
    fo__plan_lifetimes(tape, train);
    fo__plan_in_place(tape);
    fo__plan_recompute(tape);
    fo__plan_data(tape, &kept, 1);
    fo__plan_data(tape, &scratch, 0);
    fo__plan_gradients(tape, &scratch);
    fo__plan_extras(tape, &scratch);
    tape->kept_size    = kept.size;
    tape->scratch_size = scratch.size;
    fo__free(tape->fo, kept.span);
    return FO_OK;
}

static void fo__tape_bind(fo_tape *tape, fo_real *values, fo_real *grads, fo_real *buffers,
                          fo_real *kept, fo_real *scratch) {
    int i, k;
    for (i = 0; i < tape->count; i++) {
        fo_tensor *t = tape->nodes[i];
        fo__plan  *p = fo__plan_of(t), *d = fo__plan_of(p->data_of), *g = fo__plan_of(p->grad_of);
        for (k = 0; k < 2; k++)
            p->work[k] = p->work_at[k] >= 0 ? scratch + p->work_at[k] : NULL;
        if (d->is_buffer) { /* a buffer, or a view of one */
            t->data = buffers + d->param_at;
            t->grad = NULL;
        } else if (d->param_at >= 0) { /* likewise a parameter */
            t->data = values + d->param_at;
            t->grad = tape->train ? grads + d->param_at : NULL;
        } else {
            t->data = (d->kept ? kept : scratch) + d->data_at;
            t->grad = g->grad_at >= 0 ? scratch + g->grad_at : NULL;
        }
        p->first      = t->data;
        p->recomputed = p->recompute_at >= 0 ? scratch + p->recompute_at : NULL;
    }
}

/* A gain starts as the lengths of the rows of the parameter that comes next. */
static void fo__init_row_norms(const fo__param *g, const fo__param *p, fo_real *values) {
    int64_t row = p->info.count / FO__MAX(g->info.count, 1), j, k;
    for (j = 0; j < g->info.count; j++) {
        const fo_real *v   = values + p->info.offset + j * row;
        double         sum = 0;
        for (k = 0; k < row; k++)
            sum += (double)v[k] * (double)v[k];
        values[g->info.offset + j] = (fo_real)sqrt(sum);
    }
}

/* First values, each a function of (seed, its place in the list). */
static void fo__params_init(const fo__params *params, uint64_t seed, fo_real *values) {
    int     i;
    int64_t j;
    for (i = 0; i < params->count; i++) {
        const fo__param *p      = &params->list[i];
        const uint64_t   stream = FO__STREAM_INIT + (uint64_t)i;
        const double     scale  = p->init.scale;
        fo_real         *v      = values + p->info.offset;
        if (p->init.kind == FO_INIT_CONSTANT) {
            for (j = 0; j < p->info.count; j++)
                v[j] = (fo_real)scale;
        } else if (p->init.kind == FO_INIT_UNIFORM) {
            fo_random_uniform(seed, stream, 0, p->info.count, v);
            for (j = 0; j < p->info.count; j++)
                v[j] = (fo_real)(scale * (2 * (double)v[j] - 1));
        } else if (p->init.kind == FO_INIT_NORMAL) {
            fo_random_normal(seed, stream, 0, p->info.count, v);
            for (j = 0; j < p->info.count; j++)
                v[j] = (fo_real)(scale * (double)v[j]);
        }
    }
    for (i = 0; i + 1 < params->count; i++)
        if (params->list[i].init.kind == FO_INIT_ROW_NORMS)
            fo__init_row_norms(&params->list[i], &params->list[i + 1], values);
}

fo_result fo_tape_plan(fo_tape *tape, int train) {
    fo_real *block;
    int64_t  params, buffers;
    if (!FO__BEGIN(tape))
        return FO_ERR_ARGUMENT;
    if (tape->planned)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT, "fo_tape_plan was called twice on one tape");
    if (fo__tape_layout(tape, train) != FO_OK)
        return tape->fo->failed;
    params  = (tape->own.size + 15) / 16 * 16;
    buffers = (tape->own_buffers.size + 15) / 16 * 16;
    block   = fo__reals(&tape->arena, 2 * params + buffers + tape->kept_size + tape->scratch_size);
    if (block == NULL) {
        tape->planned = 0;
        return FO_ERR_MEMORY;
    }
    fo__params_init(&tape->own, tape->fo->desc.seed, block);
    fo__params_init(&tape->own_buffers, tape->fo->desc.seed, block + 2 * params);
    tape->values = block;
    tape->grads  = block + params;
    fo__tape_bind(tape, block, block + params, block + 2 * params, block + 2 * params + buffers,
                  block + 2 * params + buffers + tape->kept_size);
    return FO_OK;
}

/* ================================================================================================
   >>runner        forward and backward over a planned tape
   ============================================================================================= */

typedef struct fo__op_call {
    const fo_tensor *out;
    void (*run)(const fo_tensor *out, int64_t begin, int64_t end);
} fo__op_call;

/* An op may have more inputs than a mask has bits: the gradients of the others begin as zeros. */
#define FO__BITS 32
static int fo__bit(unsigned mask, int k) { return k < FO__BITS && (mask >> k & 1); }

/* In pieces that stay in the first cache, where gradients begin as zeros. */
static void fo__op_range(void *arg, int64_t begin, int64_t end) {
    const fo__op_call *call = (const fo__op_call *)arg;
    const unsigned     zero = fo__plan_of(call->out)->zero;
    const int64_t      most = zero ? 2048 : end - begin;
    int64_t            n;
    int                k;
    for (; begin < end; begin += n) {
        n = FO__MIN(most, end - begin);
        for (k = 0; k < call->out->n_in; k++)
            if (fo__bit(zero, k))
                memset(call->out->in[k]->grad + begin, 0, (size_t)n * sizeof(fo_real));
        call->run(call->out, begin, begin + n);
    }
}

static void fo__op_run(const fo_tensor *out,
                       void (*run)(const fo_tensor *out, int64_t begin, int64_t end)) {
    fo__op_call call;
    call.out = out;
    call.run = run;
    if (out->op->flags & FO_ELEMENTWISE)
        fo_parallel_for(out->tape->fo, out->count, fo__grain(FO__NS_ELEMENT), fo__op_range, &call);
    else
        run(out, 0, out->count);
}

fo_result fo_forward(fo_tape *tape) {
    int i;
    if (!FO__BEGIN(tape))
        return FO_ERR_ARGUMENT;
    if (!tape->planned)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT, "fo_forward before fo_tape_plan");
    fo__enter(tape->fo);
    tape->recomputing = tape->ran = 0;
    for (i = 0; i < tape->count && tape->fo->failed == FO_OK; i++) {
        fo_tensor *t = tape->nodes[i];
        fo__plan  *p = fo__plan_of(t);
        t->scratch   = p->work[0];
        if (p->recompute_at >= 0) {
            t->data          = p->first;
            p->is_recomputed = 0;
        }
        if (t->op && !(t->op->flags & FO_VIEW))
            fo__op_run(t, t->op->forward);
    }
    tape->ran = tape->fo->failed == FO_OK;
    return fo__leave(tape->fo);
}

/* Before op t is undone: which of its inputs must be recomputed, and which of their gradients are
   written for the first time? */
static void fo__open_gradients(fo_tensor *t) {
    fo__plan *p = fo__plan_of(t);
    int       k, j, twice;
    t->overwrite = p->zero = 0;
    for (k = 0; k < t->n_in; k++) {
        fo_tensor *in = t->in[k], *root = fo__plan_of(in)->grad_of;
        fo_tensor *data = fo__plan_of(in)->data_of;
        fo__plan  *made = fo__plan_of(data);
        if (made->recompute_at >= 0 && !made->is_recomputed) {
            made->is_recomputed = 1;
            data->data          = made->recomputed;
            fo__op_run(data, data->op->forward);
        }
        if (in->grad == NULL || fo__plan_of(root)->written)
            continue;
        fo__plan_of(root)->written = 1;
        for (twice = 0, j = k + 1; j < t->n_in; j++) /* set by one use, it would lose the other */
            twice |= fo__plan_of(t->in[j])->grad_of == root;
        if ((t->op->flags & FO_OVERWRITES) && !twice && k < FO__BITS)
            t->overwrite |= 1u << k;
        else if ((t->op->flags & FO_ELEMENTWISE) && in->count == t->count && !twice &&
                 k < FO__BITS)
            p->zero |= 1u << k; /* by whoever runs the range */
        else
            memset(in->grad, 0, (size_t)in->count * sizeof *in->grad);
    }
}

fo_result fo_backward(fo_tape *tape, fo_tensor *out, const fo_real *grad) {
    int i;
    if (!FO__BEGIN(tape))
        return FO_ERR_ARGUMENT;
    if (!tape->planned || !tape->train || out == NULL || out->tape != tape || out->grad == NULL ||
        !fo__plan_of(out)->is_output)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT,
                        "fo_backward needs a tape planned with train = 1 and an fo_output that "
                        "depends on a parameter or on an input with needs_grad");
    if (!tape->ran)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT, "fo_backward needs a fo_forward that succeeded");
    fo__enter(tape->fo);
    for (i = 0; i < tape->count; i++)
        fo__plan_of(tape->nodes[i])->written = 0;
    tape->recomputing = 1; /* what is recomputed updates no statistics */
    if (grad)
        memcpy(out->grad, grad, (size_t)out->count * sizeof *grad);
    fo__plan_of(fo__plan_of(out)->grad_of)->written = 1;
    for (i = tape->count - 1; i >= 0 && tape->fo->failed == FO_OK; i--) {
        fo_tensor *t = tape->nodes[i];
        fo__plan  *p = fo__plan_of(t);
        if (t->op == NULL || t->grad == NULL || !fo__plan_of(p->grad_of)->written ||
            (t->op->flags & FO_VIEW))
            continue;
        fo__open_gradients(t);
        t->scratch = p->work[1];
        fo__op_run(t, t->op->backward);
        p->zero = 0;
    }
    for (i = 0; i < tape->count; i++) { /* leaves that the loss does not depend on */
        fo_tensor *t = tape->nodes[i];
        if (t->op == NULL && t->grad && !fo__plan_of(t)->written)
            memset(t->grad, 0, (size_t)t->count * sizeof *t->grad);
    }
    return fo__leave(tape->fo);
}

/* ================================================================================================
   >>ops           one block an op: elementwise, sums, products, places

   Letters    x, y, z inputs and output; dx, dy, dz their gradients; p the period of a broadcast
   Callers    the tape; users reach ops by the functions of >>api-ops
   Convention backward adds, except where an op says FO_OVERWRITES and its bit is set
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
    char   shapes[320] = "", one[96];
    size_t at = 0;
    int    i;
    for (i = 0; i < FO__MIN(out->n_in, 3); i++)
        at += (size_t)snprintf(shapes + at, sizeof shapes - at, "%s%s", i ? " and " : "",
                               fo__dims(one, out->in[i]->rank, out->in[i]->dim));
    return fo__fail(out->tape->fo, FO_ERR_SHAPE, "fo_%s of %s: %s", out->op->name, shapes, why);
}

/* ---- add, sub, mul: z = x (+,-,*) y, where y may repeat ------------------------------------- */

static fo_result fo__binary_shape(fo_tensor *out) {
    const fo_tensor *x = out->in[0], *y = out->in[1];
    int              i, shift = x->rank - y->rank;
    if (y->count == 1)
        return fo__like_first(out);
    for (i = 0; i < y->rank; i++)
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
    } else if (begin == 0 && p == 1) {
        dy[0] += (fo_real)(x ? kern->dot(out->count, x, dz) : sign * kern->sum(out->count, dz));
    } else if (begin == 0) {
        for (i = 0; i < out->count; i += p) {
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

/* Ops whose forward is a kernel, and whose gradient is a kernel of the output: dx += f(y, dy). */
#define FO__UNARY(name, undo)                                                                      \
    static void fo__##name##_forward(const fo_tensor *out, int64_t begin, int64_t end) {           \
        FO__K(out)->name(end - begin, out->in[0]->data + begin, out->data + begin);                \
    }                                                                                              \
    static void fo__##name##_backward(const fo_tensor *out, int64_t begin, int64_t end) {          \
        FO__K(out)->undo(end - begin, out->data + begin, out->grad + begin,                        \
                         out->in[0]->grad + begin);                                                \
    }
FO__UNARY(exp, muladd)           /* dx = dy y         */
FO__UNARY(tanh, tanh_grad)       /* dx = dy (1 - y^2) */
FO__UNARY(sigmoid, sigmoid_grad) /* dx = dy y (1 - y) */
#undef FO__UNARY

static void fo__log_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    FO__K(out)->log(end - begin, out->in[0]->data + begin, out->data + begin);
}

static void fo__log_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t i;
    for (i = begin; i < end; i++)
        out->in[0]->grad[i] += out->grad[i] / out->in[0]->data[i];
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

/* ---- sum over everything but the first `keep` dimensions; mean is sum times a constant ------- */

static int64_t fo__row(const fo_tensor *t) { return t->count / t->dim[0]; }

static fo_result fo__sum_shape(fo_tensor *out) {
    int keep = *(const int *)out->args;
    if (keep != 0 && keep != 1)
        return fo__fail(out->tape->fo, FO_ERR_ARGUMENT, "fo_sum and fo_mean keep 0 or 1 dimension, "
                        "not %d", keep);
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

/* ---- matmul: C[M,N] = A[M,K] B[K,N]; linear: y[B,O] = x[B,I] w[O,I]^T + b[O] ----------------- */

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
                 !(out->overwrite & 1));
    if (b->grad) /* dB = A^T dC */
        fo__gemm(out->tape->fo, k, n, m, a->data, 1, k, out->grad, n, 1, b->grad, n, NULL,
                 !(out->overwrite & 2));
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
                 !(out->overwrite & 1));
    if (w->grad) /* dw = dy^T x */
        fo__gemm(out->tape->fo, o, i, rows, out->grad, 1, o, x->data, i, 1, w->grad, i, NULL,
                 !(out->overwrite & 2));
    if (out->n_in == 3 && out->in[2]->grad) { /* db = column sums of dy */
        fo_real *db = out->in[2]->grad;
        if (out->overwrite & 4)
            memset(db, 0, (size_t)o * sizeof *db);
        for (r = 0; r < rows; r++)
            FO__K(out)->axpy(o, 1, out->grad + r * o, db);
    }
}

/* ---- gather: one index list for every row; scatter and slice are gathers --------------------- */

static const int *fo__indices(const fo_tensor *out) { return (const int *)out->args + 1; }

static fo_result fo__gather_shape(fo_tensor *out) {
    return fo__two_dims(out, out->in[0]->dim[0], *(const int *)out->args);
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

/* ---- concat along dimension 1: a row of z is a row of x, then a row of y --------------------- */

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

/* ---- reshape: another name for the same numbers ---------------------------------------------- */

typedef struct fo__reshape_args { int rank; int64_t dim[FO_MAX_RANK]; } fo__reshape_args;

static fo_result fo__reshape_shape(fo_tensor *out) {
    const fo__reshape_args *args  = (const fo__reshape_args *)out->args;
    if (fo__set_dims(out, args->rank, args->dim) != FO_OK)
        return out->tape->fo->failed;
    if (out->count != out->in[0]->count)
        return fo__bad_shapes(out, "the new shape has another number of elements");
    return FO_OK;
}

#define fo__reshape_forward NULL
#define fo__reshape_backward NULL

/* ================================================================================================
   >>convolution   conv2d, conv2d_transpose

   y[o,Y,X] = b[o] + sum over c,ky,kx of w[o,c,ky,kx] x[c, Y*stride + ky - padding, ...]

   A convolution is a matrix product whose rows are shifted views of a padded picture. A sample
   is copied once into a frame of zeros; row (c,ky,kx) of B is that frame from its pixel (ky,kx)
   on, in runs of one line of the output, and the product packs it from there: no matrix of
   patches is ever made.
     y   A = w, B = views of x in a frame
     dx  A = w read as [c, (o,ky,kx)], B = views of dy, its pixels `stride` apart in a frame; the
         views in reverse order rotate the kernel by 180 degrees
     dw  transposed: A = views of x, read in place, B = dy transposed, sample after sample
   A transposed convolution is the same with the roles of x and y exchanged. Threads share out
   samples, or rows of dw: the bits of a result depend on neither. Where one side has 8 channels or
   more and the other 2, 3 x 3 with stride 1 uses Winograd's algorithm instead, for all three.
   ============================================================================================= */
typedef struct fo__conv_args { int64_t stride, padding; int transposed; } fo__conv_args;

/* A frame is a picture with zeros around it and, for dx of a strided convolution, between its
   pixels: (y,x) of a channel goes to (y * dilation + top, x * dilation + left). A convolution of
   stride 2 reads every second column, so columns of equal remainder modulo `stride` are stored side
   by side:

     columns of the picture      0 1 2 3 4 5 6 7
     order in memory, stride 2   0 2 4 6 1 3 5 7         every view is one run */
typedef struct fo__frame {
    int64_t channels, h, w, dilation, stride, top, left, rows, columns;
} fo__frame;

static int64_t fo__frame_column(const fo__frame *f, int64_t x) {
    return x % f->stride * (f->columns / f->stride) + x / f->stride;
}

/* 3 x 3 by tiles: see >>winograd, and below. */
typedef struct fo__winograd {
    int64_t   in, out, in_room, out_room; /* channels; and whole vectors of them */
    int64_t   high, wide, rows, n; /* of tiles: of a picture, in a block (rows of them, tiles) */
    int64_t   panel, panels, weights; /* see fo__product; elements of U, of [36][panels] */
    int64_t   frame, work;  /* elements of a thread's frame, and V and M */
    fo__tiles from, to;
} fo__winograd;

typedef struct fo__conv {
    fo_context    *fo;
    int64_t        batch, c, h, w, o, oh, ow, kh, kw, stride, padding;
    int64_t        threads, frame_size, taps; /* taps: kh * kw */
    const fo_real *weight, *bias;
    int64_t       *at;     /* where the rows of views begin       */
    fo_real       *frames; /* one a thread; winograd: U, then a thread's frame, V and M */
    fo_real       *dw;     /* [c*kh*kw, o]: dw transposed         */
    fo__frame      frame;
    fo__winograd   winograd;
    fo_real       *v, *m;  /* winograd's dw: V and A dy A^T of rows of tiles [first,last) */
    int64_t        first, last, apart; /* apart: from a panel of the second to the next */
    int            to_x;
    fo__product    g;      /* what the products of all samples share */
    const fo_real *from;
    fo_real       *to;
    int            add;
} fo__conv;

/* Of the shards of a convolution, one a thread. With few channels its pictures count, too. */
static int64_t fo__conv_grain(const fo__conv *v) {
    const double products = (double)(v->c * v->o) * (double)(v->oh * v->ow * v->taps);
    const double elements = (double)(v->c * v->h * v->w + v->o * v->oh * v->ow);
    return fo__grain((FO__NS_PRODUCT * products + FO__NS_ELEMENT * elements) *
                     (double)v->batch / (double)v->threads);
}

static int64_t fo__conv_columns(const fo__conv *v) {
    return (v->w + 2 * v->padding + v->stride - 1) / v->stride * v->stride;
}

/* x is on the side of the larger pictures, y on the other: input and output, or the reverse. */
static void fo__conv_of(fo__conv *v, const fo_tensor *out) {
    const fo__conv_args *args = (const fo__conv_args *)out->args;
    const fo_tensor     *x = args->transposed ? out : out->in[0];
    const fo_tensor     *y = args->transposed ? out->in[0] : out;
    const fo_tensor     *w    = out->in[1];
    int64_t              before, behind;
    memset(v, 0, sizeof *v);
    v->fo = out->tape->fo;
    v->batch = x->dim[0], v->c = x->dim[1], v->h = x->dim[2], v->w = x->dim[3];
    v->o = y->dim[1], v->oh = y->dim[2], v->ow = y->dim[3];
    v->kh = w->dim[2], v->kw = w->dim[3], v->taps = v->kh * v->kw;
    v->stride = args->stride, v->padding = args->padding;
    v->threads    = FO__MIN(FO__MAX(v->fo->desc.threads, 1), v->batch);
    before        = v->c * (v->h + 2 * v->padding) * fo__conv_columns(v);
    behind        = v->o * (v->h + v->kh - 1) * (v->w + v->kw - 1);
    v->frame_size = (FO__MAX(before, behind) + FO__SLACK + 15) / 16 * 16;
    v->weight     = w->data;
    v->g.kernels  = v->fo->kernels;
    v->g.a_run = v->g.b_run = FO__ONE_RUN;
    if (out->scratch) {
        v->frames = out->scratch;
        v->dw     = v->frames + v->threads * v->frame_size;
        v->at     = (int64_t *)(void *)(v->dw + (v->taps * v->c * v->o + 15) / 16 * 16);
    }
}

/* ---- 3 x 3 by tiles: see >>winograd -----------------------------------------------------------

   A block has as many tiles as keep V and M in the caches (1 MB: 3 % faster on two threads than
   half of it), in whole rows of tiles, numbered through all samples. The weights are transformed
   once for all of them, straight into the panels that the product reads. */
#define FO__WINOGRAD_ROOM 262144 /* elements of V and M together */

/* From place to place: an odd number of lines of the cache, or places would share its sets. */
static int64_t fo__winograd_step(int64_t size) { return ((size + 15) / 16 | 1) * 16; }

static fo__winograd fo__winograd_of(const fo__conv *v, int to_x) {
    const int64_t lanes = v->g.kernels->lanes;
    fo__winograd  g;
    int64_t       blocks;
    memset(&g, 0, sizeof g);
    g.in = to_x ? v->o : v->c, g.out = to_x ? v->c : v->o;
    g.from.h = to_x ? v->oh : v->h, g.from.w = to_x ? v->ow : v->w;
    g.to.h = to_x ? v->h : v->oh, g.to.w = to_x ? v->w : v->ow;
    g.from.padding = to_x ? 2 - v->padding : v->padding;
    g.from.overlap = 1;
    g.in_room = (g.in + lanes - 1) / lanes * lanes;
    g.out_room = (g.out + lanes - 1) / lanes * lanes;
    g.panel    = g.out_room % v->g.kernels->nr ? 2 * lanes : v->g.kernels->nr;
    g.panels   = (g.out_room + g.panel - 1) / g.panel;
    g.weights = 36 * g.panels * g.panel * (g.in + 1);
    g.high = (g.to.h + 3) / 4, g.wide = (g.to.w + 3) / 4;
    g.rows = FO__MAX(FO__WINOGRAD_ROOM / (36 * (g.in_room + g.out_room)) / g.wide, 1);
    if (g.rows < g.high) {
        blocks = (g.high + g.rows - 1) / g.rows;
        g.rows = (g.high + blocks - 1) / blocks;
    } else {
        g.rows = g.high * FO__MIN(g.rows / g.high, 256 / (g.high * g.wide) + 1);
    }
    g.n     = g.rows * g.wide;
    g.frame = (4 * FO__MIN(g.rows, g.high) + 8) * 4 * (g.wide + 1) * lanes;
    g.from.wide = g.to.wide = g.wide;
    g.from.next = g.in_room, g.from.step = fo__winograd_step(g.n * g.in_room);
    g.to.next = g.out_room, g.to.step = fo__winograd_step((g.n + 1) * g.panels * g.panel);
    g.work = g.frame + 36 * (g.from.step + g.to.step + 32); /* dw rounds for all threads at once */
    return g;
}

/* Worth it where channels share the sums: with two of them still, 2 to 4 % of realnvp-tiny. */
static int fo__conv_is_winograd(const fo__conv *v) {
    return v->g.kernels->winograd_input && v->kh == 3 && v->kw == 3 && v->stride == 1 &&
           v->padding <= 2 && FO__MAX(v->c, v->o) >= 8 && FO__MIN(v->c, v->o) >= 2;
}

static int64_t fo__winograd_scratch(const fo__conv *v) {
    const fo__winograd a = fo__winograd_of(v, 0), b = fo__winograd_of(v, 1);
    return FO__MAX(a.weights, b.weights) + v->threads * FO__MAX(a.work, b.work) + FO__SLACK;
}

/* Frames, dw and the table, which has the size of the longer of its two uses. */
static int64_t fo__conv_scratch(const fo__conv *v) {
    const int64_t table = FO__MAX(v->c, v->o) * v->taps * (int64_t)(sizeof(int64_t));
    const int64_t size  = v->threads * v->frame_size + (v->taps * v->c * v->o + 15) / 16 * 16 +
                         table / (int64_t)sizeof(fo_real) + 1;
    return fo__conv_is_winograd(v) ? FO__MAX(size, fo__winograd_scratch(v)) : size;
}

/* Copies channels [begin,end) into a frame, whose zeros around and between the pixels stay. */
static void fo__frame_fill(const fo__frame *f, const fo_real *x, int64_t begin, int64_t end,
                           fo_real *frame) {
    const int inside = f->dilation * f->stride == 1 && f->left >= 0 && f->left + f->w <= f->columns;
    int64_t   c, y, i, k;
    for (c = begin; c < end; c++)
        for (y = 0; y < f->h; y++) {
            const fo_real *from = x + (c * f->h + y) * f->w;
            int64_t        row = y * f->dilation + f->top, at;
            fo_real       *to  = frame + (c * f->rows + row) * f->columns;
            if (row < 0 || row >= f->rows)
                continue;
            if (inside) {
                memcpy(to + f->left, from, (size_t)f->w * sizeof *to);
                continue;
            }
            for (k = 0; k < FO__MIN(f->stride, f->w); k++) { /* dilation or stride is 1 */
                at = fo__frame_column(f, k + f->left);
                for (i = k; i < f->w; i += f->stride, at += f->dilation)
                    if (at >= 0 && at < f->columns)
                        to[at] = from[i];
            }
        }
}

/* A frame for x, whose views give y; and the views' beginnings. */
static void fo__conv_views_of_x(fo__conv *v) {
    fo__frame *f = &v->frame;
    int64_t    c, t;
    f->channels = v->c, f->h = v->h, f->w = v->w, f->dilation = 1, f->stride = v->stride;
    f->top = f->left = v->padding;
    f->rows = v->h + 2 * v->padding, f->columns = fo__conv_columns(v);
    for (c = 0; c < v->c; c++)
        for (t = 0; t < v->taps; t++)
            v->at[c * v->taps + t] =
                (c * f->rows + t / v->kw) * f->columns + fo__frame_column(f, t % v->kw);
}

/* The same for y, whose views give x. */
static void fo__conv_views_of_y(fo__conv *v) {
    fo__frame *f = &v->frame;
    int64_t    o, t;
    f->channels = v->o, f->h = v->oh, f->w = v->ow, f->dilation = v->stride, f->stride = 1;
    f->top = v->kh - 1 - v->padding, f->left = v->kw - 1 - v->padding;
    f->rows = v->h + v->kh - 1, f->columns = v->w + v->kw - 1;
    for (o = 0; o < v->o; o++)
        for (t = 0; t < v->taps; t++)
            v->at[o * v->taps + v->taps - 1 - t] =
                (o * f->rows + t / v->kw) * f->columns + t % v->kw;
}

/* 1x1 without padding needs no frame: its views are the channels where they lie. */
static int fo__conv_is_plain(const fo__conv *v) {
    return v->taps == 1 && v->stride == 1 && v->padding == 0;
}

/* Samples of threads [begin,end). */
static void fo__conv_samples(void *arg, int64_t begin, int64_t end) {
    const fo__conv *v     = (const fo__conv *)arg;
    const int64_t   input = v->frame.channels * v->frame.h * v->frame.w, output = v->g.m * v->g.n;
    int64_t         t, b;
    for (t = begin; t < end; t++) {
        fo_real    *frame = v->frames + t * v->frame_size;
        fo__product g     = v->g;
        if (g.b_at)
            memset(frame, 0, (size_t)v->frame_size * sizeof *frame);
        for (b = v->batch * t / v->threads; b < v->batch * (t + 1) / v->threads; b++) {
            g.b = v->from + b * input;
            g.c = v->to + b * output;
            if (g.b_at) {
                fo__frame_fill(&v->frame, g.b, 0, v->frame.channels, frame);
                g.b = frame;
            }
            g.kernels->product(&g, 0, g.m, 0, g.n);
        }
    }
}

/* U of inputs [begin,end). */
static void fo__winograd_weights(void *arg, int64_t begin, int64_t end) {
    const fo__conv     *v = (const fo__conv *)arg;
    const fo__winograd *g = &v->winograd;
    const int64_t       lanes = v->g.kernels->lanes, size = (g->in + 1) * g->panel;
    const int64_t       in = v->to_x ? v->c * 9 : 9, out = v->to_x ? 9 : v->c * 9;
    int64_t             i, j;
    for (i = begin; i < end; i++)
        for (j = 0; j < g->out; j += lanes)
            v->g.kernels->winograd_weights(g->out - j, v->weight + i * in + j * out, out, v->to_x,
                                           v->frames + j / g->panel * size + (i + 1) * g->panel +
                                               j % g->panel, g->panels * size);
}

/* The transforms of rows of tiles [first,last), of all samples' rows, and of all channels. To
   panels: V is what a product reads as its B. */
static void fo__winograd_inputs(const fo__conv *v, const fo__tiles *t, int64_t channels,
                                const fo_real *x, int64_t first, int64_t last, fo_real *frame,
                                fo_real *to, int64_t panel, int64_t apart) {
    const int64_t lanes = v->g.kernels->lanes, high = v->winograd.high;
    int64_t       row, end, i;
    for (row = first; row < last; row = end) {
        const int64_t b = row / high, tile = (row - first) * t->wide;
        end = FO__MIN(last, (b + 1) * high);
        for (i = 0; i < channels; i += lanes)
            v->g.kernels->winograd_input(t, channels - i, x + (b * channels + i) * t->h * t->w,
                                         row - b * high, end - b * high, frame,
                                         to + i / panel * apart + i % panel + tile * t->next);
    }
}

/* Rows of tiles [first,last) by thread t. */
static void fo__winograd_block(const fo__conv *v, int64_t t, int64_t first, int64_t last) {
    const fo__winograd *g     = &v->winograd;
    const fo__kernels  *kern  = v->g.kernels;
    fo_real            *frame = v->frames + g->weights + t * g->work;
    fo_real            *a = frame + g->frame, *m = a + 36 * g->from.step;
    fo__product         p = v->g;
    int64_t             row, end, i, b;
    fo__winograd_inputs(v, &g->from, g->in, v->from, first, last, frame, a, g->in_room, 0);
    p.m = (last - first) * g->wide, p.k = g->in, p.n = g->out_room;
    p.a_row = g->in_room, p.a_col = 1, p.c_row = g->out_room;
    p.panel = g->panel, p.panel_step = (g->in + 1) * g->panel;
    for (i = 0; i < 36; i++) {
        p.a      = a + i * g->from.step;
        p.panels = v->frames + i * g->panels * p.panel_step;
        p.c      = m + i * g->to.step;
        kern->product(&p, 0, p.m, 0, p.n);
    }
    for (row = first; row < last; row = end) {
        b   = row / g->high;
        end = FO__MIN(last, (b + 1) * g->high);
        for (i = 0; i < g->out; i += kern->lanes)
            kern->winograd_output(&g->to, g->out - i, m + (row - first) * g->wide * g->to.next + i,
                                  row - b * g->high, end - b * g->high,
                                  v->bias ? v->bias + i : NULL, v->add,
                                  v->to + (b * g->out + i) * g->to.h * g->to.w);
    }
}

static void fo__winograd_samples(void *arg, int64_t begin, int64_t end) {
    const fo__conv *v = (const fo__conv *)arg;
    int64_t         t, row, last;
    for (t = begin; t < end; t++) {
        last = v->batch * (t + 1) / v->threads * v->winograd.high;
        row  = v->batch * t / v->threads * v->winograd.high;
        for (; row < last; row += v->winograd.rows)
            fo__winograd_block(v, t, row, FO__MIN(row + v->winograd.rows, last));
    }
}

static void fo__winograd_run(fo__conv *v, const fo_real *from, fo_real *to, int add, int to_x) {
    fo__winograd *g = &v->winograd;
    int64_t       i;
    *g      = fo__winograd_of(v, to_x);
    v->from = from;
    v->to   = to;
    v->add  = add;
    v->to_x = to_x;
    for (i = 0; i < 36 * g->panels; i++)
        memset(v->frames + i * (g->in + 1) * g->panel, 0, (size_t)g->panel * sizeof *to);
    fo_parallel_for(v->fo, g->in, fo__grain(FO__NS_ELEMENT * 36 * (double)g->out),
                    fo__winograd_weights, v);
    fo_parallel_for(v->fo, v->threads, fo__conv_grain(v), fo__winograd_samples, v);
}

/* dw: the work of all threads is one room, for V and A dy A^T of a few blocks. Threads share out
   the rows of tiles, then the places: an element of dU is one chain of sums in the order of
   samples and tiles, whatever the block or the thread. */
static void fo__winograd_pairs(void *arg, int64_t begin, int64_t end) {
    const fo__conv     *v = (const fo__conv *)arg;
    const fo__winograd *g = &v->winograd;
    int64_t             t;
    for (t = begin; t < end; t++) {
        fo_real      *frame = v->frames + g->weights + t * g->frame;
        const int64_t first = v->first + (v->last - v->first) * t / v->threads;
        const int64_t last  = v->first + (v->last - v->first) * (t + 1) / v->threads;
        const int64_t tile  = (first - v->first) * g->wide;
        fo__winograd_inputs(v, &g->from, g->in, v->from, first, last, frame,
                            v->v + tile * g->from.next, g->in_room, 0);
        fo__winograd_inputs(v, &g->to, g->out, v->to, first, last, frame,
                            v->m + (tile + 1) * g->to.next, g->panel, v->apart);
    }
}

static void fo__winograd_places(void *arg, int64_t begin, int64_t end) {
    const fo__conv     *v = (const fo__conv *)arg;
    const fo__winograd *g = &v->winograd;
    fo__product         p = v->g;
    int64_t             i, j;
    p.m = g->in, p.n = g->out_room, p.k = (v->last - v->first) * g->wide;
    p.a_row = 1, p.a_col = g->in_room, p.c_row = g->out_room;
    p.panel = g->panel, p.panel_step = v->apart;
    p.add   = v->first > 0;
    for (i = begin; i < end; i++) {
        for (j = 0; j < g->panels; j++)
            memset(v->m + i * g->to.step + j * p.panel_step, 0, (size_t)g->panel * sizeof *v->m);
        p.a      = v->v + i * g->from.step;
        p.panels = v->m + i * g->to.step;
        p.c      = v->frames + i * g->in * g->out_room;
        p.kernels->product(&p, 0, p.m, 0, p.n);
    }
}

static void fo__winograd_to_w(fo__conv *v, const fo_real *x, fo_real *dy, fo_real *dw, int add) {
    fo__winograd *g = &v->winograd;
    const int64_t lanes = v->g.kernels->lanes;
    int64_t       rows, n, i, j;
    *g      = fo__winograd_of(v, 0);
    v->from = x;
    v->to   = dy;
    rows = FO__MIN(v->threads * g->rows, v->batch * g->high), n = rows * g->wide;
    g->from.step = fo__winograd_step(n * g->in_room);
    g->to.step   = fo__winograd_step((n + 1) * g->panels * g->panel);
    g->to.next   = g->panel;
    v->apart     = (n + 1) * g->panel;
    v->v = v->frames + g->weights + v->threads * g->frame;
    v->m = v->v + 36 * g->from.step;
    for (v->first = 0; v->first < v->batch * g->high; v->first = v->last) {
        v->last = FO__MIN(v->first + rows, v->batch * g->high);
        fo_parallel_for(v->fo, v->threads, fo__grain(FO__NS_ELEMENT * 36 * (double)(
                        (g->in + g->out) * (v->last - v->first) * g->wide / v->threads)),
                        fo__winograd_pairs, v);
        fo_parallel_for(v->fo, 36, fo__grain(FO__NS_PRODUCT * (double)(g->in * g->out) *
                        (double)((v->last - v->first) * g->wide)), fo__winograd_places, v);
    }
    for (i = 0; i < g->in; i++)
        for (j = 0; j < g->out; j += lanes)
            v->g.kernels->winograd_gradient(g->out - j, v->frames + i * g->out_room + j,
                                            g->in * g->out_room, add, dw + (j * g->in + i) * 9,
                                            g->in * 9);
}

static void fo__conv_run(fo__conv *v, const fo_real *from, fo_real *to, int add) {
    v->from = from;
    v->to   = to;
    v->g.a        = v->weight;
    v->g.row_bias = v->bias;
    v->g.c_row    = v->g.n;
    v->g.add      = add;
    if (fo__conv_is_plain(v))
        v->g.b_row = v->g.n;
    else
        v->g.b_at = v->at;
    fo_parallel_for(v->fo, v->threads, fo__conv_grain(v), fo__conv_samples, v);
}

/* y = (add ? y : 0) + w * x */
static void fo__conv_to_y(fo__conv *v, const fo_real *x, fo_real *y, int add) {
    if (fo__conv_is_winograd(v)) {
        fo__winograd_run(v, x, y, add, 0);
        return;
    }
    fo__conv_views_of_x(v);
    v->g.m = v->o, v->g.n = v->oh * v->ow, v->g.k = v->c * v->taps;
    v->g.a_row = v->g.k, v->g.a_col = 1;
    v->g.b_run = v->ow, v->g.b_step = v->stride * v->frame.columns, v->g.b_col = 1;
    fo__conv_run(v, x, y, add);
}

/* x = (add ? x : 0) + what each number of y was made of */
static void fo__conv_to_x(fo__conv *v, const fo_real *y, fo_real *x, int add) {
    if (fo__conv_is_winograd(v)) {
        fo__winograd_run(v, y, x, add, 1);
        return;
    }
    fo__conv_views_of_y(v);
    v->g.m = v->c, v->g.n = v->h * v->w, v->g.k = v->o * v->taps;
    v->g.a_row = v->taps, v->g.a_col = 1, v->g.a_run = v->taps, v->g.a_step = v->c * v->taps;
    v->g.b_run = v->w, v->g.b_step = v->frame.columns, v->g.b_col = 1;
    fo__conv_run(v, y, x, add);
}

/* Rows of dw, transposed, for threads [begin,end): each copies the channels its rows look at. */
static void fo__conv_rows(void *arg, int64_t begin, int64_t end) {
    const fo__conv *v     = (const fo__conv *)arg;
    const int64_t   mr    = v->g.kernels->mr, tiles = (v->g.m + mr - 1) / mr;
    const int64_t   input = v->c * v->h * v->w, output = v->o * v->oh * v->ow;
    int64_t         t, b;
    for (t = begin; t < end; t++) {
        fo_real      *frame = v->frames + t * v->frame_size;
        const int64_t first = tiles * t / v->threads * mr;
        const int64_t last  = FO__MIN(tiles * (t + 1) / v->threads * mr, v->g.m);
        fo__product   g     = v->g;
        if (first >= last)
            continue;
        if (g.a_at)
            memset(frame, 0, (size_t)v->frame_size * sizeof *frame);
        for (b = 0; b < v->batch; b++) {
            g.a   = v->from + b * input;
            g.b   = v->to + b * output;
            g.add = b > 0;
            if (g.a_at) {
                fo__frame_fill(&v->frame, g.a, first / v->taps, (last - 1) / v->taps + 1, frame);
                g.a = frame;
            }
            g.kernels->product(&g, first, last, 0, g.n);
        }
    }
}

/* dw[o,c,ky,kx] = (add ? dw : 0) + sum over samples and pixels of y of dy times x */
static void fo__conv_to_w(fo__conv *v, const fo_real *x, fo_real *dy, fo_real *dw, int add) {
    const int64_t rows = v->c * v->taps;
    int64_t       o, p;
    if (fo__conv_is_winograd(v)) {
        fo__winograd_to_w(v, x, dy, dw, add);
        return;
    }
    fo__conv_views_of_x(v);
    v->from = x;
    v->to   = dy;
    v->g.m = rows, v->g.n = v->o, v->g.k = v->oh * v->ow;
    v->g.b_row = 1, v->g.b_col = v->g.k, v->g.b_run = FO__ONE_RUN;
    v->g.c = v->dw, v->g.c_row = v->o;
    v->g.a_row = v->g.k, v->g.a_col = 1, v->g.a_run = FO__ONE_RUN, v->g.a_step = 0;
    if (!fo__conv_is_plain(v)) {
        v->g.a_at  = v->at;
        v->g.a_run = v->ow, v->g.a_step = v->stride * v->frame.columns;
    }
    fo_parallel_for(v->fo, v->threads, fo__conv_grain(v), fo__conv_rows, v);
    for (o = 0; o < v->o; o++)
        for (p = 0; p < rows; p++)
            dw[o * rows + p] = (add ? dw[o * rows + p] : 0) + v->dw[p * v->o + o];
}

/* db[o] = sum over samples and pixels of dy */
static void fo__conv_bias(void *arg, int64_t begin, int64_t end) {
    const fo_tensor *out = (const fo_tensor *)arg, *b = out->in[2];
    int64_t          i, o, n = out->dim[2] * out->dim[3];
    for (o = begin; o < end; o++) {
        double sum = 0;
        for (i = 0; i < out->dim[0]; i++)
            sum += FO__K(out)->sum(n, out->grad + (i * out->dim[1] + o) * n);
        b->grad[o] = (out->overwrite & 4 ? 0 : b->grad[o]) + (fo_real)sum;
    }
}

static fo_result fo__conv_shape(fo_tensor *out) {
    const fo_tensor     *x = out->in[0], *w = out->in[1];
    const fo__conv_args *args = (const fo__conv_args *)out->args;
    const int64_t        s = args->stride, p = args->padding;
    const int            up = args->transposed;
    int                  i;
    fo__conv             v;
    if (x->rank != 4 || w->rank != 4 || x->dim[1] != w->dim[up ? 0 : 1] ||
        (out->n_in == 3 && out->in[2]->count != w->dim[up ? 1 : 0]))
        return fo__bad_shapes(out, up ? "x[B,C,H,W], w[C,O,h,w] and b[O] are needed"
                                      : "x[B,C,H,W], w[O,C,h,w] and b[O] are needed");
    if (s < 1 || s > 4096 || p < 0 || p > 4096)
        return fo__bad_shapes(out, "a stride of 1 to 4096 and a padding of 0 to 4096 are possible");
    out->rank   = 4;
    out->dim[0] = x->dim[0];
    out->dim[1] = w->dim[up ? 1 : 0];
    for (i = 2; i < 4; i++) {
        const int64_t n = x->dim[i], k = w->dim[i];
        if (up ? (n - 1) * s + k <= 2 * p : n + 2 * p < k)
            return fo__bad_shapes(out, "the kernel does not fit: nothing would be left");
        out->dim[i] = up ? (n - 1) * s + k - 2 * p : (n + 2 * p - k) / s + 1;
    }
    fo__conv_of(&v, out);
    out->scratch_size = fo__conv_scratch(&v);
    return FO_OK;
}

static void fo__conv_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo__conv_args *args = (const fo__conv_args *)out->args;
    fo__conv             v;
    (void)begin, (void)end;
    fo__conv_of(&v, out);
    v.bias = out->n_in == 3 ? out->in[2]->data : NULL;
    (args->transposed ? fo__conv_to_x : fo__conv_to_y)(&v, out->in[0]->data, out->data, 0);
}

static void fo__conv_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo__conv_args *args = (const fo__conv_args *)out->args;
    const fo_tensor     *in = out->in[0], *w = out->in[1];
    const int            up = args->transposed;
    fo__conv             v;
    (void)begin, (void)end;
    fo__conv_of(&v, out);
    if (w->grad)
        fo__conv_to_w(&v, up ? out->grad : in->data, up ? in->data : out->grad, w->grad,
                      !(out->overwrite & 2));
    if (out->n_in == 3 && out->in[2]->grad)
        fo_parallel_for(v.fo, out->dim[1],
                        fo__grain(FO__NS_ELEMENT * (double)(out->count / out->dim[1])),
                        fo__conv_bias, (void *)out);
    fo__conv_of(&v, out);
    if (in->grad)
        (up ? fo__conv_to_y : fo__conv_to_x)(&v, out->grad, in->grad, !(out->overwrite & 1));
}

#define fo__conv2d_forward fo__conv_forward
#define fo__conv2d_backward fo__conv_backward
#define fo__conv2d_transpose_forward fo__conv_forward
#define fo__conv2d_transpose_backward fo__conv_backward

/* ================================================================================================
   >>normalization batch_norm, weight_norm; and the small ops of image networks: gate, crelu
   ============================================================================================= */

/* ---- batch_norm: y = factor ((x - m) / sqrt(v + eps) w + b) per channel, and ReLU if asked -----

   Ioffe and Szegedy 2015. m and v are those of this batch, or the running ones. What is saved is
   x and a few numbers a channel: the ReLU is undone by recomputing its input.
     dz = dy where y > 0 (everywhere without ReLU), h = (x - m) / sqrt(v + eps), n numbers
     db = factor sum dz,  dw = factor sum dz h
     dx = factor w / sqrt(v + eps) (dz - mean dz - h mean dz h); with running statistics: only dz
   A channel that is constant has v = 0, and y = factor b.
   --------------------------------------------------------------------------------------------- */
typedef struct fo__norm_channel {
    double   mean, inverse; /* 1 / sqrt(v + eps)                  */
    double   unbiased;      /* variance, for the running statistics */
    double   sum[2];
    fo__norm_line line;          /* what forward did, for the kernels  */
} fo__norm_channel;

typedef struct fo__norm_args {
    const fo_norm    *how;
    fo__norm_channel *channel; /* forward leaves it to backward */
    double            factor;
    int               relu;
} fo__norm_args;

#define FO__NORM_EPS 1e-5
#define FO__NORM_MOMENTUM 0.1

static const fo__norm_args *fo__norm_args_of(const fo_tensor *out) {
    return (const fo__norm_args *)out->args;
}

static int64_t fo__norm_rows(const fo_tensor *out) {
    const int64_t rows = fo__norm_args_of(out)->how->rows;
    return rows > 0 ? FO__MIN(rows, out->dim[0]) : out->dim[0];
}

static fo_result fo__batch_norm_shape(fo_tensor *out) {
    int i;
    for (i = 1; i < 5; i++)
        if (out->in[0]->rank < 2 || out->in[i]->count != out->in[0]->dim[1])
            return fo__bad_shapes(out, "x[B,C,...] and four times [C] are needed");
    return fo__like_first(out);
}

/* The running statistics of channel i see the batch. */
static void fo__norm_update(const fo_tensor *out, int64_t i) {
    const fo__norm_channel *s = &fo__norm_args_of(out)->channel[i];
    fo_real                *mean = &out->in[3]->data[i], *var = &out->in[4]->data[i];
    const double            k = FO__NORM_MOMENTUM;
    *mean = (fo_real)((1 - k) * (double)*mean + k * s->mean);
    *var  = (fo_real)((1 - k) * (double)*var + k * s->unbiased);
}

/* Mean and variance of channels [begin,end) of this batch. Sums start at the channel's first
   number: nothing cancels, and a constant channel has a variance of exactly 0. */
static void fo__norm_measure(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo__norm_args *args = fo__norm_args_of(out);
    const fo_norm       *how  = args->how;
    const fo_tensor     *x    = out->in[0];
    const int64_t        c = x->dim[1], n = fo__row(x) / c, rows = fo__norm_rows(out);
    const double         count = (double)(rows * n), before = (double)(how->measured * n);
    int64_t              i, b;
    for (i = begin; i < end; i++)
        args->channel[i].sum[0] = args->channel[i].sum[1] = 0;
    for (b = 0; b < rows; b++)
        for (i = begin; i < end; i++)
            FO__K(out)->moments(n, x->data[i * n], x->data + (b * c + i) * n,
                                args->channel[i].sum);
    for (i = begin; i < end; i++) {
        fo__norm_channel *s = &args->channel[i];
        fo_real          *mean = &out->in[3]->data[i], *var = &out->in[4]->data[i];
        const double      d = s->sum[0] / count, v = FO__MAX(s->sum[1] / count - d * d, 0);
        s->mean    = (double)x->data[i * n] + d;
        s->inverse = 1 / sqrt((v == v ? v : s->sum[1]) + FO__NORM_EPS);
        s->unbiased = v * count / FO__MAX(count - 1, 1);
        if (how->recompute)
            continue; /* the statistics have seen this batch already */
        if (how->mode == FO_NORM_TRAIN && !how->defer)
            fo__norm_update(out, i);
        if (how->mode == FO_NORM_MEASURE) { /* two sets become one */
            const double all = before + count, gap = before > 0 ? s->mean - (double)*mean : 0;
            const double old = before > 0 ? (double)*var * (before - 1) : 0;
            *mean = (fo_real)(before > 0 ? (double)*mean + gap * count / all : s->mean);
            *var  = (fo_real)((old + v * count + gap * gap * before * count / all) /
                             FO__MAX(all - 1, 1));
        }
    }
}

/* What forward does to channels [begin,end). */
static void fo__norm_lines(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo__norm_args *args = fo__norm_args_of(out);
    int64_t              i;
    if (args->how->mode != FO_NORM_RUNNING)
        fo__norm_measure(out, begin, end);
    for (i = begin; i < end; i++) {
        fo__norm_channel *s = &args->channel[i];
        if (args->how->mode == FO_NORM_RUNNING) {
            s->mean    = (double)out->in[3]->data[i];
            s->inverse = 1 / sqrt((double)out->in[4]->data[i] + FO__NORM_EPS);
        }
        s->line.mean  = (fo_real)s->mean;
        s->line.gain  = (fo_real)(args->factor * s->inverse * (double)out->in[1]->data[i]);
        s->line.shift = (fo_real)(args->factor * (double)out->in[2]->data[i] -
                                  (s->mean - (double)s->line.mean) * (double)s->line.gain);
        s->line.floor = args->relu ? 0 : -(fo_real)HUGE_VAL;
    }
}

static void fo__norm_forward(void *arg, int64_t begin, int64_t end) {
    const fo_tensor     *out  = (const fo_tensor *)arg, *x = out->in[0];
    const fo__norm_args *args = fo__norm_args_of(out);
    const int64_t        c = x->dim[1], n = fo__row(x) / c;
    int64_t              i, b;
    if (!out->tape->recomputing) /* else they are there */
        fo__norm_lines(out, begin, end);
    for (b = 0; b < x->dim[0]; b++)
        for (i = begin; i < end; i++)
            FO__K(out)->norm(n, &args->channel[i].line, x->data + (b * c + i) * n,
                             out->data + (b * c + i) * n);
}

static void fo__norm_backward(void *arg, int64_t begin, int64_t end) {
    const fo_tensor     *out  = (const fo_tensor *)arg, *x = out->in[0];
    const fo__norm_args *args = fo__norm_args_of(out);
    const int64_t        c = x->dim[1], n = fo__row(x) / c, rows = fo__norm_rows(out);
    const int            add = !(out->overwrite & 1), moves = args->how->mode != FO_NORM_RUNNING;
    int64_t              i, b;
    for (i = begin; i < end; i++)
        args->channel[i].sum[0] = args->channel[i].sum[1] = 0;
    for (b = 0; b < x->dim[0]; b++)
        for (i = begin; i < end; i++)
            FO__K(out)->norm_sums(n, &args->channel[i].line, x->data + (b * c + i) * n,
                                  out->grad + (b * c + i) * n, args->channel[i].sum);
    for (i = begin; i < end; i++) {
        fo__norm_channel *s = &args->channel[i];
        fo_real          *dw = out->in[1]->grad, *db = out->in[2]->grad;
        s->sum[1] = (s->sum[1] - (s->mean - (double)s->line.mean) * s->sum[0]) * s->inverse;
        if (dw)
            dw[i] = (out->overwrite & 2 ? 0 : dw[i]) + (fo_real)(args->factor * s->sum[1]);
        if (db)
            db[i] = (out->overwrite & 4 ? 0 : db[i]) + (fo_real)(args->factor * s->sum[0]);
    }
    if (x->grad == NULL)
        return;
    for (b = 0; b < x->dim[0]; b++)
        for (i = begin; i < end; i++) {
            const fo__norm_channel *s = &args->channel[i];
            const double            gain = (double)s->line.gain, count = (double)(rows * n);
            fo_real                 k[3];
            k[0] = s->line.gain;
            k[1] = (fo_real)(moves && b < rows ? -gain * s->inverse * s->sum[1] / count : 0);
            k[2] = (fo_real)(moves && b < rows ? -gain * s->sum[0] / count : 0);
            FO__K(out)->norm_grad(n, &s->line, k, add, x->data + (b * c + i) * n,
                                  out->grad + (b * c + i) * n, x->grad + (b * c + i) * n);
        }
}

static int64_t fo__norm_grain(const fo_tensor *out) { /* channels: read twice, written once */
    return fo__grain(FO__NS_ELEMENT * (double)(out->count / out->dim[1]));
}

static void fo__batch_norm_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    (void)begin, (void)end;
    fo_parallel_for(out->tape->fo, out->dim[1], fo__norm_grain(out), fo__norm_forward, (void *)out);
}

static void fo__batch_norm_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    (void)begin, (void)end;
    fo_parallel_for(out->tape->fo, out->dim[1], fo__norm_grain(out), fo__norm_backward,
                    (void *)out);
}

/* The step was sound: now the running statistics of all batch norms see its batch. */
static void fo__norm_commit(fo_tape *tape) {
    int     i;
    int64_t c;
    for (i = 0; i < tape->count; i++) {
        const fo_tensor *t = tape->nodes[i];
        if (t->op && t->op->forward == fo__batch_norm_forward) {
            const fo_norm *how = fo__norm_args_of(t)->how;
            if (how->mode == FO_NORM_TRAIN && how->defer)
                for (c = 0; c < t->dim[1]; c++)
                    fo__norm_update(t, c);
        }
    }
}

/* ---- weight_norm: w[o] = g[o] v[o] / |v[o]| for each row o (Salimans and Kingma 2016) ----------

     dg = dw . v / |v|,  dv = g / |v| (dw - v (dw . v) / |v|^2);  a row of zeros stays one;
     where a row is one number, w = g sign(v) and dv = 0 */

static fo_result fo__weight_norm_shape(fo_tensor *out) {
    if (out->in[1]->count != out->in[0]->dim[0])
        return fo__bad_shapes(out, "v[O,...] and g with O elements are needed");
    return fo__like_first(out);
}

static double fo__weight_norm_inverse(const fo_tensor *out, int64_t o) {
    const int64_t n      = fo__row(out);
    const double  square = FO__K(out)->sumsq(n, out->in[0]->data + o * n);
    return square == 0 ? 0 : 1 / sqrt(square);
}

static void fo__weight_norm_rows(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t o, n = fo__row(out);
    for (o = begin; o < end; o++)
        FO__K(out)->scale(n, (fo_real)((double)out->in[1]->data[o] *
                                       fo__weight_norm_inverse(out, o)),
                          out->in[0]->data + o * n, out->data + o * n);
}

static void fo__weight_norm_undo(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_tensor *v = out->in[0], *g = out->in[1];
    int64_t          o, n = fo__row(out);
    for (o = begin; o < end; o++) {
        const fo_real *dw = out->grad + o * n, *row = v->data + o * n;
        const double   inverse = fo__weight_norm_inverse(out, o);
        const double   along = FO__K(out)->dot(n, dw, row) * inverse; /* dw . v / |v| */
        const double   gain = (double)g->data[o] * inverse;
        if (g->grad)
            g->grad[o] += (fo_real)along;
        if (v->grad && n > 1) {
            FO__K(out)->axpy(n, (fo_real)gain, dw, v->grad + o * n);
            FO__K(out)->axpy(n, (fo_real)(-gain * along * inverse), row, v->grad + o * n);
        }
    }
}

static void fo__weight_norm_run(const fo_tensor *out,
                                void (*run)(const fo_tensor *out, int64_t begin, int64_t end)) {
    fo__op_call call;
    call.out = out;
    call.run = run;
    fo_parallel_for(out->tape->fo, out->dim[0], fo__grain(FO__NS_ELEMENT * (double)fo__row(out)),
                    fo__op_range, &call);
}

static void fo__weight_norm_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    (void)begin, (void)end;
    fo__weight_norm_run(out, fo__weight_norm_rows);
}

static void fo__weight_norm_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    (void)begin, (void)end;
    fo__weight_norm_run(out, fo__weight_norm_undo);
}

/* ---- gate: z = h + g (r - h), what is kept of h and what is new ------------------------------ */

static fo_result fo__gate_shape(fo_tensor *out) {
    if (out->in[1]->count != out->in[0]->count || out->in[2]->count != out->in[0]->count)
        return fo__bad_shapes(out, "h, r and g of one shape are needed");
    return fo__like_first(out);
}

static void fo__gate_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_real *h = out->in[0]->data, *r = out->in[1]->data, *g = out->in[2]->data;
    int64_t        i;
    for (i = begin; i < end; i++)
        out->data[i] = h[i] + g[i] * (r[i] - h[i]);
}

static void fo__gate_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    const fo_real *h = out->in[0]->data, *r = out->in[1]->data, *g = out->in[2]->data;
    fo_real       *dh = out->in[0]->grad, *dr = out->in[1]->grad, *dg = out->in[2]->grad;
    int64_t        i;
    for (i = begin; i < end; i++) {
        const fo_real dz = out->grad[i];
        if (dh)
            dh[i] += dz * (1 - g[i]);
        if (dr)
            dr[i] += dz * g[i];
        if (dg)
            dg[i] += dz * (r[i] - h[i]);
    }
}

/* ---- crelu: relu of x, then relu of -x, along dimension 1 (Shang et al. 2016) ---------------- */

static fo_result fo__crelu_shape(fo_tensor *out) {
    if (out->in[0]->rank < 2)
        return fo__bad_shapes(out, "x[B,C,...] is needed");
    fo__like_first(out);
    out->dim[1] *= 2;
    return FO_OK;
}

static void fo__crelu_forward(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t r, n = fo__row(out->in[0]);
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++) {
        fo_real *y = out->data + 2 * r * n;
        FO__K(out)->leaky(n, 0, out->in[0]->data + r * n, y);
        FO__K(out)->scale(n, -1, out->in[0]->data + r * n, y + n);
        FO__K(out)->leaky(n, 0, y + n, y + n);
    }
}

static void fo__crelu_backward(const fo_tensor *out, int64_t begin, int64_t end) {
    int64_t r, i, n = fo__row(out->in[0]);
    (void)begin, (void)end;
    for (r = 0; r < out->dim[0]; r++) {
        const fo_real *y = out->data + 2 * r * n, *dy = out->grad + 2 * r * n;
        fo_real       *dx = out->in[0]->grad + r * n;
        for (i = 0; i < n; i++)
            dx[i] += y[i] > 0 ? dy[i] : y[n + i] > 0 ? -dy[n + i] : 0;
    }
}
/* ================================================================================================
   >>op-table      name, shape function and promises of every op; the functions of >>api-ops

   How        a row makes the number, the entry of the table and, for ops of tensors alone, the
              public function of `one` or `two`; ops with other arguments have theirs below
   ============================================================================================= */

#define FO__OPS(X)                                                                                 \
    X(add, two, binary, FO_ELEMENTWISE | FO_IN_PLACE)                                              \
    X(sub, two, binary, FO_ELEMENTWISE | FO_IN_PLACE)                                              \
    X(mul, two, binary, FO_ELEMENTWISE | FO_READS_INPUT)                                           \
    X(scale, none, first, FO_ELEMENTWISE | FO_IN_PLACE)                                            \
    X(exp, one, first, FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT)                             \
    X(log, one, first, FO_ELEMENTWISE | FO_READS_INPUT)                                            \
    X(tanh, one, first, FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT)                            \
    X(sigmoid, one, first, FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT)                         \
    X(softplus, one, first, FO_ELEMENTWISE | FO_READS_INPUT)                                       \
    X(leaky_relu, none, first, FO_ELEMENTWISE | FO_IN_PLACE | FO_READS_OUTPUT)                     \
    X(sum, none, sum, FO_ELEMENTWISE)                                                              \
    X(matmul, two, matmul, FO_READS_INPUT | FO_OVERWRITES)                                         \
    X(linear, none, linear, FO_READS_INPUT | FO_OVERWRITES)                                        \
    X(conv2d, none, conv, FO_READS_INPUT | FO_OVERWRITES)                                          \
    X(conv2d_transpose, none, conv, FO_READS_INPUT | FO_OVERWRITES)                                \
    X(batch_norm, none, batch_norm, FO_READS_INPUT | FO_OVERWRITES | FO_CHEAP)                     \
    X(weight_norm, two, weight_norm, FO_READS_INPUT)                                               \
    X(gate, none, gate, FO_ELEMENTWISE | FO_READS_INPUT)                                           \
    X(crelu, one, crelu, FO_READS_OUTPUT)                                                          \
    X(gather, none, gather, 0)                                                                     \
    X(concat, two, concat, 0)                                                                      \
    X(reshape, none, reshape, FO_VIEW)

#define fo__first_shape fo__like_first
enum {
#define FO__ENUM(name, inputs, shape, flags) FO__OP_##name,
    FO__OPS(FO__ENUM)
#undef FO__ENUM
    FO__OP_COUNT
};
static void fo__ops_table(fo_op *out) {
    const fo_op table[FO__OP_COUNT] = {
#define FO__ROW(name, inputs, shape, flags)                                                        \
    {#name, flags, fo__##shape##_shape, fo__##name##_forward, fo__##name##_backward},
    FO__OPS(FO__ROW)
#undef FO__ROW
    };
    memcpy(out, table, sizeof table);
}

/* An op function that looks at its tensors before fo_apply does begins with this; what it refuses
   leaves the tape incomplete. */
static int fo__op_begin(const fo_tensor *a) { return a && fo__tape_open(a->tape); }

FO__PRINTF(3, 4)
static fo_tensor *fo__op_fail(fo_tensor *a, fo_result code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fo__vfail(a->tape->fo, code, format, args);
    va_end(args);
    a->tape->failed = 1;
    return NULL;
}

static fo_tensor *fo__apply1(int op, fo_tensor *a, const void *args, size_t size) {
    return a ? fo_apply(a->tape, &a->tape->fo->ops[op], &a, 1, args, size) : NULL;
}

static fo_tensor *fo__apply2(int op, fo_tensor *a, fo_tensor *b) {
    fo_tensor *in[2];
    in[0] = a, in[1] = b;
    return a && b ? fo_apply(a->tape, &a->tape->fo->ops[op], in, 2, NULL, 0) : NULL;
}

/* The third, a bias, may be missing. */
static fo_tensor *fo__apply3(int op, fo_tensor *a, fo_tensor *b, fo_tensor *c, const void *args,
                             size_t size) {
    fo_tensor *in[3];
    in[0] = a, in[1] = b, in[2] = c;
    return a && b ? fo_apply(a->tape, &a->tape->fo->ops[op], in, c ? 3 : 2, args, size) : NULL;
}

#define FO__none(name)
#define FO__one(name)                                                                              \
    fo_tensor *fo_##name(fo_tensor *a) { return fo__apply1(FO__OP_##name, a, NULL, 0); }
#define FO__two(name)                                                                              \
    fo_tensor *fo_##name(fo_tensor *a, fo_tensor *b) { return fo__apply2(FO__OP_##name, a, b); }
#define FO__FUNCTION(name, inputs, shape, flags) FO__##inputs(name)
FO__OPS(FO__FUNCTION)
#undef FO__FUNCTION
#undef FO__none
#undef FO__one
#undef FO__two

fo_tensor *fo_relu(fo_tensor *a) { return fo_leaky_relu(a, 0); }

fo_tensor *fo_scale(fo_tensor *a, double k) {
    fo_real number = (fo_real)k;
    return fo__apply1(FO__OP_scale, a, &number, sizeof number);
}

fo_tensor *fo_leaky_relu(fo_tensor *a, double slope) {
    fo_real number = (fo_real)slope;
    if (fo__op_begin(a) && !(slope >= 0))
        return fo__op_fail(a, FO_ERR_ARGUMENT, "fo_leaky_relu: the slope is %g: it must not be "
                           "negative", slope);
    return fo__apply1(FO__OP_leaky_relu, a, &number, sizeof number);
}

fo_tensor *fo_sum(fo_tensor *a, int keep) { return fo__apply1(FO__OP_sum, a, &keep, sizeof keep); }

fo_tensor *fo_mean(fo_tensor *a, int keep) {
    fo_tensor *sum = fo_sum(a, keep);
    return sum ? fo_scale(sum, (double)sum->count / (double)a->count) : NULL;
}

fo_tensor *fo_linear(fo_tensor *x, fo_tensor *w, fo_tensor *b) {
    return fo__apply3(FO__OP_linear, x, w, b, NULL, 0);
}

/* Room for a gather's arguments: how many, then -1 that many times. */
static int *fo__gather_args(fo_tensor *a, int64_t n) {
    int    *args = (int *)fo__arena_alloc(&a->tape->arena, fo__times(n + 1, sizeof *args));
    int64_t i;
    if (args == NULL) {
        a->tape->failed = 1;
        return NULL;
    }
    args[0] = (int)n;
    for (i = 0; i < n; i++)
        args[i + 1] = -1;
    return args;
}

static fo_tensor *fo__gather(fo_tensor *a, const int *args) {
    return args ? fo__apply1(FO__OP_gather, a, args, ((size_t)args[0] + 1) * sizeof *args) : NULL;
}

/* May element i of a list be index[i], from `least` to below `most`? */
static int fo__index_ok(fo_tensor *a, const char *name, const int *index, int64_t n, int least,
                        int64_t most) {
    int64_t i;
    if (index == NULL || n < 1)
        fo__op_fail(a, FO_ERR_ARGUMENT, "%s: at least one index is needed", name);
    for (i = 0; i < n && !a->tape->failed; i++)
        if (index[i] < least || index[i] >= most)
            fo__op_fail(a, FO_ERR_ARGUMENT, "%s: index[%lld] is %d, but a row has %lld elements",
                        name, (long long)i, index[i], (long long)most);
    return !a->tape->failed;
}

fo_tensor *fo_gather(fo_tensor *a, const int *index, int n) {
    int *args;
    if (!fo__op_begin(a) || !fo__index_ok(a, "fo_gather", index, n, -1, fo__row(a)))
        return NULL;
    args = fo__gather_args(a, n);
    if (args)
        memcpy(args + 1, index, (size_t)n * sizeof *args);
    return fo__gather(a, args);
}

/* The gather by the inverse list: where an element came from. */
fo_tensor *fo_scatter(fo_tensor *a, const int *index, int width) {
    int *args, i;
    if (!fo__op_begin(a) || !fo__index_ok(a, "fo_scatter", index, fo__row(a), 0, width))
        return NULL;
    args = fo__gather_args(a, width);
    if (args == NULL)
        return NULL;
    for (i = 0; i < fo__row(a); i++) {
        if (args[index[i] + 1] >= 0)
            return fo__op_fail(a, FO_ERR_ARGUMENT, "fo_scatter: index %d is used twice", index[i]);
        args[index[i] + 1] = i;
    }
    return fo__gather(a, args);
}

fo_tensor *fo_slice(fo_tensor *a, int64_t begin, int64_t length) {
    int64_t dim[FO_MAX_RANK], inner, i;
    int    *args, rank;
    char    text[96];
    if (!fo__op_begin(a))
        return NULL;
    if (a->rank < 2 || begin < 0 || length < 1 || begin > a->dim[1] ||
        length > a->dim[1] - begin || fo__row(a) > INT_MAX)
        return fo__op_fail(a, FO_ERR_SHAPE, "fo_slice of %s: %lld from number %lld on reach "
                           "outside dimension 1, or its rows are longer than 2^31 - 1",
                           fo__dims(text, a->rank, a->dim), (long long)length, (long long)begin);
    memcpy(dim, a->dim, sizeof dim);
    dim[1] = length;
    inner  = fo__row(a) / a->dim[1];
    args   = fo__gather_args(a, length * inner);
    if (args == NULL)
        return NULL;
    for (i = 0; i < length * inner; i++)
        args[i + 1] = (int)(begin * inner + i);
    rank   = a->rank;
    a      = fo__gather(a, args);
    return a ? fo_reshape(a, rank, dim) : NULL;
}

fo_tensor *fo_reshape(fo_tensor *a, int rank, const int64_t *dim) {
    fo__reshape_args args;
    if (rank < 1 || rank > FO_MAX_RANK || dim == NULL)
        rank = 0; /* refused by the shape function */
    memset(&args, 0, sizeof args);
    args.rank = rank;
    if (rank)
        memcpy(args.dim, dim, (size_t)rank * sizeof *dim);
    return fo__apply1(FO__OP_reshape, a, &args, sizeof args);
}

static fo_tensor *fo__conv_apply(fo_tensor *x, fo_tensor *w, fo_tensor *b, int stride, int padding,
                                 int transposed) {
    fo__conv_args args;
    memset(&args, 0, sizeof args);
    args.stride     = stride;
    args.padding    = padding;
    args.transposed = transposed;
    return fo__apply3(transposed ? FO__OP_conv2d_transpose : FO__OP_conv2d, x, w, b, &args,
                      sizeof args);
}

fo_tensor *fo_conv2d(fo_tensor *x, fo_tensor *w, fo_tensor *b, int stride, int padding) {
    return fo__conv_apply(x, w, b, stride, padding, 0);
}

fo_tensor *fo_conv2d_transpose(fo_tensor *x, fo_tensor *w, fo_tensor *b, int stride,
                               int padding) {
    return fo__conv_apply(x, w, b, stride, padding, 1);
}

fo_tensor *fo_batch_norm(fo_tensor *x, fo_tensor *w, fo_tensor *b, fo_tensor *running_mean,
                         fo_tensor *running_var, const fo_norm *how, double factor, int relu) {
    fo_tensor    *in[5];
    fo__norm_args args;
    in[0] = x, in[1] = w, in[2] = b, in[3] = running_mean, in[4] = running_var;
    if (!fo__op_begin(x) || w == NULL || b == NULL || running_mean == NULL || running_var == NULL)
        return NULL;
    if (how == NULL || x->rank < 2)
        return fo__op_fail(x, FO_ERR_ARGUMENT, "fo_batch_norm: x[B,C,...] and a fo_norm are "
                           "needed; x is of rank %d", x->rank);
    memset(&args, 0, sizeof args);
    args.how     = how;
    args.factor  = factor;
    args.relu    = relu;
    args.channel = (fo__norm_channel *)fo__arena_alloc(
        &x->tape->arena, fo__times(x->dim[1], sizeof *args.channel));
    if (args.channel == NULL)
        x->tape->failed = 1;
    return fo_apply(x->tape, &x->tape->fo->ops[FO__OP_batch_norm], in, 5, &args, sizeof args);
}

fo_tensor *fo_gate(fo_tensor *h, fo_tensor *r, fo_tensor *g) {
    return g ? fo__apply3(FO__OP_gate, h, r, g, NULL, 0) : NULL;
}

/* ================================================================================================
   >>settings      registered names, and name=value in a flow's text

   Purpose    st-networks, masks and layers are found by name, and each lists the settings that it
              reads; reading, checking, printing and saving all walk that one list
   Invariants built-in rows are added first, by the functions that users call, and cannot be
              replaced; rows stay where they are as long as the context
   Callers    >>nets, >>masks, >>layers, >>text
   ============================================================================================= */
typedef enum fo__what { FO__A_NET, FO__A_MASK, FO__A_LAYER, FO__A_SCORE, FO__WHATS } fo__what;

/* What every row of the registry starts with. */
typedef struct fo__row_head {
    struct fo__row_head *next;
    const char          *name;
    int                  builtin;
} fo__row_head;

struct fo__registry {
    fo__row_head *first[FO__WHATS];
    int           open; /* the built-in rows are complete: users may come */
};

/* Names become words of the flow's text. */
static int fo__is_word(const char *name) {
    size_t n = name ? strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "0123456789_-") : 0;
    return n > 0 && n < 40 && name[n] == 0;
}

/* The row of this name, the newest of several; NULL where there is none. */
static fo__row_head *fo__row_named(const fo_context *fo, fo__what what, const char *name) {
    fo__row_head *row, *found = NULL;
    for (row = fo->registry->first[what]; row; row = row->next)
        if (strcmp(row->name, name) == 0)
            found = row;
    return found;
}

/* The same; an unknown name is an error that lists the known ones. `where` may be NULL. */
static fo__row_head *fo__row_find(fo_context *fo, const char *where, fo__what what,
                                  const char *name) {
    const char *const noun[FO__WHATS] = {"st-network", "mask", "layer", "score"};
    const char *const call[FO__WHATS] = {"fo_register_net", "fo_register_mask",
                                         "fo_register_layer", "fo_register_score"};
    fo__row_head *row = fo__row_named(fo, what, name);
    char          known[300];
    size_t        at = 0;
    if (row)
        return row;
    for (row = fo->registry->first[what]; row && at < sizeof known - 48; row = row->next)
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", row->name);
    fo__fail(fo, FO_ERR_ARGUMENT, "%s%sunknown %s '%.40s': %s are known; make yours known with %s "
             "first", where ? where : "", where ? ": " : "", noun[what], name, known, call[what]);
    return NULL;
}

/* A new row of `size` bytes under this name, or NULL with the error recorded. */
static fo__row_head *fo__row_add(fo_context *fo, fo__what what, const char *call, const char *name,
                                 size_t size) {
    fo__row_head **end, *row;
    if (!fo__is_word(name)) {
        fo__fail(fo, FO_ERR_ARGUMENT, "%s: a name of letters, digits, _ and - is needed, not "
                 "'%.40s'", call, name ? name : "");
        return NULL;
    }
    row = fo__row_named(fo, what, name);
    if (row && row->builtin) {
        fo__fail(fo, FO_ERR_ARGUMENT, "%s: '%s' is the name of a built-in one: take another", call,
                 name);
        return NULL;
    }
    row = (fo__row_head *)fo__arena_alloc(&fo->arena, size);
    if (row == NULL || (row->name = fo__strdup(&fo->arena, name)) == NULL)
        return NULL;
    row->builtin = !fo->registry->open;
    for (end = &fo->registry->first[what]; *end;)
        end = &(*end)->next;
    *end = row;
    return row;
}

/* ---- numbers in text: with a point, whatever the user's locale is ---------------------------- */

static void fo__print_double(char *text, size_t size, double x, int digits) {
    char *comma;
    snprintf(text, size, "%.*g", digits, x);
    for (comma = text; *comma; comma++)
        if (*comma == localeconv()->decimal_point[0])
            *comma = '.';
}

static int fo__parse_double(const char *text, double *out) {
    char  copy[64], *end, *point;
    snprintf(copy, sizeof copy, "%s", text);
    point = strchr(copy, '.');
    if (point)
        *point = localeconv()->decimal_point[0];
    *out = strtod(copy, &end);
    return end != copy && *end == 0;
}

static int fo__parse_int(const char *text, int *out) {
    char *end;
    long  value = strtol(text, &end, 10);
    *out        = (int)value;
    return end != text && *end == 0 && value >= 0 && value <= 1 << 24;
}

/* ---- settings -------------------------------------------------------------------------------- */

static int fo__setting_index(const fo_setting *list, const char *name) {
    int i;
    for (i = 0; i < FO_MAX_SETTINGS && list && list[i].name; i++)
        if (strcmp(list[i].name, name) == 0)
            return i;
    return -1;
}

double fo_setting_value(const fo_settings *settings, const char *name) {
    int i = settings && name ? fo__setting_index(settings->list, name) : -1;
    return i < 0 ? 0 : settings->value[i];
}

static int fo__setting_given(const fo_settings *settings, const char *name) {
    int i = fo__setting_index(settings->list, name);
    return i >= 0 && (settings->given >> i & 1);
}

/* The k-th of `words` into `word`, or 0 where there are not so many. */
static int fo__word_at(const char *words, int k, char word[40]) {
    size_t n;
    for (; k > 0 && *words; k--) {
        words += strcspn(words, " ");
        words += strspn(words, " ");
    }
    n = strcspn(words, " ");
    snprintf(word, 40, "%.*s", (int)FO__MIN(n, 39), words);
    return n > 0;
}

static int fo__word_index(const char *words, const char *wanted) {
    char word[40];
    int  k;
    for (k = 0; fo__word_at(words, k, word); k++)
        if (strcmp(word, wanted) == 0)
            return k;
    return -1;
}

static void fo__settings_open(fo_settings *s, const fo_setting *list) {
    int i;
    memset(s, 0, sizeof *s);
    s->list = list;
    for (i = 0; i < FO_MAX_SETTINGS && list[i].name; i++)
        s->value[i] = list[i].usual;
}

/* `where` names the place and `owner` who reads the settings, for messages. */
typedef struct fo__reader { fo_context *fo; const char *where, *owner; } fo__reader;

/* "net mlp does not read 'blocks': it reads hidden, depth, bottleneck and act" */
static fo_result fo__setting_unknown(const fo__reader *r, const fo_settings *s, const char *name) {
    char   list[300] = "it has no settings";
    size_t at = 0;
    int    i;
    for (i = 0; i < FO_MAX_SETTINGS && s->list[i].name && at < sizeof list - 48; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "it reads ",
                               s->list[i].name);
    return fo__fail(r->fo, FO_ERR_ARGUMENT, "%s: unknown setting '%.40s' of %s: %s", r->where, name,
                    r->owner, list);
}

/* Setting i, from a word of text: the only place where values are checked. */
static fo_result fo__setting_read(const fo__reader *r, fo_settings *s, int i, const char *text) {
    const fo_setting *set   = &s->list[i];
    const int         real  = set->flags & FO_SETTING_REAL;
    double            value = 0;
    char              least[40], most[40], usual[40];
    int               ok, whole = 0;
    if (set->words) {
        value = fo__word_index(set->words, text);
        if (value < 0)
            return fo__fail(r->fo, FO_ERR_ARGUMENT, "%s: '%s=%.60s' of %s: one of '%s' is needed",
                            r->where, set->name, text, r->owner, set->words);
    } else {
        ok    = real ? fo__parse_double(text, &value) : fo__parse_int(text, &whole);
        value = real ? value : whole;
        if (ok && !real && value == 0 && set->least > 0)
            return FO_OK; /* zero: the default */
        if (!ok || !(real ? value > set->least && value < set->most
                          : value >= set->least && value <= set->most)) {
            fo__print_double(least, sizeof least, set->least, 9);
            fo__print_double(most, sizeof most, set->most, 9);
            fo__print_double(usual, sizeof usual, set->usual, 9);
            return fo__fail(r->fo, FO_ERR_ARGUMENT, "%s: '%s=%.60s' of %s: a %snumber between %s "
                            "and %s is needed; the default is %s", r->where, set->name, text,
                            r->owner, real ? "" : "whole ", least, most, usual);
        }
    }
    s->value[i] = value;
    s->given |= 1u << i;
    return FO_OK;
}

/* "name=value name=value". `old`, where it is not NULL, is what older files call the bottleneck. */
static fo_result fo__settings_read(const fo__reader *r, fo_settings *s, const char *text,
                                   const char *old) {
    char   word[128], *value;
    size_t n;
    int    i;
    for (; text && *(text += strspn(text, " \t\r")); text += n) {
        n = strcspn(text, " \t\r");
        snprintf(word, sizeof word, "%.*s", (int)FO__MIN(n, sizeof word - 1), text);
        value = strchr(word, '=');
        if (value == NULL || n >= sizeof word)
            return fo__fail(r->fo, FO_ERR_ARGUMENT, "%s: name=value is needed, not '%.60s'",
                            r->where, word);
        *value++ = 0;
        i = fo__setting_index(s->list, old && strcmp(word, old) == 0 ? "bottleneck" : word);
        if (i < 0)
            return fo__setting_unknown(r, s, word);
        if (fo__setting_read(r, s, i, value) != FO_OK)
            return r->fo->failed;
    }
    return FO_OK;
}

/* " name=value" for each that differs from its default; returns the length. */
static size_t fo__settings_write(const fo_settings *s, char *text, size_t size) {
    char   value[40];
    size_t at = 0;
    int    i;
    text[0] = 0;
    for (i = 0; i < FO_MAX_SETTINGS && s->list[i].name; i++) {
        const fo_setting *set = &s->list[i];
        if (s->value[i] == set->usual && !(set->flags & FO_SETTING_SHOWN))
            continue;
        if (set->words)
            fo__word_at(set->words, (int)s->value[i], value);
        else
            fo__print_double(value, sizeof value, s->value[i], 9);
        at += (size_t)snprintf(text + at, size - at, " %s=%s", set->name, value);
    }
    return at;
}

/* A user's list, copied and checked once: what was registered cannot surprise later. */
static fo_result fo__settings_copy(fo_context *fo, const char *call, const fo_setting *from,
                                   fo_setting *to) {
    int i;
    for (i = 0; i < FO_MAX_SETTINGS && from[i].name; i++) {
        const char *name = from[i].name;
        if (!fo__is_word(name) || strcmp(name, "mask") == 0 || strcmp(name, "net") == 0 ||
            fo__setting_index(to, name) >= 0)
            return fo__fail(fo, FO_ERR_ARGUMENT, "%s: a setting cannot be named '%.40s'%s", call,
                            name, fo__is_word(name) ? ": that is a name already" : "");
        to[i] = from[i];
        if (to[i].words == NULL && !(to[i].least <= to[i].usual && to[i].usual <= to[i].most))
            return fo__fail(fo, FO_ERR_ARGUMENT, "%s: the default of '%s' is outside of its range",
                            call, name);
        to[i].name = fo__strdup(&fo->arena, name);
        if (to[i].words)
            to[i].words = fo__strdup(&fo->arena, from[i].words);
        if (to[i].name == NULL || (from[i].words && to[i].words == NULL))
            return FO_ERR_MEMORY;
    }
    return FO_OK;
}

/* ================================================================================================
   >>nets          st-networks by name
   ============================================================================================= */
typedef struct fo__net_row { fo__row_head head; fo_net_kind kind; } fo__net_row;

/* A row an activation behind the first, the default: its word, and what it makes of x. */
#define FO__MORE_ACTIVATIONS(X)                                                                    \
    X(relu, fo_relu(x)) X(tanh, fo_tanh(x)) X(softplus, fo_softplus(x)) X(none, x)
#define FO__WORD(name, made) " " #name
#define FO__ACTIVATIONS "leaky_relu" FO__MORE_ACTIVATIONS(FO__WORD)

fo_tensor *fo_activation(fo_tensor *x, const char *act) {
    if (!fo__op_begin(x))
        return NULL;
    if (act == NULL || strcmp(act, "leaky_relu") == 0)
        return fo_leaky_relu(x, 0.01);
#define FO__ROW(name, made)                                                                        \
    if (strcmp(act, #name) == 0)                                                                   \
        return made;
    FO__MORE_ACTIVATIONS(FO__ROW)
#undef FO__ROW
    return fo__op_fail(x, FO_ERR_ARGUMENT, "unknown activation '%.40s': one of '%s' is needed",
                       act, FO__ACTIVATIONS);
}

/* Parameter, or buffer, "NAME.PART" of the network that x belongs to. */
static fo_tensor *fo__part(fo_tensor *x, int is_buffer, const char *name, const char *part,
                           int rank, const int64_t *dim, fo_init init) {
    char full[128];
    if (name == NULL)
        return fo__op_fail(x, FO_ERR_ARGUMENT, "a parameter of a network has no name");
    snprintf(full, sizeof full, "%.100s.%s", name, part);
    return fo__named(x->tape, is_buffer, full, rank, dim, init);
}

/* Weight and bias of a linear layer or a convolution. PyTorch's default: both uniform in
   +-1/sqrt(fan in); or zeros, where `fan_in` is 0. */
static fo_tensor *fo__net_weight(fo_tensor *x, const char *name, const char *weight, int rank,
                                 const int64_t *dim, double fan_in, int outputs,
                                 fo_tensor **bias) {
    fo_init    init = fan_in > 0 ? fo_init_of(FO_INIT_UNIFORM, 1 / sqrt(fan_in))
                                 : fo_init_of(FO_INIT_CONSTANT, 0);
    int64_t    out  = outputs;
    fo_tensor *w    = fo__part(x, 0, name, weight, rank, dim, init);
    if (bias) {
        *bias = w ? fo__part(x, 0, name, "bias", 1, &out, init) : NULL;
        w     = *bias ? w : NULL;
    }
    return w;
}

fo_tensor *fo_net_linear(fo_tensor *x, const char *name, int outputs, int zero) {
    fo_tensor *w, *b;
    int64_t    dim[2];
    if (!fo__op_begin(x))
        return NULL;
    dim[0] = outputs, dim[1] = fo__row(x);
    w = fo__net_weight(x, name, "weight", 2, dim, zero ? 0 : (double)dim[1], outputs, &b);
    return fo_linear(x, w, b);
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

/* ---- st-networks on images: x[B,C,H,W] in, [B,outputs,H,W] out ------------------------------- */

/* Numbered or dotted names without a buffer at every call: "blocks.3.conv1". */
typedef struct fo__name { char text[64]; } fo__name;

static fo__name fo__named_at(const char *list, int i, const char *rest) {
    fo__name name;
    snprintf(name.text, sizeof name.text, "%.20s.%d%.20s", list, i, rest);
    return name;
}

/* kernel x kernel, stride 1, same size. */
fo_tensor *fo_net_conv(fo_tensor *x, const char *name, int outputs, int kernel, int zero) {
    fo_tensor *w, *b;
    int64_t    dim[4];
    if (!fo__op_begin(x))
        return NULL;
    if (x->rank != 4)
        return fo__op_fail(x, FO_ERR_SHAPE, "fo_net_conv: %.40s sees a tensor of rank %d; images "
                           "[B,C,H,W] are needed: set `image` in the net's row", name ? name : "",
                           x->rank);
    dim[0] = outputs, dim[1] = x->dim[1], dim[2] = dim[3] = kernel;
    w = fo__net_weight(x, name, "weight", 4, dim, zero ? 0 : (double)(dim[1] * kernel * kernel),
                       outputs, &b);
    return w ? fo_conv2d(x, w, b, 1, kernel / 2) : NULL;
}

/* The same with weight norm (Salimans & Kingma 2016): gain and direction learn apart. */
static fo_tensor *fo__wn_conv(fo_tensor *x, const char *name, int outputs, int kernel, int bias) {
    fo_tensor *g, *v, *b = NULL;
    int64_t    dim[4], gain[4] = {1, 1, 1, 1};
    if (x == NULL)
        return NULL;
    dim[0] = gain[0] = outputs, dim[1] = x->dim[1], dim[2] = dim[3] = kernel;
    g = fo__part(x, 0, name, "weight_g", 4, gain, fo_init_of(FO_INIT_ROW_NORMS, 1));
    v = fo__net_weight(x, name, "weight_v", 4, dim, (double)(dim[1] * kernel * kernel), outputs,
                       bias ? &b : NULL);
    return v ? fo_conv2d(x, fo_weight_norm(v, g), b, 1, kernel / 2) : NULL;
}

/* Batch norm under `name`, times factor, with or without ReLU behind it. */
static fo_tensor *fo__net_norm(fo_tensor *x, const char *name, double factor, int relu) {
    const char *const part[] = {"weight", "bias", "running_mean", "running_var"};
    fo_tensor        *p[4];
    int               i;
    if (x == NULL)
        return NULL;
    for (i = 0; i < 4; i++)
        p[i] = fo__part(x, i >= 2, name, part[i], 1, &x->dim[1],
                        fo_init_of(FO_INIT_CONSTANT, i == 0 || i == 3));
    return fo_batch_norm(x, p[0], p[1], p[2], p[3], fo_tape_norm(x->tape), factor, relu);
}

/* A linear layer across channels and pixels: the bottleneck of an image network. */
static fo_tensor *fo__net_bottleneck(fo_tensor *x, int width) {
    int64_t dim[4], flat[2];
    if (x == NULL)
        return NULL;
    memcpy(dim, x->dim, sizeof dim);
    flat[0] = dim[0], flat[1] = fo__row(x);
    x = fo_net_linear(fo_reshape(x, 2, flat), "neck.0", width, 0);
    x = fo_net_linear(x, "neck.1", (int)(dim[1] * dim[2] * dim[3]), 0);
    return x ? fo_reshape(x, 4, dim) : NULL;
}

/* The same in a ResNet; with norm=0 only the ReLU is left of it. */
static fo_tensor *fo__resnet_norm(fo_tensor *x, const char *name, const fo_net *net) {
    if (!net->norm)
        return x ? fo_relu(x) : NULL;
    return fo__net_norm(x, name, 1, 1);
}

/* RealNVP's ResNet: pre-activation blocks with weight and batch norm, and 1x1 skips from the stem
   and every block to the end. With a bottleneck all information passes through it, so there are no
   skips around it. */
static fo_tensor *fo__resnet_build(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    int        k = net->channels, j, skip = net->skip && net->bottleneck == 0;
    fo_tensor *h = x, *sum = NULL, *b;
    if (net->bottleneck && net->skip && fo__setting_given(&net->settings, "skip")) {
        fo__fail(tape->fo, FO_ERR_ARGUMENT, "net=resnet bottleneck=%d skip=1: skips would lead "
                 "around the bottleneck; leave one of them out", net->bottleneck);
        return NULL;
    }
    if (net->norm)
        h = fo__net_norm(h, "in_norm", net->input_factor, 0);
    h = fo__wn_conv(h ? fo_crelu(h) : NULL, "in_conv", k, 3, 1);
    if (skip)
        sum = fo__wn_conv(h, "skips.0", k, 1, 1);
    for (j = 0; j < net->blocks; j++) {
        b = fo__resnet_norm(h, fo__named_at("blocks", j, ".norm1").text, net);
        b = fo__wn_conv(b, fo__named_at("blocks", j, ".conv1").text, k, 3, 0);
        b = fo__resnet_norm(b, fo__named_at("blocks", j, ".norm2").text, net);
        b = fo__wn_conv(b, fo__named_at("blocks", j, ".conv2").text, k, 3, 1);
        h = fo_add(b, h);
        if (skip)
            sum = fo_add(fo__wn_conv(h, fo__named_at("skips", j + 1, "").text, k, 1, 1), sum);
        if (net->bottleneck && j == FO__MAX(net->blocks / 2, 1) - 1)
            h = fo__net_bottleneck(h, net->bottleneck);
    }
    h = fo__resnet_norm(skip ? sum : h, "out_norm", net);
    return fo__wn_conv(h, "out_conv", outputs, 1, 1);
}

/* Glow with highway layers: h = g relu(conv(h)) + (1-g) h, g = sigmoid(gate(h)); act=none, the
   paper's own, has no ReLU there, nor behind the first convolution. */
static fo_tensor *fo__highway_build(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    fo_tensor *h = fo_activation(fo_net_conv(x, "in_conv", net->channels, 3, 0), net->act), *g, *r;
    int        j;
    (void)tape;
    for (j = 0; j < net->depth; j++) {
        g = fo_sigmoid(fo_net_conv(h, fo__named_at("highway", j, ".gate").text, net->channels, 3,
                                   0));
        r = fo_activation(fo_net_conv(h, fo__named_at("highway", j, ".conv").text, net->channels,
                                      3, 0), net->act);
        h = fo_gate(h, r, g);
    }
    return fo_net_conv(h, "out_conv", outputs, 1, 1);
}

/* Glow's own: 3x3, 1x1, zero 3x3. */
static fo_tensor *fo__glow_build(fo_tape *tape, fo_tensor *x, int outputs, const fo_net *net) {
    fo_tensor *h = fo_relu(fo_net_conv(x, "conv1", net->channels, 3, 0));
    (void)tape;
    h = fo_relu(fo_net_conv(h, "conv2", net->channels, 1, 0));
    return fo_net_conv(h, "conv3", outputs, 3, 1);
}

/* 4x4 convolution of the autoencoder, down or (transposed) up. */
static fo_tensor *fo__net_conv4(fo_tensor *x, const char *name, int outputs, int stride,
                                int padding, int up, int zero) {
    fo_tensor *w, *b;
    int64_t    dim[4];
    double     fan_in;
    if (x == NULL)
        return NULL;
    dim[0] = up ? x->dim[1] : outputs, dim[1] = up ? outputs : x->dim[1], dim[2] = dim[3] = 4;
    fan_in = 16.0 * (double)dim[1]; /* PyTorch counts the outputs of a transposed convolution */
    w      = fo__net_weight(x, name, "weight", 4, dim, zero ? 0 : fan_in, outputs, &b);
    if (w == NULL)
        return NULL;
    return up ? fo_conv2d_transpose(x, w, b, stride, padding) : fo_conv2d(x, w, b, stride, padding);
}

/* Everything passes through the bottleneck: the strongest one for images. */
static fo_tensor *fo__autoencoder_build(fo_tape *tape, fo_tensor *x, int outputs,
                                        const fo_net *net) {
    static const int stride[4] = {1, 1, 2, 2}, padding[4] = {2, 1, 1, 1};
    int              wide[4], i;
    if (x && (x->dim[2] % 4 || x->dim[3] % 4 || net->bottleneck == 0)) {
        fo__fail(tape->fo, FO_ERR_SHAPE, "net=autoencoder bottleneck=%d on %dx%d: height and width "
                 "must be multiples of 4, and the bottleneck at least 1", net->bottleneck,
                 (int)x->dim[2], (int)x->dim[3]);
        return NULL;
    }
    wide[0] = net->channels, wide[1] = wide[2] = 2 * net->channels, wide[3] = 4 * net->channels;
    for (i = 0; i < 4; i++) {
        x = fo__net_conv4(x, fo__named_at("down", i, "").text, wide[i], stride[i], padding[i], 0,
                          0);
        x = x ? fo_leaky_relu(x, 0.01) : NULL;
    }
    x = fo__net_bottleneck(x, net->bottleneck);
    x = x ? fo_leaky_relu(x, 0.01) : NULL;
    for (i = 0; i < 4; i++) {
        x = fo__net_conv4(x, fo__named_at("up", i, "").text, i < 3 ? wide[2 - i] : outputs,
                          stride[3 - i], padding[3 - i], 1, i == 3);
        x = x && i < 3 ? fo_leaky_relu(x, 0.01) : x;
    }
    return x;
}

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

/* ---- their settings -------------------------------------------------------------------------- */

/* The fields of fo_net that are settings under their own names. */
#define FO__NET_FIELDS(X) X(hidden) X(depth) X(bottleneck) X(channels) X(blocks) X(skip) X(norm)

#define FO__SET_HIDDEN {"hidden", 512, 1, 65536, FO_SETTING_SHOWN, NULL}
#define FO__SET_CHANNELS {"channels", 32, 1, 4096, FO_SETTING_SHOWN, NULL}
#define FO__SET_BLOCKS(flags) {"blocks", 2, 1, 64, flags, NULL}
#define FO__SET_DEPTH(usual) {"depth", usual, 1, 64, 0, NULL}
#define FO__SET_BOTTLENECK {"bottleneck", 0, 0, 65536, 0, NULL}
#define FO__SET_SKIP {"skip", 1, 0, 1, 0, NULL}
#define FO__SET_NORM {"norm", 1, 0, 1, 0, NULL}
#define FO__SET_ACT(usual) {"act", usual, 0, 0, 0, FO__ACTIVATIONS}

/* One row a net: name, does it see images, the settings that it reads. */
#define FO__NETS(X)                                                                                \
    X(mlp, 0, {FO__SET_HIDDEN, FO__SET_DEPTH(1), FO__SET_BOTTLENECK, FO__SET_ACT(0)})              \
    X(resnet, 1, {FO__SET_CHANNELS, FO__SET_BLOCKS(FO_SETTING_SHOWN), FO__SET_BOTTLENECK,          \
                  FO__SET_SKIP, FO__SET_NORM})                                                     \
    X(highway, 1, {FO__SET_CHANNELS, FO__SET_DEPTH(3), FO__SET_ACT(1)})                            \
    X(glow, 1, {FO__SET_CHANNELS})                                                                 \
    X(autoencoder, 1, {FO__SET_CHANNELS, FO__SET_BOTTLENECK})

fo_result fo_register_net(fo_context *fo, const fo_net_kind *kind) {
    const fo_setting every[2][FO_MAX_SETTINGS] = {
        {FO__SET_HIDDEN, FO__SET_DEPTH(1), FO__SET_BOTTLENECK, FO__SET_ACT(0)},
        {FO__SET_CHANNELS, FO__SET_BLOCKS(0), FO__SET_DEPTH(1), FO__SET_BOTTLENECK, FO__SET_SKIP,
         FO__SET_NORM, FO__SET_ACT(0)}};
    fo_setting   settings[FO_MAX_SETTINGS];
    fo__net_row *row;
    memset(settings, 0, sizeof settings);
    if (!fo__begin(fo) || kind == NULL || kind->build == NULL)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_register_net: a build function is needed");
    if (fo__settings_copy(fo, "fo_register_net", kind->settings[0].name ? kind->settings
                                                     : every[kind->image != 0], settings) != FO_OK)
        return fo->failed;
    row = (fo__net_row *)fo__row_add(fo, FO__A_NET, "fo_register_net", kind->name, sizeof *row);
    if (row == NULL)
        return fo->failed;
    row->kind      = *kind;
    row->kind.name = row->head.name;
    memcpy(row->kind.settings, settings, sizeof settings);
    return FO_OK;
}

static fo_result fo__nets_register(fo_context *fo) {
    const fo_net_kind nets[] = {
#define FO__ROW(name, image, ...) {#name, fo__##name##_build, image, __VA_ARGS__},
        FO__NETS(FO__ROW)
#undef FO__ROW
    };
    size_t i;
    for (i = 0; i < sizeof nets / sizeof nets[0]; i++)
        if (fo_register_net(fo, &nets[i]) != FO_OK)
            return FO_ERR_MEMORY;
    return FO_OK;
}

/* Kind and settings of a net, from its fields and its text; afterwards its fields hold them all. */
static const fo_net_kind *fo__net_resolve(fo_context *fo, const char *where, fo__arena *arena,
                                          fo_net *net) {
#define FO__FIELD(name) {#name, &net->name},
    const struct { const char *name; int *at; } field[] = {FO__NET_FIELDS(FO__FIELD)};
#undef FO__FIELD
    const int     fields = sizeof field / sizeof field[0];
    fo__net_row  *row;
    fo_settings  *s = &net->settings;
    fo__reader    reader;
    char          owner[64], text[48];
    int           i, k;
    row = (fo__net_row *)fo__row_find(fo, where, FO__A_NET, net->kind ? net->kind : "mlp");
    if (row == NULL)
        return NULL;
    net->kind = row->kind.name;
    snprintf(owner, sizeof owner, "net=%.40s", net->kind);
    reader.fo = fo, reader.where = where, reader.owner = owner;
    fo__settings_open(s, row->kind.settings);
    for (i = 0; i <= fields; i++) {
        const char *name = i < fields ? field[i].name : "act", *value = net->act;
        if (i < fields) { /* negative: zero, on purpose */
            snprintf(text, sizeof text, "%d", FO__MAX(*field[i].at, 0));
            value = *field[i].at ? text : NULL;
        }
        k = fo__setting_index(s->list, name);
        if (value && (k < 0 ? fo__setting_unknown(&reader, s, name)
                            : fo__setting_read(&reader, s, k, value)))
            return NULL;
    }
    if (fo__settings_read(&reader, s, net->more, row->kind.image ? "neck" : NULL) != FO_OK)
        return NULL;
    for (i = 0; i < fields; i++)
        *field[i].at = (int)fo_setting_value(s, field[i].name);
    k         = fo__setting_index(s->list, "act");
    net->act  = NULL;
    net->more = NULL;
    if (k < 0 || s->list[k].words == NULL)
        return &row->kind;
    fo__word_at(s->list[k].words, (int)s->value[k], text);
    net->act = fo__strdup(arena, text);
    return net->act ? &row->kind : NULL;
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

typedef struct fo__mask_row {
    fo__row_head head;
    fo_mask_fn   fn;           /* NULL: its states are listed, by fo_mask.map or in the text */
    void        *user;
    double       input_factor; /* of the first batch norm of a network behind it */
    int          shuffled;     /* the map is shuffled, by phase/2 */
    int          image;        /* it is about rows and columns */
} fo__mask_row;

/* One row a mask: name, function, input_factor, shuffled, image. Behind a checkerboard half of
   what a network sees is zero: RealNVP doubles the rest. */
#define FO__MASKS(X)                                                                               \
    X(checkerboard, checkerboard, 2, 0, 1)                                                         \
    X(channel, channel, 1, 0, 0)                                                                   \
    X(horizontal, horizontal, 1, 0, 1)                                                             \
    X(vertical, vertical, 1, 0, 1)                                                                 \
    X(cycle, cycle, 1, 0, 1)                                                                       \
    X(halves, halves, 1, 0, 0)                                                                     \
    X(alternating, alternating, 1, 0, 0)                                                           \
    X(random, halves, 1, 1, 0)

fo_result fo_register_mask(fo_context *fo, const char *name, fo_mask_fn fn, void *user) {
    fo__mask_row *row;
    if (!fo__begin(fo) || fn == NULL)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_register_mask: a function is needed");
    row = (fo__mask_row *)fo__row_add(fo, FO__A_MASK, "fo_register_mask", name, sizeof *row);
    if (row == NULL)
        return fo->failed;
    row->fn           = fn;
    row->user         = user;
    row->input_factor = 1;
    return FO_OK;
}

static fo_result fo__masks_register(fo_context *fo) {
    fo__mask_row *row;
#define FO__ROW(name, function, factor, shuffle, on_images)                                        \
    if (fo_register_mask(fo, #name, fo__mask_##function, NULL) != FO_OK)                           \
        return FO_ERR_MEMORY;                                                                      \
    row               = (fo__mask_row *)fo__row_named(fo, FO__A_MASK, #name);                      \
    row->input_factor = factor;                                                                    \
    row->shuffled     = shuffle;                                                                   \
    row->image        = on_images;
    FO__MASKS(FO__ROW)
#undef FO__ROW
    row = (fo__mask_row *)fo__row_add(fo, FO__A_MASK, "fo_register_mask", "map", sizeof *row);
    if (row)
        row->input_factor = 1;
    return fo->failed;
}

/* Are the states of a mask of this kind listed, one by one? */
static int fo__mask_listed(const fo_context *fo, const char *kind) {
    const fo__mask_row *row = (fo__mask_row *)fo__row_named(fo, FO__A_MASK, kind);
    return row && row->fn == NULL;
}

/* How many elements are conditioned on and changed; a map that cannot work is an error. */
static fo_result fo__mask_counts(fo_context *fo, const char *kind, const unsigned char *map,
                                 fo_shape shape, int *condition, int *change) {
    int64_t i, n = fo_shape_count(shape);
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
                        "elements: both must be at least 1%s", kind, *condition, *change,
                        (long long)n, shape.h * shape.w > 1 ? "" :
                        n == 1 ? "; single numbers (are they labels?) leave a coupling nothing to "
                        "look at" : "; for vectors there are halves, alternating and random, and "
                        "the preset tabular");
    return FO_OK;
}

fo_result fo_mask_fill(fo_context *fo, fo_mask mask, fo_shape shape, unsigned char *map) {
    int64_t       n = fo_shape_count(shape), i = 0;
    int           c, y, x, condition, change;
    fo__mask_row *row;
    if (!fo__begin(fo) || map == NULL || mask.kind == NULL || mask.phase < 0 || n < 1)
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_mask_fill: a kind, a phase from 0 up, a shape and "
                        "room for the states are needed");
    row = (fo__mask_row *)fo__row_find(fo, NULL, FO__A_MASK, mask.kind);
    if (row == NULL)
        return fo->failed;
    if (row->fn == NULL) {
        if (mask.map == NULL)
            return fo__fail(fo, FO_ERR_ARGUMENT, "a mask of kind %s needs a map", mask.kind);
        memcpy(map, mask.map, (size_t)n);
        return fo__mask_counts(fo, mask.kind, map, shape, &condition, &change);
    }
    fo__enter(fo);
    for (c = 0; c < shape.c; c++)
        for (y = 0; y < shape.h; y++)
            for (x = 0; x < shape.w; x++)
                map[i++] = (unsigned char)row->fn(row->user, shape, mask.phase, c, y, x);
    if (fo__leave(fo) != FO_OK)
        return fo->failed;
    if (row->shuffled)
        fo__shuffle(map, n, 1, 0, FO__STREAM_MASK + (uint64_t)(mask.phase / 2));
    return fo__mask_counts(fo, mask.kind, map, shape, &condition, &change);
}

size_t fo_mask_print(const unsigned char *map, fo_shape shape, char *text, size_t size) {
    static const char symbol[] = "o#.";
    size_t            at = 0;
    int               c, y, x;
    if (text == NULL)
        size = 0;
    for (y = map ? 0 : shape.h; y < shape.h; y++)
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

/* Height and width first, 1 or 3 channels last: what NumPy calls N x H x W x C. */
static int fo__channels_last(fo_shape s) {
    return (s.w == 1 || s.w == 3) && s.c >= 8 && s.h >= 8 && s.c <= 2 * s.h && s.h <= 2 * s.c;
}

/* ================================================================================================
   >>layers        what every layer is made of; the layers that come before all that learns

   Purpose    the chain x -> z runs through one state buffer [rows,D], changed in place; a layer
              saves what it overwrites, so that backward walks the chain back bit by bit
   Invariants rows are independent; logdet of each (layer, row) accumulates in double; results do
              not depend on how rows are split over threads
   Callers    >>flow builds layers, >>workspace runs them (fo__pass)
   ============================================================================================= */
#define FO__CHUNK 128 /* elements worked on at a time, in buffers on the stack */

typedef struct fo__layer {
    fo_layer           see;      /* what its hooks see */
    const char        *text;     /* its line */
    int                learns;   /* it has parameters */
    int64_t            measured; /* buffer of a layer that measures: 0 until that was done */
    fo_mask            mask;     /* of a layer that conditions, */
    fo_net             net;
    const fo_net_kind *net_kind; /* NULL: it does not */
    int                n_in;     /* elements that its network sees, */
    int               *in_at;    /* and their places in a row; -1: a zero */
} fo__layer;

/* An st-network on a tape, for so many rows. */
typedef struct fo__net_tape { fo_tape *tape; fo_tensor *in, *out; int rows; } fo__net_tape;

typedef struct fo__slot { /* what a workspace holds for a layer */
    fo_pass          pass;
    const fo__layer *layer;
    fo__net_tape    *tapes; /* [ws->n_tapes], the smallest first; NULL: no st-network */
    fo__net_tape     net;   /* the one in use */
    fo_real         *kept;
    int              recompute; /* its activations share a block and are recomputed in backward */
} fo__slot;

typedef struct fo__layer_row { fo__row_head head; fo_layer_kind kind; } fo__layer_row;

fo_result fo_register_layer(fo_context *fo, const fo_layer_kind *kind) {
    fo_setting     settings[FO_MAX_SETTINGS];
    fo__layer_row *row;
    memset(settings, 0, sizeof settings);
    if (!fo__begin(fo) || kind == NULL || kind->conditions < 0 || (kind->front && kind->conditions))
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_register_layer: a kind is needed, and a layer "
                        "that conditions has a backward: it is no front layer");
    if (fo__settings_copy(fo, "fo_register_layer", kind->settings, settings) != FO_OK)
        return fo->failed;
    row = (fo__layer_row *)fo__row_add(fo, FO__A_LAYER, "fo_register_layer", kind->name,
                                       sizeof *row);
    if (row == NULL)
        return fo->failed;
    row->kind      = *kind;
    row->kind.name = row->head.name;
    if (kind->advice)
        row->kind.advice = fo__strdup(&fo->arena, kind->advice);
    memcpy(row->kind.settings, settings, sizeof settings);
    return fo->failed;
}

/* A kind with nothing but its name: each block below fills in what its layer has. */
static fo_layer_kind fo__layer_kind_of(const char *name) {
    fo_layer_kind kind;
    memset(&kind, 0, sizeof kind);
    kind.name = name;
    return kind;
}

static fo_setting fo__setting_of(const char *name, double usual, double least, double most,
                                 int flags, const char *words) {
    fo_setting s;
    s.name = name, s.usual = usual, s.least = least, s.most = most;
    s.flags = flags, s.words = words;
    return s;
}

typedef void fo__pass_fn(fo_pass *pass, int64_t begin, int64_t end);
typedef struct fo__pass_call { fo_pass *pass; fo__pass_fn *fn; } fo__pass_call;

static void fo__pass_range(void *arg, int64_t begin, int64_t end) {
    fo__pass_call *call = (fo__pass_call *)arg;
    call->fn(call->pass, begin, end);
}

static void fo__pass_rows(fo_pass *pass, fo__pass_fn *fn) {
    fo__pass_call call;
    call.pass = pass;
    call.fn   = fn;
    fo_parallel_for(pass->fo, pass->rows, fo__grain(5 * FO__NS_ELEMENT * (double)pass->size),
                    fo__pass_range, &call);
}

/* Encode copies the rows of x into save, backward copies them back. */
static void fo__pass_keep(const fo_pass *p, int64_t row) {
    const size_t bytes = (size_t)p->layer->width * sizeof(fo_real);
    fo_real     *x = p->x + row * p->size, *save;
    if (p->save == NULL)
        return;
    save = p->save + row * p->layer->save;
    if (p->direction == FO_BACKWARD)
        memcpy(x, save, bytes);
    else if (p->direction == FO_ENCODE)
        memcpy(save, x, bytes);
}

/* Sum of dLoss/d(logdet) over the rows. */
static double fo__dlogdet_sum(const fo_pass *p) {
    double  sum = 0;
    int64_t r;
    for (r = 0; r < p->rows; r++)
        sum += p->dlogdet[r];
    return sum;
}

/* ---- dequantize: y = (x+u)/256, logdet = -D log 256 ------------------------------------------ */

static fo_result fo__dequantize_shape(fo_layer *layer) {
    if (layer->index != 0)
        return fo__fail(layer->fo, FO_ERR_ARGUMENT, "dequantize must be the first layer");
    return FO_OK;
}

/* Are these all whole numbers from 0 to 255? Adding and taking off a number whose neighbours are 1
   apart rounds. NaN is left to those who look for it. */
static int fo__are_pixels(const fo_real *x, int64_t n) {
    const fo_real big = sizeof(fo_real) == 8 ? (fo_real)4503599627370496.0 : (fo_real)8388608;
    fo_real       off = 0; /* of all: compilers make vectors of this */
    int64_t       i;
    for (i = 0; i < n; i++) {
        fo_real whole = x[i] + big, d;
        whole -= big;
        d = whole < x[i] ? x[i] - whole : whole - x[i];
        d = x[i] < 0 || x[i] > 255 ? 1 : d;
        off = d > off ? d : off;
    }
    return !(off > 0);
}

/* Anything else is not what the noise was made for: log_prob would mean nothing. */
static void fo__dequantize_before(fo_pass *p) {
    int64_t r, i;
    if (p->direction != FO_ENCODE || p->any_values)
        return;
    for (r = 0; r < p->rows; r++) {
        const fo_real *x = p->x + r * p->size;
        if (fo__are_pixels(x, p->size))
            continue;
        for (i = 0; fo__are_pixels(x + i, 1);)
            i++;
        fo__fail(p->fo, FO_ERR_ARGUMENT, "sample %lld has the value %g at element %lld: dequantize "
                 "takes whole numbers from 0 to 255; multiply pixels from 0..1 by 255, round what "
                 "was decoded, or use standardize instead",
                 (long long)fo__origin(p->negative && r >= p->positive ? p->negative : p->data,
                                      p->sample[r]),
                 (double)x[i], (long long)i);
        return;
    }
}

/* One row: the noise that all rows share, or its own. */
static void fo__dequantize_row(const fo_pass *p, int64_t r) {
    fo_real *x = p->x + r * p->size, own[FO__CHUNK];
    int64_t  i, j, n;
    for (i = 0; i < p->size; i += n) {
        const fo_real *u = p->noise ? p->noise + i : own;
        n = FO__MIN(FO__CHUNK, p->size - i);
        if (p->middle && p->noise == NULL)
            for (j = 0; j < n; j++)
                own[j] = (fo_real)0.5;
        if (p->noise == NULL && !p->middle)
            fo_random_uniform(p->seed, p->stream[r], (uint64_t)i, n, own);
        for (j = 0; j < n; j++)
            x[i + j] = (x[i + j] + u[j]) / 256;
    }
}

/* Back to the middle of the pixel's cell, so that rounding gives the pixel. */
static void fo__dequantize_rows(fo_pass *p, int64_t begin, int64_t end) {
    int64_t r, i;
    double  logdet = (double)p->size * log(256.0);
    for (r = begin; r < end; r++) {
        fo_real *x = p->x + r * p->size;
        if (p->direction == FO_ENCODE)
            fo__dequantize_row(p, r);
        if (p->direction == FO_DECODE)
            for (i = 0; i < p->size; i++) {
                fo_real grey = x[i] * 256 - (fo_real)0.5;
                x[i] = grey < 0 ? 0 : grey > 255 ? 255 : grey;
            }
        p->logdet[r] = p->direction == FO_ENCODE ? -logdet : logdet;
    }
}

static fo_layer_kind fo__dequantize_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("dequantize");
    kind.front  = 1;
    kind.shape  = fo__dequantize_shape;
    kind.before = fo__dequantize_before;
    kind.rows   = fo__dequantize_rows;
    return kind;
}

/* ---- logit: v = 1/2 + (1-2a)(y-1/2), h = log v - log(1-v), dh/dy = (1-2a)/(v(1-v)) ----------- */

/* n elements of a row; returns the sum of log dh/dy, without its constant, in this direction. */
static double fo__logit_part(const fo__kernels *kern, fo_direction dir, fo_real squash, int64_t n,
                             fo_real *x) {
    fo_real v[FO__CHUNK], w[FO__CHUNK];
    int64_t j;
    if (dir == FO_ENCODE) {
        for (j = 0; j < n; j++) {
            v[j] = (fo_real)0.5 + squash * (x[j] - (fo_real)0.5);
            w[j] = 1 - v[j];
        }
        kern->log(n, v, v);
        kern->log(n, w, w);
        kern->sub(n, v, w, x);
        return -kern->sum(n, v) - kern->sum(n, w);
    }
    kern->scale(n, -1, x, w);
    kern->softplus(n, w, v); /* -log v     */
    kern->softplus(n, x, w); /* -log(1-v)  */
    kern->sigmoid(n, x, x);
    for (j = 0; j < n; j++)
        x[j] = (fo_real)0.5 + (x[j] - (fo_real)0.5) / squash;
    return -kern->sum(n, v) - kern->sum(n, w);
}

static void fo__logit_rows(fo_pass *p, int64_t begin, int64_t end) {
    const fo_real squash   = (fo_real)(1 - 2 * p->layer->settings.value[0]);
    const double  constant = (double)p->size * log((double)squash);
    int64_t       r, i;
    for (r = begin; r < end; r++) {
        double sum = p->direction == FO_ENCODE ? constant : -constant;
        for (i = 0; i < p->size; i += FO__CHUNK)
            sum += fo__logit_part(p->fo->kernels, p->direction, squash,
                                  FO__MIN(FO__CHUNK, p->size - i), p->x + r * p->size + i);
        p->logdet[r] = sum;
    }
}

static fo_layer_kind fo__logit_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("logit");
    kind.front       = 1;
    kind.advice      = "logit takes numbers from 0 to 1: for pixels from 0 to 255 add dequantize "
                       "before it";
    kind.settings[0] = fo__setting_of("alpha", 0.05, 0, 0.5, FO_SETTING_REAL | FO_SETTING_SHOWN,
                                      NULL);
    kind.rows        = fo__logit_rows;
    return kind;
}

/* ---- standardize: y = (x - mean)/std, logdet = -sum log std ------------------------------------

   An element that was constant in the training data has std 0 and no scale that could be known:
   for it y = asinh((x - mean)/width), width = max(|mean|, 1)/100. A sample that differs there is
   some 10 to 100 nats less likely, and never astronomically so. In training such a y has noise
   N(0,1) added: without it the flow would learn to blow up what it never saw change. */

typedef struct fo__standardize { int64_t mean, rest, std; } fo__standardize;

double fo_pass_input(const fo_pass *p, int64_t r, int64_t i) {
    const fo_data *data;
    if (p == NULL)
        return 0;
    data = p->negative && r >= p->positive ? p->negative : p->data;
    return data ? fo__value(data->type, data->rows, (size_t)(p->sample[r] * p->size + i))
                : (double)p->x[r * p->size + i];
}

static fo_result fo__standardize_shape(fo_layer *layer) {
    fo__standardize *own = (fo__standardize *)fo_layer_alloc(layer, sizeof *own);
    if (own == NULL)
        return FO_ERR_MEMORY;
    layer->own  = own;
    layer->measuring = 2 * layer->width; /* mean and sum of squares */
    own->mean   = fo_layer_buffer(layer, "mean", 1, &layer->width,
                                  fo_init_of(FO_INIT_CONSTANT, 0));
    own->std    = fo_layer_buffer(layer, "std", 1, &layer->width, fo_init_of(FO_INIT_CONSTANT, 1));
    own->rest   = fo_layer_optional(layer, "mean_rest", layer->width, 0);
    return own->rest < 0 ? layer->fo->failed : FO_OK;
}

/* Mean and standard deviation of element i go into the buffers; 0 where all that differs is
   rounding of the data. */
static void fo__standardize_set(fo_pass *p, int64_t i, double mean, double std) {
    const fo__standardize *own = (const fo__standardize *)p->layer->own;
    const int    wide  = p->data ? p->data->type == FO_F64 : sizeof(fo_real) == 8;
    const double least = wide ? 1e-15 : 2e-7;
    fo_real     *to    = p->buffers + i;
    if (!(fabs(mean) < 1e37 && std < 1e37))
        fo__fail(p->fo, FO_ERR_NUMERIC, "element %lld of the data has mean %g and standard "
                 "deviation %g: too large for standardize; scale it first", (long long)i, mean,
                 std);
    to[own->mean] = (fo_real)mean;
    to[own->rest] = (fo_real)(mean - (double)to[own->mean]);
    to[own->std]  = (fo_real)(std > least * fabs(mean) ? std : 0);
}

/* Over all the data, kept up to date sample by sample (Welford 1962): nothing cancels, wherever
   the data lie. */
static void fo__standardize_measure(fo_pass *p, int64_t seen, int64_t count) {
    double *mean = p->work, *square = mean + p->layer->width;
    int64_t r, i, n = p->layer->width;
    if (seen == 0)
        memset(mean, 0, (size_t)(2 * n) * sizeof *mean);
    for (r = 0; r < p->rows; r++)
        for (i = 0; i < n; i++) {
            double x = fo_pass_input(p, r, i), d = x - mean[i];
            mean[i] += d / (double)(seen + r + 1);
            square[i] += d * (x - mean[i]);
        }
    if (seen + p->rows == count)
        for (i = 0; i < n; i++)
            fo__standardize_set(p, i, mean[i], sqrt(square[i] / (double)count));
}

/* Mean of element i, as exact as it was measured, and what its differences are divided by. */
static double fo__standardize_mean(const fo_pass *p, int64_t i) {
    const fo__standardize *own = (const fo__standardize *)p->layer->own;
    return (double)p->buffers[own->mean + i] + (double)p->buffers[own->rest + i];
}

static double fo__standardize_width(const fo_pass *p, int64_t i) {
    const fo__standardize *own = (const fo__standardize *)p->layer->own;
    const double           std = (double)p->buffers[own->std + i];
    return std > 0 ? std : FO__MAX(fabs(fo__standardize_mean(p, i)), 1) / 100;
}

/* One row; returns the part of the logdet of encode that depends on it. */
static double fo__standardize_row(fo_pass *p, int64_t r) {
    const fo__standardize *own = (const fo__standardize *)p->layer->own;
    fo_real               *x = p->x + r * p->size, noise;
    double                 logdet = 0, mean, width, u;
    int64_t                i;
    for (i = 0; i < p->size; i++) {
        int constant = !(p->buffers[own->std + i] > 0);
        mean  = fo__standardize_mean(p, i);
        width = fo__standardize_width(p, i);
        if (p->direction == FO_DECODE) {
            u    = constant ? sinh((double)x[i]) : (double)x[i];
            x[i] = (fo_real)(u * width + mean);
        } else {
            u    = (fo_pass_input(p, r, i) - mean) / width;
            x[i] = (fo_real)(constant ? asinh(u) : u);
        }
        if (constant)
            logdet -= log(hypot(1, u)); /* d asinh(u)/du = 1/sqrt(1 + u^2) */
        if (constant && p->direction == FO_ENCODE && p->grads) {
            fo_random_normal(p->seed, FO__STREAM_CONSTANT + p->stream[r], (uint64_t)i, 1, &noise);
            x[i] += noise;
        }
    }
    return logdet;
}

static void fo__standardize_rows(fo_pass *p, int64_t begin, int64_t end) {
    double  sum = 0, logdet;
    int64_t r, i;
    for (i = 0; i < p->size; i++)
        sum -= log(fo__standardize_width(p, i));
    for (r = begin; r < end; r++) {
        logdet       = sum + fo__standardize_row(p, r);
        p->logdet[r] = p->direction == FO_DECODE ? -logdet : logdet;
    }
}

static int fo__standardize_constant(const fo_layer *layer, const fo_real *buffers, int64_t i) {
    return !(buffers[((const fo__standardize *)layer->own)->std + i] > 0);
}

static fo_layer_kind fo__standardize_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("standardize");
    kind.front    = 1;
    kind.shape    = fo__standardize_shape;
    kind.measure  = fo__standardize_measure;
    kind.rows     = fo__standardize_rows;
    kind.constant = fo__standardize_constant;
    return kind;
}

/* ---- normalize: y = x sqrt(D)/|x|, logdet = 0 ---------------------------------------------------

   How long a feature vector is says more about contrast than about content, so only its direction
   is kept. This is a projection: no Jacobian belongs to it, and what comes behind gives a density
   of directions. Zero stays zero. */

static void fo__normalize_rows(fo_pass *p, int64_t begin, int64_t end) {
    const double wanted = sqrt((double)p->size);
    int64_t      r, i;
    if (p->direction == FO_ENCODE)
        for (r = begin; r < end; r++) {
            fo_real *x = p->x + r * p->size;
            double   most = 0, sum = 0;
            for (i = 0; i < p->size; i++)
                most = FO__MAX(most, fabs((double)x[i]));
            if (!(most > 0))
                continue;
            for (i = 0; i < p->size; i++)
                sum += (double)x[i] / most * ((double)x[i] / most);
            for (i = 0; i < p->size; i++)
                x[i] = (fo_real)((double)x[i] / most * (wanted / sqrt(sum)));
        }
}

static fo_layer_kind fo__normalize_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("normalize");
    kind.front    = 1;
    kind.projects = 1;
    kind.rows     = fo__normalize_rows;
    return kind;
}

/* ---- whiten: y_i = v_i (x - mean)/sqrt(w_i'), logdet = -1/2 sum log w_i' ------------------------

   v_i and w_i are eigenvectors and eigenvalues of the covariance of the training data, the largest
   first; w' = (1 - s) w + s mean(w). The small eigenvalues of a few thousand samples in a thousand
   dimensions are much too small, and the shrinkage s mends that (Ledoit and Wolf 2004): it is the
   one under which every fifth sample is likeliest when the others alone are measured. */
#define FO__WHITEN_MOST 4096

typedef struct fo__whiten { int64_t mean, variance, vectors, shrink; } fo__whiten;

#define FO__SCATTER_WORK (1 + FO__EIGEN_WORK)

/* What measuring needs: sums over all samples and over every fifth, of values and of products. */
typedef struct fo__scatter {
    double *all, *held, *cov;            /* [D][D] */
    double *sum, *held_sum, *mean, *work; /* [D], work[FO__SCATTER_WORK * D] */
    double *origin; /* [D]: from here the values are counted, so that nothing cancels */
} fo__scatter;

static fo__scatter fo__scatter_at(double *work, int64_t d) {
    fo__scatter s;
    s.all    = work, s.held = s.all + d * d, s.cov = s.held + d * d;
    s.sum    = s.cov + d * d, s.held_sum = s.sum + d;
    s.origin = s.held_sum + d, s.mean = s.origin + d, s.work = s.mean + d;
    return s;
}

static fo_result fo__whiten_shape(fo_layer *layer) {
    const fo_init zero = fo_init_of(FO_INIT_CONSTANT, 0);
    fo__whiten   *own  = (fo__whiten *)fo_layer_alloc(layer, sizeof *own);
    int64_t       dim[2], one = 1;
    dim[0] = dim[1] = layer->width;
    if (own == NULL)
        return FO_ERR_MEMORY;
    if (layer->width > FO__WHITEN_MOST)
        return fo__fail(layer->fo, FO_ERR_SHAPE, "whiten of %lld elements: up to %d are possible",
                        (long long)layer->width, FO__WHITEN_MOST);
    layer->own       = own;
    layer->measuring = 3 * dim[0] * dim[0] + (5 + FO__SCATTER_WORK) * dim[0];
    own->mean     = fo_layer_buffer(layer, "mean", 1, dim, zero);
    own->variance = fo_layer_buffer(layer, "variance", 1, dim, fo_init_of(FO_INIT_CONSTANT, 1));
    own->vectors  = fo_layer_buffer(layer, "vectors", 2, dim, zero);
    own->shrink   = fo_layer_buffer(layer, "shrink", 1, &one, zero);
    return own->shrink < 0 ? layer->fo->failed : FO_OK;
}

/* Adds rows first, first + step ... of the batch and their products to sum and product. */
static void fo__whiten_add(fo_pass *p, int64_t first, int64_t step, double *sum, double *product) {
    const int64_t  d = p->size, n = (p->rows - first + step - 1) / step;
    const fo_real *x = p->x + first * d;
    int64_t        i, j, m;
    for (i = 0; i < n; i++)
        for (j = 0; j < d; j++)
            sum[j] += (double)x[i * step * d + j];
    for (i = 0; i < d && n > 0; i += m) { /* as many rows of the matrix as spare has room for */
        m = FO__MIN(p->rows, d - i);
        fo__gemm(p->fo, m, d, n, x + i, 1, step * d, x, step * d, 1, p->spare, d, NULL, 0);
        for (j = 0; j < m * d; j++)
            product[i * d + j] += (double)p->spare[j];
    }
}

/* s.cov := covariance of n samples with these sums and products, less those of `less`; s.mean :=
   their mean. */
static void fo__whiten_covariance(const fo__scatter *s, int64_t d, int64_t n, int without_held) {
    const double share = 1 / (double)n, less = without_held ? 1 : 0;
    int64_t      i, j;
    for (i = 0; i < d; i++)
        s->mean[i] = share * (s->sum[i] - less * s->held_sum[i]);
    for (i = 0; i < d; i++)
        for (j = 0; j < d; j++)
            s->cov[i * d + j] = share * (s->all[i * d + j] - less * s->held[i * d + j]) -
                                s->mean[i] * s->mean[j];
}

static double fo__shrunk(double w, double mean, double s) {
    return (1 - s) * FO__MAX(w, 0) + s * mean;
}

/* The shrinkage, of six, under which the n held samples are likeliest, seen from the eigenvectors
   in s.cov and the eigenvalues w[d] of the others. */
static double fo__whiten_choose(const fo__scatter *s, int64_t d, int64_t n, const double *w) {
    const double candidate[] = {0.3, 0.1, 0.03, 0.01, 0.003, 0.001};
    double      *spread = s->work + d, *row = spread + d; /* of the held ones, along each v */
    double       mean = 0, least = HUGE_VAL, best = candidate[0];
    int64_t      i, j, k;
    for (i = 0; i < d; i++) {
        const double *v     = s->cov + i * d;
        double        along = 0, held = 0;
        memset(row, 0, (size_t)d * sizeof *row);
        for (j = 0; j < d; j++)
            for (k = 0; k < d; k++)
                row[k] += v[j] * s->held[j * d + k];
        for (j = 0, spread[i] = 0; j < d; j++) {
            spread[i] += v[j] * row[j] / (double)n;
            held += v[j] * s->held_sum[j] / (double)n;
            along += v[j] * s->mean[j];
        }
        spread[i] += along * (along - 2 * held);
        mean += FO__MAX(w[i], 0) / (double)d;
    }
    for (k = 0; k < 6; k++) {
        double sum = 0;
        for (i = 0; i < d; i++) {
            const double width = fo__shrunk(w[i], mean, candidate[k]);
            sum += spread[i] / width + log(width);
        }
        if (sum < least)
            least = sum, best = candidate[k];
    }
    return best;
}

/* All samples have been seen: what the buffers get. */
static void fo__whiten_set(fo_pass *p, int64_t count) {
    const fo__whiten *own  = (const fo__whiten *)p->layer->own;
    const int64_t     d    = p->size, held = count / 5;
    const fo__scatter s    = fo__scatter_at(p->work, d);
    double            best = 0.3, all = 0;
    int64_t           i;
    fo__whiten_covariance(&s, d, count, 0);
    for (i = 0; i < d; i++)
        all += s.cov[i * d + i];
    if (!(all > 1e-12 * (double)d && all < 1e30)) {
        fo__fail(p->fo, FO_ERR_NUMERIC, "whiten: the variances of %lld samples add up to %g: it "
                 "needs two samples that differ, and numbers near 1 (normalize or standardize "
                 "before it)", (long long)count, all);
        return;
    }
    if (held > 0) {
        fo__whiten_covariance(&s, d, count - held, 1);
        if (fo__eigen(p->fo, s.cov, d, s.work, s.work + d))
            best = fo__whiten_choose(&s, d, held, s.work);
        fo__whiten_covariance(&s, d, count, 0);
    }
    if (!fo__eigen(p->fo, s.cov, d, s.work, s.work + d)) {
        fo__fail(p->fo, FO_ERR_NUMERIC, "whiten: the covariance has numbers that are not finite");
        return;
    }
    for (i = 0; i < d; i++) {
        p->buffers[own->mean + i]     = (fo_real)(s.origin[i] + s.mean[i]);
        p->buffers[own->variance + i] = (fo_real)FO__MAX(s.work[i], 0);
    }
    for (i = 0; i < d * d; i++)
        p->buffers[own->vectors + i] = (fo_real)s.cov[i];
    p->buffers[own->shrink] = (fo_real)best;
}

static void fo__whiten_measure(fo_pass *p, int64_t seen, int64_t count) {
    const int64_t     d = p->size;
    const fo__scatter s = fo__scatter_at(p->work, d);
    int64_t           r, i;
    if (seen == 0)
        memset(p->work, 0, (size_t)p->layer->measuring * sizeof *p->work);
    for (r = 0; r < p->rows && seen == 0; r++)
        for (i = 0; i < d; i++)
            s.origin[i] += (double)p->x[r * d + i] / (double)p->rows;
    for (i = 0; i < d && seen == 0; i++)
        s.origin[i] = (double)(fo_real)s.origin[i];
    for (r = 0; r < p->rows; r++)
        for (i = 0; i < d; i++)
            p->x[r * d + i] = (fo_real)((double)p->x[r * d + i] - s.origin[i]);
    fo__whiten_add(p, 0, 1, s.sum, s.all);
    r = 4 - seen % 5; /* samples 4, 9, 14 ... are held */
    if (r < p->rows)
        fo__whiten_add(p, r, 5, s.held_sum, s.held);
    if (seen + p->rows == count)
        fo__whiten_set(p, count);
}

static void fo__whiten_before(fo_pass *p) {
    const fo__whiten *own = (const fo__whiten *)p->layer->own;
    const int64_t     d   = p->size;
    const fo_real    *mean = p->buffers + own->mean, *variance = p->buffers + own->variance;
    const fo_real    *v = p->buffers + own->vectors;
    const double      shrink = (double)p->buffers[own->shrink];
    const int         decode = p->direction == FO_DECODE;
    double            average = 0, logdet = 0;
    int64_t           r, i;
    for (i = 0; i < d; i++)
        average += (double)variance[i] / (double)d;
    for (i = 0; i < d; i++) {
        const double std = sqrt(fo__shrunk((double)variance[i], average, shrink));
        logdet -= log(std);
        for (r = 0; r < p->rows; r++) {
            fo_real *x = p->x + r * d + i;
            *x = decode ? (fo_real)((double)*x * std) : *x - mean[i];
        }
    }
    fo__gemm(p->fo, p->rows, d, d, p->x, d, 1, v, decode ? d : 1, decode ? 1 : d, p->spare, d, NULL,
             0);
    for (i = 0; i < d; i++) {
        const double std = sqrt(fo__shrunk((double)variance[i], average, shrink));
        for (r = 0; r < p->rows; r++) {
            const fo_real y = p->spare[r * d + i];
            p->x[r * d + i] = decode ? y + mean[i] : (fo_real)((double)y / std);
        }
    }
    for (r = 0; r < p->rows; r++)
        p->logdet[r] = decode ? -logdet : logdet;
}

static fo_layer_kind fo__whiten_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("whiten");
    kind.front   = 1;
    kind.mixes   = 1;
    kind.shape   = fo__whiten_shape;
    kind.measure = fo__whiten_measure;
    kind.before  = fo__whiten_before;
    return kind;
}

/* ================================================================================================
   >>couplings     layers that condition: a mask, an st-network, and what they do with it

   Purpose    the network sees x[in_at] and returns, for every changed element, as many outputs as
              the layer's row says: s and t for a coupling, t alone for an additive one
   Invariants what a layer conditions on is in the state in every direction through it, so that the
              network can always be run; it runs on all rows of its tape, and those past the
              batch's rows hold elements of earlier calls and are ignored
   Papers     Dinh et al. 2017 (affine coupling), Dinh et al. 2014 (additive coupling)
   ============================================================================================= */

/* Does the mask give each channel one state? Then an image net sees and makes whole channels. */
static int fo__mask_by_channel(const fo_layer *l) {
    int i, pixels = l->shape.h * l->shape.w;
    for (i = 0; i < l->shape.c * pixels; i++)
        if (l->map[i] != l->map[i / pixels * pixels])
            return 0;
    return 1;
}

/* The index lists of a layer from its map: what its network sees, what changes, and where in the
   network's output the numbers for that are. */
static fo_result fo__conditions_lists(fo__layer *layer, fo__arena *arena, int condition) {
    fo_layer *l = &layer->see;
    const int size = (int)l->width, outputs = l->kind->conditions;
    const int whole = l->image && !fo__mask_by_channel(l); /* whole images in and out */
    int       i, k, in = 0, change = 0, *at, *change_at, *out_at;
    layer->n_in = whole ? size : condition;
    l->n_out    = (int64_t)outputs * (whole ? size : l->n_change);
    at = (int *)fo__arena_alloc(arena, fo__times(layer->n_in + (1 + outputs) * (int64_t)l->n_change,
                                                 sizeof(int)));
    if (at == NULL)
        return FO_ERR_MEMORY;
    layer->in_at = at;
    change_at    = at + layer->n_in;
    out_at       = change_at + l->n_change;
    for (i = 0; i < size; i++) {
        if (l->map[i] == FO_CONDITION)
            layer->in_at[in++] = i;
        else if (whole)
            layer->in_at[in++] = -1;
        if (l->map[i] != FO_CHANGE)
            continue;
        for (k = 0; k < outputs; k++)
            out_at[k * l->n_change + change] = k * (whole ? size : l->n_change) +
                                               (whole ? i : change);
        change_at[change++] = i;
    }
    l->change_at = change_at;
    l->out_at    = out_at;
    return FO_OK;
}

/* Mask, network and index lists, before the layer's own hook is called. */
static fo_result fo__conditions_setup(fo__layer *layer, const char *where, fo__arena *arena) {
    fo_layer      *l  = &layer->see;
    fo_context    *fo = l->fo;
    unsigned char *map;
    fo__mask_row  *mask;
    int            condition;
    layer->mask.kind = fo__strdup(arena, layer->mask.kind ? layer->mask.kind : "");
    layer->net_kind  = layer->mask.kind ? fo__net_resolve(fo, where, arena, &layer->net) : NULL;
    map = layer->net_kind ? (unsigned char *)fo__arena_alloc(arena, (size_t)l->width) : NULL;
    if (map == NULL || fo_mask_fill(fo, layer->mask, l->shape, map) != FO_OK ||
        fo__mask_counts(fo, layer->mask.kind, map, l->shape, &condition, &l->n_change) != FO_OK)
        return fo->failed;
    mask     = (fo__mask_row *)fo__row_named(fo, FO__A_MASK, layer->mask.kind);
    l->map   = map;
    l->image = layer->net_kind->image;
    layer->mask.map         = map; /* the user's own need not stay */
    layer->net.input_factor = mask ? mask->input_factor : 1;
    return fo__conditions_lists(layer, arena, condition);
}

static void fo__net_gather(fo_pass *p, int64_t begin, int64_t end) {
    const fo__slot *slot = (const fo__slot *)p;
    int64_t         r;
    int             j, n = slot->layer->n_in;
    const int      *at = slot->layer->in_at;
    for (r = begin; r < end; r++) {
        const fo_real *state = p->x + r * p->size;
        fo_real       *x     = slot->net.in->data + r * n;
        for (j = 0; j < n; j++)
            x[j] = at[j] < 0 ? 0 : state[at[j]];
    }
}

/* The gradient of what the layer conditions on. */
static void fo__net_scatter(fo_pass *p, int64_t begin, int64_t end) {
    const fo__slot *slot = (const fo__slot *)p;
    int64_t         r;
    int             j, n = slot->layer->n_in;
    const int      *at = slot->layer->in_at;
    for (r = begin; r < end; r++) {
        fo_real       *dstate = p->dx + r * p->size;
        const fo_real *dx     = slot->net.in->grad + r * n;
        for (j = 0; j < n; j++)
            if (at[j] >= 0)
                dstate[at[j]] += dx[j];
    }
}

/* The st-network's output for what the state holds now, unless it is still there. */
static void fo__net_before(fo__slot *slot, const fo_norm *how) {
    fo_pass *p    = &slot->pass;
    fo_norm *norm = fo_tape_norm(slot->net.tape);
    if (p->direction != FO_BACKWARD || slot->recompute) {
        *norm           = *how;
        norm->recompute = p->direction != FO_ENCODE;
        norm->rows      = p->rows;
        fo__pass_rows(p, fo__net_gather);
        fo_forward(slot->net.tape);
    }
    p->net  = slot->net.out->data;
    p->dnet = p->direction == FO_BACKWARD ? slot->net.out->grad : NULL;
    if (p->dnet) { /* rows that are not there, outputs for elements that do not change */
        int64_t used = slot->layer->see.image ? 0 : p->rows, n = slot->layer->see.n_out;
        memset(p->dnet + used * n, 0, (size_t)((slot->net.rows - used) * n) * sizeof(fo_real));
    }
}

static void fo__net_after(fo__slot *slot) {
    if (slot->pass.direction != FO_BACKWARD)
        return;
    fo_backward(slot->net.tape, slot->net.out, NULL);
    if (slot->net.in->grad)
        fo__pass_rows(&slot->pass, fo__net_scatter);
}

/* ---- coupling: y = (x+t) exp(s), s = scale tanh(raw); additive: y = x+t ---------------------- */

typedef struct fo__coupling {
    int64_t scale, scale_v; /* parameters; -1: none */
    int     n_scale;
    int    *scale_at;       /* which scale belongs to a changed element */
} fo__coupling;

static fo_result fo__coupling_shape(fo_layer *layer) {
    const int     pixels = layer->shape.h * layer->shape.w, n = layer->n_change;
    const int     by_channel = layer->image && layer->n_out == n * (int64_t)2;
    fo__coupling *own = (fo__coupling *)fo_layer_alloc(layer, sizeof *own);
    int64_t       dim[3] = {1, 1, 1};
    int           j;
    if (own == NULL ||
        (own->scale_at = (int *)fo_layer_alloc(layer, fo__times(n, sizeof(int)))) == NULL)
        return FO_ERR_MEMORY;
    layer->own   = own;
    layer->save  = n;
    own->n_scale = by_channel ? n / pixels : pixels > 1 ? layer->shape.c : n;
    for (j = 0; j < n; j++)
        own->scale_at[j] = by_channel ? j / pixels : pixels > 1 ? layer->change_at[j] / pixels : j;
    dim[0]       = own->n_scale;
    own->scale_v = -1;
    if (!layer->image) {
        own->scale = fo_layer_param(layer, "scale", 1, dim, fo_init_of(FO_INIT_CONSTANT, 1));
        return own->scale < 0 ? layer->fo->failed : FO_OK;
    }
    own->scale   = fo_layer_param(layer, "rescale.weight_g", 3, dim, /* as in weight norms */
                                  fo_init_of(FO_INIT_ROW_NORMS, 1));
    own->scale_v = fo_layer_param(layer, "rescale.weight_v", 3, dim,
                                  fo_init_of(FO_INIT_CONSTANT, 1));
    return own->scale_v < 0 ? layer->fo->failed : FO_OK;
}

/* The scale of a coupling on images is weight-normed too: g * sign(v). */
static fo_real fo__coupling_scale(const fo_pass *p, const fo__coupling *own, int k) {
    fo_real scale = p->values[own->scale + k];
    return own->scale_v >= 0 && p->values[own->scale_v + k] < 0 ? -scale : scale;
}

/* Elements of a row by an ascending list of places: where they lie side by side, if they do, else
   copied to `room`. And back. */
static const fo_real *fo__taken(int n, const int *at, const fo_real *row, fo_real *room) {
    int i;
    if (at[n - 1] - at[0] == n - 1)
        return row + at[0];
    for (i = 0; i < n; i++)
        room[i] = row[at[i]];
    return room;
}

static void fo__put_back(int n, const int *at, const fo_real *from, fo_real *row) {
    int i;
    for (i = 0; i < n; i++)
        row[at[i]] = from[i];
}

/* The elements from the j-th on that are worked on at a time: of one scale, or each of its own.
   Their scales. */
static int fo__coupling_chunk(const fo_pass *p, int j, fo_real *scale) {
    const fo__coupling *own = (const fo__coupling *)p->layer->own;
    const int           n = p->layer->n_change, most = FO__MIN(FO__CHUNK, n - j);
    int                 m;
    for (m = 0; m < most; m++) {
        if (own->n_scale < n && own->scale_at[j + m] != own->scale_at[j])
            break;
        scale[m] = fo__coupling_scale(p, own, own->scale_at[j + m]);
    }
    return m;
}

/* Backward of m changed elements, see `uncouple`. The state goes back from y to the saved x; the
   gradients of the scales add up in a row of `spare`. */
static void fo__coupling_undo(const fo_pass *p, int64_t row, int j, int m, const fo_real *scale) {
    const fo_layer     *l   = p->layer;
    const fo__coupling *own = (const fo__coupling *)l->own;
    const int *s_at = l->out_at + j, *t_at = s_at + l->n_change, *at = l->change_at + j;
    fo_real   *state = p->x + row * p->size, *dstate = p->dx + row * p->size;
    fo_real   *dnet = p->dnet + row * l->n_out, *dscale = p->spare + row * p->size;
    fo_real    room[3][FO__CHUNK], dt[FO__CHUNK], draw[FO__CHUNK], part[FO__CHUNK];
    int        i;
    p->fo->kernels->uncouple(m, (fo_real)p->dlogdet[row], scale,
                             fo__taken(m, s_at, p->net + row * l->n_out, room[0]),
                             fo__taken(m, at, state, room[1]), fo__taken(m, at, dstate, room[2]),
                             dt, draw, part);
    fo__put_back(m, s_at, draw, dnet);
    fo__put_back(m, t_at, dt, dnet);
    fo__put_back(m, at, dt, dstate);
    fo__put_back(m, at, p->save + row * l->save + j, state);
    if (own->n_scale < l->n_change)
        dscale[own->scale_at[j]] += (fo_real)p->fo->kernels->sum(m, part);
    else
        for (i = 0; i < m; i++)
            dscale[own->scale_at[j + i]] = part[i];
}

static void fo__coupling_rows(fo_pass *p, int64_t begin, int64_t end) {
    const fo_layer *l = p->layer;
    const int       decode = p->direction == FO_DECODE, n = l->n_change;
    fo_real         scale[FO__CHUNK], y[FO__CHUNK], room[3][FO__CHUNK];
    int             j, m;
    int64_t         r;
    for (r = begin; r < end && p->direction == FO_BACKWARD; r++)
        memset(p->spare + r * p->size, 0,
               (size_t)((const fo__coupling *)l->own)->n_scale * sizeof *p->spare);
    for (r = begin; r < end && p->direction != FO_BACKWARD; r++)
        p->logdet[r] = 0;
    for (j = 0; j < n; j += m) {
        const int *at = l->change_at + j;
        m = fo__coupling_chunk(p, j, scale);
        for (r = begin; r < end; r++) {
            const fo_real *net = p->net + r * l->n_out, *x;
            fo_real       *state = p->x + r * p->size;
            double         sum;
            if (p->direction == FO_BACKWARD) {
                fo__coupling_undo(p, r, j, m, scale);
                continue;
            }
            x = fo__taken(m, at, state, room[0]);
            if (p->direction == FO_ENCODE && p->save)
                memcpy(p->save + r * l->save + j, x, (size_t)m * sizeof *x);
            sum = p->fo->kernels->couple(m, decode, scale,
                                         fo__taken(m, l->out_at + j, net, room[1]),
                                         fo__taken(m, l->out_at + n + j, net, room[2]), x, y);
            fo__put_back(m, at, y, state);
            p->logdet[r] += decode ? -sum : sum;
        }
    }
}

/* The gradient of the scales, summed over the rows. */
static void fo__coupling_after(fo_pass *p) {
    const fo__coupling *own = (const fo__coupling *)p->layer->own;
    int64_t             r;
    int                 k;
    for (k = 0; k < own->n_scale && p->direction == FO_BACKWARD; k++) {
        double sum = 0;
        for (r = 0; r < p->rows; r++)
            sum += (double)p->spare[r * p->size + k];
        if (own->scale_v >= 0) { /* g sign(v): v only says which sign */
            sum = p->values[own->scale_v + k] < 0 ? -sum : sum;
            p->grads[own->scale_v + k] = 0;
        }
        p->grads[own->scale + k] = (fo_real)sum;
    }
}

static void fo__coupling_explain(const fo_pass *p, int64_t r, fo_real *raw_s, fo_real *s,
                                 fo_real *t) {
    const fo_layer *l   = p->layer;
    const fo_real  *net = p->net + r * l->n_out;
    fo_real         scale[FO__CHUNK], th[FO__CHUNK];
    int             i, j, m;
    for (j = 0; j < l->n_change; j += m) {
        m = fo__coupling_chunk(p, j, scale);
        for (i = 0; i < m; i++)
            th[i] = net[l->out_at[j + i]];
        p->fo->kernels->tanh(m, th, th);
        for (i = 0; i < m; i++) {
            int at = l->change_at[j + i];
            raw_s[at] = net[l->out_at[j + i]];
            s[at]     = scale[i] * th[i];
            t[at]     = net[l->out_at[l->n_change + j + i]];
        }
    }
}

static fo_layer_kind fo__coupling_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("coupling");
    kind.conditions = 2;
    kind.shape      = fo__coupling_shape;
    kind.rows       = fo__coupling_rows;
    kind.after      = fo__coupling_after;
    kind.explain    = fo__coupling_explain;
    return kind;
}

static fo_result fo__additive_shape(fo_layer *layer) {
    layer->save = layer->n_change;
    return FO_OK;
}

/* dt = dx = dy; the saved x comes back to the last bit, which y - t would not. */
static void fo__additive_rows(fo_pass *p, int64_t begin, int64_t end) {
    const fo_layer *l = p->layer;
    int64_t         r;
    int             j;
    for (r = begin; r < end; r++)
        for (j = 0; j < l->n_change; j++) {
            fo_real *x = &p->x[r * p->size + l->change_at[j]];
            int64_t  t = r * l->n_out + l->out_at[j], kept = r * l->save + j;
            if (p->direction == FO_BACKWARD) {
                p->dnet[t] = p->dx[r * p->size + l->change_at[j]];
                *x         = p->save[kept];
                continue;
            }
            if (p->direction == FO_ENCODE && p->save)
                p->save[kept] = *x;
            *x += p->direction == FO_ENCODE ? p->net[t] : -p->net[t];
        }
}

static void fo__additive_explain(const fo_pass *p, int64_t r, fo_real *raw_s, fo_real *s,
                                 fo_real *t) {
    const fo_layer *l = p->layer;
    int             j;
    (void)raw_s, (void)s; /* 0 */
    for (j = 0; j < l->n_change; j++)
        t[l->change_at[j]] = p->net[r * l->n_out + l->out_at[j]];
}

static fo_layer_kind fo__additive_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("additive");
    kind.conditions = 1;
    kind.shape      = fo__additive_shape;
    kind.rows       = fo__additive_rows;
    kind.explain    = fo__additive_explain;
    return kind;
}

/* ================================================================================================
   >>mixing        layers that move or mix elements: squeeze, permute, split, actnorm, conv1x1

   Purpose    between couplings: other elements condition, and every scale of a picture is seen
   Papers     Dinh et al. 2017 (squeeze, split), Kingma & Dhariwal 2018 (actnorm, conv1x1)
   ============================================================================================= */

/* ---- squeeze, unsqueeze, permute: the same elements in other places; logdet = 0 ---------------

   squeeze: C x H x W -> 4C x H/2 x W/2. Channel c*4 + 2*dy + dx holds pixel (dy,dx) of every 2 x 2
   block of channel c; with order=alt (RealNVP's own) channel p*C + c, p running over (0,0), (1,1),
   (0,1), (1,0), so that the first half of the channels is a checkerboard. */
static int fo__squeeze_place(fo_shape in, int alt, int i) {
    static const int order[4] = {0, 2, 3, 1}; /* of 2*dy + dx among (0,0) (1,1) (0,1) (1,0) */
    int c = i / (in.h * in.w), y = i / in.w % in.h, x = i % in.w, block = y % 2 * 2 + x % 2;
    int channel = alt ? order[block] * in.c + c : c * 4 + block;
    return (channel * (in.h / 2) + y / 2) * (in.w / 2) + x / 2;
}

/* N x H x W x C instead of N x C x H x W? Then say so. */
static const char *fo__shape_hint(fo_shape s) {
    return fo__channels_last(s) ? "; this looks like N x H x W x C: transpose it to N x C x H x W"
                                : "";
}

static fo_result fo__squeeze_shape(fo_layer *layer) {
    fo_shape in   = layer->shape;
    int     *from = (int *)fo_layer_alloc(layer, fo__times(layer->width, sizeof(int))), i;
    if (from == NULL)
        return FO_ERR_MEMORY;
    if (in.h % 2 || in.w % 2)
        return fo__fail(layer->fo, FO_ERR_SHAPE, "squeeze of %dx%dx%d: height and width must be "
                        "even%s", in.c, in.h, in.w, fo__shape_hint(in));
    layer->out.c = in.c * 4, layer->out.h = in.h / 2, layer->out.w = in.w / 2;
    for (i = 0; i < layer->width; i++)
        from[fo__squeeze_place(in, layer->settings.value[0] != 0, i)] = i;
    layer->from = from;
    return FO_OK;
}

static fo_result fo__unsqueeze_shape(fo_layer *layer) {
    fo_shape in   = layer->shape;
    int     *from = (int *)fo_layer_alloc(layer, fo__times(layer->width, sizeof(int))), i;
    if (from == NULL)
        return FO_ERR_MEMORY;
    if (in.c % 4)
        return fo__fail(layer->fo, FO_ERR_SHAPE, "unsqueeze of %dx%dx%d: the channels must be a "
                        "multiple of 4", in.c, in.h, in.w);
    layer->out.c = in.c / 4, layer->out.h = in.h * 2, layer->out.w = in.w * 2;
    for (i = 0; i < layer->width; i++)
        from[i] = fo__squeeze_place(layer->out, layer->settings.value[0] != 0, i);
    layer->from = from;
    return FO_OK;
}

static fo_result fo__permute_shape(fo_layer *layer) {
    const int seed = (int)fo_setting_value(&layer->settings, "seed");
    const int reverse = fo_setting_value(&layer->settings, "reverse") != 0;
    int       n = layer->shape.c, pixels = layer->shape.h * layer->shape.w, c, i;
    int      *order = (int *)fo_layer_alloc(layer, fo__times(layer->width, sizeof(int)));
    if (order == NULL)
        return FO_ERR_MEMORY;
    if (reverse && fo__setting_given(&layer->settings, "seed"))
        return fo__fail(layer->fo, FO_ERR_ARGUMENT, "permute seed=%d reverse=1: leave one of them "
                        "out", seed);
    for (c = 0; c < n; c++)
        order[c] = reverse ? n - 1 - c : c;
    if (!reverse)
        fo__shuffle(order, n, sizeof *order, (uint64_t)seed, FO__STREAM_PERMUTE);
    /* whole channels, from the back, because the front still holds their order */
    for (i = (int)layer->width - 1; i >= 0; i--)
        order[i] = order[i / pixels] * pixels + i % pixels;
    layer->from = order;
    return FO_OK;
}

/* The pass of every layer that only moves elements: y[i] = x[from[i]], and back; going backward
   the gradient goes the same way. */
static void fo__move_rows(fo_pass *p, int64_t begin, int64_t end) {
    const int *from = p->layer->from;
    int64_t    r, i, n = p->layer->width;
    int        k, back = p->direction != FO_ENCODE;
    for (r = begin; r < end; r++)
        for (k = 0; k < (p->direction == FO_BACKWARD ? 2 : 1); k++) {
            fo_real *row = (k ? p->dx : p->x) + r * p->size, *to = p->spare + r * p->size;
            for (i = 0; i < n; i++)
                to[back ? from[i] : i] = row[back ? i : from[i]];
            memcpy(row, to, (size_t)n * sizeof *row);
        }
}

static fo_layer_kind fo__squeeze_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("squeeze");
    kind.settings[0]   = fo__setting_of("order", 0, 0, 0, 0, "plain alt");
    kind.shape         = fo__squeeze_shape;
    return kind;
}

static fo_layer_kind fo__unsqueeze_kind(void) {
    fo_layer_kind kind = fo__squeeze_kind();
    kind.name          = "unsqueeze";
    kind.shape         = fo__unsqueeze_shape;
    return kind;
}

static fo_layer_kind fo__permute_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("permute");
    kind.settings[0]   = fo__setting_of("seed", 0, 0, 1 << 24, 0, NULL);
    kind.settings[1]   = fo__setting_of("reverse", 0, 0, 1, 0, NULL);
    kind.shape         = fo__permute_shape;
    return kind;
}

/* ---- split: the second half of the channels is latent from here on (multi-scale) --------------

   Channels are the outermost dimension, so the part that goes on is the front of the row and the
   latent part stays where it lies: nothing moves. keep=N: the first N go on, or all if there are
   no more; behind whiten those are the N leading directions. */
static fo_result fo__split_shape(fo_layer *layer) {
    const int keep = (int)layer->settings.value[0];
    if (keep > 0) {
        layer->out.c = FO__MIN(keep, layer->shape.c);
        return FO_OK;
    }
    if (layer->shape.c % 2)
        return fo__fail(layer->fo, FO_ERR_SHAPE, "split of %dx%dx%d: the channels must be even",
                        layer->shape.c, layer->shape.h, layer->shape.w);
    layer->out.c = layer->shape.c / 2;
    return FO_OK;
}

static fo_layer_kind fo__split_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("split");
    kind.settings[0]   = fo__setting_of("keep", 0, 0, 1 << 24, 0, NULL);
    kind.shape         = fo__split_shape;
    return kind;
}

/* ---- actnorm: y = (x + bias) exp(log_scale) per channel, logdet = H W sum(log_scale) ----------

   Kingma & Dhariwal 2018. Measured on the first batch so that every channel starts with mean 0 and
   variance 1; a channel that is constant there keeps its scale and stays harmless. */
typedef struct fo__actnorm { int64_t bias, scale; } fo__actnorm;

static fo_result fo__actnorm_shape(fo_layer *layer) {
    fo__actnorm *own = (fo__actnorm *)fo_layer_alloc(layer, sizeof *own);
    int64_t      c   = layer->shape.c;
    if (own == NULL)
        return FO_ERR_MEMORY;
    layer->own  = own;
    layer->save = layer->width;
    own->bias   = fo_layer_param(layer, "bias", 1, &c, fo_init_of(FO_INIT_CONSTANT, 0));
    own->scale  = fo_layer_param(layer, "log_scale", 1, &c, fo_init_of(FO_INIT_CONSTANT, 0));
    return own->scale < 0 ? layer->fo->failed : FO_OK;
}

/* Mean and standard deviation of each channel over the batch, in two passes: nothing cancels. */
static void fo__actnorm_measure(fo_pass *p, int64_t seen, int64_t count) {
    const fo__actnorm *own = (const fo__actnorm *)p->layer->own;
    int64_t            r, i, n = p->layer->shape.h * p->layer->shape.w;
    int                c;
    (void)seen, (void)count;
    for (c = 0; c < p->layer->shape.c; c++) {
        double sum = 0, square = 0, all = (double)(n * p->rows), mean;
        for (r = 0; r < p->rows; r++)
            sum += p->fo->kernels->sum(n, p->x + r * p->size + c * n);
        mean = sum / all;
        for (r = 0; r < p->rows; r++)
            for (i = 0; i < n; i++) {
                double d = (double)p->x[r * p->size + c * n + i] - mean;
                square += d * d;
            }
        square = sqrt(square / all);
        p->values[own->bias + c]  = (fo_real)-mean;
        p->values[own->scale + c] = (fo_real)(square > 1e-3 ? -log(square) : 0);
    }
}

/* dbias = sum of dx, ds = sum of dy y + c H W rows */
static void fo__actnorm_before(fo_pass *p) {
    const fo__actnorm *own = (const fo__actnorm *)p->layer->own;
    int64_t            r, n = p->layer->shape.h * p->layer->shape.w;
    int                c;
    for (c = 0; c < p->layer->shape.c && p->direction == FO_BACKWARD; c++) {
        double ds = fo__dlogdet_sum(p) * (double)n, db = 0;
        for (r = 0; r < p->rows; r++) {
            const fo_real *dy = p->dx + r * p->size + c * n;
            ds += p->fo->kernels->dot(n, dy, p->x + r * p->size + c * n);
            db += p->fo->kernels->sum(n, dy);
        }
        p->grads[own->bias + c]  = (fo_real)(db * exp((double)p->values[own->scale + c]));
        p->grads[own->scale + c] = (fo_real)ds;
    }
}

/* dx = dy exp(s) */
static void fo__actnorm_rows(fo_pass *p, int64_t begin, int64_t end) {
    const fo__actnorm *own  = (const fo__actnorm *)p->layer->own;
    const fo_real     *bias = p->values + own->bias, *scale = p->values + own->scale;
    const fo_shape     s    = p->layer->shape;
    int64_t            r, i, n = s.h * s.w;
    double             sum = 0;
    int                c;
    for (c = 0; c < s.c; c++)
        sum += (double)n * (double)scale[c];
    for (r = begin; r < end; r++) {
        fo_real *x = p->x + r * p->size, *dy = p->dx ? p->dx + r * p->size : NULL;
        fo__pass_keep(p, r);
        if (!dy)
            p->logdet[r] = p->direction == FO_ENCODE ? sum : -sum;
        for (c = 0; c < s.c; c++) {
            double  log_scale = (double)scale[c];
            fo_real e = (fo_real)exp(p->direction == FO_DECODE ? -log_scale : log_scale);
            if (dy)
                p->fo->kernels->scale(n, e, dy + c * n, dy + c * n);
            if (!dy)
                for (i = c * n; i < (c + 1) * n; i++)
                    x[i] = p->direction == FO_DECODE ? x[i] * e - bias[c] : (x[i] + bias[c]) * e;
        }
    }
}

static fo_layer_kind fo__actnorm_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("actnorm");
    kind.shape   = fo__actnorm_shape;
    kind.measure = fo__actnorm_measure;
    kind.before  = fo__actnorm_before;
    kind.rows    = fo__actnorm_rows;
    return kind;
}

/* ---- conv1x1: y = W x at every pixel, logdet = H W log|det W| ----------------------------------

   Kingma & Dhariwal 2018. lu=1: W = P (I + lower)(upper + diag(sign exp(log_diag))), whose logdet
   is the sum of log_diag; rows of W are put in order by P, which is fixed. Determinant and inverse
   are made in double. A workspace holds five C x C matrices: W, its inverse, one for passing
   results, and the two factors. */
enum { FO__CONV1X1_MOST = 64, FO__W = 0, FO__INVERSE, FO__PRODUCT, FO__LOWER, FO__UPPER,
       FO__MATRICES };

typedef struct fo__conv1x1 {
    int     lu;
    int64_t weight, lower, upper, log_diag, sign, order;
} fo__conv1x1;

static double *fo__conv1x1_matrix(const fo_pass *p, int which) {
    return p->work + which * p->layer->shape.c * (int64_t)p->layer->shape.c;
}

static fo_result fo__conv1x1_shape(fo_layer *layer) {
    fo__conv1x1  *own  = (fo__conv1x1 *)fo_layer_alloc(layer, sizeof *own);
    const fo_init zero = fo_init_of(FO_INIT_CONSTANT, 0);
    int64_t       dim[2];
    dim[0] = dim[1] = layer->shape.c;
    if (own == NULL)
        return FO_ERR_MEMORY;
    if (layer->shape.c > FO__CONV1X1_MOST)
        return fo__fail(layer->fo, FO_ERR_SHAPE, "conv1x1 of %d channels: up to %d are possible",
                        layer->shape.c, FO__CONV1X1_MOST);
    layer->own  = own;
    layer->save = layer->width;
    layer->work = FO__MATRICES * dim[0] * dim[0];
    own->lu     = fo_setting_value(&layer->settings, "lu") != 0;
    if (!own->lu) {
        own->weight = fo_layer_param(layer, "weight", 2, dim, zero);
        return own->weight < 0 ? layer->fo->failed : FO_OK;
    }
    own->lower    = fo_layer_param(layer, "lower", 2, dim, zero);
    own->upper    = fo_layer_param(layer, "upper", 2, dim, zero);
    own->log_diag = fo_layer_param(layer, "log_diag", 1, dim, zero);
    own->sign     = fo_layer_buffer(layer, "sign", 1, dim, fo_init_of(FO_INIT_CONSTANT, 1));
    own->order    = fo_layer_buffer(layer, "order", 1, dim, zero);
    return own->order < 0 ? layer->fo->failed : FO_OK;
}

/* Gauss and Jordan with partial pivoting: b[n,m] becomes a^-1 b, a[n,n] is destroyed; returns
   log|det a|. With m = 0 only the determinant is made, at a third of the cost. */
static double fo__eliminate(double *a, int64_t n, double *b, int64_t m) {
    int64_t i, j, k, pivot;
    double  sum = 0, swap;
    for (k = 0; k < n; k++) {
        for (pivot = k, i = k + 1; i < n; i++)
            if (fabs(a[i * n + k]) > fabs(a[pivot * n + k]))
                pivot = i;
        for (j = 0; j < n && pivot != k; j++)
            swap = a[k * n + j], a[k * n + j] = a[pivot * n + j], a[pivot * n + j] = swap;
        for (j = 0; j < m && pivot != k; j++)
            swap = b[k * m + j], b[k * m + j] = b[pivot * m + j], b[pivot * m + j] = swap;
        sum += log(fabs(a[k * n + k]));
        for (i = m ? 0 : k + 1; i < n; i++) {
            double factor = i == k ? 0 : a[i * n + k] / a[k * n + k];
            for (j = k + 1; j < n && factor != 0; j++)
                a[i * n + j] -= factor * a[k * n + j];
            for (j = 0; j < m && factor != 0; j++)
                b[i * m + j] -= factor * b[k * m + j];
        }
    }
    for (i = 0; i < n; i++)
        for (j = 0; j < m; j++)
            b[i * m + j] /= a[i * n + i];
    return sum;
}

/* A random orthogonal matrix: normal rows, made orthonormal one after the other. */
static void fo__orthogonal(uint64_t seed, uint64_t stream, int n, double *a) {
    int     i, j, k;
    fo_real z;
    for (i = 0; i < n; i++) {
        double length = 0;
        for (k = 0; k < n; k++) {
            fo_random_normal(seed, stream, (uint64_t)(i * n + k), 1, &z);
            a[i * n + k] = (double)z;
        }
        for (j = 0; j < 2 * i; j++) { /* twice: once more removes what rounding left */
            double dot = 0, *b = a + j % i * n;
            for (k = 0; k < n; k++)
                dot += a[i * n + k] * b[k];
            for (k = 0; k < n; k++)
                a[i * n + k] -= dot * b[k];
        }
        for (k = 0; k < n; k++)
            length += a[i * n + k] * a[i * n + k];
        for (k = 0; k < n; k++)
            a[i * n + k] /= sqrt(length);
    }
}

/* The factors of a[n,n] (Doolittle with row pivoting), as first values of lu=1. */
static void fo__conv1x1_factor(const fo__conv1x1 *own, int n, double *a, fo_real *v, fo_real *b) {
    int i, j, k, at[FO__CONV1X1_MOST];
    for (i = 0; i < n; i++)
        at[i] = i;
    for (k = 0; k < n; k++) {
        for (i = j = k; i < n; i++)
            if (fabs(a[at[i] * n + k]) > fabs(a[at[j] * n + k]))
                j = i;
        i = at[k], at[k] = at[j], at[j] = i;
        for (i = k + 1; i < n; i++) {
            double factor = a[at[i] * n + k] /= a[at[k] * n + k];
            for (j = k + 1; j < n; j++)
                a[at[i] * n + j] -= factor * a[at[k] * n + j];
        }
    }
    for (i = 0; i < n; i++) { /* row at[i] of W is row i of the product of the factors */
        for (j = 0; j < n; j++)
            v[(j < i ? own->lower : own->upper) + i * n + j] =
                (fo_real)(i == j ? 0 : a[at[i] * n + j]);
        v[own->log_diag + i]  = (fo_real)log(fabs(a[at[i] * n + i]));
        b[own->sign + i]      = a[at[i] * n + i] < 0 ? -1 : 1;
        b[own->order + at[i]] = (fo_real)i;
    }
}

/* First values: a rotation. */
static fo_result fo__conv1x1_init(const fo_layer *layer, uint64_t seed, fo_real *values,
                                  fo_real *buffers) {
    const fo__conv1x1 *own = (const fo__conv1x1 *)layer->own;
    int                n   = layer->shape.c, i;
    double *a = (double *)fo__alloc(layer->fo, (size_t)(n * n) * sizeof *a);
    if (a == NULL)
        return FO_ERR_MEMORY;
    fo__orthogonal(seed, FO__STREAM_INIT + 0x10000 + (uint64_t)layer->index, n, a);
    if (!own->lu)
        for (i = 0; i < n * n; i++)
            values[own->weight + i] = (fo_real)a[i];
    if (own->lu)
        fo__conv1x1_factor(own, n, a, values, buffers);
    fo__free(layer->fo, a);
    return FO_OK;
}

/* lower and upper factor of lu=1, complete, into their matrices. */
static void fo__conv1x1_factors(const fo_pass *p) {
    const fo__conv1x1 *own = (const fo__conv1x1 *)p->layer->own;
    const fo_real     *v = p->values, *sign = p->buffers + own->sign;
    double            *lower = fo__conv1x1_matrix(p, FO__LOWER);
    double            *upper = fo__conv1x1_matrix(p, FO__UPPER);
    int                n = p->layer->shape.c, i, j;
    for (i = 0; i < n; i++)
        for (j = 0; j < n; j++) {
            lower[i * n + j] = i == j ? 1 : i > j ? (double)v[own->lower + i * n + j] : 0;
            upper[i * n + j] = i < j ? (double)v[own->upper + i * n + j]
                               : i == j ? (double)sign[i] * exp((double)v[own->log_diag + i]) : 0;
        }
}

static int fo__conv1x1_order(const fo_pass *p, int row) {
    const fo__conv1x1 *own = (const fo__conv1x1 *)p->layer->own;
    fo_real            at  = p->buffers[own->order + row];
    return at >= 0 && at < (fo_real)p->layer->shape.c ? (int)at : 0; /* files are hostile */
}

/* W and its inverse; log|det W|. */
static double fo__conv1x1_invert(fo_pass *p) {
    const fo__conv1x1 *own = (const fo__conv1x1 *)p->layer->own;
    int                n = p->layer->shape.c, i, j, k;
    double *w = fo__conv1x1_matrix(p, FO__W), *inverse = fo__conv1x1_matrix(p, FO__INVERSE);
    double *copy = fo__conv1x1_matrix(p, FO__PRODUCT);
    double *lower = fo__conv1x1_matrix(p, FO__LOWER), *upper = fo__conv1x1_matrix(p, FO__UPPER);
    if (own->lu)
        fo__conv1x1_factors(p);
    for (i = 0; i < n; i++) {
        int row = own->lu ? fo__conv1x1_order(p, i) : i;
        for (j = 0; j < n; j++) {
            double sum = 0;
            for (k = 0; own->lu && k <= row; k++)
                sum += lower[row * n + k] * upper[k * n + j];
            w[i * n + j]       = own->lu ? sum : (double)p->values[own->weight + i * n + j];
            inverse[i * n + j] = i == j;
        }
    }
    memcpy(copy, w, (size_t)(n * n) * sizeof *w);
    return fo__eliminate(copy, n, inverse, n);
}

/* row := matrix row, at every pixel; transposed if asked. Sums in double are not needed: C is
   small. */
static void fo__conv1x1_apply(const fo_pass *p, const double *matrix, int transposed, fo_real *row,
                              fo_real *spare) {
    int     n = p->layer->shape.c, o, i;
    int64_t pixels = p->layer->shape.h * p->layer->shape.w;
    memcpy(spare, row, (size_t)(n * pixels) * sizeof *row);
    memset(row, 0, (size_t)(n * pixels) * sizeof *row);
    for (o = 0; o < n; o++)
        for (i = 0; i < n; i++)
            p->fo->kernels->axpy(pixels, (fo_real)matrix[transposed ? i * n + o : o * n + i],
                                 spare + i * pixels, row + o * pixels);
}

static void fo__conv1x1_rows(fo_pass *p, int64_t begin, int64_t end) {
    const double *w = fo__conv1x1_matrix(p, p->direction == FO_DECODE ? FO__INVERSE : FO__W);
    int64_t       r;
    for (r = begin; r < end; r++) {
        fo__pass_keep(p, r);
        fo__conv1x1_apply(p, w, p->direction == FO_BACKWARD, (p->dx ? p->dx : p->x) + r * p->size,
                          p->spare + r * p->size);
    }
}

/* dM[row of M] = sum of dy x^T, with M = W, or the product of the factors; + c H W rows W^-T. */
static void fo__conv1x1_product(fo_pass *p, double c, double *dm) {
    const fo__conv1x1 *own = (const fo__conv1x1 *)p->layer->own;
    int                n = p->layer->shape.c, i, j;
    int64_t            r, pixels = p->layer->shape.h * p->layer->shape.w;
    double            *inverse = fo__conv1x1_matrix(p, FO__INVERSE);
    for (i = 0; i < n; i++)
        for (j = 0; j < n; j++) {
            double sum = own->lu ? 0 : c * inverse[j * n + i];
            for (r = 0; r < p->rows; r++)
                sum += p->fo->kernels->dot(pixels, p->dx + r * p->size + i * pixels,
                                           p->save + r * p->layer->save + j * pixels);
            dm[(own->lu ? fo__conv1x1_order(p, i) : i) * n + j] = sum;
        }
}

static void fo__conv1x1_gradient(fo_pass *p) {
    const fo__conv1x1 *own = (const fo__conv1x1 *)p->layer->own;
    int                n = p->layer->shape.c, i, j, k;
    double *lower = fo__conv1x1_matrix(p, FO__LOWER), *upper = fo__conv1x1_matrix(p, FO__UPPER);
    double *dm = fo__conv1x1_matrix(p, FO__PRODUCT);
    double  c  = fo__dlogdet_sum(p) * (double)(p->layer->shape.h * p->layer->shape.w);
    fo__conv1x1_product(p, c, dm);
    if (!own->lu)
        for (i = 0; i < n * n; i++)
            p->grads[own->weight + i] = (fo_real)dm[i];
    if (own->lu)
        fo__conv1x1_factors(p);
    if (own->lu)
        for (i = 0; i < n; i++)
            for (j = 0; j < n; j++) {
                double dl = 0, du = 0; /* dL = dM U^T, dU = L^T dM */
                for (k = 0; k < n; k++) {
                    dl += dm[i * n + k] * upper[j * n + k];
                    du += lower[k * n + i] * dm[k * n + j];
                }
                p->grads[own->lower + i * n + j] = (fo_real)(i > j ? dl : 0);
                p->grads[own->upper + i * n + j] = (fo_real)(i < j ? du : 0);
                if (i == j)
                    p->grads[own->log_diag + i] = (fo_real)(du * upper[i * n + i] + c);
            }
}

static void fo__conv1x1_before(fo_pass *p) {
    const fo_shape shape = p->layer->shape;
    double         logdet;
    int64_t        r;
    if (p->direction == FO_BACKWARD) {
        fo__conv1x1_gradient(p);
        return;
    }
    logdet = fo__conv1x1_invert(p) * shape.h * shape.w;
    for (r = 0; r < p->rows; r++)
        p->logdet[r] = p->direction == FO_ENCODE ? logdet : -logdet;
}

static fo_layer_kind fo__conv1x1_kind(void) {
    fo_layer_kind kind = fo__layer_kind_of("conv1x1");
    kind.mixes       = 1;
    kind.settings[0] = fo__setting_of("lu", 0, 0, 1, 0, NULL);
    kind.shape       = fo__conv1x1_shape;
    kind.init        = fo__conv1x1_init;
    kind.before      = fo__conv1x1_before;
    kind.rows        = fo__conv1x1_rows;
    return kind;
}

/* ---- every built-in layer: a block above (or in >>layers, >>couplings), and one name here ---- */

#define FO__LAYERS(X)                                                                              \
    X(dequantize) X(logit) X(standardize) X(normalize) X(whiten) X(coupling) X(additive)           \
    X(squeeze) X(unsqueeze) X(permute) X(split) X(actnorm) X(conv1x1)

static fo_result fo__layers_register(fo_context *fo) {
    fo_layer_kind kind;
#define FO__ROW(name)                                                                              \
    kind = fo__##name##_kind();                                                                    \
    if (fo_register_layer(fo, &kind) != FO_OK)                                                     \
        return FO_ERR_MEMORY;
    FO__LAYERS(FO__ROW)
#undef FO__ROW
    return FO_OK;
}

/* ================================================================================================
   >>flow          building: layers in, parameters placed

   Invariants a flow's blocks are placed once, on first use, and then no layer may be added; its
              text grows with every layer, so that reading it writes nothing
   Callers    users, >>text
   ============================================================================================= */
typedef struct fo__train_state { /* what a checkpoint needs to go on */
    fo_real      *m, *v, *ema;         /* Adam's moments, moving average of the weights */
    int64_t       step, seen, skipped; /* steps, samples, steps dropped for NaN */
    int           has_best;            /* these weights were the best on held-out data, at */
    double        best;                /* so many bpd */
    int64_t       samples, held_out;   /* of the last training; -1: not known */
    fo_train_desc desc;                /* resolved; of the preset before the first step */
} fo__train_state;

typedef struct fo__whole { /* a copy of all that training changes */
    fo_real        *values, *buffer_values;
    fo__train_state train;
} fo__whole;

struct fo_flow {
    fo__arena   arena;
    fo_context *fo;
    uint64_t    seed;       /* of first values and of the noise of scoring */
    fo_shape    shape, end; /* of a sample; of what the next layer would see */
    int64_t     size;       /* D */
    fo__layer  *layers;
    int         n_layers, room, broken, ready;
    fo__params  params, buffers;
    fo_real    *values, *buffer_values;
    char       *text;       /* all of it: the input's line and the layers' */
    size_t      text_length, text_room;
    fo__train_state train;
    int              training; /* by a trainer that is open, whose best state is this, or NULL */
    const fo__whole *best;
    struct fo__detector *detector; /* or NULL */
    int         changed;    /* its weights are no longer those that the detector was fitted to */
};

/* Adds a line to the flow's text. */
static fo_result fo__flow_write(fo_flow *flow, const char *line) {
    const size_t n = strlen(line);
    if (flow->text_length + n + 2 > flow->text_room) {
        size_t room = 2 * (flow->text_length + n) + 256;
        char  *text = (char *)fo__arena_alloc(&flow->arena, room);
        if (text == NULL)
            return FO_ERR_MEMORY;
        if (flow->text)
            memcpy(text, flow->text, flow->text_length);
        flow->text      = text;
        flow->text_room = room;
    }
    memcpy(flow->text + flow->text_length, line, n);
    flow->text_length += n + 1;
    strcpy(flow->text + flow->text_length - 1, "\n");
    return FO_OK;
}

fo_flow *fo_flow_create(fo_context *fo, fo_shape shape) {
    fo_flow *flow;
    int64_t  count = fo_shape_count(shape);
    char     text[64];
    if (!fo__begin(fo))
        return NULL;
    if (shape.c < 1 || shape.h < 1 || shape.w < 1 || count > 1 << 24) {
        fo__fail(fo, FO_ERR_SHAPE, "a flow on samples of %dx%dx%d: 1 to 2^24 elements are possible",
                 shape.c, shape.h, shape.w);
        return NULL;
    }
    snprintf(text, sizeof text, shape.h * shape.w > 1 ? "input %dx%dx%d" : "input %d", shape.c,
             shape.h, shape.w);
    flow = (fo_flow *)fo__object(fo, sizeof *flow);
    if (flow == NULL)
        return NULL;
    flow->fo    = fo;
    flow->seed  = fo->desc.seed;
    flow->shape = shape;
    flow->end   = shape;
    flow->size  = count;
    if (fo__flow_write(flow, text) != FO_OK) {
        fo_flow_free(flow);
        return NULL;
    }
    return flow;
}

const char *fo_flow_text(fo_flow *flow) { return flow ? flow->text : NULL; }
void        fo_flow_free(fo_flow *flow) {
    if (flow)
        fo__object_free(flow->detector);
    fo__object_free(flow);
}
fo_shape    fo_flow_shape(const fo_flow *flow) {
    fo_shape none = {0, 0, 0};
    return flow ? flow->shape : none;
}
int         fo_flow_layers(const fo_flow *flow) { return flow ? flow->n_layers : 0; }
const char *fo_flow_layer_text(const fo_flow *flow, int layer) {
    return flow && layer >= 0 && layer < flow->n_layers ? flow->layers[layer].text : NULL;
}
const unsigned char *fo_flow_mask(const fo_flow *flow, int layer) {
    return flow && layer >= 0 && layer < flow->n_layers ? flow->layers[layer].see.map : NULL;
}
int           fo_param_count(const fo_flow *flow) { return flow ? flow->params.count : 0; }
fo_param_info fo_param_at(const fo_flow *flow, int i) {
    fo_param_info none;
    memset(&none, 0, sizeof none);
    return flow && i >= 0 && i < flow->params.count ? flow->params.list[i].info : none;
}

/* ---- what a layer's hook `shape` asks for ---------------------------------------------------- */

static int64_t fo__layer_block(fo_layer *layer, fo__params *params, const char *name, int rank,
                               const int64_t *dim, fo_init init) {
    fo__param *p;
    int64_t    count = 1;
    char       full[96], text[96];
    int        i;
    if (layer->flow->ready || name == NULL || dim == NULL || rank < 1 || rank > FO_MAX_RANK) {
        fo__fail(layer->fo, FO_ERR_ARGUMENT, "layer %d (%s): parameters of 1 to %d dimensions can "
                 "be asked for in the hook `shape`", layer->index, layer->kind->name, FO_MAX_RANK);
        return -1;
    }
    for (i = 0; i < rank; count *= dim[i++])
        if (dim[i] < 1 || dim[i] > ((int64_t)1 << 40) / count) {
            fo__fail(layer->fo, FO_ERR_SHAPE, "layer %d (%s): parameter %.60s is %s: every "
                     "dimension must be at least 1 and the whole at most 2^40", layer->index,
                     layer->kind->name, name, fo__dims(text, rank, dim));
            return -1;
        }
    snprintf(full, sizeof full, "%d.%.60s", layer->index, name);
    p = fo__param_get(layer->fo, params, &layer->flow->arena, full, rank, dim, init);
    return p ? p->info.offset : -1;
}

int64_t fo_layer_param(fo_layer *layer, const char *name, int rank, const int64_t *dim,
                       fo_init init) {
    return layer ? fo__layer_block(layer, &layer->flow->params, name, rank, dim, init) : -1;
}

int64_t fo_layer_buffer(fo_layer *layer, const char *name, int rank, const int64_t *dim,
                        fo_init init) {
    return layer ? fo__layer_block(layer, &layer->flow->buffers, name, rank, dim, init) : -1;
}

int64_t fo_layer_optional(fo_layer *layer, const char *name, int64_t count, double absent) {
    int64_t at = fo_layer_buffer(layer, name, 1, &count, fo_init_of(FO_INIT_CONSTANT, 0));
    int     i;
    if (at >= 0)
        for (i = 0; i < layer->flow->buffers.count; i++)
            if (layer->flow->buffers.list[i].info.offset == at) {
                layer->flow->buffers.list[i].optional = 1;
                layer->flow->buffers.list[i].absent   = (fo_real)absent;
            }
    return at;
}

void *fo_layer_alloc(fo_layer *layer, size_t size) {
    return layer ? fo__arena_alloc(&layer->flow->arena, size) : NULL;
}

/* Records a layer's st-network for a batch of rows. */
static fo_tape *fo__layer_tape(fo_context *fo, fo_flow *flow, const fo__layer *layer, int batch,
                               int needs_grad, fo_tensor **in, fo_tensor **out) {
    const fo_layer *l      = &layer->see;
    const int       pixels = l->image ? l->shape.h * l->shape.w : 1;
    fo_tape        *tape   = fo_tape_create(fo);
    char           *prefix = tape ? (char *)fo__arena_alloc(&tape->arena, 32) : NULL;
    int64_t         dim[4];
    if (prefix == NULL) {
        fo_tape_free(tape);
        return NULL;
    }
    snprintf(prefix, 32, "%d.net.", l->index);
    tape->params       = &flow->params;
    tape->buffers      = &flow->buffers;
    tape->params_arena = &flow->arena;
    tape->prefix       = prefix;
    dim[0] = batch;
    dim[1] = layer->n_in / pixels;
    dim[2] = l->shape.h;
    dim[3] = l->shape.w;
    *in    = fo_input(tape, l->image ? 4 : 2, dim, needs_grad);
    *out   = *in ? layer->net_kind->build(tape, *in, (int)(l->n_out / pixels), &layer->net) : NULL;
    if (fo->failed != FO_OK) /* whatever build returned */
        *out = NULL;
    if (*out && ((*out)->dim[0] != batch || fo__row(*out) != l->n_out)) {
        char text[96];
        fo__fail(fo, FO_ERR_SHAPE, "st-network %s returned %s; [%d,%lld] is needed",
                 layer->net.kind, fo__dims(text, (*out)->rank, (*out)->dim), batch,
                 (long long)l->n_out);
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

/* "14c14x": runs of equal states, so that any map fits into the text. */
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

/* The line of a layer: what it is, and its settings. */
static fo_result fo__layer_write(fo_flow *flow, fo__layer *l) {
    const fo_layer *see  = &l->see;
    const int       map  = l->net_kind && fo__mask_listed(flow->fo, l->mask.kind);
    const size_t    size = 700 + (map ? fo__map_text(see->map, see->width, NULL) : 0);
    char           *text = (char *)fo__arena_alloc(&flow->arena, size);
    size_t          at;
    if (text == NULL)
        return FO_ERR_MEMORY;
    l->text = text;
    at      = (size_t)snprintf(text, size, "%s", see->kind->name);
    if (l->net_kind) {
        at += (size_t)snprintf(text + at, size - at, " mask=%s:", l->mask.kind);
        at += map ? fo__map_text(see->map, see->width, text + at)
                  : (size_t)snprintf(text + at, size - at, "%d", l->mask.phase);
        at += (size_t)snprintf(text + at, size - at, " net=%s", l->net.kind);
    }
    fo__settings_write(l->net_kind ? &l->net.settings : &see->settings, text + at, size - at);
    return fo__flow_write(flow, text);
}

/* What a new layer is made of: from a line of text, or from C. */
typedef struct fo__new_layer {
    const char          *where;    /* for messages: "flow text, line 3" */
    const fo_layer_kind *kind;
    const char          *settings; /* of a layer that does not condition, as text; or NULL */
    fo_mask              mask;
    fo_net               net;
} fo__new_layer;

/* A layer that moves elements moves each of them once. */
static fo_result fo__from_check(const fo_layer *layer) {
    unsigned char *seen = (unsigned char *)fo__alloc(layer->fo, (size_t)layer->width);
    int64_t        i;
    if (seen == NULL)
        return FO_ERR_MEMORY;
    for (i = 0; i < layer->width; i++)
        if (layer->from[i] < 0 || layer->from[i] >= layer->width || seen[layer->from[i]]++) {
            fo__fail(layer->fo, FO_ERR_ARGUMENT, "layer %s: from[%lld] = %d is no place, or one "
                     "that was moved before", layer->kind->name, (long long)i, layer->from[i]);
            break;
        }
    fo__free(layer->fo, seen);
    return layer->fo->failed;
}

/* What comes before what, and the layer's own checks. */
static fo_result fo__layer_setup(fo_flow *flow, fo__layer *layer, const fo__new_layer *new_layer) {
    const fo_layer_kind *kind = layer->see.kind;
    fo__reader           reader;
    const int            params = flow->params.count;
    fo_tensor           *in, *out;
    int                  i;
    if (kind->front)
        for (i = 0; i < flow->n_layers; i++)
            if (flow->layers[i].learns)
                return fo__fail(flow->fo, FO_ERR_ARGUMENT, "%s must come before every layer that "
                                "learns", kind->name);
    if (kind->front && layer->see.width != flow->size)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "%s must come before any split: what is split "
                        "off is latent already", kind->name);
    reader.fo = flow->fo, reader.where = new_layer->where, reader.owner = kind->name;
    fo__settings_open(&layer->see.settings, kind->settings);
    if (kind->conditions ? fo__conditions_setup(layer, new_layer->where, &flow->arena)
                         : fo__settings_read(&reader, &layer->see.settings, new_layer->settings,
                                             NULL))
        return flow->fo->failed;
    if (kind->shape && kind->shape(&layer->see) != FO_OK)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "layer %s could not be built", kind->name);
    if (fo_shape_count(layer->see.out) < 1 || fo_shape_count(layer->see.out) > layer->see.width ||
        layer->see.save < 0 || layer->see.work < 0)
        return fo__fail(flow->fo, FO_ERR_SHAPE, "layer %s makes %dx%dx%d of %dx%dx%d: it cannot "
                        "make more of it", kind->name, layer->see.out.c, layer->see.out.h,
                        layer->see.out.w, layer->see.shape.c, layer->see.shape.h,
                        layer->see.shape.w);
    if (layer->see.from && fo__from_check(&layer->see) != FO_OK)
        return flow->fo->failed;
    if (kind->measure && (layer->measured = fo_layer_optional(&layer->see, "measured", 1, 1)) < 0)
        return flow->fo->failed;
    if (layer->net_kind) {
        fo_tape *tape = fo__layer_tape(flow->fo, flow, layer, 1, 1, &in, &out);
        if (tape == NULL)
            return flow->fo->failed;
        fo_tape_free(tape); /* it made the parameters known */
    }
    layer->learns = flow->params.count > params;
    if (kind->front && layer->learns)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "layer %s is a front layer: it has no backward "
                        "and cannot learn", kind->name);
    return FO_OK;
}

/* Refuses images whose channels come last, where rows and columns matter. */
static fo_result fo__image_check(fo_flow *flow, const fo__new_layer *new_layer) {
    const char   *mask = new_layer->mask.kind, *net = new_layer->net.kind;
    fo__mask_row *m = mask ? (fo__mask_row *)fo__row_named(flow->fo, FO__A_MASK, mask) : NULL;
    fo__net_row  *n = net ? (fo__net_row *)fo__row_named(flow->fo, FO__A_NET, net) : NULL;
    fo_shape      s = flow->shape;
    if (new_layer->kind->conditions && ((m && m->image) || (n && n->kind.image)) &&
        fo__channels_last(s))
        return fo__fail(flow->fo, FO_ERR_SHAPE, "%s: samples of %dx%dx%d%s", new_layer->where, s.c,
                        s.h, s.w, fo__shape_hint(s));
    return FO_OK;
}

enum { FO__LAYER_COST = 512 };

/* A flow from a file spends what the file allows: a layer costs its elements and a constant. */
static fo_result fo__charge(fo_flow *flow, int64_t cost) {
    fo__limits *limits = flow->params.limits;
    if (limits == NULL || (limits->work -= cost) >= 0)
        return FO_OK;
    return fo__fail(flow->fo, FO_ERR_FORMAT, "%s: the flow of its text has more layers x elements "
                    "than a file of this size may ask for", limits->path);
}

/* Can layers be added? A flow of which a layer is missing is broken for good. */
static fo_result fo__flow_open(fo_flow *flow, const char *layer) {
    if (flow->ready)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "%.60s: layers cannot be added to a flow that "
                        "is in use: build it completely first", layer);
    if (flow->broken)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "%.60s: the flow could not be built: see the "
                        "first error", layer);
    return FO_OK;
}

static fo_result fo__append_layer(fo_flow *flow, const fo__new_layer *new_layer) {
    fo__layer *layers, *layer;
    flow->broken = 1; /* until everything below has worked */
    if (fo__charge(flow, flow->size + FO__LAYER_COST) != FO_OK)
        return FO_ERR_FORMAT;
    layers = (fo__layer *)fo__grow(&flow->arena, flow->layers, flow->n_layers, &flow->room,
                                   sizeof *layers);
    if (layers == NULL)
        return FO_ERR_MEMORY;
    flow->layers = layers;
    layer        = &layers[flow->n_layers];
    memset(layer, 0, sizeof *layer);
    layer->see.kind  = new_layer->kind;
    layer->see.fo    = flow->fo;
    layer->see.flow  = flow;
    layer->see.index = flow->n_layers;
    layer->see.shape = layer->see.out = flow->end;
    layer->see.width = fo_shape_count(flow->end);
    layer->mask      = new_layer->mask;
    layer->net       = new_layer->net;
    if (fo__image_check(flow, new_layer) != FO_OK ||
        fo__layer_setup(flow, layer, new_layer) != FO_OK || fo__layer_write(flow, layer) != FO_OK)
        return flow->fo->failed;
    flow->end = layer->see.out;
    flow->n_layers++;
    flow->broken = 0;
    return FO_OK;
}

static fo_result fo__add_layer(fo_flow *flow, const fo__new_layer *new_layer) {
    if (fo__flow_open(flow, new_layer->kind->name) != FO_OK)
        return flow->fo->failed;
    fo__enter(flow->fo);
    fo__append_layer(flow, new_layer);
    return fo__leave(flow->fo);
}

static fo_result fo__add_conditioned(fo_flow *flow, const char *kind, fo_mask mask, fo_net net) {
    fo__new_layer layer;
    char          where[32];
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    snprintf(where, sizeof where, "layer %d (%s)", flow->n_layers, kind);
    layer.where    = where;
    layer.kind     = &((fo__layer_row *)fo__row_named(flow->fo, FO__A_LAYER, kind))->kind;
    layer.settings = NULL;
    layer.mask     = mask;
    layer.net      = net;
    return fo__add_layer(flow, &layer);
}

fo_result fo_add_coupling(fo_flow *flow, fo_mask mask, fo_net net) {
    return fo__add_conditioned(flow, "coupling", mask, net);
}
fo_result fo_add_additive(fo_flow *flow, fo_mask mask, fo_net net) {
    return fo__add_conditioned(flow, "additive", mask, net);
}
fo_result fo_add_dequantize(fo_flow *flow) { return fo_add_layer(flow, "dequantize"); }
fo_result fo_add_standardize(fo_flow *flow) { return fo_add_layer(flow, "standardize"); }
fo_result fo_add_logit(fo_flow *flow, double alpha) {
    char number[40], line[60];
    fo__print_double(number, sizeof number, alpha, 9); /* as the flow's text has it */
    snprintf(line, sizeof line, "logit alpha=%s", number);
    return fo_add_layer(flow, line);
}

/* Places and initialises the blocks; the structure is fixed from here on. */
static fo_result fo__flow_ready(fo_context *fo, fo_flow *flow) {
    int i;
    if (flow->ready)
        return FO_OK;
    if (flow->broken || flow->n_layers == 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, flow->broken
                        ? "the flow could not be built: see the first error"
                        : "the flow has no layers");
    if (fo != flow->fo) /* several threads could come here at once */
        return fo__fail(fo, FO_ERR_ARGUMENT, "the flow has no weights yet: train it, or call "
                        "fo_params, before other contexts use it");
    flow->values        = fo__reals(&flow->arena, flow->params.size);
    flow->buffer_values = fo__reals(&flow->arena, flow->buffers.size);
    if (flow->values == NULL || flow->buffer_values == NULL)
        return FO_ERR_MEMORY;
    fo__params_init(&flow->params, flow->seed, flow->values);
    fo__params_init(&flow->buffers, flow->seed, flow->buffer_values);
    for (i = 0; i < flow->n_layers; i++) {
        const fo_layer *layer = &flow->layers[i].see;
        if (layer->kind->init && layer->kind->init(layer, flow->seed, flow->values,
                                                   flow->buffer_values) != FO_OK)
            return flow->fo->failed;
    }
    flow->params.frozen = flow->buffers.frozen = flow->ready = 1;
    return FO_OK;
}

/* Scoring uses the moving average where there is one; training the weights themselves. */
static fo_real *fo__values_for(const fo_flow *flow, int train) {
    return flow->train.ema && !train ? flow->train.ema : flow->values;
}

int64_t fo_flow_constants(const fo_flow *flow, unsigned char *constant) {
    int64_t i, count = 0;
    int     k;
    if (flow && constant)
        memset(constant, 0, (size_t)flow->size);
    if (flow == NULL || !flow->ready)
        return 0;
    for (k = 0; k < flow->n_layers; k++) {
        const fo_layer *layer = &flow->layers[k].see;
        for (i = 0; layer->kind->constant && i < layer->width; i++)
            if (layer->kind->constant(layer, flow->buffer_values, i)) {
                count++;
                if (constant)
                    constant[i] = 1;
            }
    }
    return count;
}

const fo_real *fo_params(fo_flow *flow, int64_t *count) {
    if (count)
        *count = 0;
    if (!FO__BEGIN(flow) || fo__flow_ready(flow->fo, flow) != FO_OK)
        return NULL;
    if (count)
        *count = flow->params.size;
    return fo__values_for(flow, 0);
}

/* May weights and statistics be replaced? A trainer would go on with the moments of others, and
   perhaps end with those of its best measurement. */
static fo_result fo__weights_free(fo_flow *flow, const char *call) {
    if (flow->training)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "%s: the flow is being trained: end that first "
                        "(fo_trainer_close)", call);
    return FO_OK;
}

/* The weights are others now: moments and moving average begin anew. */
static void fo__train_forget(fo_flow *flow) {
    fo__train_state *t    = &flow->train;
    const size_t     size = (size_t)flow->params.size * sizeof *flow->values;
    if (t->m)
        memset(t->m, 0, size);
    if (t->v)
        memset(t->v, 0, size);
    if (t->ema)
        memcpy(t->ema, flow->values, size);
    t->step = t->seen = t->skipped = 0;
    t->has_best = 0;
    flow->changed = 1;
}

fo_result fo_set_params(fo_flow *flow, const fo_real *values, int64_t count) {
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (fo__flow_ready(flow->fo, flow) != FO_OK ||
        fo__weights_free(flow, "fo_set_params") != FO_OK)
        return flow->fo->failed;
    if (values == NULL || count != flow->params.size)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_set_params: %lld values given, the flow has "
                        "%lld", values ? (long long)count : 0, (long long)flow->params.size);
    memmove(flow->values, values, (size_t)count * sizeof *values);
    fo__train_forget(flow);
    return FO_OK;
}

/* ================================================================================================
   >>text          a flow as text, one layer a line, in and out
   ============================================================================================= */

typedef struct fo__line { /* one line of a flow's text, taken apart */
    fo_context *fo;
    char        where[40];     /* "flow text, line 3" */
    char        settings[512]; /* of a layer, but for mask and net */
    char       *copy;          /* of the line, to be taken apart */
    size_t      room;
    fo__limits *limits;        /* of the flow, or NULL */
} fo__line;

static void fo__line_at(fo__line *line, fo_context *fo, int number) {
    line->fo     = fo;
    line->limits = NULL;
    snprintf(line->where, sizeof line->where, "flow text, line %d", number);
}

static fo_result fo__line_fail(fo__line *line, const char *what, const char *word) {
    return fo__fail(line->fo, FO_ERR_FORMAT, "%s: %s '%.60s'", line->where, what, word);
}

/* The runs of "map:14c14x" into states. */
static fo_result fo__parse_map(fo__line *line, fo_flow *flow, const char *runs, fo_mask *mask) {
    int64_t        at = 0, size = fo_shape_count(flow->end);
    unsigned char *map = NULL;
    if (fo__charge(flow, size) == FO_OK)
        map = (unsigned char *)fo__arena_alloc(&flow->arena, (size_t)size);
    if (map == NULL)
        return FO_ERR_MEMORY;
    while (*runs) {
        char       *end;
        long        run   = strtol(runs, &end, 10);
        const char *state = *end ? strchr("cxp", *end) : NULL;
        if (end == runs || state == NULL || run < 1 || run > size - at)
            return fo__line_fail(line, "the map does not fit the input at", runs);
        memset(map + at, (int)(state - "cxp"), (size_t)run);
        at += run;
        runs = end + 1;
    }
    *mask = fo_mask_map(map);
    return at == size ? FO_OK : fo__line_fail(line, "the map is too short:", "mask=map");
}

/* mask=KIND:PHASE or mask=map:RUNS */
static fo_result fo__parse_mask(fo__line *line, fo_flow *flow, char *value, fo_mask *mask) {
    char *colon = strchr(value, ':');
    if (colon)
        *colon++ = 0;
    if (colon && fo__mask_listed(line->fo, value))
        return fo__parse_map(line, flow, colon, mask);
    *mask = fo_mask_named(value, 0);
    return colon == NULL || fo__parse_int(colon, &mask->phase) ? FO_OK
               : fo__line_fail(line, "a mask's phase must be a whole number, not", colon);
}

/* One layer, taken apart in place: its name, mask and net; the rest are settings. */
static fo_result fo__parse_layer(fo__line *line, fo_flow *flow, char *text) {
    fo__new_layer  layer;
    fo__layer_row *row = NULL;
    char          *word, *next = text;
    size_t         at = 0;
    memset(&layer, 0, sizeof layer);
    layer.mask.kind = "";
    layer.where     = line->where;
    line->settings[0] = 0;
    while ((word = next + strspn(next, " \t\r"))[0]) {
        next = word + strcspn(word, " \t\r");
        if (*next)
            *next++ = 0;
        if (row == NULL) {
            row = (fo__layer_row *)fo__row_find(line->fo, line->where, FO__A_LAYER, word);
            if (row == NULL)
                return line->fo->failed;
            layer.kind = &row->kind;
        } else if (row->kind.conditions && strncmp(word, "mask=", 5) == 0) {
            if (fo__parse_mask(line, flow, word + 5, &layer.mask) != FO_OK)
                return line->fo->failed;
        } else if (row->kind.conditions && strncmp(word, "net=", 4) == 0) {
            layer.net.kind = word + 4;
        } else {
            at += (size_t)snprintf(line->settings + at, sizeof line->settings - at, " %s", word);
            if (at >= sizeof line->settings)
                return fo__line_fail(line, "too many settings at", word);
        }
    }
    if (row == NULL)
        return fo__line_fail(line, "no layer in", text);
    if (row->kind.conditions)
        layer.net.more = line->settings;
    else
        layer.settings = line->settings;
    return fo__add_layer(flow, &layer);
}

/* Layers apart by ;, in which % is the number of the repetition; room for a copy is in the line. */
static fo_result fo__parse_layers(fo__line *line, fo_flow *flow, const char *text, size_t length,
                                  int repeat) {
    char  *part, *rest;
    size_t j, at;
    for (j = at = 0; j < length && at + 12 < line->room; j++)
        if (text[j] == '%')
            at += (size_t)snprintf(line->copy + at, 12, "%d", repeat);
        else
            line->copy[at++] = text[j];
    line->copy[at] = 0;
    for (part = line->copy; part; part = rest) {
        rest = strchr(part, ';');
        if (rest)
            *rest++ = 0;
        if (fo__parse_layer(line, flow, part) != FO_OK)
            return line->fo->failed;
    }
    return FO_OK;
}

/* Where a repeat count begins that stands before a layer, behind blanks; `length` if nowhere. */
static size_t fo__find_repeat(const char *text, size_t length) {
    const char *semicolon = text;
    size_t      at, digits;
    for (at = 0; at < length; at = (size_t)(semicolon - text) + 1) {
        at += strspn(text + at, " \t\r");
        digits = strspn(text + at, "0123456789");
        if (digits && at + digits < length && text[at + digits] == '*')
            return at;
        semicolon = at < length ? (const char *)memchr(text + at, ';', length - at) : NULL;
        if (semicolon == NULL)
            break;
    }
    return length;
}

/* A line without its comment: layers apart by ;. N* repeats all that follows it. */
static fo_result fo__parse_line(fo__line *line, fo_flow *flow, const char *text, size_t length) {
    size_t at = fo__find_repeat(text, length), used, semicolon = at;
    int    times = 1, k;
    char   count[12];
    line->room = 2 * length + 1024;
    line->copy = (char *)fo__arena_alloc(&flow->arena, line->room);
    if (line->copy == NULL)
        return FO_ERR_MEMORY;
    if (at == length)
        return fo__parse_layers(line, flow, text, length, 0);
    used = strcspn(text + at, "*");
    snprintf(count, sizeof count, "%.*s", (int)FO__MIN(used, 11), text + at);
    if (!fo__parse_int(count, &times) || times < 1 || times > 1000)
        return fo__line_fail(line, "a repeat count must be 1 to 1000, not", count);
    while (semicolon > 0 && text[semicolon] != ';')
        semicolon--;
    if (semicolon && fo__parse_layers(line, flow, text, semicolon, 0) != FO_OK)
        return line->fo->failed;
    at += used + 1;
    if (fo__find_repeat(text + at, length - at) < length - at)
        return fo__line_fail(line, "a line has room for one repeat count, not for two:", count);
    if (fo__charge(flow, times * (int64_t)(length - at)) != FO_OK)
        return FO_ERR_FORMAT;
    for (k = 0; k < times; k++)
        if (fo__parse_layers(line, flow, text + at, length - at, k) != FO_OK)
            return line->fo->failed;
    return FO_OK;
}

/* "input 1x28x28" or "input 5", and layers behind a ; */
static fo_flow *fo__parse_input(fo__line *line, const char *text, size_t length) {
    size_t   head = FO__MIN(strcspn(text, ";"), length);
    char     word[64], *at = word, *end;
    long     dim[3] = {1, 1, 1};
    int      n = 0;
    fo_shape shape;
    fo_flow *flow;
    snprintf(word, sizeof word, "%.*s", (int)FO__MIN(head, 63), text);
    if (strncmp(word, "input", 5) == 0 && strchr(" \t", word[5]) && head < 63)
        for (at = word + 5, end = at; n < 3; at = end + 1) {
            errno    = 0;
            dim[n++] = strtol(at, &end, 10);
            if (end == at || errno || dim[n - 1] > INT_MAX || dim[n - 1] < INT_MIN) {
                n = 0;
                break;
            }
            if (*end != 'x')
                break;
        }
    if (n) {
        end += strspn(end, " \t\r");
        n = *end ? 0 : n;
    }
    if (n != 1 && n != 3) {
        fo__line_fail(line, "'input CxHxW' or 'input D' is needed first, not", word);
        return NULL;
    }
    shape.c = (int)dim[0], shape.h = (int)dim[1], shape.w = (int)dim[2];
    flow    = fo_flow_create(line->fo, shape);
    if (flow)
        flow->params.limits = flow->buffers.limits = line->limits;
    if (flow && head < length &&
        fo__parse_line(line, flow, text + head + 1, length - head - 1) != FO_OK) {
        fo_flow_free(flow);
        return NULL;
    }
    return flow;
}

fo_result fo_add_layer(fo_flow *flow, const char *text) {
    fo__line line;
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (text == NULL)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_add_layer: no text");
    if (fo__flow_open(flow, text) != FO_OK)
        return flow->fo->failed;
    fo__line_at(&line, flow->fo, flow->n_layers + 2); /* its line in the flow's text */
    fo__parse_line(&line, flow, text, strlen(text));
    flow->broken |= flow->fo->failed != FO_OK; /* a layer that was wanted is missing */
    return flow->fo->failed;
}

/* limits: of a text that comes from a file, or NULL. */
static fo_flow *fo__flow_parse(fo_context *fo, const char *text, fo__limits *limits) {
    fo_flow *flow = NULL;
    fo__line line;
    int      number;
    if (fo__begin(fo) && text == NULL)
        fo__fail(fo, FO_ERR_ARGUMENT, "fo_flow_parse: no text");
    if (fo == NULL || text == NULL)
        return NULL;
    for (number = 1; *text; number++) {
        size_t length = strcspn(text, "\n"), used, skip = strspn(text, " \t\r");
        fo__line_at(&line, fo, number);
        line.limits = limits;
        for (used = 0; used < length && text[used] != '#';)
            used++;
        while (used > 0 && strchr(" \t\r", text[used - 1]))
            used--;
        if (used > skip) {
            if (flow == NULL) {
                flow = fo__parse_input(&line, text + skip, used - skip);
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
    else
        flow->params.limits = flow->buffers.limits = NULL;
    return flow;
}

fo_flow *fo_flow_parse(fo_context *fo, const char *text) { return fo__flow_parse(fo, text, NULL); }

/* ================================================================================================
   >>presets       named recipes as text, with their training defaults
   ============================================================================================= */

#define FO__IMAGE "dequantize\nlogit alpha=0.05\n"
/* n couplings under one mask, with MLPs of bottleneck l, or ResNets of k channels and b blocks. */
#define FO__MLPS(n, mask, l)                                                                       \
    n "* coupling mask=" mask ":% net=mlp hidden=512 bottleneck=" l "\n"
#define FO__RESNET(mask, k, b) "coupling mask=" mask " net=resnet channels=" k " blocks=" b "\n"
#define FO__RESNETS(n, mask, k, b) n "* " FO__RESNET(mask ":%", k, b)
/* A scale of RealNVP before the last, and the last, in the order of the paper's code: couplings
   change the even places of a checkerboard and the first half of the channels first. */
#define FO__THREE(mask, k, b)                                                                      \
    FO__RESNET(mask ":1", k, b) FO__RESNET(mask ":0", k, b) FO__RESNET(mask ":1", k, b)
#define FO__SCALE(k, k2, b)                                                                        \
    FO__THREE("checkerboard", k, b) "squeeze\n" FO__THREE("channel", k2, b) "split\n"
#define FO__LAST(k, b) FO__THREE("checkerboard", k, b) FO__RESNET("checkerboard:0", k, b)
/* Two scales for grey images, behind --- three for colour, with as many blocks as `colour` says. */
#define FO__REALNVP(k, k2, k4, b, colour)                                                          \
    FO__IMAGE FO__SCALE(k, k2, b) FO__LAST(k2, b)                                                  \
    "---\n" FO__IMAGE FO__SCALE(k, k2, colour) FO__SCALE(k2, k4, colour) FO__LAST(k4, colour)
/* Glow: steps of actnorm, 1x1 convolution and coupling, as one line that repeats. */
#define FO__STEPS(n, net) n "* actnorm; conv1x1; coupling mask=channel:1 net=" net "\n"
#define FO__GLOW(n, net)                                                                           \
    FO__IMAGE "squeeze\n" FO__STEPS(n, net) "split\nsqueeze\n" FO__STEPS(n, net)

/* One row a preset: name, what it is, its text, and the training defaults that are its own; where
   they say nothing, a batch has 32 samples and training its usual defaults. */
#define FO__PRESETS(X)                                                                             \
    X("mlp-cycle", "the cure: 8 cycle-mask couplings, st-network 512-10-512",                      \
      FO__IMAGE FO__MLPS("8", "cycle", "10"), p.lr = 2e-3, p.ema = 0.999, p.batch = 128)           \
    X("mlp-cycle-2", "the same with a bottleneck of 2",                                            \
      FO__IMAGE FO__MLPS("8", "cycle", "2"), p.lr = 2e-3, p.ema = 0.999, p.batch = 128)            \
    X("mlp-checker", "the control: 8 checkerboard couplings, st-network 512-10-512",               \
      FO__IMAGE FO__MLPS("8", "checkerboard", "10"), p.lr = 5e-4, p.ema = 0.999, p.batch = 128)    \
    X("mlp-horizontal", "8 couplings between top and bottom half, st-network 512-10-512",          \
      FO__IMAGE FO__MLPS("8", "horizontal", "10"), p.lr = 5e-4, p.ema = 0.999, p.batch = 128)      \
    X("tabular", "feature vectors: standardize, 8 couplings on halves, one hidden layer of 256",   \
      "standardize\n8* coupling mask=halves:% net=mlp hidden=256 act=relu\n",                      \
      p.lr = 1e-3, p.batch = 1024)                                                                 \
    X("features", "deep features: their direction, whitened, 2 couplings on 128 leading ones",     \
      "normalize\nwhiten\nsplit keep=128\n"                                                        \
      "2* coupling mask=halves:% net=mlp hidden=64 act=relu\n",                                    \
      p.lr = 1e-3, p.ema = 0.99, p.batch = 128)                                                    \
    X("realnvp-paper", "the failing baseline as published: two scales, 64 channels, 6 blocks",     \
      FO__REALNVP("64", "128", "256", "6", "8"),                                                   \
      p.lr = 5e-5, p.colour_lr = 1e-4, p.weight_decay = 5e-5)                                      \
    X("realnvp-small", "the same with 32 channels and 2 blocks",                                   \
      FO__REALNVP("32", "64", "128", "2", "2"), p.lr = 5e-4)                                       \
    X("realnvp-tiny", "the same with 16 channels and 2 blocks",                                    \
      FO__REALNVP("16", "32", "64", "2", "2"), p.lr = 1e-3, p.batch = 64)                          \
    X("checker8", "the control of cycle-resnet: 8 checkerboard couplings at one scale",            \
      FO__IMAGE FO__RESNETS("8", "checkerboard", "16", "2"), p.lr = 1e-3)                          \
    X("horizontal8", "co-adaptation: 8 couplings between top and bottom half",                     \
      FO__IMAGE FO__RESNETS("8", "horizontal", "16", "2"), p.lr = 1e-3)                            \
    X("horizontal3", "the same with 3 layers",                                                     \
      FO__IMAGE FO__RESNETS("3", "horizontal", "16", "2"), p.lr = 1e-3)                            \
    X("cycle-resnet", "8 cycle couplings with a ResNet of 16 channels and 2 blocks",               \
      FO__IMAGE FO__RESNETS("8", "cycle", "16", "2"), p.lr = 1e-3)                                 \
    X("cycle-resnet-neck", "the same through a bottleneck of 10",                                  \
      FO__IMAGE FO__RESNETS("8", "cycle", "16", "2 bottleneck=10"), p.lr = 3e-3, p.batch = 16)     \
    X("glow-paper", "Glow as published: 2 scales of 16 steps, highway networks of 200 channels",   \
      FO__GLOW("16", "highway channels=200 act=none"), p.lr = 5e-5, p.rmsprop = 1)                 \
    X("glow-small", "Glow that trains here: 2 scales of 6 steps, 48 channels",                     \
      FO__GLOW("6", "highway channels=48"), p.lr = 5e-4)

fo_preset fo_preset_at(int i) {
    fo_preset p;
    int       at = 0;
    memset(&p, 0, sizeof p);
#define FO__ROW(its_name, its_about, its_body, ...)                                                \
    if (i == at++) {                                                                             \
        p.name = its_name, p.about = its_about, p.body = its_body, p.batch = 32;                   \
        __VA_ARGS__;                                                                               \
    }
    FO__PRESETS(FO__ROW)
#undef FO__ROW
    return p;
}

fo_flow *fo_flow_preset(fo_context *fo, const char *name, fo_shape shape) {
    const size_t n = name ? strcspn(name, ":") : 0;
    const char  *body, *colour, *neck;
    fo_preset    preset;
    fo_flow     *flow;
    char         text[2048];
    int          i, l = 10;
    for (i = 0; (preset = fo_preset_at(i)).name; i++)
        if (strncmp(name ? name : "", preset.name, n) == 0 && preset.name[n] == 0)
            break;
    if (!fo__begin(fo) || preset.name == NULL) {
        fo__fail(fo, FO_ERR_ARGUMENT, "preset '%.40s' is not known: 'flowood presets' lists them",
                 name ? name : "");
        return NULL;
    }
    colour = strstr(preset.body, "---\n");
    body   = colour && shape.c > 1 ? colour + 4 : preset.body;
    neck   = strstr(body, "bottleneck=10\n");
    if (name[n] && (neck == NULL || !fo__parse_int(name + n + 1, &l) || l < 1 || l > 65536)) {
        fo__fail(fo, FO_ERR_ARGUMENT, "preset '%.40s': %s", name, neck
                 ? "the width of the bottleneck must be a whole number from 1 to 65536"
                 : "it has no bottleneck of 10 that could be chosen");
        return NULL;
    }
    snprintf(text, sizeof text, "input %dx%dx%d\n%.*s", shape.c, shape.h, shape.w,
             colour && shape.c == 1 ? (int)(colour - body) : (int)strlen(body), body);
    if (name[n]) /* with another l */
        snprintf(text, sizeof text, "input %dx%dx%d\n%.*sbottleneck=%d\n%s", shape.c, shape.h,
                 shape.w, (int)(neck - body), body, l, neck + 14);
    flow = fo_flow_parse(fo, text);
    if (flow) {
        flow->train.desc.lr           = shape.c > 1 && preset.colour_lr > 0 ? preset.colour_lr
                                                                            : preset.lr;
        flow->train.desc.batch        = preset.batch;
        flow->train.desc.ema          = preset.ema;
        flow->train.desc.weight_decay = preset.weight_decay;
        flow->train.desc.optimizer    = preset.rmsprop ? FO_RMSPROP : FO_ADAM;
    }
    return flow;
}

/* ================================================================================================
   >>workspace     everything one thread needs to run a flow

   Invariants layers with a mask own tapes in every workspace; scoring allocates nothing
   Cost       one pass over the data a call. A tape is for a fixed number of rows, and one sample is
              not to cost as much as a batch of 256: for scoring there are tapes of 1, 2, 4 ... rows
              too, which share the memory of the largest
   ============================================================================================= */

struct fo_workspace {
    fo__arena   arena;
    fo_context *fo;
    fo_flow    *flow;
    int         batch, train;
    int64_t     rows;    /* of the current call */
    int         n_tapes, tape; /* of each st-network, and which are in use */
    fo__slot   *slots;   /* one a layer */
    int         n_slots;
    fo_real    *scratch;
    fo_real    *values, *grads;
    fo_real    *state, *dstate, *spare; /* [batch,D] */
    double     *terms;          /* [1+layers,batch]; while decoding: logdets of the decode */
    double     *dlogdet;        /* [batch]: dLoss/d(logdet) of each row */
    const fo_real *dz;          /* [batch,D]: what the loss asks of z besides that, or NULL */
    const fo_data *data;        /* of the current call */
    const fo_data *negative;    /* or NULL; where the rows from `positive` on come from */
    int64_t     positive;
    const char *name;           /* of the data in messages: "" or "held-out " */
    int64_t    *sample;         /* which sample sits in each row, */
    uint64_t   *noise;          /* which random stream its noise comes from, */
    uint64_t    seed;           /* of this seed, */
    int         shared;         /* unless all rows have the same, of the flow's seed: */
    fo_real    *row_noise;      /* [D] for */
    int64_t     row_draw;       /* this draw, made when it is needed first; -2: none yet */
    uint64_t    row_seed;
    int         middle;         /* u = 1/2 instead of noise */
    int         any_values;     /* no sample, but near one: dequantize refuses nothing */
    fo_data     view;           /* rows in memory, of the current call */
    double     *row_terms;      /* [1+layers] of one row, for scores */
    fo_norm     norm;           /* what the batch norms of all tapes do */
    fo__pace    pace;
    struct fo__score_room *scores; /* NULL until scores want it */
    struct fo__trace_room *trace;  /* NULL until fo_trace wants it */
    int         scoring;        /* with gradients, but of the weights that scoring uses */
};

/* Calls fn with this workspace for the rows of its batch, which are shared out over threads. */
static void fo__rows(fo_workspace *ws, void (*fn)(void *arg, int64_t begin, int64_t end)) {
    fo_parallel_for(ws->fo, ws->rows, fo__grain(4 * FO__NS_ELEMENT * (double)ws->flow->size), fn,
                    ws);
}

static double *fo__logdet(fo_workspace *ws, int layer) {
    return ws->terms + (layer + 1) * (int64_t)ws->batch;
}

static fo_real *fo__state(fo_workspace *ws, int64_t row) {
    return ws->state + row * ws->flow->size;
}

/* What the hooks of a layer see of this batch. */
static fo_pass *fo__pass_open(fo_workspace *ws, int layer, fo_direction direction) {
    fo_pass *p    = &ws->slots[layer].pass;
    p->direction  = direction;
    p->rows       = ws->rows;
    p->dx         = direction == FO_BACKWARD ? ws->dstate : NULL;
    p->values     = ws->values;
    p->noise      = ws->shared ? ws->row_noise : NULL;
    p->seed       = ws->shared ? ws->flow->seed : ws->seed;
    p->middle     = ws->middle;
    p->any_values = ws->any_values || (ws->data && fo_data_dtype(ws->data) == FO_U8 &&
                                       ws->negative == NULL); /* bytes are whole numbers */
    p->data       = layer == 0 && direction == FO_ENCODE ? ws->data : NULL;
    p->negative   = p->data ? ws->negative : NULL;
    p->positive   = ws->positive;
    p->grads      = ws->train ? ws->grads : NULL;
    if (direction != FO_BACKWARD)
        memset(p->logdet, 0, (size_t)ws->rows * sizeof *p->logdet);
    return p;
}

static void fo__pass_hooks(fo_workspace *ws, int layer, fo_direction direction) {
    fo_pass             *p        = fo__pass_open(ws, layer, direction);
    const fo__layer     *l        = &ws->flow->layers[layer];
    const fo_layer_kind *kind     = l->see.kind;
    fo_real             *measured = ws->flow->buffer_values + l->measured;
    if (l->net_kind)
        fo__net_before(&ws->slots[layer], &ws->norm);
    if (kind->measure && !kind->front && direction == FO_ENCODE && *measured == 0 &&
        ws->norm.mode == FO_NORM_TRAIN) {
        kind->measure(p, 0, p->rows);
        *measured = 1;
    }
    if (kind->before)
        kind->before(p);
    if (ws->fo->failed != FO_OK)
        return;
    if (kind->rows)
        fo__pass_rows(p, kind->rows);
    else if (l->see.from)
        fo__pass_rows(p, fo__move_rows);
    if (kind->after)
        kind->after(p);
    if (l->net_kind)
        fo__net_after(&ws->slots[layer]);
}

/* The batch goes through one layer. */
static void fo__pass(fo_workspace *ws, int layer, fo_direction direction) {
    fo__enter(ws->fo);
    fo__pass_hooks(ws, layer, direction);
    fo__leave(ws->fo);
}

static void fo__workspace_bind(fo_workspace *ws) {
    fo_real *values = fo__values_for(ws->flow, ws->train && !ws->scoring);
    int      i, k;
    if (ws->values == values)
        return;
    ws->values = values;
    for (i = 0; i < ws->flow->n_layers; i++)
        for (k = 0; ws->slots[i].tapes && k < ws->n_tapes; k++)
            fo__tape_bind(ws->slots[i].tapes[k].tape, values, ws->grads, ws->flow->buffer_values,
                          ws->slots[i].kept, ws->scratch);
}

/* The next pass is of so many rows: the smallest tapes that have room for them will do. */
static void fo__set_rows(fo_workspace *ws, int64_t rows) {
    int i, tape = ws->n_tapes - 1;
    ws->rows = rows;
    while (tape > 0 && (int64_t)1 << (tape - 1) >= rows)
        tape--;
    if (tape == ws->tape)
        return;
    ws->tape = tape;
    for (i = 0; i < ws->flow->n_layers; i++)
        if (ws->slots[i].tapes)
            ws->slots[i].net = ws->slots[i].tapes[tape];
}

/* Which couplings keep their activations until backward? Those nearest to z, as many as the
   budget allows, of which gradients, moments and scratch have taken their part; the others share
   the block of the largest of them. */
static fo_result fo__workspace_kept(fo_workspace *ws, double budget_mb, int64_t scratch) {
    double   taken  = 3.0 * (double)ws->flow->params.size + (double)scratch +
                    3.0 * (double)ws->batch * (double)ws->flow->size;
    double   budget = budget_mb * 1e6 / sizeof(fo_real) - taken, kept = 0, shared = 0;
    fo_real *block  = NULL;
    int      i, n = ws->flow->n_layers;
    for (i = 0; i < n; i++)
        if (ws->slots[i].tapes) {
            kept += (double)ws->slots[i].net.tape->kept_size;
            shared = FO__MAX(shared, (double)ws->slots[i].net.tape->kept_size);
        }
    if (budget_mb > 0 && kept > budget) {
        block = fo__reals(&ws->arena, (int64_t)shared);
        if (block == NULL)
            return FO_ERR_MEMORY;
    }
    for (i = 0; i < n; i++) {
        fo__slot *slot = &ws->slots[i];
        if (slot->tapes == NULL)
            continue;
        slot->recompute = block && kept + shared > budget;
        if (slot->recompute)
            kept -= (double)slot->net.tape->kept_size;
        slot->kept = slot->recompute ? block : fo__reals(&ws->arena, slot->net.tape->kept_size);
        if (slot->kept == NULL)
            return FO_ERR_MEMORY;
    }
    return FO_OK;
}

/* What stays the same of a layer's passes in this workspace. */
static void fo__slot_open(fo_workspace *ws, int layer) {
    fo__slot       *slot = &ws->slots[layer];
    fo_pass        *p    = &slot->pass;
    const fo_layer *l    = &ws->flow->layers[layer].see;
    slot->layer = &ws->flow->layers[layer];
    p->layer    = l;
    p->fo       = ws->fo;
    p->size     = ws->flow->size;
    p->x        = ws->state;
    p->spare    = ws->spare;
    p->logdet   = fo__logdet(ws, layer);
    p->dlogdet  = ws->dlogdet;
    p->buffers  = ws->flow->buffer_values;
    p->stream   = ws->noise;
    p->sample   = ws->sample;
    if (l->work)
        p->work = fo__doubles(&ws->arena, l->work);
    if (l->save && ws->train)
        p->save = fo__reals(&ws->arena, (int64_t)ws->batch * l->save);
}

/* The tapes of a layer's st-network; *scratch grows to what they need. None keeps more than the
   largest of them, which is the last. */
static fo_result fo__slot_tapes(fo_workspace *ws, fo__slot *slot, int needs_grad,
                                int64_t *scratch) {
    int k;
    slot->tapes = (fo__net_tape *)fo__arena_alloc(&ws->arena, fo__times(ws->n_tapes,
                                                                        sizeof *slot->tapes));
    if (slot->tapes == NULL)
        return FO_ERR_MEMORY;
    for (k = 0; k < ws->n_tapes; k++) {
        fo__net_tape *net = &slot->tapes[k];
        net->rows = k + 1 < ws->n_tapes ? 1 << k : ws->batch;
        net->tape = fo__layer_tape(ws->fo, ws->flow, slot->layer, net->rows, needs_grad, &net->in,
                                   &net->out);
        if (net->tape == NULL || fo__tape_layout(net->tape, ws->train) != FO_OK)
            return FO_ERR_MEMORY;
        *scratch  = FO__MAX(*scratch, net->tape->scratch_size);
        slot->net = *net;
    }
    return FO_OK;
}

static fo_result fo__workspace_tapes(fo_workspace *ws, double budget_mb) {
    fo_flow *flow    = ws->flow;
    int64_t  scratch = 0;
    int      i, learns = 0; /* what comes before all that learns needs no gradient */
    for (i = 0; i < flow->n_layers; i++) {
        fo__slot        *slot = &ws->slots[i];
        const fo__layer *l    = &flow->layers[i];
        fo__slot_open(ws, i);
        if (l->net_kind && fo__slot_tapes(ws, slot, ws->train && learns, &scratch) != FO_OK)
            return FO_ERR_MEMORY;
        if (ws->fo->failed != FO_OK)
            return ws->fo->failed;
        learns |= l->learns;
    }
    ws->scratch = fo__reals(&ws->arena, scratch);
    return ws->scratch ? fo__workspace_kept(ws, budget_mb, scratch) : FO_ERR_MEMORY;
}

static fo_workspace *fo__workspace_build(fo_context *fo, fo_flow *flow, int batch, int train,
                                         double budget_mb) {
    fo_workspace *ws;
    int64_t       n = flow->size;
    if (fo__flow_ready(fo, flow) != FO_OK)
        return NULL;
    ws = (fo_workspace *)fo__object(fo, sizeof *ws);
    if (ws == NULL)
        return NULL;
    ws->fo     = fo;
    ws->flow   = flow;
    ws->batch  = batch;
    ws->train  = train;
    ws->n_tapes = 1;
    while (!train && (int64_t)1 << (ws->n_tapes - 1) < batch)
        ws->n_tapes++;
    ws->tape   = ws->n_tapes - 1;
    ws->n_slots = flow->n_layers;
    ws->slots  = (fo__slot *)fo__arena_alloc(&ws->arena,
                                             fo__times(flow->n_layers, sizeof *ws->slots));
    ws->spare  = fo__reals(&ws->arena, batch * n);
    ws->state  = fo__reals(&ws->arena, batch * n);
    ws->terms  = fo__doubles(&ws->arena, batch * (1 + (int64_t)flow->n_layers));
    ws->sample = (int64_t *)fo__arena_alloc(&ws->arena, fo__times(batch, sizeof(int64_t)));
    ws->noise  = (uint64_t *)fo__arena_alloc(&ws->arena, fo__times(batch, sizeof(uint64_t)));
    ws->row_terms = fo__doubles(&ws->arena, 1 + (int64_t)flow->n_layers);
    ws->row_noise = fo__reals(&ws->arena, n);
    ws->row_draw  = -2;
    ws->norm.mode = train ? FO_NORM_TRAIN : FO_NORM_RUNNING;
    ws->name   = "";
    if (train) {
        ws->dlogdet = fo__doubles(&ws->arena, batch);
        ws->dstate  = fo__reals(&ws->arena, batch * n);
        ws->grads   = fo__reals(&ws->arena, flow->params.size);
    }
    if (fo->failed || fo__workspace_tapes(ws, budget_mb) != FO_OK) {
        fo_workspace_free(ws);
        return NULL;
    }
    fo__workspace_bind(ws);
    return ws;
}

static fo_workspace *fo__workspace_make(fo_context *fo, fo_flow *flow, int batch, int train,
                                        double budget_mb) {
    fo_workspace *ws;
    fo__enter(fo);
    ws = fo__workspace_build(fo, flow, batch, train, budget_mb);
    fo__leave(fo);
    return ws;
}

/* What scores need beside a pass: see >>scores. */
struct fo__score_room {
    fo_real       *x;
    double        *gradient, *work, *features;
    int            width;      /* doubles that fit into features */
    fo_workspace  *backward;   /* of one sample, for gradients */
    fo_workspace  *background; /* of the background model, as many samples as the flow's, and */
    double        *behind;     /* [batch] the log_prob that it gives them */
    fo_workspace  *views;      /* for the mirrored and rotated copies of the batch, */
    unsigned char *copies;     /* [batch][7] whose pixels lie here, */
    double        *copied;     /* [batch][7] and their log_prob here; */
    double         view[16];   /* what a score is told of them */
};

static fo_result fo__score_room_make(fo_workspace *ws) {
    const int64_t          size = ws->flow->size, layers = ws->flow->n_layers;
    struct fo__score_room *room;
    room = (struct fo__score_room *)fo__arena_alloc(&ws->arena, sizeof *room);
    if (room == NULL)
        return FO_ERR_MEMORY;
    room->width    = (int)FO__MAX(size, layers + 1);
    room->x        = fo__reals(&ws->arena, size);
    room->gradient = fo__doubles(&ws->arena, layers);
    room->work     = fo__doubles(&ws->arena, 5 * size + 64);
    room->features = fo__doubles(&ws->arena, room->width);
    ws->scores     = room;
    return ws->fo->failed;
}

fo_workspace *fo_workspace_create(fo_context *fo, fo_flow *flow, int batch) {
    fo_workspace *ws;
    if (!fo__begin(fo))
        return NULL;
    if (flow == NULL) {
        fo__fail(fo, FO_ERR_ARGUMENT, "a workspace needs a flow");
        return NULL;
    }
    if (batch < 0 || batch > 1 << 20) {
        fo__fail(fo, FO_ERR_ARGUMENT, "a workspace for %d samples: 1 to 2^20 are possible", batch);
        return NULL;
    }
    ws = fo__workspace_make(fo, flow, batch ? batch : 256, 0, 0);
    if (ws && fo__score_room_make(ws) != FO_OK) {
        fo_workspace_free(ws);
        return NULL;
    }
    return ws;
}

void fo_workspace_free(fo_workspace *ws) {
    int i, k;
    if (ws == NULL)
        return;
    if (ws->scores) {
        fo_workspace_free(ws->scores->backward);
        fo_workspace_free(ws->scores->background);
        fo_workspace_free(ws->scores->views);
    }
    for (i = 0; ws->slots && i < ws->n_slots; i++) /* the flow may be gone already */
        for (k = 0; ws->slots[i].tapes && k < ws->n_tapes; k++)
            fo_tape_free(ws->slots[i].tapes[k].tape);
    fo__object_free(ws);
}

static fo_result fo__check_data(fo_context *fo, const fo_flow *flow, const fo_data *data) {
    fo_shape a = flow->shape, b = fo_data_shape(data);
    if (data == NULL)
        return fo__fail(fo, FO_ERR_ARGUMENT, "there is no data");
    if (a.c != b.c || a.h != b.h || a.w != b.w)
        return fo__fail(fo, FO_ERR_SHAPE, "the data's samples are %dx%dx%d, the flow's "
                        "%dx%dx%d%s", b.c, b.h, b.w, a.c, a.h, a.w, fo__shape_hint(b));
    return FO_OK;
}

/* Where row r of the batch comes from. */
static const fo_data *fo__row_data(const fo_workspace *ws, int64_t r) {
    return ws->negative && r >= ws->positive ? ws->negative : ws->data;
}

static int64_t fo__row_number(const fo_workspace *ws, int64_t r) {
    return fo__origin(fo__row_data(ws, r), ws->sample[r]);
}

static void fo__load_rows(void *arg, int64_t begin, int64_t end) {
    fo_workspace *ws = (fo_workspace *)arg;
    int64_t       r;
    for (r = begin; r < end; r++)
        fo__data_rows(fo__row_data(ws, r), ws->sample[r], fo__state(ws, r));
}

/* Samples first, first + 1 ... of the data are the rows of the next pass, each with the noise that
   it has in the first epoch of training under ws->seed. */
static void fo__fill(fo_workspace *ws, int64_t first, int64_t rows) {
    int64_t r;
    fo__set_rows(ws, rows);
    ws->middle = ws->shared = 0;
    for (r = 0; r < rows; r++)
        ws->noise[r] = FO__STREAM_NOISE + (uint64_t)(ws->sample[r] = first + r);
}

/* The same for scoring: all rows have the noise of this draw, so that a sample's score is that of
   its values alone. */
static void fo__fill_draw(fo_workspace *ws, int64_t first, int64_t rows, int draw) {
    const uint64_t seed = ws->flow->seed, stream = FO__STREAM_SCORE + (uint64_t)FO__MAX(draw, 0);
    int64_t        i, n = ws->flow->size;
    fo__fill(ws, first, rows);
    for (i = 0; i < rows; i++)
        ws->noise[i] = stream;
    ws->middle = draw < 0;
    ws->shared = 1;
    if (ws->row_draw == draw && ws->row_seed == seed)
        return;
    ws->row_draw = draw;
    ws->row_seed = seed;
    if (draw >= 0)
        fo_random_uniform(seed, stream, 0, n, ws->row_noise);
    else
        for (i = 0; i < n; i++)
            ws->row_noise[i] = (fo_real)0.5;
}

/* ================================================================================================
   >>scoring       x -> z with its terms, what a call wants of that, and z -> x
   ============================================================================================= */
/* log N(z; 0, I) = -|z|^2/2 - D/2 log 2 pi */
static void fo__base_rows(void *arg, int64_t begin, int64_t end) {
    fo_workspace *ws = (fo_workspace *)arg;
    int64_t       r, size = ws->flow->size;
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

/* Rows [from,to) of the batch went wrong, and what reached the first layer that learns is known to
   be finite: was it far from what a flow can learn, or did training go astray? */
static void fo__nan_advice(fo_workspace *ws, int64_t from, int64_t to, char *text, size_t size) {
    const fo_data *data;
    double         most = 0;
    int64_t        r, i, row = 0, at = 0, pixels = (int64_t)ws->flow->shape.h * ws->flow->shape.w;
    int            layer;
    fo__rows(ws, fo__load_rows);
    for (layer = 0; layer < ws->flow->n_layers && ws->flow->layers[layer].see.kind->front; layer++)
        fo__pass(ws, layer, FO_ENCODE);
    for (r = from; r < to; r++)
        for (i = 0; i < ws->flow->size; i++)
            if (fabs((double)fo__state(ws, r)[i]) > most) {
                most = fabs((double)fo__state(ws, r)[i]);
                row = r, at = i;
            }
    data = ws->negative && row >= ws->positive ? ws->negative : ws->data;
    if (most < 1e6)
        snprintf(text, size, "; the data are sound there: try a lower learning rate or a smaller "
                 "clip");
    else
        snprintf(text, size, "; sample %lld has %g at channel %lld, place %lld: leave it out, or "
                 "scale the data (standardize)", (long long)fo__origin(data, ws->sample[row]),
                 fo__value(data->type, data->rows, (size_t)(ws->sample[row] * ws->flow->size + at)),
                 (long long)(at / pixels), (long long)(at % pixels));
}

/* Element i of a row is not finite behind this layer (-1: in the data). */
static fo_result fo__nan_at(fo_workspace *ws, int layer, int64_t r, int64_t i, double value) {
    const fo__layer *l = layer < 0 ? NULL : &ws->flow->layers[layer];
    fo_shape         s = l ? l->see.shape : ws->flow->shape;
    const fo_data   *data = ws->negative && r >= ws->positive ? ws->negative : ws->data;
    char             place[96], where[160] = "in the data", advice[240];
    if (l)
        snprintf(where, sizeof where, "at layer %d (%.100s)", layer, l->text);
    if (s.h * s.w == 1)
        snprintf(place, sizeof place, "column %d", (int)i);
    else
        snprintf(place, sizeof place, "channel %d, row %d, column %d", (int)(i / (s.h * s.w)),
                 (int)(i / s.w % s.h), (int)(i % s.w));
    if (l == NULL)
        snprintf(advice, sizeof advice, ": leave the sample out, or repair it");
    else if (l->see.kind->front)
        snprintf(advice, sizeof advice, ": the data have %g there%s%s",
                 fo__value(data->type, data->rows, (size_t)(ws->sample[r] * ws->flow->size + i)),
                 l->see.kind->advice ? "; " : "", l->see.kind->advice ? l->see.kind->advice : "");
    else
        fo__nan_advice(ws, r, r + 1, advice, sizeof advice);
    return fo__fail(ws->fo, FO_ERR_NUMERIC, "%ssample %lld: %s %s, %s%s", ws->name,
                    (long long)fo__row_number(ws, r), value != value ? "nan" : "infinity", where,
                    place, advice);
}

/* The slow second look after log_prob was not finite: which layer, element and sample? */
static fo_result fo__find_nan(fo_workspace *ws) {
    const fo_flow *flow = ws->flow;
    char           advice[160];
    int64_t        r, i;
    int            layer;
    fo__rows(ws, fo__load_rows);
    for (layer = -1; layer < flow->n_layers; layer++) {
        if (layer >= 0)
            fo__pass(ws, layer, FO_ENCODE);
        for (r = 0; r < ws->rows; r++) {
            double logdet = layer < 0 ? 0 : fo__logdet(ws, layer)[r];
            for (i = 0; i < flow->size; i++) {
                double value = (double)fo__state(ws, r)[i];
                if (layer < 0) /* float may overflow where the data do not */
                    value = fo__value(fo__row_data(ws, r)->type, fo__row_data(ws, r)->rows,
                                      (size_t)(ws->sample[r] * flow->size + i));
                if (value - value != 0)
                    return fo__nan_at(ws, layer, r, i, value);
            }
            if (logdet - logdet != 0) {
                fo__nan_advice(ws, r, r + 1, advice, sizeof advice);
                return fo__fail(ws->fo, FO_ERR_NUMERIC, "%ssample %lld: the logdet of layer %d "
                                "(%.100s) is not finite%s", ws->name,
                                (long long)fo__row_number(ws, r), layer,
                                flow->layers[layer].text, advice);
            }
        }
    }
    fo__nan_advice(ws, 0, ws->rows, advice, sizeof advice);
    return fo__fail(ws->fo, FO_ERR_NUMERIC, "%ssample %lld: log_prob overflowed%s", ws->name,
                    (long long)fo__row_number(ws, 0), advice);
}

/* x -> z for ws->rows samples: terms and state are the result. */
static fo_result fo__encode(fo_workspace *ws) {
    int i;
    fo__rows(ws, fo__load_rows);
    for (i = 0; i < ws->flow->n_layers && ws->fo->failed == FO_OK; i++)
        fo__pass(ws, i, FO_ENCODE);
    fo__rows(ws, fo__base_rows);
    return ws->fo->failed;
}

/* What a call wants to know of samples first .. first+count-1, all from one encode of each. What
   is NULL is not wanted. */
typedef struct fo__request {
    const fo_data *data;
    int64_t        first, count;
    int            draw, draws;    /* draws > 1: log_prob is that of the mean of p over so many */
    int            training_noise; /* every sample has noise of its own */
    double        *log_prob;       /* [count]           */
    double        *terms;          /* [count][1+layers] */
    fo_real       *z;              /* [count][D]        */
    const int64_t *order;          /* which samples, or NULL: one after the other */
    /* Called for every sample: it is in this row of the workspace, and number i of the request. */
    fo_result (*take)(void *arg, fo_workspace *ws, int64_t row, int64_t i, double log_prob,
                      const double *terms);
    void          *arg;
} fo__request;

static fo__request fo__request_of(const fo_data *data, int64_t first, int64_t count, int draw) {
    fo__request q;
    memset(&q, 0, sizeof q);
    q.data = data, q.first = first, q.count = count, q.draw = draw, q.draws = 1;
    return q;
}

/* log(exp(a) + exp(b)) */
static double fo__log_add(double a, double b) {
    return FO__MAX(a, b) + log1p(exp(-fabs(a - b)));
}

/* What the batch, samples `done` and following under draw number k, has to say to the request. */
static fo_result fo__request_take(fo_workspace *ws, const fo__request *q, int64_t done, int k) {
    const int columns = 1 + ws->flow->n_layers;
    int64_t   r;
    int       i;
    if (q->z && k == 0)
        memcpy(q->z + done * ws->flow->size, ws->state,
               (size_t)(ws->rows * ws->flow->size) * sizeof *q->z);
    for (r = 0; r < ws->rows; r++) {
        double  log_prob = fo__row_log_prob(ws, r);
        double *terms    = q->terms ? q->terms + (done + r) * columns : ws->row_terms;
        if (log_prob - log_prob != 0)
            return fo__find_nan(ws);
        if (q->log_prob)
            q->log_prob[done + r] = k ? fo__log_add(q->log_prob[done + r], log_prob) : log_prob;
        if (k > 0 || (q->terms == NULL && q->take == NULL))
            continue;
        for (i = 0; i < columns; i++)
            terms[i] = ws->terms[i * (int64_t)ws->batch + r];
        if (q->take && q->take(q->arg, ws, r, done + r, log_prob, terms) != FO_OK)
            return ws->fo->failed;
    }
    return FO_OK;
}

static fo_result fo__request_check(fo_workspace *ws, const fo__request *q) {
    if (fo__check_data(ws->fo, ws->flow, q->data) != FO_OK)
        return ws->fo->failed;
    if (q->first < 0 || q->count < 0 || q->first > fo_data_count(q->data) - q->count ||
        q->draw < FO_DRAW_MIDDLE)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "%lld samples from number %lld on, draw %d: the "
                        "data has %lld samples, and draws start at 0", (long long)q->count,
                        (long long)q->first, q->draw, (long long)fo_data_count(q->data));
    if (q->draws < 1 || q->draws > 1 << 20)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "the mean over %d draws: 1 to 2^20 are possible",
                        q->draws);
    return FO_OK;
}

static fo_result fo__run(fo_workspace *ws, const fo__request *q) {
    int64_t done, r;
    int     k;
    if (fo__request_check(ws, q) != FO_OK)
        return ws->fo->failed;
    fo__workspace_bind(ws);
    ws->norm.measured = 0;
    ws->data          = q->data;
    ws->seed          = ws->flow->seed;
    fo__enter(ws->fo);
    for (done = 0; done < q->count && ws->fo->failed == FO_OK; done += ws->rows) {
        for (k = 0; k < q->draws && ws->fo->failed == FO_OK; k++) {
            int64_t rows = FO__MIN(ws->batch, q->count - done);
            if (q->training_noise)
                fo__fill(ws, q->first + done, rows);
            else
                fo__fill_draw(ws, q->first + done, rows, q->draw + k);
            if (q->order)
                for (r = 0; r < rows; r++)
                    ws->sample[r] = q->order[done + r];
            fo__pace_begin(ws->fo, &ws->pace, fo_clock());
            fo__encode(ws);
            fo__pace_end(ws->fo, &ws->pace, fo_clock(), (double)rows);
            if (ws->fo->failed == FO_OK)
                fo__request_take(ws, q, done, k);
        }
        ws->norm.measured += ws->rows;
        if (q->draws > 1)
            for (r = done; r < done + ws->rows; r++)
                q->log_prob[r] -= log((double)q->draws);
    }
    return fo__leave(ws->fo);
}

/* The same for a public call whose answer goes to `out`. */
static fo_result fo__answer(fo_workspace *ws, const fo__request *q, const void *out) {
    if (!FO__BEGIN(ws))
        return FO_ERR_ARGUMENT;
    if (out == NULL && q->count > 0)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "there is no place for the answers");
    return fo__run(ws, q);
}

/* Rows in memory as the samples of a request. */
static fo_result fo__request_rows(fo_workspace *ws, fo__request *q, const void *rows,
                                  fo_dtype type, int64_t count) {
    if (fo__view(ws->fo, "rows in memory", rows, type, count, ws->flow->shape, &ws->view) != FO_OK)
        return ws->fo->failed;
    q->data  = &ws->view;
    q->first = 0;
    q->count = count;
    return FO_OK;
}

/* And for rows in memory. */
static fo_result fo__answer_rows(fo_workspace *ws, fo__request *q, const void *rows, fo_dtype type,
                                 int64_t count, const void *out) {
    if (!FO__BEGIN(ws))
        return FO_ERR_ARGUMENT;
    if (count == 0)
        return FO_OK;
    if (fo__request_rows(ws, q, rows, type, count) != FO_OK)
        return ws->fo->failed;
    return fo__answer(ws, q, out);
}

fo_result fo_workspace_norm(fo_workspace *ws, fo_norm_mode mode) {
    if (!FO__BEGIN(ws))
        return FO_ERR_ARGUMENT;
    if (mode != FO_NORM_RUNNING && mode != FO_NORM_BATCH)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "scoring uses FO_NORM_RUNNING or FO_NORM_BATCH; "
                        "fo_train and fo_recalibrate change running statistics");
    ws->norm.mode = mode;
    return FO_OK;
}

/* One pass in which every batch norm adds up exact statistics of what reaches it. */
fo_result fo_recalibrate(fo_flow *flow, const fo_data *data, int64_t count) {
    fo_workspace *ws;
    fo_real      *old;
    size_t        size;
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (count < 1)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_recalibrate on %lld samples: at least 1 is "
                        "needed", (long long)count);
    if (fo__weights_free(flow, "fo_recalibrate") != FO_OK)
        return flow->fo->failed;
    ws   = fo__workspace_make(flow->fo, flow, 256, 0, 0);
    old  = ws ? fo__reals(&ws->arena, flow->buffers.size) : NULL;
    size = old ? (size_t)flow->buffers.size * sizeof *old : 0;
    if (old) {
        fo__request q    = fo__request_of(data, 0, count, 0);
        q.training_noise = 1;
        memcpy(old, flow->buffer_values, size);
        ws->norm.mode = FO_NORM_MEASURE;
        if (fo__run(ws, &q) != FO_OK)
            memcpy(flow->buffer_values, old, size); /* bad data leave the flow as it was */
        else
            flow->changed = 1;
    }
    fo_workspace_free(ws);
    return flow->fo->failed;
}

fo_result fo_log_prob(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                      int draw, double *log_prob) {
    fo__request q = fo__request_of(data, first, count, draw);
    q.log_prob    = log_prob;
    return fo__answer(ws, &q, log_prob);
}

fo_result fo_log_prob_terms(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                            int draw, double *terms) {
    fo__request q = fo__request_of(data, first, count, draw);
    q.terms       = terms;
    return fo__answer(ws, &q, terms);
}

fo_result fo_encode(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count, int draw,
                    fo_real *z) {
    fo__request q = fo__request_of(data, first, count, draw);
    q.z           = z;
    return fo__answer(ws, &q, z);
}

fo_result fo_log_prob_mean(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                           int draws, double *log_prob) {
    fo__request q = fo__request_of(data, first, count, 0);
    q.draws       = draws;
    q.log_prob    = log_prob;
    return fo__answer(ws, &q, log_prob);
}

fo_result fo_log_prob_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                           int draw, double *log_prob) {
    fo__request q = fo__request_of(NULL, 0, 0, draw);
    q.log_prob    = log_prob;
    return fo__answer_rows(ws, &q, rows, type, count, log_prob);
}

fo_result fo_encode_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                         int draw, fo_real *z) {
    fo__request q = fo__request_of(NULL, 0, 0, draw);
    q.z           = z;
    return fo__answer_rows(ws, &q, rows, type, count, z);
}

/* z -> x of the rows in the state. */
static fo_result fo__decode(fo_workspace *ws, fo_real *x, double *logdet) {
    int64_t r, i, size = ws->flow->size;
    int     k;
    for (k = ws->flow->n_layers - 1; k >= 0 && ws->fo->failed == FO_OK; k--)
        fo__pass(ws, k, FO_DECODE);
    memcpy(x, ws->state, (size_t)(ws->rows * size) * sizeof *x);
    if (logdet)
        for (r = 0; r < ws->rows; r++)
            for (k = 0, logdet[r] = 0; k < ws->flow->n_layers; k++)
                logdet[r] += fo__logdet(ws, k)[r];
    for (i = 0; i < ws->rows * size; i++)
        if (x[i] - x[i] != 0)
            return fo__fail(ws->fo, FO_ERR_NUMERIC, "decoding row %lld gave a number that is not "
                            "finite: its latent lies far outside what the flow has learned; try a "
                            "lower temperature", (long long)(i / size));
    return ws->fo->failed;
}

/* May `count` samples go from `from` to `to`? */
static fo_result fo__decode_ready(fo_workspace *ws, int64_t count, const void *from,
                                  const void *to) {
    if (!FO__BEGIN(ws))
        return FO_ERR_ARGUMENT;
    if (count < 0 || (count && (from == NULL || to == NULL)))
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "%lld samples to decode: 0 or more are possible, "
                        "and need numbers to come from and go to", (long long)count);
    fo__workspace_bind(ws);
    return FO_OK;
}

fo_result fo_decode(fo_workspace *ws, const fo_real *z, int64_t count, fo_real *x,
                    double *logdet) {
    int64_t done;
    if (fo__decode_ready(ws, count, z, x) != FO_OK)
        return FO_ERR_ARGUMENT;
    for (done = 0; done < count; done += ws->rows) {
        int64_t at = done * ws->flow->size;
        fo__set_rows(ws, FO__MIN(ws->batch, count - done));
        memcpy(ws->state, z + at, (size_t)(ws->rows * ws->flow->size) * sizeof *z);
        if (fo__decode(ws, x + at, logdet ? logdet + done : NULL) != FO_OK)
            return ws->fo->failed;
    }
    return FO_OK;
}

fo_result fo_sample(fo_workspace *ws, uint64_t seed, int64_t count, double temperature,
                    fo_real *x) {
    int64_t done, r, i;
    if (fo__decode_ready(ws, count, x, x) != FO_OK)
        return FO_ERR_ARGUMENT;
    if (!(temperature >= 0 && temperature < 1e6))
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "a temperature of %g: 0 and above are possible, 1 "
                        "samples the model's distribution", temperature);
    for (done = 0; done < count; done += ws->rows) {
        fo__set_rows(ws, FO__MIN(ws->batch, count - done));
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
   >>trace         looking inside: one view a layer

   Purpose    an encode that stops after every layer and shows what was there and what is there now
   Callers    users, for pictures
   Cost       four more states of a batch in the workspace, and an encode with three copies of the
              state at each layer; nothing where it is not called
   ============================================================================================= */
struct fo__trace_room {
    fo_real *before, *raw_s, *s, *t;       /* [batch,D] */
    int     *place_before, *place_after;   /* [D]       */
};

static fo_result fo__trace_make(fo_workspace *ws) {
    const int64_t          size = ws->flow->size, n = ws->batch * size;
    struct fo__trace_room *room;
    if (ws->trace)
        return FO_OK;
    room = (struct fo__trace_room *)fo__arena_alloc(&ws->arena, sizeof *room);
    if (room == NULL)
        return FO_ERR_MEMORY;
    room->before       = fo__reals(&ws->arena, n);
    room->raw_s        = fo__reals(&ws->arena, n);
    room->s            = fo__reals(&ws->arena, n);
    room->t            = fo__reals(&ws->arena, n);
    room->place_before = (int *)fo__arena_alloc(&ws->arena, fo__times(2 * size, sizeof(int)));
    if (ws->fo->failed != FO_OK)
        return ws->fo->failed;
    room->place_after = room->place_before + size;
    ws->trace         = room;
    return FO_OK;
}

/* What the layer that the batch has just passed says of s and t. */
static void fo__trace_explain(fo_workspace *ws, const fo_pass *p, fo_view *view) {
    const struct fo__trace_room *room = ws->trace;
    const int64_t                size = ws->flow->size;
    const size_t                 bytes = (size_t)(ws->rows * size) * sizeof(fo_real);
    int64_t                      r;
    view->net = p->net;
    if (p->layer->kind->explain == NULL)
        return;
    memset(room->raw_s, 0, bytes);
    memset(room->s, 0, bytes);
    memset(room->t, 0, bytes);
    for (r = 0; r < ws->rows; r++)
        p->layer->kind->explain(p, r, room->raw_s + r * size, room->s + r * size,
                                room->t + r * size);
    view->raw_s = room->raw_s, view->s = room->s, view->t = room->t;
}

/* The batch passes a layer, and is shown. Nonzero: enough. */
static int fo__trace_layer(fo_workspace *ws, int i, int (*take)(void *user, const fo_view *view),
                           void *user) {
    const struct fo__trace_room *room = ws->trace;
    const fo__layer             *l    = &ws->flow->layers[i];
    const int64_t                size = ws->flow->size;
    fo__interrupted              call;
    fo_view                      view;
    int64_t                      k;
    int                          enough;
    memset(&view, 0, sizeof view);
    memcpy(room->before, ws->state, (size_t)(ws->rows * size) * sizeof(fo_real));
    for (k = 0; k < size; k++)
        room->place_before[k] = i ? room->place_after[k] : (int)k;
    if (l->see.from)
        for (k = 0; k < l->see.width; k++)
            room->place_after[k] = room->place_before[l->see.from[k]];
    for (k = l->see.from ? l->see.width : 0; k < size; k++)
        room->place_after[k] = room->place_before[k];
    fo__pass(ws, i, FO_ENCODE);
    if (l->net_kind && ws->fo->failed == FO_OK)
        fo__trace_explain(ws, &ws->slots[i].pass, &view);
    if (ws->fo->failed != FO_OK)
        return 1;
    view.layer = &l->see;
    view.first = ws->sample[0], view.rows = ws->rows, view.size = size;
    view.before = room->before, view.after = ws->state, view.logdet = fo__logdet(ws, i);
    view.place_before = room->place_before, view.place_after = room->place_after;
    call   = fo__interrupt(ws->fo);
    enough = take(user, &view);
    fo__resume(ws->fo, call);
    return enough;
}

fo_result fo_trace(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count, int draw,
                   int (*take)(void *user, const fo_view *view), void *user) {
    fo__request q = fo__request_of(data, first, count, draw);
    int64_t     done, r;
    int         i, enough = 0;
    if (!FO__BEGIN(ws))
        return FO_ERR_ARGUMENT;
    if (take == NULL)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "fo_trace: there is no function to show it to");
    if (fo__request_check(ws, &q) != FO_OK || fo__trace_make(ws) != FO_OK)
        return ws->fo->failed;
    fo__workspace_bind(ws);
    ws->data = data;
    fo__enter(ws->fo);
    for (done = 0; done < count && !enough && ws->fo->failed == FO_OK; done += ws->rows) {
        fo__fill_draw(ws, first + done, FO__MIN(ws->batch, count - done), draw);
        fo__rows(ws, fo__load_rows);
        for (i = 0; i < ws->flow->n_layers && !enough; i++)
            enough = fo__trace_layer(ws, i, take, user);
        fo__rows(ws, fo__base_rows);
        for (r = 0; r < ws->rows && !enough && ws->fo->failed == FO_OK; r++) {
            double log_prob = fo__row_log_prob(ws, r);
            if (log_prob - log_prob != 0)
                fo__find_nan(ws);
        }
    }
    return fo__leave(ws->fo);
}

/* ================================================================================================
   >>optimizer     the settings of training in one list; one step of Adam and its relatives

   Invariants a step is one pass over weights, gradients and moments; norms are summed in blocks of
              a fixed size, so that bits do not depend on the number of threads
   Callers    >>train for the parameters of a flow, fo_tape_optimize for those of a tape; the list
              is written and read by >>checkpoint
   Papers     Kingma & Ba 2015 (Adam), Loshchilov & Hutter 2019 (AdamW)
   ============================================================================================= */
#define FO__BLOCK 16384 /* numbers of a parameter block that one work unit handles */

/* One row a setting of fo_train_desc that a flow remembers: name, type, the number that checkpoints
   write as 0 (they counted kinds from 0 on), default, least and most. Where the least is -1 a
   negative number is possible and means none. */
#define FO__TRAIN_FIELDS(X)                                                                        \
    X(batch, int, 0, 128, 1, 1 << 20)                                                              \
    X(optimizer, fo_optimizer, 1, FO_ADAM, FO_ADAM, FO_RMSPROP)                                    \
    X(lr, double, 0, 1e-3, 1e-30, 1e6)                                                             \
    X(beta1, double, 0, 0.9, -1, 1 - 1e-12)                                                        \
    X(beta2, double, 0, 0.999, 1e-12, 1 - 1e-12)                                                   \
    X(eps, double, 0, 1e-8, 1e-300, 1e30)                                                          \
    X(weight_decay, double, 0, 0, -1, 1e30)                                                        \
    X(clip, double, 0, 100, -1, HUGE_VAL)                                                          \
    X(schedule, fo_schedule, 1, FO_CONSTANT, FO_CONSTANT, FO_STEP)                                 \
    X(warmup, int64_t, 0, 0, -1, 1e15)                                                             \
    X(step_every, int64_t, 0, 0, -1, 1e15)                                                         \
    X(step_factor, double, 0, 0.1, 1e-30, 1e30)                                                    \
    X(ema, double, 0, 0, -1, 1 - 1e-12)                                                            \
    X(on_nan, fo_on_nan, 1, FO_NAN_STOP, FO_NAN_STOP, FO_NAN_SKIP)                                 \
    X(memory_mb, double, 0, 0, -1, 1e15)                                                           \
    X(negative_floor, double, 0, 30000.0 / 784, -1, 1e30) /* its default: a dimension */           \
    X(held_out_every, int64_t, 0, 0, -1, 1e15)                                                     \
    X(patience, int, 0, 0, -1, 2e9)

enum {
#define FO__ENUM(name, type, zero, fallback, least, most) FO__TRAIN_##name,
    FO__TRAIN_FIELDS(FO__ENUM)
#undef FO__ENUM
    FO__TRAIN_FIELD_COUNT
};

typedef struct fo__train_field {
    char   name[16];
    double zero, fallback, least, most;
} fo__train_field;

static const fo__train_field fo__train_fields[FO__TRAIN_FIELD_COUNT] = {
#define FO__ROW(name, type, zero, fallback, least, most) {#name, zero, fallback, least, most},
    FO__TRAIN_FIELDS(FO__ROW)
#undef FO__ROW
};

static double fo__train_get(const fo_train_desc *d, int i) {
    switch (i) {
#define FO__GET(name, type, zero, fallback, least, most)                                           \
    case FO__TRAIN_##name: return (double)d->name;
        FO__TRAIN_FIELDS(FO__GET)
#undef FO__GET
    default: return 0;
    }
}

static void fo__train_set(fo_train_desc *d, int i, double value) {
    switch (i) {
#define FO__PUT(name, type, zero, fallback, least, most)                                           \
    case FO__TRAIN_##name: d->name = (type)value; break;
        FO__TRAIN_FIELDS(FO__PUT)
#undef FO__PUT
    default: break;
    }
}

/* What was asked for, else what was so before, else the default for samples of `size` elements. */
static fo_train_desc fo__train_defaults(const fo_train_desc *old, const fo_train_desc *desc,
                                          int64_t size) {
    fo_train_desc d;
    int           i;
    memset(&d, 0, sizeof d);
    if (desc)
        d = *desc;
    for (i = 0; i < FO__TRAIN_FIELD_COUNT; i++) {
        const fo__train_field *row    = &fo__train_fields[i];
        double             value  = fo__train_get(&d, i), before = fo__train_get(old, i);
        double             normal = row->fallback;
        if (i == FO__TRAIN_negative_floor)
            normal *= (double)size;
        if (i == FO__TRAIN_beta2 && d.optimizer == FO_RMSPROP)
            normal = 0.99;
        if (i == FO__TRAIN_beta2 && d.optimizer != old->optimizer)
            before = 0; /* it belonged to another optimizer */
        if (value < 0 && row->least < 0)
            value = normal == 0 ? 0 : -1;
        else if (value == 0)
            value = before != 0 ? before : normal;
        fo__train_set(&d, i, value);
    }
    return d;
}

static fo_result fo__train_validate(fo_context *fo, const fo_train_desc *d) {
    int i;
    for (i = 0; i < FO__TRAIN_FIELD_COUNT; i++) {
        const fo__train_field *row   = &fo__train_fields[i];
        double             value = fo__train_get(d, i), least = FO__MAX(row->least, 0);
        if (!(value >= row->least && value <= row->most))
            return fo__fail(fo, FO_ERR_ARGUMENT, "%s=%.10g: %.10g to %.12g are possible%s",
                            row->name, value, least, row->most,
                            row->least < 0 ? ", a negative number means none" : "");
    }
    if (d->schedule == FO_STEP && d->step_every <= 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "a step schedule needs step_every");
    return FO_OK;
}

/* A block of parameters and what an optimizer keeps beside it. */
typedef struct fo__optimizer {
    fo_context       *fo;
    const fo__params *params;
    fo_real          *values, *grads, *m, *v, *ema; /* ema: or NULL */
    double           *partial;      /* per block of the gradient: sum of squares */
    double            grad_norm, lr; /* of the last step */
    fo__adam          adam;
} fo__optimizer;

static int64_t fo__blocks(const fo__params *params) {
    return (params->size + FO__BLOCK - 1) / FO__BLOCK;
}

static double fo__learning_rate(const fo_train_desc *d, int64_t step, int64_t steps) {
    double lr = d->lr;
    if (d->schedule == FO_COSINE)
        lr *= 0.5 * (1 + cos(3.141592653589793 * (double)step / (double)steps));
    if (d->schedule == FO_STEP)
        lr *= pow(d->step_factor, (double)(step / d->step_every));
    if (step < d->warmup)
        lr *= (double)(step + 1) / (double)d->warmup;
    return lr;
}

static void fo__sumsq_range(void *arg, int64_t begin, int64_t end) {
    fo__optimizer *o = (fo__optimizer *)arg;
    int64_t        b, n = o->params->size;
    for (b = begin; b < end; b++)
        o->partial[b] = o->fo->kernels->sumsq(FO__MIN(FO__BLOCK, n - b * FO__BLOCK),
                                              o->grads + b * FO__BLOCK);
}

/* The length of the gradient: finite if every number of it is, and not too large. */
static int fo__gradient_ok(fo__optimizer *o) {
    int64_t b, blocks = fo__blocks(o->params);
    double  sum = 0;
    fo_parallel_for(o->fo, blocks, 2, fo__sumsq_range, o);
    for (b = 0; b < blocks; b++)
        sum += o->partial[b];
    o->grad_norm = sqrt(sum);
    return o->grad_norm - o->grad_norm == 0;
}

/* The first parameter whose gradient is not finite; NULL: only the norm overflowed. */
static const char *fo__bad_gradient(const fo__optimizer *o) {
    int     i;
    int64_t j;
    for (i = 0; i < o->params->count; i++) {
        const fo_param_info *p = &o->params->list[i].info;
        for (j = 0; j < p->count; j++)
            if (o->grads[p->offset + j] - o->grads[p->offset + j] != 0)
                return p->name;
    }
    return NULL;
}

static void fo__adam_range(void *arg, int64_t begin, int64_t end) {
    fo__optimizer *o  = (fo__optimizer *)arg;
    int64_t        at = begin * FO__BLOCK, n = FO__MIN(end * FO__BLOCK, o->params->size) - at;
    o->fo->kernels->adam(n, &o->adam, o->values + at, o->grads + at, o->m + at, o->v + at,
                         o->ema ? o->ema + at : NULL);
}

/* L2: the decay is part of the gradient, after clipping; only of gains where there are any. */
static void fo__weight_decay(fo__optimizer *o, double decay) {
    const fo__kernels *kern = o->fo->kernels;
    int                i, gains = 0;
    kern->scale(o->params->size, (fo_real)o->adam.grad_scale, o->grads, o->grads);
    o->adam.grad_scale = 1;
    for (i = 0; i < o->params->count; i++)
        gains |= o->params->list[i].init.kind == FO_INIT_ROW_NORMS;
    for (i = 0; i < o->params->count; i++) {
        const fo__param *p = &o->params->list[i];
        if (!gains || p->init.kind == FO_INIT_ROW_NORMS)
            kern->axpy(p->info.count, (fo_real)decay, o->values + p->info.offset,
                       o->grads + p->info.offset);
    }
}

/* Update number `taken` (from 0 on) along a gradient whose norm is known, at this rate. */
static void fo__optimize(fo__optimizer *o, const fo_train_desc *d, int64_t taken, double lr) {
    double t = (double)(taken + 1), beta1 = FO__MAX(d->beta1, 0);
    o->lr              = lr;
    o->adam.grad_scale = d->clip > 0 && o->grad_norm > d->clip ? d->clip / o->grad_norm : 1;
    o->adam.beta1      = beta1;
    o->adam.beta2      = d->beta2;
    o->adam.step       = lr / (1 - pow(beta1, t));
    o->adam.root       = 1 / sqrt(1 - pow(d->beta2, t));
    o->adam.eps        = d->eps;
    if (d->optimizer == FO_RMSPROP) { /* Adam without momentum and correction */
        o->adam.beta1 = 0;
        o->adam.step  = lr;
        o->adam.root  = 1;
    }
    o->adam.decay = d->optimizer == FO_ADAMW ? 1 - lr * d->weight_decay : 1;
    o->adam.ema   = FO__MIN(d->ema, t / (t + 9)); /* forget the start faster */
    if (d->weight_decay > 0 && d->optimizer != FO_ADAMW)
        fo__weight_decay(o, d->weight_decay);
    fo_parallel_for(o->fo, fo__blocks(o->params), 2, fo__adam_range, o);
}

/* The user's function for a step's gradient, if there is one: does it want to stop? */
static int fo__gradients_called(fo_context *fo, const fo_train_desc *d, fo_real *grads,
                                int64_t count) {
    fo__interrupted call = fo__interrupt(fo);
    int             stop = d->gradients && d->gradients(d->user, grads, count);
    fo__resume(fo, call);
    return stop;
}

fo_result fo_tape_optimize(fo_tape *tape, const fo_train_desc *desc) {
    fo_train_desc none, d;
    fo__optimizer o;
    int64_t       n;
    if (!FO__BEGIN(tape))
        return FO_ERR_ARGUMENT;
    n = tape->own.size;
    if (!tape->planned || !tape->train || n == 0)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT, "fo_tape_optimize needs parameters of the "
                        "tape's own, planned with train = 1");
    memset(&none, 0, sizeof none);
    memset(&o, 0, sizeof o);
    d = fo__train_defaults(&none, desc, 1);
    if (fo__train_validate(tape->fo, &d) != FO_OK)
        return tape->fo->failed;
    if (d.schedule == FO_COSINE && d.steps <= 0)
        return fo__fail(tape->fo, FO_ERR_ARGUMENT, "a cosine schedule needs steps");
    if (tape->moments == NULL)
        tape->moments = fo__reals(&tape->arena, 2 * n);
    if (tape->partial == NULL)
        tape->partial = fo__doubles(&tape->arena, fo__blocks(&tape->own));
    if (tape->moments == NULL || tape->partial == NULL)
        return FO_ERR_MEMORY;
    o.fo = tape->fo, o.params = &tape->own, o.values = tape->values, o.grads = tape->grads;
    o.m = tape->moments, o.v = o.m + n, o.partial = tape->partial;
    if (fo__gradients_called(tape->fo, &d, o.grads, n))
        return FO_OK;
    if (fo__gradient_ok(&o)) {
        fo__optimize(&o, &d, tape->updates, fo__learning_rate(&d, tape->updates, d.steps));
        fo__norm_commit(tape);
        tape->updates++;
    } else if (d.on_nan == FO_NAN_STOP) {
        const char *name = fo__bad_gradient(&o);
        return fo__fail(tape->fo, FO_ERR_NUMERIC, "the gradient of %s is not finite: nothing was "
                        "changed", name ? name : "all parameters together");
    }
    return FO_OK;
}

/* ================================================================================================
   >>train         batches, held-out data, a step in parts and whole

   Purpose    minimise the mean of -log_prob, or a loss of the user's
   Invariants a step is a function of (weights, optimizer state, seed, samples seen): resuming
              equals going on, bit for bit; reductions have a fixed order; no allocation after the
              first step. A batch whose log_prob or gradient is not finite changes nothing: what
              batch norms and actnorms measured on it is kept aside until the step is sound
   Callers    users
   ============================================================================================= */
enum { FO__IDLE, FO__FORWARD_DONE, FO__BACKWARD_DONE };

struct fo_trainer {
    fo__arena      arena;
    fo_flow       *flow;
    fo_workspace  *ws;
    const fo_data *data;
    fo_train_desc  desc;
    fo__optimizer  optimizer;
    fo_batch       batch;            /* what forward gives out */
    double        *log_prob;
    int64_t        count, steps;     /* samples; where to stop (0: by time only) */
    int64_t        positive;         /* rows of a batch from the data; the others are negative */
    int           *order;            /* of the samples in epoch order_epoch */
    int64_t        order_epoch;
    double         loss;             /* of the last step */
    double         recent;           /* mean loss of recent steps */
    int64_t        counted;          /* so many steps are in it */
    int64_t        done, taken;      /* steps of this call, and those that changed the weights */
    double         start, reported;
    int            phase, stopped;
    fo_result      result;           /* the first error */
    fo__whole      before;           /* this call; values and buffers only if a layer is measured */
    fo_real       *old_ema;
    fo_real       *measured;         /* buffers when all the data had been measured; or NULL */
    fo__whole      best;             /* with held-out data: at the best measurement */
    double         held_out_bpd;     /* the last measurement */
    int64_t        measured_at;      /* `done` at that time */
    int64_t        waiting;          /* measurements since the best */
    int            improved, unreported; /* the last one was the best; nobody was told yet */
};

/* Defaults, what the flow was trained with or its preset says, and what this call wants. */
static fo_train_desc fo__train_resolve(const fo_flow *flow, const fo_train_desc *desc) {
    fo_train_desc d = fo__train_defaults(&flow->train.desc, desc, flow->size);
    if (d.seed == 0)
        d.seed = flow->train.step ? flow->train.desc.seed : flow->fo->desc.seed;
    if (d.seconds <= 0 && d.epochs <= 0 && d.steps <= 0)
        d.epochs = 1;
    return d;
}

/* ---- copies of the whole state --------------------------------------------------------------- */

/* From the flow to the copy, or back; a block that the copy lacks is left out. */
static void fo__whole_copy(fo_flow *flow, fo__whole *copy, int back) {
    fo_real *live[5], *kept[5];
    int      i;
    fo__train_state *from = back ? &copy->train : &flow->train;
    fo__train_state *to   = back ? &flow->train : &copy->train, state = *from;
    live[0] = flow->values, live[1] = flow->train.m, live[2] = flow->train.v;
    live[3] = flow->train.ema, live[4] = flow->buffer_values;
    kept[0] = copy->values, kept[1] = copy->train.m, kept[2] = copy->train.v;
    kept[3] = copy->train.ema, kept[4] = copy->buffer_values;
    for (i = 0; i < 5; i++)
        if (live[i] && kept[i])
            memcpy(back ? live[i] : kept[i], back ? kept[i] : live[i],
                   (size_t)(i < 4 ? flow->params.size : flow->buffers.size) * sizeof(fo_real));
    state.m = to->m, state.v = to->v, state.ema = to->ema;
    *to     = state;
}

/* Does a layer wait to be measured, on the data or on the first batch? */
static int fo__unmeasured(const fo_flow *flow) {
    int i, waits = 0;
    for (i = 0; i < flow->n_layers; i++)
        waits |= flow->layers[i].see.kind->measure &&
                 flow->buffer_values[flow->layers[i].measured] == 0;
    return waits;
}

/* ---- batches --------------------------------------------------------------------------------- */

/* Sample number `seen` of the endless stream of shuffled epochs (Fisher-Yates). */
static int64_t fo__next_sample(fo_trainer *tr, int64_t seen) {
    int64_t epoch = seen / tr->count, i;
    if (epoch != tr->order_epoch) {
        tr->order_epoch = epoch;
        for (i = 0; i < tr->count; i++)
            tr->order[i] = (int)i;
        fo__shuffle(tr->order, tr->count, sizeof *tr->order, tr->desc.seed,
                    FO__STREAM_SHUFFLE + (uint64_t)epoch);
    }
    return tr->order[seen % tr->count];
}

/* The next batch goes forward. Its noise is a function of (seed, sample, epoch). */
static fo_result fo__train_forward(fo_trainer *tr) {
    fo_workspace *ws = tr->ws;
    int64_t       r, others = fo_data_count(tr->desc.negative);
    double        sum = 0;
    for (r = 0; r < ws->batch; r++) {
        int64_t seen  = tr->flow->train.seen + r;
        ws->sample[r] = r < tr->positive ? fo__next_sample(tr, seen)
                                         : fo__below(tr->desc.seed, FO__STREAM_SHUFFLE, -1 - seen,
                                                     others);
        ws->noise[r]  = FO__STREAM_NOISE + ((uint64_t)(seen / tr->count) << 40) +
                       (uint64_t)ws->sample[r];
    }
    ws->norm.mode = FO_NORM_TRAIN;
    if (fo__encode(ws) != FO_OK)
        return ws->fo->failed;
    for (r = 0; r < ws->rows; r++) {
        tr->log_prob[r] = fo__row_log_prob(ws, r);
        if (r < tr->positive)
            sum -= tr->log_prob[r];
        else if (tr->log_prob[r] - tr->log_prob[r] != 0)
            sum = tr->log_prob[r];
    }
    tr->loss = sum / (double)tr->positive;
    return FO_OK;
}

/* dLoss/dz = dz - dlogdet z, then the layers from last to first. */
static fo_result fo__train_backward(fo_workspace *ws) {
    int64_t r, n = ws->flow->size;
    int     i;
    for (r = 0; r < ws->rows; r++) {
        fo_real *d = ws->dstate + r * n;
        ws->fo->kernels->scale(n, (fo_real)-ws->dlogdet[r], fo__state(ws, r), d);
        if (ws->dz)
            ws->fo->kernels->add(n, d, ws->dz + r * n, d);
    }
    for (i = ws->flow->n_layers - 1; i >= 0 && ws->fo->failed == FO_OK; i--) {
        if (ws->flow->layers[i].see.kind->front)
            break;
        fo__pass(ws, i, FO_BACKWARD);
    }
    return ws->fo->failed;
}

/* ---- held-out data --------------------------------------------------------------------------- */

/* The mean bpd of the held-out data as fo_log_prob gives it with draw 0; infinite if one of them is
   not finite and such batches are to be skipped, else that is an error. */
static fo_result fo__held_out(fo_trainer *tr, double *bpd) {
    fo_workspace  *ws    = tr->ws;
    const fo_data *data  = tr->desc.held_out;
    int64_t        count = fo_data_count(data), first, r;
    double         sum   = 0;
    fo_result      result = FO_OK;
    ws->data = data, ws->negative = NULL, ws->name = "held-out ";
    ws->train = 0, ws->norm.mode = FO_NORM_RUNNING;
    fo__workspace_bind(ws);
    for (first = 0; first < count && result == FO_OK; first += ws->rows) {
        fo__fill_draw(ws, first, FO__MIN(ws->batch, count - first), 0);
        result = fo__encode(ws);
        for (r = 0; r < ws->rows && result == FO_OK; r++) {
            double log_prob = fo__row_log_prob(ws, r);
            sum += log_prob - log_prob == 0 ? log_prob : -HUGE_VAL;
        }
        if (result == FO_OK && sum - sum != 0 && tr->desc.on_nan == FO_NAN_STOP)
            result = fo__find_nan(ws);
    }
    *bpd     = fo_bpd(sum / (double)count, tr->flow->shape);
    ws->data = tr->data, ws->negative = tr->desc.negative, ws->name = "";
    ws->train = 1, ws->norm.mode = FO_NORM_TRAIN, ws->shared = 0;
    ws->rows = ws->batch;
    fo__workspace_bind(ws);
    return result;
}

static void fo__train_measure(fo_trainer *tr) {
    fo_flow *flow = tr->flow;
    double   bpd;
    tr->measured_at = tr->done;
    tr->result      = fo__held_out(tr, &bpd);
    if (tr->result != FO_OK)
        return;
    tr->held_out_bpd = bpd;
    tr->unreported   = 1;
    tr->improved     = bpd < HUGE_VAL && (flow->best == NULL || bpd < flow->best->train.best);
    tr->waiting      = tr->improved ? 0 : tr->waiting + 1;
    if (tr->improved) {
        flow->train.best     = bpd;
        flow->train.has_best = 1;
        fo__whole_copy(flow, &tr->best, 0);
        flow->best = &tr->best;
    }
    if (tr->desc.patience > 0 && tr->waiting >= tr->desc.patience)
        tr->stopped = 1;
}

/* ---- data-dependent initialisation ----------------------------------------------------------- */

/* A front layer looks at all the data, as it reaches that layer. */
static fo_result fo__measure_passes(fo_trainer *tr, int layer) {
    fo_workspace    *ws = tr->ws;
    const fo__layer *l  = &tr->flow->layers[layer];
    int64_t          done, i;
    int              k;
    ws->positive = ws->batch; /* of negative samples nothing is measured */
    for (done = 0; done < tr->count; done += ws->rows) {
        fo__fill(ws, done, FO__MIN(ws->batch, tr->count - done));
        fo__rows(ws, fo__load_rows);
        for (k = 0; k < layer && ws->fo->failed == FO_OK; k++)
            fo__pass(ws, k, FO_ENCODE);
        if (ws->fo->failed != FO_OK)
            return ws->fo->failed;
        for (i = 0; i < ws->rows * ws->flow->size; i++)
            if (ws->state[i] - ws->state[i] != 0)
                return fo__find_nan(ws);
        l->see.kind->measure(fo__pass_open(ws, layer, FO_ENCODE), done, tr->count);
    }
    tr->flow->buffer_values[l->measured] = ws->fo->failed == FO_OK;
    return ws->fo->failed;
}

static fo_result fo__measure_layer(fo_trainer *tr, int layer) {
    fo_workspace *ws   = tr->ws;
    fo_pass      *pass = &ws->slots[layer].pass;
    double       *work = pass->work;
    const int64_t room = tr->flow->layers[layer].see.measuring;
    if (room > 0)
        pass->work = (double *)fo__alloc(ws->fo, fo__times(room, sizeof *work));
    if (ws->fo->failed == FO_OK)
        fo__measure_passes(tr, layer);
    if (room > 0)
        fo__free(ws->fo, pass->work);
    pass->work   = work;
    ws->rows     = ws->batch;
    ws->positive = tr->positive;
    return ws->fo->failed;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Memory for the optimizer, for copies of the state and for batches. */
static fo_result fo__train_memory(fo_trainer *tr) {
    fo_flow       *flow  = tr->flow;
    fo_context    *fo    = flow->fo;
    fo__optimizer *o     = &tr->optimizer;
    fo__arena     *arena = &tr->arena;
    int64_t        n = flow->params.size, extra = tr->desc.ema > 0 ? n : 0;
    double         budget = tr->desc.memory_mb;
    if (tr->desc.held_out)
        extra += 3 * n + (tr->desc.ema > 0 ? n : 0) + flow->buffers.size;
    if (budget > 0)
        budget = FO__MAX(budget - (double)extra * sizeof(fo_real) / 1e6, 1e-9);
    tr->ws = fo__workspace_make(fo, flow, tr->desc.batch, 1, budget);
    if (tr->ws == NULL)
        return fo->failed;
    if (flow->train.m == NULL) {
        fo_real *both = fo__reals(&flow->arena, 2 * n);
        flow->train.v = both ? both + n : NULL;
        flow->train.m = both;
    }
    if (tr->desc.ema == 0)
        flow->train.ema = NULL;
    if (tr->desc.ema > 0 && flow->train.ema == NULL) {
        fo_real *ema = fo__reals(&flow->arena, n);
        if (ema)
            memcpy(ema, flow->values, (size_t)n * sizeof *ema);
        flow->train.ema = ema;
    }
    tr->order    = (int *)fo__arena_alloc(arena, fo__times(tr->count, sizeof(int)));
    tr->log_prob = fo__doubles(arena, tr->ws->batch);
    o->partial   = fo__doubles(arena, fo__blocks(&flow->params));
    if (fo__unmeasured(flow)) {
        tr->before.values        = fo__reals(arena, n);
        tr->before.buffer_values = fo__reals(arena, flow->buffers.size);
        tr->measured             = fo__reals(arena, flow->buffers.size);
    }
    if (tr->desc.held_out) {
        tr->best.values        = fo__reals(arena, n);
        tr->best.buffer_values = fo__reals(arena, flow->buffers.size);
        tr->best.train.m       = fo__reals(arena, n);
        tr->best.train.v       = fo__reals(arena, n);
        tr->best.train.ema     = tr->desc.ema > 0 ? fo__reals(arena, n) : NULL;
    }
    o->fo = fo, o->params = &flow->params, o->values = flow->values, o->grads = tr->ws->grads;
    o->m = flow->train.m, o->v = flow->train.v, o->ema = flow->train.ema;
    return fo->failed;
}

static void fo__train_rows(fo_trainer *tr) {
    fo_workspace *ws = tr->ws;
    ws->data     = tr->data;
    ws->rows     = ws->batch;
    ws->seed     = tr->desc.seed;
    ws->negative = tr->desc.negative;
    ws->positive = tr->positive;
    ws->norm.defer   = 1;
    tr->batch.rows     = ws->rows;
    tr->batch.positive = tr->positive;
    tr->batch.sample   = ws->sample;
    tr->batch.log_prob = tr->log_prob;
    tr->batch.z        = ws->state;
}

/* Everything but memory that can be wrong is found here, before anything is changed. */
static fo_result fo__train_check(fo_trainer *tr, const fo_train_desc *asked) {
    fo_flow       *flow = tr->flow;
    fo_context    *fo   = flow->fo;
    fo_train_desc *d    = &tr->desc;
    int64_t        epoch;
    double         steps;
    if (flow->params.size == 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "the flow has no coupling: there is nothing to learn");
    if (flow->training)
        return fo__fail(fo, FO_ERR_ARGUMENT, "the flow is being trained already");
    if (!(d->seconds >= 0 && d->epochs >= 0) || d->steps < 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "seconds=%g epochs=%g steps=%lld: training cannot end "
                        "before it began", d->seconds, d->epochs, (long long)d->steps);
    if (tr->count < 1 || tr->count > INT_MAX)
        return fo__fail(fo, FO_ERR_ARGUMENT, "%lld samples: 1 to 2^31 - 1 are possible",
                        (long long)tr->count);
    if ((d->negative && fo__check_data(fo, flow, d->negative) != FO_OK) ||
        (d->held_out && fo__check_data(fo, flow, d->held_out) != FO_OK) ||
        fo__train_validate(fo, d) != FO_OK)
        return fo->failed;
    if (d->schedule == FO_COSINE && d->steps <= 0 && d->epochs <= 0)
        return fo__fail(fo, FO_ERR_ARGUMENT, "a cosine schedule needs steps or epochs: seconds do "
                        "not say where it ends");
    if (flow->train.step == 0 && !(asked && asked->batch)) /* an epoch is more than one step */
        d->batch = (int)FO__MIN(d->batch, FO__MAX(tr->count / 4, 1));
    tr->positive = d->negative ? (d->batch + 1) / 2 : d->batch;
    epoch        = (tr->count + tr->positive - 1) / tr->positive;
    if (d->held_out && d->held_out_every == 0)
        d->held_out_every = FO__MAX(50, FO__MIN(epoch, 1000));
    steps     = ceil(d->epochs * (double)tr->count / (double)tr->positive);
    tr->steps = d->epochs > 0 ? (int64_t)FO__MIN(steps, 9e15) : 0;
    if (d->steps > 0)
        tr->steps = tr->steps ? FO__MIN(d->steps, tr->steps) : d->steps;
    return FO_OK;
}

fo_trainer *fo_trainer_open(fo_flow *flow, const fo_data *data, const fo_train_desc *desc) {
    fo_trainer *tr;
    fo_context *fo = flow ? flow->fo : NULL;
    int         i;
    if (!fo__begin(fo) || fo__flow_ready(fo, flow) != FO_OK ||
        fo__check_data(fo, flow, data) != FO_OK)
        return NULL;
    tr = (fo_trainer *)fo__object(fo, sizeof *tr);
    if (tr == NULL)
        return NULL;
    tr->flow         = flow;
    tr->data         = data;
    tr->count        = fo_data_count(data);
    tr->order_epoch  = -1;
    tr->start        = fo_clock();
    tr->held_out_bpd = (double)NAN;
    tr->desc         = fo__train_resolve(flow, desc);
    if (fo__train_check(tr, desc) != FO_OK) {
        fo__object_free(tr);
        return NULL;
    }
    flow->training   = 1;
    tr->old_ema      = flow->train.ema;
    fo__whole_copy(flow, &tr->before, 0);
    tr->result       = fo__train_memory(tr);
    if (tr->result == FO_OK) {
        fo__train_rows(tr);
        fo__whole_copy(flow, &tr->before, 0);
        for (i = 0; i < flow->n_layers && tr->result == FO_OK; i++)
            if (flow->layers[i].see.kind->front && flow->layers[i].see.kind->measure &&
                flow->buffer_values[flow->layers[i].measured] == 0)
                tr->result = fo__measure_layer(tr, i);
    } else
        tr->before.values = tr->before.buffer_values = NULL; /* nothing is in them */
    if (tr->measured && tr->result == FO_OK)
        memcpy(tr->measured, flow->buffer_values, (size_t)flow->buffers.size * sizeof(fo_real));
    if (tr->result == FO_OK) {
        flow->train.desc     = tr->desc;
        flow->train.samples  = tr->count;
        flow->train.held_out = fo_data_count(tr->desc.held_out);
        if (flow->train.has_best && tr->desc.held_out)
            fo__train_measure(tr); /* what the flow has now is the best so far */
    }
    tr->unreported = tr->improved = 0;
    if (tr->result == FO_OK)
        return tr;
    fo_trainer_close(tr);
    return NULL;
}

/* ---- steps ----------------------------------------------------------------------------------- */

static void fo__report(fo_trainer *tr, int last) {
    const fo_flow  *flow = tr->flow;
    fo__interrupted call;
    fo_progress     p;
    double          now = fo_clock() - tr->start;
    if (tr->desc.progress == NULL || (!last && !tr->unreported && now - tr->reported < 0.1))
        return;
    memset(&p, 0, sizeof p);
    p.step      = flow->train.step;
    p.steps     = tr->steps;
    p.epoch     = (double)flow->train.seen / (double)tr->count;
    p.loss      = tr->counted ? tr->recent : (double)NAN;
    p.bpd       = fo_bpd(-p.loss, flow->shape);
    p.grad_norm = tr->optimizer.grad_norm;
    p.lr        = tr->optimizer.lr;
    p.elapsed   = now;
    p.since     = now - tr->reported;
    p.rate      = now > 0 ? (double)(tr->done * tr->positive) / now : 0;
    p.left      = -1;
    if (tr->steps && tr->done)
        p.left = now / (double)tr->done * (double)(tr->steps - flow->train.step);
    if (tr->desc.seconds > 0 && (p.left < 0 || p.left > tr->desc.seconds - now))
        p.left = FO__MAX(tr->desc.seconds - now, 0);
    p.skipped      = flow->train.skipped;
    p.held_out_bpd = tr->held_out_bpd;
    p.improved     = tr->improved && tr->unreported;
    p.last         = last;
    tr->reported   = now;
    tr->unreported = 0;
    call           = fo__interrupt(flow->fo);
    if (tr->desc.progress(tr->desc.user, &p))
        tr->stopped = 1;
    fo__resume(flow->fo, call);
}

/* What a step took is over; what follows, measurements and reports, is not part of its pace. */
static void fo__train_paced(fo_trainer *tr) {
    fo__pace_end(tr->ws->fo, &tr->ws->pace, fo_clock(), 1);
}

/* A step is over, taken or skipped. */
static void fo__train_advance(fo_trainer *tr) {
    fo_flow *flow = tr->flow;
    tr->phase     = FO__IDLE;
    tr->done++;
    flow->train.step++;
    flow->train.seen += tr->positive;
    if (tr->desc.held_out && tr->taken && flow->train.step % tr->desc.held_out_every == 0)
        fo__train_measure(tr);
    if (tr->result == FO_OK)
        fo__report(tr, 0);
}

/* A batch that is not finite: it leaves no trace but its number, or it ends training. `error` says
   where, if that is wanted. */
static void fo__train_bad(fo_trainer *tr, fo_result error) {
    fo_flow *flow = tr->flow;
    fo__train_paced(tr);
    if (tr->measured && tr->taken == 0) { /* layers were measured on it */
        memcpy(flow->values, tr->before.values, (size_t)flow->params.size * sizeof(fo_real));
        memcpy(flow->buffer_values, tr->measured, (size_t)flow->buffers.size * sizeof(fo_real));
    }
    tr->result = error;
    if (error != FO_OK)
        return;
    flow->train.skipped++;
    fo__train_advance(tr);
}

static fo_result fo__gradient_error(fo_trainer *tr) {
    const char *name = fo__bad_gradient(&tr->optimizer);
    char        advice[160];
    fo__nan_advice(tr->ws, 0, tr->ws->rows, advice, sizeof advice);
    if (name)
        return fo__fail(tr->flow->fo, FO_ERR_NUMERIC, "step %lld: the gradient of parameter %s is "
                        "not finite%s", (long long)tr->flow->train.step, name, advice);
    return fo__fail(tr->flow->fo, FO_ERR_NUMERIC, "step %lld: the gradient's norm overflowed%s",
                    (long long)tr->flow->train.step, advice);
}

/* Where it ends by itself, the last state is measured too. */
static int fo__train_over(fo_trainer *tr) {
    const int64_t step = tr->flow->train.step;
    if (tr->result != FO_OK || tr->stopped)
        return 1;
    if ((tr->steps == 0 || step < tr->steps) &&
        (tr->desc.seconds <= 0 || fo_clock() - tr->start < tr->desc.seconds))
        return 0;
    tr->stopped = 1;
    if (tr->desc.held_out && tr->taken && tr->measured_at < tr->done)
        fo__train_measure(tr);
    return 1;
}

const fo_batch *fo_trainer_forward(fo_trainer *tr) {
    fo__begin(tr ? tr->flow->fo : NULL);
    while (tr && !fo__train_over(tr)) {
        fo__pace_begin(tr->ws->fo, &tr->ws->pace, fo_clock());
        tr->result = fo__train_forward(tr);
        if (tr->result == FO_OK && tr->loss - tr->loss == 0) {
            tr->phase = FO__FORWARD_DONE;
            return &tr->batch;
        }
        if (tr->result == FO_OK)
            fo__train_bad(tr, tr->desc.on_nan == FO_NAN_STOP ? fo__find_nan(tr->ws) : FO_OK);
    }
    return NULL;
}

fo_result fo_trainer_backward(fo_trainer *tr, const double *dlog_prob, const fo_real *dz) {
    fo_workspace *ws;
    int64_t       r;
    if (tr == NULL)
        return FO_ERR_ARGUMENT;
    if (tr->result != FO_OK)
        return tr->result;
    fo__begin(tr->flow->fo);
    if (tr->phase != FO__FORWARD_DONE)
        return fo__fail(tr->flow->fo, FO_ERR_ARGUMENT, "fo_trainer_backward follows a "
                        "fo_trainer_forward that gave a batch");
    ws = tr->ws;
    for (r = 0; r < ws->rows; r++) {
        double sign = r < tr->positive ? -1 : 1;
        if (sign > 0 && tr->log_prob[r] < -FO__MAX(tr->desc.negative_floor, 0))
            sign = 0; /* unlikely enough: it neither counts nor pulls any more */
        ws->dlogdet[r] = dlog_prob ? dlog_prob[r] : sign / (double)ws->rows;
    }
    tr->phase = FO__BACKWARD_DONE;
    ws->dz    = dz;
    return tr->result = fo__train_backward(ws);
}

fo_result fo_trainer_update(fo_trainer *tr) {
    fo_flow       *flow = tr ? tr->flow : NULL;
    fo__optimizer *o    = tr ? &tr->optimizer : NULL;
    int            i;
    if (tr == NULL)
        return FO_ERR_ARGUMENT;
    if (tr->result != FO_OK)
        return tr->result;
    fo__begin(flow->fo);
    if (tr->phase != FO__BACKWARD_DONE)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_trainer_update follows "
                        "fo_trainer_backward");
    tr->phase = FO__IDLE;
    if (fo__gradients_called(flow->fo, &tr->desc, o->grads, flow->params.size)) {
        tr->stopped = 1;
        return FO_OK;
    }
    if (!fo__gradient_ok(o)) {
        fo__train_bad(tr, tr->desc.on_nan == FO_NAN_STOP ? fo__gradient_error(tr) : FO_OK);
        return tr->result;
    }
    fo__optimize(o, &tr->desc, flow->train.step - flow->train.skipped,
                 fo__learning_rate(&tr->desc, flow->train.step, tr->steps));
    for (i = 0; i < flow->n_layers; i++)
        if (tr->ws->slots[i].tapes)
            fo__norm_commit(tr->ws->slots[i].net.tape);
    fo__train_paced(tr);
    flow->changed = 1;
    tr->taken++;
    flow->train.has_best &= tr->desc.held_out != NULL;
    tr->counted = FO__MIN(tr->counted + 1, 50);
    tr->recent += (tr->loss - tr->recent) / (double)tr->counted;
    fo__train_advance(tr);
    return tr->result;
}

int fo_trainer_step(fo_trainer *tr) {
    return fo_trainer_forward(tr) && fo_trainer_backward(tr, NULL, NULL) == FO_OK &&
           fo_trainer_update(tr) == FO_OK;
}

fo_result fo_trainer_close(fo_trainer *tr) {
    fo_flow  *flow = tr ? tr->flow : NULL;
    fo_result result;
    if (tr == NULL)
        return FO_ERR_ARGUMENT;
    fo__begin(flow->fo);
    if (tr->result == FO_OK && tr->done && flow->train.step == flow->train.skipped)
        tr->result = fo__fail(flow->fo, FO_ERR_NUMERIC, "all %lld steps were skipped: each batch "
                              "had a log_prob or a gradient that is not finite; FO_NAN_STOP says "
                              "where", (long long)tr->done);
    if (flow->best)
        fo__whole_copy(flow, &tr->best, 1);
    else if (tr->result != FO_OK && tr->taken == 0) {
        fo__whole_copy(flow, &tr->before, 1);
        flow->train.ema = tr->old_ema;
    }
    flow->best     = NULL;
    flow->training = 0;
    flow->fo->team = flow->fo->desc.threads; /* should a step have been left half done */
    if (tr->result == FO_OK)
        fo__report(tr, 1);
    result = tr->result;
    fo_workspace_free(tr->ws);
    fo__object_free(tr);
    return result;
}

fo_result fo_train(fo_flow *flow, const fo_data *data, const fo_train_desc *desc) {
    fo_trainer *tr;
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    fo__enter(flow->fo);
    tr = fo_trainer_open(flow, data, desc);
    while (tr && fo_trainer_step(tr)) {}
    if (tr)
        fo_trainer_close(tr);
    return fo__leave(flow->fo);
}

fo_train_desc fo_flow_train_desc(const fo_flow *flow) {
    fo_train_desc none;
    memset(&none, 0, sizeof none);
    return flow ? fo__train_resolve(flow, NULL) : none;
}

int64_t fo_flow_steps(const fo_flow *flow) { return flow ? flow->train.step : 0; }

double fo_flow_held_out_bpd(const fo_flow *flow) {
    return flow && flow->train.has_best ? flow->train.best : (double)NAN;
}

int64_t fo_flow_train_count(const fo_flow *flow) { return flow ? flow->train.samples : 0; }
int64_t fo_flow_held_out_count(const fo_flow *flow) { return flow ? flow->train.held_out : 0; }

int fo_progress_bar(void *user, const fo_progress *p) {
    int    live = fo__isatty(stderr), left;
    double tick = live ? 0.1 : 10; /* seconds between lines */
    char   text[4][48] = {"", "", "", ""};
    (void)user;
    if (p == NULL)
        return 0;
    left = (int)(p->left + 0.5);
    if (!p->last && floor(p->elapsed / tick) <= floor((p->elapsed - p->since) / tick))
        return 0;
    if (p->bpd == p->bpd)
        snprintf(text[0], sizeof text[0], ", bpd %.3f", p->bpd);
    if (p->bpd == p->bpd && p->rate > 0)
        snprintf(text[0] + strlen(text[0]), sizeof text[0] - strlen(text[0]), ", %.0f samples/s",
                 p->rate);
    if (p->held_out_bpd == p->held_out_bpd)
        snprintf(text[1], sizeof text[1], ", held-out bpd %.3f", p->held_out_bpd);
    if (p->left >= 0 && !p->last)
        snprintf(text[2], sizeof text[2], ", %d:%02d left", left / 60, left % 60);
    if (p->skipped)
        snprintf(text[3], sizeof text[3], ", %lld steps skipped (nan)", (long long)p->skipped);
    fprintf(stderr, "%sstep %lld, epoch %.2f%s%s%s%s%s%s", live ? "\r" : "", (long long)p->step,
            p->epoch, text[0], text[1], text[2], text[3], live ? "\033[K" : "",
            live && !p->last ? "" : "\n");
    fflush(stderr);
    return 0;
}

/* ================================================================================================
   >>scores        how unlikely is it that a sample comes from the training distribution?

   How        a score is three small functions: features of a sample (from its log_prob and terms,
              latents, pixels, gradients), what is kept of the calibration samples' features, and
              the value of a sample's features beside that. One row in the table at the end
   Invariants higher means more OOD; a score of a sample depends on the model, the sample and the
              draw, never on its batch; several scores take one encode
   Callers    users, >>detect
   ============================================================================================= */

/* A score in use. */
typedef struct fo__fitted {
    fo_score_kind kind;
    int           width; /* features of a sample */
    int64_t       n;     /* samples that it was fitted to */
    int64_t       size;  /* of its state */
    fo_real      *state; /* NULL: nothing is fitted */
} fo__fitted;

/* ---- likelihood: -log p(x); what the paper shows to fail, or to work ------------------------- */

static void fo__likelihood_features(const fo_score_input *in, double *f) { f[0] = -in->log_prob; }

/* ---- latent: -log N(z; 0, I), the base density alone ----------------------------------------- */

static void fo__latent_features(const fo_score_input *in, double *f) { f[0] = -in->terms[0]; }

/* ---- volume: minus the log-determinant ------------------------------------------------------- */

static void fo__volume_features(const fo_score_input *in, double *f) {
    int i;
    f[0] = 0;
    for (i = 1; i <= in->layers; i++)
        f[0] -= in->terms[i];
}

/* ---- typicality: |-log p - H|, H the mean of -log p (Nalisnick et al. 2019) ------------------ */

static int64_t fo__one_number(int width, int64_t n) { return (void)width, (void)n, 1; }

static fo_result fo__typicality_fit(fo_context *fo, const double *rows, int64_t n, int width,
                                    fo_real *state) {
    double  sum = 0;
    int64_t r;
    (void)fo;
    for (r = 0; r < n; r++)
        sum += rows[r * width];
    state[0] = (fo_real)(sum / (double)n);
    return FO_OK;
}

static double fo__typicality_value(const double *f, int width, const fo_real *state, int64_t size,
                                   double *work) {
    (void)width, (void)size, (void)work;
    return fabs(f[0] - (double)state[0]);
}

/* ---- complexity: -log p - L, L the length of the pixels' code (Serra et al. 2020) --------------

   What a simple picture gains in likelihood for being simple is subtracted. A picture more
   complex than 95 % of the calibration samples gets no more off than those: noise shall not excuse
   itself by being noisy. */

static int fo__two_features(fo_shape shape, int layers) { return (void)shape, (void)layers, 2; }

static void fo__complexity_features(const fo_score_input *in, double *f) {
    f[0] = -in->log_prob;
    f[1] = fo_code_length(in->pixels, in->shape);
}

static fo_result fo__complexity_fit(fo_context *fo, const double *rows, int64_t n, int width,
                                    fo_real *state) {
    double *sorted = fo__sorted_copy(fo, rows + 1, n, width);
    if (sorted == NULL)
        return FO_ERR_MEMORY;
    state[0] = (fo_real)sorted[(n - 1) * 19 / 20];
    fo__free(fo, sorted);
    return FO_OK;
}

static double fo__complexity_value(const double *f, int width, const fo_real *state, int64_t size,
                                   double *work) {
    (void)width, (void)size, (void)work;
    return f[0] - FO__MIN(f[1], (double)state[0]);
}

/* ---- orientation: c + max(0, c - min of c over mirrored and rotated copies), c the complexity ---

   Pictures have an up: where a copy is likelier than the picture itself, the picture lies wrong.
   What has no likelier copy, as most of what is foreign in any position, keeps its complexity. */

static int fo__view_count(fo_shape shape) { return shape.h == shape.w ? 8 : 4; }

static int fo__view_features(fo_shape shape, int layers) {
    return (void)layers, 2 * fo__view_count(shape);
}

static void fo__orientation_features(const fo_score_input *in, double *f) {
    int k;
    for (k = 0; k < in->views; k++) {
        f[2 * k]     = -in->view[2 * k];
        f[2 * k + 1] = in->view[2 * k + 1];
    }
}

static double fo__orientation_value(const double *f, int width, const fo_real *state, int64_t size,
                                    double *work) {
    const double own   = fo__complexity_value(f, 2, state, size, work);
    double       least = own;
    int          k;
    for (k = 2; k < width; k += 2)
        least = FO__MIN(least, fo__complexity_value(f + k, 2, state, size, work));
    return own + (own - least);
}

/* ---- density-of-states: minus the log kernel densities of log p, base density and logdet -------

   Morningstar et al. 2021. State: the width and up to 1,000 points of each. */
#define FO__KDE_POINTS ((int64_t)1000)

static int fo__three_features(fo_shape shape, int layers) { return (void)shape, (void)layers, 3; }

static void fo__states_features(const fo_score_input *in, double *f) {
    f[0] = in->log_prob;
    f[1] = in->terms[0];
    f[2] = in->log_prob - in->terms[0];
}

static int64_t fo__states_size(int width, int64_t n) {
    return width * (1 + FO__MIN(n, FO__KDE_POINTS));
}

static fo_result fo__states_fit(fo_context *fo, const double *rows, int64_t n, int width,
                                fo_real *state) {
    const int64_t points = FO__MIN(n, FO__KDE_POINTS);
    double       *column = (double *)fo__alloc(fo, fo__times(points, sizeof *column));
    int64_t       r;
    int           k;
    if (column == NULL)
        return FO_ERR_MEMORY;
    for (k = 0; k < width; k++, state += 1 + points) {
        for (r = 0; r < points; r++) {
            column[r]    = rows[r * width + k];
            state[1 + r] = (fo_real)column[r];
        }
        state[0] = (fo_real)fo__kde_width(column, points);
    }
    fo__free(fo, column);
    return FO_OK;
}

static double fo__states_value(const double *f, int width, const fo_real *state, int64_t size,
                               double *work) {
    const int64_t points = size / width - 1;
    double        sum    = 0;
    int           k;
    (void)work;
    for (k = 0; k < width; k++, state += 1 + points)
        sum -= fo__kde_log(state + 1, points, (double)state[0], f[k]);
    return sum;
}

/* ---- layers: Mahalanobis distance of the logdets of all layers ------------------------------- */

static int fo__layer_features(fo_shape shape, int layers) { return (void)shape, layers; }

static void fo__layers_features(const fo_score_input *in, double *f) {
    memcpy(f, in->terms + 1, (size_t)in->layers * sizeof *f);
}

static int64_t fo__gauss_size(int width, int64_t n) {
    (void)n;
    return width + (int64_t)width * width;
}

static double fo__gauss_value(const double *f, int width, const fo_real *state, int64_t size,
                              double *work) {
    (void)size;
    return fo__mahalanobis(state, width, f, work);
}

/* ---- gradient: log |d log p / d parameters|^2 of each layer, as independent normal variables ---

   Dauncey et al. 2024. */

static void fo__gradient_features(const fo_score_input *in, double *f) {
    memcpy(f, in->gradient, (size_t)in->layers * sizeof *f);
}

static int64_t fo__two_rows(int width, int64_t n) { return (void)n, 2 * width; }

static fo_result fo__gradient_fit(fo_context *fo, const double *rows, int64_t n, int width,
                                  fo_real *state) {
    int k;
    (void)fo;
    for (k = 0; k < width; k++) {
        double std;
        state[k]         = (fo_real)fo__mean_of(rows + k, n, width, &std);
        state[width + k] = (fo_real)std;
    }
    return FO_OK;
}

static double fo__gradient_value(const double *f, int width, const fo_real *state, int64_t size,
                                 double *work) {
    double sum = 0;
    int    k;
    (void)size, (void)work;
    for (k = 0; k < width; k++) /* layers without parameters have no spread */
        if (state[width + k] > 0) {
            const double d = (f[k] - (double)state[k]) / (double)state[width + k];
            sum += d * d / 2;
        }
    return sum;
}

/* ---- normality: are the latents independent and N(0,1)? ----------------------------------------

   Mahalanobis distance of log A^2 (Anderson and Darling), the log of the flatness of their
   spectrum, and |z|^2. */

static void fo__normality_features(const fo_score_input *in, double *f) {
    const int64_t n = fo_shape_count(in->shape), plane = (int64_t)in->shape.h * in->shape.w;
    fo__score    *z = (fo__score *)(void *)in->work;
    double        square = 0, flat = 0;
    int64_t       i;
    int           c;
    for (i = 0; i < n; i++) {
        z[i].score = (double)in->z[i];
        square += z[i].score * z[i].score;
    }
    f[0] = log(FO__MAX(fo__anderson_darling(z, n), 1e-300));
    if (plane > 1)
        for (c = 0; c < in->shape.c; c++)
            flat += fo__log_flatness(in->z + c * plane, in->shape.h, in->shape.w, in->work);
    f[1] = flat / in->shape.c;
    f[2] = square;
}

/* ---- ratio: log p under a background model minus log p (Ren et al. 2019) --------------------- */

static void fo__ratio_features(const fo_score_input *in, double *f) {
    f[0] = in->background - in->log_prob;
}

/* ---- neighbour, pca: the trivial rivals, on the numbers of the samples themselves --------------

   neighbour: Euclidean distance to the nearest of up to 2,000 stored samples. pca: what 32
   principal components leave of a sample, squared. */
#define FO__NEIGHBOURS ((int64_t)2000)
#define FO__COMPONENTS ((int64_t)32)

static int fo__sample_features(fo_shape shape, int layers) {
    return (void)layers, (int)fo_shape_count(shape);
}

static void fo__sample_values(const fo_score_input *in, double *f) {
    int64_t i, n = fo_shape_count(in->shape);
    for (i = 0; i < n; i++)
        f[i] = (double)in->x[i];
}

static int64_t fo__neighbour_size(int width, int64_t n) {
    return FO__MIN(n, FO__NEIGHBOURS) * width;
}

static fo_result fo__neighbour_fit(fo_context *fo, const double *rows, int64_t n, int width,
                                   fo_real *state) {
    int64_t i, size = fo__neighbour_size(width, n);
    (void)fo;
    for (i = 0; i < size; i++)
        state[i] = (fo_real)rows[i];
    return FO_OK;
}

static double fo__neighbour_value(const double *f, int width, const fo_real *state, int64_t size,
                                  double *work) {
    double  nearest = HUGE_VAL;
    int64_t r;
    int     i;
    (void)work;
    for (r = 0; r < size; r += width) {
        double sum = 0;
        for (i = 0; i < width && sum < nearest; i++) {
            const double d = f[i] - (double)state[r + i];
            sum += d * d;
        }
        nearest = FO__MIN(nearest, sum);
    }
    return sqrt(nearest);
}

static int64_t fo__pca_size(int width, int64_t n) {
    return (1 + FO__MIN(FO__COMPONENTS, FO__MIN(n, (int64_t)width) - 1)) * width;
}

static fo_result fo__pca_fit(fo_context *fo, const double *rows, int64_t n, int width,
                             fo_real *state) {
    const int64_t k = fo__pca_size(width, n) / width - 1;
    fo_real      *x = (fo_real *)fo__alloc(fo, fo__times(n * (width + k), sizeof *x));
    int64_t       r, i;
    if (x == NULL)
        return FO_ERR_MEMORY;
    for (i = 0; i < width; i++) {
        state[i] = (fo_real)fo__mean_of(rows + i, n, width, NULL);
        for (r = 0; r < n; r++)
            x[r * width + i] = (fo_real)(rows[r * width + i] - (double)state[i]);
    }
    if (k > 0)
        fo__principal(fo, x, n, width, k, state + width, x + n * width);
    fo__free(fo, x);
    return FO_OK;
}

static double fo__pca_value(const double *f, int width, const fo_real *state, int64_t size,
                            double *work) {
    int i;
    for (i = 0; i < width; i++)
        work[i] = f[i] - (double)state[i];
    return fo__residual(state + width, size / width - 1, width, work);
}

/* ---- the table ------------------------------------------------------------------------------- */

static fo_result fo__gauss_of(fo_context *fo, const double *rows, int64_t n, int width,
                              fo_real *state) {
    const int64_t size = fo__gauss_size(width, n);
    double       *gauss = (double *)fo__alloc(fo, fo__times(size, sizeof *gauss));
    int64_t       i;
    int           ok;
    if (gauss == NULL)
        return FO_ERR_MEMORY;
    ok = fo__gauss_fit(rows, n, width, gauss);
    for (i = 0; i < size; i++)
        state[i] = (fo_real)gauss[i];
    fo__free(fo, gauss);
    return ok ? FO_OK : fo__fail(fo, FO_ERR_NUMERIC, "the covariance of %d features over %lld "
                                 "calibration samples is singular", width, (long long)n);
}

/* One row a score. */
static void fo__score_rows(fo_score_kind *rows, int *count) {
    fo_score_kind *k = rows;
#define FO__SCORE(NAME, FORMULA, SOURCE, FLAGS, WIDTH, FEATURES, SIZE, FIT, VALUE)                 \
    k->name = NAME, k->formula = FORMULA, k->source = SOURCE, k->flags = FLAGS, k->width = WIDTH;  \
    k->features = FEATURES, k->size = SIZE, k->fit = FIT, k->value = VALUE;                        \
    k++;
    FO__SCORE("likelihood", "-log p(x)", "Kirichenko et al. 2020", 0, NULL,
              fo__likelihood_features, NULL, NULL, NULL)
    FO__SCORE("latent", "-log N(z; 0, I)", "", 0, NULL, fo__latent_features, NULL, NULL, NULL)
    FO__SCORE("volume", "-log|det dz/dx|", "", 0, NULL, fo__volume_features, NULL, NULL, NULL)
    FO__SCORE("typicality", "|-log p(x) - mean|", "Nalisnick et al. 2019", 0, NULL,
              fo__likelihood_features, fo__one_number, fo__typicality_fit, fo__typicality_value)
    FO__SCORE("complexity", "-log p(x) - min(L(x), L95), L the code length", "Serra et al. 2020",
              FO_SCORE_PIXELS, fo__two_features, fo__complexity_features, fo__one_number,
              fo__complexity_fit, fo__complexity_value)
    FO__SCORE("orientation", "c + max(0, c - min of c over mirrored and rotated copies)", "",
              FO_SCORE_PIXELS | FO_SCORE_VIEWS, fo__view_features, fo__orientation_features,
              fo__one_number, fo__complexity_fit, fo__orientation_value)
    FO__SCORE("density-of-states", "-log densities of log p, base density and logdet",
              "Morningstar et al. 2021", 0, fo__three_features, fo__states_features,
              fo__states_size, fo__states_fit, fo__states_value)
    FO__SCORE("layers", "Mahalanobis distance of the layers' logdets", "", 0, fo__layer_features,
              fo__layers_features, fo__gauss_size, fo__gauss_of, fo__gauss_value)
    FO__SCORE("gradient", "Gaussian of the layers' log |d log p/d parameters|^2",
              "Dauncey et al. 2024", FO_SCORE_GRADIENT, fo__layer_features, fo__gradient_features,
              fo__two_rows, fo__gradient_fit, fo__gradient_value)
    FO__SCORE("normality", "Mahalanobis distance of log A^2, flatness and |z|^2 of the latents",
              "Anderson and Darling 1952", 0, fo__three_features, fo__normality_features,
              fo__gauss_size, fo__gauss_of, fo__gauss_value)
    FO__SCORE("ratio", "log p(x) of a background model - log p(x)", "Ren et al. 2019",
              FO_SCORE_BACKGROUND, NULL, fo__ratio_features, NULL, NULL, NULL)
    FO__SCORE("neighbour", "distance to the nearest stored sample", "a trivial rival",
              FO_SCORE_SAMPLES, fo__sample_features, fo__sample_values, fo__neighbour_size,
              fo__neighbour_fit, fo__neighbour_value)
    FO__SCORE("pca", "what 32 principal components leave, squared", "a trivial rival",
              FO_SCORE_SAMPLES, fo__sample_features, fo__sample_values, fo__pca_size, fo__pca_fit,
              fo__pca_value)
#undef FO__SCORE
    *count = (int)(k - rows);
}

/* ---- names ----------------------------------------------------------------------------------- */

typedef struct fo__score_row { fo__row_head head; fo_score_kind kind; } fo__score_row;

fo_result fo_register_score(fo_context *fo, const fo_score_kind *kind) {
    fo__score_row *row;
    if (!fo__begin(fo))
        return FO_ERR_ARGUMENT;
    if (kind == NULL || kind->features == NULL || (kind->size == NULL) != (kind->fit == NULL))
        return fo__fail(fo, FO_ERR_ARGUMENT, "fo_register_score: features, and size and fit "
                        "both or none, are needed");
    row = (fo__score_row *)fo__row_add(fo, FO__A_SCORE, "fo_register_score", kind->name,
                                       sizeof *row);
    if (row == NULL)
        return fo->failed;
    row->kind         = *kind;
    row->kind.name    = row->head.name;
    row->kind.formula = fo__strdup(&fo->arena, kind->formula ? kind->formula : "");
    row->kind.source  = fo__strdup(&fo->arena, kind->source ? kind->source : "");
    return fo->failed;
}

static fo_result fo__scores_register(fo_context *fo) {
    fo_score_kind rows[FO_MAX_SCORES];
    int           i, n;
    memset(rows, 0, sizeof rows);
    fo__score_rows(rows, &n);
    for (i = 0; i < n; i++)
        if (fo_register_score(fo, &rows[i]) != FO_OK)
            return fo->failed;
    return FO_OK;
}

fo_score_kind fo_score_at(const fo_context *fo, int i) {
    const fo__row_head *row = fo ? fo->registry->first[FO__A_SCORE] : NULL;
    fo_score_kind       rows[FO_MAX_SCORES], none;
    int                 n;
    memset(&none, 0, sizeof none);
    memset(rows, 0, sizeof rows);
    fo__score_rows(rows, &n);
    if (fo == NULL && i >= 0 && i < n)
        return rows[i];
    for (; row && i > 0; i--)
        row = row->next;
    return row && i == 0 ? ((const fo__score_row *)(const void *)row)->kind : none;
}

/* The score of this name, made ready for a flow: of which width, not fitted yet. */
static fo_result fo__score_find(fo_context *fo, const fo_flow *flow, const char *name,
                                fo__fitted *out) {
    const fo__row_head *row = fo__row_find(fo, NULL, FO__A_SCORE, name ? name : "");
    memset(out, 0, sizeof *out);
    if (row == NULL)
        return fo->failed;
    out->kind  = ((const fo__score_row *)(const void *)row)->kind;
    out->width = out->kind.width ? out->kind.width(flow->shape, flow->n_layers) : 1;
    if (out->width < 1)
        return fo__fail(fo, FO_ERR_SHAPE, "score %s has no features for samples of %dx%dx%d and "
                        "%d layers", name, flow->shape.c, flow->shape.h, flow->shape.w,
                        flow->n_layers);
    return FO_OK;
}

/* ---- a pass: features of samples ------------------------------------------------------------- */

/* What to do with samples on their way: features of these scores, and who takes them. */
typedef struct fo__score_pass {
    fo_workspace     *ws;
    const fo_data    *data;
    const fo__fitted *use;
    int               n, flags, draw;
    int64_t           sample; /* that is being taken: its number in the data */
    void (*take)(void *arg, int score, int64_t i, const double *features);
    void *arg;
} fo__score_pass;

/* Gradients of the log_prob that scoring gives: of its weights, and of its batch norm. */
static fo_workspace *fo__gradient_workspace(fo_context *fo, fo_flow *flow) {
    fo_workspace *ws = fo__workspace_make(fo, flow, 1, 1, 0);
    if (ws) {
        ws->norm.mode = FO_NORM_RUNNING;
        ws->scoring   = 1;
        fo__workspace_bind(ws);
    }
    return ws;
}

static fo_result fo__score_room_of(fo_workspace *ws, const fo__fitted *use, int n, int flags) {
    struct fo__score_room *room;
    int                    s, width = 1;
    for (s = 0; s < n; s++)
        width = FO__MAX(width, use[s].width);
    if (ws->scores == NULL && fo__score_room_make(ws) != FO_OK)
        return ws->fo->failed;
    room = ws->scores;
    if (room->width < width) { /* a score of the user's */
        room->features = fo__doubles(&ws->arena, width);
        room->width    = width;
    }
    if ((flags & FO_SCORE_GRADIENT) && room->backward == NULL)
        room->backward = fo__gradient_workspace(ws->fo, ws->flow);
    if ((flags & FO_SCORE_VIEWS) && room->views == NULL) {
        const int64_t copies = 7 * (int64_t)ws->batch;
        room->copied = fo__doubles(&ws->arena, copies);
        room->copies = (unsigned char *)fo__arena_alloc(&ws->arena,
                                                        fo__times(copies, (size_t)ws->flow->size));
        room->views  = room->copies ? fo__workspace_make(ws->fo, ws->flow, FO__MAX(ws->batch, 7),
                                                         0, 0) : NULL;
    }
    if ((flags & FO_SCORE_BACKGROUND) && room->background == NULL)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "the score ratio compares with a background "
                        "model: name one with fo_workspace_background");
    return ws->fo->failed;
}

/* log |d log p / d parameters|^2 of each layer, for one sample. */
static fo_result fo__score_gradient(fo_workspace *ws, const fo_data *data, int64_t sample,
                                    int draw, double *out) {
    const fo_flow *flow = ws->flow;
    fo__request    q    = fo__request_of(data, sample, 1, draw);
    int            i;
    memset(out, 0, (size_t)flow->n_layers * sizeof *out);
    if (fo__run(ws, &q) != FO_OK)
        return ws->fo->failed;
    ws->dlogdet[0] = 1;
    if (fo__train_backward(ws) != FO_OK)
        return ws->fo->failed;
    for (i = 0; i < flow->params.count; i++) {
        const fo_param_info *p = &flow->params.list[i].info; /* "LAYER.name" */
        out[atoi(p->name)] += ws->fo->kernels->sumsq(p->count, ws->grads + p->offset);
    }
    for (i = 0; i < flow->n_layers; i++)
        out[i] = log(out[i] + 1e-30);
    return FO_OK;
}

/* View k of a picture: mirrored from top to bottom (k & 1), from left to right (k & 2), and rows
   and columns exchanged (k & 4). */
static void fo__turn(const unsigned char *from, fo_shape s, int k, unsigned char *to) {
    int c, y, x;
    for (c = 0; c < s.c; c++, from += s.h * s.w)
        for (y = 0; y < s.h; y++)
            for (x = 0; x < s.w; x++) {
                const int row = k & 4 ? x : y, column = k & 4 ? y : x;
                *to++ = from[(k & 1 ? s.h - 1 - row : row) * s.w +
                             (k & 2 ? s.w - 1 - column : column)];
            }
}

/* log_prob of the copies of all pictures in the batch: together they cost less than one by one. */
static fo_result fo__score_copies(const fo__score_pass *pass) {
    fo_workspace          *ws   = pass->ws;
    struct fo__score_room *room = ws->scores;
    const fo_shape         s    = ws->flow->shape;
    fo__request            q    = fo__request_of(NULL, 0, 0, pass->draw);
    int64_t                r, n = 0;
    int                    k;
    for (r = 0; r < ws->rows; r++)
        for (k = 1; k < fo__view_count(s); k++, n++)
            fo__turn((const unsigned char *)fo_data_row(pass->data, ws->sample[r]), s, k,
                     room->copies + n * ws->flow->size);
    q.log_prob = room->copied;
    if (fo__request_rows(room->views, &q, room->copies, FO_U8, n) != FO_OK)
        return ws->fo->failed;
    return fo__run(room->views, &q);
}

/* What other passes have to say about the samples of the batch. */
static fo_result fo__score_block(const fo__score_pass *pass) {
    fo_workspace *ws = pass->ws;
    fo__request   q  = fo__request_of(pass->data, 0, ws->rows, pass->draw);
    if ((pass->flags & FO_SCORE_VIEWS) && fo__score_copies(pass) != FO_OK)
        return ws->fo->failed;
    if (!(pass->flags & FO_SCORE_BACKGROUND))
        return FO_OK;
    q.order    = ws->sample;
    q.log_prob = ws->scores->behind;
    return fo__run(ws->scores->background, &q);
}

/* log_prob and code length of every view of the picture in this row. */
static void fo__score_views(const fo__score_pass *pass, int64_t row, fo_score_input *in) {
    struct fo__score_room *room = pass->ws->scores;
    const int64_t          size = pass->ws->flow->size;
    int                    k;
    in->view  = room->view;
    in->views = fo__view_count(in->shape);
    for (k = 0; k < in->views; k++) {
        const int64_t copy    = row * (in->views - 1) + k - 1;
        room->view[2 * k]     = k ? room->copied[copy] : in->log_prob;
        room->view[2 * k + 1] = fo_code_length(k ? room->copies + copy * size : in->pixels,
                                               in->shape);
    }
}

/* What scores may look at, of the sample in this row. */
static fo_result fo__score_input_of(const fo__score_pass *pass, int64_t row, double log_prob,
                                    const double *terms, fo_score_input *in) {
    fo_workspace          *ws   = pass->ws;
    struct fo__score_room *room = ws->scores;
    memset(in, 0, sizeof *in);
    in->shape    = ws->flow->shape;
    in->layers   = ws->flow->n_layers;
    in->log_prob = log_prob;
    in->terms    = terms;
    in->z        = fo__state(ws, row);
    in->gradient = room->gradient;
    in->work     = room->work;
    if (pass->flags & (FO_SCORE_X | FO_SCORE_SAMPLES)) {
        fo__data_rows(pass->data, pass->sample, room->x);
        in->x = room->x;
    }
    if (pass->flags & FO_SCORE_PIXELS)
        in->pixels = (const unsigned char *)fo_data_row(pass->data, pass->sample);
    if (pass->flags & FO_SCORE_VIEWS)
        fo__score_views(pass, row, in);
    if (pass->flags & FO_SCORE_BACKGROUND)
        in->background = room->behind[row];
    if (pass->flags & FO_SCORE_GRADIENT)
        return fo__score_gradient(room->backward, pass->data, pass->sample, pass->draw,
                                  room->gradient);
    return FO_OK;
}

/* A row of a request becomes features, and goes on to the pass's own taker. */
static fo_result fo__score_take(void *arg, fo_workspace *ws, int64_t row, int64_t i,
                                double log_prob, const double *terms) {
    fo__score_pass *pass = (fo__score_pass *)arg;
    fo_score_input  in;
    int             s;
    pass->sample = ws->sample[row];
    if (row == 0 && fo__score_block(pass) != FO_OK)
        return ws->fo->failed;
    if (fo__score_input_of(pass, row, log_prob, terms, &in) != FO_OK)
        return ws->fo->failed;
    for (s = 0; s < pass->n && ws->fo->failed == FO_OK; s++) {
        in.user = pass->use[s].kind.user;
        pass->use[s].kind.features(&in, ws->scores->features);
        pass->take(pass->arg, s, i, ws->scores->features);
    }
    return ws->fo->failed;
}

static int fo__score_flags(const fo__fitted *use, int n) {
    int s, flags = 0;
    for (s = 0; s < n; s++)
        flags |= use[s].kind.flags;
    return flags;
}

/* Fails where a score needs pixels and the data have none. */
static fo_result fo__score_pixels(fo_context *fo, const fo_score_kind *kind, const fo_data *data) {
    if (data == NULL || !(kind->flags & FO_SCORE_PIXELS) || fo_data_dtype(data) == FO_U8)
        return FO_OK;
    return fo__fail(fo, FO_ERR_ARGUMENT, "the score %s needs uint8 pixels, not %s: give bytes, or "
                    "take another score", kind->name, fo_dtype_name(fo_data_dtype(data)));
}

/* Runs a request whose samples the pass takes. */
static fo_result fo__score_run(fo_workspace *ws, fo__request *q, fo__score_pass *pass) {
    int i;
    pass->ws    = ws;
    pass->data  = q->data;
    pass->draw  = q->draw;
    pass->flags = fo__score_flags(pass->use, pass->n);
    q->take     = fo__score_take;
    q->arg      = pass;
    for (i = 0; i < pass->n; i++)
        if (fo__score_pixels(ws->fo, &pass->use[i].kind, q->data) != FO_OK)
            return ws->fo->failed;
    if (fo__score_room_of(ws, pass->use, pass->n, pass->flags) != FO_OK)
        return ws->fo->failed;
    return fo__run(ws, q);
}

/* The value of a score, from its features. */
static double fo__score_value(const fo__fitted *use, const double *features, double *work) {
    return use->kind.value ? use->kind.value(features, use->width, use->state, use->size, work)
                           : features[0];
}

/* The same of the sample that a pass is taking; NaN is an error that names it. */
static double fo__score_taken(const fo__score_pass *pass, int score, const double *features) {
    const fo__fitted *use   = &pass->use[score];
    const double      value = fo__score_value(use, features, pass->ws->scores->work);
    if (value != value)
        fo__fail(pass->ws->fo, FO_ERR_NUMERIC, "score %s of sample %lld is not a number",
                 use->kind.name, (long long)fo__origin(pass->ws->data, pass->sample));
    return value;
}

/* ================================================================================================
   >>detect        scores, calibrated: one p-value and a verdict

   Invariants calibration samples were never trained on; what is fitted sees the first half of them
              only, ranks are among the second half only: so p-values are exact, whatever the
              scores are. A detector belongs to weights: when those change, it is refused
   Callers    users, >>checkpoint
   ============================================================================================= */
struct fo__detector {
    fo__arena   arena;
    fo_context *fo;
    fo__fitted *fitted;  /* n_scores of the verdict, then n_also */
    int         n_scores, n_also;
    fo_combine  combine;
    int64_t     n_map, n_rank, steps;
    double     *middle;  /* [n_scores] of a two-sided score, the median; else 0 */
    double     *map;     /* [n_scores][n_map] sorted: values of the first half */
    double     *edges;   /* [n_map]: statistics of the first half */
    double     *rank;    /* [n_rank] sorted: statistics of the second half */
    uint64_t    weights; /* checksum of the weights and buffers that it was fitted to */
};

/* Of the weights that scoring uses, and the buffers. */
static uint64_t fo__weights_checksum(const fo_flow *flow) {
    const uint64_t sum = fo__checksum(0, fo__values_for(flow, 0),
                                      (size_t)flow->params.size * sizeof(fo_real));
    return fo__checksum(sum, flow->buffer_values, (size_t)flow->buffers.size * sizeof(fo_real));
}

/* ---- scores of samples ----------------------------------------------------------------------- */

/* Where a pass leaves values: of score s and sample i at [s * count + i]. */
typedef struct fo__value_sink {
    fo__score_pass pass;
    double        *value;
    int64_t        count;
} fo__value_sink;

static void fo__take_value(void *arg, int score, int64_t i, const double *features) {
    const fo__value_sink *sink = (const fo__value_sink *)arg;
    sink->value[score * sink->count + i] = fo__score_taken(&sink->pass, score, features);
}

/* Is there a detector, and for the weights that the flow has now? */
static fo_result fo__detector_fits(fo_context *fo, const fo_flow *flow) {
    const struct fo__detector *d = flow->detector;
    if (d == NULL)
        return fo__fail(fo, FO_ERR_ARGUMENT, "this flow has no detector: fo_calibrate (flowood "
                        "calibrate) fits one to samples that it was not trained on");
    if (flow->changed)
        return fo__fail(fo, FO_ERR_ARGUMENT, "the detector was fitted after %lld steps of training "
                        "and the weights have changed since (%lld steps now): calibrate again",
                        (long long)d->steps, (long long)flow->train.step);
    return FO_OK;
}

/* The score of this name as the flow has it: fitted by its detector where it must be. */
static fo_result fo__score_use(fo_workspace *ws, const char *name, const fo_data *data,
                               fo__fitted *out) {
    const struct fo__detector *d = ws->flow->detector;
    int                        i;
    if (fo__score_find(ws->fo, ws->flow, name, out) != FO_OK ||
        fo__score_pixels(ws->fo, &out->kind, data) != FO_OK || out->kind.fit == NULL)
        return ws->fo->failed;
    for (i = 0; d && i < d->n_scores + d->n_also; i++)
        if (strcmp(d->fitted[i].kind.name, name) == 0)
            *out = d->fitted[i];
    if (out->state == NULL)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "the score %s compares with calibration samples, "
                        "and this flow has none for it: fo_calibrate (flowood calibrate) first",
                        name);
    return fo__detector_fits(ws->fo, ws->flow);
}

/* Scores of these names for the samples of a request. */
static fo_result fo__score_names(fo_workspace *ws, fo__request *q, const char *const *names, int n,
                                 double *score) {
    fo__fitted     use[FO_MAX_SCORES];
    fo__value_sink sink;
    int            s;
    if (names == NULL || n < 1 || n > FO_MAX_SCORES)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "%d scores: 1 to %d names are possible",
                        names ? n : 0, FO_MAX_SCORES);
    if (score == NULL && q->count > 0)
        return fo__fail(ws->fo, FO_ERR_ARGUMENT, "there is no place for the scores");
    for (s = 0; s < n; s++)
        if (fo__score_use(ws, names[s], q->data, &use[s]) != FO_OK)
            return ws->fo->failed;
    memset(&sink, 0, sizeof sink);
    sink.pass.use = use, sink.pass.n = n, sink.pass.take = fo__take_value, sink.pass.arg = &sink;
    sink.value = score, sink.count = q->count;
    return fo__score_run(ws, q, &sink.pass);
}

fo_result fo_scores(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                    const char *const *names, int n_names, int draw, double *score) {
    fo__request q = fo__request_of(data, first, count, draw);
    return FO__BEGIN(ws) ? fo__score_names(ws, &q, names, n_names, score) : FO_ERR_ARGUMENT;
}

fo_result fo_scores_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                         const char *const *names, int n_names, int draw, double *score) {
    fo__request q = fo__request_of(NULL, 0, 0, draw);
    if (!FO__BEGIN(ws))
        return FO_ERR_ARGUMENT;
    if (count == 0)
        return FO_OK;
    if (fo__request_rows(ws, &q, rows, type, count) != FO_OK)
        return ws->fo->failed;
    return fo__score_names(ws, &q, names, n_names, score);
}

fo_result fo_score(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count,
                   const char *name, double *score) {
    return fo_scores(ws, data, first, count, &name, 1, 0, score);
}

fo_result fo_score_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                        const char *name, double *score) {
    return fo_scores_rows(ws, rows, type, count, &name, 1, 0, score);
}

fo_result fo_workspace_background(fo_workspace *ws, fo_flow *background) {
    struct fo__score_room *room;
    const fo_shape         a = fo_flow_shape(ws ? ws->flow : NULL), b = fo_flow_shape(background);
    if (!FO__BEGIN(ws))
        return FO_ERR_ARGUMENT;
    if (background == NULL || a.c != b.c || a.h != b.h || a.w != b.w)
        return fo__fail(ws->fo, FO_ERR_SHAPE, "the background model is for samples of %dx%dx%d, "
                        "the flow's are %dx%dx%d", b.c, b.h, b.w, a.c, a.h, a.w);
    if (fo__score_room_of(ws, NULL, 0, 0) != FO_OK)
        return ws->fo->failed;
    room = ws->scores;
    if (room->behind == NULL)
        room->behind = fo__doubles(&ws->arena, ws->batch);
    fo_workspace_free(room->background);
    room->background = fo__workspace_make(ws->fo, background, ws->batch, 0, 0);
    return ws->fo->failed;
}

/* ---- from values to statistics --------------------------------------------------------------- */

/* How many of n sorted numbers are below x? */
static int64_t fo__count_below(const double *sorted, int64_t n, double x) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sorted[middle] < x)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* -log of the share of n sorted values that lie at or above v, without steps: linear between two
   values, and above the highest 2 % of them an exponential tail of the same mean excess. */
static double fo__surprise(const double *sorted, int64_t n, double v) {
    const int64_t tail  = FO__MIN(FO__MAX(n / 50, 10), n), below = fo__count_below(sorted, n, v);
    const double  limit = sorted[n - tail];
    double        excess = 0, above = (double)(n - below);
    int64_t       i;
    if (v > limit) {
        for (i = n - tail; i < n; i++)
            excess += (sorted[i] - limit) / (double)tail;
        return log((double)(n + 1) / (double)tail) +
               (v - limit) / FO__MAX(excess, 1e-12 * (1 + fabs(limit)));
    }
    if (below > 0 && sorted[below] > sorted[below - 1])
        above += (sorted[below] - v) / (sorted[below] - sorted[below - 1]);
    return log((double)(n + 1) / FO__MIN(above, (double)n));
}

/* The detector's statistic of a sample with value[s * stride] of each score. */
static double fo__statistic(const struct fo__detector *d, const double *value, int64_t stride) {
    double sum = 0, most = 0;
    int    s;
    if (d->n_scores == 1 && !(d->fitted[0].kind.flags & FO_SCORE_TWO_SIDED))
        return value[0];
    for (s = 0; s < d->n_scores; s++) {
        const double v = value[s * stride];
        const double surprise =
            fo__surprise(d->map + s * d->n_map, d->n_map,
                         d->fitted[s].kind.flags & FO_SCORE_TWO_SIDED ? fabs(v - d->middle[s]) : v);
        sum += surprise;
        most = FO__MAX(most, surprise);
    }
    return d->combine == FO_COMBINE_FISHER ? sum : most;
}

/* ---- calibration ----------------------------------------------------------------------------- */

/* Everything that calibration needs and throws away. */
typedef struct fo__calibration {
    fo_flow             *flow;
    fo_workspace        *ws;
    const fo_data       *data, *samples;
    struct fo__detector *d;
    fo__arena            arena;
    int64_t              n, *order;
    double             **rows;  /* [n][width] features of each score that an encode gives */
    double              *value; /* [n_scores][n], then [n] statistics */
} fo__calibration;

static void fo__take_features(void *arg, int score, int64_t i, const double *features) {
    const fo__calibration *c     = (const fo__calibration *)arg;
    const int64_t          width = c->d->fitted[score].width;
    if (c->rows[score])
        memcpy(c->rows[score] + i * width, features, (size_t)width * sizeof *features);
}

/* Features of a sample for a score that looks at x alone. */
static void fo__sample_only(const fo__calibration *c, int s, const fo_data *data, int64_t i,
                            double *features) {
    fo_score_input in;
    memset(&in, 0, sizeof in);
    in.shape  = c->flow->shape;
    in.layers = c->flow->n_layers;
    in.x      = c->ws->scores->x;
    in.work   = c->ws->scores->work;
    in.user   = c->d->fitted[s].kind.user;
    fo__data_rows(data, i, c->ws->scores->x);
    c->d->fitted[s].kind.features(&in, features);
}

/* What score s keeps: of the first half, or of training samples if it looks at x alone. */
static fo_result fo__fit_score(fo__calibration *c, int s) {
    fo__fitted    *use    = &c->d->fitted[s];
    const fo_data *other  = c->rows[s] ? NULL : c->samples;
    int64_t        n      = other ? fo_data_count(other) : c->d->n_map, i;
    double        *rows   = c->rows[s];
    fo_result      result;
    if (use->kind.fit == NULL)
        return FO_OK;
    if (rows == NULL) {
        n    = FO__MIN(n, FO__MAX(((int64_t)1 << 24) / use->width, 2)); /* 128 MB at most */
        rows = (double *)fo__arena_alloc(&c->arena, fo__times(n * use->width, sizeof *rows));
        if (rows == NULL)
            return FO_ERR_MEMORY;
        for (i = 0; i < n; i++)
            fo__sample_only(c, s, other ? other : c->data, other ? i : c->order[i],
                            rows + i * use->width);
    }
    use->n     = n;
    use->size  = use->kind.size(use->width, n);
    use->state = use->size > 0 ? fo__reals(&c->d->arena, use->size) : NULL;
    if (use->state == NULL)
        return fo__fail(c->ws->fo, FO_ERR_MEMORY, "score %s has nothing to keep, or no memory for "
                        "it", use->kind.name);
    result = use->kind.fit(c->ws->fo, rows, n, use->width, use->state);
    return result != FO_OK ? result : c->ws->fo->failed;
}

/* Values of score s of all samples, and the sorted ones of the first half. */
static fo_result fo__map_score(fo__calibration *c, int s) {
    fo__fitted *use   = &c->d->fitted[s];
    double     *value = c->value + s * c->n, *map = c->d->map + s * c->d->n_map;
    double     *features = c->ws->scores->features, *work = c->ws->scores->work;
    int64_t     i;
    for (i = 0; i < c->n; i++) {
        if (c->rows[s] == NULL)
            fo__sample_only(c, s, c->data, c->order[i], features);
        value[i] = fo__score_value(use, c->rows[s] ? c->rows[s] + i * use->width : features, work);
        if (value[i] - value[i] != 0)
            return fo__fail(c->ws->fo, FO_ERR_NUMERIC, "score %s of calibration sample %lld is %g: "
                            "it must be a finite number", use->kind.name,
                            (long long)fo__origin(c->data, c->order[i]), value[i]);
    }
    memcpy(map, value, (size_t)c->d->n_map * sizeof *map);
    if (fo__sort_values(c->ws->fo, map, c->d->n_map) != FO_OK)
        return FO_ERR_MEMORY;
    if (!(use->kind.flags & FO_SCORE_TWO_SIDED))
        return FO_OK;
    c->d->middle[s] = map[c->d->n_map / 2];
    for (i = 0; i < c->d->n_map; i++)
        map[i] = fabs(map[i] - c->d->middle[s]);
    return fo__sort_values(c->ws->fo, map, c->d->n_map);
}

/* Room for the detector's own numbers, and the shuffled order: a file sorted by class must not end
   up with one class in each half. */
static fo_result fo__calibration_open(fo__calibration *c, uint64_t seed) {
    struct fo__detector *d = c->d;
    int64_t              i;
    int                  s;
    d->n_map  = c->n / 2;
    d->n_rank = c->n - d->n_map;
    d->middle = fo__doubles(&d->arena, d->n_scores);
    d->map    = fo__doubles(&d->arena, d->n_scores * d->n_map);
    d->edges  = fo__doubles(&d->arena, d->n_map);
    d->rank   = fo__doubles(&d->arena, d->n_rank);
    c->value  = fo__doubles(&c->arena, (d->n_scores + 1) * c->n);
    c->order  = (int64_t *)fo__arena_alloc(&c->arena, fo__times(c->n, sizeof *c->order));
    c->rows   = (double **)fo__arena_alloc(&c->arena, (size_t)(d->n_scores + d->n_also) *
                                                          sizeof *c->rows);
    if (c->ws->fo->failed != FO_OK)
        return c->ws->fo->failed;
    for (i = 0; i < c->n; i++)
        c->order[i] = i;
    fo__shuffle(c->order, c->n, sizeof *c->order, seed, FO__STREAM_CALIBRATE);
    for (s = 0; s < d->n_scores + d->n_also; s++)
        if (!(d->fitted[s].kind.flags & FO_SCORE_SAMPLES))
            c->rows[s] = fo__doubles(&c->arena, c->n * d->fitted[s].width);
    return c->ws->fo->failed;
}

static fo_result fo__calibrate(fo__calibration *c, uint64_t seed) {
    struct fo__detector *d    = c->d;
    const int            all  = d->n_scores + d->n_also;
    double              *stat = NULL;
    fo__request          q    = fo__request_of(c->data, 0, c->n, 0);
    fo__score_pass       pass;
    int64_t              i;
    int                  s;
    if (fo__calibration_open(c, seed) != FO_OK)
        return c->ws->fo->failed;
    memset(&pass, 0, sizeof pass);
    pass.use = d->fitted, pass.n = all, pass.take = fo__take_features, pass.arg = c;
    q.order  = c->order;
    if (fo__score_run(c->ws, &q, &pass) != FO_OK)
        return c->ws->fo->failed;
    for (s = 0; s < all; s++)
        if (fo__fit_score(c, s) != FO_OK)
            return c->ws->fo->failed;
    for (s = 0; s < d->n_scores; s++)
        if (fo__map_score(c, s) != FO_OK)
            return c->ws->fo->failed;
    stat = c->value + d->n_scores * c->n;
    for (i = 0; i < c->n; i++)
        stat[i] = fo__statistic(d, c->value + i, c->n);
    memcpy(d->edges, stat, (size_t)d->n_map * sizeof *stat);
    memcpy(d->rank, stat + d->n_map, (size_t)d->n_rank * sizeof *stat);
    d->steps   = c->flow->train.step;
    d->weights = fo__weights_checksum(c->flow);
    return fo__sort_values(c->ws->fo, d->rank, d->n_rank);
}

/* Scores by name into the detector. */
static fo_result fo__detector_names(fo_context *fo, const fo_flow *flow, struct fo__detector *d,
                                    const char *const *names, int n) {
    int s, k;
    for (s = 0; s < n; s++) {
        fo__fitted *use = &d->fitted[d->n_scores + d->n_also];
        if (fo__score_find(fo, flow, names[s], use) != FO_OK)
            return fo->failed;
        for (k = 0; k < d->n_scores + d->n_also; k++)
            if (strcmp(d->fitted[k].kind.name, names[s]) == 0)
                return fo__fail(fo, FO_ERR_ARGUMENT, "fo_calibrate: score %s is named twice",
                                names[s]);
        d->n_also++;
    }
    return FO_OK;
}

static struct fo__detector *fo__detector_make(fo_flow *flow, const fo_data *data,
                                              const fo_detector_desc *desc) {
    const char *const    usual = fo_data_dtype(data) == FO_U8 ? "complexity" : "likelihood";
    const char *const   *names = desc->n_scores ? desc->scores : &usual;
    const int            n     = desc->n_scores ? desc->n_scores : 1;
    struct fo__detector *d = (struct fo__detector *)fo__object(flow->fo, sizeof *d);
    if (d == NULL)
        return NULL;
    d->fo      = flow->fo;
    d->combine = desc->combine;
    d->fitted  = (fo__fitted *)fo__arena_alloc(&d->arena, (size_t)(n + desc->n_also) *
                                                             sizeof *d->fitted);
    if (d->fitted && fo__detector_names(flow->fo, flow, d, names, n) == FO_OK) {
        d->n_scores = n, d->n_also = 0;
        fo__detector_names(flow->fo, flow, d, desc->also, desc->n_also);
    }
    if (flow->fo->failed == FO_OK)
        return d;
    fo__object_free(d);
    return NULL;
}

fo_result fo_calibrate(fo_flow *flow, const fo_data *data, const fo_detector_desc *desc) {
    fo_detector_desc given;
    fo__calibration  c;
    memset(&given, 0, sizeof given);
    if (desc)
        given = *desc;
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (fo__flow_ready(flow->fo, flow) != FO_OK || fo__check_data(flow->fo, flow, data) != FO_OK ||
        (given.samples && fo__check_data(flow->fo, flow, given.samples) != FO_OK))
        return flow->fo->failed;
    if (fo_data_count(data) < 2)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_calibrate: %lld samples: 2 at least are "
                        "needed, half of them to rank others; for a rate of false alarms alpha "
                        "some 2/alpha", (long long)fo_data_count(data));
    if (given.n_scores < 0 || given.n_also < 0 ||
        given.n_scores + given.n_also > FO_MAX_SCORES || (given.n_scores && !given.scores) ||
        (given.n_also && !given.also) || (unsigned)given.combine > FO_COMBINE_FISHER)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_calibrate: %d scores and %d others, "
                        "combination %d: at most %d scores and a known combination are needed",
                        given.n_scores, given.n_also, (int)given.combine, FO_MAX_SCORES);
    memset(&c, 0, sizeof c);
    c.flow     = flow;
    c.data     = data;
    c.samples  = given.samples;
    c.n        = fo_data_count(data);
    c.arena.fo = flow->fo;
    c.ws       = fo__workspace_make(flow->fo, flow, 256, 0, 0);
    c.d        = c.ws ? fo__detector_make(flow, data, &given) : NULL;
    if (c.d && given.background)
        fo_workspace_background(c.ws, given.background);
    if (c.d && flow->fo->failed == FO_OK)
        fo__calibrate(&c, given.seed);
    fo__arena_free(&c.arena);
    fo_workspace_free(c.ws);
    if (c.d && flow->fo->failed == FO_OK) {
        fo__object_free(flow->detector);
        flow->detector = c.d;
        flow->changed  = 0;
    } else {
        fo__object_free(c.d);
    }
    return flow->fo->failed;
}

/* ================================================================================================
   >>verdicts      a calibrated detector at work, and in files
   ============================================================================================= */

typedef struct fo__verdict_sink {
    fo__score_pass             pass;
    const struct fo__detector *d;
    double                    *p, *statistic, *score;
    double                     value[FO_MAX_SCORES];
    int64_t                    count;
} fo__verdict_sink;

/* The verdict on sample i, whose scores lie `stride` apart. */
static void fo__verdict(const struct fo__detector *d, const double *score, int64_t stride,
                        int64_t i, double *p, double *statistic) {
    const double t = fo__statistic(d, score, stride);
    if (statistic)
        statistic[i] = t;
    if (p)
        p[i] = (double)(1 + d->n_rank - fo__count_below(d->rank, d->n_rank, t)) /
               (double)(d->n_rank + 1);
}

/* With the last score of a sample its verdict is known. */
static void fo__take_verdict(void *arg, int score, int64_t i, const double *features) {
    fo__verdict_sink *sink = (fo__verdict_sink *)arg;
    sink->value[score] = fo__score_taken(&sink->pass, score, features);
    if (sink->score)
        sink->score[score * sink->count + i] = sink->value[score];
    if (score + 1 == sink->d->n_scores)
        fo__verdict(sink->d, sink->value, 1, i, sink->p, sink->statistic);
}

/* Verdicts on the samples of a request. */
static fo_result fo__verdicts(fo_workspace *ws, fo__request *q, double *p, double *statistic,
                              double *score) {
    fo__verdict_sink sink;
    if (fo__detector_fits(ws->fo, ws->flow) != FO_OK)
        return ws->fo->failed;
    memset(&sink, 0, sizeof sink);
    sink.d = ws->flow->detector, sink.count = q->count;
    sink.p = p, sink.statistic = statistic, sink.score = score;
    sink.pass.use = sink.d->fitted, sink.pass.n = sink.d->n_scores;
    sink.pass.take = fo__take_verdict, sink.pass.arg = &sink;
    return fo__score_run(ws, q, &sink.pass);
}

fo_result fo_detect(fo_workspace *ws, const fo_data *data, int64_t first, int64_t count, double *p,
                    double *statistic, double *score) {
    fo__request q = fo__request_of(data, first, count, 0);
    return FO__BEGIN(ws) ? fo__verdicts(ws, &q, p, statistic, score) : FO_ERR_ARGUMENT;
}

fo_result fo_detect_rows(fo_workspace *ws, const void *rows, fo_dtype type, int64_t count,
                         double *p, double *statistic, double *score) {
    fo__request q = fo__request_of(NULL, 0, 0, 0);
    if (!FO__BEGIN(ws))
        return FO_ERR_ARGUMENT;
    if (count == 0)
        return FO_OK;
    if (fo__request_rows(ws, &q, rows, type, count) != FO_OK)
        return ws->fo->failed;
    return fo__verdicts(ws, &q, p, statistic, score);
}

fo_result fo_detector_rank(fo_flow *flow, const double *score, int64_t count, double *p,
                           double *statistic) {
    int64_t i;
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (fo__detector_fits(flow->fo, flow) != FO_OK)
        return flow->fo->failed;
    if (score == NULL || count < 0)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_detector_rank needs scores of %lld samples",
                        (long long)count);
    for (i = 0; i < flow->detector->n_scores * count; i++)
        if (score[i] - score[i] != 0)
            return fo__fail(flow->fo, FO_ERR_NUMERIC, "score %s of sample %lld is not a number",
                            fo_detector_score(flow, (int)(i / count)), (long long)(i % count));
    for (i = 0; i < count; i++)
        fo__verdict(flow->detector, score + i, count, i, p, statistic);
    return FO_OK;
}

fo_result fo_detector_limit(fo_flow *flow, double alpha, double confidence, double *limit) {
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (fo__detector_fits(flow->fo, flow) != FO_OK)
        return flow->fo->failed;
    return fo_alarm_limit(flow->fo, flow->detector->n_rank, alpha, confidence, limit);
}

fo_result fo_detector_martingale(fo_flow *flow, uint64_t seed, fo_martingale *martingale) {
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (fo__detector_fits(flow->fo, flow) != FO_OK)
        return flow->fo->failed;
    return fo_martingale_start(flow->fo, martingale, flow->detector->edges, flow->detector->n_map,
                               flow->detector->rank, flow->detector->n_rank, seed);
}

fo_detector_info fo_flow_detector(const fo_flow *flow) {
    const struct fo__detector *d = flow ? flow->detector : NULL;
    fo_detector_info           info;
    memset(&info, 0, sizeof info);
    if (d) {
        info.fitted   = d->n_map;
        info.ranked   = d->n_rank;
        info.n_scores = d->n_scores;
        info.n_also   = d->n_also;
        info.combine  = d->combine;
        info.steps    = d->steps;
        info.stale    = flow->changed;
    }
    return info;
}

const char *fo_detector_score(const fo_flow *flow, int i) {
    const struct fo__detector *d = flow ? flow->detector : NULL;
    return d && i >= 0 && i < d->n_scores + d->n_also ? d->fitted[i].kind.name : NULL;
}

void fo_drop_detector(fo_flow *flow) {
    if (flow) {
        fo__object_free(flow->detector);
        flow->detector = NULL;
    }
}

/* ---- in files -------------------------------------------------------------------------------- */

/* Does score s go into the file? A small one does without samples for the trivial rivals, which may
   be more numbers than all weights. */
static int fo__detector_keeps(const struct fo__detector *d, int s, int small) {
    return s < d->n_scores || !small || !(d->fitted[s].kind.flags & FO_SCORE_SAMPLES);
}

/* One text for the note: what it is made of, and of how many samples each score was fitted. */
static char *fo__detector_note(const struct fo__detector *d, fo__arena *arena, int small) {
    const size_t size = 200 + 64 * (size_t)(d->n_scores + d->n_also);
    char        *text = (char *)fo__arena_alloc(arena, size);
    size_t       at;
    int          s;
    if (text == NULL)
        return NULL;
    at = (size_t)snprintf(text, size, "steps=%lld weights=%016llx combine=%d", (long long)d->steps,
                          (unsigned long long)d->weights, (int)d->combine);
    for (s = 0; s < d->n_scores + d->n_also; s++)
        if (fo__detector_keeps(d, s, small))
            at += (size_t)snprintf(text + at, size - at, " %s=%s:%lld",
                                   s < d->n_scores ? "score" : "also", d->fitted[s].kind.name,
                                   (long long)d->fitted[s].n);
    return text;
}

static void fo__detector_array(fo_array *array, const char *name, fo_dtype type, int64_t rows,
                               int64_t columns, const void *values) {
    memset(array, 0, sizeof *array);
    array->name   = name;
    array->type   = type;
    array->rank   = rows ? 2 : 1;
    array->dim[0] = rows ? rows : columns;
    array->dim[1] = columns;
    array->values = values;
}

/* Into array, which has room for 4 + n_scores + n_also; how many there are, -1: out of memory. */
static int fo__detector_arrays(const struct fo__detector *d, fo__arena *arena, int small,
                               fo_array *array) {
    int n = 0, s;
    fo__detector_array(&array[n++], "detector.map", FO_F64, d->n_scores, d->n_map, d->map);
    fo__detector_array(&array[n++], "detector.edges", FO_F64, 0, d->n_map, d->edges);
    fo__detector_array(&array[n++], "detector.rank", FO_F64, 0, d->n_rank, d->rank);
    fo__detector_array(&array[n++], "detector.middle", FO_F64, 0, d->n_scores, d->middle);
    for (s = 0; s < d->n_scores + d->n_also; s++) {
        const fo__fitted *use  = &d->fitted[s];
        const size_t      size = strlen(use->kind.name) + 24;
        char             *name;
        if (use->state == NULL || !fo__detector_keeps(d, s, small))
            continue;
        name = (char *)fo__arena_alloc(arena, size);
        if (name == NULL)
            return -1;
        snprintf(name, size, "detector.score.%s", use->kind.name);
        fo__detector_array(&array[n++], name, sizeof(fo_real) == 8 ? FO_F64 : FO_F32, 0, use->size,
                           use->state);
    }
    return n;
}

/* Sorted, finite numbers of an array of this many rows (0: of rank 1) into `out`. */
static int fo__detector_values(const fo_archive *archive, const char *name, int64_t rows,
                               int64_t columns, int sorted, double *out) {
    const fo_array *a = fo_archive_find(archive, name);
    int64_t         i, n = FO__MAX(rows, 1) * columns;
    if (a == NULL || a->type != FO_F64 || a->rank != (rows ? 2 : 1) ||
        a->dim[a->rank - 1] != columns || (rows && a->dim[0] != rows))
        return 0;
    for (i = 0; i < n; i++) {
        out[i] = fo__value(FO_F64, a->values, (size_t)i);
        if (out[i] - out[i] != 0 || (sorted && i % columns && out[i] < out[i - 1]))
            return 0;
    }
    return 1;
}

/* "NAME:N", the score s of the detector. */
static int fo__detector_entry(fo_flow *flow, struct fo__detector *d, int s, char *word) {
    fo__fitted *use   = &d->fitted[s];
    char       *colon = strchr(word, ':');
    double      n     = 0;
    if (colon == NULL || !fo__parse_double(colon + 1, &n) || !(n >= 0 && n < 1e9))
        return 0;
    *colon = 0;
    if (fo__score_find(flow->fo, flow, word, use) != FO_OK)
        return 0;
    use->n = (int64_t)n;
    return 1;
}

/* steps=N weights=HEX combine=N, then score=NAME:N and also=NAME:N. */
static int fo__detector_parse(fo_flow *flow, struct fo__detector *d, const char *note) {
    char   key[16], word[80];
    int    used;
    double value;
    while (sscanf(note, " %15[a-z]=%79s%n", key, word, &used) == 2) {
        const int all  = d->n_scores + d->n_also;
        const int also = strcmp(key, "also") == 0;
        note += used;
        if (strcmp(key, "weights") == 0)
            d->weights = strtoull(word, NULL, 16);
        else if (also || strcmp(key, "score") == 0) {
            if (all == FO_MAX_SCORES || (!also && d->n_also) ||
                !fo__detector_entry(flow, d, all, word))
                return 0;
            *(also ? &d->n_also : &d->n_scores) += 1;
        } else if (!fo__parse_double(word, &value) || !(value >= 0 && value < 9e15))
            return 0;
        else if (strcmp(key, "steps") == 0)
            d->steps = (int64_t)value;
        else if (strcmp(key, "combine") == 0)
            d->combine = value == 1 ? FO_COMBINE_FISHER : FO_COMBINE_MIN;
    }
    return *note == 0 && d->n_scores > 0;
}

/* State of a score, which has the size that its fit of n samples makes. */
static int fo__detector_state(const fo_archive *archive, struct fo__detector *d, fo__fitted *use) {
    const fo_array *a;
    char            name[80];
    int64_t         i;
    if (use->kind.fit == NULL)
        return 1;
    snprintf(name, sizeof name, "detector.score.%.50s", use->kind.name);
    a = fo_archive_find(archive, name);
    if (a == NULL || a->rank != 1 || a->dim[0] < 1 || use->n < 1 || a->type > FO_F64 ||
        a->dim[0] != use->kind.size(use->width, use->n))
        return 0;
    use->size  = a->dim[0];
    use->state = fo__reals(&d->arena, use->size);
    for (i = 0; i < use->size; i++) {
        if (use->state == NULL)
            return 0;
        use->state[i] = (fo_real)fo__value(a->type, a->values, (size_t)i);
        if (use->state[i] - use->state[i] != 0)
            return 0;
    }
    return 1;
}

/* The detector of a file into a flow that has its weights; a file without one leaves none. */
static fo_result fo__detector_read(fo_flow *flow, const fo_archive *archive, const char *path) {
    const char          *note = fo_archive_note(archive, "flowood.detector");
    const fo_array      *map = fo_archive_find(archive, "detector.map");
    const fo_array      *rank = fo_archive_find(archive, "detector.rank");
    struct fo__detector *d    = NULL;
    int                  ok   = map && rank && map->rank == 2 && rank->rank == 1, s;
    if (note == NULL)
        return FO_OK;
    d = (struct fo__detector *)fo__object(flow->fo, sizeof *d);
    if (d == NULL)
        return FO_ERR_MEMORY;
    d->fo     = flow->fo;
    d->fitted = (fo__fitted *)fo__arena_alloc(&d->arena, FO_MAX_SCORES * sizeof *d->fitted);
    ok        = ok && d->fitted && fo__detector_parse(flow, d, note);
    d->n_map  = ok ? map->dim[1] : 1;
    d->n_rank = ok ? rank->dim[0] : 1;
    d->map    = fo__doubles(&d->arena, d->n_scores * d->n_map);
    d->edges  = fo__doubles(&d->arena, d->n_map);
    d->rank   = fo__doubles(&d->arena, d->n_rank);
    d->middle = fo__doubles(&d->arena, d->n_scores);
    ok = ok && d->n_map > 0 && d->n_rank > 0 && d->map && d->edges && d->rank && d->middle &&
         fo__detector_values(archive, "detector.map", d->n_scores, d->n_map, 1, d->map) &&
         fo__detector_values(archive, "detector.edges", 0, d->n_map, 0, d->edges) &&
         fo__detector_values(archive, "detector.rank", 0, d->n_rank, 1, d->rank) &&
         fo__detector_values(archive, "detector.middle", 0, d->n_scores, 0, d->middle);
    for (s = 0; ok && s < d->n_scores + d->n_also; s++)
        ok = fo__detector_state(archive, d, &d->fitted[s]);
    if (ok && flow->fo->failed == FO_OK) {
        flow->detector = d;
        flow->changed  = d->weights != fo__weights_checksum(flow);
        return FO_OK;
    }
    fo__object_free(d);
    fo__fail(flow->fo, FO_ERR_FORMAT, "%s: its detector is damaged or of another kind: calibrate "
             "again", path);
    return flow->fo->failed;
}

/* ================================================================================================
   >>checkpoint    a flow as one safetensors file

   Invariants every block of the flow becomes arrays of its parameters' names: weights and buffers
              as they are, Adam's moments and the moving average with a prefix; the architecture
              and the training state are text in the metadata. Names and shapes are all compared
              before memory is asked for
   Callers    users
   ============================================================================================= */
#define FO__FORMAT "1" /* of the file: another number is for files that this code would misread */

typedef struct fo__saved_block {
    const fo_flow    *flow;
    const char       *prefix;
    const fo__params *params;
    fo_real         **at;
} fo__saved_block;

enum { FO__SAVED_BLOCKS = 5 };

static void fo__saved_blocks(fo_flow *flow, fo__saved_block block[FO__SAVED_BLOCKS]) {
    const char *const prefix[FO__SAVED_BLOCKS] = {"", "", "adam.m.", "adam.v.", "ema."};
    fo_real **at[FO__SAVED_BLOCKS];
    int       i;
    at[0] = &flow->values, at[1] = &flow->buffer_values, at[2] = &flow->train.m;
    at[3] = &flow->train.v, at[4] = &flow->train.ema;
    if (flow->best) { /* while it is trained: the state that training would end with */
        fo__whole *best = (fo__whole *)(uintptr_t)flow->best;
        at[0] = &best->values, at[1] = &best->buffer_values, at[2] = &best->train.m;
        at[3] = &best->train.v, at[4] = &best->train.ema;
    }
    for (i = 0; i < FO__SAVED_BLOCKS; i++) {
        block[i].flow   = flow;
        block[i].prefix = prefix[i];
        block[i].params = i == 1 ? &flow->buffers : &flow->params;
        block[i].at     = at[i];
    }
}

/* The counts of a training state, as the note writes and reads them; -1: not known, not written. */
#define FO__TRAIN_COUNTS(X) X(step) X(seen) X(skipped) X(samples) X(held_out)

/* The training note: the seed, counts, the settings, and the best measurement if there was one. */
static void fo__train_note(const fo_flow *flow, char *text, size_t size) {
    const fo__train_state *t = flow->best ? &flow->best->train : &flow->train;
    const fo_train_desc    d = fo__train_resolve(flow, NULL);
    char                   number[40];
    size_t                 at;
    int                    i;
    at = (size_t)snprintf(text, size, "seed=%llu", (unsigned long long)d.seed);
#define FO__ROW(name)                                                                              \
    if (t->name >= 0)                                                                              \
        at += (size_t)snprintf(text + at, size - at, " " #name "=%lld", (long long)t->name);
    FO__TRAIN_COUNTS(FO__ROW)
#undef FO__ROW
    for (i = 0; i < FO__TRAIN_FIELD_COUNT; i++) {
        const fo__train_field *field = &fo__train_fields[i];
        fo__print_double(number, sizeof number, fo__train_get(&d, i) - field->zero, 17);
        at += (size_t)snprintf(text + at, size - at, " %s=%s", field->name, number);
    }
    fo__print_double(number, sizeof number, t->best, 17);
    if (t->has_best)
        snprintf(text + at, size - at, " best=%s", number);
}

/* A number of the note; 0: it cannot be. What is not known is from a later version. */
static int fo__train_note_set(fo__train_state *t, const char *key, double value) {
    int64_t *count = NULL;
    int      i;
    if (strcmp(key, "best") == 0) {
        t->best     = value;
        t->has_best = 1;
        return value - value == 0;
    }
    for (i = 0; i < FO__TRAIN_FIELD_COUNT; i++)
        if (strcmp(key, fo__train_fields[i].name) == 0) {
            value += fo__train_fields[i].zero;
            if (!(value >= fo__train_fields[i].least && value <= fo__train_fields[i].most))
                return 0;
            fo__train_set(&t->desc, i, value);
        }
#define FO__ROW(name)                                                                              \
    if (strcmp(key, #name) == 0)                                                                   \
        count = &t->name;
    FO__TRAIN_COUNTS(FO__ROW)
#undef FO__ROW
    if (count && !(value >= 0 && value < 1e15))
        return 0;
    if (count)
        *count = (int64_t)value;
    return 1;
}

/* The next word of a note, which ends before `end` or with the text; 0: none, or it is too long. */
static int fo__next_word(const char **text, char end, char *word, size_t size) {
    size_t n;
    *text += strspn(*text, " ");
    for (n = 0; (*text)[n] && (*text)[n] != end && n < size;)
        n++;
    if (n == 0 || n == size || (end != ' ' && (*text)[n] != end))
        return 0;
    memcpy(word, *text, n);
    word[n] = 0;
    *text += n + ((*text)[n] == end);
    return 1;
}

static fo_result fo__train_note_read(fo_context *fo, fo__train_state *t, const char *text) {
    fo_train_desc none;
    char          key[32], word[64];
    double        value;
    t->samples = t->held_out = -1;
    while (fo__next_word(&text, '=', key, sizeof key) &&
           fo__next_word(&text, ' ', word, sizeof word)) {
        if (!fo__parse_double(word, &value) || !fo__train_note_set(t, key, value))
            return fo__fail(fo, FO_ERR_FORMAT, "the checkpoint's training state has %s=%s", key,
                            word);
        if (strcmp(key, "seed") == 0)
            t->desc.seed = strtoull(word, NULL, 10);
    }
    if (*text || t->skipped > t->step)
        return fo__fail(fo, FO_ERR_FORMAT, "the checkpoint's training state is damaged near "
                        "'%.40s'", text);
    memset(&none, 0, sizeof none);
    t->desc = fo__train_defaults(&none, &t->desc, 1); /* an older file has fewer settings */
    return fo__train_validate(fo, &t->desc);
}

/* ---- out ------------------------------------------------------------------------------------- */

/* The nearest half-precision number, ties to even; infinite beyond 65504. */
static uint16_t fo__half(double x) {
    int      exponent;
    unsigned sign = x < 0 ? 0x8000u : 0, bits;
    double   a = fabs(x), fraction = frexp(a, &exponent);
    if (a >= 65520)
        bits = 0x7C00;
    else if (a < 1.0 / 16384) /* zero or subnormal: a whole number of 2^-24 */
        bits = (unsigned)rint(ldexp(a, 24));
    else /* a fraction that rounds up to 2048 makes the next exponent */
        bits = ((unsigned)(exponent + 14) << 10) + (unsigned)rint(ldexp(fraction, 11)) - 1024;
    return (uint16_t)(sign | bits);
}

/* n numbers as those of another type, or NULL. */
static const void *fo__converted(fo__arena *arena, const fo_param_info *p, const fo_real *from,
                                 fo_dtype type) {
    void    *out = fo__arena_alloc(arena, fo__times(p->count, fo_dtype_size(type)));
    int64_t  i;
    if (out)
        for (i = 0; i < p->count; i++) {
            if (type == FO_F64)
                ((double *)out)[i] = (double)from[i];
            else if (type == FO_F32)
                ((float *)out)[i] = (float)from[i];
            else
                ((uint16_t *)out)[i] = fo__half((double)from[i]);
            if (type == FO_F16 && fabs((double)from[i]) >= 65520) {
                fo__fail(arena->fo, FO_ERR_NUMERIC, "%s has a weight of %g, float16 ends at 65504: "
                         "save as FO_F32", p->name, (double)from[i]);
                return NULL;
            }
        }
    return out;
}

static int fo__add_arrays(const fo__saved_block *block, fo__arena *arena, fo_dtype type,
                          fo_array *array) {
    const fo_dtype ours = sizeof(fo_real) == 8 ? FO_F64 : FO_F32;
    int            i;
    for (i = 0; i < block->params->count && *block->at; i++) {
        const fo_param_info *p    = &block->params->list[i].info;
        size_t               size = strlen(block->prefix) + strlen(p->name) + 1;
        char                *name = (char *)fo__arena_alloc(arena, size);
        if (name == NULL)
            return -1;
        snprintf(name, size, "%s%s", block->prefix, p->name);
        array[i].name = name;
        array[i].type = type ? type : ours;
        array[i].rank = p->rank;
        memcpy(array[i].dim, p->dim, sizeof p->dim);
        array[i].values = *block->at + p->offset;
        if (array[i].type != ours)
            array[i].values = fo__converted(arena, p, *block->at + p->offset, array[i].type);
        if (array[i].values == NULL)
            return -1;
    }
    return i;
}

/* The notes of a flow; returns how many. */
static int fo__add_notes(fo_flow *flow, fo__arena *arena, int weights_only, fo_note *notes) {
    const size_t size  = 2048;
    char        *train = (char *)fo__arena_alloc(arena, size);
    char        *seed  = (char *)fo__arena_alloc(arena, 24);
    int          n     = 3;
    notes[0].key = "flowood.version", notes[0].text = FO__FORMAT;
    notes[1].key = "flowood.text", notes[1].text = fo_flow_text(flow);
    notes[2].key = "flowood.seed", notes[2].text = seed;
    notes[3].key = "flowood.train", notes[3].text = train;
    if (train == NULL || seed == NULL || notes[1].text == NULL)
        return -1;
    snprintf(seed, 24, "%llu", (unsigned long long)flow->seed);
    if (!weights_only && flow->train.desc.batch) {
        fo__train_note(flow, train, size);
        n = 4;
    }
    if (flow->detector) {
        notes[n].key    = "flowood.detector";
        notes[n++].text = fo__detector_note(flow->detector, arena, weights_only);
    }
    return notes[n - 1].text ? n : -1;
}

/* Everything a checkpoint is made of, in arrays and notes that live in the arena. */
static fo_result fo__save_contents(fo_flow *flow, const fo_save_desc *desc, fo__arena *arena,
                                   fo__contents *out) {
    fo__saved_block block[FO__SAVED_BLOCKS];
    const int       weights_only = desc && desc->weights_only;
    fo_array       *arrays;
    fo_note        *notes;
    int             i, n, room = 0, blocks = weights_only ? 2 : FO__SAVED_BLOCKS;
    if (desc && desc->type && (!weights_only || desc->type > FO_F64))
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_save_as: weights as %s: FO_F16, FO_F32 and "
                        "FO_F64 are possible, with weights_only", fo_dtype_name(desc->type));
    fo__saved_blocks(flow, block);
    if (weights_only && *block[4].at)
        block[0].at = block[4].at;
    for (i = 0; i < blocks; i++)
        room += block[i].params->count;
    memset(out, 0, sizeof *out);
    room += flow->detector ? 4 + FO_MAX_SCORES : 0;
    arrays = (fo_array *)fo__arena_alloc(arena, fo__times(room + 1, sizeof *arrays));
    notes  = (fo_note *)fo__arena_alloc(arena, 8 * sizeof *notes);
    if (arrays == NULL || notes == NULL)
        return FO_ERR_MEMORY;
    for (i = 0; i < blocks; i++) { /* statistics keep their precision: they may be large */
        n = fo__add_arrays(&block[i], arena, desc && i == 0 ? desc->type : (fo_dtype)0,
                           arrays + out->n);
        if (n < 0)
            return flow->fo->failed;
        out->n += n;
    }
    if (flow->detector) {
        n = fo__detector_arrays(flow->detector, arena, weights_only, arrays + out->n);
        if (n < 0)
            return flow->fo->failed;
        out->n += n;
    }
    out->n_notes = fo__add_notes(flow, arena, weights_only, notes);
    out->arrays  = arrays;
    out->notes   = notes;
    return out->n_notes < 0 ? FO_ERR_MEMORY : FO_OK;
}

/* To a file, or (path NULL) to memory. */
static fo_result fo__save_to(fo_flow *flow, const char *path, const fo_save_desc *desc,
                             void **bytes, size_t *size) {
    fo__contents contents;
    fo__arena    arena;
    fo_result    result = fo__flow_ready(flow->fo, flow);
    arena.fo     = flow->fo;
    arena.chunks = NULL;
    fo__enter(flow->fo);
    if (result == FO_OK)
        result = fo__save_contents(flow, desc, &arena, &contents);
    if (result == FO_OK)
        fo__put_archive(flow->fo, path, bytes, size, &contents);
    fo__arena_free(&arena);
    return fo__leave(flow->fo);
}

fo_result fo_save_as(fo_flow *flow, const char *path, const fo_save_desc *desc) {
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (path == NULL)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_save: no path");
    return fo__save_to(flow, path, desc, NULL, NULL);
}

fo_result fo_save(fo_flow *flow, const char *path) { return fo_save_as(flow, path, NULL); }

fo_result fo_save_memory(fo_flow *flow, const fo_save_desc *desc, void **bytes, size_t *size) {
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (bytes == NULL || size == NULL)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_save_memory: no place for the result");
    *bytes = NULL;
    *size  = 0;
    return fo__save_to(flow, NULL, desc, bytes, size);
}

void fo_save_free(fo_context *fo, void *bytes) {
    if (fo)
        fo__free(fo, bytes);
}

/* ---- in -------------------------------------------------------------------------------------- */

/* One table: how PyTorch may spell the end of a name. The newer of its two weight norms keeps the
   length and the direction of a weight elsewhere than in weight_g and weight_v. */
static const char fo__name_map[][2][40] = {
    {".weight_g", ".parametrizations.weight.original0"},
    {".weight_v", ".parametrizations.weight.original1"}};

/* The k-th spelling of a name into text, or 0 where it has no more. */
static int fo__spelling(int k, const char *prefix, const char *name, char *text, size_t size) {
    const int rows = sizeof fo__name_map / sizeof fo__name_map[0];
    size_t    n    = (size_t)snprintf(text, size, "%s%s", prefix, name), end;
    int       i;
    if (n + sizeof fo__name_map[0][1] > size)
        return 0;
    if (k == 1)
        for (i = 0; i < rows; i++) {
            end = strlen(fo__name_map[i][0]);
            if (n > end && strcmp(text + n - end, fo__name_map[i][0]) == 0) {
                strcpy(text + n - end, fo__name_map[i][1]);
                return 1;
            }
        }
    return k == 0;
}

static const fo_array *fo__array_named(const fo_archive *archive, const char *prefix,
                                       const char *name) {
    const fo_array *array = NULL;
    char            full[360];
    int             k;
    for (k = 0; !array && fo__spelling(k, prefix, name, full, sizeof full); k++)
        array = fo_archive_find(archive, full);
    return array;
}

/* "module." where the file has "module.0.scale" for "0.scale": its flow was part of something. Our
   own prefixes are of other blocks, and of two others we cannot know which is meant. */
static fo_result fo__find_prefix(fo_context *fo, const fo_archive *archive, const char *path,
                                 const fo__saved_block *block, char *prefix, size_t size) {
    const char *first = block->params->count ? block->params->list[0].info.name : "";
    char        want[360];
    size_t      n, head;
    int         i, k, b, ours;
    prefix[0] = 0;
    if (*first == 0 || fo__array_named(archive, "", first))
        return FO_OK;
    for (k = 0; fo__spelling(k, "", first, want, sizeof want); k++)
        for (i = 0; i < fo_archive_count(archive); i++) {
            const char *name = fo_archive_at(archive, i)->name;
            n    = strlen(name);
            head = n - FO__MIN(strlen(want), n);
            if (head < 2 || head >= size || name[head - 1] != '.' || strcmp(name + head, want) != 0)
                continue;
            for (ours = 0, b = 2; b < FO__SAVED_BLOCKS; b++)
                ours |= strlen(block[b].prefix) == head && !memcmp(block[b].prefix, name, head);
            if (!ours && prefix[0] && (strlen(prefix) != head || memcmp(prefix, name, head) != 0))
                return fo__fail(fo, FO_ERR_FORMAT, "%s: has %s both under %s and under %.*s: save "
                                "the flow alone", path, first, prefix, (int)head, name);
            if (!ours)
                snprintf(prefix, size, "%.*s", (int)head, name);
        }
    return FO_OK;
}

/* Are they the same but for dimensions of 1? PyTorch keeps per-channel numbers as [1,C,1,1]. */
static int fo__same_shape(const fo_array *array, const fo_param_info *p) {
    int i = 0, k = 0;
    for (;;) {
        while (i < array->rank && array->dim[i] == 1)
            i++;
        while (k < p->rank && p->dim[k] == 1)
            k++;
        if (i == array->rank || k == p->rank)
            return i == array->rank && k == p->rank;
        if (array->dim[i++] != p->dim[k++])
            return 0;
    }
}

/* The array for parameter p under this prefix. NULL: missing, or (an error) of another shape. */
static const fo_array *fo__array_for(fo_context *fo, const fo_archive *archive, const char *path,
                                     const fo__saved_block *block, const fo_param_info *p) {
    char            want[96], seen[96];
    const fo_array *array = fo__array_named(archive, block->prefix, p->name);
    if (array == NULL)
        return NULL;
    if (array->type == FO_U8 || !fo__same_shape(array, p) ||
        (array->type > FO_F64 && block->at != &block->flow->buffer_values)) {
        fo__fail(fo, FO_ERR_FORMAT, "%s: %s is %s %s where the flow needs F32 %s: the weights "
                 "belong to another architecture", path, array->name, fo_dtype_name(array->type),
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
        if (fo__array_for(fo, archive, path, block, p) == NULL) {
            if (block->params->list[i].optional &&
                fo__array_named(archive, block->prefix, p->name) == NULL)
                continue;
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
        const fo_array      *a = fo__array_for(fo, archive, path, block, p);
        for (j = 0; j < p->count; j++)
            (*block->at)[p->offset + j] = a ? (fo_real)fo__value(a->type, a->values, (size_t)j)
                                            : block->params->list[i].absent;
    }
}

/* Weights and buffers: all of them or none. scoring: the weights that scoring uses, that is the
   moving average where our own file has it complete. */
static fo_result fo__read_weights(fo_flow *flow, const fo_archive *archive, const char *path,
                                  int scoring) {
    fo__saved_block block[FO__SAVED_BLOCKS];
    char            prefix[160];
    int             i;
    fo__saved_blocks(flow, block);
    if (fo__find_prefix(flow->fo, archive, path, block, prefix, sizeof prefix) != FO_OK)
        return flow->fo->failed;
    block[0].prefix = block[1].prefix = prefix;
    if (scoring && *prefix == 0 && fo__block_complete(flow->fo, archive, path, &block[4], 0))
        block[0].prefix = block[4].prefix;
    if (flow->fo->failed != FO_OK)
        return flow->fo->failed;
    for (i = 0; i < 2; i++)
        if (!fo__block_complete(flow->fo, archive, path, &block[i], 1))
            return flow->fo->failed;
    if (fo__flow_ready(flow->fo, flow) != FO_OK)
        return flow->fo->failed;
    for (i = 0; i < 2; i++)
        fo__block_read(flow->fo, archive, path, &block[i]);
    flow->changed = 1;
    return FO_OK;
}

fo_result fo_load_weights(fo_flow *flow, const char *path) {
    fo_archive *archive;
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (fo__weights_free(flow, "fo_load_weights") != FO_OK)
        return flow->fo->failed;
    archive = fo_archive_open(flow->fo, path);
    if (archive && fo__read_weights(flow, archive, path, 1) == FO_OK)
        fo__train_forget(flow);
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
    if (!state || !note) { /* weights without moments: the optimizer starts anew */
        flow->train.step = flow->train.seen = flow->train.skipped = state = 0;
        flow->train.has_best = 0;
    }
    for (i = 2; i < FO__SAVED_BLOCKS; i++)
        if (i < 4 ? state : ema) {
            *block[i].at = fo__reals(&flow->arena, n);
            if (*block[i].at == NULL)
                return FO_ERR_MEMORY;
            fo__block_read(flow->fo, archive, path, &block[i]);
        }
    return FO_OK;
}

/* What the flow in this file may cost to build. Its weights cannot be more than the file has. Its
   layers' lists take up to 20 bytes and 1 us an element: 2M of them, or 2 a byte of its arrays. */
static fo__limits fo__limits_of(const fo_archive *archive, const char *path) {
    fo__limits limits;
    int64_t    bytes = 0;
    int        i;
    memset(&limits, 0, sizeof limits);
    limits.path  = path;
    limits.count = fo_archive_count(archive);
    for (i = 0; i < limits.count; i++) {
        const fo_array *array = fo_archive_at(archive, i);
        bytes += (int64_t)fo__bytes(array);
        limits.size += (int64_t)(fo__bytes(array) / fo_dtype_size(array->type));
    }
    limits.count *= 2; /* some may be missing: see fo_layer_optional */
    limits.size *= 2;
    limits.work = FO__MAX((int64_t)1 << 21, 2 * bytes);
    return limits;
}

/* The seed of scoring's noise. Files from before it was noted have that of training. */
static fo_result fo__read_seed(fo_flow *flow, const fo_archive *archive, const char *path) {
    const char *note = fo_archive_note(archive, "flowood.seed");
    size_t      n    = note ? strspn(note, "0123456789") : 0;
    if (note && (n == 0 || n > 20 || note[n]))
        return fo__fail(flow->fo, FO_ERR_FORMAT, "%s: flowood.seed is '%.24s'", path, note);
    if (note)
        flow->seed = strtoull(note, NULL, 10);
    else if (flow->train.desc.seed && fo_archive_note(archive, "flowood.train"))
        flow->seed = flow->train.desc.seed;
    return FO_OK;
}

/* The archive is freed. */
static fo_flow *fo__flow_from(fo_context *fo, fo_archive *archive, const char *path) {
    const char *text   = fo_archive_note(archive, "flowood.text");
    const char *format = fo_archive_note(archive, "flowood.version");
    fo_flow    *flow   = NULL;
    fo__limits  limits = fo__limits_of(archive, path);
    if (archive && text == NULL)
        fo__fail(fo, FO_ERR_FORMAT, "%s: no architecture in it (flowood.text): build the flow in "
                 "code and use fo_load_weights", path);
    if (format && strcmp(format, FO__FORMAT) != 0)
        fo__fail(fo, FO_ERR_FORMAT, "%s: is of format %.20s, and flowood " FLOWOOD_VERSION_TEXT
                 " reads format " FO__FORMAT ": take a newer one", path, format);
    else if (text)
        flow = fo__flow_parse(fo, text, &limits);
    if (flow && (fo__read_weights(flow, archive, path, 0) != FO_OK ||
                 fo__read_train(flow, archive, path) != FO_OK ||
                 fo__read_seed(flow, archive, path) != FO_OK ||
                 fo__detector_read(flow, archive, path) != FO_OK)) {
        fo_flow_free(flow);
        flow = NULL;
    }
    fo_archive_free(archive);
    return flow;
}

fo_flow *fo_load_flow(fo_context *fo, const char *path) {
    return fo__flow_from(fo, fo_archive_open(fo, path), path);
}

fo_flow *fo_load_flow_memory(fo_context *fo, const void *bytes, size_t size) {
    return fo__flow_from(fo, fo_archive_open_memory(fo, bytes, size), "bytes in memory");
}

/* ================================================================================================
   >>check         a flow's own claims, measured on the user's flow

   Purpose    invertible? logdet true? gradient true? every element transformed?
   Cost       seconds, as many as asked for: first the round trip, then the Jacobian (of the whole
              flow, 2 D samples and D^3/3 multiply-adds, where that fits; else layer by layer), then
              the gradients of as many parameters as time is left for
   Numbers    in single precision finite differences are good to about 1e-3; build with
              FLOWOOD_DOUBLE to see 1e-7
   ============================================================================================= */
typedef struct fo__check {
    fo_workspace    *ws;
    fo_check_desc    desc;
    fo_check_report *report;
    const fo_data   *data;
    double           begin;
    int              stopped;
} fo__check;

/* Is there time for more, where this part may take until `share` of all of it? */
static int fo__check_goes(fo__check *c, const char *part, int64_t done, int64_t of, double share) {
    fo__interrupted call = fo__interrupt(c->ws->fo);
    if (c->desc.progress && c->desc.progress(c->desc.user, part, done, of))
        c->stopped = 1;
    fo__resume(c->ws->fo, call);
    return !c->stopped && c->ws->fo->failed == FO_OK &&
           fo_clock() - c->begin < share * c->desc.seconds;
}

/* Has it a layer that keeps only a part of x? */
static int fo__projects(const fo_flow *flow) {
    int i, projects = 0;
    for (i = 0; i < flow->n_layers; i++)
        projects |= flow->layers[i].see.kind->projects;
    return projects;
}

#define FO__SHARE_INVERSE 0.25
#define FO__SHARE_JACOBIAN 0.6

/* Central differences of encode around sample 0, with the dequantization noise held: log|det J|.
   NaN when it would take too long. */
static double fo__check_whole(fo__check *c) {
    fo_workspace *ws = c->ws;
    fo_context   *fo = ws->fo;
    int64_t    n = ws->flow->size, i, j;
    double     h = sizeof(fo_real) == 8 ? 1e-5 : 2e-2, start = fo_clock(), sum = (double)NAN;
    double    *jacobian = (double *)fo__alloc(fo, fo__times(n * n, sizeof *jacobian));
    fo_real   *rows = (fo_real *)fo__alloc(fo, fo__times(4 * n, sizeof *rows));
    fo_data   *view = rows ? fo_data_view(fo, rows, sizeof(fo_real) == 8 ? FO_F64 : FO_F32, 2,
                                          ws->flow->shape) : NULL;
    for (i = 0; i < n && jacobian && view; i++) {
        fo_real *up = rows, *down = rows + n, *z = rows + 2 * n;
        double   step, all = (fo_clock() - start) / (double)FO__MAX(i, 1) * (double)n;
        if (!fo__check_goes(c, "jacobian", i, n, FO__SHARE_JACOBIAN) ||
            (i > 3 && start - c->begin + all > FO__SHARE_JACOBIAN * c->desc.seconds))
            break;
        fo__data_rows(c->data, 0, up);
        fo__data_rows(c->data, 0, down);
        up[i] += (fo_real)(h * (1 + fabs((double)up[i])));
        down[i] -= (fo_real)(h * (1 + fabs((double)down[i])));
        step = (double)up[i] - (double)down[i];
        fo_encode(ws, view, 0, 2, FO_DRAW_MIDDLE, z);
        for (j = 0; j < n; j++)
            jacobian[j * n + i] = ((double)z[j] - (double)z[n + j]) / step;
    }
    if (i == n && fo->failed == FO_OK)
        sum = fo__eliminate(jacobian, n, NULL, 0);
    fo_data_free(view);
    fo__free(fo, rows);
    fo__free(fo, jacobian);
    return sum;
}

/* How the output of a layer changes (dy) when elements of its input x move by dx, with signs of
   chance: the elements i with i / each == group, or all of them (-1). */
static void fo__check_nudge(fo__check *c, int layer, const fo_real *x, int64_t each, int64_t group,
                            double *dx, double *dy) {
    fo_workspace   *ws = c->ws;
    const fo_layer *l  = &ws->flow->layers[layer].see;
    const double    h  = sizeof(fo_real) == 8 ? 1e-5 : 2e-3;
    fo_real *up = fo__state(ws, 0), *down = fo__state(ws, 1);
    int64_t  i;
    uint32_t bits[4];
    fo__fill_draw(ws, 0, 2, FO_DRAW_MIDDLE);
    ws->sample[1] = 0;
    for (i = 0; i < ws->flow->size; i++) {
        double step = h * (1 + fabs((double)x[i]));
        fo_random_bits(0, FO__STREAM_CHECK + (uint64_t)(group + 2), (uint64_t)i, bits);
        if (i >= l->width || (group >= 0 && i / each != group) ||
            (l->map && each == l->width && l->map[i] != FO_CHANGE))
            step = 0;
        up[i]   = x[i] + (fo_real)(bits[0] & 1 ? step : -step);
        down[i] = x[i] - (fo_real)(bits[0] & 1 ? step : -step);
        dx[i]   = (double)up[i] - (double)down[i];
    }
    fo__pass(ws, layer, FO_ENCODE);
    for (i = 0; i < ws->flow->size; i++)
        dy[i] = (double)up[i] - (double)down[i];
}

/* log|det J| of a layer whose elements i, i + each, i + 2 each ... depend on each other alone, and
   on others only through what the layer conditions on. Moving one element of every such block at a
   time gives all blocks; moving all elements then tells whether the guess was right: NaN if not.
   dx and dy are room for a row each, blocks for width / each of them. */
static double fo__check_blocks(fo__check *c, int layer, const fo_real *x, int64_t each, double *dx,
                               double *dy, double *blocks) {
    const int64_t width = c->ws->flow->layers[layer].see.width, n = width / each;
    double        sum = 0, error = 0, all = 0, guess;
    int64_t       i, g;
    for (g = 0; g < n; g++) {
        fo__check_nudge(c, layer, x, each, g, dx, dy);
        for (i = 0; i < width; i++) {
            double step = dx[g * each + i % each];
            blocks[(i % each * n + i / each) * n + g] = step != 0 ? dy[i] / step : 1;
            if (step == 0 && fo__state(c->ws, 0)[i] != x[i])
                return (double)NAN; /* changed, though the mask says it is not */
        }
    }
    fo__check_nudge(c, layer, x, each, -1, dx, dy);
    for (i = 0; i < width; i++) {
        for (guess = 0, g = 0; g < n; g++)
            guess += blocks[(i % each * n + i / each) * n + g] * dx[g * each + i % each];
        error += (dy[i] - guess) * (dy[i] - guess);
        all += dy[i] * dy[i];
    }
    if (!(sqrt(error) <= (sizeof(fo_real) == 8 ? 1e-4 : 1e-2) * sqrt(all)))
        return (double)NAN;
    for (i = 0; i < each; i++)
        sum += fo__eliminate(blocks + i * n * n, n, NULL, 0);
    return sum;
}

/* Of one layer: element by element, pixel by pixel, or, if it is not too large, all with all. */
static double fo__check_layer(fo__check *c, int layer, const fo_real *x, double *dx, double *dy) {
    const fo_layer *l = &c->ws->flow->layers[layer].see;
    int64_t         parts[3];
    double          sum = (double)NAN, *blocks;
    int             k;
    if (l->from || l->kind->projects)
        return 0; /* a permutation, or there is no Jacobian */
    parts[0] = l->kind->mixes ? 0 : 1, parts[1] = l->shape.c, parts[2] = l->width;
    for (k = 0; k < 3 && sum != sum; k++) {
        if (parts[k] == 0 || l->width % parts[k] || parts[k] > 1024)
            continue;
        blocks = (double *)fo__alloc(c->ws->fo, fo__times(l->width * parts[k], sizeof *blocks));
        if (blocks)
            sum = fo__check_blocks(c, layer, x, l->width / parts[k], dx, dy, blocks);
        fo__free(c->ws->fo, blocks);
    }
    return sum;
}

static void fo__check_layers(fo__check *c) {
    fo_workspace    *ws = c->ws;
    fo_check_report *report = c->report;
    const int64_t    n = ws->flow->size;
    fo_real *x  = (fo_real *)fo__alloc(ws->fo, fo__times(n, sizeof *x));
    double  *dx = (double *)fo__alloc(ws->fo, fo__times(2 * n, sizeof *dx)), numeric, logdet, error;
    int      k;
    ws->data = c->data;
    if (x && dx)
        fo__data_rows(c->data, 0, x);
    for (k = 0; k < ws->flow->n_layers && ws->fo->failed == FO_OK; k++) {
        if (!fo__check_goes(c, "jacobian of layers", k, ws->flow->n_layers, FO__SHARE_JACOBIAN))
            break;
        numeric = fo__check_layer(c, k, x, dx, dx + n);
        fo__fill_draw(ws, 0, 1, FO_DRAW_MIDDLE);
        memcpy(fo__state(ws, 0), x, (size_t)n * sizeof *x);
        fo__pass(ws, k, FO_ENCODE);
        memcpy(x, fo__state(ws, 0), (size_t)n * sizeof *x);
        logdet = fo__logdet(ws, k)[0];
        error  = fabs(numeric - logdet) / (1 + fabs(logdet));
        if (error == error) {
            report->jacobian = FO__MAX(report->jacobian, error);
            report->layers++;
        }
    }
    fo__free(ws->fo, dx);
    fo__free(ws->fo, x);
}

static fo_result fo__check_jacobian(fo__check *c, double logdet) {
    fo_check_report *report = c->report;
    double           numeric = (double)NAN;
    report->jacobian  = -1;
    report->layers_of = c->ws->flow->n_layers;
    c->ws->any_values = 1;
    if (c->ws->flow->size <= 1024 && !fo__projects(c->ws->flow))
        numeric = fo__check_whole(c);
    if (numeric == numeric) {
        report->jacobian = fabs(numeric - logdet) / (1 + fabs(logdet));
        report->columns  = c->ws->flow->size;
        report->layers   = report->layers_of;
    } else if (c->ws->fo->failed == FO_OK)
        fo__check_layers(c);
    c->ws->any_values = 0;
    return c->ws->fo->failed;
}

/* Round trip and both logdets of some samples; gives the logdet of the first. */
static double fo__check_some(fo__check *c, int64_t first, int64_t count, fo_real *z,
                             double *terms) {
    fo_workspace    *ws = c->ws;
    fo_check_report *report = c->report;
    const int64_t    n = ws->flow->size, columns = 1 + ws->flow->n_layers;
    const int        projects = fo__projects(ws->flow);
    fo_real         *back = z + count * n, *x = back + count * n;
    double          *other = terms + count * columns, first_logdet = 0;
    int64_t          i, r, k;
    if (fo_encode(ws, c->data, first, count, FO_DRAW_MIDDLE, z) != FO_OK ||
        fo_log_prob_terms(ws, c->data, first, count, FO_DRAW_MIDDLE, terms) != FO_OK ||
        fo_decode(ws, z, count, back, other) != FO_OK)
        return 0;
    for (r = 0; r < count; r++) {
        double logdet = 0;
        for (k = 1; k < columns; k++)
            logdet += terms[r * columns + k];
        if (r == 0)
            first_logdet = logdet;
        report->logdet_pair = FO__MAX(report->logdet_pair,
                                      fabs(logdet + other[r]) / (1 + fabs(logdet)));
        fo__data_rows(c->data, first + r, x);
        if (projects)
            continue;
        for (i = 0; i < n; i++)
            report->round_trip = FO__MAX(report->round_trip,
                                         fabs((double)(x[i] - back[r * n + i])));
    }
    if (projects) { /* what is kept of x goes there and back */
        fo_encode_rows(ws, back, sizeof(fo_real) == 8 ? FO_F64 : FO_F32, count, FO_DRAW_MIDDLE, z);
        fo_decode(ws, z, count, z, NULL);
        for (i = 0; i < count * n; i++)
            report->round_trip = FO__MAX(report->round_trip, fabs((double)(z[i] - back[i])));
    }
    report->samples += count;
    return first_logdet;
}

static fo_result fo__check_inverse(fo__check *c, double *first_logdet) {
    fo_workspace *ws = c->ws;
    const int64_t most = FO__MIN(fo_data_count(c->data), 64), n = ws->flow->size;
    fo_real *z = (fo_real *)fo__alloc(ws->fo, fo__times((2 * ws->batch + 1) * n, sizeof *z));
    double  *terms = (double *)fo__alloc(ws->fo, fo__times(ws->batch * (2 + ws->flow->n_layers),
                                                           sizeof *terms));
    int64_t  done;
    for (done = 0; z && terms && done < most; done += ws->batch) {
        double logdet;
        if (!fo__check_goes(c, "round trip", done, most, FO__SHARE_INVERSE))
            break;
        logdet = fo__check_some(c, done, FO__MIN(most - done, ws->batch), z, terms);
        if (done == 0)
            *first_logdet = logdet;
    }
    fo__free(ws->fo, terms);
    fo__free(ws->fo, z);
    return ws->fo->failed;
}

/* Mean of -log_prob of the rows in ws, with the flow's weights as they are now. */
static double fo__check_loss(fo_workspace *ws) {
    int64_t r;
    double  sum = 0;
    ws->norm.mode = FO_NORM_BATCH; /* as in training, but the statistics stay */
    fo__encode(ws);
    for (r = 0; r < ws->rows; r++)
        ws->dlogdet[r] = -1.0 / (double)ws->rows;
    for (r = 0; r < ws->rows; r++)
        sum -= fo__row_log_prob(ws, r);
    return sum / (double)ws->rows;
}

/* Along the gradient g of one parameter, the loss must rise by |g| a unit of length. */
static double fo__check_slope(fo_workspace *ws, const fo_param_info *p, const fo_real *g,
                              const fo_real *keep, double loss, double largest) {
    fo_real *w = ws->flow->values + p->offset;
    double   slope = 0, weight = 0, h, up, down;
    int64_t  j;
    for (j = 0; j < p->count; j++) {
        slope += (double)g[j] * (double)g[j];
        weight += (double)w[j] * (double)w[j] + 1e-4;
    }
    slope = sqrt(slope);
    if (slope < 1e-9 * largest)
        return 0;
    /* large enough to be seen in the loss, small against the weights */
    h = (sizeof(fo_real) == 8 ? 1e-8 : 2e-5) * (1 + fabs(loss)) / slope;
    h = FO__MIN(h, (sizeof(fo_real) == 8 ? 1e-4 : 0.02) * sqrt(weight)) / slope;
    for (j = 0; j < p->count; j++)
        w[j] = keep[j] + (fo_real)h * g[j];
    up = fo__check_loss(ws);
    for (j = 0; j < p->count; j++)
        w[j] = keep[j] - (fo_real)h * g[j];
    down = fo__check_loss(ws);
    memcpy(w, keep, (size_t)p->count * sizeof *w);
    return fabs((up - down) / (2 * h * slope) - slope) / FO__MAX(slope, 0.01 * largest);
}

static fo_result fo__check_gradient(fo_flow *flow, fo__check *c) {
    const int     prime = 7919, count = flow->params.count, stride = count % prime ? prime : 1;
    const int64_t most = flow->size > 256 ? 8 : 32; /* the loss is made twice for each parameter */
    int64_t       rows = FO__MIN(fo_data_count(c->data), most), n = flow->params.size;
    fo_workspace *ws;
    fo_real      *grad;
    double        loss = 0, largest = 0;
    int           i;
    c->report->parameters_of = count;
    if (!fo__check_goes(c, "gradient", 0, count, 1)) /* a backward may take longer than all of it */
        return flow->fo->failed;
    ws   = fo__workspace_make(flow->fo, flow, (int)rows, 1, 0);
    grad = (fo_real *)fo__alloc(flow->fo, fo__times(2 * n, sizeof *grad));
    if (ws && grad) {
        ws->data = c->data;
        fo__fill(ws, 0, rows);
        loss = fo__check_loss(ws);
        fo__train_backward(ws);
        memcpy(grad, ws->grads, (size_t)n * sizeof *grad);
        memcpy(grad + n, flow->values, (size_t)n * sizeof *grad);
        for (i = 0; i < flow->params.count; i++) {
            const fo_param_info *p = &flow->params.list[i].info;
            largest = FO__MAX(largest, flow->fo->kernels->sumsq(p->count, grad + p->offset));
        }
        largest = sqrt(largest);
    }
    for (i = 0; i < count && flow->fo->failed == FO_OK; i++) {
        const fo_param_info *p = &flow->params.list[(int64_t)i * stride % count].info;
        double               error;
        if (!fo__check_goes(c, "gradient", i, count, 1))
            break;
        error = fo__check_slope(ws, p, grad + p->offset, grad + n + p->offset, loss, largest);
        c->report->gradient = FO__MAX(c->report->gradient, error);
        c->report->parameters++;
    }
    fo__free(flow->fo, grad);
    fo_workspace_free(ws);
    return flow->fo->failed;
}

/* Follows every element of the input through squeezes and permutations: does any layer mix it? */
static int fo__check_untouched(fo_flow *flow) {
    int64_t i, n = flow->size;
    int    *origin = (int *)fo__alloc(flow->fo, fo__times(3 * n, sizeof(int)));
    int    *old = origin ? origin + n : NULL, *touched = origin ? old + n : NULL, k, count = 0;
    if (origin == NULL)
        return 0;
    for (i = 0; i < n; i++)
        origin[i] = (int)i;
    for (k = 0; k < flow->n_layers; k++) {
        const fo_layer *l = &flow->layers[k].see;
        memcpy(old, origin, (size_t)n * sizeof(int));
        for (i = 0; i < l->width; i++) {
            if (l->from)
                origin[i] = old[l->from[i]];
            if (l->kind->mixes || (l->map && l->map[i] == FO_CHANGE))
                touched[origin[i]] = 1;
        }
    }
    for (i = 0; i < n; i++)
        count += !touched[i];
    fo__free(flow->fo, origin);
    return count;
}

fo_result fo_check(fo_flow *flow, const fo_data *data, const fo_check_desc *desc,
                   fo_check_report *report) {
    fo__check c;
    double    logdet = 0;
    if (!FO__BEGIN(flow))
        return FO_ERR_ARGUMENT;
    if (report == NULL)
        return fo__fail(flow->fo, FO_ERR_ARGUMENT, "fo_check: there is no room for its report");
    memset(&c, 0, sizeof c);
    memset(report, 0, sizeof *report);
    if (fo__check_data(flow->fo, flow, data) != FO_OK)
        return flow->fo->failed;
    if (desc)
        c.desc = *desc;
    if (c.desc.seconds == 0)
        c.desc.seconds = 30;
    fo__enter(flow->fo);
    c.report = report, c.data = data, c.begin = fo_clock();
    c.ws     = fo__workspace_make(flow->fo, flow, 8, 0, 0);
    if (c.ws && fo__check_inverse(&c, &logdet) == FO_OK &&
        fo__check_jacobian(&c, logdet) == FO_OK && flow->params.size && !c.stopped)
        fo__check_gradient(flow, &c);
    report->untouched = flow->fo->failed ? 0 : fo__check_untouched(flow);
    fo_workspace_free(c.ws);
    return fo__leave(flow->fo);
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
    first.desc.threads = first.team = fo__usable_threads(first.desc.threads);
    fo = (fo_context *)fo__alloc(&first, sizeof *fo);
    if (fo == NULL)
        return NULL;
    *fo          = first;
    fo->arena.fo = fo;
    fo->kernels  = (fo__kernels *)fo__arena_alloc(&fo->arena, sizeof *fo->kernels);
    fo->ops      = (fo_op *)fo__arena_alloc(&fo->arena, FO__OP_COUNT * sizeof *fo->ops);
    fo->registry = (struct fo__registry *)fo__arena_alloc(&fo->arena, sizeof *fo->registry);
    if (fo->failed != FO_OK || fo__nets_register(fo) != FO_OK || fo__masks_register(fo) != FO_OK ||
        fo__layers_register(fo) != FO_OK || fo__scores_register(fo) != FO_OK) {
        fo_close(fo);
        return NULL;
    }
    fo->registry->open = 1;
    fo__pick_kernels(fo->desc.simd, fo->kernels);
    fo__ops_table(fo->ops);
    fo->desc.simd = fo->kernels->simd;
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

#if defined(FLOWOOD_STATIC) && defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#undef FLOWOOD_IMPLEMENTATION /* a second include declares only */
#endif /* FLOWOOD_IMPLEMENTATION */

/* ================================================================================================
   >>license       MIT or public domain (Unlicense), as you like; see the file LICENSE
   ============================================================================================= */
