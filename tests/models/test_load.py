"""Every family on offer loads, and the lab's own forward gives the log-probs that the model itself gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FP32, SHAPE, byte_tokenizer, difference, plain_model, tiny_examples
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from dpo_lab.config.schema import Quant
from dpo_lab.data.collate import collate
from dpo_lab.models.load import load_model
from dpo_lab.models.locate import Located
from dpo_lab.preference.forward import Forward
from dpo_lab.runtime.errors import ModelError

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WINDOWS = {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "llama3.2": LlamaConfig(
        **SHAPE,
        tie_word_embeddings=True,
        rope_parameters=LLAMA3 | {"original_max_position_embeddings": 32, "rope_theta": 500000.0},
    ),
    "smollm2": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**SHAPE, **WINDOWS, query_pre_attn_scalar=8),
    "gemma2 with soft caps": Gemma2Config(
        **SHAPE, **WINDOWS, final_logit_softcapping=2.0, attn_logit_softcapping=5.0, query_pre_attn_scalar=8
    ),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=16),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, config in FAMILIES.items():
        made[name] = tmp_path_factory.mktemp("family")
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(made[name])
        byte_tokenizer().save_pretrained(made[name])
    return made


@torch.no_grad()
def own_logps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """From the model's own logits of one sequence, unpadded."""
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
    predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return predicted.gather(-1, torch.tensor(answer)[:, None])[:, 0]


SOFT_CAPS = "gemma2 with soft caps"


def test_attention_that_would_leave_something_out_is_refused(folders):
    settings = plain_model(folders[SOFT_CAPS]).model_copy(update={"attn": "sdpa"})
    with pytest.raises(ModelError, match=r"leaves out the soft cap.*Use model\.attn=auto"):
        load_model(Located(folders[SOFT_CAPS], "x"), settings, Quant(bits=None), FP32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "attn"), [(f, a) for f in FAMILIES for a in ("auto", "sdpa", "eager") if (f, a) != (SOFT_CAPS, "sdpa")]
)
def test_a_family_gives_the_log_probs_of_its_own_logits(folders, family, attn):
    folder = folders[family]
    settings = plain_model(folder).model_copy(update={"attn": attn})
    model = load_model(Located(folder, family), settings, Quant(bits=None), FP32, torch.device("cpu"))
    assert attn == "auto" or model.config._attn_implementation == attn
    examples = tiny_examples()
    layout = collate(examples, [*range(len(examples))])
    ours = Forward().logps(model, layout).split([n for *_, n in layout.answers])
    answers = [(e.prompt_ids, ids) for e in examples for ids in (e.chosen_ids, e.rejected_ids)]
    lengths = [len(ids) for _, ids in answers]
    assert max(len(prompt) + n for (prompt, _), n in zip(answers, lengths, strict=True)) > 32, "beyond the windows"
    for (prompt, ids), logps in zip(answers, ours, strict=True):
        assert difference(logps, own_logps(model, prompt, ids)) < 1e-5
