//! The file in the project's configs folder, and the list of keys, against the schema.

use super::*;
use crate::policy::schema::{self, KEYS};

/// What a user copies to `/etc`.
pub(super) const SHIPPED: &str = include_str!("../../../../configs/dormouse.toml");

/// The shipped file's lines with the defaults uncommented.
fn shipped_with_defaults() -> String {
    let uncomment = |line: &str| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n";
    SHIPPED.lines().map(uncomment).collect()
}

#[test]
fn the_shipped_file_is_a_policy_of_defaults() {
    let shipped = parse(SHIPPED).unwrap();
    let defaults = Policy {
        image: ImagePolicy { device: shipped.image.device.clone(), wait: DEFAULT_WAIT },
        ..parse(LEAST).unwrap()
    };
    assert_eq!(shipped, defaults);
    let stated = parse(&shipped_with_defaults()).unwrap();
    assert_eq!(stated, Policy { region: RegionPolicy { address: Some(LOWEST_REGION), ..defaults.region }, ..defaults });
}

#[test]
fn the_shipped_file_mentions_every_key() {
    let stated: toml::Table = shipped_with_defaults().parse().unwrap();
    for key in KEYS {
        let (section, name) = key.split_once('.').unwrap();
        let value = stated.get(section).and_then(|table| table.get(name));
        assert!(value.is_some(), "configs/dormouse.toml does not mention {key}");
    }
}

/// Every key of the schema is in the list that unknown keys are compared with, and none else is.
#[test]
fn the_list_of_keys_is_the_schema() {
    for key in KEYS {
        let (section, name) = key.split_once('.').unwrap();
        let error = toml::from_str::<schema::File>(&format!("[{section}]\n{name} = []\n")).unwrap_err();
        assert!(error.message().starts_with("invalid type"), "{key}: {}", error.message());
    }
    assert_eq!(KEYS.len(), format!("{:?}", schema::File::default()).matches("None").count());
}
