"""How much text of each source a run can come to ask for. Pure."""

import math

from bitnet_crds.plan import Plan
from bitnet_crds.spec import BitNetRunSpec


def sequences_at_most(spec: BitNetRunSpec, plan: Plan) -> dict[str, int]:
    """How many training sequences of each source the run reads at most, by its name; 0 for one never read.

    With fixed shares, a stretch of n sequences has `share * n` of a source, to within the number of sources.
    Where a policy measures the shares, it could be all of them.
    """
    whole = plan.total_steps * plan.global_batch_size
    if spec.data.mixture.policy != "Static":
        return {source.name: whole for source in spec.data.sources}
    most = {source.name: 0 for source in spec.data.sources}
    for phase in plan.phases:
        sequences = (phase.end_step - phase.first_step) * plan.global_batch_size
        weights = sum(phase.mixture.values())
        for name, weight in phase.mixture.items():
            if weight > 0:
                share = math.ceil(weight / weights * sequences) + len(most)
                most[name] += min(sequences, share)
    return most
