//! [`Alike`]: pages that were claimed together mostly have the same word, so what becomes of one's is worked out once for
//! those that follow it.
//!
//! A transition is a function of the word, and of the generation that goes back in the place of a ticket. Where both are those
//! of the page before, so is what comes out; and nobody waits for the page, or its word would be another.

use pagelease_protocol::PageWord;

use crate::sync::Word;

/// What became of the last page.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Alike(Option<Changed>);

/// A change of a word after which nobody had to be woken or served.
#[derive(Copy, Clone, Debug)]
struct Changed {
    generation: u16,
    from: PageWord,
    to: PageWord,
}

impl Alike {
    /// Changes this page's word as the last one's, if it is the same, and the page has the same `generation`.
    #[inline]
    pub(crate) fn again(&self, cell: &Word, generation: u16) -> bool {
        self.0.is_some_and(|last| {
            generation == last.generation
                && cell.load() == last.from.bits()
                && cell.swap_if(last.from.bits(), last.to.bits()).is_ok()
        })
    }

    /// A page's word has gone from `from` to `to`.
    pub(crate) fn note(&mut self, generation: u16, from: PageWord, to: PageWord) {
        self.0 = is_quiet(from, to).then_some(Changed { generation, from, to });
    }
}

/// Whether nobody's wait ends when a word goes from `from` to `to`.
#[inline]
pub(crate) fn is_quiet(from: PageWord, to: PageWord) -> bool {
    !(from.waiters() || from.sleepers() || to.waiters())
}

#[cfg(all(test, not(pagelease_shuttle)))]
mod tests {
    use super::*;

    const POPULATED: u32 = 1 << 3;
    const WAITERS: u32 = 1 << 1;
    const BUSY: u32 = 1;

    fn noted(from: u32, to: u32) -> Alike {
        let mut alike = Alike::default();
        alike.note(7, PageWord::from_bits(from), PageWord::from_bits(to));
        alike
    }

    #[test]
    fn only_the_same_word_with_the_same_generation_is_changed() {
        let alike = noted(BUSY, POPULATED);
        for (word, generation, then) in
            [(BUSY, 7, POPULATED), (BUSY, 8, BUSY), (BUSY | POPULATED, 7, BUSY | POPULATED), (0, 7, 0)]
        {
            let cell = Word::new(word);
            assert_eq!(alike.again(&cell, generation), word != then);
            assert_eq!(cell.load(), then);
        }
        assert!(!Alike::default().again(&Word::new(0), 0));
    }

    #[test]
    fn what_ends_a_wait_is_done_page_by_page() {
        let cell = Word::new(BUSY | WAITERS);
        assert!(!noted(BUSY | WAITERS, POPULATED).again(&cell, 7));
        let cell = Word::new(BUSY);
        assert!(!noted(BUSY, WAITERS).again(&cell, 7));
        assert_eq!(cell.load(), BUSY);
    }
}
