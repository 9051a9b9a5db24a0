//! What the validator looks at: one function a case. Each runs alone in a process that loaded the plugin.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::subject::Subject;
use crate::plugin::{Backend, Event, Health, Hook, PluginError, Reply, StartPlan, Step, misused};

/// What a case works with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) subject: Subject,
    pub(super) fixtures: Option<PathBuf>,
}

/// What a case comes to; a crash is seen from outside.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
    Warning(String),
}
use Verdict::{Failed, Passed, Skipped, Warning};

/// A verdict that ends a case early.
type Early<T> = Result<T, Verdict>;

/// A case.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) run: fn(&Setup) -> Verdict,
}

const fn case(name: &'static str, about: &'static str, run: fn(&Setup) -> Verdict) -> Case {
    Case { name, about, run }
}

/// Every case; the first loads the plugin.
pub(super) const CASES: &[Case] = &[
    case("load", "the agent loads the file: owner, mode, entry, magic, sizes, required pointers", |_| Passed),
    case("describe/name", "the section is the NAME of libyagent_NAME.so", describe_name),
    case("describe/text", "version and summary say something", describe_text),
    case(
        "describe/keys",
        "every key begins with the prefix, and the file keys are among the keys",
        describe_keys,
    ),
    case("describe/extension", "an unknown extension is NULL", |s| {
        let unknown = "org.example.unknown/1";
        judge(!s.subject.plugin.offers(unknown), || format!("`{unknown}` is not NULL"))
    }),
    case("create/settings", "it makes an object from what the host tells", |s| early(object(s).map(drop))),
    case("create/nothing", "without settings it makes an object or says why not", create_nothing),
    case("create/bytes", "values that are no UTF-8, empty or long do no harm", create_bytes),
    case("create/many", "a thousand objects live side by side", create_many),
    case("start/plan", "start tells a program", |s| early(plan(s).map(drop))),
    case("start/port", "the plan has the port in it: no two instances share one", start_port),
    case("start/again", "start tells the same each time", start_again),
    case("probe/begin", "a probe sends something and waits, or comes to a result", |s| {
        begins(s, Hook::Probe)
    }),
    case("probe/closed", "a connection that closes without a word is not taken for an answer", probe_closed),
    case("probe/garbage", "garbage is not taken for a server that serves", probe_garbage),
    case("stats/begin", "stats sends something and waits, or comes to a result", |s| begins(s, Hook::Stats)),
    case("failover/begin", "the hooks of replication begin, each with its arguments", failover_begin),
    case("hooks/unknown-event", "an event of a later version is UNSUPPORTED", unknown_event),
    case("hooks/ended", "each hook can be ended at any point, and begun again", hooks_ended),
    case("hooks/garbage", "no hook breaks on garbage, whole, cut or long", hooks_garbage),
    case("hooks/recorded", "recorded answers give the same result however they are cut", hooks_recorded),
    case("hooks/time", "a step takes less than a millisecond", hooks_time),
    case("hooks/memory", "conversations do not fill the memory", hooks_memory),
    case("hooks/alone", "the hooks start no thread and open nothing", hooks_alone),
    case("sink/in-call", "the sink is used in its call alone", sink_in_call),
];

fn judge(holds: bool, why: impl FnOnce() -> String) -> Verdict {
    if holds { Passed } else { Failed(why()) }
}

fn early(result: Early<()>) -> Verdict {
    result.err().unwrap_or(Passed)
}

fn failed(error: &PluginError) -> Verdict {
    Failed(error.to_string())
}

/// What a case needs and another one looks at.
fn needs<T>(result: Early<T>) -> Early<T> {
    result
        .map_err(|_| Skipped("it makes no object: see create/settings; --set tells more settings".to_owned()))
}

fn object(setup: &Setup) -> Early<Backend> {
    setup.subject.create().map_err(|error| failed(&error))
}

fn plan(setup: &Setup) -> Early<StartPlan> {
    needs(object(setup))?.start().map_err(|error| failed(&error))
}

// Description

fn describe_name(setup: &Setup) -> Verdict {
    let about = setup.subject.plugin.description();
    let (file, wanted) =
        (about.file.file_name().unwrap_or_default(), format!("libyagent_{}.so", about.section));
    judge(file.to_str() == Some(&wanted), || format!("the file is {}, wanted {wanted}", file.display()))
}

fn describe_text(setup: &Setup) -> Verdict {
    let about = setup.subject.plugin.description();
    let silent =
        [("version", &about.version), ("summary", &about.summary), ("key_prefix", &about.key_prefix)];
    match silent.iter().find(|(_, text)| text.trim().is_empty()) {
        Some((field, _)) => Warning(format!("{field} is empty")),
        None => Passed,
    }
}

fn describe_keys(setup: &Setup) -> Verdict {
    let about = setup.subject.plugin.description();
    let strange = about.keys.iter().find(|key| !key.starts_with(&about.key_prefix));
    let missing = about.file_keys.iter().find(|key| !about.keys.contains(key));
    match (strange, missing) {
        (Some(key), _) => Failed(format!("`{key}` does not begin with `{}`", about.key_prefix)),
        (_, Some(key)) => Failed(format!("`{key}` is in file_keys and not in keys")),
        _ => Passed,
    }
}

// Create and start

fn create_nothing(setup: &Setup) -> Verdict {
    match setup.subject.plugin.create(&[]) {
        Err(PluginError::Create { why, .. }) if why.contains("without a reason") => Failed(why),
        Err(error @ PluginError::Broken { .. }) => failed(&error),
        _ => Passed,
    }
}

fn create_bytes(setup: &Setup) -> Verdict {
    let about = setup.subject.plugin.description();
    for value in [b"\xff\xfe\0".to_vec(), Vec::new(), vec![b'x'; 64 << 10], b"-1".to_vec()] {
        let mut settings = setup.subject.settings.clone();
        settings.iter_mut().for_each(|(_, old)| old.clone_from(&value));
        settings.extend(about.keys.iter().map(|key| (key.clone(), value.clone())));
        if let Ok(mut backend) = setup.subject.plugin.create(&settings) {
            let _ = backend.start();
        }
    }
    judge(setup.subject.plugin.broken().is_none(), || "it is broken".to_owned())
}

fn create_many(setup: &Setup) -> Verdict {
    early((|| {
        needs(object(setup))?;
        let mut objects = Vec::new();
        for port in 0..1000_u16 {
            let mut settings = setup.subject.settings.clone();
            settings.push(("port".to_owned(), (port + 1).to_string().into_bytes()));
            objects.push(setup.subject.plugin.create(&settings).map_err(|error| failed(&error))?);
        }
        let plans: Vec<StartPlan> =
            objects.iter_mut().step_by(499).filter_map(|object| object.start().ok()).collect();
        let alike = plans.windows(2).any(|pair| pair[0] == pair[1]);
        if alike { Err(Failed("two instances on two ports have one plan".to_owned())) } else { Ok(()) }
    })())
}

fn start_port(setup: &Setup) -> Verdict {
    early(plan(setup).and_then(|plan| {
        let in_args = plan.args.iter().any(|arg| memchr::memmem::find(arg, b"4711").is_some());
        let in_env = plan.env.iter().any(|(_, value)| value.contains("4711"));
        if in_args || in_env { Ok(()) } else { Err(Warning("the port 4711 is in no argument".to_owned())) }
    }))
}

fn start_again(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        let (first, again) = (backend.start(), backend.start());
        match (first, again) {
            (Ok(first), Ok(again)) if first == again => Ok(()),
            (Ok(_), Ok(_)) => Err(Failed("the second plan differs from the first".to_owned())),
            (Ok(_), Err(error)) => Err(failed(&error)),
            (Err(_), _) => Err(Skipped("it has no plan: see start/plan".to_owned())),
        }
    })())
}

// Conversations

fn hooks(setup: &Setup) -> impl Iterator<Item = Hook> {
    let all = if setup.subject.plugin.has_failover() { Hook::ALL.len() } else { 2 };
    Hook::ALL.into_iter().take(all)
}

fn args(hook: Hook) -> &'static [(&'static str, &'static str)] {
    match hook {
        Hook::Follow => &[("host", "127.0.0.1"), ("port", "4712")],
        Hook::Fence => &[("ms", "1000")],
        _ => &[],
    }
}

fn step(backend: &mut Backend, hook: Hook, event: Event<'_>, reply: &mut Reply) -> Step {
    let now = Instant::now();
    reply.send.clear();
    backend.step(hook, event, now, now + Duration::from_secs(1), reply)
}

fn begin(backend: &mut Backend, hook: Hook, reply: &mut Reply) -> Step {
    reply.clear();
    step(backend, hook, Event::Begin { fresh: true, args: args(hook) }, reply)
}

/// Whether a step broke a rule of the contract.
fn unbroken(hook: Hook, what: &str, step: &Step) -> Early<()> {
    match step {
        Step::Broken(why) => Err(Failed(format!("{} on {what}: {why}", hook.name()))),
        _ => Ok(()),
    }
}

fn begins(setup: &Setup, hook: Hook) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        begins_well(&mut backend, hook)
    })())
}

fn begins_well(backend: &mut Backend, hook: Hook) -> Early<()> {
    let mut reply = Reply::default();
    let step = begin(backend, hook, &mut reply);
    unbroken(hook, "BEGIN", &step)?;
    let name = hook.name();
    match step {
        Step::More if reply.send.is_empty() => {
            Err(Warning(format!("{name} waits for bytes and has sent none; few servers speak first")))
        }
        Step::Done if hook == Hook::Probe && reply.health.is_none() => {
            Err(Failed(format!("{name} is done and told no health")))
        }
        Step::Failed(why) => Err(Failed(format!("{name} fails before anything was said: {why}"))),
        Step::Unsupported if hook == Hook::Probe => Err(Failed("probe is unsupported".to_owned())),
        Step::Unsupported => Err(Warning(format!("{name} is unsupported"))),
        _ => Ok(()),
    }
}

fn failover_begin(setup: &Setup) -> Verdict {
    if !setup.subject.plugin.has_failover() {
        return Skipped("the engine has no replication".to_owned());
    }
    early((|| {
        let mut backend = needs(object(setup))?;
        hooks(setup).skip(2).try_for_each(|hook| begins_well(&mut backend, hook))
    })())
}

fn probe_closed(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        let mut reply = Reply::default();
        if begin(&mut backend, Hook::Probe, &mut reply) != Step::More {
            return Ok(());
        }
        match step(&mut backend, Hook::Probe, Event::Closed(b""), &mut reply) {
            Step::Failed(why) if why == "no reason given" => {
                Err(Warning("it fails without a reason".to_owned()))
            }
            Step::Done => Err(Failed("it is done".to_owned())),
            step => unbroken(Hook::Probe, "CLOSED", &step),
        }
    })())
}

/// Bytes that look like nothing, and always the same.
fn garbage(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

fn probe_garbage(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        for answer in [b"\r\n\r\n".to_vec(), b"\0\0\0\0\n".to_vec(), b"garbage\r\n".to_vec(), garbage(4096)] {
            let mut reply = Reply::default();
            if begin(&mut backend, Hook::Probe, &mut reply) == Step::More
                && step(&mut backend, Hook::Probe, Event::Bytes(&answer), &mut reply) == Step::Done
                && matches!(reply.health, Some((Health::Serving, _)))
            {
                let line = answer.escape_ascii().to_string();
                return Err(Failed(format!("it takes `{}` for serving", line.get(..60).unwrap_or(&line))));
            }
        }
        Ok(())
    })())
}

fn unknown_event(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        hooks(setup).try_for_each(|hook| {
            let mut reply = Reply::default();
            match step(&mut backend, hook, Event::Unknown(1 << 20), &mut reply) {
                Step::Unsupported => Ok(()),
                other => Err(Failed(format!("{} answers it with {other:?}", hook.name()))),
            }
        })
    })())
}

fn hooks_ended(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        for hook in hooks(setup) {
            for (what, end) in [
                ("TIMEOUT", Event::Timeout),
                ("CANCEL", Event::Cancel),
                ("CLOSED", Event::Closed(b"")),
                ("CLOSED with bytes", Event::Closed(b"half a li")),
            ] {
                let mut reply = Reply::default();
                let first = begin(&mut backend, hook, &mut reply);
                unbroken(hook, what, &step(&mut backend, hook, end, &mut reply))?;
                let again = begin(&mut backend, hook, &mut reply);
                if again != first {
                    let why = format!("{} begins with {first:?}, after {what} with {again:?}", hook.name());
                    return Err(Failed(why));
                }
            }
        }
        Ok(())
    })())
}

fn hooks_garbage(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        let long = [garbage(1 << 20), vec![b'9'; 1 << 20], b"$-1\r\n:\r\n*1048576\r\n".repeat(1 << 12)];
        let short = (0..=u8::MAX).map(|byte| vec![byte]).chain((1..64).map(garbage));
        let answers: Vec<Vec<u8>> = long.into_iter().chain(short).collect();
        for hook in hooks(setup) {
            for answer in &answers {
                feed(&mut backend, hook, answer)?;
            }
        }
        Ok(())
    })())
}

/// An answer in a few pieces that grow, as a hook sees it.
fn feed(backend: &mut Backend, hook: Hook, answer: &[u8]) -> Early<()> {
    let mut reply = Reply::default();
    let mut last = begin(backend, hook, &mut reply);
    for end in [answer.len() / 3, answer.len() / 2, answer.len()] {
        if last != Step::More || end == 0 {
            break;
        }
        last = step(backend, hook, Event::Bytes(&answer[..end]), &mut reply);
        unbroken(hook, "garbage", &last)?;
    }
    if last == Step::More {
        unbroken(hook, "garbage", &step(backend, hook, Event::Closed(answer), &mut reply))?;
    }
    Ok(())
}

// Recorded answers

fn hooks_recorded(setup: &Setup) -> Verdict {
    let Some(dir) = &setup.fixtures else {
        return Skipped("no answers were recorded: --fixtures DIR".to_owned());
    };
    early((|| {
        let mut backend = needs(object(setup))?;
        let mut answers = 0;
        for hook in hooks(setup) {
            for file in recorded(&dir.join(hook.name())) {
                let answer =
                    fs::read(&file).map_err(|e| Failed(format!("cannot read {}: {e}", file.display())))?;
                agree(&mut backend, hook, &answer)
                    .map_err(|why| Failed(format!("{}: {why}", file.display())))?;
                answers += 1;
            }
        }
        if answers == 0 { Err(Failed(format!("no HOOK/*.txt in {}", dir.display()))) } else { Ok(()) }
    })())
}

fn recorded(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        entries.filter(|file| file.extension().is_some_and(|e| e == "txt")).collect();
    files.sort();
    files
}

fn agree(backend: &mut Backend, hook: Hook, answer: &[u8]) -> Result<(), String> {
    let whole = told(backend, hook, answer, &[answer.len()]);
    if whole.0 == Step::More {
        return Err("the whole answer is not enough".to_owned());
    }
    let each: Vec<usize> = (1..=answer.len()).collect();
    for ends in (1..answer.len()).map(|cut| vec![cut, answer.len()]).chain([each]) {
        let cut = told(backend, hook, answer, &ends);
        if cut != whole {
            return Err(format!("cut at {} of {}: {cut:?}, whole: {whole:?}", ends[0], answer.len()));
        }
    }
    Ok(())
}

fn told(backend: &mut Backend, hook: Hook, answer: &[u8], ends: &[usize]) -> (Step, Reply) {
    let mut reply = Reply::default();
    let event = Event::Begin { fresh: false, args: args(hook) };
    let mut last = step(backend, hook, event, &mut reply);
    for end in ends {
        if last != Step::More {
            break;
        }
        last = step(backend, hook, Event::Bytes(&answer[..*end]), &mut reply);
    }
    (last, reply)
}

// What hooks must not do

fn conversation(backend: &mut Backend, setup: &Setup, reply: &mut Reply) {
    for hook in hooks(setup) {
        let _ = begin(backend, hook, reply);
        let _ = step(backend, hook, Event::Bytes(b"garbage\r\n"), reply);
        let _ = step(backend, hook, Event::Cancel, reply);
    }
}

fn hooks_time(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        for hook in hooks(setup) {
            let mut reply = Reply::default();
            let mut times: Vec<Duration> = (0..1000)
                .map(|_| {
                    let began = Instant::now();
                    let _ = begin(&mut backend, hook, &mut reply);
                    began.elapsed()
                })
                .collect();
            times.sort();
            let median = times[times.len() / 2];
            if median > Duration::from_millis(1) {
                return Err(Failed(format!("{} takes {median:.1?}", hook.name())));
            }
        }
        Ok(())
    })())
}

/// Resident memory that conversations may take for good, in bytes.
const GROWTH: u64 = 4 << 20;

fn hooks_memory(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        let mut reply = Reply::default();
        let mut run = |times| (0..times).for_each(|_| conversation(&mut backend, setup, &mut reply));
        run(1000);
        let before = crate::shell::status::resident();
        run(20_000);
        let grown = crate::shell::status::resident().saturating_sub(before);
        if grown <= GROWTH { Ok(()) } else { Err(Warning(format!("20000 conversations took {grown} bytes"))) }
    })())
}

fn hooks_alone(setup: &Setup) -> Verdict {
    let count = |dir: &str| fs::read_dir(dir).map_or(0, Iterator::count);
    let here = || (count("/proc/self/task"), count("/proc/self/fd"));
    early((|| {
        let mut backend = needs(object(setup))?;
        let before = here();
        let _ = backend.start();
        conversation(&mut backend, setup, &mut Reply::default());
        let after = here();
        match after {
            (threads, _) if threads > before.0 => Err(Failed(format!("{} more threads", threads - before.0))),
            (_, files) if files > before.1 => Err(Failed(format!("{} more open files", files - before.1))),
            _ => Ok(()),
        }
    })())
}

fn sink_in_call(setup: &Setup) -> Verdict {
    early((|| {
        let mut backend = needs(object(setup))?;
        let _ = backend.start();
        conversation(&mut backend, setup, &mut Reply::default());
        // Whoever kept a sink has occasions to use it here.
        drop(object(setup)?);
        drop(backend);
        if misused() { Err(Failed("a sink was used outside of its call".to_owned())) } else { Ok(()) }
    })())
}
