//! Against tables and attributes as kernels have shown them.

#![allow(clippy::unwrap_used)]
use super::super::layers::tests::{DISK, Machine, OTHER, VIRTUAL};
use super::*;

const MIB: u64 = 1 << 20;
const RAID: &str = "devices/virtual/block/md0";

/// Sizes for the disks, and two partitions of 64 GiB on them.
fn machine() -> Machine {
    let machine = Machine::new();
    for (disk, name, number, size) in [(DISK, "vda2", "254:2", 64 << 21), (OTHER, "vdb2", "254:18", 64 << 21)] {
        machine.device(
            &format!("{disk}/{name}"),
            number,
            &[("partition", "2"), ("start", "4096"), ("size", &size.to_string())],
        );
        fs::create_dir_all(machine.0.path().join(disk).join("queue")).unwrap();
        fs::write(machine.0.path().join(disk).join("queue/zoned"), "none\n").unwrap();
    }
    machine
}

fn put(machine: &Machine, path: &str, text: &str) {
    let path = machine.0.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

fn mapper(machine: &Machine, number: &str, name: &str, uuid: &str) {
    let place = format!("{VIRTUAL}/{}", number.replace("253:", "dm-"));
    machine.device(&place, number, &[("dm/name", name), ("dm/uuid", uuid)]);
}

/// A mirror of both second partitions, in order.
fn array(machine: &Machine) {
    machine.device(
        RAID,
        "9:0",
        &[
            ("md/level", "raid1"),
            ("md/metadata_version", "1.2"),
            ("md/uuid", "0d8b3dc2-0f8c-4c44-9d4c-111111111111"),
            ("md/raid_disks", "2"),
            ("md/degraded", "0"),
            ("md/sync_action", "idle"),
            ("md/resync_start", "none"),
            ("md/reshape_position", "none"),
            ("md/array_state", "active"),
            ("md/consistency_policy", "bitmap"),
            ("md/bitmap/metadata", "internal"),
        ],
    );
    for (leg, number) in [("rd0", "254:2"), ("rd1", "254:18")] {
        let leg = format!("{RAID}/md/{leg}");
        for (name, text) in [("offset", "2048"), ("state", "in_sync"), ("bad_blocks", ""), ("block/dev", number)] {
            put(machine, &format!("{leg}/{name}"), text);
        }
    }
}

type Tables<'a> = &'a [(&'a str, Vec<Target>)];

fn with<T>(machine: &Machine, tables: Tables<'_>, ask: impl FnOnce(&Layers<'_>) -> T) -> T {
    let table = |number: &str| {
        let found = tables.iter().find(|(other, _)| *other == number);
        found.map(|(_, table)| table.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let sysfs = machine.0.path().canonicalize().unwrap();
    ask(&Layers { sysfs: &sysfs, table: &table })
}

fn found(machine: &Machine, number: &str, ranges: &[Range], tables: Tables<'_>) -> Result<Below, NoPlace> {
    with(machine, tables, |layers| layers.below(number, ranges.to_vec(), 0))
}

fn refusal(machine: &Machine, number: &str, tables: Tables<'_>) -> String {
    found(machine, number, &[(MIB, MIB)], tables).unwrap_err().to_string()
}

const LUKS: &str = "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-cryptroot";
const LV: &str = "LVM-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const KEY: &str = "aes-xts-plain64 :64:logon:cryptsetup:0123-d0 0";

#[test]
fn a_volume_of_two_segments_on_luks_leads_to_the_partition() {
    let machine = machine();
    mapper(&machine, "253:0", "cryptroot", LUKS);
    mapper(&machine, "253:1", "vg-root", LV);
    let tables = [
        ("253:0", vec![Target::new(0, 1 << 26, "crypt", &format!("{KEY} 254:2 32768 1 allow_discards"))]),
        (
            "253:1",
            vec![Target::new(0, 16384, "linear", "253:0 2048"), Target::new(16384, 8192, "linear", "253:0 100000")],
        ),
    ];
    let below = found(&machine, "253:1", &[(4 * MIB, MIB), (7 * MIB, 2 * MIB)], &tables).unwrap();
    assert_eq!(below.legs, [Path::new("/dev/vda2")]);
    let at = |sector: u64| (32768 + sector) * 512;
    assert_eq!(below.ranges, [(at(2048) + 4 * MIB, MIB), (at(2048) + 7 * MIB, MIB), (at(100_000), MIB)]);
    let layers: Vec<_> = below.layers.iter().map(|layer| (layer.kind, layer.identity.as_str())).collect();
    // The name that cryptsetup gave the device is not its identity.
    assert_eq!(layers, [(Kind::Linear, LV), (Kind::Crypt, "CRYPT-LUKS2-0123456789abcdef0123456789abcdef")]);
    assert_eq!(below.layers[0].node, Path::new("/dev/mapper/vg-root"));
    // Past the end of the table.
    assert!(matches!(found(&machine, "253:1", &[(11 * MIB, 2 * MIB)], &tables), Err(NoPlace::Unknown { .. })));
    assert!(matches!(found(&machine, "253:1", &[(u64::MAX, 1)], &tables), Err(NoPlace::Unknown { .. })));
}

#[test]
fn segments_that_touch_below_are_one_range() {
    let machine = machine();
    mapper(&machine, "253:1", "vg-root", LV);
    let tables = [(
        "253:1",
        vec![Target::new(0, 4096, "linear", "254:2 2048"), Target::new(4096, 4096, "linear", "254:2 6144")],
    )];
    assert_eq!(found(&machine, "253:1", &[(0, 4 * MIB)], &tables).unwrap().ranges, [(MIB, 4 * MIB)]);
}

#[test]
fn a_mirror_leads_to_both_legs_at_one_offset() {
    let machine = machine();
    array(&machine);
    mapper(&machine, "253:0", "cryptroot", LUKS);
    let tables = [("253:0", vec![Target::new(0, 1 << 20, "crypt", &format!("{KEY} 9:0 32768"))])];
    let below = found(&machine, "253:0", &[(MIB, MIB)], &tables).unwrap();
    assert_eq!(below.legs, [Path::new("/dev/vda2"), Path::new("/dev/vdb2")]);
    assert_eq!(below.ranges, [((2048 + 32768) * 512 + MIB, MIB)]);
    assert_eq!(below.layers[1].identity, "0d8b3dc2-0f8c-4c44-9d4c-111111111111");
    // A partition of the array.
    machine.device(&format!("{RAID}/md0p1"), "259:0", &[("partition", "1"), ("start", "8")]);
    let below = found(&machine, "259:0", &[(0, MIB)], &[]).unwrap();
    assert_eq!((below.legs.len(), &below.ranges[..]), (2, &[(2048 * 512 + 4096, MIB)][..]));
    assert_eq!(below.layers[0].kind, Kind::Partition);
}

#[test]
fn rejects_other_targets_by_their_name() {
    let machine = machine();
    mapper(&machine, "253:1", "vg-root", LV);
    for (kind, arguments) in [
        ("mirror", "core 1 1024 2 254:2 2048 254:18 2048"),
        ("thin", "253:4 1"),
        ("cache", "253:5 253:6 253:7 128 0 default 0"),
        ("writecache", "s 253:5 253:6 4096 0"),
        ("snapshot-origin", "253:7"),
        ("snapshot", "253:7 253:8 P 8"),
        ("snapshot-merge", "253:7 253:8 P 8"),
        ("striped", "2 128 254:2 2048 254:18 2048"),
        ("raid", "raid1 3 0 region_size 4096 2 - 253:4 - 253:5"),
        ("integrity", "254:2 0 4 J 1 block_size:4096"),
        ("multipath", "0 0 1 1 queue-length 0 1 1 8:16 1"),
        ("vdo", "V4 254:2 1 4096 1 1"),
        ("era", "254:2 254:18 128"),
        ("clone", "254:2 254:18 254:2 8"),
        ("zoned", "254:2"),
        ("zero", ""),
        ("error", ""),
        // What this version does not know.
        ("pcache", "254:2 254:18"),
        // A table that is not as it should be.
        ("linear", "254:2"),
        ("crypt", "aes-xts-plain64 key 0 254:2 x"),
    ] {
        let tables = [("253:1", vec![Target::new(0, 1 << 20, kind, arguments)])];
        let text = refusal(&machine, "253:1", &tables);
        assert_eq!(text, format!("/dev/mapper/vg-root is device-mapper's {kind}"), "{kind}");
    }
}

#[test]
fn rejects_encryption_that_is_being_changed_or_authenticates() {
    let machine = machine();
    mapper(&machine, "253:0", "cryptroot", LUKS);
    let crypt = |start, len, more: &str| Target::new(start, len, "crypt", &format!("{KEY} 254:2 32768{more}"));
    let tables =
        [("253:0", vec![crypt(0, 8192, ""), Target::new(8192, 8192, "linear", "253:1 0"), crypt(16384, 8192, "")])];
    let text = refusal(&machine, "253:0", &tables);
    assert!(text.contains("/dev/mapper/cryptroot is being encrypted anew (crypt, reencryption)"), "{text}");
    let tables = [("253:0", vec![crypt(0, 1 << 20, " 1 integrity:28:aead")])];
    assert!(refusal(&machine, "253:0", &tables).contains("integrity"));
    mapper(&machine, "253:2", "hotzone", "CRYPT-TEMP-cryptroot-hotzone-forward");
    let tables = [("253:2", vec![Target::new(0, 1 << 20, "linear", "254:2 0")])];
    assert!(refusal(&machine, "253:2", &tables).contains("reencryption"));
}

#[test]
fn rejects_a_volume_on_two_disks() {
    let machine = machine();
    mapper(&machine, "253:1", "vg-root", LV);
    let tables = [(
        "253:1",
        vec![Target::new(0, 4096, "linear", "254:2 2048"), Target::new(4096, 4096, "linear", "254:18 2048")],
    )];
    let text = found(&machine, "253:1", &[(MIB, 2 * MIB)], &tables).unwrap_err().to_string();
    assert_eq!(text, "/dev/mapper/vg-root lies on several devices (/dev/vda2 and /dev/vdb2)");
    // What lies on one of them alone is not refused.
    assert!(found(&machine, "253:1", &[(0, 2 * MIB)], &tables).is_ok());
}

#[test]
fn rejects_arrays_that_are_not_in_order() {
    for (name, text, expected) in [
        ("md/level", "raid5", "a RAID of the kind raid5"),
        ("md/level", "raid10", "a RAID of the kind raid10"),
        ("md/level", "raid0", "a RAID of the kind raid0"),
        ("md/metadata_version", "0.90", "metadata of version 0.90"),
        ("md/metadata_version", "external:imsm", "metadata of version external:imsm"),
        ("md/metadata_version", "none", "metadata of version none"),
        ("md/raid_disks", "3", "another number of disks"),
        ("md/degraded", "1", "degraded"),
        ("md/sync_action", "resync", "resync"),
        ("md/sync_action", "check", "compared"),
        ("md/sync_action", "recover", "resync"),
        ("md/resync_start", "0", "not synchronised"),
        ("md/reshape_position", "4096", "shape"),
        ("md/array_state", "inactive", "not in order"),
        ("md/consistency_policy", "journal", "journal"),
        ("md/consistency_policy", "ppl", "journal"),
        ("md/bitmap/metadata", "clustered", "several machines"),
        ("md/rd1/state", "faulty", "not in order"),
        ("md/rd1/state", "spare", "not in order"),
        ("md/rd0/state", "in_sync,want_replacement", "not in order"),
        ("md/rd1/bad_blocks", "4096 8", "bad blocks"),
        ("md/rd1/offset", "4096", "different offsets"),
    ] {
        let machine = machine();
        array(&machine);
        put(&machine, &format!("{RAID}/{name}"), text);
        let error = refusal(&machine, "9:0", &[]);
        assert!(error.contains(expected) && error.starts_with("/dev/md0"), "{name}={text}: {error}");
    }
    let machine = machine();
    array(&machine);
    fs::remove_dir_all(machine.0.path().join(RAID).join("md/rd1")).unwrap();
    assert!(refusal(&machine, "9:0", &[]).contains("degraded"));
}

#[test]
fn rejects_a_mirror_of_what_is_put_together() {
    let machine = machine();
    array(&machine);
    mapper(&machine, "253:0", "luks-a", LUKS);
    put(&machine, &format!("{RAID}/md/rd0/block/dev"), "253:0");
    let tables = [("253:0", vec![Target::new(0, 1 << 20, "crypt", &format!("{KEY} 254:2 32768"))])];
    let text = refusal(&machine, "9:0", &tables);
    assert!(text.contains("over /dev/mapper/luks-a, and not over disks"), "{text}");
}

#[test]
fn rejects_disks_that_are_not_overwritten_in_place() {
    for (place, text, expected) in [
        (format!("{DISK}/queue/zoned"), "host-managed", "zoned"),
        (format!("{DISK}/vda2/ro"), "1", "read-only"),
        (format!("{DISK}/vda2/size"), "2048", "beyond its end"),
    ] {
        let machine = machine();
        put(&machine, &place, text);
        let error = found(&machine, "254:2", &[(MIB, MIB)], &[]).unwrap_err();
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(text.contains(expected), "{place}: {text}");
    }
    let machine = machine();
    machine.device(&format!("{VIRTUAL}/loop0"), "7:0", &[("loop/backing_file", "/srv/x"), ("loop/offset", "0")]);
    machine.device(&format!("{VIRTUAL}/bcache0"), "252:0", &[]);
    machine.device(&format!("{VIRTUAL}/nbd0"), "43:0", &[]);
    for (number, expected) in [("7:0", "/dev/loop0 lies in the file /srv/x"), ("252:0", "bcache"), ("43:0", "network")]
    {
        let text = refusal(&machine, number, &[]);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn the_holders_of_a_partition_are_those_that_lead_to_the_ranges() {
    let machine = machine();
    mapper(&machine, "253:1", "vg-root", LV);
    mapper(&machine, "253:2", "vg-swap", "LVM-swap");
    mapper(&machine, "253:3", "odd", "");
    let holder = |name: &str| {
        let holders = machine.0.path().join(DISK).join("vda2/holders");
        fs::create_dir_all(&holders).unwrap();
        std::os::unix::fs::symlink(machine.0.path().join(VIRTUAL).join(name), holders.join(name)).unwrap();
    };
    holder("dm-1");
    holder("dm-2");
    let tables = [
        ("253:1", vec![Target::new(0, 4096, "linear", "254:2 2048")]),
        ("253:2", vec![Target::new(0, 4096, "linear", "254:2 6144")]),
        ("253:3", vec![Target::new(0, 4096, "thin-pool", "254:2 254:2")]),
    ];
    let held = |ranges: &[Range]| -> Vec<String> {
        let held = with(&machine, &tables, |layers| layers.holders("254:2", ranges)).unwrap();
        held.into_iter().map(|layer| layer.identity).collect()
    };
    assert_eq!(held(&[(MIB, MIB)]), [LV]);
    assert_eq!(held(&[(0, 8 * MIB)]).len(), 2);
    assert!(held(&[(16 * MIB, MIB)]).is_empty());
    // What cannot be followed may lead anywhere.
    holder("dm-3");
    assert_eq!(held(&[(16 * MIB, MIB)]), ["odd"]);
    array(&machine);
    holder("md0");
    assert_eq!(held(&[(16 * MIB, MIB)]).len(), 2);
}

#[test]
fn an_array_of_a_kernel_that_does_not_show_its_uuid_has_it_in_its_superblock() {
    let machine = machine();
    array(&machine);
    fs::remove_file(machine.0.path().join(RAID).join("md/uuid")).unwrap();
    // There is no such disk here.
    assert!(found(&machine, "9:0", &[(MIB, MIB)], &[]).is_err());
}
