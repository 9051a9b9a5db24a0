//! Plugins that broke the agent again and again, and are not loaded until an operator says so.
//!
//! The evidence is the crash marks (`watchdog`); the verdict is a small file for each engine in
//! `<state_dir>/quarantine`, so that it outlives the hour that it came from. `yagent plugin trust NAME` replaces it by the
//! operator's word, which counts only what happens after it. What becomes of the engine's instances is the core's part.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    ports,
    watchdog::{CrashMark, crash_marks},
};

/// So many marks make a plugin one that is not loaded,
const MARKS: usize = 3;
/// when they fall within this many seconds.
const WITHIN: u64 = 3600;

/// Where crash marks are kept.
#[must_use]
pub fn crash_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("crashes")
}

/// What is known of an engine's plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It is not loaded: why.
    Quarantined(String),
    /// An operator trusts it, since this second of 1970.
    Trusted(u64),
}

/// The verdicts of one state directory.
#[derive(Clone, Debug)]
pub struct Quarantine {
    state_dir: PathBuf,
}

impl Quarantine {
    /// Those below `state_dir`.
    #[must_use]
    pub fn of(state_dir: &Path) -> Quarantine {
        Quarantine { state_dir: state_dir.to_owned() }
    }

    /// Why the plugin of `engine` is not loaded; `None` where it is. Marks that can't be read are told and not counted.
    #[must_use]
    pub fn why(&self, engine: &str) -> Option<String> {
        let since = match self.verdict(engine) {
            Some(Verdict::Quarantined(why)) => return Some(why),
            Some(Verdict::Trusted(since)) => since,
            None => 0,
        };
        let dir = crash_dir(&self.state_dir);
        let marks = crash_marks(&dir).unwrap_or_else(|e| {
            log::warn!("cannot read crash marks in {}: {e}", dir.display());
            Vec::new()
        });
        judge(engine, &marks, since, now())
    }

    /// Writes down that the plugin is not loaded, so that time alone does not change it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn keep(&self, engine: &str, why: &str) -> io::Result<()> {
        match self.verdict(engine) {
            Some(Verdict::Quarantined(_)) => Ok(()),
            _ => self.write(engine, &Verdict::Quarantined(why.to_owned())),
        }
    }

    /// The operator's word that the plugin is to be loaded again; why it was not, if it was not.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn trust(&self, engine: &str) -> io::Result<Option<String>> {
        let why = self.why(engine);
        self.write(engine, &Verdict::Trusted(now()))?;
        Ok(why)
    }

    fn file(&self, engine: &str) -> PathBuf {
        self.state_dir.join("quarantine").join(format!("{engine}.json"))
    }

    fn verdict(&self, engine: &str) -> Option<Verdict> {
        serde_json::from_slice(&fs::read(self.file(engine)).ok()?).ok()
    }

    fn write(&self, engine: &str, verdict: &Verdict) -> io::Result<()> {
        let bytes = serde_json::to_vec(verdict).map_err(io::Error::from)?;
        ports::replace(&self.file(engine), &bytes, true)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The verdict on marks, the oldest first: the last ones count that fell close together, unless they are old.
fn judge(engine: &str, marks: &[CrashMark], since: u64, now: u64) -> Option<String> {
    let of_it = |mark: &&CrashMark| mark.plugin.as_deref() == Some(engine) && mark.at_unix > since;
    let mine: Vec<&CrashMark> = marks.iter().filter(of_it).collect();
    let (first, last) = (mine.get(mine.len().checked_sub(MARKS)?)?, mine.last()?);
    let close = last.at_unix - first.at_unix <= WITHIN && now.saturating_sub(last.at_unix) <= WITHIN;
    let hook = last.hook.as_deref().unwrap_or("unknown");
    close.then(|| {
        format!(
            "plugin `{engine}` is in quarantine: it broke the agent {MARKS} times within an hour, last in {hook}; \
             `yagent plugin trust {engine}` ends it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(plugin: &str, at_unix: u64) -> CrashMark {
        CrashMark {
            at_unix,
            activity: String::new(),
            plugin: Some(plugin.into()),
            hook: Some("stats".into()),
        }
    }

    #[test]
    fn three_marks_within_an_hour_are_too_many() {
        let told = |at: &[u64], since, now| {
            let mut marks: Vec<CrashMark> = at.iter().map(|at| mark("odd", *at)).collect();
            marks.insert(1, mark("other", 110));
            judge("odd", &marks, since, now).is_some()
        };
        assert!(told(&[100, 200, 300], 0, 300));
        assert!(told(&[100, 200, 3700], 0, 3700));
        assert!(!told(&[100, 200], 0, 300));
        assert!(!told(&[100, 200, 3701], 0, 3701), "more than an hour from first to last");
        assert!(!told(&[100, 200, 300], 0, 3901), "all that is long ago");
        assert!(!told(&[100, 200, 300], 100, 300), "what an operator knew of does not count");
        assert!(told(&[100, 200, 300, 400], 100, 400));
        assert!(told(&[1, 5000, 5001, 5002], 0, 5002));
    }

    #[test]
    fn the_verdict_stays_until_an_operator_trusts_the_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::of(dir.path());
        assert_eq!(quarantine.why("odd"), None);
        let crashes = crash_dir(dir.path());
        fs::create_dir(&crashes).unwrap();
        for i in 0..3 {
            let text = "activity: in plugin odd, hook stats\nplugin: odd\nhook: stats\n";
            fs::write(crashes.join(format!("crash-{}-{i}.txt", now())), text).unwrap();
        }
        let why = quarantine.why("odd").unwrap();
        assert_eq!(
            why,
            "plugin `odd` is in quarantine: it broke the agent 3 times within an hour, last in stats; `yagent plugin \
             trust odd` ends it"
        );
        quarantine.keep("odd", &why).unwrap();
        fs::remove_dir_all(&crashes).unwrap();
        assert_eq!(quarantine.why("odd"), Some(why.clone()), "not even without its marks");
        assert_eq!(quarantine.why("memcached"), None);
        assert_eq!(quarantine.trust("odd").unwrap(), Some(why));
        assert_eq!((quarantine.why("odd"), quarantine.trust("odd").unwrap()), (None, None));
    }
}
