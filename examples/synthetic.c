/* Writes the built-in synthetic pair as IDX files: synthetic FOLDER [COUNT]
   (in-train, in-test, ood-test; COUNT training images, a fifth as many test images). */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <stdlib.h>
#include "synthetic.h"

static void write_set(fo_context *fo, const char *folder, const char *name, int64_t first,
                      int64_t count, void (*draw)(uint64_t image, unsigned char *pixels)) {
    unsigned char *pixels = (unsigned char *)calloc((size_t)count, SYNTHETIC_SIZE);
    char           path[1024];
    int64_t        dim[3];
    dim[0] = count, dim[1] = dim[2] = SYNTHETIC_SIDE;
    snprintf(path, sizeof path, "%.900s/%s-images-idx3-ubyte", folder, name);
    if (pixels == NULL) {
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld images", (long long)count);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        draw((uint64_t)(first + i), pixels + i * SYNTHETIC_SIZE);
    fo_save_idx(fo, path, 3, dim, pixels);
    free(pixels);
}

int main(int argc, char **argv) {
    fo_context *fo     = fo_open(NULL);
    long        count  = argc > 2 ? strtol(argv[2], NULL, 10) : 10000;
    int         failed;
    if (argc < 2 || argc > 3 || count < 5 || count > 10000000) {
        fprintf(stderr, "usage: synthetic FOLDER [COUNT], COUNT at least 5\n");
        fo_close(fo);
        return 2;
    }
    write_set(fo, argv[1], "in-train", 0, count, synthetic_silhouette);
    write_set(fo, argv[1], "in-test", count, count / 5, synthetic_silhouette);
    write_set(fo, argv[1], "ood-test", 0, count / 5, synthetic_strokes);
    failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "synthetic: %s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
