import os
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from quantsr.errors import UserError
from quantsr.metrics.fidelity import PSNRY, SSIMY, FidelityPSNR, luma, psnr, psnr_y, ssim_y

REALSR = Path(__file__).parents[2] / ".." / "shared" / "data" / "realsr"


@pytest.fixture
def pair():
    """Smooth images and a disturbed version of them, on the 8-bit grid, ``(4, 3, 40, 36)``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 10, 9, generator=generator)
    gt = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    noise = torch.randn(gt.shape, generator=generator) * torch.tensor([0.01, 0.05, 0.1, 0.3]).view(4, 1, 1, 1)
    return tuple((image.clamp(0, 1) * 255).round() / 255 for image in (gt + noise, gt))


def test_luma_of_black_white_and_red():
    image = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]]).view(3, 3, 1, 1)
    expected = torch.tensor([16, 235, 16 + 65.481], dtype=torch.float64)
    torch.testing.assert_close(luma(image).flatten(), expected)


@pytest.mark.slow
def test_agrees_with_pyiqa(pair):
    import pyiqa

    options = {"test_y_channel": True, "color_space": "ycbcr", "device": "cpu"}
    torch.testing.assert_close(psnr_y(*pair), pyiqa.create_metric("psnr", **options)(*pair).double(), rtol=0, atol=1e-4)
    # pyiqa rounds a Y that it computed in float32; a value on the edge may round the other way there.
    torch.testing.assert_close(ssim_y(*pair), pyiqa.create_metric("ssim", **options)(*pair).double(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not REALSR.is_dir(), reason="the RealSR images are not at ../shared/data/realsr")
def test_published_osediff_outputs_give_the_known_figures():
    psnr_metric, ssim_metric = PSNRY(), SSIMY()
    files = sorted((REALSR / "OSEDiff").glob("*.png"))
    for file in files:
        sr, gt = (to_tensor(Image.open(path).convert("RGB")).unsqueeze(0) for path in (file, REALSR / "HR" / file.name))
        psnr_metric.update(sr, gt)
        ssim_metric.update(sr, gt)
    assert len(files) == 50
    assert f"{psnr_metric.compute():.4f}" == "25.3243"
    assert f"{ssim_metric.compute():.4f}" == "0.7520"


def test_identical_images_have_finite_scores(pair):
    _, gt = pair
    torch.testing.assert_close(psnr_y(gt, gt), torch.full((4,), 80.0, dtype=torch.float64))
    torch.testing.assert_close(psnr(gt, gt), torch.full((4,), 100.0, dtype=torch.float64))
    torch.testing.assert_close(ssim_y(gt, gt), torch.ones(4, dtype=torch.float64))


def test_psnr_of_a_known_error():
    a = torch.full((2, 3, 4, 4), 0.5)
    torch.testing.assert_close(psnr(a, a + 0.1), torch.full((2,), 20.0, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("measure", [psnr_y, ssim_y, psnr])
def test_each_image_is_measured_alone(pair, measure):
    sr, gt = pair
    alone = torch.cat([measure(sr[i : i + 1], gt[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(measure(sr, gt), alone)


@pytest.mark.parametrize(
    ("metric", "measure"), [(PSNRY, psnr_y), (SSIMY, ssim_y), (FidelityPSNR, psnr)], ids=lambda x: x.__name__
)
def test_metric_averages_images_not_batches(pair, metric, measure):
    sr, gt = pair
    mean = metric()
    mean.update(sr[:3], gt[:3])
    mean.update(sr[3:], gt[3:])
    torch.testing.assert_close(mean.compute(), measure(sr, gt).mean())


@pytest.mark.parametrize("measure", [psnr_y, ssim_y, psnr])
def test_different_sizes_are_named(measure):
    with pytest.raises(UserError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 20\)"):
        measure(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 20))


def test_ssim_needs_a_window():
    with pytest.raises(UserError, match="at least 11x11 pixels, got 30x10"):
        ssim_y(torch.rand(1, 3, 10, 30), torch.rand(1, 3, 10, 30))


DDP_SCRIPT = """
import os, sys, torch
import torch.distributed as dist
from quantsr.metrics.fidelity import PSNRY, psnr_y
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
sr, gt = torch.rand(2, 5, 3, 16, 16, generator=generator)
mean = PSNRY()
share = slice(0, 2) if rank == 0 else slice(2, 5)
mean.update(sr[share], gt[share])
torch.testing.assert_close(mean.compute(), psnr_y(sr, gt).mean())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_metric_averages_over_processes(python, tmp_path):
    command = [python, "-c", DDP_SCRIPT]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
