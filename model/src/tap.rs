//! Listening to what matrices are multiplied by: the sums of squares of each column's inputs, for weighted quantization.
//!
//! A [`Tap`] is part of each linear layer and does nothing until somebody listens ([`Taps::listen`]). It works on any
//! backend, since it looks at tensors between operations; a layer that is listened to copies its inputs to the host.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::prelude::*;
use quant::Importance;

use crate::transformer::Transformer;
use crate::weights::names::{self, Layout};

/// Where the inputs of a layer go that is listened to.
#[derive(Clone, Default)]
pub struct Tap(Option<Arc<Mutex<Vec<Heard>>>>);

/// What one matrix was multiplied by.
#[derive(Clone, Debug, Default)]
struct Heard {
    /// `[n_in]`: of squares
    sums: Vec<f64>,
    rows: usize,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "listening" } else { "idle" })
    }
}

impl Tap {
    /// Adds inputs, if anybody listens: of each matrix so many rows, one below the other.
    ///
    /// # Shapes
    /// - `x`: `[rows, n_in]`
    /// - `counts`: of each of the layer's matrices; together `rows`
    pub(crate) fn hear<B: Backend>(&self, x: &Tensor<B, 2>, counts: &[usize]) {
        let Some(heard) = &self.0 else { return };
        let n_in = x.dims()[1];
        let values = crate::weights::values(x);
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.resize(counts.len(), Heard { sums: vec![0.0; n_in], rows: 0 });
        let mut rows = values.chunks_exact(n_in);
        for (heard, &n) in heard.iter_mut().zip(counts) {
            heard.rows += n;
            for row in rows.by_ref().take(n) {
                for (sum, &value) in heard.sums.iter_mut().zip(row) {
                    *sum += f64::from(value) * f64::from(value);
                }
            }
        }
    }
}

/// The taps of all matrices in a model's blocks.
pub struct Taps {
    /// With the path of the parameter and its number of rows.
    taps: Vec<(String, usize, Tap)>,
}

impl Taps {
    /// Begins to listen. The embedding and the head are left out, as in llama.cpp's statistics.
    pub fn listen<B: Backend>(model: &mut Transformer<B>) -> Self {
        let mut taps = Vec::new();
        for (i, block) in model.blocks.iter_mut().enumerate() {
            let (attention, mlp) = (&mut block.attention, &mut block.mlp);
            for (name, linear) in [
                ("attention.qkv", &mut attention.qkv),
                ("attention.out", &mut attention.out),
                ("mlp.up", &mut mlp.up),
                ("mlp.down", &mut mlp.down),
            ] {
                linear.tap = Tap(Some(Arc::default()));
                // Its shape alone: asking for a packed matrix as a tensor would unpack it.
                let rows = linear.weight.lazy_shape()[0];
                taps.push((format!("blocks.{i}.{name}.weight"), rows, linear.tap.clone()));
            }
        }
        Self { taps }
    }

    /// What was heard so far, by the names that tensors have in files of this layout.
    pub fn importance(&self, config: &crate::Config, layout: Layout) -> Importance {
        let mut importance = Importance::default();
        for (path, rows, tap) in &self.taps {
            let heard = tap.0.as_ref().map(|heard| heard.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(heard) = heard.filter(|heard| !heard.is_empty()) else { continue };
            let sums: Vec<f32> = heard.iter().flat_map(|heard| &heard.sums).map(|&sum| sum as f32).collect();
            let counts: Vec<f32> = heard.iter().map(|heard| heard.rows as f32).collect();
            let mut names: Vec<String> =
                names::pieces(path, *rows, config, layout).into_iter().map(|piece| piece.name).collect();
            names.sort_unstable();
            names.dedup();
            names.iter().for_each(|name| importance.add(name, sums.clone(), counts.clone()));
        }
        importance
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::Config;
    use crate::config::{Experts, MlpKind};
    use crate::weights::family::Family;

    fn config() -> Config {
        Config { n_kv_head: Some(1), mlp: MlpKind::SwiGlu, ..Config::new(30, 2, 8, 2, 16) }
    }

    fn ids() -> Tensor<Flex, 2, Int> {
        Tensor::from_data([[1, 5, 9, 2], [7, 7, 0, 3]], &Default::default())
    }

    #[test]
    fn what_the_first_matrix_gets_is_the_normalised_embedding() {
        let device = Default::default();
        let mut model = Transformer::<Flex>::init(&config(), 1, &device);
        let silent = model.hidden(ids());
        let taps = Taps::listen(&mut model);
        let layout = Layout::Gguf(Family::Llama);
        assert!(taps.importance(&config(), layout).is_empty());
        let hidden = model.hidden(ids());
        assert_eq!(hidden.to_data(), silent.to_data());
        let heard = taps.importance(&config(), layout);
        // Queries, keys, values, output, gate, up, down.
        assert_eq!(heard.len(), 2 * 7);
        let x = model.embedding.val().select(0, ids().reshape([8]));
        let x = model.blocks[0].attention_norm.as_ref().expect("a norm").forward(x);
        let want: Vec<f32> = crate::weights::values(&x.clone().square().mean_dim(0));
        for name in ["q", "k", "v"] {
            let found = heard.of(&format!("blk.0.attn_{name}.weight"), 1, 8).expect("fits").expect("there");
            assert!(found.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6 * b.abs().max(1.0)), "{name}");
        }
        // Twice the same text: twice the sums and counts, the same means.
        model.hidden(ids());
        let again = taps.importance(&config(), layout);
        let of = |heard: &Importance| heard.of("blk.1.ffn_down.weight", 1, config().n_ff()).expect("fits");
        let pairs = of(&heard).expect("there").into_iter().zip(of(&again).expect("there"));
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-6 * a));
    }

    #[test]
    fn listening_to_a_packed_model_leaves_it_packed() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/families/llama");
        let opened = crate::weights::open(fixture.as_ref()).expect("opened");
        let mut model = opened.load_packed::<Flex>(&Default::default()).expect("loaded");
        let taps = Taps::listen(&mut model);
        model.hidden(ids());
        assert!(!taps.importance(model.config(), opened.layout()).is_empty());
        for block in &model.blocks {
            let linears = [&block.attention.qkv, &block.attention.out, &block.mlp.up, &block.mlp.down];
            assert!(
                linears.iter().all(|linear| linear.packed.0.is_some() && !linear.weight.is_initialized())
            );
        }
    }

    #[test]
    fn each_expert_has_inputs_of_its_own() {
        let experts = Experts { n: 3, n_active: 1, n_ff: None, normalise: true, dense_layers: Vec::new() };
        let config = Config { experts: Some(experts), ..config() };
        let mut model = Transformer::<Flex>::init(&config, 1, &Default::default());
        let taps = Taps::listen(&mut model);
        model.hidden(ids());
        let (_, _, tap) = &taps.taps[2];
        let heard = tap.0.as_ref().expect("listening").lock().expect("whole").clone();
        assert_eq!(heard.iter().map(|heard| heard.rows).sum::<usize>(), 8);
        assert_eq!(heard.len(), 3);
        assert!(heard.iter().all(|heard| (heard.rows == 0) == heard.sums.iter().all(|&sum| sum == 0.0)));
        let found = taps.importance(&config, Layout::Gguf(Family::Mixtral));
        assert!(found.of("blk.0.ffn_gate_exps.weight", 3, 8).expect("fits").is_some());
        assert!(found.of("blk.0.ffn_down_exps.weight", 3, config.n_ff()).expect("fits").is_some());
    }
}
