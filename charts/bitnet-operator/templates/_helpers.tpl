{{- /* Names, labels and images, as the other templates use them. */}}

{{- define "bitnet-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if not (regexMatch "^[a-z]" .Release.Name) -}}
{{- fail (printf "the release is called %s, and a Service's name begins with a letter: write fullnameOverride" .Release.Name) -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* The full name and a word after it, in 63 characters: (list . "word"). */}}
{{- define "bitnet-operator.named" -}}
{{- $word := last . -}}
{{- $room := sub 62 (len $word) | int -}}
{{- printf "%s-%s" (include "bitnet-operator.fullname" (first .) | trunc $room | trimSuffix "-") $word -}}
{{- end -}}

{{- define "bitnet-operator.webhookName" -}}
{{- include "bitnet-operator.named" (list . "webhook") -}}
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
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "bitnet-operator.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "bitnet-operator.labels" -}}
{{ include "bitnet-operator.selectorLabels" . }}
{{ include "bitnet-operator.commonLabels" . }}
{{- end -}}

{{- /* An image's address, of (list . .Values.image). */}}
{{- define "bitnet-operator.image" -}}
{{- $image := last . -}}
{{- $tag := default (first .).Chart.AppVersion $image.tag -}}
{{- printf "%s:%s" $image.repository $tag -}}
{{- with $image.digest -}}@{{ . }}{{- end -}}
{{- end -}}
