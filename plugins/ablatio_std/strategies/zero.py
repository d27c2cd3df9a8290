"""ZeRO by DeepSpeed's engine: every device holds a part of the optimizer's state, of gradients, of weights.

The engine keeps gradients to itself (`p.grad` is None) and updates one long vector per parameter group, of which each
rank has an equal part.  So optimizers that need whole tensors, and parts that read or change single gradients or
weights, are refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ablatio import rule, strategies
from ablatio.model.device_memory import DeviceMemory
from ablatio.model.strategy import Pass, keep_rows_whole, layers_of

from ._engine import WIDTH, Engine

HELD = -1  # a module number that DeepSpeed does not give: weights with it among their users are not dropped


class _WholeWeights(Engine):
    """Stages 1 and 2: a rank's part of a vector is a stretch of it; all ranks hold all weights."""

    def vectors(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        partitioned = self.partitioned
        yield from zip(partitioned.single_partition_of_fp32_groups, partitioned.round_robin_bit16_groups, strict=True)

    def joined(self, part: Tensor, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor]:
        sizes = [p.numel() for p in parameters]
        pieces = self.ranks.gather_rows(part)[: sum(sizes)].split(sizes)
        return (piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True))

    def cut(self, whole: Sequence[Tensor], size: int) -> Tensor:
        vector = torch.cat([one.flatten() for one in whole])
        return nn.functional.pad(vector, (0, size * self.ranks.world - len(vector))).split(size)[self.ranks.rank]

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory:
        """1 / n of the optimizer's state, and of the weights that it updates, once more; a bucket.

        On the host these, and 1 / n of the gradients.
        """
        own, state, host = self.part(one.gradients), self.part(one.optimizer), self.offload == "cpu"
        return replace(
            super().memory(one, piece),
            gradients=one.gradients if self.stage == 1 else own,
            optimizer=0 if host else state,
            buffers=self.bucket_bytes + (0 if host else own),
            host=2 * own + state if host else 0,
        )


@strategies.register("zero1", paper="arXiv:1910.02054")
class Zero1(_WholeWeights):
    """Every rank updates 1 / n of the weights and holds the optimizer's state of these alone (DeepSpeed's stage 1).

    offload=cpu: this state, and the weights that are updated, lie in the memory of the host, which updates them
    (ZeRO-Offload, arXiv:2101.06840).
    """

    stage = 1


@strategies.register("zero2", paper="arXiv:1910.02054")
class Zero2(_WholeWeights):
    """As zero1, and every rank keeps 1 / n of the summed gradients alone (DeepSpeed's stage 2)."""

    stage = 2


@strategies.register("zero3", paper="arXiv:1910.02054")
class Zero3(Engine):
    """As zero2, and every rank keeps 1 / n of each weight (DeepSpeed's stage 3); a layer is whole while it computes.

    It divides what fsdp divides.  Other than fsdp it updates vectors by DeepSpeed's engine, so it refuses what needs
    whole tensors.  offload=cpu: weights, gradients and the optimizer's state lie in the memory of the host, which
    updates them; a layer's weights come to the device while it computes (arXiv:2101.06840).
    """

    stage, shards = 3, True

    def zero_config(self, device: str) -> dict[str, Any]:
        settings = super().zero_config(device) | {
            "stage3_param_persistence_threshold": 0,  # else small weights stay whole
            "stage3_max_reuse_distance": 0,  # else the weights of a small model stay whole until its backward pass
            "stage3_prefetch_bucket_size": self.bucket_bytes // WIDTH,
        }
        if self.offload != "none":
            settings["offload_param"] = {"device": self.offload, "pin_memory": device != "cpu"}
        return settings

    def place(self, step: Pass) -> None:
        super().place(step)
        keep_rows_whole(step.model)
        self.named = dict(step.model.named_parameters(remove_duplicate=False))
        layers = layers_of(step.model)
        inside = {id(p) for layer in layers for p in layer.parameters()}
        self.outside = [p for p in step.parameters() if id(p) not in inside]
        from deepspeed.utils import set_z3_leaf_module

        for layer in layers:
            set_z3_leaf_module(layer, True)
            layer.register_forward_pre_hook(_with_gradient)

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        from deepspeed import zero

        zero.Init._zero_init_param = _divide  # without a broadcast: see Engine.wrap
        made = super().wrap(optimizer)
        for p in self.outside:  # embedding, head, last norm: methods read them that DeepSpeed does not see
            zero.register_external_parameter(self.step_module, p)
        return made

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of the last step: a weight may get none in this one."""
        super().zero_grad(optimizer)
        self.partitioned.grad_partitions_flat_buffer.zero_()

    def vectors(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        yield from zip(self.partitioned.fp32_partitioned_groups_flat, self.partitioned.fp16_groups, strict=True)

    def joined(self, part: Tensor, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor]:
        sizes = [p.partition_numel() for p in parameters]  # type: ignore[operator]
        parts = self.ranks.gather_rows(part).view(self.ranks.world, -1).split(sizes, dim=1)
        for rows, p in zip(parts, parameters, strict=True):
            yield rows.flatten()[: p.ds_numel].view(p.ds_shape)  # type: ignore[call-overload,misc]

    def cut(self, whole: Sequence[Tensor], size: int) -> Tensor:
        world, rank = self.ranks.world, self.ranks.rank
        padded = (nn.functional.pad(t.flatten(), (0, -t.numel() % world)) for t in whole)
        return torch.cat([t.view(world, -1)[rank] for t in padded])

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        if self.partitioned is None:
            yield
            return
        from deepspeed import zero

        assert self.step_module is not None
        parameters = [*self.step_module.parameters()]
        with zero.GatheredParameters(parameters):
            for p in parameters:
                p.ds_active_sub_modules.add(HELD)  # type: ignore[attr-defined]
            try:
                yield
            finally:
                for p in parameters:
                    p.ds_active_sub_modules.discard(HELD)  # type: ignore[attr-defined]

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory:
        """1 / n of weights, gradients and state; whole weights and gradients of one layer and of what is in no layer.

        On the host the weights are there once more, for the optimizer.
        """
        weights, own, state = self.part(one.weights), self.part(one.gradients), self.part(one.optimizer)
        buffers = self.bucket_bytes + 2 * (one.layer + one.outside)
        found = replace(super().memory(one, piece), buffers=buffers)
        if self.offload == "cpu":
            return replace(found, weights=0, gradients=0, optimizer=0, host=weights + 3 * own + state)
        return replace(found, weights=weights, gradients=own, optimizer=state)

    def gather(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        if self.partitioned is None:
            return checkpoint
        weights = checkpoint["state_dict"]
        return {**checkpoint, "state_dict": {name: self._whole(name, t) for name, t in weights.items()}}

    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        """A weight whole, on rank 0; the other ranks take part and keep nothing."""
        from deepspeed import zero

        parameter = self.named.get(name, self.named.get(name.removeprefix("model.")))  # as Lightning names them
        if parameter is None:
            return tensor
        with zero.GatheredParameters([parameter]):
            return parameter.detach().clone().cpu() if self.ranks.first else tensor


def _divide(init: Any, parameter: nn.Parameter) -> None:
    """Divide a weight over the ranks, as DeepSpeed's Init does with one that all of them hold."""
    init._convert_to_deepspeed_param(parameter)
    parameter.partition()  # type: ignore[operator]


def _with_gradient(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let the inputs of a layer have a gradient: DeepSpeed takes it as the sign that the layer's backward pass is over.

    Those of the first layer have none if the embedding is frozen.
    """
    if not torch.is_grad_enabled():
        return inputs
    bare = [isinstance(x, Tensor) and x.is_floating_point() and not x.requires_grad for x in inputs]
    return tuple(x.detach().requires_grad_() if alone else x for x, alone in zip(inputs, bare, strict=True))


_ENGINE = "facts.strategy.engine and trainer.devices * trainer.nodes > 1"
for _when, _what, _fix in (
    ("facts.optimizer.updates == 'tensor'", "optimizer={optimizer.name} updates whole tensors", "strategy=fsdp"),
    ("optimizer.name == 'adamw' and optimizer.hyperball", "optimizer.hyperball updates whole tensors", "strategy=fsdp"),
    ("optimizer.name in ('schedule_free', 'adagrad')", "optimizer={optimizer.name} is built or scored",
     "optimizer=adamw"),
    ("alignment.stop_drops", "alignment.stop_drops drops gradients", "strategy=fsdp"),
    ("alignment.best_of is not None", "alignment.best_of={alignment.best_of} drops gradients", "strategy=fsdp"),
    ("'skip_step' in stabilizer", "stabilizer=skip_step drops gradients", "strategy=fsdp"),
    ("'sparse_updates' in stabilizer", "stabilizer=sparse_updates drops gradients", "strategy=fsdp"),
    ("'spike_rewind' in stabilizer", "stabilizer=spike_rewind drops gradients", "strategy=fsdp"),
    ("'unit_weights' in stabilizer", "stabilizer=unit_weights changes weights", "strategy=fsdp"),
    ("'outer' in stabilizer", "stabilizer=outer changes weights", "strategy=fsdp"),
    ("'ema_nesterov' in stabilizer", "stabilizer=ema_nesterov changes weights", "strategy=fsdp"),
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
for _average in ("ema", "swa", "lawa"):
    rule(
        when=f"{_ENGINE} and facts.strategy.shards and '{_average}' in stabilizer",
        why=f"stabilizer={_average} reads weights after each step, and strategy={{strategy.name}} keeps them in its "
        "engine",
        fix="strategy=fsdp",
        where="stabilizer",
    )
