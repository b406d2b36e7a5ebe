"""Version: the one that is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("alpage")
except PackageNotFoundError:
    # A source tree that is on the path and not installed.
    __version__ = "0+unknown"
