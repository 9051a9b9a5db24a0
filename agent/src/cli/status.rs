//! `yagent status`: shows what a running agent has and how it is.

use std::{fmt::Write as _, io::Write as _, process::ExitCode, time::Duration};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    check::print_line,
    client::{Agent, Client, NoAnswer},
    eprint_line, exit,
};

/// How long the agent may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Arguments of `yagent status`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Which agent
    #[command(flatten)]
    pub(super) agent: Agent,
    /// How to print it
    #[arg(long, value_enum, default_value_t = StatusFormat::Table)]
    pub(super) format: StatusFormat,
}

/// How `yagent status` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum StatusFormat {
    /// Lines and a table for people.
    Table,
    /// The agent's own answer, one JSON object.
    Json,
}

/// Prints the status: 0 when all is up, 3 when something is down (an instance, the registry; a parked port is
/// none, for the next one took its place), 4 when the agent cannot be reached.
#[must_use]
pub(super) fn status(args: &StatusArgs) -> ExitCode {
    match ask(&args.agent) {
        Ok((answer, status)) => {
            match args.format {
                StatusFormat::Json => print_line(answer.trim_end()),
                StatusFormat::Table => print_table(&status),
            }
            if status.is_up() { ExitCode::SUCCESS } else { ExitCode::from(exit::DOWN) }
        }
        Err(e) => {
            eprint_line(&e.to_string());
            ExitCode::from(exit::NOT_REACHABLE)
        }
    }
}

fn ask(agent: &Agent) -> Result<(String, Status), NoAnswer> {
    let client = Client::connect(agent)?;
    let answer = client.ask(&json!({"verb": "status"}), LIMIT)?;
    let status = client.read(&answer)?;
    Ok((answer, status))
}

/// Colours go to terminals alone, and not where `NO_COLOR` is set; anstream sees to it.
fn print_table(status: &Status) {
    let _ = anstream::stdout().lock().write_all(status.text().as_bytes());
}

/// What of the answer is shown. Fields of later versions are left out, missing ones are empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    agent: AgentPart,
    registry: RegistryPart,
    instances: Vec<InstancePart>,
    shards: Vec<ShardPart>,
    parked: Vec<ParkedPart>,
    alerts: Vec<AlertPart>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AgentPart {
    version: String,
    pid: u32,
    config: String,
    ip: String,
    uptime_s: f64,
    rss_bytes: u64,
    log_dropped: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RegistryPart {
    state: String,
    server: String,
    session: String,
    nodes: u64,
    behind: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InstancePart {
    engine: String,
    ip: String,
    port: u16,
    state: String,
    health: Option<String>,
    why: String,
    pid: Option<u32>,
    restarts: u64,
    last_repair_ms: Option<f64>,
    figures: Option<FiguresPart>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FiguresPart {
    keys: u64,
    fill: f64,
    connections: u64,
    windows: serde_json::Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ShardPart {
    id: String,
    sentence: String,
    state: Option<StatePart>,
    hindrances: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StatePart {
    master: String,
    phase: String,
    epoch: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ParkedPart {
    engine: String,
    port: u16,
    why: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AlertPart {
    severity: String,
    summary: String,
    count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Bold,
    Red,
    Yellow,
    Green,
}

impl Colour {
    pub(super) fn paint(self, text: &str) -> String {
        let code = match self {
            Colour::Bold => "1",
            Colour::Red => "31",
            Colour::Yellow => "33",
            Colour::Green => "32",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

impl Status {
    fn is_up(&self) -> bool {
        self.instances.iter().all(InstancePart::is_up) && self.registry.is_up()
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n{}\n", self.agent.line(), self.registry.line());
        if !self.instances.is_empty() {
            text.push_str(&self.instance_table());
        }
        for shard in &self.shards {
            let _ = writeln!(text, "{}", shard.line());
        }
        for parked in &self.parked {
            let line = format!("{} {} is parked: {}", parked.engine, parked.port, plain(&parked.why));
            let _ = writeln!(text, "{}", Colour::Yellow.paint(&line));
        }
        for alert in &self.alerts {
            let line =
                format!("{}: {} (count {})", plain(&alert.severity), plain(&alert.summary), alert.count);
            let colour = if alert.severity == "critical" { Colour::Red } else { Colour::Yellow };
            let _ = writeln!(text, "{}", colour.paint(&line));
        }
        text
    }

    /// Whole rows are painted, after the columns were measured.
    fn instance_table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "engine", "address", "state", "pid", "restarts", "repair", "keys", "fill", "conns", "hit rate",
            "gets/s", "why",
        ]);
        for instance in &self.instances {
            table.add_row(instance.cells());
        }
        for column in 3..11 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let colours = std::iter::once(Colour::Bold).chain(self.instances.iter().map(InstancePart::colour));
        let lines = table.lines().zip(colours).map(|(line, colour)| colour.paint(line.trim_end()) + "\n");
        lines.collect()
    }
}

impl AgentPart {
    fn line(&self) -> String {
        let mut line = format!(
            "yagent {}, pid {}, on {}, up {}, {:.1} MiB, {}",
            self.version,
            self.pid,
            self.ip,
            duration(self.uptime_s),
            self.rss_bytes as f64 / f64::from(1 << 20),
            self.config
        );
        if self.log_dropped > 0 {
            let _ = write!(line, ", {} log lines dropped", self.log_dropped);
        }
        Colour::Bold.paint(&plain(&line))
    }
}

impl RegistryPart {
    fn is_up(&self) -> bool {
        matches!(self.state.as_str(), "connected" | "memory")
    }

    fn line(&self) -> String {
        let mut line = format!("registry {}", self.state);
        if !self.server.is_empty() {
            let _ = write!(line, ", {}", self.server);
        }
        if !self.session.is_empty() {
            let _ = write!(line, ", session {}", self.session);
        }
        let _ = write!(line, ", {} nodes, {} to write", self.nodes, self.behind);
        let colour = if self.is_up() { Colour::Green } else { Colour::Red };
        colour.paint(&plain(&line))
    }
}

impl ShardPart {
    fn line(&self) -> String {
        let led = self.state.as_ref().filter(|state| state.phase == "done");
        let (master, colour) = match led {
            Some(state) if self.hindrances.is_empty() => (state.told(), Colour::Green),
            Some(state) => (state.told(), Colour::Yellow),
            None => ("no master".to_owned(), Colour::Red),
        };
        colour.paint(&plain(&format!("shard {}, {master}: {}", self.id, self.sentence)))
    }
}

impl StatePart {
    fn told(&self) -> String {
        format!("master {}, epoch {}", self.master, self.epoch)
    }
}

impl InstancePart {
    /// One that missed a probe is up until it is found to hang.
    fn is_up(&self) -> bool {
        matches!(self.state.as_str(), "up" | "suspect")
    }

    fn colour(&self) -> Colour {
        match (self.state.as_str(), self.health.as_deref()) {
            ("up", Some("serving") | None) => Colour::Green,
            ("up" | "suspect" | "starting" | "planned", _) => Colour::Yellow,
            _ => Colour::Red,
        }
    }

    fn cells(&self) -> Vec<Cell> {
        let figure = |get: &dyn Fn(&FiguresPart) -> String| self.figures.as_ref().map_or("-".to_owned(), get);
        let window = |name: &'static str| move |f: &FiguresPart| f.shortest(name);
        let state = match self.health.as_deref() {
            Some(health) if health != "serving" && self.is_up() => format!("{} ({health})", self.state),
            _ => self.state.clone(),
        };
        let texts = [
            plain(&self.engine),
            format!("{}:{}", plain(&self.ip), self.port),
            plain(&state),
            self.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            self.restarts.to_string(),
            self.last_repair_ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms")),
            figure(&|f| f.keys.to_string()),
            figure(&|f| format!("{:.1} %", f.fill * 100.0)),
            figure(&|f| f.connections.to_string()),
            figure(&|f| {
                window("hit_rate")(f).map_or("-".to_owned(), |rate| format!("{:.1} %", rate * 100.0))
            }),
            figure(&|f| window("gets_per_s")(f).map_or("-".to_owned(), |rate| format!("{rate:.1}"))),
            plain(&self.why),
        ];
        texts.into_iter().map(Cell::new_owned).collect()
    }
}

impl FiguresPart {
    /// A figure of the shortest window: the nearest to now.
    fn shortest(&self, name: &str) -> Option<f64> {
        let seconds = |window: &&String| window.parse::<u64>().unwrap_or(u64::MAX);
        let shortest = self.windows.keys().min_by_key(seconds)?;
        self.windows[shortest].get(name)?.as_f64()
    }
}

/// Servers had a say in some of these texts; none may move the cursor or break a row.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn duration(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::client::tests::agent_that_says, *};

    fn answer() -> Value {
        json!({
            "agent": {"version": "0.1.0", "pid": 7, "config": "/etc/yagent/yagent.ini", "ip": "10.0.0.1",
                "uptime_s": 93784.2, "since_ms": 0, "rss_bytes": 5242880, "log_dropped": 2},
            "registry": {"state": "connected", "server": "127.0.0.1:2181", "session": "0x1", "nodes": 20, "behind": 0},
            "instances": [
                {"engine": "memcached", "ip": "10.0.0.1", "port": 11211, "state": "up", "health": "serving",
                 "why": "", "pid": 123, "restarts": 0, "last_repair_ms": null, "version": "1.6.18",
                 "figures": {"keys": 10, "fill": 0.5, "connections": 3, "windows": {
                    "3600": {"hit_rate": 0.1, "gets_per_s": 1.0}, "60": {"hit_rate": 0.9, "gets_per_s": 12.34}}}},
                {"engine": "redis", "ip": "10.0.0.1", "port": 16379, "state": "up", "health": "loading",
                 "why": "it\nreads \u{1b}[31mits data", "pid": 124, "restarts": 3, "last_repair_ms": 12.6,
                 "figures": null}
            ],
            "shards": [{"id": "10.0.0.1:16379", "sentence": "it leads", "hindrances": [],
                "state": {"epoch": 7, "master": "10.0.0.1:16379", "phase": "done"}}],
            "parked": [],
            "alerts": [{"key": "k", "severity": "critical", "state": "firing", "summary": "it hangs", "count": 4}]
        })
    }

    fn parsed(answer: Value) -> Status {
        serde_json::from_value(answer).unwrap()
    }

    fn without_colours(text: &str) -> String {
        let mut plain = text.to_owned();
        for code in ["0", "1", "31", "32", "33"] {
            plain = plain.replace(&format!("\x1b[{code}m"), "");
        }
        plain
    }

    #[test]
    fn a_row_for_each_instance() {
        let text = without_colours(&parsed(answer()).text());
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            text.lines().next().unwrap(),
            "yagent 0.1.0, pid 7, on 10.0.0.1, up 1 d 2 h, 5.0 MiB, /etc/yagent/yagent.ini, 2 log lines dropped"
        );
        assert_eq!(
            lines[1].join(" "),
            "registry connected, 127.0.0.1:2181, session 0x1, 20 nodes, 0 to write"
        );
        assert_eq!(lines[3].join(" "), "memcached 10.0.0.1:11211 up 123 0 - 10 50.0 % 3 90.0 % 12.3");
        assert_eq!(
            lines[4].join(" "),
            "redis 10.0.0.1:16379 up (loading) 124 3 13 ms - - - - - it reads [31mits data"
        );
        assert_eq!(lines[5].join(" "), "shard 10.0.0.1:16379, master 10.0.0.1:16379, epoch 7: it leads");
        assert_eq!(text.lines().last().unwrap(), "critical: it hangs (count 4)");
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn columns_are_straight() {
        let text = without_colours(&parsed(answer()).text());
        let at = |line: usize, word: &str| text.lines().nth(line).unwrap().find(word).unwrap();
        assert_eq!(at(2, "address"), at(3, "10.0.0.1"));
        assert_eq!(at(3, "10.0.0.1"), at(4, "10.0.0.1"));
        assert_eq!(at(2, "state"), at(4, "up (loading)"));
    }

    #[test]
    fn down_is_what_does_not_serve() {
        let with = |change: &dyn Fn(&mut Value)| {
            let mut answer = answer();
            change(&mut answer);
            parsed(answer).is_up()
        };
        assert!(with(&|_| {}));
        assert!(with(&|a| a["registry"]["state"] = json!("memory")));
        assert!(with(&|a| a["instances"][0]["state"] = json!("suspect")));
        for state in ["planned", "starting", "killed", "backoff", "stopping", "stopped", "unheard of"] {
            assert!(!with(&|a| a["instances"][0]["state"] = json!(state)), "{state}");
        }
        assert!(!with(&|a| a["registry"]["state"] = json!("lost")));
        assert!(with(&|a| a["parked"] = json!([{"engine": "redis", "port": 1, "why": "taken"}])));
    }

    #[test]
    fn the_exit_code_tells_it() {
        let told = |code: u8| format!("{:?}", ExitCode::from(code));
        let code = |answer: &str| {
            let dir = tempfile::tempdir().unwrap();
            let (agent, thread) = agent_that_says(dir.path(), answer);
            let code = status(&StatusArgs { agent, format: StatusFormat::Json });
            assert_eq!(thread.join().unwrap(), "{\"verb\":\"status\"}\n");
            format!("{code:?}")
        };
        assert_eq!(code(&format!("{}\n", answer())), told(0));
        assert_eq!(code("{\"registry\":{\"state\":\"lost\"}}\n"), told(exit::DOWN));
        assert_eq!(code("[1]\n"), told(exit::NOT_REACHABLE));
        assert_eq!(code(""), told(exit::NOT_REACHABLE));
    }

    #[test]
    fn durations_are_for_people() {
        let shown = [0.4, 61.0, 7265.0, 200_000.0].map(duration);
        assert_eq!(shown, ["0 s", "1 min 1 s", "2 h 1 min", "2 d 7 h"]);
    }
}
