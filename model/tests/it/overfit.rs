//! The end-to-end test of learning: a tiny model learns one batch by heart.

use burn::backend::Autodiff;
use burn::module::{ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use model::ops::AdamW;
use model::{Config, FusedOps, Transformer};

use crate::cases::{self, Ids};
use crate::numbers::{primitive, tensor};

on_cpu!(one_batch_is_learnt_by_heart);

fn one_batch_is_learnt_by_heart<B: FusedOps>() {
    let configs = [
        cases::gpt2_like(),
        cases::llama_like(),
        cases::multi_query(),
        cases::mixtral_like(),
        cases::sinks(),
    ];
    for config in configs {
        let mut model = Transformer::<Autodiff<B>>::init(&config, 1, &Default::default());
        let others = Config { vocab_size: config.vocab_size - 4, ..config.clone() };
        let (mut ids, targets) = (Ids::random(&others, 4, 16, 2), Ids::random(&config, 4, 16, 3));
        // Each sequence begins with an id that is nowhere else. Two that begin alike could not both be
        // foretold, nor the second id of one that begins with a repetition: without learned positions a
        // mean over equal values tells nothing of their number.
        ids.values
            .iter_mut()
            .step_by(16)
            .zip(others.vocab_size as i32..)
            .for_each(|(first, own)| *first = own);
        let mut moments = Vec::new();
        let mut losses = Vec::new();
        for step in 1..=200 {
            let loss = model.loss(ids.tensor(), targets.flat(), 1.0 / 64.0);
            losses.push(loss.clone().into_scalar().elem::<f32>());
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            model = model.map(&mut Step::<B> { step, grads, moments: &mut moments, param_idx: 0 });
        }
        let (first, last) = (losses[0], losses[199]);
        assert!((first - (config.vocab_size as f32).ln()).abs() < 0.3, "starts at {first}, {config:?}");
        assert!(last < 0.01, "ends at {last}, {config:?}");
    }
}

/// One step of AdamW on every parameter.
struct Step<'a, B: Backend> {
    step: u64,
    grads: GradientsParams,
    moments: &'a mut Vec<(FloatTensor<B>, FloatTensor<B>)>,
    param_idx: usize,
}

impl<B: FusedOps> ModuleMapper<Autodiff<B>> for Step<'_, B> {
    fn map_float<const D: usize>(
        &mut self,
        param: Param<Tensor<Autodiff<B>, D>>,
    ) -> Param<Tensor<Autodiff<B>, D>> {
        let (id, old, mapper) = param.consume();
        let grad = self.grads.remove::<B, D>(id).expect("every parameter has a gradient");
        if self.moments.len() == self.param_idx {
            let zeros = || primitive(grad.zeros_like());
            self.moments.push((zeros(), zeros()));
        }
        let moments = self.moments[self.param_idx].clone();
        let config = AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            step: self.step,
            grad_scale: 1.0,
        };
        let (new, moments) = B::fused_adamw(primitive(old.inner()), primitive(grad), moments, config);
        self.moments[self.param_idx] = moments;
        self.param_idx += 1;
        Param::from_mapped_value(id, Tensor::from_inner(tensor::<B, D>(new)).require_grad(), mapper)
    }
}
