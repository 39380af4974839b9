"""Scores without training: as training records them, of one base, compared, and told where they cannot be had."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doors import door_of, of_lab, quantised_run, refused, run_words, whole_run
from runs import write_pairs
from tiny import write_tiny_model

from dpo_lab.data.prepare import prompt_share
from dpo_lab.inference.evals.compare import PairValues, compare
from dpo_lab.runtime.errors import ConfigError, DataError, ModelError, OutputError
from dpo_lab.runtime.files import read_json, read_jsonl

QUICK = "evaluate.resamples=200"


def run_evaluation(lab, *words):
    """The metrics that the job returns, and the folder it wrote."""
    from dpo_lab.inference.evaluate import evaluate

    config, tree, given = door_of("evaluate", lab, QUICK, *words)
    metrics = evaluate(config, tree, Path(), given=given)
    output = next((Path(w.partition("=")[2]) for w in words if w.startswith("output=")), None)
    folder = output or max((lab.output / "evaluations").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    return metrics, folder


def recorded(run):
    """What training found last: metrics without val/, and the rows of the held-out pairs."""
    last = [row for row in read_jsonl(run / "metrics.jsonl") if "val/loss" in row][-1]
    rows = [{k: v for k, v in row.items() if k != "step"} for row in read_jsonl(run / "eval_pairs.jsonl")]
    return {k.removeprefix("val/"): v for k, v in last.items() if k.startswith("val/")}, rows


def same_as_recorded(run, folder, name, *, tolerance=1e-5):
    wanted, rows = recorded(run)
    found, ours = read_json(folder / name / "metrics.json"), read_jsonl(folder / name / "eval_pairs.jsonl")
    assert wanted
    assert len(ours) == len(rows) > 4
    assert {k: found[k] for k in wanted} == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    for row, own in zip(rows, ours, strict=True):
        assert own["prompt"] == row.pop("prompt")
        assert {k: own[k] for k in row} == pytest.approx(row, rel=tolerance, abs=tolerance)
    return found, ours


@pytest.fixture(scope="module")
def scored(lab):
    """Both runs on their own held-out pairs."""
    metrics, folder = run_evaluation(lab, run_words(*lab.runs))
    return metrics, folder, read_json(folder / "scores.json")


def test_the_scores_of_a_run_on_its_own_held_out_pairs_are_those_it_recorded(lab, scored):
    metrics, folder, content = scored
    for run, result in zip(lab.runs, content["results"], strict=True):
        found, rows = same_as_recorded(run, folder, run.name)
        assert "kl" in found
        assert result["metrics"] == found
        assert metrics[f"{run.name}/loss"] == found["loss"]
        assert result["accuracy"]["value"] == pytest.approx(found["rewards/accuracies"], abs=1e-6)
        assert result["margin"]["value"] == pytest.approx(found["logratios/margins"], rel=1e-5)
        assert np.mean([row["correct"] for row in rows]) == pytest.approx(found["rewards/accuracies"], abs=1e-6)
    first, second = (recorded(run)[0]["logratios/margins"] for run in lab.runs)
    assert abs(first - second) > 0.1, "two runs that are alike would hide a mistake"


def test_the_reference_has_no_accuracy_and_no_margin(scored):
    reference = scored[2]["reference"]
    assert "rewards/accuracies" not in reference["metrics"]
    assert reference["metrics"]["logratios/margins"] == 0.0
    assert reference["what"] == "the base model"


def test_a_run_that_was_trained_as_a_whole_and_one_on_four_bits_score_as_they_recorded(lab):
    for run, tolerance in ((whole_run(lab), 1e-5), (quantised_run(lab), 1e-4)):
        _, folder = run_evaluation(lab, run_words(run))
        wanted, _ = recorded(run)
        if "kl" not in wanted:  # training had no reference in memory any more, evaluation has
            assert read_json(folder / run.name / "metrics.json")["kl"] > 0
        same_as_recorded(run, folder, run.name, tolerance=tolerance)


def test_a_loss_without_reference_keeps_its_own_rewards_and_gets_log_ratios(lab):
    run = lab.train("loss=simpo").path
    assert "logratios/margins" not in recorded(run)[0]
    _, folder = run_evaluation(lab, run_words(lab.runs[0], run))
    same_as_recorded(lab.runs[0], folder, lab.runs[0].name)
    found, rows = same_as_recorded(run, folder, run.name)
    margins = [
        (r["chosen_logps"] - r["ref_chosen_logps"]) - (r["rejected_logps"] - r["ref_rejected_logps"]) for r in rows
    ]
    assert found["logratios/margins"] == pytest.approx(np.mean(margins), rel=1e-4)
    assert found["kl"] > 0


def test_a_run_that_went_on_from_an_adapter_is_measured_against_it(lab):
    run = lab.train(f"lora.adapter={lab.runs[0]}", "lora.r=8").path
    assert recorded(run)[0]["kl"] > 0
    _, folder = run_evaluation(lab, run_words(run))
    same_as_recorded(run, folder, run.name)
    assert "the adapter of run" in read_json(folder / "scores.json")["reference"]["what"]


def test_trained_embeddings_that_are_the_head_too_score_together_as_alone(lab):
    """The first adapter alone gets its head from PEFT; the reference's adapter comes before all results."""
    saved = "lora.modules_to_save=[embed_tokens]"
    runs = [lab.train(saved, f"optim.lr={rate}").path for rate in ("1e-2", "3e-2")]
    alone = [run_evaluation(lab, run_words(run))[0] for run in runs]
    for order in (runs, runs[::-1]):
        together, folder = run_evaluation(lab, run_words(*order))
        assert together == pytest.approx(alone[0] | alone[1], rel=1e-5, abs=1e-5)
        for run in order:
            same_as_recorded(run, folder, run.name)
    margins = [metrics[f"{run.name}/logratios/margins"] for run, metrics in zip(runs, alone, strict=True)]
    assert abs(margins[0] - margins[1]) > 0.1
    more = lab.train(saved, f"lora.adapter={runs[0]}", "optim.lr=2e-2").path
    _, folder = run_evaluation(lab, run_words(more))
    same_as_recorded(more, folder, more.name)


def test_a_loss_on_the_command_line_is_for_all_results(lab, scored):
    _, folder = run_evaluation(lab, run_words(*lab.runs), "loss=ipo")
    for run in lab.runs:
        found, before = (read_json(place / run.name / "metrics.json") for place in (folder, scored[1]))
        rows = read_jsonl(folder / run.name / "eval_pairs.jsonl")
        assert found["logratios/margins"] == pytest.approx(before["logratios/margins"], rel=1e-5)
        assert found["loss"] != pytest.approx(before["loss"], rel=1e-2)
        assert found["loss"] == pytest.approx(np.mean([row["loss"] for row in rows]), rel=1e-5)


class Counts:
    """Loadings of a model, and forward passes of the reference and of results."""

    def __init__(self, monkeypatch):
        import dpo_lab.inference.stage as stage
        from dpo_lab.preference.forward import Forward

        self.loaded = self.reference = self.results = 0
        load, hidden = stage.load_model, Forward._hidden

        def loading(*args, **kwargs):
            self.loaded += 1
            return load(*args, **kwargs)

        def passing(forward, model, layout):
            off = [m for m in model.modules() if getattr(m, "disable_adapters", False) is True]
            self.reference += bool(off)
            self.results += not off
            return hidden(forward, model, layout)

        monkeypatch.setattr(stage, "load_model", loading)
        monkeypatch.setattr(Forward, "_hidden", passing)


@pytest.fixture
def counts(monkeypatch):
    return Counts(monkeypatch)


def test_two_results_take_one_base_and_with_a_warm_cache_no_pass_of_the_reference(lab, scored, counts, tmp_path):
    words = (run_words(*lab.runs), "trainer.kl_pairs=0", f"output={tmp_path / 'warm'}")
    run_evaluation(lab, *words)
    assert (counts.loaded, counts.reference) == (1, 0)
    assert counts.results >= 2
    _, folder = run_evaluation(lab, *words[:2], f"output={tmp_path / 'cold'}", f"cache_dir={tmp_path / 'cache'}")
    assert counts.loaded == 2
    assert counts.reference > 0, "the counter sees the reference"
    warm, cold = (read_json(place / "scores.json") for place in (tmp_path / "warm", folder))
    for one, other in zip(warm["results"], cold["results"], strict=True):
        assert "kl" not in one["metrics"]
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-5)


def test_the_reference_passes_once_for_the_kl_of_all_results(lab, scored, counts, tmp_path):
    run_evaluation(lab, run_words(lab.runs[0]), f"output={tmp_path / 'one'}")
    of_one, counts.reference = counts.reference, 0
    run_evaluation(lab, run_words(*lab.runs), f"output={tmp_path / 'two'}")
    assert counts.reference == of_one > 0


def test_the_same_call_is_done_and_loads_nothing(lab, scored, counts, capsys):
    metrics, _ = run_evaluation(lab, run_words(*lab.runs))
    assert counts.loaded == 0
    assert metrics == scored[0]
    printed = capsys.readouterr().out
    assert "is done" in printed
    assert scored[1].name in printed, "the folder was found again"


def test_an_interrupted_call_scores_what_is_left(lab, scored, counts, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(scored[1], folder)
    first, second = (run.name for run in lab.runs)
    note = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(note | {"done": False}))
    (folder / second / "metrics.json").unlink()
    marked = read_json(folder / first / "metrics.json") | {"loss": 123.0}
    (folder / first / "metrics.json").write_text(json.dumps(marked))
    metrics, _ = run_evaluation(lab, run_words(*lab.runs), f"output={folder}")
    assert metrics[f"{first}/loss"] == 123.0, "taken as it lay there"
    assert metrics[f"{second}/loss"] == pytest.approx(scored[0][f"{second}/loss"])


def test_a_folder_with_something_else_is_not_overwritten(lab, scored, tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "notes.txt").write_text("mine")
    for words in ((), ("overwrite=true",)):
        with pytest.raises(OutputError, match=r"holds other files"):
            run_evaluation(lab, run_words(lab.runs[0]), f"output={tmp_path / 'held'}", *words)
    assert [p.name for p in (tmp_path / "held").iterdir()] == ["notes.txt"]
    with pytest.raises(OutputError, match=r"evaluation of something else.*overwrite=true"):
        run_evaluation(lab, run_words(lab.runs[0]), f"output={scored[1]}")


def test_a_run_is_never_overwritten_by_its_own_evaluation(lab):
    run = lab.runs[0]
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    for output in (run.parent, run, run / "evaluation"):
        for _ in range(2):
            with pytest.raises(ConfigError, match="lie in one another"):
                run_evaluation(lab, run_words(run), f"output={output}", "overwrite=true")
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_an_evaluation_is_repeated_in_its_place(lab, scored, tmp_path):
    folder = Path(shutil.copytree(scored[1], tmp_path / "again"))
    (folder / lab.runs[0].name / "metrics.json").write_text('{"loss": 123.0}')
    metrics, _ = run_evaluation(lab, run_words(*lab.runs), f"output={folder}", "overwrite=true")
    assert metrics == pytest.approx(scored[0], rel=1e-5, abs=1e-6), "and nothing of it is taken as it lay there"


def test_an_adapter_of_elsewhere_scores_as_the_run_it_is_from(lab, scored, tmp_path):
    shutil.copytree(lab.runs[0] / "final", tmp_path / "plain")
    words = ("model=hf", f"model.path={lab.model}", "data=file", f"data.path={lab.data}", "data.eval_fraction=0.3")
    _, folder = run_evaluation(lab, f"adapter={tmp_path / 'plain'}", *words, "trainer.precision=32")
    same_as_recorded(lab.runs[0], folder, "plain")


def test_other_pairs_all_of_them(lab, scored, tmp_path):
    pairs = write_pairs(tmp_path / "other.jsonl", n=9)
    _, folder = run_evaluation(
        lab, run_words(lab.runs[0]), "data=file", f"data.path={pairs}", "evaluate.split=all", "data.eval_fraction=0.5"
    )
    content = read_json(folder / "scores.json")
    assert (content["pairs"], content["prompts"], content["split"]) == (9, 9, "all")
    assert folder != scored[1]
    with pytest.raises(DataError, match=r"evaluate\.split=heldout: there is no pair.*evaluate\.split=all"):
        run_evaluation(lab, run_words(lab.runs[0]), "data=file", f"data.path={pairs}", "data.eval_fraction=0")


def test_an_adapter_of_another_base_names_both(lab, tmp_path, tiny_wide):
    with pytest.raises(ModelError) as told:
        run_evaluation(lab, run_words(lab.runs[0]), "model=hf", f"model.path={tiny_wide}")
    assert str(lab.runs[0]) in str(told.value)
    assert str(tiny_wide) in str(told.value)
    shutil.copytree(lab.runs[0] / "final", tmp_path / "plain")
    with pytest.raises(ModelError) as told:
        run_evaluation(lab, f"adapter={tmp_path / 'plain'}", "model=hf", f"model.path={tiny_wide}")
    assert str(tmp_path / "plain") in str(told.value)
    assert str(lab.model) in str(told.value)
    assert str(tiny_wide) in str(told.value)
    with pytest.raises(ConfigError, match="are of another base"):
        run_evaluation(lab, run_words(lab.runs[0], quantised_run(lab)))


def test_an_adapter_of_another_base_of_the_same_shape_needs_force(lab, tmp_path):
    other = write_tiny_model(tmp_path / "other", initializer_range=0.1)
    adapter = Path(shutil.copytree(lab.runs[0] / "final", tmp_path / "plain"))
    words = (f"adapter={adapter}", "model=hf", f"model.path={other}", "data=file", f"data.path={lab.data}")
    with pytest.raises(ModelError, match="force=true") as told:
        run_evaluation(lab, *words)
    assert str(lab.model) in str(told.value)
    assert str(other) in str(told.value)
    metrics, _ = run_evaluation(lab, *words, "force=true", "data.eval_fraction=0.3")
    assert metrics


def test_a_whole_model_of_another_start_is_refused_beside_others(lab, tmp_path):
    run = Path(shutil.copytree(whole_run(lab), tmp_path / "elsewhere"))
    facts = read_json(run / "facts.json")
    facts["model"] |= {"identity": "0" * 16}
    (run / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="are of another start"):
        run_evaluation(lab, run_words(whole_run(lab), run))
    facts["model"] |= {"base": "0" * 16}
    (run / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="was trained on"):
        run_evaluation(lab, run_words(run))


def test_a_whole_model_and_an_adapter_of_one_start_score_together_as_recorded(lab):
    runs = [whole_run(lab), lab.runs[0]]
    _, folder = run_evaluation(lab, run_words(*runs), "trainer.kl_pairs=0")
    for run in runs:
        wanted, found = recorded(run)[0], read_json(folder / run.name / "metrics.json")
        assert found["logratios/margins"] == pytest.approx(wanted["logratios/margins"], rel=1e-5)


# What a result has seen


def prompts_of(lab, low, high):
    """The prompts that a fraction of `high` holds out and one of `low` trains on."""
    rows = [json.loads(line) for line in lab.data.read_text().splitlines()]
    shares = {row["prompt"]: prompt_share([{"role": "user", "content": row["prompt"]}]) for row in rows}
    return {prompt for prompt, share in shares.items() if low <= share < high}


def test_pairs_that_another_result_was_trained_on_are_counted_and_told(lab, scored, capsys):
    assert scored[2]["notes"] == []
    assert [result["trained_on"] for result in scored[2]["results"]] == [0, 0]
    other = lab.train("data.eval_fraction=0.1").path
    seen = len(prompts_of(lab, 0.1, 0.3))
    assert seen > 0
    _, folder = run_evaluation(lab, run_words(lab.runs[0], other), "trainer.kl_pairs=0")
    content = read_json(folder / "scores.json")
    assert [result["trained_on"] for result in content["results"]] == [0, seen]
    [note] = content["notes"]
    assert note.startswith(f"{other.name} was trained on the prompts of {seen} of these {content['pairs']} pairs: ")
    assert note.split()[0] in capsys.readouterr().out
    _, folder = run_evaluation(lab, run_words(other, lab.runs[0]), "trainer.kl_pairs=0")
    assert read_json(folder / "scores.json")["notes"] == [], "what 0.1 holds out 0.3 holds out too"


def test_a_higher_fraction_on_the_command_line_does_not_hide_what_was_trained_on(lab):
    _, folder = run_evaluation(lab, run_words(lab.runs[0]), "data.eval_fraction=0.6", "trainer.kl_pairs=0")
    content = read_json(folder / "scores.json")
    assert content["results"][0]["trained_on"] == len(prompts_of(lab, 0.3, 0.6)) > 0
    assert len(content["notes"]) == 1


def test_pairs_beyond_a_bound_were_not_trained_on(lab):
    run = lab.train("data.max_pairs=4").path
    words = ("evaluate.split=all", "data.max_pairs=null", "trainer.kl_pairs=0")
    _, folder = run_evaluation(lab, run_words(run), *words)
    assert read_json(folder / "scores.json")["results"][0]["trained_on"] == 4


def test_data_that_is_gone_or_has_changed_is_told(lab, tmp_path):
    pairs = write_pairs(tmp_path / "mine.jsonl", n=20)
    run = lab.train(f"data.path={pairs}").path
    words = (run_words(run), "data=file", f"data.path={lab.data}", "evaluate.split=all", "trainer.kl_pairs=0")
    rows = pairs.read_text().splitlines(keepends=True)
    pairs.write_text("".join(rows[:-2]))
    _, folder = run_evaluation(lab, *words, f"output={tmp_path / 'changed'}")
    [note] = read_json(folder / "scores.json")["notes"]
    assert "by its data as they are now" in note
    pairs.unlink()
    _, folder = run_evaluation(lab, *words, f"output={tmp_path / 'gone'}")
    content = read_json(folder / "scores.json")
    assert content["results"][0]["trained_on"] is None
    assert "Nobody knows" in content["notes"][0]


def test_results_of_two_references_are_told_apart(lab, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(lab.runs[1], other)
    facts = read_json(other / "facts.json")
    facts["config"]["reference"] |= {"path": str(lab.runs[0]), "mode": "cached"}
    (other / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"another reference.*reference\.path"):
        run_evaluation(lab, run_words(lab.runs[0], other))
    _, folder = run_evaluation(lab, run_words(lab.runs[0], other), "reference.path=null")
    same_as_recorded(lab.runs[1], folder, "run")


def test_a_reference_of_its_own_is_another_model(lab, tmp_path):
    """Measured against the first run, the first run is where it starts."""
    _, folder = run_evaluation(lab, run_words(*lab.runs), f"reference.path={lab.runs[0]}", "trainer.kl_pairs=0")
    first, second = (read_json(folder / run.name / "metrics.json") for run in lab.runs)
    assert first["logratios/margins"] == pytest.approx(0, abs=1e-3)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(second["logratios/margins"]) > 0.1


# The comparison


def values(correct, margins=None):
    correct = np.asarray(correct, dtype=np.float64)
    return PairValues(correct, correct if margins is None else np.asarray(margins, dtype=np.float64))


def test_intervals_are_those_of_the_mean(scored):
    rng = np.random.default_rng(0)
    margins = rng.normal(3.0, 2.0, size=400)
    found = compare(
        {"a": values(margins > 3, margins)}, [str(i) for i in range(400)], resamples=4000, seed=0, reference="r"
    )
    error = margins.std() / 20
    estimate = found.margin["a"]
    assert estimate.value == pytest.approx(margins.mean())
    assert estimate.low == pytest.approx(margins.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(margins.mean() + 1.96 * error, abs=0.15 * error)
    [against] = found.comparisons
    assert (against.baseline, against.accuracy, against.margin) == ("r", None, estimate)


def test_repeats_of_a_prompt_do_not_make_it_surer():
    rng = np.random.default_rng(1)
    margins = rng.normal(size=30)
    once = compare(
        {"a": values(margins > 0, margins)}, [str(i) for i in range(30)], resamples=3000, seed=3, reference="r"
    )
    four = compare(
        {"a": values(np.repeat(margins > 0, 4), np.repeat(margins, 4))},
        [str(i // 4) for i in range(120)],
        resamples=3000,
        seed=3,
        reference="r",
    )
    width = [e.high - e.low for e in (once.margin["a"], four.margin["a"])]
    assert width[0] == pytest.approx(width[1], rel=0.1)
    alone = compare({"a": values([1, 0])}, ["x", "x"], resamples=10, seed=0, reference="r")
    assert (alone.accuracy["a"].value, alone.accuracy["a"].low) == (0.5, None)


def test_differences_are_paired():
    """What is hard for both falls out: a small constant lead is clear in spite of a large spread."""
    rng = np.random.default_rng(2)
    base = rng.normal(0, 50, size=80)
    results = {"a": values(base > 0, base), "b": values(base > 0, base + 1 + rng.normal(0, 0.1, size=80))}
    prompts = [str(i) for i in range(80)]
    found = compare(results, prompts, resamples=500, seed=0, reference="r")
    own = next(c for c in found.comparisons if c.baseline == "a")
    assert own.margin.low > 0.9
    assert own.margin.high < 1.1
    assert (own.accuracy.value, own.accuracy.low, own.accuracy.high) == (0, 0, 0)
    assert (own.gained, own.lost) == (0, 0)
    assert not found.margin["a"].clear
    assert compare(results, prompts, resamples=500, seed=0, reference="r") == found
    assert compare(results, prompts, resamples=500, seed=1, reference="r") != found
    turned = replace(results["b"], correct=1 - results["b"].correct)
    own = compare({"a": results["a"], "b": turned}, prompts, resamples=10, seed=0, reference="r").comparisons[-1]
    assert (own.gained, own.lost) == (int((base <= 0).sum()), int((base > 0).sum()))


def test_length_statistics_by_hand():
    from dpo_lab.inference.evals.lengths import length_bias
    from dpo_lab.inference.evals.standing import Standing

    def row(chosen, rejected, margin):
        sums = {"chosen_logps": margin, "rejected_logps": 0.0, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
        return sums | {"chosen_tokens": chosen, "rejected_tokens": rejected, "correct": margin > 0}

    standing = Standing("a", "", {}, [row(9, 3, 6.0), row(8, 4, 4.0), row(2, 7, -5.0), row(5, 5, 0.0)])
    assert length_bias(standing) == pytest.approx(
        {"accuracy_longer_chosen": 1.0, "accuracy_shorter_chosen": 0.0, "correlation": 1.0}
    )


# What the door refuses


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_neither_run_nor_adapter(lab, name):
    assert any("run=RUN" in problem and "adapter=FOLDER" in problem for problem in refused(name, *of_lab(lab)))


@pytest.mark.parametrize("name", ["evaluate", "chat", "serve"])
def test_what_is_fine_is_not_refused(lab, name):
    assert refused(name, *of_lab(lab, run_words(*lab.runs))) == []
    assert refused(name, *of_lab(lab, run_words(lab.runs[0] / "final"), f"adapter={lab.runs[1]}")) == []


def test_doors_without_results_and_training_are_left_alone(lab):
    assert refused("chat", *of_lab(lab)) == []
    assert refused("serve", *of_lab(lab)) == []
    assert refused("train", *of_lab(lab, "logger=none")) == []
    assert refused("train", *of_lab(lab, "logger=none", "generation.max_new_tokens=5", "prompts=tutorial")) == []


@pytest.fixture(scope="module")
def folders(lab, tmp_path_factory):
    """Folders that are not what they should be, by name."""
    root = tmp_path_factory.mktemp("folders")
    whole = whole_run(lab)
    (root / "unfinished").mkdir()
    (root / "unfinished" / "status.json").write_text('{"status": "stopped"}')
    for sweep, trials in (("sweep", ("t1", "t2")), ("begun", ())):
        (root / sweep).mkdir()
        (root / sweep / "sweep.yaml").write_text("axes: {}\n")
        for trial in trials:
            (root / sweep / trial / "final").mkdir(parents=True)
    shutil.copytree(root / "sweep", root / "won")
    (root / "won" / "winner").symlink_to("t1")
    (root / "empty").mkdir()
    (root / "file").write_text("x")
    (root / "question.txt").write_text("Why?")
    shutil.copytree(lab.runs[0] / "final", root / "plain")
    shutil.copytree(lab.runs[0], root / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    (root / "bare" / "facts.json").unlink()
    for name, settings in (
        ("ia3", {"peft_type": "IA3"}),
        ("alora", {"peft_type": "LORA", "alora_invocation_tokens": [1]}),
        ("damaged", []),
    ):
        (root / name).mkdir()
        (root / name / "adapter_config.json").write_text(json.dumps(settings))
    places = {p.name: p for p in root.iterdir()}
    return places | {"whole": whole, "one": lab.runs[0], "two": lab.runs[1], "absent": root / "absent"}


REFUSED = {
    ("evaluate", "run={unfinished}"): "is not finished (status: stopped",
    ("evaluate", "run={absent}"): "there is no folder",
    ("evaluate", "run={empty}"): "is no run of this lab",
    ("evaluate", "run={file}"): "is a file",
    ("evaluate", "run={sweep}"): "is a sweep, not a run. Give one of its trials: run={sweep}/t1 or another.",
    ("evaluate", "run={won}"): "for example its winner: run={won}/winner",
    ("evaluate", "run={begun}"): "none of its trials is finished",
    ("evaluate", "run={plain}"): "Use adapter={plain}",
    ("evaluate", "run={bare}"): "facts.json is missing or damaged",
    ("evaluate", "run=[{one},{one}/final]"): "is given twice",
    ("evaluate", "adapter={empty}"): "adapter={empty}:",
    ("evaluate", "adapter={whole}"): "Use run={whole}",
    ("evaluate", "adapter={ia3}"): "is of the kind IA3. Supported are adapters of the kind LORA",
    ("chat", "adapter={ia3}"): "is of the kind IA3. Supported are adapters of the kind LORA",
    ("serve", "adapter={alora}"): "is activated LoRA (alora_invocation_tokens), which is not supported",
    ("export", "adapter={damaged} output={absent}"): "has a damaged adapter_config.json",
    ("evaluate", "run={one} evaluate.task=duel harness=[arc_easy]"): "are two evaluations",
    ("evaluate", "run={one} evaluate.task=harness"): "needs its tasks",
    ("evaluate", "run={one} harness=[]"): "names no task",
    (
        "evaluate",
        "run={one} evaluate.task=score harness=[arc_easy]",
    ): "evaluate.task=score has no effect beside harness",
    (
        "evaluate",
        "run={one} judge.base_url=http://localhost:1/v1",
    ): "judge.base_url=http://localhost:1/v1 has no effect",
    ("evaluate", "run={one} evaluate.task=duel judge.base_url=localhost"): "http:// or https://",
    ("evaluate", "run={one} evaluate.task=duel judge.timeout=3"): "judge.timeout has no effect without judge.base_url",
    ("evaluate", "run={one} evaluate.max_prompts=3"): "evaluate.max_prompts=3 has no effect",
    ("evaluate", "run={one} evaluate.batch_size=3"): "evaluate.batch_size=3 has no effect",
    (
        "evaluate",
        "run={one} generation.temperature=0.5",
    ): "generation.temperature=0.5 has no effect on evaluate.task=score",
    ("evaluate", "run={one} generation=sampled"): "of the generation= that was chosen, has no effect",
    ("evaluate", "run={one} optim.lr=1e-3"): "optim.lr has no effect on evaluate: nothing is trained",
    ("evaluate", "run={one} output={file}"): "output={file}:",
    ("chat", "run={one} prompt=a prompt_file={question}"): "two questions",
    ("chat", "run={one} prompt_file={absent}"): "prompt_file={absent}: there is no file",
    ("chat", "run={one} chat.load={empty}"): "chat.load={empty}: is a folder",
    ("chat", "run={one} 'prompt=\"  \"'"): "nothing but spaces",
    ("export", "run={one}"): "export needs output=FOLDER",
    ("export", "run=[{one},{two}] output={absent}"): "An export is of one result, but 2 are given",
    ("export", "run={one} output={sweep}"): "is not empty, and is not overwritten",
    ("export", "run={one} output={one}/final/x"): "lies in the result itself",
    ("export", "run={whole} output={absent} format=adapter"): "was trained as a whole and has no adapter",
    ("export", "run={one} output={absent} format=adapter export.dtype=float32"): "export.dtype=float32 has no effect",
    (
        "export",
        "run={one} output={absent} export.gguf_type=q8_0",
    ): "export.gguf_type=q8_0 has no effect with format=merged",
    ("export", "run={one} output={absent} export.shard_size=many"): "is no size",
    ("export", "run={one} output={absent} export.push_to_hub=name"): "is no repository",
    ("export", "run={one} output={absent} generation.top_p=0.5"): "generation.top_p=0.5 has no effect on export",
    ("serve", "run={one} serve.host=0.0.0.0"): "environment variable DPO_LAB_API_KEY",
}


@pytest.mark.parametrize(("name", "words"), REFUSED, ids=lambda value: value)
def test_what_cannot_be_is_said_before_anything_loads(lab, folders, name, words, monkeypatch):
    import shlex

    monkeypatch.delenv("DPO_LAB_API_KEY", raising=False)
    places = {key.removesuffix(".txt"): str(path) for key, path in folders.items()}
    problems = refused(name, *of_lab(lab, *shlex.split(words.format(**places))))
    wanted = REFUSED[name, words].format(**places)
    assert any(wanted in problem for problem in problems), problems
    assert len(problems) == 1, problems


def test_a_key_in_the_environment_opens_other_addresses(lab, monkeypatch):
    monkeypatch.setenv("DPO_LAB_API_KEY", "secret")
    assert refused("serve", *of_lab(lab, run_words(lab.runs[0]), "serve.host=0.0.0.0")) == []
