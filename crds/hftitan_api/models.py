"""The HFTitanJob resource: metadata, spec and status.

The docstrings become the descriptions in the CRD and in docs/spec.md. The constraints become the schema. Unknown fields
are errors. Fields are snake_case here and camelCase in YAML.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from hftitan_api.base import (
    INT32_MAX,
    AbsolutePath,
    ApiModel,
    Degree,
    HubId,
    HubRepo,
    ModelName,
    Name,
    Nodes,
    Number,
    Override,
    Seconds,
    SecretKey,
    ShortText,
    Subpath,
    Time,
)
from hftitan_api.pod import EnvVar, PodDefaults, PodSpec, Resources, Toleration, Volume, VolumeMount

__all__ = [
    "API_VERSION",
    "GROUP",
    "INT32_MAX",
    "KIND",
    "PLURAL",
    "TERMINAL",
    "VERSION",
    "ApiModel",
    "CheckpointSpec",
    "CheckpointStatus",
    "Condition",
    "DatasetSpec",
    "EnvVar",
    "HFTitanJob",
    "HubPushSpec",
    "JobSpec",
    "JobStatus",
    "LRScheduleSpec",
    "LoRASpec",
    "MeshSpec",
    "ModelSpec",
    "MonitoringSpec",
    "ObjectMeta",
    "OptimizerSpec",
    "Phase",
    "PodCounts",
    "PodDefaults",
    "PodSpec",
    "ProgressStatus",
    "Resources",
    "RestartRecord",
    "RunPolicySpec",
    "SchedulingSpec",
    "SecretKey",
    "Toleration",
    "TrainingSpec",
    "ValidationSpec",
    "Volume",
    "VolumeMount",
]

GROUP = "hftitan.io"
VERSION = "v1alpha1"
KIND = "HFTitanJob"
PLURAL = "hftitanjobs"
API_VERSION = f"{GROUP}/{VERSION}"

# --- spec ---------------------------------------------------------------------------------------------------


class ModelSpec(ApiModel):
    """The causal LM to train."""

    name: ModelName
    """Hub id (`Qwen/Qwen2.5-7B`), or absolute path of a model folder that the pods can read."""
    revision: ShortText | None = None
    """Branch, tag or commit on the hub. Unset: the default branch. The status has the commit, in modelRevision."""
    initialize: Literal["pretrained", "random"] = "pretrained"
    """`pretrained` loads the safetensors weights. `random` loads only config and tokenizer and starts with random
    weights."""
    overrides: Annotated[dict[ShortText, Override], Field(max_length=64)] = Field(default_factory=dict)
    """Values that override keys of the model's config.json, for example `num_hidden_layers: 2`. Keys that change the
    shape of weights need `initialize: random`."""
    trust_remote_code: bool = False
    """Run Python code from the model folder. The code has the same permissions as the pod."""


class DatasetSpec(ApiModel):
    """The data to train on. Set either `name` (a hub dataset) or `path` (files)."""

    name: HubId | None = None
    """Hub id of a dataset."""
    path: AbsolutePath | None = None
    """Absolute path of a file or folder that the pods can read. Formats: .jsonl, .json, .parquet; other files are read
    as text. If a folder contains .jsonl, .json or .parquet files, its other files are skipped."""
    config: ShortText | None = None
    """Configuration (subset) of the hub dataset. Not allowed with path."""
    split: ShortText = "train"
    """Split of the hub dataset. Not allowed with path."""
    streaming: bool = False
    """Stream the hub dataset instead of downloading it first. Not allowed with path."""
    text_field: ShortText | None = None
    """Field with the text of a document. Unset: `text`. Excludes messagesField."""
    messages_field: ShortText | None = None
    """Field with a chat (a list of {role, content}). Selects supervised fine-tuning with the model's chat template; the
    loss covers only assistant turns. Excludes textField."""
    long_documents: Literal["chunk", "truncate", "drop"] | None = None
    """Handling of documents with more than seqLen tokens. `chunk` continues the document in the next sequences,
    without attention between them. `truncate` keeps the beginning. `drop` skips the document. Unset: chunk for text,
    truncate for chats. Chats cannot be chunked. A chat without an assistant turn before the cut is skipped. Text files
    are first split into documents of at most 64 KiB (8 x seqLen bytes if that is more). The metrics count truncated and
    dropped documents."""


class MeshSpec(ApiModel):
    """The device mesh. nodes x gpusPerNode must equal dpReplicate x dpShard x cp x tp x pp. ep must divide
    dpShard x cp x tp."""

    nodes: Nodes = 1
    """Number of nodes. The job runs one pod per node."""
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs per pod, one rank each. With `device: cpu`: processes per pod."""
    dp_replicate: Degree = 1
    """Number of model replicas: DDP, or HSDP if dpShard is more than 1."""
    dp_shard: Annotated[int, Field(ge=-1, le=100_000)] = -1
    """Number of FSDP shards. -1 uses all ranks that the other axes do not use."""
    tp: Degree = 1
    """Tensor-parallel degree. A tensor-parallel group must not span nodes."""
    pp: Degree = 1
    """Pipeline-parallel degree: the layers are split over this number of ranks."""
    cp: Degree = 1
    """Context-parallel degree: each sequence is split over this number of ranks."""
    ep: Degree = 1
    """Expert-parallel degree, for mixture-of-experts models. An expert-parallel group must not span nodes."""
    device: Literal["gpu", "cpu"] = "gpu"
    """`cpu` trains on CPUs with gloo, for laptops, tests and small models."""


class LoRASpec(ApiModel):
    """Low-rank adapters on frozen weights. Not supported yet."""

    rank: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    """The output of the adapters is scaled by alpha / rank."""
    target_modules: Annotated[list[ShortText], Field(max_length=64)] | None = None
    """Names of linear layers, for example `q_proj`. Unset: all linear layers."""


class TrainingSpec(ApiModel):
    """Settings of the training loop."""

    steps: Annotated[int, Field(ge=1, le=INT32_MAX)]
    """Number of optimizer steps."""
    seq_len: Annotated[int, Field(ge=8, le=16_777_216)] = 2048
    """Tokens per packed sequence. Must be a multiple of tp x 2 x cp. If cp is more than 1 on GPUs, it must also be a
    multiple of 128 x cp."""
    local_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Sequences per forward pass of a data-parallel rank."""
    global_batch_size: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """Sequences per optimizer step, over all ranks. Must be a multiple of localBatchSize x dpReplicate x dpShard; more
    than that means gradient accumulation. Unset: localBatchSize x dpReplicate x dpShard."""
    seed: Annotated[int, Field(ge=0, le=INT32_MAX)] = 42
    """Seed of random weights, dropout, and the order of the data."""
    deterministic: bool = False
    """Use deterministic kernels. Slower."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the master weights and the optimizer state."""
    mixed_precision: Literal["bfloat16", "float32"] | None = None
    """Type of the computation. Unset: bfloat16 on GPUs, float32 on CPUs."""
    max_norm: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """Gradients are clipped to this norm."""
    float8: Literal["rowwise", "rowwise_with_gw_hp"] | None = None
    """torchao recipe for float8 multiplication in all linear layers except the head. `rowwise_with_gw_hp` computes the
    gradients of the weights in mixedPrecision. Experts always use mixedPrecision. Needs Ada, Hopper or newer GPUs, and
    `compile` to be fast. seqLen must be a multiple of 16 x cp."""
    activation_checkpoint: Literal["none", "selective", "full"] | None = None
    """Which activations the backward pass recomputes. Unset: selective on GPUs, none on CPUs."""
    compile: bool = False
    """Compile each transformer block with torch.compile."""
    pipeline_schedule: Literal["1F1B", "GPipe", "Interleaved1F1B"] | None = None
    """Pipeline schedule. Needs pp > 1. Unset: 1F1B."""
    lora: LoRASpec | None = None
    """Train low-rank adapters instead of the weights. Not supported yet."""


class OptimizerSpec(ApiModel):
    """The optimizer and its settings."""

    name: Literal["AdamW", "Adam", "DistMuon"] = "AdamW"
    """The optimizer. AdamW and Adam use one fused kernel, also on CPUs. AdamW decays the weights directly; Adam adds
    weightDecay x weight to the gradient. DistMuon (torchtitan's Muon) is not supported yet."""
    lr: Annotated[float, Field(gt=0, le=10)] = 5e-5
    """Peak learning rate."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.95]
    )
    """Decay rates of the running averages of the gradient and the squared gradient."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Constant added to the denominator for numerical stability."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Weight decay. Decoupled from the gradient with AdamW."""


class LRScheduleSpec(ApiModel):
    """The learning-rate schedule: warm-up, constant, then decay."""

    warmup_steps: Annotated[int, Field(ge=0, le=INT32_MAX)] = 0
    """Steps over which the learning rate rises from zero to its peak. At most training.steps."""
    decay_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of the steps, at the end of the training, in which the learning rate decays. 0 means no decay."""
    decay_type: Literal["linear", "cosine", "sqrt"] = "linear"
    """Shape of the decay. Needs decayRatio above 0."""
    min_lr_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The decay ends at lr x minLrFactor. Needs decayRatio above 0."""


class HubPushSpec(ApiModel):
    """Uploads the exported model to the Hugging Face hub. The job creates the repository and checks the token's write
    permission before the first step. It uploads the files in one commit after the export. The export stays on the
    volume."""

    repo: HubRepo
    """Repository `owner/name`. The push replaces files with the same name, deletes weights of earlier exports and keeps
    other files. To use another hub, set HF_ENDPOINT in pod.env."""
    private: bool = True
    """true creates the repository as private and rejects a public one. false creates it as public and does not change
    the visibility of an existing one."""


class CheckpointSpec(ApiModel):
    """Where and how often the job saves its state. A new attempt resumes from the newest complete checkpoint."""

    volume: Name | None = None
    """PersistentVolumeClaim for checkpoints and export. Must be ReadWriteMany if the job has several nodes. Unset:
    scratch space that is deleted with the pod. `hftitan run` uses the work folder instead."""
    folder: Subpath | None = None
    """Folder in the volume for checkpoint/ and export/. Unset: the job's name."""
    interval: Annotated[int, Field(ge=0, le=INT32_MAX)] = 500
    """Steps between checkpoints. 0 saves no checkpoints during training."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Number of newest checkpoints to keep."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """`async` writes checkpoints while training continues and needs host memory for a copy of the state.
    `async_with_pinned_mem` is not supported yet."""
    export_hf: bool = Field(default=True, alias="exportHF")
    """Write export/ at the end: a folder that `AutoModelForCausalLM.from_pretrained` loads."""
    export_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the exported weights."""
    push_to_hub: HubPushSpec | None = None
    """Upload the export to the Hugging Face hub. Needs exportHF and pod.hfTokenSecret."""
    resume: bool = True
    """Resume from the checkpoints in the folder. With false, the job fails if the folder contains checkpoints."""


class ValidationSpec(ApiModel):
    """Computes the loss on held-out data. Each validation uses the same rows, on every mesh with the same
    globalBatchSize. The rows of a streamed dataset also depend on the number of data-parallel ranks."""

    dataset: DatasetSpec
    """The held-out data. Set either `name` (a hub dataset) or `path` (files)."""
    interval: Annotated[int, Field(ge=1, le=INT32_MAX)] = 100
    """Training steps between validations. The last step is always validated."""
    steps: Annotated[int, Field(ge=1, le=INT32_MAX)] = 10
    """Batches per validation, each of the size of a training step. Fewer if the data ends earlier."""


class RunPolicySpec(ApiModel):
    """Suspension, restarts, time limits, and what is deleted at the end."""

    suspend: bool = False
    """true saves a checkpoint, stops the pods and keeps the job. false resumes from the newest checkpoint."""
    max_restarts: Annotated[int, Field(ge=0, le=63)] = 3
    """Maximum number of restarts within restartWindowSeconds. With one more, the job fails. Preemptions, evictions,
    deleted pods, lost nodes and errors of a node do not count against maxRestarts."""
    restart_window_seconds: Seconds = 86_400
    """A restart counts against maxRestarts for this number of seconds. 0 means without limit."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """The job fails if it is active for longer, in seconds. Suspended time does not count. Unset: no limit."""
    ttl_seconds_after_finished: Seconds | None = None
    """The operator deletes the finished job after this number of seconds. Unset: the job is kept."""
    clean_pod_policy: Literal["Running", "All", "None"] = "Running"
    """Pods to delete when the job ends: running pods, all pods, or none."""
    startup_timeout_seconds: Annotated[int, Field(ge=1, le=INT32_MAX)] = 1800
    """Seconds that each phase of the start (start, load, first step) may take before the operator starts a new attempt.
    Also limits how long a pod may lack its image, a Secret or a claim before the job fails."""
    hang_timeout_seconds: Annotated[int, Field(ge=1, le=INT32_MAX)] = 1800
    """Seconds without progress after which the operator starts a new attempt."""


class SchedulingSpec(ApiModel):
    """Gang scheduling, queue, priority and topology of the pods."""

    gang: Literal["none", "kueue", "volcano", "coscheduling", "kai", "kubernetes"] = "none"
    """Gang scheduler, which places all pods of an attempt or none: Kueue, Volcano, Coscheduling (scheduler-plugins),
    KAI Scheduler, or Kubernetes 1.37 or newer. The job fails if the cluster does not have it. `none` places pods one
    by one. `hftitan run` ignores this section."""
    queue: Name | None = None
    """Queue of the gang. Required with kueue (a LocalQueue in the job's namespace) and kai (a Queue). Optional with
    volcano (a Queue; unset: Volcano's default). Rejected with other gang schedulers."""
    priority_class: Name | None = None
    """PriorityClass of the pods, and of the gang if its scheduler supports one."""
    topology_key: Annotated[str, Field(min_length=1, max_length=317)] | None = None
    """Node label, for example topology.kubernetes.io/zone. All pods of an attempt run on nodes with the same value.
    With kueue, it must be a level of the Topology of the nodes."""
    scheduler_name: Name | None = None
    """Scheduler of the pods. Unset: volcano, scheduler-plugins-scheduler or kai-scheduler with gang volcano,
    coscheduling or kai; otherwise the cluster's default. If no scheduler has this name, the pods stay pending."""


class MonitoringSpec(ApiModel):
    """Metrics and experiment trackers."""

    port: Annotated[int, Field(ge=1024, le=65_535)] = 9400
    """Port of /metrics on every pod and of /progress on node 0."""
    tensorboard: bool = False
    """Write TensorBoard event files to tensorboard/, next to checkpoint/ and export/."""
    wandb_secret: SecretKey | None = None
    """Secret with a Weights & Biases API key. All attempts of the job are one run, whose id is the job's uid.
    WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE can be set in pod.env."""


class JobSpec(ApiModel):
    """What to train, on which mesh, and how."""

    model: ModelSpec
    dataset: DatasetSpec
    mesh: MeshSpec = Field(default_factory=MeshSpec)
    training: TrainingSpec
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    lr_schedule: LRScheduleSpec = Field(default_factory=LRScheduleSpec)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    validation: ValidationSpec | None = None
    run_policy: RunPolicySpec = Field(default_factory=RunPolicySpec)
    scheduling: SchedulingSpec = Field(default_factory=SchedulingSpec)
    monitoring: MonitoringSpec = Field(default_factory=MonitoringSpec)
    pod: PodSpec = Field(default_factory=PodSpec)


# --- status -------------------------------------------------------------------------------------------------

Phase = Literal["Pending", "Starting", "Running", "Restarting", "Suspended", "Succeeded", "Failed"]
Attempt = Annotated[int, Field(ge=0, le=999_999)]
"""Number of an attempt. At most six digits, because it is part of every pod's name."""
TERMINAL: frozenset[str] = frozenset({"Succeeded", "Failed"})


class Condition(ApiModel):
    """A condition, as in metav1.Condition. `type` is the key of the list."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    """Type of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    observed_generation: int = 0
    """Generation of the spec that the condition describes."""
    last_transition_time: Time
    """When `status` last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Reason for the last change, in CamelCase."""
    message: Annotated[str, Field(max_length=32_768)] = ""
    """Explanation of the reason."""


class PodCounts(ApiModel):
    """Numbers of pods by state."""

    active: Number = 0
    """Pods whose trainer has not ended."""
    ready: Number = 0
    """Active pods that pass their readiness probe."""
    succeeded: Number = 0
    """Pods whose trainer ended with exit code 0."""
    failed: Number = 0
    """Pods that failed, or whose trainer ended with another exit code."""


class ProgressStatus(ApiModel):
    """Progress of the training."""

    step: Number = 0
    """Last finished step."""
    steps: Number = 0
    """Number of steps of the job."""
    loss: float | None = None
    """Mean loss over all tokens of the last step."""
    tokens_per_second: float | None = None
    """Throughput over all ranks."""
    mfu: float | None = None
    """Model FLOPs utilization, 0 to 1. Only on devices whose peak is known."""
    grad_norm: float | None = None
    """Norm of the gradient before clipping."""
    eta: str | None = None
    """Estimated time remaining, for example `1h12m`."""
    updated: Time | None = None
    """When the step or the trainer's phase last changed."""


class CheckpointStatus(ApiModel):
    """A complete checkpoint."""

    step: Number
    """Step of the checkpoint."""
    time: Time | None = None
    """When the checkpoint was complete."""


class RestartRecord(ApiModel):
    """One attempt that ended and was restarted."""

    time: Time
    """When the attempt ended."""
    attempt: Attempt
    """Number of the attempt."""
    reason: str
    """Why the attempt ended."""
    step: Number = 0
    """Last step that the attempt finished. After three attempts without a new step the job fails."""
    counted: bool = True
    """Whether the restart counts against maxRestarts. Preemptions, evictions, deleted pods, lost nodes and errors of a
    node do not."""


class JobStatus(ApiModel):
    """The state of the job. Only the operator writes it."""

    phase: Phase | None = None
    """Phase of the job. Succeeded and Failed are final."""
    conditions: list[Condition] = Field(default_factory=list)
    """Conditions of the job, each with a reason and a message."""
    observed_generation: int = 0
    """Generation of the spec that this status describes."""
    attempt: Attempt = 0
    """Number of the current attempt. The first is 1."""
    restarts: Number = 0
    """Number of restarts, including those that do not count against maxRestarts."""
    restart_history: Annotated[list[RestartRecord], Field(max_length=64)] = Field(default_factory=list)
    """The newest attempts that ended, oldest first."""
    mesh: str | None = None
    """Summary of the mesh, for example `2x8: dp4 tp4`."""
    world_size: Number | None = None
    """Number of ranks."""
    pods: PodCounts | None = None
    """Numbers of pods of the current attempt."""
    progress: ProgressStatus | None = None
    """Progress of the training, reported by node 0."""
    checkpoint: CheckpointStatus | None = None
    """The newest complete checkpoint."""
    export_path: str | None = None
    """Path of the exported model."""
    model_revision: str | None = None
    """Commit of the model on the hub."""
    start_time: Time | None = None
    """When the job first became active."""
    attempt_start_time: Time | None = None
    """When all pods of the current attempt were first running."""
    active_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds of activity before `activeSince`, without suspended time."""
    active_since: Time | None = None
    """Start of the current activity. Unset while the job is suspended or finished."""
    completion_time: Time | None = None
    """When the job succeeded or failed."""
    goodput: float | None = None
    """Fraction of the active time spent on steps that were kept, 0 to 1."""
    message: str | None = None
    """What the job is doing, or why it ended."""


class ObjectMeta(BaseModel):
    """The metadata that the operator uses. Other keys, such as managedFields, are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class HFTitanJob(ApiModel):
    """Trains one Hugging Face causal LM with torchtitan on a mesh of devices."""

    api_version: Literal["hftitan.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["HFTitanJob"] = KIND  # type: ignore[assignment]
    metadata: ObjectMeta
    spec: JobSpec
    status: JobStatus = Field(default_factory=JobStatus)
