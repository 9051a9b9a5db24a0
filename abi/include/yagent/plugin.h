/*
 * yagent/plugin.h - the contract between yagent and an engine's plugin, version 1.0.
 *
 * yagent runs cache servers ("instances"): it starts them, asks them whether they are well, counts what they do, and
 * makes replicas masters. What it does not know is how a server is started and how it is spoken to. A plugin tells it.
 * With this file and a C compiler you can write one:
 *
 *     cc -std=c99 -shared -fPIC -fvisibility=hidden -o libyagent_NAME.so name.c
 *
 * where NAME is the ini section that configures the engine; `load=NAME` in the ini's section [plugins] asks for it, and
 * `dir=` there names its directory. File and directory must belong to root or to the agent's user and be writable by
 * nobody else. It is loaded once and never unloaded. `yagent plugin check FILE` finds out whether it keeps the rules
 * below, `yagent plugin try FILE --port PORT` lets it speak to a live server.
 *
 * HOW IT WORKS. A plugin exports one function, yagent_plugin_v1, that returns a description: who it is, and its hooks.
 * A hook opens no socket, reads no file, and never waits. The host (yagent) owns the connection and the clock: it calls
 * the hook with an *event*, the hook answers through a *sink*, and returns whether it waits for more. That is one step
 * of a *conversation*:
 *
 *     host                                                     plugin
 *     probe(instance, BEGIN, sink)                   ->        sink->send("get probe\r\n"); return YAGENT_MORE;
 *       ... the host writes, waits, reads "EN" ...
 *     probe(instance, BYTES "EN", sink)              ->        (not a whole line) return YAGENT_MORE;
 *     probe(instance, BYTES "END\r\n", sink)         ->        sink->health(SERVING); return YAGENT_DONE;
 *
 * BYTES holds everything received since the hook last sent, so a plugin need not keep a buffer: look whether the reply
 * is complete and return YAGENT_MORE if it isn't. A step that sends starts with an empty buffer, therefore send only
 * when you have read all that you were waiting for.
 *
 * RULES
 *   Time      A hook computes. It must not sleep, wait, fork, lock, open, read or write. A step above 1 ms is logged; one
 *             that holds the agent up for seconds makes it abort and leaves the plugin's name behind.
 *   Threads   One call runs at a time in the whole process, never one inside another: a plugin needs no locks. All of
 *             them come from one thread, but for yagent_plugin_v1, which may be called from another. The functions of
 *             the sink work on that thread and inside the call that they were given to; elsewhere they do nothing. log
 *             may be called from any thread at any time.
 *   Memory    What one side hands to the other is borrowed until the call returns, and copied by who needs it longer.
 *             Nothing is allocated on one side and freed on the other. The description, its strings and the host table
 *             live as long as the process.
 *   Strings   Pointer and length, not terminated, UTF-8 unless it says "bytes". Length 0 is empty; then the pointer
 *             is not looked at and may be NULL.
 *   Unwinding No exception, longjmp or panic may leave a function of the plugin; the host's never do.
 *   Growth    Structs grow at their end only, nothing is ever reordered, retyped or reused, and a function never gains
 *             a parameter. Each struct begins with its size as its maker knew it: look at a member that is not in 1.0
 *             only if size covers it (YAGENT_HAS). Answer an event kind that you do not know with YAGENT_UNSUPPORTED.
 *             Ignore unknown arguments, settings and flags.
 *   Platforms 64-bit with 64-bit pointers (LP64).
 */
#ifndef YAGENT_PLUGIN_H
#define YAGENT_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version that this file describes. A plugin is loaded if the major is the host's own. */
#define YAGENT_ABI_MAJOR 1
#define YAGENT_ABI_MINOR 0

/* yagent_plugin.magic: "YAGENT" and 01 0A, read as a big-endian number. */
#define YAGENT_ABI_MAGIC UINT64_C(0x594147454E54010A)

/* Whether the struct at `object`, of `type`, reaches to the end of `member` by its own size. */
#define YAGENT_HAS(object, type, member) ((object)->size >= offsetof(type, member) + sizeof((object)->member))

/* A string: `len` bytes from `ptr` on. */
typedef struct yagent_str {
    const char *ptr;
    uint64_t len;
} yagent_str;

/* A name with its value. The value is bytes: what an ini file or an operator wrote, UTF-8 or not. */
typedef struct yagent_pair {
    yagent_str name;
    yagent_str value;
} yagent_pair;

/* ---- what the host offers ---------------------------------------------------------------------------------------- */

/* yagent_host.log: how important a line is. */
#define YAGENT_LOG_ERROR 1
#define YAGENT_LOG_WARN 2
#define YAGENT_LOG_INFO 3
#define YAGENT_LOG_DEBUG 4

/* The host, as one plugin sees it. Given to yagent_plugin_v1; valid as long as the process. Pass the pointer back. */
typedef struct yagent_host yagent_host;
struct yagent_host {
    uint64_t size;  /* of this struct, as the host knows it; 40 in version 1.0 */
    uint32_t major; /* the host's version of this contract */
    uint32_t minor;
    void *context; /* the host's own */
    /* Writes a line of text to the host's log under the plugin's name. May be cut or dropped; never blocks. */
    void (*log)(const yagent_host *host, uint32_t level, const char *text, uint64_t len);
    /* What the host offers beyond this file, by a name such as "name/1"; NULL for what it does not know. */
    const void *(*extension)(const yagent_host *host, const char *name, uint64_t len);
};

/* ---- events ------------------------------------------------------------------------------------------------------ */

/* yagent_event.kind */
#define YAGENT_BEGIN 1   /* A conversation begins; args are set. Forget what was left of an earlier one. */
#define YAGENT_BYTES 2   /* bytes: all received since the hook last sent in this conversation, at least one byte. */
#define YAGENT_CLOSED 3  /* The server closed. bytes as above, perhaps none. Return DONE if they are a whole answer. */
#define YAGENT_TIMEOUT 4 /* The deadline passed; the conversation is over, whatever you return. */
#define YAGENT_CANCEL 5  /* The host ends the conversation, whatever you return. */

/* yagent_event.flags */
#define YAGENT_FRESH 1 /* With BEGIN: nothing was said on this connection before, by any hook. Log in now. */

/*
 * After DONE the connection may be kept: the next conversation on it, perhaps of another hook, begins without
 * YAGENT_FRESH. After anything else the host closes it. One conversation runs at a time for an instance.
 */
typedef struct yagent_event {
    uint64_t size;           /* of this struct, as the host knows it; 64 in version 1.0 */
    uint32_t kind;           /* YAGENT_BEGIN ... */
    uint32_t flags;          /* YAGENT_FRESH or 0; ignore other bits */
    uint64_t now_ns;         /* nanoseconds of a clock that never goes back; its zero is the host's affair */
    uint64_t deadline_ns;    /* when the host gives the conversation up, on the same clock; 0: never */
    const uint8_t *bytes;    /* see kind */
    uint64_t bytes_len;      /* the host gives up on a server that sends more than 1 MiB for one send */
    const yagent_pair *args; /* with BEGIN: arguments of the hook, see there */
    uint64_t args_len;
} yagent_event;

/* ---- the sink: how a hook answers -------------------------------------------------------------------------------- */

/* yagent_sink.health: what a probe found. The first code says that the instance works, the last that it isn't one. */
#define YAGENT_SERVING 1 /* It answers. A miss is an answer. */
#define YAGENT_LOADING 2 /* It is alive and reads its data; it will answer later. */
#define YAGENT_BUSY 3    /* It is alive and does something long, for which others wait. */
#define YAGENT_FULL 4    /* It is alive and out of memory or connections. */
#define YAGENT_REFUSED 5 /* It is alive and refuses our credentials, or lacks those that we should have. */
#define YAGENT_WRONG 6   /* What answers does not speak the engine's protocol. */

/* yagent_sink.number: what kind of figure it is. */
#define YAGENT_COUNTER 1 /* Counts events since the server's start; going backwards means that it restarted. */
#define YAGENT_GAUGE 2   /* A state, up and down. */

/*
 * Valid inside the call that it was given to. All text is copied before the function returns. What is beyond a limit
 * of the host is not taken, and turns the step into an error: in one conversation 1 MiB to send, 512 numbers, 512
 * texts, 128 bytes for a name, 64 KiB for a text, 4 KiB for a reason.
 */
typedef struct yagent_sink yagent_sink;
struct yagent_sink {
    uint64_t size; /* of this struct, as the host knows it; 56 in version 1.0 */
    void *context; /* the host's own */
    /* Bytes for the server. Several sends in one step are written as one. */
    void (*send)(const yagent_sink *sink, const void *bytes, uint64_t len);
    /* probe: YAGENT_SERVING ..., with a reason where it isn't plainly serving; the last one counts. */
    void (*health)(const yagent_sink *sink, uint32_t code, const char *why, uint64_t why_len);
    /* A figure: YAGENT_COUNTER or YAGENT_GAUGE, a name, a finite value. Whole numbers are exact up to 2^53. */
    void (*number)(const yagent_sink *sink, uint32_t kind, const char *name, uint64_t name_len, double value);
    /* A text: a name and a value; the value is UTF-8, for start's `argv` bytes without NUL. */
    void (*text)(const yagent_sink *sink, const char *name, uint64_t name_len, const char *value, uint64_t value_len);
    /* The reason of a YAGENT_ERROR or YAGENT_BROKEN, or of a create that returns NULL; the last one counts. */
    void (*fail)(const yagent_sink *sink, const char *why, uint64_t why_len);
};

/* ---- hooks ------------------------------------------------------------------------------------------------------- */

/* What a step returns. Anything else is taken for YAGENT_BROKEN. */
#define YAGENT_DONE 0         /* The conversation is over, its answers are complete. */
#define YAGENT_MORE 1         /* The hook waits for bytes. */
#define YAGENT_ERROR (-1)     /* It is over without a result; say why with fail. The server is at fault, or the net. */
#define YAGENT_UNSUPPORTED (-2) /* The event kind, or the whole hook, is not known to the plugin or its server. */
#define YAGENT_BROKEN (-3)    /* The plugin is at fault and no longer to be trusted; the host calls it no more. */

/*
 * One step. `instance` is what create returned.
 *
 * start   How the server is started. One BEGIN without args or connection; answers DONE or ERROR. Texts:
 *           program     the program's path. Required, once
 *           argv        one argument, in order, without the program. Bytes. Any number
 *           env         NAME=VALUE, added to the server's environment. Any number
 *           cwd         its working directory; without: /
 *           user        the user whom the host becomes before it starts the program
 *           drops_to    the user whom the program becomes by itself; the host checks that it can
 *           dir         a directory that must exist; the host makes it (0750, of `user`). Any number
 *           connect     the address at which the server answers, where that is neither `bind` nor loopback
 *         Numbers, gauges:
 *           open_files  how many open files the server needs
 *         The program must stay in the foreground, listen on the setting `port`, and write no file that another
 *         instance writes.
 *
 * probe   Whether the instance works: ask for something cheap that passes through the server's real work, such as a
 *         key. Answers with health, and with fail and ERROR only where there was no answer to judge. The host repeats
 *         a probe that ran into its deadline, or was closed without DONE, and kills and restarts the server after
 *         several in a row. It never does so for a health of any kind, nor for an ERROR that follows BYTES; those are
 *         told to the operator. Arguments:
 *           unstick=1   the instance is BUSY: end what keeps it so, if that loses no data, then probe
 *
 * stats   Counters and gauges. Any name may be told; the host understands, as counters:
 *           gets  hits  sets  deletes  evictions  expirations      events since the server's start
 *         as gauges:
 *           keys  connections                                      how many there are
 *           bytes  limit_bytes                                     memory that data takes, and may take
 *           uptime_s                                               seconds since the server's start
 *         and the text `version`, the server's. Leave out what the server does not tell; UNSUPPORTED where it tells
 *         nothing at all.
 */
typedef int32_t (*yagent_hook)(void *instance, const yagent_event *event, const yagent_sink *sink);

/*
 * For engines with replication. Each is a conversation; every pointer is required.
 *
 * inspect  What part the instance plays. Texts:
 *            role            master or replica
 *            master          host:port of its master, for a replica
 *            link            up or down: the replica's connection to its master
 *            syncing         yes while it takes a whole copy of its master
 *            loading         yes while it reads its data
 *            run_id          changes with each start of the server
 *            replication_id  the history of the data, shared by a master and its replicas; `replication_id2` the one
 *                            before it, valid up to the number `offset2`
 *            replica         for a master, each replica: host:port STATE OFFSET LAG, LAG in seconds
 *            version         the server's
 *          Numbers, gauges:
 *            offset          how far in that history the data is
 *            keys            how many keys it has
 *            priority        lower is preferred for promotion, 0 is never promoted
 *            replicas        for a master, how many are connected
 *            link_down_s     seconds since the link went down
 *            last_io_s       seconds since the master was last heard
 * promote  Make it a master; DONE when it says that it is one.
 *            fence_ms=N      before that, stop writes for N milliseconds, as `fence` does: `unfence` comes when clients
 *                            are to write to it. Where the server cannot stop them, it becomes a master all the same
 * follow   Make it a replica of the arguments `host` and `port`; DONE when it took the order.
 *            drop_clients=1  close the connections of its clients, so that they look for the new master
 * fence    Stop writes for the argument `ms` milliseconds; UNSUPPORTED where the server cannot.
 * unfence  Allow writes again, whether or not they were stopped; UNSUPPORTED where the server cannot.
 *            min_replicas=N  take writes only while at least N replicas keep up, 0: always. It must hold before the
 *                            first write passes. DONE where the server took it, even if it cannot stop writes
 */
typedef struct yagent_failover {
    uint64_t size; /* sizeof(yagent_failover); 48 in version 1.0 */
    yagent_hook inspect;
    yagent_hook promote;
    yagent_hook follow;
    yagent_hook fence;
    yagent_hook unfence;
} yagent_failover;

/* ---- the plugin -------------------------------------------------------------------------------------------------- */

/*
 * One instance's settings: every key of the engine's section, the name in lower case and with its prefix ("mc_args"),
 * the value in bytes as the file has it, and from the host, which come last and win over keys of the same name:
 *   index        the instance's number among those of its engine, from 0
 *   host         the host's address as others know it
 *   port         the port that the instance listens on
 *   program      the server's program
 *   maxmem_mb    memory that it may use for data, in units of 1,048,576 bytes
 *   bind         the address to listen on; missing or empty where the server's own default holds
 *   state_dir    the agent's directory for state; an instance's files belong below it unless configured otherwise
 *   replicaof    "HOST PORT": the instance replicates with others and is to start as this one's replica, never as a
 *                master; missing where each is alone
 *   NAME.content for each NAME in file_keys that is set: the text of that file
 * With the engine's prefix, the host itself understands enabled, fpath, maxmem, meta_size, count, port, port_step,
 * port_file, bind, zoo_root, server_path and instance_path, and passes them on like any other; `args`, if the plugin
 * takes it, is what an operator wants on the server's command line.
 */
typedef struct yagent_settings {
    uint64_t size; /* of this struct, as the host knows it; 24 in version 1.0 */
    const yagent_pair *pairs;
    uint64_t pairs_len;
} yagent_settings;

typedef struct yagent_plugin {
    uint64_t magic;            /* YAGENT_ABI_MAGIC */
    uint64_t size;             /* sizeof(yagent_plugin); 216 in version 1.0 */
    uint32_t major;            /* YAGENT_ABI_MAJOR */
    uint32_t minor;            /* YAGENT_ABI_MINOR */
    uint32_t least_host_minor; /* the least minor of a host with which the plugin works; 0 unless you know better */
    uint32_t flags;            /* 0 */
    yagent_str id;             /* "memcached", "org.example.engine": lower case letters, digits, ". _ -" */
    yagent_str version;        /* the plugin's own */
    yagent_str summary;        /* one line for people */
    yagent_str section;        /* the ini section, and the NAME in libyagent_NAME.so: letters, digits, "_ -" */
    yagent_str key_prefix;     /* what the section's keys begin with: "mc_" */
    yagent_str registry_root;  /* the default root in ZooKeeper: "/ycache" */
    yagent_str keys;           /* the keys that only the plugin understands, comma separated, with prefix: "mc_args" */
    yagent_str file_keys;      /* those of them that name a file whose text the plugin needs (see yagent_settings);
                                  the host replaces a line "include PATH" in it by that file's text */
    /* Makes the plugin's object for one instance; NULL on failure, with a reason through fail. Never NULL otherwise. */
    void *(*create)(const yagent_settings *settings, const yagent_sink *sink);
    /* Ends it. Called once for each create that did not return NULL; not after YAGENT_BROKEN. */
    void (*destroy)(void *instance);
    yagent_hook start;
    yagent_hook probe;
    yagent_hook stats;
    const yagent_failover *failover; /* NULL: the engine has no replication */
    /* What the plugin offers beyond this file, by a name such as "name/1"; returns NULL for what it does not know.
       May itself be NULL. */
    const void *(*extension)(const char *name, uint64_t len);
} yagent_plugin;

#if defined(__GNUC__)
#define YAGENT_EXPORT __attribute__((visibility("default")))
#else
#define YAGENT_EXPORT
#endif

/*
 * The one exported function. Called before anything else, perhaps more than once, always with the same host; returns
 * the same description each time. It does nothing but that and, if it wants to log, remember `host`.
 */
YAGENT_EXPORT const yagent_plugin *yagent_plugin_v1(const yagent_host *host);

/* ---- the layout, checked by your compiler ------------------------------------------------------------------------ */

#if defined(__cplusplus)
#define YAGENT_LAYOUT(name, condition) static_assert(condition, #name)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define YAGENT_LAYOUT(name, condition) _Static_assert(condition, #name)
#else
#define YAGENT_LAYOUT(name, condition) typedef char yagent_layout_##name[(condition) ? 1 : -1]
#endif

YAGENT_LAYOUT(pointer, sizeof(void *) == 8 && sizeof(void (*)(void)) == 8 && sizeof(double) == 8);
YAGENT_LAYOUT(str, sizeof(yagent_str) == 16 && offsetof(yagent_str, len) == 8);
YAGENT_LAYOUT(pair, sizeof(yagent_pair) == 32 && offsetof(yagent_pair, value) == 16);
YAGENT_LAYOUT(host, sizeof(yagent_host) == 40 && offsetof(yagent_host, major) == 8);
YAGENT_LAYOUT(host_minor, offsetof(yagent_host, minor) == 12 && offsetof(yagent_host, context) == 16);
YAGENT_LAYOUT(host_log, offsetof(yagent_host, log) == 24 && offsetof(yagent_host, extension) == 32);
YAGENT_LAYOUT(event, sizeof(yagent_event) == 64 && offsetof(yagent_event, kind) == 8);
YAGENT_LAYOUT(event_flags, offsetof(yagent_event, flags) == 12 && offsetof(yagent_event, now_ns) == 16);
YAGENT_LAYOUT(event_deadline, offsetof(yagent_event, deadline_ns) == 24 && offsetof(yagent_event, bytes) == 32);
YAGENT_LAYOUT(event_bytes_len, offsetof(yagent_event, bytes_len) == 40 && offsetof(yagent_event, args) == 48);
YAGENT_LAYOUT(event_args_len, offsetof(yagent_event, args_len) == 56);
YAGENT_LAYOUT(sink, sizeof(yagent_sink) == 56 && offsetof(yagent_sink, context) == 8);
YAGENT_LAYOUT(sink_send, offsetof(yagent_sink, send) == 16 && offsetof(yagent_sink, health) == 24);
YAGENT_LAYOUT(sink_number, offsetof(yagent_sink, number) == 32 && offsetof(yagent_sink, text) == 40);
YAGENT_LAYOUT(sink_fail, offsetof(yagent_sink, fail) == 48);
YAGENT_LAYOUT(failover, sizeof(yagent_failover) == 48 && offsetof(yagent_failover, inspect) == 8);
YAGENT_LAYOUT(failover_follow, offsetof(yagent_failover, promote) == 16 && offsetof(yagent_failover, follow) == 24);
YAGENT_LAYOUT(failover_fence, offsetof(yagent_failover, fence) == 32 && offsetof(yagent_failover, unfence) == 40);
YAGENT_LAYOUT(settings, sizeof(yagent_settings) == 24 && offsetof(yagent_settings, pairs) == 8);
YAGENT_LAYOUT(settings_len, offsetof(yagent_settings, pairs_len) == 16);
YAGENT_LAYOUT(plugin, sizeof(yagent_plugin) == 216 && offsetof(yagent_plugin, size) == 8);
YAGENT_LAYOUT(plugin_major, offsetof(yagent_plugin, major) == 16 && offsetof(yagent_plugin, minor) == 20);
YAGENT_LAYOUT(plugin_least, offsetof(yagent_plugin, least_host_minor) == 24 && offsetof(yagent_plugin, flags) == 28);
YAGENT_LAYOUT(plugin_id, offsetof(yagent_plugin, id) == 32 && offsetof(yagent_plugin, version) == 48);
YAGENT_LAYOUT(plugin_summary, offsetof(yagent_plugin, summary) == 64 && offsetof(yagent_plugin, section) == 80);
YAGENT_LAYOUT(plugin_prefix, offsetof(yagent_plugin, key_prefix) == 96);
YAGENT_LAYOUT(plugin_root, offsetof(yagent_plugin, registry_root) == 112 && offsetof(yagent_plugin, keys) == 128);
YAGENT_LAYOUT(plugin_files, offsetof(yagent_plugin, file_keys) == 144 && offsetof(yagent_plugin, create) == 160);
YAGENT_LAYOUT(plugin_destroy, offsetof(yagent_plugin, destroy) == 168 && offsetof(yagent_plugin, start) == 176);
YAGENT_LAYOUT(plugin_probe, offsetof(yagent_plugin, probe) == 184 && offsetof(yagent_plugin, stats) == 192);
YAGENT_LAYOUT(plugin_failover, offsetof(yagent_plugin, failover) == 200 && offsetof(yagent_plugin, extension) == 208);

#undef YAGENT_LAYOUT

#ifdef __cplusplus
}
#endif

#endif /* YAGENT_PLUGIN_H */
