"""Who may import whom, how little a door imports, and that every module imports without the optional packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dpo_lab"
DOOR = "a door"  # a module directly in dpo_lab/

# Lower may not import higher, nor beside it. config may use runtime; data and models may not use each other.
HEIGHT = {
    "runtime": 0,
    "config": 1,
    "preference": 2,
    "models": 3,
    "data": 3,
    "inference": 4,
    "training": 5,
    "sweep": 6,
    "web": 6,
    DOOR: 7,
}
# sweep and web read run folders and start subprocesses; only the stacked launcher trains in its own process.
READS_FOLDERS = {"sweep", "web"}

# What a machine may lack: each extra's packages, and those of the core that are imported only when chosen.
OPTIONAL = (
    *("wandb", "bitsandbytes", "gguf", "plotly", "tensorboard", "trl", "gradio", "optuna", "fastapi", "uvicorn"),
    *("submitit", "hydra_plugins", "ray", "modelscope", "openmind_hub", "sacrebleu", "rouge_score", "jieba"),
    *("lm_eval", "wandb_workspaces", "playwright", "openai"),
)
HEAVY = ("torch", "lightning", "transformers", "peft", "datasets", "bitsandbytes", "wandb", "plotly")

MODULES = sorted(PACKAGE.rglob("*.py"))


def layer(parts: tuple[str, ...]) -> str:
    """The layer of a module given as parts below dpo_lab: ("config", "paths") -> "config"."""
    return parts[0] if len(parts) > 1 or (PACKAGE / parts[0]).is_dir() else DOOR


def imported(source: str, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """What of dpo_lab a module imports anywhere in it, as parts below dpo_lab; `package` holds the module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ("dpo_lab", *package)[: len(package) + 2 - node.level] if node.level else ()
            origin = ".".join((*above, *([node.module] if node.module else [])))
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {tuple(name.split(".")[1:]) for name in names if name.startswith("dpo_lab.")}
    return found


def forbidden(parts: tuple[str, ...], target: tuple[str, ...]) -> bool:
    """Whether the module `parts` may not import `target`."""
    importer, used = layer(parts), layer(target)
    if importer == used and importer != DOOR:
        return False
    if importer in READS_FOLDERS and HEIGHT[used] > HEIGHT["config"]:
        return used in READS_FOLDERS or "stacked" not in parts[-1]
    return HEIGHT[used] >= HEIGHT[importer]


def test_there_are_modules_to_check():
    assert len(MODULES) > 10


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_lies_below_it(module):
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    assert layer(parts) in HEIGHT, f"{layer(parts)}/ has no place in the import order"
    wrong = [".".join(t) for t in imported(module.read_text(encoding="utf-8"), parts[:-1]) if forbidden(parts, t)]
    assert not wrong, f"{'.'.join(parts)} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(
    ("source", "package", "targets"),
    [
        ("import dpo_lab.training.run", (), {("training", "run")}),
        ("from dpo_lab import training", (), {("training",)}),
        ("from dpo_lab.data.types import Pair", ("models",), {("data", "types", "Pair")}),
        ("from .types import Pair", ("data",), {("data", "types", "Pair")}),
        ("from ..models import load", ("data",), {("models", "load")}),
        ("from . import types", ("data",), {("data", "types")}),
        ("def f():\n    from dpo_lab.models import load", ("data",), {("models", "load")}),
        ("import torch\nfrom dpo_labour import x", (), set()),
    ],
)
def test_the_checker_sees_every_form_of_import(source, package, targets):
    assert imported(source, package) == targets


def test_the_checker_knows_right_from_wrong():
    assert forbidden(("data", "module"), ("models", "load"))
    assert forbidden(("models", "load"), ("data", "types"))
    assert forbidden(("runtime", "files"), ("config", "paths"))
    assert forbidden(("preference", "losses"), ("training", "run"))
    assert forbidden(("sweep", "report"), ("training", "run"))
    assert forbidden(("web", "app"), ("sweep", "results"))
    assert forbidden(("env",), ("chat",))
    assert not forbidden(("config", "check"), ("runtime", "errors"))
    assert not forbidden(("sweep", "stacked_launcher"), ("training", "stacked"))
    assert not forbidden(("training", "run"), ("data", "module"))
    assert not forbidden(("env",), ("runtime", "facts"))


def test_package_init_files_are_empty():
    full = [m for m in MODULES if m.name == "__init__.py" and m.read_text(encoding="utf-8").strip()]
    assert not full, "a door that imports one submodule would pay for all of them"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_training_door_and_the_config_import_nothing_heavy():
    names = ["dpo_lab.__main__"] + [f"dpo_lab.config.{m.stem}" for m in (PACKAGE / "config").glob("[!_]*.py")]
    assert len(names) > 3
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    printed = run(code + f"print(*(m for m in {HEAVY!r} if m in sys.modules))")
    assert printed.split() == []


@pytest.mark.slow
def test_every_module_imports_without_the_optional_packages():
    code = f"""
import importlib, pkgutil, sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # `import name` raises ModuleNotFoundError, find_spec says None
import dpo_lab
names = [m.name for m in pkgutil.walk_packages(dpo_lab.__path__, "dpo_lab.")]
broken = {{}}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as e:
        broken[name] = repr(e)
print(len(names), broken)
"""
    count, _, broken = run(code).strip().splitlines()[-1].partition(" ")
    assert int(count) > 10
    assert broken == "{}", broken
