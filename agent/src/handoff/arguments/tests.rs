//! What command lines hold for Dormouse, read and written.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn switches(off: bool, noresume: bool) -> BootSwitches {
    BootSwitches { off, noresume, mistake: None }
}

#[test]
fn reads_switches() {
    let parsed = BootSwitches::parse("quiet dormouse=off noresume\n");
    assert_eq!(parsed, switches(true, true));
    // What the loader wrote is not for a boot.
    let line = "dormouse.bridge=0x8ffc000 dormouse.entry=0x0000000012345678 dormouse=off";
    assert_eq!(BootSwitches::parse(line), switches(true, false));
}

#[test]
fn ordinary_command_line_has_no_switches() {
    let line = "BOOT_IMAGE=/vmlinuz root=UUID=x ro resume=/dev/vda2 xdormouse.y=z nodormouse noresumes -- y";
    assert_eq!(BootSwitches::parse(line), BootSwitches::default());
    assert_eq!(BootSwitches::parse(""), BootSwitches::default());
    assert_eq!(BootSwitches::parse("noresume=1x"), switches(false, true));
}

#[test]
fn last_switch_wins() {
    assert_eq!(BootSwitches::parse("dormouse=off dormouse=on"), BootSwitches::default());
    assert!(BootSwitches::parse("dormouse=on \"dormouse=off\"").off);
}

#[test]
fn arguments_after_two_dashes_are_for_init() {
    assert_eq!(BootSwitches::parse("-- dormouse=off noresume dormouse.x=y"), BootSwitches::default());
}

#[test]
fn names_the_first_mistake_and_reads_on() {
    let table = [
        ("dormouse=maybe", ArgumentError::Switch("maybe".into())),
        ("dormouse", ArgumentError::NoValue("dormouse".into())),
        ("dormouse.of", ArgumentError::Unknown("dormouse.of".into())),
        ("dormouse.image=/dev/vda", ArgumentError::Unknown("dormouse.image=/dev/vda".into())),
    ];
    for (line, expected) in table {
        assert!(expected.to_string().starts_with("kernel argument"), "{expected}");
        let parsed = BootSwitches::parse(&format!("quiet {line} dormouse.later dormouse=off noresume"));
        assert_eq!(parsed, BootSwitches { mistake: Some(expected), ..switches(true, true) });
        assert!(!BootSwitches::parse(line).forbids());
    }
}

#[test]
fn way_back_is_found_whatever_else_is_wrong() {
    let way = Some(WayBack { entry: 0x1234_5678, bridge: 0x8ff_8000 });
    for line in [
        "dormouse.entry=0x0000000012345678 dormouse.bridge=0x8ff8000",
        "dormouse.then=never dormouse dormouse.entry=0x0000000012345678 dormouse.bridge=0x8ff8000",
        "dormouse.bridge=0x1 -- dormouse.bridge=0x8ff8000 \"dormouse.entry=0x0000000012345678\"",
    ] {
        assert_eq!(LoaderArguments::parse(line).way_back(), way, "{line}");
    }
}

#[test]
fn entry_that_was_not_filled_in_is_not_a_way_back() {
    for line in [
        "dormouse.entry=0x0000000000000000 dormouse.bridge=0x8ff8000",
        "dormouse.entry=0x10000000000000000 dormouse.bridge=0x8ff8000",
        "dormouse.entry=0x+1 dormouse.bridge=0x8ff8000",
        "dormouse.entry=12345678 dormouse.bridge=0x8ff8000",
        "dormouse.entry dormouse.bridge=0x8ff8000",
        "dormouse.entry=0x0000000012345678 dormouse.bridge=0x",
        "dormouse.entry=0x0000000012345678",
        "dormouse.bridge=0x8ff8000",
        "",
    ] {
        assert_eq!(LoaderArguments::parse(line).way_back(), None, "{line}");
    }
}

#[test]
fn entry_has_sixteen_digits_at_the_end() {
    let line = LoaderArguments { entry: Some(0), bridge: Some(0x8ff_8000) };
    assert_eq!(line.to_string(), "dormouse.bridge=0x8ff8000 dormouse.entry=0x0000000000000000");
}

proptest! {
    #[test]
    fn loader_arguments_are_read_back(entry: Option<u64>, bridge: Option<u64>) {
        let written = LoaderArguments { entry, bridge };
        prop_assert_eq!(LoaderArguments::parse(&format!("console=ttyS0 {written} quiet")), written);
    }

    #[test]
    fn text_never_panics(text in any::<String>()) {
        let _ = BootSwitches::parse(&text);
        let _ = LoaderArguments::parse(&text);
    }

    #[test]
    fn values_never_panic(name in "dormouse(\\.(bridge|entry))?", value in any::<String>()) {
        let _ = BootSwitches::parse(&format!("{name}={value}"));
        let _ = LoaderArguments::parse(&format!("{name}={value}"));
    }
}
