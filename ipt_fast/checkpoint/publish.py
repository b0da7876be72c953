"""A network to the Hugging Face Hub (extra: hub), from where ``load_checkpoint("hf://owner/name")`` takes it."""

import tempfile
from pathlib import Path

import torch

from ipt_fast.checkpoint.errors import CheckpointError
from ipt_fast.checkpoint.hub import HUB_FILE, NO_HUB
from ipt_fast.checkpoint.write import save_network
from ipt_fast.model import IPT

_CARD = """---
library_name: ipt-fast
pipeline_tag: image-to-image
---
# {name}

An Image Processing Transformer (Chen et al., CVPR 2021) for {tasks}.

```python
from ipt_fast import load_checkpoint, restore

model = load_checkpoint("hf://{repo}")
image = restore(model, "photo.jpg", task="{task}")
```
"""


def push_network(
    model: IPT, repo: str, *, private: bool = False, dtype: torch.dtype | None = None, message: str | None = None
) -> str:
    """Write a network to ``owner/name`` as one commit, and return the commit's address.

    A repository that is not there is made; a card (README.md) is written where there is none, and never over one.

    Args:
        model: on any device.
        repo: "owner/name".
        private: of a repository that is made.
        dtype: of the floating-point weights in the file; None leaves them.
        message: of the commit.

    Raises:
        CheckpointError: huggingface_hub is not installed, ``repo`` is no name, nobody who may write there is logged in,
            or nothing can be reached; the message says what to do.
    """
    try:
        from huggingface_hub import HfApi, errors
    except ImportError as error:
        raise CheckpointError(f"{repo}: {NO_HUB}") from error
    if len(repo.split("/")) != 2:
        raise CheckpointError(f"{repo}: no name of a repository; give owner/name")
    hub = HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save_network(model, Path(folder, HUB_FILE), dtype=dtype)
            if not hub.file_exists(repo, "README.md"):
                tasks = model.config.tasks
                card = _CARD.format(name=repo.split("/")[1], tasks=", ".join(tasks), repo=repo, task=tasks[0])
                Path(folder, "README.md").write_text(card, encoding="utf-8")
            done = hub.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=message or f"IPT for {', '.join(model.config.tasks)}"
            )
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repo}: no name of a repository: {error}") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise CheckpointError(
                f"{repo}: the Hub refuses ({status}); log in with a token that may write there: "
                "hf auth login, or HF_TOKEN"
            ) from error
        raise CheckpointError(f"{repo}: cannot be written: {str(error).splitlines()[0]}") from error
    except (errors.HTTPError, ConnectionError) as error:  # type: ignore[attr-defined, unused-ignore]
        raise CheckpointError(
            f"{repo}: the Hub cannot be reached ({error}); check the network and HF_HUB_OFFLINE"
        ) from error
    return str(done.commit_url)
