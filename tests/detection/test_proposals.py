import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from mcbeit.detection.proposals import ASPECTS, ExactAnchors, ProposalNetwork

STRIDES = [2, 4, 8, 16, 32]


def make_network(num_samples: int = 64) -> ProposalNetwork:
    torch.manual_seed(0)
    return ProposalNetwork(
        8, STRIDES, anchor_scale=8.0, num_before=(60, 40), num_after=(30, 20), num_samples=num_samples
    )


def make_maps(size: int = 64, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"p{i + 2}": torch.randn(batch, 8, size // s, size // s, generator=generator) for i, s in enumerate(STRIDES)
    }


def images(size: int = 64, batch: int = 2) -> ImageList:
    return ImageList(torch.zeros(batch, 3, size, size), [(size, size)] * batch)


# anchors


def test_exact_anchors__of_the_paper_are_not_rounded() -> None:
    anchors = ExactAnchors([4, 8, 16, 32, 64], 8.0).cell_anchors
    root = math.sqrt(2)
    wanted = torch.tensor(
        [[-16 * root, -8 * root, 16 * root, 8 * root], [-16, -16, 16, 16], [-8 * root, -16 * root, 8 * root, 16 * root]]
    )
    torch.testing.assert_close(anchors[0], wanted)
    for level, side in zip(anchors, (32, 64, 128, 256, 512), strict=True):
        torch.testing.assert_close(level, wanted * side / 32)
        areas = (level[:, 2] - level[:, 0]) * (level[:, 3] - level[:, 1])
        torch.testing.assert_close(areas, torch.full((3,), float(side**2)))
    assert AnchorGenerator(((32,),), (ASPECTS,)).cell_anchors[0][0].tolist() == [-23, -11, 23, 11]  # torchvision's


def test_exact_anchors__lie_at_the_corners_of_cells() -> None:
    (anchors, same) = ExactAnchors(STRIDES, 8.0)(images(), list(make_maps().values()))
    assert same is anchors
    assert len(anchors) == 3 * (32**2 + 16**2 + 8**2 + 4**2 + 2**2)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    torch.testing.assert_close(centres[3 * 33], torch.tensor([2.0, 2.0]))  # second row, second cell of p2
    torch.testing.assert_close(centres[-1], torch.tensor([32.0, 32.0]))


def test_exact_anchors__stay_in_full_precision_and_on_their_strides() -> None:
    """In bf16 the places 1020 and 1024 are one; and of an odd number of rows torchvision finds another stride."""
    generator = ExactAnchors([4], 8.0)
    (anchors,) = generator(images(1024, 1), [torch.zeros(1, 1, 256, 256, dtype=torch.bfloat16)])
    assert anchors.dtype == torch.float32
    assert len((anchors[:, 0] + anchors[:, 2]).round(decimals=2).unique()) == 256
    (anchors,) = generator(images(30, 1), [torch.zeros(1, 1, 7, 7)])
    assert (anchors[-1, 0] + anchors[-1, 2]).item() == 2 * 6 * 4


# proposals


def test_proposal_network__is_torchvisions_where_nothing_differs() -> None:
    ours = make_network().eval()
    theirs = RegionProposalNetwork(
        ExactAnchors(STRIDES, 8.0), RPNHead(8, 3, conv_depth=2), 0.7, 0.3, 64, 0.5,
        {"training": 60, "testing": 40}, {"training": 30, "testing": 20}, 0.7,
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    for found, wanted in zip(ours(images(), make_maps())[0], theirs(images(), make_maps())[0], strict=True):
        assert torch.equal(found, wanted)
        assert found.shape == (20, 4)
        assert (found >= 0).all()
        assert (found <= 64).all()


def test_proposal_network__leaves_autocast_with_its_outputs() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        boxes, _ = make_network().eval()(images(), make_maps())
    assert boxes[0].dtype == torch.float32


def test_compute_loss__by_hand() -> None:
    """Four anchors all of which count: one positive, one that is left out, two negative."""
    network = make_network()
    network.fg_bg_sampler.throw(torch.tensor([0.5]))
    logits, labels = torch.tensor([[2.0], [5.0], [-1.0], [0.0]]), torch.tensor([1.0, -1.0, 0.0, 0.0])
    deltas, targets = torch.full((4, 4), 0.25), torch.tensor([[0.25, 0.5, 0.25, -1.75]] * 4)
    objectness, box = network.compute_loss(logits, deltas, [labels], (targets,))
    wanted = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(2)) / 3
    assert objectness.item() == pytest.approx(wanted)
    assert box.item() == pytest.approx((0.25 + 2.0) / 3)  # of the positive one alone, per anchor that counts


def test_compute_loss__of_a_whole_image() -> None:
    """By the definition: an anchor is positive from an overlap of 0.7 on, or if none overlaps with an object more."""
    network = make_network(num_samples=10**5).train()  # all anchors count
    network.fg_bg_sampler.throw(torch.tensor([0.1, 0.9]))
    objects = torch.tensor([[8.0, 9.0, 27.0, 26.0], [30.0, 5.0, 62.0, 60.0]])
    maps = make_maps()
    _, losses = network(images(), maps, [{"boxes": objects}, {"boxes": objects[:0]}])
    logits, deltas = network.head(list(maps.values()))
    (anchors, _) = network.anchor_generator(images(), list(maps.values()))
    terms, box_loss = [], 0.0
    for image in range(2):
        flat = torch.cat([level[image].permute(1, 2, 0).reshape(-1) for level in logits]).double()
        moved = torch.cat([d[image].unflatten(0, (3, 4)).permute(2, 3, 0, 1).reshape(-1, 4) for d in deltas]).double()
        overlaps = overlap(anchors, objects) if image == 0 else torch.zeros(len(anchors), 1)
        best = overlaps.max(dim=0).values
        for i in range(len(anchors)):
            highest = overlaps[i].max().item()
            is_best = image == 0 and bool((overlaps[i] == best).any())
            if highest >= 0.7 or is_best:
                terms.append(math.log1p(math.exp(-flat[i].item())))
                box_loss += (moved[i] - encode(anchors[i], objects[int(overlaps[i].argmax())])).abs().sum().item()
            elif highest < 0.3:
                terms.append(math.log1p(math.exp(flat[i].item())))
    assert losses["loss_objectness"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(box_loss / len(terms), rel=1e-5)


def overlap(anchors: Tensor, objects: Tensor) -> Tensor:
    """[anchor, object]: intersection over union, in float32 as torchvision has it, for its ties are ours."""
    edges = [torch.maximum, torch.maximum, torch.minimum, torch.minimum]
    left, top, right, bottom = (edge(anchors[:, None, i], objects[None, :, i]) for i, edge in enumerate(edges))
    common = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (anchors, objects)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def encode(anchor: Tensor, wanted: Tensor) -> Tensor:
    """How an anchor has to move and grow."""
    (left, top, right, bottom), (x0, y0, x1, y1) = anchor.double(), wanted.double()
    width, height = right - left, bottom - top
    middle = torch.stack([(x0 + x1 - left - right) / 2 / width, (y0 + y1 - top - bottom) / 2 / height])
    return torch.cat([middle, torch.stack([(x1 - x0) / width, (y1 - y0) / height]).log()])
