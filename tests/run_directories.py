"""Run directories with made-up scores, as train.py leaves them."""

import json

import numpy as np
import pandas as pd
from PIL import Image

POOLS = {
    "none": [],
    "ph2_kvasir": ["ph2", "kvasir"],
    "cvc_kvasir": ["cvc", "kvasir"],
    "isic_ph2": ["isic", "ph2"],
    "cvc_ph2": ["cvc", "ph2"],
}
TRIVIAL = {"all_foreground": 0.311, "centred_disc": 0.53, "mean_support_mask": 0.52, "otsu": None}
STEPS = [0, 1, 5, 10, 20, 50, 100, 200]
UNTRAINED = ("scratch", "pretrained")


def settings_of(learner, shots, seed, pair, mixing, targets, **changes):
    """The settings that reports read; `changes` are paths with dots written as two underscores."""
    settings = {
        "protocol": {"name": "tuned"},
        "learner": {
            "_target_": f"metaseg.learners.{learner}.Learner",
            "name": learner,
            "train_on": "source",
            "adapt": {"optimizer": "adam", "lr": 0.001, "steps": 50, "lam": 0},
        },
        "pair": {"name": pair, "pools": POOLS[pair], "target": targets},
        "model": {"name": "attention_unet", "features": 8, "init": "random", "init_path": None, "norm": "support"},
        "tasks": {"mixing": mixing, "count": 50, "resample": True},
        "data": {"source": "real", "root": "data", "size": 64},
        "evaluation": {"draws": 2, "limit": None},
        "shots": shots,
        "target": targets,
        "loss": "bce_log_cosh_dice",
        "seed": seed,
    }
    if learner == "imaml":
        settings["learner"]["curvature"] = "gauss_newton"
    if learner in ("naive", "prototypes"):
        settings["learner"]["adapt"]["steps"] = 0
    for path, value in changes.items():
        *groups, key = path.split("__")
        place = settings
        for group in groups:
            place = place[group]
        place[key] = value
    return settings


def write_run(
    path,
    learner="imaml",
    shots=5,
    seed=0,
    dice=0.7,
    pair="ph2_kvasir",
    mixing="exclusive",
    targets=("isic",),
    images=12,
    draws=2,
    scratch=None,
    pictures=False,
    packed=False,
    trivial=TRIVIAL,
    **changes,
):
    """Write a run whose images have Dice values around `dice`; returns its path.

    Args:
        scratch: mean Dice of the run's own comparison with training from scratch.
        pictures: draw an overlay (a grey picture) and write metrics.csv.
        packed: per_image.csv.gz in place of per_image.csv.
        changes: further settings.
    """
    path.mkdir(parents=True)
    settings = settings_of(learner, shots, seed, pair, mixing, list(targets), **changes)
    adapts = settings["learner"]["adapt"]["steps"] > 0
    result = {"version": 1, "targets": {}, "scratch": {}}
    tables = []
    for target in targets:
        hardness = np.random.default_rng(sum(map(ord, target))).uniform(-0.15, 0.15, images)
        generator = np.random.default_rng([seed, shots, sum(map(ord, learner)), sum(map(ord, target))])
        draw, image = np.indices((draws, images)).reshape(2, -1)
        values = np.clip(dice + (hardness - hardness.mean())[image] + generator.normal(0, 0.03, draws * images), 0, 1)
        table = pd.DataFrame({"dataset": target, "image": [f"{number:04d}" for number in image], "draw": draw})
        table["dsc_before"], table["iou_before"] = values / 2, values / 3
        table["dsc_after"], table["iou_after"] = values, values / 2
        tables.append(table[image != draw])  # one image a draw is its support
        mean = float(tables[-1]["dsc_after"].mean())
        score = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "level": 0.95}
        steps = STEPS if adapts else [0]
        means = [mean * (1 - 0.6 * np.exp(-step / 10)) if adapts else mean for step in steps]
        curve = {"steps": steps, "dsc": means, "low": [m - 0.05 for m in means], "high": [m + 0.05 for m in means]}
        result["targets"][target] = {
            "dsc": score,
            "dsc_before": {**score, "mean": mean / 2},
            "pooled_dsc": mean,
            "iou": mean / 2,
            "images": images,
            "draws": draws,
            "curve": curve,
            "trivial": trivial,
        }
        if scratch is not None:
            result["scratch"][target] = {**score, "mean": scratch, "curve": curve}
    table = pd.concat(tables)
    table.to_csv(path / ("per_image.csv.gz" if packed else "per_image.csv"), index=False)
    result |= {
        "wall_seconds": 90.0,
        "peak_memory_mib": {"process": 1200.5, "largest_child": 300.0},
        "commit": "0123456789abcdef",
        "dirty": False,
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "hardware": {"cpu": "a CPU", "cores": 2, "gpus": []},
        "settings": settings,
    }
    (path / "result.json").write_text(json.dumps(result))
    if pictures and learner not in UNTRAINED:
        write_metrics(path / "metrics.csv", learner, shots, seed)
        (path / "figures").mkdir()
        for target in targets:
            Image.new("RGB", (800, 600), "grey").save(path / "figures" / f"overlays_{target}.png")
    return path


def write_metrics(path, learner, shots, seed, epochs=4, steps=5):
    """Falling losses, of the inner loop or, where there is none, plain."""
    prefix, after = ("query_", "_after") if learner in ("imaml", "maml", "fomaml", "anil") else ("", "")
    rows = []
    for step in range(epochs * steps):
        value = 0.8 - 0.02 * step + 0.01 * (seed + shots / 5)
        rows.append({"step": step, "epoch": step // steps, f"train/{prefix}loss{after}": value})
        rows[-1][f"train/{prefix}dice{after}"] = 1 - value
        if step % steps == steps - 1:
            rows[-1] |= {f"validation/{prefix}loss{after}": value + 0.1, f"validation/dice{after}": 0.9 - value}
    pd.DataFrame(rows).to_csv(path, index=False)
