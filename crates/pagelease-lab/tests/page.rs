//! The page in a browser: what it shows at every step, by every key, is what the history says.
//!
//! A copy of the page gets two scripts: one before the page's own that collects errors, and one behind it that presses keys and
//! writes down what the page shows. The browser prints the document that comes out, and the test compares.

mod samples;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pagelease_lab::history::History;
use pagelease_lab::render::{Format, render};
use serde::Deserialize;

/// A cold start on a busy machine takes a few seconds.
const LIMIT: Duration = Duration::from_secs(120);

const COLLECT_ERRORS: &str = "<script>
const errors = [];
addEventListener('error', (event) => errors.push(String(event.message)));
addEventListener('unhandledrejection', (event) => errors.push(String(event.reason)));
addEventListener('securitypolicyviolation', (event) => errors.push(event.violatedDirective));
console.error = (...words) => errors.push(words.join(' '));
</script>
";

/// `KEYS` is an array of keys; `#N` goes to that fragment, `wait N` lets N milliseconds pass, `click ID` clicks, `focus ID`
/// focuses. What the page shows is noted at first and after each.
const DRIVER: &str = "<script>
(async () => {
  const text = (selector) => document.querySelector(selector).textContent;
  const shots = [];
  const shoot = () => shots.push({
    fragment: location.hash,
    current: [...document.querySelectorAll('#lanes [aria-current=step]')].map((row) => Number(row.dataset.step)),
    place: text('#where'), what: text('#what'), broken: text('#broken'), title: text('#state-title'),
    changes: [...document.querySelectorAll('#changes li:not(.none)')].map((item) => item.textContent),
    cells: [...document.querySelectorAll('#groups table')].flatMap((table) =>
      [...table.querySelectorAll('tr')].map((row) => ({
        group: table.caption.textContent, name: row.querySelector('th').textContent,
        value: row.querySelector('.value').textContent, changed: row.hasAttribute('data-changed'),
        flag: row.querySelector('.flag').textContent,
      }))),
  });
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  shoot();
  for (const key of KEYS) {
    const [word, rest] = key === ' ' ? [key] : key.split(' ');
    if (word === 'wait') await pause(Number(rest));
    else if (word === 'click') document.getElementById(rest).click();
    else if (word === 'focus') document.getElementById(rest).focus();
    else if (word.startsWith('#')) { location.hash = word; await pause(100); }
    else document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
    shoot();
  }
  const lanes = [...document.querySelectorAll('#lanes-body tr')].map((row) => [...row.children].map((cell) => cell.textContent));
  const report = JSON.stringify({ errors, shots, lanes, hidden: document.querySelector('main').hidden });
  const escaped = report.replace(/[<>&\\u00a0]/g, (c) => '\\\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'));
  document.body.append(Object.assign(document.createElement('pre'), { id: 'report', textContent: escaped }));
})();
</script>
";

#[derive(Debug, Deserialize)]
struct Report {
    errors: Vec<String>,
    shots: Vec<Shot>,
    /// The texts of every row of the lanes.
    lanes: Vec<Vec<String>>,
    hidden: bool,
}

/// What the page shows at one moment.
#[derive(Debug, Deserialize)]
struct Shot {
    fragment: String,
    current: Vec<usize>,
    place: String,
    what: String,
    broken: String,
    title: String,
    changes: Vec<String>,
    cells: Vec<ShownCell>,
}

#[derive(Debug, Deserialize)]
struct ShownCell {
    group: String,
    name: String,
    value: String,
    changed: bool,
    flag: String,
}

/// Removed at the end, also of a test that fails.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // A process of the browser may still be writing: what it leaves is in the temporary folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn chromium() -> Option<PathBuf> {
    let named = env::var_os("CHROMIUM").map(PathBuf::from);
    let paths = env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        env::split_paths(&paths).flat_map(|folder| names.map(|name| folder.join(name))).find(|path| path.is_file())
    });
    if found.is_none() {
        assert!(
            env::var_os("PAGELEASE_NEEDS_CHROMIUM").is_none(),
            "no Chromium on the PATH, and PAGELEASE_NEEDS_CHROMIUM is set"
        );
        println!("skipped: no Chromium on the PATH");
    }
    found
}

/// Opens the page of `history` at `fragment`, and presses `keys`. None where there is no browser.
fn press(test: &str, history: &History, fragment: &str, keys: &[&str]) -> Option<Report> {
    let chromium = chromium()?;
    let scratch = Scratch(env::temp_dir().join(format!("pagelease-page-{test}-{}", std::process::id())));
    fs::create_dir_all(&scratch.0).expect("a folder");
    let page = render(history, Format::Html, 0);
    let driver = DRIVER.replace("KEYS", &serde_json::to_string(keys).expect("strings"));
    let page = page.replacen("<head>", &format!("<head>{COLLECT_ERRORS}"), 1).replace("</body>", &(driver + "</body>"));
    let file = scratch.0.join("page.html");
    fs::write(&file, page).expect("a file");

    let document = run(&chromium, &scratch.0, &format!("file://{}{fragment}", file.display()));
    let report = document.split_once("<pre id=\"report\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (report, _) = report.unwrap_or_else(|| panic!("the page's driver did not end: {document:.2000}"));
    let report: Report = serde_json::from_str(report).expect("the driver's report");
    assert_eq!(report.errors, Vec::<String>::new());
    assert!(!report.hidden);
    Some(report)
}

/// The document at `address` after its scripts have run.
fn run(chromium: &Path, scratch: &Path, address: &str) -> String {
    let out = scratch.join("document");
    let mut browser = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-background-networking", "--virtual-time-budget=60000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", scratch.join("profile").display()))
        .arg(address)
        .env("HOME", scratch)
        .stdin(Stdio::null())
        // A file, not a pipe: nobody reads while the browser runs.
        .stdout(File::create(&out).expect("a file"))
        .stderr(File::create(scratch.join("messages")).expect("a file"))
        .spawn()
        .expect("the browser starts");
    let begin = Instant::now();
    while browser.try_wait().expect("our child").is_none() {
        if begin.elapsed() > LIMIT {
            browser.kill().expect("our child");
            browser.wait().expect("our child");
            panic!("the browser does not end: {}", fs::read_to_string(scratch.join("messages")).unwrap_or_default());
        }
        sleep(Duration::from_millis(20));
    }
    fs::read_to_string(out).expect("a document")
}

/// Compares everything that is shown with position `position` of `history`: 0 is before the first step.
fn assert_shows(shot: &Shot, history: &History, position: usize) {
    let step = position.checked_sub(1).map(|index| &history.steps[index]);
    assert_eq!(shot.current, [position], "{shot:?}");
    let cells = step.map_or(&history.initial, |step| &step.cells);
    let changed: Vec<_> = step.map_or(Vec::new(), |_| history.changes(position - 1).collect());
    assert_eq!(shot.cells.len(), cells.len(), "at {position}");
    for (shown, cell) in shot.cells.iter().zip(cells) {
        assert_eq!((&shown.group, &shown.name, &shown.value), (&cell.group, &cell.name, &cell.value), "at {position}");
        let marked = changed.iter().any(|change| std::ptr::eq(*change, cell));
        assert_eq!(shown.changed, marked, "at {position}: {shown:?}");
        assert_eq!(shown.flag, if marked { "changed" } else { "" }, "at {position}: {shown:?}");
    }
    assert_eq!(shot.changes.len(), changed.len(), "at {position}: {:?}", shot.changes);
    for (shown, change) in shot.changes.iter().zip(changed) {
        assert!(shown.starts_with(&format!("{} {}: ", change.group, change.name)), "at {position}: {shown}");
        assert!(shown.ends_with(&format!(" → {}", change.value)), "at {position}: {shown}");
    }
    match step {
        None => assert_eq!((shot.what.as_str(), shot.title.as_str()), ("", "State at first")),
        Some(step) => {
            assert!(shot.what.starts_with(&format!("{}: {}", history.actors[step.actor], step.name)), "{shot:?}");
            assert!(shot.what.ends_with(&step.detail), "{shot:?}");
            assert!(shot.place.starts_with(&format!("Step {position} of {}", history.steps.len())), "{shot:?}");
            assert_eq!(shot.title, format!("State after step {position}"));
        }
    }
    let broken = step.map_or(String::new(), |step| step.broken.join(", "));
    assert!(shot.broken.contains(&broken) && shot.broken.is_empty() == broken.is_empty(), "{shot:?}");
}

/// Presses `keys` from `fragment` on, and compares what is shown with `positions`: at first, then after each key.
fn assert_walk(test: &str, history: &History, fragment: &str, keys: &[&str], positions: &[usize]) -> Option<Report> {
    let report = press(test, history, fragment, keys)?;
    assert_eq!(report.shots.len(), positions.len());
    for (at, (shot, &position)) in report.shots.iter().zip(positions).enumerate() {
        assert_shows(shot, history, position);
        assert!(at == 0 || shot.fragment == format!("#{position}"), "the fragment after key {at}: {shot:?}");
    }
    Some(report)
}

#[test]
fn the_right_arrow_goes_through_a_finite_history_and_stops() {
    let history = samples::finite();
    let steps = history.steps.len();
    let positions: Vec<_> = (0..=steps).chain([steps]).collect();
    let Some(report) = assert_walk("right", &history, "", &vec!["ArrowRight"; steps + 1], &positions) else { return };
    assert_eq!(report.shots[steps].place, format!("Step {steps} of {steps}, the last"));
    assert_eq!(report.shots[steps].broken, "This step breaks atomicity, count.");

    // Each step once, in its actor's lane. Number, one cell an actor, what changed.
    assert_eq!(report.lanes.len(), steps + 1);
    for (row, (number, step)) in report.lanes[1..].iter().zip((1..).zip(&history.steps)) {
        assert_eq!(row.len(), history.actors.len() + 2);
        assert_eq!(row[0], number.to_string());
        for (lane, text) in row[1..=history.actors.len()].iter().enumerate() {
            assert_eq!(text.starts_with(&step.name) && text.contains(&step.detail), lane == step.actor, "{row:?}");
            assert_eq!(text.is_empty(), lane != step.actor, "{row:?}");
        }
    }
}

#[test]
fn keys_go_back_and_to_the_ends() {
    let keys = ["ArrowLeft", "j", "j", "ArrowLeft", "k", "End", "ArrowLeft", "Home", "End", "k", "x"];
    assert_walk("keys", &samples::finite(), "", &keys, &[0, 0, 1, 2, 1, 0, 11, 10, 0, 11, 10, 10]);
}

#[test]
fn a_fragment_entered_by_hand_is_followed() {
    // What is no number, or too large, is corrected.
    assert_walk("fragments", &samples::finite(), "#1", &["#3", "#99", "#5", "#x"], &[1, 3, 11, 5, 0]);
}

#[test]
fn a_link_opens_at_its_step() {
    for (fragment, position) in [("#0", 0), ("#1", 1), ("#7", 7), ("#11", 11), ("#12", 11), ("#seven", 0)] {
        assert_walk(&format!("link-{}", &fragment[1..]), &samples::finite(), fragment, &[], &[position]);
    }
}

#[test]
fn an_infinite_history_goes_round() {
    let history = samples::lasso();
    let keys = ["ArrowRight"; 14].into_iter().chain(["ArrowLeft"; 9]).chain(["End", "j", "Home"]).collect::<Vec<_>>();
    let right = [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5, 6, 4, 5];
    let left = [4, 6, 5, 4, 6, 5, 4, 6, 5, 6, 4, 0];
    let Some(report) = assert_walk("loop", &history, "", &keys, &[&right[..], &left[..]].concat()) else { return };
    let places: Vec<_> = report.shots.iter().map(|shot| shot.place.as_str()).collect();
    assert_eq!(places[3], "Step 3 of 6");
    assert_eq!(places[6], "Step 6 of 6, round 1 of the loop; then back to step 4, for ever");
    assert_eq!(places[7], "Step 4 of 6: back to it, round 2 of the loop");
    assert_eq!(places[10], "Step 4 of 6: back to it, round 3 of the loop");
    assert_eq!(places[16], "Step 6 of 6, round 3 of the loop; then back to step 4, for ever");
    let rows: Vec<_> = report.lanes.iter().map(|row| row.concat()).collect();
    assert_eq!(rows[4], "for ever from here");
    assert!(rows[5].starts_with("4mmu_interval_read_begin"), "{rows:?}");
    assert_eq!(rows.last().map(String::as_str), Some("… back to step 4, for ever"));
}

#[test]
fn space_plays_and_any_other_key_stops_it() {
    let history = samples::finite();
    // 900 ms a step. The time is the page's, not the clock's.
    let keys = [" ", "wait 2000", " ", "wait 5000", " ", "wait 1000", "ArrowLeft", "wait 5000", " ", "wait 30000", " "];
    let positions = [0, 0, 2, 2, 2, 2, 3, 2, 2, 2, 11, 0];
    let Some(report) = press("space", &history, "", &keys) else { return };
    for (shot, position) in report.shots.iter().zip(positions) {
        assert_shows(shot, &history, position);
    }
}

#[test]
fn buttons_do_what_they_say() {
    // On a button, the space bar is the button's: the page must not play as well.
    let keys = [
        "click next",
        "click next",
        "click previous",
        "click last",
        "click first",
        "focus next",
        " ",
        "wait 3000",
        "j",
    ];
    let positions = [0, 1, 2, 1, 11, 0, 0, 0, 0, 1];
    assert_walk("buttons", &samples::finite(), "", &keys, &positions);
}

#[test]
fn without_scripts_there_is_the_text() {
    let page = render(&samples::finite(), Format::Html, 0);
    let (_, text) = page.split_once("<noscript><pre>").expect("a text");
    assert!(text.contains("what changed") && page.contains("<main hidden>"));
}
