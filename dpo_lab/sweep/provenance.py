"""Where a sweep's numbers come from: commit, data, reference, model, hardware, versions."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dpo_lab.sweep.results import Sweep
from dpo_lab.sweep.wording import counted, duration

MOST_VALUES = 4
PACKAGES = ("dpo-lab", "python", "torch", "transformers", "peft", "lightning")


def provenance(sweep: Sweep) -> dict[str, str]:
    """Names and values for readers. Where trials differ in one, all of its values with how many have them."""
    readers: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "model": lambda facts: _words(_node(facts, "model").get("name")),
        "reference": lambda facts: ", ".join(
            word for word in (_words(_node(facts, "reference").get(name)) for name in ("what", "mode")) if word
        ),
        "data fingerprint": lambda facts: _words(_node(facts, "data").get("fingerprint")),
        "held-out fingerprint": lambda facts: _words(_node(facts, "data").get("heldout_fingerprint")),
        "trainable parameters": lambda facts: _count(facts.get("trainable_parameters")),
        "steps": lambda facts: _count(facts.get("steps")),
        "hardware": _hardware,
        "precision": lambda facts: _words(facts.get("precision")),
        "versions": _versions,
    }
    rows = {"folder": str(sweep.path), "command": _words(sweep.book.get("command"))}
    rows["commit"] = _several(sweep, lambda facts: _words(facts.get("commit"))) or _words(sweep.book.get("commit"))
    rows |= {name: _several(sweep, read) for name, read in readers.items()}
    rows |= {name: _words(_node(sweep.book, name).get("name")) for name in ("sweeper", "launcher", "prune")}
    spent = sum(trial.seconds or 0.0 for trial in sweep.trials)
    rows["training time"] = duration(spent) if spent else ""
    return {name: text for name, text in rows.items() if text and text != "none"}


def _several(sweep: Sweep, read: Callable[[Mapping[str, Any]], str]) -> str:
    found = Counter(text for trial in sweep.trials if trial.facts and (text := read(trial.facts)))
    if len(found) <= 1:
        return next(iter(found), "")
    shown = [f"{text} ({counted(n, 'trial')})" for text, n in found.most_common(MOST_VALUES)]
    more = [f"{len(found) - MOST_VALUES} more"] if len(found) > MOST_VALUES else []
    return "; ".join([*shown, *more])


def _hardware(facts: Mapping[str, Any]) -> str:
    device = _node(facts, "device")
    cpu, gpus = _node(device, "cpu"), device.get("gpus")
    names = Counter(_words(gpu.get("name")) for gpu in gpus if isinstance(gpu, Mapping)) if isinstance(gpus, list) else {}  # fmt: skip
    if names:
        return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in names.items())
    cores = f", {counted(cpu['cores'], 'core')}" if isinstance(cpu.get("cores"), int) else ""
    return f"{_words(cpu.get('model'))}{cores}".strip(", ")


def _versions(facts: Mapping[str, Any]) -> str:
    versions = _node(facts, "versions")
    return ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)


def _node(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    node = tree.get(name)
    return node if isinstance(node, Mapping) else {}


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _words(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
