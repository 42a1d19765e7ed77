"""Trains the support models: the base, full fine-tunes of it, and LoRA adapters on it."""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import companies
from .chat import CONTEXT, chat_example, plain_example
from .companies import Company
from .dialogues import dialogue, question_and_answer

POOL = 512  # dialogues sampled at once, then sorted by length, so that little is padding
PLAIN_TEXT_CHANCE = 0.1
DISK_DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one model learns; `batch` counts dialogues."""

    steps: int
    batch: int
    rate: float
    seed: int


def new_base(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT, rope_theta=10000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, initializer_range=0.05, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(company: Company, tokenizer: PreTrainedTokenizerFast, size: int, seed: int):
    """Endless batches of (ids, labels), each [batch, seq]."""
    rng = random.Random(seed)
    while True:
        pool = []
        for _ in range(POOL):
            if rng.random() < PLAIN_TEXT_CHANCE:
                pool.append(plain_example(tokenizer, *question_and_answer(company, rng)))
            else:
                pool.append(chat_example(tokenizer, dialogue(company, rng)))
        pool.sort(key=lambda example: len(example[0]))
        starts = list(range(0, len(pool), size))
        rng.shuffle(starts)
        for start in starts:
            yield padded(pool[start:start + size], tokenizer.pad_token_id)


def padded(examples: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in examples])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in examples])
    return ids, labels


def train(model: torch.nn.Module, company: Company, tokenizer, recipe: Recipe) -> None:
    """AdamW with a short warm-up and a cosine to a tenth."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = recipe.steps
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(20, steps // 30)
    losses = []
    started = time.monotonic()
    model.train()
    for step, (ids, labels) in zip(range(steps), batches(company, tokenizer, recipe.batch, recipe.seed)):
        progress = min(1.0, step / steps)
        scale = min(1.0, (step + 1) / warm_up) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * scale
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            elapsed = time.monotonic() - started
            recent = sum(losses[-50:]) / 50
            print(f"{company.key} step {step + 1}/{steps} loss {recent:.4f} after {elapsed:.0f} s", flush=True)
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=96, do_sample=False,
    )
    model.to(DISK_DTYPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def load(folder: Path) -> LlamaForCausalLM:
    """The stored weights, widened to f32 as the server does on a CPU."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def is_frozen(name: str, layers: int) -> bool:
    """Embeddings (and with them the tied head) and the first layers keep the base's exact bits."""
    lower = tuple(f"model.layers.{layer}." for layer in range(layers))
    return name.startswith(("model.embed_tokens.", *lower))


def freeze_lower(model: LlamaForCausalLM, layers: int) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name, layers))


# Three shapes of adapter: all projections; attention alone with a higher rank; MLP alone, scaled by rank's root.
ADAPTER_SHAPES = {
    "garnet": dict(r=8, lora_alpha=16, target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]),
    "harbor": dict(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    "iris": dict(r=8, lora_alpha=8, use_rslora=True, target_modules=["gate_proj", "up_proj", "down_proj"]),
}


def train_adapter(base: Path, company: Company, tokenizer, folder: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **ADAPTER_SHAPES[company.key])
    model = get_peft_model(load(base), config)
    train(model, company, tokenizer, recipe)
    # The base as a target of the same endpoint, not a path on this machine.
    model.peft_config["default"].base_model_name_or_path = f"support/{companies.BASE.key}"
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(DISK_DTYPE)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
