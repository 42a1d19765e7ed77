//! What a `requirements.txt` may ask for.
//!
//! The file is its uploader's. Left to itself an installer follows it anywhere: to other
//! indexes, to repositories, to files of this machine.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::{Error, Packages};

/// Longer lists are none.
const SIZE_MAX: usize = 64 * 1024;

/// Options that ask for nothing from elsewhere.
const HARMLESS: [&str; 3] = ["--pre", "--prefer-binary", "--require-hashes"];
/// Options that name an index.
const INDEXES: [&str; 3] = ["--index-url", "--extra-index-url", "-i"];

/// Reads the file, which must be one of the artefact's own. Blocking.
///
/// # Errors
/// `Requirements` where it is a link, too long, or not UTF-8.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    let fault = |error: io::Error| Error::Requirements(error.to_string());
    let folder = path.parent().unwrap_or(path);
    let is_link = fs::symlink_metadata(path).map_err(fault)?.is_symlink()
        || fs::symlink_metadata(folder).map_err(fault)?.is_symlink();
    if is_link {
        return Err(Error::Requirements("it is a link".into()));
    }
    let file = File::open(path).map_err(fault)?;
    let mut text = String::new();
    file.take(SIZE_MAX as u64 + 1).read_to_string(&mut text).map_err(fault)?;
    Ok(text)
}

/// The lines that matter, joined and trimmed, so that equal requirements have equal texts.
///
/// # Errors
/// `Requirements`, with the line and what is wrong with it.
pub(super) fn checked(text: &str, packages: &Packages) -> Result<String, Error> {
    if text.len() > SIZE_MAX {
        return Err(Error::Requirements(format!("it is longer than {SIZE_MAX} bytes")));
    }
    // Other readers end lines at these too: what would be one line here would be two there.
    let ends =
        |c: char| (c.is_control() && !"\n\r\t".contains(c)) || "\u{2028}\u{2029}".contains(c);
    let text = text.replace("\r\n", "\n");
    if let Some(found) = text.chars().find(|c| ends(*c) || *c == '\r') {
        let message = format!("it has a control character, {:?}", found);
        return Err(Error::Requirements(message));
    }
    let mut kept = String::new();
    let mut open = String::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(line) = line.trim_end().strip_suffix('\\') {
            open.push_str(line);
            open.push(' ');
            continue;
        }
        open.push_str(line);
        let whole = without_comment(&open).trim().to_owned();
        open.clear();
        if whole.is_empty() {
            continue;
        }
        check(&whole, packages)
            .map_err(|why| Error::Requirements(format!("line {}: {why}", index + 1)))?;
        kept.push_str(&whole);
        kept.push('\n');
    }
    match open.trim() {
        "" => Ok(kept),
        _ => Err(Error::Requirements("the last line goes on, and there is none".into())),
    }
}

/// A comment begins at the line's start or after a blank.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    line.split_once(" #").map_or(line, |(before, _)| before)
}

fn check(line: &str, packages: &Packages) -> Result<(), String> {
    if line.starts_with('-') {
        return check_option(line, packages);
    }
    let (requirement, hashes) = match line.split_once(" --hash") {
        Some((requirement, rest)) => (requirement.trim_end(), format!(" --hash{rest}")),
        None => (line, String::new()),
    };
    for hash in hashes.split_whitespace() {
        let (algorithm, digest) =
            hash.strip_prefix("--hash=").and_then(|hash| hash.split_once(':')).unwrap_or_default();
        let is_hash = !algorithm.is_empty()
            && !digest.is_empty()
            && algorithm.chars().all(|c| c.is_ascii_alphanumeric())
            && digest.chars().all(|c| c.is_ascii_hexdigit());
        if !is_hash {
            return Err(format!("'{hash}' is not a hash, like --hash=sha256:…"));
        }
    }
    // Quotes stand around versions in markers; an installer unquotes what it takes for options.
    if requirement.contains(" -") || requirement.contains('\\') {
        return Err(format!("'{requirement}' holds options"));
    }
    // A marker or a version may not hold them, a name neither.
    if requirement.contains("://") || requirement.contains(" @ ") || requirement.contains("@file") {
        return Err(format!(
            "'{line}' is a direct reference; only packages of an index are installed"
        ));
    }
    let name_end = requirement
        .find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)))
        .unwrap_or(requirement.len());
    let is_name = requirement.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = requirement[name_end..].trim_start();
    let is_file = [".whl", ".zip", ".tar.gz"].iter().any(|end| requirement.ends_with(end));
    let goes_on = rest.is_empty() || rest.starts_with(['=', '<', '>', '!', '~', '[', ';', '(']);
    if !is_name || !goes_on || is_file {
        return Err(format!("'{line}' is not a package of an index, like name==1.0"));
    }
    Ok(())
}

fn check_option(line: &str, packages: &Packages) -> Result<(), String> {
    let (option, value) = match line.split_once(['=', ' ', '\t']) {
        Some((option, value)) => (option, value.trim()),
        None => (line, ""),
    };
    if value.contains(|c: char| c.is_whitespace() || "\"'\\".contains(c)) {
        return Err(format!("'{value}' is not one plain value"));
    }
    if HARMLESS.contains(&option) && value.is_empty() {
        return Ok(());
    }
    if INDEXES.contains(&option) {
        let allowed = packages.allowed_indexes.iter().chain(&packages.index);
        return match allowed.into_iter().any(|index| same_index(index, value)) {
            true => Ok(()),
            false => Err(format!(
                "the index {value} is not allowed; the operator allows some by \
                 handlers.allowed_indexes"
            )),
        };
    }
    Err(format!("the option {option} is not taken"))
}

fn same_index(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages() -> Packages {
        Packages {
            allowed_indexes: vec!["https://wheels.example/cpu".into()],
            ..Packages::default()
        }
    }

    #[test]
    fn packages_of_an_index_are_taken_and_comments_are_not() {
        let text = "# numbers\nnumpy==1.26.4  # pinned\n\nscikit-learn[extra]>=1.3,<2 ; \
                    python_version >= \"3.8\"\nsix==1.16.0 \\\n  --hash=sha256:00\n\
                    --extra-index-url https://wheels.example/cpu/\n--pre\n";
        let kept = checked(text, &packages()).unwrap();
        assert_eq!(
            kept.lines().collect::<Vec<_>>(),
            [
                "numpy==1.26.4",
                "scikit-learn[extra]>=1.3,<2 ; python_version >= \"3.8\"",
                "six==1.16.0    --hash=sha256:00",
                "--extra-index-url https://wheels.example/cpu/",
                "--pre",
            ]
        );
    }

    #[test]
    fn every_way_to_elsewhere_is_refused() {
        let refused = [
            "--index-url https://evil.example/simple",
            "--index-url=https://evil.example/simple",
            "-i https://evil.example",
            "--find-links /etc",
            "-f https://evil.example",
            "--trusted-host evil.example",
            "-r other.txt",
            "-c /etc/passwd",
            "-e .",
            "--no-binary :all:",
            "git+https://evil.example/x",
            "x @ https://evil.example/x.whl",
            "x@https://evil.example/x.whl",
            "x@file:///etc/passwd",
            "./local.whl",
            "../up",
            "/etc/x.whl",
            "local.whl",
            "https://evil.example/x.whl",
            "name another",
            "x>=1\u{c}--index-url https://evil.example",
            "x>=1\r--index-url https://evil.example",
            "x>=1\u{2028}--no-binary :all:",
            "x>=1\u{85}--no-binary :all:",
            "x --hash=sha256:00 --index-url https://evil.example",
            "x --hash=sha256:00 --hash=zz",
            "x>=1 --config-settings a=b",
            "--extra-index-url https://wheels.example/cpu --no-binary :all:",
            "--pre --no-binary :all:",
        ];
        for line in refused {
            let error = checked(&format!("six\n{line}\n"), &packages()).unwrap_err().to_string();
            assert!(error.contains("line 2") || error.contains("control"), "{line}: {error}");
        }
        assert!(checked("six \\", &packages()).is_err());
    }
}
