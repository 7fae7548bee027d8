//! `flint serve`: loads models, each on an engine of its own, and answers.

mod source;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use infer::engine::{self, Paged};
use infer::worker::{self, Size};
use infer::{Engine, encoding};
use model::backend::Job;
use model::{FusedOps, Pool};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Common;
use crate::args::LoraArgs;
use crate::serve::{self, Accounts, Encoder, Limits, Loaded, Models, Served, State};
use crate::{args, config, guessing, loading};
use source::{Parts, Source};

/// How long a request waits for its model: less than the minute after which proxies give up.
const LOAD_TIME: Duration = Duration::from_secs(50);

pub fn run(args: args::Serve, common: Common) -> Result<ExitCode> {
    let file = args.config.as_deref().map(config::read::<serve::Config>).transpose()?;
    let config = file.unwrap_or_default().with(args);
    config.validate()?;
    let (sources, budget) = source::all(&config, common)?;
    let accounts = config.keys.as_deref().map(Accounts::read).transpose()?.unwrap_or_default();
    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => Some(serve::acceptor(cert, key)?),
        _ => None,
    };
    #[cfg(feature = "otlp")]
    let collector = config.otlp.as_deref().map(serve::Collector::new).transpose()?;
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into(), config.host.to_string()];
    hosts.extend(config.host_name.iter().cloned());
    let limits = Limits {
        body: config.max_body << 10,
        choices: 16,
        read_time: Duration::from_secs(10),
        load_time: LOAD_TIME,
        drain_time: Duration::from_secs(config.drain),
        log: !common.quiet,
        is_lenient: config.lenient,
    };
    let (wanted, to_load) = unbounded_channel();
    let all = sources.iter().map(|source| source.model.clone()).collect();
    let models = Models::new(all, budget, config.queue.max(1), wanted);
    let state = State::new(models, Arc::new(accounts), hosts, limits);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(serve::n_threads())
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let server = Server {
        config,
        sources,
        state,
        tls,
        common,
        #[cfg(feature = "otlp")]
        collector,
    };
    runtime.block_on(server.answer(to_load))
}

struct Server {
    config: serve::Config,
    sources: Vec<Source>,
    state: Arc<State>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    common: Common,
    #[cfg(feature = "otlp")]
    collector: Option<serve::Collector>,
}

impl Server {
    /// Answers at once that models are being loaded, loads them, and goes on until a signal comes.
    async fn answer(self, to_load: UnboundedReceiver<usize>) -> Result<ExitCode> {
        let Self { config, sources, state, tls, common, .. } = self;
        let address = SocketAddr::new(config.host, config.port);
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address}"))?;
        let address = listener.local_addr().context("cannot tell the port")?;
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (send_failure, mut failure) = unbounded_channel();
        let loader = Loader { sources, config, state: state.clone(), common, send_failure };
        tokio::spawn(loader.load(to_load));
        state.models.begin();
        let scheme = if tls.is_some() { "https" } else { "http" };
        common.note(&format!("listening at {scheme}://{address}/v1"));
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
        let is_drained = serve::serve(listener, tls, router, state.clone(), stop, next_signal()).await;
        if let Some(error) = failed {
            return Err(error);
        }
        if !is_drained {
            common.note("some answers were cut off");
        }
        #[cfg(feature = "otlp")]
        if let Some(collector) = self.collector {
            collector.finish();
        }
        // Engines are in the middle of steps whose results nobody wants.
        std::process::exit(0);
    }
}

/// Comes back when the program is told to stop from now on, which is when it is first asked.
async fn next_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Gives each model that is wanted a thread.
struct Loader {
    sources: Vec<Source>,
    config: serve::Config,
    state: Arc<State>,
    common: Common,
    send_failure: UnboundedSender<Error>,
}

impl Loader {
    async fn load(self, mut wanted: UnboundedReceiver<usize>) {
        while let Some(i) = wanted.recv().await {
            let Self { sources, config, state, common, send_failure } = &self;
            let load = Load { i, source: sources[i].clone(), config: config.clone(), state: state.clone() };
            let is_alone = sources.len() == 1;
            let failed = {
                let (state, send_failure) = (state.clone(), send_failure.clone());
                move |error: Error| match state.models.failed(i) {
                    true => crate::output::error(&error),
                    // Nobody waits for it if the server is ending already.
                    false => drop(send_failure.send(error)),
                }
            };
            let (common, state, on_thread) = (*common, state.clone(), failed.clone());
            // An engine's thread: it loads the model, and works until the model has to go.
            let spawned = std::thread::Builder::new().name(format!("engine-{i}")).spawn(move || {
                let work = || match is_alone {
                    // On a thread of the pool, for the reason that `commands::run` gives. Several engines would wait for
                    // each other there.
                    true => rayon::scope(|_| common.on_backend(load)),
                    false => common.on_backend(load),
                };
                let ran = catch_unwind(AssertUnwindSafe(work));
                match ran.unwrap_or_else(|_| Err(anyhow!("loading panicked: the message is above"))) {
                    Ok(()) => state.models.gone(i),
                    Err(error) => on_thread(error),
                }
            });
            if let Err(error) = spawned {
                failed(anyhow!("cannot start a thread for the model `{}`: {error}", sources[i].model.id));
            }
        }
    }
}

struct Load {
    i: usize,
    source: Source,
    config: serve::Config,
    state: Arc<State>,
}

impl Job for Load {
    type Output = Result<()>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<()> {
        let Self { i, source, config, state } = self;
        let id = &source.model.id;
        let begin = std::time::Instant::now();
        let ready = |loaded: Loaded| {
            if state.limits.log {
                let ms = begin.elapsed().as_millis() as u64;
                crate::output::log(&serde_json::json!({ "loaded": id, "ms": ms }));
            }
            state.models.put(i, loaded);
        };
        let ran = match &source.parts {
            Parts::Encoder(path) => {
                let (embedder, _) = loading::embedder::<B>(path, &device)?;
                let (client, worker) = encoding::pair(config.queue);
                let (reader, n_embd) = (embedder.reader().clone(), embedder.n_embd());
                ready(Loaded::Encoder(Arc::new(Encoder { reader, n_embd, client })));
                worker.run(&embedder)
            }
            Parts::Decoder { path, lora } => {
                let tokenizer = loading::tokenizer(path)?;
                let format = loading::chat_format(path, &tokenizer).map_err(|error| format!("{error:#}"));
                let lora = LoraArgs { lora: lora.iter().map(|folder| (folder.clone(), 1.0)).collect() };
                let model = match lora.lora.is_empty() {
                    true => loading::model::<B>(path, &device)?,
                    false => loading::with_adapters(weights_of::<B>(path, &device)?, &lora)?,
                };
                let guess = config.guess();
                let draft = match &guess {
                    Some(guess) => guessing::load::<B>(guess, &tokenizer, &device)?,
                    None => None,
                };
                let (shape, context, kind) = (model.config(), source.model.context, config.cache.kind());
                let pool = Pool::<B>::new(shape, kind, source.n_pages, context, &device);
                let (n_pages, vocab_size, n_waiting) = (source.n_pages, shape.vocab_size, config.queue);
                let (client, worker) = worker::pair(Size { context, n_pages, vocab_size, n_waiting });
                let n_running = usize::from(config.parallel);
                let limits = engine::Limits { n_running, ..engine::Limits::default() };
                let engine = Engine::new(Paged::new(&model, pool), limits);
                let engine = match guess {
                    Some(_) => {
                        engine.speculating(guessing::speculation(draft.as_ref(), kind, n_pages, context))
                    }
                    None => engine,
                };
                let grammars = serve::Grammars::default();
                ready(Loaded::Decoder(Arc::new(Served { tokenizer, format, client, grammars })));
                worker.run(engine)
            }
        };
        ran.map_err(|panic| anyhow!("the engine of `{id}` stopped: {panic}"))
    }
}

/// All weights in float32, as an adapter can be added to.
fn weights_of<B: FusedOps>(path: &std::path::Path, device: &B::Device) -> Result<model::Transformer<B>> {
    model::weights::load(path, device).context("cannot open the model")
}
