//! `yagent reload`: makes a running agent read its settings again.

use std::{process::ExitCode, time::Duration};

use serde_json::json;

use super::{
    check::print_line,
    client::{Agent, Client, NoAnswer, Outcome},
    eprint_line, exit,
};

/// Settings are read and checked by a thread of the agent, and a disk may be slow.
const LIMIT: Duration = Duration::from_secs(30);

/// Arguments of `yagent reload`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ReloadArgs {
    /// Which agent
    #[command(flatten)]
    pub(super) agent: Agent,
}

/// Reloads: 0 when the settings are in force, 78 when the agent keeps the old ones, 69 when it cannot be asked.
#[must_use]
pub(super) fn reload(args: &ReloadArgs) -> ExitCode {
    match ask(&args.agent) {
        Ok(Outcome { ok: true, message }) => {
            print_line(&message);
            ExitCode::SUCCESS
        }
        Ok(Outcome { ok: false, message }) => {
            eprint_line(&message);
            ExitCode::from(exit::CONFIG)
        }
        Err(e) => {
            eprint_line(&e.to_string());
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}

fn ask(agent: &Agent) -> Result<Outcome, NoAnswer> {
    Client::connect(agent)?.order(&json!({"verb": "reload"}), LIMIT)
}

#[cfg(test)]
mod tests {
    use super::{super::client::tests::agent_that_says, *};

    fn code(answer: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (agent, thread) = agent_that_says(dir.path(), answer);
        let code = reload(&ReloadArgs { agent });
        assert_eq!(thread.join().unwrap(), "{\"verb\":\"reload\"}\n");
        format!("{code:?}")
    }

    #[test]
    fn the_exit_code_tells_what_the_agent_did() {
        let told = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code("{\"ok\":true,\"message\":\"done\"}\n"), told(0));
        assert_eq!(code("{\"ok\":false,\"message\":\"line 3 is wrong\"}\n"), told(exit::CONFIG));
        assert_eq!(code("{\"done\":true}\n"), told(exit::UNAVAILABLE));
        let nobody = Agent { socket: Some("/no/such/socket".into()), config: None };
        assert_eq!(format!("{:?}", reload(&ReloadArgs { agent: nobody })), told(exit::UNAVAILABLE));
    }
}
