"""Signatures read from source agree with the ones that Python sees, and nothing is imported for them."""

import importlib
import inspect
from pathlib import Path

import pytest

from dpo_lab.config.target import TargetError, signature, source_file

TARGETS = [
    "torch.optim.AdamW",
    "torch.optim.SGD",
    "dpo_lab.preference.losses.dpo_loss",
    "dpo_lab.preference.losses.ipo_loss",
]


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_the_signature_that_python_sees(target):
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    read = signature(target)
    assert read is not None
    assert read.names == tuple(p.name for p in parameters)
    assert read.keyword_only == tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    assert read.required == tuple(p.name for p in parameters if p.default is p.empty)


def test_a_re_export_is_followed_to_its_file():
    assert source_file("torch.optim.AdamW").name == "adamw.py"


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "math.sin"])
def test_what_has_no_source_is_left_to_the_run(target):
    assert signature(target) is None


@pytest.mark.parametrize(
    ("target", "fragment"),
    [
        ("nowhere_at_all.f", "no module nowhere_at_all"),
        ("dpo_lab.preferences.losses.f", "Did you mean preference?"),
        ("json.decoder.JSONDecodr", "JSONDecoder"),
        ("name", "not of the form"),
    ],
)
def test_what_is_not_there_is_named(target, fragment):
    with pytest.raises(TargetError, match=fragment):
        signature(target)


def test_inheritance_defaults_and_open_keywords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "kinds_of_targets"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner.base import Base as Exported\n")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "base.py").write_text(
        "class Base:\n    def __init__(self, params, lr, *, nu=1, **more): ...\n\nclass Child(Base):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for target in ("kinds_of_targets.Exported", "kinds_of_targets.inner.base.Child"):
        read = signature(target)
        assert read is not None
        assert (read.positional, read.keyword_only, read.required) == (("params", "lr"), ("nu",), ("params", "lr"))
        assert read.takes_any
