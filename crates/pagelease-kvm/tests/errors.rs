//! What goes wrong is said, with where; and the device, and the memory, can be used afterwards.
#![cfg(target_arch = "x86_64")]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use pagelease::{BackendKind, ByteLen, Faults, LossReason, PageIndex, Space};
use pagelease_kvm::{
    Access, AttachError, Exception, JobError, Kernel, KvmConfig, KvmDevice, LoadError, StartError, SubmitError,
};
use support::{add, add_until, address, eventually, forever, has_kvm, region, store, sum};

fn start(space: &Space, deadline: Duration) -> KvmDevice {
    KvmDevice::start(space, KvmConfig { vcpus: 2, deadline, ..KvmConfig::default() }).unwrap()
}

const LONG: Duration = Duration::from_secs(60);

fn run(device: &KvmDevice, kernel: &Kernel, argument: &[u64]) -> Result<u64, JobError> {
    device.submit(kernel, argument, 1).unwrap().wait().map(|results| results[0])
}

/// The device works.
fn works(device: &KvmDevice) {
    let kernel = device.load(sum()).unwrap();
    let lanes = device.submit(&kernel, &[7], 2).unwrap().wait().unwrap();
    assert_eq!(lanes, [9, 10]);
}

#[test]
fn an_access_outside_is_reported_with_its_address() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (start(&space, LONG), region(&space, 4));
    let store = device.load(store()).unwrap();
    let local = 5u64;
    let own = (&raw const local).addr() as u64;
    let view = device.attach(&region).unwrap();
    let end = address(&region, 0) + 4 * 4096;
    for outside in [0x10, own, end, !7, store.address() & !4095] {
        match run(&device, &store, &[outside, 1]) {
            Err(JobError::Outside { address, instruction, access: Access::Write }) => {
                assert_eq!(address, outside);
                // The third instruction, behind two of 3 and 4 bytes.
                assert_eq!(instruction, store.address() + 7);
            }
            other => panic!("{outside:#x}: {other:?}"),
        }
        works(&device);
    }
    let inside = address(&region, 3);
    run(&device, &store, &[inside, 9]).unwrap();
    assert_eq!((local, region.words()[3].load(SeqCst)), (5, 9));
    drop(view);
    assert!(matches!(run(&device, &store, &[inside, 1]), Err(JobError::Outside { address, .. }) if address == inside));
    // Attached again, perhaps at another place of the guest's physical memory.
    let _view = device.attach(&region).unwrap();
    run(&device, &store, &[inside, 10]).unwrap();
    assert_eq!(region.words()[3].load(SeqCst), 10);
}

#[test]
fn faults_of_the_processor_have_names() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let device = start(&space, LONG);
    let cases: [(&[u8], Exception, u64); 6] = [
        (&[0x0F, 0x0B], Exception::InvalidOpcode, 0),
        (&[0xF4], Exception::GeneralProtection, 0),
        (&[0xE6, 0x10], Exception::GeneralProtection, 0),
        (&[0xE4, 0xCE], Exception::GeneralProtection, 0),
        (&[0x31, 0xC9, 0xF7, 0xF1], Exception::Divide, 2),
        // mov rax, 1 << 63; mov [rax], rax
        (&[0x48, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x48, 0x89, 0x00], Exception::GeneralProtection, 10),
    ];
    for (code, expected, at) in cases {
        let kernel = device.load(code).unwrap();
        match run(&device, &kernel, &[]) {
            Err(JobError::Fault { exception, instruction, .. }) => {
                assert_eq!((exception, instruction), (expected, kernel.address() + at), "{code:x?}");
            }
            other => panic!("{code:x?}: {other:?}"),
        }
        works(&device);
    }
    // A stack that runs over: push rax; jmp back.
    let kernel = device.load(&[0x50, 0xEB, 0xFD]).unwrap();
    assert!(matches!(run(&device, &kernel, &[]), Err(JobError::Outside { access: Access::Write, .. })));
    // Code on the stack: jmp rsp. And writing to its own code.
    let kernel = device.load(&[0xFF, 0xE4]).unwrap();
    assert!(matches!(run(&device, &kernel, &[]), Err(JobError::Outside { access: Access::Execute, .. })));
    works(&device);
}

#[test]
fn arguments_can_be_read_only() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let device = start(&space, LONG);
    // mov [rdi], rax
    let kernel = device.load(&[0x48, 0x89, 0x07, 0xC3]).unwrap();
    assert!(matches!(run(&device, &kernel, &[1]), Err(JobError::Outside { access: Access::Write, .. })));
    works(&device);
}

#[test]
fn a_runaway_kernel_is_stopped_by_its_deadline() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let limit = Duration::from_millis(30);
    let device = start(&space, limit);
    let kernel = device.load(forever()).unwrap();
    let begun = std::time::Instant::now();
    match run(&device, &kernel, &[]) {
        Err(JobError::Deadline { limit: said, instruction }) => {
            assert_eq!(said, limit);
            assert!((kernel.address()..kernel.address() + 4).contains(&instruction), "{instruction:#x}");
        }
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() >= limit);
    works(&device);
}

#[test]
fn a_job_can_be_cancelled_while_it_runs_and_while_it_waits() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let device = start(&space, LONG);
    let kernel = device.load(forever()).unwrap();
    let running = device.submit(&kernel, &[], 2).unwrap();
    let waiting = device.submit(&kernel, &[], 3).unwrap();
    assert!(!running.is_over());
    waiting.cancel();
    running.cancel();
    for job in [running, waiting] {
        assert!(matches!(job.wait(), Err(JobError::Cancelled)));
    }
    works(&device);
}

#[test]
fn a_lost_device_fails_its_jobs_and_the_cpu_gets_its_pages_back() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (start(&space, LONG), region(&space, 2));
    let view = device.attach(&region).unwrap();
    let kernel = device.load(add_until()).unwrap();
    let job = device.submit(&kernel, &[address(&region, 0), address(&region, 512)], 1).unwrap();
    eventually(|| view.view().has(PageIndex(0)) && view.view().has(PageIndex(1)));
    device.lose();
    assert!(matches!(job.wait(), Err(JobError::Lost(lost)) if lost.why == LossReason::Driver));
    let found = region.words()[0].load(SeqCst);
    region.words()[512].store(1, SeqCst);
    assert_eq!(region.words()[0].load(SeqCst), found, "nothing runs any more");
    let kernel = device.load(sum()).unwrap();
    assert!(matches!(run(&device, &kernel, &[0]), Err(JobError::Lost(_))));
    assert_eq!(space.stats().devices_lost, 1);
}

#[test]
fn a_region_that_is_dropped_fails_what_runs_on_it() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, kept, dropped) = (start(&space, LONG), region(&space, 1), region(&space, 4));
    let _kept_view = device.attach(&kept).unwrap();
    let view = device.attach(&dropped).unwrap();
    let kernel = device.load(add()).unwrap();
    let job = device.submit(&kernel, &[address(&dropped, 0), 4, u64::MAX, 4096], 1).unwrap();
    eventually(|| (0..4).all(|page| view.view().has(PageIndex(page))));
    drop(dropped);
    assert!(matches!(job.wait(), Err(JobError::Claim(_))));
    drop(view);
    run(&device, &kernel, &[address(&kept, 0), 1, 5, 4096]).unwrap();
    assert_eq!(kept.words()[0].load(SeqCst), 5);
}

#[test]
fn a_view_that_is_dropped_stays_until_jobs_are_over_that_were_submitted_with_it() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (start(&space, LONG), region(&space, 2));
    let view = device.attach(&region).unwrap();
    let (add, add_until) = (device.load(add()).unwrap(), device.load(add_until()).unwrap());
    let job = device.submit(&add_until, &[address(&region, 0), address(&region, 512)], 1).unwrap();
    eventually(|| view.view().has(PageIndex(0)) && view.view().has(PageIndex(1)));
    drop(view);
    assert!(device.attach(&region).is_err(), "attached still");
    region.words()[512].store(1, SeqCst);
    assert_eq!(job.wait().unwrap()[0], region.words()[0].load(SeqCst));
    let base = address(&region, 0);
    let outside = run(&device, &add, &[base, 1, 1, 4096]);
    assert!(matches!(outside, Err(JobError::Outside { address, .. }) if address == base), "{outside:?}");
    let _view = device.attach(&region).unwrap();
    run(&device, &add, &[base, 1, 1, 4096]).unwrap();
}

#[test]
fn what_cannot_be_is_refused() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let with = |vcpus, deadline| KvmDevice::start(&space, KvmConfig { vcpus, deadline, ..KvmConfig::default() });
    assert!(matches!(with(0, LONG), Err(StartError::Vcpus { asked: 0, .. })));
    assert!(matches!(with(1000, LONG), Err(StartError::Vcpus { asked: 1000, .. })));
    assert!(matches!(with(1, Duration::ZERO), Err(StartError::NoTime)));

    let (device, other) = (start(&space, LONG), start(&space, LONG));
    assert!(matches!(device.load(&[]), Err(LoadError::Empty)));
    let huge = vec![0x90; 32 << 20];
    assert!(matches!(device.load(&huge), Err(LoadError::NoRoom { len }) if len == 32 << 20));
    let kernel = device.load(sum()).unwrap();
    assert!(matches!(device.submit(&kernel, &[], 0), Err(SubmitError::NoLanes)));
    assert!(matches!(other.submit(&kernel, &[], 1), Err(SubmitError::ForeignKernel)));
    let block = vec![0; 4 << 20];
    assert!(matches!(device.submit(&kernel, &block, 1), Err(SubmitError::NoRoom { .. })));

    let region = region(&space, 1);
    let _view = device.attach(&region).unwrap();
    assert!(matches!(
        device.attach(&region),
        Err(AttachError::Runtime(pagelease::AttachError::AlreadyAttached { .. }))
    ));
    let foreign = Space::new().unwrap().allocate(ByteLen(4096)).unwrap();
    assert!(matches!(device.attach(&foreign), Err(AttachError::Runtime(_))));

    let mut own = vec![0u8; 8 << 12];
    let start = own.as_mut_ptr().wrapping_add(own.as_ptr().align_offset(4096));
    // SAFETY: used by nobody else, and kept until behind the region.
    let adopted = unsafe { space.adopt(std::ptr::NonNull::new(start).unwrap(), ByteLen(4096)) };
    if let Ok(adopted) = adopted {
        assert!(matches!(device.attach(&adopted), Err(AttachError::NoAlias { backend: BackendKind::Move })));
        drop(adopted);
    }
    drop(own);
}

#[test]
fn it_works_beside_faults_served_in_the_touching_thread() {
    if !has_kvm() {
        return;
    }
    for backend in [BackendKind::Minor, BackendKind::Mprotect] {
        let space = Space::builder().faults(Faults::InThread).backend(backend).build().unwrap();
        let (device, region) = (start(&space, LONG), region(&space, 8));
        let _view = device.attach(&region).unwrap();
        let kernel = device.load(add()).unwrap();
        let job = device.submit(&kernel, &[address(&region, 0), 8, 300, 4096], 2).unwrap();
        for _ in 0..50 {
            (0..8).for_each(|page| _ = region.words()[page * 512].fetch_add(1, SeqCst));
        }
        job.wait().unwrap();
        let counts: Vec<_> = (0..8).map(|page| region.words()[page * 512].load(SeqCst)).collect();
        assert_eq!(counts, [350; 8], "{backend:?}");
    }
}
