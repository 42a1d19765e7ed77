"""What frameworks' serving containers do where a script defines nothing.

Each class follows one container of Amazon's: which types it reads and writes, and which
shape the model is given. A framework is imported when its model is loaded, not before.
"""
import os
import pickle

from roundhouse_defaults import CSV, JSON, JSONLINES, NPY, NPZ, Plain, csv_array, csv_text, json_text, numpy
from roundhouse_errors import Refused

# Packages whose name is not that of what is imported.
PACKAGES = {"sklearn": "scikit-learn"}
LIBSVM = ("text/libsvm", "text/x-libsvm")


def needed(name, what):
    """Imports a framework; raises Refused that says what it is needed for."""
    try:
        module = __import__(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, and something of its own is missing
            raise
        raise Refused(500, "{} needs {}, which is not installed; write {} into requirements.txt".format(
            what, name, PACKAGES.get(name, name))) from None
    return module


def floats(array):
    """Returns numbers as f32. Raises ValueError for texts and ragged rows."""
    found = numpy("the framework", 500)
    array = found.asarray(array)
    if array.dtype.kind not in "biufc":
        array = array.astype(float)
    return array.astype(found.float32)


class Sklearn(Plain):
    """scikit-learn: JSON and CSV become a matrix of f32; the model's `predict` is called."""

    reads = {JSON: "json", CSV: "csv", NPY: "npy", NPZ: "npz"}
    writes = {JSON: "json", CSV: "csv", NPY: "npy"}

    def model_fn(self, model_dir):
        names = [name for name in ("model.joblib", "model.pkl") if os.path.isfile(os.path.join(model_dir, name))]
        if not names:
            raise Refused(500, "the default model_fn of sklearn loads model.joblib or model.pkl, and neither is there")
        path = os.path.join(model_dir, names[0])
        needed("sklearn", names[0])
        try:
            import joblib
        except ImportError:
            with open(path, "rb") as file:
                return pickle.load(file)
        return joblib.load(path)

    def read_json(self, body):
        return matrix(floats(super().read_json(body)))

    def read_csv(self, body):
        return matrix(floats(super().read_csv(body)))

    def read_npy(self, body):
        return matrix(super().read_npy(body))

    def predict_fn(self, data, model):
        return model.predict(data)


def matrix(array):
    """Returns one row as a matrix of one row."""
    return array.reshape(1, -1) if array.ndim == 1 else array


class Pytorch(Plain):
    """PyTorch: TorchScript, called without gradients on tensors, f32 from JSON and CSV."""

    reads = {JSON: "json", CSV: "csv", NPY: "npy"}
    writes = {JSON: "json", CSV: "csv", NPY: "npy"}

    def model_fn(self, model_dir):
        torch = needed("torch", "a .pt or .pth file")
        names = sorted(name for name in os.listdir(model_dir) if name.endswith((".pt", ".pth")))
        if "model.pt" in names:
            names = ["model.pt"]
        if len(names) != 1:
            raise Refused(500, "the default model_fn of pytorch loads model.pt, or the only .pt or .pth file; "
                               "there are {}".format(", ".join(names) or "none"))
        try:
            # Not the GPU, even where there is one: the server does not account for it here.
            return torch.jit.load(os.path.join(model_dir, names[0]), map_location="cpu").eval()
        except RuntimeError as error:
            raise Refused(500, "{} is not TorchScript; save it by torch.jit.save, or define model_fn: {}".format(
                names[0], first_line(error))) from error

    def read_json(self, body):
        return self.tensor(floats(super().read_json(body)))

    def read_csv(self, body):
        return self.tensor(floats(super().read_csv(body)))

    def read_npy(self, body):
        return self.tensor(super().read_npy(body))

    def tensor(self, array):
        import torch
        return torch.from_numpy(array)

    def predict_fn(self, data, model):
        import torch
        with torch.no_grad():
            return model(data)

    def output_fn(self, prediction, route):
        if hasattr(prediction, "detach"):
            prediction = prediction.detach().cpu().numpy().tolist()
        return super().output_fn(prediction, route)


class XgboostScript(Plain):
    """XGBoost with a script: CSV and LIBSVM become a DMatrix; answers as plain ones."""

    reads = {CSV: "csv", LIBSVM[0]: "libsvm", LIBSVM[1]: "libsvm"}
    writes = {JSON: "json", CSV: "csv", NPY: "npy"}

    def model_fn(self, model_dir):
        """Loads `xgboost-model`; several such files are an ensemble."""
        xgboost = needed("xgboost", "xgboost-model")
        names = sorted(name for name in os.listdir(model_dir) if name.startswith("xgboost-model"))
        if not names:
            raise Refused(500, "the default model_fn of xgboost loads xgboost-model, and it is not there")
        models = [booster(xgboost, os.path.join(model_dir, name)) for name in names]
        return models[0] if len(models) == 1 else Ensemble(models)

    def read_csv(self, body):
        return dmatrix(separated(body))

    def read_libsvm(self, body):
        return dmatrix(libsvm(body))

    def predict_fn(self, data, model):
        return model.predict(data, validate_features=False)


class Xgboost(XgboostScript):
    """XGBoost without a script, as the built-in algorithm answers.

    The forms are those of the multi-model container: CSV is one line, commas between rows,
    JSON a list. With SAGEMAKER_MULTI_MODEL=false they are the single-model container's: a
    line per row, and {"predictions": [{"score": ...}]}.
    """

    reads = dict(XgboostScript.reads, csv="csv", libsvm="libsvm")
    writes = {CSV: "csv", JSON: "json", JSONLINES: "jsonlines"}

    def __init__(self):
        self.single = os.environ.get("SAGEMAKER_MULTI_MODEL") == "false"
        self.batch = bool(os.environ.get("SAGEMAKER_BATCH"))

    def input_fn(self, body, route):
        if not body:
            raise Refused(400, "the body is empty")
        if route.content_type is None:  # as the container reads it
            return self.read_libsvm(body)
        return super().input_fn(body, route)

    def predict_fn(self, data, model):
        try:
            return super().predict_fn(data, model)
        except ValueError as error:  # what xgboost says to data that do not fit the model
            raise Refused(400, "the model cannot take this body: {}".format(first_line(error))) from error

    def write_csv(self, prediction):
        rows = [str(row) for row in prediction.tolist()]
        if self.batch:
            return "\n".join(rows) + "\n"
        return csv_text(prediction) if self.single else ",".join(rows)

    def write_json(self, prediction):
        if self.single:
            return json_text({"predictions": [{"score": row} for row in prediction.tolist()]})
        return json_text(prediction)

    def write_jsonlines(self, prediction):
        return "".join(json_text({"score": row}) + "\n" for row in prediction.tolist())


class Ensemble:
    """Several boosters whose predictions are averaged; votes where they are classes."""

    def __init__(self, models):
        import json
        self.models = models
        name = json.loads(models[0].save_config())["learner"]["objective"]["name"]
        self.votes = name in ("multi:softmax", "binary:hinge")

    def predict(self, data, **options):
        import numpy
        parts = numpy.asarray([model.predict(data, **options) for model in self.models])
        if not self.votes:
            return parts.mean(axis=0)
        counted = [numpy.unique(column, return_counts=True) for column in parts.T]
        return numpy.asarray([kinds[counts.argmax()] for kinds, counts in counted])


def booster(xgboost, path):
    """Loads one booster, pickled or in XGBoost's own format."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:1] == b"\x80":
        model = pickle.loads(data)
    else:
        model = xgboost.Booster()
        model.load_model(bytearray(data))  # which looks at the content; for a file its name would decide
    # One thread unless told otherwise: workers are what runs side by side.
    model.set_param({"nthread": int(os.environ.get("OMP_NUM_THREADS") or 1)})
    return model


def dmatrix(rows):
    import xgboost
    return xgboost.DMatrix(rows)


def separated(body):
    """Returns rows of numbers; an empty cell is a missing value."""
    text = (body if isinstance(body, str) else body.decode("utf-8")).strip()
    lines = text.splitlines()
    mark = next((mark for mark in ",;\t| " if lines and mark in lines[0]), ",")
    rows = [[float(cell) if cell.strip() else float("nan") for cell in line.split(mark)] for line in lines]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows have different numbers of cells" if rows else "it is empty")
    return numpy("the framework", 500).array(rows)


def libsvm(body):
    """Returns the rows of `label index:value ...` lines as a sparse matrix.

    Indices count from 1 unless a 0 occurs. What is absent is missing, not zero.
    """
    from scipy.sparse import csr_matrix
    text = (body if isinstance(body, str) else body.decode("utf-8")).strip()
    items = [(row, item) for row, line in enumerate(text.split("\n")) for item in line.split()]
    entries = [(row, item.split(":", 1)) for row, item in items if ":" in item]
    if not entries:
        raise ValueError("it has no index:value")
    columns = [int(index) for _, (index, _) in entries]
    least = min(columns)
    if least < 0 or max(columns) >= 1 << 31:
        raise ValueError("an index is out of range")
    values = [float(value) for _, (_, value) in entries]
    columns = [column - min(least, 1) for column in columns]
    return csr_matrix((values, ([row for row, _ in entries], columns)), shape=(text.count("\n") + 1, max(columns) + 1))


def first_line(error):
    text = str(error).strip()
    return next((line for line in text.splitlines() if line.strip()), "")[:500]
