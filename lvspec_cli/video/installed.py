"""What is installed to decode with."""

from __future__ import annotations

from importlib import metadata

import av


def pyav_versions() -> dict[str, str]:
    """PyAV's version as ``av``, and those of the libraries of FFmpeg that it brings."""
    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    return {"av": metadata.version("av"), **libraries}


def decord_version() -> str:
    """decord's version.

    :raises ImportError: it is not installed.
    :raises OSError: its native library cannot be loaded.
    """
    import decord

    return decord.__version__
