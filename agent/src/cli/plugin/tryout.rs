//! `yagent plugin try`: a plugin's hooks against a live server, with the conversation printed.
//!
//! It waits for the server as the agent never would: one connection, blocking, with a deadline.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    process::ExitCode,
    time::{Duration, Instant},
};

use super::subject::{Subject, SubjectArgs};
use crate::{
    cli::{check::print_line, eprint_line, exit},
    plugin::{Backend, Event, Hook, NumberKind, Reply, Step},
};

/// How long a conversation may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Of a line of the conversation, this many bytes are printed.
const SHOWN: usize = 200;

/// Arguments of `yagent plugin try`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct TryArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Where the server is
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port that it listens on
    #[arg(long)]
    port: u16,
}

/// 0 when every hook came to a result, 69 otherwise.
pub(super) fn tryout(args: &TryArgs) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprint_line(&why);
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}

fn run(args: &TryArgs) -> Result<(), String> {
    let subject = Subject::load(&args.subject, &args.host, args.port).map_err(|e| e.to_string())?;
    let mut backend = subject.create().map_err(|e| e.to_string())?;
    print_plan(&mut backend)?;
    let address = resolve(&args.host, args.port)?;
    let stream = TcpStream::connect_timeout(&address, LIMIT);
    let mut stream = stream.map_err(|e| format!("cannot connect to {address}: {e}"))?;
    let replicated = backend.has_failover();
    // As in the agent, hooks share the connection: only the first finds it fresh.
    for (hook, fresh) in [(Hook::Probe, true), (Hook::Stats, false), (Hook::Inspect, false)] {
        if hook != Hook::Inspect || replicated {
            print_line(&format!("== {}", hook.name()));
            converse(&mut backend, hook, fresh, &mut stream)?;
        }
    }
    Ok(())
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let found = (host, port).to_socket_addrs().map_err(|e| format!("cannot resolve {host}: {e}"))?;
    found.into_iter().next().ok_or_else(|| format!("{host} has no address"))
}

fn print_plan(backend: &mut Backend) -> Result<(), String> {
    let plan = backend.start().map_err(|e| e.to_string())?;
    print_line("== start");
    let args: Vec<String> = plan.args.iter().map(|arg| format!(" {}", arg.escape_ascii())).collect();
    print_line(&format!("{}{}", plan.program, args.concat()));
    plan.env.iter().for_each(|(name, value)| print_line(&format!("env {name}={value}")));
    plan.dirs.iter().for_each(|dir| print_line(&format!("dir {dir}")));
    let named =
        [("cwd", &plan.cwd), ("user", &plan.user), ("drops_to", &plan.drops_to), ("connect", &plan.connect)];
    named
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .for_each(|(name, value)| print_line(&format!("{name} {value}")));
    Ok(())
}

fn converse(backend: &mut Backend, hook: Hook, fresh: bool, stream: &mut TcpStream) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT;
    let (mut reply, mut received) = (Reply::default(), Vec::new());
    let mut step =
        backend.step(hook, Event::Begin { fresh, args: &[] }, Instant::now(), deadline, &mut reply);
    loop {
        if step != Step::More {
            return result(hook, &step, &reply);
        }
        if !reply.send.is_empty() {
            print_bytes('>', &reply.send);
            stream.write_all(&reply.send).map_err(|e| format!("cannot send: {e}"))?;
            reply.send.clear();
            received.clear();
        }
        step = listen(backend, hook, &mut received, &mut reply, stream, deadline)?;
    }
}

fn listen(
    backend: &mut Backend,
    hook: Hook,
    received: &mut Vec<u8>,
    reply: &mut Reply,
    stream: &mut TcpStream,
    deadline: Instant,
) -> Result<Step, String> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left)).map_err(|e| format!("cannot set a timeout: {e}"))?;
    let mut buffer = [0; 16 << 10];
    let event = match stream.read(&mut buffer) {
        Ok(0) => Event::Closed(received),
        Ok(len) => {
            print_bytes('<', &buffer[..len]);
            received.extend_from_slice(&buffer[..len]);
            Event::Bytes(received)
        }
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            return Err(format!("{}: the server did not answer within {} s", hook.name(), LIMIT.as_secs()));
        }
        Err(e) => return Err(format!("{}: cannot receive: {e}", hook.name())),
    };
    let closed = matches!(event, Event::Closed(_));
    let step = backend.step(hook, event, Instant::now(), deadline, reply);
    if closed && step == Step::More {
        return Err(format!("{}: the server closed the connection and the hook waits on", hook.name()));
    }
    Ok(step)
}

fn print_bytes(direction: char, bytes: &[u8]) {
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let shown = line.get(..SHOWN).unwrap_or(line).escape_ascii();
        let dots = if line.len() > SHOWN { "…" } else { "" };
        print_line(&format!("{direction} {shown}{dots}"));
    }
}

fn result(hook: Hook, step: &Step, reply: &Reply) -> Result<(), String> {
    match step {
        Step::Done => {}
        Step::Unsupported => {
            print_line("unsupported");
            return Ok(());
        }
        Step::Failed(why) => return Err(format!("{} failed: {why}", hook.name())),
        Step::Broken(why) => return Err(format!("{} is broken: {why}", hook.name())),
        Step::More => return Ok(()),
    }
    if let Some((health, why)) = &reply.health {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        print_line(&format!("health {}{why}", format!("{health:?}").to_lowercase()));
    }
    for (kind, name, value) in &reply.numbers {
        let kind = if *kind == NumberKind::Counter { "counter" } else { "gauge" };
        print_line(&format!("{kind} {name} {value}"));
    }
    reply.texts.iter().for_each(|(name, value)| print_line(&format!("text {name} {value}")));
    Ok(())
}
