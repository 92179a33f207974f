//! Designs: each a small value that switches steps of the kernel model.
//!
//! A new design is one more entry in [`ALL`], made from [`MAINLINE`] by changing what it changes.

/// How the driver asks for pages.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Call {
    /// `make_device_exclusive_range()`, Linux 5.15 to 6.14: a range; tries the page locks; a page it cannot lock, or the
    /// tail of a huge page, is left out, and the claim of it fails. A restore notifies `EXCLUSIVE` with no owner.
    Range,
    /// `make_device_exclusive()`, since Linux 6.15: one page; waits for the folio lock, and looks again after it has
    /// notified. A restore notifies `CLEAR` with no owner.
    Single,
}

/// When splitting a huge mapping notifies.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Split {
    /// Every claim splits, and every split notifies `CLEAR` over the huge page, whether there is something to split or not.
    Always,
    /// The mapping is looked at first.
    WhenHuge,
}

/// When the driver's interval notifier is inserted.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Register {
    /// Before the claim, with `read_begin` and `read_retry` around it.
    Early,
    /// After the claim and before the folio is unlocked; what came before cannot be seen, so nothing is compared.
    BeforeUnlock,
    /// The same, but with `read_begin` and `read_retry` once it is inserted.
    BeforeUnlockChecked,
    /// After the folio is unlocked.
    AfterUnlock,
    /// Never: the device works under the folio lock, and is unmapped before it is given back.
    Never,
}

/// When the driver reads its sequence number.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Begin {
    /// Before anything else: the driver's loop goes around the whole claim.
    First,
    /// Under the folio lock, inside the claim, before it notifies and looks again.
    UnderLock,
}

/// Which invalidations leave the driver's sequence number alone. Whatever the filter, the device is unmapped.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Filter {
    /// None.
    None,
    /// Those of cause `EXCLUSIVE` that name the driver's device as owner.
    Owner,
    /// Those that the claiming thread itself raises.
    Thread,
    /// Those that carry the claim's token: what this very claim raises, and nothing else that its thread does.
    Token,
}

/// What a walk makes of an entry that is device-exclusive already.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Knows {
    /// A fault: the page is restored first.
    Nobody,
    /// The claim's own walk takes the page as it is.
    Claim,
    /// Every GUP does.
    Everybody,
}

/// What fork does with a device-exclusive page.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Fork {
    /// Tries the folio lock; restores, or fails with ENOMEM.
    TryLock,
    /// Waits for the folio lock.
    Wait,
    /// Restores before it begins, waiting for each lock up to a bound; a page still locked then is copied for the child at
    /// once, as a pinned page is.
    RestoreFirst,
}

/// When the driver unlocks the folio.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Unlock {
    /// After it has mapped the page for the device.
    AfterMap,
    /// As soon as the claim returns: the lock is for forward progress only.
    BeforeMap,
}

/// One rule broken on purpose: kept so that each property is seen to fail.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Mutant {
    /// None: the design as it is.
    Whole,
    /// An invalidation that the filter ignores does not unmap the device either.
    FilterKeepsMapping,
    /// The sequence number is compared before the driver's mutex is taken.
    RetryBeforeMutex,
    /// An invalidation does not wait for the device's operation in flight.
    NoDrain,
    /// `mmu_interval_read_begin` does not wait for an invalidation that runs.
    NoCollisionWait,
    /// fork gives the child the parent's exclusive page without restoring it.
    ForkSharesExclusive,
    /// mprotect tells no notifier.
    ProtectSilently,
    /// A restore keeps the folio locked.
    RestoreKeepsLock,
    /// A claim that starts again does not give the folio lock back.
    RetryKeepsLock,
}

/// A design: what one side of the discussion proposed, or what somebody ships.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Design {
    /// Its name on the command line.
    pub name: &'static str,
    /// Who proposed it, or ships it; in one line.
    pub who: &'static str,
    /// The questions of docs/VERDICTS.md that it belongs to.
    pub questions: &'static str,
    /// How the driver asks.
    pub call: Call,
    /// When a split notifies.
    pub split: Split,
    /// When the notifier is inserted.
    pub register: Register,
    /// When the driver reads its sequence number.
    pub begin: Begin,
    /// Whether a page stays, for a while, with the side that has just got it: a fault waits for the device's operation that
    /// the page was claimed for, and a claim for the access that the page was restored for.
    pub residency: bool,
    /// Whether zap and write-protect restore an exclusive entry first, under the folio lock.
    pub restore_first: bool,
    /// Whether the driver gives a page back as soon as its device is done.
    pub eager: bool,
    /// Which walks know exclusive entries.
    pub knows: Knows,
    /// Which invalidations do not count.
    pub filter: Filter,
    /// What fork does.
    pub fork: Fork,
    /// When the driver unlocks the folio.
    pub unlock: Unlock,
    /// Whether a claim refuses a page that somebody has pinned, and tries again.
    pub refuses_pinned: bool,
    /// The rule broken on purpose.
    pub mutant: Mutant,
}

/// Linux 7.3 with a driver like nouveau: where every design starts from.
pub const MAINLINE: Design = Design {
    name: "linux-7.3",
    who: "ships: make_device_exclusive() and a driver like nouveau (owner filter)",
    questions: "all",
    call: Call::Single,
    split: Split::WhenHuge,
    register: Register::Early,
    begin: Begin::First,
    residency: false,
    restore_first: false,
    eager: false,
    knows: Knows::Nobody,
    filter: Filter::Owner,
    fork: Fork::TryLock,
    unlock: Unlock::AfterMap,
    refuses_pinned: false,
    mutant: Mutant::Whole,
};

const THREAD: Design = Design {
    name: "filter-thread",
    who: "ships: nvidia-uvm ignores what the claiming thread itself raised",
    questions: "Q1 Q8",
    filter: Filter::Thread,
    ..MAINLINE
};

const TOKEN: Design = Design {
    name: "filter-token",
    who: "this project's proposal for the kernel: a claim ignores what carries its own token",
    questions: "Q1 Q2 Q8",
    filter: Filter::Token,
    ..MAINLINE
};

const LATE: Design = Design {
    name: "late",
    who: "asked in June 2021: insert the notifier after the claim, the page lock covers the gap",
    questions: "Q5",
    register: Register::BeforeUnlock,
    ..MAINLINE
};

const AFTER_UNLOCK: Design = Design {
    name: "late-unlocked",
    who: "the same, one step further: insert it after the unlock",
    questions: "Q5",
    register: Register::AfterUnlock,
    ..MAINLINE
};

const LATE_CHECKED: Design = Design {
    name: "late-checked",
    who: "late, with read_begin and read_retry once the notifier is in",
    questions: "Q5",
    register: Register::BeforeUnlockChecked,
    ..MAINLINE
};

const PAGE_LOCK: Design = Design {
    name: "page-lock-only",
    who: "asked in June 2021: is the page lock not enough, without the notifier?",
    questions: "Q4",
    register: Register::Never,
    ..MAINLINE
};

/// Every design of the kernel's facility, in the order of the table.
pub const ALL: &[Design] = &[
    Design {
        name: "linux-2021",
        who: "ships: make_device_exclusive_range() as merged for 5.15, and nouveau",
        call: Call::Range,
        ..MAINLINE
    },
    MAINLINE,
    Design {
        name: "split-always-2021",
        who: "an early version of the 2021 series: every claim splits through the rmap walk, every split notifies",
        questions: "Q1 Q2",
        call: Call::Range,
        split: Split::Always,
        ..MAINLINE
    },
    Design {
        name: "split-always",
        who: "7.3, were its split to notify before it looks",
        questions: "Q1 Q2",
        split: Split::Always,
        ..MAINLINE
    },
    Design {
        name: "filter-none",
        who: "7.3 with a driver that counts every invalidation",
        questions: "Q1 Q8",
        filter: Filter::None,
        ..MAINLINE
    },
    THREAD,
    TOKEN,
    Design {
        name: "thread-split-always",
        who: "own-thread filter under the unconditional split",
        questions: "Q2",
        split: Split::Always,
        ..THREAD
    },
    Design {
        name: "token-split-always",
        who: "token under the unconditional split",
        questions: "Q2",
        split: Split::Always,
        ..TOKEN
    },
    Design {
        name: "thread-unlock-early",
        who: "own-thread filter, and the lock given up as soon as the claim returns (it is for progress only)",
        questions: "Q1 Q4",
        unlock: Unlock::BeforeMap,
        ..THREAD
    },
    Design {
        name: "token-unlock-early",
        who: "token, and the lock given up as soon as the claim returns",
        questions: "Q1 Q4",
        unlock: Unlock::BeforeMap,
        ..TOKEN
    },
    PAGE_LOCK,
    Design {
        name: "page-lock-restore",
        who: "page lock only, with zap and write-protect restoring first",
        questions: "Q4 Q6",
        restore_first: true,
        ..PAGE_LOCK
    },
    Design {
        name: "restore-first",
        who: "asked in June 2021: let zap and write-protect restore the entry first",
        questions: "Q6",
        restore_first: true,
        ..MAINLINE
    },
    LATE,
    Design {
        name: "late-restore",
        who: "late, with zap and write-protect restoring first",
        questions: "Q5 Q6",
        restore_first: true,
        ..LATE
    },
    LATE_CHECKED,
    Design {
        name: "late-checked-restore",
        who: "late-checked, with zap and write-protect restoring first",
        questions: "Q5 Q6",
        restore_first: true,
        ..LATE_CHECKED
    },
    AFTER_UNLOCK,
    Design {
        name: "late-unlocked-restore",
        who: "after the unlock, with zap and write-protect restoring first",
        questions: "Q5 Q6",
        restore_first: true,
        ..AFTER_UNLOCK
    },
    Design {
        name: "eager",
        who: "asked in June 2021: the driver restores as soon as its device is done",
        questions: "Q7",
        eager: true,
        ..MAINLINE
    },
    Design {
        name: "claim-knows",
        who: "asked in June 2021: the claim's walk understands an entry that is exclusive already",
        questions: "Q8",
        knows: Knows::Claim,
        ..MAINLINE
    },
    Design { name: "gup-knows", who: "the same for every GUP", questions: "Q8", knows: Knows::Everybody, ..MAINLINE },
    Design {
        name: "fork-waits",
        who: "fork waits for the folio lock instead of failing",
        questions: "Q9",
        fork: Fork::Wait,
        ..MAINLINE
    },
    Design {
        name: "fork-restores",
        who: "fork restores first, with a bound, and copies what is still locked",
        questions: "Q9",
        fork: Fork::RestoreFirst,
        ..MAINLINE
    },
    Design {
        name: "pins-refused",
        who: "a claim refuses pinned pages, and tries again",
        questions: "Q8",
        refuses_pinned: true,
        ..TOKEN
    },
    Design {
        name: "begin-locked",
        who: "this project's proposal for the kernel: read_begin under the folio lock, which keeps every restore out",
        questions: "Q1 Q2 Q8",
        begin: Begin::UnderLock,
        ..MAINLINE
    },
    Design {
        name: "begin-locked-split",
        who: "the same under the unconditional split",
        questions: "Q2",
        begin: Begin::UnderLock,
        split: Split::Always,
        ..MAINLINE
    },
    Design {
        name: "begin-locked-wait",
        who: "the same, and fork waits for the folio lock",
        questions: "Q9",
        begin: Begin::UnderLock,
        fork: Fork::Wait,
        ..MAINLINE
    },
    Design {
        name: "residency",
        who: "7.3 with a minimum residency on both sides, as xe's timeslice_ms gives the device",
        questions: "Q7",
        residency: true,
        ..MAINLINE
    },
    Design {
        name: "all-mended",
        who: "the sum of what helped: read_begin under the lock, minimum residency, fork restores first, pins refused",
        questions: "all",
        begin: Begin::UnderLock,
        residency: true,
        fork: Fork::RestoreFirst,
        refuses_pinned: true,
        ..MAINLINE
    },
    Design {
        name: "all-mended-unlocked",
        who: "all-mended, and the lock given up as soon as the claim returns: a driver may touch what it claims",
        questions: "Q1 Q4",
        begin: Begin::UnderLock,
        residency: true,
        fork: Fork::RestoreFirst,
        unlock: Unlock::BeforeMap,
        filter: Filter::Token,
        refuses_pinned: true,
        ..MAINLINE
    },
];
