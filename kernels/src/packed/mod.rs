//! Weights packed for reading: a matrix that only products with rows need, in the order in which these read it, in the
//! numbers that its file has.
//!
//! A byte of weights is read once for each product of a few rows, in one stream, and is in the core's cache for many rows of
//! a large one. Weights of 4 to 8 bits meet rows that are rounded to 8 bits in blocks of 32 (as Q8_0 rounds), to 16
//! where a block stands out; their products are added up exactly within a block. Weights in bfloat16 meet rows that are
//! rounded to it where the CPU multiplies such numbers. The rules of batch invariance hold: an element of the result follows
//! from its row and its column alone.

mod floats;
mod input;
mod ints;
mod ints512;
pub mod words;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

pub use ints::Group;

use crate::Isa;
use crate::matmul::{Mat, MatMut};
use crate::memory::Buffer;
use crate::threads;

/// How the numbers of a part of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision. Where the CPU multiplies such numbers, the rows that they meet are rounded to
    /// them too.
    BF16,
    /// Single precision of which the upper half is kept, as the lower is zero throughout. Rows that they meet are not
    /// rounded.
    F32AsBF16,
    /// Small integers with scales.
    Ints {
        /// Bits of a number: 4, 5, 6 or 8.
        bits: Bits,
        /// How they are scaled.
        scales: Scales,
    },
}

/// Bits of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// 4
    Four,
    /// 5
    Five,
    /// 6
    Six,
    /// 8
    Eight,
}

impl Bits {
    /// As a number.
    pub fn n(self) -> u32 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
            Self::Six => 6,
            Self::Eight => 8,
        }
    }
}

/// What a number `q` stands for; `zero` is `2^(bits - 1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scales {
    /// `scale (q - zero)`, a scale for 32 numbers.
    Half,
    /// `scale q + min`, a scale and a minimum for 32 numbers. Not with 8 bits.
    HalfAndMin,
    /// `scale s q - min m` with bytes s and m for 32 numbers, scale and minimum for 256. Not with 8 bits.
    BytesAndMin,
    /// `scale s (q - zero)` with a signed byte s for 16 numbers, and a scale for 256.
    BytesFor16,
    /// `scale (q - zero)`, a scale in single precision for 32 numbers. This and the next two with 4 or 8 bits only.
    Single32,
    /// The same for 64 numbers.
    Single64,
    /// The same for 128 numbers.
    Single128,
}

impl Scales {
    /// Whether there are kernels for numbers of so many bits with them.
    fn go_with(self, bits: Bits) -> bool {
        match self {
            Self::HalfAndMin | Self::BytesAndMin => bits != Bits::Eight,
            Self::Single32 | Self::Single64 | Self::Single128 => matches!(bits, Bits::Four | Bits::Eight),
            Self::Half | Self::BytesFor16 => true,
        }
    }
}

/// Runs `$use` with `$S` and `$BITS` standing for the kind's types.
macro_rules! with_kind {
    ($bits:expr, $scales:expr, |$S:ident, $BITS:ident| $use:expr) => {{
        macro_rules! bits {
            ($T:ty) => {{
                type $S = $T;
                match $bits {
                    Bits::Four => {
                        const $BITS: u32 = 4;
                        $use
                    }
                    Bits::Five => {
                        const $BITS: u32 = 5;
                        $use
                    }
                    Bits::Six => {
                        const $BITS: u32 = 6;
                        $use
                    }
                    Bits::Eight => {
                        const $BITS: u32 = 8;
                        $use
                    }
                }
            }};
        }
        macro_rules! four_or_eight {
            ($T:ty) => {{
                type $S = $T;
                if $bits == Bits::Four {
                    const $BITS: u32 = 4;
                    $use
                } else {
                    const $BITS: u32 = 8;
                    $use
                }
            }};
        }
        match $scales {
            Scales::Single32 => four_or_eight!(ints::Single<1>),
            Scales::Single64 => four_or_eight!(ints::Single<2>),
            Scales::Single128 => four_or_eight!(ints::Single<4>),
            Scales::Half => bits!(ints::Half),
            Scales::HalfAndMin => bits!(ints::HalfAndMin),
            Scales::BytesAndMin => bits!(ints::BytesAndMin),
            Scales::BytesFor16 => bits!(ints::BytesFor16),
        }
    }};
}

impl Kind {
    /// Rows of a tile.
    fn tile_rows(self) -> usize {
        match self {
            Self::Ints { .. } => crate::simd::ints::ROWS,
            _ => floats::TILE,
        }
    }

    /// The number of columns is a multiple of this.
    pub fn block_len(self) -> usize {
        match self {
            Self::Ints { scales, .. } => match scales {
                Scales::Half | Scales::HalfAndMin | Scales::Single32 => input::BLOCK,
                Scales::Single64 => 2 * input::BLOCK,
                Scales::Single128 => 4 * input::BLOCK,
                Scales::BytesAndMin | Scales::BytesFor16 => Group::MAX,
            },
            _ => 1,
        }
    }

    /// Bits of a number on average, with its share of the scales.
    pub fn bits_per_number(self) -> f64 {
        (8 * self.tile_bytes(Group::MAX)) as f64 / (self.tile_rows() * Group::MAX) as f64
    }

    /// Bytes of a number that stays a float, in a file.
    fn element_bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Whether the rows that meet its numbers are rounded to bfloat16.
    fn rounds_to_bf16(self) -> bool {
        self == Self::BF16 && Isa::current() == Isa::Bf16
    }

    /// Bytes of a tile of rows of so many numbers.
    fn tile_bytes(self, n_in: usize) -> usize {
        match self {
            Self::Ints { bits, scales } => {
                with_kind!(bits, scales, |S, BITS| ints::tile_bytes::<S>(BITS, n_in / input::BLOCK))
            }
            Self::F32 => floats::tile_bytes::<floats::F32>(n_in),
            Self::F16 => floats::tile_bytes::<floats::F16>(n_in),
            Self::BF16 | Self::F32AsBF16 => floats::tile_bytes::<floats::BF16>(n_in),
        }
    }
}

/// Rows of one kind.
#[derive(Debug)]
pub struct Part {
    kind: Kind,
    n_out: usize,
    n_in: usize,
    /// Whole tiles; rows past the last are zero.
    tiles: Buffer,
}

/// Numbers of rows as a file has them, for [`Part::new`].
#[derive(Debug, Default)]
pub struct Rows {
    /// The numbers of row after row: the bytes of floats, a byte for each integer, which has no sign.
    pub numbers: Vec<u8>,
    /// How integers are scaled, row after row.
    pub groups: Vec<Group>,
}

/// Numbers that are packed in one go, so that what was read is still in the core's cache.
const PACKED_AT_ONCE: usize = 1 << 17;

impl Part {
    /// Packs `n_out` rows of `n_in` numbers. `read` appends those of a range of rows to empty [`Rows`]; it is called by
    /// several threads, for all rows once.
    ///
    /// # Errors
    /// Those of `read`.
    ///
    /// # Panics
    /// If `n_in` is no multiple of the kind's [`block_len`](Kind::block_len), the kind is not one that [`Scales`] allows,
    /// or `read` gives another number of numbers.
    pub fn new<E: Send>(
        kind: Kind,
        n_out: usize,
        n_in: usize,
        read: impl Fn(Range<usize>, &mut Rows) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        assert!(n_in.is_multiple_of(kind.block_len()) && n_in > 0, "{kind:?}: rows of {n_in} numbers");
        if let Kind::Ints { bits, scales } = kind {
            assert!(scales.go_with(bits), "{kind:?}");
        }
        let (tile_rows, tile_bytes) = (kind.tile_rows(), kind.tile_bytes(n_in));
        let mut tiles = Buffer::zeroed(n_out.div_ceil(tile_rows) * tile_bytes);
        let tiles_at_once = (PACKED_AT_ONCE / (tile_rows * n_in)).max(1);
        let pack = |rows: &mut Rows, (chunk_idx, chunk): (usize, &mut [u8])| {
            let first = chunk_idx * tiles_at_once * tile_rows;
            let last = n_out.min(first + chunk.len() / tile_bytes * tile_rows);
            rows.numbers.clear();
            rows.groups.clear();
            read(first..last, rows)?;
            pack_tiles(kind, last - first, n_in, rows, chunk);
            Ok(())
        };
        tiles
            .par_chunks_mut(tiles_at_once * tile_bytes)
            .enumerate()
            .try_for_each_init(Rows::default, pack)?;
        Ok(Self { kind, n_out, n_in, tiles })
    }

    /// How its numbers are stored.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of rows.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    fn tile(&self, tile_idx: usize) -> &[u8] {
        let tile_bytes = self.kind.tile_bytes(self.n_in);
        &self.tiles[tile_idx * tile_bytes..][..tile_bytes]
    }

    /// The numbers of a row.
    fn row(&self, row: usize, out: &mut [f32]) {
        let (tile, row) = (self.tile(row / self.kind.tile_rows()), row % self.kind.tile_rows());
        match self.kind {
            Kind::F32 => floats::unpack_row::<floats::F32>(tile, row, out),
            Kind::F16 => floats::unpack_row::<floats::F16>(tile, row, out),
            Kind::BF16 | Kind::F32AsBF16 => floats::unpack_row::<floats::BF16>(tile, row, out),
            Kind::Ints { bits, scales } => {
                with_kind!(bits, scales, |S, BITS| ints::unpack_row::<S>(BITS, tile, row, out));
            }
        }
    }
}

/// Packs rows, of which the last tile may lack some.
fn pack_tiles(kind: Kind, n_rows: usize, n_in: usize, rows: &mut Rows, tiles: &mut [u8]) {
    let (tile_rows, tile_bytes) = (kind.tile_rows(), kind.tile_bytes(n_in));
    let Kind::Ints { bits, scales } = kind else {
        let row_bytes = n_in * kind.element_bytes();
        assert!(rows.numbers.len() == n_rows * row_bytes, "{kind:?}: {} bytes", rows.numbers.len());
        let parts = rows.numbers.chunks(tile_rows * row_bytes);
        for (part, tile) in parts.zip(tiles.chunks_exact_mut(tile_bytes)) {
            match kind {
                Kind::F32 => floats::pack_tile::<floats::F32>(part, n_in, tile),
                Kind::F16 => floats::pack_tile::<floats::F16>(part, n_in, tile),
                _ => floats::pack_tile::<floats::BF16>(part, n_in, tile),
            }
        }
        return;
    };
    let groups = n_in / kind.block_len();
    assert!(
        rows.groups.len() == n_rows * groups && rows.numbers.len() == n_rows * n_in,
        "{kind:?}: {} numbers in {} groups",
        rows.numbers.len(),
        rows.groups.len()
    );
    let there = tiles.len() / tile_bytes * tile_rows;
    rows.groups.resize(there * groups, Group::ZERO);
    rows.numbers.resize(there * n_in, 0);
    let numbers = rows.numbers.chunks_exact(tile_rows * n_in);
    let parts = numbers.zip(rows.groups.chunks_exact(tile_rows * groups));
    for ((q, groups), tile) in parts.zip(tiles.chunks_exact_mut(tile_bytes)) {
        with_kind!(bits, scales, |S, BITS| ints::pack_tile::<S>(BITS, q, groups, tile));
    }
}

/// A matrix `[n_out, n_in]` of parts that lie one below the other.
#[derive(Debug)]
pub struct Matrix {
    parts: Vec<Part>,
    n_in: usize,
}

thread_local! {
    /// Rounded rows of a product that this thread began.
    static INPUT: RefCell<Rounded> = RefCell::default();
}

/// Bytes of weights below which another thread costs more than it saves, for one row; see `matmul`.
const MIN_READ_PER_TASK: usize = 1 << 17;

/// Multiply-adds below which another thread does.
const MIN_WORK_PER_TASK: usize = 1 << 19;

/// Tasks for each thread where tiles are streamed: one that is interrupted leaves its share to the others, which wait for
/// the last one.
const TASKS_PER_THREAD: usize = 16;

/// Rows of weights that are multiplied faster together than by fewer.
const TOGETHER: usize = 32;

impl Matrix {
    /// Parts one below the other.
    ///
    /// # Panics
    /// If there is none, or their rows differ in length.
    pub fn new(parts: Vec<Part>) -> Self {
        let n_in = parts.first().expect("a part").n_in;
        assert!(parts.iter().all(|part| part.n_in == n_in), "rows of one length");
        Self { parts, n_in }
    }

    /// Number of rows.
    pub fn n_out(&self) -> usize {
        self.parts.iter().map(Part::n_out).sum()
    }

    /// Numbers of a row.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Its parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Bytes of all numbers and scales.
    pub fn n_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.tiles.len()).sum()
    }

    /// The numbers of a row, exactly.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not `n_in` elements.
    pub fn row(&self, mut row: usize, out: &mut [f32]) {
        assert!(out.len() == self.n_in, "{} elements for a row of {}", out.len(), self.n_in);
        for part in &self.parts {
            if row < part.n_out {
                return part.row(row, out);
            }
            row -= part.n_out;
        }
        panic!("no row {row} after the last of {}", self.n_out());
    }

    /// The product `x Wᵀ` with each of the matrices that are stacked in this one, as many as there are `counts`, of its share
    /// of the rows of `x`: the first `counts[0]` rows meet the first matrix, and so on. Whole parts make such a matrix.
    ///
    /// # Shapes
    /// - `x`: `[sum of counts, n_in]`, row after row
    /// - returned: `[sum of counts, n_out / counts.len()]`
    ///
    /// # Panics
    /// If the shapes do not fit together, or a matrix does not end with a part.
    pub fn product(&self, x: &[f32], counts: &[usize]) -> Vec<f32> {
        let (m, n_out) = (counts.iter().sum::<usize>(), self.n_out() / counts.len());
        assert!(
            x.len() == m * self.n_in && self.n_out() == n_out * counts.len(),
            "{} numbers for {counts:?} rows of {}, by {} in equal shares",
            x.len(),
            self.n_in,
            self.n_out()
        );
        let mut y = Vec::with_capacity(m * n_out);
        let mut first = 0;
        for (idx, &count) in counts.iter().enumerate() {
            let x = &x[first * self.n_in..][..count * self.n_in];
            let ptr = y.spare_capacity_mut()[first * n_out..][..count * n_out].as_mut_ptr();
            // SAFETY: these rows lie within the capacity, and nothing else reaches them.
            let y = unsafe { MatMut::from_raw(ptr.cast(), count, n_out, n_out) };
            self.multiply_rows(idx * n_out..(idx + 1) * n_out, x, y);
            first += count;
        }
        // SAFETY: each row was written, with one matrix or another.
        unsafe { y.set_len(m * n_out) };
        y
    }

    /// The product with some rows of weights, which are whole parts: `y = x W[rows]ᵀ`. Elements of `y` may be anything
    /// before, even not initialised.
    fn multiply_rows(&self, rows: Range<usize>, x: &[f32], y: MatMut) {
        let (m, n_out) = (y.rows(), y.cols());
        if m == 0 {
            return;
        }
        let mut end = 0;
        let parts: Vec<&Part> = self
            .parts
            .iter()
            .filter(|part| {
                let first = end;
                end += part.n_out;
                first >= rows.start && end <= rows.end
            })
            .collect();
        assert!(parts.iter().map(|part| part.n_out).sum::<usize>() == n_out, "rows {rows:?} cut a part");
        let has = |test: fn(Kind) -> bool| parts.iter().any(|part| test(part.kind));
        // Asked once for all tasks.
        let rounds_to_bf16 = has(Kind::rounds_to_bf16);
        let mut rounded = INPUT.take();
        if has(|kind| matches!(kind, Kind::F32 | Kind::F16 | Kind::F32AsBF16))
            || has(|kind| kind == Kind::BF16) && !rounds_to_bf16
        {
            rounded.floats.pack(Mat::new(x, m, self.n_in));
        }
        if has(|kind| matches!(kind, Kind::Ints { .. })) {
            rounded.ints.round(x, m);
        }
        #[cfg(target_arch = "x86_64")]
        if rounds_to_bf16 {
            rounded.bf16.round(Mat::new(x, m, self.n_in));
        }
        let product = Product {
            x,
            m,
            n_in: self.n_in,
            rounded: &rounded,
            #[cfg(target_arch = "x86_64")]
            rounds_to_bf16,
        };
        let tasks = product.split(&parts);
        run(&product, &tasks, y);
        rounded.floats.trim();
        INPUT.set(rounded);
    }
}

/// Rows as some kinds of weights need them, made once for all tasks.
#[derive(Default)]
struct Rounded {
    /// For floats that meet them in single precision: not rounded, but in another order.
    floats: floats::Panels,
    /// For integers.
    ints: input::Input,
    /// For bfloat16, where the CPU multiplies it.
    #[cfg(target_arch = "x86_64")]
    bf16: crate::matmul::bf16::Rows,
}

/// One factor of a product.
struct Product<'a> {
    x: &'a [f32],
    m: usize,
    n_in: usize,
    /// As far as the parts need them.
    rounded: &'a Rounded,
    /// Whether those for bfloat16 are there.
    #[cfg(target_arch = "x86_64")]
    rounds_to_bf16: bool,
}

/// Some tiles of a part with some rows of the other factor.
struct Task<'a> {
    part: &'a Part,
    tiles: Range<usize>,
    /// Columns of the result that the tiles give.
    n_columns: usize,
    rows: Range<usize>,
}

/// Runs tasks on all threads. They come in order of columns and then of rows, with all rows for each range of columns.
fn run(product: &Product, tasks: &[Task], y: MatMut) {
    if let [task] = tasks {
        return product.run(task, y);
    }
    let (mut rest, mut strip) = (Some(y), None);
    let outputs: Vec<Mutex<Option<MatMut>>> = tasks
        .iter()
        .map(|task| {
            if task.rows.start == 0 {
                let (left, right) = rest.take().expect("columns left").split_cols(task.n_columns);
                (strip, rest) = (Some(left), Some(right));
            }
            let (top, bottom) = strip.take().expect("rows left").split_rows(task.rows.len());
            strip = Some(bottom);
            Mutex::new(Some(top))
        })
        .collect();
    threads::run(tasks.len(), |i| {
        let y = outputs[i].lock().ok().and_then(|mut y| y.take()).expect("each task is run once");
        product.run(&tasks[i], y);
    });
}

impl Product<'_> {
    /// Cuts parts into tasks of about equal work, in order.
    fn split<'a>(&self, parts: &[&'a Part]) -> Vec<Task<'a>> {
        let n_threads = rayon::current_num_threads();
        let bytes: usize = parts.iter().map(|part| part.tiles.len()).sum();
        let numbers: usize = parts.iter().map(|part| part.n_out * part.n_in).sum();
        let work = numbers.saturating_mul(self.m);
        let worth = (bytes / MIN_READ_PER_TASK).max(work / MIN_WORK_PER_TASK).max(1);
        let n_tasks = match n_threads {
            1 => 1,
            _ => worth.min(n_threads * TASKS_PER_THREAD),
        };
        let mut tasks = Vec::new();
        for &part in parts {
            let n_tiles = part.n_out.div_ceil(part.kind.tile_rows());
            let together = TOGETHER / part.kind.tile_rows();
            let n_groups = n_tiles.div_ceil(together);
            let share = (part.tiles.len() * n_tasks).div_ceil(bytes.max(1)).max(1);
            let (unit, row_bytes) = self.rows_for(part.kind);
            let n_units = self.m.div_ceil(unit);
            // Each task reads its rows and its weights: of the grids with enough tasks, the one where this is least.
            let fewest = share.div_ceil(n_groups.max(1)).min(n_units);
            let grids =
                (fewest..=n_units.min(share)).map(|by_rows| (by_rows, share.div_ceil(by_rows).min(n_groups)));
            let read = |&(by_rows, by_columns): &(usize, usize)| {
                by_rows * part.tiles.len() + by_columns * self.m * row_bytes
            };
            let (by_rows, by_columns) = grids.min_by_key(read).unwrap_or((1, 1));
            for i in 0..by_columns {
                let cut = |i: usize| n_tiles.min(n_groups * i / by_columns * together);
                let tiles = cut(i)..cut(i + 1);
                let tile_rows = part.kind.tile_rows();
                let n_columns = part.n_out.min(tiles.end * tile_rows) - tiles.start * tile_rows;
                for j in 0..by_rows {
                    let cut = |j: usize| self.m.min(n_units * j / by_rows * unit);
                    tasks.push(Task { part, tiles: tiles.clone(), n_columns, rows: cut(j)..cut(j + 1) });
                }
            }
        }
        tasks
    }

    /// Rows of which a task has a whole number, but for the last, and the bytes of each.
    fn rows_for(&self, kind: Kind) -> (usize, usize) {
        match kind {
            Kind::Ints { .. } => {
                (self.rounded.ints.unit(), self.n_in / input::BLOCK * size_of::<input::Block>())
            }
            #[cfg(target_arch = "x86_64")]
            Kind::BF16 if self.rounds_to_bf16 => (crate::matmul::bf16::unit(self.m), 2 * self.n_in),
            _ => (floats::unit(self.m), 4 * self.n_in),
        }
    }

    fn run(&self, task: &Task, mut y: MatMut) {
        let tile_bytes = task.part.kind.tile_bytes(self.n_in);
        let tiles = &task.part.tiles[task.tiles.start * tile_bytes..task.tiles.end * tile_bytes];
        let (x, rows) = (Mat::new(self.x, self.m, self.n_in), task.rows.clone());
        let panels = &self.rounded.floats;
        // Elements may not be initialised. This much of them is still in the cache when they are written.
        y.zero();
        match task.part.kind {
            #[cfg(target_arch = "x86_64")]
            Kind::BF16 if self.rounds_to_bf16 => {
                self.rounded.bf16.multiply([self.m, self.n_in], rows, tiles, &mut y);
            }
            Kind::F32 => floats::multiply::<floats::F32>(tiles, x, panels, rows, &mut y),
            Kind::F16 => floats::multiply::<floats::F16>(tiles, x, panels, rows, &mut y),
            Kind::BF16 | Kind::F32AsBF16 => {
                floats::multiply::<floats::BF16>(tiles, x, panels, rows, &mut y);
            }
            Kind::Ints { bits, scales } => {
                let n_blocks = self.n_in / input::BLOCK;
                let job = ints::Job { tiles, n_blocks, x: &self.rounded.ints, rows };
                with_kind!(bits, scales, |S, BITS| ints::multiply::<S, BITS>(&job, &mut y));
            }
        }
    }
}

#[cfg(test)]
mod tests;
