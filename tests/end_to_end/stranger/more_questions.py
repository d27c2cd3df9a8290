"""What is typed before any extra is installed, and questions of groups that race, tune, align and stretch models."""

from questions import MINE, Step


def _train(*words: str, **more: object) -> Step:
    return Step(("train", *words), **more)  # type: ignore[arg-type]


def _needs(package: str, extra: str, *words: str) -> tuple[str, Step]:
    """A command that is refused because a package is missing, before a folder is made."""
    shows = (f"needs the package {package}, which is not installed", f"try: pip install 'ablatio[{extra}]'")
    typed = _train(MINE, *words, "name=refused", shows=shows, code=2, leaves_out=("runs/refused",))
    return f"{words[-1]} without its package", typed


WITHOUT_EXTRAS: tuple[tuple[str, Step], ...] = (
    ("a run without extras", _train(MINE, "name=plain", shows=("bits per byte",), makes=("runs/plain/summary.json",))),
    _needs("wandb", "wandb", "logger=wandb"),
    _needs("tensorboard", "tensorboard", "logger=[csv,tensorboard]"),
    _needs("mlflow", "mlflow", "logger=mlflow"),
    _needs("peft", "tuning", "model.path=runs/plain", "peft=hf"),
    _needs("ray", "ray", "-m", "seed=1,2", "launcher=ray"),
    _needs("submitit", "slurm", "-m", "seed=1,2", "launcher=slurm"),
    (
        "check says what it needs",
        Step(
            ("check", "parts=parts.py"),
            ("run under pytest, which is not installed", "try: pip install 'ablatio[test]'"),
            2,
        ),
    ),
    (
        "an export without transformers",
        Step(("export", "runs/plain", "--to", "plain"), ("not compared, because transformers is not installed",)),
    ),
)
MORE: tuple[tuple[str, Step], ...] = (
    ("how large is the speedrun's model?", Step(("size", "preset=speedrun"), ("parameters", "state of muon"))),
    (
        "six bits, as in Parameter Golf",
        _train(MINE, "quantization=int6", "quantization.qat=true", "--cfg", "job", shows=("name: int6", "qat: true")),
    ),
    (
        "a budget in minutes, as in both races",
        _train(MINE, "train.minutes=0.3", shows=("s a step here, so train.steps=", "bits per byte")),
    ),
    (
        "fewer heads of keys",
        _train(MINE, "model.n_kv_heads=1", code=2, shows=("attention=OPTION attention.n_kv_heads=1", "gqa")),
    ),
    (
        "LoRA, in the words of peft",
        _train(
            "model.path=runs/first", "peft=lora", "peft.r=4", "target_modules=[q_proj,v_proj]",
            code=2, shows=("try: peft.rank=4", "try: peft.targets=[q_proj,v_proj]"),
        ),
    ),
    ("DPO as a task", _train("model.path=runs/first", "task=dpo", code=2, shows=("which is an option of alignment",))),
    (
        "DPO on what?",
        _train(
            "model.path=runs/first", "task=preference", "alignment=dpo",
            code=2, shows=("task=preference accepts feedback", "try: source=", "This runs: ablatio train"),
        ),
    ),
    (
        "a longer context, in the words of a config.json",
        _train(
            MINE, "rope_theta=500000", "max_position_embeddings=64",
            code=2, shows=("try: position.base=500000", "try: model.max_len=64", "This runs: ablatio train"),
        ),
    ),
    (
        "five rates, as numpy counts them",
        _train(
            "-m", MINE, "optimizer.lr=log(1e-4,1e-2,5)",
            code=2, shows=("log(1e-4,1e-2) with design=random design.runs=5 draws as many",),
        ),
    ),
    (
        "more frozen layers than there are",
        _train(
            MINE, "freeze=[layers.0-30]", "name=frozen-30",
            code=2, shows=("ends behind the last layer of the model", "try: freeze=[layers.0-1]"),
        ),
    ),
    ("my YAML without its path", _train("experiment=my", code=2, shows=("by its path: experiment=./my.yaml",))),
    (
        "attention in one layer alone",
        _train(MINE, "layers.1.attention=none", code=2, shows=("layers.at.attention={1:OPTION}",)),
    ),
)  # fmt: skip
