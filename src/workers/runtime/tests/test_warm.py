"""Drives roundhouse_warm.py: an interpreter that imports first, and is forked by order."""
import array
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

from harness import ANSWER, FAILED, READY, WORKER, Reply, invoke

RUNTIME = os.path.dirname(WORKER)
ECHO = "import sys\ndef model_fn(d): return {}\ndef transform_fn(m, b, c, a): return repr('{}' in sys.modules)\n"


class Waiting(socket.socket):
    """The way to a fork that waits for its order."""

    order = b""


class Interpreter:
    """One interpreter that can import `modules`, texts by name, beside what there is."""

    def __init__(self, imports, **modules):
        self.folder = tempfile.TemporaryDirectory()
        for name, text in modules.items():
            self.write(name + ".py", text)
        start = "import sys; sys.path[0] = {!r}; sys.path.append({!r}); import roundhouse_warm; roundhouse_warm.main()"
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(60)
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-B", "-u", "-c", start.format(RUNTIME, self.folder.name),
             json.dumps({"imports": imports})], stdin=theirs)
        theirs.close()
        self.hello = self.next(self.socket)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.wait(10)
        self.folder.cleanup()

    def write(self, path, text):
        path = os.path.join(self.folder.name, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def next(self, of):
        size, = struct.unpack("<I", of.recv(4, socket.MSG_WAITALL))
        return Reply(of.recv(size, socket.MSG_WAITALL))

    def fork(self, **files):
        """Forks a worker; returns its process and its socket, before it has its order."""
        for name, text in files.items():
            self.write(os.path.join("model", "code", name + ".py"), text)
        model = os.path.join(self.folder.name, "model")
        settings = {"model_dir": model, "code_dir": os.path.join(model, "code"), "name": "test",
                    "framework": "auto", "max_response": 1 << 20, "worker": 0, "workers": 1}
        order = json.dumps({"settings": settings, "variables": {"NAMED": "x"}, "memory": 1 << 32}).encode()
        ours, theirs = socket.socketpair()
        ours = Waiting(fileno=ours.detach())
        ours.settimeout(60)
        handed = array.array("i", [theirs.fileno(), 1, 2])
        self.socket.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)])
        theirs.close()
        assert self.socket.recv(1) == b"F"
        ours.order = struct.pack("<I", len(order)) + order
        return struct.unpack("<I", ours.recv(4, socket.MSG_WAITALL))[0], ours


class Warm(unittest.TestCase):
    def test_a_fork_has_the_imports_and_its_own_process(self):
        with Interpreter(["taken", "not_there"], taken="") as warm:
            self.assertEqual((warm.hello.kind, warm.hello.said["count"] >= 1), (READY, True))
            processes = set()
            for _ in range(2):
                process, sock = warm.fork(inference=ECHO.format(1, "taken"))
                processes.add(process)
                sock.sendall(sock.order + invoke(1))
                self.assertEqual(warm.next(sock).kind, READY)
                reply = warm.next(sock)
                self.assertEqual((reply.kind, reply.body), (ANSWER, b"True"))
                sock.close()
            self.assertEqual(len(processes - {warm.process.pid}), 2)

    def test_one_without_an_order_ends_with_the_server(self):
        with Interpreter([]) as warm:
            _, sock = warm.fork(inference=ECHO.format(1, "os"))
            sock.shutdown(socket.SHUT_WR)
            self.assertEqual(sock.recv(1), b"")
            sock.close()

    def test_threads_are_not_forked(self):
        text = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        with Interpreter(["threaded"], threaded=text) as warm:
            self.assertEqual(warm.hello.kind, FAILED)
            self.assertIn("have started 1 threads", warm.hello.message)

    def test_shared_memory_is_not_forked(self):
        with Interpreter(["sharing"], sharing="import mmap\nkept = mmap.mmap(-1, 4096)\n") as warm:
            self.assertEqual(warm.hello.kind, FAILED)
            self.assertIn("memory that forks would share", warm.hello.message)

    def test_open_files_are_not_forked(self):
        with Interpreter(["opens"], opens="import os\nkept = os.pipe()\n") as warm:
            self.assertEqual(warm.hello.kind, FAILED)
            self.assertIn("have opened pipe", warm.hello.message)

    def test_a_module_of_the_handlers_own_refuses_the_fork(self):
        with Interpreter(["taken"], taken="") as warm:
            _, sock = warm.fork(inference=ECHO.format(1, "taken"), taken="OWN = 1")
            sock.sendall(sock.order)
            said = warm.next(sock)
            self.assertEqual(said.kind, FAILED)
            self.assertIn("taken.py in its code", said.message)
            sock.close()


if __name__ == "__main__":
    unittest.main()
