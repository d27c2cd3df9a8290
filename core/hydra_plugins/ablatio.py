"""What Hydra finds of ablatio: its sweeper and its launcher.

Every program of this environment that uses Hydra imports this module, so nothing is done and nothing is imported here
that Hydra itself has not imported.  The names of the options are given in ablatio's own programs only.
"""

from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper


class AblatioLauncher(Launcher):
    """Where runs are executed: the part `name` of the kind `launcher`, and its knobs."""

    def __init__(self, name: str, **knobs: Any) -> None:
        self.name, self.knobs = name, knobs

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Nothing is needed but name and knobs."""

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        raise NotImplementedError(f"hydra/launcher={self.name} executes the jobs of ablatio's sweeper only")


class AblatioSweeper(Sweeper):
    """Hands the launcher over to the task, which is the study."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from hydra.core.plugins import Plugins

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        return self.task_function.sweep(launcher)
