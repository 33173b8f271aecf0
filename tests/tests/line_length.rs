//! No line of the sources, scripts, hooks and documents is longer than 120 characters.
//!
//! rustfmt wraps code and leaves comments and strings as they are, and nothing wraps the other files. A row of a
//! Markdown table cannot be broken; a few may be longer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const LONGEST: usize = 120;
/// How many rows of Markdown tables may be longer, in the whole project.
const LONG_ROWS: usize = 20;

/// The checkout.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Built files, and inputs of the fuzz targets.
const SKIPPED: [&str; 4] = ["target", "tests/fuzz/target", "tests/fuzz/corpus", "tests/fuzz/regressions"];
/// Files that programs write, and manifests, whose paths cannot be broken.
const SKIPPED_ENDS: [&str; 5] = [".lock", ".golden", ".hex", ".dict", "Cargo.toml"];

#[test]
fn lines_have_at_most_120_characters() -> Result<()> {
    let mut files = Vec::new();
    list(Path::new(ROOT), &mut files)?;
    ensure!(files.iter().any(|file| file.ends_with("scripts/test")), "the project's files are not in {ROOT}");
    let (mut lines, mut rows) = (Vec::new(), Vec::new());
    for file in files {
        let bytes = std::fs::read(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let is_markdown = file.extension().is_some_and(|extension| extension == "md");
        for (line, number) in text.lines().zip(1..) {
            let length = line.chars().count();
            if length > LONGEST {
                let found = if is_markdown && line.starts_with('|') { &mut rows } else { &mut lines };
                let name = file.strip_prefix(ROOT).unwrap_or(&file).display().to_string();
                found.push(format!("{name}:{number}: {length} characters"));
            }
        }
    }
    ensure!(lines.is_empty(), "{} lines are longer than {LONGEST}:\n{}", lines.len(), lines.join("\n"));
    ensure!(
        rows.len() <= LONG_ROWS,
        "{} rows of tables are longer than {LONGEST}, of which {LONG_ROWS} may be:\n{}",
        rows.len(),
        rows.join("\n")
    );
    Ok(())
}

/// Adds the files under `directory` that are checked.
fn list(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = directory.read_dir().with_context(|| format!("{} cannot be read", directory.display()))?;
    for entry in entries {
        let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_hidden = name.starts_with('.') && !matches!(name.as_ref(), ".ci" | ".cargo");
        let is_skipped = SKIPPED.iter().any(|skipped| path == Path::new(ROOT).join(skipped))
            || SKIPPED_ENDS.iter().any(|end| name.ends_with(end));
        let kind = entry?;
        if kind.is_dir() && !is_hidden && !is_skipped {
            list(&path, files)?;
        } else if kind.is_file() && !is_hidden && !is_skipped {
            files.push(path);
        }
    }
    Ok(())
}
