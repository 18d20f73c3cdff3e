"""docs/commands.md from the commands themselves: `python -m hftitan_operator.cli.reference`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import typer

from hftitan_operator.cli.main import app

GROUPS: Mapping[str, tuple[str, ...]] = {
    "On this machine": ("validate", "plan", "render", "run", "report"),
    "On a cluster": ("submit", "list", "status", "logs", "describe", "events", "suspend", "resume", "delete"),
    "For whoever installs it": ("operator", "crd", "rbac"),
}

HEAD = """\
<!-- Generated from the commands by `make generate`; do not edit. -->
# Commands

Results go to standard output, what went wrong to standard error. Exit codes:

| code | meaning |
| --- | --- |
| 0 | done; of `run`, `submit --wait` and `status --watch`: the job succeeded |
| 1 | the job failed, or the cluster cannot do it (no answer, no such job, not allowed) |
| 2 | a job file or an argument that cannot be |
| 128 + N | stopped by signal N (Ctrl-C: 130); a job on a cluster goes on |

The shell completes commands, options and, on a cluster, the names of jobs once `hftitan --install-completion` was run
(bash, zsh, fish, PowerShell).

The commands on a cluster use your kubeconfig as kubectl does: `--kubeconfig`, else `KUBECONFIG`, else `~/.kube/config`;
the namespace is `-n`, else the context's. They are thin: kubectl alone is enough for everything.

| command | with kubectl |
| --- | --- |
| `hftitan submit job.yaml` | `kubectl create -f job.yaml` (`submit` checks the mesh against the model first) |
| `hftitan submit --dry-run job.yaml` | `kubectl create --dry-run=server -f job.yaml` |
| `hftitan list` | `kubectl get htj` |
| `hftitan status NAME --watch` | `kubectl get htj NAME --watch` |
| `hftitan logs NAME -f` | `kubectl logs -f -l hftitan.io/job=NAME` (stops at the end of an attempt) |
| `hftitan logs NAME --rank 9` | `kubectl logs NAME-ATTEMPT-NODE`, its lines marked `[rank 9]` |
| `hftitan describe NAME`, `hftitan events NAME` | `kubectl describe htj NAME` |
| `hftitan suspend NAME` | `kubectl patch htj NAME --type merge -p '{"spec":{"runPolicy":{"suspend":true}}}'` |
| `hftitan resume NAME` | the same with `false` |
| `hftitan delete NAME` | `kubectl delete htj NAME` |

Your account needs `get`, `list`, `watch`, `create`, `patch` and `delete` on `hftitanjobs.hftitan.io`, `get` and `list`
on `pods`, `get` on `pods/log` and `list` on `events`; without one of them the commands that need it say which.

`-o json` prints what the API server holds, and one object a line where something is followed: `logs` (`time`, `pod`,
`node`, `attempt`, `rank`, `line`) and `status --watch` or `submit --wait`, with the lines of `hftitan run -o json`.

One pod holds the ranks of one node, and they write to one log. `logs --rank R` finds the pod and shows the lines that
the trainer or PyTorch marked with that rank, what follows them without a mark, and torchrun's own lines. Rank 0 tells
the progress, the others warnings and errors.
"""


def markdown() -> str:
    commands: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = [name for names in GROUPS.values() for name in names]
    missing = [name for name in commands if name not in known]
    assert not missing, f"add {missing} to GROUPS"
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += ["\n".join(_command(name, commands[name])) for name in names if name in commands]
    return "\n".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    yield f"### hftitan {name}\n"
    yield f"`{' '.join(['hftitan', name, *(p.metavar or p.name.upper() for p in arguments), '[OPTIONS]'])}`\n"
    yield f"{_line(command.help)}\n"
    yield "| | |\n| --- | --- |"
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            yield f"| `{parameter.metavar}` | {_line(parameter.help)} |"
        else:
            yield f"| {_option(parameter)} | {_text(parameter)} |"
    yield ""


def _option(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or _value(option)}"
    return f"`{', '.join([*option.opts, *option.secondary_opts])}{value}`"


def _value(option: Any) -> str:
    if isinstance(option.default, Enum):
        return "/".join(str(choice.value) for choice in type(option.default))
    return str(option.name.upper())


def _text(option: Any) -> str:
    """The help, which names a default that is not said by the value itself."""
    default = getattr(option.default, "value", option.default)
    shown = "" if option.is_flag or default is None or callable(default) else f" (default: `{default}`)"
    return _line(option.help or "") + shown


def _line(text: str | None) -> str:
    words = " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"\[default: (.*?)\]", r"(default: \1)", words)


if __name__ == "__main__":
    print(markdown(), end="")
