//! The headers of tasks, and the limits of their content.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::base::invalid_options::InvalidOptions;
use crate::base::name::Name;
use crate::base::strict;
use crate::store::Headers;

/// The header with the time of a scheduled task's tick, as RFC 3339 text in UTC
/// (`2026-03-29T01:00:00Z`).
///
/// The time is the nominal one, without jitter, however late the task starts. For a task that was
/// spawned by [`Schedules::trigger`](crate::Schedules::trigger), it is the time of that call.
pub const TICK_HEADER: &str = "stepwell.tick";

/// The headers with the context of the trace that a task is part of, in the form of [W3C Trace
/// Context](https://www.w3.org/TR/trace-context/).
pub const TRACE_HEADERS: [&str; 2] = ["traceparent", "tracestate"];

/// The maximum length of a task's headers, as bytes of JSON: 64 KiB.
///
/// The headers that the engine adds by itself (the tick of a schedule, a trace) have another 1 KiB.
pub const MAX_HEADERS_BYTES: usize = 64 << 10;

/// The room for the headers that the engine adds, in bytes.
const ROOM: usize = 1 << 10;

/// Returns whether the engine adds a header of this name by itself.
pub(crate) fn is_of_engine(name: &str) -> bool {
    name == TICK_HEADER || TRACE_HEADERS.contains(&name)
}

/// The maximum number of [labels](crate::labels) of a task; stores keep a row for each label.
pub const MAX_LABELS: usize = 64;

/// Returns the labels among a task's headers, by which stores find it.
///
/// A label is a header of the top level whose name and value are texts of 1 to
/// [`MAX_NAME_BYTES`](crate::MAX_NAME_BYTES) bytes without NUL. The headers that the engine adds by
/// itself are no labels.
pub fn labels(headers: &Headers) -> impl Iterator<Item = (&str, &str)> {
    let texts = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
    texts.filter(|(name, value)| is_label(name, value))
}

pub(crate) fn is_label(name: &str, value: &str) -> bool {
    Name::is_valid(name) && Name::is_valid(value) && !is_of_engine(name)
}

/// Returns whether all of these are among the [labels] of the headers.
pub fn have_labels(headers: &Headers, asked: &BTreeMap<String, String>) -> bool {
    asked.iter().all(|(name, value)| {
        is_label(name, value)
            && headers.get(name).and_then(serde_json::Value::as_str) == Some(value)
    })
}

/// Checks that the headers are small, that few of them are labels, and that none is nested too
/// deep.
pub(crate) fn check(headers: &Headers) -> Result<(), InvalidOptions> {
    if headers.is_empty() {
        return Ok(());
    }
    let json = strict::to_json(headers)
        .map_err(|error| InvalidOptions::Headers { reason: error.to_string() })?;
    let own = headers.iter().filter(|(name, _)| is_of_engine(name));
    // The sum includes the quotes, the colon and the comma.
    let own: usize = own.map(|(name, value)| name.len() + value.to_string().len() + 4).sum();
    if json.len() > MAX_HEADERS_BYTES + own.min(ROOM) {
        let reason = format!(
            "they have {} bytes of JSON, the limit is {MAX_HEADERS_BYTES}: put large values into \
             the parameters",
            json.len()
        );
        return Err(InvalidOptions::Headers { reason });
    }
    let labels = labels(headers).count();
    if labels > MAX_LABELS {
        let reason = format!(
            "{labels} of them are labels, the limit is {MAX_LABELS}: put what no task is to be \
             found by into the parameters, or into one header that is an object"
        );
        return Err(InvalidOptions::Headers { reason });
    }
    Ok(())
}

/// Reads headers, and refuses numbers that a [`Value`] would round.
pub(crate) fn exact<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Headers, D::Error> {
    let texts = BTreeMap::<String, Box<RawValue>>::deserialize(deserializer)?;
    let value = |(name, text): (String, Box<RawValue>)| {
        if let Some(number) = numbers(text.get()).find(|number| !is_kept(number)) {
            return Err(D::Error::custom(format_args!(
                "the header \"{name}\" holds the number {number}, which has more digits than a \
                 header keeps: send it as a text"
            )));
        }
        Ok((name, serde_json::from_str::<Value>(text.get()).map_err(D::Error::custom)?))
    };
    texts.into_iter().map(value).collect()
}

/// Returns the numbers in JSON text.
fn numbers(json: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    let mut in_text = false;
    let number = move |char: char| {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = in_text,
            '"' => in_text = !in_text,
            _ => {}
        }
        in_text || !matches!(char, '0'..='9' | '-' | '+' | '.' | 'e' | 'E')
    };
    // The `e` of `true` is not a number.
    json.split(number).filter(|token| token.contains(|char: char| char.is_ascii_digit()))
}

/// Returns whether a [`Value`] holds exactly this number.
///
/// When two decimals are equally short and equally near to a float, both are its text.
fn is_kept(number: &str) -> bool {
    let is_text = |float: f64| {
        let texts = [float.to_string(), Value::from(float).to_string()];
        texts.iter().any(|text| decimal(text) == decimal(number))
    };
    number.parse::<i64>().is_ok()
        || number.parse::<u64>().is_ok()
        || number.parse::<f64>().is_ok_and(is_text)
}

/// Returns the significant digits of a number, and the power of ten that they are multiplied by.
fn decimal(number: &str) -> (String, i64) {
    let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches(['-', '0']).trim_end_matches('0');
    let zeros = digits.len() - digits.trim_end_matches('0').len();
    let power = match significant {
        "" => 0,
        _ => {
            let exponent = exponent.parse().unwrap_or(i64::MAX / 2);
            i64::saturating_add(exponent, zeros as i64).saturating_sub(fraction.len() as i64)
        }
    };
    (significant.to_owned(), power)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Headers, serde_json::Error> {
        exact(&mut serde_json::Deserializer::from_str(json))
    }

    #[test]
    fn numbers_that_would_be_rounded_are_refused() {
        for kept in [
            "0",
            "-0.0",
            "18446744073709551615",
            "-9223372036854775808",
            "1.50",
            "0.1",
            "1e300",
            "2.5E-7",
        ] {
            let headers = read(&format!(r#"{{"a":["1e\"9999",{kept},true]}}"#)).unwrap();
            assert!(headers["a"][1].is_number(), "{kept}");
        }
        let rounded =
            ["18446744073709551617", "0.10000000000000000001", "9007199254740993.0", "1e-400"];
        // These exponents are at the ends of the range of an `i64`.
        let huge = ["10e9223372036854775807", "0.1e-9223372036854775808", "1e-9223372036854775808"];
        for rounded in rounded.into_iter().chain(huge) {
            let error = read(&format!(r#"{{"a":"1","b":{{"c":[{rounded}]}}}}"#)).unwrap_err();
            assert!(error.to_string().contains(rounded), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_a_value_writes_is_kept(
            float in any::<f64>().prop_filter("JSON has them", |float| float.is_finite()),
            integer: i64,
        ) {
            for number in [serde_json::to_string(&float).unwrap(), integer.to_string()] {
                prop_assert!(is_kept(&number), "{number}");
            }
        }
    }
}
