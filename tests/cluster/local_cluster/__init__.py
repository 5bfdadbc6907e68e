"""A one-node Kubernetes of this machine's own processes, for tests that need a real cluster."""

from local_cluster.cluster import LocalCluster
from local_cluster.errors import CommandFailed, ComponentFailed, LocalClusterError, MissingRequirement
from local_cluster.extended_resources import offer_resource
from local_cluster.host_pods import host_pod_template
from local_cluster.host_services import service_to_host
from local_cluster.kubeconfigs import service_account_kubeconfig
from local_cluster.kubectl import Kubectl
from local_cluster.settings import Network, Settings

__all__ = [
    "CommandFailed",
    "ComponentFailed",
    "Kubectl",
    "LocalCluster",
    "LocalClusterError",
    "MissingRequirement",
    "Network",
    "Settings",
    "host_pod_template",
    "offer_resource",
    "service_account_kubeconfig",
    "service_to_host",
]
