//! The page on the policy, dormouse.toml(5), against the schema.

use super::*;
use crate::policy::schema::KEYS;

const PAGE: &str = include_str!("../../../../configs/man/dormouse.toml.5");

/// Every key of the page, in order, with the default that it states in TOML, if it states one.
fn keys() -> Vec<(String, Option<String>)> {
    let mut section = "";
    let mut keys = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix(".SS [") {
            section = name.trim_end_matches(']');
        } else if line == ".TP" {
            let entry = lines.next().unwrap();
            let (name, rest) = entry.strip_prefix("\\fB").unwrap().split_once("\\fR = \\fI").unwrap();
            let default = rest.split_once("(default \\fB").map(|(_, rest)| rest.strip_suffix("\\fR)").unwrap());
            keys.push((format!("{section}.{name}"), default.map(str::to_owned)));
        }
    }
    keys
}

#[test]
fn the_page_has_every_key_in_order() {
    let keys: Vec<String> = keys().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, KEYS);
}

#[test]
fn the_defaults_that_the_page_states_are_the_defaults() {
    let stated: String =
        keys().iter().filter_map(|(key, default)| Some(format!("{key} = {}\n", default.as_ref()?))).collect();
    assert_eq!(parse(&format!("image.device = \"/dev/vda\"\n{stated}")).unwrap(), parse(LEAST).unwrap());
    let without: Vec<String> =
        keys().into_iter().filter(|(_, default)| default.is_none()).map(|(key, _)| key).collect();
    assert_eq!(without, ["image.device", "region.address"]);
}
