//! Tables of device-mapper's: what a kernel answers, and the texts in it.

use dormouse_linux::block::below::pieces;
use dormouse_sys::device_mapper::{Target, targets};

/// Reads any bytes as the kernel's answer, and any text as a table: a line for each target, with its start, its length
/// and its kind before its arguments. The first line has the range that is looked for.
pub(super) fn run(input: &[u8]) {
    if let Ok(found) = targets(input) {
        // Each takes its place in the answer.
        assert!(found.len() <= input.len() / 40, "{} targets in {} bytes", found.len(), input.len());
        found.iter().for_each(check);
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines = text.lines();
    let numbers = |line: &str| -> Option<(u64, u64, String)> {
        let mut words = line.splitn(3, ' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next().unwrap_or_default().to_owned()))
    };
    let Some((offset, len, _)) = lines.next().and_then(numbers) else { return };
    let table: Vec<Target> = lines
        .filter_map(|line| {
            let (start, len, rest) = numbers(line)?;
            let (kind, arguments) = rest.split_once(' ').unwrap_or((&rest, ""));
            Some(Target::new(start, len, kind, arguments))
        })
        .collect();
    table.iter().for_each(check);
    let Some(found) = pieces(&table, (offset, len)) else { return };
    // All of the range, once, in order, each piece within its target.
    let mut next = offset;
    for (target, (within, len)) in &found {
        assert!(*len > 0 && target.start * 512 + within == next, "{text:?}");
        assert!(within + len <= target.len * 512, "{text:?}");
        next += len;
    }
    assert_eq!(next - offset, len, "{text:?}");
}

/// What a target leads to is that of a kind that gives each sector one sector of another device.
fn check(target: &Target) {
    assert!(target.lower.is_none() || ["linear", "crypt"].contains(&target.kind.as_str()));
    assert!(!target.is_authenticated || target.kind == "crypt");
    if let Some((device, _)) = &target.lower {
        let is_number = |text: &str| text.parse::<u32>().is_ok();
        assert!(
            device.split_once(':').is_some_and(|(major, minor)| is_number(major) && is_number(minor)),
            "{device:?}"
        );
    }
}
