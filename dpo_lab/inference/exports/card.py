"""The model card of an export, and the lines of Python that load it."""

from pathlib import Path

from dpo_lab.config.brought import Subject
from dpo_lab.config.schema import Config
from dpo_lab.inference.exports.written import Written
from dpo_lab.inference.start import Start
from dpo_lab.models.save import model_card
from dpo_lab.runtime.files import atomic_write, read_json, short

FILE = "README.md"


def write_card(folder: Path, subject: Subject, start: Start, config: Config, written: Written, output: Path) -> None:
    """README.md: the run's facts, where there are any, and what the export's check found."""
    adapter = config.format == "adapter"
    text = ""
    if adapter and (folder / FILE).is_file():
        text = (folder / FILE).read_text(encoding="utf-8")
    text = text.partition("\n## Export\n")[0]
    text = text or _of_run(subject, start, adapter=adapter) or _plain(start, adapter=adapter)
    rows = "".join(f"| {name} | {value} |\n" for name, value in written.rows.items())
    assert config.export is not None
    use = "\n".join(written.use).replace(f'"{short(output)}"', f'"{config.export.push_to_hub or "FOLDER"}"')
    atomic_write(
        folder / FILE,
        f"{text.rstrip()}\n\n## Export\n\n| what | value |\n|---|---|\n| format | {_kind(config)} |\n{rows}\n```python\n{use}\n```\n",
    )


def use_adapter(output: Path, folder: Path) -> list[str]:
    """How to load an adapter."""
    base = (read_json(folder / "adapter_config.json") or {}).get("base_model_name_or_path") or "BASE"
    return [
        "from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer",
        f'model = AutoPeftModelForCausalLM.from_pretrained("{output}")  # on {base}',
        f'tokenizer = AutoTokenizer.from_pretrained("{output}")',
    ]


def use_merged(output: Path) -> list[str]:
    """How to load merged weights."""
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("{output}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{output}")',
    ]


def use_gguf(output: Path, file: str) -> list[str]:
    """How to load a GGUF file."""
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("{output}", gguf_file="{file}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{output}", gguf_file="{file}")',
    ]


def _of_run(subject: Subject, start: Start, *, adapter: bool) -> str | None:
    """The card as training writes it, of what is exported now."""
    status = read_json(subject.path / "status.json") or {}
    try:
        return model_card(
            subject.facts, status.get("metrics") or {}, adapter=adapter, base=start.located.name
        ).rpartition("```python")[0]
    except (KeyError, TypeError):  # an adapter of elsewhere, or a run of an older version
        return None


def _plain(start: Start, *, adapter: bool) -> str:
    library = "peft" if adapter else "transformers"
    name = start.located.name
    return f"---\nbase_model: {name}\nlibrary_name: {library}\n---\n\n# {name}, fine-tuned\n\nA LoRA adapter on {name}{'' if adapter else ', merged'}.\n"


def _kind(config: Config) -> str:
    assert config.export is not None
    stored = {"adapter": "PEFT", "merged": config.export.dtype, "gguf": config.export.gguf_type}[str(config.format)]
    return f"{config.format}, {stored}"
