//! The shared object itself, loaded by the agent's loader.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use yagent::plugin::{Event, Health, Hook, Reply, Step, loader};
// Only so that cargo builds the library, and with it the shared object.
use yagent_memcached as _;

#[test]
fn the_agent_loads_it_and_holds_a_conversation() {
    let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let plugin = loader::load("memcached", &[dir]).unwrap();
    let about = plugin.description();
    assert_eq!(
        (about.id.as_str(), about.key_prefix.as_str(), about.registry_root.as_str()),
        ("memcached", "mc_", "/ycache")
    );
    assert!(!plugin.has_failover());
    let setting = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let settings = [
        setting("mc_args", "-d -u nobody"),
        setting("program", "/usr/bin/memcached"),
        setting("port", "11221"),
        setting("maxmem_mb", "64"),
    ];
    let mut backend = plugin.create(&settings).unwrap();
    let plan = backend.start().unwrap();
    assert_eq!(plan.args, ["-u", "nobody", "-p", "11221", "-m", "64"].map(|word| word.as_bytes().to_vec()));
    assert_eq!((plan.program.as_str(), plan.drops_to.as_str()), ("/usr/bin/memcached", "nobody"));

    let (now, mut reply) = (Instant::now(), Reply::default());
    let deadline = now + Duration::from_secs(1);
    let begin = Event::Begin { fresh: true, args: &[] };
    assert_eq!(backend.step(Hook::Probe, begin, now, deadline, &mut reply), Step::More);
    assert_eq!(reply.send, b"get yagent:probe\r\n");
    assert_eq!(backend.step(Hook::Probe, Event::Bytes(b"EN"), now, deadline, &mut reply), Step::More);
    assert_eq!(backend.step(Hook::Probe, Event::Bytes(b"END\r\n"), now, deadline, &mut reply), Step::Done);
    assert_eq!(reply.health, Some((Health::Serving, String::new())));
    assert_eq!(backend.step(Hook::Promote, begin, now, deadline, &mut reply), Step::Unsupported);
    assert_eq!(
        backend.step(Hook::Probe, Event::Closed(b"EN"), now, deadline, &mut reply),
        Step::Failed("the server closed the connection after `EN`".to_owned())
    );

    let refused = plugin.create(&settings[1..]).map(drop).and(plugin.create(&settings[..2]).map(drop));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "plugin `memcached` refuses the settings: `port` is not set"
    );
}
