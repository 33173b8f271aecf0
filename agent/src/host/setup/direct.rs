//! Setup of the boot loader, so that it starts D itself; and how that is taken back.

use std::path::Path;

use crate::cycle::direct::{CONFIGURATION, DIRECTORY, SystemdBoot, file};
use crate::host::loader;
use crate::host::setup::steps::Step;
use crate::policy::{self, DEFAULT_PATH, Policy};

/// The drop-in of the policy that asks for it.
const POLICY_DROP_IN: &str = "60-direct.toml";
const POLICY: &str = "# Written by `dormouse setup --direct`.\n[resume]\ndirect = true\n";

/// What the steps are made of.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) config: &'a Path,
    /// The policy as it is.
    pub(super) policy: &'a Policy,
    /// It, where systemd-boot has booted this system.
    pub(super) systemd_boot: Option<SystemdBoot>,
    /// Whether GRUB's configuration is made of scripts.
    pub(super) has_scripts: bool,
    /// The command that makes it again.
    pub(super) update: Option<Vec<String>>,
    /// The command that rebuilds the boot's initramfs.
    pub(super) rebuild: Option<Vec<String>>,
}

/// The steps.
pub(super) fn plan(wanted: &Wanted<'_>) -> Vec<Step> {
    let write = |file: &Path, text, mode| Step::Write { file: file.to_owned(), text, mode };
    let mut steps = Vec::new();
    if let Some(loader) = &wanted.systemd_boot {
        steps.push(Step::TryEntry(loader.clone(), Box::new(wanted.policy.clone())));
    } else {
        steps.extend([write(&file(CONFIGURATION), loader::GRUB, 0o644), Step::MakeBlock]);
        match &wanted.update {
            Some(update) if wanted.has_scripts => {
                steps.push(write(Path::new(loader::DROP_IN_FILE), loader::DROP_IN, 0o755));
                steps.push(Step::Run(update.clone()));
            }
            _ => steps.push(Step::Tell(format!("have grub.cfg read, after its entries: {}", loader::BY_HAND))),
        }
        steps.push(Step::SettleBoot);
    }
    if !wanted.policy.resume.direct {
        steps.push(write(&policy::drop_in_dir(wanted.config).join(POLICY_DROP_IN), POLICY, 0o644));
        // Each initramfs carries the policy.
        let config = wanted.config.display().to_string();
        let config = if config == DEFAULT_PATH { Vec::new() } else { vec!["--config".to_owned(), config] };
        steps.push(Step::Dormouse([config, vec!["build-initramfs".to_owned()]].concat()));
        steps.extend(wanted.rebuild.clone().map(Step::Run));
    }
    steps
}

/// The steps that take back what exists of it.
pub(super) fn undo(
    config: &Path,
    systemd_boot: Option<&SystemdBoot>,
    update: Option<Vec<String>>,
    exists: impl Fn(&Path) -> bool,
) -> Vec<Step> {
    let drop_in = policy::drop_in_dir(config).join(POLICY_DROP_IN);
    let script = Path::new(loader::DROP_IN_FILE);
    let mut made = vec![drop_in, DIRECTORY.into(), script.to_owned()];
    // systemd-boot's may be the same directory.
    let of_systemd_boot = systemd_boot.map_or_else(Vec::new, |loader| vec![loader.entry(), loader.files()]);
    made.extend(of_systemd_boot.into_iter().filter(|path| path != Path::new(DIRECTORY)));
    let made = made.into_iter().filter(|path| exists(path));
    let mut steps: Vec<Step> = made.map(Step::Remove).collect();
    steps.extend(update.filter(|_| exists(script)).map(Step::Run));
    steps
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn texts(direct: bool, has_scripts: bool) -> Vec<String> {
        texts_with(None, direct, has_scripts)
    }

    fn texts_with(systemd_boot: Option<SystemdBoot>, direct: bool, has_scripts: bool) -> Vec<String> {
        let text = format!("[image]\ndevice = \"/dev/vda\"\n[resume]\ndirect = {direct}\n");
        let policy = Policy::parse("a policy", &text).unwrap();
        let update = Some(vec!["update-grub".to_owned()]);
        let rebuild = Some(vec!["mkinitcpio".to_owned(), "-P".to_owned()]);
        let config = Path::new(DEFAULT_PATH);
        let wanted = Wanted { config, policy: &policy, systemd_boot, has_scripts, update, rebuild };
        plan(&wanted).iter().map(Step::to_string).collect()
    }

    #[test]
    fn what_exists_is_taken_back() {
        let update = || Some(vec!["update-grub".to_owned()]);
        let steps = undo(Path::new(DEFAULT_PATH), None, update(), |_| true);
        let expected = [
            "remove /etc/dormouse.toml.d/60-direct.toml",
            "remove /boot/dormouse",
            "remove /etc/grub.d/42_dormouse",
            "run: update-grub",
        ];
        assert_eq!(steps.iter().map(Step::to_string).collect::<Vec<_>>(), expected);
        assert_eq!(undo(Path::new(DEFAULT_PATH), None, update(), |_| false), []);
        assert_eq!(undo(Path::new(DEFAULT_PATH), None, update(), |path| path == Path::new(DIRECTORY)).len(), 1);
        let steps = |place: &str| {
            let loader = SystemdBoot::at(Path::new(place));
            let steps = undo(Path::new(DEFAULT_PATH), Some(&loader), None, |path| !path.starts_with("/etc"));
            steps.iter().map(Step::to_string).collect::<Vec<_>>()
        };
        assert_eq!(steps("/boot"), ["remove /boot/dormouse", "remove /boot/loader/entries/a-dormouse.conf"]);
        assert_eq!(steps("/efi").last().unwrap(), "remove /efi/dormouse");
    }

    #[test]
    fn the_boot_loader_comes_before_the_policy_that_asks_for_it() {
        let expected = [
            "write /boot/dormouse/direct.cfg",
            "make /boot/dormouse/direct.env: the block that the boot loader reads and writes",
            "write /etc/grub.d/42_dormouse",
            "run: update-grub",
            "settle the filesystem of /boot/dormouse",
            "write /etc/dormouse.toml.d/60-direct.toml",
            "run: dormouse build-initramfs",
            "run: mkinitcpio -P",
        ];
        assert_eq!(texts(false, true), expected);
        assert_eq!(texts(true, true), expected[..5]);
        let loader = SystemdBoot::at(Path::new("/efi"));
        let of_it = ["try whether systemd-boot, with its entries on /efi, can be told"];
        assert_eq!(texts_with(Some(loader.clone()), true, true), of_it);
        assert_eq!(texts_with(Some(loader), false, true), [&of_it[..], &expected[5..]].concat());
        assert!(texts(true, false)[2].starts_with("left to you: have grub.cfg read"));
    }
}
