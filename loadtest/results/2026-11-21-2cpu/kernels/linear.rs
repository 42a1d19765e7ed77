pub mod few;
pub mod many;
pub mod tiles;

pub const FEW_ROWS: usize = 8;

pub const fn packed_bytes(inputs: usize) -> usize {
    const PACKED: usize = 3 << 19;
    let rows = inputs.next_multiple_of(32) * 32 * 6;
    if rows > PACKED { rows } else { PACKED }
}

pub struct Weights {
    pub f32: Vec<f32>,
    pub bf16: Vec<half::bf16>,
    pub f16: Vec<half::f16>,
}

pub const KERNELS: [&str; 8] = [
    "few f32", "gemm f32", "many f32", "few bf16", "tiles bf16", "few f16", "many f16", "tiles f16",
];

pub fn run(kernel: usize, x: &[f32], w: &Weights, shape: [usize; 3]) -> Vec<f32> {
    let [rows, inputs, outputs] = shape;
    match kernel {
        0 => few::multiply(x, &w.f32, rows, inputs),
        1 => {
            let mut y = vec![0.0; rows * outputs];
            let [rs, cs, k] = [outputs, inputs, inputs].map(|it| it as isize);
            let threads = match rayon::current_num_threads() {
                1 => gemm::Parallelism::None,
                _ => gemm::Parallelism::Rayon(0),
            };
            // As candle calls it for `x.matmul(&w.t())`.
            unsafe {
                gemm::gemm(
                    rows, outputs, inputs, y.as_mut_ptr(), 1, rs, false, x.as_ptr(), 1, k,
                    w.f32.as_ptr(), cs, 1, 0f32, 1f32, false, false, false, threads,
                );
            }
            y
        }
        2 => many::multiply(x, &w.f32, shape),
        3 => few::multiply(x, &w.bf16, rows, inputs),
        4 => tiles::multiply(x, &w.bf16, shape),
        5 => few::multiply(x, &w.f16, rows, inputs),
        6 => many::multiply(x, &w.f16, shape),
        _ => tiles::multiply(x, &w.f16, shape),
    }
}
