//! Reads one key set, of bounded size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use axum::body::Body;
use heddle_api::jwk::{Jwk, KeySet, MAX_SET};
use http::header::ACCEPT;
use http::{Request, StatusCode};

use super::KeyPlace;
use crate::https::Client;

/// The keys at a place.
///
/// # Errors
/// Why there are none, for a person.
pub(super) async fn read(client: &Client, place: &KeyPlace) -> Result<Vec<Jwk>, String> {
    let text = match place {
        KeyPlace::Url(url) => fetch(client, url).await?,
        KeyPlace::File(path) => {
            let path = path.clone();
            let text = tokio::task::spawn_blocking(move || file(&path)).await;
            let text = text.map_err(|error| error.to_string())?;
            text.map_err(|error| format!("it cannot be read: {error}"))?
        }
    };
    KeySet::parse(&text).map(|set| set.keys).map_err(|error| format!("it {error}"))
}

async fn fetch(client: &Client, url: &str) -> Result<Vec<u8>, String> {
    let request = Request::get(url).header(ACCEPT, "application/jwk-set+json, application/json");
    let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
    match client.send(request, MAX_SET).await {
        Ok((StatusCode::OK, body)) => Ok(body.into()),
        Ok((status, _)) => Err(format!("it answered {status}")),
        Err(error) => Err(error.to_string()),
    }
}

fn file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // One byte more tells that it is too long.
    File::open(path)?.take(MAX_SET as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}
