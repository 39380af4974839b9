"""The examination as a whole: samples, time, and a report that can be stored and judged."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from toys import family, pair

import dpo_lab.data.doctor.examine as examine_module
from dpo_lab.data.doctor.examine import FIRST_WEIGHT, MOST_WEIGHT, OF_SAMPLE, examine
from dpo_lab.data.doctor.findings import Finding, Place, Report
from dpo_lab.data.doctor.sample import Sample
from dpo_lab.data.doctor.whole import Whole
from dpo_lab.data.templates import Template
from dpo_lab.data.types import Counts, Example


class Synthetic(Sequence):
    """A million pairs that are made when asked for, and a count of how many were; hashes and lengths are known."""

    made = count()

    def __init__(self, n, template, tokens=60):
        self.first_key = next(self.made) << 40  # no two sets share a hash
        self.n, self.tokens, self.end, self.read = n, tokens, template.end_of_turn, []
        self.lengths = np.full((n, 3), [tokens, tokens + len(self.end), tokens + len(self.end)])

    def keys(self):
        return np.arange(3 * self.n, dtype=np.uint64).reshape(self.n, 3) + np.uint64(self.first_key)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        self.read.append(i)
        rng = np.random.default_rng(i)
        a, b, c = rng.integers(0, 250, (3, self.tokens)).tolist()
        return Example(a, b + self.end, c + self.end, pair(f"{i} {a}", str(b), str(c), i))


@pytest.fixture(scope="module")
def template():
    return Template(family("chatml"), "auto")


def look(train, heldout, template, **options):
    counts = Counts(kept=len(train)), Counts(kept=len(heldout))
    return examine(
        train, heldout, train_counts=counts[0], heldout_counts=counts[1], template=template, max_length=4096, **options
    )


def test_a_large_set_is_sampled_evenly_and_the_report_says_so(template):
    train, heldout = Synthetic(1_000_000, template), Synthetic(100, template)
    report = look(train, heldout, template, pairs=500)
    assert train.read == list(range(0, 1_000_000, 2000))
    assert report.sampled() == "on 500 of 1,000,000 training pairs and all 100 held-out pairs"
    assert report.sampled() in report.summary()


def test_long_pairs_make_a_smaller_sample(template):
    long = [replace(e, prompt_ids=[1] * 50_000) for e in map(Synthetic(600, template).__getitem__, range(600))]
    report = look(long, [], template, pairs=20_000)
    assert report.sizes["train/looked_at"] == pytest.approx(MOST_WEIGHT / 50_000, rel=0.01)


def test_without_a_bound_every_pair_is_looked_at(template):
    train = Synthetic(300, template)
    assert look(train, [], template, pairs=None).sizes["train/looked_at"] == 300
    assert train.read == list(range(300))


class Clock:
    """CPU time as if reading a pair of 180 tokens cost a millisecond, and nothing else anything."""

    def __init__(self, *sources):
        self.sources = sources

    def process_time(self):
        return 0.001 * sum(len(s.read) * s.tokens / 60 for s in self.sources)


@pytest.mark.parametrize(
    ("seconds", "pairs", "looked_at"),
    # after the first look of 256 of each split, or all there are
    [(1.0, 20_000, 256), (2.0, 20_000, 1050), (4.0, 20_000, 2450), (4.0, 1000, 1000), (0.6, 20_000, 256)],
)
def test_the_sample_is_what_the_time_allows(template, monkeypatch, seconds, pairs, looked_at):
    train, heldout = Synthetic(100_000, template), Synthetic(100_000, template)
    small = Synthetic(100, template)
    monkeypatch.setattr(examine_module, "time", Clock(train, heldout, small))
    report = look(train, heldout if seconds == 0.6 else small, template, seconds=seconds, pairs=pairs)
    assert report.sizes["train/looked_at"] == pytest.approx(looked_at, abs=2)
    assert report.skipped == ()
    assert report.seconds <= seconds
    assert examine_module.time.process_time() == report.seconds  # type: ignore[attr-defined]


@pytest.mark.parametrize("n", [257, 300, 511])
def test_a_few_pairs_more_than_the_first_look_are_looked_at_too(template, monkeypatch, n):
    train = Synthetic(n, template)
    monkeypatch.setattr(examine_module, "time", Clock(train))
    assert look(train, [], template, seconds=2.0).sizes["train/looked_at"] == n


def test_long_texts_do_not_take_more_than_the_time(template, monkeypatch):
    train = Synthetic(300, template, tokens=10_000)
    monkeypatch.setattr(examine_module, "time", Clock(train))
    report = look(train, [], template, seconds=20.0)
    first = FIRST_WEIGHT // 30_000
    assert report.sizes["train/looked_at"] > first, "the first look takes a part of the time alone"
    assert report.seconds <= 20.0
    assert report.skipped == ()


def test_texts_of_which_some_are_much_longer_do_not_either(template, monkeypatch):
    class Uneven(Synthetic):
        """The first of them, and with it one in a few, is a hundred times as long."""

        def __getitem__(self, i):
            example = super().__getitem__(i)
            return replace(example, prompt_ids=example.prompt_ids * 100) if i % 7 == 3 else example

    train = Uneven(2000, template)
    train.lengths[3::7, 0] *= 100

    class Tokens(Clock):
        def process_time(self):
            return sum(train.lengths[i].sum() for i in train.read) / 180_000

    monkeypatch.setattr(examine_module, "time", Tokens())
    report = look(train, [], template, seconds=5.0)
    assert 256 <= report.sizes["train/looked_at"] < 2000
    assert report.seconds <= 5.0


def test_what_no_longer_fits_is_named(template, monkeypatch):
    train = Synthetic(1000, template)
    monkeypatch.setattr(examine_module, "time", Clock(train))
    report = look(train, [], template, seconds=0.1)
    assert report.skipped == tuple(OF_SAMPLE)
    assert {f.check for f in report.findings} == {"few-heldout"}


def test_no_data_at_all_is_no_crash(template):
    assert {f.check for f in look([], [], template).findings} == {"few-heldout"}
    assert look([], Synthetic(60, template), template).numbers["length_bias/longer_chosen"] is not None


def test_a_report_survives_json(template):
    pairs = Synthetic(60, template)
    report = look([pairs[i] for i in [*range(60), 0]], [pairs[1]], template)
    assert report.findings
    assert any(f.rows for f in report.findings)
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.to_json()["worst"] == "error"


@pytest.mark.parametrize(
    ("severities", "fail_on", "failed"),
    [
        (["error"], "error", True),
        (["warning", "info"], "error", False),
        (["warning", "info"], "warning", True),
        (["info"], "warning", False),
        (["error"], "never", False),
        ([], "warning", False),
    ],
)
def test_a_report_fails_from_a_severity_on(severities, fail_on, failed):
    report = Report(tuple(Finding("check", s, "m", "f") for s in severities))
    assert report.failed(fail_on) is failed


def test_findings_stand_the_worst_first(template):
    pairs = Synthetic(60, template)
    report = look([pairs[i] for i in [*range(60), 0]], [pairs[1]], template)
    order = [("error", "warning", "info").index(f.severity) for f in report.findings]
    assert order == sorted(order)
    assert report.worst == "error"


def test_the_first_rows_only_are_named(template):
    sample = Sample.of(Whole.of(Synthetic(200, template), "train"), 200)
    places = sample.places(np.ones(200, bool))
    assert len(places) == 50
    assert places[3] == Place("", 3, "train")
    assert sample.places([7]) == (Place("", 7, "train"),)
