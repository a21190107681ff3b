//! Bugs of the HTTP API and the dashboard, and of checkpoints.

use super::{Bug, fails, hangs};

const CALL: &str = "crates/stepwell-server/src/call.rs";
const LEDGER: &str = "crates/stepwell-checkpoint/src/ledger.rs";

pub(super) const BUGS: &[Bug] = &[
    Bug {
        name: "checkpoint-write-not-fenced",
        breaks: "A process that lost its checkpoint overwrites what the new owner recorded.",
        guarantee: "3",
        file: LEDGER,
        find: "self.store.compare_and_set(&key, writer.text.as_deref(), new.as_deref(), \
               ttl).await?;",
        put: "self.store.compare_and_set(&key, self.store.get(&key).await?.as_deref(), \
              new.as_deref(), ttl).await?;",
        tests: &[fails(
            "stepwell-checkpoint",
            "processes",
            "a_paused_process_that_lost_its_checkpoint_writes_nothing_more_and_is_told",
        )],
    },
    Bug {
        name: "checkpoint-cleanup-not-guarded",
        breaks: "A cleanup that panics before it gives its future makes every later load panic.",
        guarantee: "8",
        file: "crates/stepwell-checkpoint/src/cleanup.rs",
        find: "runners.get(key.name.as_str()).map(|runner| guard(|| runner(&payload))) {",
        put: "runners.get(key.name.as_str()).map(|runner| Ok::<_, Panic>(runner(&payload))) {",
        tests: &[fails(
            "stepwell-checkpoint",
            "checkpoint",
            "a_cleanup_that_panics_before_it_gives_a_future_blocks_no_load",
        )],
    },
    Bug {
        name: "tasks-of-others-by-their-id",
        breaks: "A tenant that knows the id of another's task reads and changes it.",
        guarantee: "9",
        file: CALL,
        find: "self.who.scope.has(&task.queue, &task.headers, &task.scope)\n    }\n\n    /// \
               Returns whether a task is the caller's, by the",
        put: "let _ = task;\n        true\n    }\n\n    /// Returns whether a task is the \
              caller's, by the",
        tests: &[
            fails("stepwell-server", "access", "a_tenant_sees_and_changes_its_own_tasks_only"),
            fails("stepwell-server", "scopes", "no_two_scopes_meet"),
        ],
    },
    Bug {
        name: "parent-of-another-scope-shown",
        breaks: "A task tells its tenant the id of a parent that is another tenant's.",
        guarantee: "9",
        file: CALL,
        find: "            task.parent = None;\n",
        put: "",
        tests: &[fails(
            "stepwell-server",
            "scopes",
            "a_parent_of_another_scope_is_hidden_also_in_errors",
        )],
    },
    Bug {
        name: "events-of-others",
        breaks: "A tenant's stream tells of the tasks of others.",
        guarantee: "9",
        file: CALL,
        find: "        let which = match (scope.is_all(), wanted) {",
        put: "        let which = match (scope.is_all() || wanted.is_none(), wanted) {",
        tests: &[fails("stepwell-server", "scopes", "no_two_scopes_meet")],
    },
    Bug {
        name: "spawn-into-another-scope",
        breaks: "A tenant spawns into the scope of another by naming it.",
        guarantee: "9",
        file: CALL,
        find: "        if !own.is_all() && !named.is_all() && named != own {\n            return \
               Err(Problem::forbidden(\"you may not spawn into that scope: leave it out for your \
               own\"));\n        }\n        let scope = if own.is_all() { named } else { own \
               }.clone();",
        put: "        let scope = if named.is_all() { own } else { named }.clone();",
        tests: &[fails("stepwell-server", "scopes", "a_tenant_spawns_into_its_own_scope_only")],
    },
    Bug {
        name: "what-concerns-all-for-everybody",
        breaks: "A tenant pauses the queues of all.",
        guarantee: "9",
        file: CALL,
        find: "(self.who.scope.is_all() || !operation.is_about_all())",
        put: "(self.who.scope.is_all() || !operation.is_about_one_task() || \
              operation.is_about_one_task())",
        tests: &[fails("stepwell-server", "scopes", "what_concerns_all_is_for_those_of_no_scope")],
    },
    Bug {
        name: "stream-skips-at-the-join",
        breaks: "A stream that goes on misses what came between the store's last page and the \
                 first live event.",
        guarantee: "the stream of events misses nothing",
        file: "crates/stepwell-server/src/feed.rs",
        find: "while !joined && self.last < first && self.read_on().await? {}",
        put: "let _ = first;",
        tests: &[fails(
            "stepwell-server",
            "events",
            "who_is_pages_behind_when_something_comes_misses_none_of_them",
        )],
    },
    Bug {
        name: "half-open-requests-for-ever",
        breaks: "1,100 half-open requests block the server for everyone.",
        guarantee: "slow clients and guesses block nobody",
        file: "crates/stepwell-server/src/connections.rs",
        find: "            .header_read_timeout(patience)\n",
        put: "            .header_read_timeout(patience * 10_000)\n",
        tests: &[
            hangs("stepwell-server", "connections", "half_open_requests_block_nobody"),
            hangs(
                "stepwell-server",
                "connections",
                "a_connection_that_is_idle_is_closed_and_one_that_is_used_is_not",
            ),
        ],
    },
    Bug {
        name: "one-address-takes-all",
        breaks: "One address takes all connections of the server.",
        guarantee: "slow clients and guesses block nobody",
        file: "crates/stepwell-server/src/connections.rs",
        find: "addresses.enter(network_of(address.ip()), limits.per_address)",
        put: "addresses.enter(network_of(address.ip()), limits.per_address.saturating_mul(1_000))",
        tests: &[fails(
            "stepwell-server",
            "connections",
            "an_address_has_only_so_many_connections",
        )],
    },
    Bug {
        name: "logout-ends-nothing",
        breaks: "A cookie stays valid after its owner has logged out.",
        guarantee: "slow clients and guesses block nobody",
        file: "crates/stepwell-server/src/sessions.rs",
        find: "if let Some(until) = self.0.remove(&digest(session)) {",
        put: "if let Some(until) = self.0.get(&digest(session)) {",
        tests: &[
            fails("stepwell-server", "access", "a_browser_logs_in_with_the_token_and_out_again"),
            fails(
                "stepwell-server",
                "lib",
                "a_session_ends_when_it_is_ended_and_when_its_time_is_up",
            ),
        ],
    },
    Bug {
        name: "guessing-not-slowed",
        breaks: "A client guesses the token as often as it can ask.",
        guarantee: "slow clients and guesses block nobody",
        file: "crates/stepwell-server/src/access.rs",
        find: "address.and_then(|address| self.failures.wait(address)).map_or(Ok(()), Err)",
        put: "address.and_then(|address| self.failures.wait(address).filter(|_| \
              false)).map_or(Ok(()), Err)",
        tests: &[fails(
            "stepwell-server",
            "access",
            "whoever_guesses_the_token_has_to_wait_and_nobody_else_has",
        )],
    },
    Bug {
        name: "cookies-without-tls",
        breaks: "A session is sent over a connection that everybody reads, though that is \
                 forbidden.",
        guarantee: "slow clients and guesses block nobody",
        file: "crates/stepwell-server/src/pages/login.rs",
        find: "if app.secure_cookies || over_tls { \"; Secure\" }",
        put: "if app.secure_cookies && over_tls { \"; Secure\" }",
        tests: &[fails(
            "stepwell-server",
            "access",
            "cookies_are_for_tls_only_where_that_is_asked_for",
        )],
    },
    Bug {
        name: "pages-of-others-write",
        breaks: "A page of another site has the browser of a user who is logged in cancel tasks.",
        guarantee: "9",
        file: "crates/stepwell-server/src/guard.rs",
        find: "if of.is_none_or(|of| !of.eq_ignore_ascii_case(host)) {",
        put: "if of.is_none_or(|of| of.is_empty()) {",
        tests: &[fails("stepwell-server", "access", "pages_of_others_and_other_names_get_nothing")],
    },
    Bug {
        name: "api-rounds-numbers",
        breaks: "An integer beyond 64 bits in a form of the dashboard comes back rounded.",
        guarantee: "a value comes back as it was given, or is refused when it is given",
        file: "crates/stepwell-server/src/extract.rs",
        find: "        text => serde_json::from_str(text)\n",
        put: "        text => serde_json::from_str::<serde_json::Value>(text)\n            \
              .map(|value| Payload::from_json(value.to_string()))\n",
        tests: &[fails("stepwell-server", "api", "no_number_is_rounded_on_its_way")],
    },
];
