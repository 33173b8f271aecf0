//! Man pages and shell completions, for packages: `dormouse gen`. They come from the definition of the command line,
//! but for the pages on the policy and on the whole, which are written by hand. The same program writes the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The command's name.
const NAME: &str = env!("CARGO_PKG_NAME");
/// The section of a command that an administrator runs.
const SECTION: &str = "8";

/// The pages that are written by hand, with the names of their files.
const WRITTEN: [(&str, &str); 2] = [
    ("dormouse.toml.5", include_str!("../../../configs/man/dormouse.toml.5")),
    ("dormouse.7", include_str!("../../../configs/man/dormouse.7")),
];

/// What every generated page ends with.
const END: &str = ".SH \"EXIT STATUS\"
0 done; 1 failed, and the session is safe; 2 the command line is not valid; 3 refused, and nothing was changed;
4 failed, and an image must be discarded by hand. The reason is on stderr; dormouse(7) has more.
.SH \"SEE ALSO\"
.BR dormouse (8),
.BR dormouse.toml (5),
.BR dormouse (7)
";

/// Writes the man pages of `command` and all of its subcommands into `directory`, and the ones that are written by
/// hand. Returns the files.
///
/// # Errors
/// The directory or a file cannot be written.
pub fn man(command: Command, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (name, text) in WRITTEN {
        files.push(write(directory, name, text.as_bytes())?);
    }
    // What is built knows its names in full: `dormouse image init`, dormouse-image-init.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let source = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
    man_pages(&command, source, directory, &mut files)?;
    Ok(files)
}

fn man_pages(command: &Command, source: &str, directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    // A title without a date leaves out the argument, and what follows it takes its place.
    let page = Man::new(command.clone()).section(SECTION).date(" ").source(source).manual("Dormouse");
    let mut bytes = Vec::new();
    page.render(&mut bytes).context("rendering a man page")?;
    bytes.extend_from_slice(END.as_bytes());
    files.push(write(directory, &page.get_filename(), &bytes)?);
    let mut shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.try_for_each(|command| man_pages(command, source, directory, files))
}

/// Writes completions for bash, zsh and fish into `directory`, by the names that these shells look for. Returns the
/// files.
///
/// # Errors
/// The directory or a file cannot be written.
pub fn completions(command: Command, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = without_hidden(&command);
    let shells =
        [(Shell::Bash, NAME.to_owned()), (Shell::Zsh, format!("_{NAME}")), (Shell::Fish, format!("{NAME}.fish"))];
    let mut files = Vec::new();
    for (shell, file) in shells {
        let mut bytes = Vec::new();
        clap_complete::generate(shell, &mut command, NAME, &mut bytes);
        files.push(write(directory, &file, &bytes)?);
    }
    Ok(files)
}

/// The same command line without the subcommands that are not shown: shells are offered all that there are.
fn without_hidden(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new(NAME).version(env!("CARGO_PKG_VERSION")).args(command.get_arguments().cloned()).subcommands(shown)
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(&path, bytes));
    written.with_context(|| format!("{}: cannot write it", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{Arg, CommandFactory};

    use super::*;
    use crate::cli::Cli;

    /// The text of a file that was written.
    fn text(directory: &Path, name: &str) -> String {
        fs::read_to_string(directory.join(name)).unwrap()
    }

    /// Every command that is shown, by its names from the top.
    fn commands() -> Vec<(String, Command)> {
        fn below(name: &str, command: &Command, all: &mut Vec<(String, Command)>) {
            all.push((name.to_owned(), command.clone()));
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                below(&format!("{name} {}", command.get_name()), command, all);
            }
        }
        let mut all = Vec::new();
        below("dormouse", &Cli::command(), &mut all);
        all
    }

    fn long_options(command: &Command) -> impl Iterator<Item = &str> {
        command.get_arguments().filter_map(Arg::get_long)
    }

    #[test]
    fn writes_a_page_for_every_command_with_its_options_and_arguments() {
        let directory = tempfile::tempdir().unwrap();
        let files = man(Cli::command(), directory.path()).unwrap();
        let commands = commands();
        assert_eq!(files.len(), WRITTEN.len() + commands.len());
        for (name, command) in &commands {
            let page = text(directory.path(), &format!("{}.8", name.replace(' ', "-")))
                .replace("\\-", "-")
                .replace("\\*(Aq", "'");
            assert!(page.contains(&command.get_about().unwrap().to_string()), "{name}: {page}");
            for option in long_options(command).chain(["config", "help"]) {
                assert!(page.contains(&format!("--{option}")), "{name}: --{option}");
            }
            for positional in command.get_positionals() {
                assert!(page.contains(&positional.get_help().unwrap().to_string()), "{name}: {positional}");
            }
            for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
                let reference = format!("{}-{}(8)", name.replace(' ', "-"), below.get_name());
                assert!(page.contains(&reference), "{name}: {reference}");
            }
        }
        assert!(!text(directory.path(), "dormouse.8").contains("dormouse\\-gen"));
    }

    #[test]
    fn completes_every_command_and_option() {
        let directory = tempfile::tempdir().unwrap();
        completions(Cli::command(), directory.path()).unwrap();
        for shell in ["dormouse", "_dormouse", "dormouse.fish"] {
            let script = text(directory.path(), shell);
            for (name, command) in commands() {
                assert!(script.contains(command.get_name()), "{shell}: {name}");
                for option in long_options(&command) {
                    let written = if shell == "dormouse.fish" { format!("-l {option}") } else { format!("--{option}") };
                    assert!(script.contains(&written), "{shell}: {name} --{option}");
                }
            }
            assert!(!script.contains("completions for"), "{shell} offers hidden commands");
        }
    }

    #[test]
    fn writes_the_same_bytes_again() {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let names = directories.each_ref().map(|directory| {
            let files = [
                man(Cli::command(), directory.path()).unwrap(),
                completions(Cli::command(), directory.path()).unwrap(),
            ];
            files.concat().iter().map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>()
        });
        assert_eq!(names[0], names[1]);
        for name in &names[0] {
            let [one, two] = directories.each_ref().map(|directory| fs::read(directory.path().join(name)).unwrap());
            assert!(one == two, "{}", name.display());
        }
    }

    #[test]
    fn names_a_directory_that_cannot_be_written() {
        let error = man(Cli::command(), Path::new("/dev/null/man")).unwrap_err();
        assert!(error.to_string().starts_with("/dev/null/man/dormouse.toml.5: cannot write it"), "{error}");
    }
}
