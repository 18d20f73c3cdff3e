"""Maps tensors of a checkpoint to their place, where DCP's own resharding is not sufficient.

Besides the shards, one thing differs between meshes: a tied model has its embedding once, but on a pipeline the last
stage has a copy as its head (model/tied.py). Both copies always take the same steps. So if a checkpoint has no
optimizer state of the head, the embedding's is used.
"""

from __future__ import annotations

from dataclasses import replace

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_local_load_plan
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan

HEAD, EMBEDDING = "model.lm_head.weight", "model.model.embed_tokens.weight"


class HeadFromEmbedding(DefaultLoadPlanner):
    """Reads tensors of the head that the checkpoint does not have from those of the embedding."""

    def create_local_plan(self) -> LoadPlan:
        stored = self.metadata.state_dict_metadata
        missing = [name for name in self.state_dict if HEAD in name and name not in stored]
        heads = {name: self.state_dict.pop(name) for name in missing}
        plan = super().create_local_plan()
        # The last stage has no embedding, so the embedding's names are unused.
        stand_ins = {name.replace(HEAD, EMBEDDING): value for name, value in heads.items()}
        extra = create_default_local_load_plan(stand_ins, self.metadata)
        self.state_dict.update(heads)
        items = [replace(item, dest_index=_of_head(item.dest_index)) for item in extra.items]
        return replace(plan, items=[*plan.items, *items])


def _of_head(index: MetadataIndex) -> MetadataIndex:
    return replace(index, fqn=index.fqn.replace(EMBEDDING, HEAD))
