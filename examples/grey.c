/* Colour images as grey ones of SIDE x SIDE, so that a flow of FashionMNIST or MNIST may be asked
   about them: grey IN OUT [SIDE]. IN is N x 3 x H x W bytes (.npy), OUT becomes an IDX file.
   Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), the crop is the middle. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include <stdlib.h>

static void crop(const unsigned char *rgb, fo_shape s, int side, unsigned char *grey) {
    const int top = (s.h - side) / 2, left = (s.w - side) / 2, plane = s.h * s.w;
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) {
            const unsigned char *at = rgb + (top + y) * s.w + left + x;
            int sum = 299 * at[0] + 587 * at[plane] + 114 * at[2 * plane];
            grey[y * side + x] = (unsigned char)((sum + 500) / 1000);
        }
}

int main(int argc, char **argv) {
    fo_context    *fo   = fo_open(NULL);
    fo_data       *data = argc > 2 ? fo_load(fo, argv[1]) : NULL;
    fo_shape       s    = fo_data_shape(data);
    long           side = argc > 3 ? strtol(argv[3], NULL, 10) : 28;
    int64_t        n    = fo_data_count(data), dim[3];
    unsigned char *grey = NULL;
    int            failed;
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: grey IN OUT [SIDE]\n");
        fo_close(fo);
        return 2;
    }
    if (data && (s.c != 3 || fo_data_dtype(data) != FO_U8 || side < 1 || side > s.h || side > s.w))
        fo_fail(fo, FO_ERR_SHAPE, "%s: samples of %dx%dx%d: bytes of three channels are needed, at "
                "least %ldx%ld", argv[1], s.c, s.h, s.w, side, side);
    if (!fo_failed(fo))
        grey = (unsigned char *)calloc((size_t)n, (size_t)(side * side));
    if (!fo_failed(fo) && grey == NULL)
        fo_fail(fo, FO_ERR_MEMORY, "out of memory for %lld images", (long long)n);
    for (int64_t i = 0; i < n && grey; i++)
        crop((const unsigned char *)fo_data_row(data, i), s, (int)side, grey + i * side * side);
    dim[0] = n, dim[1] = dim[2] = side;
    if (grey)
        fo_save_idx(fo, argv[2], 3, dim, grey);
    free(grey);
    failed = fo_failed(fo) != FO_OK;
    if (failed)
        fprintf(stderr, "grey: %s\n", fo_error(fo));
    fo_close(fo);
    return failed;
}
