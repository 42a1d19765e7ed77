//! Which of a store's objects make up targets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use roundhouse_types::{Bytes, TargetName};

use crate::{ArchiveKind, ObjectMeta};

/// How a target lies in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetForm {
    /// A packed archive.
    Archive,
    /// A folder of files.
    Folder,
    /// A single model file.
    File,
}

/// One target that a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What a request names it by.
    pub name: TargetName,
    /// How it lies in the store.
    pub form: TargetForm,
    /// The sum of its objects' sizes.
    pub bytes: Bytes,
    /// When its youngest object was written.
    pub modified: Option<SystemTime>,
}

/// A page of targets, in the byte order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPage {
    /// The targets.
    pub targets: Vec<Target>,
    /// The name to ask for the next page with; `None` at the end.
    pub next: Option<String>,
    /// The store holds more objects than we look at: targets are missing from the list.
    pub truncated: bool,
}

/// A folder with one of these is a target.
const MARKERS: [&str; 10] = [
    "config.json",
    "modules.json",
    "adapter_config.json",
    "model_index.json",
    "code/inference.py",
    "model.joblib",
    "model.pkl",
    "model.pt",
    "model.pth",
    "xgboost-model",
];

/// Finds the targets among a store's objects; names get the mount's name in front.
/// A folder inside a target's folder is a part of it, not a target.
pub(crate) fn targets(mount: Option<&str>, objects: &[ObjectMeta]) -> Vec<Target> {
    let marked: BTreeSet<&str> = objects.iter().filter_map(|o| marked_folder(&o.key)).collect();
    let mut found = BTreeMap::new();
    for object in objects {
        let (key, form) = match outermost(&object.key, &marked) {
            Some(folder) => (folder, TargetForm::Folder),
            None if ArchiveKind::of(&object.key).is_some() => (&*object.key, TargetForm::Archive),
            None if object.key.ends_with(".gguf") => (&*object.key, TargetForm::File),
            None => continue,
        };
        let name = mount.map_or_else(|| key.to_owned(), |mount| format!("{mount}/{key}"));
        // A key that no request could name is no target.
        let Ok(name) = name.parse::<TargetName>() else {
            continue;
        };
        let target = found.entry(name.clone()).or_insert(Target {
            name,
            form,
            bytes: Bytes::ZERO,
            modified: None,
        });
        target.bytes = Bytes(target.bytes.0.saturating_add(object.size));
        target.modified = target.modified.max(object.modified);
    }
    found.into_values().collect()
}

/// The folder that a marker file makes a target.
fn marked_folder(key: &str) -> Option<&str> {
    MARKERS.iter().find_map(|marker| key.strip_suffix(marker)?.strip_suffix('/'))
}

/// The marked folder nearest to the root that holds the key.
fn outermost<'a>(key: &'a str, marked: &BTreeSet<&str>) -> Option<&'a str> {
    key.match_indices('/').map(|(at, _)| &key[..at]).find(|folder| marked.contains(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str) -> ObjectMeta {
        ObjectMeta { key: key.into(), size: 10, etag: "x".into(), modified: None, checksum: None }
    }

    #[test]
    fn folders_archives_and_single_files_are_targets_and_nested_folders_are_not() {
        let keys = [
            "README.md",
            "a/enc/1_Pooling/config.json",
            "a/enc/config.json",
            "a/enc/model.safetensors",
            "a/notes.txt",
            "b.tar.gz",
            "c/chat.gguf",
            "c/h/code/inference.py",
            "c/h/weights/model.pt",
            "c/x/xgboost-model",
            "d//e.tar",
        ];
        let objects: Vec<_> = keys.into_iter().map(object).collect();
        let found: Vec<_> = targets(Some("x"), &objects)
            .into_iter()
            .map(|t| (t.name.to_string(), t.form, t.bytes.0))
            .collect();
        assert_eq!(
            found,
            [
                ("x/a/enc".to_owned(), TargetForm::Folder, 30),
                ("x/b.tar.gz".to_owned(), TargetForm::Archive, 10),
                ("x/c/chat.gguf".to_owned(), TargetForm::File, 10),
                ("x/c/h".to_owned(), TargetForm::Folder, 20),
                ("x/c/x".to_owned(), TargetForm::Folder, 10),
            ]
        );
    }
}
