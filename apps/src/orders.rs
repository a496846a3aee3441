//! Knows the orders; HTTP. Asks `users` by gRPC for whom they are.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::get;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::users::v1::GetRequest;
use crate::users::v1::users_client::UsersClient;

type Failure = (StatusCode, String);

async fn of_user(
    State(mut users): State<UsersClient<Channel>>,
    Path(user): Path<String>,
) -> Result<Json<Value>, Failure> {
    let user = users.get(GetRequest { id: user }).await.map_err(failure)?.into_inner();
    Ok(Json(json!({
        "user": user.name,
        "orders": [{"id": format!("{}-1", user.id), "item": "heddle"}, {"id": format!("{}-2", user.id), "item": "shuttle"}],
        "servedBy": {"orders": std::process::id(), "users": user.served_by},
    })))
}

fn failure(status: tonic::Status) -> Failure {
    let code = match status.code() {
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        _ => StatusCode::BAD_GATEWAY,
    };
    (code, format!("users: {}\n", status.message()))
}

/// Serves until SIGTERM; `users` is the URL of the users service.
///
/// # Errors
/// If the address cannot be listened on or the URL is none.
pub async fn run(address: SocketAddr, users: String) -> anyhow::Result<()> {
    let users = UsersClient::new(Endpoint::from_shared(users)?.connect_lazy());
    let router = Router::new()
        .route("/orders/{user}", get(of_user))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(users);
    crate::serve(address, router).await
}
