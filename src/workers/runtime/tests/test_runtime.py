"""Drives roundhouse_worker.py over a socketpair, as the server does.

Run with the interpreter that handlers get: `python3 test_runtime.py` runs these tests and
those of test_calls.py, test_defaults.py and test_warm.py. What needs numpy, scipy or Pillow is skipped
where they are missing; test_frameworks.py has what needs more.
"""
import os
import signal
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import ANSWER, BEGIN, BYTES, ERROR, FAILED, READY, Worker, cancel, invoke, script
from test_calls import Calling, Context, Streams  # noqa: F401 (one command runs all)
from test_defaults import HuggingfaceDefaults, PlainDefaults  # noqa: F401
from test_warm import Warm  # noqa: F401

ECHO = """
    def model_fn(model_dir):
        return None
    def transform_fn(model, body, content_type, accept):
        return body, accept
"""


class Framing(unittest.TestCase):
    def test_ready_says_what_was_found(self):
        with Worker(script(ECHO)) as worker:
            self.assertEqual(worker.hello.kind, READY)
            self.assertIn("importlib", worker.hello.said.pop("imported"))
            self.assertEqual(worker.hello.said, {
                "python": "{}.{}.{}".format(*sys.version_info), "framework": "plain",
                "functions": ["model_fn", "transform_fn"], "defaults": []})

    def test_answers_in_order_when_calls_are_pipelined(self):
        with Worker(script(ECHO)) as worker:
            worker.send(*[invoke(number, str(number), BYTES) for number in range(500)])
            for number in range(500):
                reply = worker.read()
                self.assertEqual((reply.kind, reply.id, reply.body), (ANSWER, number, str(number).encode()))

    def test_a_frame_may_come_byte_by_byte(self):
        with Worker(script(ECHO)) as worker:
            for byte in invoke(3, "abc", BYTES, "text/x"):
                worker.send(bytes([byte]))
            reply = worker.read()
            self.assertEqual((reply.id, reply.status, reply.type, reply.body), (3, 200, "text/x", b"abc"))

    def test_large_bodies_pass_whole_and_small_ones_after_them(self):
        with Worker(script(ECHO)) as worker:
            large = os.urandom(1 << 20) * 6
            worker.send(invoke(1, "a", BYTES), invoke(2, large, BYTES), invoke(3, "b", BYTES))
            self.assertEqual([worker.read().body for _ in range(3)], [b"a", large, b"b"])

    def test_an_empty_body_and_unknown_frames_do_no_harm(self):
        with Worker(script(ECHO)) as worker:
            worker.send(struct.pack("<IB", 1, 99), cancel(5), invoke(6))
            reply = worker.read()
            self.assertEqual((reply.id, reply.body, reply.type), (6, b"", "application/json"))

    def test_leaves_when_the_server_does(self):
        worker = Worker(script(ECHO))
        self.assertEqual(worker.hello.kind, READY)
        worker.socket.close()
        self.assertEqual(worker.process.wait(10), 0)
        worker.__exit__()

    def test_leaves_when_a_frame_has_no_length(self):
        with Worker(script(ECHO)) as worker:
            worker.send(struct.pack("<I", 0))
            self.assertRaises(EOFError, worker.read)
            self.assertEqual(worker.process.wait(10), 1)

    def test_threads_of_the_handler_do_not_hold_the_process(self):
        text = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
        worker = Worker(script(text + "def model_fn(d): pass\ndef transform_fn(m, b, c, a): return b\n"))
        worker.ask("x")
        worker.socket.close()
        self.assertEqual(worker.process.wait(10), 0)
        worker.__exit__()


class Loading(unittest.TestCase):
    def failed(self, files, **settings):
        with Worker(files, **settings) as worker:
            self.assertEqual(worker.hello.kind, FAILED)
            self.assertEqual(worker.process.wait(10), 1)
            self.assertNotIn("\n", worker.hello.message)
            return worker.hello

    def test_transform_fn_excludes_the_other_three(self):
        for name in ("input_fn", "predict_fn", "output_fn"):
            hello = self.failed(script(ECHO + "    def {}(a, b): pass\n".format(name)))
            self.assertIn("transform_fn together with " + name, hello.message)

    def test_a_missing_predict_fn_is_said_at_load(self):
        hello = self.failed(script("def model_fn(model_dir): pass"))
        self.assertEqual(hello.message, "inference.py defines no predict_fn, and the files name no framework")
        hello = self.failed(script("def predict_fn(data, model): pass"))
        self.assertIn("inference.py defines no model_fn", hello.message)
        hello = self.failed({"weights.bin": "x"})
        self.assertIn("no code/inference.py", hello.message)

    def test_failures_say_the_line(self):
        hello = self.failed(script("import json\nimport no_such_module\n"))
        self.assertEqual(hello.message, "ModuleNotFoundError: No module named 'no_such_module' (inference.py, line 2)")
        self.assertIn("inference.py\", line 2", hello.said["traceback"])
        self.assertNotIn("roundhouse", hello.said["traceback"])
        hello = self.failed(script("def model_fn(:\n"))
        self.assertRegex(hello.message, r"^SyntaxError: invalid syntax \(inference.py, line 1\)$")
        hello = self.failed(script("def model_fn(model_dir):\n    raise ValueError('no\\nweights')\ndef predict_fn(d, m): pass\n"))
        self.assertEqual(hello.message, "ValueError: no weights (inference.py, line 2)")
        hello = self.failed(script("raise SystemExit(3)"))
        self.assertEqual(hello.message, "SystemExit: 3 (inference.py, line 1)")

    def test_a_function_of_the_wrong_shape_is_said(self):
        hello = self.failed(script("def model_fn(): pass\ndef predict_fn(d, m): pass\n"))
        self.assertIn("model_fn takes 0 arguments", hello.message)

    def test_finds_the_script_where_scripts_may_be(self):
        with Worker({"code/serve.py": ECHO}, environment={"SAGEMAKER_PROGRAM": "serve.py"}) as worker:
            self.assertEqual(worker.ask("x", BYTES).body, b"x")
        with Worker({"inference.py": ECHO}) as worker:
            self.assertEqual(worker.ask("x", BYTES).body, b"x")

    def test_the_script_may_import_what_lies_beside_it_and_nothing_is_written(self):
        text = "import part, os\ndef model_fn(d): return sorted(os.listdir(d + '/code'))\n"
        text += "def predict_fn(data, model): return [part.word, model]\n"
        with Worker(script(text, **{"code/part.py": "word = 'yes'\n"})) as worker:
            self.assertEqual(worker.ask('{}', "application/json").json(), ["yes", ["inference.py", "part.py"]])

    def test_the_optional_functions_run_around_model_fn(self):
        text = """
            seen = []
            def pre_model_fn(model_dir): seen.append("before")
            def model_fn(model_dir): seen.append("load"); return seen
            def model_warmup_fn(model_dir, model): model.append("warm")
            def predict_fn(data, model): return model
        """
        with Worker(script(text)) as worker:
            self.assertEqual(worker.ask("{}", "application/json").json(), ["before", "load", "warm"])


class Errors(unittest.TestCase):
    TEXT = """
        import sys
        class Own(Exception):
            def __init__(self, status_code, message):
                self.status_code, self.message = status_code, message
        def model_fn(d): pass
        def deep(n): return deep(n + 1)
        def transform_fn(model, body, content_type, accept):
            kind = body.decode()
            if kind == "value": raise ValueError("bad\\nvalue")
            if kind == "own": raise Own(429, "slow down")
            if kind == "odd": raise Own(200, "odd")
            if kind == "exit": sys.exit(4)
            if kind == "interrupt": raise KeyboardInterrupt
            if kind == "deep": deep(0)
            if kind == "memory": raise MemoryError
            if kind == "long": raise ValueError("x" * 100000)
            if kind == "mute": raise Mute
            if kind == "library": import json; json.loads("{")
            return body
        class Mute(Exception):
            def __str__(self): raise RuntimeError
    """

    def test_every_failure_is_one_line_and_the_worker_stays(self):
        wanted = {
            "value": (500, r"^ValueError: bad value \(inference.py, line \d+\)$"),
            "own": (429, r"^Own: slow down \(inference.py, line \d+\)$"),
            "odd": (500, r"^Own: odd \(inference"),
            "exit": (500, r"^SystemExit: 4 \("),
            "interrupt": (500, r"^KeyboardInterrupt \(inference.py, line \d+\)$"),
            "deep": (500, r"^RecursionError: .*\(inference.py, line \d+\)$"),
            "memory": (500, r"^MemoryError \("),
            "long": (500, r"^ValueError: x+\.\.\."),
            "mute": (500, r"^Mute: "),
            "library": (500, r"^JSONDecodeError: .*\(inference.py, line \d+\)$"),
        }
        with Worker(script(self.TEXT)) as worker:
            for name, (status, pattern) in wanted.items():
                reply = worker.ask(name)
                self.assertEqual((reply.kind, reply.status), (ERROR, status), name)
                self.assertRegex(reply.message, pattern)
                self.assertLessEqual(len(reply.message), 2000)
                self.assertLessEqual(len(reply.said["traceback"]), 8192)
                self.assertNotIn("roundhouse_", reply.said["traceback"])
            self.assertEqual(worker.ask("fine").body, b"fine")

    def test_running_out_of_memory_is_an_error_of_the_call(self):
        text = """
            import resource
            def model_fn(d):
                resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            def transform_fn(model, body, content_type, accept):
                return bytes(1 << 32) if body == b"leak" else body
        """
        with Worker(script(text)) as worker:
            self.assertTrue(worker.ask("leak").message.startswith("MemoryError"))
            self.assertEqual(worker.ask("x").body, b"x")

    def test_a_crash_is_an_end_of_the_socket(self):
        text = "import os, signal\ndef model_fn(d): pass\ndef transform_fn(m, b, c, a): os.kill(os.getpid(), signal.SIGSEGV)\n"
        with Worker(script(text)) as worker:
            worker.send(invoke(1))
            self.assertRaises(EOFError, worker.read)
            self.assertEqual(worker.process.wait(10), -signal.SIGSEGV)


class Surroundings(unittest.TestCase):
    def test_prints_are_lines_in_the_log(self):
        text = "import os\ndef model_fn(d): print('loading', d[-5:])\n"
        text += "def transform_fn(m, b, c, a): print('call', 1); os.write(2, b'raw'); print('part', end=''); return b\n"
        with Worker(script(text)) as worker:
            worker.ask("x")
            self.assertEqual(worker.output(), "loading model\ncall 1\nraw")
            worker.socket.close()
            worker.process.wait(10)
            self.assertEqual(worker.output(), "loading model\ncall 1\nrawpart")

    def test_the_handler_may_close_and_change_what_is_its_own(self):
        text = """
            import os, socket, sys
            def model_fn(d): return os.read(0, 10)
            def transform_fn(model, body, content_type, accept):
                os.chdir("/")
                os.environ.clear()
                for fd in (0, 1, 2):
                    os.close(fd)
                socket.setdefaulttimeout(0.01)
                sys.path[:] = []
                print("nowhere")
                return model + body
        """
        with Worker(script(text)) as worker:
            reply = worker.ask("x")
            self.assertEqual(reply.kind, ERROR)
            self.assertTrue(reply.message.startswith("OSError"), reply.message)
            reply = worker.ask("x")
            self.assertEqual((reply.kind, reply.id), (ERROR, 7))

    def test_stdin_is_empty(self):
        text = "import sys\ndef model_fn(d): pass\ndef transform_fn(m, b, c, a): return sys.stdin.read() + '.'\n"
        with Worker(script(text)) as worker:
            self.assertEqual(worker.ask("x").body, b".")

    def test_a_fork_never_speaks_for_its_parent(self):
        text = """
            import os
            def model_fn(d): pass
            def transform_fn(model, body, content_type, accept):
                child = os.fork()
                if child == 0:
                    if body == b"raise": raise ValueError("child")
                    return b"child"
                return b"parent %d" % os.waitpid(child, 0)[1]
        """
        with Worker(script(text)) as worker:
            for body in ("return", "raise", "return"):
                self.assertEqual(worker.ask(body).body, b"parent 0")

    def test_a_fork_inside_a_stream_ends_itself(self):
        text = """
            import os
            def model_fn(d): pass
            def transform_fn(model, body, content_type, accept):
                yield "a"
                child = os.fork()
                yield "child" if child == 0 else "parent %d" % os.waitpid(child, 0)[1]
        """
        with Worker(script(text)) as worker:
            self.assertEqual(worker.ask("x", stream=True).kind, BEGIN)
            self.assertEqual(worker.rest()[0], [b"a", b"parent 0"])

    def test_an_alarm_that_a_handler_left_set_loses_nothing(self):
        text = """
            import signal
            def late(*_): raise TimeoutError("late")
            def model_fn(d): signal.signal(signal.SIGALRM, late)
            def transform_fn(m, b, c, a): signal.setitimer(signal.ITIMER_REAL, 0.02); return b
        """
        with Worker(script(text)) as worker:
            for number in range(5):
                self.assertEqual(worker.ask(str(number)).body, str(number).encode())
                time.sleep(0.04)


if __name__ == "__main__":
    unittest.main()
