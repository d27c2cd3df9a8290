from ablatio import launchers
from ablatio.registry.kinds.launch_types import LaunchRequest
from ablatio.testing import sample_parts


def test_the_exit_code_of_a_run_comes_back():
    launcher, order = launchers.build("fresh", work=sample_parts.obey), LaunchRequest(".", "job", 3, 0)
    launcher.start()
    launcher.submit(order)
    (ended,) = launcher.poll(60)
    launcher.stop()
    assert (ended.order, ended.how, ended.code) == (order, "exit", 3)  # `obey` exits with the number of the attempt
