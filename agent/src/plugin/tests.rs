//! Bad plugins and odd ones, written in C with the header alone: each is refused or survived with its exact message.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Backend, Event, Health, Hook, NumberKind, Plugin, PluginError, Reply, Step, loader};

/// A whole plugin; a test replaces fields of its table, or gives other hooks.
const PLUGIN: &str = r#"
#include "yagent/plugin.h"
#include <stdlib.h>
#include <string.h>
#define STR(text) { text, sizeof(text) - 1 }
static int object;
static const yagent_host *kept_host;
static int is(yagent_str name, const char *text) {
    return name.len == strlen(text) && memcmp(name.ptr, text, name.len) == 0;
}
#ifndef OWN_HOOKS
static void *create(const yagent_settings *settings, const yagent_sink *sink) {
    (void)settings; (void)sink;
    return &object;
}
static void destroy(void *instance) { (void)instance; }
static int32_t start(void *instance, const yagent_event *event, const yagent_sink *sink) {
    (void)instance; (void)event;
    sink->text(sink, "program", 7, "/bin/true", 9);
    return YAGENT_DONE;
}
static int32_t probe(void *instance, const yagent_event *event, const yagent_sink *sink) {
    (void)instance; (void)event; (void)sink;
    return YAGENT_UNSUPPORTED;
}
#endif
static const yagent_failover failover = {
    sizeof(yagent_failover), probe, probe, probe, probe, probe
};
typedef struct { yagent_plugin now; uint64_t later; } future;
static future plugin = {{
    YAGENT_ABI_MAGIC, sizeof(yagent_plugin), YAGENT_ABI_MAJOR, YAGENT_ABI_MINOR, 0, 0,
    STR("org.example.odd"), STR("0.1"), STR("an odd engine"), STR("odd"), STR("odd_"), STR("/odd"),
    STR("odd_a, odd_b"), STR("odd_b"), create, destroy, start, probe, probe, NULL, NULL
}, 0};
const yagent_plugin *yagent_plugin_v1(const yagent_host *host) {
    kept_host = host;
    (void)is; (void)failover;
    CHANGE;
    return RETURN;
}
"#;

/// A directory with one plugin in it.
struct Built {
    dir: TempDir,
    file: PathBuf,
}

/// Compiles `source` to `libyagent_odd.so`.
fn compile(source: &str, defines: &[&str]) -> Built {
    compile_with(yagent_abi::HEADER, source, defines)
}

/// As [`compile`], against another header than the live one.
fn compile_with(header: &str, source: &str, defines: &[&str]) -> Built {
    let dir = tempfile::tempdir().unwrap();
    let include = dir.path().join("yagent");
    std::fs::create_dir(&include).unwrap();
    std::fs::write(include.join("plugin.h"), header).unwrap();
    let (from, file) = (dir.path().join("odd.c"), dir.path().join("libyagent_odd.so"));
    std::fs::write(&from, source).unwrap();
    let mut cc = Command::new("cc");
    cc.args([
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
    ]);
    cc.args(defines.iter().map(|define| format!("-D{define}")));
    cc.arg("-pthread");
    let output = cc.arg("-I").arg(dir.path()).arg("-o").args([&file, &from]).output();
    let output =
        output.unwrap_or_else(|error| panic!("cannot run cc: {error}; install the Debian package gcc"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Built { dir, file }
}

/// The plugin with `change` made to its table.
fn changed(change: &str) -> Built {
    compile(PLUGIN, &[&format!("CHANGE={change}"), "RETURN=&plugin.now"])
}

fn load(built: &Built) -> Result<Plugin, PluginError> {
    loader::load("odd", &[built.dir.path().to_owned()])
}

/// The message, without the path that differs each time.
fn message(built: &Built) -> String {
    let error = load(built).expect_err("it was loaded");
    error.to_string().replace(&built.dir.path().display().to_string(), "DIR")
}

#[test]
fn a_good_one_is_described() {
    let built = changed("plugin.now.failover = &failover");
    let plugin = load(&built).unwrap();
    let about = plugin.description();
    assert_eq!((about.id.as_str(), about.version.as_str(), about.abi), ("org.example.odd", "0.1", (1, 0)));
    assert_eq!(
        (about.keys.as_slice(), about.file_keys.as_slice()),
        (&["odd_a".into(), "odd_b".into()][..], &["odd_b".into()][..])
    );
    assert!(plugin.has_failover());
    let plan = plugin.create(&[]).unwrap().start().unwrap();
    assert_eq!((plan.program.as_str(), plan.args.len(), plan.open_files), ("/bin/true", 0, 0));
}

#[test]
fn each_broken_rule_of_the_description_is_named_with_both_values() {
    for (change, expected) in [
        ("plugin.now.magic = 7", "magic is 0x0000000000000007, wanted 0x594147454e54010a"),
        ("plugin.now.size = 16", "size is 16, wanted at least 216"),
        ("plugin.now.size = 215", "size is 215, wanted at least 216"),
        ("plugin.now.major = 2", "major is 2, wanted 1"),
        ("plugin.now.least_host_minor = 99", "least_host_minor is 99, wanted at most 0"),
        ("plugin.now.create = NULL", "create is NULL, wanted a function"),
        ("plugin.now.destroy = NULL", "destroy is NULL, wanted a function"),
        ("plugin.now.start = NULL", "start is NULL, wanted a function"),
        ("plugin.now.probe = NULL", "probe is NULL, wanted a function"),
        ("plugin.now.stats = NULL", "stats is NULL, wanted a function"),
        ("plugin.now.id.len = 0", "id is ``, wanted lower case letters, digits, `.`, `_`, `-`"),
        (
            "plugin.now.id.ptr = \"An engine\"; plugin.now.id.len = 9",
            "id is `An engine`, wanted lower case letters, digits, `.`, `_`, `-`",
        ),
        ("plugin.now.section.len = 2", "section is `od`, wanted `odd` as in the file's name"),
        ("plugin.now.section.ptr = \"o/d\"", "section is `o/d`, wanted lower case letters, digits, `_`, `-`"),
        ("plugin.now.registry_root.len = 1", "registry_root is `/`, wanted a path such as `/ycache`"),
        ("plugin.now.version.ptr = NULL", "version is NULL with a length of 3, wanted a text"),
        ("plugin.now.summary.len = 5000", "summary is 5000 bytes long, wanted at most 4096"),
        (
            "plugin.now.keys.ptr = \"\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\"",
            "keys is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0",
        ),
        ("plugin.now.key_prefix.ptr = \"a\\nbc\"", "key_prefix is `a\\nbc`, wanted printable text"),
    ] {
        assert_eq!(
            message(&changed(change)),
            format!("plugin DIR/libyagent_odd.so is refused: {expected}"),
            "{change}"
        );
    }
}

#[test]
fn each_broken_rule_of_the_failover_table_is_named() {
    let fields = ["inspect", "promote", "follow", "fence", "unfence"];
    for field in fields {
        let change = format!(
            "static yagent_failover other; other = failover; other.{field} = NULL; plugin.now.failover = &other"
        );
        let expected =
            format!("plugin DIR/libyagent_odd.so is refused: failover.{field} is NULL, wanted a function");
        assert_eq!(message(&changed(&change)), expected);
    }
    let change =
        "static yagent_failover other; other = failover; other.size = 40; plugin.now.failover = &other";
    let expected = "plugin DIR/libyagent_odd.so is refused: failover.size is 40, wanted at least 48";
    assert_eq!(message(&changed(change)), expected);
}

#[test]
fn an_entry_that_is_missing_or_gives_nothing_is_named() {
    let built = compile("int unrelated;\n", &[]);
    let expected =
        "plugin DIR/libyagent_odd.so is refused: yagent_plugin_v1 is missing, wanted an exported function";
    assert_eq!(message(&built), expected);
    let built = compile(PLUGIN, &["CHANGE=(void)plugin", "RETURN=NULL"]);
    let expected =
        "plugin DIR/libyagent_odd.so is refused: yagent_plugin_v1 returned 0x0, wanted a description";
    assert_eq!(message(&built), expected);
}

#[test]
fn what_is_no_shared_object_is_not_loaded() {
    let built = changed("(void)0");
    std::fs::write(&built.file, "not an object\n").unwrap();
    let expected = "cannot load plugin DIR/libyagent_odd.so: DIR/libyagent_odd.so: file too short";
    assert_eq!(message(&built), expected);
    std::fs::remove_file(&built.file).unwrap();
    std::fs::create_dir(&built.file).unwrap();
    assert_eq!(message(&built), "cannot read plugin DIR/libyagent_odd.so: not a regular file");
}

#[test]
fn a_file_or_directory_that_others_may_write_is_refused() {
    let built = changed("(void)0");
    let refused = |path: &str, mode: &str| {
        format!(
            "plugin DIR/libyagent_odd.so is refused: {path} has mode {mode}, wanted one without write access for group and others"
        )
    };
    let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(&built.file, 0o775);
    assert_eq!(message(&built), refused("DIR/libyagent_odd.so", "0775"));
    mode(&built.file, 0o755);
    mode(built.dir.path(), 0o1777);
    assert_eq!(message(&built), refused("DIR", "1777"));

    // Whoever can write beside a link can point it elsewhere.
    let safe = changed("(void)0");
    std::fs::remove_file(&built.file).unwrap();
    std::os::unix::fs::symlink(&safe.file, &built.file).unwrap();
    assert_eq!(message(&built), refused("DIR", "1777"));
    mode(built.dir.path(), 0o755);
    load(&built).unwrap();
}

#[test]
fn a_missing_one_is_told_with_every_place_that_was_searched() {
    let dirs = ["/nonexistent/a".into(), "/nonexistent/b".into()];
    let error = loader::load("varnish", &dirs).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no plugin for engine `varnish`: libyagent_varnish.so is in none of /nonexistent/a, /nonexistent/b"
    );
    let error = loader::load("../odd", &dirs).unwrap_err().to_string();
    assert_eq!(
        error,
        "engine `../odd` has no plugin: a name consists of lower case letters, digits, `-` and `_`"
    );
}

#[test]
fn the_first_directory_that_has_it_decides() {
    let (bad, good) = (changed("plugin.now.major = 3"), changed("(void)0"));
    let dirs = |first: &Built, second: &Built| {
        ["/nonexistent".into(), first.dir.path().to_owned(), second.dir.path().to_owned()]
    };
    assert_eq!(loader::load("odd", &dirs(&good, &bad)).unwrap().description().file, good.file);
    assert!(matches!(loader::load("odd", &dirs(&bad, &good)), Err(PluginError::Contract { .. })));
    let listed = loader::list(&dirs(&good, &bad));
    assert_eq!(listed.len(), 1, "a later one of the same name is never loaded");
    assert!(listed[0].0 == good.file && listed[0].1.is_ok());
}

#[test]
fn one_of_a_later_minor_is_loaded() {
    let built = changed("plugin.now.minor = 1; plugin.now.size = sizeof(future); plugin.later = 5");
    assert_eq!(load(&built).unwrap().description().abi, (1, 1));
}

#[test]
fn a_file_is_loaded_once() {
    let built = changed("(void)0");
    assert!(std::ptr::eq(load(&built).unwrap().0, load(&built).unwrap().0));
}

/// Hooks of which the probe does what its argument `do` says.
const UNRULY_HOOKS: &str = r#"
#include <pthread.h>
static const yagent_sink *kept;
static char big[2 << 20];
static void *create(const yagent_settings *settings, const yagent_sink *sink) {
    uint64_t i;
    if (kept != NULL) {
        kept->send(kept, "late", 4);
    }
    for (i = 0; i < settings->pairs_len; i++) {
        if (is(settings->pairs[i].name, "odd_refuse")) {
            yagent_str why = settings->pairs[i].value;
            if (why.len > 0) {
                sink->fail(sink, why.ptr, why.len);
            }
            return NULL;
        }
    }
    return &object;
}
static void destroy(void *instance) {
    (void)instance;
    if (kept != NULL) {
        kept->send(kept, "late", 4);
    }
}
static int32_t start(void *instance, const yagent_event *event, const yagent_sink *sink) {
    (void)instance; (void)event;
    sink->text(sink, "argv", 4, "\xff", 1);
    sink->text(sink, "argv", 4, "", 0);
    sink->text(sink, "env", 3, "A=b=c", 5);
    sink->text(sink, "dir", 3, "/a", 2);
    sink->text(sink, "dir", 3, "/b", 2);
    sink->text(sink, "from_the_future", 15, "x", 1);
    sink->number(sink, YAGENT_GAUGE, "open_files", 10, 64);
    sink->text(sink, "program", 7, "/bin/true", 9);
    return YAGENT_DONE;
}
static void *elsewhere(void *sink) {
    ((const yagent_sink *)sink)->send(sink, "foreign", 7);
    kept_host->log(kept_host, YAGENT_LOG_INFO, "from a thread of its own", 24);
    return NULL;
}
static int32_t probe(void *instance, const yagent_event *event, const yagent_sink *sink) {
    yagent_str what = {"", 0};
    int i;
    pthread_t thread;
    yagent_sink copy;
    (void)instance;
    for (i = 0; i < (int)event->args_len; i++) {
        if (is(event->args[i].name, "do")) what = event->args[i].value;
    }
    if (is(what, "send too much")) for (i = 0; i < 3; i++) sink->send(sink, big, 600000);
    if (is(what, "send null")) sink->send(sink, NULL, 1);
    if (is(what, "numbers")) for (i = 0; i < 600; i++) sink->number(sink, YAGENT_GAUGE, "a", 1, i);
    if (is(what, "texts")) for (i = 0; i < 600; i++) sink->text(sink, "a", 1, "b", 1);
    if (is(what, "long text")) sink->text(sink, "a", 1, big, 70000);
    if (is(what, "long name")) sink->text(sink, big, 200, "a", 1);
    if (is(what, "endless")) sink->text(sink, "a", 1, big, UINT64_MAX);
    if (is(what, "no name")) sink->number(sink, YAGENT_GAUGE, "", 0, 1);
    if (is(what, "not utf-8")) sink->text(sink, "a", 1, "b\xff", 2);
    if (is(what, "why not utf-8")) sink->fail(sink, "\xff", 1);
    if (is(what, "nan")) sink->number(sink, YAGENT_GAUGE, "a", 1, strtod("nan", NULL));
    if (is(what, "kind")) sink->number(sink, 9, "a", 1, 1);
    if (is(what, "health")) sink->health(sink, 7, "", 0);
    if (is(what, "keep")) kept = sink;
    if (is(what, "copy")) { copy = *sink; copy.send(&copy, "copied", 6); }
    if (is(what, "thread")) { pthread_create(&thread, NULL, elsewhere, (void *)sink); pthread_join(thread, NULL); }
    if (is(what, "code")) return 42;
    if (is(what, "broken")) { sink->fail(sink, "lost its state", 14); return YAGENT_BROKEN; }
    if (is(what, "silent error")) return YAGENT_ERROR;
    if (is(what, "error")) { sink->fail(sink, "no luck", 7); return YAGENT_ERROR; }
    if (is(what, "good")) {
        sink->send(sink, "a", 1);
        sink->send(sink, "bc", 2);
        sink->health(sink, YAGENT_BUSY, "busy", 4);
        sink->number(sink, YAGENT_COUNTER, "n", 1, 1.5);
        sink->text(sink, "t", 1, NULL, 0);
    }
    return YAGENT_DONE;
}
"#;

fn unruly() -> Built {
    let (head, tail) = PLUGIN.split_once("#ifndef OWN_HOOKS").unwrap();
    let source = format!("{head}#define OWN_HOOKS\n{UNRULY_HOOKS}\n#ifndef OWN_HOOKS{tail}");
    compile(&source, &["CHANGE=(void)0", "RETURN=&plugin.now"])
}

fn act(backend: &mut Backend, what: &str, reply: &mut Reply) -> Step {
    let now = Instant::now();
    let event = Event::Begin { fresh: true, args: &[("do", what)] };
    backend.step(Hook::Probe, event, now, now + Duration::from_secs(1), reply)
}

#[test]
fn what_breaks_a_rule_of_the_sink_spoils_its_step_and_no_other() {
    let built = unruly();
    let plugin = load(&built).unwrap();
    let mut backend = plugin.create(&[]).unwrap();
    for (what, expected) in [
        ("send too much", "send: more than 1048576 bytes to send"),
        ("send null", "send: NULL with a length"),
        ("numbers", "number: more than 512 numbers"),
        ("texts", "text: more than 512 texts"),
        ("long text", "text: `a` has 70000 bytes, wanted at most 65536"),
        ("long name", "text: `name` has 200 bytes, wanted at most 128"),
        ("endless", "text: `a` has 18446744073709551615 bytes, wanted at most 65536"),
        ("no name", "number: the name is empty"),
        ("not utf-8", "text: `a` is not UTF-8: invalid utf-8 sequence of 1 bytes from index 1"),
        ("why not utf-8", "fail: `reason` is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0"),
        ("nan", "number: `a` is NaN, wanted a finite value"),
        ("kind", "number: kind of `a` is 9, wanted 1 or 2"),
        ("health", "health: code is 7, wanted 1 to 6"),
    ] {
        let mut reply = Reply::default();
        assert_eq!(act(&mut backend, what, &mut reply), Step::Broken(expected.to_owned()), "{what}");
        assert!(reply.send.len() <= 1 << 20 && reply.numbers.len() <= 512 && reply.texts.len() <= 512);
        let mut reply = Reply::default();
        assert_eq!(act(&mut backend, "good", &mut reply), Step::Done);
        assert_eq!(reply.send, b"abc");
        assert_eq!(reply.health, Some((Health::Busy, "busy".to_owned())));
        assert_eq!(reply.numbers, [(NumberKind::Counter, "n".to_owned(), 1.5)]);
        assert_eq!(reply.texts, [("t".to_owned(), String::new())]);
    }
    assert_eq!(plugin.broken(), None);
}

#[test]
fn a_sink_outside_of_its_call_is_nothing() {
    let built = unruly();
    let plugin = load(&built).unwrap();
    let mut backend = plugin.create(&[]).unwrap();
    let mut reply = Reply::default();
    for what in ["keep", "copy", "thread"] {
        assert_eq!(act(&mut backend, what, &mut reply), Step::Done, "{what}");
    }
    assert_eq!(reply, Reply::default());
    // The kept pointer is used while another object is made and this one destroyed.
    drop(plugin.create(&[]).unwrap());
    drop(backend);
}

#[test]
fn the_reasons_of_errors_come_through() {
    let built = unruly();
    let plugin = load(&built).unwrap();
    let mut backend = plugin.create(&[]).unwrap();
    let mut reply = Reply::default();
    assert_eq!(act(&mut backend, "error", &mut reply), Step::Failed("no luck".to_owned()));
    assert_eq!(act(&mut backend, "silent error", &mut reply), Step::Failed("no reason given".to_owned()));
    for (why, expected) in [("no disk", "no disk"), ("", "it returned NULL without a reason")] {
        let error = plugin.create(&[("odd_refuse".to_owned(), why.into())]).unwrap_err().to_string();
        assert_eq!(error, format!("plugin `org.example.odd` refuses the settings: {expected}"));
    }
}

#[test]
fn one_that_says_it_is_broken_is_called_no_more() {
    for (what, expected) in
        [("broken", "probe: lost its state"), ("code", "probe: it returned 42, which means nothing")]
    {
        let built = unruly();
        let plugin = load(&built).unwrap();
        let (mut backend, mut other) = (plugin.create(&[]).unwrap(), plugin.create(&[]).unwrap());
        let mut reply = Reply::default();
        let broken = Step::Broken(expected.to_owned());
        assert_eq!(act(&mut backend, what, &mut reply), broken);
        assert_eq!(act(&mut other, "good", &mut reply), broken);
        assert_eq!((plugin.broken(), reply), (Some(expected), Reply::default()));
        let error = plugin.create(&[]).map(drop).unwrap_err().to_string();
        assert_eq!(error, format!("plugin `org.example.odd` is out of use: {expected}"));
        assert!(matches!(other.start(), Err(PluginError::Broken { .. })));
    }
}

#[test]
fn a_plan_is_taken_as_it_was_told() {
    let built = unruly();
    let plan = load(&built).unwrap().create(&[]).unwrap().start().unwrap();
    assert_eq!(plan.args, [b"\xff".to_vec(), Vec::new()]);
    assert_eq!(plan.env, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!((plan.dirs.len(), plan.open_files, plan.program.as_str()), (2, 64, "/bin/true"));
}

#[test]
fn a_plan_without_sense_is_refused() {
    for (call, expected) in [
        ("(void)0", "start told no `program`"),
        ("sink->text(sink, \"env\", 3, \"=x\", 2)", "`env` is `=x`, wanted NAME=VALUE"),
        (
            "sink->number(sink, YAGENT_GAUGE, \"open_files\", 10, -1)",
            "`open_files` is -1, wanted a whole number",
        ),
        ("sink->text(sink, \"program\", 7, \"a\\0b\", 3)", "`program` has a NUL in it"),
    ] {
        let with = format!("sink->text(sink, \"cwd\", 3, \"/\", 1); {call};");
        let source = PLUGIN.replace("sink->text(sink, \"program\", 7, \"/bin/true\", 9);", &with);
        let built = compile(&source, &["CHANGE=(void)0", "RETURN=&plugin.now"]);
        let error = load(&built).unwrap().create(&[]).unwrap().start().unwrap_err().to_string();
        assert_eq!(error, format!("plugin `org.example.odd` cannot start an instance: {expected}"));
    }
}

/// Hooks that send their name and arguments, and tell what they were given.
const EVERY_HOOK: &str = r#"
static void *create(const yagent_settings *settings, const yagent_sink *sink) {
    (void)sink;
    if (!YAGENT_HAS(settings, yagent_settings, pairs_len) || settings->pairs_len != 1) return NULL;
    if (!is(settings->pairs[0].name, "odd_a") || !is(settings->pairs[0].value, "b")) return NULL;
    return &object;
}
static void destroy(void *instance) { if (instance != &object) abort(); }
static int32_t start(void *instance, const yagent_event *event, const yagent_sink *sink) {
    if (instance != &object || event->kind != YAGENT_BEGIN || event->args_len != 0) return YAGENT_UNSUPPORTED;
    sink->text(sink, "program", 7, "/bin/true", 9);
    return YAGENT_DONE;
}
static int32_t talk(void *instance, const yagent_event *event, const yagent_sink *sink, const char *hook) {
    uint64_t i;
    if (instance != &object || !YAGENT_HAS(event, yagent_event, args_len)) return YAGENT_BROKEN;
    if (!YAGENT_HAS(sink, yagent_sink, fail)) return YAGENT_BROKEN;
    switch (event->kind) {
    case YAGENT_BEGIN:
        if (!(event->flags & YAGENT_FRESH) || event->now_ns >= event->deadline_ns) return YAGENT_ERROR;
        sink->send(sink, hook, strlen(hook));
        for (i = 0; i < event->args_len; i++) {
            sink->send(sink, " ", 1);
            sink->send(sink, event->args[i].name.ptr, event->args[i].name.len);
            sink->send(sink, "=", 1);
            sink->send(sink, event->args[i].value.ptr, event->args[i].value.len);
        }
        return YAGENT_MORE;
    case YAGENT_BYTES:
    case YAGENT_CLOSED:
        if (event->bytes_len < 2) return YAGENT_MORE;
        sink->health(sink, YAGENT_SERVING, "fine", 4);
        sink->number(sink, YAGENT_COUNTER, "gets", 4, (double)event->bytes_len);
        sink->text(sink, "heard", 5, (const char *)event->bytes, event->bytes_len);
        return YAGENT_DONE;
    case YAGENT_TIMEOUT:
        sink->fail(sink, "late", 4);
        return YAGENT_ERROR;
    case YAGENT_CANCEL:
        return YAGENT_DONE;
    default:
        return YAGENT_UNSUPPORTED;
    }
}
#define HOOK(name) \
    static int32_t name(void *instance, const yagent_event *event, const yagent_sink *sink) { \
        return talk(instance, event, sink, #name); \
    }
HOOK(probe) HOOK(stats) HOOK(inspect) HOOK(promote) HOOK(follow) HOOK(fence) HOOK(unfence)
static const yagent_failover replication = {
    sizeof(yagent_failover), inspect, promote, follow, fence, unfence
};
static const void *extension(const char *name, uint64_t len) {
    return len == 9 && memcmp(name, "example/1", 9) == 0 ? &object : NULL;
}
"#;

#[test]
fn a_plugin_built_against_each_released_header_runs_every_hook() {
    let released = [("1.0", include_str!("../../../abi/frozen/1.0/plugin.h"))];
    for (version, header) in released {
        let (head, tail) = PLUGIN.split_once("#ifndef OWN_HOOKS").unwrap();
        let source = format!("{head}#define OWN_HOOKS\n{EVERY_HOOK}\n#ifndef OWN_HOOKS{tail}");
        let change = "CHANGE=plugin.now.failover = &replication; plugin.now.stats = stats; plugin.now.extension = \
                      extension; if (host->extension(host, \"x/1\", 3) != NULL || host->major != 1) return NULL; \
                      host->log(host, YAGENT_LOG_DEBUG, \"hello\", 5)";
        let built = compile_with(header, &source, &[change, "RETURN=&plugin.now"]);
        let plugin = load(&built).unwrap();
        assert!(plugin.offers("example/1") && !plugin.offers("example/2"), "{version}");
        assert!(plugin.create(&[]).is_err());
        let mut backend = plugin.create(&[("odd_a".to_owned(), b"b".to_vec())]).unwrap();
        assert_eq!(backend.start().unwrap().program, "/bin/true");
        for hook in Hook::ALL {
            every_event(&mut backend, hook);
        }
        drop(backend);
        assert_eq!(plugin.broken(), None);
    }
}

fn every_event(backend: &mut Backend, hook: Hook) {
    let (now, mut reply) = (Instant::now(), Reply::default());
    let mut step = |event, reply: &mut Reply| {
        reply.clear();
        backend.step(hook, event, now, now + Duration::from_secs(1), reply)
    };
    let begin = Event::Begin { fresh: true, args: &[("a", "1"), ("b", "")] };
    assert_eq!(step(begin, &mut reply), Step::More);
    assert_eq!(reply.send, format!("{} a=1 b=", hook.name()).into_bytes());
    assert_eq!(step(Event::Bytes(b"x"), &mut reply), Step::More);
    assert_eq!(step(Event::Bytes(b"xyz"), &mut reply), Step::Done);
    assert_eq!(reply.health, Some((Health::Serving, "fine".to_owned())));
    assert_eq!((reply.number("gets"), reply.text("heard")), (Some(3.0), Some("xyz")));
    assert_eq!(step(Event::Closed(b"xy"), &mut reply), Step::Done);
    assert_eq!(step(Event::Timeout, &mut reply), Step::Failed("late".to_owned()));
    assert_eq!(step(Event::Cancel, &mut reply), Step::Done);
    assert_eq!(step(Event::Unknown(6), &mut reply), Step::Unsupported);
}
