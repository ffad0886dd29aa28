"""Processes to be killed that begin with everything imported, so that their seconds are spent on what is tested."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

# A server that does nothing but import, and fork: a fork of pytest's own process would lack its threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.conftest", "twistlm.cli", "twistlm.runs.train", "twistlm.models.huggingface"])


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process, already running, that calls the function and ends; it is a module's, and the arguments pickle."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process
