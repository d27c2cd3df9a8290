from ablatio import rewards
from ablatio.model.rl.answers import Answer


def test_reward_is_one_for_a_finished_sentence():
    reward = rewards.build("finished", {"unfinished": 0.2})
    assert [reward(Answer("", text)) for text in ("Yes. ", "Yes, and")] == [1.0, 0.2]
