//! The way of the lines to CloudWatch.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use crate::config::EmbeddedTo;

/// How long an agent may take to answer, and to take what it is sent.
const PATIENCE: Duration = Duration::from_secs(2);
/// Who may read a file: not everybody.
const MODE: u32 = 0o640;

/// Where lines go, with the connection that is kept.
pub(super) struct Way {
    to: EmbeddedTo,
    agent: Option<TcpStream>,
}

impl Way {
    pub(super) fn new(to: EmbeddedTo) -> Self {
        Self { to, agent: None }
    }

    /// Sends whole lines, each in one piece. Blocks.
    ///
    /// # Errors
    /// Where some of them may not have arrived.
    pub(super) fn send(&mut self, lines: &[String]) -> io::Result<()> {
        let whole: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        match &self.to {
            EmbeddedTo::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(whole.as_bytes())?;
                out.flush()
            }
            EmbeddedTo::File(path) => {
                let mut options = OpenOptions::new();
                let options = options.create(true).append(true).mode(MODE);
                options.open(path)?.write_all(whole.as_bytes())
            }
            EmbeddedTo::Udp(address) => {
                let to = resolved(address)?;
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                lines.iter().try_for_each(|line| socket.send_to(line.as_bytes(), to).map(drop))
            }
            EmbeddedTo::Tcp(address) => {
                // An agent that was started anew knows nothing of the connection.
                if let Some(agent) = &mut self.agent
                    && is_open(agent)
                    && agent.write_all(whole.as_bytes()).is_ok()
                {
                    return Ok(());
                }
                let mut agent = TcpStream::connect_timeout(&resolved(address)?, PATIENCE)?;
                agent.set_write_timeout(Some(PATIENCE))?;
                agent.write_all(whole.as_bytes())?;
                self.agent = Some(agent);
                Ok(())
            }
        }
    }
}

/// Whether the other side has not closed it: it never says anything.
fn is_open(agent: &TcpStream) -> bool {
    let looked = agent.set_nonblocking(true).and_then(|()| agent.peek(&mut [0]));
    let is_silent = matches!(&looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    agent.set_nonblocking(false).is_ok() && (is_silent || looked.is_ok_and(|count| count > 0))
}

fn resolved(address: &str) -> io::Result<SocketAddr> {
    let nobody = || io::Error::new(io::ErrorKind::NotFound, "the agent's name has no address");
    address.to_socket_addrs()?.next().ok_or_else(nobody)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

    fn lines() -> Vec<String> {
        // One that fills more than a socket's buffer, so that pieces would show.
        vec!["{\"a\":1}".to_owned(), "x".repeat(1 << 20), "{\"b\":2}".to_owned()]
    }

    #[test]
    fn a_file_grows_by_whole_lines_and_may_be_moved_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("emf.jsonl");
        let mut way = Way::new(EmbeddedTo::File(path.clone()));
        way.send(&lines()).unwrap();
        way.send(&lines()[..1]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), [&lines()[..], &lines()[..1]].concat());
        std::fs::rename(&path, folder.path().join("old")).unwrap();
        way.send(&lines()[..1]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}\n");
    }

    #[test]
    fn an_agent_that_is_started_anew_has_all_lines_sent_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut way = Way::new(EmbeddedTo::Tcp(address.to_string()));
        for _ in 0..2 {
            let taking = listener.try_clone().unwrap();
            let agent = std::thread::spawn(move || {
                let (connection, _) = taking.accept().unwrap();
                let read = BufReader::new(connection).lines().take(3);
                read.map(Result::unwrap).collect::<Vec<_>>()
            });
            way.send(&lines()).unwrap();
            // It has them, and is gone with its connection.
            assert_eq!(agent.join().unwrap(), lines());
        }
        drop(listener);
        assert!(way.send(&lines()).is_err());
    }

    #[test]
    fn each_line_is_a_datagram() {
        let agent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = agent.local_addr().unwrap().to_string();
        let short = [lines()[0].clone(), lines()[2].clone()];
        Way::new(EmbeddedTo::Udp(address)).send(&short).unwrap();
        for line in short {
            let mut taken = [0; 100];
            let count = agent.recv(&mut taken).unwrap();
            assert_eq!(&taken[..count], line.as_bytes());
        }
    }
}
