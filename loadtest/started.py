"""A server of ours as scripts start it, and processes that end when the script does, however it ends.

    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
    from started import Server, start

Standard library only.
"""

import atexit
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import tempfile

# How long a server may take to end once it is told to, its drain included.
ENDS_WITHIN = 60
RUNNING = []
# Processes that fork from the script end nothing.
OURS = os.getpid()
# What is being started and is not in the list yet, and the signal that came meanwhile. Signals are not
# blocked: what is started would have them blocked for good.
STARTING, LATER = [], []


def start(words, **options):
    """A process that does not outlive the script: `subprocess.Popen` with its options."""
    STARTING.append(words)
    try:
        process = subprocess.Popen([str(word) for word in words], **options)
        RUNNING.append(process)
        return process
    finally:
        STARTING.pop()
        while LATER and not STARTING:
            os.kill(OURS, LATER.pop())


def stop(process):
    """Tells it to end, and kills it where it does not in time. Returns its status."""
    process.terminate()
    try:
        return process.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} had to be killed: {process.args[0]}", file=sys.stderr)
        return kill(process)
    finally:
        if process in RUNNING:
            RUNNING.remove(process)


def kill(process):
    """Ends it at once."""
    process.kill()
    if process in RUNNING:
        RUNNING.remove(process)
    return process.wait()


def written(log):
    """The end of what a file holds. A terminal or a pipe has shown it already, and ends only when it is closed."""
    if not stat.S_ISREG(os.fstat(log.fileno()).st_mode):
        return "see above"
    return pathlib.Path(f"/proc/self/fd/{log.fileno()}").read_bytes()[-2000:].decode(errors="replace")


class Server:
    """`roundhouse serve` on ports of its own, ready to be asked. `words` are its flags, `env` is beside
    the script's own; `log` is an open file for what it logs; `group` the folder of a control group that it
    is started in."""

    def __init__(self, binary, words, env=None, log=None, group=None):
        log = log or tempfile.TemporaryFile()
        ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        enter = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"] if group else []
        self.process = start(
            [*enter, binary, "serve", *words, *ports], env=os.environ | (env or {}), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=log, text=True)
        found = {}
        while len(found) < 2:
            line = self.process.stdout.readline()
            if not line:
                status = stop(self.process)
                raise SystemExit(f"the server ended with {status} before it was ready: {written(log)}")
            if match := re.match(r"(listening|admin) on http://(\S+)", line):
                found[match[1]] = match[2]
        self.data, self.admin = found["listening"], found["admin"]
        self.data_url, self.admin_url = f"http://{self.data}", f"http://{self.admin}"

    def anonymous(self):
        """Bytes of anonymous memory, as the kernel counts this process's pages."""
        text = pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Anonymous:\s+(\d+) kB", text, re.M)[1]) << 10

    def stop(self):
        stop(self.process)

    def kill(self):
        kill(self.process)


class Store:
    """`coldload/store.py`: an S3 store of a folder's files, in the bucket `models`."""

    def __init__(self, folder):
        script = pathlib.Path(__file__).parent / "coldload" / "store.py"
        self.process = start([sys.executable, script, folder, "models"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        self.env = {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "key",
                    "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}

    def pace(self, rate, late=0):
        """Bytes a second of all answers together, and seconds that each is late."""
        self.process.stdin.write(f"{rate} {late}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "paced"

    def stop(self):
        stop(self.process)


def _kill():
    for process in RUNNING if os.getpid() == OURS else []:
        process.kill()


def _end(number, _frame):
    if STARTING:
        LATER.append(number)
        return
    # Now, and not at the interpreter's end: that waits for threads, which may wait for the server.
    _kill()
    sys.exit(128 + number)


atexit.register(_kill)
for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is not signal.SIG_IGN:
        signal.signal(_number, _end)
