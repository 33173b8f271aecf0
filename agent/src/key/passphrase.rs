//! A private key under a passphrase. argon2id makes it expensive to try passphrases; the memory that it takes is chosen
//! where the key is made, from what the machine has, and C, which has all of it, takes it once for each try.

use argon2::{Algorithm, Argon2, Params, Version};
use dormouse_image::seal::{Nonce, Save, SaveKey, Wrap, scrub_stack, unwrap, wrap};
use dormouse_image::{KeyKind, PassphraseKey, Uuid};
use dormouse_linux::memory_watch;

use crate::key::recipient::Pair;
use crate::key::{KeyError, Secret, random};

/// The wrap of a private key is not that of a save's key.
const PRIVATE: u32 = 0x1000;

/// Three passes, as RFC 9106 (4) has it for less than 2 GiB of memory; one lane, because C's other CPUs help little.
const PASSES: u32 = 3;
const LANES: u32 = 1;
/// The memory is an eighth of what there is, within these bounds, in KiB.
const SHARE: u64 = 8;
const MEMORY: [u64; 2] = [64 << 10, 512 << 10];

/// What is left to the rest of C, in KiB.
const RESERVE: u64 = 32 << 10;

/// How much memory a passphrase is to take, in KiB, on a machine that has `total` KiB.
pub(super) fn memory_for(total: u64) -> u32 {
    let [least, most] = MEMORY;
    u32::try_from((total / SHARE).clamp(least, most)).unwrap_or(u32::MAX)
}

/// A new pair under a passphrase, for slot number `id` of `image`; with the sender's secret.
///
/// # Errors
/// [`KeyError`].
pub(super) fn make(
    passphrase: &[u8],
    memory_kib: u32,
    image: Uuid,
    id: u32,
) -> Result<(PassphraseKey, Secret), KeyError> {
    let Pair { public, private, sender } = Pair::random()?;
    let mut key = PassphraseKey { salt: [0; 16], memory_kib, passes: PASSES, lanes: LANES, public, private: [0; 48] };
    random(&mut key.salt)?;
    let kek = stretch(passphrase, &key)?;
    let sealed = wrap(kek.bytes(), &save(image, &key), id, kind(), public, &SaveKey::new(private.bytes()))?;
    Ok((PassphraseKey { private: sealed.sealed, ..key }, sender))
}

/// The private key; `None` where the passphrase is another one.
///
/// # Errors
/// [`KeyError::Memory`], [`KeyError::Make`].
pub(super) fn open(passphrase: &[u8], key: &PassphraseKey, image: Uuid, id: u32) -> Result<Option<Secret>, KeyError> {
    let (needed, available) = (u64::from(key.memory_kib) + RESERVE, memory_watch::available_kib());
    if let Some(available) = available.filter(|available| *available < needed) {
        return Err(KeyError::Memory { needed, available });
    }
    let kek = stretch(passphrase, key)?;
    let sealed = Wrap { slot: id, kind: kind(), ephemeral: key.public, sealed: key.private };
    Ok(unwrap(kek.bytes(), &save(image, key), &sealed).map(|private| Secret::new(*private.bytes())))
}

fn kind() -> u32 {
    PRIVATE | u32::from(KeyKind::Passphrase.number())
}

/// Stands in for a save: the private key belongs to the image and not to one of its saves.
fn save(image: Uuid, key: &PassphraseKey) -> Save {
    Save { image, save_id: Uuid::default(), nonce: Nonce(key.salt) }
}

/// What argon2id makes of a passphrase.
fn stretch(passphrase: &[u8], key: &PassphraseKey) -> Result<Secret, KeyError> {
    let failed = |error: argon2::Error| KeyError::Make(anyhow::anyhow!("argon2id: {error}"));
    let params = Params::new(key.memory_kib, key.passes, key.lanes, Some(32)).map_err(failed)?;
    let mut secret = Secret::new([0; 32]);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let made = argon2.hash_password_into(passphrase, &key.salt, &mut secret.0[..]);
    scrub_stack();
    made.map_err(failed)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::key::recipient;

    const IMAGE: Uuid = Uuid([3; 16]);
    const LEAST: u32 = 8 << 10;

    #[test]
    fn opens_with_the_passphrase_alone() {
        let (key, sender) = make("pässword".as_bytes(), LEAST, IMAGE, 2).unwrap();
        let open = |passphrase: &str, key: &PassphraseKey, image, id| open(passphrase.as_bytes(), key, image, id);
        let private = open("pässword", &key, IMAGE, 2).unwrap().unwrap();
        assert_eq!(recipient::public_of(&private), key.public);
        let nonce = Nonce([1; 16]);
        let (kek, sent) = recipient::to(&key.public, &sender, &nonce).unwrap();
        assert_eq!(recipient::from(&private, &sent, &nonce).unwrap().bytes(), kek.bytes());

        assert!(open("password", &key, IMAGE, 2).unwrap().is_none());
        assert!(open("", &key, IMAGE, 2).unwrap().is_none());
        assert!(open("pässword", &key, IMAGE, 3).unwrap().is_none());
        assert!(open("pässword", &key, Uuid([4; 16]), 2).unwrap().is_none());
        for changed in [
            PassphraseKey { salt: [0; 16], ..key.clone() },
            PassphraseKey { passes: 4, ..key.clone() },
            PassphraseKey { memory_kib: LEAST + 8, ..key.clone() },
            PassphraseKey { public: [9; 32], ..key.clone() },
            PassphraseKey { private: [9; 48], ..key.clone() },
        ] {
            assert!(open("pässword", &changed, IMAGE, 2).unwrap().is_none());
        }
    }

    #[test]
    fn takes_an_eighth_of_memory_within_bounds() {
        let mib = |mib: u64| memory_for(mib << 10) >> 10;
        assert_eq!([mib(256), mib(1024), mib(4096), mib(1 << 20)], [64, 128, 512, 512]);
    }

    #[test]
    fn rejects_more_memory_than_there_is() {
        let (key, _) = make(b"x", LEAST, IMAGE, 1).unwrap();
        let error = open(b"x", &PassphraseKey { memory_kib: u32::MAX, ..key }, IMAGE, 1).unwrap_err();
        assert!(matches!(error, KeyError::Memory { .. }), "{error}");
    }

    /// RFC 9106, 5.3, without the parts that are not used here: the value is that of the reference implementation's
    /// `argon2 somesalt -id -t 2 -m 16 -p 1`.
    #[test]
    fn stretches_as_argon2id_does() {
        let params = Params::new(1 << 16, 2, 1, Some(32)).unwrap();
        let mut out = [0; 32];
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_into(b"password", b"somesalt", &mut out).unwrap();
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7");
    }
}
