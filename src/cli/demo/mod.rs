//! stub
use super::grammar::{Demo, Global};
use super::{Context, End};
use crate::error::{Error, Result};
pub(crate) async fn demo(_context: &Context, _global: &Global, _arguments: &Demo) -> Result<End> {
    Err(Error::failed("not built"))
}
