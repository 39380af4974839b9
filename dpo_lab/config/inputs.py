"""Files and folders that a configuration names: are they there, and are they what they should be?"""

import os
import tempfile
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from dpo_lab.config.names import listed
from dpo_lab.config.paths import DEMO_DIR, expand
from dpo_lab.runtime.files import read_json

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def data_file(key: str, path: str) -> list[str]:
    """A file of preference pairs."""
    file = expand(path)
    if path.startswith("pkg://") and not file.is_file():
        shipped = [f"pkg://{p.name}" for p in sorted(DEMO_DIR.glob("*.json*"))]
        return [f"{key}={path}: the project ships no such file. There are: {', '.join(shipped) or 'none'}"]
    if file.is_dir():
        inside = [p.name for p in sorted(file.iterdir()) if p.suffix in SUFFIXES]
        hint = f" Data files in it: {', '.join(inside[:5])}." if inside else ""
        return [f"{key}={path} is a folder, a data file is needed ({', '.join(SUFFIXES)}).{hint}"]
    if not file.exists():
        return [f"{key}={path}: there is no file {_absolute(file)}{_similar(file)}{_sweep_hint(path)}"]
    if not _readable(file):
        return [f"{key}={path}: {_absolute(file)} may not be read by this user."]
    if file.suffix.lower() not in SUFFIXES:
        kind = file.suffix or "a file without a suffix"
        return [f"{key}={path}: {kind} is not supported. Data files are {listed(SUFFIXES, 'or')}."]
    return []


def model_folder(path: str) -> list[str]:
    """A folder in Hugging Face format."""
    folder = expand(path)
    if not folder.exists():
        return [f"model.path={path}: there is no folder {_absolute(folder)}{_similar(folder)}"]
    if not folder.is_dir():
        return [f"model.path={path} is a file. It must be a folder with config.json and the weights."]
    if (folder / "status.json").is_file():
        return [f"model.path={path} is a run of this lab. To go on from it use init_from={path}."]
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        run = folder.parent if folder.name == "final" else "RUN"
        return [f"model.path={path} holds an adapter, not a model. To go on from a run's adapter use init_from={run}."]
    if not (folder / "config.json").is_file():
        return [f"model.path={path}: {_absolute(folder)} has no config.json, so it is no Hugging Face model folder."]
    return []


def finished_run(path: str) -> list[str]:
    """A run folder with its final/."""
    run = expand(path)
    if not run.exists():
        return [f"init_from={path}: there is no run folder {_absolute(run)}{_similar(run)}"]
    if (run / "final").is_dir():
        return []
    if run.name == "final" and run.is_dir():
        return [f"init_from={path}: give the run folder itself, init_from={run.parent}."]
    status = read_json(run / "status.json") if run.is_dir() else None
    if not isinstance(status, dict):
        return [f"init_from={path} is no run of this lab: {_absolute(run)} has neither final/ nor status.json."]
    return [
        f"init_from={path} is not finished (status: {status.get('status', 'unknown')}; there is no final/). "
        "Repeat its command to finish it first."
    ]


@cache
def writable(key: str, path: str) -> tuple[str, ...]:
    """A folder that can be made and written to."""
    folder = Path(os.path.abspath(expand(path)))
    parent = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not parent.is_dir():
        return (f"{key}={path}: {parent} is not a folder. Choose another {key}.",)
    try:
        with tempfile.TemporaryFile(dir=parent) as probe:
            probe.write(b"x")
            probe.flush()
    except OSError as e:
        return (f"{key}={path} cannot be written: {parent}: {e.strerror}. Choose another folder with {key}=FOLDER.",)
    return ()


def _absolute(path: Path) -> str:
    return os.path.abspath(path)


def _readable(file: Path) -> bool:
    try:
        with open(file, "rb"):
            return True
    except OSError:
        return False


def _similar(path: Path) -> str:
    """A name in the same folder that was probably meant."""
    parent = Path(_absolute(path)).parent
    if not parent.is_dir():
        return f". There is no folder {parent} either."
    try:
        close = get_close_matches(path.name, [p.name for p in parent.iterdir()], n=3, cutoff=0.75)
    except OSError:
        close = []
    return f". Did you mean {listed(close, 'or')}?" if close else "."


def _sweep_hint(path: str) -> str:
    parts = path.split(",")
    if len(parts) > 1 and all(expand(part.strip()).exists() for part in parts):
        return " Each part is a file: add --multirun to sweep over them."
    return ""
