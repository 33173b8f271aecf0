//! Archives byte for byte, through cpio(1), and the ones that are refused.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

fn example<'a>() -> Archive<'a> {
    Archive::new()
        .dir("/dev", 0o755)
        .node("/dev/console", 0o600, 5, 1)
        .file("/init", 0o755, b"#!/bin/sh\n")
        .symlink("/bin", "usr/bin")
        .file("/usr/bin/sh", 0o755, vec![7; 5])
}

#[test]
fn one_file_byte_for_byte() {
    let bytes = Archive::new().file("a", 0o644, b"hello").finish().unwrap();
    let entry = b"070701000000010000\
        81a4000000000000000000000001000000000000000500000000000000000000000000000000\
        0000000200000000a\0hello\0\0\0";
    assert_eq!(bytes[..entry.len()], entry[..]);
    let trailer = &bytes[entry.len()..];
    assert_eq!(&trailer[..6], b"070701");
    assert_eq!(&trailer[94..121], b"0000000b00000000TRAILER!!!\0");
    assert!(trailer[121..].iter().all(|b| *b == 0));
    assert_eq!(bytes.len(), 512);
}

#[test]
fn order_of_adding_does_not_matter() {
    let other = Archive::new()
        .file("usr/bin/sh", 0o755, vec![7; 5])
        .symlink("bin", "usr/bin")
        .file("init", 0o755, b"#!/bin/sh\n")
        .node("dev/console", 0o600, 5, 1)
        .dir("usr", 0o755);
    assert_eq!(other.finish(), example().finish());
}

/// An independent reader: cpio(1).
#[test]
fn cpio_lists_what_was_written() {
    let bytes = example().finish().unwrap();
    let mut cpio = Command::new("cpio")
        .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = cpio.wait_with_output().unwrap();
    assert!(output.status.success());
    let listing = String::from_utf8(output.stdout).unwrap();
    let fields: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
    let summary: Vec<(&str, &str)> = fields.iter().map(|line| (line[0], *line.last().unwrap())).collect();
    let expected = [
        ("lrwxrwxrwx", "usr/bin"),
        ("drwxr-xr-x", "dev"),
        ("crw-------", "dev/console"),
        ("-rwxr-xr-x", "init"),
        ("drwxr-xr-x", "usr"),
        ("drwxr-xr-x", "usr/bin"),
        ("-rwxr-xr-x", "usr/bin/sh"),
    ];
    assert_eq!(summary, expected);
    assert!(listing.contains("5,   1 Jan  1  1970 dev/console"), "{listing}");
}

#[test]
fn unusable_paths_are_refused() {
    for path in ["", "/", "a//b", "./a", "a/..", "a/", "a\0b", "TRAILER!!!"] {
        let error = Archive::new().dir(path, 0o755).finish().unwrap_err();
        assert_eq!(error, CpioError::Path { path: path.to_owned() });
    }
}

#[test]
fn conflicts_are_refused() {
    let twice = Archive::new().dir("a", 0o755).file("/a", 0o644, b"").finish().unwrap_err();
    assert_eq!(twice, CpioError::Twice { path: "/a".to_owned() });
    let below = Archive::new().file("a", 0o644, b"").file("a/b/c", 0o644, b"").finish().unwrap_err();
    assert_eq!(below, CpioError::Parent { path: "a/b/c".to_owned(), parent: "a".to_owned() });
}

#[test]
fn lengths_end_where_the_kernel_stops_reading() {
    let longest = "x".repeat(PATH_MAX - 1);
    assert!(Archive::new().dir(&longest, 0o755).symlink("l", &longest).finish().is_ok());
    let longer = "x".repeat(PATH_MAX);
    for archive in [Archive::new().dir(&longer, 0o755), Archive::new().symlink("l", &longer)] {
        assert!(matches!(archive.finish(), Err(CpioError::TooLong { length: PATH_MAX, .. })));
    }
}

#[test]
fn the_first_error_is_the_one_reported() {
    let error = Archive::new().dir("..", 0o755).dir(".", 0o755).finish().unwrap_err();
    assert_eq!(error, CpioError::Path { path: "..".to_owned() });
}
