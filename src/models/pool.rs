//! Buffers that several models hold together: one for each content.
//!
//! A content's name comes from the bytes in the files, how they are put together, and its
//! shape and format in memory: models that share a name would have filled equal buffers. A
//! buffer enters the pool under the digest of the bytes that it was really filled from. What
//! is known of a file beforehand says what to look for: whatever is found has the size, shape and
//! format that were asked for, because they are in its name; and what is read instead must have
//! the digest that is known, for else the files are damaged.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use candle_core::Tensor;
use roundhouse_types::{Bytes, ContentId, SharedPart};

use crate::Error;
use crate::files::{ModelFiles, read_wanted};
use crate::format::{Formats, Layout};
use crate::inspect::ModelPlan;
use crate::load::walk;
use crate::reader::{Cancel, Parameter};
use crate::tensors::Located;

/// Smaller parameters are each model's own: a record of them costs more than they take.
pub(crate) const SHARED_AT_LEAST: Bytes = Bytes::kib(64);
/// How often a load that waits for another's buffer looks whether it was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The version of what digests are made of.
const DIGEST_CONTEXT: &str = "roundhouse 2026-11-21 parameter in files 2";
/// The version of what contents' names are made of.
const CONTENT_CONTEXT: &str = "roundhouse 2026-11-21 content in memory 2";
/// Stands where a parameter's one format would, for those that are buffers of bytes.
const BYTES_TAG: u8 = u8::MAX;

/// The shared buffers of one device. It holds none of them: a buffer is freed with the last
/// model that uses it.
#[derive(Debug, Default)]
pub struct TensorPool {
    entries: Mutex<HashMap<ContentId, Entry>>,
    /// A load that read a buffer has ended doing so.
    read: Condvar,
}

#[derive(Debug, Default)]
struct Entry {
    held: Weak<Pooled>,
    /// A load that knows the content is reading it; others wait.
    reading: bool,
}

/// A buffer in use; the pool knows it for as long as one of these lives.
#[derive(Debug)]
pub(crate) struct Pooled {
    pub(crate) tensor: Tensor,
    pub(crate) part: SharedPart,
}

/// What came of asking for a content.
pub(crate) enum Taken<'a> {
    Found(Arc<Pooled>),
    /// It is the caller's to read.
    Absent(Turn<'a>),
}

/// The right to read a content while others wait for it. Dropped, it passes on.
pub(crate) struct Turn<'a> {
    pool: &'a TensorPool,
    content: ContentId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.pool.lock().get_mut(&self.content) {
            entry.reading = false;
        }
        self.pool.read.notify_all();
    }
}

impl TensorPool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of all buffers in use.
    pub fn bytes(&self) -> Bytes {
        let held: Vec<Arc<Pooled>> =
            self.lock().values().filter_map(|entry| entry.held.upgrade()).collect();
        held.iter().map(|pooled| pooled.part.bytes).sum()
    }

    /// A content's buffer, or the turn to read it. Waits while another load reads it.
    pub(crate) fn take(&self, content: ContentId, cancel: &Cancel) -> Result<Taken<'_>, Error> {
        let mut entries = self.lock();
        loop {
            let entry = entries.entry(content).or_default();
            if let Some(pooled) = entry.held.upgrade() {
                return Ok(Taken::Found(pooled));
            }
            if !entry.reading {
                entry.reading = true;
                return Ok(Taken::Absent(Turn { pool: self, content }));
            }
            cancel.check()?;
            let waited = self.read.wait_timeout(entries, LOOK_EVERY);
            entries = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Shares a buffer; what is returned is the one that was there first.
    pub(crate) fn add(&self, part: SharedPart, tensor: Tensor) -> Arc<Pooled> {
        let mut entries = self.lock();
        let entry = entries.entry(part.content).or_default();
        if let Some(first) = entry.held.upgrade() {
            return first;
        }
        let pooled = Arc::new(Pooled { tensor, part });
        entry.held = Arc::downgrade(&pooled);
        pooled
    }

    /// Forgets the contents that nobody uses any more.
    pub(crate) fn sweep(&self) {
        self.lock().retain(|_, entry| entry.reading || entry.held.strong_count() > 0);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContentId, Entry>> {
        // What a panicking holder left behind is whole: entries change in one assignment.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With whom a load shares, and what is known of its content beforehand.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// The buffers of the device.
    pub pool: Arc<TensorPool>,
    /// Models share with those of equal scope only: empty for all, or a tenant's name.
    pub scope: String,
    /// What the files are known to hold, or nothing. A load that reads something else fails.
    pub known: Digests,
}

impl Sharing {
    /// The name of a parameter's content in memory.
    pub(crate) fn content(
        &self,
        digest: &[u8; 32],
        parameter: &Parameter,
        layout: &Layout,
    ) -> ContentId {
        content(digest, parameter, layout, &self.scope)
    }
}

fn content(digest: &[u8; 32], parameter: &Parameter, layout: &Layout, scope: &str) -> ContentId {
    let mut hasher = blake3::Hasher::new_derive_key(CONTENT_CONTEXT);
    match layout.plain() {
        Some(format) => hasher.update(&[format.tag()]),
        None => {
            let tags: Vec<u8> = layout.0.iter().map(|format| format.tag()).collect();
            hasher.update(&[BYTES_TAG]).update(&[tags.len() as u8]).update(&tags)
        }
    };
    let rows: u64 = parameter.parts.iter().map(|(_, rows)| *rows as u64).sum();
    hasher.update(&rows.to_le_bytes());
    hasher.update(&(parameter.columns.unwrap_or(0) as u64).to_le_bytes());
    if parameter.transposed {
        hasher.update(b"transposed");
    }
    hasher.update(digest);
    hasher.update(scope.as_bytes());
    ContentId::from_digest(*hasher.finalize().as_bytes())
}

/// The BLAKE3 digest of so many bytes (the last argument) of a file from an offset on.
pub type FindTensor<'a> = &'a dyn Fn(&str, u64, u64) -> Option<[u8; 32]>;

/// The digests of a version's parameters as they lie in its files, by name. They hold for
/// as long as the files do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digests(BTreeMap<String, blake3::Hash>);

impl Digests {
    /// What a plan's parameters are in these files, by the digests of their tensors: `tensor` is
    /// asked for the BLAKE3 digest of so many bytes of a file from an offset on.
    ///
    /// # Errors
    /// When the headers cannot be read or are not those that were planned for.
    pub fn of(
        plan: &ModelPlan,
        files: &dyn ModelFiles,
        tensor: FindTensor<'_>,
    ) -> Result<Self, Error> {
        let table = plan.tensors(&read_wanted(files)?)?;
        let (mut digests, mut outcome) = (Self::default(), Ok(()));
        walk(plan, &mut |parameter| match parameter.locate(&table, &plan.formats) {
            Ok((parts, _)) => {
                let mut hasher = hasher(&parameter, &parts);
                let all = parts.iter().all(|part| {
                    if part.scales.is_some() {
                        return false;
                    }
                    let found = tensor(&part.file, part.start, part.bytes());
                    found.map(|digest| hasher.update(&digest)).is_some()
                });
                if all {
                    digests.insert(&parameter, hasher.finalize());
                }
            }
            Err(error) => outcome = Err(error),
        });
        outcome.map(|()| digests)
    }

    pub(crate) fn get(&self, parameter: &Parameter) -> Option<&[u8; 32]> {
        self.0.get(&name(parameter)).map(blake3::Hash::as_bytes)
    }

    pub(crate) fn insert(&mut self, parameter: &Parameter, digest: blake3::Hash) {
        self.0.insert(name(parameter), digest);
    }

    /// The part that a parameter will be, where its digest is known and it is worth sharing.
    pub(crate) fn part(
        &self,
        parameter: &Parameter,
        formats: &Formats,
        scope: &str,
    ) -> Option<SharedPart> {
        let layout = formats.layout(parameter);
        let bytes = layout.bytes(parameter);
        let digest = self.get(parameter).filter(|_| bytes >= SHARED_AT_LEAST)?;
        let content = content(digest, parameter, &layout, scope);
        Some(SharedPart { content, bytes })
    }
}

/// A parameter by the names of its parts.
pub(crate) fn name(parameter: &Parameter) -> String {
    let names: Vec<&str> = parameter.parts.iter().map(|(name, _)| name.as_str()).collect();
    names.join("+")
}

/// A hasher for the digests of a parameter's tensors that has taken in how they are put
/// together.
pub(crate) fn hasher(parameter: &Parameter, parts: &[&Located]) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new_derive_key(DIGEST_CONTEXT);
    hasher.update(&(parts.len() as u64).to_le_bytes());
    hasher.update(&(parameter.columns.unwrap_or(0) as u64).to_le_bytes());
    for (part, (_, rows)) in parts.iter().zip(&parameter.parts) {
        hasher.update(&(*rows as u64).to_le_bytes());
        hasher.update(&[part.dtype.tag()]);
        // Equal bytes, put together in another order, are other content.
        if let Some(head) = part.paired {
            hasher.update(b"pairs").update(&(head as u64).to_le_bytes());
        }
    }
    hasher
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::format::{BlockFormat, Format};

    fn tensor(value: f32) -> Tensor {
        Tensor::full(value, 4, &Device::Cpu).unwrap()
    }

    fn part(number: u8) -> SharedPart {
        SharedPart { content: ContentId::from_digest([number; 32]), bytes: Bytes(16) }
    }

    #[test]
    fn the_first_buffer_of_a_content_is_everybodys_and_goes_with_its_last_user() {
        let pool = TensorPool::new();
        let first = pool.add(part(1), tensor(1.0));
        let second = pool.add(part(1), tensor(1.0));
        assert!(Arc::ptr_eq(&first, &second));
        pool.add(part(2), tensor(2.0));
        assert_eq!(pool.bytes(), Bytes(16), "what nobody kept is gone");
        drop(first);
        assert_eq!(pool.bytes(), Bytes(16));
        drop(second);
        assert_eq!(pool.bytes(), Bytes::ZERO);
        pool.sweep();
        assert!(pool.lock().is_empty());
    }

    #[test]
    fn who_asks_while_another_reads_waits_and_takes_what_was_read() {
        let pool = TensorPool::new();
        let cancel = Cancel::new();
        let Ok(Taken::Absent(turn)) = pool.take(part(1).content, &cancel) else {
            panic!("nobody has it");
        };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| match pool.take(part(1).content, &cancel) {
                Ok(Taken::Found(pooled)) => pooled,
                _ => panic!("it was read meanwhile"),
            });
            let mine = pool.add(part(1), tensor(1.0));
            drop(turn);
            assert!(Arc::ptr_eq(&waiting.join().unwrap(), &mine));
        });
    }

    #[test]
    fn a_reading_that_failed_passes_the_turn_on() {
        let pool = TensorPool::new();
        let cancel = Cancel::new();
        drop(pool.take(part(1).content, &cancel).unwrap());
        assert!(matches!(pool.take(part(1).content, &cancel), Ok(Taken::Absent(_))));
    }

    #[test]
    fn a_cancelled_load_does_not_wait_for_anothers_buffer() {
        let pool = TensorPool::new();
        let _turn = pool.take(part(1).content, &Cancel::new()).unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(matches!(pool.take(part(1).content, &cancel), Err(Error::Cancelled)));
    }

    #[test]
    fn contents_differ_by_shape_by_format_and_by_scope() {
        let digest = [7; 32];
        let matrix = Parameter::matrix("a", 2, 256);
        let [f32, f16] = [Format::F32, Format::F16].map(|format| Layout(vec![format]));
        let [q8, q4] = [BlockFormat::Q8_0, BlockFormat::Q4K]
            .map(|format| Layout(vec![Format::Blocks(format)]));
        let names = [
            content(&digest, &matrix, &f32, ""),
            content(&digest, &matrix, &f16, ""),
            content(&digest, &matrix, &q8, ""),
            content(&digest, &matrix, &q4, ""),
            content(&digest, &matrix, &f32, "a"),
            content(&digest, &matrix, &f32, "b"),
            content(&digest, &Parameter::matrix("a", 8, 2), &f32, ""),
            content(&digest, &Parameter::matrix("a", 2, 16), &f32, ""),
            content(&digest, &Parameter::vector("a", 2), &f32, ""),
        ];
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name));
        }
    }
}
