"""docs/architectures.md: each family on each axis beside transformers' numbers, or the reason why it is refused.

The committed table is compared by its verdicts; `hack/architectures` runs these tests and writes it anew, digits and
all.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import harness  # noqa: E402
from test_meshes import distance, losses, norms  # noqa: E402
from test_parity import OTHERS, reference  # noqa: E402

from hftitan_api.families import UNBUILDABLE, WINDOWED  # noqa: E402

TABLE = HERE.parents[1] / "docs" / "architectures.md"
AXES = {
    "dp": {"dpShard": 2},
    "tp": {"tp": 2},
    "pp": {"pp": 2},
    "cp": {"cp": 2},
    "ep": {"dpShard": 2, "ep": 2},
}
STEPS = 2
HEAD = f"""# Architectures

Written by `hack/architectures`, from tiny models with random Hugging Face weights in float32 on CPUs.

- **loads**: loss and gradient norm of the first step, beside those of transformers' own class on the same packed batch.
- **dp**, **tp**, **pp**, **cp**, **ep**: loss and gradient norm of {STEPS} steps on two processes, beside one process.
- **export**: logits of the exported folder, loaded by transformers, beside those of the model in memory (absolute).

A number is the largest relative difference; 1e-4 is allowed in the first column and 1e-3 in the others. The tiny models
of types with sliding windows have one of {harness.WINDOW} tokens, far shorter than their rows. For the types
{", ".join(sorted(WINDOWED)[:-1])} and {sorted(WINDOWED)[-1]} a sequence may be longer
than the window; with others it is refused. The load-balancing loss of mixtures is not computed: a config that asks for
it (`output_router_logits`) is refused.

Families without a row: the first step of {", ".join(OTHERS[:-1])} and {OTHERS[-1]} equals
transformers' as well. What has mixtures of another type, layers with a state (Mamba, linear attention), attention to
later words or parts of other names than Llama's is refused by name; other families are trained by transformers' own
forward pass, uncompared. On {", ".join(UNBUILDABLE)} the backend fails; they are refused by name.

"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("architectures")
    for family, how in harness.FAMILIES.items():
        harness.make_model(root / family, **how)
    return root


def case(root: Path, family: str, degrees: dict[str, int], **more) -> dict:
    spec = harness.trainer_spec(root / family, **harness.mesh(STEPS, **degrees))
    return {"spec": spec, "rows": harness.rows(4 * STEPS), **more}


def refusal(spec: dict) -> str | None:
    """Why the trainer takes no such job."""
    from hftitan_api.wire import TrainerSpec
    from hftitan_trainer.checks import check_model_on_mesh
    from hftitan_trainer.errors import UserError
    from hftitan_trainer.hf_model import fetch_model

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
    """(family, column) -> largest difference, or the reason of the refusal."""
    found: dict[tuple[str, str], float | str] = {}
    singles = {f: case(root, f, {}, export=str(root / f"{f}-exported"), logits=True) for f in harness.FAMILIES}
    one = dict(zip(singles, harness.run_worker(list(singles.values()), root / "one", world=1), strict=True))
    for family, result in one.items():
        loss, norm = reference(root / family, harness.rows(4))
        found[family, "loads"] = difference([losses(result)[0], norms(result)[0]], [loss, norm])
        found[family, "export"] = distance(exported(root / f"{family}-exported"), result["logits"])
    cases = {}
    for family in harness.FAMILIES:
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


@pytest.mark.parametrize("family", harness.FAMILIES)
def test_a_family_is_right_or_refused(cells, family):
    mine = {column: value for (name, column), value in cells.items() if name == family}
    assert set(mine) == {"loads", *AXES, "export"}
    assert mine["loads"] < 1e-4
    assert mine["export"] < 1e-4
    wrong = {axis: mine[axis] for axis in AXES if not isinstance(mine[axis], str) and mine[axis] > 1e-3}
    assert not wrong


def test_the_committed_table_says_so(cells):
    table = HEAD + rendered(cells)
    if os.environ.get("WRITE_ARCHITECTURES"):
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table)
    assert verdicts(TABLE.read_text()) == verdicts(table), "run hack/architectures"


def rendered(cells: dict[tuple[str, str], float | str]) -> str:
    columns = ("loads", *AXES, "export")
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    reasons: dict[str, int] = {}
    for family in harness.FAMILIES:
        row = []
        for column in columns:
            value = cells[family, column]
            if isinstance(value, str):
                row.append(f"refused ({reasons.setdefault(value, len(reasons) + 1)})")
            else:
                row.append(f"{value:.0e}" if value else "0")
        lines.append(f"| {family} | {' | '.join(row)} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, "", "Refused because:", "", *notes, ""])


def verdicts(table: str) -> str:
    """The table without its digits."""
    return re.sub(r"(?<=\| )(0|\d+e[+-]\d+)(?= \|)", "yes", table)
