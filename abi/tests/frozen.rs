//! What was released stays: the frozen headers are pinned, and the live one differs from the newest of them by marked
//! additions alone. How a minor version is added stands in `docs/abi-changes.md`.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use yagent_abi::raw;

/// Each released minor version with the SHA-256 of its `plugin.h` and `layout.txt`. A row is added, never changed.
const RELEASED: &[(u32, &str, &str)] = &[(
    0,
    "203e872e30dd0a174638450f48aeea732a660234640301f5f3071b6d004c7fba",
    "cf6c134d6cf98a504bdb8dc81d71d5ef57e14f27db45fb157bbdae388b44f48a",
)];

fn frozen(minor: u32, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("frozen/1.{minor}/{file}"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

#[test]
fn what_was_released_is_unchanged() {
    for (minor, header, layout) in RELEASED {
        for (file, expected) in [("plugin.h", header), ("layout.txt", layout)] {
            let path = frozen(*minor, file);
            let found = sha256(&path);
            assert_eq!(found, *expected, "{} was changed: a released header stays as it is", path.display());
        }
    }
    let dirs = std::fs::read_dir(frozen(0, "plugin.h").ancestors().nth(2).unwrap()).unwrap().count();
    assert_eq!(dirs, RELEASED.len(), "each folder below abi/frozen has its row here");
}

#[test]
fn the_live_layout_extends_each_released_one() {
    let live = raw::layout();
    for (minor, ..) in RELEASED {
        extends(&read(&frozen(*minor, "layout.txt")), &live).unwrap_or_else(|why| panic!("1.{minor}: {why}"));
    }
}

#[test]
fn the_live_header_differs_by_marked_additions_alone() {
    let (newest, ..) = RELEASED.last().unwrap();
    let verdict = compare(*newest, &read(&frozen(*newest, "plugin.h")), yagent_abi::HEADER, raw::ABI_MINOR);
    verdict.unwrap_or_else(|why| panic!("{why}; see docs/abi-changes.md"));
}

/// Structs may grow at their end; nothing moves or goes.
fn extends(frozen: &str, live: &str) -> Result<(), String> {
    let value = |layout: &str, name: &str| -> Option<u64> {
        layout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    for line in frozen.lines() {
        let (name, old) = line.split_once(' ').ok_or("no layout")?;
        let (old, new) = (old.parse::<u64>().unwrap(), value(live, name));
        let fine = if name.contains('.') { new == Some(old) } else { new.is_some_and(|new| new >= old) };
        if !fine {
            return Err(format!("{name} was {old} and is {new:?}"));
        }
    }
    Ok(())
}

/// A header's code, line by line without comments, each with the minor version that a comment on that line marks.
fn code(header: &str) -> Vec<(String, Option<u32>)> {
    let mut in_comment = false;
    header.lines().map(|line| split(line, &mut in_comment)).filter(|(code, _)| is_contract(code)).collect()
}

fn split(line: &str, in_comment: &mut bool) -> (String, Option<u32>) {
    let (mut code, mut comment, mut rest) = (String::new(), String::new(), line);
    while !rest.is_empty() {
        let (part, after, found) = match rest.split_once(if *in_comment { "*/" } else { "/*" }) {
            Some((part, after)) => (part, after, true),
            None => (rest, "", false),
        };
        if *in_comment {
            comment.push_str(part)
        } else {
            code.push_str(part)
        }
        *in_comment ^= found;
        rest = after;
    }
    let since = comment.split_once("since 1.").and_then(|(_, minor)| {
        minor.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse().ok()
    });
    (code.split_whitespace().collect::<Vec<_>>().join(" "), since)
}

/// Asserts on sizes grow with their structs, and the minor version is compared by itself.
fn is_contract(code: &str) -> bool {
    !code.is_empty() && !code.starts_with("YAGENT_LAYOUT(") && !code.starts_with("#define YAGENT_ABI_MINOR")
}

fn compare(newest: u32, frozen: &str, live: &str, live_minor: u32) -> Result<(), String> {
    let (old, new) = (code(frozen), code(live));
    let added = |since: Option<u32>| since.is_some_and(|minor| minor > newest);
    let mut kept = new.iter().filter(|(_, since)| !added(*since)).map(|(line, _)| line);
    for (line, _) in &old {
        match kept.next() {
            Some(found) if found == line => {}
            found => {
                let found = found.map_or("nothing", String::as_str);
                return Err(format!(
                    "`{line}` of 1.{newest} became `{found}` without a mark `since 1.{}`",
                    newest + 1
                ));
            }
        }
    }
    if let Some(extra) = kept.next() {
        return Err(format!("`{extra}` is new and has no mark `since 1.{}`", newest + 1));
    }
    let wanted = newest + u32::from(new.iter().any(|(_, since)| added(*since)));
    let beyond = new.iter().filter_map(|(_, since)| *since).find(|minor| *minor > wanted);
    match beyond {
        Some(minor) => Err(format!("a mark says `since 1.{minor}`, the next minor version is 1.{wanted}")),
        None if live_minor != wanted => Err(format!("YAGENT_ABI_MINOR is {live_minor}, wanted {wanted}")),
        None => Ok(()),
    }
}

#[test]
fn every_unmarked_change_is_noticed() {
    let old = yagent_abi::HEADER;
    let change = |from: &str, to: &str, minor| {
        assert!(old.contains(from), "{from}");
        compare(0, old, &old.replacen(from, to, 1), minor).err().unwrap_or_default()
    };
    assert_eq!(compare(0, old, old, 0), Ok(()));
    assert_eq!(change("/* yagent_event.kind */", "/* what happened */", 0), "", "a comment is no contract");
    assert_eq!(change("    uint32_t flags;        ", "    uint32_t flags; ", 0), "");
    for (from, to) in [
        ("uint64_t now_ns;", "int64_t now_ns;"),
        ("#define YAGENT_TIMEOUT 4", "#define YAGENT_TIMEOUT 6"),
        (
            "    yagent_hook promote;\n    yagent_hook follow;",
            "    yagent_hook follow;\n    yagent_hook promote;",
        ),
        ("    yagent_hook unfence;\n", ""),
    ] {
        assert!(change(from, to, 0).contains("without a mark `since 1.1`"), "{to}");
    }
    let last = "    yagent_hook unfence;\n";
    let more = |mark: &str| format!("{last}    yagent_hook demote;{mark}\n");
    assert!(change(last, &more(""), 1).contains("without a mark"));
    assert_eq!(change(last, &more(" /* since 1.1 */"), 0), "YAGENT_ABI_MINOR is 0, wanted 1");
    assert_eq!(change(last, &more(" /* since 1.1: makes it a replica */"), 1), "");
    assert_eq!(
        change(last, &more(" /* since 1.2 */"), 1),
        "a mark says `since 1.2`, the next minor version is 1.1"
    );
    assert_eq!(compare(0, old, old, 1), Err("YAGENT_ABI_MINOR is 1, wanted 0".to_owned()));
}

#[test]
fn a_layout_may_grow_and_nothing_else() {
    let old = "yagent_str 16\nyagent_str.ptr 0\n";
    assert_eq!(extends(old, "yagent_str 24\nyagent_str.ptr 0\nyagent_str.more 16\n"), Ok(()));
    assert!(extends(old, "yagent_str 8\nyagent_str.ptr 0\n").is_err());
    assert!(extends(old, "yagent_str 16\nyagent_str.ptr 8\n").is_err());
    assert!(extends(old, "yagent_str 16\n").is_err());
}
