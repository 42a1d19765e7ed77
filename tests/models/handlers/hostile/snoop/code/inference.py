"""Tries what a handler should not be able to do, and answers with the list of what it could.

The body is JSON: {"path": a file of somebody else's, "connect": "host:port", "pid": a process
of somebody else's}, each optional. Anything else is echoed. What is listed, in order:
`read PATH`, `read environ of PID`, `connect HOST:PORT`, `socket FAMILY`, `list secrets`,
`see process PID` (of others than its own), `write PLACE`, `link out`, `setsid`, `setpgid`,
`ptrace`, `unshare NAMESPACE`, `mount`, `kill PID`, `environment NAME`. Beside it, "refused"
says why each of the others was not possible.
"""
import ctypes
import json
import os
import signal
import socket

PTRACE_ATTACH = 16
NAMESPACES = {"user": 0x10000000, "mount": 0x00020000, "network": 0x40000000, "pid": 0x20000000}
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX,
            "netlink": socket.AF_NETLINK, "packet": socket.AF_PACKET, "vsock": 40}
# What a worker is given on purpose.
EXPECTED = {"PATH", "LANG", "HOME", "TMPDIR"}
PREFIXES = ("SM_", "SAGEMAKER_", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "VECLIB_", "ROUNDHOUSE_HANDLER_", "LC_")


def model_fn(model_dir):
    return model_dir


def transform_fn(model_dir, body, content_type, accept):
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        return body
    could, refused = [], {}
    for name, attempt in attempts(model_dir, asked):
        try:
            attempt()
            could.append(name)
        except Exception as error:
            refused[name] = "{}: {}".format(type(error).__name__, error)
    return {"could": could, "refused": refused}, "application/json"


def attempts(model_dir, asked):
    """Yields (name, function that raises unless it could)."""
    parent = asked.get("pid") or os.getppid()
    if "path" in asked:
        yield "read " + asked["path"], lambda: read(asked["path"])
    yield "read environ of {}".format(parent), lambda: read("/proc/{}/environ".format(parent))
    yield "connect 169.254.169.254:80", lambda: connect("169.254.169.254", 80)
    if "connect" in asked:
        host, _, port = asked["connect"].rpartition(":")
        yield "connect " + asked["connect"], lambda: connect(host, int(port))
    for name, family in FAMILIES.items():
        kind = socket.SOCK_RAW if name in ("packet", "netlink") else socket.SOCK_STREAM
        yield "socket " + name, lambda: socket.socket(family, kind).close()
    yield "list secrets", lambda: os.listdir("/var/run/secrets")
    yield from processes()
    own = (model_dir, os.path.join(model_dir, "code"), os.path.dirname(model_dir))
    for place in own + ("/tmp", "/dev/shm", "/var/tmp", "/"):
        yield "write " + place, lambda: write(place)
    yield "link out", lambda: link_out(asked.get("path") or "/etc/passwd")
    yield "setsid", in_child(os.setsid)
    yield "setpgid", in_child(lambda: os.setpgid(0, 0))
    yield "ptrace", lambda: system("ptrace", PTRACE_ATTACH, parent, 0, 0)
    for name, flag in NAMESPACES.items():
        yield "unshare " + name, in_child(lambda: system("unshare", flag))
    yield "mount", mount
    yield "kill {}".format(parent), lambda: os.kill(parent, 0)
    for name in sorted(os.environ):
        if name not in EXPECTED and not name.startswith(PREFIXES):
            yield "environment " + name, lambda: None


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def connect(host, port):
    socket.create_connection((host, port), timeout=2).close()


def write(folder):
    path = os.path.join(folder, "roundhouse-snoop-{}".format(os.getpid()))
    with open(path, "w") as file:
        file.write("x")
    os.remove(path)


def link_out(path):
    """Reads a foreign file through a link from the folder that may be written."""
    link = os.path.join(os.environ.get("TMPDIR", "."), "link")
    os.symlink(path, link)
    try:
        read(link)
    finally:
        os.remove(link)


def mount():
    place = os.environ.get("TMPDIR", ".").encode()
    system("mount", b"none", place, b"tmpfs", 0, None)
    system("umount", place)


def processes():
    """Yields every process that can be seen beside this one and its parents."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return
    for pid in sorted(pids)[:50]:
        if pid not in (os.getpid(), os.getppid()):
            yield "see process {}".format(pid), lambda: read("/proc/{}/cmdline".format(pid))


def system(name, *arguments):
    """Calls the C library. Raises OSError where it says no."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if name == "ptrace":
        os.waitpid(arguments[1], 0)
        library.ptrace(17, arguments[1], 0, 0)


def in_child(attempt):
    """Tries in a fork, so that what worked does not change this process."""
    def tried():
        child = os.fork()
        if child == 0:
            try:
                attempt()
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or 255)
            finally:
                os._exit(254)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            raise OSError("ended by {}".format(signal.Signals(os.WTERMSIG(status)).name))
        if os.WEXITSTATUS(status):
            raise OSError(os.WEXITSTATUS(status), os.strerror(os.WEXITSTATUS(status)))
    return tried
