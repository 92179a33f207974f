//! `pagelease lab` as a user runs it: small designs and scenarios, that is what an unoptimised program has time for.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use common::{Scratch, assert_refused, pagelease};
use pagelease_lab::Property;
use pagelease_lab::render::{Format, read};
use serde_json::Value;

/// Explored in a moment, and with every kind of verdict but a loop.
const SMALL: &str = "page-lock-only";

/// Breaks `zapped` in the fewest steps.
const ZAPPED: [&str; 4] = ["lab", "show", SMALL, "zapped"];

/// What ends in a loop.
const REPEAT: [&str; 6] = ["lab", "show", "linux-7.3", "repeat-ends", "--scenario", "repeat"];

/// What the program prints; it must have succeeded, and said nothing else.
fn printed(args: &[&str]) -> String {
    let output = pagelease(args).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn refused(args: &[&str], words: &[&str]) {
    assert_refused(&pagelease(args).output().expect("the program starts"), words);
}

/// The token that a history's header names.
fn token(history: &str) -> &str {
    let replay = history.lines().find_map(|line| line.strip_prefix("replay    pagelease lab --replay "));
    replay.expect("a line that says how to replay it")
}

/// Fields of a line of a Markdown table.
fn fields(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn the_table_of_one_design() {
    let text = printed(&["lab", "--design", SMALL]);
    let markdown = printed(&["lab", "--design", SMALL, "--table", "markdown"]);
    let json: Value = serde_json::from_str(&printed(&["lab", "--design", SMALL, "--table", "json"])).expect("JSON");

    // As the page has it, to the last figure.
    let verdicts = include_str!("../../../docs/VERDICTS.md");
    let lines: Vec<&str> = markdown.lines().collect();
    let [head, rule, row] = lines[..] else { panic!("three lines: {markdown}") };
    for line in [head, rule, row] {
        assert!(verdicts.lines().any(|documented| documented == line), "docs/VERDICTS.md has no line {line}");
    }
    let names: Vec<&str> = Property::ALL.iter().map(|property| property.name()).collect();
    assert_eq!(fields(head), [&["design"], &names[..], &["states", "depth"]].concat());

    // For a terminal: the same marks, each under a heading, each explained.
    let lines: Vec<&str> = text.lines().collect();
    let marks: Vec<&str> = lines[2].split_whitespace().collect();
    let (time, marks) = marks.split_last().expect("fields");
    assert!(time.ends_with('s'), "{time}");
    assert_eq!(marks, fields(row));
    let end_of = |line: &str, column: usize| {
        let mut words = line.char_indices().filter(|(at, char)| *char != ' ' && !line[..*at].ends_with(|c| c != ' '));
        let (begin, _) = words.nth(column).expect("a column");
        line[..begin].chars().count() + line[begin..].split(' ').next().expect("a word").chars().count()
    };
    (1..=names.len()).for_each(|column| assert_eq!(end_of(lines[1], column), end_of(lines[2], column)));
    for property in Property::ALL {
        let explained = format!("{:12} {}", property.name(), property.asks());
        assert!(lines.contains(&explained.as_str()), "{explained}");
    }
    assert!(text.contains("states in "), "{text}");

    // For a program: the same again.
    assert_eq!(json["rows"].as_array().expect("an array").len(), 1);
    let json = &json["rows"][0];
    assert_eq!(json["design"], SMALL);
    let found: Vec<(&str, String)> = json["verdicts"].as_array().expect("an array").iter().map(mark).collect();
    let marks = marks[1..].iter().map(ToString::to_string);
    assert_eq!(found, names.into_iter().zip(marks).collect::<Vec<_>>());
    for key in ["states", "depth"] {
        let place = fields(head).iter().position(|name| *name == key).expect("its column");
        assert_eq!(json[key].to_string(), fields(row)[place]);
    }
}

/// A property and its verdict in JSON, as the table's mark.
fn mark(verdict: &Value) -> (&str, String) {
    let (name, verdict) = (verdict[0].as_str().expect("a name"), &verdict[1]);
    let number = |key: &str| if verdict[key].is_null() { "∞".to_owned() } else { verdict[key].to_string() };
    let mark = match verdict["verdict"].as_str().expect("a verdict") {
        "holds" => "ok".to_owned(),
        "untested" => "-".to_owned(),
        "broken" => format!("✗{}{}", number("steps"), if verdict["infinite"] == true { "∞" } else { "" }),
        "counted" => format!("{}/{}", number("alone"), number("worst")),
        other => panic!("{other}"),
    };
    (name, mark)
}

#[test]
fn a_history_as_lanes_and_its_token() {
    let text = printed(&ZAPPED);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.iter().all(|line| line.chars().count() <= 120), "{text}");
    let head = lines.iter().position(|line| line.starts_with("step ")).expect("the lanes");
    for lane in ["device 0", "CPU 0", "munmap", "what changed"] {
        assert!(lines[head].contains(lane), "{lane}: {text}");
    }
    assert!(lines[head + 1].trim_start().starts_with("1 "), "steps are numbered from 1: {text}");
    assert_eq!(text.matches("<-- breaks zapped").count(), 1, "{text}");
    let sentence = "device 0 reaches a page that is no longer at that address: nothing took it from the device.";
    assert_eq!(*lines.last().expect("lines"), sentence);
    assert_eq!(printed(&["lab", "--replay", token(&text)]), text);

    // One that goes round, and says so; its last lines are the sentence.
    let text = printed(&REPEAT);
    assert!(text.contains("\n+-- for ever from here:\n") && text.contains("\n+-- ... back to step "), "{text}");
    let (_, sentence) = text.trim_end().rsplit_once("\n\n").expect("a last paragraph");
    assert!(sentence.starts_with("device 0") && sentence.ends_with('.'), "{sentence}");
    assert_eq!(printed(&["lab", "--replay", token(&text)]), text);
    assert!(token(&text).contains('~'), "{}", token(&text));
}

#[test]
fn a_history_in_every_format() {
    let scratch = Scratch::new("lab-formats");
    let text = printed(&ZAPPED);
    for format in Format::ALL {
        let format = format.name();
        let shown = printed(&[&ZAPPED[..], &["--format", format]].concat());
        assert_eq!(printed(&["lab", "--replay", token(&text), "--format", format]), shown, "{format}");
        let path = scratch.path(format);
        let path = path.to_str().expect("UTF-8");
        for output in ["--output", "-o"] {
            assert!(printed(&[&ZAPPED[..], &["--format", format, output, path]].concat()).is_empty());
            assert_eq!(fs::read_to_string(path).expect("the file"), shown, "{format}");
        }
    }

    let file = |format: &str| fs::read_to_string(scratch.path(format)).expect("the file");
    assert_eq!(file("text"), text);
    let history = read(&file("json")).expect("a history");
    assert_eq!((history.design.as_str(), history.scenario.as_str()), (SMALL, "munmap"));
    assert_eq!(history.property.as_deref(), Some("zapped"));
    assert_eq!((history.token.as_str(), history.steps.len()), (token(&text), 13));
    assert_eq!(history.steps.last().expect("steps").broken, ["zapped"]);
    assert!(text.ends_with(&format!("\n{}\n", history.sentence)));

    let mermaid = file("mermaid");
    assert!(mermaid.starts_with("sequenceDiagram\n"), "{mermaid}");
    assert!(mermaid.contains("participant A0 as device 0") && mermaid.contains(token(&text)), "{mermaid}");

    // One page that stands alone: nothing in it is fetched from anywhere.
    let html = file("html");
    assert!(html.starts_with("<!doctype html>") && html.trim_end().ends_with("</html>"), "{html}");
    assert!(html.contains(token(&text)), "{html}");
    for fetched in ["http://", "https://", "src=", "<link", "@import", "url("] {
        assert!(!html.contains(fetched), "{fetched} is in the page");
    }
}

#[test]
fn a_property_that_has_no_history() {
    for (property, said) in [("atomicity", "atomicity holds under page-lock-only"), ("self-retry", "to the test")] {
        let show = ["lab", "show", SMALL, property];
        let text = printed(&show);
        assert!(text.contains(said) && text.lines().count() == 1, "{text}");
        for format in ["json", "html", "mermaid"] {
            refused(&[&show[..], &["--format", format]].concat(), &[said, "no history", format]);
        }
    }
}

#[test]
fn what_there_is() {
    let list = printed(&["lab", "list"]);
    for name in ["linux-2021", "linux-7.3", SMALL, "all-mended", "pagelease", "pagelease-inthread-eager"] {
        assert!(list.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name}: {list}");
    }
    for property in Property::ALL {
        let line = format!("  {:12} {}", property.name(), property.asks());
        assert!(list.lines().any(|listed| listed == line), "{line}");
    }
    let list = printed(&["lab", "list", SMALL]);
    assert!(list.starts_with("page-lock-only: "), "{list}");
    // Those that are sampled too.
    for scenario in ["alone ", "munmap ", "full "] {
        assert!(list.lines().any(|line| line.starts_with(scenario)), "{scenario}: {list}");
    }
    let help = printed(&["lab", "--help"]);
    for word in ["show", "list", "explore", "merge", "--design", "--table", "--replay", "--random", "--shard"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn names_and_formats_that_there_are_not() {
    let show = |args: &[&'static str]| [&["lab", "show"], args].concat();
    for args in [&["lab", "--design", "nosuch"][..], &["lab", "list", "nosuch"], &["lab", "explore", "nosuch"]] {
        refused(args, &["`nosuch`", "pagelease lab list"]);
    }
    refused(&show(&["nosuch", "zapped"]), &["`nosuch`", "pagelease lab list"]);
    refused(&show(&[SMALL, "nosuch"]), &["nosuch", "zapped", "repeat-ends"]);
    refused(&show(&[SMALL, "zapped", "--scenario", "nosuch"]), &[SMALL, "`nosuch`", "munmap"]);
    refused(&show(&[SMALL, "zapped", "--format", "nosuch"]), &["nosuch", "text, mermaid, json, html"]);
    refused(&show(&[SMALL]), &["<PROPERTY>"]);
    refused(&["lab", "--table", "nosuch"], &["nosuch", "text", "markdown", "json"]);
    refused(&["lab", "explore", SMALL, "--scenario", "nosuch"], &[SMALL, "`nosuch`", "touch"]);
    refused(&["lab", "--design", SMALL, "--threads", "0"], &["--threads"]);
}

#[test]
fn words_that_name_no_history() {
    let replay = |token: &str, words: &[&str]| refused(&["lab", "--replay", token], words);
    for word in ["nonsense", "page-lock-only:munmap", "page-lock-only:munmap:0é", "page-lock-only:munmap:00~2", ""] {
        replay(word, &[&format!("`{word}`"), "no history", "looks like"]);
    }
    replay("nosuch:munmap:0", &["`nosuch`"]);
    replay("page-lock-only:nosuch:0", &["`nosuch`", "munmap"]);
    // There are three actors, and no step has that many possibilities.
    replay("page-lock-only:munmap:0z", &["step", "possibility 35"]);
    replay("page-lock-only:munmap:00~0", &["no loop"]);
}

#[test]
fn files_that_cannot_be_read_or_written() {
    let scratch = Scratch::new("lab-files");
    let path = |name: &str| scratch.path(name).to_str().expect("UTF-8").to_owned();
    let merge = |name: &str, words: &[&str]| refused(&["lab", "merge", &path(name)], words);
    merge("missing", &["missing", "cannot read"]);
    merge("", &["Is a directory"]);
    scratch.file("garbage", b"garbage\n");
    merge("garbage", &["garbage:1:"]);
    scratch.file("other", b"{\"other\": 1}\n");
    merge("other", &["other:1:"]);
    for output in [path("nowhere/page.html"), path("")] {
        refused(&[&ZAPPED[..], &["--format", "html", "--output", &output]].concat(), &["cannot write"]);
    }
    let full = pagelease(&[&ZAPPED[..], &["--output", "/dev/full"]].concat()).output().expect("the program starts");
    let said = String::from_utf8_lossy(&full.stderr);
    assert_eq!((full.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("/dev/full"), "{said}");
}

#[test]
fn shards_that_there_are_not() {
    let sample = ["lab", "--random", "7", "--design", SMALL];
    for shard in ["4/4", "5/4", "0/0", "-1/4", "4", "a/b"] {
        refused(&[&sample[..], &[&format!("--shard={shard}")]].concat(), &[shard, "--shard", "I/N"]);
    }
    refused(&["lab", "--shard", "0/4"], &["--random"]);
    refused(&["lab", "--histories", "5"], &["--random"]);
    refused(&["lab", "--random", "many"], &["many", "--random"]);
    refused(&["lab", "--random", "7", "--table", "json"], &["--random", "--table"]);
    refused(&["lab", "--random", "7", "--design", "nosuch"], &["`nosuch`"]);
    refused(&[&sample[..], &["--scenario", "nosuch"]].concat(), &["`nosuch`", "full"]);
    // Its scenarios are all explored.
    refused(&["lab", "--random", "7", "--design", "pagelease"], &["pagelease", "too large"]);
}

#[test]
fn four_shards_are_one_run() {
    let scratch = Scratch::new("lab-shards");
    let sample = ["lab", "--random", "7", "--histories", "40", "--design", "linux-7.3"];
    let shards: Vec<String> =
        (0..4).map(|i| printed(&[&sample[..], &["--shard", &format!("{i}/4")]].concat())).collect();
    let whole = printed(&[&sample[..], &["--json"]].concat());
    assert!(shards.iter().all(|shard| shard.lines().count() == 1 && *shard != whole));
    let line: Value = serde_json::from_str(whole.trim_end()).expect("a line of JSON");
    assert_eq!((&line["design"], &line["scenario"]), (&Value::from("linux-7.3"), &Value::from("full")));

    let all = scratch.file("all", shards.concat().as_bytes());
    let all = all.to_str().expect("UTF-8");
    assert_eq!(printed(&["lab", "merge", "--json", all]), whole, "concatenated");
    let files: Vec<_> = (0..4).map(|i| scratch.file(&i.to_string(), shards[i].as_bytes())).collect();
    let output = pagelease(&["lab", "merge", "--json"]).args(files.iter().rev()).output().expect("the program starts");
    assert_eq!(String::from_utf8(output.stdout).expect("UTF-8"), whole, "a file each, in another order");
    let read_in = |args: &[&str], path: &str| {
        let mut command = pagelease(args);
        command.stdin(fs::File::open(path).expect("the file")).output().expect("the program starts")
    };
    assert_eq!(read_in(&["lab", "merge", "--json"], all).stdout, whole.as_bytes(), "standard input");
    assert_eq!(printed(&["lab", "merge", all]), printed(&sample), "for a reader");
    // A run has a history for whoever wants to see one.
    let history = line["tally"]["broken"]["self-retry"]["token"].as_str().expect("a token");
    assert!(printed(&["lab", "--replay", history]).contains("<-- breaks self-retry"), "{history}");

    // One is missing: what there is is printed, and the exit code says that it is not all.
    let part = scratch.file("part", shards[..3].concat().as_bytes());
    let output = pagelease(&["lab", "merge"]).arg(&part).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    // And a shard that is there twice is not counted twice.
    let twice = scratch.file("twice", [&shards[0][..], &shards[0]].concat().as_bytes());
    refused(&["lab", "merge", twice.to_str().expect("UTF-8")], &["0/4"]);
}

/// A program that runs until the test has seen enough.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the server at `address` answers to GET `path`, once it listens.
fn get(address: &str, path: &str) -> String {
    let begun = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{address}: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn the_explorer_serves() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let explore = ["lab", "explore", SMALL, "--scenario", "munmap", "--address", &address];
    refused(&explore, &["cannot listen", &address]);
    refused(&["lab", "explore", SMALL, "--address", "here"], &["here", "--address"]);
    drop(taken);

    let mut command = pagelease(&explore);
    let mut program = Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts"));
    let status = get(&address, "/.status");
    assert!(status.starts_with("HTTP/1.1 200"), "{status}");
    for word in ["Kernel", "zapped", "protected", "atomicity"] {
        assert!(status.contains(word), "{word}: {status}");
    }
    assert!(get(&address, "/").contains("<html"), "the page");
    let steps = get(&address, "/.states/0");
    assert!(steps.contains("device: load") && steps.contains("zap: mmap_lock"), "the kernel's names: {steps}");
    assert!(program.0.try_wait().expect("its state").is_none(), "it serves until it is stopped");
    program.0.kill().expect("it is stopped");
    let mut said = String::new();
    program.0.stderr.take().expect("standard error").read_to_string(&mut said).expect("UTF-8");
    assert!(said.contains(&format!("http://{address}/")) && said.contains(SMALL), "{said}");
}

#[test]
fn nobody_reads_on() {
    for args in [
        &["lab", "list"][..],
        &["lab", "--design", SMALL],
        &["lab", "--design", SMALL, "--table", "json"],
        &ZAPPED,
        &[&ZAPPED[..], &["--format", "html"]].concat(),
        &["lab", "show", SMALL, "atomicity"],
        &["lab", "--random", "7", "--histories", "40", "--design", SMALL],
    ] {
        let mut child = pagelease(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        // 141: as if by SIGPIPE; 0: it had written all before the reader went.
        assert!(matches!(output.status.code(), Some(141 | 0)), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}
