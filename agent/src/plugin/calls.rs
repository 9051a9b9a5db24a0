//! Safe calls over a plugin's table: create, start, and the steps of conversations.
//!
//! A [`Backend`] can't leave its thread, which the types enforce, and one call runs at a time in the whole process: the
//! event loop calls, and the entry is called by the thread that reads settings again. Each call is marked for the watchdog and
//! timed. A plugin that says that it is broken is not called again by anybody.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    ptr::{self, NonNull},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use yagent_abi::raw;

use super::{
    Description, Event, Hook, NumberKind, PluginError, Reply, StartPlan, Step,
    marker::{self, Mark},
    sink::{self, Collector},
};

/// A hook that takes longer is logged.
const SLOW: Duration = Duration::from_millis(1);
/// At most so often, for each plugin and hook.
const SLOW_REPEAT: Duration = Duration::from_secs(60);

/// Held during every call into any plugin, so that a plugin needs no locks of its own.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits for the call of another thread, which by the contract takes no time. One that never ends holds the loop up
/// until the watchdog ends the agent, with the name of the plugin at fault.
pub(super) fn one_at_a_time() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many calls it takes until a sink comes round again.
const SINKS: usize = 32;

/// A call into a plugin, beside [`Hook`]'s.
#[derive(Clone, Copy)]
enum Call {
    Step(Hook),
    Start,
    Create,
    Destroy,
    Extension,
}

impl Call {
    const NAMES: [&'static str; 11] = [
        "probe",
        "stats",
        "inspect",
        "promote",
        "follow",
        "fence",
        "unfence",
        "start",
        "create",
        "destroy",
        "extension",
    ];

    fn index(self) -> usize {
        match self {
            Self::Step(hook) => hook as usize,
            Self::Start => 7,
            Self::Create => 8,
            Self::Destroy => 9,
            Self::Extension => 10,
        }
    }
}

/// When a slow call was logged last, and how many were not since.
#[derive(Debug, Default)]
struct Slow {
    logged_ns: AtomicU64,
    folded: AtomicU64,
}

/// A plugin that passed every check; lives as long as the process.
#[derive(Debug)]
pub(super) struct Loaded {
    description: Description,
    table: raw::Plugin,
    failover: Option<raw::Failover>,
    /// Taken in turn: a pointer that a plugin kept is not that of its next call.
    sinks: [raw::Sink; SINKS],
    calls: AtomicUsize,
    marks: [Mark; 11],
    slow: [Slow; 11],
    broken: OnceLock<String>,
}

// SAFETY: the raw pointers in the tables are to functions and data that live as long as the process; what changes is
// atomic. That calls come from one thread is kept by `Backend`, which is not `Send`.
unsafe impl Sync for Loaded {}
// SAFETY: as above.
unsafe impl Send for Loaded {}

impl Loaded {
    pub(super) fn new(description: Description, table: raw::Plugin, failover: Option<raw::Failover>) -> Self {
        let marks = Call::NAMES.map(|hook| Mark { plugin: description.section.clone(), hook });
        let (sinks, calls) = (std::array::from_fn(|_| sink::table()), AtomicUsize::new(0));
        Self {
            description,
            table,
            failover,
            sinks,
            calls,
            marks,
            slow: Default::default(),
            broken: OnceLock::new(),
        }
    }

    /// The sink of the next call.
    fn sink(&'static self) -> &'static raw::Sink {
        &self.sinks[self.calls.fetch_add(1, Relaxed) % SINKS]
    }

    /// Makes a call: marked, timed, and with `collector`'s sink open.
    fn call<T>(&'static self, call: Call, collector: &mut Collector<'_>, body: impl FnOnce() -> T) -> T {
        let _alone = one_at_a_time();
        let _mark = marker::CALL.enter(&self.marks[call.index()]);
        let began = Instant::now();
        let value = collector.run(body);
        let took = began.elapsed();
        if took > SLOW {
            self.note_slow(call, took);
        }
        value
    }

    fn note_slow(&self, call: Call, took: Duration) {
        let slow = &self.slow[call.index()];
        let (now, last) = (since_origin(Instant::now()), slow.logged_ns.load(Relaxed));
        if last != 0 && now - last < nanos(SLOW_REPEAT) {
            slow.folded.fetch_add(1, Relaxed);
            return;
        }
        slow.logged_ns.store(now, Relaxed);
        let (plugin, hook, folded) =
            (&self.description.id, Call::NAMES[call.index()], slow.folded.swap(0, Relaxed));
        log::warn!(
            "plugin `{plugin}`: {hook} took {took:.1?}, wanted at most {SLOW:?}; {folded} more before"
        );
    }

    /// Takes the plugin out of use.
    fn quarantine(&self, call: Call, why: &str) -> String {
        let why = format!("{}: {why}", Call::NAMES[call.index()]);
        log::error!("plugin `{}` is out of use: {why}", self.description.id);
        self.broken.get_or_init(|| why).clone()
    }

    fn hook(&self, hook: Hook) -> raw::Hook {
        let failover = |pick: fn(&raw::Failover) -> raw::Hook| self.failover.as_ref().and_then(pick);
        match hook {
            Hook::Probe => self.table.probe,
            Hook::Stats => self.table.stats,
            Hook::Inspect => failover(|table| table.inspect),
            Hook::Promote => failover(|table| table.promote),
            Hook::Follow => failover(|table| table.follow),
            Hook::Fence => failover(|table| table.fence),
            Hook::Unfence => failover(|table| table.unfence),
        }
    }
}

/// A loaded plugin.
#[derive(Clone, Copy, Debug)]
pub struct Plugin(pub(super) &'static Loaded);

impl Plugin {
    /// Who it is.
    #[must_use]
    pub fn description(&self) -> &'static Description {
        &self.0.description
    }

    /// Whether it has the hooks of failovers.
    #[must_use]
    pub fn fails_over(&self) -> bool {
        self.0.failover.is_some()
    }

    /// Whether its engine has replication.
    #[must_use]
    pub fn has_failover(&self) -> bool {
        self.0.failover.is_some()
    }

    /// Whether it offers the extension `name`.
    #[must_use]
    pub fn offers(&self, name: &str) -> bool {
        let mut reply = Reply::default();
        let mut collector = Collector::new(self.0.sink(), &mut reply);
        let offered = self.0.call(Call::Extension, &mut collector, || {
            let extension = self.0.table.extension?;
            // SAFETY: the name outlives the call, which keeps nothing of it.
            Some(unsafe { extension(name.as_ptr().cast(), name.len() as u64) })
        });
        offered.is_some_and(|offered| !offered.is_null())
    }

    /// Why it is out of use; `None` while it isn't.
    #[must_use]
    pub fn broken(&self) -> Option<&'static str> {
        self.0.broken.get().map(String::as_str)
    }

    /// Makes the object of an instance from its settings. The backend stays on this thread.
    ///
    /// # Errors
    /// The plugin refuses the settings, or is out of use.
    pub fn create(&self, settings: &[(String, Vec<u8>)]) -> Result<Backend, PluginError> {
        self.in_use()?;
        let pairs: Vec<raw::Pair> = settings
            .iter()
            .map(|(name, value)| raw::Pair { name: raw::Str::new(name), value: raw::Str::bytes(value) })
            .collect();
        let settings = raw::Settings {
            size: size_of::<raw::Settings>() as u64,
            pairs: pairs.as_ptr(),
            pairs_len: pairs.len() as u64,
        };
        let mut reply = Reply::default();
        let mut collector = Collector::new(self.0.sink(), &mut reply);
        let sink = collector.sink;
        let instance = self.0.call(Call::Create, &mut collector, || match self.0.table.create {
            // SAFETY: the settings and all they point to live until the call returns; the sink for ever.
            Some(create) => unsafe { create(&settings, sink) },
            None => ptr::null_mut(),
        });
        let why = collector.fault.or(collector.why);
        let refused = |why| PluginError::Create { plugin: self.description().id.clone(), why };
        let instance = NonNull::new(instance)
            .ok_or_else(|| refused(why.unwrap_or_else(|| "it returned NULL without a reason".to_owned())))?;
        Ok(Backend { plugin: *self, instance })
    }

    fn in_use(&self) -> Result<(), PluginError> {
        match self.broken() {
            Some(why) => {
                Err(PluginError::Broken { plugin: self.description().id.clone(), why: why.to_owned() })
            }
            None => Ok(()),
        }
    }
}

/// A plugin's object for one instance. One conversation runs at a time.
#[derive(Debug)]
pub struct Backend {
    plugin: Plugin,
    /// The plugin's own; the pointer also keeps the backend on its thread.
    instance: NonNull<c_void>,
}

impl Backend {
    /// The plugin that it belongs to.
    #[must_use]
    pub fn plugin(&self) -> Plugin {
        self.plugin
    }

    /// Whether its engine has replication.
    #[must_use]
    pub fn has_failover(&self) -> bool {
        self.plugin.has_failover()
    }

    /// How the instance is started.
    ///
    /// # Errors
    /// The plugin has no plan, or one that lacks the program; or it is at fault.
    pub fn start(&mut self) -> Result<StartPlan, PluginError> {
        self.plugin.in_use()?;
        let loaded = self.plugin.0;
        let mut reply = Reply::default();
        let mut collector = Collector::new(loaded.sink(), &mut reply);
        collector.argv = Some(Vec::new());
        let event = raw_event(Event::Begin { fresh: false, args: &[] }, &[], Instant::now(), None);
        let code = self.enter(Call::Start, loaded.table.start, &event, &mut collector);
        let argv = collector.argv.take().unwrap_or_default();
        let plugin = &loaded.description.id;
        match self.outcome(Call::Start, code, collector) {
            Step::Done => plan(plugin, reply, argv),
            Step::Broken(why) => Err(PluginError::Broken { plugin: plugin.clone(), why }),
            Step::Failed(why) => Err(PluginError::Start { plugin: plugin.clone(), why }),
            Step::More | Step::Unsupported => Err(PluginError::Start {
                plugin: plugin.clone(),
                why: format!("start returned {code}, wanted 0"),
            }),
        }
    }

    /// One step of a conversation: `event` goes in, answers are added to `reply`. `now` and `deadline` are the
    /// conversation's own times.
    pub fn step(
        &mut self,
        hook: Hook,
        event: Event<'_>,
        now: Instant,
        deadline: Instant,
        reply: &mut Reply,
    ) -> Step {
        if let Some(why) = self.plugin.broken() {
            return Step::Broken(why.to_owned());
        }
        let table = self.plugin.0.hook(hook);
        if table.is_none() {
            return Step::Unsupported;
        }
        let mut collector = Collector::new(self.plugin.0.sink(), reply);
        let code = with_pairs(event, |pairs| {
            let event = raw_event(event, pairs, now, Some(deadline));
            self.enter(Call::Step(hook), table, &event, &mut collector)
        });
        self.outcome(Call::Step(hook), code, collector)
    }

    fn enter(
        &mut self,
        call: Call,
        hook: raw::Hook,
        event: &raw::Event,
        collector: &mut Collector<'_>,
    ) -> i32 {
        let (loaded, instance, sink) = (self.plugin.0, self.instance.as_ptr(), collector.sink);
        loaded.call(call, collector, || match hook {
            // SAFETY: the instance is the plugin's own and not destroyed; the event and what it points to live until
            // the call returns, the sink for ever; `&mut self` and the thread keep the call single.
            Some(hook) => unsafe { hook(instance, event, sink) },
            None => raw::UNSUPPORTED,
        })
    }

    /// What a step came to. A rule of the sink that was broken spoils the step; `BROKEN` takes the plugin out of use.
    fn outcome(&self, call: Call, code: i32, collector: Collector<'_>) -> Step {
        let (fault, why) = (collector.fault, collector.why);
        match code {
            raw::MORE | raw::DONE | raw::ERROR | raw::UNSUPPORTED if fault.is_some() => {
                Step::Broken(fault.unwrap_or_default())
            }
            raw::MORE => Step::More,
            raw::DONE => Step::Done,
            raw::UNSUPPORTED => Step::Unsupported,
            raw::ERROR => Step::Failed(why.unwrap_or_else(|| "no reason given".to_owned())),
            raw::BROKEN => {
                let why = why.or(fault).unwrap_or_else(|| "no reason given".to_owned());
                Step::Broken(self.plugin.0.quarantine(call, &why))
            }
            other => Step::Broken(
                self.plugin.0.quarantine(call, &format!("it returned {other}, which means nothing")),
            ),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // What a broken plugin left behind is leaked rather than entered again.
        if self.plugin.broken().is_some() {
            return;
        }
        let loaded = self.plugin.0;
        let mut reply = Reply::default();
        let mut collector = Collector::new(loaded.sink(), &mut reply);
        let instance = self.instance.as_ptr();
        loaded.call(Call::Destroy, &mut collector, || {
            if let Some(destroy) = loaded.table.destroy {
                // SAFETY: made by this plugin's `create` and destroyed nowhere else.
                unsafe { destroy(instance) }
            }
        });
    }
}

/// Lends the arguments of a begin in the contract's form; few of them need no allocation.
fn with_pairs<T>(event: Event<'_>, body: impl FnOnce(&[raw::Pair]) -> T) -> T {
    const EMPTY: raw::Pair = raw::Pair { name: raw::Str::new(""), value: raw::Str::new("") };
    let Event::Begin { args, .. } = event else {
        return body(&[]);
    };
    let pair =
        |(name, value): &(&str, &str)| raw::Pair { name: raw::Str::new(name), value: raw::Str::new(value) };
    let mut few = [EMPTY; 4];
    if args.len() > few.len() {
        return body(&args.iter().map(pair).collect::<Vec<_>>());
    }
    for (to, from) in few.iter_mut().zip(args) {
        *to = pair(from);
    }
    body(&few[..args.len()])
}

fn raw_event(event: Event<'_>, args: &[raw::Pair], now: Instant, deadline: Option<Instant>) -> raw::Event {
    let (kind, flags, bytes): (u32, u32, &[u8]) = match event {
        Event::Begin { fresh, .. } => (raw::BEGIN, if fresh { raw::FRESH } else { 0 }, b""),
        Event::Bytes(bytes) => (raw::BYTES, 0, bytes),
        Event::Closed(bytes) => (raw::CLOSED, 0, bytes),
        Event::Timeout => (raw::TIMEOUT, 0, b""),
        Event::Cancel => (raw::CANCEL, 0, b""),
        Event::Unknown(kind) => (kind, 0, b""),
    };
    raw::Event {
        size: size_of::<raw::Event>() as u64,
        kind,
        flags,
        now_ns: since_origin(now),
        deadline_ns: deadline.map_or(0, since_origin),
        bytes: bytes.as_ptr(),
        bytes_len: bytes.len() as u64,
        args: args.as_ptr(),
        args_len: args.len() as u64,
    }
}

/// Nanoseconds since this process first asked, and never 0.
fn since_origin(time: Instant) -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let origin = ORIGIN.get_or_init(Instant::now);
    nanos(time.saturating_duration_since(*origin)).saturating_add(1)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The plan that a start told.
fn plan(plugin: &str, reply: Reply, args: Vec<Vec<u8>>) -> Result<StartPlan, PluginError> {
    let refused = |why: String| PluginError::Start { plugin: plugin.to_owned(), why };
    let mut plan = StartPlan { args, ..StartPlan::default() };
    for (name, value) in reply.texts {
        if value.contains('\0') {
            return Err(refused(format!("`{name}` has a NUL in it")));
        }
        match name.as_str() {
            "program" => plan.program = value,
            "env" => plan.env.push(variable(&value).map_err(refused)?),
            "cwd" => plan.cwd = value,
            "user" => plan.user = value,
            "drops_to" => plan.drops_to = value,
            "dir" => plan.dirs.push(value),
            "connect" => plan.connect = value,
            other => log::warn!("plugin `{plugin}`: start told `{other}`, which this version does not know"),
        }
    }
    plan.open_files =
        reply.numbers.iter().find(|told| told.1 == "open_files").map_or(Ok(0), whole).map_err(refused)?;
    if plan.program.is_empty() {
        return Err(refused("start told no `program`".to_owned()));
    }
    Ok(plan)
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`env` is `{text}`, wanted NAME=VALUE")),
    }
}

fn whole((_, name, value): &(NumberKind, String, f64)) -> Result<u64, String> {
    if (0.0..9e15).contains(value) && value.fract() == 0.0 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was just checked"
        )]
        return Ok(*value as u64);
    }
    Err(format!("`{name}` is {value}, wanted a whole number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn create(_: *const raw::Settings, _: *const raw::Sink) -> *mut c_void {
        ptr::dangling_mut::<u64>().cast()
    }

    unsafe extern "C" fn destroy(_: *mut c_void) {}

    unsafe extern "C" fn slow(_: *mut c_void, event: *const raw::Event, _: *const raw::Sink) -> i32 {
        // SAFETY: the host lends the event for this call.
        let event = unsafe { &*event };
        assert!(event.now_ns > 0 && event.deadline_ns > event.now_ns);
        let began = Instant::now();
        while began.elapsed() <= SLOW {
            std::hint::spin_loop();
        }
        raw::DONE
    }

    fn plugin() -> Plugin {
        let text = raw::Str::new("slow");
        let table = raw::Plugin {
            magic: raw::ABI_MAGIC,
            size: size_of::<raw::Plugin>() as u64,
            major: raw::ABI_MAJOR,
            minor: raw::ABI_MINOR,
            least_host_minor: 0,
            flags: 0,
            id: text,
            version: text,
            summary: text,
            section: text,
            key_prefix: text,
            registry_root: text,
            keys: text,
            file_keys: text,
            create: Some(create),
            destroy: Some(destroy),
            start: Some(slow),
            probe: Some(slow),
            stats: Some(slow),
            failover: ptr::null(),
            extension: None,
        };
        let description = Description {
            file: "slow".into(),
            id: "slow".to_owned(),
            version: String::new(),
            abi: (raw::ABI_MAJOR, raw::ABI_MINOR),
            summary: String::new(),
            section: "slow".to_owned(),
            key_prefix: String::new(),
            registry_root: "/slow".to_owned(),
            keys: Vec::new(),
            file_keys: Vec::new(),
        };
        Plugin(Box::leak(Box::new(Loaded::new(description, table, None))))
    }

    #[test]
    fn a_slow_hook_is_logged_once_and_then_counted() {
        let plugin = plugin();
        let mut backend = plugin.create(&[]).unwrap();
        let now = Instant::now();
        let mut reply = Reply::default();
        for _ in 0..3 {
            let event = Event::Begin { fresh: true, args: &[] };
            let step = backend.step(Hook::Probe, event, now, now + SLOW, &mut reply);
            assert_eq!(step, Step::Done);
        }
        let note = |hook| {
            (
                plugin.0.slow[hook as usize].logged_ns.load(Relaxed),
                plugin.0.slow[hook as usize].folded.load(Relaxed),
            )
        };
        assert!(note(Hook::Probe).0 > 0);
        assert_eq!((note(Hook::Probe).1, note(Hook::Stats)), (2, (0, 0)));
    }

    #[test]
    fn every_call_has_its_own_name() {
        for hook in Hook::ALL {
            assert_eq!(Call::NAMES[Call::Step(hook).index()], hook.name());
        }
        let others =
            [Call::Start, Call::Create, Call::Destroy, Call::Extension].map(|call| Call::NAMES[call.index()]);
        assert_eq!(others, ["start", "create", "destroy", "extension"]);
    }
}
