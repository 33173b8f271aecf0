//! What keeps this machine from being hibernated, found out in one place: `dormouse hibernate` refuses with it, and
//! `dormouse doctor` shows it before anybody needs it.
//!
//! Pure: what is known of the machine comes in, and an obstacle comes out where there is one.

use std::io;

use dormouse_linux::units::mib;
use nix::errno::Errno;
use thiserror::Error;

use crate::cycle::last::Last;
use crate::machine;
use crate::policy::Then;

/// Something that keeps this machine from being hibernated. Its text says what was found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// The kernel has no way to jump and to be returned to.
    #[error("this kernel cannot be returned to: it lacks CONFIG_KEXEC_JUMP")]
    NoJump,
    /// The kernel is older than the fix without which it hangs on the way back.
    #[error("kernel {release} hangs when it is returned to")]
    NoReturn {
        /// As `uname -r` gives it.
        release: String,
    },
    /// `kexec_load(2)` was refused.
    #[error("kexec_load was refused")]
    LoadRefused(Option<i32>),
    /// What is in memory can be read with a key that the next power-on has not.
    #[error("memory encryption (mem_encrypt=on) is not supported: the next power-on has another key")]
    MemoryEncryption,
    /// The kernel says that it must not be hibernated.
    #[error("the kernel does not allow hibernation now (/sys/power/disk says so)")]
    Forbidden,
    /// Nothing shows that the next boot will look for the image.
    #[error(
        "this boot has not looked for an image, so that the next one may not either, and the session would be lost"
    )]
    NoHook,
    /// Setting aside what the region holds would drive programs out of memory.
    #[error(
        "{} of memory are available, and {} are needed to set aside what the region holds", mib(*available), mib(*needed)
    )]
    LittleMemory {
        /// Bytes.
        available: u64,
        /// Bytes.
        needed: u64,
    },
}

impl Obstacle {
    /// What can be done about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Obstacle::NoJump => "boot a kernel that has it (Fedora's and RHEL's have; Debian's has not)",
            Obstacle::NoReturn { .. } => {
                "it needs 07fa619f2a40 (\"x86/kexec: Restore GDT on return from ::preserve_context kexec\"), which is in \
                 Linux 6.13 and 6.12.5. If your distribution has added it, use --trust-kernel"
            }
            Obstacle::LoadRefused(errno) => match errno.map(Errno::from_raw) {
                Some(Errno::EPERM) => {
                    "run as root, with kernel.kexec_load_disabled=0 and Secure Boot's lockdown off (it forbids kexec_load)"
                }
                Some(Errno::ENOSYS) => "this kernel lacks CONFIG_KEXEC",
                Some(Errno::ENOMEM) => {
                    "there is not enough free memory to set aside what the region holds; close something"
                }
                Some(Errno::EINVAL) => "the region may be more than half of memory; set a smaller region.size",
                Some(Errno::EBUSY) => "another kexec is under way",
                _ => "see `dmesg`",
            },
            Obstacle::MemoryEncryption => "boot without mem_encrypt=on",
            Obstacle::Forbidden => {
                "a program uses memfd_secret(2), CXL memory is in use, or lockdown or `nohibernate` forbid it: undo that"
            }
            Obstacle::NoHook => {
                "build the boot's initramfs with Dormouse's hook, as `dormouse setup` does, and reboot once; see `dormouse doctor`. If \
                 you know that it looks for the image, use --trust-boot"
            }
            Obstacle::LittleMemory { .. } => "close something, or set a smaller region.size",
        }
    }

    /// What a refused `kexec_load(2)` means.
    #[must_use]
    pub fn of_load(error: &io::Error) -> Obstacle {
        Obstacle::LoadRefused(error.raw_os_error())
    }

    /// This obstacle as an error, with what can be done about it.
    #[must_use]
    pub fn into_error(self) -> anyhow::Error {
        let remedy = self.remedy();
        anyhow::anyhow!("{self}: {remedy}")
    }
}

/// Refuses with what was found to be in the way, if anything was.
///
/// # Errors
/// The obstacle, with what can be done about it.
pub fn refuse(found: Option<Obstacle>) -> anyhow::Result<()> {
    found.map_or(Ok(()), |obstacle| Err(obstacle.into_error()))
}

/// What is in the way with the answer of [`dormouse_sys::kexec::can_preserve_context`].
#[must_use]
pub fn in_jump(answer: &io::Result<bool>) -> Option<Obstacle> {
    match answer {
        Ok(true) => None,
        Ok(false) => Some(Obstacle::NoJump),
        Err(error) => Some(Obstacle::of_load(error)),
    }
}

/// What is in the way in a kernel of this release, as `uname -r` has it.
#[must_use]
pub fn in_release(release: &str) -> Option<Obstacle> {
    (!machine::can_be_returned_to(release)).then(|| Obstacle::NoReturn { release: release.to_owned() })
}

/// What is in the way on the running kernel's command line.
#[must_use]
pub fn in_command_line(cmdline: &str) -> Option<Obstacle> {
    let is_encrypted = cmdline.split_whitespace().any(|argument| argument == "mem_encrypt=on");
    is_encrypted.then_some(Obstacle::MemoryEncryption)
}

/// What is in the way in the text of `/sys/power/disk`.
///
/// kernel/power/hibernate.c, `hibernation_available`: with secret memory or CXL memory in use, what would be saved is not
/// all, or not to be saved; and lockdown or `nohibernate` forbid it.
#[must_use]
pub fn in_power_disk(modes: &str) -> Option<Obstacle> {
    modes.contains("[disabled]").then_some(Obstacle::Forbidden)
}

/// What is in the way with what `dormouse resume` said in the initramfs of this boot. Who goes on in this session needs no next boot.
#[must_use]
pub fn in_boot(resume: Option<&Last>, then: Then) -> Option<Obstacle> {
    (resume.is_none() && then != Then::Return).then_some(Obstacle::NoHook)
}

/// What is needed beside the pages that the region is swapped with: the kernel and the initramfs on their way into it.
const LOADING: u64 = 32 << 20;

/// What is in the way with this much memory available and a region of this size, both in bytes.
#[must_use]
pub fn in_memory(region: u64, available: u64) -> Option<Obstacle> {
    let needed = region.saturating_add(LOADING);
    (available < needed).then_some(Obstacle::LittleMemory { available, needed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cycle::last::Event;

    #[test]
    fn each_obstacle_says_what_it_is_and_what_to_do() {
        let errno = |errno: Errno| io::Error::from_raw_os_error(errno as i32);
        let cases = [
            (in_jump(&Ok(false)), "CONFIG_KEXEC_JUMP: boot a kernel"),
            (in_jump(&Err(errno(Errno::EPERM))), "kexec_load was refused: run as root"),
            (in_jump(&Err(errno(Errno::ENOSYS))), "lacks CONFIG_KEXEC"),
            (in_release("6.1.0-30-amd64"), "kernel 6.1.0-30-amd64 hangs"),
            (in_command_line("quiet mem_encrypt=on ro"), "memory encryption"),
            (in_power_disk("[disabled]\n"), "/sys/power/disk says so"),
            (in_boot(None, Then::PowerOff), "and reboot once"),
            (in_memory(128 << 20, 159 << 20), "159 MiB of memory are available, and 160 MiB are needed"),
        ];
        for (obstacle, expected) in cases {
            let text = obstacle.map(|obstacle| obstacle.into_error().to_string()).unwrap_or_default();
            assert!(text.contains(expected), "{expected:?} is not in {text:?}");
        }
    }

    #[test]
    fn a_machine_without_any_is_let_through() {
        assert_eq!(in_jump(&Ok(true)), None);
        assert_eq!(in_release("6.12.117"), None);
        assert_eq!(in_command_line("quiet mem_encrypt=off"), None);
        assert_eq!(in_power_disk("[platform] shutdown reboot suspend test_resume \n"), None);
        assert_eq!(in_memory(128 << 20, 160 << 20), None);
        assert_eq!(in_boot(None, Then::Return), None);
        let looked = Last { event: Event::Resume, at_unix: 0, text: String::new(), report: None };
        assert_eq!(in_boot(Some(&looked), Then::PowerOff), None);
    }
}
