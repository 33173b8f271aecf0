//! What the user wants: `/etc/dormouse.toml` and its drop-ins, checked once and not changed afterwards.
//!
//! ```text
//!   dropin: which files, in which order
//!   each text ──source──> its keys, all known, with values of their types
//!   all of them ──layers, keys──> Policy (later files override earlier ones, defaults filled in, every value valid)
//! ```
//!
//! [`keys`] is the table of keys: name, type, kind with its bounds or words, default. A and C read the policy from
//! `/etc`; B and D read the merged form that [`Policy::to_toml`] put into their initramfs.

mod dropin;
mod error;
mod keys;
mod kinds;
mod layers;
mod source;
mod table;
mod words;

use std::path::Path;

pub use dropin::{drop_in_dir, files};
pub use error::{PolicyError, Problem};
pub use keys::{
    ConsolePolicy, GuardPolicy, ImagePolicy, KernelPolicy, PipelinePolicy, Policy, RegionPolicy, ResumePolicy,
    SavePolicy,
};
pub use words::{
    Compression, Jump, Method, Power, SealKey, Shrink, Then, Unfit, Unsure, Verbosity, Verify, Word, WordError,
};

/// Where the policy is unless a command names another file; in the initramfs of B and D too.
pub const DEFAULT_PATH: &str = "/etc/dormouse.toml";

impl Policy {
    /// Reads and checks the policy in a file and its drop-ins, which are [`files`]. A value in a later file overrides
    /// one in an earlier file. The main file may be missing where there are drop-ins.
    ///
    /// # Errors
    /// No file exists, one is unreadable, is not TOML, or has an unknown key or a value of the wrong type; or a value
    /// that counts is not valid. The error names file, line and key.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let files = dropin::list(path)?;
        if files.is_empty() {
            return Err(PolicyError::Missing { file: path.to_owned() });
        }
        let texts = files.iter().map(|file| Ok((file.display().to_string(), source::text(file)?)));
        let texts = texts.collect::<Result<Vec<_>, PolicyError>>()?;
        let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let mut policy = Self::merge(&path.display().to_string(), &texts)?;
        policy.image.device = source::on_this_machine(policy.image.device);
        Ok(policy)
    }

    /// Checks a policy's text; `file_name` is for the errors.
    ///
    /// # Errors
    /// As [`Policy::load`], apart from those of reading.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, PolicyError> {
        Self::merge(file_name, &[(file_name, text)])
    }

    /// Checks a policy that consists of several files, each with its name and its text, the one that counts least
    /// first. `main` names the file in which a key is missing that none of them has.
    ///
    /// # Errors
    /// As [`Policy::load`], apart from those of reading.
    pub fn merge(main: &str, texts: &[(&str, &str)]) -> Result<Self, PolicyError> {
        let sources: Vec<_> = texts.iter().map(|&(name, text)| source::Source { name, text }).collect();
        let layers = layers::Layers::read(main, &sources)?;
        let policy = keys::resolve(&layers)?;
        keys::check(&policy, &layers)?;
        Ok(policy)
    }

    /// The merged policy, every key with its value: what the initramfs of B and D carries.
    /// [`Policy::parse`] makes the same policy of it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let section = |(name, keys): &(&str, Vec<(&str, toml::Value)>)| {
            let lines = keys.iter().map(|(key, value)| format!("{key} = {value}\n"));
            format!("[{name}]\n{}", lines.collect::<String>())
        };
        keys::write(self).iter().map(section).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests;
