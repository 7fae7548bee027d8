//! LoRA adapters (Hu et al. 2021) in PEFT's layout: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapter has for some of a model's matrices W `[out, in]` two thin ones, A `[r, in]` and B `[out, r]`, and stands for
//! the model with W + s·BA in the place of each, where s is `lora_alpha / r`. [`merge`] puts that into the weights, so
//! that a merged model costs what the model costs; [`unmerge`] takes it out again, up to rounding.
//!
//! What PEFT can do beside that (DoRA, biases, whole modules, scales by pattern) changes what an adapter means and is
//! refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::{ModuleMapper, Param};
use burn::prelude::*;
use serde_json::{Map, Value, json};

use super::family::Family;
use super::names::{self, Form, Layout, Piece};
use super::parameters::Saved;
use super::{Error, config_json, safetensors};
use crate::config::Config;
use crate::ops::{FusedOps, linear};
use crate::transformer::Transformer;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What PEFT puts before the names that the model's own files have.
const PREFIX: &str = "base_model.model.";

/// Keys of `adapter_config.json` that do not change what an adapter computes, or only say what its tensors say too.
const WITHOUT_EFFECT: [&str; 19] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
];

/// The two factors of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// `[r, n_in]`, row-major
    pub a: Vec<f32>,
    /// `[n_out, r]`, row-major
    pub b: Vec<f32>,
    /// Rank.
    pub r: usize,
}

/// An adapter, of no model in particular yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// What BA is multiplied by: `lora_alpha / r`, or `lora_alpha / √r` of rank-stabilised adapters (Kalajdzievski 2023).
    /// Adapters whose matrices have several ranks have one each.
    pub alpha: f64,
    /// Whether the root of the rank divides it.
    pub is_rank_stabilised: bool,
    /// By the names that the matrices have in Hugging Face's files of the model, without `.weight`.
    pub factors: BTreeMap<String, Factors>,
    dir: PathBuf,
}

impl Adapter {
    /// An adapter that was just made.
    pub fn new(alpha: f64, factors: BTreeMap<String, Factors>) -> Self {
        Self { alpha, is_rank_stabilised: false, factors, dir: PathBuf::new() }
    }

    /// Reads the adapter in a folder.
    ///
    /// # Errors
    /// [`Error`] names the file and the key or tensor at fault.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(CONFIG);
        let text =
            crate::files::read_text(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let (alpha, is_rank_stabilised) = parse(&text).map_err(|why| Error::Config { path, why })?;
        let path = dir.join(WEIGHTS);
        let archive = safetensors::open(std::slice::from_ref(&path), |_| false, None)?;
        let unused = |name: &str| Error::Unused { path: path.clone(), name: name.to_owned() };
        let mut factors = BTreeMap::new();
        for name in archive.names() {
            let module = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(".lora_A.weight"));
            let Some(module) = module else {
                // Found with its partner, or nothing that is understood.
                let partner =
                    name.strip_suffix(".lora_B.weight").map(|module| format!("{module}.lora_A.weight"));
                if partner.is_some_and(|partner| archive.get(&partner).is_some()) && name.starts_with(PREFIX)
                {
                    continue;
                }
                return Err(unused(name));
            };
            let b_name = format!("{PREFIX}{module}.lora_B.weight");
            let (Some(a), Some(b)) = (archive.get(name), archive.get(&b_name)) else {
                return Err(Error::Missing { path: path.clone(), name: b_name });
            };
            let ([r, _], [_, b_r]) = (matrix(&a.shape), matrix(&b.shape));
            if r == 0 || a.shape.len() != 2 {
                let (name, shape) = (name.escape_debug(), &a.shape);
                let why =
                    format!("tensor `{name}` has shape {shape:?}: must have two dimensions, the rank first");
                return Err(Error::Format { path: path.clone(), why });
            }
            if r != b_r {
                let (found, expected) = (b.shape.clone(), vec![b.shape.first().copied().unwrap_or(0), r]);
                return Err(Error::Shape { path: path.clone(), name: b_name, found, expected });
            }
            let read = |name: &str, n: usize| {
                let mut values = vec![0.0; n];
                archive.read(name, 0, &mut values).map(|()| values)
            };
            let both = Factors { a: read(name, a.n_elements())?, b: read(&b_name, b.n_elements())?, r };
            factors.insert(module.to_owned(), both);
        }
        Ok(Self { alpha, is_rank_stabilised, factors, dir: dir.to_owned() })
    }

    /// Writes the adapter into a folder, which must exist.
    ///
    /// # Errors
    /// [`Error::Io`] if the file system refuses.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let last = |module: &String| module.rsplit('.').next().unwrap_or_default().to_owned();
        let targets: BTreeSet<String> = self.factors.keys().map(last).collect();
        let r = self.factors.values().map(|factors| factors.r).max().unwrap_or(1);
        let others = self.factors.iter().filter(|(_, factors)| factors.r != r);
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": r,
            "rank_pattern": others.map(|(module, factors)| (module, factors.r)).collect::<BTreeMap<_, _>>(),
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "use_rslora": self.is_rank_stabilised,
            "bias": "none",
            "fan_in_fan_out": self.factors.keys().any(|module| module.starts_with("transformer.h.")),
            "target_modules": targets,
            "inference_mode": true,
        });
        let path = dir.join(CONFIG);
        crate::files::write_atomic(&path, |f| Ok(serde_json::to_writer_pretty(f, &config)?))
            .map_err(|source| Error::Io { path, source })?;
        let saved = |(module, factors): (&String, &Factors)| {
            let Factors { a, b, r } = factors.clone();
            [("A", vec![r, a.len() / r], a), ("B", vec![b.len() / r, r], b)].map(|(letter, shape, values)| {
                let name = format!("{PREFIX}{module}.lora_{letter}.weight");
                (name, Saved::new(shape, move || values.clone()))
            })
        };
        let tensors: Vec<_> = self.factors.iter().flat_map(saved).collect();
        safetensors::write(&tensors, &BTreeMap::from([("format".into(), "pt".into())]), &dir.join(WEIGHTS))
    }

    fn scale(&self, r: usize) -> f64 {
        self.alpha / if self.is_rank_stabilised { (r as f64).sqrt() } else { r as f64 }
    }
}

fn matrix(shape: &[usize]) -> [usize; 2] {
    shape.try_into().unwrap_or([0, usize::MAX])
}

/// `lora_alpha`, and whether the root of the rank divides it.
fn parse(text: &str) -> Result<(f64, bool), String> {
    let config: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let is_empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    if config.get("peft_type").is_some_and(|kind| kind != "LORA") {
        return Err(format!("`peft_type` is {}: only \"LORA\" is read", config["peft_type"]));
    }
    for (key, value) in &config {
        match key.as_str() {
            "lora_alpha" | "use_rslora" => {}
            "bias" if value == "none" => {}
            known if WITHOUT_EFFECT.contains(&known) || is_empty(value) => {}
            _ => return Err(format!("`{key}` is {value}: this is not understood")),
        }
    }
    let alpha = config.get("lora_alpha").ok_or("key `lora_alpha` is missing")?;
    let number = alpha.as_f64().filter(|alpha| alpha.abs() <= 1e6);
    let number =
        number.ok_or_else(|| format!("`lora_alpha` is {alpha}: must be a number of at most 10^6"))?;
    match config.get("use_rslora") {
        None | Some(Value::Null) => Ok((number, false)),
        Some(Value::Bool(is_rank_stabilised)) => Ok((number, *is_rank_stabilised)),
        Some(other) => Err(format!("`use_rslora` is {other}: must be true or false")),
    }
}

/// Adds adapters to a model, each multiplied by a factor of the caller's.
///
/// # Errors
/// [`Error::Unused`] if an adapter has a matrix that the model has not, [`Error::Shape`] if one does not fit.
pub fn merge<B: FusedOps>(
    model: Transformer<B>,
    adapters: &[(&Adapter, f64)],
) -> Result<Transformer<B>, Error> {
    let config = model.config().clone();
    // Phi-3's fused matrices have names of their own, and its configs are others' too.
    let layouts = [config_json::family_of(&config), Family::Phi3].map(Layout::HuggingFace);
    let mut merger =
        Merger { path: Vec::new(), config, layouts, adapters, used: BTreeSet::new(), error: None };
    let mut model = model.map(&mut merger);
    // What was packed is no longer what the parameters are.
    model.packed_mut().into_iter().for_each(|(_, packed)| packed.0 = None);
    if let Some(error) = merger.error {
        return Err(error);
    }
    for (i, (adapter, _)) in adapters.iter().enumerate() {
        if let Some(module) =
            adapter.factors.keys().find(|module| !merger.used.contains(&(i, (*module).clone())))
        {
            return Err(Error::Unused {
                path: adapter.dir.join(WEIGHTS),
                name: format!("{PREFIX}{module}.lora_A.weight"),
            });
        }
    }
    Ok(model)
}

/// Takes adapters out of a model that they were [merged](merge) into, with the same factors.
///
/// # Errors
/// As [`merge`].
pub fn unmerge<B: FusedOps>(
    model: Transformer<B>,
    adapters: &[(&Adapter, f64)],
) -> Result<Transformer<B>, Error> {
    let negated: Vec<_> = adapters.iter().map(|&(adapter, factor)| (adapter, -factor)).collect();
    merge(model, &negated)
}

struct Merger<'a> {
    path: Vec<String>,
    config: Config,
    layouts: [Layout; 2],
    adapters: &'a [(&'a Adapter, f64)],
    /// Of which adapter, which matrices had a place.
    used: BTreeSet<(usize, String)>,
    error: Option<Error>,
}

impl Merger<'_> {
    /// `W + Σ s·BA` of the matrix at the current path.
    fn merged<B: FusedOps>(&mut self, mut weight: Tensor<B, 2>) -> Result<Tensor<B, 2>, Error> {
        let [n_out, n_in] = weight.dims();
        let [usual, fused] =
            self.layouts.map(|layout| names::pieces(&self.path.join("."), n_out, &self.config, layout));
        // Families with names of their own have none of Phi-3's.
        let is_new = |piece: &Piece| {
            usual.iter().all(|other| other.name != piece.name && other.name.starts_with("model."))
        };
        let fused: Vec<Piece> = fused.into_iter().filter(is_new).collect();
        // Both begin at the first row.
        let mut firsts = [0, 0];
        let both = usual.iter().map(|piece| (0, piece)).chain(fused.iter().map(|piece| (1, piece)));
        for (way, piece) in both {
            let rows = firsts[way]..firsts[way] + piece.rows;
            firsts[way] = rows.end;
            let module = piece.name.strip_suffix(".weight").unwrap_or(&piece.name);
            for (i, &(adapter, factor)) in self.adapters.iter().enumerate() {
                let Some(Factors { a, b, r }) = adapter.factors.get(module) else { continue };
                let (found, expected) = (vec![b.len() / r, a.len() / r], vec![piece.rows, n_in]);
                if found != expected {
                    let (path, name) = (adapter.dir.join(WEIGHTS), format!("{PREFIX}{module}"));
                    return Err(Error::Shape { path, name, found, expected });
                }
                let mut b = b.clone();
                // The rows of files that group them by head lie otherwise here; columns are never moved.
                if let Form::ByHead { .. } = piece.form {
                    piece.form.undo(&mut b, &[piece.rows, *r]);
                }
                let device = weight.device();
                let b = Tensor::<B, 2>::from_data(TensorData::new(b, [piece.rows, *r]), &device);
                // `linear` multiplies by the transpose: A as [in, r].
                let a =
                    Tensor::<B, 2>::from_data(TensorData::new(a.clone(), [*r, n_in]), &device).transpose();
                let change = linear(b, a) * (adapter.scale(*r) * factor);
                let part = weight.clone().narrow(0, rows.start, piece.rows) + change;
                weight = weight.slice_assign([rows.clone(), 0..n_in], part);
                self.used.insert((i, module.to_owned()));
            }
        }
        Ok(weight)
    }
}

impl<B: FusedOps> ModuleMapper<B> for Merger<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let is_matrix = D == 2 && self.path.last().is_some_and(|name| name == "weight");
        if !is_matrix || self.error.is_some() {
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        let shape = tensor.shape();
        let weight = tensor.clone().reshape([shape.dims::<D>()[0] as i32, -1]);
        let tensor = match self.merged(weight) {
            Ok(weight) => weight.reshape(shape).set_require_grad(tensor.is_require_grad()),
            Err(error) => {
                self.error = Some(error);
                tensor
            }
        };
        Param::from_mapped_value(id, tensor, mapper)
    }
}
