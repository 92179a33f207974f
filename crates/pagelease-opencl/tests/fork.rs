//! A forked child: the device is its parent's.

use std::sync::atomic::Ordering::SeqCst;

use pagelease::Faults;
use pagelease_opencl::{Arg, BuildError, NdRange, OpenClDevice, OpenError, SubmitError};

use support::{device, kernel, space};

mod support;

/// Every call says so, and dropping what it inherited does nothing; the parent goes on.
#[test]
fn a_child_has_no_device() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let (buffers, add) = (device.attach(&region).unwrap(), kernel(&device, "add"));
    let program = device.build(support::KERNELS).unwrap();
    let args = [Arg::Range(&buffers, region.pages()), Arg::U64(1)];
    // SAFETY: one work item a word; in the child it is not to run.
    let submit = || unsafe { device.submit(&add, NdRange::new([512]), &args) };
    submit().unwrap().wait().unwrap();
    // SAFETY: the child takes no lock that another thread may have: each call below says `Forked` before it would.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let said = [
            matches!(submit(), Err(SubmitError::Forked)),
            matches!(program.kernel("add"), Err(BuildError::Forked)),
            matches!(device.build(""), Err(BuildError::Forked)),
            matches!(OpenClDevice::open(&space), Err(OpenError::Forked)),
        ];
        drop((buffers, add, program, device));
        // SAFETY: no precondition.
        unsafe { libc::_exit(i32::from(said != [true; 4])) };
    }
    let mut status = -1;
    // SAFETY: the status is an int of ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child's status");
    submit().unwrap().wait().unwrap();
    assert_eq!(region.words()[0].load(SeqCst), 2);
}
