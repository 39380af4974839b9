"""The tutorial: the same commands in both languages, which run in order on a tiny model; what it refers to is there."""

import importlib
import json
import os
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from runs import BASE, fork, preload, write_pairs
from tiny import write_tiny_model

from dpo_lab.config import cli, resolvers
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.sources import Sources

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("tutorial.md", "tutorial.zh.md")}
RUN = "outputs/runs/ID"
SMALL = (*BASE, "optim.max_steps=2", "trainer.eval_every=2")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def lines(page: str) -> list[str]:
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]


COMMANDS = [line for line in lines(PAGES["tutorial.md"]) if line.startswith("python ")]


def split(line: str) -> tuple[str, list[str]]:
    """The module and the words of a command."""
    python, m, module, *words = shlex.split(line)
    assert (python, m) == ("python", "-m"), line
    assert module.partition(".")[0] == "dpo_lab", line
    return module, words


def primary(module: str) -> str:
    return module.partition(".")[2] or "train"


def test_both_languages_have_five_sections_and_the_same_commands_and_outputs() -> None:
    english, chinese = PAGES.values()
    for page in (english, chinese):
        assert re.findall(r"^## (\d)\. ", page, re.MULTILINE) == list("12345")
    assert lines(english) == lines(chinese)
    assert blocks(english, "text") == blocks(chinese, "text")
    assert len(COMMANDS) >= 12
    used = {primary(split(line)[0]) for line in COMMANDS}
    assert used >= {"train", "preview", "chat", "evaluate", "export"}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_accepted(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, words = split(line)
    if module == "dpo_lab.env" or "--help" in words:
        return
    monkeypatch.chdir(tmp_path)
    final = tmp_path / RUN / "final"
    final.mkdir(parents=True)
    (final / "adapter_config.json").write_text("{}")
    (final.parent / "status.json").write_text('{"status": "done"}')
    (final.parent / "facts.json").write_text('{"config": {"seed": 0}}')
    cli.prepare(words, primary(module))


def test_what_is_installed_first_can_be_installed() -> None:
    shell = [line for line in lines(PAGES["tutorial.md"]) if not line.startswith("python ")]
    assert shell == [
        "make install",
        "source .venv/bin/activate",
        'pip install -e ".[predict]" -c constraints.txt',
    ]
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert (ROOT / "constraints.txt").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in PAGES.values():
        extras = set(re.findall(r"pip install -e \"\.\[(\w+)\]\"", page))
        assert extras == {"predict", "hubs"} <= project["optional-dependencies"].keys()


def settings(page: str) -> list[str]:
    """What the last column of the table of boxes says, without what it adds in brackets."""
    rows = [line.split("|")[3] for line in page.splitlines() if line.startswith("| ") and "`" in line]
    own = [re.split("[(（]", cell)[0] for cell in rows if "FOLDER" not in cell]
    return [word for cell in own for code in re.findall(r"`([^`]+)`", cell) for word in code.split()]


def test_the_table_says_what_the_experiment_sets() -> None:
    """Giving its settings beside the experiment changes nothing."""
    words, chinese = (settings(page) for page in PAGES.values())
    assert words == chinese
    assert len(words) >= 14
    resolvers.register()
    sources = Sources((CONF_DIR,), "train")
    bare = resolvers.plain(sources.compose(["experiment=qwen05b_tutorial"]))
    assert resolvers.plain(sources.compose(["experiment=qwen05b_tutorial", *words])) == bare
    assert resolvers.plain(sources.compose(["experiment=qwen05b_tutorial", *words, "lora.r=16"])) != bare


def test_pictures_and_links_lead_somewhere() -> None:
    pictures = [re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page) for page in PAGES.values()]
    assert pictures[0] == pictures[1] != []
    for picture in pictures[0]:
        content = (DOCS / picture).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 200_000, picture
    for page in PAGES.values():
        for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#:]+)\)", page):
            assert (DOCS / target).is_file(), target
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"(docs/{name})" in readme for name in PAGES)


def test_no_command_or_output_shows_where_it_was_recorded() -> None:
    for page in PAGES.values():
        assert not re.search(r"/(tmp|root|home|work)/", page)


@dataclass
class Reader:
    """Somebody who follows the tutorial in a folder, on a tiny model and 24 pairs, each command in a child.

    Attributes:
        root: the folder; commands run in it.
        run: what `outputs/runs/ID` is; "" until the first training is done.
    """

    root: Path
    run: str = ""
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        roomy = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 2048}
        self.model = write_tiny_model(self.root / "model", **roomy)  # wide enough for 4 bits, long enough to chat
        self.data = write_pairs(self.root / "pairs.jsonl")

    def follow(self, line: str) -> str:
        """Run a command of the tutorial, made small; what it wrote to stdout."""
        module, words = split(line)
        words = [word.replace(RUN, self.run) for word in words]
        assert "run=" not in words, f"{line} comes before there is a result"
        if module != "dpo_lab.env" and "--help" not in words:
            words = self.small(primary(module), words)
        out = self.child(module, words, line)
        finished = sorted((self.root / "outputs" / "runs").glob("*/final"))
        if not self.run and finished:
            assert len(finished) == 1
            self.run = finished[0].parent.relative_to(self.root).as_posix()
        return out

    def small(self, door: str, words: list[str]) -> list[str]:
        """The words, and in their place or beside them those that make it a matter of a second."""
        more = [f"cache_dir={self.root / 'cache'}", "trainer.accelerator=cpu"]
        if door in ("train", "preview"):
            more += [*SMALL, f"model.path={self.model}", f"data.path={self.data}"]
        if door == "preview":
            more.append("doctor.fail_on=never")  # pairs of a tiny test are of no quality
        if "generation=greedy" in words:
            more.append("generation.max_new_tokens=4")
        return list({word.partition("=")[0]: word for word in [*words, *more]}.values())

    def child(self, module: str, words: list[str], line: str) -> str:
        """Go through a door in a forked child, with a question on its standard input."""
        files = [self.root / name for name in ("in", "out", "err")]
        for file, content in zip(files, ("How much is 2 + 2?\n", "", ""), strict=True):
            file.write_text(content)

        def work() -> None:
            import torch

            torch.set_num_threads(1)  # the threads of the parent's pool did not come along
            for number, file in enumerate(files):
                os.dup2(os.open(file, os.O_WRONLY if number else os.O_RDONLY), number)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            os.chdir(self.root)
            sys.argv = [module, *words]
            importlib.import_module("dpo_lab.__main__" if module == "dpo_lab" else module).main()

        _, status = os.waitpid(fork(work), 0)
        code, out = os.waitstatus_to_exitcode(status), files[1].read_text(encoding="utf-8")
        assert code == 0, f"{line}\n{' '.join(words)}\n{out}\n{files[2].read_text(encoding='utf-8')}"
        self.told.append(line)
        return out


@pytest.mark.slow
def test_the_commands_run_in_order_on_a_tiny_model(tmp_path: Path) -> None:
    preload()
    reader = Reader(tmp_path)
    said = {line: reader.follow(line) for line in COMMANDS}
    assert reader.told == COMMANDS

    train = next(line for line in COMMANDS if split(line) == ("dpo_lab", ["experiment=demo"]))
    assert "Already done: " + reader.run in " ".join(reader.follow(train).split()), "the page says so"
    tutorial = next(out for line, out in said.items() if "prompts=tutorial" in line)
    assert all(f"=== {name}" in tutorial for name in ("reference", "policy"))
    asked = json.loads(next(out for line, out in said.items() if "chat.json_only=true" in line))["rows"][0]
    assert asked["prompt"] == "How many legs do 3 cats have?"
    assert len(asked["answers"]) == 2
    for pattern, n in {
        "outputs/previews/*/preview.html": 2,
        "outputs/runs/*/curves.html": 2,
        "outputs/evaluations/*/report.html": 1,
        "outputs/evaluations/*/scores.json": 1,
        "outputs/evaluations/*/predict.html": 1,
        "exported/model.safetensors": 1,
    }.items():
        assert len([*tmp_path.glob(pattern)]) == n, pattern
