"""Faults in the scores and in the commands."""

from tests.mutants import Mutant

_METRICS, _SCORE, _HELD_OUT = (f"ipt_fast/evaluation/{name}.py" for name in ("metrics", "score", "held_out"))
_METRIC_TESTS, _SCORE_TESTS, _HELD_OUT_TESTS = (
    f"tests/evaluation/test_{name}.py" for name in ("metrics", "score", "held_out")
)

_PLAN = "ipt_fast/cli/_restore_plan.py"

# fmt: off
MUTANTS = [
    Mutant(_METRICS, "output.clamp(0, 255).round()", "output.clamp(0, 255)", _METRIC_TESTS),
    Mutant(_METRICS, "65.738 / 256, 129.057", "129.057 / 256, 65.738", _METRIC_TESTS),
    Mutant(_METRICS, "slice(border, output.shape[-1] - border)", "slice(None)", _METRIC_TESTS),
    Mutant(_METRICS, "(0.03 * 255) ** 2", "(0.05 * 255) ** 2", _METRIC_TESTS),
    Mutant(_METRICS, "sum(finite) / len(finite) if", "sum(finite) if", _SCORE_TESTS),
    Mutant(_SCORE, "seed * 1_000_000 + number", "seed * 1_000_000", _SCORE_TESTS),
    Mutant(_METRICS, 'return task.scale if task.kind == "sr" else 0', "return 0", _SCORE_TESTS),
    Mutant(_SCORE, "(s.image_set, s.task, s.method)", "(s.image_set, s.task, INPUT)", _SCORE_TESTS),
    Mutant(_HELD_OUT, "number * 1000 + draw", "number * 1000", _HELD_OUT_TESTS),
    Mutant(_HELD_OUT, "psnr_y(after, gt, border=border)", "psnr_y(before, gt, border=border)", _HELD_OUT_TESTS),
    Mutant("ipt_fast/evaluation/sample_grid.py", "key=lambda r: r.psnr_before", "key=lambda r: -r.draw",
           "tests/evaluation/test_sample_grid.py"),
    Mutant("ipt_fast/evaluation/paper.py", "mine[m]:.2f", "mine[m]:.1f", "tests/evaluation/test_paper.py"),
    Mutant("ipt_fast/evaluation/paper.py", "38.37, 34.43, 32.48, 33.76", "38.37, 34.43, 32.48, 33.67",
           "tests/evaluation/test_paper.py"),
    Mutant("ipt_fast/evaluation/visualization.py", "similarity[distance == 1].mean()",
           "similarity[distance <= 1].mean()", "tests/cli/test_visualize.py -k neighbours"),
    Mutant("ipt_fast/cli/_network.py", "abs(level.sigma - task.sigma)", "level.sigma",
           "tests/cli/test_restore.py -k unseen"),
    Mutant("ipt_fast/cli/restore.py", "return 1 if failed else 0", "return 0",
           "tests/cli/test_restore.py -k bad_images"),
    Mutant("ipt_fast/cli/tables.py", '.replace("|", "\\\\|")', "", "tests/cli/test_tables.py"),
    Mutant("ipt_fast/cli/info.py", "if reason is None else reason", "if reason is None else name",
           "tests/cli/test_info.py"),
    Mutant("ipt_fast/evaluation/test_sets.py", "<= d <= -(-c // r)", "<= d <= c // r",
           "tests/evaluation/test_test_sets.py -k odd"),
    Mutant(_SCORE, "if math.isinf(score.psnr_rgb)", "if math.isnan(score.psnr_y)",
           "tests/cli/test_eval.py -k identical"),
    Mutant("ipt_fast/cli/eval.py", "return 1 if failed else 0", "return 0", "tests/cli/test_eval.py -k damaged"),
    Mutant("ipt_fast/evaluation/perceptual.py", "(1, 4, 7, 9, 11)", "(0, 4, 7, 9, 11)",
           "tests/evaluation/test_perceptual.py -k authors"),
    Mutant("ipt_fast/evaluation/gallery.py", "return escape(text.encode", "return (text.encode",
           "tests/evaluation/test_gallery.py"),
    Mutant("ipt_fast/checkpoint/hub.py", 'match["file"] or HUB_FILE', "HUB_FILE",
           "tests/checkpoint/test_hub.py -k errors_say"),
    Mutant("ipt_fast/checkpoint/publish.py", 'if not hub.file_exists(repo, "README.md"):', "if True:",
           "tests/checkpoint/test_hub.py -k card"),
    Mutant("ipt_fast/cli/__init__.py", 'if line.startswith(" ") else textwrap.fill', "if line else textwrap.fill",
           "tests/cli/test_help.py -k prose"),
    Mutant("ipt_fast/tiling/windows.py", "place - margin * scale", "place", "tests/tiling -k untiled"),
    Mutant("ipt_fast/tiling/windows.py", "min(apart, even)", "1", "tests/tiling -k any_tile"),
    Mutant("ipt_fast/tiling/batches.py", "len(part) // 2", "len(part) - 1", "tests/tiling -k runs_out"),
    Mutant("ipt_fast/tiling/strips.py", "left : left + width", "", "tests/tiling -k any_size"),
    Mutant("ipt_fast/inference/restoration.py", "progress(share / 8)", "progress(share)",
           "tests/inference/test_restoration.py -k sixteen"),
    Mutant(_PLAN, "if out / place not in outputs", "if outputs", "tests/cli/test_restore.py -k not_taken"),
    Mutant(_PLAN, "if read is not None and read != job.source", "if False",
           "tests/cli/test_restore.py -k written_over"),
    Mutant(_PLAN, "if not job.target.exists()", "if job.target", "tests/cli/test_restore.py -k skipped"),
    Mutant("ipt_fast/io/signals.py", "128 + (signal.SIGTERM if", "128 + (signal.SIGINT if", "tests/io/test_signals.py"),
    Mutant("ipt_fast/io/images.py", "-(-max_pixels // 2)", "max_pixels", "tests/io/test_images.py -k large"),
    Mutant("ipt_fast/io/scan.py", "(stat.S_ISREG(status.st_mode) or", "(True or", "tests/io/test_scan.py"),
    Mutant("ipt_fast/io/metadata.py", "if tag in _KEPT", "if tag", "tests/io/test_write.py -k travel"),
    Mutant("ipt_fast/io/metadata.py", "if t not in _DROPPED", "if t", "tests/io/test_write.py -k travel"),
    Mutant("ipt_fast/io/sixteen_bit.py", '"B": "L"', '"B": "B"', "tests/io/test_write.py -k sixteen"),
]
# fmt: on
