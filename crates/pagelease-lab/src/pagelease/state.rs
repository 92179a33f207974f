//! The state, in 64 bytes.
//!
//! What could grow without bound is kept relative, which is exact:
//!
//! - A page's **generation** is compared for equality only, and only with the page's own: an entry of a record is of the
//!   present generation, or of an earlier one, for ever. So the present one is always [`NOW`], and an entry has one bit. (The
//!   engine's wraps after 65,536 breaks of one page within one hold; that is left out.)
//! - A claim's **sequence number** is compared for equality with what `read_begin` returned. So it counts from there, and
//!   stops at one. How many invalidations run follows from who is in the middle of one.
//! - **Tokens** name claims, and say whether a claim is younger than the monitor's last message: one bit of a record.

use pagelease_protocol::{OwnerId, PageWord};

/// The most pages, records and actors.
pub(super) const PAGES: usize = 2;
pub(super) const RECORDS: usize = 4;
pub(super) const ACTORS: usize = 5;

/// Every page's present generation.
pub(super) const NOW: u16 = 1;
/// The ticket of whoever serves a fault.
pub(super) const SERVICE: u16 = 0;
/// The ticket of whoever serves a touch of a claim's own thread, under that claim's `busy`.
pub(super) const BORROWED: u16 = u16::MAX;
/// No actor.
pub(super) const NOBODY: u8 = 7;

macro_rules! packed {
    ($(#[$doc:meta])+ $name:ident($int:ty) { $($get:ident $set:ident: $shift:literal, $bits:literal;)+ }) => {
        $(#[$doc])+
        #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
        pub struct $name($int);

        #[allow(
            clippy::allow_attributes,
            clippy::cast_possible_truncation,
            dead_code,
            reason = "fields have at most eight bits; one may be written as a whole only"
        )]
        impl $name {
            $(
                pub(super) const fn $get(self) -> u8 {
                    (self.0 >> $shift & ((1 << $bits) - 1)) as u8
                }

                pub(super) const fn $set(&mut self, value: u8) {
                    assert!(value as $int >> $bits == 0);
                    self.0 = self.0 & !(((1 << $bits) - 1) << $shift) | (value as $int) << $shift;
                }
            )+
        }
    };
}

packed! {
    /// A page, beside its word: how the CPU view maps it, whether it exists, whether a parked touch is noted for it, what
    /// it holds, the increments that were made, and for whose access a claim leaves it with the CPU (a mask of actors; the
    /// monitor, which is the last, touches nothing).
    Page(u16) {
        view set_view: 0, 2;
        exists set_exists: 2, 1;
        note set_note: 3, 1;
        value set_value: 4, 4;
        made set_made: 8, 4;
        resident set_resident: 12, 4;
    }
}

packed! {
    /// A record: a chunk of a claim, then of a lease. Entries are masks of pages.
    Record(u16) {
        phase set_phase: 0, 3;
        actor set_actor: 3, 3;
        lease set_lease: 6, 1;
        entries set_entries: 7, 2;
        taken set_taken: 9, 2;
        live set_live: 11, 2;
        moved set_moved: 13, 1;
        disturbed set_disturbed: 14, 1;
        late set_late: 15, 1;
    }
}

packed! {
    /// An actor: where it stands in its program, and in the service of a fault (`f_`), with the registers of both.
    Lane(u64) {
        op set_op: 0, 4;
        pc_code set_pc_code: 4, 6;
        trap set_trap: 10, 2;
        handler set_handler: 12, 2;
        record set_record: 14, 2;
        at set_at: 16, 2;
        cursor set_cursor: 18, 2;
        run set_run: 20, 2;
        why set_why: 22, 2;
        begun set_begun: 24, 4;
        inside set_inside: 28, 1;
        loaded set_loaded: 29, 4;
        f_pc_code set_f_pc_code: 33, 5;
        f_page set_f_page: 38, 1;
        f_write set_f_write: 39, 1;
        f_server set_f_server: 40, 2;
        f_who set_f_who: 42, 3;
        f_begun set_f_begun: 45, 4;
        f_inner set_f_inner: 49, 4;
        f_saved set_f_saved: 53, 7;
        f_record set_f_record: 60, 2;
        f_committing set_f_committing: 62, 1;
        worked set_worked: 63, 1;
    }
}

packed! {
    /// What there is one of: how far the region, and each device's view (a mask), has gone; what the last step broke.
    Globals(u16) {
        closing set_closing: 0, 1;
        closed set_closed: 1, 1;
        stopped set_stopped: 2, 2;
        detached set_detached: 4, 2;
        broken set_broken: 6, 4;
    }
}

/// See the module.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct State {
    pub(super) lanes: [Lane; ACTORS],
    pub(super) words: [u32; PAGES],
    pub(super) pages: [Page; PAGES],
    pub(super) records: [Record; RECORDS],
    pub(super) globals: Globals,
}

const _: () = assert!(size_of::<State>() <= 64);

impl State {
    pub(super) fn new() -> Self {
        Self {
            lanes: [Lane::default(); ACTORS],
            words: [u32::from(NOW) << 16; PAGES],
            pages: [Page::default(); PAGES],
            records: [Record::default(); RECORDS],
            globals: Globals::default(),
        }
    }

    pub(super) fn word(&self, page: u8) -> PageWord {
        PageWord::from_bits(self.words[usize::from(page)])
    }

    /// How many invalidations run that this record has heard of.
    pub(super) fn running(&self, record: usize) -> u32 {
        let has = |begun: u8| u32::from(begun >> record & 1);
        self.lanes.iter().map(|lane| has(lane.begun()) + has(lane.f_begun()) + has(lane.f_inner())).sum()
    }
}

pub(super) fn owner(device: u8) -> OwnerId {
    OwnerId::new(device + 1).expect("a small number")
}

macro_rules! codes {
    ($(#[$doc:meta])+ $name:ident { $($variant:ident),+ $(,)? }) => {
        $(#[$doc])+
        #[derive(Copy, Clone, Debug, Eq, PartialEq)]
        #[repr(u8)]
        pub(super) enum $name { $($variant),+ }

        #[allow(clippy::allow_attributes, dead_code, reason = "a code may be compared only")]
        impl $name {
            pub(super) const fn of(code: u8) -> Self {
                const ALL: &[$name] = &[$($name::$variant),+];
                ALL[code as usize]
            }
        }
    };
}

codes! {
    /// Where a record is in its life, as in the engine.
    Phase { Free, Claiming, Committing, Held, Ended }
}

codes! {
    /// How the CPU view maps a page.
    View { Absent, ReadOnly, Writable }
}

codes! {
    /// A CPU access that trapped, with a monitor: its message is unread, or read.
    Trap { None, Unread, Read }
}

codes! {
    /// The signal handler of an actor.
    Handler { Waiting, Running, Over }
}

codes! {
    /// On which thread a touch is served.
    Server { InThread, Monitor, Owed }
}

codes! {
    /// What was in the way; or that the claim has failed.
    Why { Busy, Held, Waiter, Failed }
}

codes! {
    /// What an actor does next, outside the service of a fault.
    Pc {
        Next,
        // A claim.
        Open, Reside, ReadBegin, Take, Invalidate, Drain, Populate, Revoke, Committing, Map, Commit, CommitLate, Held, Wait,
        Asleep, Refused, Undo, UndoDrain, UndoPut,
        // A device's operation.
        Check, Load, Store, Withdraw,
        // The end of a lease.
        EndHold, Eagerly,
        // Restoring without a touch.
        RsTake, RsBegin, RsDrain, RsMap, RsCommit, RsWait, RsAsleep,
        // The end of a region.
        RgOperations, RgStop, RgDrain,
    }
}

codes! {
    /// What an actor that serves a fault does next.
    Fp {
        None, Look, Begin, Drain, Map, MapReadOnly, Commit, CommitReadOnly, Asleep, Settle,
        Borrow, BorrowBegin, BorrowInvalidate, BorrowDrain, BorrowMap, BorrowPut, BorrowEnd,
    }
}

impl Lane {
    pub(super) const fn pc(self) -> Pc {
        Pc::of(self.pc_code())
    }

    pub(super) const fn go(&mut self, pc: Pc) {
        self.set_pc_code(pc as u8);
    }

    pub(super) const fn f_pc(self) -> Fp {
        Fp::of(self.f_pc_code())
    }

    pub(super) const fn f_go(&mut self, pc: Fp) {
        self.set_f_pc_code(pc as u8);
    }

    pub(super) const fn trapped(self) -> Trap {
        Trap::of(self.trap())
    }

    pub(super) const fn reason(self) -> Why {
        Why::of(self.why())
    }

    /// Begins the service of a fault.
    pub(super) const fn serve(&mut self, page: u8, write: bool, server: Server, who: u8) {
        self.end_service();
        self.f_go(Fp::Look);
        self.set_f_page(page);
        self.set_f_write(write as u8);
        self.set_f_server(server as u8);
        self.set_f_who(who);
    }

    /// Forgets its registers, too: what means nothing must not tell states apart.
    pub(super) const fn end_service(&mut self) {
        self.0 &= (1 << 63) | ((1 << 33) - 1);
    }

    /// Ends an operation: the next of the program.
    pub(super) const fn end_op(&mut self) {
        self.set_op(self.op() + 1);
        self.end_program_step();
    }

    /// As [`Lane::end_op`], without going on to the next.
    pub(super) const fn end_program_step(&mut self) {
        self.go(Pc::Next);
        self.set_record(0);
        self.set_at(0);
        self.set_cursor(0);
        self.set_run(0);
        self.set_why(0);
        self.set_loaded(0);
        self.set_inside(0);
    }
}

impl Record {
    pub(super) const fn stage(self) -> Phase {
        Phase::of(self.phase())
    }

    /// Whether it wants to hear of invalidations.
    pub(super) fn listens(self) -> bool {
        matches!(self.stage(), Phase::Claiming | Phase::Committing)
    }

    pub(super) const fn add(&mut self, page: u8, taken: bool) {
        self.set_entries(self.entries() | 1 << page);
        self.set_live(self.live() | 1 << page);
        if taken {
            self.set_taken(self.taken() | 1 << page);
        }
    }

    pub(super) const fn clear(&mut self) {
        self.set_entries(0);
        self.set_taken(0);
        self.set_live(0);
    }

    /// The generation of its entry for `page`.
    pub(super) const fn generation(self, page: u8) -> u16 {
        if self.live() >> page & 1 == 1 { NOW } else { 0 }
    }
}

/// The pages of a mask, ascending.
pub(super) fn pages(mask: u8) -> impl Iterator<Item = u8> {
    (0..2).filter(move |page| mask >> page & 1 == 1)
}
