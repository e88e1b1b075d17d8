// SPDX-License-Identifier: MIT OR Apache-2.0

//! Builds the stub (`stub/stub.rs`), which `src/stub.rs` embeds.

use std::path::PathBuf;
use std::process::Command;

/// Far from where programs, libraries and stacks of Linux lie, so that nothing collides.
const ADDRESS: &str = "0x1b500000000";

fn main() {
    println!("cargo::rerun-if-changed=stub/stub.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("stub");
    let rustc = std::env::var_os("RUSTC").expect("cargo sets RUSTC");
    let status = Command::new(rustc)
        .args([
            "--edition=2024",
            "--crate-name=stub",
            "--crate-type=bin",
            "stub/stub.rs",
        ])
        .args([
            "--target",
            &std::env::var("TARGET").expect("cargo sets TARGET"),
        ])
        .args([
            "-Cpanic=abort",
            "-Copt-level=s",
            "-Cdebuginfo=0",
            "-Cstrip=symbols",
        ])
        .args(["-Crelocation-model=pic", "-Clinker=cc"])
        .args([
            "-Clink-args=-nostdlib -static -no-pie",
            "-Clink-arg=-Wl,--build-id=none,-z,noexecstack",
        ])
        .arg(format!("-Clink-arg=-Wl,--image-base={ADDRESS}"))
        .arg("-o")
        .arg(&out)
        .env("SSI_BECOME", format!("{}.", ssi::uapi::BECOME))
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the stub did not build");
}
