"""Values that a key may have and that no option file sets: each changes the run as it says, or is refused with a reason."""

import json
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from pydantic import BaseModel
from runs import Lab, rows
from test_every_option import SHORT, Fact, Ran, holds, wide
from tiny import write_tiny_model

from dpo_lab.config.check import check
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.schema import Config, flatten
from dpo_lab.runtime.errors import LabError
from dpo_lab.runtime.files import read_json, read_jsonl

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


def gap(ran: Ran, *plain: str) -> float:
    """Largest difference of the reference's log-prob sums from those of a run without the choice."""
    pairs = zip(read_jsonl(ran.folder.eval_pairs), read_jsonl(ran.plain(*plain).eval_pairs), strict=True)
    return max(abs(one[key] - two[key]) for one, two in pairs for key in REFERENCE)


def apart(least: float, most: float, *plain: str) -> Callable[[Ran], None]:
    """The model computes otherwise, by about so much."""
    return lambda ran: holds(least < gap(ran, *plain) < most)


def alike(ran: Ran) -> None:
    """The same numbers another way."""
    assert gap(ran) < 1e-3


def rates(*expected: float) -> Callable[[Ran], None]:
    def check(ran: Ran) -> None:
        assert [row["train/lr"] for row in rows(ran.folder, "train/")] == pytest.approx(expected, rel=1e-6)

    return check


def has_kind(kind: str) -> Callable[[Ran], None]:
    def check(ran: Ran) -> None:
        assert ran.facts["model"]["rope"]["type"] == kind
        scaled = gap(ran, "data.max_length=600")
        assert scaled < 1e-3 if kind in ("dynamic", "llama3") else scaled > 1e-3, "near positions"

    return check


def cuts(*what: str) -> Callable[[Ran], None]:
    def check(ran: Ran) -> None:
        data = ran.facts["data"]["train"]
        assert sorted(data["cut"]) == sorted(what)
        assert data["kept"] > 10

    return check


def write_turns(path: Path) -> Path:
    """Pairs with an earlier turn; half of them have long answers."""
    rows = []
    for i in range(24):
        turns = [("user", f"Tell me of {i}."), ("assistant", "Gladly, any time."), ("user", "So?")]
        prompt = [{"role": role, "content": content} for role, content in turns]
        answers = {side: [{"role": "assistant", "content": text * (1 + i % 2 * 12)}] for side, text in SIDES.items()}
        rows.append({"prompt": prompt} | answers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learns_otherwise(ran: Ran) -> None:
    """Another step from the same start."""
    plain = rows(ran.plain(*ran.words[len(SHORT) : -1]), "train/")
    assert [row["train/loss"] for row in rows(ran.folder, "train/")] != [row["train/loss"] for row in plain]


def in_format(name: str, i: int, prompt: str, good: str, bad: str) -> list[dict[str, Any]]:
    """The rows of one pair."""

    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    def told(who: str, text: str) -> dict[str, str]:
        return {"from": who, "value": text}

    def part(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "value": text}]}

    answers = {"chosen": good, "rejected": bad}
    whole = {side: [said("user", prompt), said("assistant", text)] for side, text in answers.items()}
    rows: dict[str, list[dict[str, Any]]] = {
        "trl": [{"prompt": prompt} | answers],
        "alpaca": [{"instruction": prompt, "input": ""} | answers],
        "sharegpt": [
            {"conversations": [told("human", prompt)]} | {side: told("gpt", text) for side, text in answers.items()}
        ],
        "openai": [{"messages": [said("user", prompt)]} | {s: said("assistant", text) for s, text in answers.items()}],
        "v1": [{f"{side}_messages": [part("user", prompt), part("assistant", text)] for side, text in answers.items()}],
        "orca": [{"question": prompt} | answers],
        "argilla": [{"instruction": prompt, "chosen_response": good, "rejected_response": bad}],
        "icr": [{"input": prompt} | answers],
        "hh": [{side: f"\n\nHuman: {prompt}\n\nAssistant: {text}" for side, text in answers.items()}],
        "ultrafeedback": [{"prompt": prompt, "score_chosen": 8.0, "score_rejected": 3.0} | whole],
        "ranked": [{"prompt": prompt, "answers": [{"answer": bad, "rank": 2.0}, {"answer": good, "rank": 1.0}]}],
        "scored": [{"prompt": prompt, "responses": [bad, good], "scores": [1, 5]}],
        "kto": [{"prompt": prompt, "completion": text, "label": text == good} for text in (good, bad)],
    }
    return rows[name]


def write_format(path: Path, name: str) -> Path:
    """24 pairs, in any format the same ones."""
    pairs = [(f"Question {i}: why?", "Because " + "of this. " * (1 + i % 3) + "Yes.", "No") for i in range(24)]
    rows = [row for i, pair in enumerate(pairs) for row in in_format(name, i, *pair)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reads(name: str) -> Callable[[Ran], None]:
    """The same token ids as from the plainest format."""

    def check(ran: Ran) -> None:
        plain = ran.plain(f"data.path={write_format(ran.lab.root / 'plain.jsonl', 'trl')}", "data.format=trl")
        ours, theirs = ran.facts["data"], read_json(plain.facts)["data"]
        assert ours["format"] == name
        assert ours["train"]["kept"] == theirs["train"]["kept"] > 10
        assert ours["fingerprint"] == theirs["fingerprint"]
        assert ours["heldout_fingerprint"] == theirs["heldout_fingerprint"]

    return check


def makes(pairs: int) -> Callable[[Ran], None]:
    """So many pairs in both splits."""

    def check(ran: Ran) -> None:
        assert sum(ran.facts["data"][split]["kept"] for split in ("train", "heldout")) == pairs

    return check


def write_ranked(path: Path) -> Path:
    """12 prompts with three ranked answers each."""
    answers = [{"answer": text, "rank": rank} for rank, text in enumerate(("Of course it is.", "It may be.", "No"), 1)]
    rows = [{"prompt": f"Question {i}: is it?", "answers": answers} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_faulty(path: Path) -> Path:
    """24 rows of which two are no pairs."""
    write_format(path, "trl")
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[3], lines[7] = '{"prompt": "torn', json.dumps({"prompt": "and", "chosen": "no answer"})
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_two(path: Path) -> str:
    """24 pairs in one file and 6 in another."""
    small = path.with_name("small.jsonl")
    rows = [in_format("trl", i, f"Another {i}?", "Yes, that one.", "No")[0] for i in range(6)]
    small.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"[{write_format(path, 'trl')},{small}]"


# What a choice of data reads: key -> a function that writes it and says where.
DATA: dict[str, Callable[[Path], Path | str]] = {
    "data.truncation": write_turns,
    "data.ranking": write_ranked,
    "data.on_error": write_faulty,
    "data.mix": write_two,
}


ROPE = "data.max_length=600"  # the tiny model is made for 512
SCHEDULE = ("optim.max_steps=4", "optim.warmup_ratio=0", "optim.lr=1e-2")
SIDES = {"chosen": "Of this. ", "rejected": "No. "}
TIGHT = ("data.max_length=70",)  # too little for two questions
CHOICES: dict[str, Fact] = {
    "model.hub=modelscope": Fact(
        alike,
        ("model=qwen05b", "model.path=-"),
        refused="pip install" if find_spec("modelscope_hub") is None else "Qwen/Qwen2.5-0.5B-Instruct",
    ),
    "model.hub=openmind": Fact(alike, ("model=qwen05b", "model.path=-"), refused="openmind"),
    "model.rope.type=linear": Fact(has_kind("linear"), (ROPE,)),
    "model.rope.type=dynamic": Fact(has_kind("dynamic"), (ROPE,)),
    "model.rope.type=yarn": Fact(has_kind("yarn"), (ROPE,)),
    "model.rope.type=llama3": Fact(lambda ran: holds(ran.facts["model"]["rope"]["type"] == "llama3"), (ROPE,)),
    "model.dtype=bfloat16": Fact(apart(1e-2, 20)),
    "model.dtype=float16": Fact(apart(1e-3, 5)),
    "model.dtype=float32": Fact(apart(1e-9, 1e-2, "trainer.precision=64"), ("trainer.precision=32",)),
    "model.dtype=float64": Fact(apart(1e-9, 1e-2)),
    "model.attn=eager": Fact(alike),
    "model.attn=sdpa": Fact(alike),
    "model.attn=flash_attention_2": Fact(alike, refused="flash_attention_2 needs"),
    "quant.type=fp4": Fact(apart(1e-3, 100, "quant=4bit"), ("quant=4bit",), model=wide),
    "quant.compute_dtype=bfloat16": Fact(apart(1e-3, 100, "quant=4bit"), ("quant=4bit",), model=wide),
    "quant.compute_dtype=float16": Fact(apart(1e-4, 100, "quant=4bit"), ("quant=4bit",), model=wide),
    "quant.compute_dtype=float32": Fact(lambda ran: holds(gap(ran, "quant=4bit") == 0), ("quant=4bit",), model=wide),
    "quant.compute_dtype=float64": Fact(alike, ("quant=4bit",), refused="float64"),
    "lora.init=gaussian": Fact(
        lambda ran: holds(ran.final()[next(n for n in ran.final() if "lora_A" in n)].std() > 0.05)
    ),
    **{
        f"data.format={name}": Fact(reads(name))
        for name in (
            *("trl", "alpaca", "sharegpt", "openai", "v1", "orca", "argilla", "icr", "hh", "ultrafeedback"),
            *("ranked", "scored", "kto"),
        )
    },
    "data.ranking=best_worst": Fact(makes(12)),
    "data.ranking=adjacent": Fact(makes(24)),
    "data.mix=interleave_under": Fact(makes(12)),
    "data.mix=interleave_over": Fact(makes(48)),
    "data.on_error=drop": Fact(
        lambda ran: holds(ran.facts["data"]["train"]["dropped"] == {"broken JSON": 1, "rejected is missing": 1})
    ),
    "data.hub.where=modelscope": Fact(
        alike,
        ("data=hub", "data.path=-", "data.hub.name=nobody/nothing"),
        refused="pip install" if find_spec("modelscope_hub") is None else "ModelScope",
    ),
    "doctor.fail_on=warning": Fact(alike, refused="doctor.fail_on=warning stops here"),
    "data.truncation=cut_prompt": Fact(cuts("prompts cut"), TIGHT),
    "data.truncation=cut_answer": Fact(cuts("answers cut"), ("data.max_length=120",)),
    "data.truncation=cut_both": Fact(cuts("prompts cut", "answers cut"), TIGHT),
    "loss.f_divergence=forward_kl": Fact(learns_otherwise, ("optim.warmup_ratio=0",)),
    "loss.f_divergence=js": Fact(learns_otherwise, ("optim.warmup_ratio=0",)),
    "loss.f_divergence=alpha": Fact(learns_otherwise, ("optim.warmup_ratio=0",)),
    "reference.quant=none": Fact(apart(1e-3, 100, "quant=4bit"), ("quant=4bit", "reference=frozen"), model=wide),
    "reference.quant=4bit": Fact(apart(1e-3, 100), model=wide),
    "reference.quant=8bit": Fact(apart(1e-4, 100), model=wide),
    "reference.dtype=float32": Fact(apart(1e-9, 1e-2, "trainer.precision=64"), ("trainer.precision=64",)),
    "reference.dtype=float64": Fact(apart(1e-9, 1e-2)),
    "reference.dtype=float16": Fact(apart(1e-3, 5)),
    "reference.dtype=bfloat16": Fact(
        apart(1e-3, 20), model=lambda folder: write_tiny_model(folder, initializer_range=0.05)
    ),
    "optim.schedule=linear": Fact(rates(1e-2, 0.75e-2, 0.5e-2, 0.25e-2), SCHEDULE),
    "optim.schedule=constant": Fact(rates(1e-2, 1e-2, 1e-2, 1e-2), SCHEDULE),
    "trainer.forward=shared": Fact(lambda ran: holds(ran.facts["forward"] == "shared")),
    "trainer.forward=padded": Fact(lambda ran: holds(ran.facts["forward"].startswith("padded"))),
    "trainer.precision=32": Fact(lambda ran: holds(ran.facts["precision"] == "fp32")),
    "trainer.precision=64": Fact(lambda ran: holds(ran.facts["precision"] == "fp64")),
    "trainer.precision=bf16": Fact(apart(1e-3, 20)),
    "trainer.precision=fp16": Fact(alike, refused="fp16"),
    "logger.mode=online": Fact(alike, ("logger=wandb",)),
}
MORE: dict[str, Fact] = {
    "model.gradient_checkpointing=true": Fact(alike),
    "data.ranking=all": Fact(makes(36)),
    "doctor.fail_on=error": Fact(lambda ran: holds(read_json(ran.folder.doctor)["worst"] == "warning")),
    "doctor.enabled=false": Fact(lambda ran: holds(not ran.folder.doctor.exists())),
    "lora.dropout=0.5": Fact(learns_otherwise, ("optim.warmup_ratio=0",)),
    "lora.target_modules=attention": Fact(lambda ran: holds(not [n for n in ran.final() if "mlp" in n])),
    "lora.target_modules=[q_proj]": Fact(lambda ran: holds(all("q_proj" in n for n in ran.final()))),
    "lora.modules_to_save=[norm]": Fact(lambda ran: holds([n for n in ran.final() if n.endswith("model.norm.weight")])),
    "loss.sft_weight=0.5": Fact(learns_otherwise, ("optim.warmup_ratio=0",)),
    "loss.ld_alpha=0.2": Fact(learns_otherwise, ("optim.warmup_ratio=0",)),
    "loss.wpo=true": Fact(learns_otherwise, ("optim.warmup_ratio=0",)),
    "loss.average=mean": Fact(learns_otherwise, ("optim.warmup_ratio=0",)),
    "optim.weight_decay=5": Fact(learns_otherwise, ("optim.warmup_ratio=0", "optim.max_steps=3")),
    "optim.grad_clip=null": Fact(learns_otherwise, ("optim=sgd", "optim.warmup_ratio=0", "optim.lr=1e-2")),
}


def literals(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """KEY=VALUE for every value that the schema spells out."""
    for name, field in model.model_fields.items():
        for value in _spelt(field.annotation):
            if isinstance(value, type):
                yield from literals(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}={value}"


def _spelt(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) not in (dict, list):
        for part in get_args(annotation):
            yield from _spelt(part)


def set_by_files() -> set[str]:
    """KEY=VALUE of every option file and of train.yaml."""
    found = set()
    for file in CONF_DIR.rglob("*.yaml"):
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        prefix = "" if file.parent == CONF_DIR or file.parent.name == "experiment" else f"{file.parent.name}."
        found |= {f"{prefix}{key}={'null' if value is None else value}" for key, value in flatten(tree).items()}
    return found


def test_every_value_that_is_spelt_out_has_its_fact() -> None:
    defaults = {"quant.type=nf4", "quant.compute_dtype=auto"}  # of the schema, for options without quantisation
    elsewhere = ("sweep.", "prune.metric=", "evaluate.", "export.", "format=")  # in tests/sweep and tests/inference
    spelt = {choice for choice in literals(Config) if not choice.startswith(elsewhere)}
    assert len(spelt) > 80
    assert spelt - set_by_files() - defaults - {f"logger.mode={m}" for m in ("auto", "offline")} == set(CHOICES)


def _refusal(lab: Lab, words: tuple[str, ...]) -> str:
    """What the door says, or else the run."""
    if problems := check(lab.job(*words)[0]):
        return " ".join(problems)
    with pytest.raises(LabError) as caught:
        lab.train(*words)
    return str(caught.value)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"root": tmp_path_factory.mktemp("choices")}


@pytest.mark.parametrize("choice", [*CHOICES, *MORE])
def test_a_choice_does_what_it_says(
    choice: str, models: dict[str, Any], tiny_model: Path, pairs: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fact, model = (CHOICES | MORE)[choice], tiny_model
    if fact.model is not None:
        key = "wide" if fact.model is wide else choice
        if key not in models:
            models[key] = fact.model(models["root"] / f"model{len(models)}")
        model = models[key]
    root = models["root"] / f"{model.parent.name}_{model.name}"
    root.mkdir(exist_ok=True)
    lab = Lab(root, model, pairs, output=root / choice.replace("=", "_").replace("[", "_").replace("]", "_"))
    words = (*SHORT, *fact.words, choice)
    key, _, value = choice.partition("=")
    if key in DATA:
        words = (f"data.path={DATA[key](root / f'{key}.jsonl')}", *words)
    if key == "data.format":
        words = (f"data.path={write_format(root / f'{value}.jsonl', value)}", *words)
    if fact.refused:
        assert fact.refused in _refusal(lab, words)
        return
    ran = Ran(lab, lab.train(*words), words)
    assert ran.folder.done
    assert all(math.isfinite(loss) for loss in ran.losses)
    assert read_json(ran.folder.facts)["steps"] == len(ran.losses) >= 2
    fact.check(ran)


def test_checkpointing_keeps_fewer_numbers_for_backward(tiny_model: Path) -> None:
    from tiny import FP32, plain_model, tiny_examples

    from dpo_lab.config.schema import Quant
    from dpo_lab.data.collate import collate
    from dpo_lab.models.load import load_model
    from dpo_lab.models.locate import Located
    from dpo_lab.preference.forward import Forward

    layout, kept = collate(tiny_examples(), list(range(8))), {}
    for checkpointing in (False, True):
        settings = plain_model(tiny_model).model_copy(update={"gradient_checkpointing": checkpointing})
        model = load_model(Located(tiny_model, "x"), settings, Quant(bits=None), FP32, torch.device("cpu"))
        model.requires_grad_(True).train()
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=numbers: (n.append(t.numel()), t)[1], lambda t: t):
            Forward().logps(model, layout).sum()
        kept[checkpointing] = sum(numbers)
    assert kept[True] < kept[False] / 2
