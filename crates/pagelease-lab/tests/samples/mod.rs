//! Histories for the tests of every format: a finite one and a lasso, with names that each format has to escape.

use pagelease_lab::Cell;
use pagelease_lab::history::{History, StepView};

struct Builder {
    history: History,
    cells: Vec<Cell>,
}

impl Builder {
    fn new(scenario: &str, actors: &[&str], cells: &[(&str, &str, &str)]) -> Self {
        let cell = |&(group, name, value): &(&str, &str, &str)| Cell {
            group: group.to_owned(),
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let cells: Vec<_> = cells.iter().map(cell).collect();
        let history = History {
            design: "page-lock-only".to_owned(),
            scenario: scenario.to_owned(),
            property: None,
            sentence: String::new(),
            token: "k1.page-lock-only.claim-touch.0a1b2c3d".to_owned(),
            actors: actors.iter().map(|&actor| actor.to_owned()).collect(),
            initial: cells.clone(),
            steps: Vec::new(),
            loop_from: None,
        };
        Self { history, cells }
    }

    /// A step of `actor`, after which some cells, by index, have other values.
    fn step(&mut self, actor: usize, name: &str, detail: &str, changed: &[(usize, &str)]) -> &mut Self {
        for &(at, value) in changed {
            self.cells[at].value = value.to_owned();
        }
        let (name, detail, cells) = (name.to_owned(), detail.to_owned(), self.cells.clone());
        self.history.steps.push(StepView { actor, name, detail, cells, broken: Vec::new() });
        self
    }
}

/// Breaks `atomicity` in its last step.
pub(crate) fn finite() -> History {
    let mut builder = Builder::new(
        "claim-touch",
        &["CPU 0", "driver 0", "device 0"],
        &[
            ("page table", "page 0", "present, frame 0"),
            ("page table", "page 1", "none"),
            ("folio 0", "lock", "free"),
            ("folio 0", "references", "1"),
            ("folio 0", "memory", "0"),
            ("notifier", "invalidate_seq", "2"),
            ("notifier", "active", "no"),
            ("driver 0", "at", "begin"),
            ("driver 0", "seq", "-"),
            ("device 0", "page 0", "none"),
            ("device 0", "register", "-"),
            ("CPU 0", "at", "begin"),
            ("CPU 0", "register", "-"),
        ],
    );
    builder
        .step(1, "mmu_interval_read_begin", "", &[(7, "make_device_exclusive"), (8, "2")])
        .step(1, "folio_trylock", "page 0", &[(2, "driver 0"), (3, "2")])
        .step(
            1,
            "make_device_exclusive",
            "page 0; frame <0> & \"lock\"",
            &[(0, "device-exclusive, frame 0"), (7, "map")],
        )
        .step(1, "mmu_interval_read_retry", "seq 2: no retry", &[])
        .step(1, "dmirror_atomic_map", "page 0", &[(9, "frame 0, writable"), (7, "unlock")])
        .step(1, "folio_unlock", "page 0", &[(2, "free"), (3, "1"), (7, "done")])
        .step(2, "atomic_load", "page 0", &[(10, "0")])
        .step(0, "do_swap_page", "trap on page 0", &[(11, "remove_device_exclusive_entry")])
        .step(
            0,
            "remove_device_exclusive_entry",
            "zurück: größer als „vorher“",
            &[(0, "present, frame 0"), (11, "access")],
        )
        .step(0, "store", "page 0", &[(4, "1 </script><!-- &lt; 'x'"), (11, "done"), (12, "1")])
        .step(2, "atomic_store", "page 0", &[(4, "1"), (10, "-")]);
    let mut history = builder.history;
    history.property = Some("atomicity".to_owned());
    history.steps[10].broken = vec!["atomicity".to_owned(), "count".to_owned()];
    history.sentence = "CPU 0 stored to page 0 between the load and the store of device 0's atomic operation: nothing told the \
                        device that page 0 <was> taken back, so that one of two increments is lost; “page lock” & entry alone do not do."
        .to_owned();
    history
}

/// Goes round for ever from its fourth step.
pub(crate) fn lasso() -> History {
    let mut builder = Builder::new(
        "repeat; claim #2",
        &["driver 0", "CPU 0: \"toucher\""],
        &[
            ("page table", "page 0", "device-exclusive, frame 0"),
            ("notifier", "invalidate_seq", "2"),
            ("notifier", "turn", "odd"),
            ("driver 0", "seq", "-"),
            ("driver 0", "at", "begin"),
            ("driver 0", "retries", "0"),
        ],
    );
    builder
        .step(1, "load", "page 1", &[])
        .step(0, "ioctl", "claims page 0 again", &[(4, "read_begin")])
        .step(1, "exit", "", &[])
        .step(0, "mmu_interval_read_begin", "", &[(3, "2"), (4, "make_device_exclusive")])
        .step(
            0,
            "make_device_exclusive",
            "page 0 is exclusive already: restored, made again",
            &[(1, "4"), (2, "even"), (4, "retry?")],
        )
        .step(
            0,
            "mmu_interval_read_retry",
            "seq 2 is not 4: retry",
            &[(1, "2"), (2, "odd"), (3, "-"), (4, "read_begin")],
        );
    let mut history = builder.history;
    history.loop_from = Some(3);
    history.property = Some("repeat-ends".to_owned());
    history.sentence = "The claim of driver 0 counts what it raised itself, and starts again for ever.".to_owned();
    history
}
