"""The dashboard of all runs: who trains, what is not well, what they hold, and how the operator keeps up."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana_dashboards.board import FLEET_UID, RUN_UID, AnyPanel, board, variable
from grafana_dashboards.panels import Column, Query, lines, rows, value
from grafana_dashboards.promql import (
    FLEET,
    HEALTH,
    LIFE,
    by_run,
    checkpoints_behind,
    health,
    in_phase,
    quantile,
    seconds_left,
)

_NAME = "{{namespace}}/{{name}}"
_LABELS = {"namespace": "Namespace", "name": "Run"}
_LINK = (
    "Run",
    f"/d/{RUN_UID}?var-datasource=${{datasource}}&var-namespace=${{__data.fields.Namespace}}"
    "&var-name=${__data.fields.Run}&${__url_time_range}",
    "Open this run",
)
_LEADS = "bitnet_operator_leader == 1"
_TEN = "The ten highest at each moment."


def fleet() -> Dashboard:
    """The dashboard as Grafana imports it."""
    return board(
        FLEET_UID,
        "BitNet / Fleet",
        "All BitNetRuns: what trains, what is not well, what they hold, and whether the operator keeps up.",
        [variable("namespace", "Namespace", "label_values(bitnetrun_phase, namespace)", several=True)],
        [
            ("", [*_at_once(), _runs()]),
            ("Health", _health()),
            ("GPUs and speed", _machines()),
            ("Operator (all namespaces)", _operator()),
        ],
        since="now-24h",
    )


def _at_once() -> list[AnyPanel]:
    return [
        value(
            "Training",
            "Runs in the phase Running: a segment trains, or its pods, machines from a queue or the next"
            " attempt are waited for.",
            "none",
            Query(f"count({in_phase(FLEET, 'Running')}) or vector(0)", "runs"),
        ),
        value(
            "Not well",
            "Runs with something a person should look at: stalled, checkpoints that fail, a plateau or a"
            " spike of the loss. Normal is 0; the row Health says which and why.",
            "none",
            Query(f"count(({health(FLEET)}) > 0) or vector(0)", "runs"),
            colors={None: "green", 1: "orange"},
        ),
        value(
            "Failed",
            "Runs that have failed for good and still exist. Normal is 0; `kubectl describe bnr` has the"
            " reason.",
            "none",
            Query(f"count({in_phase(FLEET, 'Failed')}) or vector(0)", "runs"),
            colors={None: "green", 1: "red"},
        ),
        value(
            "Pending",
            "Runs accepted and not begun, which takes seconds. Those in a queue for machines have begun, and"
            " count as Training.",
            "none",
            Query(f"count({in_phase(FLEET, 'Pending')}) or vector(0)", "runs"),
        ),
        value(
            "GPUs held",
            "GPUs that pods of runs hold now. 0 on clusters that train on CPUs.",
            "none",
            Query(f"sum({by_run('bitnetrun_gpus', FLEET)})", "GPUs"),
            history=True,
        ),
        value(
            "Speed",
            "Tokens trained in a second by all runs together. It falls to 0 where none trains.",
            "si:tok/s",
            Query(f"sum({by_run('bitnetrun_tokens_per_second', FLEET)}) or vector(0)", "tokens a second"),
            history=True,
        ),
        value(
            "Leader",
            "Replicas of the operator that lead. Normal is 1; with 0 for more than half a minute"
            " no run is looked after, though those that train go on.",
            "none",
            Query("sum(bitnet_operator_leader)", "leaders"),
            colors={None: "red", 1: "green", 2: "red"},
            absent="no operator",
        ),
        value(
            "Last seen",
            "Since the leader last saw all runs, which it lists every 300 s beside watching them. Normal is"
            " up to 300 s; beyond it has lost the API server, and nothing is decided.",
            "s",
            Query(
                f"time() - max(bitnet_operator_last_seen_timestamp_seconds and on (pod, instance) {_LEADS})",
                "ago",
            ),
            colors={None: "green", 400: "orange", 900: "red"},
            decimals=0,
            absent="no leader",
        ),
    ]


def _runs() -> AnyPanel:
    phase = by_run("bitnetrun_training_phase", FLEET, "phase")
    trained = f'label_replace({phase}, "trains", "$1", "phase", "(.*)")'
    step, steps = by_run("bitnetrun_step", FLEET), by_run("bitnetrun_steps", FLEET)
    attempts, limit = by_run("bitnetrun_attempts", FLEET), by_run("bitnetrun_retries_limit", FLEET)
    return rows(
        "Runs",
        "Every run that exists; click on its name for its own dashboard. Health is the worst of what is not"
        " well. Behind is the steps since the newest checkpoint over checkpoint.everySteps: over 2, the last"
        " one did not come. Last failure is why the last attempt failed, attempts are failed segments in a"
        " row without a new checkpoint between them.",
        [
            Column("Phase", f"{by_run('bitnetrun_phase', FLEET, 'phase')} == 1", label=True),
            Column("Trains", f"max by (namespace, name, trains) ({trained})", label=True),
            Column("Last failure", by_run("bitnetrun_failure", FLEET, "reason"), label=True),
            Column("Health", health(FLEET), "none", words=HEALTH),
            Column("Step", step, "none", decimals=0),
            Column("of", steps, "none", decimals=0),
            Column("Progress", f"{step} / {steps}", "percentunit", decimals=0, gauge=True),
            Column("Time left", seconds_left(FLEET), "s", decimals=0),
            Column("Loss", by_run("bitnetrun_loss", FLEET), "none", decimals=4),
            Column("Speed", by_run("bitnetrun_tokens_per_second", FLEET), "si:tok/s", decimals=0),
            Column("GPUs", by_run("bitnetrun_gpus", FLEET), "none", decimals=0),
            Column("Attempts", attempts, "none", decimals=0, colors={None: "text", 1: "orange"}),
            Column("allowed", limit, "none", decimals=0),
            Column(
                "Behind",
                checkpoints_behind(FLEET),
                "none",
                decimals=1,
                colors={None: "text", 2: "orange", 4: "red"},
            ),
        ],
        labels=_LABELS | {"phase": "Phase", "trains": "Trains", "reason": "Last failure"},
        link=_LINK,
        absent="No run exists in these namespaces.",
        worst="Health",
        height=10,
    )


def _health() -> list[AnyPanel]:
    condition = "bitnetrun_condition"
    bad = 'type=~"Stalled|LossPlateau|LossSpike|Warnings", status="True"'
    attempts, limit = by_run("bitnetrun_attempts", FLEET), by_run("bitnetrun_retries_limit", FLEET)
    failing = by_run(condition, f'{FLEET}, type="Checkpointing", status="False"', "type", "status")
    return [
        rows(
            "What is not well",
            "Conditions that ask for a look, each with its run: Stalled, LossPlateau, LossSpike and"
            " Warnings that are True, Checkpointing that is False. Normal is an empty table. docs/runs.md"
            " has what each means.",
            [
                Column(
                    "Conditions",
                    f"{by_run(condition, f'{FLEET}, {bad}', 'type', 'status')} or {failing}",
                    label=True,
                )
            ],
            labels=_LABELS | {"type": "Condition", "status": "is"},
            link=_LINK,
            absent="All is well.",
            height=8,
            width=8,
        ),
        lines(
            "Runs that are not well",
            "How many runs have each condition. A rise of several at once has one cause: the storage, the"
            " network, the node pool. Normal is no line, or 0.",
            "none",
            Query(
                f"sum by (type) ({by_run(condition, f'{FLEET}, {bad}', 'type')})",
                "{{type}}",
            ),
            Query(f"count({failing})", "Checkpointing fails"),
            counts=True,
            low=0,
            absent="All is well.",
        ),
        lines(
            "Runs by phase of life",
            "How many runs are Pending, Running, Suspended, Succeeded and Failed. A finished run stays"
            " until it is deleted.",
            "none",
            Query(f"sum by (phase) ({by_run('bitnetrun_phase', FLEET, 'phase')})", "{{phase}}"),
            names=LIFE,
            stacked=True,
            counts=True,
            low=0,
        ),
        lines(
            "Attempts used",
            f"Failed segments in a row over spec.retries. At 100 % the next failure is the run's end. {_TEN}"
            " Normal is 0.",
            "percentunit",
            Query(f"topk(10, {attempts} / ({limit} > 0))", _NAME),
            counts=True,
            low=0,
            high=1,
        ),
        lines(
            "Roll-backs",
            "Times a run went back to before losses that were not finite; each halves its learning rate"
            f" unless the spec says otherwise. {_TEN} Normal is 0.",
            "none",
            Query(f"topk(10, {by_run('bitnetrun_rollbacks', FLEET)})", _NAME),
            counts=True,
            low=0,
        ),
        lines(
            "Checkpoints behind",
            f"Steps since the newest checkpoint, over checkpoint.everySteps. {_TEN} Normal is a saw-tooth"
            " from 0 to a little over 1; from 2 on checkpoints do not come, and a failure would cost that"
            " much.",
            "none",
            Query(f"topk(10, {checkpoints_behind(FLEET)})", _NAME),
            low=0,
            colors={None: "transparent", 2: "orange"},
        ),
    ]


def _machines() -> list[AnyPanel]:
    gpus = by_run("bitnetrun_gpus", FLEET)
    return [
        lines(
            "GPUs held by run",
            f"GPUs that each run's pods hold. {_TEN} A run that holds some and trains no token wastes them.",
            "none",
            Query(f"topk(10, {gpus})", _NAME),
            stacked=True,
            counts=True,
            low=0,
        ),
        lines(
            "GPUs of all runs",
            "GPUs that all runs hold together. It falls to 0 where none trains: a run that waits, is"
            " suspended or is over holds none.",
            "none",
            Query(f"sum({gpus})", "GPUs"),
            counts=True,
            low=0,
        ),
        lines(
            "Speed by run",
            f"Tokens trained in a second. {_TEN} Flat is normal, with a step down where a teacher comes in.",
            "si:tok/s",
            Query(f"topk(10, {by_run('bitnetrun_tokens_per_second', FLEET)})", _NAME),
            low=0,
        ),
    ]


def _operator() -> list[AnyPanel]:
    return [
        lines(
            "Who leads",
            "1 for the replica that leads, 0 for those that stand by. A change is a failover: once for each"
            " rollout is normal.",
            "none",
            Query("max by (pod, instance) (bitnet_operator_leader)", "{{pod}} {{instance}}"),
            counts=True,
            low=0,
            high=1,
            width=6,
        ),
        lines(
            "Reconciles",
            "How often work on a run was done, and failed and is done again. Some failures, such as a"
            " conflict or an API server that restarts, are normal; a lasting share is not.",
            "ops",
            Query(
                "sum by (outcome) (rate(bitnet_operator_reconciles_total[$__rate_interval]))", "{{outcome}}"
            ),
            low=0,
            width=6,
        ),
        lines(
            "Time of a reconcile",
            "How long the work on one run takes, at most for half of them and for all but one in a hundred."
            " Normal is under a second, more where the API server or a pod answers slowly.",
            "s",
            Query(quantile(0.5, "bitnet_operator_reconcile_seconds"), "half"),
            Query(quantile(0.99, "bitnet_operator_reconcile_seconds"), "99 %"),
            low=0,
            width=6,
        ),
        lines(
            "Wait in the queue",
            "How late the work on a run begins. Normal is under a second; a rise says that the operator has"
            " more runs than it keeps up with, or waits for an API server.",
            "s",
            Query(quantile(0.5, "bitnet_operator_queue_wait_seconds"), "half"),
            Query(quantile(0.99, "bitnet_operator_queue_wait_seconds"), "99 %"),
            low=0,
            width=6,
        ),
        lines(
            "Queue",
            "Runs that are due now and whose work has not begun. Normal is 0, with short peaks.",
            "none",
            Query("sum(bitnet_operator_queue_length)", "runs due"),
            counts=True,
            low=0,
            width=12,
        ),
        lines(
            "Last seen by each replica",
            "Since each replica last saw the cluster. Normal is a saw-tooth: the leader lists all runs"
            " every 300 s, one that stands by reads the lease every 2 s.",
            "s",
            Query(
                "time() - max by (pod, instance) (bitnet_operator_last_seen_timestamp_seconds)",
                "{{pod}} {{instance}}",
            ),
            low=0,
            width=12,
        ),
    ]
