//! `/tokenize`, `/detokenize` and `/apply-template`.

use std::sync::LazyLock;
use std::thread::available_parallelism;

use axum::response::{IntoResponse, Json, Response};
use serde_json::json;
use tokenizer::EncodeOptions;
use tokio::sync::Semaphore;

use super::asked::Asked;
use super::error::ApiError;
use super::{chat, constraint};

/// Requests that are worked on at a time: as many as the machine has threads. Those that bring a grammar, which may take
/// seconds, do so among themselves, so that nobody else waits for them.
static PLAIN: LazyLock<Semaphore> = LazyLock::new(places);
static WITH_GRAMMAR: LazyLock<Semaphore> = LazyLock::new(places);

fn places() -> Semaphore {
    Semaphore::new(n_places())
}

fn n_places() -> usize {
    available_parallelism().map_or(1, |n| n.get()).max(2)
}

/// Threads that all places together need. More would each keep some of the memory that their work took.
pub fn n_threads() -> usize {
    2 * n_places()
}

/// Runs what may take longer than a network event may, once there is a thread's worth of time for it.
///
/// # Errors
/// Those of the work; if it panics, an internal error.
pub async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    in_turn(&PLAIN, work).await
}

/// The same of a request, which may bring a grammar.
///
/// # Errors
/// Those of the work; if it panics, an internal error.
pub async fn prepared<T: Send + 'static>(
    asked: Asked,
    work: impl FnOnce(Asked) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let places = if constraint::is_wanted(&asked.fields) { &WITH_GRAMMAR } else { &PLAIN };
    in_turn(places, move || work(asked)).await
}

async fn in_turn<T: Send + 'static>(
    places: &'static Semaphore,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let place = places.acquire().await.map_err(|_| ApiError::internal())?;
    let work = move || {
        // Whoever hangs up meanwhile gives the place back when the work is done, not before.
        let _place = place;
        work()
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ApiError::internal()))
}

/// Ids of a text.
pub async fn tokenize(asked: Asked) -> Result<Response, ApiError> {
    off_the_loop(move || {
        let (vocabulary, context) = asked.vocabulary();
        let mut fields = asked.fields;
        let text: String = fields.need("prompt")?;
        let options = EncodeOptions {
            add_special: fields.take("add_special_tokens")?.unwrap_or(true),
            parse_special: fields.take("parse_special")?.unwrap_or(false),
        };
        fields.finish()?;
        let ids = vocabulary.encode_with(&text, options);
        Ok(Json(json!({
            "tokens": ids, "count": ids.len(), "max_model_len": context,
        }))
        .into_response())
    })
    .await
}

/// The text of ids.
pub async fn detokenize(asked: Asked) -> Result<Response, ApiError> {
    off_the_loop(move || {
        let (vocabulary, _) = asked.vocabulary();
        let mut fields = asked.fields;
        let ids: Vec<u32> = fields.need("tokens")?;
        fields.finish()?;
        let text = vocabulary.decode(&ids);
        let text = text.map_err(|error| ApiError::invalid("tokens", error.to_string()))?;
        Ok(Json(json!({ "prompt": text })).into_response())
    })
    .await
}

/// The prompt that a conversation becomes.
pub async fn apply_template(asked: Asked) -> Result<Response, ApiError> {
    off_the_loop(move || {
        let served = asked.decoder()?;
        let mut fields = asked.fields;
        let conversation = chat::Conversation::take(&served, &mut fields)?;
        fields.finish()?;
        Ok(Json(json!({ "prompt": conversation.text()?, "tokens": conversation.ids()? })).into_response())
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_more_is_worked_on_than_there_are_places_even_if_nobody_waits_for_it() {
        static PLACES: Semaphore = Semaphore::const_new(2);
        let (n_running, n_most, n_done) = <[Arc<AtomicUsize>; 3]>::default().into();
        let work = || {
            let (n_running, n_most, n_done) = (n_running.clone(), n_most.clone(), n_done.clone());
            move || {
                n_most.fetch_max(1 + n_running.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
                n_running.fetch_sub(1, Ordering::SeqCst);
                n_done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        };
        let all: Vec<_> = (0..40).map(|_| tokio::spawn(in_turn(&PLACES, work()))).collect();
        for (i, one) in all.into_iter().enumerate() {
            // Every fourth hangs up, at whatever point it is.
            if i % 4 == 0 {
                one.abort();
            } else {
                one.await.expect("no panic").expect("done");
            }
        }
        assert!((30..=40).contains(&n_done.load(Ordering::SeqCst)));
        assert_eq!(n_most.load(Ordering::SeqCst), 2);
        let panics = in_turn::<()>(&PLACES, || panic!("a fault")).await.expect_err("caught").body();
        assert_eq!(panics["error"]["type"], "server_error");
        // What was given up while it ran still runs.
        let begin = std::time::Instant::now();
        while PLACES.available_permits() < 2 {
            assert!(begin.elapsed() < Duration::from_secs(20), "a panic gives its place back");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
