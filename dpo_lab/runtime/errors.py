"""Errors that the user can act on: shown as their message alone, without a traceback."""


class LabError(Exception):
    """What was asked, what is wrong, what to do.

    Attributes:
        kind: what a sweep makes of it: error, guard, disk, oom.
    """

    kind = "error"


class ConfigError(LabError):
    """The configuration cannot be run."""


class DataError(LabError):
    """The preference data cannot be used."""


class ModelError(LabError):
    """The model, tokenizer or adapter cannot be had or does not fit."""


class OutputError(LabError):
    """The run cannot be written: full disk, unwritable folder, a folder in use."""


class Unfit(LabError):
    """The examination of the data found what `doctor.fail_on` does not let pass."""


class Guarded(LabError):
    """A guard stopped the run: its numbers had ceased to mean anything."""

    kind = "guard"


class DiskFull(OutputError):
    """There is no room left for what the run writes; no other run would find any."""

    kind = "disk"


class NoRoom(LabError):
    """A single pair does not fit into the device's memory."""

    kind = "oom"


class Interrupted(Exception):
    """A signal or control.json asked the run to end; what was reached is saved."""

    def __init__(self, status: str, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.status, self.reason, self.exit_code = status, reason, exit_code
