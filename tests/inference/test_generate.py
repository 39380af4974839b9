"""Answers are a function of sampling, seed, prompt and weights: of no file beside them, and of no batch mates."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from doors import door_config
from tiny import FP32, FP64, SHAPE, byte_tokenizer, load_tiny, write_tiny_model
from torch import nn

from dpo_lab.config.brought import REFERENCE, bring
from dpo_lab.data.templates import Template
from dpo_lab.inference.generate import Answer, Asked, answers, generate
from dpo_lab.inference.sampler import Repetition, Sampling
from dpo_lab.inference.stage import Stage, load_stage
from dpo_lab.inference.talk.asking import ask
from dpo_lab.inference.talk.conversation import Conversation
from dpo_lab.models.mixed import mixes
from dpo_lab.models.precision import Precision
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.terminal import Terminal

LENGTH = 24
SHORT, LONG = "Why?", "Tell me of the sea, of ships and of those who sail them."


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return load_tiny(tiny_model, FP64)


@pytest.fixture
def template() -> Template:
    return Template(byte_tokenizer(), "auto")


def ids_of(template: Template, *questions: str) -> list[list[int]]:
    return template.prompt_ids([[{"role": "user", "content": question}] for question in questions])


def said(model: Any, template: Template, prompts: list[list[int]], **sampling: Any) -> list[list[int]]:
    found = generate(model, prompts, template, Sampling(LENGTH, **sampling), FP64)
    return [answer.ids for answer in found]


def theirs(model: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    """What transformers' own generate says, padded on the left with token 0 unless told otherwise, up to its end."""
    pad, width = settings.setdefault("pad_token_id", 0), max(map(len, prompts))
    rows = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(input_ids=rows, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False, **settings)
    return [row[: row.index(2)] if 2 in row else row for row in out[:, width:].tolist()]


# The model's own generation_config


@pytest.mark.parametrize("setting", ["repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "sequence_bias"])
def test_what_the_models_file_says_of_sampling_changes_nothing(model: Any, template: Template, setting: str) -> None:
    prompts = ids_of(template, SHORT, LONG)
    plain = said(model, template, prompts)
    assert plain == theirs(model, prompts)
    first = plain[0][0]
    values = {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [first],
        "sequence_bias": [[[first], -100.0]],
    }
    own = model.generation_config
    setattr(own, setting, values[setting])
    assert theirs(model, prompts) != plain, "or the setting says nothing here"
    assert said(model, template, prompts) == plain
    assert model.generation_config is own
    assert getattr(own, setting) == values[setting]


def test_an_answer_ends_at_the_ends_that_the_models_file_names(model: Any, template: Template) -> None:
    prompts = ids_of(template, SHORT, LONG)
    whole, other = said(model, template, prompts)
    end = next(token for token in whole[3:] if token not in (*whole[:3], *other))
    place = whole.index(end)
    model.generation_config.eos_token_id = [2, end]
    heard = ["", ""]

    def on_text(row: int, text: str) -> None:
        heard[row] += text

    cut, uncut = generate(model, prompts, template, Sampling(LENGTH), FP64, on_text=on_text)
    assert (cut.ids, cut.ended, cut.tokens) == (whole[:place], True, place + 1)
    assert uncut.ids == other
    assert heard == [cut.text, uncut.text]


# The penalty for repetition


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_the_penalty_is_that_of_transformers_for_a_row_by_itself(
    model: Any, template: Template, penalty: float
) -> None:
    [ids] = ids_of(template, LONG)
    found = said(model, template, [ids], repetition_penalty=penalty)
    assert found == theirs(model, [ids], repetition_penalty=penalty)
    assert found != said(model, template, [ids])


def test_padding_was_not_said() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    pad, rows = 2, [[5, 6, 6], [7], [8, 2, 9, 3, 4]]
    width = max(map(len, rows))
    padding = torch.tensor([width - len(row) for row in rows])
    scores = torch.randn(len(rows), 12, generator=torch.Generator().manual_seed(0))
    padded = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    found = Repetition(1.7, padding)(padded, scores)
    reference = RepetitionPenaltyLogitsProcessor(1.7)
    for row, before, after in zip(rows, scores, found, strict=True):
        assert torch.equal(reference(torch.tensor([row]), before[None].clone())[0], after)
    assert found[0, pad] == scores[0, pad]
    assert found[2, pad] != scores[2, pad], "where the prompt holds it, it was"


def test_a_penalised_answer_does_not_depend_on_batch_mates(model: Any, template: Template) -> None:
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    [short, long] = ids_of(template, SHORT, LONG)
    sampling: dict[str, Any] = {"repetition_penalty": 5.0}
    [alone] = said(model, template, [short], **sampling)
    pad = template.tokenizer.pad_token_id = alone[0]
    assert pad not in short
    blind = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(5.0)])  # to where a prompt begins
    padded, _ = theirs(model, [short, long], pad_token_id=pad, logits_processor=blind)
    assert padded != alone, "or padding would not show"
    assert said(model, template, [short, long], **sampling) == [alone, *said(model, template, [long], **sampling)]


# Seeds


def test_each_row_draws_by_its_own_seed(model: Any, template: Template) -> None:
    [ids] = ids_of(template, SHORT)
    sampling: dict[str, Any] = {"temperature": 1.5}
    alone = {seed: said(model, template, [ids], **sampling, seed=seed)[0] for seed in (1, 2)}
    assert alone[1] != alone[2]
    found = generate(
        model, [ids] * 3, template, Sampling(LENGTH, **sampling, seed=9), FP64, seeds=[1, 2, 1]
    )  # fmt: skip
    assert [answer.ids for answer in found] == [alone[1], alone[2], alone[1]]
    stage = stage_of(model, template)
    rows = [Asked(REFERENCE, ids), Asked(REFERENCE, ids, 2)]
    made = answers(stage, rows, Sampling(LENGTH, **sampling, seed=1))
    assert [answer.ids for answer in made] == [alone[1], alone[2]]


# Adapters that cannot share a batch


def stage_of(model: Any, template: Template, *names: str, precision: Precision = FP64) -> Stage:
    """A stage as far as answers look at it; the adapters are called result0, ..."""
    parts: Any = {
        "config": None,
        "subjects": tuple(SimpleNamespace(name=name, whole=False) for name in names),
        "start": SimpleNamespace(adapter=None),
        "passes": None,
    }
    device = torch.device("cpu")
    return Stage(template=template, precision=precision, device=device, model=model, wholes={}, **parts)


def write_moe(folder: Path) -> Path:
    """A Qwen2-MoE, whose shared expert is handed all tokens of a batch as one list."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        **SHAPE, bos_token_id=0, eos_token_id=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, decoder_sparse_step=1,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2MoeForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapted(folder: Path, config: Any) -> Any:
    """The model of a folder with an adapter that has moved a good deal."""
    from peft import get_peft_model

    model = get_peft_model(load_tiny(folder, FP32), config, adapter_name="result0")  # experts know no fp64
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "result0" in name and not isinstance(parameter, nn.ParameterDict):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model.eval().requires_grad_(False)


ATTENTION, MLP = ["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"]


def kinds() -> dict[str, tuple[str, Any, bool]]:
    """(model, configuration of the adapter, whether its rows share a batch with the reference's)."""
    from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig

    same: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    return {
        "lora": ("llama", LoraConfig(r=4, target_modules=ATTENTION, **same), True),
        "dora": ("llama", LoraConfig(r=4, target_modules=ATTENTION, use_dora=True, **same), False),
        "biases": ("qwen2", LoraConfig(r=4, target_modules=ATTENTION, lora_bias=True, **same), False),
        "ia3": ("llama", IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], **same), False),
        "loha": ("llama", LoHaConfig(r=4, target_modules=ATTENTION, **same), False),
        "lokr": ("llama", LoKrConfig(r=4, target_modules=ATTENTION, **same), False),
        "moe": ("moe", LoraConfig(r=4, target_modules=[*ATTENTION, *MLP], **same), False),
        "moe's attention": ("moe", LoraConfig(r=4, target_modules=ATTENTION, **same), True),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "dora", "biases", "ia3", "loha", "lokr", "moe", "moe's attention"])
def test_side_by_side_each_answers_as_peft_does_alone(tmp_path: Path, template: Template, kind: str) -> None:
    family, config, together = kinds()[kind]
    folder = write_moe(tmp_path) if family == "moe" else write_tiny_model(tmp_path, family)
    model = adapted(folder, config)
    prompts = ids_of(template, SHORT, LONG, SHORT)
    names = [REFERENCE, "a", "a"]
    stage = stage_of(model, template, "a", precision=FP32)
    assert mixes(model) is together
    assert not any(module._forward_pre_hooks for module in model.modules())
    made = answers(stage, [Asked(*row) for row in zip(names, prompts, strict=True)], Sampling(LENGTH))
    expected = []
    for name, ids in zip(names, prompts, strict=True):
        with stage.speaking(name) as speaker:
            expected += theirs(speaker, [ids])
    assert [answer.ids for answer in made] == expected
    assert expected[0] != expected[2], "or the adapter does nothing"


def test_an_adapter_that_comes_later_is_looked_at_anew(tmp_path: Path) -> None:
    from peft import LoraConfig

    model = adapted(write_moe(tmp_path), LoraConfig(r=4, target_modules=ATTENTION))
    assert mixes(model)
    assert mixes(model)
    model.add_adapter("more", LoraConfig(r=4, target_modules=MLP))
    assert not mixes(model)


# How far a model reaches


def test_conversations_have_the_room_that_dynamic_scaling_makes(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", max_position_embeddings=128)
    own = ("model=hf", f"model.path={folder}", "trainer.accelerator=cpu", f"cache_dir={tmp_path}")
    scaled = ("model.rope.type=dynamic", "data.max_length=512")

    def answer(*words: str) -> tuple[Stage, Answer]:
        config, _, subjects = bring(*door_config("chat", *own, *words))
        stage = load_stage(config, subjects, Terminal(quiet=True))
        made = ask(stage, Conversation(), [REFERENCE], "long " * 40, Sampling(LENGTH))
        return stage, made.answers[REFERENCE]

    with pytest.raises(ConfigError, match="room for 104"):
        answer()
    stage, made = answer(*scaled)
    assert stage.context == 512
    assert made.tokens == LENGTH or made.ended
