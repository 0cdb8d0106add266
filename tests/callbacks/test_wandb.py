"""Runs are grouped and tagged in W&B, offline and without a key; a sweep's comparison is a run of its own."""

import struct

import pytest
import wandb
from PIL import Image
from wandb.proto import wandb_internal_pb2

from quantsr.callbacks.wandb import log_comparison, wandb_logger


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing of the user's own set-up, and no network."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)


def records(folder):
    """The records of the one offline run in a folder: protocol buffers in LevelDB's log format."""
    wandb.teardown()  # All is written then.
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, position, found, part = file.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        if position % 32768 > 32768 - 7:  # The rest of a block is padding.
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        part += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def run_of(folder):
    """The last that the records say of the run itself."""
    return [record.run for record in records(folder) if record.WhichOneof("record_type") == "run"][-1]


def logged(folder):
    """Values by the name they were logged under."""
    items = [item for record in records(folder) for item in record.history.item]
    return {item.key or ".".join(item.nested_key): item.value_json for item in items}


def start(folder, **options):
    logger = wandb_logger("quantsr", "minmax_w4a4_tiny_image", str(folder), **options)
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.experiment.finish()


def test_offline_run_has_group_and_tags(tmp_path):
    start(tmp_path, group="compare_image", tags=["minmax", "w4a4", "tiny_image", "photos"])
    run = run_of(tmp_path)
    assert (run.project, run.display_name) == ("quantsr", "minmax_w4a4_tiny_image")
    assert run.run_group == "compare_image"
    assert sorted(run.tags) == sorted(["minmax", "w4a4", "tiny_image", "photos"])
    assert float(logged(tmp_path)["loss"]) == 0.5


def test_a_job_of_a_sweep_belongs_to_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "12-00-00_sweep")
    start(tmp_path, group="compare_image")
    assert run_of(tmp_path).run_group == "12-00-00_sweep"


def test_comparison_holds_table_and_pictures(tmp_path):
    (tmp_path / "table.csv").write_text("method,bits,PSNR\nminmax,w4a4,23.4\nqartsr,w4a4,\n")
    (tmp_path / "crops").mkdir()
    for name in ("boat", "cat"):
        Image.new("RGB", (8, 8)).save(tmp_path / "crops" / f"{name}.png")
    log_comparison(tmp_path, "12-00-00_sweep")
    run, values = run_of(tmp_path), logged(tmp_path)
    assert (run.display_name, run.run_group, run.job_type) == ("comparison", "12-00-00_sweep", "comparison")
    assert values["table.nrows"] == "2" and values["table.ncols"] == "3"
    assert values["crops.count"] == "2" and values["crops.captions"] == '["boat","cat"]'


def test_comparison_without_pictures(tmp_path):
    (tmp_path / "table.csv").write_text("method,PSNR\nminmax,23.4\n")
    log_comparison(tmp_path, "sweep")
    values = logged(tmp_path)
    assert values["table.nrows"] == "1" and "crops.count" not in values


def test_without_a_table_nothing_is_started(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"table\.csv"):
        log_comparison(tmp_path, "sweep")
    assert not (tmp_path / "wandb").exists()
