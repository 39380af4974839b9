"""`python -m dpo_lab.serve`: load, listen, answer until interrupted."""

import importlib.util
import ipaddress
import json
import os
import shlex
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.text import Text

from dpo_lab.config.brought import REFERENCE, bring, explicit
from dpo_lab.config.door_schema import Serve
from dpo_lab.config.schema import Config
from dpo_lab.inference.api.app import make_app
from dpo_lab.inference.api.front import POLICY, Front
from dpo_lab.inference.api.worker import Worker
from dpo_lab.inference.stage import Stage, load_stage
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.terminal import Terminal

PACKAGES = ("fastapi", "uvicorn")
GRACE_SECONDS = 5  # at the end, for clients that are slow to take what they were sent
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # addresses to listen at, and where to find them from here


def serve(config: Config, tree: dict[str, Any], folder: Path, given: Collection[str] | None = None) -> dict[str, float]:
    """Results and their reference behind OpenAI's chat API, until Ctrl-C.

    Args:
        config: the validated configuration, with its node serve.
        tree: the same as plain containers.
        folder: takes nothing.
        given: keys that the command line names; None asks Hydra.

    Raises:
        LabError: something the user can act on.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f'dpo_lab.serve needs {" and ".join(missing)}: pip install "dpo_lab[serve]"')
    config, tree, subjects = bring(config, tree, explicit() if given is None else given)
    asked = config.serve
    assert asked is not None
    key = find_key(asked)
    terminal = Terminal()
    with listen(asked) as listener:
        stage = load_stage(config, subjects, terminal)
        worker = Worker(stage)
        server = make_server(make_app(Front(stage, worker), key), worker)
        show(terminal, stage, asked, listener.getsockname()[1], locked=key is not None)
        worker.start()
        try:
            server.run(sockets=[listener])
        finally:
            worker.close()
            worker.join()
    return {}


def find_key(asked: Serve) -> str | None:
    """The key that clients must send.

    Raises:
        ConfigError: the address is not this machine's alone, and there is none.
    """
    key = os.environ.get(asked.api_key_env, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"The API key in the environment variable {asked.api_key_env} has characters beyond ASCII.")
    if not key and not is_own(asked.host):
        raise ConfigError(
            f"serve.host={asked.host} is reached from other machines, so clients must send a key. Set one in the "
            f"environment variable {asked.api_key_env}, or use serve.host=127.0.0.1."
        )
    return key or None


def is_own(host: str) -> bool:
    """Whether an address is this machine's alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(asked: Serve) -> socket.socket:
    """A socket at the address; before anything loads, so that a port in use is known at once.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(asked.host, asked.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as e:
        reason = e.strerror or str(e)
        raise ConfigError(
            f"serve.host={asked.host} serve.port={asked.port} cannot be listened at: {reason}. Choose another "
            "serve.port, or serve.port=0 for any free one."
        ) from e


def make_server(app: Any, worker: Worker) -> Any:
    """A uvicorn server; at its end the worker lets go of those who wait, or their connections would not close."""
    import uvicorn

    class Server(uvicorn.Server):
        """Ends the worker before it waits for connections."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Called once, when the server is to end."""
            worker.close()
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def show(terminal: Terminal, stage: Stage, asked: Serve, port: int, *, locked: bool) -> None:
    """The address, the models, and a line to try it with."""
    g = stage.config.generation
    results = stage.names[1:]
    alias = f' ("{POLICY}" is {results[0]})' if len(results) == 1 and POLICY not in results else ""
    drawn = f"temperature {g.temperature:g}, top_p {g.top_p:g}" if g.temperature else "the most probable tokens"
    terminal.header(
        f"{_url(asked.host, port)}/v1",
        {
            "models": ", ".join(stage.names) + alias,
            "unless asked otherwise": f"{drawn}, at most {g.max_new_tokens} tokens",
            "key": f"the one in {asked.api_key_env}" if locked else "none needed",
            "end": "Ctrl-C",
        },
    )
    name = results[0] if results else REFERENCE
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello!"}]}, ensure_ascii=False)
    words = ["curl", f"{_url(ANYWHERE.get(asked.host, asked.host), port)}/v1/chat/completions"]
    words += ["-H", shlex.quote("content-type: application/json")]
    if locked:
        words += ["-H", f'"authorization: Bearer ${asked.api_key_env}"']
    line = " ".join([*words, "-d", shlex.quote(body)])
    terminal.console.print(Text(line), soft_wrap=True)  # one line, however long: it is there to be copied


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
