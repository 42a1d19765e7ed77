"""The defaults that need no framework: JSON, CSV, arrays, and the Hugging Face shapes.

Run by test_runtime.py, or alone.
"""
import io
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import ERROR, Worker, have, npy, script

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


if __name__ == "__main__":
    unittest.main()
