//! What requests have read and is to be told of once when it changes. Pure: it knows paths and what happens to them, and
//! nothing of who watches.

use std::collections::BTreeMap;

/// What was read of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The node itself.
    Node,
    /// The names of its children.
    Children,
}

/// What happens to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// It came into being.
    Created,
    /// Its content was written.
    Written,
    /// It is gone.
    Deleted,
    /// A child of it came or went.
    Children,
}

#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    node: bool,
    children: bool,
}

/// Readings that nothing has happened to yet.
#[derive(Debug, Default)]
pub(super) struct Readings(BTreeMap<String, Reading>);

impl Readings {
    /// A path is about to be read.
    pub(super) fn note(&mut self, path: &str, kind: Kind) {
        let reading = self.0.entry(path.to_owned()).or_default();
        match kind {
            Kind::Node => reading.node = true,
            Kind::Children => reading.children = true,
        }
    }

    /// Something happened; tells whether a reading is outdated by it. Each is outdated once; the reading of a node and
    /// of its children are outdated together where the same happening tells of both.
    pub(super) fn outdate(&mut self, path: &str, happening: Happening) -> bool {
        let Some(reading) = self.0.get_mut(path) else { return false };
        let before = *reading;
        reading.node &= happening == Happening::Children;
        reading.children &= happening == Happening::Written;
        let outdated = before.node != reading.node || before.children != reading.children;
        if !reading.node && !reading.children {
            self.0.remove(path);
        }
        outdated
    }

    /// Nothing was read.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_outdated_once_and_only_by_what_it_saw() {
        let mut readings = Readings::default();
        assert!(!readings.outdate("/a", Happening::Written), "nobody read it");
        readings.note("/a", Kind::Node);
        assert!(!readings.outdate("/a", Happening::Children));
        assert!(!readings.outdate("/b", Happening::Written));
        assert!(readings.outdate("/a", Happening::Written));
        assert!(!readings.outdate("/a", Happening::Written));
        readings.note("/a", Kind::Children);
        assert!(!readings.outdate("/a", Happening::Written));
        assert!(readings.outdate("/a", Happening::Children));
        assert!(!readings.outdate("/a", Happening::Children));
    }

    #[test]
    fn two_kinds_of_readings_of_a_path_go_their_own_ways_until_it_goes() {
        let mut readings = Readings::default();
        readings.note("/a", Kind::Node);
        readings.note("/a", Kind::Children);
        assert!(readings.outdate("/a", Happening::Written));
        assert!(readings.outdate("/a", Happening::Children));
        readings.note("/a", Kind::Node);
        readings.note("/a", Kind::Children);
        assert!(readings.outdate("/a", Happening::Deleted));
        assert!(!readings.outdate("/a", Happening::Deleted));
        readings.note("/a", Kind::Children);
        assert!(
            readings.outdate("/a", Happening::Created),
            "it was not there when its children were asked for"
        );
    }
}
