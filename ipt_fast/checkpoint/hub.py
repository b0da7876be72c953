"""Networks on the Hugging Face Hub (extra: hub): ``hf://owner/name``, ``hf://owner/name@revision/FILE``."""

import re
from pathlib import Path

from ipt_fast.checkpoint.errors import CheckpointError

HUB_FILE = "model.safetensors"
NO_HUB = "needs huggingface_hub; pip install 'ipt-fast[hub]'"
# One slash too: pathlib makes one of two.
_ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")


def is_on_hub(path: str | Path) -> bool:
    """Return whether this is an address of the Hub, not a file."""
    return str(path).startswith("hf:/")


def fetch_from_hub(address: str | Path) -> Path:
    """Return the file of an address in the Hub's cache, fetched where it is not there or no longer the newest.

    Raises:
        CheckpointError: huggingface_hub is not installed, this is no address, there is no such repository, revision or
            file, it may not be read, or nothing can be reached; the message says what to do.
    """
    text = re.sub("^hf:/+", "hf://", str(address))
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise CheckpointError(f"{text}: no address; give hf://owner/name or hf://owner/name@revision/FILE")
    repo, revision, file = match["repo"], match["revision"], match["file"] or HUB_FILE
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise CheckpointError(f"{text}: {NO_HUB}") from error
    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except errors.HFValidationError as error:
        raise CheckpointError(f"{text}: no address: {error}") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{text}: its owner asks for consent; give it on its page, then: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{text}: no such repository, or a private one; check the name, or log in: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{text}: the repository has no revision {revision}; leave @{revision} out") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{text}: the Hub cannot be reached and the file is not in the cache; check the network and "
            "HF_HUB_OFFLINE, or fetch it where there is a network and give the file"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{text}: the repository has no {file}; name one: hf://{repo}/FILE") from error
    except OSError as error:
        raise CheckpointError(f"{text}: cannot be fetched: {error}") from error
