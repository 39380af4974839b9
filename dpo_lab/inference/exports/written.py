"""What is told of an export."""

from dataclasses import dataclass, field


@dataclass
class Written:
    """What an export came to.

    Attributes:
        rows: for the terminal, name -> value.
        numbers: for scripts.
        use: lines of Python that load it.
        next: a command to go on with.
    """

    rows: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    use: list[str] = field(default_factory=list)
    next: str = ""
