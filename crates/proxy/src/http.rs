//! HTTP.
use crate::{Egress, connection::Connection, socket::Socket};
pub(crate) async fn run<E: Egress>(_c: &Connection<E>, _client: Socket, _bytes: Vec<u8>) {}
