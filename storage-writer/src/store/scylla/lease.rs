//! The row of the lease: serial reads and lightweight transactions. Who asks when is decided in
//! `storage_core::cql::lease`.

use super::error::classify;
use super::executor::{AskResult, Shared};
use scylla::response::query_result::QueryRowsResult;
use scylla::value::{CqlValue, Row as AnyRow};
use std::time::Instant;
use storage_core::cql::lease::{LeaseAnswer, LeaseAsk, LeaseKey, LeaseRow};
use storage_core::cql::rows::StatementError;

impl Shared {
    /// An unknown outcome is an answer, and never asked again here.
    pub(super) async fn ask(&self, set: u16, ask: &LeaseAsk) -> AskResult {
        let begun = Instant::now();
        let result = match ask {
            LeaseAsk::Read => self.lease_row(set).await.map(LeaseAnswer::Row),
            LeaseAsk::Cas { expected, new } => self.lease_change(set, expected.as_ref(), new).await,
        };
        self.metrics.lease(begun.elapsed(), result.as_ref().err());
        match result {
            Err(StatementError::Unknown(text)) => Ok(LeaseAnswer::Unknown(text)),
            other => other,
        }
    }

    async fn lease_row(&self, set: u16) -> Result<Option<LeaseRow>, StatementError> {
        let values = (CqlValue::SmallInt(set as i16),);
        let page = self.session.execute_unpaged(&self.prepared.lease.read, values).await;
        let page = page.map_err(|error| classify(&error))?.into_rows_result();
        decode(&page.map_err(|error| StatementError::Refused(error.to_string()))?)
    }

    async fn lease_change(
        &self,
        set: u16,
        expected: Option<&LeaseKey>,
        new: &LeaseRow,
    ) -> Result<LeaseAnswer, StatementError> {
        let set_id = CqlValue::SmallInt(set as i16);
        let lease = &self.prepared.lease;
        let sent = match expected {
            None => {
                let values: Vec<CqlValue> = std::iter::once(set_id).chain(values(new)).collect();
                self.session.execute_unpaged(&lease.create, values).await
            }
            Some(LeaseKey { writer_epoch, holder, renewal }) => {
                let key = [number(*writer_epoch), holder_value(*holder), number(*renewal)];
                let values: Vec<CqlValue> = values(new).into_iter().chain([set_id]).chain(key).collect();
                self.session.execute_unpaged(&lease.change, values).await
            }
        };
        let page = sent.map_err(|error| classify(&error))?.into_rows_result();
        if applied(&page.map_err(|error| StatementError::Refused(error.to_string()))?)? {
            return Ok(LeaseAnswer::Applied);
        }
        // Cassandra tells the columns of the condition only.
        self.lease_row(set).await.map(LeaseAnswer::NotApplied)
    }
}

/// The first column of what a lightweight transaction answers; which others there are differs.
pub(super) fn applied(page: &QueryRowsResult) -> Result<bool, StatementError> {
    let row = page.first_row::<AnyRow>().map_err(|error| StatementError::Refused(error.to_string()))?;
    match row.columns.first() {
        Some(Some(CqlValue::Boolean(applied))) => Ok(*applied),
        _ => Err(StatementError::Refused("the answer to a lightweight transaction is none".to_owned())),
    }
}

fn number(number: u64) -> CqlValue {
    CqlValue::BigInt(number as i64)
}

fn holder_value(holder: u128) -> CqlValue {
    CqlValue::Blob(holder.to_be_bytes().to_vec())
}

/// In the order of the table's columns.
fn values(row: &LeaseRow) -> [CqlValue; 6] {
    [
        number(row.writer_epoch),
        holder_value(row.holder),
        number(row.renewal),
        CqlValue::Int(i32::from(row.worker)),
        CqlValue::Int(row.lease_ms as i32),
        CqlValue::Text(row.address.clone()),
    ]
}

fn decode(page: &QueryRowsResult) -> Result<Option<LeaseRow>, StatementError> {
    let row = page
        .maybe_first_row::<(i64, &[u8], i64, i32, i32, String)>()
        .map_err(|error| StatementError::Damaged(format!("the row of the lease: {error}")))?;
    let Some((writer_epoch, holder, renewal, worker, lease_ms, address)) = row else { return Ok(None) };
    let damaged = |what: &str| StatementError::Damaged(format!("the row of the lease: {what}"));
    Ok(Some(LeaseRow {
        writer_epoch: writer_epoch as u64,
        holder: u128::from_be_bytes(holder.try_into().map_err(|_| damaged("its holder has not 16 bytes"))?),
        renewal: renewal as u64,
        worker: u16::try_from(worker).map_err(|_| damaged("its worker is no worker"))?,
        lease_ms: lease_ms as u32,
        address,
    }))
}
