"""``python -m quantsr.demo RUN``: a page on this machine where a photo is dropped and its student looked at."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from quantsr.data.degradations import Degradation, to_float
from quantsr.data.files import written
from quantsr.data.frames import corner, cut
from quantsr.data.photos import packaged_photos
from quantsr.deploy.artefact import read_config
from quantsr.deploy.inputs import read_input
from quantsr.deploy.pipeline import Pipeline
from quantsr.enlarging import bicubic
from quantsr.errors import UserError
from quantsr.evaluation import as_saved
from quantsr.loading import teacher_of
from quantsr.teachers.files import load_teacher

LIMIT = 512
"""Longest side of a photo in pixels: 512 become 2048, which takes minutes on a CPU."""
EXAMPLE = 512
"""Side of the packaged photographs' crops in clean pixels: they are made four times smaller, and worse."""
STUDENT, TEACHER, BICUBIC = "student", "teacher", "bicubic"
LARGEST_FILE = "50mb"
ABOUT = {
    "torch": ", where quantization is simulated in float: it takes longer than full precision",
    "openvino": ", with integer products",
    "triton": ", with integer products",
}
"""What there is to know about the time that a runtime takes."""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
"""Of the machine: the themes' own come from elsewhere."""


@dataclass
class Demo:
    """A student and what it is looked at beside.

    Attributes:
        student: of images.
        teacher: None where its weights are not here.
        title: of the page.
        notes: what there is to say about them, a line each.
        limit: longest side of a photo, in pixels.
    """

    student: Pipeline
    teacher: Pipeline | None
    title: str
    notes: list[str] = field(default_factory=list)
    limit: int = LIMIT

    @property
    def others(self) -> list[str]:
        """What the student is compared with."""
        return [BICUBIC] if self.teacher is None else [BICUBIC, TEACHER]

    def upscale(self, photo: Image.Image) -> tuple[dict[str, Image.Image], dict[str, float]]:
        """All versions of a photo, and the seconds that each took.

        Raises:
            UserError: the photo is too large.
        """
        if max(photo.size) > self.limit:
            raise UserError(
                f"This photo has {written(photo.size[::-1])} pixels, and a side may have {self.limit} here: "
                "cut out a part of it, make it smaller, or start the demo with a larger --limit."
            )
        makers: dict[str, Callable[[Image.Image], Image.Image]] = {BICUBIC: self._bicubic}
        if self.teacher is not None:
            makers[TEACHER] = lambda image: self.teacher(image, progress=False)
        makers[STUDENT] = lambda image: self.student(image, progress=False)
        pictures, seconds = {}, {}
        for name, make in makers.items():
            start = time.perf_counter()
            pictures[name] = make(photo)
            seconds[name] = time.perf_counter() - start
        return pictures, seconds

    def _bicubic(self, photo: Image.Image) -> Image.Image:
        return to_pil_image(as_saved(bicubic(read_input(photo).pixels, self.student.scale)[0]))


def open_demo(run: Path, runtime: str, device: str | None, teacher: str | None, limit: int) -> Demo:
    """The demo of a run.

    Args:
        run: its folder, or that of an artefact.
        runtime, device: of the student, see :func:`quantsr.load`; the teacher computes in torch on the same device.
        teacher: its weights; None takes the teacher that the artefact names.
        limit: longest side of a photo.

    Raises:
        UserError: there is no student of images there.
    """
    config = read_config(run)
    given = None if teacher is None else load_teacher(teacher)
    student = Pipeline.load(run, runtime, device)
    if student.frames > 1:
        raise UserError(f"the demo shows students of images, and the one in {run} takes clips")
    notes = [f"Student: runtime {student.runtime} on {student.device}{ABOUT.get(student.runtime, '')}."]
    try:
        model = teacher_of(config) if given is None else given
        original = Pipeline(model.to(student.device), student.device)
        if student.tile is not None:
            original.tile = student.tile
        notes.append(f"Teacher: full precision, torch on {student.device}.")
    except UserError as error:
        if given is not None:
            raise
        original = None
        notes.append(f"Without the teacher: {str(error).rstrip('.')}.")
    for pipe in (student, original):
        if pipe is not None:  # The first call prepares what later ones find ready: it is not to be timed.
            pipe(torch.zeros(3, 16, 16))
    title = f"{config.get('method', 'student')} {config.get('bits', '')}".strip()
    return Demo(student, original, title, notes, limit)


def page(demo: Demo, examples: Sequence[str] = ()) -> Any:
    """The page, a ``gradio.Blocks`` to be launched.

    Args:
        demo: what it shows.
        examples: paths of photos to choose from.
    """
    gr = import_gradio()

    def run(photo: Image.Image | None, other: str) -> tuple[Any, ...]:
        if photo is None:
            raise gr.Error("Drop a photo first, or choose an example.", print_exception=False)
        try:
            pictures, seconds = demo.upscale(photo)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        return pictures, *shown(pictures, other), times(seconds)

    def shown(pictures: dict[str, Image.Image] | None, other: str) -> tuple[Any, str]:
        if not pictures:
            return None, ""
        size = written(pictures[STUDENT].size[::-1])
        return (pictures[other], pictures[STUDENT]), f"**{other}** (left) and **student** (right), {size} pixels"

    with gr.Blocks(title=f"quantsr: {demo.title}", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# {demo.title}\n" + "<br>".join(demo.notes))
        pictures = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                label = f"Photo, sides up to {demo.limit} pixels"
                photo = gr.Image(type="pil", label=label, sources=["upload"], height=240)
                other = gr.Radio(demo.others, value=demo.others[-1], label="Compare the student with")
                button = gr.Button(f"Upscale x{demo.student.scale}", variant="primary")
                if examples:
                    gr.Examples([[path] for path in examples], [photo], label="Examples")
            with gr.Column(scale=2, min_width=300):
                caption = gr.Markdown()  # Above: a label would lie on the picture.
                slider = gr.ImageSlider(
                    type="pil", format="png", interactive=False, show_label=False, label="result", max_height=800
                )
                table = gr.Markdown()
        # One after the other: two at once would spoil the times.
        button.click(run, [photo, other], [pictures, slider, caption, table], concurrency_limit=1)
        other.change(shown, [pictures, other], [slider, caption])
    return blocks


def times(seconds: dict[str, float]) -> str:
    """Seconds by name as a table in Markdown; nothing for none."""
    rows = [f"| {name} | {value:.2f} |" for name, value in seconds.items()]
    return "\n".join(["| | seconds |", "|---|--:|", *rows]) if rows else ""


def write_examples(folder: Path) -> list[str]:
    """Low-quality crops of the packaged photographs, as files; none where the photographs are not installed."""
    try:
        photos = packaged_photos()
    except UserError:
        return []
    paths = []
    for number, (name, image) in enumerate(photos):
        size = tuple(min(side, EXAMPLE) // 4 * 4 for side in image.shape[-2:])
        crop = to_float(cut(image, corner(image, size), size))
        lq = Degradation()(crop, np.random.default_rng(number))
        paths.append(str(folder / f"{name}.png"))
        to_pil_image(as_saved(lq)).save(paths[-1])
    return paths


def import_gradio() -> Any:
    """The package, told to call nobody.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError("the demo needs gradio: pip install 'quantsr[demo]'") from error
    return gradio


def launch(blocks: Any, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Serve the page in the background; returns its address.

    Args:
        blocks: what :func:`page` made.
        host: address to listen at; by default this machine alone.
        port: None for the first that is free from 7860 on.

    Raises:
        UserError: the port is taken, or the address is none of this machine's.
    """
    theme = import_gradio().themes.Default(**FONTS)
    quiet = {"quiet": True, "prevent_thread_lock": True, "share": False, "ssr_mode": False, "footer_links": []}
    try:
        _, address, _ = blocks.launch(
            server_name=host, server_port=port, theme=theme, max_file_size=LARGEST_FILE, **quiet
        )
    except OSError as error:
        raise UserError(f"the page cannot be served at {host}, port {port or '7860 and on'}: {error}") from error
    return address


def check_numbers(limit: int, port: int | None) -> None:
    """Refuse a longest side or a port that cannot be with a UserError."""
    if limit < 1:
        raise UserError(f"--limit takes a number of pixels, 1 or more, not {limit}")
    if port is not None and not 0 < port < 2**16:
        raise UserError(f"--port takes a number from 1 to {2**16 - 1}, not {port}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit code, 2 for what the user can put right."""
    parser = argparse.ArgumentParser(
        prog="python -m quantsr.demo",
        description="A page on this machine: drop a photo, see the student beside its teacher and bicubic upscaling.",
        epilog="example: python -m quantsr.demo runs/2026-01-31/12-00-00_qartsr_w4a4_tiny_image",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or artefact folder of a student of images")
    parser.add_argument("--runtime", default="auto", help="see docs/deploy.md (default: the fastest that is there)")
    parser.add_argument("--device", help="cpu, cuda (default: a GPU if there is one)")
    parser.add_argument("--teacher", metavar="WEIGHTS", help="default: the teacher that the artefact names")
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"longest side of a photo (default {LIMIT} pixels)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860 on")
    options = parser.parse_args(arguments)
    try:
        import_gradio()  # Before anything is loaded.
        check_numbers(options.limit, options.port)
        demo = open_demo(options.run, options.runtime, options.device, options.teacher, options.limit)
        with TemporaryDirectory() as folder:
            blocks = page(demo, write_examples(Path(folder)))
            print(f"demo     {launch(blocks, options.host, options.port)}   Ctrl-C ends it", flush=True)
            blocks.block_thread()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # Also while it starts.
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
