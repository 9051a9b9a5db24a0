//! What people ask for: new settings, and what comes through the control socket.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{
        alerts::Origin,
        control::Request,
        poll::{Ready, Token},
        status,
    },
    EventLoop, Loaded, RELOAD_FAILED, Reloaded, check_engine, now,
};
use crate::{
    config::Settings,
    core::{Event, alert::Severity, failover::Wish},
};

impl EventLoop {
    // Reload

    pub(super) fn reload(&mut self, client: Option<Token>) {
        if let Some(clients) = &mut self.reloading {
            clients.extend(client);
            return;
        }
        self.reloading = Some(client.into_iter().collect());
        self.notifier.reloading();
        let (loader, sender, waker) = (self.loader.clone(), self.reloads.0.clone(), self.waker.clone());
        let work = move || {
            let _ = sender.send(loader());
            waker.wake();
        };
        if let Err(e) = thread::Builder::new().name("reload".to_owned()).spawn(work) {
            self.reloaded(Err(format!("cannot start a thread: {e}")));
        }
    }

    pub(super) fn reloaded(&mut self, loaded: Reloaded) {
        self.notifier.ready();
        let clients = self.reloading.take().unwrap_or_default();
        let answer = match loaded.and_then(|loaded| self.accept(loaded)) {
            Ok(loaded) => {
                self.apply(loaded);
                let summary = "the settings were read again".to_owned();
                self.events.push_back(Event::TroubleOver { key: RELOAD_FAILED.to_owned(), summary });
                serde_json::json!({"ok": true, "message": "the settings were read again"})
            }
            Err(why) => {
                let summary = format!("the settings stay as they were: {why}");
                let (key, severity) = (RELOAD_FAILED.to_owned(), Severity::Warning);
                self.events.push_back(Event::Trouble { key, severity, summary });
                serde_json::json!({"ok": false, "message": why})
            }
        };
        for token in clients {
            self.control.answer(&mut self.poll, token, Instant::now(), answer.to_string());
        }
    }

    /// New settings must suit the plugins before anything is changed.
    fn accept(&self, loaded: Loaded) -> Reloaded {
        for engine in &loaded.settings.engines {
            // One that is in quarantine has none.
            let Some(plugin) = loaded.plugins.get(&engine.engine) else { continue };
            check_engine(plugin, engine, &loaded.settings, self.host)
                .map_err(|why| format!("{}: [{}]: {why}", loaded.settings.file.display(), engine.engine))?;
        }
        Ok(loaded)
    }

    fn apply(&mut self, loaded: Loaded) {
        let Loaded { settings, plugins, plan, quarantined } = loaded;
        if settings.state_dir != self.settings.state_dir
            || settings.registry != self.settings.registry
            || settings.localip != self.settings.localip
            || settings.watchdog_limit != self.settings.watchdog_limit
            || settings.log.file != self.settings.log.file
        {
            log::warn!(
                "state_dir, zoo_svr, zoo_auth, zoo_session_timeout, localip, watchdog_limit and log_file take effect \
                 when the agent is started again"
            );
        }
        self.log.set_level(settings.log.level);
        let host = self.host.to_string();
        self.alerts.configure(&settings.alerts, Origin { host, group: settings.group.clone() });
        let (registry, localip) = (self.settings.registry.clone(), self.settings.localip);
        let state_dir: PathBuf = self.settings.state_dir.clone();
        self.settings = Settings { registry, localip, state_dir, ..settings };
        self.plugins = plugins;
        self.events.extend(quarantine_news(&self.quarantined, &quarantined));
        self.quarantined = quarantined;
        self.renew_orders();
        log::info!("the settings were read again from {}", self.settings.file.display());
        self.events.push_back(Event::Configure(Box::new(plan)));
    }

    // Control

    pub(super) fn serve(&mut self, ready: Ready) {
        self.watchdog.beat(self.activities.answers);
        let Some(request) = self.control.ready(&mut self.poll, ready) else { return };
        let answer = match request {
            Ok(Request::Status) => self.status(),
            Ok(Request::Stop { all }) => {
                log::info!(
                    "a control client asks the agent to end{}",
                    if all { " with all instances" } else { "" }
                );
                self.events.push_back(Event::Stop { all });
                serde_json::json!({"ok": true, "message": "stopping"}).to_string()
            }
            Ok(Request::Reload) => {
                self.control.wait(ready.token);
                return self.reload(Some(ready.token));
            }
            Ok(Request::Shards { shard }) => status::shards(&self.core, now(), shard.as_deref()),
            Ok(Request::Switchover { shard, to, id }) => self.wish(&shard, Wish::Switchover { to, id }),
            Ok(Request::Failover { shard, to, id }) => self.wish(&shard, Wish::Force { to, id }),
            Ok(Request::Pause { shard, for_ms, reason, host }) => {
                self.wish(&shard, Wish::Pause { long: Duration::from_millis(for_ms), reason, host })
            }
            Ok(Request::Resume { shard, host }) => self.wish(&shard, Wish::Resume { host }),
            Err(why) => serde_json::json!({"ok": false, "message": why}).to_string(),
        };
        self.control.answer(&mut self.poll, ready.token, Instant::now(), answer);
    }

    /// What an operator wishes of a shard: its member here refuses it, or sees to it.
    fn wish(&mut self, shard: &str, wish: Wish) -> String {
        log::info!("a control client wishes of shard {shard}: {wish:?}");
        let (taken, actions) = self.core.wish(now(), shard, wish);
        for action in actions {
            self.act(action);
        }
        let (ok, message) = taken.map_or_else(|why| (false, why), |()| (true, "the shard has it".to_owned()));
        serde_json::json!({"ok": ok, "message": message}).to_string()
    }

    fn status(&self) -> String {
        let agent = status::Agent {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            config: self.settings.file.display().to_string(),
            ip: self.host.to_string(),
            since_ms: self.started.unix_ms,
            uptime_s: self.started.at.elapsed().as_secs_f64(),
            rss_bytes: status::resident(),
            log_dropped: self.log.dropped(),
        };
        status::report(agent, self.registry.status(), &self.core, now())
    }
}

/// What to tell of plugins that came into quarantine, or out of it.
pub(super) fn quarantine_news(
    before: &HashMap<String, String>,
    now: &HashMap<String, String>,
) -> VecDeque<Event> {
    let key = |engine: &String| format!("plugin-quarantined/{engine}");
    let over = before.keys().filter(|engine| !now.contains_key(*engine)).map(|engine| Event::TroubleOver {
        key: key(engine),
        summary: format!("plugin `{engine}` is loaded again"),
    });
    let fires = now.iter().map(|(engine, why)| Event::Trouble {
        key: key(engine),
        severity: Severity::Critical,
        summary: format!("{why}; its instances are left as they are"),
    });
    over.chain(fires).collect()
}
