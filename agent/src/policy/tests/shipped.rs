//! The file in the project's configs directory, against the table of keys.

use super::*;
use crate::policy::keys::{KEYS, terms};

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
        image: ImagePolicy { device: shipped.image.device.clone(), ..parse(LEAST).unwrap().image },
        ..parse(LEAST).unwrap()
    };
    assert_eq!(shipped, defaults);
    let stated = parse(&shipped_with_defaults()).unwrap();
    // Keys without a default are shown by an example.
    let examples = Policy {
        image: ImagePolicy { disk: stated.image.disk.clone(), link: stated.image.link.clone(), ..defaults.image },
        region: RegionPolicy { address: Some(16 << 20), ..defaults.region },
        ..defaults
    };
    assert!(examples.image.disk.is_some() && examples.image.link.is_some());
    assert_eq!(stated, examples);
}

/// The keys of the shipped file in its order, each with the comment before it.
fn explained() -> Vec<(String, String)> {
    let (mut section, mut comment, mut keys) = ("", String::new(), Vec::new());
    for line in SHIPPED.lines() {
        let stated = line.strip_prefix("#= ").unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some(text) = line.strip_prefix('#').filter(|_| stated == line) {
            comment.push_str(text);
            comment.push('\n');
        } else if let Some((name, _)) = stated.split_once(" = ") {
            keys.push((format!("{section}.{name}"), std::mem::take(&mut comment)));
        }
    }
    keys
}

#[test]
fn the_shipped_file_has_every_key_in_order() {
    let keys: Vec<String> = explained().into_iter().map(|(key, _)| key).collect();
    let expected: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(keys, expected);
}

#[test]
fn the_shipped_file_states_every_bound_and_word() {
    for ((key, terms), (_, comment)) in terms().into_iter().zip(explained()) {
        for term in terms {
            assert!(mentions(&comment, &term), "configs/dormouse.toml does not mention {term} for {key}:\n{comment}");
        }
    }
}
