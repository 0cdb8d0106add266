"""The comparison as one HTML file that needs nothing else: table, pictures, curves."""

import base64
import io
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from quantsr.report import charts
from quantsr.report.crops import Place, crop, find_place, shown, slice_zoom, time_slice
from quantsr.report.formats import NOT_QUANTIZED, footnotes, title
from quantsr.report.plots import loss_charts, tradeoff_charts
from quantsr.report.samples import Sample, Version, read_samples
from quantsr.report.table import Section, Table

TEMPLATES = Path(__file__).parent / "page"
JPEG_QUALITY = 85


class Pictures:
    """The page's pictures as data URIs; one that is used several times is held once."""

    def __init__(self) -> None:
        self.by_uri: dict[str, str] = {}

    def add(self, pixels: np.ndarray, exact: bool) -> str:
        """Keep a picture ``(h, w, 3)`` of bytes and return its name; exact as PNG, else as JPEG."""
        file = io.BytesIO()
        if exact:
            Image.fromarray(pixels).save(file, "PNG", optimize=True)
        else:
            Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        kind = "png" if exact else "jpeg"
        uri = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
        return self.by_uri.setdefault(uri, f"p{len(self.by_uri)}")

    def by_name(self) -> dict[str, str]:
        return {name: uri for uri, name in self.by_uri.items()}


def render_page(table: Table) -> str:
    """The page's HTML."""
    pictures = Pictures()
    sections = [_section(table, section, pictures) for section in table.sections]
    problems = [problem for section in sections for problem in section["problems"]]
    jobs = [job for section in table.sections for row in section.rows for job in row.jobs]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        table=table,
        sections=sections,
        notes=footnotes(table)[: -len(table.notes) or None],
        problems=[*table.notes, *problems],
        teachers=sorted({job.teacher for job in jobs if job.teacher}),
        methods=list(dict.fromkeys(job.method for job in jobs)),
        finished=len(jobs),
        date=date.today(),
        not_quantized=NOT_QUANTIZED,
        sizes=charts,
        pictures=pictures.by_name(),
    )


def _section(table: Table, section: Section, pictures: Pictures) -> dict[str, Any]:
    """What the template shows of a data set."""
    samples, problems = read_samples(section)
    return {
        "title": title(section),
        "columns": table.columns_of(section),
        "references": section.references,
        "groups": section.groups,
        "bits": [bits for bits in section.groups if any(bits in sample.students for sample in samples)],
        "samples": [{"sample": s, "places": {b: _place(s, b, pictures) for b in s.students}} for s in samples],
        "compared": [_compared(sample, pictures) for sample in samples],
        "losses": loss_charts(section),
        "tradeoffs": tradeoff_charts(table, section),
        "problems": problems,
    }


def _place(sample: Sample, bits: str, pictures: Pictures) -> dict[str, Any]:
    """The crops at some bits, and of a clip its temporal slices."""
    place, versions, students = find_place(sample, bits), shown(sample, bits), sample.students[bits]
    width, height = sample.size
    slices = [(version, time_slice(version, sample, place)) for version in versions] if sample.length > 1 else []
    return {
        "place": place,
        "box": {
            "left": 100 * place.left / width,
            "top": 100 * place.top / height,
            "width": 100 * place.side / width,
            "height": 100 * place.side / height,
        },
        "row": 100 * (place.row + 0.5) / height,
        "thumbnail": pictures.add(_whole(versions[-1], sample, place), exact=False),
        "tiles": [_tile(v, crop(v, sample, place), v in students, pictures) for v in versions],
        "slices": [_tile(v, pixels, v in students, pictures) for v, pixels in slices],
        "slice_height": sample.length * slice_zoom(sample),
    }


def _tile(version: Version, pixels: np.ndarray, student: bool, pictures: Pictures) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    return {
        "label": version.label,
        "note": version.note,
        "student": student,
        "picture": pictures.add(pixels, exact=True),
        "width": width,
        "height": height,
    }


def _whole(version: Version, sample: Sample, place: Place) -> np.ndarray:
    return version.frame(place.frame, sample.size)


def _compared(sample: Sample, pictures: Pictures) -> dict[str, Any]:
    """All versions of a sample in full, for the slider; of a clip the frame in which methods differ most."""
    place = find_place(sample, list(sample.students)[-1])
    versions = [*sample.references, *(version for own in sample.students.values() for version in own)]
    students = [version for own in sample.students.values() for version in own]
    frame = f", frame {place.frame + 1}" if sample.length > 1 else ""
    return {
        "name": f"{sample.name}{frame}",
        "width": sample.size[0],
        "height": sample.size[1],
        "versions": [
            {
                "label": version.label,
                "group": (version.bits or NOT_QUANTIZED) if version in students else "references",
                "note": version.note,
                "picture": pictures.add(_whole(version, sample, place), exact=False),
            }
            for version in versions
        ],
    }
