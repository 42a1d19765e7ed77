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

/// Finds the targets among a store's objects as they are listed. A folder inside a target's folder
/// is a part of it, not a target. What it holds grows with targets and folders, not with objects.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    /// Folders that are targets; none lies in another.
    marked: BTreeSet<String>,
    /// By key: of a folder without its slash.
    found: BTreeMap<String, Found>,
    /// What lies in folders that are in no target so far.
    loose: BTreeMap<String, Contents>,
}

#[derive(Debug)]
struct Found {
    form: TargetForm,
    contents: Contents,
}

#[derive(Debug, Clone, Copy, Default)]
struct Contents {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Contents {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.modified = self.modified.max(other.modified);
    }
}

impl Finder {
    /// Takes the next object; the order does not matter.
    pub(crate) fn add(&mut self, object: &ObjectMeta) {
        let key = &*object.key;
        if let Some(folder) = marked_folder(key)
            && outermost(key, &self.marked).is_none()
        {
            self.mark(folder);
        }
        let contents = Contents { bytes: object.size, modified: object.modified };
        let form = match outermost(key, &self.marked) {
            Some(folder) => {
                if let Some(target) = self.found.get_mut(folder) {
                    target.contents.add(contents);
                }
                return;
            }
            None if ArchiveKind::of(key).is_some() => TargetForm::Archive,
            None if key.ends_with(".gguf") => TargetForm::File,
            None => {
                if let Some((folder, _)) = key.rsplit_once('/') {
                    self.loose.entry(folder.to_owned()).or_default().add(contents);
                }
                return;
            }
        };
        self.found.insert(key.to_owned(), Found { form, contents });
    }

    /// Makes a folder a target, with all that was seen in it.
    fn mark(&mut self, folder: &str) {
        // A slash and the character after it enclose whatever lies below.
        let below = || format!("{folder}/")..format!("{folder}0");
        let mut contents = self.loose.remove(folder).unwrap_or_default();
        let inner: Vec<String> = self.loose.range(below()).map(|(key, _)| key.clone()).collect();
        for key in inner {
            contents.add(self.loose.remove(&key).unwrap_or_default());
        }
        let inner: Vec<String> = self.found.range(below()).map(|(key, _)| key.clone()).collect();
        for key in inner {
            self.marked.remove(&key);
            contents.add(self.found.remove(&key).map_or_else(Contents::default, |it| it.contents));
        }
        self.marked.insert(folder.to_owned());
        self.found.insert(folder.to_owned(), Found { form: TargetForm::Folder, contents });
    }

    /// All targets by name; names get the mount's name in front.
    pub(crate) fn finish(self, mount: Option<&str>) -> Vec<Target> {
        let named = self.found.into_iter().filter_map(|(key, found)| {
            let name = mount.map_or_else(|| key.clone(), |mount| format!("{mount}/{key}"));
            // A key that no request could name is no target.
            let name = name.parse::<TargetName>().ok()?;
            let Found { form, contents: Contents { bytes, modified } } = found;
            Some(Target { name, form, bytes: Bytes(bytes), modified })
        });
        let mut targets: Vec<Target> = named.collect();
        targets.sort_by(|one, other| one.name.cmp(&other.name));
        targets.dedup_by(|one, other| one.name == other.name);
        targets
    }
}

/// The folder that a marker file makes a target.
fn marked_folder(key: &str) -> Option<&str> {
    MARKERS.iter().find_map(|marker| key.strip_suffix(marker)?.strip_suffix('/'))
}

/// The marked folder nearest to the root that holds the key.
fn outermost<'a>(key: &'a str, marked: &BTreeSet<String>) -> Option<&'a str> {
    key.match_indices('/').map(|(at, _)| &key[..at]).find(|folder| marked.contains(*folder))
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
            "a/enc/.cache/old.tar.gz",
            "a/enc/1_Pooling/README.md",
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
        let wanted = [
            ("x/a/enc".to_owned(), TargetForm::Folder, 50),
            ("x/b.tar.gz".to_owned(), TargetForm::Archive, 10),
            ("x/c/chat.gguf".to_owned(), TargetForm::File, 10),
            ("x/c/h".to_owned(), TargetForm::Folder, 20),
            ("x/c/x".to_owned(), TargetForm::Folder, 10),
        ];
        // In whichever order they are seen.
        for turn in 0..keys.len() {
            let mut finder = Finder::default();
            keys.iter()
                .cycle()
                .skip(turn)
                .take(keys.len())
                .for_each(|key| finder.add(&object(key)));
            let found = finder.finish(Some("x")).into_iter();
            let found: Vec<_> = found.map(|t| (t.name.to_string(), t.form, t.bytes.0)).collect();
            assert_eq!(found, wanted, "from the {turn}th on");
        }
    }
}
