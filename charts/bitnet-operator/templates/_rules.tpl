{{- /* What the operator may do where it trains runs; granted in the cluster, or in each watched namespace. */}}
{{- define "bitnet-operator.rules" -}}
- apiGroups: [bitnet.training]
  resources: [bitnetruns]
  # patch: the finalizer of a run whose checkpoints go with it.
  verbs: [get, list, watch, patch]
- apiGroups: [bitnet.training]
  resources: [bitnetruns/status]
  verbs: [patch]
# For ownerReferences with blockOwnerDeletion, where the cluster enforces who may set them.
- apiGroups: [bitnet.training]
  resources: [bitnetruns/finalizers]
  verbs: [update]
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
# A pod that trains is told of a change by an annotation.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}
