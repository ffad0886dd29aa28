"""How a run shows itself: in one line, in a notebook, and as data for ArviZ."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from twistlm.core.errors import ConfigError, TwistError
from twistlm.core.html import table
from twistlm.core.registry import lookup
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
        training = self.config.training
        try:
            known = None if self.certificate is None else self.certificate.summary()
        except TwistError as error:
            # A damaged one in the folder is no reason to show nothing.
            known = str(error)
        rows = [
            ("target", repr(self.target)),
            ("folder", self.place),
            ("method, twist, seed", f"{training.loss}, {self.config.twist}, {self.config.seed}"),
            ("updates", f"{training.num_updates} of {training.num_particles} sequences"),
            ("certificate", "none yet: run.evaluate()" if known is None else known),
        ]
        return table("Run", (), rows)

    def report(self: "Run", out: str | Path | None = None, *, overwrite: bool = False) -> Path:  # type: ignore[misc]
        """Everything about the run in one HTML file, as `twistlm report` writes it; returns its path.

        It is made from what is in the run's folder: the certificate that `evaluate` has left there, and what else has
        been (`twistlm sample`). Its charts are beside it, in a folder of its name, as PNG and PDF.

        Args:
            out: a file that ends in .html; None for report.html in the run's folder.
            overwrite: replace what is at `out`.

        Raises:
            ConfigError: the run has no folder, or `out` is no name of a page.
            RunError: there is no certificate of this twist, `out` exists, or somebody else is writing the folder.
            StorageError: the system refuses.
        """
        if self.folder is None:
            raise ConfigError("a report is made from a run's folder, and this run has none: train it with out=…")
        # Reports stand above runs, and so are looked up as any other part is.
        write = lookup("report", "html").value
        with self.folder.adding() if out is None else nullcontext():
            page: Path = write([self.folder.path], None if out is None else Path(out), overwrite=overwrite).page
            return page

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
