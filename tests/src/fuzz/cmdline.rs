//! The kernel command line: what a boot loader, or whoever sits at it, may have written.

use dormouse::handoff::arguments::Cmdline;
use dormouse::handoff::inherited::inherited;
use dormouse::handoff::mode::{Evidence, decide, way_back};
use dormouse_linux::kernel_args::{arguments, join};

/// Reads any text as a command line.
pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };

    let parsed = Cmdline::parse(text);
    match &parsed {
        Ok(cmdline) => {
            let written = cmdline.to_string();
            assert_eq!(Cmdline::parse(&written).as_ref(), Ok(cmdline), "{written:?}");
            for evidence in [Evidence::default(), Evidence { vmcore: true, session: true }] {
                let _ = decide(cmdline, evidence).map_err(|error| error.to_string());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }

    // B finds the way back into A however wrong the rest is, and the same where nothing is wrong.
    let way = Cmdline::parse_way_back(text);
    if let Ok(cmdline) = &parsed
        && !arguments(text).any(|argument| argument.name == "--")
    {
        assert_eq!(way_back(&way), way_back(cmdline));
    }

    // What is passed on is A's own, and is passed on again by the next kernel.
    let passed_on = inherited(text);
    assert!(passed_on.iter().all(|raw| arguments(text).any(|argument| argument.raw == *raw && argument.is_closed())));
    assert_eq!(inherited(&join(passed_on.iter().copied())), passed_on);
}
