"""The page of scores in a browser: it needs nothing else, sorts, filters, and shows texts as texts."""

import json
import re
import shutil
from pathlib import Path

import pytest
from doors import door_of, run_words

HOSTILE = "<img src=x onerror=\"window.owned=1\"></script><script>window.owned=1</script> & 'q' {{data}}"


@pytest.fixture(scope="module")
def page(lab, tmp_path_factory):
    """The page of both runs on 31 pairs, one of which is markup."""
    from dpo_lab.inference.evaluate import evaluate

    root = tmp_path_factory.mktemp("page")
    answers = [("Because " * (1 + i % 5), f"No {i}!") for i in range(30)]
    answers = [(bad, good) if i % 3 == 0 else (good, bad) for i, (good, bad) in enumerate(answers)]
    rows = [{"prompt": f"Question {i}?", "chosen": c, "rejected": r} for i, (c, r) in enumerate(answers)]
    rows.append({"prompt": HOSTILE, "chosen": f"{HOSTILE} good", "rejected": "\u202ebad 你好"})
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("data=file", f"data.path={root / 'pairs.jsonl'}", "evaluate.split=all", "evaluate.resamples=200")
    config, tree, given = door_of("evaluate", lab, run_words(*lab.runs), *words, f"output={root / 'out'}")
    evaluate(config, tree, Path(), given=given)
    return root / "out" / "report.html"


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


@pytest.fixture
def visit(browser, page):
    contexts = []

    def opened(width=1400, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab, faults = context.new_page(), []
        tab.on("pageerror", lambda e: faults.append(str(e)))
        tab.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("request", lambda r: faults.append(r.url) if not r.url.startswith("file:") else None)
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready]", timeout=60_000)
        contexts.append((context, tab, faults))
        return tab

    yield opened
    for context, tab, faults in contexts:
        assert faults == []
        assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        context.close()


def names(tab, table):
    return tab.evaluate(
        f"[...document.querySelectorAll('#{table} tbody tr')].map((r) => r.cells[0].firstChild.textContent)"
    )


def test_the_page_needs_nothing_else_and_holds_no_markup_of_the_data(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|https?://""", text)
    assert "default-src 'none'" in text
    assert text.count("<script") == 2
    assert HOSTILE[:20] not in text


def test_results_sort_and_the_reference_is_a_row_without_accuracy(lab, visit):
    tab = visit()
    first, second = (run.name for run in lab.runs)
    assert names(tab, "results") == ["reference", first, second]
    assert tab.inner_text("#results tbody tr.reference td:nth-child(2)") == "n/a"
    head = tab.locator("#results th", has_text="margin, nats").locator("button")
    head.click()
    assert names(tab, "results") == [second, first, "reference"]
    head.click()
    assert names(tab, "results") == ["reference", first, second]
    assert tab.locator("#comparisons tbody tr").count() == 1
    assert tab.inner_text("#comparisons tbody td:nth-child(3)") == "no clear difference"


def test_pairs_filter_search_order_and_turn(visit):
    tab = visit()
    assert tab.inner_text("#where") == "1–25 of 31"
    tab.click("#next")
    assert tab.inner_text("#where") == "26–31 of 31"
    tab.select_option("#filter", "wrong")
    wrong = int(tab.inner_text("#where").split()[-1])
    assert 0 < wrong < 31
    tab.select_option("#filter", "right")
    assert wrong + int(tab.inner_text("#where").split()[-1]) == 31
    tab.select_option("#filter", "")
    tab.select_option("#order", "low")
    margins = [
        float(text.replace("−", "-")) for text in re.findall(r"margin ([+−]?[\d.]+)", tab.inner_text("#pairs"))[::2]
    ]
    assert len(margins) == 25
    assert margins == sorted(margins)
    tab.fill("#search", "question 17")
    assert tab.inner_text("#where") == "1–1 of 1"
    assert tab.inner_text("#pairs mark").lower() == "question 17"
    tab.fill("#search", "nowhere at all")
    assert "No pair is like that" in tab.inner_text("#pairs")


def test_markup_and_turned_text_of_the_data_stay_text(visit):
    tab = visit(width=390, scheme="dark")
    tab.fill("#search", "onerror")
    assert HOSTILE in tab.inner_text("#pairs .prompt .text-block")
    assert "\\u202ebad 你好" in tab.inner_text("#pairs .answers")
    assert tab.evaluate("window.owned") is None
    assert tab.locator("#pairs img").count() == 0
