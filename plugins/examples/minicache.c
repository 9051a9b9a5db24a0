/*
 * An engine in C, with yagent/plugin.h and a compiler alone. The server is server.py beside this file.
 *
 *     cc -std=c99 -shared -fPIC -fvisibility=hidden -o libyagent_minicache.so minicache.c
 */
#include "yagent/plugin.h"

#include <stdlib.h>
#include <string.h>

#define STR(text) { text, sizeof(text) - 1 }

/* What one instance needs to know: copies, because the settings are lent for the time of create alone. */
typedef struct engine {
    char *program, *port, *bind, *megabytes;
} engine;

static int is(yagent_str text, const char *name) {
    return text.len == strlen(name) && memcmp(text.ptr, name, text.len) == 0;
}

/* ---- one object for each instance -------------------------------------------------------------------------------- */

/* The setting `name` as a string of our own; the last one of its name counts. NULL where there is none. */
static char *setting(const yagent_settings *settings, const char *name) {
    uint64_t i;
    for (i = settings->pairs_len; i-- > 0;) {
        const yagent_pair *pair = &settings->pairs[i];
        if (is(pair->name, name) && pair->value.len > 0) {
            char *copy = calloc(1, pair->value.len + 1);
            return copy == NULL ? NULL : memcpy(copy, pair->value.ptr, pair->value.len);
        }
    }
    return NULL;
}

static void destroy(void *instance) {
    engine *it = instance;
    free(it->program);
    free(it->port);
    free(it->bind);
    free(it->megabytes);
    free(it);
}

static void *create(const yagent_settings *settings, const yagent_sink *sink) {
    static const char why[] = "`program`, `port` or `maxmem_mb` is not set";
    engine *it = calloc(1, sizeof *it);
    if (it == NULL) return NULL;
    it->program = setting(settings, "program");
    it->port = setting(settings, "port");
    it->bind = setting(settings, "bind");
    it->megabytes = setting(settings, "maxmem_mb");
    if (it->program != NULL && it->port != NULL && it->megabytes != NULL) return it;
    sink->fail(sink, why, sizeof why - 1);
    destroy(it);
    return NULL;
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

static void tell(const yagent_sink *sink, const char *name, const char *value) {
    sink->text(sink, name, strlen(name), value, strlen(value));
}

static int32_t start(void *instance, const yagent_event *event, const yagent_sink *sink) {
    const engine *it = instance;
    if (event->kind != YAGENT_BEGIN) return YAGENT_UNSUPPORTED;
    tell(sink, "program", it->program);
    tell(sink, "argv", "--port");
    tell(sink, "argv", it->port);
    tell(sink, "argv", "--megabytes");
    tell(sink, "argv", it->megabytes);
    if (it->bind != NULL) {
        tell(sink, "argv", "--bind");
        tell(sink, "argv", it->bind);
    }
    return YAGENT_DONE;
}

/* ---- conversations ----------------------------------------------------------------------------------------------- */

/* Every way to end that is no answer. */
static int32_t refuse(const yagent_event *event, const yagent_sink *sink, const char *why) {
    if (event->kind > YAGENT_CANCEL) return YAGENT_UNSUPPORTED;
    sink->fail(sink, why, strlen(why));
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

static int begins(yagent_str text, const char *word) {
    return text.len >= strlen(word) && memcmp(text.ptr, word, strlen(word)) == 0;
}

static int32_t probe(void *instance, const yagent_event *event, const yagent_sink *sink) {
    yagent_str rest = { (const char *)event->bytes, event->bytes_len }, line;
    (void)instance;
    if (event->kind == YAGENT_BEGIN) {
        sink->send(sink, "get yagent:probe\n", 17);
        return YAGENT_MORE;
    }
    if (event->kind != YAGENT_BYTES) return refuse(event, sink, "no answer");
    if (!next_line(&rest, &line)) return YAGENT_MORE;
    if (is(line, "none") || begins(line, "value ")) sink->health(sink, YAGENT_SERVING, "", 0);
    else if (is(line, "full")) sink->health(sink, YAGENT_FULL, "out of memory", 13);
    else sink->health(sink, YAGENT_WRONG, "this is no minicache", 20);
    return YAGENT_DONE;
}

/* A whole number; 0 for anything else. */
static int number(yagent_str text, double *value) {
    uint64_t i;
    *value = 0;
    for (i = 0; i < text.len && text.ptr[i] >= '0' && text.ptr[i] <= '9'; i++) {
        *value = *value * 10 + (text.ptr[i] - '0');
    }
    return text.len > 0 && i == text.len && i < 20;
}

/* One line of the statistics: NAME VALUE. */
static int figure(yagent_str line, const yagent_sink *sink) {
    const char *space = line.len == 0 ? NULL : memchr(line.ptr, ' ', line.len);
    yagent_str name = line, text;
    double value;
    uint32_t kind;
    if (space == NULL) return 0;
    name.len = (uint64_t)(space - line.ptr);
    text.ptr = space + 1;
    text.len = line.len - name.len - 1;
    if (is(name, "version")) {
        sink->text(sink, "version", 7, text.ptr, text.len);
        return 1;
    }
    if (!number(text, &value)) return 0;
    kind = is(name, "gets") || is(name, "hits") || is(name, "sets") ? YAGENT_COUNTER : YAGENT_GAUGE;
    sink->number(sink, kind, name.ptr, name.len, value);
    return 1;
}

/* The answer is read when its last line is there, so that each step sees all of it and keeps nothing. */
static int32_t stats(void *instance, const yagent_event *event, const yagent_sink *sink) {
    yagent_str all = { (const char *)event->bytes, event->bytes_len }, rest = all, line = { NULL, 0 };
    (void)instance;
    if (event->kind == YAGENT_BEGIN) {
        sink->send(sink, "stats\n", 6);
        return YAGENT_MORE;
    }
    if (event->kind != YAGENT_BYTES) return refuse(event, sink, "no answer");
    do {
        if (!next_line(&rest, &line)) return YAGENT_MORE;
    } while (!is(line, "end"));
    for (rest = all; next_line(&rest, &line) && !is(line, "end");) {
        if (!figure(line, sink)) return refuse(event, sink, "a line is no NAME VALUE");
    }
    return YAGENT_DONE;
}

/* ---- who we are -------------------------------------------------------------------------------------------------- */

static const yagent_plugin plugin = {
    YAGENT_ABI_MAGIC,
    sizeof(yagent_plugin),
    YAGENT_ABI_MAJOR,
    YAGENT_ABI_MINOR,
    0, /* any host of this major version will do */
    0,
    STR("org.example.minicache"),
    STR("0.1.0"),
    STR("minicache"),
    STR("minicache"),  /* the section, and the NAME in libyagent_NAME.so */
    STR("minicache_"), /* what its keys begin with */
    STR("/minicache"),
    STR(""),
    STR(""),
    create,
    destroy,
    start,
    probe,
    stats,
    NULL, /* no replication */
    NULL  /* no extensions */
};

const yagent_plugin *yagent_plugin_v1(const yagent_host *host) {
    (void)host;
    return &plugin;
}
