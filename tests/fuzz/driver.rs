//! How long a target is fuzzed, with what, and what counts as a finding.
//!
//! There is no instrumentation on a stable toolchain, so a target says what came of an input, in a few
//! words; an input whose answer is a new one is kept and changed further. A finding is a panic, an
//! abort, more memory than [`MEMORY_MOST`] or a run longer than [`LONGEST`]; the input lies in
//! `target/fuzz` then.

use std::collections::HashSet;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::memory::most_of;
use crate::mutate::{Random, mutated};

/// What reads an input, and says what came of it.
pub(crate) type Target = Box<dyn FnMut(&[u8]) -> String>;

/// What an input of 64 KiB may make us take: tables of a vocabulary or of entries that it names.
const MEMORY_MOST: usize = 256 << 20;
/// The longest that one may take. Machines that do other things stall, so a second try decides.
const LONGEST: Duration = Duration::from_secs(3);
/// After this an input is taken to hang for ever.
const HANGS: Duration = Duration::from_secs(120);
/// Inputs that are kept beside the corpus.
const KEPT_MOST: usize = 4096;
/// Inputs beside the corpus where no time is said: the same for everybody, so that no run depends on
/// luck or on how fast the machine is.
const INPUTS: usize = 1000;
/// Bytes of an answer by which it is told from others.
const ANSWER_BYTES: usize = 96;

/// Targets share the peak of memory and the panics' hook, so they run one by one.
static ALONE: Mutex<()> = Mutex::new(());
static PANICS: AtomicUsize = AtomicUsize::new(0);
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());
/// When the input under way began, in milliseconds since the first; zero between inputs.
static BEGAN: AtomicU64 = AtomicU64::new(0);

/// Fuzzes a target for the time that the environment says; without, by the same inputs each time.
///
/// # Panics
/// With the first finding.
pub(crate) fn drive(name: &str, target: &mut Target) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    watch();
    let said = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let time = said("FUZZ_SECONDS").map(Duration::from_secs);
    let seed = said("FUZZ_SEED").unwrap_or(1);
    let mut random = Random::new(seed);
    let mut pool = corpus(name);
    let mut run = Run { name, target, seen: HashSet::new() };
    for input in &pool {
        run.one(input);
    }
    let (began, mut count) = (Instant::now(), pool.len());
    let given = pool.len();
    while time.map_or(count < given + INPUTS, |time| began.elapsed() < time) {
        let input = mutated(&pool, &mut random);
        count += 1;
        if run.one(&input) && pool.len() < given + KEPT_MOST {
            pool.push(input);
        }
    }
    let (answers, took) = (run.seen.len(), began.elapsed());
    println!("{name}: {count} inputs in {took:?}, {answers} different answers, seed {seed}");
    if let Ok(folder) = std::env::var("FUZZ_KEEP") {
        for (index, input) in pool.iter().skip(given).enumerate() {
            let folder = Path::new(&folder).join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("{index:04}")), input).unwrap();
        }
    }
}

/// The committed inputs of a target.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

struct Run<'a> {
    name: &'a str,
    target: &'a mut Target,
    seen: HashSet<String>,
}

impl Run<'_> {
    /// Whether an input's answer is a new one.
    fn one(&mut self, input: &[u8]) -> bool {
        // Before it is read, since an abort leaves no time to write it.
        let current = self.place("current");
        fs::write(&current, input).unwrap();
        let (mut took, mut most, mut answer) = self.read(input);
        if took > LONGEST {
            (took, most, answer) = self.read(input);
        }
        let why = match answer {
            Err(why) => why,
            Ok(_) if took > LONGEST => format!("it took {took:?}"),
            Ok(_) if most > MEMORY_MOST => format!("it took {} MiB", most >> 20),
            Ok(answer) => return self.seen.insert(signature(&answer)),
        };
        let found = self.place(&format!("finding-{}", input.len()));
        fs::write(&found, input).unwrap();
        panic!("{}: {why}: the input is {}", self.name, found.display());
    }

    fn read(&mut self, input: &[u8]) -> (Duration, usize, Result<String, String>) {
        let panics = PANICS.load(Ordering::SeqCst);
        let began = Instant::now();
        BEGAN.store(millis(), Ordering::SeqCst);
        let target = &mut *self.target;
        let (most, answer) = most_of(|| panic::catch_unwind(AssertUnwindSafe(|| target(input))));
        BEGAN.store(0, Ordering::SeqCst);
        let took = began.elapsed();
        // One that was caught further in is one all the same.
        let panicked = PANICS.load(Ordering::SeqCst) > panics;
        let answer = match answer {
            Ok(answer) if !panicked => Ok(answer),
            _ => Err(LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        };
        (took, most, answer)
    }

    fn place(&self, what: &str) -> PathBuf {
        let own = std::env::current_exe().unwrap();
        // target/<profile>/deps/<test>
        let folder = own.ancestors().nth(3).unwrap().join("fuzz");
        fs::create_dir_all(&folder).unwrap();
        folder.join(format!("{}-{what}", self.name))
    }
}

/// An answer without its numbers and names: those are the input's.
fn signature(answer: &str) -> String {
    let mut in_quotes = false;
    let kept = answer.chars().filter(|character| {
        in_quotes ^= matches!(character, '\'' | '"' | '`');
        !in_quotes && (character.is_ascii_alphabetic() || *character == ' ')
    });
    kept.take(ANSWER_BYTES).collect()
}

#[test]
fn memory_that_is_taken_is_seen() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (most, count) = most_of(|| vec![1_u8; 64 << 20].iter().filter(|it| **it == 1).count());
    assert!(most >= 48 << 20, "{most} of {count}");
}

fn millis() -> u64 {
    static FIRST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    let first = *first.get_or_insert_with(Instant::now);
    u64::try_from(first.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
}

/// Remembers panics wherever they are caught, and ends the process where an input hangs.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
            before(info);
        }));
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let began = BEGAN.load(Ordering::SeqCst);
                let hangs = u64::try_from(HANGS.as_millis()).unwrap_or(u64::MAX);
                if began > 0 && millis().saturating_sub(began) > hangs {
                    eprintln!("an input hangs: it is target/fuzz/*-current");
                    std::process::abort();
                }
            }
        });
    });
}
