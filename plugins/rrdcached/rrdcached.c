/*
 * rrdcached: the caching daemon of RRDtool, which gathers the updates of many round-robin databases in memory and writes
 * them in bulk. Debian package: rrdcached. Written with yagent/plugin.h alone:
 *
 *     cc -std=c99 -shared -fPIC -fvisibility=hidden -o libyagent_rrdcached.so rrdcached.c
 *
 * Its protocol is lines: a request, then "CODE MESSAGE"; a code above 0 says how many lines follow, below 0 that it is
 * an error.
 */
#include "yagent/plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STR(text) { text, sizeof(text) - 1 }

/* What start has to tell of one instance; built once, in create. */
typedef struct engine {
    char *program, *listen, *dir, *journal, *pidfile, *user, *args;
} engine;

static int is(yagent_str text, const char *name) {
    return text.len == strlen(name) && memcmp(text.ptr, name, text.len) == 0;
}

/* ---- settings ---------------------------------------------------------------------------------------------------- */

/* `a`, `b` and `c` in one string of our own; NULL without memory. */
static char *joined(const char *a, const char *b, const char *c) {
    size_t len = strlen(a) + strlen(b) + strlen(c) + 1;
    char *text = malloc(len);
    if (text != NULL) snprintf(text, len, "%s%s%s", a, b, c);
    return text;
}

/* The setting `name`, the last of its name, as a string of our own: empty where it is not set, NULL without memory or
   where it has a NUL in it, which no argument can carry. */
static char *setting(const yagent_settings *settings, const char *name) {
    yagent_str value = { "", 0 };
    uint64_t i;
    char *copy;
    for (i = 0; i < settings->pairs_len; i++) {
        if (is(settings->pairs[i].name, name)) value = settings->pairs[i].value;
    }
    copy = value.len < UINT64_C(1) << 20 ? calloc(1, value.len + 1) : NULL;
    if (copy != NULL && value.len > 0) memcpy(copy, value.ptr, value.len);
    if (copy != NULL && strlen(copy) != value.len) {
        free(copy);
        copy = NULL;
    }
    return copy;
}

static void destroy(void *instance) {
    engine *it = instance;
    free(it->program);
    free(it->listen);
    free(it->dir);
    free(it->journal);
    free(it->pidfile);
    free(it->user);
    free(it->args);
    free(it);
}

/* Why the arguments of the ini cannot be taken: what they would change is the host's; NULL where they can. */
static const char *objection(const char *args) {
    static const char blank[] = " \t";
    const char *word = args + strspn(args, blank);
    while (*word != '\0') {
        if (word[0] == '-' && word[1] != '\0' && strchr("glLpbjUG", word[1]) != NULL) {
            return "`rrdcached_args` has one of -g -l -L -p -b -j -U -G, which are set from other keys";
        }
        word += strcspn(word, blank);
        word += strspn(word, blank);
    }
    return NULL;
}

/* Fills `it` in; the reason on failure. */
static const char *fill(engine *it, const yagent_settings *settings) {
    char *bind = setting(settings, "bind"), *port = setting(settings, "port");
    char *state = setting(settings, "state_dir"), *base = setting(settings, "rrdcached_dir");
    const char *why = NULL;
    it->program = setting(settings, "program");
    it->user = setting(settings, "rrdcached_run_as");
    it->args = setting(settings, "rrdcached_args");
    if (bind == NULL || port == NULL || state == NULL || base == NULL || it->program == NULL || it->user == NULL ||
        it->args == NULL) {
        why = "a setting has a NUL in it or is too long";
    } else if (*port == '\0' || *it->program == '\0') {
        why = "`port` or `program` is not set";
    } else if (*base == '\0' && *state == '\0') {
        why = "neither `rrdcached_dir` nor `state_dir` is set";
    } else if ((why = objection(it->args)) == NULL) {
        /* Whoever can connect can write files below the folder: nobody from outside, unless that is asked for. */
        const char *address = *bind == '\0' ? "127.0.0.1" : bind;
        const int v6 = strchr(address, ':') != NULL;
        char *host = joined(v6 ? "[" : "", address, v6 ? "]:" : ":");
        char *root = *base == '\0' ? joined(state, "/rrdcached/", "") : joined(base, "/", "");
        if (host != NULL) it->listen = joined(host, port, "");
        if (root != NULL) it->dir = joined(root, port, "");
        if (it->dir != NULL) it->journal = joined(it->dir, "/journal", "");
        if (it->dir != NULL) it->pidfile = joined(it->dir, "/rrdcached.pid", "");
        if (it->listen == NULL || it->journal == NULL || it->pidfile == NULL) why = "out of memory";
        free(host);
        free(root);
    }
    free(bind);
    free(port);
    free(state);
    free(base);
    return why;
}

static void *create(const yagent_settings *settings, const yagent_sink *sink) {
    engine *it = calloc(1, sizeof *it);
    const char *why = it == NULL ? "out of memory" : fill(it, settings);
    if (why == NULL) return it;
    sink->fail(sink, why, strlen(why));
    if (it != NULL) destroy(it);
    return NULL;
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

static void tell(const yagent_sink *sink, const char *name, const char *value) {
    sink->text(sink, name, strlen(name), value, strlen(value));
}

static void tell_args(const yagent_sink *sink, const char *args) {
    static const char blank[] = " \t";
    const char *word = args + strspn(args, blank);
    while (*word != '\0') {
        size_t len = strcspn(word, blank);
        sink->text(sink, "argv", 4, word, len);
        word += len;
        word += strspn(word, blank);
    }
}

/* In the foreground, with a journal: what a killed server had in memory, the next one reads again, but for the last few
   kilobytes, which rrdcached itself still held back from the journal. */
static int32_t start(void *instance, const yagent_event *event, const yagent_sink *sink) {
    const engine *it = instance;
    if (event->kind != YAGENT_BEGIN) return YAGENT_UNSUPPORTED;
    tell(sink, "program", it->program);
    tell(sink, "argv", "-g");
    tell(sink, "argv", "-l");
    tell(sink, "argv", it->listen);
    tell(sink, "argv", "-p");
    tell(sink, "argv", it->pidfile);
    tell(sink, "argv", "-b");
    tell(sink, "argv", it->dir);
    tell(sink, "argv", "-B");
    tell(sink, "argv", "-j");
    tell(sink, "argv", it->journal);
    tell_args(sink, it->args);
    tell(sink, "dir", it->dir);
    tell(sink, "dir", it->journal);
    tell(sink, "cwd", it->dir);
    if (*it->user != '\0') tell(sink, "user", it->user);
    return YAGENT_DONE;
}

/* ---- conversations ----------------------------------------------------------------------------------------------- */

/* Every event that brings no answer. */
static int32_t refuse(const yagent_event *event, const yagent_sink *sink) {
    static const char why[] = "no answer";
    if (event->kind > YAGENT_CANCEL) return YAGENT_UNSUPPORTED;
    sink->fail(sink, why, sizeof why - 1);
    return YAGENT_ERROR;
}

/* Takes the next whole line off `rest`, without its end; 0 when there is none. */
static int next_line(yagent_str *rest, yagent_str *line) {
    const char *end = rest->len == 0 ? NULL : memchr(rest->ptr, '\n', rest->len);
    if (end == NULL) return 0;
    line->ptr = rest->ptr;
    line->len = (uint64_t)(end - rest->ptr);
    rest->ptr = end + 1;
    rest->len -= line->len + 1;
    return 1;
}

/* Takes a whole number off `text`; 0 when there is none, or one beyond 2^53. */
static int next_number(yagent_str *text, int64_t *value) {
    const int negative = text->len > 0 && text->ptr[0] == '-';
    uint64_t i = (uint64_t)negative;
    *value = 0;
    for (; i < text->len && text->ptr[i] >= '0' && text->ptr[i] <= '9'; i++) {
        *value = *value * 10 + (text->ptr[i] - '0');
        if (*value > INT64_C(1) << 53) return 0;
    }
    if (i == (uint64_t)negative) return 0;
    if (negative) *value = -*value;
    text->ptr += i;
    text->len -= i;
    return 1;
}

/* Reads the first line, "CODE MESSAGE". */
static int status(yagent_str line, int64_t *code) {
    return next_number(&line, code) && line.len > 0 && line.ptr[0] == ' ';
}

/* The updates of a database that is not there: it goes through the cache and its lock, and answers without a file. */
static int32_t probe(void *instance, const yagent_event *event, const yagent_sink *sink) {
    static const char request[] = "PENDING yagent.probe\n", wrong[] = "this is no rrdcached";
    yagent_str rest = { (const char *)event->bytes, event->bytes_len }, line;
    int64_t code;
    (void)instance;
    if (event->kind == YAGENT_BEGIN) {
        sink->send(sink, request, sizeof request - 1);
        return YAGENT_MORE;
    }
    if (event->kind != YAGENT_BYTES) return refuse(event, sink);
    if (!next_line(&rest, &line)) return YAGENT_MORE;
    if (!status(line, &code)) {
        sink->health(sink, YAGENT_WRONG, wrong, sizeof wrong - 1);
        return YAGENT_DONE;
    }
    for (; code > 0; code--) {
        if (!next_line(&rest, &line)) return YAGENT_MORE;
    }
    sink->health(sink, YAGENT_SERVING, "", 0);
    return YAGENT_DONE;
}

/* Its names, and ours where the host knows the figure. */
static const struct {
    const char *its, *ours;
    uint32_t kind;
} FIGURES[] = {
    { "UpdatesReceived", "sets", YAGENT_COUNTER },
    { "TreeNodesNumber", "keys", YAGENT_GAUGE },
    { "FlushesReceived", "flushes", YAGENT_COUNTER },
    { "UpdatesWritten", "updates_written", YAGENT_COUNTER },
    { "DataSetsWritten", "data_sets_written", YAGENT_COUNTER },
    { "JournalRotate", "journal_rotations", YAGENT_COUNTER },
    { "QueueLength", "queue_length", YAGENT_GAUGE },
    { "TreeDepth", "tree_depth", YAGENT_GAUGE },
    { "JournalBytes", "journal_bytes", YAGENT_GAUGE },
};

/* One line, "Name: value". Names of later versions are left out. */
static int figure(yagent_str line, const yagent_sink *sink) {
    const char *colon = line.len == 0 ? NULL : memchr(line.ptr, ':', line.len);
    yagent_str name = line;
    int64_t value;
    size_t i;
    if (colon == NULL) return 0;
    name.len = (uint64_t)(colon - line.ptr);
    line.ptr = colon + 1;
    line.len -= name.len + 1;
    while (line.len > 0 && line.ptr[0] == ' ') {
        line.ptr++;
        line.len--;
    }
    if (!next_number(&line, &value) || line.len != 0) return 0;
    for (i = 0; i < sizeof FIGURES / sizeof FIGURES[0]; i++) {
        if (is(name, FIGURES[i].its)) {
            sink->number(sink, FIGURES[i].kind, FIGURES[i].ours, strlen(FIGURES[i].ours), (double)value);
        }
    }
    return 1;
}

static int32_t stats(void *instance, const yagent_event *event, const yagent_sink *sink) {
    static const char why[] = "no statistics in its answer";
    yagent_str rest = { (const char *)event->bytes, event->bytes_len }, line, figures;
    int64_t code, i;
    (void)instance;
    if (event->kind == YAGENT_BEGIN) {
        sink->send(sink, "STATS\n", 6);
        return YAGENT_MORE;
    }
    if (event->kind != YAGENT_BYTES) return refuse(event, sink);
    if (!next_line(&rest, &line)) return YAGENT_MORE;
    if (!status(line, &code) || code < 0) {
        sink->fail(sink, why, sizeof why - 1);
        return YAGENT_ERROR;
    }
    /* First whether all is there, then what it says: so that an answer in pieces is told once. */
    for (figures = rest, i = 0; i < code; i++) {
        if (!next_line(&rest, &line)) return YAGENT_MORE;
    }
    for (i = 0; i < code && next_line(&figures, &line); i++) {
        if (!figure(line, sink)) {
            sink->fail(sink, why, sizeof why - 1);
            return YAGENT_ERROR;
        }
    }
    return YAGENT_DONE;
}

/* ---- who we are -------------------------------------------------------------------------------------------------- */

static const yagent_plugin plugin = {
    YAGENT_ABI_MAGIC,
    sizeof(yagent_plugin),
    YAGENT_ABI_MAJOR,
    YAGENT_ABI_MINOR,
    0,
    0,
    STR("rrdcached"),
    STR("0.1.0"),
    STR("RRDtool's caching daemon"),
    STR("rrdcached"),
    STR("rrdcached_"),
    STR("/rrdcached"),
    STR("rrdcached_args,rrdcached_dir,rrdcached_run_as"),
    STR(""),
    create,
    destroy,
    start,
    probe,
    stats,
    NULL,
    NULL
};

const yagent_plugin *yagent_plugin_v1(const yagent_host *host) {
    (void)host;
    return &plugin;
}
