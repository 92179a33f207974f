//! Kernels that do not end, regions that no driver can have, devices that go while they work.

use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::submit::SubmissionError;
use pagelease::{ByteLen, Faults, LossReason, PageIndex, Space};
use pagelease_opencl::{Arg, AttachError, NdRange, SubmitError};

use support::{Gate, MODES, device, kernel, pages, space, wait_until};

mod support;

/// A kernel that does not end within the drain limit costs the device its access: the CPU has the pages, with what was stored to
/// them before, and what the kernel stores later it does not see.
#[test]
fn a_stuck_kernel_loses_the_device() {
    for faults in MODES {
        let space = Space::builder().faults(faults).drain_limit(Duration::from_millis(200)).build().unwrap();
        let region = space.allocate(ByteLen(2 * 4096)).unwrap();
        let Some(device) = device(&space) else { return };
        let (buffers, gate) = (device.attach(&region).unwrap(), Gate::new(&space, &device));
        let add = kernel(&device, "add_at_the_gate");
        let args = [gate.arg(), Arg::Range(&buffers, pages(0, 2)), Arg::U64(7)];
        // SAFETY: the kernel works on words of both pages.
        let submission = unsafe { device.submit(&add, NdRange::new([1]), &args) }.unwrap();
        gate.wait_for(1);
        assert_eq!(region.words()[0].fetch_add(1, SeqCst), 7, "{faults:?}: stored before");
        assert_eq!(space.stats().devices_lost, 1);
        let lost = device.handle().lost().expect("lost");
        assert!(matches!(lost.why, LossReason::Stuck { page: PageIndex(0), .. }), "{lost}");
        let Err(SubmissionError::Lost(_)) = submission.wait() else { panic!("{faults:?}: the wait ends") };
        // SAFETY: it is not to run.
        let again = unsafe { device.submit(&add, NdRange::new([1]), &args) };
        assert!(matches!(again, Err(SubmitError::Runtime(_))), "{:?}", again.map(drop));
        let _ = device.handle();
        gate.open();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(region.words()[1].load(SeqCst), 0, "{faults:?}: a late store landed");
        assert_eq!(region.words()[0].load(SeqCst), 8);
        // Another device takes its place.
        let other = support::device(&space).unwrap();
        let buffers = other.attach(&region).unwrap();
        let add = kernel(&other, "add");
        let args = [Arg::Range(&buffers, region.pages()), Arg::U64(1)];
        // SAFETY: one work item a word.
        unsafe { other.submit(&add, NdRange::new([1024]), &args) }.unwrap().wait().unwrap();
        assert_eq!(region.words()[0].load(SeqCst), 9);
    }
}

/// Buffers, region and device may be dropped while a kernel works on them: the memory stays until it has ended.
#[test]
fn what_a_running_kernel_uses_is_kept() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let (buffers, gate) = (device.attach(&region).unwrap(), Gate::new(&space, &device));
    let add = kernel(&device, "add_at_the_gate");
    let args = [gate.arg(), Arg::Range(&buffers, pages(0, 1)), Arg::U64(7)];
    // SAFETY: the kernel works on words of both pages.
    let submission = unsafe { device.submit(&add, NdRange::new([1]), &args) }.unwrap();
    gate.wait_for(1);
    drop((submission, buffers, add));
    thread::scope(|scope| {
        let dropped = scope.spawn(move || drop(device));
        thread::sleep(Duration::from_millis(50));
        assert!(!dropped.is_finished(), "it waits for what was submitted");
        gate.open();
        wait_until("the device's end", || dropped.is_finished());
    });
    assert_eq!(region.words()[1].load(SeqCst), 7);
}

/// Adopted memory is carried from view to view; a driver that has noted where it lies cannot have it.
#[test]
fn adopted_memory_is_refused() {
    let (space, _) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let layout = std::alloc::Layout::from_size_align(1 << 20, 1 << 20).unwrap();
    // SAFETY: not of size 0.
    let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
    // SAFETY: nobody else uses it.
    match unsafe { space.adopt(memory, ByteLen(1 << 20)) } {
        Ok(region) => {
            let error = device.attach(&region).unwrap_err();
            assert!(matches!(error, AttachError::NoAlias { .. }), "{error}");
            assert!(error.to_string().contains("Space::allocate"), "{error}");
        }
        // A kernel before Linux 6.8 has no UFFDIO_MOVE.
        Err(error) => println!("skipped: {error}"),
    }
    // SAFETY: allocated so; the region has gone.
    unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
}

/// A granule that no buffer can hold.
#[test]
fn too_small_a_limit_is_refused() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let error = device.attach_in_chunks(&region, ByteLen(4095)).unwrap_err();
    assert!(matches!(error, AttachError::GranuleTooLarge { limit: ByteLen(4095), .. }), "{error}");
    device.attach(&region).expect("the view of the attempt has gone");
}
