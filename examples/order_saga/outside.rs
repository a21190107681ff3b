//! The world outside: a warehouse, a bank and carriers, and the ledger of what they did.
//!
//! Like their real counterparts they take an idempotency key with each request, and do what they
//! are asked once for each key. The ledger has a line for each request, also for one that was
//! repeated: a program that was killed before it could journal an answer has to ask again.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use stepwell::{TaskError, Timestamp};
use tokio::task::spawn_blocking;

use crate::order::{Item, Order};

/// How many of each thing the warehouse has for one order.
const IN_STOCK: u32 = 50;
/// The cards with which Stripe tests a bank that says no, and one that is out of order for a
/// moment.
const DECLINED: &str = "4000000000000002";
const OUT_OF_ORDER: &str = "4000000000000119";

/// What was done outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Deed {
    Reserve,
    Release,
    Charge,
    Refund,
    Pick,
    Ship,
}

/// A line of the ledger.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    at: Timestamp,
    order: String,
    deed: Deed,
    detail: String,
    key: String,
    /// Whether it was asked for before with this key, and so not done now.
    repeated: bool,
}

/// The warehouse, the bank and the carriers.
#[derive(Clone)]
pub(crate) struct Outside {
    ledger: Arc<Mutex<Ledger>>,
    /// How long each takes for an answer.
    latency: Duration,
}

impl Outside {
    pub(crate) fn open(ledger: &Path, latency: Duration) -> anyhow::Result<Self> {
        let opened = Ledger::open(ledger)
            .with_context(|| format!("cannot open the ledger {}", ledger.display()))?;
        Ok(Self { ledger: Arc::new(Mutex::new(opened)), latency })
    }

    pub(crate) async fn reserve(&self, order: &Order, key: String) -> anyhow::Result<()> {
        if let Some(item) = order.items.iter().find(|item| item.quantity > IN_STOCK) {
            return Err(refused(format!("there are only {IN_STOCK} of {:?}", item.sku)));
        }
        self.request(order, Deed::Reserve, format!("{} items", order.items.len()), key).await
    }

    pub(crate) async fn release(&self, order: &Order, key: String) -> anyhow::Result<()> {
        self.request(order, Deed::Release, format!("{} items", order.items.len()), key).await
    }

    pub(crate) async fn charge(
        &self,
        order: &Order,
        attempt: u32,
        key: String,
    ) -> anyhow::Result<()> {
        match order.card.as_str() {
            DECLINED => return Err(refused("the card was declined")),
            OUT_OF_ORDER if attempt == 1 => bail!("the bank is out of order for a moment"),
            _ => {}
        }
        self.request(order, Deed::Charge, format!("{} cents", order.cents()), key).await
    }

    pub(crate) async fn refund(&self, order: &Order, key: String) -> anyhow::Result<()> {
        self.request(order, Deed::Refund, format!("{} cents", order.cents()), key).await
    }

    pub(crate) async fn pick(&self, order: &Order, item: &Item, key: String) -> anyhow::Result<()> {
        self.request(order, Deed::Pick, format!("{} of {}", item.quantity, item.sku), key).await
    }

    /// Hands the parcel over to a carrier, who gives it a number.
    pub(crate) async fn ship(
        &self,
        order: &Order,
        carrier: &Carrier,
        key: String,
    ) -> anyhow::Result<String> {
        let Carrier { name, max_grams } = carrier;
        if order.grams() > *max_grams {
            return Err(refused(format!("{name} takes no parcels of {} g", order.grams())));
        }
        self.request(order, Deed::Ship, (*name).to_owned(), key).await?;
        Ok(format!("{name} {}", order.id))
    }

    async fn request(
        &self,
        order: &Order,
        deed: Deed,
        detail: String,
        key: String,
    ) -> anyhow::Result<()> {
        tokio::time::sleep(self.latency).await;
        let (ledger, order) = (self.ledger.clone(), order.id.clone());
        let write = move || {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let repeated = ledger.keys.contains(&key);
            ledger.append(Line { at: Timestamp::now(), order, deed, detail, key, repeated })
        };
        spawn_blocking(write).await?.context("cannot write the ledger")
    }
}

/// Who takes parcels to where.
pub(crate) struct Carrier {
    pub(crate) name: &'static str,
    max_grams: u64,
}

pub(crate) const DHL: Carrier = Carrier { name: "dhl", max_grams: 31_500 };
pub(crate) const ROYAL_MAIL: Carrier = Carrier { name: "royal mail", max_grams: 20_000 };
pub(crate) const UPS: Carrier = Carrier { name: "ups", max_grams: 70_000 };

/// An answer that will be no other when it is asked for again.
pub(crate) fn refused(why: impl Into<String>) -> anyhow::Error {
    TaskError::permanent(anyhow!(why.into())).into()
}

struct Ledger {
    file: File,
    keys: HashSet<String>,
}

impl Ledger {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                bail!("another process works with it: wait for its end, or name another ledger")
            }
            locked => locked?,
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // A power cut may leave half a line: a request that was not answered.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        file.seek(std::io::SeekFrom::End(0))?;
        let lines = text[..whole].lines().enumerate();
        let keys = lines.map(|(number, line)| {
            let line = serde_json::from_str::<Line>(line);
            Ok(line.with_context(|| format!("line {} is not one of a ledger", number + 1))?.key)
        });
        Ok(Self { keys: keys.collect::<anyhow::Result<_>>()?, file })
    }

    fn append(&mut self, line: Line) -> anyhow::Result<()> {
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        self.keys.insert(line.key);
        Ok(())
    }
}
