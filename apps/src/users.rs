//! Knows the users; gRPC.

use std::net::SocketAddr;

use tonic::transport::Server;
use tonic::{Request, Response, Status};

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub(crate) mod v1 {
    tonic::include_proto!("shop.users.v1");
}

use v1::users_server::{Users, UsersServer};
use v1::{GetRequest, User};

const NAMES: [&str; 5] = ["Ada", "Grace", "Edsger", "Barbara", "Tony"];

struct Directory;

#[tonic::async_trait]
impl Users for Directory {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<User>, Status> {
        let id = request.into_inner().id;
        let number: usize =
            id.parse().map_err(|_| Status::invalid_argument(format!("user id {id:?} is no number")))?;
        let name =
            NAMES.get(number.wrapping_sub(1)).ok_or_else(|| Status::not_found(format!("no user {id}")))?;
        Ok(Response::new(User { id, name: (*name).to_owned(), served_by: std::process::id() }))
    }
}

/// Serves until SIGTERM.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn run(address: SocketAddr) -> anyhow::Result<()> {
    Server::builder()
        .add_service(UsersServer::new(Directory))
        .serve_with_shutdown(address, crate::terminated())
        .await?;
    Ok(())
}
