"""benchmarks/against_trl.py on its tiny case: both sides train alike, calls go on, and what is not alike is refused."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Cell = dict[str, Any]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("against_trl")


@pytest.fixture
def report(bench: Any) -> Any:
    return import_module("against_trl_report")


@pytest.fixture
def case(bench: Any) -> Any:
    """Four pairs a step, batches 1, 2 and 4."""
    return replace(bench.TINY_CASE, pairs=8, large=16, batches=(1, 2, 4))


def cell(side: str, seconds: float, *, batch: int = 0, pairs: int = 8, number: int = 1, **more: Any) -> Cell:
    curves = {"losses": [0.69, 0.6], "grad_norms": [2.0, 1.0], "reference_missing": 16 * (side == "dpo_lab_cold")}
    times = {
        "seconds": seconds,
        "reference_seconds": 0.0,
        "training_seconds": seconds,
        "step_seconds": [seconds / 2] * 2,
    }
    place = {"side": side, "batch": batch, "pairs": pairs, "round": number}
    return place | times | curves | {"peak_rss_gib": 2.0} | more


def machine(flops: float, number: int = 1) -> Cell:
    shape = {"body": 100, "head": 10, "layers": 1, "heads": 1, "head_dim": 1}
    return {"side": "machine", "batch": 0, "pairs": 8, "round": number, "shape": shape, "matmul_flops": flops}


# Whole calls

CALL = ("--cases", "tiny", "--rounds", "1", "--pairs", "8", "--large", "0", "--sides", "trl_best,dpo_lab_cold")


@pytest.mark.slow
@pytest.mark.reference
def test_both_sides_train_alike_a_second_call_measures_nothing_and_another_loss_fails_it(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    result = tmp_path / "result.json"
    monkeypatch.setattr(bench, "source_digests", lambda: {"trl": "1", "dpo_lab": "2"})  # whoever edits meanwhile
    monkeypatch.setattr(sys, "argv", ["against_trl.py", *CALL, "--result", str(result)])
    bench.main()
    found = json.loads(result.read_text())["cases"]["tiny"]
    cells = {cell["side"]: cell for cell in found["cells"]}
    assert set(cells) == {"machine", "trl_best", "dpo_lab_cold"}
    trl, cold = cells["trl_best"], cells["dpo_lab_cold"]
    assert len(trl["losses"]) == 2
    assert abs(trl["losses"][1] - 0.6931) > 1e-3  # the first step has changed something
    assert cold["losses"] == pytest.approx(trl["losses"], rel=1e-4)
    assert cold["grad_norms"] == pytest.approx(trl["grad_norms"], rel=1e-3)
    assert trl["settings"]["accumulation"] == 2
    assert cold["reference_missing"] == 16
    summary = found["summaries"]["8"]
    assert summary["ratios"]["cold"] == pytest.approx(trl["seconds"] / cold["seconds"])
    assert summary["tokens"] == {"prompt_once": 8 * (48 + 32 + 32), "as_two_sequences": 8 * 2 * (48 + 32)}
    assert "| tiny | 8 |" in capsys.readouterr().out

    bench.main()
    assert json.loads(result.read_text())["cases"]["tiny"]["cells"] == found["cells"]
    assert "tiny: 3 cells are reused, 0 are" in capsys.readouterr().out

    content = json.loads(result.read_text())
    next(c for c in content["cases"]["tiny"]["cells"] if c["side"] == "dpo_lab_cold")["losses"][-1] *= 1.05
    result.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"FAILED:\ntiny, dpo_lab_cold, 8 pairs, round 1: last loss"):
        bench.main()


@pytest.mark.slow
def test_another_trial_finds_the_reference_of_a_trial_of_another_rank(bench: Any, tmp_path: Path) -> None:
    case = replace(bench.TINY_CASE, pairs=4)
    sources = bench.Sources(tmp_path, tmp_path)
    found = bench.measure(bench.Wanted("dpo_lab_cached", 4, 1, 0), case, sources, tmp_path)
    assert found["reference_missing"] == 0
    assert len(found["losses"]) == 1
    assert found["grad_norms"][0] > 0


def test_code_that_changes_while_a_cell_is_measured_ends_the_call(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter(["before", "after"])
    monkeypatch.setattr(bench, "source_digests", lambda: dict.fromkeys(("trl", "dpo_lab"), next(codes)))
    monkeypatch.setattr(bench, "measure", lambda *_: machine(1.0))
    monkeypatch.setattr(sys, "argv", ["against_trl.py", *CALL, "--result", str(tmp_path / "result.json")])
    with pytest.raises(SystemExit, match="The code changed while tiny, machine"):
        bench.main()
    assert not (tmp_path / "result.json").exists()


def test_a_cell_of_other_code_is_not_reused(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = bench.Sources(tmp_path, tmp_path)
    results = bench.Results(tmp_path / "result.json", fresh=False)
    cells = results.begin(bench.TINY_CASE, sources)
    for side in ("trl_best", "dpo_lab_cold"):
        cells.append(cell(side, 1.0) | {"key": results.key(bench.TINY_CASE, sources, side)})
    results.write()
    again = bench.Results(tmp_path / "result.json", fresh=False)
    assert again.begin(bench.TINY_CASE, sources) == cells
    again.code["dpo_lab"] = "other"
    assert [c["side"] for c in again.begin(bench.TINY_CASE, sources)] == ["trl_best"]
    assert "1 cells are reused, 1 are of other code" in capsys.readouterr().out
    assert again.begin(replace(bench.TINY_CASE, lr=1.0), sources) == []
    assert bench.Results(tmp_path / "result.json", fresh=True).begin(bench.TINY_CASE, sources) == []


# Which cells


def test_the_two_best_batches_of_round_one_run_on_and_the_best_one_in_the_large_round(bench: Any, case: Any) -> None:
    cells: list[Cell] = []
    ran: list[tuple[int, int, str, int]] = []
    for wanted in bench.planned(case, cells, list(bench.SIDES), 3):
        ran.append((wanted.pairs, wanted.round, wanted.side, wanted.batch))
        if wanted.side == "trl_best":  # batch 4 looks quickest at first, then it is 2
            seconds = {1: 9.0, 2: 5.0, 4: 4.0 if wanted.round == 1 else 7.0}[wanted.batch]
            cells.append(cell("trl_best", seconds, batch=wanted.batch, number=wanted.round, pairs=wanted.pairs))
    batches = {
        (pairs, n): [b for p, r, side, b in ran if (p, r, side) == (pairs, n, "trl_best")] for pairs, n, *_ in ran
    }
    assert batches == {(8, 1): [1, 2, 4], (8, 2): [2, 4], (8, 3): [2, 4], (16, 1): [2]}
    orders = [[side for _, r, side, _ in ran[:17] if r == n and side != "machine"] for n in (1, 2)]
    assert orders[0][0] == orders[1][-1] == "dpo_lab_cold"
    assert {b for *_, side, b in ran if side == "trl_defaults"} == {4}  # its 8, or the whole step


def test_pairs_that_make_no_whole_step_are_refused(case: Any) -> None:
    with pytest.raises(SystemExit, match="--pairs 6 is no multiple of 4"):
        case.counts(6, None)


# What is made of them


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"losses": [0.69, 0.62]}, "last loss"),
        ({"losses": [0.72, 0.6]}, "first loss"),
        ({"losses": [0.69, float("nan")]}, "last loss"),
        ({"grad_norms": [2.2, 1.0]}, "first grad-norm"),
        ({"grad_norms": [2.0, 0.0]}, "grad-norm is not above 0"),
        ({"losses": [0.69]}, "1 losses and 2 grad-norms, not 2"),
        ({"reference_missing": 0}, "0 answers were not in the reference cache"),
    ],
)
def test_a_side_that_trained_otherwise_is_named_and_counts_for_nothing(
    change: Cell, problem: str, report: Any, case: Any
) -> None:
    cells = [cell("trl_best", 4.0, batch=2), cell("trl_best", 4.0, batch=4), cell("dpo_lab_cold", 1.0, **change)]
    report.check(cells, case)
    assert [c["problems"] for c in cells[:2]] == [[], []]
    assert any(problem in said for said in cells[2]["problems"])
    assert report.summarise(cells, case, 8, [[4, 2, 2]] * 8)["ratios"]["cold"] is None


def test_ratios_are_of_the_same_round_and_against_the_better_of_trls_sides(report: Any, case: Any) -> None:
    cells = [
        *(cell("trl_defaults", s, batch=4, number=n) for n, s in enumerate((12.0, 12.0, 12.0), 1)),
        *(cell("trl_best", s, batch=2, number=n, peak_rss_gib=4.0) for n, s in enumerate((8.0, 10.0, 20.0), 1)),
        cell("trl_best", 1e3, batch=1),
        *(cell("dpo_lab_cold", s, number=n, peak_rss_gib=1.0) for n, s in enumerate((4.0, 4.0, 5.0), 1)),
        cell("dpo_lab_cached", 2.0),
        machine(1e4),
    ]
    report.check(cells, case)
    found = report.summarise(cells, case, 8, [[4, 2, 2]] * 8)
    assert (found["trl_best_batch"], found["ratios_are_against"]) == (2, "trl_best")
    ratios = found["ratios"]
    assert (ratios["cold"], ratios["cached"], ratios["memory"]) == (2.5, 4.0, 0.25)
    step = 4 * (4 * (100 * 8 + 10 * 4) + 3 * 4 * (10 + 2 * (4 * 2 + 3)))  # of 4 pairs, by the formula
    assert found["medians"]["dpo_lab_cold"]["training_flops"] == step / 2.0
    assert ratios["matmul_share"] == pytest.approx(
        1.5 * step / 2.0 / 1e4
    )  # between the cold trial's and the cached one's
    targets = report.met(case, found)
    assert {name: target["reached"] for name, target in targets.items()} == {
        "cold": True, "cached": True, "matmul_share": ratios["matmul_share"] >= 0.6, "memory": True,
    }  # fmt: skip
    entry = {"settings": {"device": "cpu"}, "summaries": {"8": found}}
    assert "| tiny | 8 | 12 s | 10 s (2) | 4 s | 2 s | 2.50x | 4.00x |" in report.table({"tiny": entry})
