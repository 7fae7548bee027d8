//! Connections: accepted, made secret if that is wanted, limited in what their handshake and headers may cost, and let
//! finish when the server stops.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::state::State;

/// Bytes of a request's line and headers, and how many headers; beyond it is a 431.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 100;

/// Pause after an accept that failed, as when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long those have to be told who are cut off.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Answers until `stop`, then takes no more requests, and lets those that run end, for as long as the limits allow and until
/// `hurry`; what has not ended then is told so. Returns whether all ended.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    state: Arc<State>,
    stop: impl Future<Output = ()>,
    hurry: impl Future<Output = ()>,
) -> bool {
    let mut http = Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(state.limits.read_time)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    let door = Door { http, tls, router, read_time: state.limits.read_time };
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Tokens are small and wanted at once.
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(door.clone().answer(stream, Some(connections.watcher())));
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
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(door.clone().answer(stream, None))),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    let mut shutdown = std::pin::pin!(connections.shutdown());
    tokio::select! {
        () = &mut shutdown => return true,
        () = tokio::time::sleep(time) => {}
        () = hurry => {}
        () = refuse => unreachable!("it refuses for ever"),
    }
    state.cut();
    let _ = tokio::time::timeout(LAST_WORD, shutdown).await;
    false
}

/// What a connection comes through.
#[derive(Clone)]
struct Door {
    http: Builder,
    tls: Option<TlsAcceptor>,
    router: Router,
    read_time: Duration,
}

impl Door {
    /// Answers a connection until it ends, which is the client's business, or `watcher` says that it is time.
    async fn answer(self, stream: TcpStream, watcher: Option<Watcher>) {
        let Some(tls) = self.tls.clone() else { return self.speak(TokioIo::new(stream), watcher).await };
        if let Ok(Ok(stream)) = tokio::time::timeout(self.read_time, tls.accept(stream)).await {
            self.speak(TokioIo::new(stream), watcher).await;
        }
    }

    async fn speak(self, io: impl Read + Write + Send + Unpin + 'static, watcher: Option<Watcher>) {
        let connection = self.http.serve_connection(io, TowerToHyperService::new(self.router));
        let _ = match watcher {
            Some(watcher) => watcher.watch(connection).await,
            None => connection.await,
        };
    }
}
