"""The method of DEL Serve: mechanism, accounting, wire, bundle, decoders, training, audit."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Return ``__version__`` of the installed distribution, which pyproject.toml defines."""
        if name == "__version__":
            from importlib import metadata

            return metadata.version("del-serve")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
