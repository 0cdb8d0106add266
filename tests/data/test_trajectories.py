"""Trajectories are what the teacher gives, computed once: a run that was killed goes on, a second one only reads."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from quantsr.data.trajectories import Trajectories, record, run_teacher
from quantsr.errors import UserError

STEPS = 4
ABOUT = {"teacher": "fake", "seed": 0}


class Teacher(nn.Module):
    """Samples in `steps` steps, in place, and counts the clips it was given."""

    def __init__(self, steps: int = STEPS):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.steps, self.seen = steps, []

    def trajectory(self, lq: Tensor) -> Iterator[dict[str, Tensor]]:
        self.seen.append(lq.clone())
        lq = lq.to(self.scale.dtype)
        noisy = lq + torch.randn_like(lq)
        for step in reversed(range(self.steps)):
            epsilon = noisy * self.scale
            yield {"latent": lq, "noisy": noisy, "step": torch.full((len(lq),), step), "epsilon": epsilon}
            noisy -= 0.1 * epsilon


class Clips(Dataset):
    """Clips whose every value is the number they were asked by."""

    def __init__(self, length: int = 3):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict:
        return {"lq": torch.full((5, 3, 2, 2), float(number)), "gt": torch.zeros(5, 3, 8, 8), "name": "clip"}


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def contents(pairs: Trajectories) -> list[dict[str, Tensor]]:
    return [pairs[number] for number in range(len(pairs))]


def assert_equal(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


class TestContent:
    def test_is_what_the_teacher_gives_in_its_order(self, tmp_path):
        pairs = contents(record(Teacher(), Clips(), 3 * STEPS, tmp_path, ABOUT))
        assert [pair["step"].item() for pair in pairs] == [3, 2, 1, 0] * 3
        assert [pair["latent"].mean().item() for pair in pairs] == [0] * 4 + [1] * 4 + [2] * 4
        for pair, following in pairwise(pairs):
            assert list(pair) == ["epsilon", "latent", "noisy", "step"]
            assert pair["noisy"].shape == (5, 3, 2, 2) and pair["noisy"].dtype == torch.float32
            assert torch.equal(pair["epsilon"], 2 * pair["noisy"])
            if pair["step"] > 0:
                assert torch.equal(following["noisy"], pair["noisy"] - 0.1 * pair["epsilon"])

    def test_later_visits_take_the_clips_by_higher_numbers(self, tmp_path):
        teacher = Teacher()
        record(teacher, Clips(3), 7 * STEPS, tmp_path, ABOUT)
        assert [lq.mean().item() for lq in teacher.seen] == list(range(7))
        assert all(lq.shape == (1, 5, 3, 2, 2) for lq in teacher.seen)

    def test_visits_differ_in_their_noise(self, tmp_path):
        pairs = record(Teacher(), Clips(), 2 * STEPS, tmp_path, ABOUT)
        noise = [pairs[number]["noisy"] - pairs[number]["latent"] for number in (0, STEPS)]
        assert (noise[0] - noise[1]).abs().max() > 0.1

    @pytest.mark.parametrize("samples, visits", [(1, 1), (4, 1), (5, 2), (9, 3), (12, 3)])
    def test_exactly_as_many_pairs_as_asked_for(self, tmp_path, samples, visits):
        teacher = Teacher()
        pairs = record(teacher, Clips(), samples, tmp_path, ABOUT)
        assert len(pairs) == samples and len(teacher.seen) == visits
        places = [(pair["latent"].mean().item(), -pair["step"].item()) for pair in contents(pairs)]
        assert places == sorted(set(places))

    def test_steps_are_left_out_evenly(self, tmp_path):
        pairs = record(Teacher(steps=50), Clips(), 10, tmp_path, ABOUT)
        assert [pair["step"].item() for pair in contents(pairs)] == list(range(49, 0, -5))

    def test_a_number_beyond_the_length_is_a_later_visit(self, tmp_path):
        pairs = record(Teacher(), Clips(), 6, tmp_path, ABOUT)
        assert_equal([pairs[8]], [pairs[2]])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_loads_in_batches(self, tmp_path, workers):
        pairs = record(Teacher(), Clips(), 8, tmp_path, ABOUT)
        batches = list(DataLoader(pairs, batch_size=4, num_workers=workers))
        assert [batch["step"].tolist() for batch in batches] == [[3, 2, 1, 0]] * 2
        assert all(batch["noisy"].shape == (4, 5, 3, 2, 2) for batch in batches)

    def test_dtypes_are_kept(self, tmp_path):
        pair = record(Teacher().bfloat16(), Clips(), 1, tmp_path, ABOUT)[0]
        assert pair["step"].dtype == torch.int64 and pair["noisy"].dtype == torch.bfloat16

    def test_no_gradients_are_recorded(self, tmp_path):
        class Guided(Teacher):
            @torch.enable_grad()
            def trajectory(self, lq):
                yield from super().trajectory(lq.requires_grad_())

        assert not any(tensor.requires_grad for tensor in run_teacher(Guided(1), Clips(), seed=0, visit=0).values())

    def test_the_random_state_of_the_caller_stays(self, tmp_path):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        record(Teacher(), Clips(), 4, tmp_path, ABOUT)
        assert torch.equal(torch.get_rng_state(), before)


class TestCache:
    def test_second_time_the_teacher_does_not_run(self, tmp_path, capsys):
        first = record(Teacher(), Clips(), 8, tmp_path, ABOUT)
        capsys.readouterr()
        teacher = Teacher()
        assert_equal(contents(record(teacher, Clips(), 8, tmp_path, ABOUT)), contents(first))
        assert not teacher.seen
        assert capsys.readouterr().out == ""

    def test_folder_holds_what_it_is_about_and_one_file_a_clip(self, tmp_path):
        pairs = record(Teacher(), Clips(), 8, tmp_path / "new" / "cache", ABOUT)
        assert pairs.folder.parent == tmp_path / "new" / "cache" and len(pairs.folder.name) == 12
        assert files(tmp_path) == ["00000.safetensors", "00001.safetensors", "about.json"]
        assert json.loads((pairs.folder / "about.json").read_text())["about"] == ABOUT

    def test_order_of_the_description_does_not_matter(self, tmp_path):
        first = record(Teacher(), Clips(), 4, tmp_path, {"a": 1, "b": [2]})
        assert record(Teacher(), Clips(), 4, tmp_path, {"b": (2,), "a": 1}).folder == first.folder

    @pytest.mark.parametrize("samples, about", [(8, ABOUT | {"seed": 1}), (9, ABOUT)], ids=["about", "samples"])
    def test_anything_else_is_another_folder(self, tmp_path, samples, about):
        first, teacher = record(Teacher(), Clips(), 8, tmp_path, ABOUT), Teacher()
        assert record(teacher, Clips(), samples, tmp_path, about).folder != first.folder
        assert teacher.seen

    @pytest.mark.parametrize("lost", [[0], [1], [2], [0, 2], [0, 1, 2]], ids=str)
    @pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "garbage"])
    def test_only_what_is_missing_or_damaged_is_made_again(self, tmp_path, lost, damage):
        pairs = record(Teacher(), Clips(), 3 * STEPS, tmp_path, ABOUT)
        before = contents(pairs)
        for visit in lost:
            path = pairs.folder / f"{visit:05d}.safetensors"
            whole = path.read_bytes()
            path.unlink()
            if damage != "missing":
                path.write_bytes({"empty": b"", "cut short": whole[:-5], "garbage": b"\xff" * 100}[damage])
        teacher = Teacher()
        assert_equal(contents(record(teacher, Clips(), 3 * STEPS, tmp_path, ABOUT)), before)
        assert [lq.mean().item() for lq in teacher.seen] == lost

    def test_a_killed_recording_goes_on_to_the_same_result(self, tmp_path):
        undisturbed = record(Teacher(), Clips(), 3 * STEPS, tmp_path / "a", ABOUT)
        torch.manual_seed(99)

        class Killed(Teacher):
            def trajectory(self, lq):
                if len(self.seen) == 2:
                    raise KeyboardInterrupt
                return super().trajectory(lq)

        with pytest.raises(KeyboardInterrupt):
            record(Killed(), Clips(), 3 * STEPS, tmp_path / "b", ABOUT)
        assert files(tmp_path / "b") == ["00000.safetensors", "00001.safetensors", "about.json"]
        teacher = Teacher()
        assert_equal(contents(record(teacher, Clips(), 3 * STEPS, tmp_path / "b", ABOUT)), contents(undisturbed))
        assert len(teacher.seen) == 1

    def test_a_file_that_cannot_be_finished_leaves_nothing(self, tmp_path, monkeypatch):
        def save_half(tensors: dict, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError("no space left")

        monkeypatch.setattr("quantsr.data.trajectories.save_file", save_half)
        with pytest.raises(OSError, match="no space"):
            record(Teacher(), Clips(), 4, tmp_path, ABOUT)
        assert files(tmp_path) == ["about.json"]

    def test_files_of_another_process_are_taken_as_they_appear(self, tmp_path):
        """Another process records everything while this one is at its second clip."""

        class Slow(Teacher):
            def trajectory(self, lq):
                if len(self.seen) == 1:
                    record(Teacher(), Clips(), 3 * STEPS, tmp_path, ABOUT)
                return super().trajectory(lq)

        teacher = Slow()
        pairs = record(teacher, Clips(), 3 * STEPS, tmp_path, ABOUT)
        assert len(teacher.seen) == 2
        assert len(contents(pairs)) == 3 * STEPS


class TestAnnouncement:
    SIZE = 3 * STEPS * (3 * 5 * 3 * 2 * 2 * 4 + 8)
    """Bytes of three clips: three tensors of floats and a number for each step."""

    def test_says_how_much_it_will_be_before_the_first_file(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(
            "quantsr.data.trajectories.save_file", lambda *_: pytest.fail(f"written after: {capsys.readouterr().out}")
        )
        root = tmp_path / "cache"
        with pytest.raises(pytest.fail.Exception) as failure:
            record(Teacher(), Clips(), 11, root, ABOUT)
        line = f"trajectories  11 pairs from 3 clips, about {self.SIZE / 1e6:.1f} MB in {root}"
        assert line in str(failure.value)

    def test_counts_what_is_there(self, tmp_path, capsys):
        pairs = record(Teacher(), Clips(), 12, tmp_path, ABOUT)
        (pairs.folder / "00001.safetensors").unlink()
        capsys.readouterr()
        record(Teacher(), Clips(), 12, tmp_path, ABOUT)
        assert "12 pairs from 3 clips (2 are there), about" in capsys.readouterr().out

    def test_helper_processes_are_silent(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        record(Teacher(), Clips(), 12, tmp_path, ABOUT)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("spare, fits", [(-1, False), (0, True)])
    def test_a_full_disk_is_noticed_before_anything_is_written(self, tmp_path, monkeypatch, spare, fits):
        usage = SimpleNamespace(free=self.SIZE + spare)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        root = tmp_path / "cache"
        if fits:
            record(Teacher(), Clips(), 12, root, ABOUT)
        else:
            with pytest.raises(UserError, match=r"0\.0 MB left"):
                record(Teacher(), Clips(), 12, root, ABOUT)
            assert list(tmp_path.iterdir()) == []


class TestBadInput:
    @pytest.mark.parametrize("samples, clips", [(0, 3), (-1, 3), (4, 0)])
    def test_nothing_to_record(self, tmp_path, samples, clips):
        with pytest.raises(UserError, match="pairs"):
            record(Teacher(), Clips(clips), samples, tmp_path, ABOUT)

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot be made"):
            record(Teacher(), Clips(), 4, tmp_path / "file", ABOUT)

    def test_a_teacher_without_steps(self, tmp_path):
        with pytest.raises(ValueError, match="no steps"):
            record(Teacher(steps=0), Clips(), 4, tmp_path, ABOUT)

    def test_a_teacher_that_changes_the_number_of_its_steps(self, tmp_path):
        class Growing(Teacher):
            def trajectory(self, lq):
                self.steps += 1
                return super().trajectory(lq)

        with pytest.raises(ValueError, match="another number of steps"):
            record(Growing(), Clips(), 20, tmp_path, ABOUT)
