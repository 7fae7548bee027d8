//! The command line: verbs and flags as plain values.

mod quantize;
mod sampling;
mod tokenizer;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use model::backend::Kind;
use quant::Format;
use serde::{Deserialize, Serialize};

use crate::commands::Common;

pub use quantize::{Quantize, Wanted};
pub use sampling::{BeamArgs, SamplingArgs};
pub use tokenizer::{
    Color, CorpusArgs, DocumentKind, SpecialArgs, SplitArgs, Tokenizer, TokenizerDecode, TokenizerEncode,
    TokenizerEval, TokenizerInspect, TokenizerTrain, VocabularyKind,
};

/// Train, run and serve language models on your own machine.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,

    /// Threads to use [default: all cores]
    #[arg(short, long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,

    /// Where to compute: cuda, wgpu, flex or ndarray [default: the fastest usable]
    #[arg(long, global = true, value_name = "NAME")]
    pub backend: Option<Kind>,

    /// No progress and no notes on stderr, only errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Train a model by a config
    Train(Train),
    /// Say what follows from a config, before anything runs
    Plan(Plan),
    /// Continue a text
    Generate(Generate),
    /// Talk to a model
    Chat(Chat),
    /// Measure a model: perplexity of a text, questions with known answers
    Eval(Eval),
    /// Turn texts into vectors
    Embed(Embed),
    /// Write the logits of a sequence of token ids
    Logits(Logits),
    /// Write a model in another format, and check that it is still the same
    Convert(Convert),
    /// Write a model in fewer bits, and report what that costs
    Quantize(Quantize),
    /// Answer many at once over HTTP, by OpenAI's interface
    Serve(Serve),
    /// Say what a model is made of and what memory it needs
    Inspect(Inspect),
    /// Fetch a model from the Hugging Face hub
    Pull(Pull),
    /// Train and use tokenizers
    #[command(subcommand)]
    Tokenizer(Tokenizer),
    /// Measure speed and memory
    Bench(Bench),
    /// Say which backends work here, and what the machine has
    Doctor(Doctor),
}

/// A run config and changes to it.
#[derive(Debug, ClapArgs)]
pub struct Config {
    /// Config file: RON, or JSON, YAML or TOML by its extension
    pub config: PathBuf,

    /// Change a key, as in `train.lr=1e-3` or `data.paths=["src"]`; may be repeated
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

/// Where the time goes.
#[derive(Debug, ClapArgs)]
pub struct ProfileArgs {
    /// Time every operation: a table by kind and by layer on stderr, and a trace of them all in FILE [default:
    /// flint-profile.json]
    ///
    /// The file opens in chrome://tracing and in Perfetto, and is replaced if it is there. "own" is the time of an
    /// operation without those inside it, "each" that of all its calls in one phase, such as one token. Timing costs
    /// about as much as the table says at its end, and a GPU is waited for after each operation.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "flint-profile.json")]
    pub profile: Option<PathBuf>,
}

/// `flint train`
#[derive(Debug, ClapArgs)]
pub struct Train {
    #[command(flatten)]
    pub config: Config,

    /// Continue the run in its folder from its newest whole checkpoint
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,

    /// Replace the run in its folder
    #[arg(long)]
    pub overwrite: bool,

    /// Plain lines instead of the dashboard
    #[arg(long)]
    pub plain: bool,

    /// The outcome as JSON on stdout
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// `flint plan`
#[derive(Debug, ClapArgs)]
pub struct Plan {
    #[command(flatten)]
    pub config: Config,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Adapters that are added to a model.
#[derive(Debug, ClapArgs)]
pub struct LoraArgs {
    /// Add a LoRA adapter, multiplied by a factor if given; may be repeated
    #[arg(long, value_name = "FOLDER[=FACTOR]", value_parser = lora)]
    pub lora: Vec<(PathBuf, f64)>,
}

fn lora(text: &str) -> Result<(PathBuf, f64), String> {
    let Some((folder, factor)) = text.rsplit_once('=') else { return Ok((text.into(), 1.0)) };
    let number = factor.parse().ok().filter(|number: &f64| number.is_finite());
    number.map(|number| (folder.into(), number)).ok_or_else(|| format!("`{factor}` is not a number"))
}

/// What the model sees of a long text.
#[derive(Debug, ClapArgs)]
pub struct ContextArgs {
    /// Tokens that the model sees at once, at most its own context
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,

    /// What to do when the context is full
    #[arg(long, value_enum, default_value_t = WhenFull::Refuse, value_name = "WHAT")]
    pub when_full: WhenFull,

    /// Tokens at the front that `--when-full evict` keeps [default: 4]
    #[arg(long, value_name = "N")]
    pub sinks: Option<u32>,

    /// How keys and values are stored: 16 and 8 bits take a half and a good quarter of the memory, and round
    #[arg(long, value_enum, default_value_t = CacheKind::F32, value_name = "KIND")]
    pub cache: CacheKind,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheKind {
    /// As they are computed
    F32,
    /// In half precision
    F16,
    /// In 8 bits with a scale for each row of a head
    Q8,
}

impl CacheKind {
    /// For the model.
    pub fn kind(self) -> model::cache::Kind {
        match self {
            Self::F32 => model::cache::Kind::F32,
            Self::F16 => model::cache::Kind::F16,
            Self::Q8 => model::cache::Kind::Q8,
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }
}

/// What to do when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// End, and refuse a prompt that does not fit
    Refuse,
    /// Forget the oldest quarter and read the rest again
    Slide,
    /// Drop the oldest from the cache but for the sinks, so that memory and time per token stay the same for ever
    Evict,
}

impl ContextArgs {
    /// For the session.
    pub fn when_full(&self) -> infer::WhenFull {
        match self.when_full {
            WhenFull::Refuse => infer::WhenFull::Refuse,
            WhenFull::Slide => infer::WhenFull::Slide,
            WhenFull::Evict => infer::WhenFull::Evict { n_sink: self.sinks.unwrap_or(4) as usize },
        }
    }

    /// Tells the user which of these flags have no effect.
    pub fn say_what_is_ignored(&self, config: &model::Config, common: Common) {
        if let Some(asked) = self.context.filter(|&n| n as usize > config.context) {
            common.note(&format!(
                "--context {asked} is more than the model's {}, which are used",
                config.context
            ));
        }
        if self.sinks.is_some() && self.when_full != WhenFull::Evict {
            common.note("--sinks has a meaning with `--when-full evict` only");
        }
    }
}

/// What the text must be: one of these at most.
///
/// Only tokens with which it can still be that are picked, and only such that it is whole within -n tokens; if -n is less
/// than the shortest text has, that is an error.
#[derive(Debug, ClapArgs)]
#[group(multiple = false)]
pub struct GrammarArgs {
    /// The text is a JSON object
    #[arg(long)]
    pub json_object: bool,

    /// The text is JSON as the schema in FILE says
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,

    /// The text as a whole matches a regular expression
    #[arg(long, value_name = "RE", allow_hyphen_values = true)]
    pub regex: Option<String>,

    /// The text follows the grammar in FILE, in Lark's notation, from its rule `start`
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
}

/// `flint generate`
#[derive(Debug, ClapArgs)]
pub struct Generate {
    /// Model or run folder, or GGUF file
    pub model: PathBuf,

    #[command(flatten)]
    pub lora: LoraArgs,

    /// Text to continue; `-` reads it from stdin
    #[arg(short, long, allow_hyphen_values = true)]
    pub prompt: String,

    /// Put the prompt to the model as a user's message
    #[arg(long)]
    pub chat: bool,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub grammar: GrammarArgs,

    #[command(flatten)]
    pub beam: BeamArgs,

    /// Guess tokens and check several at once, which gives the same text sooner: from the text itself (`lookup`), or by a
    /// smaller model of the same vocabulary
    #[arg(long, value_name = "lookup|MODEL")]
    pub speculate: Option<String>,

    #[command(flatten)]
    pub context: ContextArgs,

    /// Text, ids and timings as JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// `flint chat`
#[derive(Debug, ClapArgs)]
pub struct Chat {
    /// Model or run folder, or GGUF file
    pub model: PathBuf,

    #[command(flatten)]
    pub lora: LoraArgs,

    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub context: ContextArgs,
}

/// `flint eval`
///
/// Perplexity is the exponential of the mean negative log-likelihood of a text's tokens; how the text is cut is part of
/// the number. By default it is cut as llama.cpp's `llama-perplexity` does: into windows of --context tokens side by
/// side, of which the second half is scored, each beginning with the tokenizer's first token where it has one; what is
/// left at the end is dropped. With --stride it is cut as in transformers' guide to perplexity: windows of --context
/// tokens, each --stride further, of which is scored what the one before did not reach; a window's mean weighs its new
/// tokens less one.
///
/// Tasks are files of JSON lines with the fields of the published data sets: LAMBADA {text}, HellaSwag {ctx, endings,
/// label}, ARC {question, choices, answerKey}, PIQA {goal, sol1, sol2, label}, WinoGrande {sentence, option1, option2,
/// answer}. They are laid out and counted as lm-eval does without examples: `acc` by the sum of a choice's
/// log-likelihoods, `acc_norm` by that sum per character.
#[derive(Debug, ClapArgs)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Eval {
    /// Model or run folder
    pub model: PathBuf,

    /// Perplexity of this text; `-` reads stdin
    #[arg(long, value_name = "FILE", group = "what")]
    pub ppl: Option<PathBuf>,

    /// Tokens of a window [default: 512 or the model's context if that is less; with --stride the model's context]
    #[arg(long, value_name = "N", requires = "ppl")]
    pub context: Option<usize>,

    /// Sliding windows, each so many tokens further
    #[arg(long, value_name = "N", requires = "ppl")]
    pub stride: Option<usize>,

    /// Ask the questions in NAME.jsonl of the folder --data
    #[arg(long, value_name = "NAME,NAME,…", value_delimiter = ',', group = "what", requires = "data")]
    pub tasks: Vec<String>,

    /// Folder with the files of --tasks
    #[arg(long, value_name = "DIR", requires = "tasks")]
    pub data: Option<PathBuf>,

    /// At most so many questions of each task, the first ones [default: all]
    #[arg(long, value_name = "N", requires = "tasks")]
    pub limit: Option<usize>,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `flint embed`
#[derive(Debug, ClapArgs)]
pub struct Embed {
    /// Folder of an encoder
    pub model: PathBuf,

    /// Text, or with --jsonl a file; without it or with `-` stdin is read
    #[arg(value_name = "INPUT", allow_hyphen_values = true)]
    pub input: Option<String>,

    /// Each line is a text as a JSON string, and its vector a line of JSON
    #[arg(long)]
    pub jsonl: bool,

    /// The vector as JSON, with the number of tokens
    #[arg(long, conflicts_with = "jsonl")]
    pub json: bool,
}

/// `flint pull`
///
/// Files are verified by the hashes that the hub names, and the folder appears when all are there; an interrupted pull
/// goes on where it ended. Environment: HF_ENDPOINT is another server that speaks the hub's protocol, HF_TOKEN a token
/// for private models.
#[derive(Debug, ClapArgs)]
pub struct Pull {
    /// Repository: OWNER/NAME
    pub repo: String,

    /// Folder to make [default: models/NAME]
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Only this file, for instance a GGUF; may be repeated [default: config, tokenizer and safetensors]
    #[arg(long, value_name = "NAME")]
    pub file: Vec<String>,

    /// Branch, tag or commit
    #[arg(long, default_value = "main", value_name = "REVISION")]
    pub revision: String,

    /// What was fetched as JSON
    #[arg(long)]
    pub json: bool,
}

/// `flint logits`
#[derive(Debug, ClapArgs)]
pub struct Logits {
    /// Model or run folder, or GGUF file
    pub model: PathBuf,

    #[command(flatten)]
    pub lora: LoraArgs,

    /// Token ids
    #[arg(long, value_delimiter = ',', required = true, value_name = "ID,ID,…")]
    pub ids: Vec<u32>,

    /// NumPy file to write: float32 [positions, vocabulary]
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
}

/// What a model can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// A folder in the Hugging Face layout
    Safetensors,
    /// One file, as llama.cpp has it
    Gguf,
}

impl FileFormat {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "gguf",
        }
    }
}

/// `flint convert`
#[derive(Debug, ClapArgs)]
pub struct Convert {
    /// Model or run folder, or GGUF file
    pub model: PathBuf,

    #[command(flatten)]
    pub lora: LoraArgs,

    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub to: FileFormat,

    /// How to write matrices: f32, f16 or bf16, in a GGUF also q8_0, q4_0 and other blocks [default: as they are, F32
    /// if they are blocks]
    #[arg(long, value_name = "TYPE", value_parser = number_format)]
    pub dtype: Option<Format>,

    /// Folder or file to write, which must not be there yet
    #[arg(short, long, value_name = "PATH")]
    pub out: PathBuf,

    /// The outcome as JSON
    #[arg(long)]
    pub json: bool,
}

fn number_format(name: &str) -> Result<Format, String> {
    Format::from_name(name).ok_or_else(|| {
        let known: Vec<_> = Format::ALL.iter().map(|format| format.name().to_lowercase()).collect();
        format!("choose one of {}", known.join(", "))
    })
}

/// `flint inspect`
#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// Model or run folder, or GGUF file
    pub model: PathBuf,

    /// Tokens to plan memory for [default: the model's context, at most 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,

    /// Sequences side by side to plan memory for
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,

    /// How keys and values are stored
    #[arg(long, value_enum, default_value_t = CacheKind::F32, value_name = "KIND")]
    pub cache: CacheKind,

    /// List all tensors
    #[arg(long)]
    pub tensors: bool,

    /// Load the model, fill the context, and say how much memory that took
    #[arg(long)]
    pub measure: bool,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `flint bench`
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Bench {
    #[command(subcommand)]
    pub verb: Option<BenchVerb>,

    #[command(flatten)]
    pub model: BenchModel,
}

/// `flint bench MODEL`
///
/// Reads prompts and generates tokens with a model, without sampling and without text, and compares with what this machine
/// can do at most, which is measured too. Threads are set by -t.
#[derive(Debug, ClapArgs)]
pub struct BenchModel {
    /// Model folder, run folder or GGUF file
    #[arg(required = true)]
    pub model: Option<PathBuf>,

    /// Tokens of a prompt; several are measured one after the other, 0 measures none
    #[arg(short, long, default_value = "512", value_name = "N,…", value_delimiter = ',')]
    pub prompt: Vec<usize>,

    /// Tokens to generate; several are measured one after the other, 0 measures none
    #[arg(short, default_value = "128", value_name = "N,…", value_delimiter = ',')]
    pub n: Vec<usize>,

    /// Tokens that are in the cache already
    #[arg(short, long, default_value = "0", value_name = "N,…", value_delimiter = ',')]
    pub depth: Vec<usize>,

    /// Sequences at once
    #[arg(short, long, default_value = "1", value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Vec<u32>,

    /// How keys and values are stored
    #[arg(long, value_enum, default_value_t = CacheKind::F32, value_name = "KIND")]
    pub cache: CacheKind,

    /// How often each is measured, after once that does not count
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,

    /// As JSON
    #[arg(long)]
    pub json: bool,

    /// Also write the JSON to this file
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// `flint bench VERB`
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// Training steps of a config, nothing kept
    Train(BenchTrain),
    /// A long text through a cache of constant size: perplexity, time and memory over position
    Stream(BenchStream),
}

/// `flint bench stream`
#[derive(Debug, ClapArgs)]
pub struct BenchStream {
    #[command(flatten)]
    pub config: Config,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `flint bench train`
#[derive(Debug, ClapArgs)]
pub struct BenchTrain {
    #[command(flatten)]
    pub config: Config,

    /// Steps to time, after 2 that are not counted
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,

    /// As JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// `flint doctor`
#[derive(Debug, ClapArgs)]
pub struct Doctor {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `flint serve`. Each flag is a key of its config too.
#[derive(Clone, Debug, ClapArgs)]
pub struct Serve {
    /// Models: a folder, a GGUF file or a run each, or NAME=PATH; without a name, the path's last part is it
    #[arg(value_name = "[NAME=]MODEL")]
    pub models: Vec<String>,

    /// Config file with the other flags as keys, `-` in them being `_`; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A model of the BERT kind that makes vectors, for /v1/embeddings; may be repeated
    #[arg(long, value_name = "[NAME=]MODEL")]
    pub embed: Vec<String>,

    /// A LoRA adapter, served as a model of its own; without a MODEL it is the first one's; may be repeated
    #[arg(long, value_name = "NAME[@MODEL]=FOLDER")]
    pub lora: Vec<String>,

    /// Another name of a model; may be repeated
    #[arg(long, value_name = "ALIAS=NAME")]
    pub alias: Vec<String>,

    /// Memory of all models together, in MiB: more of them are loaded when asked for, in the place of those that are idle
    /// [default: what is free]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,

    /// Port to listen at; 0 for a free one [default: 8080]
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,

    /// Address to listen at [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<std::net::IpAddr>,

    /// A name that requests may call this server by, besides its address and localhost; may be repeated
    #[arg(long, value_name = "NAME")]
    pub host_name: Vec<String>,

    /// File of keys: on each line a name, the SHA-256 of a key in hexadecimal digits, and limits if any: requests=N and
    /// tokens=N in a minute, concurrent=N
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,

    /// Listen where other machines can reach it, without keys
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub no_keys: Option<bool>,

    /// Speak TLS: PEM file of the certificate, and of those that vouch for it
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file of the certificate's private key
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Sequences that run side by side [default: 16]
    #[arg(long, value_name = "N")]
    pub parallel: Option<u16>,

    /// Requests that wait before more are turned away [default: 128]
    #[arg(long, value_name = "N")]
    pub queue: Option<usize>,

    /// Tokens of prompt and answer [default: the model's context, at most 8192]
    #[arg(long, value_name = "N")]
    pub context: Option<u32>,

    /// Memory for keys and values of each model, in MiB [default: a quarter of what models may take, shared out among them]
    #[arg(long, value_name = "MIB")]
    pub cache_memory: Option<usize>,

    /// How keys and values are stored: 16 and 8 bits take a half and a good quarter of the memory, and round [default: f32]
    #[arg(long, value_enum, value_name = "KIND")]
    pub cache: Option<CacheKind>,

    /// Guess tokens and check several at once, which gives the same answers sooner where few are asked for: from the text
    /// itself (`lookup`), or by a smaller model of the same vocabulary
    #[arg(long, value_name = "lookup|MODEL")]
    pub speculate: Option<String>,

    /// Bytes of a request's body, in KiB [default: 4096]
    #[arg(long, value_name = "KIB")]
    pub max_body: Option<usize>,

    /// Seconds that answers have to end when the server is told to stop [default: 30]
    #[arg(long, value_name = "S")]
    pub drain: Option<u64>,

    /// Answer requests with fields that mean nothing to this server, with a `Warning` header for each
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub lenient: Option<bool>,

    /// Send the spans of requests to a collector of OpenTelemetry, such as http://localhost:4318; needs a build with the
    /// feature `otlp`
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
}
