//! The dashboard's style, script and icon.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use sha2::{Digest as _, Sha256};

use crate::app::App;

const STYLE: &str = include_str!("../assets/style.css");
const SCRIPT: &str = include_str!("../assets/live.js");
pub(super) const ICON: &str = include_str!("../assets/icon.svg");

/// Returns a digest of the files, which lets browsers cache them for good.
pub(super) fn version() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| hex::encode(&Sha256::digest([STYLE, SCRIPT].concat())[..6]));
    &VERSION
}

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/assets/style.css", get(async || file("text/css; charset=utf-8", STYLE)))
        .route("/assets/live.js", get(async || file("text/javascript; charset=utf-8", SCRIPT)))
        .route("/assets/icon.svg", get(async || file("image/svg+xml", ICON)))
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    (
        [
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
        ],
        text,
    )
}
