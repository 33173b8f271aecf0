//! The page on the policy, dormouse.toml(5), against the table of keys.

use super::*;
use crate::policy::keys::{KEYS, terms};

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
    let expected: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(keys, expected);
}

#[test]
fn the_defaults_that_the_page_states_are_the_defaults() {
    let stated: String =
        keys().iter().filter_map(|(key, default)| Some(format!("{key} = {}\n", default.as_ref()?))).collect();
    assert_eq!(parse(&format!("image.device = \"/dev/vda\"\n{stated}")).unwrap(), parse(LEAST).unwrap());
    let without: Vec<String> =
        keys().into_iter().filter(|(_, default)| default.is_none()).map(|(key, _)| key).collect();
    assert_eq!(without, ["image.device", "image.disk", "image.link", "region.address"]);
}

/// What the page explains of each key, as text without requests and escapes, a space between words.
fn explanations() -> Vec<String> {
    let keys = PAGE.split_once(".SH KEYS").unwrap().1.split_once(".SH EXAMPLES").unwrap().0;
    let plain = |entry: &str| {
        let lines = entry.split_once("\\fB").map_or("", |(_, entry)| entry).lines();
        let lines = lines.map(|line| match line.split_once(' ') {
            // In lines of alternating fonts, blanks separate what is printed without them.
            Some((".BI" | ".BR" | ".IR", rest)) => rest.replace(' ', ""),
            Some((".B" | ".I", rest)) => rest.to_owned(),
            _ => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join(" ").replace("\\-", "-").replace("\\(dq", "\"")
    };
    keys.split(".TP\n").skip(1).map(plain).collect()
}

#[test]
fn the_page_states_every_bound_and_word() {
    for ((key, terms), text) in terms().into_iter().zip(explanations()) {
        for term in terms {
            assert!(mentions(&text, &term), "dormouse.toml(5) does not mention {term} for {key}: {text}");
        }
    }
}
