//! An agent of a demo: a process of its own, as in real life, asked through its control socket.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Status;
use crate::{
    cli::client::{Agent, Client, wait_for_end},
    shell::control::SOCKET_NAME,
};

/// How long an answer of the agent may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long the agent may take to end all instances.
const END_LIMIT: Duration = Duration::from_secs(15);

/// A running agent.
pub(super) struct Process {
    dir: PathBuf,
    child: Child,
}

impl Process {
    /// Starts one with this configuration in this directory, which is its `state_dir`.
    pub(super) fn start(dir: &Path, configuration: &str) -> Result<Process, String> {
        let ini = dir.join("yagent.ini");
        fs::write(&ini, configuration).map_err(|e| format!("cannot write {}: {e}", ini.display()))?;
        let log = dir.join("agent.log");
        let output = fs::File::create(&log).map_err(|e| format!("cannot write {}: {e}", log.display()))?;
        let program = env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let mut command = Command::new(program);
        command.arg("run").arg("-c").arg(&ini).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        // ctrl-c at the terminal is for the demo; it ends the agent itself.
        command.process_group(0);
        let child = command.spawn().map_err(|e| format!("cannot start the agent: {e}"))?;
        Ok(Process { dir: dir.to_owned(), child })
    }

    fn client(&self) -> Result<Client, String> {
        let agent = Agent { config: None, socket: Some(self.dir.join(SOCKET_NAME)) };
        Client::connect(&agent).map_err(|e| e.to_string())
    }

    /// Asks; the verb says for what.
    pub(super) fn ask<T: DeserializeOwned>(&mut self, verb: &str) -> Result<T, String> {
        let client = self.client().map_err(|e| self.why_gone().unwrap_or(e))?;
        let answer = client.ask(&json!({"verb": verb}), ANSWER_LIMIT).map_err(|e| e.to_string())?;
        client.read(&answer).map_err(|e| e.to_string())
    }

    /// What a dead agent last said.
    pub(super) fn why_gone(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        let log = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
        Some(format!("the agent ended ({status}): {}", log.lines().last().unwrap_or("without a word")))
    }

    /// Waits until it can be asked: one that has only begun has no socket yet.
    fn wait_socket(&mut self) {
        let limit = Instant::now() + ANSWER_LIMIT;
        while self.client().is_err() && self.why_gone().is_none() && Instant::now() < limit {
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Ends the agent and all its caches.
    pub(super) fn end(mut self) -> Result<(), String> {
        self.wait_socket();
        let pids = self
            .ask::<Status>("status")
            .map(|status| status.instances.iter().filter_map(|i| i.pid).collect::<Vec<_>>());
        let ended = self.end_politely();
        if ended.is_err() {
            let _ = self.child.kill();
            pids.unwrap_or_default().into_iter().filter_map(|pid| Pid::from_raw(pid.cast_signed())).for_each(
                |pid| {
                    let _ = kill_process(pid, Signal::KILL);
                },
            );
        }
        let _ = self.child.wait();
        ended
    }

    fn end_politely(&mut self) -> Result<(), String> {
        let client = self.client()?;
        let agent = client.process().ok_or("the agent cannot be seen")?;
        let answer =
            client.order(&json!({"verb": "stop", "all": true}), ANSWER_LIMIT).map_err(|e| e.to_string())?;
        if !answer.ok || !wait_for_end(&agent, END_LIMIT) {
            return Err(format!("the agent did not end its caches: {}", answer.message));
        }
        Ok(())
    }
}

/// A program by the search path, and where daemons live although users don't look there.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders =
        env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into(), "/usr/local/bin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}
