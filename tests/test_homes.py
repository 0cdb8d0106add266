"""Homes keep tensors as they are, in one stretch of bytes outside the memory that is computed in."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from quantsr.errors import UserError
from quantsr.homes import ALIGNMENT, DiskFile, HostMemory

CPU = torch.device("cpu")
homes = pytest.mark.parametrize("kind", [HostMemory, DiskFile])


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    """Of all the types that weights and codes have, of sizes that do not fill a stretch of their own."""
    torch.manual_seed(0)
    shapes = {torch.float32: (3, 5), torch.bfloat16: (7,), torch.float16: (2, 3, 3, 3)}
    floats = [torch.randn(shape).to(dtype) for dtype, shape in shapes.items()]
    return [*floats, torch.randint(256, (4, 9), dtype=torch.uint8), torch.tensor(2.5)]


@homes
def test_what_waits_and_its_copies_are_the_tensors(kind, tensors):
    home = kind(tensors)
    for found in (home.waiting, home.copies(CPU), home.copies(CPU)):
        for own, tensor in zip(found, tensors, strict=True):
            assert own.dtype == tensor.dtype and torch.equal(own, tensor)


@homes
def test_copies_are_one_piece_of_memory_of_their_own_aligned_as_torch_aligns(kind, tensors):
    home = kind(tensors)
    first, second = home.copies(CPU), home.copies(CPU)
    storages = [{t.untyped_storage().data_ptr() for t in found} for found in (home.waiting, first, second)]
    assert [len(pointers) for pointers in storages] == [1, 1, 1] and len(set.union(*storages)) == 3
    assert first[0].untyped_storage().nbytes() == home.nbytes == 6 * ALIGNMENT  # One of them takes two.
    assert all(t.data_ptr() % ALIGNMENT == 0 for t in first)
    first[0].zero_()
    assert torch.equal(second[0], tensors[0]) and torch.equal(home.waiting[0], tensors[0])


@homes
def test_a_home_does_not_follow_its_tensors(kind, tensors):
    before = tensors[0].clone()
    home = kind(tensors)
    tensors[0].zero_()
    assert torch.equal(home.copies(CPU)[0], before)


def test_a_file_waits_on_the_disk_without_a_name(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = DiskFile(tensors)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(home._file.fileno()).st_size == home.nbytes


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory of the process as Linux counts it")
def test_a_mapped_file_takes_no_memory_until_it_is_read():
    size = 2**22
    home = DiskFile([torch.ones(size, dtype=torch.uint8)])

    def resident() -> int:
        """Bytes of the mapping that are in memory."""
        start = f"{home.waiting[0].data_ptr():x}-"
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        assert any(line.startswith(start) for line in lines)
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))

    home.copies(CPU)  # Not through the mapping.
    assert resident() == 0
    assert home.waiting[0].sum() == size
    assert resident() == size


def test_a_full_disk_is_said_in_a_sentence(tensors, monkeypatch):
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=r"offload=true needs 0.00 GB in .*No space left on device.*set TMPDIR"):
        DiskFile(tensors)
