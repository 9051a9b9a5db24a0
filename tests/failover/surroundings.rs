//! The machine that a master runs on: its clock, its disk, its speed.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use yagent_tests::{
    cluster::{Cluster, Plan},
    programs, wait,
};

use crate::{IN_FLIGHT, ends_well, fill, nothing_changes_for, wait_same_keys};

/// A library that shifts the wall clock of the programs that it is loaded into.
fn clock_shim(cluster: &Cluster, seconds: i64) -> PathBuf {
    let source = include_str!("clock.c");
    let dir = cluster.hosts[0].path();
    let (file, library) = (dir.join("clock.c"), dir.join(format!("clock{seconds}.so")));
    fs::write(&file, source).unwrap();
    let status = Command::new(programs::debian("cc", "gcc"))
        .args(["-shared", "-fPIC", "-O1", &format!("-DSHIFT=({seconds})"), "-o"])
        .arg(&library)
        .arg(&file)
        .arg("-ldl")
        .status()
        .unwrap();
    assert!(status.success());
    library
}

#[test]
fn clocks_that_are_hours_apart_matter_to_nobody() {
    let mut cluster = Plan::new(3).prepare();
    for (host, shift) in [(1, 3600), (2, -7200)] {
        let library = clock_shim(&cluster, shift).display().to_string();
        cluster.hosts[host].set_environment("LD_PRELOAD", &library);
    }
    cluster.hosts.iter_mut().for_each(|host| host.launch());
    cluster.wait_steady();
    fill(&cluster, 10);
    let writer = cluster.writer();
    // Everybody leads once.
    for _ in 0..3 {
        let epoch = cluster.watch.epoch();
        writer.wait_progress(20);
        cluster.crash(cluster.master());
        let new = cluster.wait_successor(epoch);
        writer.wait_ack_by(new.master);
        cluster.wait_steady();
    }
    // And the lease is as long as ever.
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    cluster.hosts[old].kill9();
    cluster.wait_fenced(old);
    assert_eq!(cluster.watch.epoch(), epoch);
    cluster.wait_successor(epoch);
    cluster.assert_one_master(&[&writer.finish()]);
}

#[test]
fn a_full_disk_is_no_reason_to_switch() {
    let mut cluster = Plan::new(2).conf("save 1 1\nstop-writes-on-bgsave-error yes").prepare();
    let disk = |cluster: &Cluster, host: usize| cluster.hosts[host].path().join("disk");
    for host in 0..2 {
        let disk = disk(&cluster, host);
        fs::create_dir(&disk).unwrap();
        // The mount is the agent's and its children's alone, and goes with them.
        let mount = "mount -t tmpfs -o size=4m,mode=755 tmpfs \"$0\" && exec \"$@\"";
        cluster.hosts[host].started_by(&["unshare", "-m", "sh", "-c", mount, disk.to_str().unwrap()]);
        cluster.hosts[host].ini.set("redis", "redis_dir", disk.display());
        cluster.hosts[host].launch();
    }
    let master = cluster.wait_steady();
    fill(&cluster, 10);
    let pid = cluster.redis_pid(master).unwrap();
    let file = format!("/proc/{pid}/root{}/full", disk(&cluster, master).display());
    let written = fs::write(&file, vec![1; 8 << 20]);
    assert!(written.is_err(), "the disk is not small");
    wait::until("redis takes no writes", || match cluster.write(master) {
        Err(error) if error.starts_with("MISCONF") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    nothing_changes_for(&cluster, Duration::from_secs(5));
    assert_eq!(cluster.redis_pid(master), Some(pid), "it was left alone");
    fs::remove_file(&file).unwrap();
    wait::until("it takes writes again", || cluster.write(master));
    assert_eq!(cluster.wait_steady(), master);
    wait_same_keys(&cluster);
}

#[test]
fn a_master_that_stalls_for_less_than_a_hang_stays_the_master() {
    let cluster = Plan::new(2).conf("enable-debug-command yes").start();
    let master = cluster.master();
    let writer = cluster.writer();
    writer.wait_progress(20);
    let pid = cluster.redis_pid(master);
    for _ in 0..2 {
        cluster.call(master, &["DEBUG", "SLEEP", "1.2"]).unwrap();
    }
    nothing_changes_for(&cluster, Duration::from_secs(2));
    assert_eq!(cluster.redis_pid(master), pid);
    assert_eq!(cluster.wait_steady(), master);
    ends_well(&cluster, writer, 0);
}

#[test]
fn a_master_that_hangs_is_killed_and_succeeded() {
    let cluster = Plan::new(2).conf("enable-debug-command yes").start();
    fill(&cluster, 10);
    let (old, epoch) = (cluster.master(), cluster.watch.epoch());
    let writer = cluster.writer();
    writer.wait_progress(20);
    let mut redis = cluster.redis(old).unwrap();
    let asleep = redis.call(&["DEBUG", "SLEEP", "60"]);
    assert!(asleep.is_err(), "it sleeps longer than the client waits");
    let new = cluster.wait_successor(epoch);
    assert_ne!(cluster.host_of(new.master), old);
    cluster.wait_steady();
    ends_well(&cluster, writer, IN_FLIGHT);
    assert!(cluster.keys(old) > 10);
}
