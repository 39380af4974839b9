"""Predictions: every model answers every prompt once, whatever happens in between, and the numbers are of the answers."""

import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from doors import door_of, run_words, whole_run
from runs import at, fork, send

import dpo_lab.inference.evals.answering as answering
from dpo_lab.config.brought import REFERENCE, bring
from dpo_lab.data.prepare import read_pairs
from dpo_lab.inference.evals.answering import Fitted, batches
from dpo_lab.inference.evals.ledger import Ledger
from dpo_lab.inference.evals.predict import NATS, PAGE, PREDICTIONS, RESULT, predict
from dpo_lab.inference.evals.prompts import PromptRow, wanted_prompts
from dpo_lab.inference.evals.texts import Said, text_metrics
from dpo_lab.inference.generate import Asked, answers
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.stage import load_stage
from dpo_lab.runtime.errors import ConfigError, DataError, OutputError
from dpo_lab.runtime.files import read_json, read_jsonl
from dpo_lab.runtime.terminal import Terminal

WORDS = ("evaluate.task=predict", "generation.max_new_tokens=5", "evaluate.batch_size=4", "data.eval_fraction=0.4")
HOSTILE = "</script><script>window.owned=1</script><img src=x onerror='window.owned=2'>{{data}} \u2028 [bold]x[/bold]"


class Predictor:
    """Everything that a call of `predict` needs, with one stage for all of a module's tests."""

    def __init__(self, lab, stage):
        self.lab, self.stage, self.loads = lab, stage, 0

    def brought(self, *words):
        last = {word.partition("=")[0]: word for word in (*WORDS, *words)}
        return bring(*door_of("evaluate", self.lab, run_words(*self.lab.runs), *last.values()))

    def predict(self, output, *words):
        config, tree, subjects = self.brought(f"output={output}", *words)

        def stage():
            self.loads += 1
            loaded = self.stage
            return type(loaded)(**{**loaded.__dict__, "config": config})

        return predict(config, tree, subjects, stage, Terminal(quiet=True))


@pytest.fixture(scope="module")
def asked(lab):
    config, _, subjects = bring(*door_of("evaluate", lab, run_words(*lab.runs), *WORDS))
    return Predictor(lab, load_stage(config, subjects, Terminal(quiet=True)))


@pytest.fixture(scope="module")
def done(asked, tmp_path_factory):
    """A finished prediction: its folder and what was returned."""
    folder = tmp_path_factory.mktemp("predict") / "out"
    return folder, asked.predict(folder)


@pytest.fixture
def generated(monkeypatch):
    """(name, ids) of every answer that is generated."""
    seen = []
    original = answering.answers

    def counted(stage, asked, *args, **kwargs):
        seen.extend((a.name, tuple(a.ids)) for a in asked)
        return original(stage, asked, *args, **kwargs)

    monkeypatch.setattr(answering, "answers", counted)
    return seen


def rows_of(folder):
    return Ledger(folder / PREDICTIONS).rows


def fields(rows):
    return {(r["name"], r["key"]): (r["answer"], r["ended"], r["tokens"]) for r in rows}


# Which prompts


def test_the_held_out_prompts_are_answered_by_all(asked, done):
    config, _, subjects = asked.brought()
    heldout = {p.prompt[-1]["content"] for p in read_pairs(config.data, asked.lab.cache).heldout}
    rows = rows_of(done[0])
    assert {r["prompt"][-1]["content"] for r in rows} == heldout
    assert len(rows) == len(heldout) * 3 > 12
    assert {r["name"] for r in rows} == {REFERENCE, *(s.name for s in subjects)}
    assert all(r["chosen"].startswith("Because") for r in rows)


def test_a_prompt_is_called_as_in_the_runs_own_records(asked, done):
    own = {row["prompt"] for row in read_jsonl(asked.lab.runs[0] / "eval_pairs.jsonl")}
    keys = {r["key"] for r in rows_of(done[0])}
    assert own <= keys  # of which evaluate has more: data.eval_fraction is higher
    assert all(re.fullmatch("[0-9a-f]{12}", key) for key in keys)


def test_splits_and_limits(asked):
    def prompts(*words):
        return [r.key for r in wanted_prompts(asked.brought(*words)[0], asked.stage.template)]

    heldout, train, both = prompts(), prompts("evaluate.split=train"), prompts("evaluate.split=all")
    assert set(heldout).isdisjoint(train)
    assert both == heldout + train
    assert len(both) == 24
    assert len(prompts("evaluate.split=train", "data.eval_fraction=0.1")) > 16
    assert prompts("evaluate.max_prompts=3") == heldout[:3]
    assert prompts("data.max_eval_pairs=2") == heldout[:2]
    assert len(prompts("evaluate.split=train", "data.eval_fraction=0.1", "data.max_pairs=16")) == 16


def test_own_prompts_with_a_system_message(asked):
    words = ("prompts.own=['你好 \"a\"','B?','B?']", "prompts.system=Be brief.")
    rows = wanted_prompts(asked.brought(*words)[0], asked.stage.template)
    assert [[m["content"] for m in r.messages] for r in rows] == [["Be brief.", '你好 "a"'], ["Be brief.", "B?"]]
    assert [r.chosen for r in rows] == [None, None]
    assert asked.stage.template.prompt_ids([rows[0].messages]) == [list(rows[0].ids)]


def test_a_system_message_of_the_data_stays(asked, tmp_path):
    file = tmp_path / "s.jsonl"
    pairs = [
        {"system": "Own.", "prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "d", "chosen": "b", "rejected": "c"},
    ]
    file.write_text("".join(json.dumps(p) + "\n" for p in pairs))
    config = asked.brought(f"data.path={file}", "data=file", "prompts.system=Given.", "evaluate.split=all")[0]
    rows = wanted_prompts(config, asked.stage.template)
    assert {r.messages[-1]["content"]: r.messages[0]["content"] for r in rows} == {"a": "Own.", "d": "Given."}


def test_a_prompt_of_several_pairs_is_answered_once(asked, tmp_path):
    file = tmp_path / "twice.jsonl"
    pairs = [{"prompt": "a", "chosen": f"good {i}", "rejected": "c"} for i in range(3)]
    file.write_text("".join(json.dumps(p) + "\n" for p in pairs))
    config = asked.brought("data=file", f"data.path={file}", "evaluate.split=all")[0]
    assert [r.chosen for r in wanted_prompts(config, asked.stage.template)] == ["good 0"]


def test_an_empty_prompt_is_refused(asked, tmp_path):
    with pytest.raises(ConfigError, match=r"prompts\.own: prompt 2 is empty"):
        asked.predict(tmp_path / "x", "prompts.own=['a','  ']")


def test_a_split_without_prompts_says_so(asked, tmp_path):
    with pytest.raises(DataError, match=r"evaluate\.split=heldout: there is no prompt"):
        asked.predict(tmp_path / "x", "data.eval_fraction=0")


# The answers


def test_each_answer_is_what_the_model_says_alone(asked, done):
    rows = rows_of(done[0])
    by_key = {r.key: r for r in wanted_prompts(asked.brought()[0], asked.stage.template)}
    for row in (rows[0], rows[-1], rows[len(rows) // 2]):
        [alone] = answers(asked.stage, [Asked(row["name"], list(by_key[row["key"]].ids))], Sampling(5))
        assert (alone.text, alone.ended, alone.tokens) == (row["answer"], row["ended"], row["tokens"])
    assert len({r["answer"] for r in rows}) > 5


def test_the_numbers_are_of_the_answers(done):
    folder, found = done
    rows, result = rows_of(folder), read_json(folder / RESULT)
    for name in {r["name"] for r in rows}:
        own = [r for r in rows if r["name"] == name]
        said = [Said(r["answer"], r["ended"], r["tokens"], r["chosen"]) for r in own]
        for key, value in text_metrics(said).items():
            assert found[f"{name}/{key}"] == result["metrics"][name][key] == pytest.approx(value)
        rate = sum(r["tokens"] for r in own) / sum(r["seconds"] for r in own)
        assert found[f"{name}/tokens_per_second"] == pytest.approx(rate)


def test_every_number_of_the_answers_is_within_its_interval(done):
    result = read_json(done[0] / RESULT)
    for name, metrics in result["metrics"].items():
        intervals = result["intervals"][name]
        assert set(metrics) - set(intervals) == {"distinct1", "distinct2", "tokens_per_second"}
        for key, found in intervals.items():
            assert found["value"] == metrics[key]
            if key != "bleu4":  # of few short answers: the smoothing makes its draws lean to one side
                assert found["low"] <= found["value"] <= found["high"], (name, key)
    first = result["metrics"][REFERENCE]
    assert set(result["differences"]) == set(result["metrics"]) - {REFERENCE}
    for name, apart in result["differences"].items():
        for key, found in apart.items():
            assert found["value"] == pytest.approx(result["metrics"][name][key] - first[key])


def test_perplexity_is_that_of_transformers(asked, done):
    """A second implementation: one row at a time, through the model's own logits."""
    rows, template = wanted_prompts(asked.brought()[0], asked.stage.template), asked.stage.template
    for name in (REFERENCE, asked.stage.names[1]):
        nats = tokens = 0.0
        for row, ids in zip(rows, template.answer_ids([r.chosen for r in rows]), strict=True):
            with asked.stage.speaking(name) as model, torch.no_grad():
                logits = model(input_ids=torch.tensor([[*row.ids, *ids]])).logits[0].double().log_softmax(-1)
            nats -= sum(logits[len(row.ids) + i - 1, token].item() for i, token in enumerate(ids))
            tokens += len(ids)
        assert done[1][f"{name}/perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_a_model_that_was_trained_as_a_whole_answers_for_itself(lab, tmp_path):
    from transformers import AutoModelForCausalLM

    run, words = whole_run(lab), ("evaluate.max_prompts=3", "trainer.forward=padded", f"output={tmp_path / 'out'}")
    config, tree, subjects = bring(*door_of("evaluate", lab, run_words(run), *WORDS, *words))
    stage = load_stage(config, subjects, Terminal(quiet=True))
    found = predict(config, tree, subjects, lambda: stage, Terminal(quiet=True))
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    rows, template = wanted_prompts(config, stage.template), stage.template
    nats = tokens = 0.0
    for row, ids in zip(rows, template.answer_ids([r.chosen for r in rows]), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*row.ids, *ids]])).logits[0].double().log_softmax(-1)
        nats -= sum(logits[len(row.ids) + i - 1, token].item() for i, token in enumerate(ids))
        tokens += len(ids)
    assert not stage.passes.shared
    assert found[f"{subjects[0].name}/perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found[f"{REFERENCE}/perplexity"] != found[f"{subjects[0].name}/perplexity"]
    out = model.generate(torch.tensor([list(rows[0].ids)]), max_new_tokens=5, do_sample=False)[0, len(rows[0].ids) :]
    said = fields(rows_of(tmp_path / "out"))[subjects[0].name, rows[0].key][0]
    assert said == template.tokenizer.decode(out, skip_special_tokens=True).strip()


def test_every_model_has_a_perplexity_of_its_own(done):
    values = {key: value for key, value in done[1].items() if key.endswith("/perplexity")}
    assert len(set(values.values())) == 3


def test_sampled_answers_differ_by_seed_alone(asked, tmp_path):
    words = ("generation.temperature=1.5", "evaluate.max_prompts=3")
    asked.predict(tmp_path / "a", *words, "evaluate.batch_size=1")
    asked.predict(tmp_path / "b", *words)
    asked.predict(tmp_path / "c", *words, "seed=5")
    a, b, c = (fields(rows_of(tmp_path / name)) for name in "abc")
    assert a == b != c


def test_batches_are_of_one_model_and_similar_lengths():
    def fitted(key, n):
        return Fitted(PromptRow((), None, None, key, ()), [0] * n)

    left = [(name, fitted(str(n), n)) for n in (3, 1, 4, 1, 5) for name in ("b", "a")]
    made = [[(name, len(item.ids)) for name, item in batch] for batch in batches(left, ("a", "b"), 2)]
    assert made == [
        [("a", 5), ("a", 4)],
        [("a", 3), ("a", 1)],
        [("a", 1), ("b", 1)],
        [("b", 1), ("b", 3)],
        [("b", 4), ("b", 5)],
    ]


# Interruptions


def test_a_finished_prediction_computes_nothing(asked, done, generated):
    before, loads = (done[0] / PREDICTIONS).read_bytes(), asked.loads
    assert asked.predict(done[0]) == done[1]
    assert (done[0] / PREDICTIONS).read_bytes() == before
    assert asked.loads == loads
    assert generated == []


def test_an_interrupted_prediction_generates_the_rest_alone(asked, done, tmp_path, monkeypatch, generated):
    original, calls = answering.answers, []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(answering, "answers", stopped)
        with pytest.raises(KeyboardInterrupt):
            asked.predict(out)
    assert len(rows_of(out)) == len(generated) == 8
    with open(out / PREDICTIONS, "ab") as file:  # a row that a kill has torn
        file.write(b'{"name": "reference", "key": "0123')
    found = asked.predict(out)
    total = len(rows_of(done[0]))
    assert len(generated) == len(set(generated)) == total
    assert fields(rows_of(out)) == fields(rows_of(done[0]))
    for line in (out / PREDICTIONS).read_text(encoding="utf-8").splitlines():
        json.loads(line)
    same = {k: v for k, v in done[1].items() if not k.endswith("tokens_per_second")}
    assert {k: v for k, v in found.items() if k in same} == same


def test_a_killed_prediction_goes_on(asked, tmp_path, generated):
    import os

    out = tmp_path / "out"

    def work():
        torch.set_num_threads(1)
        at("dpo_lab.inference.evals.answering:answers", send(signal.SIGKILL), call=2)()
        asked.predict(out, "evaluate.max_prompts=4")

    _, status = os.waitpid(fork(work), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(rows_of(out)) == 4
    asked.predict(out, "evaluate.max_prompts=4")
    assert len(generated) == 8
    assert len(fields(rows_of(out))) == len(rows_of(out)) == 12


def test_lost_perplexities_are_computed_without_generating(asked, done, tmp_path, generated):
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    note = read_json(out / "evaluation.json") | {"done": False}
    (out / "evaluation.json").write_text(json.dumps(note))
    lines = (out / NATS).read_text().splitlines(keepends=True)
    (out / NATS).write_text("".join(lines[:-3]))
    found = asked.predict(out)
    assert generated == []
    assert found == pytest.approx(done[1])
    assert len((out / NATS).read_text().splitlines()) == len(lines)


def test_a_folder_of_something_else_is_left_alone(asked, done):
    before = (done[0] / PREDICTIONS).read_bytes()
    with pytest.raises(OutputError, match="overwrite=true"):
        asked.predict(done[0], "generation.max_new_tokens=4")
    assert (done[0] / PREDICTIONS).read_bytes() == before


# Prompts that are too long


def test_long_prompts_lose_turns_and_too_long_ones_are_left_out(asked, tmp_path):
    file = tmp_path / "long.jsonl"
    turns = [
        {"role": "user", "content": "old " * 80},
        {"role": "assistant", "content": "ok " * 60},
        {"role": "user", "content": "New?"},
    ]
    pairs = [
        {"prompt": turns, "chosen": "yes", "rejected": "no"},
        {"prompt": "x" * 600, "chosen": "yes", "rejected": "no"},
        {"prompt": "Short?", "chosen": "z" * 500, "rejected": "no"},
    ]
    file.write_text("".join(json.dumps(p) + "\n" for p in pairs))
    words = ("data=file", f"data.path={file}", "evaluate.split=all", "generation.max_new_tokens=40")
    found = asked.predict(tmp_path / "out", *words)
    rows = {(r["name"], r["prompt"][-1]["content"]): r for r in rows_of(tmp_path / "out")}
    assert rows[REFERENCE, "New?"]["dropped_turns"] == 2
    assert rows[REFERENCE, "New?"]["prompt_tokens"] < 60
    assert rows[REFERENCE, "x" * 600]["answer"] is None
    result = read_json(tmp_path / "out" / RESULT)
    assert (result["prompts"], result["turns_cut"], len(result["left_out"])) == (2, 1, 1)
    assert "the model has room for 472" in result["left_out"][0]["why"]
    nats = {r["key"]: r["tokens"] for r in read_jsonl(tmp_path / "out" / NATS) if r["name"] == REFERENCE}
    assert sorted(nats.values()) == [0, 0, 4]  # the answer of 500 has no room, the prompt of 600 neither
    assert math.isfinite(found[f"{REFERENCE}/perplexity"])
    page = (tmp_path / "out" / PAGE).read_text()
    assert "were left out" in page


def test_nothing_to_answer_at_all(asked, tmp_path):
    with pytest.raises(DataError, match="None of the 1 prompts can be answered"):
        asked.predict(tmp_path / "out", f"prompts.own=['{'x' * 600}']")


# What is shown


def test_the_table_names_every_number(done, capsys):
    from dpo_lab.inference.evals.predict_report import show

    show(Terminal(), read_json(done[0] / RESULT), done[0])
    text = capsys.readouterr().out
    for word in (
        "BLEU-4",
        "ROUGE-L",
        "perplexity",
        "distinct-2",
        "repeated 4-grams",
        "refusals",
        "cut answers",
        "tokens/s",
    ):
        assert word in text
    assert "by words (BLEU: sacrebleu's 13a)" in text
    assert "greedy, at most 5 tokens" in text


def test_own_prompts_need_no_package_and_are_not_compared(asked, tmp_path):
    found = asked.predict(tmp_path / "out", f'prompts.own=["{HOSTILE.replace(chr(34), "")}"]')
    assert f"{REFERENCE}/distinct1" in found
    assert f"{REFERENCE}/bleu4" not in found
    assert f"{REFERENCE}/perplexity" not in found
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("<script") == 2
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|https?://""", page)


@pytest.fixture(scope="module")
def tab(asked, tmp_path_factory):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((b for name in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(name))), None)
    out = tmp_path_factory.mktemp("page") / "out"
    own = [f"Question {i}?" for i in range(30)] + [HOSTILE]
    asked.predict(out, f"prompts.own={json.dumps(own)}", "generation.max_new_tokens=1", "evaluate.batch_size=64")
    with api.sync_playwright() as play:
        if found is None and not Path(play.chromium.executable_path).exists():
            pytest.skip("there is no Chromium on this machine")
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        faults = []
        opened.on("pageerror", lambda e: faults.append(str(e)))
        opened.goto((out / PAGE).as_uri())
        opened.wait_for_selector("article")
        yield opened
        assert faults == []
        browser.close()


def test_the_page_shows_answers_side_by_side_and_is_searched(tab):
    assert tab.inner_text("#where") == "1 to 25 of 31"
    assert tab.locator("article").first.locator("section").count() == 3
    tab.click("#next")
    assert tab.inner_text("#where") == "26 to 31 of 31"
    assert HOSTILE.split("\u2028")[0] in tab.locator("article").last.inner_text()
    assert tab.evaluate("window.owned") is None
    tab.fill("#search", "question 17")
    tab.locator("#where", has_text=re.compile(" of 1$")).wait_for()
    assert "Question 17?" in tab.inner_text("article")
    tab.select_option("#kind", "none")
    tab.locator("#where", has_text="0 of 0").wait_for()
