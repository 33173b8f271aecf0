//! Guest A's userland: an initramfs of busybox, the agent, the workload and the command server.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use dormouse_linux::cpio::Archive;
use dormouse_linux::kmod::{self, Module};

use crate::artifacts::{Artifacts, Kernel, KernelName};
use crate::machine::{BootLoader, DiskKind, GuestConfig};

/// Where the guest's policy is.
pub const POLICY_PATH: &str = "/etc/dormouse.toml";
/// Where the guest has its script that unlocks volumes, if it has one.
pub const UNLOCK_PATH: &str = "/etc/unlock";
/// The argument of the kernel's, before `=`, that names another policy for a boot to put there.
pub const POLICY_ARGUMENT: &str = "guest.policy";
/// The commands of busybox that the guest's scripts and the tests use.
const APPLETS: &[&str] = &[
    "blockdev", "cat", "cp", "cpio", "dd", "dmesg", "echo", "find", "grep", "head", "insmod", "ip", "ls", "mkdir",
    "mkswap", "mount", "nc", "poweroff", "reboot", "printf", "ps", "sed", "seq", "sh", "sleep", "stat", "stty",
    "swapoff", "swapon", "sync", "touch", "tr", "umount", "uname",
];

/// A policy of the guest, and the initramfs of B and D that carries it.
#[derive(Debug, Clone)]
pub struct GuestPolicy {
    /// Where the guest has it.
    pub path: String,
    /// Its text. To its table `[kernel]`, which must come last if it exists, the userland adds the initramfs; and
    /// unless it has a table `[console]`, what makes B and D name their phases, which the harness follows.
    pub text: String,
}

impl GuestPolicy {
    /// The policy that the guest's commands read by themselves.
    #[must_use]
    pub fn standard(text: String) -> Self {
        GuestPolicy { path: POLICY_PATH.to_owned(), text }
    }
}

/// What a guest's initramfs holds.
#[derive(Debug, Clone, Default)]
pub struct Userland {
    /// Policies, each with an initramfs of its own.
    pub policies: Vec<GuestPolicy>,
    /// Modules that A loads before it looks for an image, and that B and D load, beside those of the machine's disks;
    /// dependencies are found.
    pub modules: Vec<String>,
    /// Modules that A alone loads.
    pub own_modules: Vec<String>,
    /// A shell script by which A and C unlock volumes at boot, between two looks for the image. Empty: there is one
    /// look.
    pub unlock: String,
    /// The kernel of A and C.
    pub kernel: KernelName,
    /// The kernel of B and D, unless it is A's.
    pub second_kernel: Option<KernelName>,
}

impl Userland {
    /// The same userland with what this machine needs: the drivers of its disks and of its watchdog and Dormouse's own
    /// module, for B and D too unless they are A's own, and A's other modules.
    #[must_use]
    pub fn for_machine(&self, config: &GuestConfig) -> Userland {
        let mut userland = self.clone();
        (userland.kernel, userland.second_kernel) = (config.kernel, config.second_kernel);
        userland.own_modules.extend(config.modules.iter().cloned());
        if config.boot_loader == Some(BootLoader::SystemdBoot) {
            userland.own_modules.push("vfat".to_owned());
        }
        let watchdog = if config.watchdog { &["i6300esb"][..] } else { &[] };
        let module = if config.has_module { &["dormouse"][..] } else { &[] };
        let boot_disk = if config.boot_loader.is_some() { DiskKind::Virtio.modules() } else { &[] };
        let disks = config.disks.iter().flat_map(|disk| disk.kind.modules());
        for &name in disks.chain(boot_disk).chain(watchdog).chain(module) {
            if ![&userland.modules, &userland.own_modules].into_iter().flatten().any(|known| known == name) {
                userland.modules.push(name.to_owned());
            }
        }
        userland
    }

    /// Builds the initramfs into the file `output`. Temporary files go to `directory`.
    ///
    /// # Errors
    /// Fails where a part is missing or `dormouse build-initramfs` refuses.
    pub fn build(&self, artifacts: &Artifacts, directory: &Path, output: &Path) -> Result<()> {
        let (kernel, second_kernel) = self.kernels(artifacts)?;
        let init = fs::read(artifacts.source("tests/src/userland/init.sh")).context("the guest's init")?;
        let resume = read(&artifacts.source("initramfs/dormouse-resume"))?;
        let mut archive = Archive::new()
            .node("/dev/console", 0o600, 5, 1)
            .node("/dev/null", 0o666, 1, 3)
            .dir("/proc", 0o755)
            .dir("/sys", 0o755)
            .dir("/run", 0o755)
            .dir("/tmp", 0o1777)
            .symlink("/bin", "usr/bin")
            .file("/init", 0o755, init)
            .file("/usr/bin/busybox", 0o755, read(&artifacts.busybox())?)
            .file("/var/lib/dormouse/vmlinuz", 0o644, read(&second_kernel.bzimage())?)
            .file("/usr/lib/dormouse/dormouse-resume", 0o755, resume);
        for applet in APPLETS {
            archive = archive.symlink(&format!("/usr/bin/{applet}"), "busybox");
        }
        for binary in ["dormouse", "workload", "command-server"] {
            archive = archive.file(&format!("/usr/bin/{binary}"), 0o755, read(&artifacts.binary(binary))?);
        }
        // Where distributions put it: test kernels have it in /proc/config.gz.
        let config = format!("/boot/config-{}", kernel.release());
        archive = archive.file(&config, 0o644, read(&kernel.config())?);
        let mut names = String::new();
        for module in self.modules(&kernel)? {
            names.push_str(&module.file_name);
            names.push('\n');
            archive = archive.file(&format!("/lib/modules/{}", module.file_name), 0o644, module.bytes);
        }
        archive = archive.file("/etc/modules", 0o644, names.into_bytes());
        if !self.unlock.is_empty() {
            archive = archive.file(UNLOCK_PATH, 0o644, self.unlock.clone().into_bytes());
        }
        for (number, policy) in self.policies.iter().enumerate() {
            let guest_initramfs = format!("/var/lib/dormouse/initramfs{number}.img");
            let (before, after) = policy.text.split_once("[kernel]\n").unwrap_or((&policy.text, ""));
            let has_console =
                ["[console]", "console."].iter().any(|start| policy.text.lines().any(|l| l.starts_with(start)));
            let phases = if has_console { "" } else { "console.verbosity = \"normal\"\n" };
            let text = format!("{phases}{before}\n[kernel]\ninitramfs = \"{guest_initramfs}\"\n{after}");
            let small = self.small_initramfs(artifacts, &second_kernel, directory, &text)?;
            archive = archive.file(&guest_initramfs, 0o644, small).file(&policy.path, 0o644, text.into_bytes());
        }
        fs::write(output, archive.finish()?).with_context(|| format!("{}: cannot be written", output.display()))
    }

    /// The initramfs of B and D, by the command that a user runs.
    fn small_initramfs(
        &self,
        artifacts: &Artifacts,
        kernel: &Kernel,
        directory: &Path,
        policy: &str,
    ) -> Result<Vec<u8>> {
        let (config, output) = (directory.join("policy.toml"), directory.join("small-initramfs.img"));
        fs::write(&config, policy).with_context(|| format!("{}: cannot be written", config.display()))?;
        let mut command = Command::new(artifacts.binary("dormouse"));
        command.arg("--config").arg(&config).arg("build-initramfs");
        command.arg("--output").arg(&output).arg("--init").arg(artifacts.binary("dormouse-init"));
        let modules = if self.modules.is_empty() { "none".to_owned() } else { self.modules.join(",") };
        command.arg("--modules").arg(modules).arg("--modules-dir").arg(kernel.modules());
        let built = command.output().context("dormouse build-initramfs cannot be started")?;
        if !built.status.success() {
            bail!("dormouse build-initramfs failed: {}", String::from_utf8_lossy(&built.stderr).trim());
        }
        read(&output)
    }

    /// The kernel of A and C, and that of B and D.
    fn kernels(&self, artifacts: &Artifacts) -> Result<(Kernel, Kernel)> {
        Ok((artifacts.kernel(self.kernel)?, artifacts.kernel(self.second_kernel.unwrap_or(self.kernel))?))
    }

    /// The modules' files in the order in which A must load them.
    fn modules(&self, kernel: &Kernel) -> Result<Vec<Module>> {
        let names = [self.modules.as_slice(), &self.own_modules].concat();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        Ok(kmod::resolve(&kernel.modules(), &names)?)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))
}
