//! One renderer of conversations, for any template and tokenizer.
//!
//! The template's text becomes ids in three steps. It is rendered with the caller's strings marked by characters that
//! occur nowhere else ([`Marks`]); special tokens are found where no mark interrupts them; the rest loses its marks and
//! is encoded as plain text. So untrusted text gives the ids of plain text and nothing else.
//!
//! What the assistant says is known from `{% generation %}` where a template has it. Else it is the difference between
//! the conversation before a turn, with the prompt to generate, and after it; a template that lays out earlier turns
//! differently once later ones follow gives no such difference, and [`Error::NoLossMask`] says so.

use std::ops::Range;
use std::time::SystemTime;

use super::jinja::Marks;
use super::json::Json;
use super::message::{Message, Role};
use super::special::SpecialTokens;
use super::template::{ChatTemplate, Inputs, RenderedText};
use super::{END_OF_TURN, JINJA, MARKED_JINJA};
use crate::{Error, Tokenizer};

/// What the marks are taken from: characters that Unicode keeps free for a program's own use.
const SIGNS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// A conversation as ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The ids of the whole conversation.
    pub ids: Vec<u32>,
    /// For each id, whether a model is to learn to say it: the assistant's contents and the ends of its turns.
    pub loss_mask: Vec<bool>,
}

/// A conversation with all that a template may be given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// The conversation.
    pub messages: &'a [Message],
    /// Schemas of the tools that the assistant may call.
    pub tools: &'a [Json],
    /// Documents to answer from.
    pub documents: &'a [Json],
    /// Further variables of the template, such as `enable_thinking`.
    pub kwargs: &'a [(String, Json)],
    /// Whether the ids are to end with the start of the assistant's next turn.
    pub add_generation_prompt: bool,
    /// Whether the loss mask is wanted. Without, it is false everywhere.
    pub learn: bool,
    /// The moment that the template is told, in seconds since 1970; the clock's without.
    pub now: Option<i64>,
}

/// A chat template with the special tokens of one tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatFormat {
    template: ChatTemplate,
    /// `bos_token` and the like.
    names: Vec<(String, String)>,
    stop_ids: Vec<u32>,
    /// Whether this is our own layout, whose order of roles is checked.
    own: bool,
    special: SpecialTokens,
}

impl ChatFormat {
    /// Our own layout.
    ///
    /// # Errors
    /// [`Error::MissingSpecial`] names the first special token that `tokenizer` lacks.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, Error> {
        for token in [Role::System.token(), Role::User.token(), Role::Assistant.token(), END_OF_TURN] {
            tokenizer.special_id(token).ok_or(Error::MissingSpecial { token })?;
        }
        let stop_ids = tokenizer.special_id(END_OF_TURN).into_iter().collect();
        let template = ChatTemplate::new(MARKED_JINJA)?;
        Ok(Self { template, names: Vec::new(), stop_ids, own: true, special: SpecialTokens::of(tokenizer) })
    }

    /// A template, with the special tokens that it knows by name: `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// [`Error::NoStop`] if neither `eos_token` nor the template tells where an answer ends.
    pub fn with_template(
        tokenizer: &Tokenizer,
        template: ChatTemplate,
        names: Vec<(String, String)>,
    ) -> Result<Self, Error> {
        let mut format =
            Self { template, names, stop_ids: Vec::new(), own: false, special: SpecialTokens::of(tokenizer) };
        format.stop_ids = format.find_stops(tokenizer);
        if format.stop_ids.is_empty() {
            return Err(Error::NoStop);
        }
        Ok(format)
    }

    /// The Jinja source of the template, as model folders have it.
    pub fn source(&self) -> &str {
        if self.own { JINJA } else { self.template.source() }
    }

    /// The id that ends a turn, at which generation stops: the first of [`ChatFormat::stop_ids`].
    pub fn stop_id(&self) -> u32 {
        self.stop_ids.first().copied().unwrap_or_default()
    }

    /// The ids at which generation stops: what the template puts after the assistant's content, and `eos_token`.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The ids of a conversation. With `add_generation_prompt` they end with the start of the assistant's next turn, and
    /// the loss mask is false unless the template marks the assistant's text itself: such a conversation is to be
    /// answered, not learned. `tokenizer` must be the one that the format was made from.
    ///
    /// # Errors
    /// [`Error::EmptyConversation`]; [`Error::MessageOrder`] where in our own layout a role stands out of turn: system
    /// comes first or not at all, then user and assistant alternate, user first, and a generation prompt answers a user;
    /// [`Error::Template`] and [`Error::TemplateRefuses`]; [`Error::NoLossMask`].
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, Error> {
        let learn = !add_generation_prompt || self.template.marks_generation();
        self.render_request(
            tokenizer,
            &Request { messages, add_generation_prompt, learn, ..Request::default() },
        )
    }

    /// The ids of a conversation with tools, documents and further variables.
    ///
    /// # Errors
    /// Those of [`ChatFormat::render`].
    pub fn render_request(&self, tokenizer: &Tokenizer, request: &Request<'_>) -> Result<Rendered, Error> {
        if request.messages.is_empty() {
            return Err(Error::EmptyConversation);
        }
        if self.own {
            check_order(request.messages, request.add_generation_prompt)?;
        }
        let inputs = self.inputs(request);
        let marks = self.marks(&inputs)?;
        let (rendered, fuel) = self.template.render_marked(&inputs, Some(marks.clone()), None)?;
        let spans = match (request.learn, self.template.marks_generation(), rendered.unmarkable) {
            (false, ..) => Vec::new(),
            (true, true, None) => rendered.generated,
            (true, true, Some(line)) => {
                let reason =
                    "`generation` inside a macro or a block of `set`, `call` or `filter` gives no loss mask";
                return Err(Error::Template { line, reason: reason.to_owned() });
            }
            (true, false, _) => self.spoken(request, inputs, &marks, &rendered.text, fuel)?,
        };
        Ok(self.encode(tokenizer, &rendered.text, &spans, &marks))
    }

    /// The text of a conversation, as other programs render it.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn render_text(&self, request: &Request<'_>) -> Result<RenderedText, Error> {
        self.template.render(&self.inputs(request))
    }

    fn inputs(&self, request: &Request<'_>) -> Inputs {
        let list = |items: &[Json]| if items.is_empty() { Json::Null } else { Json::List(items.to_vec()) };
        let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Inputs {
            messages: Json::List(request.messages.iter().map(Message::to_json).collect()),
            tools: list(request.tools),
            documents: list(request.documents),
            add_generation_prompt: request.add_generation_prompt,
            special: self.names.clone(),
            kwargs: request.kwargs.to_vec(),
            now: request.now.unwrap_or_else(|| i64::try_from(clock()).unwrap_or_default()),
        }
    }

    /// Marks that occur neither in the inputs nor in the template.
    fn marks(&self, inputs: &Inputs) -> Result<Marks, Error> {
        let mut free: Vec<char> = SIGNS.collect();
        // All signs begin with the same two bytes of UTF-8, which are rare: most texts are passed over at once.
        let mut take = |text: &str| {
            if text.contains(|c| SIGNS.contains(&c)) {
                free.retain(|&sign| !text.contains(sign));
            }
        };
        take(self.template.source());
        self.template.literals().for_each(&mut take);
        self.names.iter().for_each(|(_, token)| take(token));
        self.special.texts().for_each(&mut take);
        for json in [&inputs.messages, &inputs.tools, &inputs.documents] {
            json.for_each_str(&mut take);
        }
        inputs.kwargs.iter().for_each(|(_, json)| json.for_each_str(&mut take));
        let firsts = self.special.firsts().to_vec();
        match free[..] {
            [begin, after, ..] => Ok(Marks { begin, after, firsts }),
            _ => Err(Error::NoFreeSign),
        }
    }

    /// The bytes of `text` that are the assistant's, from what each of its turns adds. Each turn is rendered twice, so
    /// the work grows with the square of the turns; `fuel` bounds it.
    fn spoken(
        &self,
        request: &Request<'_>,
        mut inputs: Inputs,
        marks: &Marks,
        text: &str,
        mut fuel: u64,
    ) -> Result<Vec<Range<usize>>, Error> {
        let Json::List(messages) = std::mem::replace(&mut inputs.messages, Json::Null) else {
            return Ok(Vec::new());
        };
        let mut render = |inputs: &Inputs| {
            let (rendered, left) = self.template.render_marked(inputs, Some(marks.clone()), Some(fuel))?;
            fuel = left;
            Ok(rendered.text)
        };
        let mut spans = Vec::new();
        inputs.messages = Json::List(Vec::with_capacity(messages.len()));
        for (message_idx, (message, json)) in request.messages.iter().zip(messages).enumerate() {
            let is_last = message_idx + 1 == request.messages.len();
            let before = match message.role {
                Role::Assistant => {
                    inputs.add_generation_prompt = true;
                    Some(render(&inputs)?)
                }
                _ => None,
            };
            if let Json::List(so_far) = &mut inputs.messages {
                so_far.push(json);
            }
            let Some(before) = before else { continue };
            inputs.add_generation_prompt = false;
            // The whole conversation has been rendered before.
            let after =
                if is_last && !request.add_generation_prompt { text.to_owned() } else { render(&inputs)? };
            if !after.starts_with(&before) || !text.starts_with(&after) {
                return Err(Error::NoLossMask { message_idx });
            }
            spans.push(before.len()..after.len());
        }
        Ok(spans)
    }

    /// The ids of marked text. Those that overlap `spans` are to be learned.
    fn encode(&self, tokenizer: &Tokenizer, text: &str, spans: &[Range<usize>], marks: &Marks) -> Rendered {
        let mut rendered = Rendered::default();
        let mut spans = spans.iter().filter(|span| !span.is_empty()).peekable();
        let mut plain = String::new();
        // For each byte of `plain` its place in `text`.
        let mut places = Vec::new();
        let mut push = |id: u32, range: Range<usize>, rendered: &mut Rendered| {
            while spans.next_if(|span| span.end <= range.start).is_some() {}
            let learn = spans.peek().is_some_and(|span| span.start < range.end);
            rendered.ids.push(id);
            rendered.loss_mask.push(learn);
        };
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let special = self.special_at(rest, marks);
            if let Some(c) = rest.chars().next().filter(|&c| special.is_none() && !marks.is_sign(c)) {
                places.extend(at..at + c.len_utf8());
                plain.push(c);
            }
            let len = special.map_or_else(|| rest.chars().next().map_or(1, char::len_utf8), |(len, _)| len);
            at += len;
            if special.is_some() || at == text.len() {
                for (id, range) in tokenizer.encode_section(&plain, rendered.ids.is_empty()) {
                    let start = places.get(range.start).copied().unwrap_or(at);
                    let end = places.get(range.end.saturating_sub(1)).map_or(at, |place| place + 1);
                    push(id, start..end, &mut rendered);
                }
                plain.clear();
                places.clear();
            }
            if let Some((len, id)) = special {
                push(id, at - len..at, &mut rendered);
            }
        }
        rendered
    }

    /// The length and id of the longest special token that `text` begins with.
    fn special_at(&self, text: &str, marks: &Marks) -> Option<(usize, u32)> {
        let (token, id) = self.special.find(text)?;
        // A token of a single character has no inside for a sign: the sign follows it.
        let is_caller_s = token.chars().nth(1).is_none() && text[token.len()..].starts_with(marks.after);
        (!is_caller_s).then_some((token.len(), id))
    }

    /// Where answers end: `eos_token`, and the special token that follows the content of an answer.
    fn find_stops(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        const ANSWER: &str = "flint-answer";
        let ask = Message::new(Role::User, "flint-question");
        let messages = [ask, Message::new(Role::Assistant, ANSWER)];
        let request = Request { messages: &messages, now: Some(0), ..Request::default() };
        // A template that refuses this simplest conversation tells nothing, and `eos_token` must do.
        let text = self.render_text(&request).map(|rendered| rendered.text).unwrap_or_default();
        let after = text.rfind(ANSWER).map_or("", |at| text[at + ANSWER.len()..].trim_start());
        let named =
            |name: &str| self.names.iter().find(|(found, _)| found == name).map(|(_, token)| token.as_str());
        let end = self.special.find(after).map(|(_, id)| id);
        let eos = named("eos_token").and_then(|token| tokenizer.special_id(token)).or(tokenizer.eos_id());
        let mut stops: Vec<u32> = end.into_iter().chain(eos).collect();
        stops.dedup();
        stops
    }
}

/// Checks that every message stands where its role may in our own layout.
fn check_order(messages: &[Message], add_generation_prompt: bool) -> Result<(), Error> {
    let mut prev = None;
    for (message_idx, message) in messages.iter().enumerate() {
        let role = message.role;
        let extras = !message.tool_calls.is_empty() || message.reasoning_content.is_some();
        let reason = match (prev, role) {
            (_, Role::Tool | Role::Developer) => "the built-in chat format has no such role",
            _ if extras => "the built-in chat format has no tool calls and no reasoning",
            (Some(_), Role::System) => "`system` may only come first",
            (Some(Role::User), Role::User) => "after `user` it must be `assistant`",
            (None | Some(Role::System | Role::Assistant), Role::Assistant) => {
                "`assistant` must answer `user`"
            }
            _ => {
                prev = Some(role);
                continue;
            }
        };
        return Err(Error::MessageOrder { message_idx, role: role.name(), reason });
    }
    match prev {
        None => Err(Error::EmptyConversation),
        Some(role) if add_generation_prompt && role != Role::User => Err(Error::MessageOrder {
            message_idx: messages.len() - 1,
            role: role.name(),
            reason: "a generation prompt must follow `user`",
        }),
        Some(_) => Ok(()),
    }
}
