//! The rules of the house (docs/ARCHITECTURE.md), checked over the sources.
//!
//! The sources are read as tokens, so that comments and strings do not count. Every `use` tree and every path in the
//! code is resolved to a full path, as far as the names that the file imports go. Items under `#[cfg(test)]` and the
//! files of such modules do not count.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The rooms of the crate `dormouse`. Each may import those after it, and none before it.
const ROOMS: [&str; 15] = [
    "cli",
    "pid1",
    "host",
    "cycle",
    "key",
    "target",
    "filesystems",
    "launch",
    "store",
    "memory",
    "pipeline",
    "console",
    "handoff",
    "policy",
    "machine",
];

/// Our crates, and which of ours each may import.
const CRATES: [(&str, &str, &[&str]); 4] = [
    ("dormouse", "", &["dormouse_linux", "dormouse_image", "dormouse_sys"]),
    ("dormouse_linux", "linux", &["dormouse_sys"]),
    ("dormouse_image", "image", &["dormouse_sys"]),
    ("dormouse_sys", "sys", &[]),
];

/// Rooms that only `cycle` wires together, and what of `pipeline` they may meet in.
const APART: [&str; 4] = ["store", "memory", "launch", "filesystems"];
const SEAMS: [&str; 3] = ["seams", "buffers", "window"];

const CONDUCTORS: [&str; 5] = ["hibernate", "save", "resume", "restore", "export"];

/// Sources without I/O, as the beginnings of their names, and those among them that read files after all.
const PURE: [&str; 5] = ["src/handoff", "src/policy", "image/src", "src/cycle/verdict", "src/machine/compat"];
const READS_FILES: [&str; 2] = ["src/policy/source.rs", "src/policy/dropin.rs"];
/// What does I/O, and what does not although its crate does.
const IO: [&str; 11] = [
    "std::fs",
    "std::net",
    "std::process",
    "std::os::unix",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "nix",
    "libc",
    "dormouse_sys",
    "dormouse_linux",
];
const NO_IO: [&str; 9] = [
    "dormouse_sys::PAGE_SIZE",
    "dormouse_sys::wiped",
    "dormouse_linux::cpio",
    "dormouse_linux::disk",
    "dormouse_linux::kernel_args",
    "dormouse_linux::link",
    "dormouse_linux::mountinfo",
    "dormouse_linux::units",
    "dormouse_linux::vmcoreinfo",
];
/// Methods of `Path` that ask the system.
const ASKING: [&str; 8] =
    ["exists", "try_exists", "is_file", "is_dir", "is_symlink", "metadata", "canonicalize", "read_dir"];

/// Names that belong to one architecture, beside all those that contain one of `ARCH_PARTS`.
const ARCH_NAMES: [&str; 24] = [
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rsp",
    "rbp",
    "eax",
    "ebx",
    "ecx",
    "edx",
    "Eax",
    "Ebx",
    "Ecx",
    "Edx",
    "cr0",
    "cr3",
    "cr4",
    "x86_64",
    "START_KERNEL_MAP",
    "PML4",
    "PML5",
    "cpuid",
];
const ARCH_PARTS: [&str; 3] = ["e820", "EM_X86", "KEXEC_ARCH_"];

/// A path that a source names, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mention {
    line: usize,
    path: Vec<String>,
}

impl Mention {
    /// Whether the path is `start` or begins with it.
    fn is_in(&self, start: &str) -> bool {
        let mut names = self.path.iter();
        start.split("::").all(|expected| names.next().is_some_and(|name| name == expected))
    }

    /// The room that it is in.
    fn room(&self) -> Option<&str> {
        let [first, room, ..] = &self.path[..] else { return None };
        (first == "crate").then_some(room)
    }
}

/// What one file names.
#[derive(Debug)]
struct Source {
    /// Its path below `agent`.
    file: String,
    mentions: Vec<Mention>,
    /// Every identifier with its line, and whether a dot is before it.
    names: Vec<(usize, String, bool)>,
    /// Modules under `#[cfg(test)]` that have files of their own.
    test_modules: Vec<Vec<String>>,
}

/// A token; a group's delimiters are tokens of their own.
#[derive(Debug, Clone)]
struct Token {
    text: String,
    line: usize,
    is_name: bool,
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        let mut push = |text: String, is_name| tokens.push(Token { text, line, is_name });
        match tree {
            TokenTree::Ident(name) => push(name.to_string(), true),
            TokenTree::Punct(punct) => push(punct.as_char().to_string(), false),
            TokenTree::Literal(_) => push("\"".to_owned(), false),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::None => ("", ""),
                };
                push(open.to_owned(), false);
                flatten(group.stream(), tokens);
                tokens.push(Token { text: close.to_owned(), line: group.span_close().start().line, is_name: false });
            }
        }
    }
}

/// The tokens of the code that is not for tests, and the names of test modules with files of their own.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let starts = |at: usize, expected: &[&str]| expected.iter().zip(at..).all(|(expected, at)| text(at) == *expected);
    /// The index after the group that opens at `at`.
    fn group_end(tokens: &[Token], mut at: usize) -> usize {
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at].text.as_str() {
                "{" | "[" | "(" => depth += 1,
                "}" | "]" | ")" => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 {
                break;
            }
        }
        at
    }
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if !starts(at, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += 7;
        while starts(at, &["#", "["]) {
            at = group_end(&tokens, at + 1);
        }
        let is_use = (at..at + 6).take_while(|at| text(*at) != ";").any(|at| text(at) == "use");
        if let Some(module) = (at..at + 6).find(|at| starts(*at, &["mod"]) && text(at + 2) == ";") {
            modules.push(text(module + 1).to_owned());
        }
        loop {
            match text(at) {
                ";" | "" => break at += 1,
                "{" if !is_use => break at = group_end(&tokens, at),
                "{" | "(" | "[" => at = group_end(&tokens, at),
                _ => at += 1,
            }
        }
    }
    (kept, modules)
}

impl Source {
    /// Reads what `text`, the content of the file `file` below `agent`, names.
    fn new(file: &str, text: &str) -> Source {
        let mut tokens = Vec::new();
        flatten(TokenStream::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}")), &mut tokens);
        let (tokens, test_modules) = without_tests(tokens);
        let module = module_of(file);
        let mut reader = Reader { module: module.clone(), aliases: HashMap::new(), mentions: Vec::new() };
        reader.imports(&tokens);
        reader.paths(&tokens);
        let dots = std::iter::once(false).chain(tokens.iter().map(|token| token.text == "."));
        let named = tokens.iter().zip(dots).filter(|(token, _)| token.is_name);
        Source {
            file: file.to_owned(),
            names: named.map(|(token, dot)| (token.line, token.text.clone(), dot)).collect(),
            test_modules: test_modules.into_iter().map(|name| [module.clone(), vec![name]].concat()).collect(),
            mentions: reader.mentions,
        }
    }

    /// Which of our crates it belongs to.
    fn krate(&self) -> &'static str {
        let is_part = |dir: &str| !dir.is_empty() && self.file.starts_with(&format!("{dir}/"));
        CRATES.iter().find(|(_, dir, _)| is_part(dir)).map_or("dormouse", |(name, _, _)| name)
    }

    /// Its room, if it is in one.
    fn room(&self) -> Option<&str> {
        let inside = self.file.strip_prefix("src/")?;
        ROOMS.into_iter().find(|room| inside.strip_prefix(room).is_some_and(|rest| rest.starts_with(['/', '.'])))
    }

    fn is_in(&self, start: &str) -> bool {
        self.file.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("agent/{}:{line}: {what}", self.file)
    }

    /// The mentions to which `is_wrong` objects, in words.
    fn objections(&self, is_wrong: impl Fn(&Mention) -> bool) -> Vec<String> {
        let wrong = self.mentions.iter().filter(|mention| is_wrong(mention));
        wrong.map(|mention| self.at(mention.line, &mention.path.join("::"))).collect()
    }
}

/// The module that a file is, as its full path.
fn module_of(file: &str) -> Vec<String> {
    let inside = file.split_once("src/").map_or(file, |(_, inside)| inside).trim_end_matches(".rs");
    let names = inside.split('/').filter(|name| !["mod", "lib"].contains(name));
    std::iter::once("crate").chain(names).map(str::to_owned).collect()
}

/// Resolves what a file names.
struct Reader {
    module: Vec<String>,
    aliases: HashMap<String, Vec<String>>,
    mentions: Vec<Mention>,
}

impl Reader {
    /// The full path of one as it is written in this file.
    fn resolve(&self, path: &[String]) -> Vec<String> {
        let joined = |start: &[String], rest: &[String]| [start, rest].concat();
        let Some((first, rest)) = path.split_first() else { return Vec::new() };
        match first.as_str() {
            "self" => joined(&self.module, rest),
            "super" => {
                let up = path.iter().take_while(|name| *name == "super").count();
                joined(&self.module[..self.module.len().saturating_sub(up).max(1)], &path[up..])
            }
            name if name == "crate" || name == "std" || name.starts_with("dormouse") => path.to_vec(),
            name => self.aliases.get(name).map_or_else(|| path.to_vec(), |start| joined(start, rest)),
        }
    }

    /// Every `use`, and the names that it brings.
    fn imports(&mut self, tokens: &[Token]) {
        let mut tokens = tokens.iter().peekable();
        while let Some(token) = tokens.next() {
            // `use<'a>` in a type is something else.
            if token.is_name && token.text == "use" && tokens.peek().is_some_and(|next| next.text != "<") {
                self.tree(&mut tokens, &[]);
            }
        }
    }

    /// One tree of a `use`, which follows `prefix`.
    fn tree<'a>(&mut self, tokens: &mut Peekable<impl Iterator<Item = &'a Token>>, prefix: &[String]) {
        let mut path = prefix.to_vec();
        let (mut alias, mut line) = (None, 0);
        while let Some(token) = tokens.next_if(|token| ![",", "}", ";"].contains(&token.text.as_str())) {
            line = token.line;
            match token.text.as_str() {
                "{" => {
                    while tokens.peek().is_some_and(|token| token.text != "}") {
                        self.tree(tokens, &path);
                        tokens.next_if(|token| token.text == ",");
                    }
                    tokens.next();
                    return;
                }
                "as" => alias = tokens.next().map(|token| token.text.clone()),
                "self" if path.len() == prefix.len() && !prefix.is_empty() => {}
                "*" => path.push("*".to_owned()),
                name if token.is_name => path.push(name.to_owned()),
                _ => {}
            }
        }
        let full = self.resolve(&path);
        if let Some(name) = alias.or_else(|| path.last().cloned()) {
            self.aliases.insert(name, full.clone());
        }
        self.mentions.push(Mention { line, path: full });
    }

    /// Every path in the code.
    fn paths(&mut self, tokens: &[Token]) {
        let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
        let is_name = |at: usize| tokens.get(at).is_some_and(|token| token.is_name);
        let mut at = 0;
        while at < tokens.len() {
            let start = at;
            at += 1;
            if is_name(start) && text(start) == "use" && text(at) != "<" {
                at += (at..tokens.len()).take_while(|at| text(*at) != ";").count();
                continue;
            }
            let is_start = is_name(start) && (start == 0 || ![".", ":"].contains(&text(start - 1)))
                // After one colon there is a type.
                || is_name(start) && start > 0 && text(start - 1) == ":" && (start < 2 || text(start - 2) != ":");
            if !is_start {
                continue;
            }
            let mut path = vec![text(start).to_owned()];
            while text(at) == ":" && text(at + 1) == ":" && is_name(at + 2) {
                path.push(text(at + 2).to_owned());
                at += 3;
            }
            if path.len() > 1 {
                self.mentions.push(Mention { line: tokens[start].line, path: self.resolve(&path) });
            }
        }
    }
}

/// Every file of our crates that is not a test's.
fn sources() -> &'static [Source] {
    static SOURCES: OnceLock<Vec<Source>> = OnceLock::new();
    SOURCES.get_or_init(read_sources)
}

fn read_sources() -> Vec<Source> {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for (_, dir, _) in CRATES {
        let mut files = Vec::new();
        rust_files(&agent.join(dir).join("src"), &mut files);
        let read = files.iter().map(|path| {
            let name = path.strip_prefix(agent).unwrap().to_str().unwrap();
            Source::new(name, &fs::read_to_string(path).unwrap())
        });
        let read: Vec<Source> = read.collect();
        let tests: HashSet<Vec<String>> = read.iter().flat_map(|source| source.test_modules.clone()).collect();
        let is_test = |source: &Source| {
            let module = module_of(&source.file);
            (1..=module.len()).any(|len| tests.contains(&module[..len]))
        };
        sources.extend(read.into_iter().filter(|source| !is_test(source)));
    }
    sources
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

type Rule = fn(&Source) -> Vec<String>;

#[track_caller]
fn holds(rule: Rule) {
    let found: Vec<String> = sources().iter().flat_map(rule).collect();
    let list = found.iter().fold(String::new(), |mut list, line| {
        let _ = writeln!(list, "{line}");
        list
    });
    assert!(found.is_empty(), "{} places break this rule:\n{list}", found.len());
}

/// 1. Arrows run down.
fn rooms_in_order(source: &Source) -> Vec<String> {
    let place = |room: &str| ROOMS.iter().position(|other| *other == room);
    let Some(own) = source.room().and_then(place) else { return Vec::new() };
    if source.krate() != "dormouse" {
        return Vec::new();
    }
    source.objections(|mention| mention.room().and_then(place).is_some_and(|other| other < own))
}

/// 1. `linux` and `image` import nothing of ours but `sys`.
fn crates_in_order(source: &Source) -> Vec<String> {
    let Some((_, _, allowed)) = CRATES.iter().find(|(name, ..)| *name == source.krate()) else { return Vec::new() };
    let is_bin = source.is_in("src/bin");
    source.objections(|mention| {
        let first = mention.path.first().map_or("", String::as_str);
        let is_ours = CRATES.iter().any(|(name, ..)| *name == first);
        is_ours && first != source.krate() && !allowed.contains(&first) || !is_bin && first == "dormouse"
    })
}

/// 2. The rooms around the pipeline meet only in its seams.
fn apart(source: &Source) -> Vec<String> {
    let Some(own) = source.room().filter(|room| APART.contains(room)) else { return Vec::new() };
    source.objections(|mention| match mention.room() {
        Some("pipeline") => !SEAMS.iter().any(|seam| mention.is_in(&format!("crate::pipeline::{seam}"))),
        Some(other) => other != own && APART.contains(&other),
        None => false,
    })
}

/// 2. The cycle's conductors do not import one another.
fn conductors_apart(source: &Source) -> Vec<String> {
    let own = CONDUCTORS.iter().find(|name| source.is_in(&format!("src/cycle/{name}")));
    let Some(own) = own else { return Vec::new() };
    let others = CONDUCTORS.iter().filter(|name| *name != own);
    let others: Vec<String> = others.map(|name| format!("crate::cycle::{name}")).collect();
    source.objections(|mention| others.iter().any(|other| mention.is_in(other)))
}

/// 3. Pure code does no I/O.
fn pure(source: &Source) -> Vec<String> {
    if !PURE.iter().any(|start| source.is_in(start)) || READS_FILES.contains(&source.file.as_str()) {
        return Vec::new();
    }
    let mut found = source
        .objections(|mention| IO.iter().any(|io| mention.is_in(io)) && !NO_IO.iter().any(|pure| mention.is_in(pure)));
    let asking = source.names.iter().filter(|(_, name, dot)| *dot && ASKING.contains(&name.as_str()));
    found.extend(asking.map(|(line, name, _)| source.at(*line, &format!(".{name}"))));
    found
}

/// 4. Only `pid1`'s endings end PID 1.
fn one_ending(source: &Source) -> Vec<String> {
    let ends = [
        "std::process::exit",
        "std::process::abort",
        "dormouse_sys::power::Command::PowerOff",
        "dormouse_sys::power::Command::Restart",
    ];
    if source.is_in("src/pid1/ending") {
        return Vec::new();
    }
    source.objections(|mention| ends.iter().any(|end| mention.is_in(end)))
}

/// 4. Only `launch` loads kernels and jumps.
fn one_launcher(source: &Source) -> Vec<String> {
    let launches = ["dormouse_sys::kexec::load", "dormouse_sys::kexec::unload", "dormouse_sys::power::Command::Kexec"];
    if source.is_in("src/launch") {
        return Vec::new();
    }
    source.objections(|mention| launches.iter().any(|launch| mention.is_in(launch)))
}

/// 4. Only `target` matches on the kind of a target.
fn kinds_of_target(source: &Source) -> Vec<String> {
    if source.krate() != "dormouse" || source.is_in("src/target") {
        return Vec::new();
    }
    source.objections(|mention| {
        let [.., kind, variant] = &mention.path[..] else { return false };
        let is_kind = kind == "ImageDevice" || mention.is_in("crate::target") && kind == "Kind";
        is_kind && variant.starts_with(|first: char| first.is_ascii_uppercase())
    })
}

/// 4. Only files under `arch/` name what belongs to an architecture.
fn architecture(source: &Source) -> Vec<String> {
    if source.file.contains("/arch/") {
        return Vec::new();
    }
    let is_arch = |name: &str| ARCH_NAMES.contains(&name) || ARCH_PARTS.iter().any(|part| name.contains(part));
    let found = source.names.iter().filter(|(_, name, _)| is_arch(name));
    found.map(|(line, name, _)| source.at(*line, name)).collect()
}

#[test]
fn rooms_import_only_those_after_them() {
    holds(rooms_in_order);
}

#[test]
fn crates_import_only_those_below_them() {
    holds(crates_in_order);
}

#[test]
fn rooms_around_the_pipeline_meet_in_its_seams() {
    holds(apart);
}

#[test]
fn conductors_do_not_import_one_another() {
    holds(conductors_apart);
}

#[test]
fn pure_code_does_no_io() {
    holds(pure);
}

#[test]
fn only_the_endings_end_pid_1() {
    holds(one_ending);
}

#[test]
fn only_launch_loads_kernels_and_jumps() {
    holds(one_launcher);
}

#[test]
fn only_target_matches_on_kinds_of_targets() {
    holds(kinds_of_target);
}

#[test]
fn only_arch_directories_name_an_architecture() {
    holds(architecture);
}

#[test]
fn the_house_is_small_and_every_room_is_known() {
    let inside = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let names: Vec<String> = inside.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() <= 20, "{names:?}");
    let is_known =
        |name: &&String| ROOMS.contains(&name.trim_end_matches(".rs")) || ["bin", "lib.rs"].contains(&name.as_str());
    let unknown: Vec<&String> = names.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty() && names.len() == ROOMS.len() + 2, "not a room: {unknown:?}, of {names:?}");
}

/// Each rule finds what it forbids, however it is written.
#[test]
fn forbidden_mentions_are_found() {
    let cases: [(Rule, &str, &str, &str); 21] = [
        (rooms_in_order, "src/store/x.rs", "use crate::cli;", "crate::cli"),
        (rooms_in_order, "src/machine/mod.rs", "use crate::{machine, policy::{self, Policy}};", "crate::policy"),
        (rooms_in_order, "src/memory/vmcore.rs", "fn f() { crate::store::open() }", "crate::store::open"),
        (rooms_in_order, "src/memory/vmcore.rs", "fn f(x: crate::store::Disk) {}", "crate::store::Disk"),
        (rooms_in_order, "src/memory/a/b.rs", "use super::super::super::store;", "crate::store"),
        (rooms_in_order, "src/memory/mod.rs", "fn f() { println!(\"{}\", super::cycle::X) }", "crate::cycle::X"),
        (rooms_in_order, "src/policy/mod.rs", "pub(crate) use crate::cli as other;", "crate::cli"),
        (crates_in_order, "linux/src/x.rs", "use dormouse_image::Label;", "dormouse_image::Label"),
        (crates_in_order, "image/src/x.rs", "fn f() { dormouse_linux::procfs::now_unix() }", "procfs::now_unix"),
        (crates_in_order, "sys/src/x.rs", "use dormouse_linux::units;", "dormouse_linux::units"),
        (apart, "src/store/x.rs", "use crate::memory::vmcore;", "crate::memory::vmcore"),
        (apart, "src/memory/x.rs", "use crate::pipeline::{seams::Fate, save};", "crate::pipeline::save"),
        (conductors_apart, "src/cycle/export/mod.rs", "use super::save;", "crate::cycle::save"),
        (conductors_apart, "src/cycle/resume.rs", "use super::hibernate::run;", "crate::cycle::hibernate::run"),
        (pure, "src/handoff/x.rs", "use std::{fmt, fs::File};", "std::fs::File"),
        (pure, "src/policy/mod.rs", "use std::path::Path; fn f(p: &Path) { p.exists(); }", ".exists"),
        (pure, "image/src/x.rs", "fn f() { dormouse_sys::pin::pin() }", "dormouse_sys::pin"),
        (
            one_ending,
            "src/cycle/x.rs",
            "use dormouse_sys::power::*; use std::process; fn f() { process::exit(1) }",
            "exit",
        ),
        (
            one_launcher,
            "src/cycle/x.rs",
            "use dormouse_sys::power::{self, Command}; fn f() { power::reboot(Command::Kexec) }",
            "Command::Kexec",
        ),
        (kinds_of_target, "src/host/x.rs", "use dormouse_image as i; fn f() { i::ImageDevice::File(p) }", "File"),
        (architecture, "src/launch/x.rs", "fn f() { let e820_map = 1; }", "e820_map"),
    ];
    for (rule, file, text, expected) in cases {
        let found = rule(&Source::new(file, text));
        let first = found.first().unwrap_or_else(|| panic!("nothing is found in {text}"));
        assert!(first.starts_with(&format!("agent/{file}:1: ")) && first.contains(expected), "{text}: {found:?}");
    }
}

#[test]
fn allowed_mentions_are_not_found() {
    let rules: [Rule; 9] = [
        rooms_in_order,
        crates_in_order,
        apart,
        conductors_apart,
        pure,
        one_ending,
        one_launcher,
        kinds_of_target,
        architecture,
    ];
    let cases = [
        ("src/store/x.rs", "use crate::pipeline::seams::{self, PageSink}; use crate::policy::Policy;"),
        ("src/store/x.rs", "use super::Disk; use crate::store::*; fn f() { self::g(); crate::machine::x() }"),
        ("src/memory/x.rs", "// use crate::cli;\n/// [`crate::cli`]\nconst X: &str = \"crate::cli::run\";"),
        ("src/memory/x.rs", "#[cfg(test)]\nmod tests { use crate::cli; }\nfn f() {}"),
        ("src/memory/x.rs", "#[cfg(test)]\n#[allow(unused)]\nfn f() { crate::cli::run() }"),
        ("src/memory/x.rs", "#[cfg(test)]\nuse crate::{cli, store::{self}};\nfn f() {}"),
        ("src/cycle/save.rs", "use crate::cycle::{refusal, save::Limits}; use crate::launch;"),
        ("src/handoff/x.rs", "use std::io::{Read, Write}; use dormouse_linux::kernel_args::join;"),
        ("src/launch/arch/x86_64/x.rs", "fn f(e820: u8) { kexec::load(); }"),
        ("src/bin/dormouse.rs", "fn main() { dormouse::cli::main() }"),
    ];
    for (file, text) in cases {
        let source = Source::new(file, text);
        let found: Vec<String> = rules.iter().flat_map(|rule| rule(&source)).collect();
        assert!(found.is_empty(), "{text}: {found:?}");
    }
    let source = Source::new("src/memory/mod.rs", "#[cfg(test)]\npub(crate) mod tests;\nuse crate::store;");
    assert_eq!(source.test_modules, [["crate", "memory", "tests"]]);
    assert_eq!(rooms_in_order(&source).len(), 1);
}
