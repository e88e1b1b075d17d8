// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether the documents are true: every command line of `ssictl` in them is one, and a test in virtual
//! machines runs such a command; and whether they tell every reason for which something is declined.

use std::fs;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory};

use crate::cli::Arguments;

/// A command line in a document.
struct Line {
    file: String,
    text: String,
    /// It may be the beginning of one.
    part: bool,
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The files in `dir` whose names end with `end`, by name.
fn files(dir: &str, end: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(top().join(dir)).unwrap();
    let mut files: Vec<(String, String)> = entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.to_string_lossy().ends_with(end))
        .map(|p| (p.display().to_string(), fs::read_to_string(&p).unwrap()))
        .collect();
    files.sort();
    files
}

/// What is between backticks in a line.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The command lines in a document: those of blocks, of the table of commands, and in the text.
fn lines_of(file: &str, text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut found = |text: &str, part| {
        let (file, text) = (file.to_owned(), text.to_owned());
        lines.push(Line { file, text, part });
    };
    let mut in_commands = false;
    for line in text.lines() {
        let code = line.strip_prefix("    ").map(str::trim_start);
        let typed = code.map(|c| c.trim_start_matches(['#', '$']).trim_start());
        in_commands = line == "| command | |" || in_commands && line.starts_with('|');
        if let Some(typed) = typed.filter(|t| t.starts_with("ssictl ") && !t.ends_with(" COMMAND"))
        {
            // What a comment behind it names is typed as well.
            let mut parts = typed.splitn(2, "  #");
            found(parts.next().unwrap().trim_end(), false);
            let more = parts.next().and_then(|c| c.split_once("ssictl "));
            if let Some((_, more)) = more {
                found(&format!("ssictl {more}"), false);
            }
        } else if in_commands {
            let mut over = "";
            for synopsis in spans(line.split('|').nth(1).unwrap_or_default()) {
                // `token ls` stands behind `cluster token create`.
                let (first, _) = synopsis.split_once(' ').unwrap_or((synopsis, ""));
                let known = Arguments::command().find_subcommand(first).is_some();
                if known {
                    over = first;
                    found(&format!("ssictl {synopsis}"), false);
                } else {
                    found(&format!("ssictl {over} {synopsis}"), false);
                }
            }
        } else if code.is_none() {
            let named = spans(line).flat_map(|s| s.split("; "));
            for span in named.filter(|s| s.starts_with("ssictl ")) {
                found(span, true);
            }
        }
    }
    lines
}

/// The words of a line, with something for all that stands for something.
fn words(line: &str) -> Vec<String> {
    let all = line.replace(['[', ']'], "");
    all.split_whitespace()
        .map(|word| match word {
            "PID" | "$!" | "S" | "N" | "REVISION" => "1".to_owned(),
            "HASH" => "0".repeat(64),
            word => word.trim_matches('\'').to_owned(),
        })
        .collect()
}

/// The names of the commands within each other: `node leave`.
fn verb(matches: &ArgMatches) -> String {
    match matches.subcommand() {
        Some((name, inner)) => format!("{name} {}", verb(inner)).trim_end().to_owned(),
        None => String::new(),
    }
}

fn documents() -> Vec<Line> {
    let readme = (
        "README.md".to_owned(),
        fs::read_to_string(top().join("README.md")).unwrap(),
    );
    let mut all = files("Documentation/admin", ".md");
    all.push(readme);
    all.iter()
        .flat_map(|(file, text)| lines_of(file, text))
        .collect()
}

/// What the tests and what forms their clusters run, with one space between words and no quotes.
fn tests_text() -> String {
    let sources = [files("tests/src", ".rs"), files("vm/lib", ".py")].concat();
    let text: String = sources.into_iter().map(|(_, text)| text).collect();
    let bare: String = text
        .chars()
        .map(|c| if "\",&[](){}".contains(c) { ' ' } else { c })
        .collect();
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether some test has these words, and near behind them the option.
fn is_run(tests: &str, verb: &str, option: &str) -> bool {
    const NEAR: usize = 200;
    tests.match_indices(&format!(" {verb} ")).any(|(at, _)| {
        let near: String = tests[at..].chars().take(NEAR).collect();
        near.contains(option)
    })
}

#[test]
fn command_lines_of_the_documents_are_some_and_are_tested() {
    let tests = tests_text();
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in documents() {
        let words = words(&line.text);
        count += 1;
        let parsed = Arguments::command().try_get_matches_from(&words);
        let matches = match parsed {
            Ok(matches) => matches,
            Err(e) if line.part && is_beginning(e.kind()) => continue,
            Err(e) => {
                wrong.push(format!("{}: {}: {e}", line.file, line.text));
                continue;
            }
        };
        let verb = verb(&matches);
        let typed = words.split(|w| w == "--").next().unwrap_or_default();
        let options = typed.iter().filter(|w| w.starts_with("--"));
        for option in options.map(String::as_str).chain([""]) {
            if !is_run(&tests, &verb, option) {
                let file = &line.file;
                wrong.push(format!("{file}: no test runs `ssictl {verb} {option}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Should the documents be written in another way, this must be as well.
    assert!(count > 60, "only {count} command lines were found");
}

/// Whether a line lacks no more than its end.
fn is_beginning(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    )
}

/// The sources below `dir`, in no order.
fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(fs::read_to_string(path).unwrap());
        }
    }
}

/// The stable words in a source: what its functions named `code` give, and with what it declines.
fn reasons(source: &str) -> Vec<&str> {
    let codes = source
        .split("fn code(")
        .skip(1)
        .filter_map(|f| f.split_once("\n    }"))
        .flat_map(|(body, _)| body.split("=> \"").skip(1));
    let declined = source.split("declined(").skip(1);
    let declined = declined.filter_map(|rest| rest.trim_start().strip_prefix('"'));
    let words = codes
        .chain(declined)
        .filter_map(|rest| rest.split('"').next());
    words.filter(|word| !word.is_empty()).collect()
}

#[test]
fn every_reason_is_in_a_document() {
    let admin = files("Documentation/admin", ".md");
    let design = files("Documentation/design", ".md");
    let text: String = admin.into_iter().chain(design).map(|(_, t)| t).collect();
    let mut all = Vec::new();
    sources(&top().join("daemon/src"), &mut all);
    let mut words: Vec<&str> = all.iter().flat_map(|s| reasons(s)).collect();
    words.sort_unstable();
    words.dedup();
    // Should they be written in another way, this must be as well.
    assert!(words.len() > 70, "only {} were found", words.len());
    words.retain(|word| !text.contains(&format!("`{word}`")));
    assert!(words.is_empty(), "in no document: {}", words.join(", "));
}

#[test]
fn what_is_wrong_is_found() {
    let source = "
    pub fn code(self) -> &'static str {
        match self { A => \"a-a\", B(_) => \"b\" }
    }
    fn other() { \"c\"; Failure::declined(
        \"d-d\", format!(\"e\")); declined(code, text) }";
    assert_eq!(reasons(source), ["a-a", "b", "d-d"]);
    let text = "
    # ssictl node leave --farce
    $ ssictl frobnicate            # or ssictl ps

| command | |
|---|---|
| `cluster token create`, `token rm ID` | |

Say `ssictl lock` or `rmmod ssi; ssictl node show n1`.";
    let lines: Vec<String> = lines_of("x", text).into_iter().map(|l| l.text).collect();
    let wanted = [
        "ssictl node leave --farce",
        "ssictl frobnicate",
        "ssictl ps",
        "ssictl cluster token create",
        "ssictl cluster token rm ID",
        "ssictl lock",
        "ssictl node show n1",
    ];
    assert_eq!(lines, wanted);
    let fails = |line: &str| {
        Arguments::command()
            .try_get_matches_from(words(line))
            .is_err()
    };
    assert!(fails(&lines[0]) && fails(&lines[1]) && !fails(&lines[2]));
    assert!(!is_run("ssictl ps and node ls ", "node leave", ""));
    assert!(is_run("a node leave --force ", "node leave", "--force"));
    assert!(!is_run("a node leave n4 ", "node leave", "--force"));
}
