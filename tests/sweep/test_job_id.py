"""Job ids: they depend on the settings that determine the results, and on nothing else."""

from ablatio.config.compose import compose_run
from ablatio.sweep.arms import job_id


def test_job_id_ignores_settings_without_effect_on_results() -> None:
    plain = job_id(compose_run(["size=tiny"]).config)
    for same in ("logger=[csv,tensorboard]", "logger=wandb", "out=elsewhere", "trainer.threads=2"):
        assert job_id(compose_run(["size=tiny", same]).config) == plain, same
    for other in ("norm=layernorm", "optimizer.lr=0.01", "seed=2", "stabilizer=[clip,ema]"):
        assert job_id(compose_run(["size=tiny", other]).config) != plain, other
