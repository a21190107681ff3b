//! The macro that makes a test of each point.

/// Makes a test for each of the [`points`](crate::points), against the [`Backend`](crate::Backend) that the
/// expression gives. It is made anew for each test, within a tokio runtime.
#[macro_export]
macro_rules! suite {
    ($backend:expr) => {
        $crate::suite! {
            $backend =>
            atomicity,
            refused_items,
            order_within_a_batch,
            transitions_write_before_they_look,
            fencing,
            fencing_of_mailboxes,
            fencing_after_a_lost_lease,
            exclusive_claims,
            claim_order,
            claim_filters,
            claimed_tasks,
            resumption,
            eager_start,
            idempotency_keys,
            idempotency_races,
            events,
            events_wake_once,
            events_of_queues,
            messages,
            messages_from_many,
            mailboxes,
            children,
            children_of_running_parents,
            suspension,
            suspended_tasks,
            wake_ups_by_events,
            wake_ups_by_messages,
            wake_ups_among_tasks,
            wake_ups_by_children,
            wake_ups_by_cancellation,
            wake_ups_of_running_tasks,
            wake_ups_in_circles,
            timers,
            delayed_starts,
            retry_delays,
            cancellation_policies,
            leases,
            worker_registry,
            waiting_types,
            dead_workers,
            quarantine,
            suspects,
            heartbeats,
            deregistration,
            cancellation,
            cancellation_of_families,
            cancellation_of_generations,
            retry_command,
            delete_command,
            wake_command,
            paused_tasks,
            compensation,
            compensation_whatever_ends_it,
            compensation_attempts,
            compensation_tells_the_attempt,
            payloads_come_back,
            failures_come_back,
            odd_names,
            entries_come_back,
            superseded_entries,
            importing,
            times_come_back,
            lists,
            labels,
            ends,
            waits,
            changes,
            queue_limits,
            queue_limits_under_races,
            queue_rates,
            paused_queues,
            waiting_times,
            concurrency_keys,
            concurrency_keys_under_races,
            coalescing_spawns,
            coalescing_replaces,
            coalescing_under_races,
            code_versions,
            purging,
            schedules,
            scheduled_tasks,
            schedules_without_overlap,
            schedules_under_races,
            schedules_in_any_order,
            schedules_are_atomic,
            histories,
            histories_of_many,
            task_types,
            concurrent_clients,
            model,
            model_with_several_handles,
        }
    };
    ($backend:expr => $($point:ident),* $(,)?) => {
        $(
            #[test]
            fn $point() {
                $crate::run(::core::stringify!($point), || async {
                    $crate::points::$point(&$backend).await;
                });
            }
        )*
    };
}
