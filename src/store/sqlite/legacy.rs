//! Images as the triggers of the version before wrote them, for what it left unsealed: in
//! `sync_image`, 32 values a row, `part` twice the number of such a piece, and 1 more in the image
//! after the change.

use std::collections::HashMap;

use super::changes::Change;
use crate::error::Result;
use crate::store::session::Session;

const PIECE: usize = 32;

/// Gives changes their images, where those lie there.
pub(super) async fn fill(session: &mut Session, changes: &mut [Change]) -> Result<()> {
    let mut legacy = changes.iter_mut().filter(|change| change.legacy);
    let Some(first) = legacy.next() else { return Ok(()) };
    let low = first.seq;
    let high = legacy.last().map_or(low, |change| change.seq);
    let sql = "SELECT * FROM @sync_image WHERE seq BETWEEN $1 AND $2 ORDER BY seq, part";
    let mut images: HashMap<(i64, bool), Vec<_>> = HashMap::new();
    for mut piece in session.query(sql, vec![low.into(), high.into()]).await? {
        let (seq, part) = (piece.int(0)?, piece.int(1)?);
        images.entry((seq, part % 2 == 1)).or_default().extend(piece.0.drain(2..).take(PIECE));
    }
    for change in changes.iter_mut().filter(|change| change.legacy) {
        change.fill(&mut images);
    }
    Ok(())
}
