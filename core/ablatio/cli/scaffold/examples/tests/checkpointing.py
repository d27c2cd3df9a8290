import torch

from ablatio import checkpointings
from ablatio.testing import sample_parts


def test_less_is_kept_and_gradients_stay():
    found = []
    for name in ("none", "pairs"):
        net = sample_parts.recomputed(checkpointings[name])
        torch.manual_seed(0)
        loss, kept = sample_parts.kept_for_backward(net)
        loss.backward()
        found.append((kept, [p.grad for p in net.parameters()]))
    assert found[1][0] < found[0][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
