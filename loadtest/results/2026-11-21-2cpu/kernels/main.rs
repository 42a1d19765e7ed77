//! The kernels for float weights side by side, in the time of the process's CPUs.
#![allow(dead_code, unused_imports)]
mod linear;
mod simd;

use linear::{KERNELS, Weights, run};

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut i64) -> i32;
}

/// Seconds that the CPUs have spent on this process.
fn spent() -> f64 {
    let mut time = [0i64; 2];
    unsafe { clock_gettime(2, time.as_mut_ptr()) };
    time[0] as f64 + time[1] as f64 * 1e-9
}

fn main() {
    println!("inputs x outputs, rows: microseconds (GFLOP/s), median of 7 rounds in turns");
    for (inputs, outputs) in [(576, 960), (576, 3072), (1536, 576), (2048, 8192)] {
        let numbers: Vec<f32> = (0..inputs * outputs).map(|i| (i % 251) as f32 / 128.0 - 1.0).collect();
        let weights = Weights {
            bf16: numbers.iter().map(|x| half::bf16::from_f32(*x)).collect(),
            f16: numbers.iter().map(|x| half::f16::from_f32(*x)).collect(),
            f32: numbers,
        };
        for rows in [1usize, 2, 4, 8, 16, 32, 64, 128, 512] {
            let x: Vec<f32> = (0..inputs * rows).map(|i| (i % 241) as f32 / 129.0 - 1.0).collect();
            let repeats = 200_000_000 / (rows * outputs * inputs) + 1;
            let few = |kernel: usize| KERNELS[kernel].starts_with("few");
            let mut times = vec![Vec::new(); KERNELS.len()];
            for _ in 0..7 {
                for kernel in (0..KERNELS.len()).filter(|kernel| !few(*kernel) || rows <= 8) {
                    let start = spent();
                    for _ in 0..repeats {
                        std::hint::black_box(run(kernel, &x, &weights, [rows, inputs, outputs]));
                    }
                    times[kernel].push((spent() - start) / repeats as f64);
                }
            }
            print!("{inputs}x{outputs} {rows:3}:");
            for (name, times) in KERNELS.iter().zip(&mut times).filter(|(_, times)| !times.is_empty()) {
                times.sort_by(f64::total_cmp);
                let median = times[times.len() / 2];
                let rate = 2e-9 * (rows * inputs * outputs) as f64 / median;
                print!("  {name} {:.0} ({rate:.0})", median * 1e6);
            }
            println!();
        }
    }
}
