//! Which version of a model an endpoint serves when the store changes.

/// What an endpoint does when the store holds another version of a model, or the model no
/// more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VersionRule {
    /// What a new version in the store means.
    pub update: Update,
    /// What a deletion in the store means.
    pub on_delete: OnDelete,
}

/// What a new version in the store means for a model that was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Update {
    /// It is loaded beside the old one and takes over when it is ready.
    #[default]
    Auto,
    /// It is shown, and served when an operator says so.
    Manual,
    /// The store is not looked at: what was loaded first stays.
    Never,
}

/// What a deletion in the store means for a model that is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnDelete {
    /// It serves until it is evicted.
    #[default]
    Serve,
    /// It takes no new requests and leaves when the last one ends.
    Drain,
}

impl Update {
    /// As it is written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
            Self::Never => "never",
        }
    }
}

impl OnDelete {
    /// As it is written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Drain => "drain",
        }
    }
}

/// Reads `update` and `on_delete` of an `[[endpoint]]`; what is absent is the default. The
/// texts are the key and what is wrong with it.
pub(super) fn read(endpoint: &toml::Table) -> (VersionRule, Vec<(&'static str, String)>) {
    let mut faults = Vec::new();
    let updates = [Update::Auto, Update::Manual, Update::Never].map(|it| (it.as_str(), it));
    let deletes = [OnDelete::Serve, OnDelete::Drain].map(|it| (it.as_str(), it));
    let rule = VersionRule {
        update: one_of(endpoint, "update", &updates, &mut faults),
        on_delete: one_of(endpoint, "on_delete", &deletes, &mut faults),
    };
    if rule.update == Update::Never && rule.on_delete == OnDelete::Drain {
        let why = "cannot be \"drain\" with update = \"never\", which does not look at the store";
        faults.push(("on_delete", why.to_owned()));
    }
    (rule, faults)
}

fn one_of<T: Copy + Default>(
    endpoint: &toml::Table,
    key: &'static str,
    known: &[(&str, T)],
    faults: &mut Vec<(&'static str, String)>,
) -> T {
    let Some(value) = endpoint.get(key) else {
        return T::default();
    };
    let found = value.as_str().and_then(|text| known.iter().find(|(name, _)| *name == text));
    let Some((_, found)) = found else {
        let names: Vec<_> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        faults.push((key, format!("expected {}", names.join(" or "))));
        return T::default();
    };
    *found
}
