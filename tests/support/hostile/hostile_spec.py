"""Hostile jobs: names, types, numbers, paths, text and meshes."""

from __future__ import annotations

from hostile_job import NOBODY, OPERATOR, SERVER, Hostile, changed, job

MIB = 1024 * 1024
NAMES = [
    Hostile("name-50", job("a" * 50), NOBODY),
    Hostile("name-51", job("a" * 51), SERVER, "51 characters"),
    Hostile("name-63", job("a" * 63), SERVER, "use at most 50"),
    Hostile("name-253", job("a" * 253), SERVER, "metadata.name"),
    Hostile("name-254", job("a" * 254), SERVER, "metadata.name"),
    Hostile("name-1-mib", job("a" * MIB), SERVER, "1048576 characters"),
    Hostile("name-empty", job(""), SERVER, "metadata.name"),
    Hostile("name-number", job(7), SERVER, "metadata.name"),
    Hostile("name-ends-with-a-dash", job("demo-"), SERVER, "metadata.name"),
    Hostile("name-digit-first", job("7b"), SERVER, "starting with a letter"),
    Hostile("name-upper-case", job("Demo"), SERVER, "metadata.name"),
    Hostile("name-two-labels", job("demo.example"), SERVER, "not a DNS label"),
    Hostile("name-umlaut", job("jöb"), SERVER, "metadata.name"),
    Hostile("name-cyrillic-a", job("j\u0430b"), SERVER, "metadata.name"),
    Hostile("name-right-to-left", job("\u202eboj"), SERVER, "metadata.name"),
    Hostile("name-zero-width", job("de\u200bmo"), SERVER, "metadata.name"),
    Hostile("name-newline", job("demo\n"), SERVER, "metadata.name"),
    Hostile("name-path", job("../../etc"), SERVER, "metadata.name"),
    Hostile("name-of-a-service", job("kubernetes"), NOBODY),
    Hostile("name-like-another-jobs-pods", job("x-1-0"), NOBODY),
    Hostile("metadata-list", changed(metadata=[]), SERVER, "metadata"),
    Hostile("metadata-labels-null", job(metadata={"labels": None}), NOBODY),
    Hostile("metadata-labels-number", job(metadata={"labels": {"a": 1}}), SERVER, "metadata.labels.a"),
    Hostile("metadata-annotations-list", job(metadata={"annotations": []}), SERVER, "metadata.annotations"),
]
TYPES = [
    Hostile("other-version", changed(apiVersion="hftitan.io/v1"), SERVER, "apiVersion"),
    Hostile("other-kind", changed(kind="Pod"), SERVER, "kind"),
    Hostile("spec-list", changed(spec=[]), SERVER, "spec: must be a mapping"),
    Hostile("spec-text", changed(spec="steps: 5"), SERVER, "spec: must be a mapping"),
    Hostile("spec-empty", changed(spec={}), SERVER, "spec.model: is required"),
    Hostile("mesh-text", job(mesh="8"), SERVER, "spec.mesh: must be a mapping"),
    Hostile("mesh-null", job(mesh=None), NOBODY),
    Hostile("training-null", job(training=None), SERVER, "spec.training: is required"),
    Hostile("dataset-list", job(dataset=[{"name": "a/b"}]), SERVER, "spec.dataset: must be a mapping"),
    Hostile("pod-null", job(pod=None), NOBODY),
    Hostile("pod-list", job(pod=[]), SERVER, "spec.pod: must be a mapping"),
    Hostile("suspend-text", job(runPolicy={"suspend": "false"}), SERVER, "spec.runPolicy.suspend"),
    Hostile("resume-number", job(checkpoint={"resume": 1}), SERVER, "spec.checkpoint.resume"),
    Hostile("remote-code-text", job(model={"trustRemoteCode": "yes"}), SERVER, "spec.model.trustRemoteCode"),
    Hostile("revision-number", job(model={"revision": 1}), SERVER, "put it in quotes"),
    Hostile("overrides-list", job(model={"overrides": ["a"]}), SERVER, "spec.model.overrides"),
    Hostile("override-mapping", job(model={"overrides": {"a": {"b": 1}}}), SERVER, "spec.model.overrides.a"),
    Hostile("override-list", job(model={"overrides": {"a": [1]}}), SERVER, "spec.model.overrides.a"),
    Hostile("override-text-1-mib", job(model={"overrides": {"a": "x" * MIB}}), SERVER, "spec.model.overrides.a"),
    Hostile("overrides-65", job(model={"overrides": {f"k{i}": 1 for i in range(65)}}), SERVER, "use at most 64"),
    Hostile(
        "overrides-of-20-kib",
        job(model={"overrides": {f"k{i}": "x" * 4096 for i in range(5)}}),
        OPERATOR,
        "spec.model.overrides: 20530 bytes",
    ),
    Hostile("override-key-1-mib", job(model={"overrides": {"k" * MIB: 1}}), OPERATOR, "1048576 characters"),
    Hostile("override-of-the-type", job(model={"overrides": {"model_type": "x"}}), OPERATOR, "name another model"),
    Hostile("override-of-code", job(model={"overrides": {"auto_map": "x"}}), OPERATOR, "overrides.auto_map"),
    Hostile("unknown-section", job(mehs={"nodes": 8}), SERVER, "did you mean mesh?", ("strict",)),
    Hostile("snake-case", job(mesh={"gpus_per_node": 8}), SERVER, "did you mean gpusPerNode?", ("strict",)),
    Hostile(
        "ten-thousand-unknown-fields",
        job(mesh={f"field{i}": i for i in range(10_000)}),
        SERVER,
        "spec.mesh.field0: unknown field",
        ("strict",),
    ),
]
NUMBERS = [
    *(
        Hostile(f"steps-{name}", job(training={"steps": value}), SERVER, "spec.training.steps")
        for name, value in {
            "zero": 0,
            "negative": -1,
            "2-31": 2**31,
            "2-63": 2**63,
            "10-30": 10**30,
            "fraction": 1.5,
            "text": "10",
            "true": True,
            "nan-text": "NaN",
            "null": None,
            "list": [10],
        }.items()
    ),
    Hostile("steps-2-31-less-1", job(training={"steps": 2**31 - 1}), NOBODY),
    Hostile("lr-zero", job(optimizer={"lr": 0}), SERVER, "spec.optimizer.lr"),
    Hostile("lr-1e308", job(optimizer={"lr": 1e308}), SERVER, "spec.optimizer.lr"),
    Hostile("lr-infinite-text", job(optimizer={"lr": "inf"}), SERVER, "spec.optimizer.lr"),
    Hostile("lr-infinite", job(optimizer={"lr": float("inf")}), SERVER, "spec.optimizer.lr", carrier="python"),
    Hostile("lr-nan", job(optimizer={"lr": float("nan")}), SERVER, "spec.optimizer.lr", carrier="python"),
    Hostile("override-nan", job(model={"overrides": {"a": float("nan")}}), SERVER, "overrides.a", carrier="python"),
    Hostile("override-10-5000", job(model={"overrides": {"a": 10**5000}}), SERVER, "overrides.a", carrier="python"),
    Hostile("lr-tiny", job(optimizer={"lr": 5e-324}), NOBODY),
    Hostile("betas-three", job(optimizer={"betas": [0.9, 0.9, 0.9]}), SERVER, "spec.optimizer.betas"),
    Hostile("betas-one", job(optimizer={"betas": [0.9, 1]}), SERVER, "spec.optimizer.betas[1]"),
    Hostile("keep-none", job(checkpoint={"keep": 0}), SERVER, "spec.checkpoint.keep"),
    Hostile("restarts-64", job(runPolicy={"maxRestarts": 64}), SERVER, "use at most 63"),
    Hostile("ttl-2-31", job(runPolicy={"ttlSecondsAfterFinished": 2**31}), SERVER, "ttlSecondsAfterFinished"),
    Hostile("port-80", job(monitoring={"port": 80}), SERVER, "use at least 1024"),
    Hostile("port-65536", job(monitoring={"port": 65_536}), SERVER, "spec.monitoring.port"),
    Hostile("port-of-the-rendezvous", job(monitoring={"port": 29_400}), OPERATOR, "torchrun's rendezvous port"),
    Hostile("sequence-of-7", job(training={"seqLen": 7}), SERVER, "spec.training.seqLen"),
    Hostile("warm-up-too-long", job(lrSchedule={"warmupSteps": 11}), SERVER, "warmupSteps", ("cel",)),
    Hostile(
        "batch-no-multiple", job(training={"localBatchSize": 2, "globalBatchSize": 3}), SERVER, "use 2 or 4", ("cel",)
    ),
]
AXES = ("tp", "cp", "pp", "ep", "dpReplicate")
MESHES = [
    Hostile("mesh-5000-x-64", job(mesh={"nodes": 5000, "gpusPerNode": 64}), NOBODY),
    Hostile("mesh-5001", job(mesh={"nodes": 5001}), SERVER, "use at most 5000"),
    Hostile("mesh-100000-x-64", job(mesh={"nodes": 100_000, "gpusPerNode": 64}), SERVER, "use at most 5000"),
    Hostile("mesh-2-63", job(mesh={"nodes": 2**63}), SERVER, "spec.mesh.nodes"),
    Hostile("gpus-65", job(mesh={"gpusPerNode": 65}), SERVER, "spec.mesh.gpusPerNode"),
    Hostile("tp-2-31", job(mesh={"tp": 2**31}), SERVER, "spec.mesh.tp"),
    Hostile("axes-at-their-limits", job(mesh=dict.fromkeys(AXES, 100_000)), SERVER, "spec.mesh.tp: 100000", ("cel",)),
    Hostile("shard-minus-2", job(mesh={"dpShard": -2}), SERVER, "spec.mesh.dpShard"),
    Hostile("shard-zero", job(mesh={"dpShard": 0}), SERVER, "not a number of shards", ("cel",)),
    Hostile("shard-that-does-not-divide", job(mesh={"gpusPerNode": 8, "cp": 3}), SERVER, "spec.mesh.cp", ("cel",)),
    Hostile("shard-too-many", job(mesh={"gpusPerNode": 8, "dpShard": 16}), SERVER, "use 8 or -1", ("cel",)),
    Hostile("tp-across-nodes", job(mesh={"nodes": 4, "tp": 4}), SERVER, "must not span nodes", ("cel",)),
    Hostile("nodes-but-no-volume", job(mesh={"nodes": 2}, checkpoint={"volume": None}), SERVER, "Many claim", ("cel",)),
    Hostile("stages-without-work", job(mesh={"gpusPerNode": 8, "pp": 8}), SERVER, "8 pipeline stages", ("cel",)),
]  # fmt: skip
PATHS = [
    *(
        Hostile(f"folder-{name}", job(checkpoint={"folder": path}), SERVER, "spec.checkpoint.folder")
        for name, path in {
            "up": "../other",
            "up-inside": "a/../../b",
            "absolute": "/etc",
            "hidden": ".ssh",
            "empty-part": "a//b",
            "zero-width": "a\u200bb",
            "1-mib": "a" * MIB,
        }.items()
    ),
    Hostile("data-relative", job(dataset={"name": None, "path": "data"}), SERVER, "spec.dataset.path"),
    Hostile("data-newline", job(dataset={"name": None, "path": "/data\n/x"}), SERVER, "spec.dataset.path"),
    Hostile("data-up", job(dataset={"name": None, "path": "/data/../proc/1/environ"}), OPERATOR, "'..'"),
    Hostile("data-right-to-left", job(dataset={"name": None, "path": "/\u202etxt.exe"}), OPERATOR, "U+202E"),
    Hostile("data-of-two-kinds", job(dataset={"path": "/data"}), SERVER, "keep one of them", ("cel",)),
    Hostile("data-emoji", job(dataset={"name": None, "path": "/daten/größe/👩\u200d🔬"}), NOBODY),
    Hostile("model-up", job(model={"name": "../../etc"}), SERVER, "spec.model.name"),
    Hostile("model-folder-up", job(model={"name": "/models/../etc"}), OPERATOR, "'..'"),
    Hostile("model-three-parts", job(model={"name": "a/b/c"}), SERVER, "spec.model.name"),
    Hostile("model-url", job(model={"name": "https://example.com/x"}), SERVER, "spec.model.name"),
    Hostile("model-shell", job(model={"name": "a/b; reboot"}), SERVER, "spec.model.name"),
    Hostile("model-zero-width", job(model={"name": "org/mo\u200bdel"}), SERVER, "spec.model.name"),
    Hostile("volume-with-an-empty-part", job(checkpoint={"volume": "a..b"}), SERVER, "spec.checkpoint.volume"),
]
TEXT = [
    Hostile("revision-zero-width", job(model={"revision": "ma\u200bin"}), OPERATOR, "U+200B"),
    Hostile("revision-1-mib", job(model={"revision": "x" * MIB}), SERVER, "spec.model.revision"),
    Hostile("revision-escape", job(model={"revision": "\x1b[2J"}), OPERATOR, "U+001B"),
    Hostile("revision-c1-escape", job(model={"revision": "\x9b2J"}), OPERATOR, "U+009B"),
    Hostile("revision-any-language", job(model={"revision": "größe-中文-שלום"}), NOBODY),
    Hostile("split-right-to-left", job(dataset={"split": "\u202eniart"}), OPERATOR, "spec.dataset.split"),
    Hostile("text-field-bom", job(dataset={"textField": "\ufefftext"}), OPERATOR, "U+FEFF"),
    Hostile("text-field-line-end", job(dataset={"textField": "a\u2028b"}), OPERATOR, "U+2028"),
    Hostile("half-a-pair", job(model={"revision": "\ud800"}), SERVER, "spec.model.revision", carrier="python"),
]
TABLE = [*NAMES, *TYPES, *NUMBERS, *MESHES, *PATHS, *TEXT]
