{{- /* What of the operator's pods is long: probes, and the security that `restricted` asks for. */}}

{{- define "bitnet-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "bitnet-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* A standby is as ready as the leader: it answers admission, and may lead at once. */}}
{{- define "bitnet-operator.probes" -}}
# It has started once it serves what Services lead to: a certificate may have to be made first.
startupProbe:
  {{- if .Values.webhook.enabled }}
  tcpSocket:
    port: webhook
  {{- else }}
  httpGet:
    path: /healthz
    port: health
  {{- end }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 60
# Fails where the cluster was not seen for 15 minutes, also for a reason that kopf does not notice.
livenessProbe:
  httpGet:
    path: /healthz
    port: health
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  httpGet:
    path: /healthz
    port: health
  periodSeconds: 5
  timeoutSeconds: 5
{{- if .Values.webhook.enabled }}
lifecycle:
  preStop:
    # Until no API server asks this replica any more.
    sleep:
      seconds: 5
{{- end }}
{{- end -}}

{{- /* Not the operator's own labels: no Service may lead to the test's pod. */}}
{{- define "bitnet-operator.testLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{ include "bitnet-operator.commonLabels" . }}
{{- end -}}

{{- define "bitnet-operator.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
