//! The SIGBUS handler: serving faults in the touching thread, and passing on what is not ours.

use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use pagelease_sys::mem::{self, Mapping};
use pagelease_sys::signal::{self, BUS_ADRERR, Fault, Signal};
use pagelease_sys::uffd::{ContinueMode, Features, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span, page_size};

use scenario::{by_hand, errno, is_blocked, scenario, set_errno, word};

mod scenario;

fn install(handler: signal::Handler) {
    signal::install(Signal::Bus, handler).unwrap();
}

fn is_ours() -> bool {
    signal::is_ours(Signal::Bus).unwrap()
}

/// A touch of a page past the end of a file: a SIGBUS that is not userfaultfd's. Growing the file serves it.
struct Truncated {
    file: rustix::fd::OwnedFd,
    span: Span,
}

static TRUNCATED: OnceLock<Truncated> = OnceLock::new();

impl Truncated {
    fn new() -> &'static Self {
        TRUNCATED.get_or_init(|| {
            let file = rustix::fs::memfd_create(c"truncated", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let span = Mapping::shared(&file, 0, page_size()).unwrap().into_span();
            Self { file, span }
        })
    }

    fn touch(&self) {
        word(self.span).load(SeqCst);
    }

    /// Signal-safe.
    fn grow(&self) {
        rustix::fs::ftruncate(&self.file, page_size() as u64).unwrap();
    }

    fn shrink(&self) {
        rustix::fs::ftruncate(&self.file, 0).unwrap();
    }
}

fn refuse(_: &Fault) -> bool {
    false
}

/// What the callback below serves with, and what it saw.
static UFFD: OnceLock<Uffd> = OnceLock::new();
static SERVED: AtomicU32 = AtomicU32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
/// 0 for a read, 1 for a write, -1 for unknown.
static WRITE: AtomicI32 = AtomicI32::new(-2);

fn serve(fault: &Fault) -> bool {
    SERVED.fetch_add(1, SeqCst);
    ADDRESS.store(fault.address, SeqCst);
    WRITE.store(fault.write.map_or(-1, i32::from), SeqCst);
    set_errno(libc::EXDEV);
    assert_eq!((fault.code, fault.fetch), (BUS_ADRERR, false));
    let (uffd, page) = (UFFD.get().unwrap(), Span::page_of(fault.address).unwrap());
    match uffd.continue_pages(page, ContinueMode::empty()).error {
        None => true,
        // Mapped already, so it is protected.
        Some(Errno::EXIST) => uffd.write_protect(page, false, false).is_ok(),
        Some(_) => false,
    }
}

/// A populated page whose touches raise SIGBUS, and another view of it; `None` where userfaultfd is refused.
fn trapped() -> Option<(Span, Span)> {
    let want = Features::SIGBUS | Features::WP_HUGETLBFS_SHMEM | Features::PAGEFAULT_FLAG_WP;
    let uffd = match Uffd::open(want) {
        Ok(opened) => opened.uffd,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let file = mem::memfd(c"pagelease-test", page_size()).unwrap();
    let view = Mapping::shared(&file, 0, page_size()).unwrap().into_span();
    let alias = Mapping::shared(&file, 0, page_size()).unwrap().into_span();
    word(alias).store(1, SeqCst);
    uffd.register(view, RegisterMode::MINOR | RegisterMode::WP).unwrap();
    UFFD.set(uffd).unwrap();
    Some((view, alias))
}

/// On x86-64 it is always known whether a fault was a write; elsewhere it may not be.
fn assert_write(expected: bool) {
    let seen = WRITE.load(SeqCst);
    assert!(seen == i32::from(expected) || (cfg!(not(target_arch = "x86_64")) && seen == -1), "{seen}");
}

#[test]
fn a_touch_is_served_in_the_thread_that_made_it() {
    let status = scenario("a_touch_is_served_in_the_thread_that_made_it", || {
        let Some((view, _)) = trapped() else { return };
        install(serve);
        set_errno(libc::ENOTTY);
        // The second word, to see that the address is the touch's and not the page's.
        // SAFETY: mapped, aligned, and only ever used as an atomic.
        let second = unsafe { &*view.as_ptr().add(8).cast::<AtomicU64>() };
        assert_eq!(second.load(SeqCst), 0);
        assert_eq!(errno(), libc::ENOTTY, "the handler preserves errno");
        assert_eq!((SERVED.load(SeqCst), ADDRESS.load(SeqCst)), (1, view.start() + 8));
        assert_write(false);
        // SAFETY: shared memory loses no contents.
        unsafe { mem::dont_need(view) }.unwrap();
        second.store(2, SeqCst);
        assert_eq!((SERVED.load(SeqCst), second.load(SeqCst)), (2, 2));
        assert_write(true);
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_write_to_a_protected_page_is_seen_as_one() {
    let status = scenario("a_write_to_a_protected_page_is_seen_as_one", || {
        let Some((view, _)) = trapped() else { return };
        install(serve);
        assert_eq!(word(view).load(SeqCst), 1);
        UFFD.get().unwrap().write_protect(view, true, false).unwrap();
        assert_eq!((word(view).load(SeqCst), SERVED.load(SeqCst)), (1, 1), "a read passes");
        assert_eq!((word(view).fetch_add(1, SeqCst), SERVED.load(SeqCst)), (1, 2));
        assert_write(true);
        assert_eq!(word(view).load(SeqCst), 2);
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_locked_instruction_that_only_reads_counts_as_a_write() {
    let status = scenario("a_locked_instruction_that_only_reads_counts_as_a_write", || {
        let Some((view, _)) = trapped() else { return };
        install(serve);
        assert_eq!(word(view).compare_exchange(7, 8, SeqCst, SeqCst), Err(1));
        if cfg!(target_arch = "x86_64") {
            assert_write(true);
        }
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_system_call_gets_efault_and_no_signal() {
    let status = scenario("a_system_call_gets_efault_and_no_signal", || {
        let Some((view, _)) = trapped() else { return };
        install(serve);
        // SAFETY: the buffer is mapped, and as long as that.
        let read = unsafe { libc::getrandom(view.as_ptr().cast(), 8, 0) };
        assert_eq!((read, errno(), SERVED.load(SeqCst)), (-1, libc::EFAULT, 0));
    });
    assert!(status.success(), "{status}");
}

#[test]
fn nothing_interrupts_the_callback() {
    static RAN_IN_CALLBACK: AtomicU32 = AtomicU32::new(0);
    static RAN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn on_usr1(_: i32) {
        RAN.fetch_add(1, SeqCst);
    }
    fn interrupted(fault: &Fault) -> bool {
        // SAFETY: no precondition.
        unsafe { libc::raise(libc::SIGUSR1) };
        RAN_IN_CALLBACK.store(RAN.load(SeqCst), SeqCst);
        assert!(!is_blocked(libc::SIGSEGV), "but a fault of its own would show");
        serve(fault)
    }
    let status = scenario("nothing_interrupts_the_callback", || {
        let Some((view, _)) = trapped() else { return };
        by_hand(libc::SIGUSR1, on_usr1 as *const () as usize, 0, &[]);
        install(interrupted);
        assert_eq!(word(view).load(SeqCst), 1);
        assert_eq!((RAN_IN_CALLBACK.load(SeqCst), RAN.load(SeqCst)), (0, 1));
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_second_install_exchanges_the_callback_only() {
    fn grow(_: &Fault) -> bool {
        TRUNCATED.get().unwrap().grow();
        true
    }
    let status = scenario("a_second_install_exchanges_the_callback_only", || {
        assert!(!is_ours());
        install(refuse);
        install(grow);
        assert!(is_ours());
        Truncated::new().touch();
        by_hand(libc::SIGBUS, libc::SIG_IGN, 0, &[]);
        assert!(!is_ours(), "somebody came after us");
        install(grow);
        assert!(!is_ours(), "and stays there");
    });
    assert!(status.success(), "{status}");
}

/// What the previous handlers below saw.
static CALLS: AtomicU32 = AtomicU32::new(0);
static MASK_SEEN: AtomicU32 = AtomicU32::new(0);

fn previous_ran() {
    CALLS.fetch_add(1, SeqCst);
    let bits = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGBUS].map(|signal| u32::from(is_blocked(signal)));
    MASK_SEEN.store(bits[0] << 2 | bits[1] << 1 | bits[2], SeqCst);
    TRUNCATED.get().unwrap().grow();
}

extern "C" fn previous_plain(signal: i32) {
    assert_eq!(signal, libc::SIGBUS);
    previous_ran();
}

extern "C" fn previous_with_info(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: what the kernel passed.
    let address = unsafe { (*info).si_addr() }.addr();
    ADDRESS.store(address, SeqCst);
    assert!(!context.is_null());
    previous_ran();
}

#[test]
fn a_previous_handler_with_info_gets_what_is_not_ours() {
    let status = scenario("a_previous_handler_with_info_gets_what_is_not_ours", || {
        by_hand(libc::SIGBUS, previous_with_info as *const () as usize, libc::SA_SIGINFO, &[libc::SIGUSR1]);
        install(refuse);
        let truncated = Truncated::new();
        set_errno(libc::ENOTTY);
        truncated.touch();
        assert_eq!((CALLS.load(SeqCst), ADDRESS.load(SeqCst)), (1, truncated.span.start()));
        assert_eq!(MASK_SEEN.load(SeqCst), 0b101, "its mask and the signal itself, nothing more");
        assert_eq!(errno(), libc::ENOTTY);
        assert!(!is_blocked(libc::SIGUSR1) && !is_blocked(libc::SIGBUS), "the thread's own mask is back");
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_plain_previous_handler_gets_the_mask_it_asked_for() {
    let status = scenario("a_plain_previous_handler_gets_the_mask_it_asked_for", || {
        by_hand(libc::SIGBUS, previous_plain as *const () as usize, libc::SA_NODEFER, &[libc::SIGUSR2]);
        install(refuse);
        Truncated::new().touch();
        assert_eq!((CALLS.load(SeqCst), MASK_SEEN.load(SeqCst)), (1, 0b010));
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_one_shot_previous_handler_runs_once() {
    let status = scenario("a_one_shot_previous_handler_runs_once", || {
        by_hand(libc::SIGBUS, previous_plain as *const () as usize, libc::SA_RESETHAND, &[]);
        install(refuse);
        Truncated::new().touch();
        assert_eq!(CALLS.load(SeqCst), 1);
        Truncated::new().shrink();
        Truncated::new().touch();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_fault_that_nobody_serves_kills() {
    let status = scenario("a_fault_that_nobody_serves_kills", || {
        by_hand(libc::SIGBUS, libc::SIG_DFL, 0, &[]);
        install(refuse);
        Truncated::new().touch();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_fault_cannot_be_ignored() {
    let status = scenario("a_fault_cannot_be_ignored", || {
        by_hand(libc::SIGBUS, libc::SIG_IGN, 0, &[]);
        install(refuse);
        Truncated::new().touch();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn rusts_own_handler_lets_it_kill() {
    let status = scenario("rusts_own_handler_lets_it_kill", || {
        install(refuse);
        Truncated::new().touch();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

fn never(_: &Fault) -> bool {
    SERVED.fetch_add(1, SeqCst);
    true
}

#[test]
fn a_signal_that_was_sent_is_not_a_fault_and_may_be_ignored() {
    let status = scenario("a_signal_that_was_sent_is_not_a_fault_and_may_be_ignored", || {
        by_hand(libc::SIGBUS, libc::SIG_IGN, 0, &[]);
        install(never);
        // SAFETY: no precondition.
        unsafe { libc::raise(libc::SIGBUS) };
        assert_eq!(SERVED.load(SeqCst), 0);
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_signal_that_was_sent_kills_by_default() {
    let status = scenario("a_signal_that_was_sent_kills_by_default", || {
        by_hand(libc::SIGBUS, libc::SIG_DFL, 0, &[]);
        install(never);
        // SAFETY: no precondition.
        unsafe { libc::raise(libc::SIGBUS) };
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
