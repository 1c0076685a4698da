import re

from runs import compose_config

from sami.benchmark.__main__ import benchmark, benchmark_segmenter


def test_table_on_a_small_setting(tmp_path, capsys) -> None:
    options = ["model=vit_t", "model.image_size=32", "teacher=pixels", "batch_size=2", "steps=1", "photo_size=64"]
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


def test_segmenter_on_a_small_setting(capfd) -> None:
    options = ["segmenter.image_size=64", "segmenter.models=[efficient_sam_vitt]", "segmenter.num_prompts=3"]
    options += ["step={model: efficient_sam_vitt, image_size: 64, num_images: 1, num_masks: 2}", "precision=bf16"]
    options += ["step.num_clicks=1", "step.num_repeats=0", "stage=segmenter", "steps=1", "device=cpu", "threads=1"]
    benchmark_segmenter(compose_config(options, name="benchmark"))
    printed = capfd.readouterr().out
    for memory in re.split("freed memory ", printed)[1:]:
        rows = {line[:24].strip(): line[24:].split() for line in memory.splitlines()}
        speed, released, ratio, share, beside_fp32 = map(float, rows["efficient_sam_vitt"][:5])
        assert min(speed, released, ratio, share, beside_fp32) > 0
        for name in ("single calls", "clicks", "tiled"):
            assert float(rows[name][0]) > 0 and float(rows[name][1]) > 0
        assert float(rows["tiled"][3]) > 0 and rows["tiled"][-2:] == ["in", "fp32"]
    assert printed.count("freed memory") == 2
    sizes = [float(line.split()[-1]) for line in printed.splitlines()[-3:]]
    assert 0 < sizes[1] <= sizes[0] <= sizes[2]
