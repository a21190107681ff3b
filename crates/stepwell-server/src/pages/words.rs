//! The text forms of times, states and values.

use std::time::Duration;

use maud::{Markup, html};
use stepwell::{Payload, TaskState, Timestamp};

/// The maximum number of bytes of a value that a page shows.
const SHOWN: usize = 20_000;

/// Formats a moment in UTC.
pub(crate) fn moment(at: Timestamp) -> Markup {
    let text = at.strftime("%Y-%m-%d %H:%M:%S").to_string();
    html! { time datetime=(at) title=(format!("{at}")) { (text) } }
}

pub(crate) fn state(state: TaskState) -> Markup {
    html! { span class={ "state " (state.as_str()) } { (state.as_str()) } }
}

/// Formats a duration: `950 µs`, `12.3 ms`, `4.2 s`, `3 min 20 s`, `2 h 5 min`, `4 d 2 h`.
pub(crate) fn duration(time: Duration) -> String {
    let micros = time.as_micros();
    let seconds = time.as_secs();
    match micros {
        0 => "0".into(),
        1..=999 => format!("{micros} µs"),
        1_000..=999_999 => format!("{} ms", short(micros as f64 / 1e3)),
        1_000_000..=99_999_999 => format!("{} s", short(micros as f64 / 1e6)),
        _ if seconds < 7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ if seconds < 172_800 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Formats a number with three digits.
fn short(number: f64) -> String {
    match number {
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// Formats a number with separators: `1234567` as `1,234,567`.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Lays out JSON text over several lines. The values are copied as text, because a parsed number
/// could be rounded.
fn laid_out(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        // The indent is limited, because deeper lines would be mostly spaces.
        out.extend(std::iter::repeat_n("  ", depth.min(20)));
    };
    let mut chars = json.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            _ if in_text => {
                out.push(char);
                in_text = escaped || char != '"';
                escaped = !escaped && char == '\\';
            }
            '"' => {
                in_text = true;
                out.push(char);
            }
            '[' | '{' => {
                out.push(char);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = chars.next_if(|next| matches!(next, ']' | '}')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            ']' | '}' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(char);
            }
            ',' => {
                out.push(char);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            char if char.is_ascii_whitespace() => {}
            char => out.push(char),
        }
    }
    out
}

/// Draws a value, laid out for reading.
pub(crate) fn json(value: &Payload) -> Markup {
    let text = laid_out(value.as_str());
    let (shown, rest) = cut(&text, SHOWN);
    html! {
        pre class="json" tabindex="0" { (shown) @if rest > 0 { "…" } }
        @if rest > 0 { p class="dim" { (number(rest as u64)) " further bytes: read them by the \
                                                              API" } }
    }
}

/// Formats a value in one line, for lists.
pub(crate) fn brief(value: &Payload) -> String {
    let (shown, rest) = cut(value.as_str(), 120);
    if rest > 0 { format!("{shown}…") } else { shown.to_owned() }
}

/// Returns the beginning of a text, and the number of bytes after it.
fn cut(text: &str, bytes: usize) -> (&str, usize) {
    if text.len() <= bytes {
        return (text, 0);
    }
    let end = (0..=bytes).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    (&text[..end], text.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let shown = |micros| duration(Duration::from_micros(micros));
        assert_eq!(shown(950), "950 µs");
        assert_eq!(shown(12_340), "12.3 ms");
        assert_eq!(shown(4_200_000), "4.20 s");
        assert_eq!(shown(200_000_000), "3 min 20 s");
        assert_eq!(shown(7_500_000_000), "2 h 5 min");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("äöü", 3), ("ä", 4));
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(number(12), "12");
    }
}
