"""The dashboard of one run: how it stands, then all that its trainer and the operator say of it."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana_dashboards import learning, machinery
from grafana_dashboards.board import RUN_UID, AnyPanel, Mark, board, variable
from grafana_dashboards.panels import Query, states, value
from grafana_dashboards.promql import HEALTH, LIFE, RUN, checkpoints_behind, health, one, seconds_left


def run() -> Dashboard:
    """The dashboard as Grafana imports it."""
    return board(
        RUN_UID,
        "BitNet / Run",
        "One BitNetRun. Regions are its training phases, lines where a segment begins.",
        [
            variable("namespace", "Namespace", "label_values(bitnetrun_phase, namespace)"),
            variable("name", "Run", 'label_values(bitnetrun_phase{namespace="$namespace"}, name)'),
        ],
        [
            ("", [*_at_once(), *_phases()]),
            ("Loss", learning.loss()),
            ("Schedules", learning.schedules()),
            ("MuonClip", learning.muonclip()),
            ("Speed and machines", machinery.speed()),
            ("Data", learning.data()),
            ("Checkpoints and segments", machinery.checkpoints()),
            ("At the end", _end()),
        ],
        [_phase_regions(), _segment_lines()],
        since="now-6h",
    )


def _phase_regions() -> Mark:
    running = f'max (bitnetrun_phase{{{RUN}, phase="Running"}}) == 1'
    return Mark(
        "Phases",
        f"{one('bitnetrun_training_phase', 'phase')} and on () ({running})",
        "phase {{phase}}",
        "rgba(110, 159, 255, 0.6)",
    )


def _segment_lines() -> Mark:
    number = f'count_values("segment", {one("bitnetrun_segments")} - 1)'
    began = one("bitnetrun_segment_start_timestamp_seconds")
    return Mark(
        "Segments",
        f"{number} * on () group_left () {began} * 1000",
        "segment {{segment}} begins",
        "orange",
        True,
    )


def _at_once() -> list[AnyPanel]:
    return [
        value(
            "Run",
            "Its phase of life. A run that is Suspended goes on when spec.suspend is false again; one that"
            " Failed or Succeeded stays so.",
            "none",
            Query(f"{one('bitnetrun_phase', 'phase')} == 1", "{{phase}}"),
            names=LIFE,
            absent="no such run",
        ),
        value(
            "Health",
            "The worst of what is not well: stalled, checkpoints that fail, a loss that stopped falling or"
            " spiked. Normal is well; `kubectl describe bnr` has the words.",
            "none",
            Query(health(RUN), "health"),
            words=HEALTH,
            absent="no such run",
        ),
        value(
            "Progress",
            "Optimiser steps completed, of all that the run has. It rises steadily; a roll-back lowers it.",
            "percentunit",
            Query(f"{one('bitnetrun_step')} / {one('bitnetrun_steps')}", "done"),
            decimals=1,
        ),
        value(
            "Time left",
            "To the last step at the speed of now. A teacher that comes in later makes it longer;"
            " evaluation and export come after it.",
            "s",
            Query(seconds_left(RUN), "left"),
            absent="not training",
            decimals=0,
        ),
        value(
            "Loss",
            "Total loss of the last step. It falls within a phase; where a phase changes the objectives, it"
            " jumps.",
            "none",
            Query(one("bitnetrun_loss"), "loss"),
            history=True,
            decimals=4,
        ),
        value(
            "Speed",
            "Tokens trained in a second by all ranks. Flat within a phase, 0 while it does not train.",
            "si:tok/s",
            # Without the 0 the last speed would stand here when the run is over.
            Query(f"{one('bitnetrun_tokens_per_second')} or 0 * {one('bitnetrun_attempts')}", "speed"),
            history=True,
        ),
        value(
            "Behind",
            "Steps since the newest checkpoint, over checkpoint.everySteps: what a failure now would cost."
            " Normal is up to a little over 1.",
            "none",
            Query(checkpoints_behind(RUN), "behind"),
            colors={None: "green", 2: "orange", 4: "red"},
            decimals=1,
        ),
        value(
            "Attempts",
            "Failed segments in a row without a new checkpoint between them, and how many spec.retries"
            " allows. Normal is 0.",
            "none",
            Query(one("bitnetrun_attempts"), "used"),
            Query(one("bitnetrun_retries_limit"), "allowed"),
            decimals=0,
        ),
    ]


def _phases() -> list[AnyPanel]:
    return [
        states(
            "Phases and teacher",
            "Which phase of spec.phases is trained, and where the teacher stands: Absent, Loading, Ready."
            " It is Ready in the phases that distil; Loading takes as long as reading the model.",
            Query(one("bitnet_trainer_phase", "phase"), "phase {{phase}}"),
            Query(one("bitnet_trainer_teacher", "teacher"), "teacher {{teacher}}"),
            height=8,
        ),
        states(
            "What it does",
            "The run's life, and what its trainer does. Training is normal for nearly all the time. Where"
            " the trainer has no bar, no pod of it answers: the run waits for pods, or is between two"
            " segments.",
            Query(one("bitnetrun_phase", "phase"), "run {{phase}}"),
            Query(one("bitnet_trainer_state", "state"), "trainer {{state}}"),
            height=8,
        ),
    ]


def _end() -> list[AnyPanel]:
    return [
        value(
            "Perplexity",
            "On held-out text when training has ended: of the original, of it made ternary (before), of"
            " what was trained (after), of the teacher. After is far below before, and near the original"
            " after a real budget.",
            "none",
            Query(one("bitnetrun_perplexity", "model"), "{{model}}"),
            absent="measured at the end",
            decimals=2,
            width=12,
        ),
        value(
            "Accuracy",
            "Of a classifier, on held-out rows when training has ended. A causal model has none.",
            "percentunit",
            Query(one("bitnetrun_accuracy", "model"), "{{model}}"),
            absent="of classifiers, at the end",
            decimals=1,
            width=12,
        ),
    ]
