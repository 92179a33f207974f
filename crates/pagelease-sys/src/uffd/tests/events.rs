//! The events of a changing address space.

use super::*;

/// Anonymous memory that is registered with a descriptor of its own, for the events of `features`.
fn registered(features: Features, pages: usize) -> Option<(Uffd, Mapping)> {
    let uffd = open(features)?;
    let memory = Mapping::anonymous(pages * page_size()).unwrap();
    uffd.register(memory.span(), RegisterMode::MISSING).unwrap();
    Some((uffd, memory))
}

#[test]
fn a_move_is_reported_and_keeps_the_registration() {
    let Some((uffd, memory)) = registered(Features::EVENT_REMAP, 2) else { return };
    let (span, room) = (memory.into_span(), Mapping::anonymous(2 * page_size()).unwrap());
    let to = room.span();
    // SAFETY: both are ours.
    let mover = spawn(move || unsafe { mem::remap(span, Some(to.start()), false) });
    let event = next_message(&uffd).event();
    assert_eq!(event, Event::Remap { from: span.start(), to: to.start(), len: span.len() });
    assert_eq!(mover.join().unwrap(), Ok(to.start()));
    done(uffd.zero_pages(to, false), to);
}

#[test]
fn removing_and_unmapping_are_reported() {
    let Some((uffd, memory)) = registered(Features::EVENT_REMOVE | Features::EVENT_UNMAP, 4) else { return };
    let span = memory.into_span();
    let (removed, unmapped) = (page(span, 1), page(span, 2));
    // SAFETY: the memory is ours.
    let thread = spawn(move || unsafe { mem::dont_need(removed) });
    assert_eq!(next_message(&uffd).event(), Event::Remove { start: removed.start(), end: removed.end() });
    thread.join().unwrap().unwrap();
    // SAFETY: the memory is ours, and nobody uses it.
    let thread = spawn(move || unsafe { mem::unmap(unmapped) });
    assert_eq!(next_message(&uffd).event(), Event::Unmap { start: unmapped.start(), end: unmapped.end() });
    thread.join().unwrap().unwrap();
}
