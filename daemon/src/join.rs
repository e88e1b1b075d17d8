// SPDX-License-Identifier: MIT OR Apache-2.0

//! The way into a cluster: what a machine says to a node of it before it is one, and what that node
//! answers.
//!
//! The machine knows the cluster by the hash of its authority and shows a token; neither side says
//! a secret before the other has proved who it is (kubeadm's discovery works alike).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::core::facts::{Difference, Facts};
use crate::core::health::Clock;
use crate::council::Council;
use crate::failure::{Failure, in_full};
use crate::msg::govern::{Admit, Admitted, Hello};
use crate::msg::{self, Answer, Failed, Reply};
use crate::pki::CaHash;
use crate::session::Session;
use crate::{survey, tls};

/// Longest wait for a connection and the first word.
const GREET_IN: Duration = Duration::from_secs(15);
/// Longest wait for the answer: the nodes have to agree on it.
const ADMIT_IN: Duration = Duration::from_secs(45);

/// What the machine brings.
#[derive(Debug)]
pub struct Bid {
    /// The node it asks.
    pub door: SocketAddr,
    /// Hash of the authority that must be there.
    pub pin: CaHash,
    /// The token, secret included.
    pub token: String,
    /// Request for a certificate, DER.
    pub request: Vec<u8>,
    /// The name it wants, if any.
    pub name: Option<String>,
    /// Where its daemon is reached; if not said, on `port` of the address it connects from.
    pub addr: Option<SocketAddr>,
    /// See `addr`.
    pub port: u16,
    /// What the machine is made of.
    pub facts: Facts,
}

fn lost(door: SocketAddr, why: &str) -> Failure {
    Failure::Unavailable(format!("{door}: {why}; it is safe to try again"))
}

/// Asks to be let in; returns also where the daemon is reached from now on.
///
/// # Errors
/// Why it was not, or that it is not known.
pub async fn ask(bid: Bid) -> Result<(Admitted, SocketAddr), Failure> {
    let door = bid.door;
    let greet = greet(door, bid.pin);
    let (mut session, own) = timeout(GREET_IN, greet)
        .await
        .map_err(|_| lost(door, "no answer"))??;
    let addr = bid.addr.unwrap_or(SocketAddr::new(own, bid.port));
    let admit = Admit {
        token: bid.token,
        request: bid.request,
        name: bid.name.unwrap_or_default(),
        addr: addr.to_string(),
        facts: Some((&bid.facts).into()),
    };
    let asked = async {
        session.send(&admit).await?;
        session.receive::<Reply>().await
    };
    let reply = timeout(ADMIT_IN, asked)
        .await
        .map_err(|_| lost(door, "no answer"))?
        .map_err(|e| lost(door, &in_full(&e)))?;
    match reply.answer {
        Some(Answer::Admitted(admitted)) => Ok((admitted, addr)),
        Some(Answer::Failed(failed)) => Err(failed.into()),
        _ => Err(lost(door, "an answer that makes no sense")),
    }
}

/// Connects, and finds out whether both can understand each other.
async fn greet(door: SocketAddr, pin: CaHash) -> Result<(Session, std::net::IpAddr), Failure> {
    let lost = |e: &(dyn std::error::Error + 'static)| lost(door, &in_full(e));
    let stream = TcpStream::connect(door).await.map_err(|e| lost(&e))?;
    let own = stream.local_addr().map_err(|e| lost(&e))?.ip();
    let client = tls::join_client(pin).map_err(|e| lost(&e))?;
    // The name does not matter: the authority does.
    let name = ServerName::IpAddress(door.ip().into());
    let mut session = Session::connect(stream, client, name).await.map_err(|e| {
        let why = format!("{door} is no node of that cluster: {}", in_full(&e));
        Failure::declined("other-cluster", why)
    })?;
    let (asked_ns, asked) = (survey::realtime_ns(), Instant::now());
    session.send(&hello()).await.map_err(|e| lost(&e))?;
    let theirs: Hello = session.receive().await.map_err(|e| lost(&e))?;
    if theirs.version != msg::VERSION {
        let why = format!(
            "the cluster speaks version {} of the protocol, this machine version {}: update the older one",
            theirs.version,
            msg::VERSION
        );
        return Err(Failure::declined("version-differs", why));
    }
    let clock = Clock::measured(asked_ns, theirs.realtime_ns, survey::nanos(asked.elapsed()));
    if let Some(difference) = Difference::of_clock(clock) {
        let why = format!("this machine differs from the cluster: {difference}");
        return Err(Failure::declined("facts-differ", why));
    }
    Ok((session, own))
}

fn hello() -> Hello {
    Hello {
        version: msg::VERSION,
        realtime_ns: survey::realtime_ns(),
    }
}

/// Answers a machine that wants to join. Returns its address and what became of it, for the record.
///
/// # Errors
/// When it does not speak as it should.
pub async fn answer(
    mut session: Session,
    council: &Arc<Council>,
) -> Result<(String, Result<Admitted, Failure>), crate::session::Error> {
    let ask = async {
        let theirs: Hello = session.receive().await?;
        session.send(&hello()).await?;
        if theirs.version != msg::VERSION {
            return Ok(None);
        }
        session.receive::<Admit>().await.map(Some)
    };
    let ask = timeout(GREET_IN, ask)
        .await
        .map_err(|_| crate::session::Error::Closed)??;
    let Some(admit) = ask else {
        return Err(crate::session::Error::Closed);
    };
    let addr = admit.addr.clone();
    let result = timeout(ADMIT_IN, council.admit(admit))
        .await
        .unwrap_or_else(|_| Err(Failure::Unavailable("the nodes do not agree".to_owned())));
    let answer = match &result {
        Ok(admitted) => Answer::Admitted(admitted.clone()),
        Err(f) => Answer::Failed(Failed::from(f)),
    };
    let reply = Reply {
        id: 0,
        answer: Some(answer),
    };
    timeout(GREET_IN, session.send(&reply))
        .await
        .map_err(|_| crate::session::Error::Closed)??;
    Ok((addr, result))
}
