"""The evaluation itself: every picture through every run, each result written down as it comes."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sat_sr.evaluation.columns import GRIDS, describe
from sat_sr.evaluation.metrics import Metrics, psnr
from sat_sr.evaluation.pairs import Pair, Pairs, interpolate
from sat_sr.evaluation.records import Records, digest_of, digest_of_file
from sat_sr.evaluation.settings import Setting, resolve
from sat_sr.evaluation.source import (
    MEASURING,
    MEASURING_PACKAGES,
    SAMPLING,
    SAMPLING_PACKAGES,
    digest_of_source,
)
from sat_sr.image_io.storage import atomic_write
from sat_sr.measure import measured
from sat_sr.sampling import SamplingSettings

if TYPE_CHECKING:  # takes seconds to import: not for those who only read a finished evaluation
    from sat_sr.inference.upscaler import Upscaler


@dataclass(frozen=True)
class Run:
    """One way to make outputs: a network with a setting, or interpolation (network None), or the target itself.

    key    decides which results on disk belong to it
    """

    title: str
    key: str
    network: str | None = None
    setting: Setting = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the folder of its outputs: readable, and unique by the key."""
        return f"{re.sub(r'[^A-Za-z0-9._=+-]+', '_', self.title)[:80]}-{self.key[:6]}"


TARGET, BICUBIC, LANCZOS = (Run(name, f"{name}-1") for name in ("target", "bicubic", "Lanczos"))
BASELINES = (TARGET, BICUBIC, LANCZOS)
_RESAMPLING = {BICUBIC.key: Image.Resampling.BICUBIC, LANCZOS.key: Image.Resampling.LANCZOS}


class Network:
    """A checkpoint, loaded when first needed: a finished evaluation is reported without it.

    load   makes the upscaler of a path
    name   in tables; the file's stem, or that of its folder for `mp_rank_00_model_states.pt`
    """

    def __init__(self, path: str | Path, load: Callable[[str], Upscaler], name: str | None = None) -> None:
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: there is no such checkpoint")
        self.path, self._load = str(path), load
        self.name = name or network_name(path)
        self.digest = digest_of_file(path)

    @functools.cached_property
    def upscaler(self) -> Upscaler:
        """Loaded the first time that it is asked for."""
        return self._load(self.path)

    def unload(self) -> None:
        """Give back what was loaded, if anything was; `upscaler` would load it again."""
        if upscaler := self.__dict__.pop("upscaler", None):
            upscaler.close()

    def runs(self, settings: Iterable[Setting], options: Setting) -> list[Run]:
        """One run a setting. `options` is what else decides the output (device, dtype, …); the code does, too."""
        source, runs = digest_of_source(SAMPLING, SAMPLING_PACKAGES), []
        for setting in settings:
            what = {"network": self.digest, "setting": setting, "options": options, "source": source}
            title = ", ".join([self.name, *(f"{key}={value}" for key, value in setting.items())])
            runs.append(Run(title, digest_of(what), self.name, setting))
        return runs


def network_name(path: str | Path) -> str:
    """The file's stem, or the name of its folder for `mp_rank_00_model_states.pt`."""
    path = Path(path)
    return path.resolve().parent.name if path.stem.startswith("mp_rank_") else path.stem


def name_networks(paths: Sequence[str | Path]) -> list[str]:
    """A name for each checkpoint; where two would be equal, the whole paths."""
    names = [network_name(path) for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


class Evaluation:
    """Pairs, figures and results of one command.

    folder   where records.jsonl and pictures/ are
    device   where the networks run, for the measurement of memory
    say      called with a line of text for every picture and run that was computed
    """

    def __init__(
        self,
        pairs: Pairs,
        metrics: Metrics,
        folder: Path,
        *,
        device: str = "cpu",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.pairs, self.metrics, self.folder, self.device, self.say = pairs, metrics, folder, device, say
        self.records = Records(folder / "records.jsonl")
        self.resumed = 0  # results that were found on disk
        self._measuring = digest_of_source(MEASURING, MEASURING_PACKAGES)  # figures are kept by it, apart from costs
        self.to_converged: dict[str, float] = {}  # by key of a run: mean PSNR in dB
        self._digests: dict[str, str] = {}
        self._blocks: dict[str, int] = {}  # by key of a run: pixels a side

    def evaluate(
        self,
        networks: Sequence[tuple[Network, list[Run]]],
        tick: Callable[[], None] = lambda: None,
        converged: Setting | None = None,
    ) -> list[Run]:
        """Bring every run to all figures; `tick` is called once for every picture of every run of a network.

        converged  one of the settings, of so many steps that more would not change its outputs: those of the other
                   settings are compared with them, into `to_converged`
        returns    the runs, baselines first
        """
        runs = list(BASELINES)
        for network, own_runs in networks:
            patch, block = self._sizes(network)
            self.metrics.look_for(patch, block)
            self._blocks |= {run.key: block for run in own_runs}
            for pair in self._pairs():
                for run in [*BASELINES, *own_runs]:
                    self._bring(run, pair, network)
                    if run.network:
                        tick()
            network.unload()
            runs += own_runs
        for pair in self._pairs():  # the grids of the other networks
            for run in runs:
                self._bring(run, pair, None)
        if converged is not None:
            for _, own_runs in networks:
                self._compare(own_runs, next(run for run in own_runs if run.setting == converged))
        return runs

    def _compare(self, runs: Iterable[Run], converged: Run) -> None:
        """How far the outputs of runs of one network are from where its sampling converges to."""
        found: dict[str, list[float]] = {run.key: [] for run in runs if run is not converged}
        for pair in self._pairs():
            limit = self.picture(converged, pair)
            for run in runs:
                if run is not converged:
                    found[run.key].append(psnr(limit, self.picture(run, pair)))
        self.to_converged |= {key: statistics.fmean(values) for key, values in found.items()}

    def result(self, run: Run, name: str) -> dict:
        """What was found for a picture: "figures", and for networks "settings", "seconds", "calls", "peak_mib".

        For networks also "target": the figures of GRIDS that the target has where this run had its grids.
        """
        key = self._picture_key(name)
        return {**self.records.get(run.key, key), "figures": {}, **self.records.get(self._figures_key(run), key)}

    def picture(self, run: Run, pair: Pair) -> np.ndarray:
        """The output of a finished run: (H, W, 3) uint8."""
        if run.network is None:
            return self._baseline(run, pair)
        with Image.open(self._path(run, pair.name)) as image:
            return np.asarray(image)

    def columns(self, run: Run) -> list[str]:
        """The target has figures only where nothing is compared with it."""
        return [c for c in self.metrics.columns if run is not TARGET or c.startswith(GRIDS)]

    def _pairs(self) -> Iterator[Pair]:
        for name in self.pairs.names:
            pair = self.pairs.read(name)
            self._digests[name] = pair.digest
            yield pair

    def _picture_key(self, name: str) -> str:
        return f"{name} {self._digests[name]}"

    def _figures(self, run: Run, key: str) -> dict[str, float | None]:
        """Those that are known of a picture, computed by the present code."""
        return self.records.get(self._figures_key(run), key).get("figures", {})

    def _figures_key(self, run: Run) -> str:
        return f"{run.key} measured by {self._measuring}"

    def _path(self, run: Run, name: str) -> Path:
        return self.folder / "pictures" / run.folder / f"{name}-{self._digests[name][:6]}.png"

    def _sizes(self, network: Network) -> tuple[int, int]:
        """Patch and block of a network in pixels; a network whose sizes are on the disk is not loaded for that."""
        record = self.records.get(network.digest, "")
        if "patch" not in record:
            config = network.upscaler.model.config
            record = {"patch": config.patch_size, "block": config.image_block_size}
            self.records.add(network.digest, "", **record)
        return record["patch"], record["block"]

    def _bring(self, run: Run, pair: Pair, network: Network | None) -> None:
        """Make the output of a run if it is not there, and those of its figures that are not known."""
        key, path, output = self._picture_key(pair.name), self._path(run, pair.name), None
        record = self.records.get(run.key, key)
        if run.network and not ("seconds" in record and path.exists()):
            assert network is not None, "the outputs of networks are made before the last pass"
            output, cost = self._upscale(network.upscaler, run, pair)
            write_png(path, output)
            self.records.add(run.key, key, title=run.title, **cost)
        elif run.network and network:
            self.resumed += 1
        missing = [column for column in self.columns(run) if column not in self._figures(run, key)]
        if missing:
            self._measure(run, pair, self.picture(run, pair) if output is None else output, missing)
        if output is not None:
            self.say(self._line(run, pair.name))

    def _measure(self, run: Run, pair: Pair, picture: np.ndarray, columns: list[str]) -> None:
        """Compute figures and record them. Grids are looked for where the run had them, or, without a network, in the
        corner."""
        key, offsets, found = self._picture_key(pair.name), [0], {}
        if run.network:
            offsets = SamplingSettings(**self.records.get(run.key, key)["settings"]).grid_offsets(self._blocks[run.key])
            grids = [column for column in columns if column.startswith(GRIDS)]
            known = self.records.get(self._figures_key(run), key).get("target", {})
            found["target"] = known | self.metrics(pair.target, pair.lr, pair.target, grids, offsets)
        figures = self.metrics(pair.target, pair.lr, picture, columns, offsets)
        self.records.add(self._figures_key(run), key, figures=figures, **found)

    def _upscale(self, upscaler: Upscaler, run: Run, pair: Pair) -> tuple[np.ndarray, dict]:
        height, width = pair.target.shape[:2]
        settings = resolve(run.setting, upscaler.defaults, upscaler.fast)
        with measured(self.device) as cost:
            output = upscaler(pair.lr, size=(width, height), seed=run.setting.get("seed", 0), **settings.to_dict())
        return output, {
            "settings": settings.to_dict(),
            "seconds": round(cost.seconds, 3),
            "calls": settings.network_calls,
            "peak_mib": round(cost.peak_mib, 1),
        }

    def _baseline(self, run: Run, pair: Pair) -> np.ndarray:
        if run is TARGET:
            return pair.target
        return interpolate(pair.lr, pair.target.shape[:2], _RESAMPLING[run.key])

    def _line(self, run: Run, name: str) -> str:
        result = self.result(run, name)
        figures = [describe(c, result["figures"][c]) for c in self.columns(run)]
        return " | ".join([name, run.title, *figures, f"{result['seconds']:.1f} s"])


def write_png(path: Path, picture: np.ndarray) -> None:
    """(H, W, 3) uint8 to a file that is whole or not there."""
    with atomic_write(path) as file:
        Image.fromarray(picture).save(file, format="PNG", compress_level=1)
