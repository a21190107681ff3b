//! The sessions of browsers that have logged in, and the limit of wrong tokens.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use stepwell::CancellationToken;

use crate::connections::network_of;

/// The time for which a browser stays logged in.
pub(crate) const SESSION: Duration = Duration::from_secs(12 * 3_600);
/// The maximum number of browsers that are logged in at the same time.
const SESSIONS: u64 = 10_000;
/// The maximum number of addresses whose failed logins are counted.
const ADDRESSES: u64 = 100_000;
/// The time for which a failed login counts.
const FORGOTTEN: Duration = Duration::from_secs(15 * 60);
/// The number of logins that may fail before a client has to wait.
const FREE: u32 = 5;
/// The maximum wait.
const LONGEST: Duration = Duration::from_secs(300);

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// The browsers that are logged in, by the digests of their sessions, each with the token that is
/// cancelled when its session ends. Sessions exist in this process only.
pub(crate) struct Sessions(Cache<[u8; 32], CancellationToken>);

impl Sessions {
    pub(crate) fn new(lifetime: Duration) -> Self {
        let sessions = Cache::builder().max_capacity(SESSIONS).time_to_live(lifetime);
        // The session that was used longest ago makes room for a new one.
        let sessions = sessions.eviction_policy(EvictionPolicy::lru());
        Self(sessions.eviction_listener(|_, until: CancellationToken, _| until.cancel()).build())
    }

    /// Begins a session, and returns its text of 256 random bits.
    pub(crate) fn begin(&self) -> String {
        let session = hex::encode(rand::random::<[u8; 32]>());
        self.0.insert(digest(&session), CancellationToken::new());
        session
    }

    /// Returns the token that is cancelled when a session ends; `None` when the session does not
    /// exist.
    pub(crate) fn until(&self, session: &str) -> Option<CancellationToken> {
        self.0.get(&digest(session))
    }

    pub(crate) fn end(&self, session: &str) {
        if let Some(until) = self.0.remove(&digest(session)) {
            until.cancel();
        }
    }
}

/// The failed logins, by the address that they came from.
pub(crate) struct Failures(Cache<IpAddr, Failed>);

#[derive(Clone, Copy)]
struct Failed {
    times: u32,
    at: Instant,
    /// The digest of the token that was tried last.
    token: [u8; 32],
}

impl Default for Failures {
    fn default() -> Self {
        let failures = Cache::builder().max_capacity(ADDRESSES).time_to_live(FORGOTTEN);
        Self(failures.eviction_policy(EvictionPolicy::lru()).build())
    }
}

impl Failures {
    /// Returns how long a client at an address has to wait before its next login.
    pub(crate) fn wait(&self, address: IpAddr) -> Option<Duration> {
        let Failed { times, at, .. } = self.0.get(&network_of(address))?;
        let wait = Duration::from_secs(1 << times.checked_sub(FREE)?.min(9)).min(LONGEST);
        wait.checked_sub(at.elapsed()).filter(|left| !left.is_zero())
    }

    /// Counts a failed login. The same token once more does not count: it comes from a program with
    /// an old token, which guesses nothing.
    pub(crate) fn count(&self, address: IpAddr, token: &str) {
        let (token, at) = (digest(token), Instant::now());
        self.0.entry(network_of(address)).and_upsert_with(|entry| {
            match entry.map(moka::Entry::into_value) {
                Some(failed) if failed.token == token => failed,
                Some(failed) => Failed { times: failed.times.saturating_add(1), at, token },
                None => Failed { times: 1, at, token },
            }
        });
    }

    /// Forgets the failures of an address, because a client there has logged in.
    pub(crate) fn forget(&self, address: IpAddr) {
        self.0.invalidate(&network_of(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_when_it_is_ended_and_when_its_time_is_up() {
        let sessions = Sessions::new(Duration::from_secs(1));
        let (one, other) = (sessions.begin(), sessions.begin());
        let has = |session: &str| sessions.until(session).is_some();
        assert!(one != other && one.len() == 64 && has(&one) && has(&other));
        let until = sessions.until(&one).unwrap();
        sessions.end(&one);
        assert!(until.is_cancelled() && !has(&one) && has(&other) && !has(""));
        let begin = Instant::now();
        while has(&other) {
            assert!(begin.elapsed() < Duration::from_secs(30), "it does not end");
            std::thread::yield_now();
        }
    }

    #[test]
    fn there_is_always_room_for_one_more_session() {
        let sessions = Sessions::new(SESSION);
        let first = sessions.begin();
        let until = sessions.until(&first).unwrap();
        (0..SESSIONS).for_each(|_| drop(sessions.begin()));
        let last = sessions.begin();
        sessions.0.run_pending_tasks();
        assert!(sessions.until(&last).is_some(), "the newest is one of those that stay");
        assert!(
            sessions.until(&first).is_none() && until.is_cancelled(),
            "the oldest has given way"
        );
    }

    #[test]
    fn whoever_guesses_waits_longer_and_longer_and_nobody_else_does() {
        let failures = Failures::default();
        let (guesses, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut last = Duration::ZERO;
        for n in 1..30 {
            failures.count(guesses, &format!("guess {n}"));
            let wait = failures.wait(guesses).unwrap_or_default();
            assert_eq!(wait.is_zero(), n < FREE, "after {n}");
            assert!(wait >= last.saturating_sub(Duration::from_secs(1)) && wait <= LONGEST);
            last = wait;
        }
        assert!(last > Duration::from_secs(290) && failures.wait(other).is_none());
        for _ in 0..100 {
            failures.count(other, "an old token");
        }
        assert!(failures.wait(other).is_none());
        failures.forget(guesses);
        assert!(failures.wait(guesses).is_none());
        let of_network = |last| IpAddr::from([0x2001, 0xdb8, 1, 2, 0, 0, 0, last]);
        (1..9).for_each(|n| failures.count(of_network(n), &n.to_string()));
        assert!(failures.wait(of_network(99)).is_some(), "a network of IPv6 is one");
    }
}
