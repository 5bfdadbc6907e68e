"""Weights & Biases, offline and real: what it is told of a run, of one that goes on, of one that fails."""

import json
import time

import pytest
import wandb

from bitnet_trainer import tracking
from bitnet_trainer.errors import NonFinite
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from ports import free_port
from wandb_file import history, records, summary

ASKED = {"wandb": {"project": "bitnet", "entity": "team", "name": "first try"}}


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch, tmp_path):
    """No key of whoever runs the tests, and nothing in their home; no samples of the machine."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_X_DISABLE_STATS", "true")
    yield
    wandb.teardown()


def written(run):
    """The .wandb files of a run, oldest first, when they are whole: wandb's own process may write on after
    it was waited for."""
    paths = sorted(run.folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    deadline = time.monotonic() + 180
    while not all(any(record.HasField("exit") for record in records(path)) for path in paths):
        assert time.monotonic() < deadline, f"not ended after 180 s: {paths}"
        time.sleep(0.05)
    return paths


def test_each_step_the_config_and_the_evaluation_are_in_its_file(make_run, train_here):
    run = make_run(steps=12, tracking=ASKED)
    result, reporter = train_here(run)
    (path,) = written(run)
    steps = history(path)
    assert {step: items["loss"] for step, items in steps.items()} == {
        record.step: record.loss for record in run.metrics()
    }
    assert steps[12]["objectives/teacherLogits/raw"] == run.metrics()[-1].objectives["teacherLogits"].raw
    assert steps[12]["mixture/counting"] == pytest.approx(2 / 3)
    assert steps[12]["machine/host_peak_bytes"] > 0
    begun = next(record.run for record in records(path) if record.HasField("run"))
    assert (begun.run_id, begun.project, begun.entity, begun.display_name, begun.resumed) == (
        "default.tiny",
        "bitnet",
        "team",
        "first try",
        False,
    )
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["spec"]["budget"] == {"tokens": 1536, "globalBatchSize": 8}
    assert config["plan"]["totalSteps"] == 12
    assert "torch" in config["versions"]
    assert summary(path)["evaluation/perplexity_after"] == float(result.evaluation.perplexity_after)
    assert next(record.exit.exit_code for record in records(path) if record.HasField("exit")) == 0
    assert reporter.progress.warnings == ()


def test_a_run_that_goes_on_is_the_same_run_there_and_logs_no_step_twice(make_run, train_here):
    run = make_run(steps=12, tracking=ASKED)
    train_here(run, stop_at=7)
    # As if killed two steps after its last checkpoint.
    log = run.folder / "metrics.jsonl"
    lines = log.read_text().splitlines()
    for step in (8, 9):
        lines.append(json.dumps({**json.loads(lines[-1]), "step": step}))
    log.write_text("\n".join(lines) + "\n")
    train_here(run)
    first, second = (history(path) for path in written(run))
    assert list(first) == [1, 2, 3, 4, 5, 6, 7]
    assert list(second) == [10, 11, 12]
    ids = {record.run.run_id for path in written(run) for record in records(path) if record.HasField("run")}
    assert ids == {"default.tiny"}
    assert [record.step for record in run.metrics()] == list(range(1, 13))


def test_a_run_that_fails_ends_there_as_failed(make_run, train_here, monkeypatch):
    real = CrossEntropyObjective.__call__

    def spoiled(self, batch):
        loss = real(self, batch)
        loss.total.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr(CrossEntropyObjective, "__call__", spoiled)
    run = make_run(steps=12, tracking=ASKED, health={"nonFinite": {"skipSteps": 1}})
    with pytest.raises(NonFinite):
        train_here(run)
    (path,) = written(run)
    steps = history(path)
    assert list(steps) == [1, 2]
    assert steps[2]["skipped_steps"] == 2
    assert "loss" not in steps[2]
    assert next(record.exit.exit_code for record in records(path) if record.HasField("exit")) == 1


def test_without_a_key_it_is_kept_and_one_warning_says_where_and_what_to_do(
    make_run, train_here, monkeypatch, caplog
):
    monkeypatch.delenv("WANDB_MODE")
    run = make_run(steps=4, tracking={"wandb": {"project": "bitnet", "secret": "keys"}})
    _, reporter = train_here(run)
    (warning,) = reporter.progress.warnings
    assert warning.startswith("tracking.wandb: there is no API key. Put one into the key WANDB_API_KEY of")
    assert f"`wandb sync {run.folder}/wandb/offline-run-*`" in warning
    assert caplog.text.count("there is no API key") == 1
    (path,) = written(run)
    assert list(history(path)) == [1, 2, 3, 4]


def test_a_server_that_does_not_answer_is_a_warning(make_run, train_here, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(tracking, "_INIT_SECONDS", 1)
    run = make_run(steps=4, tracking=ASKED)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    _, reporter = train_here(run)
    (warning,) = reporter.progress.warnings
    assert "W&B could not be reached (" in warning
    assert "`wandb sync " in warning
    assert [list(history(path)) for path in written(run)] == [[1, 2, 3, 4]]


def test_wandb_that_cannot_begin_at_all_is_a_warning(make_run, train_here, monkeypatch):
    def failing(**asked):
        raise wandb.errors.UsageError(f"no {asked['mode']} here\nand more")

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(wandb, "init", failing)
    run = make_run(steps=4, tracking=ASKED)
    _, reporter = train_here(run)
    first, second = reporter.progress.warnings
    assert "could not be reached (no online here)." in first
    assert second == "tracking.wandb: nothing is logged to W&B: no offline here"
    assert len(run.metrics()) == 4


def test_w_and_b_that_fails_later_is_a_warning_too(make_run, train_here, monkeypatch):
    real = wandb.Run.log

    def failing(self, data, step):
        if step == 3:
            raise BrokenPipeError("wandb-core is gone")
        real(self, data, step=step)

    monkeypatch.setattr(wandb.Run, "log", failing)
    run = make_run(steps=4, tracking=ASKED)
    _, reporter = train_here(run)
    assert reporter.progress.warnings == (
        "tracking.wandb: W&B failed, and nothing more is logged there: wandb-core is gone",
    )
    assert len(run.metrics()) == 4
