// SPDX-License-Identifier: MIT OR Apache-2.0

//! One member and what may be said to it.

use proptest::prelude::*;

use super::*;

fn m(node: u16) -> Member {
    Member { node, epoch: 1 }
}

fn life(node: u16, turn: u64) -> Life {
    Life {
        member: m(node),
        turn,
    }
}

/// Node 1 of a cluster of `nodes`.
fn swim(nodes: u16) -> Swim {
    let mut swim = Swim::new(m(1), 7, Config::default());
    for node in 1..=nodes {
        swim.list(0, m(node)).unwrap();
    }
    swim
}

fn from(node: u16, message: Message<Life>, words: Vec<Word>) -> Vec<u8> {
    let header = Header {
        src: life(node, 0),
        src_incarnation: 0,
        dst: life(1, 0),
        message,
    };
    Packet { header, words }.encode().unwrap()
}

fn sent(swim: &mut Swim) -> Vec<Packet> {
    let outputs = swim.outputs().filter_map(|o| match o {
        Output::Send { to, bytes } => {
            let packet = Packet::decode(&bytes).unwrap();
            assert_eq!(packet.header.dst.node(), to);
            Some(packet)
        }
        Output::Event { .. } => None,
    });
    outputs.collect()
}

fn run(swim: &mut Swim, until_ms: u64) {
    while swim.due_ms() <= until_ms {
        swim.wake(swim.due_ms());
    }
}

#[test]
fn word_that_one_is_down_is_a_suspicion_and_it_is_asked_itself() {
    let mut swim = swim(4);
    let word = Word::new(life(3, 0), 0, State::Down);
    swim.take(10, 2, &from(2, Message::Gossip, vec![word]))
        .unwrap();
    assert_eq!(swim.seems(3), Some(Seems::Suspect));
    let _ = sent(&mut swim);
    run(&mut swim, 1_000);
    let told = sent(&mut swim).into_iter().any(|p| {
        p.header.dst.node() == 3
            && matches!(p.header.message, Message::Ping(_))
            && p.words == [Word::new(life(3, 0), 0, State::Suspect)]
    });
    assert!(told, "it hears that it is suspected");
    // It refutes, through a third.
    let word = Word::new(life(3, 0), 1, State::Alive);
    swim.take(1_000, 4, &from(4, Message::Gossip, vec![word]))
        .unwrap();
    assert_eq!(swim.seems(3), Some(Seems::Alive));
}

#[test]
fn one_that_is_heard_by_other_means_is_not_called_down() {
    let mut swim = swim(4);
    for at in (10..20_000).step_by(500) {
        run(&mut swim, at);
        swim.heard(at, 3);
    }
    assert_ne!(swim.seems(3), Some(Seems::Down));
    assert_eq!(swim.seems(2), Some(Seems::Down));
}

#[test]
fn we_refute_what_is_said_of_us() {
    let mut swim = swim(3);
    let word = Word::new(life(1, 0), 4, State::Down);
    swim.take(10, 2, &from(2, Message::Ping(9), vec![word]))
        .unwrap();
    let packets = sent(&mut swim);
    let answer = packets
        .iter()
        .find(|p| p.header.message == Message::Ack(9))
        .unwrap();
    assert_eq!(answer.header.src_incarnation, 5);
    assert!(packets.len() <= 4);
}

#[test]
fn a_lie_about_our_turns_only_makes_us_take_one_more() {
    let mut swim = swim(3);
    let far = life(1, MAX_TURNS);
    let word = Word::new(far, 7, State::Alive);
    swim.take(10, 2, &from(2, Message::Gossip, vec![word]))
        .unwrap();
    assert_eq!(swim.own(), far.after());
    let too_far = Word::new(life(1, u64::MAX), 7, State::Down);
    swim.take(20, 2, &from(2, Message::Gossip, vec![too_far]))
        .unwrap();
    assert_eq!(swim.own(), far.after());
    // Questions to who we were are still answered, as who we are.
    let _ = sent(&mut swim);
    swim.take(30, 3, &from(3, Message::Ping(5), Vec::new()))
        .unwrap();
    let packets = sent(&mut swim);
    assert!(
        packets
            .iter()
            .any(|p| p.header.message == Message::Ack(5) && p.header.src == far.after())
    );
}

#[test]
fn whoever_calls_us_down_again_and_again_tires() {
    let mut swim = swim(3);
    for _ in 0..1_000 {
        let mut packet = Packet::decode(&from(2, Message::TurnUndead, Vec::new())).unwrap();
        packet.header.dst = swim.own();
        swim.take(10, 2, &packet.encode().unwrap()).unwrap();
    }
    assert_eq!(swim.own().turn, u64::from(UNDEAD.0));
    assert!(sent(&mut swim).len() <= 3 * 16);
}

#[test]
fn only_members_speak_of_members_and_as_themselves() {
    let mut swim = swim(3);
    let packet = from(2, Message::Gossip, Vec::new());
    assert!(matches!(
        swim.take(10, 3, &packet),
        Err(Refused::Sender { from: 3, says: 2 })
    ));
    let stranger = from(9, Message::Gossip, Vec::new());
    assert!(matches!(
        swim.take(10, 9, &stranger),
        Err(Refused::NoMember(_))
    ));
    let third = Message::PingReq {
        target: life(9, 0),
        probe_number: 1,
    };
    assert!(swim.take(10, 2, &from(2, third, Vec::new())).is_err());
    let mut other = Packet::decode(&packet).unwrap();
    other.header.dst = life(3, 0);
    assert!(matches!(
        swim.take(10, 2, &other.encode().unwrap()),
        Err(Refused::NotForUs(2))
    ));
    let mut later = Packet::decode(&packet).unwrap();
    later.header.src.member.epoch = 2;
    assert!(matches!(
        swim.take(10, 2, &later.encode().unwrap()),
        Err(Refused::NoMember(_))
    ));
    assert!(matches!(
        swim.take(10, 2, &[0; 2_000]),
        Err(Refused::Malformed { from: 2, .. })
    ));
    let words = (4..40).map(|n| Word::alive(life(n, 0))).collect();
    swim.take(10, 2, &from(2, Message::Gossip, words)).unwrap();
    assert_eq!(swim.members().count(), 2);
}

#[test]
fn a_higher_epoch_wins_and_an_older_one_is_nobody() {
    let mut swim = swim(3);
    run(&mut swim, 20_000);
    assert_eq!(swim.seems(2), Some(Seems::Down));
    let again = Member { node: 2, epoch: 5 };
    swim.list(20_000, again).unwrap();
    assert_eq!(swim.seems(2), Some(Seems::Alive));
    swim.list(20_000, m(2)).unwrap();
    assert!(swim.members().any(|(member, _)| member == again));
    let old = from(2, Message::Gossip, Vec::new());
    assert!(swim.take(20_000, 2, &old).is_err());
    swim.unlist(20_000, 2);
    swim.unlist(20_000, 2);
    assert_eq!(swim.seems(2), None);
}

#[test]
fn there_is_an_end_to_members() {
    let mut swim = Swim::new(m(1), 7, Config::default());
    let most = u16::try_from(MAX_MEMBERS).unwrap();
    for node in 2..most + 2 {
        swim.list(0, m(node)).unwrap();
    }
    assert_eq!(swim.list(0, m(most + 2)), Err(Full));
    assert_eq!(swim.list(0, Member { node: 2, epoch: 2 }), Ok(()));
}

fn any_life() -> impl Strategy<Value = Life> {
    let turn = prop_oneof![0_u64..3, Just(MAX_TURNS), Just(u64::MAX)];
    (1_u16..7, 0_u64..3, turn).prop_map(|(node, epoch, turn)| Life {
        member: Member { node, epoch },
        turn,
    })
}

fn any_word() -> impl Strategy<Value = Word> {
    let incarnation = prop_oneof![0_u16..4, Just(u16::MAX - 1), Just(u16::MAX)];
    packet::tests::word(any_life(), incarnation)
}

proptest! {
    /// A member that may say anything as itself gets nothing to panic or to grow, and not more than
    /// a few packets for one.
    #[test]
    fn a_liar_is_borne(
        lies in prop::collection::vec(
            (0_u64..3_000, any_life(), 0_u16..9, packet::tests::message(any_life()), prop::collection::vec(any_word(), 0..8)),
            1..60,
        )
    ) {
        let mut swim = swim(5);
        let mut now = 0;
        for (step, src, src_incarnation, message, words) in lies {
            now += step;
            run(&mut swim, now);
            let _ = sent(&mut swim);
            let header = Header { src, src_incarnation, dst: swim.own(), message };
            if let Ok(bytes) = (Packet { header, words }).encode() {
                let _ = swim.take(now, src.node(), &bytes);
            }
            prop_assert!(sent(&mut swim).len() <= 12);
            prop_assert_eq!(swim.members().count(), 4);
            prop_assert!(swim.doubts.len() <= 4);
            prop_assert!(swim.engine.waiting() <= 64);
        }
    }

    #[test]
    fn rubbish_is_refused(from in 0_u16..9, bytes: Vec<u8>) {
        let mut swim = swim(5);
        prop_assert!(swim.take(1, from, &bytes).is_err());
    }
}
