//! The types of indices, ranges, lengths and owners; and which invalidation concerns whom.

use pagelease_protocol::notifier::concerns;
use pagelease_protocol::{ByteLen, Cause, Origin, OwnerId, PageIndex, PageRange, Token};
use proptest::prelude::*;

const GRANULE: ByteLen = ByteLen(4096);

#[test]
fn a_range_is_never_empty_nor_backwards() {
    assert_eq!(PageRange::new(3, 3), None);
    assert_eq!(PageRange::new(4, 3), None);
    let range = PageRange::new(3, 5).expect("two granules");
    assert_eq!((range.start(), range.end(), range.len()), (3, 5, 2));
    assert_eq!(range.iter().collect::<Vec<_>>(), [PageIndex(3), PageIndex(4)]);
    assert_eq!(range.iter().next_back(), Some(PageIndex(4)));
    assert_eq!(range.to_string(), "pages 3..5");
}

#[test]
fn a_single_granule_is_a_range_but_for_the_index_no_region_has() {
    assert_eq!(PageRange::single(PageIndex(0)), PageRange::new(0, 1));
    assert_eq!(PageRange::single(PageIndex(u32::MAX - 1)), PageRange::new(u32::MAX - 1, u32::MAX));
    assert_eq!(PageRange::single(PageIndex(u32::MAX)), None);
    assert_eq!(PageIndex(7).to_string(), "page 7");
}

proptest! {
    #[test]
    fn overlapping_is_sharing_a_granule(a in 0..40u32, b in 1..20u32, c in 0..40u32, d in 1..20u32) {
        let one = PageRange::new(a, a + b).expect("not empty");
        let two = PageRange::new(c, c + d).expect("not empty");
        let shared = one.iter().any(|page| two.contains(page));
        prop_assert_eq!(one.overlaps(two), shared);
        prop_assert_eq!(two.overlaps(one), shared);
        prop_assert_eq!(one.iter().len(), one.len() as usize);
    }

    #[test]
    fn pages_hold_the_length_and_no_more(bytes in 1..1usize << 40) {
        let pages = ByteLen(bytes).pages(GRANULE).expect("within a region") as usize;
        prop_assert!(pages * GRANULE.0 >= bytes && (pages - 1) * GRANULE.0 < bytes);
    }
}

#[test]
fn a_length_that_no_region_can_have_has_no_pages() {
    assert_eq!(ByteLen(0).pages(GRANULE), None);
    assert_eq!(ByteLen(1).pages(GRANULE), Some(1));
    assert_eq!(ByteLen(4097).pages(GRANULE), Some(2));
    let most = u32::MAX - 1;
    assert_eq!(ByteLen(most as usize * 4096).pages(GRANULE), Some(most));
    assert_eq!(ByteLen(most as usize * 4096 + 1).pages(GRANULE), None);
    assert_eq!(ByteLen(usize::MAX).pages(GRANULE), None);
    assert_eq!(ByteLen(usize::MAX).pages(ByteLen(1)), None);
}

#[test]
fn lengths_in_units_do_not_overflow() {
    assert_eq!(ByteLen::kib(3), Some(ByteLen(3072)));
    assert_eq!(ByteLen::mib(2), Some(ByteLen(2 << 20)));
    assert_eq!(ByteLen::kib(usize::MAX >> 10), Some(ByteLen(usize::MAX >> 10 << 10)));
    assert_eq!(ByteLen::kib((usize::MAX >> 10) + 1), None);
    assert_eq!(ByteLen::mib((usize::MAX >> 20) + 1), None);
    assert_eq!(ByteLen(12).to_string(), "12 bytes");
}

#[test]
fn an_owner_is_one_of_63() {
    assert_eq!(OwnerId::new(0), None);
    assert_eq!(OwnerId::new(64), None);
    for id in 1..=OwnerId::MAX {
        assert_eq!(OwnerId::new(id).map(OwnerId::get), Some(id));
    }
    assert_eq!(OwnerId::new(63).map(|id| id.to_string()).as_deref(), Some("device 63"));
}

const CAUSES: [Cause; 6] =
    [Cause::Exclusive, Cause::Clear, Cause::Unmap, Cause::ProtectionVma, Cause::ProtectionPage, Cause::Release];

/// Every combination: a subscription hears of everything but what its own claim raised, and of pages that become its own
/// device's.
#[test]
fn a_subscription_hears_of_all_but_its_own() {
    let owners = [None, OwnerId::new(1), OwnerId::new(2)];
    let tokens = [None, Some(Token(1)), Some(Token(2))];
    let me = OwnerId::new(1).expect("a device");
    for cause in CAUSES {
        for owner in owners {
            for raised_by in tokens {
                for mine in tokens {
                    let heard = concerns(cause, Origin { owner, token: raised_by }, me, mine);
                    let own_claim = matches!((raised_by, mine), (Some(a), Some(b)) if a == b);
                    let becomes_ours = cause == Cause::Exclusive && owner == Some(me);
                    assert_eq!(heard, !own_claim && !becomes_ours, "{cause:?} {owner:?} {raised_by:?} {mine:?}");
                }
            }
        }
    }
}

#[test]
fn a_subscription_without_a_claim_hears_what_nobody_claimed() {
    let me = OwnerId::new(1).expect("a device");
    assert!(concerns(Cause::Clear, Origin::default(), me, None), "no token is not the same token");
}
