//! `dormouse setup --undo`: everything that setup, the hooks and `dormouse enable` have made is taken back, and what a
//! person has written is put aside.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;
use dormouse_image::ImageDevice;

use crate::cycle::lock::Lock;
use crate::cycle::wipe;
use crate::host::setup::steps::{self, Step};
use crate::key::Ring;
use crate::policy::{self, KernelPolicy, Policy};
use crate::store::Access;
use crate::target::{self, Target};

/// What is in it was made by Dormouse.
const STATE: &str = "/var/lib/dormouse";

/// What is there to be taken back.
#[derive(Debug, Default)]
pub(super) struct There {
    /// Whether there is a service manager.
    pub(super) has_unit: bool,
    /// The image's place, if the policy leads to one.
    image: Option<PathBuf>,
    /// Whether that is a file.
    is_file: bool,
    /// The numbers of its keys.
    keys: Vec<u32>,
    /// Files of the policy that setup has written.
    written: Vec<PathBuf>,
    /// The policy, where a person has changed it.
    changed: Option<PathBuf>,
    /// What else is there.
    made: Vec<PathBuf>,
    /// The command that rebuilds the boot's initramfs.
    rebuild: Option<Vec<String>>,
}

/// Looks.
///
/// # Errors
/// A session waits in the image; or the image's keys cannot be looked at.
pub(super) fn look(config: &Path, has_unit: bool, rebuild: Option<Vec<String>>) -> anyhow::Result<There> {
    let policy = Policy::load(config).ok();
    let mut there = There { has_unit, rebuild, ..There::default() };
    if let Some(device) = policy.as_ref().map(|policy| &policy.image.device) {
        look_at_image(&mut there, device)?;
    }
    let drop_in = policy::drop_in_dir(config).join(steps::DROP_IN);
    there.written.extend(Some(drop_in).filter(|path| path.exists()));
    match fs::read_to_string(config) {
        Ok(text) if steps::is_example(&text) => there.written.push(config.to_owned()),
        Ok(_) => there.changed = Some(config.to_owned()),
        Err(_) => {}
    }
    // What the policy has elsewhere is somebody's own.
    let kernel = policy.as_ref().is_none_or(|policy| KernelPolicy::is_own(&policy.kernel.image));
    let names = ["vmlinuz", "initramfs.img", "boots", "keys", "target.json", "memory-maps"];
    let made = names.iter().filter(|name| kernel || **name != "vmlinuz").map(|name| Path::new(STATE).join(name));
    there.made.extend(made.filter(|path| path.exists()));
    Ok(there)
}

fn look_at_image(there: &mut There, device: &ImageDevice) -> anyhow::Result<()> {
    let Some(target) = target::resolve(device).ok().flatten() else { return Ok(()) };
    let Ok(image) = target.open(Access::Read) else { return Ok(()) };
    if image.commit().state.is_waiting() {
        bail!(
            "a session waits in the image on {target}: reboot to resume it, or give it up first: `dormouse image \
             discard {}`",
            target.path().display()
        );
    }
    if let Some(ring) = Ring::load(image.label().uuid)? {
        there.keys = ring.keys.slots.iter().map(|slot| slot.id).collect();
    }
    there.is_file = target.path().is_file();
    there.image = Some(target.path().to_owned());
    Ok(())
}

/// The steps that take it back.
pub(super) fn plan(there: &There) -> Vec<Step> {
    let dormouse = |words: &[&str]| Step::Dormouse(words.iter().map(|&word| word.to_owned()).collect());
    // First, so that nothing hibernates meanwhile.
    let mut steps = vec![dormouse(&["disable"])];
    if there.has_unit {
        steps.push(Step::Run(
            ["systemctl", "--quiet", "disable", "--now", "dormouse.service", "dormouse-warm.service"]
                .map(str::to_owned)
                .into(),
        ));
    }
    steps.extend(there.keys.iter().map(|number| dormouse(&["key", "remove", &number.to_string()])));
    if let Some(image) = &there.image {
        // On what a file leaves behind, too: a boot would find it there.
        steps.push(Step::Erase(image.clone()));
        steps.extend(there.is_file.then(|| Step::Remove(image.clone())));
    }
    steps.extend(there.written.iter().chain(&there.made).cloned().map(Step::Remove));
    steps.extend(there.changed.clone().map(Step::PutAside));
    steps.push(Step::RemoveIfEmpty(STATE.into()));
    steps.extend(there.rebuild.clone().map(Step::Run));
    steps
}

/// Takes an image's label off its blocks, and everything before its data with it. What a session has left there is
/// wiped before: without the label nothing would know of it. That may be under way, after a resume.
pub(super) fn erase(place: &Path) -> anyhow::Result<()> {
    let target = Target::at(place)?;
    if let Err(error) = wipe::run(&target) {
        log::warn!("{target}: what a session has left there is not wiped: {error:#}");
    }
    let _lock = Lock::wait_if_any()?;
    let image = target.open(Access::Write)?;
    let zeroes = vec![0; usize::try_from(dormouse_image::layout::HEADER_OFFSET)?];
    image.disk().write_copy(0, &zeroes)?;
    image.disk().flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::target::device;

    fn texts(there: &There) -> Vec<String> {
        plan(there).iter().map(Step::to_string).collect()
    }

    #[test]
    fn all_of_it_is_taken_back_and_the_policy_of_a_person_put_aside() {
        let there = There {
            has_unit: true,
            image: Some("/var/lib/dormouse/image".into()),
            is_file: true,
            keys: vec![1],
            written: vec!["/etc/dormouse.toml.d/50-setup.toml".into()],
            changed: Some("/etc/dormouse.toml".into()),
            made: vec!["/var/lib/dormouse/vmlinuz".into()],
            rebuild: Some(vec!["mkinitcpio".into(), "-P".into()]),
        };
        let expected = [
            "run: dormouse disable",
            "run: systemctl --quiet disable --now dormouse.service dormouse-warm.service",
            "run: dormouse key remove 1",
            "erase the label of the image on /var/lib/dormouse/image",
            "remove /var/lib/dormouse/image",
            "remove /etc/dormouse.toml.d/50-setup.toml",
            "remove /var/lib/dormouse/vmlinuz",
            "rename /etc/dormouse.toml, which was changed by hand, to /etc/dormouse.toml.undone",
            "remove /var/lib/dormouse, if nothing is left in it",
            "run: mkinitcpio -P",
        ];
        assert_eq!(texts(&there), expected);
        // On a device of its own.
        let device = There { is_file: false, changed: None, ..there };
        assert!(!texts(&device).contains(&"remove /var/lib/dormouse/image".to_owned()));
        assert_eq!(
            texts(&There::default()),
            ["run: dormouse disable", "remove /var/lib/dormouse, if nothing is left in it"]
        );
    }

    #[test]
    fn what_is_erased_is_no_image_any_more() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        device::init(file.path(), false).unwrap();
        erase(file.path()).unwrap();
        assert!(Target::at(file.path()).unwrap().open(Access::Read).is_err());
        assert!(device::foreign(file.path()).unwrap().is_none());
    }

    #[test]
    fn rejects_to_undo_over_a_session_that_waits() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        device::init(&image, false).unwrap();
        let config = directory.path().join("dormouse.toml");
        fs::write(&config, format!("[image]\ndevice = \"{}\"\n", image.display())).unwrap();
        let there = look(&config, false, None).unwrap();
        assert_eq!((there.image.as_deref(), there.is_file), (Some(image.as_path()), true));
        assert_eq!(there.changed.as_deref(), Some(config.as_path()));
        let mut opened = Target::at(&image).unwrap().open(Access::Write).unwrap();
        opened.transition(dormouse_image::State::Saving, "").unwrap();
        drop(opened);
        // One that was never finished is nobody's session.
        look(&config, false, None).unwrap();
    }
}
