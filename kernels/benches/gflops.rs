//! How fast the kernels are beside what this machine can do: GFLOP/s against its multiply-add peak, GB/s
//! against its reading speed, both measured first, on one thread and on all.
//!
//! `cargo bench -p kernels` runs everything, `cargo bench -p kernels -- matmul` what has that word in its name.
//! Every answer is checked too, since a wrong kernel can be very fast.

use std::hint::black_box;

use kernels::activation;
use kernels::attention::{self, Dims, Heads, Input, Packed, Packing, Rows, Saved};
use kernels::matmul::{Mat, MatMut, matmul};
use kernels::optim::AdamW;
use kernels::packed::{self, Bits, Group, Kind, Matrix, Part, Scales};
use kernels::{Isa, limits, loss, norm, optim, rope};

fn main() {
    // Cargo passes `--bench`; the first word that is no flag filters.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let all = rayon::current_num_threads();
    println!("{} threads, {}", all, Isa::current().name());
    for n_threads in if all > 1 { vec![1, all] } else { vec![1] } {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
        pool.install(|| {
            let limits = Limits { gflops: limits::flops() / 1e9, gbps: limits::read_rate() / 1e9 };
            println!(
                "\n{n_threads} thread(s), limits: {:.0} GFLOP/s, {:.1} GB/s read\n{:<36} {:>10} {:>9} {:>6} {:>9} {:>6}",
                limits.gflops, limits.gbps, "kernel", "time", "GFLOP/s", "%", "GB/s", "%"
            );
            let bench = Bench { limits, filter: &filter };
            bench.matmuls();
            bench.packed();
            bench.attentions();
            bench.decoding();
            bench.elementwise();
        });
    }
}

/// More than the caches of the machine hold.
const LAYERS_BYTES: usize = 1 << 28;

/// What the machine can do at most.
struct Limits {
    gflops: f64,
    gbps: f64,
}

struct Bench<'a> {
    limits: Limits,
    filter: &'a str,
}

/// What one call of a kernel does at least.
struct Work {
    flops: usize,
    /// Bytes read and written, each operand once.
    bytes: usize,
}

impl Bench<'_> {
    /// Times `f` and prints a line. Returns whether it ran, so that the caller checks the answer.
    fn line(&self, name: &str, work: Work, f: impl FnMut()) -> bool {
        if !name.contains(self.filter) {
            return false;
        }
        let seconds = limits::fastest(f);
        let (gflops, gbps) = (work.flops as f64 / seconds / 1e9, work.bytes as f64 / seconds / 1e9);
        println!(
            "{name:<36} {:>7.1} us {gflops:>9.1} {:>6.1} {gbps:>9.1} {:>6.1}",
            seconds * 1e6,
            100.0 * gflops / self.limits.gflops,
            100.0 * gbps / self.limits.gbps
        );
        true
    }

    fn matmuls(&self) {
        for (m, n, k) in [
            (512, 512, 2048),
            (512, 2048, 512),
            (2048, 512, 512),
            (80, 384, 128),
            (64, 64, 64),
            (16, 2048, 2048),
            (6, 2048, 2048),
            (4, 2048, 2048),
            (2, 2048, 2048),
            (1, 512, 512),
            (1, 2048, 2048),
            (1, 8192, 4096),
        ] {
            for (layout, a_transposed, b_transposed) in
                [("NN", false, false), ("NT", false, true), ("TN", true, false)]
            {
                if m == 1 && a_transposed {
                    continue;
                }
                self.matmul(layout, [m, n, k], a_transposed, b_transposed);
            }
        }
    }

    /// Weights of 67 million numbers, more than a cache has in any format: of few rows the time of reading them.
    fn packed(&self) {
        let ints = |bits, scales| Kind::Ints { bits, scales };
        let (n_out, n_in) = (16384, 4096);
        for (name, kind) in [
            ("f32", Kind::F32),
            ("f16", Kind::F16),
            ("bf16", Kind::BF16),
            ("q8_0", ints(Bits::Eight, Scales::Half)),
            ("q4_0", ints(Bits::Four, Scales::Half)),
            ("q4_1", ints(Bits::Four, Scales::HalfAndMin)),
            ("q5_0", ints(Bits::Five, Scales::Half)),
            ("q4_k", ints(Bits::Four, Scales::BytesAndMin)),
            ("q5_k", ints(Bits::Five, Scales::BytesAndMin)),
            ("q6_k", ints(Bits::Six, Scales::BytesFor16)),
        ] {
            let names = [1, 2, 4, 8, 16, 512].map(|m| (m, format!("packed {name} m={m} n={n_out} k={n_in}")));
            if !names.iter().any(|(_, name)| name.contains(self.filter)) {
                continue;
            }
            let matrix = Matrix::new(vec![part(kind, n_out, n_in)]);
            for (m, name) in names {
                let (x, mut y) = (numbers(m * n_in), Vec::new());
                let work =
                    Work { flops: 2 * m * n_out * n_in, bytes: matrix.n_bytes() + 4 * m * (n_in + n_out) };
                let run = || y = black_box(matrix.product(&x, &[m]));
                if self.line(&name, work, run) {
                    let mut row = vec![0.0; n_in];
                    matrix.row(n_out - 1, &mut row);
                    let x = &x[(m - 1) * n_in..];
                    let exact: f64 = x.iter().zip(&row).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    let size: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
                    assert_close(y[m * n_out - 1], exact, size / 127.0);
                }
            }
        }
    }

    fn matmul(&self, layout: &str, [m, n, k]: [usize; 3], a_transposed: bool, b_transposed: bool) {
        let name = format!("matmul {layout} m={m} n={n} k={k}");
        if !name.contains(self.filter) {
            return;
        }
        let (a, b, mut c) = (numbers(m * k), numbers(k * n), vec![0.0; m * n]);
        let view = |data, rows, cols, transposed| {
            if transposed { Mat::new(data, cols, rows).t() } else { Mat::new(data, rows, cols) }
        };
        let (a_view, b_view) = (view(&a, m, k, a_transposed), view(&b, k, n, b_transposed));
        let work = Work { flops: 2 * m * n * k, bytes: 4 * (m * k + k * n + m * n) };
        let run = || matmul(a_view, b_view, MatMut::new(black_box(&mut c), m, n));
        if self.line(&name, work, run) {
            let at = |data: &[f32], i: usize, j: usize, [rows, cols]: [usize; 2], transposed: bool| {
                f64::from(if transposed { data[j * rows + i] } else { data[i * cols + j] })
            };
            for (i, j) in [(0, 0), (m - 1, n - 1), (m / 2, n / 3)] {
                let terms =
                    (0..k).map(|p| at(&a, i, p, [m, k], a_transposed) * at(&b, p, j, [k, n], b_transposed));
                assert_close(c[i * n + j], terms.sum(), 1e-3);
            }
        }
    }

    fn attentions(&self) {
        for (batch, seq_len, n_head, n_kv_head, head_dim) in
            [(4, 256, 6, 6, 64), (1, 1024, 8, 2, 64), (1, 512, 32, 4, 64), (1, 512, 12, 12, 64)]
        {
            let dims = Dims { batch, seq_len, ..Dims::new(n_head, n_kv_head, head_dim) };
            let qkv = numbers(batch * seq_len * dims.qkv_width());
            let mut out = vec![0.0; batch * seq_len * n_head * head_dim];
            let mut lse = vec![0.0; batch * seq_len * n_head];
            let [q, k, v] = dims.split_qkv(&qkv);
            let input = Input { q, k, v, sinks: None };
            // Half of the scores are visible; two products each.
            let flops = 2 * batch * n_head * seq_len * seq_len * head_dim;
            let shape = format!("[{batch}, {seq_len}] {n_head}/{n_kv_head} x {head_dim}");
            let bytes = 4 * (qkv.len() + out.len());
            self.line(&format!("attention {shape}"), Work { flops, bytes }, || {
                attention::forward(&dims, input, black_box(&mut out), Some(&mut lse));
            });
            attention::forward(&dims, input, &mut out, Some(&mut lse));
            // The first query sees one key only.
            assert_eq!(out[..head_dim], v.data[..head_dim]);
            let mut dqkv = vec![0.0; qkv.len()];
            let work = Work { flops: flops * 5 / 2, bytes: 2 * bytes };
            self.line(&format!("attention_backward {shape}"), work, || {
                let saved = Saved { out: &out, lse: &lse };
                attention::backward(&dims, &qkv, saved, &out, black_box(&mut dqkv));
            });
        }
    }

    /// One query over a cache, for the heads of LLaMA 1.1B, of LLaMA 8B and of GPT-2.
    fn decoding(&self) {
        for (n_head, n_kv_head, head_dim) in [(32, 4, 64), (32, 8, 128), (12, 12, 64)] {
            for n_keys in [512, 4096, 8192] {
                let dims = Dims { start: n_keys - 1, ..Dims::new(n_head, n_kv_head, head_dim) };
                self.decode(dims);
                [Packing::F16, Packing::Q8].into_iter().for_each(|packing| self.decode_packed(dims, packing));
            }
        }
    }

    fn decode(&self, dims: Dims) {
        if !decode_name(dims, "f32").contains(self.filter) {
            return;
        }
        let n_keys = dims.start + 1;
        let len = dims.n_kv_head * n_keys * dims.head_dim;
        let keys = numbers(len);
        let one = || {
            let mut cache = kernels::memory::zeroed(len);
            cache.copy_from_slice(&keys);
            cache
        };
        let layers = layers(8 * len, one);
        let heads = |data| Heads {
            data,
            batch_stride: 0,
            head_stride: n_keys * dims.head_dim,
            pos_stride: dims.head_dim,
        };
        let layers: Vec<_> =
            layers.iter().map(|layer| layer.each_ref().map(|data| heads(&data[..]))).collect();
        self.decode_over(dims, "f32", 8 * len, &layers);
    }

    fn decode_packed(&self, dims: Dims, packing: Packing) {
        let kind = format!("{packing:?}").to_lowercase();
        if !decode_name(dims, &kind).contains(self.filter) {
            return;
        }
        let n_keys = dims.start + 1;
        let bytes = 2 * dims.n_kv_head * n_keys * packing.row_bytes(dims.head_dim);
        let keys = numbers(dims.n_kv_head * n_keys * dims.head_dim);
        let one = || {
            let mut packed = Packed::new(packing, [1, dims.n_kv_head, n_keys, dims.head_dim]);
            for (head, rows) in keys.chunks(n_keys * dims.head_dim).enumerate() {
                packed.store(0, head, 0, rows);
            }
            packed
        };
        let layers = layers(bytes, one);
        let layers: Vec<_> = layers.iter().map(|layer| layer.each_ref()).collect();
        self.decode_over(dims, &kind, bytes, &layers);
    }

    /// One query over the keys and values of one layer after another, each of `bytes`.
    fn decode_over<R: Rows>(&self, dims: Dims, kind: &str, bytes: usize, layers: &[[R; 2]]) {
        let Dims { n_head, head_dim, start, .. } = dims;
        let query = vec![0.0; n_head * head_dim];
        let q = Heads { data: &query, batch_stride: 0, head_stride: head_dim, pos_stride: head_dim };
        let mut out = vec![0.0; n_head * head_dim];
        let mut layer = layers.iter().cycle();
        let run = || {
            let [k, v] = *layer.next().expect("a layer");
            attention::forward(&dims, Input { q, k, v, sinks: None }, black_box(&mut out), None);
        };
        let work = Work { flops: 4 * n_head * (start + 1) * head_dim, bytes };
        if self.line(&decode_name(dims, kind), work, run) {
            // A query of zeros takes the mean of all values.
            let values = numbers((start + 1) * head_dim);
            let mean = values.iter().step_by(head_dim).map(|v| f64::from(*v)).sum::<f64>();
            assert_close(out[0], mean / (start + 1) as f64, 1e-3);
        }
    }

    fn elementwise(&self) {
        let (rows, n) = (1024, 1024);
        let len = rows * n;
        let (x, dy, weight) = (numbers(len), numbers(len), numbers(n));
        let (mut y, mut dweight, mut dbias) = (vec![0.0; len], vec![0.0; n], vec![0.0; n]);
        let moves = |n_operands: usize| Work { flops: 0, bytes: 4 * n_operands * len };

        if self.line("rms_norm", moves(2), || norm::rms_norm(&x, &weight, 1e-5, black_box(&mut y))) {
            let mean_square = x[..n].iter().map(|x| f64::from(x * x)).sum::<f64>() / n as f64;
            assert_close(y[1], f64::from(x[1] * weight[1]) / (mean_square + 1e-5).sqrt(), 1e-5);
        }
        self.line("rms_norm_backward", moves(3), || {
            norm::rms_norm_backward(&x, &weight, 1e-5, &dy, black_box(&mut y), &mut dweight);
        });
        self.line("layer_norm", moves(2), || norm::layer_norm(&x, &weight, None, 1e-5, black_box(&mut y)));
        self.line("layer_norm_backward", moves(3), || {
            let dbias = Some(&mut dbias[..]);
            norm::layer_norm_backward(&x, &weight, 1e-5, &dy, black_box(&mut y), &mut dweight, dbias);
        });

        self.line("gelu", moves(2), || activation::gelu(&x, black_box(&mut y)));
        self.line("gelu_backward", moves(3), || activation::gelu_backward(&x, &dy, black_box(&mut y)));
        if self.line("gelu_tanh", moves(2), || activation::gelu_tanh(&x, black_box(&mut y))) {
            let v = f64::from(x[1]);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v);
            assert_close(y[1], 0.5 * v * (1.0 + u.tanh()), 1e-6);
        }
        self.line("gelu_tanh_backward", moves(3), || {
            activation::gelu_tanh_backward(&x, &dy, black_box(&mut y));
        });
        let half = &mut y[..len / 2];
        let bytes = 4 * len * 3 / 2;
        if self.line("swiglu", Work { flops: 0, bytes }, || activation::swiglu(&x, n / 2, black_box(half))) {
            let (gate, up) = (f64::from(x[0]), f64::from(x[n / 2]));
            assert_close(y[0], gate / (1.0 + (-gate).exp()) * up, 1e-6);
        }
        self.line("swiglu_backward", Work { flops: 0, bytes: 4 * len * 5 / 2 }, || {
            activation::swiglu_backward(&x, n / 2, &dy[..len / 2], black_box(&mut y));
        });

        let (cos, sin) = (vec![1.0; 512 * 32], vec![0.0; 512 * 32]);
        let tables = rope::Rope {
            row_width: n,
            n_head: n / 64,
            head_dim: 64,
            rotary_dim: 64,
            cos: &cos,
            sin: &sin,
            start: 0,
            seq_len: 512,
        };
        y.copy_from_slice(&x);
        if self.line("rope", moves(2), || rope::rotate(black_box(&mut y), &tables)) {
            assert_eq!(x, y, "angles of zero");
        }

        let targets = vec![0; rows];
        y.fill(0.0);
        if self.line("cross_entropy (in place)", moves(2), || {
            black_box(loss::cross_entropy(black_box(&mut y), &targets, 1.0));
        }) {
            y.fill(0.0);
            assert_close(
                loss::cross_entropy(&mut y, &targets, 1.0) as f32 / rows as f32,
                (n as f64).ln(),
                1e-4,
            );
        }
        self.line("nll", moves(1), || {
            black_box(loss::nll(&x, &targets));
        });

        let (mut param, mut m, mut v) = (x.clone(), vec![0.0; len], vec![0.0; len]);
        let mut config = AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            step: 1,
            grad_scale: 1.0,
        };
        optim::adamw(&mut param, &dy, &mut m, &mut v, &config);
        assert_close(param[1], f64::from(x[1]) - 1e-3 * f64::from(dy[1].signum()), 1e-6);
        self.line("adamw", moves(7), || {
            config.step += 1;
            optim::adamw(black_box(&mut param), &dy, &mut m, &mut v, &config);
        });
        if self.line("sum_of_squares", moves(1), || {
            black_box(optim::sum_of_squares(&x));
        }) {
            let exact: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert_close((optim::sum_of_squares(&x) / exact) as f32, 1.0, 1e-6);
        }
    }
}

/// Rows of a kind, of arbitrary numbers.
fn part(kind: Kind, n_out: usize, n_in: usize) -> Part {
    let read = |rows: std::ops::Range<usize>, out: &mut packed::Rows| {
        let n = rows.len() * n_in;
        if let Kind::Ints { .. } = kind {
            for i in 0..n / kind.block_len() {
                let scale = [0, 0x10 + (i % 4) as u8];
                out.groups.push(Group { scale, single: 0.01, min: scale, scales: [33; 16], mins: [21; 8] });
                out.numbers.extend((0..kind.block_len()).map(|k| (k * 7 + i) as u8 % 16));
            }
        } else {
            for x in numbers(n) {
                let bits = x.to_bits().to_le_bytes();
                match kind {
                    Kind::F32 => out.numbers.extend(bits),
                    // The exponent of half precision has fewer bits: a number near 1.
                    Kind::F16 => out.numbers.extend([bits[2], 0x38 | bits[3] & 0x83]),
                    _ => out.numbers.extend(&bits[2..]),
                }
            }
        }
        Ok::<(), ()>(())
    };
    Part::new(kind, n_out, n_in, read).expect("nothing fails")
}

fn decode_name(dims: Dims, kind: &str) -> String {
    let Dims { n_head, n_kv_head, head_dim, start, .. } = dims;
    format!("decode {n_head}/{n_kv_head} x {head_dim} keys={} {kind}", start + 1)
}

/// Keys and values of as many layers as no cache of the machine holds: a model comes back to one after all others.
fn layers<T>(layer_bytes: usize, one: impl Fn() -> T) -> Vec<[T; 2]> {
    (0..(LAYERS_BYTES / layer_bytes).max(2)).map(|_| [one(), one()]).collect()
}

/// Numbers in [-0.5, 0.5), the same every time.
fn numbers(n: usize) -> Vec<f32> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 8) as f32 / (1 << 24) as f32 - 0.5)
    };
    std::iter::repeat_n((), n).scan(1, |state, ()| next(state)).collect()
}

fn assert_close(got: f32, expected: f64, tolerance: f64) {
    assert!((f64::from(got) - expected).abs() <= tolerance, "{got} for {expected}");
}
