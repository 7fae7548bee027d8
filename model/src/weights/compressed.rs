//! Models whose matrices are small whole numbers with scales, in the Hugging Face layout: compressed-tensors, as
//! llm-compressor and `flint quantize` write it and transformers and vLLM read it.
//!
//! `config.json` says under `quantization_config` what matrices may be ([`Scheme`]). In the files a matrix `NAME.weight` is
//! several tensors, which `assemble` makes one of:
//!
//! | | `pack-quantized` | `int-quantized` |
//! |---|---|---|
//! | numbers | `NAME.weight_packed`, I32 `[out, words]` | `NAME.weight`, I8 `[out, in]` |
//! | scales | `NAME.weight_scale`, floats `[out, groups]` | the same |
//! | shape | `NAME.weight_shape`, two whole numbers | |
//!
//! What would be computed otherwise than by rounded weights alone is refused: rounded activations or caches, zero points,
//! columns in another order, rotations, sparsity.

pub mod write;

use std::collections::BTreeMap;

use quant::{Packing, Symmetric};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value};

use super::Error;
use super::archive::{Archive, Encoding, Stored};
use super::safetensors::Raw;

/// The key in `config.json`.
pub(super) const KEY: &str = "quantization_config";

// Ends of names.
const NUMBERS: &str = ".weight_packed";
const PLAIN: &str = ".weight";
pub(super) const SCALE: &str = ".weight_scale";
pub(super) const SHAPE: &str = ".weight_shape";
pub(super) const ZERO_POINT: &str = ".weight_zero_point";
const ORDER: &str = ".weight_g_idx";

/// What to do about what is not read.
const INSTEAD: &str =
    "take the model as it was before it was quantized, or a GGUF of it, and `flint quantize`";

/// Keys of `quantization_config` that change nothing.
const WITHOUT_EFFECT: [&str; 7] = [
    "config_groups",
    "format",
    "global_compression_ratio",
    "ignore",
    "quant_method",
    "quantization_status",
    "version",
];

/// Keys of how weights are rounded that change nothing, or say how scales were found.
const WEIGHTS_WITHOUT_EFFECT: [&str; 10] = [
    "actorder",
    "group_size",
    "num_bits",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "strategy",
    "symmetric",
    "type",
    "zp_dtype",
];

/// What quantized matrices may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheme {
    groups: Vec<Symmetric>,
}

impl Scheme {
    /// What a `config.json` says, if anything.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of_config(text: &str) -> Result<Option<Self>, String> {
        let config: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        config.get(KEY).filter(|said| !said.is_null()).map(Self::parse).transpose()
    }

    /// Reads the value of `quantization_config`.
    ///
    /// # Errors
    /// What is not read, and what to do.
    pub fn parse(said: &Value) -> Result<Self, String> {
        Self::of(said).map_err(|why| format!("`{KEY}`: {why}"))
    }

    fn of(said: &Value) -> Result<Self, String> {
        let map = said.as_object().ok_or("must be an object")?;
        let refuse = |key: &str| format!("`{key}` is {}, which is not read: {INSTEAD}", map[key]);
        match map.get("quant_method").and_then(Value::as_str) {
            Some("compressed-tensors") => {}
            Some(_) => return Err(refuse("quant_method")),
            None => return Err("`quant_method` is missing".into()),
        }
        let is_known = |key: &&String| WITHOUT_EFFECT.contains(&key.as_str());
        // Of caches, sparsity, rotations and what is yet to come.
        if let Some(key) = map.keys().filter(|key| !is_known(key)).find(|key| !is_nothing(&map[key.as_str()]))
        {
            return Err(refuse(key));
        }
        if map.get("quantization_status").is_some_and(|status| status != "compressed") {
            return Err(refuse("quantization_status"));
        }
        let format = map.get("format").filter(|format| !format.is_null());
        let groups =
            map.get("config_groups").and_then(Value::as_object).ok_or("`config_groups` is missing")?;
        let parse = |(name, group): (&String, &Value)| {
            parse_group(group, format).map_err(|why| format!("in `{}`: {why}", name.escape_debug()))
        };
        let groups = groups.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if groups.is_empty() { Err("`config_groups` is empty".into()) } else { Ok(Self { groups }) }
    }

    /// What numbers in so many bytes, with so many scales, are.
    fn find(
        &self,
        packing: Packing,
        raw: &[usize],
        [n_rows, width]: [usize; 2],
        scales: &[usize],
    ) -> Option<Symmetric> {
        let fits = |ints: &Symmetric| {
            let columns = match packing {
                Packing::Bytes => width,
                Packing::Words => ints.row_bytes(width) / 4,
            };
            let n_scales = ints.n_scales(width);
            ints.packing() == packing
                && raw == [n_rows, columns]
                && ints.group().is_none_or(|n| width.is_multiple_of(n))
                && (scales == [n_rows, n_scales] || scales == [n_rows] && n_scales == 1)
        };
        self.groups.iter().copied().find(fits)
    }
}

/// Whether a value says that there is nothing of the kind.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(all) => all.is_empty(),
        _ => false,
    }
}

fn parse_group(group: &Value, format: Option<&Value>) -> Result<Symmetric, String> {
    let map = group.as_object().ok_or("must be an object that says how `weights` are rounded")?;
    let is_read = |key: &str| ["weights", "targets", "format"].contains(&key);
    if let Some((key, value)) = map.iter().find(|(key, value)| !is_read(key) && !is_nothing(value)) {
        return Err(format!("`{key}` is {value}, but only weights are read rounded: {INSTEAD}"));
    }
    let format = map.get("format").filter(|format| !format.is_null()).or(format);
    let packing = match format.and_then(Value::as_str) {
        Some("pack-quantized") => Packing::Words,
        Some("int-quantized" | "naive-quantized") => Packing::Bytes,
        _ => {
            let found = format.map_or("missing".into(), |format| format!("{format}, which is not read"));
            return Err(format!(
                "`format` is {found}: must be \"pack-quantized\" or \"int-quantized\"; {INSTEAD}"
            ));
        }
    };
    let weights = map.get("weights").and_then(Value::as_object).ok_or("`weights` is missing")?;
    parse_weights(weights, packing).map_err(|why| format!("in `weights`: {why}"))
}

fn parse_weights(map: &Map<String, Value>, packing: Packing) -> Result<Symmetric, String> {
    let get = |key: &str| map.get(key).filter(|value| !value.is_null());
    let refuse = |key: &str, wanted: &str| {
        let found = map.get(key).map_or("missing".to_owned(), Value::to_string);
        Err(format!("`{key}` is {found}: only {wanted} is read; {INSTEAD}"))
    };
    let is_known = |key: &str| WEIGHTS_WITHOUT_EFFECT.contains(&key);
    if let Some((key, value)) = map.iter().find(|(key, value)| !is_known(key) && !is_nothing(value)) {
        return Err(format!("`{key}` is {value}, which is not read: {INSTEAD}"));
    }
    if get("type").is_some_and(|kind| kind != "int") {
        return refuse("type", "\"int\"");
    }
    if get("symmetric").is_some_and(|symmetric| symmetric != true) {
        return refuse("symmetric", "true");
    }
    // By weight, columns are only rounded in another order, and stand where they stood.
    if get("actorder").is_some_and(|order| order != false && order != "weight" && order != "static") {
        return refuse("actorder", "null or \"weight\"");
    }
    let Some(bits) = get("num_bits").and_then(Value::as_u64) else { return refuse("num_bits", "4 or 8") };
    let size = get("group_size").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let group = match (get("strategy").and_then(Value::as_str), size) {
        (Some("channel"), None) | (None, None) => None,
        (Some("group") | None, Some(n)) => Some(n),
        (Some("group"), None) => return refuse("group_size", "a whole number"),
        _ => return refuse("strategy", "\"channel\" or \"group\""),
    };
    if group.is_none() && get("strategy").is_none() && get("group_size").and_then(Value::as_i64) != Some(-1) {
        return refuse("strategy", "\"channel\" or \"group\"");
    }
    Symmetric::new(bits, group, packing).map_err(|why| format!("{why}; {INSTEAD}"))
}

/// Adds the matrices that tensors together are, which are no floats, or scales.
pub(super) fn assemble(
    mut raws: BTreeMap<String, Raw>,
    scheme: &Scheme,
    archive: &mut Archive,
) -> Result<(), Error> {
    let is_matrix = |(name, raw): &(&String, &Raw)| {
        name.ends_with(NUMBERS) || name.ends_with(PLAIN) && raw.dtype == Dtype::I8
    };
    let names: Vec<String> = raws.iter().filter(is_matrix).map(|(name, _)| name.clone()).collect();
    for name in names {
        let module = name.strip_suffix(NUMBERS).or(name.strip_suffix(PLAIN)).unwrap_or(&name).to_owned();
        let Some(numbers) = raws.remove(&name) else { continue };
        let part = |end: &str| format!("{module}{end}");
        let path = archive.path(numbers.file_idx).to_owned();
        let wrong = |why: String| Error::Format { path: path.clone(), why };
        let shown = module.escape_debug();
        let Some(scales) = raws.remove(&part(SCALE)) else {
            return Err(Error::Missing { path, name: part(SCALE) });
        };
        if raws.contains_key(&part(ORDER)) {
            return Err(wrong(format!("`{shown}{ORDER}`: columns in another order are not read; {INSTEAD}")));
        }
        // Older files have zero points that are all zero.
        if raws.remove(&part(ZERO_POINT)).is_some_and(|zero| !zero.is_zero) {
            return Err(wrong(format!(
                "`{shown}{ZERO_POINT}`: zero points other than 0 are not read; {INSTEAD}"
            )));
        }
        let is_packed = name.ends_with(NUMBERS);
        let (packing, dtype) =
            if is_packed { (Packing::Words, Dtype::I32) } else { (Packing::Bytes, Dtype::I8) };
        let says = match (raws.remove(&part(SHAPE)), is_packed) {
            (None, true) => return Err(Error::Missing { path, name: part(SHAPE) }),
            (Some(shape), true) => shape.says,
            _ => <[usize; 2]>::try_from(&numbers.shape[..]).ok().map(|shape| shape.map(|n| n as u64)),
        };
        // A word has at most 8 numbers, so more columns are a lie, and could be too many to count.
        let most = numbers.shape.last().map_or(0, |n| n.saturating_mul(8)) as u64;
        let shape =
            says.filter(|shape| shape[1] <= most && shape[1] > 0).map(|shape| shape.map(|n| n as usize));
        let ints = shape.and_then(|shape| scheme.find(packing, &numbers.shape, shape, &scales.shape));
        let (Some([n_rows, width]), Some(ints), true, Some(format)) =
            (shape, ints, numbers.dtype == dtype, scales.format())
        else {
            return Err(wrong(format!(
                "`{shown}`: numbers {:?} {:?}, scales {:?} {:?} and the shape {says:?} are not as its config has them",
                numbers.dtype, numbers.shape, scales.dtype, scales.shape
            )));
        };
        let encoding = Encoding::Ints { ints, scales: format };
        let stored = Stored { shape: vec![n_rows, width], encoding, offset: numbers.offset };
        let scales = Some((scales.file_idx, scales.offset));
        archive.add_tensor(part(PLAIN), stored, numbers.file_idx, scales)?;
    }
    match raws.pop_first() {
        Some((name, raw)) if raw.format().is_some() => {
            Err(Error::Unused { path: archive.path(raw.file_idx).into(), name })
        }
        Some((name, raw)) => Err(raw.refused(archive.path(raw.file_idx), name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As llm-compressor 0.9 writes it.
    const GOOD: &str = r#"{
        "config_groups": {"group_0": {"format": "pack-quantized", "input_activations": null,
            "output_activations": null, "targets": ["Linear"], "weights": {"actorder": null, "block_structure": null,
            "dynamic": false, "group_size": 128, "num_bits": 4, "observer": "minmax", "observer_kwargs": {},
            "scale_dtype": null, "strategy": "group", "symmetric": true, "type": "int", "zp_dtype": null}}},
        "format": "pack-quantized", "global_compression_ratio": null, "ignore": ["lm_head"], "kv_cache_scheme": null,
        "quant_method": "compressed-tensors", "quantization_status": "compressed", "sparsity_config": {},
        "transform_config": {}, "version": "0.14.0"}"#;

    fn parse(text: &str) -> Result<Scheme, String> {
        Scheme::parse(&serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn both_formats_are_read() {
        let four = Symmetric::new(4, Some(128), Packing::Words).expect("read");
        assert_eq!(parse(GOOD), Ok(Scheme { groups: vec![four] }));
        let eight =
            GOOD.replace("\"num_bits\": 4", "\"num_bits\": 8").replace("pack-quantized", "int-quantized");
        let eight =
            eight.replace("\"group_size\": 128", "\"group_size\": null").replace("\"group\"", "\"channel\"");
        let expected = Symmetric::new(8, None, Packing::Bytes).expect("read");
        assert_eq!(parse(&eight), Ok(Scheme { groups: vec![expected] }));
        let ordered = GOOD.replace("\"actorder\": null", "\"actorder\": \"static\"");
        assert!(parse(&ordered).is_ok());
    }

    #[test]
    fn what_is_not_read_is_named_with_what_to_do() {
        for (from, to, named) in [
            ("\"compressed-tensors\"", "\"gptq\"", "`quant_method` is \"gptq\""),
            ("\"compressed-tensors\"", "\"awq\"", "`quant_method` is \"awq\""),
            ("\"symmetric\": true", "\"symmetric\": false", "`symmetric` is false"),
            ("\"actorder\": null", "\"actorder\": \"group\"", "`actorder` is \"group\""),
            ("\"actorder\": null", "\"actorder\": true", "`actorder` is true"),
            (
                "\"input_activations\": null",
                "\"input_activations\": {\"num_bits\": 8}",
                "`input_activations` is",
            ),
            (
                "\"output_activations\": null",
                "\"output_activations\": {\"num_bits\": 8}",
                "`output_activations` is",
            ),
            ("\"kv_cache_scheme\": null", "\"kv_cache_scheme\": {\"num_bits\": 8}", "`kv_cache_scheme` is"),
            (
                "\"sparsity_config\": {}",
                "\"sparsity_config\": {\"format\": \"sparse-bitmask\"}",
                "`sparsity_config` is",
            ),
            (
                "\"transform_config\": {}",
                "\"transform_config\": {\"config_groups\": 1}",
                "`transform_config` is",
            ),
            ("\"num_bits\": 4", "\"num_bits\": 3", "numbers of 3 bits"),
            ("\"type\": \"int\"", "\"type\": \"float\"", "`type` is \"float\""),
            ("\"group_size\": 128", "\"group_size\": 48", "a scale for 48 numbers"),
            ("\"group_size\": 128", "\"group_size\": null", "`group_size` is null"),
            ("\"strategy\": \"group\"", "\"strategy\": \"tensor\"", "`strategy` is \"tensor\""),
            ("\"dynamic\": false", "\"dynamic\": true", "`dynamic` is true"),
            ("\"compressed\"", "\"frozen\"", "`quantization_status` is \"frozen\""),
            ("\"version\"", "\"hadamard\"", "`hadamard` is \"0.14.0\""),
            ("\"pack-quantized\"", "\"marlin-24\"", "`format` is \"marlin-24\""),
            ("\"pack-quantized\"", "\"int-quantized\"", "4 bits in a byte each"),
        ] {
            let why = parse(&GOOD.replace(from, to)).expect_err(to);
            assert!(why.starts_with("`quantization_config`: ") && why.contains(named), "{why}");
            assert!(why.contains("flint quantize"), "{why}");
        }
        for bad in ["1", "{}", r#"{"quant_method": "compressed-tensors"}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let groups = r#"{"quant_method": "compressed-tensors", "config_groups": GROUPS}"#;
        for bad in ["{}", "[]", r#"{"W4A16": ["Linear"]}"#, r#"{"a": {"format": "pack-quantized"}}"#] {
            assert!(parse(&groups.replace("GROUPS", bad)).is_err(), "{bad}");
        }
    }
}
