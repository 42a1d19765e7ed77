//! Which names of a listing are on a page.

use super::targets::Target;

/// Names of a listing that are looked at before other tasks have their turn: some hundred microseconds.
const LOOKS_AT_A_TIME: usize = 1000;

/// What a listing does with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// It is on the page.
    Take,
    /// It is not, nor is any before this one.
    SkipTo(String),
    /// It is not, nor is any behind it.
    Stop,
}

/// At most so many of a sorted listing.
pub(super) async fn chosen(
    mut rest: &[Target],
    most: usize,
    choose: &impl Fn(&str) -> Pick,
) -> Vec<Target> {
    let mut taken = Vec::new();
    let mut looks = 0_usize;
    while let [next, others @ ..] = rest
        && taken.len() < most
    {
        looks += 1;
        if looks.is_multiple_of(LOOKS_AT_A_TIME) {
            tokio::task::yield_now().await;
        }
        rest = match choose(next.name.as_str()) {
            Pick::Take => {
                taken.push(next.clone());
                others
            }
            Pick::SkipTo(name) => {
                &others[others.partition_point(|it| it.name.as_str() < name.as_str())..]
            }
            Pick::Stop => break,
        };
    }
    taken
}
