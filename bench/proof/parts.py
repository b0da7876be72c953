"""The two commands: correctness, then speed on the cache that the first has filled; what tells most comes first."""

from bench.proof.stages import (
    Stage,
    bench_of,
    ceilings,
    check_of,
    csrc,
    decoding,
    environment,
    kernel_tests,
    sanitizer,
    tests_on_gpu,
    training,
    v100,
    warm,
)

LIMIT = 595.0  # seconds of a part on a GPU; the stages' own seconds may come to more, as few take all of theirs

CORRECTNESS = (
    Stage("environment", "Which device, driver, versions and backends are these?", 20, 120, environment),
    Stage("warm", "Does every kernel compile and run at the sizes of a training?", 90, 120, warm),
    Stage("network", "Is the whole network right in 16 bits, forward and all gradients?", 80, 120, check_of("network")),
    Stage("ops", "Is every op right at B=64 and 256?", 100, 120, check_of("ops")),
    Stage("steps", "Are 20 steps skipped, rescaled and resumed as they must be?", 70, 120, check_of("steps")),
    Stage("waits", "Does no step make the host wait for the GPU?", 40, 120, check_of("waits")),
    Stage("graphs", "Do recorded steps give what launched ones give?", 50, 120, check_of("graphs")),
    Stage("ranks", "Does a process group work (a world of one)?", 40, 120, check_of("ranks")),
    Stage("csrc", "Is the CUDA C++ attention right, forward and backward?", 30, 120, csrc),
    Stage("sanitizer", "Does no kernel read out of bounds or race?", 90, 10, sanitizer),
    Stage("decoding", "Does DALI decode the pixels that PyTorch's loader does?", 50, 120, decoding),
    Stage("tests", "Do the tests that need a GPU pass?", 60, 60, tests_on_gpu),
    Stage("kernels", "Do the kernels' own tests pass?", 120, 300, kernel_tests),
    Stage("v100", "Do steps train that are forced onto a V100's path?", 60, 120, v100),
)
SPEED = (
    Stage("ceilings", "How fast can this device copy and multiply?", 20, 120, ceilings),
    Stage("attention", "Is attention faster than that of PyTorch and others?", 130, 120, bench_of("patch_attention")),
    Stage(
        "contrastive", "Is the contrastive loss faster than the dense one?", 50, 90, bench_of("patch_contrastive_loss")
    ),
    Stage("throughput", "Is a training step faster than the official network's?", 150, 120, check_of("throughput")),
    Stage(
        "network_speed", "Is the network faster than the official one, eager and compiled?", 80, 120, bench_of("model")
    ),
    Stage("restoration", "Is restoring a photo faster than by the official procedure?", 50, 120, bench_of("restore")),
    Stage("training", "Does train.py on photos wait for data, and where does a step's time go?", 80, 120, training),
    Stage(
        "others",
        "Are the tail, LayerNorm, feed-forward, degradation and losses over rows faster than written plainly?",
        100,
        120,
        bench_of("pixelshuffle_tail", "layernorm_linear", "ffn", "degrade", "row_contrastive_loss"),
    ),
)
PARTS = {"correctness": CORRECTNESS, "speed": SPEED}
