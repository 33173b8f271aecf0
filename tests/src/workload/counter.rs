//! A process that counts ten times a second, into a file and on the console.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::DIRECTORY;
use super::report::Counter;
use super::role::{self, Answer};

const PERIOD: Duration = Duration::from_millis(100);

/// Each of this many ticks is written to the console.
const CONSOLE_EVERY: u64 = 10;

/// The wall clock went on by this much between two ticks: the machine was away in the meantime.
const AWAY: Duration = Duration::from_millis(700);

/// How a tick's line on the console begins; its number follows.
pub const CONSOLE_MARK: &str = "workload: tick ";

/// Counts, for ever.
///
/// # Errors
/// Fails where its file cannot be written.
pub fn run() -> Result<()> {
    let path = Path::new(DIRECTORY).join("counter");
    let count = Arc::new(Mutex::new(0_u64));
    tick(&count, &path)?;
    std::thread::spawn({
        let (count, path) = (Arc::clone(&count), path.clone());
        move || {
            let mut last = SystemTime::now();
            loop {
                std::thread::sleep(PERIOD);
                let now = SystemTime::now();
                let was_away = now.duration_since(last).is_ok_and(|gap| gap > AWAY);
                last = now;
                match tick(&count, &path) {
                    // At once after a resume, because the time to this line is the time to a machine that works.
                    Ok(count) if was_away || count.is_multiple_of(CONSOLE_EVERY) => announce(count),
                    Ok(_) => {}
                    Err(error) => eprintln!("workload: {error:#}"),
                }
            }
        }
    });
    role::serve(Path::new(DIRECTORY), "counter", || {
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let file = fs::read_to_string(&path).unwrap_or_default();
        let fault =
            (file != count.to_string()).then(|| format!("{} holds {file:?}, this process {count}", path.display()));
        Answer { evidence: Counter { count: *count }, fault }
    })
}

fn tick(count: &Mutex<u64>, path: &Path) -> Result<u64> {
    let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
    *count += 1;
    fs::write(path, count.to_string()).with_context(|| format!("{}: cannot be written", path.display()))?;
    Ok(*count)
}

fn announce(count: u64) {
    // One write, so that it stays one line between the kernel's. Without a console nobody reads it.
    let line = format!("{CONSOLE_MARK}{count}\n");
    let _ = File::options().write(true).open("/dev/console").and_then(|mut file| file.write_all(line.as_bytes()));
}
