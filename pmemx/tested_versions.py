"""The releases that pmemx was tested with, of every package whose change could alter an answer.

`pyproject.toml` allows these ranges, `constraints.txt` pins their upper ends, and `make compat` runs the tests at both ends.
"""

import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet
from packaging.version import Version


class UntestedVersion(UserWarning):
    """A package is older or newer than what pmemx was tested with."""


@dataclass(frozen=True)
class Releases:
    """The lowest and the highest release that the tests passed with."""

    lowest: str
    highest: str

    @property
    def specifier(self) -> str:
        """From the lowest to the last patch of the highest's minor release, as pip writes it."""
        major, minor = Version(self.highest).release[:2]
        return f">={self.lowest},<{major}.{minor + 1}"


TESTED = {
    "torch": Releases("2.13.0", "2.13.0"),
    "transformers": Releases("5.23.0", "5.24.0"),
    "tokenizers": Releases("0.23.1", "0.23.3"),
    "peft": Releases("0.21.0", "0.21.2"),
    "lightning": Releases("2.6.6", "2.6.6"),  # 2.6.2 and 2.6.3 on PyPI were malicious
    "hydra-core": Releases("1.3.8", "1.3.8"),
    "safetensors": Releases("0.8.0", "0.8.0"),
    "numpy": Releases("2.0.2", "2.4.6"),
    "scipy": Releases("1.15.0", "1.17.1"),
    "datasets": Releases("4.0.0", "5.2.0"),
    "huggingface_hub": Releases("1.31.0", "2.4.0"),
}


def lowest_pins() -> str:
    """The lower end of every range, as a constraints file of pip."""
    return "\n".join(f"{package}=={tested.lowest}" for package, tested in TESTED.items())


def warn_if_untested() -> None:
    """Warn once, with UntestedVersion, of all installed packages that lie outside their range; imports none of them."""
    outside = []
    for package, tested in TESTED.items():
        try:
            found = version(package)
        except PackageNotFoundError:  # its own import will say so, where it is needed
            continue
        if not SpecifierSet(tested.specifier).contains(found, prereleases=True):
            outside.append(f"{package} {found} is installed, tested is {tested.specifier}")
    if outside:
        warnings.warn(
            f"answers may differ without a word: {'; '.join(outside)}; install a tested release, or run pmemx's tests",
            UntestedVersion,
            stacklevel=3,
        )
