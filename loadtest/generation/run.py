"""Generation beside llama-server and Hugging Face transformers, on the same weights, in one run.

    python loadtest/generation/run.py ROUNDHOUSE LLAMA_SERVER MODELS OUT [ROUNDS [SHAPE...]]

MODELS is what make.py made, OUT a file. In each round every server is started anew and measured in
turn: reading a prompt of 512 tokens, decoding alone, 8 and 32 requests at once (64 tokens in, 96
out): over the whole time, their prompts included, and while all of them decode, which is what decoding
alone is compared with. *bf16 rounded* rounds activations as well, as llama-server and transformers
do; *bf16* does not. The figures are medians over the rounds; the ratios are medians of each round's.
Needs torch, transformers and a C compiler; everything listens on loopback and is stopped at the end.
"""

import json
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servers import LlamaServer, Roundhouse, at_once

BINARY, LLAMA, MODELS, OUT = sys.argv[1:5]
ROUNDS = int(sys.argv[5]) if len(sys.argv) > 5 else 3
SHAPES = sys.argv[6:] or ["smol", "l1b"]
HERE = Path(__file__).parent
MATRICES = {"smol": 134_479_872, "l1b": 1_235_746_816}
# Numbers multiplied with each token, the embedding table being the head too.
BYTES = {"bf16": 2.0, "bf16 rounded": 2.0, "q8_0": 34 / 32}
RANDOM = random.Random(7)
# Each of several at once answers so many.
OUT_TOKENS = 96


def text(length):
    return "".join(RANDOM.choices(string.ascii_letters + " ", k=length))


def measured(server, decode):
    server.complete(text(64), 4)
    prefill = []
    for _ in range(3):
        times = server.complete(text(512), 1)
        prefill.append(512 / (times[-1] - times[0]))
    times = server.complete(text(16), decode)
    assert len(times) == decode + 1, f"{len(times) - 1} tokens of {decode}"
    row = {"prefill 512": statistics.median(prefill),
           "decode": (decode - 1) / (times[-1] - times[1])}
    for many in [8, 32]:
        seconds, times = at_once(server, [text(64) for _ in range(many)], OUT_TOKENS)
        row[f"{many} at once"] = many * OUT_TOKENS / seconds
        row[f"{many} decoding"] = while_all_decode(times)
    return row


def while_all_decode(times):
    """Tokens a second from the last one's first token to the first one's last."""
    since, until = max(each[1] for each in times), min(each[-1] for each in times)
    return sum(since < at <= until for each in times for at in each[1:]) / (until - since)


def transformers(model, dtype, decode):
    """In a process of its own, so that its memory goes with it."""
    code = (HERE / "peer_transformers.py").as_posix()
    out = subprocess.run([sys.executable, code, f"{MODELS}/{model}", dtype, str(decode)],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def roundhouse(model, settings):
    return Roundhouse(BINARY, MODELS, model, "14GiB", ["--context", "1024", "--kv-sequences", "32"],
                      settings)


def rows(model):
    decode = 64 if model == "smol" else 24
    q8 = {"ROUNDHOUSE_SERVING_QUANTIZE": "q8_0"}
    rounded = {"ROUNDHOUSE_SERVING_DTYPE": "bf16"}
    servers = {
        ("roundhouse", "bf16"): lambda: roundhouse(model, {}),
        ("roundhouse", "bf16 rounded"): lambda: roundhouse(model, rounded),
        ("llama-server", "bf16"): lambda: LlamaServer(LLAMA, f"{MODELS}/{model}-bf16.gguf", 32, 1024),
        ("roundhouse", "q8_0"): lambda: roundhouse(model, q8),
        ("llama-server", "q8_0"): lambda: LlamaServer(LLAMA, f"{MODELS}/{model}-q8_0.gguf", 32, 1024),
    }
    for name, start in servers.items():
        server = start()
        try:
            yield name, measured(server, decode)
        finally:
            server.stop()
    yield ("transformers", "bf16"), transformers(model, "bfloat16", decode)


def roofs():
    """Bytes per second read from memory, and operations per second of large multiplications."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["cc", "-O3", "-march=native", "-fopenmp", HERE / "roofs.c", "-o", f"{folder}/roofs"], check=True)
        read = float(subprocess.run([f"{folder}/roofs"], check=True, capture_output=True, text=True).stdout.split()[0])
    import torch
    flops = {}
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        left, right = torch.randn(512, 2048).to(dtype), torch.randn(2048, 8192).to(dtype)
        best = 0.0
        for _ in range(5):
            began = time.perf_counter()
            left @ right
            best = max(best, 2 * 512 * 2048 * 8192 / (time.perf_counter() - began))
        flops[name] = best
    return read, flops


def main():
    read, flops = roofs()
    lines = [f"roofs: {read / 1e9:.1f} GB/s read, {flops['f32'] / 1e9:.0f} GFLOP/s f32 and {flops['bf16'] / 1e9:.0f} bf16", ""]
    for model in SHAPES:
        numbers = MATRICES[model]
        found = {}
        for _ in range(ROUNDS):
            for name, row in rows(model):
                found.setdefault(name, []).append(row)
                print(model, name, {key: round(value, 1) for key, value in row.items()}, flush=True)
        columns = ["prefill 512", "decode", "8 at once", "32 at once", "8 decoding", "32 decoding"]
        lines += [f"## {model}", "", f"| tokens per second | {' | '.join(columns)} | 8 and 32 by decode | decode by the memory's roof |",
                  "|---|" + "---|" * (len(columns) + 2)]
        for (who, form), rounds in found.items():
            middle = {column: statistics.median(row[column] for row in rounds) for column in columns}
            times = [statistics.median(row[f"{many} decoding"] / row["decode"] for row in rounds) for many in [8, 32]]
            roof = middle["decode"] * numbers * BYTES[form] / read
            lines.append(f"| {who}, {form} | " + " | ".join(f"{middle[column]:.1f}" for column in columns)
                         + f" | {times[0]:.1f}, {times[1]:.1f} | {roof:.2f} |")
        for form, theirs in [("bf16", "bf16"), ("bf16 rounded", "bf16"), ("q8_0", "q8_0")]:
            pairs = list(zip(found["roundhouse", form], found["llama-server", theirs]))
            ratios = [statistics.median(ours[column] / theirs[column] for ours, theirs in pairs) for column in columns]
            lines.append(f"| ours by llama-server, {form} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " | | |")
        lines.append("")
    Path(OUT).write_text("\n".join(lines))


main()
