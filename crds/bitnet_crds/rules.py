"""CEL rules: what the API server itself checks of a run, by the block each rule belongs to.

They say again, in the API server's language, what `spec` and `plan` check; where the two could disagree
(a batch size factor that is no short decimal) the rule lets pass and `plan` refuses.
"""

from dataclasses import dataclass
from typing import Any

from bitnet_crds.quantities import PERCENTAGE_PATTERN
from bitnet_crds.spec import MAX_NAME_LENGTH, NAME_PATTERN, BitNetRunSpec, Workers


@dataclass(frozen=True)
class Rule:
    """One entry of `x-kubernetes-validations`."""

    rule: str
    """A CEL expression over `self` and, where only changes are judged, `oldSelf`."""
    message: str
    """What is wrong and what to write instead."""
    message_expression: str | None = None
    """CEL for a message that shows the values; `message` stands in where it fails."""
    field_path: str | None = None
    """The field to blame, below the block that the rule belongs to."""

    def to_schema(self) -> dict[str, Any]:
        """The rule as the CustomResourceDefinition has it."""
        entry = {
            "rule": self.rule,
            "message": self.message,
            "messageExpression": self.message_expression,
            "fieldPath": self.field_path,
        }
        return {key: value for key, value in entry.items() if value is not None}


MUTABLE = {"retries", "workers.template"}
"""What may change while a run exists, below spec; everything else would make it another run."""

_DISTILS = "has(p.objectives.teacherLogits) && p.objectives.teacherLogits.weight > 0.0"
_UNTIL = "double({}.until.replace('%', ''))"
_PROCESSES = "(self.workers.gpusPerWorker > 1 ? self.workers.gpusPerWorker : 1)"
_MICRO = "self.workers.microBatchSize"
_RESIZED = f"double({_MICRO}) * self.teacher.batchSizeFactor"
_PERCENTAGES = f"self.all(p, p.until.matches(r'{PERCENTAGE_PATTERN}'))"
_ROUNDED = f"int({_RESIZED} + 0.5)"
_IS_WHOLE = (
    f"({_ROUNDED} > 0 && {_RESIZED} - double({_ROUNDED}) < 0.000001 "
    f"&& {_RESIZED} - double({_ROUNDED}) > -0.000001)"
)
_TOKENS = "quantity(string(self.budget.tokens))"
_STEP = "self.budget.globalBatchSize * self.data.sequenceLength"

_NAME = Rule(
    f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
    f"a run's name begins the names of its pods: write at most {MAX_NAME_LENGTH} lower-case letters, digits "
    "and hyphens in metadata.name, a letter first and no hyphen last",
)
_REVISION = Rule(
    "!has(self.revision) || self.from.startsWith('hf://')",
    "a revision has a meaning for hf:// addresses alone: remove it, or use an hf:// address",
    field_path=".revision",
)
_SOURCE_NAMES = Rule(
    "self.all(s, self.exists_one(t, t.name == s.name))",
    "two sources have the same name: give each source a name of its own",
)
_HELD_OUT = Rule(
    f"!self.matches(r'{PERCENTAGE_PATTERN}') || "
    "double(self.replace('%', '')) > 0.0 && double(self.replace('%', '')) < 100.0",
    "write more than 0% and less than 100%: perplexity is measured on this part of the text, "
    "and the rest is trained on",
)
_SOME_OBJECTIVE = Rule(
    "(has(self.crossEntropy) && self.crossEntropy.weight > 0.0) || "
    "(has(self.teacherLogits) && self.teacherLogits.weight > 0.0)",
    "no objective has a weight above 0: name crossEntropy or teacherLogits with one",
)
_PHASE_NAMES = Rule(
    "self.all(p, self.exists_one(q, q.name == p.name))",
    "two phases have the same name: give each phase a name of its own",
)
_PHASE_ORDER = Rule(
    f"!{_PERCENTAGES} || self.map(p, {_UNTIL.format('p')}).isSorted() && self.all(p, "
    f"{_UNTIL.format('p')} > 0.0 && self.exists_one(q, {_UNTIL.format('q')} == {_UNTIL.format('p')}))",
    "order the phases by `until`, each later than the one before and the first later than 0%",
)
_PHASE_END = Rule(
    f"!{_PERCENTAGES} || {_UNTIL.format('self[size(self) - 1]')} == 100.0",
    "the last phase does not end at 100%: write `until: 100%` there",
    "'the last phase, %s, ends at %s: write `until: 100%%` there'"
    ".format([self[size(self) - 1].name, self[size(self) - 1].until])",
)
_TEACHER_NAMED = Rule(
    f"has(self.teacher) || !self.phases.exists(p, {_DISTILS})",
    "a phase gives teacherLogits weight but no teacher is named: add spec.teacher, or set that weight to 0",
)
_TEACHER_USED = Rule(
    f"!has(self.teacher) || self.phases.exists(p, {_DISTILS})",
    "the teacher would never be used: give teacherLogits a weight above 0 in some phase, "
    "or remove spec.teacher",
    field_path=".teacher",
)
_BATCH = Rule(
    f"self.phases.all(p, {_DISTILS}) || "
    f"self.budget.globalBatchSize % (self.workers.count * {_PROCESSES} * {_MICRO}) == 0",
    "globalBatchSize is no multiple of workers x processes x microBatchSize: make it one",
    "'%d sequences cannot be split over %d workers x %d processes x micro batch %d: write a multiple of %d'"
    f".format([self.budget.globalBatchSize, self.workers.count, {_PROCESSES}, {_MICRO}, "
    f"self.workers.count * {_PROCESSES} * {_MICRO}])",
    ".budget.globalBatchSize",
)
_WHOLE_MICRO_BATCH = Rule(
    f"!has(self.teacher) || {_IS_WHOLE}",
    "microBatchSize x batchSizeFactor is not a whole number of sequences: choose a factor, "
    "or spec.workers.microBatchSize, so that it is",
    field_path=".teacher.batchSizeFactor",
)
_TEACHER_BATCH = Rule(
    f"!has(self.teacher) || !{_IS_WHOLE} || self.budget.globalBatchSize % "
    f"(self.workers.count * {_PROCESSES} * {_ROUNDED}) == 0",
    "with the teacher in memory, globalBatchSize is no multiple of workers x processes x "
    "microBatchSize x batchSizeFactor: make it one",
    "'%d sequences cannot be split over %d workers x %d processes x micro batch %d (with the teacher in "
    "memory): write a multiple of %d'"
    f".format([self.budget.globalBatchSize, self.workers.count, {_PROCESSES}, {_ROUNDED}, "
    f"self.workers.count * {_PROCESSES} * {_ROUNDED}])",
    ".budget.globalBatchSize",
)
_ONE_STEP = Rule(
    f"!isQuantity(string(self.budget.tokens)) || {_TOKENS}.asApproximateFloat() >= double({_STEP})",
    "budget.tokens are less than one step of globalBatchSize x sequenceLength: write more",
    f"'the tokens are less than one step of %d sequences x %d tokens: write at least %d'"
    f".format([self.budget.globalBatchSize, self.data.sequenceLength, {_STEP}])",
    ".budget.tokens",
)
_NOT_TOO_MANY_TOKENS = Rule(
    f"!isQuantity(string(self.budget.tokens)) || {_TOKENS}.compareTo(quantity('1E')) <= 0",
    "more than 1E tokens: write fewer",
    field_path=".budget.tokens",
)


def _immutable() -> list[Rule]:
    """A rule for each field that may not change, taken from the models: a new field is immutable at first."""
    fields = [(info.alias or name, info.is_required()) for name, info in BitNetRunSpec.model_fields.items()]
    fields += [(f"workers.{info.alias or name}", True) for name, info in Workers.model_fields.items()]
    defaults = {info.alias or name: info.default for name, info in BitNetRunSpec.model_fields.items()}
    return [
        Rule(
            f"self.{field} == oldSelf.{field}"
            if required or defaults[field] is not None
            else f"has(self.{field}) == has(oldSelf.{field}) && "
            f"(!has(self.{field}) || self.{field} == oldSelf.{field})",
            f"a run's {field} cannot change once it exists: make a new run",
            field_path=f".{field}",
        )
        for field, required in fields
        if field not in MUTABLE | {"workers"}
    ]


def matching(pattern: str, mend: str, *, is_string: bool) -> Rule:
    """A rule instead of `pattern`, since the API server's own message would show the pattern alone."""
    # `string()` hides a string's maxLength from the server's estimate of the rule's cost.
    return Rule(f"{'self' if is_string else 'string(self)'}.matches(r'{pattern}')", mend)


RULES: dict[str, list[Rule]] = {
    "": [_NAME],
    "spec": [
        _TEACHER_NAMED,
        _TEACHER_USED,
        _BATCH,
        _WHOLE_MICRO_BATCH,
        _TEACHER_BATCH,
        _ONE_STEP,
        _NOT_TOO_MANY_TOKENS,
        *_immutable(),
    ],
    "spec.model": [_REVISION],
    "spec.teacher": [_REVISION],
    "spec.data.sources": [_SOURCE_NAMES],
    "spec.data.heldOut": [_HELD_OUT],
    "spec.phases": [_PHASE_NAMES, _PHASE_ORDER, _PHASE_END],
    "spec.phases[].objectives": [_SOME_OBJECTIVE],
}
"""Every rule, by the block it belongs to."""
