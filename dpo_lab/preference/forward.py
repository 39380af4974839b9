"""From a layout of pairs to per-token log-probs of their answers.

Two ways, held together by tests: `padded` (any architecture, the yardstick) and `shared` (the layout as it is).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dpo_lab.preference.attention import NAME
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.logps import Head, head_of, token_kl, token_logps, token_statistics


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside, adapters included where there are any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def depends_on_length(config: Any) -> bool:
    """Whether a token's embedding depends on the length of its whole sequence (dynamic rotary scaling)."""
    return rope_type(config) == "dynamic"


def rope_type(config: Any) -> str | None:
    """The kind of rotary scaling of a transformers configuration."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return (parameters.get("full_attention") or parameters).get("rope_type")


def padded_hidden(model: nn.Module, layout: Layout) -> Tensor:
    """Hidden states (N, H) that predict each completion token, from rows of prompt + answer (2B, L)."""
    rows, predictors = layout.padded()
    lm = causal_lm(model)
    positions = layout.padded_positions() if depends_on_length(lm.config) else None
    hidden = lm.get_decoder()(input_ids=rows, position_ids=positions, use_cache=False).last_hidden_state  # (2B, L, H)
    return hidden.flatten(0, 1)[predictors]


def shared_hidden(model: nn.Module, layout: Layout) -> Tensor:
    """Hidden states (N, H) that predict each completion token, from the pack as it lies (1, T); see `sharing.share`."""
    # No mask is built where one is given. Who looks at this one has not got the layout, and spoils its numbers.
    nothing = torch.full((1, 1, 1, 1), torch.nan, device=layout.ids.device)
    decoder = causal_lm(model).get_decoder()
    out = decoder(
        input_ids=layout.ids[None],
        position_ids=layout.positions[None],
        attention_mask=nothing,
        use_cache=False,
        layout=layout,
    )
    return out.last_hidden_state[0][layout.predictors]


@dataclass(frozen=True)
class Forward:
    """How log-probs are computed, the same for policy and reference.

    Attributes:
        compute: dtype of the matrix products under autocast; None computes in the weights' own.
        shared: the `shared` way for models that were made to take it.
    """

    compute: torch.dtype | None = None
    shared: bool = True

    def shares(self, model: nn.Module) -> bool:
        """Whether the model's pass is the `shared` one."""
        return self.shared and causal_lm(model).config._attn_implementation == NAME

    def logps(self, model: nn.Module, layout: Layout) -> Tensor:
        """Per-token log-probs (N,) of the completions."""
        return self._logps_and_hidden(model, layout)[0]

    def statistics(self, model: nn.Module, layout: Layout) -> tuple[Tensor, Tensor]:
        """Per-token log-probs (N,) of the completions, and log sum_v p_v^2 (N,) over the vocabulary at their place."""
        return self._statistics_and_hidden(model, layout)[:2]

    @torch.no_grad()
    def statistics_and_hidden(self, model: nn.Module, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """`statistics`, and the hidden states (N, H) they come from, without gradients."""
        return self._statistics_and_hidden(model, layout)

    @torch.no_grad()
    def logps_and_hidden(self, model: nn.Module, layout: Layout) -> tuple[Tensor, Tensor]:
        """Per-token log-probs (N,) and the hidden states (N, H) they come from, without gradients."""
        return self._logps_and_hidden(model, layout)

    @torch.no_grad()
    def kl(self, hidden: Tensor, head: Head, ref_hidden: Tensor, ref_head: Head) -> Tensor:
        """Exact KL(policy || reference) in nats at each completion position, (N,), from hidden states (N, H)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return token_kl(hidden, head, ref_hidden, ref_head)

    def _logps_and_hidden(self, model: nn.Module, layout: Layout) -> tuple[Tensor, Tensor]:
        hidden = self._hidden(model, layout)
        return self._head(token_logps, hidden, model, layout), hidden

    def _statistics_and_hidden(self, model: nn.Module, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self._hidden(model, layout)
        return *self._head(token_statistics, hidden, model, layout), hidden

    def _head(self, function: Callable[..., Any], hidden: Tensor, model: nn.Module, layout: Layout) -> Any:
        """Of every completion token; of an answer that several pairs have but once."""
        once = layout.once if self.shares(model) else None
        # Whoever calls may be under autocast (Lightning is); the head is not, so that all log-probs are alike.
        with torch.autocast(hidden.device.type, enabled=False), record_function("dpo_lab/head"):
            head = head_of(causal_lm(model))
            if once is None:
                return function(hidden, layout.targets, head)
            found = function(hidden[once[0]], layout.targets[once[0]], head)
            return found[once[1]] if isinstance(found, Tensor) else tuple(part[once[1]] for part in found)

    def _hidden(self, model: nn.Module, layout: Layout) -> Tensor:
        with self.precision(layout), record_function("dpo_lab/body"):
            return shared_hidden(model, layout) if self.shares(model) else padded_hidden(model, layout)

    def precision(self, layout: Layout) -> AbstractContextManager[None]:
        """Autocast on the layout's device as the run asks for it, whatever is around."""
        # Without one of its own it is switched off: whoever calls may be under another's (Lightning's, of the policy).
        on = self.compute is not None
        return torch.autocast(layout.ids.device.type, dtype=self.compute, enabled=on)  # type: ignore[return-value]
