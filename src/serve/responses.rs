//! `/v1/responses`: a conversation in, a message or calls out, whole or as events that have names. Nothing is stored.

mod input;
mod output;

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Map, Value, json};
use tokenizer::chat::{Message, Role};

use super::answer::{self, Prompt, Settings};
use super::asked::Asked;
use super::chat::Conversation;
use super::constraint;
use super::error::ApiError;
use super::fields::Fields;
use super::models::Served;
use super::state::State;
use super::text::prepared;
use super::tools::{Reading, Tools};
use output::Output;

/// Fields that would need a memory of answers, which this server has not.
const OF_STORES: [&str; 4] = ["previous_response_id", "conversation", "prompt", "background"];

/// Answers a conversation.
pub async fn create(Shared(state): Shared<Arc<State>>, asked: Asked) -> Result<Response, ApiError> {
    let Prepared { settings, prompt, served, body, reading } = prepare(&state, asked).await?;
    let events = settings.submit(&served, std::slice::from_ref(&prompt))?.remove(0);
    let output = Output::new(body, reading.as_ref(), state.clone());
    if settings.stream {
        return Ok(answer::stream(events, 1, output));
    }
    let whole = answer::whole(events, 1, &state).await?.remove(0);
    Ok(Json(output.whole(&whole)).into_response())
}

struct Prepared {
    settings: Settings,
    prompt: Prompt,
    served: Arc<Served>,
    /// What an answer repeats of its request.
    body: Map<String, Value>,
    /// How calls of tools are read, if there can be any.
    reading: Option<Reading>,
}

async fn prepare(state: &Arc<State>, asked: Asked) -> Result<Prepared, ApiError> {
    let state = state.clone();
    prepared(asked, move |asked| {
        let served = asked.decoder()?;
        let Asked { mut fields, model, owner, .. } = asked;
        refuse_stores(&mut fields)?;
        let n_new = fields.whole("max_output_tokens", 1..=u32::MAX.into())?;
        let metadata: Option<Map<String, Value>> = fields.take("metadata")?;
        let user: Option<String> = fields.take("user")?;
        let cache_key: Option<String> = fields.take("prompt_cache_key")?;
        let safety_id: Option<String> = fields.take("safety_identifier")?;
        let instructions: Option<String> = fields.take("instructions")?;
        fields.only("n", &[json!(1)])?;
        fields.only("stream_options", &[json!({}), json!({ "include_obfuscation": false })])?;
        let limit = n_new.map(|n| (n, "max_output_tokens"));
        let settings = Settings::take(&mut fields, limit, &served, &state)?;
        fields.only("max_tool_calls", &[])?;
        let said =
            ["tools", "tool_choice", "parallel_tool_calls", "text"].map(|name| fields.get(name).cloned());
        input::as_chat(&mut fields)?;
        let wanted = constraint::response_format(&mut fields).map_err(input::as_responses)?;
        let wanted = wanted.map(|source| (source, "response_format"));
        let tools = Tools::take(&mut fields).map_err(input::as_responses)?;
        fields.only("truncation", &[json!("disabled")])?;
        fields.only("include", &[json!([])])?;
        fields.only("top_logprobs", &[json!(0)])?;
        fields.only("reasoning", &[json!({})])?;
        let asked_for = fields.need("input")?;
        let mut messages = input::messages(asked_for, &fields)?;
        if let Some(instructions) = &instructions {
            messages.insert(0, Message::new(Role::System, instructions.clone()));
        }
        fields.finish()?;
        let conversation = Conversation::of(&served, messages, tools)?;
        let mut ids = conversation.ids().map_err(|error| error.of("input"))?;
        let held = conversation.grammar(wanted, &mut ids).map_err(input::as_responses)?;
        let (grammar, reading) = held.unzip();
        let mut stop_ids: Vec<u32> = served.tokenizer.eos_id().into_iter().collect();
        stop_ids.extend(served.format.iter().flat_map(|format| format.stop_ids()));
        let prompt = Prompt { ids, field: "input", stop_ids, owner: owner.0, grammar, ..Prompt::default() };
        let [tools, choice, parallel, text] = said;
        let body = json!({
            "tools": tools.unwrap_or_else(|| json!([])),
            "tool_choice": choice.unwrap_or_else(|| "auto".into()),
            "parallel_tool_calls": parallel.unwrap_or(Value::Bool(true)),
            "text": text.unwrap_or_else(|| json!({ "format": { "type": "text" } })),
            "model": model,
            "instructions": instructions,
            "max_output_tokens": n_new,
            "temperature": as_sent(settings.sampling().temperature),
            "top_p": as_sent(settings.sampling().top_p),
            "metadata": metadata.unwrap_or_default(),
            "user": user,
            "prompt_cache_key": cache_key,
            "safety_identifier": safety_id,
        });
        let Value::Object(body) = body else { unreachable!("an object") };
        Ok(Prepared { settings, prompt, served, body, reading: reading.flatten() })
    })
    .await
}

/// A number as the request had it: 0.7, not the nearest number of single precision.
fn as_sent(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// Refuses what needs answers of before, by name.
fn refuse_stores(fields: &mut Fields) -> Result<(), ApiError> {
    for name in OF_STORES {
        match fields.take::<Value>(name)? {
            None => {}
            Some(Value::Bool(false)) if name == "background" => {}
            Some(_) => {
                let why = format!(
                    "`{name}`: this server stores no answers; send the whole conversation in `input` instead"
                );
                return Err(ApiError::invalid(name, why));
            }
        }
    }
    match fields.take::<bool>("store")? {
        Some(true) => fields.refuse("store", "`store`: this server stores no answers: send false".to_owned()),
        _ => Ok(()),
    }
}
