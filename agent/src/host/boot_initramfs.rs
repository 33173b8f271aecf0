//! The initramfs of the ordinary boot (kernel C): which tool builds it here, and whether that tool knows of
//! Dormouse.
//!
//! Paths are below a root, which is `/` but for image builders and tests.

use std::path::{Path, PathBuf};

/// A tool that builds the initramfs of the ordinary boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Debian's and Ubuntu's.
    InitramfsTools,
    /// Fedora's, RHEL's and openSUSE's.
    Dracut,
    /// Arch's.
    Mkinitcpio,
}

impl Tool {
    /// The one that is in use.
    ///
    /// Debian can have parts of several installed; the one in use is the one that is called for a new kernel
    /// (`/etc/kernel/postinst.d`).
    #[must_use]
    pub fn detect(root: &Path) -> Option<Tool> {
        let signs = [
            ("etc/kernel/postinst.d/initramfs-tools", Tool::InitramfsTools),
            ("etc/kernel/postinst.d/dracut", Tool::Dracut),
            ("usr/bin/mkinitcpio", Tool::Mkinitcpio),
            ("usr/bin/dracut", Tool::Dracut),
            ("usr/sbin/update-initramfs", Tool::InitramfsTools),
        ];
        signs.into_iter().find(|(sign, _)| root.join(sign).exists()).map(|(_, tool)| tool)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tool::InitramfsTools => "initramfs-tools",
            Tool::Dracut => "dracut",
            Tool::Mkinitcpio => "mkinitcpio",
        }
    }

    /// Whether its hook for Dormouse is installed, and switched on where it has to be.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn has_hook(self, root: &Path) -> Result<(), String> {
        let places: &[&str] = match self {
            Tool::InitramfsTools => &["etc/initramfs-tools/hooks/dormouse", "usr/share/initramfs-tools/hooks/dormouse"],
            Tool::Dracut => &["usr/lib/dracut/modules.d/55dormouse/module-setup.sh"],
            Tool::Mkinitcpio => &["etc/initcpio/install/dormouse", "usr/lib/initcpio/install/dormouse"],
        };
        if !places.iter().any(|place| root.join(place).exists()) {
            return Err(format!("{} has no hook of Dormouse: /{} is missing", self.name(), places[places.len() - 1]));
        }
        if self == Tool::Mkinitcpio && !mkinitcpio_hooks(root).iter().any(|hook| hook == "dormouse") {
            return Err("`dormouse` is not among the HOOKS of /etc/mkinitcpio.conf".to_owned());
        }
        Ok(())
    }

    /// Whether its hook looks again when the boot has unlocked its volumes.
    ///
    /// # Errors
    /// What is missing or in the wrong order, in words.
    pub fn looks_after_unlock(self, root: &Path) -> Result<(), String> {
        let places: &[&str] = match self {
            Tool::InitramfsTools => &[
                "etc/initramfs-tools/scripts/local-premount/dormouse",
                "usr/share/initramfs-tools/scripts/local-premount/dormouse",
            ],
            Tool::Dracut => &["usr/lib/dracut/modules.d/55dormouse/dormouse-resume-unlocked.service"],
            Tool::Mkinitcpio => &["usr/lib/dormouse/dormouse-resume-unlocked.service"],
        };
        if !places.iter().any(|place| root.join(place).exists()) {
            let place = places[places.len() - 1];
            return Err(format!("{} does not look again after the unlock: /{place} is missing", self.name()));
        }
        match self {
            // The units have an order of their own.
            Tool::Mkinitcpio => order_of(&mkinitcpio_hooks(root)),
            Tool::InitramfsTools | Tool::Dracut => Ok(()),
        }
    }

    /// The command that builds the initramfs of every installed kernel: whichever of them is booted next must look for
    /// the image before it mounts the session's filesystems.
    #[must_use]
    pub fn rebuild(self) -> Vec<String> {
        let words: &[&str] = match self {
            Tool::InitramfsTools => &["update-initramfs", "-u", "-k", "all"],
            Tool::Dracut => &["dracut", "--force", "--regenerate-all"],
            Tool::Mkinitcpio => &["mkinitcpio", "-P"],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }
}

/// Whether mkinitcpio without systemd, which runs its hooks in their order, unlocks before it looks.
fn order_of(hooks: &[String]) -> Result<(), String> {
    let at = |name: &str| hooks.iter().position(|hook| hook == name);
    if at("systemd").is_some() {
        return Ok(());
    }
    let late = ["encrypt", "lvm2"].into_iter().find(|opener| at(opener) > at("dormouse"));
    match (late, at("filesystems") < at("dormouse")) {
        (Some(opener), _) => Err(format!(
            "among the HOOKS of /etc/mkinitcpio.conf `dormouse` comes before `{opener}`, and the image's key is in \
             what that opens: put it after that, and before `resume`, `filesystems` and `fsck`"
        )),
        (None, true) => {
            Err("among the HOOKS of /etc/mkinitcpio.conf `dormouse` comes after `filesystems`: put it before"
                .to_owned())
        }
        (None, false) => Ok(()),
    }
}

/// The HOOKS of mkinitcpio.conf(5) and its drop-ins.
fn mkinitcpio_hooks(root: &Path) -> Vec<String> {
    let mut files = vec![root.join("etc/mkinitcpio.conf")];
    let mut drop_ins: Vec<PathBuf> = std::fs::read_dir(root.join("etc/mkinitcpio.conf.d"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    drop_ins.sort();
    files.extend(drop_ins.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "conf")));
    let texts: Vec<String> = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    hooks_of(&texts.join("\n"))
}

/// What the shell array HOOKS holds in the end: `HOOKS=(...)` sets it, `HOOKS+=(...)` adds to it.
fn hooks_of(text: &str) -> Vec<String> {
    let without_comment = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    let code: Vec<String> = text.lines().map(without_comment).collect();
    let code = format!("\n{}", code.join("\n"));
    let mut hooks = Vec::new();
    for statement in code.split("\nHOOKS").skip(1) {
        let array = match statement.strip_prefix('+') {
            Some(rest) => rest.strip_prefix("=("),
            None => statement.strip_prefix("=(").inspect(|_| hooks.clear()),
        };
        let words = array.and_then(|rest| rest.split(')').next()).unwrap_or_default().split_whitespace();
        hooks.extend(words.map(|hook| hook.trim_matches(['"', '\'']).to_owned()));
    }
    hooks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        directory
    }

    #[test]
    fn the_tool_in_use_is_found() {
        let detect = |files: &[(&str, &str)]| Tool::detect(tree(files).path());
        assert_eq!(detect(&[]), None);
        assert_eq!(detect(&[("usr/bin/dracut", "")]), Some(Tool::Dracut));
        assert_eq!(detect(&[("usr/bin/mkinitcpio", "")]), Some(Tool::Mkinitcpio));
        let debian = [("usr/bin/dracut", ""), ("etc/kernel/postinst.d/initramfs-tools", "")];
        assert_eq!(detect(&debian), Some(Tool::InitramfsTools));
    }

    #[test]
    fn rejects_a_look_that_comes_before_the_unlock() {
        let missing = Tool::InitramfsTools.looks_after_unlock(tree(&[]).path()).unwrap_err();
        assert!(missing.contains("/usr/share/initramfs-tools/scripts/local-premount/dormouse"), "{missing}");
        let dracut = tree(&[("usr/lib/dracut/modules.d/55dormouse/dormouse-resume-unlocked.service", "")]);
        assert_eq!(Tool::Dracut.looks_after_unlock(dracut.path()), Ok(()));
        let unit = ("usr/lib/dormouse/dormouse-resume-unlocked.service", "");
        let arch = |hooks: &str| {
            let conf = format!("HOOKS=({hooks})\n");
            Tool::Mkinitcpio.looks_after_unlock(tree(&[unit, ("etc/mkinitcpio.conf", &conf)]).path())
        };
        assert_eq!(arch("base udev block encrypt lvm2 dormouse resume filesystems fsck"), Ok(()));
        assert_eq!(arch("base systemd block dormouse sd-encrypt lvm2 filesystems fsck"), Ok(()));
        assert_eq!(arch("base udev block encrypt dormouse filesystems"), Ok(()));
        for (hooks, named) in [
            ("base udev block dormouse encrypt lvm2 filesystems", "`encrypt`"),
            ("base udev block encrypt dormouse lvm2 filesystems", "`lvm2`"),
            ("base udev block encrypt filesystems dormouse", "`filesystems`"),
        ] {
            let fault = arch(hooks).unwrap_err();
            assert!(fault.contains(named), "{fault}");
        }
    }

    #[test]
    fn a_hook_is_there_and_switched_on() {
        let missing = Tool::Dracut.has_hook(tree(&[]).path()).unwrap_err();
        assert!(missing.contains("/usr/lib/dracut/modules.d/55dormouse"), "{missing}");
        let dracut = tree(&[("usr/lib/dracut/modules.d/55dormouse/module-setup.sh", "")]);
        assert_eq!(Tool::Dracut.has_hook(dracut.path()), Ok(()));
        let hook = ("usr/lib/initcpio/install/dormouse", "");
        let arch = |conf| Tool::Mkinitcpio.has_hook(tree(&[hook, ("etc/mkinitcpio.conf", conf)]).path());
        assert_eq!(arch("# HOOKS\nHOOKS=(base udev block dormouse filesystems)\n"), Ok(()));
        assert_eq!(arch("HOOKS=(base\n  dormouse)\n"), Ok(()));
        assert!(arch("HOOKS=(base dormouse)\nHOOKS=(base udev)\n").is_err());
        assert!(arch("#HOOKS=(base dormouse)\n").is_err());
        assert_eq!(arch("HOOKS=(base udev)\nHOOKS+=('dormouse')\n"), Ok(()));
        assert_eq!(arch("  HOOKS=(base # (udev)\n dormouse)\n"), Ok(()));
        assert!(arch("HOOKS+=(dormouse)\nHOOKS=(base)\n").is_err());
        assert!(arch("HOOKS=(base # dormouse\n)\nHOOKS_OLD=(dormouse)\n").is_err());
        let drop_in = ("etc/mkinitcpio.conf.d/dormouse.conf", "HOOKS+=(dormouse)\n");
        let directory = tree(&[hook, ("etc/mkinitcpio.conf", "HOOKS=(base)"), drop_in]);
        assert_eq!(Tool::Mkinitcpio.has_hook(directory.path()), Ok(()));
    }
}
