{{/* The release's name with the chart's in it: "llmtrain" for a release of that name. */}}
{{- define "llmtrain.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "llmtrain.coordinator" -}}
{{ include "llmtrain.fullname" . }}-coordinator
{{- end }}

{{- define "llmtrain.metrics" -}}
{{ include "llmtrain.fullname" . }}-metrics
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

{{/* Two ways to whoever leads: one address for all replicas, which follows them fastest, and the replicas' own. */}}
{{- define "llmtrain.coordinatorUrls" -}}
{{- $namespace := .Release.Namespace }}
{{- $port := .Values.coordinator.port }}
{{- $urls := list }}
{{- range list (include "llmtrain.coordinator" .) (include "llmtrain.replicas" .) }}
{{- $urls = append $urls (printf "wss://%s.%s.svc:%v" . $namespace $port) }}
{{- end }}
{{- join "," $urls }}
{{- end }}

{{- define "llmtrain.replicas" -}}
{{ printf "%s-replicas" (include "llmtrain.coordinator" . | trunc 54 | trimSuffix "-") }}
{{- end }}

{{/* The egress rules that the members of every job get, as the operator takes them: the coordinator, DNS, the extra. */}}
{{- define "llmtrain.memberEgress" -}}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .Release.Namespace }}}}
      podSelector:
        matchLabels: {{- include "llmtrain.selector" . | nindent 10 }}
  ports:
    - {protocol: TCP, port: {{ .Values.coordinator.port }}}
{{- with .Values.networkPolicy.dns }}
- to: {{- toYaml .to | nindent 4 }}
  ports:
    {{- range .ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- with .Values.networkPolicy.egress }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Monitors of the Prometheus operator, where it has such a kind; given the kind and the chart's context. */}}
{{- define "llmtrain.monitors" -}}
{{- $known := .context.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) }}
{{- if or (eq .context.Values.metrics.monitors "always") (and $known (eq .context.Values.metrics.monitors "auto")) }}yes{{ end }}
{{- end }}

{{/* What Pod Security "restricted" asks of a container, and a root filesystem that nobody writes to. */}}
{{- define "llmtrain.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
