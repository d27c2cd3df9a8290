"""decode=medusa: several tokens at once, from heads for tokens further ahead, with the distribution of sampling."""

import itertools
from typing import Any

import pytest
import torch
from helpers.decoding import ids, job, prompts, random_model

from ablatio import decodes
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.kv_cache import KVCache
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models
from ablatio_std.decodes.medusa import TreeReader, tree


@pytest.fixture(scope="module")
def headed() -> Any:
    """A model with three heads for tokens further ahead."""
    net = tiny_models.model(REGISTRIES["objective"]["multi_token"], tied=False).eval()
    assert len(net.model.further) == 3
    with torch.no_grad():
        net.lm_head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return net


@pytest.mark.oracle("decode=medusa", "decode=sample and decode=greedy, token by token")
@pytest.mark.parametrize("nodes", [1, 5, 24])
@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {}, {"temperature": 0.6, "top_p": 0.8, "repetition": 1.2, "no_repeat_ngram": 2}]
)
def test_medusa_draws_what_sampling_draws(headed: Any, nodes: int, settings: dict[str, Any]) -> None:
    """Each token is drawn from the model's own distribution, with the same random numbers."""
    for seed in range(2):
        ask = job(headed, prompts(seed), seed=seed)
        expected = decodes.build("sample", settings)(ask)
        found = decodes.build("medusa", {"nodes": nodes, **settings})(ask)
        assert ids(found) == ids(expected)
        assert [c[0].logprob for c in found] == pytest.approx([c[0].logprob for c in expected], abs=1e-3)


@pytest.mark.parametrize("position", ["rope", "alibi", "learned", "t5"])
def test_a_tree_is_read_as_its_paths_are_read_alone(position: str) -> None:
    """Logits at each node, of the next token and of those further ahead, against passes over single texts."""
    part = REGISTRIES["position"][position]
    config = tiny_models.config(part)
    config["objective"] = {"name": "multi_token", **REGISTRIES["objective"]["multi_token"].defaults}
    net = build_model(config, tiny_models.VOCAB, seed=0).eval()
    text, tokens, parents = [5, 9, 3], [7, 1, 2, 8, 4], [-1, 0, 0, 1, 2]
    with torch.no_grad():
        reader = TreeReader(net, text)
        reader.read(tokens, parents)
        for node in range(5):
            path, above = list[int](), node
            while above >= 0:
                path, above = [tokens[above], *path], parents[above]
            whole = net.read_ahead(torch.tensor([[*text, *path]]), KVCache(), [KVCache() for _ in net.model.further])
            reader.stand_at(node)
            for ours, alone in zip((reader.logits, *reader.ahead), whole, strict=True):
                torch.testing.assert_close(ours, alone[:, -1], atol=1e-4, rtol=1e-4)
        reader.keep([0, 2, 4])
        reader.read([6], [-1])
        reader.stand_at(0)
        torch.testing.assert_close(reader.logits, net(torch.tensor([[*text, 7, 2, 4, 6]]))[:, -1], atol=1e-4, rtol=1e-4)


def test_the_tree_has_the_most_probable_continuations() -> None:
    ahead = [torch.randn(1, 6, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    tokens, parents = tree(9, ahead, 12, 6)
    log_p = [x[0].log_softmax(-1) for x in ahead]
    every = {
        path: sum(float(log_p[i][v]) for i, v in enumerate(path))
        for n in (1, 2, 3)
        for path in itertools.product(range(6), repeat=n)
    }
    best = {path for path, _ in sorted(every.items(), key=lambda item: -item[1])[:11]}

    def path_of(node: int) -> tuple[int, ...]:
        return () if node == 0 else (*path_of(parents[node]), tokens[node])

    assert {path_of(node) for node in range(1, 12)} == best and tokens[0] == 9 and parents[0] == -1


def test_medusa_needs_heads_and_layers_that_read_a_tree() -> None:
    with pytest.raises(UserError, match="objective=multi_token"):
        decodes.build("medusa")(job(random_model(0), prompts(0)))
    states = tiny_models.model(REGISTRIES["attention"]["gated_deltanet"]).eval()
    states.model.further.append(states.model.layers[-1])
    with pytest.raises(UserError, match="one text only"):
        decodes.build("medusa")(job(states, prompts(0)))
