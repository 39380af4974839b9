"""What a run leaves behind loads without this project, and another run can go on from it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Lab, rows
from safetensors.torch import load_file

from dpo_lab.data.collate import collate
from dpo_lab.data.prepare import prepare, read_pairs
from dpo_lab.data.templates import Template
from dpo_lab.preference.forward import Forward
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import read_json, read_jsonl
from dpo_lab.training.folder import RunFolder

# A process without the project: log-probs of the held-out pairs, in plain transformers and PEFT.
PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

jobs, found = json.load(open(sys.argv[1])), []
for job in jobs:
    tokenizer = AutoTokenizer.from_pretrained(job["final"])
    if job["base"]:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(job["base"]), job["final"])
    else:
        model = AutoModelForCausalLM.from_pretrained(job["final"])
    model.eval()
    sums = []
    for pair in job["pairs"]:
        prompt = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, tokenize=False)
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        row = []
        for answer in (pair["chosen"], pair["rejected"]):
            ids = before + tokenizer(answer + job["end"], add_special_tokens=False).input_ids
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            row.append(sum(logps[i - 1, ids[i]].item() for i in range(len(before), len(ids))))
        sums.append(row)
    found.append({"sums": sums, "template": tokenizer.chat_template})
assert not any(name.split(".")[0] == "dpo_lab" for name in sys.modules)
json.dump(found, open(sys.argv[2], "w"))
"""
FACTS = ("base", "loss", "optimizer", "data fingerprint", "reference", "chat template", "precision", "steps", "run")


def test_final_loads_without_the_project_and_is_the_policy(lab: Lab, tmp_path: Path) -> None:
    options = {
        "auto": (),
        "chatml": ("template=chatml",),
        "qwen": ("template=qwen",),
        "full": ("lora=none", "optim.lr=1e-3"),
        "checkpointed": ("model.gradient_checkpointing=true",),
        "pissa": ("lora=pissa", "optim.lr=1e-3"),
        "olora": ("lora=olora", "lora.rslora=true", "lora.alpha=4", "optim.lr=1e-3"),
        "dora": ("lora=dora", "lora.modules_to_save=[lm_head]", "lora.target_modules=attention"),
    }
    folders = {name: lab.train(*more) for name, more in options.items()}
    pairs = [
        {"prompt": list(pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in read_pairs(lab.job()[0].data, lab.cache).heldout
    ]
    jobs = [
        {
            "final": str(folder.final),
            "base": None if name == "full" else str(lab.model),
            "pairs": pairs,
            "end": "<|im_end|>",
        }
        for name, folder in folders.items()
    ]
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(jobs), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", PLAIN, str(asked), str(answered)], check=True, cwd=tmp_path, env=environment)
    for (name, folder), found in zip(folders.items(), read_json(answered), strict=True):
        in_lab = [row for row in read_jsonl(folder.eval_pairs) if row["step"] == 6]
        assert len(in_lab) == len(pairs) == 7
        for row, sums in zip(in_lab, found["sums"], strict=True):
            assert [row["chosen_logps"], row["rejected_logps"]] == pytest.approx(sums, abs=1e-4), name
        assert max(abs(row["chosen_logps"] - row["ref_chosen_logps"]) for row in in_lab) > 0.1, "it was trained"
        contents = {path.name for path in folder.final.iterdir()}
        weights = "model.safetensors" if name == "full" else "adapter_model.safetensors"
        assert {weights, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"} <= contents
        assert not [n for n in contents if n.endswith((".bin", ".pt"))]
        card = (folder.final / "README.md").read_text(encoding="utf-8")
        assert all(f"| {fact} |" in card for fact in FACTS)
        assert f"| run | {folder.path.name} |" in card
        assert "dpo_loss" in card
        assert "val/rewards/accuracies" in card
    assert "You are a helpful assistant" in read_json(answered)[2]["template"]


def adapter(folder: RunFolder) -> dict[str, Any]:
    return load_file(folder.final / "adapter_model.safetensors")


def furthest(one: dict[str, Any], two: dict[str, Any]) -> float:
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


def test_a_run_goes_on_from_the_adapter_and_that_is_its_reference(lab: Lab) -> None:
    first = lab.train()
    (base_cache,) = lab.cache.rglob("*.sqlite")
    going_on = (f"lora.adapter={first.path}", "seed=7")
    modes = {mode: lab.train(*going_on, f"reference.mode={mode}") for mode in ("cached", "adapter_copy", "frozen")}
    trained = read_jsonl(first.eval_pairs)
    for mode, folder in modes.items():
        start, end = rows(folder, "val/")[0], rows(folder, "val/")[-1]
        step = rows(folder, "train/")[0]
        assert start["val/logratios/margins"] == 0.0, mode
        assert abs(step["train/logratios/margins"]) < 1e-4, mode
        assert step["train/loss"] == pytest.approx(0.693147, abs=1e-5), mode
        for row, before in zip(read_jsonl(folder.eval_pairs), trained, strict=True):
            assert row["ref_chosen_logps"] == pytest.approx(before["chosen_logps"], abs=1e-4), mode
            assert abs(row["ref_chosen_logps"] - before["ref_chosen_logps"]) > 0.1, "the reference is not the base"
        assert end["val/logratios/margins"] > 0.1, mode
        assert first.path.name in read_json(folder.facts)["reference"]["what"]
    cached = modes.pop("cached")
    for mode, folder in modes.items():
        for one, two in zip(rows(folder, "train/"), rows(cached, "train/"), strict=True):
            if one["step"] <= 2:  # lr is 0 at step 1: margins are rounding, and so is which of them is positive
                del one["train/rewards/accuracies"], two["train/rewards/accuracies"]
            assert one == pytest.approx(two, rel=1e-4, abs=1e-5 if one["step"] == 1 else 1e-3), mode
        assert furthest(adapter(folder), adapter(cached)) < 1e-4, mode
    assert furthest(adapter(cached), adapter(first)) > 1e-3
    assert base_cache.exists()
    assert len(list(lab.cache.rglob("*.sqlite"))) == 2, "the continued adapter has a cache of its own"


def test_full_fine_tuning_goes_on_from_the_weights(lab: Lab) -> None:
    options = ("lora=none", "optim.lr=1e-3")
    first = lab.train(*options)
    more = lab.train(*options, f"model.path={first.path}/final", "data.seed=3")
    for row, before in zip(read_jsonl(more.eval_pairs), read_jsonl(first.eval_pairs), strict=True):
        assert row["ref_chosen_logps"] == pytest.approx(before["chosen_logps"], abs=1e-4)
    assert rows(more, "train/")[0]["train/loss"] == pytest.approx(0.693147, abs=1e-5)


def test_another_rank_than_the_adapter_s_is_refused(lab: Lab) -> None:
    first = lab.train("optim.max_steps=1")
    child = lab.call(f"lora.adapter={first.path}", "lora=r16")
    assert child.code in (1, 2)
    assert "lora.r=8 lora.alpha=16" in " ".join(child.text.split())
    with pytest.raises(ConfigError, match=r"is on other layers than lora.target_modules=attention means"):
        lab.train(f"lora.adapter={first.path}", "lora.target_modules=attention")
    with pytest.raises(
        ConfigError, match=r"was trained with model.rope.type=none, but this run has model.rope.type=yarn"
    ):
        lab.train(f"lora.adapter={first.path}", "model.rope.type=yarn", "data.max_length=600")
    assert "Traceback" not in child.text


def test_the_model_card_says_how_to_load_a_base_with_scaled_positions(lab: Lab) -> None:
    """Its code, as it stands, gives the log-probs that the run recorded."""
    run = lab.train("model.rope.type=yarn", "data.max_length=600", "optim.max_steps=3")
    code = re.findall(r"```python\n(.*?)```", (run.final / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    assert "rope_parameters=" in code
    found: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(run.final)), found)
    config, *_ = lab.job()
    data = prepare(read_pairs(config.data, lab.cache), config.data, Template(found["tokenizer"], "auto"), lab.cache)
    row = read_jsonl(run.eval_pairs)[0]
    layout = collate([data.heldout[row["index"]]], [row["index"]])
    with torch.no_grad():
        scaled = layout.answer_sums(Forward().logps(found["model"].eval(), layout)).tolist()
    assert scaled == pytest.approx([row["chosen_logps"], row["rejected_logps"]], abs=1e-3)
