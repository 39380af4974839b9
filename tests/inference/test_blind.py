"""The page for people: who stands where, that it gives nobody away, and that it can be voted on with the keyboard."""

import base64
import gzip
import json
import re
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from dpo_lab.inference.evals.blind import KEY, PAGE, Match, arrange, write_blind
from dpo_lab.inference.evals.votes import read_votes

HOSTILE = (
    "<img src=x onerror='window.owned=1'><script>window.owned=1</script></script>{{data}} &amp; \u2028\x00 \u202eevil"
)
NAMES = ("reference", "lr3e-2", "outputs/runs/abcdef012345")


def match(number, names, answers=None, question="Why?"):
    ours, theirs = answers or (f"{number}: because of this, says {names[0][0]}1", f"{number}: no idea")
    prompt = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{question} {number}"})
    return Match(f"p{number}", prompt, names, (ours, theirs))


def tournament(names, n):
    """Every two names on n prompts; n may differ from pair to pair."""
    counts = n if isinstance(n, list) else [n] * (len(names) * (len(names) - 1) // 2)
    return [
        match(i, pair, (f"{pair[0]} on {i}", f"{pair[1]} on {i}"))
        for pair, many in zip(combinations(names, 2), counts, strict=True)
        for i in range(many)
    ]


def lefts(shown):
    """How often each name is left and right, in all and by pair."""
    counts: Counter[tuple[object, str, str]] = Counter()
    for s in shown:
        left, right = s.match.names[::-1] if s.turned else s.match.names
        for whose in ("all", s.match.names):
            counts[whose, left, "left"] += 1
            counts[whose, right, "right"] += 1
    return counts


# Who stands where


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("names", "n"),
    [
        ("ab", 10),
        ("ab", 11),
        ("abc", 6),
        ("abc", 7),
        ("abcd", 5),
        ("abcde", 3),
        ("abcd", [3, 4, 0, 1, 5, 2]),
        ("ab", 1),
    ],
)
def test_each_contestant_is_as_often_left_as_right(names, n, seed):
    matches = tournament(names, n)
    shown = arrange(matches, seed)
    assert sorted(s.match.prompt for s in shown) == sorted(m.prompt for m in matches)
    counts = lefts(shown)
    for whose in {whose for whose, _, _ in counts}:
        for name in names:
            assert abs(counts[whose, name, "left"] - counts[whose, name, "right"]) <= 1


def test_order_and_places_are_a_function_of_the_seed():
    matches = tournament("ab", 40)
    one, same, other = arrange(matches, 1), arrange(matches, 1), arrange(matches, 2)
    assert one == same
    assert [s.match.prompt for s in one] != [s.match.prompt for s in other]
    assert [s.match.prompt for s in one] != [m.prompt for m in matches]
    turned = [s.turned for s in sorted(one, key=lambda s: int(s.match.prompt[1:]))]
    assert turned not in ([True, False] * 20, [False, True] * 20)
    assert turned != [s.turned for s in sorted(other, key=lambda s: int(s.match.prompt[1:]))]


# What the page holds


def content_of(folder):
    page = (folder / PAGE).read_text(encoding="utf-8")
    packed = re.search(r'id="data">([^<]*)<', page)
    assert packed is not None
    return page, json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_nobody_is_named_in_the_page_and_the_key_has_them_all(tmp_path):
    matches = [match(i, pair, (f"one {i} {j}", f"two {i} {j}")) for j, pair in enumerate(combinations(NAMES, 2)) for i in range(4)]  # fmt: skip
    shown = arrange(matches, 0)
    name = write_blind(tmp_path, shown)
    page, data = content_of(tmp_path)
    for text in (page, json.dumps(data)):
        assert not any(hidden in text for hidden in (*NAMES, str(tmp_path), "p0"))
    assert set(data) == {"page", "items"}
    key = json.loads((tmp_path / KEY).read_text(encoding="utf-8"))
    assert key["page"] == data["page"] == name
    for item, _, left, right in data["items"]:
        [entry] = key["items"][item]
        [found] = [m for m in matches if m.prompt == entry["prompt"] and {*m.names} == {entry["left"], entry["right"]}]
        whose = dict(zip(found.names, found.answers, strict=True))
        assert (whose[entry["left"]], whose[entry["right"]]) == (left, right)


def test_the_same_call_writes_the_same_page(tmp_path):
    shown = arrange(tournament("ab", 9), 3)
    names = [write_blind(tmp_path / part, shown) for part in "xy"]
    assert names[0] == names[1]
    assert (tmp_path / "x" / PAGE).read_bytes() == (tmp_path / "y" / PAGE).read_bytes()


def test_the_page_asks_nothing_of_the_network(tmp_path):
    write_blind(tmp_path, arrange(tournament("ab", 2), 0))
    page, _ = content_of(tmp_path)
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']|https?:|@import|url\(""", page)


# Votes


def votes_file(folder, name, page, votes, *, session="s1", saved=1):
    content = {"page": page, "session": session, "rater": "", "saved": saved, "votes": votes}
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_votes_are_read_back_as_who_won(tmp_path):
    shown = arrange(tournament("ab", 6), 0)
    page = write_blind(tmp_path, shown)
    votes_file(tmp_path, "votes-1.json", page, {shown[0].id: "left", shown[1].id: "right", shown[2].id: "tie"})
    votes = read_votes(tmp_path, page, shown)
    assert (votes.n, votes.raters, votes.problems, votes.agreement) == (3, 1, (), None)
    assert votes.side(shown[0]) == ("second" if shown[0].turned else "first")
    assert votes.side(shown[1]) == ("first" if shown[1].turned else "second")
    assert [votes.side(s) for s in shown[2:]] == ["tie", None, None, None]


def test_of_several_raters_most_decide_and_of_one_the_last_file_counts(tmp_path):
    shown = arrange(tournament("ab", 3), 0)
    page = write_blind(tmp_path, shown)
    one, two, three = (s.id for s in shown)
    votes_file(tmp_path, "votes.json", page, {one: "right", two: "left"}, session="anna", saved=1)
    votes_file(tmp_path, "votes (1).json", page, {one: "left", two: "left", three: "left"}, session="anna", saved=2)
    votes_file(tmp_path, "votes-b.json", page, {one: "right", two: "left", three: "tie"}, session="ben", saved=1)
    votes_file(tmp_path, "votes-b2.json", page, {one: "left", two: "right"}, session="ben", saved=2)
    votes_file(tmp_path, "votes-c.json", page, {one: "right"}, session="cleo", saved=9)
    votes = read_votes(tmp_path, page, shown)
    assert (votes.n, votes.raters) == (6, 3)
    whose = ["second" if s.turned else "first" for s in shown]  # who stands left
    assert [votes.side(s) for s in shown] == [whose[0], "tie", whose[2]]
    assert votes.agreement == pytest.approx(1 / 4)


def test_files_that_are_no_votes_on_this_page_are_named_and_left_out(tmp_path):
    shown = arrange(tournament("ab", 2), 0)
    page = write_blind(tmp_path, shown)
    item = shown[0].id
    votes_file(tmp_path, "votes-other.json", "0" * 16, {item: "left"})
    votes_file(tmp_path, "votes-item.json", page, {"no such": "left"})
    votes_file(tmp_path, "votes-choice.json", page, {item: "both"})
    votes_file(tmp_path, "votes-list.json", page, [])
    votes_file(tmp_path, "votes-list-choice.json", page, {item: ["left"]})
    (tmp_path / "votes-torn.json").write_text('{"page": ', encoding="utf-8")
    (tmp_path / "votes-deep.json").write_text("[" * 100_000, encoding="utf-8")
    votes_file(tmp_path, "votes-session.json", page, {item: "left"}, session=["x"])
    votes = read_votes(tmp_path, page, shown)
    assert (votes.n, votes.raters) == (0, 0)
    assert {p.partition(" ")[0] for p in votes.problems} == {p.name for p in tmp_path.glob("votes*.json")}
    assert len(votes.problems) == 8
    assert any("votes-other.json" in p and "on other answers" in p for p in votes.problems)


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
def page(tmp_path_factory):
    """Five matches, one of them hostile, and one with an empty answer and a long one."""
    long = "\n".join(f"Line {i} of a long answer, which goes on and on without an end in sight." for i in range(80))
    matches = [match(i, ("new", "old")) for i in range(3)]
    matches += [match(3, ("new", "old"), (HOSTILE, "plain")), match(4, ("new", "old"), ("", long))]
    folder = tmp_path_factory.mktemp("blind")
    shown = arrange(matches, 0)
    write_blind(folder, shown)
    return folder, shown


@pytest.fixture
def tab(browser, page):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    opened = opened_in(context, page)
    yield opened
    assert opened.faults == []
    assert opened.evaluate("window.owned") is None
    context.close()


def opened_in(context, page):
    opened = context.new_page()
    opened.faults = []
    opened.on("pageerror", lambda e: opened.faults.append(str(e)))
    opened.on("request", lambda r: opened.faults.append(r.url) if not r.url.startswith(("file:", "blob:")) else None)
    opened.goto((page[0] / PAGE).as_uri())
    opened.wait_for_function("document.getElementById('where').textContent !== 'reading'")
    return opened


def where(tab):
    return tab.inner_text("#where")


def saved(tab):
    with tab.expect_download() as download:
        tab.keyboard.press("s")
    return download.value.suggested_filename, json.loads(Path(download.value.path()).read_text(encoding="utf-8"))


def test_the_keyboard_votes_and_takes_back_and_the_votes_come_home(tab, page, tmp_path):
    folder, shown = page
    assert where(tab) == "0 of 5 voted on"
    seen = []
    for key in ("ArrowLeft", "2", "0", "ArrowRight", "1"):
        seen.append(tab.locator("#asked").text_content())
        tab.keyboard.press(key)
    assert len(set(seen)) == 5
    assert where(tab) == "5 of 5 voted on"
    assert tab.locator("#end").is_visible()
    assert tab.locator("#item").is_hidden()
    tab.keyboard.press("1")  # there is nothing left to vote on
    tab.keyboard.press("Backspace")
    assert where(tab) == "4 of 5 voted on"
    assert tab.locator("#asked").text_content() == seen[4]
    tab.keyboard.press("u")
    assert tab.locator("#asked").text_content() == seen[3]
    tab.keyboard.press("0")
    tab.keyboard.press("ArrowRight")
    name, content = saved(tab)
    assert re.fullmatch(r"votes-[0-9a-f]{16}\.json", name)
    assert content["votes"] == dict(zip([s.id for s in shown], ("left", "right", "tie", "tie", "right"), strict=True))
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    votes = read_votes(tmp_path, write_blind(tmp_path, shown), shown)
    assert (votes.n, votes.problems) == (5, ())
    left, right = (votes.side(s) for s in shown[:2])
    assert left == ("second" if shown[0].turned else "first")
    assert right == ("first" if shown[1].turned else "second")


def test_what_stands_left_is_what_the_key_says(tab, page):
    _, shown = page
    for s in shown:
        left, right = s.left_right
        for side, text in (("#left", left), ("#right", right)):
            there = tab.locator(side).text_content()
            if text is HOSTILE:
                assert there.startswith("<img src=x onerror='window.owned=1'><script>")
                assert "{{data}} &amp; \\u2028\\u0000 \\u202eevil" in there
            else:
                assert there == (text or "an empty answer")
        tab.keyboard.press("0")
    assert tab.locator("img").count() == 0


def test_votes_outlive_the_tab_and_another_browser_has_its_own(browser, page):
    context = browser.new_context()
    first = opened_in(context, page)
    first.fill("#rater", "Ana / 李")
    first.keyboard.press("1")  # types
    first.keyboard.press("Enter")
    assert where(first) == "0 of 5 voted on"
    assert first.input_value("#rater") == "Ana / 李1"
    first.keyboard.press("1")
    first.keyboard.press("2")
    first.close()
    second = opened_in(context, page)
    assert where(second) == "2 of 5 voted on"
    name, content = saved(second)
    assert name == "votes-Ana-李1.json"
    assert (content["rater"], [*content["votes"].values()]) == ("Ana / 李1", ["left", "right"])
    beside = opened_in(context, page)
    beside.keyboard.press("0")
    second.wait_for_function("document.getElementById('where').textContent.startsWith('3 ')")
    context.close()
    other = browser.new_context()
    assert where(opened_in(other, page)) == "0 of 5 voted on"
    other.close()


def test_a_held_key_and_shortcuts_of_the_browser_do_not_vote(tab):
    tab.keyboard.down("1")
    tab.keyboard.down("1")  # as a key that is held repeats
    tab.keyboard.down("1")
    tab.keyboard.up("1")
    assert where(tab) == "1 of 5 voted on"
    tab.keyboard.press("Control+2")
    tab.keyboard.press("Alt+ArrowDown")
    tab.keyboard.press("ArrowDown")
    assert where(tab) == "1 of 5 voted on"


def test_buttons_do_what_keys_do(tab):
    assert tab.locator("#undo").is_disabled()
    assert tab.locator("#save").is_disabled()
    tab.click("[data-vote=left]")
    tab.click("[data-vote=tie]")
    assert where(tab) == "2 of 5 voted on"
    tab.click("#undo")
    assert where(tab) == "1 of 5 voted on"
    tab.keyboard.press("ArrowRight")  # the button that has the focus does not take the key
    assert where(tab) == "2 of 5 voted on"
    assert tab.get_attribute(".track", "aria-valuenow") == "2"


def test_a_browser_that_keeps_nothing_says_so(browser, page):
    context = browser.new_context()
    context.add_init_script("Storage.prototype.setItem = () => { throw new Error('full'); };")
    opened = opened_in(context, page)
    assert "save them before you close" in opened.inner_text("#note")
    opened.keyboard.press("1")
    assert where(opened) == "1 of 5 voted on"
    assert len(saved(opened)[1]["votes"]) == 1
    context.close()


def test_what_was_kept_and_makes_no_sense_is_forgotten(browser, page):
    context = browser.new_context()
    opened = opened_in(context, page)
    for junk in ("{", "null", '{"votes": 3}', '{"session": "x", "rater": "", "votes": [["no", "left"], ["no"]]}'):
        opened.evaluate(
            "text => { for (const key of Object.keys(localStorage)) localStorage.setItem(key, text); }", junk
        )
        opened.reload()
        opened.wait_for_function("document.getElementById('where').textContent === '0 of 5 voted on'")
    assert opened.faults == []
    context.close()


@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (360, 1)])
def test_it_fits_wide_and_narrow_screens(browser, page, width, columns):
    context = browser.new_context(viewport={"width": width, "height": 740})
    opened = opened_in(context, page)
    for _ in range(5):
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        boxes = [opened.locator(side).bounding_box() for side in ("#left", "#right")]
        assert len({round(box["x"]) for box in boxes}) == columns
        for button in opened.locator("footer button").all():  # in reach, however long the answers
            box = button.bounding_box()
            assert box["y"] + box["height"] <= 740
        opened.keyboard.press("0")
    assert opened.locator("#end").is_visible()
    context.close()
