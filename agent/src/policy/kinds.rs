//! The kinds of values that a key can have: how one is written, which are valid, and which documents must mention.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_image::ImageDevice;
use dormouse_linux::disk::DiskIdentity;
use dormouse_linux::kernel_args;
use dormouse_linux::link::Link;
use dormouse_linux::units::{format_bytes, parse_bytes};
#[cfg(test)]
use proptest::prelude::*;
use serde::de::DeserializeOwned;

use crate::policy::error::Problem;
use crate::policy::words::{Shrink, Word};

/// A kind of value.
pub(super) trait Kind {
    /// The type that it has in TOML.
    type Written: DeserializeOwned + Into<toml::Value>;
    /// The type that it has in the policy.
    type Value;

    /// The value that is meant.
    fn check(&self, written: Self::Written) -> Result<Self::Value, Problem>;

    /// How the value is written; `None` if the key must be left out.
    fn write(&self, value: &Self::Value) -> Option<Self::Written>;

    /// What a document must mention: bounds and words.
    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        Vec::new()
    }

    /// Any valid value.
    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<Self::Value>;
}

/// True or false.
pub(super) struct Flag;

impl Kind for Flag {
    type Written = bool;
    type Value = bool;

    fn check(&self, written: bool) -> Result<bool, Problem> {
        Ok(written)
    }

    fn write(&self, value: &bool) -> Option<bool> {
        Some(*value)
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<bool> {
        any::<bool>().boxed()
    }
}

/// A whole number within bounds.
pub(super) struct Number<T> {
    what: &'static str,
    min: i64,
    max: i64,
    note: &'static str,
    except: Option<(i64, &'static str)>,
    value: PhantomData<T>,
}

impl<T> Number<T> {
    /// `what` names it in errors, such as "number of threads".
    pub(super) const fn new(what: &'static str, min: i64, max: i64) -> Number<T> {
        Number { what, min, max, note: "", except: None, value: PhantomData }
    }

    /// What an error about the bounds adds.
    pub(super) const fn note(mut self, note: &'static str) -> Number<T> {
        self.note = note;
        self
    }

    /// A number within the bounds that is not valid, and why.
    pub(super) const fn except(mut self, number: i64, why: &'static str) -> Number<T> {
        self.except = Some((number, why));
        self
    }

    fn out_of_bounds(&self, found: i64) -> Problem {
        Problem::bounds(found, self.what, [self.min, self.max], self.note)
    }
}

impl<T: TryFrom<i64> + TryInto<i64> + Copy + std::fmt::Debug + 'static> Kind for Number<T> {
    type Written = i64;
    type Value = T;

    fn check(&self, written: i64) -> Result<T, Problem> {
        match self.except {
            Some((number, why)) if number == written => Err(Problem::Excluded(why)),
            _ if !(self.min..=self.max).contains(&written) => Err(self.out_of_bounds(written)),
            _ => T::try_from(written).map_err(|_| self.out_of_bounds(written)),
        }
    }

    fn write(&self, value: &T) -> Option<i64> {
        (*value).try_into().ok()
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        vec![self.min.to_string(), self.max.to_string()]
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<T> {
        let except = self.except.map(|(number, _)| number);
        let numbers = (self.min..=self.max).prop_filter("excluded", move |number| except != Some(*number));
        numbers.prop_filter_map("its type", |number| T::try_from(number).ok()).boxed()
    }
}

const SECONDS: &str = "number of seconds";

/// A number of seconds, up to a maximum.
pub(super) struct Seconds {
    pub(super) max: u64,
}

impl Kind for Seconds {
    type Written = i64;
    type Value = Duration;

    fn check(&self, written: i64) -> Result<Duration, Problem> {
        match u64::try_from(written) {
            Ok(seconds) if seconds <= self.max => Ok(Duration::from_secs(seconds)),
            _ => Err(Problem::bounds(written, SECONDS, [0, self.max], "")),
        }
    }

    fn write(&self, value: &Duration) -> Option<i64> {
        value.as_secs().try_into().ok()
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        vec![0.to_string(), self.max.to_string()]
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<Duration> {
        (0..=self.max).prop_map(Duration::from_secs).boxed()
    }
}

/// A number of seconds within bounds, or 0 for no limit.
pub(super) struct SecondsOrNever {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Kind for SecondsOrNever {
    type Written = i64;
    type Value = Option<Duration>;

    fn check(&self, written: i64) -> Result<Option<Duration>, Problem> {
        match u64::try_from(written) {
            Ok(0) => Ok(None),
            Ok(seconds) if (self.min..=self.max).contains(&seconds) => Ok(Some(Duration::from_secs(seconds))),
            _ => Err(Problem::bounds(written, SECONDS, [self.min, self.max], ", or 0 for never")),
        }
    }

    fn write(&self, value: &Option<Duration>) -> Option<i64> {
        value.map_or(0, |limit| limit.as_secs()).try_into().ok()
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        vec![self.min.to_string(), self.max.to_string(), "or 0".to_owned()]
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<Option<Duration>> {
        prop::option::of((self.min..=self.max).prop_map(Duration::from_secs)).boxed()
    }
}

/// A number of bytes with a suffix: a multiple of something, within bounds.
pub(super) struct Size {
    pub(super) multiple: u64,
    pub(super) min: u64,
    pub(super) max: u64,
}

/// The bytes of a size, which must be a multiple of something.
fn bytes(text: &str, multiple: u64) -> Result<u64, Problem> {
    let bytes = parse_bytes(text).ok_or_else(|| Problem::Size(text.to_owned()))?;
    match bytes.is_multiple_of(multiple) {
        true => Ok(bytes),
        false => Err(Problem::Multiple { found: text.to_owned(), multiple: format_bytes(multiple) }),
    }
}

impl Kind for Size {
    type Written = String;
    type Value = u64;

    fn check(&self, written: String) -> Result<u64, Problem> {
        let bytes = bytes(&written, self.multiple)?;
        match (self.min..=self.max).contains(&bytes) {
            true => Ok(bytes),
            false => {
                let bounds = [self.min, self.max].map(format_bytes);
                Err(Problem::bounds(format_args!("`{written}`"), "size", bounds, ""))
            }
        }
    }

    fn write(&self, value: &u64) -> Option<String> {
        Some(format_bytes(*value))
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        let multiple = (self.multiple > 1).then(|| format!("multiple of {}", format_bytes(self.multiple)));
        multiple.into_iter().chain([format_bytes(self.min), format_bytes(self.max)]).collect()
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<u64> {
        let multiple = self.multiple;
        (self.min / multiple..=self.max / multiple).prop_map(move |count| count * multiple).boxed()
    }
}

/// A size, or `auto`, which leaves it to whoever uses it.
pub(super) struct SizeOrAuto(pub(super) Size);

const AUTO: &str = "auto";

impl Kind for SizeOrAuto {
    type Written = String;
    type Value = Option<u64>;

    fn check(&self, written: String) -> Result<Option<u64>, Problem> {
        if written == AUTO { Ok(None) } else { self.0.check(written).map(Some) }
    }

    fn write(&self, value: &Option<u64>) -> Option<String> {
        value.as_ref().map_or_else(|| Some(AUTO.to_owned()), |size| self.0.write(size))
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        self.0.terms().into_iter().chain([format!("\"{AUTO}\"")]).collect()
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<Option<u64>> {
        prop::option::of(self.0.any()).boxed()
    }
}

/// What is given up: nothing, the cache, or whatever makes more than a size.
pub(super) struct NoneCacheOrSize(pub(super) Size);

const NONE: &str = "none";
const CACHE: &str = "cache";

impl Kind for NoneCacheOrSize {
    type Written = String;
    type Value = Shrink;

    fn check(&self, written: String) -> Result<Shrink, Problem> {
        match written.as_str() {
            NONE => Ok(Shrink::None),
            CACHE => Ok(Shrink::Cache),
            _ => match self.0.check(written) {
                Err(Problem::Size(written)) => Err(Problem::Shrink(written)),
                checked => checked.map(Shrink::To),
            },
        }
    }

    fn write(&self, value: &Shrink) -> Option<String> {
        match value {
            Shrink::None => Some(NONE.to_owned()),
            Shrink::Cache => Some(CACHE.to_owned()),
            Shrink::To(size) => self.0.write(size),
        }
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        self.0.terms().into_iter().chain([NONE, CACHE].map(|word| format!("\"{word}\""))).collect()
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<Shrink> {
        prop_oneof![Just(Shrink::None), Just(Shrink::Cache), self.0.any().prop_map(Shrink::To)].boxed()
    }
}

/// A physical address, or none. Whether what begins there ends where it may is for the whole policy to check.
pub(super) struct Address {
    pub(super) multiple: u64,
    pub(super) min: u64,
}

impl Kind for Address {
    type Written = String;
    type Value = Option<u64>;

    fn check(&self, written: String) -> Result<Option<u64>, Problem> {
        match bytes(&written, self.multiple)? {
            address if address < self.min => Err(Problem::Low { found: written, min: format_bytes(self.min) }),
            address => Ok(Some(address)),
        }
    }

    fn write(&self, value: &Option<u64>) -> Option<String> {
        value.map(format_bytes)
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        vec![format!("multiple of {}", format_bytes(self.multiple)), format_bytes(self.min)]
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<Option<u64>> {
        let multiple = self.multiple;
        prop::option::of((self.min / multiple..(1 << 51) / multiple).prop_map(move |count| count * multiple)).boxed()
    }
}

/// One of a few words.
pub(super) struct Words<T>(PhantomData<T>);

impl<T> Words<T> {
    pub(super) const fn new() -> Words<T> {
        Words(PhantomData)
    }
}

impl<T: Word + std::fmt::Debug> Kind for Words<T> {
    type Written = String;
    type Value = T;

    fn check(&self, written: String) -> Result<T, Problem> {
        Ok(written.parse::<T>()?)
    }

    fn write(&self, value: &T) -> Option<String> {
        Some(value.word().to_owned())
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        T::all().iter().map(|value| format!("\"{}\"", value.word())).collect()
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<T> {
        prop::sample::select(T::all().to_vec()).boxed()
    }
}

/// The name of an image device.
pub(super) struct Device;

impl Kind for Device {
    type Written = String;
    type Value = ImageDevice;

    fn check(&self, written: String) -> Result<ImageDevice, Problem> {
        Ok(written.parse()?)
    }

    fn write(&self, value: &ImageDevice) -> Option<String> {
        Some(value.to_string())
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        ["UUID=", "PARTUUID=", "PARTLABEL=", "/dev"].map(str::to_owned).to_vec()
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<ImageDevice> {
        let uuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
        let offset = (1_u64..1 << 52).prop_map(|blocks| blocks * 4096);
        prop_oneof![
            uuid.prop_map(|uuid| format!("UUID={uuid}")),
            (uuid, offset).prop_map(|(uuid, offset)| format!("UUID={uuid}@{offset}")),
            "/(etc|var)/[a-z0-9/ =-]{0,20}[a-z]",
            "[0-9a-f]{8}-[0-9a-f]{2}".prop_map(|uuid| format!("PARTUUID={uuid}")),
            uuid.prop_map(|uuid| format!("PARTUUID={uuid}")),
            "[^\"\\pC]{1,36}".prop_map(|label| format!("PARTLABEL={label}")),
            "/dev/[^\"\\pC]{0,20}[^\"\\pC/]",
        ]
        .prop_filter_map("a device", |text| text.parse().ok())
        .boxed()
    }
}

/// A disk, by what it reports of itself, or none.
pub(super) struct Disk;

impl Kind for Disk {
    type Written = String;
    type Value = Option<DiskIdentity>;

    fn check(&self, written: String) -> Result<Option<DiskIdentity>, Problem> {
        Ok(Some(written.parse()?))
    }

    fn write(&self, value: &Option<DiskIdentity>) -> Option<String> {
        value.as_ref().map(ToString::to_string)
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<Option<DiskIdentity>> {
        let text =
            "(usb|nvme|scsi|virtio|mmc|other)( serial=[!#-\\[\\]-~]{1,20})?( partition=[0-9a-f-]{1,36})?( removable)?";
        prop::option::of(text.prop_filter_map("a disk", |text| text.parse().ok())).boxed()
    }
}

/// A network interface and how it reaches a server, or none.
pub(super) struct LinkOrNone;

impl Kind for LinkOrNone {
    type Written = String;
    type Value = Option<Link>;

    fn check(&self, written: String) -> Result<Option<Link>, Problem> {
        Ok(Some(written.parse()?))
    }

    fn write(&self, value: &Option<Link>) -> Option<String> {
        value.as_ref().map(ToString::to_string)
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<Option<Link>> {
        let text = "mac=02:00:00:00:00:[0-9a-f]{2} place=[!#-\\[\\]-~]{1,20} address=10\\.0\\.0\\.[1-9] \
                    (gateway=10\\.0\\.0\\.1 )?mtu=[1-9]{4}";
        prop::option::of(text.prop_filter_map("a link", |text| text.parse().ok())).boxed()
    }
}

/// An absolute path.
pub(super) struct AbsolutePath;

impl Kind for AbsolutePath {
    type Written = String;
    type Value = PathBuf;

    fn check(&self, written: String) -> Result<PathBuf, Problem> {
        if written.contains(char::is_control) {
            return Err(Problem::PathCharacter(written));
        }
        if written.starts_with('/') { Ok(PathBuf::from(written)) } else { Err(Problem::Path(written)) }
    }

    fn write(&self, value: &PathBuf) -> Option<String> {
        // It was read from TOML, which is UTF-8, so that displaying it loses nothing.
        Some(value.display().to_string())
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<PathBuf> {
        "/[^\\pC]{0,30}".prop_map(PathBuf::from).boxed()
    }
}

/// Arguments for a kernel, up to a number of bytes.
pub(super) struct Arguments {
    pub(super) max: usize,
}

impl Kind for Arguments {
    type Written = String;
    type Value = String;

    fn check(&self, written: String) -> Result<String, Problem> {
        if written.len() > self.max {
            return Err(Problem::ArgumentsLength { found: written.len(), max: self.max });
        }
        if let Some(character) = written.chars().find(|c| c.is_control()) {
            return Err(Problem::ArgumentsHide(character.escape_default().to_string()));
        }
        for argument in kernel_args::arguments(&written) {
            if argument.name == "--" || !argument.is_closed() {
                return Err(Problem::ArgumentsHide(argument.raw.to_owned()));
            }
            if argument.is_ours() {
                return Err(Problem::ArgumentsOurs(argument.raw.to_owned()));
            }
        }
        Ok(written)
    }

    fn write(&self, value: &String) -> Option<String> {
        Some(value.clone())
    }

    #[cfg(test)]
    fn terms(&self) -> Vec<String> {
        vec![format!("{} bytes", self.max)]
    }

    #[cfg(test)]
    fn any(&self) -> BoxedStrategy<String> {
        "([a-zé\\\\'=.]{1,9}=\"[^\"\\pC]{0,9}\" ?){0,3}".boxed()
    }
}
