"""The defaults of scikit-learn, XGBoost and PyTorch, over a socketpair as the server has it.

Run with an interpreter that has some of them; what is missing is skipped. Apart from
test_runtime.py because importing them takes seconds.
"""
import io
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import Worker, have, npy, script


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
        import pickle

        import numpy
        import xgboost
        rows = numpy.arange(40, dtype=float).reshape(20, 2)
        model = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, label=rows.sum(1)), 5)
        wanted = model.predict(xgboost.DMatrix(rows[:2])).tolist()
        saved = bytes(model.save_raw("ubj"))
        files = {"xgboost-model": saved}
        text = "def output_fn(prediction, accept): return repr((prediction.tolist(), accept))\n"
        single = Worker({"xgboost-model": bytes(model.save_raw("json"))}, environment={"SAGEMAKER_MULTI_MODEL": "false"})
        scripted = Worker(script(text, **{"xgboost-model": pickle.dumps(model)}))
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
