//! An image that is not sealed holds all memory in clear, and the keys of encrypted volumes that are open among it.

use std::path::Path;

use dormouse_linux::luks;

use crate::cycle::keys;
use crate::policy::Policy;

/// What there is to warn of before a hibernation: the encrypted volumes that are open, unless images are sealed.
#[must_use]
pub fn open_volumes(policy: Option<&Policy>) -> Vec<String> {
    let volumes = luks::open_volumes(Path::new("/sys"));
    if !volumes.is_empty() && policy.is_some_and(keys::seals) { Vec::new() } else { volumes }
}

/// The warning, if there is one to give.
#[must_use]
pub fn warning(volumes: &[String]) -> Option<String> {
    let which = volumes.join(", ");
    (!volumes.is_empty()).then(|| {
        format!(
            "the image is not sealed, and will hold the keys of the encrypted volumes that are open ({which}): \
             whoever reads the image's disk can open them"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_of_each_open_volume() {
        assert_eq!(warning(&[]), None);
        let text = warning(&["home".into(), "root".into()]).unwrap_or_default();
        assert!(text.contains("(home, root)") && !text.contains('\n'), "{text}");
    }
}
