{{/* The release's name with the chart's in it: "llmtrain" for a release of that name. */}}
{{- define "llmtrain.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "llmtrain.coordinator" -}}
{{ include "llmtrain.fullname" . }}-coordinator
{{- end }}

{{- define "llmtrain.tlsSecret" -}}
{{ .Values.coordinator.tlsSecret | default (printf "%s-tls" (include "llmtrain.coordinator" .)) }}
{{- end }}

{{- define "llmtrain.image" -}}
{{ .image.repository }}:{{ .image.tag | default .chart.AppVersion }}
{{- end }}

{{- define "llmtrain.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "llmtrain.labels" -}}
{{ include "llmtrain.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What Pod Security "restricted" asks of a container, and a root filesystem that nobody writes to. */}}
{{- define "llmtrain.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
