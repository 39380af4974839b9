"""lm-evaluation-harness on tasks of one's own: the numbers are those of the model that is asked."""

import json
import math
from pathlib import Path

import pytest
import torch
from doors import door_of, of_lab, run_words

from dpo_lab.config.brought import REFERENCE, bring
from dpo_lab.inference.evals import harness, harness_tasks
from dpo_lab.inference.evals.harness import differences, run_harness
from dpo_lab.inference.stage import load_stage
from dpo_lab.runtime.errors import ConfigError, DataError
from dpo_lab.runtime.files import read_json
from dpo_lab.runtime.terminal import Terminal

QUESTIONS = [
    ("2 + 2 =", ["3", "4", "five"], 1),
    ("The sky is", ["blue", "green and wet"], 0),
    ("A cat", ["barks", "purrs"], 1),
] * 4
TASK = """\
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""

TEXT = """\
task: tiny_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs:
  until: ["!"]
  max_gen_toks: 3
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with the YAML file of a task, and its documents."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{i} {q}", "choices": c, "answer": a} for i, (q, c, a) in enumerate(QUESTIONS)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choice.yaml").write_text(TASK.format(file=folder / "docs.jsonl"))
    (folder / "text.yaml").write_text(TEXT.format(file=folder / "docs.jsonl"))
    return folder


@pytest.fixture(scope="module")
def call(lab, tmp_path_factory):
    """Calls the job with words; returns what it returned, its folder, and how often the model was loaded."""
    import os

    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))
    import datasets

    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(os.environ["HF_DATASETS_CACHE"]))
    loaded = []

    def called(out, *words):
        config, tree, subjects = bring(*door_of("evaluate", lab, run_words(*lab.runs), f"output={out}", *words))
        loads = []

        def stage():
            loads.append(1)
            if not loaded:
                loaded.append(load_stage(config, subjects, Terminal(quiet=True)))
            return loaded[0]

        found = run_harness(config, tree, subjects, stage, Terminal())
        return found, loaded[0], len(loads)

    yield called
    patch.undo()


@pytest.fixture(scope="module")
def done(call, tasks, tmp_path_factory):
    out = tmp_path_factory.mktemp("harness") / "out"
    return out, *call(out, f"harness=[{tasks / 'choice.yaml'}]", "evaluate.batch_size=4")


def by_hand(stage, name):
    """acc and acc_norm of each document, from the model's own log-probs, one choice at a time."""
    values = []
    tokenizer = stage.template.tokenizer
    for i, (question, choices, answer) in enumerate(QUESTIONS):
        sums = []
        for choice in choices:
            prompt, rest = (
                tokenizer(t, add_special_tokens=False)["input_ids"] for t in (f"{i} {question}", f" {choice}")
            )
            with stage.speaking(name) as model, torch.no_grad():
                logps = model(input_ids=torch.tensor([prompt + rest])).logits[0].float().log_softmax(-1)
            sums.append(sum(logps[len(prompt) + k - 1, token].item() for k, token in enumerate(rest)))
        normed = [s / len(c) for s, c in zip(sums, choices, strict=True)]
        values.append((float(sums.index(max(sums)) == answer), float(normed.index(max(normed)) == answer)))
    return values


def test_every_models_numbers_are_its_own(done):
    _, found, stage, _ = done
    for name in stage.names:
        values = by_hand(stage, name)
        for place, metric in enumerate(("acc", "acc_norm")):
            mean = sum(v[place] for v in values) / len(values)
            assert found[f"{name}/tiny_choice/{metric},none"] == pytest.approx(mean)
    assert len(found) == 6


def test_the_file_has_errors_and_documents(done):
    out, found, stage, _ = done
    models = read_json(out / "harness.json")["models"]
    assert list(models) == list(stage.names)
    for name, model in models.items():
        cell = model["results"]["tiny_choice"]["acc,none"]
        mean, n = found[f"{name}/tiny_choice/acc,none"], len(QUESTIONS)
        assert cell["value"] == mean
        assert cell["stderr"] == pytest.approx(math.sqrt(mean * (1 - mean) / (n - 1)))
        assert cell["higher_is_better"] is True
        documents = model["documents"]["tiny_choice"]["acc,none"]
        assert [documents[str(i)] for i in range(n)] == [v[0] for v in by_hand(stage, name)]


def test_a_finished_one_says_so_and_loads_nothing(done, call, tasks, capsys):
    out, found, stage, loads = done
    assert loads == len(stage.names)
    again = call(out, f"harness=[{tasks / 'choice.yaml'}]")
    assert again[0] == found
    assert again[2] == 0
    text = capsys.readouterr().out
    assert "is done" in text
    assert "tiny_choice" in text
    assert "acc_norm \u2191" in text
    assert "\u00b1" in text


def test_an_interrupted_one_goes_on_with_the_next_model(call, tasks, tmp_path, monkeypatch, done):
    original, seen = harness._run, []

    def stopped(config, stage, name, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(name)
        return original(config, stage, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(harness, "_run", stopped)
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path / "out", f"harness=[{tasks}]", "evaluate.max_prompts=3")
    assert list(read_json(tmp_path / "out" / "harness.json")["models"]) == seen
    _, stage, loads = call(tmp_path / "out", f"harness=[{tasks}]", "evaluate.max_prompts=3")
    assert loads == 1
    models = read_json(tmp_path / "out" / "harness.json")["models"]
    assert list(models) == list(stage.names)
    assert len(models[REFERENCE]["documents"]["tiny_choice"]["acc,none"]) == 3
    assert models[REFERENCE]["documents"]["tiny_text"]["exact_match,none"] == {"0": 0.0, "1": 0.0, "2": 0.0}


def test_the_difference_is_of_the_same_documents():
    reference = {("t", "acc,none"): {"0": 1.0, "1": 0.0, "2": 0.0, "3": 1.0, "9": 1.0}}
    other = {("t", "acc,none"): {"0": 1.0, "1": 1.0, "2": 0.0, "3": 1.0}, ("t", "only"): {"0": 1.0}}
    # 0, 1, 0, 0: mean 1/4, variance (3/16 * 4) / 3 = 1/4, of which a fourth is 1/16.
    assert differences(reference, other) == {("t", "acc,none"): (0.25, 0.25)}


@pytest.mark.slow  # the harness reads some ten thousand files
def test_an_unknown_task_is_named_with_what_is_near(call, tmp_path):
    with pytest.raises(ConfigError, match=r"harness=arc_esy.*Did you mean.*arc_easy"):
        call(tmp_path / "out", "harness=[arc_esy]")


def test_a_file_that_is_not_there(call, tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        call(tmp_path / "out", f"harness=[{tmp_path / 'x.yaml'}]")


def test_a_folder_without_tasks(call, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="describes no task"):
        call(tmp_path / "out", f"harness=[{tmp_path / 'empty'}]")


def test_data_that_cannot_be_had(call, tmp_path):
    (tmp_path / "gone.yaml").write_text(TASK.format(file=tmp_path / "gone.jsonl").replace("tiny_choice", "gone"))
    with pytest.raises(DataError, match="harness=gone cannot be loaded"):
        call(tmp_path / "out", f"harness=[{tmp_path / 'gone.yaml'}]")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(call, tmp_path, monkeypatch):
    monkeypatch.setattr(harness_tasks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "dpo_lab\[harness\]"'):
        call(tmp_path / "out", "harness=[arc_easy]")


def test_the_tokenizer_and_model_are_left_as_they_were(done, lab):
    """The harness may set a padding token and tie weights; generation after it must be the same."""
    _, _, stage, _ = done
    config, _, subjects = bring(*door_of("evaluate", lab, run_words(*lab.runs)))
    fresh = load_stage(config, subjects, Terminal(quiet=True))
    theirs = dict(fresh.model.state_dict())
    assert all(torch.equal(value, theirs[name]) for name, value in stage.model.state_dict().items())
    assert stage.template.tokenizer.special_tokens_map == fresh.template.tokenizer.special_tokens_map


def test_through_the_dispatch_and_the_rules(lab, tasks):
    from doors import refused

    words = of_lab(lab, run_words(*lab.runs), f"harness=[{tasks / 'choice.yaml'}]")
    assert refused("evaluate", *words) == []
