//! [`Ours`]: a driver's object, released only by the process that made it.
//!
//! A forked child inherits the object, not the driver's threads: a release would wait for them, or change state that the child
//! shares with its parent. What a child inherited does nothing when it is dropped.

use core::mem::ManuallyDrop;
use core::ops::Deref;

use pagelease_sys::fork;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ours<T>(ManuallyDrop<T>);

impl<T> Ours<T> {
    pub(crate) const fn new(object: T) -> Self {
        Self(ManuallyDrop::new(object))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Deref for Ours<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Ours<T> {
    fn drop(&mut self) {
        if !fork::in_child() {
            // SAFETY: dropped once, here, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}
