"""What a script is told by its command line and by a YAML file together, as timm's and its relatives are."""

from __future__ import annotations

from collections.abc import Sequence

from .profile import option
from .yaml_file import read_yaml

__all__ = ["Options"]


class Options:
    """What the script is told, by its command line or by the YAML file of ``--config``."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._config = read_yaml(option(arguments, "-c", "--config"))

    def flag(self, name: str) -> bool:
        """Whether an option that takes no value is on."""
        return f"--{name}" in self._arguments or bool(self._config.get(name.replace("-", "_")))

    def text(self, name: str, *short: str, default: str = "") -> str:
        """The value of an option, as text."""
        given = self._config.get(name.replace("-", "_"))
        return option(self._arguments, f"--{name}", *short, default=default if given is None else str(given))

    def number(self, name: str) -> float:
        """The value of an option; 0 where there is none."""
        value = self.text(name, default="0")
        try:
            return float(value)
        except ValueError:  # the script says what is wrong
            return 0
