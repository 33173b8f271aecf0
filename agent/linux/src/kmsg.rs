//! The log of all four kernels: records in the kernel's own log, from where they reach every console.
//!
//! The kernel log survives what a terminal does not: A's is part of the saved memory, and B's and D's go to
//! the serial line with their kernel's own words in between.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The kernel cuts a record from user space at `LOG_LINE_MAX` less its prefix (kernel/printk/printk.c).
const RECORD_MAX: usize = 976;

struct KernelLog {
    kmsg: OnceLock<File>,
}

static LOGGER: KernelLog = KernelLog { kmsg: OnceLock::new() };

/// Sends the `log` macros to `/dev/kmsg`, or to stderr where that cannot be opened.
///
/// Safe to call again: PID 1 does so once `/dev` is mounted.
pub fn init() {
    if LOGGER.kmsg.get().is_none()
        && let Ok(kmsg) = OpenOptions::new().write(true).open("/dev/kmsg")
    {
        let _ = LOGGER.kmsg.set(kmsg);
    }
    // A second call finds the logger set already, which is all that it wants.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Debug);
}

impl Log for KernelLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Debug
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        for line in text.lines() {
            let entry = entry(record.level(), line);
            // A log that cannot be written has nowhere to say so. One write is one record.
            let _ = match self.kmsg.get() {
                Some(mut kmsg) => kmsg.write_all(entry.as_bytes()),
                None => writeln!(std::io::stderr(), "dormouse: {line}"),
            };
        }
    }

    fn flush(&self) {}
}

/// A kernel log record: syslog priority, our name, the text, cut to what the kernel takes.
fn entry(level: Level, line: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 5,
        Level::Debug | Level::Trace => 6,
    };
    let mut entry = format!("<{priority}>dormouse: {line}");
    if entry.len() >= RECORD_MAX {
        let cut = (0..RECORD_MAX).rev().find(|at| entry.is_char_boundary(*at)).unwrap_or(0);
        entry.truncate(cut);
    }
    entry.push('\n');
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_its_priority_and_fits() {
        assert_eq!(entry(Level::Info, "save/start: here"), "<5>dormouse: save/start: here\n");
        let long = entry(Level::Error, &"é".repeat(2000));
        assert!(long.len() <= RECORD_MAX && long.starts_with("<3>dormouse: é") && long.ends_with("é\n"));
    }
}
