//! What the lab asks of a design.

use std::fmt;

use serde::Serialize;

/// How a property is decided.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A single step breaks it. Its history is the shortest there is.
    Safety,
    /// An infinite, fair history breaks it, or one that ends with something still owed. Its history has the shortest way
    /// into the loop, and then the loop.
    Liveness,
    /// It is counted: the most that one history can have.
    Count,
}

macro_rules! properties {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal $kind:ident $asks:literal)+) => {
        /// A property. The columns of the table, in this order.
        #[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize)]
        #[serde(into = "&'static str")]
        #[repr(u8)]
        pub enum Property { $($(#[doc = $doc])+ $variant,)+ }

        impl Property {
            /// Every property, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name on the command line and in the table.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// How it is decided.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),+ }
            }

            /// What it asks, in one line.
            #[must_use]
            pub const fn asks(self) -> &'static str {
                match self { $(Self::$variant => $asks),+ }
            }
        }

        impl From<Property> for &'static str {
            fn from(property: Property) -> Self { property.name() }
        }
    };
}

properties! {
    /// See [`Property::asks`].
    Atomicity "atomicity" Safety "no CPU access between the load and the store of a device's atomic operation"
    /// See [`Property::asks`].
    Count "count" Safety "at the end every page holds exactly the increments that were made"
    /// See [`Property::asks`].
    Zapped "zapped" Safety "no device access to a page that munmap, DONTNEED, mremap or reclaim has taken from its address"
    /// See [`Property::asks`].
    Protected "protected" Safety "no device store to a page after mprotect has made it read-only"
    /// See [`Property::asks`].
    Snapshot "snapshot" Safety "no device store to a page that a child of fork sees"
    /// See [`Property::asks`].
    ForkSucceeds "fork-ok" Safety "fork does not fail because a device holds a page"
    /// See [`Property::asks`].
    ClaimSucceeds "claim-ok" Safety "a claim is not refused for a passing reason: somebody has a lock just now"
    /// See [`Property::asks`].
    SelfRetry "self-retry" Safety "a claim that nobody else disturbed does not start again"
    /// See [`Property::asks`].
    Pins "pins" Safety "no access through somebody's pin (GUP) between the halves of a device's atomic operation"
    /// See [`Property::asks`].
    OwnFault "own-fault" Liveness "the claiming thread's own touch of the page ends, and the claim learns of it"
    /// See [`Property::asks`].
    RepeatEnds "repeat-ends" Liveness "a claim of a page that the device has already ends"
    /// See [`Property::asks`].
    ClaimEnds "claim-ends" Liveness "every claim ends: a driver's loop of tries does not go on for ever"
    /// See [`Property::asks`].
    FaultEnds "fault-ends" Liveness "every CPU fault ends"
    /// See [`Property::asks`].
    ForkEnds "fork-ends" Liveness "every fork ends"
    /// See [`Property::asks`].
    UnmapEnds "unmap-ends" Liveness "every munmap, DONTNEED, mprotect and mremap ends"
    /// See [`Property::asks`].
    Progress "progress" Liveness "every CPU access and every device operation is made in the end: nobody is robbed of the page for ever"
    /// See [`Property::asks`].
    Spurious "spurious" Count "invalidations that reached a device with nothing mapped and no claim that needed to know"
}

impl Property {
    /// The property of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|property| property.name() == name)
    }

    /// This property alone.
    #[must_use]
    pub const fn set(self) -> PropertySet {
        PropertySet(1 << self as u32)
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A set of properties, in 32 bits.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct PropertySet(u32);

const _: () = assert!(Property::ALL.len() <= 32);

impl PropertySet {
    /// No property.
    pub const NONE: Self = Self(0);

    /// Every property.
    pub const ALL: Self = Self(u32::MAX >> (32 - Property::ALL.len()));

    /// The set that was stored as `bits`.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The set as it is stored: bit n is the n-th of [`Property::ALL`].
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether `property` is in the set.
    #[must_use]
    pub const fn has(self, property: Property) -> bool {
        self.0 & 1 << property as u32 != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// This set without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in it, in the order of the table.
    pub fn iter(self) -> impl Iterator<Item = Property> {
        Property::ALL.iter().copied().filter(move |&property| self.has(property))
    }
}
