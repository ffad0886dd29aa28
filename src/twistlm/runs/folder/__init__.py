"""The run folder: everything about a run, readable without twistlm, and safe to kill at any moment::

    config.json              what was asked, and the versions that did it
    metrics.jsonl            one JSON object per line: updates, evaluations, warnings
    samples.jsonl            samples with weights and scores, token by token
    base_samples.jsonl       draws of the base model, to compare with
    diagnostics.json         what SMC recorded when it drew the samples
    draws.safetensors        base draws and which are exact target samples
    checkpoint.safetensors   twist, optimiser, progress
    twist.safetensors        the finished twist
    certificate.json         bounds and divergences
    evaluations/             the same from other times, with their settings
    samples/                 samples that others have taken the place of, with what SMC recorded of them
    done.json                in a sweep: a field that says that the run is finished, and hashes of what came out
    report.html, report/     what `twistlm report` makes of it all

Every file is replaced as a whole, except metrics.jsonl: it grows line by line, and resuming drops what it will redo.

Only this package knows these names and what stands in the files: others hand a `RunFolder` values with types, and get
such values back.

==============  =========================================================
file            what it knows
==============  =========================================================
run_folder.py   who may write, and the files that training makes
description.py  config.json
history.py      metrics.jsonl
samples.py      samples.jsonl, base_samples.jsonl, diagnostics.json
evaluations.py  certificate.json, evaluations/, done.json
place.py        that what is written goes into the folder that was opened
==============  =========================================================
"""

from twistlm.runs.folder.description import AskedRun, Described, Outline, versions
from twistlm.runs.folder.evaluations import Evaluation
from twistlm.runs.folder.history import History
from twistlm.runs.folder.run_folder import RunFolder
from twistlm.runs.folder.samples import SampleRow

__all__ = ["AskedRun", "Described", "Evaluation", "History", "Outline", "RunFolder", "SampleRow", "versions"]
