//! The list of what is excused, with the reasons: `xtask/tidy.txt`.
//!
//! A line is `RULE FILE NUMBER REASON`: so many findings of that rule in that file. Neither more
//! nor fewer.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::Finding;
use crate::cargo;

/// Where the list is, from the root.
const LIST: &str = "xtask/tidy.txt";

/// How many findings of a rule in a file are excused.
#[derive(Debug, Default)]
pub(super) struct Excuses(BTreeMap<(String, String), usize>);

impl Excuses {
    pub(super) fn of_the_tree() -> Result<Self> {
        Self::parse(&fs::read_to_string(cargo::root()?.join(LIST)).with_context(|| LIST)?)
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut excuses = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.splitn(4, char::is_whitespace);
            let mut word = || words.next().filter(|word| !word.is_empty());
            let (Some(rule), Some(file), Some(number), Some(_reason)) =
                (word(), word(), word(), word())
            else {
                anyhow::bail!("{LIST}: a line is `RULE FILE NUMBER REASON`: {line}");
            };
            let number = number.parse().with_context(|| format!("{LIST}: {line}"))?;
            let earlier = excuses.insert((rule.to_owned(), file.to_owned()), number);
            ensure!(earlier.is_none(), "{LIST}: {rule} of {file} is excused twice");
        }
        Ok(Self(excuses))
    }

    pub(super) fn places(&self) -> usize {
        self.0.values().sum()
    }

    pub(super) fn files(&self) -> usize {
        self.0.len()
    }

    /// What is not excused, and excuses that are for more than there is.
    pub(super) fn judge(&self, found: &[Finding]) -> Vec<Finding> {
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for finding in found {
            groups
                .entry((finding.rule.to_owned(), finding.file.clone()))
                .or_default()
                .push(finding.clone());
        }
        let mut left = Vec::new();
        for (of, excused) in &self.0 {
            let there = groups.get(of).map_or(0, Vec::len);
            if there < *excused {
                let what = format!(
                    "{excused} findings of {} in {} are excused, and there are {there}",
                    of.0, of.1
                );
                left.push(Finding::new("excuse", LIST, 1, what));
            }
        }
        for (of, group) in groups {
            if group.len() > self.0.get(&of).copied().unwrap_or(0) {
                left.extend(group);
            }
        }
        left
    }
}
