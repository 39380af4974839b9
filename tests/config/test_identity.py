"""A run's id says what was computed, not where, when or under which name."""

import copy
import json
from pathlib import Path

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


def identity(*words: str) -> str:
    return run_id(tree_of(*words))


def _lab_folder(folder: Path, *, bom: bool) -> Path:
    folder.mkdir()
    (folder / "x.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    info = json.dumps({"x": {"file_name": "x.jsonl", "ranking": True}, "y": {"file_name": "y.jsonl"}})
    (folder / "dataset_info.json").write_text(info, encoding="utf-8-sig" if bom else "utf-8")
    return folder


@pytest.mark.parametrize("bom", [False, True])
def test_the_content_of_a_named_dataset_counts_and_other_datasets_do_not(tmp_path: Path, bom: bool) -> None:
    folder = _lab_folder(tmp_path / "lf", bom=bom)
    words = ["data=llamafactory", f"data.dir={folder}", "data.name=x"]
    before = identity(*words)
    (folder / "y.jsonl").write_text("another")
    assert identity(*words) == before
    with open(folder / "x.jsonl", "a") as handle:
        handle.write('{"prompt": "d", "chosen": "e", "rejected": "f"}\n')
    assert identity(*words) != before


def test_of_a_folder_the_data_files_count_and_of_a_list_the_order(tmp_path: Path) -> None:
    folder = _lab_folder(tmp_path / "data", bom=False)
    (folder / "dataset_info.json").unlink()
    before = identity("data=file", f"data.path={folder}")
    (folder / "README.md").write_text("About this data")
    assert identity("data=file", f"data.path={folder}") == before
    (folder / "z.jsonl.gz").write_bytes(b"more")
    assert identity("data=file", f"data.path={folder}") != before
    one, two = f"{folder}/x.jsonl", f"{folder}/z.jsonl.gz"
    assert identity("data=file", f"data.path=[{one},{two}]") != identity("data=file", f"data.path=[{two},{one}]")


def test_the_doctor_and_the_number_of_workers_change_no_result(tmp_path: Path) -> None:
    assert identity("doctor.enabled=false", "doctor.fail_on=error", "data.workers=7") == identity()
    assert identity("data.on_error=drop") != identity()
