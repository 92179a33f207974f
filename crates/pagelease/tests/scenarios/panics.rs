//! What the first panic of an execution said. (`shuttle` says only that there was one.)

use std::any::Any;
use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    /// Of the executions that this thread runs.
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has every panic noted by the thread that runs the execution it is of.
pub(crate) fn note() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            FIRST.with_borrow_mut(|first| _ = first.get_or_insert_with(|| message(info.payload())));
            before(info);
        }));
    });
}

/// What the first panic said; what `payload`, which came of it, says where none was noted.
pub(crate) fn first(payload: &(dyn Any + Send)) -> String {
    FIRST.take().unwrap_or_else(|| message(payload))
}

/// What a panic with this payload said.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}
