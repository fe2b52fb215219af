/* The command line of the tool: reads it by one table of options, writes --help from the same
   table, and looks after file names. Nothing here knows about flows. */
#ifndef CLI_H
#define CLI_H
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 }; /* exit status */
enum { CLI_MANY = 16, CLI_WIDTH = 80, CLI_INDENT = 24 };

typedef enum cli_kind {
    CLI_INPUT,  /* a file that is read                             */
    CLI_OUTPUT, /* a file that is written: never one of the inputs */
    CLI_TEXT,
    CLI_CHOICE, /* one of the words of `value`, parted by |        */
    CLI_NUMBER,
    CLI_WHOLE,
    CLI_FLAG
} cli_kind;

/* What the command line said about one option. */
typedef struct cli_option {
    int         given; /* how often */
    const char *text;  /* the last of list, or NULL */
    const char *list[CLI_MANY];
    double      number;
} cli_option;

/* One option. Commands are words; a ! behind one says that it needs the option. */
typedef struct cli_row {
    const char *name;
    cli_kind    kind;
    size_t      at; /* of its cli_option in the program's struct */
    const char *commands;
    const char *value; /* its name in --help */
    int         times; /* how often it may be given */
    double      low, high;
    const char *about;
} cli_row;

typedef struct cli_command {
    const char *name, *about;
    int (*run)(void *options);
} cli_command;

typedef struct cli_program {
    const char        *name, *about, *notes;
    const cli_command *commands;
    int                n_commands;
    const cli_row     *rows;
    int                n_rows;
    const char        *bare; /* the option that a word without one stands for */
} cli_program;

/* ---- messages -------------------------------------------------------------------------------- */

static int cli_say(int status, const char *format, va_list args) {
    fputs("flowood: ", stderr);
    vfprintf(stderr, format, args);
    fputs(status == CLI_USAGE ? " (flowood --help shows the usage)\n" : "\n", stderr);
    return status;
}

/* Wrong usage: one line, status 2. */
static int cli_usage(const char *format, ...) {
    va_list args;
    int     status;
    va_start(args, format);
    status = cli_say(CLI_USAGE, format, args);
    va_end(args);
    return status;
}

/* A failure at run time: one line, status 1. */
static int cli_fail(const char *format, ...) {
    va_list args;
    int     status;
    va_start(args, format);
    status = cli_say(CLI_FAILED, format, args);
    va_end(args);
    return status;
}

/* The exit status of a run that printed: a full disk behind standard output is a failure. */
static int cli_end(int status) {
    if (fflush(stdout) != 0 || ferror(stdout))
        return cli_fail("standard output cannot be written");
    return status;
}

/* ---- did you mean ---------------------------------------------------------------------------- */

/* The candidate nearest to a word that is not known, if it is near enough to be a slip. */
typedef struct cli_guess {
    const char *word, *best;
    int         distance;
} cli_guess;

/* Letters to insert, delete, replace, or swap with the next one (optimal string alignment). */
static int cli_distance(const char *a, const char *b) {
    enum { LONGEST = 40 };
    int    d[LONGEST + 1][LONGEST + 1];
    size_t n = strlen(a), m = strlen(b), i, k;
    if (n > LONGEST || m > LONGEST)
        return LONGEST;
    for (i = 0; i <= n; i++)
        for (k = 0; k <= m; k++) {
            int best = i == 0 ? (int)k : (int)i;
            if (i > 0 && k > 0) {
                best = d[i - 1][k - 1] + (tolower((unsigned char)a[i - 1]) !=
                                          tolower((unsigned char)b[k - 1]));
                best = d[i - 1][k] + 1 < best ? d[i - 1][k] + 1 : best;
                best = d[i][k - 1] + 1 < best ? d[i][k - 1] + 1 : best;
            }
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] &&
                d[i - 2][k - 2] + 1 < best)
                best = d[i - 2][k - 2] + 1;
            d[i][k] = best;
        }
    return d[n][m];
}

static void cli_consider(cli_guess *guess, const char *candidate) {
    int distance = cli_distance(guess->word, candidate);
    int allowed  = 1 + (int)strlen(guess->word) / 4;
    if (distance <= allowed && (guess->best == NULL || distance < guess->distance)) {
        guess->best     = candidate;
        guess->distance = distance;
    }
}

/* "unknown WHAT WORD", with a suggestion where there is one. */
static int cli_unknown(const char *what, const cli_guess *guess) {
    if (guess->best)
        return cli_usage("unknown %s %s: did you mean %s?", what, guess->word, guess->best);
    return cli_usage("unknown %s %s", what, guess->word);
}

/* Is somebody looking? */
static int cli_is_terminal(FILE *file) {
#ifdef _WIN32
    return _isatty(_fileno(file));
#else
    return isatty(fileno(file));
#endif
}

/* ---- words in a list ------------------------------------------------------------------------- */

/* The next word of a list parted by `parts`: its beginning, and its length in *n; NULL: none. */
static const char *cli_word(const char *list, const char *parts, size_t *n) {
    list += strspn(list, parts);
    *n = strcspn(list, parts);
    return *n ? list : NULL;
}

/* 0: this command does not take the option, 1: it does, 2: it needs it. */
static int cli_takes(const cli_row *row, const char *command) {
    const char *word = row->commands;
    size_t      n, length = strlen(command);
    for (; (word = cli_word(word, " ", &n)) != NULL; word += n)
        if (n - (word[n - 1] == '!') == length && strncmp(word, command, length) == 0)
            return word[n - 1] == '!' ? 2 : 1;
    return 0;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int cli_choice(const cli_row *row, const char *value) {
    const char *word = row->value;
    size_t      n;
    for (; (word = cli_word(word, "|", &n)) != NULL; word += n)
        if (strlen(value) == n && strncmp(value, word, n) == 0)
            return CLI_OK;
    return cli_usage("%s %s: one of %s is needed", row->name, value, row->value);
}

static int cli_number(const cli_row *row, const char *value, double *number) {
    int   whole = row->kind == CLI_WHOLE;
    char *end;
    *number = strtod(value, &end);
    if (end == value || *end || !(*number >= row->low && *number <= row->high) ||
        (whole && *number != floor(*number)))
        return cli_usage("%s %s: a %snumber from %g to %.10g is needed", row->name, value,
                         whole ? "whole " : "", row->low, row->high);
    return CLI_OK;
}

static int cli_take(const cli_row *row, cli_option *option, const char *value) {
    int status = CLI_OK;
    if (option->given == row->times)
        return row->times == 1
                   ? cli_usage("%s is given twice", row->name)
                   : cli_usage("%s is given more than %d times", row->name, row->times);
    if (row->kind != CLI_FLAG && *value == 0)
        return cli_usage("%s: its value is empty", row->name);
    if (row->kind == CLI_CHOICE)
        status = cli_choice(row, value);
    if (row->kind == CLI_NUMBER || row->kind == CLI_WHOLE)
        status = cli_number(row, value, &option->number);
    option->text                  = value;
    option->list[option->given++] = value;
    return status;
}

/* Of two rows with this name, the one that the command takes. */
static const cli_row *cli_row_named(const cli_program *program, const char *command,
                                    const char *name) {
    const cli_row *row = NULL;
    int            i;
    for (i = 0; i < program->n_rows; i++)
        if (strcmp(program->rows[i].name, name) == 0 &&
            (row == NULL || cli_takes(&program->rows[i], command)))
            row = &program->rows[i];
    return row;
}

static cli_option *cli_option_of(void *options, const cli_row *row) {
    return (cli_option *)((char *)options + row->at);
}

/* Fills options from the words behind the command; then what is needed must be there. */
static int cli_parse(const cli_program *program, const char *command, int n, char **words,
                     void *options) {
    int i, k, status;
    for (i = 0; i < n; i++) {
        const cli_row *row  = cli_row_named(program, command, words[i]);
        cli_guess      guess = {words[i], NULL, 0};
        if (row == NULL && words[i][0] != '-') {
            row = cli_row_named(program, command, program->bare);
            if (!cli_takes(row, command))
                return cli_usage("%s: %s takes options only", words[i], command);
            i--; /* the word is the value */
        }
        for (k = 0; row == NULL && k < program->n_rows; k++)
            if (cli_takes(&program->rows[k], command))
                cli_consider(&guess, program->rows[k].name);
        if (row == NULL)
            return cli_unknown("option", &guess);
        if (!cli_takes(row, command))
            return cli_usage("%s is not an option of %s", row->name, command);
        if (row->kind != CLI_FLAG && i + 1 == n)
            return cli_usage("%s needs a value", row->name);
        status = cli_take(row, cli_option_of(options, row),
                          row->kind == CLI_FLAG ? "" : words[++i]);
        if (status != CLI_OK)
            return status;
    }
    for (k = 0; k < program->n_rows; k++)
        if (cli_takes(&program->rows[k], command) == 2 &&
            !cli_option_of(options, &program->rows[k])->given)
            return cli_usage("%s needs %s %s", command, program->rows[k].name,
                             program->rows[k].value);
    return CLI_OK;
}

/* ---- help ------------------------------------------------------------------------------------ */

/* Prints text from column `at` on, later lines from column `indent`; none is longer than 79. */
static void cli_wrap(const char *text, int at, int indent) {
    size_t n;
    for (; (text = cli_word(text, " ", &n)) != NULL; text += n) {
        if (at + (int)n + 1 >= CLI_WIDTH) {
            printf("\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            putchar(' ');
            at++;
        }
        printf("%.*s", (int)n, text);
        at += (int)n;
    }
    putchar('\n');
}

/* "flowood train --data FILE --out MODEL [options]" */
static void cli_synopsis(const cli_program *program, const cli_command *command) {
    int i, optional = 0;
    printf("  %s %s", program->name, command->name);
    for (i = 0; i < program->n_rows; i++) {
        int takes = cli_takes(&program->rows[i], command->name);
        if (takes == 2)
            printf(" %s %s", program->rows[i].name, program->rows[i].value);
        optional |= takes == 1;
    }
    printf("%s\n      ", optional ? " [options]" : "");
    cli_wrap(command->about, 6, 6);
}

static void cli_option_help(const cli_row *row, const char *command) {
    char   text[1024];
    int    at;
    size_t n = (size_t)snprintf(text, sizeof text, "%s", row->about), k;
    if (row->times > 1)
        n += (size_t)snprintf(text + n, sizeof text - n, "; up to %d times", row->times);
    if (command == NULL) {
        snprintf(text + n, sizeof text - n, " [%s]", row->commands);
        for (k = n; text[k]; k++) /* without the marks of what is needed */
            if (text[k] == '!')
                memmove(text + k, text + k + 1, strlen(text + k));
    }
    at = printf("  %s %s", row->name, row->value);
    if (at >= CLI_INDENT) {
        putchar('\n');
        at = 0;
    }
    printf("%*s", CLI_INDENT - at, "");
    cli_wrap(text, CLI_INDENT, CLI_INDENT);
}

/* Everything, or (command not NULL) one command. */
static int cli_help(const cli_program *program, const cli_command *command) {
    int i;
    if (command == NULL)
        printf("%s - %s\n\n", program->name, program->about);
    for (i = 0; i < program->n_commands; i++)
        if (command == NULL || command == &program->commands[i])
            cli_synopsis(program, &program->commands[i]);
    putchar('\n');
    for (i = 0; i < program->n_rows; i++)
        if (command == NULL || cli_takes(&program->rows[i], command->name))
            cli_option_help(&program->rows[i], command ? command->name : NULL);
    if (command == NULL)
        printf("\n%s", program->notes);
    return CLI_OK;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int cli_ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    for (; n >= m && m > 0; n--, m--)
        if (tolower((unsigned char)text[n - 1]) != tolower((unsigned char)end[m - 1]))
            return 0;
    return m == 0;
}

/* A name that ends like another kind of file would surprise whoever opens it. `what` is written in
   one of `endings`, a list; a name without a known ending is fine. */
static int cli_check_ending(const cli_option *option, const char *name, const char *what,
                            const char *endings) {
    static const char known[] = ".npy .npz .csv .tsv .txt .json .jsonl .png .jpg .jpeg .gif .bmp "
                                ".pdf .gz .zip .safetensors .pt .pth .onnx .h5";
    const char *word = known, *own;
    size_t      n, m;
    char        end[16], list[64] = "";
    for (; option->given && (word = cli_word(word, " ", &n)) != NULL; word += n) {
        snprintf(end, sizeof end, "%.*s", (int)n, word);
        if (!cli_ends_with(option->text, end))
            continue;
        for (own = endings; (own = cli_word(own, " ", &m)) != NULL; own += m) {
            if (m == n && strncmp(own, word, n) == 0)
                return CLI_OK;
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%.*s", *list ? " or " : "",
                     (int)m, own);
        }
        return cli_usage("%s %s: %s cannot be written as %s: let the name end in %s", name,
                         option->text, what, end, list);
    }
    return CLI_OK;
}

/* 1: both names are of one file, however they are spelled. */
static int cli_same_file(const char *a, const char *b) {
#ifndef _WIN32 /* there files have no number */
    struct stat x, y;
    if (stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino)
        return 1;
#endif
    return strcmp(a, b) == 0;
}

/* Pipes would wait for ever, folders have no bytes. */
static int cli_check_input(const cli_row *row, const char *path) {
    struct stat s;
    if (stat(path, &s) == 0 && !S_ISREG(s.st_mode))
        return cli_fail("%s %s: it is a folder, a pipe or a device: only files are read", row->name,
                        path);
    return CLI_OK;
}

/* Makes a file that was not there, PATH.N.part; its name is for the caller to free. */
static FILE *cli_new_file(const char *path, char **name) {
#ifdef _WIN32
    static const char mode[] = "wb";
#else
    static const char mode[] = "wbx"; /* fails where the file exists */
#endif
    size_t size = strlen(path) + 16;
    FILE  *file = NULL;
    int    n;
    *name = (char *)malloc(size);
    for (n = 0; n < 100 && *name && file == NULL; n++) {
        snprintf(*name, size, "%s.%d.part", path, n);
        file = fopen(*name, "rb");
        if (file) {
            fclose(file);
            file = NULL;
        } else {
            file = fopen(*name, mode);
        }
    }
    return file;
}

/* Can a file be made beside this one? Nothing that is there is touched. */
static int cli_check_output(const cli_row *row, const char *path) {
    struct stat s;
    char       *name;
    FILE       *file;
    if (stat(path, &s) == 0 && !S_ISREG(s.st_mode))
        return cli_fail("%s %s: it is a folder, a pipe or a device: name a file", row->name, path);
    file = cli_new_file(path, &name);
    if (file) {
        fclose(file);
        remove(name);
    }
    free(name);
    return file ? CLI_OK : cli_fail("%s %s: no file can be written there: check the folder",
                                    row->name, path);
}

/* Outputs differ from every input and from each other; `may`, an input, may be replaced. */
static int cli_check_files(const cli_program *program, void *options, const char *may) {
    const cli_row *rows = program->rows;
    int            i, k, j, status = CLI_OK;
    for (i = 0; i < program->n_rows; i++) {
        cli_option *out = cli_option_of(options, &rows[i]);
        for (j = 0; j < out->given && rows[i].kind == CLI_INPUT && status == CLI_OK; j++)
            status = cli_check_input(&rows[i], out->list[j]);
        if (rows[i].kind != CLI_OUTPUT || !out->given)
            continue;
        for (k = 0; k < program->n_rows; k++) {
            cli_option *other = cli_option_of(options, &rows[k]);
            if (k == i || rows[k].kind > CLI_OUTPUT ||
                (strcmp(rows[k].name, may) == 0 && strcmp(rows[i].name, "--out") == 0))
                continue;
            for (j = 0; j < other->given; j++)
                if (cli_same_file(out->text, other->list[j]))
                    return cli_usage("%s %s is also %s: it would be overwritten; name another file",
                                     rows[i].name, out->text, rows[k].name);
        }
    }
    for (i = 0; i < program->n_rows && status == CLI_OK; i++)
        if (rows[i].kind == CLI_OUTPUT && cli_option_of(options, &rows[i])->given)
            status = cli_check_output(&rows[i], cli_option_of(options, &rows[i])->text);
    return status;
}

/* A text file that appears under its name when all of it is written. */
typedef struct cli_text_file {
    const char *path;
    char       *part;
    FILE       *file;
} cli_text_file;

static FILE *cli_text_open(cli_text_file *t, const char *path) {
    t->path = path;
    t->file = cli_new_file(path, &t->part);
    return t->file;
}

static int cli_text_close(cli_text_file *t) {
    int good = t->file != NULL;
    if (good) {
        good = !ferror(t->file);
        good = fclose(t->file) == 0 && good;
#ifdef _WIN32 /* where rename does not replace */
        if (good)
            remove(t->path);
#endif
        good = good && rename(t->part, t->path) == 0;
        if (!good)
            remove(t->part);
    }
    free(t->part);
    return good ? CLI_OK : cli_fail("%s: could not be written: check the folder and the free space",
                                    t->path);
}

#endif /* CLI_H */
