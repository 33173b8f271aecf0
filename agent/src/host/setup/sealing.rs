//! What setup does about the key: an image that goes around encryption is sealed, and one beside an encrypted root
//! filesystem is, too. The key is a file inside the root filesystem's encryption, which each boot opens before it looks
//! for the image the second time.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::host::layers;
use crate::host::setup::Choice;
use crate::key::Ring;
use crate::key::manage::DEFAULT_FILE;
use crate::policy::{Policy, SealKey};
use crate::store::Access;
use crate::target::Target;

/// Where the key file goes if the usual place is on another filesystem than the root, which a boot need not open.
const ON_ROOT: &str = "/etc/dormouse.key";

/// What the command line says of the key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum WantedKey {
    /// A file, if there is an encrypted filesystem for it, and as the policy says if it says something.
    #[default]
    Auto,
    /// A file.
    File,
    /// None.
    None,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    /// Nothing: the image is not sealed, or the policy says with what.
    AsItIs,
    /// The image has a key in a file already; the policy does not say so.
    Named,
    /// A key file is made here, and the policy says so.
    New(PathBuf),
}

impl Key {
    /// Whether the policy is to name a key file.
    pub(super) fn is_named(&self) -> bool {
        !matches!(self, Key::AsItIs)
    }
}

/// What decides about the key.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// What the policy says.
    policy: SealKey,
    /// Whether the image has a key in a file.
    has_file: bool,
    /// Whether what is written to the image goes around encryption.
    goes_around: bool,
    /// Whether the root filesystem is encrypted.
    is_root_encrypted: bool,
    /// Whether the usual place of the key file is on the root filesystem.
    is_place_on_root: bool,
}

/// Decides for this machine.
///
/// # Errors
/// The image goes around encryption, and is not to be sealed or cannot be.
pub(super) fn choose(policy: Option<&Policy>, choice: &Choice, wanted: WantedKey) -> anyhow::Result<Key> {
    let (root, place) = (layers::below(Path::new("/")), layers::below(Path::new(DEFAULT_FILE)));
    let facts = Facts {
        policy: policy.map_or(SealKey::None, |policy| policy.image.key),
        has_file: matches!(choice, Choice::Kept(path) if has_file(path)),
        goes_around: layers::is_encrypted(&layers::below(choice.path())),
        is_root_encrypted: layers::is_encrypted(&root),
        is_place_on_root: root == place,
    };
    decide(facts, choice, wanted)
}

fn decide(facts: Facts, choice: &Choice, wanted: WantedKey) -> anyhow::Result<Key> {
    let place = if facts.is_place_on_root { DEFAULT_FILE } else { ON_ROOT };
    match (wanted, facts.policy) {
        (WantedKey::Auto, SealKey::Passphrase | SealKey::Tpm2) => Ok(Key::AsItIs),
        (WantedKey::None, SealKey::None) if facts.goes_around => bail!(
            "{} is in an encrypted volume, and what is written to the image goes around that: it must be sealed",
            choice.path().display()
        ),
        (WantedKey::None, _) => Ok(Key::AsItIs),
        (WantedKey::File, SealKey::Passphrase | SealKey::Tpm2) => {
            bail!("the policy says image.key = \"{}\": remove that first", facts.policy.as_str())
        }
        (_, SealKey::File) if facts.has_file => Ok(Key::AsItIs),
        (_, SealKey::None) if facts.has_file => Ok(Key::Named),
        _ if facts.is_root_encrypted => Ok(Key::New(place.into())),
        // A person who wants it so has a reason; `dormouse key add` warns.
        (WantedKey::File, _) | (_, SealKey::File) => Ok(Key::New(place.into())),
        _ if facts.goes_around => bail!(
            "{} is in an encrypted volume, and the image must be sealed, since what is written to it goes around that; \
             but the root filesystem is not encrypted, so that a key file on it would be nobody's secret: put the \
             image elsewhere, or run `dormouse setup` again after `dormouse key add passphrase` and with image.key = \
             \"passphrase\" in the policy",
            choice.path().display()
        ),
        _ => Ok(Key::AsItIs),
    }
}

/// Whether this system has a key file for the image at a place.
fn has_file(place: &Path) -> bool {
    let has_file = || {
        let image = Target::at(place).ok()?.open(Access::Read).ok()?;
        let ring = Ring::load(image.label().uuid).ok()??;
        Some(ring.keys.slots.iter().any(|slot| slot.source.kind() == dormouse_image::KeyKind::File))
    };
    has_file().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A file on an encrypted root.
    const USUAL: Facts = Facts {
        policy: SealKey::None,
        has_file: false,
        goes_around: true,
        is_root_encrypted: true,
        is_place_on_root: true,
    };

    fn decided(facts: Facts, wanted: WantedKey) -> Result<Key, String> {
        let choice = Choice::File("/home/image".into());
        decide(facts, &choice, wanted).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_around_encryption_is_sealed_by_a_file_on_the_root() {
        assert_eq!(decided(USUAL, WantedKey::Auto), Ok(Key::New(DEFAULT_FILE.into())));
        let apart = Facts { is_place_on_root: false, ..USUAL };
        assert_eq!(decided(apart, WantedKey::Auto), Ok(Key::New(ON_ROOT.into())));
        // A partition beside an encrypted root.
        assert_eq!(decided(Facts { goes_around: false, ..USUAL }, WantedKey::Auto), Ok(Key::New(DEFAULT_FILE.into())));
        assert!(decided(USUAL, WantedKey::None).unwrap_err().contains("it must be sealed"));
        assert_eq!(decided(Facts { goes_around: false, ..USUAL }, WantedKey::None), Ok(Key::AsItIs));
        let home = Facts { is_root_encrypted: false, ..USUAL };
        assert!(decided(home, WantedKey::Auto).unwrap_err().contains("nobody's secret"));
    }

    #[test]
    fn what_is_there_is_kept() {
        for policy in [SealKey::Passphrase, SealKey::Tpm2] {
            assert_eq!(decided(Facts { policy, ..USUAL }, WantedKey::Auto), Ok(Key::AsItIs));
            assert!(decided(Facts { policy, ..USUAL }, WantedKey::File).is_err());
        }
        let has_file = Facts { has_file: true, ..USUAL };
        assert_eq!(decided(has_file, WantedKey::Auto), Ok(Key::Named));
        assert_eq!(decided(Facts { policy: SealKey::File, ..has_file }, WantedKey::Auto), Ok(Key::AsItIs));
        // The image was made again.
        assert_eq!(
            decided(Facts { policy: SealKey::File, ..USUAL }, WantedKey::Auto),
            Ok(Key::New(DEFAULT_FILE.into()))
        );
    }

    #[test]
    fn an_image_without_encryption_has_no_key_unless_it_is_asked_for() {
        let plain = Facts { goes_around: false, is_root_encrypted: false, ..USUAL };
        assert_eq!(decided(plain, WantedKey::Auto), Ok(Key::AsItIs));
        assert_eq!(decided(plain, WantedKey::File), Ok(Key::New(DEFAULT_FILE.into())));
    }
}
