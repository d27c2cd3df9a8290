import json

from ablatio import loggers


def test_rows_are_lines(tmp_path):
    logger = loggers.build("lines", folder=tmp_path, config={})
    logger.start([{"step": 1.0}])
    logger.log({"step": 2.0, "train/loss": 3.0})
    logger.finish("done")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1.0}, {"step": 2.0, "train/loss": 3.0}]
