//! Sends notices, to addresses that were looked at.
//!
//! A name is resolved once, by the same client that then connects, and only to addresses that may be
//! told; so no second answer of a name server counts. Redirects are not followed, proxies not used,
//! and no connection is used twice.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Url};

use crate::address::may_be_told;
use crate::config::Webhooks;
use crate::error::Error;
use crate::notice::Notice;
use crate::sending::{Places, Refusal, TIMEOUT, chain};

/// Looks up the addresses of a name.
pub type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Begins an HTTP client that trusts whom the machine trusts.
pub type ClientFn = Arc<dyn Fn() -> Result<ClientBuilder, String> + Send + Sync>;

/// The machine's own way to look up names.
pub fn system_resolver() -> Resolve {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

/// Sends the notices of one endpoint.
pub(crate) struct Sender {
    webhooks: Webhooks,
    secure: Client,
    plain: Client,
    places: Places,
}

impl Sender {
    /// # Errors
    /// `Client` where no TLS can be had.
    pub(crate) fn new(
        webhooks: &Webhooks,
        client: &ClientFn,
        resolve: &Resolve,
    ) -> Result<Self, Error> {
        let build = |only_listed| {
            let networks = webhooks.networks.clone();
            let checked = Checked { resolve: resolve.clone(), networks, only_listed };
            let client = client().map_err(Error::Client)?;
            let client = client
                .redirect(Policy::none())
                .no_proxy()
                .referer(false)
                .pool_max_idle_per_host(0)
                .timeout(TIMEOUT)
                .https_only(!only_listed)
                .dns_resolver(Arc::new(checked));
            client.build().map_err(|error| Error::Client(chain(&error)))
        };
        Ok(Self {
            webhooks: webhooks.clone(),
            secure: build(false)?,
            plain: build(true)?,
            places: Places::default(),
        })
    }

    /// Who is told of an end of this kind.
    pub(crate) fn told_of(&self, is_failure: bool) -> Option<&Url> {
        match is_failure {
            true => self.webhooks.error.as_ref(),
            false => self.webhooks.success.as_ref(),
        }
    }

    /// Sends a notice until somebody says that it arrived, a few times, when it has a place.
    ///
    /// # Errors
    /// With why the last attempt failed; where no place is free for a minute.
    pub(crate) async fn send(&self, url: &Url, notice: &Notice) -> Result<(), String> {
        self.places.insist(|| self.attempt(url, notice)).await
    }

    async fn attempt(&self, url: &Url, notice: &Notice) -> Result<(), Refusal> {
        let is_plain = url.scheme() == "http";
        // Such a host is no name, and nobody is asked for its address.
        let host = url.host_str().unwrap_or_default();
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        if let Some(address) = literal.filter(|it| !self.may_be_told(*it, is_plain)) {
            return Err(Refusal { why: NotPublic(address).to_string(), is_final: true });
        }
        let client = if is_plain { &self.plain } else { &self.secure };
        let sent = client
            .post(url.clone())
            .header("content-type", "text/plain; charset=UTF-8")
            .header("x-amz-sns-message-type", "Notification")
            .header("x-amz-sns-message-id", notice.id.to_string())
            .body(notice.body.to_string())
            .send()
            .await;
        match sent {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => {
                let status = answer.status();
                Err(Refusal::of(status, format!("it answered {status}")))
            }
            Err(error) => {
                let why = chain(&error);
                let is_final = why.contains(NOT_PUBLIC);
                Err(Refusal { why, is_final })
            }
        }
    }

    fn may_be_told(&self, address: IpAddr, only_listed: bool) -> bool {
        may_be_told(address, &self.webhooks.networks, only_listed)
    }
}

/// Resolves names to addresses that may be told.
struct Checked {
    resolve: Resolve,
    networks: Vec<IpNet>,
    only_listed: bool,
}

impl reqwest::dns::Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let looking = (self.resolve)(name.as_str().to_owned());
        let (networks, only_listed) = (self.networks.clone(), self.only_listed);
        Box::pin(async move {
            let found = looking.await?;
            // One that may not be told among others is no accident.
            let inside = found.iter().find(|it| !may_be_told(**it, &networks, only_listed));
            if let Some(address) = inside {
                return Err(NotPublic(*address).into());
            }
            // The port is the URL's.
            let addresses = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

/// What every refusal of an address says.
const NOT_PUBLIC: &str = "is not one that notices may go to";

#[derive(Debug)]
struct NotPublic(IpAddr);

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the address {} {NOT_PUBLIC}", self.0)
    }
}

impl std::error::Error for NotPublic {}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use uuid::Uuid;

    use super::*;

    /// Answers each connection in turn with these, and keeps what it was sent.
    struct Site {
        port: u16,
        seen: Arc<Mutex<Vec<String>>>,
    }

    impl Site {
        async fn start(answers: Vec<String>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let seen = Arc::new(Mutex::new(Vec::new()));
            let kept = seen.clone();
            tokio::spawn(async move {
                for answer in answers {
                    let (mut socket, _) = listener.accept().await.unwrap();
                    let mut text = Vec::new();
                    while !text.ends_with(b"}") {
                        if socket.read_buf(&mut text).await.unwrap_or(0) == 0 {
                            break;
                        }
                    }
                    kept.lock().unwrap().push(String::from_utf8(text).unwrap());
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            });
            Self { port, seen }
        }

        fn seen(&self) -> Vec<String> {
            self.seen.lock().unwrap().clone()
        }
    }

    fn answer(line: &str) -> String {
        format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    }

    fn sender(networks: &[&str], resolve: Resolve) -> Sender {
        let networks = networks.iter().map(|it| it.parse().unwrap()).collect();
        let webhooks = Webhooks { networks, ..Webhooks::default() };
        Sender::new(&webhooks, &(Arc::new(|| Ok(Client::builder())) as ClientFn), &resolve).unwrap()
    }

    /// Says one address after the other, and how often it was asked.
    fn scripted(addresses: &[&str]) -> (Resolve, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.parse().unwrap()).collect();
        let counted = asked.clone();
        let resolve: Resolve = Arc::new(move |_| {
            let at = counted.fetch_add(1, Ordering::SeqCst).min(addresses.len() - 1);
            let address = addresses[at];
            Box::pin(async move { Ok(vec![address]) })
        });
        (resolve, asked)
    }

    fn notice() -> Notice {
        Notice {
            id: Uuid::from_u128(7),
            message: String::new(),
            body: json!({"Type": "Notification"}),
        }
    }

    async fn refusal(url: &str, sender: &Sender) -> String {
        sender.send(&url.parse().unwrap(), &notice()).await.unwrap_err()
    }

    #[tokio::test]
    async fn the_metadata_address_is_told_nothing_however_it_is_written() {
        let (resolve, asked) = scripted(&["169.254.169.254"]);
        let sender = sender(&[], resolve);
        for host in [
            "169.254.169.254",
            "2852039166",
            "0xa9.0xfe.0xa9.0xfe",
            "0251.0376.0251.0376",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::a9fe:a9fe]",
            "[fd00:ec2::254]",
            "127.0.0.1",
            "localhost",
            // By a name.
            "metadata.example",
        ] {
            for scheme in ["https", "http"] {
                let why = refusal(&format!("{scheme}://{host}/latest"), &sender).await;
                assert!(why.contains(NOT_PUBLIC), "{scheme}://{host}: {why}");
            }
        }
        assert_eq!(asked.load(Ordering::SeqCst), 4, "names are asked for once each, others never");
    }

    #[tokio::test]
    async fn a_name_that_changes_its_address_is_looked_up_once_for_each_connection() {
        let site = Site::start(vec![answer("200 OK")]).await;
        // The first answer may be told, any later one would not be.
        let (resolve, asked) = scripted(&["127.0.0.1", "169.254.169.254"]);
        let sender = sender(&["127.0.0.0/8"], resolve);
        let url = format!("http://hooks.example:{}/done", site.port);
        sender.send(&url.parse().unwrap(), &notice()).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // And what is asked next time is checked again: nothing of the first time is kept.
        assert!(refusal(&url, &sender).await.contains("169.254.169.254"));
        assert_eq!(site.seen().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_notice_does_not_wait_for_ever_behind_others() {
        let (resolve, asked) = scripted(&["169.254.169.254"]);
        let sender = sender(&[], resolve);
        let all = sender.places.all().await;
        let why = refusal("https://hooks.example/done", &sender).await;
        assert!(why.contains("on their way"), "{why}");
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        drop(all);
        let why = refusal("https://hooks.example/done", &sender).await;
        assert!(why.contains(NOT_PUBLIC), "{why}");
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let other = Site::start(vec![answer("200 OK")]).await;
        let to = format!("302 Found\r\nlocation: http://127.0.0.1:{}/", other.port);
        let site = Site::start(vec![answer(&to)]).await;
        let sender = sender(&["127.0.0.1/32"], system_resolver());
        let why = refusal(&format!("http://127.0.0.1:{}/", site.port), &sender).await;
        assert!(why.contains("302"), "{why}");
        assert_eq!((site.seen().len(), other.seen().len()), (1, 0));
    }

    #[tokio::test]
    async fn a_notice_that_fails_is_sent_again_and_one_that_is_refused_is_not() {
        let again = vec![answer("503 Service Unavailable"), answer("200 OK")];
        let site = Site::start(again).await;
        let sender = sender(&["127.0.0.1/32"], system_resolver());
        let url = format!("http://127.0.0.1:{}/done", site.port);
        sender.send(&url.parse().unwrap(), &notice()).await.unwrap();
        let seen = site.seen();
        assert_eq!(seen.len(), 2);
        for text in seen {
            assert!(text.starts_with("POST /done HTTP/1.1\r\n"), "{text}");
            assert!(text.contains("x-amz-sns-message-type: Notification\r\n"), "{text}");
            assert!(text.ends_with("{\"Type\":\"Notification\"}"), "{text}");
        }
        let gone = Site::start(vec![answer("410 Gone")]).await;
        let why = refusal(&format!("http://127.0.0.1:{}/", gone.port), &sender).await;
        assert!(why.contains("410"), "{why}");
        assert_eq!(gone.seen().len(), 1);
    }
}
