"""docs/architectures.md: each family on each axis compared with transformers, or the reason why it is refused.

The tests check the committed table without its digits, for some families. `hack/architectures` runs them with every
family and rewrites the document, digits included.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path

import harness
import pytest
from comparison import distance, losses, norms, reference
from paths import ROOT
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as OFFERED

from hftitan_api.families import WINDOWED

TABLE = ROOT / "docs" / "architectures.md"
AXES = {
    "dp": {"dpShard": 2},
    "tp": {"tp": 2},
    "pp": {"pp": 2},
    "cp": {"cp": 2},
    "ep": {"dpShard": 2, "ep": 2},
}
STEPS = 2
WRITE = "WRITE_ARCHITECTURES" in os.environ
# Families with features that those above lack: other module layouts, trained activations, norms of other shapes.
SAMPLE = ("apertus", "cohere", "exaone4", "glm4", "starcoder2")
EVERY = {**harness.FAMILIES, **harness.OTHERS}
TESTED = {f: how for f, how in EVERY.items() if WRITE or f in harness.FAMILIES or f in SAMPLE}
HEAD = f"""# Architectures

`hack/architectures` writes this document. It trains tiny models with random Hugging Face weights in float32 on CPUs.

- **loads**: loss and gradient norm of the first step, compared with transformers' own class on the same packed batch.
- **dp**, **tp**, **pp**, **cp**, **ep**: loss and gradient norm of {STEPS} steps on two processes, compared with one
  process.
- **export**: logits of the exported folder, loaded by transformers, compared with those of the model in memory.

A number is the largest relative difference; for **export**, the largest absolute difference. The limit is 1e-4 for
**loads** and **export**, and 1e-3 for the others. The tiny models of types with sliding windows (*) have a window of
{harness.WINDOW} tokens, much shorter than their rows. The load-balancing loss of mixtures is not computed: a config
that requests it (`output_router_logits`) is refused.

{len(EVERY)} of the {len(OFFERED)} families of causal language models in transformers {version("transformers")} have a
row. All others are refused by name before training: other types of mixtures, layers with a state (Mamba, linear
attention), attention to later tokens, modules that torchtitan's backend does not find. A model with its own code
(`trustRemoteCode`) is not refused for this reason.

"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("architectures")
    for family, how in TESTED.items():
        harness.make_model(root / family, **how)
    return root


def case(root: Path, family: str, degrees: dict[str, int], **more) -> dict:
    spec = harness.trainer_spec(root / family, **harness.mesh(STEPS, **degrees))
    return {"spec": spec, "rows": harness.rows(4 * STEPS), **more}


def refusal(spec: dict) -> str | None:
    """Return the reason why the trainer refuses the job; None if it accepts it."""
    from hftitan_api.wire import TrainerSpec
    from hftitan_trainer.model.checks import check_model_on_mesh
    from hftitan_trainer.model.folder import fetch_model
    from hftitan_trainer.process.errors import UserError

    parsed = TrainerSpec.model_validate(spec)
    try:
        check_model_on_mesh(fetch_model(parsed.model).config, parsed)
    except UserError as error:
        name = spec["model"]["name"]
        reason = str(error).partition(": ")[2].replace(f"2 does not work for {name}: ", "").replace(name, "this")
        return reason.replace(f"models of type {Path(name).name}", "models of this type").removesuffix("; use 1")
    return None


@pytest.fixture(scope="module")
def cells(root):
    """Map (family, column) to the largest difference, or to the reason of the refusal."""
    found: dict[tuple[str, str], float | str] = {}
    singles = {f: case(root, f, {}, export=str(root / f"{f}-exported"), logits=True) for f in TESTED}
    one = dict(zip(singles, harness.run_worker(list(singles.values()), root / "one", world=1), strict=True))
    for family, result in one.items():
        loss, norm = reference(root / family, harness.rows(4))
        found[family, "loads"] = difference([losses(result)[0], norms(result)[0]], [loss, norm])
        found[family, "export"] = distance(exported(root / f"{family}-exported"), result["logits"])
    cases = {}
    for family in TESTED:
        for axis, degrees in AXES.items():
            wanted = case(root, family, degrees)
            reason = refusal(wanted["spec"])
            if reason is None:
                cases[family, axis] = wanted
            else:
                found[family, axis] = reason
    two = harness.run_worker(list(cases.values()), root / "two", world=2)
    for (family, axis), result in zip(cases, two, strict=True):
        single = one[family]
        found[family, axis] = difference(losses(result) + norms(result), losses(single) + norms(single))
    return found


def exported(folder: Path) -> list[list[float]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([harness.rows(1)[0]["input"]])).logits[0].tolist()


def difference(values: list[float], others: list[float]) -> float:
    return max(abs(a / b - 1) for a, b in zip(values, others, strict=True))


@pytest.mark.parametrize("family", TESTED)
def test_a_family_equals_transformers_or_is_refused(cells, family):
    mine = {column: value for (name, column), value in cells.items() if name == family}
    assert set(mine) == {"loads", *AXES, "export"}
    assert mine["loads"] < 1e-4
    assert mine["export"] < 1e-4
    wrong = {axis: mine[axis] for axis in AXES if not isinstance(mine[axis], str) and mine[axis] > 1e-3}
    assert not wrong


def test_the_committed_table_has_these_verdicts(cells):
    table = HEAD + rendered(cells)
    if WRITE:
        TABLE.write_text(table)
    committed = TABLE.read_text()
    assert committed.startswith(HEAD), "run hack/architectures"
    assert set(verdicts(committed)) == set(EVERY), "run hack/architectures"
    mine = verdicts(table)
    assert mine == {family: verdicts(committed)[family] for family in mine}, "run hack/architectures"


def rendered(cells: dict[tuple[str, str], float | str]) -> str:
    columns = ("loads", *AXES, "export")
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    reasons: dict[str, int] = {}
    for family in TESTED:
        row = []
        for column in columns:
            value = cells[family, column]
            if isinstance(value, str):
                row.append(f"refused ({reasons.setdefault(value, len(reasons) + 1)})")
            else:
                row.append(f"{value:.0e}" if value else "0")
        lines.append(f"| {family}{' *' if family in WINDOWED else ''} | {' | '.join(row)} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, "", "Refused because:", "", *notes, ""])


def verdicts(table: str) -> dict[str, list[str]]:
    """Return the rows of the table with "yes" instead of numbers and with the reasons instead of their references."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", table, re.MULTILINE))
    found = {}
    for row in re.findall(r"^\| (\w.*) \|$", table, re.MULTILINE):
        family, *cells = row.split(" | ")
        numbers = (re.fullmatch(r"refused \((\d+)\)", cell) for cell in cells)
        found[family.removesuffix(" *")] = [reasons[number[1]] if number else "yes" for number in numbers]
    return found
