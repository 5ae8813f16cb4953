//! Databases of a test's own, gone when it ends.

use branchline::store::postgres::databases;

/// Makes databases of one kind.
pub(crate) struct Databases {
    folder: tempfile::TempDir,
    postgres: Option<String>,
    made: Vec<String>,
}

impl Databases {
    /// On the PostgreSQL server that the tests use.
    pub(crate) fn postgres() -> Self {
        Self::on(Some(super::services::postgres_url().to_owned()))
    }

    /// SQLite files.
    pub(crate) fn sqlite() -> Self {
        Self::on(None)
    }

    fn on(postgres: Option<String>) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), postgres, made: Vec::new() }
    }

    /// An empty database, by its URL.
    pub(crate) async fn make(&mut self, name: &str) -> String {
        let Some(url) = self.postgres.clone() else {
            let path = self.folder.path().join(format!("{name}.db"));
            std::fs::File::create_new(&path).unwrap();
            return format!("sqlite:{}", path.display());
        };
        let name = self.name(name);
        databases::create(&url, &name)
            .await
            .unwrap_or_else(|error| panic!("`{name}` cannot be made: {error:?}"));
        let made = databases::renamed(&url, &name);
        self.made.push(name);
        made
    }

    /// A copy of one that was made here and that nobody is connected to.
    pub(crate) async fn copy(&mut self, from: &str, to: &str) -> String {
        let Some(url) = self.postgres.clone() else {
            let (from, to) =
                [from, to].map(|name| self.folder.path().join(format!("{name}.db"))).into();
            // The connections that were dropped close on a thread of their own.
            let wal = from.with_extension("db-wal");
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while wal.exists() {
                assert!(std::time::Instant::now() < deadline, "the database does not close");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            std::fs::copy(&from, &to).unwrap();
            return format!("sqlite:{}", to.display());
        };
        let (from, to) = (self.name(from), self.name(to));
        self.made.push(to.clone());
        databases::copy(&url, &from, &to).await.unwrap();
        databases::renamed(&url, &to)
    }

    fn name(&self, name: &str) -> String {
        let folder = self.folder.path().file_name().unwrap().to_string_lossy();
        format!("bl_test_{}_{name}", folder.trim_start_matches('.')).to_lowercase()
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        let Some(url) = self.postgres.take() else { return };
        let made = std::mem::take(&mut self.made);
        // A test ends inside its runtime, where nothing can be waited for.
        let _ = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                for name in made {
                    let _ = databases::drop(&url, &name).await;
                }
            });
        })
        .join();
    }
}
