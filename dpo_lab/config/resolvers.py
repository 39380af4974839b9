"""What conf/ may compute: `${mul:a,b}` and `${run_id:}`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf


def register() -> None:
    """Make the resolvers known to OmegaConf; a second call changes nothing."""
    OmegaConf.register_new_resolver("mul", _mul, replace=True)
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True, use_cache=False)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The composed config as nested dicts without the hydra node; every interpolation resolved, nothing missing."""
    values = {str(key): cfg[key] for key in cfg if key != "hydra"}
    return {
        key: OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value
        for key, value in values.items()
    }


def _mul(a: float, b: float) -> float | None:
    return None if a is None or b is None else a * b


def _run_id(*, _root_: DictConfig) -> str:
    from dpo_lab.config.identity import run_id

    return run_id(plain(_root_))
