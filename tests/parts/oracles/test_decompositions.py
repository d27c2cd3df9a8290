"""Decompositions of several matrices in one call are those of each by itself."""

import pytest
import torch
from torch import Tensor

from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers import _decompositions, kronecker, low_rank, spectral

SHAPES = ((6, 6), (4, 4), (6, 6), (6, 6), (3, 6, 6), (4, 4))


def alone(function):  # type: ignore[no-untyped-def]
    """The same function, called for one matrix at a time."""
    return lambda matrices: [function([m])[0] for m in matrices]


def test_results_are_those_of_each_alone() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in SHAPES]
    symmetric = [m @ m.mT for m in matrices]
    calls = [(_decompositions.eigh, symmetric), (_decompositions.orthonormal_factors, matrices)]
    calls += [(_decompositions.left_singular_vectors, [m[..., :3, :] for m in matrices])]
    for function, given in calls:
        for one, together in zip(alone(function)(given), function(given), strict=True):
            pairs = zip(one, together, strict=True) if isinstance(one, tuple) else [(one, together)]
            assert all(torch.equal(a, b) for a, b in pairs)
    values, basis = _decompositions.eigh(symmetric)[4]
    torch.testing.assert_close(basis * values[..., None, :] @ basis.mT, symmetric[4], rtol=1e-4, atol=1e-4)


def test_one_that_does_not_converge_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, torch_eigh = [torch.randn(3, 3) for _ in range(3)], torch.linalg.eigh
    given = [m @ m.T for m in plain]

    def failing(m: Tensor) -> tuple[Tensor, Tensor]:
        if m.dtype == torch.float32 and any(torch.equal(one, given[1]) for one in m):
            raise torch.linalg.LinAlgError("it does not converge")
        return torch_eigh(m)

    expected = [torch_eigh(m) for m in given]
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    found = _decompositions.eigh(given)
    for i in (0, 2):
        assert torch.equal(found[i][0], expected[i][0]) and torch.equal(found[i][1], expected[i][1])
    torch.testing.assert_close(found[1][0], torch_eigh(given[1].double())[0].float())


@pytest.mark.parametrize("name, module, knobs", [
    ("Shampoo", kronecker, {"every": 2}), ("SOAP", kronecker, {"every": 2}), ("KLSOAP", kronecker, {"every": 2}),
    ("GaLore", low_rank, {"rank": 2, "every": 2}), ("Dion", spectral, {"rank": 2}),
])  # fmt: skip
def test_updates_are_those_of_one_matrix_at_a_time(
    name: str, module: object, knobs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with stacks and several shapes; and a step makes a call for each shape, not for each matrix."""
    found, calls = [], []
    for separate in (False, True):
        for function in ("eigh", "orthonormal_factors", "left_singular_vectors"):
            if separate and hasattr(module, function):
                monkeypatch.setattr(module, function, alone(getattr(module, function)))
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4, 6), (6, 4), (2, 6, 4), (6, 4))]
        group: ParameterGroup = {"params": weights, "role": "matrix", "names": [str(i) for i in range(5)]}  # type: ignore[typeddict-item,typeddict-unknown-key]
        optimizer, count = getattr(module, name)([group], lr=0.01, **knobs), 0
        with pytest.MonkeyPatch.context() as patch:
            for kind in ("eigh", "qr", "svd"):
                original = getattr(torch.linalg, kind)

                def counted(*given, original=original, **more):  # type: ignore[no-untyped-def]
                    nonlocal count
                    count += 1
                    return original(*given, **more)

                patch.setattr(torch.linalg, kind, counted)
            for step in range(5):
                for w in weights:
                    w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(step))
                optimizer.step()
        found.append([w.detach() for w in weights])
        calls.append(count)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert 0 < calls[0] < calls[1]
