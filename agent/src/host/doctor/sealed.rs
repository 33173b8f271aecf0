//! What the doctor finds of the layers below the image, of its key, and of the boot's look with the volumes unlocked:
//! facts and checks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_linux::error_chain::in_full;
use dormouse_linux::system;

use crate::cycle::last::Last;
use crate::cycle::look::{KeySeen, Unlocked};
use crate::host::boot_initramfs::Tool;
use crate::host::doctor::Check;
use crate::host::doctor::facts::Facts;
use crate::host::doctor::judge::question;
use crate::host::layers;
use crate::key::{self, KeyFacts};
use crate::policy::{Policy, SealKey};
use crate::store::Access;
use crate::target;

const ADD: &str = "dormouse setup, or `dormouse key add`";

/// What is known of them.
#[derive(Debug, Clone, Default)]
pub(super) struct SealedFacts {
    /// Whether only root would see the rest.
    needs_root: bool,
    /// The layers below the image in words, and whether one of them encrypts; `None` where it is not found.
    layers: Option<(String, bool)>,
    /// The way to the server that has the image, where one has it, and whether the image must be sealed for that.
    server: Option<(String, bool)>,
    /// What the policy says that the image is sealed with.
    policy: SealKey,
    /// The image's keys, or what is wrong with them.
    keys: Option<Result<KeyFacts, String>>,
    /// The key files, each with what it lies on, that are on another device than the root filesystem.
    apart: Vec<(PathBuf, String)>,
    /// What this boot's look found that was made with the volumes unlocked.
    unlocked: Option<Unlocked>,
    /// Why the boot's initramfs will not look then, by how its tool is set up.
    no_hook: Option<String>,
}

impl SealedFacts {
    /// Looks at them.
    pub(super) fn read(policy: Option<&Policy>) -> SealedFacts {
        let unlocked = Last::resume_of_this_boot().and_then(|last| last.found?.unlocked);
        let Some(policy) = policy else { return SealedFacts { unlocked, ..SealedFacts::default() } };
        let target = target::find(&policy.image.device, Duration::ZERO).ok();
        let link = target.as_ref().and_then(|target| target.link().ok().flatten());
        let server = link.map(|link| {
            let way = format!("with a server, reached as {} by {} ({})", link.address, link.mac, link.place);
            (way, !policy.image.trust_server)
        });
        let below = target.as_ref().map(|target| layers::below(target.path())).filter(|below| !below.is_empty());
        let image = target.and_then(|target| target.open(Access::Read).ok());
        let keys = image.map(|image| key::check(&image).map_err(|error| in_full(&error)));
        let root = layers::below(Path::new("/"));
        let files = keys.iter().flatten().flat_map(|keys| &keys.files);
        let apart = files.filter_map(|file| {
            let below = layers::below(file);
            (below != root).then(|| (file.clone(), layers::in_words(&below)))
        });
        SealedFacts {
            needs_root: !system::is_root(),
            layers: below.map(|below| (layers::in_words(&below), layers::is_encrypted(&below))),
            server,
            policy: policy.image.key,
            apart: apart.collect(),
            keys,
            unlocked,
            no_hook: Tool::detect(Path::new("/")).and_then(|tool| tool.looks_after_unlock(Path::new("/")).err()),
        }
    }
}

#[cfg(test)]
impl SealedFacts {
    /// Those of a machine with an image on a disk without layers.
    pub(super) fn plain() -> SealedFacts {
        let layers = Some(("/dev/vdb".to_owned(), false));
        SealedFacts { layers, keys: Some(Ok(KeyFacts::default())), ..SealedFacts::default() }
    }
}

/// The checks.
pub(super) fn checks(facts: &Facts) -> [Check; 3] {
    [layers_of_image(facts), image_key(facts), second_look(&facts.sealed)]
}

fn layers_of_image(facts: &Facts) -> Check {
    let question = question(
        "image-layers",
        "The save kernel assembles and unlocks nothing: it writes to the disks below all layers, and what is written \
         around encryption is sealed.",
    );
    if let Some((way, _)) = &facts.sealed.server {
        return question.ok(format!("the image is {way}"));
    }
    match &facts.sealed.layers {
        Some((layers, false)) => question.ok(format!("the image is on {layers}")),
        Some((layers, true)) => question.ok(format!("the image is on {layers}; it goes around the encryption, sealed")),
        None if facts.policy.is_err() => question.needs_policy(),
        None if facts.sealed.needs_root => question.needs_root(),
        None => question.unknown("what the image is on is not found", "mend image-device first"),
    }
}

fn image_key(facts: &Facts) -> Check {
    let question = question("image-key", "Without its key nobody reads or forges the image, and no boot resumes it.");
    let SealedFacts { policy, keys, layers, server, apart, needs_root, .. } = &facts.sealed;
    let goes_around = layers.as_ref().is_some_and(|(_, is_encrypted)| *is_encrypted);
    let keys = match keys {
        None if facts.policy.is_err() => return question.needs_policy(),
        None if *needs_root => return question.needs_root(),
        None => return question.unknown("the image cannot be looked at", "mend image-device first"),
        Some(Err(fault)) => {
            return question.failed(fault.clone(), "see `dormouse key list`; remove the key and add it again");
        }
        Some(Ok(keys)) => keys,
    };
    let kinds = keys.kinds.join(", ");
    match policy {
        SealKey::None if keys.kinds.is_empty() && goes_around => {
            question.failed("the image goes around the encryption that it lies in, and has no key", ADD)
        }
        SealKey::None if keys.kinds.is_empty() && server.as_ref().is_some_and(|(_, is_needed)| *is_needed) => question
            .failed(
                "a server has the image that is not trusted, and it has no key",
                format!("{ADD}, or set image.trust_server = true"),
            ),
        SealKey::None if keys.kinds.is_empty() => question.ok("the image has no key: it is not sealed"),
        policy if *policy != SealKey::None && !keys.kinds.contains(&policy.as_str()) => question
            .failed(format!("the policy says image.key = \"{}\", and the image has no such key", policy.as_str()), ADD),
        _ if !keys.is_unchanged => question.warning(
            "somebody has changed the slots of the image's keys; the next hibernation puts them right",
            "see `dormouse key list`",
        ),
        _ => match apart.first() {
            Some((file, below)) => question.warning(
                format!(
                    "sealed: {kinds}; the key file {} is on {below}, and the root filesystem is not: the boot must \
                     unlock that before it mounts anything",
                    file.display()
                ),
                "remove the key and add a file on the root filesystem, or mark the volume for the initramfs in \
                 crypttab (`initramfs`, or `x-initrd.attach` with systemd)",
            ),
            None => question.ok(format!("sealed: {kinds}")),
        },
    }
}

/// The evidence check fails where there was none, or without the key.
fn second_look(facts: &SealedFacts) -> Check {
    let question = question(
        "second-look",
        "A boot that mounts or checks the session's filesystems before it looks for the image loses the session.",
    );
    if let Some(fault) = facts.no_hook.as_ref().filter(|_| facts.policy == SealKey::File) {
        return question.failed(fault.clone(), "mend it, and build the boot's initramfs again (initramfs/README.md)");
    }
    match &facts.unlocked {
        None => question.ok("this boot has looked before any volume was unlocked, or not at all"),
        Some(Unlocked { mounted, .. }) if !mounted.is_empty() => question.warning(
            format!("something was mounted already when this boot looked for the image: {}", mounted.join(", ")),
            "put Dormouse's hook before what mounts it (initramfs/README.md)",
        ),
        Some(Unlocked { key: KeySeen::Read(_), .. }) => {
            question.ok("this boot has read the image's key when the volumes were unlocked, and nothing was mounted")
        }
        Some(_) => question.ok("this boot has looked when the volumes were unlocked, and nothing was mounted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::State;
    use crate::host::doctor::tests::ready;

    fn sealed(change: impl FnOnce(&mut SealedFacts)) -> Facts {
        let mut facts = ready();
        facts.sealed = SealedFacts {
            layers: Some(("LVM vg-root on dm-crypt cr on /dev/sda3".to_owned(), true)),
            policy: SealKey::File,
            keys: Some(Ok(KeyFacts {
                kinds: vec!["file"],
                files: vec!["/var/lib/dormouse/key".into()],
                is_unchanged: true,
            })),
            unlocked: Some(Unlocked { mounted: Vec::new(), key: KeySeen::Read(vec!["dm:x@4096,8192".to_owned()]) }),
            ..SealedFacts::default()
        };
        change(&mut facts.sealed);
        facts
    }

    #[test]
    fn layers_and_key_of_a_usual_laptop() {
        let facts = sealed(|_| ());
        let checks = checks(&facts);
        assert!(checks.iter().all(|check| check.state == State::Ok), "{checks:?}");
        assert!(checks[0].found.contains("LVM vg-root on dm-crypt cr on /dev/sda3"), "{:?}", checks[0]);
    }

    #[test]
    fn names_what_is_missing_of_the_key() {
        let state = |change: fn(&mut SealedFacts)| image_key(&sealed(change)).state;
        let without = |facts: &mut SealedFacts| facts.keys = Some(Ok(KeyFacts::default()));
        assert_eq!(state(without), State::Failed);
        let nothing_said = |facts: &mut SealedFacts| {
            facts.keys = Some(Ok(KeyFacts::default()));
            facts.policy = SealKey::None;
        };
        assert_eq!(state(nothing_said), State::Failed);
        let plain = |facts: &mut SealedFacts| {
            facts.keys = Some(Ok(KeyFacts::default()));
            facts.policy = SealKey::None;
            facts.layers = Some(("/dev/sda3".to_owned(), false));
        };
        assert_eq!(state(plain), State::Ok);
        assert_eq!(state(|facts| facts.keys = Some(Err("moved".to_owned()))), State::Failed);
        assert_eq!(state(|facts| facts.apart = vec![("/home/key".into(), "dm-crypt home".to_owned())]), State::Warning);
        let changed = |facts: &mut SealedFacts| {
            facts.keys = Some(Ok(KeyFacts { kinds: vec!["file"], files: Vec::new(), is_unchanged: false }));
        };
        assert_eq!(state(changed), State::Warning);
    }

    #[test]
    fn warns_of_a_look_that_comes_late() {
        let facts =
            sealed(|facts| facts.unlocked = Some(Unlocked { mounted: vec!["/root".into()], ..Unlocked::default() }));
        let check = second_look(&facts.sealed);
        assert!(check.state == State::Warning && check.found.ends_with("/root"), "{check:?}");
        let facts = sealed(|facts| facts.no_hook = Some("no hook".to_owned()));
        assert_eq!(second_look(&facts.sealed).state, State::Failed);
    }
}
