//! Random numbers that a seed decides.

use std::sync::atomic::{AtomicU64, Ordering};

/// A source of random numbers that follow from a seed, by SplitMix64.
pub struct Dice(AtomicU64);

impl Dice {
    /// Makes the dice of a seed.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(mix(seed ^ 0xD134_2543_DE82_EF95)))
    }

    /// Makes dice whose numbers depend on the seed and on `which` only, and not on earlier rolls of
    /// other dice.
    pub fn of(seed: u64, which: u64) -> Self {
        Self::new(mix(seed).wrapping_add(mix(which.wrapping_mul(0x9E37_79B9_7F4A_7C15))))
    }

    /// Returns a random number of 64 bits.
    pub fn any(&self) -> u64 {
        mix(self
            .0
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
            .wrapping_add(0x9E37_79B9_7F4A_7C15))
    }

    /// Returns a random number below `sides`, or 0 when `sides` is 0.
    pub fn roll(&self, sides: u64) -> u64 {
        self.any().checked_rem(sides).unwrap_or(0)
    }

    /// Returns `true` with a probability of 1 in `times`.
    pub fn one_in(&self, times: u64) -> bool {
        self.roll(times) == 0
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
