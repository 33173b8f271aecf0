//! The kernel command line: what a boot loader, or whoever sits at it, may have written.

use dormouse::handoff::arguments::{BootSwitches, LoaderArguments};
use dormouse::handoff::inherited::inherited;
use dormouse_linux::kernel_args::{arguments, join};

/// Reads any text as a command line.
pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };

    let is_for_the_kernel = !arguments(text).any(|argument| argument.name == "--");
    let switches = BootSwitches::parse(text);
    // What is appended holds.
    if is_for_the_kernel && arguments(text).all(|argument| argument.is_closed()) {
        let off = BootSwitches::parse(&format!("{text} dormouse=off noresume"));
        assert_eq!(off, BootSwitches { off: true, noresume: true, mistake: switches.mistake }, "{text:?}");
    }

    // B finds the way back into A however wrong the rest is.
    let found = LoaderArguments::parse(text);
    assert_eq!(LoaderArguments::parse(&found.to_string()), found);
    assert!(found.way_back().is_none_or(|way| way.entry != 0 && Some(way.bridge) == found.bridge));

    // What is passed on is A's own, and is passed on again by the next kernel.
    let passed_on = inherited(text);
    assert!(passed_on.iter().all(|raw| arguments(text).any(|argument| argument.raw == *raw && argument.is_closed())));
    assert_eq!(inherited(&join(passed_on.iter().copied())), passed_on);
}
