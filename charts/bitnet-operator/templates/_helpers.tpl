{{- /* Names, labels and the operator's rights, as the other templates use them. */}}

{{- define "bitnet-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "bitnet-operator.webhookName" -}}
{{- printf "%s-webhook" (include "bitnet-operator.fullname" . | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{- define "bitnet-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "bitnet-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.create is false: name an existing one in serviceAccount.name" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "bitnet-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bitnet-operator.labels" -}}
{{ include "bitnet-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* What the operator does where it trains runs; granted in the cluster, or in each watched namespace. */}}
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
