//! Whether an image that lies below encryption is sealed.

use crate::host::doctor::Check;
use crate::host::doctor::facts::Facts;
use crate::host::doctor::judge::question;

/// The check.
pub(super) fn check(facts: &Facts) -> Check {
    let question = question(
        "image-sealing",
        "What is written below a layer that encrypts is not encrypted by it: only a sealed image keeps memory secret.",
    );
    match &facts.image {
        None => question.needs_policy(),
        Some(Err(_)) => question.unknown("the image device was not found", "mend image-device first"),
        Some(Ok(image)) => match &image.unsealed {
            Some(unsealed) => question.refused(unsealed),
            None => question.ok("no layer over the image encrypts, or it is sealed"),
        },
    }
}
