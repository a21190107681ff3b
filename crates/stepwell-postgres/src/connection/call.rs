//! Calls of the database's functions, with named arguments.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, Postgres};
use sqlx::{Arguments as _, AssertSqlSafe, Encode, Type};

use crate::connection::options::PostgresOptions;

/// A query with its arguments.
pub(crate) type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

/// A call of a function. Each argument is added together with the name of its parameter, so that
/// the order of neither the arguments nor the parameters matters.
///
/// The database parses the names once for each prepared statement. Where statements cannot stay
/// prepared, it parses them with each call. There, arguments that are NULL are left out, which the
/// functions have as their default values: a batch has few of the lists that it could have.
pub(crate) struct Call {
    sql: String,
    arguments: PgArguments,
    /// `true` if the statement stays prepared, and is therefore the same for all values.
    is_prepared: bool,
}

impl Call {
    pub(crate) fn of(function: &str, options: &PostgresOptions) -> Self {
        // The longest call has this length.
        let mut sql = String::with_capacity(if options.prepares { 2048 } else { 512 });
        sql.extend(["SELECT * FROM ", &options.schema, ".", function, "("]);
        Self { sql, arguments: PgArguments::default(), is_prepared: options.prepares }
    }

    /// Adds an argument; `None` stands for NULL.
    pub(crate) fn add<'v, T>(&mut self, name: &str, value: Option<T>) -> Result<(), BoxDynError>
    where
        T: Encode<'v, Postgres> + Type<Postgres> + 'v,
    {
        if value.is_none() && !self.is_prepared {
            return Ok(());
        }
        self.arguments.add(value)?;
        let number = self.arguments.len();
        let comma = if number == 1 { "" } else { ", " };
        self.sql.extend([comma, name, " => $", &number.to_string()]);
        Ok(())
    }

    pub(crate) fn query(mut self) -> Query {
        self.sql.push(')');
        sqlx::query_with(AssertSqlSafe(self.sql), self.arguments)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Execute as _;

    use super::*;

    fn sql(url: &str) -> String {
        let mut call = Call::of("purge", &PostgresOptions::parse(url).unwrap());
        call.add("p_limit", Some(7_i64)).unwrap();
        call.add("p_state", None::<&str>).unwrap();
        call.add("p_end", Some("x")).unwrap();
        call.query().sql().as_str().to_owned()
    }

    #[test]
    fn arguments_are_named_and_left_out_where_nothing_stays_prepared() {
        assert_eq!(
            sql("postgres://db/orders"),
            "SELECT * FROM stepwell.purge(p_limit => $1, p_state => $2, p_end => $3)"
        );
        assert_eq!(
            sql("postgres://db/orders?schema=jobs&statement-cache-capacity=0"),
            "SELECT * FROM jobs.purge(p_limit => $1, p_end => $2)"
        );
    }
}
