"""The examination as a configuration asks for it, and whether its result lets a command go on."""

from dpo_lab.config.schema import Config
from dpo_lab.data.doctor.examine import examine
from dpo_lab.data.doctor.findings import Report
from dpo_lab.data.prepare import Prepared
from dpo_lab.data.templates import Template
from dpo_lab.runtime.errors import Unfit


def examine_data(data: Prepared, config: Config, template: Template) -> Report:
    """The examination that the configuration asks for."""
    return examine(
        data.train,
        data.heldout,
        train_counts=data.train_counts,
        heldout_counts=data.heldout_counts,
        template=template,
        max_length=config.data.max_length,
        pairs=config.doctor.pairs,
        seconds=config.doctor.seconds,
    )


def check_report(report: Report, config: Config) -> None:
    """Stop here if there are findings as bad as `doctor.fail_on`.

    Raises:
        Unfit: there are.
    """
    if report.failed(config.doctor.fail_on):
        first = report.findings[0]
        raise Unfit(
            f"The data has {report.summary()}; doctor.fail_on={config.doctor.fail_on} stops here. First: {first.message} "
            f"{first.fix}"
        )
