//! Asking the trained model questions whose answers are known.

use std::ops::ControlFlow;

use infer::{Sampler, Sampling, Session};
use model::{FusedOps, Transformer};
use serde::Serialize;
use tokenizer::Tokenizer;
use tokenizer::chat::{ChatFormat, Message, Role};

use crate::config::{DataConfig, Documents, ExamConfig};
use crate::data::source;
use crate::error::Error;

/// A question, what was expected and what came.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The user's last message.
    pub question: String,
    /// What the file says.
    pub expected: String,
    /// What the model says, greedily.
    pub answer: String,
}

impl Answer {
    /// Whether the answer is the expected text, character for character.
    pub fn is_exact(&self) -> bool {
        self.answer == self.expected
    }
}

/// All answers of one file.
#[derive(Clone, Debug, Serialize)]
pub struct Sheet {
    /// The file.
    pub name: String,
    /// Number of questions.
    pub n_questions: usize,
    /// Number of exact answers.
    pub n_exact: usize,
    /// In order.
    #[serde(skip)]
    pub answers: Vec<Answer>,
}

/// Asks every question of every file, greedily, each in a fresh conversation.
///
/// # Errors
/// If a file cannot be read, a conversation does not end with an answer, or the model cannot go on.
pub fn hold<B: FusedOps>(
    config: &ExamConfig,
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Sheet>, Error> {
    let format = ChatFormat::new(tokenizer)?;
    let mut session = Session::new(model, model.config().context).with_vocabulary(tokenizer.vocab_size());
    let mut sheets = Vec::new();
    for path in &config.paths {
        let data = DataConfig {
            paths: vec![path.clone()],
            extensions: Vec::new(),
            documents: Documents::Files,
            max_bytes: 0,
            valid_fraction: 0.0,
        };
        let mut answers = Vec::new();
        for source in source::find(&data)?.0 {
            for messages in source::conversations(&source)? {
                answers.push(ask(&messages, &source.name(), &format, tokenizer, &mut session)?);
            }
        }
        let n_exact = answers.iter().filter(|a| a.is_exact()).count();
        sheets.push(Sheet { name: path.clone(), n_questions: answers.len(), n_exact, answers });
    }
    Ok(sheets)
}

fn ask<B: FusedOps>(
    messages: &[Message],
    name: &str,
    format: &ChatFormat,
    tokenizer: &Tokenizer,
    session: &mut Session<'_, B>,
) -> Result<Answer, Error> {
    let Some((Message { role: Role::Assistant, content, .. }, asked)) = messages.split_last() else {
        return Err(Error::Data(format!("{name}: an exam's conversations end with the assistant's answer")));
    };
    let prompt = format.render(tokenizer, asked, true)?.ids;
    let mut greedy = Sampler::new(Sampling::greedy()).expect("greedy is a valid setting");
    let room = session.context();
    let generated =
        session.generate(&prompt, room, &[format.stop_id()], &mut greedy, |_| ControlFlow::Continue(()))?;
    Ok(Answer {
        question: asked.last().map(|m| m.content.clone()).unwrap_or_default(),
        expected: content.clone(),
        answer: tokenizer.decode(&generated.ids)?,
    })
}
