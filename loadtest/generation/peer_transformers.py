"""One model in Hugging Face transformers: `python peer_transformers.py FOLDER DTYPE DECODE`; prints JSON."""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

OUT_TOKENS = 96
FOLDER, DTYPE, DECODE = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(2)
torch.manual_seed(7)
model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=DTYPE).eval()


def seconds(batch, length, tokens):
    ids = torch.randint(33, 127, (batch, length))
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens,
                       do_sample=False, pad_token_id=257)
    return time.perf_counter() - began


seconds(1, 64, 4)
first = sorted(seconds(1, 512, 1) for _ in range(3))[1]
row = {"prefill 512": 512 / first, "decode": (DECODE - 1) / (seconds(1, 16, DECODE) - seconds(1, 16, 1))}
for many in [8, 32]:
    whole = seconds(many, 64, OUT_TOKENS)
    row[f"{many} at once"] = many * OUT_TOKENS / whole
    row[f"{many} decoding"] = many * (OUT_TOKENS - 1) / (whole - seconds(many, 64, 1))
print(json.dumps(row))
