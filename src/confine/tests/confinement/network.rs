//! Which sockets a confined process opens.

use std::net::TcpListener;

use roundhouse_confine::Network;

use crate::setting::{Setting, assert_told, mechanisms, require};
use crate::{Outcome, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "without_a_network_there_are_only_stream_pairs",
        without_a_network_there_are_only_stream_pairs,
    ),
    ("with_tcp_only_the_named_ports_are_reached", with_tcp_only_the_named_ports_are_reached),
];

fn without_a_network_there_are_only_stream_pairs() -> Outcome {
    require!();
    let code = "
import asyncio
families = {'v4': 2, 'v6': 10, 'unix': 1, 'netlink': 16, 'vsock': 40}
for name, family in families.items():
    for kind in (1, 2, 3):
        tell('%s-%d' % (name, kind), lambda: socket.socket(family, kind).close())
def pair(kind):
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    a.send(b'x')
    return len(b.recv(1))
tell('pair-stream', lambda: pair(socket.SOCK_STREAM))
tell('pair-datagram', lambda: pair(socket.SOCK_DGRAM))
tell('pair-packet', lambda: pair(socket.SOCK_SEQPACKET))
async def nothing(): return 'ran'
tell('asyncio', lambda: asyncio.run(nothing()))
";
    let mut setting = Setting::new();
    let told = setting.told(code);
    for (name, value) in &told {
        let expected = match name.as_str() {
            "pair-stream" => "1",
            "asyncio" => "ran",
            _ => "EPERM",
        };
        assert_eq!(value, expected, "{name}");
    }
    assert_eq!(told.len(), 19);
    let unconfined = setting.told_unconfined(code);
    assert_eq!(
        [&unconfined["v4-1"], &unconfined["unix-2"], &unconfined["pair-datagram"]],
        ["done", "done", "1"]
    );
    None
}

fn with_tcp_only_the_named_ports_are_reached() -> Outcome {
    require!();
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = (open.local_addr().unwrap().port(), closed.local_addr().unwrap().port());
    let mut setting = Setting::new();
    setting.launch.confinement.network = Network::Tcp { ports: vec![ports.0] };
    let told = setting.told(&format!(
        "
def reach(port):
    socket.create_connection(('127.0.0.1', port)).close()
tell('named', lambda: reach({}))
tell('other', lambda: reach({}))
tell('listen', lambda: socket.create_server(('127.0.0.1', 0)).close())
tell('name', lambda: socket.getaddrinfo('localhost', 80)[0][4][1])
tell('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
tell('unix', lambda: socket.socket(socket.AF_UNIX).close())
tell('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
tell('ping', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).close())
tell('multipath', lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close())
tell('fast', lambda: socket.socket().sendto(b'x', 0x20000000, ('127.0.0.1', {})))
",
        ports.0, ports.1, ports.1
    ));
    let by_port = mechanisms().landlock_abi.is_some_and(|abi| abi >= 4);
    let port = if by_port { "EACCES" } else { "done" };
    assert_told(
        &told,
        &[
            ("named", "done"),
            ("other", port),
            ("listen", port),
            ("name", "80"),
            ("udp", "done"),
            ("unix", "EPERM"),
            ("raw", "EPERM"),
            ("ping", "EPERM"),
            ("multipath", "EPERM"),
            ("fast", "EPERM"),
        ],
    );
    None
}
