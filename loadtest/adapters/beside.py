"""Eight LoRA adapters asked at once, beside llama-server and PEFT in transformers, in one run.

    python beside.py BINARY LLAMA_SERVER STORE OUTPUT [--rounds N] [--tokens N]

STORE is what make.py made. In each round every one is started anew and asked for the same: eight
prompts at once to the base, to one adapter and to eight distinct ones, and one alone to an adapter;
64 distinct random tokens in, 96 out, greedy, in bf16. Figures are medians over the rounds, ratios
medians of each round's. Adapters are loaded before, with `lora_alpha` raised to ALPHA for everybody:
as made, all of them answer with the same tokens, and a witness could not tell them apart.

The witness asks for eight distinct ones at once and holds the tokens against PEFT in f32, which is
given the same tokens before each. A difference is a tie where the reference has both within TIE.
Fails where ours in f32 differs otherwise, or where a wrong adapter would pass. Writes OUTPUT/beside.md
and OUTPUT/beside.json. Needs torch, transformers, peft and gguf; servers listen on loopback only.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import json
import os
import pathlib
import random
import shutil
import statistics
import string
import sys
import tempfile
import time
import urllib.request

import gguf
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "generation"))
from make import gguf_name, interleaved, write_gguf  # noqa: E402
from servers import Roundhouse, Server, free_port  # noqa: E402

SHAPES = ["all16", "qv16"]
MANY, PROMPT, CONTEXT = 8, 64, 256
WITNESS_TOKENS, TIE, ALPHA = 32, 1e-3, 256
LETTERS = string.ascii_letters + string.digits + string.punctuation
CORES, EACH = os.cpu_count(), list(range(MANY))
# Which adapters requests are for; None is the base.
COLUMNS = {"8 of the base": [None] * MANY, "8 of one": [0] * MANY, "8 of 8": EACH, "one alone": [0]}


def read(path):
    return json.loads(path.read_text())


def adapter_as_gguf(path, folder, config):
    """In f32, as llama.cpp's own converter writes them."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, ALPHA)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in load_file(folder / "adapter_model.safetensors").items():
        module, side = name.removeprefix("base_model.model.").removesuffix(".weight").split(".lora_")
        part = module.split(".")[-1]
        if side == "B" and part in heads:
            weight = interleaved(weight, heads[part])
        named = f"{gguf_name(module + '.weight')}.lora_{side.lower()}"
        writer.add_tensor(named, weight.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepare(store, folder):
    """What everybody reads: the base and eight adapters of each shape, as they are and as GGUF."""
    shutil.copytree(store / "base", folder / "base")
    config = read(folder / "base/config.json")
    parts = {"hidden": "hidden_size", "inner": "intermediate_size", "layers": "num_hidden_layers",
             "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "vocab": "vocab_size"}
    write_gguf(folder / "base.gguf", {part: config[key] for part, key in parts.items()},
               load_file(folder / "base/model.safetensors"))
    for shape, number in [(shape, number) for shape in SHAPES for number in EACH]:
        adapter = folder / shape / str(number)
        shutil.copytree(store / shape / str(number), adapter)
        says = read(adapter / "adapter_config.json") | {"lora_alpha": ALPHA}
        (adapter / "adapter_config.json").write_text(json.dumps(says))
        adapter_as_gguf(folder / f"{shape}-{number}.gguf", adapter, config)


class Asked:
    """A server that is asked for whole answers, side by side."""

    def close(self):
        self.stop()

    def call(self, path, body, headers=()):
        headers = {"content-type": "application/json"} | dict(headers)
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def answer(self, prompts, adapters, tokens, told=False):
        """When each was answered, and, if it is to be told, its tokens with log-probabilities."""
        def one(prompt, adapter):
            *counts, chosen = self.ask(prompt, adapter, tokens, told)
            if counts != [PROMPT, tokens]:
                raise SystemExit(f"{type(self).__name__}: {counts} tokens in and out")
            return time.perf_counter(), chosen

        with concurrent.futures.ThreadPoolExecutor(len(adapters)) as pool:
            return list(pool.map(one, prompts, adapters))


class Ours(Asked, Roundhouse):
    def __init__(self, options, folder, shape, form):
        (folder / "base/serving.properties").write_text(f"option.dtype={form}\n")
        self.shape = shape
        super().__init__(options.binary, folder, "base", "4GiB",
                         ["--context", str(CONTEXT), "--kv-sequences", str(MANY)])

    def ask(self, prompt, adapter, tokens, told):
        target = "base" if adapter is None else f"{self.shape}/{adapter}"
        if not told:
            said = self.call("/v1/completions", {"model": target, "prompt": prompt, "max_tokens": tokens,
                                                 "temperature": 0, "ignore_eos": True})["usage"]
            return said["prompt_tokens"], said["completion_tokens"], None
        wanted = {"max_new_tokens": tokens, "do_sample": False, "ignore_eos": True, "details": True}
        said = self.call("/invocations", {"inputs": prompt, "parameters": wanted},
                         {"x-amzn-sagemaker-target-model": target})["details"]
        chosen = [(token["id"], token["logprob"]) for token in said["tokens"]]
        return said["input_length"], len(chosen), chosen


class Llama(Asked, Server):
    def __init__(self, options, folder, shape, _):
        self.port, self.vocab = free_port(), read(folder / "base/tokenizer.json")["model"]["vocab"]
        adapters = ",".join(str(folder / f"{shape}-{number}.gguf") for number in EACH)
        self.start([options.llama, "-m", folder / "base.gguf", "--lora", adapters,
                    "--lora-init-without-apply",
                    "--rope-freq-base", str(read(folder / "base/config.json")["rope_theta"]),
                    "--host", "127.0.0.1", "--port", str(self.port), "-t", str(CORES), "-tb", str(CORES),
                    "-np", str(MANY), "-c", str(MANY * CONTEXT), "-cb", "-fa", "on", "--no-webui"])
        self.wait_until_ready("/health")

    def ask(self, prompt, adapter, tokens, told):
        scales = [{"id": number, "scale": float(number == adapter)} for number in EACH]
        said = self.call("/completion", {
            "prompt": [self.vocab[char] for char in prompt], "n_predict": tokens, "temperature": 0,
            "top_k": 1, "ignore_eos": True, "cache_prompt": False, "lora": scales, "n_probs": int(told)})
        chosen = [(token["id"], token["logprob"]) for token in said.get("completion_probabilities", [])]
        return said["tokens_evaluated"], said["tokens_predicted"], chosen


class Peft:
    def __init__(self, folder, shape, dtype):
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype)
        model.generation_config.eos_token_id = None
        first, *others = [folder / shape / str(number) for number in EACH]
        model = PeftModel.from_pretrained(model, first, first.name, autocast_adapter_dtype=False)
        for other in others:
            model.load_adapter(other, other.name, autocast_adapter_dtype=False)
        assert {each.dtype for each in model.parameters()} == {dtype}
        self.model, self.vocab = model.eval(), read(folder / "base/tokenizer.json")["model"]["vocab"]

    def ids(self, prompts):
        return torch.tensor([[self.vocab[char] for char in prompt] for prompt in prompts])

    @contextlib.contextmanager
    def having(self, adapters):
        """What a call is given beside; where all are alike, they need not be told apart."""
        alike = len(set(adapters)) == 1
        if alike and adapters[0] is not None:
            self.model.set_adapter(str(adapters[0]))
        off = self.model.disable_adapter() if adapters[0] is None else contextlib.nullcontext()
        with torch.inference_mode(), off:
            yield {} if alike else {"adapter_names": [str(number) for number in adapters]}

    def answer(self, prompts, adapters, tokens):
        ids = self.ids(prompts[:len(adapters)])
        with self.having(adapters) as names:
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                      pad_token_id=0, max_new_tokens=tokens, **names)
        if out.shape != (len(adapters), PROMPT + tokens):
            raise SystemExit(f"PEFT: tokens are {out.shape}")
        return [(time.perf_counter(), None)] * len(adapters)

    def logits(self, prompts, chosen, adapters):
        """What the model has for each token of `chosen`, after the prompt and those before it."""
        with self.having(adapters) as names:
            return self.model(torch.cat([self.ids(prompts), chosen], 1), **names).logits[:, PROMPT - 1:-1]


SERVERS = {"roundhouse": Ours, "llama-server": Llama}


def measured(server, prompts, tokens):
    """Tokens per second by column, and at which part of the whole time the first was answered."""
    for adapters in [[None], *[[number] for number in EACH], EACH]:
        server.answer(prompts["first"], adapters, 4)
    row = {}
    for column, adapters in COLUMNS.items():
        began = time.perf_counter()
        ends = [end - began for end, _ in server.answer(prompts[column], adapters, tokens)]
        row[column] = {"tokens_per_second": len(ends) * tokens / max(ends), "first": min(ends) / max(ends)}
    return row


def drawn(dice):
    return ["".join(dice.sample(LETTERS, PROMPT)) for _ in EACH]


def one_round(options, folder, shape, dice):
    prompts, row = {column: drawn(dice) for column in ["first", *COLUMNS]}, {}
    for who, kind in SERVERS.items():
        with contextlib.closing(kind(options, folder, shape, "bf16")) as server:
            row[who] = measured(server, prompts, options.tokens)
    return row | {"PEFT": measured(Peft(folder, shape, torch.bfloat16), prompts, options.tokens)}


def witness(options, folder, shape):
    """How far answers are from PEFT's in f32, and how many tokens of ours wrong adapters have."""
    prompts, found = drawn(random.Random(0)), {}
    reference = Peft(folder, shape, torch.float32)
    for who, form in [("roundhouse", "fp32"), ("roundhouse", "bf16"), ("llama-server", "bf16")]:
        with contextlib.closing(SERVERS[who](options, folder, shape, form)) as server:
            rows = [row for _, row in server.answer(prompts, EACH, WITNESS_TOKENS, True)]
        chosen, said = (torch.tensor([[pair[at] for pair in row] for row in rows]) for at in (0, 1))
        right = reference.logits(prompts, chosen, EACH)
        (top, second), got = right.topk(2).values.unbind(-1), right.gather(2, chosen[..., None])[..., 0]
        off = [{"adapter": at, "position": nth, "top_two": float(top[at, nth] - second[at, nth]),
                "gap": float(top[at, nth] - got[at, nth])}
               for at, nth in (right.argmax(-1) != chosen).nonzero().tolist()]
        row = {"of": chosen.numel(), "differences": off, "not_ties": sum(it["gap"] >= TIE for it in off),
               "logprob_off": float((got - right.logsumexp(-1) - said).abs().max())}
        for name, wrong in [("neighbour", EACH[1:] + EACH[:1]), ("base", [None] * MANY)]:
            row[name] = int((reference.logits(prompts, chosen, wrong).argmax(-1) == chosen).sum())
        found[f"{who}, {form}"] = row
    return found


def speed_table(rounds):
    def middle(value):
        return statistics.median(map(value, rounds))

    def speed(row, who, column):
        return row[who][column]["tokens_per_second"]

    lines = [f"| tokens per second | {' | '.join(COLUMNS)} | 8 of 8 by 8 of the base | first of 8 of 8 |",
             "|---|" + "--:|" * (len(COLUMNS) + 2)]
    for who in rounds[0]:
        cells = [f"{middle(lambda row: speed(row, who, column)):.1f}" for column in COLUMNS]
        ratio = middle(lambda row: speed(row, who, "8 of 8") / speed(row, who, "8 of the base"))
        first = middle(lambda row: row[who]["8 of 8"]["first"])
        lines.append(f"| {who} | {' | '.join(cells)} | {ratio:.2f} | {first:.2f} |")
    for who in list(rounds[0])[1:]:
        cells = [f"{middle(lambda row: speed(row, 'roundhouse', column) / speed(row, who, column)):.2f}"
                 for column in COLUMNS]
        lines.append(f"| ours by {who} | {' | '.join(cells)} | | |")
    return lines + [""]


def witness_table(found):
    lines = ["| the reference's tokens | agree | not ties | log-probability off by "
             "| neighbour's | base's | gaps |", "|---|--:|--:|--:|--:|--:|---|"]
    for who, row in found.items():
        gaps = sorted((it["gap"] for it in row["differences"]), reverse=True)
        told = " ".join(f"{gap:.1e}" for gap in gaps[:6]) + (" and smaller" if gaps[6:] else "")
        lines.append(f"| {who} | {row['of'] - len(gaps)} of {row['of']} | {row['not_ties']} | "
                     f"{row['logprob_off']:.1e} | {row['neighbour']} | {row['base']} | {told} |")
    return lines + [""]


def head(options):
    packages = ["torch", "transformers", "peft"]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return [f"{CORES} cores, {options.rounds} rounds; {PROMPT} tokens in, {options.tokens} out, greedy, "
            f"bf16; lora_alpha {ALPHA}; {', '.join(versions)}. *first*: when the first of the eight was "
            "answered, as a part of the whole time. *neighbour's*, *base's*: how many of the tokens "
            "a wrong adapter has.", "",
            "Not there: llama-server has no step for several adapters, requests of others wait until those "
            f"that run have ended (*first* is then near {1 / MANY}). PEFT has no server: what is asked at "
            "once begins and ends at once, in one batch.", ""]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("llama")
    parser.add_argument("store", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(CORES)
    rounds = {shape: [] for shape in SHAPES}
    with tempfile.TemporaryDirectory(prefix="beside-") as folder:
        folder = pathlib.Path(folder)
        prepare(options.store.resolve(), folder)
        for number in range(options.rounds):
            for shape in SHAPES:
                rounds[shape].append(one_round(options, folder, shape, random.Random(number + 1)))
                print(shape, json.dumps(rounds[shape][-1]), flush=True)
        found = {shape: witness(options, folder, shape) for shape in SHAPES}
    kept = {"cores": CORES, "tokens": options.tokens, "rounds": rounds, "witness": found}
    (options.output / "beside.json").write_text(json.dumps(kept, indent=1) + "\n")
    lines = head(options)
    for shape in SHAPES:
        lines += [f"## {shape}", "", *speed_table(rounds[shape]), *witness_table(found[shape])]
    (options.output / "beside.md").write_text("\n".join(lines))
    for shape, ours in [(shape, found[shape]["roundhouse, fp32"]) for shape in SHAPES]:
        if ours["not_ties"] or max(ours["neighbour"], ours["base"]) > ours["of"] // 2:
            raise SystemExit(f"{shape}: ours differs from the reference, or a wrong adapter would pass")


if __name__ == "__main__":
    main()
