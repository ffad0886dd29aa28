"""The pool of draws that a training grows as it goes, and the labels on a part of it."""

from dataclasses import replace

from twistlm.core.rng import Rng
from twistlm.sampling.cases import Cases, rows_of
from twistlm.sampling.mixture import Pool
from twistlm.training.config import TrainingConfig
from twistlm.training.dense import labelled
from twistlm.training.losses import objective
from twistlm.training.sources import Setting


def grown(rng: Rng, config: TrainingConfig, setting: Setting, updates: int) -> Setting:
    """With a pool, or a larger one, by what so many updates would draw with the twist as it is."""
    sampler, cases, collected = setting.sampler, setting.targets, setting.collection
    count = config.num_particles * updates
    if setting.pool is not None:
        pool = setting.pool.grown(rng, sampler, cases, count)
    elif (
        config.pool_start == "collected"
        and collected is not None
        and collected.are_base_draws
        and all(map(len, rows_of(collected.draws.prompts, cases)))
    ):
        pool = Pool.of_base(sampler, collected.draws, cases)
    else:
        pool = Pool.begun(rng, sampler, cases, count)
    return replace(setting, pool=pool)


def relabelled(rng: Rng, config: TrainingConfig, setting: Setting, cases: Cases) -> Setting:
    """With labels by the twist as it is; none where none are asked for."""
    if not config.draws_from("dense") or setting.pool is None:
        return setting
    mean_log = objective(config.loss).labels == {"mean"}
    dense = labelled(rng, setting.sampler, setting.pool, cases, config.num_labels, mean_log=mean_log)
    return replace(setting, dense=dense)
