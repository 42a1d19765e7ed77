"""What stands in for the functions that a script does not define.

`of` chooses a framework's set. Here are the plain ones, which every framework's build on:
bodies to arrays, predictions to JSON, CSV and NPY. The others are in roundhouse_frameworks.

A default reads (body, route), predicts (data, model) and writes (prediction, route); what a
client got wrong is Refused with 400, 406 or 415.
"""
import io
import json
import sys

from roundhouse_errors import Refused
from roundhouse_route import CSV, JSON, TEXT

NPY, NPZ, JSONLINES = "application/x-npy", "application/x-npz", "application/jsonlines"


def of(framework, scripted):
    """Returns the defaults of a framework, `scripted` when a script is there to fill in for."""
    if framework == "plain":
        return Plain()
    if framework == "huggingface":
        from roundhouse_huggingface import Huggingface
        return Huggingface()
    import roundhouse_frameworks as frameworks
    if framework == "xgboost":
        return frameworks.XgboostScript() if scripted else frameworks.Xgboost()
    if framework == "sklearn":
        return frameworks.Sklearn()
    if framework == "pytorch":
        return frameworks.Pytorch()
    raise Refused(500, "framework {!a} is none of auto, plain, sklearn, xgboost, pytorch, huggingface".format(
        framework))


class Plain:
    """Decodes and encodes; loads and predicts nothing."""

    reads = {JSON: "json", CSV: "csv", TEXT: "text", NPY: "npy", NPZ: "npz"}
    writes = {JSON: "json", CSV: "csv", NPY: "npy", TEXT: "text"}

    def input_fn(self, body, route):
        """Decodes a body by its content type."""
        base = JSON if route.base.endswith("+json") else route.base
        kind = self.reads.get(base)
        if kind is None:
            told = "content type {!a} is not supported".format(route.content_type)
            raise Refused(415, "{} by the default input_fn; it reads {}".format(
                told if route.content_type else "a request without a Content-Type is not understood",
                ", ".join(self.reads)))
        try:
            return getattr(self, "read_" + kind)(body)
        except (ValueError, TypeError, KeyError, IndexError, EOFError, OSError, RecursionError) as error:
            if isinstance(error, Refused):
                raise
            raise Refused(400, "the body is not {} as it should be: {}: {}".format(
                route.base, type(error).__name__, error)) from None

    def output_fn(self, prediction, route):
        """Encodes a prediction as the first type of Accept that is supported."""
        if hasattr(prediction, "__next__"):
            return streamed(prediction, route)
        if isinstance(prediction, (bytes, bytearray)):
            return prediction, route.answer_type() if route.explicit else "application/octet-stream"
        failure = None
        for kind in route.accepts:
            kind = self.match(kind)
            if kind is None:
                continue
            try:
                return getattr(self, "write_" + self.writes[kind])(prediction), kind
            except Refused as error:
                failure = failure or error
        raise failure or Refused(406, "accept {!a} is not supported by the default output_fn; it writes {}".format(
            route.given, ", ".join(self.writes)))

    def match(self, kind):
        """Returns the type of `writes` that an entry of Accept names, wildcards included."""
        if kind in self.writes:
            return kind
        if kind.endswith("/*"):
            return next((known for known in self.writes if known.startswith(kind[:-1])), None)
        return JSON if kind.endswith("+json") and JSON in self.writes else None

    def read_json(self, body):
        value = json.loads(body)
        return array_or_list(value) if isinstance(value, list) else value

    def read_csv(self, body):
        return csv_array(body)

    def read_text(self, body):
        return str(body)

    def read_npy(self, body):
        # Never pickles: they would let any client run code here.
        return numpy("reading application/x-npy").load(io.BytesIO(body), allow_pickle=False)

    def read_npz(self, body):
        try:
            from scipy.sparse import load_npz
        except ImportError:
            raise Refused(415, "reading application/x-npz needs scipy, which this handler does not have") from None
        return load_npz(io.BytesIO(body))

    def write_json(self, prediction):
        return json_text(prediction)

    def write_csv(self, prediction):
        return csv_text(prediction)

    def write_npy(self, prediction):
        buffer = io.BytesIO()
        try:
            numpy("writing application/x-npy", 406).save(buffer, prediction, allow_pickle=False)
        except ValueError as error:
            raise Refused(406, "the prediction cannot be written as application/x-npy: {}".format(error)) from None
        return buffer.getvalue()

    def write_text(self, prediction):
        return prediction if isinstance(prediction, str) else json_text(prediction)


def streamed(parts, route):
    """Returns (iterator, content type): what is named, else what the first part looks like."""
    if route.explicit:
        return parts, None
    first = next(parts, None)
    kind = "text/plain; charset=utf-8" if first is None or isinstance(first, str) else JSONLINES
    if isinstance(first, (bytes, bytearray, memoryview)):
        kind = "application/octet-stream"
    return resumed(first, parts), kind


def resumed(first, rest):
    yield first
    yield from rest


def numpy(purpose=None, status=415):
    """Returns numpy; None, or Refused when a purpose is given, where it is not installed."""
    try:
        import numpy as found
        return found
    except ImportError:
        if purpose is None:
            return None
        raise Refused(status, "{} needs numpy, which this handler does not have".format(purpose)) from None


def array_or_list(value):
    """Returns a list as an array where numpy is installed and the list is regular."""
    found = numpy()
    if found is None:
        return value
    try:
        return found.array(value)
    except ValueError:  # rows of different lengths
        return value


def csv_array(text):
    """Returns rows of cells as numpy's genfromtxt does; mixed numbers become floats."""
    if isinstance(text, (bytes, bytearray)):
        text = text.decode("utf-8")
    if not text.strip():
        raise ValueError("it is empty")
    found = numpy()
    if found is None:
        return csv_lists(text)
    array = found.genfromtxt(io.StringIO(text), dtype=None, delimiter=",", encoding=None)
    fields = array.dtype.names or ()
    # One row of 5,3.5 would else be one record, which is no use to any model.
    if fields and all(array.dtype[name].kind in "iuf" for name in fields):
        array = found.genfromtxt(io.StringIO(text), dtype=float, delimiter=",")
    return array


def csv_lists(text):
    """The same without numpy: one row, or one column, is a list; else a list of lists."""
    def cell(value):
        for make in (int, float):
            try:
                return make(value)
            except ValueError:
                pass
        return value.strip()

    rows = [[cell(value) for value in line.split(",")] for line in text.splitlines() if line.strip()]
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows have different numbers of cells")
    if len(rows) == 1:
        return rows[0]
    return [row[0] for row in rows] if len(rows[0]) == 1 else rows


def json_text(value, **options):
    """Returns JSON; whatever has `tolist` (arrays, their numbers) goes as its list."""
    return json.dumps(value, default=listed, **options)


def listed(value):
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError("{} cannot be written as JSON".format(type(value).__name__))


def csv_text(prediction):
    """Returns one row per line, as numpy's savetxt with %s writes them."""
    if isinstance(prediction, (dict, set, str)) or prediction is None:
        raise Refused(406, "a prediction of type {} cannot be written as text/csv".format(type(prediction).__name__))
    found = numpy() if "numpy" in sys.modules or isinstance(prediction, (list, tuple)) else None
    if found is not None:
        try:
            prediction = found.atleast_1d(found.asarray(prediction))
        except ValueError:
            raise Refused(406, "rows of different lengths cannot be written as text/csv") from None
        if prediction.ndim > 2:
            raise Refused(406, "{} dimensions cannot be written as text/csv".format(prediction.ndim))
    elif not isinstance(prediction, (list, tuple)):
        prediction = [prediction]
    rows = []
    for row in prediction:
        cells = row if hasattr(row, "__len__") and not isinstance(row, (str, bytes, dict)) else (row,)
        rows.append(",".join(["%s" % (cell,) for cell in cells]))
    return "\n".join(rows) + "\n" if rows else ""
