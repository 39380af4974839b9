"""Who talks: the reference, and each result by its name."""

from collections.abc import Sequence

from dpo_lab.config.brought import REFERENCE
from dpo_lab.config.names import did_you_mean, listed
from dpo_lab.runtime.errors import ConfigError

POLICY = "policy"  # the only result, whatever it is called


def find_speaker(word: str, names: Sequence[str]) -> str:
    """The name that a user means.

    Args:
        word: REFERENCE, POLICY, or the name of a result.
        names: of the stage, REFERENCE first.

    Raises:
        ConfigError: nobody of that name is there, or POLICY could be several.
    """
    if word in names:
        return word
    results = [name for name in names if name != REFERENCE]
    if word == POLICY and len(results) == 1:
        return results[0]
    if word == POLICY:
        why = (
            f"there are {listed(results, 'and')}: name one"
            if results
            else "none is here: give run=RUN or adapter=FOLDER"
        )
        raise ConfigError(f"{POLICY} stands for the only result, and {why}.")
    known = [*names, *([POLICY] if len(results) == 1 else [])]
    raise ConfigError(f"There is no {word} here{did_you_mean(word, known)}. There is {listed(known, 'and')}.")


def find_speakers(only: str | None, names: Sequence[str]) -> tuple[str, ...]:
    """Who answers: the one that `only` names, or all.

    Raises:
        ConfigError: nobody of that name is there.
    """
    if only is None:
        return tuple(names)
    try:
        return (find_speaker(only, names),)
    except ConfigError as e:
        raise ConfigError(f"chat.only={only}: {e}") from e


def label(name: str, names: Sequence[str]) -> str:
    """What a name is called on the screen."""
    return f"{POLICY} ({name})" if name != REFERENCE and len(names) == 2 and name != POLICY else name
