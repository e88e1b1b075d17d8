// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use proptest::prelude::*;

fn attrs(fill: Fill<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let mut w = Writer::new(&mut buffer);
    fill(&mut w).unwrap();
    w.finish().to_vec()
}

#[test]
fn events_are_understood() {
    let payload = attrs(&|w| {
        w.u32(Attr::Peer, 2)?;
        w.u32(Attr::Class, 1)?;
        w.u32(Attr::Errno, 104)
    });
    let peer = NodeId::new(2).unwrap();
    assert_eq!(
        event(Cmd::LinkDown as u8, &payload),
        Ok(Some(Event::LinkDown {
            peer,
            class: Class::Memory,
            errno: 104
        }))
    );
    assert_eq!(
        event(Cmd::Renew as u8, &payload),
        Ok(Some(Event::Renew {
            peer,
            class: Class::Memory
        }))
    );
    assert!(event(Cmd::Migrated as u8, &payload).is_err());
    assert_eq!(event(200, &payload), Ok(None));
}

#[test]
fn a_failed_migration_has_a_reason_and_a_text() {
    let payload = attrs(&|w| {
        w.u64(Attr::Token, 9)?;
        w.u32(Attr::Errno, 5)?;
        w.u32(Attr::Reason, Reason::TargetRefused as u32)
    });
    let Ok(Some(Event::Migrated {
        token: 9,
        outcome: Err(r),
    })) = event(Cmd::Migrated as u8, &payload)
    else {
        panic!("not understood");
    };
    assert_eq!(r.reason, Reason::TargetRefused);
    assert!(!r.text.is_empty());
}

#[derive(Debug)]
struct Endless;

impl Channel for Endless {
    fn request(&self, cmd: Cmd, _: Vec<u8>) -> Result<Vec<u8>, netlink::Error> {
        assert_eq!(cmd, Cmd::Ps);
        let record = ProcRecord::read_from_bytes(&[1; size_of::<ProcRecord>()]).unwrap();
        Ok(attrs(&|w| {
            w.bytes(Attr::Procs, [record, record].as_bytes())
        }))
    }
}

#[tokio::test]
async fn a_list_without_end_ends() {
    let list = Kmod::with(Arc::new(Endless)).processes().await.unwrap();
    assert_eq!(list.len(), 1);
}

#[derive(Debug)]
struct Newer;

impl Channel for Newer {
    fn request(&self, _: Cmd, _: Vec<u8>) -> Result<Vec<u8>, netlink::Error> {
        Ok(attrs(&|w| w.u32(Attr::Version, 77)))
    }
}

#[tokio::test]
async fn another_version_is_refused_by_both_numbers() {
    let node = NodeId::new(1).unwrap();
    let e = Kmod::with(Arc::new(Newer))
        .hello(node)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("77") && e.contains(&format!("version {}", uapi::VERSION)),
        "{e}"
    );
}

/// Speaks our protocol, and to others as nobody does.
#[derive(Debug)]
struct Ours;

impl Channel for Ours {
    fn request(&self, _: Cmd, asked: Vec<u8>) -> Result<Vec<u8>, netlink::Error> {
        // Whoever says this one becomes a node.
        let asked = Attrs::parse(&asked).unwrap().u32(Attr::Version).unwrap();
        assert_ne!(asked, u32::from(uapi::VERSION));
        Ok(attrs(&|w| {
            w.u32(Attr::Version, u32::from(uapi::VERSION))?;
            w.u32(Attr::Wire, 99)
        }))
    }
}

#[tokio::test]
async fn the_module_says_what_it_speaks_to_others() {
    let told = Kmod::with(Arc::new(Ours)).ask_wire_version().await;
    assert_eq!(told.unwrap(), 99);
    let other = Kmod::with(Arc::new(Newer)).ask_wire_version().await;
    assert!(matches!(other, Err(Error::Version { module: 77, .. })));
}

proptest! {
    #[test]
    fn garbage_never_panics(cmd in 30u8..40, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = event(cmd, &bytes);
        let _ = verdict(Cmd::Why, &bytes);
    }
}
