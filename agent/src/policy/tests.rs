//! The policy file: what is accepted, what is refused and how, and the way through the initramfs.

#![allow(clippy::unwrap_used, clippy::panic)]

mod manual;
mod properties;
mod shipped;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_image::ImageDevice;

use super::*;

const LEAST: &str = "[image]\ndevice = \"/dev/vda\"\n";

fn parse(text: &str) -> Result<Policy, PolicyError> {
    Policy::parse("dormouse.toml", text)
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// Whether a text has a term, and not as a part of a longer number or word.
fn mentions(text: &str, term: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.match_indices(term).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + term.len()..].chars().next());
        let ends_in_word = term.ends_with(|c: char| c.is_ascii_alphanumeric());
        !(before.is_some_and(is_part) || ends_in_word && after.is_some_and(|c| c.is_ascii_alphanumeric()))
    })
}

#[test]
fn defaults() {
    let expected = Policy {
        image: ImagePolicy {
            device: "/dev/vda".parse().unwrap(),
            disk: None,
            link: None,
            wait: Duration::from_secs(10),
            wipe: true,
            key: SealKey::None,
            trust_server: false,
        },
        region: RegionPolicy { size: None, address: None },
        kernel: KernelPolicy {
            image: PathBuf::from("/var/lib/dormouse/vmlinuz"),
            initramfs: PathBuf::from("/var/lib/dormouse/initramfs.img"),
            arguments: String::new(),
        },
        save: SavePolicy {
            compression: Method::Auto,
            level: 1,
            shrink: Shrink::None,
            skip_free: true,
            verify: Verify::Off,
            escape: true,
            then: Then::PowerOff,
            power: Power::Shutdown,
            jump: Jump::Auto,
            warm: false,
        },
        pipeline: PipelinePolicy { threads: 0, memory: 24 << 20 },
        resume: ResumePolicy {
            enabled: true,
            mismatch: Unfit::Retry,
            unsure: Unsure::Refuse,
            direct: false,
            require: false,
        },
        guard: GuardPolicy { stall: Some(Duration::from_secs(120)), watchdog: true },
        console: ConsolePolicy { verbosity: Verbosity::Quiet },
    };
    assert_eq!(parse(LEAST).unwrap(), expected);
}

#[test]
fn reads_every_key() {
    let text = "
        image = { device = 'UUID=00112233-4455-6677-8899-aabbccddeeff',
            disk = 'usb serial=1:2:3:0 partition=a-b removable',
            link = 'mac=52:54:00:12:34:56 place=a address=10.0.2.15 mtu=1500',
            wait = 0, wipe = false, key = 'tpm2', trust_server = true }
        [region]
        size = '1G'
        address = '4G'
        [kernel]
        image = '/boot/k'
        initramfs = '/boot/i'
        arguments = 'a b=\"c d\"'
        [save]
        compression = 'zstd'
        level = -7
        shrink = 'cache'
        skip_free = false
        verify = 'memory'
        escape = false
        then = 'return'
        power = 'platform'
        jump = 'module'
        warm = true
        [pipeline]
        threads = 256
        memory = '1G'
        [resume]
        enabled = false
        mismatch = 'keep'
        unsure = 'resume'
        direct = true
        require = true
        [guard]
        stall = 0
        watchdog = false
        [console]
        verbosity = 'verbose'
    ";
    let expected = Policy {
        image: ImagePolicy {
            device: ImageDevice::ImageUuid("00112233-4455-6677-8899-aabbccddeeff".parse().unwrap()),
            disk: "usb serial=1:2:3:0 partition=a-b removable".parse().ok(),
            link: "mac=52:54:00:12:34:56 place=a address=10.0.2.15 mtu=1500".parse().ok(),
            wait: Duration::ZERO,
            wipe: false,
            key: SealKey::Tpm2,
            trust_server: true,
        },
        region: RegionPolicy { size: Some(1 << 30), address: Some(4 << 30) },
        kernel: KernelPolicy {
            image: PathBuf::from("/boot/k"),
            initramfs: PathBuf::from("/boot/i"),
            arguments: "a b=\"c d\"".to_owned(),
        },
        save: SavePolicy {
            compression: Method::Zstd,
            level: -7,
            shrink: Shrink::Cache,
            skip_free: false,
            verify: Verify::Memory,
            escape: false,
            then: Then::Return,
            power: Power::Platform,
            jump: Jump::Module,
            warm: true,
        },
        pipeline: PipelinePolicy { threads: 256, memory: 1 << 30 },
        resume: ResumePolicy {
            enabled: false,
            mismatch: Unfit::Keep,
            unsure: Unsure::Resume,
            direct: true,
            require: true,
        },
        guard: GuardPolicy { stall: None, watchdog: false },
        console: ConsolePolicy { verbosity: Verbosity::Verbose },
    };
    assert_eq!(parse(text).unwrap(), expected);
    let methods =
        [("'auto'", Compression::Auto), ("'store'", Compression::Store), ("'zstd'", Compression::Zstd { level: -7 })];
    for (word, expected) in methods {
        assert_eq!(parse(&text.replace("'zstd'", word)).unwrap().save.compression(), expected);
    }
    for (size, expected) in [("'2G'", 2 << 30), ("'64M'", 64 << 20), ("'16384G'", 16 << 40)] {
        assert_eq!(parse(&text.replace("'cache'", size)).unwrap().save.shrink, Shrink::To(expected));
    }
    let small = format!("{LEAST}[region]\nsize = \"64M\"\n");
    assert_eq!(parse(&small).unwrap().pipeline.memory, 12 << 20);
}

#[test]
fn refusals_name_file_line_and_key() {
    let table = [
        ("[save]\nlevel = 40", "dormouse.toml:4: save.level: 40 is not a zstd level from -7 to 19"),
        ("[save]\nlevel = -8", "dormouse.toml:4: save.level: -8 is not a zstd level from -7 to 19"),
        ("[save]\n\nlevel = 0", "dormouse.toml:5: save.level: 0 leaves the level to zstd"),
        ("[save]\nlevel = 9223372036854775807", "save.level: 9223372036854775807 is not a zstd level"),
        ("[save]\nlevel = \"1\"", "dormouse.toml:4: save.level: invalid type: string \"1\", expected"),
        ("[save]\nlevel = 1.5", "dormouse.toml:4: save.level: invalid type: floating point `1.5`"),
        ("[pipeline]\nthreads = 257", "dormouse.toml:4: pipeline.threads: 257 is not a number of threads"),
        ("[pipeline]\nthreads = -1", "dormouse.toml:4: pipeline.threads: -1 is not a number of threads"),
        ("[save]\nshrink = true", "dormouse.toml:4: save.shrink: invalid type: boolean `true`"),
        (
            "[save]\nshrink = \"all\"",
            "dormouse.toml:4: save.shrink: `all` is not \"none\", \"cache\" or a size: write a size as a number",
        ),
        ("[save]\nshrink = \"1M\"", "dormouse.toml:4: save.shrink: `1M` is not a size from 64M to 16384G"),
        ("[save]\nskip_free = \"no\"", "dormouse.toml:4: save.skip_free: invalid type: string \"no\""),
        ("[save]\nthen = \"sleep\"", "dormouse.toml:4: save.then: `sleep` is not one of \"poweroff\""),
        ("[save]\nverify = \"yes\"", "dormouse.toml:4: save.verify: `yes` is not one of \"off\", \"checksum\""),
        ("[resume]\nmismatch = \"ask\"", "dormouse.toml:4: resume.mismatch: `ask` is not one of \"discard\""),
        ("[guard]\nstall = 9", "dormouse.toml:4: guard.stall: 9 is not a number of seconds from 10 to 3600"),
        ("[guard]\nstall = -1", "dormouse.toml:4: guard.stall: -1 is not a number of seconds"),
        ("[save]\ncompression = \"xz\"", "dormouse.toml:4: save.compression: `xz` is not one of \"auto\""),
        ("[pipeline]\nmemory = \"3M\"", "dormouse.toml:4: pipeline.memory: `3M` is not a size from 4M to 1G"),
        ("[pipeline]\nmemory = \"2G\"", "dormouse.toml:4: pipeline.memory: `2G` is not a size from 4M to 1G"),
        ("[pipeline]\nmemory = \"much\"", "dormouse.toml:4: pipeline.memory: `much` is not a size"),
        ("[console]\nverbosity = \"loud\"", "dormouse.toml:4: console.verbosity: `loud` is not one of \"quiet\""),
        ("[region]\nsize = 128", "dormouse.toml:4: region.size: invalid type: integer `128`"),
        ("[region]\nsize = \"128 M\"", "dormouse.toml:4: region.size: `128 M` is not a size"),
        ("[region]\nsize = \"M\"", "dormouse.toml:4: region.size: `M` is not a size"),
        ("[region]\nsize = \"+128M\"", "dormouse.toml:4: region.size: `+128M` is not a size"),
        ("[region]\nsize = \"99999999999999999G\"", "dormouse.toml:4: region.size: `99999999999999999G` is not"),
        ("[region]\nsize = \"65M\"", "dormouse.toml:4: region.size: `65M` is not a multiple of 2M"),
        ("[region]\nsize = \"62M\"", "dormouse.toml:4: region.size: `62M` is not a size from 64M to 4G"),
        ("[region]\nsize = \"5G\"", "dormouse.toml:4: region.size: `5G` is not a size from 64M to 4G"),
        ("[region]\naddress = \"14M\"", "dormouse.toml:4: region.address: `14M` is below 16M"),
        ("[region]\naddress = \"17M\"", "dormouse.toml:4: region.address: `17M` is not a multiple of 2M"),
        ("[region]\naddress = \"4194304G\"", "dormouse.toml:4: region.address: a region of 128 MiB at `4194304G`"),
        ("[kernel]\nimage = \"vmlinuz\"", "dormouse.toml:4: kernel.image: `vmlinuz` is not an absolute path"),
        ("[kernel]\ninitramfs = \"\"", "dormouse.toml:4: kernel.initramfs: `` is not an absolute path"),
        ("[kernel]\ninitramfs = \"/a\\nb\"", "dormouse.toml:4: kernel.initramfs: \"/a\\nb\" contains a control"),
        ("[kernel]\narguments = \"a -- b\"", "dormouse.toml:4: kernel.arguments: `--` would hide the arguments"),
        ("[kernel]\narguments = 'a=\"b c'", "dormouse.toml:4: kernel.arguments: `a=\"b c` would hide"),
        ("[kernel]\narguments = \"a\\nb\"", "dormouse.toml:4: kernel.arguments: `\\n` would hide"),
        ("[kernel]\narguments = \"dormouse.mode=save\"", "kernel.arguments: `dormouse.mode=save` is for Dormouse"),
        ("[save]\nlevle = 3", "dormouse.toml:4: save.levle: there is no such key; did you mean save.level?"),
        ("[region]\nlevel = 3", "dormouse.toml:4: region.level: there is no such key; did you mean save.level?"),
        ("[sav]\nlevel = 3", "dormouse.toml:3: sav: there is no such key; did you mean save?"),
        ("[save]\nencryption = 3", "dormouse.toml:4: save.encryption: there is no such key"),
        ("[save]\nlevel = 1\nlevel = 2", "dormouse.toml:5: this is not TOML: duplicate key"),
        ("[save", "dormouse.toml:3: this is not TOML: "),
    ];
    for (rest, expected) in table {
        let message = refusal(&format!("{LEAST}{rest}\n"));
        assert!(message.contains(expected), "{rest:?}\n  found:    {message}\n  expected: {expected}");
    }
}

#[test]
fn checks_the_device() {
    let table = [
        ("vda", "`vda` does not name a device"),
        ("", "`` does not name a device"),
        ("etc/passwd", "`etc/passwd` does not name a device"),
        ("/", "`/` does not name a device"),
        ("/dev/", "`/dev/` does not name a device"),
        ("LABEL=x", "`LABEL=x` does not name a device"),
        ("PARTLABEL=", "`PARTLABEL=` does not name a device"),
        ("UUID=1234", "`1234` is not a UUID"),
        ("UUID=1234@4096", "`1234` is not a UUID"),
        ("UUID=00112233-4455-6677-8899-aabbccddeeff@", "`` is not where an image in a file begins"),
        ("UUID=00112233-4455-6677-8899-aabbccddeeff@0", "`0` is not where an image in a file begins"),
        ("UUID=00112233-4455-6677-8899-aabbccddeeff@4097", "`4097` is not where"),
        ("UUID=00112233-4455-6677-8899-aabbccddeeff@-4096", "`-4096` is not where"),
        ("PARTUUID=nonsense", "`nonsense` is not a partition UUID"),
        ("PARTLABEL=a\\\"b", "contains '\"'"),
        ("PARTLABEL=a\\u0000b", "contains '\\0'"),
    ];
    for (device, expected) in table {
        let message = refusal(&format!("[image]\ndevice = \"{device}\"\n"));
        let place = "dormouse.toml:2: image.device: ";
        assert!(message.starts_with(place) && message.contains(expected), "{device}: {message}");
    }
    for wait in [-1, 601] {
        let message = refusal(&format!("{LEAST}wait = {wait}\n"));
        assert!(message.starts_with(&format!("dormouse.toml:3: image.wait: {wait} is not")), "{message}");
    }
    let file: ImageDevice = "/var/lib/dormouse/image".parse().unwrap();
    assert_eq!(file, ImageDevice::File("/var/lib/dormouse/image".into()));
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    let at: ImageDevice = format!("UUID={uuid}@8192").parse().unwrap();
    assert_eq!(at, ImageDevice::ImageAt { uuid: uuid.parse().unwrap(), offset: 8192 });
    let upper: ImageDevice = "PARTUUID=ABCDEF01-02".parse().unwrap();
    assert_eq!(upper, ImageDevice::PartUuid("abcdef01-02".to_owned()));
}

#[test]
fn the_device_has_no_default() {
    for text in ["", "[image]\nwait = 3\n", "[save]\n"] {
        assert!(refusal(text).starts_with("dormouse.toml: image.device is missing"), "{text}");
    }
    let top = refusal("device = \"/dev/vda\"\n");
    assert_eq!(top, "dormouse.toml:1: device: there is no such key; did you mean image.device?");
    assert!(refusal("image = 3\n").starts_with("dormouse.toml:1: image: invalid type"));
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.toml");
    let error = Policy::load(&missing).unwrap_err();
    assert!(matches!(error, PolicyError::Missing { .. }));
    let message = error.to_string();
    assert!(message.contains("none.toml"), "{message}");
    assert!(matches!(Policy::load(dir.path()), Err(PolicyError::Read { .. })));

    let there = dir.path().join("there.toml");
    fs::write(&there, LEAST).unwrap();
    assert_eq!(Policy::load(&there).unwrap(), parse(LEAST).unwrap());
    fs::write(&there, format!("{LEAST}what = 1\n")).unwrap();
    let message = Policy::load(&there).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}:3: image.what: ", there.display())), "{message}");
}

/// A policy of several files, the one that counts least first.
fn merge(texts: &[(&str, &str)]) -> Result<Policy, PolicyError> {
    Policy::merge("main", texts)
}

#[test]
fn later_files_override_key_by_key() {
    let main = "[image]\ndevice = \"/dev/vda\"\nwait = 3\n[save]\nlevel = 5\n";
    let merged = merge(&[("main", main), ("a", "[save]\ncompression = \"zstd\"\n"), ("b", "[image]\nwait = 4\n")]);
    let all_in_one = "[image]\ndevice = \"/dev/vda\"\nwait = 4\n[save]\nlevel = 5\ncompression = \"zstd\"\n";
    assert_eq!(merged.unwrap(), parse(all_in_one).unwrap());
    // An overridden value may be out of bounds, but must have the type of its key.
    let replaced = merge(&[("main", &format!("{LEAST}wait = 601\n")), ("a", "[image]\nwait = 4\n")]);
    assert_eq!(replaced.unwrap().image.wait, Duration::from_secs(4));
    let no_number = merge(&[("main", &format!("{LEAST}wait = \"\"\n")), ("a", "[image]\nwait = 4\n")]);
    assert!(no_number.unwrap_err().to_string().starts_with("main:3: image.wait: invalid type"));
}

#[test]
fn a_refusal_names_the_file_that_the_value_is_in() {
    let table = [
        ("[save]\nlevel = 1\n", "[save]\n\nlevel = 40\n", "b:3: save.level: 40 is not"),
        ("[save]\nlevel = 40\n", "[pipeline]\nthreads = 1\n", "a:2: save.level: 40 is not"),
        (
            "[save]\nlevle = 4\n",
            "[save]\nlevel = 3\n",
            "a:2: save.levle: there is no such key; did you mean save.level?",
        ),
        ("[save]\nlevel = 4\n", "[sav]\nlevel = 3\n", "b:1: sav: there is no such key"),
        ("[save", "", "a:1: this is not TOML"),
        // Each of them is possible by itself.
        ("[region]\naddress = \"4194176G\"\n", "[region]\nsize = \"128M\"\n", ""),
        (
            "[region]\naddress = \"4294967168M\"\n",
            "[region]\nsize = \"256M\"\n",
            "a:2: region.address: a region of 256 MiB at `4294967168M` ends beyond",
        ),
    ];
    for (a, b, expected) in table {
        let merged = merge(&[("main", LEAST), ("a", a), ("b", b)]);
        let message = merged.err().map_or_else(String::new, |error| error.to_string());
        assert!(message.starts_with(expected) && message.is_empty() == expected.is_empty(), "{a:?} {b:?}: {message}");
    }
    let missing = merge(&[("a", "[image]\nwait = 4\n")]).unwrap_err().to_string();
    assert!(missing.starts_with("main: image.device is missing"), "{missing}");
}

#[test]
fn drop_ins_extend_or_replace_the_main_file() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("dormouse.toml");
    let drop_ins = dir.path().join("dormouse.toml.d");
    fs::create_dir(&drop_ins).unwrap();
    assert!(matches!(Policy::load(&main), Err(PolicyError::Missing { .. })));
    fs::write(drop_ins.join("10-device.toml"), LEAST).unwrap();
    assert_eq!(Policy::load(&main).unwrap(), parse(LEAST).unwrap());
    fs::write(&main, "[image]\ndevice = \"/dev/vdb\"\nwait = 7\n").unwrap();
    assert_eq!(Policy::load(&main).unwrap(), parse(&format!("{LEAST}wait = 7\n")).unwrap());
    fs::write(drop_ins.join("20-bad.toml"), "[save]\nlevel = 40\n").unwrap();
    let message = Policy::load(&main).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}/20-bad.toml:2: save.level: ", drop_ins.display())), "{message}");
    fs::remove_file(drop_ins.join("20-bad.toml")).unwrap();
    std::os::unix::fs::symlink("nowhere", drop_ins.join("20-bad.toml")).unwrap();
    let message = Policy::load(&main).unwrap_err().to_string();
    assert!(message.contains("20-bad.toml: cannot read"), "{message}");
}
