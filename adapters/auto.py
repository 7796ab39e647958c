"""What a script that ``kcd patch`` changed calls before its first import.

Nothing heavy is imported until it is known that this is the program itself, or a process it spawned.
"""

from __future__ import annotations

from typing import Any

__all__ = ["install"]


def install(name: str, **settings: Any) -> None:
    """Install the engine, where the script is being run rather than imported by something else.

    Parameters
    ----------
    name : str
        The script's ``__name__``: "__main__", or "__mp_main__" in a spawned process.
    **settings
        Of `kcd_adapters.settings.Settings`, ``profile`` among them.

    Raises
    ------
    ValueError
        If a setting is unknown or outside its range.
    """
    if name not in ("__main__", "__mp_main__"):
        return
    from .settings import Settings

    checked = Settings.from_dict(settings)
    from .hosts.install import install as install_engine

    install_engine(checked, spawned=name == "__mp_main__")
