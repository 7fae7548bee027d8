//! Recipes: which tensor of a model gets which format.
//!
//! A mixture gives more bits to the tensors that a model suffers most from: what attention reads (values), the way down
//! out of the MLP in the first and the last layers, the output. The mixtures are llama.cpp's, under its names and with its
//! numbers, as its `llama-quantize` makes them (<https://github.com/ggml-org/llama.cpp/tree/master/tools/quantize>): the
//! same model gets the same formats. Vectors, norms, routers and tables of positions are never quantized.

use crate::Format;

/// Which tensor gets which format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    name: &'static str,
    mixture: Mixture,
    base: Format,
    /// llama.cpp's number of it (`llama_ftype`).
    file_type: u32,
}

/// What is mixed into the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mixture {
    /// Nothing but a better output.
    Plain,
    Q2,
    Q2Small,
    Q3Small,
    Q3Medium,
    Q3Large,
    Q4Small,
    Q4Medium,
    Q5Medium,
    Table4,
}

const fn recipe(name: &'static str, mixture: Mixture, base: Format, file_type: u32) -> Recipe {
    Recipe { name, mixture, base, file_type }
}

/// All of them.
const RECIPES: [Recipe; 20] = [
    recipe("f32", Mixture::Plain, Format::F32, 0),
    recipe("f16", Mixture::Plain, Format::F16, 1),
    recipe("bf16", Mixture::Plain, Format::BF16, 32),
    recipe("q8_0", Mixture::Plain, Format::Q8_0, 7),
    recipe("q6_k", Mixture::Plain, Format::Q6_K, 18),
    recipe("q5_k_m", Mixture::Q5Medium, Format::Q5_K, 17),
    recipe("q5_k_s", Mixture::Plain, Format::Q5_K, 16),
    recipe("q5_1", Mixture::Plain, Format::Q5_1, 9),
    recipe("q5_0", Mixture::Plain, Format::Q5_0, 8),
    recipe("q4_k_m", Mixture::Q4Medium, Format::Q4_K, 15),
    recipe("q4_k_s", Mixture::Q4Small, Format::Q4_K, 14),
    recipe("q4_1", Mixture::Plain, Format::Q4_1, 3),
    recipe("q4_0", Mixture::Plain, Format::Q4_0, 2),
    recipe("iq4_nl", Mixture::Table4, Format::IQ4_NL, 25),
    recipe("iq4_xs", Mixture::Table4, Format::IQ4_XS, 30),
    recipe("q3_k_l", Mixture::Q3Large, Format::Q3_K, 13),
    recipe("q3_k_m", Mixture::Q3Medium, Format::Q3_K, 12),
    recipe("q3_k_s", Mixture::Q3Small, Format::Q3_K, 11),
    recipe("q2_k", Mixture::Q2, Format::Q2_K, 10),
    recipe("q2_k_s", Mixture::Q2Small, Format::Q2_K, 21),
];

/// Short names and what they stand for, as in llama.cpp.
const SHORT: [(&str, &str); 3] = [("q3_k", "q3_k_m"), ("q4_k", "q4_k_m"), ("q5_k", "q5_k_m")];

/// What a recipe looks at besides names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Layers.
    pub n_layer: usize,
    /// Heads of queries.
    pub n_head: usize,
    /// Heads of keys and values.
    pub n_kv_head: usize,
    /// Experts of a layer; 0 without.
    pub n_expert: usize,
    /// Whether there is an output besides the embedding.
    pub has_output: bool,
    /// Whether rounding is weighed by a calibration.
    pub has_importance: bool,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Embedding,
    Output,
    Key,
    /// Values, alone or with queries and keys.
    Value,
    AttentionOutput,
    Down,
    OtherMatrix,
    /// What is never quantized.
    Kept,
}

/// What a tensor gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The format that it gets.
    pub format: Format,
    /// The one that it would have got if its rows were whole blocks of it.
    pub wanted: Format,
}

/// Formats of single tensors by a part of their names; the first that fits counts.
pub type Overrides = [(String, Format)];

impl Recipe {
    /// The recipe of this name, in capitals or not.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        let name = SHORT.iter().find(|(short, _)| *short == name).map_or(&*name, |(_, long)| long);
        RECIPES.into_iter().find(|recipe| recipe.name == name)
    }

    /// The names of all recipes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        RECIPES.iter().map(|recipe| recipe.name)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The format of most tensors.
    pub fn base(&self) -> Format {
        self.base
    }

    /// llama.cpp's number of a file that was made by it (`general.file_type`).
    pub fn file_type(&self) -> u32 {
        self.file_type
    }

    /// The number of a file whose matrices are mostly in this format.
    pub fn file_type_of(format: Format) -> u32 {
        let base = RECIPES.iter().find(|recipe| recipe.base == format);
        base.map_or(0, |recipe| recipe.file_type)
    }

    /// The format of a tensor of a GGUF. `shape` is in the order of rows.
    pub fn choose(&self, name: &str, shape: &[usize], model: &Model, overrides: &Overrides) -> Choice {
        let role = Role::of(name, shape);
        let row = shape.last().copied().unwrap_or(0);
        let wanted = match overrides.iter().find(|(part, _)| name.contains(part)) {
            _ if role == Role::Kept => Format::F32,
            Some((_, format)) => *format,
            None => self.mixed(role, layer_of(name).unwrap_or(0), row, model),
        };
        Choice { format: fitting(wanted, row), wanted }
    }

    /// The format of every matrix that is quantized at all, without a mixture.
    pub fn choose_pure(&self, name: &str, shape: &[usize], overrides: &Overrides) -> Choice {
        let over = overrides.iter().find(|(part, _)| name.contains(part)).map(|(_, format)| *format);
        let wanted = if is_quantized(name, shape) { over.unwrap_or(self.base) } else { Format::F32 };
        Choice { format: fitting(wanted, shape.last().copied().unwrap_or(0)), wanted }
    }

    /// What the mixture has for layer `i`.
    fn mixed(&self, role: Role, i: usize, row: usize, model: &Model) -> Format {
        use Mixture as M;
        let (base, n) = (self.base, model.n_layer);
        if base.block_len() == 1 {
            return base;
        }
        let n_shared = model.n_head / model.n_kv_head.max(1);
        // The first and the last eighth, and between them each third.
        let has_more = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
        let is_first = i < n / 8;
        match (role, self.mixture) {
            (Role::Kept, _) => Format::F32,
            (Role::Output, _) => self.output(row),
            (Role::Embedding, _) if !model.has_output => self.output(row),
            (Role::Key | Role::Value, _) if model.n_expert == 8 => Format::Q8_0,
            (Role::Value, mixture) => {
                let format = match mixture {
                    M::Q2 if n_shared >= 4 => Format::Q4_K,
                    M::Q2 => Format::Q3_K,
                    M::Q2Small if n_shared >= 4 => Format::Q4_K,
                    M::Q3Medium if i < 2 => Format::Q5_K,
                    M::Q3Medium => Format::Q4_K,
                    M::Q3Large => Format::Q5_K,
                    M::Table4 if n_shared >= 4 => Format::Q5_K,
                    M::Q4Medium | M::Q5Medium if has_more => Format::Q6_K,
                    M::Q4Small if i < 4 => Format::Q5_K,
                    _ => base,
                };
                // In models of 70 billion parameters values are an eighth of the queries, so they cost next to nothing.
                let is_large = n == 80 && model.n_head != model.n_kv_head;
                match format {
                    Format::Q3_K | Format::Q4_K if is_large => Format::Q5_K,
                    format => format,
                }
            }
            (Role::Down, M::Q2) => Format::Q3_K,
            (Role::Down, M::Q2Small) if is_first => Format::Q4_K,
            (Role::Down, M::Q3Medium) if i < n / 16 => Format::Q5_K,
            (Role::Down, M::Q3Medium) => Format::Q4_K,
            (Role::Down, M::Q3Large) => Format::Q5_K,
            (Role::Down, M::Q4Medium | M::Q5Medium) if has_more => Format::Q6_K,
            (Role::Down, M::Q4Small) if is_first => Format::Q5_K,
            (Role::Down, M::Table4) if is_first && !model.has_importance => Format::Q5_K,
            // Weighed rounding to a scale alone goes astray in the first of these.
            (Role::Down, M::Plain) if is_first && model.has_importance && base == Format::Q4_0 => {
                Format::Q4_1
            }
            (Role::Down, M::Plain) if is_first && model.has_importance && base == Format::Q5_0 => {
                Format::Q5_1
            }
            (
                Role::AttentionOutput,
                M::Q2 | M::Q3Small | M::Q3Medium | M::Q4Small | M::Q4Medium | M::Table4,
            ) if model.n_expert == 8 => Format::Q5_K,
            (Role::AttentionOutput, _) if model.n_expert == 8 => base,
            (Role::AttentionOutput, M::Q2) => Format::Q3_K,
            (Role::AttentionOutput, M::Q3Medium) => Format::Q4_K,
            (Role::AttentionOutput, M::Q3Large) => Format::Q5_K,
            _ => base,
        }
    }

    /// What logits come from.
    fn output(&self, row: usize) -> Format {
        let is_whole = row.is_multiple_of(self.base.block_len());
        if self.base == Format::Q8_0 || !is_whole { Format::Q8_0 } else { Format::Q6_K }
    }
}

/// Whether a tensor of a GGUF is quantized at all: matrices are, but for norms, routers and tables of positions.
pub fn is_quantized(name: &str, shape: &[usize]) -> bool {
    Role::of(name, shape) != Role::Kept
}

impl Role {
    fn of(name: &str, shape: &[usize]) -> Self {
        let is_kept = shape.len() < 2
            || !name.ends_with("weight")
            || name.ends_with("_norm.weight")
            || name.ends_with("ffn_gate_inp.weight")
            || ["position_embd.weight", "token_types.weight"].contains(&name);
        let has = |part: &str| name.contains(part);
        match name {
            _ if is_kept => Self::Kept,
            "token_embd.weight" => Self::Embedding,
            "output.weight" => Self::Output,
            _ if has("attn_qkv.weight") || has("attn_v.weight") => Self::Value,
            _ if has("attn_k.weight") => Self::Key,
            _ if has("attn_output.weight") => Self::AttentionOutput,
            _ if has("ffn_down") => Self::Down,
            _ => Self::OtherMatrix,
        }
    }
}

/// N of `blk.N.`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// The format itself if rows of this length are whole blocks of it; else one of smaller blocks with at least as many
/// bits, and half precision where none fits.
pub fn fitting(format: Format, row: usize) -> Format {
    let fits = |format: &Format| row.is_multiple_of(format.block_len());
    let smaller = match format {
        Format::IQ4_XS => Format::IQ4_NL,
        Format::Q2_K | Format::Q3_K => Format::Q4_0,
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        Format::Q6_K => Format::Q8_0,
        other => other,
    };
    [format, smaller].into_iter().find(fits).unwrap_or(Format::F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Model =
        Model { n_layer: 32, n_head: 32, n_kv_head: 8, n_expert: 0, has_output: true, has_importance: false };

    fn choice(recipe: &str, name: &str, row: usize, model: &Model) -> Format {
        let recipe = Recipe::from_name(recipe).expect("a recipe");
        recipe.choose(name, &[4096, row], model, &[]).format
    }

    #[test]
    fn the_first_the_last_and_each_third_layer_get_more_bits() {
        let more = |name: &str| -> Vec<usize> {
            let format = |i: &usize| choice("q4_k_m", &format!("blk.{i}.{name}.weight"), 4096, &MODEL);
            assert!((0..32).all(|i| [Format::Q4_K, Format::Q6_K].contains(&format(&i))));
            (0..32).filter(|i| format(i) == Format::Q6_K).collect()
        };
        let want = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
        assert_eq!(more("attn_v"), want);
        assert_eq!(more("ffn_down"), want);
        assert_eq!(more("ffn_down_exps"), want);
        for name in ["attn_q", "attn_k", "attn_output", "ffn_up", "ffn_gate"] {
            assert_eq!(choice("q4_k_m", &format!("blk.0.{name}.weight"), 4096, &MODEL), Format::Q4_K);
        }
    }

    #[test]
    fn the_output_gets_six_bits_and_the_embedding_where_it_is_the_output() {
        let tied = Model { has_output: false, ..MODEL };
        for (recipe, output, embedding) in [
            ("q4_0", Format::Q6_K, Format::Q4_0),
            ("q8_0", Format::Q8_0, Format::Q8_0),
            ("q2_k", Format::Q6_K, Format::Q2_K),
            ("f16", Format::F16, Format::F16),
        ] {
            assert_eq!(choice(recipe, "output.weight", 4096, &MODEL), output, "{recipe}");
            assert_eq!(choice(recipe, "token_embd.weight", 4096, &MODEL), embedding, "{recipe}");
            assert_eq!(choice(recipe, "token_embd.weight", 4096, &tied), output, "{recipe}");
        }
    }

    #[test]
    fn every_mixture_has_its_corners() {
        let eight = Model { n_expert: 8, ..MODEL };
        let alone = Model { n_kv_head: 32, ..MODEL };
        let large = Model { n_layer: 80, n_head: 64, ..MODEL };
        let weighed = Model { has_importance: true, ..MODEL };
        for (recipe, name, model, want) in [
            ("q2_k", "blk.9.attn_v", MODEL, Format::Q4_K),
            ("q2_k", "blk.9.attn_v", alone, Format::Q3_K),
            ("q2_k", "blk.9.ffn_down", MODEL, Format::Q3_K),
            ("q2_k", "blk.9.attn_output", MODEL, Format::Q3_K),
            ("q2_k_s", "blk.9.attn_v", alone, Format::Q2_K),
            ("q2_k_s", "blk.3.ffn_down", MODEL, Format::Q4_K),
            ("q2_k_s", "blk.4.ffn_down", MODEL, Format::Q2_K),
            ("q3_k_m", "blk.1.attn_v", MODEL, Format::Q5_K),
            ("q3_k_m", "blk.2.attn_v", MODEL, Format::Q4_K),
            ("q3_k", "blk.1.ffn_down", MODEL, Format::Q5_K),
            ("q3_k_m", "blk.2.ffn_down", MODEL, Format::Q4_K),
            ("q3_k_l", "blk.2.ffn_down", MODEL, Format::Q5_K),
            ("q3_k_l", "blk.2.attn_output", MODEL, Format::Q5_K),
            ("q3_k_s", "blk.2.attn_output", MODEL, Format::Q3_K),
            ("q4_k_s", "blk.3.attn_v", MODEL, Format::Q5_K),
            ("q4_k_s", "blk.4.attn_v", MODEL, Format::Q4_K),
            ("q4_k_s", "blk.3.ffn_down", MODEL, Format::Q5_K),
            ("q4_k_s", "blk.4.ffn_down", MODEL, Format::Q4_K),
            ("q5_k_m", "blk.0.attn_qkv", MODEL, Format::Q6_K),
            ("q5_k_s", "blk.0.attn_qkv", MODEL, Format::Q5_K),
            ("iq4_xs", "blk.9.attn_v", MODEL, Format::Q5_K),
            ("iq4_xs", "blk.0.ffn_down", MODEL, Format::Q5_K),
            ("iq4_xs", "blk.0.ffn_down", weighed, Format::IQ4_XS),
            ("q4_0", "blk.0.ffn_down", MODEL, Format::Q4_0),
            ("q4_0", "blk.0.ffn_down", weighed, Format::Q4_1),
            ("q5_0", "blk.3.ffn_down", weighed, Format::Q5_1),
            ("q5_0", "blk.4.ffn_down", weighed, Format::Q5_0),
            ("q4_0", "blk.9.attn_k", eight, Format::Q8_0),
            ("q4_k_m", "blk.9.attn_v", eight, Format::Q8_0),
            ("q4_k_m", "blk.9.attn_output", eight, Format::Q5_K),
            ("q3_k_l", "blk.9.attn_output", eight, Format::Q3_K),
            ("q4_k_m", "blk.10.attn_v", large, Format::Q5_K),
            ("Q5_K", "blk.10.ffn_up", MODEL, Format::Q5_K),
        ] {
            assert_eq!(choice(recipe, &format!("{name}.weight"), 4096, &model), want, "{recipe} {name}");
        }
    }

    #[test]
    fn what_does_not_fit_gets_smaller_blocks() {
        for (wanted, of_32, of_none) in [
            (Format::Q4_K, Format::Q5_0, Format::F16),
            (Format::Q5_K, Format::Q5_1, Format::F16),
            (Format::Q6_K, Format::Q8_0, Format::F16),
            (Format::Q2_K, Format::Q4_0, Format::F16),
            (Format::IQ4_XS, Format::IQ4_NL, Format::F16),
            (Format::Q4_1, Format::Q4_1, Format::F16),
            (Format::BF16, Format::BF16, Format::BF16),
        ] {
            assert_eq!([512, 96, 33].map(|row| fitting(wanted, row)), [wanted, of_32, of_none]);
        }
        let recipe = Recipe::from_name("q4_k_m").expect("a recipe");
        let choice = recipe.choose("blk.9.ffn_up.weight", &[64, 96], &MODEL, &[]);
        assert_eq!(choice, Choice { format: Format::Q5_0, wanted: Format::Q4_K });
    }

    #[test]
    fn norms_vectors_and_routers_are_kept_and_names_override() {
        let recipe = Recipe::from_name("q4_0").expect("a recipe");
        let overrides = [("ffn_down".to_owned(), Format::Q6_K), ("blk.1.".to_owned(), Format::Q8_0)];
        let format = |name: &str, shape: &[usize]| recipe.choose(name, shape, &MODEL, &overrides).format;
        for (name, shape) in [
            ("blk.1.attn_norm.weight", &[512][..]),
            ("blk.1.attn_q.bias", &[512]),
            ("blk.1.ffn_gate_inp.weight", &[8, 512]),
            ("position_embd.weight", &[64, 512]),
        ] {
            assert_eq!(format(name, shape), Format::F32, "{name}");
            assert!(!is_quantized(name, shape), "{name}");
        }
        assert_eq!(format("blk.1.ffn_down.weight", &[512, 512]), Format::Q6_K);
        assert_eq!(format("blk.1.attn_q.weight", &[512, 512]), Format::Q8_0);
        assert_eq!(format("blk.2.attn_q.weight", &[512, 512]), Format::Q4_0);
        let pure = |name: &str| recipe.choose_pure(name, &[512, 512], &overrides).format;
        assert_eq!([pure("output.weight"), pure("blk.1.x.weight")], [Format::Q4_0, Format::Q8_0]);
    }

    #[test]
    fn names_are_unique_and_known() {
        let mut names: Vec<_> = Recipe::names().collect();
        assert!(names.iter().all(|name| Recipe::from_name(name).is_some_and(|found| found.name() == *name)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RECIPES.len());
        assert_eq!(Recipe::from_name("q4_k_xl"), None);
        assert_eq!([Format::Q4_K, Format::Q8_0].map(Recipe::file_type_of), [15, 7]);
        assert!(Format::ALL.iter().all(|&f| RECIPES.iter().any(|recipe| recipe.base == f)));
    }
}
