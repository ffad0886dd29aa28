"""How a run shows itself: in one line, in a notebook, and as data for ArviZ."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from twistlm.core.html import table
from twistlm.core.rng import Rng
from twistlm.core.sizes import TOKEN_BYTES, check_sizes
from twistlm.sampling.prompts import Entry

if TYPE_CHECKING:
    from twistlm.runs.run import Run


class Shown:
    """What a run shows of itself."""

    @property
    def place(self: "Run") -> str:  # type: ignore[misc]
        """Its folder, or the URL of it in a store; "in memory" where there is none."""
        return "in memory" if self.folder is None else self.folder.url or str(self.folder.path)

    def __repr__(self: "Run") -> str:  # type: ignore[misc]
        return f"Run({self.place}: {self.config.training.loss} with twist {self.config.twist!r} on {self.target!r})"

    def _repr_html_(self: "Run") -> str:  # type: ignore[misc]
        training, known = self.config.training, self.certificate
        rows = [
            ("target", repr(self.target)),
            ("folder", self.place),
            ("method, twist, seed", f"{training.loss}, {self.config.twist}, {self.config.seed}"),
            ("updates", f"{training.num_updates} of {training.num_particles} sequences"),
            ("certificate", "none yet: run.evaluate()" if known is None else known.summary()),
        ]
        return table("Run", (), rows)

    def to_datatree(  # type: ignore[misc]
        self: "Run",
        num_samples: int = 64,
        *,
        num_runs: int = 4,
        prompt: Entry | None = None,
        condition: str | Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Any:
        """Samples of the target as an `xarray.DataTree` for ArviZ (`SMCResult.to_datatree`), with their texts.

        Args:
            num_samples: particles of each run of SMC: draws.
            num_runs: independent runs: chains.
            prompt: as for `sample`, as are the others.
            condition: what the target is given, if targets differ.
            seed: of the samples.
            **options: of `sampler`.

        Raises:
            ConfigError: ArviZ is not installed.
        """
        check_sizes(TOKEN_BYTES * self.target.num_tokens, num_samples=num_samples, num_runs=num_runs)
        cases, sampler = [self.target.case(condition, prompt)] * num_runs, self.sampler(**options)
        result = sampler.smc(Rng(seed, ("datatree",)), cases, num_samples)
        return result.to_datatree(self.target.texts(sampler.samples_of(result, cases)), seed=seed)
