"""Compares the state diagram of docs/concepts.md with the phase changes of the core."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from core_builders import job
from core_cluster import Cluster, play
from paths import ROOT

from hftitan_api.models import Phase
from hftitan_operator.core.lifecycle.draft import Draft

DOCUMENT = (ROOT / "docs" / "concepts.md").read_text()
DIAGRAM = DOCUMENT.split("```mermaid\n")[1].split("```")[0]
REACH = {
    "Pending": "pass",
    "Starting": "pass kubelet pass",
    "Running": "pass kubelet pass train:3 pass",
    "Restarting": "pass kubelet pass train:3 pass long_tick pass",
    "Suspended": "pass kubelet pass train:3 pass suspend pass",
}
"""Operations of core_cluster.play that bring a new job of two nodes into a phase."""
LEAVE = {
    ("Pending", "Starting"): "kubelet pass",
    ("Pending", "Running"): "kubelet train:3 pass",
    ("Pending", "Restarting"): "crash_pod:1 pass",
    ("Pending", "Suspended"): "suspend pass",
    ("Pending", "Succeeded"): "kubelet complete pass",
    ("Pending", "Failed"): "bad_image:0 pass",
    ("Starting", "Running"): "train:3 pass",
    ("Starting", "Restarting"): "crash_pod:1 pass",
    ("Starting", "Suspended"): "suspend pass",
    ("Starting", "Succeeded"): "complete pass",
    ("Starting", "Failed"): "exit:0 pass",
    ("Running", "Restarting"): "crash_pod:1 pass",
    ("Running", "Suspended"): "suspend pass",
    ("Running", "Succeeded"): "complete pass",
    ("Running", "Failed"): "exit:0 pass",
    ("Restarting", "Pending"): "pass kubelet pass pass",
    ("Restarting", "Suspended"): "suspend pass",
    ("Restarting", "Succeeded"): "complete pass",
    ("Restarting", "Failed"): "exit:0 pass",
    ("Suspended", "Restarting"): "resume pass",
}
"""Phase changes, with operations that cause them."""


def drawn() -> set[tuple[str, str]]:
    """Return the edges of the diagram, with the group replaced by its phases. A resumed job enters it at Restarting."""
    outside, _, rest = DIAGRAM.partition("    state Active {\n")
    inside, _, after = rest.partition("    }\n")
    edges = set(re.findall(r"(\w+) --> (\w+)", inside))
    active = {phase for edge in edges for phase in edge}
    for source, target in re.findall(r"(\w+) --> (\w+)", outside + after):
        enters = target == "Active"
        edges |= {(phase, "Restarting" if enters else target) for phase in (active if source == "Active" else [source])}
    return edges


def test_every_phase_is_in_the_diagram_and_in_the_table():
    phases = set(get_args(Phase))
    assert {phase for edge in drawn() for phase in edge} == phases
    assert set(re.findall(r"^\| `(\w+)` \| ", DOCUMENT, re.MULTILINE)) == phases


def test_the_diagram_has_every_phase_change():
    """Except one, which is in the text below it."""
    assert drawn() | {("Pending", "Running")} == LEAVE.keys()
    assert "goes from\n`Pending` to `Running`" in DOCUMENT


@pytest.mark.parametrize(("before", "after"), LEAVE)
def test_the_core_changes_the_phase(monkeypatch, before, after):
    changes = []
    original = Draft.phase

    def recorded(self, phase, message):
        changes.append((self.status.phase, phase))
        original(self, phase, message)

    monkeypatch.setattr(Draft, "phase", recorded)
    world = Cluster(job(nodes=2))
    for words in (REACH[before], LEAVE[before, after]):
        for word in words.split():
            name, _, number = word.partition(":")
            play(world, name, int(number or 0))
        if words == REACH[before]:
            assert world.job.status.phase == before
    assert (before, after) in changes
