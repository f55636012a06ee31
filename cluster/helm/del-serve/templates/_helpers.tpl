{{/* Name of the objects. */}}
{{- define "del-serve.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Name of the Service that KubeRay points at the active cluster. */}}
{{- define "del-serve.service" -}}
{{ include "del-serve.fullname" . }}-serve-svc
{{- end }}

{{- define "del-serve.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: del-serve
{{- end }}

{{- define "del-serve.labels" -}}
{{ include "del-serve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Reference of an image: (dict "image" .Values.images.cpu). */}}
{{- define "del-serve.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag }}
{{- end }}
{{- end }}

{{/* Grace period of a pod: the drain time, and 30 s in which Ray stops. */}}
{{- define "del-serve.grace" -}}
{{ add .Values.drainSeconds 30 }}
{{- end }}

{{- define "del-serve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "del-serve.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Ports that pods of the release use among themselves. The first block is fixed by rayStartParams. */}}
{{- define "del-serve.rayPorts" -}}
- {protocol: TCP, port: 6379}                   # GCS
- {protocol: TCP, port: 6380, endPort: 6383}    # node and object manager, agents
- {protocol: TCP, port: 52365}                  # dashboard agent
- {protocol: TCP, port: 10002, endPort: 19999}  # workers
- {protocol: TCP, port: 8265}                   # dashboard
- {protocol: TCP, port: 8000}                   # HAProxy
- {protocol: TCP, port: 30000, endPort: 31000}  # replicas behind HAProxy
{{- end }}

{{/* The Ray pods of the release as a peer of a NetworkPolicy. */}}
{{- define "del-serve.rayPeer" -}}
- podSelector:
    matchLabels:
      {{- include "del-serve.selector" . | nindent 6 }}
    matchExpressions:
      - {key: app.kubernetes.io/component, operator: In, values: [head, worker]}
{{- end }}

{{- define "del-serve.rayStartParams" -}}
node-manager-port: "6380"
object-manager-port: "6381"
runtime-env-agent-port: "6382"
dashboard-agent-grpc-port: "6383"
dashboard-agent-listen-port: "52365"
min-worker-port: "10002"
max-worker-port: "19999"
metrics-export-port: "8080"
{{- end }}

{{/* Environment of every Ray container; files/environment.yaml comes from cluster/config/env.py. */}}
{{- define "del-serve.environment" -}}
{{- range $name, $value := .Files.Get "files/environment.yaml" | fromYaml }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
# KubeRay's default of 65536 is too low for RAY_SERVE_HAPROXY_MAXCONN.
- {name: RAY_START_ULIMIT_OPEN_FILES, value: "131072"}
- {name: HOME, value: /tmp}
- {name: USER, value: del}  # for images that have no such user
{{- if and .Values.otlp.enabled .Values.otlp.headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ .Values.otlp.headersSecret }}, key: headers}}
{{- end }}
{{- end }}

{{/* Directory of model or bundle: (dict "root" "/models" "part" .Values.model); "demo" if packaged. */}}
{{- define "del-serve.directory" -}}
{{- if eq .part.source "demo" -}}
demo
{{- else if .part.path -}}
{{ .root }}/{{ .part.path }}
{{- else -}}
{{ .root }}
{{- end }}
{{- end }}

{{/* The Serve config file: the application's settings, completed by what the chart decides. */}}
{{- define "del-serve.serveConfig" -}}
{{- $settings := deepCopy .Values.settings }}
{{- $_ := set $settings "bundle" (include "del-serve.directory" (dict "root" "/bundles" "part" .Values.bundle)) }}
{{- $_ := set $settings "base_model" (include "del-serve.directory" (dict "root" "/models" "part" .Values.model)) }}
{{- if .Values.keys.open }}
{{- $_ := set $settings "keys" (dict "open" true) }}
{{- else }}
{{- $_ := set $settings "keys" (dict "file" (printf "/etc/del-serve/%s" .Values.keys.key)) }}
{{- end }}
{{- $scaling := merge (dict "graceful_shutdown_timeout_s" .Values.drainSeconds) (default dict $settings.scaling) }}
{{- $_ := set $settings "scaling" $scaling }}
{{- if .Values.otlp.enabled }}
{{- $telemetry := merge (dict "traces" .Values.otlp.endpoint) (default dict $settings.telemetry) }}
{{- $_ := set $settings "telemetry" $telemetry }}
{{- end }}
{{- $application := dict "name" "del-serve" "route_prefix" "/" "import_path" "deployments.app:build" "args" $settings }}
{{- dict "proxy_location" "EveryNode" "http_options" (dict "host" "0.0.0.0" "port" 8000)
    "applications" (list $application) | toYaml }}
{{- end }}

{{/* Refuse values that each are valid and contradict each other. */}}
{{- define "del-serve.check" -}}
{{- if not (or .Values.cpu.enabled .Values.gpu.enabled) }}
{{- fail "cpu.enabled or gpu.enabled must be true, got false for both" }}
{{- end }}
{{- $gpus := int (dig "scaling" "num_gpus" 0 .Values.settings) }}
{{- if and $gpus (not .Values.gpu.enabled) }}
{{- fail "gpu.enabled must be true if settings.scaling.num_gpus is above 0, got false" }}
{{- end }}
{{- if and .Values.gpu.enabled (or (lt $gpus 1) (gt $gpus (int .Values.gpu.count))) }}
{{- fail (printf "settings.scaling.num_gpus must be from 1 to gpu.count = %d if gpu.enabled, got %d" (int .Values.gpu.count) $gpus) }}
{{- end }}
{{- range $group := list "cpu" "gpu" }}
{{- with index $.Values $group }}
{{- if or (gt (int .minReplicas) (int .replicas)) (gt (int .replicas) (int .maxReplicas)) }}
{{- fail (printf "%s.replicas must be from minReplicas = %d to maxReplicas = %d, got %d" $group (int .minReplicas) (int .maxReplicas) (int .replicas)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if eq .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade" }}
{{- if not (and .Values.autoscaler.enabled .Values.upgrade.gatewayClassName) }}
{{- fail "autoscaler.enabled must be true and upgrade.gatewayClassName given if upgrade.strategy is NewClusterWithIncrementalUpgrade" }}
{{- end }}
{{- if or .Values.ingress.enabled .Values.httpRoute.enabled }}
{{- fail "ingress.enabled and httpRoute.enabled must be false if upgrade.strategy is NewClusterWithIncrementalUpgrade: KubeRay makes the gateway" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Volumes of a part: (dict "name" "model" "part" .Values.model "context" $). */}}
{{- define "del-serve.partVolume" -}}
- name: {{ .name }}
  {{- if eq .part.source "claim" }}
  persistentVolumeClaim: {claimName: {{ .part.claim }}, readOnly: true}
  {{- else if eq .part.source "newClaim" }}
  persistentVolumeClaim: {claimName: {{ include "del-serve.fullname" .context }}-{{ .name }}, readOnly: true}
  {{- else if eq .part.source "image" }}
  image: {reference: {{ .part.image | quote }}, pullPolicy: {{ .context.Values.images.pullPolicy }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .part.command.size }}}
  {{- end }}
{{- end }}

{{/* Init containers of a part: fill the directory if a command does so, then verify the checksums. */}}
{{- define "del-serve.partContainers" -}}
{{- $context := .context }}
{{- if eq .part.source "command" }}
- name: fetch-{{ .name }}
  image: {{ .part.command.image | default .image | quote }}
  imagePullPolicy: {{ $context.Values.images.pullPolicy }}
  command: {{ .part.command.command | toJson }}
  env:
    - {name: TARGET, value: {{ .root }}}
    - {name: HOME, value: /tmp}
  {{- with .part.command.envSecret }}
  envFrom: [{secretRef: {name: {{ . }}}}]
  {{- end }}
  securityContext:
    {{- include "del-serve.containerSecurity" $context | nindent 4 }}
  resources:
    requests: {cpu: 500m, memory: 512Mi}
    limits: {cpu: "2", memory: 2Gi}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: {{ .name }}, mountPath: {{ .root }}}
{{- end }}
- name: verify-{{ .name }}
  image: {{ .image | quote }}
  imagePullPolicy: {{ $context.Values.images.pullPolicy }}
  command: [sh, -ec, 'cd "$1" && sha256sum --check --strict --quiet "$2"', verify,
            {{ include "del-serve.directory" . }}, /checksums/{{ .name }}]
  securityContext:
    {{- include "del-serve.containerSecurity" $context | nindent 4 }}
  resources:
    requests: {cpu: 500m, memory: 256Mi}
    limits: {cpu: "2", memory: 512Mi}
  volumeMounts:
    - {name: {{ .name }}, mountPath: {{ .root }}, readOnly: true}
    - {name: checksums, mountPath: /checksums, readOnly: true}
{{- end }}

{{/* Pod template of a worker group: (dict "context" $ "group" .Values.cpu "name" "cpu"). */}}
{{- define "del-serve.worker" -}}
{{- $context := .context }}
{{- $values := $context.Values }}
{{- $image := include "del-serve.image" (dict "image" (index $values.images .name)) }}
{{- $parts := list }}
{{- range list (dict "name" "model" "root" "/models" "part" $values.model) (dict "name" "bundle" "root" "/bundles" "part" $values.bundle) }}
{{- if ne .part.source "demo" }}
{{- $parts = append $parts (merge (dict "context" $context "image" $image) .) }}
{{- end }}
{{- end }}
metadata:
  labels:
    # Not the chart's version: a changed pod template makes KubeRay replace the Ray cluster.
    {{- include "del-serve.selector" $context | nindent 4 }}
    app.kubernetes.io/component: worker
  annotations:
    cluster-autoscaler.kubernetes.io/safe-to-evict: {{ $values.safeToEvict.workers | quote }}
    {{- if $parts }}
    # A changed checksum must replace the pods.
    checksum/files: {{ list $values.model.sha256 $values.bundle.sha256 | toJson | sha256sum }}
    {{- end }}
spec:
  serviceAccountName: {{ include "del-serve.fullname" $context }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "del-serve.grace" $context }}
  securityContext:
    {{- include "del-serve.podSecurity" $context | nindent 4 }}
  {{- with $values.images.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - {name: {{ . }}}
    {{- end }}
  {{- end }}
  {{- include "del-serve.placement" .group | nindent 2 }}
  {{- if $parts }}
  initContainers:
    {{- range $parts }}
    {{- include "del-serve.partContainers" . | trim | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: ray-worker
      image: {{ $image | quote }}
      imagePullPolicy: {{ $values.images.pullPolicy }}
      ports:
        - {name: serve, containerPort: 8000}
        - {name: metrics, containerPort: 8080}
      env:
        {{- include "del-serve.environment" $context | trim | nindent 8 }}
      securityContext:
        {{- include "del-serve.containerSecurity" $context | nindent 8 }}
      resources:
        {{- $resources := deepCopy .group.resources }}
        {{- if eq .name "gpu" }}
        {{- range list "requests" "limits" }}
        {{- $_ := set (index $resources .) $.group.resourceName $.group.count }}
        {{- end }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      livenessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        initialDelaySeconds: 30
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 24
      # A pod whose proxy drains or has no replica gets no new requests.
      readinessProbe:
        httpGet: {path: /-/healthz, port: serve}
        initialDelaySeconds: 10
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 1
      lifecycle:
        preStop:
          exec:
            command: [bash, /etc/del-serve-scripts/drain.sh, {{ $values.drainSeconds | quote }}]
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: ray-logs, mountPath: /tmp/ray}
        - {name: shared-memory, mountPath: /dev/shm}
        - {name: scripts, mountPath: /etc/del-serve-scripts, readOnly: true}
        {{- if not $values.keys.open }}
        # A directory, not a single file, so that the kubelet updates it when the secret changes.
        - {name: keys, mountPath: /etc/del-serve, readOnly: true}
        {{- end }}
        {{- range $parts }}
        - {name: {{ .name }}, mountPath: {{ .root }}, readOnly: true}
        {{- end }}
  volumes:
    {{- include "del-serve.scratch" .group | nindent 4 }}
    - name: scripts
      configMap: {name: {{ include "del-serve.fullname" $context }}-files, items: [{key: drain.sh, path: drain.sh}]}
    {{- if not $values.keys.open }}
    - name: keys
      secret:
        secretName: {{ $values.keys.existingSecret }}
        defaultMode: 0440
        items: [{key: {{ $values.keys.key }}, path: {{ $values.keys.key }}}]
    {{- end }}
    {{- if $parts }}
    - name: checksums
      configMap:
        name: {{ include "del-serve.fullname" $context }}-files
        items:
          {{- range $parts }}
          - {key: {{ .name }}.sha256, path: {{ .name }}}
          {{- end }}
    {{- end }}
    {{- range $parts }}
    {{- include "del-serve.partVolume" . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Where pods run: of a group's values. */}}
{{- define "del-serve.placement" -}}
nodeSelector: {{ .nodeSelector | toJson }}
tolerations: {{ .tolerations | toJson }}
affinity: {{ .affinity | toJson }}
{{- end }}

{{/* Writable directories of a Ray container; its root is read-only. */}}
{{- define "del-serve.scratch" -}}
- {name: tmp, emptyDir: {}}
- {name: ray-logs, emptyDir: {}}
- {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ .sharedMemory }}}}
{{- end }}
