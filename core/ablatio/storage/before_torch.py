"""Settings of the environment that torch reads when it is imported."""

import os


def set_defaults() -> None:
    """Set what suits runs beside other programs and sweeps that fork; what the user has set stays.

    It has no effect in a process that has imported torch before.
    """
    # By default OpenMP threads spin while they wait: if another program uses the cores too, a step of the default model
    # takes 3.5 s instead of 0.1 s.  Passive waiting costs little on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Detect a GPU without initializing CUDA, because a sweep forks its runs from this process.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
