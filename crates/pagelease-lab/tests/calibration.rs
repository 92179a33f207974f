//! What the real kernel is known to do, from its sources and from running it, and the model of the design that ships it
//! must do as well: Linux 7.3 (`linux-7.3`), and the call as merged in 2021 (`linux-2021`) where it differs.
//!
//! Most tests take every state of a scenario in which a page is device-exclusive, let one actor run on alone from there,
//! and look at what it did.

use std::sync::atomic::AtomicU64;

use pagelease_lab::fair::{Most, Reversed, most};
use pagelease_lab::graph::Graph;
use pagelease_lab::kernel::design::{Design, Filter};
use pagelease_lab::kernel::pc::Pc;
use pagelease_lab::kernel::state::{CHILD, NO_CHILD, Prot, Pte};
use pagelease_lab::kernel::{Action, Kernel, State, design, scenario};
use pagelease_lab::{Property, Subject};
use stateright::Model;

/// The actor of a device is the first of every scenario.
const DEVICE: usize = 0;

/// The designs that ship.
const SHIPPED: [&str; 2] = ["linux-7.3", "linux-2021"];

/// The step in which a driver is called back.
const CALLBACK: &str = "driver: mni->invalidate";

/// More steps than any actor takes alone, unless it goes on for ever.
const STEPS_MAX: usize = 200;

fn kernel(design: &str, scenario: &str) -> Kernel {
    Kernel {
        design: *design::ALL.iter().find(|known| known.name == design).expect("a design of this name"),
        scenario: *scenario::ALL.iter().find(|known| known.name == scenario).expect("a scenario of this name"),
    }
}

fn explore(kernel: &Kernel) -> Graph<Kernel> {
    Graph::explore(kernel, 1_000_000, &AtomicU64::new(0)).expect("a small scenario")
}

/// The actor of this name.
fn actor(kernel: &Kernel, name: &str) -> usize {
    kernel.actors().iter().position(|actor| actor == name).expect("an actor of this name")
}

/// What an actor did alone.
struct Run {
    /// Each step: the state before it, and the action.
    steps: Vec<(State, Action)>,
    /// The state after the last.
    last: State,
}

impl Run {
    fn names(&self, kernel: &Kernel) -> Vec<&'static str> {
        self.steps.iter().map(|&(before, action)| kernel.step(&before, action)).collect()
    }

    /// What the step of this name was about.
    fn detail(&self, kernel: &Kernel, name: &str) -> Option<String> {
        let found = self.steps.iter().find(|&&(before, action)| kernel.step(&before, action) == name)?;
        Some(kernel.detail(&found.0, found.1))
    }

    /// The entry of `page` after each step.
    fn ptes(&self, page: usize) -> impl Iterator<Item = Pte> {
        self.steps.iter().skip(1).map(|(state, _)| *state).chain([self.last]).map(move |state| state.pte(0, page))
    }
}

/// Lets `actor` alone step from `from`, until `done` holds or it has to wait.
fn alone(kernel: &Kernel, from: State, actor: usize, done: impl Fn(&State) -> bool) -> Run {
    let mut run = Run { steps: Vec::new(), last: from };
    while !done(&run.last) {
        let step = kernel.next_steps(&run.last).into_iter().find(|&(action, _)| kernel.actor(action) == actor);
        let Some((action, next)) = step else { break };
        run.steps.push((run.last, action));
        run.last = next;
        assert!(run.steps.len() < STEPS_MAX, "it goes on for ever: {:?}", run.names(kernel));
    }
    run
}

/// Lets `actor` run on until all its program is done, or it has to wait.
fn to_end(kernel: &Kernel, from: State, actor: usize) -> Run {
    alone(kernel, from, actor, |_| false)
}

fn ended(state: &State, actor: usize) -> bool {
    state.actors[actor].pc == Pc::Done
}

/// Every state that `wanted` holds in. There is one.
fn states(graph: &Graph<Kernel>, wanted: impl Fn(&State) -> bool) -> Vec<State> {
    let found: Vec<State> = graph.nodes().map(|node| *graph.state(node)).filter(|state| wanted(state)).collect();
    assert!(!found.is_empty(), "no state is as the test wants it: it would test nothing");
    found
}

/// Page 0 is device-exclusive, with this frame.
fn exclusive(state: &State) -> Option<u8> {
    match state.pte(0, 0) {
        Pte::Exclusive(frame) => Some(frame),
        _ => None,
    }
}

fn lock_of(state: &State) -> usize {
    exclusive(state).map_or(0, |frame| state.lock(frame).into())
}

/// Nobody has begun anything but device 0, which has page 0, has it mapped, and is not in an operation.
fn handed_over(kernel: &Kernel, state: &State) -> bool {
    let others = kernel.init_states()[0].actors;
    exclusive(state).is_some_and(|frame| state.mapped(0, 0) == Some(frame))
        && state.actors[DEVICE].pc == Pc::DeviceLoad
        && lock_of(state) == 0
        && state.actors[1..] == others[1..]
}

/// The same, but the driver has not given the folio lock back yet, and has its mutex not taken: nobody waits for that.
fn under_lock(kernel: &Kernel, state: &State) -> bool {
    let others = kernel.init_states()[0].actors;
    lock_of(state) == DEVICE + 1
        && state.devices[0].mutex == 0
        && state.mmap == 0
        && state.active == 0
        && state.actors[1..] == others[1..]
}

/// `mmu_interval_read_begin` in the operation `op` of actor 0: the most that one history has.
fn passes(kernel: &Kernel, op: u8) -> Most {
    let graph = explore(kernel);
    let begins = |state: &State, action: &Action| {
        let own = action.actor == 0 && state.actors[DEVICE].op == op;
        u32::from(own && kernel.step(state, *action) == Pc::ReadBegin.name())
    };
    most(&graph, &Reversed::new(&graph), begins)
}

/// In each scenario, the operation that is the claim in question.
const CLAIMS: [(&str, u8); 4] = [("repeat", 1), ("zero-page", 0), ("cow-page", 1), ("huge-page", 0)];

/// 1000 of 1000 passes failed.
#[test]
fn a_claim_of_an_exclusive_zero_cow_or_huge_page_retries_for_ever() {
    for design in ["filter-none", "linux-7.3", "linux-2021"] {
        for (scenario, op) in CLAIMS {
            let kernel = kernel(design, scenario);
            let graph = explore(&kernel);
            let beyond = graph.nodes().filter(|&node| graph.state(node).actors[DEVICE].op > op).count();
            assert_eq!(beyond, 0, "{design} {scenario}: the claim ends in some history");
            // And it is a loop of passes, each of which finds the entry that the one before it has made.
            let again = |state: &State| state.actors[DEVICE].pc == Pc::Gup && exclusive(state).is_some();
            states(&graph, again);
            // Without a filter the first operation of `repeat` does not even get the page: its second pass is a repeat.
            let op = if design == "filter-none" && scenario == "repeat" { 0 } else { op };
            assert!(matches!(passes(&kernel, op), Most::Unbounded(_)), "{design} {scenario}");
        }
    }
}

#[test]
fn the_own_thread_filter_ends_each_of_them_in_one_pass() {
    let cases = SHIPPED.iter().flat_map(|design| CLAIMS.map(|claim| (*design, claim)));
    for (design, (scenario, op)) in cases {
        let shipped = kernel(design, scenario);
        let kernel = Kernel { design: Design { filter: Filter::Thread, ..shipped.design }, ..shipped };
        assert!(matches!(passes(&kernel, op), Most::Finite(1, _)), "{design} {scenario}: {:?}", passes(&kernel, op));
        let graph = explore(&kernel);
        let ends = graph.nodes().filter(|&node| graph.edges(node).is_empty()).map(|node| *graph.state(node));
        let mut count = 0;
        for end in ends {
            count += 1;
            assert!(ended(&end, DEVICE), "{scenario}: the claim has ended, and well");
            let frame = exclusive(&end).expect("the page is the device's");
            assert_eq!(end.mapped(0, 0), Some(frame), "{scenario}");
            assert_eq!(end.value(frame), 1, "{scenario}: its increment is made");
        }
        assert!(count > 0, "{design} {scenario}");
    }
}

/// Faulting a page in notifies nobody: the one page that a claim could always have.
#[test]
fn an_untouched_page_is_claimed_in_one_pass() {
    for design in SHIPPED {
        let kernel = kernel(design, "untouched");
        assert!(matches!(passes(&kernel, 0), Most::Finite(1, _)), "{design}");
        let run = to_end(&kernel, kernel.init_states()[0], DEVICE);
        assert!(ended(&run.last, DEVICE) && run.last.done(0) == 1, "{design}");
        let calls = run.names(&kernel).into_iter().filter(|&name| name == CALLBACK).count();
        assert_eq!(calls, 1, "{design}: told of its own EXCLUSIVE alone, which it does not count");
    }
}

/// An ordinary page, too, for a driver that does not count the EXCLUSIVE that names it.
#[test]
fn a_writable_page_is_claimed_in_one_pass() {
    for design in SHIPPED {
        let kernel = kernel(design, "alone");
        assert!(matches!(passes(&kernel, 0), Most::Finite(1, _)), "{design}");
        let run = to_end(&kernel, kernel.init_states()[0], DEVICE);
        assert_eq!(run.last.pte(0, 0), Pte::Exclusive(0));
        let exclusive = run.detail(&kernel, kernel.name_of(Pc::ExclusiveStart));
        assert_eq!(exclusive.as_deref(), Some("EXCLUSIVE, owner device 0"));
    }
}

#[test]
fn fork_under_the_drivers_folio_lock_fails_with_enomem_and_the_parent_goes_on() {
    for design in SHIPPED {
        let kernel = kernel(design, "fork");
        let (fork, cpu) = (actor(&kernel, "fork"), actor(&kernel, "CPU 0"));
        for state in states(&explore(&kernel), |state| under_lock(&kernel, state)) {
            let run = to_end(&kernel, state, fork);
            let failed = run.steps.iter().skip(1).map(|step| &step.0).chain([&run.last]);
            assert_eq!(failed.filter(|state| kernel.broken(state).has(Property::ForkSucceeds)).count(), 1, "{design}");
            assert!(ended(&run.last, fork) && run.last.has(NO_CHILD) && !run.last.has(CHILD), "{design}");
            assert_eq!((run.last.pte(1, 0), run.last.pte(1, 1)), (Pte::None, Pte::None), "the copy is torn down");
            assert_eq!(run.last.pte(0, 0), state.pte(0, 0), "the entry stays");
            // What fork has told its driver makes the claim under way start again, and find its own entry; so the CPU goes
            // first, once the driver has unlocked.
            let unlocked = alone(&kernel, run.last, DEVICE, |state| lock_of(state) == 0).last;
            let touched = to_end(&kernel, unlocked, cpu).last;
            assert!(ended(&touched, cpu), "{design}: the parent's CPU goes on");
            let all = to_end(&kernel, touched, DEVICE).last;
            assert!((0..4).all(|actor| ended(&all, actor)), "{design}: and so does its device");
        }
    }
}

#[test]
fn fork_restores_a_page_that_is_not_locked_and_copies_it() {
    for design in SHIPPED {
        let kernel = kernel(design, "fork");
        let fork = actor(&kernel, "fork");
        for state in states(&explore(&kernel), |state| handed_over(&kernel, state)) {
            let frame = exclusive(&state).unwrap();
            let run = to_end(&kernel, state, fork);
            assert!(run.last.has(CHILD) && ended(&run.last, fork), "{design}");
            assert_eq!((run.last.pte(0, 0), run.last.pte(1, 0)), (Pte::Ro(frame), Pte::Ro(frame)), "copy on write");
            assert_eq!(run.last.mapped(0, 0), None, "{design}: the device has been told");
            let told = run.detail(&kernel, Pc::ForkStart.name());
            assert_eq!(told.as_deref(), Some("PROTECTION_PAGE, no owner"));
        }
    }
}

/// mprotect and munmap get to their end while the driver has the folio locked; a CPU's touch does not. (From states in which
/// nobody has the mmap lock, nor the driver its mutex: for those everybody waits.)
#[test]
fn only_a_touch_waits_for_the_folio_lock() {
    let cases = [("munmap", "munmap"), ("dontneed", "madvise"), ("mprotect", "mprotect")];
    for design in SHIPPED {
        for (scenario, event) in cases {
            let kernel = kernel(design, scenario);
            let (event, cpu) = (actor(&kernel, event), actor(&kernel, "CPU 0"));
            for state in states(&explore(&kernel), |state| under_lock(&kernel, state)) {
                let zapped = to_end(&kernel, state, event);
                assert!(ended(&zapped.last, event), "{design} {scenario}: it waits: {:?}", zapped.names(&kernel));
                let frame = exclusive(&state).unwrap();
                assert_eq!(
                    usize::from(zapped.last.lock(frame)),
                    DEVICE + 1,
                    "the lock has been the driver's all along"
                );
                let touch = to_end(&kernel, state, cpu);
                assert!(!ended(&touch.last, cpu), "{design} {scenario}: the CPU did not wait");
                assert_eq!(touch.last.actors[cpu].fault, Pc::FolioLock, "{design} {scenario}: what it waits for");
                // It goes on once the driver has unlocked.
                let unlocked = alone(&kernel, touch.last, DEVICE, |state| lock_of(state) != DEVICE + 1).last;
                assert!(ended(&to_end(&kernel, unlocked, cpu).last, cpu), "{design} {scenario}");
            }
        }
    }
}

/// A touch waits, notifies, restores, in this order, and finds what the device wrote.
#[test]
fn a_touch_tells_the_device_before_it_restores_the_entry() {
    for (design, cause) in [("linux-7.3", "CLEAR, no owner"), ("linux-2021", "EXCLUSIVE, no owner")] {
        let kernel = kernel(design, "touch");
        let cpu = actor(&kernel, "CPU 0");
        for state in states(&explore(&kernel), |state| handed_over(&kernel, state)) {
            let frame = exclusive(&state).unwrap();
            let run = alone(&kernel, state, cpu, |state| state.actors[cpu].op == 1);
            let start = Pc::RestoreStart.name();
            let expected = [
                Pc::Access.name(),
                Pc::FaultLock.name(),
                Pc::HandlePte.name(),
                Pc::FolioLock.name(),
                start,
                CALLBACK,
                Pc::RestorePte.name(),
                Pc::RestoreEnd.name(),
                Pc::Access.name(),
            ];
            assert_eq!(run.names(&kernel), expected, "{design}");
            assert_eq!(run.detail(&kernel, start).as_deref(), Some(cause), "{design}");
            assert_eq!(run.last.pte(0, 0), Pte::Rw(frame), "{design}");
            assert_eq!(run.last.mapped(0, 0), None, "{design}");
            assert_eq!(run.last.value(frame), state.value(frame) + 1, "on top of what the device wrote");
        }
    }
}

#[test]
fn mremap_carries_the_entry_along_with_no_device_mapping() {
    for design in SHIPPED {
        let kernel = kernel(design, "mremap");
        let mover = actor(&kernel, "mremap");
        // The one in which the device has written.
        let written = |state: &State| {
            handed_over(&kernel, state) && exclusive(state).is_some_and(|frame| state.value(frame) == 1)
        };
        for state in states(&explore(&kernel), written) {
            let frame = exclusive(&state).unwrap();
            let moved = alone(&kernel, state, mover, |state| state.actors[mover].op == 1);
            assert_eq!(moved.detail(&kernel, Pc::MoveStart.name()).as_deref(), Some("UNMAP, no owner"));
            assert_eq!((moved.last.pte(0, 0), moved.last.pte(0, 1)), (Pte::None, Pte::Exclusive(frame)), "{design}");
            assert_eq!(
                (moved.last.mapped(0, 0), moved.last.mapped(0, 1)),
                (None, None),
                "{design}: nobody's device maps it"
            );
            assert_eq!(moved.last.value(frame), 1, "{design}: with its data");
            let touched = to_end(&kernel, moved.last, mover);
            assert!(ended(&touched.last, mover), "{design}");
            assert_eq!(touched.last.pte(0, 1), Pte::Rw(frame), "{design}: restored by a touch");
            assert_eq!(touched.last.value(frame), 1, "{design}: with its data");
            // The driver's next claim is of an address where nothing is mapped.
            let refused = to_end(&kernel, touched.last, DEVICE).last;
            assert!(ended(&refused, DEVICE) && refused.mapped(0, 0).is_none(), "{design}");
            assert_eq!(refused.value(frame), 1, "{design}: no store");
        }
    }
}

#[test]
fn after_mprotect_the_entry_stays_and_the_devices_write_is_refused() {
    for design in SHIPPED {
        let kernel = kernel(design, "mprotect");
        let (protect, cpu) = (actor(&kernel, "mprotect"), actor(&kernel, "CPU 0"));
        let written = |state: &State| {
            handed_over(&kernel, state) && exclusive(state).is_some_and(|frame| state.value(frame) == 1)
        };
        for state in states(&explore(&kernel), written) {
            let frame = exclusive(&state).unwrap();
            let protected = to_end(&kernel, state, protect);
            assert!(ended(&protected.last, protect), "{design}");
            let told = protected.detail(&kernel, Pc::ProtectStart.name());
            assert_eq!(told.as_deref(), Some("PROTECTION_VMA, no owner"));
            assert_eq!(protected.last.pte(0, 0), Pte::Exclusive(frame), "{design}: still exclusive");
            assert_eq!((protected.last.prot[0], protected.last.mapped(0, 0)), (Prot::Read, None), "{design}");
            let refused = to_end(&kernel, protected.last, DEVICE);
            assert!(ended(&refused.last, DEVICE), "{design}: the claim fails, and ends");
            assert!(!refused.names(&kernel).contains(&Pc::DeviceStore.name()), "{design}");
            assert_eq!((refused.last.mapped(0, 0), refused.last.value(frame)), (None, 1), "{design}: no store");
            let read = to_end(&kernel, protected.last, cpu);
            assert!(ended(&read.last, cpu), "{design}");
            assert_eq!(
                read.last.pte(0, 0),
                Pte::Ro(frame),
                "{design}: what the device wrote, to be read and not written"
            );
        }
    }
}

#[test]
fn munmap_and_dontneed_drop_the_entry_without_restoring_it() {
    let cases = [("munmap", "munmap", "UNMAP, no owner"), ("dontneed", "madvise", "CLEAR, no owner")];
    for design in SHIPPED {
        for (scenario, event, cause) in cases {
            let kernel = kernel(design, scenario);
            let event = actor(&kernel, event);
            for state in states(&explore(&kernel), |state| handed_over(&kernel, state)) {
                let run = to_end(&kernel, state, event);
                assert!(ended(&run.last, event), "{design} {scenario}");
                assert_eq!(run.detail(&kernel, Pc::ZapStart.name()).as_deref(), Some(cause), "{design}");
                let mut ptes: Vec<Pte> = run.ptes(0).collect();
                ptes.dedup();
                assert_eq!(ptes, [state.pte(0, 0), Pte::None], "{design} {scenario}: nothing in between");
                assert_eq!(run.last.mapped(0, 0), None, "{design} {scenario}");
            }
        }
    }
}

/// The claim's GUP faults the entry back, which tells the old holder; only then does the new one own the page.
#[test]
fn another_devices_claim_restores_first() {
    for design in SHIPPED {
        let kernel = kernel(design, "two-devices");
        for state in states(&explore(&kernel), |state| handed_over(&kernel, state)) {
            let placed = |state: &State| state.actors[1].pc == Pc::ExclusiveEnd;
            let run = alone(&kernel, state, 1, placed);
            let names = run.names(&kernel);
            let at = |name: &str| {
                names.iter().position(|&step| step == name).unwrap_or_else(|| panic!("{design}: no {name}"))
            };
            let told =
                run.steps.iter().position(|(before, _)| before.mapped(0, 0).is_none()).expect("device 0 is told");
            assert!(at(Pc::RestoreStart.name()) < told && told <= at(Pc::RestorePte.name()), "{design}: {names:?}");
            assert!(at(Pc::RestorePte.name()) < at(kernel.name_of(Pc::ExclusiveStart)), "{design}: {names:?}");
            assert_eq!(
                run.detail(&kernel, kernel.name_of(Pc::ExclusiveStart)).as_deref(),
                Some("EXCLUSIVE, owner device 1")
            );
            assert_eq!((exclusive(&run.last), run.last.mapped(0, 0)), (exclusive(&state), None), "{design}");
        }
    }
    // With a driver that gets to the end of it, the new one owns the page.
    let kernel = kernel("filter-thread", "two-devices");
    for state in states(&explore(&kernel), |state| handed_over(&kernel, state)) {
        let run = to_end(&kernel, state, 1);
        assert!(ended(&run.last, 1));
        assert_eq!((run.last.mapped(0, 0), run.last.mapped(1, 0)), (None, exclusive(&state)));
    }
}

#[test]
fn gup_restores() {
    for design in SHIPPED {
        let kernel = kernel(design, "pin");
        let gup = actor(&kernel, "GUP");
        for state in states(&explore(&kernel), |state| handed_over(&kernel, state)) {
            let frame = exclusive(&state).unwrap();
            let run = to_end(&kernel, state, gup);
            assert!(ended(&run.last, gup) && run.names(&kernel).contains(&Pc::RestorePte.name()), "{design}");
            assert_eq!((run.last.pte(0, 0), run.last.mapped(0, 0)), (Pte::Rw(frame), None), "{design}");
            assert_eq!(run.last.value(frame), state.value(frame) + 1, "{design}: its write is there");
        }
    }
}

/// 7.3 unmaps the entry, and the page comes back as an ordinary one; 2021 could not move the page.
#[test]
fn reclaim_takes_an_exclusive_page_in_7_3_and_leaves_it_in_2021() {
    for (design, takes) in [("linux-7.3", true), ("linux-2021", false)] {
        let kernel = kernel(design, "reclaim");
        let (kswapd, cpu) = (actor(&kernel, "kswapd"), actor(&kernel, "CPU 0"));
        let written = |state: &State| {
            handed_over(&kernel, state) && exclusive(state).is_some_and(|frame| state.value(frame) == 1)
        };
        for state in states(&explore(&kernel), written) {
            let frame = exclusive(&state).unwrap();
            let run = to_end(&kernel, state, kswapd);
            assert!(ended(&run.last, kswapd));
            let expected = if takes { Pte::Swap(frame) } else { Pte::Exclusive(frame) };
            assert_eq!(run.last.pte(0, 0), expected, "{design}");
            let back = to_end(&kernel, run.last, cpu);
            assert!(ended(&back.last, cpu), "{design}");
            assert_eq!(
                (back.last.pte(0, 0), back.last.value(frame)),
                (Pte::Rw(frame), 2),
                "{design}: an ordinary page"
            );
        }
        // A page that the driver has locked is left alone by both.
        for state in states(&explore(&kernel), |state| under_lock(&kernel, state)) {
            assert_eq!(to_end(&kernel, state, kswapd).last.pte(0, 0), state.pte(0, 0), "{design}");
        }
    }
}

/// A huge page is split first, with a CLEAR that nobody can tell from a stranger's.
#[test]
fn a_huge_page_is_split_with_a_clear_that_has_no_owner() {
    for design in SHIPPED {
        let kernel = kernel(design, "huge-page");
        let run = alone(&kernel, kernel.init_states()[0], DEVICE, |state| exclusive(state).is_some());
        assert_eq!(run.detail(&kernel, Pc::SplitStart.name()).as_deref(), Some("CLEAR, no owner"), "{design}");
        let names = run.names(&kernel);
        let at = |name: &str| names.iter().position(|&step| step == name).expect("it is a step of the claim");
        assert!(
            at(Pc::SplitStart.name()) < at(CALLBACK) && at(CALLBACK) < at(Pc::SplitPmd.name()),
            "{design}: {names:?}"
        );
        assert!(at(Pc::SplitEnd.name()) < at(kernel.name_of(Pc::ExclusiveStart)), "{design}: {names:?}");
    }
    // Since 2025 what comes after is of one page.
    let kernel = kernel("linux-7.3", "huge-page");
    let claimed = alone(&kernel, kernel.init_states()[0], DEVICE, |state| exclusive(state).is_some()).last;
    assert_eq!(claimed.pte(0, 1), Pte::Rw(3), "the other page stays as it was");
}
