"""Faults in data and degradations: wrong places, wrong streams, ranks, borders, rounding."""

from tests.mutants import Mutant

_PLAN, _SOURCE, _DECODE = "ipt_fast/data/plan.py", "ipt_fast/data/source.py", "ipt_fast/data/decode.py"
_BASE, _TORCH, _INDEX = "ipt_fast/data/loader.py", "ipt_fast/data/loader.py", "ipt_fast/data/index.py"
_BICUBIC, _NOISE = "ipt_fast/degradations/bicubic.py", "ipt_fast/degradations/noise.py"
_PHILOX, _RAIN = "ipt_fast/degradations/philox.py", "ipt_fast/degradations/rain.py"
_STREAKS, _MIRROR = "ipt_fast/degradations/streak_folder.py", "ipt_fast/io/mirror.py"
_GOLDEN, _PLANS, _LOADER = "tests/data/test_golden_crops.py", "tests/data/test_plan.py", "tests/data/test_loader.py"
_PAIRS, _INDEXES, _DECODES = "tests/data/test_pairs.py", "tests/data/test_index.py", "tests/data/test_decode.py"
_BICUBICS, _NOISES = "tests/degradations/test_bicubic.py", "tests/degradations/test_noise.py"
_RAINS, _PHILOXES = "tests/degradations/test_rain.py", "tests/degradations/test_philox.py"
_FOLDERS, _DEFAULTS = "tests/degradations/test_streak_folder.py", "tests/degradations/test_defaults.py"

# fmt: off
MUTANTS = [
    # where crops are cut
    Mutant(_SOURCE, "pixels[y : y + size, x : x + size]", "pixels[y : y + size, y : y + size]", _GOLDEN),
    Mutant(_SOURCE, "pixels[y : y + size, x : x + size]", "pixels[y + 1 : y + size + 1, x : x + size]", _GOLDEN),
    Mutant(_SOURCE, "y, x = scale * top, scale * left", "y, x = scale * left, scale * top", _GOLDEN),
    Mutant(_SOURCE, "y, x = scale * top, scale * left", "y, x = top, left", _GOLDEN),
    Mutant(_SOURCE, "part.transpose(0, 3, 1, 2)", "part.transpose(0, 3, 2, 1)", _GOLDEN),
    Mutant(_SOURCE, "lq, gt = (part.contiguous()", "gt, lq = (part.contiguous()", _GOLDEN),
    Mutant(_SOURCE, "lq, gt = (part.contiguous() for part in planes)", "lq, gt = planes", _GOLDEN),
    Mutant(
        _SOURCE,
        "batch.tops[samples], batch.lefts[samples]",
        "batch.tops[samples[:1]].repeat(len(samples)), batch.lefts[samples]",
        _GOLDEN,
    ),
    Mutant(_SOURCE, "for attempt in range(_MAX_ATTEMPTS):", "for attempt in range(1, _MAX_ATTEMPTS):", _GOLDEN),
    Mutant(_SOURCE, "status.st_mtime_ns != self._mtimes[image]", "False", _LOADER),
    Mutant(_SOURCE, "(finding.width, finding.height) != (self.widths[image], self.heights[image])", "False", _LOADER),
    # the plan
    Mutant(_PLAN, "SR_MARGIN = 2", "SR_MARGIN = 1", _PLANS),
    Mutant(
        _PLAN, "((_TOP, self.heights), (_LEFT, self.widths))",
           "((_TOP, self.widths), (_LEFT, self.heights))", _PLANS
    ),
    Mutant(
        _PLAN, "((_TOP, self.heights), (_LEFT, self.widths))",
           "((_TOP, self.heights), (_TOP, self.widths))", _PLANS
    ),
    Mutant(_PLAN, "// scale + 1, seed", "// scale, seed", _PLANS),
    Mutant(_PLAN, "+ rank * per_rank", "", _PLANS),
    Mutant(_PLAN, "_hash(self.seed, _SEED, epoch, places)", "_hash(self.seed, _SEED, places)", _PLANS),
    Mutant(_PLAN, "_hash(self.seed, _SEED, epoch, places)", "_hash(self.seed, _TOP, epoch, places)", _PLANS),
    Mutant(_PLAN, "self.seed, _TASK, step)", "self.seed, _TASK, step + 1)", _PLANS),
    Mutant(_PLAN, "divmod(step, self.batches_per_epoch)", "divmod(step + 1, self.batches_per_epoch)", _PLANS),
    Mutant(_PLAN, "_hash(seed, _SHUFFLE, epoch, lap,", "_hash(seed, _SHUFFLE, lap,", _PLANS),
    Mutant(_PLAN, "_hash(seed, _SHUFFLE, epoch, lap,", "_hash(seed, _SHUFFLE, epoch,", _PLANS),
    Mutant(_PLAN, "math.ceil(len(self.widths) * self.crops_per_image / self.global_batch)",
           "max(1, len(self.widths) * self.crops_per_image // self.global_batch)", _PLANS),
    Mutant(
        _PLAN, "_SUBSTITUTE, batch.epoch, int(places[0]), attempt)",
           "_SUBSTITUTE, batch.epoch, int(places[0]))", _PLANS
    ),
    Mutant(_PLAN, "_hash(0, _SUBSET, np.arange(n_images))", "np.arange(n_images)", _PLANS),
    # loaders
    Mutant(_BASE, "self._step // self.batches_per_epoch", "self._step // (self.batches_per_epoch + 1)", _LOADER),
    Mutant(_BASE, 'self._step = int(state["step"])', 'self._step = int(state["step"]) + 1', _LOADER),
    Mutant(_BASE, "self._source.paired and state", "state", _PAIRS),
    Mutant(_BASE, "            self._replaced += 1\n            if", "            if", _LOADER),
    Mutant(_BASE, "1e3 * seconds / batches", "seconds / batches", _LOADER),
    Mutant(_TORCH, "sampler=count(step)", "sampler=count()", _LOADER),
    Mutant(_SOURCE, "batch(step, self._rank, self._world_size)", "batch(step, 0, self._world_size)", _GOLDEN),
    Mutant(_TORCH, "            stream._shutdown_workers()", "            pass", _LOADER),
    # decoding
    Mutant(_DECODE, "_CONTEXT_ROWS = 4", "_CONTEXT_ROWS = 0", _DECODES),
    Mutant(_MIRROR, "np.minimum(place, 2 * side - 1 - place)", "place % side", _GOLDEN),
    Mutant(_MIRROR, "2 * side - 1 - place", "2 * side - 2 - place", _GOLDEN),
    Mutant(_DECODE, "marker not in (_BASELINE, _EXTENDED)", "marker not in (_BASELINE, _EXTENDED, 0xC2)", _DECODES),
    Mutant(
        _INDEX,
        "item.size_bytes, item.mtime_ns, item.offset)",
        "item.size_bytes, entry.mtime_ns, item.offset)",
        _INDEXES,
    ),
    # degradations
    Mutant(_BICUBIC, ".add_(0.5).floor_()", ".round_()", _BICUBICS),
    Mutant(_BICUBIC, ".floor_().clamp_(0, 255)\n\n\ndef resize", ".floor_()\n\n\ndef resize", _BICUBICS),
    Mutant(
        _BICUBIC, "        planes = _round(planes, denominator)\n",
           "        planes = planes / denominator\n", _BICUBICS
    ),
    Mutant(_BICUBIC, "*reversed(range(size))", "*range(size)", _BICUBICS),
    Mutant(_BICUBIC, "math.ceil(W * scale) - cut)", "math.ceil(W * scale) - cut - 1)", _BICUBICS),
    Mutant(_BICUBIC, "image.add(0.5).floor_()", "image.floor()", _BICUBICS),
    Mutant(_NOISE, "noise.mul_(sigma)", "noise.mul_(sigma * 1.05)", _NOISES),
    Mutant(_NOISE, ".clamp_(0, 255)", ".clamp_(0, 256)", _NOISES),
    Mutant(_NOISE, "columns, rows, NOISE", "rows, columns, NOISE", _NOISES),
    Mutant(_NOISE, "normal_pair(words[2], words[3])", "normal_pair(words[0], words[3])", _NOISES),
    Mutant(_NOISE, "dtype=torch.float32, device=clean.device", "device=clean.device", _DEFAULTS),
    Mutant(_PHILOX, "for _ in range(9)", "for _ in range(8)", _PHILOXES),
    Mutant(_PHILOX, "(seeds >> 32) & _MASK]", "seeds & 0]", _PHILOXES),
    Mutant(
        _PHILOX,
        "NOISE, RAIN_IMAGE, RAIN_STREAK, RAIN_FOLDER = range(4)",
        "NOISE, RAIN_IMAGE, RAIN_STREAK, RAIN_FOLDER = 0, 1, 1, 3",
        _PHILOXES,
    ),
    Mutant(_RAIN, "(clean + layers[:, None]).clamp_(0, 255)", "(clean + layers[:, None]).clamp_(0)", _RAINS),
    Mutant(_RAIN, "(clean + layers[:, None])", "(clean - layers[:, None])", _RAINS),
    Mutant(_RAIN, "density * CELL**2", "density * CELL", _RAINS),
    Mutant(_RAIN, "REACH_Y, REACH_X = 56, 40", "REACH_Y, REACH_X = 40, 40", _RAINS),
    Mutant(_RAIN, "dx * cos - dy * sin", "dx * cos + dy * sin", _RAINS),
    Mutant(_RAIN, "_TAPS = 12", "_TAPS = 8", _RAINS),
    Mutant(_RAIN, "half * 0.5)).clamp_(0, 1)", "half * 0.5)).clamp_(0)", _RAINS),
    Mutant(_STREAKS, "words[2] % (w - width + 1)", "words[2] % (w - width)", _FOLDERS),
    Mutant(_STREAKS, "2 * size - 1 - place)", "2 * size - 2 - place)", _FOLDERS),
]
# fmt: on
