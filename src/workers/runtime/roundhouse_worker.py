"""Runs one model handler: a client of the server on a socket that it was given as fd 0.

Started as `python -s -B -u roundhouse_worker.py SETTINGS`, SETTINGS being a JSON object.
Loads the handler, says READY or FAILED, then answers one call after another, in order.
Reading order: `main`, `serve`, `respond`, `stream`; then `roundhouse_frames`, `roundhouse_handler`.

Start-up time and memory are paid for every worker of every model. So nothing is imported
here that an ordinary answer does not need; the rest comes in where it is first used.
"""
import os
import sys
from _signal import SIG_DFL, SIGINT, signal
from _socket import AF_UNIX, SOCK_STREAM, socket

from roundhouse_frames import (ANSWER, ANSWER_HEAD, BEGIN, CHUNK, CHUNK_MAX, END, FAILED, INVOKE, INVOKE_HEAD,
                               NUMBERED, READY, ROOM, TYPED, Connection, Gone, described)
from roundhouse_handler import load

PLAIN = (bytes, str, dict, list)


def serve(connection, handler):
    """Answers calls until the server goes away (Gone)."""
    buffer_max, head_size = ROOM, INVOKE_HEAD.size
    routes, routed = {}, handler.route
    while True:
        try:
            at, until = connection.take()
        except Gone:
            raise
        except BaseException:  # out of a handler's signal handler, say for an alarm it left set
            continue
        buffer = connection.buffer
        if buffer[at] != INVOKE:
            continue
        _, number, flags, type_size, accept_size, meta_size = INVOKE_HEAD.unpack_from(buffer, at)
        at += head_size
        meta_at = at + type_size + accept_size
        body_at = meta_at + meta_size
        if body_at > until:
            raise Gone("an INVOKE frame that is too short")
        key = (type_size, bytes(buffer[at:meta_at]))
        route = routes.get(key)
        if route is None:
            if len(routes) >= 256:  # clients choose these texts
                routes.clear()
            route = routes[key] = routed(key[1][:type_size], key[1][type_size:])
        view = connection.view
        meta = bytes(view[meta_at:body_at])
        try:
            body = route.read(view[body_at:until])
        except Exception as error:
            connection.send_error(number, error)
            continue
        del buffer, view
        if len(connection.buffer) > buffer_max:
            connection.trim()
        respond(connection, handler, number, flags, route, meta, body)
        body = None  # idle workers hold nothing


def respond(connection, handler, number, flags, route, meta, body):
    """Runs the handler on one call and sends what came of it."""
    try:
        context = handler.context(number, flags, route, meta) if handler.wants_context else None
        result, content_type = handler.run(body, route, context), None
        if type(result) is tuple:
            result, content_type = handler.pair(result)
        elif type(result) not in PLAIN and hasattr(result, "mimetype"):
            result, content_type = handler.unwrap(result)
        if hasattr(result, "__next__"):
            stream(connection, handler, number, result, content_type, route, context)
            return
        if type(result) is not bytes:
            result = handler.body(result)
        status, kind, meta = handler.envelope(content_type, route, context)
        if len(result) > handler.max_response:
            raise handler.too_large(len(result))
    except Gone:
        raise
    except BaseException as error:  # SystemExit too: one call must not end the worker
        connection.send_error(number, error)
        return
    length = 17 + len(kind) + len(meta) + len(result)
    head = ANSWER_HEAD.pack(length, ANSWER, number, status, len(kind), len(meta))
    connection.send(head + kind + meta, result)


def stream(connection, handler, number, chunks, content_type, route, context):
    """Sends what `chunks` yields until it ends, fails, or the client leaves.

    BEGIN waits for the first chunk, so that a failure before it has its own status.
    """
    def begin():
        status, kind, meta = handler.envelope(content_type, route, context)
        head = ANSWER_HEAD.pack(17 + len(kind) + len(meta), BEGIN, number, status, len(kind), len(meta))
        connection.send(head + kind + meta)

    begun = False
    try:
        for chunk in chunks:
            data = handler.chunk(chunk)
            if not data:
                continue
            if not begun:
                begin()
                begun = True
            if connection.cancelled(number):
                close(chunks)
                break
            for at in range(0, len(data), CHUNK_MAX):
                part = data if len(data) <= CHUNK_MAX else memoryview(data)[at:at + CHUNK_MAX]
                connection.send(NUMBERED.pack(9 + len(part), CHUNK, number), part)
        if not begun:
            begin()
    except Gone:
        raise
    except BaseException as error:
        connection.send_error(number, error)
        return
    connection.send(NUMBERED.pack(9, END, number))


def close(chunks):
    """Ends a generator whose client left; what it raises then interests nobody."""
    try:
        getattr(chunks, "close", int)()
    except Gone:
        raise
    except BaseException:
        pass


def private_socket():
    """Moves the socket away from fd 0, where handler code could read it by accident."""
    descriptor = os.dup(0)
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:
        null, writer = os.pipe()
        os.close(writer)
    os.dup2(null, 0)
    os.close(null)
    return socket(AF_UNIX, SOCK_STREAM, 0, descriptor)


def leave(code, sock):
    """Ends the process at once, whatever threads handler code left running."""
    if sock.fileno() != -1:  # a fork's copy of unwritten output belongs to its parent
        for out in (sys.stdout, sys.stderr):
            try:
                out.flush()
            except BaseException:
                pass
    os._exit(code)


def main():
    """Loads the handler that argv describes, then serves it."""
    # Signals end a worker. Python's own SIGINT would raise in the middle of a frame.
    signal(SIGINT, SIG_DFL)
    work(private_socket(), sys.argv[1])


def work(sock, argument):
    """Loads the handler that the settings (JSON text) describe, then serves it. Does not return."""
    try:
        connection = Connection(sock)
        for out in (sys.stdout, sys.stderr):
            # `-u` would write every word of a print by itself.
            out.reconfigure(line_buffering=True, write_through=False)
        try:
            handler = load(argument)
        except BaseException as error:
            _, text = described(error)
            connection.send(TYPED.pack(1 + len(text), FAILED), text)
            leave(1, sock)
        text = handler.summary()
        connection.send(TYPED.pack(1 + len(text), READY), text)
        serve(connection, handler)
    except Gone as error:
        leave(1 if error.args else 0, sock)
    except BaseException:  # between frames nobody knows what was sent: better a new worker
        leave(70, sock)


if __name__ == "__main__":
    main()
