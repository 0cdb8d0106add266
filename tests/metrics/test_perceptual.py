"""Perceptual metrics by name are pyiqa's, from files on disk, and nothing is ever downloaded.

The real weights are not at hand here, those of NIQE aside: the other metrics are built from random ones.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from quantsr.errors import UserError
from quantsr.metrics.perceptual import FrechetDistance, ImageMetric, description, frechet_distance
from quantsr.metrics.weights import URLS, find, missing
from tests.conftest import SHARED, picture

NIQE = SHARED / "weights" / "niqe_pris_params.npz"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> Path:
    """An empty folder of torch.hub; every download fails."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a download was tried"))
    return tmp_path / "hub"


def image(seed: int = 0, side: int = 96) -> Tensor:
    return torch.from_numpy(np.asarray(picture(seed, side=side)).copy()).permute(2, 0, 1) / 255


def random_state(make: Callable[[], nn.Module], device: str = "meta") -> dict[str, Tensor]:
    """A state dict that takes little space in a file: each row of a weight is the last one, shifted."""
    with torch.device(device):
        state = make().state_dict()
    generator = torch.Generator().manual_seed(0)
    random = {}
    for name, tensor in state.items():
        if name.endswith("running_var"):
            random[name] = torch.ones(tensor.shape)
        elif tensor.ndim < 2:
            random[name] = 0.1 * torch.randn(tensor.shape, generator=generator)
        else:
            rows, columns = len(tensor), tensor[0].numel()
            values = torch.randn(rows + columns - 1, generator=generator) * (2 / columns) ** 0.5
            random[name] = values.unfold(0, columns, 1).view(tensor.shape)
    return random


def save(content: object, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder for weights that the user names."""
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def write_niqe(folder: Path) -> None:
    """Parameters of NIQE in BasicSR's file: the features of noise would do for an image like these."""
    values = {"mu_pris_param": np.full((1, 36), 0.5), "cov_pris_param": np.eye(36), "gaussian_window": np.ones((7, 7))}
    np.savez(folder / "niqe_pris_params.npz", **values)


class TestWeights:
    @pytest.mark.parametrize("metric", sorted(URLS))
    def test_what_is_missing_is_named_with_where_it_was_looked_for_and_its_address(self, metric, hub, folder):
        sentence = missing(metric, folder)
        for place, url in URLS[metric].items():
            for text in (str(folder), str((hub / place).parent), url + Path(place).name):
                assert text in sentence

    def test_a_folder_that_is_named_comes_first_and_the_libraries_caches_second(self, hub, folder):
        place = "pyiqa/musiq_koniq_ckpt-e95806b9.pth"
        save(0, hub / place)
        assert find(place, folder) == hub / place and missing("musiq") is None
        save(0, folder / Path(place).name)
        assert find(place, folder) == folder / Path(place).name
        assert find(place) == hub / place

    def test_files_of_one_metric_may_lie_in_both(self, hub, folder):
        save(0, hub / "checkpoints" / "alexnet-owt-7be5be79.pth")
        assert "alexnet" not in missing("lpips", folder)
        save(0, folder / "LPIPS_v0.1_alex-df73285e.pth")
        assert missing("lpips", folder) is None

    def test_the_folder_must_be_there(self, folder):
        with pytest.raises(UserError, match=r"metrics.weights_dir=.*nowhere is no folder"):
            missing("niqe", folder / "nowhere")

    def test_a_folder_at_home_is_written_from_there(self, hub, folder, monkeypatch):
        monkeypatch.setattr(Path, "home", lambda: folder.parent)
        sentence = missing("niqe", folder)
        assert "~/weights or ~/hub/pyiqa" in sentence and str(folder) not in sentence

    def test_names_and_addresses_are_those_of_pyiqa(self):
        from pyiqa.archs import clip_model, dists_arch, inception, lpips_arch, maniqa_arch, musiq_arch, niqe_arch

        theirs = {
            "lpips": {lpips_arch.default_model_urls["0.1_alex"], models.AlexNet_Weights.IMAGENET1K_V1.url},
            "dists": {dists_arch.default_model_urls["url"], models.VGG16_Weights.IMAGENET1K_V1.url},
            "niqe": {niqe_arch.default_model_urls["niqe"]},
            "musiq": {musiq_arch.default_model_urls["koniq10k"]},
            "maniqa": {maniqa_arch.default_model_urls["koniq"]},
            "clipiqa": {clip_model._MODELS["RN50"]},
            "fid": {inception.FID_WEIGHTS_URL},
        }
        assert {name: {url + Path(place).name for place, url in URLS[name].items()} for name in theirs} == theirs
        options = {name: description(name)["metric_opts"] for name in theirs}
        assert options["lpips"]["net"] == "alex" and options["musiq"]["pretrained"] == "koniq10k"
        assert options["maniqa"]["train_dataset"] == "koniq"


class TestBuilding:
    @pytest.mark.parametrize("name", ["lpips", "niqe", "maniqa"])
    def test_without_weights_it_says_which(self, name, folder):
        with pytest.raises(UserError) as error:
            ImageMetric(name, folder)
        assert str(error.value) == f"{name} cannot be measured: {missing(name, folder)}"

    @pytest.mark.parametrize("name", ["musiq", "clipiqa", "niqe"])
    def test_unreadable_weights(self, name, folder):
        (place,) = URLS[name]
        file = folder / Path(place).name
        file.write_bytes(b"no weights")
        with pytest.raises(UserError, match=f"{file} does not hold the weights of {name}"):
            ImageMetric(name, folder)

    def test_a_file_that_another_version_of_pyiqa_asks_for_is_not_downloaded(self, folder, monkeypatch):
        from pyiqa.archs import musiq_arch

        save({}, folder / "musiq_koniq_ckpt-e95806b9.pth")
        monkeypatch.setattr(musiq_arch, "default_model_urls", {"koniq10k": "https://nowhere.example/newer.pth"})
        with pytest.raises(UserError) as error:
            ImageMetric("musiq", folder)
        assert "asks for https://nowhere.example/newer.pth" in str(error.value.__cause__)

    def test_leaves_the_hub_as_it_was_and_says_nothing(self, hub, folder, capfd, caplog):
        write_niqe(folder)
        ImageMetric("niqe", folder)
        assert torch.hub.get_dir() == str(hub) and not hub.exists()
        assert capfd.readouterr() == ("", "") and not caplog.records

    def test_images_that_are_too_small_are_refused(self, folder):
        write_niqe(folder)
        with pytest.raises(UserError, match="niqe needs images of 96 pixels a side or more, not 128 x 64"):
            ImageMetric("niqe", folder)(torch.rand(3, 64, 128), torch.rand(3, 64, 128))


class TestScores:
    def test_niqe_without_a_reference_from_basicsrs_parameters(self, folder):
        write_niqe(folder)
        metric = ImageMetric("niqe", folder)
        assert not metric.needs_reference
        assert metric(image(0, 192), image(1, 192)) == metric(image(0, 192), image(2, 192)) > 0

    @pytest.mark.skipif(not NIQE.is_file(), reason="needs the parameters of NIQE")
    def test_niqe_of_noise_is_worse_than_of_a_photograph(self):
        from skimage import data

        photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[..., :288, :288] / 255
        noise = torch.rand(photo.shape, generator=torch.Generator().manual_seed(0))
        metric = ImageMetric("niqe", NIQE.parent)
        assert metric(photo, photo) < 8 < metric(noise, noise)

    def test_lpips_is_that_of_another_library_with_the_same_weights(self, hub, folder):
        import torchmetrics.functional.image.lpips as reference

        trunk = random_state(models.alexnet)
        save(trunk, folder / "alexnet-owt-7be5be79.pth")
        heads = Path(reference.__file__).parent / "lpips_models" / "alex.pth"
        (folder / "LPIPS_v0.1_alex-df73285e.pth").write_bytes(heads.read_bytes())
        metric = ImageMetric("lpips", folder)
        save(trunk, hub / "checkpoints" / "alexnet-owt-7be5be79.pth")
        a, b = image(0), image(1)
        expected = reference.learned_perceptual_image_patch_similarity(a[None], b[None], "alex", normalize=True)
        assert metric.needs_reference and metric(a, a) == 0
        assert metric(a, b) == pytest.approx(expected.item(), rel=1e-4) and expected > 0

    @pytest.mark.slow
    def test_dists_of_an_image_with_itself_is_0(self, folder):
        save(random_state(models.vgg16), folder / "vgg16-397923af.pth")
        save({}, folder / "DISTS_weights-f5e65c96.pth")
        metric = ImageMetric("dists", folder)
        assert metric(image(0), image(0)) == pytest.approx(0, abs=1e-5) and metric(image(0), image(1)) > 1e-3

    @pytest.mark.slow
    def test_musiq_is_pyiqas_own_network(self, folder):
        from pyiqa.archs.musiq_arch import MUSIQ

        state = random_state(lambda: MUSIQ(pretrained=False))
        save(state, folder / "musiq_koniq_ckpt-e95806b9.pth")
        network = MUSIQ(pretrained=False).eval()
        network.load_state_dict(state)
        with torch.no_grad():
            expected = network(image(0)[None]).item()
        assert ImageMetric("musiq", folder)(image(0), image(1)) == pytest.approx(expected, rel=1e-5)

    def test_clipiqa_is_a_share(self, folder):
        from pyiqa.archs.clip_model import CLIP

        torch.manual_seed(0)
        shape = {"embed_dim": 32, "image_resolution": 224, "vision_layers": (1, 1, 1, 1), "vision_width": 8}
        text = {"context_length": 77, "vocab_size": 49408, "transformer_width": 64, "transformer_heads": 1}
        clip = CLIP(**shape, vision_patch_size=None, **text, transformer_layers=1)
        example = image(0, 224)[None], torch.zeros(1, 77, dtype=torch.long)
        torch.jit.trace(clip, example, check_trace=False).save(folder / "RN50.pt")  # As CLIP's own files are saved.
        metric = ImageMetric("clipiqa", folder)
        assert 0 < metric(image(0), image(1)) < 1 and not metric.needs_reference

    @pytest.mark.slow
    def test_maniqa_needs_no_other_file_than_its_checkpoint(self, folder):
        from pyiqa.archs.maniqa_arch import MANIQA, timm

        create = timm.create_model
        with patch.object(timm, "create_model", lambda name, pretrained: create(name)):
            state = random_state(lambda: MANIQA(pretrained=False, scale=0.8), "cpu")
        save(state, folder / "ckpt_koniq10k.pt")
        metric = ImageMetric("maniqa", folder)
        metric._model.net.test_sample = 1  # crops
        assert np.isfinite(metric(image(0, 256), image(0, 256)))


class TestFrechetDistance:
    @pytest.fixture
    def distance(self, folder) -> FrechetDistance:
        from pyiqa.archs import inception

        with patch.object(inception, "load_pretrained_network", lambda *_: None):
            save(random_state(inception.fid_inception_v3), folder / "pt_inception-2015-12-05-6726825d.pth")
        return FrechetDistance(folder)

    @pytest.mark.parametrize("count", [30, 5], ids=["more images than features", "fewer"])
    def test_formula_is_that_of_the_paper(self, count):
        from scipy.linalg import sqrtm

        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(count, 8)), rng.normal(1, 2, size=(count + 1, 8))
        covariances = [np.cov(x, rowvar=False) for x in (a, b)]
        root = sqrtm(covariances[0] @ covariances[1]).real
        shift = np.square(a.mean(0) - b.mean(0)).sum()
        expected = shift + np.trace(covariances[0] + covariances[1] - 2 * root)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)

    @pytest.mark.slow
    def test_every_model_is_compared_with_the_ground_truth(self, distance):
        from pyiqa.archs.fid_arch import ResizeDataset

        first = {"gt": 0, "student": 0, "teacher": 7}
        for i in range(3):
            for model, start in first.items():
                distance.add(model, image(start + i))
        files = sorted(Path(distance._folder.name, "teacher").iterdir())
        batch = torch.stack(list(ResizeDataset(files, "clean")))
        with torch.no_grad():
            theirs = distance._model.net.model((batch - 128) / 128)[0].flatten(1).numpy()
            assert distance._features(files[0].parent) == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        result = distance.compute()
        assert set(result) == {"student", "teacher"}
        assert result["teacher"] > 0 and result["student"] == pytest.approx(0, abs=1e-6 * result["teacher"])

    def test_one_image_is_no_set(self):
        with pytest.raises(UserError, match="sets of two images or more"):
            frechet_distance(np.ones((1, 8)), np.ones((3, 8)))


def test_the_log_of_pyiqa_is_quiet_about_building(folder):
    write_niqe(folder)
    ImageMetric("niqe", folder)
    assert logging.getLogger("pyiqa").getEffectiveLevel() >= logging.WARNING
