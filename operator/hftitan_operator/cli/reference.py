"""Generates docs/commands.md from the commands: `python -m hftitan_operator.cli.reference`."""

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
    "For administrators": ("operator", "crd", "rbac"),
}

HEAD = """\
<!-- Generated from the commands by `make generate`; do not edit. -->
# Commands

Results go to standard output, errors to standard error. Exit codes:

| code | meaning |
| --- | --- |
| 0 | success; for `run`, `submit --wait` and `status --watch`: the job succeeded |
| 1 | the job failed, or the cluster rejected the request (no answer, no such job, not allowed) |
| 2 | invalid job file or argument |
| 128 + N | stopped by signal N (Ctrl-C: 130); a job on a cluster keeps running |

Run `hftitan --install-completion` once to complete commands, options and the names of jobs on a cluster (bash, zsh,
fish, PowerShell).

The cluster commands find your kubeconfig as kubectl does: `--kubeconfig`, then `KUBECONFIG`, then `~/.kube/config`. The
namespace is `-n`, or the context's. kubectl alone is enough for everything they do:

| command | with kubectl |
| --- | --- |
| `hftitan submit job.yaml` | `kubectl create -f job.yaml` (`submit` checks the mesh against the model first) |
| `hftitan submit --dry-run job.yaml` | `kubectl create --dry-run=server -f job.yaml` |
| `hftitan list` | `kubectl get htj` |
| `hftitan status NAME --watch` | `kubectl get htj NAME --watch` |
| `hftitan logs NAME -f` | `kubectl logs -f -l hftitan.io/job=NAME` (stops at the end of an attempt) |
| `hftitan logs NAME --rank 9` | `kubectl logs NAME-ATTEMPT-NODE`, lines marked `[rank 9]` |
| `hftitan describe NAME`, `hftitan events NAME` | `kubectl describe htj NAME` |
| `hftitan suspend NAME` | `kubectl patch htj NAME --type merge -p '{"spec":{"runPolicy":{"suspend":true}}}'` |
| `hftitan resume NAME` | the same with `false` |
| `hftitan delete NAME` | `kubectl delete htj NAME` |

Your account needs `get`, `list`, `watch`, `create`, `patch` and `delete` on `hftitanjobs.hftitan.io`, `get` and `list`
on `pods`, `get` on `pods/log` and `list` on `events`; a command that lacks a permission names it.

`-o json` prints the API server's object. Commands that follow a job print one object per line: `logs` (`time`, `pod`,
`node`, `attempt`, `rank`, `line`) and `status --watch` or `submit --wait`, as `hftitan run -o json` does.

A pod runs all ranks of one node, and they share one log. `logs --rank R` finds the pod and shows the lines marked with
that rank, the unmarked lines that follow them, and torchrun's own lines. Rank 0 logs progress; the other ranks log
warnings and errors.
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
    """Return the help text, with the default unless the help already names it."""
    default = getattr(option.default, "value", option.default)
    shown = "" if option.is_flag or default is None or callable(default) else f" (default: `{default}`)"
    return _line(option.help or "") + shown


def _line(text: str | None) -> str:
    words = " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"\[default: (.*?)\]", r"(default: \1)", words)


if __name__ == "__main__":
    print(markdown(), end="")
