//! The redis backend of yagent: how an instance is started (`start`), whether it answers (`probe`), what it counted
//! (`stats`), and its part in replication (`shard`, `inspect`, `orders`). `conf` reads redis.conf, `resp` the protocol,
//! `trouble` and `script` what keeps a server from obeying. Pure functions over bytes; sockets, clocks and processes are
//! the agent's.

#![forbid(unsafe_code)]

mod conf;
mod info;
mod inspect;
mod orders;
mod probe;
mod resp;
mod script;
mod shard;
mod start;
mod stats;
mod talk;
mod trouble;

use yagent_abi::sdk::{Description, Engine, Event, Plan, Replication, Settings, Sink, Step};

/// One redis instance.
#[derive(Debug)]
pub struct Redis {
    start: start::Start,
    talk: talk::Talk,
    order: orders::Order,
}

impl Engine for Redis {
    const DESCRIPTION: Description = Description {
        id: "redis",
        version: env!("CARGO_PKG_VERSION"),
        summary: "redis 2.8 and later, and what speaks its protocol",
        section: "redis",
        key_prefix: "redis_",
        registry_root: "/redis",
        keys: "redis_conf, redis_args, redis_dir, redis_password, redis_username, redis_run_as",
        file_keys: "redis_conf",
    };

    fn create(settings: &Settings<'_>) -> Result<Self, String> {
        let mut conf = conf::Conf::parse(settings.bytes("redis_conf.content").unwrap_or_default())
            .map_err(|why| format!("`redis_conf`: {why}"))?;
        let args = conf::args(settings.bytes("redis_args").unwrap_or_default())
            .map_err(|why| format!("`redis_args`: {why}"))?;
        conf.take_args(&args);
        shard::check(settings, &conf)?;
        let (start, talk) = (start::Start::new(settings, &conf, args)?, talk::Talk::new(settings, &conf)?);
        if settings.text("peers")?.is_some_and(|peers| !peers.is_empty()) {
            talk.knows(orders::COMMANDS)?;
        }
        Ok(Self { start, talk, order: orders::Order::default() })
    }

    fn start(&mut self, plan: &Plan<'_>) -> Result<(), String> {
        self.start.plan(plan);
        Ok(())
    }

    fn probe(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        probe::step(&mut self.talk, event, sink)
    }

    fn stats(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        stats::step(&mut self.talk, event, sink)
    }
}

impl Replication for Redis {
    fn inspect(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        inspect::step(&mut self.talk, event, sink)
    }

    fn promote(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        orders::promote(&mut self.order, &mut self.talk, event, sink)
    }

    fn follow(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        orders::follow(&mut self.order, &mut self.talk, event, sink)
    }

    fn fence(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        orders::fence(&mut self.order, &mut self.talk, event, sink)
    }

    fn unfence(&mut self, event: Event<'_>, sink: &Sink<'_>) -> Step {
        orders::unfence(&mut self.order, &mut self.talk, event, sink)
    }
}

yagent_abi::export_engine!(Redis, replication);
