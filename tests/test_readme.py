"""The README's commands compose, its tables name what conf/ holds, and its example of an own loss works."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from dpo_lab.config import cli
from dpo_lab.config.paths import CONF_DIR

README_FILE = Path(__file__).parents[1] / "README.md"
README = README_FILE.read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The primary file and the arguments of every `python -m dpo_lab` line, without its comment."""
    whole = re.sub(r"\\\n\s*", "", README)
    lines = re.findall(
        r"^(?:\S*python) -m dpo_lab(\.preview|\.bench|\.report|\.evaluate|\.chat|\.export|\.serve)?(?: +(?!#)(.*?))?(?:\s+#.*)?$",
        whole,
        re.MULTILINE,
    )
    return [[door.removeprefix(".") or "train", *shlex.split(line)] for door, line in lines]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_the_readme_is_accepted(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    write_own_loss(tmp_path / "my_conf")
    for run in ("RUN", "A", "B"):
        (tmp_path / run / "final").mkdir(parents=True)
        (tmp_path / run / "final" / "adapter_config.json").write_text("{}")
        (tmp_path / run / "status.json").write_text('{"status": "done"}')
        (tmp_path / run / "facts.json").write_text('{"config": {"seed": 0}}')
    if "--help" in arguments:
        return
    for folder in ("LLaMA-Factory/data", "DIR"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_info.json").write_text("{}")
    cli.prepare(arguments[1:], arguments[0])


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 8


def test_the_table_of_groups_lists_every_option_of_conf() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", README, re.MULTILINE))
    groups = {
        folder.name: {file.stem for file in folder.glob("*.yaml")} for folder in CONF_DIR.iterdir() if folder.is_dir()
    }
    assert groups
    assert {name: set(re.findall(r"`(\w+)`", options)) for name, options in rows.items() if name in groups} == groups


def test_the_page_of_options_is_what_conf_says() -> None:
    docs = README_FILE.parent / "docs"
    spec = importlib.util.spec_from_file_location("options", docs / "options.py")
    assert spec is not None
    assert spec.loader is not None
    options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(options)
    page = (docs / "options.md").read_text(encoding="utf-8")
    assert page == options.document(), "run make docs"
    files = [*CONF_DIR.glob("*/*.yaml")]
    assert len(files) > 80
    assert all(f"| `{file.stem}` | " in page and options.about(file) for file in files)


def test_the_example_of_an_own_loss_gives_a_loss_of_each_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(write_own_loss(tmp_path / "my_conf")))
    import my_losses  # pyright: ignore[reportMissingImports]

    chosen, rejected = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])
    assert my_losses.margin_loss(chosen, rejected, beta=0.5, margin=2.0).tolist() == [1.0, 2.0]


def write_own_loss(folder: Path) -> Path:
    """The files of the example, as the README shows them."""
    (folder / "loss").mkdir(parents=True)
    python = next(block for block in blocks("python") if "my_losses.py" in block)
    yaml = next(block for block in blocks("yaml") if "my_losses.margin_loss" in block)
    (folder / "my_losses.py").write_text(python)
    (folder / "loss" / "margin.yaml").write_text(yaml)
    return folder
