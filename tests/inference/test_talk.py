import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from doors import Results, door_of, run_words
from rich.console import Console
from tiny import byte_tokenizer

from dpo_lab.data.templates import Template
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.talk.clean import printable, safe_json, shown, whole
from dpo_lab.inference.talk.commands import Talk, obey
from dpo_lab.inference.talk.context import fit, room_for
from dpo_lab.inference.talk.conversation import Conversation
from dpo_lab.inference.talk.speakers import find_speakers, label
from dpo_lab.runtime.errors import ConfigError, LabError

EVIL = (
    "\x1b[2J\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x9b5nC1 \x90q\x9c"
    "a\x08b\r\nc\rd\x00\x7f\u202eback\x1bc [bold]plain[/bold] :smile: # head\x1b"
)


@pytest.fixture
def template() -> Template:
    return Template(byte_tokenizer(), "auto")


@pytest.fixture
def talk() -> Talk:
    names = "reference", "a", "b"
    return Talk(names, names, Sampling(8), Conversation())


def turns(*texts: str, system: str | None = None) -> list[Any]:
    roles = [("user", "assistant")[i % 2] for i in range(len(texts))]
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return [{"role": "system", "content": system}, *said] if system else said


def test_nothing_that_commands_a_terminal_is_left() -> None:
    assert printable(EVIL) == "red link C1 ab\nc\ndback [bold]plain[/bold] :smile: # head"
    assert printable("\ttab\nline 中文 👩‍👩‍👧 é") == "\ttab\nline 中文 👩‍👩‍👧 é"
    assert printable("cut \x1b]0;tit") == "cut 0;tit"
    assert printable("cut \x1b[3") == "cut 3"
    for code in (*range(32), *range(127, 160)):
        left = printable(f"a{chr(code)}中")
        assert left in ("a中", "a\n中", "a\t中"), code
    assert printable("\udcff") == whole("\udcff") == "\ufffd"
    shown("\udcff").plain.encode()


def test_json_is_exact_and_harmless() -> None:
    text = safe_json({"a": [EVIL, "\udcff 中 \u202e"]})
    assert json.loads(text) == {"a": [EVIL, "\udcff 中 \u202e"]}
    assert "中" in text
    assert printable(text.replace("\n", "")) == text.replace("\n", "")


def test_a_long_conversation_loses_its_oldest_turns_whole(template: Template) -> None:
    talk = turns("q1" * 20, "a1" * 20, "q2", "a2", "q3", system="S")
    [ids] = template.prompt_ids([talk])
    assert fit(talk, template, None) == (talk, ids, 0)
    assert fit(talk, template, len(ids)) == (talk, ids, 0)
    left, shorter, gone = fit(talk, template, len(ids) - 1)
    assert (left, gone) == (turns("q2", "a2", "q3", system="S"), 2)
    assert [shorter] == template.prompt_ids([left])
    left, shortest, gone = fit(talk, template, len(shorter) - 1)
    assert (left, gone) == (turns("q3", system="S"), 4)
    with pytest.raises(ConfigError, match=f"has {len(shortest)} tokens .* room for {len(shortest) - 1} "):
        fit(talk, template, len(shortest) - 1)


def test_a_very_long_conversation_is_written_a_few_times(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = turns(*(text for i in range(400) for text in (f"q{i}", f"a{i}")), "last", system="S")
    written, original = [], template.try_prompt_ids
    [whole] = template.prompt_ids([talk])

    def counted(prompts: Any, *args: Any) -> Any:
        written.extend(prompts)
        return original(prompts, *args)

    monkeypatch.setattr(template, "try_prompt_ids", counted)
    left, ids, gone = fit(talk, template, len(whole) // 3)
    assert len(written) < 15
    assert len(ids) <= len(whole) // 3
    [longer] = template.prompt_ids([[talk[0], *talk[1 + gone - 2 :]]])  # a question and its answer more
    assert len(longer) > len(whole) // 3
    assert left == [talk[0], *talk[1 + gone :]]


def test_what_follows_the_last_question_stays_with_it(template: Template) -> None:
    talk = [*turns("q1", "a1", "q2"), {"role": "tool", "content": "result"}]
    [ids] = template.prompt_ids([talk])
    left, _, gone = fit(talk, template, len(ids) - 1)
    assert [m["role"] for m in left] == ["user", "tool"]
    assert gone == 2


def test_the_answer_has_its_part_of_the_context() -> None:
    assert room_for(512, 12) == 500
    assert room_for(None, 10**9) is None
    with pytest.raises(ConfigError, match="max_new_tokens=512"):
        room_for(512, 512)


def test_each_speaker_goes_on_from_its_own_answers(tmp_path: Path) -> None:
    talk = Conversation("S")
    talk.record("q1", {"reference": "r1", "a": "a1"})
    talk.record("q2", {"a": "a2"})
    talk.record("q3", {"reference": "", "a": ""})
    assert talk.messages("a", "q4") == turns("q1", "a1", "q2", "a2", "q4", system="S")
    assert talk.messages("reference", "q4") == turns("q1", "r1", "q4", system="S")
    assert talk.messages("b", "q4") == turns("q4", system="S")
    talk.save(tmp_path / "t.json")
    assert Conversation.load(tmp_path / "t.json") == talk


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"system": 3, "turns": []}', '{"system": null, "turns": [{"user": "a"}]}']
)
def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ConfigError, match="not a conversation"):
        Conversation.load(tmp_path / "t.json")


def test_policy_is_the_only_result() -> None:
    assert find_speakers("policy", ("reference", "a")) == ("a",)
    assert find_speakers("policy", ("reference", "a", "policy")) == ("policy",)
    assert find_speakers(None, ("reference", "a")) == ("reference", "a")
    assert label("a", ("reference", "a")) == "policy (a)"
    assert label("a", ("reference", "a", "b")) == "a"


def test_commands_change_the_conversation(talk: Talk, tmp_path: Path) -> None:
    talk.conversation.record("q", {"a": "x"})
    assert obey(talk, "/system Be\nbrief. ") == "System prompt: Be\nbrief."
    assert talk.conversation.messages("b", "q") == turns("q", system="Be\nbrief.")
    file = tmp_path / "my talk.json"
    assert obey(talk, f'/save "{file}"') == obey(talk, f"/save {file}") == f"1 turn saved to {file}."
    assert "1 turn forgotten" in obey(talk, "/reset")
    assert talk.conversation == Conversation("Be\nbrief.")
    assert obey(talk, f"/load {file}") == f"1 turn of {file}."
    assert talk.conversation.turns[0].answers == {"a": "x"}
    assert obey(talk, "/temp 0.7") == "Temperature 0.7."
    assert talk.sampling.temperature == 0.7
    assert obey(talk, "/only b") == "b answers from here on."
    assert talk.speaking == ("b",)
    assert obey(talk, "/only all") == "reference, a and b answer from here on."
    assert "no system" in obey(talk, "/system off")
    assert all(f"/{word}" in obey(talk, "/help") for word in ("reset", "save", "load", "only", "quit"))
    assert not talk.over
    obey(talk, "/quit")
    assert talk.over


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("/sav x", r"no command /sav. Did you mean /save\?"),
        ("/", "There is /reset, /save"),
        ("/etc/passwd ?", '"""'),
        ("/temp hot", "from 0"),
        ("/temp -1", "from 0"),
        ("/temp nan", "from 0"),
        ("/only policy", "a and b"),
        ("/only refernce", "Did you mean reference"),
        ("/save", "needs the name"),
        ('/save "x', "quotation"),
        ("/load nowhere.json", "No such file"),
    ],
)
def test_a_command_that_cannot_be_done_changes_nothing(talk: Talk, line: str, match: str) -> None:
    before = talk.sampling, talk.speaking, talk.conversation
    with pytest.raises(LabError, match=match):
        obey(talk, line)
    assert (talk.sampling, talk.speaking, talk.conversation) == before


def test_save_leaves_other_files_alone(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "thesis.json").write_text("years of work")
    with pytest.raises(LabError, match="already"):
        obey(talk, f"/save {tmp_path / 'thesis.json'}")
    with pytest.raises(LabError, match="folder"):
        obey(talk, f"/save {tmp_path}")
    assert (tmp_path / "thesis.json").read_text() == "years of work"


def drawn(width: int, names: tuple[str, ...], texts: list[str], height: int = 20) -> str:
    from dpo_lab.inference.generate import Answer
    from dpo_lab.inference.talk.screen import Screen

    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="standard")
    found = {name: Answer(text, [1, 2], True) for name, text in zip(names, texts, strict=True)}
    Screen(console, names).show(found, dict.fromkeys(names, "3 tokens"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def plain(output: str) -> str:
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\x01|\x02", "", output)


def test_two_or_three_stand_side_by_side_where_there_is_room() -> None:
    def together(width: int, n: int) -> bool:
        names = ("reference", "a", "b", "c")[:n]
        lines = plain(drawn(width, names, [f"<{name}>" for name in names])).splitlines()
        return any(all(f"<{name}>" in line for name in names) for line in lines)

    assert together(80, 2)
    assert together(120, 3)
    assert not together(79, 2)
    assert not together(200, 4)


def test_a_models_text_reaches_the_terminal_as_text_alone() -> None:
    output = drawn(100, ("reference", "a"), [EVIL, "**bold** [red]x[/red] | --- |"])
    for sequence in re.findall(r"\x1b.{0,2}", output):
        assert sequence.startswith("\x1b["), sequence
    assert set(re.findall(r"\x1b\[[0-?]*[ -/]*([@-~])", output)) == {"m"}, "colours of the frame and nothing else"
    assert not re.search(r"[\x00-\x08\x0b-\x1a\x7f-\x9f\u202e]", output)
    assert "[bold]plain[/bold] :smile: # head" in plain(output)
    assert "**bold** [red]x[/red] | --- |" in plain(output)


def test_what_grows_shows_its_last_lines_and_never_more_than_the_screen() -> None:
    from dpo_lab.inference.talk.screen import Screen, Streams

    for width, n in ((100, 2), (60, 2), (100, 4)):
        console = Console(file=io.StringIO(), width=width, height=20, force_terminal=True)
        screen = Screen(console, [f"name{i}" for i in range(n)])
        streams = Streams(screen, screen.names)
        for place in range(n):
            for i in range(40):
                streams.add(place, f"line {i} 中文字 " * 5 + "\n")
            streams.add(place, "THE END")
        console.print(streams.tail())
        output = plain(console.file.getvalue())  # type: ignore[attr-defined]
        assert output.count("THE END") == n
        assert len(output.splitlines()) <= 20


def test_the_second_question_follows_each_speakers_own_answer(lab: Results) -> None:
    from dpo_lab.config.brought import bring
    from dpo_lab.inference.generate import Asked, answers
    from dpo_lab.inference.stage import load_stage
    from dpo_lab.inference.talk.asking import ask
    from dpo_lab.runtime.terminal import Terminal

    config, _, subjects = bring(*door_of("chat", lab, run_words(*lab.runs)))
    stage, sampling = load_stage(config, subjects, Terminal(quiet=True)), Sampling(12)
    talk = Conversation()
    first = ask(stage, talk, stage.names, "One?", sampling)
    talk.record("One?", {name: answer.text for name, answer in first.answers.items()})
    second = ask(stage, talk, stage.names, "Two?", sampling)
    for name in stage.names:
        own = first.answers[name].text
        [ids] = stage.template.prompt_ids([turns("One?", own, "Two?") if own else turns("Two?")])
        [alone] = answers(stage, [Asked(name, ids)], sampling)
        assert second.answers[name].text == alone.text
    with pytest.raises(ConfigError, match="empty"):
        ask(stage, talk, stage.names, " ", sampling)
