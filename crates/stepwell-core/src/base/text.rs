//! Texts of a bounded length.

/// Cuts a text to at most `limit` bytes, between two characters.
pub(crate) fn cut_off(text: &mut String, limit: usize) {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
}
