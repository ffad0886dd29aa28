"""What a network keeps of prefixes that it has read: all layers together, and which prefix each goes on from."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from twistlm.models.groups import Groups

# Columns between looks for what all prefixes share, and the fewest worth moving.
SHARE_EVERY = 32


@dataclass(frozen=True)
class PrefixCache:
    """Key–value cache of U prefixes, right-aligned: `padding` [U] columns on the left mean nothing.

    `attends`: its layers are `PrefixLayer`s. `nodes` [U, L]: which row of its time each prefix descends from, at every
    column after the prompt, so that columns can be told in which all prefixes agree; None if there was not one prompt.
    `groups`: which prompt each prefix goes on from where each is kept once (`padding` is what a prompt is shorter than
    the longest, and no column); None elsewhere.
    """

    layers: Cache
    padding: Tensor
    padded: bool
    attends: bool
    nodes: Tensor | None = None
    groups: Groups | None = None

    def after(self, parents: Tensor) -> "PrefixCache":
        """That of the prefixes `parents` [U']; the layers themselves are moved, not copied."""
        own = torch.arange(len(self.padding), device=parents.device)
        if parents.shape == self.padding.shape and torch.equal(parents, own):
            return self
        for layer in self.layers.layers:
            layer.reorder_cache(parents)
        nodes = None if self.nodes is None else self.nodes[parents]
        groups = None if self.groups is None else self.groups.after(parents)
        if groups is not None:
            for layer in self.layers.layers:
                layer.groups = groups
        return replace(self, padding=self.padding[parents], nodes=nodes, groups=groups)

    def coalesced(self) -> "PrefixCache":
        """This after a step: what all prefixes have come to share is kept once, like the prompt.

        Under resampling the ancestry of N particles is a tree of T + O(N log N) nodes (Jacob, Murray and Rubenthaler,
        2015): all but the last columns are the same in every row, and then need not be read, moved or kept N times.
        """
        if self.nodes is None:
            return self
        nodes = torch.cat([self.nodes, torch.arange(len(self.nodes), dtype=torch.int32).unsqueeze(-1)], -1)
        if nodes.shape[-1] % SHARE_EVERY == 0:
            # Lineages that have met stay together: where all agree, they agree in all columns before.
            count = int((nodes == nodes[:1]).all(0).sum())
            if count >= SHARE_EVERY:
                for layer in self.layers.layers:
                    layer.share(count)
                nodes = nodes[:, count:]
        return replace(self, nodes=nodes)
