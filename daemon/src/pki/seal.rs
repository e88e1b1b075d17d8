// SPDX-License-Identifier: MIT OR Apache-2.0

//! What keeps a secret readable for the nodes of a cluster only: AES-256-GCM with a key in a file.
//!
//! Sealed bytes are a version, the nonce and what the cipher makes of the secret. Each is sealed
//! for a purpose, a text, and opens for that purpose only.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

/// Bytes of the key.
pub const KEY_BYTES: usize = 32;
/// First byte of sealed bytes.
const VERSION: u8 = 1;
/// Longest secret.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// The key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be made or read.
    #[error("{path}")]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read it.
    #[error("{0} must be readable by its owner only: chmod 600 {0}")]
    Exposed(PathBuf),
    /// It does not hold a key.
    #[error("{0} does not hold a key of {KEY_BYTES} bytes")]
    Length(PathBuf),
    /// The system gives no random numbers.
    #[error("no random numbers")]
    Random,
}

/// Something cannot be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is too long.
    #[error("more than {MAX_SECRET_BYTES} bytes cannot be sealed")]
    Long,
    /// It was not sealed with this key for this purpose, or was changed.
    #[error("not sealed with this key for this purpose")]
    Other,
    /// The system gives no random numbers.
    #[error("no random numbers")]
    Random,
}

/// A key to seal with.
pub struct Seal {
    key: RandomizedNonceKey,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seal").finish_non_exhaustive()
    }
}

impl Seal {
    /// With these bytes as the key.
    ///
    /// # Errors
    /// When they are not as many as a key has.
    pub fn new(key: &[u8]) -> Result<Self, io::Error> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, key)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { key })
    }

    /// Makes a key in the file `path`, which must not be there.
    ///
    /// # Errors
    /// See [`FileError`]. Nothing is left behind then, unless it cannot be removed.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let mut key = [0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| FileError::Random)?;
        let failed = |source| FileError::File {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let write = |file: &mut File| {
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(&key)?;
            file.sync_all()?;
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        if let Err(source) = write(&mut file) {
            drop(std::fs::remove_file(path));
            return Err(failed(source));
        }
        Self::new(&key).map_err(failed)
    }

    /// Reads the key in the file `path`.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let failed = |source| FileError::File {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.permissions().mode() & 0o077 != 0 {
            return Err(FileError::Exposed(path.to_owned()));
        }
        let mut key = Vec::with_capacity(KEY_BYTES + 1);
        file.take(KEY_BYTES as u64 + 1)
            .read_to_end(&mut key)
            .map_err(failed)?;
        Self::new(&key).map_err(|_| FileError::Length(path.to_owned()))
    }

    /// Seals `secret` for `purpose`.
    ///
    /// # Errors
    /// [`Error::Long`], [`Error::Random`].
    pub fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>, Error> {
        if secret.len() > MAX_SECRET_BYTES {
            return Err(Error::Long);
        }
        let mut text = secret.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(purpose), &mut text)
            .map_err(|_| Error::Random)?;
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(nonce.as_ref());
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Opens what was sealed for `purpose`.
    ///
    /// # Errors
    /// [`Error::Other`].
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(Error::Other)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Error::Other)?;
        let mut text = text.to_vec();
        let length = self
            .key
            .open_in_place(Nonce::from(nonce), Aad::from(purpose), &mut text)
            .map_err(|_| Error::Other)?
            .len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURPOSE: &str = "key of the authority";

    #[test]
    fn it_opens_what_it_sealed_and_nothing_else() {
        let seal = Seal::new(&[7; 32]).unwrap();
        let sealed = seal.seal(PURPOSE, b"secret").unwrap();
        assert_eq!(seal.open(PURPOSE, &sealed).unwrap(), b"secret");
        assert_ne!(seal.seal(PURPOSE, b"secret").unwrap(), sealed, "one nonce");
        assert_eq!(seal.open("another", &sealed), Err(Error::Other));
        let other = Seal::new(&[8; 32]).unwrap();
        assert_eq!(other.open(PURPOSE, &sealed), Err(Error::Other));
        for n in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[n] ^= 1;
            assert_eq!(seal.open(PURPOSE, &changed), Err(Error::Other), "at {n}");
            assert_eq!(seal.open(PURPOSE, &sealed[..n]), Err(Error::Other));
        }
        let long = vec![0; MAX_SECRET_BYTES + 1];
        assert_eq!(seal.seal(PURPOSE, &long), Err(Error::Long));
        assert_eq!(seal.open("", &seal.seal("", b"").unwrap()).unwrap(), b"");
        assert!(Seal::new(&[0; 31]).is_err() && Seal::new(&[0; 33]).is_err());
    }

    #[test]
    fn the_file_is_private_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        let seal = Seal::create(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(path.metadata().unwrap().len(), 32);
        assert!(matches!(Seal::create(&path), Err(FileError::File { .. })));
        let sealed = seal.seal(PURPOSE, b"secret").unwrap();
        let again = Seal::load(&path).unwrap();
        assert_eq!(again.open(PURPOSE, &sealed).unwrap(), b"secret");

        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Seal::load(&path), Err(FileError::Exposed(_))));
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for wrong in [&[0; 31][..], &[0; 33], &[]] {
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(Seal::load(&path), Err(FileError::Length(_))));
        }
        assert!(matches!(
            Seal::load(dir.path().join("none").as_path()),
            Err(FileError::File { .. })
        ));
    }
}
