//! Follows one sequence through a compiled form.

use llguidance::Matcher;
use roundhouse_engine::{Allowed, Constraint, Progress, Unmet};

use super::speller::said;

/// The engine's constraint over the library's matcher.
pub(crate) struct Follower {
    matcher: Matcher,
    /// Stands for the end of the text.
    end: u32,
    mask: Vec<u32>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Follower")
    }
}

impl Follower {
    pub(super) fn new(matcher: Matcher, end: u32) -> Self {
        Self { matcher, end, mask: Vec::new() }
    }
}

impl Constraint for Follower {
    fn allowed(&mut self) -> Result<Allowed<'_>, Unmet> {
        let mask = self.matcher.compute_mask().map_err(|error| Unmet(said(&error.to_string())))?;
        self.mask.clear();
        self.mask.extend_from_slice(mask.as_slice());
        // The model's own tokens for it are the engine's matter, and this id may be one of padding.
        let (word, bit) = ((self.end / u32::BITS) as usize, 1 << (self.end % u32::BITS));
        let may_end = self.mask.get(word).is_some_and(|word| word & bit != 0);
        if let Some(word) = self.mask.get_mut(word) {
            *word &= !bit;
        }
        Ok(Allowed { tokens: &self.mask, may_end })
    }

    fn accept(&mut self, token: u32) -> Result<Progress, Unmet> {
        self.matcher.consume_token(token).map_err(|error| Unmet(said(&error.to_string())))?;
        let complete = self.matcher.is_stopped();
        Ok(if complete { Progress::Complete } else { Progress::Open })
    }
}
