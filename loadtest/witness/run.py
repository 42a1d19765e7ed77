"""Holds a server's ledger against its memory from outside, with real checkpoints.

    python loadtest/witness/run.py BINARY MODELS OUT [agree|others|cycles]...

MODELS is what make_models.py made. Writes one text per part into OUT. `others` puts the server
and another process into a control group of its own (version 1, as root).
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import started

BINARY, MODELS, OUT = sys.argv[1:4]
PARTS = sys.argv[4:] or ["agree", "others", "cycles"]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEMO = os.path.join(ROOT, "src/server/demo/models")
GROUP = "/sys/fs/cgroup/memory/roundhouse-witness"
MIB = 1 << 20


class Server(started.Server):
    def __init__(self, store, memory, group=None, env=None):
        self.cache = tempfile.mkdtemp(prefix="witness-cache-")
        self.log = tempfile.TemporaryFile("w+")
        words = ["--store", f"file://{store}/", "--cache-dir", self.cache, "--memory", memory,
                 "--log-level", "warn,roundhouse::witness=info", "--access-log", "off"]
        # What is asked at the admin port is no part of the result.
        super().__init__(BINARY, words, {"ROUNDHOUSE_LOG_AUDIT": "off"} | (env or {}), self.log, group)

    def post(self, url, body):
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=600))

    def load(self, target):
        return self.post(f"{self.admin_url}/admin/v1/load", {"target": target})

    def unload(self, target):
        return self.post(f"{self.admin_url}/admin/v1/unload", {"target": target})

    def invoke(self, target, body):
        url = f"{self.data_url}/endpoints/default/invocations"
        request = urllib.request.Request(
            url, json.dumps(body).encode(),
            {"content-type": "application/json", "x-amzn-sagemaker-target-model": target},
        )
        return json.load(urllib.request.urlopen(request, timeout=600))

    def residency(self):
        return json.load(urllib.request.urlopen(f"{self.admin_url}/admin/v1/residency"))

    def settled(self):
        """After the next look, and when threads that a load needed have ended."""
        time.sleep(13)
        return self.residency()

    def stop(self):
        super().stop()
        shutil.rmtree(self.cache, ignore_errors=True)
        self.log.seek(0)
        return self.log.read()


def merged_store():
    """Demo models and large ones under one store, by links."""
    store = tempfile.mkdtemp(prefix="witness-store-")
    for name in ["support", "search", "tickets"]:
        shutil.copytree(os.path.join(DEMO, name), os.path.join(store, name))
    for name in sorted(os.listdir(MODELS)):
        source = os.path.join(MODELS, name)
        shutil.copytree(source, os.path.join(store, name), copy_function=os.link)
    return store


def row(server, what, out):
    shown = server.settled()
    memory, device = shown["memory"], shown["devices"][0]
    pages = server.anonymous()
    expected, base = memory["expected_bytes"], memory["baseline_bytes"]
    charged = device["charged_bytes"]
    off = pages - expected
    print(
        f"{what:34} {pages / MIB:9.2f} {expected / MIB:9.2f} {off / MIB:+7.2f} "
        f"{100 * off / expected:+7.2f} % {charged / MIB:9.2f} "
        f"{memory['untouched_bytes'] / MIB:9.2f} {100 * off / (base + charged):+7.2f} %",
        file=out, flush=True,
    )
    return shown


HEAD = (
    f"{'MiB':34} {'witness':>9} {'expected':>9} {'off':>7} {'of expected':>9} {'charged':>9} "
    f"{'untouched':>9} {'of ledger':>9}"
)

DEMO_TARGETS = [
    "search/encoder", "support/base", "support/aurora", "support/cobalt", "support/dahlia",
    "support/fjord", "support/birch.tar.gz", "support/ember.tar.gz", "tickets/intent.tar.gz",
]


def agree(out):
    store = merged_store()
    print("demo models, one after the other into one server", file=out)
    print(HEAD, file=out)
    server = Server(store, "4GiB")
    row(server, "no model", out)
    for target in DEMO_TARGETS:
        server.load(target)
        row(server, f"+ {target}", out)
    for target in reversed(DEMO_TARGETS):
        server.unload(target)
    row(server, "all unloaded", out)
    print(server.stop(), file=out)
    print("500 MB in their files, each alone in a server", file=out)
    print(HEAD, file=out)
    for target in ["llama-f32", "llama-bf16", "llama-f16"]:
        server = Server(store, "6GiB")
        row(server, "no model", out)
        server.load(target)
        row(server, f"+ {target}", out)
        words = " ".join(f"word{n}" for n in range(300))
        server.invoke(target, {"inputs": words, "parameters": {"max_new_tokens": 8}})
        row(server, "  after a prompt of some 1,000 tokens", out)
        server.unload(target)
        row(server, f"- {target}", out)
        print(server.stop(), file=out)
    print("tokenizers: tokenizer.json against what was measured (host part), KiB", file=out)
    server = Server(store, "6GiB")
    for name in sorted(os.listdir(os.path.join(MODELS, "tokenizers"))):
        path = os.path.join(MODELS, "tokenizers", name, "tokenizer.json")
        plan = subprocess.run(
            [BINARY, "plan", "--json", os.path.dirname(path)], capture_output=True, text=True,
            check=True,
        )
        estimate = json.loads(plan.stdout)["targets"][0]["bytes"]["host"]
        before = server.anonymous()
        server.load(f"tokenizers/{name}")
        shown = row(server, f"+ {name}", out)
        resident = [
            it for it in shown["devices"][0]["residents"] if it["target"].endswith(name)
        ][0]
        size, host = os.path.getsize(path), resident["bytes"]["host"]
        print(
            f"    {name:16} file {size >> 10:6} estimate {estimate >> 10:6} "
            f"measured {host >> 10:6} ({host / size:.1f} x file), witness grew by "
            f"{(server.anonymous() - before) >> 10}",
            file=out, flush=True,
        )
    print(server.stop(), file=out)
    shutil.rmtree(store)


HOG = """
import mmap, sys, time
size = int(sys.argv[1])
held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 4096):
    held[at] = 1
print("held", flush=True)
sys.stdin.read()
"""


def others(out):
    """A group of 2.4 GiB, a budget of 2 GiB, two models, and another process."""
    os.makedirs(GROUP, exist_ok=True)
    open(f"{GROUP}/memory.limit_in_bytes", "w").write(str(int(2.4 * 1024 * MIB)))
    store = merged_store()
    server = Server(store, "2GiB", group=GROUP, env={"ROUNDHOUSE_CONTEXT": "1024"})
    began = time.monotonic()

    def show(what):
        shown = server.residency()
        device, memory = shown["devices"][0], shown["memory"]
        residents = [it["target"] for it in device["residents"]]
        print(
            f"{time.monotonic() - began:6.1f} s {what:34} budget {device['budget_bytes'] / MIB:7.0f} "
            f"of {device['configured_bytes'] / MIB:5.0f} charged {device['charged_bytes'] / MIB:7.0f} "
            f"over {device['over_bytes'] / MIB:5.0f} available "
            f"{(memory['available_bytes'] or 0) / MIB:6.0f}  {' '.join(residents)}",
            file=out, flush=True,
        )
        return device

    shutil.copytree(
        os.path.join(MODELS, "llama-f32"), os.path.join(store, "llama-f32-b"),
        copy_function=os.link,
    )
    for target in ["llama-f32", "llama-f32-b"]:
        server.load(target)
        time.sleep(3)
        show(f"+ {target}")
    # Page cache of the group is no reason to shrink.
    files = f"cat {MODELS}/*/model.safetensors > {store}/copied; rm {store}/copied"
    subprocess.run(["sh", "-c", f"echo $$ > {GROUP}/cgroup.procs; sync; {files}"], check=True)
    time.sleep(5)
    show("1.5 GB of files were written")
    hog = started.start(
        ["sh", "-c", f"echo $$ > {GROUP}/cgroup.procs && exec {sys.executable} -c '{HOG}' {1280 * MIB}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    assert hog.stdout.readline().strip() == "held"
    show("another process took 1.25 GiB")
    for _ in range(4):
        time.sleep(2)
        show("")
    hog.communicate("")
    show("it ended")
    for _ in range(6):
        time.sleep(2)
        show("")
    server.load("llama-f32")
    time.sleep(3)
    show("+ llama-f32 again")
    print(server.stop(), file=out)
    shutil.rmtree(store)


def cycles(out):
    """500 loads and unloads: folders, archives, bf16; the witness before and after."""
    store = merged_store()
    with tarfile.open(os.path.join(store, "packed.tar.gz"), "w:gz") as archive:
        archive.add(os.path.join(store, "support/base"), arcname=".")
    targets = [
        "support/aurora", "support/birch.tar.gz", "search/encoder", "packed.tar.gz",
        "tickets/intent.tar.gz", "support/fjord", "tokenizers/bpe-8k", "support/ember.tar.gz",
        "tokenizers/wordpiece-30k", "llama-bf16",
    ]
    server = Server(store, "6GiB")
    prompt = {"inputs": "Where is my order?", "parameters": {"max_new_tokens": 4}}

    def cycle(target):
        server.load(target)
        asks = not target.startswith("tokenizers") and target != "llama-bf16"
        if asks:
            body = prompt if target.startswith(("support", "packed")) else {"inputs": "a b c"}
            server.invoke(target, body)
        server.unload(target)

    def witness(count, kept):
        shown = server.settled()["memory"]
        pages = server.anonymous()
        print(
            f"{count:5} loads: {pages / MIB:8.2f} MiB without models, {kept / MIB:8.2f} with one kept "
            f"(baseline {shown['baseline_bytes'] / MIB:.2f})",
            file=out, flush=True,
        )

    def kept():
        """With llama-f32 loaded: what an operator sees at work."""
        server.load("llama-f32")
        shown = server.settled()
        pages = server.anonymous()
        print(f"        with llama-f32: off by {100 * (pages / shown['memory']['expected_bytes'] - 1):+.2f} % of expected", file=out)
        server.unload("llama-f32")
        return pages

    done = 0
    witness(done, kept())
    while done < 500:
        for target in targets if done % 50 == 0 else targets[:9] + ["support/base"]:
            cycle(target)
            done += 1
        if done in (10, 50, 100, 250, 500):
            witness(done, kept())
    print(server.stop(), file=out)
    shutil.rmtree(store)


for part in PARTS:
    with open(os.path.join(OUT, f"{part}.txt"), "w") as out:
        {"agree": agree, "others": others, "cycles": cycles}[part](out)
