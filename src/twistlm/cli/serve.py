"""`twistlm serve`."""

import os
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from tyro.conf import arg

from twistlm.cli.options import Count, Group, Positive, RunPath, Seed, SMCOptions, Text, TrustFunction
from twistlm.core.errors import ConfigError
from twistlm.integrations.server.limits import Limits

KEY = "TWISTLM_API_KEY"
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class OfAddress(Group):
    """Where it listens, and whom it lets in."""

    host: Annotated[Text, arg(help="Address; any other than this machine's own needs a key.")] = "127.0.0.1"
    port: Annotated[Annotated[int, Interval(ge=0, le=65535)], arg(help="Port; 0 takes a free one and says which.")] = (
        8000
    )
    api_key: Annotated[Text | None, arg(help=f"What clients must bring as their key. Default: ${KEY}, if set.")] = None
    name: Annotated[Text | None, arg(help="What clients call the model. Default: the name of the run's folder.")] = None


@dataclass(frozen=True)
class OfRequests(Group):
    """What one request may ask for, and how much may wait."""

    num_particles: Annotated[Count, arg(help="Particles of the run of SMC of each sequence, unless asked.")] = (
        Limits.num_particles
    )
    most_particles: Annotated[Count, arg(help="So many at most.")] = Limits.most_particles
    most_samples: Annotated[Count, arg(help="Sequences of one request at most.")] = Limits.most_samples
    most_drawn: Annotated[Count, arg(help="Its sequences × particles × tokens of a text at most.")] = Limits.most_drawn
    most_waiting: Annotated[Count, arg(help="Requests that may wait; more are told to try again (429).")] = (
        Limits.most_waiting
    )
    most_bytes: Annotated[Count, arg(help="Bytes of a request.")] = Limits.most_bytes
    timeout: Annotated[Positive, arg(help="Seconds until a request is given up (504).")] = Limits.timeout


def serve(
    run: RunPath,
    trust_function: TrustFunction = (),
    seed: Seed = 0,
    *,
    address: Annotated[OfAddress, arg(name="")],
    requests: Annotated[OfRequests, arg(name="")],
    smc: SMCOptions,
) -> None:
    """Answer requests for samples of a run's target, by OpenAI's interface: completions and chat completions.

    Each answer is drawn by weight from a run of SMC of its own. Beside OpenAI's fields it has `twistlm`: log Ẑ of that
    run (the weight that makes averages unbiased), log φ and log p₀. Requests that wait at the same time are drawn
    together. /health and /metrics (Prometheus) are for whoever watches it. Needs: pip install 'twistlm[serve]'.

    twistlm serve runs/toxic &
    curl localhost:8000/v1/completions -d '{"model": "toxic", "prompt": "Once upon a time, there was a", "n": 4}'
    """
    try:
        import uvicorn

        from twistlm.integrations.server.app import application
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'twistlm[serve]'") from error
    from twistlm.runs.run import Run

    key = address.api_key or os.environ.get(KEY) or None
    if address.host not in LOCAL and key is None:
        raise ConfigError(f"host {address.host} is open to others; give --api-key, or set {KEY}")
    limits = Limits(**requests.given)
    opened = Run.load(run, trust_functions=trust_function, draws=False)
    # A link is called as it is named itself; "." and ".." say no name.
    place = run.resolve() if run.name in ("", "..") else run
    name = address.name or place.name
    app = application(opened, name, limits=limits, api_key=key, seed=seed, **smc.for_run(trust_function))
    print(f"{name}: texts of {opened.target.num_tokens} tokens after any prompt; Ctrl-C ends it", flush=True)
    uvicorn.run(app, host=address.host, port=address.port, log_level="info", server_header=False)
