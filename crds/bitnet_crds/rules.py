"""CEL rules: what the API server itself checks of a run, by the block each rule belongs to.

They say again, in the API server's language, what `spec` and `plan` check. Where the two could disagree (a
batch size factor that is no short decimal, a teacher that stays while it fades out) or a rule would have to
look at two phases side by side (a weight that changes its meaning), the server lets pass and they refuse.
"""

from bitnet_crds.agreement import NEXT_TOKEN_OBJECTIVES
from bitnet_crds.batch_rules import BATCH_RULES, DISTILS
from bitnet_crds.cel import Rule, any_weighted
from bitnet_crds.changes import immutable
from bitnet_crds.data import HUB_KEYS, TEXT_SUFFIXES
from bitnet_crds.objectives import Objectives
from bitnet_crds.quantities import PERCENTAGE_PATTERN
from bitnet_crds.spec import MAX_NAME_LENGTH, NAME_PATTERN
from bitnet_crds.tuning import TUNING_RULES

_OBJECTIVES = [info.alias or name for name, info in Objectives.model_fields.items()]
_BALANCED = [name for name in _OBJECTIVES if name not in ("crossEntropy", "classification")]
_CLASSIFIES = any_weighted("p.objectives", ["classification"])
_ASKS_TEACHER_LOGITS = any_weighted("p.objectives", ["teacherLogits"])
_UNTIL = "double({}.until.replace('%', ''))"
_PERCENTAGES = f"self.all(p, p.until.matches(r'{PERCENTAGE_PATTERN}'))"
_TOKENS = "quantity(string(self.budget.tokens))"
_STEP = "self.budget.globalBatchSize * self.data.sequenceLength"

_NAME = Rule(
    f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
    f"a run's name begins the names of its pods: write at most {MAX_NAME_LENGTH} lower-case letters, digits "
    "and hyphens in metadata.name, a letter first and no hyphen last",
)
_REVISION = Rule(
    "!has(self.revision) || has(self.from) && self.from.startsWith('hf://')",
    "a revision has a meaning for hf:// addresses alone: remove it, or use an hf:// address",
    field_path=".revision",
)
_TEXT_FIELD = Rule(
    f"self.field == 'text' || !({' || '.join(f'self.uri.endsWith({end!r})' for end in TEXT_SUFFIXES)})",
    "a field has no meaning for a text file, which is one document: remove it",
    field_path=".field",
)
_HUB_KEYS = [
    Rule(
        f"!has(self.{key}) || self.uri.startsWith('hf://')",
        f"{key} has a meaning for hf:// addresses alone: remove it, or use an hf:// address",
        field_path=f".{key}",
    )
    for key in HUB_KEYS
]
_SOURCE_NAMES = Rule(
    "self.all(s, self.exists_one(t, t.name == s.name))",
    "two sources have the same name: give each source a name of its own",
)
_HELD_OUT = Rule(
    f"!self.matches(r'{PERCENTAGE_PATTERN}') || "
    "double(self.replace('%', '')) > 0.0 && double(self.replace('%', '')) < 100.0",
    "write more than 0% and less than 100%: the model is measured on this part of the text, "
    "and the rest is trained on",
)
_AT_MOST_ALL = Rule(
    f"!self.matches(r'{PERCENTAGE_PATTERN}') || double(self.replace('%', '')) <= 100.0",
    "more than 100%: write at most that",
)
_ORIGIN = Rule(
    "has(self.from) != has(self.preset)",
    "a student is either pretrained or made from a preset: write one of `from` and `preset`",
)
_TOKENIZER = Rule(
    "has(self.preset) == has(self.tokenizer)",
    "a preset needs a tokenizer, and a pretrained model brings its own: write `tokenizer` with `preset`, "
    "and there alone",
    field_path=".tokenizer",
)
_STATIC = Rule(
    "self.policy != 'Static' || !has(self.everySteps) && !has(self.smoothing) && !has(self.target)",
    "everySteps, smoothing and target have no meaning with policy Static: remove them, or write "
    "`policy: Influence`",
)
_NO_TARGET = Rule(
    "self.policy != 'Bandit' || !has(self.target)",
    "target has no meaning with policy Bandit, which goes by each source's own text: remove it, or write "
    "`policy: Influence`",
    field_path=".target",
)
_TARGET = Rule(
    "!has(self.mixture.target) || self.sources.exists(s, s.name == self.mixture.target)",
    "no source has that name: name one of spec.data.sources",
    field_path=".mixture.target",
)
_MEASURED = Rule(
    "self.mixture.policy == 'Static' || size(self.sources) > 1",
    "the only source has nothing to be weighed against: add a source, or write `policy: Static`",
    field_path=".mixture.policy",
)
_SOME_OBJECTIVE = Rule(
    any_weighted("self", _OBJECTIVES),
    "no objective has a weight above 0: name one with a weight, such as crossEntropy: {weight: 1}",
)
_RATIO = Rule(
    f"{any_weighted('self', ['crossEntropy'])} || !("
    + " || ".join(f"has(self.{name}) && self.{name}.weighting == 'GradientRatio'" for name in _BALANCED)
    + ")",
    "GradientRatio weighs an objective against crossEntropy's gradient, and crossEntropy has no weight here: "
    "give it one, or write `weighting: Fixed`",
)
_MASKED_INPUT = Rule(
    "!has(self.teacherLogits) || self.teacherLogits.input != 'Masked' || has(self.maskedDiffusion)",
    "teacherLogits compares masked tokens, and the phase names no maskedDiffusion to mask them: name it (its "
    "weight may be 0), or write `input: Clean`",
    field_path=".teacherLogits.input",
)
_TAIL = Rule(
    "!has(self.tail) || has(self.topK)",
    "a tail has no meaning without topK, since the whole vocabulary is compared: add topK, or remove it",
    field_path=".tail",
)
_LAYERS = Rule(
    "!has(self.layers) || !has(self.layerWeights)",
    "layers has no effect beside layerWeights: remove one of the two",
    field_path=".layers",
)
_LAYER_WEIGHTS = Rule(
    "!has(self.layerWeights) || self.layerWeights.exists(w, w > 0.0)",
    "layerWeights are all 0: give some layer a weight above 0",
    field_path=".layerWeights",
)
_PHASE_MIXTURE = Rule(
    "self.exists(name, self[name] > 0.0)",
    "no source has any weight in this phase: give one a weight above 0",
)
_FIRST_PHASE = Rule(
    "!has(self[0].transition)",
    "the first phase has none before it to come from: remove its transition",
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
    f"has(self.teacher) || !self.phases.exists(p, {DISTILS})",
    "a phase gives an objective weight that asks a teacher, but none is named: add spec.teacher, or set that "
    "weight to 0",
)
_TEACHER_USED = Rule(
    f"!has(self.teacher) || self.phases.exists(p, {DISTILS})",
    "the teacher would never be used: give an objective that asks it a weight above 0 "
    "in some phase, or remove spec.teacher",
    field_path=".teacher",
)
_CACHE = Rule(
    "!has(self.teacher) || !self.teacher.cacheLogits || "
    f"self.phases.exists(p, {_ASKS_TEACHER_LOGITS}) && "
    f"self.phases.all(p, !{_ASKS_TEACHER_LOGITS} || has(p.objectives.teacherLogits.topK))",
    "only a teacher's top K logits are kept: give teacherLogits a topK wherever it has weight, or remove "
    "cacheLogits",
    field_path=".teacher.cacheLogits",
)
_NO_OWN_TEXT = Rule(
    "!self.data.sources.exists(s, s.uri.startsWith('gs://') && "
    "(self.checkpoint.uri + '/').startsWith(s.uri.endsWith('/') ? s.uri : s.uri + '/'))",
    "the run would write into a folder of its own text, and could not go on with other text than it began "
    "with: give it another checkpoint.uri",
    field_path=".checkpoint.uri",
)
_SOURCES_OF_A_PHASE = Rule(
    "self.phases.all(p, !has(p.mixture) || p.mixture.all(name, self.data.sources.exists(s, s.name == name)))",
    "a phase's mixture names no source of spec.data: name those there",
    field_path=".phases",
)
_ONE_MIXTURE = Rule(
    "self.data.mixture.policy == 'Static' || !self.phases.exists(p, has(p.mixture))",
    "the shares follow what is measured, and cannot follow a phase's own mixture too: remove that, or "
    "write `policy: Static`",
    field_path=".data.mixture.policy",
)
_LABELS = Rule(
    f"has(self.classification) || !self.phases.exists(p, {_CLASSIFIES})",
    "a phase trains a classifier, and there are no labels: add spec.classification, or set that weight to 0",
)
_CLASSIFIER = Rule(
    f"!has(self.classification) || self.phases.exists(p, {_CLASSIFIES})",
    "the classifier's head would never learn: give the objective `classification` a weight above 0 in some "
    "phase, or remove spec.classification",
    field_path=".classification",
)
_NO_NEXT_TOKEN = Rule(
    "!has(self.classification) || "
    f"!self.phases.exists(p, {any_weighted('p.objectives', sorted(NEXT_TOKEN_OBJECTIVES))})",
    "a classifier predicts labels and no next token: remove crossEntropy, maskedDiffusion and teacherLogits, "
    "or spec.classification",
    field_path=".classification",
)
_LABELLED_TEXT = Rule(
    "!has(self.classification) || self.data.mixture.policy == 'Static'",
    "sources are measured by next tokens, which a classifier does not predict: write `policy: Static`",
    field_path=".data.mixture.policy",
)
_LABELLED_DOCUMENTS = Rule(
    "!has(self.classification) || self.data.documents == 'Joined'",
    "each labelled text is a sequence of its own, so there are no documents to be separated: write "
    "`documents: Joined`",
    field_path=".data.documents",
)
_PRESET = Rule(
    "!has(self.model.preset) || self.quantization.subLN == 'None'",
    "a preset has a SubLN of its own before the output projections: write `subLN: None`",
    field_path=".quantization.subLN",
)
_ADAMW = Rule(
    "self.name != 'AdamW' || "
    "!has(self.muonLearningRate) && !has(self.clippingThreshold) && !has(self.clippingAlpha)",
    "muonLearningRate, clippingThreshold and clippingAlpha have no meaning with AdamW: remove them, or write "
    "`name: MuonClip`",
)
_SCHEDULE = Rule(
    "self.name == 'WarmupStableDecay' || !has(self.decayFraction) && !has(self.decayCurve)",
    "decayFraction and decayCurve have no meaning with Cosine and Linear, which fall from the warmup to the "
    "run's end: remove them, or write `name: WarmupStableDecay`",
)
_MUON = Rule(
    "self.optimizer.name != 'MuonClip' || !has(self.quantization.lowRankCorrection)",
    "beside a low-rank correction the matrices of the decoder layers are frozen, and Muon has nothing to "
    "move: write `name: AdamW`, or remove lowRankCorrection",
    field_path=".optimizer.name",
)
_STOCK = Rule(
    "!self.export.formats.exists(f, f.startsWith('HuggingFace')) || "
    "self.quantization.weights == 'AbsMean' && !has(self.quantization.lowRankCorrection) && "
    "!(has(self.classification) && (has(self.model.preset) || "
    "self.quantization.subLN == 'OutputProjections'))",
    "stock transformers runs neither `weights: Haar` nor a lowRankCorrection nor a classifier made from a "
    "preset or with `subLN: OutputProjections`, and HuggingFace is for that: write `formats: [Packed]`, or "
    "`formats: []`",
    field_path=".export.formats",
)
_LLAMA_CPP = Rule(
    "!self.export.formats.exists(f, f.startsWith('GGUF')) || "
    "self.quantization.subLN == 'None' && !has(self.quantization.lowRankCorrection) && "
    "!has(self.classification) && !has(self.model.preset)",
    "llama.cpp runs neither subLN nor a lowRankCorrection nor a classifier nor a preset, and GGUF is for "
    "that: write `formats: [Packed]`, or `formats: []`",
    field_path=".export.formats",
)
_TERNARY_GGUF = Rule(
    "!self.export.formats.exists(f, f.startsWith('GGUF-TQ')) || self.quantization.weights == 'AbsMean'",
    "`weights: Haar` multiplies by weights that are not ternary: write GGUF-F16 in place of GGUF-TQ2_0 and "
    "GGUF-TQ1_0, or `formats: [Packed]`",
    field_path=".export.formats",
)
_SOME_WORKERS = Rule(
    "has(self.count) || has(self.gpusPerWorker) || has(self.microBatchSize) || has(self.template)",
    "it changes nothing: name count, gpusPerWorker, microBatchSize or template, or remove it",
)
_PLATEAU_WHERE_FLAT = Rule(
    "!has(self.health.plateau) || self.schedule.name == 'WarmupStableDecay'",
    "a plateau is watched for while the learning rate holds, and with Cosine and Linear it never does: write "
    "`name: WarmupStableDecay`, or remove it",
    field_path=".health.plateau",
)
_NEXT_PHASE = Rule(
    "!has(self.health.plateau) || self.health.plateau.action != 'NextPhase' || size(self.phases) > 1",
    "there is one phase, and none comes next: write `action: Stop`, or `action: Alert`",
    field_path=".health.plateau.action",
)
_SOME_WINDOW = Rule(
    "!isQuantity(string(self.windowTokens)) || "
    "quantity(string(self.windowTokens)).asApproximateFloat() > 0.0 && "
    "quantity(string(self.windowTokens)).compareTo(quantity('1E')) <= 0",
    "a window of 0 tokens, or of more than 1E, shows nothing: write some, such as 50M",
    field_path=".windowTokens",
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


RULES: dict[str, list[Rule]] = {
    "": [_NAME],
    "spec": [
        _TEACHER_NAMED,
        _TEACHER_USED,
        *TUNING_RULES,
        _CACHE,
        _SOURCES_OF_A_PHASE,
        _NO_OWN_TEXT,
        _ONE_MIXTURE,
        _LABELS,
        _CLASSIFIER,
        _NO_NEXT_TOKEN,
        _LABELLED_TEXT,
        _LABELLED_DOCUMENTS,
        _PRESET,
        _MUON,
        _PLATEAU_WHERE_FLAT,
        _NEXT_PHASE,
        _STOCK,
        _LLAMA_CPP,
        _TERNARY_GGUF,
        *BATCH_RULES,
        _ONE_STEP,
        _NOT_TOO_MANY_TOKENS,
        *immutable(),
    ],
    "spec.model": [_ORIGIN, _TOKENIZER, _REVISION],
    "spec.teacher": [_REVISION],
    "spec.optimizer": [_ADAMW],
    "spec.schedule": [_SCHEDULE],
    "spec.data": [_TARGET, _MEASURED],
    "spec.data.sources": [_SOURCE_NAMES],
    "spec.data.sources[]": [_TEXT_FIELD, *_HUB_KEYS],
    "spec.data.mixture": [_STATIC, _NO_TARGET],
    "spec.data.heldOut": [_HELD_OUT],
    "spec.data.corruptShare": [_AT_MOST_ALL],
    "spec.phases": [_PHASE_NAMES, _PHASE_ORDER, _PHASE_END, _FIRST_PHASE],
    "spec.health.plateau": [_SOME_WINDOW],
    "spec.health.plateau.minImprovement": [_AT_MOST_ALL],
    "spec.phases[].workers": [_SOME_WORKERS],
    "spec.phases[].mixture": [_PHASE_MIXTURE],
    "spec.phases[].objectives": [_SOME_OBJECTIVE, _RATIO, _MASKED_INPUT],
    "spec.phases[].objectives.teacherLogits": [_TAIL],
    "spec.phases[].objectives.hiddenStates": [_LAYERS, _LAYER_WEIGHTS],
}
"""Every rule, by the block it belongs to."""
