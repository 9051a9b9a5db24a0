//! Small blocking clients of memcached and redis. They are the application's side: each call has a time limit.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(5);

fn connect(port: u16) -> io::Result<BufReader<TcpStream>> {
    connect_to(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT)
}

fn connect_to(address: SocketAddr, limit: Duration) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut text = String::new();
    if stream.read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end().to_owned())
}

/// A connection to memcached.
#[derive(Debug)]
pub struct Memcached(BufReader<TcpStream>);

impl Memcached {
    /// Connects to `port` on loopback.
    pub fn connect(port: u16) -> io::Result<Self> {
        connect(port).map(Self)
    }

    /// Stores `value` under `key`.
    pub fn set(&mut self, key: &str, value: &str) -> io::Result<()> {
        write!(self.0.get_mut(), "set {key} 0 0 {}\r\n{value}\r\n", value.len())?;
        match line(&mut self.0)?.as_str() {
            "STORED" => Ok(()),
            other => Err(io::Error::other(format!("set {key}: {other}"))),
        }
    }

    /// The value under `key`.
    pub fn get(&mut self, key: &str) -> io::Result<Option<String>> {
        write!(self.0.get_mut(), "get {key}\r\n")?;
        let mut value = None;
        loop {
            let head = line(&mut self.0)?;
            match head.split_whitespace().next() {
                Some("END") => return Ok(value),
                Some("VALUE") => value = Some(line(&mut self.0)?),
                _ => return Err(io::Error::other(format!("get {key}: {head}"))),
            }
        }
    }

    /// Removes `key`; whether it was there.
    pub fn delete(&mut self, key: &str) -> io::Result<bool> {
        write!(self.0.get_mut(), "delete {key}\r\n")?;
        Ok(line(&mut self.0)? == "DELETED")
    }

    /// What `stats` says.
    pub fn stats(&mut self) -> io::Result<BTreeMap<String, String>> {
        write!(self.0.get_mut(), "stats\r\n")?;
        let mut found = BTreeMap::new();
        loop {
            let text = line(&mut self.0)?;
            let mut words = text.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("STAT"), Some(name), value) => {
                    found.insert(name.to_owned(), value.unwrap_or_default().to_owned());
                }
                (Some("END"), None, None) => return Ok(found),
                _ => return Err(io::Error::other(format!("stats: {text}"))),
            }
        }
    }
}

/// A connection to redis.
#[derive(Debug)]
pub struct Redis(BufReader<TcpStream>);

impl Redis {
    /// Connects to `port` on loopback.
    pub fn connect(port: u16) -> io::Result<Self> {
        connect(port).map(Self)
    }

    /// Connects to any address; no call may take longer than `limit`.
    pub fn connect_to(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        connect_to(address, limit).map(Self)
    }

    /// Sends a command and returns its reply as text; an error reply is an `Err`, a null an empty text.
    pub fn call(&mut self, words: &[&str]) -> io::Result<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(request.as_bytes())?;
        self.reply()
    }

    /// What `INFO` says.
    pub fn info(&mut self) -> io::Result<BTreeMap<String, String>> {
        let text = self.call(&["INFO", "all"])?;
        let pair = |line: &str| line.trim_end().split_once(':').map(|(k, v)| (k.to_owned(), v.to_owned()));
        Ok(text.lines().filter_map(pair).collect())
    }

    fn reply(&mut self) -> io::Result<String> {
        let head = line(&mut self.0)?;
        let (kind, rest) = head.split_at_checked(1).ok_or_else(|| io::Error::other("an empty reply"))?;
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "-" => Err(io::Error::other(rest.to_owned())),
            "$" => self.bulk(rest.parse().map_err(io::Error::other)?),
            "*" => self.list(rest.parse().map_err(io::Error::other)?),
            _ => Err(io::Error::other(format!("not a redis reply: {head}"))),
        }
    }

    fn bulk(&mut self, len: i64) -> io::Result<String> {
        let Ok(len) = usize::try_from(len) else { return Ok(String::new()) };
        let mut bytes = vec![0; len + 2];
        self.0.read_exact(&mut bytes)?;
        bytes.truncate(len);
        String::from_utf8(bytes).map_err(io::Error::other)
    }

    fn list(&mut self, len: i64) -> io::Result<String> {
        let items: io::Result<Vec<String>> = (0..len).map(|_| self.reply()).collect();
        Ok(items?.join("\n"))
    }
}
