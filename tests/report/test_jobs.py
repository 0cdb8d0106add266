"""Run folders are found, read and told apart; what is damaged is named and does not stop the others."""

import json

import pytest
import yaml

from quantsr.errors import UserError
from quantsr.report.jobs import Job, read_jobs
from tests.report.conftest import METRICS


def labels(jobs: list[Job]) -> list[str]:
    return [job.label for job in jobs]


class TestFinding:
    def test_a_run_a_sweep_and_a_folder_of_sweeps(self, make_run, tmp_path):
        run = make_run()
        for folder in (run, run.parent, tmp_path):
            assert [job.folder for job in read_jobs([folder])] == [run]

    def test_a_folder_given_twice_counts_once(self, make_run):
        run = make_run()
        assert len(read_jobs([run, run.parent])) == 1

    def test_what_is_inside_a_run_is_no_run(self, make_run):
        run = make_run()
        (run / "artefact").mkdir()
        (run / "artefact" / "config.yaml").write_text("")
        assert len(read_jobs([run.parent])) == 1

    def test_what_loggers_and_launchers_leave_in_a_sweep_is_no_run(self, make_run):
        run = make_run()
        for other in ("wandb/run-1/files", ".submitit/1"):
            (run.parent / other).mkdir(parents=True)
            (run.parent / other / "config.yaml").write_text("a: 1")
        assert len(read_jobs([run.parent])) == 1

    def test_jobs_come_in_the_order_of_their_numbers(self, make_run, tmp_path):
        for number in (10, 2, 0):
            make_run(seed=number, name=f"{number}_minmax")
        assert [job.seed for job in read_jobs([tmp_path])] == ["0", "2", "10"]

    @pytest.mark.parametrize("folder, says", [("nothing", "no folder at"), ("", "no runs in")])
    def test_no_runs(self, tmp_path, folder, says):
        with pytest.raises(UserError, match=says):
            read_jobs([tmp_path / folder])


class TestReading:
    def test_what_a_run_was(self, make_run):
        (job,) = read_jobs([make_run("qartsr", "w2a2", 3)])
        assert (job.method, job.bits, job.seed, job.teacher, job.data) == (
            "qartsr",
            "w2a2",
            "3",
            "tiny_image",
            "photos",
        )
        assert job.own == METRICS["student"] and job.problem is None

    def test_bits_by_their_numbers(self, make_run):
        run = make_run()
        config = yaml.safe_load((run / "config.yaml").read_text())
        config |= {"bits": {"weight": 3, "act": 8}, "method": {"_target_": "a.B", "bits": "${bits}"}}
        (run / "config.yaml").write_text(yaml.dump(config))
        assert read_jobs([run])[0].bits == "w3a8"

    def test_without_hydras_own_files(self, make_run):
        run = make_run()
        for file in (run / ".hydra").iterdir():
            file.unlink()
        (job,) = read_jobs([run])
        assert (job.method, job.bits, job.data) == ("any", "w4a4", "B")

    def test_a_trained_teacher(self, make_run):
        (job,) = read_jobs(
            [make_run("teacher", None, metrics={"bicubic": {"psnr_y": 1.0}, "teacher": {"psnr_y": 2.0}})]
        )
        assert (job.own, job.bits) == ({"psnr_y": 2.0}, "")

    @pytest.fixture
    def evaluated(self, make_run, tmp_path):
        """A function that makes a run of eval.py on an artefact of QArtSR w2a2 with this seed."""

        def evaluated(name: str, seed: int) -> None:
            artefact = tmp_path / "elsewhere" / name / "artefact"
            artefact.mkdir(parents=True)
            about = {"method": "QArtSR", "bits": "w2a2", "config": {"seed": seed}}
            (artefact / "config.json").write_text(json.dumps(about))
            run = make_run(bits=None, overrides=(f"artefact={artefact.parent}",))
            (run / "config.yaml").write_text(yaml.dump({"artefact": str(artefact.parent), "seed": 9}))

        return evaluated

    def test_an_evaluated_artefact_goes_by_its_method_bits_and_seed(self, evaluated, tmp_path):
        evaluated("a", 1)
        evaluated("b", 2)
        assert labels(read_jobs([tmp_path / "sweep"])) == ["qartsr w2a2 seed=1", "qartsr w2a2 seed=2"]

    def test_artefacts_that_are_otherwise_alike_are_told_apart(self, evaluated, tmp_path):
        evaluated("a", 1)
        evaluated("b", 1)
        folder = tmp_path / "elsewhere"
        assert [job.differs for job in read_jobs([tmp_path / "sweep"])] == [
            {"artefact": str(folder / "a")},
            {"artefact": str(folder / "b")},
        ]

    def test_ready_made_outputs_go_by_their_folder(self, make_run):
        run = make_run(metrics={"outputs": {"psnr_y": 20.0}})
        (run / "config.yaml").write_text(yaml.dump({"outputs": "some/where/osediff"}))
        (job,) = read_jobs([run])
        assert (job.method, job.own) == ("osediff", {"psnr_y": 20.0})


class TestProblems:
    @pytest.mark.parametrize(
        "content, says",
        [
            ("{", "metrics.json is unreadable"),
            ("[]", "no figures"),
            ("{}", "no figures"),
            ('{"student": 3}', "no figures"),
            ('{"student": {"psnr_y": "high"}}', "no figures"),
            ("\udcff", "unreadable"),
        ],
        ids=["cut off", "a list", "empty", "no model", "no number", "no text"],
    )
    def test_unreadable_metrics_of_one_run(self, make_run, tmp_path, content, says):
        make_run()
        (make_run() / "metrics.json").write_bytes(content.encode(errors="surrogateescape"))
        jobs = read_jobs([tmp_path])
        assert [job.metrics is None for job in jobs] == [False, True]
        assert says in jobs[1].problem and jobs[1].method == "minmax"

    @pytest.mark.parametrize("file", ["config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"])
    def test_unreadable_configuration(self, make_run, tmp_path, file):
        make_run()
        (make_run() / file).write_text("a: [")
        jobs = read_jobs([tmp_path])
        assert jobs[0].problem is None and "configuration is unreadable" in jobs[1].problem
        assert jobs[1].metrics is None  # Without knowing what it is the figures cannot be placed.

    def test_failed_and_unfinished(self, make_run, tmp_path):
        (make_run(metrics=None) / "failed").write_text("exit code 1: method=minmax\n")
        make_run(metrics=None)
        assert [job.problem for job in read_jobs([tmp_path])] == ["failed (exit code 1: method=minmax)", "not finished"]

    def test_a_failed_job_that_was_run_again(self, make_run):
        run = make_run()
        (run / "failed").write_text("exit code 1")
        assert read_jobs([run])[0].problem is None


class TestWhatDiffers:
    def differs(self, tmp_path) -> list[dict[str, str]]:
        return [job.differs for job in read_jobs([tmp_path])]

    def test_only_what_is_not_alike(self, make_run, tmp_path):
        make_run(overrides=("method.rank=0", "method.order=forward"))
        make_run(overrides=("method.rank=8", "method.order=forward"))
        assert labels(read_jobs([tmp_path])) == ["minmax w4a4 method.rank=0 seed=0", "minmax w4a4 method.rank=8 seed=0"]

    def test_method_bits_and_seed_are_no_options(self, make_run, tmp_path):
        make_run("minmax", "w4a4", 0)
        make_run("qartsr", "w2a2", 1)
        assert self.differs(tmp_path) == [{}, {}]

    def test_where_things_are_written_does_not_count(self, make_run, tmp_path):
        make_run(overrides=("logger=csv", "hydra.run.dir=/a", "data.num_workers=1"))
        make_run(overrides=("logger=default", "run_dir=/b", "data.num_workers=2"))
        assert self.differs(tmp_path) == [{}, {}]

    @pytest.mark.parametrize("key", ["data.batch_size", "data.seed", "data.calibration.root"])
    def test_how_a_run_was_fed_is_an_option_of_the_run_on_the_same_data(self, make_run, tmp_path, key):
        for value in (1, 2):
            make_run(overrides=(f"{key}={value}",))
        assert self.differs(tmp_path) == [{key: "1"}, {key: "2"}]
        assert {job.data for job in read_jobs([tmp_path])} == {"photos"}

    @pytest.mark.parametrize("plus", ["", "+", "++"])
    def test_experiments_and_added_keys(self, make_run, tmp_path, plus):
        make_run(overrides=(f"{plus}experiment=a",))
        make_run(overrides=(f"{plus}experiment=b",))
        assert self.differs(tmp_path) == [{"experiment": "a"}, {"experiment": "b"}]

    def test_a_job_that_lacks_a_key_of_the_others(self, make_run, tmp_path):
        make_run()
        make_run(overrides=("method.parts=[encoder,denoiser]",))
        assert self.differs(tmp_path) == [{}, {"method.parts": "[encoder,denoiser]"}]

    def test_failed_jobs_count_for_what_differs(self, make_run, tmp_path):
        make_run(overrides=("method.rank=0",))
        make_run(overrides=("method.rank=9",), metrics=None)
        assert self.differs(tmp_path)[0] == {"method.rank": "0"}

    def test_options_of_data_and_teacher_belong_to_these(self, make_run, tmp_path):
        make_run(overrides=("data.root=a", "teacher.weights=x"))
        make_run(overrides=("data.root=b", "teacher.weights=x"))
        jobs = read_jobs([tmp_path])
        assert [job.data for job in jobs] == ["photos (root=a)", "photos (root=b)"]
        assert [job.teacher for job in jobs] == ["tiny_image", "tiny_image"]
        assert [job.differs for job in jobs] == [{}, {}]
