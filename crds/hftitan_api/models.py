"""The HFTitanJob resource: metadata, spec and status.

The docstrings and `Field(description=...)` texts become the CRD's descriptions and the documentation; the
constraints become its schema. `extra="forbid"` everywhere: a misspelt field is an error, never ignored.
Fields are snake_case here and camelCase in YAML.
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
    """Which causal LM to train."""

    name: ModelName
    """Hub id (`Qwen/Qwen2.5-7B`) or the absolute path of a model folder that the pods can read."""
    revision: ShortText | None = None
    """Branch, tag or commit on the hub. The commit it resolves to is recorded in status.modelRevision."""
    initialize: Literal["pretrained", "random"] = "pretrained"
    """`pretrained` loads the safetensors weights; `random` takes only config and tokenizer."""
    overrides: Annotated[dict[ShortText, Override], Field(max_length=64)] = Field(default_factory=dict)
    """Keys of the model's config.json to override, for example `num_hidden_layers: 2`. Needs `initialize: random`
    when a key changes the shape of a weight."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings. Off unless you say so: that code runs with the pod's rights."""


class DatasetSpec(ApiModel):
    """What to train on: a hub dataset by `name`, or files by `path`; exactly one of them."""

    name: HubId | None = None
    """Hub id of a dataset."""
    path: AbsolutePath | None = None
    """Absolute path of a file or folder that the pods can read: .jsonl, .json, .parquet, or text (anything else)."""
    config: ShortText | None = None
    """Configuration (subset) of a hub dataset."""
    split: ShortText = "train"
    """Split of a hub dataset."""
    streaming: bool = False
    """Read the dataset as a stream instead of downloading it first."""
    text_field: ShortText | None = None
    """Field that holds a document's text (default `text`)."""
    messages_field: ShortText | None = None
    """Field that holds a chat (a list of {role, content}): supervised fine-tuning with the model's chat template,
    loss on assistant turns only. Excludes textField."""
    long_documents: Literal["chunk", "truncate", "drop"] | None = None
    """What happens to a document of more than seqLen tokens: `chunk` goes on with it in the next sequences, each of
    which begins anew, `truncate` keeps its beginning, `drop` leaves it out. Unset: chunk for text, truncate for chats,
    which cannot be chunked: an answer is nothing without its question. A chat whose answers all lie behind the cut is
    left out. A text file is documents of up to 64 KiB, or as many bytes as fill a sequence. How many were cut and left
    out is in the metrics."""


class MeshSpec(ApiModel):
    """The device mesh: nodes x gpusPerNode = dpReplicate x dpShard x cp x tp x pp; ep divides dpShard x cp x tp."""

    nodes: Nodes = 1
    """Pods; one for each node."""
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs, and so ranks, for each pod; with `device: cpu` the number of processes."""
    dp_replicate: Degree = 1
    """Replicas of the (sharded) model: DDP, or HSDP together with dpShard."""
    dp_shard: Annotated[int, Field(ge=-1, le=100_000)] = -1
    """FSDP shards; -1 takes all ranks that the other axes leave."""
    tp: Degree = 1
    """Tensor parallelism, inside a node."""
    pp: Degree = 1
    """Pipeline stages."""
    cp: Degree = 1
    """Context parallelism: the sequence is split."""
    ep: Degree = 1
    """Expert parallelism, for mixture-of-experts models; inside a node."""
    device: Literal["gpu", "cpu"] = "gpu"
    """`cpu` trains with gloo on processors: for laptops, tests and small models."""


class LoRASpec(ApiModel):
    """Low-rank adapters beside frozen weights. Not supported yet."""

    rank: Annotated[int, Field(ge=1, le=65_536)] = 8
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    """The adapters' output is scaled by alpha / rank."""
    target_modules: Annotated[list[ShortText], Field(max_length=64)] | None = None
    """Names of linear layers, for example `q_proj`. Unset: all of them."""


class TrainingSpec(ApiModel):
    """The training loop."""

    steps: Annotated[int, Field(ge=1, le=INT32_MAX)]
    """Optimizer steps."""
    seq_len: Annotated[int, Field(ge=8, le=16_777_216)] = 2048
    """Tokens in a packed sequence."""
    local_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Sequences for each data-parallel rank and forward pass."""
    global_batch_size: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """Sequences for each optimizer step over all ranks; more than one pass each means gradient accumulation.
    Unset: localBatchSize x data-parallel degree."""
    seed: Annotated[int, Field(ge=0, le=INT32_MAX)] = 42
    """Of weights that start at random, dropout, and the order of the data."""
    deterministic: bool = False
    """Deterministic kernels (slower)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the master weights and the optimizer."""
    mixed_precision: Literal["bfloat16", "float32"] | None = None
    """Of the computation. Unset: bfloat16 on GPUs, float32 on CPUs."""
    max_norm: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """Gradients are clipped to this norm."""
    float8: Literal["rowwise", "rowwise_with_gw_hp"] | None = None
    """Multiply in float8 in all linear layers but the head, by this recipe of torchao; `rowwise_with_gw_hp` computes
    the weights' gradients in mixedPrecision. The experts of mixtures stay in mixedPrecision. Needs GPUs with float8
    (Ada, Hopper or newer), and `compile` to be fast."""
    activation_checkpoint: Literal["none", "selective", "full"] | None = None
    """Recomputation in the backward pass. Unset: selective on GPUs, none on CPUs."""
    compile: bool = False
    """torch.compile each transformer block."""
    pipeline_schedule: Literal["1F1B", "GPipe", "Interleaved1F1B"] | None = None
    """With pp > 1. Unset: 1F1B."""
    lora: LoRASpec | None = None
    """Train low-rank adapters instead of the weights. Not supported yet."""


class OptimizerSpec(ApiModel):
    """The optimizer and its settings."""

    name: Literal["AdamW", "Adam", "DistMuon"] = "AdamW"
    """AdamW and Adam run as one fused kernel, on CPUs too. Adam adds weightDecay x weight to the gradient, AdamW takes
    it off the weight. DistMuon, torchtitan's Muon, is not supported yet."""
    lr: Annotated[float, Field(gt=0, le=10)] = 5e-5
    """Peak learning rate."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.95]
    )
    """Decay of the running averages of gradient and squared gradient."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Decoupled weight decay."""


class LRScheduleSpec(ApiModel):
    """Warm-up, then constant, then decay over the last decayRatio of the steps."""

    warmup_steps: Annotated[int, Field(ge=0, le=INT32_MAX)] = 0
    """Steps from zero to the peak."""
    decay_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps, at the end, over which the learning rate decays; 0 keeps it constant."""
    decay_type: Literal["linear", "cosine", "sqrt"] = "linear"
    """Shape of the decay."""
    min_lr_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The decay ends at lr x this."""


class HubPushSpec(ApiModel):
    """The exported model on the Hugging Face hub. The repository is made, and the token's right to write there asked
    for, before the first step; the files follow in one commit after the export, which stays where it is. HF_ENDPOINT in
    pod.env names another hub."""

    repo: HubRepo
    """`owner/name`. Files in it are replaced, weights of earlier exports deleted, others kept."""
    private: bool = True
    """Visible to its owners alone. A public repository is not pushed to unless this is false; one that is private
    stays private."""


class CheckpointSpec(ApiModel):
    """Where and how often the state is saved; a new attempt resumes from the newest complete checkpoint."""

    volume: Name | None = None
    """A PersistentVolumeClaim; ReadWriteMany when the job has several nodes. Unset: the pod's own scratch space,
    which is gone with the pod. `hftitan run` uses the work folder instead."""
    folder: Subpath | None = None
    """Folder inside the volume (default: the job's name). Holds checkpoint/ and export/."""
    interval: Annotated[int, Field(ge=0, le=INT32_MAX)] = 500
    """Steps between checkpoints; 0 saves none while training."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Newest checkpoints to keep."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Write checkpoints while training goes on."""
    export_hf: bool = Field(default=True, alias="exportHF")
    """At the end write export/: a folder that `AutoModelForCausalLM.from_pretrained` loads."""
    export_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the exported weights."""
    push_to_hub: HubPushSpec | None = None
    """Push the export to the Hugging Face hub. Needs exportHF and pod.hfTokenSecret."""
    resume: bool = True
    """Continue from checkpoints found in the folder; false refuses to start when there are any."""


class ValidationSpec(ApiModel):
    """Loss on held-out data: the same rows each time, and on every mesh with the same globalBatchSize; a stream's rows
    are dealt out by data-parallel rank instead."""

    dataset: DatasetSpec
    interval: Annotated[int, Field(ge=1, le=INT32_MAX)] = 100
    """Training steps between validations; the last step is followed by one in any case."""
    steps: Annotated[int, Field(ge=1, le=INT32_MAX)] = 10
    """Batches of each validation, as large as those of a training step; fewer when the data ends before."""


class RunPolicySpec(ApiModel):
    """How long, how often, and what is left afterwards."""

    suspend: bool = False
    """Stop the pods and keep the job; setting it back to false resumes from the newest checkpoint."""
    max_restarts: Annotated[int, Field(ge=0, le=63)] = 3
    """New attempts of the whole gang inside restartWindowSeconds. Preemptions and evictions are free. At most 63: the
    status remembers the newest 64 restarts."""
    restart_window_seconds: Seconds = 86_400
    """Only restarts younger than this count; 0 counts all."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """The job fails when it was active (not suspended) for longer."""
    ttl_seconds_after_finished: Seconds | None = None
    """The finished job is deleted after this; unset keeps it."""
    clean_pod_policy: Literal["Running", "All", "None"] = "Running"
    """Pods to delete when the job ends: the running ones, all, or none."""
    startup_timeout_seconds: Annotated[int, Field(ge=1, le=INT32_MAX)] = 1800
    """From the pods running to the first step."""
    hang_timeout_seconds: Annotated[int, Field(ge=1, le=INT32_MAX)] = 1800
    """A step that stands still for longer makes a new attempt."""


class SchedulingSpec(ApiModel):
    """Who admits the pods, and where they go."""

    gang: Literal["none", "kueue", "volcano", "coscheduling", "kai", "kubernetes"] = "none"
    """Who places the pods of an attempt all together or not at all: Kueue, Volcano, Coscheduling (scheduler-plugins),
    KAI Scheduler, or Kubernetes itself from 1.37 on. A cluster without it refuses the job. `none`: pods are placed one
    by one, and wait for each other. `hftitan run` places nothing and runs any of them."""
    queue: Name | None = None
    """Queue that admits the gang: a LocalQueue of the job's namespace with kueue, a Queue with volcano (default:
    Volcano's own default) or kai. Needed with kueue and kai, refused with the others."""
    priority_class: Name | None = None
    """PriorityClass of the pods, and of the gang where its scheduler ranks gangs."""
    topology_key: Annotated[str, Field(min_length=1, max_length=317)] | None = None
    """Node label whose value all pods of an attempt must share, for example topology.kubernetes.io/zone. With kueue a
    level of the Topology of its nodes."""
    scheduler_name: Name | None = None
    """Scheduler of the pods. Unset: volcano, scheduler-plugins-scheduler or kai-scheduler with these gangs, as their
    own installations call them, else the cluster's default. A name that no scheduler has leaves the pods pending."""


class MonitoringSpec(ApiModel):
    """What a run shows of itself while it runs."""

    port: Annotated[int, Field(ge=1024, le=65_535)] = 9400
    """/metrics of every pod, /progress of node 0."""
    tensorboard: bool = False
    """Write TensorBoard event files to tensorboard/, beside checkpoint/ and export/."""
    wandb_secret: SecretKey | None = None
    """Weights & Biases API key: the job is one run there, by its uid. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and the
    like may stand in pod.env."""


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
"""Its digits are part of every pod's name."""
TERMINAL: frozenset[str] = frozenset({"Succeeded", "Failed"})


class Condition(ApiModel):
    """One condition, as in metav1.Condition; `type` is the list's key."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    status: Literal["True", "False", "Unknown"]
    observed_generation: int = 0
    last_transition_time: Time
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    message: Annotated[str, Field(max_length=32_768)] = ""


class PodCounts(ApiModel):
    active: Number = 0
    ready: Number = 0
    succeeded: Number = 0
    failed: Number = 0


class ProgressStatus(ApiModel):
    step: Number = 0
    steps: Number = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    """Over all ranks."""
    mfu: float | None = None
    """Model FLOPs utilisation, 0 to 1; only on devices whose peak is known."""
    grad_norm: float | None = None
    eta: str | None = None
    """Time left, for example `1h12m`."""
    updated: Time | None = None
    """When the step last moved."""


class CheckpointStatus(ApiModel):
    step: Number
    time: Time | None = None


class RestartRecord(ApiModel):
    """One counted restart."""

    time: Time
    attempt: Attempt
    """The attempt that ended."""
    reason: str
    step: Number = 0
    """The newest step it had finished; three attempts that do not move it end the job."""
    free: bool = False
    """Preemptions and evictions do not count against maxRestarts."""


class JobStatus(ApiModel):
    """What the operator saw, written by it alone."""

    phase: Phase | None = None
    """Where the job is; Succeeded and Failed are final."""
    conditions: list[Condition] = Field(default_factory=list)
    """Each with its reason and message."""
    observed_generation: int = 0
    """Generation of the spec that this status is about."""
    attempt: Attempt = 0
    """Number of the newest gang of pods; the first is 1."""
    restarts: Number = 0
    """New attempts so far, free ones included."""
    restart_history: Annotated[list[RestartRecord], Field(max_length=64)] = Field(default_factory=list)
    """The newest attempts that ended, oldest first."""
    mesh: str | None = None
    """For example `2x8: dp4 tp4`."""
    world_size: Number | None = None
    """Ranks of the whole mesh."""
    pods: PodCounts | None = None
    """Pods of the newest attempt, counted."""
    progress: ProgressStatus | None = None
    """How far the training is, from node 0."""
    checkpoint: CheckpointStatus | None = None
    """The newest complete checkpoint."""
    export_path: str | None = None
    """Where the exported model is."""
    model_revision: str | None = None
    """Commit of the model on the hub."""
    start_time: Time | None = None
    """When the job was first seen unsuspended."""
    attempt_start_time: Time | None = None
    """When the pods of the newest attempt were first all running."""
    active_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Time spent not suspended before `activeSince`."""
    active_since: Time | None = None
    """Start of the current stretch of activity; unset while suspended or finished."""
    completion_time: Time | None = None
    """When it ended."""
    goodput: float | None = None
    """Share of the active time spent on steps that were kept, 0 to 1."""
    message: str | None = None
    """What goes on, or why it ended, in a sentence."""


class ObjectMeta(BaseModel):
    """The part of metadata that is used; the rest (managedFields, annotations of others) is ignored."""

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
