"""What a call's two headers mean to a handler, and small things that every file needs."""

JSON, CSV, TEXT = "application/json", "text/csv", "text/plain"


class Text(str):
    """A decoded body of a type that other servers of such handlers pass on as bytes.

    Scripts written for those call `.decode()`, so that it works here, too.
    """

    def decode(self, encoding="utf-8", errors="strict"):
        return str(self)


class Route:
    """One pair of Content-Type and Accept, as handlers see it.

    `accept` is what a handler's own function is given, `accepts` are the bare media types
    in the client's order, `explicit` says whether the client named any.
    """

    __slots__ = ("content_type", "base", "accept", "accepts", "explicit", "given", "read")

    def __init__(self, content_type, accept, default):
        self.content_type = content_type or None
        self.given = accept
        self.base = content_type.partition(";")[0].strip().lower()
        entries = [entry.strip() for entry in accept.split(",")]
        entries = [entry for entry in entries if entry]
        bare = [entry.partition(";")[0].strip().lower() for entry in entries]
        self.explicit = bool(bare) and bare[0] != "*/*"
        self.accepts = [default if kind == "*/*" else kind for kind in bare] or [default]
        if not self.explicit:
            self.accept = default
        elif len(entries) == 1:
            self.accept = entries[0]
        else:
            self.accept = without_weight(entries[0])
        self.read = reader(content_type, self.base)

    def answer_type(self):
        """The content type of an answer for which the handler names none."""
        kind = self.accept if self.explicit else self.accepts[0]
        return "application/octet-stream" if "*" in kind else kind


def without_weight(entry):
    parts = [part.strip() for part in entry.split(";")]
    return ";".join(part for part in parts if not part.lower().startswith("q="))


def reader(content_type, base):
    """Returns what makes a body of this type: bytes, or text that raises Refused (400)."""
    if content_type in (JSON, CSV):
        make = None
    elif base in (JSON, CSV, TEXT) or base.endswith("+json"):
        make = Text
    else:
        return bytes

    def read(view):
        try:
            text = str(view, "utf-8")
        except UnicodeDecodeError as error:
            raise refused(400, "the body is not UTF-8: {}".format(error)) from None
        return make(text) if make else text
    return read


def refused(status, message):
    from roundhouse_errors import Refused
    return Refused(status, message)


def parsed(text):
    """Reads a JSON object with the interpreter's own scanner: `json` costs 6 ms to import."""
    try:
        from _json import make_scanner

        class Rules:
            strict, memo = True, {}
            object_hook = object_pairs_hook = parse_constant = None
            parse_float, parse_int = float, int
        return make_scanner(Rules)(text, 0)[0]
    except Exception:
        import json
        return json.loads(text)
