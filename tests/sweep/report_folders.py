"""Sweep folders as large and as rich as reports are tested with: noisy curves, several axes, failures, samples."""

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from folders import config_of, write_book

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">{{data}} `x` | **b**"
VALUES = {"optim.lr": [5e-5, 1e-4, 2e-4], "loss.beta": [0.05, 0.1, 0.3], "lora.r": [8, 16]}
CONFIG = {"seed": 0, "output_dir": "outputs", "optim": {"lr": 1e-4, "batch_size": 16}, "loss": {"beta": 0.1}, "lora": {"r": 8}}  # fmt: skip
DEVICE = {"cpu": {"model": "AMD EPYC 7B13", "cores": 2, "threads": 2}, "gpus": []}
QUESTIONS = [
    "Why is the sky blue? Answer in two sentences.",
    "Write a function that returns the n-th Fibonacci number.",
    "What should I pack for three days of hiking?",
]


def write_sweep(
    folder: Path,
    *,
    values: dict[str, list[Any]] | None = None,
    seeds: Sequence[int] = (0, 1),
    pairs: int = 96,
    steps: int = 60,
    hostile: bool = False,
    losses: bool = True,
    seed: int = 0,
) -> Path:
    """A whole grid; higher lr, a middle beta and a higher rank are better. With `losses` a few trials end badly."""
    values = values or VALUES
    rng = np.random.default_rng(seed)
    axes = values | ({"seed": [*seeds]} if len(seeds) > 1 else {})
    write_book(folder, axes, commit="5f0c2d1e9b7a4c3d8e6f")
    shared = rng.normal(0.15, 1.2, pairs)
    for number, point in enumerate(product(*axes.values())):
        own = dict(zip(axes, point, strict=True))
        state = ("pruned", "failed")[number % 2] if losses and number % 11 == 7 else "done"
        write_run(folder, own, number, state, shared=shared, rng=rng, steps=steps, hostile=hostile)
    return folder


def write_run(
    folder: Path,
    axes: dict[str, Any],
    number: int,
    state: str,
    *,
    shared: Any,
    rng: np.random.Generator,
    steps: int,
    hostile: bool,
) -> Path:
    """A run folder with noisy curves that end where its held-out pairs are."""
    path = folder / f"{number:05d}{rng.integers(16**7):07x}"
    path.mkdir(parents=True)
    quality = merit(axes)
    margins = quality * (0.8 + shared) + rng.normal(0, 0.5, len(shared))
    reached = steps if state == "done" else steps // 3
    words = [f"{key}={value}" for key, value in axes.items()]
    own = {"id": path.name, "number": number, "axes": axes, "overrides": ["data=demo", *words], "params": axes}
    _json(path / "trial.json", own | {"exit_code": 0 if state == "done" else 1})
    _rows(path / "metrics.jsonl", _metrics(quality, margins, reached, steps, rng))
    _rows(path / "eval_pairs.jsonl", [_pair(i, float(m), reached) for i, m in enumerate(margins)])
    _json(path / "facts.json", _facts(steps, axes))
    status: dict[str, Any] = {"status": state, "reason": "", "time": "2026-01-02T04:05:06+0000", "pid": 1}
    if state == "done":
        status["seconds"] = 300 * (1 + 0.2 * rng.random())
        (path / "final").mkdir()
        _rows(path / "samples.jsonl", _samples(quality, hostile))
        (path / "curves.html").write_text("<!doctype html><title>curves</title>")
    elif state == "pruned":
        status["reason"] = f"held-out accuracy 0.52 at step {reached}; the better half of the trials have 0.61"
    else:
        status |= {"reason": "The loss of step 17 is nan. Lower optim.lr, raise loss.beta, or check the data.", "kind": "guard"}  # fmt: skip
    _json(path / "status.json", status)
    return path


def merit(axes: dict[str, Any]) -> float:
    """How far margins are driven: what the generated answer should come out as."""
    lr, beta, rank = (float(axes.get(k, d)) for k, d in (("optim.lr", 1e-4), ("loss.beta", 0.1), ("lora.r", 8)))
    return max(0.05, 0.5 + 0.16 * math.log2(lr / 1e-4) - 0.12 * abs(math.log2(beta / 0.12)) + 0.05 * math.log2(rank / 8))  # fmt: skip


def _metrics(quality: float, margins: Any, reached: int, steps: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    noise, shaken = rng.normal(0, 1, (reached + 1, 3)), rng.normal(0, 1, len(margins))
    for step in range(reached + 1):
        share = 1 - math.exp(-3 * step / steps)
        if step:
            row: dict[str, Any] = {"step": step, "time": 1.7e9 + 5 * step}
            row["train/loss"] = round(0.693 - 0.25 * quality * share + 0.05 * noise[step, 0], 5)
            row["train/rewards/accuracies"] = round(
                min(1, max(0, 0.5 + 0.3 * quality * share + 0.1 * noise[step, 1])), 5
            )
            row["train/logratios/margins"] = round(2 * quality * share + 0.3 * noise[step, 2], 5)
            row["train/lr"] = round(1e-4 * (1 - step / steps), 10)
            rows.append(row)
        if step % max(1, steps // 6) == 0 or step == reached:
            row = {"step": step, "time": 1.7e9 + 5 * step + 1, "val/loss": 0.693 - 0.2 * quality * share}
            row["val/rewards/accuracies"] = float((margins * share + shaken * (1 - share) > 0).mean()) if step else 0.0
            row["val/logratios/margins"] = float(margins.mean()) * share
            rows.append(row | {"val/kl": 0.08 * quality * quality * share, "val/rewards/margins": 0.1 * share})
    return rows


def _pair(i: int, margin: float, step: int) -> dict[str, Any]:
    row = {"step": step, "index": i, "prompt": f"{i // 2:08x}", "chosen_logps": -60.0 + margin, "rejected_logps": -50.0}
    more = {"ref_chosen_logps": -60.0, "ref_rejected_logps": -50.0, "chosen_tokens": 40, "rejected_tokens": 30}
    return row | more | {"loss": 0.6}


def _samples(quality: float, hostile: bool) -> list[dict[str, Any]]:
    rows = []
    for i, question in enumerate(QUESTIONS):
        asked = f"{question} {HOSTILE}" if hostile else question
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}]
        words = "Sunlight is scattered by the air, and blue light is scattered most. " * (1 + int(4 * quality) + i)
        answer = f"{words.strip()}{HOSTILE if hostile else ''}"
        rows.append({"step": 60, "prompt": prompt, "reference": f"{words[:90]} The sky is blue." * 2, "policy": answer})
    return rows


def _facts(steps: int, axes: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": config_of(axes, CONFIG),
        "commit": "5f0c2d1e9b7a4c3d8e6f",
        "device": DEVICE,
        "versions": {
            "python": "3.11.7",
            "dpo-lab": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.17.0",
            "peft": "0.21.0",
        },
        "precision": "fp32",
        "reference": {"mode": "cached", "what": "the base model"},
        "data": {"format": "trl", "fingerprint": "fedcba9876543210", "heldout_fingerprint": "0123456789abcdef"},
        "model": {"name": "SmolLM2-135M-Instruct"},
        "steps": steps,
        "trainable_parameters": 2_442_240,
    }


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=True), encoding="utf-8")


def _rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
