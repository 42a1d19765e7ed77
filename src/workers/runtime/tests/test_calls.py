"""What handlers are called with, what they may return, and streams.

Run by test_runtime.py, or alone.
"""
import os
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import ANSWER, BEGIN, BYTES, CHUNK, END, ERROR, READY, Worker, cancel, invoke, script


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


if __name__ == "__main__":
    unittest.main()
