"""Samples are read over all methods; crops and temporal slices come from where these differ most."""

import numpy as np
import pytest
from PIL import Image

from quantsr.report import comparison_images
from quantsr.report.build import build_table
from quantsr.report.crops import crop, crop_side, difference, find_place, shown, slice_zoom, time_slice, window_sums
from quantsr.report.jobs import read_jobs
from quantsr.report.samples import Sample, read_samples

SIZE = 128


def flat(value: int = 100, frames: int = 0) -> np.ndarray:
    shape = (frames, SIZE, SIZE, 3) if frames else (SIZE, SIZE, 3)
    return np.full(shape, value, np.uint8)


def spot(top: int, left: int, value: int = 200, side: int = 10) -> np.ndarray:
    """A flat picture with a square of another value."""
    picture = flat()
    picture[top : top + side, left : left + side] = value
    return picture


def versions(student: np.ndarray, **others: np.ndarray) -> dict[str, np.ndarray]:
    still = {"lq": flat()[:32, :32], "bicubic": flat(), "teacher": flat(), "gt": flat(90)}
    moving = {name: np.stack([picture] * len(student)) for name, picture in still.items()}
    return (still if student.ndim == 3 else moving) | {"student": student} | others


@pytest.fixture
def samples(make_run, tmp_path):
    """A function that makes a run a method, with these outputs, and reads the samples of the first data set."""

    def samples(students: dict[tuple[str, str], np.ndarray], seed: int = 0) -> list[Sample]:
        for (method, bits), student in students.items():
            make_run(method, bits, seed, outputs={"one": versions(student)})
        found, problems = read_samples(build_table(read_jobs([tmp_path])).sections[0])
        assert problems == []
        return found

    return samples


class TestPlace:
    def test_difference_is_the_variance_over_versions(self):
        values = difference([np.full((1, 1, 3), value, np.uint8) for value in (1, 2, 6)])
        assert values.tolist() == [[pytest.approx(14 / 3)]]  # mean 3; squares 4, 1, 9

    def test_window_sums_against_loops(self):
        values = np.random.default_rng(0).random((9, 7))
        expected = [[values[y : y + 4, x : x + 3].sum() for x in range(5)] for y in range(6)]
        np.testing.assert_allclose(window_sums(values, 4, 3), expected)

    @pytest.mark.parametrize("top, left", [(0, 0), (50, 70), (SIZE - 10, SIZE - 10), (0, SIZE - 10)])
    def test_a_planted_difference_is_found(self, samples, top, left):
        (sample,) = samples({("a", "w4a4"): flat(), ("b", "w4a4"): spot(top, left), ("c", "w4a4"): flat()})
        place = find_place(sample, "w4a4")
        assert place.top <= top and top + 10 <= place.top + place.side
        assert place.left <= left and left + 10 <= place.left + place.side

    def test_many_small_differences_count_more_than_one_pixel(self, samples):
        picture = spot(20, 20, 140, side=20)
        picture[100, 100] = 255
        (sample,) = samples({("a", "w4a4"): flat(), ("b", "w4a4"): picture})
        assert find_place(sample, "w4a4").top <= 20

    def test_every_bits_has_its_own(self, samples):
        (sample,) = samples(
            {
                ("a", "w4a4"): flat(),
                ("b", "w4a4"): spot(0, 0),
                ("a", "w2a2"): flat(),
                ("b", "w2a2"): spot(100, 100),
            }
        )
        assert find_place(sample, "w4a4").top < 40 < find_place(sample, "w2a2").top

    def test_one_method_is_compared_with_the_teacher(self, samples):
        (sample,) = samples({("a", "w4a4"): spot(100, 0)})
        place = find_place(sample, "w4a4")
        assert place.top >= 100 - place.side and place.left < 10

    def test_the_middle_where_nothing_differs(self, samples):
        (sample,) = samples({("a", "w4a4"): flat(), ("b", "w4a4"): flat()})
        assert find_place(sample, "w4a4")[:4] == (0, 48, 48, 32)

    @pytest.mark.parametrize("size, side", [((24, 20), 20), ((128, 128), 32), ((320, 480), 48), ((1280, 720), 80)])
    def test_side(self, size, side):
        assert crop_side(size) == side

    def test_crop_is_exact_and_of_the_same_place_in_all_versions(self, samples):
        (sample,) = samples({("a", "w4a4"): flat(), ("b", "w4a4"): spot(64, 64)})
        place = find_place(sample, "w4a4")
        pixels = {version.label: crop(version, sample, place) for version in shown(sample, "w4a4")}
        assert list(pixels) == ["low quality", "bicubic", "teacher", "a", "b", "ground truth"]
        assert {picture.shape for picture in pixels.values()} == {(32, 32, 3)}
        np.testing.assert_array_equal(
            pixels["b"], spot(64, 64)[place.top : place.top + 32, place.left : place.left + 32]
        )


class TestClips:
    @pytest.fixture
    def clip(self, samples) -> Sample:
        """One method differs in frame 3 at (60, 30) and, less, in row 100 of every frame."""
        other = flat(frames=6)
        other[3, 60:70, 30:40] = 255
        other[:, 100, :] = np.arange(6, dtype=np.uint8)[:, None, None] * 20 + 60
        return samples({("a", "w4a4"): flat(frames=6), ("b", "w4a4"): other})[0]

    def test_frame_and_place_of_the_largest_difference(self, clip):
        place = find_place(clip, "w4a4")
        assert (clip.length, place.frame) == (6, 3)
        assert place.top <= 60 <= place.top + place.side - 10 and place.left <= 30

    def test_slice_is_the_row_that_differs_most_over_time(self, clip):
        place = find_place(clip, "w4a4")
        pixels = time_slice(clip.students["w4a4"][1], clip, place)
        assert place.row == 100 and pixels.shape == (6, SIZE, 3)
        assert pixels[:, 5, 0].tolist() == [60, 80, 100, 120, 140, 160]

    def test_wide_clips_give_a_piece_around_the_place(self, make_run, tmp_path):
        wide = {name: np.zeros((2, 40, 600, 3), np.uint8) for name in ("student", "gt")}
        wide["student"][:, 20, 590] = 255
        make_run(outputs={"wide": wide})
        (sample,), _ = read_samples(build_table(read_jobs([tmp_path])).sections[0])
        pixels = time_slice(sample.students["w4a4"][0], sample, find_place(sample, "w4a4"))
        assert pixels.shape == (2, 256, 3) and pixels.max() == 255

    @pytest.mark.parametrize("length, zoom", [(5, 8), (9, 8), (32, 3), (200, 1)])
    def test_few_frames_are_enlarged(self, length, zoom):
        assert slice_zoom(Sample("a", (8, 8), length)) == zoom


class TestSamples:
    def read(self, tmp_path):
        return read_samples(build_table(read_jobs([tmp_path])).sections[0])

    def test_notes_are_of_the_own_run(self, make_run, tmp_path):
        run = make_run(outputs={"one": versions(flat())})
        (run / "images.csv").write_text("name,teacher.psnr_y,student.psnr_y\none,25.004,23.456\n")
        (sample,), _ = self.read(tmp_path)
        assert sample.students["w4a4"][0].note == "23.46 dB"
        assert [version.note for version in sample.references] == ["", "", "25.00 dB", ""]

    def test_one_seed_a_method_the_same_for_all(self, make_run, tmp_path):
        for method, seed in (("a", 1), ("a", 2), ("b", 2), ("c", 3)):
            make_run(method, seed=seed, outputs={"one": versions(flat(seed))})
        (sample,), _ = self.read(tmp_path)
        values = [version.frame(0, sample.size)[0, 0, 0] for version in sample.students["w4a4"]]
        assert values == [2, 2, 3]

    def test_other_inputs_of_the_same_name_stay_apart(self, make_run, tmp_path):
        make_run("a", outputs={"one": versions(flat())})
        make_run("b", outputs={"one": versions(flat(), lq=flat(7)[:32, :32])})
        found, _ = self.read(tmp_path)
        assert [[v.label for v in sample.students["w4a4"]] for sample in found] == [["a"], ["b"]]

    def test_every_teacher_is_shown_and_compared_with_its_own_student(self, make_run, tmp_path):
        for number, bits in ((1, "w4a4"), (2, "w2a2")):
            teacher = spot(50 * number, 50 * number)
            run = make_run("a", bits, teacher=f"t{number}", outputs={"one": versions(flat(), teacher=teacher)})
            (run / "images.csv").write_text(f"name,teacher.psnr_y\none,{20 + number}\n")
        (sample,), problems = self.read(tmp_path)
        assert not problems
        assert [(v.label, v.note) for v in shown(sample, "w2a2")] == [
            ("low quality", ""),
            ("bicubic", ""),
            ("teacher teacher=t1", "21.00 dB"),
            ("teacher teacher=t2", "22.00 dB"),
            ("a teacher=t2", ""),
            ("ground truth", ""),
        ]
        assert [version.frame(0, sample.size)[50, 50, 0] for version in shown(sample, "w2a2")[2:4]] == [200, 100]
        assert find_place(sample, "w4a4").left <= 50 and find_place(sample, "w2a2").left > 70

    @pytest.mark.parametrize("damage", ["no student", "not a picture", "another size"])
    def test_damaged_outputs_are_named(self, make_run, tmp_path, damage):
        make_run("a", outputs={"one": versions(flat())})
        file = make_run("b", outputs={"one": versions(flat())}) / "outputs" / "one" / "student.png"
        if damage == "no student":
            file.unlink()
        elif damage == "not a picture":
            file.write_bytes(b"nothing")
        else:
            Image.fromarray(flat()[:64]).save(file)
        (sample,), (problem,) = self.read(tmp_path)
        assert [version.label for version in sample.students["w4a4"]] == ["a"]
        assert "1_b" in problem and "one" in problem

    def test_damaged_notes_are_named(self, make_run, tmp_path):
        run = make_run(outputs={"one": versions(flat())})
        (run / "images.csv").write_text("name,student.psnr_y\none,2..5\n")
        (sample,), (problem,) = self.read(tmp_path)
        assert sample.students["w4a4"][0].note == "" and "0_minmax" in problem

    def test_no_outputs_no_samples(self, make_run, tmp_path):
        make_run()
        assert self.read(tmp_path) == ([], [])


def test_images_for_loggers_of_other_inputs_of_the_same_name(make_run, tmp_path):
    make_run("a", outputs={"one": versions(flat())})
    make_run("b", outputs={"one": versions(flat(), lq=flat(7)[:32, :32])})
    names = [file.name for file in comparison_images([tmp_path], tmp_path / "out")]
    assert names == ["photos_one_w4a4.png", "photos_one_w4a4_2.png"]
    assert sorted(file.name for file in (tmp_path / "out" / "crops").iterdir()) == sorted(names)


def test_images_for_loggers(make_run, tmp_path):
    for bits in ("w4a4", "w2a2"):
        make_run("a", bits, outputs={"one": versions(spot(0, 0))}, data="my/data")
        make_run("b", bits, outputs={"one": versions(flat())}, data="my/data")
    files = comparison_images([tmp_path], tmp_path / "out")
    assert files == [tmp_path / "out" / "crops" / f"my-data_one_{bits}.png" for bits in ("w4a4", "w2a2")]
    assert Image.open(files[0]).width > 6 * 224
