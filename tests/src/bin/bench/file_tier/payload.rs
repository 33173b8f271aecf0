//! The disk of a guest that is to be captured: programs of this machine with their libraries, sources, data.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use dormouse_tests::machine::{MIB, MemorySize};

use super::workloads::Workload;

/// The kernel's source, from Debian's package linux-source-6.12, which the test kernel is built from too.
const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// The first directory in it.
const SOURCE_FOLDER: &str = "linux-source-6.12";
/// Programs of it that compile without a configured kernel, and are not small.
const COMPILED: &str = "tools/lib/bpf";

/// Debian's redis-server is this program by another name; the package redis-tools has it, and starts no service.
const DATABASE: &str = "/usr/bin/redis-check-rdb";

/// Compiles everything again and again, in an order that an option of ls says.
const COMPILE: &str = "#!/bin/sh
cd /preprocessed
while :; do
    for file in $(ls $1 *.i); do
        gcc -O2 -g -c $file -o /objects/${file%.i}$1.o
    done
done
";

/// Builds the disk for `workload` into `output`, a file that exists and has the disk's size. `directory` takes what it
/// is built from.
pub(super) fn build(workload: Workload, memory: MemorySize, directory: &Path, output: &Path) -> Result<()> {
    let root = directory.join("payload");
    for path in ["usr/bin", "usr/lib", "usr/lib64", "proc", "dev", "tmp", "objects", "preprocessed", "source"] {
        make(&root.join(path))?;
    }
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        symlink(target, root.join(link)).with_context(|| format!("{link}: cannot be made in the payload"))?;
    }
    install_programs(&root)?;
    let directories = workload.source_directories(memory);
    if !directories.is_empty() {
        install_sources(&directories, directory, &root)?;
    }
    let data = workload.data_bytes(memory);
    if data > 0 {
        let path = root.join("data.resp");
        let file = File::create(&path).with_context(|| format!("{}: cannot be made", path.display()))?;
        super::database::write(&mut BufWriter::with_capacity(1 << 20, file), data)
            .with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&root).arg(output))?;
    fs::remove_dir_all(&root).with_context(|| format!("{}: cannot be removed", root.display()))
}

/// A size of disk that holds the payload.
pub(super) fn disk_bytes(memory: MemorySize) -> u64 {
    memory.bytes() + 2048 * MIB
}

fn install_programs(root: &Path) -> Result<()> {
    let mut libraries = BTreeSet::new();
    let cc1 = text(Command::new("gcc").arg("-print-prog-name=cc1"))?;
    let programs = [("/usr/bin/gcc", "/usr/bin/gcc"), ("/usr/bin/as", "/usr/bin/as"), (&cc1, &cc1)];
    let database = [(DATABASE, "/usr/bin/redis-server"), ("/usr/bin/redis-cli", "/usr/bin/redis-cli")];
    for (from, to) in programs.into_iter().chain(database) {
        copy(Path::new(from), &inside(root, to))?;
        libraries.extend(libraries_of(from)?);
    }
    for library in libraries {
        copy(&library, &inside(root, &library.to_string_lossy()))?;
    }
    copy(Path::new("/bin/busybox"), &root.join("usr/bin/busybox"))?;
    for applet in ["sh", "cat", "find", "grep", "killall", "ls", "pidof", "sed", "seq", "sleep", "tail", "wc"] {
        symlink("busybox", root.join("usr/bin").join(applet))
            .with_context(|| format!("{applet}: cannot be made in the payload"))?;
    }
    let compile = root.join("usr/bin/compile");
    fs::write(&compile, COMPILE)
        .and_then(|()| fs::set_permissions(&compile, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("{}: cannot be written", compile.display()))
}

/// The shared libraries that a program needs, by the paths under which it looks for them.
fn libraries_of(program: &str) -> Result<Vec<PathBuf>> {
    // `name => /path (address)`, or `/path (address)` for the loader itself.
    let listed = text(Command::new("ldd").arg(program))?;
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn install_sources(directories: &[&str], scratch: &Path, root: &Path) -> Result<()> {
    let paths = directories.iter().map(|directory| format!("{SOURCE_FOLDER}/{directory}"));
    run(Command::new("tar").arg("-C").arg(scratch).arg("-xf").arg(SOURCE).args(paths))?;
    let tree = root.join("source");
    fs::remove_dir(&tree)
        .and_then(|()| fs::rename(scratch.join(SOURCE_FOLDER), &tree))
        .with_context(|| format!("{}: cannot be made", tree.display()))?;
    // Preprocessed here, so that the guest needs no C library's headers.
    let from = tree.join(COMPILED);
    let listed = fs::read_dir(&from).with_context(|| format!("{}: cannot be read", from.display()))?;
    for entry in listed {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "c") {
            continue;
        }
        let name = path.file_stem().context("a source file without a name")?;
        let output = root.join("preprocessed").join(name).with_extension("i");
        let mut gcc = Command::new("gcc");
        gcc.args(["-E", "-D_LARGEFILE64_SOURCE", "-D_FILE_OFFSET_BITS=64"]);
        gcc.args(["tools/include", "tools/include/uapi", COMPILED].map(|directory| format!("-I{directory}")));
        run(gcc.arg(&path).arg("-o").arg(output).current_dir(&tree))?;
    }
    Ok(())
}

/// The place in `root` of a file that this machine has at `path`.
fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        make(directory)?;
    }
    fs::copy(from, to).with_context(|| format!("{}: cannot be copied to {}", from.display(), to.display()))?;
    Ok(())
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("{}: cannot be made", directory.display()))
}

fn run(command: &mut Command) -> Result<()> {
    text(command).map(|_| ())
}

/// What a command that must succeed prints.
fn text(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
