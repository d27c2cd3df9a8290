"""Width of a gated MLP with the parameter count of a plain one."""

from hypothesis import example, given
from hypothesis import strategies as st

from ablatio.model.dims import matched_width


def plain(d, f, bias):
    return 2 * d * f + (f + d if bias else 0)


def gated(d, f, bias):
    return 3 * d * f + (2 * f + d if bias else 0)


@given(d=st.integers(1, 16384), ratio=st.floats(0.5, 8), bias=st.booleans())
@example(d=4096, ratio=4.0, bias=False)
@example(d=128, ratio=4.0, bias=True)
def test_parameters_agree_within_one_percent_or_one_unit(d, ratio, bias):
    f = max(1, round(d * ratio))
    width = matched_width(d, f, bias)
    wanted, unit = plain(d, f, bias), 3 * d + 2 * bias
    assert width >= 1
    assert abs(gated(d, width, bias) - wanted) <= max(0.01 * wanted + 1, unit / 2) or width == 1
    if f >= 1200:  # 1 % leaves room for a multiple of eight
        assert width % 8 == 0


def test_known_widths():
    assert matched_width(768, 3072, False) == 2048
    assert matched_width(4096, 16384, False) == 10920  # LLaMA rounds 10922 up to 11008
