//! Connections: accepted, limited in what their headers may cost, and let finish when the server stops.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use super::state::State;

/// Bytes of a request's line and headers, and how many headers; beyond it is a 431.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 100;

/// Pause after an accept that failed, as when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers until `stop`, then takes no more requests, lets those that run end, for as long as the limits allow, and
/// returns whether they did.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    state: Arc<State>,
    stop: impl Future<Output = ()>,
) -> bool {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(state.limits.read_time)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Tokens are small and wanted at once.
                    let _ = stream.set_nodelay(true);
                    let service = TowerToHyperService::new(router.clone());
                    let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
                    // How a connection ends is the client's business.
                    tokio::spawn(async { connection.await.ok() });
                }
                Err(error) => {
                    crate::output::note(&format!("cannot accept a connection: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = &mut stop => break,
        }
    }
    state.drain();
    let time = state.limits.drain_time;
    // New connections are still answered, that the server is stopping.
    let refuse = async {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(router.clone());
            let connection = http.serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async { connection.await.ok() });
        }
    };
    tokio::select! {
        () = connections.shutdown() => true,
        () = tokio::time::sleep(time) => false,
        () = refuse => false,
    }
}
