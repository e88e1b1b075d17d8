// SPDX-License-Identifier: MIT OR Apache-2.0

//! What names, addresses and authorities must be like.

use std::net::{IpAddr, SocketAddr};

use ssi::id::NodeId;

use super::{MAX_CA_BYTES, MAX_NAME_BYTES, MAX_SEALED_BYTES, Refusal};

/// The name of a cluster.
pub(super) fn check_name(name: &str) -> Result<(), Refusal> {
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let good = bytes.len() <= MAX_NAME_BYTES
        && end(bytes.first())
        && end(bytes.last())
        && bytes
            .iter()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
    good.then_some(()).ok_or(Refusal::NameInvalid)
}

/// As [`check_name`], and no name by which another node is called: `n2`, or `2`.
pub(super) fn check_node_name(name: &str, node: NodeId) -> Result<(), Refusal> {
    check_name(name)?;
    let digits = name.strip_prefix('n').unwrap_or(name);
    let is_number = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty();
    if is_number && name != node.to_string() {
        return Err(Refusal::NameInvalid);
    }
    Ok(())
}

/// An address at which a daemon may be reached.
pub(super) fn check_addr(addr: SocketAddr) -> Result<(), Refusal> {
    let ip = addr.ip().to_canonical();
    if addr.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        return Err(Refusal::AddrInvalid);
    }
    Ok(())
}

/// The same place has the same answer, however it is written.
pub(super) fn place(addr: SocketAddr) -> (IpAddr, u16) {
    (addr.ip().to_canonical(), addr.port())
}

/// Certificate and key of an authority, which nobody looks into here.
pub(super) fn check_authority(ca: &str, sealed_key: &[u8]) -> Result<(), Refusal> {
    if (1..=MAX_CA_BYTES).contains(&ca.len()) && (1..=MAX_SEALED_BYTES).contains(&sealed_key.len())
    {
        return Ok(());
    }
    Err(Refusal::AuthorityInvalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let two = NodeId::new(2).unwrap();
        let long = "x".repeat(MAX_NAME_BYTES);
        for good in ["a", "0x", "rack-1.host", "n2", "n2x", "nn3", long.as_str()] {
            assert_eq!(check_node_name(good, two), Ok(()), "{good}");
        }
        let longer = long.clone() + "x";
        for wrong in [
            "", "-a", "a-", ".a", "A", "a b", "a/b", "é", "n3", "n02", "2", "17", &longer,
        ] {
            let result = check_node_name(wrong, two);
            assert_eq!(result, Err(Refusal::NameInvalid), "{wrong}");
        }
    }

    #[test]
    fn addresses() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        for wrong in [
            "0.0.0.0:1",
            "[::]:1",
            "10.0.0.1:0",
            "224.0.0.1:1",
            "[::ffff:0.0.0.0]:1",
        ] {
            assert_eq!(
                check_addr(addr(wrong)),
                Err(Refusal::AddrInvalid),
                "{wrong}"
            );
        }
        assert_eq!(check_addr(addr("[fd00::1]:7400")), Ok(()));
        assert_eq!(
            place(addr("[::ffff:10.0.0.1]:1")),
            place(addr("10.0.0.1:1"))
        );
    }
}
