"""Files and folders that a configuration names: are they there, and are they what they should be?"""

import os
import tempfile
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from dpo_lab.config.names import listed
from dpo_lab.config.paths import DEMO_DIR, expand
from dpo_lab.runtime.files import read_json

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
PACKED = (".gz", ".zst")
GGUF = ".gguf"


def data_file(key: str, path: str) -> list[str]:
    """A file or folder of preference pairs."""
    file = expand(path)
    if path.startswith("pkg://") and not file.is_file():
        shipped = [f"pkg://{p.name}" for p in sorted(DEMO_DIR.glob("*.json*"))]
        return [f"{key}={path}: the project ships no such file. There are: {', '.join(shipped) or 'none'}"]
    if file.is_dir():
        return []  # which files are in it is seen when it is read
    if not file.exists():
        return [f"{key}={path}: there is no file {_absolute(file)}{similar(file)}{_sweep_hint(path)}"]
    if not _readable(file):
        return [f"{key}={path}: {_absolute(file)} may not be read by this user."]
    suffixes = [s.lower() for s in file.suffixes]
    if (suffixes[-2:-1] if suffixes[-1:] and suffixes[-1] in PACKED else suffixes[-1:]) not in [[s] for s in SUFFIXES]:
        kind = file.suffix or "a file without a suffix"
        return [
            f"{key}={path}: {kind} is not supported. Data files are {listed(SUFFIXES, 'or')}, as they are or with "
            f"{' or '.join(PACKED)} after it."
        ]
    return []


def data_folder(path: str) -> list[str]:
    """A folder with LLaMA-Factory's dataset_info.json."""
    folder = expand(path)
    if not folder.is_dir():
        what = "is a file, a folder is needed." if folder.exists() else f"there is no folder {_absolute(folder)}"
        return [f"data.dir={path}: {what}{'' if folder.exists() else similar(folder)}"]
    if not (folder / "dataset_info.json").is_file():
        return [
            f"data.dir={path}: there is no dataset_info.json in {_absolute(folder)}. For a file use data=file data.path=FILE."
        ]
    return []


def model_folder(path: str) -> list[str]:
    """A folder in Hugging Face format, or a GGUF file."""
    folder = expand(path)
    if not folder.exists():
        what = "file" if folder.suffix == GGUF else "folder"
        return [f"model.path={path}: there is no {what} {_absolute(folder)}{similar(folder)}"]
    if not folder.is_dir():
        if folder.suffix != GGUF:
            return [f"model.path={path} must be a folder with config.json and the weights, or a {GGUF} file."]
        return [] if _readable(folder) else [f"model.path={path}: {_absolute(folder)} may not be read by this user."]
    if (folder / "status.json").is_file():
        if adapter_in(folder) is not None:
            return [f"model.path={path} is a run that trained an adapter. To go on from it use lora.adapter={path}."]
        return [f"model.path={path} is a run of this lab. To go on from its weights use model.path={path}/final."]
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        run = folder.parent if folder.name == "final" else "RUN"
        return [f"model.path={path} holds an adapter, not a model. To go on from it use lora.adapter={run}."]
    if not (folder / "config.json").is_file():
        found = [p.name for p in sorted(folder.glob(f"*{GGUF}"))]
        hint = f" For a GGUF file give the file itself: model.path={path.rstrip('/')}/{found[0]}." if found else ""
        return [
            f"model.path={path}: {_absolute(folder)} has no config.json, so it is no Hugging Face model folder.{hint}"
        ]
    return []


def template_file(path: str) -> list[str]:
    """A chat template in Jinja."""
    file = expand(path)
    if not file.is_file():
        what = (
            "is a folder, a Jinja file is needed."
            if file.is_dir()
            else f"there is no file {_absolute(file)}{similar(file)}"
        )
        return [f"template.path={path}: {what}"]
    return [] if _readable(file) else [f"template.path={path}: {_absolute(file)} may not be read by this user."]


def adapter_in(path: Path) -> Path | None:
    """The folder of the adapter that a finished run or a plain PEFT folder holds."""
    return next((f for f in (path / "final", path) if (f / "adapter_config.json").is_file()), None)


def adapter_folder(key: str, path: str) -> list[str]:
    """A finished run with an adapter, or a folder in PEFT's format."""
    folder = expand(path)
    if not folder.exists():
        return [f"{key}={path}: there is no folder {_absolute(folder)}{similar(folder)}"]
    if adapter_in(folder) is not None:
        return []
    if (folder / "final").is_dir() or (folder / "config.json").is_file():
        model = folder / "final" if (folder / "final").is_dir() else folder
        return [f"{key}={path} holds a whole model, not an adapter. To go on from it use model=hf model.path={model}."]
    return _unfinished(key, path)


def reference_model(path: str) -> list[str]:
    """A run, an adapter, a model folder; what is not there may be a name on the hub."""
    folder = expand(path)
    if not folder.exists():
        if path.count("/") == 1 and not path.startswith((".", "~", "/")):
            return []
        return [f"reference.path={path}: there is no folder {_absolute(folder)}{similar(folder)}"]
    if adapter_in(folder) is not None or (folder / "final").is_dir() or (folder / "config.json").is_file():
        return []
    return _unfinished("reference.path", path)


def _unfinished(key: str, path: str) -> list[str]:
    folder = expand(path)
    status = read_json(folder / "status.json") if folder.is_dir() else None
    if not isinstance(status, dict):
        return [f"{key}={path}: {_absolute(folder)} is neither a run of this lab nor a folder with a model or adapter."]
    return [
        f"{key}={path} is not finished (status: {status.get('status', 'unknown')}; there is no final/). "
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


def similar(path: Path) -> str:
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
