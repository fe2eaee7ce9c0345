"""From a local path or URL to its fsspec file system. Local names with `::` are names: fsspec takes them for chains."""

from typing import Any

from openuni.manifests.errors import MissingRequirement, OpenUniError


def is_chained(url: str) -> bool:
    """Whether fsspec would take a URL for a chain of several, such as `simplecache::s3://a/b`."""
    protocol, _, rest = url.partition("://")
    return "::" in protocol or ("::" in rest and protocol not in ("http", "https"))  # IPv6 hosts contain `::`


def file_system(address: str, **options: Any) -> tuple[Any, str]:
    """The file system of a local path or URL, and the path in it. `options`: of the file system.

    Raises `OpenUniError` for unknown protocols, those that need a package that is not installed, and chains of URLs.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    protocol, separator, _ = address.partition("://")
    if not separator:
        return LocalFileSystem(**options), str(LocalFileSystem._strip_protocol(address))
    if is_chained(address):
        raise OpenUniError(f'"{address}" is a chain of URLs, or contains "::". Allowed: one URL without it.')
    try:
        return url_to_fs(address, **options)
    except ImportError as error:
        raise MissingRequirement(f"{protocol}:// requires a package that is not installed: {error}") from error
    except (ValueError, TypeError) as error:  # not known, or not one that stores files
        raise OpenUniError(
            f'"{address}": protocol {protocol}:// is not supported ({error}). Use s3:// or a path.'
        ) from error
