//! The kernels: a unit of [`UNIT`] packed numbers becomes floats in a thread's registers, where it is multiplied.
//!
//! - [`multiply`] by few rows, as when a token is generated, reads each word of weights once: a row of weights is shared by
//!   [`LANES`] threads, which read words side by side, and each multiplies what it has by all rows of the other factor. The
//!   sums of the threads meet in shared memory.
//! - [`multiply`] by more rows, as in a prompt, goes by tiles: [`TILE`] rows of weights, unpacked, and as many of the other
//!   factor lie in shared memory, [`STEP`] columns at a time, and each of 256 threads makes 4 by 4 elements of the result.
//! - [`rows`] unpacks single rows.
//!
//! All sums are of f32, in an order that depends on the shapes alone. Nothing here needs operations across a plane of
//! threads, 16-bit numbers or 8-bit storage, which WebGPU does not promise.

use ::kernels::packed::words::UNIT;
use ::kernels::packed::{Kind, Scales};
use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::{self, calculate_cube_count_elemwise, prelude::*};
use burn_cubecl::tensor::CubeTensor;

use super::Chunk;

/// Threads that share a row of weights, where there are few rows to multiply by: a plane of NVIDIA's.
const LANES: usize = 32;

/// Rows of weights of a cube, where there are few rows to multiply by: 128 threads.
const ROWS: usize = 4;

/// Rows that are few.
const FEW: usize = 8;

/// Rows of a tile of either factor.
const TILE: usize = 64;

/// Columns of a tile: as many units as make each of 256 threads unpack one.
const STEP: usize = 32;

/// From a column of a tile in shared memory to the next, one more than there are rows, so that threads that write columns
/// of a row side by side meet different banks.
const STRIDE: usize = TILE + 1;

/// Rows and columns of the result that a thread makes of a tile: `TILE / 16`.
const OWN: usize = 4;

/// Floats of the other factor that are read at once.
const VECTOR: usize = 4;

/// The rows of weights of a launch, and where the parts of a row begin: as in `kernels::packed::words::RowWords`.
#[derive(CubeType, CubeLaunch)]
struct Weights {
    n_out: usize,
    n_units: usize,
    high: usize,
    bytes: usize,
    scales: usize,
    len: usize,
}

/// Rows of the other factor, and where their results go: rows of the same indices, of `width` columns, from one on.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Target {
    pub first: usize,
    pub n_rows: usize,
    pub width: usize,
    pub column: usize,
}

/// Makes the columns `target` of `y` `[rows, target.width]` of a chunk and of rows of `x`, which lie without gaps and are
/// whole units long.
pub(super) fn multiply<R: CubeRuntime>(
    x: &CubeTensor<R>,
    chunk: &Chunk,
    n_in: usize,
    y: &CubeTensor<R>,
    target: Target,
) {
    let Target { first, n_rows, width, column } = target;
    let (client, words) = (&x.client, words_of(chunk, x));
    let arg = |t: &CubeTensor<R>| t.clone().into_array_arg();
    let target = TargetLaunch::new(first, n_rows, width, column);
    if n_rows <= FEW {
        few_rows::launch::<R>(
            client,
            cubes(chunk.n_out.div_ceil(ROWS)),
            CubeDim::new_2d(LANES as u32, ROWS as u32),
            VECTOR,
            arg(x),
            words,
            arg(y),
            weights(chunk, n_in),
            target,
            n_rows.next_power_of_two(),
            chunk.kind,
        );
    } else {
        let tiles = |n: usize| n.div_ceil(TILE) as u32;
        many_rows::launch::<R>(
            client,
            CubeCount::new_2d(tiles(chunk.n_out), tiles(n_rows)),
            CubeDim::new_1d((TILE / OWN * (TILE / OWN)) as u32),
            VECTOR,
            arg(x),
            words,
            arg(y),
            weights(chunk, n_in),
            target,
            chunk.kind,
        );
    }
}

/// Writes those rows of `y` `[n, n_in]` whose `ids` `[n]` are rows of a chunk.
pub(super) fn rows<R: CubeRuntime>(ids: &CubeTensor<R>, chunk: &Chunk, n_in: usize, y: &CubeTensor<R>) {
    let (client, n_ids) = (&ids.client, ids.meta.num_elements());
    let n_threads = n_ids * n_in.div_ceil(UNIT);
    let cube_dim = CubeDim::new(client, n_threads);
    some_rows::launch::<R>(
        client,
        calculate_cube_count_elemwise(client, n_threads, cube_dim),
        cube_dim,
        ids.clone().into_array_arg(),
        words_of(chunk, ids),
        y.clone().into_array_arg(),
        weights(chunk, n_in),
        chunk.first,
        n_in,
        n_ids,
        chunk.kind,
    );
}

/// As many cubes in one line as devices take, and as many lines as it needs.
fn cubes(n: usize) -> CubeCount {
    let width = n.clamp(1, 1 << 15);
    CubeCount::new_2d(width as u32, n.div_ceil(width) as u32)
}

fn weights<R: CubeRuntime>(chunk: &Chunk, n_in: usize) -> WeightsLaunch<R> {
    let row = chunk.kind.row_words(n_in);
    WeightsLaunch::new(chunk.n_out, n_in.div_ceil(UNIT), row.high, row.bytes, row.scales, row.len)
}

/// The words of a chunk, which lie on the device of `beside`.
fn words_of<R: CubeRuntime>(chunk: &Chunk, beside: &CubeTensor<R>) -> ArrayArg<R> {
    let (client, device, words) = (beside.client.clone(), beside.device.clone(), chunk.words.clone());
    CubeTensor::new_contiguous(client, device, [chunk.n_words].into(), words, DType::U32).into_array_arg()
}

/// A number in half precision, in the lower bits.
#[cube]
fn half(bits: u32) -> f32 {
    let magnitude = bits & 0x7fff;
    let sign = (bits & 0x8000) << 16;
    let exponent = magnitude >> 10;
    // The exponent counts from 15, that of single precision from 127; the largest stands for infinities either way.
    let moved = (magnitude << 13) + select(exponent == 31, 224u32 << 23, 112u32 << 23);
    // Numbers without the leading one are multiples of 2^-24. Made of their bits they would be of that kind too, and those
    // a device may take for zero.
    let small = u32::reinterpret(f32::cast_from(magnitude) * f32::new(5.960_464_5e-8));
    f32::reinterpret(select(exponent == 0, small, moved) | sign)
}

/// Byte `idx` of words from `first` on.
#[cube]
fn byte(w: &Array<u32>, first: usize, idx: usize) -> u32 {
    (w[first + idx / 4] >> (8 * (idx % 4) as u32)) & 255
}

/// The numbers of a unit of a row.
#[cube]
fn unpack(
    w: &Array<u32>,
    at: &Weights,
    row: usize,
    unit: usize,
    values: &mut Array<f32>,
    #[comptime] kind: Kind,
) {
    let row = row * at.len;
    if comptime!(kind == Kind::F32) {
        #[unroll]
        for i in 0..UNIT {
            values[i] = f32::reinterpret(w[row + unit * UNIT + i]);
        }
    } else if comptime!(kind == Kind::F16) {
        #[unroll]
        for i in 0..UNIT / 2 {
            let word = w[row + unit * (UNIT / 2) + i];
            values[2 * i] = half(word & 0xffff);
            values[2 * i + 1] = half(word >> 16);
        }
    } else if comptime!(matches!(kind, Kind::BF16 | Kind::F32AsBF16)) {
        #[unroll]
        for i in 0..UNIT / 2 {
            let word = w[row + unit * (UNIT / 2) + i];
            values[2 * i] = f32::reinterpret(word << 16);
            values[2 * i + 1] = f32::reinterpret(word & 0xffff_0000u32);
        }
    } else {
        unpack_ints(w, at, row, unit, values, kind);
    }
}

/// [`unpack`] of integers, of the row whose words begin at `row`.
#[cube]
fn unpack_ints(
    w: &Array<u32>,
    at: &Weights,
    row: usize,
    unit: usize,
    values: &mut Array<f32>,
    #[comptime] kind: Kind,
) {
    let width = comptime!(bits(kind) - 4);
    let zero = comptime!((1u32 << (bits(kind) - 1)) as f32);
    let units = comptime!(kind.block_len() / UNIT);
    let has_min = comptime!(scales(kind).has_min());
    let low = w[row + unit];
    let mut high = 0u32;
    if comptime!(width > 0) {
        let bit = unit as u32 * (8 * width);
        high = w[row + at.high + (bit / 32) as usize] >> (bit % 32);
    }
    let group = unit / units;
    let scales_at = row + at.scales;
    let bytes = row + at.bytes + 4 * group;
    // A scale and above it a minimum, or what is of no use.
    let is_single = comptime!(scales(kind).is_single());
    let word = if comptime!(has_min || is_single) {
        w[scales_at + group]
    } else {
        w[scales_at + group / 2] >> (16 * (group % 2) as u32)
    };
    let mut scale = if is_single { f32::reinterpret(word) } else { half(word & 0xffff) };
    let mut min = half(word >> 16);
    if comptime!(scales(kind) == Scales::BytesAndMin) {
        let block = unit % units / 4;
        scale *= f32::cast_from(byte(w, bytes, block));
        min *= -f32::cast_from(byte(w, bytes, block + 8));
    } else if comptime!(scales(kind) == Scales::BytesFor16) {
        // A sign: 128 and more stand for 256 less.
        let s = f32::cast_from(byte(w, bytes, unit % units / 2));
        scale *= select(s > 127.0, s - 256.0, s);
    }
    #[unroll]
    for i in 0..UNIT {
        let shift = comptime!(4 * i as u32);
        let mut q = (low >> shift) & 15;
        if comptime!(width > 0) {
            let shift = comptime!(width * i as u32);
            let mask = comptime!((1u32 << width) - 1);
            q |= ((high >> shift) & mask) << 4;
        }
        if comptime!(has_min) {
            values[i] = scale * f32::cast_from(q) + min;
        } else {
            values[i] = scale * (f32::cast_from(q) - zero);
        }
    }
}

/// Bits of a number of integers.
fn bits(kind: Kind) -> u32 {
    match kind {
        Kind::Ints { bits, .. } => bits.n(),
        _ => unreachable!("{kind:?}"),
    }
}

fn scales(kind: Kind) -> Scales {
    match kind {
        Kind::Ints { scales, .. } => scales,
        _ => unreachable!("{kind:?}"),
    }
}

/// `x Wᵀ` for at most `m` rows. A cube has [`LANES`] by [`ROWS`] threads.
#[cube(launch)]
fn few_rows<N: Size>(
    x: &Array<Vector<f32, N>>,
    w: &Array<u32>,
    y: &mut Array<f32>,
    at: &Weights,
    target: &Target,
    #[comptime] m: usize,
    #[comptime] kind: Kind,
) {
    let lane = UNIT_POS_X as usize;
    let row_of_cube = UNIT_POS_Y as usize;
    let row = CUBE_POS * ROWS + row_of_cube;
    let mut sums = Array::<f32>::new(m);
    #[unroll]
    for j in 0..m {
        sums[j] = f32::new(0.0);
    }
    if row < at.n_out {
        let mut values = Array::<f32>::new(UNIT);
        let mut unit = lane;
        while unit < at.n_units {
            unpack(w, at, row, unit, &mut values, kind);
            #[unroll]
            for j in 0..m {
                // Where there are fewer rows, the last again; what it gives is not stored.
                let x_row = target.first + select(j < target.n_rows, j, target.n_rows - 1);
                let first = (x_row * at.n_units + unit) * (UNIT / VECTOR);
                let mut sum = f32::new(0.0);
                #[unroll]
                for v in 0..UNIT / VECTOR {
                    let four = x[first + v];
                    #[unroll]
                    for i in 0..VECTOR {
                        sum += values[v * VECTOR + i] * four[i];
                    }
                }
                sums[j] += sum;
            }
            unit += LANES;
        }
    }
    // A place more than lanes, so that the threads that add up begin at different banks.
    let mut shared = SharedMemory::<f32>::new(ROWS * m * (LANES + 1));
    #[unroll]
    for j in 0..m {
        shared[(row_of_cube * m + j) * (LANES + 1) + lane] = sums[j];
    }
    sync_cube();
    if row < at.n_out && lane < m && lane < target.n_rows {
        let first = (row_of_cube * m + lane) * (LANES + 1);
        let mut sum = f32::new(0.0);
        for i in 0..LANES {
            sum += shared[first + i];
        }
        y[(target.first + lane) * target.width + target.column + row] = sum;
    }
}

/// `x Wᵀ` by tiles. A cube has 256 threads; its place is that of the tile of weights, and of the tile of rows.
#[cube(launch)]
fn many_rows<N: Size>(
    x: &Array<Vector<f32, N>>,
    w: &Array<u32>,
    y: &mut Array<f32>,
    at: &Weights,
    target: &Target,
    #[comptime] kind: Kind,
) {
    let mut w_tile = SharedMemory::<f32>::new(STEP * STRIDE);
    let mut x_tile = SharedMemory::<f32>::new(STEP * STRIDE);
    let first_w = CUBE_POS_X as usize * TILE;
    let first_x = CUBE_POS_Y as usize * TILE;
    // What this thread fetches of each tile: a unit of a row.
    let fetched_row = UNIT_POS as usize / (STEP / UNIT);
    let fetched_unit = UNIT_POS as usize % (STEP / UNIT);
    let w_row = first_w + fetched_row;
    let x_row = first_x + fetched_row;
    // What it makes: rows and columns that are 16 apart.
    let across = UNIT_POS as usize % 16;
    let down = UNIT_POS as usize / 16;

    let mut sums = Array::<f32>::new(OWN * OWN);
    #[unroll]
    for i in 0..OWN * OWN {
        sums[i] = f32::new(0.0);
    }
    let mut values = Array::<f32>::new(UNIT);
    let mut w_part = Array::<f32>::new(OWN);
    let n_steps = at.n_units.div_ceil(STEP / UNIT);
    for step in 0..n_steps {
        let unit = step * (STEP / UNIT) + fetched_unit;
        let place = fetched_unit * UNIT * STRIDE + fetched_row;
        if unit < at.n_units && w_row < at.n_out {
            unpack(w, at, w_row, unit, &mut values, kind);
        } else {
            #[unroll]
            for i in 0..UNIT {
                values[i] = f32::new(0.0);
            }
        }
        #[unroll]
        for i in 0..UNIT {
            w_tile[place + i * STRIDE] = values[i];
        }
        let x_is_there = unit < at.n_units && x_row < target.n_rows;
        let from = ((target.first + x_row) * at.n_units + unit) * (UNIT / VECTOR);
        #[unroll]
        for v in 0..UNIT / VECTOR {
            let mut four = Vector::<f32, N>::new(f32::new(0.0));
            if x_is_there {
                four = x[from + v];
            }
            #[unroll]
            for i in 0..VECTOR {
                x_tile[place + (v * VECTOR + i) * STRIDE] = four[i];
            }
        }
        sync_cube();
        for k in 0..STEP {
            #[unroll]
            for j in 0..OWN {
                w_part[j] = w_tile[k * STRIDE + across + 16 * j];
            }
            #[unroll]
            for i in 0..OWN {
                let x = x_tile[k * STRIDE + down + 16 * i];
                #[unroll]
                for j in 0..OWN {
                    sums[i * OWN + j] += x * w_part[j];
                }
            }
        }
        sync_cube();
    }
    #[unroll]
    for i in 0..OWN {
        let row = first_x + down + 16 * i;
        #[unroll]
        for j in 0..OWN {
            let column = first_w + across + 16 * j;
            if row < target.n_rows && column < at.n_out {
                y[(target.first + row) * target.width + target.column + column] = sums[i * OWN + j];
            }
        }
    }
}

/// Unpacks those of the rows `ids` that are among the rows from `first` on that `w` has. A thread for each unit of each id.
#[cube(launch)]
fn some_rows(
    ids: &Array<i32>,
    w: &Array<u32>,
    y: &mut Array<f32>,
    at: &Weights,
    first: usize,
    n_in: usize,
    n_ids: usize,
    #[comptime] kind: Kind,
) {
    let idx = ABSOLUTE_POS / at.n_units;
    let unit = ABSOLUTE_POS % at.n_units;
    if idx < n_ids {
        let row = ids[idx] as usize;
        if row >= first && row < first + at.n_out {
            let mut values = Array::<f32>::new(UNIT);
            unpack(w, at, row - first, unit, &mut values, kind);
            #[unroll]
            for i in 0..UNIT {
                let column = unit * UNIT + i;
                if column < n_in {
                    y[idx * n_in + column] = values[i];
                }
            }
        }
    }
}
