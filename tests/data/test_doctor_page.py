"""The page: one file, all pairs, and no text of the data that a browser would obey."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from toys import family, pair

from dpo_lab.data.doctor.findings import Finding, Histogram, Place, Report
from dpo_lab.data.doctor.page import PageItem, write_page
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import tokenize

HOSTILE = "</script><script>window.owned=1</script><img src=x onerror='window.owned=2'>{{data}} &amp; \u2028 \x00"


@pytest.fixture(scope="module")
def template():
    return Template(family("chatml"), "auto")


def items(template, n=60):
    pairs = [pair(f"question {i} 你好", f"good {i} 😀", f"bad {i}", i) for i in range(1, n + 1)]
    pairs[2] = pair(HOSTILE, HOSTILE + "good", HOSTILE + "bad", 3)
    examples, _ = tokenize(pairs, template, max_length=4096, truncation="drop", limit=None)
    assert len(examples) == n
    made = [
        PageItem("train" if i < n - 10 else "heldout", "data/a.json", e.pair.row, json.dumps({"q": e.pair.prompt[0]["content"], "big": 2**60}), e, cut=i == 5)
        for i, e in enumerate(examples)
    ]  # fmt: skip
    return [*made, PageItem("train", "data/a.json", n + 1, "{broken", None, "empty answer")]


REPORT = Report(
    findings=(
        Finding("leaked-prompts", "error", f"4 pairs {HOSTILE}", "Split.", 4, 0.1, (Place("data/a.json", 7), Place("", 9)), HOSTILE),
        Finding("length-bias", "info", "Longer wins.", "Balance."),
    ),
    numbers={"tokens/prompt/median": 5.0, "words/accuracy": 0.66},
    histograms=(Histogram("prompt", (1.0, 4.0, 7.0, 11.0), (8, 0, 1)),),
    sizes={"train": 50, "heldout": 10},
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory, template):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, title=f"Data {HOSTILE}", report=REPORT, items=items(template), template=template)
    return path


def embedded(text):
    packed = re.search(r'id="data">([A-Za-z0-9+/=]+)</script>', text)
    assert packed
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_the_page_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(
        r"""(?:src|href)\s*=|url\(|@import|https?://""", text.replace(HOSTILE, "").replace("src=x", "")
    )
    assert "default-src 'none'" in text


def test_no_text_of_the_data_is_markup(page):
    text = page.read_text(encoding="utf-8")
    assert "<img" not in text
    assert "window.owned=1</script>" not in text
    assert text.count("<script") == 2
    assert "&lt;img src=x" in text


def test_every_item_is_in_the_page(page, template):
    data = embedded(page.read_text(encoding="utf-8"))
    assert [item["n"] for item in data["items"]] == list(range(1, 62))
    [example] = tokenize([pair("question 1 你好", "good 1 😀", "bad 1", 1)], template, max_length=99, truncation="drop", limit=None)[0]  # fmt: skip
    ids = [[data["vocab"][place][0] for place in part] for part in data["items"][0]["t"]]
    assert ids == [example.prompt_ids, example.chosen_ids, example.rejected_ids]
    assert json.loads(data["items"][0]["r"])["big"] == 2**60
    assert str(2**60) in data["items"][0]["r"], "numbers stay as they are"
    assert (data["items"][60]["r"], data["items"][60]["t"], data["items"][60]["d"]) == ("{broken", None, "empty answer")


def test_the_page_is_the_same_each_time(page, tmp_path, template):
    again = tmp_path / "again.html"
    write_page(again, title=f"Data {HOSTILE}", report=REPORT, items=items(template), template=template)
    assert again.read_bytes() == page.read_bytes()


def test_a_thousand_pairs_of_two_hundred_words_are_less_than_a_megabyte(tmp_path, template):
    import random

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(2000)]
    pairs = [
        pair(" ".join(rng.choices(words, k=100)), " ".join(rng.choices(words, k=100)), "no", i) for i in range(1000)
    ]
    examples, _ = tokenize(pairs, template, max_length=4096, truncation="drop", limit=None)
    path = tmp_path / "large.html"
    write_page(path, title="x", report=Report(), items=[PageItem("train", "a", e.pair.row, "{}", e) for e in examples], template=template)  # fmt: skip
    assert path.stat().st_size < 2**20


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


@pytest.fixture
def tab(browser, page):
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    opened.faults = []
    opened.on("pageerror", lambda e: opened.faults.append(str(e)))
    opened.on("request", lambda r: opened.faults.append(r.url) if not r.url.startswith("file:") else None)
    opened.goto(page.as_uri())
    opened.wait_for_selector("article")
    yield opened
    assert opened.faults == []
    context.close()


def where(tab):
    return tab.inner_text("#where")


def rows(tab):
    return [int(re.search(r"row (\d+)", text)[1]) for text in tab.locator("article > h2").all_inner_texts()]  # type: ignore[index]


def search(tab, text, count):
    tab.fill("#search", text)
    tab.locator("#where", has_text=re.compile(f" of {count}$")).wait_for()


def test_pages_are_turned_by_button_and_key(tab):
    assert where(tab) == "1–25 of 61"
    assert rows(tab) == list(range(1, 26))
    tab.click("#next")
    assert rows(tab) == list(range(26, 51))
    tab.keyboard.press("ArrowRight")
    assert where(tab) == "51–61 of 61"
    tab.keyboard.press("ArrowRight")
    assert where(tab) == "51–61 of 61"
    tab.keyboard.press("ArrowLeft")
    assert where(tab) == "26–50 of 61"
    tab.select_option("#size", "100")
    assert where(tab) == "1–61 of 61"


def test_the_search_finds_prompts_answers_rows_and_reasons(tab):
    for text, count, row in (("question 17", 1, 17), ("GOOD 23 😀", 1, 23), ("broken", 1, 61), ("empty answer", 1, 61)):
        search(tab, text, count)
        tab.locator("article > h2", has_text=f"row {row}").wait_for()
        assert rows(tab) == [row]
    search(tab, "never said", 0)
    assert tab.inner_text("#pairs") == "No pair matches."
    search(tab, "", 61)


def test_filters_narrow_the_pairs(tab):
    tab.select_option("#split", "heldout")
    assert rows(tab) == list(range(51, 61))
    tab.select_option("#split", "")
    tab.select_option("#status", "dropped")
    assert rows(tab) == [61]
    tab.locator("article", has_text="Left out: empty answer.").wait_for()
    tab.select_option("#status", "cut")
    assert rows(tab) == [6]
    tab.select_option("#status", "")
    tab.select_option("#finding", "leaked-prompts")
    assert rows(tab) == [7, 9]
    tab.select_option("#finding", "")
    tab.click("[data-finding='0']")
    assert rows(tab) == [7, 9]


def test_hostile_texts_are_shown_and_not_obeyed(tab):
    search(tab, "onerror", 1)
    assert rows(tab) == [3]
    tab.wait_for_selector("article .tokens")
    assert tab.evaluate("window.owned") is None
    assert tab.locator("img").count() == 0
    assert HOSTILE.split("{{")[0] in tab.inner_text("article .rendered .chosen")
    assert "{{data}} &amp; \\u2028 \\u0000good" in tab.inner_text("article .rendered .chosen")


def test_raw_rendered_and_tokens_stand_side_by_side(tab):
    tab.wait_for_selector("article .tokens")
    first = tab.locator("article").first
    assert '"q": "question 1 你好"' in first.locator(".raw").inner_text()
    assert "<|im_start|>user\nquestion 1 你好<|im_end|>" in first.locator(".rendered .prompt").inner_text()
    tokens = first.locator(".tokens .chosen .t").all_inner_texts()
    assert tokens == [*"good 1 ", "😀", "<|im_end|>"]
    lefts = [first.locator(f".columns > .{name}").bounding_box()["x"] for name in ("raw", "rendered", "tokens")]
    assert lefts == sorted(lefts)
    assert len(set(lefts)) == 3
    tab.click(".views [data-view=tokens]")
    assert first.locator(".raw").is_hidden()


def test_ids_are_shown_on_request_and_on_hover(tab, template):
    tab.wait_for_selector("article .tokens")
    emoji = ",".join(map(str, template.encode(["😀"])[0]))
    ids = tab.locator("article").first.locator(".tokens .chosen .id")
    assert ids.first.is_hidden()
    tab.click("#ids")
    assert ids.nth(7).inner_text() == emoji
    tab.keyboard.press("i")
    assert ids.first.is_hidden()
    tab.locator("article").first.locator(".tokens .chosen .t", has_text="😀").hover()
    assert tab.inner_text("#tip") == "ids " + emoji.replace(",", ", ")


def test_only_the_page_that_is_seen_is_built(tab):
    tab.select_option("#size", "25")
    assert tab.locator("article").count() == 25
    assert 0 < tab.locator("article .columns").count() < 25


def test_a_phone_shows_one_column_and_no_sideways_scrolling(browser, page):
    context = browser.new_context(viewport={"width": 360, "height": 740})
    opened = context.new_page()
    opened.goto(page.as_uri())
    opened.wait_for_selector("article", state="attached")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    opened.locator("article").first.scroll_into_view_if_needed()
    opened.wait_for_selector("article .rendered")
    assert opened.locator("article .raw").first.is_hidden()
    context.close()
