//! Symmetry loses no verdict: a depth-first search modulo it finds what one without finds, in fewer states.

use pagelease_lab::catalogue;
use pagelease_lab::kernel::symmetry::{Symmetry, representative};
use pagelease_lab::kernel::{Kernel, design, scenario};
use stateright::Model;

#[test]
fn same_verdicts_in_fewer_states() {
    for design in ["linux-7.3", "late-unlocked", "filter-none", "all-mended"] {
        let entry = catalogue::design(design).expect("it is in the catalogue");
        for scenario in ["two-cpus", "two-devices", "mirror"] {
            let case = entry.case(scenario).expect("the design has it");
            let (all, broken) = case.count(false);
            let (classes, broken_in_classes) = case.count(true);
            assert_eq!(broken, broken_in_classes, "{design} in {scenario}");
            assert!(classes < all, "{design} in {scenario}: {classes} classes of {all} states");
            // A group of two: no class has more than two states.
            assert!(2 * classes >= all, "{design} in {scenario}: {classes} classes of {all} states");
        }
    }
}

/// Every step of a state is one of its representative, up to symmetry: what makes the search modulo symmetry right.
#[test]
fn steps_are_the_same_up_to_symmetry() {
    let symmetric = scenario::ALL.iter().filter(|scenario| scenario.symmetry != Symmetry::None);
    for &scenario in symmetric {
        let model = Kernel { design: design::MAINLINE, scenario };
        let mut known = std::collections::HashSet::new();
        let mut work = model.init_states();
        while let Some(state) = work.pop() {
            if known.len() >= 20_000 || !known.insert(state) {
                continue;
            }
            let classes = |of| {
                let mut next: Vec<_> =
                    model.next_steps(of).into_iter().map(|(_, next)| representative(&next)).collect();
                next.sort();
                next
            };
            assert_eq!(classes(&state), classes(&representative(&state)), "{}: {state:?}", scenario.name);
            work.extend(model.next_steps(&state).into_iter().map(|(_, next)| next));
        }
        assert!(known.len() > 100, "{}: {} states were compared", scenario.name, known.len());
    }
}
