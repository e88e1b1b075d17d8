// SPDX-License-Identifier: MIT OR Apache-2.0

//! The methods that are about the cluster itself. What changes something is for administrators, and
//! is recorded.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use ssi::id::{MAX_NODE, NodeId};

use super::{Connection, Nothing, Outcome, answer, invalid};
use crate::api::govern::{
    Accusation, CordonParameters, CreateTokenParameters, DropTokenParameters, InitParameters,
    InvitationReply, JoinParameters, JoinReply, LeaveParameters, PardonParameters,
    RecoverParameters, RemoveParameters, ShowNodeParameters, ShowNodeReply, Token, TokensReply,
};
use crate::audit::{DONE, Event};
use crate::clock::now_ms;
use crate::cluster::Cluster;
use crate::core::liveness::State;
use crate::core::state::{Command, Why};
use crate::failure::{Failure, in_full};
use crate::msg::Place;
use crate::pki;
use crate::stage::{Charter, Invitation};

/// The token that `Init` makes is good for so long.
const FIRST_TOKEN_S: u64 = 24 * 3600;

impl Connection {
    /// Calls a method, if it is one of these.
    pub(super) async fn govern(&self, method: &str, parameters: Value) -> Option<Outcome> {
        macro_rules! with {
            ($($name:literal $call:ident,)*) => {
                match method {
                    $($name => match serde_json::from_value(parameters) {
                        Ok(p) => {
                            let (subject, result) = self.$call(p).await;
                            self.done($name, subject, result)
                        }
                        Err(e) => invalid(&e),
                    },)*
                    "Tokens" => match self.tokens().await {
                        Err(refused @ Failure::NotAdministrator) => {
                            self.done("Tokens", String::new(), Err::<Nothing, _>(refused))
                        }
                        result => answer(result),
                    },
                    "ShowNode" => match serde_json::from_value(parameters) {
                        Ok(p) => self.show(p).map_or_else(Outcome::from, |r| Outcome::done(&r)),
                        Err(e) => invalid(&e),
                    },
                    _ => return None,
                }
            };
        }
        Some(with! {
            "Init" init,
            "Join" join,
            "CreateToken" create_token,
            "DropToken" drop_token,
            "Leave" leave,
            "Remove" remove,
            "Cordon" cordon,
            "Pardon" pardon,
            "RotateAuthority" rotate,
            "Recover" recover,
        })
    }

    /// Records what came of something, and answers it.
    pub(super) fn done(
        &self,
        action: &'static str,
        subject: String,
        result: Result<impl Serialize, Failure>,
    ) -> Outcome {
        self.stage.audit().record(Event::Governed {
            uid: self.user.uid,
            action,
            subject,
            outcome: match &result {
                Ok(_) => DONE.to_owned(),
                Err(f) => f.to_string(),
            },
        });
        match result {
            Ok(reply) => Outcome::done(&reply),
            Err(f) => f.into(),
        }
    }

    pub(super) fn administrator(&self) -> Result<(), Failure> {
        if self.user.is_admin {
            Ok(())
        } else {
            Err(Failure::NotAdministrator)
        }
    }

    async fn init(&self, p: InitParameters) -> (String, Result<InvitationReply, Failure>) {
        let subject = p.name.clone().unwrap_or_default();
        let result = async {
            self.administrator()?;
            let charter = Charter {
                name: p.name,
                node_name: p.node_name,
                addr: p.addr,
            };
            let cluster = self.stage.init(charter).await?;
            self.invitation(&cluster, FIRST_TOKEN_S, MAX_NODE).await
        };
        (subject, result.await)
    }

    /// Makes a token.
    async fn invitation(
        &self,
        cluster: &Arc<Cluster>,
        ttl_s: u64,
        uses: u16,
    ) -> Result<InvitationReply, Failure> {
        let unmade = |e: &(dyn std::error::Error + 'static)| Failure::Unavailable(in_full(e));
        let council = cluster.council()?;
        let token = pki::Token::new().map_err(|e| unmade(&e))?;
        let now_ms = now_ms();
        let expires_ms = now_ms.saturating_add(ttl_s.saturating_mul(1000));
        let add = Command::AddToken {
            id: token.id().to_owned(),
            secret: token.secret_hash(),
            expires_ms,
            made_by_uid: self.user.uid,
            uses,
            now_ms,
        };
        council.propose(add).await?;
        let state = council.state();
        let ca = state.authorities().next().unwrap_or_default();
        let own = cluster.roster().node(cluster.own());
        Ok(InvitationReply {
            addr: own.map(|n| n.addr.to_string()).unwrap_or_default(),
            token: token.reveal(),
            ca_hash: pki::ca_hash(ca).map_err(|e| unmade(&e))?.to_string(),
            expires_ms,
        })
    }

    async fn join(&self, p: JoinParameters) -> (String, Result<JoinReply, Failure>) {
        let subject = p.door.clone();
        let result = async {
            self.administrator()?;
            let invitation = Invitation {
                door: p.door,
                token: p.token,
                ca_hash: p.ca_hash,
                node_name: p.node_name,
                addr: p.addr,
            };
            let cluster = self.stage.join(invitation).await?;
            Ok(JoinReply {
                node: cluster.own().get().into(),
            })
        };
        (subject, result.await)
    }

    async fn create_token(
        &self,
        p: CreateTokenParameters,
    ) -> (String, Result<InvitationReply, Failure>) {
        let result = async {
            self.administrator()?;
            let cluster = self.stage.cluster()?;
            self.invitation(&cluster, p.ttl_s, p.uses.unwrap_or(MAX_NODE))
                .await
        };
        (format!("{} s", p.ttl_s), result.await)
    }

    async fn drop_token(&self, p: DropTokenParameters) -> (String, Result<Nothing, Failure>) {
        let id = p.id.clone();
        (p.id, self.change(Command::DropToken { id }).await)
    }

    /// Has the nodes agree on something an administrator wants.
    async fn change(&self, command: Command) -> Result<Nothing, Failure> {
        self.administrator()?;
        let cluster = self.stage.cluster()?;
        cluster.council()?.propose(command).await?;
        Ok(Nothing {})
    }

    async fn tokens(&self) -> Result<TokensReply, Failure> {
        self.administrator()?;
        let cluster = self.stage.cluster()?;
        let state = cluster.council()?.read().await?;
        let now_ms = now_ms();
        let good = state
            .tokens
            .iter()
            .filter(|(_, t)| t.uses_left > 0 && t.expires_ms > now_ms);
        let tokens = good.map(|(id, t)| Token {
            id: id.clone(),
            expires_ms: t.expires_ms,
            uses_left: t.uses_left,
            made_by_uid: t.made_by_uid,
        });
        Ok(TokensReply {
            tokens: tokens.collect(),
        })
    }

    async fn leave(&self, p: LeaveParameters) -> (String, Result<Nothing, Failure>) {
        let result = async {
            self.administrator()?;
            let cluster = self.stage.cluster()?;
            if p.force != Some(true) {
                let all = cluster.list_own().await?;
                let away = all.iter().filter(|p| p.place() != Place::Home).count();
                if away > 0 {
                    let text = format!(
                        "{away} processes would end: those of other nodes that run here, and those of this node that run elsewhere"
                    );
                    return Err(Failure::declined("processes-away", text));
                }
            }
            self.stage.leave(p.force == Some(true)).await?;
            Ok(Nothing {})
        };
        (String::new(), result.await)
    }

    async fn remove(&self, p: RemoveParameters) -> (String, Result<Nothing, Failure>) {
        let subject = p.node.clone();
        let result = async {
            self.administrator()?;
            let cluster = self.stage.cluster()?;
            let node = cluster.find(&p.node)?;
            let Some(peer) = cluster.roster().peer(node) else {
                let text = format!("{node} is this node: `ssictl node leave` takes it out");
                return Err(Failure::declined("this-node", text));
            };
            if p.force != Some(true) && peer.state() != State::Dead {
                let text = format!("{node} is {}", peer.state_name());
                return Err(Failure::declined("node-alive", text));
            }
            cluster.council()?.retire(node, Why::Removed).await?;
            Ok(Nothing {})
        };
        (subject, result.await)
    }

    async fn cordon(&self, p: CordonParameters) -> (String, Result<Nothing, Failure>) {
        let subject = format!("{} {}", p.node, p.cordoned);
        let result = async {
            self.administrator()?;
            let node: NodeId = self.stage.cluster()?.find(&p.node)?;
            self.change(if p.cordoned {
                Command::Cordon { node }
            } else {
                Command::Uncordon { node }
            })
            .await
        };
        (subject, result.await)
    }

    async fn pardon(&self, p: PardonParameters) -> (String, Result<Nothing, Failure>) {
        let subject = p.node.clone();
        let result = async {
            self.administrator()?;
            let cluster = self.stage.cluster()?;
            let node = cluster.find(&p.node)?;
            let state = cluster.council()?.read().await?;
            let member = state.nodes.get(&node);
            let member = member.ok_or_else(|| Failure::NoNode(p.node.clone()))?;
            let since = member.answers_since();
            self.change(Command::Pardon { node, since }).await
        };
        (subject, result.await)
    }

    async fn rotate(&self, _: Empty) -> (String, Result<Nothing, Failure>) {
        let result = async {
            self.administrator()?;
            let cluster = self.stage.cluster()?;
            cluster.council()?.rotate().await?;
            Ok(Nothing {})
        };
        (String::new(), result.await)
    }

    async fn recover(&self, p: RecoverParameters) -> (String, Result<Nothing, Failure>) {
        let subject = p.without.join(" ");
        let result = async {
            self.administrator()?;
            let cluster = self.stage.cluster()?;
            let lost = p.without.iter().map(|node| cluster.find(node));
            let lost = lost.collect::<Result<_, _>>()?;
            drop(cluster);
            self.stage.recover(&lost).await?;
            Ok(Nothing {})
        };
        (subject, result.await)
    }

    fn show(&self, p: ShowNodeParameters) -> Result<ShowNodeReply, Failure> {
        let cluster = self.stage.cluster()?;
        let node = cluster.find(&p.node)?;
        let entries = cluster.roster().entries();
        let entry = entries.iter().find(|e| e.node.id == node);
        let entry = entry.ok_or_else(|| Failure::NoNode(p.node.clone()))?;
        let council = cluster.council()?;
        let state = council.state();
        let unknown = || Failure::Unavailable(format!("{node} is not agreed on here yet"));
        let member = state.nodes.get(&node).ok_or_else(unknown)?;
        let accusations = member.conduct.accusers.iter();
        let accusations = accusations.map(|(by, offence)| Accusation {
            by: by.get().into(),
            offence: offence.code().to_owned(),
        });
        Ok(ShowNodeReply {
            id: node.get().into(),
            name: entry.node.name.clone(),
            addr: entry.node.addr.to_string(),
            state: super::state_name(&state, entry).to_owned(),
            role: council.role(node).to_owned(),
            cordoned: member.cordoned,
            joined_ms: member.joined_ms,
            epoch: member.epoch,
            since: member.presence.since,
            ended: member.presence.ended,
            pardoned: member.conduct.pardoned,
            accusations: accusations.collect(),
            fingerprint: member.fingerprint.to_string(),
            certificate_ends_ms: state.ends_ms.get(&member.fingerprint).copied(),
            generation: member.generation,
            kernel: member.facts.kernel.clone(),
            features: member.facts.features.iter().cloned().collect(),
        })
    }
}

/// No parameters.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}
