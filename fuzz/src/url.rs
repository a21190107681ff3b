//! URLs of databases: a place is the same when it is shown and read again, and nobody is shown a
//! password.

use stepwell::Durable;
use stepwell::postgres::PostgresOptions;
use stepwell::sqlite::Location;

use crate::{in_virtual_time, said};

/// What a URL has for a password, when that is the only place in which it is.
const PASSWORD: &str = "h4sh-h4sh";

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match Location::parse(text) {
        Ok(Location::Memory) => {}
        Ok(location) => {
            let shown = format!("sqlite:{location}");
            // A path that begins with two slashes is read as if there was one before it.
            if !shown.starts_with("sqlite://") || shown.starts_with("sqlite:///") {
                let again = Location::parse(&shown.replacen("sqlite:", "sqlite://", 1)).unwrap();
                assert_eq!(again, location, "{shown}");
            }
        }
        Err(error) => _ = said(error, text.len()),
    }
    let mut shown = match PostgresOptions::parse(text) {
        Ok(options) => options.to_string(),
        Err(error) => said(error, text.len()),
    };
    // Nothing is opened: there is no such scheme.
    let unknown = Durable::builder().database_url(format!("x{text}")).without_migration();
    shown += &said(in_virtual_time(unknown.build()).err().expect("no such scheme"), text.len());
    if text.contains(&format!(":{PASSWORD}@")) && text.matches(PASSWORD).count() == 1 {
        assert!(!shown.contains(PASSWORD), "{text:?} is shown as {shown:?}");
    }
}
