use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

use super::*;

const LAYER: usize = 300_001;
const LAYERS: u64 = 8;
const TOKENIZER: usize = 200_000;

/// A weight file: a base of layers, of which the last is this `model`'s own, with small
/// tensors between.
fn weights(model: u64) -> Vec<u8> {
    let (mut header, mut body) = (serde_json::Map::new(), Vec::new());
    for layer in 0..LAYERS {
        let seed = if layer + 1 == LAYERS { 100 + model } else { layer };
        for (name, length) in [("norm", 64), ("weight", LAYER)] {
            let begin = body.len();
            body.extend(noise(length, seed));
            let info = serde_json::json!({
                "dtype": "U8", "shape": [length], "data_offsets": [begin, body.len()],
            });
            header.insert(format!("{layer}.{name}"), info);
        }
    }
    // As long for each model, and of no round length.
    header.insert("__metadata__".into(), serde_json::json!({"model": format!("{model:07}")}));
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &body].concat()
}

fn model_files(model: u64) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", format!("{{\"model\": {model}}}").into_bytes()),
        ("model.safetensors", weights(model)),
        ("tokenizer.json", noise(TOKENIZER, 7)),
    ]
}

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, body.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

const NAMES: [&str; 3] = ["tune-a", "tune-b.tar", "tune-c"];

/// Three fine-tunes of one base in the store, one of them an archive.
fn upload(f: &Fixture) {
    for (model, name) in (0..).zip(NAMES) {
        let files = model_files(model);
        if name.ends_with(".tar") {
            f.put(name, tar(&files));
            continue;
        }
        for (path, body) in files {
            f.put(&format!("{name}/{path}"), body);
        }
    }
}

async fn fetch_all(f: &Fixture, disk: &DiskCache) -> Vec<ArtefactId> {
    let mut ids = Vec::new();
    for name in NAMES {
        ids.push(f.fetch(disk, name).await.unwrap().id().clone());
    }
    ids
}

async fn share_all(disk: &DiskCache, ids: &[ArtefactId]) {
    for id in ids {
        disk.share(id, "").await.unwrap();
    }
}

/// What a file holds, read as weights are.
fn read(cached: &CachedArtefact, path: &str, at_once: usize) -> Vec<u8> {
    let size = cached.files().iter().find(|file| file.path == path).unwrap().size;
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    let mut at = 0;
    for piece in bytes.chunks_mut(at_once) {
        cached.read_at(path, at, piece).unwrap();
        at += piece.len() as u64;
    }
    bytes
}

/// Asserts that those of the models that are on disk hold what was uploaded.
async fn assert_whole(disk: &DiskCache, ids: &[ArtefactId]) -> usize {
    let mut whole = 0;
    for (model, id) in (0..).zip(ids) {
        let Some(cached) = disk.get(id) else { continue };
        whole += 1;
        for (path, body) in model_files(model) {
            for at_once in [10_007, 1 << 20] {
                assert!(read(&cached, path, at_once) == body, "{path} of {id}");
            }
            if path != "model.safetensors" {
                assert!(std::fs::read(cached.dir().join(path)).unwrap() == body);
            }
        }
        disk.verify(id).await.unwrap();
    }
    whole
}

/// The blocks of the files below a folder, of each file once, in bytes.
fn blocks(folder: &Path, seen: &mut HashSet<u64>) -> u64 {
    let each = entries(folder).unwrap().into_iter().map(|path| {
        let found = std::fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            return blocks(&path, seen);
        }
        if seen.insert(found.ino()) { found.blocks() * 512 } else { 0 }
    });
    each.sum()
}

fn on_disk(f: &Fixture) -> u64 {
    let mut seen = HashSet::new();
    let folders = ["artefacts", "partial", "trash"].map(|name| f.config.dir.join(name));
    folders.iter().map(|folder| blocks(folder, &mut seen)).sum()
}

/// Asserts that the books come to say what the disk does, when what is under way is done.
async fn assert_honest(f: &Fixture, disk: &DiskCache) -> u64 {
    let mut last = (0, 0);
    for _ in 0..200_000 {
        let (used, taken) = (disk.usage().used.0, on_disk(f));
        // Names and manifests are charged in round numbers.
        if (taken..=taken + 160_000).contains(&used) {
            return taken;
        }
        last = (used, taken);
        tokio::task::yield_now().await;
    }
    panic!("{} bytes are charged and {} are on disk", last.0, last.1);
}

/// Removes a model and waits until its files are deleted.
async fn purge(disk: &DiskCache, id: &ArtefactId) -> u64 {
    let before = disk.usage().used;
    let purged = disk.purge_model(&id.model).await.unwrap();
    while disk.usage().used == before {
        tokio::task::yield_now().await;
    }
    purged[0].bytes.0
}

#[tokio::test]
async fn fine_tunes_take_their_base_once_and_hold_what_was_uploaded() {
    let f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let disk = f.open().await;
    let ids = fetch_all(&f, &disk).await;
    let apart = assert_honest(&f, &disk).await;
    assert_eq!(disk.usage().shared, Bytes::ZERO);
    share_all(&disk, &ids).await;
    let together = assert_honest(&f, &disk).await;
    let base = (LAYER as u64) * (LAYERS - 1) + TOKENIZER as u64;
    let differences = 3 * (LAYER as u64 + 20_000);
    assert!(together <= (base + differences) * 105 / 100, "{together} of {apart}");
    assert!(disk.usage().shared.0 > 2 * base * 95 / 100);
    assert_eq!(assert_whole(&disk, &ids).await, 3);
    share_all(&disk, &ids).await;
    assert_eq!(assert_honest(&f, &disk).await, together, "once is enough");
    drop(disk);
    let disk = f.open().await;
    assert_eq!(assert_honest(&f, &disk).await, together);
    assert_eq!(assert_whole(&disk, &ids).await, 3);
}

#[tokio::test]
async fn leaving_in_any_order_frees_what_nobody_else_has() {
    let f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let alone = {
        let disk = f.open().await;
        f.fetch(&disk, NAMES[0]).await.unwrap();
        assert_honest(&f, &disk).await
    };
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut disk = f.open().await;
        let ids = fetch_all(&f, &disk).await;
        share_all(&disk, &ids).await;
        let mut before = assert_honest(&f, &disk).await;
        for (gone, index) in order.into_iter().enumerate() {
            let told = purge(&disk, &ids[index]).await;
            let after = assert_honest(&f, &disk).await;
            let freed = before - after;
            let expected = if gone < 2 { LAYER as u64 } else { alone };
            assert!(freed.abs_diff(expected) < 100_000, "{freed} where {expected} were expected");
            assert!(told.abs_diff(freed) < 100_000);
            assert_eq!(assert_whole(&disk, &ids).await, 2 - gone);
            if gone == 0 {
                // What is left is found again, and nothing else.
                drop(disk);
                disk = f.open().await;
                assert_eq!(assert_honest(&f, &disk).await, after);
            }
            before = after;
        }
        assert_eq!(disk.usage().artefacts, 0);
    }
}

#[tokio::test]
async fn who_borrows_from_a_version_that_is_gone_lends_to_the_next() {
    let f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let disk = f.open().await;
    let mut ids = Vec::new();
    for name in &NAMES[..2] {
        ids.push(f.fetch(&disk, name).await.unwrap().id().clone());
    }
    share_all(&disk, &ids).await;
    purge(&disk, &ids[0]).await;
    let before = assert_honest(&f, &disk).await;
    ids.push(f.fetch(&disk, NAMES[2]).await.unwrap().id().clone());
    share_all(&disk, &ids[1..]).await;
    let more = assert_honest(&f, &disk).await - before;
    assert!(more < LAYER as u64 + 100_000, "{more}");
    purge(&disk, &ids[1]).await;
    assert_honest(&f, &disk).await;
    assert_eq!(assert_whole(&disk, &ids).await, 1);
}

#[tokio::test]
async fn what_a_crash_leaves_is_gone_on_with_or_fetched_again() {
    let f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let disk = f.open().await;
    let ids = fetch_all(&f, &disk).await;
    let folders: Vec<PathBuf> =
        ids.iter().map(|id| disk.get(id).unwrap().dir().parent().unwrap().to_owned()).collect();
    share_all(&disk, &ids).await;
    let together = assert_honest(&f, &disk).await;
    drop(disk);

    // The recipe is there and the holes are not all made.
    std::fs::write(folders[2].join("files/model.safetensors"), weights(2)).unwrap();
    let disk = f.open().await;
    assert_eq!(assert_honest(&f, &disk).await, together);
    assert_eq!(assert_whole(&disk, &ids).await, 3);
    drop(disk);

    // Names for donors are there and the recipe is not.
    std::fs::remove_file(folders[2].join("roundhouse-shared.json")).unwrap();
    std::fs::write(folders[2].join("files/model.safetensors"), weights(2)).unwrap();
    std::fs::write(folders[1].join("donors/file-0"), "left").unwrap();
    let disk = f.open().await;
    assert!(!folders[2].join("donors").exists() && !folders[1].join("donors/file-0").exists());
    assert_honest(&f, &disk).await;
    assert_eq!(assert_whole(&disk, &ids).await, 3);
    share_all(&disk, &ids).await;
    assert_eq!(assert_honest(&f, &disk).await, together);
    drop(disk);

    // A version is deleted, and what only it used of a kept file is not given back.
    std::fs::remove_dir_all(&folders[0]).unwrap();
    let disk = f.open().await;
    let rest = assert_honest(&f, &disk).await;
    assert!(rest + LAYER as u64 <= together);
    assert_eq!(assert_whole(&disk, &ids).await, 2);
    drop(disk);

    // A donor is missing, or too short; a recipe cannot be read.
    let donors = entries(&folders[1].join("donors")).unwrap();
    std::fs::remove_file(&donors[0]).unwrap();
    std::fs::write(folders[2].join("roundhouse-shared.json"), "{").unwrap();
    let disk = f.open().await;
    assert_eq!(assert_whole(&disk, &ids).await, 0, "not whole, and never wrong");
    assert_honest(&f, &disk).await;
    let ids = fetch_all(&f, &disk).await;
    assert_eq!(assert_whole(&disk, &ids).await, 3);
}

#[tokio::test]
async fn only_those_that_were_offered_within_one_scope_share() {
    let f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let disk = f.open().await;
    let ids = fetch_all(&f, &disk).await;
    let apart = assert_honest(&f, &disk).await;
    disk.share(&ids[0], "ep/a").await.unwrap();
    disk.share(&ids[1], "ep/b").await.unwrap();
    // The third is never offered: somebody may read it by path, or write to it.
    assert_eq!(disk.usage().shared, Bytes::ZERO);
    assert!(on_disk(&f) >= apart);
    for (model, id) in (0..).zip(&ids) {
        let dir = disk.get(id).unwrap().dir().to_owned();
        assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == weights(model));
        assert_eq!(std::fs::metadata(dir.join("tokenizer.json")).unwrap().nlink(), 1);
    }
}

#[tokio::test]
async fn a_digest_alone_is_not_believed() {
    let f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let disk = f.open().await;
    let ids = fetch_all(&f, &disk).await;
    disk.share(&ids[0], "").await.unwrap();
    // The disk damages what others would take from it.
    let damaged = disk.get(&ids[0]).unwrap().dir().to_owned();
    for path in ["model.safetensors", "tokenizer.json"] {
        let mut bytes = std::fs::read(damaged.join(path)).unwrap();
        let middle = bytes.len() / 4;
        bytes[middle] ^= 1;
        std::fs::write(damaged.join(path), bytes).unwrap();
    }
    disk.share(&ids[1], "").await.unwrap();
    assert!(matches!(disk.verify(&ids[0]).await, Err(Error::Corrupt { .. })));
    assert_eq!(assert_whole(&disk, &ids[..2]).await, 1);
    assert_eq!(disk.usage().shared, Bytes::ZERO);
}

#[tokio::test]
async fn victims_make_room_by_what_nobody_else_has() {
    let mut f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let disk = f.open().await;
    let ids = fetch_all(&f, &disk).await;
    share_all(&disk, &ids).await;
    let together = assert_honest(&f, &disk).await;
    drop(disk);
    // A little more than they take; a fourth of their differences and a bit more comes.
    f.config.size = Bytes(together + 200_000);
    let disk = f.open().await;
    assert_eq!(disk.usage().artefacts, 3);
    f.put("other/w.bin", noise(LAYER + LAYER / 2, 77));
    f.fetch(&disk, "other").await.unwrap();
    assert_eq!(disk.usage().artefacts, 3, "one left, and frees its own layer only");
    assert!(assert_honest(&f, &disk).await <= f.config.size.0);
    assert_eq!(assert_whole(&disk, &ids).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_behind_a_fetch_reads_on_when_another_one_offers_the_version() {
    let f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let disk = f.open().await;
    let first = f.fetch(&disk, NAMES[0]).await.unwrap().id().clone();
    disk.share(&first, "").await.unwrap();

    let artefact = f.resolve(NAMES[2]).await;
    let (id, catalog, fetched) = (artefact.id.clone(), f.catalog.clone(), disk.clone());
    let mut fetching =
        Box::pin(async move { fetched.fetch(&catalog, &artefact, &Progress::new()).await });
    let files = loop {
        // By this task until it is seen: by another it might end between two looks.
        assert!(futures_util::poll!(&mut fetching).is_pending(), "it ended before it was seen");
        match disk.arriving(&id) {
            Some(files) => break Arc::new(files),
            None => tokio::task::yield_now().await,
        }
    };
    let fetching = tokio::spawn(fetching);
    let read = || {
        let (files, size) = (Arc::clone(&files), weights(2).len());
        tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; size];
            files.read_at("model.safetensors", 0, &mut bytes).map(|()| bytes)
        })
    };
    assert!(read().await.unwrap().unwrap() == weights(2));
    fetching.await.unwrap().unwrap();
    // It came for the same version a moment too late, and finds it whole.
    f.fetch(&disk, NAMES[2]).await.unwrap();
    disk.share(&id, "").await.unwrap();
    assert!(read().await.unwrap().unwrap() == weights(2), "wherever its bytes are by now");
}

#[tokio::test]
async fn a_version_that_is_kept_apart_is_whole_by_path_and_one_that_borrows_says_so() {
    let f = Fixture::new(Bytes::mib(64));
    upload(&f);
    let disk = f.open().await;
    let ids = fetch_all(&f, &disk).await;
    disk.share(&ids[0], "").await.unwrap();
    let apart = disk.get(&ids[1]).unwrap();
    assert!(disk.keep_apart(&apart).await);
    share_all(&disk, &ids).await;
    assert!(std::fs::read(apart.dir().join("model.safetensors")).unwrap() == weights(1));
    let borrows = disk.get(&ids[2]).unwrap();
    assert!(!disk.keep_apart(&borrows).await);
    assert!(std::fs::read(borrows.dir().join("model.safetensors")).unwrap() != weights(2));
    // Fetched again it has all of its own.
    drop(borrows);
    disk.purge(&ids[2]).await.unwrap();
    let again = f.fetch(&disk, NAMES[2]).await.unwrap();
    assert!(disk.keep_apart(&again).await);
    assert!(std::fs::read(again.dir().join("model.safetensors")).unwrap() == weights(2));
}

#[tokio::test(start_paused = true)]
async fn what_tenants_hold_together_is_split_among_them() {
    let f = Fixture::new(Bytes::mib(64));
    for tenant in ["a", "b"] {
        for (path, body) in model_files(0) {
            f.put(&format!("{tenant}/m/{path}"), body);
        }
    }
    let disk = f.open().await;
    let mut ids = Vec::new();
    for target in ["a/m", "b/m"] {
        ids.push(f.fetch(&disk, target).await.unwrap().id().clone());
    }
    let alone = disk.tenant("a").bytes;
    assert_eq!(alone, disk.tenant("b").bytes);
    share_all(&disk, &ids).await;
    if disk.usage().shared == Bytes::ZERO {
        // The file system shares nothing.
        return;
    }
    let (a, b) = (disk.tenant("a").bytes, disk.tenant("b").bytes);
    assert!(a.0 < alone.0 * 3 / 4 && b.0 < alone.0 * 3 / 4, "{a} and {b} of {alone}");
    assert!(a.0.abs_diff(b.0) < alone.0 / 8, "{a} and {b}");
    assert!((a + b).0.abs_diff(disk.usage().used.0) < 4096, "{a} and {b} are all that is there");
    let of_one = disk.shares(&ids[0].model.endpoint)[&ids[0].model.target];
    assert_eq!(of_one, a);
    disk.purge(&ids[0]).await.unwrap();
    while disk.tenant("a").bytes > Bytes::ZERO {
        // It is deleted by a task of its own.
        tokio::task::yield_now().await;
    }
    let left = disk.tenant("b").bytes;
    assert!(left.0.abs_diff(alone.0) < alone.0 / 8, "what is left is its own: {left} of {alone}");
}
