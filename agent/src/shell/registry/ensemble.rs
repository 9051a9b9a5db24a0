//! The front of the ZooKeeper registry: what the core sees of the session thread and the gate. Copies in, copies out.

use std::{io, sync::Arc, thread};

use super::{
    Change, Identity, Owned, Registry, RegistryEvent, RegistryStatus, Request, SessionFacts,
    gate::{Gate, Upstream},
    hosts::Hosts,
    reconcile::Tree,
    session::Session,
    shared::Shared,
};
use crate::{config::ZookeeperSettings, shell::waker::Waker};

/// A registry in a ZooKeeper ensemble.
#[derive(Debug)]
pub(super) struct Ensemble {
    shared: Arc<Shared>,
    /// Put before every path; empty without one.
    chroot: String,
}

impl Ensemble {
    /// Starts the two threads.
    ///
    /// # Errors
    /// When the system has no descriptor, port or thread left.
    pub(super) fn start(
        settings: &ZookeeperSettings,
        identity: Identity,
        event_loop: Waker,
    ) -> io::Result<Ensemble> {
        let wakeups = Waker::new()?;
        let shared = Arc::new(Shared::new(event_loop, wakeups.clone()));
        let chroot = settings.chroot.trim_end_matches('/').to_owned();
        let root = if chroot.is_empty() { "/".to_owned() } else { chroot.clone() };
        let tree = Tree::new(identity.host_id);
        let session = Session::new(Arc::clone(&shared), tree, root, settings.auth.clone());
        let hosts = Hosts::new(&settings.servers, wakeups.clone());
        let upstream = Upstream::new(Arc::clone(&shared), hosts, settings.session_timeout);
        let gate = Gate::new(Arc::clone(&shared), wakeups, upstream)?;
        thread::Builder::new().name("zk-gate".into()).spawn(move || gate.run())?;
        let spawned = thread::Builder::new().name("zk-session".into()).spawn(move || session.run());
        if spawned.is_err() {
            shared.end();
        }
        spawned?;
        Ok(Ensemble { shared, chroot })
    }

    fn inner(&self, path: &str) -> String {
        inner(&self.chroot, path)
    }

    fn outer(&self, path: String) -> String {
        outer(&self.chroot, path)
    }

    fn inner_change(&self, change: Change) -> Change {
        match change {
            Change::Put { path, node } => Change::Put { path: self.inner(&path), node },
            Change::Remove { path } => Change::Remove { path: self.inner(&path) },
        }
    }
}

impl Registry for Ensemble {
    fn apply(&self, changes: Vec<Change>) {
        self.shared.change(changes.into_iter().map(|change| self.inner_change(change)).collect());
    }

    fn claim(&self, owned: Vec<Owned>) {
        let inner = |owned: Owned| Owned { dir: self.inner(&owned.dir), ..owned };
        self.shared.claim(owned.into_iter().map(inner).collect());
    }

    fn event(&self) -> Option<RegistryEvent> {
        Some(match self.shared.event()? {
            RegistryEvent::Conflict { path, holder } => {
                RegistryEvent::Conflict { path: self.outer(path), holder }
            }
            RegistryEvent::ConflictOver { path } => RegistryEvent::ConflictOver { path: self.outer(path) },
            RegistryEvent::Refused { path, why } => RegistryEvent::Refused { path: self.outer(path), why },
            RegistryEvent::Changed { path } => RegistryEvent::Changed { path: self.outer(path) },
            RegistryEvent::RefusedOver { path } => RegistryEvent::RefusedOver { path: self.outer(path) },
            event => event,
        })
    }

    fn request(&self, token: u64, request: Request) {
        self.shared.request(token, request.map_path(|path| self.inner(&path)));
    }

    fn status(&self) -> RegistryStatus {
        self.shared.status()
    }

    fn facts(&self) -> Option<SessionFacts> {
        self.shared.facts()
    }

    fn close(&self) {
        self.shared.close();
    }

    fn leave(&self) {
        self.shared.leave();
    }

    fn closed(&self) -> bool {
        self.shared.closed()
    }
}

impl Drop for Ensemble {
    /// The threads end by themselves; nobody waits for them.
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A path as the ensemble has it.
fn inner(chroot: &str, path: &str) -> String {
    let below = if path == "/" && !chroot.is_empty() { "" } else { path };
    format!("{chroot}{below}")
}

/// The path that became this one; one that lies elsewhere stays as it is.
fn outer(chroot: &str, path: String) -> String {
    match path.strip_prefix(chroot) {
        Some("") => "/".to_owned(),
        Some(rest) if rest.starts_with('/') => rest.to_owned(),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_back_from_the_ensemble_as_it_went_there() {
        for chroot in ["", "/c", "/c/d"] {
            for path in ["/", "/a", "/a/b", "/c", "/c/a", "/cc", "/c/d/c/d"] {
                let there = inner(chroot, path);
                assert!(there.starts_with(chroot) && (there == "/" || !there.ends_with('/')), "{there}");
                assert_eq!(outer(chroot, there), path, "below {chroot:?}");
            }
        }
        assert_eq!(outer("/c", "/".into()), "/");
        assert_eq!(outer("/c", "/cc".into()), "/cc");
    }
}
