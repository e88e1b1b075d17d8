// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where processes are, and their moves.

/// Most files one [`Prepare`] names.
pub const MAX_FILES: usize = 2048;
/// Most processes one [`Processes`] names.
pub const MAX_PROCESSES: usize = 8192;

/// Move this process, or say whether it would.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Migrate {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Node it should go to; 0 in a question that names none.
    #[prost(uint32, tag = "2")]
    pub to: u32,
    /// User who asks.
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    /// How often this request may be passed on.
    #[prost(uint32, tag = "4")]
    pub hops: u32,
    /// Answer only when its memory is complete there.
    #[prost(bool, tag = "5")]
    pub wait: bool,
    /// That user may move the processes of all.
    #[prost(bool, tag = "6")]
    pub is_admin: bool,
}

/// A process is about to arrive.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Prepare {
    /// Names the migration.
    #[prost(uint64, tag = "1")]
    pub token: u64,
    /// Its number.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Node it was created on.
    #[prost(uint32, tag = "3")]
    pub home: u32,
    /// Its name.
    #[prost(string, tag = "4")]
    pub comm: String,
    /// Files it has mapped.
    #[prost(message, repeated, tag = "5")]
    pub files: Vec<File>,
    /// Directories it needs.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub dirs: Vec<Vec<u8>>,
    /// What its monotonic clock shows, in ns.
    #[prost(int64, tag = "7")]
    pub monotonic_ns: i64,
    /// What its boot-time clock shows, in ns.
    #[prost(int64, tag = "8")]
    pub boottime_ns: i64,
    /// Its user ids.
    #[prost(uint32, repeated, tag = "9")]
    pub uids: Vec<u32>,
}

/// Would you host a process?
#[derive(Clone, PartialEq, prost::Message)]
pub struct Host {
    /// Node it was created on.
    #[prost(uint32, tag = "1")]
    pub home: u32,
    /// Its user ids.
    #[prost(uint32, repeated, tag = "2")]
    pub uids: Vec<u32>,
}

/// A file by name and content.
#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    /// Absolute path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// SHA-256 of its content.
    #[prost(bytes = "vec", tag = "2")]
    pub sha256: Vec<u8>,
    /// Its length in bytes.
    #[prost(uint64, tag = "3")]
    pub size: u64,
}

/// Forget this migration.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Cancel {
    /// Its token.
    #[prost(uint64, tag = "1")]
    pub token: u64,
}

/// List the processes that run on you or were created on you.
#[derive(Clone, PartialEq, prost::Message)]
pub struct List {}

/// A migration has entered this phase.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Progress {
    /// Name of the phase, see [`the phases of a migration`].
    #[prost(string, tag = "1")]
    pub phase: String,
}

/// What a migration took.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Migrated {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Node it left.
    #[prost(uint32, tag = "2")]
    pub from: u32,
    /// Node it runs on.
    #[prost(uint32, tag = "3")]
    pub to: u32,
    /// Until its mapped files were read.
    #[prost(uint64, tag = "4")]
    pub digest_us: u64,
    /// Until the target was ready to receive.
    #[prost(uint64, tag = "5")]
    pub prepare_us: u64,
    /// The module's report; the fields of [`ssi::uapi::Report`].
    #[prost(uint64, tag = "6")]
    pub frozen_us: u64,
    /// See [`ssi::uapi::Report`].
    #[prost(uint64, tag = "7")]
    pub sent_us: u64,
    /// See [`ssi::uapi::Report`].
    #[prost(uint64, tag = "8")]
    pub ready_us: u64,
    /// See [`ssi::uapi::Report`].
    #[prost(uint64, tag = "9")]
    pub committed_us: u64,
    /// See [`ssi::uapi::Report`].
    #[prost(uint64, tag = "10")]
    pub filled_us: u64,
    /// See [`ssi::uapi::Report`].
    #[prost(uint64, tag = "11")]
    pub image_bytes: u64,
    /// See [`ssi::uapi::Report`].
    #[prost(uint64, tag = "12")]
    pub fetched_bytes: u64,
    /// See [`ssi::uapi::Report`].
    #[prost(uint64, tag = "13")]
    pub pushed_bytes: u64,
}

/// Ready to receive.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Prepared {
    /// One for each file of the request: whether the content is the same here.
    #[prost(bool, repeated, tag = "1")]
    pub equal: Vec<bool>,
}

/// Processes of one node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Processes {
    /// Each.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<Process>,
}

/// A process of the cluster.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Node that runs it.
    #[prost(uint32, tag = "2")]
    pub node: u32,
    /// Node it was created on.
    #[prost(uint32, tag = "3")]
    pub home: u32,
    /// Where it stands.
    #[prost(enumeration = "Place", tag = "4")]
    pub place: i32,
    /// Operations carried out at home.
    #[prost(uint64, tag = "5")]
    pub forwarded: u64,
    /// Threads.
    #[prost(uint32, tag = "6")]
    pub threads: u32,
    /// Pages not here yet.
    #[prost(uint64, tag = "7")]
    pub missing_pages: u64,
    /// Its name.
    #[prost(string, tag = "8")]
    pub comm: String,
}

/// Where a process stands, seen from the node that says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Place {
    /// Nothing: the field was missing.
    Unknown = 0,
    /// Created here and running here.
    Home = 1,
    /// Created here and running elsewhere.
    Away = 2,
    /// Created elsewhere and running here.
    Guest = 3,
    /// On its way.
    Moving = 4,
}

/// It would move.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Movable {
    /// Node that runs it.
    #[prost(uint32, tag = "1")]
    pub node: u32,
}
