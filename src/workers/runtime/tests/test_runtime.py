"""Drives roundhouse_worker.py over a socketpair, as the server does.

Run with the interpreter that handlers get: `python3 test_runtime.py`. What needs numpy,
scikit-learn, XGBoost or torch is skipped where they are missing.
"""
import io
import os
import signal
import struct
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import ANSWER, BEGIN, CHUNK, END, ERROR, FAILED, READY, Worker, cancel, invoke

ECHO = """
    def model_fn(model_dir):
        return None
    def transform_fn(model, body, content_type, accept):
        return body, accept
"""
BYTES = "application/octet-stream"


def script(text, **more):
    return dict({"code/inference.py": text}, **more)


class Framing(unittest.TestCase):
    def test_ready_says_what_was_found(self):
        with Worker(script(ECHO)) as worker:
            self.assertEqual(worker.hello.kind, READY)
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


class Calling(unittest.TestCase):
    SHAPES = """
        def model_fn(model_dir): return 0
        def input_fn(body, content_type): return body, content_type
        def predict_fn(data, model): return data
        def output_fn(data, accept): return repr((type(data[0]).__name__, data[1], accept))
    """

    def test_texts_come_as_str_and_the_rest_as_bytes(self):
        with Worker(script(self.SHAPES)) as worker:
            for kind, name in (("application/json", "str"), ("text/csv", "str"), (BYTES, "bytes"), ("image/png", "bytes"),
                               ("text/plain", "Text"), ("application/json; charset=utf-8", "Text"), ("a/b+json", "Text")):
                self.assertEqual(worker.ask("1", kind).body.decode(), repr((name, kind, "application/json")))
            self.assertEqual(worker.ask("1").body.decode(), repr(("bytes", None, "application/json")))
            reply = worker.ask(b"\xff", "text/csv")
            self.assertEqual((reply.kind, reply.status), (ERROR, 400))
            self.assertIn("not UTF-8", reply.message)

    def test_text_bodies_can_be_decoded_again(self):
        text = "def model_fn(d): pass\ndef transform_fn(m, b, c, a): return b.decode('utf-8') + '!'\n"
        with Worker(script(text)) as worker:
            self.assertEqual(worker.ask("\u00e9", "text/plain").body.decode(), "\u00e9!")

    def test_accept_is_resolved(self):
        with Worker(script(self.SHAPES), environment={"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"}) as worker:
            for given, wanted in (("", "text/csv"), ("*/*", "text/csv"), ("image/png", "image/png"), ("a/b;v=1", "a/b;v=1"),
                                  ("text/html;q=0.5, */*", "text/html"), ("*/*;q=0.1", "text/csv")):
                reply = worker.ask("1", BYTES, given)
                self.assertEqual((reply.body.decode(), reply.type), (repr(("bytes", BYTES, wanted)), wanted))
            self.assertEqual(worker.ask("1", BYTES, "image/*").type, BYTES)

    def test_what_a_handler_may_return(self):
        text = """
            import json
            def model_fn(d): pass
            class Response:
                mimetype, status_code = "text/csv", 200
                def get_data(self): return b"1,2"
            KINDS = {"str": "x", "bytes": b"x", "array": bytearray(b"x"), "view": memoryview(b"x"), "dict": {"a": [1]},
                     "none": None, "pair": ("x", "image/gif"), "response": Response(), "three": (1, 2, 3), "line": ("x", "a\\nb")}
            def transform_fn(model, body, content_type, accept): return KINDS[body.decode()]
        """
        with Worker(script(text)) as worker:
            for name in ("str", "bytes", "array", "view"):
                self.assertEqual(worker.ask(name).body, b"x")
            self.assertEqual(worker.ask("dict").json(), {"a": [1]})
            self.assertEqual(worker.ask("none").body, b"")
            for name, wanted in (("pair", ("image/gif", b"x")), ("response", ("text/csv", b"1,2"))):
                reply = worker.ask(name)
                self.assertEqual((reply.type, reply.body), wanted)
            for name in ("three", "line"):
                self.assertEqual(worker.ask(name).status, 500)
            self.assertEqual(worker.ask("str").body, b"x")

    def test_an_answer_beyond_the_limit_is_refused(self):
        text = "def model_fn(d): pass\ndef transform_fn(m, b, c, a): return bytes(int(b))\n"
        with Worker(script(text), max_response=1000) as worker:
            self.assertEqual(len(worker.ask("1000").body), 1000)
            reply = worker.ask("1001")
            self.assertEqual((reply.kind, reply.status), (ERROR, 413))
            self.assertEqual(reply.message, "the answer has 1001 bytes, the limit is 1000 bytes")


class Context(unittest.TestCase):
    TEXT = """
        def model_fn(model_dir, context):
            assert context.system_properties["model_dir"] == model_dir
            assert context.system_properties.get("gpu_id") is None
            assert context.get_request_header(0, "x") is None
            return context.model_name
        def input_fn(body, content_type, context=None):
            return {"id": context.get_request_id(), "own": context.get_request_header(0, "X-Own"),
                    "all": context.get_all_request_header(0), "name": context.custom_attributes, "body": body}
        def predict_fn(data, model, **options):
            return dict(data, model=model)
        def output_fn(data, accept, context):
            import json
            context.set_response_status(code=201, phrase="Created")
            context.set_response_header(0, "X-Back", "yes")
            context.set_response_content_type(0, "text/x-" + accept[-4:])
            context.metrics.add_time("t", 1)
            return json.dumps(data)
    """

    def test_has_the_call_and_shapes_the_answer(self):
        with Worker(script(self.TEXT)) as worker:
            self.assertEqual(worker.hello.kind, READY, worker.hello.__dict__)
            meta = {"headers": {"x-own": "7"}, "request_id": "abc", "custom_attributes": "trace=1"}
            reply = worker.ask("b", "text/csv", meta=meta)
            self.assertEqual((reply.kind, reply.status, reply.type, reply.headers),
                             (ANSWER, 201, "text/x-json", {"x-back": "yes"}))
            self.assertEqual(reply.json(), {"id": "abc", "own": "7", "name": "trace=1", "body": "b", "model": "shop:test",
                                            "all": {"x-own": "7", "Content-Type": "text/csv"}})
            reply = worker.ask("b", "text/csv", number=9)
            self.assertEqual(reply.json()["id"], "9")
            self.assertIsNone(reply.json()["own"])

    def test_other_shapes_of_functions(self):
        text = """
            import functools
            def logged(f):
                @functools.wraps(f)
                def inner(*args, **kw): return f(*args, **kw)
                return inner
            def model_fn(model_dir): return 1
            class Reader:
                def read(self, body, content_type): return [body]
            input_fn = Reader().read
            @logged
            def predict_fn(data, model, context): return data + [context is not None]
            def output_fn(prediction, accept, extra=1, more=2): return repr((prediction, extra))
        """
        with Worker(script(text)) as worker:
            self.assertEqual(worker.ask("x").body, b"([b'x', True], 1)")

    def test_a_header_with_a_line_break_is_refused(self):
        text = "def model_fn(d): pass\ndef transform_fn(m, b, c, a, ctx): ctx.set_response_header(0, 'a', 'b\\r\\nc')\n"
        with Worker(script(text)) as worker:
            self.assertIn("line break", worker.ask("x").message)


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


class Streams(unittest.TestCase):
    TEXT = """
        import os, time
        def model_fn(d): return d
        def transform_fn(model, body, content_type, accept, context):
            kind = body.decode()
            if kind == "iterator": return iter(["a", "b"])
            if kind == "typed": return iter([b"x"]), "text/event-stream"
            return parts(kind, context, model)
        def parts(kind, context, model):
            if kind == "early": raise ValueError("early")
            if kind == "status": context.set_response_status(202)
            if kind == "none": return
            yield "one "
            if kind == "late": raise ValueError("late")
            yield b""
            yield {"n": 2}
            if kind == "big": yield bytes(5 << 19)
            try:
                while kind == "endless": yield "more"
            finally:
                print("closed", kind)
    """

    def setUp(self):
        self.worker = Worker(script(self.TEXT))
        self.addCleanup(self.worker.__exit__)

    def test_chunks_come_as_they_are_yielded(self):
        reply = self.worker.ask("two", accept="text/plain", stream=True)
        self.assertEqual((reply.kind, reply.status, reply.type, reply.body), (BEGIN, 200, "text/plain", b""))
        chunks, last = self.worker.rest()
        self.assertEqual((chunks, last.kind, last.id), ([b"one ", b'{"n": 2}\n'], END, 7))

    def test_a_client_that_takes_no_stream_gets_the_same_frames(self):
        self.assertEqual(self.worker.ask("iterator").kind, BEGIN)
        self.assertEqual(self.worker.rest()[0], [b"a", b"b"])

    def test_type_status_and_emptiness(self):
        self.assertEqual(self.worker.ask("typed").type, "text/event-stream")
        self.worker.rest()
        self.assertEqual(self.worker.ask("status").status, 202)
        self.worker.rest()
        self.assertEqual(self.worker.ask("none").kind, BEGIN)
        self.assertEqual(self.worker.rest()[1].kind, END)

    def test_large_yields_are_split(self):
        self.worker.ask("big")
        sizes = [len(chunk) for chunk in self.worker.rest()[0]]
        self.assertEqual(sizes[2:], [1 << 20, 1 << 20, 1 << 19])

    def test_failures_before_and_after_the_beginning(self):
        reply = self.worker.ask("early")
        self.assertEqual((reply.kind, reply.status), (ERROR, 500))
        self.assertEqual(self.worker.ask("late").kind, BEGIN)
        chunks, last = self.worker.rest()
        self.assertEqual((chunks, last.kind), ([b"one "], ERROR))
        self.assertIn("ValueError: late (inference.py", last.message)

    def test_a_client_that_left_ends_the_generator_and_calls_behind_it_run(self):
        self.worker.send(invoke(1, "endless"))
        self.assertEqual([self.worker.read().kind for _ in range(4)], [BEGIN, CHUNK, CHUNK, CHUNK])
        frames = (invoke(2, "iterator"), cancel(99), invoke(3, b"x" * (1 << 19)), cancel(1))
        # Beside reading, as the server does: neither side takes anything while both only send.
        sender = threading.Thread(target=self.worker.send, args=frames)
        sender.start()
        last = self.worker.rest()[1]
        sender.join()
        self.assertEqual((last.kind, last.id), (END, 1))
        self.assertIn("closed endless", self.worker.output())
        self.assertEqual((self.worker.read().id, len(self.worker.rest()[0])), (2, 2))
        self.assertEqual(self.worker.read().id, 3)
        self.worker.rest()

    def test_default_output_passes_generators_on(self):
        text = """
            def model_fn(d): pass
            def predict_fn(data, model): return ((str(n) if data.get("text") else {"n": n}) for n in range(2))
        """
        with Worker(script(text)) as worker:
            self.assertEqual(worker.ask("{}", "application/json").type, "application/jsonlines")
            self.assertEqual(worker.rest()[0], [b'{"n": 0}\n', b'{"n": 1}\n'])
            self.assertEqual(worker.ask('{"text": 1}', "application/json").type, "text/plain; charset=utf-8")
            self.assertEqual(worker.rest()[0], [b"0", b"1"])


def have(*names):
    for name in names:
        try:
            __import__(name)
        except ImportError:
            return unittest.skip("needs " + name)
    return lambda test: test


PREDICT = """
    def model_fn(model_dir): return None
    def predict_fn(data, model): return [type(data).__name__, data]
"""
SAME = """
    def model_fn(model_dir): return None
    def predict_fn(data, model): return data
"""


class PlainDefaults(unittest.TestCase):
    def test_json_objects_stay_and_errors_have_their_status(self):
        with Worker(script(PREDICT)) as worker:
            self.assertEqual(worker.hello.said["defaults"], ["input_fn", "output_fn"])
            self.assertEqual(worker.ask('{"a": 1}', "application/json").json(), ["dict", {"a": 1}])
            self.assertEqual(worker.ask('"x"', "application/vnd.x+json;v=1").json(), ["str", "x"])
            self.assertEqual(worker.ask("hi", "text/plain").json(), ["str", "hi"])
            self.assertEqual(worker.ask('{"a": 1}', "application/json").body, b'["dict", {"a": 1}]')
            for body, kind, accept, status in (
                    ("{", "application/json", "", 400), ("[" * 100000, "application/json", "", 400),
                    ("", "application/json", "", 400), ("", "text/csv", "", 400),
                    ("x", "image/png", "", 415), ("x", "", "", 415), ("{}", "application/json", "image/png", 406)):
                reply = worker.ask(body, kind, accept)
                self.assertEqual((reply.kind, reply.status), (ERROR, status), (body[:9], kind, accept))
            self.assertIn("content type 'image/png' is not supported", worker.ask("x", "image/png").message)

    def test_the_first_supported_type_of_accept_wins(self):
        with Worker(script(SAME)) as worker:
            for accept, kind in (("image/png, text/csv", "text/csv"), ("text/*", "text/csv"), ("*/*", "application/json"),
                                 ("image/png, */*;q=0.1", "application/json"), ("TEXT/CSV;q=1", "text/csv")):
                self.assertEqual(worker.ask("[1, 2]", "application/json", accept).type, kind, accept)
            self.assertEqual(worker.ask("[[1, 2], [3, 4]]", "application/json", "text/csv").body, b"1,2\n3,4\n")
            self.assertEqual(worker.ask("[1, 2.5]", "application/json", "text/csv").body[-4:], b"2.5\n")
            self.assertEqual(worker.ask('{"a": 1}', "application/json", "text/csv").status, 406)
            self.assertEqual(worker.ask('{"a": 1}', "application/json", "text/csv, application/json").json(), {"a": 1})
            self.assertEqual(worker.ask('{"a": 1}', "application/json", "text/plain").body, b'{"a": 1}')

    def test_without_numpy_lists_stay_lists(self):
        hidden = {"code/numpy.py": "raise ImportError('hidden')\n"}
        with Worker(script(PREDICT, **hidden)) as worker:
            self.assertEqual(worker.ask("[1, 2]", "application/json").json(), ["list", [1, 2]])
            self.assertEqual(worker.ask("1,2.5\nx,3\n", "text/csv").json(), ["list", [[1, 2.5], ["x", 3]]])
            self.assertEqual(worker.ask("1,2", "text/csv").json(), ["list", [1, 2]])
            self.assertEqual(worker.ask("x", "application/x-npy").status, 415)
        with Worker(script(SAME, **hidden)) as worker:
            self.assertEqual(worker.ask("[[1, 2], [3, 4]]", "application/json", "text/csv").body, b"1,2\n3,4\n")
            self.assertEqual(worker.ask("[1]", "application/json", "application/x-npy").status, 406)

    @have("numpy")
    def test_arrays(self):
        import numpy
        with Worker(script(PREDICT)) as worker:
            self.assertEqual(worker.ask("[[1, 2]]", "application/json").json(), ["ndarray", [[1, 2]]])
            self.assertEqual(worker.ask("[[1], [1, 2]]", "application/json").json(), ["list", [[1], [1, 2]]])
            self.assertEqual(worker.ask("5,3.5\n", "text/csv").json(), ["ndarray", [5.0, 3.5]])
            self.assertEqual(worker.ask("1,2\n3,4\n", "text/csv").json(), ["ndarray", [[1, 2], [3, 4]]])
            self.assertEqual(worker.ask(npy([[1.5]]), "application/x-npy").json(), ["ndarray", [[1.5]]])
            self.assertEqual(worker.ask(b"junk", "application/x-npy").status, 400)
            pickled = io.BytesIO()
            numpy.save(pickled, numpy.array([{}]), allow_pickle=True)
            self.assertEqual(worker.ask(pickled.getvalue(), "application/x-npy").status, 400)
        with Worker(script(SAME)) as worker:
            reply = worker.ask(npy([[1.5, 2]], "float32"), "application/x-npy", "application/x-npy")
            self.assertEqual(numpy.load(io.BytesIO(reply.body)).tolist(), [[1.5, 2.0]])
            self.assertEqual(worker.ask(npy([0.1, 2], "float32"), "application/x-npy", "text/csv").body, b"0.1\n2.0\n")

    @have("scipy.sparse")
    def test_sparse_matrices(self):
        import scipy.sparse
        out = io.BytesIO()
        scipy.sparse.save_npz(out, scipy.sparse.csr_matrix([[0, 2], [3, 0]]))
        text = SAME.replace("return data", "return data.toarray()")
        with Worker(script(text)) as worker:
            self.assertEqual(worker.ask(out.getvalue(), "application/x-npz").json(), [[0, 2], [3, 0]])
            self.assertEqual(worker.ask(b"junk", "application/x-npz").status, 400)


def npy(values, kind=None):
    import numpy
    out = io.BytesIO()
    numpy.save(out, numpy.array(values, dtype=kind))
    return out.getvalue()


class HuggingfaceDefaults(unittest.TestCase):
    TEXT = """
        def model_fn(model_dir):
            return lambda inputs, **parameters: [{"inputs": inputs, "parameters": parameters, "e": "\u00e9"}]
    """

    def test_inputs_and_parameters(self):
        with Worker(script(self.TEXT, **{"config.json": "{}"})) as worker:
            self.assertEqual(worker.hello.said["framework"], "huggingface")
            reply = worker.ask('{"inputs": [1, 2], "parameters": {"a": 1}}', "application/json")
            self.assertEqual(reply.body.decode(), '[{"inputs":[1,2],"parameters":{"a":1},"e":"\u00e9"}]')
            self.assertEqual(worker.ask("inputs\nx\ny\n", "text/csv").json()[0]["inputs"], ["x", "y"])
            self.assertEqual(worker.ask("1,2\n", "text/csv").status, 400)
            self.assertEqual(worker.ask('{"inputs": NaN}', "application/json").status, 500)
            self.assertEqual(worker.ask('{"inputs": 1}', "application/json", "text/csv").body, "inputs,parameters,e\r\n1,{},\u00e9\r\n".encode())

    @have("PIL")
    def test_pictures(self):
        from PIL import Image
        png = io.BytesIO()
        Image.new("RGB", (2, 3), (9, 8, 7)).save(png, format="PNG")
        text = "def model_fn(d): return lambda image: image\n"
        with Worker(script(text, **{"model_index.json": "{}"})) as worker:
            reply = worker.ask(png.getvalue(), "image/png", "image/png")
            self.assertEqual((reply.type, Image.open(io.BytesIO(reply.body)).size), ("image/png", (2, 3)))
            self.assertTrue(worker.ask(png.getvalue(), "image/png").json().startswith("iVBOR"))
            self.assertEqual(worker.ask(b"junk", "image/png").status, 400)


@have("sklearn", "joblib")
class SklearnDefaults(unittest.TestCase):
    def test_model_without_a_script(self):
        import joblib
        from sklearn.linear_model import LinearRegression
        model, saved = LinearRegression().fit([[0, 0], [1, 1], [2, 3]], [0, 1, 2.5]), io.BytesIO()
        joblib.dump(model, saved)
        wanted = model.predict([[1, 2]])[0]
        with Worker({"model.joblib": saved.getvalue()}) as worker:
            self.assertEqual(worker.hello.said["framework"], "sklearn", worker.hello.__dict__)
            for body, kind in (("[[1, 2]]", "application/json"), ("[1, 2]", "application/json"), ("1,2.0", "text/csv"),
                               (npy([1, 2]), "application/x-npy")):
                self.assertAlmostEqual(worker.ask(body, kind).json()[0], wanted, 5)
            for body, kind in (('{"a": 1}', "application/json"), ("[[1], [1, 2]]", "application/json"), ("a,b", "text/csv"),
                               ('["x"]', "application/json")):
                self.assertEqual(worker.ask(body, kind).status, 400, body)
            self.assertEqual(worker.ask("[[1, 2, 3]]", "application/json").status, 500)
            self.assertEqual(worker.ask("x", "text/plain").status, 415)


@have("xgboost", "scipy")
class XgboostDefaults(unittest.TestCase):
    def test_the_built_in_algorithm_and_a_script(self):
        import numpy
        import xgboost
        rows = numpy.arange(40, dtype=float).reshape(20, 2)
        model = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, label=rows.sum(1)), 5)
        wanted = model.predict(xgboost.DMatrix(rows[:2])).tolist()
        saved = bytes(model.save_raw("ubj"))
        files = {"xgboost-model": saved}
        text = "def output_fn(prediction, accept): return repr((prediction.tolist(), accept))\n"
        single = Worker(files, environment={"SAGEMAKER_MULTI_MODEL": "false"})
        scripted = Worker(script(text, **files))
        with Worker(files) as worker:
            self.assertEqual(worker.hello.said["framework"], "xgboost", worker.hello.__dict__)
            reply = worker.ask("0,1\n2,3\n", "text/csv")
            self.assertEqual((reply.type, reply.body.decode()), ("text/csv", ",".join(map(str, wanted))))
            for body, kind in (("0,1\n2,3", "text/csv; charset=utf-8"), ("9 0:0 1:1\n9 0:2 1:3\n", "text/libsvm"),
                               ("1:0 2:1\n1:2 2:3", "text/x-libsvm"), ("0;1\n2;3", "csv")):
                self.assertEqual(worker.ask(body, kind, "application/json").json(), wanted, kind)
            self.assertEqual(worker.ask("0,1", "text/csv", "application/jsonlines").json(), {"score": wanted[0]})
            for body, kind, accept, status in (("{}", "application/json", "", 415), ("a,b", "text/csv", "", 400), ("", "text/csv", "", 400),
                                               ("0,1,2,3", "text/csv", "", 400), ("0,1", "text/csv", "image/png", 406)):
                self.assertEqual(worker.ask(body, kind, accept).status, status, (body, kind))
        with single as worker:
            self.assertEqual(worker.ask("0,1\n2,3\n", "text/csv").body.count(b"\n"), 2)
            self.assertEqual(worker.ask("0,1", "text/csv", "application/json").json(), {"predictions": [{"score": wanted[0]}]})
        with scripted as worker:
            self.assertEqual(worker.ask("0,1", "text/csv").body.decode(), repr((wanted[:1], "application/json")))


@have("torch")
class PytorchDefaults(unittest.TestCase):
    def test_torchscript_without_a_script(self):
        import torch
        saved = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Softplus()), saved)
        wanted = torch.nn.Softplus()(torch.tensor([[1.0, 2.0]])).tolist()
        broken = Worker({"net.pth": b"PK junk"})
        with Worker({"net.pth": saved.getvalue()}) as worker:
            self.assertEqual(worker.hello.said["framework"], "pytorch", worker.hello.__dict__)
            self.assertEqual(worker.ask("[[1, 2]]", "application/json").json(), wanted)
            self.assertEqual(worker.ask("1,2.0", "text/csv").json(), wanted[0])
            self.assertEqual(worker.ask(npy([[1, 2]], "float32"), "application/x-npy").json(), wanted)
            self.assertEqual(worker.ask('{"a": 1}', "application/json").status, 400)
        with broken as worker:
            self.assertIn("TorchScript", worker.hello.message)


if __name__ == "__main__":
    unittest.main()
