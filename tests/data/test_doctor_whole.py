"""What hashes tell of all pairs: of tables as of lists, and as counting one by one does."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toys import ASKED, WEATHER, data_config, family, pair, prepare, read_pairs

from dpo_lab.data.doctor.examine import examine
from dpo_lab.data.doctor.findings import Place
from dpo_lab.data.doctor.hashing import again, distinct, joined, met, repeated, within
from dpo_lab.data.doctor.whole import Whole
from dpo_lab.data.templates import Template
from dpo_lab.data.types import Example


@pytest.fixture(scope="module")
def template():
    return Template(family("chatml"), "auto")


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def rows(n, start=0):
    return [
        {"prompt": f" question {i} ", "chosen": f"good {i}", "rejected": f"bad {i}\n"} for i in range(start, start + n)
    ]


def prepared(template, **options):
    data = data_config(**options)
    return prepare(read_pairs(data), data, template)


def look(template, **options):
    found = prepared(template, **options)
    return examine(
        found.train,
        found.heldout,
        train_counts=found.train_counts,
        heldout_counts=found.heldout_counts,
        template=template,
        max_length=1000,
        pairs=20,
    )


def the(report, check):
    [finding] = [f for f in report.findings if f.check == check]
    return finding


def test_a_table_and_a_list_of_the_same_pairs_know_the_same(template, tmp_path):
    examples = prepared(template, path=write(tmp_path / "a.jsonl", rows(30)), eval_fraction=0.3).train
    table, plain = Whole.of(examples, "train"), Whole.of(list(examples), "train")
    assert 10 < len(table) < 30
    assert len(plain) == len(table)
    for what in ("keys", "lengths", "rows"):
        assert np.array_equal(getattr(table, what), getattr(plain, what)), what
    mask = np.arange(len(table)) % 3 == 1
    assert table.places(mask) == plain.places(mask)
    assert table.pair(4) == plain.pair(4) == examples[4].pair
    assert table.rows_of_source == 30, "those that are held out, too"


def test_lists_tell_tools_and_calls_apart_and_not_spaces_around_answers(template):
    def keys(*pairs):
        return Whole.of([Example([1], [2], [3], p) for p in pairs], "train").keys.tolist()

    first, spaced = keys(pair("q", "a", "b"), pair("q", "a ", "\tb"))
    assert first == spaced
    asked = pair(ASKED, "a", "b")
    assert len({tuple(k) for k in keys(asked, replace(asked, tools=WEATHER), replace(asked, tools=WEATHER[:1]))}) == 3


def test_repeats_in_a_folder_are_counted_and_named_by_file(template, tmp_path):
    write(tmp_path / "data" / "a.jsonl", rows(100))
    second = write(tmp_path / "data" / "b.jsonl", [*rows(1, start=500), *rows(100)])
    report = look(template, path=str(tmp_path / "data"), eval_fraction=0.0)
    found = the(report, "exact-duplicates")
    assert (found.count, found.share) == (100, 100 / 201)
    assert found.rows[:2] == (Place(second, 2), Place(second, 3))
    assert len(found.rows) == 50
    assert report.sizes["train/looked_at"] == 20


def test_a_prompt_of_both_files_is_found_wherever_it_stands(template, tmp_path):
    heldout = write(tmp_path / "b.jsonl", [*rows(60, start=900), *rows(1, start=77)])
    found = prepared(template, path=write(tmp_path / "a.jsonl", rows(100)), eval_path=heldout)
    assert len(found.train) == 99, "it is not trained on"
    report = look(template, path=write(tmp_path / "a.jsonl", rows(100)), eval_path=heldout)
    assert the(report, "held-out-prompts").count == 1


def kto(good, bad):
    labels = [*[True] * good, *[False] * bad]
    return [
        {"prompt": f"question {i % max(good, 1) if label else i - good}", "completion": f"answer {i}", "label": label}
        for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("good", "bad", "severity", "told"),
    [(300, 100, "warning", "200 of 400 rows"), (300, 200, "info", "100 of 500 rows"), (200, 200, None, "")],
)
def test_single_answers_without_a_partner_are_no_fault(template, tmp_path, good, bad, severity, told):
    report = look(template, path=write(tmp_path / "kto.jsonl", kto(good, bad)), eval_fraction=0.2)
    found = [f for f in report.findings if f.check in ("unpaired-rows", "faulty-rows")]
    assert [f.severity for f in found] == ([severity] if severity else [])
    if severity:
        assert told in found[0].message
        assert "on_error" not in found[0].fix
    assert report.count("error") == 0


def test_a_bound_on_pairs_does_not_make_the_rows_left_out_look_many(template, tmp_path):
    path = write(tmp_path / "kto.jsonl", kto(300, 200))
    found = the(look(template, path=path, eval_fraction=0.0, max_pairs=60), "unpaired-rows")
    assert (found.severity, found.share) == ("info", 0.2)


def test_ranked_rows_count_as_rows(template, tmp_path):
    def row(i, scores):
        answers = [f"answer {i} {k}" for k in range(4)]
        return {"prompt": f"question {i}", "completions": answers, "scores": scores}

    path = write(tmp_path / "scored.jsonl", [row(i, [1, 2, 3, 4] if i < 60 else [5] * 4) for i in range(100)])
    found = the(look(template, path=path, eval_fraction=0.0), "unpaired-rows")
    assert "40 of 100 rows" in found.message
    assert found.severity == "info"


def test_rows_that_were_dropped_are_named(template, tmp_path):
    bad = [{"prompt": f"q {i}", "chosen": "a"} for i in range(20)]
    path = write(tmp_path / "a.jsonl", [*rows(100), *bad])
    found = the(look(template, path=path, eval_fraction=0.0, on_error="drop"), "faulty-rows")
    assert (found.severity, found.count, found.rows[0].row) == ("warning", 20, 101)
    assert "20 of 120 rows" in found.message
    assert "max_length" not in found.fix


@pytest.mark.parametrize("n", [0, 1, 2, 500])
@pytest.mark.parametrize("kinds", [1, 3, 200, 10**9])
def test_sets_of_hashes_are_as_counted_one_by_one(n, kinds):
    rng = np.random.default_rng(n + kinds)
    a, b = (rng.integers(0, kinds, size).astype(np.uint64) * np.uint64(2**33 + 1) for size in (n, n // 2))
    plain, seen = a.tolist(), set()
    assert again(a).tolist() == [x in seen or seen.add(x) is not None for x in plain]
    assert repeated(a).tolist() == [plain.count(x) > 1 for x in plain]
    assert distinct(a) == len(set(plain))
    assert within(a, b).tolist() == np.isin(a, b).tolist()
    assert [found.tolist() for found in met(a, b)] == [np.isin(a, b).tolist(), np.isin(b, a).tolist()]


def test_what_columns_say_together_depends_on_their_order():
    a, b = (np.arange(1000, dtype=np.uint64) * np.uint64(k) for k in (1, 7))
    assert distinct(joined(a, b)) == 1000
    assert not within(joined(a, b)[1:], joined(b, a)).any()
