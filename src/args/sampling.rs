//! Flags that say how tokens are picked, for `flint generate` and `flint chat`.

use clap::{Args as ClapArgs, ValueEnum};
use infer::Sampling;
use infer::sampler::dry::{self, Dry};
use infer::sampler::mirostat::{Mirostat, Version};
use tokenizer::Tokenizer;

/// How to pick tokens.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Below 1 more certain, above 1 more varied, 0 always the most probable token
    #[arg(long, default_value_t = 0.8, value_name = "T")]
    pub temperature: f32,

    /// Only the K most probable tokens; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,

    /// Only the fewest tokens whose probabilities reach P
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f32,

    /// Only tokens at least P times as probable as the most probable
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub min_p: f32,

    /// Only the most typical tokens, as surprising as is expected, whose probabilities reach P
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub typical_p: f32,

    /// Make tokens already there less probable; 1 for not
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    pub repetition_penalty: f32,

    /// Make tokens already generated less probable: -2 to 2
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: f32,

    /// The same for each time that they were generated: -2 to 2
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: f32,

    /// Add to the logit of a token, -100 to 100; -100 forbids it; may be repeated
    #[arg(long, value_name = "ID=X", value_parser = logit_bias)]
    pub logit_bias: Vec<(u32, f32)>,

    /// Penalty of a token that would repeat a sequence (DRY); 0 for none, 0.8 is usual
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    pub dry_multiplier: f32,

    /// What each further token of the sequence multiplies it by [default: 1.75]
    #[arg(long, value_name = "X", requires = "dry_multiplier")]
    pub dry_base: Option<f32>,

    /// Shorter sequences may repeat [default: 2]
    #[arg(long, value_name = "N", requires = "dry_multiplier")]
    pub dry_allowed_length: Option<usize>,

    /// Look at so many of the last tokens [default: all]
    #[arg(long, value_name = "N", requires = "dry_multiplier")]
    pub dry_range: Option<usize>,

    /// Sequences end here; may be repeated [default: line end, colon, quotation mark, asterisk]
    #[arg(long, value_name = "TEXT", requires = "dry_multiplier")]
    pub dry_breaker: Vec<String>,

    /// Keep the text equally surprising, by the first or the second algorithm; 0 for not
    #[arg(long, default_value_t = 0, value_name = "0|1|2", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub mirostat: u8,

    /// Bits of surprise that mirostat aims at [default: 5]
    #[arg(long, value_name = "X", requires = "mirostat")]
    pub mirostat_tau: Option<f32>,

    /// How fast mirostat follows [default: 0.1]
    #[arg(long, value_name = "X", requires = "mirostat")]
    pub mirostat_eta: Option<f32>,

    /// How often the most probable tokens are left out (XTC)
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub xtc_probability: f32,

    /// Those with this probability, but for the last of them [default: 0.1]
    #[arg(long, value_name = "P", requires = "xtc_probability")]
    pub xtc_threshold: Option<f32>,

    /// Same seed, same text
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub seed: u64,

    /// End before this string; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Most tokens to generate
    #[arg(short = 'n', long = "tokens", default_value_t = 256, value_name = "N")]
    pub n: usize,
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once('=').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parts.ok_or_else(|| "must be a token id and a number, as in 50256=-100".to_owned())
}

impl SamplingArgs {
    /// As what the sampler takes.
    pub fn sampling(&self, tokenizer: &Tokenizer) -> Sampling {
        let default = Sampling::default();
        let breakers = match (self.dry_multiplier, &self.dry_breaker[..]) {
            (0.0, _) => Vec::new(),
            (_, []) => dry::breakers(tokenizer, &dry::BREAKERS),
            (_, own) => dry::breakers(tokenizer, own),
        };
        let mirostat = Mirostat::default();
        let mirostat = Mirostat {
            version: if self.mirostat == 1 { Version::V1 } else { Version::V2 },
            tau: self.mirostat_tau.unwrap_or(mirostat.tau),
            eta: self.mirostat_eta.unwrap_or(mirostat.eta),
        };
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold.unwrap_or(default.xtc_threshold),
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            dry: Dry {
                multiplier: self.dry_multiplier,
                base: self.dry_base.unwrap_or(default.dry.base),
                allowed_length: self.dry_allowed_length.unwrap_or(default.dry.allowed_length),
                range: self.dry_range,
                breakers,
            },
            mirostat: (self.mirostat > 0).then_some(mirostat),
            seed: self.seed,
        }
    }
}

/// How to search for the most probable text instead of picking token by token.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Beam search")]
pub struct BeamArgs {
    /// Search for the most probable text with so many beginnings side by side
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), conflicts_with_all = [
        "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "logit_bias", "dry_multiplier", "mirostat", "xtc_probability", "seed", "stop", "speculate",
    ])]
    pub beams: Option<u16>,

    /// Divide scores by the length to this power: above 0 longer texts win, below 0 shorter ones [default: 1]
    #[arg(long, value_name = "X", requires = "beams", allow_negative_numbers = true)]
    pub length_penalty: Option<f32>,

    /// When to end the search [default: no]
    #[arg(long, value_enum, value_name = "WHEN", requires = "beams")]
    pub early_stopping: Option<EarlyStopping>,
}

/// When a search ends, before all beams have the wanted length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EarlyStopping {
    /// As soon as as many texts as there are beams have ended
    Yes,
    /// When no beam, if it ended as it is, would be among the best
    No,
    /// When no beam could be among the best however it goes on
    Never,
}

impl From<EarlyStopping> for infer::beam::EarlyStopping {
    fn from(value: EarlyStopping) -> Self {
        match value {
            EarlyStopping::Yes => Self::Yes,
            EarlyStopping::No => Self::No,
            EarlyStopping::Never => Self::Never,
        }
    }
}
