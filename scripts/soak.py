"""Watch a long run, or the page in long use: its memory, open files, threads and time per step (Linux).

    python scripts/soak.py training --minutes 60 --folder DIR
    python scripts/soak.py page --minutes 60 --folder DIR

The run is small and checkpoints, validates and logs all the time. On the page, which needs the extra `app`, visitor
after visitor opens it, uploads images and masks, learns, segments and leaves; such a visit is a step. A step's time is
that of the processor, which other programs on the machine hardly change. Samples go to DIR/samples.csv, the figure to
DIR/samples.png; the slopes leave out the first tenth.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metaseg.system import resident

ROOT = Path(__file__).parents[1]
SETTINGS = [
    *("learner=fomaml", "shots=3", "tasks.query=3", "tasks.count=40", "tasks.validation=2", "data=synthetic"),
    *("data.size=32", "data.augment=standard", "model.features=2", "start=model", "protocol.free_steps=1"),
    *("learner.adapt.steps=5", "protocol.adapt.folds=0", "evaluation.draws=1", "evaluation.limit=4", "trainer=cpu"),
    *("evaluation.curve=[0,1]", "evaluation.curve_limit=4", "evaluation.scratch.compare=false", "logger=csv"),
    *("trainer.save_every=5", "trainer.progress=false", "trainer.patience=null"),
]
COLUMNS = {"rss": "resident memory, MiB", "files": "open files", "threads": "threads", "cpu": "CPU seconds per step"}
IMAGES, MASKS = 8, 3


def main() -> None:
    """Run, sample, draw, and print a line for each quantity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "page"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=10, metavar="SECONDS", help="between two samples")
    parser.add_argument("--folder", type=Path, required=True, help="where all goes; must not exist")
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True)
    starts = _training if options.what == "training" else _page
    with starts(folder) as (process, steps):
        _sample(process, steps, folder / "samples.csv", options.minutes, options.every)
    samples = _read(folder / "samples.csv")
    _draw(samples, folder / "samples.png", options.what)
    print(f"{options.what}: {int(sum(samples['steps']))} steps in {samples['minutes'][-1]:.0f} minutes")
    for name, title in COLUMNS.items():
        print(_summary(title, samples["minutes"], samples[name]))


class Steps:
    """Counts the lines that are added to a file."""

    def __init__(self, file: Path) -> None:
        self.file, self.read = file, 0

    def new(self) -> int:
        """Since the last call."""
        if not self.file.exists():
            return 0
        with self.file.open("rb") as file:
            file.seek(self.read)
            added = file.read()
        self.read += len(added)
        return added.count(b"\n")


@contextmanager
def _training(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Steps]]:
    run = folder / "run"
    with _started(folder, "train.py", *SETTINGS, "trainer.max_epochs=1000000", f"hydra.run.dir={run}") as process:
        yield process, Steps(run / "metrics.csv")  # a line for each step, and one for each validation


@contextmanager
def _page(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Steps]]:
    run = folder / "run"
    with _started(folder, "train.py", *SETTINGS, "trainer.max_epochs=1", f"hydra.run.dir={run}") as training:
        training.wait()
    with _started(folder, "app.py", f"checkpoint={run}", "port=0", "browser=false", "device=cpu") as process:
        while not (said := _words(folder / "app.log")).get("page"):
            if process.poll() is not None:
                raise SystemExit(f"error: the page did not start; see {folder / 'app.log'}")
            time.sleep(0.5)
        visits, over = folder / "visits.log", threading.Event()

        def visit() -> None:
            try:
                _visit_again_and_again(said["page"], visits)
            except Exception:
                if not over.is_set():
                    traceback.print_exc()
                    process.terminate()

        threading.Thread(target=visit, daemon=True).start()
        yield process, Steps(visits)
        over.set()


@contextmanager
def _started(folder: Path, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / program).with_suffix(".log").open("wb") as log:
        command = [sys.executable, "-u", str(ROOT / program), *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _words(log: Path) -> dict[str, str]:
    """First word of each line → the rest."""
    return dict(line.split(maxsplit=1) for line in log.read_text().splitlines() if len(line.split()) > 1)


def _sample(process: subprocess.Popen[bytes], steps: Steps, file: Path, minutes: float, every: float) -> None:
    while not steps.new():  # it starts
        if process.poll() is not None:
            raise SystemExit(f"error: it ended before its first step; see the log beside {file}")
        time.sleep(0.1)
    began = last = time.monotonic()
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["minutes", "steps", "seconds", *COLUMNS])
        before = _spent(process.pid)
        while process.poll() is None and last - began < 60 * minutes:
            time.sleep(every)
            now, spent, done = time.monotonic(), _spent(process.pid), steps.new()
            if done:  # a slow step is counted with the next sample
                each = [f"{(now - last) / done:.5f}", *_numbers(process.pid), f"{(spent - before) / done:.5f}"]
                writer.writerow([f"{(now - began) / 60:.3f}", done, *each])
                out.flush()
                last, before = now, spent
    if process.poll() is not None:
        raise SystemExit(f"error: it ended with status {process.returncode}; see the log beside {file}")


def _numbers(process: int) -> tuple[float, int, int]:
    """MiB, open files and threads of a process."""
    here = Path(f"/proc/{process}")
    return resident(process=process), len(list((here / "fd").iterdir())), len(list((here / "task").iterdir()))


def _spent(process: int) -> float:
    """Seconds of the processor that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _visit_again_and_again(address: str, log: Path) -> None:
    import httpx
    import numpy as np
    from PIL import Image

    from metaseg.data.synthetic.twins import twin

    images, masks, _, _ = twin("ph2", IMAGES, 64, 0)
    files = {"image": list(images), "mask": [np.where(mask > 0, 255, 0).astype(np.uint8) for mask in masks[:MASKS]]}
    folder = log.with_name("uploads")
    folder.mkdir()
    for kind, pictures in files.items():
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / f"case{number}{'_mask' if kind == 'mask' else ''}.png")
    while True:
        # No connection is used again: the server closes idle ones, at times just as the next request arrives.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=f"{address.rstrip('/')}/gradio_api", timeout=300, limits=limits) as client:
            _visit(client, folder)
        with log.open("a") as out:
            out.write(f"{time.time():.2f}\n")


def _visit(client: Any, folder: Path) -> None:
    """What a browser sends from opening the page to closing it."""
    page = client.get("/../config").json()
    named = {one["id"]: one["props"].get("elem_id") for one in page["components"]}
    handlers = {
        (named.get(part), event): one["id"]
        for one in page["dependencies"]
        if one["backend_fn"]
        for part, event in one["targets"]
    }
    key = uuid.uuid4().hex

    def call(component: str | None, event: str, *data: Any) -> None:
        body = {"data": data, "fn_index": handlers[component, event], "session_hash": key}
        client.post("/queue/join", json=body).raise_for_status()
        with client.stream("GET", "/queue/data", params={"session_hash": key}) as answers:
            # To its end: the page drops what waits for a visitor whose stream breaks off.
            for line in answers.iter_lines():
                answer = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if answer.get("msg") == "process_completed" and not answer["success"]:
                    raise RuntimeError(f"{component} {event}: {answer['output']}")

    def uploaded(pattern: str) -> list[dict[str, Any]]:
        paths = sorted(folder.glob(pattern))
        sent = client.post("/upload", files=[("files", (path.name, path.read_bytes())) for path in paths]).json()
        described = zip(sent, paths, strict=True)
        return [{"path": at, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}} for at, path in described]

    with client.stream("GET", f"/heartbeat/{key}"):  # its end tells the page that its visitor has left
        call(None, "load")
        call("upload", "upload", uploaded("case?.png"))
        call("masks", "upload", uploaded("case?_mask.png"), "")
        call("adapt", "click", 10.0, None, True)
        call("only-segment", "click", None, True)


def _read(file: Path) -> dict[str, list[float]]:
    with file.open() as rows:
        table = list(csv.DictReader(rows))
    return {name: [float(row[name]) for row in table] for name in table[0]}


def _summary(title: str, minutes: list[float], values: list[float]) -> str:
    """The slope, and the means of the first and the last quarter."""
    import numpy as np

    start = len(values) // 10
    slope = 60 * np.polyfit(minutes[start:], values[start:], 1)[0] if len(values) > 3 else float("nan")
    quarter = max(1, len(values) // 4)
    first, last = np.mean(values[:quarter]), np.mean(values[-quarter:])
    return f"{title:<22} {slope:+9.4f} per hour; first quarter {first:.4f}, last quarter {last:.4f}"


def _draw(samples: dict[str, list[float]], file: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, places = plt.subplots(2, 2, figsize=(8, 5), sharex=True, layout="constrained")
    for place, (name, label) in zip(places.flat, COLUMNS.items(), strict=True):
        place.plot(samples["minutes"], samples[name], linewidth=0.8)
        place.set_ylim(0, 1.2 * max(samples[name]))
        place.set_title(label, fontsize=10)
    for place in places[-1]:
        place.set_xlabel("minutes")
    figure.suptitle(title)
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
