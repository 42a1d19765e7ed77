//! Which targets a rule means: names and what lies below them, by whole segments.

use std::fmt;
use std::str::FromStr;

use roundhouse_types::{EndpointName, InvalidName, ModelId, TargetName};
use thiserror::Error;

/// A set of targets: one by its name, those directly below a name (`acme/*`), or all below it
/// (`acme/**`). `*` alone is every target of one segment, `**` every target. An endpoint's name and
/// a colon before it leave out other endpoints, as in `chat:acme/**`.
///
/// A `*` stands for one whole segment and `**` for one or more, at the end only: so whatever a
/// pattern names is one range of names, which a list can be read by, and `acme/*` cannot reach
/// `acme-evil/x` or `acme` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    endpoint: Option<EndpointName>,
    /// A whole name, or what stands before the `*` with its slash.
    fixed: Box<str>,
    reach: Reach,
}

/// What a pattern names by its fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The target of that name.
    Name,
    /// Those one segment below it.
    Children,
    /// All below it.
    Below,
}

/// Where a name stands among what some patterns cover, in the order of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One covers it.
    Covered,
    /// None does, and no name between it and this one is covered. The latter may be.
    Before(String),
    /// None covers it or any name behind it.
    Behind,
}

/// Where a name stands, so that whoever reads names in their order can leave out whole ranges.
pub fn place(patterns: &[Pattern], name: &str) -> Place {
    let mut next: Option<String> = None;
    for pattern in patterns {
        let start = match pattern.start_behind(name) {
            Err(()) => return Place::Covered,
            Ok(start) => start,
        };
        if let Some(start) = start
            && next.as_ref().is_none_or(|next| start < *next)
        {
            next = Some(start);
        }
    }
    next.map_or(Place::Behind, Place::Before)
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidPattern {
    /// What stands before the colon is not an endpoint's name.
    #[error(
        "'{0}' before the ':' is not an endpoint's name; write '*:' before a target with a ':'"
    )]
    Endpoint(String),
    /// A `*` within a segment or before the last one.
    #[error("a '*' stands for the whole last segment, and '**' for all that lies below")]
    Star,
    /// The rest is not a target's name.
    #[error("'{name}' is not a target: {why}")]
    Target {
        /// What was read as a target.
        name: String,
        /// The rule it breaks.
        why: InvalidName,
    },
}

impl Pattern {
    /// All below a name, at every endpoint: what a tenant has that is given nothing else.
    pub fn below(segment: &str) -> Self {
        Self { endpoint: None, fixed: format!("{segment}/").into(), reach: Reach::Below }
    }

    /// The only endpoint that it is for; absent is every one.
    pub fn endpoint(&self) -> Option<&EndpointName> {
        self.endpoint.as_ref()
    }

    /// A whole name, or what all the names it covers begin with.
    pub fn fixed(&self) -> &str {
        &self.fixed
    }

    /// What it names by its fixed part.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Whether it is for this endpoint.
    pub fn is_at(&self, endpoint: &EndpointName) -> bool {
        self.endpoint.as_ref().is_none_or(|only| only == endpoint)
    }

    /// Whether it covers a target, at whichever endpoint it is for.
    pub fn covers(&self, target: &TargetName) -> bool {
        let name = target.as_str();
        match self.reach {
            Reach::Name => *self.fixed == *name,
            Reach::Children => {
                name.strip_prefix(&*self.fixed).is_some_and(|rest| !rest.contains('/'))
            }
            Reach::Below => name.starts_with(&*self.fixed),
        }
    }

    /// The least name behind this one that it may cover; `Err` where it covers this one.
    fn start_behind(&self, name: &str) -> Result<Option<String>, ()> {
        let fixed = &*self.fixed;
        let Some(rest) = name.strip_prefix(fixed) else {
            return Ok((fixed > name).then(|| fixed.to_owned()));
        };
        match (self.reach, rest.split_once('/')) {
            (Reach::Name, _) if rest.is_empty() => Err(()),
            (Reach::Name, _) => Ok(None),
            (Reach::Below, _) | (Reach::Children, None) => Err(()),
            // '0' is the character behind '/': so it is the first name behind all below this one.
            (Reach::Children, Some((segment, _))) => Ok(Some(format!("{fixed}{segment}0"))),
        }
    }

    /// Whether it covers a model.
    pub fn matches(&self, model: &ModelId) -> bool {
        self.is_at(&model.endpoint) && self.covers(&model.target)
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let (endpoint, rest) = match text.split_once(':') {
            None => (None, text),
            Some(("*", rest)) => (None, rest),
            Some((name, rest)) => {
                let endpoint = name.parse();
                (Some(endpoint.map_err(|_| InvalidPattern::Endpoint(name.into()))?), rest)
            }
        };
        let (fixed, reach) = match rest.rsplit_once('/') {
            _ if rest == "*" => ("", Reach::Children),
            _ if rest == "**" => ("", Reach::Below),
            Some((fixed, "*")) => (fixed, Reach::Children),
            Some((fixed, "**")) => (fixed, Reach::Below),
            _ => (rest, Reach::Name),
        };
        if fixed.contains('*') {
            return Err(InvalidPattern::Star);
        }
        if fixed.is_empty() && reach != Reach::Name && !rest.starts_with('/') {
            return Ok(Self { endpoint, fixed: "".into(), reach });
        }
        // A slash before the one that was split off: an empty segment.
        let checked = match (reach, fixed.ends_with('/')) {
            (Reach::Children | Reach::Below, true) => Err(InvalidName::EmptySegment),
            _ => fixed.parse::<TargetName>(),
        };
        let checked = checked.map_err(|why| InvalidPattern::Target { name: fixed.into(), why })?;
        let fixed = match reach {
            Reach::Name => checked.to_string(),
            Reach::Children | Reach::Below => format!("{checked}/"),
        };
        Ok(Self { endpoint, fixed: fixed.into(), reach })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Some(endpoint) => write!(f, "{endpoint}:")?,
            None if self.fixed.contains(':') => f.write_str("*:")?,
            None => {}
        }
        f.write_str(&self.fixed)?;
        f.write_str(match self.reach {
            Reach::Name => "",
            Reach::Children => "*",
            Reach::Below => "**",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(pattern: &str, model: &str) -> bool {
        let (endpoint, target) = model.split_once(':').unwrap();
        let (endpoint, target) = (endpoint.parse().unwrap(), target.parse().unwrap());
        pattern.parse::<Pattern>().unwrap().matches(&ModelId { endpoint, target })
    }

    #[test]
    fn a_pattern_covers_whole_segments_and_nothing_that_merely_begins_alike() {
        for (pattern, yes, no) in [
            ("acme/*", "e:acme/x", "e:acme-evil/x"),
            ("acme/*", "e:acme/a b.tar.gz", "e:acme/deep/x"),
            ("acme/*", "e:acme/**", "e:acme"),
            ("acme/**", "e:acme/deep/er/x", "e:acme-evil/deep/x"),
            ("acme/**", "e:acme/x", "e:acme"),
            ("acme/**", "e:acme/x", "e:evil/acme/x"),
            ("acme/x", "e:acme/x", "e:acme/x/y"),
            ("acme/x/", "e:acme/x", "e:acme/xy"),
            ("*", "e:one", "e:one/two"),
            ("chat:acme/**", "chat:acme/x", "other:acme/x"),
            ("chat:**", "chat:a/b/c", "chat2:a"),
            ("*:odd:name", "e:odd:name", "odd:name"),
        ] {
            assert!(covers(pattern, yes), "{pattern} {yes}");
            assert!(!covers(pattern, no), "{pattern} {no}");
        }
        assert!(covers("**", "any:a/b/c"));
    }

    #[test]
    fn a_pattern_that_means_something_else_is_refused() {
        for bad in [
            "",
            "/",
            "/*",
            "/acme/*",
            "acme//*",
            "acme/chat-*",
            "*/x",
            "**/x",
            "a/*/b",
            "a/***",
            "../*",
            "a/./**",
            "bad_endpoint:x",
            ":x",
            "chat:",
            "a\\b/*",
        ] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_that_no_pattern_covers_are_left_out() {
        let patterns: Vec<Pattern> =
            ["acme/*", "m/x", "z/**"].iter().map(|text| text.parse().unwrap()).collect();
        let before = |text: &str| Place::Before(text.into());
        assert_eq!(place(&patterns, "a"), before("acme/"));
        assert_eq!(place(&patterns, "acme/x"), Place::Covered);
        assert_eq!(place(&patterns, "acme/deep/1"), before("acme/deep0"));
        assert_eq!(place(&patterns, "acme0"), before("m/x"));
        assert_eq!(place(&patterns, "m/x"), Place::Covered);
        assert_eq!(place(&patterns, "m/x/y"), before("z/"));
        assert_eq!(place(&patterns, "z/y/x"), Place::Covered);
        assert_eq!(place(&patterns, "z0"), Place::Behind);
        assert_eq!(place(&[], "a"), Place::Behind);
    }

    #[test]
    fn a_pattern_is_written_as_it_is_read() {
        for text in ["acme/*", "acme/**", "acme/x", "*", "**", "chat:a/*", "chat:**", "*:odd:n/*"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
    }
}
