//! `init`, `track`, `untrack`.

use serde_json::json;

use super::grammar::{Init, Track, Untrack};
use super::{Context, End};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::books::identity::{self, Made};

pub(crate) async fn init(context: &Context, arguments: &Init) -> Result<End> {
    let store = context.store().await?;
    let (own, made) =
        identity::init(&store, &arguments.nickname, arguments.new_identity, &context.actor).await?;
    let (name, at) = (&own.nickname, store.address());
    let text = match made {
        Made::New => format!(
            "{at} is the server `{name}` now. Next: `branchline track --all`, then `branchline \
             invite NICKNAME` or `branchline join TOKEN`."
        ),
        Made::Kept => format!("{at} is the server `{name}` already; its tables are up to date."),
        Made::Renamed => format!("The server calls itself `{name}` now."),
        Made::Renewed => format!(
            "{at} is another server now, `{name}`, without neighbours. Next: `branchline join TOKEN`."
        ),
    };
    let what = match made {
        Made::New => "new",
        Made::Kept => "kept",
        Made::Renamed => "renamed",
        Made::Renewed => "renewed",
    };
    context.out.both(
        text,
        &json!({
            "uuid": own.server,
            "nickname": own.nickname,
            "incarnation": own.incarnation,
            "tree_id": own.tree_id,
            "identity": what,
        }),
    );
    Ok(End::Done)
}

pub(crate) async fn track(_context: &Context, _arguments: Track) -> Result<End> {
    Err(Error::failed("capture is not built yet"))
}

pub(crate) async fn untrack(_context: &Context, _arguments: Untrack) -> Result<End> {
    Err(Error::failed("capture is not built yet"))
}

/// Classes whose triggers are missing or out of date, a sentence each.
pub(crate) async fn broken_capture(_context: &Context, _store: &Store) -> Result<Vec<String>> {
    Ok(Vec::new())
}
