// SPDX-License-Identifier: MIT OR Apache-2.0

//! The node daemon of a Unum cluster.
#![deny(unsafe_code)]

pub mod agree;
pub mod api;
pub mod arrive;
pub mod audit;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod conn;
pub mod core;
pub mod council;
pub mod daemon;
pub mod depart;
pub mod digest;
pub mod facts;
pub mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod handover;
pub mod join;
pub mod kmod;
pub mod metrics;
pub mod msg;
pub mod net;
pub mod netlink;
pub mod peer;
pub mod pki;
pub mod proc;
pub mod roster;
pub mod seat;
pub mod serve;
pub mod service;
pub mod session;
pub mod sockets;
pub mod stage;
pub mod stub;
pub mod survey;
pub mod sys;
pub mod tls;
pub mod user;
pub mod varlink;
