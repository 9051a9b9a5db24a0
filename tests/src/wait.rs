//! Waiting for conditions. The only place where the tests let time pass.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

/// How long a condition may take before the test fails. Far above what a healthy system needs, so that a busy
/// machine does not fail a test.
pub const DEADLINE: Duration = Duration::from_secs(60);

const PACE: Duration = Duration::from_millis(10);

/// Waits until `look` is `Ok` and returns it. Panics after [`DEADLINE`] with the last `Err`.
pub fn until<T, E: Display>(what: &str, look: impl FnMut() -> Result<T, E>) -> T {
    until_within(DEADLINE, what, look)
}

/// As [`until`], with a limit of its own.
pub fn until_within<T, E: Display>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) if begun.elapsed() > limit => panic!("not within {limit:?}: {what}: {why}"),
            Err(_) => thread::sleep(PACE),
        }
    }
}

/// Looks again and again for `span` and panics as soon as `look` is an `Err`. For things that must not happen.
pub fn holds_for<E: Display>(span: Duration, what: &str, mut look: impl FnMut() -> Result<(), E>) {
    let begun = Instant::now();
    while begun.elapsed() < span {
        if let Err(why) = look() {
            panic!("did not hold: {what}: {why}");
        }
        thread::sleep(PACE);
    }
}

/// What is done to the agent lasts this long: the length of an experiment, which waits for nothing.
pub fn lasts(span: Duration) {
    thread::sleep(span);
}

/// `Ok` when `condition` holds, else `why`.
pub fn check(condition: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why()) }
}
