"""The pauses between tokens of running answers while a prompt of 4,000 tokens is read beside them.

    python loadtest/generation/stalls.py ROUNDHOUSE MODELS OUT

MODELS is what make.py made; OUT gets `stalls.md` and `stalls.png`. Four answers run; after two seconds
the prompt comes. Once with steps of a bounded time (the default), once with `step_time = "0s"`, where a
step takes as many tokens as it may. Needs matplotlib.
"""

import statistics
import sys
import threading
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from servers import Roundhouse

BINARY, MODELS, OUT = sys.argv[1], sys.argv[2], Path(sys.argv[3])
SETTINGS = {"250ms": {}, "0s": {"ROUNDHOUSE_SERVING_STEP_TIME": "0s"}}


def run(model, settings):
    server = Roundhouse(BINARY, MODELS, model, "14GiB", ["--context", "5000", "--kv-sequences", "5"], settings)
    try:
        server.complete("warm " * 100, 8)
        answers = [None] * 4

        def ask(index):
            answers[index] = server.complete(f"{index}" * 20, 400)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        began = time.perf_counter()
        prompt = server.complete("long prompt " * 333 + "abcd", 1)
        read = prompt[-1]
        for thread in threads:
            thread.join()
    finally:
        server.stop()
    gaps = [(later - began, later - earlier) for times in answers for earlier, later in zip(times[1:], times[2:])]
    return gaps, read - began


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    lines = ["| model | step_time | pauses before: median | while it is read: median, p99, longest | the prompt took |",
             "|---|---|---|---|---|"]
    figure, axes = plt.subplots(len(SETTINGS), 1, sharex=True, sharey=True, figsize=(8, 6))
    for axis, (name, settings) in zip(axes, SETTINGS.items()):
        gaps, took = run("smol", settings)
        before = [gap for at, gap in gaps if at < 0]
        beside = sorted(gap for at, gap in gaps if 0 <= at <= took + 0.01)
        p99 = beside[int(len(beside) * 0.99)]
        lines.append(f"| smol f32 | {name} | {statistics.median(before) * 1e3:.0f} ms | {statistics.median(beside) * 1e3:.0f}, "
                     f"{p99 * 1e3:.0f}, {beside[-1] * 1e3:.0f} ms | {took:.1f} s |")
        axis.scatter([at for at, _ in gaps], [gap for _, gap in gaps], s=4)
        axis.axvspan(0, took, alpha=0.1)
        axis.set_yscale("log")
        axis.set_ylabel("seconds between tokens")
        axis.set_title(f"step_time = {name}: 4,000 tokens are read in {took:.1f} s")
    axes[-1].set_xlabel("seconds since the long prompt came")
    figure.tight_layout()
    figure.savefig(OUT / "stalls.png", dpi=110)
    (OUT / "stalls.md").write_text("\n".join(lines) + "\n")


main()
