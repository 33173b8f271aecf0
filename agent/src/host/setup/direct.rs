//! Setup of the boot loader, so that it starts D itself; and how that is taken back.

use std::path::Path;

use crate::cycle::direct::{CONFIGURATION, DIRECTORY, file};
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
    let mut steps = vec![write(&file(CONFIGURATION), loader::GRUB, 0o644), Step::MakeBlock];
    match &wanted.update {
        Some(update) if wanted.has_scripts => {
            steps.push(write(Path::new(loader::DROP_IN_FILE), loader::DROP_IN, 0o755));
            steps.push(Step::Run(update.clone()));
        }
        _ => steps.push(Step::Tell(format!("have grub.cfg read, after its entries: {}", loader::BY_HAND))),
    }
    steps.push(Step::SettleBoot);
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
pub(super) fn undo(config: &Path, update: Option<Vec<String>>, exists: impl Fn(&Path) -> bool) -> Vec<Step> {
    let drop_in = policy::drop_in_dir(config).join(POLICY_DROP_IN);
    let script = Path::new(loader::DROP_IN_FILE);
    let made = [drop_in.as_path(), Path::new(DIRECTORY), script].into_iter().filter(|path| exists(path));
    let mut steps: Vec<Step> = made.map(|path| Step::Remove(path.to_owned())).collect();
    steps.extend(update.filter(|_| exists(script)).map(Step::Run));
    steps
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn texts(direct: bool, has_scripts: bool) -> Vec<String> {
        let text = format!("[image]\ndevice = \"/dev/vda\"\n[resume]\ndirect = {direct}\n");
        let policy = Policy::parse("a policy", &text).unwrap();
        let update = Some(vec!["update-grub".to_owned()]);
        let rebuild = Some(vec!["mkinitcpio".to_owned(), "-P".to_owned()]);
        let config = Path::new(DEFAULT_PATH);
        let wanted = Wanted { config, policy: &policy, has_scripts, update, rebuild };
        plan(&wanted).iter().map(Step::to_string).collect()
    }

    #[test]
    fn what_exists_is_taken_back() {
        let update = || Some(vec!["update-grub".to_owned()]);
        let steps = undo(Path::new(DEFAULT_PATH), update(), |_| true);
        let expected = [
            "remove /etc/dormouse.toml.d/60-direct.toml",
            "remove /boot/dormouse",
            "remove /etc/grub.d/42_dormouse",
            "run: update-grub",
        ];
        assert_eq!(steps.iter().map(Step::to_string).collect::<Vec<_>>(), expected);
        assert_eq!(undo(Path::new(DEFAULT_PATH), update(), |_| false), []);
        assert_eq!(undo(Path::new(DEFAULT_PATH), update(), |path| path == Path::new(DIRECTORY)).len(), 1);
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
        assert!(texts(true, false)[2].starts_with("left to you: have grub.cfg read"));
    }
}
