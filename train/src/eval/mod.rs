//! How good a language model is, in numbers that other tools give too.
//!
//! [`perplexity`] measures a text, by the definition of llama.cpp or by that of transformers; [`tasks`] asks questions
//! with known answers and counts as lm-eval does; [`comparison`] says how far one model is from another. All rest on
//! [`likelihood`]: how probable a model finds tokens, given
//! those before them.

pub mod comparison;
pub mod likelihood;
pub mod perplexity;
mod questions;
pub mod tasks;
