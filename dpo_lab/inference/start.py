"""What training starts from, and what it is measured against: base weights, and an adapter where there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lab.config.inputs import adapter_in
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config, Model
from dpo_lab.models.locate import Located, locate
from dpo_lab.runtime.errors import ConfigError, ModelError
from dpo_lab.runtime.files import digest, fingerprint, read_json


@dataclass(frozen=True)
class Start:
    """Weights on this machine: a base, and an adapter on it."""

    located: Located
    adapter: Path | None
    identity: str  # hash of base weights and adapter
    what: str  # in words


def find_start(config: Config, cache_dir: Path, say: Callable[[str], None]) -> Start:
    """The model that the configuration names, and the adapter that it continues."""
    located = locate(config.model, cache_dir, say)
    if config.lora.adapter is None:
        return Start(located, None, located.identity(cache_dir), "the base model")
    return _with_adapter(located, expand(config.lora.adapter), cache_dir)


def find_reference(config: Config, start: Start, cache_dir: Path, say: Callable[[str], None]) -> Start:
    """The model that `reference.path` names, or else the start policy.

    A path is a run of this lab, an adapter (on the policy's base), a model folder, or else a name on the hub.
    """
    if config.reference.path is None:
        return start
    path, plain = expand(config.reference.path), config.model.model_copy(update={"wheel": None, "revision": None})
    if (path / "status.json").is_file():
        return _of_run(path, cache_dir, say)
    if (path / "adapter_config.json").is_file():
        return _with_adapter(locate(config.model, cache_dir, say), path, cache_dir)
    here = {"path": str(path), "name": None} if path.exists() else {"path": None, "name": config.reference.path}
    located = locate(plain.model_copy(update=here), cache_dir, say)
    return Start(located, None, located.identity(cache_dir), f"the model {located.name}")


def _of_run(run: Path, cache_dir: Path, say: Callable[[str], None]) -> Start:
    """The result of a run, on the base that its own configuration names."""
    final = run / "final"
    if adapter_in(run) is None:
        located = Located(final, f"the model of run {run.name}")
        return Start(located, None, located.identity(cache_dir), f"the weights of run {run.name}")
    recorded = (read_json(run / "facts.json") or {}).get("config") or {}
    try:
        model = Model.model_validate(recorded.get("model"))
    except ValueError as e:
        raise ModelError(f"{run}/facts.json does not say which model the run trained.") from e
    return _with_adapter(locate(model, cache_dir, say), run, cache_dir)


def _with_adapter(located: Located, path: Path, cache_dir: Path) -> Start:
    identity, adapter = located.identity(cache_dir), adapter_in(path)
    assert adapter is not None  # the door has looked
    what = f"the adapter of run {path.name} on the base"
    if adapter == path:
        what = f"the adapter in {path.name} on the base"
    trained_on = ((read_json(adapter.parent / "facts.json") or {}).get("model") or {}).get("base")
    if trained_on is not None and trained_on != identity:
        raise ModelError(f"The adapter of {path} was trained on other weights than {located.name}. Choose its model.")
    return Start(located, adapter, digest(identity, fingerprint(adapter)), what)


def check_rope(start: Start, rope: dict[str, Any] | None) -> None:
    """What was trained on scaled positions goes on with the same ones; weights of a run bring theirs along."""
    folder = start.adapter or start.located.path
    facts = read_json(folder.parent / "facts.json")
    if folder.name != "final" or not isinstance(facts, dict):
        return
    trained = (facts.get("model") or {}).get("rope")
    if start.adapter is not None and trained != rope:
        raise ConfigError(
            f"{start.what} was trained with {_scaled(trained)}, but this run has {_scaled(rope)}. Give the model.rope and "
            "data.max_length of that run."
        )
    if start.adapter is None and trained and rope:
        raise ConfigError(f"{start.located.path} already has {_scaled(trained)}: drop model.rope.")


def _scaled(rope: dict[str, Any] | None) -> str:
    return f"model.rope.type={rope['type']}, factor {rope['factor']:g}" if rope else "model.rope.type=none"
