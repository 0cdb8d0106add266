"""The demo in a browser: a photo goes in, versions stand behind a slider, and nobody else is asked for anything."""

import io
import socket
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from quantsr.data.degradations import to_float
from quantsr.demo import BICUBIC, Demo, import_gradio, launch, main, open_demo, page, times, write_examples
from quantsr.deploy.pipeline import Pipeline
from quantsr.enlarging import bicubic
from quantsr.errors import UserError
from quantsr.evaluation import as_saved
from quantsr.teachers.files import load_teacher, save_teacher
from tests.conftest import WIDTHS, micro_teacher, picture
from tests.deploy.conftest import image_run, video_run  # noqa: F401 - fixtures


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "micro.safetensors"
    save_teacher(micro_teacher(), path)
    return str(path)


@pytest.fixture(scope="module")
def demo(image_run, teacher_weights) -> Demo:  # noqa: F811
    return open_demo(image_run, "torch", "cpu", teacher_weights, limit=64)


class TestVersions:
    def test_all_of_the_same_photo(self, demo, teacher_weights):
        photo = picture(0, side=16)
        pictures, seconds = demo.upscale(photo)
        assert list(pictures) == list(seconds) == ["bicubic", "teacher", "student"]
        assert all(image.size == (64, 64) for image in pictures.values())
        assert all(value > 0 for value in seconds.values())
        assert np.array_equal(pictures["student"], demo.student(photo))
        assert np.array_equal(pictures["teacher"], Pipeline(load_teacher(teacher_weights))(photo, tile=32))
        lq = to_float(torch.from_numpy(np.array(photo)).permute(2, 0, 1))[None]
        expected = (as_saved(bicubic(lq, 4))[0] * 255).round().permute(1, 2, 0).to(torch.uint8)
        assert np.array_equal(pictures["bicubic"], expected.numpy())

    def test_a_photo_beyond_the_limit_is_refused_with_what_to_do(self, demo):
        with pytest.raises(UserError, match=r"has 65x8 pixels, and a side may have 64 here: cut out .* --limit"):
            demo.upscale(Image.new("RGB", (65, 8)))

    def test_it_says_what_runs(self, demo):
        assert demo.title == "MinMax w8a8"
        assert demo.notes == [
            "Student: runtime torch on cpu, where quantization is simulated in float: it takes longer than full "
            "precision.",
            "Teacher: full precision, torch on cpu.",
        ]

    def test_without_the_teachers_weights(self, image_run, monkeypatch):  # noqa: F811
        def nothing(config):
            raise UserError("no teacher weights at /nowhere")

        monkeypatch.setattr("quantsr.demo.teacher_of", nothing)
        demo = open_demo(image_run, "torch", "cpu", None, limit=64)
        assert demo.others == [BICUBIC] and "no teacher weights at /nowhere" in demo.notes[-1]
        assert list(demo.upscale(picture(0, side=8))[0]) == ["bicubic", "student"]

    def test_times(self):
        assert times({"teacher": 1.234}).splitlines()[-1] == "| teacher | 1.23 |" and times({}) == ""


class TestCommand:
    def refused(self, capsys, *arguments: str) -> str:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    def test_without_gradio(self, image_run, monkeypatch, capsys):  # noqa: F811
        monkeypatch.setitem(sys.modules, "gradio", None)
        assert "pip install 'quantsr[demo]'" in self.refused(capsys, str(image_run))

    @pytest.mark.parametrize("part", ["open_demo", "launch"])
    def test_ctrl_c_ends_it_without_a_traceback(self, image_run, teacher_weights, monkeypatch, part):  # noqa: F811
        def interrupt(*args):
            raise KeyboardInterrupt

        pytest.importorskip("gradio")
        monkeypatch.setattr(f"quantsr.demo.{part}", interrupt)
        assert main([str(image_run), "--device", "cpu", "--teacher", teacher_weights]) == 0

    def test_a_port_that_is_taken(self, image_run, address, teacher_weights, capsys):  # noqa: F811
        port = address.rstrip("/").rpartition(":")[2]
        error = self.refused(capsys, str(image_run), "--port", port, "--device", "cpu", "--teacher", teacher_weights)
        assert f"the page cannot be served at 127.0.0.1, port {port}" in error

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("--port", "70000", "--port takes a number from 1 to 65535, not 70000"),
            ("--limit", "0", "--limit takes a number of pixels, 1 or more, not 0"),
            ("--teacher", "/nowhere.safetensors", "/nowhere.safetensors"),
        ],
    )
    def test_bad_options_are_told_before_a_student_is_loaded(self, demo, monkeypatch, capsys, option, value, words):
        pytest.importorskip("gradio")
        monkeypatch.setattr("quantsr.demo.Pipeline.load", None)
        assert words in self.refused(capsys, str(demo.student.folder), option, value)

    def test_bad_folders(self, video_run, tmp_path, capsys):  # noqa: F811
        pytest.importorskip("gradio")
        assert "no artefact in" in self.refused(capsys, str(tmp_path))
        assert "takes clips" in self.refused(capsys, str(video_run), "--device", "cpu")


def test_examples_are_low_quality_crops_of_the_packaged_photographs(tmp_path):
    paths = write_examples(tmp_path)
    assert len(paths) == 6
    for path in paths:
        with Image.open(path) as image:
            assert max(image.size) <= 128 and min(image.size) > 64


# In a browser


@pytest.fixture(scope="module")
def hosts() -> Iterator[set]:
    """Names and addresses that this process has looked for."""
    found, resolve = set(), socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: found.add(host) or resolve(host, *args, **kw))
        yield found


@pytest.fixture(scope="module")
def address(demo, hosts, tmp_path_factory) -> Iterator[str]:
    """Of the page, served."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("examples")
    picture(3, side=24).save(folder / "example.png")
    blocks = page(demo, [str(folder / "example.png")])
    yield launch(blocks)
    blocks.close()


@pytest.fixture(params=WIDTHS)
def shown(request, browser, address):
    """The page, opened; at the end there must have been no error, and no request to anyone else."""
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    shown, problems = context.new_page(), []
    shown.set_default_timeout(60_000)
    here = urlsplit(address).netloc
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.on("console", lambda message: message.type == "error" and problems.append(message.text))
    shown.on(
        "request",
        lambda made: urlsplit(made.url).netloc in (here, "") or problems.append(made.url),
    )
    shown.goto(address)
    shown.get_by_role("button", name="Upscale x4").wait_for()
    yield shown
    context.close()
    assert problems == []


def upload(shown, image: Image.Image, tmp_path) -> None:
    image.save(tmp_path / "photo.png")
    shown.locator("input[type=file]").first.set_input_files(tmp_path / "photo.png")
    shown.locator("[data-testid=image] img, .image-frame img").first.wait_for()


def upscale(shown) -> None:
    shown.get_by_role("button", name="Upscale x4").click()
    shown.locator("table td", has_text="student").wait_for()


def sizes(shown) -> list[list[int]]:
    """Of the pictures behind the slider."""
    pictures = shown.locator("[data-testid=imageslider] img, .slider-wrap img")
    pictures.nth(1).wait_for()
    return pictures.evaluate_all("all => all.map(i => [i.naturalWidth, i.naturalHeight])")


def left_picture(shown) -> str:
    return shown.locator(".slider-wrap img").first.get_attribute("src")


def test_a_photo_is_upscaled(shown, tmp_path):
    upload(shown, picture(0, side=16), tmp_path)
    upscale(shown)
    assert sizes(shown) == [[64, 64], [64, 64]]
    names = shown.locator("table tr td:first-child").all_inner_texts()
    assert names == ["bicubic", "teacher", "student"]
    assert all(float(text) >= 0 for text in shown.locator("table tr td:last-child").all_inner_texts())
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_other_side_of_the_slider_is_chosen(shown, tmp_path):
    upload(shown, picture(0, side=16), tmp_path)
    upscale(shown)
    before = left_picture(shown)
    shown.get_by_text("teacher (left) and student (right), 64x64 pixels").wait_for()
    shown.get_by_label("bicubic").check()
    shown.get_by_text("bicubic (left) and student (right), 64x64 pixels").wait_for()
    shown.wait_for_function("before => document.querySelector('.slider-wrap img').src !== before", arg=before)
    assert sizes(shown) == [[64, 64], [64, 64]]


def test_what_is_named_left_is_left(browser, demo, monkeypatch, tmp_path):
    colours = {"bicubic": "green", "teacher": "red", "student": "blue"}
    flat = {name: Image.new("RGB", (64, 64), colour) for name, colour in colours.items()}
    monkeypatch.setattr(Demo, "upscale", lambda self, photo: (flat, dict.fromkeys(flat, 0.0)))
    blocks = page(demo)
    shown = browser.new_page()
    shown.goto(launch(blocks))
    upload(shown, picture(0, side=16), tmp_path)
    upscale(shown)
    sizes(shown)
    with Image.open(io.BytesIO(shown.locator(".slider-wrap").screenshot())) as image:
        row, pixels = image.height * 3 // 4, image.convert("RGB")
        left, right = (pixels.getpixel((round(image.width * x), row)) for x in (0.25, 0.75))
    assert left[0] > 200 > 50 > left[2] and right[2] > 200 > 50 > right[0]
    shown.close()
    blocks.close()


def test_an_example_is_taken(shown):
    shown.locator("[class*=gallery] img, .gallery-item img").first.click()
    shown.locator("[data-testid=image] img, .image-frame img").first.wait_for()
    upscale(shown)
    assert sizes(shown) == [[96, 96], [96, 96]]


def test_a_photo_that_is_too_large_is_refused_in_words(shown, tmp_path):
    upload(shown, picture(0, side=80), tmp_path)
    shown.get_by_role("button", name="Upscale x4").click()
    shown.get_by_text("This photo has 80x80 pixels, and a side may have 64 here").wait_for()


def test_no_photo(shown):
    shown.get_by_role("button", name="Upscale x4").click()
    shown.get_by_text("Drop a photo first").wait_for()


def test_the_server_asks_nobody_either(shown, hosts, tmp_path):
    upload(shown, picture(0, side=16), tmp_path)
    upscale(shown)
    assert "127.0.0.1" in hosts and hosts <= {"127.0.0.1", "localhost", None}


def test_it_says_what_runs(shown):
    text = shown.locator("body").inner_text()
    assert "MinMax w8a8" in text and "runtime torch on cpu" in text and "Teacher: full precision" in text


def test_gradio_is_told_to_call_nobody(monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    from gradio import analytics

    import_gradio()
    assert not analytics.analytics_enabled()
