"""The contracts of the kinds, on the parts of this distribution; then each part against a formula of its own."""

import math

import torch

from ablatio import norms, positions
from ablatio.testing import contract_tests

ABLATIO_DIST = "ablatio-example"
globals().update(contract_tests())


def test_l1norm_of_normal_numbers_is_rmsnorm():
    x = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    y = norms.build("l1norm", d_model=4096)(x)
    torch.testing.assert_close(y.std(-1), torch.ones(64), atol=0.03, rtol=0)


def test_gaussian_is_the_logarithm_of_a_normal_density():
    bias = positions.build("gaussian", {"sigma": 3.0}, n_heads=2).bias(torch.arange(6), torch.arange(6))
    for head, sigma in enumerate((3.0, 6.0)):
        density = torch.distributions.Normal(4.0, sigma)
        expected = density.log_prob(torch.arange(6.0)) + math.log(sigma * math.sqrt(2 * math.pi))
        torch.testing.assert_close(bias[head, 4].detach(), expected)
