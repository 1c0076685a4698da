import torch
from conftest import write_folder
from training_runs import run_pretrain


def test_a_poisoned_step_leaves_the_weights_from_before_it(tmp_path) -> None:
    """Image 0 of one batch becomes infinite at step 4: the run stops, with what is needed to run that step again."""
    run = tmp_path / "run"
    poison = f"+callbacks.poison={{_target_: training_runs.PoisonAt, step: 4, path: {tmp_path}/before.pt}}"
    data = ["data=images_folder", f"data.root={write_folder(tmp_path / 'photos', 43)}"]
    assert run_pretrain(run, [*data, poison]) == 1
    replay = torch.load(run / "nonfinite.pt", weights_only=True)
    assert replay["step"] == 4 and replay["positions"] == [32, 40] and len(set(replay["images"])) == 8
    before = torch.load(tmp_path / "before.pt", weights_only=True)
    torch.testing.assert_close(replay["state_dict"], before, rtol=0, atol=0)
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 3
