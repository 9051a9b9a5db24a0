//! The desk, and the requests against the model of the registry.

use super::*;
use crate::shell::registry::reconcile::model::Model;

fn read(path: &str) -> Request {
    Request::Read { path: path.into() }
}

fn children(path: &str) -> Request {
    Request::Children { path: path.into() }
}

fn create(path: &str, mode: Mode, content: &str) -> Request {
    Request::Create { path: path.into(), node: Node { mode, content: content.into() } }
}

fn write(path: &str, content: &str, version: i32) -> Request {
    Request::Write { path: path.into(), content: content.into(), version }
}

fn delete(path: &str, version: i32) -> Request {
    Request::Delete { path: path.into(), version }
}

fn answered(token: u64, answer: Answer) -> RegistryEvent {
    RegistryEvent::Answered { token, answer }
}

fn changed(path: &str) -> RegistryEvent {
    RegistryEvent::Changed { path: path.into() }
}

fn found(content: &str, version: i32, owner: i64) -> Answer {
    Answer::Node(Some(Found { content: content.into(), version, owner }))
}

/// A desk before the model; events come as the watcher would hand them in.
struct Bench {
    desk: Desk,
    model: Model,
    tokens: u64,
}

impl Bench {
    fn new() -> Bench {
        let mut desk = Desk::default();
        desk.open();
        Bench { desk, model: Model::new(), tokens: 0 }
    }

    fn news(&mut self) -> Vec<RegistryEvent> {
        let told = mem::take(&mut self.model.told);
        told.iter().filter_map(|(path, happening)| self.desk.happened(path, *happening)).collect()
    }

    /// The answer, and what is told after it.
    fn ask(&mut self, request: Request) -> (Answer, Vec<RegistryEvent>) {
        self.tokens += 1;
        assert_eq!(self.desk.add(self.tokens, request), Ok(true));
        let request = self.desk.begin().expect("it was just added");
        let answer = match carry_out(&mut self.model, &request) {
            Ok(answer) => answer,
            Err(Fault::Refused(why)) => Answer::Refused(why),
            Err(Fault::Lost(why)) => panic!("lost: {why}"),
        };
        let mut before = self.news();
        let mut events = self.desk.finish(answer);
        let RegistryEvent::Answered { token, answer } = events.remove(0) else { panic!("no answer") };
        assert_eq!(token, self.tokens);
        before.extend(events);
        (answer, before)
    }

    fn answer(&mut self, request: Request) -> Answer {
        self.ask(request).0
    }
}

#[test]
fn a_create_makes_what_is_missing_above_and_the_second_finds_it_there() {
    let mut bench = Bench::new();
    assert_eq!(bench.answer(create("/s/1/lock", Mode::Ephemeral, "me")), Answer::Created);
    assert_eq!(bench.answer(create("/s/1/lock", Mode::Ephemeral, "you")), Answer::Exists);
    assert_eq!(bench.answer(read("/s/1/lock")), found("me", 0, 1));
    assert_eq!(bench.answer(read("/s/1")), found("", 0, 0));
    assert_eq!(bench.answer(children("/s")), Answer::Names(Some(vec!["1".into()])));
}

#[test]
fn what_stands_above_is_not_asked_for_where_it_is_not_needed() {
    let mut bench = Bench::new();
    bench.model.has("/theirs/ours", "", 0);
    bench.model.denied.insert("/theirs".into());
    assert_eq!(bench.answer(create("/theirs/ours/a/b", Mode::Persistent, "")), Answer::Created);
    bench.model.denied.insert("/theirs/ours/x".into());
    assert_eq!(
        bench.answer(create("/theirs/ours/x/y", Mode::Persistent, "")),
        Answer::Refused("denied".into())
    );
}

#[test]
fn writes_and_deletes_go_by_the_version() {
    let mut bench = Bench::new();
    bench.model.has("/state/child", "", 0);
    bench.model.has("/state", "one", 0);
    assert_eq!(bench.answer(write("/state", "two", 2)), Answer::Stale);
    assert_eq!(bench.answer(write("/state", "two", 3)), Answer::Written(4));
    assert_eq!(bench.answer(write("/gone", "two", 0)), Answer::Stale);
    assert_eq!(bench.answer(delete("/state", -1)), Answer::Stale, "it has a child");
    assert_eq!(bench.answer(delete("/state/child", 0)), Answer::Stale);
    assert_eq!(bench.answer(delete("/state/child", 3)), Answer::Deleted);
    assert_eq!(bench.answer(delete("/state", -1)), Answer::Deleted);
    assert_eq!(bench.answer(delete("/state", -1)), Answer::Stale);
    assert_eq!(bench.desk.writes, 3);
}

#[test]
fn a_missing_node_is_told_of_when_it_comes_and_a_reading_only_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.answer(read("/lock")), Answer::Node(None));
    assert_eq!(bench.answer(children("/members")), Answer::Names(None));
    bench.model.has("/lock", "theirs", 9);
    bench.model.has("/lock", "theirs still", 9);
    bench.model.has("/members", "", 0);
    assert_eq!(bench.news(), [changed("/lock"), changed("/members")]);
    assert_eq!(bench.answer(read("/lock")), found("theirs still", 3, 9));
    assert_eq!(bench.answer(children("/members")), Answer::Names(Some(vec![])));
    bench.model.has("/members/a", "", 9);
    bench.model.has("/members/b", "", 9);
    bench.model.vanish("/lock");
    assert_eq!(bench.news(), [changed("/members"), changed("/lock")]);
}

#[test]
fn our_own_write_of_what_we_read_is_told_after_its_answer() {
    let mut bench = Bench::new();
    bench.model.has("/state", "one", 0);
    bench.answer(read("/state"));
    assert_eq!(bench.ask(write("/state", "two", 3)), (Answer::Written(4), vec![changed("/state")]));
    assert_eq!(bench.ask(write("/state", "three", 4)), (Answer::Written(5), vec![]));
}

#[test]
fn a_change_that_meets_a_reading_is_told_after_its_answer() {
    let mut bench = Bench::new();
    bench.model.has("/state", "one", 0);
    bench.answer(read("/state"));
    bench.desk.add(7, read("/state")).unwrap();
    bench.desk.begin();
    assert_eq!(bench.desk.happened("/state", Happening::Written), None);
    assert_eq!(bench.desk.finish(Answer::Node(None)), [answered(7, Answer::Node(None)), changed("/state")]);
}

#[test]
fn all_that_waits_is_lost_with_the_connection_and_nothing_is_taken_without_one() {
    let mut desk = Desk::default();
    assert_eq!(desk.add(1, read("/a")), Err(answered(1, Answer::Lost)));
    desk.open();
    assert_eq!(desk.add(2, read("/a")), Ok(true));
    assert_eq!(desk.add(3, read("/a")), Ok(false), "one waits already, so the thread is awake");
    assert!(desk.begin().is_some());
    assert_eq!(desk.close(), [answered(2, Answer::Lost), answered(3, Answer::Lost)]);
    assert_eq!(desk.happened("/a", Happening::Written), None, "read on a connection that is gone");
    assert_eq!(desk.add(4, read("/a")), Err(answered(4, Answer::Lost)));
    desk.open();
    assert_eq!(desk.add(5, read("/a")), Ok(true));
    for token in 6..5 + MOST_REQUESTS as u64 {
        assert_eq!(desk.add(token, read("/a")), Ok(false));
    }
    assert_eq!(desk.add(999, read("/a")), Err(answered(999, Answer::Lost)), "too many");
}
