//! Types for the stores that a simulated history opens.

use std::sync::Arc;

use stepwell_core::{BoxFuture, Runtime, Store, StoreError};

/// A function that opens a store on a clock.
pub(super) type Open = Arc<dyn Fn(Arc<dyn Runtime>) -> Opening + Send + Sync>;
pub(super) type Opening = BoxFuture<'static, Result<Arc<dyn Store>, StoreError>>;
