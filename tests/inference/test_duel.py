"""Whose answers are better, from finished runs to win rates: by judges on this machine, and by votes on the page."""

import json
from pathlib import Path

import pytest
from doors import door_of, run_words
from judges import Reply, always, longer, serving
from tiny import tiny_policy

import dpo_lab.inference.evals.judge as judging
import dpo_lab.inference.evaluate as job
from dpo_lab.inference.evals.blind import KEY, PAGE, Match
from dpo_lab.inference.evals.duel_report import scores
from dpo_lab.inference.evals.endpoint import JudgeError
from dpo_lab.inference.evals.wilson import Tally, wilson
from dpo_lab.runtime.errors import ConfigError, DataError, OutputError
from dpo_lab.runtime.files import file_lock, read_json, read_jsonl

SECRET = "sk-of-the-duel-0123456789"
WORDS = ("evaluate.task=duel", "generation.max_new_tokens=6", "evaluate.batch_size=8")


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setattr(judging, "PAUSE", 0.01)


def duel(lab, folder, *words, runs=None):
    """Run the door's job; returns what it returns."""
    own = [*WORDS, run_words(*(lab.runs if runs is None else runs)), f"output={folder}", *words]
    own = list({word.partition("=")[0]: word for word in own}.values())
    config, tree, given = door_of("evaluate", lab, *own)
    return job.evaluate(config, tree, Path(), given=given)


def judged(server, *more):
    return ("judge.model=j", f"judge.base_url={server.url}", *more)


@pytest.fixture(scope="module")
def finished(lab, tmp_path_factory):
    """The folder of a duel without a judge, what it said, and what it returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        folder = tmp_path_factory.mktemp("duels") / "one"
        returned = duel(lab, folder)
    return folder, returned


def copy_of(finished, folder):
    """Another folder with the same answers, so that tests do not see each other's verdicts and votes."""
    folder.mkdir()
    for name in ("evaluation.json", "answers.jsonl"):
        (folder / name).write_bytes((finished[0] / name).read_bytes())
    return folder


def answers_in(folder):
    return {(r["name"], r["key"]): r["answer"] for r in read_jsonl(folder / "answers.jsonl")}


def names_in(folder):
    return read_json(folder / "duel.json")["contestants"]


def by_length(folder, first, second):
    """Won, tied and lost if more characters are better."""
    texts = answers_in(folder)
    keys = {key for _, key in texts}
    leads = [len(texts[first, key]) - len(texts[second, key]) for key in keys]
    return sum(n > 0 for n in leads), sum(n == 0 for n in leads), sum(n < 0 for n in leads)


# Win rates


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_those_of_the_literature(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_intervals_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 2, 7, 60, 1000):
        for successes in {0, 1, n // 3, n // 2, n}:
            theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
            assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_tie_is_half_a_win():
    tally = Tally.of(["first", "tie", "tie", "second", "first"])
    assert (tally.won, tally.tied, tally.lost, tally.rate) == (2, 2, 1, 0.6)
    assert tally.interval == wilson(3, 5)
    assert (Tally().rate, Tally().interval) == (None, None)


def test_prompts_with_the_same_answer_count_as_far_as_the_others_are_decided():
    prompt = ({"role": "user", "content": "?"},)
    differ = [Match(f"p{i}", prompt, ("a", "b"), ("x", "y")) for i in range(8)]
    same = [Match(f"q{i}", prompt, ("a", "b"), ("x", "x")) for i in range(4)]
    for decided, tied in ((0, 0), (2, 1), (4, 2), (8, 4)):
        [score] = scores([*differ, *same], lambda m, n=decided: "first" if int(m.prompt[1:]) < n else None)
        assert (score.tally, score.same, score.missing) == (Tally(decided, tied, 0), tied, 8 - decided)
    [alike] = scores(same, lambda m: None)
    assert (alike.tally, alike.missing) == (Tally(0, 4, 0), 0)


# Without a judge


def test_everyone_answers_every_prompt_and_there_is_a_page(finished, lab):
    folder, returned = finished
    content = read_json(folder / "duel.json")
    assert returned == {}
    assert (content["judge"], content["people"]) == (None, None)
    assert content["contestants"][0] == "reference"
    assert len(content["contestants"]) == 3
    texts = answers_in(folder)
    assert content["prompts"] > 3
    assert len(texts) == 3 * content["prompts"]
    assert len(set(texts.values())) > 3
    page = (folder / PAGE).read_text(encoding="utf-8")
    assert not any(name in page for name in [*content["contestants"], *map(str, lab.runs)])
    entries = [e for found in read_json(folder / KEY)["items"].values() for e in found]
    differing = sum(
        texts[a, k] != texts[b, k] for a, b in pairs_of(content["contestants"]) for k in {k for _, k in texts}
    )
    assert len(entries) == differing == 3 * content["prompts"] - content["same_answer"]
    for entry in entries:
        assert texts[entry["left"], entry["prompt"]] != texts[entry["right"], entry["prompt"]]


def pairs_of(names):
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def test_without_a_judge_the_terminal_says_what_there_is(finished, lab, tmp_path, capsys):
    duel(lab, copy_of(finished, tmp_path / "d"))
    said = " ".join(capsys.readouterr().out.split())
    assert "There is no judge (judge.base_url" in said
    assert PAGE in said
    assert "run the same command again" in said


def test_the_same_command_loads_no_model_and_an_interrupted_one_goes_on(finished, lab, tmp_path, monkeypatch):
    folder = copy_of(finished, tmp_path / "d")
    path, whole = folder / "answers.jsonl", (folder / "answers.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    asked, real = [], job.load_stage
    monkeypatch.setattr(job, "load_stage", lambda *a: asked.append(1) or real(*a))
    duel(lab, folder)
    assert asked == [1]
    assert path.read_bytes().startswith(b"".join(lines[:7]))
    assert answers_in(folder) == answers_in(finished[0])
    page = (folder / PAGE).read_bytes()
    assert page == (finished[0] / PAGE).read_bytes()
    duel(lab, folder)
    assert asked == [1]
    assert (folder / PAGE).read_bytes() == page


# With a judge


def test_a_judge_that_answers_by_position_ends_at_exactly_one_half(finished, lab, tmp_path):
    for place in "AB":
        folder = copy_of(finished, tmp_path / place)
        with serving(always(f"Verdict: {place}")) as server:
            returned = duel(lab, folder, *judged(server))
        assert len(returned) == 3
        assert set(returned.values()) == {0.5}
        content = read_json(folder / "duel.json")["judge"]
        assert all(
            p["won"] == p["lost"] == 0 and p["missing"] == 0 and p["low"] < 0.5 < p["high"] for p in content["pairs"]
        )
        assert content["verdicts"][place] == sum(content["verdicts"].values()) > 0
        assert content["same_in_both_orders"] == 0


def test_a_judge_with_a_reason_gives_the_rates_that_it_implies(finished, lab, tmp_path, capsys):
    folder = copy_of(finished, tmp_path / "d")
    with serving(longer) as server:
        returned = duel(lab, folder, *judged(server))
        n = len(server.asked)
        assert duel(lab, folder, *judged(server)) == returned
        assert len(server.asked) == n  # all verdicts were kept
    content = read_json(folder / "duel.json")["judge"]
    assert [(p["first"], p["second"]) for p in content["pairs"]] == [(b, a) for a, b in pairs_of(names_in(folder))]
    for pair in content["pairs"]:
        won, tied, lost = by_length(folder, pair["first"], pair["second"])
        assert (pair["won"], pair["tied"], pair["lost"]) == (won, tied, lost)
        rate = (won + tied / 2) / (won + tied + lost)
        assert returned[f"judge/{pair['first']} over {pair['second']}"] == pair["win_rate"] == pytest.approx(rate)
        assert (pair["low"], pair["high"]) == pytest.approx(wilson(won + tied / 2, won + tied + lost))
    assert any(p["won"] != p["lost"] for p in content["pairs"])
    said = " ".join(capsys.readouterr().out.split())
    assert "A tie counts as half a win" in said
    assert "named the answer that came first in 50 %" in said
    assert content["asked_in_both_orders"] == content["same_in_both_orders"]


def test_missing_verdicts_are_counted_said_and_asked_for_again(finished, lab, tmp_path, capsys):
    folder = copy_of(finished, tmp_path / "d")
    prompt = next(iter({key for _, key in answers_in(folder)}))
    text = next(r["prompt"][-1]["content"] for r in read_jsonl(folder / "answers.jsonl") if r["key"] == prompt)
    closed = [True]

    def behave(asked):
        return Reply("{}", 400) if closed[0] and text in asked.parts["conversation"] else longer(asked)

    with serving(behave) as server:
        duel(lab, folder, *judged(server))
        content = read_json(folder / "duel.json")["judge"]
        texts = answers_in(folder)
        open_pairs = [(b, a) for a, b in pairs_of(names_in(folder)) if texts[a, prompt] != texts[b, prompt]]
        assert open_pairs
        assert [(p["first"], p["second"]) for p in content["pairs"] if p["missing"]] == open_pairs
        assert [*content["missing"]] == ["HTTP 400: {}"]
        said = " ".join(capsys.readouterr().out.split())
        assert f"{content['missing']['HTTP 400: {}']} verdicts are missing" in said
        closed[0] = False
        duel(lab, folder, *judged(server))
    content = read_json(folder / "duel.json")["judge"]
    assert content["missing"] == {}
    for pair in content["pairs"]:
        assert (pair["won"], pair["tied"], pair["lost"]) == by_length(folder, pair["first"], pair["second"])


def test_a_judge_of_nonsense_is_an_error_and_the_page_is_there_all_the_same(finished, lab, tmp_path):
    folder = copy_of(finished, tmp_path / "d")
    with serving(always("Who knows.")) as server, pytest.raises(JudgeError, match="gave no verdict"):
        duel(lab, folder, *judged(server, "judge.retries=0"))
    assert (folder / PAGE).is_file()
    assert not read_json(folder / "duel.json")


def test_the_key_is_written_nowhere(finished, lab, tmp_path, capsys):
    folder = copy_of(finished, tmp_path / "d")
    with serving(lambda a: longer(a) + "") as server:
        duel(lab, folder, *judged(server))
        assert server.asked[0].headers["Authorization"] == f"Bearer {SECRET}"
    written = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert SECRET.encode() not in written
    assert SECRET not in "".join(capsys.readouterr())


# With votes


def test_votes_beside_the_page_become_win_rates(finished, lab, tmp_path, capsys, caplog):
    folder = copy_of(finished, tmp_path / "d")
    duel(lab, folder)
    key, texts = read_json(folder / KEY), answers_in(folder)
    votes = {}
    for item, [entry, *_] in key["items"].items():
        lead = len(texts[entry["left"], entry["prompt"]]) - len(texts[entry["right"], entry["prompt"]])
        votes[item] = "left" if lead > 0 else "right" if lead < 0 else "tie"
    saved = {"page": key["page"], "session": "s", "rater": "", "saved": 1, "votes": votes}
    (folder / "votes-s.json").write_text(json.dumps(saved), encoding="utf-8")
    (folder / "votes-t.json").write_text(json.dumps(saved | {"page": "another"}), encoding="utf-8")
    capsys.readouterr()
    returned = duel(lab, folder)
    content = read_json(folder / "duel.json")["people"]
    assert (content["raters"], content["votes"]) == (1, len(votes))
    for pair in content["pairs"]:
        assert (pair["won"], pair["tied"], pair["lost"]) == by_length(folder, pair["first"], pair["second"])
        assert returned[f"people/{pair['first']} over {pair['second']}"] == pair["win_rate"]
    assert "votes-t.json does not count: its votes are on other answers." in caplog.text
    assert f"{len(votes)} votes of 1 person" in " ".join(capsys.readouterr().out.split())


# What cannot be done


def test_a_result_is_needed(lab, tmp_path):
    with pytest.raises(ConfigError, match="give run=FOLDER or adapter=FOLDER"):
        duel(lab, tmp_path / "d", f"model.path={lab.model}", "model=hf", "run=null")


def test_the_judge_is_looked_at_before_anything_is_loaded(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "load_stage", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"judge\.base_url"):
        duel(lab, tmp_path / "d", "judge.model=j", "judge.base_url=ftp://x")
    assert not (tmp_path / "d").exists()


def test_a_folder_of_something_else_is_left_alone(finished, lab, tmp_path):
    folder = copy_of(finished, tmp_path / "d")
    with pytest.raises(OutputError, match="overwrite=true"):
        duel(lab, folder, "generation.max_new_tokens=7")
    with file_lock(folder / "duel.lock", wait=False), pytest.raises(OutputError, match="Another process"):
        duel(lab, folder)
    assert answers_in(folder) == answers_in(finished[0])


def test_prompts_of_your_own_that_do_not_fit_are_named(lab, tmp_path):
    long = "why? " * 200
    with pytest.raises(DataError, match=r"1 of 2 prompts cannot be answered.*room for"):
        duel(lab, tmp_path / "d", f'prompts.own=["Why?","{long}"]', runs=lab.runs[:1])


def test_equal_contestants_leave_nothing_to_compare(lab, tmp_path, capsys):
    adapter = tmp_path / "untrained"
    tiny_policy(lab.model).save_pretrained(adapter)
    words = ("run=null", f"adapter={adapter}", "model=hf", f"model.path={lab.model}", 'prompts.own=["Why?","How?"]')
    with serving(longer) as server:
        assert duel(lab, tmp_path / "d", *words, *judged(server)) == {}
        assert server.asked == []
    content = read_json(tmp_path / "d" / "duel.json")
    assert (content["prompts"], content["same_answer"], content["judge"]) == (2, 2, None)
    assert "there is nothing to compare" in capsys.readouterr().out
    assert not (tmp_path / "d" / PAGE).exists()
