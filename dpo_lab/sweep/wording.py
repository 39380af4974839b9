"""How the values, settings and numbers of a sweep are written for readers."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SEEDS = ("seed", "data.seed")  # axes that make no setting of their own
NONE = "–"


def value_text(value: Any) -> str:
    """The value of an axis: 0.0001 -> 1e-4, True -> true, a list as JSON."""
    if value is None or isinstance(value, bool | list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return number_text(value) if isinstance(value, int | float) else str(value)


def number_text(value: float) -> str:
    """A number as short as it can be: 5e-5, 0.1, 16, 1e6."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.5e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.6g}"


def number_of(value: Any) -> float | None:
    """The value as a finite number; None for switches and other words."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key's last part where it is nobody else's: optim.lr -> lr."""
    keys = list(keys)
    last = {key: key.replace("/", ".").rpartition(".")[2] for key in keys}
    shared = Counter(last.values())
    return {key: name if shared[name] == 1 else key for key, name in last.items()}


def setting_text(axes: Mapping[str, Any]) -> str:
    """`lr 1e-4, beta 0.1`; without axes the setting is the only one."""
    names = short_names(axes)
    return ", ".join(f"{names[key]} {value_text(value)}" for key, value in axes.items()) or "the only setting"


def identity(axes: Mapping[str, Any]) -> str:
    """Equal for equal settings, whatever the order of their keys."""
    return json.dumps({key: value_text(value) for key, value in axes.items()}, sort_keys=True)


def percent(share: float | None) -> str:
    """0.625 -> 62.5 %."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals, its minus as long as a digit; a dash for none."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def kl_text(value: float | None) -> str:
    """Nats per token: small values keep three figures."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as a reader wants them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counted(n: int, one: str, many: str = "") -> str:
    """`1 trial`, `2 trials`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
