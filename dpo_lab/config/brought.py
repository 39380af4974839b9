"""Results that a door is given, and the configuration that they bring along."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from pydantic import ValidationError

from dpo_lab.config.check import check
from dpo_lab.config.inputs import adapter_in
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config, Quant, Template
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import read_json

REFERENCE = "reference"  # what the start policy is called beside the results
SOURCES = ("data", "data.path", "data.dir", "data.name", "data.hub", "data.hub.name", "data.eval_path")


@dataclass(frozen=True)
class Subject:
    """A result: an adapter, or the weights of a model that was trained as a whole."""

    name: str  # in tables and as a model's name; no two are alike
    path: Path  # as it was given
    result: Path  # the folder with the weights
    whole: bool  # weights of a model, not an adapter
    facts: dict[str, Any] = field(repr=False)  # of the run; {} for an adapter of elsewhere

    @property
    def recorded(self) -> dict[str, Any] | None:
        """The configuration of its run as plain containers."""
        return self.facts.get("config")


def explicit() -> list[str]:
    """The keys and groups that the command line names: model, quant.bits, ..."""
    if not HydraConfig.initialized():
        return []
    return [word.partition("=")[0].lstrip("+~").partition("@")[0] for word in HydraConfig.get().overrides.task]


def bring(config: Config, tree: dict[str, Any], given: Collection[str]) -> tuple[Config, dict[str, Any], list[Subject]]:
    """The results that `run` and `adapter` name, and the configuration they ran with under what the door was told.

    Model, quantisation, template, adapter, loss, reference, pairs, precision and passes are the run's. A key that the
    command line gives comes first; quantisation and template must then be the run's own all the same.

    Args:
        config: of the door.
        tree: the same as plain containers.
        given: keys and groups of the command line, as `explicit` finds them.

    Raises:
        ConfigError: the results do not go together, or not with what was asked.
    """
    subjects = find_subjects(config)
    recorded = [s for s in subjects if s.recorded]
    if not recorded:
        return config, tree, subjects
    first = recorded[0]
    for other in recorded[1:]:
        _check_alike(first, other)
    merged = _merged(tree, cast("dict[str, Any]", first.recorded), given)
    for group in ("quant", "template"):
        _check_asked(group, first, tree, given, merged, force=config.force)
    try:
        brought = Config.model_validate(merged)
    except ValidationError as e:
        raise ConfigError(
            f"The configuration recorded in {first.path} is not of this version of the lab: {e.errors()[0]['loc']}: "
            f"{e.errors()[0]['msg']}."
        ) from e
    if problems := check(brought, set(given)):
        raise ConfigError(" ".join(problems))
    return brought, merged, subjects


def find_subjects(config: Config) -> list[Subject]:
    """What `run` and `adapter` name, in their order."""
    found = [_of_run(path) for path in config.runs] + [_of_folder(path) for path in config.adapters]
    names = _names([s[0] for s in found])
    return [Subject(name, *parts) for name, parts in zip(names, found, strict=True)]


def _of_run(path: str) -> tuple[Path, Path, bool, dict[str, Any]]:
    folder = expand(path)
    run = folder.parent if folder.name == "final" else folder
    adapter = adapter_in(run)
    return run, adapter or run / "final", adapter is None, read_json(run / "facts.json") or {}


def _of_folder(path: str) -> tuple[Path, Path, bool, dict[str, Any]]:
    folder = expand(path)
    result = adapter_in(folder)
    assert result is not None  # the door has looked
    facts = read_json(result.parent / "facts.json") if result.name == "final" else None
    return folder, result, False, facts or {}


def _names(paths: list[Path]) -> list[str]:
    """The last parts of the paths that tell them apart; no two are alike, and none is REFERENCE."""
    depth = 1
    resolved = [path.resolve() for path in paths]
    longest = max((len(path.parts) for path in resolved), default=1)
    while True:
        names = ["/".join(path.parts[-depth:]).lstrip("/") for path in resolved]
        if len(set(names)) == len(names) or depth >= longest:
            break
        depth += 1
    seen: dict[str, int] = {REFERENCE: 1}
    unlike = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unlike.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unlike


def _check_alike(first: Subject, other: Subject) -> None:
    """Two results must be of one base and one start, loaded and spoken to in the same way.

    Weights that were trained as a whole need no base to speak, but token ids, template and reference of all are the
    first result's: what another model was trained from would be measured by them.
    """
    for what, path in (
        ("base", ("model", "base")),
        ("rope scaling", ("model", "rope")),
        ("start", ("model", "identity")),
    ):
        a, b = (_at(s.facts, path) for s in (first, other))
        if a != b:
            names = [f"{s.path} ({_at(s.facts, ('model', 'name'))})" for s in (first, other)]
            raise ConfigError(f"{names[0]} and {names[1]} are of another {what}. Give them to calls of their own.")
    for group, kind in (("quant", Quant), ("template", Template)):
        a, b = (kind.model_validate((s.recorded or {}).get(group)) for s in (first, other))
        if a != b:
            raise ConfigError(
                f"{first.path} and {other.path} were trained with another {group} ({_words(group, a)}; {_words(group, b)}). "
                "Give them to calls of their own."
            )


def _merged(tree: dict[str, Any], recorded: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The door's tree with the run's groups in it."""
    merged = dict(tree)
    touched = {key.partition(".")[0] for key in given}
    for group in ("model", "quant", "template", "lora", "loss", "reference"):
        if group not in touched:
            former = {} if group == "loss" else tree[group]  # for keys that are younger than the run
            merged[group] = {**former, **recorded[group]}
    if "trainer" not in given:
        kept = {k for k in ("precision", "forward", "lean") if f"trainer.{k}" not in given} & recorded["trainer"].keys()
        merged["trainer"] = {**tree["trainer"], **{key: recorded["trainer"][key] for key in kept}}
    if set(given).isdisjoint(SOURCES):
        own = {key.removeprefix("data.") for key in given if key.startswith("data.")}
        merged["data"] = {
            **tree["data"],
            **recorded["data"],
            **{key: tree["data"][key] for key in own if key in tree["data"]},
        }
    elif "data.max_length" not in given:  # also says how far scaled positions reach
        merged["data"] = {**tree["data"], "max_length": recorded["data"]["max_length"]}
    return merged


def _check_asked(
    group: str, run: Subject, tree: dict[str, Any], given: Collection[str], merged: dict[str, Any], *, force: bool
) -> None:
    """What the command line says of a group must be what the run was trained with."""
    if not any(key.partition(".")[0] == group for key in given):
        return
    kind = {"quant": Quant, "template": Template}[group]
    asked, trained = kind.model_validate(tree[group]), kind.model_validate((run.recorded or {}).get(group))
    if group not in given:  # single keys on top of what the run has
        own = {key.partition(".")[2] for key in given if key.startswith(f"{group}.")}
        asked = trained.model_copy(update={key: getattr(asked, key) for key in own if hasattr(asked, key)})
    if asked != trained and not force:
        raise ConfigError(
            f"{_words(group, asked)} is not what {run.path} was trained with ({_words(group, trained)}). Drop it, or add "
            "force=true to go on all the same."
        )
    merged[group] = asked.model_dump()


def _words(group: str, value: Quant | Template) -> str:
    """As the command line has it."""
    if isinstance(value, Quant):
        return f"quant={f'{value.bits}bit' if value.bits else 'none'}"
    thinking = f" template.enable_thinking={value.enable_thinking}" if value.enable_thinking is not None else ""
    path = f" template.path={value.path}" if value.path else ""
    return f"{group}={value.name}{path}{thinking}"


def _at(facts: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = facts
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
