/* Tests of the data room: array files, gzip, PNG, safetensors archives, metrics.
   The arrays in this file were written by NumPy, zlib and Python's safetensors; no test needs
   Python. Usage: test_data [folder for temporary files] */
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
#include "test.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#define POSIX 1
#else
#define POSIX 0
#endif

static const char *folder = "build";

static const char npy_u1[] =
    "\223NUMPY\001\000v\000{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 2, 2), }   "
    "                                                 \012\000\012\024\036(2<FPZdnx\202\214\226"
    "\240\252\264\276\310\322\334\346";
enum { npy_u1_size = sizeof npy_u1 - 1 };

static const char npy_f2[] =
    "\223NUMPY\001\000v\000{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }         "
    "                                                 \012\0008\000\300\377{\001\000\250\200U5";
enum { npy_f2_size = sizeof npy_f2 - 1 };

static const char npy_f4[] =
    "\223NUMPY\002\000t\000\000\000{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } "
    "                                                       \012\000\000\300\077\000\000\000"
    "\300\346\261a\177\302\026\001\000\254\305'\267\253\252\252>";
enum { npy_f4_size = sizeof npy_f4 - 1 };

static const char npy_f8[] =
    "\223NUMPY\003\000t\000\000\000{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }   "
    "                                                       \012\000\000\000\000\000\000\370"
    "\077\000\000\000\000\000\000\000\300Y\363\370\302\037n\245\001";
enum { npy_f8_size = sizeof npy_f8 - 1 };

static const char idx_plain[] =
    "\000\000\010\003\000\000\000\014\000\000\000\005\000\000\000\007\004\011\003\017\012\005"
    "\006\006\004\003\000\006\010\001\005\007\000\003\011\003\000\003\017\014 \026\002\005\002"
    "\002\031\015\004\030\007\007\006\023\002\001\016\010\000\013\001\001\000\006\007\012\003"
    "\011\010\006\012\014\012\000\016\003\000\003\013\015\002\005\002\011\023\003\016\003\011"
    "\011\003\012\004\021\001\005\011\002\023\016\012\010\007\000\005\005\012\003\001\003\014"
    "\033\001\000\021\003\007\012\001\010\016\000\000\000\000\000\000\000\000\000\000\000\000"
    "\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000"
    "\000\015\021\000\000\006\005\002\005\003\015\012\007\014\012\004\023\016\001\031\000\012"
    "\002\007\002\010\007\027\002\007\001\000\001\000\002\024\011\006\016\007\017\005\001\013\""
    "\012\015\011\001\022\002\005\016\013 \000\023\015\002\006\014\025\030\014\004\010\000\017"
    "\026\013\003\006\007\002\006\001\016\005\002\004\000\003\011\003\001\007\006\017\006\015"
    "\010\004\004\004\030\005\003\020\011\010\015\001\002\002\023\025\007\022\007\004\003\004"
    "\000\002\010\010\005\012\000\005\002\012\007\025\014\000\020\000\000\012\012\007\003\035%"
    "\010\010\012\000\025\007\012\005\003\005\012\005\002\010\020\002\012\014\001\011\001\003"
    "\011\010\025\003\007\001\005\010\001\003\021\000\003\013\003\021\007\011\004\001\020\000"
    "\024\020\000\007\012\004\002\014\013\002\006\013\015\000\005\020\007\000\005\023\033\003"
    "\015\007\017\005\002\007\000\011\006\012\000\024\012\004\012\004\011\014\006\005\010\014"
    "\010\000\000\016\010\016\005\010\031\024\006\020\020\016\006\014\010\006\001\022\000\013"
    "\012\002\001\015\006\011\010\011\001\003\002\024\002\002\012\010\020\006\005\027\023\006"
    "\013\004\016\014\033\011\016\003\016\014\012\010\012\001";
enum { idx_plain_size = sizeof idx_plain - 1 };

static const char gz_dynamic[] =
    "\037\213\010\000\000\000\000\000\000\003\205\217[j\3540\020D\253\273\325\017\265%Y\036\333"
    "\311\014C \\\270\373\337b\224\025\244\340\374\025T\035 \004@[\350\302K\225=\325\254\010,H"
    "\035R\005\262\267\357\017V\346W/Ow;\231F`#\202yJ\015\313\226\030\253\267\365\325\252\247"
    "\014\251U\262\034\244\225\317\221\341PM!io\302!\236\024\003\177\247\037\200)\253\364\364"
    "\226\345\034\364B\262s\370';\201\300W\265\341\273\322\366/{\245\007\353\330\276qv\266v\077"
    "[\011\354\037\233\230\263\321P.\277*\344\266[\217R\312Se\326\350\304|\336\376\360\"\005"
    "\034\241\011\345\364\273a\002\231._\377#\022\267\247\212\246rL\316F\225\226\364-N\032$\307"
    "\322\226\303k\241\211k\302\263p\333\330\266\016\235\313\373|K_\027\331Q-qe\311R\233i\264"
    "\000F\014\215\327es\016ka\364\300\226L\335j\254\005\276\2303\246\351\347i[\031\355]\207"
    "\214\226\221\364\003\225\375\253\374\264\001\000\000";
enum { gz_dynamic_size = sizeof gz_dynamic - 1 };

static const char gz_fixed[] =
    "\037\213\010\010\000\000\000\000\000\003a name\000c`\340`f``\340\001bV fg\341d\346\347becc"
    "af`\343`deg`\346df`\346\347Q\020cbeb\222\344e\221`gg\023fb\344\343`\340fdd`c\347b\346\344`"
    "\343\342\341b\340\003\252\343\346\005\252\342\024f\346c\346\344d\346b\021dd\345d\022\346"
    "\343\342`g`e\345bfd\346\221fd\020df\347b\344\340c \014x\005\031\030\330X\231X\231y\271\330"
    "y\270X\204\371\030%\031\270\230\330\2318\330\305\231\330\031\031\030\031\230D8\331\370\330"
    "\371Y\031\271\225\270x9\031\205\230X\371\270\025\030\204y\231\330xD%xX8\030\370\305\270"
    "\231\331\330\231\330\030\371X\231X@^adg\343g\343\345`aa\221`e\026\340\344\340edb\022\026e"
    "\027bgafa`\342\340`\345b`e\342b\027\345a\020``\340\342bg\226U\345\340\340b\020e\347bef\345"
    "be\342\020`\342\342a\344d\004zZ\224\231\235\221\225\203\221Y\020\350mfAvN\026F\001\006\021"
    "\001\006v.\026&\036n&6n^\006V\001\240\277\205\245\231y\201Ndbg\340d\343b\020\341b\341b\341"
    "\344ac\345\340\341``\340\343\340c\345\220\024a\023\020\340c\343\341`c\024b\340\346bb\344e"
    "\343\344\000\332\300$\302\304\304\305!\300\306*.\314\306\315\302\307#\315\311\307\314\307"
    "\303\305\301\305\010\000\225\375\253\374\264\001\000\000";
enum { gz_fixed_size = sizeof gz_fixed - 1 };

static const char st_golden[] =
    " \002\000\000\000\000\000\000{\"__metadata__\":{\"empty\":\"\",\"spec\":\"line \\\"1\\\"\\"
    "n\\tline \\\\2\\\\ \303\251 \360\237\230\200\\u0001\"},\"long\":{\"dtype\":\"I64\",\"shape"
    "\":[2],\"data_offsets\":[0,16]},\"b\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[16"
    ",24]},\"gr\303\266\303\237e \360\237\230\200\":{\"dtype\":\"F32\",\"shape\":[1,1,1,2],\"da"
    "ta_offsets\":[24,32]},\"none\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[32,32]"
    "},\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[32,56]},\"i\":{\"dtype\":\"I3"
    "2\",\"shape\":[1,1],\"data_offsets\":[56,60]},\"h\":{\"dtype\":\"F16\",\"shape\":[2],\"dat"
    "a_offsets\":[60,64]},\"u8\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[64,67]}}\000"
    "\000\000\000\000\000\000@\377\377\377\377\377\377\377\377Y\363\370\302\037n\245\201\000"
    "\000\200\077\000\000\200\077\000\000\000\000\000\000\200>\000\000\000\077\000\000@\077\000"
    "\000\200\077\000\000\240\077\371\377\377\377\0008\000\300\001\002\377";
enum { st_golden_size = sizeof st_golden - 1 };


/* ---- helpers --------------------------------------------------------------------------------- */

/* A funnel that counts what is held and fails the call number `fail_at`. */
typedef struct funnel {
    size_t held;
    int    calls, fail_at;
} funnel;

static void *counted(void *user, void *ptr, size_t old_size, size_t new_size) {
    funnel *f = (funnel *)user;
    if (new_size && ++f->calls == f->fail_at)
        return NULL;
    f->held += new_size - old_size;
    if (new_size == 0) {
        free(ptr);
        return NULL;
    }
    return realloc(ptr, new_size);
}

static fo_context *open_counted(funnel *f) {
    fo_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.realloc_fn = counted;
    desc.user       = f;
    return fo_open(&desc);
}

/* A path in the folder for temporary files; four may be in use at a time. */
static const char *temp(const char *name) {
    static char path[4][512];
    static int  turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/test_data-%s.tmp", folder, name);
    return path[turn];
}

static const char *put(const char *name, const void *bytes, size_t n) {
    const char *path = temp(name);
    FILE       *file = (remove(path), fopen(path, "wb")); /* a new file is faster than an old one */
    if (file == NULL || fwrite(bytes, 1, n, file) != n || fclose(file) != 0) {
        printf("cannot write %s\n", path);
        exit(2);
    }
    return path;
}

static size_t get(const char *path, unsigned char *bytes, size_t room) {
    FILE  *file = fopen(path, "rb");
    size_t n    = file ? fread(bytes, 1, room, file) : 0;
    if (file)
        fclose(file);
    return n;
}

static int exists(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file)
        fclose(file);
    return file != NULL;
}

/* How many temporary files of the library are in the folder; 0 where that cannot be asked. */
static int parts_left(void) {
    int n = 0;
#if POSIX
    DIR           *dir = opendir(folder);
    struct dirent *entry;
    while (dir && (entry = readdir(dir)) != NULL)
        n += strstr(entry->d_name, ".part") != NULL;
    if (dir)
        closedir(dir);
#endif
    return n;
}

/* Does loading these bytes fail with this code, and with `text` in the message? */
static int refuses(fo_result code, const char *text, const void *bytes, size_t n) {
    fo_context *fo   = fo_open(NULL);
    fo_data    *data = fo_load(fo, put("bad", bytes, n));
    int         ok   = data == NULL && fo_failed(fo) == code && strstr(fo_error(fo), text) != NULL;
    if (!ok)
        printf("wanted '%s', got %s: '%s'\n", text, fo_result_name(fo_failed(fo)), fo_error(fo));
    fo_close(fo);
    return ok;
}

static int is_shape(const fo_data *data, int c, int h, int w) {
    fo_shape s = fo_data_shape(data);
    return s.c == c && s.h == h && s.w == w;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static uint64_t header_of(const unsigned char *bytes) {
    uint64_t length;
    memcpy(&length, bytes, 8);
    return length;
}

static uint32_t be32(const unsigned char *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void test_types(void) {
    fo_shape image = {3, 32, 32}, bad = {3, 0, 2}, negative = {-1, -1, 2};
    fo_shape huge = {INT_MAX, INT_MAX, INT_MAX};
    CHECK(fo_shape_count(image) == 3072);
    CHECK(fo_shape_count(bad) == 0);
    CHECK(fo_shape_count(negative) == 0);
    CHECK(fo_shape_count(huge) == INT64_MAX);
    CHECK(fo_dtype_size(FO_U8) == 1 && fo_dtype_size(FO_F16) == 2 && fo_dtype_size(FO_F32) == 4);
    CHECK(fo_dtype_size(FO_F64) == 8 && fo_dtype_size(FO_I32) == 4 && fo_dtype_size(FO_I64) == 8);
    CHECK(fo_dtype_size((fo_dtype)7) == 0);
    CHECK(strcmp(fo_dtype_name(FO_F16), "F16") == 0 && strcmp(fo_dtype_name(FO_I64), "I64") == 0);
    CHECK(fo_dtype_name((fo_dtype)7) != NULL);
}

static void test_npy(void) {
    fo_context *fo = fo_open(NULL);
    fo_real     x[12];
    fo_data    *data = fo_load(fo, put("u1", npy_u1, npy_u1_size));
    CHECK(fo_data_count(data) == 2 && is_shape(data, 3, 2, 2) && fo_data_dtype(data) == FO_U8);
    CHECK(fo_data_get(data, 1, x) == FO_OK && x[0] == 120 && x[11] == 230);
    fo_data_free(data);
    data = fo_load(fo, put("f2", npy_f2, npy_f2_size));
    CHECK(fo_data_count(data) == 2 && is_shape(data, 3, 1, 1) && fo_data_dtype(data) == FO_F32);
    CHECK(fo_data_get(data, 0, x) == FO_OK && x[0] == 0.5f && x[1] == -2 && x[2] == 65504);
    CHECK(fo_data_get(data, 1, x) == FO_OK && x[0] == 5.9604644775390625e-8f);
    CHECK(fabs((double)x[1] + 1.00135803e-05) < 1e-12 && fabs((double)x[2] - 0.33325195) < 1e-7);
    fo_data_free(data);
    data = fo_load(fo, put("f4", npy_f4, npy_f4_size));
    CHECK(fo_data_count(data) == 2 && is_shape(data, 3, 1, 1) && fo_data_dtype(data) == FO_F32);
    CHECK(fo_data_get(data, 0, x) == FO_OK && x[0] == 1.5f && x[1] == -2 && x[2] == 3e38f);
    CHECK(fo_data_get(data, 1, x) == FO_OK && x[0] > 0 && x[0] < 1.1e-40f);
    fo_data_free(data);
    data = fo_load(fo, put("f8", npy_f8, npy_f8_size));
    CHECK(fo_data_count(data) == 3 && is_shape(data, 1, 1, 1) && fo_data_dtype(data) == FO_F64);
    CHECK(fo_data_get(data, 1, x) == FO_OK && x[0] == -2);
    fo_data_free(data);
    CHECK(fo_failed(fo) == FO_OK);
    fo_close(fo);
}

/* A version 1 header around any text, then `n` zero bytes. */
static size_t npy_of(unsigned char *out, const char *header, size_t n) {
    size_t length = strlen(header);
    memcpy(out, "\x93NUMPY\x01", 8);
    out[8] = (unsigned char)length;
    out[9] = 0;
    memcpy(out + 10, header, length);
    memset(out + 10 + length, 0, n);
    return 10 + length + n;
}

static void test_npy_headers(void) {
    static const struct { const char *header; int values; const char *error; } row[] = {
        {"{'descr':'<f4','fortran_order':False,'shape':(2,3)}", 24, NULL},
        {"  {  \"shape\" : ( 2 , 3 , ) , 'descr' : '|u1' ,"
         "'fortran_order' : False , }  \n", 6, NULL},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", 24, "ascontiguousarray"},
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }", 24, "'>f4'"},
        {"{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }", 48, "numpy.uint8"},
        {"{'descr': '|b1', 'fortran_order': False, 'shape': (2, 3), }", 6, "'|b1'"},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (2, 3), }", 48, "astype"},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", 8, "plain array"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (), }", 4, "has 0 dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1), }", 4, "has 5 dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }", 0, "is 0"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 0), }", 0, "is 0"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3000000000), }", 0, "3000000000"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3), }", 24, "damaged"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2 3), }", 24, "damaged"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (02,3), }", 24, "damaged"},
        {"{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2,3), }", 24, "damaged"},
        {"{'descr': '<f4', 'fortran_order': False, }", 24, "damaged"},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,3), }", 24, "damag"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,3), 'more': 1}", 24, "damaged"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,3), } x", 24, "damaged"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,3)", 24, "damaged"},
        {"", 0, "cut short"},
        {"    ", 4, "damaged"},
        {"{'descr': '<f4', "
         "'fortran_order': False, 'shape': (9223372036854775807, 3), }", 24, "cut"},
        {"{'descr': '<f4', "
         "'fortran_order': False, 'shape': (9223372036854775808, 3), }", 24, "damag"},
        {"{'descr': '<f4', "
         "'fortran_order': False, 'shape': (4611686018427387905, 4), }", 16, "cut"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", 23, "cut short"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", 25, "more"},
    };
    unsigned char bytes[512];
    size_t        i, n;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        n = npy_of(bytes, row[i].header, (size_t)row[i].values);
        if (row[i].error) {
            CHECK(refuses(FO_ERR_FORMAT, row[i].error, bytes, n));
        } else {
            fo_context *fo   = fo_open(NULL);
            fo_data    *data = fo_load(fo, put("good", bytes, n));
            CHECK(fo_data_count(data) == 2 && is_shape(data, 3, 1, 1));
            fo_close(fo);
        }
    }
    n = npy_of(bytes, row[0].header, 24);
    bytes[6] = 4;
    CHECK(refuses(FO_ERR_FORMAT, "", bytes, n));
    bytes[6] = 2;
    CHECK(refuses(FO_ERR_FORMAT, "cut short", bytes, n));
}

static void test_npy_cut(void) {
    int n;
    for (n = 0; n < npy_f4_size; n++)
        CHECK(refuses(FO_ERR_FORMAT, n ? "" : "empty", npy_f4, (size_t)n));
}

static void test_not_finite(void) {
    static const char head[3][64] = {
        "{'descr':'<f2','fortran_order':False,'shape':(3,2)}",
        "{'descr':'<f4','fortran_order':False,'shape':(3,2)}",
        "{'descr':'<f8','fortran_order':False,'shape':(3,2)}"};
    static const unsigned char bad[7][8] = {{0, 0x7C}, {1, 0x7C}, {0, 0, 0x80, 0x7F},
        {0, 0, 0xC0, 0xFF}, {0, 0, 0, 0, 0, 0, 0xF0, 0x7F}, {0, 0, 0, 0, 0, 0, 0xF8, 0xFF},
        {0, 0, 0, 0, 0, 0, 0xE0, 0x7F}};
    unsigned char bytes[256];
    size_t        i, size, n;
    for (i = 0; i < 7; i++) {
        size = i < 2 ? 2 : i < 4 ? 4 : 8;
        n    = npy_of(bytes, head[i < 2 ? 0 : i < 4 ? 1 : 2], 6 * size);
        memcpy(bytes + n - 3 * size, bad[i], size); /* value 3 of 6: row 1, column 1 */
        memcpy(bytes + n - size, bad[i], size);
        if (i < 6 || sizeof(fo_real) == 4) /* the last is 9e307: too large for float only */
            CHECK(refuses(FO_ERR_NUMERIC, "row 1 column 1", bytes, n));
    }
}

static void test_idx(void) {
    unsigned char bytes[64] = {0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 255};
    fo_context   *fo        = fo_open(NULL);
    fo_data      *data      = fo_load(fo, put("idx", idx_plain, idx_plain_size));
    fo_real       x[35];
    int           n, i;
    CHECK(fo_data_count(data) == 12 && is_shape(data, 1, 5, 7) && fo_data_dtype(data) == FO_U8);
    for (n = 0; n < 12; n++) {
        CHECK(fo_data_get(data, n, x) == FO_OK);
        for (i = 0; i < 35; i++)
            if (x[i] != (unsigned char)idx_plain[16 + 35 * n + i])
                break;
        CHECK(i == 35);
    }
    data = fo_load(fo, put("labels", bytes, 11));
    CHECK(fo_data_count(data) == 3 && is_shape(data, 1, 1, 1));
    CHECK(fo_data_get(data, 2, x) == FO_OK && x[0] == 255);
    fo_close(fo);
    for (n = 1; n < idx_plain_size; n += n < 20 ? 1 : 64)
        CHECK(refuses(FO_ERR_FORMAT, "cut short", idx_plain, (size_t)n));
    CHECK(refuses(FO_ERR_FORMAT, "more", bytes, 12));
    bytes[2] = 0x0D;
    CHECK(refuses(FO_ERR_FORMAT, "IDX of bytes", bytes, 11));
    bytes[2] = 8, bytes[3] = 0;
    CHECK(refuses(FO_ERR_FORMAT, "0 dimensions", bytes, 11));
    bytes[3] = 5, bytes[15] = bytes[19] = bytes[23] = 1;
    CHECK(refuses(FO_ERR_FORMAT, "5 dimensions", bytes, 60));
    bytes[3] = 255;
    CHECK(refuses(FO_ERR_FORMAT, "cut short", bytes, 60));
    bytes[3] = 1, bytes[7] = 0;
    CHECK(refuses(FO_ERR_FORMAT, "is 0", bytes, 8));
    bytes[4] = 255;
    CHECK(refuses(FO_ERR_FORMAT, "cut short", bytes, 11));
    CHECK(refuses(FO_ERR_FORMAT, "neither", "hello world", 11));
}

static int same_rows(const char *path, const char *expected, int64_t n) {
    fo_context *fo   = fo_open(NULL);
    fo_data    *data = fo_load(fo, path);
    int64_t     size = fo_shape_count(fo_data_shape(data)), i, k, bad = 0;
    fo_real    *x    = (fo_real *)malloc((size_t)(size + 1) * sizeof *x);
    for (i = 0; x && i < fo_data_count(data); i++) {
        fo_data_get(data, i, x);
        for (k = 0; k < size; k++)
            bad += x[k] != (unsigned char)expected[i * size + k];
    }
    if (data == NULL)
        printf("%s\n", fo_error(fo));
    bad += fo_data_count(data) * size != n;
    free(x);
    fo_close(fo);
    return bad == 0;
}

/* gzip of n bytes: stored blocks of up to 65535, or one block of the fixed code with a literal
   for every byte but runs, matches of 258 at distance 1. */
static size_t gzip_of(const unsigned char *in, size_t n, unsigned char *out, int packed) {
    unsigned char *at = out + 10;
    uint32_t       bits = 3, sum = fo__crc32(0, in, n);
    int            n_bits = 3, k;
    size_t         i = 0, size;
    memcpy(out, "\x1f\x8b\x08\0\0\0\0\0\0\x03", 10);
    for (; !packed && i < n; i += size, at += size) {
        size  = n - i < 65535 ? n - i : 65535;
        *at++ = i + size == n;
        for (k = 0; k < 4; k++)
            *at++ = (unsigned char)((k < 2 ? size : ~size) >> k % 2 * 8);
        memcpy(at, in + i, size);
    }
    for (; packed && i <= n; i += size) {
        uint32_t code, run = 0, value = 0;
        int      length = i == n ? 7 : 8;
        while (i > 0 && i + run < n && run < 258 && in[i + run] == in[i - 1])
            run++;
        code = i == n ? 0 : run == 258 ? 197 : in[i] < 144 ? in[i] + 48u : in[i] + 256u;
        length += i < n && run < 258 && in[i] > 143;
        for (k = 0; k < length; k++)
            value |= (code >> k & 1) << (length - 1 - k);
        bits |= value << n_bits;
        n_bits += length + (run == 258 ? 5 : 0); /* distance 1 is 00000 */
        size = run == 258 ? 258 : 1;
        for (; n_bits >= 8 || (i == n && n_bits > 0); n_bits -= 8, bits >>= 8)
            *at++ = (unsigned char)bits;
    }
    memcpy(at, &sum, 4);
    sum = (uint32_t)n;
    memcpy(at + 4, &sum, 4);
    return (size_t)(at + 8 - out);
}

static void test_gzip(void) {
    static const struct { const char *bytes; int n; } file[] = {
        {gz_dynamic, gz_dynamic_size}, {gz_fixed, gz_fixed_size}};
    unsigned char bytes[2048];
    int           k, i, wrong = 0;
    size_t        n = gzip_of((const unsigned char *)idx_plain, 100, bytes, 1);
    n += gzip_of((const unsigned char *)"", 0, bytes + n, 1); /* members follow each other */
    n += gzip_of((const unsigned char *)idx_plain + 100, idx_plain_size - 100, bytes + n, 0);
    CHECK(same_rows(put("gz", bytes, n), idx_plain + 16, 420));
    bytes[3] = 4; /* with an extra field */
    CHECK(refuses(FO_ERR_FORMAT, "gzip", bytes, n));
    for (k = 0; k < 2; k++) {
        CHECK(same_rows(put("gz", file[k].bytes, (size_t)file[k].n), idx_plain + 16, 420));
        for (i = 2; i < file[k].n; i++)
            CHECK(refuses(FO_ERR_FORMAT, "", file[k].bytes, (size_t)i));
        memcpy(bytes, file[k].bytes, (size_t)file[k].n);
        bytes[file[k].n] = 'x';
        CHECK(refuses(FO_ERR_FORMAT, "gzip", bytes, (size_t)file[k].n + 1));
        bytes[file[k].n] = 0x1f, bytes[file[k].n + 1] = 0x8b;
        CHECK(refuses(FO_ERR_FORMAT, "cut short", bytes, (size_t)file[k].n + 2));
        /* a flipped bit is noticed or does not matter */
        for (i = 0; i < file[k].n; i++) {
            fo_context *fo  = fo_open(NULL);
            int         bit = 1 << i % 8;
            fo_data    *data;
            bytes[i] = (unsigned char)(bytes[i] ^ bit);
            data     = fo_load(fo, put("flip", bytes, (size_t)file[k].n));
            if (data ? memcmp(data->rows, idx_plain + 16, 420) != 0 : !fo_failed(fo))
                wrong++;
            bytes[i] = (unsigned char)(bytes[i] ^ bit);
            fo_close(fo);
        }
    }
    CHECK(wrong == 0);
}

static void test_gzip_large(void) {
    const size_t   n   = 3000000;
    unsigned char *in  = (unsigned char *)calloc(n, 1);
    unsigned char *out = (unsigned char *)malloc(n + n / 8 + 64);
    funnel         f   = {0, 0, 0};
    fo_context    *fo;
    int            kind;
    size_t         i, packed;
    CHECK(in && out);
    for (kind = 0; in && out && kind < 4; kind++) {
        uint32_t bits[4] = {0, 0, 0, 0};
        for (i = 0; i < n; i++) {
            if (i % 4 == 0)
                fo_random_bits(1, (uint64_t)kind, i, bits);
            in[i] = (unsigned char)(kind == 0 ? bits[i % 4] : kind == 1 ? bits[i % 4] % 5
                                    : kind == 3 && i > 40000 ? in[i - 32768 - i % 2] : i / 900);
        }
        memcpy(in, "\0\0\x08\x02", 4);
        fo__set_be32(in + 4, (uint32_t)((n - 12) / 2));
        fo__set_be32(in + 8, 2);
        packed = gzip_of(in, n, out, kind % 2);
        CHECK(same_rows(put("large", out, packed), (const char *)in + 12, (int64_t)n - 12));
    }
    memset(in, 0, n); /* announces 1000 bytes, unpacks to 3 million: stops where it should */
    memcpy(in, "\0\0\x08\x01\0\0\x03\xe8", 8);
    packed = gzip_of(in, n, out, 1);
    fo     = open_counted(&f);
    CHECK(fo_load(fo, put("bomb", out, packed)) == NULL);
    CHECK(strstr(fo_error(fo), "more") != NULL && fo_memory(fo).peak < 300000);
    fo_close(fo);
    memcpy(in, "\0\0\x08\x01\xff\xff\xff\xff", 8); /* announces 4 GB */
    packed = gzip_of(in, 3000, out, 1);
    fo     = open_counted(&f);
    CHECK(fo_load(fo, put("bomb", out, packed)) == NULL);
    CHECK(strstr(fo_error(fo), "cut short") != NULL && fo_memory(fo).peak < 300000);
    fo_close(fo);
    CHECK(f.held == 0);
    free(in);
    free(out);
}

static void test_paths(void) {
    fo_context *fo = fo_open(NULL);
    CHECK(fo_load(NULL, "x") == NULL && fo_archive_open(NULL, "x") == NULL);
    CHECK(fo_load(fo, NULL) == NULL && fo_failed(fo) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    CHECK(fo_load(fo, temp("missing")) == NULL && fo_failed(fo) == FO_ERR_FILE);
    CHECK(strstr(fo_error(fo), "missing") != NULL);
    fo_clear_error(fo);
    CHECK(fo_load(fo, folder) == NULL && strstr(fo_error(fo), "folder") != NULL);
    fo_clear_error(fo);
    CHECK(fo_archive_open(fo, folder) == NULL && strstr(fo_error(fo), "folder") != NULL);
    fo_clear_error(fo);
    CHECK(fo_load(fo, put("empty", "", 0)) == NULL && strstr(fo_error(fo), "is empty") != NULL);
    fo_clear_error(fo);
#if POSIX
    CHECK(fo_load(fo, "/dev/zero") == NULL && strstr(fo_error(fo), "device") != NULL);
    fo_clear_error(fo);
    remove(temp("fifo"));
    if (mkfifo(temp("fifo"), 0600) == 0) {
        CHECK(fo_load(fo, temp("fifo")) == NULL && strstr(fo_error(fo), "pipe") != NULL);
        fo_clear_error(fo);
        CHECK(fo_archive_open(fo, temp("fifo")) == NULL);
        remove(temp("fifo"));
    }
#endif
    fo_close(fo);
}

static void test_view(void) {
    static const double rows[6] = {1, 2, 3, 4, 5, 6};
    fo_shape            shape = {3, 1, 1}, none = {0, 1, 1}, huge = {INT_MAX, INT_MAX, INT_MAX};
    fo_context         *fo    = fo_open(NULL);
    fo_data            *data  = fo_data_view(fo, rows, FO_F64, 2, shape);
    fo_real             x[3]  = {0, 0, 0};
    CHECK(fo_data_get(data, 1, x) == FO_OK && x[0] == 4 && x[2] == 6);
    CHECK(fo_data_get(data, 2, x) == FO_ERR_ARGUMENT && fo_failed(fo) == FO_ERR_ARGUMENT);
    CHECK(fo_data_get(data, -1, x) == FO_ERR_ARGUMENT && x[0] == 4);
    CHECK(fo_data_get(data, 0, NULL) == FO_ERR_ARGUMENT);
    CHECK(fo_data_get(NULL, 0, x) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    fo_data_limit(data, 5);
    CHECK(fo_data_count(data) == 2);
    fo_data_limit(data, 1);
    CHECK(fo_data_count(data) == 1 && fo_data_get(data, 1, x) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
    fo_data_limit(data, 0);
    CHECK(fo_data_count(data) == 1 && fo_failed(fo) == FO_ERR_ARGUMENT);
    fo_data_limit(NULL, 1);
    CHECK(fo_data_view(fo, NULL, FO_F64, 2, shape) == NULL);
    CHECK(fo_data_view(fo, rows, FO_F16, 2, shape) == NULL);
    CHECK(fo_data_view(fo, rows, FO_F64, 0, shape) == NULL);
    CHECK(fo_data_view(fo, rows, FO_F64, 2, none) == NULL);
    CHECK(fo_data_view(fo, rows, FO_U8, 2, huge) == NULL);
    CHECK(fo_data_view(NULL, rows, FO_F64, 2, shape) == NULL);
    CHECK(fo_data_count(NULL) == 0 && is_shape(NULL, 0, 0, 0) && fo_data_dtype(NULL) == FO_U8);
    fo_data_free(NULL);
    fo_close(fo);
}

static void test_save_arrays(void) {
    static const float   f[6]    = {1, 2, 3, 4, 5, 6.5f};
    static const int64_t dim[4]  = {2, 3, 1, 1}, odd[2] = {2, -3};
    static const unsigned char u[6] = {1, 2, 3, 4, 5, 255};
    unsigned char bytes[512];
    fo_context   *fo = fo_open(NULL);
    fo_real       x[6];
    fo_data      *data;
    int           rank;
    CHECK(fo_save_npy(fo, temp("out"), FO_F32, 2, dim, f) == FO_OK);
    CHECK(get(temp("out"), bytes, 512) == 256 + 24);
    CHECK(memcmp(bytes, "\x93NUMPY\x01\0\xf6\0{'descr': '<f4', 'fortran_order': False, 'shape': "
                 "(2, 3), }", 66) == 0);
    CHECK(bytes[254] == ' ' && bytes[255] == '\n' && memcmp(bytes + 256, f, 24) == 0);
    data = fo_load(fo, temp("out"));
    CHECK(fo_data_get(data, 1, x) == FO_OK && x[2] == 6.5f);
    for (rank = 1; rank <= 4; rank++) {
        int64_t first[4] = {6, 1, 1, 1};
        CHECK(fo_save_npy(fo, temp("out"), FO_U8, rank, first, u) == FO_OK);
        CHECK(fo_data_count(fo_load(fo, temp("out"))) == 6);
        CHECK(fo_save_idx(fo, temp("out"), rank, first, u) == FO_OK);
        CHECK(fo_data_count(fo_load(fo, temp("out"))) == 6);
    }
    CHECK(get(temp("out"), bytes, 256) == 26 && memcmp(bytes, "\0\0\x08\x04\0\0\0\x06", 8) == 0);
    CHECK(fo_save_npy(fo, temp("out"), FO_I64, 0, NULL, "12345678") == FO_OK);
    CHECK(get(temp("out"), bytes, 512) == 264 && strstr((char *)bytes + 10, "'shape': ()") != NULL);
    CHECK(fo_failed(fo) == FO_OK && parts_left() == 0);
    CHECK(fo_save_npy(fo, temp("no"), FO_F32, 2, odd, f) == FO_ERR_ARGUMENT);
    CHECK(fo_save_npy(fo, temp("no"), FO_F32, 9, dim, f) == FO_ERR_ARGUMENT);
    CHECK(fo_save_npy(fo, temp("no"), FO_F32, -1, dim, f) == FO_ERR_ARGUMENT);
    CHECK(fo_save_npy(fo, temp("no"), FO_F32, 2, NULL, f) == FO_ERR_ARGUMENT);
    CHECK(fo_save_npy(fo, temp("no"), FO_F32, 2, dim, NULL) == FO_ERR_ARGUMENT);
    CHECK(fo_save_npy(fo, temp("no"), (fo_dtype)7, 2, dim, f) == FO_ERR_ARGUMENT);
    CHECK(fo_save_npy(fo, NULL, FO_F32, 2, dim, f) != FO_OK);
    CHECK(fo_save_npy(NULL, temp("no"), FO_F32, 2, dim, f) != FO_OK);
    CHECK(fo_save_idx(fo, temp("no"), 5, dim, u) == FO_ERR_ARGUMENT && !exists(temp("no")));
    fo_close(fo);
}

static uint32_t adler_of(const unsigned char *bytes, size_t n) {
    uint32_t a = 1, b = 0;
    for (; n > 0; n--)
        a = (a + *bytes++) % 65521, b = (b + a) % 65521;
    return b << 16 | a;
}

/* Reads a PNG back: chunks, checksums, and the pixels through the inflater. */
static int png_is(const char *path, int w, int h, int channels, const unsigned char *pixels) {
    static unsigned char bytes[300000], raw[200000];
    const unsigned char *palette = NULL; /* of colours, instead of channels */
    size_t               n = get(path, bytes, sizeof bytes), at = 8, row, i;
    fo__inflate          z;
    int                  y, ok = n > 57 && memcmp(bytes, "\x89PNG\r\n\x1a\n", 8) == 0;
    memset(&z, 0, sizeof z);
    while (ok && at < n) {
        size_t length = be32(bytes + at);
        ok            = ok && fo__crc32(0, bytes + at + 4, length + 4) ==
                       be32(bytes + at + 8 + length);
        if (memcmp(bytes + at + 4, "IHDR", 4) == 0)
            ok = ok && be32(bytes + at + 8) == (uint32_t)w &&
                 be32(bytes + at + 12) == (uint32_t)h &&
                 bytes[at + 16] == 8 && (channels == 3 ? bytes[at + 17] == 2 || bytes[at + 17] == 3
                                                       : bytes[at + 17] == 0);
        if (memcmp(bytes + at + 4, "PLTE", 4) == 0)
            palette = bytes + at + 8;
        if (memcmp(bytes + at + 4, "IDAT", 4) == 0) {
            ok       = ok && (bytes[at + 8] * 256 + bytes[at + 9]) % 31 == 0;
            z.in     = bytes + at + 10;
            z.in_end = bytes + at + 8 + length;
            z.out    = raw;
            z.room   = sizeof raw;
            fo__inflate_blocks(&z);
            ok = ok && !z.bad && adler_of(raw, z.n_out) == be32(z.in_end - 4);
        }
        at += 12 + length;
    }
    ok  = ok && (palette != NULL) == (bytes[25] == 3);
    row = (size_t)(palette ? w : w * channels);
    ok  = ok && at == n && z.n_out == (row + 1) * (size_t)h;
    for (y = 0; ok && y < h; y++) {
        const unsigned char *got = raw + (size_t)y * (row + 1);
        ok = got[0] == 0;
        for (i = 0; ok && i < row; i++) {
            size_t k = (size_t)y * row + i;
            ok = palette ? memcmp(palette + 3 * got[i + 1], pixels + 3 * k, 3) == 0
                         : got[i + 1] == pixels[k];
        }
    }
    return ok;
}

static void test_png(void) {
    static const int size[6][3] = {{1, 1, 1}, {1, 1, 3},     {7, 5, 1},
                                   {5, 7, 3}, {300, 101, 3}, {257, 400, 1}};
    static unsigned char pixels[200000], small[300000];
    fo_context *fo = fo_open(NULL);
    int         i, k;
    for (i = 0; i < 12; i++) {
        const int *s = size[i % 6];
        for (k = 0; k < 200000; k++)
            pixels[k] = (unsigned char)(i < 6 ? (unsigned)k * 2654435761u >> 24
                                              : (unsigned)(k / 50 % 256));
        CHECK(fo_save_png(fo, temp("png"), s[0], s[1], s[2], pixels) == FO_OK);
        CHECK(png_is(temp("png"), s[0], s[1], s[2], pixels));
    }
    for (k = 0; k < 200000; k++) /* tiles of 41 colours, drawn twice their size, far apart */
        pixels[k] = (unsigned char)(k / 3 % 400 / 2 * 7 % 41 * (1 + k % 3));
    for (i = 255; i <= 257; i++) { /* as many colours as fit, one more */
        pixels[0] = pixels[1] = 255;
        for (k = 0; k < i && i > 255; k++)
            pixels[3 * k] = (unsigned char)k, pixels[3 * k + 1] = (unsigned char)(k / 256);
        CHECK(fo_save_png(fo, temp("png"), 400, 160, 3, pixels) == FO_OK);
        CHECK(png_is(temp("png"), 400, 160, 3, pixels));
        CHECK(i > 255 || get(temp("png"), small, sizeof small) < 20000); /* of 192,000 bytes */
    }
    CHECK(fo_save_png(fo, temp("no"), 0, 5, 1, pixels) == FO_ERR_ARGUMENT);
    CHECK(fo_save_png(fo, temp("no"), 5, 5, 2, pixels) == FO_ERR_ARGUMENT);
    CHECK(fo_save_png(fo, temp("no"), INT_MAX, INT_MAX, 3, pixels) == FO_ERR_ARGUMENT);
    CHECK(fo_save_png(fo, temp("no"), 5, 5, 1, NULL) == FO_ERR_ARGUMENT && !exists(temp("no")));
    fo_close(fo);
}

static void test_archive_golden(void) {
    fo_context     *fo = fo_open(NULL);
    fo_archive     *a  = fo_archive_open(fo, put("golden", st_golden, st_golden_size));
    const fo_array *w  = fo_archive_find(a, "w");
    double          b  = 0;
    CHECK(fo_archive_count(a) == 8 && fo_failed(fo) == FO_OK);
    CHECK(w && w->type == FO_F32 && w->rank == 2 && w->dim[0] == 2 && w->dim[1] == 3);
    CHECK(w && ((const float *)w->values)[5] == 1.25f);
    w = fo_archive_find(a, "b");
    CHECK(w && w->rank == 0 && w->type == FO_F64);
    if (w)
        memcpy(&b, w->values, 8);
    CHECK(b == -1e-300);
    w = fo_archive_find(a, "long");
    CHECK(w && ((const int64_t *)w->values)[0] == (int64_t)1 << 62);
    w = fo_archive_find(a, "i");
    CHECK(w && ((const int32_t *)w->values)[0] == -7 && w->type == FO_I32);
    w = fo_archive_find(a, "u8");
    CHECK(w && ((const unsigned char *)w->values)[2] == 255);
    w = fo_archive_find(a, "h");
    CHECK(w && w->type == FO_F16 && fo__value(FO_F16, w->values, 1) == -2);
    w = fo_archive_find(a, "none");
    CHECK(w && w->dim[0] == 0 && w->dim[1] == 3);
    w = fo_archive_find(a, "gr\xc3\xb6\xc3\x9f" "e \xf0\x9f\x98\x80");
    CHECK(w && w->rank == 4 && w->dim[3] == 2);
    CHECK(strcmp(fo_archive_note(a, "spec"),
                 "line \"1\"\n\tline \\2\\ \xc3\xa9 \xf0\x9f\x98\x80\x01") == 0);
    CHECK(strcmp(fo_archive_note(a, "empty"), "") == 0 && fo_archive_note(a, "x") == NULL);
    CHECK(fo_archive_find(a, "x") == NULL && fo_archive_find(a, NULL) == NULL);
    CHECK(fo_archive_at(a, 0) != NULL && fo_archive_at(a, 8) == NULL && !fo_archive_at(a, -1));
    CHECK(fo_archive_count(NULL) == 0 && !fo_archive_at(NULL, 0) && !fo_archive_find(NULL, "w"));
    CHECK(fo_archive_note(NULL, "a") == NULL && fo_archive_note(a, NULL) == NULL);
    fo_archive_free(a);
    fo_archive_free(NULL);
    fo_close(fo);
}

static int archive_refuses(const char *text, const void *bytes, size_t n) {
    fo_context *fo = fo_open(NULL);
    fo_archive *a  = fo_archive_open(fo, put("bad", bytes, n));
    int         ok = a == NULL && fo_failed(fo) == FO_ERR_FORMAT && strstr(fo_error(fo), text);
    if (!ok)
        printf("wanted '%s', got %s: '%s'\n", text, fo_result_name(fo_failed(fo)), fo_error(fo));
    fo_close(fo);
    return ok;
}

/* A safetensors file of a header and n bytes of data. */
static size_t archive_of(unsigned char *out, const char *header, size_t n) {
    size_t length = strlen(header), i;
    for (i = 0; i < 8; i++)
        out[i] = (unsigned char)(i < 4 ? length >> 8 * i : 0);
    memcpy(out + 8, header, length);
    memset(out + 8 + length, 7, n);
    return 8 + length + n;
}

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
#define B "\"b\":{\"data_offsets\":[8,9],\"shape\":[],\"dtype\":\"U8\"}"

static void test_archive_headers(void) {
    static const struct { const char *header; int data; const char *error; } row[] = {
        {"{}", 0, NULL},
        {"{\"__metadata__\":{}}", 0, NULL},
        {" {" A "}", 8, "header"},
        {"{" A "}  \n", 8, NULL},
        {"{ " A " , " B " } ", 9, NULL},
        {"{" B "," A ",\"__metadata__\":{\"k\":\"v\",\"l\":\"\\u001F\"}}", 9, NULL},
        {"{" A "," B, 9, "byte"},
        {"{" A "," B ",}", 9, "byte"},
        {"{" A B "}", 9, "byte"},
        {"{" A "} x", 8, "byte"},
        {"[" A "]", 8, "header"},
        {"{" A "}", 7, "cut short"},
        {"{" A "}", 9, "8 bytes of 9"},
        {"{" B "}", 9, "have 1 bytes of 9"},
        {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[7,8]}}", 8, "bytes as"},
        {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9,10]}}", 10, "9 bytes"},
        {"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "bytes as"},
        {"{" A ",\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9]}}", 9, "same"},
        {"{" A ",\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9]}}", 9, "same"},
        {"{\"__metadata__\":{\"k\":\"v\",\"k\":\"v\"}}", 0, "same"},
        {"{\"__metadata__\":{\"k\":\"v\"},\"__metadata__\":{}}", 0, "byte"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "byte"},
        {"{\"__metadata__\":{\"k\":\"v\",}}", 0, "byte"},
        {"{\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}", 2, "BF16"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "5 dim"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"more\":1,\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\","
         "\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"F32\","
         "\"shape\":[4611686018427387906],\"data_offsets\":[0,8]}}", 8, "shape"},
        {"{\"a\":{\"dtype\":\"F32\","
         "\"shape\":[99999999999999999999],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\":{\"dtype\":\"U8\","
         "\"shape\":[9223372036854775807],\"data_offsets\":[0,9223372036854775807]}}", 8, "cut"},
        {"{\"a\":{\"dtype\":\"F32\","
         "\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,8]}}", 8, "shape"},
        {"{\"a\\u0000\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\\ud800\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\\x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a\n\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "byte"},
        {"{\"a", 8, "byte"},
        {"{\"a\\", 8, "byte"},
        {"{\"a\\u00", 8, "byte"},
    };
    unsigned char bytes[512];
    size_t        i, n;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        n = archive_of(bytes, row[i].header, (size_t)row[i].data);
        if (row[i].error) {
            CHECK(archive_refuses(row[i].error, bytes, n));
        } else {
            fo_context *fo = fo_open(NULL);
            CHECK(fo_archive_open(fo, put("good", bytes, n)) != NULL);
            fo_close(fo);
        }
    }
    n = archive_of(bytes, "{" A "}", 8);
    bytes[7] = 1; /* a header length of 2^56 */
    CHECK(archive_refuses("header", bytes, n));
    for (n = 0; n < st_golden_size; n++)
        CHECK(archive_refuses(n ? "" : "empty", st_golden, n));
}

static void test_archive_save(void) {
    static const float         f[3] = {1, 2, 3};
    static const double        d[1] = {4};
    static const unsigned char u[3] = {5, 6, 7};
    fo_array arrays[4] = {{"odd", FO_U8, 1, {3, 0, 0, 0}, u},
                          {"f \"\\\n", FO_F32, 2, {1, 3, 0, 0}, f},
                          {"d", FO_F64, 0, {0, 0, 0, 0}, d},
                          {"none", FO_I64, 1, {0, 0, 0, 0}, NULL}};
    fo_note  notes[2]  = {{"spec", "a\n\"b\"\t\\ \x01 \xc3\xa9"}, {"", ""}};
    unsigned char bytes[2][1024];
    fo_context   *fo = fo_open(NULL);
    fo_archive   *a;
    size_t        n;
    int           i;
    CHECK(fo_archive_save(fo, temp("st"), arrays, 4, notes, 2) == FO_OK);
    n = get(temp("st"), bytes[0], 1024);
    CHECK(fo_archive_save(fo, temp("st"), arrays, 4, notes, 2) == FO_OK);
    CHECK(get(temp("st"), bytes[1], 1024) == n && memcmp(bytes[0], bytes[1], n) == 0);
    CHECK(header_of(bytes[0]) % 8 == 0 && n == 8 + header_of(bytes[0]) + 23);
    a = fo_archive_open(fo, temp("st"));
    CHECK(fo_archive_count(a) == 4);
    for (i = 0; i < 4 && a; i++) {
        const fo_array *b = fo_archive_find(a, arrays[i].name);
        CHECK(b == fo_archive_at(a, "\3\2\0\1"[i])); /* wide ones first */
        CHECK(strcmp(b->name, arrays[i].name) == 0 && b->type == arrays[i].type);
        CHECK(b->rank == arrays[i].rank && (b->rank < 1 || b->dim[0] == arrays[i].dim[0]));
        CHECK((uintptr_t)b->values % fo_dtype_size(b->type) == 0);
        CHECK(i == 3 || memcmp(b->values, arrays[i].values, i == 0 ? 3 : i == 1 ? 12 : 8) == 0);
    }
    CHECK(strcmp(fo_archive_note(a, "spec"), notes[0].text) == 0);
    CHECK(strcmp(fo_archive_note(a, ""), "") == 0);
    for (n = 0; n < 1024 && n < header_of(bytes[0]) + 31; n += 64)
        CHECK(archive_refuses("", bytes[0], n));
    CHECK(fo_archive_save(fo, temp("st"), NULL, 0, NULL, 0) == FO_OK);
    CHECK(fo_archive_count(fo_archive_open(fo, temp("st"))) == 0 && fo_failed(fo) == FO_OK);
    CHECK(fo_archive_save(fo, temp("no"), NULL, 1, NULL, 0) == FO_ERR_ARGUMENT);
    CHECK(fo_archive_save(fo, temp("no"), arrays, -1, NULL, 0) == FO_ERR_ARGUMENT);
    CHECK(fo_archive_save(NULL, temp("no"), arrays, 4, NULL, 0) == FO_ERR_ARGUMENT);
    arrays[1].name = "odd";
    CHECK(fo_archive_save(fo, temp("no"), arrays, 4, notes, 2) == FO_ERR_ARGUMENT);
    arrays[1].name = "__metadata__";
    CHECK(fo_archive_save(fo, temp("no"), arrays, 4, notes, 2) == FO_ERR_ARGUMENT);
    arrays[1].name = NULL;
    CHECK(fo_archive_save(fo, temp("no"), arrays, 4, notes, 2) == FO_ERR_ARGUMENT);
    arrays[1].name = "ok", arrays[1].rank = 5;
    CHECK(fo_archive_save(fo, temp("no"), arrays, 4, notes, 2) == FO_ERR_ARGUMENT);
    arrays[1].rank = 2, arrays[1].values = NULL;
    CHECK(fo_archive_save(fo, temp("no"), arrays, 4, notes, 2) == FO_ERR_ARGUMENT);
    notes[1].key = "spec", arrays[1].values = f;
    CHECK(fo_archive_save(fo, temp("no"), arrays, 4, notes, 2) == FO_ERR_ARGUMENT);
    notes[1].key = NULL;
    CHECK(fo_archive_save(fo, temp("no"), arrays, 4, notes, 2) == FO_ERR_ARGUMENT);
    CHECK(!exists(temp("no")) && parts_left() == 0);
    fo_close(fo);
}

/* An array that lies at an odd place of its file is moved to an even one. */
static void test_archive_aligned(void) {
    unsigned char bytes[512];
    size_t        n  = archive_of(bytes, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],"
                                  "\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"F32\","
                                  "\"shape\":[1],\"data_offsets\":[1,5]}}", 5);
    fo_context   *fo = fo_open(NULL);
    fo_archive   *a  = fo_archive_open(fo, put("odd", bytes, n));
    const fo_array *b = fo_archive_find(a, "b");
    CHECK(b && (uintptr_t)b->values % 4 == 0 && memcmp(b->values, "\7\7\7\7", 4) == 0);
    fo_close(fo);
}

/* Fails allocation 1, 2, 3 ... of one job until it succeeds; nothing may be lost or half done. */
static int survives(int job) {
    static const double s[2] = {1, 2};
    static const int64_t dim[1] = {3};
    fo_array   arrays[1] = {{"a", FO_U8, 1, {3, 0, 0, 0}, "abc"}};
    fo_note    notes[1]  = {{"k", "v"}};
    fo_metrics m;
    int        n, bad = 0;
    const char *path = job == 0 ? put("job", npy_f2, npy_f2_size) : job == 1
                       ? put("job", idx_plain, idx_plain_size) : job == 2
                       ? put("job", gz_dynamic, gz_dynamic_size) : job == 3
                       ? put("job", st_golden, st_golden_size) : temp("job");
    for (n = 1; n < 100; n++) {
        funnel      f = {0, 0, 0};
        fo_context *fo = open_counted(&f);
        fo_result   result = FO_OK;
        int         ok;
        f.calls   = 0;
        f.fail_at = n;
        if (job > 3)
            remove(path);
        if (job < 3)
            fo_load(fo, path);
        else if (job == 3)
            fo_archive_open(fo, path);
        else if (job == 4)
            result = fo_archive_save(fo, path, arrays, 1, notes, 1);
        else if (job == 5)
            result = fo_save_png(fo, path, 3, 1, 1, (const unsigned char *)"abc");
        else if (job == 6)
            result = fo_save_npy(fo, path, FO_U8, 1, dim, "abc");
        else
            result = fo_measure(fo, s, 2, s, 2, &m);
        ok = fo_failed(fo) == FO_OK;
        bad += !ok && fo_failed(fo) != FO_ERR_MEMORY;
        bad += job > 3 && ok != (result == FO_OK);
        bad += job > 3 && job < 7 && exists(path) != ok;
        fo_close(fo);
        bad += f.held != 0;
        if (ok)
            return bad == 0 && n > 1;
    }
    return 0;
}

static void test_no_memory(void) {
    int job;
    for (job = 0; job < 8; job++)
        CHECK(survives(job));
}

static void test_write_faults(void) {
    static const int64_t dim[1] = {100000};
    unsigned char       *zeros  = (unsigned char *)calloc(100000, 1);
    unsigned char        bytes[16];
    fo_context          *fo = fo_open(NULL);
    char                 path[600];
    snprintf(path, sizeof path, "%s/no such folder/x", folder);
    CHECK(fo_save_idx(fo, path, 1, dim, zeros) == FO_ERR_FILE && strstr(fo_error(fo), path));
    fo_clear_error(fo);
    CHECK(fo_save_idx(fo, folder, 1, dim, zeros) == FO_ERR_FILE && strstr(fo_error(fo), "folder"));
    fo_clear_error(fo);
    CHECK(fo_save_idx(fo, "", 1, dim, zeros) == FO_ERR_ARGUMENT);
    fo_clear_error(fo);
#if POSIX
    if (exists("/dev/full")) {
        CHECK(fo_save_idx(fo, "/dev/full", 1, dim, zeros) == FO_ERR_FILE);
        CHECK(strstr(fo_error(fo), "/dev/full") != NULL);
        CHECK(fo_load(fo, "/dev/full") == NULL && exists("/dev/full"));
        fo_clear_error(fo);
        CHECK(fo_save_png(fo, "/dev/full", 3, 1, 1, zeros) == FO_ERR_FILE);
        fo_clear_error(fo);
    }
    {
        struct rlimit old, small;
        put("full", "old", 3);
        signal(SIGXFSZ, SIG_IGN);
        getrlimit(RLIMIT_FSIZE, &old);
        small          = old;
        small.rlim_cur = 50000;
        setrlimit(RLIMIT_FSIZE, &small);
        CHECK(fo_save_idx(fo, temp("full"), 1, dim, zeros) == FO_ERR_FILE);
        setrlimit(RLIMIT_FSIZE, &old);
        CHECK(parts_left() == 0 && strstr(fo_error(fo), "too large") != NULL);
        CHECK(get(temp("full"), bytes, 16) == 3 && memcmp(bytes, "old", 3) == 0);
        fo_clear_error(fo);
        CHECK(fo_save_idx(fo, temp("full"), 1, dim, zeros) == FO_OK && parts_left() == 0);
    }
#endif
    (void)bytes;
    free(zeros);
    fo_close(fo);
}

/* Two processes write one path, with nothing but luck between them: what is there afterwards is
   always one of the two files, whole. */
static void test_two_writers(void) {
#if POSIX
    enum { SIZE = 40000 };
    static float  values[2][SIZE];
    fo_array      array   = {"values", FO_F32, 1, {SIZE, 0, 0, 0}, NULL};
    int           turn, i, torn = 0, seen[2] = {0, 0};
    for (i = 0; i < 2 * SIZE; i++)
        values[i / SIZE][i % SIZE] = (float)(1 + i / SIZE);
    for (turn = 0; turn < 200; turn++) {
        pid_t       child[2];
        fo_context *fo = fo_open(NULL);
        fo_archive *a;
        const float *read;
        for (i = 0; i < 2; i++)
            if ((child[i] = fork()) == 0) {
                fo_context *own = fo_open(NULL);
                array.values    = values[i];
                _exit(fo_archive_save(own, temp("two"), &array, 1, NULL, 0) != FO_OK);
            }
        for (i = 0; i < 2; i++) {
            int status = 1;
            torn += waitpid(child[i], &status, 0) < 0 || status != 0;
        }
        a = fo_archive_open(fo, temp("two"));
        torn += a == NULL;
        read = a ? (const float *)fo_archive_find(a, "values")->values : values[0];
        seen[read[0] > 1]++;
        torn += memcmp(read, values[read[0] > 1], sizeof values[0]) != 0;
        fo_close(fo);
    }
    CHECK(torn == 0 && seen[0] + seen[1] == 200 && parts_left() == 0);
#else
    test_skipped++;
#endif
}

/* An archive in memory is one from a file, whose values stay where they are. */
static void test_archive_memory(void) {
    double      bytes[200]; /* at an even place */
    fo_context *fo = fo_open(NULL);
    fo_archive *a;
    size_t      n;
    memcpy(bytes, st_golden, st_golden_size);
    a = fo_archive_open_memory(fo, bytes, st_golden_size);
    CHECK(fo_archive_count(a) == 8 && fo_failed(fo) == FO_OK);
    CHECK(a && *(const float *)fo_archive_find(a, "w")->values == 0);
    CHECK(a && (const char *)fo_archive_find(a, "w")->values ==
                   (const char *)bytes + st_golden_size - 67 + 32);
    CHECK(memcmp(bytes, st_golden, st_golden_size) == 0);
    for (n = 0; n < st_golden_size; n++) {
        fo_clear_error(fo);
        CHECK(fo_archive_open_memory(fo, bytes, n) == NULL && fo_failed(fo) != FO_OK);
    }
    fo_clear_error(fo);
    CHECK(fo_archive_open_memory(fo, NULL, 9) == NULL && fo_failed(fo) == FO_ERR_ARGUMENT);
    CHECK(fo_archive_open_memory(NULL, bytes, n) == NULL);
    fo_close(fo);
}

/* What was written is what is read: a changed byte of the values is told, a changed order of the
   arrays is none, and who edits values may take the note out. */
static void test_checksum(void) {
    static const float values[2][3] = {{1, 2, 3}, {4, 5, 6}};
    fo_array      arrays[2] = {{"a", FO_F32, 1, {3, 0, 0, 0}, values[0]},
                               {"b", FO_F32, 1, {3, 0, 0, 0}, values[1]}};
    fo_array      turned[2];
    unsigned char bytes[1024];
    char          sum[20];
    fo_context   *fo = fo_open(NULL);
    fo_archive   *a;
    size_t        n, i, told = 0;
    turned[0] = arrays[1], turned[1] = arrays[0];
    CHECK(fo_archive_save(fo, temp("sum"), arrays, 2, NULL, 0) == FO_OK);
    n = get(temp("sum"), bytes, sizeof bytes);
    a = fo_archive_open(fo, temp("sum"));
    CHECK(a && strlen(fo_archive_note(a, "flowood.checksum")) == 16);
    snprintf(sum, sizeof sum, "%s", a ? fo_archive_note(a, "flowood.checksum") : "");
    CHECK(fo_archive_save(fo, temp("sum"), turned, 2, NULL, 0) == FO_OK);
    a = fo_archive_open(fo, temp("sum"));
    CHECK(a && strcmp(fo_archive_note(a, "flowood.checksum"), sum) == 0);
    for (i = 1; i <= 24; i++) {
        bytes[n - i] = (unsigned char)(bytes[n - i] ^ 1 << i % 8);
        fo_clear_error(fo);
        told += fo_archive_open(fo, put("sum", bytes, n)) == NULL &&
                strstr(fo_error(fo), "flowood.checksum") != NULL;
        bytes[n - i] = (unsigned char)(bytes[n - i] ^ 1 << i % 8);
    }
    CHECK(told == 24);
    fo_clear_error(fo);
    for (i = 8; i + 16 < n && memcmp(bytes + i, "flowood.checksum", 16) != 0;)
        i++;
    memcpy(bytes + i, "flowood.nochecks", 16);
    bytes[n - 1] = 0;
    CHECK(fo_archive_open(fo, put("sum", bytes, n)) != NULL);
    fo_close(fo);
}

/* What its first bytes give away is refused without a look at the rest. */
static void test_first_bytes(void) {
    static const char *const say[4] = {"neither IDX", "cut short", "more", "gzip"};
    const size_t   n     = 20000000;
    unsigned char *bytes = (unsigned char *)calloc(n, 1);
    int            kind;
    for (kind = 0; bytes && kind < 4; kind++) {
        fo_context *fo = fo_open(NULL);
        memset(bytes, 0, 128);
        if (kind == 1) /* ten times as much as there is: 1032 times may be true of gzip only */
            npy_of(bytes, "{'descr': '|u1', 'fortran_order': False, 'shape': (200000000,)}", 0);
        if (kind == 2)
            npy_of(bytes, "{'descr': '|u1', 'fortran_order': False, 'shape': (1000,)}", 0);
        if (kind == 3)
            memcpy(bytes, "\x1f\x8b\x08\0\0\0\0\0\0\x03\7", 11);
        CHECK(fo_load(fo, put("first", bytes, n)) == NULL && fo_failed(fo) == FO_ERR_FORMAT);
        CHECK(strstr(fo_error(fo), say[kind]) != NULL && fo_memory(fo).peak < 1000000);
        fo_clear_error(fo);
        CHECK(fo_archive_open(fo, temp("first")) == NULL && fo_failed(fo) == FO_ERR_FORMAT);
        CHECK(fo_memory(fo).peak < 1000000);
        fo_close(fo);
    }
    free(bytes);
}

/* A table that is packed better than samples ever are is not unpacked on its header's word. */
static void test_packed_claims(void) {
    const size_t   n    = 90000000;
    unsigned char *in   = (unsigned char *)calloc(n, 1), *out = (unsigned char *)malloc(n / 100);
    fo_context    *fo   = fo_open(NULL);
    size_t         packed;
    if (in && out) {
        memcpy(in, "\0\0\x08\x01", 4);
        fo__set_be32(in + 4, (uint32_t)(n - 8));
        packed = gzip_of(in, n, out, 1);
        CHECK(packed < n / 100 && fo_load(fo, put("first", out, packed)) == NULL);
        CHECK(strstr(fo_error(fo), "unpack it first") && fo_memory(fo).peak < 1000000);
    }
    fo_close(fo);
    free(in);
    free(out);
}

/* An archive of very many arrays and notes is read in less than quadratic time. */
static void test_archive_crowd(void) {
    const size_t  room  = 3000000;
    char         *bytes = (char *)malloc(room);
    fo_context   *fo    = fo_open(NULL);
    fo_archive   *a;
    const fo_array *last;
    uint64_t      length;
    size_t        at = 8;
    int           i, n = 20000;
    if (bytes) {
        at += (size_t)snprintf(bytes + at, room - at, "{\"__metadata__\":{");
        for (i = 0; i < n; i++)
            at += (size_t)snprintf(bytes + at, room - at, "%s\"k%d\":\"%d\"", i ? "," : "", i, i);
        for (i = 0; i < n; i++)
            at += (size_t)snprintf(bytes + at, room - at, "%s\"a%d\":{\"dtype\":\"U8\",\"shape\":"
                                   "[1],\"data_offsets\":[%d,%d]}", i ? "," : "},", n - i,
                                   n - 1 - i, n - i);
        at += (size_t)snprintf(bytes + at, room - at, "}");
        length = at - 8;
        memcpy(bytes, &length, 8);
        for (i = 0; i < n; i++)
            bytes[at++] = (char)(i % 100);
        a    = fo_archive_open_memory(fo, bytes, at);
        last = fo_archive_find(a, "a20000");
        CHECK(fo_archive_count(a) == n && strcmp(fo_archive_note(a, "k19999"), "19999") == 0);
        CHECK(last == fo_archive_at(a, 0) && last && *(const char *)last->values == 99);
    }
    fo_close(fo);
    free(bytes);
}

static int near(double a, double b) { return fabs(a - b) < 1e-14; }

/* FPR at 95 % of the in-distribution samples kept, by trying every threshold. */
static double plain_fpr95_in(const double *in, int n_in, const double *ood, int n_ood) {
    double best = HUGE_VAL, passed = 0;
    int    i, k, kept;
    for (i = 0; i < n_in; i++) {
        for (kept = k = 0; k < n_in; k++)
            kept += in[k] <= in[i];
        if (kept * 100 >= n_in * 95 && in[i] < best)
            best = in[i];
    }
    for (k = 0; k < n_ood; k++)
        passed += ood[k] <= best;
    return passed / n_ood;
}

/* Golden numbers from scikit-learn: roc_auc_score and average_precision_score. */
static void test_measure(void) {
    static const double in[8] = {5, 1, 3, 0, 1, 2, 3, 3}, ood[7] = {7, 3, 1, 3, 5, 4, 5};
    static const double same[3] = {2, 2, 2}, low[2] = {-HUGE_VAL, -0.0};
    static const double high[2] = {HUGE_VAL, 0.0};
    double              many[500];
    uint32_t            x = 12345;
    int                 i;
    fo_context         *fo = fo_open(NULL);
    fo_metrics          m;
    CHECK(fo_measure(fo, in, 8, ood, 7, &m) == FO_OK);
    CHECK(near(m.auroc, 0.7678571428571428) && near(m.aupr_in, 0.7464285714285713));
    CHECK(near(m.aupr_out, 0.7142857142857142) && near(m.fpr95, 7.0 / 8));
    CHECK(near(m.fpr95_in, 6.0 / 7) && near(m.fpr95_in, plain_fpr95_in(in, 8, ood, 7)));
    for (i = 0; i < 500; i++) {
        x       = (x * 1103515245u + 12345u) & 0x7fffffff;
        many[i] = (double)((x >> 16) % 40) - (i < 200 ? 6 : 0);
    }
    CHECK(fo_measure(fo, many, 200, many + 200, 300, &m) == FO_OK);
    CHECK(near(m.auroc, 0.60877499999999996) && near(m.aupr_in, 0.55799050102629999));
    CHECK(near(m.aupr_out, 0.7181626371010813) && near(m.fpr95, 0.825));
    CHECK(m.fpr95_in > 0 && near(m.fpr95_in, plain_fpr95_in(many, 200, many + 200, 300)));
    CHECK(fo_measure(fo, same, 3, same, 1, &m) == FO_OK);
    CHECK(m.auroc == 0.5 && m.aupr_in == 0.75 && m.aupr_out == 0.25 && m.fpr95 == 1);
    CHECK(fo_measure(fo, in, 1, ood, 1, &m) == FO_OK);
    CHECK(m.auroc == 1 && m.aupr_in == 1 && m.aupr_out == 1 && m.fpr95 == 0);
    CHECK(m.fpr95_in == 0);
    CHECK(fo_measure(fo, ood, 1, in, 1, &m) == FO_OK);
    CHECK(m.auroc == 0 && m.aupr_in == 0.5 && m.aupr_out == 0.5 && m.fpr95 == 1);
    CHECK(fo_measure(fo, low, 2, high, 2, &m) == FO_OK && m.auroc == 0.875); /* -0 equals 0 */
    many[203] = HUGE_VAL - HUGE_VAL;
    m.auroc   = 9;
    CHECK(fo_measure(fo, many, 200, many + 200, 300, &m) == FO_ERR_NUMERIC && m.auroc == 9);
    CHECK(strstr(fo_error(fo), "score 3 of the OOD") != NULL);
    fo_clear_error(fo);
    CHECK(fo_measure(fo, many + 200, 300, many, 200, &m) == FO_ERR_NUMERIC);
    CHECK(strstr(fo_error(fo), "score 3 of the in-") != NULL);
    CHECK(fo_measure(fo, in, 0, ood, 7, &m) == FO_ERR_ARGUMENT);
    CHECK(fo_measure(fo, in, 8, ood, -1, &m) == FO_ERR_ARGUMENT);
    CHECK(fo_measure(fo, NULL, 8, ood, 7, &m) == FO_ERR_ARGUMENT);
    CHECK(fo_measure(fo, in, 8, ood, 7, NULL) == FO_ERR_ARGUMENT);
    CHECK(fo_measure(NULL, in, 8, ood, 7, &m) == FO_ERR_ARGUMENT);
    fo_close(fo);
}

/* Parts are views: values, bounds, messages. */
static void test_parts(void) {
    static const double   rows[6] = {1, 2, 3, 4, 5, 6};
    static const fo_shape shape = {2, 1, 1};
    fo_context           *fo    = fo_open(NULL);
    fo_data              *data  = fo_data_view(fo, rows, FO_F64, 3, shape);
    fo_data              *part  = fo_data_part(data, 1, 2);
    fo_real               x[2]  = {0, 0};
    CHECK(fo_data_count(part) == 2 && fo_data_dtype(part) == FO_F64 && fo_data_shape(part).c == 2);
    CHECK(fo_data_get(part, 0, x) == FO_OK && x[0] == 3 && x[1] == 4);
    CHECK(fo_data_get(part, 1, x) == FO_OK && x[0] == 5 && x[1] == 6);
    fo_data_limit(part, 1);
    CHECK(fo_data_count(part) == 1 && fo_data_count(data) == 3 && fo_failed(fo) == FO_OK);
    CHECK(fo_data_part(NULL, 0, 1) == NULL && fo_failed(fo) == FO_OK);
    CHECK(fo_data_part(data, 0, 3) != NULL);
    CHECK(fo_data_part(data, -1, 1) == NULL && fo_data_part(data, 0, 0) == NULL);
    CHECK(fo_data_part(data, 0, 4) == NULL && fo_data_part(data, 3, 1) == NULL);
    CHECK(fo_data_part(data, INT64_MAX, INT64_MAX) == NULL);
    CHECK(strstr(fo_error(fo), "1 samples from -1 on, of 3") != NULL);
    fo_close(fo);
}

static void remove_files(void) {
    static const char *const name[] = {"bad", "u1", "f2", "f4", "f8", "good", "idx", "labels", "gz",
                                       "flip", "large", "bomb", "empty", "out", "png", "golden",
                                       "st", "odd", "job", "full", "two", "sum", "first"};
    size_t i;
    for (i = 0; i < sizeof name / sizeof name[0]; i++)
        remove(temp(name[i]));
}

/* A shuffle moves whole rows, the same way every time, and parts and messages know where from. */
static void test_shuffle(void) {
    fo_context   *fo = open_with(0, FO_SIMD_AUTO, 1);
    unsigned char pixels[300], seen[100] = {0};
    const char   *path = IS_DOUBLE ? "build/test_shuffle_d" : "build/test_shuffle_f";
    const int64_t dim[3] = {100, 1, 3};
    fo_data      *data, *again, *part;
    int           i, moved = 0;
    for (i = 0; i < 300; i++)
        pixels[i] = (unsigned char)(i / 3);
    CHECK(fo_save_idx(fo, path, 3, dim, pixels) == FO_OK);
    data  = fo_load(fo, path);
    again = fo_load(fo, path);
    CHECK(fo_data_shuffle(data, 3) == FO_OK && fo_data_shuffle(again, 3) == FO_OK);
    part = fo_data_part(data, 40, 60);
    for (i = 0; i < 100; i++) {
        const unsigned char *row = (const unsigned char *)fo_data_row(data, i);
        CHECK(row[0] == row[1] && row[1] == row[2] && row[0] == fo__origin(data, i));
        CHECK(memcmp(row, fo_data_row(again, i), 3) == 0);
        seen[row[0]]++;
        moved += row[0] != i;
        if (i >= 40)
            CHECK(fo__origin(part, i - 40) == row[0]);
    }
    for (i = 0; i < 100; i++)
        CHECK(seen[i] == 1);
    CHECK(moved > 80);
    CHECK(fo_data_shuffle(again, 4) == FO_OK); /* numbers stay those of the file */
    CHECK(fo__origin(again, 0) == ((const unsigned char *)fo_data_row(again, 0))[0]);
    REFUSED(fo_data_shuffle(part, 3), "belong to somebody else");
    fo_close(fo);
    remove(path);
}

int main(int argc, char **argv) {
    folder = argc > 1 ? argv[1] : ".";
    test_types();
    test_shuffle();
    test_npy();
    test_npy_headers();
    test_npy_cut();
    test_not_finite();
    test_idx();
    test_gzip();
    test_gzip_large();
    test_paths();
    test_view();
    test_save_arrays();
    test_png();
    test_archive_golden();
    test_archive_headers();
    test_archive_save();
    test_archive_aligned();
    test_no_memory();
    test_write_faults();
    test_two_writers();
    test_archive_memory();
    test_checksum();
    test_first_bytes();
    test_packed_claims();
    test_archive_crowd();
    test_measure();
    test_parts();
    remove_files();
    return test_end();
}
