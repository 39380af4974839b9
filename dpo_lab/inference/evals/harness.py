"""lm-evaluation-harness, through its Python API, for the reference and each result on one base in memory."""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

from rich import box
from rich.table import Table
from rich.text import Text

from dpo_lab.config.brought import REFERENCE, Subject
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.inference.evals.harness_tasks import Tasks, check_package, find_tasks, load_tasks, quiet_harness
from dpo_lab.inference.evals.place import Place, data_facts, open_place
from dpo_lab.inference.stage import Stage
from dpo_lab.preference.forward import causal_lm
from dpo_lab.runtime.errors import OutputError
from dpo_lab.runtime.files import file_lock, fingerprint, read_json, short, write_json
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)
RESULT, LOCK = "harness.json", "harness.lock"
Values = dict[tuple[str, str], dict[Any, float]]  # (task, metric,filter) -> document -> value


@dataclass(frozen=True)
class Measured:
    """A number of a task."""

    task: str
    metric: str  # with its filter: acc,none
    value: float
    stderr: float | None
    higher_is_better: bool | None


def run_harness(
    config: Config,
    tree: dict[str, Any],
    subjects: Sequence[Subject],
    stage_loader: Callable[[], Stage],
    terminal: Terminal,
) -> dict[str, float]:
    """Run tasks of lm-evaluation-harness, or such as YAML files describe, with the reference and each result.

    Prompts are the tasks' own, without a chat template. `evaluate.max_prompts` is the harness's limit. What a model has
    done stays done when the command is interrupted.

    Args:
        config: with what the results bring along.
        tree: the same as plain containers.
        subjects: the results.
        stage_loader: loads them; called only if something is left to do.
        terminal: shows progress and the table.

    Returns:
        The numbers as NAME/TASK/METRIC.

    Raises:
        LabError: something the user can act on.
    """
    assert config.evaluate is not None
    assert config.harness is not None
    check_package()
    with terminal.working("looking up the tasks"):
        tasks = find_tasks(config.harness)
    place = open_place(config, subjects, _what(config, tree, tasks))
    result = read_json(place.path / RESULT) or {"task": "harness", "tasks": list(tasks.names), "models": {}}
    names = (REFERENCE, *(s.name for s in subjects))
    left = [name for name in names if name not in result["models"]]
    if left:
        with terminal.working("loading the tasks' data"):
            load_tasks(tasks)
        place.note(done=False, task="harness")
        with file_lock(place.path / LOCK, wait=False) as held:
            if not held:
                raise OutputError(f"{short(place.path)} is being written by another process. Wait for its end.")
            result |= _facts(config, subjects)
            for name in left:
                result["models"][name] = _run(config, stage_loader(), name, tasks, terminal)
                write_json(place.path / RESULT, result)
            place.note(done=True, task="harness")
    else:
        terminal.say(f"evaluation {place.identity} is done; overwrite=true repeats it")
    _show(result, names, place, terminal)
    return {
        f"{name}/{task}/{metric}": cell["value"]
        for name in names
        for task, found in result["models"][name]["results"].items()
        for metric, cell in found.items()
    }


def differences(reference: Values, other: Values) -> dict[tuple[str, str], tuple[float, float]]:
    """Of each number that is a mean over documents, how much higher the other's is, and that difference's standard error.

    Both models answer the same documents: what is hard for one is often hard for the other, so that the error of the
    difference is smaller than those of the two numbers say.
    """
    found = {}
    for key, mine in other.items():
        theirs = reference.get(key, {})
        both = [mine[doc] - theirs[doc] for doc in mine if doc in theirs]
        if len(both) < 2:
            continue
        mean = math.fsum(both) / len(both)
        variance = math.fsum((d - mean) ** 2 for d in both) / (len(both) - 1)
        found[key] = mean, math.sqrt(variance / len(both))
    return found


def _what(config: Config, tree: dict[str, Any], tasks: Tasks) -> dict[str, Any]:
    """What the numbers depend on, beside the results."""
    facts, memo = data_facts(tree), expand(config.cache_dir) / "fingerprints"
    assert config.evaluate is not None
    return {key: facts[key] for key in ("model", "quant", "lora", "seed", "precision")} | {
        "task": "harness",
        "tasks": tasks.names,
        "files": [fingerprint(file, memo) for file in tasks.files],
        "limit": config.evaluate.max_prompts,
        "lm_eval": version("lm_eval"),
    }


def _facts(config: Config, subjects: Sequence[Subject]) -> dict[str, Any]:
    assert config.evaluate is not None
    return {
        "results": {s.name: str(s.path) for s in subjects},
        "lm_eval": version("lm_eval"),
        "limit": config.evaluate.max_prompts,
        "chat_template": False,
        "seed": config.seed,
    }


def _run(config: Config, stage: Stage, name: str, tasks: Tasks, terminal: Terminal) -> dict[str, Any]:
    """The numbers of one model, and the values of its documents."""
    import lm_eval
    from lm_eval.models import huggingface

    # Decorators hide the parameters of both.
    simple_evaluate, HFLM = cast("Any", lm_eval.simple_evaluate), cast("Any", huggingface.HFLM)  # noqa: N806

    assert config.evaluate is not None
    terminal.say(f"lm-evaluation-harness: {name}")
    with stage.speaking(name) as model, quiet_harness():
        lm = HFLM(
            pretrained=causal_lm(model),  # with the adapter in its layers, or without
            tokenizer=copy.deepcopy(stage.template.tokenizer),  # it may be given a padding token
            batch_size=config.evaluate.batch_size,
            max_length=stage.context,
            mixed_precision_dtype=stage.precision.autocast,
        )
        raw = simple_evaluate(
            model=lm,
            tasks=list(tasks.names),
            task_manager=tasks.manager,
            limit=config.evaluate.max_prompts,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
            log_samples=True,
        )
    assert raw is not None  # None only on other ranks
    found: dict[str, Any] = {"results": {}, "documents": {}}
    for task, numbers in raw["results"].items():
        found["results"][task] = _numbers(numbers, raw.get("higher_is_better", {}).get(task, {}))
    for task, samples in (raw.get("samples") or {}).items():
        found["documents"][task] = _documents(samples)
    return found


def _numbers(numbers: Mapping[str, Any], better: Mapping[str, bool | None]) -> dict[str, dict[str, Any]]:
    """Metrics of a task: {"acc,none": {"value", "stderr", "higher_is_better"}}."""
    found = {}
    for key, value in numbers.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = numbers.get(f"{metric}_stderr,{chosen}")
        stderr = float(stderr) if isinstance(stderr, int | float) and not math.isnan(stderr) else None
        found[key] = {"value": float(value), "stderr": stderr, "higher_is_better": better.get(metric)}
    return found


def _documents(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each metric that a document has by itself: {"acc,none": {document: value}}."""
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        for metric in sample.get("metrics", []):
            value = sample.get(metric)
            if isinstance(value, bool | int | float):
                found.setdefault(f"{metric},{sample.get('filter', 'none')}", {})[str(sample["doc_id"])] = float(value)
    return found


def _values(model: Mapping[str, Any]) -> Values:
    """The documents' values of the numbers that are their means."""
    found: Values = {}
    for task, metrics in model["documents"].items():
        for metric, values in metrics.items():
            cell = model["results"].get(task, {}).get(metric)
            if cell and values and math.isclose(cell["value"], math.fsum(values.values()) / len(values), abs_tol=1e-9):
                found[task, metric] = values
    return found


def _show(result: Mapping[str, Any], names: Sequence[str], place: Place, terminal: Terminal) -> None:
    """A row for each number; beside a result's how far it is from the reference's."""
    models = result["models"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    table.add_column("metric")
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    reference = _values(models[REFERENCE])
    apart = {name: differences(reference, _values(models[name])) for name in names if name != REFERENCE}
    for task, numbers in models[REFERENCE]["results"].items():
        for metric, first in numbers.items():
            arrow = {True: " \u2191", False: " \u2193", None: ""}[first["higher_is_better"]]
            cells = []
            for name in names:
                text = _with_error(models[name]["results"].get(task, {}).get(metric))
                if name != REFERENCE and (task, metric) in apart[name]:
                    mean, error = apart[name][task, metric]
                    text += f"\n{mean:+.4f} \u00b1 {error:.4f}"
                cells.append(Text(text))
            table.add_row(Text(task), Text(metric.removesuffix(",none") + arrow), *cells)
    terminal.console.print(table)
    limit = (
        f" The first {result['limit']} documents of each task only: not a result to report." if result["limit"] else ""
    )
    terminal.say(
        f"\u00b1 is one standard error; second lines are differences from the reference on the same documents. "
        f"No chat template.{limit}"
    )
    terminal.facts({"numbers": str(short(place.path / RESULT))})


def _with_error(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "\u2013"
    return f"{cell['value']:.4f}" + (f" \u00b1 {cell['stderr']:.4f}" if cell["stderr"] is not None else "")
