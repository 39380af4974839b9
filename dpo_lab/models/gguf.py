"""GGUF files of llama.cpp, dequantised once to an ordinary model folder in fp32."""

import io
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from dpo_lab.runtime.errors import ModelError
from dpo_lab.runtime.files import atomic_produce, atomic_write, file_lock, fingerprint

DONE = "converted.ok"  # holds the note on what the weights were
UNREADABLE = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    NotImplementedError,
    MemoryError,
)


def gguf_folder(file: Path, cache_dir: Path, say: Callable[[str], None]) -> tuple[Path, str]:
    """The file as a model folder, converted on first use, and a note on what its weights are.

    Raises:
        ModelError: it is no whole GGUF file, or holds a model that transformers cannot read exactly.
    """
    folder = cache_dir / "models" / f"gguf-{fingerprint(file, cache_dir / 'fingerprints')}-dequantised"
    lock = cache_dir / "models" / f"{folder.name}.lock"
    with file_lock(lock, wait=True, on_wait=lambda: say("waiting for another run that converts the model")):
        if not (folder / DONE).is_file():
            note = f"dequantised from GGUF {_weight_type(file)}"
            say(f"converting {file.name} once to plain fp32 safetensors")
            atomic_produce(folder, lambda target: convert(file, target, note))
        return folder, (folder / DONE).read_text(encoding="utf-8").strip()


def convert(file: Path, folder: Path, note: str) -> None:
    """Read a GGUF file and write it as an ordinary model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dpo_lab.models.quiet import quiet_loading

    # The reader of GGUF files draws its own bars on stderr, whatever transformers is told.
    with quiet_loading(), redirect_stderr(io.StringIO()):
        try:
            both: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            )
            loaded, info = both
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except (*UNREADABLE, AttributeError, RuntimeError, OSError, ImportError) as e:
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise ModelError(f"{file} cannot be read: {reason[:300].rstrip('.')}. Use the model's own weights.") from e
        if absent := sorted(info["missing_keys"]):
            raise ModelError(
                f"{file} lacks {len(absent)} of the model's tensors, first {absent[0]}. Get the file again, or use the "
                "model's own weights."
            )
        # The loaded model is marked as quantised and refuses to be saved; its state dict is plain.
        if hasattr(loaded.config, "quantization_config"):
            del loaded.config.quantization_config
        plain: Any = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    atomic_write(folder / DONE, f"{note}\n")


def _weight_type(file: Path) -> str:
    """The type that most weights are stored in, such as Q4_K; and is there what transformers would leave out?"""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        types = Counter[str]()
        for tensor in reader.tensors:
            types[tensor.tensor_type.name] += int(tensor.n_elements)
        fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer" not in name}
    except (*UNREADABLE, OSError) as e:
        raise ModelError(f"{file} is no whole GGUF file: {e or type(e).__name__}. Get the file again.") from e
    if fields.get("split.count", 1) > 1:
        raise ModelError(
            f"{file} is one of {fields['split.count']} parts. Join them with llama.cpp's gguf-split --merge."
        )
    scalings = [name for name, value in fields.items() if name.endswith("rope.scaling.type") and value != "none"]
    scalings += [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_f")]
    if scalings:
        raise ModelError(
            f"{file} scales its rotary embeddings ({scalings[0]}), as Llama 3.1 and later do, which transformers does not "
            "read from GGUF: the model would not be the one that was meant. Use the model's own weights."
        )
    if not types:
        raise ModelError(f"{file} holds no weights, only a vocabulary. Use the model's file.")
    return types.most_common(1)[0][0]
