//! Where the text of an entry stands in a file, however a formatter has broken its lines.

use std::ops::Range;

/// Returns the parts of a text that are the same as `find`, but for what a formatter decides.
///
/// That is white space, the comma after the last element of a list, backslashes at ends of lines,
/// and the marks of comments.
pub(super) fn places(text: &str, find: &str) -> Vec<Range<usize>> {
    let is_comment = find.trim_start().starts_with("//");
    let (squeezed, find) = (Squeezed::new(text), Squeezed::new(find));
    let found = squeezed.bytes.windows(find.bytes.len().max(1)).enumerate();
    let found = found.filter(|(_, part)| *part == find.bytes);
    found
        .map(|(first, part)| {
            let mut start = squeezed.places[first];
            if is_comment {
                // The mark goes with the comment.
                start = text[..start].trim_end().trim_end_matches('/').len();
            }
            start..squeezed.places[first + part.len() - 1] + 1
        })
        .collect()
}

/// A text without what a formatter decides.
struct Squeezed {
    bytes: Vec<u8>,
    /// Where each of the bytes stands in the text.
    places: Vec<usize>,
}

impl Squeezed {
    fn new(text: &str) -> Self {
        let mut squeezed = Self { bytes: Vec::new(), places: Vec::new() };
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let indent = line.len() - line.trim_start().len();
            let mark = line[indent..].bytes().take_while(|byte| *byte == b'/').count();
            let skipped = indent + if mark >= 2 { mark } else { 0 };
            // A backslash at the end of a line is within a text, which goes on in the next one.
            let end = line.trim_end().trim_end_matches('\\').len();
            for (place, byte) in line.bytes().enumerate().take(end).skip(skipped) {
                if !byte.is_ascii_whitespace() {
                    squeezed.add(byte, start + place);
                }
            }
            start += line.len();
        }
        squeezed
    }

    fn add(&mut self, byte: u8, place: usize) {
        if matches!(byte, b')' | b']' | b'}') && self.bytes.last() == Some(&b',') {
            self.bytes.pop();
            self.places.pop();
        }
        self.bytes.push(byte);
        self.places.push(place);
    }
}
