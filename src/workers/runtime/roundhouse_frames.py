"""The socket to the server, and the frames on it.

A frame is a little-endian u32, the length of what follows, then one byte for its type and
the rest. The server sends INVOKE and CANCEL, all others go to it.
"""
import os
from _socket import MSG_DONTWAIT
from errno import EAGAIN, EINTR
from struct import Struct

INVOKE, CANCEL = 1, 2
READY, FAILED, ANSWER, BEGIN, CHUNK, END, ERROR = 1, 2, 3, 4, 5, 6, 7

LENGTH = Struct("<I")
TYPED = Struct("<IB")
NUMBERED = Struct("<IBQ")
INVOKE_HEAD = Struct("<BQBHHI")
ANSWER_HEAD = Struct("<IBQHHI")
ERROR_HEAD = Struct("<IBQH")

FRAME_MAX = 1 << 30
CHUNK_MAX = 1 << 20
ROOM = 1 << 18
# How much is read ahead, beyond whole frames, while looking for a CANCEL.
AHEAD_MAX = 1 << 23
# Up to here copying head and body together is cheaper than a vectored send.
JOIN_MAX = 1 << 16


class Gone(BaseException):
    """The server closed the socket, or this is a fork that lost it: nothing is left to do."""


class Connection:
    """Frames over the socket. `buffer[start:end]` was received and not yet taken."""

    def __init__(self, sock):
        self.sock = sock
        self.start = self.end = 0
        self._fresh(ROOM)
        # A child that a handler forks must never speak for its parent.
        os.register_at_fork(after_in_child=sock.close)

    def _fresh(self, room):
        kept = self.buffer[self.start:self.end] if self.end > self.start else b""
        self.buffer = bytearray(max(room, len(kept)))
        self.view = memoryview(self.buffer)
        self.buffer[:len(kept)] = kept
        self.start, self.end = 0, len(kept)

    def _make_room(self, need):
        """Makes `need` bytes fit behind `start`."""
        if self.start == self.end:
            self.start = self.end = 0
        if self.start + need > len(self.buffer):
            self._fresh(max(need, ROOM))

    def _fill(self, flags=0):
        """Receives once. Raises Gone at the end, BlockingIOError when nothing is there."""
        try:
            count = self.sock.recv_into(self.view[self.end:], 0, flags)
        except OSError as error:
            # No number: a TimeoutError or the like that a handler's signal handler raises.
            if error.errno is None or error.errno in (EAGAIN, EINTR):
                raise
            raise Gone from error
        if count == 0:
            raise Gone
        self.end += count

    def take(self):
        """Waits for the next whole frame; returns where in `buffer` it begins and ends."""
        while True:
            start, have = self.start, self.end - self.start
            need = 4
            if have >= 4:
                need = 4 + LENGTH.unpack_from(self.buffer, start)[0]
                if have >= need > 4:
                    self.start = start + need
                    return start + 4, self.start
                if not 4 < need <= 4 + FRAME_MAX:
                    raise Gone("a frame of a length that is not allowed")
            self._make_room(need)
            self._fill()

    def trim(self):
        """Gives up the room that a large frame needed."""
        if len(self.buffer) > ROOM >= self.end - self.start:
            self._fresh(ROOM)

    def cancelled(self, number):
        """Says whether a CANCEL of `number` came in. Never waits, takes no frame."""
        try:
            while True:
                if self.end == len(self.buffer):
                    if self.end - self.start >= AHEAD_MAX:
                        break
                    self._fresh(2 * (self.end - self.start) + ROOM)
                self._fill(MSG_DONTWAIT)
        except BlockingIOError:
            pass
        at = self.start
        while self.end - at >= 13:
            length, kind, other = NUMBERED.unpack_from(self.buffer, at)
            if kind == CANCEL and other == number:
                return True
            at += 4 + length
        return False

    def send(self, head, body=b""):
        """Sends one frame. Raises Gone when nobody is there."""
        if len(body) <= JOIN_MAX:
            head, body = b"".join((head, body)), b""
        try:
            if not body:
                self.sock.sendall(head)
                return
            sent = self.sock.sendmsg((head, body)) - len(head)
            if sent < 0:
                self.sock.sendall(head[sent:])
                sent = 0
            self.sock.sendall(memoryview(body)[sent:])
        except OSError as error:
            raise Gone from error
        except BaseException as error:  # a signal handler's: half a frame may be out
            raise Gone("interrupted while sending") from error

    def send_error(self, number, error):
        """Says that call `number` failed, and why."""
        status, text = described(error)
        self.send(ERROR_HEAD.pack(11 + len(text), ERROR, number, status), text)


def described(error):
    """Returns a status and the JSON text for `error`, whatever state the process is in."""
    try:
        from roundhouse_errors import describe
        return describe(error)
    except BaseException:  # out of memory, descriptors or stack: say at least its name
        name = ascii(type(error).__name__)[1:-1]
        return 500, b'{"message": "%s", "traceback": null}' % name.encode("ascii", "replace")
