"""A pipeline gives back the kind of thing that it is given, and says in one sentence what it cannot take."""

import subprocess
import sys
from functools import partial
from threading import Thread, current_thread

import numpy as np
import pytest
import rich
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

import quantsr
from quantsr.data.degradations import to_float
from quantsr.deploy.artefact import load_student
from quantsr.deploy.pipeline import Pipeline
from quantsr.errors import UserError
from quantsr.evaluation import as_saved
from quantsr.normalization import SharedStatistics
from quantsr.upscaling import on_device
from tests.conftest import micro_teacher, picture


@pytest.fixture(scope="module")
def student(image_run):
    return load_student(image_run)


@pytest.fixture
def pipe(image_run) -> Pipeline:
    return quantsr.load(image_run, device="cpu")


@pytest.fixture
def photo() -> Image.Image:
    """11 x 7 pixels."""
    return picture(0, side=16).crop((0, 0, 11, 7))


def expected(student, photo: Image.Image) -> Tensor:
    """What the student makes of a photo, ``(3, h, w)``."""
    pixels = to_float(torch.from_numpy(np.array(photo)).permute(2, 0, 1))
    with torch.no_grad():
        return student(pixels[None])[0]


def pixels_of(image: Image.Image) -> Tensor:
    return to_float(torch.from_numpy(np.array(image)).permute(2, 0, 1))


class TestKinds:
    def test_pil(self, pipe, student, photo):
        sr = pipe(photo)
        assert isinstance(sr, Image.Image) and (sr.mode, sr.size) == ("RGB", (44, 28))
        torch.testing.assert_close(pixels_of(sr), as_saved(expected(student, photo)), atol=1e-6, rtol=0)

    def test_path_of_an_image_gives_pil(self, pipe, photo, tmp_path):
        photo.save(tmp_path / "a.png")
        for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
            assert np.array_equal(pipe(path), pipe(photo))

    def test_array_of_bytes(self, pipe, photo):
        sr = pipe(np.array(photo))
        assert sr.dtype == np.uint8 and np.array_equal(sr, np.array(pipe(photo)))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.longdouble, ">f4"])
    def test_array_of_floats(self, pipe, photo, dtype):
        array = (np.array(photo) / 255).astype(dtype)
        sr = pipe(array)
        expected = pipe(torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)).permute(1, 2, 0)
        assert (sr.dtype, sr.shape) == (dtype, (28, 44, 3)) and np.array_equal(sr, expected.numpy().astype(dtype))

    def test_arrays_that_are_views_or_read_only(self, pipe, photo):
        array = np.array(photo)
        turned = pipe(array[::-1, ::-1])
        array.flags.writeable = False
        assert turned.shape == pipe(array).shape

    @pytest.mark.parametrize("shape", [(3, 7, 11), (1, 3, 7, 11), (2, 3, 7, 11), (1, 2, 3, 7, 11)], ids=str)
    def test_tensors_keep_their_axes(self, pipe, shape):
        assert pipe(torch.rand(shape)).shape == (*shape[:-2], 28, 44)

    def test_a_tensor_goes_through_as_it_is(self, pipe, student):
        x = torch.rand(2, 3, 8, 8)
        with torch.no_grad():
            assert torch.equal(pipe(x), student(x)) and torch.equal(pipe(x[0]), pipe(x[:1])[0])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_tensors_keep_their_type(self, pipe, dtype):
        x = torch.rand(3, 8, 8).to(dtype)
        assert torch.equal(pipe(x), pipe(x.float()).to(dtype))

    def test_a_clip_goes_through_frame_by_frame(self, pipe):
        clip = torch.rand(2, 3, 3, 8, 8)
        expected = torch.stack([torch.cat([pipe(frame[None]) for frame in frames]) for frames in clip])
        torch.testing.assert_close(pipe(clip), expected)

    def test_results_want_no_gradient_and_no_less_than_a_tensor(self, pipe):
        sr = pipe(torch.rand(3, 8, 8, requires_grad=True))
        assert not sr.requires_grad and not sr.is_inference()

    def test_values_hardly_beyond_the_range_are_cut(self, pipe):
        x = torch.rand(3, 8, 8).round()
        assert torch.equal(pipe(x * 1.0005), pipe(x))

    def test_clips_of_any_length_through_a_model_of_clips(self, video_run):
        pipe, clip = quantsr.load(video_run, device="cpu"), torch.rand(1, 4, 3, 8, 8)
        assert pipe.frames == 3
        assert torch.equal(pipe(clip), on_device(load_student(video_run), "cpu")(clip))


class TestConversions:
    @pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "I;16"])
    def test_pil_images_of_any_mode_become_rgb(self, pipe, photo, mode):
        image = photo.convert(mode) if mode != "I;16" else Image.fromarray(np.full((7, 11), 40000, np.uint16))
        assert image.mode == mode
        sr = pipe(image)
        assert (sr.mode, sr.size) == ("RGB", (44, 28))
        if mode == "I;16":  # 40000 / 65535 = 0.61; cut off at 255 it would be white.
            assert 0.45 < np.array(sr).mean() / 255 < 0.75

    def test_grayscale_arrays_are_repeated(self, pipe, photo):
        gray = np.array(photo.convert("L"))
        rgb = pipe(np.stack([gray] * 3, -1))
        assert np.array_equal(pipe(gray), rgb) and np.array_equal(pipe(gray[..., None]), rgb)

    def test_transparency_is_dropped(self, pipe, photo):
        array = np.array(photo)
        transparent = np.concatenate([array, np.full((7, 11, 1), 17, np.uint8)], -1)
        assert np.array_equal(pipe(transparent), pipe(array))
        assert np.array_equal(np.array(pipe(Image.fromarray(transparent))), pipe(array))


class TestRefused:
    """In one sentence, before anything is computed."""

    @pytest.fixture(autouse=True)
    def nothing_is_computed(self, pipe):
        calls = []
        pipe.model.register_forward_pre_hook(lambda *_: calls.append(1))
        yield
        assert not calls

    @pytest.mark.parametrize(
        ("x", "words"),
        {
            "a number": (3, "takes a path, a PIL image, .* not int"),
            "nothing": (None, "not NoneType"),
            "whole numbers": (torch.zeros(3, 8, 8, dtype=torch.uint8), "float in .*, not torch.uint8: divide"),
            "channels last": (torch.zeros(8, 8, 3), r"not of shape \(8, 8, 3\)"),
            "one channel": (torch.zeros(1, 8, 8), r"not of shape \(1, 8, 8\)"),
            "two axes": (torch.zeros(8, 8), r"not of shape \(8, 8\)"),
            "up to 255": (torch.full((3, 8, 8), 255.0), r"in \[0, 1\], not from 255 to 255"),
            "from -1": (torch.full((3, 8, 8), -1.0), r"not from -1 to -1"),
            "nan": (torch.full((3, 8, 8), torch.nan), "not from nan to nan"),
            "empty": (torch.zeros(3, 0, 8), "at least one pixel"),
            "no images": (torch.zeros(0, 3, 8, 8), "at least one pixel"),
            "array of integers": (np.zeros((8, 8, 3), np.int64), "uint8 or float in .*, not int64"),
            "array up to 255": (np.full((8, 8, 3), 255.0), "not from 255 to 255"),
            "array, channels first": (np.zeros((3, 8, 8)), r"\(h, w, 3\), not of shape \(3, 8, 8\)"),
            "arrays": (np.zeros((2, 8, 8, 3)), "give several as a tensor"),
            "PIL without a range": (Image.new("F", (8, 8)), "cannot be made RGB: mode F has no range"),
            "PIL without a way to RGB": (Image.new("La", (8, 8)), "cannot be made RGB: .*La"),
            "without values": (torch.zeros(3, 8, 8, device="meta"), "on the device meta has no values"),
        }.values(),
    )
    def test_inputs(self, pipe, x, words):
        with pytest.raises(UserError, match=words) as caught:
            pipe(x)
        assert "\n" not in str(caught.value)

    def test_a_pil_image_of_a_file_that_ends_early(self, pipe, tmp_path):
        picture(0, side=64).save(tmp_path / "whole.png")
        (tmp_path / "a.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
        with (
            pytest.raises(UserError, match=r"cannot be made RGB: .*truncated"),
            Image.open(tmp_path / "a.png") as image,
        ):
            pipe(image)

    def test_output_for_what_is_in_memory(self, pipe, photo):
        with pytest.raises(UserError, match="output= is where results of files go"):
            pipe(photo, output="x.png")

    def test_images_for_a_model_of_clips(self, video_run, photo):
        pipe = quantsr.load(video_run, device="cpu")
        for x in (photo, np.array(photo), torch.rand(3, 3, 8, 8)):
            with pytest.raises(UserError, match="segments of 3 frames: give it a clip, not an image"):
                pipe(x)

    @pytest.mark.parametrize(
        "options",
        [{"tile": 30}, {"tile": 0}, {"tile": "32"}, {"tile": 64.0}, {"batch": 0}, {"batch": 1.5}],
        ids=str,
    )
    def test_tiles(self, pipe, photo, options):
        with pytest.raises(UserError, match=f"{next(iter(options))} takes a"):
            pipe(photo, **options)
        assert (pipe.tile, pipe.batch) == (32, 1)

    def test_tiles_of_a_model_without(self, video_run):
        pipe = quantsr.load(video_run, device="cpu")
        assert (pipe.tile, pipe.batch) == (None, 1)
        for options in ({"tile": 64}, {"batch": 2}):
            with pytest.raises(UserError, match="is of one-step image models"):
                pipe(torch.rand(1, 3, 3, 8, 8), **options)


class TestTiles:
    def test_tiles_of_a_call_are_of_that_call(self, pipe):
        x, seen = torch.rand(3, 20, 20), []
        pipe.model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        pipe(x, tile=64, batch=3)
        assert set(seen[-2:]) == {(3, 4, 32, 32), (1, 4, 32, 32)} and (pipe.tile, pipe.batch) == (32, 1)

    def test_attributes_are_of_all_calls(self, pipe):
        pipe.tile, pipe.batch = 64, 3
        assert (pipe.model.tile, pipe.model.tile_batch) == (64, 3)

    def test_batches_change_nothing(self, pipe):
        x = torch.rand(2, 3, 13, 21)
        torch.testing.assert_close(pipe(x, batch=4), pipe(x), atol=1e-5, rtol=1e-5)

    def test_where_they_would_they_are_refused(self, dynamic_run):
        """Of a range of all that a layer is given at a time."""
        pipe, x = quantsr.load(dynamic_run, device="cpu"), torch.rand(1, 3, 13, 21)
        with pytest.raises(UserError, match="batch=4 would change what this student computes"):
            pipe(x, batch=4)
        one_by_one = pipe.restore(x)
        pipe.model.tile_batch = 4
        assert not torch.allclose(pipe.restore(x), one_by_one, atol=1e-4)

    def test_an_image_comes_out_the_same_whatever_is_beside_it(self, dynamic_run):
        pipe = quantsr.load(dynamic_run, device="cpu")
        dark, bright = 0.1 * torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
        assert torch.equal(pipe(torch.cat([dark, bright]))[:1], pipe(dark))


class TestProgress:
    @pytest.fixture
    def bars(self, monkeypatch) -> list[tuple[str, float, float]]:
        """Name, total and end of every bar that was drawn."""
        seen, remove, stop = [], Progress.remove_task, Progress.stop
        monkeypatch.setattr(rich.get_console(), "is_interactive", True)

        def note(self, tasks):
            if not self.disable:
                seen.extend((task.description, task.total, task.completed) for task in tasks)

        def removed(self, number):
            note(self, [task for task in self.tasks if task.id == number])
            remove(self, number)

        def stopped(self):
            note(self, self.tasks)
            stop(self)

        monkeypatch.setattr(Progress, "remove_task", removed)
        monkeypatch.setattr(Progress, "stop", stopped)
        return seen

    @pytest.mark.parametrize("batch", [1, 4])
    def test_tiles_are_counted_to_the_end(self, pipe, bars, batch):
        count = pipe.model.tiles(4 * 13, 4 * 21)
        pipe(torch.rand(2, 3, 13, 21), batch=batch)
        assert bars == [("tiles", count, count)]

    def test_so_are_those_of_networks_that_take_images_one_by_one(self, pipe, bars):
        for network in pipe.model.networks:
            network.shared_statistics = partial(SharedStatistics, network)
        count = pipe.model.tiles(4 * 13, 4 * 21)
        pipe(torch.rand(2, 3, 13, 21))
        assert bars == [("tiles", count, count)]

    def test_one_tile_needs_no_bar(self, pipe, bars):
        pipe(torch.rand(3, 8, 8))
        assert not bars

    def test_none_where_none_is_wanted(self, pipe, bars):
        pipe(torch.rand(3, 13, 21), progress=False)
        assert not bars

    def test_images_of_a_folder_and_the_tiles_of_each(self, pipe, bars, tmp_path):
        (tmp_path / "in").mkdir()
        for number, side in enumerate((8, 9)):
            picture(number, side=side).save(tmp_path / "in" / f"{number}.png")
        pipe(tmp_path / "in", output=tmp_path / "out")
        assert [bar[:2] for bar in bars] == [("tiles", 24), ("images", 2)]

    def test_output_that_no_terminal_shows_has_no_trace(self, pipe, capsys):
        pipe(torch.rand(3, 13, 21))
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("call", [Pipeline.__call__, Pipeline.restore], ids=["call", "restore"])
def test_calls_from_other_threads_wait(pipe, call):
    """While tiles of an image go through, the norms are those of that image."""
    x, y, threads, found = torch.rand(1, 3, 20, 20), torch.rand(1, 3, 8, 8), [], []
    expected = pipe(y)
    other = Thread(target=lambda: found.append(call(pipe, y)))

    def note(*_):
        threads.append(current_thread())
        if other.ident is None:
            other.start()
            other.join(0.3)

    pipe.model.unet.register_forward_pre_hook(note)
    call(pipe, x)
    other.join()
    assert threads[-1] is other and threads.count(other) == 1
    assert torch.equal(found[0], expected)


def test_a_model_in_memory_is_a_pipeline_too(lq):
    teacher = micro_teacher().freeze()
    pipe = Pipeline(teacher)
    assert torch.equal(pipe(lq), teacher(lq)) and (pipe.scale, pipe.frames, pipe.folder) == (4, 1, None)


def test_it_says_what_it_is(pipe, image_run):
    assert repr(pipe) == f"Pipeline(images, x4, runtime=torch, device=cpu, folder={image_run / 'artefact'})"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, quantsr; quantsr.load, quantsr.from_pretrained; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
