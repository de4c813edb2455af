"""The training stream on real tars: bad files, exact continuation, pairs, conditions."""

from __future__ import annotations

import functools
import http.server
import io
import json
import multiprocessing
import shutil
import signal
import socketserver
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from tars import write_tar

from sat_sr.data.conditions import drop_lr, make_conditions
from sat_sr.data.degradation_law import parse_degradation
from sat_sr.data.pipeline import training_stream
from sat_sr.data.samples import Unusable, decode, read_shard
from sat_sr.data.shards import expand_shards
from sat_sr.data.workers import UnusableData
from sat_sr.diffusion.resize import resize

SIZE = 48


def picture(seed: int, side: int = 48, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "L": 1, "CMYK": 4, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0], mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """3 shards of 5 pictures each; the red channel of picture n is n·16 everywhere."""
    folder = tmp_path_factory.mktemp("good")
    for shard in range(3):
        files = {}
        for n in range(shard * 5, shard * 5 + 5):
            pixels = np.asarray(picture(n)).copy()
            pixels[..., 0] = n * 16
            files[f"p{n:02d}.png"] = encoded(Image.fromarray(pixels))
        write_tar(folder / f"{shard}.tar", files)
    return f";{folder}"


def read_pictures(spec, counts, min_side=1):
    """Every usable picture of the shards once, in their order."""
    for url in expand_shards(spec):
        for raw in read_shard(url, counts):
            try:
                yield decode(raw, min_side, counts)
            except Unusable as reason:
                counts[str(reason)] += 1


def stream(spec, **kw):
    options = {"image_size": SIZE, "batch_size": 2, "degradation": "clean:0.5,mild:0.5"} | kw
    return training_stream(spec, **options)


def take(source, count):
    return list(islice(source, count))


def equal(a, b):
    return a["__key__"] == b["__key__"] and all(torch.equal(a[name], b[name]) for name in a if name != "__key__")


def test_a_batch_is_what_the_network_wants(good):
    batch = next(iter(stream(good, batch_size=3, degradation="clean", lr_dropout=0.0)))
    target, lr, up = batch["target"], batch["lr"], batch["lr_upsampled"]
    assert (target.shape, lr.shape, up.shape) == ((3, 3, 48, 48), (3, 3, 12, 12), (3, 3, 48, 48))
    for key, image in zip(batch["__key__"], target, strict=True):
        assert image[0].unique().item() == pytest.approx(int(key[1:]) * 16 / 127.5 - 1, abs=1e-6)
    clean = resize((target + 1) / 2, (12, 12)).mul(255).round().clamp(0, 255) / 127.5 - 1
    torch.testing.assert_close(lr, clean, atol=1 / 127.5 + 1e-6, rtol=0)  # rounding may fall either way
    torch.testing.assert_close(up, resize(lr, (48, 48)).clamp(-1, 1))


def test_every_epoch_sees_every_picture_once_in_an_order_of_its_own(good):
    keys = [key for batch in take(stream(good, batch_size=5, degradation=None), 9) for key in batch["__key__"]]
    passes = [keys[start : start + 15] for start in (0, 15, 30)]
    assert all(sorted(one) == [f"p{n:02d}" for n in range(15)] for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_streams_differ_by_seed_rank_and_worker_and_by_nothing_else(good):
    def keys(**kw):
        return [key for batch in take(stream(good, degradation=None, **kw), 6) for key in batch["__key__"]]

    first = keys()
    assert first == keys()
    assert keys(seed=1) != first
    assert len({tuple(keys(rank=rank, world_size=4)) for rank in range(4)}) == 4
    two_workers = take(stream(good, degradation=None, num_workers=2), 12)
    of_worker = [[key for batch in two_workers[w::2] for key in batch["__key__"]] for w in range(2)]
    assert of_worker[0] != of_worker[1]
    # As two ranks, which are two streams as well.
    assert of_worker == [keys(rank=rank, world_size=2) for rank in range(2)]


def test_ranks_and_workers_read_every_shard_once_before_any_comes_again(tmp_path):
    """2 ranks of 2 workers, 8 shards of 3 pictures: 4 streams of 2 shards, 6 batches of one picture per epoch."""
    for shard in range(8):
        write_tar(tmp_path / f"{shard}.tar", {f"p{shard}_{n}.png": encoded(picture(3 * shard + n)) for n in range(3)})
    ranks = [
        take(stream(f";{tmp_path}", batch_size=1, degradation=None, num_workers=2, rank=rank, world_size=2), 24)
        for rank in range(2)
    ]
    for first in (0, 12):  # of an epoch, of a rank
        read = [batch["__key__"][0] for batches in ranks for batch in batches[first : first + 12]]
        assert sorted(read) == sorted(f"p{shard}_{n}" for shard in range(8) for n in range(3))


@pytest.mark.parametrize("ranks, workers", [(1, 0), (3, 0), (2, 2), (4, 1)])
def test_other_numbers_of_ranks_or_workers_begin_an_epoch_that_nobody_had_reached(tmp_path, ranks, workers):
    for shard in range(12):
        write_tar(tmp_path / f"{shard:02d}.tar", {f"p{shard}.png": encoded(picture(shard))})
    write_tar(tmp_path / "00.tar", {"p0.png": encoded(picture(0)), "small.png": encoded(picture(0, side=20))})
    options = {"batch_size": 1, "degradation": None}
    saved = []
    for rank, batches in enumerate((15, 16)):  # six shards in an epoch of each: into the third
        part = stream(f";{tmp_path}", **options, rank=rank, world_size=2)
        take(part, batches)
        saved.append(json.loads(json.dumps(part.state_dict())))
    there = sum(state["counts"][0].get("too small", 0) for state in saved)
    assert there >= 2
    parts = [stream(f";{tmp_path}", **options, rank=r, world_size=ranks, num_workers=workers) for r in range(ranks)]
    for part in parts:
        assert (
            part.resume(saved)
            == f"shards were dealt to 2 x 1 ranks x workers and now are to {ranks} x {max(1, workers)}"
        )
        assert [address[0] for address in part.state_dict()["addresses"]] == [3] * max(1, workers)
    assert sum(part.counts["too small"] for part in parts) == there
    keys = [batch["__key__"][0] for part in parts for batch in take(part, 12 // ranks)]
    assert sorted(keys) == sorted(f"p{shard}" for shard in range(12))  # a whole epoch, each once
    states = [part.state_dict() for part in parts]
    again = stream(f";{tmp_path}", **options, rank=ranks - 1, world_size=ranks, num_workers=workers)
    assert again.resume(states) == ""
    assert take(again, 1)[0]["__key__"] == take(parts[-1], 1)[0]["__key__"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_stream_equals_the_uninterrupted_one(good, num_workers):
    options = {"num_workers": num_workers, "augment": "full", "lr_dropout": 0.3, "rank": 1, "world_size": 2}
    uninterrupted = take(stream(good, **options), 12)
    parts, state = [], None
    state_of_rank_0 = stream(good, **(options | {"rank": 0})).state_dict()
    for count in (3, 4, 5):  # 3 and 7 are inside a shard, and after 3 it is the second worker's turn
        part = stream(good, **options, cache_bytes=10**6 * (count % 2))
        if state is not None:
            assert part.resume([state_of_rank_0, json.loads(state)]) == ""
        parts += take(part, count)
        state = json.dumps(part.state_dict())
    assert len(parts) == 12
    assert all(equal(a, b) for a, b in zip(parts, uninterrupted, strict=True))


def test_iterating_again_goes_on_where_the_last_iteration_stopped(good):
    whole, again = stream(good), stream(good)
    assert all(equal(a, b) for a, b in zip(take(again, 2) + take(again, 3), take(whole, 5), strict=True))


# What an epoch over the fixture `mixed` counts.
MIXED = {
    "converted: grey": 1, "converted: CMYK": 1, "converted: 16-bit": 1, "converted: alpha": 1, "too small": 1,
    "undecodable": 2, "no jpg or png": 1, "pair that does not match": 1, "broken shard": 2,
}  # fmt: skip


@pytest.fixture
def mixed(tmp_path):
    """Two good pictures among all that can be wrong."""
    write_tar(
        tmp_path / "0.tar",
        {
            "good.jpg": encoded(picture(0), "JPEG"),
            "grey.jpg": encoded(picture(1, mode="L"), "JPEG"),
            "cmyk.jpg": encoded(picture(2, mode="CMYK"), "JPEG"),
            "deep.png": encoded(Image.fromarray(np.full((48, 48), 40000, np.uint16))),
            "glass.png": encoded(picture(3, mode="RGBA")),
            "small.png": encoded(picture(4, side=47)),
            "text.jpg": b"no picture at all",
            "half.jpg": encoded(picture(5), "JPEG")[:900],
            "nothing.txt": b"a caption without its picture",
            "odd.jpg": encoded(picture(6), "JPEG"),
            "odd.lr.jpg": encoded(picture(6, side=13), "JPEG"),
        },
    )
    whole = write_tar(tmp_path / "1.tar", {f"t{n}.png": encoded(picture(n)) for n in range(3)})
    with tarfile.open(whole) as tar:  # breaks off inside t2.png; of t1 a partner might be missing, so only t0 is sure
        end = tar.getmember("t2.png").offset_data + 1000
    whole.write_bytes(whole.read_bytes()[:end])
    (tmp_path / "2.tar").write_bytes(b"not a tar " * 1000)
    return f";{tmp_path}"


def test_bad_files_are_skipped_or_converted_and_counted(mixed):
    source = stream(mixed, degradation=None, batch_size=1)
    batches = take(source, 6)
    assert sorted(batch["__key__"][0] for batch in batches) == ["cmyk", "deep", "glass", "good", "grey", "t0"]
    next(iter(source))  # the next epoch has begun: the first is counted to its end
    assert set(source.counts) == set(MIXED)
    assert all(source.counts[reason] >= count for reason, count in MIXED.items())
    deep = next(batch for batch in batches if batch["__key__"] == ["deep"])["target"]
    torch.testing.assert_close(deep, torch.full_like(deep, round(40000 / 257) / 127.5 - 1))


def test_counts_of_one_epoch_are_exact(mixed):
    counts = Counter()
    assert len(list(read_pictures(mixed, counts, min_side=48))) == 6
    assert counts == MIXED


def test_a_broken_shard_is_counted_once_however_often_its_reading_is_resumed(tmp_path):
    whole = write_tar(tmp_path / "0.tar", {f"t{n}.png": encoded(picture(n)) for n in range(6)})
    whole.write_bytes(whole.read_bytes()[:-15000])
    undisturbed = stream(str(whole), batch_size=1)
    keys = [batch["__key__"] for batch in take(undisturbed, 3)]
    assert len(set(map(tuple, keys))) == 3 and undisturbed.counts == {"broken shard": 1}
    state = None
    for _ in range(3):
        part = stream(str(whole), batch_size=1)
        if state is not None:
            part.resume([state])
        take(part, 1)
        state = part.state_dict()
    assert part.counts == {"broken shard": 1}


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_nothing_usable_is_an_error_and_no_hang(tmp_path, num_workers):
    write_tar(tmp_path / "a.tar", {f"{n}.png": encoded(picture(n, side=20)) for n in range(3)})
    (tmp_path / "b.tar").write_bytes(b"junk")
    with pytest.raises(UnusableData) as error:
        next(iter(stream(f";{tmp_path}", num_workers=num_workers)))
    said = str(error.value)  # one sentence, also from a worker
    assert said.startswith("no picture of at least 48x48 pixels in 2 shards (") and "\n" not in said
    # Two workers are dealt a shard each, and count what they have read until that is as many as there are.
    assert num_workers == 2 or "3 too small, 1 broken shard" in said


def test_a_barren_shard_that_is_dealt_again_and_again_is_no_error(tmp_path):
    """As many shards as ranks: each epoch deals a rank one of the two, by chance, often the same for several epochs."""
    write_tar(tmp_path / "a.tar", {f"{n}.png": encoded(picture(n, side=20)) for n in range(2)})
    write_tar(tmp_path / "b.tar", {f"{n}.png": encoded(picture(n)) for n in range(2)})
    for rank in range(2):
        part = stream(f";{tmp_path}", batch_size=1, degradation=None, rank=rank, world_size=2)
        assert len(take(part, 100)) == 100
        assert part.counts["too small"] > 2 * 20, "the other shard was dealt in about half of the passes"


def test_what_came_before_the_error_is_handed_out(tmp_path):
    """The last batch is not full when the shard is gone: the error comes in its place, after the whole ones."""
    tar = write_tar(tmp_path / "a.tar", {f"{n}.png": encoded(picture(n)) for n in range(5)})
    batches = iter(stream(str(tar), num_workers=1, batch_size=2, degradation=None))
    assert len(next(batches)["__key__"]) == 2
    tar.unlink()
    with pytest.raises(UnusableData, match=r"^no picture .* broken shard"):
        for batch in batches:
            assert len(batch["__key__"]) == 2


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """Address of a web server of the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:  # HTTPServer would ask for our name
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.skipif(not shutil.which("curl"), reason="webdataset opens http by curl, which is not here")
def test_shards_are_read_over_http_and_what_the_server_lacks_is_a_broken_shard(server):
    folder, address = server
    for shard in range(2):
        write_tar(folder / f"{shard}.tar", {f"h{shard}_{n}.png": encoded(picture(n)) for n in range(2)})
    counts = Counter()
    found = read_pictures(f"{address}/{{0..2}}.tar", counts)
    assert [picture.key for picture in found] == ["h0_0", "h0_1", "h1_0", "h1_1"]
    assert counts == {"broken shard": 1}


def test_a_pipe_is_read_and_a_failing_one_is_a_broken_shard(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"a.png": encoded(picture(0))})
    counts = Counter()
    found = list(read_pictures(f"pipe:cat {tar}::pipe:cat {tmp_path}/gone.tar", counts))
    assert [found_picture.key for found_picture in found] == ["a"]
    assert torch.equal(found[0].image, torch.from_numpy(np.array(picture(0))).permute(2, 0, 1))
    assert counts == {"broken shard": 1}


@pytest.fixture(params=["fork", "forkserver"])
def default_start_method(request):
    """How Python starts processes if not told; from 3.14 on the second way."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not say who sent a signal")
def test_a_worker_lets_slurms_warning_pass_and_ends_with_the_stream(good, default_start_method):
    others = multiprocessing.active_children()  # a stream of another test may not be collected yet
    batches = iter(stream(good, num_workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - set(others)
    # From another process, as Slurm's: what the parent itself sends is an order.
    subprocess.run([sys.executable, "-c", f"import os; [os.kill({worker.pid}, s) for s in (2, 10, 15)]"], check=True)
    for _ in range(6):
        next(batches)
    assert worker.is_alive()
    worker.terminate()
    worker.join(timeout=30)
    assert worker.exitcode == 0


def test_names_with_spaces_and_colons_are_those_of_files(tmp_path, monkeypatch):
    (tmp_path / "my photos").mkdir()
    write_tar(tmp_path / "my photos" / "a.tar", {"a.png": encoded(picture(0))})
    write_tar(tmp_path / "trip:1.tar", {"b.png": encoded(picture(1))})
    monkeypatch.chdir(tmp_path)
    counts = Counter()
    found = read_pictures([";my photos", "trip:1.tar"], counts)
    assert [found_picture.key for found_picture in found] == ["a", "b"] and not counts


def test_pairs_are_used_as_they_are(tmp_path):
    lr = picture(1, side=20)
    sharp = lr.resize((80, 80), Image.Resampling.NEAREST)
    write_tar(tmp_path / "a.tar", {"a.png": encoded(sharp), "a.lr.png": encoded(lr)})
    batch = next(
        iter(stream(str(tmp_path / "a.tar"), degradation="strong", image_size=32, batch_size=4, lr_dropout=0.0))
    )
    small = batch["target"][:, :, ::4, ::4]
    assert torch.equal(batch["lr"], small)  # aligned, and not degraded
    torch.testing.assert_close(batch["lr_upsampled"], resize(small, (32, 32)).clamp(-1, 1))
    with pytest.raises(UnusableData, match=r"^sample 'a' is a pair.* --degrade-on-device"):
        next(iter(stream(str(tmp_path / "a.tar"), degradation=None, image_size=32, num_workers=1)))


def test_lr_dropout_hits_both_inputs_of_a_share_of_the_samples():
    lr, up = torch.full((4000, 3, 2, 2), 0.25), torch.full((4000, 3, 8, 8), 0.25)
    noisy, noisy_up = drop_lr(lr, up, 0.07, torch.Generator().manual_seed(0))
    hit = (noisy != 0.25).flatten(1).any(1)
    assert torch.equal(hit, (noisy_up != 0.25).flatten(1).any(1))
    assert hit.float().mean().item() == pytest.approx(0.07, abs=0.016)  # 4 standard deviations
    values = noisy_up[hit]
    assert values.abs().max() == 1.0  # clamped
    assert values.abs().eq(1).float().mean().item() == pytest.approx(0.3173, abs=0.02)  # beyond one sigma
    assert values.mean().item() == pytest.approx(0, abs=0.02)
    assert (lr == 0.25).all()  # the arguments are left alone


def test_conditions_are_reproducible_from_the_generator():
    target = torch.rand(2, 3, 48, 48) * 2 - 1
    mixture = parse_degradation("strong")
    one, two, other = (make_conditions(target, mixture, torch.Generator().manual_seed(s), 0.0) for s in (5, 5, 6))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 30}, "image_size=30"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"augment": "all"}, "augment='all'"),
        ({"lr_dropout": 7}, "lr_dropout=7"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2 of 2"),
    ],
)
def test_arguments_out_of_range_are_named(good, options, named):
    with pytest.raises(ValueError, match=named):
        stream(good, **options)
