//! A key for somebody who has a private key, made by somebody who has the public half and a secret of his own.
//!
//! The public half is in the image, for everybody to read: by itself it would let anybody make an image that its holder
//! resumes. So the sender's secret is part of it. It follows from the private key, so that its holder knows it, and is
//! kept by the system that made the pair.

use dormouse_image::seal::{Nonce, hkdf, scrub_stack};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::key::{KeyError, Secret};

/// A pair of keys, and the sender's secret.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) public: [u8; 32],
    pub(super) private: Secret,
    pub(super) sender: Secret,
}

impl Pair {
    /// A new one.
    pub(super) fn random() -> Result<Pair, KeyError> {
        let private = Secret::random()?;
        let public = public_of(&private);
        let sender = sender_of(&private);
        Ok(Pair { public, private, sender })
    }
}

pub(super) fn public_of(private: &Secret) -> [u8; 32] {
    let public = PublicKey::from(&StaticSecret::from(*private.bytes())).to_bytes();
    scrub_stack();
    public
}

fn sender_of(private: &Secret) -> Secret {
    Secret(hkdf(&[0; 16], private.bytes(), &[b"dormouse 1 sender"]))
}

/// A key for the holder of the other half of `public`, and what he needs to have it.
///
/// # Errors
/// [`KeyError::Make`]: no random numbers, or a public key that is none.
pub(super) fn to(public: &[u8; 32], sender: &Secret, nonce: &Nonce) -> Result<(Secret, [u8; 32]), KeyError> {
    let ephemeral = Secret::random()?;
    let sent = public_of(&ephemeral);
    let key = agreed(&ephemeral, public, sender, nonce, &sent, public);
    Ok((key.ok_or_else(|| KeyError::Make(anyhow::anyhow!("the public key in a slot is none")))?, sent))
}

/// The same key, by the private half. `None` where `ephemeral` is no public key.
pub(super) fn from(private: &Secret, ephemeral: &[u8; 32], nonce: &Nonce) -> Option<Secret> {
    agreed(private, ephemeral, &sender_of(private), nonce, ephemeral, &public_of(private))
}

fn agreed(
    own: &Secret,
    other: &[u8; 32],
    sender: &Secret,
    nonce: &Nonce,
    ephemeral: &[u8; 32],
    public: &[u8; 32],
) -> Option<Secret> {
    let shared = StaticSecret::from(*own.bytes()).diffie_hellman(&PublicKey::from(*other));
    // A point of small order makes the same secret with everybody.
    let key = shared.was_contributory().then(|| {
        // All parts have a fixed length.
        let mut secret = zeroize::Zeroizing::new([0; 64]);
        secret[..32].copy_from_slice(shared.as_bytes());
        secret[32..].copy_from_slice(sender.bytes());
        Secret(hkdf(&nonce.0, &secret[..], &[b"dormouse 1 recipient", ephemeral, public]))
    });
    drop(shared);
    scrub_stack();
    key
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_halves_have_the_same_key_once() {
        let (pair, nonce) = (Pair::random().unwrap(), Nonce([7; 16]));
        let (key, sent) = to(&pair.public, &pair.sender, &nonce).unwrap();
        assert_eq!(from(&pair.private, &sent, &nonce).unwrap().bytes(), key.bytes());
        let (other, other_sent) = to(&pair.public, &pair.sender, &nonce).unwrap();
        assert!(other.bytes() != key.bytes() && other_sent != sent);
        assert_ne!(from(&pair.private, &sent, &Nonce([8; 16])).unwrap().bytes(), key.bytes());
    }

    #[test]
    fn rejects_a_sender_who_has_the_public_half_alone() {
        let (pair, nonce) = (Pair::random().unwrap(), Nonce([7; 16]));
        let (key, sent) = to(&pair.public, &Secret::random().unwrap(), &nonce).unwrap();
        assert_ne!(from(&pair.private, &sent, &nonce).unwrap().bytes(), key.bytes());
    }

    #[test]
    fn rejects_points_of_small_order() {
        let (pair, nonce) = (Pair::random().unwrap(), Nonce([7; 16]));
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            assert!(from(&pair.private, &point, &nonce).is_none());
            assert!(to(&point, &pair.sender, &nonce).is_err());
        }
    }

    #[test]
    fn prints_no_secret() {
        let pair = Pair::random().unwrap();
        let text = format!("{pair:?}");
        assert!(text.contains("private: Secret(..), sender: Secret(..)"), "{text}");
    }
}
