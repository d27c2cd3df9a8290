from ablatio import mixtures
from ablatio.data.mixtures import Pool


def test_shares_follow_the_square_roots():
    pools = [Pool("small", 100, [], []), Pool("large", 900, [], [])]
    assert mixtures.build("square_root", {}, pools=pools).shares() == {"small": 0.25, "large": 0.75}
