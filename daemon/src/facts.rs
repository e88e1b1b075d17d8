// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this machine is made of, as far as the others must be made of the same.

use std::collections::BTreeSet;
use std::{fs, io};

use crate::core::facts::Facts;
use crate::sys;

/// What programs look for with CPUID and rely on from then on, by the names of `/proc/cpuinfo`. What
/// only kernels use may differ.
const FEATURES: &str = "\
    3dnowprefetch abm adx aes amx_bf16 amx_complex amx_fp16 amx_int8 amx_tile avx avx2 avx512_bf16 avx512_bitalg \
    avx512_fp16 avx512_vbmi2 avx512_vnni avx512_vp2intersect avx512_vpopcntdq avx512bw avx512cd avx512dq avx512f \
    avx512ifma avx512vbmi avx512vl avx_ifma avx_ne_convert avx_vnni avx_vnni_int16 avx_vnni_int8 bmi1 bmi2 cldemote \
    clflushopt clwb clzero cmpccxadd cx16 enqcmd f16c fma fma4 fsgsbase gfni hle lahf_lm misalignsse monitorx \
    movbe movdir64b movdiri ospke pclmulqdq pku pni popcnt ptwrite rdpid rdrand rdseed rdtscp rtm serialize sha512 \
    sha_ni sm3 sm4 sse4_1 sse4_2 sse4a ssse3 tbm tsxldtrk user_shstk vaes vpclmulqdq waitpkg wbnoinvd xgetbv1 xop \
    xsave xsavec xsaveopt";

/// Reads all of them that do not change while the machine runs.
///
/// # Errors
/// When `/proc` or `uname` does not tell.
pub fn read() -> io::Result<Facts> {
    let name = nix::sys::utsname::uname()?;
    let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    Ok(Facts {
        kernel: format!("{} {}", text(name.release()), text(name.version())),
        // The module's to tell, which may not be loaded yet.
        wire: 0,
        features: features(&fs::read_to_string("/proc/cpuinfo")?),
        xfeatures: sys::xfeatures(),
        dead_after_ms: 0,
    })
}

/// What all processors in the text of `/proc/cpuinfo` can do for programs.
fn features(cpuinfo: &str) -> BTreeSet<String> {
    let flags = |line: &str| {
        let (key, value) = line.split_once(':')?;
        let words = value.split_whitespace().map(str::to_owned);
        (key.trim() == "flags").then(|| words.collect::<BTreeSet<String>>())
    };
    let each = cpuinfo.lines().filter_map(flags);
    let common = each.reduce(|a, b| &a & &b).unwrap_or_default();
    let known: BTreeSet<String> = FEATURES.split_whitespace().map(str::to_owned).collect();
    &common & &known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_like_itself() {
        let one = read().unwrap();
        assert!(one.make_sense(), "{one:?}");
        assert!(
            one.features.contains("cx16") && one.xfeatures & 3 == 3,
            "{one:?}"
        );
        assert_eq!(one.differ(&read().unwrap()), []);
    }

    #[test]
    fn what_one_processor_lacks_the_machine_lacks() {
        let text = "flags\t: fpu avx avx2 erms\nbugs\t: avx512f\nflags\t: fpu avx erms\n";
        assert_eq!(features(text), BTreeSet::from(["avx".to_owned()]));
        assert_eq!(features("no flags"), BTreeSet::new());
    }
}
