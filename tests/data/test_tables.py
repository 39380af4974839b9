"""Pairs and token ids on disk: the same whatever the processes, read once, mixed as asked, with every row accounted for."""

import gzip
import json
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from toys import data_config, family

from dpo_lab.data import tables as tables_module
from dpo_lab.data import tokens as tokens_module
from dpo_lab.data.prepare import prepare, read_pairs
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import Encoder, tokenize
from dpo_lab.data.tokens import tokenise
from dpo_lab.runtime.errors import DataError


@pytest.fixture
def template():
    return Template(family("chatml"), "auto")


def row(prompt, chosen="good", rejected="bad"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write(path: Path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def ids(examples):
    return [(e.prompt_ids, e.chosen_ids, e.rejected_ids) for e in examples]


def questions(pairs):
    return [p.prompt[-1]["content"] for p in pairs]


@pytest.fixture
def many(tmp_path):
    """3,000 pairs, of which every tenth is faulty in one of three ways."""
    faults = {0: {"chosen": ""}, 10: {"chosen": "bad"}, 20: {"prompt": "x" * 300}}
    rows = [row(f"question {i}", f"good {i}") | faults.get(i % 30, {}) for i in range(3000)]
    return write(tmp_path / "many.jsonl", rows)


def test_tables_hold_what_tokenisation_in_memory_gives(many, template, tmp_path):
    config = data_config(path=many, max_length=200)
    split = read_pairs(config, tmp_path / "cache")
    data = prepare(split, config, template, tmp_path / "cache")
    expected, counts = tokenize(split.train, template, max_length=200, truncation="drop", limit=None)
    assert ids(data.train) == ids(expected)
    assert [e.pair for e in data.train] == [e.pair for e in expected]
    assert data.train_counts == counts
    assert sorted(counts.dropped.values()) == [100, 100, 100]
    assert data.train.lengths.tolist() == [list(e.lengths) for e in expected]
    dropped = data.looked["train"].dropped
    assert set(dropped) == {i for i in range(3000) if i % 10 == 0}
    assert Counter(dropped.values()) == counts.dropped


def test_several_processes_give_what_one_gives(many, template, tmp_path):
    facts = []
    for workers in (1, 3):
        config = data_config(path=many, workers=workers)
        cache = tmp_path / f"cache {workers}"
        facts.append(prepare(read_pairs(config, cache), config, template, cache).facts())
        assert len([*cache.rglob("tokens-*/*.arrow")]) == workers
    assert facts[0] == facts[1]


@pytest.mark.parametrize("limit", [1, 7, 9, 10, 500, 2700, 9999])
def test_a_limit_keeps_the_first_pairs_that_fit_and_counts_nothing_beyond(many, template, tmp_path, limit):
    config = data_config(path=many, max_length=200, max_pairs=limit)
    split = read_pairs(config, tmp_path / "cache")
    data = prepare(split, config, template, tmp_path / "cache")
    expected, counts = tokenize(split.train, template, max_length=200, truncation="drop", limit=limit)
    assert ids(data.train) == ids(expected)
    assert data.train_counts == counts
    assert len(data.train) == min(limit, 2700)


def test_a_second_run_reads_and_tokenises_nothing(many, template, tmp_path, monkeypatch):
    config = data_config(path=many)
    first = prepare(read_pairs(config, tmp_path), config, template, tmp_path).facts()

    def never(*args, **kwargs):
        raise AssertionError("there is a table already")

    monkeypatch.setattr(tables_module, "_write", never)
    monkeypatch.setattr(tokens_module, "_write", never)
    assert prepare(read_pairs(config, tmp_path), config, Template(family("chatml"), "auto"), tmp_path).facts() == first
    for changed in ({"max_length": 50}, {"truncation": "cut_both"}):
        other = data_config(path=many, **changed)
        split = read_pairs(other, tmp_path)
        with pytest.raises(AssertionError):
            prepare(split, other, template, tmp_path)
    with pytest.raises(AssertionError):
        prepare(read_pairs(config, tmp_path), config, Template(family("llama3"), "auto"), tmp_path)
    with open(many, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(row("one more")) + "\n")
    with pytest.raises(AssertionError):
        read_pairs(config, tmp_path)


def test_what_a_killed_run_left_is_not_taken_for_a_table(many, template, tmp_path):
    config = data_config(path=many)
    split = read_pairs(config, tmp_path)
    table = next(tmp_path.rglob("pairs-*/pairs.arrow")).parent
    half = table.with_name(f".{table.name}.123.tmp")
    table.rename(half)
    assert questions(read_pairs(config, tmp_path).train) == questions(split.train)


@pytest.mark.parametrize("kind", ["pairs", "tokens"])
def test_a_table_that_is_not_whole_is_written_anew(many, template, tmp_path, kind):
    config = data_config(path=many)
    facts = prepare(read_pairs(config, tmp_path), config, template, tmp_path).facts()
    file = next(tmp_path.rglob(f"{kind}-*/*.arrow"))
    cut = file.read_bytes()[:-1000]
    file.unlink()  # not in place: what is in memory is mapped to it
    file.write_bytes(cut)
    assert prepare(read_pairs(config, tmp_path), config, template, tmp_path).facts() == facts


def test_examples_are_read_by_place_and_by_slice(many, template, tmp_path):
    config = data_config(path=many, max_length=200)
    train = prepare(read_pairs(config, tmp_path), config, template, tmp_path).train
    everything = ids(train)
    assert ids(train[5:20:3]) == everything[5:20:3]
    assert ids(train[-3:]) == everything[-3:]
    assert train[5:20].lengths.tolist() == train.lengths[5:20].tolist()
    assert ids([train[-1]]) == everything[-1:]
    with pytest.raises(IndexError):
        train[len(train)]


# Several files and sources


def test_a_folder_is_one_source_and_every_pair_knows_its_file_and_row(tmp_path):
    write(tmp_path / "data" / "a.jsonl", [row("a1"), row("a2")])
    with gzip.open(tmp_path / "data" / "b.jsonl.gz", "wt") as handle:
        handle.write(json.dumps(row("b1")) + "\n")
    write(tmp_path / "data" / "deeper" / "c.jsonl", [row("c1"), row("c2")])
    train = read_pairs(data_config(path=str(tmp_path / "data")), tmp_path / "cache").train
    assert questions(train) == ["a1", "a2", "b1", "c1", "c2"]
    assert [(Path(p.source).name, p.row) for p in train] == [
        *(("a.jsonl", 1), ("a.jsonl", 2), ("b.jsonl.gz", 1), ("c.jsonl", 1), ("c.jsonl", 2))
    ]


def test_a_faulty_row_of_a_folder_is_named_by_its_file_and_its_row_there(tmp_path):
    write(tmp_path / "data" / "a.jsonl", [row("a")] * 30)
    write(tmp_path / "data" / "b.jsonl", [row("b"), row("b", chosen=7)])
    with pytest.raises(DataError, match=r"data/b\.jsonl: row 2: chosen must be .* not a number"):
        read_pairs(data_config(path=str(tmp_path / "data")), tmp_path / "cache")


@pytest.fixture
def shards(tmp_path):
    """Five files of 40 pairs, two of them with a faulty row."""
    for i in range(5):
        rows = [row(f"q{i} {j}", f"good {j}") for j in range(40)]
        if i in (1, 3):
            rows[30] = {"prompt": "torn", "chosen": "y"}
        write(tmp_path / "shards" / f"part-{i}.jsonl", rows)
    return str(tmp_path / "shards")


def test_files_read_side_by_side_give_the_same_pairs(shards, tmp_path):
    found = {}
    for workers in (1, 3):
        config = data_config(path=shards, workers=workers, on_error="drop", eval_fraction=0.2)
        split = read_pairs(config, tmp_path / f"cache {workers}")
        assert len([*(tmp_path / f"cache {workers}").rglob("pairs-*/*.arrow")]) == (1 if workers == 1 else 5)
        found[workers] = [list(split.train), list(split.heldout), split.train_bad, split.format]
    assert found[1] == found[3]
    assert found[1][2] == {"rejected is missing": (2, 31, f"{shards}/part-1.jsonl", "faulty")}


def test_a_fault_in_a_file_that_is_read_beside_others_is_told(shards, tmp_path):
    with pytest.raises(DataError, match=r"part-1\.jsonl: row 31: rejected is missing"):
        read_pairs(data_config(path=shards, workers=3), tmp_path / "cache")
    assert [*(tmp_path / "cache").rglob("*.arrow")] == []


def test_labelled_answers_find_their_partners_in_other_files(tmp_path):
    write(tmp_path / "data" / "a.jsonl", [{"prompt": f"q{i}", "completion": "yes", "label": True} for i in range(30)])
    write(
        tmp_path / "data" / "b.jsonl", [{"prompt": f"q{i}", "completion": "no", "label": False} for i in range(1, 31)]
    )
    split = read_pairs(data_config(path=str(tmp_path / "data"), workers=2), tmp_path / "cache")
    assert questions(split.train) == [f"q{i}" for i in range(1, 30)]
    assert {(p.chosen, p.rejected) for p in split.train} == {("yes", "no")}
    assert [count for count, *_ in split.train_bad.values()] == [2], "lone answers are counted, not raised"


def test_sources_follow_each_other_and_may_have_different_formats(tmp_path, template):
    one = write(tmp_path / "one.jsonl", [row("1"), row("2")])
    two = write(tmp_path / "two.jsonl", [{"instruction": "3", "chosen": "y", "rejected": "n"}])
    config = data_config(path=[one, two])
    split = read_pairs(config, tmp_path / "cache")
    assert questions(split.train) == ["1", "2", "3"]
    assert split.format == "trl, alpaca"
    assert len(prepare(split, config, template, tmp_path / "cache").train) == 3


@pytest.fixture
def two(tmp_path):
    """Sources of 40 and 10 pairs."""
    return [
        write(tmp_path / "a.jsonl", [row(f"a{i}") for i in range(40)]),
        write(tmp_path / "b.jsonl", [row(f"b{i}") for i in range(10)]),
    ]


def mixed(two, tmp_path, **changes):
    return questions(read_pairs(data_config(path=two, **changes), tmp_path / "cache").train)


def test_interleaving_under_ends_with_the_first_source_that_ends(two, tmp_path):
    found = mixed(two, tmp_path, mix="interleave_under")
    assert found == [q for i in range(10) for q in (f"a{i}", f"b{i}")]


def test_interleaving_over_goes_on_until_all_sources_have_ended(two, tmp_path):
    counts = Counter(mixed(two, tmp_path, mix="interleave_over"))
    assert [counts[f"a{i}"] for i in range(40)] == [1] * 40
    assert [counts[f"b{i}"] for i in range(10)] == [4] * 10


def test_probabilities_are_the_shares_and_the_seed_decides_the_order(two, tmp_path):
    changes = {"mix": "interleave_over", "probabilities": [0.25, 0.75]}
    found = mixed(two, tmp_path, **changes)
    assert 0.65 < np.mean([q.startswith("b") for q in found]) < 0.85
    assert mixed(two, tmp_path, **changes) == found
    assert mixed(two, tmp_path, **changes, seed=1) != found


def test_a_mixture_with_repeats_keeps_every_prompt_on_one_side(two, tmp_path):
    split = read_pairs(data_config(path=two, mix="interleave_over", eval_fraction=0.3), tmp_path / "cache")
    assert set(questions(split.train)) & set(questions(split.heldout)) == set()
    assert len(split.heldout) > 0


# LLaMA-Factory's folders


@pytest.fixture
def folder(tmp_path):
    files = {
        "shared": ([{"conversations": [{"from": "human", "value": f"s{i}"}], "chosen": {"from": "gpt", "value": "y"},
                     "rejected": {"from": "gpt", "value": "n"}} for i in range(20)], {"formatting": "sharegpt"}),
        "few": ([{"q": f"f{i}", "good": "y", "bad": "n"} for i in range(20)],
                {"columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}, "num_samples": 5}),
        "more": ([{"instruction": f"m{i}", "chosen": "y", "rejected": "n"} for i in range(3)], {"num_samples": 7}),
    }  # fmt: skip
    for name, (rows, _) in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    info = {name: {"file_name": f"{name}.json", "ranking": True} | entry for name, (_, entry) in files.items()}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path


def test_names_of_a_dataset_info_are_read_and_mixed(folder):
    found = questions(read_pairs(data_config(dir=str(folder), name=["shared", "few"]), folder / "cache").train)
    assert found[:20] == [f"s{i}" for i in range(20)]
    assert len(found) == 25
    assert set(found[20:]) < {f"f{i}" for i in range(20)}


def test_num_samples_draws_by_the_seed_and_repeats_where_there_are_fewer(folder):
    def few(name, seed=0):
        return questions(read_pairs(data_config(dir=str(folder), name=name, seed=seed), folder / "cache").train)

    assert few("few") == few("few") != few("few", seed=1)
    assert len(few("few")) == len(set(few("few"))) == 5
    assert len(few("more")) == 7
    assert set(few("more")) == {"m0", "m1", "m2"}


def test_held_out_names_are_another_source(folder):
    split = read_pairs(data_config(dir=str(folder), name="shared", eval_name="more"), folder / "cache")
    assert (len(split.train), len(split.heldout)) == (20, 3), "nothing is held out twice"
    assert split.format == "sharegpt"


# Faulty rows


def test_rows_that_cannot_be_used_are_counted_with_their_reason_where_that_is_asked_for(tmp_path, template):
    rows = [row("a"), {"prompt": "b", "chosen": "y"}, row("c", chosen=3), {"prompt": "d", "chosen": "y"}, row("e")]
    path = Path(write(tmp_path / "a.jsonl", rows))
    with pytest.raises(DataError, match=r"a\.jsonl: row 2: rejected is missing"):
        read_pairs(data_config(path=str(path)), tmp_path / "cache")
    path.write_text(path.read_text() + '{"prompt": "torn\n' + json.dumps(row("f")) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl: broken JSON in line 6"):
        read_pairs(data_config(path=str(path)), tmp_path / "cache")
    config = data_config(path=str(path), on_error="drop")
    split = read_pairs(config, tmp_path / "cache")
    assert questions(split.train) == ["a", "e", "f"]
    counts = prepare(split, config, template, tmp_path / "cache").train_counts
    assert counts.dropped == {
        "rejected is missing": 2,
        "chosen must be text or messages, not a number": 1,
        "broken JSON": 1,
    }
    assert counts.first_row == {
        "rejected is missing": 2,
        "chosen must be text or messages, not a number": 3,
        "broken JSON": 6,
    }


def test_a_file_without_a_single_usable_row_says_so_even_where_rows_are_dropped(tmp_path, template):
    config = data_config(path=write(tmp_path / "a.jsonl", [row(1), row(2)]), on_error="drop")
    with pytest.raises(DataError, match=r"No pair is left to train on.*2 dropped \(prompt"):
        prepare(read_pairs(config, tmp_path / "cache"), config, template, tmp_path / "cache")


class Slow(Encoder):
    def __call__(self, pairs):
        time.sleep(0.3)
        return super().__call__(pairs)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_tokenising_at_once_and_leaves_no_half_a_table(many, template, tmp_path, workers):
    pairs = read_pairs(data_config(path=many), tmp_path).train
    began = time.monotonic()
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        tokenise(pairs, Slow(template, 100, "drop"), tmp_path, limit=None, workers=workers)
    timer.join()
    assert time.monotonic() - began < 30
    assert [p.name for p in (tmp_path / "data").iterdir() if "tokens" in p.name and p.suffix != ".lock"] == []
