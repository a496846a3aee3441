//! What a customer sees; HTTP. Asks `orders` for its content.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::get;
use reqwest::Client;
use serde_json::{Value, json};

#[derive(Clone)]
struct Shop {
    client: Client,
    orders: String,
}

async fn account(
    State(shop): State<Shop>,
    Path(user): Path<String>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let broken = |error: reqwest::Error| (StatusCode::BAD_GATEWAY, format!("orders: {error}\n"));
    let url = format!("{}/orders/{user}", shop.orders);
    let response = shop.client.get(url).send().await.map_err(broken)?;
    let status = response.status();
    if !status.is_success() {
        return Err((status, response.text().await.map_err(broken)?));
    }
    let orders: Value = response.json().await.map_err(broken)?;
    Ok(Json(json!({"shop": "Heddle & Daughters", "account": orders, "servedBy": std::process::id()})))
}

/// Serves until SIGTERM; `orders` is the URL of the orders service.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn run(address: SocketAddr, orders: String) -> anyhow::Result<()> {
    let shop = Shop { client: Client::new(), orders };
    let router = Router::new()
        .route("/", get(|shop| account(shop, Path("1".to_owned()))))
        .route("/account/{user}", get(account))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(shop);
    crate::serve(address, router).await
}
