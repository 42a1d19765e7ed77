//! How the room of one step is split among prompts that compete for it.

/// The tokens that each prompt gets of `room`, given what each still wants, the oldest first.
///
/// The oldest has a claim on half of it, so that it always gets on; the others take turns by
/// what they want, the least first, so that a short prompt does not wait behind a long one.
/// What nobody else wants goes to the oldest.
pub(crate) fn shares(room: usize, wants: &[usize]) -> Vec<usize> {
    let mut given = vec![0; wants.len()];
    let Some(oldest) = wants.first() else {
        return given;
    };
    given[0] = room.div_ceil(2).min(*oldest);
    let mut left = room - given[0];
    let mut others: Vec<_> = (1..wants.len()).collect();
    others.sort_by_key(|index| wants[*index]);
    for index in others {
        given[index] = wants[index].min(left);
        left -= given[index];
    }
    given[0] += left.min(wants[0] - given[0]);
    given
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_prompts_pass_a_long_one_that_still_gets_half() {
        assert_eq!(shares(64, &[4000, 300, 20]), [32, 12, 20]);
        assert_eq!(shares(64, &[4000, 10]), [54, 10]);
        assert_eq!(shares(64, &[4000]), [64]);
        assert_eq!(shares(64, &[10, 4000]), [10, 54]);
        assert_eq!(shares(1, &[5, 5]), [1, 0]);
        assert_eq!(shares(8, &[]), [] as [usize; 0]);
    }

    proptest! {
        #[test]
        fn all_room_is_used_nothing_is_given_twice_and_the_oldest_gets_on(
            room in 1_usize..300,
            wants in prop::collection::vec(1_usize..200, 1..20),
        ) {
            let given = shares(room, &wants);
            prop_assert_eq!(given.iter().sum::<usize>(), room.min(wants.iter().sum()));
            prop_assert!(given.iter().zip(&wants).all(|(given, want)| given <= want));
            prop_assert!(given[0] >= room.div_ceil(2).min(wants[0]));
        }
    }
}
