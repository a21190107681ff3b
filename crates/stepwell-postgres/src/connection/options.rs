//! The options of a store: the location of the database, and how the store uses it.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use stepwell_core::{Runtime, StoreError};
use url::Url;

/// The default name of the schema with Stepwell's tables.
const SCHEMA: &str = "stepwell";

/// The options of a [`PostgresStore`](crate::PostgresStore): the location of the database, and how
/// the store uses it.
///
/// ```
/// # use stepwell_postgres::PostgresOptions;
/// # fn options() -> Result<PostgresOptions, stepwell_core::StoreError> {
/// let url = "postgres://app:secret@db.example.com/orders?sslmode=require";
/// PostgresOptions::parse(url)?.schema("jobs")
/// # }
/// # options().unwrap();
/// ```
#[derive(Clone)]
pub struct PostgresOptions {
    pub(crate) connect: PgConnectOptions,
    pub(crate) schema: String,
    /// `true` if statements may stay prepared between transactions.
    pub(crate) prepares: bool,
    pub(crate) clock: Option<Arc<dyn Runtime>>,
    /// The URL, without its password.
    location: String,
}

impl PostgresOptions {
    /// Parses a URL: `postgres://user:password@host:port/database`. The URL may have the options
    /// that `sqlx` knows (`sslmode`, `sslrootcert`, `application_name`, …), and these:
    ///
    /// - `schema`: the name for [`PostgresOptions::schema`].
    /// - `statement-cache-capacity=0`: no statement stays prepared, and each is sent in its own
    ///   transaction. This is for poolers in transaction mode that cannot keep prepared statements
    ///   (PgBouncer before 1.21).
    ///
    /// Parts that are missing from the URL come from the environment (`PGHOST`, `PGPASSWORD`, …),
    /// as with other clients of PostgreSQL.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the URL is invalid.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let wrong = |location: &str, reason: String| StoreError::Open {
            location: location.into(),
            reason,
            advice: "Write `postgres://user:password@host:5432/database?schema=stepwell`, say"
                .into(),
        };
        // The error has no location, because an invalid URL may hold a password at any place.
        let mut parsed =
            Url::parse(url).map_err(|error| wrong("(the given URL)", error.to_string()))?;
        // The same holds for a URL in which a character of the password ends its part of the URL.
        let has_at = |part: &str| part.contains('@');
        if has_at(parsed.path())
            || parsed.query().is_some_and(has_at)
            || parsed.fragment().is_some()
        {
            let reason = "it has an `@` or a `#` behind its host".to_owned();
            let advice =
                "Write `@`, `/`, `?` and `#` of names and passwords as `%40`, `%2F`, `%3F` and \
                 `%23`, and two slashes before them"
                    .into();
            return Err(StoreError::Open { location: "(the given URL)".into(), reason, advice });
        }
        let own = |name: &str| name == "schema";
        let given: Vec<(String, String)> = parsed.query_pairs().into_owned().collect();
        let of =
            |name: &str| given.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let schema = of("schema").unwrap_or(SCHEMA).to_owned();
        let prepares = of("statement-cache-capacity") != Some("0");
        let kept: Vec<_> = given.iter().filter(|(name, _)| !own(name)).cloned().collect();
        parsed.set_query(None);
        let mut shown = parsed.clone();
        let _ = shown.set_password(None);
        if !kept.is_empty() {
            parsed.query_pairs_mut().extend_pairs(&kept);
        }
        let connect = PgConnectOptions::from_str(parsed.as_str())
            .map_err(|error| wrong(shown.as_str(), error.to_string()))?;
        let connect = match connect.get_application_name() {
            Some(_) => connect,
            None => connect.application_name("stepwell"),
        };
        let options =
            Self { connect, schema: String::new(), prepares, clock: None, location: shown.into() };
        options.schema(schema)
    }

    /// Sets the schema with Stepwell's tables.
    /// [`PostgresStore::connect`](crate::PostgresStore::connect) creates it if it does not exist.
    /// Different schemas in one database are separate stores. Default: `stepwell`.
    ///
    /// # Errors
    /// [`StoreError::Open`] unless the name has 1 to 48 lower-case letters, digits and underscores,
    /// and begins with neither a digit nor `pg_`.
    pub fn schema(mut self, schema: impl Into<String>) -> Result<Self, StoreError> {
        let schema = schema.into();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts = schema.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if !starts || schema.len() > 48 || !schema.chars().all(plain) || schema.starts_with("pg_") {
            return Err(StoreError::Open {
                location: self.location,
                reason: format!("{schema:?} is no name for its schema"),
                advice: "Use 1 to 48 lower-case letters, digits and underscores; not `pg_…`".into(),
            });
        }
        self.schema = schema;
        Ok(self)
    }

    /// Sets a clock that replaces the server's, for tests with virtual time.
    pub fn clock(mut self, clock: Arc<dyn Runtime>) -> Self {
        self.clock = Some(clock);
        self
    }
}

impl fmt::Display for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (schema {})", self.location, self.schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_shown_without_its_password() {
        let options = PostgresOptions::parse(
            "postgres://ann:hush@db:6432/orders?schema=jobs&statement-cache-capacity=0",
        )
        .unwrap();
        assert_eq!(options.connect.get_host(), "db");
        assert_eq!(options.connect.get_application_name(), Some("stepwell"));
        assert_eq!((options.schema.as_str(), options.prepares), ("jobs", false));
        assert_eq!(options.to_string(), "postgres://ann@db:6432/orders (schema jobs)");
        assert!(
            PostgresOptions::parse("postgres://db/orders?application_name=x").unwrap().prepares
        );
    }

    #[test]
    fn a_password_is_not_shown_where_the_url_is_mistyped() {
        for url in [
            "postgres:ann:hush@db/orders",
            "postgres:/ann:hush@db/orders",
            "postgres:///ann:hush@db/orders",
            "postgres://ann:12/hush@db/orders",
            "postgres://ann:12#hush@db/orders",
            "postgres://ann:12?sslmode=hush@db/orders",
        ] {
            let shown = match PostgresOptions::parse(url) {
                Ok(options) => options.to_string(),
                Err(error) => error.to_string(),
            };
            assert!(!shown.contains("hush") && shown.contains("`%40`, `%2F`"), "{shown}");
        }
        assert!(PostgresOptions::parse("postgres://ann:hu%40%23sh@db/or%40ders").is_ok());
    }

    #[test]
    fn what_cannot_be_a_url_or_a_schema_is_refused() {
        fn error(url: &str) -> String {
            PostgresOptions::parse(url).err().unwrap().to_string()
        }
        assert!(
            error("postgres://ann:hush@db:port/orders")
                .contains("invalid port number. Write `postgres://user")
        );
        assert!(!error("postgres://ann:hush@db:port/orders").contains("hush"));
        for schema in ["", "Jobs", "9lives", "a-b", "a\"b", "pg_jobs", &"x".repeat(49)] {
            let url = format!("postgres://db/orders?schema={schema}");
            assert!(error(&url).contains("no name for its schema"), "{schema}");
        }
    }
}
