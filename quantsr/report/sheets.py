"""The crops side by side as one picture a sample, for loggers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from quantsr.report.build import build_table
from quantsr.report.crops import crop, find_place, shown
from quantsr.report.jobs import read_jobs
from quantsr.report.samples import read_samples


def comparison_images(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write ``folder/crops/DATA_SAMPLE_BITS.png``: the crops of a sample side by side, with labels and PSNR-Y.

    Samples of one name but with another input are numbered, from the second on.

    Args:
        paths: run folders, sweeps or folders of these.
        folder: for example the sweep's.

    Returns:
        The pictures.
    """
    from torchvision.transforms.functional import to_tensor

    from quantsr.callbacks.comparison import comparison_sheet

    written: list[Path] = []
    times: Counter[str] = Counter()
    for section in build_table(read_jobs(paths)).sections:
        for sample in read_samples(section)[0]:
            for bits in sample.students:
                versions, place = shown(sample, bits), find_place(sample, bits)
                pictures = (Image.fromarray(crop(version, sample, place)) for version in versions)
                row = {version.label: to_tensor(picture) for version, picture in zip(versions, pictures, strict=True)}
                notes = {version.label: version.note for version in versions}
                name = "_".join(filter(None, (section.data, sample.name, bits))).replace("/", "-")
                times[name] += 1
                number = f"_{times[name]}" if times[name] > 1 else ""
                written.append(folder / "crops" / f"{name}{number}.png")
                written[-1].parent.mkdir(parents=True, exist_ok=True)
                comparison_sheet([row], [f"{sample.name} {bits}"], [notes]).save(written[-1])
    return written
