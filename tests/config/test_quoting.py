"""What the shell hands over arrives in the config as it was typed."""

import pytest
from composing import composed

from dpo_lab.config import cli, schema
from dpo_lab.config.overrides import read
from dpo_lab.config.quoting import quote
from dpo_lab.config.sources import Sources

ODD = [
    "/tmp/张三 的/a=1,b.jsonl",
    "~/x.jsonl",
    "/a b/c  d.jsonl",
    "it's.jsonl",
    'say "hi".jsonl',
    "both ' and \".jsonl",
    "a(1).jsonl",
    "[x] {y}.jsonl",
    "a:b;c&d|e.jsonl",
    "100%$HOME#.jsonl",
    "007",
    "1_000",
    "1e3",
    "true",
    "back\\slash.jsonl",
    "ends with \\",
    "🙂 é.jsonl",
    "--flag.jsonl",
    "choice(a,b)",
]


def values(override: str, *, multirun: bool) -> list:
    given, problems = read([override], Sources(), multirun=multirun)
    assert problems == []
    return given[0].values()


@pytest.mark.parametrize("path", ODD)
@pytest.mark.parametrize("key", ["data.path", "model.name"])
def test_an_odd_path_or_name_survives_the_grammar(key, path):
    assert values(f"{key}={path}", multirun=False) == [path]


def test_odd_paths_survive_to_the_config():
    keys = [
        key for key in schema.PATH_KEYS if key not in ("run", "adapter", "prompt_file", "chat.load")
    ]  # of other doors
    words = [f"{key}={path}" for key, path in zip(keys, ODD, strict=False)]
    flat = schema.flatten(composed(*words).model_dump())
    assert [flat[key] for key in keys] == ODD[: len(keys)]


@pytest.mark.parametrize(
    ("typed", "arrives"),
    [
        (r".*\.layers\.[01]\..*(q|v)_proj", r".*\.layers\.[01]\..*(q|v)_proj"),
        ("[q_proj,v_proj]", ["q_proj", "v_proj"]),
        ("attention", "attention"),
    ],
)
def test_target_modules_are_a_regular_expression_or_a_list(typed, arrives):
    assert values(f"lora.target_modules={typed}", multirun=False) == [arrives]
    assert values(f"lora.target_modules={typed}", multirun=True) == [arrives]
    lists = values("lora.target_modules=[q_proj],[q_proj,v_proj]", multirun=True)
    assert lists == [["q_proj"], ["q_proj", "v_proj"]]


@pytest.mark.parametrize("path", [p for p in ODD if "," not in p])
def test_a_path_without_commas_is_one_path_in_a_multirun_too(path):
    assert values(f"data.path={path}", multirun=True) == [path]


def test_the_door_hands_the_quoted_path_on(tmp_path):
    file = tmp_path / "张三 的" / "a=1,b.jsonl"
    file.parent.mkdir()
    file.touch()
    words = cli.prepare(["data=file", f"data.path={file}"])
    assert words == ["data=file", f"data.path='{file}'"]
    assert cli.prepare(words) == words, "quoting twice changes nothing"


def test_null_is_null_and_not_a_text():
    assert composed("data.eval_path=null").data.eval_path is None


def test_quotes_of_ones_own_are_respected():
    assert composed("data.path='/a b/c'").data.path == "/a b/c"


def test_an_interpolation_in_a_path_is_kept(monkeypatch):
    monkeypatch.setenv("WHERE", "/张三")
    assert composed("data.path=${oc.env:WHERE}/a b.jsonl").data.path == "/张三/a b.jsonl"


def test_commas_in_a_multirun_are_a_sweep_over_files(tmp_path):
    parts = [tmp_path / "a (1).jsonl", tmp_path / "乙.jsonl"]
    for part in parts:
        part.touch()
    assert values(f"data.path={parts[0]}, {parts[1]}", multirun=True) == [str(p) for p in parts]


def test_a_comma_in_the_name_of_a_file_is_no_sweep(tmp_path):
    file = tmp_path / "a,b.jsonl"
    file.touch()
    assert values(f"data.path={file}", multirun=True) == [str(file)]


def test_names_are_swept_in_a_multirun():
    assert values("model.name=a/b,c/d", multirun=True) == ["a/b", "c/d"]
    assert values("data.path=choice(a,b)", multirun=True) == ["a", "b"]
    assert values("data.path='a','b c'", multirun=True) == ["a", "b c"]


def test_output_folders_are_never_swept():
    assert values("output_dir=a,b", multirun=True) == ["a,b"]


def test_questions_are_an_ordinary_list():
    asked = composed('prompts.own=["What is a prime?","什么是素数？"]').prompts.own
    assert asked == ["What is a prime?", "什么是素数？"]


@pytest.mark.parametrize("override", ["optim.lr=1e-4", "loss=ipo", "~lora", "optim.betas=[0.9,0.95]", "noequals"])
def test_other_overrides_are_left_alone(override):
    assert quote(override, multirun=False) == override
