//! What the command line says to Dormouse, read and written.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use dormouse_image::ImageDevice;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn session() -> Uuid {
    "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap()
}

#[test]
fn every_argument_is_read() {
    let line = "quiet dormouse.mode=restore dormouse.image=/dev/vda dormouse.then=reboot \
                dormouse.bridge=0x8ffc000 \
                dormouse.entry=0x0000000012345678 dormouse.session=00112233-4455-6677-8899-aabbccddeeff \
                dormouse=off noresume\n";
    let expected = Cmdline {
        mode: Some(BootMode::Restore),
        image: Some(ImageDevice::Path(PathBuf::from("/dev/vda"))),
        then: Some(Then::Reboot),
        bridge: Some(0x8ff_c000),
        entry: Some(0x1234_5678),
        session: Some(session()),
        off: true,
        noresume: true,
    };
    assert_eq!(Cmdline::parse(line), Ok(expected));
}

#[test]
fn an_ordinary_command_line_says_nothing() {
    let line = "BOOT_IMAGE=/vmlinuz root=UUID=x ro resume=/dev/vda2 xdormouse.mode=save nodormouse noresume=1x -- y";
    let said = Cmdline { noresume: true, ..Cmdline::default() };
    assert_eq!(Cmdline::parse(line), Ok(said));
    assert_eq!(Cmdline::parse(""), Ok(Cmdline::default()));
}

#[test]
fn the_last_one_wins() {
    let parsed = Cmdline::parse("dormouse.then=reboot dormouse=off dormouse.then=return dormouse=on").unwrap();
    assert_eq!(parsed, Cmdline { then: Some(Then::Return), ..Cmdline::default() });
}

#[test]
fn what_follows_two_dashes_is_for_init() {
    assert_eq!(Cmdline::parse("-- dormouse.mode=save noresume dormouse.then=never"), Ok(Cmdline::default()));
}

#[test]
fn a_quoted_label_is_read() {
    let parsed = Cmdline::parse("dormouse.image=\"PARTLABEL=my image\" quiet").unwrap();
    assert_eq!(parsed.image, Some(ImageDevice::PartLabel("my image".to_owned())));
}

#[test]
fn the_entry_always_has_sixteen_digits() {
    let line = Cmdline { entry: Some(0), ..Cmdline::default() };
    assert_eq!(line.to_string(), "dormouse.entry=0x0000000000000000");
}

#[test]
fn bad_values_name_the_argument_and_the_text() {
    let table = [
        ("dormouse.mode=sleep", "dormouse.mode: `sleep` is none of save, restore"),
        ("dormouse=maybe", "dormouse: `maybe` is none of on, off"),
        ("dormouse.image=vda", "dormouse.image: `vda` does not name a device"),
        ("dormouse.image=UUID=12", "dormouse.image: `12` is not a UUID"),
        ("dormouse.then=sleep", "dormouse.then: `sleep` is none of \"poweroff\""),
        ("dormouse.bridge=12", "dormouse.bridge: `12` is not a hexadecimal number"),
        ("dormouse.bridge=0x", "`0x` is not a hexadecimal number"),
        ("dormouse.bridge=0x+1", "`0x+1` is not a hexadecimal number"),
        ("dormouse.entry=0x10000000000000000", "dormouse.entry: `0x10000000000000000` is not"),
        ("dormouse.session=1", "dormouse.session: `1` is not a UUID"),
        ("dormouse.mode", "`dormouse.mode` needs a value"),
        ("dormouse", "`dormouse` needs a value"),
        ("dormouse.moed=save", "`dormouse.moed=save`: there is no such argument"),
    ];
    for (line, expected) in table {
        let message = Cmdline::parse(line).unwrap_err().to_string();
        assert!(message.starts_with("kernel argument") && message.contains(expected), "{line}: {message}");
    }
}

fn image() -> impl Strategy<Value = ImageDevice> {
    prop_oneof![
        any::<[u8; 16]>().prop_map(|bytes| ImageDevice::ImageUuid(Uuid(bytes))),
        (any::<[u8; 16]>(), 1_u64..1 << 52)
            .prop_map(|(bytes, blocks)| ImageDevice::ImageAt { uuid: Uuid(bytes), offset: blocks * 4096 }),
        "/(etc|var)/[a-z0-9/ =-]{0,20}[a-z]".prop_map(|path| ImageDevice::File(PathBuf::from(path))),
        "[0-9a-f]{8}-[0-9a-f]{2}".prop_map(ImageDevice::PartUuid),
        "[^\"\\pC]{1,36}".prop_map(ImageDevice::PartLabel),
        "/dev/[a-z0-9/ =-]{0,20}[a-z]".prop_map(|path| ImageDevice::Path(PathBuf::from(path))),
    ]
}

fn any_cmdline() -> impl Strategy<Value = Cmdline> {
    let mode = prop_oneof![Just(BootMode::Save), Just(BootMode::Restore)];
    let then = prop::sample::select(Then::ALL.to_vec());
    let words = (option::of(mode), option::of(image()), option::of(then));
    let places = (any::<Option<u64>>(), any::<Option<u64>>());
    let session = option::of(any::<[u8; 16]>().prop_map(Uuid));
    (words, places, session, any::<bool>(), any::<bool>()).prop_map(|(words, places, session, off, noresume)| {
        let ((mode, image, then), (bridge, entry)) = (words, places);
        Cmdline { mode, image, then, bridge, entry, session, off, noresume }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(cmdline in any_cmdline()) {
        let line = format!("console=ttyS0 {cmdline} quiet");
        prop_assert_eq!(Cmdline::parse(&line), Ok(cmdline));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        let _ = Cmdline::parse(&text);
    }

    #[test]
    fn no_value_makes_the_parser_panic(
        name in "(dormouse\\.(mode|image|then|region|low|bridge|entry|session)|dormouse)",
        value in any::<String>(),
    ) {
        let _ = Cmdline::parse(&format!("{name}={value}"));
    }
}

#[test]
fn the_way_back_is_found_in_a_line_that_is_refused() {
    let line = "dormouse.then=never dormouse.entry=0x0000000012345678 dormouse.bridge=0x8ff8000";
    assert!(Cmdline::parse(line).is_err());
    let way = Cmdline::parse_way_back(line);
    assert_eq!((way.entry, way.bridge), (Some(0x1234_5678), Some(0x8ff_8000)));
    assert_eq!(Cmdline::parse_way_back("dormouse.entry=x"), Cmdline::default());
}
