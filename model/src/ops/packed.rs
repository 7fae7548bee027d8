//! Matrices packed in the memory in which a backend multiplies by them.

use std::ops::Range;

use kernels::packed::{Kind, Matrix, Part, Rows};

/// Reads a range of rows: appends their numbers to empty [`Rows`]. Called by several threads, for all rows once.
type Read<'a, E> = Box<dyn Fn(Range<usize>, &mut Rows) -> Result<(), E> + Sync + 'a>;

/// Rows that are to be packed: those of a tensor, which have all one format.
pub struct Source<'a, E> {
    /// How their numbers are stored.
    pub kind: Kind,
    /// Number of rows.
    pub n_out: usize,
    /// Gives them.
    pub read: Read<'a, E>,
}

/// A packed matrix `[n_out, n_in]`, as [`FusedOps::pack`](super::FusedOps::pack) makes it for a backend.
#[derive(Debug)]
pub enum PackedMatrix {
    /// In the memory of the host, for the CPU backends, and for those that unpack before they multiply.
    Host(Matrix),
    /// In that of a device.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    Device(super::cube::Matrix),
}

impl PackedMatrix {
    /// Packs tensors one below the other, in the memory of the host.
    pub(super) fn on_host<E: Send>(sources: &[Source<'_, E>], n_in: usize) -> Result<Self, E> {
        let parts = sources.iter().map(|source| Part::new(source.kind, source.n_out, n_in, &source.read));
        Ok(Self::Host(Matrix::new(parts.collect::<Result<_, _>>()?)))
    }

    /// The matrix in the memory of the host.
    ///
    /// # Panics
    /// If it is not there: another backend packed it.
    pub(super) fn host(&self) -> &Matrix {
        match self {
            Self::Host(matrix) => matrix,
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            Self::Device(_) => panic!("a matrix in the memory of a device, where that of the host is needed"),
        }
    }

    /// Number of rows.
    pub fn n_out(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.n_out(),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            Self::Device(matrix) => matrix.n_out(),
        }
    }

    /// Numbers of a row.
    pub fn n_in(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.n_in(),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            Self::Device(matrix) => matrix.n_in(),
        }
    }

    /// Bytes of all numbers and scales.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.n_bytes(),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            Self::Device(matrix) => matrix.n_bytes(),
        }
    }
}
