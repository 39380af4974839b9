"""What results are measured against: the log-probs of their reference on disk, and the reference itself for the KL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from dpo_lab.config.brought import REFERENCE
from dpo_lab.config.paths import expand
from dpo_lab.data.types import Example
from dpo_lab.inference import references, setup
from dpo_lab.inference.reference_pass import ReferencePass
from dpo_lab.inference.references import Source
from dpo_lab.inference.stage import Stage
from dpo_lab.inference.start import find_reference
from dpo_lab.preference.forward import Forward, causal_lm
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.ref_cache import RefCache
from dpo_lab.preference.reference import ModelContext
from dpo_lab.runtime.terminal import Terminal


@dataclass(frozen=True)
class Remembered(Forward):
    """A forward pass of one model, of each layout once: the KL of every result needs the same hidden states."""

    passes: dict[tuple[bytes, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def logps_and_hidden(self, model: nn.Module, layout: Layout) -> tuple[Tensor, Tensor]:
        """Per-token log-probs (N,) and the hidden states (N, H) they come from, without gradients."""
        if layout.keys not in self.passes:
            self.passes[layout.keys] = super().logps_and_hidden(model, layout)
        return self.passes[layout.keys]


@dataclass(frozen=True)
class Yardstick:
    """The reference of some results.

    Attributes:
        source: which model it is.
        identity: of its log-probs.
        cache: where they are kept.
        forward: of its passes for the KL.
        model: it, to compute what is missing; may have to be loaded.
        stays: whether it is in memory all the time.
    """

    source: Source
    identity: str
    cache: RefCache
    forward: Remembered
    model: ModelContext
    stays: bool

    @property
    def what(self) -> str:
        """In words."""
        return self.source.what


def yardstick(stage: Stage, terminal: Terminal) -> Yardstick:
    """The reference that the stage's configuration names.

    Raises:
        ModelError: it speaks of other tokens than the results do.
    """
    config, cache_dir = stage.config, expand(stage.config.cache_dir)
    named = find_reference(config, stage.start, cache_dir, terminal.say)
    source = references.reference_source(config, stage.start, named, stage.precision, stage.device)
    references.check_vocabulary(config, source, stage.template.tokenizer)
    identity, facts = references.reference_identity(config, source)
    cache = RefCache(cache_dir, identity, facts=facts)
    forward = Remembered(source.precision.autocast)
    if not source.apart:
        return Yardstick(source, identity, cache, forward, lambda: stage.speaking(REFERENCE), True)
    mode = "frozen" if config.reference.mode == "frozen" else "cached"
    asked = config.model_copy(update={"reference": config.reference.model_copy(update={"mode": mode})})
    _, model = references.build_reference(asked, source, stage.model, cache)
    return Yardstick(source, identity, cache, forward, model, mode == "frozen")


def model_for_kl(measure: Yardstick, stage: Stage, name: str) -> ModelContext | None:
    """The reference as a model while a result is scored, after which the result speaks again.

    None where it is not in memory, or speaks of another vocabulary.
    """
    if not measure.stays:
        return None

    @contextmanager
    def opened() -> Iterator[nn.Module]:
        try:
            with measure.model() as model:
                yield model
        finally:
            with stage.speaking(name):  # of several adapters the one that was chosen last stays
                pass

    with stage.speaking(name) as policy:
        ours = _vocabulary(policy)
    with opened() as model:
        theirs = _vocabulary(model)
    return opened if ours == theirs else None


def _vocabulary(model: nn.Module) -> int:
    return causal_lm(model).get_output_embeddings().weight.shape[0]


def fill(measure: Yardstick, stage: Stage, examples: Sequence[Example], terminal: Terminal) -> int:
    """Compute the log-probs that are not on disk yet; returns of how many pairs. Others who want the same wait.

    Raises:
        LabError: the cache loses what is written to it.
        NoRoom: a single pair does not fit into the GPU's memory.
    """
    source, shape = measure.source, causal_lm(stage.model).config

    def tokens() -> int:
        own = setup.microbatch_tokens(stage.config, shape, stage.precision, stage.device)
        return setup.reference_tokens(own, shape, source.precision, source.device)

    passing = ReferencePass(measure.cache, source, measure.model, stage.passes.shared, tokens, terminal)
    return passing.fill([(examples, row) for row in range(len(examples))])
