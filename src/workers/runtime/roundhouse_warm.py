"""An interpreter that has imported a handler's packages beforehand, and is forked to load it.

Started as a worker is, as confined, with `{"imports": [...]}` for its settings. It imports, says
READY or FAILED, and then forks once for each socket and two pipes that come. The fork waits at its
socket for what it is to load. No handler's script ever runs before the fork.

A child that is to outlive this process as the server's own child is forked twice: the one
between ends at once, so that the server, which looks after what is orphaned, becomes the parent.
Reading order: `main`, `forked`, `born`.
"""
import sys

# Modules that are there before anything is asked for: a handler's own of these names never count.
plain = set(sys.modules)

import ctypes
import gc
import json
import os
from _signal import SIG_DFL, SIGINT, SIGKILL, signal
from _socket import AF_UNIX, CMSG_SPACE, MSG_WAITALL, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket
from resource import RLIMIT_DATA, setrlimit
from struct import Struct

import roundhouse_handler
import roundhouse_worker
from roundhouse_errors import describe
from roundhouse_frames import FAILED, READY, TYPED

LENGTH = Struct("<I")
# A socket, standard output, standard error.
HANDED = Struct("3i")
PR_SET_PDEATHSIG = 1

# Names of modules that were imported beforehand, without what is below them.
imports = set()
libc = ctypes.CDLL(None, use_errno=True)


class Unfit(Exception):
    """This process cannot be forked: what it holds would be wrong, or shared, in a child."""


def imported(names):
    """Imports what there is of these modules; returns how many."""
    count = 0
    for name in names:
        try:
            __import__(name)
            count += 1
        except Exception:  # it is not there, or needs what is not: the handler will see
            pass
    return count


def single():
    """Raises Unfit where there are other threads: a fork has none of them, but what they held."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise Unfit("its packages have started {} threads".format(threads - 1))


def unshared(known):
    """Raises Unfit for memory or open files by which one child could reach the next."""
    with open("/proc/self/maps") as file:
        for line in file:
            if line.split(None, 2)[1][1::2] == "ws":
                raise Unfit("its packages hold memory that forks would share")
    for number in descriptors() - known:
        try:
            target = os.readlink("/proc/self/fd/{}".format(number))
        except OSError:  # the listing's own
            continue
        if not target.startswith("/dev/"):
            raise Unfit("its packages have opened {}".format(target))


def descriptors():
    """Returns the numbers of all open files, the listing's own among them."""
    return {int(name) for name in os.listdir("/proc/self/fd")}


def main():
    """Imports what argv names, then forks by order until the server goes away."""
    signal(SIGINT, SIG_DFL)
    sock = roundhouse_worker.private_socket()
    known = descriptors()
    try:
        # What every worker may come to need of ours.
        count = imported(("roundhouse_defaults", "roundhouse_frameworks", "roundhouse_context", "traceback",
                          "inspect", "random"))
        count += imported(json.loads(sys.argv[1])["imports"])
        gc.collect()
        gc.freeze()  # a collection would touch, and so copy, what children share with this
        single()
        unshared(known)
        roundhouse_handler.inherited = len(sys.modules)
        imports.update(name.partition(".")[0] for name in set(sys.modules) - plain)
    except BaseException as error:
        _, text = describe(error)
        send(sock, FAILED, text)
        os._exit(1)
    text = json.dumps({"python": "{}.{}.{}".format(*sys.version_info), "framework": "warm", "count": count}).encode()
    send(sock, READY, text)
    try:
        while True:
            forked(sock, handed(sock))
    except BaseException:
        os._exit(0)


def send(sock, kind, text):
    sock.sendall(TYPED.pack(1 + len(text), kind) + text)


def handed(sock):
    """Waits until a worker is wanted; returns the descriptors that are for it."""
    asked, parts, _, _ = sock.recvmsg(1, CMSG_SPACE(HANDED.size))
    if not asked:
        raise EOFError
    (level, kind, data), = parts
    if (level, kind) != (SOL_SOCKET, SCM_RIGHTS):
        raise ValueError("not descriptors")
    return HANDED.unpack(data)


def forked(sock, descriptors):
    """Forks a worker and says so."""
    single()
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            born(sock, descriptors)
        os._exit(0)
    for number in descriptors:
        os.close(number)
    os.waitpid(between, 0)
    sock.sendall(b"F")


def born(sock, descriptors):
    """Waits for its order, becomes a worker like any other, and works. Does not return."""
    try:
        sock.close()
        mine = socket(AF_UNIX, SOCK_STREAM, 0, descriptors[0])
        for number, standard in zip(descriptors[1:], (1, 2)):
            os.dup2(number, standard)
            os.close(number)
        os.set_inheritable(mine.fileno(), False)
        mine.sendall(LENGTH.pack(os.getpid()))
        # Until then the server makes it a process group of its own.
        order = ordered(mine)
        if libc.prctl(PR_SET_PDEATHSIG, SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "the fork cannot ask to end with the server")
        # Memory is what differs between models; all other limits are the interpreter's.
        setrlimit(RLIMIT_DATA, (order["memory"], order["memory"]))
        os.environ.update(order["variables"])
        settings = json.dumps(order["settings"])
        sys.argv[1:] = [settings]
        refuse_shadows(order["settings"])
        reseed()
    except EOFError:
        os._exit(0)
    except BaseException as error:
        try:
            send(mine, FAILED, describe(error)[1])
        finally:
            os._exit(1)
    roundhouse_worker.work(mine, settings)


def ordered(mine):
    """Waits for the settings and variables of what is to be loaded."""
    head = mine.recv(LENGTH.size, MSG_WAITALL)
    if len(head) < LENGTH.size:
        raise EOFError
    size, = LENGTH.unpack(head)
    text = mine.recv(size, MSG_WAITALL)
    if len(text) < size:
        raise EOFError
    return json.loads(text)


def reseed():
    """Gives the child random numbers of its own. `random` sees to itself; what libraries draw
    from the system needs nothing, and those with a fixed seed have it in every worker."""
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None


def refuse_shadows(settings):
    """Raises Unfit where the handler brings modules of its own by names that are imported."""
    code = settings.get("code_dir") or settings["model_dir"]
    for folder in (code, os.path.join(code, "lib")):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name.partition(".")[0] in imports:
                raise Unfit("{} in its code stands for a module that is imported already".format(name))
