"""Finds a handler's functions and joins them, once, into `Handler.run`.

What the script does not define comes from the defaults of the framework that the files
name. `load` is the entry; it raises whatever the script's own code raises.
"""
import os
import sys

from roundhouse_route import CSV, JSON, Route, parsed, refused

COUNTS = {
    "pre_model_fn": 1,
    "model_fn": 1,
    "model_warmup_fn": 2,
    "input_fn": 2,
    "predict_fn": 2,
    "output_fn": 2,
    "transform_fn": 4,
}

# How many modules were there before this process, of one that was forked.
inherited = 0
# Packages that are told of one handler.
PACKAGES_MAX = 512

# Where the script's own files are; failures name lines in there.
code_dir = None


def load(argument):
    """Returns the Handler that the settings (JSON text) describe, its model loaded."""
    settings = parsed(argument)
    model_dir = os.path.abspath(settings["model_dir"])
    script = find_script(model_dir, settings.get("code_dir"))
    framework = settings.get("framework") or "auto"
    if framework == "auto":
        framework = detect(model_dir, script)
    module = imported(script) if script else None
    functions = {name: getattr(module, name, None) for name in COUNTS} if module else {}
    functions = {name: function for name, function in functions.items() if function is not None}
    return Handler(settings, model_dir, script, framework, functions)


def find_script(model_dir, folder):
    """Returns the path of the handler's script; None when the files have none."""
    named = os.environ.get("SAGEMAKER_PROGRAM") or "inference.py"
    if named.startswith("/"):
        named = os.path.basename(named)
    for base in dict.fromkeys((os.path.abspath(folder or model_dir), model_dir)):
        for name in dict.fromkeys((named, "inference.py")):
            path = os.path.join(base, name)
            if os.path.isfile(path):
                return path
    return None


def imported(script):
    """Imports the script, its folder first on the path, this runtime's own folder last."""
    global code_dir
    code_dir, name = os.path.split(script)
    runtime = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder != runtime] + [runtime]
    folders = [code_dir, os.path.join(code_dir, "lib")]
    sys.path[:0] = [folder for folder in folders if os.path.isdir(folder)]
    sys.dont_write_bytecode = True
    return __import__(os.path.splitext(name)[0])


def detect(model_dir, script):
    """Returns the framework that the files at the artefact's root name."""
    names = os.listdir(model_dir)
    if any(name.startswith("xgboost-model") for name in names):
        return "xgboost"
    if "model.joblib" in names or "model.pkl" in names:
        return "sklearn"
    torch = [name for name in names if name.endswith((".pt", ".pth"))]
    if len(torch) == 1 or "model.pt" in torch:
        return "pytorch"
    if script and ("config.json" in names or "model_index.json" in names):
        return "huggingface"
    return "plain"


def packages():
    """Returns the packages that were imported here, and those right below them, in their order."""
    names = []
    # To look at a module is to copy its page, in a fork.
    try:
        for name in reversed(sys.modules):
            if len(names) >= len(sys.modules) - inherited:
                break
            names.append(name)
    except RuntimeError:  # another thread imports meanwhile
        return []
    names = [name for name in reversed(names)
             if hasattr(sys.modules.get(name), "__path__") and name.count(".") < 2 and name.isascii()
             and all(part.isidentifier() and part[0] != "_" for part in name.split("."))]
    return names[:PACKAGES_MAX]


def takes_context(name, function):
    """Says whether a function has room for one argument more than its usual ones.

    Raises TypeError when it cannot be called with either number of arguments.
    """
    count = COUNTS[name]
    code = getattr(function, "__code__", None)
    if type(function) is type(load) and not hasattr(function, "__wrapped__"):
        most = code.co_argcount
        least = most - len(function.__defaults__ or ())
        star, names = code.co_flags & 4, code.co_varnames[:most]
    else:  # a class, a bound method, a decorated function
        import inspect
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # written in C
            return False
        plain = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        most, names = len(plain), [one.name for one in plain]
        least = sum(one.default is one.empty for one in plain)
        star = any(one.kind == one.VAR_POSITIONAL for one in parameters)
    if least > count + 1 or (most < count and not star):
        raise TypeError("{} takes {} arguments; it is called with {}, or with {} when it takes a context".format(
            name, most, count, count + 1))
    return most > count and (most == count + 1 or least == count + 1 or names[count] == "context")


class Handler:
    """A loaded handler. `run(body, route, context)` is one whole call of it.

    Nothing in it changes after loading but `kinds`, a memory of encoded content types.
    """

    def __init__(self, settings, model_dir, script, framework, functions):
        self.script = os.path.basename(script) if script else None
        self.name, self.framework = settings.get("name"), framework
        self.max_response = settings.get("max_response") or (1 << 30) - (1 << 18)
        self.functions, self.used = functions, []
        self.defaults, self.kinds = None, {}
        self.properties = {
            "model_dir": model_dir, "gpu_id": None, "batch_size": 1,
            "server_name": "roundhouse", "server_version": "1",
        }
        self.check()
        self.default_accept = os.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT") or (
            CSV if framework == "xgboost" and not script else JSON)
        self.contextual = {name for name in functions if takes_context(name, functions[name])}
        self.wants_context = not self.contextual.isdisjoint(
            ("input_fn", "predict_fn", "output_fn", "transform_fn"))
        self.run = self.joined(self.loaded(model_dir))

    def check(self):
        """Raises Refused for functions that cannot be used together, or that are missing."""
        three = [name for name in ("input_fn", "predict_fn", "output_fn") if name in self.functions]
        if "transform_fn" in self.functions and three:
            raise refused(500, "{} defines transform_fn together with {}, whose work it does".format(
                self.script, ", ".join(three)))
        if self.script is None and self.framework in ("plain", "huggingface"):
            raise refused(500, "there is no code/inference.py, and the files name no framework that can do without")

    def default(self, name):
        """Returns the framework's function; raises Refused when it has none."""
        if self.defaults is None:
            from roundhouse_defaults import of
            self.defaults = of(self.framework, self.script is not None)
        found = getattr(self.defaults, name, None)
        if found is None:
            named = ("the files name no framework" if self.framework == "plain"
                     else "{} has no default for it".format(self.framework))
            raise refused(500, "{} defines no {}, and {}".format(self.script, name, named))
        self.used.append(name)
        return found

    def loaded(self, model_dir):
        """Runs the functions that load the model, and returns it."""
        # Before the model, which may take minutes: what is missing is known at once.
        steps = () if "transform_fn" in self.functions else ("input_fn", "predict_fn", "output_fn")
        self.steps = [self.functions.get(name) or self.default(name) for name in steps]
        make = self.functions.get("model_fn") or self.default("model_fn")
        context = self.context(0, 0, Route("", "", self.default_accept), b"") if self.contextual else None

        def call(name, function, *arguments):
            return function(*arguments, context) if name in self.contextual else function(*arguments)

        if "pre_model_fn" in self.functions:
            call("pre_model_fn", self.functions["pre_model_fn"], model_dir)
        model = call("model_fn", make, model_dir)
        if "model_warmup_fn" in self.functions:
            call("model_warmup_fn", self.functions["model_warmup_fn"], model_dir, model)
        return model

    def joined(self, model):
        """Returns the whole call as one function; which parts take what is decided here."""
        own, contextual = self.functions, self.contextual
        transform = own.get("transform_fn")
        if transform and "transform_fn" in contextual:
            return lambda body, route, context: transform(model, body, route.content_type, route.accept, context)
        if transform:
            return lambda body, route, _: transform(model, body, route.content_type, route.accept)
        read, predict, write = self.steps
        if own.keys() >= {"input_fn", "predict_fn", "output_fn"} and not self.wants_context:
            return lambda body, route, _: write(predict(read(body, route.content_type), model), route.accept)
        parts = [self.part(name, step) for name, step in zip(("input_fn", "predict_fn", "output_fn"), self.steps)]
        read, predict, write = parts

        def run(body, route, context):
            data = read(body, route, route.content_type, context)
            return write(predict(data, model, model, context), route, route.accept, context)
        return run

    def part(self, name, step):
        """Gives defaults the route, and a script's own functions what they are written for."""
        if name not in self.functions:
            return lambda value, route, _, context: step(value, route)
        if name in self.contextual:
            return lambda value, _, second, context: step(value, second, context)
        return lambda value, _, second, context: step(value, second)

    def route(self, content_type, accept):
        """Reads a call's two headers (bytes, empty when absent)."""
        return Route(content_type.decode("utf-8", "replace"), accept.decode("utf-8", "replace"), self.default_accept)

    def context(self, number, flags, route, meta):
        from roundhouse_context import Context
        return Context(self.name, self.properties, number, bool(flags & 1), route, meta)

    def summary(self):
        """Returns the READY frame's JSON; all names in it are this file's own."""
        def listed(names):
            return "[" + ", ".join('"{}"'.format(name) for name in names) + "]"
        text = '{{"python": "{}", "framework": "{}", "functions": {}, "defaults": {}, "imported": {}}}'.format(
            "{}.{}.{}".format(*sys.version_info), self.framework, listed(self.functions), listed(self.used),
            listed(packages()))
        return text.encode()

    def pair(self, result):
        """Takes (body, content type) apart."""
        if len(result) == 2 and (result[1] is None or isinstance(result[1], str)):
            return result
        raise refused(500, "the handler returned a tuple that is not (body, content type)")

    def unwrap(self, response):
        """Takes a web framework's response object apart, as older scripts return them."""
        body = response.get_data() if hasattr(response, "get_data") else response.response
        return body, getattr(response, "content_type", None) or response.mimetype

    def body(self, result):
        """Returns what the handler returned as bytes."""
        if isinstance(result, str):
            return result.encode()
        if isinstance(result, (bytes, bytearray)):
            return result
        if isinstance(result, memoryview):
            return result.tobytes()
        if result is None:
            return b""
        from roundhouse_defaults import json_text
        return json_text(result).encode()

    def chunk(self, value):
        """Returns one yielded value as bytes: texts as they are, others as a line of JSON."""
        if isinstance(value, (str, bytes, bytearray, memoryview)) or value is None:
            return self.body(value)
        return self.body(value) + b"\n"

    def envelope(self, content_type, route, context):
        """Returns status, content type and response headers as they go into a frame."""
        status, meta = 200, b""
        if context is not None:
            status, meta = context.status, context.response_meta()
            content_type = content_type or context.get_response_content_type(0)
        if content_type is None:
            content_type = route.answer_type()
        kind = self.kinds.get(content_type)
        if kind is None:
            if not content_type.isprintable() or len(content_type) > 1024:
                raise refused(500, "the handler's content type is not one line of printable text")
            if len(self.kinds) >= 256:
                self.kinds.clear()
            kind = self.kinds[content_type] = content_type.encode()
        return status, kind, meta

    def too_large(self, size):
        return refused(413, "the answer has {} bytes, the limit is {} bytes".format(size, self.max_response))
