"""Answers with prompts that are encoded once, and the models that need whole rows instead."""

import pytest
import torch
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.decoding.shared_prefix import answer_states

V = 50
DYNAMIC = {"name": "rope", "scaling": "dynamic", "factor": 2.0, "original_max_len": 4}
WHOLE = ({"position": DYNAMIC}, {"mlp": "moe"}, {"mlp": "deepseek_moe"}, {"placement": "drop_path"})


def made(**options):
    return build_model(model_config(d_model=16, n_layers=2, max_len=16, **options), V).double().eval()


def asked():
    """Prompts (2, 10) of 4 and 10 tokens, answers (3, 7) of which 7, 5 and 6 tokens are real."""
    return torch.randint(0, V, (2, 10)), torch.tensor([4, 10]), torch.tensor([0, 1, 1]), torch.randint(0, V, (3, 7))


def assert_each_alone(model, longest=None):
    prompts, lengths, parents, answers = asked()
    found = answer_states(model, prompts, lengths, parents, answers, longest)
    for row, (parent, real) in enumerate(zip(parents.tolist(), (7, 5, 6), strict=True)):
        alone = torch.cat([prompts[parent, 10 - lengths[parent] :], answers[row, :real]])
        states = model.model(alone[None])[0, -real:]
        torch.testing.assert_close(found[row, :real], states, rtol=1e-10, atol=1e-11)


def passes(model):
    """Record the shape of the tokens in each pass of the stack."""
    seen = []
    model.model.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    return seen


@pytest.mark.parametrize("options", WHOLE, ids=lambda o: str(*o))
def test_models_without_shared_prefix_get_whole_rows(options):
    model = made(**options)
    assert not model.shared_prefix
    seen = passes(model)
    answer_states(model, *asked())
    assert seen == [(3, 17)]


def test_position_table_is_not_read_beyond_its_end():
    """Longest prompt plus longest answer are 17 tokens, but no text has more than 16."""
    for position, shapes in (("learned", [(3, 16)]), ("rope", [(2, 10), (3, 7)])):
        model = made(position=position)
        seen = passes(model)
        assert_each_alone(model, longest=16)
        assert seen[: len(shapes)] == shapes


def test_one_answer_per_prompt_needs_one_pass():
    model = made()
    seen = passes(model)
    prompts, lengths, _, answers = asked()
    answer_states(model, prompts, lengths, torch.tensor([0, 1]), answers[:2])
    assert seen == [(2, 17)]
