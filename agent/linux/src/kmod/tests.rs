//! Resolution over small trees such as depmod leaves them.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;

use tempfile::TempDir;

use super::*;

const DEP: &str = "\
kernel/usb/usb-common.ko:
kernel/usb/usbcore.ko: kernel/usb/usb-common.ko
kernel/usb/xhci-hcd.ko.zst: kernel/usb/usbcore.ko kernel/usb/usb-common.ko
kernel/usb/xhci-pci.ko: kernel/usb/xhci-hcd.ko.zst kernel/usb/usbcore.ko kernel/usb/usb-common.ko
kernel/usb/usb-storage.ko: kernel/usb/usbcore.ko kernel/usb/usb-common.ko
kernel/usb/uas.ko: kernel/usb/usb-storage.ko kernel/usb/usbcore.ko kernel/usb/usb-common.ko
kernel/lib/packed.ko.xz:
kernel/lib/zipped.ko.gz:
kernel/lib/text.ko:
kernel/lib/torn.ko.zst:
kernel/lib/gone.ko:
kernel/lib/lost.ko: kernel/lib/nowhere.ko
kernel/lib/left.ko:
kernel/lib/right.ko:
";
const SOFTDEP: &str = "\
# Soft dependencies extracted from modules themselves.
softdep usb_storage pre: left absent post: gone
softdep left pre: right
softdep right pre: left
softdep uas post: gone
";

fn elf(name: &str) -> Vec<u8> {
    [b"\x7fELF", name.as_bytes()].concat()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// A tree in which every module's contents are its own file name without compression.
fn tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in DEP.lines().filter_map(|line| line.split_once(':')).map(|(path, _)| path) {
        let file = dir.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let bytes = match name {
            "gone.ko" => continue,
            "text.ko" => b"#!/bin/sh".to_vec(),
            "torn.ko.zst" => zstd::encode_all(elf(name).as_slice(), 1).unwrap()[..6].to_vec(),
            _ => match name.rsplit_once('.').unwrap() {
                (plain, "zst") => zstd::encode_all(elf(plain).as_slice(), 1).unwrap(),
                (plain, "xz") => xz(&elf(plain)),
                (plain, "gz") => gzip(&elf(plain)),
                _ => elf(name),
            },
        };
        fs::write(file, bytes).unwrap();
    }
    fs::write(dir.path().join("modules.dep"), DEP).unwrap();
    fs::write(dir.path().join("modules.softdep"), SOFTDEP).unwrap();
    fs::write(dir.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/drivers/nvme-core.ko\n").unwrap();
    dir
}

fn ask(dir: &Path, names: &[&str]) -> Result<Vec<String>, ModulesError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let modules = resolve(dir, &names)?;
    for module in &modules {
        assert_eq!(module.bytes, elf(&module.file_name));
    }
    Ok(modules.into_iter().map(|module| module.file_name).collect())
}

#[test]
fn dependencies_come_first_and_once() {
    let tree = tree();
    let order = ask(tree.path(), &["xhci_pci", "uas", "usb-common"]).unwrap();
    let expected = [
        "usb-common.ko",
        "usbcore.ko",
        "xhci-hcd.ko",
        "xhci-pci.ko",
        "right.ko",
        "left.ko",
        "usb-storage.ko",
        "uas.ko",
    ];
    assert_eq!(order, expected);
}

#[test]
fn dashes_and_underscores_are_the_same() {
    let tree = tree();
    assert_eq!(ask(tree.path(), &["usb_common", "usb-common"]).unwrap(), ["usb-common.ko"]);
}

#[test]
fn every_compression_of_the_kernels_own_is_read() {
    let tree = tree();
    assert_eq!(
        ask(tree.path(), &["xhci_hcd", "packed", "zipped"]).unwrap()[2..],
        ["xhci-hcd.ko", "packed.ko", "zipped.ko"]
    );
}

#[test]
fn a_device_is_driven_by_the_modules_whose_alias_it_matches() {
    let tree = tree();
    let aliases = "# Aliases extracted from modules themselves.\n\
        alias virtio:d00000002v* virtio_blk\n\
        alias pci:v*d*sv*sd*bc01sc06i01* ahci\n\
        alias usb:v05ACp12[0-9]*d* ipheth\nalias fs-ext4 ext4\nalias torn\n";
    fs::write(tree.path().join("modules.alias"), aliases).unwrap();
    let driven = |modalias| by_alias(tree.path(), modalias).unwrap();
    assert_eq!(driven("virtio:d00000002v00001AF4"), ["virtio_blk"]);
    assert_eq!(driven("pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"), ["ahci"]);
    assert_eq!(driven("usb:v05ACp1290d0000"), ["ipheth"]);
    assert!(driven("virtio:d00000003v00001AF4").is_empty());
    fs::remove_file(tree.path().join("modules.alias")).unwrap();
    assert!(driven("virtio:d00000002v00001AF4").is_empty());
}

#[test]
fn built_in_modules_are_left_out() {
    let tree = tree();
    assert!(ask(tree.path(), &["ext4", "nvme_core"]).unwrap().is_empty());
}

#[test]
fn no_names_need_no_directory() {
    assert!(resolve(Path::new("/nonexistent"), &[]).unwrap().is_empty());
}

#[test]
fn unknown_names_are_refused_with_those_that_look_alike() {
    let tree = tree();
    let message = ask(tree.path(), &["usbcor"]).unwrap_err().to_string();
    assert!(message.contains("`usbcor`") && message.contains(&tree.path().display().to_string()), "{message}");
    assert!(message.ends_with("14 modules: usb_common, usb_storage, usbcore, ..."), "{message}");
    let message = ask(tree.path(), &["zfs"]).unwrap_err().to_string();
    assert!(message.contains("14 modules: gone, left, lost, packed, right"), "{message}");
    let message = ask(tree.path(), &["lost"]).unwrap_err().to_string();
    assert!(message.contains("`nowhere`"), "{message}");
}

#[test]
fn files_that_cannot_be_used_say_why() {
    let tree = tree();
    let table = [
        ("text", "text.ko: this is not an ELF file"),
        ("torn", "torn.ko.zst: cannot read it"),
        ("gone", "gone.ko: cannot read it"),
    ];
    for (name, expected) in table {
        let message = ask(tree.path(), &[name]).unwrap_err().to_string();
        assert!(message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn refuses_a_directory_without_depmods_files() {
    let dir = tempfile::tempdir().unwrap();
    let message = ask(dir.path(), &["ext4"]).unwrap_err().to_string();
    assert!(message.contains("modules.dep: cannot read it") && message.contains("depmod"), "{message}");
    fs::write(dir.path().join("modules.dep"), "kernel/a.ko:\nkernel/b.ko\n").unwrap();
    assert!(matches!(ask(dir.path(), &["a"]), Err(ModulesError::Line { line: 2, .. })));
    // Without the other two files, what modules.dep names can still be loaded.
    fs::create_dir(dir.path().join("kernel")).unwrap();
    fs::write(dir.path().join("modules.dep"), "kernel/a.ko:\n").unwrap();
    fs::write(dir.path().join("kernel/a.ko"), elf("a.ko")).unwrap();
    assert_eq!(ask(dir.path(), &["a"]).unwrap(), ["a.ko"]);
}

#[test]
fn the_bound_on_a_module_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("modules.dep"), "big.ko.zst:\n").unwrap();
    let zeroes = io::repeat(0).take(MAX_MODULE + 4096);
    let packed = zstd::encode_all(zeroes, 1).unwrap();
    fs::write(dir.path().join("big.ko.zst"), packed).unwrap();
    assert!(matches!(ask(dir.path(), &["big"]), Err(ModulesError::TooLarge { .. })));
}

#[test]
fn a_listed_module_is_found_without_depmods_files() {
    let tree = tree();
    let found = |name: &str| find(tree.path(), name).map(|file| file.strip_prefix(tree.path()).unwrap().to_owned());
    // A module's name, as the other tools have it, and a file's, as `dormouse build-initramfs` writes it.
    for (name, file) in [
        ("xhci_hcd", "kernel/usb/xhci-hcd.ko.zst"),
        ("packed", "kernel/lib/packed.ko.xz"),
        ("usb-common.ko", "kernel/usb/usb-common.ko"),
    ] {
        assert_eq!(found(name).unwrap(), Path::new(file));
    }
    let text = found("usb_none").unwrap_err().to_string();
    assert!(text.starts_with("there is no kernel module `usb_none` in "), "{text}");
    assert!(text.ends_with("modules: usb_common, usb_storage, usbcore, ..."), "{text}");
}
