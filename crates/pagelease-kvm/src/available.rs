//! [`available`]: whether a KVM device can be had here, found out by making one function run in a guest.

use pagelease_sys::uffd::{Features, OpenPath, Uffd};

use crate::block::Area;
use crate::engine::Machine;
use crate::error::Unavailable;
use crate::vcpu::Stop;

/// `lea rax, [rdi + rsi]; ret`
const TRIAL: [u8; 5] = [0x48, 0x8D, 0x04, 0x37, 0xC3];

/// A userfaultfd that traps a vCPU.
pub(crate) fn open_uffd() -> Result<Uffd, Unavailable> {
    let opened = Uffd::open(Features::MINOR_SHMEM | Features::MISSING_SHMEM | Features::THREAD_ID)?;
    if opened.path == OpenPath::UserModeOnly {
        return Err(Unavailable::UserModeOnly);
    }
    Ok(opened.uffd)
}

/// Whether a KVM device can be had: opens `/dev/kvm`, makes a virtual machine, runs a function of five bytes in it, and opens a
/// userfaultfd that traps it. A few milliseconds. Any thread.
///
/// # Errors
/// [`Unavailable`]: the exact reason, and what to do about it.
pub fn available() -> Result<(), Unavailable> {
    let machine = Machine::new(1)?;
    let refused = |what| move |errno| Unavailable::Refused { what, errno };
    let mut vcpu = machine.vcpu(0).map_err(refused("making a vCPU"))?;
    let put = machine.block.put(&TRIAL, Area::Code).expect("nothing else is loaded");
    vcpu.enter(machine.block.address(put.offset), [40, 2, 0]).map_err(refused("KVM_SET_REGS"))?;
    loop {
        match vcpu.run().map_err(refused("KVM_RUN"))? {
            Stop::Returned(42) => break,
            Stop::Interrupted => {}
            other => return Err(Unavailable::Trial(format!("{other:?}"))),
        }
    }
    open_uffd().map(drop)
}
