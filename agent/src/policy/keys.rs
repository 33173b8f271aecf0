//! The keys of the policy: one row for each.
//!
//! A row is all that a key needs here. It also needs its use, its lines in configs/dormouse.toml and in
//! configs/man/dormouse.toml.5: tests compare both with this table.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_image::ImageDevice;
use dormouse_linux::disk::DiskIdentity;
use dormouse_linux::link::Link;
use dormouse_linux::units::format_bytes;

use crate::policy::error::{PolicyError, Problem};
use crate::policy::kinds::{
    AbsolutePath, Address, Arguments, Device, Disk, Flag, Kind, LinkOrNone, NoneCacheOrSize, Number, Seconds,
    SecondsOrNever, Size, SizeOrAuto, Words,
};
use crate::policy::layers::Layers;
use crate::policy::table::{Key, default, key, policy};
#[cfg(test)]
use crate::policy::table::{any_of, terms_of};
use crate::policy::words::{Compression, Jump, Method, Power, SealKey, Shrink, Then, Unfit, Unsure, Verbosity, Verify};

const MIB: u64 = 1 << 20;
/// Whole 2 MiB pages, so that neither the kernel's placement nor a large mapping splits one.
const REGION_ALIGNMENT: u64 = 2 * MIB;
/// Where the kernel's preferred address is. Memory below belongs to firmware and boot loaders.
const LOWEST_REGION: u64 = 16 * MIB;
/// x86-64 page table entries hold physical addresses of at most 52 bits (Intel SDM volume 3, 4.1.4).
const MAX_PHYSICAL: u64 = 1 << 52;
/// x86 kernels take 2048 bytes of command line (`COMMAND_LINE_SIZE`, arch/x86/include/asm/setup.h in 6.12); half of it
/// is left for what A's command line and Dormouse itself add.
const MAX_ARGUMENTS: usize = 1024;
/// What `region.size = "auto"` is on most machines.
const USUAL_REGION: u64 = 128 * MIB;
const MIN_MEMORY: u64 = 4 * MIB;
const DEFAULT_KERNEL: &str = "/var/lib/dormouse/vmlinuz";
const DEFAULT_INITRAMFS: &str = "/var/lib/dormouse/initramfs.img";
const ZSTD_DEFAULT: &str = "0 leaves the level to zstd: choose one from -7 to 19; 1 is the default here";

policy! {
    /// `[image]`: where the image is.
    image: ImagePolicy {
        /// The device that holds the image.
        device: ImageDevice = Device, required;
        /// The disk that it must lie on, as an initramfs that carries this policy records it; `None` for any.
        disk: Option<DiskIdentity> = Disk, default None;
        /// The link by which C reaches the server that has the image, where its initramfs sets up no network; as an
        /// initramfs that carries this policy records it.
        link: Option<Link> = LinkOrNone, default None;
        /// How long B, C and D wait for it to appear.
        wait: Duration = Seconds { max: 600 }, default Duration::from_secs(10);
        /// Whether its data are taken off the disk when the session in it goes on or was given up.
        wipe: bool = Flag, default true;
        /// What it is sealed with. Unless that is nothing, no image is written or resumed that is not sealed.
        key: SealKey = Words::new(), default SealKey::default();
        /// Whether a server that has the image, and whoever is on the way to it, may read it and change it: then it
        /// need not be sealed.
        trust_server: bool = Flag, default false;
    }

    /// `[region]`: the memory that B and D live in.
    region: RegionPolicy {
        /// Bytes, a multiple of 2 MiB; `None` lets Dormouse compute what is enough.
        size: Option<u64> =
            SizeOrAuto(Size { multiple: REGION_ALIGNMENT, min: 64 * MIB, max: 4096 * MIB }), default None;
        /// Physical address, a multiple of 2 MiB; `None` lets the loader choose.
        address: Option<u64> = Address { multiple: REGION_ALIGNMENT, min: LOWEST_REGION }, default None;
    }

    /// `[kernel]`: what B and D are.
    kernel: KernelPolicy {
        /// The bzImage.
        image: PathBuf = AbsolutePath, default DEFAULT_KERNEL.into();
        /// What `dormouse build-initramfs` wrote.
        initramfs: PathBuf = AbsolutePath, default DEFAULT_INITRAMFS.into();
        /// Further kernel arguments. Quotes are balanced, and none hides what follows it.
        arguments: String = Arguments { max: MAX_ARGUMENTS }, default String::new();
    }

    /// `[save]`: how an image is made, and what follows.
    save: SavePolicy {
        /// How pages are stored; [`SavePolicy::compression`] has it together with the level.
        compression: Method = Words::new(), default Method::default();
        /// zstd's level.
        level: i32 = Number::new("zstd level", -7, 19).except(0, ZSTD_DEFAULT), default 1;
        /// What A gives up of its memory before the save kernel is loaded.
        shrink: Shrink =
            NoneCacheOrSize(Size { multiple: 1, min: 64 * MIB, max: 16 << 40 }), default Shrink::default();
        /// Whether pages that A's allocator holds free are left out.
        skip_free: bool = Flag, default true;
        /// How the image is verified before what follows.
        verify: Verify = Words::new(), default Verify::default();
        /// Whether Esc on a console stops the save.
        escape: bool = Flag, default true;
        /// What follows a completed save.
        then: Then = Words::new(), default Then::default();
        /// How the power is switched off, where that follows.
        power: Power = Words::new(), default Power::default();
        /// Who jumps into the save kernel.
        jump: Jump = Words::new(), default Jump::default();
        /// Whether the save kernel is started ahead of time, and waits.
        warm: bool = Flag, default false;
    }

    /// `[pipeline]`: what a save and a restore may use.
    pipeline: PipelinePolicy {
        /// Threads that compress or decompress; 0 is one per CPU.
        threads: usize = Number::new("number of threads", 0, 256).note("; 0 is one per CPU"), default 0;
        /// Bytes for what is in flight between these threads and the device.
        memory: u64 = Size { multiple: 1, min: MIN_MEMORY, max: 1024 * MIB },
            default memory_in(region.size.unwrap_or(USUAL_REGION));
    }

    /// `[resume]`: whether a boot resumes.
    resume: ResumePolicy {
        /// Whether it does so at all; otherwise an image is discarded.
        enabled: bool = Flag, default true;
        /// What happens to an image that does not fit the machine, or whose filesystems another system has written.
        mismatch: Unfit = Words::new(), default Unfit::default();
        /// What happens where it cannot be found out whether another system has written to a filesystem.
        unsure: Unsure = Words::new(), default Unsure::default();
        /// Whether the boot loader is to start D itself, where it can.
        direct: bool = Flag, default false;
        /// Whether a boot waits for an image device that is not there, and does not go on without it.
        require: bool = Flag, default false;
    }

    /// `[guard]`: what watches B and D.
    guard: GuardPolicy {
        /// How long they may make no progress before they are aborted; `None` is no limit. A healthy device pauses
        /// for seconds.
        stall: Option<Duration> =
            SecondsOrNever { min: 10, max: 3600 }, default Some(Duration::from_secs(120));
        /// Whether a hardware watchdog restarts the machine when the kernel hangs.
        watchdog: bool = Flag, default true;
    }

    /// `[console]`: what B and D print.
    console: ConsolePolicy {
        /// How much of it.
        verbosity: Verbosity = Words::new(), default Verbosity::default();
    }
}

/// Three sixteenths of the region: 24 MiB of the usual 128, beside which a kernel, its initramfs and the contexts of
/// eight threads fit well. More than 64 MiB make no device faster.
fn memory_in(region_size: u64) -> u64 {
    (region_size / 16 * 3).clamp(MIN_MEMORY, 64 * MIB)
}

/// Checks what no single key decides.
pub(super) fn check(policy: &Policy, layers: &Layers<'_>) -> Result<(), PolicyError> {
    let RegionPolicy { size, address: Some(address) } = policy.region else { return Ok(()) };
    let size = size.unwrap_or(USUAL_REGION);
    if address.checked_add(size).is_none_or(|end| end > MAX_PHYSICAL) {
        let problem = Problem::RegionEnd { mib: size / MIB, address: format_bytes(address) };
        return Err(layers.invalid("region.address", problem));
    }
    Ok(())
}

impl KernelPolicy {
    /// Whether a kernel at `image` is Dormouse's own copy, which it may replace by another.
    #[must_use]
    pub fn is_own(image: &Path) -> bool {
        image == Path::new(DEFAULT_KERNEL)
    }
}

impl SavePolicy {
    /// How pages are stored, with the level where there is one.
    #[must_use]
    pub fn compression(&self) -> Compression {
        match self.compression {
            Method::Auto => Compression::Auto,
            Method::Store => Compression::Store,
            Method::Zstd => Compression::Zstd { level: self.level },
        }
    }
}
