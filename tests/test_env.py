"""The diagnostic door and the facts that a run records."""

import importlib.metadata
import io
import json
import subprocess
from email.message import Message

import pytest
from rich.console import Console

from dpo_lab import env
from dpo_lab.runtime import facts

CPU_WITH_BF16 = "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16\n"
CPU_WITHOUT_BF16 = "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n"
ARM_WITH_BF16 = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n"


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    return facts.gather(tmp_path_factory.mktemp("cache"))


def show(gathered, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(env.table(gathered | {"conf": "/somewhere/conf"}))
    return console.file.getvalue()


def test_versions_are_those_of_the_installed_packages():
    versions = facts.versions()
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["hydra-core"].startswith("1.3.")
    assert versions["python"].startswith("3.")


def test_a_missing_package_is_named_as_missing(monkeypatch):
    monkeypatch.setattr(facts, "_SHOWN", ("surely-not-a-package",))
    assert facts.versions()["surely-not-a-package"] == "not installed"


@pytest.mark.parametrize(
    ("cpuinfo", "precision"), [(CPU_WITH_BF16, "bf16"), (CPU_WITHOUT_BF16, "32"), (ARM_WITH_BF16, "bf16"), ("", "32")]
)
def test_auto_precision_on_a_cpu_follows_its_bf16_units(monkeypatch, cpuinfo, precision):
    monkeypatch.setattr(facts.Path, "read_text", lambda *_, **__: cpuinfo)
    assert facts.auto_precision("cpu") == precision


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp16")])
def test_auto_precision_on_a_gpu_follows_its_bf16_support(monkeypatch, has_bf16, precision):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert facts.auto_precision("gpu") == precision


def test_extras_are_those_of_the_installed_package():
    declared = set(importlib.metadata.metadata("dpo-lab").get_all("Provides-Extra"))
    extras = facts.extras()
    assert set(extras) == declared >= {"board", "search", "dev"}
    assert "pytest" not in extras["dev"]["missing"]


@pytest.fixture
def board_needs(monkeypatch):
    """Make the package's metadata say what its only extra, board, requires."""
    metadata = Message()
    metadata["Provides-Extra"] = "board"
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: metadata)
    return lambda *lines: monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["torch>=2", *lines])


def test_an_extra_that_lacks_a_package_says_how_to_install_it(board_needs):
    board_needs("nopkg-a>=1; extra == 'board'")
    board = {"installed": False, "missing": ["nopkg-a"], "install": 'pip install "dpo_lab[board]"'}
    assert facts.extras() == {"board": board}


def test_an_extra_in_too_old_a_version_counts_as_missing(board_needs):
    board_needs("torch>=999; extra == 'board'", "rich>=1; extra == 'board'")
    assert facts.extras()["board"]["missing"] == ["torch"]


def test_a_requirement_for_another_python_or_system_does_not_count(board_needs):
    board_needs("nopkg-a>=1; extra == 'board' and python_version < '3'")
    assert facts.extras()["board"]["installed"]


def test_a_copy_of_the_source_that_is_not_installed_has_no_extras(monkeypatch, gathered):
    monkeypatch.setattr(facts, "_DISTRIBUTION", "surely-not-a-package")
    assert facts.extras() == {}
    assert "pip install -e ." in show(gathered | {"extras": {}})


def git(folder, *words):
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    package = tmp_path / "repository" / "dpo_lab" / "runtime"
    package.mkdir(parents=True)
    (package / "facts.py").write_text("# here\n", encoding="utf-8")
    monkeypatch.setattr(facts, "__file__", str(package / "facts.py"))
    facts.git_commit.cache_clear()
    yield tmp_path / "repository"
    facts.git_commit.cache_clear()


def test_the_commit_is_that_of_the_checkout_and_says_if_it_was_edited(checkout):
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    git(checkout, "tag", "v1")
    head = git(checkout, "rev-parse", "HEAD")
    assert facts.git_commit() == head
    (checkout / "dpo_lab" / "runtime" / "facts.py").write_text("# edited\n", encoding="utf-8")
    facts.git_commit.cache_clear()
    assert facts.git_commit() == f"{head}-dirty"


def test_an_install_inside_somebody_elses_repository_has_no_commit(checkout):
    git(checkout.parent, "init", "-q")
    git(checkout.parent, "add", ".")
    git(checkout.parent, "commit", "-qm", "theirs")
    assert facts.git_commit() is None


def test_the_size_of_a_cache_counts_a_linked_file_once(tmp_path):
    (tmp_path / "blob").write_bytes(b"x" * 1000)
    (tmp_path / "snapshot").symlink_to(tmp_path / "blob")
    lab = facts.caches(tmp_path)["dpo_lab"]
    assert 1000 <= lab["bytes"] < 2000
    assert lab["writable"]
    assert facts.caches(tmp_path / "not" / "yet")["dpo_lab"] == {
        "path": str(tmp_path / "not" / "yet"),
        "bytes": 0,
        "writable": True,
    }


def test_the_table_is_whole_in_80_columns(gathered):
    text = show(gathered)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for name in [*gathered["versions"], *gathered["extras"], "precision=auto", "/somewhere/conf"]:
        assert name in text


def test_a_missing_extra_shows_its_whole_install_line(gathered):
    board = {"board": {"installed": False, "missing": ["gradio"], "install": 'pip install "dpo_lab[board]"'}}
    assert 'pip install "dpo_lab[board]"' in show(gathered | {"extras": board})


def test_a_gpu_is_shown_with_its_memory_and_capability(gathered):
    gpu = {"name": "Some GPU", "memory_gib": 79.6, "capability": "9.0", "bf16": True}
    text = show(gathered | {"device": gathered["device"] | {"gpus": [gpu]}}, width=120)
    assert "Some GPU, 79.6 GiB, capability 9.0, with bf16" in text


@pytest.mark.gpu
def test_a_real_gpu_is_described():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    first = facts.device_facts()["gpus"][0]
    assert first["memory_gib"] > 1
    assert first["capability"].count(".") == 1


def test_the_door_prints_json_that_another_program_can_read(capsys):
    env.main(["--json"])
    printed = json.loads(capsys.readouterr().out)
    assert {"versions", "commit", "device", "precision", "extras", "caches", "conf"} == set(printed)
    assert printed["precision"]["auto"] in {"32", "bf16", "fp16"}
    assert printed["device"]["cpu"]["cores"] >= 1
    assert printed["device"]["cpu"]["memory_gib"] > 0


def test_the_door_prints_a_table(capsys):
    env.main([])
    assert "precision=auto" in capsys.readouterr().out
