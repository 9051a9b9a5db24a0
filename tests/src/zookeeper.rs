//! Real ZooKeeper servers for the tests, as Debian packages them: alone or in an ensemble, on free ports in temporary
//! directories, to be stopped, continued, killed, wiped and started again. And a reader that is not our client:
//! kazoo, under the system's Python. A tool that is missing fails the test and names its package.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, OnceLock, mpsc},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cluster::net::Space,
    ports::PortBlock,
    programs::{debian, require, system_python},
    wait,
};

const CLASS_PATH: &str = "/usr/share/java/zookeeper.jar";

/// A ZooKeeper server.
#[derive(Debug)]
pub struct Server {
    dir: TempDir,
    /// For clients, for the quorum, for elections.
    ports: PortBlock,
    child: Option<Child>,
    /// The host that it runs on, where that isn't this machine itself.
    space: Option<Arc<Space>>,
}

impl Server {
    /// A server alone, answering.
    pub fn start() -> Server {
        Server::start_with(&[])
    }

    /// A server alone, with more JVM options (`-Dzookeeper.…`), answering.
    pub fn start_with(options: &[&str]) -> Server {
        let mut server = Server::prepare(PortBlock::reserve(3), "127.0.0.1", 0, &[], options);
        server.start_again();
        server
    }

    /// A server that is ready to be started.
    pub fn down() -> Server {
        Server::prepare(PortBlock::reserve(3), "127.0.0.1", 0, &[], &[])
    }

    /// A server that will listen on another address, ready to be started.
    pub fn down_on(address: &str) -> Server {
        Server::prepare(PortBlock::reserve(3), address, 0, &[], &[])
    }

    fn prepare(ports: PortBlock, address: &str, id: usize, peers: &[String], options: &[&str]) -> Server {
        let port = ports.first();
        debian("java", "default-jre-headless");
        require(CLASS_PATH, "zookeeper");
        let dir = tempfile::Builder::new().prefix("yagent-zk-").tempdir().expect("cannot make a directory");
        let path = dir.path().display();
        let mut config = format!(
            "tickTime=200\ninitLimit=50\nsyncLimit=20\ndataDir={path}/data\nclientPort={port}\n\
             clientPortAddress={address}\nminSessionTimeout=400\nmaxSessionTimeout=60000\n\
             admin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n"
        );
        for peer in peers {
            config += peer;
        }
        let log = format!(
            "log4j.rootLogger=INFO, F\nlog4j.appender.F=org.apache.log4j.FileAppender\n\
             log4j.appender.F.File={path}/log\nlog4j.appender.F.layout=org.apache.log4j.PatternLayout\n\
             log4j.appender.F.layout.ConversionPattern=%d %p %c{{1}} %m%n\n"
        );
        fs::create_dir(dir.path().join("data")).expect("cannot make the data directory");
        fs::write(dir.path().join("zoo.cfg"), config).expect("cannot write zoo.cfg");
        fs::write(dir.path().join("log4j.properties"), log).expect("cannot write log4j.properties");
        fs::write(dir.path().join("options"), options.join("\n")).expect("cannot write the options");
        fs::write(dir.path().join("data/myid"), id.to_string()).expect("cannot write myid");
        Server { dir, ports, child: None, space: None }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host(), self.port())
    }

    fn host(&self) -> IpAddr {
        self.space.as_ref().map_or(Ipv4Addr::LOCALHOST, |space| space.address()).into()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.ports.first()
    }

    /// Starts it, without waiting for it. `prefix` runs it under another program.
    pub fn launch_under(&mut self, prefix: &[&str]) {
        assert!(self.child.is_none(), "the server runs already");
        let dir = self.dir.path();
        let options = fs::read_to_string(dir.join("options")).expect("cannot read the options");
        // The server must not outlive a test that is killed.
        let mut words: Vec<&str> = prefix.to_vec();
        words.extend(["setpriv", "--pdeathsig", "KILL", "java"]);
        let mut command = match &self.space {
            Some(space) => space.command(words[0]),
            None => Command::new(words[0]),
        };
        let child = command
            .args(&words[1..])
            .args(["-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djute.maxbuffer=1048575"])
            .args(options.lines())
            .arg(format!("-Dlog4j.configuration=file:{}/log4j.properties", dir.display()))
            .args(["-cp", CLASS_PATH, "org.apache.zookeeper.server.quorum.QuorumPeerMain"])
            .arg(dir.join("zoo.cfg"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.join("out")).expect("cannot make the output file"))
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot start java");
        self.child = Some(child);
    }

    /// Starts it, without waiting for it.
    pub fn launch(&mut self) {
        self.launch_under(&[]);
    }

    /// Starts it and waits until it serves.
    pub fn start_again(&mut self) {
        self.launch();
        self.wait_serving();
    }

    /// Waits until it serves.
    pub fn wait_serving(&self) {
        wait::until(&format!("ZooKeeper on port {} serves", self.port()), || {
            self.mode().ok_or("it has no mode")
        });
    }

    /// `standalone`, `leader` or `follower`, when it serves.
    pub fn mode(&self) -> Option<String> {
        let answer = self.four_letters("srvr")?;
        answer.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    /// Sessions and ephemerals as the server sees them.
    pub fn dump(&self) -> String {
        self.four_letters("dump").unwrap_or_default()
    }

    fn four_letters(&self, word: &str) -> Option<String> {
        let address = SocketAddr::new(self.host(), self.port());
        match &self.space {
            Some(space) => space.run(|| four_letters(address, word)),
            None => four_letters(address, word),
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("the server is down"))
    }

    /// SIGSTOP: it stands still, its sockets stay open.
    pub fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).expect("cannot stop the server");
    }

    /// SIGCONT.
    pub fn cont(&self) {
        kill_process(self.pid(), Signal::CONT).expect("cannot continue the server");
    }

    /// SIGKILL; its data stay.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("cannot kill the server");
            child.wait().expect("cannot wait for the server");
        }
    }

    /// Kills it and removes its data.
    pub fn wipe(&mut self) {
        self.kill();
        fs::remove_dir_all(self.dir.path().join("data/version-2")).expect("cannot remove the data");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn four_letters(address: SocketAddr, word: &str) -> Option<String> {
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.write_all(word.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Several servers that elect a leader.
pub fn ensemble(size: usize) -> Vec<Server> {
    ensemble_in(size, None)
}

/// Servers on one host, serving: one alone, or several that elect a leader.
pub fn ensemble_in(size: usize, space: Option<&Arc<Space>>) -> Vec<Server> {
    let host = space.map_or(Ipv4Addr::LOCALHOST, |space| space.address());
    let ports: Vec<PortBlock> = (0..size).map(|_| PortBlock::reserve(3)).collect();
    let peers: Vec<String> = ports
        .iter()
        .enumerate()
        .filter(|_| size > 1)
        .map(|(i, block)| (i + 1, block.first() + 1, block.first() + 2))
        .map(|(id, quorum, election)| format!("server.{id}={host}:{quorum}:{election}\n"))
        .collect();
    let prepare = |(i, block)| {
        let mut server = Server::prepare(block, &host.to_string(), i + 1, &peers, &[]);
        server.space = space.cloned();
        server
    };
    let mut servers: Vec<Server> = ports.into_iter().enumerate().map(prepare).collect();
    servers.iter_mut().for_each(Server::launch);
    servers.iter().for_each(Server::wait_serving);
    servers
}

/// One server for all tests that leave it unharmed; use a chroot of your own.
pub fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let (tell, told) = mpsc::channel();
        // The server dies with the thread that started it, so that is none of a test's.
        thread::spawn(move || {
            tell.send(Server::start()).expect("nobody waits for the server");
            loop {
                thread::park();
            }
        });
        told.recv().expect("the shared server did not start")
    })
}

/// A node as another client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// Its content.
    pub content: String,
    /// The session of an ephemeral; 0: persistent.
    pub owner: i64,
    /// Its version.
    pub version: i64,
    /// `scheme:id:permissions` of each entry.
    pub acl: Vec<String>,
}

/// kazoo in a process of its own.
#[derive(Debug)]
pub struct Kazoo {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    servers: String,
}

impl Kazoo {
    /// A reader of these servers (`host:port,…`).
    pub fn new(servers: &str) -> Kazoo {
        Kazoo::launch(Command::new(system_python()), servers)
    }

    /// As [`new`](Self::new), on a host of a network.
    pub fn within(space: &Space, servers: &str) -> Kazoo {
        Kazoo::launch(space.command(system_python()), servers)
    }

    fn launch(mut python: Command, servers: &str) -> Kazoo {
        require("/usr/lib/python3/dist-packages/kazoo", "python3-kazoo");
        let mut child = python
            .args(["-c", include_str!("reader.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot start python3");
        let stdin = child.stdin.take().expect("no pipe");
        let stdout = BufReader::new(child.stdout.take().expect("no pipe"));
        Kazoo { child, stdin, stdout, servers: servers.to_owned() }
    }

    /// Everything at and below a path.
    ///
    /// # Errors
    /// What kazoo says.
    pub fn tree(&mut self, path: &str) -> Result<BTreeMap<String, Znode>, String> {
        let answer = self.ask(json!({"do": "tree", "path": path}))?;
        let nodes = answer.as_object().cloned().unwrap_or_default();
        Ok(nodes.into_iter().map(|(path, node)| (path, znode(&node))).collect())
    }

    /// Changes a node, whatever its version.
    ///
    /// # Errors
    /// What kazoo says.
    pub fn set(&mut self, path: &str, content: &str) -> Result<(), String> {
        self.ask(json!({"do": "set", "path": path, "content": content})).map(|_| ())
    }

    /// Creates a persistent node and its parents.
    ///
    /// # Errors
    /// What kazoo says.
    pub fn create(&mut self, path: &str, content: &str) -> Result<(), String> {
        self.ask(json!({"do": "create", "path": path, "content": content})).map(|_| ())
    }

    /// Says what everybody may do with a node: `read`, `write`, `create`, `delete`, `admin`, `all`.
    ///
    /// # Errors
    /// What kazoo says.
    pub fn give_rights(&mut self, path: &str, rights: &[&str]) -> Result<(), String> {
        self.ask(json!({"do": "rights", "path": path, "rights": rights})).map(|_| ())
    }

    /// Deletes a node and all below it.
    ///
    /// # Errors
    /// What kazoo says.
    pub fn delete(&mut self, path: &str) -> Result<(), String> {
        self.ask(json!({"do": "delete", "path": path})).map(|_| ())
    }

    fn ask(&mut self, mut request: Value) -> Result<Value, String> {
        request["servers"] = json!(self.servers);
        writeln!(self.stdin, "{request}").expect("the reader has ended");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("cannot read from the reader");
        let mut answer: Value = serde_json::from_str(&line).expect("the reader has ended");
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["ok"].take()),
        }
    }
}

impl Drop for Kazoo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn znode(value: &Value) -> Znode {
    let acl = value["acl"].as_array().map_or(&[][..], Vec::as_slice);
    Znode {
        content: value["content"].as_str().unwrap_or_default().to_owned(),
        owner: value["owner"].as_i64().unwrap_or_default(),
        version: value["version"].as_i64().unwrap_or_default(),
        acl: acl.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
    }
}
