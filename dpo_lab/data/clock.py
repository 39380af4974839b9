"""A clock that stands still, for chat templates that write the day: the same ids on every day."""

from datetime import datetime

NOW = datetime(2024, 7, 26)  # the day that Llama's own templates write where they have no clock
DIRECTIVES = (*("%-d", "%-m", "%-H", "%-I"), *(f"%{letter}" for letter in "aAbBcdDeFHIjmMpRSTxXyY"))


def stopped_clock() -> str:
    """Jinja that puts `strftime_now` of NOW in the place of the one that chat templates are given."""
    replaced = "".join(f" | replace({each!r}, {NOW.strftime(each)!r})" for each in DIRECTIVES)
    return f"{{%- macro strftime_now(format) %}}{{{{- format{replaced} }}}}{{%- endmacro %}}"
