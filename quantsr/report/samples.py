"""The pictures that runs leave in ``outputs/``, gathered by sample over all methods."""

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from quantsr.report.jobs import Job
from quantsr.report.table import Row, Section

REFERENCES = {"lq": "low quality", "bicubic": "bicubic", "teacher": "teacher", "gt": "ground truth"}


@dataclass(frozen=True)
class Version:
    """One sample as one model sees it.

    Attributes:
        label: the method with its options, or a reference.
        bits: of the method; empty for references.
        files: one picture; of a clip all frames.
        note: ``26.93 dB`` (PSNR-Y), where it was measured.
        teacher: of a method, the label of its teacher among the references.
    """

    label: str
    bits: str
    files: tuple[Path, ...]
    note: str = ""
    teacher: str = ""

    def frame(self, number: int, size: tuple[int, int]) -> np.ndarray:
        """One frame, ``(h, w, 3)`` bytes; a smaller one (the low-quality input) is enlarged by repeating pixels.

        Args:
            number: 0 for a picture.
            size: width and height.
        """
        with Image.open(self.files[number]) as file:
            image = file.convert("RGB")
        return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.NEAREST))


@dataclass
class Sample:
    """A picture or clip in all its versions.

    Attributes:
        name: of the picture or clip.
        size: width and height of what the methods give, in pixels.
        length: number of frames; 1 for a picture.
        references: input, bicubic, teachers and ground truth, as far as they are there.
        students: the methods' outputs by bits.
    """

    name: str
    size: tuple[int, int]
    length: int
    references: list[Version] = field(default_factory=list)
    students: dict[str, list[Version]] = field(default_factory=dict)


def read_samples(section: Section) -> tuple[list[Sample], list[str]]:
    """The samples of a data set, each row of the table by one of its seeds, the same for all rows that have it.

    Samples of one name but with another input (a seed may draw the degradation) stay apart.

    Returns:
        The samples, and sentences on pictures that cannot be used.
    """
    rows = [(bits, row) for bits, rows in section.groups.items() for row in rows]
    seeds = Counter(job.seed for _, row in rows for job in row.jobs)
    samples: dict[tuple[str, str], Sample] = {}
    problems = []
    for bits, row in rows:
        job = max(row.jobs, key=lambda job: seeds[job.seed])
        try:
            notes = _notes(job)
        except (OSError, KeyError, TypeError, ValueError) as error:
            notes = {}
            problems.append(f"the figures of {job.folder.name} by picture cannot be read ({error})")
        for folder in sorted(path for path in (job.folder / "outputs").glob("*") if path.is_dir()):
            try:
                _add(samples, folder, row, bits, notes.get(folder.name, {}))
            except (OSError, ValueError) as error:
                problems.append(f"outputs of {job.folder.name} for {folder.name} cannot be used ({error})")
    return list(samples.values()), problems


def _add(samples: dict[tuple[str, str], Sample], folder: Path, row: Row, bits: str, notes: dict[str, str]) -> None:
    """Add one method's output for one sample, and those references that the sample does not have yet."""
    files = {name: _files(folder, name) for name in ("student", *REFERENCES)}
    if not files["student"]:
        raise ValueError("no student.png or student/00000.png")
    sizes = {Image.open(file).size for file in files["student"]}
    if len(sizes) > 1 or any(len(own) not in (0, len(files["student"])) for own in files.values()):
        raise ValueError("the frames of its versions do not match")
    size, length = sizes.pop(), len(files["student"])
    told_by = files["lq"] or files["gt"]
    digest = hashlib.sha256(told_by[0].read_bytes()).hexdigest() if told_by else ""
    sample = samples.setdefault((folder.name, digest), Sample(folder.name, size, length))
    if (size, length) != (sample.size, sample.length):
        raise ValueError(f"{length} frames of {size[0]}x{size[1]}, others have another size")
    # As the table calls it where there are several.
    teacher = f"teacher teacher={row.options['teacher']}" if "teacher" in row.options else "teacher"
    known = [version.label for version in sample.references]
    sample.references += [
        Version(caption, "", files[name], notes.get(name, ""))
        for name, caption in (REFERENCES | {"teacher": teacher}).items()
        if files[name] and caption not in known
    ]
    student = Version(row.label, bits, files["student"], notes.get("student", ""), teacher)
    sample.students.setdefault(bits, []).append(student)


def _files(folder: Path, name: str) -> tuple[Path, ...]:
    picture = folder / f"{name}.png"
    return (picture,) if picture.is_file() else tuple(sorted((folder / name).glob("*.png")))


def _notes(job: Job) -> dict[str, dict[str, str]]:
    """PSNR-Y of every model by sample, as captions."""
    file = next((file for file in (job.folder / "images.csv", job.folder / "clips.csv") if file.is_file()), None)
    if file is None:
        return {}
    with file.open(newline="") as lines:
        return {
            row["name"]: {
                key.removesuffix(".psnr_y"): f"{float(value):.2f} dB"
                for key, value in row.items()
                if key.endswith(".psnr_y") and value
            }
            for row in csv.DictReader(lines)
        }
