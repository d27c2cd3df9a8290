"""YAML options of a plugin: each composes into a valid config; a recipe and a sweep into a plan of valid runs."""

from pathlib import Path

from ablatio.errors import AblatioError
from ablatio.registry.registry import REGISTRIES
from ablatio.storage.paths import shipped

KINDS = ()


def test_composes(conf: Path) -> None:
    from ablatio.config.compose import compose_run
    from ablatio.config.yaml_files import SWEEP
    from ablatio.sweep.plan import plan_sweep
    from ablatio.sweep.recipes.plan import plan_recipe
    from ablatio.sweep.recipes.schema import RECIPE

    folder = next(p for p in conf.parents if p.name == "conf")
    group = conf.parent.relative_to(folder).as_posix()
    stands = group in REGISTRIES or (shipped("conf") / group).is_dir()  # else nothing is there to be overridden
    override, problem = f"{'' if stands else '+'}{group}={conf.stem}", ""
    try:
        if group == RECIPE:
            plan_recipe([override])
        elif group == SWEEP:
            plan_sweep([override])
        else:
            compose_run([override])
    except AblatioError as error:
        problem = str(error)
    assert not problem, f"{override} ({conf}): {problem}"
