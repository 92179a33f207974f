//! What every guest runs.

/// How many times as long as elsewhere the tests wait before they suspect a deadlock.
pub(super) const PATIENCE: (&str, &str) = ("PAGELEASE_PATIENCE", "5");
/// The stress is to show that no kernel breaks it; to look for rare interleavings there are faster machines. How fast an emulated
/// one is depends on how busy this one is: a CPU that waits for another, which does not run just now, waits for milliseconds.
const SHORT: [(&str, &str); 2] = [("PAGELEASE_STRESS_FACTOR", "0.05"), ("PAGELEASE_STRESS_SECONDS", "1")];
/// The file whose bytes the histogram counts: one that every checkout has.
pub(super) const SAMPLE: &str = "Cargo.lock";

/// A program that every guest runs.
pub(super) struct Entry {
    pub(super) what: What,
    /// One of `TESTS` or `BINARIES`.
    pub(super) program: &'static str,
    pub(super) arguments: Vec<&'static str>,
    pub(super) environment: &'static [(&'static str, &'static str)],
    /// In the guest, which is 10 to 50 times as slow as this machine.
    pub(super) seconds: u64,
}

/// What the table makes of it.
pub(super) enum What {
    Doctor,
    /// A row for each of its rigs.
    Tests,
    Histogram(Histogram),
}

/// The main job on one memory.
pub(super) struct Histogram {
    memory: &'static str,
    backend: &'static str,
    faults: &'static str,
    /// Without these features, as the doctor calls them, it is refused.
    pub(super) needs: &'static [&'static str],
}

const fn histogram(
    memory: &'static str,
    backend: &'static str,
    faults: &'static str,
    needs: &'static [&'static str],
) -> Histogram {
    Histogram { memory, backend, faults, needs }
}

/// As in `ci/main-job.sh`, and what is chosen for shared memory if no backend is asked for.
const HISTOGRAMS: [Histogram; 13] = [
    histogram("shared", "auto", "monitor", &[]),
    histogram("shared", "auto", "in-thread", &[]),
    histogram("shared", "minor", "monitor", &[]),
    histogram("shared", "minor", "in-thread", &[]),
    histogram("shared", RWPROTECT, "monitor", &[RWP]),
    histogram("shared", RWPROTECT, "in-thread", &[RWP]),
    histogram("shared", "mprotect", "in-thread", &[]),
    histogram("adopted", "auto", "monitor", &["MOVE"]),
    histogram("adopted", "auto", "in-thread", &["MOVE"]),
    histogram("hugetlb", "minor", "monitor", &[]),
    histogram("hugetlb", "minor", "in-thread", &[]),
    histogram("hugetlb", "mprotect", "in-thread", &[]),
    histogram("file", "mprotect", "in-thread", &[]),
];
const RWP: &str = "RWP";
const RWPROTECT: &str = "rwprotect";

impl Histogram {
    pub(super) fn row(&self) -> String {
        format!("histogram: {}, {}, {}", self.memory, self.backend, self.faults)
    }

    /// What serves it on a kernel that lacks these features.
    pub(super) fn served_by(&self, lacks: &[String]) -> &'static str {
        match (self.memory, self.backend) {
            ("adopted", _) => "move",
            (_, "auto") if lacks.iter().any(|lack| lack == RWP) => "minor",
            (_, "auto") => RWPROTECT,
            (_, backend) => backend,
        }
    }
}

/// In the order in which they run. What takes longest comes last: where time runs out, it is not the others'.
pub(super) fn entries() -> Vec<Entry> {
    let doctor =
        Entry { what: What::Doctor, program: "pagelease", arguments: vec!["doctor"], environment: &[], seconds: 60 };
    let histograms = HISTOGRAMS.into_iter().map(|histogram| Entry {
        program: "pagelease",
        arguments: [
            &["run", "histogram", SAMPLE, "--unit", "pair"][..],
            &["--memory", histogram.memory, "--backend", histogram.backend, "--faults", histogram.faults],
        ]
        .concat(),
        what: What::Histogram(histogram),
        environment: &[],
        seconds: 60,
    });
    let mut entries = vec![doctor];
    entries.extend(histograms);
    let tests = |program, threads, environment| Entry {
        what: What::Tests,
        program,
        arguments: vec!["--nocapture", threads],
        environment,
        seconds: 400,
    };
    entries.push(tests("conformance", "--test-threads=2", &[PATIENCE]));
    entries.push(tests("stress", "--test-threads=1", &[PATIENCE, SHORT[0], SHORT[1]]));
    entries
}
