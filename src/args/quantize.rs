//! `flint quantize`: its flags.

use std::path::PathBuf;

use clap::Args;
use quant::{Format, Recipe, Symmetric};

/// `flint quantize`
///
/// Reads a model some rows at a time and writes it with matrices that take fewer bits, as a GGUF or, with int8 and int4-g32,
/// -g64 or -g128, as a folder in the Hugging Face layout (compressed-tensors). At the end stands a report:
/// bits per weight, sizes, what every tensor lost, and with --text the perplexity of that text before and after, how far
/// the predictions are apart (Kullback-Leibler divergence) and tokens per second. The report is stored in the file
/// (`flint.quantize.*`), in a folder also as flint_quantize.json.
///
/// Recipes are llama.cpp's, with its names: a mixture such as q4_k_m gives more bits to the tensors that a model suffers
/// most from. Norms, biases and routers stay F32; what has rows that are no whole number of blocks gets a format of
/// smaller blocks, which is reported. In a folder the matrices of linear layers are whole numbers with a scale for each row
/// (int8) or each 32, 64 or 128 numbers of a row (int4); embedding, head, norms and routers stay floats.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("texts").multiple(true))]
pub struct Quantize {
    /// Model or run folder, or GGUF file
    pub model: PathBuf,

    /// Recipe: q8_0, q6_k, q5_k_m, q4_k_m, q4_0, iq4_xs, q3_k_m, q2_k, ...; or int8, int4-g32, int4-g64, int4-g128
    #[arg(long, value_name = "RECIPE", value_parser = wanted, required_unless_present = "target_bpw")]
    pub format: Option<Wanted>,

    /// Instead of a recipe: at most so many bits per weight over all tensors, each in the format that measured errors
    /// speak for
    #[arg(long, value_name = "BITS", conflicts_with_all = ["format", "pure"], value_parser = bits)]
    pub target_bpw: Option<f64>,

    /// GGUF file or folder to write, which must not be there yet
    #[arg(short, long, value_name = "PATH")]
    pub out: PathBuf,

    /// Another format for tensors whose name contains PART, as in `ffn_down=q6_k`; may be repeated, the first that fits
    /// counts
    #[arg(long, value_name = "PART=FORMAT", value_parser = tensor)]
    pub tensor: Vec<(String, Format)>,

    /// The same format for all matrices, without a mixture
    #[arg(long)]
    pub pure: bool,

    /// Run the model over this text first, and round so that errors are small where inputs are large; what was found is
    /// saved beside OUT as NAME.imatrix.gguf
    #[arg(long, value_name = "FILE", conflicts_with = "imatrix", group = "texts")]
    pub calibrate: Option<PathBuf>,

    /// The same by what a calibration found earlier, here or in llama.cpp
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,

    /// Measure on this text what is lost; both models are then loaded
    #[arg(long, value_name = "FILE", group = "texts")]
    pub text: Option<PathBuf>,

    /// Tokens of a window of --text and --calibrate [default: 512 or the model's context if that is less]
    #[arg(long, value_name = "N", requires = "texts")]
    pub context: Option<usize>,

    /// The report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What --format asks for.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// A GGUF.
    Gguf(Recipe),
    /// A folder.
    Folder(Symmetric),
}

impl Quantize {
    /// The recipe of a GGUF, if --format has one.
    pub fn recipe(&self) -> Option<Recipe> {
        match self.format {
            Some(Wanted::Gguf(recipe)) => Some(recipe),
            _ => None,
        }
    }
}

fn wanted(name: &str) -> Result<Wanted, String> {
    let folder = || Symmetric::from_name(name).map(Wanted::Folder);
    let names = || Recipe::names().chain(Symmetric::NAMES).collect::<Vec<_>>().join(", ");
    Recipe::from_name(name)
        .map(Wanted::Gguf)
        .or_else(folder)
        .ok_or_else(|| format!("choose one of {}", names()))
}

fn bits(text: &str) -> Result<f64, String> {
    let bits = text.parse().ok().filter(|bits: &f64| bits.is_finite() && *bits > 0.0);
    bits.ok_or_else(|| "must be a number above 0, such as 4.5".to_owned())
}

fn tensor(text: &str) -> Result<(String, Format), String> {
    let (part, name) = text.rsplit_once('=').ok_or("must be a part of a name, `=`, and a format")?;
    if part.is_empty() {
        return Err("a part of a name must stand before `=`".to_owned());
    }
    let format = Format::from_name(name).ok_or_else(|| {
        let known: Vec<_> = Format::ALL.iter().map(|format| format.name().to_lowercase()).collect();
        format!("`{name}` is no format: choose one of {}", known.join(", "))
    })?;
    Ok((part.to_owned(), format))
}
