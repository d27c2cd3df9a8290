"""What a job is called: by what makes its numbers, and by nothing else."""

from ablatio.config.compose import compose_run
from ablatio.sweep.arms import job_id


def test_a_logger_or_a_folder_is_no_other_job() -> None:
    plain = job_id(compose_run(["size=tiny"]).config)
    for same in ("logger=[csv,tensorboard]", "logger=wandb", "out=elsewhere", "trainer.threads=2"):
        assert job_id(compose_run(["size=tiny", same]).config) == plain, same
    for other in ("norm=layernorm", "optimizer.lr=0.01", "seed=2", "stabilizer=[clip,ema]"):
        assert job_id(compose_run(["size=tiny", other]).config) != plain, other
