"""DeepSpeed's engine as a strategy: its config, its passes, and an optimizer whose checkpoint is that of one device."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ablatio import Positive
from ablatio.errors import UserError
from ablatio.model.example import Loss
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Build, Pass, Strategy

from ._offload import Offload

MB = 2**20
WIDTH = 4  # bytes of a number: DeepSpeed counts the numbers of a bucket


class Engine(Strategy):
    """Data parallelism with DeepSpeed's optimizer of a stage.

    This class says where a rank's part of each group of parameters is: `vectors`, `cut` and `joined`.
    """

    engine, updates = True, "entry"
    packages = ("deepspeed=ablatio[deepspeed]",)
    stage: ClassVar[int]

    def __init__(
        self,
        ranks: Ranks,
        *,
        bucket_mb: Annotated[float, Positive, "MB that are reduced at once"] = 25.0,
        offload: Offload = "none",
    ) -> None:
        super().__init__(ranks)
        self.bucket_mb, self.offload = bucket_mb, offload
        self.parameters: list[nn.Parameter] = []
        self.group_sizes: list[int] = []
        self.partitioned: Any = None  # DeepSpeed's optimizer; None until `wrap`
        self.names: dict[int, str] = {}
        self.drop_hooks: Callable[[], Any] = lambda: None
        self.idle: set[int] | None = None  # numbers of parameters without a gradient so far; None after the first step

    @property
    def bucket_bytes(self) -> int:
        """Size of a bucket."""
        return int(self.bucket_mb * MB)

    def place(self, step: Pass) -> None:
        os.environ.setdefault("DS_ACCELERATOR", next(step.parameters()).device.type)  # read when it is imported
        self.step_module = step
        self.names = {id(p): name for name, p in step.model.named_parameters()}

    def optimizer(self, build: Build, groups: list[ParameterGroup], piece: str) -> torch.optim.Optimizer:
        made = build(groups)
        self.group_sizes = [len(group["params"]) for group in made.param_groups]
        self.parameters = [p for group in made.param_groups for p in group["params"]]
        self.idle = {*range(len(self.parameters))}
        hooks = [p.register_hook(partial(self._note_gradient, i)) for i, p in enumerate(self.parameters)]
        self.drop_hooks = lambda: [hook.remove() for hook in hooks]
        return made

    def _note_gradient(self, number: int, gradient: Tensor) -> None:
        """Called in the first step, with the gradient of a parameter."""
        if self.idle is not None:
            self.idle.discard(number)

    def before_update(self) -> None:
        """Raise UserError if a weight got no gradient in the first step.

        The engine updates vectors, in which such a weight would decay; the optimizers leave it as it is.
        """
        if self.idle is None:
            return
        has = torch.tensor([float(i not in self.idle) for i in range(len(self.parameters))])
        has = self.ranks.total(has.to(self.parameters[0].device))
        names = [self.names[id(p)] for p, any_rank in zip(self.parameters, has.tolist(), strict=True) if not any_rank]
        self.idle = None
        self.drop_hooks()
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"no gradient reaches {', '.join(names[:3])}{more}, and DeepSpeed's engine would let such weights "
                "decay\n"
                "    try: strategy=fsdp"
            )

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        device = self.parameters[0].device.type
        import deepspeed
        import deepspeed.ops
        from deepspeed.runtime.engine import DeepSpeedEngine
        from deepspeed.utils import groups

        # DeepSpeed calls collectives by the names that they had before torch 2.13.
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
            warnings.filterwarnings("ignore", f"`torch.distributed.{name}`", FutureWarning)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled; gloo does the same
        deepspeed.init_distributed(dist_backend="gloo" if device == "cpu" else "nccl", auto_mpi_discovery=False)
        # All ranks hold the same weights already, and DeepSpeed cannot send a scalar.
        DeepSpeedEngine._broadcast_model = lambda engine: None
        groups._release_process_group_references(group=None)  # those of an earlier run of this process
        config = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed counts no rows: the loss is a sum that we divide
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": self.stage, **self.zero_config(device)},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 0.0,
            "steps_per_print": 2**60,
        }
        self.deepspeed, self.partitioned, _, _ = deepspeed.initialize(
            model=self.step_module, optimizer=optimizer, config=config, dist_init_required=False
        )
        return EngineOptimizer(optimizer, self)

    def zero_config(self, device: str) -> dict[str, Any]:
        """DeepSpeed's settings of the stage."""
        bucket = self.bucket_bytes // WIDTH
        settings: dict[str, Any] = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        if self.offload != "none":
            settings["offload_optimizer"] = {"device": self.offload, "pin_memory": device != "cpu"}
        return settings

    def loss(self, example: Any, last: bool) -> Loss:
        total, weight, measures = self.deepspeed(example)
        return Loss(total, weight, measures)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss * self.ranks.world, scale_wrt_gas=False)  # it takes the mean over the ranks
        if not last:
            self.deepspeed.step()  # counts the batch

    def _gradients(self) -> list[Tensor]:
        """This rank's parts of the gradients; those of all ranks are the whole gradient, each entry once."""
        if self.offload != "none":
            return [vector.grad for vector, _ in self.vectors() if vector.grad is not None]
        return [g for group in self.partitioned.averaged_gradients.values() for g in group or ()]

    def scale_gradients(self, parameters: Any, factor: Tensor) -> None:
        if gradients := self._gradients():
            torch._foreach_mul_(gradients, factor.to(gradients[0].device))

    def gradient_norm(self, parameters: Any) -> Tensor:
        device = self.parameters[0].device
        own = sum((g.square().sum() for g in self._gradients()), torch.zeros(()))
        return self.ranks.total(own.to(device)).sqrt()

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """The engine drops gradients after its step; those on the host stay, and a part may get none in a step."""
        for vector, _ in self.vectors() if self.offload != "none" else ():
            if vector.grad is not None:
                vector.grad.zero_()

    def vectors(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """This rank's part of each vector that the optimizer updates, and the parameters in the vector."""
        raise NotImplementedError

    def joined(self, part: Tensor, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor]:
        """Whole tensors of the parameters from the ranks' parts of a vector; collective."""
        raise NotImplementedError

    def cut(self, whole: Sequence[Tensor], size: int) -> Tensor:
        """This rank's part, of `size` entries, of the vector of whole tensors."""
        raise NotImplementedError


class EngineOptimizer(torch.optim.Optimizer):
    """Optimizer whose step is the engine's; its state_dict is that of one device."""

    def __init__(self, base: torch.optim.Optimizer, strategy: Engine) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base, self.strategy = base, strategy

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        self.strategy.deepspeed.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        numbers = {id(p): i for i, p in enumerate(self.strategy.parameters)}
        state: dict[int, dict[str, Any]] = {}
        for part, parameters in self.strategy.vectors():
            for name, value in self.base.state.get(part, {}).items():
                parts = self.strategy.joined(value, parameters) if _is_vector(value) else (value for _ in parameters)
                for p, piece in zip(parameters, parts, strict=True):
                    # A tensor of its own for each parameter: an optimizer that shared a count would add to it for each.
                    own = piece.detach().clone().cpu() if isinstance(piece, Tensor) else piece
                    state.setdefault(numbers[id(p)], {})[name] = own
        counts = iter(range(len(self.strategy.parameters)))
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "params": [next(counts) for _ in range(size)]}
            for group, size in zip(self.param_groups, self.strategy.group_sizes, strict=True)
        ]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        numbers = {id(p): i for i, p in enumerate(self.strategy.parameters)}
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({k: v for k, v in saved.items() if k != "params"})
        for part, parameters in self.strategy.vectors():
            held = [state_dict["state"].get(numbers[id(p)]) for p in parameters]
            if not all(held):
                continue
            for name, value in held[0].items():
                if _is_vector(value):
                    value = self.strategy.cut([one[name] for one in held], part.numel()).to(part.device)
                self.base.state[part][name] = value.clone() if isinstance(value, Tensor) else value


def _is_vector(value: Any) -> bool:
    """True for state of each entry; False for counts of steps and the like."""
    return isinstance(value, Tensor) and value.dim() > 0
