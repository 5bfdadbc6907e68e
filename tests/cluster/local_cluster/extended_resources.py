"""Makes the node offer devices it does not have, so that pods which ask for them are scheduled."""

from __future__ import annotations

import json

from local_cluster.kubectl import Kubectl


def offer_resource(kubectl: Kubectl, name: str, amount: int, node: str = "node-0") -> None:
    """Sets the node's capacity of an extended resource, e.g. `nvidia.com/gpu`; 0 takes it back.

    Containers that ask for it start, but find no device.
    """
    patch = json.dumps({"status": {"capacity": {name: str(amount)}, "allocatable": {name: str(amount)}}})
    kubectl("patch", "node", node, "--subresource=status", "--type=merge", "--patch", patch)
