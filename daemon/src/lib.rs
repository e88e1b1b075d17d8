// SPDX-License-Identifier: MIT OR Apache-2.0

//! The node daemon of a Unum cluster.
#![deny(unsafe_code)]

pub mod api;
pub mod arrive;
pub mod audit;
pub mod cluster;
pub mod config;
pub mod conn;
pub mod core;
pub mod daemon;
pub mod depart;
pub mod digest;
pub mod failure;
pub mod handover;
pub mod kmod;
pub mod msg;
pub mod net;
pub mod netlink;
pub mod peer;
pub mod pki;
pub mod proc;
pub mod serve;
pub mod service;
pub mod session;
pub mod stub;
pub mod sys;
pub mod tls;
pub mod varlink;
