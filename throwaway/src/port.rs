//! Choosing a port.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Error, Result, bail};

/// Below the ports that systems give to outgoing connections. Among those, a client that looks for
/// a stopped server could get the server's own port, find itself there, and keep the server from
/// coming back.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// Each of these tries takes another port.
const TRIES: u32 = 5;

/// A port of 127.0.0.1 that nobody listens on.
fn free() -> Result<u16> {
    for _ in 0..COUNT {
        let random = RandomState::new().hash_one(()) % u64::from(COUNT);
        let port = FIRST + u16::try_from(random)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {FIRST} on")
}

/// Starts something on a free port.
///
/// When another program takes the port before the server does, the function tries another one.
pub(crate) fn start_on_a_free_port<T>(mut start: impl FnMut(u16) -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match start(free()?) {
            Err(error) if is_taken(&error) => {}
            result => return result,
        }
    }
    start(free()?)
}

/// Whether the server's log, which the error holds, says that the port was not free.
fn is_taken(error: &Error) -> bool {
    format!("{error:#}").contains("Address already in use")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_taken_port_is_left_for_another() {
        let mut ports = Vec::new();
        let started = start_on_a_free_port(|port| {
            ports.push(port);
            if ports.len() < 3 {
                Err(anyhow!("Address already in use").context("no start"))
            } else {
                Ok(port)
            }
        });
        assert_eq!(started.unwrap(), ports[2]);
        assert_ne!(ports[0], ports[1]);
    }

    #[test]
    fn another_error_is_not_tried_again() {
        let mut starts = 0;
        let started = start_on_a_free_port(|_| {
            starts += 1;
            Err::<(), _>(anyhow!("no such setting"))
        });
        assert_eq!((started.unwrap_err().to_string().as_str(), starts), ("no such setting", 1));
    }
}
