//! The log file: followed by name when it is rotated, and never a brake.

use std::{fs, io::Write};

use yagent_tests::{
    host::Host,
    process::{self, Signal},
    wait,
};

#[test]
fn sigusr1_reopens_the_log() {
    let host = Host::new().memcached(1);
    let log = host.path().join("yagent.log");
    let host = host.with("global", "log_file", log.display()).started();
    let rotated = host.path().join("yagent.log.1");
    fs::rename(&log, &rotated).unwrap();
    host.signal(Signal::USR1);
    wait::until("a new log file is there", || fs::metadata(&log).map(drop));
    let old = host.status().pids()[0];
    process::signal(old, Signal::KILL);
    host.wait_replaced("memcached", host.mc_port(0), old);
    wait::until("what happens now is in the new file", || {
        let text = fs::read_to_string(&log).map_err(|why| why.to_string())?;
        wait::check(text.contains(&host.mc_port(0).to_string()), || text)
    });
    assert!(!fs::read_to_string(&rotated).unwrap().contains("restarted"), "the rotated file stays as it was");
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    const PAGE: usize = 4096;
    let mut host = Host::new().memcached(1).with("global", "log_level", "debug");
    let (_reader, mut writer) = std::io::pipe().unwrap();
    // A pipe that is full from the start: the very first line of the log finds no room.
    assert_eq!(rustix::pipe::fcntl_setpipe_size(&writer, PAGE).unwrap(), PAGE);
    writer.write_all(&[b'.'; PAGE]).unwrap();
    host.write_ini();
    let child = host.command(&["run"]).stderr(writer).spawn().unwrap();
    host.adopt_child(child);
    host.wait_up();
    for _ in 0..3 {
        let old = host.status().pids()[0];
        process::signal(old, Signal::KILL);
        host.wait_replaced("memcached", host.mc_port(0), old);
    }
    assert_eq!(host.term().code(), Some(0), "it ends although its log is not read");
}
