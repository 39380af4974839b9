"""Tokens as readers see them, and pairs and reports in the terminal."""

import io
import re

import pytest
from rich.console import Console
from toys import chat, family, pair, real_qwen

from dpo_lab.data.doctor.findings import Finding, Histogram, Place, Report
from dpo_lab.data.doctor.pieces import Pieces, visible
from dpo_lab.data.doctor.view import HEAD, TAIL, show_pairs, show_report
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import tokenize

HARD = "naïve 你好，世界 😀👩‍👩‍👧 ไทย \t end\n\nnew"


def template_of(kind="bytes", name="chatml"):
    return Template(family(name, kind), "auto")


def shown(template, *pairs, colour=False, width=80, **options):
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        legacy_windows=False,
    )
    examples, _ = tokenize(list(pairs), template, max_length=100_000, truncation="drop", limit=None)
    show_pairs(console, examples, template, **options)
    return stream.getvalue()


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# Pieces


@pytest.mark.parametrize("text", [HARD, "", "a", "😀", "\ufffd stands here"])
def test_the_pieces_of_a_byte_level_tokenizer_are_the_text(text):
    template = template_of()
    ids = template.encode([text], special=False)[0]
    pieces = list(Pieces(template).group(ids))
    assert "".join(p.text for p in pieces) == text
    assert [i for p in pieces for i in p.ids] == ids


def test_tokens_that_make_one_character_stand_together():
    template = template_of()
    ids = template.encode(["a你😀"])[0]
    pieces = list(Pieces(template).group(ids))
    assert [(p.text, len(p.ids)) for p in pieces] == [("a", 1), ("你", 3), ("😀", 4)]


def test_bytes_that_make_no_character_are_shown_as_lost():
    template = template_of()
    ids = template.encode(["😀"])[0][:2] + template.encode(["ok"])[0] + template.end_of_turn
    pieces = list(Pieces(template).group(ids))
    assert "".join(p.text for p in pieces) == "\ufffd\ufffdok<|im_end|>"
    assert [p.special for p in pieces] == [False] * 4 + [True]


def test_spaces_of_sentencepiece_are_spaces():
    template = template_of("metaspace", "mistral")
    pieces = list(Pieces(template).group(template.encode(["ab cd"])[0]))
    assert "".join(p.text for p in pieces) == " ab cd"


def test_byte_tokens_of_sentencepiece_are_bytes():
    class Bytes:
        all_special_ids: list[int] = []
        added_tokens_decoder: dict[int, object] = {}
        names = ["<0xE4>", "<0xBD>", "<0xA0>", "\u2581x"]

        def convert_ids_to_tokens(self, i):
            return self.names[i]

    template = template_of()
    template.tokenizer = Bytes()
    assert [(p.text, p.ids) for p in Pieces(template).group([0, 1, 2, 3])] == [("你", (0, 1, 2)), (" x", (3,))]


def test_a_real_tokenizers_pieces_are_the_text():
    template = Template(real_qwen(), "auto")
    text = HARD + "龘靐齉 \u200b\u0301 ﷺ \x00\x1b"
    assert "".join(p.text for p in Pieces(template).group(template.encode([text])[0])) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb", "a\\rb"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
        ("👩‍👧", "👩‍👧"),
        ("é 你", "é 你"),
    ],
)
def test_what_acts_or_hides_is_written_out(text, wanted):
    assert visible(text) == wanted


# Pairs


def test_a_pair_is_shown_as_the_model_sees_it():
    text = shown(template_of(), pair("Why 你?", "So 😀.", "Dunno.", 7))
    assert "row 7" in text
    assert re.search(r"prompt \d+ tokens", text)
    assert "<|im_start|>|u|s|e|r|⏎" in text
    assert "|W|h|y| |你|?|<|im_end|>" in text
    assert "S|o| |😀|.|<|im_end|>" in text
    assert text.index("chosen") < text.index("😀") < text.index("rejected") < text.index("D|u|n|n|o")


def test_colours_tell_parts_and_special_tokens_apart():
    text = shown(template_of(), pair("Q", "XYZ", "N"), colour=True)
    assert "|Y" not in text, "no bars where there are colours"
    assert len({re.search(rf"\x1b\[([0-9;]*)m{c}", text)[1] for c in "QXN"}) == 3  # type: ignore[index]
    assert re.search(r"\x1b\[1;7;[0-9;]*m<\|im_end\|>", text), "special tokens are bold and reversed"
    styles = re.findall(r"\x1b\[([0-9;]*)m[XYZ]\x1b", text)
    assert styles[0] != styles[1]
    assert styles[0] == styles[2]


def test_ids_are_shown_on_request():
    template = template_of()
    [w, *_] = template.encode(["W"])[0]
    end = template.end_of_turn[0]
    text = shown(template, pair("W你", "a", "b"), ids=True)
    assert f"W‹{w}›" in text
    assert f"你‹{','.join(map(str, template.encode(['你'])[0]))}›" in text
    assert f"<|im_end|>‹{end}›" in text
    assert "‹" not in shown(template, pair("W你", "a", "b"))


def test_long_parts_are_shortened_in_the_middle_unless_asked():
    question = "".join(f"{i:04}" for i in range(500))
    text = shown(template_of(), pair(question, "a", "b"))
    left_out = int(re.search(r"\.\.\. ([0-9,]+) tokens left out", text)[1].replace(",", ""))  # type: ignore[index]
    total = int(re.search(r"prompt ([0-9,]+) tokens", text)[1].replace(",", ""))  # type: ignore[index]
    assert total - left_out == HEAD + TAIL
    full = shown(template_of(), pair(question, "a", "b"), full=True)
    assert "left out" not in full
    assert question in plain(full).replace("|", "").replace("\n", "")


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("ids", [True, False])
def test_no_line_is_wider_than_the_terminal(colour, ids):
    from rich.cells import cell_len

    text = shown(template_of(), pair("word 你好 " * 60, "a" * 200, "😀" * 50), colour=colour, ids=ids)
    assert max(cell_len(line) for line in plain(text).splitlines()) <= 80


def test_nothing_of_the_data_acts_on_the_terminal():
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b31m[bold]not markup[/bold]\r\u202e"
    text = shown(template_of(), pair(hostile, hostile + "a", hostile + "b"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "[bold]" in text.replace("|", "")
    report = Report((Finding("check", "error", hostile, hostile, 1, 0.1, (Place(hostile, 1),), hostile),))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", reported(report))


def test_several_turns_are_shown():
    text = shown(template_of(), pair(chat("one", "two", "three", system="be"), "a", "b"))
    assert text.replace("|", "").count("<im_start>") == 5


# Reports


def reported(report, width=80, colour=False):
    stream = io.StringIO()
    show_report(
        Console(file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None), report
    )
    return stream.getvalue()


REPORT = Report(
    findings=(
        Finding("leaked-prompts", "error", "4 held-out pairs.", "Split by prompt.", 4, 0.1,
                (Place("/x/a.json", 3), Place("/x/a.json", 9), Place("b.json", 1))),
        Finding("length-bias", "info", "The longer one wins.", "Balance.", 9, 0.2, (), "an example"),
    ),
    numbers={"tokens/prompt/median": 5.0},
    histograms=(Histogram("prompt", (1.0, 4.0, 7.0, 11.0), (8, 0, 1)),),
    sizes={"train": 1_000_000, "train/looked_at": 20_000, "heldout": 50, "heldout/looked_at": 50},
    skipped=("near-duplicates",),
)  # fmt: skip


def test_a_report_says_what_where_and_what_to_do():
    text = reported(REPORT)
    assert re.search("✗ error  +leaked-prompts  4 held-out pairs[.]", text)
    assert "→ Split by prompt." in text
    assert "a.json rows 3, 9; b.json row 1, ..." in text
    assert "“an example”" in text
    assert text.index("leaked-prompts") < text.index("length-bias")
    assert "prompt   █ ▁ 1 to 10 tokens, median 5" in text
    assert "No time for: near-duplicates." in text
    assert "1 error, 1 info (on 20,000 of 1,000,000 training pairs and all 50 held-out" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_report_fits_the_terminal(width):
    assert max(len(line) for line in plain(reported(REPORT, width, colour=True)).splitlines()) <= width


def test_a_report_without_findings_says_so():
    assert "nothing found (on all 3 training pairs and all 2 held-out pairs)" in reported(
        Report(sizes={"train": 3, "heldout": 2})
    )
