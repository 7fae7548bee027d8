//! `flint logits`: numbers for comparing models and implementations.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use burn::tensor::{Tensor, TensorData};
use model::FusedOps;
use model::backend::Job;

use super::Common;
use crate::{args, loading};

pub fn run(args: args::Logits, common: Common) -> Result<ExitCode> {
    common.on_backend(Run { args, common })
}

struct Run {
    args: args::Logits,
    common: Common,
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, common } = self;
        let model =
            loading::model_with::<B>(&loading::model_path(&args.model)?, &args.lora, &device, self.common)?;
        let (n, vocab_size, context) = (args.ids.len(), model.config().vocab_size, model.config().context);
        if n > context {
            bail!("{n} ids are more than the model's context of {context}");
        }
        if let Some(id) = args.ids.iter().find(|&&id| id as usize >= vocab_size) {
            bail!("id {id} is not in the model's vocabulary of {vocab_size}");
        }
        let ids = TensorData::new(args.ids.iter().map(|&id| id as i32).collect(), [1, n]);
        let logits = model.forward(Tensor::from_data(ids, &device));
        let values = model::weights::values(&logits);
        model::files::write_atomic(&args.out, |f| write_npy(f, &values, [n, vocab_size]))
            .with_context(|| format!("cannot write {}", args.out.display()))?;
        common.note(&format!("wrote {n} x {vocab_size} logits to {}", args.out.display()));
        Ok(ExitCode::SUCCESS)
    }
}

/// NumPy's format, version 1.0: magic, header length, a Python dictionary padded to 64 bytes, the data.
fn write_npy(f: &mut impl Write, values: &[f32], shape: [usize; 2]) -> std::io::Result<()> {
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", shape[0], shape[1]);
    let padded = (10 + header.len() + 1).next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', padded - 10 - header.len() - 1));
    header.push('\n');
    f.write_all(b"\x93NUMPY\x01\x00")?;
    f.write_all(&(header.len() as u16).to_le_bytes())?;
    f.write_all(header.as_bytes())?;
    values.iter().try_for_each(|v| f.write_all(&v.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_padded_and_says_the_shape() {
        let mut bytes = Vec::new();
        write_npy(&mut bytes, &[1.0, 2.0], [1, 2]).expect("written");
        assert_eq!(bytes.len() % 64, 8);
        let header = String::from_utf8_lossy(&bytes[10..bytes.len() - 8]).into_owned();
        assert!(header.starts_with("{'descr': '<f4'") && header.contains("(1, 2)") && header.ends_with('\n'));
        assert_eq!(bytes[bytes.len() - 8..bytes.len() - 4], 1f32.to_le_bytes());
    }
}
