"""Register this network with spandrel, which then recognises its files: ``python spandrel_ipt.py FILE IN OUT [TASK]``.

spandrel (``pip install spandrel``, which brings torchvision) knows the IPT of the paper, and loads files of 12 heads as
they are. It sees weights alone, which do not say how many heads a network has, and it always takes the task that
enlarges most. Here the configuration in FILE's header says both, and ``restore`` takes photos of any size.
"""

import json
import sys

import torch
from PIL import Image
from safetensors import safe_open
from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelLoader, ModelTiling, StateDict
from torch import Tensor

from ipt_fast import IPT, IPTConfig, restore
from ipt_fast.io.images import array_to_tensor, read_image, to_uint8
from ipt_fast.tasks import get_task


class IPTFast(Architecture[IPT]):
    """One configuration and one of its tasks; detected by the name and the shape of every weight."""

    def __init__(self, config: IPTConfig, task: str):
        self.config, self.task = config, get_task(task)
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in IPT(config).state_dict().items()}
        super().__init__(
            id=f"ipt-fast-{task}",
            detect=lambda state: {key: getattr(value, "shape", None) for key, value in state.items()} == shapes,
        )

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[IPT]:
        """Return spandrel's view of the network: images [1, 3, H, W] of any size, 0..1."""
        model, task = IPT(self.config), self.task
        model.load_state_dict(state_dict)

        def call(model: IPT, image: Tensor) -> Tensor:
            return restore(model, image * 255, task.name) / 255  # [1, 3, rH, rW]

        return ImageModelDescriptor(
            model.eval(), state_dict, architecture=self, purpose="SR" if task.scale > 1 else "Restoration",
            tags=[task.name], supports_half=False, supports_bfloat16=False, scale=task.scale, input_channels=3,
            output_channels=3, tiling=ModelTiling.INTERNAL, call_fn=call,
        )  # fmt: skip


def register(path: str, task: str | None = None) -> None:
    """Register what the header of a safetensors file of this project says; ``task`` chooses one of several."""
    with safe_open(path, framework="pt") as file:
        config = IPTConfig.from_dict(json.loads(file.metadata()["config"]))
    architecture = IPTFast(config, task or config.tasks[0])
    MAIN_REGISTRY.add(ArchSupport.from_architecture(architecture, before=("IPT",)))  # spandrel's own would take it


def main(path: str, source: str, target: str, task: str | None = None) -> None:
    """Restore one photo through spandrel."""
    register(path, task)
    network = ModelLoader().load_from_file(path)
    photo = array_to_tensor(read_image(source, alpha="drop").pixels)  # [3, H, W], uint8
    result = network(photo[None] / 255)[0]
    Image.fromarray(to_uint8(result * 255)).save(target)
    print(f"{network.architecture.id}, scale {network.scale}: {tuple(photo.shape)} -> {tuple(result.shape)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
