"""Maps tensors of a checkpoint to their place, where DCP's own resharding does not suffice.

One thing differs between meshes besides the shards: a tied model has its embedding once, except on a pipeline, whose
last stage keeps a copy as its head (model/tied.py). Both take equal steps for ever, so the head's optimizer state is
the embedding's wherever the checkpoint has none of its own.
"""

from __future__ import annotations

from dataclasses import replace

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_local_load_plan
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan

HEAD, EMBEDDING = "model.lm_head.weight", "model.model.embed_tokens.weight"


class HeadFromEmbedding(DefaultLoadPlanner):
    """Reads what is asked for the head, and is not there, from the embedding's place."""

    def create_local_plan(self) -> LoadPlan:
        stored = self.metadata.state_dict_metadata
        missing = [name for name in self.state_dict if HEAD in name and name not in stored]
        heads = {name: self.state_dict.pop(name) for name in missing}
        plan = super().create_local_plan()
        # On the last stage the embedding's own names are free.
        stand_ins = {name.replace(HEAD, EMBEDDING): value for name, value in heads.items()}
        extra = create_default_local_load_plan(stand_ins, self.metadata)
        self.state_dict.update(heads)
        items = [replace(item, dest_index=_of_head(item.dest_index)) for item in extra.items]
        return replace(plan, items=[*plan.items, *items])


def _of_head(index: MetadataIndex) -> MetadataIndex:
    return replace(index, fqn=index.fqn.replace(EMBEDDING, HEAD))
