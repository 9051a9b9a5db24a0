//! `yagent stop`: ends a running agent, with its instances or without.

use std::{process::ExitCode, time::Duration};

use serde_json::json;

use super::{
    check::print_line,
    client::{Agent, Client, NoAnswer, wait_for_end},
    eprint_line, exit,
};

/// How long the agent may take to say that it has understood.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `yagent stop`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StopArgs {
    /// Which agent
    #[command(flatten)]
    pub(super) agent: Agent,
    /// Stop the instances too; without it they go on serving
    #[arg(long)]
    pub(super) all: bool,
    /// How long to wait for the end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(super) wait: u32,
}

/// Stops: 0 when the agent has ended, 69 when it cannot be asked, refuses or has not ended in time.
#[must_use]
pub(super) fn stop(args: &StopArgs) -> ExitCode {
    match ask_and_wait(args) {
        Ok(Ok(done)) => {
            print_line(&done);
            ExitCode::SUCCESS
        }
        Ok(Err(why)) => {
            eprint_line(&why);
            ExitCode::from(exit::UNAVAILABLE)
        }
        Err(e) => {
            eprint_line(&e.to_string());
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}

fn ask_and_wait(args: &StopArgs) -> Result<Result<String, String>, NoAnswer> {
    let client = Client::connect(&args.agent)?;
    // Before it is asked: afterwards its process may be gone, and another may have its number.
    let process = client.process();
    let outcome = client.order(&json!({"verb": "stop", "all": args.all}), ANSWER_LIMIT)?;
    if !outcome.ok {
        return Ok(Err(outcome.message));
    }
    let Some(process) = process else {
        return Ok(Ok("the agent was asked to stop; its process cannot be seen from here".to_owned()));
    };
    if !wait_for_end(&process, Duration::from_secs(args.wait.into())) {
        return Ok(Err(format!("the agent was asked to stop and still runs after {} s", args.wait)));
    }
    let rest = if args.all { "and so have its instances" } else { "its instances go on serving" };
    Ok(Ok(format!("the agent has stopped, {rest}")))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        process::{Command, Stdio},
        time::Instant,
    };

    use super::{super::client::tests::agent_that_says, *};

    #[test]
    fn a_refusal_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (agent, thread) = agent_that_says(dir.path(), "{\"ok\":false,\"message\":\"not now\"}\n");
        let args = StopArgs { agent, all: true, wait: 60 };
        assert_eq!(ask_and_wait(&args).unwrap(), Err("not now".to_owned()));
        assert_eq!(thread.join().unwrap(), "{\"all\":true,\"verb\":\"stop\"}\n");
    }

    /// The agent of this test is the test itself, which does not end.
    #[test]
    fn an_agent_that_does_not_end_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (agent, thread) = agent_that_says(dir.path(), "{\"ok\":true,\"message\":\"stopping\"}\n");
        let begun = Instant::now();
        let args = StopArgs { agent, all: false, wait: 0 };
        let why = "the agent was asked to stop and still runs after 0 s";
        assert_eq!(ask_and_wait(&args).unwrap(), Err(why.to_owned()));
        assert!(begun.elapsed() < Duration::from_secs(30));
        thread.join().unwrap();
    }

    #[test]
    fn the_end_of_the_agent_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let script = format!(
            "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind('{}')\ns.listen()\nprint('up', flush=True)\n\
             c = s.accept()[0]\nc.recv(100)\nc.sendall(b'{{\"ok\":true}}\\n')\nc.close()\nsys.stdin.read()\n",
            path.display()
        );
        let mut server = Command::new("/usr/bin/python3")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        server.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        let agent = Agent { socket: Some(path), config: None };
        let stdin = server.stdin.take();
        let ended = std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask_and_wait(&StopArgs { agent, all: false, wait: 60 }).unwrap());
            drop(stdin);
            asked.join().unwrap()
        });
        assert_eq!(ended, Ok("the agent has stopped, its instances go on serving".to_owned()));
        assert!(server.wait().unwrap().success());
    }
}
