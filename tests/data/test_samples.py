"""Shards that are damaged: what they still hold is read, and that they are damaged is counted."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections import Counter

import pytest

from sat_sr.data.samples import read_shard

LONG = "folder/" * 20  # beyond a header's 100 characters: such a name has a header of its own


def tar_of(names: list[str], format: int = tarfile.PAX_FORMAT) -> tuple[bytearray, dict[str, tarfile.TarInfo]]:
    """A tar of files of 700 bytes and its members by name."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as tar:
        for at, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes([at + 1]) * 700))
    data.seek(0)
    with tarfile.open(fileobj=data) as tar:
        return bytearray(data.getvalue()), {member.name: member for member in tar}


def read(tmp_path, data: bytes, name: str = "a.tar") -> tuple[list[str], Counter]:
    path, counts = tmp_path / name, Counter()
    path.write_bytes(data)
    return [sample["__key__"] for sample in read_shard(str(path), counts)], counts


def overwritten(data: bytearray, begin: int, with_: bytes) -> bytearray:
    return data[:begin] + with_ + data[begin + len(with_) :]


BLOCK = 512
DAMAGES = {
    # What stands where the header of the fifth of ten files was, and which of the ten are read.
    "intact": (lambda data, at: data, "0123456789", 0),
    "a byte flipped": (lambda data, at: overwritten(data, at + 10, b"\xff"), "012 6789", 1),
    "of the checksum itself": (lambda data, at: overwritten(data, at + 150, b"9"), "012 6789", 1),
    "zeroed": (lambda data, at: overwritten(data, at, bytes(BLOCK)), "012 6789", 1),
    "zeroed with its content": (lambda data, at: overwritten(data, at, bytes(2 * BLOCK)), "012 6789", 1),
    "noise": (lambda data, at: overwritten(data, at, bytes(range(256)) * 2), "012 6789", 1),
    "cut at it": (lambda data, at: data[:at], "0123", 1),
    "cut in the padding before it": (lambda data, at: data[: at - 100], "0123", 1),
    "cut 100 bytes into it": (lambda data, at: data[: at + 100], "012", 1),
    "cut in its content": (lambda data, at: data[: at + BLOCK + 100], "012", 1),
    "the end, without its mark": (lambda data, at: data[: 10 * 3 * BLOCK], "0123456789", 1),
    "the end, and a newline": (lambda data, at: data + b"\n", "0123456789", 0),
    "a newline instead of the end": (lambda data, at: data[: 10 * 3 * BLOCK] + b"\n", "012345678", 1),
    "the end, with half of its mark": (lambda data, at: data[: 10 * 3 * BLOCK + BLOCK], "0123456789", 0),
    "content, which no checksum guards": (lambda data, at: overwritten(data, at + BLOCK, b"?" * 50), "0123456789", 0),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_header_costs_its_file_and_its_neighbours_and_is_counted(tmp_path, case):
    """The neighbours, as the file may have been theirs: of x.jpg and x.lr.jpg one alone would be another sample."""
    damage, left, broken = DAMAGES[case]
    data, members = tar_of([f"{n}.jpg" for n in range(10)])
    keys, counts = read(tmp_path, damage(data, members["4.jpg"].offset))
    assert keys == list(left.replace(" ", "")) and counts["broken shard"] == broken
    assert set(counts) <= {"broken shard"}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("which", ["of the name", "behind the name"])
def test_headers_of_long_names_are_damaged_like_others(tmp_path, format, which):
    data, members = tar_of([f"{LONG}{n}.jpg" for n in range(10)], format)
    assert members[f"{LONG}4.jpg"].offset_data - members[f"{LONG}4.jpg"].offset == 3 * BLOCK
    begin = members[f"{LONG}4.jpg"].offset + (0 if which == "of the name" else 2 * BLOCK)
    keys, counts = read(tmp_path, overwritten(data, begin, b"\xff" * 20))
    # Without the long name the file behind it has the first 100 characters for a name, and no suffix.
    assert [key.removeprefix(LONG) for key in keys] == list("0126789")
    assert counts == {"broken shard": 1}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_damaged_header_behind_a_long_name_that_comes_first_costs_its_file_only(tmp_path, format):
    data, _ = tar_of([f"{LONG}{n}.jpg" for n in range(4)], format)
    keys, counts = read(tmp_path, overwritten(data, 2 * BLOCK, b"\xff" * 20))
    assert [key.removeprefix(LONG) for key in keys] == list("23") and counts == {"broken shard": 1}


def test_several_damages_count_one_shard(tmp_path):
    data, members = tar_of([f"{n}.jpg" for n in range(10)])
    for n in (1, 7):
        data = overwritten(data, members[f"{n}.jpg"].offset, b"\xff" * 20)
    assert read(tmp_path, data) == (["3", "4", "5", "9"], {"broken shard": 1})


def test_the_partner_of_a_lost_file_is_no_sample_of_its_own(tmp_path):
    names = ["a.jpg", "b.jpg", "b.lr.jpg", "c.lr.jpg", "c.jpg", "d.jpg"]
    for lost, left in (("b.lr.jpg", ["a", "d"]), ("c.lr.jpg", ["a", "d"]), ("a.jpg", ["c", "d"])):
        data, members = tar_of(names)
        keys, _ = read(tmp_path, overwritten(data, members[lost].offset, b"\xff" * 20))
        assert keys == left, lost


def test_joined_tars_are_read_to_their_end(tmp_path):
    """`cat a.tar b.tar`: the first one's end is followed by data, where tar itself stops."""
    (first, _), (second, _) = tar_of(["a.jpg", "b.jpg"]), tar_of(["b.jpg", "c.jpg"])
    assert read(tmp_path, first + second) == (["a", "b", "b", "c"], {"broken shard": 1})


def test_a_compressed_shard_and_one_that_breaks_off(tmp_path):
    names = [f"{n}.jpg" for n in range(10)]
    whole = gzip.compress(tar_of(names)[0])
    assert read(tmp_path, whole, "a.tar.gz") == ([str(n) for n in range(10)], {})
    keys, counts = read(tmp_path, whole[:-100], "b.tar.gz")
    assert keys == [str(n) for n in range(len(keys))] and counts == {"broken shard": 1}


def test_a_gzip_of_several_members_is_read_to_its_end(tmp_path):
    """bgzip cuts one tar into many members; `cat a.tar.gz b.tar.gz` joins two tars. tarfile reads the first member."""
    (data, _), (more, _) = tar_of([f"{n}.jpg" for n in range(10)]), tar_of(["a.jpg", "b.jpg"])
    cut = b"".join(gzip.compress(data[at : at + 1000]) for at in range(0, len(data), 1000))
    assert read(tmp_path, cut, "a.tar.gz") == (list("0123456789"), {})
    joined = gzip.compress(data) + gzip.compress(more)
    assert read(tmp_path, joined, "b.tar.gz") == (list("0123456789ab"), {"broken shard": 1})
    assert read(tmp_path, gzip.compress(data) + b"no gzip", "c.tar.gz") == (list("0123456789"), {"broken shard": 1})


def test_samples_are_grouped_as_webdataset_groups_them(tmp_path):
    data, _ = tar_of(["f/a.jpg", "f/a.LR.png", "__meta__/x.jpg", "f/b.x.jpg", "f/b.x.jpg", "none", "f/c.jpg"])
    (tmp_path / "a.tar").write_bytes(data)
    counts = Counter()
    samples = list(read_shard(str(tmp_path / "a.tar"), counts))
    assert [set(sample) - {"__key__"} for sample in samples] == [{"jpg", "lr.png"}, {"x.jpg"}, {"jpg"}]
    assert [sample["__key__"] for sample in samples] == ["f/a", "f/b", "f/c"]
    assert samples[0]["jpg"] == bytes([1]) * 700 and samples[1]["x.jpg"] == bytes([4]) * 700  # the first of two
    assert counts == {"duplicate file in a shard": 1}


def test_no_tar_an_empty_file_and_none_at_all_are_broken_and_an_empty_tar_is_not(tmp_path):
    assert read(tmp_path, b"not a tar " * 1000) == read(tmp_path, b"") == ([], {"broken shard": 1})
    assert read(tmp_path, bytes(tar_of([])[0])) == ([], {})
    counts = Counter()
    assert list(read_shard(str(tmp_path / "gone.tar"), counts)) == [] and counts == {"broken shard": 1}
