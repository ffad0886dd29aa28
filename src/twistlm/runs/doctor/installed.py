"""Which packages are installed, held against what twistlm's own metadata want of them, extra by extra."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from twistlm.runs.doctor.imports import failures

# Extras for working on twistlm itself: whether their packages are there is enough, and nothing is imported.
FOR_DEVELOPERS = ("test", "dev", "tools", "docs")

BROKEN = "cannot be imported"


@dataclass(frozen=True)
class Package:
    """A package that is wanted.

    Attributes:
        name: of the distribution.
        wanted: its range of versions; "" for any.
        version: the installed one; "" for none.
        problem: what is wrong with it; "" if nothing is.
    """

    name: str
    wanted: str
    version: str
    problem: str

    @property
    def is_broken(self) -> bool:
        """Whether it is there and cannot be imported."""
        return self.problem.startswith(BROKEN)

    @property
    def remedy(self) -> str:
        """What puts it right."""
        again = "--force-reinstall " if self.is_broken else ""
        return f'pip install {again}"{self.name}{self.wanted}"'


@dataclass(frozen=True)
class Extra:
    """A group of packages that something optional needs.

    Attributes:
        name: of the extra.
        packages: that it needs.
    """

    name: str
    packages: tuple[Package, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all are there and in order."""
        return not any(each.problem for each in self.packages)

    @property
    def remedy(self) -> str:
        """What completes it."""
        return f'pip install "twistlm[{self.name}]"'


@dataclass(frozen=True)
class Installed:
    """What is installed.

    Attributes:
        version: of twistlm; "" where it is not installed as a package.
        python: the range of Python's versions that it wants.
        packages: that it needs in any case.
        extras: what is optional.
    """

    version: str
    python: str
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]

    @staticmethod
    def said() -> "Installed":
        """What the metadata say; `tried` says more."""
        try:
            own = metadata.metadata("twistlm")
        except metadata.PackageNotFoundError:
            return Installed("", "", (), ())
        return Installed(
            own["Version"],
            own["Requires-Python"] or "",
            tuple(_packages("twistlm", "")),
            tuple(Extra(name, tuple(_packages("twistlm", name))) for name in own.get_all("Provides-Extra") or ()),
        )

    def modules(self) -> dict[str, str]:
        """The module to import of each package that is installed."""
        known = _modules()
        parts = [self.packages, *(extra.packages for extra in self.extras if extra.name not in FOR_DEVELOPERS)]
        return {
            each.name: known.get(canonicalize_name(each.name), each.name.replace("-", "_"))
            for packages in parts
            for each in packages
            if each.version
        }

    def tried(self, modules: Mapping[str, str], report: Callable[[int, str], None]) -> "Installed":
        """The same, and packages that cannot be imported have a problem.

        Args:
            modules: to import, by package.
            report: is told how many have been imported, and which is next.
        """
        wrong = failures(list(modules.values()), report)

        def told(each: Package) -> Package:
            reason = wrong.get(modules.get(each.name, ""), "")
            return replace(each, problem=f"{BROKEN} ({reason})") if reason else each

        return replace(
            self,
            packages=tuple(map(told, self.packages)),
            extras=tuple(replace(extra, packages=tuple(map(told, extra.packages))) for extra in self.extras),
        )


def _packages(distribution: str, extra: str) -> Iterator[Package]:
    """What an installed distribution needs for an extra ("" for what it needs in any case), each package once."""
    ranges: dict[str, SpecifierSet] = {}
    for requirement in _requirements(distribution, extra):
        ranges[requirement.name] = ranges.get(requirement.name, SpecifierSet()) & requirement.specifier
    for name, wanted in ranges.items():
        yield _package(name, wanted)


def _requirements(distribution: str, extra: str) -> Iterator[Requirement]:
    for requirement in map(Requirement, metadata.requires(distribution) or ()):
        if not _is_for(requirement, extra):
            continue
        yield requirement
        # What is missing altogether is said once, without its own extras.
        with suppress(metadata.PackageNotFoundError):
            for inner in requirement.extras:
                yield from _requirements(requirement.name, inner)


def _is_for(requirement: Requirement, extra: str) -> bool:
    """Whether it belongs to an extra, or ("") is wanted in any case, on this system."""
    if requirement.marker is None:
        return extra == ""
    always = requirement.marker.evaluate({"extra": ""})
    return always if extra == "" else requirement.marker.evaluate({"extra": extra}) and not always


def _package(name: str, wanted: SpecifierSet) -> Package:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Package(name, str(wanted), "", "is not installed")
    # What is newer than the last release is newer still.
    fits = wanted.contains(version, prereleases=True)
    return Package(name, str(wanted), version, "" if fits else f"is {version}, and twistlm wants {wanted}")


def _modules() -> dict[str, str]:
    """The module to import of each installed distribution: that of its own name, else the first that is not private."""
    found: dict[str, str] = {}
    for module, distributions in sorted(metadata.packages_distributions().items(), key=lambda item: item[0].lower()):
        for name in map(canonicalize_name, distributions):
            if canonicalize_name(module) == name or (name not in found and not module.startswith("_")):
                found[name] = module
    return found
