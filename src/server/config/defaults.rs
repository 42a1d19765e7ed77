//! The defaults, each with its reason.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use roundhouse_residency::Policy;
use roundhouse_types::Bytes;

/// SageMaker's port; loopback, because nobody is asked who they are.
pub(super) const DATA: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Beside the data port.
pub(super) const ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);
/// Ours, so that no proxy sends it by chance.
pub(super) const PROXY_HEADER: &str = "x-roundhouse-tenant";
/// What an issuer's operator would call it.
pub(super) const OIDC_CLAIM: &str = "tenant";
/// Clocks that are kept by NTP differ by less.
pub(super) const OIDC_LEEWAY: Duration = Duration::from_secs(60);
/// The port SageMaker's containers listen on when it names none.
pub(super) const CONTAINER_PORT: u16 = 8080;
/// Where the cache is when neither `XDG_CACHE_HOME` nor `HOME` is set, as under most init systems.
pub(super) const SYSTEM_CACHE: &str = "/var/cache/roundhouse";
/// AWS advises 8 to 16 MB per ranged read: round trips vanish beside the transfer.
pub(super) const PART_SIZE: Bytes = Bytes::mib(8);
/// 8 connections of some 85 MB/s each fill 5 Gbit/s; two such fetches fill what instances have.
pub(super) const PARTS_IN_FLIGHT: usize = 8;
/// A tally is read in 20 microseconds; memory that others take is noticed soon enough to leave.
pub(super) const WITNESS_EVERY: Duration = Duration::from_secs(2);
/// Loads end within 2 % of the ledger; buffers and the allocator's holes come on top.
pub(super) const WITNESS_TOLERANCE: u64 = 10;
/// The parts of four fetches at a time, so that memory bounds none of them by default.
pub(super) const BYTES_IN_FLIGHT: Bytes = Bytes::mib(256);
/// New uploads are seen within half a minute without listing on each request.
pub(super) const CATALOGUE_TTL: Duration = Duration::from_secs(30);
/// Long enough to absorb a burst for a misspelt name, short enough for "I just uploaded it".
pub(super) const NEGATIVE_TTL: Duration = Duration::from_secs(2);
/// Two listings apart by this show whether an upload is still under way.
pub(super) const SETTLE: Duration = Duration::from_secs(2);
/// Updates can wait: the old version answers meanwhile.
pub(super) const UPDATE_SETTLE: Duration = Duration::from_secs(10);
/// S3 answers within a second; ten without a byte is a dead connection.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// With backoff, some ten seconds of throttling are ridden out.
pub(super) const MAX_RETRIES: u32 = 5;
/// As SageMaker's own limit for loading a model.
pub(super) const LOAD_TIMEOUT: Duration = Duration::from_secs(360);
/// A new version is noticed within half a minute; one listing per resident each time.
pub(super) const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// Enough for a burst, small enough that waiting bodies (6 MiB at most) stay within 1.5 GiB.
pub(super) const MAX_WAITERS: usize = 256;
/// One fetch with all parts in flight fills the network; a few keep small models moving.
pub(super) const CONCURRENT_FETCHES: usize = 4;
/// Loads are bound by the disk and memory bandwidth; two overlap reading with conversion.
pub(super) const CONCURRENT_LOADS: usize = 2;
/// A quarter of a processor that a step wants too, all of one that nobody does.
pub(super) const LOAD_NICENESS: usize = 5;
/// On a replayed trace it loads 10 to 20 % less than least recently used, at every size.
pub(super) const POLICY: Policy = Policy::GreedyDual;
/// Enough for one load to answer many, few enough that nobody waits for a dozen of them.
pub(super) const OVERTAKEN_AT_MOST: usize = 32;
/// A small part of the time that requests wait for a load by default.
pub(super) const OVERTAKEN_WITHIN: Duration = Duration::from_secs(10);
/// As SageMaker's limit for an invocation.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Streams show that they live; a long answer on a CPU takes minutes.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(600);
/// Five seconds before boto3 gives up at 60 s, so that the client hears why.
pub(super) const HOLD: Duration = Duration::from_secs(55);
/// SageMaker's limit, 6 MiB.
pub(super) const MAX_BODY: Bytes = Bytes(6_291_456);
/// Many times the largest body of texts, and 120 times one of 2 MiB, which is what the smallest values take.
pub(super) const TEMPLATE_MEMORY: Bytes = Bytes::mib(256);
/// A minute's work of a small model on a CPU; more would only time out.
pub(super) const MAX_QUEUE: usize = 256;
/// Most chats fit; KV for a model's 128k maximum would starve every other model.
pub(super) const CONTEXT: usize = 8192;
/// A KV pool of four full contexts runs a dozen ordinary sequences.
pub(super) const KV_SEQUENCES: usize = 4;
/// Large enough to fill any device's matrix kernels; how long a step may take is another limit.
pub(super) const STEP_TOKENS: usize = 2048;
/// A pause between tokens that readers hardly notice; much shorter steps would read the weights
/// too often for the prompts that they advance.
pub(super) const STEP_TIME: Duration = Duration::from_millis(250);
/// Past this, a step of a CPU takes longer than readers accept per token.
pub(super) const MAX_RUNNING: usize = 64;
/// A bare interpreter with numpy takes 30 MiB, scikit-learn 100, PyTorch 300.
pub(super) const HANDLER_MEMORY: Bytes = Bytes::mib(256);
/// One process answers one call at a time: what the toolkits give a model on a shared machine.
pub(super) const HANDLER_WORKERS: usize = 1;
/// More than the cores of most machines that serve many models would only share them.
pub(super) const HANDLER_MAX_WORKERS: usize = 8;
/// As SageMaker's limit for an invocation.
pub(super) const HANDLER_TIME_LIMIT: Duration = Duration::from_secs(60);
/// PyTorch imports within ten seconds on a cold disk; a minute within SageMaker's load limit.
pub(super) const HANDLER_START_LIMIT: Duration = Duration::from_secs(300);
/// A script that imports for a minute must not keep others from starting.
pub(super) const HANDLER_CONCURRENT_STARTS: usize = 8;
/// Four pictures in base64 fit.
pub(super) const HANDLER_MAX_RESPONSE: Bytes = Bytes::mib(32);
/// Enough for a request's own files; downloads belong into the artefact.
pub(super) const HANDLER_MAX_TEMP: Bytes = Bytes::gib(1);
/// Threads count: numeric libraries start one per core, data loaders a few processes.
pub(super) const HANDLER_PROCESSES: u32 = 256;
/// Some dozens of scikit-learn environments, or a few with PyTorch.
pub(super) const HANDLER_ENVIRONMENTS_SIZE: Bytes = Bytes::gib(10);
/// PyTorch and its libraries are 3 GB to fetch and unpack.
pub(super) const HANDLER_INSTALL_LIMIT: Duration = Duration::from_secs(300);
/// What a kill of the process may cost of the bill.
pub(super) const USAGE_INTERVAL: Duration = Duration::from_secs(60);
/// Some 200,000 lines.
pub(super) const USAGE_ROTATE_SIZE: Bytes = Bytes::mib(64);
/// Four times the requests that may be under way; each takes a file descriptor and some kilobytes.
pub(super) const MAX_CONNECTIONS: usize = 4096;
/// No step of ours takes seconds; 30 is far beyond any honest one.
pub(super) const WEDGED_AFTER: Duration = Duration::from_secs(30);
/// Five seconds within the 30 that Kubernetes and SageMaker allow.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// Lifecycle of process and models; requests are in the access log.
pub(super) const LOG_LEVEL: &str = "info";
/// A few at once use a model's batch and leave room for requests whose callers wait.
pub(super) const ASYNC_CONCURRENT: usize = 4;
/// Six hours, SageMaker's longest wait, at one request in two seconds.
pub(super) const ASYNC_QUEUED: usize = 10_000;
/// Inputs that are sent along have 128 kB at most: all places at a tenth of that.
pub(super) const ASYNC_QUEUE_BYTES: Bytes = Bytes::gib(1);
/// Ten times what a caller who waits may send; so much memory for each that runs.
pub(super) const ASYNC_INPUT: Bytes = Bytes::mib(64);
/// The same for answers.
pub(super) const ASYNC_OUTPUT: Bytes = Bytes::mib(64);

/// A large model's weights are read and its graphs captured within minutes; the loads' own limit is
/// longer.
pub(super) const ENGINE_START_TIMEOUT: Duration = Duration::from_secs(300);
/// What a server needs to free a device in order; one that hangs keeps its memory so long.
pub(super) const ENGINE_STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// SageMaker's own patience with a container that loads or unloads a model.
pub(super) const CONTAINER_LOAD_TIMEOUT: Duration = Duration::from_secs(360);
