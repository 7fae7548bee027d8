//! AdamW over a whole model, with decay only where it belongs and clipping by global norm.
//!
//! Burn's own optimizer decays every parameter alike and clips each on its own; here weight matrices
//! decay while embeddings, norms and biases do not, and the norm is taken over all gradients together.
//! A model moved into [`AdamW::update`] is updated in place: nobody else holds its parameters.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{TensorMetadata, TensorPrimitive};
use model::FusedOps;
use model::ops;
use model::span;
use model::weights::{Saved, values};

use crate::config::TrainConfig;
use crate::step_loop::Lm;

/// The settings and both moments of every parameter, by the parameter's path in the model.
#[derive(Debug, Clone)]
pub struct AdamW<B: Backend> {
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    step: u64,
    moments: BTreeMap<String, (FloatTensor<B>, FloatTensor<B>)>,
}

/// Whether a parameter shrinks by itself: matrices inside the blocks, and an untied head.
fn decays(path: &[String], rank: usize) -> bool {
    rank == 2 && path.iter().any(|part| part == "blocks" || part == "head")
}

/// The layer that a parameter is part of.
fn layer(path: &[String]) -> Option<usize> {
    path.iter().skip_while(|part| *part != "blocks").nth(1)?.parse().ok()
}

impl<B: FusedOps> AdamW<B> {
    /// No updates done yet.
    pub fn new(config: &TrainConfig) -> Self {
        Self {
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            weight_decay: config.weight_decay,
            step: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Moves every parameter against its gradient times `grad_scale`.
    pub fn update(
        &mut self,
        model: Lm<Autodiff<B>>,
        grads: GradientsParams,
        lr: f64,
        grad_scale: f32,
    ) -> Lm<Autodiff<B>> {
        self.step += 1;
        model.map(&mut Updater { optim: self, grads, lr: lr as f32, grad_scale, path: Vec::new() })
    }

    /// Both moments of every parameter by name, ready to be written.
    pub fn state(&self) -> Vec<(String, Saved<'_>)> {
        let saved = |t: &FloatTensor<B>| {
            let (shape, t) = (t.shape(), t.clone());
            let flat = [shape.num_elements()];
            Saved::new(shape.to_vec(), move || {
                let flat = B::float_reshape(t.clone(), flat.into());
                values(&Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(flat)))
            })
        };
        let both = |(path, (m, v)): (&String, &(_, _))| {
            [(format!("{path}.m"), saved(m)), (format!("{path}.v"), saved(v))]
        };
        self.moments.iter().flat_map(both).collect()
    }

    /// Takes over what [`state`](Self::state) gave. The error names a tensor without its partner.
    ///
    /// # Errors
    /// The name of a tensor that is no moment or lacks the other one.
    pub fn restore(
        &mut self,
        tensors: Vec<(String, TensorData)>,
        step: u64,
        device: &B::Device,
    ) -> Result<(), String> {
        let mut by_name: BTreeMap<String, TensorData> = tensors.into_iter().collect();
        let mut moments = BTreeMap::new();
        while let Some((name, m)) = by_name.pop_first() {
            let path = name.strip_suffix(".m").ok_or_else(|| name.clone())?;
            let v = by_name.remove(&format!("{path}.v")).ok_or_else(|| name.clone())?;
            let tensor = |data| B::float_from_data(data, device);
            moments.insert(path.to_owned(), (tensor(m), tensor(v)));
        }
        self.step = step;
        self.moments = moments;
        Ok(())
    }
}

struct Updater<'a, B: Backend> {
    optim: &'a mut AdamW<B>,
    grads: GradientsParams,
    lr: f32,
    grad_scale: f32,
    path: Vec<String>,
}

impl<B: FusedOps> ModuleMapper<Autodiff<B>> for Updater<'_, B> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(
        &mut self,
        param: Param<Tensor<Autodiff<B>, D>>,
    ) -> Param<Tensor<Autodiff<B>, D>> {
        let (id, tensor, mapper) = param.consume();
        let Some(grad) = self.grads.remove::<B, D>(id) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let requires_grad = tensor.is_require_grad();
        let path = self.path.join(".");
        let grad = grad.into_primitive().tensor();
        let moments = self.optim.moments.remove(&path).unwrap_or_else(|| {
            let zeros = || Tensor::<B, D>::zeros(grad.shape(), &tensor.device()).into_primitive().tensor();
            (zeros(), zeros())
        });
        let step = ops::AdamW {
            lr: self.lr,
            beta1: self.optim.beta1,
            beta2: self.optim.beta2,
            eps: self.optim.eps,
            weight_decay: if decays(&self.path, D) { self.optim.weight_decay } else { 0.0 },
            step: self.optim.step,
            grad_scale: self.grad_scale,
        };
        let param = tensor.inner().into_primitive().tensor();
        let (param, moments) = {
            let _op = span::update::<B>("AdamW", layer(&self.path), &param);
            B::fused_adamw(param, grad, moments, step)
        };
        self.optim.moments.insert(path, moments);
        let tensor = Tensor::from_inner(Tensor::<B, D>::from_primitive(TensorPrimitive::Float(param)));
        Param::from_mapped_value(id, tensor.set_require_grad(requires_grad), mapper)
    }
}

/// The Euclidean norm of all gradients together.
pub fn grad_norm<B: FusedOps>(model: &Lm<Autodiff<B>>, grads: &GradientsParams) -> f64 {
    let mut visitor = SquareSum { grads, sum: 0.0 };
    model.visit(&mut visitor);
    visitor.sum.sqrt()
}

/// The Euclidean norm of all parameters together; not finite where a weight is so large that its square
/// overflows f32, long before which a model has stopped computing anything.
pub fn weight_norm<B: FusedOps>(model: &Lm<Autodiff<B>>) -> f64 {
    struct Visitor(f64);
    impl<B: FusedOps> ModuleVisitor<Autodiff<B>> for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            self.0 += B::fused_sum_of_squares(param.val().inner().into_primitive().tensor());
        }
    }
    let mut visitor = Visitor(0.0);
    model.visit(&mut visitor);
    visitor.0.sqrt()
}

struct SquareSum<'a> {
    grads: &'a GradientsParams,
    sum: f64,
}

impl<B: FusedOps> ModuleVisitor<Autodiff<B>> for SquareSum<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        if let Some(grad) = self.grads.get::<B, D>(param.id) {
            self.sum += B::fused_sum_of_squares(grad.into_primitive().tensor());
        }
    }
}

/// burn-train's `Learner` asks for an optimizer by type. The step loop calls [`AdamW::update`] itself,
/// since the `Learner` keeps a second handle on every parameter, which would be copied at each step; and
/// checkpoints hold the state under the parameters' names, so burn's record is empty.
impl<B: FusedOps> Optimizer<Lm<Autodiff<B>>, Autodiff<B>> for AdamW<B> {
    type Record = ();

    fn step(&mut self, lr: f64, module: Lm<Autodiff<B>>, grads: GradientsParams) -> Lm<Autodiff<B>> {
        self.update(module, grads, lr, 1.0)
    }

    fn step_multi(
        &mut self,
        lr: f64,
        module: Lm<Autodiff<B>>,
        grads: MultiGradientsParams,
    ) -> Lm<Autodiff<B>> {
        let mut sum = burn::optim::GradientsAccumulator::new();
        for (grads, _) in grads.grads {
            sum.accumulate(&module, grads);
        }
        let grads = sum.grads();
        self.update(module, grads, lr, 1.0)
    }

    fn to_record(&self) {}

    fn load_record(self, (): ()) -> Self {
        self
    }
}
