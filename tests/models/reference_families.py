"""Tiny checkpoints of the other decoder families and what transformers computes from them."""

from pathlib import Path

import torch
import transformers

from reference_llama import PROMPT_LENGTHS, expected
from reference_output import fresh_folder, randomise, write_json

TINY = dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4)
GROUPED = dict(TINY, num_key_value_heads=2)
WIDE = dict(GROUPED, hidden_size=64, num_hidden_layers=2)
TOWER = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
)
FALCON = dict(
    vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_hidden_size=56, alibi=False,
    new_decoder_architecture=False,
)
GPT_OSS = dict(
    GROUPED, hidden_size=64, intermediate_size=96, num_hidden_layers=3, head_dim=16, num_local_experts=5,
    num_experts_per_tok=2, sliding_window=8, rope_theta=10000.0, pad_token_id=None,
    rope_scaling=dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=8.0, beta_slow=1.0, truncate=False,
    ),
)
OSS_LARGER = {"router.weight": 4.0, "gate_up_proj": 1.5, "down_proj": 0.02}
GRANITE_MOE = dict(
    GROUPED, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2, embedding_multiplier=3.0,
    attention_multiplier=0.5, residual_multiplier=0.6, logits_scaling=2.5,
)
SHORT = [1.0, 1.1, 1.25, 1.5, 1.75, 2.0]
LONG = [1.0, 1.4, 2.0, 3.5, 5.0, 8.0]

# Every case: the classes by their prefix, how the configuration differs, and, where it is not
# what the configuration says, the context that is served and the lengths of the prompts.
# Windows are shorter than most prompts; caps are low enough to bend. `larger` multiplies parameters by
# the end of their names.
CASES = {
    "llama-rope-linear": dict(
        seed=201, family="Llama", config=dict(GROUPED, rope_scaling=dict(rope_type="linear", factor=4.0)),
    ),
    # Up to the context trained on, which is what is served, it changes nothing.
    "llama-rope-dynamic": dict(
        seed=202, family="Llama", config=dict(GROUPED, rope_scaling=dict(rope_type="dynamic", factor=2.5)),
    ),
    # Head size 32: pairs that turn more than 32 times in 64 positions, fewer than once, and between.
    "llama-rope-yarn": dict(
        seed=203, family="Llama",
        config=dict(
            GROUPED, head_dim=32, rope_theta=10000.0,
            rope_scaling=dict(
                rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=8.0, beta_slow=1.0,
            ),
        ),
    ),
    "mistral-window": dict(
        seed=211, family="Mistral", config=dict(GROUPED, head_dim=16, sliding_window=8, rope_theta=10000.0),
    ),
    "qwen2-biases": dict(
        seed=221, family="Qwen2", config=dict(GROUPED, rope_theta=1000000.0, tie_word_embeddings=True),
    ),
    "qwen2-windows-yarn": dict(
        seed=222, family="Qwen2",
        config=dict(
            GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1, rope_theta=10000.0,
            rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32),
        ),
    ),
    "qwen3-head-norms": dict(
        seed=231, family="Qwen3", config=dict(GROUPED, head_dim=24, rope_theta=1000000.0, tie_word_embeddings=True),
    ),
    "phi3-window-partial": dict(
        seed=241, family="Phi3",
        config=dict(WIDE, partial_rotary_factor=0.75, sliding_window=12, pad_token_id=None),
    ),
    "phi3-longrope-long": dict(
        seed=242, family="Phi3", lengths=(9, 10, 12, 17, 40),
        config=dict(
            WIDE, partial_rotary_factor=0.75, pad_token_id=None, tie_word_embeddings=True,
            original_max_position_embeddings=8,
            rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG),
        ),
    ),
    "phi3-longrope-short": dict(
        seed=243, family="Phi3", context=64,
        config=dict(
            WIDE, partial_rotary_factor=0.75, pad_token_id=None,
            original_max_position_embeddings=64,
            rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG),
        ),
    ),
    "smollm3-nope": dict(
        seed=251, family="SmolLM3",
        config=dict(GROUPED, num_hidden_layers=4, no_rope_layer_interval=2, pad_token_id=None),
    ),
    "gemma1": dict(
        seed=261, family="Gemma", config=dict(GROUPED, head_dim=16, hidden_act="gelu_pytorch_tanh", pad_token_id=None),
    ),
    "gemma2-caps-windows": dict(
        seed=262, family="Gemma2",
        config=dict(
            GROUPED, head_dim=16, sliding_window=8, query_pre_attn_scalar=24, attn_logit_softcapping=4.0,
            final_logit_softcapping=6.0, pad_token_id=None,
        ),
    ),
    "gemma3-two-ropes": dict(
        seed=263, family="Gemma3", config_class="Gemma3TextConfig",
        config=dict(
            GROUPED, head_dim=16, num_hidden_layers=4, sliding_window=8, sliding_window_pattern=3,
            query_pre_attn_scalar=20, rope_theta=100000.0, rope_local_base_freq=1000.0,
            rope_scaling=dict(rope_type="linear", factor=8.0), pad_token_id=None,
        ),
    ),
    "gpt2": dict(
        seed=271, family="GPT2", model_class="GPT2LMHeadModel",
        config=dict(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    ),
    "stablelm-partial": dict(
        seed=281, family="StableLm", config=dict(WIDE, use_qkv_bias=True, partial_rotary_factor=0.25),
    ),
    "stablelm-parallel": dict(
        seed=282, family="StableLm", config=dict(WIDE, use_parallel_residual=True),
    ),
    "gpt-neox-parallel": dict(
        seed=291, family="GPTNeoX", config=dict(TINY, hidden_size=64, num_hidden_layers=2, rotary_pct=0.25, tie_word_embeddings=False),
    ),
    "gpt-neox-sequential": dict(
        seed=292, family="GPTNeoX",
        config=dict(TINY, hidden_size=32, rotary_pct=0.5, use_parallel_residual=False, tie_word_embeddings=False),
    ),
    "mixtral": dict(
        seed=301, family="Mixtral",
        config=dict(GROUPED, num_local_experts=5, num_experts_per_tok=2, rope_theta=10000.0, sliding_window=None),
    ),
    "qwen3-moe-dense-layer": dict(
        seed=311, family="Qwen3Moe",
        config=dict(
            GROUPED, head_dim=16, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24,
            norm_topk_prob=True, mlp_only_layers=[1], rope_theta=1000000.0,
        ),
    ),
    "qwen3-moe-unnormed": dict(
        seed=312, family="Qwen3Moe",
        config=dict(
            GROUPED, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40,
            norm_topk_prob=False, decoder_sparse_step=2, tie_word_embeddings=True, rope_theta=1000000.0,
        ),
    ),
    # With a tower for images, which none of the prompts has.
    "gemma3-images": dict(
        seed=406, family="Gemma3", model_class="Gemma3ForConditionalGeneration",
        config=dict(
            mm_tokens_per_image=4, vision_config=dict(TOWER, model_type="siglip_vision_model"),
            text_config=dict(
                GROUPED, head_dim=16, sliding_window=8, sliding_window_pattern=3, query_pre_attn_scalar=20,
                rope_theta=100000.0, rope_local_base_freq=1000.0, rope_scaling=dict(rope_type="linear", factor=8.0),
            ),
        ),
    ),
    "mistral3-images": dict(
        seed=402, family="Mistral3", model_class="Mistral3ForConditionalGeneration",
        config=dict(
            vision_config=dict(TOWER, model_type="pixtral", head_dim=8),
            text_config=dict(GROUPED, model_type="mistral", head_dim=16, sliding_window=None, tie_word_embeddings=False),
        ),
    ),
    "llava-images": dict(
        seed=403, family="Llava", model_class="LlavaForConditionalGeneration",
        config=dict(
            vision_config=dict(TOWER, model_type="clip_vision_model", projection_dim=16),
            text_config=dict(GROUPED, model_type="llama", tie_word_embeddings=False),
        ),
    ),
    "opt": dict(
        seed=411, family="OPT",
        config=dict(vocab_size=96, hidden_size=32, ffn_dim=56, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=32),
    ),
    "phi": dict(seed=421, family="Phi", config=dict(GROUPED, hidden_size=64, num_hidden_layers=2, partial_rotary_factor=0.5)),
    "olmo-limits": dict(seed=431, family="Olmo", config=dict(GROUPED, clip_qkv=0.8, pad_token_id=None)),
    "olmo2": dict(seed=441, family="Olmo2", config=dict(GROUPED, pad_token_id=None)),
    "olmo3-windows-yarn": dict(
        seed=433, family="Olmo3",
        config=dict(
            GROUPED, num_hidden_layers=4, sliding_window=8, pad_token_id=None, rope_theta=10000.0,
            rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
        ),
    ),
    "olmoe-limits": dict(
        seed=435, family="Olmoe",
        config=dict(GROUPED, intermediate_size=24, num_experts=5, num_experts_per_tok=2, clip_qkv=0.9, pad_token_id=None),
    ),
    "granite-multipliers": dict(
        seed=441, family="Granite",
        config=dict(
            GROUPED, embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.6, logits_scaling=2.5,
            attention_bias=True, mlp_bias=True,
        ),
    ),
    "granite-moe": dict(seed=442, family="GraniteMoe", config=dict(GRANITE_MOE, tie_word_embeddings=True)),
    "granite-moe-shared": dict(
        seed=444, family="GraniteMoeShared", config=dict(GRANITE_MOE, shared_intermediate_size=40, attention_bias=True),
    ),
    # Gates so large that many of them are cut off, routers that are sure, or rounding would choose other experts.
    "gpt-oss": dict(seed=527, family="GptOss", dtype=torch.bfloat16, larger=OSS_LARGER, config=GPT_OSS),
    "starcoder2-window": dict(seed=451, family="Starcoder2", config=dict(GROUPED, sliding_window=8)),
    "cohere": dict(seed=461, family="Cohere", config=dict(GROUPED, logit_scale=0.4, pad_token_id=None)),
    "cohere2-windows": dict(
        seed=462, family="Cohere2",
        config=dict(GROUPED, num_hidden_layers=4, logit_scale=0.4, sliding_window=8, attention_bias=True, pad_token_id=None),
    ),
    "glm": dict(seed=471, family="Glm", config=dict(GROUPED, head_dim=16, pad_token_id=None)),
    "glm4": dict(seed=472, family="Glm4", config=dict(GROUPED, head_dim=16, attention_bias=False, pad_token_id=None)),
    "qwen2-moe-shared": dict(
        seed=481, family="Qwen2Moe",
        config=dict(
            GROUPED, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=40,
            mlp_only_layers=[1], tie_word_embeddings=False,
        ),
    ),
    "falcon-one-key": dict(seed=491, family="Falcon", config=dict(FALCON, multi_query=True)),
    "falcon-grouped": dict(
        seed=492, family="Falcon", config=dict(FALCON, num_kv_heads=2, new_decoder_architecture=True, bias=True),
    ),
    "falcon-in-turn": dict(seed=493, family="Falcon", config=dict(FALCON, multi_query=False, parallel_attn=False, bias=True)),
    "gptj-partial": dict(
        seed=501, family="GPTJ", config=dict(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=128, n_inner=96, rotary_dim=8),
    ),
    "gpt-bigcode": dict(
        seed=518, family="GPTBigCode", config=dict(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    ),
    "gpt-bigcode-heads": dict(
        seed=512, family="GPTBigCode",
        config=dict(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128, multi_query=False),
    ),
}


def write_family_cases(root: Path) -> None:
    for name, case in CASES.items():
        write_case(fresh_folder(root / name), name, case)


def write_case(folder: Path, name: str, case: dict) -> None:
    family = case["family"]
    config_class = getattr(transformers, case.get("config_class", f"{family}Config"))
    model_class = getattr(transformers, case.get("model_class", f"{family}ForCausalLM"))
    told = part = dict(case["config"])
    if "text_config" in told:
        part = told["text_config"] = dict(told["text_config"])
    if "n_positions" not in part:
        part["max_position_embeddings"] = 128
    config = config_class(bos_token_id=1, eos_token_id=2, attn_implementation="eager", **told)
    model = model_class(config).eval()
    randomise(model, case["seed"], spread=0.2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            larger = [by for end, by in case.get("larger", {}).items() if name.endswith(end)]
            parameter.mul_(larger[0] if larger else 1.0)
    dtype = case.get("dtype", torch.float32)
    model = model.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder)
    # The reference is what the stored weights mean, computed in f32.
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    numbers = expected(model, name, case["seed"], case.get("lengths", PROMPT_LENGTHS))
    numbers["kind"] = "decoder"
    if "context" in case:
        numbers["context"] = case["context"]
    write_json(folder / "expected.json", numbers)
