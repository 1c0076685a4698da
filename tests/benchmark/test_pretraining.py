import re

from training_runs import compose_config

from sami.benchmark.__main__ import benchmark


def test_table_on_a_small_setting(tmp_path, capsys) -> None:
    options = ["model=vit_t", "model.image_size=32", "teacher=pixels", "batch_size=2", "steps=1", "drawn_size=64"]
    benchmark(compose_config([*options, "device=cpu", "threads=1"], name="benchmark"), tmp_path)
    printed = capsys.readouterr().out
    students, stages = (
        {line[:24].strip(): line[24:].split() for line in block.splitlines() if line[:24].strip()}
        for block in printed.split("of whole step")
    )
    for design in ("MAE's design", "ours, context all", "ours, context encoder"):
        rate, ratio, share = map(float, students[design][:3])
        assert rate > 0 and ratio > 0 and share > 0
    assert students["MAE's design"][1] == "1.00"
    for row in ("loader, one core", "teacher", "whole step", "whole step, cached", "writing a cache"):
        assert float(stages[row][0]) > 0
    assert re.search(r"matrix product: \d+ GFLOP/s", printed) and "times Pillow's" in printed
    assert float(stages["whole step, cached"][1]) > 0 and stages["writing a cache"][1:3] == ["teacher", "idle"]
