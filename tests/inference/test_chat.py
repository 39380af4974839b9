import io
import json
import os
import sys
from pathlib import Path

import pytest
from doors import Results, door_config, door_of, refused, run_words
from runs import fork
from tiny import write_tiny_model

from dpo_lab.runtime.errors import ConfigError, LabError

HARD = "\"Was ist 2 + 2?\"\n`sagt` er = \\n; a, b: {x} (你好，世界) 'so' $HOME #1"
SHORT = ("generation=greedy", "generation.max_new_tokens=12")


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes long prompts, and no result of it."""
    return write_tiny_model(tmp_path_factory.mktemp("roomy") / "model", max_position_embeddings=4096)


@pytest.fixture
def says(lab: Results, capsys: pytest.CaptureFixture[str]):
    """What the door writes to stdout for some words."""

    def call(*words: str) -> str:
        from dpo_lab.inference.chat import chat

        config, tree, given = door_of("chat", lab, *words)
        capsys.readouterr()
        chat(config, tree, Path(), given=given)
        return capsys.readouterr().out

    return call


@pytest.fixture
def answers(says):
    """The texts of the first row by name."""

    def call(*words: str) -> dict[str, str]:
        content = json.loads(says(*SHORT, "chat.json_only=true", *words))
        return {name: answer["text"] for name, answer in content["rows"][0]["answers"].items()}

    return call


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def bare(lab: Results, run: Path | None, messages: list[dict[str, str]]) -> str:
    """The greedy answer as transformers and PEFT give it by themselves."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lab.model)
    model = AutoModelForCausalLM.from_pretrained(lab.model, dtype=torch.float32)
    if run is not None:
        model = PeftModel.from_pretrained(model, run / "final")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    out = model.eval().generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_policy_and_reference_answer_a_hard_text_as_peft_does(lab: Results, answers) -> None:
    system = "Antworte 中文, kurz."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": HARD}]
    found = answers(run_words(lab.runs[0]), f"prompt={HARD}", f"chat.system={system}")
    assert found == {"reference": bare(lab, None, messages), lab.runs[0].name: bare(lab, lab.runs[0], messages)}
    assert found["reference"] != found[lab.runs[0].name]


def test_several_adapters_and_the_reference_answer_in_one_call(lab: Results, answers) -> None:
    together = answers(run_words(*lab.runs), "prompt=Why?")
    assert list(together) == ["reference", *(run.name for run in lab.runs)]
    for run in lab.runs:
        assert together[run.name] == answers(run_words(run), "prompt=Why?", "chat.only=policy")[run.name]
    assert len(set(together.values())) == 3
    a, b = lab.runs
    assert answers(f"run={a}", f"adapter={b / 'final'}", "prompt=Why?")["final"] == together[b.name]


def test_only_decides_who_answers(lab: Results, answers) -> None:
    everybody = run_words(*lab.runs), "prompt=Hi"
    for only in ("reference", lab.runs[1].name):
        assert list(answers(*everybody, f"chat.only={only}")) == [only]
    with pytest.raises(ConfigError, match=f"chat.only=policy.*{lab.runs[0].name} and {lab.runs[1].name}"):
        answers(*everybody, "chat.only=policy")
    with pytest.raises(ConfigError, match="no refrence here. Did you mean reference"):
        answers(*everybody, "chat.only=refrence")


def test_a_base_without_results_talks_by_itself(lab: Results, answers) -> None:
    found = answers("model=hf", f"model.path={lab.model}", "trainer.precision=32", "prompt=Hi")
    assert found == {"reference": bare(lab, None, [{"role": "user", "content": "Hi"}])}
    with pytest.raises(ConfigError, match="give run=RUN or adapter=FOLDER"):
        answers("model=hf", f"model.path={lab.model}", "prompt=Hi", "chat.only=policy")


def test_a_file_a_pipe_and_the_command_line_ask_the_same(lab: Results, answers, tmp_path: Path, monkeypatch) -> None:
    run = run_words(lab.runs[0])
    typed = answers(run, f"prompt={HARD}")
    file = tmp_path / "问题 1.txt"
    file.write_bytes(b"\xef\xbb\xbf" + HARD.replace("\n", "\r\n").encode() + b"\r\n")
    assert answers(run, f"prompt_file={file}") == typed
    pipe(monkeypatch, f"{HARD}\n".encode())
    assert answers(run) == typed
    pipe(monkeypatch, b"something else")
    assert answers(run) != typed
    assert answers(run, f"prompt={HARD}") == typed, "the pipe is not read where there is a prompt"


def test_json_says_what_was_asked_of_whom_and_how_it_ended(lab: Results, says) -> None:
    words = run_words(lab.runs[0]), "prompt=好?", *SHORT, "seed=3"
    content = json.loads(says("chat.json_only=true", *words))
    assert content["sampling"] == {
        "max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 3
    }  # fmt: skip
    assert content["results"] == {lab.runs[0].name: str(lab.runs[0])}
    [row] = content["rows"]
    assert row["prompt"] == "好?"
    for answer in row["answers"].values():
        assert answer["tokens"] == 12 or answer["ended"]


def test_plain_answers_are_the_text_alone_or_under_names(lab: Results, says, answers) -> None:
    run = run_words(lab.runs[0])
    found = answers(run, "prompt=Hi")
    from dpo_lab.inference.talk.clean import printable

    one = says(run, *SHORT, "prompt=Hi", "chat.only=policy")
    assert one == printable(found[lab.runs[0].name]) + "\n"
    both = says(run, *SHORT, "prompt=Hi")
    assert f"=== policy ({lab.runs[0].name}) ===\n{one}" in both
    assert both.startswith("=== reference ===\n")


def test_the_seed_decides_a_sampled_answer(lab: Results, answers) -> None:
    words = run_words(lab.runs[0]), "prompt=Hi", "generation.temperature=3"
    first = answers(*words, "seed=1")
    assert answers(*words, "seed=1") == first
    assert answers(*words, "seed=2") != first


def test_a_saved_conversation_goes_on(lab: Results, answers, tmp_path: Path, monkeypatch) -> None:
    turns = [{"user": "One?", "answers": {"reference": "Yes.", lab.runs[0].name: "No!"}}]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps({"system": "Be kind.", "turns": turns}), encoding="utf-8")
    pipe(monkeypatch, b"Two?")
    found = answers(run_words(lab.runs[0]), f"chat.load={file}")
    for name, run, said in (("reference", None, "Yes."), (lab.runs[0].name, lab.runs[0], "No!")):
        parts = ("system", "Be kind."), ("user", "One?"), ("assistant", said), ("user", "Two?")
        assert found[name] == bare(lab, run, [{"role": role, "content": text} for role, text in parts])


def test_the_tutorials_question_is_asked_with_its_system_prompt(lab: Results, roomy: Path, says) -> None:
    base = "model=hf", f"model.path={roomy}", *SHORT, "prompts=tutorial"
    content = json.loads(says(*base, "chat.json_only=true"))
    config, _, _ = door_config("chat", "prompts=tutorial")
    assert config.prompts.system
    assert content["system"] == config.prompts.system
    assert [row["prompt"] for row in content["rows"]] == config.prompts.own != []
    other = json.loads(says(*base, "chat.json_only=true", "chat.system=Guess.", "prompt=Well?"))
    assert (other["system"], other["rows"][0]["prompt"]) == ("Guess.", "Well?")
    two = says(*base, 'prompts.own=["First?","Second?"]')
    assert two.index("=== question ===\nFirst?") < two.index("=== reference ===") < two.index("Second?")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["prompt= \n "], "prompt (is empty|holds nothing)"),
        (["prompt=a", "prompt_file=b"], "two questions"),
        (["prompt_file=/nowhere/q.txt"], "prompt_file=/nowhere/q.txt.* no file"),
        (["prompt_file=/"], "prompt_file=/: is a folder"),
        (["chat.load=/nowhere/t.json"], "chat.load=/nowhere/t.json.* no file"),
        (["prompts=heldout"], "prompts=tutorial"),
        (["prompt=" + 600 * "x"], r"prompt has 6\d\d tokens .* room for 384"),
        (["prompt=a", "generation.max_new_tokens=512"], "generation.max_new_tokens=512 leaves no room"),
        (["prompt=a", "template=zephyr"], "template=zephyr is not what .* force=true"),
    ],
)
def test_what_cannot_be_asked_is_said(lab: Results, says, words: list[str], match: str) -> None:
    with pytest.raises(LabError, match=match):
        says(run_words(lab.runs[0]), "generation=greedy", *words)


def test_another_template_answers_where_it_is_forced(lab: Results, answers) -> None:
    words = run_words(lab.runs[0]), "prompt=a", "chat.only=policy"
    assert answers(*words, "template=zephyr", "force=true") != answers(*words)


def test_an_empty_pipe_and_bytes_that_are_no_text_are_refused(lab: Results, says, tmp_path: Path, monkeypatch) -> None:
    run = run_words(lab.runs[0])
    pipe(monkeypatch, b" \n")
    with pytest.raises(ConfigError, match="standard input is empty"):
        says(run)
    file = tmp_path / "binary"
    file.write_bytes(b"PK\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        says(run, f"prompt_file={file}")
    file.write_text('{"turns": 3}')
    pipe(monkeypatch, b"a")
    with pytest.raises(ConfigError, match="not a conversation"):
        says(run, f"chat.load={file}")


def test_the_door_knows_its_words() -> None:
    assert refused("chat", "prompt=42", "chat.only=policy") == []
    assert any("temperatur" in problem for problem in refused("chat", "generation.temperatur=1"))


def test_the_command_answers_a_pipe_and_tells_scripts_how_it_went(lab: Results, tmp_path: Path) -> None:
    """The door itself, in a child: exit codes, stdout with JSON alone, and messages on stderr."""
    words = run_words(lab.runs[0]), *SHORT, "chat.json_only=true", "trainer.accelerator=cpu", f"cache_dir={lab.cache}"
    code, out, err = _command(tmp_path, '你好 "x"\nzwei'.encode(), *words)
    assert code == 0, err
    assert json.loads(out)["rows"][0]["prompt"] == '你好 "x"\nzwei'
    assert not any(tmp_path.glob("*/")), "chat makes no folders"
    code, out, err = _command(tmp_path, b"", *words)
    assert (code, out) == (2, "")
    assert "standard input is empty" in err
    assert "Traceback" not in err


def _command(folder: Path, stdin: bytes, *words: str) -> tuple[int, str, str]:
    for name, content in (("in", stdin), ("out", b""), ("err", b"")):
        (folder / name).write_bytes(content)

    def work() -> None:
        import torch

        from dpo_lab.chat import main

        torch.set_num_threads(1)
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(folder / name, os.O_RDONLY if number == 0 else os.O_WRONLY), number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        sys.argv = ["dpo_lab.chat", *words]
        main()

    _, status = os.waitpid(fork(work), 0)
    return os.waitstatus_to_exitcode(status), (folder / "out").read_text(), (folder / "err").read_text()
