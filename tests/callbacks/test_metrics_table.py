from pathlib import Path

from sami.callbacks.metrics_table import TableLogger, read_table


def test_a_continued_table_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = TableLogger(str(path))
    for step in range(5):
        logger.log_metrics({"train/loss": 1 / (step + 1), "epoch": 0}, step)
    with open(path, "a") as file:
        file.write("5,train/lo")  # a crash in the middle of a line
    logger.keep_before(3)
    logger.log_metrics({"train/loss": 0.25}, 3)
    assert [(step, name) for step, name, _ in read_table(path)] == [(step, "train/loss") for step in range(4)]
    assert path.read_text().splitlines()[0] == "step,metric,value"
    TableLogger(str(tmp_path / "none.csv")).keep_before(3)
