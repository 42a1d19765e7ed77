//! Many token vectors into one sentence vector.

use roundhouse_engine::Want;

use crate::attention::Span;
use crate::config::sentence::Pooling;

/// Pools `[tokens, width]` into `width` numbers. Their length stays what it is: a request may
/// ask for vectors as they are, so scaling is not the runner's matter.
pub(crate) fn pool(pooling: Pooling, rows: &[f32], width: usize) -> Vec<f32> {
    let count = (rows.len() / width) as f32;
    match pooling {
        Pooling::Cls => rows[..width].to_vec(),
        Pooling::Last => rows[rows.len() - width..].to_vec(),
        Pooling::Mean => sum(rows, width, count),
        Pooling::MeanSqrtLength => sum(rows, width, count.sqrt()),
        Pooling::Max => {
            let mut largest = rows[..width].to_vec();
            for row in rows.chunks_exact(width) {
                for (largest, x) in largest.iter_mut().zip(row) {
                    *largest = largest.max(*x);
                }
            }
            largest
        }
    }
}

/// The vectors that a row wants, one after another, of all rows' `[tokens, width]`.
pub(crate) fn wanted(
    pooling: Pooling,
    want: &Want,
    span: &Span<'_>,
    (rows, width): (&[f32], usize),
) -> Vec<f32> {
    let own = span.of(rows, width);
    match want {
        Want::Pooled => pool(pooling, own, width),
        Want::Each => own.to_vec(),
        Want::At(places) => {
            places.iter().flat_map(|place| &own[place * width..][..width]).copied().collect()
        }
    }
}

fn sum(rows: &[f32], width: usize, divisor: f32) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += x;
        }
    }
    for x in &mut sum {
        *x /= divisor;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_pools_by_its_definition() {
        let rows = [1.0, -2.0, 3.0, 4.0, 2.0, 1.0, -6.0, 0.0];
        let pooled = |pooling| pool(pooling, &rows, 2);
        assert_eq!(pooled(Pooling::Cls), [1.0, -2.0]);
        assert_eq!(pooled(Pooling::Last), [-6.0, 0.0]);
        assert_eq!(pooled(Pooling::Max), [3.0, 4.0]);
        assert_eq!(pooled(Pooling::Mean), [0.0, 0.75]);
        assert_eq!(pooled(Pooling::MeanSqrtLength), [0.0, 1.5]);
    }
}
