"""lm-eval (EleutherAI's evaluation harness) on an exported run."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablatio.errors import UserError


def lm_eval_scores(
    export: Callable[[Path], None], tasks: Sequence[str], include: Path | None = None, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Return lm-eval's scores of the tasks: {task: {"acc": ..., "acc_norm": ...}}.

    Each text begins with the token that opens documents in training (lm-eval's `add_bos_token`).

    export   writes the run as a transformers folder
    include  folder of task files; None: lm-eval's own tasks alone
    limit    largest number of items of a task

    Raises UserError if lm-eval is not installed or does not have a task.
    """
    try:
        from lm_eval import simple_evaluate  # type: ignore[import-not-found]
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            f"lm_eval= needs lm-eval, which cannot be imported: {error}\n    try: pip install 'ablatio[lm-eval]'"
        ) from None
    from ablatio.interop.transformers_model import load

    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise UserError(
            f"lm_eval={unknown[0]}: lm-eval has no such task\n    try: --include FOLDER, the folder of its task file"
        )
    with tempfile.TemporaryDirectory(prefix="ablatio-lm-eval-") as place:
        folder = Path(place) / "model"
        export(folder)
        model = HFLM(
            pretrained=load(folder), tokenizer=str(folder), add_bos_token=True, batch_size=8, device="cpu"
        )  # fmt: skip
        # bootstrap_iters=0: without lm-eval's standard errors, for some of which it resamples.
        found: Any = simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False
        )
    return {task: _numbers(values) for task, values in found["results"].items()}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Scores by name; lm-eval appends the name of a filter, `none` without one."""
    named = {key.removesuffix(",none"): value for key, value in values.items()}
    return {key: float(value) for key, value in named.items() if isinstance(value, int | float)}
