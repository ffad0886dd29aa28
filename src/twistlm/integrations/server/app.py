"""Addresses, keys, limits, health and metrics: the ASGI application of a run."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from twistlm.core.errors import DeadParticlesError, PromptError, TwistError
from twistlm.integrations.answers import sampler_of
from twistlm.integrations.server.desk import Desk, OverloadedError
from twistlm.integrations.server.limits import Limits
from twistlm.integrations.server.wire import Asked, RefusedError, answer
from twistlm.runs.run import Run

# Seconds between looks whether a client still waits.
LOOKING = 0.5


def application(
    run: Run,
    name: str,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Starlette:
    """The ASGI application of a run.

    Args:
        run: the run.
        name: what requests call it.
        limits: see there.
        api_key: what requests have to bring; None lets everybody in.
        seed: of requests without one.
        **options: of `Run.sampler`.

    Raises:
        ConfigError: its target is given a condition, for which requests have no field.
    """
    desk = Desk(run, sampler_of(run, **options), limits or Limits(), seed)
    return _Server(run, name, desk, api_key).app


class _Server:
    def __init__(self, run: Run, name: str, desk: Desk, api_key: str | None) -> None:
        self.run, self.name, self.desk, self.api_key = run, name, desk, api_key
        self.limits, self.begun = desk.limits, int(time.time())
        self.registry = CollectorRegistry()
        self.requests = Counter("twistlm_requests", "Requests, by status", ["status"], registry=self.registry)
        self.tokens = Counter("twistlm_tokens", "Tokens that were answered", registry=self.registry)
        self.seconds = Histogram("twistlm_seconds", "Seconds until a request was answered", registry=self.registry)
        waiting = Gauge("twistlm_waiting", "Requests that wait", registry=self.registry)
        waiting.set_function(lambda: self.desk.waiting)
        batches = Gauge("twistlm_batches", "Batches of requests so far", registry=self.registry)
        batches.set_function(lambda: self.desk.batches)
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._guarded(self._metrics)),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/completions", self._guarded(self._completions), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """The worker lives as long as the application; what waits at the end is answered."""
        worker = asyncio.create_task(self.desk.work())
        yield
        self.desk.close()
        await worker

    def _guarded(self, answers: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The same behind the key, every refusal as OpenAI's clients read it, and counted."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_key(request)
                response = await answers(request)
            except RefusedError as refused:
                response = JSONResponse(refused.body, refused.status)
            except OverloadedError:
                body = RefusedError(429, "too many requests wait; try again").body
                response = JSONResponse(body, 429, headers={"Retry-After": "1"})
            except TimeoutError:
                body = RefusedError(504, f"not answered within {self.limits.timeout:g} s; ask for less").body
                response = JSONResponse(body, 504)
            except TwistError as error:
                # By the field a client tells that it is this prompt which has no answer, and nothing else.
                of_prompt = isinstance(error, PromptError | DeadParticlesError)
                field = ("messages" if "/chat/" in request.url.path else "prompt") if of_prompt else None
                response = JSONResponse(RefusedError(400, " ".join(str(error).split()), field).body, 400)
            self.requests.labels(str(response.status_code)).inc()
            return response

        return guarded

    def _check_key(self, request: Request) -> None:
        if self.api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.api_key.encode()):
            raise RefusedError(401, "the API key is missing, or another one")

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self.name, "waiting": self.desk.waiting})

    async def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def _models(self, request: Request) -> Response:
        model = {"id": self.name, "object": "model", "created": self.begun, "owned_by": "twistlm"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _completions(self, request: Request) -> Response:
        asked = await self._asked(request)
        if not asked.texts:
            raise RefusedError(400, "prompt is missing", "prompt")
        prompts = [self.run.target.encode(text) for text in asked.texts]
        return await self._answered(request, asked, prompts, chat=False)

    async def _chat(self, request: Request) -> Response:
        asked = await self._asked(request)
        entry = asked.entry(chats=self.run.target.prompts.are_chats)
        return await self._answered(request, asked, [self.run.target.encode(entry)], chat=True)

    async def _asked(self, request: Request) -> Asked:
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.timeout):
                async for part in request.stream():
                    body += part
                    if len(body) > self.limits.most_bytes:
                        raise RefusedError(413, f"the request has more than {self.limits.most_bytes:,} bytes")
        except TimeoutError:
            raise RefusedError(408, f"the request did not end within {self.limits.timeout:g} s") from None
        except ClientDisconnect:
            raise RefusedError(400, "the request ended too early") from None
        num_tokens = self.run.target.num_tokens
        return Asked.read(bytes(body), name=self.name, num_tokens=num_tokens, limits=self.limits)

    async def _answered(self, request: Request, asked: Asked, prompts: list[Tensor], *, chat: bool) -> Response:
        begun = time.perf_counter()
        self.desk.sampler.model.check(prompts, self.run.target.num_tokens)
        num_particles = asked.num_particles or self.limits.num_particles
        repeated = [prompt for prompt in prompts for _ in range(asked.each)]
        asking = asyncio.ensure_future(self.desk.ask(repeated, num_particles, asked.seed))
        while not (await asyncio.wait({asking}, timeout=LOOKING))[0]:
            if await request.is_disconnected():
                asking.cancel()
                raise RefusedError(499, "the client has gone")
        answers = await asking
        self.seconds.observe(time.perf_counter() - begun)
        self.tokens.inc(sum(each.num_tokens for each in answers))
        read = sum(map(len, prompts))
        body = answer(answers, chat=chat, name=self.name, num_prompt_tokens=read, num_particles=num_particles)
        return JSONResponse(body)
