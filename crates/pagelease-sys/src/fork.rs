//! Am I a forked child? A child's copy of a userfaultfd acts on the *parent's* memory, and its copy of a mapping
//! may be absent: whoever holds either asks [`in_child`] first, and does nothing in a child.
//!
//! The answer is a byte of a page that the kernel zeroes in a child (`MADV_WIPEONFORK`, 4.14), so it holds however
//! the child came about: `fork`, `clone`, or a library that went around `pthread_atfork`. A child that shares the
//! parent's memory (`vfork`, `posix_spawn`, `CLONE_VM`) is not one in this sense.
//!
//! The page is made once and stays for the life of the process. A child's own children are children.
//!
//! Whoever must do something before or after a fork registers with [`at_fork`], which libc's `fork` alone calls.
//!
//! Signal-safe: [`in_child`].

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use rustix::io::Errno;

use crate::{mem, page_size};

/// The byte, once armed: 1 in the process that armed it, 0 in a child. Null before.
static BYTE: AtomicPtr<AtomicU8> = AtomicPtr::new(null_mut());

/// Makes [`in_child`] work in this process and in the children it forks from now on. Once is enough; more often does
/// nothing. In a child it does nothing either: it stays a child.
///
/// # Errors
///
/// `NOMEM`: no memory. `INVAL` before 4.14.
pub fn arm() -> Result<(), Errno> {
    if !BYTE.load(Acquire).is_null() {
        return Ok(());
    }
    let page = mem::Mapping::anonymous(page_size())?;
    // SAFETY: the page is ours, and a zero is a valid byte.
    unsafe { mem::wipe_on_fork(page.span()) }?;
    let byte = page.as_ptr().cast::<AtomicU8>();
    // SAFETY: the page is ours, mapped, and as large as a byte.
    unsafe { &*byte }.store(1, Relaxed);
    // When another thread was first, its page stays, and ours is unmapped.
    if BYTE.compare_exchange(null_mut(), byte, AcqRel, Acquire).is_ok() {
        page.into_span();
    }
    Ok(())
}

/// Whether this process is a child forked after [`arm`]. Always `false` before it.
#[inline]
pub fn in_child() -> bool {
    let byte = BYTE.load(Acquire);
    // SAFETY: not null, so `arm` published it: mapped, and never unmapped.
    !byte.is_null() && unsafe { &*byte }.load(Relaxed) == 0
}

/// Has `prepare` called before each `fork` from now on, and `parent` after it in the parent (`pthread_atfork`); in the
/// child, nothing. The forking thread calls them. Other libraries' handlers run too: `prepare` before those that were
/// registered earlier, `parent` after them. Registered twice, they are called twice, and they cannot be taken back: a
/// library that contains them must stay loaded. `clone` and `vfork` call nobody.
///
/// # Errors
///
/// `NOMEM`: no memory.
pub fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn()) -> Result<(), Errno> {
    // SAFETY: both can be called at any time, by any thread: they are safe functions.
    match unsafe { libc::pthread_atfork(Some(prepare), Some(parent), None) } {
        0 => Ok(()),
        number => Err(Errno::from_raw_os_error(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_knows_that_it_is_one() {
        arm().unwrap();
        let byte = BYTE.load(Acquire);
        arm().unwrap();
        assert_eq!(BYTE.load(Acquire), byte, "armed once");
        assert!(!in_child());
        // SAFETY: the child makes no call that is not signal-safe, and does not return.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let grandchild = || {
                // SAFETY: as above.
                match unsafe { libc::fork() } {
                    0 => exit(!in_child()),
                    pid => status_of(pid),
                }
            };
            let armed = arm().is_ok();
            exit(!(armed && in_child() && grandchild() == 0));
        }
        assert_eq!(status_of(child), 0, "the child, and its child, say so too");
        assert!(!in_child());
    }

    #[test]
    fn the_parent_is_told_before_and_after_and_the_child_is_not() {
        use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
        static BEFORE: AtomicU32 = AtomicU32::new(0);
        static AFTER: AtomicU32 = AtomicU32::new(0);
        static THREAD: AtomicU32 = AtomicU32::new(0);
        // Other tests fork too: only this thread's forks count.
        extern "C" fn before() {
            if THREAD.load(SeqCst) == crate::thread::tid_uncached() {
                assert_eq!(BEFORE.fetch_add(1, SeqCst), AFTER.load(SeqCst));
            }
        }
        extern "C" fn after() {
            if THREAD.load(SeqCst) == crate::thread::tid_uncached() {
                AFTER.fetch_add(1, SeqCst);
            }
        }
        THREAD.store(crate::thread::tid_uncached(), SeqCst);
        at_fork(before, after).unwrap();
        for round in 1..=2 {
            // SAFETY: the child makes no call that is not signal-safe, and does not return.
            let child = unsafe { libc::fork() };
            if child == 0 {
                exit((BEFORE.load(SeqCst), AFTER.load(SeqCst)) != (round, round - 1));
            }
            assert_eq!(status_of(child), 0);
            assert_eq!((BEFORE.load(SeqCst), AFTER.load(SeqCst)), (round, round));
        }
    }

    fn exit(failed: bool) -> ! {
        // SAFETY: no precondition.
        unsafe { libc::_exit(failed.into()) }
    }

    fn status_of(pid: libc::pid_t) -> i32 {
        let mut status = -1;
        // SAFETY: the pointer is to an int.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        status
    }
}
