"""Splits: what is held out depends on the prompt alone, and no prompt is on both sides."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from toys import SHARED, chat, data_config, family, prepare, read_pairs

from dpo_lab.data.prepare import prompt_share
from dpo_lab.data.templates import Template
from dpo_lab.runtime.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def template():
    return Template(family("chatml"), "auto")


def row(prompt, chosen="good", rejected="bad"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "pairs.jsonl", [row(f"question {i % 150}", f"good {i}") for i in range(200)])


def prompts(pairs):
    return {tuple((m["role"], m["content"]) for m in p.prompt) for p in pairs}


def test_every_pair_is_on_one_side_and_no_prompt_on_both(file):
    split = read_pairs(data_config(path=file, eval_fraction=0.3))
    assert len(split.train) + len(split.heldout) == 200
    assert len(prompts(split.train)) + len(prompts(split.heldout)) == 150
    assert 20 < len(prompts(split.heldout)) < 70


def test_the_held_out_prompts_do_not_depend_on_seed_order_answers_or_the_other_rows(file, tmp_path):
    everything = prompts(read_pairs(data_config(path=file, eval_fraction=0.3)).heldout)
    rows = [row(f"question {i}", "other", "answers") for i in range(75)]
    random.Random(0).shuffle(rows)
    part = read_pairs(data_config(path=write(tmp_path / "part.jsonl", rows), eval_fraction=0.3, seed=5))
    assert prompts(part.heldout) == {(("user", f"question {i}"),) for i in range(75)} & everything
    assert prompts(part.heldout)


def test_a_higher_eval_fraction_only_adds_to_the_held_out_prompts(file):
    sides = [prompts(read_pairs(data_config(path=file, eval_fraction=f)).heldout) for f in (0.0, 0.05, 0.2, 0.5, 0.99)]
    assert all(less < more for less, more in zip(sides, sides[1:], strict=False))
    assert not sides[0]


def test_the_share_of_a_prompt_is_fixed_for_good():
    # printf '[["user", "Why?"]]' | b2sum -l 64
    assert prompt_share(chat("Why?")) == 0x65F3223E22779766 / 2**64
    assert prompt_share(chat("为什么？", system="S")) != prompt_share(chat("为什么？"))


def test_the_subset_sizes_do_not_move_a_prompt_to_the_other_side(file, template):
    config = data_config(path=file, eval_fraction=0.3)
    split = read_pairs(config)
    small = prepare(split, config.model_copy(update={"max_pairs": 10, "max_eval_pairs": 3}), template)
    assert (len(small.train), len(small.heldout)) == (10, 3)
    assert [e.pair for e in small.train] == list(split.train[:10])
    assert [e.pair for e in small.heldout] == list(split.heldout[:3])


def test_training_pairs_with_a_prompt_of_the_held_out_file_are_dropped_and_counted(tmp_path, template):
    path = write(tmp_path / "train.jsonl", [row("a"), row("b"), row("c"), row("b", "better")])
    held = write(tmp_path / "eval.jsonl", [row("d"), row("b"), row("d", "fine")])
    config = data_config(path=path, eval_path=held, eval_fraction=0.9)
    prepared = prepare(read_pairs(config), config, template)
    assert [e.pair.prompt[0]["content"] for e in prepared.train] == ["a", "c"]
    assert [e.pair.prompt[0]["content"] for e in prepared.heldout] == ["d", "b", "d"]
    assert prepared.train_counts.dropped == {"prompt is held out": 2}
    assert prepared.train_counts.first_row == {"prompt is held out": 2}


def test_a_held_out_prompt_stays_away_from_training_even_beyond_max_eval_pairs(tmp_path, template):
    path = write(tmp_path / "train.jsonl", [row("a"), row("b")])
    held = write(tmp_path / "eval.jsonl", [row("d"), row("b")])
    config = data_config(path=path, eval_path=held, max_eval_pairs=1)
    assert prepare(read_pairs(config), config, template).train_counts.dropped == {"prompt is held out": 1}


def test_the_held_out_file_may_have_another_format(tmp_path, template):
    path = write(tmp_path / "train.jsonl", [row("a")])
    held = write(tmp_path / "eval.jsonl", [{"instruction": "b", "input": "", "chosen": "x", "rejected": "y"}])
    config = data_config(path=path, eval_path=held)
    prepared = prepare(read_pairs(config), config, template)
    assert prepared.format == "trl"
    assert len(prepared.heldout) == 1


@pytest.mark.parametrize(
    ("rows", "changes", "fragments"),
    [
        (
            [row("x" * 500)],
            {"max_length": 64},
            ["1 dropped (prompt longer", "first in row 1", "data.max_length=64", "cut_both"],
        ),
        (
            [row("a", ""), row("b", "")],
            {},
            ["0 held out", "2 dropped (empty answer, first in row 1)", "Check the data"],
        ),
        ([row("a", None), row(None)], {}, ["1 dropped (empty answer", "1 dropped (empty prompt, first in row 2)"]),
        ([row("a", "same", "same")], {}, ["identical answers", "Check the data"]),
        ([row("question 3")] * 5, {"eval_fraction": 0.999}, ["5 held out", "lower data.eval_fraction"]),
        (
            [row("a")],
            {"eval": [row("a")]},
            ["1 dropped (prompt is held out, first in row 1)", "Give more prompts, or other"],
        ),
        (
            [row("a")],
            {"eval": [row("b", "")]},
            ["eval.jsonl", "evaluate on", "1 dropped (empty answer", "Check the data"],
        ),
    ],
)
def test_where_nothing_is_left_the_message_says_why(tmp_path, template, rows, changes, fragments):
    changes = dict(changes)
    if held := changes.pop("eval", None):
        changes["eval_path"] = write(tmp_path / "eval.jsonl", held)
    config = data_config(path=write(tmp_path / "a.jsonl", rows), **changes)
    with pytest.raises(DataError) as caught:
        prepare(read_pairs(config), config, template)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_facts_change_with_the_tokens_and_with_nothing_else(tmp_path, template):
    def facts(rows, **changes):
        config = data_config(path=write(tmp_path / "a.jsonl", rows), **changes)
        return prepare(read_pairs(config), config, template).facts()

    plain = facts([row("a"), row("b")])
    assert plain["train"] == {
        "kept": 2,
        "dropped": {},
        "cut": {},
        "first_row": {},
        "first_file": {},
        "kinds": {},
        "named": 0,
        "first_named": 0,
    }
    assert json.loads(json.dumps(plain)) == plain
    assert facts([row("a") | {"source": "x"}, row("b")]) == plain
    assert facts([row("b"), row("a")])["fingerprint"] != plain["fingerprint"]
    assert facts([row("a"), row("b", "Good")])["fingerprint"] != plain["fingerprint"]


@pytest.mark.parametrize(("name", "turns", "systems"), [("dpo_en_demo.json", 7, 80), ("dpo_zh_demo.json", 2, 64)])
def test_the_tutorials_own_files_are_read_whole(name, turns, systems, template):
    file = SHARED / "data" / name
    if not file.is_file():
        pytest.skip(f"{name} is not on this machine (../shared/data)")
    config = data_config(path=str(file), eval_fraction=0.1, max_length=10**6)
    split = read_pairs(config)
    rows = json.loads(file.read_text(encoding="utf-8"))
    everything = [*split.train, *split.heldout]
    assert split.format == "sharegpt"
    assert len(everything) == len(rows)
    assert sum(p.prompt[0]["role"] == "system" for p in everything) == systems
    assert sum(len(p.prompt) > turns for p in everything) == sum(len(r["conversations"]) > turns for r in rows)
    for p in everything:
        source = rows[p.row - 1]
        assert [m["content"] for m in p.prompt] == [m["value"] for m in source["conversations"]]
        assert (p.chosen, p.rejected) == (source["chosen"]["value"], source["rejected"]["value"])
    prepared = prepare(split, config, template)
    assert len(prepared.train) + len(prepared.heldout) == len(rows)


def test_reading_data_needs_no_torch():
    code = (
        "import sys, dpo_lab.data.sources, dpo_lab.data.formats, dpo_lab.data.prepare\n"
        "print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""
