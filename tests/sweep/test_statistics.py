"""What a sweep's folders are turned into: standings, a verdict in words, effects, and what was left out."""

import json
import math

import numpy as np
import pytest
from folders import write_book, write_trial

from dpo_lab.sweep.results import load
from dpo_lab.sweep.statistics import answer

PROMPTS = [f"{i // 2:08x}" for i in range(80)]  # 40 prompts of two pairs


@pytest.fixture
def sweep(tmp_path):
    return write_book(tmp_path / "sweep", {"optim.lr": [1e-4, 5e-5], "seed": [0, 1]})


def margins_of(right, *, size=2.0, shift=0, pairs=80):
    """So many of the pairs right, spread over the prompts: pairs 0, 7, 14, ... first, from `shift` on."""
    margins = np.full(pairs, -size)
    margins[[(7 * i + shift) % pairs for i in range(right)]] = size
    return margins.tolist()


def noisy(rng, accuracy, pairs=80):
    return np.where(rng.random(pairs) < accuracy, 1.0, -1.0).tolist()


def write(folder, accuracies, *, seeds=(0, 1), prompts=PROMPTS, key="optim.lr", rng=None):
    """A setting for each value of `key` -> pairs that are right, with some seeds."""
    for value, right in accuracies.items():
        for seed in seeds:
            margins = margins_of(right + seed, shift=seed, pairs=len(prompts))
            write_trial(folder, axes={key: value, "seed": seed}, margins=margins, prompts=prompts)


def test_a_clear_winner_is_named_with_its_numbers(sweep):
    write(sweep, {1e-4: 70, 5e-5: 40, 1e-5: 36})
    found = answer(load(sweep))
    assert found.verdict == "clear winner"
    first, second, third = found.standings
    assert [s.label for s in found.standings] == ["lr 1e-4", "lr 5e-5", "lr 1e-5"]
    assert [s.accuracy for s in found.standings] == pytest.approx([70.5 / 80, 40.5 / 80, 36.5 / 80])
    assert first.margin == pytest.approx(2 * (2 * 70.5 / 80 - 1))
    assert [s.may_be_best for s in found.standings] == [True, False, False]
    assert [s.behind for s in found.standings] == pytest.approx([0, 30 / 80, 34 / 80])
    assert (first.behind_interval.low, first.behind_interval.high) == (0, 0)
    assert 0 < second.behind_interval.low < second.behind < second.behind_interval.high
    assert third.accuracy_interval.low < third.accuracy < third.accuracy_interval.high
    assert third.margin_interval.low < third.margin < third.margin_interval.high
    assert (found.pairs, found.prompts, found.seeds) == (80, 40, 2)
    assert [len(s.trials) for s in found.standings] == [2, 2, 2]
    low, high = (f"{100 * bound:.1f}" for bound in (second.behind_interval.low, second.behind_interval.high))
    assert found.sentence == (
        "lr 1e-4 is the clear winner of 3 settings: 88.1 % of 80 held-out pairs (40 prompts, 2 seeds each) right, "
        f"37.5 points more than lr 5e-5 (95 % interval {low} to {high} points, corrected for comparing all settings)."
    )


def test_settings_that_are_close_have_no_clear_winner(sweep):
    write(sweep, {1e-4: 60, 5e-5: 58, 1e-5: 10})
    found = answer(load(sweep))
    assert found.verdict == "no clear winner"
    assert [s.may_be_best for s in found.standings] == [True, True, False]
    assert found.sentence == (
        "No clear winner among lr 1e-4 and lr 5e-5: lr 1e-4 has 75.6 % of 80 held-out pairs (40 prompts, 2 seeds each) "
        "right, 2.5 points more than lr 5e-5. That is within the noise of prompts and seeds. The other one is behind."
    )


def test_many_that_may_be_best_are_counted(sweep):
    write(sweep, {value * 1e-5: 60 - value for value in range(6)})
    found = answer(load(sweep))
    assert found.sentence.startswith(
        "No clear winner among lr 0, lr 1e-5, lr 2e-5, lr 3e-5 and 2 more: lr 0 has 75.6 % of"
    )


def test_names_with_commas_are_kept_apart(sweep):
    for lr, beta in ((1e-4, 0.1), (1e-4, 0.3), (5e-5, 0.1)):
        for seed in (0, 1):
            axes = {"optim.lr": lr, "loss.beta": beta, "seed": seed}
            write_trial(sweep, axes=axes, margins=margins_of(40 + seed, size=1e4 * lr + beta), prompts=PROMPTS)
    found = answer(load(sweep))
    named = "No clear winner among lr 1e-4, beta 0.3; lr 1e-4, beta 0.1; and lr 5e-5, beta 0.1: all 3 have the same accuracy,"
    assert found.sentence.startswith(named)


def test_one_seed_makes_a_leader_however_large_the_gap(sweep):
    write(sweep, {1e-4: 78, 5e-5: 5}, seeds=(0,))
    found = answer(load(sweep))
    assert (found.verdict, found.seeds) == ("leader", 1)
    assert found.sentence.startswith(
        "lr 1e-4 leads with 97.5 % of 80 held-out pairs (40 prompts, 1 seed each) right, 91.2 points more than lr 5e-5. "
        "That is more than the noise between prompts (95 % interval "
    )
    assert found.sentence.endswith(
        " Seed noise is unmeasured, as each setting ran with one seed: add seed=0,1,2 before naming a winner."
    )


def test_a_leader_within_the_noise_of_the_prompts_says_so(sweep):
    write(sweep, {1e-4: 60, 5e-5: 58, 1e-5: 8}, seeds=(0,))
    found = answer(load(sweep))
    assert found.verdict == "leader"
    assert " The noise between prompts alone leaves lr 5e-5 in the race. Seed noise is unmeasured" in found.sentence


def test_a_rival_with_one_seed_leaves_seed_noise_unmeasured(sweep):
    write(sweep, {1e-4: 72})
    write(sweep, {5e-5: 70}, seeds=(0,))
    write(sweep, {1e-5: 8})
    found = answer(load(sweep))
    assert (found.verdict, found.seeds) == ("leader", 1)
    assert "as lr 5e-5 ran with one seed" in found.sentence


def test_a_hopeless_setting_with_one_seed_does_not(sweep):
    write(sweep, {1e-4: 72, 1e-5: 30})
    write(sweep, {5e-5: 8}, seeds=(0,))
    found = answer(load(sweep))
    assert (found.verdict, found.seeds) == ("clear winner", 1)
    assert "1 to 2 seeds each" in found.sentence


def test_equal_accuracies_are_a_tie_that_margins_do_not_decide(sweep):
    for lr, size in ((1e-4, 1.0), (5e-5, 3.0)):
        for seed in (0, 1):
            write_trial(sweep, axes={"optim.lr": lr, "seed": seed}, margins=margins_of(60, size=size), prompts=PROMPTS)
    found = answer(load(sweep))
    assert found.verdict == "no clear winner"
    assert [s.label for s in found.standings] == ["lr 5e-5", "lr 1e-4"]  # by margin
    assert found.sentence == (
        "No clear winner among lr 5e-5 and lr 1e-4: both have the same accuracy, 75.0 % of 80 held-out pairs (40 prompts, "
        "2 seeds each) right. lr 5e-5 has the largest margin, 1.50 nats, before 0.50; margins decide nothing here."
    )


def test_the_same_scores_everywhere_tie(sweep):
    write(sweep, {1e-4: 60, 5e-5: 60})
    found = answer(load(sweep))
    assert found.verdict == "no clear winner"
    assert all(s.may_be_best for s in found.standings)
    assert found.sentence.endswith("Their margins are equal too.")


def test_few_prompts_decide_nothing(sweep):
    write(sweep, {1e-4: 9, 5e-5: 1}, prompts=PROMPTS[:10])
    found = answer(load(sweep))
    assert (found.verdict, found.prompts) == ("no clear winner", 5)
    assert "5 held-out prompts cannot tell settings apart, which takes 6 at least." in found.sentence


def test_pairs_of_a_single_prompt_bound_nothing(sweep):
    write(sweep, {1e-4: 9, 5e-5: 1}, prompts=["aaaaaaaa"] * 10)
    first = answer(load(sweep)).standings[0]
    assert (first.accuracy_interval.low, first.accuracy_interval.high) == (0, 1)
    assert (first.margin_interval.low, first.margin_interval.high) == (-math.inf, math.inf)


def test_perfect_accuracy_is_not_certain(sweep):
    write_trial(sweep, axes={"optim.lr": 1e-4}, margins=[1.0] * 80, prompts=PROMPTS)
    write_trial(sweep, axes={"optim.lr": 5e-5}, margins=[-1.0] * 80, prompts=PROMPTS)
    right, wrong = answer(load(sweep)).standings
    assert right.accuracy_interval.high == 1
    assert right.accuracy_interval.low == pytest.approx(0.912, abs=1e-3)  # Clopper and Pearson, 40 of 40
    assert wrong.accuracy_interval.low == 0
    assert wrong.accuracy_interval.high == pytest.approx(0.088, abs=1e-3)


def test_one_setting_is_described(sweep):
    write_book(sweep, {"seed": [0, 1, 2]})
    for seed in (0, 1, 2):
        write_trial(sweep, axes={"seed": seed}, margins=margins_of(60 + seed), prompts=PROMPTS)
    found = answer(load(sweep))
    assert (found.verdict, found.seeds, found.effects) == ("one setting", 3, ())
    assert found.standings[0].label == "the only setting"
    assert "the only setting, 76.2 % of 80 held-out pairs (40 prompts, 3 seeds) right (95 % interval" in found.sentence


def test_nothing_to_compare_is_said(sweep):
    found = answer(load(sweep))
    assert (found.verdict, found.standings, found.left_out) == ("nothing", (), ())
    assert found.sentence == "Nothing to compare: the sweep has no trials yet."
    write_trial(sweep, axes={"seed": 0}, state="failed")
    write_trial(sweep, axes={"seed": 1}, state="new")
    write_trial(sweep, axes={"seed": 2})
    found = answer(load(sweep))
    assert found.sentence == (
        "Nothing to compare yet: of 3 trials none is done and scored (1 failed, 1 new and 1 done without usable scores)."
    )
    assert len(found.left_out) == 3


def test_what_cannot_be_compared_is_left_out_with_the_reason(sweep):
    write(sweep, {1e-4: 60, 5e-5: 40})
    others = {
        "pruned": {"state": "pruned", "reason": "held-out accuracy 0.4 at step 10"},
        "failed": {"state": "failed", "reason": "out of\nmemory"},
        "interrupted": {"state": "interrupted"},
        "new": {"state": "new"},
    }
    for name, said in others.items():
        write_trial(
            sweep, axes={"optim.lr": 1.0, "why": name}, margins=margins_of(80), prompts=PROMPTS, name=name, **said
        )
    write_trial(
        sweep, axes={"optim.lr": 1.0, "seed": 0}, margins=margins_of(40, pairs=40), prompts=PROMPTS[:40], name="fewer"
    )
    shifted = PROMPTS[1:] + PROMPTS[:1]
    write_trial(sweep, axes={"optim.lr": 1.0, "seed": 1}, margins=margins_of(80), prompts=shifted, name="others")
    write_trial(sweep, axes={"loss": "simpo"}, margins=margins_of(80), prompts=PROMPTS, reference=False, name="free")
    write_trial(sweep, axes={"seed": 5}, name="unscored")
    path = write_trial(sweep, axes={"seed": 6}, margins=margins_of(80), prompts=PROMPTS, name="collapsed")
    rows = [json.loads(line) for line in (path / "eval_pairs.jsonl").read_text().splitlines()]
    rows[3]["chosen_logps"] = "nan"
    (path / "eval_pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = answer(load(sweep))
    assert [s.label for s in found.standings] == ["lr 1e-4", "lr 5e-5"]
    assert {trial.id: why for trial, why in found.left_out} == {
        "pruned": "pruned: held-out accuracy 0.4 at step 10",
        "failed": "failed: out of memory",
        "interrupted": "interrupted",
        "new": "not started",
        "fewer": "scored on other held-out pairs (40; the compared trials have 80)",
        "others": "scored on other held-out pairs (80; the compared trials have 80)",
        "free": "scored without a reference, so that its accuracy is another measure than that of the compared trials",
        "unscored": "no scored held-out pairs: eval_pairs.jsonl is missing or damaged",
        "collapsed": "the log-probs of its held-out pairs are not finite",
    }


def test_a_done_trial_of_fewer_steps_is_compared(sweep):
    write(sweep, {1e-4: 60, 5e-5: 40})
    write_trial(sweep, axes={"optim.lr": 1e-5, "seed": 0}, margins=margins_of(50), prompts=PROMPTS, steps=8)
    assert len(answer(load(sweep)).standings) == 3


def test_seeds_of_adapter_and_data_make_one_setting(sweep):
    for seed in (0, 1):
        for data_seed in (3, 4):
            axes = {"seed": seed, "optim.lr": 1e-4, "data.seed": data_seed}
            write_trial(sweep, axes=axes, margins=margins_of(50 + seed + data_seed), prompts=PROMPTS)
    write_trial(sweep, axes={"optim.lr": 5e-5, "seed": 0}, margins=margins_of(50), prompts=PROMPTS)
    found = answer(load(sweep))
    assert [(s.axes, len(s.trials)) for s in found.standings] == [({"optim.lr": 1e-4}, 4), ({"optim.lr": 5e-5}, 1)]


def test_seeds_crossed_with_data_seeds_are_no_draws_of_their_own(sweep):
    """Eight trials a setting, but only two orders of the pairs, which matter: fails where the trials count as eight draws."""
    for lr, by_data in ((1e-4, (72, 60)), (5e-5, (56, 44))):
        for data_seed, right in enumerate(by_data):
            for seed in range(4):
                axes = {"optim.lr": lr, "seed": seed, "data.seed": data_seed}
                write_trial(sweep, axes=axes, margins=margins_of(right), prompts=PROMPTS)
    found = answer(load(sweep))
    assert found.verdict == "no clear winner"
    assert " of 80 held-out pairs (40 prompts, 8 trials each over seed and data.seed) right" in found.sentence
    for path in sweep.glob("*/trial.json"):  # the same scores from eight draws
        trial = json.loads(path.read_text())
        axes = trial["axes"]
        own = {"optim.lr": axes["optim.lr"], "seed": axes["seed"] + 4 * axes["data.seed"]}
        path.write_text(json.dumps(trial | {"axes": own}))
    apart = answer(load(sweep))
    assert apart.verdict == "clear winner"
    assert apart.standings[0].accuracy == found.standings[0].accuracy


def test_trials_whose_seeds_nobody_knows_count_one_by_one(sweep):
    for lr, right in ((1e-4, 60), (5e-5, 50)):
        for trial in range(3):
            path = write_trial(
                sweep, axes={"optim.lr": lr}, margins=margins_of(right + trial), prompts=PROMPTS, name=f"{lr}-{trial}"
            )
            (path / "facts.json").unlink()
    alike = answer(load(sweep)).standings[0]
    for path in sweep.glob("*/trial.json"):
        trial = json.loads(path.read_text())
        path.write_text(json.dumps(trial | {"axes": trial["axes"] | {"seed": trial["number"]}}))
    known = answer(load(sweep)).standings[0]
    assert known.accuracy_interval == alike.accuracy_interval


def test_an_axis_is_judged_on_the_settings_that_its_values_share(sweep):
    right = {(1e-4, 0.1): 70, (1e-4, 0.3): 60, (5e-5, 0.1): 50, (5e-5, 0.3): 40, (1e-4, 0.5): 0}
    for (lr, beta), n in right.items():
        for seed in (0, 1):
            axes = {"optim.lr": lr, "loss.beta": beta, "seed": seed}
            write_trial(sweep, axes=axes, margins=margins_of(n), prompts=PROMPTS)
    found = answer(load(sweep))
    effects = {(effect.axis, effect.value): effect for effect in found.effects}
    assert [*effects] == [("optim.lr", 5e-5), ("optim.lr", 1e-4)] + [("loss.beta", b) for b in (0.1, 0.3, 0.5)]
    assert effects["optim.lr", 1e-4].accuracy == pytest.approx(65 / 80)  # beta 0.5 was tried with one lr only
    assert effects["optim.lr", 5e-5].accuracy == pytest.approx(45 / 80)
    assert effects["optim.lr", 1e-4].settings == 2
    assert [effects["loss.beta", b].accuracy for b in (0.1, 0.3, 0.5)] == pytest.approx([70 / 80, 60 / 80, 0])
    for effect in found.effects:
        assert effect.accuracy_interval.low <= effect.accuracy <= effect.accuracy_interval.high
        assert effect.margin_interval.low <= effect.margin <= effect.margin_interval.high


def test_an_axis_without_shared_settings_is_judged_on_all(sweep):
    for lr, beta, n in ((1e-4, 0.1, 70), (1e-4, 0.2, 60), (5e-5, 0.3, 50)):
        write_trial(sweep, axes={"optim.lr": lr, "loss.beta": beta}, margins=margins_of(n), prompts=PROMPTS)
    found = answer(load(sweep))
    effects = {(effect.axis, effect.value): effect for effect in found.effects}
    assert effects["optim.lr", 1e-4].accuracy == pytest.approx(65 / 80)
    assert (effects["optim.lr", 1e-4].settings, effects["optim.lr", 5e-5].settings) == (2, 1)


def test_kl_and_answer_lengths_are_means_of_the_trials(sweep):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for seed, answers in ((0, ["a b a b", "a b"]), (1, ["a"])):
        rows = [
            {"step": 20, "prompt": [{"role": "user", "content": "b"}], "reference": "b", "policy": a} for a in answers
        ]
        axes = {"optim.lr": 1e-4, "seed": seed}
        path = write_trial(sweep, axes=axes, margins=margins_of(60), prompts=PROMPTS, kl=0.2 + seed, samples=rows)
        tokenizer.save(str(path / "final" / "tokenizer.json"))
    write(sweep, {5e-5: 10})
    first, second = answer(load(sweep)).standings
    assert first.kl == pytest.approx(0.7)
    assert first.tokens == pytest.approx((3 + 1) / 2)
    assert (second.kl, second.tokens) == (0.25, None)
    (first.trials[0].path / "final" / "tokenizer.json").write_text('{"torn')
    assert answer(load(sweep)).standings[0].tokens == 1  # of the other trial


def test_the_answer_is_the_same_every_time(sweep):
    rng = np.random.default_rng(0)
    for lr in (1e-4, 5e-5, 1e-5):
        for seed in (0, 1, 2):
            margins = noisy(rng, 0.7)
            write_trial(sweep, axes={"optim.lr": lr, "seed": seed}, margins=margins, prompts=PROMPTS)
    found = load(sweep)
    assert answer(found).standings == answer(found).standings
    one, other = answer(found).standings[1], answer(found, seed=1).standings[1]
    assert one.behind_interval != other.behind_interval
    assert one.behind_interval.high == pytest.approx(other.behind_interval.high, abs=0.02)
