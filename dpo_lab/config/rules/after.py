"""Rules of the doors after training: evaluate, chat, export and serve."""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from dpo_lab.config import inputs
from dpo_lab.config.names import listed
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.runtime.files import read_json

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
LOCAL = ("127.0.0.1", "localhost", "::1")
SIZE = re.compile(r"\d+(\.\d+)?\s*([KMG]i?B|B)")


def door(config: Config) -> str | None:
    """Which of these doors the configuration is of; None: another one."""
    nodes = ("evaluate", "chat", "export", "serve")
    return next((name for name in nodes if getattr(config, name) is not None), None)


def results(config: Config) -> Iterable[str]:
    """The results must be there, finished, each once."""
    name = door(config)
    if name is None:
        return
    if name in ("evaluate", "export") and not config.runs and not config.adapters:
        yield f"Nothing to {name}: give run=RUN, the folder of a finished run, or adapter=FOLDER, an adapter in PEFT's format."
    for path in config.runs:
        yield from _run(path)
    for path in config.adapters:
        yield from _adapter(path)
    seen: dict[Path, str] = {}
    for path in [p for p in (*config.runs, *config.adapters) if p]:
        folder = expand(path).resolve()
        folder = folder.parent if folder.name == "final" else folder
        if folder in seen:
            yield f"{path} is given twice. Keep one of them."
        seen[folder] = path


def _run(path: str) -> Iterable[str]:
    """A folder of this lab with a result in it."""
    if not path:
        yield "run holds an empty path. Give the folder of a run."
        return
    folder = expand(path)
    run = folder.parent if folder.name == "final" else folder
    final = run / "final"
    if not folder.exists():
        yield f"run={path}: there is no folder {os.path.abspath(folder)}{inputs.similar(folder)}"
    elif not folder.is_dir():
        yield f"run={path} is a file. Give the folder of a run."
    elif (folder / "sweep.yaml").is_file():
        yield _sweep(path, folder)
    elif not (run / "facts.json").is_file() and (folder / "adapter_config.json").is_file():
        yield f"run={path} holds an adapter, but no run of this lab. Use adapter={path}, and model= for its base."
    elif not (run / "status.json").is_file() and not (run / "facts.json").is_file():
        yield f"run={path}: {os.path.abspath(folder)} is no run of this lab. For an adapter of elsewhere use adapter={path}."
    elif not final.is_dir():
        status = (read_json(run / "status.json") or {}).get("status", "unknown")
        yield (
            f"run={path} is not finished (status: {status}; there is no final/). Repeat its command to finish it first."
        )
    elif inputs.adapter_in(run) is None and not (final / "config.json").is_file():
        yield f"run={path}: there is neither an adapter nor a model in {final}. Train it again with overwrite=true."
    elif not (read_json(run / "facts.json") or {}).get("config"):
        yield f"run={path}: its facts.json is missing or damaged, so nobody knows how it was trained. Use adapter={final}, and model= for its base."


def _sweep(path: str, folder: Path) -> str:
    """That a sweep is not a run, and which of its trials there are."""
    winner = folder / "winner"
    trials = sorted(p.name for p in folder.iterdir() if (p / "final").is_dir() and p.name != "winner")
    if winner.exists():
        return f"run={path} is a sweep, not a run. Give one of its trials, for example its winner: run={path}/winner."
    if trials:
        return f"run={path} is a sweep, not a run. Give one of its trials: run={path}/{trials[0]}{' or another' if trials[1:] else ''}."
    return f"run={path} is a sweep, and none of its trials is finished yet. Repeat its command first."


def _adapter(path: str) -> Iterable[str]:
    """A folder in PEFT's format."""
    if not path:
        yield "adapter holds an empty path. Give the folder of an adapter."
        return
    folder = expand(path)
    if inputs.adapter_in(folder) is None and ((folder / "final").is_dir() or (folder / "config.json").is_file()):
        use = f"run={path}" if (folder / "status.json").is_file() else f"model=hf model.path={path}"
        yield f"adapter={path} holds a whole model, not an adapter. Use {use}."
        return
    problems = inputs.adapter_folder("adapter", path)
    yield from problems
    found = inputs.adapter_in(folder)
    if not problems and found is not None and (why := unsupported(found)):
        yield f"adapter={path} {why}"


def unsupported(folder: Path) -> str | None:
    """Why the lab does not compute a saved adapter, in words that follow on its path; None where it does."""
    saved = read_json(folder / "adapter_config.json")
    if not isinstance(saved, dict):
        return "has a damaged adapter_config.json. Get the folder again."
    if saved.get("peft_type") != "LORA":
        return (
            f"is of the kind {saved.get('peft_type')}. Supported are adapters of the kind LORA: LoRA, rsLoRA and DoRA."
        )
    for key, what in (("alora_invocation_tokens", "activated LoRA"), ("layer_replication", "LoRA on repeated layers")):
        if saved.get(key):
            return f"is {what} ({key}), which is not supported. Give a LoRA, rsLoRA or DoRA adapter."
    return None


def evaluation(config: Config) -> Iterable[str]:
    """One task at a time, and what it needs."""
    asked, judge = config.evaluate, config.judge
    if asked is None or judge is None:
        return
    task = asked.task
    if config.harness is not None and not config.harness:
        yield "harness=[] names no task. Give some, for example harness=[arc_easy], or drop it."
    if config.harness and task in ("predict", "duel"):
        yield f"harness and evaluate.task={task} are two evaluations. Drop one of them."
    if task == "harness" and not config.harness:
        yield "evaluate.task=harness needs its tasks, for example harness=[arc_easy]."
    if judge.base_url is not None and (task != "duel" or config.harness):
        yield f"judge.base_url={judge.base_url} has no effect on {_task(config)}. Add evaluate.task=duel, or drop it."
    elif judge.base_url and not re.match(r"https?://\S", judge.base_url):
        yield f"judge.base_url={judge.base_url} is no address. Write it with http:// or https://, e.g. http://127.0.0.1:8000/v1."
    if config.output:
        yield from inputs.writable("output", config.output)


def talk(config: Config) -> Iterable[str]:
    """One question, and files that are there."""
    if config.chat is None:
        return
    if config.prompt is not None and config.prompt_file is not None:
        yield "prompt and prompt_file are two questions. Drop one of them."
    if config.prompt and not config.prompt.strip():
        yield "prompt holds nothing but spaces. Give a question."
    for key, path in (("prompt_file", config.prompt_file), ("chat.load", config.chat.load)):
        if path and not expand(path).is_file():
            what = (
                "is a folder, a file is needed."
                if expand(path).is_dir()
                else f"there is no file{inputs.similar(expand(path))}"
            )
            yield f"{key}={path}: {what}"


def taken_away(config: Config) -> Iterable[str]:
    """One result, in a format that it has, to a folder that is free."""
    asked = config.export
    if asked is None:
        return
    given = [*config.runs, *config.adapters]
    if len(given) > 1:
        yield f"An export is of one result, but {len(given)} are given: {listed(given, 'and')}. Give each a call of its own."
    if config.output is None:
        yield "export needs output=FOLDER, the folder that is made."
    elif config.output:
        folder = expand(config.output)
        yield from inputs.writable("output", config.output)
        if folder.is_dir() and any(folder.iterdir()) and not config.overwrite:
            yield f"output={config.output} is not empty, and is not overwritten. Choose another folder, or add overwrite=true."
        within = [
            p
            for p in given
            if p and (folder.resolve() == expand(p).resolve() or expand(p).resolve() in folder.resolve().parents)
        ]
        if within:
            yield f"output={config.output} lies in the result itself. Choose a folder outside {within[0]}."
    if config.format == "adapter":
        whole = [
            p
            for p in config.runs
            if p and (expand(p) / "final" / "config.json").is_file() and inputs.adapter_in(expand(p)) is None
        ]
        for path in whole:
            yield f"format=adapter: run={path} was trained as a whole and has no adapter. Use format=merged or format=gguf."
    if not SIZE.fullmatch(asked.shard_size):
        yield f"export.shard_size={asked.shard_size} is no size. Write it like 5GB or 500MB."
    if asked.push_to_hub and asked.push_to_hub.count("/") != 1:
        yield f"export.push_to_hub={asked.push_to_hub} is no repository. Write OWNER/NAME."


def serving(config: Config) -> Iterable[str]:
    """An address that others reach needs a key."""
    asked = config.serve
    if asked is not None and asked.host and asked.host not in LOCAL and not os.environ.get(asked.api_key_env):
        yield (
            f"serve.host={asked.host} can be reached from other machines, so clients need a key: put one into the "
            f"environment variable {asked.api_key_env}, or use serve.host=127.0.0.1."
        )


def without_effect(config: Config, given: Collection[str]) -> Iterable[str]:
    """Keys of the command line that a door, or its task, does not look at."""
    name = door(config)
    yield from _sampling(config, given, name)
    if name is None:
        return
    for group in ("optim", "logger", "doctor", "prune", "study", "plan"):
        if key := next((key for key in given if key.partition(".")[0] == group), None):
            yield f"{key} has no effect on {name}: nothing is trained. Drop it."
    if config.evaluate is not None:
        yield from _of_tasks(config, given)
    if config.export is not None:
        yield from _of_formats(config, given)


def _sampling(config: Config, given: Collection[str], name: str | None) -> Iterable[str]:
    """How answers are sampled matters where somebody answers."""
    samples = name in (None, "chat", "serve") or (
        name == "evaluate" and _task(config) in ("evaluate.task=predict", "evaluate.task=duel")
    )
    if samples:
        return
    what = _task(config) if name == "evaluate" else name
    generation = config.generation
    for key in SAMPLING:
        if f"generation.{key}" in given:
            yield f"generation.{key}={getattr(generation, key):g} has no effect on {what}. It is for chat, serve and evaluate.task=predict or duel."
    if "generation" in given and generation.temperature > 0:
        yield f"generation.temperature={generation.temperature:g}, of the generation= that was chosen, has no effect on {what}. Use generation=greedy."


def _task(config: Config) -> str:
    assert config.evaluate is not None
    return f"evaluate.task={'harness' if config.harness else config.evaluate.task}"


def _of_tasks(config: Config, given: Collection[str]) -> Iterable[str]:
    asked, task = config.evaluate, _task(config)
    assert asked is not None
    if config.harness and "evaluate.task" in given and asked.task == "score":
        yield "evaluate.task=score has no effect beside harness. Drop one of them."
    answers = task in ("evaluate.task=predict", "evaluate.task=duel")
    if "evaluate.max_prompts" in given and not answers and not config.harness:
        yield f"evaluate.max_prompts={asked.max_prompts} has no effect on {task}, which answers nothing. Use data.max_eval_pairs."
    if "evaluate.batch_size" in given and task == "evaluate.task=score":
        yield f"evaluate.batch_size={asked.batch_size} has no effect on {task}, which answers nothing. Use trainer.microbatch_tokens."
    if "evaluate.split" in given and config.harness:
        yield f"evaluate.split={asked.split} has no effect beside harness, whose tasks bring their own questions."
    if "prompts.own" in given and not answers:
        yield f"prompts.own has no effect on {task}. It is for evaluate.task=predict or duel."
    for key in [k for k in given if k.startswith("judge.") and k != "judge.base_url"]:
        if config.judge is not None and config.judge.base_url is None:
            yield f"{key} has no effect without judge.base_url, the address of the judge."


def _of_formats(config: Config, given: Collection[str]) -> Iterable[str]:
    asked, kind = config.export, config.format
    assert asked is not None
    for key, formats in (("dtype", ("merged",)), ("shard_size", ("merged",)), ("gguf_type", ("gguf",))):
        if f"export.{key}" in given and kind not in formats:
            yield f"export.{key}={getattr(asked, key)} has no effect with format={kind}; it is for format={formats[0]}."
    if "export.private" in given and asked.push_to_hub is None:
        yield "export.private has no effect without export.push_to_hub=OWNER/NAME."
