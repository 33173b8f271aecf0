//! Placeholder.

use anyhow::Result;

use crate::Options;

pub(crate) fn run(_: &Options) -> Result<()> {
    Ok(())
}
