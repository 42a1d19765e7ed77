//! How busy cards are, from NVIDIA's management library (NVML), which comes with the driver. It is opened
//! when it is first asked: a machine without it computes all the same.

use std::error::Error as _;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fmt::Write as _;
use std::ptr;

use libloading::Library;

/// What the driver brings.
#[cfg(feature = "cuda")]
pub(super) const LIBRARY: &str = "libnvidia-ml.so.1";
/// What its calls answer when they did what they say.
const SUCCESS: c_int = 0;

type Handle = *mut c_void;
type Find = unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int;
type Rate = unsafe extern "C" fn(Handle, *mut Rates) -> c_int;
type Name = unsafe extern "C" fn(c_int) -> *const c_char;

/// `nvmlUtilization_t`: per cent of the last sixth of a second to second, as the card samples it, in
/// which a kernel ran, and in which memory was read or written.
#[repr(C)]
#[derive(Debug, Default)]
struct Rates {
    kernels: c_uint,
    memory: c_uint,
}

/// The library, opened and initialised for as long as this lives. Its calls may come from any thread.
#[derive(Debug)]
pub(super) struct Management {
    find: Find,
    rate: Rate,
    name: Name,
    /// What the three point into.
    _library: Library,
}

impl Management {
    /// Opens it by a name that the system looks up, or by a path.
    ///
    /// # Errors
    /// Where it is not found, lacks a call, or does not reach the driver; in words.
    #[expect(unsafe_code, reason = "a library of C has no safe calls")]
    pub(super) fn open(path: &str) -> Result<Self, String> {
        // SAFETY: the library is the driver's own; what it runs as it is loaded asks nothing of us.
        let library = unsafe { Library::new(path) }.map_err(told)?;
        // SAFETY: these are the calls' types in NVIDIA's header `nvml.h`, unchanged since the names have no
        // later version. The pointers are used while `_library` lives.
        let calls = unsafe {
            let begin = library.get::<unsafe extern "C" fn() -> c_int>("nvmlInit_v2");
            let find = library.get::<Find>("nvmlDeviceGetHandleByUUID");
            let rate = library.get::<Rate>("nvmlDeviceGetUtilizationRates");
            let name = library.get::<Name>("nvmlErrorString");
            let calls = (*begin.map_err(told)?, *find.map_err(told)?, *rate.map_err(told)?);
            (calls, *name.map_err(told)?)
        };
        let ((begin, find, rate), name) = calls;
        let opened = Self { find, rate, name, _library: library };
        // SAFETY: it takes nothing, and may be called as often as one likes.
        opened.done(unsafe { begin() })?;
        Ok(opened)
    }

    /// The part of the card's last sample in which it computed, for whomever, from 0 to 1. The card is named
    /// by the driver's UUID: the two number cards differently.
    ///
    /// # Errors
    /// Where there is no such card, or it does not tell, as one that is divided does not; in words.
    #[expect(unsafe_code, reason = "a library of C has no safe calls")]
    pub(super) fn busy(&self, uuid: [u8; 16]) -> Result<f64, String> {
        let name = CString::new(spelled(uuid)).map_err(|error| error.to_string())?;
        let (mut handle, mut rates): (Handle, _) = (ptr::null_mut(), Rates::default());
        // SAFETY: the name ends with a zero and lives on; the handle is written where it says so.
        self.done(unsafe { (self.find)(name.as_ptr(), &raw mut handle) })?;
        // SAFETY: the handle is one that the library gave, good while it is initialised; the rates have the
        // header's layout.
        self.done(unsafe { (self.rate)(handle, &raw mut rates) })?;
        Ok(f64::from(rates.kernels.min(100)) / 100.0)
    }

    #[expect(unsafe_code, reason = "a library of C has no safe calls")]
    fn done(&self, answer: c_int) -> Result<(), String> {
        if answer == SUCCESS {
            return Ok(());
        }
        // SAFETY: it answers any number with a text of its own that is never freed, or with none.
        let text = unsafe {
            let text = (self.name)(answer);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        Err(format!("NVML answers {}", text.unwrap_or_else(|| answer.to_string())))
    }
}

/// What cannot be opened, and why: the system's words are the error's source.
fn told(error: libloading::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// As the library names a card.
fn spelled(uuid: [u8; 16]) -> String {
    uuid.iter().enumerate().fold("GPU".to_owned(), |mut text, (at, byte)| {
        let dash = if [0, 4, 6, 8, 10].contains(&at) { "-" } else { "" };
        let _ = write!(text, "{dash}{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// What NVML's header promises, of one card that computes 37 % of the time and moves memory 12 %,
    /// and of one that does not tell.
    const STAND_IN: &str = r#"
        #include <string.h>
        struct rates { unsigned int kernels, memory; };
        static int begun, card, silent;
        int nvmlInit_v2(void) { begun = 1; return BEGINS; }
        int nvmlDeviceGetHandleByUUID(const char *name, void **handle) {
            if (!begun) return 1;
            if (!strcmp(name, "GPU-00112233-4455-6677-8899-aabbccddeeff")) *handle = &card;
            else if (!strcmp(name, "GPU-ffffffff-ffff-ffff-ffff-ffffffffffff")) *handle = &silent;
            else return 6;
            return 0;
        }
        int nvmlDeviceGetUtilizationRates(void *handle, struct rates *rates) {
            if (handle != &card) return 3;
            rates->kernels = 37;
            rates->memory = 12;
            return 0;
        }
        const char *nvmlErrorString(int code) {
            return code == 3 ? "Not Supported" : code == 6 ? "Not Found" : 0;
        }
    "#;
    const CARD: [u8; 16] = [
        0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff,
    ];

    /// A library of this text, whose beginning answers so.
    fn built(folder: &Path, text: &str, begins: i32) -> String {
        let (source, library) = (folder.join("nvml.c"), folder.join(format!("nvml{begins}.so")));
        std::fs::write(&source, text).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", &format!("-DBEGINS={begins}"), "-o"]);
        assert!(compiler.arg(&library).arg(&source).status().unwrap().success());
        library.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_card_is_found_by_its_uuid_and_tells_how_long_it_computed() {
        let folder = tempfile::tempdir().unwrap();
        let nvml = Management::open(&built(folder.path(), STAND_IN, 0)).unwrap();
        assert_eq!(nvml.busy(CARD), Ok(0.37));
        assert_eq!(nvml.busy([0xff; 16]), Err("NVML answers Not Supported".to_owned()));
        assert_eq!(nvml.busy([1; 16]), Err("NVML answers Not Found".to_owned()));
    }

    #[test]
    fn a_library_that_is_not_there_or_does_not_begin_is_an_error_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let absent = Management::open("/nowhere/libnvidia-ml.so.1").unwrap_err();
        assert!(absent.contains("libnvidia-ml.so.1"), "{absent}");
        let fails = Management::open(&built(folder.path(), STAND_IN, 9)).unwrap_err();
        assert_eq!(fails, "NVML answers 9");
        let other = Management::open(&built(folder.path(), "int BEGINSx;", 1)).unwrap_err();
        assert!(other.contains("nvmlInit_v2"), "{other}");
    }
}
