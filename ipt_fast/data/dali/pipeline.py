"""The DALI pipeline: encoded photos and boxes in, uint8 crops out. One definition for CPU and GPU decoding."""

from typing import Any

import nvidia.dali.fn as fn
import nvidia.dali.types as types
from nvidia.dali import pipeline_def


def build_pipeline(*, batch_size: int, crops_per_image: int, threads: int, prefetch: int, device_id: int | None) -> Any:
    """A built pipeline, fed by ``feed_input`` with ``EncodedBatch.inputs``.

    Of each photo (encoded uint8 [bytes]) only the box (anchor and shape int32 [2], rows first) is decoded, and
    ``crops_per_image`` crops are cut out of it (anchors within the box int32 [K, 2], one shape int32 [2] for all).
    The output is uint8 [n, K, S, S, 3] for n photos, where smaller crops are filled with zeros to their ``squares``,
    (S, S) int32.

    Args:
        device_id: the GPU that decodes; None decodes on the CPU.
    """
    decoder = "cpu" if device_id is None else "mixed"

    # The dynamic executor counts references to its outputs, so that they can be handed on without a copy.
    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,
    )
    def crops() -> Any:
        # The loader keeps a batch's photos until its crops are there.
        photos = fn.external_source(name="photos", dtype=types.UINT8, ndim=1, no_copy=True)
        box_anchors = fn.external_source(name="box_anchors", dtype=types.INT32, ndim=1)
        box_shapes = fn.external_source(name="box_shapes", dtype=types.INT32, ndim=1)
        boxes = fn.decoders.image_slice(
            photos,
            box_anchors,
            box_shapes,
            axes=[0, 1],
            device=decoder,
            output_type=types.RGB,
            adjust_orientation=False,  # as stored, like the other loader
            jpeg_fancy_upsampling=True,  # the GPU decoder's chroma as the CPU's
        )
        squares = fn.external_source(name="squares", dtype=types.INT32, ndim=1)
        if crops_per_image == 1:
            stacked = fn.expand_dims(boxes, axes=[0])
        else:
            crop_anchors = fn.external_source(name="crop_anchors", dtype=types.INT32, ndim=2)
            crop_shapes = fn.external_source(name="crop_shapes", dtype=types.INT32, ndim=1)
            cut = [fn.slice(boxes, crop_anchors[k], crop_shapes, axes=[0, 1]) for k in range(crops_per_image)]
            stacked = fn.stack(*cut)
        return fn.pad(stacked, axes=[1, 2], shape=squares, fill_value=0)  # [K, h, w, 3] -> [K, S, S, 3]

    pipeline = crops()
    pipeline.build()
    return pipeline
