"""Small sweep folders: sweep.yaml and run folders as a sweep leaves them, with margins that a test chooses."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dpo_lab.runtime.files import digest

STEPS = 20
SCORED_AT = (0, 10, 20)  # steps


def write_book(folder: Path, axes: dict[str, list[Any]], **more: Any) -> Path:
    """sweep.yaml of a sweep over `axes`; `more` replaces or adds keys."""
    folder.mkdir(parents=True, exist_ok=True)
    words = " ".join(f"{key}={','.join(str(v) for v in values)}" for key, values in axes.items())
    command = f"python -m dpo_lab --multirun {words}"
    book = {
        "name": folder.name,
        "command": command,
        "calls": [{"time": "2026-01-02T03:04:05+0000", "command": command}],
        "overrides": ["data=demo"],
        "axes": axes,
        "fixed": {"data.max_length": 512, "optim.max_steps": STEPS},
        "commit": "0123456789abcdef",
        "sweeper": {"name": "grid"},
        "launcher": {"name": "serial"},
        "prune": {"name": "none"},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(book | more, sort_keys=False), encoding="utf-8")
    return folder


def write_trial(
    folder: Path,
    *,
    axes: dict[str, Any],
    margins: Sequence[float] | None = None,
    prompts: Sequence[str] | None = None,
    state: str = "done",
    reason: str = "",
    kind: str = "error",
    number: int | None = None,
    name: str | None = None,
    index: Sequence[int] | None = None,
    tokens: Sequence[tuple[int, int]] | None = None,
    reference: bool = True,
    kl: float | None = 0.25,
    steps: int = STEPS,
    reached: int | None = None,
    samples: Sequence[dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    seconds: float = 61.5,
) -> Path:
    """One run folder of a sweep; returns it.

    Args:
        folder: of the sweep.
        axes: swept keys and this trial's values.
        margins: of each held-out pair in the last evaluation, in nats; None: nothing was scored.
        prompts: of each pair; None: rows without that key, as older folders have them.
        state: done, failed, pruned, interrupted, new. A running one is an interrupted one whose run.lock is held:
            `with file_lock(path / "run.lock", wait=False): ...`.
        reason: in status.json.
        kind: of a failure.
        number: order of the first start; None: the next one.
        name: of the folder, the run's id; None: a hash of the axes.
        index: of the pairs; None: counted from 0.
        tokens: of the chosen and the rejected answer of each pair.
        reference: whether there is one; without it margins are those of the policy alone.
        kl: of the evaluations; None: none.
        steps: that were asked for.
        reached: the last step; None: all steps if done, else half of them.
        samples: rows of samples.jsonl.
        config: merged, beside the axes, into the resolved config in facts.json.
        seconds: that the run took.
    """
    name = name or digest(json.dumps(axes, sort_keys=True, default=str))[:12]
    path = folder / name
    path.mkdir(parents=True)
    if number is None:
        number = len([*folder.glob("*/trial.json")])
    words = [f"{key}={value}" for key, value in axes.items()]
    code = {"done": 0, "failed": 1, "pruned": 0}.get(state)
    trial = {"id": name, "number": number, "axes": axes, "overrides": ["data=demo", *words], "params": axes}
    _write(path / "trial.json", trial | {"exit_code": code})
    if state == "new":
        return path
    reached = reached if reached is not None else steps if state == "done" else steps // 2
    margins = [] if margins is None else [float(m) for m in margins]
    rows = _metrics(margins, reached, reference, kl)
    _write(path / "metrics.jsonl", rows)
    if margins:
        _write(path / "eval_pairs.jsonl", _pairs(margins, prompts, index, tokens, reference, reached))
    if samples:
        _write(path / "samples.jsonl", list(samples))
    _write(path / "facts.json", _facts(name, steps, reference, config_of(axes, config or {})))
    status = {"status": "running" if state == "interrupted" else state, "reason": reason, "pid": 1}
    status["time"] = "2026-01-02T04:05:06+0000"
    if state == "failed":
        status["kind"] = kind
    if state == "done":
        last = next((row for row in reversed(rows) if "val/loss" in row), {})
        status |= {"metrics": {k: v for k, v in last.items() if k != "time"}, "seconds": seconds}
        _write(path / "final" / "adapter_config.json", {"peft_type": "LORA"})
    _write(path / "status.json", status)
    return path


def config_of(axes: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A configuration that has the values of the axes; a few defaults, and `more` in their place."""
    tree: dict[str, Any] = {"seed": 0, "data": {"seed": 0}, "optim": {"lr": 5e-5}, "loss": {"beta": 0.1}} | more
    tree = copy.deepcopy(tree)
    for key, value in axes.items():
        *nodes, last = key.split(".")
        node: Any = tree
        for name in nodes:
            node = node.setdefault(name, {}) if isinstance(node, dict) else None
        if isinstance(node, dict) and not isinstance(node.get(last), dict):  # of a group the options are not named
            node[last] = value
    return tree


def _write(path: Path, content: Any) -> None:
    """JSON, or JSON lines by the file's name. Not synced to the disk, as runs do: a test writes hundreds."""
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row) for row in content] if path.suffix == ".jsonl" else [json.dumps(content, indent=2)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _metrics(margins: list[float], reached: int, reference: bool, kl: float | None) -> list[dict[str, Any]]:
    """Training rows at every step and evaluations on the way, which end at the margins' means."""
    mean = sum(margins) / len(margins) if margins else 0.0
    accuracy = sum(m > 0 for m in margins) / len(margins) if margins else 0.0
    rows: list[dict[str, Any]] = []
    for step in range(reached + 1):
        share, now = step / max(1, reached), 1.7e9 + step
        if step:
            rows.append({"step": step, "time": now, "train/loss": 0.693 - 0.2 * share, "train/lr": 5e-5})
            rows[-1] |= {"train/rewards/accuracies": 0.5 + 0.3 * share, "train/pairs_per_second": 1.25}
            if reference:
                rows[-1]["train/logratios/margins"] = mean * share
        if margins and (step in SCORED_AT or step == reached):
            row = {"step": step, "time": now + 0.5, "val/loss": 0.693 - 0.1 * share}
            row |= {"val/rewards/accuracies": accuracy * share, "val/rewards/margins": 0.1 * mean * share}
            if reference:
                row |= {"val/logratios/margins": mean * share, "val/logratios/chosen": mean * share / 2}
                row |= {"val/logratios/rejected": -mean * share / 2}
            if kl is not None:
                row["val/kl"] = kl * share
            rows.append(row | {"val/tokens/chosen": 40.0, "val/tokens/rejected": 30.0})
    return rows


def _pairs(
    margins: list[float],
    prompts: Sequence[str] | None,
    index: Sequence[int] | None,
    tokens: Sequence[tuple[int, int]] | None,
    reference: bool,
    step: int,
) -> list[dict[str, Any]]:
    rows = []
    for i, margin in enumerate(margins):
        row: dict[str, Any] = {"step": step, "index": i if index is None else index[i]}
        if prompts is not None:
            row["prompt"] = prompts[i]
        row |= {"chosen_logps": -64.0 + margin, "rejected_logps": -64.0}
        if reference:
            row = row | {"rejected_logps": -32.0, "ref_chosen_logps": -64.0, "ref_rejected_logps": -32.0}
        chosen, rejected = (40, 30) if tokens is None else tokens[i]
        rows.append(row | {"chosen_tokens": chosen, "rejected_tokens": rejected, "loss": 0.6})
    return rows


def _facts(name: str, steps: int, reference: bool, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": name,
        "config": config,
        "commit": "0123456789abcdef",
        "device": "cpu",
        "versions": {"torch": "2.11.0"},
        "threads": 2,
        "reference": {"mode": "cached", "what": "the base model"} if reference else {"mode": "none", "what": "none"},
        "data": {"fingerprint": "fedcba9876543210", "heldout": 0},
        "model": {"name": "tiny"},
        "steps": steps,
        "trainable_parameters": 1000,
    }
