//! A policy file as it is written: every key and its type, and nothing else. Defaults, and which values
//! are possible, are [`super::resolve`]'s.

use serde::Deserialize;
use toml::Spanned;

/// A value that knows its place in the file, or nothing where the key is not written.
pub(super) type Written<T> = Option<Spanned<T>>;

/// Every key, as `section.key`. An unknown key is compared with these.
pub(super) const KEYS: [&str; 21] = [
    "image.device",
    "image.wait",
    "region.size",
    "region.address",
    "kernel.image",
    "kernel.initramfs",
    "kernel.arguments",
    "save.compression",
    "save.level",
    "save.threads",
    "save.memory",
    "save.drop_caches",
    "save.skip_free",
    "save.verify",
    "save.escape",
    "save.then",
    "resume.enabled",
    "resume.mismatch",
    "guard.stall",
    "guard.watchdog",
    "console.verbosity",
];

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) image: Image,
    pub(super) region: Region,
    pub(super) kernel: Kernel,
    pub(super) save: Save,
    pub(super) resume: Resume,
    pub(super) guard: Guard,
    pub(super) console: Console,
}

/// `[image]`: where the image is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Image {
    pub(super) device: Written<String>,
    pub(super) wait: Written<i64>,
}

/// `[region]`: the memory that B and D live in.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Region {
    pub(super) size: Written<String>,
    pub(super) address: Written<String>,
}

/// `[kernel]`: what B and D are.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Kernel {
    pub(super) image: Written<String>,
    pub(super) initramfs: Written<String>,
    pub(super) arguments: Written<String>,
}

/// `[save]`: how an image is made, and what follows.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Save {
    pub(super) compression: Written<String>,
    pub(super) level: Written<i64>,
    pub(super) threads: Written<i64>,
    pub(super) memory: Written<String>,
    pub(super) drop_caches: Written<bool>,
    pub(super) skip_free: Written<bool>,
    pub(super) verify: Written<String>,
    pub(super) escape: Written<bool>,
    pub(super) then: Written<String>,
}

/// `[resume]`: whether a boot resumes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Resume {
    pub(super) enabled: Written<bool>,
    pub(super) mismatch: Written<String>,
}

/// `[guard]`: what watches B and D.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Guard {
    pub(super) stall: Written<i64>,
    pub(super) watchdog: Written<bool>,
}

/// `[console]`: what is said while it happens.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Console {
    pub(super) verbosity: Written<String>,
}
