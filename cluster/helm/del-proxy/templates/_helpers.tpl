{{- define "del-proxy.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "del-proxy.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: del-proxy
{{- end }}

{{- define "del-proxy.labels" -}}
{{ include "del-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "del-proxy.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "del-proxy.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "del-proxy.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Arguments of delctl proxy: (dict "context" $ "host" "0.0.0.0"). */}}
{{- define "del-proxy.arguments" -}}
{{- $values := .context.Values }}
{{- $found := list "delctl" "proxy" "--host" .host "--port" (toString $values.service.port) }}
{{- $found = concat $found (list "--server" $values.server.url "--grace" (toString $values.drainSeconds)) }}
{{- if $values.server.allowHttp }}{{ $found = append $found "--allow-http" }}{{ end }}
{{- with $values.trust.fingerprint }}{{ $found = concat $found (list "--fingerprint" .) }}{{ end }}
{{- range $values.trust.trustedKeys }}{{ $found = concat $found (list "--trusted-key" .) }}{{ end }}
{{- with $values.privacy }}
{{- $found = concat $found (list "--private" .private) }}
{{- range .detectors }}{{ $found = concat $found (list "--detector" .) }}{{ end }}
{{- if .surrogates }}{{ $found = append $found "--surrogates" }}{{ end }}
{{- end }}
{{- $found = concat $found (list "--tool-choice" $values.toolChoice) }}
{{- with $values.policy.maxEpsilonPerToken }}{{ $found = concat $found (list "--max-epsilon-per-token" (toString .)) }}{{ end }}
{{- with $values.policy.maxEpsilonPerPrompt }}{{ $found = concat $found (list "--max-epsilon-per-prompt" (toString .)) }}{{ end }}
{{- with $values.ledger }}
{{- if .enabled }}
{{- $found = concat $found (list "--budget-epsilon" (toString .budgetEpsilon) "--budget-days" (toString .budgetDays)) }}
{{- end }}
{{- end }}
{{- concat $found $values.extraArgs | toJson }}
{{- end }}

{{/* Secrets are files, which no description of the pod shows. If one is missing, nothing starts. */}}
{{- define "del-proxy.script" -}}
{{- if .key }}DEL_PROXY_KEY="$(cat /etc/del-proxy/client-key)"; export DEL_PROXY_KEY; {{ end -}}
{{- if .context.Values.server.apiKeySecret }}DEL_API_KEY="$(cat /etc/del-proxy/api-key)"; export DEL_API_KEY; {{ end -}}
{{- if .context.Values.ledger.enabled }}ledger="$(cat /etc/del-proxy/ledger-url)"; set -- "$@" --ledger "$ledger"; {{ end -}}
exec "$@"
{{- end }}

{{/* The container as a sidecar: (include "del-proxy.container" .Subcharts "del-proxy"). It listens on loopback. */}}
{{- define "del-proxy.container" -}}
{{- include "del-proxy.anyContainer" (dict "context" . "host" "127.0.0.1" "key" false) }}
{{- end }}

{{- define "del-proxy.anyContainer" -}}
name: del-proxy
image: {{ include "del-proxy.image" .context | quote }}
imagePullPolicy: {{ .context.Values.image.pullPolicy }}
command: [sh, -ec, {{ include "del-proxy.script" . | toJson }}, del-proxy]
args: {{ include "del-proxy.arguments" . }}
ports:
  - {name: openai, containerPort: {{ .context.Values.service.port }}}
env:
  - {name: HOME, value: /tmp}
  - {name: DEL_CACHE_DIR, value: /tmp/cache}
securityContext:
  {{- include "del-proxy.containerSecurity" .context | nindent 2 }}
resources:
  {{- toYaml .context.Values.resources | nindent 2 }}
{{- /* A sidecar listens on loopback, which only a command inside the pod reaches. */}}
{{- $url := printf "http://127.0.0.1:%v" .context.Values.service.port }}
livenessProbe:
  {{- if .key }}
  httpGet: {path: /healthz, port: openai}
  {{- else }}
  exec: {command: [python3, /usr/local/lib/del-serve/healthy.py, {{ $url }}/healthz]}
  {{- end }}
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- if .key }}
  httpGet: {path: /readyz, port: openai}
  {{- else }}
  exec: {command: [python3, /usr/local/lib/del-serve/healthy.py, {{ $url }}/readyz]}
  {{- end }}
  periodSeconds: 10
  timeoutSeconds: 6
  failureThreshold: 3
volumeMounts:
  - {name: del-proxy-tmp, mountPath: /tmp}
  - {name: del-proxy-secrets, mountPath: /etc/del-proxy, readOnly: true}
{{- end }}

{{/* The volumes of the container, for a sidecar. */}}
{{- define "del-proxy.volumes" -}}
{{- include "del-proxy.anyVolumes" (dict "context" . "key" false) }}
{{- end }}

{{- define "del-proxy.anyVolumes" -}}
{{- $values := .context.Values }}
- {name: del-proxy-tmp, emptyDir: {}}
- name: del-proxy-secrets
  projected:
    defaultMode: 0440
    sources:
      {{- if .key }}
      - secret: {name: {{ $values.clientKey.existingSecret }}, items: [{key: {{ $values.clientKey.key }}, path: client-key}]}
      {{- end }}
      {{- with $values.server.apiKeySecret }}
      - secret: {name: {{ . }}, items: [{key: {{ $values.server.apiKeyKey }}, path: api-key}]}
      {{- end }}
      {{- if $values.ledger.enabled }}
      - secret: {name: {{ $values.ledger.urlSecret }}, items: [{key: {{ $values.ledger.urlKey }}, path: ledger-url}]}
      {{- end }}
      {{- if not (or .key $values.server.apiKeySecret $values.ledger.enabled) }} []{{ end }}
{{- end }}

{{- define "del-proxy.check" -}}
{{- if not (or .Values.trust.fingerprint .Values.trust.trustedKeys .Values.trust.onFirstUse) }}
{{- fail "trust.fingerprint, trust.trustedKeys or trust.onFirstUse must be given, since a new pod remembers no bundle, got none" }}
{{- end }}
{{- $privacy := .Values.privacy }}
{{- if and (or $privacy.detectors $privacy.surrogates) (ne $privacy.private "pii") }}
{{- fail (printf "privacy.private must be pii with privacy.detectors or privacy.surrogates, got %s" $privacy.private) }}
{{- end }}
{{- end }}
