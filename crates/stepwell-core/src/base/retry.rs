//! Retry strategies: the delays before a failed attempt, or a failed step, is tried again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::invalid_options::InvalidOptions;

/// A retry strategy: the delays before the next tries.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_core::RetryStrategy;
/// let quick = RetryStrategy::Fixed { delay: Duration::from_millis(50) };
/// let patient = RetryStrategy::exponential();
/// assert_eq!(quick.delay(3, 0), Some(Duration::from_millis(50)));
/// assert!(patient.delay(1, u64::MAX) <= Some(Duration::from_millis(1_250)));
/// assert_eq!(RetryStrategy::None.delay(1, 0), None);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RetryStrategy {
    /// The first failure is final.
    None,
    /// Each try follows after the same delay.
    Fixed {
        /// The delay before each try.
        delay: Duration,
    },
    /// The tries follow after these delays, in order; the last delay is repeated, and an empty list
    /// means no delay.
    Listed {
        /// The delays before the tries, in order.
        delays: Vec<Duration>,
    },
    /// Each try follows after a longer delay, up to a cap.
    ///
    /// The delay is spread at random, so that tries which failed together are not repeated
    /// together.
    Exponential {
        /// The delay after the first failure.
        base: Duration,
        /// The factor by which each further failure multiplies the delay, at least 1.
        factor: f64,
        /// The longest delay, also with its jitter.
        max: Duration,
        /// The part of the delay, 0 to 1, by which it may be longer or shorter.
        jitter: f64,
    },
}

impl RetryStrategy {
    /// The maximum number of listed delays.
    const MAX_DELAYS: usize = 1_000;

    /// Returns the default strategy: 1 s, doubled after each failure, at most 5 minutes, with 25 %
    /// jitter.
    pub const fn exponential() -> Self {
        Self::Exponential {
            base: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_secs(300),
            jitter: 0.25,
        }
    }

    /// Returns a strategy with the same delay before each try.
    pub const fn fixed(delay: Duration) -> Self {
        Self::Fixed { delay }
    }

    /// Checks that delays can be computed from the numbers of the strategy.
    ///
    /// # Errors
    /// [`InvalidOptions`] when the factor is less than 1 or not finite, when the jitter is not from
    /// 0 to 1, when over 1,000 delays are listed, or when a duration is over 1,000 years.
    pub fn check(&self) -> Result<(), InvalidOptions> {
        let long = InvalidOptions::check_duration;
        match self {
            Self::None => Ok(()),
            Self::Fixed { delay } => long("delay", *delay),
            Self::Listed { delays } if delays.len() > Self::MAX_DELAYS => {
                Err(InvalidOptions::Retry {
                    field: "list of delays, as long as",
                    value: delays.len().to_string(),
                    range: "1,000 long at most",
                })
            }
            Self::Listed { delays } => delays.iter().try_for_each(|delay| long("delay", *delay)),
            &Self::Exponential { base, factor, max, jitter } => {
                let number = |field, value: f64, valid: bool, range| match valid {
                    true => Ok(()),
                    false => Err(InvalidOptions::Retry { field, value: value.to_string(), range }),
                };
                number(
                    "factor",
                    factor,
                    factor >= 1.0 && factor.is_finite(),
                    "a finite number from 1 on",
                )?;
                number("jitter", jitter, (0.0..=1.0).contains(&jitter), "from 0 to 1")?;
                long("base", base)?;
                long("max", max)
            }
        }
    }

    /// Returns the delay after the failure of try number `failed` (from 1); `None` when no further
    /// try follows.
    ///
    /// The jitter is computed from `random`, which is a uniform number.
    pub fn delay(&self, failed: u32, random: u64) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Fixed { delay } => Some(*delay),
            Self::Listed { delays } => {
                // After the last delay of the list comes the last delay again.
                let place = usize::try_from(failed.saturating_sub(1)).unwrap_or(usize::MAX);
                Some(delays.get(place).or(delays.last()).copied().unwrap_or_default())
            }
            &Self::Exponential { base, factor, max, jitter } => {
                // The delay has reached its cap long before.
                let exponent = i32::try_from(failed.saturating_sub(1)).unwrap_or(i32::MAX);
                let grown = base.as_secs_f64() * factor.max(1.0).powi(exponent);
                let spread =
                    1.0 + jitter.clamp(0.0, 1.0) * (random as f64 / u64::MAX as f64 * 2.0 - 1.0);
                // `min` also replaces the infinity of a large power by the cap.
                let seconds = grown.min(max.as_secs_f64()) * spread;
                Some(Duration::try_from_secs_f64(seconds).unwrap_or(max).min(max))
            }
        }
    }
}

/// The delays between the engine's own tries when the store fails.
pub(crate) const STORE_RETRY: RetryStrategy = RetryStrategy::Exponential {
    base: Duration::from_millis(50),
    factor: 2.0,
    max: Duration::from_secs(5),
    jitter: 0.25,
};

impl Default for RetryStrategy {
    fn default() -> Self {
        Self::exponential()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_listed_delays_stands_for_all_that_follow() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let strategy =
            RetryStrategy::Listed { delays: vec![Duration::from_secs(1), Duration::from_secs(5)] };
        let delays = [1, 2, 3, u32::MAX].map(|failed| strategy.delay(failed, 0));
        assert_eq!(delays, [seconds(1), seconds(5), seconds(5), seconds(5)]);
        assert_eq!(RetryStrategy::Listed { delays: Vec::new() }.delay(1, 0), seconds(0));
    }

    #[test]
    fn numbers_that_a_strategy_cannot_have_are_found() {
        let with =
            |base, factor, max, jitter| RetryStrategy::Exponential { base, factor, max, jitter };
        let second = Duration::from_secs(1);
        for (strategy, said) in [
            (with(second, f64::NAN, second, 0.0), "the factor NaN"),
            (with(second, f64::INFINITY, second, 0.0), "the factor inf"),
            (with(second, -2.0, second, 0.0), "the factor -2"),
            (with(second, 2.0, second, f64::NAN), "the jitter NaN"),
            (with(second, 2.0, second, 1.5), "the jitter 1.5"),
            (with(Duration::MAX, 2.0, second, 0.0), "the base of"),
            (with(second, 2.0, Duration::MAX, 0.0), "the max of"),
            (RetryStrategy::fixed(Duration::MAX), "1,000 years at most"),
            (RetryStrategy::Listed { delays: vec![second, Duration::MAX] }, "1,000 years at most"),
            (RetryStrategy::Listed { delays: vec![second; 1_001] }, "1,000 long at most"),
        ] {
            let error = strategy.check().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        RetryStrategy::exponential().check().unwrap();
    }

    #[test]
    fn exponential_delays_grow_to_their_cap_and_stay_within_their_jitter() {
        let strategy = RetryStrategy::exponential();
        for failed in [1, 2, 3, 8, 9, 10, 1_000, u32::MAX] {
            let middle = 2f64.powi((failed - 1).min(20) as i32).min(300.0);
            for random in [0, 1, u64::MAX / 3, u64::MAX] {
                let delay = strategy.delay(failed, random).unwrap().as_secs_f64();
                assert!(
                    delay >= middle * 0.74 && delay <= (middle * 1.26).min(300.0),
                    "{failed}: {delay}"
                );
            }
        }
    }
}
