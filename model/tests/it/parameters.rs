//! A model's parameters and gradients as plain lists of numbers.

use burn::backend::Autodiff;
use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use model::{FusedOps, Transformer};

use crate::numbers;

/// A parameter's path in the module, and its elements or its gradient's.
pub type Named = (String, Vec<f32>);

/// The gradients of one backward pass.
pub type Gradients<B> = <Autodiff<B> as AutodiffBackend>::Gradients;

/// All parameters.
pub fn values<B: Backend>(model: &Transformer<B>) -> Vec<Named> {
    let mut list = ValueList::default();
    model.visit(&mut list);
    list.named
}

/// The model with other values in its parameters, in the order of [`values`].
pub fn replace<B: Backend>(model: Transformer<B>, values: Vec<Vec<f32>>) -> Transformer<B> {
    let mut filler = Filler(values.into_iter());
    let model = model.map(&mut filler);
    assert_eq!(filler.0.len(), 0, "more values than parameters");
    model
}

/// The gradient of each parameter.
///
/// # Panics
/// If one has none.
pub fn gradients<B: FusedOps>(model: &Transformer<Autodiff<B>>, grads: &Gradients<B>) -> Vec<Named> {
    let mut list = GradientList::<B> { path: Vec::new(), grads, named: Vec::new() };
    model.visit(&mut list);
    list.named
}

#[derive(Default)]
struct ValueList {
    path: Vec<String>,
    named: Vec<Named>,
}

impl<B: Backend> ModuleVisitor<B> for ValueList {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.named.push((self.path.join("."), numbers::values(param.val())));
    }
}

struct Filler(std::vec::IntoIter<Vec<f32>>);

impl<B: Backend> ModuleMapper<B> for Filler {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, old, mapper) = param.consume();
        let values = self.0.next().expect("a value for every parameter");
        let new = Tensor::from_data(TensorData::new(values, old.dims()), &old.device());
        Param::from_mapped_value(id, new.set_require_grad(old.is_require_grad()), mapper)
    }
}

struct GradientList<'a, B: FusedOps> {
    path: Vec<String>,
    grads: &'a Gradients<B>,
    named: Vec<Named>,
}

impl<B: FusedOps> ModuleVisitor<Autodiff<B>> for GradientList<'_, B> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let name = self.path.join(".");
        let grad = param.val().grad(self.grads).unwrap_or_else(|| panic!("`{name}` has no gradient"));
        self.named.push((name, numbers::values(grad)));
    }
}
