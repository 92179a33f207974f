//! Every format says the same of a history, in its own form, and keeps to that form whatever the names contain.

mod samples;

use pagelease_lab::history::{History, StepView};
use pagelease_lab::render::{DEFAULT_WIDTH, Format, MIN_WIDTH, ReadError, read, render};

fn text(history: &History, width: usize) -> String {
    render(history, Format::Text, width)
}

/// The steps of a text rendering: the number below `step`, and its line.
fn numbered(text: &str) -> Vec<(usize, &str)> {
    let mut lanes = text.lines().skip_while(|line| !line.contains("what changed")).take_while(|line| !line.is_empty());
    let width = lanes.next().and_then(|heading| heading.find("step")).expect("a heading") + "step".len();
    let number = |line: &str| line.chars().take(width).collect::<String>().trim_start_matches('|').trim().parse().ok();
    lanes.filter_map(|line| Some((number(line)?, line))).collect()
}

/// `actors` lanes, in which each actor takes two steps with long names.
fn crowd(actors: usize) -> History {
    let mut history = samples::finite();
    history.actors = (0..actors).map(|actor| format!("party {actor}")).collect();
    let step = |at: usize| StepView { actor: at % actors, ..history.steps[at % history.steps.len()].clone() };
    history.steps = (0..2 * actors).map(step).collect();
    history
}

#[test]
fn formats_have_names() {
    for &format in Format::ALL {
        assert_eq!(Format::named(format.name()), Some(format));
        assert_eq!(format!("{format:>8}").trim(), format.name());
        assert!(render(&samples::finite(), format, DEFAULT_WIDTH).ends_with('\n'));
    }
    assert_eq!(Format::named("pdf"), None);
}

#[test]
fn text_fits_every_width() {
    let histories = [samples::finite(), samples::lasso(), crowd(1), crowd(3), crowd(6), crowd(32)];
    for width in (0..90).chain((90..200).step_by(10)) {
        for history in &histories {
            for line in text(history, width).lines() {
                let fits = line.chars().count() <= width.max(MIN_WIDTH);
                assert!(fits || line.starts_with("replay    pagelease lab --replay "), "at {width}: {line:?}");
            }
        }
    }
}

#[test]
fn text_has_every_step_once_in_its_lane() {
    for history in [samples::finite(), samples::lasso(), crowd(2), crowd(6)] {
        let text = text(&history, DEFAULT_WIDTH);
        let heading = text.lines().find(|line| line.contains("what changed")).expect("a heading").to_owned();
        let lines = numbered(&text);
        let numbers: Vec<_> = lines.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (1..=history.steps.len()).collect::<Vec<_>>());
        for ((_, line), step) in lines.into_iter().zip(&history.steps) {
            // A name that is wrapped begins in its lane all the same.
            let begin = step.name.split_inclusive('_').next().expect("a name");
            let lane = heading.find(&history.actors[step.actor]).expect("a lane");
            let in_lane: String = line.chars().skip(lane).collect();
            assert!(in_lane.starts_with(begin), "{begin:?} should stand at {lane} of {line:?}");
        }
    }
}

#[test]
fn text_without_room_for_lanes_names_the_actor() {
    for (history, width) in [(samples::finite(), 50), (crowd(32), DEFAULT_WIDTH)] {
        let text = text(&history, width);
        assert!(text.contains("actor and step"));
        for ((_, line), step) in numbered(&text).into_iter().zip(&history.steps) {
            let begin = format!("  {}:", history.actors[step.actor]);
            assert!(line.contains(&begin), "{begin} {line:?}");
        }
    }
}

#[test]
fn text_shows_what_changed_and_what_broke() {
    let text = text(&samples::finite(), 400);
    let lines = numbered(&text);
    assert!(lines[1].1.ends_with("  folio 0 lock: driver 0; folio 0 references: 2"), "{:?}", lines[1]);
    assert!(
        lines[3].1.ends_with('|') && lines[3].1.contains("mmu_interval_read_retry: seq 2: no retry  "),
        "{:?}",
        lines[3]
    );
    assert_eq!(text.matches("<-- breaks atomicity, count").count(), 1);
    assert!(text.contains("at first  page table page 0: present, frame 0; page 1: none\n"));
}

#[test]
fn text_draws_the_loop_and_ends_with_the_sentence() {
    let lasso = text(&samples::lasso(), DEFAULT_WIDTH);
    let lines: Vec<_> = lasso.lines().collect();
    let begin = lines.iter().position(|line| line.starts_with("+-- for ever")).expect("a begin");
    let end = lines.iter().position(|line| line.contains("... back to step 4, for ever")).expect("an end");
    assert!(lines[begin + 1].starts_with("|    4  mmu_interval"), "{:?}", lines[begin + 1]);
    assert!(lines[begin + 1..end].iter().all(|line| line.starts_with("|  ")));
    assert_eq!(lasso.lines().last(), Some(samples::lasso().sentence.as_str()));

    let finite = text(&samples::finite(), DEFAULT_WIDTH);
    assert!(!finite.contains("for ever"));
    let sentence = finite.rsplit("\n\n").next().expect("a last part");
    assert_eq!(sentence.split_whitespace().collect::<Vec<_>>().join(" "), samples::finite().sentence);
    assert!(finite.contains("property  atomicity: no CPU access between"));
    assert!(finite.contains("\nreplay    pagelease lab --replay k1.page-lock-only.claim-touch.0a1b2c3d\n"));
}

#[test]
fn a_line_break_in_a_name_ends_no_line() {
    let mut history = samples::lasso();
    history.steps[0].name = "two\nlines\tand more".to_owned();
    history.design = "end\nend".to_owned();
    assert!(text(&history, DEFAULT_WIDTH).contains("two lines and more"));
    let mermaid = render(&history, Format::Mermaid, 0);
    assert!(mermaid.contains("A1->>A1: 1. two lines and more"), "{mermaid}");
    assert_eq!(mermaid.lines().filter(|line| line.trim() == "end").count(), 1);
}

#[test]
fn a_history_without_steps_is_no_trouble() {
    let mut history = samples::finite();
    history.steps.clear();
    history.actors.clear();
    history.initial.clear();
    for &format in Format::ALL {
        assert!(render(&history, format, MIN_WIDTH).contains("page-lock-only"));
    }
}

#[test]
fn mermaid_is_well_formed() {
    for history in [samples::finite(), samples::lasso(), crowd(6)] {
        let mermaid = render(&history, Format::Mermaid, 0);
        let mut lines = mermaid.lines();
        assert_eq!(lines.next(), Some("sequenceDiagram"));
        let (mut messages, mut depth, mut participants) = (0, 0, 0);
        for line in lines.map(str::trim) {
            match line.split(' ').next().expect("a word") {
                "%%" => continue,
                "title" => {}
                "participant" => participants += 1,
                "loop" => depth += 1,
                "end" => depth -= 1,
                "Note" => assert!(line.starts_with("Note over A")),
                arrow => {
                    let actor = history.steps[messages].actor;
                    assert_eq!(arrow, format!("A{actor}->>A{actor}:"));
                    messages += 1;
                    assert!(line.contains(&format!(": {messages}. ")), "{line:?}");
                }
            }
            assert!((0..=1).contains(&depth));
            assert_escaped(line);
        }
        assert_eq!((messages, depth, participants), (history.steps.len(), 0, history.actors.len()));
    }
    let lasso = render(&samples::lasso(), Format::Mermaid, 0);
    let before_loop = lasso.split("    loop for ever\n").next().expect("a part");
    assert_eq!(before_loop.matches("->>").count(), 3);
    assert!(lasso.contains("participant A1 as CPU 0#58; #34;toucher#34;\n"));
    assert!(lasso.contains("title page-lock-only, repeat#59; claim #35;2\n"));
}

/// Fails if what stands behind the keyword could end early: each `#` begins an entity, each `;` ends one, and of markup there
/// is only the line break.
fn assert_escaped(line: &str) {
    let text = line.split_once(": ").map_or(line, |(_, text)| text).replace("<br/>", "");
    assert!(!text.contains(['<', '>', '&', '"', ':', '%', '{', '}']), "{line:?}");
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('#') {
        assert!(!before.contains(';'), "{line:?}");
        let (entity, after) = after.split_once(';').expect("an entity ends");
        assert!(!entity.is_empty() && entity.chars().all(|c| c.is_ascii_digit()), "{line:?}");
        rest = after;
    }
    assert!(!rest.contains(';'), "{line:?}");
}

#[test]
fn json_reads_back() {
    for history in [samples::finite(), samples::lasso()] {
        let json = render(&history, Format::Json, 0);
        assert!(json.starts_with("{\n  \"format\": \"pagelease-lab-history/1\",\n  \"design\""), "{json:.80}");
        assert_eq!(read(&json).expect("it reads back"), history);
    }
}

#[test]
fn json_that_is_no_history_is_refused() {
    let json = render(&samples::lasso(), Format::Json, 0);
    assert!(matches!(read("{}"), Err(ReadError::Json(_))));
    assert!(matches!(read(&json[..json.len() / 2]), Err(ReadError::Json(_))));
    assert!(matches!(read(&json.replace("history/1", "history/2")), Err(ReadError::Format(_))));
    for (right, wrong) in [
        ("\"actor\": 1", "\"actor\": 2"),
        ("\"loop_from\": 3", "\"loop_from\": 6"),
        ("\"name\": \"retries\"", "\"name\": \"tries\""),
    ] {
        assert!(json.contains(right), "{right}");
        assert!(matches!(read(&json.replacen(right, wrong, 1)), Err(ReadError::Inconsistent(_))), "{wrong}");
    }
}

#[test]
fn html_needs_nothing_from_elsewhere() {
    for history in [samples::finite(), samples::lasso()] {
        let html = render(&history, Format::Html, 0);
        for word in ["http:", "https:", "//www", "src=", "url(", "@import", "<link", "import(", "fetch("] {
            assert!(!html.contains(word), "{word}");
        }
        let links: Vec<_> = html.match_indices("href").map(|(at, _)| &html[at..at + 8]).collect();
        assert!(links.iter().all(|&link| link == "href: `#"), "links lead to steps only: {links:?}");
        assert!(html.contains("default-src 'none'"));
        assert!(!html.contains("{{"));
    }
}

#[test]
fn html_escapes_what_the_history_says() {
    let history = samples::finite();
    let html = render(&history, Format::Html, 0);
    let data = html.split_once("<script type=\"application/json\" id=\"history\">").expect("the data").1;
    let data = data.split_once("</script>").expect("its end").0;
    assert!(!data.contains('<'));
    assert_eq!(read(data).expect("the data is the JSON format"), history);
    assert!(html.contains("page 0 &lt;was&gt; taken back"));
    assert!(html.contains("&amp; entry alone"));
    assert_eq!(html.matches("<script").count(), html.matches("</script>").count());
    let shown =
        html.split_once("<noscript><pre>").expect("the text").1.split_once("</pre></noscript>").expect("its end").0;
    assert!(!shown.contains(['<', '>']) && shown.contains("&lt;-- breaks atomicity, count"));
}
