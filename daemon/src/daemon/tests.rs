// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whole daemons, two of them in one process, with modules that only take notes.
//!
//! Each daemon has a runtime of its own, so that one can be killed as a power cut would. Their
//! links go without TLS, because the kernel the tests run on may have none; the control connection
//! has it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ssi::id::NodeId;
use ssi::uapi::{Attr, Attrs, Cmd, ProcRecord, Report, STATE_AWAY, STATE_GUEST, Writer};
use ssi::wire::Class;
use tokio::runtime::Runtime;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::api::{self, MigrateReply, NodesReply, PsReply, StatusReply, WhyReply};
use crate::kmod::Channel;
use crate::netlink;
use crate::tls::testing::Authority;
use crate::varlink::{self, Client};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A module that takes notes.
#[derive(Debug)]
struct Notes {
    links: Mutex<[Vec<TcpStream>; Class::COUNT]>,
    deaths: Mutex<u32>,
    cancels: Mutex<u32>,
    records: Mutex<Vec<ProcRecord>>,
    events: mpsc::Sender<Event>,
}

fn attributes(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut buffer = vec![0; 8192];
    let mut w = Writer::new(&mut buffer);
    fill(&mut w);
    w.finish().to_vec()
}

impl Channel for Notes {
    fn request(&self, cmd: Cmd, attributes_in: Vec<u8>) -> Result<Vec<u8>, netlink::Error> {
        let attrs = Attrs::parse(&attributes_in).unwrap();
        match cmd {
            Cmd::Link => {
                let class = Class::from_u32(attrs.u32(Attr::Class).unwrap()).unwrap();
                let socket = crate::sys::duplicate(attrs.u32(Attr::Fd).unwrap()).unwrap();
                self.links.lock().unwrap()[class as usize].push(socket.into());
            }
            Cmd::PeerDead => *self.deaths.lock().unwrap() += 1,
            Cmd::Cancel => *self.cancels.lock().unwrap() += 1,
            Cmd::Ps => {
                let above = attrs.u32(Attr::Pid).unwrap();
                let records = self.records.lock().unwrap();
                let found: Vec<_> = records
                    .iter()
                    .filter(|r| r.pid.get() > above)
                    .copied()
                    .collect();
                return Ok(attributes(|w| {
                    w.bytes(Attr::Procs, found.as_bytes()).unwrap()
                }));
            }
            Cmd::Migrate => {
                let token = attrs.u64(Attr::Token).unwrap();
                assert!(
                    !attrs.bytes(Attr::Files).unwrap().is_empty(),
                    "the files on one machine are equal"
                );
                self.records.lock().unwrap().clear();
                let report = Report {
                    committed_us: 1234.into(),
                    ..Report::default()
                };
                self.events
                    .blocking_send(Event::Migrated {
                        token,
                        outcome: Ok(report),
                    })
                    .unwrap();
            }
            Cmd::Why => {}
            other => panic!("{other:?}"),
        }
        Ok(Vec::new())
    }
}

/// A running daemon.
struct Running {
    _runtime: Runtime,
    net: Arc<Net>,
    notes: Arc<Notes>,
    socket: PathBuf,
}

struct Pair {
    authority: Authority,
    addrs: [SocketAddr; 2],
}

impl Pair {
    fn new() -> Self {
        // Two ports that are free now and, most likely, in a moment too.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (a, b) = (free(), free());
        Self {
            authority: Authority::new(),
            addrs: [a.local_addr().unwrap(), b.local_addr().unwrap()],
        }
    }

    fn start(&self, node: u16) -> Running {
        let config = Config {
            plain_links: true,
            ..self.authority.config(node, &self.addrs)
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (sender, events) = mpsc::channel(16);
        let notes = Arc::new(Notes {
            links: Mutex::default(),
            deaths: Mutex::default(),
            cancels: Mutex::default(),
            records: Mutex::default(),
            events: sender,
        });
        let module = Kmod::with(Arc::clone(&notes) as _);
        let socket = config.socket.clone();
        let net = runtime.block_on(async {
            let identity = Identity::load(&config).unwrap();
            let listener = serve::listen(&config.socket).unwrap();
            let stubs = Arc::new(Stubs::new("/dev/null").unwrap());
            let audit = Arc::new(Audit::open(&config.audit, node).unwrap());
            let parts = Parts {
                module,
                stubs,
                audit,
            };
            start(Arc::new(config), identity, parts, events, listener)
                .await
                .unwrap()
        });
        Running {
            _runtime: runtime,
            net,
            notes,
            socket,
        }
    }
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Running {
    fn links(&self, class: Class) -> usize {
        self.notes.links.lock().unwrap()[class as usize].len()
    }

    fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        parameters: serde_json::Value,
    ) -> Result<T, varlink::Error> {
        Client::connect(&self.socket, Some(PATIENCE))?.call(
            &format!("{}.{method}", api::INTERFACE),
            &parameters,
            drop,
        )
    }

    fn state(&self, node: u32) -> String {
        let nodes: NodesReply = self.call("Nodes", serde_json::json!({})).unwrap();
        nodes
            .nodes
            .into_iter()
            .find(|n| n.id == node)
            .unwrap()
            .state
    }

    /// The link of `class` that was handed down last.
    fn link(&self, class: Class) -> TcpStream {
        self.notes.links.lock().unwrap()[class as usize]
            .last()
            .unwrap()
            .try_clone()
            .unwrap()
    }

    fn add(&self, pid: u32, home: u16, node: u16, state: u16) {
        let mut r = ProcRecord::read_from_bytes(&[0; size_of::<ProcRecord>()]).unwrap();
        r.pid.set(pid);
        r.home.set(home);
        r.node.set(node);
        r.state.set(state);
        r.comm[..5].copy_from_slice(b"sleep");
        self.notes.records.lock().unwrap().push(r);
    }
}

#[track_caller]
fn linked(a: &Running, b: &Running, count: usize) {
    for class in Class::ALL {
        wait_for("links on both sides", || {
            a.links(class) >= count && b.links(class) >= count
        });
    }
}

#[test]
fn the_state_of_a_cluster_is_that_of_all_its_nodes() {
    let pair = Pair::new();
    let n1 = pair.start(1);
    let status =
        |of: &Running| -> StatusReply { of.call("Status", serde_json::json!({})).unwrap() };
    let alone = status(&n1);
    assert_eq!(alone.health, api::DEGRADED);
    assert_eq!(alone.problems[0].text, "n2 is silent, say n1");
    assert_eq!((alone.nodes[1].round_trip_us, alone.nodes.len()), (None, 2));
    let n2 = pair.start(2);
    for of in [&n1, &n2] {
        wait_for("a whole cluster", || status(of).health == api::WHOLE);
    }
    let whole = status(&n2);
    assert_eq!(whole.problems, []);
    assert_eq!(whole.nodes[1].state, "self");
    assert!(whole.nodes[0].round_trip_us.is_some_and(|us| us > 0));
    let offset_us = whole.nodes[0].clock_offset_us.unwrap();
    assert!(offset_us.abs() < 1_000_000, "{offset_us}");
}

#[test]
fn another_certificate_is_used_for_the_next_connection() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    let stranger = Authority::new().identity(1);
    n1.net.set_identity(Arc::new(stranger));
    // What stands, stands.
    assert_eq!(n1.state(2), "up");
    let addrs = pair.addrs;
    drop(n2);
    let n2 = pair.start(2);
    wait_for("a peer that turns us away", || n1.state(2) != "up");
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(n1.state(2), "up");
    let log = std::fs::read_dir(n2.socket.with_file_name("audit")).unwrap();
    let log: String = log
        .map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap())
        .collect();
    assert!(log.contains("connection-refused"), "{log}");
    n1.net.set_identity(Arc::new(
        Identity::load(&pair.authority.config(1, &addrs)).unwrap(),
    ));
    wait_for("both up again", || {
        n1.state(2) == "up" && n2.state(1) == "up"
    });
}

#[test]
fn who_came_and_who_was_turned_away_is_recorded() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let mut stranger = TcpStream::connect(pair.addrs[1]).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let log = |of: &Running| {
        let dir = of.socket.with_file_name("audit");
        let found = audit::verify(&dir, None).unwrap();
        assert_eq!(found.broken, None);
        let files = std::fs::read_dir(&dir).unwrap();
        files
            .map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap())
            .collect::<String>()
    };
    let admitted = |of: &Running, side: &str, purpose: &str| {
        let wanted = format!("\"purpose\":\"{purpose}\",\"incoming\":{side}");
        wait_for(&wanted, || log(of).contains(&wanted));
    };
    admitted(&n1, "false", "daemon");
    admitted(&n2, "true", "daemon");
    // Here the links go without TLS, and are accounted for all the same.
    admitted(&n2, "true", "link-memory");
    wait_for("the stranger", || {
        let log = log(&n2);
        log.contains("connection-refused") && log.contains("\"addr\":\"127.0.0.1:")
    });
}

#[test]
fn a_pair_links_mends_and_survives_a_death() {
    let pair = Pair::new();
    let n1 = pair.start(1);
    let n2 = pair.start(2);
    linked(&n1, &n2, 1);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");

    // The sockets of one class are two ends of one connection, with nothing in between.
    for class in Class::ALL {
        let (mut a, mut b) = (n1.link(class), n2.link(class));
        a.set_read_timeout(Some(PATIENCE)).unwrap();
        b.set_read_timeout(Some(PATIENCE)).unwrap();
        a.write_all(b"ping").unwrap();
        b.write_all(b"pong").unwrap();
        let mut got = [0; 4];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
        a.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"pong");
    }

    // Either side may find a link broken; only that class is made again.
    let down = |of: &Running, peer: u16| {
        let event = Event::LinkDown {
            peer: NodeId::new(peer).unwrap(),
            class: Class::Memory,
            errno: 104,
        };
        of.notes.events.blocking_send(event).unwrap();
    };
    n2.link(Class::Memory).shutdown(Shutdown::Both).unwrap();
    down(&n2, 1);
    wait_for("another link", || {
        n1.links(Class::Memory) == 2 && n2.links(Class::Memory) == 2
    });
    // Late news of the one that was replaced, on both sides, break nothing.
    down(&n1, 2);
    down(&n2, 1);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((n1.links(Class::Memory), n2.links(Class::Memory)), (2, 2));
    let peer = NodeId::new(2).unwrap();
    n1.notes
        .events
        .blocking_send(Event::Renew {
            peer,
            class: Class::Memory,
        })
        .unwrap();
    wait_for("a third link", || {
        n1.links(Class::Memory) == 3 && n2.links(Class::Memory) == 3
    });
    assert_eq!((n1.links(Class::Control), n2.links(Class::Control)), (1, 1));

    drop(n2);
    wait_for("silence", || n1.state(2) == "silent");
    wait_for("death", || n1.state(2) == "dead");
    wait_for("the module hears of it", || {
        *n1.notes.deaths.lock().unwrap() == 1
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(*n1.notes.deaths.lock().unwrap(), 1, "once");

    let before = n1.links(Class::Control);
    let n2 = pair.start(2);
    wait_for("up again", || n1.state(2) == "up");
    linked(&n1, &n2, 1);
    wait_for("linked again", || n1.links(Class::Control) > before);
    assert_eq!(*n2.notes.deaths.lock().unwrap(), 0);
}

#[test]
fn a_daemon_that_restarts_quickly_is_linked_again_and_not_declared_dead() {
    let pair = Pair::new();
    let n2 = pair.start(2);
    let n1 = pair.start(1);
    linked(&n1, &n2, 1);
    drop(n1);
    let n1 = pair.start(1);
    linked(&n1, &n2, 1);
    wait_for("new links at the other side", || {
        n2.links(Class::Control) == 2 && n2.links(Class::Memory) == 2
    });
    assert_eq!(*n2.notes.deaths.lock().unwrap(), 0);
}

/// A process of this machine with a number of node `node`'s range; `None` where none can be made.
fn process(node: NodeId, offset: u32) -> Option<(u32, OwnedFd)> {
    use std::os::fd::AsFd;
    let pid = node.first_pid() + offset;
    let sleep = std::fs::File::open("/bin/sleep").unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    match crate::sys::spawn_as(
        pid,
        sleep.as_fd(),
        null.as_fd(),
        "sleep",
        "60",
        "monotonic 0 0\n",
    ) {
        Ok(pidfd) => Some((pid, pidfd)),
        Err(e) => {
            eprintln!("skipped: cannot start a process as {pid} here: {e}");
            None
        }
    }
}

#[test]
fn a_move_is_asked_for_anywhere_and_carried_out_where_the_process_runs() {
    let pair = Pair::new();
    let n1 = pair.start(1);
    let n2 = pair.start(2);
    linked(&n1, &n2, 1);
    let home = NodeId::new(2).unwrap();
    let Some((pid, guest)) = process(home, 4_242) else {
        return;
    };
    // As if it had been created on n2 and ran on n1.
    n1.add(pid, 2, 1, STATE_GUEST);
    n2.add(pid, 2, 1, STATE_AWAY);

    let ps: PsReply = n2.call("Ps", serde_json::json!({})).unwrap();
    assert!(ps.missing.is_empty());
    let row: Vec<_> = ps.processes.iter().filter(|p| p.pid == pid).collect();
    assert_eq!(row.len(), 1);
    assert_eq!(
        (row[0].node, row[0].home, &*row[0].state, &*row[0].comm),
        (1, 2, "away", "sleep")
    );

    let why: WhyReply = n2.call("Why", serde_json::json!({ "pid": pid })).unwrap();
    assert_eq!(why.node, 1);

    let refused = |r: Result<MigrateReply, varlink::Error>| match r {
        Err(varlink::Error::Reply { name, parameters }) => (
            name.rsplit('.').next().unwrap().to_owned(),
            parameters["reason"].as_str().unwrap_or("").to_owned(),
        ),
        r => panic!("{r:?}"),
    };
    let migrate = |node: &Running, pid: u32, to: &str| {
        node.call("Migrate", serde_json::json!({ "pid": pid, "to": to }))
    };
    assert_eq!(
        refused(migrate(&n2, pid, "n1")),
        ("Refused".to_owned(), "already-there".to_owned())
    );
    assert_eq!(refused(migrate(&n2, pid, "n7")).0, "NotFound");
    assert_eq!(
        refused(migrate(&n1, home.first_pid() + 99_999, "n1")).0,
        "NotFound"
    );
    assert_eq!(
        refused(migrate(&n1, 1, "n2")),
        ("Refused".to_owned(), "too-old".to_owned())
    );

    // Home again, asked for at home: the deputy waits there, no stub is needed.
    let mut phases = Vec::new();
    let mut client = Client::connect(&n2.socket, Some(PATIENCE)).unwrap();
    let done: MigrateReply = client
        .call(
            "io.unum.Cluster.Migrate",
            &serde_json::json!({ "pid": pid, "to": "2" }),
            |r: MigrateReply| {
                phases.extend(r.phase);
            },
        )
        .unwrap();
    let m = done.migration.unwrap();
    assert_eq!(
        (m.pid, m.from, m.to, m.times.committed_us),
        (pid, 1, 2, 1234)
    );
    assert_eq!(phases, ["reading", "preparing", "moving"]);

    // A target that has the number already says so, and nothing was begun.
    let Some((other, second)) = process(NodeId::new(1).unwrap(), 4_243) else {
        return;
    };
    let message = match migrate(&n2, other, "n2") {
        Err(varlink::Error::Reply { parameters, .. }) => {
            parameters["text"].as_str().unwrap().to_owned()
        }
        r => panic!("{r:?}"),
    };
    assert!(message.contains("taken"), "{message}");
    for pidfd in [guest, second] {
        use std::os::fd::AsFd;
        crate::sys::kill(pidfd.as_fd()).unwrap();
    }
}

#[test]
fn garbage_on_the_socket_and_the_port_ends_only_that_connection() {
    let pair = Pair::new();
    let n1 = pair.start(1);
    for bytes in [
        &b"\0"[..],
        b"{}\0",
        b"GET / HTTP/1.1\r\n\r\n\0",
        &[0xff; 70_000],
    ] {
        let mut s = UnixStream::connect(&n1.socket).unwrap();
        let _ = s.write_all(bytes);
        let _ = s.read_to_end(&mut Vec::new());
        let mut t = TcpStream::connect(pair.addrs[0]).unwrap();
        let _ = t.write_all(bytes);
    }
    let e = n1
        .call::<serde_json::Value>("Nope", serde_json::json!({}))
        .unwrap_err();
    assert!(
        matches!(e, varlink::Error::Reply { name, .. } if name == "org.varlink.service.MethodNotFound")
    );
    let e = n1
        .call::<serde_json::Value>("Migrate", serde_json::json!({ "pid": "x" }))
        .unwrap_err();
    assert!(
        matches!(e, varlink::Error::Reply { name, .. } if name == "org.varlink.service.InvalidParameter")
    );
    let mut client = Client::connect(&n1.socket, Some(PATIENCE)).unwrap();
    let info: serde_json::Value = client
        .call("org.varlink.service.GetInfo", &serde_json::json!({}), drop)
        .unwrap();
    assert_eq!(info["interfaces"][1], api::INTERFACE);
    // Two nodes in its file, one not there: it is soon called silent, and nothing waits for it.
    assert_eq!(n1.state(2), "silent");
    let ps: PsReply = n1.call("Ps", serde_json::json!({})).unwrap();
    assert_eq!(ps.missing, [2]);
}
