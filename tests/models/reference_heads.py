"""Heads for labels: behind decoders, and of adapters whose base has another one or none."""

import json
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import reference_adapters
from reference_encoders import DECODER, ENDS, HIDDEN, built, expected, inputs, write_modules
from reference_output import fresh_folder, randomise, rounded, write_json

PADDING = 3
# Decoders that name labels of a text; the padding's token ends some of the inputs.
CLASSIFIERS = {
    "encoder-llama-classes": dict(seed=351, name="Llama", labels=3, config=dict(pad_token_id=PADDING)),
    "encoder-qwen3-reward": dict(seed=352, name="Qwen3", labels=1, config=dict(head_dim=16)),
    "encoder-gemma2-classes": dict(
        seed=353, name="Gemma2", labels=2,
        config=dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=8, pad_token_id=PADDING),
    ),
    "encoder-gpt2-classes": dict(
        seed=354, name="GPT2", labels=4,
        config=dict(n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=48, pad_token_id=PADDING),
    ),
}

# `architecture`: what the base is served as; `model`: what the adapter was trained with.
ADAPTERS = {
    "bert-five": dict(
        base="encoder-bert", seed=361, architecture="BertForSequenceClassification",
        model="BertForSequenceClassification", labels=5,
        config=dict(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"]),
    ),
    "bert-one": dict(
        base="encoder-bert", seed=362, architecture="BertForSequenceClassification",
        model="BertForSequenceClassification", labels=1,
        config=dict(task_type="SEQ_CLS", r=2, lora_alpha=8, target_modules=["key", "output.dense"]),
    ),
    "bert-bare": dict(
        base="encoder-bert", seed=363, architecture="BertForMaskedLM",
        model="BertForSequenceClassification", labels=3,
        config=dict(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "dense"]),
    ),
    "roberta-bare": dict(
        base="encoder-roberta", seed=364, architecture="RobertaModel",
        model="RobertaForSequenceClassification", labels=4,
        config=dict(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"]),
    ),
    "modernbert-bare": dict(
        base="encoder-modernbert", seed=365, architecture="ModernBertForMaskedLM",
        model="ModernBertForSequenceClassification", labels=3,
        config=dict(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["Wqkv", "Wo"]),
    ),
    "distilbert-tokens-bare": dict(
        base="encoder-distilbert", seed=366, architecture="DistilBertForMaskedLM",
        model="DistilBertForTokenClassification", labels=7,
        config=dict(task_type="TOKEN_CLS", r=3, lora_alpha=6, target_modules=["q_lin", "v_lin"]),
    ),
    "qwen3-bare": dict(
        base="encoder-qwen3-last", seed=367, architecture="Qwen3Model",
        model="Qwen3ForSequenceClassification", labels=3,
        config=dict(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    ),
    "llama-five": dict(
        base="encoder-llama-classes", seed=368, architecture="LlamaForSequenceClassification",
        model="LlamaForSequenceClassification", labels=5,
        config=dict(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
    ),
}

# The same on bases that generate text: what people fine-tune for labels.
ON_GENERATORS = {
    "llama-labels": dict(
        base="llama-mha", seed=371, model="LlamaForSequenceClassification", labels=5,
        config=dict(r=4, lora_alpha=8, target_modules="all-linear"),
    ),
    "qwen2-labels": dict(
        base="qwen2-biases", seed=372, model="Qwen2ForSequenceClassification", labels=2,
        config=dict(r=2, lora_alpha=4, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
    ),
    "gemma2-reward": dict(
        base="gemma2-caps-windows", seed=373, model="Gemma2ForSequenceClassification", labels=1,
        config=dict(r=3, lora_alpha=6, target_modules=["q_proj", "o_proj", "gate_proj"]),
    ),
    "gpt2-labels": dict(
        base="gpt2", seed=374, model="GPT2ForSequenceClassification", labels=3,
        config=dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, bias="all"),
    ),
}


def write_head_cases(root: Path) -> None:
    for folder, case in CLASSIFIERS.items():
        write_classifier(fresh_folder(root / folder), folder, case)
    write_published(fresh_folder(root / "encoder-qwen3-published"))
    write_both_ways(fresh_folder(root / "encoder-gemma3-both-ways"))
    for folder, case in ADAPTERS.items():
        write_own_head(fresh_folder(root.parent / "encoder-heads" / folder), root / case["base"], case)
    for folder, case in ON_GENERATORS.items():
        write_on_generator(fresh_folder(root.parent / "decoder-heads" / folder), root / case["base"], case)


def write_classifier(folder: Path, name: str, case: dict) -> None:
    shape = dict(vocab_size=DECODER["vocab_size"]) if case["name"] == "GPT2" else DECODER
    config = getattr(transformers, case["name"] + "Config")(
        attn_implementation="eager", num_labels=case["labels"], **(shape | case["config"])
    )
    architecture = case["name"] + ENDS["classes"]
    model = getattr(transformers, architecture)(config).eval()
    randomise(model, case["seed"], spread=0.2)
    model.save_pretrained(folder)
    items = inputs(name) + [dict(ids=ids, second=None) for ids in ([9, 8, PADDING, PADDING], [PADDING, PADDING])]
    head = dict(
        head="classes", architecture=architecture, changes={}, inputs=[expected("classes", model, item) for item in items]
    )
    write_json(folder / "expected.json", dict(case=name, seed=case["seed"], heads=[head]))


def write_published(folder: Path) -> None:
    """As Qwen3-Embedding is published: tensors of the bare decoder under a language model's configuration."""
    config = transformers.Qwen3Config(attn_implementation="eager", tie_word_embeddings=True, head_dim=16, **DECODER)
    model = transformers.Qwen3Model(config).eval()
    randomise(model, 359, spread=0.2)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", written | dict(architectures=["Qwen3ForCausalLM"]))
    write_modules(folder, "lasttoken")
    prompts = {"query": "Instruct: Given a web search query\nQuery:", "document": ""}
    write_json(
        folder / "config_sentence_transformers.json",
        dict(prompts=prompts, default_prompt_name=None, similarity_fn_name="cosine"),
    )
    results = [expected("vectors", model, item, last=True) for item in inputs("encoder-qwen3-published")]
    head = dict(head="vectors", architecture="Qwen3ForCausalLM", changes={}, inputs=results)
    write_json(folder / "expected.json", dict(case="encoder-qwen3-published", seed=359, heads=[head]))


def write_both_ways(folder: Path) -> None:
    """As EmbeddingGemma is published: every token sees both sides, and two projections follow the mean."""
    window = 8
    config = transformers.Gemma3TextConfig(
        attn_implementation="eager", use_bidirectional_attention=True, head_dim=16, query_pre_attn_scalar=16,
        sliding_window=window, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **(DECODER | dict(num_hidden_layers=3)),
    )
    model = transformers.Gemma3TextModel(config)
    randomise(model, 355, spread=0.2)
    model.save_pretrained(folder)
    # transformers halves the window when it reads a configuration, and saves the half.
    written = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", written | dict(sliding_window=window))
    model = transformers.Gemma3TextModel.from_pretrained(folder, attn_implementation="eager").eval()
    layers = [torch.nn.Linear(HIDDEN, 4 * HIDDEN, bias=False), torch.nn.Linear(4 * HIDDEN, HIDDEN, bias=False)]
    write_modules(folder, "mean_tokens", [("2_Dense", "Dense"), ("3_Dense", "Dense"), ("4_Normalize", "Normalize")])
    for index, linear in enumerate(layers):
        randomise(linear, 356 + index, spread=0.2)
        path = folder / f"{index + 2}_Dense"
        path.mkdir()
        shape = dict(in_features=linear.in_features, out_features=linear.out_features, bias=False)
        write_json(path / "config.json", shape | dict(activation_function="torch.nn.modules.linear.Identity"))
        save_file({"linear.weight": linear.weight.detach()}, path / "model.safetensors")
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    write_json(
        folder / "config_sentence_transformers.json",
        dict(prompts=prompts, default_prompt_name=None, similarity_fn_name="cosine"),
    )
    results = []
    for item in inputs("encoder-gemma3-both-ways"):
        with torch.inference_mode():
            ids = torch.tensor([item["ids"]])
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            results.append(item | dict(pooled=rounded(layers[1](layers[0](hidden.mean(dim=0))))))
    head = dict(head="vectors", architecture="Gemma3TextModel", changes={}, inputs=results)
    write_json(folder / "expected.json", dict(case="encoder-gemma3-both-ways", seed=355, heads=[head]))


def write_on_generator(folder: Path, base: Path, case: dict) -> None:
    adapted = with_own_head(base, case | dict(config=case["config"] | dict(task_type="SEQ_CLS")))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(case["seed"])
    inputs = []
    for length in (1, 6, 30):
        ids = torch.randint(0, adapted.config.vocab_size, (1, length), generator=generator)
        with torch.inference_mode():
            scores = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        inputs.append(dict(ids=ids[0].tolist(), logits=rounded(scores)))
    write_json(folder / "expected.json", dict(base=case["base"], labels=case["labels"], inputs=inputs))


def with_own_head(base: Path, case: dict):
    config = transformers.AutoConfig.from_pretrained(base, attn_implementation="eager", num_labels=case["labels"])
    tensors = load_file(base / "model.safetensors")
    brought = ("classifier.weight", "classifier.bias", "classifier.dense", "classifier.out_proj", "score.weight")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(brought)}
    model = getattr(transformers, case["model"])(config).eval()
    missing, _ = model.load_state_dict(tensors, strict=False)
    assert all(name.startswith(brought) for name in missing), missing
    adapted = get_peft_model(model, LoraConfig(**case["config"])).eval()
    reference_adapters.randomise(adapted, case["seed"], torch.float32)
    adapted.peft_config["default"].base_model_name_or_path = case["base"]
    return adapted


def write_own_head(folder: Path, base: Path, case: dict) -> None:
    head = next(head for head, end in ENDS.items() if case["model"].endswith(end))
    adapted = with_own_head(base, case)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    results = [expected(head, adapted, item) for item in inputs(case["base"])]
    write_json(
        folder / "expected.json",
        dict(
            base=case["base"], head=head, labels=case["labels"], architecture=case["architecture"], changes={},
            inputs=results,
        ),
    )
