//! A second kernel, planned, loaded and jumped into: B by A, and D by C.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dormouse_image::{PhysRange, Uuid};
use dormouse_linux::cpio::Archive;
use dormouse_linux::cpu_bindings::CpuBindings;
use dormouse_linux::hibernation_events::Announced;
use dormouse_linux::kernel_args::join;
use dormouse_sys::kexec::{self, Context as Caller};
use dormouse_sys::module::Module;
use dormouse_sys::power::{self, Command};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::handoff::inherited::inherited;
use crate::handoff::order::{self, Order};
use crate::handoff::small_machine::small_machine;
use crate::launch::arch::bzimage::BzImage;
use crate::launch::direct;
use crate::launch::segments::{self, Plan, Purpose, Request};
use crate::launch::vmcoreinfo_note;
use crate::machine::{Buses, Machine};
use crate::policy::{KernelPolicy, Policy, Verbosity};

/// Why one of the second kernel's files cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// The policy's `kernel.image`.
    #[error("kernel.image {}: cannot read it", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The policy's `kernel.initramfs`.
    #[error("kernel.initramfs {}: cannot read it", path.display())]
    Initramfs {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A second kernel that is ready to be loaded.
#[derive(Debug)]
pub struct SecondKernel {
    plan: Plan,
    /// What becomes of this kernel.
    caller: Caller,
    /// Whether there is a key in a segment.
    is_secret: bool,
}

impl SecondKernel {
    /// Reads the policy's kernel and initramfs and plans where in `region` and `low` they go. The second kernel finds
    /// `order` before its initramfs. One that saves preserves this kernel, which goes on when it comes back. Whoever
    /// loads it takes `most_segments`.
    ///
    /// # Errors
    /// A file that cannot be read or is not a kernel, or what does not fit.
    pub fn plan(
        machine: &Machine,
        policy: &Policy,
        order: &Order,
        region: PhysRange,
        low: &[PhysRange],
        most_segments: usize,
    ) -> anyhow::Result<SecondKernel> {
        let KernelPolicy { image, initramfs, .. } = &policy.kernel;
        let file = read(image, |path, source| FileError::Kernel { path, source })?;
        let kernel = BzImage::parse(&file).with_context(|| format!("kernel.image {}", image.display()))?;
        let to_save = match order {
            Order::Save(order) => Some(&order.session),
            Order::Wait(order) => Some(&*order.session),
            Order::Restore(_) | Order::Look(_) => None,
        };
        let (purpose, caller) = match to_save {
            Some(session) => {
                let note = vmcoreinfo_note(&session.swapped())?;
                (Purpose::Save { memory: session.ram.clone(), note }, Caller::Preserve)
            }
            None => (Purpose::Restore, Caller::Discard),
        };
        let plan = segments::plan(&Request {
            kernel: &kernel,
            initramfs: &[
                &order_archive(order)?,
                &read(initramfs, |path, source| FileError::Initramfs { path, source })?,
            ],
            region,
            low,
            other_ram: &machine.iomem.frames_outside(&region),
            firmware: &machine.iomem.firmware,
            boot_params: &machine.boot_params,
            acpi_rsdp: machine.acpi_rsdp,
            cmdline: &command_line(&machine.cmdline, machine.product, policy, Buses::read(), gets_a_key(order)),
            purpose,
            most_segments,
        })?;
        Ok(SecondKernel { plan, caller, is_secret: order.is_secret() })
    }

    /// Its whole command line, for the log.
    #[must_use]
    pub fn command_line(&self) -> &str {
        &self.plan.cmdline
    }

    /// Loads it, and frees the memory that the plan takes.
    ///
    /// # Errors
    /// What `kexec_load(2)` reports.
    pub fn load(self) -> io::Result<Loaded> {
        let caller = self.caller;
        self.hand_over(|plan| kexec::load(plan.entry, &plan.segments, caller))?;
        Ok(Loaded { by: By::Kernel(caller), waits: false })
    }

    /// The same by Dormouse's module, which preserves this kernel whatever it is.
    ///
    /// # Errors
    /// What the module reports.
    pub fn load_by(self, module: Module) -> io::Result<Loaded> {
        self.hand_over(|plan| module.load(plan.entry, &plan.segments))?;
        Ok(Loaded { by: By::Module(module), waits: false })
    }

    /// Gives the plan to who loads it, and overwrites it where it has a key in it.
    fn hand_over(mut self, load: impl FnOnce(&Plan) -> io::Result<()>) -> io::Result<()> {
        let loaded = load(&self.plan);
        if self.is_secret {
            self.plan.segments.iter_mut().for_each(|segment| segment.data.zeroize());
        }
        loaded
    }
}

/// A second kernel that is loaded. It does not stay so: a later `kexec -e` would jump into it.
#[derive(Debug)]
pub struct Loaded {
    by: By,
    /// Whether it runs already.
    waits: bool,
}

/// Who jumps.
#[derive(Debug)]
enum By {
    /// The kernel, and what becomes of it.
    Kernel(Caller),
    /// The module, which unloads what it has loaded when it is closed.
    Module(Module),
}

impl Loaded {
    /// What a process loaded which is not this one, and which waits to be entered again: by the kernel, or by a module
    /// that this process has of that one.
    #[must_use]
    pub fn that_waits(module: Option<Module>) -> Loaded {
        Loaded { by: module.map_or(By::Kernel(Caller::Preserve), By::Module), waits: true }
    }

    /// The module, where it has loaded it.
    #[must_use]
    pub fn module(&self) -> Option<&Module> {
        match &self.by {
            By::Kernel(_) => None,
            By::Module(module) => Some(module),
        }
    }

    /// Jumps into it. Returns when it has come back. The module freezes processes through what has `announced` the
    /// hibernation; the kernel does so itself.
    ///
    /// # Errors
    /// The jump was refused: `EBUSY` where a process or a device could not be frozen. Nothing has changed then.
    pub fn jump(&self, announced: Option<&Announced>) -> io::Result<Jumped> {
        let lost_cpus = match &self.by {
            By::Kernel(_) => power::reboot(Command::Kexec).map(|()| 0),
            By::Module(module) => {
                let announced = announced.ok_or_else(|| io::Error::other("drivers are not told of it"))?;
                jump_by(module, announced)
            }
        }?;
        Ok(Jumped { by_module: self.module().is_some(), warm: self.waits, lost_cpus })
    }

    /// Jumps into a kernel from which there is no return. Returns only with the reason why it could not.
    ///
    /// # Errors
    /// The jump was refused, or returned all the same.
    pub fn jump_for_good(&self) -> io::Result<Infallible> {
        self.jump(None)?;
        Err(io::Error::other("the jump returned"))
    }
}

/// What the kernel's own jump does beside it: processes are frozen, and what is bound to CPUs stays so, although they
/// are taken down one by one as if for good. Returns how many have not come back.
fn jump_by(module: &Module, announced: &Announced) -> io::Result<u32> {
    let bindings = CpuBindings::read();
    let frozen = announced.freeze()?;
    let jumped = module.jump();
    bindings.restore();
    drop(frozen);
    let lost_cpus = jumped?;
    if lost_cpus > 0 {
        log::error!("{lost_cpus} of this machine's CPUs have not come back; see `dmesg`");
    }
    Ok(lost_cpus)
}

/// How a jump that has returned was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jumped {
    /// Whether by Dormouse's module, in the kernel's place.
    pub by_module: bool,
    /// Whether the other kernel was running already.
    pub warm: bool,
    /// How many CPUs have not come back, where this can be known: the kernel's own jump only logs it.
    pub lost_cpus: u32,
}

/// Unloads what a process left loaded that was killed before it could.
///
/// # Errors
/// What `kexec_load(2)` reports.
pub fn unload() -> io::Result<()> {
    kexec::unload()
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let By::Kernel(caller) = self.by else { return };
        if let Err(error) = kexec::unload() {
            let kernel = if caller == Caller::Preserve { "B" } else { "D" };
            log::warn!("cannot free the memory of kernel {kernel}: {error}");
        }
    }
}

/// The command line of a D that a boot loader is to start, with this kernel and an initramfs of `initramfs` bytes. One
/// that `gets_a_key` leaves nothing of it behind.
///
/// # Errors
/// A file that is not a kernel, or what keeps a boot loader from it: [`super::NotDirect`].
pub fn loader_command_line(
    machine: &Machine,
    policy: &Policy,
    region: PhysRange,
    kernel: &[u8],
    initramfs: u64,
    gets_a_key: bool,
) -> anyhow::Result<String> {
    let kernel = BzImage::parse(kernel).with_context(|| format!("kernel.image {}", policy.kernel.image.display()))?;
    let common = command_line(&machine.cmdline, machine.product, policy, Buses::read(), gets_a_key);
    Ok(direct::command_line(&common, &kernel, initramfs, region, &machine.iomem)?)
}

/// Whether there is a key in its order, or may be in one that follows.
fn gets_a_key(order: &Order) -> bool {
    order.is_secret() || matches!(order, Order::Wait(_))
}

/// The order as a file in an archive of its own. The kernel unpacks archives one after another, and the first may be
/// uncompressed, as those with microcode are (init/initramfs.c).
///
/// # Errors
/// The order cannot be encoded.
pub fn order_archive(order: &Order) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let order = order.encode()?;
    Ok(Zeroizing::new(Archive::new().file(order::FILE, 0o400, &order[..]).finish()?))
}

/// The command line of B or D, but for what the loader adds: what they must have of this kernel's own, what a small
/// machine needs, and the policy's.
fn command_line(own: &str, machine: Uuid, policy: &Policy, buses: Buses, is_secret: bool) -> String {
    let loglevel = match policy.console.verbosity {
        Verbosity::Quiet => "loglevel=4",
        Verbosity::Normal => "loglevel=6",
        Verbosity::Verbose => "loglevel=8",
    };
    let client;
    let mut arguments = inherited(own);
    arguments.extend(small_machine(buses, &policy.kernel.arguments));
    if is_secret {
        // The session gets the pages in which this kernel has run: of what has been freed by then, buffers of pipes and
        // what a process leaves, nothing may be left in them (mm/page_alloc.c).
        arguments.push("init_on_free=1");
    }
    if policy.image.device.is_remote() {
        // As another client than A, and than every other machine's second kernel, whose name is as empty
        // (Documentation/filesystems/nfs/client-identifier.rst).
        client = format!("nfs.nfs4_unique_id=dormouse-{machine}");
        arguments.push(&client);
    }
    // A second kernel that dies must not keep the machine: the next boot is an ordinary one.
    // A watchdog of A's must go on running when this kernel is left for A. PID 1 stops the others itself.
    arguments.extend([loglevel, "panic=5", "watchdog.stop_on_reboot=0", &policy.kernel.arguments]);
    join(arguments)
}

fn read(path: &Path, failed: impl FnOnce(PathBuf, io::Error) -> FileError) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| failed(path.to_owned(), source))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::handoff::order::tests::restore_order;

    #[test]
    fn order_comes_first_for_root_alone() {
        let order = Order::Restore(restore_order());
        let bytes = order_archive(&order).unwrap();
        // The kernel looks for what follows, compressed or not, at a multiple of 4.
        assert!(bytes.len().is_multiple_of(512));
        let name = bytes.windows(order::FILE.len()).position(|name| name == order::FILE.as_bytes());
        assert_eq!(name, Some(110));
        assert_eq!(&bytes[14..22], b"00008100" /* S_IFREG and 0400 */);
        let content = order.encode().unwrap();
        assert!(bytes.windows(content.len()).any(|window| window == &content[..]));
    }

    #[test]
    fn command_line_has_what_must_be_inherited_and_the_policys() {
        let text =
            "[image]\ndevice = \"/dev/vda\"\n[kernel]\narguments = \"nosmp\"\n[console]\nverbosity = \"verbose\"\n";
        let policy = Policy::merge("a policy", &[("a policy", text)]).unwrap();
        let buses = || Buses { has_iommu: false, uses_msi: true };
        let machine = Uuid([1; 16]);
        let line = command_line("root=/dev/sda1 console=ttyS0 quiet", machine, &policy, buses(), false);
        assert!(line.starts_with("console=ttyS0 swiotlb=noforce numa=off "), "{line}");
        assert!(line.ends_with(" loglevel=8 panic=5 watchdog.stop_on_reboot=0 nosmp"), "{line}");
        assert!(!line.contains("init_on_free") && !line.contains("nfs"), "{line}");
        assert!(command_line("quiet", machine, &policy, buses(), true).contains(" init_on_free=1 "), "{line}");
    }
}
