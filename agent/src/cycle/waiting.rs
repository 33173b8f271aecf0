//! A session that waits in the image: a boot has not resumed it, and the policy keeps it (`resume.mismatch`). A save
//! would write over it, and might then fail itself.

use dormouse_image::Uuid;
use dormouse_linux::procfs;
use thiserror::Error;

use crate::cycle::refusal::Refusal;
use crate::store::Image;

/// A session that a hibernation would lose.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("image device {device}: a session waits in it, which a hibernation would write over")]
pub(crate) struct Waiting {
    /// The device.
    device: String,
}

impl Refusal for Waiting {
    fn id(&self) -> &'static str {
        "image-waiting"
    }

    fn remedy(&self) -> Option<String> {
        let remedy = "reboot to resume it, or give it up: `dormouse image discard`, or --force";
        Some(remedy.to_owned())
    }
}

/// Refuses an image with a session in it that is not this one. A save of this session that failed, and whose image
/// could not be invalidated, has left nothing to lose.
///
/// # Errors
/// [`Waiting`].
pub(super) fn refuse(image: &Image, is_forced: bool) -> Result<(), Waiting> {
    let here = procfs::boot_id().ok().and_then(|boot_id| boot_id.parse().ok());
    refuse_here(image, is_forced, here)
}

fn refuse_here(image: &Image, is_forced: bool, here: Option<Uuid>) -> Result<(), Waiting> {
    let is_own = || image.header().is_ok_and(|header| here == Some(header.session.boot_id));
    match image.commit().state.is_waiting() && !is_forced && !is_own() {
        true => Err(Waiting { device: image.disk().name().to_owned() }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use dormouse_image::State;

    use super::*;
    use crate::store::tests::saved;

    #[test]
    fn rejects_another_session_that_waits() {
        let image = saved(State::Complete);
        let own = image.header().unwrap().session.boot_id;
        let refused = refuse_here(&image, false, Some(Uuid([1; 16]))).unwrap_err();
        assert_eq!(refused.id(), "image-waiting");
        assert!(refuse_here(&image, false, None).is_err());
        assert!(refuse_here(&image, true, None).is_ok());
        // This session goes on.
        assert!(refuse_here(&image, false, Some(own)).is_ok());
        for state in [State::Snapshot, State::Failed] {
            assert!(refuse_here(&saved(state), false, None).is_ok(), "{state}");
        }
    }
}
