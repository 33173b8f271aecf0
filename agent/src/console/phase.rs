//! The steps of a hibernation and a resume, in order.
//!
//! Each one writes a line to the kernel log as it begins, `dormouse: <phase>: <what>`; people read it, and the
//! tests and the demonstration follow it.

use std::fmt;

/// One step, in one of the four kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// A: the machine's facts are gathered and whatever could refuse is asked.
    HibernatePrepare,
    /// A: kernel B and its initramfs are handed to the kernel.
    HibernateLoad,
    /// A: filesystems are synced and the kernel is asked to freeze and jump.
    HibernateJump,
    /// A: back again, by an abort, a snapshot's end or a resume.
    HibernateReturn,
    /// B: the agent runs as PID 1.
    SaveStart,
    /// B: memory is being read, compressed and written.
    SaveWrite,
    /// B: the image is read back and compared, where the policy asks for it.
    SaveVerify,
    /// B: the image is made durable and marked complete. After this point a failure loses nothing either, but the
    /// image exists.
    SaveCommit,
    /// B: the end that was asked for: power off, reboot or return.
    SaveEnd,
    /// C: the image device is looked at.
    ResumeCheck,
    /// C: kernel D and its initramfs are handed to the kernel.
    ResumeLoad,
    /// C: the jump into D.
    ResumeJump,
    /// D: the agent runs as PID 1.
    RestoreStart,
    /// D: header and index are verified. Memory is untouched until this is done.
    RestoreVerify,
    /// D: memory is being written.
    RestoreWrite,
    /// D: the image is marked consumed, durably. The point of no return.
    RestoreConsume,
    /// D: the jump back into A.
    RestoreJump,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::HibernatePrepare => "hibernate/prepare",
            Phase::HibernateLoad => "hibernate/load",
            Phase::HibernateJump => "hibernate/jump",
            Phase::HibernateReturn => "hibernate/return",
            Phase::SaveStart => "save/start",
            Phase::SaveWrite => "save/write",
            Phase::SaveVerify => "save/verify",
            Phase::SaveCommit => "save/commit",
            Phase::SaveEnd => "save/end",
            Phase::ResumeCheck => "resume/check",
            Phase::ResumeLoad => "resume/load",
            Phase::ResumeJump => "resume/jump",
            Phase::RestoreStart => "restore/start",
            Phase::RestoreVerify => "restore/verify",
            Phase::RestoreWrite => "restore/write",
            Phase::RestoreConsume => "restore/consume",
            Phase::RestoreJump => "restore/jump",
        })
    }
}
