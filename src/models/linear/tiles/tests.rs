use super::*;

fn number(at: usize) -> f32 {
    ((at * 7919 % 10_007) as f32 - 5003.0) / 4096.0
}

/// Against sums in f64, in shapes that no tile divides.
#[test]
fn products_are_those_of_plain_loops_in_every_shape() {
    if !are_here() {
        println!("no tiles on this machine");
        return;
    }
    for [rows, inputs, outputs] in [
        [1, 1, 1],
        [1, 32, 32],
        [2, 31, 33],
        [16, 64, 16],
        [17, 65, 31],
        [9, 100, 64],
        [32, 96, 70],
        [33, 40, 2],
        [48, 33, 95],
        [65, 576, 97],
        [300, 1000, 129],
        [0, 64, 64],
        [3, 0, 5],
        [3, 64, 0],
    ] {
        let shape = [rows, inputs, outputs];
        equal(bf16::from_f32, shape);
        equal(f16::from_f32, shape);
    }
}

fn equal<W: Halves>(narrow: fn(f32) -> W, shape: [usize; 3]) {
    let [rows, inputs, outputs] = shape;
    let x: Vec<f32> = (0..rows * inputs).map(|at| number(at) * 1.000_3).collect();
    let weight: Vec<W> = (0..outputs * inputs).map(|at| narrow(number(at + 5))).collect();
    let y = multiply(&x, &weight, shape);
    assert_eq!(y.len(), rows * outputs);
    for (at, got) in y.iter().enumerate() {
        let (row, output) = (at / outputs, at % outputs);
        let terms = x[row * inputs..][..inputs].iter().zip(&weight[output * inputs..]);
        let terms = terms.map(|(x, w)| f64::from(*x) * f64::from(w.widen()));
        let (sum, size) =
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let apart = (f64::from(*got) - sum).abs();
        assert!(apart <= 1e-6 * size, "{shape:?}, {at}: {got} {sum}");
    }
}

#[test]
fn every_finite_f16_is_the_sum_of_its_parts() {
    let all: Vec<f16> =
        (0..=u16::MAX).map(f16::from_bits).filter(|number| number.is_finite()).collect();
    let mut room = Vec::new();
    let parts = f16::apart(&all, &mut room);
    for ((number, large), small) in all.iter().zip(parts[0]).zip(parts[1]) {
        assert_eq!(large.to_f32() + small.to_f32(), number.to_f32(), "{number:e}");
    }
}

/// What a tile computes of one row does not depend on the rows beside it, but for the order of
/// its sums where rows are so few that the parts are summed apart.
#[test]
fn rows_do_not_touch_each_other() {
    if !are_here() {
        return;
    }
    let (inputs, outputs) = (200, 50);
    let weight: Vec<bf16> = (0..outputs * inputs).map(|at| bf16::from_f32(number(at))).collect();
    let mut x: Vec<f32> = (0..40 * inputs).map(|at| number(at + 3)).collect();
    let before = multiply(&x, &weight, [40, inputs, outputs]);
    x[7 * inputs..8 * inputs].fill(f32::NAN);
    let after = multiply(&x, &weight, [40, inputs, outputs]);
    for (row, (before, after)) in before.chunks(outputs).zip(after.chunks(outputs)).enumerate() {
        match row {
            7 => assert!(after.iter().all(|number| number.is_nan())),
            _ => assert_eq!(before, after, "{row}"),
        }
    }
}
