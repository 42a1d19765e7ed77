"""Writes the committed reference outputs: `python tests/models/make_references.py`.

The pins are in requirements.txt beside this script; every weight and prompt comes from a fixed seed.
"""

from pathlib import Path

import torch
from transformers.utils import logging

from reference_adapters import write_adapter_cases
from reference_bert import write_bert_cases
from reference_encoders import write_encoder_cases
from reference_families import write_family_cases
from reference_gguf import write_gguf_cases
from reference_heads import write_head_cases
from reference_llama import write_llama_cases
from reference_mxfp4 import write_mxfp4_case
from reference_tasks import write_task_cases
from reference_text import write_text_case
from reference_vocabulary import write_vocabulary_cases

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    models = REPOSITORY / "src/models/tests/references"
    write_llama_cases(models)
    write_family_cases(models)
    write_mxfp4_case(models)
    write_gguf_cases(models)
    write_bert_cases(models)
    write_encoder_cases(models)
    write_head_cases(models)
    write_adapter_cases(REPOSITORY / "src/models/tests/adapters", models)
    write_text_case(REPOSITORY / "src/serving/tests/references")
    write_vocabulary_cases(REPOSITORY / "src/serving/tests/references")
    write_task_cases(REPOSITORY / "src/serving/tests/references/tasks")


if __name__ == "__main__":
    main()
