//! What the user wants: `/etc/dormouse.toml` and its drop-ins, checked once and not changed afterwards.
//!
//! ```text
//!   dropin: which files, in which order
//!   each text ──source──> schema::File (as written)
//!   all of them ──resolve──> Policy (later files win, defaults filled in, every value possible)
//! ```
//!
//! A and C read it from `/etc`; B and D read the merged form that [`Policy::to_toml`] put into their
//! initramfs.

mod dropin;
mod error;
mod resolve;
mod schema;
mod source;
mod values;

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_image::ImageDevice;
use dormouse_linux::units::format_bytes;

pub use dropin::{files, folder};
pub use error::{PolicyError, Problem};
pub use values::{Compression, Then, ThenError, Unfit, Verbosity, Verify};

/// Where the policy is unless the command is told otherwise; in the initramfs of B and D too.
pub const DEFAULT_PATH: &str = "/etc/dormouse.toml";

const MIB: u64 = 1 << 20;
/// Whole 2 MiB pages, so that neither the kernel's placement nor a large mapping splits one.
const REGION_ALIGNMENT: u64 = 2 * MIB;
const DEFAULT_REGION_SIZE: u64 = 128 * MIB;
const MIN_REGION_SIZE: u64 = 64 * MIB;
const MAX_REGION_SIZE: u64 = 4096 * MIB;
/// Where the kernel's preferred address is and what lies below belongs to firmware and boot loaders.
const LOWEST_REGION: u64 = 16 * MIB;
/// x86-64 page table entries hold physical addresses of at most 52 bits (Intel SDM volume 3, 4.1.4).
const MAX_PHYSICAL: u64 = 1 << 52;
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
const MAX_WAIT: u64 = 600;
const DEFAULT_STALL: Duration = Duration::from_secs(120);
/// A healthy device has pauses of seconds.
const MIN_STALL: u64 = 10;
const MAX_STALL: u64 = 3600;
const DEFAULT_KERNEL: &str = "/var/lib/dormouse/vmlinuz";
const DEFAULT_INITRAMFS: &str = "/var/lib/dormouse/initramfs.img";
/// x86 kernels take 2048 bytes of command line (`COMMAND_LINE_SIZE`, arch/x86/include/asm/setup.h in 6.12);
/// half of it is left for what A's command line and Dormouse itself add.
const MAX_ARGUMENTS: usize = 1024;
const DEFAULT_LEVEL: i32 = 1;
const MAX_THREADS: usize = 256;
const MIN_MEMORY: u64 = 4 * MIB;
const MAX_MEMORY: u64 = 1024 * MIB;

/// The resolved policy. Every value has been checked; [`Policy::merge`] is the only way to one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Where the image is.
    pub image: ImagePolicy,
    /// The memory that B and D live in.
    pub region: RegionPolicy,
    /// What B and D are.
    pub kernel: KernelPolicy,
    /// How an image is made, and what follows.
    pub save: SavePolicy,
    /// Whether a boot resumes.
    pub resume: ResumePolicy,
    /// What watches B and D.
    pub guard: GuardPolicy,
    /// What is said while it happens.
    pub console: ConsolePolicy,
}

/// `[image]`: where the image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePolicy {
    /// The device that holds the image.
    pub device: ImageDevice,
    /// How long B, C and D wait for it to appear.
    pub wait: Duration,
}

/// `[region]`: the memory that B and D live in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionPolicy {
    /// Bytes, a multiple of 2 MiB.
    pub size: u64,
    /// Physical address, a multiple of 2 MiB; `None` lets the loader choose.
    pub address: Option<u64>,
}

/// `[kernel]`: what B and D are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPolicy {
    /// The bzImage.
    pub image: PathBuf,
    /// What `dormouse build-initramfs` made.
    pub initramfs: PathBuf,
    /// Further kernel arguments. Quotes are balanced, and none hides what follows it.
    pub arguments: String,
}

impl KernelPolicy {
    /// Whether a kernel at `image` is Dormouse's own copy, which it may replace by another.
    #[must_use]
    pub fn is_own(image: &Path) -> bool {
        image == Path::new(DEFAULT_KERNEL)
    }
}

/// `[save]`: how an image is made, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavePolicy {
    /// How pages are stored.
    pub compression: Compression,
    /// Threads that compress or decompress; 0 is one per CPU.
    pub threads: usize,
    /// Bytes for what is in flight between these threads and the device.
    pub memory: u64,
    /// Whether A gives up clean caches before the jump.
    pub drop_caches: bool,
    /// Whether pages that A's allocator holds free are left out.
    pub skip_free: bool,
    /// How the image is verified before what follows.
    pub verify: Verify,
    /// Whether Esc on a console stops the save.
    pub escape: bool,
    /// What follows a completed save.
    pub then: Then,
}

/// `[resume]`: whether a boot resumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumePolicy {
    /// Whether it does so at all; an image is discarded otherwise.
    pub enabled: bool,
    /// What becomes of an image that does not fit the machine, or whose filesystems somebody else has written.
    pub mismatch: Unfit,
}

/// `[guard]`: what watches B and D.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardPolicy {
    /// How long nothing may get done before it is given up; `None` is for ever.
    pub stall: Option<Duration>,
    /// Whether a hardware watchdog restarts the machine when the kernel hangs.
    pub watchdog: bool,
}

/// `[console]`: what is said while it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsolePolicy {
    /// How much of it.
    pub verbosity: Verbosity,
}

impl Policy {
    /// Reads and checks the policy in a file and its drop-ins, which are [`files`]. A value in a later file counts in place
    /// of one in an earlier file. The main file may be missing where there are drop-ins.
    ///
    /// # Errors
    /// There is no file, one is unreadable, is not TOML, or has an unknown key or a value of the wrong type; or what
    /// results of all of them has an impossible value. The error names file, line and key.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let files = dropin::list(path)?;
        if files.is_empty() {
            return Err(PolicyError::Missing { file: path.to_owned() });
        }
        let read = |file: &PathBuf| match std::fs::read_to_string(file) {
            Ok(text) => Ok((file.display().to_string(), text)),
            Err(source) => Err(PolicyError::Read { file: file.clone(), source }),
        };
        let texts = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        Self::merge(&path.display().to_string(), &texts)
    }

    /// Checks a policy's text; `file_name` is for the errors.
    ///
    /// # Errors
    /// As [`Policy::load`], apart from those of reading.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, PolicyError> {
        Self::merge(file_name, &[(file_name, text)])
    }

    /// Checks a policy that consists of several files, each with its name and its text, the one that counts least first.
    /// `main` names the file in which something is missed that none of them has.
    ///
    /// # Errors
    /// As [`Policy::load`], apart from those of reading.
    pub fn merge(main: &str, texts: &[(&str, &str)]) -> Result<Self, PolicyError> {
        let sources: Vec<_> = texts.iter().map(|&(name, text)| source::Source { name, text }).collect();
        resolve::resolve(resolve::Layers::read(main, &sources)?)
    }

    /// The merged policy, every key with its value: what the initramfs of B and D carries.
    /// [`Policy::parse`] makes the same policy of it.
    pub fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let address = self
            .region
            .address
            .map_or_else(String::new, |address| format!("address = {}\n", quoted(&format_bytes(address))));
        let compression = match self.save.compression {
            Compression::Auto => "compression = \"auto\"\n".to_owned(),
            Compression::Store => "compression = \"store\"\n".to_owned(),
            Compression::Zstd { level } => format!("compression = \"zstd\"\nlevel = {level}\n"),
        };
        // Paths were read from TOML, which is UTF-8, so that displaying one loses nothing.
        let path = |path: &Path| quoted(&path.display().to_string());
        format!(
            "[image]\ndevice = {device}\nwait = {wait}\n\n\
             [region]\nsize = {size}\n{address}\n\
             [kernel]\nimage = {image}\ninitramfs = {initramfs}\narguments = {arguments}\n\n\
             [save]\n{compression}threads = {threads}\nmemory = {memory}\ndrop_caches = {drop_caches}\n\
             skip_free = {skip_free}\nverify = \"{verify}\"\nescape = {escape}\nthen = {then}\n\n\
             [resume]\nenabled = {enabled}\nmismatch = \"{mismatch}\"\n\n\
             [guard]\nstall = {stall}\nwatchdog = {watchdog}\n\n\
             [console]\nverbosity = {verbosity}\n",
            device = quoted(&self.image.device.to_string()),
            wait = self.image.wait.as_secs(),
            size = quoted(&format_bytes(self.region.size)),
            image = path(&self.kernel.image),
            initramfs = path(&self.kernel.initramfs),
            arguments = quoted(&self.kernel.arguments),
            threads = self.save.threads,
            memory = quoted(&format_bytes(self.save.memory)),
            drop_caches = self.save.drop_caches,
            skip_free = self.save.skip_free,
            verify = self.save.verify.as_str(),
            escape = self.save.escape,
            enabled = self.resume.enabled,
            mismatch = self.resume.mismatch.as_str(),
            stall = self.guard.stall.map_or(0, |stall| stall.as_secs()),
            watchdog = self.guard.watchdog,
            then = quoted(self.save.then.as_str()),
            verbosity = quoted(self.console.verbosity.as_str()),
        )
    }
}

#[cfg(test)]
mod tests;
