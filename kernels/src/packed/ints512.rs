//! Products with small integers on 512-bit registers, 32 rows of weights at a time, for CPUs with AVX-512 VNNI.
//!
//! Two tiles of [`ints`](super::ints) lie side by side in a register, and two such pairs share what is loaded of the other
//! factor: four numbers that are broadcast serve 32 sums. Its rows come in bands of up to 64, four abreast, and the last
//! ones are filled up with zeros. A single row is bound by reading weights and left to `ints`.

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{band_of, multiply};

#[cfg(not(target_arch = "x86_64"))]
pub(super) use others::{band_of, multiply};

#[cfg(not(target_arch = "x86_64"))]
mod others {
    use super::super::ints::{AHEAD, Job, Scales};
    use crate::matmul::MatMut;

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
    use super::super::ints::{AHEAD, Job, Scales, Unpacked, block_bytes, prefetch, tile_bytes};
    use crate::Isa;
    use crate::matmul::MatMut;
    use crate::simd::ints::{GROUP, ROWS, VECTORS};
    use crate::simd::{Avx2, Avx2Ints};

    /// Rows of two tiles.
    const BOTH: usize = 2 * ROWS;

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
    #[derive(Clone, Copy)]
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
        #[target_feature(enable = "avx512f")]
        fn zero() -> Self {
            let zero = _mm512_setzero_ps();
            Self { q: [_mm512_setzero_si512(); VECTORS], scales: [zero; 2], min: zero }
        }

        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn new(low: Unpacked<Avx2Ints<true>>, high: Unpacked<Avx2Ints<true>>) -> Self {
            let mut q = [_mm512_setzero_si512(); VECTORS];
            for ((q, low), high) in q.iter_mut().zip(low.q).zip(high.q) {
                *q = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
            let scales = [0, 1].map(|i| both(low.scales[i].0, high.scales[i].0));
            Self { q, scales, min: both(low.min.0, high.min.0) }
        }
    }

    /// Adds the products of `W` blocks with those of some rows of the other factor, without minimums.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add_products<S: Scales, const BITS: u32, const W: usize>(
        blocks: &[Wide; W],
        x: [&input::Block; ABREAST],
        sums: &mut [[__m512; W]; ABREAST],
    ) {
        let half = if S::PER_BLOCK == 1 { VECTORS } else { VECTORS / 2 };
        for part in 0..VECTORS / half {
            let mut products = [[_mm512_setzero_si512(); W]; ABREAST];
            if !S::HAS_MIN {
                for (products, x) in products.iter_mut().zip(x) {
                    let [all, first] = x.negated_sums;
                    let sum = if S::PER_BLOCK == 1 { all } else { [first, all - first][part] };
                    // A shift by a literal would need one, which a generic's `BITS - 1` is not.
                    *products =
                        [_mm512_sllv_epi32(_mm512_set1_epi32(sum), _mm512_set1_epi32(BITS as i32 - 1)); W];
                }
            }
            for v in part * half..(part + 1) * half {
                for (products, x) in products.iter_mut().zip(x) {
                    let group =
                        _mm512_set1_epi32(i32::from_ne_bytes(x.q.as_chunks().0[v].map(|x: i8| x as u8)));
                    for (products, block) in products.iter_mut().zip(blocks) {
                        *products = _mm512_dpbusd_epi32(*products, block.q[v], group);
                    }
                }
            }
            for ((sums, products), x) in sums.iter_mut().zip(products).zip(x) {
                for ((sums, products), block) in sums.iter_mut().zip(products).zip(blocks) {
                    let scale = _mm512_mul_ps(block.scales[part], _mm512_set1_ps(x.scale));
                    *sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, *sums);
                }
            }
        }
    }

    /// Blocks of rows that stay in a second-level cache while all tiles pass by, if a band has no more: 384 KiB.
    const BLOCKS_AT_ONCE: usize = 8192;

    /// The most rows of a band: blocks of weights are unpacked once for all of them.
    const WIDEST: usize = 64;

    /// Rows whose products are added up side by side: with two pairs of tiles eight sums, enough to hide the latency of 4
    /// cycles at 2 sums a cycle.
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
            for tile in (0..n_tiles).step_by(4) {
                // For tiles that are missing the last is there again; such sums are not stored.
                let at = |i: usize| &tiles[(tile + i).min(n_tiles - 1) * n_bytes..][..n_bytes];
                let columns = tile * ROWS..y.cols().min((tile + 4) * ROWS);
                for (band, x) in bands {
                    let mut y = y.sub_cols(columns.start, columns.len());
                    let y = &mut y.sub_rows(band.first - rows.start, band.n);
                    // SAFETY: passed on from the caller; these are whole tiles.
                    unsafe {
                        if columns.len() > BOTH {
                            let tiles = [[at(0), at(1)], [at(2), at(3)]];
                            multiply_band::<S, BITS, 2>(tiles, n_blocks, band, x, y);
                        } else {
                            multiply_band::<S, BITS, 1>([[at(0), at(1)]], n_blocks, band, x, y);
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// The CPU must have these features, and `tiles` must have `n_blocks` blocks.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn multiply_band<S: Scales, const BITS: u32, const W: usize>(
        tiles: [[&[u8]; 2]; W],
        n_blocks: usize,
        band: &Band,
        x: &[input::Block],
        y: &mut MatMut,
    ) {
        let mut sums = [[_mm512_setzero_ps(); W]; WIDEST];
        // Sums of what blocks left, and one for nobody.
        let mut of_rests = [[_mm512_setzero_ps(); W]; WIDEST + 1];
        let mut rests = &band.rests[..];
        assert!(x.len() == n_blocks * band.width && band.width <= WIDEST);
        let n_bytes = tile_bytes::<S>(BITS, n_blocks);
        let mut tiles = tiles.map(|both| [both[0].as_ptr(), both[1].as_ptr()]);
        let begin = tiles[0][0] as usize;
        for first in (0..n_blocks).step_by(S::BLOCKS) {
            let headers = tiles;
            for tile in tiles.as_flattened_mut() {
                *tile = tile.wrapping_add(S::HEADER_BYTES);
            }
            for idx in first..first + S::BLOCKS {
                // After the end of these tiles come as many others, the next for each beyond those for the rest.
                let offset = tiles[0][0] as usize - begin;
                let ahead = if offset + AHEAD < n_bytes { AHEAD } else { AHEAD + (2 * W - 1) * n_bytes };
                let mut blocks = [Wide::zero(); W];
                for ((block, tiles), headers) in blocks.iter_mut().zip(&mut tiles).zip(&headers) {
                    prefetch::<Avx2>(tiles[0], block_bytes::<S>(BITS), ahead);
                    prefetch::<Avx2>(tiles[1], block_bytes::<S>(BITS), ahead);
                    // SAFETY: a tile has `n_blocks` blocks, a multiple of those under a header.
                    unsafe {
                        let low = Unpacked::new::<S, BITS>(headers[0], tiles[0]);
                        *block = Wide::new(low, Unpacked::new::<S, BITS>(headers[1], tiles[1]));
                    }
                    tiles[0] = tiles[0].wrapping_add(block_bytes::<S>(BITS));
                    tiles[1] = tiles[1].wrapping_add(block_bytes::<S>(BITS));
                }
                let (x, _) = x[idx * band.width..][..band.width].as_chunks::<ABREAST>();
                for (x, sums) in x.iter().zip(sums.as_chunks_mut::<ABREAST>().0) {
                    add_products::<S, BITS, W>(&blocks, x.each_ref(), sums);
                    if S::HAS_MIN {
                        for (x, sums) in x.iter().zip(sums) {
                            for (sums, block) in sums.iter_mut().zip(&blocks) {
                                *sums = _mm512_fmadd_ps(block.min, _mm512_set1_ps(x.total), *sums);
                            }
                        }
                    }
                }
                let here = rests.iter().take_while(|rest| rest.idx == idx).count();
                for group in rests.split_off(..here).expect("as many as were counted").chunks(ABREAST) {
                    // One that is not full has its first again, for the sum that is for nobody.
                    let (mut x, mut rows) = ([&group[0].block; ABREAST], [WIDEST; ABREAST]);
                    let mut sums = [[_mm512_setzero_ps(); W]; ABREAST];
                    for (i, rest) in group.iter().enumerate() {
                        (x[i], rows[i], sums[i]) = (&rest.block, rest.row, of_rests[rest.row]);
                    }
                    add_products::<S, BITS, W>(&blocks, x, &mut sums);
                    for (row, sums) in rows.into_iter().zip(sums) {
                        of_rests[row] = sums;
                    }
                }
            }
        }
        for (row, (sums, rests)) in sums.iter().zip(&of_rests).enumerate().take(band.n) {
            for (w, (sums, rests)) in sums.iter().zip(rests).enumerate() {
                // W is chosen so that the last begins before the end.
                let columns = y.cols() - w * BOTH;
                let mask = if columns >= BOTH { u16::MAX } else { (1 << columns) - 1 };
                let y = y.row(row)[w * BOTH..].as_mut_ptr();
                // SAFETY: as many floats are stored as the row has.
                unsafe { _mm512_mask_storeu_ps(y, mask, _mm512_add_ps(*sums, *rests)) };
            }
        }
    }
}
