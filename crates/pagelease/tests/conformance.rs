//! One suite for every backend, in both fault modes: what a claim, a touch, a lease and a view come to.
#![cfg(not(pagelease_shuttle))]

#[path = "conformance/claims.rs"]
mod claims;
#[path = "conformance/exclusive_write.rs"]
mod exclusive_write;
#[path = "conformance/harness.rs"]
mod harness;
#[path = "conformance/lifecycle.rs"]
mod lifecycle;
#[path = "conformance/touches.rs"]
mod touches;

mod support;

/// A module a rig, a test a line.
macro_rules! suite {
    (rigs: $($rig:ident: $memory:ident $backend:ident $faults:ident)+; tests: $tests:tt) => {
        $(suite!(@ $rig $memory $backend $faults $tests);)+
    };
    (@ $rig:ident $memory:ident $backend:ident $faults:ident { $($file:ident: $($name:ident)+;)+ }) => {
        mod $rig {
            const RIG: crate::harness::Rig = crate::harness::Rig {
                name: stringify!($rig),
                memory: crate::support::memory::Memory::$memory,
                backend: pagelease::BackendKind::$backend,
                faults: pagelease::Faults::$faults,
            };
            $($(#[test] fn $name() {
                RIG.run(crate::$file::$name);
            })+)+
        }
    };
}

suite! {
rigs:
    minor_monitor: Shared Minor Monitor
    minor_in_thread: Shared Minor InThread
    memfd_monitor: Memfd Minor Monitor
    hugetlb_monitor: Huge Minor Monitor
    hugetlb_in_thread: Huge Minor InThread
    rwprotect_monitor: Shared RwProtect Monitor
    rwprotect_in_thread: Shared RwProtect InThread
    mprotect_in_thread: Shared Mprotect InThread
    mprotect_hugetlb_in_thread: Huge Mprotect InThread
    file_in_thread: File Mprotect InThread
    move_monitor: Adopted Move Monitor
    move_in_thread: Adopted Move InThread
    move_huge_monitor: AdoptedHuge Move Monitor
    move_huge_in_thread: AdoptedHuge Move InThread
    sim_monitor: Sim Sim Monitor
    sim_in_thread: Sim Sim InThread;
tests: {
    claims:
        a_claim_takes_the_page_and_a_touch_gives_it_back
        a_page_that_nobody_touched_is_trapped_too
        a_page_that_the_cpu_touched_first_keeps_its_bytes
        a_repeat_claim_joins
        overlapping_claims_of_two_devices
        a_device_takes_a_page_from_another
        a_claim_waits_for_another_device_s_lease
        a_claim_breaks_another_device_s_lease_at_the_hold_limit
        a_sixteenth_lease_of_one_page_waits
        scattered_claims
        ranges_that_cannot_be_claimed
        a_claim_of_many_chunks
        claims_that_overlap_in_a_loop_do_not_deadlock
        many_leases_and_then_too_many;
    touches:
        a_touch_waits_for_the_lease
        every_thread_that_waits_goes_on
        a_touch_goes_on_at_the_hold_limit_and_nothing_is_lost
        the_late_end_of_a_broken_lease_ends_no_other
        a_thread_that_touches_what_it_holds_does_not_wait
        neighbours_come_along_when_touches_run_in_sequence
        touches_out_of_sequence_bring_one_page
        a_prefetch_brings_pages_back_before_they_are_touched
        a_prefetch_waits_for_a_lease
        a_touch_of_one_page_leaves_the_others_with_the_device
        a_device_that_is_not_signal_safe_is_asked_all_the_same;
    exclusive_write:
        the_cpu_reads_while_the_device_writes
        a_page_never_touched_is_read_too
        a_cpu_write_takes_the_page_back
        a_cpu_write_waits_for_the_lease_and_reads_do_not
        an_upgrade_ends_the_cpu_s_reads
        a_claim_to_write_takes_a_page_from_another_device
        a_prefetch_makes_the_page_writable
        where_it_is_missing_it_is_refused;
    lifecycle:
        a_lazy_lease_leaves_the_pages_with_the_device
        an_eager_lease_gives_them_back
        an_eager_lease_leaves_what_another_lease_holds
        a_dropped_view_gives_its_pages_back
        a_device_attaches_again
        a_dropped_device_s_identity_is_given_to_another
        a_region_dropped_while_held
        a_claim_that_waits_when_the_region_is_dropped
        a_touch_that_waits_when_the_region_is_dropped
        several_regions_and_several_devices
        a_software_device_and_the_cpu_count_together
        a_notifier_hears_of_what_concerns_it
        capabilities_are_honest;
}
}
