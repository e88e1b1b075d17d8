// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whole daemons, two of them in one process, with modules that only take notes.
//!
//! Each daemon has a runtime of its own, so that one can be killed as a power cut would. Their
//! links go without TLS, because the kernel the tests run on may have none; the control connection
//! has it.

mod hostile;
mod recovery;
mod seal;
mod services;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use ssi::id::NodeId;
use ssi::uapi::{Attr, Attrs, Cmd, ProcRecord, Reason, Report, STATE_AWAY, STATE_GUEST, Writer};
use ssi::wire::Class;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::agree::{Timing, carrier};
use crate::api::govern::{InvitationReply, JoinReply};
use crate::api::{self, EventsReply, MigrateReply, NodesReply, PsReply, StatusReply, WhyReply};
use crate::core::hlc::Stamp;
use crate::core::state::{Command, Presence};
use crate::core::tie;
use crate::kmod::Channel;
use crate::msg;
use crate::netlink;
use crate::peer::Peer;
use crate::session::Session;
use crate::tls::testing::Authority;
use crate::varlink::{self, Client};

thread_local! {
    /// Whether nodes lie in this test.
    static THERE_ARE_LIARS: Cell<bool> = const { Cell::new(false) };
}

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A module that takes notes.
#[derive(Debug, Default)]
struct Notes {
    links: Mutex<[Vec<TcpStream>; Class::COUNT]>,
    deaths: Mutex<u32>,
    cancels: Mutex<u32>,
    /// So many moves find no link.
    unlinked: Mutex<u32>,
    records: Mutex<Vec<ProcRecord>>,
    events: Mutex<Option<mpsc::Sender<Event>>>,
}

fn attributes(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut buffer = vec![0; 8192];
    let mut w = Writer::new(&mut buffer);
    fill(&mut w);
    w.finish().to_vec()
}

impl Notes {
    /// Reports an event, as the module would.
    fn report(&self, event: Event) {
        let events = self.events.lock().unwrap().clone();
        events.unwrap().blocking_send(event).unwrap();
    }
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
                let mut unlinked = self.unlinked.lock().unwrap();
                if *unlinked > 0 {
                    *unlinked -= 1;
                    return Ok(attributes(|w| {
                        w.u32(Attr::Reason, Reason::NoLink as u32).unwrap();
                        w.u64(Attr::Detail, 0).unwrap();
                        w.bytes(Attr::Text, b"").unwrap();
                    }));
                }
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
                self.report(Event::Migrated {
                    token,
                    outcome: Ok(report),
                });
            }
            Cmd::Why => {}
            other => panic!("{other:?}"),
        }
        Ok(Vec::new())
    }
}

/// A running daemon.
struct Running {
    /// All of it ends with this.
    _runtime: Runtime,
    stage: Arc<Stage>,
    notes: Arc<Notes>,
    socket: PathBuf,
}

/// Whatever happened to honest nodes, none of them accuses another.
impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() || THERE_ARE_LIARS.get() {
            return;
        }
        let records = self.records();
        for event in ["offence", "accused", "quarantined"] {
            assert!(
                !records.contains(&format!("\"event\":\"{event}\"")),
                "{records}"
            );
        }
    }
}

/// Machines that are in no cluster unless a test says so.
struct Machines {
    dir: TempDir,
    ports: Vec<u16>,
}

impl Machines {
    fn new(count: usize) -> Self {
        // Ports that are free now and, most likely, in a moment too.
        let free = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let free: Vec<_> = free.collect();
        let ports = free.iter().map(|f| f.local_addr().unwrap().port());
        Self {
            dir: tempfile::tempdir().unwrap(),
            ports: ports.collect(),
        }
    }

    fn addr(&self, machine: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[usize::from(machine) - 1]).into()
    }

    fn config(&self, machine: u16) -> Config {
        let text = format!(
            "port = {}\nstate = \"{d}/state\"\npeer_dead_after_s = 5\nmetrics = \"off\"\nsocket = \"{d}/socket\"\naudit = \"{d}/audit\"\n",
            self.addr(machine).port(),
            d = self.dir.path().join(machine.to_string()).display()
        );
        Config {
            plain_links: true,
            ..Config::parse(std::path::Path::new("test"), &text).unwrap()
        }
    }

    /// That of the node a machine is.
    fn identity(&self, machine: u16) -> Identity {
        let store = Store::open(&self.config(machine).state).unwrap();
        let (seat, credentials) = store.load().unwrap().unwrap();
        Identity::of(seat.node, &credentials, Revoked::new()).unwrap()
    }

    fn start(&self, machine: u16) -> Running {
        self.start_as(machine, facts::read().unwrap())
    }

    fn start_as(&self, machine: u16, facts: Facts) -> Running {
        self.start_with(self.config(machine), facts)
    }

    fn start_with(&self, config: Config, facts: Facts) -> Running {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let notes = Arc::new(Notes::default());
        let socket = config.socket.clone();
        let of_module = Arc::clone(&notes);
        let stage = runtime.block_on(async {
            let store = Store::open(&config.state).unwrap();
            let listener = serve::listen(&config.socket, &mut Sockets::default()).unwrap();
            let equipment = Equipment {
                stubs: Arc::new(Stubs::new("/dev/null").unwrap()),
                audit: Arc::new(Audit::open(&config.audit, 0).unwrap()),
                facts,
                open_module: Box::new(move |_| {
                    let (sender, events) = mpsc::channel(16);
                    *of_module.events.lock().unwrap() = Some(sender);
                    let module = Kmod::with(Arc::clone(&of_module) as _);
                    Box::pin(async { Ok((module, events)) })
                }),
                timing: Timing {
                    heartbeat_ms: 100,
                    election_min_ms: 400,
                    election_max_ms: 1200,
                    majority_ms: 1200,
                    ..Timing::default()
                },
                sockets: Mutex::default(),
            };
            let stage = Stage::new(Arc::new(config), store, equipment);
            stage.resume().await.unwrap();
            tokio::spawn(serve::serve(listener, Arc::clone(&stage)));
            stage
        });
        Running {
            _runtime: runtime,
            stage,
            notes,
            socket,
        }
    }

    /// Founds a cluster on a machine; returns what others need to join.
    fn found(&self, machine: &Running, number: u16) -> InvitationReply {
        let addr = self.addr(number).to_string();
        machine.call("Init", json!({ "addr": addr })).unwrap()
    }

    /// Has a machine join; returns the node it is then.
    fn join(&self, machine: &Running, number: u16, by: &InvitationReply) -> u32 {
        let addr = self.addr(number).to_string();
        let reply: JoinReply = machine
            .call(
                "Join",
                json!({ "door": by.addr, "token": by.token, "ca_hash": by.ca_hash, "addr": addr }),
            )
            .unwrap();
        reply.node
    }
}

/// Two machines that formed a cluster before.
struct Pair(Machines);

impl Pair {
    fn new() -> Self {
        let machines = Machines::new(2);
        let (one, two) = (machines.start(1), machines.start(2));
        let invitation = machines.found(&one, 1);
        assert_eq!(machines.join(&two, 2, &invitation), 2);
        wait_for("what is agreed on comes to the second", || {
            two.council().state().nodes.len() == 2 && two.council().state() == one.council().state()
        });
        Self(machines)
    }
}

impl std::ops::Deref for Pair {
    type Target = Machines;

    fn deref(&self) -> &Machines {
        &self.0
    }
}

/// Why it is declined.
#[track_caller]
fn reason<T: std::fmt::Debug>(result: Result<T, varlink::Error>) -> String {
    match result {
        Err(varlink::Error::Reply { parameters, .. }) => {
            let reason = parameters["reason"].as_str().map(str::to_owned);
            reason.unwrap_or_else(|| panic!("{parameters}"))
        }
        other => panic!("{other:?}"),
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
    fn cluster(&self) -> Arc<Cluster> {
        self.stage.cluster().unwrap()
    }

    fn council(&self) -> Arc<Council> {
        Arc::clone(self.cluster().council().unwrap())
    }

    /// All of its audit log.
    fn records(&self) -> String {
        let dir = self.socket.with_file_name("audit");
        let files = std::fs::read_dir(dir).unwrap();
        let read =
            |f: io::Result<std::fs::DirEntry>| std::fs::read_to_string(f.unwrap().path()).unwrap();
        files.map(read).collect()
    }

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

    fn call_once<T: serde::de::DeserializeOwned>(&self, method: &str) -> Result<T, varlink::Error> {
        let method = format!("{}.{method}", api::INTERFACE);
        Client::connect(&self.socket, Some(PATIENCE))?.ask(&method, &json!({}))
    }

    fn state(&self, node: u32) -> String {
        let nodes: NodesReply = self.call("Nodes", json!({})).unwrap();
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

fn id(node: u16) -> NodeId {
    NodeId::new(node).unwrap()
}

/// Three nodes that are linked, and vote.
fn three_that_vote() -> (Machines, [Running; 3]) {
    let machines = Machines::new(3);
    let all = [1, 2, 3].map(|n| machines.start(n));
    let invitation = machines.found(&all[0], 1);
    for (node, number) in [(&all[1], 2), (&all[2], 3)] {
        assert_eq!(machines.join(node, number, &invitation), u32::from(number));
    }
    for (node, number) in all.iter().zip(1..) {
        wait_for("all are up", || {
            let others = [1, 2, 3].into_iter().filter(|n| *n != number);
            node.council().state().nodes.len() == 3
                && node.council().status().has_majority
                && others.into_iter().all(|n| node.state(n) == "up")
        });
    }
    wait_for("all vote", || all[0].council().status().voters.len() == 3);
    (machines, all)
}

/// The way from one node to another.
fn way(from: &Running, to: u16) -> Peer {
    from.cluster().roster().peer(id(to)).unwrap()
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
    let status = |of: &Running| -> StatusReply { of.call("Status", json!({})).unwrap() };
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
    n1.cluster().net().set_identity(Arc::new(stranger));
    // What stands, stands.
    assert_eq!(n1.state(2), "up");
    drop(n2);
    let n2 = pair.start(2);
    wait_for("a peer that turns us away", || n1.state(2) != "up");
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(n1.state(2), "up");
    assert!(n2.records().contains("connection-refused"));
    n1.cluster().net().set_identity(Arc::new(pair.identity(1)));
    wait_for("both up again", || {
        n1.state(2) == "up" && n2.state(1) == "up"
    });
}

#[test]
fn who_came_and_who_was_turned_away_is_recorded() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let mut stranger = TcpStream::connect(pair.addr(2)).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let log = |of: &Running| {
        let dir = of.socket.with_file_name("audit");
        let found = audit::verify(&dir, None).unwrap();
        assert_eq!(found.broken, None);
        of.records()
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
fn who_has_no_certificate_cannot_speak_as_a_node() {
    let pair = Pair::new();
    let n2 = pair.start(2);
    let hash = "sha256:".to_owned() + &"0".repeat(64);
    let joiner = tls::join_client(hash.parse().unwrap()).unwrap();
    let own = pair.identity(1);
    let mut bare = rustls::ClientConfig::clone(&own.client);
    bare.client_auth_cert_resolver = Arc::clone(&joiner.client_auth_cert_resolver);
    let runtime = Runtime::new().unwrap();
    let answer = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(pair.addr(2)).await.unwrap();
        let name = tls::server_name(NodeId::new(2).unwrap());
        let mut session = Session::connect(stream, Arc::new(bare), name)
            .await
            .unwrap();
        let preface = msg::Preface {
            version: msg::VERSION,
            node: 1,
            purpose: msg::Purpose::Control.into(),
            instance: 1,
            ..msg::Preface::default()
        };
        // It may have hung up before.
        let _ = session.send(&preface).await;
        session.receive::<msg::Preface>().await
    });
    assert!(answer.is_err(), "{answer:?}");
    let dir = n2.socket.with_file_name("audit");
    wait_for("a record of it", || {
        let files = std::fs::read_dir(&dir).unwrap();
        files
            .map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap())
            .any(|log| log.contains("a node without a certificate"))
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
        of.notes.report(event);
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
    n1.notes.report(Event::Renew {
        peer,
        class: Class::Memory,
    });
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

    let ps: PsReply = n2.call("Ps", json!({})).unwrap();
    assert!(ps.missing.is_empty());
    let row: Vec<_> = ps.processes.iter().filter(|p| p.pid == pid).collect();
    assert_eq!(row.len(), 1);
    assert_eq!(
        (row[0].node, row[0].home, &*row[0].state, &*row[0].comm),
        (1, 2, "away", "sleep")
    );

    let why: WhyReply = n2.call("Why", json!({ "pid": pid })).unwrap();
    assert_eq!(why.node, 1);

    let refused = |r: Result<MigrateReply, varlink::Error>| match r {
        Err(varlink::Error::Reply { name, parameters }) => (
            name.rsplit('.').next().unwrap().to_owned(),
            parameters["reason"].as_str().unwrap_or("").to_owned(),
        ),
        r => panic!("{r:?}"),
    };
    let migrate =
        |node: &Running, pid: u32, to: &str| node.call("Migrate", json!({ "pid": pid, "to": to }));
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

    // Home again, asked for at home: the deputy waits there, no stub is needed. That the link gets other keys just
    // then is waited for.
    *n1.notes.unlinked.lock().unwrap() = 2;
    let mut phases = Vec::new();
    let mut client = Client::connect(&n2.socket, Some(PATIENCE)).unwrap();
    let done: MigrateReply = client
        .call(
            "io.unum.Cluster.Migrate",
            &json!({ "pid": pid, "to": "2" }),
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
    assert_eq!(*n1.notes.unlinked.lock().unwrap(), 0);

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
        &[0xff; varlink::MAX_CALL_BYTES + 1],
    ] {
        let mut s = UnixStream::connect(&n1.socket).unwrap();
        let _ = s.write_all(bytes);
        let _ = s.read_to_end(&mut Vec::new());
        let mut t = TcpStream::connect(pair.addr(1)).unwrap();
        let _ = t.write_all(bytes);
    }
    let e = n1.call::<serde_json::Value>("Nope", json!({})).unwrap_err();
    assert!(
        matches!(e, varlink::Error::Reply { name, .. } if name == "org.varlink.service.MethodNotFound")
    );
    let e = n1
        .call::<serde_json::Value>("Migrate", json!({ "pid": "x" }))
        .unwrap_err();
    assert!(
        matches!(e, varlink::Error::Reply { name, .. } if name == "org.varlink.service.InvalidParameter")
    );
    let mut client = Client::connect(&n1.socket, Some(PATIENCE)).unwrap();
    let info: serde_json::Value = client
        .call("org.varlink.service.GetInfo", &json!({}), drop)
        .unwrap();
    assert_eq!(info["interfaces"][1], api::INTERFACE);
    // Two nodes in its file, one not there: it is soon called silent, and nothing waits for it.
    assert_eq!(n1.state(2), "silent");
    let ps: PsReply = n1.call("Ps", json!({})).unwrap();
    assert_eq!(ps.missing, [2]);
}

#[test]
fn a_machine_joins_and_leaves_while_everything_runs() {
    let machines = Machines::new(2);
    let (one, two) = (machines.start(1), machines.start(2));
    let call = |of: &Running, method| of.call::<serde_json::Value>(method, json!({}));
    assert_eq!(reason(call(&one, "Nodes")), "no-cluster");
    let invitation = machines.found(&one, 1);
    assert_eq!(reason(call(&one, "Init")), "already-in-a-cluster");
    let nodes = || -> usize {
        let reply: NodesReply = one.call("Nodes", json!({})).unwrap();
        reply.nodes.len()
    };
    assert_eq!(nodes(), 1);
    for (round, node) in [(1, 2), (2, 3)] {
        assert_eq!(machines.join(&two, 2, &invitation), node);
        wait_for("the node that came is up", || {
            one.state(node) == "up" && two.state(1) == "up"
        });
        let _: serde_json::Value = two.call("Leave", json!({})).unwrap();
        assert_eq!(reason(call(&two, "Nodes")), "no-cluster");
        wait_for("the node that left is gone", || nodes() == 1);
        wait_for("the module was told", || {
            *one.notes.deaths.lock().unwrap() == round
        });
    }
    let records = one.records();
    for part in [
        "\"action\":\"Init\"",
        "\"event\":\"join\"",
        "\"outcome\":\"n3\"",
    ] {
        assert!(records.contains(part), "{part} in {records}");
    }
}

#[test]
fn who_joins_hears_the_past_of_one_who_was_not_in_it() {
    let machines = Machines::new(3);
    let [one, two, three] = [1, 2, 3].map(|n| machines.start(n));
    let invitation = machines.found(&one, 1);
    // More than one message has.
    for i in 0..carrier::MAX_ENTRIES {
        let value = json!({ "name": format!("v{i}"), "value": "eA==" });
        let _: serde_json::Value = one.call("SetValue", value).unwrap();
    }
    assert_eq!(machines.join(&two, 2, &invitation), 2);
    wait_for("the second knows all", || {
        two.council().state() == one.council().state()
    });
    let _: serde_json::Value = one.call("Leave", json!({})).unwrap();
    wait_for("the second leads", || {
        two.council().status().leader == Some(id(2)) && two.council().state().nodes.len() == 1
    });
    let line: InvitationReply = two.call("CreateToken", json!({ "ttl_s": 60 })).unwrap();
    assert_eq!(machines.join(&three, 3, &line), 3);
    wait_for("the third knows all", || {
        three.council().state() == two.council().state() && three.state(2) == "up"
    });
}

#[test]
fn who_shows_no_good_token_stays_out() {
    let machines = Machines::new(2);
    let (one, two) = (machines.start(1), machines.start(2));
    let good = machines.found(&one, 1);
    let refused = |by: &InvitationReply| {
        let parameters = json!({ "door": by.addr, "token": by.token, "ca_hash": by.ca_hash });
        match two.call::<JoinReply>("Join", parameters).unwrap_err() {
            varlink::Error::Reply { parameters, .. } => parameters["reason"].to_string(),
            e => panic!("{e}"),
        }
    };
    let with = |token: &str, ca_hash: &str| InvitationReply {
        token: token.to_owned(),
        ca_hash: ca_hash.to_owned(),
        ..good.clone()
    };
    let other = format!("sha256:{}", "0".repeat(64));
    assert_eq!(refused(&with(&good.token, &other)), "\"other-cluster\"");
    assert_eq!(refused(&with("nonsense", &good.ca_hash)), "\"bad-request\"");
    let (id, secret) = good.token.split_once('.').unwrap();
    let guessed = format!("{id}.{}", "a".repeat(secret.len()));
    assert_eq!(refused(&with(&guessed, &good.ca_hash)), "\"token-unknown\"");
    let _: serde_json::Value = one.call("DropToken", json!({ "id": id })).unwrap();
    assert_eq!(refused(&good), "\"token-used-up\"");
    assert_eq!(one.council().state().nodes.len(), 1);
    assert!(one.records().contains("no such token"));
    assert!(!one.records().contains(secret));
}

#[test]
fn nodes_that_differ_do_not_speak_with_each_other() {
    let pair = Pair::new();
    let mut old = facts::read().unwrap();
    old.kernel = "6.1.0 #1".to_owned();
    old.features.insert("avx1024".to_owned());
    let (one, two) = (pair.start(1), pair.start_as(2, old));
    for (running, lacking) in [
        (&one, "processor here lacks avx1024"),
        (&two, "processor there lacks avx1024"),
    ] {
        wait_for("it is said what differs", || {
            let all = running.records();
            all.contains("connection-refused") && all.contains("6.1.0 #1") && all.contains(lacking)
        });
    }
    assert_ne!(one.state(2), "up");
    assert_ne!(two.state(1), "up");
    assert_eq!(one.links(Class::Control), 0);
    drop(two);
    let two = pair.start(2);
    wait_for("equal nodes link", || {
        one.state(2) == "up" && two.state(1) == "up"
    });
}

fn presence(of: &Running, node: u16) -> Presence {
    of.council().state().nodes[&NodeId::new(node).unwrap()].presence
}

#[test]
fn one_that_dies_is_declared_dead_and_comes_back_in_another_epoch() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let since = presence(&n1, 2).since;
    drop(n2);
    wait_for("it is declared dead", || {
        presence(&n1, 2).current().is_none()
    });
    assert_eq!(n1.state(2), "dead");
    let n2 = pair.start(2);
    wait_for("it is back", || presence(&n1, 2).current() > Some(since));
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    assert_eq!(*n1.notes.deaths.lock().unwrap(), 1);
    let records = n1.records();
    for part in ["declared-dead", "came-back"] {
        assert!(records.contains(part), "{part} in {records}");
    }
}

#[test]
fn one_that_is_declared_dead_and_lives_ends_what_it_had_first() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    let since = presence(&n1, 2).since;
    let node = NodeId::new(2).unwrap();
    Runtime::new()
        .unwrap()
        .block_on(n1.council().propose(Command::DeclareDead { node, since }))
        .unwrap();
    wait_for("it comes back", || presence(&n2, 2).since > since);
    for node in [&n1, &n2] {
        assert_eq!(*node.notes.deaths.lock().unwrap(), 1);
    }
    linked(&n1, &n2, 2);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    assert_eq!(presence(&n1, 2).current(), presence(&n2, 2).current());
}

#[test]
fn what_happens_anywhere_is_told_everywhere_in_order() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let events = |on: &Running| -> Vec<api::Event> {
        let reply: EventsReply = on.call_once("Events").unwrap();
        let stamps = reply.events.iter().map(|e| e.hlc.parse::<Stamp>().unwrap());
        assert!(stamps.is_sorted());
        reply.events
    };
    let links = |events: &[api::Event], node: u32| {
        let admitted = events
            .iter()
            .filter(|e| e.event == "node-admitted" && e.node == node);
        admitted.count()
    };
    for on in [&n1, &n2] {
        wait_for("the links of both", || {
            let all = events(on);
            links(&all, 1) == 3 && links(&all, 2) == 3
        });
    }
    // Those who watch are told at once, and for as long as they do.
    let (told, heard) = std::sync::mpsc::channel();
    let socket = n2.socket.clone();
    std::thread::spawn(move || {
        let mut client = Client::connect(&socket, None).unwrap();
        let method = format!("{}.Events", api::INTERFACE);
        let _ = client.call(&method, &json!({}), |reply: EventsReply| {
            let _ = told.send(reply.events);
        });
    });
    assert!(heard.recv_timeout(PATIENCE).unwrap().len() >= 6);
    let _: serde_json::Value = n1
        .call("Cordon", json!({ "node": "2", "cordoned": true }))
        .unwrap();
    let news = heard.recv_timeout(PATIENCE).unwrap();
    let cordon = news.iter().find(|e| e.event == "governed").unwrap();
    assert_eq!((cordon.node, &cordon.rest["action"]), (1, &json!("Cordon")));
}

#[test]
fn a_link_of_an_epoch_that_is_over_is_turned_away() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let runtime = Runtime::new().unwrap();
    let peer = n1.cluster().roster().node(NodeId::new(2).unwrap()).unwrap();
    let of = |node: u16| presence(&n1, node).since;
    for (own, other) in [(of(1), of(2) - 1), (of(1) + 1, of(2)), (0, 0)] {
        let cluster = n1.cluster();
        let pair = tie::Pair { own, other };
        let dial = cluster.net().dial_link(&peer, Class::Memory, 77, pair);
        // It is sent before it can be judged.
        let _ = runtime.block_on(dial);
    }
    wait_for("they are accounted for", || {
        n2.records().matches("of an epoch that is over").count() == 3
    });
    assert_eq!(n2.links(Class::Memory), 1);
}

#[test]
fn a_fenced_node_has_no_links_until_it_is_let_free() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    let fence = |node: &Running, is: bool| {
        let cluster = node.cluster();
        Runtime::new().unwrap().block_on(cluster.set_isolated(is));
    };
    for fenced in [&n1, &n2] {
        fence(fenced, true);
        wait_for("the module is told", || {
            *fenced.notes.deaths.lock().unwrap() == 1
        });
        let e = fenced.call::<MigrateReply>("Migrate", json!({ "pid": 1, "to": "1" }));
        assert!(e.is_err());
        fence(fenced, false);
        wait_for("it works again", || {
            n1.state(2) == "up" && n2.state(1) == "up"
        });
    }
    // The other side begins anew meanwhile: its links come and are not taken, and it must be asked for others.
    fence(&n2, true);
    drop(n1);
    let n1 = pair.start(1);
    wait_for("no links", || n1.state(2) == "linking");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(n1.links(Class::Control), 0);
    fence(&n2, false);
    wait_for("both up again", || {
        n1.state(2) == "up" && n2.state(1) == "up"
    });
}
