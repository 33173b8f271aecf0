//! A private key that the machine's TPM opens, for as long as the machine boots as it did.
//!
//! Nobody can know beforehand what the next boot's registers will hold, so that a new pair is made at each ordinary
//! boot, and sealed to what that boot has measured. The private key is forgotten then: nothing of it is at rest. The
//! TPM is not asked for anything when the machine is hibernated.

use dormouse_image::TpmKey;
use dormouse_linux::tpm::{self, Transport};

use crate::key::recipient::Pair;
use crate::key::{KeyError, Secret};

/// A new pair, sealed to what the registers hold now; with the sender's secret.
///
/// # Errors
/// [`KeyError::Tpm`].
pub(super) fn make(tpm: &mut dyn Transport, pcrs: u32) -> Result<(TpmKey, Secret), KeyError> {
    let Pair { public, private, sender } = Pair::random()?;
    let blob = tpm::seal(tpm, private.bytes(), pcrs)?;
    Ok((TpmKey { public, pcrs, blob }, sender))
}

/// The private key.
///
/// # Errors
/// [`KeyError::Tpm`]: the registers differ, or it is another TPM.
pub(super) fn open(tpm: &mut dyn Transport, key: &TpmKey) -> Result<Secret, KeyError> {
    Ok(Secret(tpm::unseal(tpm, &key.blob, key.pcrs)?))
}
