//! What the test files share: a watchdog, a seeded generator, a device without hardware, child processes.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::Duration;

use pagelease::{
    Device, Faults, Invalidation, NotDrained, PageIndex, PageRange, Region, Space, SpaceBuilder, SpaceError,
};

pub(crate) mod memory;
pub(crate) mod private;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// `limit`, or what it comes to on a machine so slow (an emulated one, say) that `PAGELEASE_PATIENCE` is set to a factor.
pub(crate) fn patient(limit: Duration) -> Duration {
    limit * std::env::var("PAGELEASE_PATIENCE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// The same for `alarm`.
fn alarm_after(seconds: u32) {
    let seconds = u32::try_from(patient(Duration::from_secs(seconds.into())).as_secs()).unwrap_or(u32::MAX);
    // SAFETY: no precondition.
    unsafe { libc::alarm(seconds) };
}

pub(crate) const MODES: [Faults; 2] = [Faults::Monitor, Faults::InThread];

/// Aborts the process, with a message, unless it is dropped in time: a deadlock fails instead of hanging.
pub(crate) struct Watchdog {
    _done: mpsc::Sender<()>,
}

pub(crate) fn watchdog() -> Watchdog {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let (done, dropped) = mpsc::channel();
    let limit = patient(PATIENCE);
    std::thread::spawn(move || {
        if dropped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Not `eprintln`, which the test harness captures.
            let _ = writeln!(std::io::stderr(), "\n*** {name} has not ended after {limit:?}: a deadlock?");
            std::process::abort();
        }
    });
    Watchdog { _done: done }
}

/// Makes a space of real memory. `None`, and says so, where userfaultfd is refused; then there is nothing to test.
pub(crate) fn open(builder: SpaceBuilder) -> Option<Space> {
    match builder.build() {
        Ok(space) => Some(space),
        Err(SpaceError::Userfaultfd(refused)) => {
            let _ = writeln!(std::io::stderr(), "skipped: {refused}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Waits for something that is about to become true; the watchdog bounds it.
pub(crate) fn wait_until(what: impl Fn() -> bool) {
    while !what() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Long enough for another thread to do something wrong in. No test fails because it is too short.
pub(crate) fn a_while() {
    std::thread::sleep(Duration::from_millis(30));
}

pub(crate) fn page(index: u32) -> PageIndex {
    PageIndex(index)
}

pub(crate) fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(start, end).expect("not empty")
}

pub(crate) fn one(index: u32) -> PageRange {
    pages(index, index + 1)
}

/// The word `word` of page `index`, in the CPU view.
pub(crate) fn at(region: &Region, index: u32, word: usize) -> &AtomicU64 {
    &region.words()[index as usize * (region.granule().0 / 8) + word]
}

/// A device that keeps no page table, and does nothing unless a test makes it.
pub(crate) struct Plain {
    pub(crate) signal_safe: bool,
}

pub(crate) const PLAIN: Plain = Plain { signal_safe: true };

impl Device for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn signal_safe(&self) -> bool {
        self.signal_safe
    }

    fn invalidate(&self, _: &Invalidation) -> Result<(), NotDrained> {
        Ok(())
    }
}

/// `SplitMix64`: small, and the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not zero.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        u32::try_from(self.next() % u64::from(n)).expect("below a u32")
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// A non-empty range of `count` pages, of at most `longest`.
    pub(crate) fn range(&mut self, count: u32, longest: u32) -> PageRange {
        let start = self.below(count);
        pages(start, (start + 1 + self.below(longest)).min(count))
    }

    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

const CHILD: &str = "PAGELEASE_TEST_CHILD";

/// Runs `body` in a process of its own: this test program again, told to run only the calling test, which is `test`.
/// What it does to limits, privileges and signal handlers harms no other test.
pub(crate) fn in_child(test: &str, body: impl FnOnce()) {
    if std::env::var(CHILD).as_deref() == Ok(test) {
        // Its watchdog: one that is not a thread.
        alarm_after(100);
        return body();
    }
    let _watchdog = watchdog();
    let child = Command::new(std::env::current_exe().expect("its own path"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .env("RUST_BACKTRACE", "0")
        // Threads of a child that is short of address space shall share what malloc has.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .output()
        .expect("runs itself");
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    for skipped in err.lines().filter(|line| line.starts_with("skipped:")) {
        let _ = writeln!(std::io::stderr(), "{skipped}");
    }
    assert!(child.status.success(), "the child ended with {}\n{out}\n{err}", child.status);
    assert!(out.contains("1 passed"), "the child ran no test named {test}\n{out}");
}

/// How a forked child ended.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    Exit(i32),
    Signal(i32),
}

/// Forks; the child runs `body` and exits with 0 if it returns `true`.
pub(crate) fn fork(body: impl FnOnce() -> bool) -> End {
    // SAFETY: the child calls malloc, which glibc makes safe after fork, and otherwise only what the test is about.
    match unsafe { libc::fork() } {
        0 => {
            // A child that hangs is killed by a signal, which no test expects.
            alarm_after(20);
            let code = if body() { 0 } else { 1 };
            // SAFETY: no precondition.
            unsafe { libc::_exit(code) }
        }
        child => {
            assert!(child > 0, "fork failed");
            let mut status = 0;
            // SAFETY: room for an int.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            if libc::WIFSIGNALED(status) {
                End::Signal(libc::WTERMSIG(status))
            } else {
                End::Exit(libc::WEXITSTATUS(status))
            }
        }
    }
}
