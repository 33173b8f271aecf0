//! Where the time of a hibernation goes: what the kernels of a guest say on its console, in stages.

use std::time::Instant;

use dormouse_tests::console::Line;
use dormouse_tests::cycle;

/// What a machine does at a time, from the command to the first sign of life, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The session's kernel: from the command to the load, or to the first page written.
    Prepare,
    LoadB,
    EnterB,
    ReadyB,
    Write,
    PowerOff,
    /// What runs before the first kernel after power-on.
    Firmware,
    BootC,
    LoadD,
    BootD,
    ReadyD,
    Read,
    Wake,
    /// The session reads its files again.
    Reread,
}

impl Stage {
    pub(crate) const ALL: [Stage; 14] = [
        Stage::Prepare,
        Stage::LoadB,
        Stage::EnterB,
        Stage::ReadyB,
        Stage::Write,
        Stage::PowerOff,
        Stage::Firmware,
        Stage::BootC,
        Stage::LoadD,
        Stage::BootD,
        Stage::ReadyD,
        Stage::Read,
        Stage::Wake,
        Stage::Reread,
    ];

    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stage::Prepare => "the session prepares",
            Stage::LoadB => "B is loaded",
            Stage::EnterB => "devices stop, B starts or goes on",
            Stage::ReadyB => "B finds disk and memory",
            Stage::Write => "memory is written",
            Stage::PowerOff => "commit, power off",
            Stage::Firmware => "firmware, boot loader",
            Stage::BootC => "kernel C boots",
            Stage::LoadD => "C decides, loads D",
            Stage::BootD => "kernel D boots",
            Stage::ReadyD => "D finds disk, verifies",
            Stage::Read => "memory is read",
            Stage::Wake => "the session wakes",
            Stage::Reread => "files are read again",
        }
    }

    /// Its column in a table of comma-separated values.
    pub(crate) fn column(self) -> &'static str {
        match self {
            Stage::Prepare => "prepare_s",
            Stage::LoadB => "load_b_s",
            Stage::EnterB => "enter_b_s",
            Stage::ReadyB => "ready_b_s",
            Stage::Write => "write_s",
            Stage::PowerOff => "power_off_s",
            Stage::Firmware => "firmware_s",
            Stage::BootC => "boot_c_s",
            Stage::LoadD => "load_d_s",
            Stage::BootD => "boot_d_s",
            Stage::ReadyD => "ready_d_s",
            Stage::Read => "read_s",
            Stage::Wake => "wake_s",
            Stage::Reread => "files_s",
        }
    }

    /// The stage that this line begins after this one.
    fn after(self, line: &Line) -> Option<Stage> {
        /// What Dormouse's kernels print.
        const DORMOUSE: [(&str, Stage); 12] = [
            ("hibernate/load", Stage::LoadB),
            ("hibernate/jump", Stage::EnterB),
            ("save/start", Stage::ReadyB),
            ("save/write", Stage::Write),
            ("save/commit", Stage::PowerOff),
            ("resume/check", Stage::LoadD),
            ("resume/jump", Stage::BootD),
            ("restore/start", Stage::ReadyD),
            ("restore/verify", Stage::ReadyD),
            ("restore/write", Stage::Read),
            ("restore/consume", Stage::Wake),
            ("restore/jump", Stage::Wake),
        ];
        /// What the kernel's own hibernation prints (kernel/power/swap.c, Linux 6.12 and 7.2).
        const KERNEL: [(&str, Stage); 6] = [
            ("PM: Compressing and saving image data", Stage::Write),
            ("PM: Saving image data pages", Stage::Write),
            ("PM: Image saving done", Stage::PowerOff),
            ("PM: Loading and decompressing image data", Stage::Read),
            ("PM: Loading image data pages", Stage::Read),
            ("PM: Image loading done", Stage::Wake),
        ];
        let text = &line.text;
        if let Some((_, phase)) = text.split_once("dormouse: ") {
            return DORMOUSE.iter().find(|(mark, _)| phase.starts_with(mark)).map(|(_, stage)| *stage);
        }
        if self == Stage::Firmware && cycle::is_kernel_start(line) {
            return Some(Stage::BootC);
        }
        KERNEL.iter().find(|(mark, _)| text.contains(mark)).map(|(_, stage)| *stage)
    }
}

/// Stages with the time at which each began.
#[derive(Debug, Clone)]
pub(crate) struct Timeline {
    stages: Vec<(Stage, Instant)>,
}

impl Timeline {
    pub(crate) fn begin(stage: Stage) -> Timeline {
        Timeline { stages: vec![(stage, Instant::now())] }
    }

    /// Follows the console.
    pub(crate) fn look(&mut self, line: &Line) {
        let Some(last) = self.stages.last_mut() else { return };
        let Some(next) = last.0.after(line) else { return };
        if next == Stage::ReadyD && last.0 == Stage::BootC {
            // The kernel that the boot loader started was D.
            last.0 = Stage::BootD;
        }
        if next > last.0 {
            self.stages.push((next, line.at));
        }
    }

    /// The first stage has begun only at `begin`.
    pub(crate) fn begun_at(mut self, begin: Instant) -> Timeline {
        if let Some(first) = self.stages.first_mut() {
            first.1 = begin;
        }
        self
    }

    /// The stages that took any time, each with its seconds, the last one until `end`.
    pub(crate) fn seconds_until(&self, end: Instant) -> Vec<(Stage, f64)> {
        let ends = self.stages.iter().skip(1).map(|(_, at)| *at).chain([end]);
        let seconds = |((stage, begin), end): (&(Stage, Instant), Instant)| {
            (*stage, end.saturating_duration_since(*begin).as_secs_f64())
        };
        self.stages.iter().zip(ends).map(seconds).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The stages of a console whose lines come a second after one another.
    fn stages(first: Stage, lines: &[&str]) -> Vec<(Stage, f64)> {
        let mut timeline = Timeline::begin(first);
        let begin = timeline.stages[0].1;
        let mut at = begin;
        for text in lines {
            at += Duration::from_secs(1);
            timeline.look(&Line { at, text: (*text).to_owned() });
        }
        timeline.seconds_until(at + Duration::from_secs(1))
    }

    #[test]
    fn a_save_and_what_came_before_it() {
        let lines = [
            "[ 1.0] dormouse: hibernate/prepare: /dev/vda",
            "[ 2.0] dormouse: hibernate/load: 128 MiB",
            "[ 3.0] dormouse: hibernate/jump: to B",
            "[ 0.0] Linux version 6.12",
            "[ 1.0] dormouse: save/start: kernel B is up",
            "[ 1.0] dormouse: save/write: 2 threads",
            "[ 2.0] dormouse: save/write: 50 %",
            "[ 3.0] dormouse: save/commit: durable",
            "[ 3.0] dormouse: save/end: power off",
        ];
        let expected = [
            (Stage::Prepare, 2.0),
            (Stage::LoadB, 1.0),
            (Stage::EnterB, 2.0),
            (Stage::ReadyB, 1.0),
            (Stage::Write, 2.0),
            (Stage::PowerOff, 2.0),
        ];
        assert_eq!(stages(Stage::Prepare, &lines), expected);
    }

    #[test]
    fn a_resume_with_and_without_a_kernel_between() {
        let through_c = [
            "[ 0.0] Linux version 6.12",
            "[ 1.0] dormouse: resume/check: /dev/vda",
            "[ 1.0] dormouse: resume/load: D",
            "[ 1.0] dormouse: resume/jump: to D",
            "[ 0.0] Linux version 6.12",
            "[ 1.0] dormouse: restore/start: kernel D is up",
            "[ 1.0] dormouse: restore/write: 2 threads",
            "[ 1.0] dormouse: restore/consume: durable",
            "[ 1.0] dormouse: restore/jump: to A",
        ];
        let expected = [
            (Stage::Firmware, 1.0),
            (Stage::BootC, 1.0),
            (Stage::LoadD, 2.0),
            (Stage::BootD, 2.0),
            (Stage::ReadyD, 1.0),
            (Stage::Read, 1.0),
            (Stage::Wake, 2.0),
        ];
        assert_eq!(stages(Stage::Firmware, &through_c), expected);
        let direct = [through_c[0], through_c[5], through_c[6], through_c[7]];
        let expected =
            [(Stage::Firmware, 1.0), (Stage::BootD, 1.0), (Stage::ReadyD, 1.0), (Stage::Read, 1.0), (Stage::Wake, 1.0)];
        assert_eq!(stages(Stage::Firmware, &direct), expected);
    }

    #[test]
    fn the_kernels_own() {
        let save =
            ["PM: hibernation: entry", "PM: Compressing and saving image data (9 pages)...", "PM: Image saving done"];
        let expected = [(Stage::Prepare, 2.0), (Stage::Write, 1.0), (Stage::PowerOff, 1.0)];
        assert_eq!(stages(Stage::Prepare, &save), expected);
        let resume =
            ["Linux version 6.12", "PM: Loading and decompressing image data (9 pages)...", "PM: Image loading done"];
        let expected = [(Stage::Firmware, 1.0), (Stage::BootC, 1.0), (Stage::Read, 1.0), (Stage::Wake, 1.0)];
        assert_eq!(stages(Stage::Firmware, &resume), expected);
    }
}
