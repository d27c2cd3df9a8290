"""ZeRO by DeepSpeed's engine: every device holds the whole weights and a part of the optimizer's state.

The engine keeps gradients to itself (`p.grad` is None) and updates one long vector per parameter group, of which each
rank has an equal part.  So optimizers that need whole tensors, and parts that read or change single gradients or
weights, are refused.
"""

import importlib.util
import os
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ablatio import Positive, rule, strategies
from ablatio.errors import EnvironmentFault
from ablatio.model.example import Loss
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Build, Pass, Strategy

MB = 2**20


class _Engine(Strategy):
    """Data parallelism with DeepSpeed's optimizer of a stage."""

    engine, updates = True, "entry"
    stage: ClassVar[int]

    def __init__(self, ranks: Ranks, *, bucket_mb: Annotated[float, Positive, "MB that are reduced at once"] = 25.0):
        super().__init__(ranks)
        self.bucket_mb = bucket_mb
        self.parameters: list[torch.nn.Parameter] = []

    def place(self, step: Pass) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise EnvironmentFault(
                "strategy=zero1 and zero2 use DeepSpeed, which is not installed\n"
                "    try: pip install 'ablatio[deepspeed]', or strategy=fsdp"
            )
        self.step_module = step

    def optimizer(self, build: Build, groups: list[ParameterGroup], piece: str) -> torch.optim.Optimizer:
        made = build(groups)
        self.parameters = [p for group in made.param_groups for p in group["params"]]
        return made

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        device = self.parameters[0].device.type
        os.environ.setdefault("DS_ACCELERATOR", device)
        import deepspeed
        import deepspeed.ops

        # DeepSpeed calls a collective by the name that it had before torch 2.13.
        warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor`", FutureWarning)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled; gloo does the same
        deepspeed.init_distributed(dist_backend="gloo" if device == "cpu" else "nccl", auto_mpi_discovery=False)
        bucket = int(self.bucket_mb * MB)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed counts no rows: the loss is a sum that we divide
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": self.stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,
            "steps_per_print": 2**60,
        }
        self.deepspeed, self.partitioned, _, _ = deepspeed.initialize(
            model=self.step_module, optimizer=optimizer, config=config, dist_init_required=False
        )
        return EngineOptimizer(optimizer, self)

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
        return [g for group in self.partitioned.averaged_gradients.values() for g in group or ()]

    def scale_gradients(self, parameters: Any, factor: Tensor) -> None:
        torch._foreach_mul_(self._gradients(), factor)

    def gradient_norm(self, parameters: Any) -> Tensor:
        own = torch.zeros((), device=self.parameters[0].device)
        for gradient in self._gradients():
            own = own + gradient.square().sum()
        return self.ranks.total(own).sqrt()

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """The engine drops gradients after its step."""


@strategies.register("zero1", paper="arXiv:1910.02054")
class Zero1(_Engine):
    """Every rank updates 1 / n of the weights and holds the optimizer's state of these alone (DeepSpeed's stage 1)."""

    stage = 1


@strategies.register("zero2", paper="arXiv:1910.02054")
class Zero2(_Engine):
    """As zero1, and every rank keeps 1 / n of the summed gradients alone (DeepSpeed's stage 2)."""

    stage = 2


class EngineOptimizer(torch.optim.Optimizer):
    """Optimizer whose step is the engine's; its state_dict is that of one device."""

    def __init__(self, base: torch.optim.Optimizer, strategy: _Engine) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base, self.strategy = base, strategy

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        self.strategy.deepspeed.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass

    def _flat(self) -> Iterator[tuple[Tensor, list[torch.nn.Parameter]]]:
        """This rank's part of the vector of each group, and the group's parameters in the order of the vector."""
        partitioned = self.strategy.partitioned
        yield from zip(partitioned.single_partition_of_fp32_groups, partitioned.round_robin_bit16_groups, strict=True)

    def state_dict(self) -> dict[str, Any]:
        numbers = {id(p): i for i, p in enumerate(self.strategy.parameters)}
        state: dict[int, dict[str, Any]] = {}
        for part, parameters in self._flat():
            for name, value in self.base.state.get(part, {}).items():
                whole = value
                if isinstance(value, Tensor) and value.dim():
                    whole = self.strategy.ranks.gather_rows(value)
                offset = 0
                for p in parameters:
                    piece = whole
                    if isinstance(value, Tensor) and value.dim():
                        piece = whole[offset : offset + p.numel()].view(p.shape).clone().cpu()
                        offset += p.numel()
                    state.setdefault(numbers[id(p)], {})[name] = piece
        counts = iter(range(len(self.strategy.parameters)))
        sizes = [len(parameters) for _, parameters in self._flat()]
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "params": [next(counts) for _ in range(size)]}
            for group, size in zip(self.param_groups, sizes, strict=True)
        ]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        numbers = {id(p): i for i, p in enumerate(self.strategy.parameters)}
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({k: v for k, v in saved.items() if k != "params"})
        for part, parameters in self._flat():
            held = [state_dict["state"].get(numbers[id(p)]) for p in parameters]
            if not all(held):
                continue
            for name, value in held[0].items():
                if isinstance(value, Tensor) and value.dim():
                    vector = torch.cat([one[name].flatten() for one in held])
                    padded = torch.zeros(part.numel() * self.strategy.ranks.world, dtype=vector.dtype)
                    padded[: len(vector)] = vector
                    value = padded.view(-1, part.numel())[self.strategy.ranks.rank].to(part.device).clone()
                self.base.state[part][name] = value.clone() if isinstance(value, Tensor) else value


_ENGINE = "facts.strategy.engine and trainer.devices * trainer.nodes > 1"
for _when, _what, _fix in (
    ("optimizer.name in ('schedule_free', 'adagrad')", "optimizer={optimizer.name} is built or scored",
     "optimizer=adamw"),
    ("'skip_step' in stabilizer", "stabilizer=skip_step drops gradients", "strategy=fsdp"),
    ("'spike_rewind' in stabilizer", "stabilizer=spike_rewind drops gradients", "strategy=fsdp"),
    ("'unit_weights' in stabilizer", "stabilizer=unit_weights changes weights", "strategy=fsdp"),
    ("'outer' in stabilizer", "stabilizer=outer changes weights", "strategy=fsdp"),
    ("roles.frozen", "roles.frozen drops gradients", "strategy=fsdp"),
    ("'roles.frozen' in scheduled or 'model.tied' in scheduled", "a schedule of weights that are held drops gradients",
     "strategy=fsdp"),
    ("facts.peft.reads_gradients", "peft={peft.name} reads gradients", "strategy=fsdp"),
    ("trainer.compile", "trainer.compile makes backward passes", "trainer.compile=false"),
):  # fmt: skip
    rule(
        when=f"{_ENGINE} and ({_when})",
        why=_what + " in a way that strategy={strategy.name}, whose engine keeps gradients and updates to itself, does "
        "not follow",
        fix=_fix,
        where="strategy",
    )
