"""Which of a failed job's pods is the cause, and whether trying again may help."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import ExitCode, TerminationReport
from bitnet_operator.observation import Job, JobState, Pod
from bitnet_operator.policies.failure import first_cause


def pod(code: int | None, rank: int = 0, *, disruption: str | None = None, transient: bool = False) -> Pod:
    label = ExitCode(code).label if code in set(ExitCode) else ""
    report = TerminationReport(
        exit_code=code or 0, reason=label, message=f"word of {rank}", transient=transient
    )
    return Pod(
        f"pod-{rank}",
        rank,
        exit_code=code,
        disruption=disruption,
        report=report if code is not None and label else None,
    )


def failed(*pods: Pod) -> Job:
    return Job("small-0", JobState.FAILED, "a pod failed", pods)


@pytest.mark.parametrize(
    ("pods", "reason", "exit_code", "preempted", "retryable"),
    [
        pytest.param([], "PodsLost", None, False, True, id="no pod is left"),
        pytest.param([pod(None), pod(0, 1)], "PodsLost", None, False, True, id="none ended badly"),
        pytest.param([pod(1)], "Crashed", 1, False, True, id="a crash"),
        pytest.param([pod(2)], "BadInput", 2, False, False, id="wrong words"),
        pytest.param([pod(3)], "ModelUnavailable", 3, False, False, id="no model"),
        pytest.param([pod(4)], "TeacherUnavailable", 4, False, False, id="no teacher"),
        pytest.param(
            [pod(4, transient=True)], "TeacherUnavailable", 4, False, True, id="a server that did not answer"
        ),
        pytest.param([pod(7)], "NonFinite", 7, False, False, id="not finite"),
        pytest.param([pod(42)], "Exit42", 42, False, True, id="a code that nobody knows"),
        pytest.param([pod(134)], "Signal6", 134, False, True, id="an abort"),
        pytest.param([pod(137)], "Killed", 137, False, True, id="killed"),
        pytest.param([pod(200), pod(137, 1)], "Killed", 137, False, True, id="the one that was lost"),
        pytest.param([pod(200), pod(143, 1)], "Preempted", 143, True, True, id="the one that was stopped"),
        pytest.param([pod(143), pod(1, 1)], "Crashed", 1, False, True, id="a crash before a stop"),
        pytest.param([pod(200), pod(200, 1)], "PeerLost", 200, False, True, id="nobody says more"),
        pytest.param(
            [pod(1), pod(137, 1, disruption="Evicted: drained")],
            "Preempted",
            137,
            True,
            True,
            id="a drained node before all",
        ),
        pytest.param(
            [pod(None, disruption="Evicted: drained")], "Preempted", None, True, True, id="and no exit code"
        ),
    ],
)
def test_the_cause_is_told_from_its_consequences(
    pods: list[Pod], reason: str, exit_code: int | None, preempted: bool, retryable: bool
) -> None:
    failure = first_cause(failed(*pods))
    said = (failure.reason, failure.exit_code, failure.preempted, failure.retryable)
    assert said == (reason, exit_code, preempted, retryable)


def test_the_pods_own_words_are_the_message() -> None:
    assert first_cause(failed(pod(200), pod(4, 1))).message == "pod-1: word of 1"
    assert first_cause(failed()).message == "a pod failed"
    silent = Pod("pod-0", 0, exit_code=137, message="OOMKilled")
    assert first_cause(failed(silent)).message == "pod-0: OOMKilled"


PODS = st.lists(
    st.tuples(
        st.sampled_from([None, 0, 1, 4, 42, 137, 143, 200]),
        st.sampled_from([None, None, "Evicted: drained"]),
    ),
    max_size=4,
).map(lambda pods: [pod(code, rank, disruption=why) for rank, (code, why) in enumerate(pods)])


@given(data=st.data(), pods=PODS)
def test_the_order_in_which_pods_are_read_decides_nothing(data: st.DataObject, pods: list[Pod]) -> None:
    other = data.draw(st.permutations(pods))
    assert first_cause(failed(*pods)) == first_cause(failed(*other))
