//! Whole databases, made, copied and dropped: for the demo and for tests.

use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};

use super::from_diesel;
use crate::error::{Error, Result};
use crate::store::session::{literal, quote};
use crate::store::without_password;

/// Makes the empty database `name` on the server that `url` leads to.
pub async fn create(url: &str, name: &str) -> Result<()> {
    run(url, &format!("CREATE DATABASE {}", quote(name))).await
}

/// Makes the database `name` as a copy of `from`, closing all connections to that.
pub async fn copy(url: &str, from: &str, name: &str) -> Result<()> {
    let kick = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}",
        literal(from)
    );
    run(url, &kick).await?;
    run(url, &format!("CREATE DATABASE {} TEMPLATE {}", quote(name), quote(from))).await
}

/// Drops the database `name`, if it is there, and whoever is connected to it.
pub async fn drop(url: &str, name: &str) -> Result<()> {
    run(url, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote(name))).await
}

async fn run(url: &str, sql: &str) -> Result<()> {
    let mut connection = AsyncPgConnection::establish(url).await.map_err(|error| {
        Error::unreachable(format!("cannot connect to the database `{}`", without_password(url)))
            .with_source(error)
    })?;
    connection.batch_execute(sql).await.map_err(from_diesel)
}

/// `url` with another database's name.
#[must_use]
pub fn renamed(url: &str, name: &str) -> String {
    let (place, parameters) = match url.split_once('?') {
        Some((place, parameters)) => (place, Some(parameters)),
        None => (url, None),
    };
    let start = place.find("://").map_or(0, |at| at + 3);
    let host =
        place.get(start..).and_then(|rest| rest.find('/')).map_or(place.len(), |at| start + at);
    let host = place.get(..host).unwrap_or(place);
    match parameters {
        Some(parameters) => format!("{host}/{name}?{parameters}"),
        None => format!("{host}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gets_another_database() {
        assert_eq!(renamed("postgres://u:p@h:1/x", "y"), "postgres://u:p@h:1/y");
        assert_eq!(renamed("postgres://h", "y"), "postgres://h/y");
        assert_eq!(renamed("postgres:///x?host=/run", "y"), "postgres:///y?host=/run");
    }
}
