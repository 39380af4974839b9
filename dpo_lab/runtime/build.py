"""The one place where a name in the configuration becomes an object."""

from collections.abc import Callable
from typing import Any

from dpo_lab.runtime.errors import ConfigError


def build(target: str, *args: Any, **kwargs: Any) -> Any:
    """Call the class or function named `target`, as Hydra's instantiate would.

    Raises:
        ConfigError: there is no such name, or it does not take these arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate({"_target_": target, "_convert_": "all"}, *args, **kwargs)
    except InstantiationException as e:
        raise ConfigError(f"_target_={target}: {str(e).splitlines()[0]}") from e


def named(target: str) -> Callable[..., Any]:
    """The function or class named `target`."""
    from hydra.utils import get_object

    try:
        return get_object(target)
    except (ImportError, ValueError, AttributeError) as e:
        raise ConfigError(f"_target_={target} cannot be imported: {str(e).splitlines()[0]}") from e
