//! Orders, and the file that they come in.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// An order: one line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) customer: String,
    /// Where it goes, by ISO 3166: `DE`.
    pub(crate) country: String,
    /// The number of the card to charge.
    pub(crate) card: String,
    pub(crate) items: Vec<Item>,
}

/// Something that is ordered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Item {
    pub(crate) sku: String,
    pub(crate) quantity: u32,
    /// The price of one, in cents.
    pub(crate) cents: u32,
    /// The weight of one.
    pub(crate) grams: u32,
}

impl Order {
    pub(crate) fn cents(&self) -> u64 {
        self.items.iter().map(|item| u64::from(item.quantity) * u64::from(item.cents)).sum()
    }

    pub(crate) fn grams(&self) -> u64 {
        self.items.iter().map(|item| u64::from(item.quantity) * u64::from(item.grams)).sum()
    }

    fn check(&self) -> anyhow::Result<()> {
        let plain =
            |text: &str| !text.is_empty() && text.len() <= 100 && !text.contains(char::is_control);
        ensure!(plain(&self.id), "the `id` has to have 1 to 100 printable characters");
        let country = self.country.as_bytes();
        ensure!(
            country.len() == 2 && country.iter().all(u8::is_ascii_uppercase),
            "the `country` has to be a code of two capital letters, as DE"
        );
        ensure!(
            (12..=19).contains(&self.card.len())
                && self.card.bytes().all(|byte| byte.is_ascii_digit()),
            "the `card` has to be a number of 12 to 19 digits"
        );
        ensure!(!self.items.is_empty(), "there are no `items`");
        for item in &self.items {
            ensure!(plain(&item.sku), "each `sku` has to have 1 to 100 printable characters");
            ensure!(item.quantity > 0, "the `quantity` of {:?} is 0", item.sku);
        }
        Ok(())
    }
}

/// Reads a file of orders, in lines of JSON.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Order>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut orders, mut lines) = (Vec::new(), HashMap::new());
    for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let (line, place) = (line + 1, format!("line {} of {}", line + 1, path.display()));
        let order: Order =
            serde_json::from_str(text).with_context(|| format!("{place} is no order"))?;
        order.check().context(place.clone())?;
        if let Some(first) = lines.insert(order.id.clone(), line) {
            bail!(
                "{place}: the order {} is on line {first} already: give each its own `id`",
                order.id
            );
        }
        orders.push(order);
    }
    ensure!(!orders.is_empty(), "{} holds no orders", path.display());
    Ok(orders)
}
