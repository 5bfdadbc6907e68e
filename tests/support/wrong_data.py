"""Runs whose text or its mixture is refused, and the words in which it is."""

from written_runs import CLASSIFIER
from wrong import Wrong

WRONG_DATA: dict[str, Wrong] = {
    "text of nowhere": Wrong(
        {"spec.data.sources.0.uri": "s3://bucket/text"},
        "spec.data.sources[0].uri",
        "'s3://bucket/text' is not an address that this field takes",
        "pvc://claim/path",
        "spec.data.sources[0].uri",
        "write file:///absolute/path or pvc://claim/path or gs://bucket/path or hf://organisation/name",
    ),
    **{
        f"a {key} of a file": Wrong(
            {f"spec.data.sources.0.{key}": "main"},
            f"spec.data.sources[0].{key}",
            f"{key} 'main' has no meaning for 'pvc://",
            "Remove it, or use an hf:// address",
            f"spec.data.sources[0].{key}",
            "remove it, or use an hf:// address",
        )
        for key in ("subset", "split", "revision")
    },
    "checkpoints among the text": Wrong(
        {"spec.data.sources.0.uri": "gs://bucket/a", "spec.checkpoint.uri": "gs://bucket/a/runs"},
        "spec.checkpoint.uri",
        "'gs://bucket/a/runs' is in the folder of source",
        "Give another address",
        "spec.checkpoint.uri",
        "give it another checkpoint.uri",
    ),
    "a field of a text file": Wrong(
        {"spec.data.sources.0.uri": "file:///books/a.txt.gz", "spec.data.sources.0.field": "body"},
        "spec.data.sources[0].field",
        "field 'body' has no meaning for a text file",
        "Remove it",
        "spec.data.sources[0].field",
        "a text file, which is one document: remove it",
    ),
    "settings of a static mixture": Wrong(
        {"spec.data.mixture": {"everySteps": 5}},
        "spec.data.mixture.everySteps",
        "no meaning with policy Static",
        "policy: Influence",
        "spec.data.mixture",
        "write `policy: Influence`",
    ),
    "an unknown target": Wrong(
        {"spec.data.mixture": {"policy": "Influence", "target": "books"}},
        "spec.data.mixture.target",
        "'books'",
        "web, code",
        "spec.data.mixture.target",
        "name one of spec.data.sources",
    ),
    "a target of the bandit": Wrong(
        {"spec.data.mixture": {"policy": "Bandit", "target": "web"}},
        "spec.data.mixture.target",
        "no meaning with policy Bandit",
        "policy: Influence",
        "spec.data.mixture.target",
        "remove it, or write `policy: Influence`",
    ),
    "one source that is to have influence": Wrong(
        {
            "spec.data.mixture": {"policy": "Influence"},
            "spec.data.sources": [{"name": "web", "uri": "file:///text"}],
        },
        "spec.data.mixture.policy",
        "'web' is the only source",
        "policy: Static",
        "spec.data.mixture.policy",
        "add a source, or write `policy: Static`",
    ),
    "two who decide the mixture": Wrong(
        {"spec.data.mixture": {"policy": "Influence"}, "spec.phases.1.mixture": {"web": 1}},
        "spec.phases[1].mixture",
        "follow the policy Influence",
        "Remove it",
        "spec.data.mixture.policy",
        "cannot follow a phase's own mixture too",
    ),
    "a mixture of unknown text": Wrong(
        {"spec.phases.1.mixture": {"web": 1, "books": 1}},
        "spec.phases[1].mixture",
        "'books'",
        "web, code",
        "spec.phases",
        "names no source of spec.data",
    ),
    "a mixture of nothing": Wrong(
        {"spec.phases.1.mixture": {"web": 0}},
        "spec.phases[1].mixture",
        "'main' gives no source any weight",
        "such as web: 1",
        "spec.phases[1].mixture",
        "give one a weight above 0",
    ),
    "a classifier with documents apart": Wrong(
        {**CLASSIFIER, "spec.data.documents": "Separate"},
        "spec.data.documents",
        "no documents to be separated",
        "documents: Joined",
        "spec.data.documents",
        "write `documents: Joined`",
    ),
    "a classifier that follows influence": Wrong(
        {**CLASSIFIER, "spec.data.mixture": {"policy": "Influence"}},
        "spec.data.mixture.policy",
        "measured by next tokens",
        "policy: Static",
        "spec.data.mixture.policy",
        "write `policy: Static`",
    ),
}
