//! `pagelease doctor`: what this machine offers, what that means, and how to get the rest.
//!
//! It tries things out (a page is revoked, touched, served, in both ways) instead of reading version numbers. The exit
//! status is 0 when pagelease can do its main job here, in one of its two modes, and 1 otherwise. With `--pid`, it also
//! looks at the threads of that process, which is the application that matters: in-thread mode kills a thread that
//! touches a device's page while it blocks SIGBUS, or SIGSEGV with the `mprotect` backend.
//!
//! # JSON
//!
//! `--json` prints one object:
//!
//! ```json
//! {
//!   "kernel": "6.18.44", "architecture": "x86_64", "page_size": 4096,
//!   "privilege": { "uid": 0, "cap_sys_ptrace": true, "unprivileged_userfaultfd": false, "device": "0600 0:0" },
//!   "userfaultfd": {
//!     "path": "/dev/userfaultfd",
//!     "attempts": [ { "path": "/dev/userfaultfd", "features": ["SIGBUS", "MINOR_SHMEM"], "error": null } ]
//!   },
//!   "huge_pages": {
//!     "transparent": "madvise", "shmem": "never", "pools": [ { "page_kib": 2048, "pages": 0, "free": 0 } ]
//!   },
//!   "threads_blocking_sigbus": { "pid": 4711, "threads": [ { "tid": 4712, "name": "reaper" } ] },
//!   "threads_blocking_sigsegv": { "pid": 4711, "threads": [ { "tid": 4712, "name": "reaper" } ] },
//!   "checks": [
//!     { "section": "tried", "name": "monitor", "ok": true, "needed": true, "found": "a touch is served in 12.3 us",
//!       "remedy": null }
//!   ],
//!   "modes": [ { "name": "monitor", "ok": true, "meaning": "..." } ],
//!   "ready": true
//! }
//! ```
//!
//! `userfaultfd.path` is the way in force, `null` when there is none; `attempts` has all three ways, in the order in
//! which they are tried, each with `features` or `error`. `remedy` is a shell command. `threads` is `null` when the
//! process could not be looked at. `ready` is what the exit status says.

mod checks;
mod devices;
mod machine;
mod trial;

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

/// Say what this machine offers, what that means, and how to get the rest
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Look at the threads of this process, rather than the doctor's own, for any that block SIGBUS or SIGSEGV
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

/// Examines the machine, and prints what it found.
///
/// # Errors
///
/// When standard output cannot be written to. What the machine lacks is no error, but in the report.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = checks::examine(args.pid);
    let text = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.table() };
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
    Ok(if report.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All that was found. See the module for its form in JSON.
#[derive(Serialize)]
struct Report {
    kernel: String,
    architecture: &'static str,
    page_size: usize,
    privilege: machine::Privilege,
    userfaultfd: Userfaultfd,
    huge_pages: machine::HugePages,
    threads_blocking_sigbus: Threads,
    threads_blocking_sigsegv: Threads,
    checks: Vec<Check>,
    modes: Vec<Mode>,
    ready: bool,
}

#[derive(Serialize)]
struct Userfaultfd {
    path: Option<String>,
    attempts: Vec<Attempt>,
}

#[derive(Serialize)]
struct Attempt {
    path: String,
    features: Option<Vec<String>>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Threads {
    pid: u32,
    threads: Option<Vec<Thread>>,
}

#[derive(Serialize)]
struct Thread {
    tid: u32,
    name: String,
}

/// One line of the table.
#[derive(Serialize)]
struct Check {
    section: &'static str,
    name: String,
    ok: bool,
    /// Without it, pagelease cannot do its main job.
    needed: bool,
    found: String,
    remedy: Option<String>,
}

/// A way of working, and whether it is possible here.
#[derive(Serialize)]
struct Mode {
    name: &'static str,
    ok: bool,
    meaning: String,
}

impl Report {
    fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let (who, cap) = (self.privilege.uid, self.privilege.cap_sys_ptrace);
        let cap = if cap { "with" } else { "without" };
        writeln!(
            out,
            "Linux {} on {}, pages of {} bytes; user {who} {cap} CAP_SYS_PTRACE",
            self.kernel, self.architecture, self.page_size
        )?;
        let path = self.userfaultfd.path.as_deref().unwrap_or("none");
        writeln!(out, "userfaultfd in force: {path}")?;

        let mut section = "";
        for check in &self.checks {
            if section != check.section {
                section = check.section;
                writeln!(out, "\n{section}")?;
            }
            let mark = match (check.ok, check.needed) {
                (true, _) => "ok",
                (false, true) => "NO",
                (false, false) => "no",
            };
            writeln!(out, "  {mark}  {:26}  {}", check.name, check.found)?;
            if let Some(remedy) = &check.remedy {
                writeln!(out, "      {:26}  $ {remedy}", "")?;
            }
        }

        writeln!(out, "\nmodes")?;
        for mode in &self.modes {
            let mark = if mode.ok { "ok" } else { "no" };
            writeln!(out, "  {mark}  {:26}  {}", mode.name, mode.meaning)?;
        }
        let verdict =
            if self.ready { "pagelease can run here." } else { "pagelease cannot run here: see the lines marked NO." };
        writeln!(out, "\n{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// What the module's documentation shows is what is printed: the same keys, all the way down.
    #[test]
    fn the_json_is_as_documented() {
        let documentation: String = include_str!("doctor.rs")
            .lines()
            .skip_while(|line| *line != "//! ```json")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!"))
            .collect();
        let documented: Value = serde_json::from_str(&documentation).unwrap();
        let report = checks::examine(Some(std::process::id()));
        same_keys(&documented, &serde_json::to_value(&report).unwrap());

        let table = report.table();
        assert!(table.contains("\nmodes\n") && table.contains("pagelease can"), "{table}");
    }

    fn same_keys(documented: &Value, printed: &Value) {
        match (documented, printed) {
            (Value::Object(documented), Value::Object(printed)) => {
                assert_eq!(documented.keys().collect::<Vec<_>>(), printed.keys().collect::<Vec<_>>());
                documented.iter().for_each(|(key, value)| same_keys(value, &printed[key]));
            }
            (Value::Array(documented), Value::Array(printed)) => {
                printed.iter().for_each(|value| same_keys(&documented[0], value));
            }
            _ => {}
        }
    }
}
