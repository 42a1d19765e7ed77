use std::io::Write;

use roundhouse_types::ErrorKind;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::ArchiveKind;
use crate::testing::{Fault, Operation};

/// Writes one entry with any name, also one that the builder would refuse.
fn entry(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, contents: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_mode(0o4777);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    if kind == EntryType::Symlink || kind == EntryType::Link {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    tar.append(&header, contents).unwrap();
}

fn packed(entries: &[(EntryType, &str, &[u8])], kind: ArchiveKind) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, contents) in entries {
        entry(&mut tar, *kind, name, contents);
    }
    compressed(&tar.into_inner().unwrap(), kind)
}

fn compressed(tar: &[u8], kind: ArchiveKind) -> Vec<u8> {
    match kind {
        ArchiveKind::Tar => tar.to_vec(),
        ArchiveKind::TarGz => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(tar).unwrap();
            gz.finish().unwrap()
        }
        ArchiveKind::TarZst => zstd::encode_all(tar, 1).unwrap(),
    }
}

const FILE: EntryType = EntryType::Regular;

async fn refused(archive: Vec<u8>) -> String {
    let f = Fixture::new(Bytes::mib(64));
    f.put("m.tar.gz", archive);
    let disk = f.open().await;
    let error = f.fetch(&disk, "m.tar.gz").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelInvalid, "{error}");
    while disk.usage().used > Bytes::ZERO {
        tokio::task::yield_now().await;
    }
    assert!(entries(&f.config.dir.join("partial")).unwrap().is_empty(), "nothing stays");
    let below: Vec<_> = entries(f.folder.path()).unwrap();
    assert_eq!(below.len(), 1, "nothing outside the cache: {below:?}");
    error.to_string()
}

#[tokio::test(start_paused = true)]
async fn archives_of_every_kind_unpack_while_they_arrive() {
    let weights = noise(700_000, 1);
    let plain: [(EntryType, &str, &[u8]); 4] = [
        (EntryType::Directory, "./", b""),
        (EntryType::Directory, "./sub/", b""),
        (FILE, "./sub/w.bin", &weights),
        (FILE, "./config.json", b"{}"),
    ];
    for (name, kind) in [
        ("m.tar", ArchiveKind::Tar),
        ("m.tgz", ArchiveKind::TarGz),
        ("m.tar.zst", ArchiveKind::TarZst),
    ] {
        let f = Fixture::new(Bytes::mib(16));
        f.put(name, packed(&plain, kind));
        let disk = f.open().await;
        let cached = f.fetch(&disk, name).await.unwrap();
        let wanted =
            [("config.json".to_owned(), b"{}".to_vec()), ("sub/w.bin".to_owned(), weights.clone())];
        assert!(tree(cached.dir()) == wanted, "{name}");
        disk.verify(cached.id()).await.unwrap();
        let used = disk.usage().used.0;
        assert!((700_000..800_000).contains(&used), "the packed bytes are gone: {used}");
        use std::os::unix::fs::PermissionsExt;
        let mode = cached.dir().join("config.json").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7111, 0, "no mode is taken over");
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_folder_around_everything_is_taken_away_but_not_code() {
    let f = Fixture::new(Bytes::mib(16));
    f.put(
        "a.tar",
        packed(&[(FILE, "m/config.json", b"{}"), (FILE, "m/x/y", b"z")], ArchiveKind::Tar),
    );
    f.put("b.tar", packed(&[(FILE, "code/inference.py", b"")], ArchiveKind::Tar));
    let disk = f.open().await;
    let a = f.fetch(&disk, "a.tar").await.unwrap();
    assert_eq!(
        tree(a.dir()).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["config.json", "x/y"]
    );
    assert_eq!(a.files().len(), 2);
    let b = f.fetch(&disk, "b.tar").await.unwrap();
    assert_eq!(tree(b.dir())[0].0, "code/inference.py");
}

#[tokio::test(start_paused = true)]
async fn entries_that_leave_the_folder_or_are_no_files_are_refused() {
    let cases: [(EntryType, &str, &str); 9] = [
        (FILE, "../evil", "'..'"),
        (FILE, "a/../../evil", "'..'"),
        (FILE, "/etc/evil", "absolute"),
        (FILE, "a\\b", "backslash"),
        (EntryType::Symlink, "link", "symbolic link"),
        (EntryType::Link, "link", "hard link"),
        (EntryType::Char, "null", "device"),
        (EntryType::Block, "disk", "device"),
        (EntryType::Fifo, "pipe", "pipe"),
    ];
    for (kind, name, why) in cases {
        let archive = packed(&[(FILE, "ok", b"x"), (kind, name, b"")], ArchiveKind::TarGz);
        let text = refused(archive).await;
        assert!(text.contains(why) && text.contains("ep:m.tar.gz"), "{name}: {text}");
    }
    let twice = packed(&[(FILE, "a", b"x"), (FILE, "a", b"y")], ArchiveKind::TarGz);
    assert!(refused(twice).await.contains("twice"));
    let below = packed(&[(FILE, "a", b"x"), (FILE, "a/b", b"y")], ArchiveKind::TarGz);
    assert!(refused(below).await.contains("both a file and a folder"));
    assert!(refused(packed(&[], ArchiveKind::TarGz)).await.contains("no files"));
}

#[tokio::test(start_paused = true)]
async fn archives_cut_anywhere_are_refused() {
    let weights = noise(60_000, 2);
    let whole = packed(&[(FILE, "w.bin", &weights), (FILE, "b", b"x")], ArchiveKind::TarGz);
    for cut in [0, 1, 9, 300, 30_000, whole.len() - 9, whole.len() - 1] {
        // An empty object is no archive at all, and has its own error.
        if cut > 0 {
            refused(whole[..cut].to_vec()).await;
        }
    }
    let mut turned = whole.clone();
    turned[30_000] ^= 0x55;
    refused(turned).await;
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, FILE, "a", b"x");
    let unended = tar.get_ref().clone();
    let text = refused(compressed(&unended, ArchiveKind::TarGz)).await;
    assert!(text.contains("truncated"), "{text}");
    assert!(refused(b"not an archive".to_vec()).await.contains("m.tar.gz"));
}

#[tokio::test(start_paused = true)]
async fn bombs_are_stopped_at_their_limit() {
    let zeros = vec![0; 8 << 20];
    let f = Fixture::new(Bytes::mib(64));
    f.put("m.tar.gz", packed(&[(FILE, "zeros", &zeros)], ArchiveKind::TarGz));
    let disk = {
        let config = CacheConfig { unpacked: Some(Bytes::mib(4)), ..f.config.clone() };
        DiskCache::open(config).await.unwrap()
    };
    let error = f.fetch(&disk, "m.tar.gz").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelInvalid);
    assert!(error.to_string().contains("unpacks to more than"), "{error}");
    // A long name that does not end.
    let long = packed(&[(EntryType::GNULongName, "x", &zeros)], ArchiveKind::TarGz);
    assert!(refused(long).await.contains("does not end"));
}

#[tokio::test(start_paused = true)]
async fn an_archive_that_outgrows_the_disk_while_it_unpacks_is_too_large() {
    let f = Fixture::new(Bytes::mib(2));
    f.put("m.tar.gz", packed(&[(FILE, "zeros", &vec![0; 4 << 20])], ArchiveKind::TarGz));
    let disk = f.open().await;
    let error = f.fetch(&disk, "m.tar.gz").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    while disk.usage().used > Bytes::ZERO {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_archive_does_not_fetch_its_bytes_twice() {
    let f = Fixture::new(Bytes::mib(16));
    let weights = noise(900_000, 7);
    let archive = packed(&[(FILE, "w.bin", &weights)], ArchiveKind::TarZst);
    let length = archive.len() as u64;
    f.put("m.tar.zst", archive);
    let disk = f.open().await;
    for _ in 0..4 {
        f.faulty.plan(Operation::Get, "m.tar", Fault::BreakAfter(u64::MAX));
    }
    f.faulty.plan(Operation::Get, "m.tar", Fault::Hang);
    // Paused time stands while the unpacker's thread waits, so the drop is by hand.
    let artefact = f.resolve("m.tar.zst").await;
    let progress = Progress::new();
    {
        let mut fetch = Box::pin(disk.fetch(&f.catalog, &artefact, &progress));
        while progress.snapshot().fetched.0 < 400_000 {
            assert!(futures_util::poll!(&mut fetch).is_pending());
            tokio::task::yield_now().await;
        }
    }
    drop(disk);
    let disk = f.open().await;
    let cached = f.fetch(&disk, "m.tar.zst").await.unwrap();
    assert!(std::fs::read(cached.dir().join("w.bin")).unwrap() == weights);
    assert_eq!(once(f.faulty.delivered("m.tar.zst")), length);
}
