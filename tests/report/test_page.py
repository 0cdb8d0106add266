"""The page in a browser: it opens from disk without errors or requests, its controls work, it fits a phone."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantsr.report import read_jobs, write_report
from tests.conftest import WIDTHS
from tests.report.conftest import METRICS, student

ODD = "a<b>&amp;\"q\" 'ü' </script><script>throw 1</script> 漢字 {{ x }}"


def flat(*color: int) -> np.ndarray:
    return np.full((64, 64, 3), color, np.uint8)


def outputs(*color: int, frames: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """One sample of which the student has one colour, the teacher is blue and the truth is white."""
    pictures = {"lq": flat(9, 9, 9)[:16, :16], "teacher": flat(0, 0, 255), "gt": flat(255, 255, 255)}
    pictures["student"] = flat(*color)
    if frames:
        pictures = {name: np.stack([picture] * frames) for name, picture in pictures.items()}
    return {f"sample {ODD[:9]}": pictures}


@pytest.fixture
def report(make_run, tmp_path) -> Path:
    """Red and green methods at two bits on images, one method on clips, a long option, curves, a failure."""
    losses = [(step, f"stage {step // 5}", 1 / (step + 1)) for step in range(10)]
    cost = {"denoiser_parameters_saved": 0.84, "denoiser_operations_saved": 0.82}
    for number, bits in enumerate(("w4a4", "w2a2")):
        shade = 255 - 100 * number
        red, green = (student(v, cost=cost, seconds=9, absent={"lpips": ODD}) for v in (22.0 - number, 23.0 - number))
        make_run("red", bits, metrics=red, outputs=outputs(shade, 0, 0), losses=losses)
        make_run(
            "green",
            bits,
            metrics=green,
            outputs=outputs(0, shade, 0),
            overrides=(f"method.parts=[{'encoder,' * 6}{ODD}]",),
        )
    for method in ("red", ODD):
        clips = {key: value for key, value in METRICS.items() if key != "images"} | {"clips": 2}
        make_run(
            method, metrics=clips, data=f"motion {ODD}", outputs=outputs(200, 0, 0, frames=4), name=f"9_{len(method)}"
        )
    make_run("lsq", metrics=None)
    _, files = write_report(read_jobs([tmp_path]), tmp_path / "out")
    return files[-1]


@pytest.fixture(params=WIDTHS)
def page(request, browser, report) -> Iterator:
    """The page, opened; at the end there must have been no error and no request but for the file itself."""
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda made: made.url.startswith("data:") or problems.append(made.url))
    page.goto(report.as_uri())
    yield page
    context.close()
    assert problems == [report.as_uri()]


def colors(page, selector: str = ".stage") -> dict[str, tuple[int, ...]]:
    """The pixels a tenth of the width inside the left and the right border of an element."""
    with Image.open(io.BytesIO(page.locator(selector).first.screenshot())) as image:
        row, pixels = image.height // 5, image.convert("RGB")
        return {side: pixels.getpixel((round(image.width * x), row)) for side, x in (("left", 0.1), ("right", 0.9))}


def is_close(color: tuple[int, ...], *wanted: int) -> bool:
    return max(abs(a - b) for a, b in zip(color, wanted, strict=True)) < 12


def test_every_picture_is_shown_and_held_once(page, report):
    broken = "images => images.filter(i => i.checkVisibility() && !(i.complete && i.naturalWidth)).length"
    assert page.locator("img").count() > 20
    assert page.locator("img").evaluate_all(broken) == 0
    uris = page.evaluate("Object.values(JSON.parse(document.getElementById('pictures').textContent))")
    text = report.read_text()
    assert len(set(uris)) == len(uris) and all(text.count(uri) == 1 for uri in uris)


def test_nothing_is_wider_than_the_page(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for button in page.locator("[data-show]").all():
        button.click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_text_is_of_a_readable_size(page):
    sizes = page.evaluate(
        """[...document.querySelectorAll('body *')]
        .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .filter(e => !['SCRIPT', 'TITLE', 'OPTION'].includes(e.tagName.toUpperCase()))
        .map(e => {
          const svg = e.ownerSVGElement;
          const zoom = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
          return [parseFloat(getComputedStyle(e).fontSize) * zoom, e.tagName, e.textContent.trim().slice(0, 30)];
        })"""
    )
    assert len(sizes) > 50
    assert min(sizes)[0] >= 10, min(sizes)


def test_the_first_column_stays_when_the_table_is_scrolled(page):
    scroll = page.locator(".scroll").first
    before = page.locator("tbody th[scope=row]").first.bounding_box()["x"]
    scroll.evaluate("e => e.scrollLeft = 200")
    assert page.locator("tbody th[scope=row]").first.bounding_box()["x"] == before


def test_best_and_second_are_marked(page):
    red, green = page.locator("section").first.locator("tbody").nth(1).locator("tr:not(.bits)").all()
    assert green.locator("strong").first.inner_text() == "23.00"
    assert red.locator("u").first.inner_text() == "22.00"


def test_bits_buttons_choose_what_is_shown(page):
    section = page.locator("section").first
    shown = section.locator("article:visible")
    assert shown.evaluate_all("all => all.map(a => a.dataset.bits)") == ["w2a2"]
    section.get_by_role("button", name="w4a4").click()
    assert shown.evaluate_all("all => all.map(a => a.dataset.bits)") == ["w4a4"]
    pressed = section.locator("[data-show]").evaluate_all("all => all.map(b => b.ariaPressed)")
    assert pressed == ["true", "false"]
    captions = shown.locator("figcaption b").all_inner_texts()
    assert captions[:3] == ["low quality", "teacher", "red"] and captions[-1] == "ground truth"


def test_the_slider_reveals_left_and_right(page):
    stage = page.locator(".stage").first
    assert is_close(colors(page)["left"], 155, 0, 0) and is_close(colors(page)["right"], 0, 155, 0)
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.98, box["y"] + box["height"] / 3)
    page.mouse.up()
    assert is_close(colors(page)["right"], 155, 0, 0)
    stage.locator("input").fill("2")
    assert is_close(colors(page)["left"], 0, 155, 0)


def test_the_slider_moves_by_the_keyboard(page):
    slider = page.locator(".stage input").first
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "52"
    page.keyboard.press("End")
    assert is_close(colors(page)["right"], 155, 0, 0)


def test_selects_change_the_pictures_and_the_captions(page):
    compare = page.locator(".compare").first
    compare.locator("[data-choose=left]").select_option(label="teacher")
    assert is_close(colors(page)["left"], 0, 0, 255)
    right = compare.locator("[data-choose=right]")
    right.select_option(right.locator("optgroup[label=w4a4] option").first.get_attribute("value"))
    assert is_close(colors(page)["right"], 255, 0, 0)
    assert compare.locator(".under").inner_text().split() == ["teacher", "red", "·", "w4a4"]


def test_clips_have_temporal_slices(page):
    slices = page.locator("section").nth(1).locator(".slices .tile")
    assert slices.locator("b").all_inner_texts() == ["low quality", "teacher", "red", ODD, "ground truth"]
    assert slices.locator("img").first.evaluate("i => [i.naturalWidth, i.naturalHeight]") == [64, 4]


def test_names_are_shown_as_they_are(page):
    text = page.locator("body").inner_text()
    assert f"motion {ODD}" in text and f"lpips is absent: {ODD}" in text
    assert page.locator("tbody th[scope=row]", has_text=ODD).count() >= 2


def test_jobs_without_figures_are_named(page):
    assert "lsq w4a4 seed=0): not finished" in page.locator(".problems").inner_text()


def test_curves_are_drawn(page):
    curves = page.locator("section").first.locator(".chart").last
    assert curves.locator("polyline").count() == 2
    assert curves.locator(".band text").all_text_contents() == ["stage 0", "stage 1"]


def test_dark_where_the_reader_wants_it_dark(page):
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark and sum(map(int, dark[4:-1].split(","))) < 120


def test_runs_without_pictures_and_curves_make_a_page_too(browser, make_run, tmp_path):
    _, files = write_report(read_jobs([make_run(metrics={"student": {"psnr_y": 20.0}})]), tmp_path / "out")
    page = browser.new_page()
    page.goto(files[-1].as_uri())
    assert "No pictures" in page.locator("main").inner_text()
    page.close()
