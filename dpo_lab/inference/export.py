"""`python -m dpo_lab.export`: a result to take away, loaded back and compared before it is put in place."""

import gc
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.text import Text

from dpo_lab.config.brought import Subject, bring, explicit
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.prepare import Split, read_pairs
from dpo_lab.inference.exports.disk import check_output, folder_size, produce, size, size_of
from dpo_lab.inference.exports.written import Written
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import short
from dpo_lab.runtime.terminal import Terminal, duration


def export(
    config: Config, tree: dict[str, Any], folder: Path, given: Collection[str] | None = None
) -> dict[str, float]:
    """Write a result as an adapter, merged weights or a GGUF file, and compare what was written with the policy.

    Args:
        config: of the door.
        tree: the same as plain containers.
        folder: of Hydra; unused.
        given: keys of the command line; None asks Hydra.

    Returns:
        The bytes of the folder, and how far its log-probs lie from the policy's in nats per token.

    Raises:
        LabError: something the user can act on; nothing of the export is left.
    """
    given = explicit() if given is None else given
    config, tree, subjects = bring(config, tree, given)
    subject = _only(subjects, config)
    assert config.export is not None
    token = None
    if config.export.push_to_hub is not None:
        from dpo_lab.inference.exports.hub import hub_token

        token = hub_token(config.export.push_to_hub)
    if config.output is None:
        raise ConfigError("export needs output=FOLDER, the folder that is made.")
    output, _ = expand(config.output), size_of(config.export.shard_size)
    check_output(output, overwrite=config.overwrite, used=(subject.path, subject.result))
    terminal, begun = Terminal(), time.monotonic()
    split = read_pairs(config.data, expand(config.cache_dir), terminal.progress)
    written = _write(config, given, subject, split, output, terminal)
    written.numbers["export/bytes"] = float(folder_size(output))
    if token is not None:
        _push(config, output, token, terminal)
    _show(terminal, config, output, written, time.monotonic() - begun)
    gc.collect()
    return written.numbers


def _only(subjects: list[Subject], config: Config) -> Subject:
    if len(subjects) != 1:
        named = f"{len(subjects)} are named" if subjects else "none is named"
        raise ConfigError(f"One result is exported at a time, and {named}. Give run=RUN or adapter=FOLDER.")
    subject, what = subjects[0], config.format
    if subject.whole and what == "adapter":
        raise ConfigError(
            f"{subject.path} was trained as a whole and has no adapter. Use format=merged or format=gguf."
        )
    return subject


def _write(
    config: Config, given: Collection[str], subject: Subject, split: Split, output: Path, terminal: Terminal
) -> Written:
    """Load, write beside its place, load back, compare, put in place."""
    with terminal.working("loading libraries"):
        from dpo_lab.inference.exports.making import Making
    making = Making(config, given, subject, split, output, terminal)
    made = making.prepare()
    produce(output, lambda target: making.write(target, made))
    return making.written


def _push(config: Config, output: Path, token: str, terminal: Terminal) -> None:
    from dpo_lab.inference.exports.hub import push

    assert config.export is not None
    assert config.export.push_to_hub is not None
    with terminal.working(f"uploading to {config.export.push_to_hub}"):
        url = push(output, config.export.push_to_hub, token, private=config.export.private)
    terminal.say(f"uploaded to {url}")


def _show(terminal: Terminal, config: Config, output: Path, written: Written, seconds: float) -> None:
    files = sorted(output.iterdir(), key=lambda p: -p.stat().st_size)
    largest = ", ".join(f"{file.name} {size(file.stat().st_size)}" for file in files[:3])
    rows = {"folder": f"{short(output)} ({size(folder_size(output))} in {len(files)} files)", "largest": largest}
    terminal.header(f"Exported: {config.format}", rows | written.rows | {"time": duration(seconds)})
    terminal.say("To load it:")
    for line in [*(f"  {line}" for line in written.use), f"Next: {written.next}"]:
        terminal.console.print(Text(line), soft_wrap=True)  # whole lines, to be copied
