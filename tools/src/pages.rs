// SPDX-License-Identifier: MIT OR Apache-2.0

//! Manual pages and completion scripts, made from the grammar.

use std::path::Path;

use clap::CommandFactory;

use crate::cli::{Arguments, Completions, Man};
use crate::fail::Fail;
use crate::out;

/// Writes a manual page for the tool and one for each command.
pub(crate) fn man(a: &Man) -> Result<(), Fail> {
    let write = |dir: &Path| {
        std::fs::create_dir_all(dir)?;
        clap_mangen::generate_to(Arguments::command(), dir)
    };
    write(&a.dir).map_err(|e| Fail::other(&e))
}

/// Prints a completion script.
pub(crate) fn completions(a: &Completions) -> Result<(), Fail> {
    let mut script = Vec::new();
    clap_complete::generate(a.shell, &mut Arguments::command(), "ssictl", &mut script);
    out::bytes(&script)
}
