"""Every family of causal language models in transformers is compared with it, or refused by name before training."""

from __future__ import annotations

import harness
import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hftitan_api.families import DENSE, MIXTURES, WINDOWED, WITHOUT_PIPELINE, WITHOUT_TENSOR_PARALLELISM
from hftitan_api.models import ModelSpec
from hftitan_api.shape import ModelShape
from hftitan_trainer.model.folder import _check_trainable
from hftitan_trainer.process.errors import UserError

COMPARED = DENSE | MIXTURES


def test_every_allowed_family_is_compared():
    """test_parity.py and test_architectures.py compare each of them with transformers."""
    assert {*harness.FAMILIES, *harness.OTHERS} == COMPARED
    assert not DENSE & MIXTURES
    assert {*WITHOUT_PIPELINE, *WITHOUT_TENSOR_PARALLELISM} <= DENSE


def test_every_allowed_sliding_window_is_compared():
    tiny = {name for name, how in {**harness.FAMILIES, **harness.OTHERS}.items() if how.get("sliding_window")}
    assert tiny == WINDOWED


@pytest.mark.parametrize("family", sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - COMPARED))
def test_a_family_that_was_not_compared_is_refused(family):
    try:
        config = AutoConfig.for_model(family)
    except (StrictDataclassError, ValueError):  # not a model by itself: its config needs another model's config
        config = None
    values = {"model_type": family} if config is None else config.to_dict()
    if ModelShape.from_config(values).refused:
        return
    with pytest.raises(UserError, match="is not a text-only decoder"):
        _check_trainable(config, ModelSpec(name="/model"))
