/* guard: is this image one of those that the flow was trained on? Decisions about single images
   that arrive in memory, from two threads, without an allocation after the start.

   cc -O2 -pthread -I. examples/guard.c -o guard -lm
   ./guard out/cycle.safetensors data/mnist/t10k-images-idx3-ubyte.gz
   The model comes from `flowood train`, which leaves a detector in it. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <pthread.h>

typedef struct guard { /* a thread has a context and a workspace of its own */
    fo_workspace  *ws;
    const fo_data *stream;
    int64_t        first, end, alarms, failed;
    double         limit;
} guard;

static void *stand_guard(void *user) {
    guard  *g = (guard *)user;
    double  p;
    int64_t i;
    for (i = g->first; i < g->end; i += 2)
        if (fo_detect_rows(g->ws, fo_data_row(g->stream, i), FO_U8, 1, &p, NULL, NULL) == FO_OK)
            g->alarms += p <= g->limit;
        else
            g->failed++; /* fo_error says why; the next image is judged all the same */
    return NULL;
}

int main(int argc, char **argv) {
    fo_desc     alone = {0};
    fo_context *fo = fo_open(NULL), *own[2];
    fo_flow    *flow   = fo_load_flow(fo, argc == 3 ? argv[1] : "");
    fo_data    *stream = fo_load(fo, argc == 3 ? argv[2] : "");
    pthread_t   thread[2];
    guard       g[2] = {{0}};
    int         i;
    alone.threads = 1; /* as many threads as we make, and no more */
    for (i = 0; i < 2; i++) {
        own[i]      = fo_open(&alone);
        g[i].ws     = fo_workspace_create(own[i], flow, 1);
        g[i].stream = stream, g[i].first = i, g[i].end = fo_data_count(stream);
        fo_detector_limit(flow, 0.01, 0.9, &g[i].limit); /* at most 1 % false alarms, 90 % sure */
    }
    if (!fo_failed(fo)) {
        uint64_t before = fo_memory(own[0]).allocations + fo_memory(own[1]).allocations;
        double   begin  = fo_clock();
        for (i = 0; i < 2; i++)
            pthread_create(&thread[i], NULL, stand_guard, &g[i]);
        for (i = 0; i < 2; i++)
            pthread_join(thread[i], NULL);
        printf("%lld of %lld images are out of distribution, %lld failed; %.1f us each, %d "
               "allocations\n", (long long)(g[0].alarms + g[1].alarms), (long long)g[0].end,
               (long long)(g[0].failed + g[1].failed),
               1e6 * (fo_clock() - begin) / (double)g[0].end,
               (int)(fo_memory(own[0]).allocations + fo_memory(own[1]).allocations - before));
    }
    if (fo_failed(fo))
        fprintf(stderr, "guard: %s\n", fo_error(fo));
    i = fo_failed(fo) != FO_OK;
    fo_close(own[0]), fo_close(own[1]), fo_close(fo);
    return i;
}
