/* What must hold on every system: tests/test_ports.sh compiles this for each target. */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

/* Every path of this machine against libm, and its products against the plain ones. */
static void test_kernels(fo_simd simd) {
    const fo__kernels *k = picked(simd);
    fo_context        *fo = open_with(0, simd, 1), *plain = open_with(0, FO_SIMD_REF, 1);
    fo_real            x[300], y[300], z[300], c[2][35];
    double             worst[3] = {0, 0, 0};
    int                i;
    if (k->simd == simd) {
        fo_random_normal(1, 2, 0, 300, x);
        k->exp(300, x, y);
        for (i = 0; i < 300; i++)
            worst[0] = FO__MAX(worst[0], fabs((double)y[i] / exp((double)x[i]) - 1));
        k->log(300, y, z);
        for (i = 0; i < 300; i++)
            worst[1] = FO__MAX(worst[1], fabs((double)z[i] - log((double)y[i])));
        k->tanh(300, x, y);
        for (i = 0; i < 300; i++)
            worst[2] = FO__MAX(worst[2], fabs((double)y[i] - tanh((double)x[i])));
        for (i = 0; i < 3; i++)
            CHECK(worst[i] < 5e-7);
        fo__gemm(fo, 5, 7, 20, x, 20, 1, x + 100, 7, 1, c[0], 7, NULL, 0);
        fo__gemm(plain, 5, 7, 20, x, 20, 1, x + 100, 7, 1, c[1], 7, NULL, 0);
        for (i = 0; i < 35; i++)
            CHECK_NEAR(c[0][i], c[1][i], 1e-5);
    }
    fo_close(plain);
    fo_close(fo);
}

/* Train, save, load, encode, decode: an image model with every kind of layer. */
static void test_life(const char *path) {
    enum { N = 24, SIZE = 4 * 8 * 8 };
    static unsigned char pixels[N * SIZE];
    static fo_real       z[N * SIZE], back[N * SIZE];
    fo_context   *fo   = open_with(3, FO_SIMD_AUTO, 1);
    fo_data      *data = fo_data_view(fo, pixels, FO_U8, N, shape_of(4, 8, 8));
    fo_flow      *flow = fo_flow_parse(fo, "input 4x8x8\ndequantize\nlogit alpha=0.05\nsqueeze\n"
                                           "actnorm\nconv1x1\nconv1x1 lu=1\n"
                                           "coupling mask=channel:0 net=glow channels=8\nsplit\n"
                                           "squeeze\nconv1x1\ncoupling mask=checkerboard:1 "
                                           "net=resnet channels=4 blocks=1\n"), *loaded;
    fo_workspace *ws;
    fo_train_desc desc;
    double        first[N], one, worst = 0, start = fo_clock();
    int           i;
    for (i = 0; i < N * SIZE; i++)
        pixels[i] = (unsigned char)(i * 37 % 251 * (i / SIZE + 1) % 256);
    memset(&desc, 0, sizeof desc);
    desc.steps = 3, desc.batch = 8;
    CHECK(fo_train(flow, data, &desc) == FO_OK);
    ws = fo_workspace_create(fo, flow, N);
    CHECK(fo_log_prob(ws, data, 0, N, FO_DRAW_MIDDLE, first) == FO_OK);
    for (i = 0; i < N; i++) /* alone or in a batch: the same bits */
        CHECK(fo_log_prob(ws, data, i, 1, FO_DRAW_MIDDLE, &one) == FO_OK &&
              memcmp(&one, &first[i], sizeof one) == 0);
    CHECK(fo_encode(ws, data, 0, N, FO_DRAW_MIDDLE, z) == FO_OK);
    CHECK(fo_decode(ws, z, N, back, NULL) == FO_OK);
    for (i = 0; i < N * SIZE; i++)
        worst = FO__MAX(worst, fabs((double)back[i] - (double)pixels[i]));
    CHECK(worst < 0.5);
    CHECK(fo_save(flow, path) == FO_OK && fo_save(flow, path) == FO_OK); /* it replaces */
    loaded = fo_load_flow(fo, path);
    ws     = fo_workspace_create(fo, loaded, 1);
    CHECK(fo_log_prob(ws, data, 5, 1, FO_DRAW_MIDDLE, &one) == FO_OK &&
          memcmp(&one, &first[5], sizeof one) == 0);
    CHECK(fo_clock() > start && fo_clock() < start + 600);
    if (fo_failed(fo))
        printf("%s\n", fo_error(fo));
    fo_close(fo);
    remove(path);
}

int main(int argc, char **argv) {
    int simd;
    for (simd = FO_SIMD_REF; simd <= FO_SIMD_AVX512; simd++)
        test_kernels((fo_simd)simd);
    CHECK((picked(FO_SIMD_AUTO)->simd == FO_SIMD_REF) == !FO__VECTORS);
    test_life(argc > 1 ? argv[1] : "build/ports.safetensors");
    return test_end();
}
