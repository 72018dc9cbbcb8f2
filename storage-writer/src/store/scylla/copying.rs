//! The mark of a keyspace into which a store is being copied: a row beside the schema's version. While it is there,
//! nobody serves from the keyspace.

use super::connect::{ClusterOptions, keyspace_name};
use super::error::OpenError;
use super::executor::{Executor, Shared};
use super::lease::applied;
use super::tables::TABLES;
use scylla::client::session::Session;
use scylla::response::query_result::QueryResult;
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;
use scylla::value::CqlValue;
use std::time::Duration;

/// The row in `schema_version`; its `holder` names the copy.
const ROW_COPY: &str = "copy";
/// How often a change is sent whose outcome is not known: repeated, it is true or does nothing.
const TRIES: u32 = 5;
/// Before it is sent again; longer each time.
const PAUSE: Duration = Duration::from_millis(200);

/// Fails while a copy into the keyspace is not finished.
pub(super) async fn refuse(session: &Session, options: &ClusterOptions) -> Result<(), OpenError> {
    match mark(session, options).await? {
        None => Ok(()),
        Some(_) => Err(OpenError::Unfinished { keyspace: options.keyspace.clone() }),
    }
}

async fn mark(session: &Session, options: &ClusterOptions) -> Result<Option<Vec<u8>>, OpenError> {
    let text = format!("SELECT holder FROM {}.schema_version WHERE name = ?", keyspace_name(options)?);
    let page = ask(session, options, &text, &[CqlValue::Text(ROW_COPY.to_owned())]).await?;
    let failed = |what: String| failed(options, what);
    let page = page.into_rows_result().map_err(|error| failed(error.to_string()))?;
    let row = page.maybe_first_row::<(Option<Vec<u8>>,)>().map_err(|error| failed(error.to_string()))?;
    Ok(row.map(|(holder,)| holder.unwrap_or_default()))
}

/// Sends a statement until it has an answer, a few times.
async fn ask(
    session: &Session,
    options: &ClusterOptions,
    text: &str,
    values: &[CqlValue],
) -> Result<QueryResult, OpenError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut statement = Statement::new(text);
        // What a transaction changed must be seen; rows of the tables have none.
        if text.starts_with("SELECT holder") {
            statement.set_consistency(Consistency::Serial);
        }
        match session.query_unpaged(statement, values).await {
            Ok(page) => return Ok(page),
            Err(_) if tries < TRIES => tokio::time::sleep(PAUSE * tries).await,
            Err(error) => return Err(failed(options, error.to_string())),
        }
    }
}

fn failed(options: &ClusterOptions, what: String) -> OpenError {
    OpenError::Cluster { action: format!("the mark of an unfinished copy in {}", options.keyspace), what }
}

impl Shared {
    async fn change_mark(&self, options: &ClusterOptions, text: &str, values: &[CqlValue]) -> Result<bool, OpenError> {
        let page = ask(&self.session, options, text, values).await?;
        let page = page.into_rows_result().map_err(|error| failed(options, error.to_string()))?;
        applied(&page).map_err(|error| failed(options, format!("{error:?}")))
    }
}

impl Executor {
    /// The mark of the copy that is not finished.
    pub(crate) fn copy_mark(&self, options: &ClusterOptions) -> Result<Option<Vec<u8>>, OpenError> {
        self.wait_for(async |shared| mark(&shared.session, options).await)
    }

    /// Marks a keyspace that has no mark. False: it has another one.
    pub(crate) fn set_copy_mark(&self, options: &ClusterOptions, new: &[u8]) -> Result<bool, OpenError> {
        let keyspace = keyspace_name(options)?;
        let text = format!("INSERT INTO {keyspace}.schema_version (name, holder) VALUES (?, ?) IF NOT EXISTS");
        let values = [CqlValue::Text(ROW_COPY.to_owned()), CqlValue::Blob(new.to_vec())];
        // One that was repeated after an unknown outcome finds its own mark.
        self.wait_for(async |shared| {
            let applied = shared.change_mark(options, &text, &values).await?;
            Ok(applied || mark(&shared.session, options).await?.as_deref() == Some(new))
        })
    }

    /// A table that has rows, if there is one.
    pub(crate) fn table_with_rows(&self, options: &ClusterOptions) -> Result<Option<&'static str>, OpenError> {
        let keyspace = keyspace_name(options)?;
        self.wait_for(async |shared| {
            for table in TABLES {
                let text = format!("SELECT * FROM {keyspace}.{} LIMIT 1", table.name);
                let page = ask(&shared.session, options, &text, &[]).await?;
                let page = page.into_rows_result().map_err(|error| failed(options, error.to_string()))?;
                if page.rows_num() > 0 {
                    return Ok(Some(table.name));
                }
            }
            Ok(None)
        })
    }

    /// Takes the mark away.
    pub(crate) fn clear_copy_mark(&self, options: &ClusterOptions, old: &[u8]) -> Result<(), OpenError> {
        let keyspace = keyspace_name(options)?;
        let text = format!("DELETE FROM {keyspace}.schema_version WHERE name = ? IF holder = ?");
        let values = [CqlValue::Text(ROW_COPY.to_owned()), CqlValue::Blob(old.to_vec())];
        self.wait_for(async |shared| shared.change_mark(options, &text, &values).await.map(drop))
    }
}
