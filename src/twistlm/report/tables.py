"""Terminal tables of certificates and samples."""

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twistlm.certificates.certificate import Certificate
from twistlm.certificates.probability import Place, Probability, plain_tokens, spelled
from twistlm.core.advice import coded
from twistlm.core.estimates import Estimate, plain
from twistlm.sampling.prompts import Prompts, quoted

# Prompts that a terminal shows; a page has all of them.
MOST_ROWS = 20


# Rows of a certificate that a terminal shows unless all are asked for.
BRIEF = ("log Z used", "KL(q‖σ)", "KL(σ‖q)", "E_q[φ]", "ESS per sample")


def print_certificates(
    console: Console,
    certificates: Mapping[str, Certificate],
    prompts: Prompts,
    lines: Sequence[str],
    *,
    verbose: bool = False,
) -> None:
    """Print a verdict, the certificates side by side, and, where there are several, the prompts that are worst.

    Args:
        console: where to.
        certificates: by name, the one that the verdict is of last.
        prompts: where they were made.
        lines: the verdict.
        verbose: all of each certificate, and the bounds at every number of particles.
    """
    print_lines(console, lines)
    console.print(certificate_table(certificates, None if verbose else BRIEF))
    if verbose:
        console.print(bounds_table(certificates))
    *_, last = certificates.values()
    if last.by_prompt:
        console.print(prompts_table(certificates, prompts))


def certificate_table(certificates: Mapping[str, Certificate], rows: Sequence[str] | None = None) -> Table:
    """Several certificates side by side, one column each; only some of their rows where those are named."""
    table = Table(title="Certificate (nats; 95 % intervals)", title_justify="left")
    table.add_column("")
    for name in certificates:
        table.add_column(name, justify="right")
    for name, cells in certificate_rows(certificates):
        if rows is not None and name not in rows:
            continue
        # Text, not markup: E_q[…] would be read as a style.
        table.add_row(*map(Text, (name, *cells)))
    return table


def certificate_rows(certificates: Mapping[str, Certificate]) -> list[tuple[str, list[str]]]:
    """What is known of several samplers: a name and a cell for each, by row."""
    divergences = [certificate.divergences for certificate in certificates.values()]
    rows: list[tuple[str, list[Estimate | None]]] = [
        ("log Z used", [d.log_Z for d in divergences]),
        ("KL(q‖σ)", [d.kl_q_target for d in divergences]),
        ("KL(σ‖q)", [d.kl_target_q for d in divergences]),
        ("KL(q‖p₀)", [d.kl_q_prior for d in divergences]),
        ("E_q[log φ]", [d.log_phi for d in divergences]),
        ("E_q[φ]", [d.phi for d in divergences]),
    ]
    fractions = [certificate.ess_fraction for certificate in certificates.values()]
    return [
        *((name, [_cell(estimate) for estimate in estimates]) for name, estimates in rows),
        ("ESS per sample", ["—" if fraction is None else f"{fraction:.1%}" for fraction in fractions]),
    ]


def prompts_table(certificates: Mapping[str, Certificate], prompts: Prompts) -> Table:
    """The prompts of a set, the farthest from σ first by KL(q‖σ) of the last of several samplers; at most `MOST_ROWS`.

    Those where no draw had φ > 0 come last, each with the most that log Z can be.
    """
    texts = dict(zip(prompts.names, map(quoted, prompts.entries), strict=True))
    *others, (_, last) = certificates.items()
    ranked = sorted(last.by_prompt, key=lambda each: (not each.is_met, -each.certificate.divergences.kl_q_target.value))
    beside = [(name, {each.name: each.certificate for each in of.by_prompt}) for name, of in others]
    table = Table(title="Prompts, the worst first (nats; 95 % intervals)", title_justify="left")
    table.add_column("prompt", min_width=12, max_width=28)
    names = [name for name, _ in beside]
    for name in ("log Z", "KL(q‖σ)", *names, "KL(σ‖q)", *names):
        table.add_column(name, justify="right")
    table.add_column("E_q[φ]", justify="right")
    for each in ranked[:MOST_ROWS]:
        own = each.certificate.divergences
        # One that could not be certified there is missing beside.
        there = [own, *(known[each.name].divergences if each.name in known else None for _, known in beside)]
        # Text, not markup: a prompt may be "[bold]".
        shown = Text(f"{each.name}: {texts[each.name]}")
        if not each.is_met:
            table.add_row(shown, Text(never_met(each.certificate)), *["—"] * (2 * len(there)), Text(str(own.phi)))
            continue
        kls = [None if of is None else getattr(of, kl) for kl in ("kl_q_target", "kl_target_q") for of in there]
        cells = [own.log_Z, *kls, own.phi]
        table.add_row(shown, *(Text("—" if cell is None else str(cell)) for cell in cells))
    if len(ranked) > MOST_ROWS:
        table.caption = f"{len(ranked) - MOST_ROWS} more; `twistlm report` shows them all"
    return table


def never_met(certificate: Certificate) -> str:
    """What is known of a target whose φ no draw has met."""
    high = certificate.divergences.log_Z.high
    return "φ never met" if math.isinf(high) else f"φ never met; at most {plain(high)}"


def bounds_table(certificates: Mapping[str, Certificate]) -> Table:
    """Every sandwich of log Z, by number of particles and method."""
    table = Table(title="Bounds on log Z (mean over runs, 95 % intervals)", title_justify="left")
    for heading in ("N", "method", "proposal", "lower", "upper", "gap", "runs"):
        table.add_column(heading, justify="left" if heading in ("method", "proposal") else "right")
    rows = [(b.num_particles, b.method, name, b) for name, c in certificates.items() for b in c.bounds]
    order = {name: k for k, name in enumerate(certificates)}
    for n, method, name, b in sorted(rows, key=lambda row: (row[0], row[1], order[row[2]])):
        gap = "—" if b.gap is None else plain(b.gap)
        runs = f"{b.lower.n}" if b.upper is None else f"{b.lower.n} / {b.upper.n}"
        table.add_row(str(n), method.upper(), name, Text(_cell(b.lower)), Text(_cell(b.upper)), gap, runs)
    return table


def effort_lines(certificate: Certificate) -> list[str]:
    """What a certificate cost, whether a gap was met, and what the sandwich says of SMC's own samples."""
    lines = [
        f"{certificate.num_sequences:,} sequences, {certificate.num_tokens:,} tokens, {certificate.seconds:.0f} s."
    ]
    if certificate.acceptance is not None:
        low, high = certificate.acceptance.low, certificate.acceptance.high
        lines.append(f"Rejection accepts {certificate.acceptance.value:.3%} of base draws [{low:.3%}, {high:.3%}].")
    if certificate.smc_symmetrised_kl is not None:
        most = max(b.num_particles for b in certificate.bounds)
        lines.append(
            f"A sample of SMC with {most} particles: KL(q‖σ) + KL(σ‖q) is at most {certificate.smc_symmetrised_kl:.3f}."
        )
    if certificate.stopped == "gap":
        lines.append("The sandwich is as tight as was asked for.")
    elif certificate.stopped == "budget":
        spent = "The budget was spent before the sandwich was as tight as was asked for; raise it, or the gap."
        lines.append(coded("TW313", spent))
    return lines


def probability_table(probabilities: Sequence[Probability], num_tokens: int) -> Table:
    """One column for every threshold; `num_tokens` is the length of a text."""
    table = Table(
        title="Probability of the event (95 % intervals; the first allows for ways to it that no draw has taken)",
        title_justify="left",
    )
    table.add_column("score ≥")
    columns = []
    for each in probabilities:
        table.add_column(spelled(each.threshold), justify="right")
        columns.append(_probability_cells(each, num_tokens))
    names = (
        "",
        "probability",
        "log10",
        "by counting",
        "if every way was seen",
        "by counting",
        "self-normalised",
        "upper bound",
        "effective events",
        "tokens",
    )
    for name, *cells in zip(names, *columns, strict=True):
        table.add_row(name, *[Text(cell) for cell in cells])
    return table


def ranking_table(found: Probability, prompts: Prompts) -> Table:
    """The prompts, the likeliest first."""
    said = dict(zip(prompts.names, prompts.entries, strict=True))
    ranked = found.ranked()
    shown = ranked[:MOST_ROWS]
    of = "" if len(shown) == len(ranked) else f", the first {len(shown)} of {len(ranked)}"
    event = f"score ≥ {spelled(found.threshold)}"
    table = Table(
        title=f"Prompts by P[{event}]{of} (places and intervals hold at 95 % for all at once)",
        title_justify="left",
    )
    for heading in ("place", "name", "prompt", "probability", "from", "to"):
        table.add_column(heading, justify="left" if heading in ("name", "prompt") else "right")
    for place in shown:
        each = place.found.simultaneous
        value = "never seen" if place.found.hits == 0 else f"{each.value:.2e}"
        name = place.found.name
        cells = (places(place), name, quoted(said[name]), value, f"{each.low:.2e}", f"{each.high:.2e}")
        table.add_row(*map(Text, cells))
    return table


def places(place: Place) -> str:
    """The places that a prompt may have."""
    return str(place.best) if place.is_known else f"{place.best}–{place.worst}"


# An interval that is so many times as wide as its estimate says nothing but its upper end.
FAR = 10.0


def _probability_cells(each: Probability, num_tokens: int) -> list[str]:
    value, low, high = each.log10
    chance, events, tokens = each.value, f"{each.ess:.0f} of {each.num_draws:,}", f"{each.num_tokens:,}"
    if each.seen is None:
        return [each.headline, f"never seen; below {chance.high:.2e}", f"< {high:.2f}", *["—"] * 5, events, tokens]

    def counting(estimate: Estimate) -> str:
        plain = plain_tokens(estimate, num_tokens)
        times = plain / each.num_tokens
        # What counting would know of an event from so few draws, too, is no comparison.
        if estimate.half_width > FAR * estimate.value:
            return "—"
        return f"{plain:.2g} tokens,\n{f'{times:.1f}' if times < 1e6 else f'{times:.2g}'} times as many"

    return [
        each.headline.replace(" (", "\n("),
        f"{chance.value:.2e}\n[{chance.low:.2e}, {chance.high:.2e}]",
        f"{value:.2f} [{low:.2f}, {high:.2f}]",
        counting(chance),
        f"[{each.seen.low:.2e}, {each.seen.high:.2e}]",
        counting(each.seen),
        f"{each.self_normalised:.2e}",
        "—" if each.log_upper is None else f"{math.exp(each.log_upper.high):.2e}",
        events,
        tokens,
    ]


def print_lines(console: Console, lines: Sequence[str]) -> None:
    """Sentences, as they are: E_q[…] is no style, and numbers need no colour."""
    for line in lines:
        console.print(line, markup=False, highlight=False)


def samples_table(columns: Mapping[str, Sequence[tuple[str, float]]]) -> Table:
    """Samples side by side: (text, score) pairs, one column per sampler."""
    table = Table(title="Samples, unpicked (score, text after the prompt)", title_justify="left")
    for name in columns:
        table.add_column(name, ratio=1)
    for row in zip(*columns.values(), strict=False):
        # Text, not markup: a model may write "[bold]".
        table.add_row(*(Text(f"{score:.2f} {text!r}") for text, score in row))
    return table


def _cell(estimate: Estimate | None) -> str:
    return "needs exact samples" if estimate is None else str(estimate)
