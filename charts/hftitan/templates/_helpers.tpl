{{- define "hftitan.fullname" -}}
{{- .Values.fullnameOverride | default (printf "%s-operator" .Release.Name) -}}
{{- end -}}

{{- define "hftitan.account" -}}
{{- .Values.serviceAccount.name | default (include "hftitan.fullname" .) -}}
{{- end -}}

{{/* Name of cluster-scoped objects. The namespace keeps releases in two namespaces apart. */}}
{{- define "hftitan.globalName" -}}
{{- printf "%s:%s" .Release.Namespace (include "hftitan.fullname" .) -}}
{{- end -}}

{{- define "hftitan.selector" -}}
app.kubernetes.io/name: hftitan
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hftitan.labels" -}}
{{ include "hftitan.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Selects the pods of all jobs. */}}
{{- define "hftitan.jobSelector" -}}
app.kubernetes.io/name: hftitan
app.kubernetes.io/component: trainer
{{- end -}}

{{- define "hftitan.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* `from` of a NetworkPolicy: namespaces that may read metrics. Empty: all. */}}
{{- define "hftitan.metricsFrom" -}}
{{- with .Values.networkPolicy.metricsFrom }}
- namespaceSelector:
    matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
{{- end }}
{{- end -}}

{{/* The defaults for jobs without unset fields, in the format of the operator's file. Empty: no default is set. */}}
{{- define "hftitan.jobDefaults" -}}
{{- $set := dict -}}
{{- range $field, $value := .Values.jobDefaults -}}
{{- if $value -}}{{- $_ := set $set $field $value -}}{{- end -}}
{{- end -}}
{{- if $set -}}{{- toYaml $set -}}{{- end -}}
{{- end -}}
