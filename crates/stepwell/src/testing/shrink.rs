//! The reduction of a failing case to a smaller one.

/// Removes the items that a failure does not need. The result is a part of `items`, in their order,
/// of which `fails` is still true and from which no single item can be removed. After `tries` calls
/// of `fails`, the result is the smallest part that was found.
pub fn shrink<T: Clone>(
    items: &[T],
    mut tries: usize,
    mut fails: impl FnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut kept = items.to_vec();
    let mut size = kept.len();
    while size > 0 {
        let mut begin = 0;
        let mut removed = false;
        while begin < kept.len() {
            if tries == 0 {
                return kept;
            }
            tries -= 1;
            let end = (begin + size).min(kept.len());
            let part: Vec<_> =
                kept.iter().take(begin).chain(kept.iter().skip(end)).cloned().collect();
            if fails(&part) {
                kept = part;
                removed = true;
            } else {
                begin = end;
            }
        }
        // Single items are removed in rounds, until a round removes none.
        if size > 1 || !removed {
            size /= 2;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::shrink;

    #[test]
    fn what_a_failure_does_not_need_is_removed() {
        let items: Vec<u32> = (0..100).collect();
        let needs = |part: &[u32]| part.contains(&17) && part.contains(&63) && part.contains(&64);
        assert_eq!(shrink(&items, 1_000, needs), [17, 63, 64]);
        assert_eq!(shrink(&items, 0, needs), items);
        assert_eq!(shrink(&items, 1_000, |_| true), Vec::<u32>::new());
    }
}
