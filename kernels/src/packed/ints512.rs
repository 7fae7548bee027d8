//! Products with small integers on 512-bit registers, sixteen rows of weights at a time, for CPUs with AVX-512 VNNI.
//!
//! Two tiles of [`ints`](super::ints) lie side by side in a register, so that a broadcast of four numbers of the other
//! factor, which the instruction itself does, serves sixteen sums. Rows come in bands of up to 32, four abreast, and the last
//! ones are filled up with zeros. A single row is bound by reading weights and left to `ints`.

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{band_of, is_available, multiply};

#[cfg(not(target_arch = "x86_64"))]
pub(super) use others::{band_of, is_available, multiply};

#[cfg(not(target_arch = "x86_64"))]
mod others {
    use super::super::ints::{Job, Scales};
    use crate::matmul::MatMut;

    pub fn is_available() -> bool {
        false
    }

    pub fn band_of(_: usize) -> (usize, usize) {
        unreachable!("no input is wide")
    }

    pub fn multiply<S: Scales, const BITS: u32>(_: &Job, _: &mut MatMut) {
        unreachable!("no input is wide")
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::input::{self, BLOCK, Band};
    use super::super::ints::{Job, Scales, Unpacked, block_bytes, prefetch, tile_bytes};
    use crate::Isa;
    use crate::matmul::MatMut;
    use crate::simd::ints::{GROUP, ROWS, VECTORS};
    use crate::simd::{Avx2, Avx2Ints};

    /// Rows of two tiles.
    const BOTH: usize = 2 * ROWS;

    /// Whether this CPU can run it.
    pub fn is_available() -> bool {
        matches!(Isa::current(), Isa::Vnni | Isa::Bf16)
    }

    /// Every row of `x` times every row of the tiles; a last tile may have rows that `y` has no columns for.
    ///
    /// # Panics
    /// If this CPU cannot run it, or the shapes do not fit together.
    pub fn multiply<S: Scales, const BITS: u32>(job: &Job, y: &mut MatMut) {
        assert!(Isa::Vnni.is_available() && job.x.is_wide);
        // SAFETY: available means that all of these features were found on this CPU.
        unsafe { multiply_wide::<S, BITS>(job, y) }
    }

    /// A block of two tiles, unpacked.
    struct Wide {
        q: [__m512i; VECTORS],
        scales: [__m512; 2],
        min: __m512,
    }

    #[target_feature(enable = "avx512f")]
    fn both(low: __m256, high: __m256) -> __m512 {
        let (low, high) = (_mm256_castps_pd(low), _mm256_castps_pd(high));
        _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castpd256_pd512(low), high))
    }

    impl Wide {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn new<S: Scales, const BITS: u32>(
            low: Unpacked<Avx2Ints<true>>,
            high: Unpacked<Avx2Ints<true>>,
        ) -> Self {
            let mut q = [_mm512_setzero_si512(); VECTORS];
            for ((q, low), high) in q.iter_mut().zip(low.q).zip(high.q) {
                *q = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
            let scales = [0, 1].map(|i| both(low.scales[i].0, high.scales[i].0));
            Self { q, scales, min: both(low.min.0, high.min.0) }
        }

        /// Adds the products with blocks of `N` rows of the other factor, without minimums.
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn add_products<S: Scales, const BITS: u32, const N: usize>(
            &self,
            x: &[input::Block; N],
            sums: &mut [__m512; N],
        ) {
            let half = if S::PER_BLOCK == 1 { VECTORS } else { VECTORS / 2 };
            for part in 0..VECTORS / half {
                let mut products = [_mm512_setzero_si512(); N];
                if !S::HAS_MIN {
                    for (products, x) in products.iter_mut().zip(x) {
                        let [all, first] = x.negated_sums;
                        let sum = if S::PER_BLOCK == 1 { all } else { [first, all - first][part] };
                        // A shift by a literal would need one, which a generic's `BITS - 1` is not.
                        *products =
                            _mm512_sllv_epi32(_mm512_set1_epi32(sum), _mm512_set1_epi32(BITS as i32 - 1));
                    }
                }
                for v in part * half..(part + 1) * half {
                    for (products, x) in products.iter_mut().zip(x) {
                        let group =
                            _mm512_set1_epi32(i32::from_ne_bytes(x.q.as_chunks().0[v].map(|x: i8| x as u8)));
                        *products = _mm512_dpbusd_epi32(*products, self.q[v], group);
                    }
                }
                for ((sums, products), x) in sums.iter_mut().zip(products).zip(x) {
                    let scale = _mm512_mul_ps(self.scales[part], _mm512_set1_ps(x.scale));
                    *sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, *sums);
                }
            }
        }
    }

    /// Blocks of rows that stay in a second-level cache while all tiles pass by, if a band has no more: 384 KiB.
    const BLOCKS_AT_ONCE: usize = 8192;

    /// The most rows of a band: a block of weights is unpacked once for all of them.
    const WIDEST: usize = 32;

    /// Rows whose products are added up side by side, so that the processor is busy while each waits for its own sum.
    const ABREAST: usize = 4;

    /// Of so many rows, those of the next band, and how many these are with rows of zeros.
    pub fn band_of(n_rows: usize) -> (usize, usize) {
        let n = n_rows.min(WIDEST);
        (n, n.next_multiple_of(ABREAST))
    }

    /// # Safety
    /// The CPU must have these features.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn multiply_wide<S: Scales, const BITS: u32>(job: &Job, y: &mut MatMut) {
        const { assert!(BLOCK == VECTORS * GROUP) };
        let Job { tiles, n_blocks, x, ref rows } = *job;
        let (n_bytes, n_tiles) = (tile_bytes::<S>(BITS, n_blocks), y.cols().div_ceil(ROWS));
        assert!(n_blocks.is_multiple_of(S::BLOCKS) && n_blocks > 0);
        assert!(y.rows() == rows.len() && tiles.len() == n_tiles * n_bytes);
        let bands: Vec<_> = x.bands(rows, n_blocks).collect();
        for bands in bands.chunks((BLOCKS_AT_ONCE / (WIDEST * n_blocks)).max(1)) {
            for tile in (0..n_tiles).step_by(2) {
                // A last tile that is alone is there twice; its second sums are not stored.
                let both =
                    [tile, (tile + 1).min(n_tiles - 1)].map(|tile| &tiles[tile * n_bytes..][..n_bytes]);
                let columns = tile * ROWS..y.cols().min((tile + 2) * ROWS);
                for (band, x) in bands {
                    let mut y = y.sub_cols(columns.start, columns.len());
                    let y = &mut y.sub_rows(band.first - rows.start, band.n);
                    // SAFETY: passed on from the caller; these are two whole tiles.
                    unsafe { multiply_band::<S, BITS>(both, n_blocks, band, x, y) };
                }
            }
        }
    }

    /// # Safety
    /// The CPU must have these features, and `both` must be tiles of `n_blocks` blocks.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn multiply_band<S: Scales, const BITS: u32>(
        both: [&[u8]; 2],
        n_blocks: usize,
        band: &Band,
        x: &[input::Block],
        y: &mut MatMut,
    ) {
        let mut sums = [_mm512_setzero_ps(); WIDEST];
        // Sums of what blocks left.
        let mut of_rests = [[0.0f32; BOTH]; WIDEST];
        let mut rests = band.rests.iter().peekable();
        assert!(x.len() == n_blocks * band.width && band.width <= WIDEST);
        let [mut low, mut high] = both.map(<[u8]>::as_ptr);
        for first in (0..n_blocks).step_by(S::BLOCKS) {
            let headers = [low, high];
            low = low.wrapping_add(S::HEADER_BYTES);
            high = high.wrapping_add(S::HEADER_BYTES);
            for idx in first..first + S::BLOCKS {
                prefetch::<Avx2>(low, block_bytes::<S>(BITS));
                prefetch::<Avx2>(high, block_bytes::<S>(BITS));
                // SAFETY: a tile has `n_blocks` blocks, a multiple of those under a header.
                let block = unsafe {
                    let low = Unpacked::new::<S, BITS>(headers[0], low);
                    Wide::new::<S, BITS>(low, Unpacked::new::<S, BITS>(headers[1], high))
                };
                low = low.wrapping_add(block_bytes::<S>(BITS));
                high = high.wrapping_add(block_bytes::<S>(BITS));
                let (x, _) = x[idx * band.width..][..band.width].as_chunks::<ABREAST>();
                for (x, sums) in x.iter().zip(sums.as_chunks_mut::<ABREAST>().0) {
                    block.add_products::<S, BITS, ABREAST>(x, sums);
                    if S::HAS_MIN {
                        for (x, sums) in x.iter().zip(sums) {
                            *sums = _mm512_fmadd_ps(block.min, _mm512_set1_ps(x.total), *sums);
                        }
                    }
                }
                while let Some(rest) = rests.next_if(|rest| rest.idx == idx) {
                    let acc = &mut of_rests[rest.row];
                    // SAFETY: sixteen floats.
                    unsafe {
                        let mut sums = [_mm512_loadu_ps(acc.as_ptr())];
                        block.add_products::<S, BITS, 1>(std::array::from_ref(&rest.block), &mut sums);
                        _mm512_storeu_ps(acc.as_mut_ptr(), sums[0]);
                    }
                }
            }
        }
        let mask = if y.cols() >= BOTH { u16::MAX } else { (1 << y.cols()) - 1 };
        for (row, (sums, rests)) in sums.iter().zip(&of_rests).enumerate().take(band.n) {
            // SAFETY: sixteen floats are loaded, and as many stored as the row has.
            unsafe {
                let all = _mm512_add_ps(*sums, _mm512_loadu_ps(rests.as_ptr()));
                _mm512_mask_storeu_ps(y.row(row).as_mut_ptr(), mask, all);
            }
        }
    }
}
