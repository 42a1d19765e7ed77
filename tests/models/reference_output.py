"""How reference outputs are written: one compact JSON per case, floats with seven significant digits."""

import json
import shutil
from pathlib import Path

import torch


def rounded(values):
    """A tensor or nested list as nested lists of floats with seven significant digits."""
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.7g}")


def fresh_folder(path: Path) -> Path:
    """An empty folder at `path`; whatever was there is removed, so that no stale file survives."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def randomise(model: torch.nn.Module, seed: int, spread: float) -> None:
    """Draws every parameter anew, so that an ignored bias or norm weight shows in the outputs.

    Matrices: normal with deviation `spread`; norm weights: around 1; biases: around 0.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() or ".ln_" in name
            if is_norm and name.endswith("weight"):
                parameter.copy_(1.0 + 0.25 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(spread * noise)
