from collections import Counter

import pytest

from sami.cache.layout import CacheLayout, own_share

COUNTS = [13, 1, 8, 30, 7, 9]


def array_task(number: int, *, first: int, last: int, step: int = 1, count: int) -> dict[str, str]:
    values = {"ID": number, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize("counts", [COUNTS, [1], [100], [13, 0, 8], [0, 5]], ids=str)
@pytest.mark.parametrize("shard_size", [1, 4, 8, 1000])
def test_every_record_has_one_place(counts: list[int], shard_size: int) -> None:
    layout = CacheLayout(counts, shard_size)
    parts = list(layout.shards(3))
    assert len({part.name for part in parts}) == len(parts)
    places = {}
    for part in parts:
        assert 0 < part.num_images <= shard_size
        for number in range(part.num_images):
            place = part.unit, part.first_row + number, part.view
            assert place not in places
            places[place] = part.name, number
    everything = [(unit, row, view) for unit, n in enumerate(counts) for row in range(n) for view in range(3)]
    assert sorted(places) == sorted(everything)
    assert all(layout.locate(*place) == places[place] for place in everything)


def test_the_parts_of_a_unit_are_about_equal() -> None:
    sizes = {}
    for part in CacheLayout(COUNTS, 8).shards(1):
        sizes.setdefault(part.unit, []).append(part.num_images)
    assert sizes == {0: [7, 6], 1: [1], 2: [8], 3: [8, 8, 8, 6], 4: [7], 5: [5, 4]}


def test_views_can_be_added() -> None:
    layout = CacheLayout(COUNTS, 4)
    few, many = list(layout.shards(2)), list(layout.shards(5))
    assert many[: len(few)] == few and len(many) == len(few) / 2 * 5
    assert [part.name for part in few][:2] == ["view00-000000.tar", "view00-000001.tar"]
    assert [part.name for part in few][len(few) // 2] == "view01-000000.tar"


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # the batch script itself, outside of srun
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "5", "WORLD_SIZE": "16"},
            (5, 16),
        ),  # torchrun in srun
        (array_task(7, first=7, last=7, count=1), (0, 1)),
    ],
)
def test_share_of_a_process(environment: dict[str, str], share: tuple[int, int]) -> None:
    assert own_share(environment) == share


@pytest.mark.parametrize(("first", "last", "step"), [(0, 3, 1), (5, 9, 1), (10, 16, 2), (1, 11, 5)])
@pytest.mark.parametrize(
    "ranks",
    [
        [{}],
        [{"RANK": str(rank), "WORLD_SIZE": "3"} for rank in range(3)],
        [{"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2"} for rank in range(2)],
    ],
    ids=["alone", "torchrun", "srun"],
)
def test_an_array_shares_everything_out(first: int, last: int, step: int, ranks: list[dict[str, str]]) -> None:
    numbers = range(first, last + 1, step)
    tasks = [array_task(n, first=first, last=numbers[-1], step=step, count=len(numbers)) for n in numbers]
    shares = [own_share({**task, **rank}) for task in tasks for rank in ranks]
    assert {count for _, count in shares} == {len(shares)}
    shards = list(CacheLayout(COUNTS, 4).shards(2))
    written = Counter(part.name for number, count in shares for part in shards[number::count])
    assert written == Counter(part.name for part in shards)


@pytest.mark.parametrize("numbers", [[0, 2, 3], [4, 9], [0, 1, 2, 7]])
def test_an_array_with_gaps_is_refused(numbers: list[int]) -> None:
    environment = array_task(numbers[0], first=numbers[0], last=numbers[-1], count=len(numbers))
    with pytest.raises(
        ValueError, match=rf"{len(numbers)} tasks between {numbers[0]} and {numbers[-1]}: .*--array=0-7"
    ):
        own_share(environment)


def test_the_share_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert own_share() == (1, 2)
