"""The base that an adapter names, and the one that it is put on."""

import shutil
from pathlib import Path

import pytest
from tiny import plain_model, write_tiny_model

from dpo_lab.config.schema import Model
from dpo_lab.inference.bases import is_base
from dpo_lab.models.locate import Located

HUB = "Qwen/Qwen2.5-0.5B-Instruct"


def named(name: str | None) -> Model:
    return plain_model("x").model_copy(update={"path": None, "name": name})


@pytest.mark.parametrize(
    ("made_for", "same"),
    [
        (HUB, True),
        ("unsloth/qwen2.5-0.5b-instruct", True),  # a mirror
        ("/gone/hub/models--Qwen--Qwen2.5-0.5B-Instruct/snapshots/12ab", True),
        ("Qwen/Qwen2.5-0.5B", False),
        ("/gone/hub/models--Qwen--Qwen2.5-0.5B/snapshots/12ab", False),
        ("/gone/Qwen2.5-0.5B", None),  # a folder that is not here proves nothing
        ("/gone/a/model.gguf", None),
        ("gpt2", None),
    ],
)
def test_names_are_compared_where_both_have_one(made_for, same, tmp_path):
    assert is_base(made_for, Located(tmp_path / "snapshot", HUB), named(HUB), tmp_path) is same
    cached = tmp_path / "models--Qwen--Qwen2.5-0.5B-Instruct" / "snapshots" / "1"
    assert is_base(made_for, Located(cached, "1"), plain_model(cached), tmp_path) is same


def test_the_names_of_other_hubs_count_and_a_folder_of_ones_own_proves_nothing(tmp_path):
    of_option = named(None).model_copy(update={"names": {"hf": HUB, "modelscope": "AI/Qwen2.5-0.5B-Chat"}})
    for name in (HUB, "AI/Qwen2.5-0.5B-Chat"):
        assert is_base(name, Located(tmp_path / "s", HUB), of_option, tmp_path) is True
    mine = Located(tmp_path / "my-model", "my-model")
    assert is_base(HUB, mine, plain_model(mine.path), tmp_path) is None
    assert is_base("me/my-model", mine, plain_model(mine.path), tmp_path) is True


def test_folders_on_this_machine_are_compared_by_their_weights(tmp_path):
    one, two = write_tiny_model(tmp_path / "one"), write_tiny_model(tmp_path / "two", initializer_range=0.1)
    copied = Path(shutil.copytree(one, tmp_path / "copied"))
    located = Located(one, "one")
    assert is_base(str(one), located, plain_model(one), tmp_path / "cache") is True
    assert is_base(str(copied), located, plain_model(one), tmp_path / "cache") is True
    assert is_base(str(two), located, plain_model(one), tmp_path / "cache") is False
