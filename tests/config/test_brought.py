"""Results of another base or start are not measured together, however they were trained."""

from pathlib import Path
from typing import Any

import pytest

from dpo_lab.config.brought import Subject, _check_alike
from dpo_lab.runtime.errors import ConfigError


def result(name: str, *, whole: bool, **model: Any) -> Subject:
    facts = {"base": "b", "identity": "b", "rope": None, "name": f"model of {name}"} | model
    template = {"name": "auto", "path": None, "enable_thinking": None}
    config = {"quant": {"bits": None, "threshold": 6.0}, "template": template}
    return Subject(name, Path(name), Path(name), whole, {"model": facts, "config": config})


@pytest.mark.parametrize("one", [True, False], ids=["whole", "adapter"])
@pytest.mark.parametrize("other", [True, False], ids=["whole", "adapter"])
@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"base": "c", "identity": "c"}, "of another base"),
        ({"identity": "c"}, "of another start"),
        ({"rope": {"type": "linear", "factor": 2.0}}, "of another rope scaling"),
    ],
)
def test_another_base_start_or_rope_is_refused_with_both_names(one, other, facts, what):
    """Where one is whole too: token ids, template and reference are those of the first."""
    first, second = result("a", whole=one), result("z", whole=other, **facts)
    for pair in ((first, second), (second, first)):
        with pytest.raises(ConfigError, match=what) as told:
            _check_alike(*pair)
        assert "a (model of a)" in str(told.value)
        assert "z (model of z)" in str(told.value)


@pytest.mark.parametrize("one", [True, False])
def test_a_whole_and_an_adapter_of_one_start_go_together(one):
    _check_alike(result("a", whole=one), result("z", whole=not one))
