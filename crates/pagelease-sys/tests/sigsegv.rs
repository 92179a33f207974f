//! The SIGSEGV handler: opening closed pages in the touching thread, and leaving real faults as they were: to a debugger, to
//! handlers installed before, to the standard library's report of a stack overflow.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use pagelease_sys::mem::{self, Mapping, Protection};
use pagelease_sys::signal::{self, Fault, SEGV_ACCERR, SEGV_MAPERR, Signal};
use pagelease_sys::{Span, page_size};

use scenario::{by_hand, command, errno, is_blocked, scenario, set_errno, word};

mod scenario;

fn install(handler: signal::Handler) {
    signal::install(Signal::Segmentation, handler).unwrap();
}

fn refuse(_: &Fault) -> bool {
    SERVED.fetch_add(1, SeqCst);
    false
}

static SERVED: AtomicU32 = AtomicU32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
/// 0 for a read, 1 for a write, -1 for unknown.
static WRITE: AtomicI32 = AtomicI32::new(-2);
static FETCH: AtomicI32 = AtomicI32::new(-2);

/// What the callback below opens.
static CLOSED: OnceLock<Span> = OnceLock::new();

fn closed() -> Span {
    *CLOSED.get_or_init(|| Mapping::anonymous(page_size()).unwrap().into_span())
}

fn protect(protection: Protection) {
    // SAFETY: the page is the test's, and its touches are what is tested.
    unsafe { mem::protect(closed(), protection) }.unwrap();
}

fn open(fault: &Fault) -> bool {
    SERVED.fetch_add(1, SeqCst);
    ADDRESS.store(fault.address, SeqCst);
    WRITE.store(fault.write.map_or(-1, i32::from), SeqCst);
    FETCH.store(fault.fetch.into(), SeqCst);
    set_errno(libc::EXDEV);
    if !CLOSED.get().is_some_and(|span| span.contains(fault.address)) || fault.code != SEGV_ACCERR || fault.fetch {
        return false;
    }
    protect(Protection::ReadWrite);
    true
}

/// On x86-64 it is always known whether a fault was a write; elsewhere it may not be.
fn assert_write(expected: bool) {
    let seen = WRITE.load(SeqCst);
    assert!(seen == i32::from(expected) || (cfg!(not(target_arch = "x86_64")) && seen == -1), "{seen}");
}

#[test]
fn a_touch_is_served_in_the_thread_that_made_it() {
    let status = scenario("a_touch_is_served_in_the_thread_that_made_it", || {
        install(open);
        // SAFETY: mapped, aligned, and only ever used as an atomic.
        let second = unsafe { &*closed().as_ptr().add(8).cast::<AtomicU64>() };
        for (round, write) in [(1, false), (2, true)] {
            protect(Protection::None);
            set_errno(libc::ENOTTY);
            if write {
                second.store(9, SeqCst);
            } else {
                assert_eq!(second.load(SeqCst), 0);
            }
            assert_eq!(errno(), libc::ENOTTY, "the handler preserves errno");
            assert_eq!((SERVED.load(SeqCst), ADDRESS.load(SeqCst)), (round, closed().start() + 8));
            assert_write(write);
        }
        protect(Protection::Read);
        assert_eq!((second.load(SeqCst), SERVED.load(SeqCst)), (9, 2), "a read passes");
        assert_eq!((second.fetch_add(1, SeqCst), SERVED.load(SeqCst)), (9, 3));
        assert_write(true);
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_system_call_gets_efault_and_no_signal() {
    let status = scenario("a_system_call_gets_efault_and_no_signal", || {
        install(open);
        protect(Protection::None);
        // SAFETY: the buffer is mapped, and as long as that.
        let read = unsafe { libc::getrandom(closed().as_ptr().cast(), 8, 0) };
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
        open(fault)
    }
    let status = scenario("nothing_interrupts_the_callback", || {
        by_hand(libc::SIGUSR1, on_usr1 as *const () as usize, 0, &[]);
        install(interrupted);
        protect(Protection::None);
        assert_eq!(word(closed()).load(SeqCst), 0);
        assert_eq!((RAN_IN_CALLBACK.load(SeqCst), RAN.load(SeqCst)), (0, 1));
    });
    assert!(status.success(), "{status}");
}

#[test]
fn both_signals_have_their_own_callback_and_place() {
    let status = scenario("both_signals_have_their_own_callback_and_place", || {
        install(open);
        assert_eq!((signal::is_ours(Signal::Segmentation), signal::is_ours(Signal::Bus)), (Ok(true), Ok(false)));
        signal::install(Signal::Bus, refuse).unwrap();
        protect(Protection::None);
        assert_eq!((word(closed()).load(SeqCst), SERVED.load(SeqCst)), (0, 1));
        by_hand(libc::SIGSEGV, libc::SIG_DFL, 0, &[]);
        assert_eq!((signal::is_ours(Signal::Segmentation), signal::is_ours(Signal::Bus)), (Ok(false), Ok(true)));
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_previous_handler_gets_what_is_not_ours() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn previous(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        assert!(number == libc::SIGSEGV && !context.is_null());
        assert!(is_blocked(libc::SIGSEGV) && is_blocked(libc::SIGUSR1) && !is_blocked(libc::SIGUSR2));
        CALLS.fetch_add(1, SeqCst);
        // SAFETY: what the kernel passed.
        SEEN.store(unsafe { (*info).si_addr() }.addr(), SeqCst);
        protect(Protection::ReadWrite);
    }
    let status = scenario("a_previous_handler_gets_what_is_not_ours", || {
        by_hand(libc::SIGSEGV, previous as *const () as usize, libc::SA_SIGINFO, &[libc::SIGUSR1]);
        install(refuse);
        protect(Protection::None);
        assert_eq!(word(closed()).load(SeqCst), 0);
        assert_eq!((CALLS.load(SeqCst), SEEN.load(SeqCst), SERVED.load(SeqCst)), (1, closed().start(), 1));
        assert!(!is_blocked(libc::SIGSEGV) && !is_blocked(libc::SIGUSR1));
    });
    assert!(status.success(), "{status}");
}

/// What a debugger sees: each stop of a traced process for SIGSEGV, until that kills it.
#[derive(Debug)]
struct Stop {
    address: usize,
    code: i32,
    /// Where it was about to execute.
    at: u64,
}

/// Runs the scenario of `test` under ptrace. Returns its stops for SIGSEGV, and the signal it died of.
fn stops_of(test: &str) -> (Vec<Stop>, i32) {
    let mut command = command(test);
    // SAFETY: one system call, which allocates nothing.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, null_mut::<u8>(), null_mut::<u8>()) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let process = i32::try_from(command.spawn().unwrap().id()).unwrap();
    // The threads that it starts are traced as well: the test runs on one. What other tests' threads have started is not
    // waited for.
    let mut stops = Vec::new();
    let mut followed = false;
    loop {
        let mut status = 0;
        // SAFETY: room for an int.
        let stopped = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        assert!(stopped > 0, "{}", std::io::Error::last_os_error());
        if libc::WIFSIGNALED(status) && stopped == process {
            return (stops, libc::WTERMSIG(status));
        }
        assert!(!libc::WIFEXITED(status) || stopped != process, "it ended well");
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let mut signal = libc::WSTOPSIG(status);
        if !followed {
            followed = true;
            let options = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
            // SAFETY: the process is stopped, and ours to trace.
            assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, stopped, 0, options) }, 0);
        }
        if signal == libc::SIGSEGV {
            stops.push(stop_of(stopped));
        } else if signal == libc::SIGTRAP || signal == libc::SIGSTOP {
            // Its exec, and its new threads.
            signal = 0;
        }
        // SAFETY: the thread is stopped, and ours to trace. It may have been killed meanwhile.
        unsafe { libc::ptrace(libc::PTRACE_CONT, stopped, 0, signal) };
    }
}

fn stop_of(thread: i32) -> Stop {
    // SAFETY: zeroes are valid for both, there is room for both, and the thread is stopped.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        assert_eq!(libc::ptrace(libc::PTRACE_GETSIGINFO, thread, 0, &raw mut info), 0);
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        let mut room = libc::iovec { iov_base: (&raw mut registers).cast(), iov_len: size_of_val(&registers) };
        assert_eq!(libc::ptrace(libc::PTRACE_GETREGSET, thread, libc::NT_PRSTATUS, &raw mut room), 0);
        #[cfg(target_arch = "x86_64")]
        let at = registers.rip;
        #[cfg(target_arch = "aarch64")]
        let at = registers.pc;
        Stop { address: info.si_addr().addr(), code: info.si_code, at }
    }
}

const NOWHERE: usize = 0x1238;

/// A fault that nobody serves kills, of the second signal of its kind: for a debugger, or in the core dump, it is as it
/// would have been without us. The first one it sees is the one that our handler passes on.
#[test]
fn a_real_fault_kills_as_if_we_were_not_there() {
    const TEST: &str = "a_real_fault_kills_as_if_we_were_not_there";
    if std::env::var("PAGELEASE_SCENARIO").is_ok() {
        scenario(TEST, || {
            install(open);
            // SAFETY: none; that is the test.
            unsafe { std::ptr::with_exposed_provenance::<u8>(NOWHERE).read_volatile() };
        });
    }
    let (stops, signal) = stops_of(TEST);
    assert_eq!(signal, libc::SIGSEGV);
    assert!(stops.len() >= 2, "{stops:?}");
    let first = &stops[0];
    for stop in &stops {
        assert_eq!((stop.address, stop.code, stop.at), (NOWHERE, SEGV_MAPERR, first.at), "{stops:?}");
    }
}

fn dies_of_it(before: usize) {
    by_hand(libc::SIGSEGV, before, 0, &[]);
    install(refuse);
    protect(Protection::None);
    word(closed()).load(SeqCst);
}

#[test]
fn a_fault_that_nobody_serves_kills() {
    let status = scenario("a_fault_that_nobody_serves_kills", || dies_of_it(libc::SIG_DFL));
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn a_fault_cannot_be_ignored() {
    let status = scenario("a_fault_cannot_be_ignored", || dies_of_it(libc::SIG_IGN));
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

/// An instruction that is to be fetched from managed memory is no touch of data.
#[test]
fn a_fetch_is_known_as_one() {
    let status = scenario("a_fetch_is_known_as_one", || {
        extern "C" fn previous(_: i32) {
            let expected = i32::from(cfg!(any(target_arch = "x86_64", target_arch = "aarch64")));
            // SAFETY: no precondition.
            unsafe { libc::_exit(if FETCH.load(SeqCst) == expected { 77 } else { 1 }) };
        }
        by_hand(libc::SIGSEGV, previous as *const () as usize, 0, &[]);
        install(open);
        // SAFETY: none; the page cannot be executed, and the handler ends the process.
        unsafe { std::mem::transmute::<*mut u8, extern "C" fn()>(closed().as_ptr())() };
    });
    assert_eq!(status.code(), Some(77), "{status}");
}

#[test]
fn a_stack_overflow_is_still_reported() {
    #[expect(unconditional_recursion, reason = "that is the test")]
    fn overflow(depth: u64) -> u64 {
        let room = std::hint::black_box([depth; 64]);
        overflow(depth + 1) + std::hint::black_box(room)[7]
    }
    const TEST: &str = "a_stack_overflow_is_still_reported";
    if std::env::var("PAGELEASE_SCENARIO").is_ok() {
        scenario(TEST, || {
            install(open);
            // What is served before must not be in the way of it.
            protect(Protection::None);
            word(closed()).store(1, SeqCst);
            let thread = std::thread::Builder::new().name("a deep one".to_owned());
            let _ = thread.stack_size(256 << 10).spawn(|| overflow(1)).unwrap().join();
        });
    }
    let child = command(TEST).stdout(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(said.contains("thread 'a deep one'") && said.contains("overflowed its stack"), "{said}");
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{}", child.status);
}

#[test]
fn a_signal_that_was_sent_is_not_a_fault() {
    let status = scenario("a_signal_that_was_sent_is_not_a_fault", || {
        by_hand(libc::SIGSEGV, libc::SIG_IGN, 0, &[]);
        install(refuse);
        // SAFETY: no precondition.
        unsafe { libc::raise(libc::SIGSEGV) };
        assert_eq!(SERVED.load(SeqCst), 0);
    });
    assert!(status.success(), "{status}");
}
