//! Any policy survives the way through the initramfs, and no text is fatal.

use proptest::prelude::*;

use super::*;
use crate::policy::keys::{KEYS, any_policy};
use crate::policy::tests::shipped::SHIPPED;

proptest! {
    #[test]
    fn the_merged_policy_is_the_same_policy(policy in any_policy()) {
        let text = policy.to_toml();
        prop_assert_eq!(parse(&text).map_err(|error| format!("{error}\n{text}")), Ok(policy));
    }

    /// However the keys of a policy are spread over files, and whatever else earlier files say of them.
    #[test]
    fn the_last_file_that_has_a_key_counts(
        policy in any_policy(),
        other in any_policy(),
        choices in prop::collection::vec(0_usize..3, KEYS.len()),
    ) {
        let pieces = |policy: &Policy| -> toml::Table { policy.to_toml().parse().unwrap() };
        let mut files = [pieces(&other), toml::Table::new(), toml::Table::new()];
        for (key, choice) in KEYS.iter().zip(choices) {
            let (section, name) = key.name.split_once('.').unwrap();
            let value = pieces(&policy)[section].get(name).cloned();
            let value_of = |file: &mut toml::Table| {
                let section = file.entry(section).or_insert_with(|| toml::Table::new().into());
                let section = section.as_table_mut().unwrap();
                match &value {
                    Some(value) => section.insert(name.to_owned(), value.clone()),
                    None => section.remove(name),
                };
            };
            // A key that the policy leaves to its default is nowhere.
            if value.is_some() { value_of(&mut files[choice]) } else { value_of(&mut files[0]) }
        }
        let texts = files.map(|file| file.to_string());
        let named: Vec<(&str, &str)> = ["a", "b", "c"].into_iter().zip(texts.iter().map(String::as_str)).collect();
        prop_assert_eq!(merge(&named).map_err(|error| format!("{error}\n{texts:?}")), Ok(policy));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn no_damage_makes_the_parser_panic(position in 0_usize..SHIPPED.len(), byte in 0_u8..128) {
        let mut bytes = SHIPPED.as_bytes().to_vec();
        bytes[position] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = parse(&text);
        }
    }
}
