import json
import logging
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from doors import Results, door_of, of_lab, run_words
from runs import Child, until

from dpo_lab.config.brought import bring
from dpo_lab.config.door_schema import Serve
from dpo_lab.inference.api import worker as worker_module
from dpo_lab.inference.api.app import make_app
from dpo_lab.inference.api.front import Front
from dpo_lab.inference.api.stops import Cut
from dpo_lab.inference.api.worker import Worker
from dpo_lab.inference.generate import Asked, answers
from dpo_lab.inference.sampler import Sampling
from dpo_lab.inference.serve import find_key, is_own, listen, make_server, serve
from dpo_lab.inference.stage import Stage, load_stage
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.terminal import Terminal

HERE = Serve(host="127.0.0.1", port=0, api_key_env="TEST_API_KEY")
KEY = "sk-a-test-key"
QUESTION: Any = [{"role": "user", "content": "Question 1: why?"}]
LONG = 400  # tokens, of a context of 512
FULL = 30  # tokens of the answers that are compared


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)


def ask(client: openai.OpenAI, model: str, messages: Any = QUESTION, **more: Any) -> Any:
    return client.chat.completions.create(
        model=model, messages=messages, **({"max_tokens": FULL, "temperature": 0} | more)
    )


def text_of(client: openai.OpenAI, model: str, messages: Any = QUESTION, **more: Any) -> str:
    return ask(client, model, messages, **more).choices[0].message.content


# The door comes first: it forks, and there are no server's threads yet.


def start_door(lab: Results, *words: str) -> Child:
    def door() -> None:
        from dpo_lab.serve import main

        sys.argv = ["dpo_lab.serve", *of_lab(lab, *words)]
        main()

    return lab._start(door, None)


def test_the_door_says_where_it_listens_answers_and_ends_at_ctrl_c_in_the_middle_of_an_answer(lab: Results) -> None:
    child = start_door(lab, run_words(lab.runs[0]), "serve.port=0")
    until(lambda: child.log.exists() and "-d '{" in child.text, child)
    [url] = re.findall(r"^(http://127\.0\.0\.1:\d+/v1)$", child.text, re.MULTILINE)
    name = lab.runs[0].name
    assert f'reference, {name} ("policy" is {name})' in child.text
    [line] = re.findall(r"^curl .*$", child.text, re.MULTILINE)
    assert f'{url}/chat/completions -H \'content-type: application/json\' -d \'{{"model": "{name}"' in line
    with client_of(url) as client:
        answer = ask(client, "policy")
        assert answer.model == name
        assert answer.choices[0].message.content == text_of(client, name)
        stream = ask(client, "reference", stream=True, max_tokens=LONG)
        assert next(stream).choices[0].delta.role == "assistant"
        next(stream)
        child.kill(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
    assert child.wait() == 130
    assert "Traceback" not in child.text
    assert child.text.rstrip().endswith("Stopped: interrupted")


@contextmanager
def serving(stage: Stage, key: str | None = None) -> Iterator[str]:
    """A server in a thread; yields its address."""
    worker = Worker(stage)
    server = make_server(make_app(Front(stage, worker), key), worker)
    with listen(HERE) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        worker.start()
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
            worker.join()


@pytest.fixture(scope="module")
def stage(lab: Results) -> Stage:
    config, tree, given = door_of("serve", lab, run_words(*lab.runs))
    config, _, subjects = bring(config, tree, given)
    return load_stage(config, subjects, Terminal(quiet=True))


@pytest.fixture(scope="module")
def url(stage: Stage) -> Iterator[str]:
    with serving(stage) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with client_of(url) as client:
        yield client


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, worker_module.__name__)
    return caplog


def batches(told: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in told.records if r.name == worker_module.__name__]


def test_each_adapter_and_the_reference_are_models(client: openai.OpenAI, stage: Stage) -> None:
    assert [m.id for m in client.models.list()] == ["reference", *stage.names[1:]] == list(stage.names)
    assert len(stage.names) == 3
    assert client.models.retrieve(stage.names[1]).id == stage.names[1]


def test_every_model_answers_as_it_does_without_a_server(client: openai.OpenAI, stage: Stage) -> None:
    [ids] = stage.template.prompt_ids([QUESTION])
    found = [ask(client, name) for name in stage.names]
    own = answers(stage, [Asked(name, ids) for name in stage.names], Sampling(FULL))
    assert [a.choices[0].message.content for a in found] == [a.text for a in own]
    assert [a.usage.completion_tokens for a in found] == [a.tokens for a in own]
    assert {a.usage.prompt_tokens for a in found} == {len(ids)}
    assert [a.choices[0].finish_reason for a in found] == ["stop" if a.ended else "length" for a in own]
    assert len({a.text for a in own}) > 1  # or nobody could tell which model it was


def test_a_model_that_is_not_there_is_404_with_those_that_are(client: openai.OpenAI, stage: Stage) -> None:
    for call in (lambda: ask(client, "policy"), lambda: client.models.retrieve("policy")):
        with pytest.raises(openai.NotFoundError, match=f"There are: {', '.join(stage.names)}") as error:
            call()
        assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="POST /v1/chat/completions"):
        client.completions.create(model="reference", prompt="x")


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}, {"temperature": 1, "top_p": 0.5, "seed": 6}])  # fmt: skip
def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, stage: Stage, how: dict[str, Any]) -> None:
    name = stage.names[1]
    whole = ask(client, name, **how)
    chunks = list(ask(client, name, stream=True, stream_options={"include_usage": True}, **how))
    *pieces, last = chunks
    assert len(pieces) > 5
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == whole.choices[0].message.content != ""
    assert [c.choices[0].finish_reason for c in pieces if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert (last.choices, last.usage) == ([], whole.usage)
    assert {(c.id, c.model, c.object) for c in chunks} == {(last.id, name, "chat.completion.chunk")}


def test_a_stream_is_events_that_end_with_done(url: str) -> None:
    body = {"model": "reference", "messages": QUESTION, "max_tokens": 2, "stream": True}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part]
    assert done == "[DONE]"
    assert not any("usage" in json.loads(event) for event in events)  # nobody asked


def test_a_seed_repeats_an_answer_and_without_one_it_differs(client: openai.OpenAI) -> None:
    def drawn(**seed: Any) -> str:
        return text_of(client, "reference", temperature=1.5, top_p=1, **seed)

    assert drawn(seed=1) == drawn(seed=1)
    assert len({drawn(seed=1), drawn(seed=2), drawn(seed=-3)}) == 3
    assert len({drawn(), drawn(), drawn()}) == 3


def test_what_a_request_does_not_say_is_as_generation_has_it(lab: Results, client: openai.OpenAI, stage: Stage) -> None:
    [ids] = stage.template.prompt_ids([QUESTION])
    own = answers(stage, [Asked("reference", ids)], Sampling.of(stage.config.generation, seed=4))[0]
    answer = client.chat.completions.create(model="reference", messages=QUESTION, seed=4)
    assert stage.config.generation.temperature > 0
    assert answer.choices[0].message.content == own.text


def test_stop_texts_end_an_answer_and_are_not_in_it(client: openai.OpenAI) -> None:
    whole = text_of(client, "reference")
    stop = whole[8:11]
    assert len(stop) == 3
    cut = ask(client, "reference", stop=["never said", stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert 0 < cut.usage.completion_tokens < FULL
    pieces = [c.choices[0].delta.content or "" for c in ask(client, "reference", stop=stop, stream=True)]
    assert "".join(pieces) == cut.choices[0].message.content
    assert text_of(client, "reference", stop="never said") == whole


def test_a_cut_does_not_depend_on_the_pieces() -> None:
    text, stops = "one, two,, three", ["two, ", ",, t", "x"]
    for size in range(1, len(text) + 1):
        cut = Cut(stops)
        through = [cut.take(text[i : i + size]) for i in range(0, len(text), size)]
        assert ("".join(through), cut.hit, cut.rest()) == ("one, two", True, "")
    waits = Cut(["two, three, four"])
    assert [waits.take("one, two"), waits.take(", three"), waits.take(","), waits.rest()] == [
        *("one, ", "", ""),
        "two, three,",
    ]
    assert not waits.hit


def test_several_choices_are_answers_of_their_own(client: openai.OpenAI) -> None:
    greedy = ask(client, "reference", n=2)
    assert [c.index for c in greedy.choices] == [0, 1]
    assert {c.message.content for c in greedy.choices} == {text_of(client, "reference")}
    single = ask(client, "reference")
    assert greedy.usage.completion_tokens == 2 * single.usage.completion_tokens
    assert greedy.usage.prompt_tokens == single.usage.prompt_tokens
    for seed in ({"seed": 3}, {}):
        drawn = [c.message.content for c in ask(client, "reference", n=3, temperature=1.5, top_p=1, **seed).choices]
        assert len(set(drawn)) == 3
        texts = ["", "", ""]
        for chunk in ask(client, "reference", n=3, temperature=1.5, top_p=1, stream=True, **seed):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert (texts == drawn) == bool(seed)
        if seed:
            assert drawn[0] == text_of(client, "reference", temperature=1.5, top_p=1, **seed)


def test_sampled_choices_come_from_one_batch(client: openai.OpenAI, told: pytest.LogCaptureFixture) -> None:
    for seed in ({"seed": 3}, {}):
        drawn = ask(client, "reference", n=10, temperature=1.5, top_p=1, **seed)
        assert len({c.message.content for c in drawn.choices}) == 10
        until(lambda: len(batches(told)) == 2)
        assert [message.split()[0] for message in batches(told)] == [str(worker_module.TOGETHER), "2"]
        told.clear()


def test_those_who_ask_with_other_seeds_share_a_batch_too(
    client: openai.OpenAI, told: pytest.LogCaptureFixture
) -> None:
    def drawn(seed: int) -> str:
        return text_of(client, "reference", temperature=1.5, top_p=1, seed=seed)

    alone = list(map(drawn, range(6)))
    assert len(set(alone)) == len(batches(told)) == 6
    told.clear()
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(drawn, range(6))) == alone
    until(lambda: sum(int(m.split()[0]) for m in batches(told)) == 6)
    assert len(batches(told)) < 6


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "does not take it"),
    ({"logprobs": True}, "logprobs", "does not take it"),
    ({"response_format": {"type": "json_object"}}, "response_format", "does not take it"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "does not take it"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "does not take it"),
    ({"extra_body": {"temprature": 1}}, "temprature", "does not take it"),
    ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_completion_tokens": 5}, "", "give one of them"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": True}, "n", "valid integer"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
    ({"stop": ""}, "stop.0", "at least 1 character"),
    ({"stream_options": {"include_usage": True}}, "", "stream=true"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": [{"role": "user", "content": " \n"}]}, "messages", "is empty"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "So"}]}, "messages", "must be the user's"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'system', 'developer', 'user'"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role", "'assistant'"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content",
        "not image_url",
    ),
]


@pytest.mark.parametrize(("more", "param", "words"), REFUSED, ids=[f"{next(iter(more))}-{i}" for i, (more, _, _) in enumerate(REFUSED)])  # fmt: skip
def test_what_cannot_be_done_is_refused(client: openai.OpenAI, more: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(words)) as error:
        ask(client, "reference", **more)
    assert (error.value.param or "", error.value.type) == (param, "invalid_request_error")


def test_a_body_that_is_no_json_object_is_refused(url: str) -> None:
    json_type = {"content-type": "application/json"}
    for content, headers, words in (
        ("{", json_type, "not JSON"),
        ("[1]", json_type, "must be a JSON object"),
        ("", json_type, "must be a JSON object"),
        ('{"model": "x"}', {"content-type": "text/plain"}, "content-type: application/json"),
    ):
        answer = httpx.post(f"{url}/chat/completions", content=content, headers=headers)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]


def test_what_asks_for_nothing_is_let_pass(client: openai.OpenAI) -> None:
    first = ask(client, "reference")
    idle = {"tools": [], "logprobs": False, "frequency_penalty": 0, "presence_penalty": None, "user": "me"}
    same = ask(client, "reference", response_format={"type": "text"}, extra_body=idle)
    assert same.choices[0].message.content == first.choices[0].message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    assert text_of(client, "reference", parts) == first.choices[0].message.content
    # the answer goes back as the client has it
    talk = [*QUESTION, first.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]
    more = ask(client, "reference", talk, max_tokens=1)
    assert more.usage.prompt_tokens > first.usage.prompt_tokens
    system = ask(client, "reference", [{"role": "system", "content": "Short."}, *QUESTION])
    developer = ask(client, "reference", [{"role": "developer", "content": "Short."}, *QUESTION])
    assert system.choices == developer.choices
    assert system.usage.prompt_tokens > first.usage.prompt_tokens


def test_old_turns_go_where_they_do_not_fit_and_what_is_too_long_is_refused(
    client: openai.OpenAI, url: str, stage: Stage
) -> None:
    context = stage.context
    assert context is not None
    old = [{"role": "user", "content": "a" * 300}, {"role": "assistant", "content": "b" * 300}]
    body = {"model": "reference", "messages": [*old, *QUESTION], "max_tokens": FULL, "temperature": 0}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
    assert answer.headers["x-dropped-messages"] == "2"
    assert answer.json()["choices"][0]["message"]["content"] == text_of(client, "reference")
    for messages, limit in (([{"role": "user", "content": "c" * context}], FULL), (QUESTION, context)):
        with pytest.raises(openai.BadRequestError, match="max_tokens") as error:
            ask(client, "reference", messages, max_tokens=limit)
        assert error.value.code == "context_length_exceeded"


def test_those_who_ask_at_once_get_their_own_answers_from_shared_batches(
    client: openai.OpenAI, stage: Stage, told: pytest.LogCaptureFixture
) -> None:
    asked = [(name, [{"role": "user", "content": f"Question {i}?"}]) for i in range(3) for name in stage.names]
    alone = [text_of(client, *one) for one in asked]
    assert len(batches(told)) == len(asked)
    assert len(set(alone)) >= len(stage.names)
    told.clear()
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: text_of(client, *one), asked))
    assert together == alone
    until(lambda: sum(int(m.split()[0]) for m in batches(told)) == len(asked))
    assert len(batches(told)) < len(asked)
    assert any(message.count(", ") >= 1 for message in batches(told))  # of several models


def test_a_client_that_goes_away_stops_its_answer(
    client: openai.OpenAI, url: str, stage: Stage, told: pytest.LogCaptureFixture
) -> None:
    def made() -> int:
        until(lambda: batches(told))
        [message] = batches(told)
        assert "the client had gone" in message
        told.clear()
        return int(re.findall(r"(\d+) tokens", message)[0])

    full = ask(client, "reference", max_tokens=LONG)
    until(lambda: batches(told))
    assert full.usage.completion_tokens == LONG  # it does not end by itself
    told.clear()
    stream = ask(client, "reference", max_tokens=LONG, stream=True)
    next(stream), next(stream)
    stream.close()
    assert 0 < made() < LONG
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"model": "reference", "messages": QUESTION, "max_tokens": LONG, "temperature": 0})
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        until(lambda: httpx.get(f"http://{host}:{port}/health").json()["answering"] == 1)
    assert 0 < made() < LONG


def test_one_who_leaves_the_queue_is_never_answered_and_the_next_is(
    client: openai.OpenAI, url: str, told: pytest.LogCaptureFixture
) -> None:
    health = url.removesuffix("/v1") + "/health"
    with ask(client, "reference", max_tokens=LONG, stream=True) as busy:
        next(busy), next(busy)
        with ThreadPoolExecutor(1) as pool, ask(client, "reference", max_tokens=9, stream=True) as waiting:
            later = pool.submit(lambda: text_of(client, "reference", max_tokens=3))
            until(lambda: httpx.get(health).json() == {"status": "ok", "answering": 1, "waiting": 2})
            waiting.close()
            until(lambda: httpx.get(health).json()["waiting"] == 1)
            busy.close()
            assert later.result() == text_of(client, "reference", max_tokens=3)
    until(lambda: len(batches(told)) == 3)
    assert [re.findall(r"\d+ tokens", m)[0] for m in batches(told)[1:]] == ["3 tokens", "3 tokens"]


def test_an_error_reaches_the_client_and_the_next_one_is_answered(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the fan is off")

    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "answers", broken)
        with pytest.raises(openai.InternalServerError, match="RuntimeError: the fan is off"):
            ask(client, "reference")
        with pytest.raises(openai.APIError, match="RuntimeError: the fan is off"):
            list(ask(client, "reference", stream=True))
    assert text_of(client, "reference")


def test_a_key_is_asked_for_and_is_in_no_log(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(stage, KEY) as url:
        with client_of(url, KEY) as client:
            assert len(list(client.models.list())) == 3
            assert text_of(client, "reference")
        for wrong in ("none", KEY[:-1], KEY + "x", "schlüssel"):
            answer = httpx.get(f"{url}/models", headers={"authorization": f"Bearer {wrong}".encode()})
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        for headers in ({}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}):
            answer = httpx.post(f"{url}/chat/completions", json={"model": "x"}, headers=headers)
            assert answer.status_code == 401
        with client_of(url, "wrong") as client, pytest.raises(openai.AuthenticationError, match="Authorization"):
            ask(client, "reference")
        assert httpx.get(url.removesuffix("/v1") + "/health").status_code == 200
    ours = [r for r in caplog.records if r.name.startswith(("dpo_lab", "uvicorn", "fastapi", "asyncio"))]
    assert not any(KEY in r.getMessage() for r in ours)


def test_other_machines_are_let_in_with_a_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HERE.api_key_env, raising=False)
    own = ("127.0.0.1", "127.1.2.3", "::1", "localhost")
    others = ("0.0.0.0", "::", "192.168.0.5", "some.host", "127.0.0.1.example.org")
    assert [is_own(host) for host in (*own, *others)] == [True] * len(own) + [False] * len(others)
    assert find_key(HERE) is None
    for empty in (None, "  "):
        if empty is not None:
            monkeypatch.setenv(HERE.api_key_env, empty)
        with pytest.raises(ConfigError, match=f"serve.host=0.0.0.0 .* {HERE.api_key_env}"):
            find_key(HERE.model_copy(update={"host": "0.0.0.0"}))
    monkeypatch.setenv(HERE.api_key_env, KEY)
    assert find_key(HERE.model_copy(update={"host": "0.0.0.0"})) == find_key(HERE) == KEY


def test_what_is_wrong_is_said_before_anything_loads(
    lab: Results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DPO_LAB_API_KEY", raising=False)

    def refusal(*words: str) -> str:
        config, tree, given = door_of("serve", lab, run_words(lab.runs[0]), *words)
        with pytest.raises(ConfigError) as error:
            serve(config, tree, tmp_path, given=given)
        return str(error.value)

    monkeypatch.setattr("dpo_lab.inference.serve.load_stage", None)
    assert "DPO_LAB_API_KEY" in refusal("serve.host=0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"serve.port={port} cannot be listened at: Address already in use" in refusal(f"serve.port={port}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal().endswith('needs fastapi and uvicorn: pip install "dpo_lab[serve]"')
