//! The memcached backend of yagent: how an instance is started (`args`), whether it answers (`probe`), what it counted
//! (`stats`). Pure functions over bytes; sockets, clocks and processes are the agent's.

#![forbid(unsafe_code)]

mod args;
mod probe;
mod protocol;
mod stats;

use yagent_abi::sdk::{Description, Engine, Event, Plan, Settings, Sink, Step};

/// One memcached instance.
#[derive(Debug)]
pub struct Memcached {
    program: String,
    port: u16,
    maxmem_mb: u64,
    bind: Option<String>,
    args: args::Args,
}

impl Engine for Memcached {
    const DESCRIPTION: Description = Description {
        id: "memcached",
        version: env!("CARGO_PKG_VERSION"),
        summary: "memcached over its text protocol",
        section: "memcached",
        key_prefix: "mc_",
        registry_root: "/ycache",
        keys: "mc_args",
        file_keys: "",
    };

    fn create(settings: &Settings<'_>) -> Result<Self, String> {
        let port = settings.number("port")?;
        Ok(Self {
            program: settings.required("program")?.to_owned(),
            port,
            maxmem_mb: settings.number("maxmem_mb")?,
            bind: settings.text("bind")?.filter(|bind| !bind.is_empty()).map(str::to_owned),
            args: args::Args::parse(settings.bytes("mc_args").unwrap_or_default(), port)
                .map_err(|why| format!("`mc_args`: {why}"))?,
        })
    }

    fn start(&mut self, plan: &Plan<'_>) -> Result<(), String> {
        plan.program(&self.program);
        // Ours come last: of a repeated option memcached takes the last.
        plan.args(&self.args.words);
        plan.args(["-p", &self.port.to_string(), "-m", &self.maxmem_mb.to_string()]);
        match (&self.bind, &self.args.listen) {
            (Some(bind), _) => plan.args(["-l", bind]),
            (None, Some(address)) => plan.connect(address),
            (None, None) => {}
        }
        if let Some(user) = &self.args.user {
            plan.drops_to(user);
        }
        plan.open_files(self.args.connections + args::OTHER_FILES);
        Ok(())
    }

    fn probe(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        probe::step(event, sink)
    }

    fn stats(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        stats::step(event, sink)
    }
}

yagent_abi::export_engine!(Memcached);
