"""A run's id says what was computed, not where, when or under which name."""

import copy

import pytest
from composing import tree_of

from dpo_lab.config.identity import run_id


@pytest.fixture(scope="module")
def base() -> dict:
    return tree_of()


def changed(tree: dict, key: str, value: object) -> dict:
    tree = copy.deepcopy(tree)
    *path, last = key.split(".")
    node = tree
    for part in path:
        node = node[part]
    node[last] = value
    return tree


@pytest.fixture
def tree(base, tmp_path) -> dict:
    return changed(base, "cache_dir", str(tmp_path / "cache"))


def test_it_is_twelve_hexadecimal_digits_and_the_same_again(tree):
    assert run_id(tree) == run_id(copy.deepcopy(tree))
    assert len(run_id(tree)) == 12
    int(run_id(tree), 16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.beta", 0.2),
        ("optim.lr", 1e-3),
        ("optim.amsgrad", True),
        ("seed", 1),
        ("data.seed", 1),
        ("quant", {"bits": 4}),
        ("trainer.precision", "bf16"),
        ("lora.r", 16),
        ("loss.average", "mean"),
        ("data.path", "pkg://demo_zh_train.jsonl"),
        ("model.name", "another/model"),
    ],
)
def test_what_changes_the_result_changes_the_id(tree, key, value):
    assert run_id(changed(tree, key, value)) != run_id(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output_dir", "/elsewhere"),
        ("logger", {"name": "none"}),
        ("sweep.name", "x"),
        ("plan", True),
        ("overwrite", True),
        ("trainer.accelerator", "cpu"),
        ("trainer.microbatch_tokens", 512),
        ("trainer.checkpoint_every", 7),
    ],
)
def test_what_does_not_change_the_result_leaves_the_id(tree, key, value):
    assert run_id(changed(tree, key, value)) == run_id(tree)


def test_the_cache_folder_is_no_part(tree, tmp_path):
    assert run_id(changed(tree, "cache_dir", str(tmp_path / "other"))) == run_id(tree)


@pytest.mark.parametrize(("key", "one", "other"), [("loss.beta", 1, 1.0), ("trainer.precision", 32, "32")])
def test_equal_settings_written_differently_are_one_run(tree, key, one, other):
    assert run_id(changed(tree, key, one)) == run_id(changed(tree, key, other))


def test_data_count_by_content_and_not_by_name(tree, tmp_path):
    for name, text in {"a.jsonl": "same", "b.jsonl": "same", "c.jsonl": "different"}.items():
        (tmp_path / name).write_text(text)
    a, b, c = (run_id(changed(tree, "data.path", str(tmp_path / f"{n}.jsonl"))) for n in "abc")
    assert a == b != c
    (tmp_path / "a.jsonl").write_text("edited")
    assert run_id(changed(tree, "data.path", str(tmp_path / "a.jsonl"))) != a


def test_held_out_data_count_too(tree, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = (run_id(changed(tree, "data.eval_path", str(tmp_path / n))) for n in "ab")
    assert a != b


def test_a_model_folder_counts_by_content_whatever_it_is_called(tree, tmp_path):
    for name, text in {"one": "w", "two": "w", "three": "v"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(text)
    ids = [run_id(changed(tree, "model.path", str(tmp_path / n))) for n in ("one", "two", "three")]
    named = changed(changed(tree, "model.path", str(tmp_path / "one")), "model.name", "my model")
    assert ids[0] == ids[1] == run_id(named)
    assert ids[0] != ids[2]


def test_the_run_started_from_counts_by_its_final_weights(tree, tmp_path):
    for name, text in {"one": "w", "two": "w", "three": "v"}.items():
        (tmp_path / name / "final").mkdir(parents=True)
        (tmp_path / name / "final" / "adapter").write_text(text)
        (tmp_path / name / "run.log").write_text(name)
    ids = [run_id(changed(tree, "lora.adapter", str(tmp_path / n))) for n in ("one", "two", "three")]
    assert ids[0] == ids[1] != ids[2]


def test_an_absent_input_has_an_id_all_the_same(tree):
    gone = run_id(changed(tree, "data.path", "/nowhere/a.jsonl"))
    assert gone != run_id(changed(tree, "data.path", "/nowhere/b.jsonl"))


def test_the_source_of_ones_own_loss_is_part(tree, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    own = changed(tree, "loss", {"_target_": "loss_for_identity.f", "average": "sum"})
    module = tmp_path / "loss_for_identity.py"
    module.write_text("def f(chosen_logratios): return chosen_logratios\n")
    before = run_id(own)
    module.write_text("def f(chosen_logratios): return -chosen_logratios\n")
    assert run_id(own) != before
