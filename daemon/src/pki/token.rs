// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens by which a machine may join: a name that is no secret, a dot and a secret, as in
//! kubeadm: `k3f7ab.` and 26 characters. The cluster keeps only the hash of the secret.

use crate::core::hash::Hash;

/// Characters of the name.
pub const ID_CHARS: usize = 6;
/// Characters of the secret. Each stands for five bits: 130 in all.
pub const SECRET_CHARS: usize = 26;
/// Base 32 as in RFC 4648, in lower case.
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A token cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is none. It is not repeated: it may be one with a slip in it.
    #[error(
        "a token is {ID_CHARS} characters, a dot and {SECRET_CHARS} characters, each of a to z and 2 to 7"
    )]
    Form,
    /// The system gives no random numbers.
    #[error("no random numbers")]
    Random,
}

/// A token with its secret.
#[derive(Clone)]
pub struct Token {
    id: String,
    secret: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn random(chars: usize) -> Result<String, Error> {
    let mut bytes = vec![0; chars];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    // 32 divides 256: every digit is as likely as any other.
    Ok(bytes
        .iter()
        .filter_map(|b| DIGITS.get(usize::from(b % 32)))
        .map(|d| char::from(*d))
        .collect())
}

fn are_digits(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|b| DIGITS.contains(&b))
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            id: random(ID_CHARS)?,
            secret: random(SECRET_CHARS)?,
        })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// SHA-256 of its secret as it is written.
    pub fn secret_hash(&self) -> Hash {
        Hash::of(self.secret.as_bytes())
    }

    /// All of it, secret included, for the one who may use it.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl std::str::FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, secret) = text.split_once('.').ok_or(Error::Form)?;
        if !are_digits(id, ID_CHARS) || !are_digits(secret, SECRET_CHARS) {
            return Err(Error::Form);
        }
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_writes() {
        let token = Token::new().unwrap();
        let text = token.reveal();
        assert_eq!(text.len(), ID_CHARS + 1 + SECRET_CHARS);
        let again: Token = text.parse().unwrap();
        assert_eq!(again.id(), token.id());
        assert_eq!(again.secret_hash(), token.secret_hash());
        assert_eq!(token.secret_hash(), Hash::of(&text.as_bytes()[7..]));
        assert_ne!(Token::new().unwrap().secret_hash(), token.secret_hash());
    }

    #[test]
    fn the_secret_is_not_shown() {
        let token = Token::new().unwrap();
        let shown = format!("{token:?}");
        assert!(shown.contains(token.id()));
        assert!(!shown.contains(&token.reveal()[7..]), "{shown}");
        // Nor is a text with a slip in it.
        let slip = format!("{}!", token.reveal());
        let error = slip.parse::<Token>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&token.reveal()[7..]));
    }

    #[test]
    fn other_texts_are_refused() {
        let good = "abcdef.abcdefghijklmnopqrstuvwxyz";
        assert!(good.parse::<Token>().is_ok());
        for wrong in [
            "",
            ".",
            &good[1..],
            &good[..good.len() - 1],
            &good.replace('.', ""),
            &good.replace('.', ".."),
            &good.replace('a', "A"),
            &good.replace('a', "1"),
            &good.replace("ab", "é"),
            &format!("{good}a"),
            &format!(" {good}"),
        ] {
            assert_eq!(wrong.parse::<Token>().unwrap_err(), Error::Form, "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_token_or_not(text in "\\PC{0,40}") {
            if let Ok(token) = text.parse::<Token>() {
                proptest::prop_assert_eq!(token.reveal(), text);
            }
        }
    }
}
