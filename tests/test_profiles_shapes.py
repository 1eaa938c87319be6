"""Model shapes against hand counts and published parameter counts."""

import pytest

from profiles.shapes import load_model, load_models


def test_operators_of_llama_by_hand() -> None:
    llama = load_model("Llama-3.1-8B")
    assert [(o.name, o.n, o.k) for o in llama.operators] == [
        ("qkv_proj", 32 * 128 + 2 * 8 * 128, 4096),
        ("o_proj", 4096, 4096),
        ("gate_up_proj", 28672, 4096),
        ("down_proj", 4096, 14336),
    ]
    assert llama.layer_params == 25_165_824 + 16_777_216 + 117_440_512 + 58_720_256
    assert llama.linear_params == 32 * 218_103_808 + 128_256 * 4096
    # Published: 8,030,261,248, which includes 65 norms of 4096.
    assert llama.params + 65 * 4096 == 8_030_261_248


def test_tied_embeddings_count_once() -> None:
    qwen = load_model("Qwen3-0.6B")
    # Keras' preset gives 596,049,920: with 28 times two norms of 1024 and two of 128, and one more.
    assert qwen.params + 28 * (2 * 1024 + 2 * 128) + 1024 == 596_049_920


def test_attention_may_be_wider_than_the_hidden_size() -> None:
    o_proj = load_model("Qwen3-32B").operators[1]
    assert (o_proj.n, o_proj.k) == (5120, 64 * 128)


def test_sizes_agree_with_the_names() -> None:
    billions = {name: shape.params / 1e9 for name, shape in load_models().items()}
    assert billions == pytest.approx(
        {
            "Qwen3-0.6B": 0.6,
            "Qwen3-1.7B": 1.7,
            "Qwen3-4B": 4.0,
            "Qwen3-8B": 8.2,
            "Qwen3-14B": 14.8,
            "Qwen3-32B": 32.8,
            "Qwen2.5-72B": 72.7,
            "Llama-3.1-8B": 8.03,
            "Llama-3.1-70B": 70.6,
            "Mistral-7B": 7.25,
            "Falcon3-3B": 3.23,
            "Qwen2.5-0.5B": 0.49,
            "Qwen2.5-1.5B": 1.54,
            "Qwen2.5-3B": 3.09,
            "Qwen2.5-7B": 7.61,
            "Qwen2.5-14B": 14.7,
            "Qwen2.5-32B": 32.5,
            "Llama-3.2-1B": 1.24,
            "Llama-3.2-3B": 3.21,
        },
        rel=0.015,
    )


def test_names_ignore_case_and_unknown_ones_list_the_known() -> None:
    assert load_model("qwen3-0.6b").name == "Qwen3-0.6B"
    with pytest.raises(ValueError, match=r"no model named 'gpt-5'.*Qwen3-0\.6B.*Falcon3-3B"):
        load_model("gpt-5")


def test_lm_head_is_no_part_of_a_layer() -> None:
    shape = load_model("Mistral-7B")
    assert (shape.lm_head.n, shape.lm_head.k) == (32768, 4096)
    assert "lm_head" not in [o.name for o in shape.operators]
