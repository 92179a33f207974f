//! Memory that is locked cannot be taken from a device. In a process of its own: locking is the process's.
#![cfg(target_arch = "x86_64")]

mod support;

use std::sync::atomic::Ordering::SeqCst;

use pagelease::{PageIndex, Space};
use pagelease_kvm::{AttachError, JobError, KvmConfig, KvmDevice};
use support::{add, add_until, address, eventually, has_kvm, region};

#[test]
fn a_view_that_is_locked_is_refused_and_one_that_is_locked_later_costs_the_device() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let device = KvmDevice::start(&space, KvmConfig::default()).unwrap();
    let (used, refused) = (region(&space, 4), region(&space, 4));
    let view = device.attach(&used).unwrap();
    let kernel = device.load(add_until()).unwrap();
    let job = device.submit(&kernel, &[address(&used, 0), address(&used, 512)], 1).unwrap();
    eventually(|| view.view().has(PageIndex(0)) && view.view().has(PageIndex(1)));

    let alias = view.view().as_ptr().unwrap();
    // SAFETY: locks the device's pages where they are, and changes nothing else.
    let locked = unsafe { libc::mlock2(alias.as_ptr().cast(), alias.len(), libc::MLOCK_ONFAULT) };
    if locked != 0 {
        return eprintln!("skipped: mlock2: {}", std::io::Error::last_os_error());
    }
    // The page cannot be taken from the vCPU: so the vCPU is stopped, and the CPU has the page.
    let found = used.words()[0].load(SeqCst);
    assert!(device.handle().lost().is_some());
    assert!(matches!(job.wait(), Err(JobError::Lost(_))));
    assert_eq!(used.words()[0].load(SeqCst), found);
    used.words()[512].store(1, SeqCst);
    drop((view, used));

    // SAFETY: as above.
    assert_eq!(unsafe { libc::mlockall(libc::MCL_FUTURE) }, 0);
    let device = KvmDevice::start(&space, KvmConfig::default()).unwrap();
    let attached = device.attach(&refused);
    // SAFETY: undoes it.
    assert_eq!(unsafe { libc::munlockall() }, 0);
    assert!(matches!(attached.map(drop), Err(AttachError::NotRevoked { .. })));
    let _view = device.attach(&refused).unwrap();
    let kernel = device.load(add()).unwrap();
    device.submit(&kernel, &[address(&refused, 0), 4, 2, 4096], 1).unwrap().wait().unwrap();
    assert_eq!(refused.words()[0].load(SeqCst), 2);
}
