"""GaLore with a state that a checkpoint can hold."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer

from dpo_lab.runtime.errors import ConfigError


class GaLoreAdamW(Optimizer):
    """AdamW whose moments of matrices live in a subspace of the gradient (arXiv:2403.03507, algorithm 2).

    galore-torch keeps projector objects in its state, which torch.load(weights_only=True) refuses: here a state dict
    holds their matrices. Parameter groups and state are shared with its optimizer, which does the updates.
    """

    splits_matrices = True

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        rank: int,
        update_proj_gap: int,
        scale: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Build from parameter groups that are marked `matrix` or not; only matrices are projected.

        Args:
            params: parameter groups, each with a key `matrix`.
            lr: the rate of groups without one of their own, as is weight_decay.
            weight_decay: decoupled, as in AdamW.
            rank: of the subspace.
            update_proj_gap: steps between new subspaces.
            scale: of the projected update.
            betas: of AdamW.
            eps: added to the root of the second moment.
        """
        projected = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale, "proj_type": "std"}
        groups: Any = [group | (projected if group["matrix"] else {}) for group in params]
        try:
            from galore_torch import GaLoreAdamW as Projected
        except ImportError as e:
            raise ConfigError(
                'optim=galore needs a package that is not installed: pip install "dpo_lab[galore]".'
            ) from e
        self.inner = Projected(groups, lr, (betas[0], betas[1]), eps, weight_decay, no_deprecation_warning=True)
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all parameters."""
        return self.inner.step(closure)  # pyright: ignore[reportArgumentType]

    def state_dict(self) -> dict[str, Any]:
        """The state, with a matrix in place of each projector."""
        whole = super().state_dict()
        state = {
            index: {key: value.ortho_matrix if key == "projector" else value for key, value in one.items()}
            for index, one in whole["state"].items()
        }
        return whole | {"state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back the state, with projectors around their matrices."""
        from galore_torch.galore_projector import GaLoreProjector

        super().load_state_dict(state_dict)
        self._share()
        for group in self.param_groups:
            for parameter in group["params"] if "rank" in group else ():
                state = self.state[parameter]
                if "projector" in state:
                    matrix = state["projector"]
                    state["projector"] = GaLoreProjector(
                        group["rank"],
                        update_proj_gap=group["update_proj_gap"],
                        scale=group["scale"],
                        proj_type=group["proj_type"],
                    )
                    state["projector"].ortho_matrix = matrix

    def _share(self) -> None:
        self.inner.param_groups, self.inner.state = self.param_groups, self.state
