"""What is known of a target before a sampler of it is certified."""

from dataclasses import dataclass

from twistlm.certificates.log_Z import Witness, of_draws
from twistlm.core.estimates import Estimate, mean
from twistlm.sampling.cases import distinct
from twistlm.sampling.exact.collection import Collection, ExactSamples

# A certificate bounds log Z from above by at least so many exact samples.
FEWEST_EXACT = 2


@dataclass(frozen=True)
class Evidence:
    """What is known of a target.

    Attributes:
        exact: exact samples that took no part in training; None leaves KL(σ‖q) out, and bounds log Z from below only
            unless a witness bounds it from above.
        witnesses: of log Z, beside a sampler's own weights and SMC: draws apart from the exact samples, say.
        acceptance: share of base draws that rejection accepts, the mean of φ / sup φ; None if that is not known.
        most: what log Z is at most, for certain, by what a constraint's visited prefixes have ruled out; None without.
    """

    exact: ExactSamples | None = None
    witnesses: tuple[Witness, ...] = ()
    acceptance: Estimate | None = None
    most: float | None = None

    @staticmethod
    def of(evaluation: Collection, witnesses: tuple[Witness, ...] = ()) -> "Evidence":
        """Draws set aside for evaluation, and what others say of log Z."""
        exact = evaluation.exact
        enough = exact if len(exact) >= FEWEST_EXACT else None
        return Evidence(enough, witnesses, acceptance(evaluation), ruled_out(evaluation))


def acceptance(collection: Collection) -> Estimate | None:
    """The mean of φ / sup φ of base draws; None where there are none."""
    share = collection.log_shares.exp()
    return mean(share, low=0.0, high=1.0) if len(share) and collection.are_base_draws else None


def ruled_out(collection: Collection) -> float | None:
    """What log Z is at most at the prompt of draws under a constraint, for certain; None for base draws."""
    prompts = distinct(collection.draws.prompts)
    return None if collection.are_base_draws or len(prompts) != 1 else collection.log_most_of(prompts[0])


def witness(collection: Collection) -> Witness:
    """What draws say of log Z that are not among the exact samples."""
    return of_draws(collection.log_weights, collection.log_upper_bound)
