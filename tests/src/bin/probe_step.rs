//! What one step of a probe costs through the plugin contract, measured in this process: no socket, no server.
//!
//! usage: `probe_step ENGINE KIND STEPS`, where ENGINE is `memcached` or `redis`, and KIND one of
//! - `probe`: a probe's two steps in turn, its begin and a miss as the answer;
//! - `border`: an event that no version has, which goes to the plugin and comes back;
//! - `floor`: a call of an empty function through a pointer.
//!
//! Prints the nanoseconds a step of the whole run. The plugin is looked for where the agent looks. A run is
//! repeatable in its instructions, so that a counter of instructions can take the difference of two lengths.

use std::{
    env,
    error::Error,
    hint::black_box,
    time::{Duration, Instant},
};

use yagent::plugin::{Backend, Event, Hook, Reply, Step, loader};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What each engine needs to be told of an instance.
const SETTINGS: [(&str, &str); 4] =
    [("program", "/bin/true"), ("port", "11211"), ("maxmem_mb", "64"), ("state_dir", "/nowhere")];

/// The engine's answer to a probe that misses.
fn miss(engine: &str) -> Result<&'static [u8]> {
    match engine {
        "memcached" => Ok(b"END\r\n"),
        "redis" => Ok(b"$-1\r\n"),
        other => Err(format!("no engine `{other}`; there are memcached and redis").into()),
    }
}

fn backend(engine: &str) -> Result<Backend> {
    let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    Ok(loader::load(engine, &loader::search_path(None))?.create(&settings)?)
}

/// One step, which must end as `wanted`.
fn step(
    backend: &mut Backend,
    event: Event<'_>,
    at: Instant,
    reply: &mut Reply,
    wanted: &Step,
) -> Result<()> {
    reply.clear();
    let came = backend.step(Hook::Probe, event, at, at + Duration::from_secs(1), reply);
    if came == *wanted { Ok(()) } else { Err(format!("the step came to {came:?}, wanted {wanted:?}").into()) }
}

fn probe(name: &str, steps: u32) -> Result<Duration> {
    let (mut backend, mut reply, answer) = (backend(name)?, Reply::default(), miss(name)?);
    let begun = Instant::now();
    for _ in 0..steps / 2 {
        let begin = Event::Begin { fresh: false, args: &[] };
        step(&mut backend, begin, begun, &mut reply, &Step::More)?;
        step(&mut backend, Event::Bytes(answer), begun, &mut reply, &Step::Done)?;
    }
    Ok(begun.elapsed())
}

fn border(name: &str, steps: u32) -> Result<Duration> {
    let (mut backend, mut reply) = (backend(name)?, Reply::default());
    let begun = Instant::now();
    for _ in 0..steps {
        step(&mut backend, Event::Unknown(99), begun, &mut reply, &Step::Unsupported)?;
    }
    Ok(begun.elapsed())
}

fn floor(steps: u32) -> Duration {
    fn empty(code: u32) -> u32 {
        code
    }
    let begun = Instant::now();
    for i in 0..steps {
        black_box(black_box(empty as fn(u32) -> u32)(i));
    }
    begun.elapsed()
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [name, kind, steps] = args.as_slice() else {
        return Err("usage: probe_step ENGINE probe|border|floor STEPS".into());
    };
    let steps: u32 = steps.parse().map_err(|why| format!("`{steps}` is no number of steps: {why}"))?;
    let took = match kind.as_str() {
        "probe" => probe(name, steps)?,
        "border" => border(name, steps)?,
        "floor" => floor(steps),
        other => return Err(format!("no kind `{other}`; there are probe, border and floor").into()),
    };
    println!("{:.2}", took.as_nanos() as f64 / f64::from(steps.max(1)));
    Ok(())
}
