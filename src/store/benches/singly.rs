//! What the parts of a cold load cost one by one, in seconds of this process's processors:
//! reading an object from an S3 store to nowhere, with our client, parts and concurrency; writing
//! as many bytes to a file, synced as a fetch does; and computing digests of them: BLAKE3, which a
//! fetch computes of every byte, and SHA-256, which it computes where the store has one.
//!
//! `singly URL BUCKET KEY FOLDER` prints one line of JSON. For `loadtest/coldload`.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt, stream};
use roundhouse_store::{ArtifactStore, MountConfig, ObjectMeta, S3Store};
use sha2::{Digest, Sha256};

/// As a fetch reads by default.
const PART: u64 = 8 << 20;
const CONCURRENCY: usize = 8;
/// As a fetch syncs.
const LOT: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [url, bucket, key, folder] = args.as_slice() else {
        return Err("singly URL BUCKET KEY FOLDER".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mount = MountConfig {
        endpoint_url: Some(url.clone()),
        region: Some("us-east-1".into()),
        ..MountConfig::new(format!("s3://{bucket}/").parse()?)
    };
    let store = runtime.block_on(S3Store::connect_with_keys(&mount, "key", "secret"))?;
    let meta = runtime.block_on(store.head(key))?;
    let drain = timed(|| runtime.block_on(drain(&store, &meta)))?;
    let size = meta.size;
    let write = timed(|| write(&Path::new(folder).join("written"), size))?;
    let digest = timed(|| {
        let mut blake3 = blake3::Hasher::new();
        pieces(size, &mut |piece| {
            blake3.update(piece);
        });
        std::hint::black_box(blake3.finalize());
        Ok(())
    })?;
    let sha256 = timed(|| {
        let mut sha256 = Sha256::new();
        pieces(size, &mut |piece| sha256.update(piece));
        std::hint::black_box(sha256.finalize());
        Ok(())
    })?;
    let row =
        |(processor, wall): (f64, f64)| format!("{{\"cpu\": {processor:.3}, \"wall\": {wall:.3}}}");
    let (drain, write) = (row(drain), row(write));
    let (digest, sha256) = (row(digest), row(sha256));
    writeln!(
        std::io::stdout(),
        "{{\"bytes\": {size}, \"drain\": {drain}, \"write\": {write}, \"digest\": {digest}, \
         \"sha256\": {sha256}}}"
    )?;
    Ok(())
}

async fn drain(store: &S3Store, meta: &ObjectMeta) -> Result<(), Box<dyn Error>> {
    let parts = (0..meta.size.div_ceil(PART)).map(|part| part * PART).map(Ok);
    let read = stream::iter(parts).try_for_each_concurrent(CONCURRENCY, |at| async move {
        let range = at..meta.size.min(at + PART);
        let mut read = store.get(&meta.key, &meta.etag, range).await?;
        while let Some(chunk) = read.stream.next().await {
            drop(chunk?);
        }
        Ok::<_, roundhouse_store::Error>(())
    });
    Ok(read.await?)
}

fn write(path: &Path, size: u64) -> Result<(), Box<dyn Error>> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let part = vec![7_u8; usize::try_from(PART)?];
    let mut at = 0;
    while at < size {
        let count = usize::try_from(PART.min(size - at))?;
        file.write_all_at(&part[..count], at)?;
        at += count as u64;
        if at.is_multiple_of(LOT) {
            file.sync_data()?;
        }
    }
    file.sync_data()?;
    std::fs::remove_file(path)?;
    Ok(())
}

/// As many bytes as the file has, piece by piece as they are digested.
fn pieces(size: u64, look: &mut dyn FnMut(&[u8])) {
    let piece = vec![7_u8; 256 << 10];
    for _ in 0..size.div_ceil(256 << 10) {
        look(&piece);
    }
}

/// Seconds of the processors that `work` took of this process, and seconds on the clock.
fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<(f64, f64), Box<dyn Error>> {
    let (before, began) = (processor_seconds()?, Instant::now());
    work()?;
    Ok((processor_seconds()? - before, began.elapsed().as_secs_f64()))
}

/// User and system time, in the kernel's hundredths.
fn processor_seconds() -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let (_, behind_name) = text.rsplit_once(')').ok_or("no name in /proc/self/stat")?;
    let ticks: Vec<f64> = behind_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
