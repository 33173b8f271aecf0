//! Child processes that live for moments: each is handed a number through a pipe, hands back another one that follows
//! from it, and ends with a status that follows from it too.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::random::Random;
use crate::workload::pattern;

const REST: Duration = Duration::from_millis(10);

/// Children that exist at the same time.
const ALIVE: usize = 4;

/// The longest that a child waits in the middle.
const LONGEST_MILLIS: u64 = 60;

/// Starts children, for ever.
///
/// # Errors
/// Fails where this program's own path is unknown.
pub fn run(seed: u64) -> Result<()> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut children = VecDeque::new();
    let mut random = Random::new(seed);
    super::run("children", REST, move || {
        let mut command = Command::new(&program);
        command.args(["child", "--millis", &random.within(0..=LONGEST_MILLIS).to_string()]);
        children.push_back(start(&mut command, random.word())?);
        if children.len() < ALIVE {
            return Ok(());
        }
        children.pop_front().map_or(Ok(()), check)
    })
}

/// What a child does: reads the number, waits, and writes what follows from it. Returns the status that it must end
/// with.
///
/// # Errors
/// Fails where nobody is at the other end.
pub fn child(mut input: impl Read, mut output: impl Write, rest: Duration) -> io::Result<u8> {
    let mut number = [0; 8];
    input.read_exact(&mut number)?;
    std::thread::sleep(rest);
    let number = u64::from_le_bytes(number);
    output.write_all(&pattern::word(number, 0).to_le_bytes())?;
    output.flush()?;
    Ok(status(number))
}

/// A status that is not one of those that failures end with.
fn status(number: u64) -> u8 {
    let [lowest, ..] = number.to_le_bytes();
    10 + lowest % 100
}

/// Starts a child and hands it `number`.
fn start(command: &mut Command, number: u64) -> Result<(Child, u64)> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a child cannot be started")?;
    // Dropped at the end of the statement, which closes the pipe.
    child.stdin.take().context("the child's input")?.write_all(&number.to_le_bytes()).context("the child's input")?;
    Ok((child, number))
}

/// Waits for the child's end, which must be the right one.
fn check((child, number): (Child, u64)) -> Result<()> {
    let pid = child.id();
    let output = child.wait_with_output().with_context(|| format!("the child {pid}"))?;
    let expected = i32::from(status(number));
    ensure!(output.status.code() == Some(expected), "the child {pid}: {} in place of {expected}", output.status);
    let answer = pattern::word(number, 0).to_le_bytes();
    ensure!(output.stdout == answer, "the child {pid} printed {:02x?} in place of {answer:02x?}", output.stdout);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_child_says_what_follows_from_its_number() {
        let mut printed = Vec::new();
        let status = child(&77_u64.to_le_bytes()[..], &mut printed, Duration::ZERO).unwrap();
        assert_eq!((status, printed.as_slice()), (87, &pattern::word(77, 0).to_le_bytes()[..]));
        assert!(child(&b"short"[..], io::sink(), Duration::ZERO).is_err());
    }

    #[test]
    fn another_answer_or_another_status_is_an_error() {
        let ended = |script: &str| {
            let mut command = Command::new("sh");
            check(start(command.args(["-c", script]), 0).unwrap()).map_err(|error| error.to_string())
        };
        let answer: String = pattern::word(0, 0).to_le_bytes().iter().map(|byte| format!("\\{byte:03o}")).collect();
        assert_eq!(ended(&format!("cat >/dev/null; printf '{answer}'; exit 10")), Ok(()));
        assert!(ended(&format!("cat >/dev/null; printf '{answer}'; exit 11")).is_err());
        assert!(ended("cat >/dev/null; exit 10").unwrap_err().contains("printed []"));
        assert!(ended("cat >/dev/null; kill -9 $$").unwrap_err().contains("in place of 10"));
    }
}
