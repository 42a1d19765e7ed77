"""How a failure is told to the server: a status, one line, and where it happened."""
import json
import os
import sys

MESSAGE_MAX = 2000
TRACEBACK_MAX = 8 * 1024
RUNTIME = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Refused(Exception):
    """What the runtime itself says to a call or to a handler; its text is the whole message."""

    def __init__(self, status_code, message):
        super().__init__(message)
        self.status_code = status_code


def describe(error):
    """Returns (status, JSON bytes) for any exception; may itself fail for lack of memory."""
    status = getattr(error, "status_code", None)
    if type(status) is bool or not isinstance(status, int) or not 400 <= status <= 599:
        status = 500
    said = {"message": one_line(error), "traceback": None}
    if not isinstance(error, Refused):
        said["traceback"] = traced(error)
    return int(status), json.dumps(said).encode()


def one_line(error):
    """Returns `Type: text (inference.py, line N)`, in one line of bounded length."""
    if isinstance(error, Refused):
        text = str(error)
    else:
        text = "{}: {}".format(type(error).__name__, said_by(error)).rstrip(": ")
        place = place_of(error)
        if place and not isinstance(error, SyntaxError):  # which says its own
            text = "{} ({})".format(clip(text), place)
    return clip(" ".join(text.split()))


def clip(text):
    return text if len(text) <= MESSAGE_MAX else text[:MESSAGE_MAX - 3] + "..."


def said_by(error):
    """The exception's own words. Toolkit errors keep theirs in `message`, not in args."""
    try:
        message = getattr(error, "message", None)
        if isinstance(message, str) and hasattr(error, "status_code"):
            return message
        return str(error)
    except Exception as broken:
        return "(its text cannot be had: {})".format(type(broken).__name__)


def frames(error):
    """The traceback below the runtime's own frames."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename.startswith((RUNTIME, "<frozen importlib")):
        trace = trace.tb_next
    return trace


def place_of(error):
    """The innermost line of the handler's own files, else of whatever it called."""
    code = getattr(sys.modules.get("roundhouse_handler"), "code_dir", None) or RUNTIME
    own = other = None
    trace = frames(error)
    while trace:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith((RUNTIME, "<frozen")):
            other = (name, trace.tb_lineno)
            if name.startswith(os.path.join(code, "")):
                own = other
        trace = trace.tb_next
    found = own or other
    return "{}, line {}".format(os.path.basename(found[0]), found[1]) if found else None


def traced(error):
    """The end of the traceback, without the runtime's part; None when it cannot be had."""
    try:
        import traceback
        lines = traceback.format_exception(type(error), error, frames(error))
        data = "".join(lines).encode("utf-8", "backslashreplace")
        return data[-TRACEBACK_MAX:].decode("utf-8", "ignore")
    except Exception:
        return None
