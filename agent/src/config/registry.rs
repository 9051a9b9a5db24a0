//! Where the registry is and what its paths look like: connect strings, `cf_svr_file`, path templates.
//!
//! Nothing here connects or resolves a name.

use std::{fs, net::Ipv6Addr, path::Path};

use ini::configparser::ini::Ini as LooseIni;

/// The port of a ZooKeeper server that names none.
const DEFAULT_PORT: u16 = 2181;

/// The keys of `cf_svr_file` that tell the servers, the first one that is there.
const FOREIGN_KEYS: [&str; 3] = ["zoo_svr", "zookeeper", "zk"];

/// The longest text of another system's file that is read.
pub(super) const MAX_FILE: u64 = 4 << 20;

/// The servers as `host:port`, and the chroot with its slash or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connect {
    pub(super) servers: Vec<String>,
    pub(super) chroot: String,
}

/// Takes `host:port,host:port[/chroot]` apart; the error is what was expected.
pub(super) fn connect(text: &str) -> Result<Connect, String> {
    let (servers, chroot) = text.find('/').map_or((text, ""), |at| text.split_at(at));
    let chroot = if chroot == "/" { "" } else { chroot };
    if !chroot.is_empty() {
        node_path(chroot)?;
    }
    if chroot.contains(',') {
        return Err("the chroot once, behind the last server".into());
    }
    let servers = servers.split(',').map(|part| server(part.trim())).collect::<Result<_, _>>()?;
    Ok(Connect { servers, chroot: chroot.to_owned() })
}

fn server(text: &str) -> Result<String, String> {
    let (host, port) = split_port(text)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let good = if host.starts_with('[') {
        bare.parse::<Ipv6Addr>().is_ok()
    } else {
        !host.is_empty() && host.len() <= 253 && host.bytes().all(named)
    };
    if good { Ok(format!("{host}:{port}")) } else { Err("host:port,host:port[/chroot] or none".into()) }
}

fn split_port(text: &str) -> Result<(&str, u16), String> {
    let behind = text.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = text[behind..].find(':').map(|at| at + behind) else {
        return Ok((text, DEFAULT_PORT));
    };
    if behind == 0 && text.matches(':').count() > 1 {
        return Err("brackets around an IPv6 address: [2001:db8::1]:2181".into());
    }
    let port = text[colon + 1..].parse().ok().filter(|port| *port > 0);
    port.map(|port| (&text[..colon], port)).ok_or_else(|| "a port from 1 to 65535 behind each colon".into())
}

/// Whether a path can be a node's: absolute, without empty, `.` or `..` parts, not the root itself.
pub(super) fn node_path(text: &str) -> Result<(), String> {
    let parts = text.strip_prefix('/').ok_or("a path that begins with /")?;
    let bad = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
    if parts.split('/').any(bad) {
        return Err("a path without empty, \".\" or \"..\" parts and without a slash at its end".into());
    }
    Ok(())
}

/// Whether a template has the fields it must have and no other.
pub(super) fn template(text: &str, fields: &[&str], one_of: &[&[&str]]) -> Result<(), String> {
    let mut plain = text.to_owned();
    for field in fields {
        plain = plain.replace(field, "x");
    }
    if plain.contains(['{', '}']) {
        return Err(format!("no field but {}", fields.join(", ")));
    }
    for needed in one_of {
        if !needed.iter().any(|field| text.contains(field)) {
            return Err(format!("{} in it", needed.join(" or ")));
        }
    }
    let begins_with_path = text.starts_with("{root}") || text.starts_with("{server}");
    node_path(&if begins_with_path { format!("/{plain}") } else { plain })
}

/// What `cf_svr_file` tells as the connect string; the error says why it tells none.
pub(super) fn foreign(path: &Path) -> Result<String, String> {
    let text = fs::metadata(path).and_then(|meta| {
        if !meta.is_file() {
            return Err(std::io::Error::other("not a file"));
        }
        if meta.len() > MAX_FILE {
            return Err(std::io::Error::other("larger than 4 MiB"));
        }
        fs::read(path)
    });
    let text = text.map_err(|error| format!("cannot read cf_svr_file {}: {error}", path.display()))?;
    lookup(&String::from_utf8_lossy(&text)).map_err(|why| format!("cf_svr_file {} {why}", path.display()))
}

/// Looks the address up in another system's ini file, which the `ini` crate's reader takes as it comes: keys before
/// the first header, lines without a value and `#` comments behind values are all met there.
fn lookup(text: &str) -> Result<String, String> {
    let mut ini = LooseIni::new();
    let map = ini.read(text.to_owned()).map_err(|why| format!("is no ini file: {why}"))?;
    for key in FOREIGN_KEYS {
        let value = |keys: &std::collections::HashMap<String, Option<String>>| {
            keys.get(key).cloned().flatten().map(|value| unquoted(value.trim()).to_owned())
        };
        let mut found: Vec<String> =
            map.values().filter_map(value).filter(|value| !value.is_empty()).collect();
        found.sort();
        found.dedup();
        match found.as_slice() {
            [] => {}
            [one] => return Ok(one.clone()),
            [one, other, ..] => return Err(format!("has {key} twice, as {one:?} and as {other:?}")),
        }
    }
    Err(format!("has none of {} in any section", FOREIGN_KEYS.join(", ")))
}

fn unquoted(text: &str) -> &str {
    let inside = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        connect(text).unwrap().servers
    }

    #[test]
    fn connect_strings_are_taken_apart() {
        assert_eq!(servers("zk1:2181, zk2"), ["zk1:2181", "zk2:2181"]);
        assert_eq!(servers("[2001:db8::1]:2182,[::1]"), ["[2001:db8::1]:2182", "[::1]:2181"]);
        assert_eq!(connect("zk1:2181,zk2:2181/a/b").unwrap().chroot, "/a/b");
        assert_eq!(connect("zk1/").unwrap().chroot, "");
    }

    #[test]
    fn connect_strings_that_mean_nothing_are_refused() {
        let bad = [
            "",
            "zk1:",
            "zk1:0",
            "zk1:70000",
            "zk1:x",
            "zk1,,zk2",
            "zk1,",
            "::1:2181",
            "[::1",
            "[zk1]:1",
            "z k:1",
            "zk1/a/",
            "zk1//a",
            "zk1/../a",
            "zk1:1/a,zk2:1",
            "[::1]x:1",
            "http://zk1",
        ];
        for text in bad {
            assert!(connect(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_foreign_file_is_searched_key_by_key() {
        let text = "top=1\n[a]\nzk=z3\nlonely\n[b]\nZooKeeper = \"z2:2181\" ; main\n";
        assert_eq!(lookup(text).unwrap(), "z2:2181");
        assert_eq!(lookup("zoo_svr=z1:1,z2:2/r # all\n[b]\nzookeeper=z\n").unwrap(), "z1:1,z2:2/r");
        assert_eq!(lookup("[a]\nzoo_svr=\nzk=z\n").unwrap(), "z");
    }

    #[test]
    fn a_foreign_file_that_tells_nothing_says_what_was_looked_for() {
        assert_eq!(lookup("[a]\nb=c\n").unwrap_err(), "has none of zoo_svr, zookeeper, zk in any section");
        assert_eq!(lookup("[a]\nzk=x\n[b]\nzk=y\n").unwrap_err(), "has zk twice, as \"x\" and as \"y\"");
        let error = foreign(Path::new("/nonexistent/env.ini")).unwrap_err();
        assert!(error.starts_with("cannot read cf_svr_file /nonexistent/env.ini: "), "{error}");
        assert!(foreign(Path::new("/")).unwrap_err().contains("not a file"));
    }

    #[test]
    fn templates_keep_their_fields() {
        let fields = ["{root}", "{ip}"];
        assert_eq!(template("{root}/servers/{ip}", &fields, &[&["{ip}"]]), Ok(()));
        assert!(template("{root}/servers", &fields, &[&["{ip}"]]).unwrap_err().contains("{ip}"));
        assert!(template("{root}/{host}/{ip}", &fields, &[]).unwrap_err().contains("no field but"));
        assert!(template("servers/{ip}", &fields, &[]).unwrap_err().contains("begins with /"));
        assert!(template("{root}/{ip}/", &fields, &[]).is_err());
    }
}
