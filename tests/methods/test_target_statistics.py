import torch
from conftest import write_folder
from torch import nn

from sami.data.crops import normalize
from sami.data.pretraining import PretrainingData
from sami.methods.target_statistics import ChannelStatistics


class Pooled(nn.Module):
    """A teacher of 5 channels of very different scale."""

    width, statistics = 5, None

    def forward(self, batch: dict) -> torch.Tensor:
        image = nn.functional.avg_pool2d(batch["image"], 16).flatten(2).transpose(1, 2)  # [B, 4, 3]
        return torch.cat([image, 100 * image[..., :1] + 7, torch.full_like(image[..., :1], 3)], dim=-1)


def image_data(root, *, batch_size: int) -> PretrainingData:
    options = {"scale": (0.2, 1.0), "ratio": (0.75, 1.33), "flip": 0.5, "shuffle_window": 1}
    options |= {"num_views": None, "cache": None, "val_batch_size": 4}
    data = PretrainingData(str(root), None, image_size=32, patch_size=16, seed=0, num_workers=0, **options)
    data.setup_stream(batch_size=batch_size, epoch_size=20, num_batches=5)
    return data


def test_statistics_are_those_of_the_first_views(tmp_path) -> None:
    data, teacher = image_data(write_folder(tmp_path, 23), batch_size=8), Pooled()
    statistics = ChannelStatistics(5)
    statistics.measure(data, teacher, device=torch.device("cpu"))
    batch = data.train_set().__getitems__(list(range(20)))
    tokens = teacher({"image": normalize(batch["image"])}).flatten(0, 1)  # [80, 5]
    assert statistics.num_tokens == 80
    torch.testing.assert_close(statistics.mean, tokens.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics.std[:4], tokens.std(0, correction=0)[:4], rtol=1e-4, atol=1e-4)
    standard = statistics(tokens)
    torch.testing.assert_close(standard[:, :4].std(0, correction=0), torch.ones(4), rtol=1e-3, atol=1e-3)
    assert standard[:, 4].abs().max() < 0.1  # a channel that never changes stays small instead of being divided by 0


def test_measured_once_and_kept_in_the_state(tmp_path) -> None:
    data, teacher = image_data(write_folder(tmp_path, 23), batch_size=8), Pooled()
    statistics, again = ChannelStatistics(5), ChannelStatistics(5)
    statistics.measure(data, teacher, device=torch.device("cpu"))
    again.load_state_dict(statistics.state_dict())
    again.measure(None, None, device=torch.device("cpu"))  # would fail if it looked at data
    torch.testing.assert_close(again.mean, statistics.mean)
