//! Every alert is documented.

use std::{fs, path::Path};

use super::OPERATIONS;

/// The keys that the failover fires, as its source has them: the first text behind each `fire(`.
fn fired() -> Vec<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core/failover/member");
    let files =
        fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let texts = files.chain([source.with_extension("rs")]).map(|file| fs::read_to_string(file).unwrap());
    let keys = texts.flat_map(|text| {
        let calls = text.split(".fire(").skip(1).map(|call| call.split('"').nth(1).unwrap().to_owned());
        calls.collect::<Vec<_>>()
    });
    keys.collect()
}

#[test]
fn each_alert_of_a_shard_is_in_the_operators_table() {
    let fired = fired();
    assert!(fired.iter().any(|what| what == "failover"), "{fired:?}");
    for what in fired {
        assert!(
            OPERATIONS.contains(&format!("| `{what}/SHARD` |")),
            "docs/operations.md lacks the alert {what}"
        );
    }
}
