//! The documents: relative links lead to files and headings that exist, and the README stays short.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const README_LINES: usize = 150;

/// Every Markdown file of the project.
fn documents() -> Vec<PathBuf> {
    let patterns =
        ["*.md", "agent/**/*.md", "configs/**/*.md", "initramfs/**/*.md", "scripts/**/*.md", "tests/**/*.md"];
    let files = patterns.iter().flat_map(|pattern| glob::glob(&format!("{CHECKOUT}/{pattern}")).unwrap());
    files.map(Result::unwrap).collect()
}

/// The lines of a document that are text, not code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence && !line.starts_with("    ")
    })
}

/// The destinations of `[text](destination)` and of `[label]: destination`, in order.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    for line in prose(text) {
        if let Some((_, destination)) = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            links.push(destination.trim());
        }
        links.extend(line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)));
    }
    links
}

/// The labels of `[label]: destination`.
fn definitions(text: &str) -> BTreeSet<&str> {
    prose(text).filter_map(|line| Some(line.strip_prefix('[')?.split_once("]: ")?.0)).collect()
}

/// The labels in cells of tables that are meant to be links: `[label]`, alone or separated by commas.
fn references(text: &str) -> BTreeSet<&str> {
    let rows = prose(text).filter(|line| line.starts_with('|'));
    let words = rows.flat_map(|row| row.split('[').skip(1));
    words.filter_map(|word| word.split_once(']')).filter(|(_, rest)| !rest.starts_with('(')).map(label).collect()
}

/// `label][other` in `[text][other]` names the other; `label` names itself.
fn label<'a>((label, rest): (&'a str, &'a str)) -> &'a str {
    if rest.starts_with('[') { "" } else { label }
}

/// The anchors of a document's headings, as they are shown on the Web.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings.map(|heading| anchor(heading.trim_start_matches('#').trim())).collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
}

/// What is wrong with a link of `document`, if anything is.
fn fault(document: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
    if !target.exists() {
        return Some(format!("{}: {link} leads nowhere", document.display()));
    }
    let is_missing = !heading.is_empty() && !anchors(&fs::read_to_string(&target).unwrap()).contains(heading);
    is_missing.then(|| format!("{}: {link}: no such heading", document.display()))
}

#[test]
fn every_relative_link_resolves() {
    let documents = documents();
    assert!(documents.len() > 10, "{documents:?}");
    let mut faults = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        faults.extend(links(&text).into_iter().filter_map(|link| fault(&document, link)));
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// A `[label]` without a definition is shown as it is written.
#[test]
fn every_case_of_the_failures_is_a_link() {
    let text = fs::read_to_string(Path::new(CHECKOUT).join("agent/docs/FAILURES.md")).unwrap();
    let references = references(&text);
    assert!(references.len() > 10, "{references:?}");
    assert_eq!(references, definitions(&text));
}

#[test]
fn index_lists_every_document() {
    let index = Path::new(CHECKOUT).join("agent/docs/README.md");
    let text = fs::read_to_string(&index).unwrap();
    let resolve = |link: &str| index.parent().unwrap().join(link).canonicalize().ok();
    let listed: BTreeSet<PathBuf> = links(&text).into_iter().filter_map(resolve).collect();
    let missing: Vec<PathBuf> = documents()
        .into_iter()
        .map(|document| document.canonicalize().unwrap())
        .filter(|document| !listed.contains(document) && *document != index.canonicalize().unwrap())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn readme_is_short() {
    let text = fs::read_to_string(Path::new(CHECKOUT).join("README.md")).unwrap();
    let lines = text.lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines, and may have {README_LINES}");
}

#[test]
fn links_are_found_outside_code_only() {
    let text = "a [b](c.md) and [d](e.md#f)\n```\n[g](h)\n```\n    [i](j)\n[k]: l.rs\n";
    assert_eq!(links(text), ["c.md", "e.md#f", "l.rs"]);
}

#[test]
fn anchors_are_those_of_the_web() {
    assert_eq!(anchor("The jump, and why it needs its own loader"), "the-jump-and-why-it-needs-its-own-loader");
    assert_eq!(
        anchors("# How to add ...\n## `seams`\n"),
        BTreeSet::from(["how-to-add-".to_owned(), "seams".to_owned()])
    );
}
