"""Pipeline parallelism: every device has some consecutive layers, and parts of a batch pass through them in turn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from ablatio import Range, strategies
from ablatio.errors import AblatioError
from ablatio.model.device_memory import DeviceMemory
from ablatio.model.example import Loss
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.model.ranks import Ranks, using
from ablatio.model.stages import Held, Stage, forget_others, held_by_stages, layer_ranges, microbatches_of
from ablatio.model.strategy import Build, Pass, Strategy
from ablatio_std.strategies._sums import add_gradients, summed

OPTIMIZER = "optimizer_states"  # Lightning's key of a checkpoint
PER_STAGE = 4  # microbatches for each stage, from which on the idle time is small (GPipe, section 2.3)
Schedule = Annotated[Literal["1f1b", "gpipe"], "order of forward and backward passes"]
Microbatches = Annotated[
    int | None, Range(1), "parts of a batch; null: the largest number that divides its rows, up to 4 for each device"
]


@strategies.register("pipeline", paper="arXiv:1811.06965")
class Pipeline(Strategy):
    """f = f_n . ... . f_1: device i has the layers of stage f_i, and sends the residual stream to the next one.

    A batch is cut into m microbatches, so that the devices work at the same time; of n stages each is idle for
    (n - 1) / (m + n - 1) of a step.  gpipe computes all forward passes, then all backward passes, and stores the
    activations of m microbatches; 1f1b (arXiv:2006.09503) alternates them, and the first stage stores those of n.  With
    m < n the two are one.  Sending, receiving and the schedule are those of torch.distributed.pipelining.
    """

    splits, shards, updates = "layers", True, "tensor"

    def __init__(self, ranks: Ranks, *, schedule: Schedule = "1f1b", microbatches: Microbatches = None) -> None:
        super().__init__(ranks)
        self.schedule, self.microbatches = schedule, microbatches
        self.held: list[Held] = []
        self.absent: dict[int, Held] = {}  # by the id of the tensor without numbers in its place
        self.names: set[str] = set()  # of what the stages measure
        self.ready: tuple[Any, Any] | None = None
        self.ended = False  # True if the gradients are those of a step that is over

    def place(self, step: Pass) -> None:
        self.step_module, rank = step, self.ranks.rank
        self.held = held_by_stages(step.model, self.ranks.world)
        self.stage = Stage(step, rank, self.ranks.world)
        self.absent = {id(held.tensor): held for held in forget_others(self.held, rank)}
        own = [held for held in self.held if rank in held.stages and held.trained]
        self.own: list[Any] = [held.tensor for held in own]
        self.counted = {id(held.tensor) for held in own if held.stages[0] == rank}
        self.shared = self._shared()

    def _shared(self) -> list[tuple[list[Any], Callable[[Tensor], Tensor]]]:
        """Trained tensors that several stages use, with the sum over these stages; all ranks make the groups."""
        found = []
        for stages in dict.fromkeys(held.stages for held in self.held if held.trained and len(held.stages) > 1):
            group = dist.new_group([*stages]) if len(stages) < self.ranks.world else None
            tensors = [held.tensor for held in self.held if held.trained and held.stages == stages]
            if self.ranks.rank in stages:
                found.append((tensors, _sum_in(group)))
        return found

    def loss(self, example: Any, last: bool) -> Loss:
        """Pass a batch through all stages, forward and backward: the gradients are those of the summed loss."""
        if self.ended:  # the trainer drops gradients after this pass, which makes the new ones
            self._drop_gradients()
        parts = microbatches_of(example, self._count(len(example.inputs)))
        self.stage.feed(parts)
        schedule, numbers = self._schedule_for(self.stage.states_like(parts[0]), len(parts))
        self._run(schedule, numbers)
        return self._joined()

    def _count(self, rows: int) -> int:
        """Number of microbatches of a batch: a divisor of its rows, at most that which is asked for."""
        most = min(rows, self.microbatches or PER_STAGE * self.ranks.world)
        return next(count for count in range(most, 0, -1) if rows % count == 0)

    def _schedule_for(self, states: Tensor, count: int) -> tuple[Any, Tensor]:
        """The schedule for states of this shape, and the numbers of the microbatches; the newest one is kept."""
        key = (count, states.shape)
        if self.ready is None or self.ready[0] != key:
            stage, numbers, states = self.stage, torch.arange(count), states.requires_grad_()
            pipe = PipelineStage(
                stage, self.ranks.rank, self.ranks.world, stage.device,
                input_args=(numbers[:1] if stage.first else states,),
                output_args=(torch.empty(1, device="meta", dtype=stage.dtype) if stage.last else states,),
            )  # fmt: skip
            # 1f1b needs a microbatch for each stage; with fewer, no stage could go back before its last forward pass.
            chosen = Schedule1F1B if self.schedule == "1f1b" and count >= self.ranks.world else ScheduleGPipe
            self.ready = key, (chosen(pipe, count, loss_fn=_first, scale_grads=False), numbers)
        return self.ready[1]  # type: ignore[no-any-return]

    def _run(self, schedule: Any, numbers: Tensor) -> None:
        """One forward and backward pass; each stage computes alone, so parts must not wait for other ranks."""
        inputs = (numbers,) if self.stage.first else ()
        try:
            # Autograd computes in the precision of the forward pass, whatever autocast says; stages turn it on again.
            with using(Ranks()), torch.autocast(self.stage.device.type, enabled=False):
                schedule.step(*inputs, target=numbers if self.stage.last else None)
        except RuntimeError as error:
            if isinstance(error.__cause__, AblatioError):  # the library adds shapes of tensors
                raise error.__cause__ from None
            raise

    def _joined(self) -> Loss:
        """Loss and measures of all stages, on all ranks: sums over the stages of means over their microbatches."""
        taken, device = self.stage.taken, self.stage.device
        weight = torch.stack([loss.weight.double() for loss in taken])
        found = {
            name: (torch.stack([loss.measures[name].double() for loss in taken]) * weight).sum() / weight.sum()
            for name in taken[0].measures
        }
        # Not on the device: which measures there are follows from the code that ran, and the host need not wait.
        if float(summed(torch.tensor(float(not found.keys() <= self.names)))):
            lists: list[Any] = [None] * self.ranks.world
            dist.all_gather_object(lists, sorted({*found} | self.names))
            self.names = {name for names in lists for name in names}
        names, nothing = sorted(self.names), torch.zeros((), dtype=torch.float64, device=device)
        total = torch.stack([loss.total.double() for loss in taken]).sum()
        weight = weight.sum() if self.stage.last else nothing
        sums = summed(torch.stack([total, weight, *(found.get(name, nothing) for name in names)])).to(self.stage.dtype)
        self.total = sums[0].clone().requires_grad_()
        return Loss(self.total, sums[1], dict(zip(names, sums[2:].unbind(), strict=True)))

    def backward(self, loss: Tensor, last: bool) -> None:
        """Divide the gradients as the loss is: they are those of the sum, and its derivative is one number."""
        loss.backward()  # type: ignore[no-untyped-call]
        if not last:
            return
        self.ended = True
        self.scale_gradients(self.own, self.total.grad)  # type: ignore[arg-type]
        for tensors, total in self.shared:
            add_gradients(tensors, total)

    def _drop_gradients(self) -> None:
        self.ended = False
        for p in self.own:
            p.grad = None

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: `loss` has made the gradients of this step already, and has dropped the last ones before."""

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None and id(p) in self.counted]
        squares = [g.square().sum() for g in gradients] or [torch.zeros((), device=self.stage.device)]
        return summed(torch.stack(squares).sum()).sqrt()

    def optimizer(self, build: Build, groups: list[ParameterGroup], piece: str) -> torch.optim.Optimizer:
        built = build([{**group, "params": [self._stand_in(p) for p in group["params"]]} for group in groups])
        built.register_load_state_dict_pre_hook(self._own_state)
        return built

    def _stand_in(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimizer has in the place of a parameter of another stage: one number, and never a gradient."""
        if id(parameter) not in self.absent:
            return parameter
        one = torch.zeros((), dtype=parameter.dtype, device=self.stage.device)
        made: Any = nn.Parameter(one.expand(parameter.shape))
        made.stands_for = parameter
        return made  # type: ignore[no-any-return]

    def _own_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The part of an optimizer's state that belongs to the tensors of this stage."""
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        own = {i: held for i, held in state["state"].items() if not hasattr(tensors[i], "stands_for")}
        return {**state, "state": own}

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        rank = self.ranks.rank
        for held in self.held:
            if len(held.stages) < self.ranks.world:
                now, mine = held.now.detach(), rank in held.stages
                whole = now.contiguous() if mine else torch.empty(now.shape, dtype=now.dtype, device=self.stage.device)
                dist.broadcast(whole, held.stages[0])
                if not mine:
                    held.put(held.like(whole))
        try:
            yield
        finally:
            for held in self.absent.values():
                held.put(held.tensor)

    def gather(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        states = checkpoint.pop(OPTIMIZER, None)
        found = dict(_tensors_of(checkpoint))
        lacking = self.ranks.told(lambda: [path for path, t in found.items() if t.is_meta])
        sent = self.ranks.collected({p: found[p] for p in lacking if p in found and not found[p].is_meta})
        filled = {path: tensor for part in sent for path, tensor in part.items()}
        whole: dict[str, Any] = _filled(checkpoint, filled)
        if states is not None:
            whole[OPTIMIZER] = [self._whole_state(state) for state in states]
        return whole

    def _whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state of all stages, on rank 0."""
        known = self.ranks.told(lambda: [int(i) for i in state["state"]])
        merged = dict(state["state"])
        for part in self.ranks.collected({i: held for i, held in state["state"].items() if i not in known}):
            merged |= {i: held for i, held in part.items() if i not in merged}
        return {**state, "state": dict(sorted(merged.items()))}

    def scatter(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        assert self.step_module is not None
        model = self.step_module.model
        names = {name for name, t in model.state_dict(keep_vars=True).items() if id(t) in self.absent}  # type: ignore[union-attr,operator]
        names |= {f"model.{name}" for name in names}  # as Lightning names them
        return {k: v if k in ("task", OPTIMIZER) else _without(v, names) for k, v in checkpoint.items()}

    def memory(self, one: DeviceMemory, piece: str) -> DeviceMemory:
        """Of the largest stage, with all that is in no layer; the states that are sent are not counted.

        Activations are those of its layers for all microbatches; with 1f1b for at most as many as there are stages.
        """
        world = self.ranks.world
        inside = one.weights - one.outside
        if one.layers:
            inside = max(sum(one.layers[i] for i in own) for own in layer_ranges(len(one.layers), world))
            depth = len(layer_ranges(len(one.layers), world)[0]) / len(one.layers)
        else:
            inside, depth = self.part(inside), 1 / world
        share = (inside + one.outside) / max(one.weights, 1)
        count = self._count(one.rows or PER_STAGE * world)
        stored = min(1.0, world / count) if self.schedule == "1f1b" else 1.0
        return replace(
            one,
            weights=inside + one.outside,
            gradients=round(one.gradients * share),
            optimizer=round(one.optimizer * share),
            activations=round(one.activations * depth * stored),
        )


def _first(output: Tensor, target: Tensor) -> Tensor:
    """The loss, which the last stage has computed."""
    return output[0]


def _sum_in(group: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: summed(x, group)


def _tensors_of(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested data with their paths."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _tensors_of(value, f"{path}/{key}")


def _filled(tree: Any, tensors: Mapping[str, Tensor], path: str = "") -> Any:
    """Nested data with other tensors at some paths, and empty ones for those that stay without numbers."""
    if isinstance(tree, Tensor):
        return tensors.get(path, torch.empty(0) if tree.is_meta else tree)
    if isinstance(tree, Mapping):
        return {key: _filled(value, tensors, f"{path}/{key}") for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_filled(value, tensors, f"{path}/{i}") for i, value in enumerate(tree))
    return tree


def _without(tree: Any, names: set[str]) -> Any:
    """Nested data without the numbers of the tensors of these names."""
    if isinstance(tree, Mapping):
        return {
            k: v.to("meta") if k in names and isinstance(v, Tensor) else _without(v, names) for k, v in tree.items()
        }
    return [_without(value, names) for value in tree] if isinstance(tree, list) else tree
