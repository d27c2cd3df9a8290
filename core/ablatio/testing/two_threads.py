"""A model divided over two threads of this process, as strategies divide heads and features, or tokens."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from ablatio.model.divided_vocabulary import DividedVocabulary
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.model.tensor_parallel import Devices, Divided, Layout, parts_of
from ablatio.model.token_parallel import DividedTokens, TokenDevices

COUNT = 2


class Threads:
    """Sums over two threads that compute in step."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(COUNT, timeout=60), [torch.empty(0)] * COUNT

    def devices(self, index: int) -> Devices:
        """Devices for thread `index`, if they divide heads; it holds each tensor whole and uses its part."""
        return Devices(COUNT, index, lambda x: self.total(index, x), lambda t, axis: t.chunk(COUNT, dim=axis)[index])

    def token_devices(self, index: int) -> TokenDevices:
        """Devices for thread `index`, if they divide tokens."""
        return TokenDevices(COUNT, index, lambda x: self.gather(index, x), lambda x: self.total(index, x))

    def total(self, index: int, x: Tensor) -> Tensor:
        """The sum of the tensors of both threads."""
        first, second = self.gather(index, x)
        return first + second

    def gather(self, index: int, x: Tensor) -> list[Tensor]:
        """The tensors of both threads."""
        self.given[index] = x.detach()
        self.barrier.wait()
        found = [*self.given]
        self.barrier.wait()  # both have read them
        return found


def gradients(net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> list[dict[str, Tensor]]:
    """The loss, as "loss", and the gradients by name, which each of two threads computes with its part of the model.

    The gradients of a tensor of which a thread has a part are zero elsewhere.
    """
    threads = Threads()

    def part(index: int, own: nn.Module) -> Tensor:
        for divided in parts_of(own):
            Divided(divided, threads.devices(index)).attach()
        return loss(own)

    return _computed(threads, net, part)


def vocabulary_gradients(net: LanguageModel, loss: Callable[[nn.Module], Tensor]) -> list[dict[str, Tensor]]:
    """The same with half of the rows of the token table and of the output head in each thread."""
    threads = Threads()

    def part(index: int, own: nn.Module) -> Tensor:
        assert isinstance(own, LanguageModel)
        own.divided = DividedVocabulary(own.model.embed_tokens, own.lm_head, threads.devices(index))
        own.divided.attach()
        return loss(own)

    return _computed(threads, net, part)


def token_gradients(net: LanguageModel, example: Example) -> list[dict[str, Tensor]]:
    """The summed loss, as "loss", and the gradients by name, of each of two threads for half of the tokens of a row."""
    threads = Threads()

    def part(index: int, own: nn.Module) -> Tensor:
        assert isinstance(own, LanguageModel)
        total: Tensor = DividedTokens(own.model, threads.token_devices(index)).run(example, own.loss).total
        return total

    return _computed(threads, net, part)


def _computed(threads: Threads, net: nn.Module, loss: Callable[[int, nn.Module], Tensor]) -> list[dict[str, Tensor]]:
    """Loss and gradients of each thread; loss(thread, its copy of the model)."""
    copies = [copy.deepcopy(net) for _ in range(COUNT)]

    def compute(index: int) -> dict[str, Tensor]:
        own = copies[index]
        try:
            value = loss(index, own)
            value.backward()  # type: ignore[no-untyped-call]
        except BaseException:
            threads.barrier.abort()
            raise
        found = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
        return {"loss": value.detach(), **found}

    with ThreadPoolExecutor(COUNT) as pool:
        futures = [pool.submit(compute, index) for index in range(COUNT)]
        errors = [e for future in futures if (e := future.exception()) is not None]
        if errors:  # the other thread's error is that the barrier is broken
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return [future.result() for future in futures]


def divided_axes(net: nn.Module) -> dict[str, int]:
    """Axis along which each divided parameter is cut, by name."""
    axes = {(id(module), name): axis for part in parts_of(net) for module, name, axis in Layout.of(part).divided}
    return {
        f"{path}.{name}".lstrip("."): axes[id(module), name]
        for path, module in net.named_modules()
        for name in module._parameters
        if (id(module), name) in axes
    }
