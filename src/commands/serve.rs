//! `flint serve`: loads models, each on an engine of its own, and answers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use infer::Engine;
use infer::engine::{self, Paged};
use infer::worker::{self, Size};
use model::backend::Job;
use model::pool::PAGE;
use model::{FusedOps, Pool};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::Common;
use crate::serve::{self, Limits, Served, State};
use crate::{args, loading};

/// Positions of a sequence, unless more are asked for: few need what some models could attend to.
const MAX_CONTEXT: usize = 8192;

pub fn run(args: args::Serve, common: Common) -> Result<ExitCode> {
    let models = args.models.iter().map(|model| named(model)).collect::<Result<Vec<_>>>()?;
    for (i, (name, _)) in models.iter().enumerate() {
        if models[..i].iter().any(|(other, _)| other == name) {
            bail!("two models are named `{name}`: give one another name, as in NAME=PATH");
        }
    }
    let keys = args.keys.as_deref().map(keys).transpose()?.unwrap_or_default();
    if !args.host.is_loopback() && keys.is_empty() && !args.no_keys {
        bail!(
            "{} can be reached from other machines: give --keys, or say --no-keys to let everybody in",
            args.host
        );
    }
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into(), args.host.to_string()];
    hosts.extend(args.host_names.iter().cloned());
    let limits = Limits {
        body: args.max_body << 10,
        choices: 16,
        read_time: Duration::from_secs(10),
        drain_time: Duration::from_secs(args.drain),
        log: !common.quiet,
    };
    let state = State::new(models.iter().map(|(name, _)| name.clone()), keys, hosts, limits);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    runtime.block_on(answer(args, models, state, common))
}

/// `NAME=PATH`, or a path, whose last part is the name.
fn named(model: &str) -> Result<(String, PathBuf)> {
    let (name, path) = match model.split_once('=') {
        Some((name, path)) if !name.contains(std::path::MAIN_SEPARATOR) => (Some(name), path),
        _ => (None, model),
    };
    let path = loading::model_path(Path::new(path))?;
    let of_path = || {
        let stem = if path.is_file() { path.file_stem() } else { path.file_name() };
        stem.map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
    };
    match name.map_or_else(of_path, str::to_owned) {
        name if name.is_empty() => bail!("`{model}` has no name before the `=`"),
        name => Ok((name, path)),
    }
}

/// One key a line: a name and the SHA-256 of the key in hexadecimal digits.
fn keys(path: &Path) -> Result<Vec<(String, [u8; 32])>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let key = |(i, line): (usize, &str)| {
        let parsed = line.split_once(char::is_whitespace).and_then(|(name, hash)| {
            let hash = hash.trim();
            let byte = |i: usize| u8::from_str_radix(hash.get(2 * i..2 * i + 2)?, 16).ok();
            let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
            Some((name.to_owned(), bytes.filter(|_| hash.len() == 64)?.try_into().ok()?))
        });
        parsed.ok_or_else(|| {
            anyhow!(
                "{}, line {}: must be a name and the SHA-256 of a key in 64 hexadecimal digits",
                path.display(),
                i + 1
            )
        })
    };
    let keys = lines.map(key).collect::<Result<Vec<_>>>()?;
    if keys.is_empty() {
        bail!("{} has no key", path.display());
    }
    Ok(keys)
}

/// Answers at once that models are being loaded, loads them, and goes on until a signal comes.
async fn answer(
    args: args::Serve,
    models: Vec<(String, PathBuf)>,
    state: Arc<State>,
    common: Common,
) -> Result<ExitCode> {
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address}"))?;
    let address = listener.local_addr().context("cannot tell the port")?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (send_failure, mut failure) = tokio::sync::mpsc::unbounded_channel();
    for (name, path) in models {
        let load = Load { name, path, args: args.clone(), state: state.clone() };
        let send_failure = send_failure.clone();
        // An engine's thread: it loads the model, and works for as long as the server lives.
        std::thread::spawn(move || {
            if let Err(error) = common.on_backend(load) {
                let _ = send_failure.send(error);
            }
        });
    }
    common.note(&format!("listening at http://{address}/v1"));
    let mut failed = None;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            error = failure.recv() => failed = error,
        }
        common.note("stopping: answers that have begun are finished");
    };
    let router = serve::router(state.clone());
    let is_drained = tokio::select! {
        is_drained = serve::serve(listener, router, state.clone(), stop) => is_drained,
        () = second_signal() => false,
    };
    if let Some(error) = failed {
        return Err(error);
    }
    if !is_drained {
        common.note("some answers were cut off");
    }
    // Engines are in the middle of steps whose results nobody wants.
    std::process::exit(0);
}

/// Comes back when the program is told to stop for the second time.
async fn second_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    for _ in 0..2 {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

struct Load {
    name: String,
    path: PathBuf,
    args: args::Serve,
    state: Arc<State>,
}

impl Job for Load {
    type Output = Result<()>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<()> {
        let Self { name, path, args, state } = self;
        let tokenizer = loading::tokenizer(&path)?;
        let format = loading::chat_format(&path, &tokenizer).map_err(|error| format!("{error:#}"));
        let model = loading::model::<B>(&path, &device)?;
        let config = model.config();
        let context = args.context.map_or(MAX_CONTEXT, |n| n as usize).min(config.context);
        let kind = args.cache.kind();
        let page_bytes = Pool::<B>::page_bytes(config, kind);
        let n_running = usize::from(args.parallel);
        let memory = args.cache_memory.map_or_else(|| free_memory() / 4, |mib| mib << 20);
        // More than all sequences at their longest would never be used but for beginnings.
        let n_pages = (memory / page_bytes).min(2 * n_running * context.div_ceil(PAGE));
        if n_pages < 2 {
            bail!(
                "{} MiB hold not even two pages of {} KiB: raise --cache-memory",
                memory >> 20,
                page_bytes >> 10
            );
        }
        let context = context.min(n_pages * PAGE);
        let pool = Pool::<B>::new(config, kind, n_pages, context, &device);
        let size = Size { context, n_pages, vocab_size: config.vocab_size, n_waiting: args.queue };
        let (client, worker) = worker::pair(size);
        let limits = engine::Limits { n_running, ..engine::Limits::default() };
        let created = serve::now();
        state.put(Served { id: name, created, tokenizer, format, client });
        let engine = Engine::new(Paged::new(&model, pool), limits);
        worker.run(engine).map_err(|panic| anyhow!("the engine stopped: {panic}"))
    }
}

/// Bytes that programs can still take.
fn free_memory() -> usize {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    system.available_memory() as usize
}
