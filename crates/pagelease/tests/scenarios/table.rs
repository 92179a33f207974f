/// Calls a macro with every scenario and the settings it makes sense in.
macro_rules! scenarios {
    ($with:ident) => {
        $with! {
            touches::claim_against_touch if |_| true;
            touches::first_claim_against_first_touch if |_| true;
            touches::touch_against_touch if |_| true;
            touches::touch_in_the_middle_of_an_operation if Setting::is_lazy;
            touches::touch_waits_for_the_hold if |_| true;
            touches::waiting_touch_goes_before_a_claim if |_| true;
            touches::claims_in_a_loop_do_not_starve_a_touch if |_| true;
            touches::hold_limit_breaks_a_hold if |_| true;
            touches::touches_in_order_bring_neighbours if |_| true;
            touches::prefetch_against_claim if |_| true;
            touches::cpu_reads_while_a_device_writes if |setting| !setting.is_exclusive();
            touches::read_does_not_wait_for_a_writer if |setting| !setting.is_exclusive();
            claims::two_devices_on_one_page if |_| true;
            claims::overlapping_claims if |_| true;
            claims::claims_of_several_chunks if |_| true;
            claims::repeat_claim_is_joined if |_| true;
            claims::upgrade_takes_the_reads_away if Setting::is_exclusive;
            claims::hold_limit_breaks_a_hold_for_a_claim if |_| true;
            claims::claim_against_a_claim_that_stays if |_| true;
            claims::late_holder_harms_no_later_lease if |_| true;
            claims::subscriber_hears_of_every_invalidation if |_| true;
            own_thread::touch_of_a_page_it_holds if |_| true;
            own_thread::prefetch_of_a_page_it_holds if |_| true;
            own_thread::threads_touch_and_claim if |_| true;
            own_thread::lost_lease_breaks_no_later_hold if |_| true;
            own_thread::touch_while_it_holds_another_page if |_| true;
            own_thread::handler_touch_restarts_its_claim if |_| true;
            own_thread::handler_touches_in_its_claim if |_| true;
            own_thread::handler_touches_behind_the_commit_point if Setting::signal_safe;
            own_thread::handler_touches_at_any_moment if |_| true;
            endings::lease_ended_elsewhere if |_| true;
            endings::view_dropped_while_its_device_has_pages if |_| true;
            endings::view_dropped_while_another_takes_the_page if |_| true;
            endings::region_dropped_while_held if |_| true;
            endings::region_dropped_while_a_claim_waits if |_| true;
            software::software_against_touch if software::applies;
            software::two_software_devices if software::applies;
            software::region_dropped_while_the_software_works if software::applies;
            software::stuck_operation_costs_its_device_the_page if software::applies;
            submit::submission_against_touch if submit::applies;
            submit::submissions_whose_holds_are_broken if submit::applies;
            submit::touch_of_a_submission_nobody_waits_for if submit::applies;
            submit::two_submitting_devices if submit::applies;
            submit::stuck_submission_costs_its_device_the_pages if submit::applies;
            submit::region_dropped_while_a_submission_runs if submit::applies;
        }
    };
}
