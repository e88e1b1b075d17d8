// SPDX-License-Identifier: GPL-2.0-only

//! Unum: one process space over several machines.
//!
//! The order of the lists is the order of dependence: a module uses those above it.

#![crate_name = "ssi"]

use kernel::prelude::*;

// Compiled into user space too.
#[forbid(unsafe_code)]
pub mod asking;
#[forbid(unsafe_code)]
pub mod ends;
#[forbid(unsafe_code)]
pub mod id;
#[forbid(unsafe_code)]
pub mod link_session;
#[forbid(unsafe_code)]
pub mod uapi;
#[forbid(unsafe_code)]
pub mod wire;

// The kernel's C side.
pub mod sys;

// Everything else, without `unsafe`.
pub mod adopt;
pub mod capture;
pub mod cell;
pub mod ctl;
pub mod files;
pub mod gate;
pub mod link;
pub mod mover;
pub mod node;
pub mod pager;
pub mod params;
pub mod pids;
pub mod process;
pub mod puppet;
pub mod source;
pub mod stat;

module! {
    type: Ssi,
    name: "ssi",
    authors: ["Unum developers"],
    description: "Single system image: processes that move between machines",
    license: "GPL",
    params: {
        prefetch: u32 {
            default: 256,
            description: "Most pages asked for by one fault",
        },
        push: u32 {
            default: 1,
            description: "Whether pages are sent before they are asked for",
        },
    },
}

struct Ssi {
    // Dropped in this order: first nothing new comes in, then what is under way ends.
    _service: ctl::Service,
    _exits: sys::task::ExitWatch,
    _files: files::Service,
    _pool: sys::work::Pool,
    _memory: sys::mm::Device,
    _text: sys::work::Text,
}

impl kernel::Module for Ssi {
    fn init(module: &'static ThisModule) -> Result<Self> {
        sys::calls::init();
        let _text = sys::work::Text::new();
        puppet::puppets::init();
        process::processes::init();
        pager::pagers::init();
        source::sources::init();
        mover::leaving::init();
        mover::arriving::init();
        let _pool = sys::work::Pool::new()?;
        let _memory = sys::mm::Device::new()?;
        let _exits = sys::task::ExitWatch::new()?;
        let _files = files::Service::new()?;
        let _service = ctl::Service::start(module)?;
        Ok(Ssi {
            _service,
            _exits,
            _files,
            _pool,
            _memory,
            _text,
        })
    }
}
