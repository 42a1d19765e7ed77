//! Completions for shells.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, output};
use crate::error::Error;

/// Arguments of `completions`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "bash: source <(roundhouse completions bash)\n\
                        zsh:  roundhouse completions zsh > \"${fpath[1]}/_roundhouse\"\n\
                        fish: roundhouse completions fish > ~/.config/fish/completions/roundhouse.fish")]
pub struct CompletionsArgs {
    /// Which shell.
    pub shell: Shell,
}

/// Writes the script for a shell to standard output.
pub(super) fn run(args: &CompletionsArgs) -> Result<(), Error> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "roundhouse", &mut script);
    output::print_bytes(&script)
}
