//! Device-exclusive shared virtual memory for Linux, in user space. (Crate documentation to come.)

mod backend;
mod claim;
mod device;
mod error;
mod invalidate;
mod lease;
#[cfg_attr(pagelease_shuttle, doc(hidden))]
#[cfg(pagelease_shuttle)]
pub mod mutant;
#[cfg(not(pagelease_shuttle))]
mod mutant;
mod notifier;
mod park;
mod records;
mod region;
mod registry;
mod residency;
mod restore;
mod sequence;
mod service;
mod shared;
pub mod software;
mod space;
mod stats;
mod sync;
mod touch;
mod view;

/// Simulated memory, for tests that explore schedules.
pub mod sim {
    pub(crate) use crate::backend::sim::NextFault;
    pub use crate::backend::sim::{SimCpu, WORDS};
}

pub use backend::{BackendKind, Capabilities};
pub use device::{Device, DeviceHandle, Grant, Invalidation, NotDrained, RegionId};
pub use error::*;
pub use lease::Lease;
pub use notifier::Notifier;
pub use pagelease_protocol::{Access, ByteLen, Cause, Origin, OwnerId, PageIndex, PageRange, PageState, PageWord, Seq};
pub use region::Region;
pub use space::{Faults, Privilege, RestorePolicy, Space, SpaceBuilder};
pub use stats::Stats;
pub use view::View;
