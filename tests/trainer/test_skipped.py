"""What is told of steps that were left out: words, stretches of sequences, nonfinite.json."""

import math

from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds.protocol import Checkpoint, Fault, TerminationReport
from bitnet_trainer.batch import SequenceId
from bitnet_trainer.skipped import NonFiniteRecord, SkippedStep, not_finite, stretches

IDS = st.lists(st.builds(SequenceId, st.integers(0, 2), st.integers(0, 2), st.integers(0, 30)), max_size=40)


def test_what_was_not_finite_is_named():
    means = [("crossEntropy", 2.0), ("maskedDiffusion", math.inf)]
    assert not_finite(math.inf, math.nan, means) == ("maskedDiffusion", "total", "gradient")
    assert not_finite(2.0, math.nan, means[:1]) == ("gradient",)


def test_sequences_that_follow_each_other_are_one_stretch():
    ids = [SequenceId(0, 0, 9), SequenceId(0, 0, 7), SequenceId(0, 0, 8), SequenceId(0, 0, 3)]
    ids += [SequenceId(2, 1, 0), SequenceId(2, 1, 1), SequenceId(2, 0, 1)]
    assert stretches(ids, ["web", "books", "code"]) == {"web": ("3", "7-9"), "code": ("1", "2:0-1")}


@given(IDS)
def test_stretches_hold_each_sequence_and_no_other(ids):
    found = set()
    for source, some in stretches(ids, "abc").items():
        for each in some:
            epoch, _, counted = each.rpartition(":")
            first, _, last = counted.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            found |= {SequenceId("abc".index(source), int(epoch or 1) - 1, number) for number in numbers}
    assert found == set(ids)


def skipped(step: int, sequences: int = 3) -> SkippedStep:
    return SkippedStep(
        step=step,
        phase="main",
        not_finite=("gradient",),
        sequences={"web": tuple(str(2 * number) for number in range(sequences))},
    )


def test_the_error_names_steps_sequences_and_the_last_good_checkpoint():
    checkpoint = Checkpoint(step=8, uri="file:///runs/a/b/checkpoints/step-00000008")
    error = NonFiniteRecord(steps=(skipped(9), skipped(10)), checkpoint=checkpoint).error(2, 1)
    message = str(error)
    # Steps are counted from 0 here: eight were completed before the first of them.
    assert error.fault == Fault(first_step=8, steps=2)
    assert "2 steps in a row, up to step 10, and health.nonFinite.skipSteps allows 1." in message
    assert f"The last good checkpoint is of step 8, {checkpoint.uri}." in message
    assert "step 9 (gradient not finite; web 0, 2, 4); step 10 (" in message
    assert "There is no checkpoint yet." in str(
        NonFiniteRecord(steps=(skipped(1),), checkpoint=None).error(1, 0)
    )


def test_the_error_fits_a_termination_message_and_the_file_holds_all(tmp_path):
    record = NonFiniteRecord(steps=tuple(skipped(step, 2000) for step in range(1, 5)), checkpoint=None)
    message = str(record.error(4, 3))
    assert "and 1992 more" in message
    assert TerminationReport(exit_code=7, reason="NonFinite", message=message).to_message().count("…") == 0
    record.write(tmp_path)
    assert NonFiniteRecord.model_validate_json((tmp_path / "nonfinite.json").read_text()) == record
