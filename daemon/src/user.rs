// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who asks: the user at the other end of a local connection, and what he may do.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::sys;

/// Members of this group may do what root may.
pub const ADMINISTRATORS: &str = "ssi";
/// Where groups are listed. Those of a directory service are not asked for: the daemon is static.
const GROUPS: &str = "/etc/group";

/// A user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// His number.
    pub uid: u32,
    /// Root, or a member of the group `ssi`.
    pub is_admin: bool,
}

impl User {
    /// The one who made the connection `socket`, with the rights he had then.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let peer = getsockopt(socket, PeerCredentials)?;
        let is_member = || {
            let list = fs::read_to_string(GROUPS).unwrap_or_default();
            let Some(admins) = group(&list, ADMINISTRATORS) else {
                return Ok(false);
            };
            Ok::<_, io::Error>(peer.gid() == admins || sys::peer_groups(socket)?.contains(&admins))
        };
        Ok(Self {
            uid: peer.uid(),
            is_admin: peer.uid() == 0 || is_member()?,
        })
    }
}

/// The number of a group in the text of group(5).
fn group(list: &str, name: &str) -> Option<u32> {
    let line = list.lines().find(|l| l.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let list = "root:x:0:\nssid:x:7:\nssi:x:991:anna,bob\nbad:x:\n";
        assert_eq!(group(list, "ssi"), Some(991));
        assert_eq!(group(list, "ss"), None);
        assert_eq!(group(list, "bad"), None);
        assert_eq!(group("", "ssi"), None);
    }

    #[test]
    fn the_user_of_a_connection_is_the_one_who_made_it() {
        let (one, _other) = UnixStream::pair().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let user = User::of(&one).unwrap();
        assert_eq!(user.uid, uid);
        assert!(uid != 0 || user.is_admin);
        let mut groups = sys::peer_groups(&one).unwrap();
        let mut own: Vec<u32> = nix::unistd::getgroups()
            .unwrap()
            .iter()
            .map(|g| g.as_raw())
            .collect();
        groups.sort_unstable();
        own.sort_unstable();
        assert_eq!(groups, own);
    }
}
