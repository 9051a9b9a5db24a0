//! An engine in Rust, over the safe SDK. The server is `server.py`.

use yagent_abi::sdk::{Description, Engine, Event, Flow, Health, Plan, Settings, Sink, Step};

struct Minicache {
    program: String,
    port: u16,
    bind: String,
    megabytes: u64,
}

impl Engine for Minicache {
    const DESCRIPTION: Description = Description {
        id: "org.example.minicache",
        version: "0.1.0",
        summary: "minicache",
        section: "minicache",
        key_prefix: "minicache_",
        registry_root: "/minicache",
        keys: "",
        file_keys: "",
    };

    fn create(settings: &Settings<'_>) -> Result<Self, String> {
        Ok(Self {
            program: settings.required("program")?.to_owned(),
            port: settings.number("port")?,
            bind: settings.text("bind")?.unwrap_or_default().to_owned(),
            megabytes: settings.number("maxmem_mb")?,
        })
    }

    fn start(&mut self, plan: &Plan<'_>) -> Result<(), String> {
        plan.program(&self.program);
        plan.args(["--port", &self.port.to_string(), "--megabytes", &self.megabytes.to_string()]);
        if !self.bind.is_empty() {
            plan.args(["--bind", &self.bind]);
        }
        Ok(())
    }

    fn probe(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        let bytes = match event {
            Event::Begin(_) => {
                sink.send(b"get yagent:probe\n");
                return Ok(Flow::More);
            }
            Event::Bytes(bytes) => bytes,
            other => return Err(other.refusal()),
        };
        match whole_lines(bytes).next() {
            None => return Ok(Flow::More),
            Some(b"none") => sink.health(Health::Serving, ""),
            Some(line) if line.starts_with(b"value ") => sink.health(Health::Serving, ""),
            Some(b"full") => sink.health(Health::Full, "out of memory"),
            Some(_) => sink.health(Health::Wrong, "this is no minicache"),
        }
        Ok(Flow::Done)
    }

    fn stats(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        let bytes = match event {
            Event::Begin(_) => {
                sink.send(b"stats\n");
                return Ok(Flow::More);
            }
            Event::Bytes(bytes) => bytes,
            other => return Err(other.refusal()),
        };
        if !whole_lines(bytes).any(|line| line == b"end") {
            return Ok(Flow::More);
        }
        for line in whole_lines(bytes).take_while(|line| *line != b"end") {
            figure(line, sink).ok_or("a line is no NAME VALUE")?;
        }
        Ok(Flow::Done)
    }
}

/// The lines that are there with their end.
fn whole_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.filter_map(|line| line.strip_suffix(b"\n"))
}

/// One line of the statistics: NAME VALUE.
fn figure(line: &[u8], sink: &Sink<'_>) -> Option<()> {
    let (name, value) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    match name {
        "version" => sink.text(name, value),
        "gets" | "hits" | "sets" => sink.counter(name, number(value)?),
        _ => sink.gauge(name, number(value)?),
    }
    Some(())
}

fn number(text: &str) -> Option<f64> {
    let digits = !text.is_empty() && text.len() < 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

yagent_abi::export_engine!(Minicache);

#[cfg(test)]
mod tests {
    use super::Minicache;
    use yagent_abi::testing::{Harness, Hook, Input, Outcome};

    fn engine() -> Harness {
        let settings = [("program", "/usr/bin/minicache"), ("port", "4711"), ("maxmem_mb", "64")];
        Harness::new::<Minicache>(&settings.map(|(name, value)| (name, value.as_bytes()))).unwrap()
    }

    #[test]
    fn the_port_and_the_memory_are_told() {
        let plan = engine().plan().unwrap();
        assert_eq!(plan.texts("argv"), ["--port", "4711", "--megabytes", "64"]);
    }

    #[test]
    fn a_miss_is_an_answer() {
        let mut engine = engine();
        assert_eq!(engine.step(Hook::Probe, Input::Begin { fresh: true, args: &[] }).0, Outcome::More);
        let (outcome, told) = engine.step(Hook::Probe, Input::Bytes(b"none\n"));
        assert_eq!((outcome, told.health), (Outcome::Done, Some((1, String::new()))));
    }

    #[test]
    fn figures_are_the_same_however_the_answer_is_cut() {
        engine().agree_however_cut(Hook::Stats, &[], b"gets 12\nkeys 2\nversion 1.0\nend\n").unwrap();
    }
}
