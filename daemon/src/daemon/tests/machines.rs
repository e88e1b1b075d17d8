// SPDX-License-Identifier: MIT OR Apache-2.0

//! Machines, what runs on them, and their modules.

use super::*;

thread_local! {
    /// Whether nodes lie in this test.
    pub(super) static THERE_ARE_LIARS: Cell<bool> = const { Cell::new(false) };
}

/// Longest wait for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A module that takes notes.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) links: Mutex<[Vec<TcpStream>; Class::COUNT]>,
    pub(super) deaths: Mutex<u32>,
    pub(super) cancels: Mutex<u32>,
    /// So many moves find no link.
    pub(super) unlinked: Mutex<u32>,
    pub(super) records: Mutex<Vec<ProcRecord>>,
    pub(super) events: Mutex<Option<mpsc::Sender<Event>>>,
}

pub(super) fn attributes(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut buffer = vec![0; 8192];
    let mut w = Writer::new(&mut buffer);
    fill(&mut w);
    w.finish().to_vec()
}

impl Notes {
    /// Reports an event, as the module would.
    pub(super) fn report(&self, event: Event) {
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
pub(super) struct Running {
    /// All of it ends with this.
    pub(super) _runtime: Runtime,
    pub(super) stage: Arc<Stage>,
    pub(super) notes: Arc<Notes>,
    pub(super) socket: PathBuf,
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
pub(super) struct Machines {
    pub(super) dir: TempDir,
    pub(super) ports: Vec<u16>,
}

impl Machines {
    pub(super) fn new(count: usize) -> Self {
        // Ports that are free now and, most likely, in a moment too.
        let free = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let free: Vec<_> = free.collect();
        let ports = free.iter().map(|f| f.local_addr().unwrap().port());
        Self {
            dir: tempfile::tempdir().unwrap(),
            ports: ports.collect(),
        }
    }

    pub(super) fn addr(&self, machine: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[usize::from(machine) - 1]).into()
    }

    pub(super) fn config(&self, machine: u16) -> Config {
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
    pub(super) fn identity(&self, machine: u16) -> Identity {
        let store = Store::open(&self.config(machine).state).unwrap();
        let (seat, credentials) = store.load().unwrap().unwrap();
        Identity::of(seat.node, &credentials, Revoked::new()).unwrap()
    }

    pub(super) fn start(&self, machine: u16) -> Running {
        self.start_as(machine, facts::read().unwrap())
    }

    pub(super) fn start_as(&self, machine: u16, facts: Facts) -> Running {
        self.start_with(self.config(machine), facts)
    }

    pub(super) fn start_with(&self, config: Config, facts: Facts) -> Running {
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
                facts: Box::new(move || Box::pin(std::future::ready(Ok(facts.clone())))),
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
    pub(super) fn found(&self, machine: &Running, number: u16) -> InvitationReply {
        let addr = self.addr(number).to_string();
        machine.call("Init", json!({ "addr": addr })).unwrap()
    }

    /// Has a machine join; returns the node it is then.
    pub(super) fn join(&self, machine: &Running, number: u16, by: &InvitationReply) -> u32 {
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
pub(super) struct Pair(pub(super) Machines);

impl Pair {
    pub(super) fn new() -> Self {
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
pub(super) fn reason<T: std::fmt::Debug>(result: Result<T, varlink::Error>) -> String {
    match result {
        Err(varlink::Error::Reply { parameters, .. }) => {
            let reason = parameters["reason"].as_str().map(str::to_owned);
            reason.unwrap_or_else(|| panic!("{parameters}"))
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(super) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Running {
    pub(super) fn cluster(&self) -> Arc<Cluster> {
        self.stage.cluster().unwrap()
    }

    pub(super) fn council(&self) -> Arc<Council> {
        Arc::clone(self.cluster().council().unwrap())
    }

    /// All of its audit log.
    pub(super) fn records(&self) -> String {
        let dir = self.socket.with_file_name("audit");
        let files = std::fs::read_dir(dir).unwrap();
        let read =
            |f: io::Result<std::fs::DirEntry>| std::fs::read_to_string(f.unwrap().path()).unwrap();
        files.map(read).collect()
    }

    pub(super) fn links(&self, class: Class) -> usize {
        self.notes.links.lock().unwrap()[class as usize].len()
    }

    pub(super) fn call<T: serde::de::DeserializeOwned>(
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

    pub(super) fn call_once<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
    ) -> Result<T, varlink::Error> {
        let method = format!("{}.{method}", api::INTERFACE);
        Client::connect(&self.socket, Some(PATIENCE))?.ask(&method, &json!({}))
    }

    pub(super) fn state(&self, node: u32) -> String {
        let nodes: NodesReply = self.call("Nodes", json!({})).unwrap();
        nodes
            .nodes
            .into_iter()
            .find(|n| n.id == node)
            .unwrap()
            .state
    }

    /// The link of `class` that was handed down last.
    pub(super) fn link(&self, class: Class) -> TcpStream {
        self.notes.links.lock().unwrap()[class as usize]
            .last()
            .unwrap()
            .try_clone()
            .unwrap()
    }

    pub(super) fn add(&self, pid: u32, home: u16, node: u16, state: u16) {
        let mut r = ProcRecord::read_from_bytes(&[0; size_of::<ProcRecord>()]).unwrap();
        r.pid.set(pid);
        r.home.set(home);
        r.node.set(node);
        r.state.set(state);
        r.comm[..5].copy_from_slice(b"sleep");
        self.notes.records.lock().unwrap().push(r);
    }
}

pub(super) fn id(node: u16) -> NodeId {
    NodeId::new(node).unwrap()
}

/// So many nodes that are linked; three of them vote.
pub(super) fn formed<const N: usize>() -> (Machines, [Running; N]) {
    let machines = Machines::new(N);
    let numbers = || (1..).take(N);
    let mut start = numbers().map(|n| machines.start(n));
    let all: [Running; N] = std::array::from_fn(|_| start.next().unwrap());
    let invitation = machines.found(&all[0], 1);
    for (node, number) in all.iter().zip(numbers()).skip(1) {
        assert_eq!(machines.join(node, number, &invitation), u32::from(number));
    }
    for node in &all {
        wait_for("all are up", || {
            let is_up = |n: u16| ["up", "self"].contains(&node.state(n.into()).as_str());
            node.council().state().nodes.len() == N
                && node.council().status().has_majority
                && numbers().all(is_up)
        });
    }
    wait_for("three vote", || all[0].council().status().voters.len() == 3);
    (machines, all)
}

/// The way from one node to another.
pub(super) fn way(from: &Running, to: u16) -> Peer {
    from.cluster().roster().peer(id(to)).unwrap()
}

#[track_caller]
pub(super) fn linked(a: &Running, b: &Running, count: usize) {
    for class in Class::ALL {
        wait_for("links on both sides", || {
            a.links(class) >= count && b.links(class) >= count
        });
    }
}

pub(super) fn presence(of: &Running, node: u16) -> Presence {
    of.council().state().nodes[&NodeId::new(node).unwrap()].presence
}
