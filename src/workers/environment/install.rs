//! Runs the installer, confined: it writes nothing but the environment, and reaches nothing
//! but package indexes' ports.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use roundhouse_confine::{Confinement, Launch, Network};
use roundhouse_types::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::timeout;
use tracing::info;

use super::ENTRIES;
use crate::process::{abandon, described, end_group, kill};
use crate::scratch::{Scratch, size};
use crate::spawn::Spawner;
use crate::{Config, Error, OPEN_FILES, Packages};

/// What an installer may take: resolving large lists takes hundreds of megabytes.
const MEMORY: u64 = 4 << 30;
const PROCESSES: u32 = 256;
/// How often it is looked at what an installer has written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Lines of the installer's that are kept for the error.
const LINES_KEPT: usize = 8;
const LINE_MAX: usize = 500;
/// Where indexes listen, beside the port that one names.
const PORTS: [u16; 2] = [443, 80];
/// Variables of the operator's that name certificates and folders of packages.
const NAMING_FILES: [&str; 4] =
    ["PIP_CERT", "PIP_FIND_LINKS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"];
/// What an installer reads beside the interpreter's own files, where it is there.
const READ: [&str; 4] = ["/etc/ssl", "/etc/pip.conf", "/usr/share/ca-certificates", "/etc/pki"];

/// How packages come into an environment.
pub(crate) struct Installer {
    python: PathBuf,
    system: Vec<PathBuf>,
    packages: Packages,
    base: Confinement,
    spawner: Spawner,
    scratch: Arc<Scratch>,
}

impl Installer {
    /// Installs for `python`, which reads `system`.
    pub(crate) fn new(
        config: &Config,
        python: PathBuf,
        system: Vec<PathBuf>,
        spawner: Spawner,
        scratch: Arc<Scratch>,
    ) -> Self {
        let packages = config.packages.clone();
        let base = Confinement {
            isolation: config.isolation,
            uid: None,
            read: Vec::new(),
            write: Vec::new(),
            network: Network::None,
            memory: Some(MEMORY),
            processes: Some(PROCESSES),
            open_files: OPEN_FILES,
            file_size: packages.max_size.0,
            nice: crate::NICE,
        };
        Self { python, system, packages, base, spawner, scratch }
    }

    pub(super) fn packages(&self) -> &Packages {
        &self.packages
    }

    /// What beside the requirements decides what is installed.
    pub(super) fn described(&self) -> String {
        let Packages { index, source_builds, .. } = &self.packages;
        format!("{} {index:?} {source_builds}", self.python.display())
    }

    /// Makes the environment in `folder`, and makes it ours and read only.
    pub(super) async fn install(&self, folder: &Path, text: &str, name: &str) -> Result<(), Error> {
        let scratch = Arc::clone(&self.scratch);
        let corner = Arc::new(crate::blocking(move || scratch.take()).await?);
        let list = corner.dir.join("requirements.txt");
        let (made, written, listed, uid) =
            (folder.to_owned(), text.to_owned(), list.clone(), corner.uid);
        crate::blocking(move || {
            prepare(&made, uid).map_err(|source| Error::file("create", &made, source))?;
            fs::write(&listed, written)
                .and_then(|()| readable(&listed))
                .map_err(|source| Error::file("write", &listed, source))
        })
        .await?;
        let done = timeout(self.packages.time_limit, async {
            self.run(self.environment(folder, &corner), name).await?;
            self.run(self.packages_launch(folder, &list, &corner), name).await
        });
        done.await.unwrap_or_else(|_| {
            let limit = self.packages.time_limit;
            Err(Error::Requirements(format!("they were not installed within {limit:?}")))
        })?;
        let sealed = folder.to_owned();
        crate::blocking(move || {
            seal(&sealed, uid.is_some()).map_err(|source| Error::file("seal", &sealed, source))
        })
        .await
    }

    /// The empty environment; the interpreter's own packages show through.
    fn environment(&self, folder: &Path, corner: &crate::scratch::Corner) -> Launch {
        let args = ["-I", "-m", "venv", "--system-site-packages", "--without-pip"];
        let mut args: Vec<String> = args.map(str::to_owned).to_vec();
        args.push(folder.to_string_lossy().into_owned());
        self.launch(self.python.clone(), args, folder, corner, Network::None)
    }

    fn packages_launch(
        &self,
        folder: &Path,
        list: &Path,
        corner: &crate::scratch::Corner,
    ) -> Launch {
        let fixed = [
            "-m",
            "pip",
            "install",
            "--no-input",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
            "--no-color",
        ];
        let mut args: Vec<String> = fixed.map(str::to_owned).to_vec();
        if !self.packages.source_builds {
            args.extend(["--only-binary".into(), ":all:".into()]);
        }
        if let Some(index) = &self.packages.index {
            args.extend(["--index-url".into(), index.clone()]);
        }
        args.extend(["-r".into(), list.to_string_lossy().into_owned()]);
        self.launch(folder.join("bin/python"), args, folder, corner, self.network())
    }

    fn network(&self) -> Network {
        let indexes = self.packages.index.iter().chain(&self.packages.allowed_indexes);
        let mut ports: Vec<u16> = PORTS.to_vec();
        ports.extend(indexes.filter_map(|index| port(index)));
        let proxies = self
            .packages
            .variables
            .iter()
            .filter(|(name, _)| name.to_ascii_lowercase().ends_with("_proxy"));
        ports.extend(proxies.filter_map(|(_, proxy)| port(proxy)));
        Network::Tcp { ports }
    }

    fn launch(
        &self,
        program: PathBuf,
        args: Vec<String>,
        folder: &Path,
        corner: &crate::scratch::Corner,
        network: Network,
    ) -> Launch {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut read = self.system.clone();
        read.extend(READ.map(PathBuf::from));
        let variables = self.packages.variables.iter();
        let named = variables
            .filter(|(name, _)| NAMING_FILES.contains(&name.as_str()))
            .map(|(_, value)| PathBuf::from(value));
        read.extend(named.filter(|path| path.is_absolute()));
        let local = self.packages.index.iter().chain(&self.packages.allowed_indexes);
        read.extend(local.filter_map(|index| index.strip_prefix("file://").map(PathBuf::from)));
        let mut env = vec![
            ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("LANG".into(), "C.UTF-8".into()),
            ("HOME".into(), text(&corner.dir)),
            ("TMPDIR".into(), text(&corner.dir)),
        ];
        env.extend(self.packages.variables.clone());
        let confinement = Confinement {
            uid: corner.uid,
            read,
            write: vec![corner.dir.clone(), folder.to_owned()],
            network,
            ..self.base.clone()
        };
        Launch { confinement, program, args, env, dir: corner.dir.clone() }
    }

    /// Runs a step of the installation to its end; its last lines are the error.
    async fn run(&self, launch: Launch, name: &str) -> Result<(), Error> {
        let mut spawned = self.spawner.spawn(&launch).await?;
        let _group = Group(spawned.group);
        let said = async { tokio::join!(lines(spawned.stdout, name), lines(spawned.stderr, name)) };
        let folders = launch.confinement.write.clone();
        let (out, errors) = tokio::select! {
            said = said => said,
            need = self.outgrown(folders, spawned.group) => {
                let limit = self.packages.max_size;
                return Err(Error::EnvironmentTooLarge { need, limit });
            }
        };
        let status = spawned.child.wait().await.map_err(Error::Spawn)?;
        // What is made ours below must have no other writer.
        end_group(spawned.group).await;
        if status.success() {
            return Ok(());
        }
        let said = told(&errors).or_else(|| told(&out));
        let mut said = said.unwrap_or_else(|| format!("the installer {}", described(status)));
        if !self.packages.source_builds && said.contains("from versions: none") {
            said.push_str("; wheels only are installed here (handlers.source_builds)");
        }
        Err(Error::Requirements(said))
    }
}

impl Installer {
    /// Ends the installer when its folders hold more than all environments may.
    async fn outgrown(&self, folders: Vec<PathBuf>, group: u32) -> Bytes {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let looked = folders.clone();
            let sizes = move || {
                Ok(looked.iter().map(|folder| size(folder, ENTRIES)).max().unwrap_or_default())
            };
            let need = crate::blocking(sizes).await.unwrap_or(Bytes::ZERO);
            if need > self.packages.max_size {
                kill(group);
                return need;
            }
        }
    }
}

/// Of an installer's last lines, those that say what is wrong: its own errors, else the last.
fn told(lines: &[String]) -> Option<String> {
    let errors: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
    match errors.as_slice() {
        [] => lines.last().cloned(),
        errors => Some(errors.join("; ")),
    }
}

/// An installer's processes; dropped, they are killed.
struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        abandon(self.0);
    }
}

/// Logs all lines and keeps the last.
async fn lines(pipe: impl AsyncRead + Unpin, name: &str) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let line: String = line.trim().chars().take(LINE_MAX).collect();
        if line.is_empty() {
            continue;
        }
        info!(model = name, line, "installer says");
        if kept.len() == LINES_KEPT {
            kept.remove(0);
        }
        kept.push(line);
    }
    kept
}

/// The port that a URL names.
fn port(url: &str) -> Option<u16> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    authority.rsplit_once(':')?.1.parse().ok()
}

fn prepare(folder: &Path, uid: Option<u32>) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(folder)?;
    if uid.is_some() { lchown(folder, uid, uid) } else { Ok(()) }
}

fn readable(file: &Path) -> io::Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o644))
}

/// Makes everything ours, readable to all and writable to nobody. Links are left as they are:
/// what they point at is not ours to change.
fn seal(path: &Path, ours: bool) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if ours {
        lchown(path, Some(0), Some(0))?;
    }
    if metadata.is_symlink() {
        return Ok(());
    }
    let executable = metadata.is_dir() || metadata.permissions().mode() & 0o100 != 0;
    // Directories stay ours to delete from.
    let mode = match (metadata.is_dir(), executable) {
        (true, _) => 0o755,
        (false, true) => 0o555,
        (false, false) => 0o444,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            seal(&entry?.path(), ours)?;
        }
    }
    Ok(())
}
