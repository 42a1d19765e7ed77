//! Every operation on every kind of register against plain arithmetic.

use super::super::exp;
use super::*;

/// Every operation against plain arithmetic, on whatever registers it is run with.
struct Check;

impl LaneKernel for Check {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let a: [f32; LANES] = std::array::from_fn(|lane| lane as f32 * 1.5 - 7.25);
        let b: [f32; LANES] = std::array::from_fn(|lane| 3.0 - lane as f32 * 0.25);
        let of = |result: V| {
            let mut out = [0.0; LANES];
            result.store(&mut out);
            out
        };
        let (x, y) = (V::load(&a), V::load(&b));
        let each = |f: &dyn Fn(f32, f32) -> f32| -> [f32; LANES] {
            std::array::from_fn(|lane| f(a[lane], b[lane]))
        };
        assert_eq!(of(x.add(y)), each(&|a, b| a + b));
        assert_eq!(of(x.sub(y)), each(&|a, b| a - b));
        assert_eq!(of(x.mul(y)), each(&|a, b| a * b));
        assert_eq!(of(x.div(y)), each(&|a, b| a / b));
        assert_eq!(of(x.max(y)), each(&f32::max));
        assert_eq!(of(x.min(y)), each(&f32::min));
        assert_eq!(of(x.madd(y, x)), each(&|a, b| a * b + a), "exact for these numbers");
        assert!(of(x.max(V::splat(f32::NAN))).iter().all(|x| x.is_nan()));
        assert!(of(V::splat(f32::NAN).exp()).iter().all(|x| x.is_nan()));
        for (from, to) in [(0, 16), (0, 0), (3, 9), (8, 16), (15, 16)] {
            let want: [f32; LANES] =
                std::array::from_fn(|at| if (from..to).contains(&at) { a[at] } else { b[at] });
            assert_eq!(of(x.within(from, to, y)), want);
        }
        assert_eq!((x.largest(), x.total()), (a[15], a.iter().sum()));
        let mut some = [9.0; 5];
        x.write(&mut some);
        assert_eq!(some[..], a[..5]);
        let read = of(V::read(&a[..5]));
        assert_eq!((&read[..5], &read[5..]), (&a[..5], &[0.0; 11][..]));
        assert_eq!(of(V::read(&a)), a);
        // Every sixteen numbers of each half, subnormal ones and those that are none too.
        for first in (0..=u16::MAX).step_by(LANES) {
            let bits: [u16; LANES] = std::array::from_fn(|lane| first + lane as u16);
            let same = |got: [f32; LANES], want: [f32; LANES]| {
                let pairs = got.into_iter().zip(want);
                pairs
                    .into_iter()
                    .all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
            };
            let halves = bits.map(f16::from_bits);
            assert!(same(of(V::load_f16(&halves)), halves.map(f16::to_f32)), "{first:x}");
            let halves = bits.map(bf16::from_bits);
            assert!(same(of(V::load_bf16(&halves)), halves.map(bf16::to_f32)), "{first:x}");
        }
        for (got, x) in of(x.mul(V::splat(9.0)).exp()).iter().zip(a) {
            let want = exp::<false>(x * 9.0);
            assert!((got - want).abs() <= want * 3e-7, "{got} {want}");
        }
    }
}

#[test]
fn operations_are_those_of_plain_arithmetic_on_every_kind_of_register() {
    on_every_kind(|| Check);
}
