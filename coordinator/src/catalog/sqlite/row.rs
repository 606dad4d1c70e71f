//! From database columns to Rust types and back, checked.
//!
//! Owns the conversions only. Invariant: a value that does not fit is [`CatalogError::Unreadable`], never cut off.

use holdfast_common::clock::Timestamp;
use sqlx::{Row as _, sqlite::SqliteRow};

use super::super::CatalogError;

/// An unsigned number as the database keeps it. What does not fit is kept as the largest: only sizes and times that
/// cannot occur are that large.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A column as it is.
pub(super) fn text(row: &SqliteRow, column: &'static str) -> Result<String, CatalogError> {
    Ok(row.try_get(column)?)
}

/// A column that may be empty.
pub(super) fn optional_text(row: &SqliteRow, column: &'static str) -> Result<Option<String>, CatalogError> {
    Ok(row.try_get(column)?)
}

/// Bytes of any length.
pub(super) fn bytes(row: &SqliteRow, column: &'static str) -> Result<Vec<u8>, CatalogError> {
    Ok(row.try_get(column)?)
}

/// Bytes of exactly `N`.
pub(super) fn array<const N: usize>(row: &SqliteRow, column: &'static str) -> Result<[u8; N], CatalogError> {
    let found = bytes(row, column)?;
    let length = found.len();
    found.try_into().map_err(|_| unreadable(column, format!("{length} bytes")))
}

/// An id that may be missing.
pub(super) fn optional_id(row: &SqliteRow, column: &'static str) -> Result<Option<[u8; 16]>, CatalogError> {
    match row.try_get::<Option<Vec<u8>>, _>(column)? {
        None => Ok(None),
        Some(_) => array(row, column).map(Some),
    }
}

/// A time.
pub(super) fn time(row: &SqliteRow, column: &'static str) -> Result<Timestamp, CatalogError> {
    Ok(Timestamp(row.try_get(column)?))
}

/// A time that may be missing.
pub(super) fn optional_time(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<Timestamp>, CatalogError> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp))
}

/// An unsigned number of any width.
pub(super) fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &'static str) -> Result<T, CatalogError> {
    let value: i64 = row.try_get(column)?;
    T::try_from(value).map_err(|_| unreadable(column, value))
}

/// An unsigned number that may be missing.
pub(super) fn optional_number(row: &SqliteRow, column: &'static str) -> Result<Option<u64>, CatalogError> {
    match row.try_get::<Option<i64>, _>(column)? {
        None => Ok(None),
        Some(value) => u64::try_from(value).map(Some).map_err(|_| unreadable(column, value)),
    }
}

/// One of an enum's texts.
pub(super) fn parsed<T>(
    row: &SqliteRow,
    column: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, CatalogError> {
    let value = text(row, column)?;
    parse(&value).ok_or_else(|| unreadable(column, value))
}

/// A list of texts kept as JSON.
pub(super) fn texts(row: &SqliteRow, column: &'static str) -> Result<Vec<String>, CatalogError> {
    json(row, column)
}

/// Anything kept as JSON.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<T, CatalogError> {
    let value = text(row, column)?;
    serde_json::from_str(&value).map_err(|error| unreadable(column, error))
}

/// A value kept as JSON; its default if there is none.
pub(super) fn optional_json<T: Default + serde::de::DeserializeOwned>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<T, CatalogError> {
    let Some(value) = optional_text(row, column)? else { return Ok(T::default()) };
    serde_json::from_str(&value).map_err(|error| unreadable(column, error))
}

fn unreadable(what: &'static str, value: impl ToString) -> CatalogError {
    CatalogError::Unreadable { what, value: value.to_string() }
}
