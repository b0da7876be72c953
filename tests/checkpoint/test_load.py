"""load_checkpoint: every shape of file that people have, and every kind of file that is none."""

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import CheckpointError, load_checkpoint, load_training_state, save_network
from ipt_fast.tasks import TASKS

SMALL = IPTConfig(n_feats=4, num_heads=12, num_layers=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IPT(SMALL).eval()


@pytest.fixture
def weights(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def golden(shared):
    tensors = load_file(shared / "golden/ipt_official.safetensors")
    return tensors, {k[8:]: v for k, v in tensors.items() if k.startswith("weights.")}


def prefixed(weights, prefix):
    return {prefix + k: v for k, v in weights.items()}


SHAPES = {
    "bare": lambda w: w,
    "params": lambda w: {"params": w},
    "params_ema before params": lambda w: {"params": {k: v * 0 for k, v in w.items()}, "params_ema": w},
    "state_dict": lambda w: {"state_dict": w, "epoch": 3, "optimizer": {"lr": 1.0}},
    "model": lambda w: {"model": w},
    "module.": lambda w: prefixed(w, "module."),
    "model.": lambda w: prefixed(w, "model."),
    "params, model.module.": lambda w: {"params": prefixed(w, "model.module.")},
    "state_dict, module.model.": lambda w: {"state_dict": prefixed(w, "module.model.")},
    "net_g. beside net_d.": lambda w: {"state_dict": prefixed(w, "net_g.") | {"net_d.0.weight": torch.ones(1)}},
    "generator.": lambda w: prefixed(w, "generator."),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_golden_weights_in_every_shape_of_file(golden, shape, tmp_path):
    tensors, weights = golden
    torch.save(SHAPES[shape](weights), tmp_path / "IPT.pt")
    model = load_checkpoint(tmp_path / "IPT.pt", num_heads=12)
    c = model.config
    assert (c.n_feats, c.patch_size, c.patch_dim, c.num_heads, c.num_layers) == (16, 48, 3, 12, 2)
    assert c.tasks == TASKS and not model.training
    with torch.no_grad():
        assert (model(tensors["input"], "sr2") - tensors["output.task0"]).abs().max() < 2e-3


@pytest.mark.parametrize("index, name, task", [(0, "IPT_x.pt", "sr2"), (2, "any.pt", "sr4"),
                                               (3, "IPT_derain.pt", "derain"), (4, "IPT_denoise30.pt", "denoise30"),
                                               (5, "ipt-noise50.pth", "denoise50")])  # fmt: skip
def test_single_task_files(golden, index, name, task, tmp_path):
    tensors, weights = golden
    own = {}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        if part in ("head", "tail"):
            if rest.startswith(f"{index}."):
                own[f"{part}.0.{rest.split('.', 1)[1]}"] = value
        else:
            own[key] = value[index : index + 1] if key == "body.query_embed.weight" else value
    torch.save(own, tmp_path / name)
    model = load_checkpoint(tmp_path / name, num_heads=12)
    assert model.config.tasks == (task,)
    with torch.no_grad():
        assert (model(tensors["input"], task) - tensors[f"output.task{index}"]).abs().max() < 2e-3
    if task == "derain":
        (tmp_path / name).rename(tmp_path / "best.pt")
        with pytest.raises(CheckpointError, match="neither its tail nor its name says which; give the task"):
            load_checkpoint(tmp_path / "best.pt", num_heads=12)
        assert load_checkpoint(tmp_path / "best.pt", task="derain", num_heads=12).config.tasks == ("derain",)
        with pytest.raises(ValueError, match="tail enlarges 1 times, so it is not for sr3"):
            load_checkpoint(tmp_path / "best.pt", task="sr3", num_heads=12)


def test_one_task_of_six(model, weights, tmp_path):
    torch.save(weights, tmp_path / "six.pt")
    one = load_checkpoint(tmp_path / "six.pt", task="sr3", num_heads=12)
    assert one.config.tasks == ("sr3",) and len(one.head) == 1
    x = torch.rand(1, 3, 48, 48) * 255
    with torch.no_grad():
        assert torch.equal(one(x, "sr3"), model(x, "sr3"))
    with pytest.raises(ValueError, match=r"six\.pt: has no task denoise70; it has sr2"):
        load_checkpoint(tmp_path / "six.pt", task="denoise70", num_heads=12)


@pytest.mark.parametrize("changes", [
    {"tasks": ("derain", "denoise15")}, {"num_heads": 2}, {"patch_size": 24, "patch_dim": 2, "num_heads": 4},
    {"mlp": False}, {"position_embed": False}, {"task_embed": False}, {"memory_norm": True}, {"ffn_ratio": 2},
    {"features_from": "decoder"},
])  # fmt: skip
def test_own_checkpoints_say_what_they_are(changes, tmp_path):
    config = IPTConfig(**{**SMALL.to_dict(), **changes})
    model = IPT(config)
    state = {"format": "ipt-fast/1", "config": {"lr": 1e-4, "model": config.to_dict()}, "model": model.state_dict(),
             "ema": None, "optimizer": {}, "step": 1}  # fmt: skip
    torch.save(state, tmp_path / "checkpoint.pt")
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded.config == config
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("changes", [{"mlp": False}, {"position_embed": False}, {"task_embed": False},
                                     {"memory_norm": True}, {"ffn_ratio": 2}, {"num_layers": 3},
                                     {"patch_size": 24, "patch_dim": 2, "n_feats": 6}])  # fmt: skip
def test_sizes_are_read_off_the_weights(changes, tmp_path):
    config = IPTConfig(**{**SMALL.to_dict(), **changes})
    torch.save(IPT(config).state_dict(), tmp_path / "bare.pt")
    assert load_checkpoint(tmp_path / "bare.pt", num_heads=12).config == config


def test_moving_average_is_taken_where_there_is_one(weights, tmp_path):
    average = {k: v + 1 if k == "head.0.0.bias" else v for k, v in weights.items()}
    state = {"format": "ipt-fast/1", "config": {"model": SMALL.to_dict()}, "model": weights, "ema": average}
    torch.save(state, tmp_path / "checkpoint.pt")
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint.pt").head[0][0].bias, weights["head.0.0.bias"] + 1)


def test_the_number_of_heads_is_never_guessed(model, weights, tmp_path):
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: does not say how many attention heads .* give num_heads"):
        load_checkpoint(tmp_path / "w.pt")
    assert load_checkpoint(tmp_path / "w.pt", num_heads=4).config.num_heads == 4
    with pytest.raises(CheckpointError, match="5 attention heads do not divide 36; give num_heads"):
        load_checkpoint(tmp_path / "w.pt", num_heads=5)
    own = save_network(model, tmp_path / "own.pt")
    assert load_checkpoint(own, num_heads=12).config == SMALL
    with pytest.raises(ValueError, match="says that its network has 12 attention heads, not 4"):
        load_checkpoint(own, num_heads=4)


def test_half_precision_files_become_float32_with_the_exact_mean(weights, tmp_path):
    save_file({k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, tmp_path / "half.safetensors")
    model = load_checkpoint(tmp_path / "half.safetensors", num_heads=12)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.sub_mean.bias, weights["sub_mean.bias"])
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias",
    ]  # fmt: skip


def test_old_torch_files_without_zip(weights, tmp_path):
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "old.pt", num_heads=12).config == SMALL


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("load", [load_checkpoint, load_training_state])
@pytest.mark.parametrize("kind", ["plain pickle", "torch.save", "torch.save old"])
def test_hostile_files_do_not_run(weights, kind, load, tmp_path):
    trap = tmp_path / "trap"
    content = {"params": weights, "extra": Hostile(f"touch {trap}")}
    path = tmp_path / "hostile.pt"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Hostile(f"touch {trap}")))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch.save")
    with pytest.raises(CheckpointError, match=r"hostile\.pt: (wants to run code on loading|not a checkpoint)") as error:
        load(path)
    assert not trap.exists() and "\n" not in str(error.value)


def damaged(path, kind, weights):
    torch.save(weights, path)
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "empty":
        data = bytearray()
    elif kind == "flipped":
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda i: i.file_size)
        data[largest.header_offset + 400] ^= 255
    elif kind == "noise":
        data = bytearray(os.urandom(5000))
    elif kind == "json":
        data = bytearray(b'{"a": 1}')
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped", "noise", "json"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_give_one_line_that_names_them(weights, kind, suffix, tmp_path):
    path = tmp_path / f"broken{suffix}"
    damaged(path, kind, weights)
    with pytest.raises(CheckpointError, match=r"broken.*(damaged|empty|code)") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content, message",
    [
        ("\n<!DOCTYPE html><html>404</html>", r"a web page \(HTML\) instead of a checkpoint.*fetch the file again"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer .* git lfs pull"),
    ],
)
def test_what_came_instead_of_the_file_is_said(content, message, suffix, tmp_path):
    (tmp_path / f"IPT{suffix}").write_text(content)
    with pytest.raises(CheckpointError, match=rf"IPT\{suffix}: {message}"):
        load_checkpoint(tmp_path / f"IPT{suffix}")


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "holds a list, needed is a dict of weights"),
        ({"epoch": 3}, "its first keys are epoch, expected were head.0.0.weight"),
        ({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, "first keys are conv1.weight, fc.bias, expected"),
        ({"state_dict": {"layer.0.w": torch.zeros(3)}}, "first keys are layer.0.w"),
        ({"format": "ipt-fast/9", "model": {}}, "has format ipt-fast/9, this version reads ipt-fast/1; update"),
        ({"format": "ipt-fast/1", "config": {"model": {"width": 3}}, "model": {"head.0.0.weight": torch.zeros(1)}},
         "its configuration does not fit this version: IPTConfig: unknown fields"),
        ({"head.0.0.weight": torch.zeros(4, 3, 3, 3)}, "incomplete weights of an IPT, without body.encoder"),
    ],
)  # fmt: skip
def test_foreign_files_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "foreign.pt")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda w: w.pop("body.mlp_head.0.weight"), r"body.mlp_head.0.weight is missing, expected \[144, 36\]"),
        (lambda w: w.update({"tail.3.1.bias": torch.zeros(4)}), r"tail.3.1.bias is \[4\], expected \[3\]"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra is not a weight of this network"),
        (lambda w: w.update({"tail.3.1.bias": torch.full((3,), float("nan"))}), "tail.3.1.bias holds .* not finite"),
        (lambda w: w.update({"head.0.0.weight": torch.zeros(5, 3, 3, 3)}), "36 values do not go with 5 features"),
        (lambda w: [w.pop(k) for k in list(w) if "linear1" in k], "without body.encoder.layers.0.linear1.weight"),
        (lambda w: [w.pop(k) for k in list(w) if k.startswith(("head.5", "tail.5"))], "5 tails that enlarge 2, 3, 4"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, spoil, message, tmp_path):
    spoil(weights)
    torch.save(weights, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "odd.pt", num_heads=12)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="task 'blur' is not known"):
        load_checkpoint(tmp_path / "none.pt", task="blur")
