//! What a newcomer sees: the models, and things to try that work as printed.

/// Prints it.
#[expect(clippy::print_stdout, reason = "the demo talks to a person")]
pub(super) fn print(data: &str, admin: &str) {
    let text = TEXT.replace("DATA", data).replace("ADMIN", admin);
    println!("{text}");
}

const TEXT: &str = include_str!("welcome.txt");
