//! The whole initramfs: what is in it, and that it is reproducible.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

/// An ELF64 header of an x86-64 program, with a program header for an interpreter if one is given.
fn elf(interpreter: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
    bytes[20] = 1;
    bytes[52] = 64;
    bytes[54] = 56;
    let Some(path) = interpreter else { return bytes };
    bytes[32] = 64;
    bytes[56] = 1;
    let size = u64::try_from(path.len() + 1).unwrap();
    let mut header = vec![3, 0, 0, 0, 4, 0, 0, 0];
    for field in [120, 0, 0, size, size, 1] {
        header.extend_from_slice(&u64::to_le_bytes(field));
    }
    bytes.extend(header);
    bytes.extend(path.as_bytes());
    bytes.push(0);
    bytes
}

fn policy() -> Policy {
    Policy::parse("dormouse.toml", "[image]\ndevice = \"/dev/vda\"\n[save]\nlevel = 3\n").unwrap()
}

fn two_modules() -> Carried<Module> {
    let module = |name: &str| Module { file_name: name.to_owned(), bytes: name.repeat(1000).into_bytes() };
    // In loading order, which is not the order of their names.
    Carried {
        target: vec![module("usb-common.ko")],
        disks: vec![module("a.ko")],
        memory: vec![module("dormouse.ko")],
        ..Carried::default()
    }
}

/// The archive's entries: mode, name and data.
fn entries(archive: &[u8]) -> Vec<(u32, String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = archive;
    loop {
        let field = |number: usize| {
            let digits = std::str::from_utf8(&rest[6 + 8 * number..14 + 8 * number]).unwrap();
            u32::from_str_radix(digits, 16).unwrap()
        };
        let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
        let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).unwrap();
        if name == "TRAILER!!!" {
            return found;
        }
        let data = (110 + name_size).next_multiple_of(4);
        found.push((mode, name, rest[data..data + size].to_vec()));
        rest = &rest[(data + size).next_multiple_of(4)..];
    }
}

#[test]
fn everything_is_in_it() {
    let init = elf(None);
    let built = build(&policy(), &init, &two_modules()).unwrap();
    let unpacked = zstd::decode_all(built.as_slice()).unwrap();
    let entries = entries(&unpacked);
    let summary: Vec<(u32, &str)> = entries.iter().map(|(mode, name, _)| (*mode, name.as_str())).collect();
    let expected = [
        (0o040_755, "dev"),
        (0o020_600, "dev/console"),
        (0o020_644, "dev/kmsg"),
        (0o020_666, "dev/null"),
        (0o040_755, "etc"),
        (0o040_755, "etc/dormouse"),
        (0o100_644, "etc/dormouse.toml"),
        (0o100_644, "etc/dormouse/modules"),
        (0o100_644, "etc/dormouse/modules.disks"),
        (0o100_644, "etc/dormouse/modules.memory"),
        (0o100_644, "etc/dormouse/modules.watchdogs"),
        (0o100_755, "init"),
        (0o040_755, "lib"),
        (0o040_755, "lib/modules"),
        (0o100_644, "lib/modules/a.ko"),
        (0o100_644, "lib/modules/dormouse.ko"),
        (0o100_644, "lib/modules/usb-common.ko"),
        (0o040_755, "proc"),
        (0o040_755, "run"),
        (0o040_755, "sys"),
    ];
    // `etc/dormouse.toml` sorts before `etc/dormouse/modules`: a dot comes before a slash.
    assert_eq!(summary, expected);
    let data = |wanted: &str| &entries.iter().find(|(_, name, _)| name == wanted).unwrap().2;
    assert_eq!(data("init"), &init);
    assert_eq!(data("etc/dormouse/modules"), b"usb-common.ko\n");
    assert_eq!(data("etc/dormouse/modules.disks"), b"a.ko\n");
    assert_eq!(data("etc/dormouse/modules.memory"), b"dormouse.ko\n");
    assert_eq!(data("etc/dormouse/modules.watchdogs"), b"");
    let carried = std::str::from_utf8(data("etc/dormouse.toml")).unwrap();
    assert_eq!(Policy::parse("carried", carried).unwrap(), policy());
}

#[test]
fn building_twice_gives_the_same_bytes() {
    let build = || build(&policy(), &elf(None), &two_modules()).unwrap();
    assert_eq!(build(), build());
}

#[test]
fn the_frame_says_its_size_and_carries_a_checksum() {
    let built = build(&policy(), &elf(None), &Carried::default()).unwrap();
    let unpacked = zstd::decode_all(built.as_slice()).unwrap();
    let size = zstd::zstd_safe::get_frame_content_size(&built).unwrap();
    assert_eq!(size, u64::try_from(unpacked.len()).ok());
    // Bit 2 of the frame header descriptor, which follows the magic (RFC 8878, 3.1.1.1.1).
    assert_eq!(built[4] & 4, 4);
}

#[test]
fn programs_that_could_not_start_are_refused() {
    let message =
        build(&policy(), &elf(Some("/lib64/ld-linux-x86-64.so.2")), &Carried::default()).unwrap_err().to_string();
    assert!(message.contains("/lib64/ld-linux-x86-64.so.2") && message.contains("statically"), "{message}");
    assert!(matches!(build(&policy(), b"#!/bin/sh\n", &Carried::default()), Err(InitramfsError::NotElf(_))));
}

#[test]
fn two_modules_of_one_name_are_refused() {
    let module = Module { file_name: "a.ko".to_owned(), bytes: Vec::new() };
    let error = build(&policy(), &elf(None), &Carried { disks: vec![module.clone(), module], ..Carried::default() })
        .unwrap_err();
    assert!(matches!(error, InitramfsError::Cpio(CpioError::Twice { .. })));
}
