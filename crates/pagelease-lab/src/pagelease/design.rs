//! What can be chosen of the shipped protocol, and which of its rules can be broken.

use std::fmt;

use pagelease_protocol::Access;

/// Who serves a fault.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Faults {
    /// A monitor thread; the touching thread sleeps in the kernel.
    Monitor,
    /// The touching thread itself, in its signal handler.
    InThread,
}

/// What the end of a lease does with its pages.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Policy {
    /// They stay with the device until somebody needs them.
    Lazy,
    /// They go back to the CPU at once.
    Eager,
}

/// A rule of the protocol that can be broken: one at a time, to show that a property can fail.
///
/// The first eight are the engine's own (its `mutant` module), which has one more that no property here can see:
/// `SkipGeneration` shortens a later hold, and a hold is for progress only.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Mutant {
    /// A claim commits without looking whether an invalidation came in between.
    SkipReadRetry,
    /// A touch's page word says `Cpu` before the device is told to let go, and the page is mapped.
    WakeBeforeMap,
    /// An invalidation does not wait for operations in flight.
    SkipDrain,
    /// A touch maps the page before the device is told to let go.
    RestoreBeforeInvalidate,
    /// A claim releases `busy` before the word says whose the page is.
    ReleaseBeforeWord,
    /// A claim revokes pages that may not exist.
    SkipPopulate,
    /// A claim ignores what its own thread raised, instead of what carries its token.
    FilterByThread,
    /// A claim takes a page that a touch waits for.
    ClaimPastWaiter,
    /// A claim ignores nothing: it hears of what it raised itself.
    NoFilter,
    /// A claim of a page that the device holds already waits for that hold.
    NoJoin,
    /// Whoever ends what a touch waits for does not give it the page.
    NoHandBack,
    /// A touch waits for the claim or the lease of its own thread.
    NoOwnRecord,
    /// Closing a region, or a device's view, does not stop the device.
    SkipStop,
    /// A touch invalidates every device, not the owner.
    NotifyAll,
    /// Closing a region does not wake the claims that wait.
    NoWakeOnClose,
    /// Nobody breaks a hold.
    NoHoldLimit,
    /// Who goes to sleep decides how long by what was in the way when it first looked, although it looks again before it
    /// sleeps.
    SleepByFirstLook,
    /// A claim takes a page that a touch has just brought back, before the touching thread has made its access.
    NoResidency,
    /// The same, where it was not a touch that brought the page back but the end of an eager lease.
    NoEagerResidency,
    /// A claim ends without a hold: a touch takes the page at once.
    NoHold,
}

impl Mutant {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::SkipReadRetry,
        Self::WakeBeforeMap,
        Self::SkipDrain,
        Self::RestoreBeforeInvalidate,
        Self::ReleaseBeforeWord,
        Self::SkipPopulate,
        Self::FilterByThread,
        Self::ClaimPastWaiter,
        Self::NoFilter,
        Self::NoJoin,
        Self::NoHandBack,
        Self::NoOwnRecord,
        Self::SkipStop,
        Self::NotifyAll,
        Self::NoWakeOnClose,
        Self::NoHoldLimit,
        Self::SleepByFirstLook,
        Self::NoResidency,
        Self::NoEagerResidency,
        Self::NoHold,
    ];
}

/// The shipped protocol, as configured; and at most one rule of it broken.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct Design {
    /// Who serves a fault.
    pub faults: Faults,
    /// What claims ask for.
    pub access: Access,
    /// What the end of a lease does.
    pub policy: Policy,
    /// The rule that is broken.
    pub mutant: Option<Mutant>,
}

impl Design {
    /// The default configuration.
    pub const SHIPPED: Self =
        Self { faults: Faults::Monitor, access: Access::Exclusive, policy: Policy::Lazy, mutant: None };

    /// Every configuration, with every rule in force.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for faults in [Faults::Monitor, Faults::InThread] {
            for access in [Access::Exclusive, Access::ExclusiveWrite] {
                for policy in [Policy::Lazy, Policy::Eager] {
                    all.push(Self { faults, access, policy, ..Self::SHIPPED });
                }
            }
        }
        all
    }

    /// Which configuration it is, in one line.
    #[must_use]
    pub const fn who(self) -> &'static str {
        match (self.faults, self.access, self.policy) {
            (Faults::Monitor, Access::Exclusive, Policy::Lazy) => "ships: this project's runtime, as it is by default",
            (Faults::Monitor, Access::Exclusive, Policy::Eager) => "ships: pages go back at the end of a lease",
            (Faults::Monitor, Access::ExclusiveWrite, Policy::Lazy) => "ships: the CPU goes on reading",
            (Faults::Monitor, Access::ExclusiveWrite, Policy::Eager) => "ships: the CPU goes on reading; pages go back",
            (Faults::InThread, Access::Exclusive, Policy::Lazy) => "ships: a touching thread serves itself",
            (Faults::InThread, Access::Exclusive, Policy::Eager) => "ships: it serves itself; pages go back",
            (Faults::InThread, Access::ExclusiveWrite, Policy::Lazy) => {
                "ships: it serves itself; the CPU goes on reading"
            }
            (Faults::InThread, Access::ExclusiveWrite, Policy::Eager) => {
                "ships: it serves itself; the CPU goes on reading; pages go back"
            }
        }
    }

    /// The name of the configuration in the catalogue. A broken rule is not part of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match (self.faults, self.access, self.policy) {
            (Faults::Monitor, Access::Exclusive, Policy::Lazy) => "pagelease",
            (Faults::Monitor, Access::Exclusive, Policy::Eager) => "pagelease-eager",
            (Faults::Monitor, Access::ExclusiveWrite, Policy::Lazy) => "pagelease-write",
            (Faults::Monitor, Access::ExclusiveWrite, Policy::Eager) => "pagelease-write-eager",
            (Faults::InThread, Access::Exclusive, Policy::Lazy) => "pagelease-inthread",
            (Faults::InThread, Access::Exclusive, Policy::Eager) => "pagelease-inthread-eager",
            (Faults::InThread, Access::ExclusiveWrite, Policy::Lazy) => "pagelease-inthread-write",
            (Faults::InThread, Access::ExclusiveWrite, Policy::Eager) => "pagelease-inthread-write-eager",
        }
    }

    /// What was chosen: who serves a fault, what claims ask for, what the end of a lease does. In the words of a history file.
    pub(crate) const fn words(self) -> (&'static str, &'static str, &'static str) {
        let faults = match self.faults {
            Faults::Monitor => "monitor",
            Faults::InThread => "in-thread",
        };
        let access = match self.access {
            Access::Exclusive => "exclusive",
            Access::ExclusiveWrite => "exclusive-write",
        };
        let policy = match self.policy {
            Policy::Lazy => "lazy",
            Policy::Eager => "eager",
        };
        (faults, access, policy)
    }

    /// The configuration of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|design| design.name() == name)
    }

    /// The same design with this rule broken.
    #[must_use]
    pub const fn with_mutant(self, mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    pub(super) fn breaks(self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

impl fmt::Display for Design {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (faults, access, policy) = self.words();
        write!(f, "pagelease {faults} {access} {policy}")?;
        match self.mutant {
            Some(mutant) => write!(f, " {mutant:?}"),
            None => Ok(()),
        }
    }
}
