//! The table at the end of the demonstration.

use dormouse::handoff::report::{Half, Report};
use dormouse_linux::units::mib;
use dormouse_tests::workload::report::Verdict;

const PAGE: u64 = 4096;

/// One hibernation: a column of the table.
#[derive(Debug)]
pub(crate) struct Row {
    /// What the agent reports.
    pub(crate) report: Report,
    /// What the workload proves.
    pub(crate) proofs: Vec<Verdict>,
    /// From the command to the power-off, in seconds, where the power went off.
    pub(crate) to_power_off: Option<f64>,
    /// From the power-on (or the command) to the workload's first sign of life, in seconds.
    pub(crate) to_first_tick: Option<f64>,
    /// Kernels that were booted between the command and the first sign of life.
    pub(crate) kernels: usize,
}

impl Row {
    /// Every proof holds.
    pub(crate) fn holds(&self) -> bool {
        self.proofs.iter().all(|proof| proof.holds)
    }
}

/// A line of the table: its name and how it reads a value.
type Line = (&'static str, fn(&Row) -> String);

const LINES: &[Line] = &[
    ("image size", |row| mib(row.report.image_bytes)),
    ("pages in all", |row| row.report.ram_pages.to_string()),
    ("pages stored", |row| row.report.stored_pages.to_string()),
    ("pages zero", |row| row.report.zero_pages.to_string()),
    ("pages left out", |row| row.report.omitted_pages.to_string()),
    ("ratio, memory to image", |row| ratio(row.report.ram_pages, row.report.image_bytes)),
    ("ratio, stored to image", |row| ratio(row.report.stored_pages, row.report.image_bytes)),
    ("command to power-off", |row| seconds(row.to_power_off)),
    ("power-on to first tick", |row| seconds(row.to_first_tick.filter(|_| row.to_power_off.is_some()))),
    ("command to first tick", |row| seconds(row.to_first_tick.filter(|_| row.to_power_off.is_none()))),
    ("kernels on the way", |row| row.kernels.to_string()),
    ("save in B", |row| half(Some(&row.report.save), |half| format!("{:.2} s", half.seconds))),
    ("restore in D", |row| half(row.report.restore.as_ref(), |half| format!("{:.2} s", half.seconds))),
    ("threads in B", |row| half(Some(&row.report.save), |half| half.threads.to_string())),
    ("threads in D", |row| half(row.report.restore.as_ref(), |half| half.threads.to_string())),
    ("agent's peak in B", |row| half(Some(&row.report.save), |half| kib(half.peak_kib))),
    ("agent's peak in D", |row| half(row.report.restore.as_ref(), |half| kib(half.peak_kib))),
    ("least available in B", |row| half(Some(&row.report.save), |half| kib(half.least_available_kib))),
    ("least available in D", |row| half(row.report.restore.as_ref(), |half| kib(half.least_available_kib))),
];

/// Prints the columns side by side, then each proof.
pub(crate) fn print(rows: &[Row]) {
    println!();
    for (name, value) in LINES {
        let values: Vec<String> = rows.iter().map(value).collect();
        if values.iter().any(|value| value != "-") {
            let values: Vec<String> = values.iter().map(|value| format!("{value:>12}")).collect();
            println!("{name:24}{}", values.join(""));
        }
    }
    println!();
    for (number, row) in (1..).zip(rows) {
        for proof in &row.proofs {
            let cycle = if rows.len() == 1 { String::new() } else { format!("cycle {number}: ") };
            println!("{:4}{cycle}{} ({})", if proof.holds { "yes" } else { "NO" }, proof.claim, proof.detail);
        }
    }
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2} s"))
}

fn kib(kib: u64) -> String {
    mib(kib << 10)
}

fn half(half: Option<&Half>, show: impl Fn(&Half) -> String) -> String {
    half.map_or_else(|| "-".to_owned(), show)
}

/// Bytes of this many pages for each byte of the image.
fn ratio(pages: u64, image_bytes: u64) -> String {
    match (pages * PAGE * 100).checked_div(image_bytes) {
        Some(hundredths) => format!("{}.{:02}", hundredths / 100, hundredths % 100),
        None => "-".to_owned(),
    }
}
