//! The man pages, as mandoc(1) judges them.

#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn the_pages_are_written_without_a_fault() {
    let directory = tempfile::tempdir().unwrap();
    let gen_man = ["gen".as_ref(), "man".as_ref(), directory.path().as_os_str()];
    let output = Command::new(env!("CARGO_BIN_EXE_dormouse")).args(gen_man).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for file in String::from_utf8(output.stdout).unwrap().lines() {
        let lint = Command::new("mandoc").args(["-T", "lint", "-W", "warning", file]).output().unwrap();
        let said = String::from_utf8(lint.stdout).unwrap();
        // Generated pages have no date, so that the same program writes the same pages.
        let faults: Vec<&str> = said.lines().filter(|line| !line.contains("cannot parse date")).collect();
        assert!(faults.is_empty(), "{faults:#?}");
        let page = Command::new("mandoc").args(["-T", "html", file]).output().unwrap();
        assert!(String::from_utf8(page.stdout).unwrap().contains("SEE_ALSO"), "{file}");
    }
}
