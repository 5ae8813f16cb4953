//! Reads what the triggers wrote: changes, and their images from `sync_image`.

use std::collections::HashMap;

use super::image;
use super::triggers::PIECE;
use crate::error::Result;
use crate::store::session::{Cell, Datum, Row, Session};

/// Images by `seq` and whether they are from after the change.
pub(super) type Images = HashMap<(i64, bool), Image>;

/// An image as it was captured. What follows its last column is NULL.
#[derive(Debug, Default)]
pub(super) struct Image(Vec<Cell>);

impl Image {
    /// The list of its first `columns` values, for [`image::decode`].
    pub(super) fn text(&self, columns: usize) -> String {
        image::encode(self.0.get(..columns).unwrap_or(&self.0))
    }
}

/// The first `limit` changes in order: `seq`, `class_id`, `op`, `shape`, NULL, old image, new image,
/// NULL, NULL, `changed_at`. Removes notes, since nobody else is writing.
///
/// # Errors
/// Those of the database.
pub async fn read(session: &mut Session, limit: i64) -> Result<Vec<Row>> {
    session.execute("DELETE FROM @sync_change WHERE op = 5", vec![]).await?;
    let sql = "SELECT c.seq, c.class_id, c.op, c.shape, NULL, NULL, NULL, NULL, NULL, c.changed_at, \
               json_array_length(s.columns) FROM @sync_change c \
               LEFT JOIN @sync_shape s ON s.id = c.shape ORDER BY c.seq LIMIT $1";
    let mut rows = session.query(sql, vec![limit.into()]).await?;
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(rows) };
    let sql = "SELECT * FROM @sync_image WHERE seq BETWEEN $1 AND $2 ORDER BY seq, part";
    let binds = vec![first.int(0)?.into(), last.int(0)?.into()];
    let images = collect(session.query(sql, binds).await?)?;
    for row in &mut rows {
        let seq = row.int(0)?;
        let columns = row.opt_int(10)?.and_then(|count| usize::try_from(count).ok());
        for (cell, after) in [(5, false), (6, true)] {
            if let Some(image) = images.get(&(seq, after))
                && let Some(cell) = row.0.get_mut(cell)
            {
                *cell = Cell::Text(image.text(columns.unwrap_or_default()));
            }
        }
    }
    Ok(rows)
}

/// The images of some changes.
pub(super) async fn images_of(session: &mut Session, seqs: Vec<i64>) -> Result<Images> {
    let sql = "SELECT * FROM @sync_image WHERE seq IN (SELECT value FROM json_each($1)) \
               ORDER BY seq, part";
    collect(session.query(sql, vec![Datum::Ints(seqs)]).await?)
}

fn collect(pieces: Vec<Row>) -> Result<Images> {
    let mut images = Images::new();
    for mut piece in pieces {
        let (seq, part) = (piece.int(0)?, piece.int(1)?);
        let image = images.entry((seq, part % 2 == 1)).or_default();
        image.0.extend(piece.0.drain(2..).take(PIECE));
    }
    Ok(images)
}
