from ablatio import designs
from ablatio.registry.kinds.search_space import Axis


def test_first_and_last_values():
    axes = [Axis("norm", ("rmsnorm", "layernorm")), Axis("model.d_ff", ("64", "128", "256"))]
    design = designs.build("first_and_last", axes=axes)
    assert [*design.arms()] == [
        {"norm": "rmsnorm", "model.d_ff": "64"},
        {"norm": "layernorm", "model.d_ff": "256"},
    ]
