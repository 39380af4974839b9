"""One export from the loaded policy to a checked folder."""

import gc
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import device as Device

from dpo_lab.config.brought import Subject
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.prepare import Split
from dpo_lab.data.templates import Template
from dpo_lab.inference.exports import adapter, card, gguf_file, merged, ollama
from dpo_lab.inference.exports.check import SAME, Gap, check_pairs, plain_logps, policy_logps, reload, tolerance_of
from dpo_lab.inference.exports.disk import RECORD, check_output, check_room, folder_size, size_of
from dpo_lab.inference.exports.written import Written
from dpo_lab.inference.stage import load_stage
from dpo_lab.inference.start import Start, find_start
from dpo_lab.models.load import model_config
from dpo_lab.models.locate import Located
from dpo_lab.models.precision import Precision
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.preference.layout import Layout
from dpo_lab.runtime.errors import ModelError, OutputError
from dpo_lab.runtime.files import short, write_json
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Policy:
    """What is left of the policy when it has been unloaded: enough to write it and to check what was written."""

    start: Start
    template: Template
    precision: Precision
    device: Device
    layouts: list[Layout]
    logps: Tensor  # (N,) as it was trained, of the pairs in `layouts`


class Making:
    """The steps of one export; `written` tells what came of them."""

    def __init__(
        self,
        config: Config,
        given: Collection[str],
        subject: Subject,
        split: Split,
        output: Path,
        terminal: Terminal,
    ) -> None:
        assert config.export is not None
        self.config, self.settings, self.given, self.subject = config, config.export, given, subject
        self.split, self.output, self.terminal = split, output, terminal
        self.written = Written()

    def prepare(self) -> Policy:
        """Look at what is asked, load the policy, compute its log-probs, and let go of it.

        Raises:
            LabError: it cannot be exported so.
        """
        with self.terminal.working("looking at the model") as say:
            start = find_start(self.config, expand(self.config.cache_dir), say)
            used = [start.located.path, *([start.adapter] if start.adapter is not None else [])]
            check_output(self.output, overwrite=self.config.overwrite, used=used)
            if self.config.format != "adapter" and not self.subject.whole:
                merged.check_base(self.config, self.given, start, str(self.config.format))
            if self.config.format == "gguf":
                holder = Located(self.subject.result, self.subject.name) if self.subject.whole else start.located
                gguf_file.check_architecture(self._shape(holder), load_tokenizer(holder, self.config.model))
        stage = load_stage(self.config, [self.subject], self.terminal)
        layouts = check_pairs(self.config, self.split, stage.template)
        logps = policy_logps(stage, self.subject.name, layouts)
        policy = Policy(stage.start, stage.template, stage.precision, stage.device, layouts, logps)
        del stage
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return policy

    def write(self, target: Path, policy: Policy) -> None:
        """Fill a folder, and raise where it does not hold what it should.

        Raises:
            LabError: the check failed, or it cannot be written.
        """
        writers: dict[str, Callable[[Path, Policy], None]] = {
            "adapter": self._adapter,
            "merged": self._merged,
            "gguf": self._gguf,
        }
        writers[str(self.config.format)](target, policy)
        card.write_card(target, self.subject, policy.start, self.config, self.written, self.output)
        record = {
            "format": self.config.format,
            "result": self.subject.facts.get("run_id") or self.subject.name,
            "base": policy.start.located.name,
        }
        record |= {"base_identity": policy.start.located.identity(expand(self.config.cache_dir))}
        write_json(target / RECORD, record | {"rows": self.written.rows, "numbers": self.written.numbers})

    def _adapter(self, target: Path, policy: Policy) -> None:
        check_room(self.output, folder_size(self.subject.result))
        with self.terminal.working("copying the adapter"):
            adapter.write_adapter(self.subject.result, policy.template, target)
        with self.terminal.working("loading it back"), _readable():
            again = adapter.adapter_logps(
                self.config, policy.start, policy.precision, policy.device, target, policy.layouts
            )
        self._compare(Gap.of(again, policy.logps), adapter.adapter_tolerance(self.config, policy.precision), "the copy")
        self.written.use = card.use_adapter(short(self.output), target)
        self.written.next = f"python -m dpo_lab.chat adapter={short(self.output)}"

    def _merged(self, target: Path, policy: Policy) -> None:
        model, exact = self._whole(policy)
        dtype = getattr(torch, self.settings.dtype)
        check_room(self.output, sum(p.numel() for p in model.parameters()) * dtype.itemsize)
        with self.terminal.working(f"writing the weights in {self.settings.dtype}"):
            merged.round_weights(model, dtype)
            merged.write_merged(model, policy.template, target, shard_size=size_of(self.settings.shard_size))
            merged.round_weights(model, torch.float32)
            meant = plain_logps(model, policy.layouts)
        del model
        with self.terminal.working("loading it back"), _readable():
            again = plain_logps(reload(self.config, target, self.output.name), policy.layouts)
        self._check_weights(policy, exact, meant, again, self.settings.dtype)
        self.written.use = card.use_merged(short(self.output))
        self.written.next = f"vllm serve {short(self.output)}"

    def _gguf(self, target: Path, policy: Policy) -> None:
        (model, exact), type_ = self._whole(policy), self.settings.gguf_type
        sizes = [p.numel() for p in model.parameters()]
        bytes_each = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}[type_]
        check_room(self.output, int(sum(sizes) * bytes_each))
        target.mkdir()
        file = target / f"model-{type_}.gguf"
        with self.terminal.progress("writing the GGUF file", len(sizes), unit="tensors", summary=False) as bar:
            name = self.output.name
            gguf_file.write_gguf(model, policy.template, file, type_, name=name, advance=bar.advance)
        meant = plain_logps(model, policy.layouts)
        del model
        with self.terminal.working("loading it back"), _readable():
            found, tokenizer = gguf_file.read_gguf(file)
            again = plain_logps(found, policy.layouts)
        self._check_weights(policy, exact, meant, again, type_)
        self._compare_tokens(tokenizer, policy)
        text, why = ollama.modelfile(policy.template, file.name)
        (target / "Modelfile").write_text(text, encoding="utf-8")
        self.written.rows["Modelfile"] = f"without TEMPLATE: {why}" if why else "with the chat template and its stops"
        self.written.use = card.use_gguf(short(self.output), file.name)
        self.written.next = f"ollama create {self.output.name.lower()} -f {short(self.output)}/Modelfile"

    def _shape(self, located: Located) -> object:
        """The transformers configuration with the scaling of its positions."""
        from dpo_lab.models.rope import resolve, scaled_config

        config = model_config(located, self.config.model)
        if self.subject.whole:
            return config
        scaling = resolve(self.config.model.rope, config, self.config.data.max_length)
        return scaled_config(config, scaling) if scaling else config

    def _whole(self, policy: Policy) -> tuple[Any, Tensor]:
        """The result as one model, and its log-probs before anything was rounded."""
        with self.terminal.working("merging" if not self.subject.whole else "loading the weights"):
            return merged.merge(self.config, self.subject, policy.start, policy.layouts)

    def _check_weights(self, policy: Policy, exact: Tensor, meant: Tensor, again: Tensor, stored: str) -> None:
        """What was loaded back is what was written, and lies as near to the policy as its type allows."""
        damage = Gap.of(again, meant)
        if not damage.within(SAME):
            raise OutputError(
                f"The export does not hold what was written: loaded back, its log-probs differ by {damage} from those of "
                f"the weights in memory. It was removed. Try again, and check the disk of {self.output.parent}."
            )
        tolerance, bits = tolerance_of(self.config, stored, policy.precision), self.config.quant.bits
        if bits is None:
            self._compare(Gap.of(again, policy.logps), tolerance, f"weights in {stored}")
            return
        self._compare(Gap.of(again, exact), tolerance, f"weights in {stored}", "the adapter on the unquantised base")
        quantised = Gap.of(again, policy.logps)
        self.written.rows[f"{bits}-bit policy"] = f"{quantised} from the export: what quantising the base had changed"
        self.written.numbers["export/quantised_gap"] = quantised.mean

    def _compare(self, gap: Gap, tolerance: float, what: str, against: str = "the policy") -> None:
        """Note how far the export lies from the policy.

        Raises:
            OutputError: further than the tolerance.
        """
        if not gap.within(tolerance):
            raise OutputError(
                f"The export is not the policy: its log-probs on {self.settings.check_pairs} pairs differ by {gap} from "
                f"those of {against}, and {what} may differ by {tolerance:g} on average. It was removed. Use a wider type "
                "(export.dtype=float32, export.gguf_type=f32), or allow more with export.tolerance=NATS."
            )
        self.written.rows["check"] = f"{gap} from {against}; allowed {tolerance:g} ({what})"
        self.written.numbers |= {"export/gap": gap.mean, "export/worst_gap": gap.worst, "export/tolerance": tolerance}

    def _compare_tokens(self, tokenizer: object, policy: Policy) -> None:
        """Say where transformers cuts a text otherwise when it reads the tokenizer from the file."""
        theirs = getattr(tokenizer, "backend_tokenizer", None)
        ours = policy.template.tokenizer
        for layout in policy.layouts:
            text = ours.decode(layout.ids.tolist(), skip_special_tokens=False)
            if (
                theirs is None
                or theirs.encode(text, add_special_tokens=False).ids
                != ours(text, add_special_tokens=False)["input_ids"]
            ):
                log.warning(
                    "transformers, reading the tokenizer from the GGUF file, cuts a text of the pairs otherwise than the "
                    "run's own tokenizer. Programs that have their own reader, such as llama.cpp, may not."
                )
                return


@contextmanager
def _readable() -> Iterator[None]:
    """What cannot be loaded back was not written as it should be."""
    from safetensors import SafetensorError

    try:
        yield
    except (ModelError, SafetensorError, OSError, ValueError, RuntimeError, KeyError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise OutputError(f"The export could not be loaded back, and was removed: {reason}") from None
