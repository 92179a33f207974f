//! `mprotect`: what a CPU touch of a page that a device has costs on the `mprotect` backend, beyond SIGSEGV and opening the page.
//!
//! As `touch`, in-thread. Value: one load of such a page. Floor: the same of a page that was closed by `mprotect`, served by a
//! handler that does nothing but `mprotect` of the page. In both, all pages are closed in one call and touched in an order in
//! which none follows its neighbour: each touch splits a mapping, or joins two.
//!
//! Placement: the touching thread runs here.

use anyhow::Result;

use super::Setup;
use super::bare::Handler;
use super::figure::Figure;
use super::managed::{Managed, pages};
use super::stats::{Arms, spin_for, time};
use super::touch::{PAGES, RESIDENCY_NS, nth, touch};

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let (managed, bare) = Managed::mprotect_beside_bare(PAGES, setup.cpus.there)?;
    let handler = Handler::sigsegv_of_a_page(&bare);
    let mut arms = Arms::default();
    for turn in 0..setup.samples(8 * PAGES) {
        if turn.is_multiple_of(PAGES) {
            spin_for(RESIDENCY_NS);
            managed.take(pages(0, PAGES))?;
            bare.protect(false)?;
        }
        let page = nth(turn);
        arms.value.push(time(|| managed.touch(page)).1);
        arms.floor.push(handler.during(|| time(|| touch(&bare, page)).1));
    }
    Ok(vec![Figure::of("in-thread, against a bare SIGSEGV handler", &arms, 1).goal(1.2)])
}
