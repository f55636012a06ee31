"""The method of DEL Serve: mechanism, accounting, wire format, bundle, decoders, training, audit."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Read ``__version__`` from the installed distribution; its only definition is in pyproject.toml."""
        if name == "__version__":
            from importlib import metadata

            return metadata.version("del-serve")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
