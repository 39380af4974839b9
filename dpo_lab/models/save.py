"""What a run leaves behind: a plain PEFT or Hugging Face folder that loads without this project."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_lab.models.adapter_init import plain_adapter
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.runtime.files import atomic_produce, atomic_write, read_json, write_json


def save_final(model: Any, tokenizer: Any, folder: Path, *, base: str, card: str) -> None:
    """Write adapter or weights, tokenizer, chat template and model card, as one step.

    Args:
        model: a PEFT model, or a transformers model after full fine-tuning.
        tokenizer: its chat template is the run's.
        folder: the result; replaced if it exists.
        base: what the adapter's configuration names as its base: a hub name or a local folder.
        card: text of README.md.
    """
    from safetensors import SafetensorError

    def write(target: Path) -> None:
        with quiet_loading():
            try:
                if hasattr(model, "peft_config"):
                    model.peft_config["default"].base_model_name_or_path = base
                    _save_adapter(model, target)
                else:
                    model.save_pretrained(target, safe_serialization=True)
            except SafetensorError as e:  # "I/O error: No space left on device (os error 28)" is no OSError
                number = re.search(r"os error (\d+)", str(e))
                raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else e from e
            tokenizer.save_pretrained(target)
        atomic_write(target / "README.md", card)

    atomic_produce(folder, write)


def _save_adapter(model: Any, target: Path) -> None:
    """The trained adapter, as a plain one for the base as it was before training."""
    state, settings = plain_adapter(model) or (None, {})
    model.save_pretrained(target, selected_adapters=["default"], state_dict=state, safe_serialization=True)
    if settings:
        file = target / "adapter_config.json"
        write_json(file, read_json(file) | settings)


def model_card(facts: Mapping[str, Any], results: Mapping[str, float], *, adapter: bool, base: str) -> str:
    """README.md of a result, with the facts a reader needs to trust and repeat it."""
    kind = "LoRA adapter" if adapter else "model"
    head = ["---", f"base_model: {base}"]
    head += ["library_name: peft"] if adapter else ["library_name: transformers"]
    head += ["tags: [preference-tuning, dpo_lab]", "---"]
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(results.items()) if name.startswith("val/"))
    loss, optim = facts["loss"], facts["optim"]
    scaled = facts["model"].get("load_with") if adapter else None  # a whole model's own config.json has it
    more = "".join(f", {key}={value!r}" for key, value in (scaled or {}).items())
    use = (
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{more})\nmodel = PeftModel.from_pretrained(base, "FOLDER")'
        if adapter
        else 'model = AutoModelForCausalLM.from_pretrained("FOLDER")'
    )
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    imports += "\nfrom peft import PeftModel" if adapter else ""
    body = f"""
# {facts["name"]}, preference-tuned

A {kind} trained with dpo_lab on preference pairs.

| what | value |
|---|---|
| base | {facts["model"]["name"]} {facts["model"]["note"]} |
| weights identity | {facts["model"]["identity"]} |
| loss | {loss} |
| optimizer | {optim} |
| pairs | {facts["data"]["train"]["kept"]} trained on, {facts["data"]["heldout"]["kept"]} held out |
| data fingerprint | {facts["data"]["fingerprint"]} |
| reference | {facts["reference"]["what"]} ({facts["reference"]["mode"]}) |
| chat template | {facts["template"]} (saved with the tokenizer) |
| precision | {facts["precision"]}, quantisation {facts["quant"]} |
| trainable parameters | {facts["trainable_parameters"]:,} of {facts["parameters"]:,} |
| steps | {facts["steps"]} |
| run | {facts["run_id"]} |

Held-out results:

| metric | value |
|---|---|
{rows}

```python
{imports}
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
{use}
```
"""
    return "\n".join(head) + "\n" + body
