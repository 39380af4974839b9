"""Muon for the matrices and AdamW for all else, as one optimizer with one state."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """torch's Muon takes matrices only; a run has one optimizer, one schedule and one state in its checkpoints.

    Parameter groups and state are shared with the two optimizers inside, which do the updates.
    """

    splits_matrices = True

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adjust_lr_fn: str,
        betas: tuple[float, float],
        eps: float,
        fused: bool | None = None,
    ) -> None:
        """Build from parameter groups that are marked `matrix` or not.

        Args:
            params: parameter groups, each with a key `matrix`.
            lr: the rate of groups without one of their own, as is weight_decay.
            weight_decay: decoupled, as in AdamW.
            momentum: of Muon, as are nesterov, ns_steps and adjust_lr_fn.
            nesterov: whether the momentum looks ahead.
            ns_steps: of the Newton-Schulz iteration that makes the momentum orthogonal.
            adjust_lr_fn: how the rate depends on a matrix's shape.
            betas: of AdamW, as are eps and fused.
            eps: added to the root of the second moment.
            fused: one kernel for AdamW's update.
        """
        groups = list(params)
        matrices, rest = ([g for g in groups if g["matrix"] is wanted] for wanted in (True, False))
        own: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self.parts: dict[bool, Optimizer] = {}
        if matrices:
            muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
            self.parts[True] = Muon(matrices, **own, **muon)  # pyright: ignore[reportArgumentType]
        if rest:
            self.parts[False] = AdamW(rest, **own, betas=betas, eps=eps, fused=fused)
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back the state of both parts."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        for matrix, part in self.parts.items():
            part.param_groups = [group for group in self.param_groups if group["matrix"] is matrix]
            part.state = self.state
