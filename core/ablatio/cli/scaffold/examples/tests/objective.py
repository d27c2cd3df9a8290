import torch

from ablatio import objectives
from ablatio.testing import sample_parts


def test_a_share_of_the_next_tokens_counts():
    tokens, segments = sample_parts.token_rows()
    example = objectives.build("sampled_targets", {"share": 0.5})(tokens, segments, torch.Generator().manual_seed(0))
    assert torch.equal(example.targets[:, :-1], example.inputs[:, 1:])
    assert 0.3 < example.weights.mean() < 0.7
