"""Errors of object stores and networks as what they are: the client libraries raise classes of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

from openuni.manifests.errors import OpenUniError

# packages whose exceptions come from requests to a store, not from a bug of ours
CLIENT_PACKAGES = {
    *("botocore", "aiobotocore", "boto3", "s3fs", "gcsfs", "adlfs", "azure", "google", "ossfs", "huggingface_hub"),
    *("aiohttp", "httpx", "httpx2", "requests", "urllib3", "paramiko"),
}


class StoreError(OpenUniError):
    """A request to an object store failed, after the retries of its client library."""


def is_remote_error(error: BaseException) -> bool:
    """Whether an exception comes from a client library of a store, or from the network."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or package in CLIENT_PACKAGES


def store_error(error: BaseException, url: str = "the object store") -> StoreError:
    """The error that a user sees."""
    reason = " ".join(str(error).split())[:500] or "no reason given"
    return StoreError(
        f"a request to {url} failed: {type(error).__name__}: {reason}. Finished items are kept. Check the access, then "
        "run the same command again."
    )


@contextmanager
def remote_errors(url: str = "") -> Iterator[None]:
    """Context that raises `StoreError` for failed requests; also a decorator: `@remote_errors()`.

    `url`: of the store that is used within, if it is known. All its `OSError`s are converted, such as access denied.
    """
    is_store = "://" in url
    try:
        yield
    except OpenUniError:
        raise
    except Exception as error:
        if is_remote_error(error) or (is_store and isinstance(error, OSError)):
            raise (store_error(error, url) if is_store else store_error(error)) from error
        raise
