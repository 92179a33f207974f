//! [`Shared`]: a reference-counted value in a mapping of its own.
//!
//! What the fault path reads must not lie in memory that a program may put under management, and `malloc` memory is the
//! program's. So the cores of spaces, regions, views and devices live in mappings that the runtime alone uses.
//!
//! Invariants: `cell` points to the start of a mapping that holds a live `Cell<T>`; `count` is the number of `Shared` that
//! point to it; the one that takes it to zero drops the value and unmaps. In a child of fork nothing is dropped: the
//! value's resources (descriptors, threads) are the parent's.

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

use pagelease_sys::mem::Mapping;
use pagelease_sys::{Errno, fork, page_size};

/// A zero-filled mapping of the runtime's own, of at least `bytes`.
pub(crate) fn own_mapping(bytes: usize) -> Result<Mapping, Errno> {
    let len = bytes.max(1).checked_next_multiple_of(page_size()).ok_or(Errno::NOMEM)?;
    Mapping::anonymous(len)
}

struct Cell<T> {
    count: AtomicUsize,
    mapping: ManuallyDrop<Mapping>,
    value: T,
}

pub(crate) struct Shared<T> {
    cell: NonNull<Cell<T>>,
}

// SAFETY: like `Arc`: the value is shared by reference, and dropped by whichever thread is last.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Result<Self, Errno> {
        let mapping = own_mapping(size_of::<Cell<T>>())?;
        let cell = NonNull::new(mapping.as_ptr().cast::<Cell<T>>()).ok_or(Errno::NOMEM)?;
        let content = Cell { count: AtomicUsize::new(1), mapping: ManuallyDrop::new(mapping), value };
        // SAFETY: the mapping is page-aligned, large enough, writable, and ours alone so far.
        unsafe { cell.write(content) };
        Ok(Self { cell })
    }

    pub(crate) fn as_ptr(&self) -> *const T {
        &raw const **self
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        self.cell == other.cell
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: invariant: the cell lives while a `Shared` points to it.
        unsafe { &self.cell.as_ref().value }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // SAFETY: invariant: the cell lives while a `Shared` points to it.
        unsafe { self.cell.as_ref() }.count.fetch_add(1, Ordering::Relaxed);
        Self { cell: self.cell }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        if fork::in_child() {
            return;
        }
        // SAFETY: invariant: the cell lives while a `Shared` points to it.
        if unsafe { self.cell.as_ref() }.count.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: the count reached zero: nobody else points to the cell. The mapping is moved out before it is unmapped.
        unsafe {
            let cell = self.cell.as_ptr();
            let mapping = ManuallyDrop::take(&mut (*cell).mapping);
            core::ptr::drop_in_place(&raw mut (*cell).value);
            drop(mapping);
        }
    }
}
