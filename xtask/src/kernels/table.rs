//! What the guests' programs came to, as one table: a row for each rig of a test program (the module its tests lie in, such
//! as `minor_monitor`), one for the doctor, and one for each histogram.

use std::fmt::Write as _;

use super::guest::{End, Ran};

const UNFINISHED: &str = "not all ended";

/// A line of the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Row {
    pub(crate) kernel: String,
    /// The rig, or the program.
    pub(crate) what: String,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// Why something was skipped, and what else there is to say in a few words.
    pub(crate) note: String,
    /// What a failure printed.
    pub(crate) details: Vec<String>,
}

/// The rows of a test program. `expected` are its tests, or none where they are not known.
pub(crate) fn of_tests(kernel: &str, program: &str, expected: &[String], ran: &Ran) -> Vec<Row> {
    let results: Vec<(&str, &str)> = ran.stdout.lines().filter_map(result).collect();
    let mut rows: Vec<Row> = Vec::new();
    let lost = expected.iter().map(String::as_str).filter(|test| results.iter().all(|(name, _)| name != test));
    for (test, result) in results.iter().copied().chain(lost.map(|test| (test, "lost"))) {
        let row = row(&mut rows, kernel, &of_rig(program, test.split_once("::").map(|(rig, _)| rig)));
        match result {
            "ok" => row.passed += 1,
            "FAILED" => {
                row.failed += 1;
                row.details.push(format!("{test}\n{}", said_by(test, &ran.stderr)));
            }
            "lost" => {
                row.failed += 1;
                row.note = format!("{UNFINISHED}: {program} {}", how(ran.end));
            }
            _ => {
                row.skipped += 1;
                note(row, "ignored");
            }
        }
    }
    // A test that is skipped ends well as far as the harness knows, and has said so.
    for reason in ran.stderr.lines().filter_map(|line| line.strip_prefix("skipped: ")) {
        let named = reason.split_once(": ").map(|(rig, reason)| (of_rig(program, Some(rig)), reason));
        let known = named.filter(|(what, _)| rows.iter().any(|row| row.what == *what));
        let (what, reason) = known.unwrap_or((of_rig(program, None), reason));
        let reason = in_short(reason);
        let row = row(&mut rows, kernel, &what);
        row.passed = row.passed.saturating_sub(1);
        row.skipped += 1;
        note(row, reason);
    }
    if ran.end != End::Exit(0) {
        // It may have ended badly though no test did.
        let unfinished = rows.iter().find(|row| row.note.starts_with(UNFINISHED)).map(|row| row.what.clone());
        let failed = rows.iter().any(|row| row.failed > 0);
        let row = row(&mut rows, kernel, unfinished.as_deref().unwrap_or(program));
        if !failed {
            row.failed = 1;
            row.note = how(ran.end);
        }
        if (!failed || unfinished.is_some()) && matches!(ran.end, End::Exit(_)) {
            // The harness says on its own which tests have been running for long.
            let long = ran.stdout.lines().filter(|line| line.contains(" has been running for over "));
            let long: String = long.map(|line| format!("\n{line}")).collect();
            row.details.push(format!("{program} {}{long}\n{}", how(ran.end), last_lines(&ran.stderr, 12)));
        }
    }
    rows.retain(|row| row.passed + row.failed + row.skipped > 0);
    rows
}

/// The row of the doctor, who has found that the kernel `lacks` some features.
pub(crate) fn of_doctor(kernel: &str, ran: &Ran, lacks: &[String]) -> Row {
    let mut row = Row { kernel: kernel.to_owned(), what: "doctor".to_owned(), ..Row::default() };
    match ran.end {
        End::Exit(0) => row.passed = 1,
        end => fail(&mut row, ran, how(end)),
    }
    if row.failed == 0 && !lacks.is_empty() {
        row.note = format!("lacks {}", lacks.join(", "));
    }
    row
}

/// The row of a histogram, which is to be served by `backend`. It `needs` features, as the doctor names them; a kernel that
/// `lacks` one must have it refused, and the refusal must say so.
pub(crate) fn of_histogram(
    kernel: &str,
    what: &str,
    ran: &Ran,
    needs: &[&str],
    lacks: &[String],
    backend: &str,
) -> Row {
    let mut row = Row { kernel: kernel.to_owned(), what: what.to_owned(), ..Row::default() };
    let missing = needs.iter().find(|need| lacks.iter().any(|lack| lack == *need));
    match (ran.end, missing) {
        (End::Exit(0), None) => match served_by(&ran.stdout) {
            Some(served) if served == backend => {
                row.passed = 1;
                row.note = format!("served by {served}");
            }
            served => fail(&mut row, ran, format!("served by {}, not by {backend}", served.unwrap_or("nobody"))),
        },
        (End::Exit(0), Some(missing)) => fail(&mut row, ran, format!("was not refused, though there is no {missing}")),
        (End::Exit(1), Some(missing)) if ran.stderr.contains("lacks") && ran.stderr.contains(missing) => {
            row.skipped = 1;
            let reason = ran.stderr.lines().find(|line| line.contains("lacks")).unwrap_or_default();
            in_short(reason.trim_start_matches("pagelease: ")).clone_into(&mut row.note);
        }
        (end, _) => fail(&mut row, ran, how(end)),
    }
    row
}

/// The backend that a histogram names, between brackets at the end of what it says of its memory.
fn served_by(histogram: &str) -> Option<&str> {
    let memory = histogram.lines().find(|line| line.starts_with("  memory "))?;
    Some(memory.rsplit_once('(')?.1.trim_end_matches(')'))
}

fn fail(row: &mut Row, ran: &Ran, why: String) {
    row.failed = 1;
    row.note = why;
    // Why a guest stopped is told once, for all.
    if matches!(ran.end, End::Exit(_)) {
        row.details.push(last_lines(&format!("{}\n{}", ran.stdout, ran.stderr), 12));
    }
}

/// The features that the doctor misses: lines that begin with `no`, up to the column of remarks. Those of userfaultfd have
/// names of their own; others, in other sections, are named after these too.
pub(crate) fn lacks(doctor: &str) -> Vec<String> {
    let (mut lacks, mut section) = (Vec::new(), "");
    for line in doctor.lines() {
        if let Some(rest) = line.strip_prefix("  no  ") {
            let name = rest.split("  ").next().unwrap_or(rest);
            lacks.push(if section == "userfaultfd" { name.to_owned() } else { format!("{section}: {name}") });
        } else if !line.starts_with(' ') {
            section = line;
        }
    }
    lacks
}

/// The table, then what failures printed, then the sum. `true` if nothing failed.
pub(crate) fn show(rows: &[Row]) -> bool {
    let width = |of: fn(&Row) -> &str| rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0).max(7);
    let (kernels, whats) = (width(|row| &row.kernel), width(|row| &row.what));
    println!("\n{:kernels$}  {:whats$}  passed  failed  skipped", "kernel", "backend");
    for row in rows {
        let Row { kernel, what, passed, failed, skipped, note, .. } = row;
        let line = format!("{kernel:kernels$}  {what:whats$}  {passed:6}  {failed:6}  {skipped:7}  {note}");
        println!("{}", line.trim_end());
    }
    for row in rows {
        for details in &row.details {
            println!("\n--- {}, {}\n{}", row.kernel, row.what, details.trim_end());
        }
    }
    let sum = |of: fn(&Row) -> usize| rows.iter().map(of).sum::<usize>();
    let (passed, failed, skipped) = (sum(|row| row.passed), sum(|row| row.failed), sum(|row| row.skipped));
    println!("\nkernels: {passed} passed, {failed} failed, {skipped} skipped");
    failed == 0
}

/// What the table calls the tests of a rig, or those that have none. The conformance suite's are the rig's as such.
fn of_rig(program: &str, rig: Option<&str>) -> String {
    match rig {
        Some(rig) if program == "conformance" => rig.to_owned(),
        Some(rig) => format!("{program}: {rig}"),
        None => program.to_owned(),
    }
}

/// A refusal without its remedy, which is for who stands before the machine.
fn in_short(refusal: &str) -> &str {
    refusal.split("; ").next().unwrap_or(refusal)
}

/// `test NAME ... RESULT`, of the test harness; the rest of a result (why it is ignored, how long it took) is left out.
fn result(line: &str) -> Option<(&str, &str)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((name, result.split([',', ' ']).next().unwrap_or(result)))
}

fn row<'a>(rows: &'a mut Vec<Row>, kernel: &str, what: &str) -> &'a mut Row {
    let at = rows.iter().position(|row| row.what == what).unwrap_or(rows.len());
    if at == rows.len() {
        rows.push(Row { kernel: kernel.to_owned(), what: what.to_owned(), ..Row::default() });
    }
    &mut rows[at]
}

fn note(row: &mut Row, reason: &str) {
    if row.note.is_empty() {
        reason.clone_into(&mut row.note);
    } else if !row.note.split("; ").any(|known| known == reason) {
        let _ = write!(row.note, "; {reason}");
    }
}

fn how(end: End) -> String {
    match end {
        // As a shell has it.
        End::Exit(137) => "was killed: it took too long, or the guest has too little memory".to_owned(),
        End::Exit(status) if status > 128 => format!("was ended by signal {}", status - 128),
        End::Exit(status) => format!("exited with {status}"),
        End::CutOff => "was running when the guest stopped".to_owned(),
        End::NotBegun => "was not begun".to_owned(),
    }
}

/// What a test's thread said when it panicked.
fn said_by(test: &str, stderr: &str) -> String {
    let begin = format!("thread '{test}'");
    let said = stderr.lines().skip_while(|line| !line.starts_with(&begin)).enumerate();
    let own = said.take_while(|(at, line)| *at == 0 || !(line.is_empty() || line.starts_with("thread '")));
    own.take(10).map(|(_, line)| format!("{line}\n")).collect()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::{Row, lacks, of_histogram, of_tests};
    use crate::kernels::guest::{End, Ran};

    fn ran(stdout: &str, stderr: &str, status: u32) -> Ran {
        Ran { stdout: stdout.to_owned(), stderr: stderr.to_owned(), end: End::Exit(status), seconds: 0.0 }
    }

    fn counts(rows: &[Row]) -> Vec<(&str, usize, usize, usize, &str)> {
        rows.iter().map(|row| (row.what.as_str(), row.passed, row.failed, row.skipped, row.note.as_str())).collect()
    }

    #[test]
    fn tests_are_counted_by_rig() {
        let ran = ran(
            "running 5 tests\ntest minor_monitor::a ... ok\ntest minor_monitor::b ... FAILED\ntest move_monitor::a ... ok <1.2s>\n\
             test move_monitor::b ... ok\ntest plain ... ignored, for a reason\n",
            "skipped: move_monitor: no UFFDIO_MOVE (6.8); it has others\nskipped: move_monitor: no UFFDIO_MOVE (6.8)\n\
             thread 'minor_monitor::b' (7) panicked at x.rs:1:\nleft is not right\n\nmore\n",
            101,
        );
        let rows = of_tests("6.1", "conformance", &[], &ran);
        let expected = [
            ("minor_monitor", 1, 1, 0, ""),
            ("move_monitor", 0, 0, 2, "no UFFDIO_MOVE (6.8)"),
            ("conformance", 0, 0, 1, "ignored"),
        ];
        assert_eq!(counts(&rows), expected);
        let details = "minor_monitor::b\nthread 'minor_monitor::b' (7) panicked at x.rs:1:\nleft is not right\n";
        assert_eq!(rows[0].details, [details]);
    }

    #[test]
    fn a_test_without_a_result_has_failed() {
        let expected = ["minor_monitor::a", "minor_monitor::b", "sim_monitor::a"].map(str::to_owned);
        let rows = of_tests("6.1", "conformance", &expected, &ran("test minor_monitor::a ... ok\n", "*** stuck", 134));
        let note = "not all ended: conformance was ended by signal 6";
        let expected = [("minor_monitor", 1, 1, 0, note), ("sim_monitor", 0, 1, 0, note)];
        assert_eq!(counts(&rows), expected);
        assert_eq!(rows[0].details, ["conformance was ended by signal 6\n*** stuck"]);
    }

    #[test]
    fn a_program_that_ends_badly_has_failed_though_no_test_has() {
        let rows = of_tests("6.1", "stress", &["a".to_owned()], &ran("test a ... ok\n", "", 139));
        assert_eq!(counts(&rows), [("stress", 1, 1, 0, "was ended by signal 11")]);
    }

    #[test]
    fn what_is_not_the_conformance_suite_says_so() {
        let ran = ran("test move_monitor::a ... ok\ntest b ... ok\n", "skipped: move_monitor: no MOVE; or else\n", 0);
        let rows = of_tests("6.1", "stress", &[], &ran);
        assert_eq!(counts(&rows), [("stress: move_monitor", 0, 0, 1, "no MOVE"), ("stress", 1, 0, 0, "")]);
    }

    #[test]
    fn a_histogram_is_skipped_only_if_refused_for_what_the_doctor_misses() {
        let lacks =
            lacks("userfaultfd\n  ok  MINOR_SHMEM   traps (5.14)\n  no  MOVE                        lets (6.8)\n");
        assert_eq!(lacks, ["MOVE"]);
        let row = |ran: &Ran, needs: &[&str]| of_histogram("6.1", "it", ran, needs, &lacks, "minor");
        let refused = ran("", "pagelease: adopting: the kernel lacks MOVE; take another", 1);
        assert_eq!(counts(&[row(&refused, &["MOVE"])]), [("it", 0, 0, 1, "adopting: the kernel lacks MOVE")]);
        assert_eq!(counts(&[row(&refused, &["MINOR_SHMEM"])]), [("it", 0, 1, 0, "exited with 1")]);
        let otherwise = ran("", "pagelease: not a file", 1);
        assert_eq!(counts(&[row(&otherwise, &["MOVE"])]), [("it", 0, 1, 0, "exited with 1")]);
    }

    #[test]
    fn a_histogram_is_served_by_what_was_expected() {
        let lacks = ["RWP".to_owned()];
        let ran = ran("x: 1 byte\n  memory         shared memory; trapped (minor)\n  time (ms)  3\n", "", 0);
        let row = |needs: &[&str], backend| of_histogram("6.1", "it", &ran, needs, &lacks, backend);
        assert_eq!(counts(&[row(&[], "minor")]), [("it", 1, 0, 0, "served by minor")]);
        assert_eq!(counts(&[row(&[], "rwprotect")]), [("it", 0, 1, 0, "served by minor, not by rwprotect")]);
        assert_eq!(counts(&[row(&["RWP"], "minor")]), [("it", 0, 1, 0, "was not refused, though there is no RWP")]);
    }
}
