"""Each of our parts names its source; for parts of others a missing one is a warning of `ablatio check`."""

import pytest

from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing.suites.test_common import DATA, SOURCE, _module_doc

OURS = [e for r in REGISTRIES.values() for e in r if e.distribution.name == "ablatio" and e.kind not in DATA]


def has_source(part: PartSpec) -> bool:
    return bool(SOURCE.search(part.paper) or SOURCE.search(part.doc) or SOURCE.search(_module_doc(part)))


@pytest.mark.parametrize("kind", sorted({part.kind for part in OURS}))
def test_each_of_our_parts_names_its_source(kind: str) -> None:
    assert [part.name for part in OURS if part.kind == kind and not has_source(part)] == []
