//! What happens in the explored worlds.
//!
//! A scenario is a few threads on a few pages; what must hold, it asserts. Waiting in vain is a deadlock, which fails it as
//! well. Threads that may wait are all spawned in a scope, whose owner only waits for its end: until then `shuttle`'s
//! scopes may wake it.

#[macro_use]
mod table;
pub(crate) mod claims;
pub(crate) mod endings;
pub(crate) mod explore;
pub(crate) mod own_thread;
pub(crate) mod panics;
pub(crate) mod software;
pub(crate) mod submit;
pub(crate) mod touches;
pub(crate) mod world;
