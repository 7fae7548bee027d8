//! Packed matrices in the memory of a device, for the backends of CubeCL: CUDA and wgpu.
//!
//! A matrix stays in the numbers of its file, as [`words`] lays them out, and is unpacked inside of the kernels that read it
//! (`kernels`). All else runs Burn's operations.

mod kernels;

use std::ops::Range;

use ::kernels::packed::{Kind, words};
use burn::prelude::*;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::cubecl::client::ComputeClient;
use burn_cubecl::cubecl::server::Handle;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime};

use self::kernels::Target;
use super::{FusedOps, PackedMatrix, Source, reference, unwrap, wrap};

/// Rows of one kind in one buffer.
#[derive(Debug)]
struct Chunk {
    kind: Kind,
    /// The first of them, in the matrix.
    first: usize,
    n_out: usize,
    /// Packed as [`words`] says.
    words: Handle,
    n_words: usize,
}

/// A matrix `[n_out, n_in]` in the memory of a device.
#[derive(Debug)]
pub struct Matrix {
    /// One below the other; none has rows of two sources.
    chunks: Vec<Chunk>,
    n_out: usize,
    n_in: usize,
}

/// Bytes of a buffer at most: what every device that WebGPU knows can bind to a kernel.
const MAX_CHUNK: usize = 128 << 20;

impl Matrix {
    fn new<R: CubeRuntime, E: Send>(
        sources: &[Source<'_, E>],
        n_in: usize,
        device: &R::Device,
    ) -> Result<Self, E> {
        let client = R::client(device);
        let (mut chunks, mut n_out) = (Vec::new(), 0);
        for source in sources {
            let row_bytes = 4 * source.kind.row_words(n_in).len;
            let at_once = (MAX_CHUNK / row_bytes).max(1);
            for first in (0..source.n_out).step_by(at_once) {
                let rows = first..source.n_out.min(first + at_once);
                let words = words::pack(source.kind, rows.clone(), n_in, &source.read)?;
                let n_words = words.len();
                let words = upload(&client, words);
                let (first, n_rows) = (n_out + first, rows.len());
                chunks.push(Chunk { kind: source.kind, first, n_out: n_rows, words, n_words });
            }
            n_out += source.n_out;
        }
        Ok(Self { chunks, n_out, n_in })
    }

    /// Number of rows.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Numbers of a row.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Bytes of all numbers and scales.
    pub fn n_bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| 4 * chunk.n_words).sum()
    }

    /// The chunks of some rows.
    fn chunks_of(&self, rows: Range<usize>) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().filter(move |chunk| rows.contains(&chunk.first))
    }
}

/// Puts words into memory of the device that is theirs alone, as they stay there: the pools that tensors share would keep
/// the space between.
fn upload<R: CubeRuntime>(client: &ComputeClient<R>, words: Vec<u32>) -> Handle {
    let len = words.len();
    let bytes = TensorData::new(words, [len]).bytes;
    let handle = client.memory_persistent_allocation(bytes, |bytes| client.create(bytes));
    handle.expect("the device's server runs as long as its client")
}

/// A contiguous tensor that nothing wrote yet.
fn empty<R: CubeRuntime>(of: &CubeTensor<R>, shape: [usize; 2]) -> CubeTensor<R> {
    let handle = of.client.empty(4 * shape[0] * shape[1]);
    CubeTensor::new_contiguous(of.client.clone(), of.device.clone(), shape.into(), handle, DType::F32)
}

impl<R: CubeRuntime, BT: BoolElement> FusedOps for CubeBackend<R, f32, i32, BT> {
    const PACKS: bool = true;

    fn device_bytes(device: &Self::Device) -> Option<u64> {
        R::client(device).memory_usage().ok().map(|usage| usage.bytes_reserved)
    }

    fn pack<E: Send>(
        sources: &[Source<'_, E>],
        n_in: usize,
        device: &Self::Device,
    ) -> Result<PackedMatrix, E> {
        Matrix::new::<R, E>(sources, n_in, device).map(PackedMatrix::Device)
    }

    fn fused_unpacked(w: &PackedMatrix, device: &Self::Device) -> FloatTensor<Self> {
        match w {
            PackedMatrix::Device(w) => {
                let all = Tensor::<Self, 1, Int>::arange(0..w.n_out as i64, device);
                rows(w, all.into_primitive())
            }
            PackedMatrix::Host(_) => reference::unpacked::<Self>(w, device),
        }
    }

    fn fused_packed_rows(w: &PackedMatrix, ids: IntTensor<Self>) -> FloatTensor<Self> {
        match w {
            PackedMatrix::Device(w) => rows(w, ids),
            PackedMatrix::Host(_) => reference::packed_rows::<Self>(w, ids),
        }
    }

    fn fused_packed_linear(x: FloatTensor<Self>, w: &PackedMatrix, counts: &[usize]) -> FloatTensor<Self> {
        match w {
            PackedMatrix::Device(w) => linear(unwrap(padded::<Self>(wrap(x))), w, counts),
            PackedMatrix::Host(_) => reference::packed_linear::<Self>(x, w, counts),
        }
    }
}

/// Rows with zeros after the last column, so that they are whole units of what kernels read.
fn padded<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [rows, n_in] = x.dims();
    let missing = n_in.next_multiple_of(words::UNIT) - n_in;
    if missing == 0 {
        return x;
    }
    let zeros = Tensor::zeros([rows, missing], &x.device());
    Tensor::cat(vec![x, zeros], 1)
}

fn linear<R: CubeRuntime>(x: CubeTensor<R>, w: &Matrix, counts: &[usize]) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let n_out = w.n_out / counts.len();
    let y = empty(&x, [x.shape()[0], n_out]);
    let mut first = 0;
    for (group, &n_rows) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        let all = group * n_out..(group + 1) * n_out;
        for chunk in w.chunks_of(all.clone()) {
            let target = Target { first, n_rows, width: n_out, column: chunk.first - all.start };
            kernels::multiply(&x, chunk, w.n_in, &y, target);
        }
        first += n_rows;
    }
    y
}

fn rows<R: CubeRuntime>(w: &Matrix, ids: CubeTensor<R>) -> CubeTensor<R> {
    let ids = into_contiguous(ids);
    let y = empty(&ids, [ids.shape()[0], w.n_in]);
    w.chunks.iter().for_each(|chunk| kernels::rows(&ids, chunk, w.n_in, &y));
    y
}
