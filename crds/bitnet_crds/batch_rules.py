"""CEL rules of how a step is split: what `shapes` checks of batches, micro batches and processes."""

from bitnet_crds.cel import Rule, any_weighted
from bitnet_crds.objectives import TEACHER_OBJECTIVES

DISTILS = any_weighted("p.objectives", sorted(TEACHER_OBJECTIVES))
"""CEL: whether phase `p` gives an objective weight that asks a teacher."""
_PROCESSES = "(self.workers.gpusPerWorker > 1 ? self.workers.gpusPerWorker : 1)"
# The schema lets one word pass, and comparing it would cost the API server more than asking for its type.
_IS_AUTO = "type(self.workers.microBatchSize) == string"
# A micro batch of 1 stands in for one that is Auto: the processes still have to share the step.
_MICRO = "(type(self.workers.microBatchSize) == int ? int(self.workers.microBatchSize) : 1)"
_FACTOR = "(has(self.teacher.batchSizeFactor) ? self.teacher.batchSizeFactor : 0.5)"
_RESIZED = f"double({_MICRO}) * {_FACTOR}"
_ROUNDED = f"int({_RESIZED} + 0.5)"
_IS_WHOLE = (
    f"({_ROUNDED} > 0 && {_RESIZED} - double({_ROUNDED}) < 0.000001 "
    f"&& {_RESIZED} - double({_ROUNDED}) > -0.000001)"
)
_OWN_WORKERS = f"self.phases.all(p, !{DISTILS} || has(p.workers))"

_OWN_MICRO = "has(p.workers) && has(p.workers.microBatchSize) ? type(p.workers.microBatchSize) == string"
_OWN_GPUS = "has(p.workers) && has(p.workers.gpusPerWorker) ? p.workers.gpusPerWorker"
_AUTO_ON_GPUS = Rule(
    f"self.phases.all(p, !({_OWN_MICRO} : {_IS_AUTO}) || ({_OWN_GPUS} : self.workers.gpusPerWorker) > 0)",
    "microBatchSize: Auto measures a GPU's memory, and a phase has none (gpusPerWorker 0): write a number, "
    "or give it GPUs",
    field_path=".workers.microBatchSize",
)
_NO_FACTOR_OF_AUTO = Rule(
    f"!has(self.teacher) || !has(self.teacher.batchSizeFactor) || !({_IS_AUTO})",
    "the micro batch is measured with the teacher in memory (Auto), so there is nothing to multiply: remove "
    "it, or write a number as spec.workers.microBatchSize",
    field_path=".teacher.batchSizeFactor",
)
_BATCH = Rule(
    # In a phase with a transition the teacher may still be there, and one may have workers of its own; `plan`
    # knows.
    f"self.phases.all(p, {DISTILS} || has(p.transition) || has(p.workers)) || "
    f"self.budget.globalBatchSize % (self.workers.count * {_PROCESSES} * {_MICRO}) == 0",
    "globalBatchSize is no multiple of workers x processes x microBatchSize: make it one",
    "'%d sequences cannot be split over %d workers x %d processes x micro batch %d: write a multiple of %d'"
    f".format([self.budget.globalBatchSize, self.workers.count, {_PROCESSES}, {_MICRO}, "
    f"self.workers.count * {_PROCESSES} * {_MICRO}])",
    ".budget.globalBatchSize",
)
_WHOLE_MICRO_BATCH = Rule(
    f"!has(self.teacher) || {_IS_AUTO} || {_OWN_WORKERS} || {_IS_WHOLE}",
    "microBatchSize x batchSizeFactor is not a whole number of sequences: choose a factor, "
    "or spec.workers.microBatchSize, so that it is",
    field_path=".teacher.batchSizeFactor",
)
_TEACHER_BATCH = Rule(
    f"!has(self.teacher) || {_IS_AUTO} || {_OWN_WORKERS} || !{_IS_WHOLE} || self.budget.globalBatchSize % "
    f"(self.workers.count * {_PROCESSES} * {_ROUNDED}) == 0",
    "with the teacher in memory, globalBatchSize is no multiple of workers x processes x "
    "microBatchSize x batchSizeFactor: make it one",
    "'%d sequences cannot be split over %d workers x %d processes x micro batch %d (with the teacher in "
    "memory): write a multiple of %d'"
    f".format([self.budget.globalBatchSize, self.workers.count, {_PROCESSES}, {_ROUNDED}, "
    f"self.workers.count * {_PROCESSES} * {_ROUNDED}])",
    ".budget.globalBatchSize",
)

BATCH_RULES = [_BATCH, _WHOLE_MICRO_BATCH, _TEACHER_BATCH, _AUTO_ON_GPUS, _NO_FACTOR_OF_AUTO]
"""Those that belong to the block `spec`."""
