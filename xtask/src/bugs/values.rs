//! Bugs of values, names, options and codecs.

use super::{Bug, fails};

const STRICT: &str = "crates/stepwell-core/src/base/strict.rs";
const NODE: &str = "crates/stepwell-core/src/workflow/node.rs";
const ENVELOPE: &str = "crates/stepwell-core/src/codec/envelope.rs";

const VALUES: &str = "a value comes back as it was given, or is refused when it is given";
const SEALED: &str = "what is encrypted cannot be replaced by what is not, or moved";

pub(super) const BUGS: &[Bug] = &[
    Bug {
        name: "floats-change-their-last-bit",
        breaks: "A float comes back as its neighbour: `9787.333499999999` as `9787.3335`.",
        guarantee: VALUES,
        file: STRICT,
        find: "        self.inner.serialize_f64(value)\n",
        put: "        self.inner.serialize_f64(format!(\"{value:.14e}\").parse().\
                  unwrap_or(value))\n",
        tests: &[fails("stepwell-core", "lib", "every_finite_float_comes_back")],
    },
    Bug {
        name: "nan-becomes-null",
        breaks: "NaN is journaled as `null`, and the task fails when it reads that, after the \
                     side effect.",
        guarantee: VALUES,
        file: STRICT,
        find: "fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {\n        \
                   finite(value.is_finite(), value)?;",
        put: "fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {",
        tests: &[
            fails(
                "stepwell",
                "values",
                "numbers_that_json_has_not_are_refused_when_they_are_given",
            ),
            fails("stepwell", "values", "a_workflow_refuses_what_a_task_refuses"),
        ],
    },
    Bug {
        name: "some-of-nothing-becomes-none",
        breaks: "`Some(())` comes back as `None`.",
        guarantee: VALUES,
        file: STRICT,
        find: "        if self.in_some {\n",
        put: "        if self.in_some && self.raw {\n",
        tests: &[
            fails("stepwell", "values", "some_of_nothing_is_refused_when_it_is_given"),
            fails("stepwell", "values", "a_workflow_refuses_what_a_task_refuses"),
        ],
    },
    Bug {
        name: "nesting-without-end",
        breaks: "A value that is nested 3,000 levels deep is accepted, and can never be read.",
        guarantee: VALUES,
        file: STRICT,
        find: "if inner.depth > MAX_DEPTH || inner.calls > MAX_CALLS {",
        put: "if inner.depth > 100 * MAX_DEPTH || inner.calls > 100 * MAX_CALLS {",
        tests: &[
            fails("stepwell", "values", "what_is_nested_too_deep_is_refused_when_it_is_given"),
            fails("stepwell", "values", "a_workflow_refuses_what_a_task_refuses"),
        ],
    },
    Bug {
        name: "deep-documents-imported",
        breaks: "A document of a task with nested arrays overflows the stack of its reader.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/client/export.rs",
        find: "if strict::depth(json) > MAX_DEPTH {",
        put: "if strict::depth(json) > usize::MAX / 2 {",
        tests: &[fails(
            "stepwell",
            "values",
            "documents_that_are_nested_too_deep_are_refused_and_take_no_time",
        )],
    },
    Bug {
        name: "documents-not-checked",
        breaks: "An import accepts payloads that are larger than what a spawn accepts.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/client/export.rs",
        find: "_ => payload.check(Payload::MAX_DEPTH, limit)",
        put: "_ => payload.check(Payload::MAX_DEPTH, usize::MAX)",
        tests: &[fails(
            "stepwell",
            "values",
            "a_document_brings_nothing_that_is_larger_than_what_is_given_here",
        )],
    },
    Bug {
        name: "half-a-character-accepted",
        breaks: "A text with half of a surrogate pair is accepted, and can never be read.",
        guarantee: VALUES,
        file: STRICT,
        find: "            (Some(0xD800..=0xDFFF), _) => return false,\n",
        put: "",
        tests: &[
            fails("stepwell", "values", "half_a_character_is_refused_when_it_is_given"),
            fails("stepwell-core", "lib", "half_a_character_is_found_among_escapes"),
        ],
    },
    Bug {
        name: "results-not-read-back",
        breaks: "A step's result of a tagged type that serde cannot read is journaled, after \
                     the side effect.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/engine/run/step.rs",
        find: "Payload::encode_and_read(value, self.run.engine.settings.max_payload_bytes) \
                   {\n            Ok((payload, read)) => (Outcome::Done(payload), Some(read)),",
        put: "Payload::encode(value, self.run.engine.settings.max_payload_bytes) {\n            \
                 Ok(payload) => (Outcome::Done(payload), None),",
        tests: &[fails(
            "stepwell",
            "values",
            "what_its_type_does_not_read_is_refused_when_it_is_given",
        )],
    },
    Bug {
        name: "wide-integers-not-compared",
        breaks: "An integer of 128 bits in an untagged enum comes back as a float.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/base/payload.rs",
        find: "if wide.get() && bytes_of",
        put: "if wide.get() && !wide.get() && bytes_of",
        tests: &[fails(
            "stepwell",
            "values",
            "what_its_type_does_not_read_is_refused_when_it_is_given",
        )],
    },
    Bug {
        name: "parameters-not-read-back",
        breaks: "A spawn accepts parameters of a tagged type that no worker can read.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/client/spawn.rs",
        find: "        Payload::encode_proven(params, \
                   self.engine.settings.max_payload_bytes)\n",
        put: "        Payload::encode(params, self.engine.settings.max_payload_bytes)\n",
        tests: &[fails(
            "stepwell",
            "values",
            "what_its_type_does_not_read_is_refused_when_it_is_given",
        )],
    },
    Bug {
        name: "workflow-takes-any-value",
        breaks: "A step of a workflow journals what a task would be refused, and its parts \
                     fail when they read it.",
        guarantee: VALUES,
        file: NODE,
        find: "Ok(Payload::encode(&value, limit).map_err(TaskError::permanent)?)",
        put: "let _ = limit;\n            \
                  Ok(Payload::document(&value).map_err(TaskError::permanent)?)",
        tests: &[fails("stepwell", "values", "a_workflow_refuses_what_a_task_refuses")],
    },
    Bug {
        name: "workflow-tries-what-it-cannot-keep",
        breaks: "A workflow's step whose result cannot be kept runs again and again.",
        guarantee: "2",
        file: NODE,
        find: "Ok(Payload::encode(&value, limit).map_err(TaskError::permanent)?)",
        put: "Ok(Payload::encode(&value, limit)?)",
        tests: &[fails("stepwell", "values", "a_workflow_refuses_what_a_task_refuses")],
    },
    Bug {
        name: "workflow-rounds-numbers",
        breaks: "A number with many digits that a workflow is sent is rounded.",
        guarantee: VALUES,
        file: NODE,
        find: "Body::Signal { timeout } => task.recv(name, *timeout).await,",
        put: "Body::Signal { timeout } => {\n                let value = \
                  task.recv::<serde_json::Value>(name, *timeout).await?;\n                \
                  Ok(Payload::from_json(value.to_string()))\n            }",
        tests: &[fails("stepwell", "values", "a_workflow_rounds_no_number")],
    },
    Bug {
        name: "headers-without-a-limit",
        breaks: "Headers of 40 MiB are accepted.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/store/headers.rs",
        find: "if json.len() > MAX_HEADERS_BYTES + own.min(ROOM) {",
        put: "if json.len() > 1_000 * MAX_HEADERS_BYTES + own.min(ROOM) {",
        tests: &[fails("stepwell", "values", "headers_have_a_limit")],
    },
    Bug {
        name: "no-room-for-the-engines-headers",
        breaks: "A schedule with headers at their limit is accepted, and can spawn nothing: \
                     the tick's own header is too much.",
        guarantee: "a tick spawns one task",
        file: "crates/stepwell-core/src/store/headers.rs",
        find: "if json.len() > MAX_HEADERS_BYTES + own.min(ROOM) {",
        put: "if json.len() > MAX_HEADERS_BYTES + own.min(0 * ROOM) {",
        tests: &[fails("stepwell", "schedules", "a_schedule_with_headers_at_their_limit_ticks")],
    },
    Bug {
        name: "labels-without-a-limit",
        breaks: "A task takes any number of labels, each of which is a row of an index.",
        guarantee: "9",
        file: "crates/stepwell-core/src/store/headers.rs",
        find: "    if labels > MAX_LABELS {",
        put: "    if labels > 100 * MAX_LABELS {",
        tests: &[fails("stepwell", "values", "a_task_has_a_limited_number_of_labels")],
    },
    Bug {
        name: "failures-without-a-limit",
        breaks: "An error text of 40 MiB is kept.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/base/failure.rs",
        find: "    if bytes > MAX_TEXT {",
        put: "    if bytes > 10_000 * MAX_TEXT {",
        tests: &[fails(
            "stepwell",
            "values",
            "what_failures_say_is_cut_off_and_the_failure_is_kept",
        )],
    },
    Bug {
        name: "no-room-in-step-names",
        breaks: "A name of 512 bytes is accepted, and fails when the engine adds to it, after \
                     the side effect.",
        guarantee: "8",
        file: "crates/stepwell-core/src/base/name.rs",
        find: "        Self { text, limit: MAX_STEP_NAME_BYTES }",
        put: "        Self { text, limit: MAX_NAME_BYTES }",
        tests: &[fails(
            "stepwell",
            "bad_input",
            "a_name_is_refused_before_anything_is_done_or_never",
        )],
    },
    Bug {
        name: "assignees-without-a-limit",
        breaks: "An approval is assigned to a text of a megabyte.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/context/approval.rs",
        find: ".try_for_each(|assignee| Name::new(assignee).map(drop))?;",
        put: ".for_each(drop);",
        tests: &[fails("stepwell", "values", "who_an_approval_is_assigned_to_has_a_limit")],
    },
    Bug {
        name: "escalations-without-a-limit",
        breaks: "An approval is escalated to a text of a megabyte, after others were asked.",
        guarantee: VALUES,
        file: "crates/stepwell-core/src/context/approval.rs",
        find: "            .chain(escalations.iter().map(|escalation| &escalation.to))\n",
        put: "",
        tests: &[fails("stepwell", "values", "who_an_approval_is_assigned_to_has_a_limit")],
    },
    Bug {
        name: "factor-not-a-number",
        breaks: "A retry strategy with NaN is accepted, and its task can be read by nobody.",
        guarantee: "8",
        file: "crates/stepwell-core/src/base/retry.rs",
        find: "factor >= 1.0 && factor.is_finite()",
        put: "!(factor < 1.0)",
        tests: &[fails(
            "stepwell",
            "values",
            "options_that_cannot_be_kept_are_refused_when_they_are_given",
        )],
    },
    Bug {
        name: "delays-without-a-limit",
        breaks: "A delay of more years than a calendar has is accepted.",
        guarantee: "8",
        file: "crates/stepwell-core/src/base/invalid_options.rs",
        find: "if duration > LONGEST { Err",
        put: "if duration > LONGEST && field.is_empty() { Err",
        tests: &[
            fails(
                "stepwell",
                "values",
                "options_that_cannot_be_kept_are_refused_when_they_are_given",
            ),
            fails("stepwell-core", "lib", "numbers_that_a_strategy_cannot_have_are_found"),
        ],
    },
    Bug {
        name: "any-number-of-delays",
        breaks: "A retry strategy with a list of millions of delays is accepted.",
        guarantee: "8",
        file: "crates/stepwell-core/src/base/retry.rs",
        find: "Self::Listed { delays } if delays.len() > Self::MAX_DELAYS =>",
        put: "Self::Listed { delays } if delays.len() > 100 * Self::MAX_DELAYS =>",
        tests: &[fails(
            "stepwell",
            "values",
            "options_that_cannot_be_kept_are_refused_when_they_are_given",
        )],
    },
    Bug {
        name: "plain-text-accepted",
        breaks: "A user who can write to the database replaces ciphertext with plain JSON, and it \
                 is taken for what was encrypted.",
        guarantee: SEALED,
        file: ENVELOPE,
        find: "            return self.require(&[]).map(|()| None);",
        put: "            return Ok(None);",
        tests: &[fails(
            "stepwell",
            "codec",
            "what_is_not_encrypted_is_refused_and_read_once_that_is_allowed",
        )],
    },
    Bug {
        name: "envelope-without-encryption-accepted",
        breaks: "An envelope that names no encryption is taken for one that was encrypted.",
        guarantee: SEALED,
        file: ENVELOPE,
        find: "        self.require(&envelope.layers)?;\n",
        put: "",
        tests: &[fails("stepwell", "codec", "an_envelope_without_its_encryption_is_refused")],
    },
    Bug {
        name: "ciphertext-moved",
        breaks: "A payload that was copied from another task is taken for what belongs there.",
        guarantee: SEALED,
        file: "crates/stepwell/src/codec/encryption.rs",
        find: "        let place = place.associated_data();\n        let payload = Payload { \
                   msg: bytes, aad: &place };",
        put: "        let _ = place;\n        let payload = Payload { msg: bytes, aad: &[] };",
        tests: &[
            fails(
                "stepwell",
                "codec_at_rest",
                "what_is_copied_to_another_place_is_not_taken_for_what_belongs_there",
            ),
            fails("stepwell", "lib", "what_is_sealed_comes_back_and_in_its_place_only"),
        ],
    },
    Bug {
        name: "failures-in-plain",
        breaks: "What a task's failure says is kept unencrypted.",
        guarantee: SEALED,
        file: "crates/stepwell-core/src/codec/payloads.rs",
        find: "Next::Fail(why) => {\n            _ = failure(why, Place::Failure(task_id), each)",
        put: "Next::Fail(why) => {\n            _ = why",
        tests: &[fails(
            "stepwell",
            "codec_at_rest",
            "no_secret_is_in_the_files_of_a_database_that_is_encrypted",
        )],
    },
    Bug {
        name: "unencodable-tried-for-ever",
        breaks: "A payload that the codec does not take is sent again for ever, and its task \
                     never ends.",
        guarantee: "one item that the store refuses holds up nobody",
        file: "crates/stepwell-core/src/codec/encoded.rs",
        find: "_ => encode().map_err(|error| StoreError::NotEncodable(said(error)))",
        put: "_ => encode().map_err(|error| StoreError::Encode(said(error)))",
        tests: &[fails(
            "stepwell",
            "poison",
            "a_payload_that_a_codec_does_not_take_fails_its_own_attempt",
        )],
    },
    Bug {
        name: "codec-away-taken-for-a-refusal",
        breaks: "While the key service is away, tasks fail for payloads that could be encoded \
                     a moment later.",
        guarantee: "4",
        file: "crates/stepwell-core/src/codec/encoded.rs",
        find: "error if self.seal(\"null\", place).is_err() => \
                   Err(StoreError::Encode(said(error))),",
        put: "error if self.seal(\"null\", place).is_err() => \
                  Err(StoreError::NotEncodable(said(error))),",
        tests: &[fails(
            "stepwell",
            "codec",
            "what_cannot_be_encoded_is_tried_again_and_nothing_is_lost",
        )],
    },
    Bug {
        name: "codec-panic-tried-again",
        breaks: "A codec that panics for a payload is asked again for ever.",
        guarantee: "8",
        file: "crates/stepwell-core/src/codec/encoded.rs",
        find: "error @ CodecError::Panicked { .. } => \
                   Err(StoreError::NotEncodable(said(error))),",
        put: "error @ CodecError::Panicked { .. } => Err(StoreError::Encode(said(error))),",
        tests: &[fails(
            "stepwell",
            "poison",
            "a_payload_that_a_codec_does_not_take_fails_its_own_attempt",
        )],
    },
];
