//! Symmetry: actors that run the same program, devices, pages can be swapped, and every history stays a history.
//!
//! Stateright's depth-first checker then visits one state of each class ([`representative`]). It asks a state alone, so
//! each state carries which group its scenario has. Shortest histories are not looked for that way.

use super::state::{ACTORS, Actor, CALLING, COPIES, CURRENT, DEVICES, FRAMES, Frame, NOTHING, PAGES, Pte, State};

/// One way to rename what a state speaks of.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Renaming {
    /// The new place of each actor.
    actors: [usize; ACTORS],
    /// Whether the devices are swapped.
    devices: bool,
    /// Whether the pages are.
    pages: bool,
}

/// The symmetries of a scenario, beside leaving all as it is. The elements of each make a group.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Symmetry {
    /// None.
    None,
    /// The actors 1 and 2, two CPUs, run the same program.
    Cpus,
    /// The actors 0 and 1, devices 0 and 1, run the same program.
    Devices,
    /// Actors 0 and 1 (devices), 2 and 3 (CPUs) and the pages can be swapped, all together.
    Mirror,
}

const GROUPS: [&[Renaming]; 4] = [
    &[],
    &[Renaming { actors: [0, 2, 1, 3, 4], devices: false, pages: false }],
    &[Renaming { actors: [1, 0, 2, 3, 4], devices: true, pages: false }],
    &[Renaming { actors: [1, 0, 3, 2, 4], devices: true, pages: true }],
];

/// The least of the states that are the same as `state` up to its scenario's symmetry.
#[must_use]
pub fn representative(state: &State) -> State {
    let group = GROUPS[usize::from(state.symmetry)];
    group.iter().map(|renaming| renaming.apply(state)).fold(*state, State::min)
}

impl Renaming {
    fn page(&self, page: usize) -> usize {
        if self.pages { PAGES - 1 - page } else { page }
    }

    fn frame(&self, frame: Frame) -> Frame {
        if self.pages { (frame + COPIES) % FRAMES } else { frame }
    }

    fn device(&self, device: usize) -> usize {
        if self.devices { DEVICES - 1 - device } else { device }
    }

    /// A holder: an actor and one, or 0.
    fn holder(&self, tag: u8) -> u8 {
        match usize::from(tag).checked_sub(1) {
            None => 0,
            Some(actor) => u8::try_from(self.actors[actor] + 1).expect("five actors"),
        }
    }

    fn pte(&self, pte: Pte) -> Pte {
        match pte {
            Pte::None | Pte::Zero => pte,
            Pte::Ro(frame) => Pte::Ro(self.frame(frame)),
            Pte::Rw(frame) => Pte::Rw(self.frame(frame)),
            Pte::Exclusive(frame) => Pte::Exclusive(self.frame(frame)),
            Pte::Swap(frame) => Pte::Swap(self.frame(frame)),
        }
    }

    fn actor(&self, actor: Actor) -> Actor {
        let frame = |frame| if frame == NOTHING { NOTHING } else { self.frame(frame) };
        let calls = (0..DEVICES).filter(|device| actor.calls & 1 << device != 0);
        let calls = calls.fold(actor.calls & CALLING, |calls, device| calls | 1 << self.device(device));
        Actor { calls, frame: frame(actor.frame), fault_frame: frame(actor.fault_frame), ..actor }
    }

    fn apply(&self, state: &State) -> State {
        let mut next = *state;
        for page in 0..PAGES {
            for mm in 0..2 {
                next.set_pte(mm, self.page(page), self.pte(state.pte(mm, page)));
            }
            next.prot[self.page(page)] = state.prot[page];
            next.set_done(self.page(page), state.done(page));
        }
        for frame in 0..FRAMES {
            next.set_lock(self.frame(frame), self.holder(state.lock(frame)));
            next.set_value(self.frame(frame), state.value(frame));
        }
        for (index, device) in state.devices.iter().enumerate() {
            let renamed = &mut next.devices[self.device(index)];
            *renamed = *device;
            renamed.mutex = self.holder(device.mutex);
            renamed.flags &= !(CURRENT[0] | CURRENT[1]);
            for page in 0..PAGES {
                renamed.table[self.page(page)] = state.mapped(index, page).map_or(0, |frame| self.frame(frame) + 1);
                if device.flags & CURRENT[page] != 0 {
                    renamed.flags |= CURRENT[self.page(page)];
                }
            }
        }
        for (index, &actor) in state.actors.iter().enumerate() {
            next.actors[self.actors[index]] = self.actor(actor);
        }
        next
    }
}
