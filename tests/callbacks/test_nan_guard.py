from conftest import write_folder
from same_runs import check_replay, poison_at, read_checkpoint
from training_runs import run_pretrain


def test_a_poisoned_step_leaves_the_weights_from_before_it(tmp_path) -> None:
    """Image 0 of one batch becomes infinite at step 4: the run stops, with what is needed to run that step again."""
    data = ["data=images_folder", f"data.root={write_folder(tmp_path / 'images', 43)}"]
    assert run_pretrain(tmp_path / "run", [*data, poison_at(4, tmp_path)]) == 1
    check_replay(tmp_path / "run", step=4, batch=8)
    assert read_checkpoint(tmp_path / "run")["global_step"] == 3
