//! The one error type of the crate: what went wrong and the values needed to put it right.

use std::path::PathBuf;

/// Why a tokenizer could not be read, written, trained or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read but does not hold a tokenizer that can be used.
    #[error("`{}`: {problem}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its contents.
        problem: Box<Error>,
    },
    /// A file is larger than any vocabulary.
    #[error("{len} bytes are more than a tokenizer file may have (limit: {limit})")]
    TooLarge {
        /// Size of the file in bytes.
        len: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// The text is not JSON, is cut short, or a field has the wrong type, is missing or is unknown.
    #[error("line {line}, column {column}: {reason}")]
    Json {
        /// Line, counted from 1.
        line: usize,
        /// Column in bytes, counted from 1.
        column: usize,
        /// The parser's complaint.
        reason: String,
    },
    /// Binary data is cut short or does not mean anything.
    #[error("byte {offset} of {part}: {reason}")]
    Malformed {
        /// The file format, or the part of a file.
        part: &'static str,
        /// Where it was noticed, in bytes from the start of the part.
        offset: usize,
        /// What is wrong there.
        reason: String,
    },
    /// tiktoken ranks of no published encoding, which do not say how text is cut.
    #[error(
        "{n_tokens} tiktoken ranks are no published encoding and name no split of the text: name it (--split, or \
         `load_tiktoken`)"
    )]
    UnknownSplit {
        /// Number of ranks in the file.
        n_tokens: usize,
    },
    /// A folder without a tokenizer, or with several.
    #[error("`{}`: {reason}", path.display())]
    InFolder {
        /// The folder.
        path: PathBuf,
        /// What was sought, or what was found.
        reason: String,
    },
    /// Binary data ends too early.
    #[error("byte {offset} of {part}: {reason}")]
    CutShort {
        /// The file format.
        part: &'static str,
        /// Where it was noticed, in bytes from the start.
        offset: usize,
        /// Bytes that the file would need to have, at least.
        needed: u64,
        /// What is missing there.
        reason: String,
    },
    /// The file asks for something that would change ids and that this crate does not do.
    #[error("{part}: {found} is not supported (supported: {supported})")]
    Unsupported {
        /// The field of the file.
        part: &'static str,
        /// What stands there.
        found: String,
        /// What may stand there.
        supported: &'static str,
    },
    /// Two tokens have one id.
    #[error("tokens `{first}` and `{second}` both have id {id}")]
    DuplicateId {
        /// The id.
        id: u32,
        /// The token that came first.
        first: String,
        /// The token that came second.
        second: String,
    },
    /// One token stands twice in the vocabulary, or in two places with different ids.
    #[error("token `{token}` stands twice, with ids {first} and {second}")]
    DuplicateToken {
        /// The token.
        token: String,
        /// Its first id.
        first: u32,
        /// Its second id.
        second: u32,
    },
    /// Ids must be the numbers from 0 up to the number of tokens, each used once.
    #[error("token `{token}` has id {id}, but {n_tokens} tokens have ids 0 to {}", n_tokens.saturating_sub(1))]
    IdOutOfRange {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Number of tokens in the file.
        n_tokens: usize,
    },
    /// No token stands for this byte, so some texts could not be encoded: in tiktoken's ranks, in byte fallback that
    /// needs all bytes, or because only a special token is spelled like it.
    #[error("no token stands for byte {byte:#04x}")]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// A token's spelling means nothing in this kind of vocabulary.
    #[error("token `{token}` (id {id}) {reason}")]
    BadToken {
        /// The token as it is spelled in the file.
        token: String,
        /// Its id.
        id: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A merge rule cannot be applied.
    #[error("merge {merge_idx}, `{left}` + `{right}`: {reason}")]
    BadMerge {
        /// Position in the list of merges, counted from 0.
        merge_idx: usize,
        /// Left token.
        left: String,
        /// Right token.
        right: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A special token that plain text could produce, or that is asked for twice.
    #[error("special token `{token}` {reason}")]
    BadSpecial {
        /// The special token.
        token: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An id that the vocabulary does not have.
    #[error("id {id} is not in the vocabulary of {vocab_size} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// A vocabulary too small for its bytes and special tokens, or too large to number.
    #[error("vocabulary size {asked} is outside {least} to {most}")]
    VocabSize {
        /// The size asked for.
        asked: usize,
        /// The smallest that works: 256 bytes and the special tokens.
        least: usize,
        /// The largest that works.
        most: usize,
    },
    /// A training option that the chosen kind of model would ignore.
    #[error("`{option}` has no meaning for kind `{kind}`")]
    UselessOption {
        /// The option's name.
        option: &'static str,
        /// The kind of model.
        kind: &'static str,
    },
    /// The corpus has more distinct text than positions can be numbered.
    #[error(
        "the corpus has {n_symbols} symbols of distinct pre-tokens (limit: {limit}): train on a part of it"
    )]
    CorpusTooLarge {
        /// Symbols of distinct pre-tokens found.
        n_symbols: u64,
        /// The most that can be numbered.
        limit: u64,
    },
    /// A stream of training text failed or is not UTF-8.
    #[error("the text cannot be read at byte {position}: {source}")]
    Corpus {
        /// Bytes of the stream before the fault.
        position: u64,
        /// What is wrong there.
        source: std::io::Error,
    },
    /// Training needs more memory than it may use.
    #[error(
        "training needs {needed} bytes of memory, but its limit is {limit}: raise the limit or train on less text"
    )]
    MemoryLimit {
        /// Bytes needed, at least.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The caller stopped the work.
    #[error("cancelled")]
    Cancelled,
    /// The tokenizer lacks a special token that the chat format is made of.
    #[error(
        "chat needs the special token `{token}`, which this tokenizer lacks: train one with the chat tokens"
    )]
    MissingSpecial {
        /// The missing token.
        token: &'static str,
    },
    /// A chat template is malformed, fails, or exceeds its bounds.
    #[error("chat template, line {line}: {reason}")]
    Template {
        /// Line of the template, counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A chat template refuses a conversation.
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRefuses {
        /// What the template says.
        message: String,
    },
    /// A model folder without a chat template.
    #[error("there is no `chat_template`: the model was not made to chat, or its template stands elsewhere")]
    NoTemplate,
    /// Nothing tells where an answer ends.
    #[error("neither `eos_token` nor the chat template tells where an answer ends")]
    NoStop,
    /// The template does not let the assistant's text be told from the rest.
    #[error(
        "the chat template has no `{{% generation %}}` and lays message {message_idx} out differently once others \
         follow, so what the assistant said cannot be told: train on conversations that end there, or mark it"
    )]
    NoLossMask {
        /// Position of the assistant's message, counted from 0.
        message_idx: usize,
    },
    /// A conversation that uses all characters that could mark its text.
    #[error("the conversation holds all of U+FDD0 to U+FDEF, which are no characters: remove one")]
    NoFreeSign,
    /// A conversation without a message.
    #[error("a conversation needs at least one message")]
    EmptyConversation,
    /// A message stands where its role may not.
    #[error("message {message_idx} has role `{role}`, but {reason}")]
    MessageOrder {
        /// Position of the message, counted from 0.
        message_idx: usize,
        /// Its role.
        role: &'static str,
        /// The rule it breaks.
        reason: &'static str,
    },
}

impl Error {
    /// The same problem, with the file it was found in.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        Self::InFile { path: path.to_owned(), problem: Box::new(self) }
    }
}
