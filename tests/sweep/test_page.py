"""The report's page, in a browser: it needs no network, shows no data as markup, and its controls work."""

import re
import shutil
from pathlib import Path

import pytest
from folders import write_book, write_trial
from report_folders import HOSTILE, write_sweep

from dpo_lab.sweep.contents import gather
from dpo_lab.sweep.page_data import page_data, smoothed, thinned
from dpo_lab.sweep.report import write_report
from dpo_lab.sweep.results import load
from dpo_lab.sweep.statistics import answer

CHARTS = ("curves", "pareto", "heat", "parallel")


def data_of(folder):
    sweep = load(folder)
    return page_data(gather(sweep, answer(sweep)))


# What is drawn


def test_smoothing_keeps_a_line_straight_and_takes_noise_away():
    line = [0.5 * i for i in range(200)]
    assert smoothed(line) == pytest.approx(line)
    noisy = [(-1.0) ** i for i in range(200)]
    assert max(abs(v) for v in smoothed(noisy)[10:-10]) < 0.2
    assert smoothed(noisy)[0] == noisy[0]
    assert len(smoothed(noisy)) == 200


def test_thinning_keeps_both_ends():
    assert thinned(5, 10) == [0, 1, 2, 3, 4]
    places = thinned(1001, 50)
    assert len(places) == 50
    assert (places[0], places[-1]) == (0, 1000)
    assert places == sorted(set(places))


def test_curves_are_those_recorded_without_the_accuracy_of_an_untrained_policy(tmp_path):
    write_sweep(tmp_path, values={"optim.lr": [1e-4, 2e-4]}, seeds=(0,), steps=60, pairs=12, losses=False)
    data = data_of(tmp_path)
    assert [key for key, *_ in data["metrics"]][:3] == ["val/rewards/accuracies", "val/logratios/margins", "val/kl"]
    [(_, steps, values), _] = data["curves"]["val/logratios/margins"]
    assert steps == [0, 10, 20, 30, 40, 50, 60]
    best = data["trials"].index(next(t for t in data["trials"] if t["setting"] == 0))
    assert best == 0
    assert values[-1] == pytest.approx(data["settings"][0]["margin"][0] * (1 - 2.718281828**-3), rel=1e-3)
    assert data["curves"]["val/rewards/accuracies"][0][1] == [10, 20, 30, 40, 50, 60]
    assert data["trials"][0]["batch"] == 16
    assert len(data["curves"]["train/loss"][0][1]) == 60


def test_points_of_many_runs_are_capped(tmp_path):
    write_book(tmp_path, {"optim.lr": [1e-4]})
    for seed in range(3):
        write_trial(tmp_path, axes={"seed": seed}, margins=[1.0] * 8, steps=1500)
    lines = data_of(tmp_path)["curves"]["train/loss"]
    assert [len(steps) for _, steps, _ in lines] == [400] * 3
    assert all((steps[0], steps[-1]) == (1, 1500) for _, steps, _ in lines)


def test_an_axis_with_many_numbers_is_a_range_and_its_heat_map_has_bins(tmp_path):
    values = {"optim.lr": [1e-5 * 1.3**i for i in range(18)]}
    write_sweep(tmp_path, values=values, seeds=(0,), pairs=12, steps=6, losses=False)
    [axis] = data_of(tmp_path)["axes"]
    assert axis["scale"] == "log"
    assert axis["numbers"] == pytest.approx(values["optim.lr"])
    assert axis["cell"] == [i // 3 for i in range(18)]
    assert axis["cells"][0] == "1e-5 … 1.7e-5"


# In a browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((b for name in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(name))), None)
    with api.sync_playwright() as play:
        if found is None and not Path(play.chromium.executable_path).exists():
            pytest.skip("there is no Chromium on this machine")
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = write_sweep(tmp_path_factory.mktemp("sweeps") / "grid", pairs=48)
    write_report(folder)
    return folder


@pytest.fixture
def visit(browser):
    """Opens a page of a sweep; no request, no error and nothing wider than the window may come of it."""
    contexts = []

    def opened(folder, width=1400):
        context = browser.new_context(viewport={"width": width, "height": 900})
        tab = context.new_page()
        faults = []
        tab.on("pageerror", lambda e: faults.append(str(e)))
        tab.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("request", lambda r: faults.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        tab.goto((folder / "report.html").as_uri())
        tab.wait_for_selector("html[data-ready]", timeout=60_000)
        contexts.append((context, tab, faults))
        return tab

    yield opened
    for context, tab, faults in contexts:
        assert faults == []
        assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        context.close()


def draw_all(tab):
    """Scroll through the page, so that every chart is drawn."""
    for place in ("curves", "effects", "heat", "parallel", "pareto", "facts"):
        section = tab.locator(f"#{place}-section")
        if section.count():
            section.scroll_into_view_if_needed()
            tab.wait_for_timeout(150)
    tab.wait_for_selector(":is(.chart, #heat, #parallel):not([data-drawn])", state="detached", timeout=60_000)


def rows(tab):
    return tab.evaluate("[...document.querySelectorAll('#board tbody:not([hidden])')].map((b) => b.rows[0].cells[1].textContent)")  # fmt: skip


def head(tab, name):
    return tab.locator(f"#board th[data-sort='{name}']")


@pytest.mark.parametrize("width", [1400, 420])
def test_every_section_is_drawn_and_nothing_moves(visit, grid, width):
    tab = visit(grid, width)
    height = tab.evaluate("document.documentElement.scrollHeight")
    draw_all(tab)
    assert abs(tab.evaluate("document.documentElement.scrollHeight") - height) <= 24
    titles = [re.sub(r"\s\d.*", "", text) for text in tab.locator("h2").all_inner_texts()]
    assert titles == [
        *("Leaderboard", "Curves", "Effect of each axis", "Two axes at a time", "All axes at a time", "Pareto front"),
        *("Did not count", "Sample answers", "The winner's command", "What to try next", "Facts"),
    ]
    assert tab.locator("#curves .scatterlayer .trace").count() == 6
    assert tab.locator("[data-effect] .main-svg").count() >= 3
    assert tab.locator("#heat td").count() == 9
    assert tab.locator("#parallel .line").count() == 18
    assert tab.locator("#pareto .scatterlayer .trace").count() == 3


def test_the_leaderboard_sorts_by_any_column_and_back(visit, grid):
    tab = visit(grid)
    first = rows(tab)
    assert len(first) == 18
    head(tab, "margin").locator("button").click()
    assert head(tab, "margin").get_attribute("aria-sort") == "descending"
    margins = tab.evaluate("[...document.querySelectorAll('#board tr.setting td[data-v]:nth-child(7)')].map((c) => Number(c.dataset.v))")  # fmt: skip
    assert len(margins) == 18
    assert margins == sorted(margins, reverse=True)
    assert rows(tab) != first
    head(tab, "axis2").locator("button").click()
    ranks = tab.locator("#board tr.setting td:nth-child(5)").all_inner_texts()
    assert ranks == ["8"] * 9 + ["16"] * 9  # as numbers
    head(tab, "axis2").locator("button").click()
    assert tab.locator("#board tr.setting td:nth-child(5)").all_inner_texts() == ["16"] * 9 + ["8"] * 9
    head(tab, "place").locator("button").click()
    assert rows(tab) == first


def test_a_row_opens_to_its_trials(visit, grid):
    tab = visit(grid)
    body = tab.locator("#board tbody").first
    assert body.locator("tr.trial:visible").count() == 0
    body.locator("tr.setting").click()
    assert body.locator("tr.trial:visible").count() == 2
    assert "seed 0" in body.inner_text()
    assert "seed 1" in body.inner_text()
    link = body.locator("tr.trial a:visible").first.get_attribute("href")
    assert link is not None
    assert (grid / link).is_file()
    body.locator(".fold").click()
    assert body.locator("tr.trial:visible").count() == 0


def test_long_leaderboards_are_cut_until_asked(visit, tmp_path):
    write_sweep(tmp_path, values={"optim.lr": [1e-5 * i for i in range(1, 31)]}, seeds=(0,), pairs=12, steps=6, losses=False)  # fmt: skip
    write_report(tmp_path)
    tab = visit(tmp_path)
    assert len(rows(tab)) == 20
    tab.click("#all")
    assert len(rows(tab)) == 30
    head(tab, "axis0").locator("button").click()
    assert len(rows(tab)) == 30
    tab.click("#all")
    assert len(rows(tab)) == 20
    assert tab.locator("#board tr.setting td:nth-child(3)").first.inner_text() == "1e-5"
    draw_all(tab)


def test_the_curves_change_with_metric_and_unit(visit, grid):
    tab = visit(grid)
    draw_all(tab)
    curves = "document.getElementById('curves')"
    assert tab.evaluate(f"{curves}.layout.yaxis.title.text") == "held-out accuracy"
    longest = tab.evaluate(f"Math.max(...{curves}.data.flatMap((t) => t.x))")
    assert longest == 60
    tab.click("#unit button[data-value=pairs]")
    assert tab.evaluate(f"Math.max(...{curves}.data.flatMap((t) => t.x))") == 60 * 16
    assert tab.evaluate(f"{curves}.layout.xaxis.title.text") == "pairs"
    tab.select_option("#metric", label="train loss")
    assert tab.evaluate(f"{curves}.layout.yaxis.title.text") == "train loss"
    assert "smoothed" in tab.inner_text("#metric-note")
    assert tab.evaluate(f"{curves}.data.at(-1).line.width > {curves}.data[0].line.width")  # the best lies on top
    assert tab.evaluate(f"{curves}.data.some((t) => t.text.includes('lr 2e-4, beta 0.1, r 16, seed 0'))")


def test_the_heat_map_shows_means_over_the_other_axes(visit, grid):
    tab = visit(grid)
    draw_all(tab)
    settings = data_of(grid)["settings"]
    cell = tab.locator("#heat tbody tr").nth(1).locator("td").nth(2)  # beta 0.1, lr 2e-4
    own = [s["accuracy"][0] for s in settings if s["at"][:2] == [2, 1]]
    assert len(own) == 2
    assert cell.inner_text() == f"{100 * sum(own) / 2:.1f} %"
    tab.select_option("#heat-y", label="r")
    assert tab.locator("#heat td").count() == 6
    tab.select_option("#heat-x", label="r")  # the same axis twice: they change places
    assert tab.locator("#heat-y").input_value() == "0"
    tab.click("#heat-measure button[data-value=margin]")
    own = [s["margin"][0] for s in settings if s["at"][0] == 2 and s["at"][2] == 1]
    assert float(tab.locator("#heat tbody tr").nth(2).locator("td").nth(1).inner_text()) == pytest.approx(sum(own) / len(own), abs=0.006)  # fmt: skip


def test_the_pareto_front_is_what_no_other_setting_beats(visit, grid):
    tab = visit(grid)
    draw_all(tab)
    settings = data_of(grid)["settings"]
    for measure in ("accuracy", "margin"):
        tab.click(f"#pareto-measure button[data-value={measure}]")
        front = sorted(
            s["kl"]
            for s in settings
            if not any(
                o["kl"] <= s["kl"] and o[measure][0] >= s[measure][0] and (o["kl"], o[measure]) != (s["kl"], s[measure])
                for o in settings
            )
        )
        assert tab.evaluate("document.getElementById('pareto').data[2].x") == pytest.approx(front)


def test_settings_are_selected_along_the_parallel_axes(visit, grid):
    tab = visit(grid)
    draw_all(tab)
    tab.locator("#parallel").scroll_into_view_if_needed()
    grip = tab.locator("#parallel .grip").nth(0).bounding_box()  # of lr: three values
    assert grip is not None
    x = grip["x"] + grip["width"] / 2
    tab.mouse.move(x, grip["y"] + 4)
    tab.mouse.down()
    tab.mouse.move(x, grip["y"] + grip["height"] / 6)
    tab.mouse.move(x, grip["y"] + grip["height"] / 3)
    tab.mouse.up()
    assert "6 of 18 settings selected" in tab.inner_text("#parallel-told")
    assert tab.locator("#parallel .off").count() == 12
    tab.mouse.click(x, grip["y"] + grip["height"] - 20)
    assert tab.locator("#parallel .off").count() == 0


def test_the_winners_command_is_copied(visit, grid):
    tab = visit(grid)
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = tab.locator("#winner-section .copy")
    button.click()
    tab.locator("#winner-section .copy", has_text="Copied").wait_for()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied == tab.inner_text("#winner-section code >> nth=-1")
    assert copied.startswith("python -m dpo_lab data=demo optim.lr=")


def test_no_text_of_the_data_is_read_as_markup(visit, tmp_path):
    folder = tmp_path / "s"
    values = {"loss.beta": [0.05, 0.1], "data.format": ["trl", HOSTILE]}
    write_sweep(folder, values=values, seeds=(0,), pairs=24, hostile=True)
    write_trial(folder, axes={"loss.beta": 1.0, "data.format": "trl"}, state="failed", reason=HOSTILE, name="x'y")
    write_report(folder)
    tab = visit(folder)
    draw_all(tab)
    assert tab.title() == "Sweep s"
    assert tab.locator("img").count() == 0
    assert tab.locator("main script").count() == 0
    assert tab.locator("main b", has_text=re.compile("^b$")).count() == 0
    shown = tab.inner_text("body")
    assert HOSTILE in shown  # in the board, in the prompt and in the reason, as it is
    assert shown.count("{{data}}") > 3
    tab.mouse.move(*_middle(tab, "#pareto"))
    assert tab.title() == "Sweep s"


def _middle(tab, place):
    box = tab.locator(place).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_sections_with_nothing_to_show_are_left_out(visit, tmp_path):
    write_book(tmp_path, {"seed": [0]})
    write_trial(tmp_path, axes={"seed": 0}, margins=[1.0, -1.0] * 8, kl=None)
    write_report(tmp_path)
    tab = visit(tmp_path)
    assert tab.locator("h2").all_inner_texts() == ["Leaderboard", "Curves", "The winner's command", "What to try next", "Facts"]  # fmt: skip
    draw_all(tab)


def test_a_sweep_without_a_result_has_a_page_too(visit, tmp_path):
    write_book(tmp_path, {"optim.lr": [1e-4, 2e-4]})
    for lr in (1e-4, 2e-4):
        write_trial(tmp_path, axes={"optim.lr": lr}, state="failed", reason="out of memory", kind="oom")
    write_report(tmp_path)
    tab = visit(tmp_path)
    assert "Nothing to compare" in tab.inner_text("h1")
    assert "out of memory" in tab.inner_text("#lost-section")
    assert tab.locator("#winner-section").count() == 0
