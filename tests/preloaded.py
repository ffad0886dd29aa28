"""Imported by the server of `tests.forked`: all that commands import, and nothing that starts a thread."""

import twistlm.models.huggingface
import twistlm.report.page
import twistlm.report.probability_page
import twistlm.runs.certify
import twistlm.runs.probability
import twistlm.runs.sweeps.sweep
import twistlm.runs.train  # noqa: F401
from twistlm.core import registry

for kind in registry.HOMES:
    # twistlm's own alone: plugins are for each process to look for.
    registry._import(kind)
