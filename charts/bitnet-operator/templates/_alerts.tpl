{{- /* Alerts and monitors: whether the cluster has a kind for them, and the rules as the values want them. */}}

{{- /* Whether an object is made: (dict "root" . "enabled" … "kind" "group/version/Kind"). Empty for no. */}}
{{- define "bitnet-operator.wanted" -}}
{{- if kindIs "bool" .enabled -}}
{{- if .enabled -}}yes{{- end -}}
{{- else if .root.Capabilities.APIVersions.Has .kind -}}yes
{{- end -}}
{{- end -}}

{{- /* The groups of files/alerts.yaml: less the alerts that are disabled, with labels and runbooks of the values.
What is in double braces there is Prometheus' own, and stays: nothing of the file is evaluated. */}}
{{- define "bitnet-operator.alertGroups" -}}
{{- $alerts := .Values.alerts -}}
{{- $known := list -}}
{{- $groups := list -}}
{{- $file := .Files.Get "files/alerts.yaml" -}}
{{- $prefix := printf "%s/" (trimSuffix "/" $alerts.runbookUrl) -}}
{{- range $group := (fromYaml (replace "https://bitnet.training/runbooks/" $prefix $file)).groups -}}
  {{- $rules := list -}}
  {{- range $rule := $group.rules -}}
    {{- with $rule.alert -}}
      {{- $known = append $known . -}}
      {{- if $alerts.labels -}}
        {{- $_ := set $rule "labels" (merge (deepCopy $alerts.labels) (default dict $rule.labels)) -}}
      {{- end -}}
    {{- end -}}
    {{- if not (has (default "" $rule.alert) $alerts.disabled) -}}
      {{- $rules = append $rules $rule -}}
    {{- end -}}
  {{- end -}}
  {{- if $rules -}}
    {{- $groups = append $groups (set $group "rules" $rules) -}}
  {{- end -}}
{{- end -}}
{{- include "bitnet-operator.refuseUnknownAlerts" (list . $known) -}}
{{- toYaml $groups -}}
{{- end -}}

{{- /* Fails where `alerts.disabled` names none of the alerts that there are: (list . $known). */}}
{{- define "bitnet-operator.refuseUnknownAlerts" -}}
{{- $known := last . -}}
{{- range (first .).Values.alerts.disabled -}}
  {{- if not (has . $known) -}}
    {{- fail (printf "alerts.disabled: there is no alert %s; there are %s" . (join ", " $known)) -}}
  {{- end -}}
{{- end -}}
{{- end -}}
