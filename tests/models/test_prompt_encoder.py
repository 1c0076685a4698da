import torch

from sami.models.prompt_encoder import PromptEncoder

GRID = (4, 6)  # 64 x 96 pixels


def encode(encoder: PromptEncoder, points: list, labels: list) -> torch.Tensor:
    """[S, C]: the tokens of one prompt that count, sorted, since their order means nothing."""
    coords = torch.tensor(points, dtype=torch.float32).view(1, 1, -1, 2)
    embeddings, visible = encoder.encode_points(coords, torch.tensor(labels).view(1, 1, -1), GRID)
    return torch.tensor(sorted(embeddings[visible].tolist()))


def place(encoder: PromptEncoder, x: float, y: float) -> torch.Tensor:
    """The code of a point, from its definition."""
    matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
    angles = 2 * torch.pi * (torch.tensor([2 * x - 1, 2 * y - 1]) @ matrix)
    return torch.cat([angles.sin(), angles.cos()])


def test_points_are_their_place_and_their_kind():
    encoder = PromptEncoder()
    embeddings, visible = encoder.encode_points(
        torch.tensor([[[[10.0, 20.0], [30, 40]]]]), torch.tensor([[[1, 0]]]), GRID
    )
    assert embeddings.shape == (1, 1, 3, 256) and visible.all()
    for token, (x, y), label in zip(embeddings[0, 0], ((10, 20), (30, 40)), "10", strict=False):
        expected = place(encoder, (x + 0.5) / 96, (y + 0.5) / 64) + encoder.point_embeddings[label].weight[0]
        torch.testing.assert_close(token, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embeddings[0, 0, 2], encoder.not_a_point_embed.weight[0])  # padding has no place


def test_padding_beside_points_but_not_beside_boxes():
    encoder = PromptEncoder()
    counts = {(1,): 2, (1, 0, 1): 4, (2, 3): 2, (1, 2, 3): 3, (): 0}
    for labels, count in counts.items():
        assert len(encode(encoder, [[5, 5]] * len(labels), list(labels))) == count


def test_given_padding_counts_for_nothing():
    for variant in ("sam", "efficient_sam"):
        encoder = PromptEncoder(variant=variant)
        alone = encode(encoder, [[5, 6]], [1])
        for points, labels in (([[5, 6], [50, 50], [float("nan")] * 2], [1, -1, -1]), ([[7, 7], [5, 6]], [-1, 1])):
            torch.testing.assert_close(encode(encoder, points, labels), alone, rtol=0, atol=1e-5)


def test_efficient_sam_fills_up_to_six():
    encoder = PromptEncoder(variant="efficient_sam")
    tokens = encode(encoder, [[5, 6], [7, 8]], [2, 3])
    padding = place(encoder, -0.5 / 96, -0.5 / 64) + encoder.not_a_point_embed.weight[0]
    assert len(tokens) == 6
    assert sum(torch.allclose(token, padding, atol=1e-5) for token in tokens) == 4
    assert len(encode(encoder, [[5, 6]] * 8, [1] * 8)) == 8  # none is dropped


def test_efficient_sam_knows_no_background():
    encoder = PromptEncoder(variant="efficient_sam")
    assert not encoder.takes_background and not encoder.takes_masks
    embeddings, _ = encoder.encode_points(torch.tensor([[[[10.0, 20.0]]]]), torch.tensor([[[0]]]), GRID)
    torch.testing.assert_close(embeddings[0, 0, 0], place(encoder, 10.5 / 96, 20.5 / 64), rtol=0, atol=1e-5)


def test_grid_positions_are_those_of_patch_centres():
    encoder = PromptEncoder()
    positions = encoder.grid_positions(GRID)
    assert positions.shape == (24, 256)
    torch.testing.assert_close(positions[7], place(encoder, 1.5 / 6, 1.5 / 4), rtol=0, atol=1e-5)


def test_places_stay_exact_in_half_precision():
    encoder = PromptEncoder()
    exact = encoder.grid_positions(GRID)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.grid_positions(GRID), exact)
    coords, labels = torch.tensor([[[[95.0, 63.0]]]]), torch.tensor([[[1]]])
    expected, _ = encoder.encode_points(coords, labels, GRID)
    found, _ = encoder.bfloat16().encode_points(coords.bfloat16(), labels, GRID)
    matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
    assert matrix.dtype == found.dtype == torch.bfloat16
    assert found.shape == expected.shape


def test_masks_become_one_embedding_per_image_token():
    dense = PromptEncoder().encode_masks(torch.randn(2, 3, 16, 24))
    assert dense.shape == (2, 3, 24, 256)
