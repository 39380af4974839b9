"""conf/ itself: every option composes to a valid configuration and says nothing that the schema does not know."""

from itertools import zip_longest

import hydra
import pytest
import yaml
from composing import composed
from hydra.core.global_hydra import GlobalHydra

from dpo_lab.config import schema
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.sources import Sources

NEEDS = {"model=hf": ["model.name=me/model"], "data=hub": ["data.hub.name=me/pairs"]}


def options() -> list[str]:
    """From Hydra's own loader, not from our listing of files."""
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = [g for g in loader.list_groups("") if g != "hydra"]
        return [f"{group}={option}" for group in groups for option in loader.get_group_options(group)]


OPTIONS = options()


def test_there_are_options_and_our_listing_agrees_with_hydras():
    assert len(OPTIONS) > 30
    sources = Sources()
    assert sorted(f"{g}={o}" for g in sources.groups for o in sources.options(g)) == sorted(OPTIONS)


def rounds() -> list[list[str]]:
    """Command lines that name every option once: the first of each group, the second of each, ..."""
    columns: dict[str, list[str]] = {}
    for option in OPTIONS:
        columns.setdefault(option.partition("=")[0], []).append(option)
    experiments = columns.pop("experiment")
    return [[o for o in row if o] for row in zip_longest(*columns.values())] + [[e] for e in experiments]


def test_the_rounds_name_every_option():
    assert sorted(o for row in rounds() for o in row) == sorted(OPTIONS)


@pytest.mark.parametrize("row", rounds(), ids=" ".join)
def test_every_option_and_experiment_composes_and_validates(row):
    assert composed(*row, *(word for option in row for word in NEEDS.get(option, [])))


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.startswith("experiment=")])
def test_every_key_of_an_option_is_in_the_schema(option):
    group, _, name = option.partition("=")
    keys = yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    model = schema.Config.model_fields[group].annotation
    known = {field.alias or key for key, field in model.model_fields.items()}
    extra = set(keys) - known
    assert not extra or model.model_config["extra"] == "allow", extra


def test_interpolations_of_hydra_stay_in_the_hydra_node():
    for file in CONF_DIR.rglob("*.yaml"):
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        tree.pop("hydra", None)
        assert "${hydra:" not in yaml.safe_dump(tree), file


def test_alpha_follows_the_rank():
    assert composed("lora.r=5").lora.alpha == 10
    assert composed("lora=none").lora.alpha is None
